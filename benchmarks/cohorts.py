"""Cohorts of phantoms that a benchmark makes once, and finds again when it is called a second time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.errors import UsageError


def phantoms(
    root: Path,
    cases: int,
    *,
    voxel_mm: float,
    seed: int,
    missing: Sequence[Sequence[str]] = (),
) -> Dataset:
    """Return the cohort in `root`, which appears whole or not at all; `missing` as of `write_cohort`.

    Raises:
        UsageError: another number of cases is there.
    """
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            made = Path(folder) / "new"
            write_cohort(made, cases=cases, seed=seed, voxel_mm=voxel_mm, missing=missing)
            made.rename(root)
    dataset = open_dataset(root)
    if len(dataset.cases) != cases:
        raise UsageError(
            f"{root}: {len(dataset.cases)} cases, expected {cases}",
            "choose another --output",
            code="cohort-of-another-size",
        )
    return dataset


def canvas_for(voxel_mm: float, image_size: int) -> int:
    """Return the smallest canvas, in voxels, that holds a phantom's slices and is a multiple of `image_size`."""
    voxels = -int(-240 // voxel_mm)
    return -(-voxels // image_size) * image_size
