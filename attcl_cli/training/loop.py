"""The one training loop: batches in, a trainee stepped, logged, judged and saved; Ctrl-C waits for the end of a step.

Knows no network, no method and no terminal. Everything random is a function of (seed, step), so a run that was stopped
continues as if it had not been.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from attcl_cli import run_ends
from attcl_cli.data.sampling import Batch
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.processes import Processes
from attcl_cli.training.feed import feed
from attcl_cli.training.learning_rates import full_rates, rate_factor, set_rates
from attcl_cli.training.stats import STATS_FILE, log_stats, trim_stats


class Trainee(Protocol):
    """What the loop trains; its files are its own business."""

    def optimisers(self) -> Mapping[str, Optimizer]:
        """Return the optimisers by name; the loop sets their learning rates."""

    def step(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Update the weights by this process' share of a batch, and return the losses by name."""

    def judge(self, step: int) -> None:
        """Validate, and keep the weights if they are the best so far."""

    def save(self, step: int) -> None:
        """Write the checkpoint to resume from."""

    def sample(self, step: int) -> None:
        """Draw pictures of what the trainee makes."""

    def explain_memory(self) -> tuple[str, str]:
        """Return what did not fit on the device, and the hint that makes it smaller."""


@dataclass(frozen=True)
class Schedule:
    """What the loop does when, counted in finished steps.

    Attributes:
        steps: of the whole run.
        log_every: steps between lines of `stats.jsonl`.
        save_every: steps between checkpoints, each of which is judged before.
        sample_every: steps between pictures; None: none.
        decay: share of the steps, the last ones, over which learning rates fall to 0.
        warm_up: steps, the first ones, over which they rise.
        restarts: shares of the steps at which both begin anew (`rate_factor`).
    """

    steps: int
    log_every: int
    save_every: int
    sample_every: int | None = None
    decay: float = 0.0
    warm_up: int = 0
    restarts: tuple[float, ...] = ()


@dataclass(frozen=True)
class LoopHooks:
    """What the caller wants to see of a run; all may be left out.

    Attributes:
        on_step: called after each step with its number (from 1) and the last logged losses.
        on_log: called with each record of `stats.jsonl`.
        on_stop: called when a stop is asked for, while the step in progress continues.
        on_checkpoint: called with the step after each regular checkpoint but the last, in all processes; an error that
            it raises ends the loop there, and a resumed one continues from that step.
    """

    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _losses: None
    on_log: Callable[[Mapping[str, float]], None] = lambda _record: None
    on_stop: Callable[[], None] = lambda: None
    on_checkpoint: Callable[[int], None] = lambda _step: None


def run_loop(
    trainee: Trainee,
    draw: Callable[[int], Batch],
    schedule: Schedule,
    folder: Path,
    *,
    first: int,
    batch_size: int,
    device: torch.device,
    resume_hint: str,
    not_finite_hint: str,
    processes: Processes = Processes(),
    hooks: LoopHooks = LoopHooks(),
    ahead: int = 2,
) -> None:
    """Train from step `first` to the end of the schedule.

    Args:
        trainee: what is trained.
        draw: step -> the batch of all processes.
        schedule: what happens when.
        folder: of the run; gets `stats.jsonl`.
        first: the step of the checkpoint that was restored; 0: none.
        batch_size: slices in a batch of all processes.
        device: of this process.
        resume_hint: the command that resumes the run.
        not_finite_hint: what helps against losses that are no longer finite.
        processes: who takes part; each has its share of every batch, the main one writes.
        hooks: what the caller wants to see.
        ahead: batches that threads draw ahead (`feed`).

    Raises:
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: a loss is no longer finite, or the device is out of memory; the last good checkpoint is kept.
    """
    if processes.main:
        trim_stats(folder / STATS_FILE, first)
    share = share_of(batch_size, processes)
    full = full_rates(trainee.optimisers())
    clock, clock_step = time.monotonic(), first
    logged: dict[str, float] = {}
    recent: dict[str, Tensor] = {}  # each loss as it was last computed: not every step has all
    with stop_requested(hooks.on_stop) as stop:
        for step, drawn in feed(
            draw,
            range(first, schedule.steps),
            device=device,
            processes=processes.count,
            ahead=ahead,
        ):
            try:
                batch = drawn.part(share).to(device)
                factor = rate_factor(
                    step,
                    steps=schedule.steps,
                    decay=schedule.decay,
                    warm_up=schedule.warm_up,
                    restarts=schedule.restarts,
                )
                set_rates(trainee.optimisers(), full, factor)
                losses = trainee.step(batch, step)
            except torch.cuda.OutOfMemoryError as error:
                raise out_of_memory(trainee, device) from error
            recent |= losses
            done = step + 1
            last = done == schedule.steps
            judging = done % schedule.save_every == 0 or last
            stopped = processes.any(
                stop.is_set(), device
            )  # asked once: what is saved is what is reported
            saving = judging or stopped
            if done % schedule.log_every == 0 or saving:
                # The only place where the loop waits for the device.
                logged = _numbers(recent, processes)
                _require_finite(logged, done, folder, not_finite_hint)
                now = time.monotonic()
                seconds = round((now - clock) / (done - clock_step), 4)
                clock, clock_step = now, done
                if done % schedule.log_every == 0 or last:
                    recent = {}
                    if processes.main:
                        _log(folder, hooks, {"step": done, "seconds_a_step": seconds, **logged})
            sampling = schedule.sample_every and (done % schedule.sample_every == 0 or last)
            if processes.main and sampling:
                began = time.monotonic()
                trainee.sample(done)
                clock += time.monotonic() - began  # pictures are no part of a step
            if processes.main and saving:
                # Off the grid (Ctrl-C) nothing is judged: an undisturbed run would not have looked at this step.
                if judging:
                    trainee.judge(done)
                trainee.save(done)
                clock = time.monotonic()  # neither validation nor saving is a part of a step
            hooks.on_step(done, logged)
            if stopped and not last:
                raise InterruptedRun(
                    f"{folder}: stopped after step {done} of {schedule.steps}, everything is saved",
                    f"resume with: {resume_hint}",
                    code="stopped",
                )
            if judging and not last:
                hooks.on_checkpoint(done)
                clock = time.monotonic()  # nor is what the caller does then
    processes.wait()


def out_of_memory(trainee: Trainee, device: torch.device) -> AttclError:
    """Return the error about a step that does not fit on the device."""
    what, hint = trainee.explain_memory()
    return AttclError(
        f"{device}: out of memory with {what}, expected a step that fits",
        hint,
        code="out-of-memory",
    )


def share_of(batch_size: int, processes: Processes) -> slice:
    """Return which slices of the whole batch are this process'.

    Raises:
        UsageError: the batch cannot be shared equally.
    """
    if batch_size % processes.count:
        fitting = math.ceil(batch_size / processes.count) * processes.count
        raise UsageError(
            f"setting batch_size: {batch_size} slices, expected a multiple of the {processes.count} processes",
            f"--set batch_size={fitting}",
            code="batch-not-shared",
        )
    own = batch_size // processes.count
    return slice(processes.rank * own, (processes.rank + 1) * own)


@contextmanager
def stop_requested(
    on_request: Callable[[], None] = lambda: None,
) -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that the step in progress ends and is saved.

    A second signal stops at once.

    Args:
        on_request: called by the first signal, from its handler.
    """
    stopped = threading.Event()

    def request() -> None:
        stopped.set()
        with suppress(RuntimeError):  # a line that was being written cannot be broken into
            on_request()

    with run_ends.awaited(request):
        yield stopped


def _log(folder: Path, hooks: LoopHooks, line: dict[str, float]) -> None:
    log_stats(folder / STATS_FILE, line)
    hooks.on_log(line)


def _numbers(losses: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """Return the losses as numbers, mean over the processes."""
    mean = processes.mean(torch.stack([value.detach().float() for value in losses.values()]))
    return dict(zip(losses, mean.tolist(), strict=True))


def _require_finite(losses: Mapping[str, float], step: int, folder: Path, hint: str) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise AttclError(
            f"{folder}: loss {bad[0]} is {losses[bad[0]]} at step {step}, expected a finite number",
            hint,
            code="loss-not-finite",
        )
