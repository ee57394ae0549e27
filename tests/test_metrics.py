"""The image metrics against scikit-image, closed forms and numbers made by hand."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from attcl_cli import metrics

SHAPES = [(40, 33), (14, 20, 17)]


def images(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two related images in [0, 1], float64."""
    generator = np.random.default_rng(3)
    truth = generator.random(shape)
    return np.clip(truth + generator.normal(0, 0.2, shape), 0, 1), truth


def blob(shape: tuple[int, ...]) -> np.ndarray:
    """A lopsided mask that touches the lower border of each axis."""
    grid = np.indices(shape)
    radius = (grid * np.arange(1, len(shape) + 1).reshape(-1, *[1] * len(shape))).sum(axis=0)
    return radius < max(shape)


@pytest.mark.parametrize("data_range", [1.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_ssim_map_is_that_of_scikit_image(shape, data_range):
    prediction, truth = images(shape)
    _, expected = structural_similarity(
        prediction,
        truth,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=data_range,
        full=True,
    )
    actual = metrics.ssim_map(prediction, truth, data_range=data_range)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_images_have_the_ssim_of_float64_ones(shape):
    prediction, truth = images(shape)
    expected = metrics.ssim_map(prediction, truth, data_range=1.0)
    actual = metrics.ssim_map(
        prediction.astype(np.float32), truth.astype(np.float32), data_range=1.0
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_the_ssim_of_smooth_bright_float32_images_loses_no_digits():
    # Variances far below the squared mean: what float32 moments get wrong in the third digit.
    ramp = np.linspace(0.98, 1.0, 400, dtype=np.float32).reshape(20, 20)
    other = ramp[::-1].copy()
    wide = metrics.ssim_map(ramp.astype(np.float64), other.astype(np.float64), data_range=1.0)
    np.testing.assert_allclose(
        metrics.ssim_map(ramp, other, data_range=1.0), wide, rtol=0, atol=1e-6
    )


def test_the_ssim_of_two_constants_is_their_luminance_term():
    black, grey = np.zeros((12, 12)), np.full((12, 12), 0.5)
    expected = 0.01**2 / (0.5**2 + 0.01**2)
    assert metrics.ssim(black, grey, data_range=1.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_have_ssim_one_infinite_psnr_and_no_error(shape):
    _, truth = images(shape)
    assert metrics.ssim(truth, truth, data_range=1.0) == pytest.approx(1, abs=1e-12)
    assert metrics.psnr(truth, truth, data_range=1.0) == math.inf
    assert metrics.nmse(truth, truth) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_in_a_mask_is_the_mean_of_the_whole_map_there(shape):
    prediction, truth = images(shape)
    mask = blob(shape)
    assert 0 < mask.sum() < mask.size / 2
    whole = metrics.ssim_map(prediction, truth, data_range=1.0)
    assert metrics.ssim(prediction, truth, data_range=1.0, mask=mask) == whole[mask].mean()


@pytest.mark.parametrize("corner", [0, 9, 10, 11, 20])
def test_ssim_of_one_voxel_is_the_map_there_wherever_it_lies(corner):
    prediction, truth = images((21, 21, 21))
    mask = np.zeros((21, 21, 21), bool)
    mask[corner, 10, 20 - corner] = True
    whole = metrics.ssim_map(prediction, truth, data_range=1.0)
    assert metrics.ssim(prediction, truth, data_range=1.0, mask=mask) == whole[mask][0]


def test_ssim_in_a_full_mask_is_ssim():
    prediction, truth = images((14, 20, 17))
    mask = np.ones(truth.shape, bool)
    assert metrics.ssim(prediction, truth, data_range=1.0, mask=mask) == pytest.approx(
        metrics.ssim(prediction, truth, data_range=1.0), abs=1e-12
    )


@pytest.mark.parametrize(("shift", "decibel"), [(0.1, 20.0), (-0.01, 40.0), (1.0, 0.0)])
def test_a_constant_shift_has_the_psnr_of_its_size(shift, decibel):
    _, truth = images((9, 9, 9))
    assert metrics.psnr(truth + shift, truth, data_range=1.0) == pytest.approx(decibel, abs=1e-9)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_is_that_of_scikit_image(shape, data_range):
    prediction, truth = images(shape)
    assert metrics.psnr(prediction, truth, data_range=data_range) == pytest.approx(
        peak_signal_noise_ratio(truth, prediction, data_range=data_range), abs=1e-9
    )


def test_psnr_in_a_mask_sees_nothing_outside():
    truth = np.array([0.0, 0.5, 1.0])
    prediction = np.array([0.9, 0.4, 0.9])
    mask = np.array([False, True, True])
    assert metrics.psnr(prediction, truth, data_range=1.0, mask=mask) == pytest.approx(20.0)


def test_nmse_is_the_squared_error_over_the_squared_truth():
    truth = np.array([3.0, 4.0, 0.0])
    prediction = np.array([3.0, 2.0, 1.0])
    assert metrics.nmse(prediction, truth) == (0 + 4 + 1) / (9 + 16)
    assert metrics.nmse(prediction, truth, mask=np.array([True, True, False])) == 4 / 25
    assert metrics.nmse(np.zeros(3), truth) == 1


def test_nmse_of_a_black_truth_is_undefined():
    assert math.isnan(metrics.nmse(np.ones(3), np.zeros(3)))


def test_unsigned_integers_do_not_wrap():
    truth, prediction = np.array([5], np.uint8), np.array([3], np.uint8)
    assert metrics.nmse(prediction, truth) == 4 / 25
    assert metrics.psnr(prediction, truth, data_range=20.0) == pytest.approx(20.0)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_an_empty_mask_gives_nan(name):
    prediction, truth = images((6, 7, 8))
    value = metrics.METRICS[name].function(prediction, truth, mask=np.zeros((6, 7, 8), bool))
    assert math.isnan(value)
    assert metrics.METRICS[name].empty == "NaN, counted by the caller"


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_better_prediction_scores_in_the_direction_that_the_table_says(name):
    prediction, truth = images((14, 20, 17))
    metric = metrics.METRICS[name]
    better = metric.function((prediction + truth) / 2, truth)
    assert (better > metric.function(prediction, truth)) == metric.higher_is_better


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_nan_in_the_prediction_is_not_hidden(name):
    prediction, truth = images((14, 20, 17))
    prediction[7, 7, 7] = np.nan
    assert math.isnan(metrics.METRICS[name].function(prediction, truth))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_images_of_two_shapes_are_refused(name):
    with pytest.raises(ValueError, match="wanted one shape"):
        metrics.METRICS[name].function(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="wanted one shape"):
        metrics.METRICS[name].function(
            np.zeros((3, 4)), np.zeros((4, 3)), mask=np.ones((3, 4), bool)
        )


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("mask", [np.ones((3, 4), np.uint8), np.ones((4, 3), bool)])
def test_a_mask_of_labels_or_of_another_shape_is_refused(name, mask):
    with pytest.raises(ValueError, match="wanted bool"):
        metrics.METRICS[name].function(np.zeros((3, 4)), np.zeros((3, 4)), mask=mask)


@pytest.mark.parametrize("function", [metrics.ssim, metrics.psnr, metrics.ssim_map])
@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan])
def test_a_data_range_that_is_not_positive_is_refused(function, data_range):
    with pytest.raises(ValueError, match="wanted a positive number"):
        function(np.zeros((3, 4)), np.zeros((3, 4)), data_range=data_range)


def test_to_unit_clips_and_scales_the_window():
    volume = np.array([-5, 0, 100, 150, 200, 12_343], np.int16)
    unit = metrics.to_unit(volume, 100, 200)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.array([0, 0, 0, 0.5, 1, 1], np.float32))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_to_unit_refuses_an_empty_window(low, high):
    with pytest.raises(ValueError, match="wanted low < high"):
        metrics.to_unit(np.zeros(3), low, high)
