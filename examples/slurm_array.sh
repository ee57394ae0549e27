#!/usr/bin/env bash
# Complete a dataset as a job array: every task does its share of the cases. Run a task again if it was killed.
#   sbatch --array=1-8 slurm_array.sh data/ out/ runs/mine
#SBATCH --job-name=attcl
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
set -euo pipefail

attcl complete --ori "$1" --cpl "$2" --weights "$3" \
  --num-parts "${SLURM_ARRAY_TASK_COUNT:-1}" --part-id "${SLURM_ARRAY_TASK_ID:-1}"
