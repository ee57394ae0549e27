#!/usr/bin/env bash
# The whole way on a dataset of your own: ./quick_start.sh BraTS2021/ [more options of `attcl train`]
# Run it in an empty folder; it writes data/, runs/ and out/ there and never into the dataset.
set -euo pipefail

dataset=$1
shift

attcl info "$dataset"
attcl prepare-splits --ratio ratio1 "$dataset"
attcl train "$@"
attcl complete --ori data/ --cpl out/
