"""Scores by networks: LPIPS and its diversity, distances between sets of slices, translation in every direction."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import alexnet_state, small_settings
from score_files import HIDDEN, figures_of, first_completed, rows_of, spoil, stand_in

from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.methods import METHODS
from attcl_cli.methods.weights import WeightsInfo, save_weights
from attcl_cli.scoring import feature_networks, feature_store, formulas
from attcl_cli.scoring.pairs import Comparison, plan_comparison
from attcl_cli.scoring.rows import Measures, score_cases
from attcl_cli.scoring.summary import SIX_DIRECTIONS, summarise

FOUR = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(scope="module")
def effnet():
    return feature_networks.load_network("effnet-lite0")


class Counting:
    """The real network, which counts the slices that it is shown."""

    def __init__(self, network):
        self.network, self.seen = network, 0
        self.name, self.sha256, self.dim = network.name, network.sha256, network.dim

    def __call__(self, slices):
        self.seen += len(slices)
        return self.network(slices)


def comparison_of(folders: SimpleNamespace) -> Comparison:
    return plan_comparison(
        open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None
    )


def distances_of(folders, tmp_path, network, name: str, *, batch_size: int = 32, cache=None):
    measures = Measures(
        ("fd-effnet", "kd-effnet"), embed=network, batch_size=batch_size, cache=cache
    )
    folder = tmp_path / name
    folder.mkdir()
    comparison = comparison_of(folders)
    rows = [row for of_case in score_cases(comparison, measures, folder=folder) for row in of_case]
    assert rows == []  # a distance of sets is no score of a volume
    return {
        (figure.group, figure.metric): figure
        for figure in summarise(rows, comparison, measures, folder=folder)
    }


def test_distances_of_sets_are_zero_for_the_truth_and_do_not_depend_on_batches(
    folders, tmp_path, effnet
):
    spoiled = first_completed(folders)
    network = Counting(effnet)
    cache = tmp_path / "cache"
    same = distances_of(folders, tmp_path, network, "same", cache=cache)
    first_seen = network.seen
    assert same["all", "fd-effnet"].mean == pytest.approx(0, abs=1e-6)
    assert same["all", "fd-effnet"].n == first_seen / 2
    assert math.isnan(same["all", "fd-effnet"].sd)
    assert same["t2", "fd-effnet"].network == "effnet-lite0"

    rng = np.random.default_rng(0)
    spoil(
        spoiled,
        lambda data: np.where(data > 0, rng.permutation(data.ravel()).reshape(data.shape), 0),
    )
    one = distances_of(folders, tmp_path, network, "one", cache=cache)
    # only generated slices were shown: the real ones come from the cache
    assert network.seen - first_seen == first_seen / 2
    assert one["t2", "fd-effnet"].mean > 1
    vectors = [
        np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
        for folder in (cache, tmp_path / "one")
    ]
    kernel = formulas.kernel_distance(*vectors)
    assert one["all", "kd-effnet"].mean == pytest.approx(kernel, rel=1e-4)
    assert one["all", "kd-effnet"].mean != pytest.approx(one["all", "fd-effnet"].mean, rel=0.1)
    assert one["t1", "fd-effnet"].mean == pytest.approx(0, abs=1e-6)
    other = distances_of(folders, tmp_path, network, "other", batch_size=5)
    for key, figure in one.items():
        assert other[key].mean == pytest.approx(figure.mean, rel=1e-3, abs=1e-4), key


class Recording:
    """An embedding that keeps the slices that it is shown; its features are their mean and deviation."""

    name, sha256, dim = "recording", "0", 2

    def __init__(self):
        self.shown = []

    def __call__(self, slices):
        self.shown += [*slices[:, 0].numpy()]
        return torch.stack([slices.mean(dim=(1, 2, 3)), slices.std(dim=(1, 2, 3))], dim=1)


def own_window(file: Path, truth: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return slices of a volume as a PNG holds them: its own percentiles in the brain, 0 outside."""
    data = volumes.load((file,)).data
    low, high = np.percentile(data[truth != 0], [0.5, 99.5])
    unit = np.clip((data[indices] - low) / (high - low), 0, 1)
    return np.rint(unit * (truth[indices] != 0) * 255)


def test_a_network_sees_each_volume_in_its_own_window_as_a_png_would_hold_it(folders, tmp_path):
    made = first_completed(folders)
    spoil(made, lambda data: np.where(data > 0, data**0.5 * 9 + 60, 0))
    network = Recording()
    distances_of(folders, tmp_path, network, "own")
    case = comparison_of(folders).cases[0]
    (pair,) = case.pairs
    truth = volumes.load(pair.truth).data
    depth = len(truth)
    indices = np.arange(round(0.2 * depth), round(125 / 155 * depth))
    for start, file in enumerate((pair.truth[0], made)):
        seen = np.array(network.shown[start * len(indices) :][: len(indices)])
        np.testing.assert_allclose(seen * 255, own_window(file, truth, indices), atol=1e-4)


def test_a_perfect_completion_in_other_units_scores_as_perfect(folders, tmp_path, effnet):
    for file in folders.cpl.rglob("*.nii.gz"):
        spoil(file, lambda data: np.where(data > 0, data * 3 + 200, 0))
    figures = distances_of(folders, tmp_path, effnet, "units")
    assert {key[0] for key in figures} > {"all", "t1", "t1ce", "t2"}
    for (_, metric), figure in figures.items():
        if metric == "fd-effnet":
            assert figure.mean == pytest.approx(0, abs=1e-3)


@pytest.fixture
def alexnet(network_folders, monkeypatch) -> Path:
    """Put random weights in the place of LPIPS' backbone."""
    return stand_in("alexnet", alexnet_state(), network_folders.named, monkeypatch)


def test_lpips_is_the_mean_over_slices_of_the_packages(alexnet, scored, folders):
    spoil(first_completed(folders), lambda data: np.where(data > 0, data**0.5 * 9 + 60, 0))
    code, _, err = scored("--lpips", "--offline")
    assert code == 0, err
    found = {(row["case"], row["modality"]): float(row["value"]) for row in rows_of(folders.scores)}
    assert set(found) == HIDDEN
    (pair,) = comparison_of(folders).cases[0].pairs
    truth = volumes.load(pair.truth).data
    indices = feature_store.shown_slices(truth != 0)
    slices = [
        torch.from_numpy(own_window(file, truth, indices).astype(np.float32) / 255)[:, None]
        for file in (first_completed(folders), pair.truth[0])
    ]
    expected = feature_networks.load_perceptual(offline=True).distance(*slices).mean()
    assert found["Phantom_00000", "t2"] == pytest.approx(float(expected), rel=1e-4)
    assert found["Phantom_00001", "t1"] == 0
    figure = figures_of(folders.scores)["all", "synthetic", "lpips", "slices"]
    assert figure["network"] == "lpips-alex" and not figure["higher_is_better"]
    assert figure["network_sha256"] == hashlib.sha256(alexnet.read_bytes()).hexdigest()


def test_diversity_is_a_metric_of_its_own(alexnet, scored, folders, trained_run):
    code, _, err = scored("--lpips-diversity", "--samples", 3, "-w", trained_run)
    assert code == 0, err
    figures = figures_of(folders.scores)
    diversity = figures["all", "synthetic", "lpips-diversity", "slices"]
    assert diversity["higher_is_better"] and diversity["mean"] > 0 and diversity["n"] == 4
    assert not any(metric == "lpips" for _, _, metric, _ in figures)


def test_ten_samples_per_source_are_another_prediction(scored, folders, trained_run):
    options = ("--fid", "--fid-network", "effnet-lite0", "-w", trained_run)
    code, out, err = scored(*options, "--samples", 3)
    assert code == 0, err
    figures = figures_of(folders.scores)
    one, three = (figures["all", name, "fd-effnet", "slices"] for name in ("synthetic", "samples"))
    assert one["mean"] == pytest.approx(0, abs=1e-6)  # the completed folder holds the truth itself
    assert three["mean"] > 0.1 and three["n"] == 3 * one["n"]
    assert three["policy"] == f"{one['policy']}; 3 style samples per volume"
    assert "samples" in out
    record = json.loads((folders.scores / "run.json").read_text())
    assert record["config"]["samples"] == 3 and record["weights"]["sha256"]


@pytest.fixture
def unet(tmp_path) -> Path:
    """Weights of a method that takes several sources and has one style."""
    settings = small_settings("unet")
    torch.manual_seed(3)
    info = WeightsInfo(
        settings=settings,
        modalities=FOUR,
        scales=dict.fromkeys(FOUR, Scale(0.0, 1000.0)),
        references={},
        trained_on=(),
        steps=0,
    )
    path = tmp_path / "many.safetensors"
    save_weights(path, METHODS["unet"](settings, FOUR), info)
    return path


def test_samples_of_a_method_with_one_style_are_refused(scored, unet):
    options = ("--kid", "--fid-network", "effnet-lite0")
    code, _, err = scored(*options, "--samples", 3, "-w", unet)
    assert code == 2
    assert "unet has one style per target" in err


def test_directions_translate_every_real_volume_into_every_other(scored, folders, trained_run):
    shutil.rmtree(folders.cpl)  # nothing completed is read
    code, out, err = scored("--directions", "-w", trained_run, "--ssim")
    assert code == 0, err
    rows = [row for row in rows_of(folders.scores) if row["prediction"] == "synthetic"]
    assert len({(row["case"], row["source"], row["modality"]) for row in rows}) == 4 * 12
    assert "flair->t1ce" in out and "six-directions" in out
    figures = figures_of(folders.scores)
    six = [figures[name, "synthetic", "ssim", "brain"]["mean"] for name in SIX_DIRECTIONS]
    mean = figures["six-directions", "synthetic", "ssim", "brain"]
    assert mean["mean"] == pytest.approx(sum(six) / 6) and mean["n"] == 6
    assert "six-directions" in (folders.scores / "report.html").read_text()
    record = json.loads((folders.scores / "run.json").read_text())
    assert record["weights"]["sha256"]


def test_a_direction_scores_what_complete_writes(attcl, scored, folders, trained_run):
    shutil.rmtree(folders.cpl)
    assert (
        attcl("complete", "--ori", folders.ori, "--cpl", folders.cpl, "-w", trained_run, "-q")[0]
        == 0
    )
    key = ("Phantom_00000", "flair", "t2", "brain", "ssim", "synthetic")

    def value() -> float:
        names = ("case", "source", "modality", "region", "metric", "prediction")
        return next(
            float(row["value"])
            for row in rows_of(folders.scores)
            if tuple(row[name] for name in names) == key
        )

    assert scored("--ssim")[0] == 0
    written = value()
    assert scored("--directions", "-w", trained_run, "--ssim")[0] == 0
    # Rounded to integers on disk, and its brain made of all modalities that are there.
    assert value() == pytest.approx(written, abs=0.02)


def test_weights_of_many_sources_are_asked_for_each_direction_with_its_one_source(
    attcl, scored, folders, phantoms, tmp_path, unet
):
    code, _, err = scored("--directions", "-w", unet, "--ssim", "--split", "all")
    assert code == 0, err
    values = {
        (row["case"], row["source"], row["modality"]): float(row["value"])
        for row in rows_of(folders.scores)
        if (row["prediction"], row["metric"], row["region"]) == ("synthetic", "ssim", "brain")
    }
    assert len(values) == 4 * 12
    # the same case with t1 alone, completed
    alone, out = tmp_path / "alone", tmp_path / "made"
    (alone / "Phantom_00002").mkdir(parents=True)
    name = "Phantom_00002/Phantom_00002_t1.nii.gz"
    shutil.copy(phantoms("brats") / name, alone / name)
    for target in ("flair", "t2"):
        code, _, err = attcl(
            *("complete", "--ori", alone, "--cpl", out, "-w", unet, "--target", target, "-q")
        )
        assert code == 0, err
    code, _, err = attcl(
        *("score", "--ori", alone, "-o", tmp_path / "completed", "--cpl", out),
        *("--truth", phantoms("brats"), "--ssim", "--split", "all", "--allow-missing", "-q"),
    )
    assert code == 3, err  # t1ce was not asked for
    for row in rows_of(tmp_path / "completed"):
        if (row["prediction"], row["metric"], row["region"]) == ("synthetic", "ssim", "brain"):
            key = (row["case"], "t1", row["modality"])
            assert float(row["value"]) == pytest.approx(values[key], abs=0.02)
