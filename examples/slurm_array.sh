#!/usr/bin/env bash
# Complete a dataset as a job array: every task does its share of the cases. The last argument is the number of shares,
# so that some tasks can run again: sbatch --array=3,7 slurm_array.sh data/ out/ runs/mine 8
#   sbatch --array=1-8 slurm_array.sh data/ out/ runs/mine 8
#SBATCH --job-name=attcl
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
set -euo pipefail

usage="usage: sbatch --array=1-SHARES slurm_array.sh DATA OUTPUT WEIGHTS SHARES"
[ $# -eq 4 ] || { echo "$usage" >&2; exit 2; }

attcl complete --ori "$1" --cpl "$2" --weights "$3" --num-parts "$4" --part-id "${SLURM_ARRAY_TASK_ID:?$usage}"
