"""Scores of a predicted image against the true one: SSIM, PSNR, NMSE, as pure functions of arrays.

Leaves to the caller which cases, regions and intensity windows are compared, and what becomes of a
NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

# Wang et al. 2004, Image quality assessment: from error visibility to structural similarity
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # a window of 11 voxels
SSIM_K1 = 0.01
SSIM_K2 = 0.03

EMPTY_IS_NAN = "NaN, counted by the caller"


@dataclass(frozen=True)
class Metric:
    """A metric of images scaled to [0, 1], and how to read it.

    Attributes:
        function: `function(prediction, truth, mask=None) -> float`.
        unit: "dB", or "1" for a pure number.
        higher_is_better: the direction.
        empty: what an empty mask gives.
    """

    function: Callable[..., float]
    unit: str
    higher_is_better: bool
    empty: str = EMPTY_IS_NAN


def to_unit(volume: Array, low: float, high: float) -> Array:
    """Clips to [low, high] and scales that window to [0, 1].

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
        raise ValueError(f"window: low {low} and high {high}, wanted low < high")
    unit = (np.asarray(volume, np.float64) - low) / (high - low)
    return np.clip(unit, 0.0, 1.0).astype(np.float32)


def ssim_map(prediction: Array, truth: Array, *, data_range: float) -> Array:
    """The structural similarity of each voxel's Gaussian neighbourhood (Wang et al. 2004, Eq 13).

    Means, variances and the covariance are population moments under an n-dimensional Gaussian
    (sigma 1.5, 11 voxels wide); beyond its border the image is mirrored.

    Args:
        prediction: any shape with one axis or more.
        truth: the same shape.
        data_range: the largest possible minus the smallest possible value; positive.

    Returns:
        float64 of the same shape, in [-1, 1].

    Raises:
        ValueError: shapes differ, or the data range is not positive.
    """
    # Variances are differences of nearly equal numbers, too coarse beside c2 in float32.
    x, y = _pair(prediction, truth)
    _require_range(data_range)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2

    mean_x, mean_y = _smooth(x), _smooth(y)
    product_of_means = mean_x * mean_y
    sum_of_squares = mean_x**2 + mean_y**2
    covariance = _smooth(x * y) - product_of_means
    # Only the sum of the variances is needed: one filter for both.
    variances = _smooth(x**2 + y**2) - sum_of_squares

    luminance = (2 * product_of_means + c1) / (sum_of_squares + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def ssim(prediction: Array, truth: Array, *, data_range: float, mask: Array | None = None) -> float:
    """The mean of `ssim_map`, over the mask where one is given.

    Neighbourhoods reach across the mask's border: a voxel's value does not depend on the mask.

    Args:
        prediction: any shape with one axis or more.
        truth: the same shape.
        data_range: as in `ssim_map`.
        mask: bool of the same shape, or None for all voxels.

    Returns:
        A number in [-1, 1], 1 for equal images; NaN for an empty mask.

    Raises:
        ValueError: as `ssim_map`, or the mask is not bool of the same shape.
    """
    _require_mask(mask, prediction)
    if mask is None:
        return _mean(ssim_map(prediction, truth, data_range=data_range))
    _pair_shapes(prediction, truth)
    _require_range(data_range)
    # No voxel of the mask sees anything beyond this block, so cutting it out changes no digit.
    block = _block(mask, margin=SSIM_RADIUS)
    if block is None:
        return float("nan")
    values = ssim_map(prediction[block], truth[block], data_range=data_range)
    return _mean(values[mask[block]])


def psnr(prediction: Array, truth: Array, *, data_range: float, mask: Array | None = None) -> float:
    """The peak signal-to-noise ratio: 10 log10(data_range^2 / mean squared error).

    Args:
        prediction: any shape.
        truth: the same shape.
        data_range: as in `ssim_map`.
        mask: bool of the same shape, or None for all voxels.

    Returns:
        dB; infinity for equal images; NaN for an empty mask.

    Raises:
        ValueError: shapes differ, the data range is not positive, or the mask is not bool of the
            same shape.
    """
    _require_range(data_range)
    x, y = _inside(prediction, truth, mask)
    error = _mean((x - y) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def nmse(prediction: Array, truth: Array, *, mask: Array | None = None) -> float:
    """The squared error over the squared truth: sum (prediction - truth)^2 / sum truth^2.

    Args:
        prediction: any shape.
        truth: the same shape.
        mask: bool of the same shape, or None for all voxels.

    Returns:
        0 for equal images, 1 for a prediction of zeros; NaN for an empty mask and for a truth that
        is 0 throughout.

    Raises:
        ValueError: shapes differ, or the mask is not bool of the same shape.
    """
    x, y = _inside(prediction, truth, mask)
    energy = float(np.sum(y**2))
    return float("nan") if energy == 0 else float(np.sum((x - y) ** 2)) / energy


METRICS: dict[str, Metric] = {
    "ssim": Metric(partial(ssim, data_range=1.0), unit="1", higher_is_better=True),
    "psnr": Metric(partial(psnr, data_range=1.0), unit="dB", higher_is_better=True),
    "nmse": Metric(nmse, unit="1", higher_is_better=False),
}


def _smooth(image: Array) -> Array:
    return ndimage.gaussian_filter(image, SSIM_SIGMA, radius=SSIM_RADIUS, mode="reflect")


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else float("nan")


def _inside(prediction: Array, truth: Array, mask: Array | None) -> tuple[Array, Array]:
    """The voxels that count, as float64 (unsigned integers would wrap in a difference)."""
    _pair_shapes(prediction, truth)
    _require_mask(mask, prediction)
    if mask is None:
        return _pair(prediction, truth)
    return _pair(prediction[mask], truth[mask])


def _pair(prediction: Array, truth: Array) -> tuple[Array, Array]:
    _pair_shapes(prediction, truth)
    return prediction.astype(np.float64), truth.astype(np.float64)


def _block(mask: Array, *, margin: int) -> tuple[slice, ...] | None:
    """The bounding box of a mask with a margin, within the image; None for an empty mask."""
    block = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        block.append(slice(max(int(hits[0]) - margin, 0), int(hits[-1]) + margin + 1))
    return tuple(block)


def _pair_shapes(prediction: Array, truth: Array) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape}: wanted one shape")


def _require_range(data_range: float) -> None:
    if not data_range > 0:
        raise ValueError(f"data_range {data_range}: wanted a positive number")


def _require_mask(mask: Array | None, image: Array) -> None:
    # An integer mask would select by position instead of by truth: silently another number.
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != image.shape):
        raise ValueError(f"mask {mask.dtype} {mask.shape}: wanted bool {image.shape}")
