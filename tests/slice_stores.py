"""Slice stores in memory whose pixels say which row they are of, for tests of what is drawn from them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from attcl_cli.data.slices import Entry, SliceStore

FOUR = ("flair", "t1", "t1ce", "t2")
PARTLY_PAIRED = [("A", "t1", 5, 3), ("A", "t2", 5, 3), ("B", "t1", 4, 2), ("C", "t2", 6, 1)]
MIXED = {"A": FOUR, "B": ("flair", "t1"), "C": ("t2",), "D": ("flair", "t1", "t2")}


def store_of_volumes(
    volumes: list[tuple[str, str, int, int]], *, empty: Collection[int] = ()
) -> SliceStore:
    """Return a store from (case, modality, count, first); every pixel of row r is r / 32767."""
    entries, start = [], 0
    for case, modality, count, first in volumes:
        entries.append(Entry(case, modality, start, count, first))
        start += count
    data = np.broadcast_to(np.arange(start, dtype=np.int16)[:, None, None], (start, 2, 2))
    return SliceStore(
        data=data,
        entries=tuple(entries),
        filled=~np.isin(np.arange(start), list(empty)),
        modalities=tuple(sorted({modality for _, modality, _, _ in volumes})),
        scales={},
        trained_on=(),
    )


def store_of_cases(
    cases: dict[str, tuple[str, ...]],
    *,
    segmented: dict[str, list[int]] | None = None,
    depth: int = 5,
) -> SliceStore:
    """Return a store of volumes of `depth` slices; pixels of row r are r / 32767, `segmented` says where tumour is."""
    entries = []
    for case, names in cases.items():
        for name in names:
            entries.append(Entry(case, name, len(entries) * depth, depth, 2))
    maps, labels = [], np.zeros((len(segmented or {}) * depth, 2, 2), dtype=np.uint8)
    for index, (case, slices) in enumerate((segmented or {}).items()):
        maps.append(Entry(case, "seg", index * depth, depth, 2))
        for number in slices:
            labels[index * depth + number, 0, 0] = 3
    count = len(entries) * depth
    return SliceStore(
        data=np.broadcast_to(np.arange(count, dtype=np.int16)[:, None, None], (count, 2, 2)),
        entries=tuple(entries),
        filled=np.ones(count, dtype=bool),
        modalities=FOUR,
        scales={},
        trained_on=tuple(cases),
        labels=labels if maps else None,
        segmentations=tuple(maps),
        tumour=labels.any(axis=(1, 2)),
    )


def all_others(_target, present):
    """Make a target from all other modalities."""
    return tuple(present) or None
