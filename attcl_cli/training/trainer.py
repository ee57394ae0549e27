"""A method in training: its average, its best weights, its checkpoint and its sample pictures.

Leaves the loop to `loop`, what is drawn to the method's sampler, and what a method does to the method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attcl_cli import devices
from attcl_cli.data.sampling import Batch
from attcl_cli.data.slices import SliceStore
from attcl_cli.data.volume_statistics import Described, describe_store
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, UsageError, quoted
from attcl_cli.files import copy_whole
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method, Runtime
from attcl_cli.methods.finite import require_finite_tensors
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import WEIGHTS_FILE, WeightsInfo, save_weights, tensors_below
from attcl_cli.processes import Processes
from attcl_cli.training import samples
from attcl_cli.training.loop import (
    LoopHooks,
    Schedule,
    run_loop,
    share_of,
)
from attcl_cli.training.state import (
    BEST_FILE,
    STATE_FILE,
    TrainingState,
    load_state,
    optimiser_tensors,
    restore_optimisers,
    save_state,
)
from attcl_cli.training.stats import STATS_FILE, log_stats

VALIDATION_SSIM = "validation_ssim"  # in stats.jsonl
_SMALLER_STEPS = "--set learning_rate=5e-5"
_BYTES_OF_A_WEIGHT = (
    16  # at least: itself, its gradient, a moment of the optimiser, and its average
)


@dataclass(frozen=True)
class Hooks(LoopHooks):
    """What the caller wants to see of a run; all may be left out.

    Attributes:
        draw: writes a sample picture: path, column titles, rows of (row title, images (S, S) in [-1, 1]).
        validate: scores the averaged method, higher is better; called before each checkpoint, and the weights that
            score best are kept. None: the last ones are.
    """

    draw: Callable[[Path, list[str], samples.Rows], None] = lambda _path, _titles, _rows: None
    validate: Callable[[Method], float] | None = None


def train(
    settings: Settings,
    store: SliceStore,
    run_dir: Path,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    processes: Processes = Processes(),
    resume: bool = False,
    hooks: Hooks = Hooks(),
    note: str = "",
) -> int:
    """Train a method, and leave weights, checkpoint, statistics and sample pictures in `run_dir`.

    Args:
        settings: what is trained, and how long.
        store: the training slices.
        run_dir: exists.
        device: of this process.
        precision: `bf16` computes networks in bfloat16; weights and losses stay float32.
        processes: who takes part; each has its share of every batch, the main one writes.
        resume: continue from the checkpoint in `run_dir`.
        hooks: progress, pictures and validation.
        note: stands on the weights' card.

    Returns:
        The steps that the weights in `run_dir` have seen.

    Raises:
        UsageError: the batch cannot be shared by the processes, or not be taken in parts.
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: a loss is no longer finite, or the device is out of memory; the last good checkpoint is kept.
    """
    share_of(settings.batch_size, processes)  # before networks are made
    trainer = Trainer(settings, store, run_dir, device, hooks, note)
    trainer.method.runtime = Runtime(
        precision=precision,
        micro_batch=settings.micro_batch,
        rank=processes.rank,
        processes=processes.count,
        averaging=processes.averaging,
    )
    _require_whole_batches(trainer.method, settings, processes)
    first = trainer.restore() if resume else 0
    run_loop(
        trainer,
        trainer.method.sampler(store).batch,
        Schedule(
            steps=settings.steps,
            log_every=settings.log_every,
            save_every=settings.save_every,
            sample_every=settings.sample_every,
            decay=settings.learning_rate_decay,
            warm_up=settings.warm_up,
            restarts=trainer.method.restarts,
        ),
        run_dir,
        first=first,
        batch_size=settings.batch_size,
        device=device,
        resume_hint=f"attcl train --resume {quoted(run_dir)}",
        not_finite_hint="the last good checkpoint, if any, is kept; take smaller steps: "
        f"attcl train --resume {quoted(run_dir)} {_SMALLER_STEPS}, or start a new run with {_SMALLER_STEPS}",
        processes=processes,
        hooks=hooks,
    )
    return trainer.best_step


class Trainer:
    """A method in training, its average, and their files; a `Trainee` of the loop."""

    def __init__(
        self,
        settings: Settings,
        store: SliceStore,
        run_dir: Path,
        device: torch.device,
        hooks: Hooks,
        note: str,
    ) -> None:
        self.settings, self.store, self.run_dir = settings, store, run_dir
        self.device, self.hooks, self.note = device, hooks, note
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # every process starts from the same weights
            self.method = METHODS[settings.method](settings, store.modalities)
        _require_memory(self.method, device)
        for network in self.method.networks().values():
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What is averaged is what completion will use, so it samples and validates in eval mode.
        self.averaged = copy.deepcopy(self.method).eval().requires_grad_(requires_grad=False)
        self.references = _choose_references(store, settings.seed)
        self.best: float | None = None
        self.best_step = 0

    def optimisers(self) -> Mapping[str, Optimizer]:
        """See `Trainee`."""
        return self.method.optimisers()

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """See `Trainee`."""
        losses = self.method.training_step(batch, step)
        self.average(step)
        return losses

    def average(self, step: int) -> None:
        """Move the averaged weights, which start as an exact copy; with `ema_warm_up` they forget faster at first.

        Buffers are copied: running statistics are averages already, and others (counters, masks) have no mean.
        """
        decay = self.settings.ema_decay
        if self.settings.ema_warm_up:
            decay = min(decay, (1 + step) / (10 + step))
        networks = self.method.networks()
        with torch.no_grad():
            for name, averaged in self.averaged.inference_networks().items():
                parameters: list[Tensor] = list(networks[name].parameters())
                if parameters:
                    torch._foreach_lerp_([*averaged.parameters()], parameters, 1 - decay)
                buffers = zip(averaged.buffers(), networks[name].buffers(), strict=True)
                for buffer, current in buffers:
                    buffer.copy_(current)

    def judge(self, step: int) -> None:
        """See `Trainee`: score the averaged weights; the best or the newest are kept (`keep`).

        Without validation it is the newest.

        Raises:
            AttclError: a weight is no longer finite; what was saved before is kept.
        """
        for network in self.averaged.inference_networks().values():
            require_finite_tensors(network.state_dict(), self.run_dir / WEIGHTS_FILE, saving=True)
        self._remember_references()
        score = self.hooks.validate(self.averaged) if self.hooks.validate else None
        if score is not None:
            record = {"step": step, VALIDATION_SSIM: score}
            log_stats(self.run_dir / STATS_FILE, record)
            self.hooks.on_log(record)
        better = self.best is None or score is None or score > self.best
        if better or self.settings.keep == "last":
            self._keep_weights(step, score)

    def save(self, step: int) -> None:
        """See `Trainee`."""
        newest = self.settings.keep == "last"
        unjudged = self.hooks.validate is None or self.best is None
        if (unjudged or newest) and self.best_step < step:  # stopped before these were judged
            self._keep_weights(step, None)
        best = self.best is not None and self.best_step == step and not newest
        file = self.run_dir / (BEST_FILE if best else STATE_FILE)
        save_state(file, self._state(step))
        if best:  # first, since a run that is broken off in between repeats what the last one lacks
            copy_whole(file, self.run_dir / STATE_FILE)

    def sample(self, step: int) -> None:
        """See `Trainee`: some training slices, and what the averaged weights make of them."""
        self._remember_references()
        titles, rows = samples.sample_rows(
            self.averaged,
            self.store,
            seed=self.settings.seed,
            device=self.device,
            boxed=self.settings.crop > 0,
        )
        self.hooks.draw(self.run_dir / "samples" / f"step-{step:06d}.png", titles, rows)

    def explain_memory(self) -> tuple[str, str]:
        """See `Trainee`."""
        at_once = self.settings.micro_batch or self.settings.batch_size
        half = max(at_once // 2, 1)
        smaller = (
            f"--set batch_size={half}"
            if _batch_norms(self.method)
            else f"--set micro_batch={half} (the same results in smaller parts)"
        )
        bf16 = " or --precision bf16" if self.method.runtime.precision == "fp32" else ""
        return f"{at_once} slices of {self.settings.image_size} pixels", smaller + bf16

    def restore(self) -> int:
        """Restore everything as it was at the checkpoint, and return its step.

        Raises:
            UsageError: the checkpoint does not fit these settings or modalities.
        """
        state = load_state(self.run_dir / STATE_FILE)
        try:
            for name, network in self.method.networks().items():
                network.load_state_dict(tensors_below(f"module.{name}.", state.tensors))
            for name, network in self.averaged.inference_networks().items():
                network.load_state_dict(tensors_below(f"average.{name}.", state.tensors))
            restore_optimisers(self.method.optimisers(), state.tensors)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(
                f"--resume: {self.run_dir / STATE_FILE} does not fit these settings or modalities, "
                "expected those that the run began with",
                "leave out the --set and --config that change networks, or start a new run",
                code="checkpoint-does-not-fit",
            ) from error
        self.best, self.best_step = state.extra.get("best"), state.extra.get("best_step", 0)
        return state.step

    @cached_property
    def _described(self) -> Described:
        """The training volumes in numbers, which completion compares a case with."""
        return describe_store(self.store)

    def _keep_weights(self, step: int, score: float | None) -> None:
        self._remember_references()
        self.best, self.best_step = score, step
        info = WeightsInfo(
            settings=self.settings,
            modalities=self.store.modalities,
            scales=self.store.scales,
            references={name: described for name, (_, described) in self.references.items()},
            trained_on=self.store.trained_on,
            steps=step,
            quantiles=self._described.quantiles,
            training_statistics=self._described.statistics,
            background=self.store.background,
        )
        save_weights(self.run_dir / WEIGHTS_FILE, self.averaged, info, note=self.note)

    def _state(self, step: int) -> TrainingState:
        tensors = optimiser_tensors(self.method.optimisers())
        for prefix, networks in (
            ("module", self.method.networks()),
            ("average", self.averaged.inference_networks()),
        ):
            for name, network in networks.items():
                for key, value in network.state_dict().items():
                    tensors[f"{prefix}.{name}.{key}"] = value
        extra = {"best": self.best, "best_step": self.best_step}
        return TrainingState(step=step, tensors=tensors, extra=extra)

    def _remember_references(self) -> None:
        images = {
            name: self.store.read(np.array([row])).to(self.device)
            for name, (row, _) in self.references.items()
        }
        self.averaged.remember_references(images)


def _batch_norms(method: Method) -> list[str]:
    """Return the names of the layers that normalise over the slices of a batch."""
    return [
        name
        for name, layer in method.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]


def _require_memory(method: Method, device: torch.device) -> None:
    """Refuse networks that cannot be trained in the memory of a device: on a CPU, the system would kill the process.

    Raises:
        AttclError: they are too large, whatever the batch is.
    """
    memory = devices.memory_of(device)
    weights = sum(parameter.numel() for parameter in method.parameters())
    least = weights * _BYTES_OF_A_WEIGHT
    if memory is not None and least > memory:
        raise AttclError(
            f"{device}: networks of {weights / 1e6:,.1f} million weights take {least / 1e9:,.2f} GB at least "
            f"in training, expected no more than the {memory / 1e9:,.2f} GB that are there",
            "choose a smaller --preset, or another --device",
            code="networks-too-large",
        )


def _require_whole_batches(method: Method, settings: Settings, processes: Processes) -> None:
    """Check that a method with batch norm sees a batch at once: otherwise parts would not add up to the whole.

    Raises:
        UsageError: there is batch norm, and a batch is taken in parts or shared by processes.
    """
    layers = _batch_norms(method)
    in_parts = 0 < settings.micro_batch < settings.batch_size
    if layers and (in_parts or processes.count > 1):
        how = (
            f"setting micro_batch: {settings.micro_batch}"
            if in_parts
            else f"{processes.count} processes"
        )
        raise UsageError(
            f"{how}, expected whole batches: method {settings.method} has batch norm ({layers[0]}), "
            "so parts would not add up to the whole",
            "train in one process without micro_batch, with a smaller batch_size if memory is short",
            code="batch-norm-in-parts",
        )


def _choose_references(store: SliceStore, seed: int) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return one reference slice per modality (Section 3.6): the middle slice of a seeded choice of case."""
    chosen = {}
    for index, modality in enumerate(store.modalities):
        entries = [entry for entry in store.entries if entry.modality == modality]
        entry = entries[int(np.random.default_rng((seed, index)).integers(len(entries)))]
        offset = entry.count // 2
        chosen[modality] = (
            entry.start + offset,
            {"case": entry.case, "slice": entry.first + offset},
        )
    return chosen
