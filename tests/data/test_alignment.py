"""How two volumes lie on each other, against what arrays made by hand must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ellipsoids import MM, SHAPE, textured

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
