"""Steps between slices are evened out, and what is fine within a slice stays."""

from __future__ import annotations

import numpy as np
import pytest

from attcl_cli.completion.even_slices import even_out

SHAPE = (40, 24, 24)


def ball() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return (((z - 19.5) / 18) ** 2 + ((y - 11.5) / 11) ** 2 + ((x - 11.5) / 11) ** 2) < 1


def anatomy(seed: int = 0) -> np.ndarray:
    """A smooth change from bottom to top, and columns of fine detail: (D, H, W) in [-1, 1]."""
    detail = 0.1 * np.random.default_rng(seed).standard_normal(SHAPE[1:])
    slow = 0.3 * np.sin(np.arange(SHAPE[0]) / SHAPE[0] * 3)
    return (slow[:, None, None] + detail).astype(np.float32)


def uneven(volume: np.ndarray, *, gain: float = 0.2, shift: float = 0.2) -> np.ndarray:
    """Each slice with a contrast and a brightness of its own."""
    random = np.random.default_rng(1)
    gains = 1 + random.uniform(-gain, gain, len(volume))
    shifts = random.uniform(-shift, shift, len(volume))
    return volume * gains[:, None, None].astype(np.float32) + shifts[:, None, None].astype(
        np.float32
    )


def evened(volume: np.ndarray, inside: np.ndarray) -> np.ndarray:
    out = np.zeros_like(volume)
    out[inside] = even_out(volume[inside], inside)
    return out


def steps(volume: np.ndarray, inside: np.ndarray) -> float:
    """How much the mean of a slice differs from that of the next, root mean square."""
    means = [volume[z][inside[z]].mean() for z in range(4, 36)]
    return float(np.sqrt(np.mean(np.square(np.diff(means)))))


def test_slices_of_other_brightness_come_back_to_that_of_their_neighbours():
    inside, true = ball(), anatomy()
    striped = uneven(true)
    result = evened(striped, inside)
    assert steps(result, inside) < 0.1 * steps(striped, inside)
    before, after = (np.abs(it - true)[inside].mean() for it in (striped, result))
    assert after < 0.5 * before


def test_what_is_fine_within_a_slice_stays():
    inside, true = ball(), anatomy()
    result = evened(uneven(true), inside)
    deep = inside & np.roll(inside, 3, axis=0) & np.roll(inside, -3, axis=0)
    middle = slice(15, 25)
    found, expected = (
        it[middle] - it[middle].mean(axis=(1, 2), keepdims=True) for it in (result, true)
    )
    assert np.corrcoef(found[deep[middle]], expected[deep[middle]])[0, 1] > 0.95


def test_a_volume_without_steps_keeps_its_values():
    inside = ball()
    flat = np.full(SHAPE, 0.25, np.float32)
    np.testing.assert_allclose(evened(flat, inside)[inside], 0.25, atol=1e-5)
    result = evened(anatomy(), inside)
    assert np.abs(result - anatomy())[inside].mean() < 0.03


def test_nothing_leaves_the_range_and_the_background_has_no_part():
    inside = ball()
    bright = np.where(inside, 0.99, -1).astype(np.float32)
    result = evened(bright, inside)[inside]
    assert result.dtype == np.float32
    assert result.max() <= 1
    np.testing.assert_allclose(result, 0.99, atol=1e-4)  # the background's -1 would darken the rim


@pytest.mark.parametrize("slices", [0, 1, 2])
def test_few_slices_or_none(slices):
    inside = np.zeros(SHAPE, bool)
    inside[10 : 10 + slices, 5:15, 5:15] = True
    values = np.linspace(-0.5, 0.5, int(inside.sum()), dtype=np.float32)
    result = even_out(values, inside)
    assert result.shape == values.shape
    assert np.isfinite(result).all()
