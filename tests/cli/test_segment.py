"""`attcl segment`: its tables fit 80 columns, JSON is one document, and flags that became commands name them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from segmenters import FLAGS, label_map, own_data

from attcl_cli.segmentation import evaluation


@pytest.fixture
def run(attcl, study) -> Callable[..., tuple[int, str, str]]:
    """`run("--compare")` is `attcl segment` of a tiny segmenter for two steps."""
    del study
    return lambda *arguments: attcl("segment", *FLAGS, "-d", "cpu", *arguments)


def test_a_comparison_is_shown_in_tables_of_80_columns(run):
    code, out, err = run("--compare", "--per-slice")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "each trained for 2 steps" in text and "weights of step: flair 2" in text
    assert "completed - incomplete" in text and "a slice is the unit" in text
    assert "segment/summary.json" in text
    assert out.splitlines()[-1] == "segment/report.html: open it in a browser"
    assert "note: few test cases (1)" in err and "train flair 2/2 loss" in err


def test_json_is_one_document_with_figures_and_differences(run):
    code, out, err = run("--compare", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert set(document["scores"]) == {"flair", "incomplete", "completed", "real"}
    assert set(document["scores"]["completed"]) == {"WT", "TC", "ET"}
    assert {(gap["first"], gap["second"]) for gap in document["differences"]} >= {
        ("real", "completed")
    }
    assert {"n", "n_undefined", "sd"} <= set(document["figures"][0])
    assert document["trained"].startswith("each trained for 2 steps")
    assert document["notes"] == ["few test cases (1): the intervals say little"]
    assert document["summary.json"] == "segment/summary.json"


def test_quiet_shows_nothing(run):
    assert run("-q")[1:] == ("", "")


def test_a_dry_run_shows_inputs_and_settings(run):
    code, out, _ = run("--compare", "-n")
    assert code == 0 and "would train 2 steps at 40 pixels" in out
    assert "learning_rate = 0.01  # " in out
    assert "learning_rate = 0.001  # " in run("--preset", "base", "-n")[1]
    assert "--set canvas=40 makes it one voxel" in run("--set", "canvas=80", "-n")[2]
    code, out, _ = run("--json", "-n")
    document = json.loads(out)
    assert document["inputs"] == {"completed": {"train": 2, "val": 1, "test": 1}}
    assert document["settings"]["steps"] == 2
    assert not Path("segment").exists()


def test_the_steps_of_the_line_are_stronger_than_those_of_set(run):
    _, out, _ = run("--json", "-n", "--steps", 7, "--seed", 3)
    settings = json.loads(out)["settings"]
    assert (settings["steps"], settings["seed"]) == (7, 3)


def test_wrong_usage_has_a_hint_and_shows_no_result(run):
    for arguments, exit_code in ((["--preset", "huge"], 2), (["--input", "t1"], 1)):
        code, out, err = run(*arguments)
        assert (code, out) == (exit_code, "")
        assert err.startswith("error: ") and "hint: " in err


def test_a_dataset_without_splits_is_sent_to_prepare_splits(attcl, study):
    code, _, err = attcl("segment", "--ori", study.truth)
    assert code == 2 and "splits.json" in err and "hidden = [[]]" in err


def test_cases_left_out_are_exit_code_3_after_all_is_shown(run, study):
    own_data(study)
    label_map(study).unlink()
    code, out, err = run("--input", "flair")
    assert (code, out) == (1, "") and "1 case has no segmentation file" in err
    code, out, err = run("--input", "flair", "--allow-missing")
    assert code == 3 and "summary.json" in out
    assert study.splits.names("train")[0] in err


def test_a_warning_about_a_leak_is_part_of_the_result(run):
    Path("out/run.json").unlink()
    code, out, _ = run()
    assert code == 0 and "warning: what the completion weights were trained on" in out


def test_control_c_says_how_to_resume(run):
    with mock.patch.object(evaluation, "predict_and_score", side_effect=KeyboardInterrupt):
        code, _, err = run("-q")
    assert code == 130 and "hint: resume with: attcl segment --resume segment" in err


def test_the_commands_of_a_study_run_one_after_the_other(attcl, run, study):
    """Train, evaluate the weights, evaluate the predictions, export: what the flags did in one command."""
    assert run("-q")[0] == 0
    assert attcl("evaluate", "-w", "segment", "-d", "cpu", "-q")[0] == 0
    assert attcl("evaluate", "segment/predictions", "-q")[0] == 0
    assert attcl("export", "nnunet", "Dataset001_x", "-q")[0] == 0
    commands = {
        name: json.loads(Path(name, "run.json").read_text())["command"]
        for name in ("segment", "segment-evaluated", "segment-predictions", "Dataset001_x")
    }
    assert list(commands.values()) == ["segment", "evaluate", "evaluate", "export"]
    shutil.rmtree(study.root / "out")
    code, _, err = run("--resume", "segment")
    assert code == 2 and "--set" in err
