"""Label maps on disk: whether one lies on its case's grid, and its values as whole numbers; every reader asks here.

What the numbers mean is left to `labels`, how files are decoded to `volumes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, TypeAdapter

from attcl_cli.data import volumes
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.intensities import Array
from attcl_cli.data.record_cache import Records
from attcl_cli.errors import AttclError

_VERSION = 2  # of the records of `read_record`
_TOLERANCE = 1e-3  # of a float that stands for a whole number
_LARGEST = np.iinfo(np.int16).max
_USUAL = (np.dtype(np.uint8), np.dtype(np.int16))


@dataclass(frozen=True)
class LabelRecord:
    """A label map in figures.

    Attributes:
        beyond: label that is none of the known ones -> voxels that have it.
        labelled: voxels whose label is not 0.
        outside: those of them that lie off the brain.
    """

    beyond: dict[NonNegativeInt, Annotated[int, Field(strict=True, gt=0)]]
    labelled: Annotated[int, Field(strict=True, ge=0)]
    outside: Annotated[int, Field(strict=True, ge=0)]


_RECORDS = TypeAdapter(LabelRecord)


def off_grid(paths: Sequence[Path], beside: Sequence[Path]) -> AttclError | None:
    """Return what keeps a file from lying on the grid of its case, or None; headers alone are read.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.
        beside: the same of an image of the case. Against PNG slices, which have no position, sizes alone are compared.
    """
    try:
        _grid_beside(paths, beside)
    except AttclError as error:
        return error
    return None


def check_labels(paths: Sequence[Path], beside: Sequence[Path]) -> AttclError | None:
    """Return what keeps a label map from being read by `load_labels`, or None.

    Voxels are read only if the number type can hold what is no label.
    """
    try:
        grid = _grid_beside(paths, beside)
        if grid.scaled or grid.dtype.newbyteorder("=") not in _USUAL:
            load_labels(paths)
    except AttclError as error:
        return error
    return None


def _grid_beside(paths: Sequence[Path], beside: Sequence[Path]) -> volumes.Grid:
    """Return the grid of a file; raise the error that `off_grid` returns."""
    grid = volumes.read_grid(paths)
    difference = grid.differs_from(volumes.read_grid(beside))
    if difference:
        raise AttclError(
            f"{paths[0]}: {difference} of {beside[0]}, expected one grid for all files of a case",
            "resample it onto the grid of the case's images",
            code="grids-differ",
        )
    return grid


def read_record(
    paths: Sequence[Path],
    known: Sequence[int],
    records: Records,
    images: Sequence[Path],
    brain: Callable[[], Array],
    background: BackgroundOption,
) -> LabelRecord:
    """Return the figures of a map that lies on the grid of its case; unchanged files are read once.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.
        known: the labels that are not counted.
        records: what the cache knows of the case.
        images: the files that `brain` is made from.
        brain: returns the mask of the brain, (d, h, w) bool, in every so many voxels along each axis. One sample around
            it is taken for brain, too.
        background: what is background in these images.

    Raises:
        AttclError: as `load_labels`, or of `brain`.
    """
    key = records.key_of("labels", _VERSION, [*paths, *images], background, *known)
    cached = records.read(key, _RECORDS)
    if cached is not None:
        return cached
    labels = _labels_in(paths)
    inside = labels != 0
    labelled = int(np.count_nonzero(inside))
    if labelled:
        inside &= _as_fine(_grown(brain()), labels.shape)
    record = LabelRecord(
        _count_beyond(labels, known), labelled, labelled - int(np.count_nonzero(inside))
    )
    beyond = {str(label): count for label, count in record.beyond.items()}
    records.add(key, {**vars(record), "beyond": beyond})
    return record


def _count_beyond(labels: Array, known: Sequence[int]) -> dict[int, int]:
    # Known labels follow each other, so that their ends decide, at a tenth of the cost of `unique`.
    if min(known) <= labels.min() and labels.max() <= max(known) < len(known):
        return {}
    values, numbers = np.unique(labels, return_counts=True)
    every = {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
    return {label: count for label, count in every.items() if label not in known}


def _grown(mask: Array) -> Array:
    """Return a mask with its neighbours along each axis, diagonals too."""
    result = mask.copy()
    for axis in range(mask.ndim):
        before = np.moveaxis(result.copy(), axis, 0)
        after = np.moveaxis(result, axis, 0)
        after[1:] |= before[:-1]
        after[:-1] |= before[1:]
    return result


def _as_fine(mask: Array, shape: Sequence[int]) -> Array:
    """Return a coarse mask at this shape; off by less than one coarse sample."""
    places = [
        np.arange(side) * coarse // side for side, coarse in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*places)]


def load_labels(paths: Sequence[Path], *, beside: Sequence[Path] = ()) -> Array:
    """Read a label map into working order: (D, H, W) int16 labels. A map of zeros is a case without tumour.

    The values decide, not the number type. Maps that were saved through a slope have values that it rounded: one within
    half a step of a whole number is that number.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.
        beside: an image of the case, on whose grid the map must lie; none: `off_grid` was asked before.

    Raises:
        AttclError: as `volumes.read_grid`; or the map is on another grid; or a value is no whole number, as after
            interpolation, or is negative or beyond int16.
    """
    problem = off_grid(paths, beside) if beside else None
    if problem is not None:
        raise problem
    return _labels_in(paths).astype(np.int16)


def _labels_in(paths: Sequence[Path]) -> Array:
    """Return the labels of a map, whole numbers of any type that int16 holds."""
    values, step = volumes.read_exactly(paths)
    labels = values if values.dtype.kind in "iu" else _whole_numbers(values, step, paths[0])
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= _LARGEST:
            raise AttclError(
                f"{paths[0]}: label {int(label)}, expected 0 to {_LARGEST}",
                "give the label map the values of a BraTS release",
                code="label-out-of-range",
            )
    return labels


def _whole_numbers(values: Array, step: float, path: Path) -> Array:
    # From a step of 1 on it is not clear which whole number was rounded.
    tolerance = max(_TOLERANCE, 0.501 * step if step < 1 else 0.0)
    with np.errstate(invalid="ignore"):  # infinity is no whole number, either
        labels: Array = np.rint(values)
        wrong = values[~(np.abs(values - labels) <= tolerance)]
    if wrong.size:
        slope = f", stored with slope {step:.3g}" if step else ""
        raise AttclError(
            f"{path}: label {wrong[0]:g} in {wrong.size} voxels{slope}, expected whole numbers",
            "resample label maps with nearest neighbours, and save them as integers",
            code="labels-not-whole",
        )
    return labels
