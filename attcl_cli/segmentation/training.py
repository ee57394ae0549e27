"""A segmenter in training: its loss and step, its best weights, its checkpoint.

The loop is `training.loop`, so a stopped run resumes as if it had not stopped; batches are left to `slices`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from attcl_cli.data.labels import REGIONS, mask_of
from attcl_cli.data.slices import STEPS
from attcl_cli.devices import Precision
from attcl_cli.errors import UsageError
from attcl_cli.methods.finite import require_finite_tensors
from attcl_cli.methods.weights import WEIGHTS_FILE, tensors_below
from attcl_cli.processes import Processes
from attcl_cli.segmentation.metrics import dice
from attcl_cli.segmentation.network import (
    SegmenterInfo,
    in_parts,
    load_tensors,
    make_network,
    most_probable,
    save_segmenter,
)
from attcl_cli.segmentation.slices import SegmentationStore, SliceBatch, SliceSampler
from attcl_cli.training.loop import (
    LoopHooks,
    Schedule,
    run_loop,
    share_of,
)
from attcl_cli.training.state import (
    STATE_FILE,
    TrainingState,
    load_state,
    optimiser_tensors,
    restore_optimisers,
    save_state,
)
from attcl_cli.training.stats import STATS_FILE, log_stats

VALIDATION_DICE = "validation_dice"  # in stats.jsonl
_NO_HOOKS = LoopHooks()
_OLD_MOMENTUM, _MOMENTUM = "momentum.{}", "optimiser.network.{}.momentum_buffer"  # in a checkpoint


def train(
    info: SegmenterInfo,
    store: SegmentationStore,
    folder: Path,
    *,
    validation: SegmentationStore | None,
    device: torch.device,
    precision: Precision = "fp32",
    processes: Processes = Processes(),
    resume: bool = False,
    resume_hint: str = "attcl segment --resume segment",
    workers: int = 2,
    hooks: LoopHooks = _NO_HOOKS,
) -> int:
    """Train a segmenter, and leave weights, checkpoint and statistics in `folder`.

    Args:
        info: its settings and channels.
        store: the training slices.
        folder: exists.
        validation: slices of the validation cases; the weights that do best on them are kept. None: the last are.
        device: of this process.
        precision: `bf16` computes the network in bfloat16; weights and losses stay float32.
        processes: who takes part; each has its share of every batch, over which its Dice is taken.
        resume: continue from the checkpoint in `folder`.
        resume_hint: the command that resumes the run.
        workers: batches read ahead.
        hooks: what the caller wants to see.

    Returns:
        The steps that the weights in `folder` have seen.

    Raises:
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: a loss is no longer finite, or the device is out of memory; the last good checkpoint is kept.
    """
    settings = info.settings
    share_of(settings.batch_size, processes)  # before the network is made
    trainer = SegmenterTrainer(
        info, folder, validation=validation, device=device, precision=precision, processes=processes
    )
    first = trainer.restore() if resume else 0
    sampler = SliceSampler(
        store,
        batch_size=settings.batch_size,
        seed=settings.seed,
        tumour_share=settings.tumour_share,
        augment=settings.augment,
    )
    run_loop(
        trainer,
        sampler.batch,
        Schedule(
            steps=settings.steps,
            log_every=settings.log_every,
            save_every=settings.validate_every,
            decay=settings.learning_rate_decay,
        ),
        folder,
        first=first,
        batch_size=settings.batch_size,
        device=device,
        resume_hint=resume_hint,
        # A resumed segmenter keeps its settings, so smaller steps need a new run.
        not_finite_hint="start a new run with --set learning_rate=1e-3",
        processes=processes,
        hooks=hooks,
        ahead=max(workers, 1),
    )
    return trainer.best_step


def validate(network: nn.Module, store: SegmentationStore, device: torch.device) -> float:
    """Return the mean Dice over cases and regions, at the network's own resolution."""
    network.eval()
    values = []
    for entry in store.entries:
        predicted = np.concatenate(
            [
                most_probable(network, store.images[rows].astype(np.float32) / STEPS, device)
                for rows in in_parts(np.arange(entry.start, entry.start + entry.count))
            ]
        )
        truth = store.classes[entry.rows]
        values += [dice(mask_of(predicted, region), mask_of(truth, region)) for region in REGIONS]
    return float(np.mean(values))


class SegmenterTrainer:
    """A segmenter in training, and its files; a `Trainee` of the loop."""

    def __init__(
        self,
        info: SegmenterInfo,
        folder: Path,
        *,
        validation: SegmentationStore | None,
        device: torch.device,
        precision: Precision = "fp32",
        processes: Processes = Processes(),
    ) -> None:
        """Make the network at its random start, and its optimiser."""
        from monai.losses.dice import DiceCELoss

        settings = info.settings
        self.info, self.folder, self.validation = info, folder, validation
        self.device, self.precision, self.processes = device, precision, processes
        network = make_network(settings, len(info.channels)).to(device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = SGD(
            self.network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        # Dice over the batch as a whole: most slices lack most classes.
        self.criterion = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True
        )
        self.best: float | None = None
        self.best_step = 0

    def optimisers(self) -> Mapping[str, Optimizer]:
        """See `Trainee`."""
        return {"network": self.optimiser}

    def step(self, batch: SliceBatch, step: int) -> Mapping[str, Tensor]:
        """See `Trainee`."""
        del step  # nothing is random here
        self.network.train()
        images, classes = batch.varied()
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(images)
        loss: Tensor = self.criterion(logits.float(), classes)
        self.optimiser.zero_grad(set_to_none=True)
        with self.processes.averaging(list(self.network.parameters())):
            loss.backward()
        self.optimiser.step()
        return {"loss": loss.detach()}

    def judge(self, step: int) -> None:
        """See `Trainee`: the best weights are kept, without validation cases the newest."""
        score = None
        weights = dict(self.network.named_parameters())
        require_finite_tensors(weights, self.folder / WEIGHTS_FILE, saving=True)
        if self.validation is not None:
            score = validate(self.network, self.validation, self.device)
            log_stats(self.folder / STATS_FILE, {"step": step, VALIDATION_DICE: score})
        if self.best is None or score is None or score > self.best:
            self.best, self.best_step = score, step
            info = replace(self.info, steps=step)
            save_segmenter(self.folder / WEIGHTS_FILE, self.network, info)

    def save(self, step: int) -> None:
        """See `Trainee`."""
        tensors = {f"network.{key}": value for key, value in self.network.named_parameters()}
        tensors |= optimiser_tensors(self.optimisers())
        extra = {"best": self.best, "best_step": self.best_step}
        save_state(self.folder / STATE_FILE, TrainingState(step, tensors, extra))

    def sample(self, step: int) -> None:
        """See `Trainee`: a segmenter draws no pictures."""

    def explain_memory(self) -> tuple[str, str]:
        """See `Trainee`."""
        settings = self.info.settings
        return (
            f"{settings.batch_size} slices of {settings.image_size} pixels",
            f"--set batch_size={max(settings.batch_size // 2, 1)}, --precision bf16, or --preset small",
        )

    def restore(self) -> int:
        """Set everything as it was at the checkpoint, and return its step.

        Raises:
            UsageError: the checkpoint does not fit these settings.
        """
        state = load_state(self.folder / STATE_FILE)
        misfit = UsageError(
            f"--resume: {self.folder / STATE_FILE} does not fit these settings, "
            "expected those that the run began with",
            "start a new run with another --output",
            code="checkpoint-does-not-fit",
        )
        if not load_tensors(self.network, tensors_below("network.", state.tensors)):
            raise misfit
        # Checkpoints of earlier versions call the momentum otherwise.
        old = tensors_below(_OLD_MOMENTUM.format(""), state.tensors)
        renamed = {_MOMENTUM.format(index): value for index, value in old.items()}
        try:
            restore_optimisers(self.optimisers(), {**state.tensors, **renamed})
        except (RuntimeError, ValueError, KeyError) as error:
            raise misfit from error
        self.best, self.best_step = state.extra.get("best"), state.extra.get("best_step", 0)
        return state.step
