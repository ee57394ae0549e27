"""What a method promises to training, completion and scoring, and what the training batches hold.

Two kinds of batches: single slices with a target each (`Batch`), and whole cases at one slice (`CaseBatch`). A method
says which it learns from (`batches`); `slices` draws them, and the loop knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attcl_cli.config import Precision, Settings

_IMAGE_DIMENSIONS = 4  # (B, 1, S, S)


@dataclass(frozen=True)
class SliceBatches:
    """Asks for batches of single slices, each with a modality to translate into (`Batch`).

    Attributes:
        pair_targets: share of targets drawn from the modalities that the source's case has.
    """

    pair_targets: float = 0.0


@dataclass(frozen=True)
class CaseBatches:
    """Asks for batches of whole cases at one slice, each with a true target (`CaseBatch`).

    Attributes:
        needs: target -> the sources that a case must have to be learned from; none named, one of any will do.
        leave_out: share of cases of which a random part of the sources is left out.
        tumour_slices: share of slices drawn from those with tumour, where a case has a segmentation.
    """

    needs: Mapping[str, tuple[str, ...]]
    leave_out: float = 0.0
    tumour_slices: float = 0.0


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
class CaseBatch:
    """One training batch of B cases, each at one slice, with M modalities in the method's order.

    Attributes:
        images: (B, M, S, S) float32 in [-1, 1]; -1 everywhere where the case lacks the modality.
        sources: (B, M) bool, what the target is to be made from: one or more, all of them present, the target never.
        target: (B,) int64, the modality to make, which the case has.
        labels: (B, S, S) int64, 0 background, 1 necrosis, 2 oedema, 3 enhancing tumour; 0 where there is none.
        has_labels: (B,) bool, whether the case has a segmentation.
        label_share: share of cases with a segmentation in the batch that this one is a part of; left out, this batch is
            the whole.
    """

    images: Tensor
    sources: Tensor
    target: Tensor
    labels: Tensor
    has_labels: Tensor
    label_share: float | None = None

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device) -> CaseBatch:
        """The batch on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def part(self, chosen: slice) -> CaseBatch:
        """Some of the cases, as a part of this batch."""
        share = self.label_share
        if share is None:
            share = float(self.has_labels.float().mean())
        return replace(self._each(lambda value: value[chosen]), label_share=share)

    def image(self, modality: Tensor) -> Tensor:
        """The slice of each case in one modality: (B,) int64 -> (B, 1, S, S)."""
        rows = torch.arange(len(self), device=modality.device)
        return self.images[rows, modality][:, None]

    def _each(self, change: Callable[[Tensor], Tensor]) -> CaseBatch:
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        share = tensors.pop("label_share")
        changed = {name: change(value) for name, value in tensors.items()}
        return CaseBatch(**changed, label_share=share)


@dataclass(frozen=True)
class Runtime:
    """How a training step is carried out; changes memory and speed, and results by rounding alone.

    Attributes:
        precision: `bf16` computes networks in bfloat16 where that is safe; weights and losses stay float32.
        micro_batch: slices that go through the networks at once; gradients of the parts are added up. 0: all.
        rank, processes: this process' number, and how many there are; each has its share of every batch.
        average: replaces the gradients of these parameters by their mean over all processes.
    """

    precision: Precision = "fp32"
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

    accepts: ClassVar[Literal["one", "many"]]
    """Whether `synthesise` uses one source modality or all that a case has."""

    learns_labels: ClassVar[bool]
    """Whether training looks at segmentations, where there are any; it must do without them, too."""

    styled: ClassVar[bool]
    """Whether a target has looks: one fixed by a reference image, others drawn. Without, `references` stays empty."""

    shown: ClassVar[tuple[str, ...]]
    """The losses that say most about a run, for the progress line."""

    inference: tuple[str, ...]
    """The names of the `modules()` that completion needs: these are averaged (EMA) and saved as weights."""

    references: dict[str, Tensor]
    """Modality -> what `remember_references` made of its reference image; saved with the weights."""

    runtime: Runtime
    """How steps are carried out; set by the loop."""

    batches: SliceBatches | CaseBatches
    """Which batches it learns from."""

    def __init__(self, settings: Settings, modalities: tuple[str, ...]) -> None:
        """Makes the networks; weights are drawn from torch's global generator."""

    @staticmethod
    def needs(settings: Settings, modalities: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Which targets such a method makes, and which sources each cannot do without.

        Raises:
            UsageError: the settings ask for what the modalities do not allow.
        """

    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""

    def optimisers(self) -> dict[str, Optimizer]:
        """All optimisers by name; made on first use, after the networks are on their device."""

    def training_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """One iteration: updates the networks, returns the losses by name, in the order in which they arise.

        A function of (weights, batch, step); `batch` is this process' share, of the kind that `batches` asks for.
        """

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """Fixes the style of each modality from one reference image, (1, 1, S, S) in [-1, 1]."""

    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """Translates slices.

        Args:
            sources: modality -> (B, 1, H, W) in [-1, 1]; exactly one where `accepts` is "one", in any order where it is
                "many".
            targets: modalities that `needs` names; with fewer sources than it asks for the result is no use.
            sample: draw the look of each target instead of taking the reference's; the same number draws the same.
                None where the method is not `styled`.

        Returns:
            target -> (B, 1, H, W), about [-1, 1], in the order of `targets`.
        """
