"""A volume in a few figures, measured on a cheap sample of its voxels: background, extent, rim, grain, percentiles.

What the figures must be is left to `preconditions`, how volumes lie on each other to `alignment`. Figures are cached
(`record_cache`): unchanged files are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from attcl_cli.data import volumes
from attcl_cli.data.background import (
    MOST_BELOW,
    Background,
    BackgroundOption,
    Kind,
    below,
    find_background,
    subtract,
)
from attcl_cli.data.intensities import Array, percentiles_of
from attcl_cli.data.record_cache import Records

VERSION = 4
"""Of the records; another one makes all of them anew."""

LEVELS = (0.5, 5.0, 50.0, 95.0, 99.5)
_BRIGHT = LEVELS.index(95.0)

LEAST_SIDE = 16
"""Voxels; volumes with a shorter side show too little to be judged, and their grain is not measured."""

_SAMPLE_MM = 3.0  # spacing of the sample
_SAMPLE_SIDE = 80  # most voxels along a side of the sample if the spacing is not known
_RIM_MM = 2.0  # spacing at which the rim of the head is looked at, in its slices
_RIM_STEPS = 12  # of _RIM_MM from the surface inwards
_RIM_SLICES = 6
_SPAN = (0.35, 0.85)  # of the head from its lowest slice upwards: neither neck nor crown
_GRAIN_SLICES = 4
_FEWEST_NEIGHBOURS = 1000  # in the image, by which grain is measured
_HEAD_MM = 160.0  # width of a head, by which PNG slices are scaled
_AIR = 0.05  # of the 95th percentile; darker voxels around a head are air
BINS = 16  # of intensities, of which mutual information is measured
_FILLED = 0.05  # of the voxels of the fullest slice, that a slice must have at an end of a mask


@dataclass(frozen=True)
class VolumeRecord:
    """A volume in figures.

    Attributes:
        background: its kind (`background.Background`).
        value: the intensity of the background.
        noise: share of the border that is neither background nor image.
        border: median of the border's intensities.
        below: share of the other voxels below the background that are clipped.
        shape: number of voxels along (D, H, W).
        spacing_mm: of D, H, W; None for PNG slices.
        field_ml: volume of the field of view; None for PNG slices.
        volume_ml: volume of what is not background; None for PNG slices.
        tissue_ml: the same without air.
        rim: least brightness below the surface of the head, over what lies outside and inside of it: about 1 in a
            brain, a half or less in a head, whose skull is dark; None if the voxels are too large.
        percentiles: `LEVELS` of what is not background, less the background.
        commonest: share of the most frequent value among what is not background.
        smoothness: correlation of voxels with their neighbours in a slice: about 0 in noise; 1 if too few were seen.
        jumps: share of neighbours that differ by more than half of the range from the lowest to the highest level.
        empty: along (D, H, W), slices without any image between the first and the last that show some.
        floating: whether the values are floats.
    """

    background: Kind
    value: float
    noise: float
    border: float
    below: float
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    field_ml: float | None
    volume_ml: float | None
    tissue_ml: float | None
    rim: float | None
    percentiles: Annotated[tuple[float, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))]
    commonest: float
    smoothness: float
    jumps: float
    empty: tuple[int, int, int]
    floating: bool

    @property
    def sides(self) -> int:
        """Return the least number of voxels along a side."""
        return min(self.shape)


_VOLUMES = TypeAdapter(VolumeRecord)


@dataclass(frozen=True, eq=False)
class Sample:
    """A coarse copy of a volume.

    Attributes:
        data: (d, h, w) float32, less the background, which is 0.
        step_mm: its spacing; 1 along each axis of PNG slices.
    """

    data: Array
    step_mm: tuple[float, float, float]

    @cached_property
    def mask(self) -> Array:
        """Return what is not background; bool."""
        mask: Array = self.data != 0
        return mask

    @cached_property
    def counts(self) -> tuple[Array, Array, Array]:
        """Return the number of the mask's voxels in each slice along each axis."""
        return count_along(self.mask)

    @cached_property
    def binned(self) -> Array:
        """Return the bin of each voxel, from 1 on with equal counts, and 0 for background; int16."""
        inside = self.mask
        values = self.data[inside]
        if not values.size:
            return np.zeros(self.data.shape, np.int16)
        edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
        bins = np.zeros(self.data.shape, np.int16)
        bins[inside] = np.searchsorted(edges, values) + 1
        return bins

    @cached_property
    def ends(self) -> list[tuple[int, int]]:
        """Return where the mask begins and ends along each axis; slices with next to nothing of it do not count."""
        return [_ends(counts) for counts in self.counts]


def count_along(mask: Array) -> tuple[Array, Array, Array]:
    """Return the number of True in each slice of a mask (d, h, w) along each axis; int64."""
    flat = mask.sum(axis=0, dtype=np.int32)
    slices = np.array([np.count_nonzero(slice_) for slice_ in mask])
    return slices, flat.sum(axis=1, dtype=np.int64), flat.sum(axis=0, dtype=np.int64)


@dataclass(frozen=True)
class Look:
    """What is at hand while the volumes of a case are measured, so that nothing is read twice.

    Attributes:
        records: what the cache knows of the case's files.
        background: what is background.
        grids: first file -> the grid of a volume, if it was read.
        samples: first file -> coarse copy of a volume that had to be read.
    """

    records: Records
    background: BackgroundOption = "auto"
    grids: Mapping[Path, volumes.Grid] = field(default_factory=dict)
    samples: dict[Path, Sample] = field(default_factory=dict)

    def key_of(self, kind: str, paths: Sequence[Path]) -> str | None:
        """Return the key of a record about files (`Records.key_of`)."""
        return self.records.key_of(kind, VERSION, paths, self.background)


def read_record(paths: Sequence[Path], look: Look) -> VolumeRecord:
    """Return the figures of a volume, from the cache if its files did not change.

    Raises:
        AttclError: as `volumes.load`.
    """
    key = look.key_of("volume", paths)
    record = look.records.read(key, _VOLUMES)
    return _measure(paths, look, key)[0] if record is None else record


def read_sample(paths: Sequence[Path], look: Look) -> Sample:
    """Return a coarse copy of a volume, which is read if it was not yet.

    Raises:
        AttclError: as `volumes.load`.
    """
    return look.samples.get(paths[0]) or _measure(paths, look, look.key_of("volume", paths))[1]


def _measure(paths: Sequence[Path], look: Look, key: str | None) -> tuple[VolumeRecord, Sample]:
    """Read a volume; return its figures and a coarse copy, and keep both at hand, the figures by their key."""
    grid = look.grids.get(paths[0]) or volumes.read_grid(paths)
    data, _ = volumes.read_exactly(paths, grid)
    spacing = None if grid.header is None else grid.axial_spacing_mm
    record, sample = describe(data, spacing, look.background, path=paths[0])
    look.records.add(key, vars(record))
    look.samples[paths[0]] = sample
    return record, sample


def describe(
    data: Array,
    spacing_mm: tuple[float, float, float] | None,
    background: BackgroundOption,
    *,
    path: Path,
) -> tuple[VolumeRecord, Sample]:
    """Return the figures of an array, and a coarse copy.

    Args:
        data: (D, H, W) intensities of any number type.
        spacing_mm: of D, H, W; None if it is not known.
        background: what is background.
        path: named in errors.

    Raises:
        AttclError: the array holds NaN or infinity, or a single value everywhere.
    """
    floating = data.dtype.kind == "f"
    if floating or data.dtype.itemsize > 4:  # noqa: PLR2004 - wide integers may be too large for float32
        volumes.require_image(data, path)
    steps = _steps(data.shape, spacing_mm)
    coarse = data[tuple(slice(None, None, step) for step in steps)].astype(np.float32)
    if not floating and coarse.min() == coarse.max():
        volumes.require_image(data, path)
    ground = find_background(data, background)
    stored, coarse = coarse, subtract(coarse, ground)
    z, y, x = (
        (step * edge for step, edge in zip(steps, spacing_mm, strict=True))
        if spacing_mm
        else (1.0, 1.0, 1.0)
    )
    inside = coarse != 0
    values = np.sort(coarse[inside])
    levels = percentiles_of(values, LEVELS) if values.size else [0.0] * len(LEVELS)
    bright = levels[_BRIGHT]
    tissue = coarse > _AIR * bright
    shown = min(data.shape) >= LEAST_SIDE and values.size > 0
    smoothness, jumps = 1.0, 0.0
    if shown:
        smoothness, jumps = _grain(data, ground, _middle(inside, steps[0], _GRAIN_SLICES), levels)

    def volume(count: int) -> float | None:
        return count * z * y * x / 1000 if spacing_mm else None

    record = VolumeRecord(
        background=ground.kind,
        value=ground.value,
        noise=ground.noise,
        border=percentiles_of(np.sort(data[[0, -1]].astype(np.float32), axis=None), (50,))[0],
        below=_clipped(data, stored, ground),
        shape=(data.shape[0], data.shape[1], data.shape[2]),
        spacing_mm=spacing_mm,
        field_ml=volume(coarse.size),
        volume_ml=volume(values.size),
        tissue_ml=volume(int(np.count_nonzero(tissue))),
        rim=_rim(data, ground, tissue, steps, spacing_mm, bright),
        percentiles=tuple(levels),
        commonest=_commonest(values),
        smoothness=smoothness,
        jumps=jumps,
        empty=_empty(data, ground, steps) if shown else (0, 0, 0),
        floating=floating,
    )
    return record, Sample(coarse, (z, y, x))


def _steps(
    shape: Sequence[int], spacing_mm: tuple[float, float, float] | None
) -> tuple[int, int, int]:
    edges = spacing_mm or [max(shape) / _SAMPLE_SIDE] * 3
    wanted = _SAMPLE_MM if spacing_mm else max(shape) / _SAMPLE_SIDE
    most = [
        max(1, side // LEAST_SIDE) for side in shape
    ]  # voxels of a mouse, or in metres by mistake
    z, y, x = (
        max(1, round(min(wanted / edge, limit))) for edge, limit in zip(edges, most, strict=True)
    )
    return z, y, x


def _middle(mask: Array, step: int, most: int) -> Array:
    """Return the numbers of some slices of a head, between neck and crown.

    Args:
        mask: (d, h, w) of a coarse copy, not empty.
        step: the number of the head's slices for one of the mask.
        most: so many slices are returned at most.
    """
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    low, high = float(filled[0] * step), float(filled[-1] * step)
    first, last = (low + part * (high - low) for part in _SPAN)
    return np.unique(np.linspace(first, last, most).astype(np.int64))


def _ends(counts: Array) -> tuple[int, int]:
    """Return where a mask begins and ends, of its number of voxels in each slice; slices with next to none are none."""
    filled = np.flatnonzero(counts > _FILLED * counts.max())
    return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)


def _empty(data: Array, ground: Background, steps: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return along each axis how many slices show no image between the first and the last that show some.

    Looks at each slice, at a sample of its voxels.
    """
    gaps = []
    for axis in range(3):
        coarse = data[
            tuple(slice(None, None, 1 if it == axis else 2 * by) for it, by in enumerate(steps))
        ]
        if ground.tolerance or data.dtype.kind == "f":
            coarse = coarse.astype(np.float32)
            image = np.abs(coarse - np.float32(ground.value)) > ground.tolerance
        else:
            image = coarse != ground.value
        counts = image.sum(axis=tuple(it for it in range(3) if it != axis))
        low, high = _ends(counts)
        gaps.append(int(np.count_nonzero(counts[low:high] == 0)))
    return gaps[0], gaps[1], gaps[2]


def _grain(
    data: Array, ground: Background, places: Array, levels: Sequence[float]
) -> tuple[float, float]:
    """Return how alike neighbours in a slice are (`VolumeRecord.smoothness`), and how many are not (`jumps`).

    Of both directions the better one counts: interpolation blurs one more than the other.

    Args:
        data: (D, H, W) intensities.
        ground: their background.
        places: the slices that are looked at.
        levels: the percentiles of what is not background, less the background.
    """
    low, high = levels[0], levels[-1]
    slices = data[places].astype(np.float32) - np.float32(ground.value)
    inside = np.abs(slices) > ground.tolerance
    alike, apart = [], []
    for one, other in (
        (np.s_[:, :, 1:], np.s_[:, :, :-1]),
        (np.s_[:, 1:], np.s_[:, :-1]),
    ):
        both = inside[one] & inside[other]
        here, there = (slices[it][both].clip(low, high) for it in (one, other))
        if here.size < _FEWEST_NEIGHBOURS or here.min() == here.max() or there.min() == there.max():
            return 1.0, 0.0
        alike.append(float(np.corrcoef(here, there)[0, 1]))
        apart.append(float(np.mean(np.abs(here - there) > (high - low) / 2)))
    return max(alike), min(apart)


def _clipped(data: Array, stored: Array, ground: Background) -> float:
    """Return the share of voxels that `subtract` clips, from a coarse copy; more than 0 if there is any."""
    if not ground.found or data.dtype.kind == "u" or data.min() >= ground.value - ground.tolerance:
        return 0.0
    shifted = stored - np.float32(ground.value)
    shifted[np.abs(shifted) <= ground.tolerance] = 0
    share = below(shifted)
    return float(max(share, 1 / data.size)) if share <= MOST_BELOW else 0.0


def _commonest(ordered: Array) -> float:
    """Return the share of the most frequent value of sorted ones."""
    if not ordered.size:
        return 0.0
    steps = np.flatnonzero(ordered[1:] != ordered[:-1])
    last = np.concatenate(([-1], steps, [ordered.size - 1]))  # places of the last of each value
    return float((last[1:] - last[:-1]).max() / ordered.size)


def _rim(
    data: Array,
    ground: Background,
    tissue: Array,
    steps: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] | None,
    bright: float,
) -> float | None:
    """Return the least brightness below the surface of the head, over what lies outside and inside of it.

    From the surface of a skull-stripped brain inwards the median brightness only rises or only falls; under a bright
    scalp lies the dark skull.
    """
    filled = tissue.any(axis=(1, 2))
    if np.count_nonzero(filled) < _RIM_SLICES // 2 or bright <= 0:
        return None
    if spacing_mm is None:
        width = np.flatnonzero(tissue.any(axis=(0, 1)))
        edge = _HEAD_MM / max(float(width[-1] - width[0] + 1) * steps[2], 1.0)
        rows_mm = columns_mm = edge
    else:
        _, rows_mm, columns_mm = spacing_mm
    by, bx = (max(1, round(_RIM_MM / edge)) for edge in (rows_mm, columns_mm))
    if max(by * rows_mm, bx * columns_mm) > 1.5 * _RIM_MM:
        return None
    chosen = _middle(tissue, steps[0], _RIM_SLICES)
    slices = data[chosen, ::by, ::bx].astype(np.float32) - np.float32(ground.value)
    head = _filled(slices > _AIR * bright)
    profile = []
    for _ in range(_RIM_STEPS):
        inner = head.copy()
        inner[:, 1:] &= head[:, :-1]
        inner[:, :-1] &= head[:, 1:]
        inner[:, :, 1:] &= head[:, :, :-1]
        inner[:, :, :-1] &= head[:, :, 1:]
        ring = slices[head & ~inner]
        if not ring.size:
            return None
        profile.append(float(np.median(ring)))
        head = inner
    places = range(2, _RIM_STEPS - 2)
    ratios = [
        profile[place] / max(min(max(profile[:place]), max(profile[place + 1 :])), 1e-9)
        for place in places
    ]
    return min(ratios)


def _filled(masks: Array) -> Array:
    """Return masks (N, H, W) with what lies between their outermost voxels, in rows and in columns."""
    result = np.ones_like(masks)
    for axis in (1, 2):
        before = np.maximum.accumulate(masks, axis)
        after = np.flip(np.maximum.accumulate(np.flip(masks, axis), axis), axis)
        result &= before & after
    return result
