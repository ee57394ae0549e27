"""What a method promises to training, completion and scoring, and what a training batch holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_IMAGE_DIMENSIONS = 4  # (B, 1, S, S)


@dataclass(frozen=True)
class Batch:
    """One training batch; B slices, every image (B, 1, S, S) float32 in [-1, 1].

    Attributes:
        x_src: the slices to translate.
        y_src: (B,) int64, their modality's index.
        x_ref, x_ref2: two slices of each target modality, of any patient.
        y_ref: (B,) int64, the target modality's index.
        x_pair: the source's own slice in the target modality, where the training data has it; else -1 everywhere.
        has_pair: (B,) bool, where it has.
    """

    x_src: Tensor
    y_src: Tensor
    x_ref: Tensor
    x_ref2: Tensor
    y_ref: Tensor
    x_pair: Tensor
    has_pair: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, images channels-last."""
        moved = {}
        for item in fields(self):
            value: Tensor = getattr(self, item.name).to(device, non_blocking=True)
            moved[item.name] = (
                value.contiguous(memory_format=torch.channels_last)
                if value.ndim == _IMAGE_DIMENSIONS
                else value
            )
        return Batch(**moved)


class Method(Protocol):
    """A way to learn translation between modalities; constructed as `METHODS[name](settings, modalities)`."""

    accepts: Literal["one", "many"]
    """Whether `synthesise` uses one source modality or all that a case has."""

    inference: tuple[str, ...]
    """The names of the `modules()` that completion needs: these are averaged (EMA) and saved as weights."""

    references: dict[str, Tensor]
    """Modality -> what `remember_references` made of its reference image; saved with the weights."""

    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""

    def optimisers(self) -> dict[str, Optimizer]:
        """All optimisers by name; made on first use, after the networks are on their device."""

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One iteration: updates the networks, returns the losses by name. A function of (weights, batch, step)."""

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """Fixes the style of each modality from one reference image, (1, 1, S, S) in [-1, 1]."""

    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str]
    ) -> dict[str, Tensor]:
        """Translates slices.

        Args:
            sources: modality -> (B, 1, H, W) in [-1, 1]; exactly one where `accepts` is "one".
            targets: modalities that `references` holds.

        Returns:
            target -> (B, 1, H, W), about [-1, 1], in the order of `targets`.
        """
