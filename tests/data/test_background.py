"""Backgrounds that are not 0 are found in what the border of a volume holds, and become exactly 0."""

from __future__ import annotations

import numpy as np
import pytest

from attcl_cli.data.background import (
    AS_STORED,
    find_background,
    is_clipped,
    parse_background,
    subtract,
)
from attcl_cli.errors import UsageError

SHAPE = (12, 20, 16)


def ball(low: int = 200, high: int = 1000, dtype: type = np.int16) -> np.ndarray:
    """Random intensities in a ball that touches no face; 0 around it."""
    z, y, x = np.indices(SHAPE)
    inside = ((z - 5.5) / 5) ** 2 + ((y - 9.5) / 8) ** 2 + ((x - 7.5) / 6) ** 2 < 1
    values = np.random.default_rng(0).integers(low, high, SHAPE)
    return np.where(inside, values, 0).astype(dtype)


def mended(data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float32)
    return subtract(data, find_background(data))


def test_a_background_of_0_is_left_as_it_is():
    data = ball().astype(np.float32)
    background = find_background(data)
    assert (background.kind, background.value, background.noise) == ("zero", 0, 0)
    assert subtract(data, background) is data


@pytest.mark.parametrize("offset", [10, -1024])
def test_a_constant_offset_is_subtracted_exactly(offset):
    background = find_background(ball() + offset)
    assert (background.kind, background.value) == ("constant", offset)
    assert np.array_equal(mended(ball() + offset), ball())


def test_z_scores_over_all_voxels_get_a_background_of_0():
    data = ball().astype(np.float64)
    scores = ((data - data.mean()) / data.std()).astype(np.float32)
    result = mended(scores)
    assert np.array_equal(result != 0, data != 0)
    np.testing.assert_allclose(result * data.std(), data, atol=1e-3)


def test_z_scores_of_the_brain_keep_what_is_below_0():
    data = ball().astype(np.float64)
    inside = data != 0
    scores = np.where(inside, (data - data[inside].mean()) / data[inside].std(), 0)
    scores = scores.astype(np.float32)
    assert np.array_equal(mended(scores), scores)


@pytest.mark.parametrize("base", [0.0, -3.0])
def test_ringing_around_the_background_becomes_0(base):
    data = ball() + base + np.random.default_rng(1).normal(0, 1e-5, SHAPE)
    background = find_background(data.astype(np.float32))
    assert background.kind == "ringing"
    assert background.value == pytest.approx(base, abs=1e-5)
    assert (background.value == 0) == (base == 0)
    assert np.array_equal(mended(data) != 0, ball() != 0)


def test_ringing_counts_as_the_background_in_a_volume_of_little_contrast():
    data = ball() / 1e4 + np.random.default_rng(1).normal(0, 1e-5, SHAPE)
    assert np.array_equal(mended(data) != 0, ball() != 0)


def test_ringing_between_exact_zeros_becomes_0():
    data = ball().astype(np.float32)
    near = np.zeros(SHAPE, bool)
    near[2:-2, 2:-2, 2:-2] = True
    ringing = np.where(near & (data == 0), np.float32(1e-5), data)
    assert np.array_equal(mended(ringing), data)


def test_a_few_voxels_below_the_background_are_clipped():
    data = ball().astype(np.float32)
    rim = data.copy()
    rim[5, 9, 7] = -30
    expected = data.copy()
    expected[5, 9, 7] = 0
    assert is_clipped(rim)
    assert np.array_equal(mended(rim), expected)


def test_noise_is_no_background_and_stays():
    noisy = np.where(ball() > 0, ball(), np.random.default_rng(2).integers(1, 40, SHAPE))
    background = find_background(noisy)
    assert background.kind == "noise"
    assert background.noise > 0.9
    assert np.array_equal(mended(noisy), noisy)


def test_an_image_up_to_the_border_has_no_background():
    data = np.random.default_rng(3).integers(1, 1000, SHAPE).astype(np.float32)
    assert find_background(data).kind == "none"
    assert subtract(data, find_background(data)) is data


def test_a_brain_that_reaches_two_faces_is_no_background():
    slab = ball()[4:8]
    assert find_background(slab).kind == "zero"
    assert np.array_equal(mended(slab + 7), slab)


def test_a_number_is_taken_whatever_the_border_holds():
    noisy = ball() + np.random.default_rng(2).integers(1, 5, SHAPE)
    background = find_background(noisy, 3.0)
    assert background.value == 3
    assert np.array_equal(
        subtract(noisy.astype(np.float32), background)[ball() > 0], (noisy - 3.0)[ball() > 0]
    )


def test_keep_takes_intensities_as_stored():
    data = (ball() + 10).astype(np.float32)
    assert find_background(data, "keep") == AS_STORED
    assert subtract(data, AS_STORED) is data


@pytest.mark.parametrize("text", ["none", "", "nan", "inf", "1,5"])
def test_an_unknown_background_is_refused(text):
    with pytest.raises(UsageError) as error:
        parse_background(text)
    assert error.value.code == "unknown-background"


def test_a_background_is_parsed():
    assert [parse_background(text) for text in ("auto", "keep", "-1024", "0.5")] == [
        "auto",
        "keep",
        -1024,
        0.5,
    ]
