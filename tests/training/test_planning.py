"""Planning a run to a time: costs and steps computed by hand, a slower machine, what measuring leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SMALL_NETWORKS, SMALL_RUN, changed, small_settings

from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.settings import Settings, read_run_settings, resolve
from attcl_cli.processes import Processes
from attcl_cli.progress import Bar, Silent
from attcl_cli.training import planning
from attcl_cli.training.planning import Costs, Pace
from attcl_cli.training.run import train

CPU = torch.device("cpu")
TWO_PHASES = Costs(((0.0, 1.0), (0.25, 3.0)), checkpoint=10.0, picture=2.0)


def settings_of(steps: int, *, save_every: int = 10, sample_every: int = 20) -> Settings:
    return small_settings(steps=steps, save_every=save_every, sample_every=sample_every)


# --- costs ------------------------------------------------------------------------------------------------------------


def test_a_run_costs_its_steps_its_checkpoints_and_its_pictures():
    # 10 steps of 1 s, 30 of 3 s, checkpoints after 10, 20, 30, 40, pictures after 20 and 40
    assert TWO_PHASES.seconds(settings_of(40)) == 10 + 90 + 4 * 10 + 2 * 2


def test_the_last_step_has_a_checkpoint_and_a_picture_off_their_grids():
    # 11 steps of 1 s, 33 of 3 s (the phase begins at round(44 / 4)), checkpoints 10 ... 40 and 44, pictures 20, 40, 44
    assert TWO_PHASES.seconds(settings_of(44)) == 11 + 99 + 5 * 10 + 3 * 2


@pytest.mark.parametrize(
    ("first", "seconds"),
    [(5, 5 + 90 + 40 + 4), (10, 90 + 30 + 4), (30, 30 + 10 + 2), (39, 3 + 10 + 2), (40, 0)],
)
def test_a_resumed_run_costs_what_is_left_of_it(first, seconds):
    assert TWO_PHASES.seconds(settings_of(40), first=first) == seconds


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 7, 300])
@pytest.mark.parametrize("seconds", [20.0, 100.0, 1234.5])
def test_the_steps_are_the_most_that_end_in_time(first, seconds):
    settings = settings_of(1)
    steps = planning.steps_within(seconds, settings, TWO_PHASES, first)
    cost = lambda count: TWO_PHASES.seconds(changed(settings, steps=count), first=first)  # noqa: E731
    assert cost(steps) <= seconds < cost(steps + 1)


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 0.5])
@pytest.mark.parametrize("first", [0, 12])
def test_too_little_time_gives_one_step(first, seconds):
    assert planning.planned(settings_of(9), TWO_PHASES, seconds, first=first).steps == first + 1


@pytest.mark.parametrize("minutes", [2, 90, 600])
def test_a_plan_fills_its_time_with_about_fifteen_checkpoints(minutes):
    costs = Costs(((0.0, 0.1), (0.5, 0.4)), checkpoint=0.2, picture=0.1)
    plan = planning.planned(settings_of(1), costs, 60 * minutes)
    assert 0.97 * 60 * minutes < costs.seconds(plan) <= 0.98 * 60 * minutes
    assert 10 <= plan.steps / plan.save_every <= 20
    assert plan.sample_every == plan.save_every


def test_slow_checkpoints_are_fewer_so_that_they_take_a_tenth_of_the_time():
    costs = Costs(((0.0, 1.0),), checkpoint=100.0)
    plan = planning.planned(settings_of(1), costs, 3600)
    assert plan.steps / plan.save_every == pytest.approx(3, abs=0.2)
    assert costs.seconds(plan) <= 3600


def test_what_the_user_chose_stays_as_it_is():
    chosen = settings_of(1, save_every=7)
    plan = planning.planned(chosen, TWO_PHASES, 3600, kept={"save_every"})
    assert plan.save_every == 7
    assert plan.sample_every != chosen.sample_every
    assert changed(plan, steps=1, sample_every=chosen.sample_every) == chosen


def test_a_plan_takes_the_place_of_epochs():
    assert planning.planned(small_settings(epochs=3), TWO_PHASES, 600).epochs == 0


def test_a_plan_is_described_in_one_line():
    costs = Costs(((0.0, 0.9), (0.25, 3.14)))
    settings = small_settings(steps=4200, save_every=280)
    described = planning.describe(settings, costs, 90.0, validates=True)
    assert described == (
        "90 minutes: 4,200 steps (0.90 s per step, 3.1 s from 25 % on), validation every 280"
    )
    one = planning.describe(changed(settings, steps=1), Costs(((0.0, 0.0021),)), 1, validates=False)
    assert one == "1 minute: 1 step (0.0021 s per step), checkpoint every 280"


# --- a slower machine -------------------------------------------------------------------------------------------------


def watched(seconds_per_step: Callable[[int], float]) -> tuple[list[int], float]:
    """Run a plan of 1,000 steps of 1 s on a machine of another speed; return its lengths, and when it ended."""
    clock = [50.0]
    settings = settings_of(1000, save_every=100, sample_every=10_000)
    pace = Pace(settings, Costs(((0.0, 1.0),)), 0.0, 1050.0, clock=lambda: clock[0])
    lengths, step = [settings.steps], 0
    while step < lengths[-1]:
        clock[0] += seconds_per_step(step)
        step += 1
        if step % 100 == 0 and step < lengths[-1]:
            shorter = pace.shortened(step)
            lengths += [shorter.steps] if shorter is not None else []
    return lengths, clock[0]


@pytest.mark.parametrize("speed", [0.5, 1.0, 1.09])
def test_a_run_that_is_in_time_keeps_its_steps(speed):
    assert watched(lambda _step: speed)[0] == [1000]


def test_a_run_on_a_machine_half_as_fast_is_shortened_once_and_ends_in_time():
    lengths, ended = watched(lambda _step: 2.0)
    # 250 s are over after 100 steps, so that 800 s are left for steps of 2 s
    assert lengths == [1000, 500]
    assert ended == 1050


def test_a_machine_that_becomes_slower_late_ends_the_run_a_tenth_late_at_most():
    lengths, ended = watched(lambda step: 1.0 if step < 700 else 4.0)
    assert len(lengths) == 2
    assert ended <= 1.1 * 1050


def test_a_run_that_is_far_too_late_ends_with_the_next_step():
    assert watched(lambda _step: 20.0)[0] == [1000, 101]


# --- measuring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attcl-gan", "plave"])
def test_measuring_gives_each_phase_its_cost_and_leaves_nothing_behind(method, store, tmp_path):
    settings = small_settings(method)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    judged = []
    costs = planning.measure(
        settings,
        store,
        tmp_path,
        device=CPU,
        precision="fp32",
        processes=Processes(),
        validate=lambda network: judged.append(network) or 0.5,
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())
    assert costs.phases[0][0] == 0
    assert all(seconds > 0 for _, seconds in costs.phases)
    assert costs.checkpoint > 0
    assert costs.picture > 0
    assert len(judged) == 1


def test_a_method_of_two_phases_is_measured_in_both(store, tmp_path, monkeypatch):
    settings = small_settings("plave", plave_pretraining=0.3)
    real, clock = planning.Trainer.step, [0.0]

    def step(trainer, batch, number):  # an auto-encoder alone, then everything
        clock[0] += 1.0 if number < 0.3 * planning._WHOLE_RUN else 3.0
        return real(trainer, batch, number)

    monkeypatch.setattr(planning.Trainer, "step", step)
    monkeypatch.setattr(planning, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    costs = planning.measure(
        settings,
        store,
        tmp_path,
        device=CPU,
        precision="fp32",
        processes=Processes(),
        validate=None,
    )
    assert costs.phases == ((0.0, 1.0), (0.3, 3.0))


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_an_epoch_has_as_many_batches_as_the_filled_slices_need(store: SliceStore):
    slices = int(store.filled.sum())
    for batch_size, steps in ((1, slices), (2, -(-slices // 2)), (slices + 1, 1)):
        settings = small_settings(epochs=1, batch_size=batch_size)
        assert planning.steps_of_epochs(settings, store) == steps
        assert planning.steps_of_epochs(changed(settings, epochs=3), store) == 3 * steps


# What an epoch counts, of patients with four modalities each: images, places that a patient shows in all of them, or
# the places of three pairs round a hub.
IMAGES_OF_A_PLACE = {"plave": 1, "unet": 1} | dict.fromkeys(
    ("cyclegan", "u-gat-it", "attentiongan", "msa-gan"), 3
)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_trained_for_epochs(method, store: SliceStore):
    places = int(store.filled.sum()) // 4
    slices = places * IMAGES_OF_A_PLACE.get(method, 4)
    settings = small_settings(method, epochs=2, batch_size=5)
    assert planning.steps_of_epochs(settings, store) == 2 * math.ceil(slices / 5)


def test_an_epoch_of_plaves_published_set_up_goes_over_the_slices_with_tumour(store: SliceStore):
    volumes = [entry for entry in store.entries if entry.modality == "flair"]
    starts = [sum(entry.count for entry in volumes[:place]) for place in range(len(volumes))]
    segmented = replace(
        store,
        segmentations=tuple(
            replace(entry, start=start) for entry, start in zip(volumes, starts, strict=True)
        ),
        tumour=np.arange(sum(entry.count for entry in volumes)) % 3 == 0,
    )
    filled = np.concatenate(
        [store.filled[entry.start : entry.start + entry.count] for entry in volumes]
    )
    slices = int((filled & segmented.tumour).sum())
    settings = resolve(preset="paper", method="plave", overrides={"plave_target": "t1ce"})
    assert settings.epochs == 500
    assert planning.steps_of_epochs(settings, segmented) == 500 * math.ceil(slices / 4)


# --- runs -------------------------------------------------------------------------------------------------------------


def start(data: Path, folder: Path, **options: object):
    options.setdefault("overrides", {**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"]})
    del options["overrides"]["steps"]
    return train(data, output=folder, preset="tiny", device="cpu", **options)


def test_a_run_of_epochs_says_its_steps_in_its_settings(phantom_root, tmp_path):
    overrides = {**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], "batch_size": 100}
    result = start(phantom_root, tmp_path / "run", overrides=overrides, epochs=1)
    settings = read_run_settings(tmp_path / "run" / "config.toml")
    assert settings == result.settings
    assert (settings.epochs, settings.steps) == (1, result.weights_step)
    assert settings.steps > 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["steps"] == settings.steps


def test_a_run_is_not_resumed_for_fewer_epochs_than_it_has_behind_it(phantom_root, tmp_path):
    overrides = {**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], "batch_size": 100}
    first = start(phantom_root, tmp_path / "run", overrides=overrides, epochs=2)
    weights = (tmp_path / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(UsageError) as caught:
        train(resume=tmp_path / "run", epochs=1, device="cpu")
    assert caught.value.code == "resumed-run-changed"
    assert caught.value.message.startswith(f"--epochs: 1 epoch of {first.weights_step // 2} steps")
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == weights
    longer = train(resume=tmp_path / "run", overrides={"epochs": 3}, device="cpu")
    assert longer.weights_step == 3 * first.weights_step // 2


def test_a_run_without_time_takes_one_step_and_keeps_what_was_measured(phantom_root, tmp_path):
    result = start(phantom_root, tmp_path / "run", minutes=0.001)
    assert result.weights_step == 1
    assert read_run_settings(tmp_path / "run" / "config.toml").steps == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["minutes"] == 0.001
    assert record["config"]["steps"] == 1
    assert record["measured_seconds"]["phases"][0][0] == 0
    again = train(resume=tmp_path / "run", minutes=0.001, device="cpu")
    assert again.weights_step == 2


class Listener(Silent):
    """Keeps the time left that the bar of a training is told."""

    def __init__(self) -> None:
        self.left: list[float | None] = []

    @contextmanager
    def bar(self, total: int, title: str, *, every_seconds: float = 0) -> Iterator[Bar]:
        def count(item: str = "", *, to: int | None = None, left: float | None = None) -> None:
            if title == "train":
                self.left.append(left)

        yield count


def test_a_run_of_minutes_counts_down_its_own_time(phantom_root, tmp_path):
    listener = Listener()
    start(phantom_root, tmp_path / "timed", minutes=0.02, progress=listener)
    assert all(left is not None and left <= 1.2 for left in listener.left)
    assert listener.left == sorted(listener.left, reverse=True)
    listener.left.clear()
    start(phantom_root, tmp_path / "counted", epochs=1, progress=listener)
    assert set(listener.left) == {None}  # nobody has measured its steps


@pytest.mark.slow
def test_a_run_on_a_slower_machine_is_shortened_to_what_its_settings_then_say(
    phantom_root, tmp_path, monkeypatch
):
    fast = Costs(((0.0, 1e-4),))  # no machine is as fast
    monkeypatch.setattr(planning, "measure", lambda *_arguments, **_options: fast)
    result = start(phantom_root, tmp_path / "run", minutes=0.25)
    settings = read_run_settings(tmp_path / "run" / "config.toml")
    assert settings.steps == result.settings.steps == result.weights_step < 0.2 * 60 / 1e-4
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["config"]["steps"]) == ("done", settings.steps)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"minutes": 1, "epochs": 1}, "options-exclude-each-other"),
        ({"minutes": 1, "overrides": {"steps": 3}}, "options-exclude-each-other"),
        ({"epochs": 1, "overrides": {"steps": 3}}, "options-exclude-each-other"),
        ({"minutes": 1, "overrides": {"epochs": 3}}, "options-exclude-each-other"),
        ({"minutes": 0.0}, "minutes-not-positive"),
        ({"minutes": float("nan")}, "minutes-not-positive"),
    ],
    ids=str,
)
def test_one_thing_says_how_long_a_run_is(options, code, phantom_root, tmp_path):
    with pytest.raises(UsageError) as caught:
        train(phantom_root, output=tmp_path / "run", preset="tiny", device="cpu", **options)
    assert caught.value.code == code
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, 5),
        ({"overrides": {"steps": 3}}, 0),
        ({"minutes": 2.0}, 0),
        ({"epochs": 2}, 2),
    ],
    ids=str,
)
def test_steps_and_minutes_are_stronger_than_the_epochs_of_a_file(
    options, epochs, phantom_root, tmp_path
):
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nepochs = 5\n")
    result = train(phantom_root, preset="tiny", config=file, device="cpu", dry_run=True, **options)
    assert result.settings.epochs == epochs
