"""The loop: a stopped run goes on to the same bits, Ctrl-C saves, NaN stops, the average starts as an exact copy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.files import sha256
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.settings import Settings, dump
from attcl_cli.methods.weights import WEIGHTS_FILE, find_weights, load_method, save_weights
from attcl_cli.training.state import BEST_FILE, STATE_FILE, load_state
from attcl_cli.training.trainer import STATS_FILE, Hooks, train

CPU = torch.device("cpu")


class Killed(Exception):
    """Stands for a kill: nothing of the loop's own catches it."""


def changed(settings: Settings, **values: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **values})


def run(settings: Settings, store, folder: Path, *, kill_after: int = 0, **options) -> int:
    """Trains in a new or an old folder; with `kill_after`, dies when that step is done."""

    def on_step(step: int, _losses: object) -> None:
        if step == kill_after:
            raise Killed

    folder.mkdir(exist_ok=True)
    options.setdefault("hooks", Hooks(on_step=on_step))
    return train(settings, store, folder, device=CPU, **options)


def stats(folder: Path) -> list[dict[str, float]]:
    lines = (folder / STATS_FILE).read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds_a_step"}
        for line in lines
    ]


@pytest.fixture(scope="module")
def six(tiny_settings) -> Settings:
    return changed(
        tiny_settings, steps=6, save_every=3, log_every=1, sample_every=6, learning_rate_decay=0.5
    )


@pytest.fixture(scope="module")
def undisturbed(six, store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(six, store, folder)
    return folder


def same_run(first: Path, second: Path) -> None:
    one, two = load_state(first / STATE_FILE), load_state(second / STATE_FILE)
    assert (one.step, one.extra) == (two.step, two.extra)
    assert set(one.tensors) == set(two.tensors)
    for key, value in one.tensors.items():
        assert torch.equal(value, two.tensors[key]), key
    assert sha256(first / WEIGHTS_FILE) == sha256(second / WEIGHTS_FILE)
    assert stats(first) == stats(second)


@pytest.mark.parametrize(
    ("share", "factors"),
    [(0.0, [1, 1, 1, 1]), (0.5, [1, 1, 1, 1 / 2]), (1.0, [1, 3 / 4, 1 / 2, 1 / 4])],
)
def test_learning_rates_fall_over_the_last_share_of_the_run(
    share, factors, six, store, tmp_path, monkeypatch
):
    seen: dict[str, list[float]] = {}
    step_of = AttclGan.training_step

    def spy(method: AttclGan, *arguments: object) -> object:
        for name, optimiser in method.optimisers().items():
            seen.setdefault(name, []).append(optimiser.param_groups[0]["lr"])
        return step_of(method, *arguments)

    monkeypatch.setattr(AttclGan, "training_step", spy)
    settings = changed(six, steps=4, learning_rate_decay=share)
    run(settings, store, tmp_path / "run")
    assert seen["generator"] == pytest.approx([settings.learning_rate * it for it in factors])
    assert seen["mapping"] == pytest.approx([settings.learning_rate_mapping * it for it in factors])


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bits(six, store, undisturbed, tmp_path):
    run(six, store, tmp_path / "again")
    same_run(undisturbed, tmp_path / "again")


def test_a_killed_run_goes_on_to_the_same_bits(six, store, undisturbed, tmp_path):
    with pytest.raises(Killed):
        run(six, store, tmp_path / "run", kill_after=4)
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3
    run(six, store, tmp_path / "run", resume=True)
    same_run(undisturbed, tmp_path / "run")


def test_the_state_holds_networks_averages_and_optimisers(undisturbed):
    kinds = {key.split(".")[0] for key in load_state(undisturbed / STATE_FILE).tensors}
    assert kinds == {"module", "average", "optimiser"}


def test_a_line_that_a_kill_cut_off_is_dropped(six, store, undisturbed, tmp_path):
    with pytest.raises(Killed):
        run(six, store, tmp_path / "run", kill_after=3)
    with (tmp_path / "run" / STATS_FILE).open("a") as file:
        file.write('{"step": 4, "d_la')
    run(six, store, tmp_path / "run", resume=True)
    assert stats(tmp_path / "run") == stats(undisturbed)


def test_nothing_to_resume_is_an_error(six, store, tmp_path):
    with pytest.raises(UsageError, match=r"--resume: .* does not exist"):
        run(six, store, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "change", [{"width": 8}, {"acl": "none", "att_adain": False}, {"style_dim": 4}], ids=str
)
def test_a_checkpoint_of_other_networks_is_an_error(change, six, store, undisturbed):
    before = sha256(undisturbed / STATE_FILE)
    with pytest.raises(UsageError, match=r"--resume: .* does not fit"):
        run(changed(six, steps=9, **change), store, undisturbed, resume=True)
    assert sha256(undisturbed / STATE_FILE) == before


def test_a_finished_run_has_nothing_left_to_do(six, store, undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    assert run(six, store, undisturbed, resume=True) == 6
    assert {path: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()} == before


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_average_starts_as_an_exact_copy(six, store, tmp_path):
    run(changed(six, steps=1), store, tmp_path / "run")
    tensors = load_state(tmp_path / "run" / STATE_FILE).tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(six.seed)
        start = METHODS[six.method](six, store.modalities)
    for name in start.inference:
        for key, first in start.modules()[name].named_parameters():
            trained, average = tensors[f"module.{name}.{key}"], tensors[f"average.{name}.{key}"]
            # decay min(0.995, 1 / 10) after the first step
            assert torch.allclose(average, 0.1 * first + 0.9 * trained, atol=1e-6), f"{name}.{key}"


def test_the_average_is_what_the_weights_hold(undisturbed):
    tensors = load_state(undisturbed / STATE_FILE).tensors
    method = load_method(find_weights(str(undisturbed)), CPU)
    for name in method.inference:
        for key, value in method.modules()[name].state_dict().items():
            assert torch.equal(value, tensors[f"average.{name}.{key}"].half().float())


def test_the_average_trails_the_networks(undisturbed):
    tensors = load_state(undisturbed / STATE_FILE).tensors
    key = "generator.down.0.conv1.weight"
    assert not torch.equal(tensors[f"average.{key}"], tensors[f"module.{key}"])


class Normalised(AttclGan):
    """AttCL-GAN with a batch norm and a non-persistent buffer at the end of its generator."""

    def __init__(self, settings: Settings, modalities: tuple[str, ...]) -> None:
        super().__init__(settings, modalities)
        self.norm = torch.nn.BatchNorm2d(1)
        self.norm.register_buffer("calls", torch.zeros(()), persistent=False)
        self.inference = (*self.inference, "norm")
        self.training_modes: set[bool] = set()

    def modules(self) -> dict[str, torch.nn.Module]:
        return {**super().modules(), "norm": self.norm}

    def training_step(self, batch, step: int):
        self.norm(batch.x_src)
        self.norm.calls += 1
        self.training_modes |= modes(self)
        return super().training_step(batch, step)


def modes(method: AttclGan) -> set[bool]:
    """Return the training flags of the modules that completion needs."""
    return {
        module.training for name in method.inference for module in method.modules()[name].modules()
    }


@pytest.fixture
def normalised(monkeypatch) -> list[Normalised]:
    """Return the list of `Normalised` methods that runs of the test make."""
    made: list[Normalised] = []

    def make(settings: Settings, modalities: tuple[str, ...]) -> Normalised:
        made.append(Normalised(settings, modalities))
        return made[-1]

    make.needs = Normalised.needs
    monkeypatch.setitem(METHODS, "attcl-gan", make)
    return made


def test_the_average_takes_over_the_buffers_of_each_step(six, store, normalised, tmp_path):
    seen: list[dict[str, torch.Tensor]] = []

    def validate(averaged: Normalised) -> float:
        seen.append({name: value.clone() for name, value in averaged.norm.named_buffers()})
        trained = dict(normalised[0].norm.named_buffers())
        assert all(torch.equal(value, trained[name]) for name, value in seen[-1].items())
        return float(len(seen))

    run(six, store, tmp_path / "run", hooks=Hooks(validate=validate))
    assert [buffers["num_batches_tracked"] for buffers in seen] == [3, 6]
    assert [buffers["calls"] for buffers in seen] == [3, 6]
    kept = load_method(find_weights(str(tmp_path / "run")), CPU).norm.state_dict()
    assert kept["num_batches_tracked"] == 6
    assert torch.equal(kept["running_mean"], seen[-1]["running_mean"].half().float())


def test_the_average_samples_and_validates_in_eval_mode(
    six, store, normalised, tmp_path, monkeypatch
):
    used: list[set[bool]] = []
    synthesise = Normalised.synthesise

    def spy(method: Normalised, *arguments, **options):
        used.append(modes(method))
        return synthesise(method, *arguments, **options)

    def validate(averaged: Normalised) -> float:
        used.append(modes(averaged))
        return 0.0

    monkeypatch.setattr(Normalised, "synthesise", spy)
    run(six, store, tmp_path / "run", hooks=Hooks(validate=validate))
    assert used == [{False}] * len(used)
    assert len(used) == 4 + 2  # four samples after the last step, two checkpoints
    assert normalised[0].training_modes == {True}


def test_integer_buffers_are_saved_whole(six, store, normalised, tmp_path):
    run(changed(six, steps=1), store, tmp_path / "run")
    averaged = normalised[0]
    averaged.norm.num_batches_tracked.fill_(70_001)  # float16 ends at 65504
    averaged.remember_references({name: torch.zeros(1, 1, 16, 16) for name in store.modalities})
    info = find_weights(str(tmp_path / "run")).info
    save_weights(tmp_path / "late.safetensors", averaged, info)
    late = load_method(find_weights(str(tmp_path / "late.safetensors")), CPU)
    assert late.norm.num_batches_tracked == 70_001


def test_stats_have_a_line_a_log_step_with_every_loss(undisturbed):
    lines = stats(undisturbed)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"d_latent_real", "g_latent_adv", "g_reference_cyc"} <= set(lines[0])


@pytest.mark.parametrize(("every", "steps"), [(2, [2, 4, 5]), (10, [5])])
def test_the_last_step_is_always_logged(every, steps, six, store, tmp_path):
    run(changed(six, steps=5, log_every=every), store, tmp_path / "run")
    assert [line["step"] for line in stats(tmp_path / "run")] == steps


def test_references_are_middle_slices_of_training_cases(undisturbed, store):
    info = find_weights(str(undisturbed)).info
    assert set(info.references) == set(store.modalities)
    for reference in info.references.values():
        assert reference["case"] in store.trained_on
        assert reference["slice"] == 5 + 8
    assert info.steps == 6
    assert info.scales == store.scales
    assert info.trained_on == store.trained_on


def test_samples_show_a_source_and_every_target(six, store, tmp_path):
    drawn: list[tuple[Path, list[str], list[tuple[str, list[np.ndarray]]]]] = []
    hooks = Hooks(draw=lambda *arguments: drawn.append(arguments))
    run(changed(six, steps=2, sample_every=1), store, tmp_path / "run", hooks=hooks)
    assert [path.name for path, _, _ in drawn] == ["step-000001.png", "step-000002.png"]
    _, titles, rows = drawn[0]
    assert titles == ["source", *(f"synthetic {name}" for name in store.modalities)]
    assert len(rows) == 4
    for _, images in rows:
        assert [image.shape for image in images] == [(16, 16)] * 5


def test_validation_keeps_the_weights_that_score_best(six, store, tmp_path):
    scores = iter([0.5, 0.9, 0.7])
    hooks = Hooks(validate=lambda _method: next(scores))
    settings = changed(six, save_every=2)
    assert run(settings, store, tmp_path / "run", hooks=hooks) == 4
    assert find_weights(str(tmp_path / "run")).info.steps == 4
    assert load_state(tmp_path / "run" / STATE_FILE).step == 6
    assert load_state(tmp_path / "run" / BEST_FILE).step == 4
    noted = [
        line["validation_ssim"] for line in stats(tmp_path / "run") if "validation_ssim" in line
    ]
    assert noted == [0.5, 0.9, 0.7]


def test_a_resumed_run_remembers_the_best_score(six, store, tmp_path):
    settings = changed(six, save_every=2)

    def die(step: int, _losses: object) -> None:
        if step == 4:
            raise Killed

    scores = iter([0.5, 0.9])
    with pytest.raises(Killed):
        run(
            settings,
            store,
            tmp_path / "run",
            hooks=Hooks(on_step=die, validate=lambda _: next(scores)),
        )
    again = Hooks(validate=lambda _: 0.7)
    assert run(settings, store, tmp_path / "run", resume=True, hooks=again) == 4
    assert find_weights(str(tmp_path / "run")).info.steps == 4


def test_training_leaves_the_global_generator_alone(six, store, tmp_path):
    before = torch.get_rng_state()
    run(changed(six, steps=1), store, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


# --- what stops a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays(
    bad, six, store, tmp_path, monkeypatch
):
    honest = AttclGan.training_step

    def explode(self, batch, step):
        losses = honest(self, batch, step)
        return losses | {"g_latent_cyc": torch.tensor(bad)} if step == 4 else losses

    monkeypatch.setattr(AttclGan, "training_step", explode)
    with pytest.raises(AttclError, match=f"loss g_latent_cyc is {bad} at step 5") as caught:
        run(six, store, tmp_path / "run")
    assert str(tmp_path / "run") in caught.value.hint
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3
    assert find_weights(str(tmp_path / "run")).info.steps == 3


def test_a_bad_step_between_two_log_lines_never_gets_into_a_checkpoint(
    six, store, tmp_path, monkeypatch
):
    honest = AttclGan.training_step

    def explode(self, batch, step):
        losses = honest(self, batch, step)
        return losses | {"g_latent_cyc": torch.tensor(float("nan"))} if step == 5 else losses

    monkeypatch.setattr(AttclGan, "training_step", explode)
    with pytest.raises(AttclError, match="at step 6"):
        run(changed(six, steps=9, log_every=9), store, tmp_path / "run")
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_signal_ends_the_step_saves_and_says_how_to_go_on(
    number, six, store, undisturbed, tmp_path
):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(step: int, _losses: object) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(InterruptedRun, match="stopped after step 5 of 6") as caught:
        run(six, store, tmp_path / "run", hooks=Hooks(on_step=interrupt))
    assert caught.value.hint == f"go on with: attcl train --resume {tmp_path / 'run'}"
    assert caught.value.exit_code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert load_state(tmp_path / "run" / STATE_FILE).step == 5
    run(six, store, tmp_path / "run", resume=True)
    same_run(undisturbed, tmp_path / "run")


def test_a_second_ctrl_c_stops_at_once(six, store, tmp_path):
    def interrupt(step: int, _losses: object) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(six, store, tmp_path / "run", hooks=Hooks(on_step=interrupt))
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_exits_130_and_resume_finishes(six, phantom_root, tmp_path):
    settings = changed(six, steps=200, save_every=1000, sample_every=1000)
    (tmp_path / "tiny.toml").write_text(dump(settings))
    attcl = [sys.executable, "-m", "attcl_cli", "train", "--data", str(phantom_root), "-d", "cpu"]
    options = {
        "cwd": tmp_path,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    }
    started = subprocess.Popen([*attcl, "-c", "tiny.toml", "-o", "run"], **options)
    lines = tmp_path / "run" / STATS_FILE
    deadline = time.monotonic() + 60
    while not (lines.exists() and lines.read_text().count("\n") > 2):
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert "stopped after step" in said
    assert "attcl train --resume run" in said
    done = load_state(tmp_path / "run" / STATE_FILE).step
    assert 0 < done < 200
    (tmp_path / "run" / "config.toml").write_text(dump(changed(settings, steps=done + 2)))
    ended = subprocess.run([*attcl, "--resume", "run"], check=False, timeout=60, **options)
    assert ended.returncode == 0, ended.stderr
    assert find_weights(str(tmp_path / "run")).info.steps == done + 2
