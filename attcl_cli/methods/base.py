"""What a method is: a module whose children are its networks, and what it promises to training and completion.

Knows no method. A new one subclasses `Method` in a file of its own; nothing else asks for its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from attcl_cli.data.sampling import Batch, Sampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.devices import Precision
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import SourceRule

Losses = dict[str, tuple[float, Tensor]]
"""Name -> (weight, loss); what is maximised has a weight below 0."""


class Part(Protocol):
    """Slices that go through the networks at once."""

    def __len__(self) -> int: ...


AnyPart = TypeVar("AnyPart", bound=Part)
AnyBatch = TypeVar("AnyBatch", bound=Batch)


@dataclass(frozen=True)
class Runtime:
    """How a training step is carried out; changes memory and speed, and results by rounding alone.

    Attributes:
        precision: `bf16` computes networks in bfloat16 if that is safe; weights and losses stay float32.
        micro_batch: slices that go through the networks at once; gradients of the parts are added up. 0: all.
        rank, processes: this process' number, and how many there are; each has its share of every batch.
        averaging: encloses a backward pass, after which the gradients of these parameters are means over all processes.
    """

    precision: Precision = "fp32"
    micro_batch: int = 0
    rank: int = 0
    processes: int = 1
    averaging: Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]] = (
        lambda _parameters: nullcontext()
    )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which networks are called."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def share(self, count: int) -> slice:
        """Return which of `count` slices of the whole batch are this process'."""
        own = count // self.processes
        return slice(self.rank * own, (self.rank + 1) * own)


class Method(nn.Module, ABC):
    """A way to learn translation between modalities; constructed as `METHODS[name](settings, modalities)`.

    A subclass makes its networks in `__init__`, after `super().__init__`: they are its children, so device, averaging
    (EMA: parameters averaged, buffers copied), saving and train/eval mode follow. It must say `sources`, `sampler`,
    `training_step` and `synthesise`; the rest has defaults. Weights are drawn from torch's global generator.
    """

    settings_class: ClassVar[type[Settings]] = Settings
    """Its settings, with presets and variants."""

    learns_labels: ClassVar[bool] = False
    """Whether training looks at segmentations, if there are any; it must do without them, too."""

    styled: ClassVar[bool] = False
    """Whether a target has styles: one fixed by a reference image, others drawn."""

    context: int = 0
    """Neighbouring slices seen on each side: sources then have 1 + 2 * context channels, the slice in the middle.

    The sampler must be given it, too.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    """The losses that say most about a run, for the first chart on its page; at most six."""

    settings: Any
    """Of `settings_class`; a subclass narrows the type."""

    inference: tuple[str, ...] = ()
    """The networks that completion needs: these are averaged and saved as weights. Empty: all."""

    references_only: tuple[str, ...] = ()
    """Those of `inference` that make references and nothing else: not saved, for the references are."""

    def __init__(self, settings: Any, modalities: Sequence[str]) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = tuple(modalities)
        self.rule = self.sources(settings, self.modalities)
        self.references: dict[str, Tensor] = {}
        self.runtime = Runtime()
        self._optimisers: dict[str, Optimizer] = {}

    @classmethod
    @abstractmethod
    def sources(cls, settings: Any, modalities: Sequence[str]) -> SourceRule:
        """Return which targets such a model makes, and from what (`methods.sources` has ready rules).

        Args:
            settings: of `settings_class`.
            modalities: those of the training slices.

        Raises:
            UsageError: the settings ask for what the modalities do not allow.
        """

    @classmethod
    def settled(cls, settings: Any, store: SliceStore) -> Any:
        """Return the settings of a run, with what the training slices decide and the user has left open.

        Called once they are packed, before any network is made; what it returns is written into the run's files. Called
        with its own result it returns that.
        """
        del store
        return settings

    @property
    def stride(self) -> int:
        """The number that height and width of an image must be multiples of."""
        return 1

    @property
    def phases(self) -> tuple[float, ...]:
        """The shares of the steps at which training begins to do something else, at another cost per step."""
        return ()

    @classmethod
    def phases_in_words(cls, settings: Any) -> tuple[tuple[float, str], ...]:
        """Return the phases of training for people: (the share of the steps at which it begins, what happens in it)."""
        del settings
        return ()

    @property
    def restarts(self) -> tuple[float, ...]:
        """The shares of the steps at which other networks begin to learn: learning rates rise and fall between them."""
        return ()

    @abstractmethod
    def sampler(self, store: SliceStore) -> Sampler:
        """Return what draws the training batches (`data.sampling` has ready samplers).

        Raises:
            AttclError: the store has nothing that this method learns from.
        """

    @abstractmethod
    def training_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Update the networks once, and return the losses by name, in the order in which they arise.

        A function of (weights, batch, step): randomness is drawn from (seed, step) alone.

        Args:
            batch: this process' share of what `sampler` draws.
            step: from 0.
        """

    @abstractmethod
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """Translate slices.

        Args:
            sources: modality -> (B, 1 + 2 * context, H, W) in [-1, 1], H and W multiples of `stride`: what `sources`
                answered for these targets, or more.
            targets: modalities that the rule names; with fewer sources than it asks for the result is no use.
            sample: draw the style of each target instead of taking the reference's; the same number draws the same.
                None if the method is not `styled`.

        Returns:
            target -> (B, 1, H, W), about [-1, 1], in the order of `targets`.
        """

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """Fix the style of each modality from one reference image, (1, 1, S, S) in [-1, 1], in `references`."""

    def learning_rate_of(self, network: str) -> float:
        """Return the step of a network's optimiser."""
        del network
        rate: float = self.settings.learning_rate
        return rate

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """Return all networks by name."""
        return dict(self.named_children())

    def inference_networks(self) -> dict[str, nn.Module]:
        """Return the networks that completion needs, by name."""
        networks = self.networks()
        return {name: networks[name] for name in self.inference or networks}

    def stored_networks(self) -> dict[str, nn.Module]:
        """Return the networks that weights hold, by name."""
        networks = self.inference_networks()
        return {name: net for name, net in networks.items() if name not in self.references_only}

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """Return what `target` is made from, or None (see `SourceRule`)."""
        return self.rule.sources_for(target, present)

    def optimisers(self) -> dict[str, Optimizer]:
        """Return the optimisers by network; made on first use, after the networks are on their device."""
        if not self._optimisers:
            for name, network in self.networks().items():
                parameters = list(network.parameters())
                if parameters:
                    self._optimisers[name] = self.optimiser_of(name, parameters)
        return self._optimisers

    def optimiser_of(self, network: str, parameters: list[nn.Parameter]) -> Optimizer:
        """Make the optimiser of a network, with its learning rate; Adam, unless a method needs another one."""
        s = self.settings
        return Adam(
            parameters,
            lr=self.learning_rate_of(network),
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
        )

    def parts(self, batch: AnyBatch) -> list[AnyBatch]:
        """Return the batch in parts that go through the networks at once (setting `micro_batch`)."""
        size = self.runtime.micro_batch or len(batch)
        return [batch.part(slice(start, start + size)) for start in range(0, len(batch), size)]

    def update(
        self,
        parts: Sequence[AnyPart],
        networks: Iterable[str],
        loss_of: Callable[[AnyPart], Losses],
        *,
        path: str,
    ) -> dict[str, Tensor]:
        """Move some networks one step down the weighted sum of the losses.

        Takes care of the parts of a batch, of autocast, of the mean over processes and of the optimisers.

        Args:
            parts: of the batch, one after the other; their gradients add up to those of the whole.
            networks: names of those that step; one without weights is passed over.
            loss_of: the losses of a part, each a mean over its slices.
            path: what the names of the losses begin with.

        Returns:
            The losses of the whole batch, unweighted, as `<path>_<name>`.
        """
        optimisers = self.optimisers()
        stepping = [optimisers[name] for name in networks if name in optimisers]
        for optimiser in stepping:
            optimiser.zero_grad(set_to_none=True)
        moved = [
            parameter
            for optimiser in stepping
            for group in optimiser.param_groups
            for parameter in group["params"]
        ]
        total = sum(len(part) for part in parts)
        logged: dict[str, Tensor] = {}
        for part in parts:
            share = len(part) / total
            with self.runtime.autocast(self.device):
                losses = loss_of(part)
            objective = torch.stack(
                [weight * value.float() for weight, value in losses.values()]
            ).sum()
            # The gradients of the last part complete those of the batch, which then travel.
            with self.runtime.averaging(moved) if part is parts[-1] else nullcontext():
                (share * objective).backward()
            for name, (_, value) in losses.items():
                key = f"{path}_{name}"
                logged[key] = logged.get(key, 0) + share * value.detach().float()
        for optimiser in stepping:
            optimiser.step()
        return logged
