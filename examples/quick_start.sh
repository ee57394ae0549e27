#!/usr/bin/env bash
# From a complete dataset to completed volumes. A dataset that is already incomplete needs no prepare-splits.
#   ./quick_start.sh BraTS2021/ [more options of `attcl train`]
# Run it in an empty folder; it writes data/, runs/ and out/ there and never into the dataset.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: quick_start.sh DATASET [options of attcl train]" >&2
  exit 2
fi
dataset=$1
shift

attcl info "$dataset"
attcl prepare-splits --ratio ratio1 "$dataset"
attcl train "$@"
attcl complete --ori data/ --cpl out/
