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
from helpers import alexnet_state
from score_files import HIDDEN, figures_of, first_completed, rows_of, spoil, stand_in

from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.scoring import feature_networks, feature_store, formulas
from attcl_cli.scoring.pairs import Comparison, plan_comparison
from attcl_cli.scoring.rows import Measures, read_predictions, score_cases
from attcl_cli.scoring.summary import summarise


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


def test_the_network_sees_what_a_png_of_the_real_volumes_window_would_hold(folders):
    case = next(case for case in comparison_of(folders).cases if case.case == "Phantom_00000")
    _, (shown,) = read_predictions(case)
    indices = feature_store.shown_slices(shown.brain)
    depth = len(shown.brain)
    assert indices.min() >= round(0.2 * depth) and indices.max() < round(125 / 155 * depth)
    grey = feature_store.grey(shown.volumes.raw, shown.scale, shown.brain, indices)
    assert grey.dtype == np.uint8 and (grey.min(), grey.max()) == (0, 255)
    truth = volumes.load(case.pairs[0].truth).data
    low, high = np.percentile(truth[truth != 0], [0.5, 99.5])
    np.testing.assert_array_equal(
        grey,
        np.rint(np.clip((truth[indices] - low) / (high - low), 0, 1) * (truth[indices] != 0) * 255),
    )


@pytest.fixture
def alexnet(network_folders, monkeypatch) -> Path:
    """Put random weights in the place of LPIPS' backbone."""
    return stand_in("alexnet", alexnet_state(), network_folders.named, monkeypatch)


def test_lpips_is_the_mean_over_slices_of_the_packages(alexnet, scored, folders):
    spoil(first_completed(folders), lambda data: np.where(data > 0, data * 0.5 + 60, 0))
    code, _, err = scored("--lpips", "--offline")
    assert code == 0, err
    found = {(row["case"], row["modality"]): float(row["value"]) for row in rows_of(folders.scores)}
    assert set(found) == HIDDEN
    case = next(case for case in comparison_of(folders).cases if case.case == "Phantom_00000")
    _, (shown,) = read_predictions(case)
    indices = feature_store.shown_slices(shown.brain)
    slices = [
        torch.from_numpy(
            feature_store.grey(image, shown.scale, shown.brain, indices).astype(np.float32) / 255
        )[:, None]
        for image in (shown.volumes.raw, shown.volumes.raw_truth)
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


def test_directions_translate_every_real_volume_into_every_other(scored, folders, trained_run):
    shutil.rmtree(folders.cpl)  # nothing completed is read
    code, out, err = scored("--directions", "-w", trained_run, "--ssim")
    assert code == 0, err
    rows = [row for row in rows_of(folders.scores) if row["prediction"] == "synthetic"]
    assert len({(row["case"], row["source"], row["modality"]) for row in rows}) == 4 * 12
    assert "flair->t1ce" in out
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
