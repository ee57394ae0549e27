"""How made volumes are stored: number type, range and background, those of their modality's other volumes.

Decided once per plan from the whole dataset, so that parts and order change nothing. Writing is left to `making`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.voxels import Look, VolumeRecord, read_record
from attcl_cli.errors import AttclError

LEAST_STEPS = 64
"""Integers between the ends of a range that hold it: rounding then errs by less than 1 % of it."""

_UNSEEN = 1e-3  # of a range, by which its ends may differ: a fraction of a grey level on a screen
_LOOKED_AT = 25  # volumes of a modality, evenly spread over the cases
_THREADS = 8

FLOAT = np.dtype(np.float32)

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Style:
    """How the volumes of a modality are stored.

    Attributes:
        dtype: the number type.
        scale: the intensities, less the background, that -1 and 1 become.
        background: the value of voxels that show no tissue.
        own: whether volumes of the dataset show this; otherwise the range is that of the weights' training volumes.
    """

    dtype: np.dtype[Any]
    scale: Scale
    background: float = 0.0
    own: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """Return the least and the greatest value that a volume may hold in tissue."""
        return self.background + self.scale.low, self.background + self.scale.high

    def agrees(self, stored: Mapping[str, Any]) -> bool:
        """Return whether a volume is stored in this way, as its side-car says."""
        low, high = self.range
        ends = np.allclose(stored["range"], self.range, rtol=0, atol=_UNSEEN * (high - low))
        return ends and bool(stored["number_type"] == self.dtype.name)

    def document(self) -> dict[str, Any]:
        """Return it as side-cars say it."""
        return {
            "number_type": self.dtype.name,
            "range": list(self.range),
            "background": self.background,
            "like": "the dataset" if self.own else "the training data",
        }


class Styles:
    """Decides the style of each modality of a dataset, and remembers it."""

    def __init__(self, dataset: Dataset) -> None:
        """Look at nothing yet."""
        self._dataset = dataset
        self._own: dict[str, tuple[Style | None, list[str]]] = {}
        self._types: list[np.dtype[Any]] | None = None

    def of(self, target: str, trained: Scale) -> Style:
        """Return how a volume of a modality is stored.

        The most frequent number type among the dataset's volumes of the modality is taken, and the median range and
        background of the volumes of this type. Scaled integers count as floats, as their values are. A dataset without
        the modality cannot say its range: it is that of the weights' training volumes, and the type is the dataset's
        most frequent one that holds it, otherwise int16, otherwise float32.

        Args:
            target: the modality.
            trained: the intensities that -1 and 1 stand for in the weights.

        Raises:
            AttclError: PNG slices, which hold integers alone, cannot hold this range.
        """
        own, _ = self._look_at(target)
        if own is not None:
            return own
        if self._types is None:
            self._types = _types_of(self._dataset, self._dataset.modalities)
        sliced = self._dataset.layout.sliced
        usual = (np.dtype(np.uint16),) if sliced else (np.dtype(np.int16), FLOAT)
        for dtype in (*_by_frequency(self._types), *usual):
            if _holds(dtype, trained, 0, least_steps=LEAST_STEPS):
                return Style(dtype, trained)
        raise AttclError(
            f"{self._dataset.root}: no volume of {target}, and the weights make it from {trained.low:.4g} to "
            f"{trained.high:.4g}, expected a range that PNG slices hold: whole numbers, {LEAST_STEPS} or more",
            f"add a volume of {target} to the dataset, or convert the dataset to NIfTI",
            code="range-not-storable",
        )

    def unread(self, target: str) -> list[str]:
        """Return the ids of the cases whose volume of a modality would count, and cannot be read."""
        _, unread = self._look_at(target)
        return unread

    def _look_at(self, target: str) -> tuple[Style | None, list[str]]:
        if target not in self._own:
            self._own[target] = _own_style(self._dataset, target)
        return self._own[target]


def _own_style(dataset: Dataset, target: str) -> tuple[Style | None, list[str]]:
    """Return how the dataset's own volumes of a modality are stored, and the ids of the cases whose cannot be read.

    The style is None if no volume can be read, or those that can do not show one.
    """
    cases = [case for case in dataset.cases if target in case.files]
    types = _map(lambda case: _type_of(dataset.paths(case, target)), cases)
    unread = {case.id for case, dtype in zip(cases, types, strict=True) if dtype is None}
    style = None
    for dtype in _by_frequency([it for it in types if it is not None]):
        alike = [case for case, own in zip(cases, types, strict=True) if own == dtype]
        places = np.unique(np.linspace(0, len(alike) - 1, _LOOKED_AT).round().astype(int))
        chosen = [alike[it] for it in places]
        records = _map(lambda case: _record_of(dataset, case, target), chosen)
        unread |= {case.id for case, it in zip(chosen, records, strict=True) if it is None}
        seen = [record for record in records if record is not None]
        if not seen:
            continue
        scale = Scale(*(median(it.percentiles[end] for it in seen) for end in (0, -1)))
        if scale.low >= scale.high:
            continue
        backgrounds = [it.value for it in seen if it.background not in {"noise", "none"}]
        background = median(backgrounds) if backgrounds else 0.0
        # Slices hold nothing but integers, so that few steps are better there than none.
        least = 0 if dataset.layout.sliced else LEAST_STEPS
        fits = _holds(dtype, scale, background, least_steps=least)
        if fits or not dataset.layout.sliced:
            style = Style(dtype if fits else FLOAT, scale, background, own=True)
            break
    return style, [case.id for case in cases if case.id in unread]


def _types_of(dataset: Dataset, modalities: Iterable[str]) -> list[np.dtype[Any]]:
    """Return the number types of all volumes of some modalities that can be read."""
    files = [
        dataset.paths(case, name)
        for name in modalities
        for case in dataset.cases
        if name in case.files
    ]
    return [dtype for dtype in _map(_type_of, files) if dtype is not None]


def _type_of(paths: Sequence[Path]) -> np.dtype[Any] | None:
    """Return the number type of a volume, float32 for all floats and scaled integers; None if it cannot be read."""
    try:
        grid = volumes.read_grid(paths[:1])  # slices of a volume have one type
    except AttclError:
        return None
    return FLOAT if grid.scaled or grid.dtype.kind == "f" else grid.dtype.newbyteorder("=")


def _record_of(dataset: Dataset, case: Case, target: str) -> VolumeRecord | None:
    try:
        with dataset.records(case) as records:
            return read_record(dataset.paths(case, target), Look(records, dataset.background))
    except AttclError:
        return None


def _by_frequency(types: Sequence[np.dtype[Any]]) -> list[np.dtype[Any]]:
    """Return the types by falling frequency; of equally frequent ones the type that holds more comes first."""
    counts = Counter(types)
    return sorted(counts, key=lambda it: (-counts[it], it.kind != "f", -it.itemsize, it.name))


def _holds(dtype: np.dtype[Any], scale: Scale, background: float, *, least_steps: int) -> bool:
    """Return whether a type holds a range and its background, integers in so many steps."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    ends = (background, background + scale.low, background + scale.high)
    inside = limits.min <= round(min(ends)) and round(max(ends)) <= limits.max
    return inside and scale.high - scale.low >= least_steps


def _map(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """Return the results of a function that waits for disks, in order."""
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return list(pool.map(function, items))
