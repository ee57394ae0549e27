"""What the pages of docs/ show really runs: Getting started, the Python examples, a method, a metric, a layout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import Run, fingerprint
from test_docs import DOCS, ROOT, blocks, commands_of

import attcl_cli
from attcl_cli.data.labels import CONVENTIONS
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.scoring.metrics import VolumePair

SMALL = {"image_size": 16, "canvas": 32}
SMALL_GAN = {**SMALL, "downs": 2, "width": 4, "max_width": 8, "mapping_width": 8, "batch_size": 2}
"""The smallest networks that train, on slices of 30x30 voxels."""


def as_options(settings: dict[str, int]) -> list[str]:
    """Return settings as options of the command line."""
    return [f"--set={name}={value}" for name, value in settings.items()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTCL_OFFLINE", "1")
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_getting_started_run_in_their_order(workplace: Path, attcl: Run) -> None:
    # tests/cli/test_demo.py runs the demo; of its files the next commands need the patients alone
    write_cohort(workplace / "demo" / "phantoms", cases=12, voxel_mm=8)
    smaller = {
        "train": ["--steps=2", *as_options(SMALL_GAN)],
        "segment": ["--steps=2", *as_options({**SMALL, "levels": 3, "width": 4, "batch_size": 4})],
    }
    commands = [
        command for command in commands_of("docs/getting-started.md") if command[0] != "demo"
    ]
    ready = [command for command in commands if "MINE/" not in command and command[0][0] != "-"]
    assert [command[0] for command in ready] == [
        "info", "prepare-splits", "train", "complete", "score", "segment"
    ]  # fmt: skip
    for command in ready:
        code, _, err = attcl(*command, *smaller.get(command[0], []))
        assert code == 0, f"{command}: {err}"
    for file in ("scores/report.html", "segment/segment.csv"):
        assert (workplace / file).is_file()


@pytest.mark.slow
def test_the_python_examples_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cohort(workplace / "BraTS2021", cases=5, voxel_mm=8)
    for file, name in (("a", "flair"), ("b", "t1")):
        source = f"BraTS2021/Phantom_00000/Phantom_00000_{name}.nii.gz"
        shutil.copy(workplace / source, workplace / f"{file}.nii.gz")
    names: dict[str, object] = {}
    for block in blocks("docs/guides/python.md", "python"):
        exec(block.replace('"steps": 200', f'"steps": 2, **{SMALL_GAN}'), names)
    out = capsys.readouterr().out
    assert "10 volumes written to out" in out
    assert "dataset-not-found nowhere" in out


@pytest.fixture
def own_method(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, phantoms: Callable[[str], Path]
) -> Path:
    """The method of docs/extend/method.md, installed as a package of one's own; `whole/` are patients."""
    (code,) = blocks("docs/extend/method.md", "python")
    site = workplace / "site"
    (site / "own-1.dist-info").mkdir(parents=True)
    (site / "own_regressor.py").write_text(code, encoding="utf-8")
    entry = "[attcl.methods]\nregressor = own_regressor:Regressor\n"
    (site / "own-1.dist-info" / "entry_points.txt").write_text(entry)
    (site / "own-1.dist-info" / "METADATA").write_text("Name: own\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(site))
    shutil.copytree(phantoms("brats"), workplace / "whole")
    return workplace


def test_the_method_of_the_page_trains_resumes_and_completes(own_method: Path, attcl: Run) -> None:
    settings = {**SMALL, "canvas": 64, "batch_size": 2}
    common = ["--method=regressor", "--preset=tiny", "--data=whole", *as_options(settings)]
    assert attcl("train", *common, "--steps=4", "-o", "straight")[0] == 0
    assert attcl("train", *common, "--steps=2", "-o", "resumed")[0] == 0
    assert attcl("train", "--resume", "resumed", "--steps=4")[0] == 0
    weights = [own_method / run / "weights.safetensors" for run in ("straight", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    for path in [
        *(own_method / "whole").rglob("*_t1.nii.gz"),
        *(own_method / "whole").rglob("*_t2.nii.gz"),
    ]:
        path.unlink()
    code, out, _ = attcl(
        "complete",
        "--ori=whole",
        "--cpl=out",
        "-w",
        "straight",
        "--dry-run",
        "--json",
        "--target=t2",
    )
    assert code == 0
    assert {job["source"] for job in json.loads(out)["jobs"]} == {"flair"}
    assert attcl("complete", "--ori=whole", "--cpl=out", "-w", "straight", "--target=t2")[0] == 0
    made = [name for name in fingerprint(own_method / "out") if name.endswith(".nii.gz")]
    assert made
    assert all(name.endswith("_t2.nii.gz") for name in made)
    assert attcl("complete", "--ori=whole", "--cpl=t1", "-w", "straight", "--target=t1")[0] == 1


def test_the_metric_of_the_page_gives_the_mean_absolute_error() -> None:
    (code,) = blocks("docs/extend/metric.md", "python")
    names: dict[str, object] = {}
    exec(code, names)
    metric = names["MAE"]
    image, truth = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    truth[0, 0] = [0.5, 1.0]
    inside = truth > 0
    pair = VolumePair(image, truth, image, truth)
    values = metric.function(pair, {"whole": None, "brain": inside, "tumour": ~inside & inside})
    assert values["whole"] == 1.5 / 8
    assert values["brain"] == 0.75
    assert np.isnan(values["tumour"])


def test_the_layout_of_the_page_reads_and_makes_paths() -> None:
    (code,) = blocks("docs/extend/layout.md", "python")
    names: dict[str, object] = {}
    exec(code, names)
    layout = names["HOSPITAL"]
    path = "glioma/H0004_v2/registered/H0004_v2_FLAIR.nii.gz"
    match = layout.pattern().fullmatch(path)
    assert match["case"] == "H0004_v2"
    assert match["token"] == "FLAIR"
    assert str(layout.place(case=match["case"], token="FLAIR", prefix="glioma/")) == path
    assert layout.patient_of(match["case"]) == "H0004"
    assert layout.label_convention in CONVENTIONS


@pytest.mark.slow
def test_a_dead_link_fails_the_build_of_the_site(tmp_path: Path) -> None:
    pytest.importorskip("properdocs")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(Path(attcl_cli.__file__).parent, tmp_path / "attcl_cli")
    command = [sys.executable, "-m", "properdocs", "build", "--strict", "-f", "mkdocs.yml"]
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as file:
        file.write("\n[dead](nowhere.md)\n")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "nowhere.md" in ended.stderr
