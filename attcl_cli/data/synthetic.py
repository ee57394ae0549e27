"""Volumes that attcl made, as their side-cars say: no ground truth, and perhaps not made in whole.

How a side-car is read is left to `dataset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.errors import AttclError, counted, some


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


def sources_gone(names: Iterable[str], case: Case) -> str:
    """Return that a volume was made from modalities which its case lacks, in words; "" if the case has them all.

    Args:
        names: the modalities that it was made from or sharpened by, as its side-car says.
        case: as it is now.
    """
    gone = [name for name in names if name not in case.files]
    if not gone:
        return ""
    return f"made from {', '.join(gone)}, which its case does not have (any more), expected sources that it has"


def notes_of_slices(side_cars: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note if volumes were made in some slices alone (`attcl complete --slices`), as their side-cars say.

    Args:
        side_cars: of all volumes that are read; {} of one that has none.
    """
    spans = [span for span in map(slices_made, side_cars) if span]
    ranges = [span_in_words(span) for span in spans]
    if not ranges:
        return []
    are = "has" if len(ranges) == 1 else "have"
    return [
        f"{len(ranges):,} of {counted(len(side_cars), 'completed volume')} {are} slices {some(sorted(set(ranges)))} "
        "alone, as made with --slices, and 0 elsewhere: figures of whole volumes count that, too"
    ]


def slices_made(side_car: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (first, stop) of the slices that a volume was made in alone (`--slices`); None if in all."""
    span = side_car.get("slices", "all")
    if side_car.get("synthetic") is not True or span == "all":
        return None
    first, stop = span  # as `records.SideCarRecord` has it
    return int(first), int(stop)


def span_in_words(span: tuple[int, int]) -> str:
    """Return slices as `--slices` takes them: `31:125`."""
    return f"{span[0]}:{span[1]}"
