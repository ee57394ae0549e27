"""Volumes in numbers: the slices that are looked at, the vector of a volume, the mean quantiles of a store."""

from __future__ import annotations

import numpy as np
import pytest

from attcl_cli.data import intensities
from attcl_cli.data.volume_statistics import NAMES, describe, describe_store, sampled_pairs


@pytest.mark.parametrize(
    ("count", "pairs"),
    [(0, []), (1, []), (2, [[0, 1]]), (3, [[0, 1], [1, 2]])],
)
def test_a_few_slices_are_all_looked_at(count, pairs):
    assert sampled_pairs(count).tolist() == pairs


def test_pairs_of_neighbours_are_spread_evenly_from_the_first_slice_to_the_last():
    pairs = sampled_pairs(94)
    assert pairs.shape == (12, 2)
    assert (pairs[0].tolist(), pairs[-1].tolist()) == ([0, 1], [92, 93])
    assert (np.diff(pairs, axis=1) == 1).all()
    assert set(np.diff(pairs[:, 0])) <= {8, 9}


def ramp(*, rows: float, columns: float, slices: float) -> np.ndarray:
    """One pair of slices of 20x20 pixels with a brain of 10x10, in which intensities rise at even steps from -0.5."""
    depth, y, x = np.meshgrid(np.arange(2), np.arange(10), np.arange(10), indexing="ij")
    image = np.full((2, 20, 20), -1.0, np.float32)
    image[:, 5:15, 5:15] = -0.5 + slices * depth + rows * y + columns * x
    return image[None]


def test_the_vector_of_a_ramp_is_known_by_hand():
    vector = dict(zip(NAMES, describe(ramp(rows=0.02, columns=0.05, slices=0.1), 94), strict=True))
    assert vector["log gradient across rows"] == pytest.approx(np.log(0.02), abs=1e-4)
    assert vector["log gradient across columns"] == pytest.approx(np.log(0.05), abs=1e-4)
    assert vector["log gradient across slices"] == pytest.approx(np.log(0.1), abs=1e-4)
    assert vector["quantile 0.5"] == pytest.approx(-0.5 + 0.09 + 0.225 + 0.05, abs=1e-2)
    assert (vector["share near -1"], vector["share near 1"]) == (0, 0)
    assert vector["log brain pixels"] == pytest.approx(np.log(100 * 94), abs=1e-4)


def test_shares_near_the_ends_count_brain_alone():
    image = np.full((1, 2, 20, 20), -1, np.float32)
    image[..., :10] = 0
    image[..., 0, :10] = 0.96
    image[..., 1:3, :10] = -0.96
    vector = dict(zip(NAMES, describe(image, 2), strict=True))
    assert vector["share near 1"] == pytest.approx(0.05)
    assert vector["share near -1"] == pytest.approx(0.1)


def test_a_flat_volume_has_the_least_gradient_and_an_empty_one_no_vector():
    vector = dict(zip(NAMES, describe(np.zeros((1, 2, 9, 9), np.float32), 2), strict=True))
    assert vector["log gradient across slices"] == pytest.approx(np.log(1e-4), abs=1e-4)
    assert describe(np.full((1, 2, 9, 9), -1, np.float32), 2) is None
    assert describe(np.empty((0, 2, 9, 9), np.float32), 1) is None


def test_a_store_is_described_volume_by_volume(store):
    described = describe_store(store)
    assert set(described.statistics) == set(described.quantiles) == set(store.modalities)
    expected: dict[str, list[np.ndarray]] = {}
    for entry in store.entries:
        rows = store.read(np.arange(entry.start, entry.start + entry.count))[:, 0].numpy()
        pairs = rows[sampled_pairs(entry.count)]
        assert described.statistics[entry.modality][entry.case] == describe(pairs, entry.count)
        brain = pairs[pairs > -1]
        expected.setdefault(entry.modality, []).append(intensities.quantiles(brain))
    for name, items in expected.items():
        assert described.quantiles[name] == pytest.approx(np.mean(items, axis=0), abs=1e-5)
