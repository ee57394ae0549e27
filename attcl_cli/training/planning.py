"""How long a run may be to end in a given time: the cost of a step in each phase, measured, and the steps that fit.

Measures on a throw-away copy with real batches. What is trained on, and what is done with the plan, is left to `run`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch

from attcl_cli.data.slices import SliceStore
from attcl_cli.devices import Precision
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method, Runtime
from attcl_cli.methods.settings import Settings
from attcl_cli.processes import Processes
from attcl_cli.report import pictures
from attcl_cli.temporaries import temporary_folder
from attcl_cli.training.feed import feed
from attcl_cli.training.loop import out_of_memory, share_of
from attcl_cli.training.trainer import Hooks, Trainer

_MEASURED_STEPS = 20  # of a phase, at most; the step before them warms up
_FEWEST_STEPS = (
    2  # that are measured however long they take: a method may do another thing in every other one
)
_MEASURED_SECONDS = 5.0  # after which no further step is measured
_WHOLE_RUN = 10_000  # steps of the run that the measured steps are a part of
_CHECKPOINTS = 15  # of a run whose length was planned
_CHECKPOINT_SHARE = 0.1  # of the time; there are fewer checkpoints if they would take more
_UNMEASURED_SHARE = 0.02  # of the time, for what is not measured
_LATE_SHARE = 0.1  # of the time; a run that would end later than that is shortened


@dataclass(frozen=True)
class Costs:
    """What a run costs on this machine, in seconds.

    Attributes:
        phases: (share of the steps at which the phase begins, seconds per step); the first begins at 0.
        checkpoint: of validating and saving once.
        picture: of drawing the sample picture once.
    """

    phases: tuple[tuple[float, float], ...]
    checkpoint: float = 0.0
    picture: float = 0.0

    def seconds(self, settings: Settings, *, first: int = 0) -> float:
        """Return the seconds from step `first` to the end of a run of these settings."""
        steps = settings.steps
        begins = [round(share * steps) for share, _ in self.phases]
        seconds = [
            cost * max(0, end - max(begin, first))
            for (_, cost), begin, end in zip(self.phases, begins, [*begins[1:], steps], strict=True)
        ]
        checkpoints = _times(settings.save_every, first, steps)
        return (
            sum(seconds)
            + self.checkpoint * checkpoints
            + self.picture * _times(settings.sample_every, first, steps)
        )


class Shortened(Exception):  # noqa: N818 - no error: the run continues with fewer steps
    """A run would end too late; raised at a checkpoint, from which it continues with fewer steps."""

    def __init__(self, step: int, settings: Settings) -> None:
        """Keep the step of the checkpoint, and the settings to continue with."""
        super().__init__(step)
        self.step, self.settings = step, settings


@dataclass
class Pace:
    """Watches a planned run, and shortens it if the machine became slower.

    Attributes:
        settings: of the run.
        costs: as they were measured.
        started: the clock when the time of the run began, in seconds.
        budget: seconds from then to the end.
        first: the step of the last checkpoint.
    """

    settings: Settings
    costs: Costs
    started: float
    budget: float
    first: int = 0
    clock: Callable[[], float] = time.monotonic
    _then: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin to watch now."""
        self._then = self.clock()

    def shortened(self, step: int) -> Settings | None:
        """Return the settings of a shorter run if this one would end more than 10 % late, otherwise None.

        How slow the machine is now is taken from the steps since the last call.

        Args:
            step: of the checkpoint that was just saved.
        """
        left = self.costs.seconds(self.settings, first=step)
        expected = self.costs.seconds(self.settings, first=self.first) - left
        now = self.clock()
        slower = (now - self._then) / expected
        self.first, self._then = step, now
        spent = now - self.started
        if spent + slower * left <= (1 + _LATE_SHARE) * self.budget:
            return None
        fitting = steps_within((self.budget - spent) / slower, self.settings, self.costs, step)
        if fitting >= self.settings.steps:
            return None
        self.settings = self.settings.model_copy(update={"steps": fitting})
        return self.settings


def measure(
    settings: Settings,
    store: SliceStore,
    folder: Path,
    *,
    device: torch.device,
    precision: Precision,
    processes: Processes,
    validate: Callable[[Method], float] | None,
) -> Costs:
    """Measure what a run costs, on a throw-away copy of the method; the random state stays as it is.

    Args:
        settings: of the run; its number of steps does not matter.
        store: the training slices.
        folder: of the run; gets temporary files, which are removed.
        device: of this process.
        precision: that the run computes in.
        processes: who takes part; each measures its own share, without the exchange of gradients.
        validate: as the run validates; None: not at all.

    Raises:
        AttclError: the device is out of memory.
    """
    whole = settings.model_copy(update={"steps": _WHOLE_RUN})
    cuda = [device] if device.type == "cuda" else []
    with (
        temporary_folder(folder / "plan") as temporary,
        torch.random.fork_rng(devices=cuda),
    ):
        hooks = Hooks(draw=pictures.write_grid, validate=validate)
        trainer = Trainer(whole, store, temporary, device, hooks, "")
        trainer.method.runtime = Runtime(
            precision=precision,
            micro_batch=settings.micro_batch,
            rank=processes.rank,
            processes=processes.count,
        )
        share = share_of(settings.batch_size, processes)
        begins = sorted({0.0, *(share for share in trainer.method.phases if 0 < share < 1)})
        try:
            phases = [
                (
                    begin,
                    _seconds_per_step(
                        trainer,
                        store,
                        share,
                        round((begin + end) / 2 * _WHOLE_RUN),
                        processes.count,
                    ),
                )
                for begin, end in zip(begins, [*begins[1:], 1.0], strict=True)
            ]
        except torch.cuda.OutOfMemoryError as error:
            raise out_of_memory(trainer, device) from error
        trainer.save(
            1
        )  # once uncounted: what these two do in a run's beginning alone is no cost of each
        trainer.sample(1)
        checkpoint = _seconds(device, lambda: trainer.judge(2))
        checkpoint += _seconds(device, lambda: trainer.save(2))
        picture = _seconds(device, lambda: trainer.sample(2))
    return Costs(tuple(phases), checkpoint, picture)


def planned(
    settings: Settings,
    costs: Costs,
    seconds: float,
    *,
    first: int = 0,
    kept: Collection[str] = (),
) -> Settings:
    """Return the settings of a run that ends in a given time: its steps, and how often it validates, saves and draws.

    Args:
        settings: what else the run is.
        costs: what it costs.
        seconds: from now to the end.
        first: the step of the checkpoint that the run continues from.
        kept: of `save_every` and `sample_every` those that stay as they are; the others are made to fit the length.

    Returns:
        The settings; there is one step at least, also if that takes longer.
    """
    seconds *= 1 - _UNMEASURED_SHARE
    every = [name for name in ("save_every", "sample_every") if name not in kept]
    once = costs.checkpoint + costs.picture
    checkpoints = _CHECKPOINTS
    if once > 0:
        checkpoints = min(checkpoints, max(1, int(_CHECKPOINT_SHARE * seconds / once)))
    apart = settings.model_copy(update=dict.fromkeys(every, _WHOLE_RUN**2))  # at the end alone
    rough = steps_within(seconds - once * (checkpoints - 1), apart, costs, first)
    spacing = _round_up((rough - first) / checkpoints)
    spaced = settings.model_copy(update={"epochs": 0, **dict.fromkeys(every, spacing)})
    steps = steps_within(seconds, spaced, costs, first)
    return spaced.model_copy(update={"steps": steps})


def steps_within(seconds: float, settings: Settings, costs: Costs, first: int) -> int:
    """Return the largest number of steps with which a run ends in time; at least one more than `first`."""

    def fits(steps: int) -> bool:
        return costs.seconds(settings.model_copy(update={"steps": steps}), first=first) <= seconds

    step = 1
    while fits(first + 2 * step):
        step *= 2
    low, high = first + step, first + 2 * step  # the larger one does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def describe(settings: Settings, costs: Costs, minutes: float, *, validates: bool) -> str:
    """Return a plan: `90 minutes: 4,200 steps (0.80 s per step, 3.1 s from 80 % on), validation every 280`."""
    (_, first), *others = costs.phases
    later = (f"{_short(cost)} s from {100 * share:.0f} % on" for share, cost in others)
    pace = ", ".join([f"{_short(first)} s per step", *later])
    what = "validation" if validates else "checkpoint"
    return (
        f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}: "
        f"{settings.steps:,} {'step' if settings.steps == 1 else 'steps'} ({pace}), "
        f"{what} every {settings.save_every:,}"
    )


def steps_of_epochs(settings: Settings, store: SliceStore) -> int:
    """Return how many steps the setting `epochs` stands for.

    Raises:
        UsageError: the method's sampler has no size.
    """
    with torch.random.fork_rng(devices=[]):  # networks are drawn, and thrown away
        sampler = METHODS[settings.method](settings, store.modalities).sampler(store)
    size: int = getattr(sampler, "size", 0)
    if not size:
        raise UsageError(
            f"--epochs: the sampler of method {settings.method} has no size, expected a method with epochs",
            "use --steps",
            code="method-without-epochs",
        )
    return settings.epochs * math.ceil(size / settings.batch_size)


def _seconds_per_step(
    trainer: Trainer, store: SliceStore, share: slice, begin: int, processes: int
) -> float:
    """Return the mean over some steps from step `begin` on, after one that is not counted."""
    device = trainer.device
    seconds: list[float] = []
    clock = time.monotonic()
    steps = range(begin, begin + 1 + _MEASURED_STEPS)
    draw = trainer.method.sampler(store).batch
    for step, drawn in feed(draw, steps, device=device, processes=processes):
        trainer.step(drawn.part(share).to(device), step)
        _wait(device)
        now = time.monotonic()
        seconds.append(now - clock)
        clock = now
        if len(seconds) > _FEWEST_STEPS and sum(seconds[1:]) >= _MEASURED_SECONDS:
            break
    return mean(seconds[1:])


def _seconds(device: torch.device, work: Callable[[], None]) -> float:
    clock = time.monotonic()
    work()
    _wait(device)
    return time.monotonic() - clock


def _wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _times(every: int, first: int, steps: int) -> int:
    """Return how often something happens after step `first`: on its grid, and after the last step."""
    return math.ceil(steps / every) - first // every


def _round_up(number: float) -> int:
    """Return the next whole number of two digits and zeros; at least 1."""
    whole = max(1, math.ceil(number))
    unit: int = 10 ** max(0, len(str(whole)) - 2)
    return math.ceil(whole / unit) * unit


def _short(seconds: float) -> str:
    """Return seconds with two digits: 0.0021, 0.90, 3.1, 42."""
    digits = 1 - math.floor(math.log10(seconds)) if seconds > 0 else 0
    return f"{seconds:.{max(0, digits)}f}"
