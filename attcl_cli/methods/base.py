"""What a method promises to training, completion and scoring, and what the training batches hold.

Two kinds of batches: single slices with a target each (`Batch`), and whole cases at one slice (`CaseBatch`). A method
says which it learns from (`batches`); `slices` draws them, and the loop knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attcl_cli.data.sampling import CaseBatches, SliceBatches
from attcl_cli.devices import Precision
from attcl_cli.methods.settings import Settings


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
