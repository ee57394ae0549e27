"""Simulate the patients of a study that needs no data: what `attcl demo` does for its own.

python simulate.py study-phantom/phantom/phantoms --cases 12 --voxel-mm 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.files import ordinary_mode
from attcl_cli.temporaries import temporary_folder


def main() -> None:
    """Write a cohort of phantoms, whole or not at all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="the dataset's folder")
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--voxel-mm", type=float, required=True, help="voxel edge; 1 is BraTS's")
    options = parser.parse_args()
    if options.root.is_dir():
        return  # an earlier call wrote it
    options.root.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(options.root) as building:
        write_cohort(building, cases=options.cases, voxel_mm=options.voxel_mm)
        building.chmod(ordinary_mode(0o777))
        building.rename(options.root)


if __name__ == "__main__":
    main()
