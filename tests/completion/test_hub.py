"""Training and completion with two-domain models: the slices choose the hub, and side-cars say what went through it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from completers import completed, phantom_file, plan_of
from helpers import SMALL_NETWORKS, SMALL_RUN

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import training_slices
from attcl_cli.methods.settings import read_run_settings
from attcl_cli.methods.weights import Weights, find_weights
from attcl_cli.progress import Silent
from attcl_cli.run_record import read_record
from attcl_cli.training.run import TrainingResult, train

SMALL = {**SMALL_RUN, **SMALL_NETWORKS["cyclegan"]}
# Of the four shared phantoms: t1 is there four times, the others three times at most.
TRAINED_WITHOUT = (("flair",), ("t2",), ("t1ce",), ("flair", "t2"))


class Told(Silent):
    """A progress that remembers what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def lacking(root: Path, target: Path, names: Any) -> Path:
    """Copy a cohort without some volumes, a list of modalities per case."""
    shutil.copytree(root, target)
    for index, ones in enumerate(names):
        for name in ones:
            (target / phantom_file(index, name)).unlink()
    return target


@pytest.fixture(scope="module")
def trained(
    phantom_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, list[str]]:
    """A run that names no hub, and what it said."""
    folder = tmp_path_factory.mktemp("hub")
    told = Told()
    result = train(
        lacking(phantom_root, folder / "data", TRAINED_WITHOUT),
        output=folder / "run",
        method="cyclegan",
        preset="tiny",
        overrides=SMALL,
        device="cpu",
        progress=told,
    )
    return result, told.lines


@pytest.fixture(scope="module")
def spoked(trained: tuple[TrainingResult, list[str]]) -> Weights:
    """Weights whose hub is t1."""
    return find_weights(str(trained[0].run_dir))


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_most_frequent_modality_becomes_the_hub_and_stands_in_all_files(trained, spoked):
    result, lines = trained
    assert "hub: t1, as the training slices have it" in lines
    run_dir = result.run_dir
    assert read_run_settings(run_dir / "config.toml").hub == "t1"
    assert read_record(run_dir)["config"]["hub"] == "t1"
    assert spoked.info.settings.hub == "t1"
    assert spoked.info.rule.hub == "t1"


def test_a_run_continues_with_its_hub(trained, tmp_path):
    run_dir = Path(shutil.copytree(trained[0].run_dir, tmp_path / "run"))
    told = Told()
    result = train(resume=run_dir, overrides={"steps": 5}, device="cpu", progress=told)
    assert result.settings.hub == "t1"
    assert not any(line.startswith("hub:") for line in told.lines)


def test_an_epoch_of_a_run_is_one_of_every_pair(trained, tmp_path):
    result = train(
        trained[0].data,
        output=tmp_path / "run",
        method="cyclegan",
        preset="published",
        overrides={key: value for key, value in SMALL.items() if key != "steps"}
        | {"batch_size": 64, "save_every": 500},
        epochs=1,
        device="cpu",
    )
    assert result.settings.hub == "t1"
    assert result.settings.epochs == 1
    slices = _slices_of(result.run_dir, "t1")
    assert result.settings.steps == -(-3 * slices // 64)


def _slices_of(run_dir: Path, modality: str) -> int:
    """Return how many slices of a modality show brain, of the cases that a run was trained on."""
    dataset = open_dataset(Path(read_record(run_dir)["data"]))
    count = 0
    for case in dataset.cases:
        (path,) = dataset.paths(case, modality)
        data = nib.load(path).get_fdata()
        depth = data.shape[2]
        span = training_slices(depth)
        count += int(data[..., span.start : span.stop].any(axis=(0, 1)).sum())
    return count


# --- completion -------------------------------------------------------------------------------------------------------


def test_what_is_made_through_the_hub_says_so(gappy, spoked, tmp_path):
    root = gappy(lacking=[("t1", "t2"), ("t2",), (), ()])
    completed(root, tmp_path / "out", spoked)
    documents = {
        name: json.loads(
            (tmp_path / "out" / phantom_file(index, name)[:-7]).with_suffix(".json").read_text()
        )
        for index, name in ((0, "t1"), (0, "t2"))
    }
    assert documents["t2"]["through"] == ["t1"]
    assert documents["t2"]["source"]["modality"] == "flair"
    assert "through" not in documents["t1"]
    direct = json.loads((tmp_path / "out/Phantom_00001/Phantom_00001_t2.json").read_text())
    assert "through" not in direct
    assert direct["source"]["modality"] == "t1"
    image = nib.load(tmp_path / "out" / phantom_file(0, "t2"))
    assert image.header["descrip"].item().decode().endswith("synthetic t2 from flair through t1")


def test_what_was_made_through_the_hub_counts_as_done(gappy, spoked, tmp_path):
    root = gappy(lacking=[("t1", "t2"), ("t2",), (), ()])
    completed(root, tmp_path / "out", spoked)
    again = plan_of(root, tmp_path / "out", spoked)
    assert (again.jobs, again.done) == ((), 3)


def test_a_plan_knows_without_networks_what_goes_through_the_hub(gappy, spoked, tmp_path):
    root = gappy(lacking=[("t1", "t2"), ("t2",), (), ()])
    one, other = plan_of(root, tmp_path / "out", spoked).jobs
    assert {name: one.between(name) for name in one.outputs} == {"t1": (), "t2": ("t1",)}
    assert other.between("t2") == ()
