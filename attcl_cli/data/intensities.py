"""Arrays without files: intensity scale, normalisation and its inverse, padding, cropping, averaging, bounding boxes.

Knows numbers only; files and geometry are left to `volumes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PERCENTILES = (0.5, 99.5)  # method.md, section 1
# "The middle slices between 30 and 125" of 155 (paper, Section 4.1).
TRAINING_SPAN = (31 / 155, 125 / 155)
QUANTILES = 129  # levels 0, 1/128, ..., 1

_TIE = 0.002  # a thousandth of the window: quantiles nearer than this are one, of a plateau
_TAIL = 0.05  # of the voxels at each end, which `stretch_tails` moves (docs/experiments/patients.md compares)


LEAST_CONTRAST = (
    1e-3  # of the intensities themselves: a window narrower than this would stretch noise
)


@dataclass(frozen=True)
class Scale:
    """The pair of intensities that normalisation maps to -1 and 1."""

    low: float
    high: float


def percentiles_of(ordered: Array, levels: Sequence[float]) -> list[float]:
    """Return percentiles of numbers, as `numpy.percentile` does, which takes some times as long for few of them.

    Args:
        ordered: (N,) float32, from the least to the greatest, at least one.
        levels: from 0 to 100.
    """
    values = []
    for level in levels:
        place = level / 100 * (ordered.size - 1)
        below = min(int(place), ordered.size - 1)
        low, high = ordered[below], ordered[min(below + 1, ordered.size - 1)]
        step, part = float(high - low), place - below
        values.append(float(low) + step * part if part < 0.5 else float(high) - step * (1 - part))  # noqa: PLR2004
    return values


def brain_of(volumes: Sequence[Array]) -> Array:
    """Return the voxels that are non-zero in any volume of a case: (D, H, W) bool (method.md, section 1)."""
    brain = volumes[0] != 0
    for volume in volumes[1:]:
        brain |= volume != 0
    value: Array = brain
    return value


def intensity_scale(data: Array, brain: Array) -> Scale | None:
    """Return the 0.5 and 99.5 percentiles inside the brain; None if they coincide (no contrast to normalise)."""
    inside = data[brain]
    if inside.size == 0:
        return None
    low, high = np.percentile(inside, PERCENTILES)
    return Scale(float(low), float(high)) if high > low else None


def normalise(data: Array, brain: Array, scale: Scale) -> Array:
    """Map `scale` to [-1, 1], clip, and set the background to exactly -1; any shape, float32."""
    unit = (np.clip(data, scale.low, scale.high) - np.float32(scale.low)) / np.float32(
        scale.high - scale.low
    )
    return np.where(brain, 2 * unit - 1, np.float32(-1)).astype(np.float32, copy=False)


def denormalise(normalised: Array, scale: Scale) -> Array:
    """Undo `normalise` inside the brain, exactly up to the clip; values beyond [-1, 1] are clipped first."""
    unit = (np.clip(normalised, -1, 1) + np.float32(1)) / np.float32(2)
    return unit * np.float32(scale.high - scale.low) + np.float32(scale.low)


def correlation(one: Array, other: Array) -> float:
    """Return Pearson's correlation of two lists of voxels, (V,); 0 if either is constant."""
    # No dot product: its digits would hang on the number of threads.
    one = one.astype(np.float64) - one.mean(dtype=np.float64)
    other = other.astype(np.float64) - other.mean(dtype=np.float64)
    power = float(np.mean(one**2)) * float(np.mean(other**2))
    return float(np.mean(one * other)) / power**0.5 if power > 0 else 0.0


def volume_of(values: Array, inside: Array) -> Array:
    """Return a whole volume, (D, H, W) float32: the values (V,) of the voxels `inside`, 0 elsewhere."""
    data = np.zeros(inside.shape, dtype=np.float32)
    data[inside] = values
    return data


def to_unit(volume: Array, low: float, high: float) -> Array:
    """Clip to [low, high] and scale that window to [0, 1].

    Args:
        volume: any shape, any number type.
        low: intensity that becomes 0.
        high: intensity that becomes 1; above `low`.

    Returns:
        float32 of the same shape; NaN stays NaN.

    Raises:
        ValueError: the window is empty.
    """
    if not high > low:
        raise ValueError(f"window: low {low} and high {high}, expected low < high")
    unit = (np.asarray(volume, np.float64) - low) / (high - low)
    return np.clip(unit, 0.0, 1.0).astype(np.float32)


def own_scale(image: Array, brain: Array) -> Scale | None:
    """Return the 0.5 and 99.5 percentiles of an image in the brain; None if it is constant there, or nearly so.

    Args:
        image: any shape.
        brain: bool of the same shape.
    """
    scale = intensity_scale(image, brain)
    if scale is None:
        return None
    level = max(abs(scale.low), abs(scale.high))
    return scale if scale.high - scale.low > LEAST_CONTRAST * level else None


def in_own_window(image: Array, brain: Array) -> Array:
    """Scale to [0, 1] by the image's own percentiles in the brain, 0 outside; 0 throughout without contrast.

    Args:
        image: any shape.
        brain: bool of the same shape.
    """
    scale = own_scale(image, brain)
    if scale is None:
        return np.zeros(image.shape, dtype=np.float32)
    return np.where(brain, to_unit(image, scale.low, scale.high), np.float32(0))


def quantiles(values: Array, count: int = QUANTILES) -> Array:
    """Return quantiles of intensities, (count,), at evenly spaced levels, the least and the greatest included.

    Raises:
        ValueError: there are no values.
    """
    if values.size == 0:
        raise ValueError("no values, expected at least one")
    result: Array = np.quantile(values, np.linspace(0, 1, count))
    return result


def match_quantiles(values: Array, own: Array, target: Sequence[float] | Array) -> Array:
    """Map intensities so that the quantiles `own` become those of the target; ascending values stay ascending.

    Levels whose own quantiles nearly coincide (a plateau) have their mean in the target: a narrow range is not blown
    up to noise. Beyond the outermost levels the map has slope 1. If both sets of quantiles are equal, nothing changes.

    Args:
        values: of any shape, in [-1, 1].
        own: (Q,) ascending quantiles in [-1, 1], of these values or of a part of them.
        target: (Q,) ascending quantiles in [-1, 1], at the same levels.

    Returns:
        float32 in [-1, 1], of the shape of `values`.
    """
    own, goal = np.asarray(own, np.float64), np.asarray(target, np.float64)
    knot = np.zeros(len(own), dtype=np.int64)
    first = own[0]
    for level in range(1, len(own)):
        starts = own[level] - first >= _TIE
        knot[level] = knot[level - 1] + starts
        first = own[level] if starts else first
    counts = np.bincount(knot)
    x, y = (np.bincount(knot, weights=numbers) / counts for numbers in (own, goal))
    data = np.asarray(values, np.float64)
    beyond = data - np.clip(data, x[0], x[-1])
    result: Array = np.clip(np.interp(data, x, y) + beyond, -1, 1).astype(np.float32)
    return result


def stretch_tails(values: Array, measured: Array, target: Sequence[float] | Array) -> Array:
    """Give intensities the ends of the target, the 0.5 and 99.5 percentiles; most of them stay as they are (ours).

    A network that learned to be wrong by little makes the rarest voxels too moderate. Whoever shows its volume in the
    window of its own percentiles sees it too bright or too dark throughout, although the network had most of it right.
    So only the darkest and the brightest twentieth are stretched, linearly. A tail that is a plateau stays as it is: a
    narrow range is not blown up to noise.

    Args:
        values: of any shape, in [-1, 1].
        measured: (V,) in [-1, 1], those of the values whose percentiles count; one at least.
        target: (Q,) ascending quantiles in [-1, 1], at evenly spaced levels from 0 to 1.

    Returns:
        float32 in [-1, 1], of the shape of `values`; ascending values stay ascending.
    """
    low, high = (percentile / 100 for percentile in PERCENTILES)
    lowest, highest = np.interp((low, high), np.linspace(0, 1, len(target)), target)
    darkest, dark, bright, brightest = np.quantile(measured, (low, _TAIL, 1 - _TAIL, high))
    data = np.asarray(values, np.float64)
    result = data
    if brightest - bright >= _TIE:
        slope = max(highest - bright, 0) / (brightest - bright)
        result = np.where(data > bright, bright + (data - bright) * slope, result)
    if dark - darkest >= _TIE:
        slope = max(dark - lowest, 0) / (dark - darkest)
        result = np.where(data < dark, dark - (dark - data) * slope, result)
    stretched: Array = np.clip(result, -1, 1).astype(np.float32)
    return stretched


def training_slices(depth: int) -> range:
    """Return the slices that training uses: 31..124 of 155, and the same middle part of any other depth."""
    return range(round(TRAINING_SPAN[0] * depth), max(round(TRAINING_SPAN[1] * depth), 1))


def pad(slices: Array, size: tuple[int, int]) -> Array:
    """Pad (..., H, W) symmetrically with -1 (background) to (..., *size); `crop` undoes it exactly.

    Raises:
        ValueError: the slices are larger than `size`.
    """
    height, width = slices.shape[-2:]
    if height > size[0] or width > size[1]:
        raise ValueError(f"slices of {height}x{width} do not fit into {size[0]}x{size[1]}")
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    margins = [(0, 0)] * (slices.ndim - 2) + [
        (top, size[0] - height - top),
        (left, size[1] - width - left),
    ]
    return np.pad(slices, margins, constant_values=-1)


def crop(slices: Array, size: tuple[int, int]) -> Array:
    """Cut the centre (..., *size) out of (..., H, W): the inverse of `pad`; a view."""
    top, left = (slices.shape[-2] - size[0]) // 2, (slices.shape[-1] - size[1]) // 2
    return slices[..., top : top + size[0], left : left + size[1]]


def shrink(slices: Array, factor: int) -> Array:
    """Average blocks of factor x factor pixels: (..., H, W) -> (..., H / factor, W / factor)."""
    if factor == 1:
        return slices
    *lead, height, width = slices.shape
    value: Array = slices.reshape(*lead, height // factor, factor, width // factor, factor).mean(
        axis=(-3, -1), dtype=np.float32
    )
    return value


def bounding_box(mask: NDArray[np.bool_], *, margin: int = 0) -> tuple[slice, ...] | None:
    """Return the smallest box that holds a mask of any shape; None if the mask is empty.

    Args:
        mask: the voxels.
        margin: voxels that the box grows by to every side, as far as the image reaches.
    """
    box = []
    for axis, length in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        box.append(slice(max(int(hits[0]) - margin, 0), min(int(hits[-1]) + margin + 1, length)))
    return tuple(box)
