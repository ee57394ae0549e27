"""The modules of examples/study lie beside its Snakefile, and are no part of the package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[2] / "examples" / "study"
sys.path.insert(0, str(STUDY))


@pytest.fixture
def names_alone() -> Callable[[Path, int], Path]:
    """Return a function that makes the folder of a dataset of so many patients: names of files, and nothing in them."""

    def make(folder: Path, cases: int) -> Path:
        for case in (f"Case_{index:05d}" for index in range(cases)):
            (folder / case).mkdir(parents=True)
            for modality in ("flair", "t1", "t1ce", "t2", "seg"):
                (folder / case / f"{case}_{modality}.nii.gz").touch()
        return folder

    return make
