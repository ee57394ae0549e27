"""Volumes in a few figures, measured on a cheap sample of their voxels: background, extent, percentiles, alignment.

What the figures must be is left to `preconditions`. Figures are cached (`record_cache`): unchanged files are read once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

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
from attcl_cli.data.intensities import Array
from attcl_cli.data.record_cache import key_of, read_cached, write_cached

VERSION = 2
"""Of the records; another one makes all of them anew."""

LEVELS = (0.5, 5.0, 50.0, 95.0, 99.5)

_SAMPLE_MM = 3.0  # spacing of the sample
_SAMPLE_SIDE = 80  # most voxels along a side of the sample if the spacing is not known
_RIM_MM = 2.0  # spacing at which the rim of the head is looked at, in its slices
_RIM_STEPS = 12  # of _RIM_MM from the surface inwards
_RIM_SLICES = 6
_RIM_SPAN = (0.35, 0.85)  # of the head from its lowest slice upwards: neither neck nor crown
_HEAD_MM = 160.0  # width of a head, by which PNG slices are scaled
_AIR = 0.05  # of the 95th percentile; darker voxels around a head are air
_BINS = 16  # of intensities, of which mutual information is measured
_FAR = 2  # sample steps at which a first look is taken
_SEARCHED = 4  # sample steps to each side that are searched
_LOOK_CLOSER = (
    0.8  # of the mutual information as stored: if a shifted one reaches it, all shifts are tried
)
_ALIKE = 0.98  # Dice of two masks; below it all mirrored volumes are tried: 0.99 was the least of one brain
_SIDEWAYS = 2  # axis of left and right; brains are symmetric along this one alone
_MIRRORED_STEPS = 2  # sample steps to each side by which a mirrored volume may be off
_FILLED = 0.05  # of the voxels of the fullest slice, that a slice must have at an end of a mask
_RANKS_EVERY = 2  # sample steps between the voxels that ranks are compared at
FEWEST_VOXELS = 2000  # in both masks, for mutual information to be more than noise

Record = TypeVar("Record", "VolumeRecord", "PairRecord", "RankRecord")


@dataclass(frozen=True)
class VolumeRecord:
    """A volume in figures.

    Attributes:
        background: its kind (`background.Background`).
        value: the intensity of the background.
        noise: share of the border that is neither background nor image.
        border: median of the border's intensities.
        below: share of the other voxels below the background that are clipped.
        sides: least number of voxels along a side.
        field_ml: volume of the field of view; None for PNG slices.
        volume_ml: volume of what is not background; None for PNG slices.
        tissue_ml: the same without air.
        rim: least brightness below the surface of the head, over what lies outside and inside of it: about 1 in a
            brain, a half or less in a head, whose skull is dark; None if the voxels are too large.
        percentiles: `LEVELS` of what is not background, less the background.
        commonest: share of the most frequent value among what is not background.
        floating: whether the values are floats.
    """

    background: Kind
    value: float
    noise: float
    border: float
    below: float
    sides: int
    field_ml: float | None
    volume_ml: float | None
    tissue_ml: float | None
    rim: float | None
    percentiles: Annotated[tuple[float, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))]
    commonest: float
    floating: bool


@dataclass(frozen=True)
class PairRecord:
    """How well two volumes of a case lie on each other.

    Attributes:
        overlap: Dice of what is not background in either.
        information: normalised mutual information where neither is background, less what chance gives: 0 for
            unrelated images.
        gain: the most that a shift makes of it, over that.
        shift_mm: by how much the second is shifted against the first, (D, H, W).
        voxels: of the sample in both masks.
        covered: share of the first one's mask that the second one's has, and the other way round.
        apart: by how much the masks end apart along (D, H, W), at the worse of both ends, over the longer of both.
        mirrored: axes of (D, H, W) along which the second, mirrored, shares the most with the first; none if it shares
            more as stored or shifted.
        mirrored_information: what `information` is then.
        mirrored_overlap: what `overlap` is then.
    """

    overlap: float
    information: float
    gain: float
    shift_mm: tuple[float, float, float]
    voxels: int
    covered: tuple[float, float]
    apart: tuple[float, float, float]
    mirrored: tuple[int, ...] = ()
    mirrored_information: float = 0.0
    mirrored_overlap: float = 0.0


@dataclass(frozen=True)
class RankRecord:
    """How brightness goes along with brightness in the volumes of a case.

    Attributes:
        correlations: rank correlation of each pair of volumes, in the order of `itertools.combinations`.
    """

    correlations: tuple[float, ...]


_VOLUMES, _PAIRS = TypeAdapter(VolumeRecord), TypeAdapter(PairRecord)
_RANKS = TypeAdapter(RankRecord)


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
    def binned(self) -> Array:
        """Return the bin of each voxel, from 1 on with equal counts, and 0 for background; int16."""
        inside = self.data != 0
        values = self.data[inside]
        if not values.size:
            return np.zeros(self.data.shape, np.int16)
        edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
        bins = np.zeros(self.data.shape, np.int16)
        bins[inside] = np.searchsorted(edges, values) + 1
        return bins

    @cached_property
    def ends(self) -> list[tuple[int, int]]:
        """Return where the mask begins and ends along each axis; slices with next to nothing of it do not count."""
        inside = self.data != 0
        flat = inside.sum(axis=0, dtype=np.uint16)
        slices = np.array([np.count_nonzero(slice_) for slice_ in inside])
        profiles = slices, flat.sum(axis=1), flat.sum(axis=0)
        filled = [np.flatnonzero(counts > _FILLED * counts.max()) for counts in profiles]
        return [(int(it[0]), int(it[-1]) + 1) if it.size else (0, 0) for it in filled]


def read_record(
    paths: Sequence[Path],
    background: BackgroundOption = "auto",
    samples: dict[Path, Sample] | None = None,
) -> VolumeRecord:
    """Return the figures of a volume, from the cache if its files did not change.

    Args:
        paths: its files.
        background: what is background.
        samples: first file -> coarse copy; gets that of a volume that had to be read.

    Raises:
        AttclError: as `volumes.load`.
    """
    record = _record(_VOLUMES, read_cached(_key(paths, background)))
    if record is not None:
        return record
    record, sample = measure(paths, background)
    if samples is not None:
        samples[paths[0]] = sample
    return record


def measure(paths: Sequence[Path], background: BackgroundOption) -> tuple[VolumeRecord, Sample]:
    """Read a volume; return its figures and a coarse copy. The figures are kept in the cache.

    Raises:
        AttclError: as `volumes.load`.
    """
    key = _key(paths, background)
    grid = volumes.read_grid(paths)
    data, _ = volumes.read_exactly(paths)
    spacing = None if grid.header is None else grid.axial_spacing_mm
    record, sample = describe(data, spacing, background, path=paths[0])
    write_cached(key, asdict(record))
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
    values = coarse[inside]
    bright = float(np.percentile(values, 95)) if values.size else 0.0
    tissue = coarse > _AIR * bright

    def volume(count: int) -> float | None:
        return count * z * y * x / 1000 if spacing_mm else None

    record = VolumeRecord(
        background=ground.kind,
        value=ground.value,
        noise=ground.noise,
        border=float(np.median(data[[0, -1]])),
        below=_clipped(data, stored, ground),
        sides=min(data.shape),
        field_ml=volume(coarse.size),
        volume_ml=volume(values.size),
        tissue_ml=volume(int(np.count_nonzero(tissue))),
        rim=_rim(data, ground, tissue, steps, spacing_mm, bright),
        percentiles=tuple(float(value) for value in np.percentile(values, LEVELS))
        if values.size
        else (0.0,) * len(LEVELS),
        commonest=_commonest(values),
        floating=floating,
    )
    return record, Sample(coarse, (z, y, x))


def read_pair(
    first: Sequence[Path],
    second: Sequence[Path],
    background: BackgroundOption,
    samples: Mapping[Path, Sample],
) -> PairRecord | None:
    """Return how two volumes lie on each other, from the cache if their files did not change.

    Args:
        first: the files of a volume.
        second: those of another one of the same case, on the same grid.
        background: what is background.
        samples: coarse copies that are in memory already, by first file; others are read.

    Returns:
        None if the grids differ.

    Raises:
        AttclError: as `volumes.load`.
    """
    key = key_of("pair", VERSION, [*first, *second], background)
    known = _record(_PAIRS, read_cached(key))
    if known is not None:
        return known
    one, two = (samples.get(paths[0]) or measure(paths, background)[1] for paths in (first, second))
    if one.data.shape != two.data.shape:
        return None
    pair = compare(one, two)
    write_cached(key, asdict(pair))
    return pair


def read_ranks(
    files: Sequence[Sequence[Path]], background: BackgroundOption, samples: Mapping[Path, Sample]
) -> RankRecord | None:
    """Return how brightness goes along with brightness in some volumes of a case, from the cache as `read_pair`.

    Args:
        files: the files of each volume; all on one grid.
        background: what is background.
        samples: coarse copies that are in memory already, by first file; others are read.

    Returns:
        None if the grids differ.

    Raises:
        AttclError: as `volumes.load`.
    """
    key = key_of("ranks", VERSION, [path for paths in files for path in paths], background)
    known = _record(_RANKS, read_cached(key))
    if known is not None and len(known.correlations) == math.comb(len(files), 2):
        return known
    every = [samples.get(paths[0]) or measure(paths, background)[1] for paths in files]
    if len({sample.data.shape for sample in every}) > 1:
        return None
    record = RankRecord(tuple(rank_correlation(*pair) for pair in combinations(every, 2)))
    write_cached(key, asdict(record))
    return record


def rank_correlation(first: Sample, second: Sample) -> float:
    """Return Spearman's correlation where neither of two coarse copies is background; 0 of too few voxels.

    Ranks are the bins that mutual information is measured with.
    """
    some = (slice(None, None, _RANKS_EVERY),) * 3
    one, two = first.binned[some], second.binned[some]
    both = (one > 0) & (two > 0)
    if np.count_nonzero(both) < FEWEST_VOXELS // _RANKS_EVERY**3:
        return 0.0
    ranks = one[both].astype(np.float64), two[both].astype(np.float64)
    if any(it.min() == it.max() for it in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def compare(first: Sample, second: Sample) -> PairRecord:
    """Return how two coarse copies of one shape lie on each other.

    Mutual information is measured at small shifts along each axis (Maes et al., IEEE TMI 16(2), 1997, without the
    search over rotations), normalised as in Studholme et al., Pattern Recognition 32(1), 1999. Only voxels in both
    masks count, so that a mask that all volumes share does not hide a shift. The same is measured of the second one
    mirrored: always from side to side, where a brain is symmetric, and along all axes if something is wrong.
    """
    masks = first.data != 0, second.data != 0
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    both = int(np.count_nonzero(masks[0] & masks[1]))
    overlap = 2 * both / sum(sizes) if any(sizes) else 1.0
    covered = both / max(sizes[0], 1), both / max(sizes[1], 1)
    apart = _apart(first, second)
    if both < FEWEST_VOXELS:
        return PairRecord(overlap, 0.0, 1.0, (0.0, 0.0, 0.0), both, covered, apart)
    box = tuple(
        slice(int(hits[0]), int(hits[-1]) + 1)
        for axis in range(3)
        for hits in [np.flatnonzero((masks[0] | masks[1]).any(axis=_others(axis)))]
    )
    binned = first.binned[box], second.binned[box]
    centre = _information(*binned, (0, 0, 0))
    shifts = [_along(axis, steps) for axis in range(3) for steps in (-_FAR, _FAR)]
    least = _LOOK_CLOSER * centre
    sound = max(_information(*binned, shift) for shift in shifts) < least
    sideways = _information(binned[0], np.flip(binned[1], _SIDEWAYS), (0, 0, 0))
    if sound and sideways < least and overlap >= _ALIKE:
        return PairRecord(overlap, centre, 1.0, (0.0, 0.0, 0.0), both, covered, apart)
    best, peaks = centre, [0.0, 0.0, 0.0]
    for axis, step_mm in enumerate(() if sound else first.step_mm):
        row = [
            _information(*binned, _along(axis, steps)) for steps in range(-_SEARCHED, _SEARCHED + 1)
        ]
        best = max(best, *row)
        peaks[axis] = _peak(row) * step_mm
    gain = min(best / centre, 99.0) if centre > 0 else 99.0
    shift_mm = peaks[0], peaks[1], peaks[2]
    pair = PairRecord(overlap, centre, gain, shift_mm, both, covered, apart)
    axes, shared, lying = _mirrored(*binned)
    if shared <= best:
        return pair
    return replace(pair, mirrored=axes, mirrored_information=shared, mirrored_overlap=lying)


def _apart(first: Sample, second: Sample) -> tuple[float, float, float]:
    """Return by how much two masks end apart along each axis, over the longer of both; 0 if both are empty."""
    z, y, x = (
        max(abs(low - other_low), abs(high - other_high))
        / max(high - low, other_high - other_low, 1)
        for (low, high), (other_low, other_high) in zip(first.ends, second.ends, strict=True)
    )
    return z, y, x


def _mirrored(first: Array, second: Array) -> tuple[tuple[int, ...], float, float]:
    """Return the axes along which the second binned array, mirrored, shares most with the first.

    Returns:
        The axes, the mutual information then, and Dice of the masks then.
    """
    flips = [axes for number in (1, 2, 3) for axes in combinations(range(3), number)]
    shared = [_information(first, np.flip(second, axes), (0, 0, 0)) for axes in flips]
    axes = flips[int(np.argmax(shared))]
    turned = np.flip(second, axes)
    # The middle of the brain is not that of the field, and a sample of a mirrored volume has other voxels.
    shift, best = (0, 0, 0), max(shared)
    for axis in range(3):
        for steps in range(-_MIRRORED_STEPS, _MIRRORED_STEPS + 1):
            tried = tuple(steps if other == axis else by for other, by in enumerate(shift))
            value = _information(first, turned, (tried[0], tried[1], tried[2]))
            if value > best:
                shift, best = (tried[0], tried[1], tried[2]), value
    one, two = (part > 0 for part in _shifted(first, turned, shift))
    sizes = int(np.count_nonzero(one)) + int(np.count_nonzero(two))
    return axes, best, 2 * int(np.count_nonzero(one & two)) / sizes if sizes else 1.0


def _key(paths: Sequence[Path], background: BackgroundOption) -> str | None:
    return key_of("volume", VERSION, paths, background)


def _record(kind: TypeAdapter[Record], document: Mapping[str, Any] | None) -> Record | None:
    """Return a record from the cache; None if there is none, or it was written by something else."""
    if document is None:
        return None
    try:
        return kind.validate_python(document)
    except ValidationError:
        return None


def _steps(
    shape: Sequence[int], spacing_mm: tuple[float, float, float] | None
) -> tuple[int, int, int]:
    edges = spacing_mm or [max(shape) / _SAMPLE_SIDE] * 3
    wanted = _SAMPLE_MM if spacing_mm else max(shape) / _SAMPLE_SIDE
    z, y, x = (max(1, round(wanted / edge)) for edge in edges)
    return z, y, x


def _clipped(data: Array, stored: Array, ground: Background) -> float:
    """Return the share of voxels that `subtract` clips, from a coarse copy; more than 0 if there is any."""
    if not ground.found or data.dtype.kind == "u" or data.min() >= ground.value - ground.tolerance:
        return 0.0
    shifted = stored - np.float32(ground.value)
    shifted[np.abs(shifted) <= ground.tolerance] = 0
    share = below(shifted)
    return float(max(share, 1 / data.size)) if share <= MOST_BELOW else 0.0


def _commonest(values: Array) -> float:
    """Return the share of the most frequent value."""
    if not values.size:
        return 0.0
    _, counts = np.unique(values, return_counts=True)
    return float(counts.max() / values.size)


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
    filled = np.flatnonzero(tissue.any(axis=(1, 2)))
    if filled.size < _RIM_SLICES // 2 or bright <= 0:
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
    low, high = float(filled[0] * steps[0]), float(filled[-1] * steps[0])
    first, last = (low + part * (high - low) for part in _RIM_SPAN)
    chosen = np.unique(np.linspace(first, last, _RIM_SLICES).astype(np.int64))
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


def _others(axis: int) -> tuple[int, int]:
    first, second = (other for other in range(3) if other != axis)
    return first, second


def _along(axis: int, steps: int) -> tuple[int, int, int]:
    z, y, x = (steps if other == axis else 0 for other in range(3))
    return z, y, x


def _information(first: Array, second: Array, shift: tuple[int, int, int]) -> float:
    """Return the normalised mutual information less 1 of two binned arrays, the second one shifted, less chance."""
    one, two = _shifted(first, second, shift)
    joint = np.bincount((one * (_BINS + 1) + two).ravel(), minlength=(_BINS + 1) ** 2)
    counts = joint.reshape(_BINS + 1, _BINS + 1)[1:, 1:]
    total = int(counts.sum())
    if total < FEWEST_VOXELS // 2:
        return 0.0
    together = _entropy(counts.ravel() / total)
    apart = _entropy(counts.sum(axis=0) / total) + _entropy(counts.sum(axis=1) / total)
    chance = (_BINS - 1) ** 2 / (2 * total)  # of independent images (Miller and Madow)
    return float((apart - together - chance) / together) if together > 0 else 0.0


def _shifted(first: Array, second: Array, shift: tuple[int, int, int]) -> tuple[Array, Array]:
    """Return the part of each array that lies on the other one, the second one shifted."""
    sides = list(zip(shift, first.shape, strict=True))
    one = first[tuple(slice(max(0, -by), side - max(0, by)) for by, side in sides)]
    two = second[tuple(slice(max(0, by), side - max(0, -by)) for by, side in sides)]
    return one, two


def _entropy(shares: Array) -> float:
    """Return the entropy of a distribution, in nats."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def _peak(row: Sequence[float]) -> float:
    """Return where a row of values at -n to n has its greatest one, between the steps through a parabola."""
    place = int(np.argmax(row))
    steps = float(place - len(row) // 2)
    if 0 < place < len(row) - 1:
        before, here, after = row[place - 1 : place + 2]
        curve = before - 2 * here + after
        if curve < 0:
            steps += 0.5 * (before - after) / curve
    return steps
