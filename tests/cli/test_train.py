"""`attcl train` on the command line: what it refuses, what it reports, and what `--resume` keeps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import states

from attcl_cli.files import sha256
from attcl_cli.methods.settings import read_run_settings, resolve
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.training import planning


def test_training_reports_the_ssim_of_the_validation_cases(phantoms, attcl, here):
    code, _, err = attcl(
        "prepare-splits", phantoms("brats"), "--ratio", "ratio3", "--sizes", "2/1/1"
    )
    assert code == 0, err
    code, out, err = attcl("train", "-c", "tiny.toml", "-o", "run")
    assert code == 0, err
    lines = [json.loads(line) for line in Path("run/stats.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["validation_ssim"] for line in lines if "validation_ssim" in line}
    assert scores
    for step, ssim in scores.items():
        assert re.search(
            rf"step {step} of \d+: in-brain SSIM on validation {ssim:.3f}, .*; copy 0", err
        )
    assert out.splitlines()[-1] == "run/report.html: open it in a browser"
    assert Path("run/report.html").is_file()
    assert "g_latent" not in err  # losses stay in stats.jsonl


def test_a_training_run_is_not_written_among_the_originals(phantom_root, attcl):
    inside = phantom_root / "runs"
    code, _, err = attcl("train", "--data", phantom_root, "--preset", "tiny", "-o", inside)
    assert code == 2
    assert err.startswith(f"error: --output: {inside} lies inside {phantom_root}")
    assert not inside.exists()


def test_a_dataset_of_one_modality_is_refused(phantom_root, attcl, tmp_path):
    for case in ("Phantom_00000", "Phantom_00001"):
        (tmp_path / "alone" / case).mkdir(parents=True)
        name = f"{case}/{case}_flair.nii.gz"
        (tmp_path / "alone" / name).symlink_to(phantom_root / name)
    code, _, err = attcl("train", "--data", tmp_path / "alone", "--preset", "tiny", "--steps", 1)
    assert code == 1
    assert "flair alone in 2 training cases, expected two modalities at least" in err


def test_a_dedicated_model_that_no_case_serves_is_refused_before_anything_is_read(
    here, phantom_root, attcl
):
    Path("one.toml").write_text('hidden = [["flair"], ["t1"], ["t2"]]')
    prepared = attcl("prepare-splits", phantom_root, "--ratio", "one.toml", "--sizes", "4/0/0")
    assert prepared[0] == 0, prepared[2]
    given = ("train", "--preset", "tiny", "--method", "plave", "-n", "--set")
    assert attcl(*given, "plave_target=t1")[0] == 1
    _, _, err = attcl(*given, "plave_target=t1")
    assert "none of 4 training cases has t1 with flair, t1ce, t2" in err


def test_a_test_split_alone_is_nothing_to_train_on(here, phantom_root, attcl):
    ratio = ("--ratio", "ratio3", "--sizes", "0/0/4")
    assert attcl("prepare-splits", phantom_root, *ratio)[0] == 0
    code, _, err = attcl("train", "--preset", "tiny", "-n")
    assert code == 1 and "no training case" in err


def test_synthetic_volumes_are_no_ground_truth_to_train_on(
    here, incomplete_root, trained_run, attcl
):
    code, _, err = attcl(
        "complete", "--ori", incomplete_root, "-w", trained_run, "--link-originals", "-q"
    )
    assert code == 0, err
    code, _, err = attcl("train", "--data", "out", "-c", "tiny.toml", "-n")
    assert code == 1
    assert err.startswith("error: out: 4 volumes have a side-car that says synthetic")


def test_a_setting_of_another_method_is_refused(here, incomplete_root, attcl):
    given = ("train", "--data", incomplete_root, "--preset", "tiny", "-n")
    code, _, err = attcl(*given, "--set", "plave_target=t1ce")
    assert code == 2
    assert err.startswith("error: setting plave_target: is PLAVE's") and "--method plave" in err
    code, _, err = attcl(*given, "--method", "plave", "--set", "lambda_pair=5")
    assert code == 2
    assert err.startswith("error: setting lambda_pair: is AttCL-GAN's, found it with method plave")


def test_a_dry_run_explains_the_settings_of_its_method_alone(here, incomplete_root, attcl):
    code, out, _ = attcl("train", "--data", incomplete_root, "--preset", "tiny", "-n")
    assert code == 0
    assert "[attcl-gan]" in out.splitlines()
    assert "lambda_scd = 0.1  # Style code diversity (Eq 11)." in out.splitlines()
    assert "plave_" not in out


def test_a_canvas_that_costs_detail_is_said_before_the_run(here, phantom_root, attcl):
    given = ("train", "--data", phantom_root, "--preset", "tiny", "-n")
    _, _, err = attcl(*given)
    assert "note: slices have at most 40x40 voxels, and are padded to 256x256" in err
    assert "; --set canvas=64 makes it one voxel" in err
    _, _, err = attcl(*given, "--set", "canvas=64")
    assert "slices have at most" not in err


def test_the_published_plave_is_refused_without_its_target(here, phantom_root, attcl):
    given = ("train", "--data", phantom_root, "--preset", "paper", "--method", "plave", "-n")
    code, _, err = attcl(*given)
    assert code == 2
    assert err.startswith("error: setting plave_target: '', expected one of flair, t1, t1ce, t2")
    assert "hint: --set plave_target=t1ce" in err
    code, out, err = attcl(*given, "--set", "plave_target=t1ce")
    assert code == 0, err
    assert 'plave_norm = "batch"' in out and "epochs = 500" in out


def test_an_attention_scale_as_published_is_warned_of_once(here, phantom_root, attcl):
    given = ("train", "--data", phantom_root, "--preset", "paper", "-n")
    _, _, err = attcl(*given)
    assert err.count("note: attention_scale is none") == 1
    _, _, err = attcl(*given, "--variant", "stargan-v2")
    assert "attention_scale" not in err


# --- the preset, and how long a run is --------------------------------------------------------------------------------


def test_without_a_preset_the_device_says_which_and_the_first_line_names_it(
    here, incomplete_root, attcl
):
    command = ("train", "--data", incomplete_root, "-d", "cpu", "-n")
    code, out, err = attcl(*command, "--json")
    assert code == 0, err
    assert err.startswith("device cpu: preset small (the default: small on a CPU, base on a GPU)\n")
    assert json.loads(out)["settings"] == resolve(preset="small").model_dump(mode="json")
    _, out, err = attcl(*command, "--preset", "base", "--json")
    assert "(the default" not in err
    assert json.loads(out)["settings"] == resolve(preset="base").model_dump(mode="json")
    Path("named.toml").write_text('preset = "tiny"')
    _, out, err = attcl(*command, "-c", "named.toml", "--json")
    assert "(the default" not in err
    assert json.loads(out)["settings"] == resolve(preset="tiny").model_dump(mode="json")


def test_a_plan_is_said_in_one_line_and_kept_in_the_settings(
    here, incomplete_root, attcl, monkeypatch
):
    # A machine that is busy for a moment would be given fewer steps than planned.
    monkeypatch.setattr(planning.Pace, "shortened", lambda _pace, _step: None)
    command = ("train", "--data", incomplete_root, "-c", "tiny.toml", "-o", "run")
    _, out, _ = attcl(*command, "--minutes", 0.01, "--dry-run")
    assert out.splitlines()[-1].startswith("steps: as many as end in 0.01 min on this machine")
    code, _, err = attcl(*command, "--minutes", 0.01)
    assert code == 0, err
    assert "measuring how long steps take, to end in 0.01 min" in err.splitlines()
    plan = r"0\.01 minutes: (\d+) steps? \([\d.]+ s per step\), checkpoint every 2"
    (steps,) = [match[1] for line in err.splitlines() if (match := re.fullmatch(plan, line))]
    assert read_run_settings(Path("run/config.toml")).steps == int(steps)
    assert json.loads(Path("run/run.json").read_text())["minutes"] == 0.01


def test_epochs_are_counted_in_steps(here, incomplete_root, attcl):
    command = ("train", "--data", incomplete_root, "-c", "tiny.toml", "--set", "batch_size=500")
    code, _, err = attcl(*command, "--epochs", 3, "-o", "run")
    assert code == 0, err
    assert "3 epochs: 3 steps" in err.splitlines()
    settings = read_run_settings(Path("run/config.toml"))
    assert (settings.epochs, settings.steps) == (3, 3)


def test_a_planned_run_without_a_checkpoint_is_planned_again(
    here, incomplete_root, attcl, monkeypatch
):
    from attcl_cli.data import slices

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ("train", "--data", incomplete_root, "-c", "tiny.toml", "--minutes", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(slices, "build", interrupted)
        assert attcl(*command, "-o", "run")[0] == 130
    code, _, err = attcl("train", "--resume", "run")
    assert code == 0, err
    assert any(line.startswith("0.01 minutes: ") for line in err.splitlines())


@pytest.mark.parametrize("other", [("--steps", 3), ("--epochs", 3)], ids=str)
def test_minutes_and_steps_exclude_each_other(other, here, incomplete_root, attcl):
    code, _, err = attcl("train", "--data", incomplete_root, "--minutes", 1, *other)
    assert code == 2
    assert err.startswith(f"error: --minutes: given with {other[0]}, expected one of them")


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped_run(here, incomplete_root, attcl) -> Path:
    """A run of two steps on a dataset that is not called data/."""
    code, _, err = attcl(
        "train", "--data", incomplete_root, "-c", "tiny.toml", "--steps", 2, "-o", "run"
    )
    assert code == 0, err
    return Path("run")


def test_a_resumed_run_finds_its_own_dataset_and_keeps_its_record(
    stopped_run, incomplete_root, attcl
):
    before = json.loads((stopped_run / "run.json").read_text())
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 3)
    assert code == 0, err
    record = json.loads((stopped_run / "run.json").read_text())
    assert record["data"] == str(incomplete_root.resolve())
    (part,) = record["earlier"]
    assert {key: before[key] for key in part} == part
    assert {"argv", "started", "seconds", "status"} <= set(part)
    assert record["seconds_in_all"] == pytest.approx(
        before["seconds"] + record["seconds"], abs=2e-3
    )


def test_a_resumed_run_keeps_its_own_precision(here, incomplete_root, attcl):
    start = ("train", "--data", incomplete_root, "-c", "tiny.toml", "--precision", "bf16")
    assert attcl(*start, "--steps", 2, "-o", "run")[0] == 0
    weights = {}
    for name, given in {"none": (), "bf16": ("bf16",), "fp32": ("fp32",)}.items():
        shutil.copytree("run", name)
        options = [option for value in given for option in ("--precision", value)]
        code, _, err = attcl("train", "--resume", name, "--steps", 3, *options)
        precision = given[0] if given else "bf16"
        assert (code, f"{name}: continues from step 2 in {precision}" in err) == (0, True)
        assert json.loads(Path(name, "run.json").read_text())["precision"] == precision
        weights[name] = Path(name, "weights.safetensors").read_bytes()
    assert weights["none"] == weights["bf16"] != weights["fp32"]


def test_a_resumed_run_refuses_other_patients(stopped_run, phantoms, attcl):
    other = phantoms("brats2023")
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 3, "--data", other)
    assert code == 2
    assert f"error: --resume: {stopped_run} was trained on" in err


def test_a_resumed_run_stays_in_its_folder(stopped_run, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "-o", "elsewhere", "--steps", 3)
    assert code == 2 and "--output: given with --resume" in err


def test_a_run_keeps_its_sizes(stopped_run, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "--preset", "base")
    assert code == 2
    assert err.startswith("error: --preset: given with --resume")


@pytest.mark.parametrize(
    "change",
    [["--method", "plave"], ["--set", "width=8"], ["--variant", "stargan-v2"], ["--seed", "9"]],
    ids=" ".join,
)
def test_a_run_keeps_its_networks_and_a_refusal_leaves_it_as_it_is(change, stopped_run, attcl):
    before = states(stopped_run)
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 3, *change)
    assert code == 2
    assert f"error: --resume: {stopped_run} was started with" in err and "hint: leave out" in err
    assert states(stopped_run) == before
    assert attcl("train", "--resume", stopped_run, "--steps", 3)[0] == 0


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again(
    here, incomplete_root, attcl, monkeypatch
):
    from attcl_cli.data import slices

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("train", "--data", incomplete_root, "-c", "tiny.toml", "--steps", 2, "-o", "run")
    with monkeypatch.context() as patch:
        patch.setattr(slices, "build", interrupted)
        code, _, err = attcl(*arguments)
    assert code == 130
    assert "run: interrupted, no step was saved yet" in err
    assert "hint: resume with: attcl train --resume run" in err
    assert json.loads(Path("run/run.json").read_text())["exit_code"] == 130
    code, _, err = attcl("train", "--resume", "run")
    assert code == 0 and "run: continues from step 0" in err
    assert attcl(*arguments[:-1], "whole")[0] == 0
    assert sha256(Path("run/weights.safetensors")) == sha256(Path("whole/weights.safetensors"))


def test_a_finished_run_is_described_by_its_document(stopped_run, attcl):
    code, out, _ = attcl("train", "--resume", stopped_run, "--json")
    document = json.loads(out)
    weights = stopped_run / WEIGHTS_FILE
    assert code == 0
    assert (document["weights"], document["sha256"]) == (str(weights), sha256(weights))
    assert (document["steps"], document["notes"]) == (2, [])


def test_a_finished_run_is_not_run_again(stopped_run, attcl):
    before = states(stopped_run)
    code, _, err = attcl("train", "--resume", stopped_run)
    assert code == 0
    assert "finished at step 2, nothing to do" in err
    assert states(stopped_run) == before


def test_fewer_steps_than_a_run_has_are_nothing_to_do(stopped_run, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 1)
    assert code == 0 and "expected 1 step, is at step 2, nothing to do" in err
