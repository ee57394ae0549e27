"""Label conventions, classes, regions, and smaller label maps."""

from __future__ import annotations

import numpy as np
import pytest

from attcl_cli.data.labels import (
    CLASSES,
    CONVENTIONS,
    convention_of,
    mask_of,
    shrink_classes,
    to_classes,
    to_labels,
    unknown_labels,
)
from attcl_cli.errors import AttclError

OLD, NEW = CONVENTIONS["2021"], CONVENTIONS["2023"]
OLD_LABELS, NEW_LABELS = np.array([0, 1, 2, 4, 4, 2]), np.array([0, 1, 2, 3, 3, 2])


def test_both_releases_give_the_same_classes_and_come_back():
    classes = to_classes(OLD_LABELS, OLD)
    assert classes.dtype == np.uint8
    assert [CLASSES[number] for number in classes[:4]] == ["background", "ncr", "ed", "et"]
    assert classes.tolist() == to_classes(NEW_LABELS, NEW).tolist()
    assert to_labels(classes, OLD).tolist() == OLD_LABELS.tolist()
    assert to_labels(classes, NEW).tolist() == NEW_LABELS.tolist()


@pytest.mark.parametrize("labels", [OLD_LABELS, NEW_LABELS])
def test_several_conventions_read_a_map_of_either(labels):
    assert to_classes(labels, OLD, NEW).tolist() == NEW_LABELS.tolist()


def test_a_value_that_a_convention_lacks_is_background():
    assert to_classes(np.array([[3, 4], [9, 1]]), OLD).tolist() == [[0, 3], [0, 1]]


@pytest.mark.parametrize(
    ("region", "mask"),
    [("WT", [0, 1, 1, 1]), ("TC", [0, 1, 0, 1]), ("ET", [0, 0, 0, 1])],
)
def test_regions_are_those_of_menze_2015(region, mask):
    assert mask_of(np.arange(4), region).tolist() == mask


@pytest.mark.parametrize(
    ("values", "default", "name"),
    [
        ({0, 1, 2, 4}, "2023", "2021"),
        ({0, 3}, "2021", "2023"),
        ({0, 1, 2}, "2021", "2021"),
        ({0, 1, 2}, "2023", "2023"),
        (set(), "2021", "2021"),
    ],
)
def test_the_release_is_known_by_its_values_otherwise_the_default(values, default, name):
    assert convention_of(values, default=default).name == name


@pytest.mark.parametrize("values", [{0, 3, 4}, {0, 5}])
def test_values_of_two_releases_or_of_none_are_refused(values):
    with pytest.raises(AttclError, match="of no release that is known") as caught:
        convention_of(values)
    assert caught.value.code == "labels-of-no-release"


@pytest.mark.parametrize(
    ("counts", "named", "advice"),
    [
        ({255: 12}, "label 255 in 12 voxels", "save it as 0 and 1"),
        ({9: 1}, "label 9 in 1 voxel,", "rename the labels"),
        ({5: 2, 11: 3}, "labels 5, 11 in 5 voxels", "rename the labels"),
    ],
)
def test_labels_of_no_release_are_named_with_their_voxels(counts, named, advice, tmp_path):
    error = unknown_labels(tmp_path / "seg.nii.gz", counts)
    assert error.code == "label-values-unknown"
    assert f"{tmp_path / 'seg.nii.gz'}: {named}" in error.message
    assert advice in error.hint


def test_a_smaller_map_has_the_class_of_most_voxels():
    classes = np.zeros((1, 4, 4), dtype=np.int16)
    classes[0, :2, :2] = [[3, 3], [3, 0]]
    classes[0, :2, 2:] = [[2, 0], [0, 0]]
    classes[0, 2:, :2] = [[1, 1], [2, 2]]  # of equally frequent ones, the lowest
    small = shrink_classes(classes, image_size=2, canvas=4)
    assert small.dtype == np.uint8
    assert small.tolist() == [[[3, 0], [1, 0]]]


@pytest.mark.parametrize("image_size", [2, 4])
def test_a_map_smaller_than_the_canvas_is_padded_with_background(image_size):
    classes = np.full((2, 2, 2), 3, dtype=np.uint8)  # fills the middle of 4x4
    small = shrink_classes(classes, image_size=image_size, canvas=4)
    assert small.shape == (2, image_size, image_size)
    assert set(np.unique(small).tolist()) == ({0, 3} if image_size == 4 else {0})


def test_a_map_as_large_as_the_image_stays_as_it_is():
    classes = np.random.default_rng(0).integers(0, 4, (3, 8, 8)).astype(np.uint8)
    assert np.array_equal(shrink_classes(classes, image_size=8, canvas=8), classes)
