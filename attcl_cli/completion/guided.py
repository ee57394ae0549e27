"""Volumes sharpened by what was withheld from their network: no training case had it together with the others.

Knows numbers only; which modalities these are is said by `methods.sources`, when it is done by `jobs.Manner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from attcl_cli.data.intensities import Array, bounding_box, correlation, volume_of

_RADII = (2, 5, 10)  # voxels
_LEAST_VARIANCE = 0.004  # of a guide, in [-1, 1]: below it, what the guide shows counts as noise


@dataclass(frozen=True, eq=False)
class Guidance:
    """The modalities of a case beside a volume that was made, (D, H, W) float32 in [-1, 1] each.

    Attributes:
        sources: what the volume was made from.
        withheld: those that its network was not given; one at least.
    """

    sources: Sequence[Array]
    withheld: Sequence[Array]


def sharpen(values: Array, inside: Array, guidance: Guidance) -> Array:
    """Return the voxels of a volume with the detail of its sources and of what was withheld.

    Around each voxel the volume is fitted by a linear function of these guides, and the functions are averaged: the
    guided filter (He, Sun and Tang 2010, Guided Image Filtering, ECCV, Eq 14 to 16), in three dimensions, within the
    brain, as the mean of three radii. So contrast comes from the volume and detail from the guides, also from one whose
    contrast is inverted. Then the withheld modality that correlates best with the volume in the brain, with r, has the
    share r of the result if r is above 0 (ours): T1 is a better witness of T1ce than a smooth guess.

    Args:
        values: (V,) in [-1, 1], of the voxels `inside`.
        inside: (D, H, W) bool.
        guidance: the modalities.

    Returns:
        (V,) float32 in [-1, 1].
    """
    box = bounding_box(inside)
    if box is None:
        return values
    mask = inside[box]
    volume = volume_of(values, mask)
    withheld, sources = (
        [np.where(mask, guide[box], np.float32(0)) for guide in guides]
        for guides in (guidance.withheld, guidance.sources)
    )
    fits = [_Window(mask, radius).fit(volume, [*withheld, *sources])[mask] for radius in _RADII]
    fitted = np.mean(fits, axis=0)
    alike, most = max(
        ((correlation(values, guide[mask]), guide[mask]) for guide in withheld),
        key=lambda item: item[0],
    )
    share = np.float32(max(alike, 0.0))
    sharpened: Array = np.clip((1 - share) * fitted + share * most, -1, 1)
    return sharpened.astype(np.float32, copy=False)


class _Window:
    """Means over the voxels of a mask in a cube around each voxel."""

    def __init__(self, mask: Array, radius: int) -> None:
        self._mask = mask
        self._width = 2 * radius + 1
        self._share = np.maximum(self._summed(mask.astype(np.float32)), np.float32(1e-6))

    def fit(self, volume: Array, guides: Sequence[Array]) -> Array:
        """Return the guided filter of a volume, (D, H, W); volume and guides are 0 outside the mask."""
        means = [self._mean(guide) for guide in guides]
        mean = self._mean(volume)
        count, voxels = len(guides), int(self._mask.sum())
        spread = np.empty((voxels, count, count), dtype=np.float32)
        common = np.empty((voxels, count, 1), dtype=np.float32)
        for row, guide in enumerate(guides):
            common[:, row, 0] = (self._mean(guide * volume) - means[row] * mean)[self._mask]
            for column in range(row, count):
                both = self._mean(guide * guides[column]) - means[row] * means[column]
                spread[:, row, column] = spread[:, column, row] = both[self._mask]
            spread[:, row, row] += _LEAST_VARIANCE
        slopes = np.linalg.solve(spread, common)[..., 0]
        fitted = np.zeros_like(volume)
        offset = mean
        for place, guide in enumerate(guides):
            slope = volume_of(slopes[:, place], self._mask)
            offset = offset - slope * means[place]
            fitted += self._mean(slope) * guide
        fitted += self._mean(np.where(self._mask, offset, np.float32(0)))
        return fitted

    def _mean(self, volume: Array) -> Array:
        mean: Array = self._summed(volume) / self._share
        return mean

    def _summed(self, volume: Array) -> Array:
        summed: Array = uniform_filter(volume, self._width, mode="constant")
        return summed
