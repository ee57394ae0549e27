"""A method in training: a stopped run resumes to the same bits, what a run leaves, the average, the best weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import changed, small_settings
from toy_method import Toy, ToySettings
from training_runs import CPU, KilledError, require_same_runs, run, stats

from attcl_cli import devices
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.files import sha256
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings, dump
from attcl_cli.methods.weights import find_weights, load_method, save_weights
from attcl_cli.training import trainer
from attcl_cli.training.state import BEST_FILE, STATE_FILE, load_state
from attcl_cli.training.stats import STATS_FILE
from attcl_cli.training.trainer import Hooks


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


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bits(six, store, undisturbed, tmp_path):
    run(six, store, tmp_path / "again")
    require_same_runs(undisturbed, tmp_path / "again")


def test_a_killed_run_resumes_to_the_same_bits(six, store, undisturbed, tmp_path):
    with pytest.raises(KilledError):
        run(six, store, tmp_path / "run", kill_after=4)
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3
    run(six, store, tmp_path / "run", resume=True)
    require_same_runs(undisturbed, tmp_path / "run")


def test_the_state_holds_networks_averages_and_optimisers(undisturbed):
    kinds = {key.split(".")[0] for key in load_state(undisturbed / STATE_FILE).tensors}
    assert kinds == {"module", "average", "optimiser"}


def test_a_line_that_a_kill_cut_off_is_dropped(six, store, undisturbed, tmp_path):
    with pytest.raises(KilledError):
        run(six, store, tmp_path / "run", kill_after=3)
    with (tmp_path / "run" / STATS_FILE).open("a") as file:
        file.write('{"step": 4, "d_la')
    run(six, store, tmp_path / "run", resume=True)
    assert stats(tmp_path / "run") == stats(undisturbed)


def test_nothing_to_resume_is_an_error(six, store, tmp_path):
    with pytest.raises(UsageError) as caught:
        run(six, store, tmp_path / "run", resume=True)
    assert caught.value.code == "nothing-to-resume"


@pytest.mark.parametrize(
    "change", [{"width": 8}, {"acl": "none", "att_adain": False}, {"style_dim": 4}], ids=str
)
def test_a_checkpoint_of_other_networks_is_an_error(change, six, store, undisturbed):
    before = sha256(undisturbed / STATE_FILE)
    with pytest.raises(UsageError) as caught:
        run(changed(six, steps=9, **change), store, undisturbed, resume=True)
    assert caught.value.code == "checkpoint-does-not-fit"
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
        for key, first in start.networks()[name].named_parameters():
            trained, average = tensors[f"module.{name}.{key}"], tensors[f"average.{name}.{key}"]
            # decay min(0.995, 1 / 10) after the first step
            assert torch.allclose(average, 0.1 * first + 0.9 * trained, atol=1e-6), f"{name}.{key}"


def test_the_average_is_what_the_weights_hold(undisturbed):
    tensors = load_state(undisturbed / STATE_FILE).tensors
    method = load_method(find_weights(str(undisturbed)), CPU)
    for name, network in method.stored_networks().items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, tensors[f"average.{name}.{key}"].half().float())


def test_the_average_trails_the_networks(undisturbed):
    tensors = load_state(undisturbed / STATE_FILE).tensors
    key = "generator.down.0.conv1.weight"
    assert not torch.equal(tensors[f"average.{key}"], tensors[f"module.{key}"])


class Counting(Toy):
    """The toy with a non-persistent buffer, which notes the modes that its networks are used in."""

    made: list[Counting]

    def __init__(self, settings: ToySettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        self.network.register_buffer("calls", torch.zeros(()), persistent=False)
        self.modes: set[tuple[str, bool]] = set()
        self.made.append(self)

    def training_step(self, batch, step: int):
        self.network.calls += 1
        self.modes |= {("train", module.training) for module in self.network.modules()}
        return super().training_step(batch, step)

    def synthesise(self, sources, targets, *, sample=None):
        self.made[0].modes |= {("synthesise", module.training) for module in self.network.modules()}
        return super().synthesise(sources, targets, sample=sample)


@pytest.fixture
def counting(toy_package, monkeypatch) -> list[Counting]:
    """Return the list of `Counting` methods that runs of the test make, in place of toys."""
    monkeypatch.setattr(Counting, "made", [], raising=False)
    monkeypatch.setattr("toy_method.Toy", Counting)
    return Counting.made


@pytest.fixture
def toy_six(toy_package) -> Settings:
    return small_settings("toy", steps=6, save_every=3, sample_every=6)


def test_the_average_takes_over_the_buffers_of_each_step(toy_six, store, counting, tmp_path):
    seen: list[dict[str, torch.Tensor]] = []

    def validate(averaged: Method) -> float:
        seen.append({name: value.clone() for name, value in averaged.network.named_buffers()})
        trained = dict(counting[0].network.named_buffers())
        assert all(torch.equal(value, trained[name]) for name, value in seen[-1].items())
        return float(len(seen))

    run(toy_six, store, tmp_path / "run", hooks=Hooks(validate=validate))
    assert [buffers["1.num_batches_tracked"] for buffers in seen] == [3, 6]
    assert [buffers["calls"] for buffers in seen] == [3, 6]
    kept = load_method(find_weights(str(tmp_path / "run")), CPU).network.state_dict()
    assert kept["1.num_batches_tracked"] == 6
    assert torch.equal(kept["1.running_mean"], seen[-1]["1.running_mean"].half().float())


def test_the_average_samples_and_validates_in_eval_mode(toy_six, store, counting, tmp_path):
    judged: list[bool] = []

    def validate(averaged: Method) -> float:
        judged.extend(module.training for module in averaged.modules())
        return 0.0

    run(toy_six, store, tmp_path / "run", hooks=Hooks(validate=validate))
    assert judged and not any(judged)
    assert counting[0].modes == {("train", True), ("synthesise", False)}


def test_integer_buffers_are_saved_whole(toy_six, store, tmp_path):
    run(toy_six, store, tmp_path / "run")
    weights = find_weights(str(tmp_path / "run"))
    method = load_method(weights, CPU)
    method.network[1].num_batches_tracked.fill_(70_001)  # float16 ends at 65504
    save_weights(tmp_path / "late.safetensors", method, weights.info)
    late = load_method(find_weights(str(tmp_path / "late.safetensors")), CPU)
    assert late.network[1].num_batches_tracked == 70_001


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_batch_norm_needs_the_whole_batch_at_once(micro_batch, toy_six, store, tmp_path):
    settings = changed(toy_six, micro_batch=micro_batch)  # of a batch of 2
    if micro_batch == 2:
        assert run(settings, store, tmp_path / "run") == 6
        return
    with pytest.raises(UsageError) as caught:
        run(settings, store, tmp_path / "run")
    assert caught.value.code == "batch-norm-in-parts"
    assert "batch norm (network.1)" in caught.value.message


def test_stats_have_a_line_per_log_step_with_every_loss(undisturbed):
    lines = stats(undisturbed)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"d_latent_real", "g_latent_adv", "g_reference_cyc"} <= set(lines[0])


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


def test_the_last_weights_are_kept_if_asked_for_whatever_they_score(six, store, tmp_path):
    scores = iter([0.5, 0.9, 0.7])
    hooks = Hooks(validate=lambda _method: next(scores))
    settings = changed(six, save_every=2, keep="last")
    assert run(settings, store, tmp_path / "run", hooks=hooks) == 6
    assert find_weights(str(tmp_path / "run")).info.steps == 6
    assert not (tmp_path / "run" / BEST_FILE).exists()
    noted = [line["validation_ssim"] for line in stats(tmp_path / "run") if len(line) == 2]
    assert noted == [0.5, 0.9, 0.7]


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_average_is_the_published_one_unless_it_warms_up(warm_up, toy_six, store, tmp_path):
    """EMA of 0.9, or min(0.9, (1 + step) / (10 + step)), of the weights after each step, by hand."""
    history: list[torch.Tensor] = []
    settings = changed(toy_six, ema_decay=0.9, ema_warm_up=warm_up, save_every=1)

    def remember(step: int, _losses: object) -> None:
        tensors = load_state(tmp_path / "run" / STATE_FILE).tensors
        history.append(tensors["module.network.0.weight"])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        average = METHODS["toy"](settings, store.modalities).network[0].weight.detach().clone()
    run(settings, store, tmp_path / "run", hooks=Hooks(on_step=remember))
    for step, weight in enumerate(history):
        decay = min(0.9, (1 + step) / (10 + step)) if warm_up else 0.9
        average = decay * average + (1 - decay) * weight
    ours = load_state(tmp_path / "run" / STATE_FILE).tensors["average.network.0.weight"]
    assert torch.allclose(ours, average, atol=1e-6)


def test_a_resumed_run_remembers_the_best_score(six, store, tmp_path):
    settings = changed(six, save_every=2)

    def die(step: int, _losses: object) -> None:
        if step == 4:
            raise KilledError

    scores = iter([0.5, 0.9])
    with pytest.raises(KilledError):
        run(
            settings,
            store,
            tmp_path / "run",
            hooks=Hooks(on_step=die, validate=lambda _: next(scores)),
        )
    again = Hooks(validate=lambda _: 0.7)
    assert run(settings, store, tmp_path / "run", resume=True, hooks=again) == 4
    assert find_weights(str(tmp_path / "run")).info.steps == 4


def test_a_disk_that_is_full_between_the_two_checkpoints_costs_neither(
    six, store, tmp_path, monkeypatch
):
    def scored(*scores: float) -> Hooks:
        left = iter(scores)
        return Hooks(validate=lambda _method: next(left))

    real, copied = trainer.copy_whole, []

    def full(source: Path, target: Path) -> None:
        if copied:
            raise AttclError(f"{target}: No space left on device", code="file-not-written")
        copied.append(real(source, target))

    with monkeypatch.context() as patch, pytest.raises(AttclError):
        patch.setattr(trainer, "copy_whole", full)
        run(six, store, tmp_path / "run", hooks=scored(0.5, 0.9))
    assert run(six, store, tmp_path / "run", hooks=scored(0.9), resume=True) == 6
    steps = [load_state(tmp_path / "run" / name).step for name in (STATE_FILE, BEST_FILE)]
    assert steps == [6, 6]


def test_training_leaves_the_global_generator_alone(six, store, tmp_path):
    before = torch.get_rng_state()
    run(changed(six, steps=1), store, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


# --- what stops a run -------------------------------------------------------------------------------------------------


def test_networks_that_no_memory_holds_are_refused_at_once(toy_six, store, tmp_path, monkeypatch):
    method = METHODS[toy_six.method](toy_six, store.modalities)
    least = 16 * sum(parameter.numel() for parameter in method.parameters())
    monkeypatch.setattr(devices, "memory_of", lambda _device: least - 1)
    with pytest.raises(AttclError, match="million weights") as error:
        run(toy_six, store, tmp_path / "run")
    assert error.value.code == "networks-too-large"
    assert list((tmp_path / "run").iterdir()) == []
    monkeypatch.setattr(devices, "memory_of", lambda _device: least)
    assert run(toy_six, store, tmp_path / "run") > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays(
    six, store, tmp_path, monkeypatch
):
    honest = AttclGan.training_step

    def explode(self, batch, step):
        losses = honest(self, batch, step)
        return losses | {"g_latent_cyc": torch.tensor(float("nan"))} if step == 4 else losses

    monkeypatch.setattr(AttclGan, "training_step", explode)
    with pytest.raises(AttclError, match="loss g_latent_cyc is nan at step 5") as caught:
        run(six, store, tmp_path / "run")
    assert str(tmp_path / "run") in caught.value.hint
    assert load_state(tmp_path / "run" / STATE_FILE).step == 3
    assert find_weights(str(tmp_path / "run")).info.steps == 3


def test_ctrl_c_between_checkpoints_saves_a_state_that_resumes_to_the_same_bits(
    six, store, undisturbed, tmp_path
):
    def interrupt(step: int, _losses: object) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRun) as caught:
        run(six, store, tmp_path / "run", hooks=Hooks(on_step=interrupt))
    assert caught.value.hint == f"resume with: attcl train --resume {tmp_path / 'run'}"
    assert load_state(tmp_path / "run" / STATE_FILE).step == 5
    run(six, store, tmp_path / "run", resume=True)
    require_same_runs(undisturbed, tmp_path / "run")


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
    deadline = time.monotonic() + 300
    while not (lines.exists() and lines.read_text().count("\n") > 2):
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 130, said
    assert "stopped after step" in said
    assert "attcl train --resume run" in said
    done = load_state(tmp_path / "run" / STATE_FILE).step
    assert 0 < done < 200
    (tmp_path / "run" / "config.toml").write_text(dump(changed(settings, steps=done + 2)))
    ended = subprocess.run([*attcl, "--resume", "run"], check=False, timeout=300, **options)
    assert ended.returncode == 0, ended.stderr
    assert find_weights(str(tmp_path / "run")).info.steps == done + 2
