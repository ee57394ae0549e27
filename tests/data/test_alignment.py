"""How two volumes lie on each other, against what arrays made by hand must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ellipsoids import MM, SHAPE, depth_of_ball, textured

from attcl_cli.data.alignment import compare, rank_correlation
from attcl_cli.data.voxels import Sample, describe


def sample_of(data: np.ndarray) -> Sample:
    return describe(data.astype(np.int16), MM, "auto", path=Path("x"))[1]


def test_a_volume_lies_on_itself():
    pair = compare(sample_of(textured(0)), sample_of(textured(0)))
    assert (pair.overlap, pair.gain, pair.shift_mm) == (1, 1, (0, 0, 0))
    assert pair.information > 0.9


def test_inverted_contrast_lies_on_its_original():
    inverted = np.where(textured(0) > 0, 1200 - textured(0), 0)
    pair = compare(sample_of(textured(0)), sample_of(inverted))
    assert pair.information > 0.8
    assert pair.gain == 1


def test_unrelated_images_share_no_information():
    pair = compare(sample_of(textured(0)), sample_of(textured(1)))
    assert pair.overlap == 1
    assert abs(pair.information) < 0.1


@pytest.mark.parametrize(("axis", "steps"), [(0, 2), (1, -3), (2, 2)])
def test_a_shift_is_measured_in_millimetres(axis, steps):
    pair = compare(sample_of(textured(0)), sample_of(np.roll(textured(0), steps, axis)))
    assert pair.shift_mm[axis] == pytest.approx(3 * steps, abs=0.5)
    assert max(abs(it) for place, it in enumerate(pair.shift_mm) if place != axis) < 1.5
    assert pair.gain > 1.5


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_mirrored_volume_shares_most_when_mirrored_back(axes):
    pair = compare(sample_of(textured(0)), sample_of(np.flip(textured(0), axes)))
    assert pair.mirrored == axes
    assert pair.mirrored_information > 0.9
    assert pair.mirrored_overlap > 0.99
    assert pair.information < 0.1


def test_a_sound_or_shifted_volume_is_not_mirrored():
    for second in (textured(0), np.roll(textured(0), 2, 1)):
        assert compare(sample_of(textured(0)), sample_of(second)).mirrored == ()


def test_a_symmetric_volume_is_not_mirrored():
    symmetric = textured(0) + np.flip(textured(0), 2)
    assert compare(sample_of(symmetric), sample_of(symmetric)).mirrored == ()


def sliced_off() -> np.ndarray:
    """Cut a corner off the ellipsoid: no two of its slices have one shape."""
    z, y, x = np.indices(SHAPE)
    return np.where(z + y + x < 76, textured(0), 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("start", "count"), [(6, 3), (18, 4), (8, 7)])
def test_exchanged_slabs_are_counted_along_their_axis(axis, start, count):
    order = np.arange(SHAPE[axis])
    order[start : start + 2 * count] = np.roll(order[start : start + 2 * count], count)
    changed = np.take(sliced_off(), order, axis)
    expected = [0, 0, 0]
    expected[axis] = count
    assert compare(sample_of(sliced_off()), sample_of(changed)).out_of_order == tuple(expected)


def test_shuffled_slices_are_out_of_order():
    order = np.arange(SHAPE[0])
    order[8:20] = np.random.default_rng(0).permutation(order[8:20])
    changed = sliced_off()[order]
    along, *others = compare(sample_of(sliced_off()), sample_of(changed)).out_of_order
    assert along >= 5
    assert others == [0, 0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_interleaved_slices_are_out_of_order(axis):
    order = np.concatenate([np.arange(0, SHAPE[axis], 2), np.arange(1, SHAPE[axis], 2)])
    changed = np.take(sliced_off(), order, axis)
    assert compare(sample_of(sliced_off()), sample_of(changed)).out_of_order[axis] >= 5


def stretched(data: np.ndarray) -> np.ndarray:
    places = np.clip(np.rint(19.5 + 0.9 * (np.arange(SHAPE[0]) - 19.5)), 0, SHAPE[0] - 1)
    return data[places.astype(int)]


def tilted(data: np.ndarray) -> np.ndarray:
    """Shear by 8 degrees: each slice moves to the back by its height."""
    moved = np.rint(0.14 * (np.arange(SHAPE[0]) - 19.5)).astype(int)
    return np.stack([np.roll(plane, int(by), 0) for plane, by in zip(data, moved, strict=True)])


@pytest.mark.parametrize("shape", [textured(0), sliced_off()], ids=["symmetric", "not symmetric"])
@pytest.mark.parametrize(
    "how",
    [
        lambda data: data,
        lambda data: np.roll(data, 2, 0),
        lambda data: np.roll(data, -3, 1),
        lambda data: np.pad(data, ((9, 0), (0, 0), (0, 0)))[: SHAPE[0]],
        lambda data: np.where(np.arange(SHAPE[0])[:, None, None] < 20, 0, data),
        lambda data: np.where(depth_of_ball() > -4, np.maximum(data, 300), 0),
        stretched,
        tilted,
    ],
    ids=["as it is", "up", "to the front", "far up", "half", "grown", "stretched", "tilted"],
)
def test_masks_that_differ_in_another_way_are_in_order(how, shape):
    assert max(compare(sample_of(shape), sample_of(how(shape))).out_of_order) == 0


def test_masks_end_apart_where_one_is_cut():
    cut = textured(0)
    cut[:, :12] = 0  # of 2 to 45: 10 of 44
    pair = compare(sample_of(textured(0)), sample_of(cut))
    assert pair.apart == (
        pytest.approx(0, abs=0.06),
        pytest.approx(10 / 44, abs=0.06),
        pytest.approx(0, abs=0.06),
    )
    assert compare(sample_of(textured(0)), sample_of(textured(0))).apart == (0, 0, 0)


def test_each_mask_is_covered_by_the_other_in_part():
    half = textured(0)
    half[:20] = 0
    pair = compare(sample_of(textured(0)), sample_of(half))
    assert pair.covered == (pytest.approx(0.5, abs=0.01), 1)
    assert compare(sample_of(half), sample_of(textured(0))).covered == pair.covered[::-1]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (lambda data: data, 1),
        (lambda data: data**2 // 100, 1),  # ranks, not values
        (lambda data: 1200 - data, -1),
        (lambda data: textured(1), 0),
    ],
)
def test_ranks_go_along_or_against_or_neither(second, expected):
    data = textured(0)
    other = np.where(data > 0, second(data), 0)
    assert rank_correlation(sample_of(data), sample_of(other)) == pytest.approx(expected, abs=0.1)


def test_empty_samples_have_no_correlation_and_no_ends():
    empty = Sample(np.zeros(SHAPE, np.float32), MM)
    assert rank_correlation(empty, empty) == 0
    assert compare(empty, empty).apart == (0, 0, 0)


def test_the_overlap_is_dice():
    first, second = np.zeros(SHAPE), np.zeros(SHAPE)
    first[10:30, 10:30, 10:30] = textured(0)[10:30, 10:30, 10:30]
    second[15:35, 10:30, 10:30] = 500
    masks = first > 0, second > 0
    pair = compare(Sample(first, MM), Sample(second, MM))
    assert pair.overlap == pytest.approx(
        2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    )
