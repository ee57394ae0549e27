"""Scores on a Ray cluster of this machine: the same bytes, workers that die, cases that fail, their errors.

What a worker does is tested in this process first; these tests need no Ray.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import alexnet_state, pids_of
from score_files import first_completed, spoil, stand_in

from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError
from attcl_cli.methods.weights import find_weights
from attcl_cli.scoring.on_ray import _Worker
from attcl_cli.scoring.pairs import Comparison, plan_comparison, plan_directions
from attcl_cli.scoring.recipe import Recipe
from attcl_cli.scoring.rows import score_cases
from attcl_cli.scoring.run import score

CPU = torch.device("cpu")
EFFNET = ("fd-effnet", "kd-effnet")


def comparison_of(folders: SimpleNamespace) -> Comparison:
    return plan_comparison(
        open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None
    )


def worker_of(recipe: Recipe) -> _Worker:
    return _Worker(pickle.loads(pickle.dumps(recipe)), str(Path.cwd()), {}, "cpu", 1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- a worker, in this process ---


def test_a_workers_rows_and_features_are_those_of_one_process(folders, tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    spoil(first_completed(folders), lambda data: data // 2 + (data > 0))
    comparison = comparison_of(folders)
    recipes = [
        Recipe(("psnr", *EFFNET), tmp_path / f"{name}-cache", "effnet-lite0", baselines=True)
        for name in ("here", "there")
    ]
    rows = list(score_cases(comparison, recipes[0].load(CPU), folder=tmp_path / "here"))
    worker, store = worker_of(recipes[1]), recipes[1].load(CPU).store(tmp_path / "there")
    scored = []
    for case in comparison.cases:
        for item in pickle.loads(pickle.dumps(worker.work((case,)))):
            scored.append(item.rows)
            for features in item.features:
                store.keep(features)
    assert scored == rows
    assert list((tmp_path / "here").glob("*.npy"))
    assert files_of(tmp_path / "there-cache") == files_of(tmp_path / "here-cache")
    numbers, notes = (
        [
            {name: text for name, text in files_of(tmp_path / place).items() if name.endswith(end)}
            for place in ("here", "there")
        ]
        for end in (".npy", ".json")
    )
    assert numbers[0] == numbers[1]
    assert {
        name: text.replace(b"there-cache", b"here-cache") for name, text in notes[1].items()
    } == (notes[0])


def test_a_worker_measures_perceptual_distances_and_draws_samples(
    folders, tmp_path, network_folders, trained_run, monkeypatch
):
    stand_in("alexnet", alexnet_state(), network_folders.named, monkeypatch)
    comparison = comparison_of(folders)
    recipe = Recipe(
        ("lpips", "lpips-diversity"),
        tmp_path / "cache",
        weights=find_weights(str(trained_run)),
        samples=2,
        offline=True,
    )
    rows = list(score_cases(comparison, recipe.load(CPU), folder=tmp_path))
    scored = worker_of(recipe).work(comparison.cases)
    assert [item.rows for item in scored] == rows
    assert {row.prediction for of_case in rows for row in of_case} == {"synthetic", "samples"}


def test_a_worker_translates_every_direction(folders, tmp_path, trained_run):
    comparison = plan_directions(open_dataset(folders.truth), None, split="all")
    cases = comparison.cases[:2]
    recipe = Recipe(("psnr",), tmp_path / "cache", weights=find_weights(str(trained_run)))
    rows = list(score_cases(Comparison(cases, (), tmp_path), recipe.load(CPU), folder=tmp_path))
    assert [item.rows for item in worker_of(recipe).work(cases)] == rows


def test_a_case_that_cannot_be_read_ends_its_group_and_is_tried_three_times(
    folders, tmp_path, monkeypatch
):
    comparison = comparison_of(folders)
    damaged = comparison.cases[1].pairs[0].prediction[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    worker = worker_of(Recipe(("psnr",), tmp_path / "cache"))
    tries = []
    scored = worker._scored
    monkeypatch.setattr(worker, "_scored", lambda cases: tries.append(len(cases)) or scored(cases))
    first, error = worker.work(comparison.cases)
    assert first.rows[0].case == comparison.cases[0].case
    assert isinstance(error, AttclError) and damaged.name in error.message
    count = len(comparison.cases)
    assert tries == [count, count - 1, count - 1]


def test_other_weights_at_the_same_path_are_an_error_of_the_worker(folders, tmp_path, trained_run):
    weights = find_weights(str(trained_run))
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.path.read_bytes() + b" ")
    recipe = Recipe(
        ("psnr",),
        tmp_path / "cache",
        weights=type(weights)("w", other, weights.sha256, weights.info),
    )
    (error,) = worker_of(recipe).work(comparison_of(folders).cases)
    assert isinstance(error, AttclError) and error.code == "weights-differ"


# --- a cluster ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two workers; `score` takes a cluster that the caller has, and leaves it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute networks as a worker does: with one thread, so that sums are the same to the last digit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def both(folders: SimpleNamespace, **options: object) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Score here and on the cluster; return the results of both."""
    results = []
    for name, ray in (("here", None), ("there", "local")):
        output = folders.scores / name
        places = {"ori": folders.ori, "cpl": folders.cpl, "truth": folders.truth, "output": output}
        score(**places, device="cpu", ray=ray, **options)
        results.append(
            {file: (output / file).read_bytes() for file in ("scores.csv", "summary.json")}
        )
    return results[0], results[1]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "one_thread")
def test_a_cluster_gives_the_same_bytes_as_one_process(folders):
    spoil(first_completed(folders), lambda data: data // 2 + (data > 0))
    metrics = ("ssim", "psnr", "nmse", "fid", "kid")
    here, there = both(folders, metrics=metrics, fid_network="effnet-lite0", baselines=True)
    assert there == here
    assert b"matched-copy" in here["scores.csv"] and b"fd-effnet" in here["summary.json"]
    record = json.loads((folders.scores / "there/run.json").read_text())
    assert (record["status"], record["device"]) == ("done", "ray (cpu)")
    assert [case["status"] for case in record["cases"]] == ["done"] * len(record["cases"])


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "one_thread")
def test_a_cluster_translates_every_direction_and_draws_samples(folders, trained_run, tmp_path):
    case = "Phantom_00000"
    shutil.copytree(folders.truth / case, tmp_path / "one" / case)
    folders.ori = folders.truth = tmp_path / "one"
    here, there = both(
        folders,
        metrics=("psnr", "fid"),
        fid_network="effnet-lite0",
        directions=True,
        samples=2,
        weights=trained_run,
    )
    assert there == here
    assert b"six-directions" in here["summary.json"] and b"samples" in here["summary.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_case_that_cannot_be_read_is_the_same_error(folders):
    damaged = first_completed(folders)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255  # only a reader of the voxels sees it
    damaged.write_bytes(content)
    errors = []
    for ray in (None, "local"):
        with pytest.raises(AttclError) as caught:
            score(
                folders.ori, folders.cpl, truth=folders.truth, output=folders.scores,
                device="cpu", ray=ray,
            )  # fmt: skip
        errors.append((caught.value.message, caught.value.hint, caught.value.code))
        record = json.loads((folders.scores / "run.json").read_text())
        assert (record["status"], record["code"]) == ("failed", caught.value.code)
    assert errors[0] == errors[1]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_changes_nothing(folders):
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 300  # workers load torch first
        while not killed and time.monotonic() < end:
            for number in pids_of("_Worker.work"):
                os.kill(number, signal.SIGKILL)
                killed.append(number)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    here, there = both(folders)
    killer.join()
    assert killed
    assert there == here


@pytest.mark.slow
def test_the_command_starts_a_cluster_and_ends_it(folders, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    places = ["-i", folders.ori, "--cpl", folders.cpl, "--truth", folders.truth]
    outcome = subprocess.run(
        [sys.executable, "-m", "attcl_cli", "score", *map(str, places), "-o", str(folders.scores),
         "-d", "cpu", "--psnr", "--ray"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert "report.html" in outcome.stdout
    assert "Traceback" not in outcome.stderr
