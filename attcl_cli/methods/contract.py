"""What a method promises to training, completion and scoring, and what a training batch holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

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
        pair_share: share of slices with a pair in the batch that this one is a part of, so that parts add up to the
            whole; left out, this batch is the whole.
    """

    x_src: Tensor
    y_src: Tensor
    x_ref: Tensor
    x_ref2: Tensor
    y_ref: Tensor
    x_pair: Tensor
    has_pair: Tensor
    pair_share: float | None = None

    def __len__(self) -> int:
        return len(self.y_src)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, images channels-last."""

        def move(value: Tensor) -> Tensor:
            value = value.to(device, non_blocking=True)
            if value.ndim != _IMAGE_DIMENSIONS:
                return value
            return value.contiguous(memory_format=torch.channels_last)

        return self._each(move)

    def part(self, chosen: slice) -> Batch:
        """Some of the slices, as a part of this batch."""
        share = self.pair_share
        if share is None:
            share = float(self.has_pair.float().mean())
        return replace(self._each(lambda value: value[chosen]), pair_share=share)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        share = tensors.pop("pair_share")
        return Batch(**{name: change(value) for name, value in tensors.items()}, pair_share=share)


@dataclass(frozen=True)
class Runtime:
    """How a training step is carried out; changes memory and speed, and results by rounding alone.

    Attributes:
        precision: `bf16` computes networks in bfloat16 where that is safe; weights and losses stay float32.
        micro_batch: slices that go through the networks at once; gradients of the parts are added up. 0: all.
        rank, processes: this process' number, and how many there are; each has its share of every batch.
        average: replaces the gradients of these parameters by their mean over all processes.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int = 0
    rank: int = 0
    processes: int = 1
    average: Callable[[Sequence[nn.Parameter]], None] = lambda _parameters: None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which networks are called."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def share(self, count: int) -> slice:
        """Which of `count` slices of the whole batch are this process'."""
        own = count // self.processes
        return slice(self.rank * own, (self.rank + 1) * own)


class Method(Protocol):
    """A way to learn translation between modalities; constructed as `METHODS[name](settings, modalities)`."""

    accepts: Literal["one", "many"]
    """Whether `synthesise` uses one source modality or all that a case has."""

    inference: tuple[str, ...]
    """The names of the `modules()` that completion needs: these are averaged (EMA) and saved as weights."""

    references: dict[str, Tensor]
    """Modality -> what `remember_references` made of its reference image; saved with the weights."""

    runtime: Runtime
    """How steps are carried out; set by the loop."""

    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""

    def optimisers(self) -> dict[str, Optimizer]:
        """All optimisers by name; made on first use, after the networks are on their device."""

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One iteration: updates the networks, returns the losses by name, in the order in which they arise.

        A function of (weights, batch, step); `batch` is this process' share.
        """

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """Fixes the style of each modality from one reference image, (1, 1, S, S) in [-1, 1]."""

    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """Translates slices.

        Args:
            sources: modality -> (B, 1, H, W) in [-1, 1]; exactly one where `accepts` is "one".
            targets: modalities that `references` holds.
            sample: draw the look of each target instead of taking the reference's; the same number draws the same.

        Returns:
            target -> (B, 1, H, W), about [-1, 1], in the order of `targets`.
        """
