"""The demo: the whole way with the bundled weights."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

from attcl_cli.cli import app
from attcl_cli.files import sha256
from attcl_cli.methods import weights as checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A finished demo of a process of its own; the last argument is its folder."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "attcl_cli", "demo", "--cases", "3", "-d", "cpu", "-q", "-o"]
    return subprocess.run(
        [*command, str(folder)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def finished(ended: subprocess.CompletedProcess[str]) -> Path:
    assert ended.returncode == 0, ended.stderr
    return Path(ended.args[-1])


def test_it_is_quiet_if_it_is_asked_to_be(ended: subprocess.CompletedProcess[str]) -> None:
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_its_patients_are_test_patients_as_its_summary_says(finished: Path) -> None:
    assert json.loads((finished / "summary.json").read_text())["split"] == "test"
    splits = json.loads((finished / "data/splits.json").read_text())["splits"]
    assert [len(splits[name]) for name in ("train", "val", "test")] == [0, 0, 3]
    record = json.loads((finished / "run.json").read_text())
    assert (record["command"], record["status"], record["exit_code"]) == ("demo", "done", 0)


def test_it_scores_each_hidden_volume_beside_a_copy_of_its_source(finished: Path) -> None:
    with (finished / "scores.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["region"] == "brain"]
    for prediction in ("synthetic", "copy"):
        volumes = {
            (row["case"], row["modality"]) for row in rows if row["prediction"] == prediction
        }
        assert len(volumes) == 6


def test_the_bundled_weights_beat_a_copy_of_the_source(finished: Path) -> None:
    found = {
        (item["metric"], item["prediction"]): item["mean"]
        for item in json.loads((finished / "summary.json").read_text())["scores"]
        if (item["group"], item["region"]) == ("all", "brain")
    }
    assert found["ssim", "synthetic"] > found["ssim", "copy"]
    assert found["psnr", "synthetic"] > found["psnr", "copy"]


def test_it_ends_with_a_picture_and_a_page_that_says_what_it_is(finished: Path) -> None:
    assert (finished / "montage.png").read_bytes().startswith(b"\x89PNG")
    page = (finished / "report.html").read_text()
    assert "not a medical device" in page
    assert "phantoms" in page


def test_a_second_demo_in_the_same_place_makes_no_volume_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*.nii.gz")}
    with pytest.raises(SystemExit) as ended:
        app.main(["demo", "-o", str(finished), "--cases", "3", "-d", "cpu", "-q"])
    assert ended.value.code == 0
    after = {path: path.stat().st_mtime_ns for path in (finished / "out").rglob("*.nii.gz")}
    assert after == before


def test_a_demo_of_another_size_does_not_mix_with_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app.main(["demo", "-o", str(finished), "--cases", "4", "-d", "cpu", "-q"])
    assert ended.value.code == 1
    assert "3 cases of an earlier demo, expected 4" in capsys.readouterr().err
    assert json.loads((finished / "run.json").read_text())["status"] == "done"  # of the first one


def test_the_bundled_weights_are_those_that_their_card_describes() -> None:
    weights = checkpoint.find_weights(checkpoint.BUNDLED)
    card = json.loads(weights.path.with_suffix(".json").read_text())
    assert card["sha256"] == sha256(weights.path)
    assert "demo" in card["note"]
