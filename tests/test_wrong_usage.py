"""Wrong usage of the command line: exit code 2, one line that names the flag, and nothing written."""

from __future__ import annotations

import re

import pytest
from helpers import refusal, states

from attcl_cli.methods.settings import dump

# arguments -> what line 1 begins with; {data} is a sound dataset, {run} a run with weights, {config} its settings
USAGE = {
    "complete --ori {data} -w {run} --device cuda:7": "--device: 'cuda:7' is not on this machine",
    "complete --ori {data} -w {run} --device tpu": "--device: 'tpu' is not on this machine",
    "train --data {data} --device cuda:x": "--device: 'cuda:x' is not on this machine",
    "complete --ori {data} -w {run} --target adc": "--target: ",
    "complete --ori {data} -w {run} --slices 5": "--slices: '5'",
    "complete --ori {data} -w {run} --slices 9:3": "--slices: '9:3'",
    "complete --ori {data} -w {run} --slices a:b": "--slices: 'a:b'",
    "complete --ori {data} -w {run} --slices=-1:4": "--slices: '-1:4'",
    "complete --ori {data} -w {run} --num-parts 2 --part-id 3": "--part-id: 3, expected 1 to",
    "complete --ori {data} -w {run} --num-parts 0": "Invalid value for '--num-parts'",
    "complete --ori {data} -w {run} --batch-size 0": "Invalid value for '--batch-size'",
    "complete --ori {data} -w {run} --num-workers -1": "Invalid value for '--num-workers'",
    "complete --ori {data} -w {run} --layout dicom": "--layout: 'dicom'",
    "complete --ori {data} -w {run} --cpll out": "No such option: --cpll",
    "complete --ori": "Option '--ori' requires an argument",
    "complete {data}": "Got unexpected extra argument",
    "complet --ori {data}": "No such command 'complet'",
    "prepare-splits": "Missing argument",
    "prepare-splits {data} --ratio ratio9": "--ratio: 'ratio9'",
    "prepare-splits {data} --sizes 1/2": "--sizes: '1/2'",
    "prepare-splits {data} --sizes 9/9/9": "--sizes: 9/9/9 of 4 cases",
    "prepare-splits {data} --sizes 2/1/1 --fractions 0.5/0.3/0.2": "--sizes and --fractions",
    "prepare-splits {data} --fractions a/b/c": "--fractions: 'a/b/c'",
    "prepare-splits {data} --fractions 0.9/0.9/0.9": "--fractions: 0.9/0.9/0.9",
    "prepare-splits {data} --subset 1/0": "--subset: '1/0'",
    "prepare-splits {data} --subset 1/100": "--subset: 1/100",
    "prepare-splits {data} --link magic": "Invalid value for '--link'",
    "prepare-splits {data} --seed -1": "Invalid value for '--seed'",
    "train --data {data} --preset huge": "--preset: unknown preset 'huge'",
    "train --data {data} --method magic": "--method: ",
    "train --data {data} --set lambda_scdd=1": "setting 'lambda_scdd': no such setting",
    "train --data {data} --set steps=-1": "setting steps: found -1",
    "train --data {data} --set steps": "--set: 'steps'",
    "train --data {data} --steps 0": "Invalid value for '--steps'",
    "train --data {data} --config nowhere.toml": "nowhere.toml: no such file",
    "train --data {data} --resume nowhere": "--resume: nowhere",
    "train --data {data} --resume nowhere --config {config}": "--resume: nowhere",
    "info --jsn": "No such option: --jsn",
}  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage_exits_with_2_names_the_flag_and_writes_nothing(
    arguments, phantom_root, trained_run, tiny_settings, attcl, elsewhere, tmp_path
):
    config = tmp_path / "tiny.toml"
    config.write_text(dump(tiny_settings))
    words = arguments.format(data=phantom_root, run=trained_run, config=config).split()
    lines = refusal(attcl(*words), code=2, names=USAGE[arguments])
    if not re.search(", expected |input should be", lines[0]):  # the parser's own words
        assert lines[1].startswith("hint: see: attcl")
    assert states(elsewhere) == {}


def test_an_unknown_setting_is_answered_with_the_nearest_one(phantom_root, attcl, elsewhere):
    (elsewhere / "mine.toml").write_text("lamda_scd = 0.2\nlerning_rate = 0.1\n")
    before = states(elsewhere)
    lines = refusal(
        attcl("train", "--data", phantom_root, "-c", "mine.toml"),
        code=2,
        names="mine.toml: setting 'lamda_scd': no such setting",
        hint="did you mean 'lambda_scd'",
    )
    assert any(line.startswith("error: mine.toml: setting 'lerning_rate'") for line in lines[1:])
    assert states(elsewhere) == before


def test_a_folder_that_is_no_run_cannot_be_resumed(phantom_root, attcl, elsewhere):
    (elsewhere / "run").mkdir()
    (elsewhere / "run/note.txt").write_text("mine")
    before = states(elsewhere)
    refusal(
        attcl("train", "--data", phantom_root, "--resume", "run"),
        code=2,
        names="--resume: run",
        hint="another run",
    )
    assert states(elsewhere) == before


def test_an_existing_run_is_not_trained_over(phantom_root, attcl, elsewhere):
    (elsewhere / "run").mkdir()
    (elsewhere / "run/note.txt").write_text("mine")
    before = states(elsewhere)
    refusal(
        attcl("train", "--data", phantom_root, "-o", "run"),
        code=2,
        names="--output: run is not empty",
        hint="attcl train --resume run",
    )
    assert states(elsewhere) == before


def test_prepare_splits_replaces_nothing_that_it_did_not_make(phantom_root, attcl, elsewhere):
    (elsewhere / "data").mkdir()
    (elsewhere / "data/note.txt").write_text("mine")
    before = states(elsewhere)
    for options in ((), ("--overwrite",)):
        refusal(
            attcl("prepare-splits", phantom_root, "--ratio", "ratio3", *options),
            code=2,
            names="--output: data",
            hint="another --output",
        )
        assert states(elsewhere) == before


def test_debug_shows_the_traceback_before_the_error(attcl, elsewhere):
    code, _, err = attcl("info", "nowhere", "--debug")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.splitlines()[-2].startswith("error: nowhere: no such folder")
