"""Training batches: single slices with a target, whole cases, unpaired slices.

Knows tensors. Who draws them from a slice store is left to `sampling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

_IMAGE_DIMENSIONS = 4  # (B, 1, S, S)


class Batch(Protocol):
    """What a sampler draws, and a training step learns from."""

    def __len__(self) -> int:
        """Return the number of slices, or of cases."""

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""

    def part(self, chosen: slice) -> Self:
        """Return some of its slices, as a part of this batch."""


@dataclass(frozen=True)
class DomainBatch:
    """Slices with a modality each to translate into; B slices, every image (B, 1, S, S) float32 in [-1, 1].

    Attributes:
        x_src: the slices to translate, (B, 1 + 2 * context, S, S) with their neighbours.
        y_src: (B,) int64, their modality's index.
        x_ref, x_ref2: two slices of each target modality, of any patient; (B, 0, S, S) where none were drawn.
        y_ref: (B,) int64, the target modality's index.
        x_pair: the source's own slice in the target modality if the training data has it, otherwise -1 everywhere.
        has_pair: (B,) bool, whether it has.
        pair_share: share of slices with a pair in the batch that this one is a part of, so that parts add up to the
            whole; None: this batch is the whole.
        x_all: (B, N, 1 + 2 * context, S, S), the place of `x_src` in each of the N modalities of the store, in their
            order; -1 everywhere if it is not `given`. None: the sampler draws one source.
        given: (B, N) bool, the modalities that the target is made from: always y_src, and never y_ref unless that is
            the same.
        x_taught: (B, N, S, S), the true slices of all modalities that the case has and that are not given; otherwise -1
            everywhere.
        taught: (B, N) bool, which these are.
        taught_share: their share in the batch that this one is a part of, of all B * N.
    """

    x_src: Tensor
    y_src: Tensor
    x_ref: Tensor
    x_ref2: Tensor
    y_ref: Tensor
    x_pair: Tensor
    has_pair: Tensor
    pair_share: float | None = None
    x_all: Tensor | None = None
    given: Tensor | None = None
    x_taught: Tensor | None = None
    taught: Tensor | None = None
    taught_share: float | None = None

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.y_src)

    def to(self, device: torch.device) -> DomainBatch:
        """Return the batch on a device, images channels-last."""

        def move(value: Tensor) -> Tensor:
            value = value.to(device, non_blocking=True)
            if value.ndim != _IMAGE_DIMENSIONS:
                return value
            return value.contiguous(memory_format=torch.channels_last)

        return self._each(move)

    def pin_memory(self) -> DomainBatch:
        """Return the batch in memory that a GPU fetches by itself; torch's `DataLoader` asks for it."""
        return self._each(Tensor.pin_memory)

    def part(self, chosen: slice) -> DomainBatch:
        """Return some of the slices, as a part of this batch."""
        share, taught_share = self.pair_share, self.taught_share
        if share is None:
            share = float(self.has_pair.float().mean())
        if taught_share is None and self.taught is not None:
            taught_share = float(self.taught.float().mean())
        cut = self._each(lambda value: value[chosen])
        return replace(cut, pair_share=share, taught_share=taught_share)

    def halved(self) -> DomainBatch:
        """Return the batch at half the resolution, each pixel the mean of four; S is even."""
        return self._each(_halved)

    def _each(self, change: Callable[[Tensor], Tensor]) -> DomainBatch:
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        shares = {name: tensors.pop(name) for name in ("pair_share", "taught_share")}
        changed: dict[str, Any] = {
            name: None if value is None else change(value) for name, value in tensors.items()
        }
        return DomainBatch(**changed, **shares)


@dataclass(frozen=True)
class CaseBatch:
    """One training batch of B cases, each at one slice, with M modalities in the method's order.

    Attributes:
        images: (B, M, S, S) float32 in [-1, 1]; -1 everywhere if the case lacks the modality.
        neighbours: (B, M, 2 * context, S, S), the slices before each, then those after it; None without context.
        sources: (B, M) bool, what the target is to be made from: one or more, all of them present, the target never.
        target: (B,) int64, the modality to make, which the case has.
        labels: (B, S, S) int64, the classes of `labels.CLASSES`; 0 everywhere without a segmentation.
        has_labels: (B,) bool, whether the case has a segmentation.
        label_share: share of cases with a segmentation in the batch that this one is a part of; None: this batch is the
            whole.
        taught_share: the same of `taught`, of all B * M.
    """

    images: Tensor
    sources: Tensor
    target: Tensor
    labels: Tensor
    has_labels: Tensor
    label_share: float | None = None
    neighbours: Tensor | None = None
    taught_share: float | None = None

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.target)

    def to(self, device: torch.device) -> CaseBatch:
        """Return the batch on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> CaseBatch:
        """Return the batch in memory that a GPU fetches by itself; torch's `DataLoader` asks for it."""
        return self._each(Tensor.pin_memory)

    def part(self, chosen: slice) -> CaseBatch:
        """Return some of the cases, as a part of this batch."""
        shares = (self.label_share, self.taught_share)
        whole = (self.has_labels, self.taught)
        label_share, taught_share = (
            float(flags.float().mean()) if share is None else share
            for share, flags in zip(shares, whole, strict=True)
        )
        part = self._each(lambda value: value[chosen])
        return replace(part, label_share=label_share, taught_share=taught_share)

    def halved(self) -> CaseBatch:
        """Return the batch at half the resolution, each pixel the mean of four, each label one of them; S is even."""
        halved = self._each(_halved)
        return replace(halved, labels=self.labels[:, ::2, ::2])

    @property
    def taught(self) -> Tensor:
        """The modalities that can be learned at once, (B, M) bool: shown, and not among the sources."""
        return (self.images > -1).flatten(2).any(dim=2) & ~self.sources

    def image(self, modality: Tensor) -> Tensor:
        """Return the slice of each case in one modality: (B,) int64 -> (B, 1, S, S)."""
        rows = torch.arange(len(self), device=modality.device)
        return self.images[rows, modality][:, None]

    def source(self, modality: int) -> Tensor:
        """Return a modality as networks see it, with its neighbours: its index -> (B, 1 + 2 * context, S, S)."""
        image = self.images[:, modality, None]
        if self.neighbours is None:
            return image
        before, after = self.neighbours[:, modality].chunk(2, dim=1)
        return torch.cat([before, image, after], dim=1)

    def _each(self, change: Callable[[Tensor], Tensor]) -> CaseBatch:
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        shares = {name: tensors.pop(name) for name in ("label_share", "taught_share")}
        changed: dict[str, Any] = {
            name: None if value is None else change(value) for name, value in tensors.items()
        }
        return CaseBatch(**changed, **shares)


def _halved(value: Tensor) -> Tensor:
    """Return images (B, ..., S, S) with each pixel the mean of four; anything else as it is."""
    if value.ndim < _IMAGE_DIMENSIONS:
        return value
    planes = F.avg_pool2d(value.flatten(0, -3)[:, None], 2)
    return planes.reshape(*value.shape[:-2], *planes.shape[-2:])
