"""Volumes that attcl made where real ones are expected: their side-cars say so.

What a side-car says besides is left to `dataset`.
"""

from __future__ import annotations

from collections.abc import Iterable

from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.errors import AttclError, counted


def describe_synthetic(dataset: Dataset, cases: Iterable[Case]) -> str:
    """Return how many volumes of some cases are synthetic, in words; "" if none is."""
    names = [
        f"{name} of {case.id}" for case in cases for name in dataset.synthetic(case, case.files)
    ]
    if not names:
        return ""
    have = counted(len(names), "volume has", "volumes have")
    return f"{have} a side-car that says synthetic (the first: {names[0]})"


def no_truths(truth: Dataset, case: Case, names: Iterable[str]) -> list[AttclError]:
    """Return a problem for each of these volumes of a case that is synthetic, and so no ground truth."""
    return [
        AttclError(
            f"{truth.paths(case, name)[0]}: synthetic, as its side-car says, expected a real volume",
            "name the complete dataset with --truth",
            code="synthetic-truth",
        )
        for name in truth.synthetic(case, names)
    ]
