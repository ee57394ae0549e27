"""The brain's box: rows and columns that hold what images show, in multiples of a network's stride."""

from __future__ import annotations

import torch

from attcl_cli.data.crops import brain_box


def image_of(rows: slice, columns: slice) -> torch.Tensor:
    image = torch.full((1, 1, 16, 16), -1.0)
    image[..., rows, columns] = 0.5
    return image


def test_the_box_holds_what_any_image_shows():
    images = [image_of(slice(2, 5), slice(4, 6)), image_of(slice(3, 10), slice(5, 8))]
    assert brain_box(images, stride=1) == (slice(2, 10), slice(4, 8))


def test_its_sides_are_multiples_of_the_stride():
    assert brain_box([image_of(slice(2, 7), slice(4, 8))], stride=4) == (slice(2, 10), slice(4, 8))


def test_it_stays_inside_the_image():
    assert brain_box([image_of(slice(11, 16), slice(15, 16))], stride=8) == (
        slice(8, 16),
        slice(8, 16),
    )


def test_without_any_brain_it_is_the_whole_image():
    empty = torch.full((1, 1, 16, 16), -1.0)
    assert brain_box([empty], stride=4) == (slice(0, 16), slice(0, 16))
