"""The distances between sets of feature vectors against scipy, torchmetrics and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from attcl_cli.scoring import feature_networks, formulas


def moments(vectors: np.ndarray, *, batch: int = 1000) -> formulas.Moments:
    found = formulas.Moments(vectors.shape[1])
    for start in range(0, len(vectors), batch):
        found.add(vectors[start : start + batch])
    return found


def vectors(count: int, dim: int, *, seed: int) -> np.ndarray:
    """Correlated, far from the origin."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, dim)) @ generator.normal(size=(dim, dim)) + 50


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_moments_are_those_of_numpy_whatever_the_batches(batch):
    sample = vectors(40, 6, seed=1).astype(np.float32)
    found = moments(sample, batch=batch)
    assert found.count == 40
    np.testing.assert_allclose(found.mean, sample.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(sample.T, dtype=np.float64), rtol=1e-10)


def test_moments_far_from_the_origin_lose_no_digits():
    sample = vectors(60, 4, seed=2)
    near, far = moments(sample, batch=9), moments(sample + 1e6, batch=9)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-6)


def test_an_empty_batch_changes_nothing():
    found = moments(vectors(5, 3, seed=3))
    before = found.covariance
    found.add(np.empty((0, 3)))
    assert found.count == 5
    np.testing.assert_array_equal(found.covariance, before)


@pytest.mark.parametrize("count", [0, 1])
def test_one_vector_has_no_covariance(count):
    with pytest.raises(ValueError, match=f"{count} feature vectors: expected two or more"):
        _ = moments(np.ones((count, 3))).covariance


@pytest.mark.parametrize("batch", [np.ones(3), np.ones((2, 4)), np.ones((2, 3, 1))])
def test_features_of_another_shape_are_refused(batch):
    with pytest.raises(ValueError, match=r"expected vectors of one length, \(B, 3\)"):
        formulas.Moments(3).add(batch)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="expected finite numbers"):
        formulas.Moments(2).add(np.array([[1.0, value]]))
    with pytest.raises(ValueError, match="expected finite numbers"):
        formulas.kernel_distance(np.ones((2, 2)), np.array([[1.0, value], [1.0, 1.0]]))


def test_with_equal_covariances_the_frechet_distance_is_that_of_the_means():
    sample = vectors(50, 5, seed=4)
    shift = np.array([1.0, -2.0, 0.0, 3.0, 0.5])
    found = formulas.frechet_distance(moments(sample), moments(sample + shift))
    assert found == pytest.approx(1 + 4 + 9 + 0.25, rel=1e-9)


def test_the_frechet_distance_in_one_dimension_is_that_of_means_and_deviations():
    sample = np.random.default_rng(5).normal(size=(30, 1))
    first, second = moments(sample), moments(3 * sample + 2)
    mean, deviation = sample.mean(), sample.std(ddof=1)
    expected = (2 * mean + 2) ** 2 + (2 * deviation) ** 2
    assert formulas.frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_commuting_covariances_is_that_of_their_deviations():
    # Two vectors an axis, at +s and -s: covariance diag(2 s^2 / 5), and nothing beside the diagonal.
    scales = np.array([[1.0, 2.0, 3.0], [2.0, 0.0, 5.0]])
    first, second = (moments(np.vstack([np.diag(s), -np.diag(s)])) for s in scales)
    expected = 2 / 5 * ((scales[0] - scales[1]) ** 2).sum()
    assert formulas.frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", [(60, 80), (80, 60)])
def test_the_frechet_distance_is_that_by_scipys_matrix_root(counts):
    first, second = (vectors(count, 8, seed=count) for count in counts)
    covariances = [np.cov(sample.T) for sample in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    expected = (
        ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
        + sum(np.trace(covariance) for covariance in covariances)
        - 2 * np.trace(root).real
    )
    found = formulas.frechet_distance(moments(first), moments(second))
    assert found == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_have_the_distance_of_their_common_subspace():
    # 7 and 5 vectors in 200 dimensions that span 10: the same distance as in those 10.
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(200, 10)))[0]
    first, second = vectors(7, 10, seed=7), vectors(5, 10, seed=8)
    inside = formulas.frechet_distance(moments(first), moments(second))
    outside = formulas.frechet_distance(moments(first @ basis.T), moments(second @ basis.T))
    # The nuclear norm of the product of centred sets is the trace of the root, without any root.
    centred = [sample - sample.mean(axis=0) for sample in (first, second)]
    norm = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / math.sqrt(6 * 4)
    expected = (
        ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
        + (centred[0] ** 2).sum() / 6
        + (centred[1] ** 2).sum() / 4
        - 2 * norm
    )
    assert inside == pytest.approx(expected, rel=1e-7)
    assert outside == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("counts", [(2, 2), (7, 5), (30, 12), (40, 90)])
def test_the_frechet_distance_of_few_vectors_is_that_of_their_moments(counts):
    first, second = (vectors(count, 20, seed=count + place) for place, count in enumerate(counts))
    expected = formulas.frechet_distance(moments(first), moments(second))
    assert formulas.frechet_distance_of_few(first, second) == pytest.approx(expected, rel=1e-7)
    scale = np.trace(moments(first).covariance)
    assert formulas.frechet_distance_of_few(first, first[::-1]) <= 1e-6 * scale


def test_few_vectors_of_two_dimensions_or_a_single_one_are_refused():
    with pytest.raises(ValueError, match="expected vectors of one length"):
        formulas.frechet_distance_of_few(np.eye(3), np.eye(2))
    with pytest.raises(ValueError, match="expected two or more"):
        formulas.frechet_distance_of_few(np.eye(3), np.ones((1, 3)))


@pytest.mark.parametrize("count", [2, 20, 300])
def test_a_set_has_no_frechet_distance_from_itself(count):
    sample = vectors(count, 64, seed=9)
    one, two = moments(sample), moments(sample[::-1], batch=7)
    scale = np.trace(one.covariance)
    for found in (formulas.frechet_distance(one, one), formulas.frechet_distance(one, two)):
        assert 0 <= found <= 1e-6 * scale


def test_the_frechet_distance_is_symmetric_and_moves_with_the_scale():
    first, second = vectors(12, 20, seed=10), vectors(15, 20, seed=11)
    there = formulas.frechet_distance(moments(first), moments(second))
    assert there > 1
    assert formulas.frechet_distance(moments(second), moments(first)) == pytest.approx(there)
    assert formulas.frechet_distance(moments(3 * first), moments(3 * second)) == pytest.approx(
        9 * there, rel=1e-7
    )


def test_frechet_distances_of_two_dimensions_or_of_one_vector_are_refused():
    sample = moments(np.eye(3))
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        formulas.frechet_distance(sample, moments(np.eye(2)))
    with pytest.raises(ValueError, match="expected two or more"):
        formulas.frechet_distance(sample, moments(np.ones((1, 3))))


def test_the_kernel_distance_is_its_definition_pair_by_pair():
    first, second = vectors(7, 4, seed=12) / 50, vectors(9, 4, seed=13) / 50

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 4 + 1) ** 3

    def within(sample):
        pairs = [(i, j) for i in range(len(sample)) for j in range(len(sample)) if i != j]
        return sum(kernel(sample[i], sample[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(x, y) for x in first for y in second) / (7 * 9)
    expected = within(first) + within(second) - 2 * across
    assert formulas.kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_the_kernel_distance_is_that_of_torchmetrics():
    feature_networks.require_torchvision()
    from torchmetrics.image.kid import poly_mmd

    first, second = vectors(30, 16, seed=14) / 50, vectors(30, 16, seed=15) / 50
    expected = float(poly_mmd(torch.tensor(first), torch.tensor(second)))
    assert formulas.kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_the_kernel_distance_of_many_vectors_is_summed_block_by_block():
    # More rows than a block holds, each vector 500 times: against the weighted sum over distinct ones.
    distinct = np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
    other = np.array([[1.0, 0.5], [0.0, 2.0]])
    kernel = (distinct @ distinct.T / 2 + 1) ** 3
    many = np.repeat(distinct, 500, axis=0)
    within = (500**2 * kernel.sum() - 500 * np.trace(kernel)) / (1500 * 1499)
    second = ((other[0] @ other[1]) / 2 + 1) ** 3
    across = ((distinct @ other.T / 2 + 1) ** 3).mean()
    expected = within + second - 2 * across
    assert formulas.kernel_distance(many, other) == pytest.approx(expected, rel=1e-10)


def test_the_kernel_distance_of_halves_of_one_set_is_around_zero():
    generator = np.random.default_rng(16)
    found = [formulas.kernel_distance(*generator.normal(size=(2, 40, 8))) for _ in range(40)]
    far = formulas.kernel_distance(*generator.normal([[[0]], [[1]]], size=(2, 40, 8)))
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(40) < far / 4


def test_kernel_distances_need_two_vectors_of_one_length():
    with pytest.raises(ValueError, match="expected two or more"):
        formulas.kernel_distance(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="expected vectors of one length"):
        formulas.kernel_distance(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="expected vectors of one length"):
        formulas.kernel_distance(np.ones(3), np.ones((2, 3)))
