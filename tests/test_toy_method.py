"""A method of another package from end to end: trained, resumed, completed and scored, with no edit elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import SMALL_RUN, Run, fingerprint
from training_runs import require_same_runs

from attcl_cli.data.dataset import open_dataset
from attcl_cli.training.state import STATE_FILE

pytestmark = pytest.mark.usefixtures("toy_package")

# Case 0 lacks t2, case 1 t2 and t1, case 2 nothing, case 3 t1ce; flair is there everywhere.
LACKING = (("t2",), ("t2", "t1"), (), ("t1ce",))
NAMES = ("toy", "toy-context")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(**changes: object) -> list[str]:
    """Return the options of a run that takes milliseconds."""
    values = {**SMALL_RUN, "steps": 6, "save_every": 3, "sample_every": 6, **changes}
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def trained(here: Path, phantom_root: Path, attcl: Run) -> Callable[[str], Path]:
    """`trained(name)` is the folder of a finished run on the shared cohort."""

    def train(name: str) -> Path:
        arguments = ("--data", phantom_root, "-o", f"runs/{name}", "-q", "-d", "cpu")
        code, out, err = attcl("train", "--method", name, "--preset", "tiny", *arguments, *small())
        assert (code, out) == (0, ""), err
        return here / "runs" / name

    return train


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_trains_it_and_writes_its_settings_in_a_table_of_its_name(name, trained):
    folder = trained(name)
    config = (folder / "config.toml").read_text()
    assert f'method = "{name}"' in config
    assert f"[{name}]\ntoy_width = 8\n" in config
    assert (folder / "samples" / "step-000006.png").is_file()
    assert json.loads((folder / "weights.json").read_text())["method"] == name


def test_a_run_of_fewer_steps_resumes_to_the_bits_of_a_longer_one(
    here, phantom_root, trained, attcl
):
    whole = trained("toy")
    options = ("--data", phantom_root, "-q", "-d", "cpu")
    short = small(steps=3)
    new = ("--method", "toy", "--preset", "tiny", "-o", "runs/short")
    assert attcl("train", *new, *options, *short)[0] == 0
    assert attcl("train", "--resume", "runs/short", *options, "--steps", 6)[0] == 0
    require_same_runs(whole, here / "runs" / "short")


def test_a_resumed_run_keeps_what_is_fixed(here, phantom_root, trained, attcl):
    trained("toy")
    before = (here / "runs" / "toy" / STATE_FILE).read_bytes()
    options = ("--data", phantom_root, "--resume", "runs/toy", "--steps", 9)
    code, _, err = attcl("train", *options, "--set", "toy_width=4")
    assert code == 2
    assert "was started with toy_width 8, found 4" in err
    assert (here / "runs" / "toy" / STATE_FILE).read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_it_completes_t2_alone_from_flair_alone(name, here, gappy, trained, attcl):
    trained(name)
    data = gappy()
    code, _, err = attcl("complete", "--ori", data, "--target", "t2", "-w", f"runs/{name}")
    assert code == 0, err
    assert {path.name for path in (here / "out").rglob("*.nii.gz")} == {
        f"Phantom_{case:05d}_t2.nii.gz" for case in (0, 1)
    }
    for case in (0, 1):
        side_car = here / "out" / f"Phantom_{case:05d}" / f"Phantom_{case:05d}_t2.json"
        assert json.loads(side_car.read_text())["source"]["modality"] == "flair"


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_parts_and_order_change_no_byte(name, here, gappy, trained, attcl):
    trained(name)
    data = gappy()
    options = ("complete", "--ori", data, "--target", "t2", "-w", f"runs/{name}", "-q")
    assert attcl(*options, "--cpl", "whole")[0] == 0
    assert attcl(*options, "--cpl", "small", "--batch-size", 1)[0] == 0
    for part in (2, 1):
        attcl(*options, "--cpl", "parts", "--num-parts", 2, "--part-id", part)
    images = [
        {path: digest for path, digest in fingerprint(here / out).items() if path.endswith(".gz")}
        for out in ("whole", "small", "parts")
    ]
    assert len(images[0]) == 2
    assert images[0] == images[1] == images[2]


def test_a_target_that_it_does_not_make_is_an_error_that_names_what_it_makes(
    here, gappy, trained, attcl
):
    trained("toy")
    code, _, err = attcl("complete", "--ori", gappy(), "-w", "runs/toy")
    assert code == 1
    assert "runs/toy/weights.safetensors makes t2, not t1, expected a model for t1 of 1 case" in err
    assert "makes t2, not t1ce, expected a model for t1ce of 1 case: Phantom_00003" in err
    assert not list((here / "out").rglob("*.nii.gz"))


def test_a_case_without_its_source_is_an_error_that_names_it(here, gappy, trained, attcl):
    trained("toy")
    data = gappy(lacking=[["t2"], ["t2", "flair"], [], []])
    code, _, err = attcl("complete", "--ori", data, "--target", "t2", "-w", "runs/toy")
    assert code == 1
    assert "runs/toy/weights.safetensors makes t2 from flair, which these cases lack" in err
    assert "1 case: Phantom_00001" in err
    assert not list((here / "out").rglob("*.nii.gz"))


def test_a_second_model_makes_what_the_toy_does_not(here, gappy, trained, trained_run, attcl):
    trained("toy")
    data = gappy()
    code, _, err = attcl("complete", "--ori", data, "-w", "runs/toy", "-w", trained_run)
    assert code == 0, err
    made_by = {
        path.stem: json.loads(path.read_text())["weights"]["name"]
        for path in (here / "out").rglob("Phantom_*.json")
    }
    assert made_by == {
        "Phantom_00000_t2": "toy",
        "Phantom_00001_t2": "toy",
        "Phantom_00001_t1": "tiny",
        "Phantom_00003_t1ce": "tiny",
    }


def test_its_volumes_are_scored(here, gappy, phantom_root, trained, attcl):
    trained("toy")
    data = gappy(lacking=[["t2"], ["t2"], [], []])
    assert attcl("complete", "--ori", data, "-w", "runs/toy")[0] == 0
    code, out, err = attcl(
        "score", "--ori", data, "--truth", phantom_root, "--split", "all", "--ssim", "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert document
    assert "flair" in (here / "scores" / "scores.csv").read_text()


def test_a_training_set_without_its_pair_is_refused_before_anything_is_made(
    here, phantom_root, attcl
):
    data = here / "data"
    shutil.copytree(phantom_root, data)
    for case in open_dataset(data).cases:
        (data / case.id / f"{case.id}_flair.nii.gz").unlink()
    arguments = ("--method", "toy", "--preset", "tiny", "--data", data, "-o", "run")
    code, _, err = attcl("train", *arguments, *small())
    assert code == 1
    assert "none of 4 training cases has t2 with flair" in err
    assert not (here / "run").exists()


def test_its_settings_are_not_those_of_another_method(phantom_root, attcl):
    code, _, err = attcl("train", "--data", phantom_root, "--set", "toy_width=4", "-n")
    assert code == 2
    assert "setting toy_width: is toy's, found it with method attcl-gan" in err
