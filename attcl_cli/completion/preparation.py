"""What a network sees of a case: slices of a plane, cut to the brain's box if it was trained on squares, and fitted.

Knows arrays alone; sending them through the network is left to `inference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attcl_cli.data import intensities
from attcl_cli.data.intensities import Array, Scale
from attcl_cli.methods.settings import Settings

if TYPE_CHECKING:  # completion's checks end before torch is loaded
    from attcl_cli.methods.base import Method

AXIAL, CORONAL, SAGITTAL = THREE_PLANES = ("axial", "coronal", "sagittal")

_MARGIN = (
    8  # voxels around the brain's box: what a convolution at the brain's rim sees in training, too
)


@dataclass(frozen=True)
class Prepared:
    """The slices of a case in one plane, ready for a network: only what is needed from here on is kept.

    Attributes:
        small: source -> (N, 1 + 2 * context, h, w) float32 in [-1, 1]: the slices with voxels to be made, each with its
            neighbours.
        indices: (N,), where they belong.
        inside: (D, H, W) bool, turned to the plane: the voxels to be made.
        box: the rows and columns of the slices that `small` shows.
        plane: one of `THREE_PLANES`.
    """

    small: Mapping[str, Array]
    indices: Array
    inside: Array
    box: tuple[slice, slice]
    plane: str = AXIAL

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the box, in voxels."""
        rows, columns = self.box
        return rows.stop - rows.start, columns.stop - columns.start

    def mask(self, rows: slice) -> Array:
        """Return which pixels of the box are to be made, of some of the slices: (B, H, W) bool."""
        mask: Array = self.inside[(self.indices[rows], *self.box)]
        return mask

    def in_axial_order(self, values: Array) -> Array:
        """Return values of the voxels to be made, (V,), as a mask of the axial volume picks them."""
        if self.plane == AXIAL:
            return values
        data = np.zeros(self.inside.shape, dtype=values.dtype)
        data[self.inside] = values
        picked: Array = turn_back(data, self.plane)[turn_back(self.inside, self.plane)]
        return picked


def turn(data: Array, plane: str) -> Array:
    """Return (D, H, W) in working order as slices of a plane, a view.

    Rows of coronal slices (H, D, W) and of sagittal ones (W, D, H) run from head to foot; columns run from the
    patient's right to the left, or from the front to the back.
    """
    if plane == AXIAL:
        return data
    order = (1, 0, 2) if plane == CORONAL else (2, 0, 1)
    turned: Array = data[::-1].transpose(order)
    return turned


def turn_back(data: Array, plane: str) -> Array:
    """Undo `turn`; a view."""
    if plane == AXIAL:
        return data
    order = (1, 0, 2) if plane == CORONAL else (1, 2, 0)
    axial: Array = data.transpose(order)[::-1]
    return axial


def prepare(
    sources: Mapping[str, Array],
    shown: Array,
    inside: Array,
    brain: Array,
    scales: Mapping[str, Scale],
    method: Method,
    *,
    plane: str = AXIAL,
) -> Prepared:
    """Normalise the sources of a case, and fit their slices to the network.

    Args:
        sources: modality -> (D, H, W) intensities in working order.
        shown: (D, H, W) bool, where any source is not 0: these voxels make the box.
        inside: (D, H, W) bool, the voxels that are to be made; among those of `shown`.
        brain: (D, H, W) bool, non-zero in any modality of the case.
        scales: modality -> the intensities that become -1 and 1.
        method: whose networks will see the slices.
        plane: of the slices, one of `THREE_PLANES`.
    """
    shown, inside, brain = (turn(mask, plane) for mask in (shown, inside, brain))
    box = _box(shown, method.settings)
    indices = np.flatnonzero(inside.any(axis=(1, 2)))
    windows = indices[:, None] + np.arange(-method.context, method.context + 1)
    exists = (windows >= 0) & (windows < len(inside))
    rows = np.unique(windows[exists])
    here = (rows, *box)
    small = {}
    for name, source in sources.items():
        normalised = intensities.normalise(turn(source, plane)[here], brain[here], scales[name])
        fitted = fit(
            normalised,
            method.settings,
            stride=method.stride,
            least=_factor(method.settings) * method.settings.side,
        )
        if method.context:
            stacked = np.full((*windows.shape, *fitted.shape[1:]), -1, dtype=np.float32)
            stacked[exists] = fitted[np.searchsorted(rows, windows[exists])]
            small[name] = stacked
        else:
            small[name] = fitted[:, None]
    return Prepared(small, indices, inside, box, plane)


def fit(slices: Array, settings: Settings, *, stride: int, least: int = 0) -> Array:
    """Pad slices (N, H, W) to a size that the network takes, and average them down.

    Args:
        slices: in [-1, 1].
        settings: the canvas, and how far it is averaged down.
        stride: the number that height and width of the result are multiples of.
        least: height and width before averaging are at least this many voxels; 0: the canvas.
    """
    factor = _factor(settings)
    step = factor * stride
    least = least or settings.canvas
    height, width = (-(-max(least, side) // step) * step for side in slices.shape[-2:])
    return intensities.shrink(intensities.pad(slices, (height, width)), factor)


def _factor(settings: Settings) -> int:
    """Return how many voxels make a pixel, along each side."""
    return settings.canvas // settings.image_size


def _box(shown: Array, settings: Settings) -> tuple[slice, slice]:
    """Return rows and columns that the network sees: all, or the brain's box if it was trained on squares."""
    _, height, width = shown.shape
    if settings.crop:
        box = intensities.bounding_box(np.any(shown, axis=0), margin=_MARGIN)
        if box is not None:
            return box[0], box[1]
    return slice(0, height), slice(0, width)
