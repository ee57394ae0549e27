"""Random squares of stored slices, warped or not, so that networks train on full-resolution pixels at little cost.

Knows places in a store. Which slices are drawn is left to `sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attcl_cli.data import augment
from attcl_cli.data.intensities import Array, bounding_box
from attcl_cli.data.slices import STEPS, SliceStore

_OF_CROPS, _OF_WARPS = (
    1,
    4,
)  # what follows (seed, step) in the seeds of the generators; others are `sampling`'s


@dataclass(frozen=True)
class Place:
    """Where B slices are looked at: all images of a place have the same one.

    Attributes:
        corners: (B, 2) int64, the upper left (y, x) of the squares; None: whole slices.
        warped: (B,) bool.
        grids: (B, S, S, 2) of `augment.warp_grids`; None: nothing is warped.
    """

    corners: Array | None
    warped: Array
    grids: Tensor | None = None

    def of(self, which: Array) -> Place:
        """Return the places of some slices, in this order: (K,) int64."""
        return Place(
            None if self.corners is None else self.corners[which],
            self.warped[which],
            None if self.grids is None else self.grids[torch.from_numpy(which)],
        )


class Crops:
    """The squares of one batch, and what they show; whole slices if the side is 0.

    They have random generators of their own: with crops or warps, a batch shows the same slices as without.
    """

    def __init__(
        self, store: SliceStore, side: int, seed: tuple[int, int], *, warp: float = 0.0
    ) -> None:
        """Prepare to draw.

        Args:
            store: the slices.
            side: of the squares, in pixels; 0: whole slices.
            seed: (seed, step) of the batch.
            warp: share of places that are warped (`augment.warp_grids`).
        """
        self.store, self.side, self.warp = store, side, warp
        self._rng = np.random.default_rng((*seed, _OF_CROPS))
        self._warps = np.random.default_rng((*seed, _OF_WARPS))

    def around(self, rows: Array, *, tumour: Array | None = None) -> Place:
        """Draw a square around a random pixel of the brain of each row, moved to lie inside the slice.

        Args:
            rows: (B,) int64, slices that show some brain.
            tumour: (B,) int64, rows of label maps: around a pixel of tumour if they show any; -1: around one of the
                brain.
        """
        maps = np.full(len(rows), -1) if tumour is None else tumour
        corners = self._corners(rows, maps) if self.side else None
        warped = self._warps.random(len(rows)) < self.warp
        if not warped.any():
            return Place(corners, warped)
        side = self.side or self.store.data.shape[-1]
        return Place(corners, warped, augment.warp_grids(len(rows), side, self._warps))

    def read(self, rows: Array, place: Place, *, context: int = 0) -> Tensor:
        """Return what the squares show, as `SliceStore.read`."""
        images = self.store.read(rows, context=context, corners=place.corners, side=self.side)
        if place.grids is not None:
            chosen, (corners, side) = place.warped, self._wider(place)
            wide = self.store.read(rows[chosen], context=context, corners=corners, side=side)
            flags = torch.from_numpy(chosen)
            images[flags] = augment.warp_images(wide, place.grids[flags])
        return images

    def read_labels(self, rows: Array, place: Place) -> Tensor:
        """Return the classes of the squares, as `SliceStore.read_labels`."""
        labels = self.store.read_labels(rows, corners=place.corners, side=self.side)
        if place.grids is not None:
            chosen, (corners, side) = place.warped, self._wider(place)
            wide = self.store.read_labels(rows[chosen], corners=corners, side=side)
            flags = torch.from_numpy(chosen)
            labels[flags] = augment.warp_labels(wide, place.grids[flags])
        return labels

    def _corners(self, rows: Array, maps: Array) -> Array:
        corners = np.empty((len(rows), 2), dtype=np.int64)
        shape = self.store.data.shape[1:]
        for index, (row, labelled) in enumerate(zip(rows, maps, strict=True)):
            if self.store.labels is not None and labelled >= 0 and self.store.tumour[labelled]:
                centres = np.flatnonzero(self.store.labels[labelled])
            else:
                centres = np.flatnonzero(self.store.data[row] > -STEPS)
            centre = np.unravel_index(centres[self._rng.integers(len(centres))], shape)
            corners[index] = np.array(centre) - self.side // 2
        value: Array = np.clip(corners, 0, np.array(shape) - self.side)
        return value

    def _wider(self, place: Place) -> tuple[Array | None, int]:
        """Return corners and side of the warped squares with the margin that they may be read from."""
        if place.corners is None:
            return None, 0  # beyond a whole slice there is nothing
        margin = round(augment.MARGIN * self.side)
        return place.corners[place.warped] - margin, self.side + 2 * margin


def brain_box(images: Sequence[Tensor], *, stride: int) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box that holds what any of the images shows.

    Args:
        images: (N, C, H, W) in [-1, 1], background -1; H and W multiples of `stride`.
        stride: the number that the sides of the box are multiples of.
    """
    height, width = images[0].shape[-2:]
    shown = torch.zeros(height, width, dtype=torch.bool)
    for image in images:
        shown |= (image > -1).flatten(0, 1).any(dim=0)
    box = bounding_box(shown.numpy())
    if box is None:
        return slice(0, height), slice(0, width)
    rows, columns = (
        _widened(side, stride, length) for side, length in zip(box, (height, width), strict=True)
    )
    return rows, columns


def _widened(side: slice, stride: int, length: int) -> slice:
    """Return the side, as long as a multiple of `stride`, within 0..length."""
    size = -(-(side.stop - side.start) // stride) * stride
    start = min(side.start, length - size)
    return slice(start, start + size)
