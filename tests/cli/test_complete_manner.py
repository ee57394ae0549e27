"""`attcl complete` on the command line: passes, averaged models, intensities, and cases unlike the training data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attcl_cli.data.volume_statistics import NAMES
from attcl_cli.methods.weights import find_weights, load_method, save_weights


@pytest.fixture
def measured(trained_run, here) -> Path:
    """Weights that know quantiles of t2, and training volumes that no case is like."""
    import torch

    found = find_weights(str(trained_run))
    nothing = {str(case): (0.0,) * len(NAMES) for case in range(5)}
    info = replace(
        found.info,
        quantiles={"t2": (-1.0, 0.0, 1.0)},
        training_statistics=dict.fromkeys(found.info.modalities, nothing),
    )
    path = here / "measured.safetensors"
    save_weights(path, load_method(found, torch.device("cpu")), info)
    return path


def side_car(case: int, target: str) -> dict[str, object]:
    name = f"Phantom_{case:05d}"
    document: dict[str, object] = json.loads(Path(f"out/{name}/{name}_{target}.json").read_text())
    return document


def test_options_reach_the_side_cars(incomplete_root, measured, attcl, here):
    options = ("--mirror", "--planes", "three", "--intensities", "matched", "--target", "t2")
    code, _, err = attcl("complete", "--ori", incomplete_root, "-w", measured, *options)
    assert code == 0, err
    document = side_car(0, "t2")
    assert (document["mirror"], document["planes"]) == (True, "three")
    assert document["intensities"] == "matched"
    assert (
        json.loads(Path("out/run.json").read_text())["config"].items()
        >= {
            "mirror": True,
            "planes": "three",
            "average": False,
            "intensities": "matched",
        }.items()
    )


def test_models_are_averaged(incomplete_root, trained_run, measured, attcl, here):
    command = ("complete", "--ori", incomplete_root, "-w", trained_run, "-w", measured, "--average")
    code, out, err = attcl(*command, "-n", "--json")
    assert code == 0, err
    assert {job["weights"] for job in json.loads(out)["jobs"]} == {"tiny, measured"}
    assert attcl(*command)[0] == 0
    document = side_car(0, "t2")
    assert [model["name"] for model in document["averaged"]] == ["tiny", "measured"]
    assert document["doubt"]["disagreement"] == 0  # the weights are identical


def test_cases_unlike_the_training_data_are_named_at_the_end(
    incomplete_root, measured, attcl, here
):
    command = ("complete", "--ori", incomplete_root, "-w", measured)
    note = (
        "note: 3 of 3 cases are unlike the training data (Phantom_00000, Phantom_00001, Phantom_00003): "
        "check these volumes first"
    )
    code, _, err = attcl(*command)
    assert (code, err.splitlines()[-1]) == (0, note)
    assert side_car(1, "t1ce")["doubt"]["far"] is True
    code, out, err = attcl(*command, "--json")  # nothing is left to do
    assert json.loads(out)["far"] == ["Phantom_00000", "Phantom_00001", "Phantom_00003"]
    assert err.splitlines()[-1] == note


def test_weights_that_know_too_few_training_volumes_name_no_case(
    incomplete_root, trained_run, attcl, here
):
    code, out, err = attcl("complete", "--ori", incomplete_root, "-w", trained_run, "--json")
    assert code == 0
    assert json.loads(out)["far"] == []
    assert "unlike" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--planes", "two"), "--planes: 'two', expected axial or three"),
        (
            ("--intensities", "match"),
            "--intensities: 'match', expected auto or network or stretched or matched",
        ),
        (("--intensities", "matched"), "--intensities: matched, but"),
    ],
    ids=str,
)
def test_choices_that_there_are_not_are_refused(
    options, message, incomplete_root, measured, attcl, here
):
    code, out, err = attcl("complete", "--ori", incomplete_root, "-w", measured, *options)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert "hint: " in err
    assert not Path("out").exists()
