"""Arrays without files: normalisation, padding and shrinking with their inverses, bounding boxes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from attcl_cli.data import intensities
from attcl_cli.data.intensities import Scale, bounding_box

# --- normalisation ----------------------------------------------------------------------------------------------------


def test_normalise_maps_the_scale_to_minus_one_and_one_clips_and_blanks_the_background():
    data = np.array([0, 100, 150, 200, 300, 50, 150], np.float32)
    brain = np.array([False, True, True, True, True, True, False])
    result = intensities.normalise(data, brain, Scale(100, 200))
    assert result.dtype == np.float32
    assert result.tolist() == [-1, -1, 0, 1, 1, -1, -1]


@pytest.mark.parametrize("scale", [Scale(3.0, 12343.0), Scale(-0.5, 0.69), Scale(0.0, 255.0)])
def test_denormalise_is_the_inverse_up_to_the_clip(scale):
    data = np.linspace(scale.low - 10, scale.high + 10, 1001, dtype=np.float32)
    back = intensities.denormalise(
        intensities.normalise(data, np.ones(data.shape, bool), scale), scale
    )
    expected = np.clip(data, scale.low, scale.high)
    assert np.abs(back - expected).max() <= 4e-7 * max(abs(scale.low), abs(scale.high))


def test_integers_below_2_to_the_14_survive_normalisation_exactly():
    data = np.arange(12344, dtype=np.float32)
    scale = Scale(0.0, 12343.0)
    back = intensities.denormalise(intensities.normalise(data, data >= 0, scale), scale)
    assert np.array_equal(np.rint(back), data)


def test_denormalise_clips_what_a_network_overshoots():
    result = intensities.denormalise(np.array([-3, -1, 0, 1, 3], np.float32), Scale(10, 20))
    assert result.tolist() == [10, 10, 15, 20, 20]


def test_the_scale_is_the_percentiles_inside_the_brain():
    data = np.concatenate([np.zeros(5000), np.arange(1001)]).astype(np.float32)
    brain = np.arange(6001) >= 5000
    assert intensities.intensity_scale(data, brain) == Scale(5.0, 995.0)


def test_there_is_no_scale_without_brain_or_contrast():
    assert intensities.intensity_scale(np.zeros(5), np.zeros(5, bool)) is None
    assert intensities.intensity_scale(np.ones(5), np.ones(5, bool)) is None


def test_the_brain_is_where_any_volume_is_not_zero():
    volumes = [np.array([0, 1, 0, -1]), np.array([0, 0, 2, 0])]
    assert intensities.brain_of(volumes).tolist() == [False, True, True, True]


def test_training_uses_the_middle_94_of_155_slices():
    assert intensities.training_slices(155) == range(31, 125)


@pytest.mark.parametrize("depth", range(1, 40))
def test_training_uses_at_least_one_slice_of_any_volume_and_none_beyond(depth):
    span = intensities.training_slices(depth)
    assert len(span) >= 1
    assert span.start >= 0
    assert span.stop <= depth


# --- quantiles --------------------------------------------------------------------------------------------------------


def test_quantiles_run_from_the_least_to_the_greatest_value_in_even_levels():
    values = np.random.default_rng(0).permutation(np.arange(129.0))
    assert intensities.quantiles(values).tolist() == list(range(129))
    assert intensities.quantiles(np.array([3.0])).tolist() == [3.0] * 129
    with pytest.raises(ValueError, match="no values"):
        intensities.quantiles(np.empty(0))


def test_matching_bends_intensities_between_the_quantiles():
    matched = intensities.match_quantiles(
        np.array([[-1, -0.5, 0], [0.5, 1, 0]], np.float32), [-1, 0, 1], [-1, 0.5, 1]
    )
    assert matched.dtype == np.float32
    assert matched.tolist() == [[-1, -0.25, 0.5], [0.75, 1, 0.5]]


def test_matching_gives_a_volume_the_quantiles_of_the_target():
    rng = np.random.default_rng(1)
    dark, bright = (np.sort(rng.beta(*shape, 20_000)) * 2 - 1 for shape in ((2, 8), (5, 2)))
    goal = intensities.quantiles(bright)
    matched = intensities.match_quantiles(dark, intensities.quantiles(dark), goal)
    assert np.abs(intensities.quantiles(matched) - goal).max() < 0.01
    assert (np.diff(matched) >= 0).all()
    assert abs(float(matched.mean()) - bright.mean()) < 0.005


@pytest.mark.parametrize("seed", range(3))
def test_matching_changes_nothing_if_the_quantiles_are_those_of_the_target(seed):
    """With plateaus in the middle and at both ends, and values beyond the outermost quantiles."""
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(0, 0.7, 5000), -1, 1).astype(np.float32)
    values[:1500] = 0.25
    own = intensities.quantiles(values[::7])
    assert np.abs(intensities.match_quantiles(values, own, own) - values).max() < 1e-6


def test_a_plateau_goes_to_the_mean_of_its_levels_and_its_noise_is_not_blown_up():
    own, target = [-1, 0, 0.0005, 0.001, 1], [-1, -0.4, 0.1, 0.6, 1]
    matched = intensities.match_quantiles(np.array([0.0, 0.0005, 0.001]), own, target)
    assert matched[1] == pytest.approx(0.1, abs=1e-3)
    assert np.ptp(matched) < 0.002


def test_a_constant_volume_becomes_the_mean_of_the_target():
    matched = intensities.match_quantiles(np.full(4, 0.3), [0.3] * 3, [-1, 0, 0.4])
    assert matched == pytest.approx([-0.2] * 4)


def test_stretching_gives_a_volume_the_ends_of_the_target_and_leaves_the_middle():
    values = np.random.default_rng(0).normal(0.1, 0.15, 40_000).astype(np.float32)
    goal = np.linspace(-0.98, 0.96, 129)  # its 0.5 and 99.5 percentiles are -0.9703 and 0.9503
    stretched = intensities.stretch_tails(values, values, goal)
    assert stretched.dtype == np.float32
    assert np.percentile(stretched, (0.5, 99.5)) == pytest.approx([-0.9703, 0.9503], abs=1e-3)
    low, high = np.percentile(values, (5, 95))
    middle = (values > low) & (values < high)
    assert middle.mean() > 0.89
    assert (stretched[middle] == values[middle]).all()
    assert (np.diff(stretched[np.argsort(values)]) >= 0).all()


def test_the_percentiles_that_count_can_be_those_of_a_part():
    part = np.linspace(-0.5, 0.5, 1001, dtype=np.float32)
    values = np.array([-0.6, -0.495, 0, 0.495, 0.6], np.float32)
    stretched = intensities.stretch_tails(values, part, [-1, 0, 1])
    assert stretched == pytest.approx([-1, -0.99, 0, 0.99, 1], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_stretching_changes_nothing_if_the_ends_are_those_of_the_target(seed):
    values = np.clip(np.random.default_rng(seed).normal(0, 0.7, 5000), -1, 1).astype(np.float32)
    goal = np.quantile(values, np.linspace(0, 1, 4001))
    assert np.abs(intensities.stretch_tails(values, values, goal) - values).max() < 2e-3


def test_ends_beyond_the_middle_never_turn_intensities_round():
    """A volume that is brighter and darker throughout than any of the target."""
    for sign in (1, -1):
        values = np.linspace(0.5, 0.9, 1001, dtype=np.float32) * sign
        stretched = intensities.stretch_tails(values, values, np.linspace(-0.2, 0.2, 129))
        assert (np.diff(stretched[np.argsort(values)]) >= 0).all()


def test_a_tail_that_is_a_plateau_is_not_stretched():
    noise = np.random.default_rng(2).uniform(0.3, 0.301, 5000).astype(np.float32)
    assert (intensities.stretch_tails(noise, noise, [-1, 0, 1]) == noise).all()
    half = np.concatenate([np.full(3000, -0.9), np.linspace(-0.9, 0.5, 3000)]).astype(np.float32)
    stretched = intensities.stretch_tails(half, half, [-1, 0, 1])
    assert (stretched[:3000] == half[:3000]).all()
    assert np.percentile(stretched, 99.5) == pytest.approx(0.99, abs=2e-3)


# --- padding and shrinking --------------------------------------------------------------------------------------------


def test_pad_is_symmetric_with_background_and_crop_undoes_it():
    slices = np.arange(3 * 240 * 239, dtype=np.float32).reshape(3, 240, 239)
    padded = intensities.pad(slices, (256, 256))
    assert padded.shape == (3, 256, 256)
    assert (padded[:, :8] == -1).all()
    assert (padded[:, -8:] == -1).all()
    assert (padded[:, :, :8] == -1).all()
    assert (padded[:, :, -9:] == -1).all()
    assert np.array_equal(intensities.crop(padded, (240, 239)), slices)


def test_pad_to_the_same_size_changes_nothing():
    assert np.array_equal(intensities.pad(np.eye(4), (4, 4)), np.eye(4))


@pytest.mark.parametrize("size", [(3, 5), (5, 3)])
def test_slices_larger_than_the_canvas_are_refused(size):
    with pytest.raises(ValueError, match="slices of 4x4 do not fit"):
        intensities.pad(np.eye(4), size)


def test_shrink_averages_blocks():
    slices = np.array([[[1, 3, 0, 0], [5, 7, 0, 4]]], np.float32)
    assert intensities.shrink(slices, 2).tolist() == [[[4, 1]]]


def test_shrink_undoes_a_repetition_and_by_one_is_the_identity():
    slices = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    repeated = slices.repeat(4, axis=1).repeat(4, axis=2)
    assert np.allclose(intensities.shrink(repeated, 4), slices, atol=1e-6)
    assert intensities.shrink(slices, 1) is slices


# --- bounding boxes ---------------------------------------------------------------------------------------------------


def test_the_box_of_a_mask_is_the_smallest_that_holds_it():
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[1, 2, 3] = mask[2, 4, 3] = True
    assert bounding_box(mask) == (slice(1, 3), slice(2, 5), slice(3, 4))


@pytest.mark.parametrize("shape", [(30,), (9, 30), (9, 8, 7)])
def test_the_box_of_a_mask_is_scipys(shape):
    mask = np.random.default_rng(0).random(shape) > 0.9
    assert bounding_box(mask) == ndimage.find_objects(mask.astype(np.uint8))[0]


def test_a_margin_grows_the_box_as_far_as_the_image_reaches():
    mask = np.zeros((10, 10), dtype=bool)
    mask[1, 5] = True
    assert bounding_box(mask, margin=3) == (slice(0, 5), slice(2, 9))
    assert bounding_box(mask, margin=30) == (slice(0, 10), slice(0, 10))


@pytest.mark.parametrize("margin", [0, 5])
def test_an_empty_mask_has_no_box(margin):
    assert bounding_box(np.zeros((3, 4), dtype=bool), margin=margin) is None


def test_to_unit_clips_and_scales_the_window():
    volume = np.array([-5, 0, 100, 150, 200, 12_343], np.int16)
    unit = intensities.to_unit(volume, 100, 200)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.array([0, 0, 0, 0.5, 1, 1], np.float32))


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)])
def test_to_unit_refuses_an_empty_window(low, high):
    with pytest.raises(ValueError, match="expected low < high"):
        intensities.to_unit(np.zeros(3), low, high)


# --- percentiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 10, 511, 512, 30_000])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e6])
def test_percentiles_are_those_of_numpy_to_the_bit(size, scale):
    rng = np.random.default_rng(size)
    values = (scale * rng.normal(size=size)).astype(np.float32)
    levels = (0, 0.5, 5, 33.3, 50, 95, 99.5, 100)
    found = intensities.percentiles_of(np.sort(values), levels)
    assert found == np.percentile(values, levels).tolist()
