"""Slices that were made one by one, brought to one brightness: steps from slice to slice are no anatomy.

Knows numbers only; when it is done is said by `jobs.Manner`.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from attcl_cli.data.intensities import Array, bounding_box, volume_of

_AROUND = 6.0  # slices, standard deviation of the weights that a slice's neighbours have
_WITHIN, _ACROSS = 2.0, 1.0  # voxels and slices, standard deviations of what is smoothed
_REACH = 4  # standard deviations, beyond which a weight is 0


def even_out(values: Array, inside: Array) -> Array:
    """Return the voxels of a volume with the steps between its slices evened out (ours).

    First the mean and the spread of each slice become those of the slices around it. Then what is smooth within a slice
    is smoothed across slices, too: anatomy changes as slowly in one direction as in the others. What is fine within a
    slice stays.

    Args:
        values: (V,) in [-1, 1], of the voxels `inside`.
        inside: (D, H, W) bool.

    Returns:
        (V,) float32 in [-1, 1].
    """
    box = bounding_box(inside)
    if box is None:
        return values
    mask = inside[box]
    volume = _at_one_level(volume_of(values, mask), mask)
    weights = mask.astype(np.float32)
    smooth = _smoothed(volume, weights, (0.0, _WITHIN, _WITHIN))
    smooth[~mask] = 0
    volume += _smoothed(smooth, weights, (_ACROSS, 0.0, 0.0)) - smooth
    evened: Array = np.clip(volume[mask], -1, 1)
    return evened


def _at_one_level(volume: Array, mask: Array) -> Array:
    """Give each slice the mean and the spread that the slices around it have; 0 outside the mask."""
    count = mask.sum(axis=(1, 2)).astype(np.float64)
    held = np.maximum(count, 1)
    mean = volume.sum(axis=(1, 2), dtype=np.float64) / held
    square = np.square(volume, dtype=np.float64).sum(axis=(1, 2)) / held
    spread = np.sqrt(np.maximum(square - mean**2, 0))

    def around(numbers: Array) -> Array:
        total = _along(numbers * count)
        value: Array = total / np.maximum(_along(count), 1e-9)
        return value

    gain = around(spread) / np.maximum(spread, 1e-3)
    shift = around(mean) - mean * gain
    level: Array = volume * gain[:, None, None] + shift[:, None, None]
    return np.where(mask, level, 0).astype(np.float32)


def _along(numbers: Array) -> Array:
    value: Array = gaussian_filter1d(numbers, _AROUND, mode="constant", truncate=_REACH)
    return value


def _smoothed(volume: Array, weights: Array, sigma: tuple[float, float, float]) -> Array:
    """Return the weighted mean of the voxels around each one; `volume` is 0 where the weight is."""
    total = gaussian_filter(volume, sigma, mode="constant", truncate=_REACH)
    weight = gaussian_filter(weights, sigma, mode="constant", truncate=_REACH)
    value: Array = total / np.maximum(weight, 1e-3)
    return value
