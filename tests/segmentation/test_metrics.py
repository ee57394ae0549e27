"""Dice, sensitivity, IoU and HD95 agree with counting by hand, with monai and the definition; so do empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.spatial.distance import cdist

from attcl_cli.segmentation.metrics import METRICS, dice, hd95, scores, surface

BRATS = (1.0, 1.0, 1.0)
THICK = (5.0, 0.8, 1.3)  # axial slices of 5 mm


def blob(seed: int, shape: tuple[int, ...] = (9, 14, 12)) -> np.ndarray:
    """A mask of several pieces with holes, some of it at the rim of the volume."""
    noise = np.random.default_rng(seed).random(shape)
    grid = np.indices(shape) - np.reshape([size / 3 for size in shape], (-1,) + (1,) * len(shape))
    return (np.sqrt((grid**2).sum(axis=0)) < 4.5) & (noise > 0.2) | (noise > 0.985)


def test_overlap_is_what_one_counts_by_hand():
    # prediction  1 1 1 0 0     truth  0 1 1 1 1
    prediction = np.array([[1, 1, 1, 0, 0]], dtype=bool)
    truth = np.array([[0, 1, 1, 1, 1]], dtype=bool)
    values = scores(prediction, truth, (1.0, 2.0))
    assert values["dice"] == 2 * 2 / (3 + 4)
    assert values["sens"] == 2 / 4
    assert values["iou"] == 2 / 5
    # every voxel of a line is surface; columns are 2 mm apart: the distances are 2, 0, 0 one way, 0, 0, 2, 4 the other
    assert values["hd95"] == pytest.approx(np.percentile([0, 0, 2, 4], 95))
    assert dice(prediction, truth) == values["dice"]


def test_a_shifted_cube_is_as_far_off_as_it_was_shifted():
    cube = np.zeros((12, 12, 12), dtype=bool)
    cube[2:6, 2:6, 2:6] = True
    moved = np.roll(cube, 3, axis=0)
    assert scores(cube, moved, BRATS)["dice"] == 1 / 4
    assert hd95(cube, moved, THICK) == pytest.approx(15)
    assert hd95(cube, np.roll(cube, 3, axis=2), THICK) == pytest.approx(3.9)


def test_equal_masks_are_perfect():
    mask = blob(0)
    assert scores(mask, mask, THICK) == {"dice": 1, "sens": 1, "iou": 1, "hd95": 0}


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (False, False, {"dice": 1, "sens": 1, "iou": 1, "hd95": 0}),
        (True, False, {"dice": 0, "sens": math.nan, "iou": 0, "hd95": math.nan}),
        (False, True, {"dice": 0, "sens": 0, "iou": 0, "hd95": math.nan}),
    ],
)
def test_every_empty_case_is_as_the_policy_says(prediction, truth, expected):
    masks = [np.zeros((3, 4, 5), dtype=bool) for _ in range(2)]
    for mask, filled in zip(masks, (prediction, truth), strict=True):
        mask[1, 1:3, 2] = filled
    assert scores(*masks, BRATS) == pytest.approx(expected, nan_ok=True)
    assert set(expected) == set(METRICS)


# monai 1.6 calls itself by an argument that it is to lose.
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges.always:FutureWarning")
@pytest.mark.parametrize("spacing", [BRATS, THICK])
@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_monais_on_any_spacing(seed, spacing):
    prediction, truth = blob(seed), np.roll(blob(seed + 10), seed, axis=1)
    expected = compute_hausdorff_distance(
        torch.from_numpy(prediction)[None, None].float(),
        torch.from_numpy(truth)[None, None].float(),
        include_background=True,
        percentile=95,
        spacing=list(spacing),
    )
    assert hd95(prediction, truth, spacing) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("spacing", [BRATS, THICK])
def test_hd95_is_the_definition_pair_by_pair(spacing):
    prediction, truth = blob(3), blob(4)
    first, second = (np.argwhere(surface(mask)) * np.array(spacing) for mask in (prediction, truth))
    distances = cdist(first, second)
    expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
    assert hd95(prediction, truth, spacing) == pytest.approx(expected)
    assert hd95(truth, prediction, spacing) == pytest.approx(expected)


def test_hd95_of_a_slice_is_two_dimensional():
    square = np.zeros((9, 9), dtype=bool)
    square[2:6, 2:6] = True
    assert surface(square).sum() == 12  # not its four inner pixels
    assert hd95(square, np.roll(square, 2, axis=1), (0.8, 1.3)) == pytest.approx(2.6)
