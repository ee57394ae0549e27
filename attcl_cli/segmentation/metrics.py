"""Dice, sensitivity, intersection over union and HD95 of two masks (Eq 18-21), and their values for empty masks.

Pure functions on boolean arrays; which masks are compared is left to `evaluation`, what is averaged to `summary`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from attcl_cli.data.intensities import bounding_box

Mask = NDArray[np.bool_]

POLICY = (
    "both masks empty: dice, sens, iou 1 and hd95 0; one empty: dice, iou 0 and hd95 undefined; "
    "sens is 0 if only the prediction is empty, undefined if only the truth is"
)
_PERCENTILE = 95.0


@dataclass(frozen=True)
class Metric:
    """A metric: how it is read, and how it is computed.

    Attributes:
        title: its name, with the paper's equation.
        compute: (prediction, truth, spacing in mm) -> value; NaN if `POLICY` calls it undefined.
        unit: "1" for a share.
        higher_is_better: the direction.
    """

    title: str
    compute: Callable[[Mask, Mask, Sequence[float]], float]
    unit: str = "1"
    higher_is_better: bool = True


def scores(prediction: Mask, truth: Mask, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return all of `METRICS` for one pair of masks.

    Args:
        prediction: bool, 2-D or 3-D.
        truth: bool, the same shape.
        spacing_mm: the distance of neighbours along each axis.

    Returns:
        metric -> value; NaN if `POLICY` calls it undefined.
    """
    return {name: metric.compute(prediction, truth, spacing_mm) for name, metric in METRICS.items()}


def dice(prediction: Mask, truth: Mask) -> float:
    """Return 2 |P & T| / (|P| + |T|) (Eq 18); both empty: 1."""
    total = _count(prediction) + _count(truth)
    return 2 * _count(prediction & truth) / total if total else 1.0


def sensitivity(prediction: Mask, truth: Mask) -> float:
    """Return |P & T| / |T| (Eq 19); both empty: 1; truth empty alone: NaN."""
    real = _count(truth)
    if real:
        return _count(prediction & truth) / real
    return float("nan") if prediction.any() else 1.0


def intersection_over_union(prediction: Mask, truth: Mask) -> float:
    """Return |P & T| / |P | T| (Eq 20); both empty: 1."""
    union = _count(prediction | truth)
    return _count(prediction & truth) / union if union else 1.0


def hd95(prediction: Mask, truth: Mask, spacing_mm: Sequence[float]) -> float:
    """Return the larger of the two 95th percentiles of the distances from one surface to the other, in mm (Eq 21).

    A mask's surface is its voxels with a neighbour outside of it, across a face; the volume's rim counts as outside. A
    distance is that of a surface voxel's centre to the nearest centre of the other surface, and percentiles are
    interpolated: monai's `compute_hausdorff_distance(percentile=95)`. (The surface-distance package weighs each element
    of a surface by its area: the same for a shifted cube, 4 to 15 % less for the random blobs that were tried.)

    Returns:
        mm; both empty: 0; one empty: NaN.
    """
    box = bounding_box(prediction | truth)
    if box is None:
        return 0.0
    if not prediction.any() or not truth.any():
        return float("nan")
    first, second = surface(prediction[box]), surface(truth[box])  # as in the whole volume
    return max(_reach(first, second, spacing_mm), _reach(second, first, spacing_mm))


METRICS: Mapping[str, Metric] = {
    "dice": Metric("Dice (Eq 18)", lambda prediction, truth, _: dice(prediction, truth)),
    "sens": Metric(
        "sensitivity (Eq 19)", lambda prediction, truth, _: sensitivity(prediction, truth)
    ),
    "iou": Metric(
        "intersection over union (Eq 20)",
        lambda prediction, truth, _: intersection_over_union(prediction, truth),
    ),
    "hd95": Metric("95 % Hausdorff distance (Eq 21)", hd95, "mm", higher_is_better=False),
}


def surface(mask: Mask) -> Mask:
    """Return the voxels of a mask that touch its outside, or the volume's rim, across a face."""
    value: Mask = mask & ~ndimage.binary_erosion(mask)
    return value


def _reach(start: Mask, goal: Mask, spacing_mm: Sequence[float]) -> float:
    """Return the 95th percentile of the distances from `start` to the nearest of `goal`."""
    distances = ndimage.distance_transform_edt(~goal, sampling=tuple(spacing_mm))
    return float(np.percentile(distances[start], _PERCENTILE))


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))
