"""The formulas against scikit-image, torchmetrics, scipy, closed forms and hand-computed numbers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage, signal
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from attcl_cli.data.phantom import make_case
from attcl_cli.scoring import feature_networks, formulas
from attcl_cli.scoring.metrics import METRICS

SHAPES = [(40, 33), (14, 20, 17)]
MASKED = {
    "ssim": partial(formulas.ssim, data_range=1.0),
    "psnr": partial(formulas.psnr, data_range=1.0),
    "nmse": formulas.nmse,
}


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
    actual = formulas.ssim_map(prediction, truth, data_range=data_range)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_images_have_the_ssim_of_float64_ones(shape):
    prediction, truth = images(shape)
    expected = formulas.ssim_map(prediction, truth, data_range=1.0)
    actual = formulas.ssim_map(
        prediction.astype(np.float32), truth.astype(np.float32), data_range=1.0
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_the_ssim_of_smooth_bright_float32_images_loses_no_digits():
    # Variances far below the squared mean: what float32 moments get wrong in the third digit.
    ramp = np.linspace(0.98, 1.0, 400, dtype=np.float32).reshape(20, 20)
    other = ramp[::-1].copy()
    wide = formulas.ssim_map(ramp.astype(np.float64), other.astype(np.float64), data_range=1.0)
    np.testing.assert_allclose(
        formulas.ssim_map(ramp, other, data_range=1.0), wide, rtol=0, atol=1e-6
    )


def test_the_ssim_of_two_constants_is_their_luminance_term():
    black, grey = np.zeros((12, 12)), np.full((12, 12), 0.5)
    expected = 0.01**2 / (0.5**2 + 0.01**2)
    assert formulas.ssim(black, grey, data_range=1.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_have_ssim_one_infinite_psnr_and_no_error(shape):
    _, truth = images(shape)
    assert formulas.ssim(truth, truth, data_range=1.0) == pytest.approx(1, abs=1e-12)
    assert formulas.psnr(truth, truth, data_range=1.0) == math.inf
    assert formulas.nmse(truth, truth) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_in_a_mask_is_the_mean_of_the_whole_map_there(shape):
    prediction, truth = images(shape)
    mask = blob(shape)
    assert 0 < mask.sum() < mask.size / 2
    whole = formulas.ssim_map(prediction, truth, data_range=1.0)
    assert formulas.ssim(prediction, truth, data_range=1.0, mask=mask) == whole[mask].mean()


@pytest.mark.parametrize("corner", [0, 9, 10, 11, 20])
def test_ssim_of_one_voxel_is_the_map_there_wherever_it_lies(corner):
    prediction, truth = images((21, 21, 21))
    mask = np.zeros((21, 21, 21), bool)
    mask[corner, 10, 20 - corner] = True
    whole = formulas.ssim_map(prediction, truth, data_range=1.0)
    assert formulas.ssim(prediction, truth, data_range=1.0, mask=mask) == whole[mask][0]


def test_ssim_in_a_full_mask_is_ssim():
    prediction, truth = images((14, 20, 17))
    mask = np.ones(truth.shape, bool)
    assert formulas.ssim(prediction, truth, data_range=1.0, mask=mask) == pytest.approx(
        formulas.ssim(prediction, truth, data_range=1.0), abs=1e-12
    )


@pytest.mark.parametrize(("shift", "decibel"), [(0.1, 20.0), (-0.01, 40.0), (1.0, 0.0)])
def test_a_constant_shift_has_the_psnr_of_its_size(shift, decibel):
    _, truth = images((9, 9, 9))
    assert formulas.psnr(truth + shift, truth, data_range=1.0) == pytest.approx(decibel, abs=1e-9)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_psnr_is_that_of_scikit_image(shape, data_range):
    prediction, truth = images(shape)
    assert formulas.psnr(prediction, truth, data_range=data_range) == pytest.approx(
        peak_signal_noise_ratio(truth, prediction, data_range=data_range), abs=1e-9
    )


def test_psnr_in_a_mask_sees_nothing_outside():
    truth = np.array([0.0, 0.5, 1.0])
    prediction = np.array([0.9, 0.4, 0.9])
    mask = np.array([False, True, True])
    assert formulas.psnr(prediction, truth, data_range=1.0, mask=mask) == pytest.approx(20.0)


def test_nmse_is_the_squared_error_over_the_squared_truth():
    truth = np.array([3.0, 4.0, 0.0])
    prediction = np.array([3.0, 2.0, 1.0])
    assert formulas.nmse(prediction, truth) == (0 + 4 + 1) / (9 + 16)
    assert formulas.nmse(prediction, truth, mask=np.array([True, True, False])) == 4 / 25
    assert formulas.nmse(np.zeros(3), truth) == 1


def test_nmse_of_a_black_truth_is_undefined():
    assert math.isnan(formulas.nmse(np.ones(3), np.zeros(3)))


def test_unsigned_integers_do_not_wrap():
    truth, prediction = np.array([5], np.uint8), np.array([3], np.uint8)
    assert formulas.nmse(prediction, truth) == 4 / 25
    assert formulas.psnr(prediction, truth, data_range=20.0) == pytest.approx(20.0)


@pytest.mark.parametrize("name", MASKED)
def test_an_empty_mask_gives_nan(name):
    prediction, truth = images((6, 7, 8))
    value = MASKED[name](prediction, truth, mask=np.zeros((6, 7, 8), bool))
    assert math.isnan(value)
    assert "empty region: undefined" in METRICS[name].policy


@pytest.mark.parametrize("name", MASKED)
def test_a_better_prediction_scores_in_the_direction_that_the_table_says(name):
    prediction, truth = images((14, 20, 17))
    better = MASKED[name]((prediction + truth) / 2, truth)
    assert (better > MASKED[name](prediction, truth)) == METRICS[name].higher_is_better


@pytest.mark.parametrize("name", MASKED)
def test_a_nan_in_the_prediction_is_not_hidden(name):
    prediction, truth = images((14, 20, 17))
    prediction[7, 7, 7] = np.nan
    assert math.isnan(MASKED[name](prediction, truth))


@pytest.mark.parametrize("name", MASKED)
def test_images_of_two_shapes_are_refused(name):
    with pytest.raises(ValueError, match="expected one shape"):
        MASKED[name](np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="expected one shape"):
        MASKED[name](np.zeros((3, 4)), np.zeros((4, 3)), mask=np.ones((3, 4), bool))


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("mask", [np.ones((3, 4), np.uint8), np.ones((4, 3), bool)])
def test_a_mask_of_labels_or_of_another_shape_is_refused(name, mask):
    with pytest.raises(ValueError, match="expected bool"):
        MASKED[name](np.zeros((3, 4)), np.zeros((3, 4)), mask=mask)


@pytest.mark.parametrize("function", [formulas.ssim, formulas.psnr, formulas.ssim_map])
@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan])
def test_a_data_range_that_is_not_positive_is_refused(function, data_range):
    with pytest.raises(ValueError, match="expected a positive number"):
        function(np.zeros((3, 4)), np.zeros((3, 4)), data_range=data_range)


def brasyn_by_torchmetrics(
    prediction: np.ndarray, truth: np.ndarray, tumour: np.ndarray
) -> list[float]:
    """The challenge's protocol, straight on, its similarity computed by torchmetrics."""
    feature_networks.require_torchvision()  # which torchmetrics imports
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    scaled = []
    for volume in (prediction, truth):
        low, high = np.percentile(volume, [0.5, 99.5])
        low = max(low, 0)
        scaled.append((np.clip(volume, low, high) - low) / (high - low))
    found = []
    for mask in (tumour, ~tumour):
        x, y = (torch.tensor(volume * mask, dtype=torch.float32)[None, None] for volume in scaled)
        _, image = StructuralSimilarityIndexMeasure(return_full_image=True)(x, y)
        found.append(float(image.mean()))
    return found


def test_ssim_brasyn_of_random_volumes_is_that_of_torchmetrics():
    generator = np.random.default_rng(5)
    truth = generator.normal(300, 200, (22, 31, 17))  # negative values too
    prediction = truth + generator.normal(0, 150, truth.shape)
    tumour = np.zeros(truth.shape, bool)
    tumour[:9, 20:, 5:12] = True  # touches two borders
    expected = brasyn_by_torchmetrics(prediction, truth, tumour)
    assert formulas.ssim_brasyn(prediction, truth, tumour) == pytest.approx(expected, abs=1e-5)
    assert 0.2 < expected[1] < 0.95


def test_ssim_brasyn_of_phantoms_is_that_of_torchmetrics():
    one, two = (make_case(index, voxel_mm=6) for index in (1, 2))
    tumour = one.segmentation > 0
    assert 0 < tumour.sum() < tumour.size / 8
    truth, prediction = one.images["t1ce"], two.images["t1"]
    # Most of a phantom is empty: the block that is left out must count as 1.
    assert (truth == 0).mean() > 0.3
    expected = brasyn_by_torchmetrics(prediction, truth, tumour)
    assert formulas.ssim_brasyn(prediction, truth, tumour) == pytest.approx(expected, abs=1e-5)
    assert max(expected) < 0.999


@pytest.mark.parametrize("corner", [(0, 0, 0), (9, 20, 33), (20, 20, 20)])
def test_ssim_brasyn_leaves_out_nothing_that_counts(corner):
    generator = np.random.default_rng(6)
    truth, prediction = np.zeros((2, 44, 44, 44))
    block = tuple(slice(start, start + 9) for start in corner)
    truth[block], prediction[block] = generator.random((2, 9, 9, 9)) + 0.1
    tumour = np.zeros(truth.shape, bool)
    tumour[block] = True
    tumour[corner[0]] = False
    expected = brasyn_by_torchmetrics(prediction, truth, tumour)
    assert formulas.ssim_brasyn(prediction, truth, tumour) == pytest.approx(expected, abs=1e-6)
    assert max(expected) < 0.9999


def test_ssim_brasyn_does_not_see_a_linear_change_of_intensity():
    generator = np.random.default_rng(7)
    truth, prediction = generator.random((2, 14, 15, 16))
    tumour = blob(truth.shape)
    plain = formulas.ssim_brasyn(prediction, truth, tumour)
    assert formulas.ssim_brasyn(40 * prediction + 7, truth, tumour) == pytest.approx(
        plain, abs=1e-6
    )
    assert formulas.ssim_brasyn(truth, 3 * truth, tumour) == pytest.approx((1, 1), abs=1e-6)


def test_an_empty_prediction_has_a_brasyn_similarity_and_two_empty_volumes_have_none():
    truth = np.random.default_rng(8).random((12, 13, 14))
    tumour = blob(truth.shape)
    empty = formulas.ssim_brasyn(np.zeros(truth.shape), truth, tumour)
    assert all(0 < value < 1 for value in empty)
    assert all(math.isnan(v) for v in formulas.ssim_brasyn(0 * truth, 0 * truth, tumour))
    # All negative: the window from 0 to a negative percentile is empty too.
    assert formulas.ssim_brasyn(-1 - truth, truth, tumour) == empty


def test_without_a_tumour_only_the_healthy_similarity_exists():
    truth, prediction = np.random.default_rng(9).random((2, 12, 13, 14))
    tumour, healthy = formulas.ssim_brasyn(prediction, truth, np.zeros(truth.shape, bool))
    assert math.isnan(tumour)
    assert 0 < healthy < 1


def test_a_nan_makes_both_brasyn_similarities_nan():
    truth, prediction = np.random.default_rng(10).random((2, 12, 13, 14))
    prediction[3, 3, 3] = np.nan
    assert all(math.isnan(v) for v in formulas.ssim_brasyn(prediction, truth, blob(truth.shape)))


def test_ssim_brasyn_refuses_labels_and_other_shapes():
    volume = np.zeros((5, 6, 7))
    with pytest.raises(ValueError, match="expected bool"):
        formulas.ssim_brasyn(volume, volume, np.zeros(volume.shape, np.uint8))
    with pytest.raises(ValueError, match="expected one shape"):
        formulas.ssim_brasyn(volume, volume[1:], np.zeros(volume.shape, bool))


# --- gradient magnitude similarity ---


def gms_by_convolution(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Xue et al. 2014, Eq 1 to 4, straight on: a slice's gradients by 2-D convolution with Prewitt's kernels."""
    horizontal = np.array([[1, 0, -1]] * 3) / 3
    magnitudes = []
    for image in (prediction, truth):
        padded = np.pad(image, 1, mode="edge")
        parts = [signal.convolve2d(padded, k, mode="valid") for k in (horizontal, horizontal.T)]
        magnitudes.append(np.hypot(*parts))
    one, two = magnitudes
    return (2 * one * two + 0.0026) / (one**2 + two**2 + 0.0026)


def test_the_gradient_similarity_of_slices_is_that_by_convolution():
    prediction, truth = images((4, 21, 17))
    expected = [gms_by_convolution(*pair) for pair in zip(prediction, truth, strict=True)]
    np.testing.assert_allclose(formulas.gms_map(prediction, truth), expected, rtol=1e-12)


def test_a_lost_edge_costs_the_two_columns_beside_it():
    truth, flat = np.zeros((3, 8, 8)), np.zeros((3, 8, 8))
    truth[..., 4:] = 0.5  # every column's gradient is the step of 0.5, in columns 3 and 4
    expected = np.ones((3, 8, 8))
    expected[..., 3:5] = 0.0026 / (0.25 + 0.0026)
    np.testing.assert_allclose(formulas.gms_map(flat, truth), expected, rtol=1e-12)


def test_slices_do_not_see_each_other_in_the_gradient_similarity():
    truth = np.zeros((3, 8, 8))
    truth[1] = 1
    assert (formulas.gms_map(np.zeros((3, 8, 8)), truth) == 1).all()


def test_the_gradient_similarity_of_regions_is_the_mean_of_the_map_there():
    prediction, truth = images((6, 30, 30))
    inside = np.zeros(truth.shape, bool)
    inside[2:4, 10:20, 8:25] = True
    prediction, truth = prediction * inside, truth * inside
    regions = {"box": inside, "corner": np.zeros(truth.shape, bool), "none": ~inside & inside}
    regions["corner"][0, 0, 0] = True
    similarity = formulas.gms_of_regions(prediction, truth, regions)
    expected = formulas.gms_map(prediction, truth)[inside].mean()
    assert similarity["box"] == pytest.approx(expected)
    assert similarity["corner"] == 1
    assert math.isnan(similarity["none"])


def test_the_more_an_image_is_blurred_the_lower_is_its_gradient_similarity():
    truth = np.random.default_rng(1).random((3, 32, 32))
    everywhere = {"all": np.ones(truth.shape, bool)}
    values = [
        formulas.gms_of_regions(ndimage.gaussian_filter(truth, (0, s, s)), truth, everywhere)["all"]
        for s in (0, 0.5, 1, 2)
    ]
    assert values[0] == 1
    assert values == sorted(values, reverse=True) and values[3] < 0.5


def test_the_gradient_similarity_refuses_labels_and_other_shapes():
    volume = np.zeros((5, 6, 7))
    with pytest.raises(ValueError, match="expected bool"):
        formulas.gms_of_regions(volume, volume, {"tumour": np.zeros(volume.shape, np.uint8)})
    with pytest.raises(ValueError, match="expected one shape"):
        formulas.gms_map(volume, volume[1:])
