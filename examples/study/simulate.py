"""Simulate the patients of a study that needs no data: what `attcl demo` does for its own.

python simulate.py study-phantom/phantom/phantoms --cases 12 --voxel-mm 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from attcl_cli.cli.terminal import show_error
from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import is_phantom, write_cohort
from attcl_cli.errors import AttclError, counted
from attcl_cli.files import ordinary_mode
from attcl_cli.temporaries import temporary_folder

_EDGE_MM = 1e-3


def main() -> None:
    """Write a cohort of phantoms, whole or not at all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="the dataset's folder")
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--voxel-mm", type=float, required=True, help="voxel edge; 1 is BraTS's")
    options = parser.parse_args()
    if options.root.is_dir():
        try:
            _require_same(options.root, options.cases, options.voxel_mm)
        except AttclError as error:
            show_error(error)
            sys.exit(error.exit_code)
        return
    options.root.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(options.root) as building:
        write_cohort(building, cases=options.cases, voxel_mm=options.voxel_mm)
        building.chmod(ordinary_mode(0o777))
        building.rename(options.root)


def _require_same(root: Path, cases: int, voxel_mm: float) -> None:
    """Check that a folder that is there holds what an earlier call wrote for these numbers.

    Raises:
        AttclError: it holds something else.
    """
    dataset = open_dataset(root)
    first = dataset.cases[0]
    edges = volumes.read_grid(dataset.paths(first, next(iter(first.files)))).spacing_mm
    found = f"{counted(len(dataset.cases), 'case')} of {max(edges):.3g} mm"
    phantoms = all(is_phantom(dataset, case) for case in dataset.cases)
    alike = len(dataset.cases) == cases and all(abs(it - voxel_mm) < _EDGE_MM for it in edges)
    if not (phantoms and alike):
        raise AttclError(
            f"{root}: {found}{'' if phantoms else ' that are no phantoms'}, "
            f"expected {cases} phantoms of {voxel_mm:g} mm or a new folder",
            "choose another folder, or remove it",
            code="output-not-empty",
        )


if __name__ == "__main__":
    main()
