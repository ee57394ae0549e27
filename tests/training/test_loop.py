"""The loop, with a trainee that notes what is asked of it: what happens when, signals, losses that are not finite."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.processes import Processes
from attcl_cli.training.loop import (
    LoopHooks,
    Schedule,
    run_loop,
    share_of,
    stop_requested,
)
from attcl_cli.training.stats import STATS_FILE

CPU = torch.device("cpu")
SIX = Schedule(steps=6, log_every=1, save_every=3, sample_every=6)


@dataclass(frozen=True)
class Numbers:
    """A batch of which only the numbers matter."""

    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Numbers:
        assert device == CPU
        return self

    def part(self, chosen: slice) -> Numbers:
        return Numbers(self.rows[chosen])


class Noting:
    """A trainee that notes what the loop asks of it."""

    def __init__(self, loss: Callable[[int], float] = lambda _step: 1.0) -> None:
        self.loss = loss
        self.optimiser = SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        self.calls: list[tuple[str, int]] = []
        self.batches: list[tuple[int, ...]] = []
        self.rates: list[float] = []

    def optimisers(self) -> Mapping[str, SGD]:
        return {"one": self.optimiser}

    def step(self, batch: Numbers, step: int) -> Mapping[str, Tensor]:
        self.batches.append(batch.rows)
        self.rates.append(self.optimiser.param_groups[0]["lr"])
        return {"loss": torch.tensor(self.loss(step)), "other": torch.tensor(2.0)}

    def judge(self, step: int) -> None:
        self.calls.append(("judge", step))

    def save(self, step: int) -> None:
        self.calls.append(("save", step))

    def sample(self, step: int) -> None:
        self.calls.append(("sample", step))

    def explain_memory(self) -> tuple[str, str]:
        return "8 slices", "take 4"

    def steps_of(self, what: str) -> list[int]:
        return [step for name, step in self.calls if name == what]


def run(trainee: Noting, folder: Path, schedule: Schedule = SIX, **options: Any) -> None:
    arguments: dict[str, Any] = {
        "first": 0,
        "batch_size": 4,
        "device": CPU,
        "resume_hint": "attcl train --resume mine",
        "not_finite_hint": "take smaller steps",
    }
    draw = lambda step: Numbers(tuple(range(10 * step, 10 * step + 4)))  # noqa: E731
    run_loop(trainee, draw, schedule, folder, **{**arguments, **options})


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / STATS_FILE).read_text().splitlines()]


def send(number: int, *, after: int, times: int = 1) -> LoopHooks:
    """Return hooks that send a signal to this process when a step is done."""

    def on_step(step: int, _losses: Mapping[str, float]) -> None:
        if step == after:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return LoopHooks(on_step=on_step)


# --- what happens when ------------------------------------------------------------------------------------------------


def test_each_step_gets_the_batch_of_its_number(tmp_path):
    trainee = Noting()
    run(trainee, tmp_path, first=4)
    assert trainee.batches == [(40, 41, 42, 43), (50, 51, 52, 53)]


def test_weights_are_judged_before_each_checkpoint_and_the_last_step_has_one(tmp_path):
    trainee = Noting()
    run(trainee, tmp_path, Schedule(steps=5, log_every=1, save_every=2))
    assert trainee.calls == [
        (what, step) for step in (2, 4, 5) for what in ("judge", "save")
    ]  # fmt: skip


def test_a_line_has_every_loss_since_the_line_before(tmp_path):
    class InTurns(Noting):
        def step(self, batch: Numbers, step: int) -> Mapping[str, Tensor]:
            super().step(batch, step)
            return {"odd" if step % 2 else "even": torch.tensor(float(step))}

    run(InTurns(), tmp_path, Schedule(steps=5, log_every=2, save_every=9))
    losses = [{name: line.get(name) for name in ("even", "odd")} for line in lines(tmp_path)]
    assert losses == [
        {"even": 0.0, "odd": 1.0}, {"even": 2.0, "odd": 3.0}, {"even": 4.0, "odd": None},
    ]  # fmt: skip


def test_a_checkpoint_between_two_lines_takes_no_loss_from_the_second(tmp_path):
    class Once(Noting):
        def step(self, batch: Numbers, step: int) -> Mapping[str, Tensor]:
            return {"early" if step == 2 else "usual": torch.tensor(float(step))}

    run(Once(), tmp_path, Schedule(steps=4, log_every=4, save_every=3))
    (line,) = lines(tmp_path)
    assert (line["early"], line["usual"]) == (2.0, 3.0)


def test_neither_pictures_nor_validation_nor_saving_are_a_part_of_a_step(tmp_path, monkeypatch):
    now = 0.0

    class Slow(Noting):
        def step(self, batch: Numbers, step: int) -> Mapping[str, Tensor]:
            nonlocal now
            now += 2.0
            return super().step(batch, step)

        def sample(self, step: int) -> None:
            nonlocal now
            now += 100.0

        judge = save = sample

    monkeypatch.setattr("attcl_cli.training.loop.time.monotonic", lambda: now)
    run(Slow(), tmp_path, Schedule(steps=12, log_every=3, save_every=6, sample_every=2))
    assert [line["seconds_a_step"] for line in lines(tmp_path)] == [2.0] * 4


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (10, [5]), (None, [])])
def test_pictures_are_drawn_on_their_grid_and_after_the_last_step(every, steps, tmp_path):
    trainee = Noting()
    run(trainee, tmp_path, Schedule(steps=5, log_every=1, save_every=9, sample_every=every))
    assert trainee.steps_of("sample") == steps


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (10, [5])])
def test_the_last_step_is_always_logged(every, steps, tmp_path):
    records: list[Mapping[str, float]] = []
    hooks = LoopHooks(on_log=records.append)
    run(Noting(), tmp_path, Schedule(steps=5, log_every=every, save_every=3), hooks=hooks)
    assert [line["step"] for line in lines(tmp_path)] == steps
    assert lines(tmp_path) == [dict(record) for record in records]
    assert set(records[0]) == {"step", "seconds_a_step", "loss", "other"}


def test_every_step_is_reported_with_the_losses_logged_last(tmp_path):
    seen: list[tuple[int, Mapping[str, float]]] = []
    hooks = LoopHooks(on_step=lambda step, losses: seen.append((step, dict(losses))))
    run(Noting(float), tmp_path, Schedule(steps=4, log_every=2, save_every=9), hooks=hooks)
    one, three = ({"loss": value, "other": 2.0} for value in (1.0, 3.0))
    assert seen == [(1, {}), (2, one), (3, one), (4, three)]


def test_learning_rates_fall_over_the_last_share_of_the_run_also_of_a_resumed_one(tmp_path):
    schedule = Schedule(steps=4, log_every=9, save_every=9, decay=0.5)
    whole, resumed = Noting(), Noting()
    run(whole, tmp_path, schedule)
    run(resumed, tmp_path, schedule, first=2)
    assert whole.rates == pytest.approx([0.5, 0.5, 0.5, 0.25])
    assert resumed.rates == whole.rates[2:]


def test_learning_rates_begin_anew_at_each_restart_also_of_a_resumed_run(tmp_path):
    schedule = Schedule(steps=8, log_every=9, save_every=9, decay=0.5, restarts=(0.5,))
    whole, resumed = Noting(), Noting()
    run(whole, tmp_path, schedule)
    run(resumed, tmp_path, schedule, first=5)
    assert whole.rates == pytest.approx([0.5, 0.5, 0.5, 0.25] * 2)
    assert resumed.rates == whole.rates[5:]


def test_a_resumed_run_writes_the_lines_after_its_checkpoint_again(tmp_path):
    run(Noting(), tmp_path)
    with (tmp_path / STATS_FILE).open("a") as file:
        file.write('{"step": 7, "lo')  # a kill cut it off
    run(Noting(lambda _step: 5.0), tmp_path, first=3)
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 1.0, 1.0, 5.0, 5.0, 5.0]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


# --- several processes ------------------------------------------------------------------------------------------------


class Second(Processes):
    """The second of two processes; there is no first one to talk to."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.count = 1, 2


def test_a_process_gets_its_share_of_each_batch_and_only_the_main_one_writes(tmp_path):
    trainee = Noting()
    run(trainee, tmp_path, Schedule(steps=2, log_every=1, save_every=1), processes=Second())
    assert trainee.batches == [(2, 3), (12, 13)]
    assert not trainee.calls
    assert not (tmp_path / STATS_FILE).exists()


def test_a_batch_that_cannot_be_shared_is_refused_with_the_next_size_that_can():
    assert share_of(6, Second()) == slice(3, 6)
    with pytest.raises(UsageError) as caught:
        share_of(5, Second())
    assert (caught.value.code, caught.value.hint) == ("batch-not-shared", "--set batch_size=6")


# --- what stops a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(bad, tmp_path):
    trainee = Noting(lambda step: bad if step == 4 else 1.0)
    with pytest.raises(AttclError, match=f"loss loss is {bad} at step 5") as caught:
        run(trainee, tmp_path)
    assert caught.value.code == "loss-not-finite"
    assert caught.value.hint == "take smaller steps"
    assert trainee.steps_of("save") == [3]


def test_a_bad_step_between_two_log_lines_never_gets_into_a_checkpoint(tmp_path):
    trainee = Noting(lambda step: math.nan if step == 5 else 1.0)
    with pytest.raises(AttclError, match="at step 6"):
        run(trainee, tmp_path, Schedule(steps=9, log_every=9, save_every=3))
    assert trainee.steps_of("save") == [3]


def test_a_device_without_enough_memory_is_an_error_that_says_what_is_smaller(tmp_path):
    def full(_step: int) -> float:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(AttclError) as caught:
        run(Noting(full), tmp_path)
    assert (caught.value.code, caught.value.hint) == ("out-of-memory", "take 4")
    assert caught.value.message == "cpu: out of memory with 8 slices, expected a step that fits"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_says_how_to_resume(number, tmp_path):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainee = Noting()
    with pytest.raises(InterruptedRun, match="stopped after step 5 of 6") as caught:
        run(trainee, tmp_path, hooks=send(number, after=4))
    assert caught.value.hint == "resume with: attcl train --resume mine"
    assert caught.value.exit_code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    # off the grid nothing is judged: an undisturbed run would not have looked at this step
    assert trainee.calls == [("judge", 3), ("save", 3), ("save", 5)]


def test_a_signal_in_the_last_step_stops_nothing(tmp_path):
    trainee = Noting()
    run(trainee, tmp_path, hooks=send(signal.SIGINT, after=5))
    assert trainee.steps_of("save") == [3, 6]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    trainee = Noting()
    with pytest.raises(KeyboardInterrupt):
        run(trainee, tmp_path, hooks=send(signal.SIGINT, after=4, times=2))
    assert trainee.steps_of("save") == [3]


def test_a_request_to_stop_is_reported_once():
    requests: list[bool] = []
    with stop_requested(lambda: requests.append(True)) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    assert requests == [True]
