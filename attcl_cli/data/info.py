"""`attcl info DIR` without its command line: what a folder holds and what is wrong with it, as plain data.

How that is shown is left to the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.preconditions import examine
from attcl_cli.data.splits import leaks_of, read_splits
from attcl_cli.errors import AttclError
from attcl_cli.progress import SILENT, Progress


def dataset_info(
    folder: Path | str,
    *,
    layout: str = "auto",
    modalities: Path | str | None = None,
    bids_filter: Sequence[str] = (),
    background: BackgroundOption = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Return what a folder holds: layout, cases, modalities, missing ones, problems and splits.

    Args:
        folder: the dataset.
        layout: a key of `layouts.LAYOUTS`, or `auto`.
        modalities: a TOML file with other modality names or another naming.
        bids_filter: of several files of a modality in BIDS, which is meant.
        background: what is background in the volumes (`volumes.load`).
        progress: hears of the cases, if they are many.

    Returns:
        The document of `attcl info DIR --json`; `splits` only if prepare-splits wrote the folder.

    Raises:
        AttclError: there is no such folder, or it is no dataset.
    """
    vocabulary = None if modalities is None else Path(modalities)
    source = Source(Path(folder), layout, vocabulary, tuple(bids_filter), background)
    dataset = source.open()
    findings = examine(dataset, progress=progress)
    document = describe(dataset, [*findings.problems, *leaks_of(dataset)])
    document["notes"] += findings.notes
    splits = read_splits(dataset.root)
    if splits is not None:
        document["splits"] = {
            "ratio": splits.ratio,
            "source": splits.source,
            "table": splits.table(),
        }
    return document


def describe(dataset: Dataset, problems: Sequence[AttclError]) -> dict[str, Any]:
    """Return what a dataset holds, as plain data for a table or JSON."""
    if (
        dataset.alone
    ):  # it cannot show what others have: all that is known is expected of it, as by `complete`
        dataset = dataset.including(dataset.absent)
    patterns = Counter(dataset.missing(case) for case in dataset.cases)
    return {
        "root": str(dataset.root),
        "layout": dataset.layout.name,
        "layout_title": dataset.layout.title,
        "modalities": list(dataset.modalities),
        "absent": list(dataset.absent),
        "cases": len(dataset.cases),
        "patients": len({case.patient for case in dataset.cases}),
        "recognised": list(dataset.recognised),
        "volumes": dataset.counts(),
        "segmentations": sum(bool(case.segmentation) for case in dataset.cases),
        "synthetic": _synthetic(dataset),
        "patterns": [
            {"missing": list(missing), "cases": count}
            for missing, count in sorted(patterns.items(), key=lambda item: (len(item[0]), item[0]))
        ],
        "problems": [
            {"error": problem.message, "hint": problem.hint, "code": problem.code}
            for problem in problems
        ],
        "notes": list(dataset.notes),
        "ignored": [str(path) for path in dataset.ignored],
    }


def _synthetic(dataset: Dataset) -> int:
    """Return how many volumes have a side-car that says they are synthetic; a damaged one says nothing."""
    count = 0
    for case in dataset.cases:
        for name in case.files:
            with suppress(AttclError):
                count += len(dataset.synthetic(case, [name]))
    return count
