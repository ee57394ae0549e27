"""Volumes in numbers: the quantiles of their brains, and a vector per volume by which an unusual one is noticed.

Knows normalised slices, and looks at the same small part of every volume, so that training and completion measure the
same. What follows from the numbers is left to `completion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from attcl_cli.data import intensities
from attcl_cli.data.intensities import Array
from attcl_cli.data.slices import STEPS, SliceStore

NAMES = (
    "quantile 0.05",
    "quantile 0.25",
    "quantile 0.5",
    "quantile 0.75",
    "quantile 0.95",
    "log gradient across rows",
    "log gradient across columns",
    "log gradient across slices",
    "share near -1",
    "share near 1",
    "log brain pixels",
)
"""The entries of a volume's vector."""

_PAIRS = 12  # of neighbouring slices that are looked at, evenly spread
_MOST_CASES = 256  # whose vectors are kept; they serve as a sample of what training saw
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_NEAR = 0.95  # beyond it a normalised intensity is near an end of the window
_FEWEST_PIXELS = 64  # of brain; fewer have no statistics
_LEAST_GRADIENT = 1e-4  # of the window: steps of 16 bits are finer


@dataclass(frozen=True)
class Described:
    """The volumes of a slice store in numbers.

    Attributes:
        quantiles: modality -> mean over its volumes of the quantiles in the brain, in [-1, 1] (`intensities`).
        statistics: modality -> case -> the vector of its volume (`NAMES`).
    """

    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    statistics: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)


def describe_store(store: SliceStore) -> Described:
    """Return the volumes of a store in numbers; one volume at a time is in memory.

    A volume that shows almost no brain is left out.
    """
    quantiles: dict[str, list[Array]] = {}
    statistics: dict[str, dict[str, tuple[float, ...]]] = {}
    cases = list(dict.fromkeys(entry.case for entry in store.entries))
    step = -(-len(cases) // _MOST_CASES) or 1
    kept = set(cases[::step])
    for entry in store.entries:
        rows = entry.start + sampled_pairs(entry.count)
        pairs = store.data[rows].astype(np.float32) / STEPS
        vector = describe(pairs, entry.count)
        if vector is None:
            continue
        brain = pairs[pairs > -1]
        quantiles.setdefault(entry.modality, []).append(intensities.quantiles(brain))
        if entry.case in kept:
            statistics.setdefault(entry.modality, {})[entry.case] = vector
    means = {name: np.mean(items, axis=0) for name, items in quantiles.items()}
    return Described(
        {name: tuple(round(float(value), 5) for value in mean) for name, mean in means.items()},
        statistics,
    )


def sampled_pairs(count: int) -> Array:
    """Return which of `count` slices are looked at: pairs of neighbours, (P, 2) int64; (0, 2) of fewer than two."""
    starts = np.unique(np.rint(np.linspace(0, count - 2, _PAIRS)).astype(np.int64))
    starts = starts[(starts >= 0) & (starts < count - 1)]
    value: Array = starts[:, None] + np.arange(2)
    return value


def describe(pairs: Array, count: int) -> tuple[float, ...] | None:
    """Return the vector of a volume (`NAMES`); None if it shows almost no brain.

    Args:
        pairs: (P, 2, H, W) float32 in [-1, 1], the slices of `sampled_pairs`; the background is -1.
        count: the slices of the volume that training uses.
    """
    brain = pairs > -1
    values = pairs[brain]
    if values.size < _FEWEST_PIXELS:
        return None
    numbers = [
        *np.quantile(values, _LEVELS),
        *(_log_gradient(pairs, brain, axis) for axis in (2, 3, 1)),
        np.mean(values < -_NEAR),
        np.mean(values > _NEAR),
        np.log(values.size * count / (pairs.shape[0] * pairs.shape[1])),
    ]
    return tuple(round(float(number), 5) for number in numbers)


def _log_gradient(pairs: Array, brain: Array, axis: int) -> float:
    """Return the logarithm of the mean absolute difference of neighbours along an axis, both in the brain."""
    both = np.minimum(*_neighbours(brain, axis))
    if not both.any():
        return float(np.log(_LEAST_GRADIENT))
    before, after = _neighbours(pairs, axis)
    mean = np.abs(after - before)[both].mean(dtype=np.float64)
    return float(np.log(max(mean, _LEAST_GRADIENT)))


def _neighbours(array: Array, axis: int) -> tuple[Array, Array]:
    """Return all entries but the last, and all but the first, along an axis."""
    length = array.shape[axis]
    return array.take(range(length - 1), axis), array.take(range(1, length), axis)
