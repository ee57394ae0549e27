"""Random squares of stored slices, so that networks train on full-resolution pixels without seeing whole slices.

Knows places in a store. Which slices are drawn is left to `sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attcl_cli.data.intensities import Array, bounding_box
from attcl_cli.data.slices import STEPS, SliceStore


class Crops:
    """The squares of one batch, and what they show; whole slices if the side is 0.

    They have a random generator of their own: with crops, a batch shows the same slices as without.
    """

    def __init__(self, store: SliceStore, side: int, seed: tuple[int, ...]) -> None:
        """Prepare to draw.

        Args:
            store: the slices.
            side: of the squares, in pixels.
            seed: of the batch.
        """
        self.store, self.side = store, side
        self._rng = np.random.default_rng(seed)

    def around(self, rows: Array, *, tumour: Array | None = None) -> Array | None:
        """Draw a square around a random pixel of the brain of each row, moved to lie inside the slice.

        Args:
            rows: (B,) int64, slices that show some brain.
            tumour: (B,) int64, rows of label maps: around a pixel of tumour if they show any; -1: around one of the
                brain.

        Returns:
            (B, 2) int64, the upper left (y, x) of the squares; None: whole slices.
        """
        if not self.side:
            return None
        maps = np.full(len(rows), -1) if tumour is None else tumour
        corners = np.empty((len(rows), 2), dtype=np.int64)
        shape = self.store.data.shape[1:]
        for index, (row, labelled) in enumerate(zip(rows, maps, strict=True)):
            if self.store.labels is not None and labelled >= 0 and self.store.tumour[labelled]:
                centres = np.flatnonzero(self.store.labels[labelled])
            else:
                centres = np.flatnonzero(self.store.data[row] > -STEPS)
            centre = np.unravel_index(centres[self._rng.integers(len(centres))], shape)
            corners[index] = np.array(centre) - self.side // 2
        return np.clip(corners, 0, np.array(shape) - self.side)

    def read(self, rows: Array, corners: Array | None, *, context: int = 0) -> Tensor:
        """Return what the squares show, as `SliceStore.read`."""
        return self.store.read(rows, context=context, corners=corners, side=self.side)

    def read_labels(self, rows: Array, corners: Array | None) -> Tensor:
        """Return the classes of the squares, as `SliceStore.read_labels`."""
        return self.store.read_labels(rows, corners=corners, side=self.side)


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
