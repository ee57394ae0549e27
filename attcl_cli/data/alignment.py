"""How the volumes of a case lie on each other, in a few figures: overlap, shift, mirroring, order, ranks of brightness.

Measured on the coarse copies that `voxels` makes, and cached as its figures are. What they must be is left to
`preconditions`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from attcl_cli.data.intensities import Array
from attcl_cli.data.voxels import BINS, Look, Sample, count_along, read_sample

FEWEST_VOXELS = 2000  # in both masks, for mutual information to be more than noise

_FAR = 2  # sample steps at which a first look is taken
_SEARCHED = 4  # sample steps to each side that are searched
_LOOK_CLOSER = (
    0.8  # of the mutual information as stored: if a shifted one reaches it, all shifts are tried
)
_ALIKE = 0.98  # Dice of two masks; below it all mirrored volumes are tried: 0.99 was the least of one brain
_UNTURNED = 0.985  # Dice of two masks; below it turned volumes are tried
_DEGREES = (-12.0, -8.0, -4.0, 4.0, 8.0, 12.0)  # that are tried about each axis
_DEEP = 3  # sample steps below the surface, where a brain has no background
_WHOLE = 0.995  # of a mask, that the other one has; more leave no room for a hole
_SIDEWAYS = 2  # axis of left and right; brains are symmetric along this one alone
_MIRRORED_STEPS = 2  # sample steps to each side by which a mirrored volume may be off
_FILLED = 0.05  # of the fullest slice's mask; emptier slices are not looked for
_CLOSE = 0.05  # of a slice's mask, that may differ where the slice belongs
_CLOSER = 0.5  # of what differs as stored, that may differ elsewhere
_LEAST_CLOSER = 0.02  # of its mask, that must differ less there
_ALMOST = 0.01  # of its mask, by which places that fit as well as the best may differ more
_EXPLAINED = 0.75  # of the mask, in slices of a known place; 0.88 was the least out of order, 0.26 the most of tilted
_MOST_LEFT = 0.7  # of what differs, that may with slices in place; 0.50 was the most, 0.94 the least of tilted
_RANKS_EVERY = 2  # sample steps between the voxels that ranks are compared at


@dataclass(frozen=True)
class PairRecord:
    """How well two volumes of a case lie on each other.

    Attributes:
        overlap: Dice of what is not background in either.
        voxels: of the sample in both masks. Of fewer than `FEWEST_VOXELS` nothing is measured but `covered`, `apart`
            and `hole`.
        covered: share of the first one's mask that the second one's has, and the other way round.
        apart: by how much the masks end apart along (D, H, W), at the worse of both ends, over the longer of both.
        hole: share of the first one's inner mask that is background in the second one, and the other way round.
        out_of_order: of the sample's slices across (D, H, W), how many at least have to move for the masks to lie on
            each other; 0 if moving them does not help.
        information: normalised mutual information where neither is background, less what chance gives: 0 for
            unrelated images.
        gain: the most that a shift makes of it, over that.
        shift_mm: by how much the second is shifted against the first, (D, H, W).
        turned_degrees: about the axes (D, H, W), that make the second share more with the first than any shift does: of
            one axis, the others 0.
        turned_information: what `information` is then.
        mirrored: axes of (D, H, W) along which the second, mirrored, shares the most with the first; none if it shares
            more as stored or shifted.
        mirrored_information: what `information` is then.
        mirrored_overlap: what `overlap` is then.
    """

    overlap: float
    voxels: int
    covered: tuple[float, float]
    apart: tuple[float, float, float]
    hole: tuple[float, float] = (0.0, 0.0)
    out_of_order: tuple[int, int, int] = (0, 0, 0)
    information: float = 0.0
    gain: float = 1.0
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turned_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turned_information: float = 0.0
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


_PAIRS, _RANKS = TypeAdapter(PairRecord), TypeAdapter(RankRecord)


def read_pair(first: Sequence[Path], second: Sequence[Path], look: Look) -> PairRecord | None:
    """Return how two volumes lie on each other, from the cache if their files did not change.

    Args:
        first: the files of a volume.
        second: those of another one of the same case.
        look: at the case.

    Returns:
        None if the grids differ.

    Raises:
        AttclError: as `volumes.load`.
    """
    key = look.key_of("pair", [*first, *second])
    known = look.records.read(key, _PAIRS)
    if known is not None:
        return known
    both = _on_one_grid((first, second), look)
    if both is None:
        return None
    pair = compare(*both)
    look.records.add(key, vars(pair))
    return pair


def read_ranks(files: Sequence[Sequence[Path]], look: Look) -> RankRecord | None:
    """Return how brightness goes along with brightness in some volumes of a case, from the cache as `read_pair`.

    Args:
        files: the files of each volume.
        look: at the case.

    Returns:
        None if the grids differ.

    Raises:
        AttclError: as `volumes.load`.
    """
    key = look.key_of("ranks", [path for paths in files for path in paths])
    known = look.records.read(key, _RANKS)
    if known is not None and len(known.correlations) == math.comb(len(files), 2):
        return known
    every = _on_one_grid(files, look)
    if every is None:
        return None
    record = RankRecord(tuple(rank_correlation(*pair) for pair in combinations(every, 2)))
    look.records.add(key, vars(record))
    return record


def _on_one_grid(files: Iterable[Sequence[Path]], look: Look) -> list[Sample] | None:
    """Return the coarse copy of each volume; None if their grids differ."""
    every = [read_sample(paths, look) for paths in files]
    return every if len({sample.data.shape for sample in every}) <= 1 else None


def compare(first: Sample, second: Sample) -> PairRecord:
    """Return how two coarse copies of one shape lie on each other.

    Mutual information is measured at small shifts along each axis (Maes et al., IEEE TMI 16(2), 1997, without the
    search over all rotations), normalised as in Studholme et al., Pattern Recognition 32(1), 1999. Only voxels in both
    masks count, so that a mask that all volumes share does not hide a shift. The same is measured of the second one
    mirrored: always from side to side, where a brain is symmetric, and along all axes if something is wrong. If the
    masks differ, also turned by some degrees about each axis.
    """
    masks = first.mask, second.mask
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    both = int(np.count_nonzero(masks[0] & masks[1]))
    overlap = 2 * both / sum(sizes) if any(sizes) else 1.0
    covered = both / max(sizes[0], 1), both / max(sizes[1], 1)
    same = overlap == 1.0
    apart = (0.0, 0.0, 0.0) if same else _apart(first, second)
    hole = _hole(*masks) if min(covered) < _WHOLE else (0.0, 0.0)
    pair = PairRecord(overlap, both, covered, apart, hole)
    if both < FEWEST_VOXELS:
        return pair
    if not same:
        pair = replace(pair, out_of_order=_out_of_order(first, second))
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
        return replace(pair, information=centre)
    best, peaks = centre, [0.0, 0.0, 0.0]
    for axis, step_mm in enumerate(() if sound else first.step_mm):
        row = [
            _information(*binned, _along(axis, steps)) for steps in range(-_SEARCHED, _SEARCHED + 1)
        ]
        best = max(best, *row)
        peaks[axis] = _peak(row) * step_mm
    gain = min(best / centre, 99.0) if centre > 0 else 99.0
    shift_mm = peaks[0], peaks[1], peaks[2]
    pair = replace(pair, information=centre, gain=gain, shift_mm=shift_mm)
    if overlap < _UNTURNED:
        degrees, shared = _turned(*binned, first.step_mm)
        if shared > best:
            pair = replace(pair, turned_degrees=degrees, turned_information=shared)
    axes, shared, lying = _mirrored(*binned)
    if shared <= best:
        return pair
    return replace(pair, mirrored=axes, mirrored_information=shared, mirrored_overlap=lying)


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


def _apart(first: Sample, second: Sample) -> tuple[float, float, float]:
    """Return by how much two masks end apart along each axis, over the longer of both; 0 if both are empty."""
    z, y, x = (
        max(abs(low - other_low), abs(high - other_high))
        / max(high - low, other_high - other_low, 1)
        for (low, high), (other_low, other_high) in zip(first.ends, second.ends, strict=True)
    )
    return z, y, x


def _out_of_order(first: Sample, second: Sample) -> tuple[int, int, int]:
    """Return along each axis how many slices of the second mask have to move at least to lie where the first's do."""
    differing = count_along(first.mask != second.mask)
    z, y, x = (
        _unordered(np.moveaxis(first.mask, axis, 0), np.moveaxis(second.mask, axis, 0), sizes)
        if (here > _LEAST_CLOSER * sizes).any()  # seldom, and it costs ten times as much
        else 0
        for axis, (here, sizes) in enumerate(zip(differing, second.counts, strict=True))
    )
    return z, y, x


def _unordered(first: Array, second: Array, sizes: Array) -> int:
    """Return how many slices of the second mask, stacked along its first axis, have to move at least.

    A slice belongs where the first mask's slice is nearly its own, if that fits clearly better than where it lies after
    the best shift of all; of several such places, to the nearest. Unless most of the mask has a known place, and the
    masks differ clearly less with the slices put there, none has to move: the masks differ in another way (tilted,
    grown, of another brain).

    Args:
        first: a mask, slices first.
        second: another one of the same shape.
        sizes: voxels of the second mask in each slice.
    """
    one, two = (mask.reshape(len(mask), -1).astype(np.float32) for mask in (first, second))
    differing = one.sum(axis=1)[:, None] + sizes - 2 * (one @ two.T)  # [place, slice], in voxels
    lying, here = _best_shift(differing, sizes)
    most = np.minimum(np.minimum(_CLOSER * here, here - _LEAST_CLOSER * sizes), _CLOSE * sizes)
    fitting = (differing <= most) & (differing <= differing.min(axis=0) + _ALMOST * sizes)
    away = np.where(fitting, np.abs(lying[:, None] - lying), len(sizes))
    moved = fitting.any(axis=0)
    known = (moved | (here <= _CLOSE * sizes)) & (sizes > _FILLED * sizes.max())
    belongs = np.where(moved, away.argmin(axis=0), lying)
    left = np.where(known, differing[belongs, lying], here).sum()
    if sizes[known].sum() < _EXPLAINED * sizes.sum() or left > _MOST_LEFT * here.sum():
        return 0
    places = belongs[known].tolist()
    ends: list[int] = []  # the least last place of so many slices in order
    for place in places:
        index = bisect_right(ends, place)
        ends[index : index + 1] = [place]
    return len(places) - len(ends)


def _best_shift(differing: Array, sizes: Array) -> tuple[Array, Array]:
    """Return where the second mask's slices lie after the shift that fits best, and by how much they differ there.

    Where they lie as stored, unless a shift explains most of what differs.

    Args:
        differing: voxels, of each place (first axis) and slice (second one).
        sizes: voxels of each slice, which all differ outside of the places.
    """
    count = len(sizes)
    lying = np.arange(count)
    shifted = lying + np.arange(-count // 2, count // 2 + 1)[:, None]  # [shift, slice]
    places = shifted.clip(0, count - 1)
    there = np.where(shifted == places, differing[places, lying], sizes)
    costs, stored = there.sum(axis=1), -(-count // 2)
    best = int(costs.argmin())
    if costs[best] > _CLOSER * costs[stored]:
        best = stored
    return places[best], there[best]


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


def _turned(
    first: Array, second: Array, step_mm: tuple[float, float, float]
) -> tuple[tuple[float, float, float], float]:
    """Return by which degrees about each axis the second binned array shares most with the first, and how much."""
    best, most = (0.0, 0.0, 0.0), 0.0
    for axis in range(3):
        for degrees in _DEGREES:
            shared = _information(first, _turn(second, axis, degrees, step_mm), (0, 0, 0))
            if shared > most:
                z, y, x = (degrees if it == axis else 0.0 for it in range(3))
                best, most = (z, y, x), shared
    return best, most


def _turn(data: Array, axis: int, degrees: float, step_mm: tuple[float, float, float]) -> Array:
    """Return an array turned about its middle, each voxel from its nearest; 0 comes in from outside."""
    planes = np.moveaxis(data, axis, 0)
    rows_mm, columns_mm = (step_mm[it] for it in _others(axis))
    height, width = planes.shape[1:]
    y = (np.arange(height)[:, None] - (height - 1) / 2) * rows_mm
    x = (np.arange(width)[None] - (width - 1) / 2) * columns_mm
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = np.rint((cosine * y - sine * x) / rows_mm + (height - 1) / 2).astype(np.int64)
    columns = np.rint((sine * y + cosine * x) / columns_mm + (width - 1) / 2).astype(np.int64)
    known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    turned = planes[:, rows.clip(0, height - 1), columns.clip(0, width - 1)] * known
    return np.moveaxis(turned, 0, axis)


def _hole(first: Array, second: Array) -> tuple[float, float]:
    """Return which share of each mask's inner part the other one lacks."""

    def lacked(mask: Array, by: Array) -> float:
        inner = _inner(mask)
        return float(np.count_nonzero(inner & ~by) / max(int(np.count_nonzero(inner)), 1))

    return lacked(first, second), lacked(second, first)


def _inner(mask: Array) -> Array:
    """Return the part of a mask that lies some steps below its surface."""
    inner = np.pad(mask, 1)
    for _ in range(_DEEP):
        outer = inner.copy()
        for axis in range(3):
            for by in (-1, 1):
                inner &= np.roll(outer, by, axis)
    return inner[1:-1, 1:-1, 1:-1]


def _others(axis: int) -> tuple[int, int]:
    first, second = (other for other in range(3) if other != axis)
    return first, second


def _along(axis: int, steps: int) -> tuple[int, int, int]:
    z, y, x = (steps if other == axis else 0 for other in range(3))
    return z, y, x


def _information(first: Array, second: Array, shift: tuple[int, int, int]) -> float:
    """Return the normalised mutual information less 1 of two binned arrays, the second one shifted, less chance."""
    one, two = _shifted(first, second, shift)
    joint = np.bincount((one * (BINS + 1) + two).ravel(), minlength=(BINS + 1) ** 2)
    counts = joint.reshape(BINS + 1, BINS + 1)[1:, 1:]
    total = int(counts.sum())
    if total < FEWEST_VOXELS // 2:
        return 0.0
    together = _entropy(counts.ravel() / total)
    apart = _entropy(counts.sum(axis=0) / total) + _entropy(counts.sum(axis=1) / total)
    chance = (BINS - 1) ** 2 / (2 * total)  # of independent images (Miller and Madow)
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
