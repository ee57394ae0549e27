"""Random squares of the slices: what the store reads of them, and that all images of a place have the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from attcl_cli.data.crops import Crops
from attcl_cli.data.sampling import CaseSampler, DomainSampler
from attcl_cli.data.slices import STEPS, Entry, SliceStore

TWO = ("t1", "t2")
SIDE = 16  # of the slices
BRAIN = np.s_[2:14, 5:12]  # of every slice; no other pixel shows any
TUMOUR = np.s_[3:5, 6:8]
# Step 5 of seed 3 on `two_cases`, as version 0.1 drew it.
DOMAIN_ROWS = {
    "x_src": [2, 7, 1, 3],
    "x_ref": [10, 9, 6, 4],
}  # of true pairs, others are drawn since
CASE_ROWS = {"offset": [1, 0, 2, 2], "target": [0, 0, 0, 1]}


def store_of(
    volumes: Mapping[tuple[str, str], int], *, segmented: Mapping[str, list[int]] | None = None
) -> SliceStore:
    """Return a store in which brain pixel (y, x) of row r is 256 r + 16 y + x, and other pixels are background.

    Args:
        volumes: (case, modality) -> slices.
        segmented: case -> the slices that show tumour.
    """
    entries, start = [], 0
    for (case, modality), count in volumes.items():
        entries.append(Entry(case, modality, start, count, first=10))
        start += count
    values = np.arange(start * SIDE * SIDE, dtype=np.int16).reshape(start, SIDE, SIDE)
    data = np.full_like(values, -STEPS)
    data[:, *BRAIN] = values[:, *BRAIN]
    maps, labels = [], []
    for case, slices in (segmented or {}).items():
        depth = next(entry.count for entry in entries if entry.case == case)
        maps.append(Entry(case, "seg", len(labels) * depth, depth, first=10))
        classes = np.zeros((depth, SIDE, SIDE), np.uint8)
        classes[slices, *TUMOUR] = 3
        labels.append(classes)
    classes = np.concatenate(labels) if labels else np.zeros((0, SIDE, SIDE), np.uint8)
    return SliceStore(
        data=data,
        entries=tuple(entries),
        filled=np.ones(start, dtype=bool),
        modalities=TWO,
        scales={},
        trained_on=(),
        labels=classes if labels else None,
        segmentations=tuple(maps),
        tumour=classes.any(axis=(1, 2)),
    )


@pytest.fixture
def two_cases() -> SliceStore:
    """Rows 0..2 and 3..5 are a's t1 and t2, 6..8 and 9..11 b's."""
    return store_of({(case, modality): 3 for case in "ab" for modality in TWO})


def whole(store: SliceStore, row: int, corner: tuple[int, int], side: int) -> torch.Tensor:
    """Return the square of a row the long way round: the slice in a wide margin of background."""
    margin = 2 * SIDE
    padded = torch.nn.functional.pad(store.read(np.array([row]))[0, 0], [margin] * 4, value=-1)
    top, left = (margin + edge for edge in corner)
    return padded[top : top + side, left : left + side]


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corner", [(0, 0), (3, 7), (8, 8), (-3, 2), (12, -5), (14, 14), (-20, 0), (0, 20)], ids=str
)
def test_a_square_is_what_the_slice_shows_there_and_background_beyond_it(corner, two_cases):
    rows, corners = np.array([4, 7]), np.array([corner, (1, 2)])
    read = two_cases.read(rows, corners=corners, side=8)
    assert read.shape == (2, 1, 8, 8)
    assert torch.equal(read[0, 0], whole(two_cases, 4, corner, 8))
    assert torch.equal(read[1, 0], whole(two_cases, 7, (1, 2), 8))


def test_the_neighbours_of_a_square_are_cut_as_it_is(two_cases):
    read = two_cases.read(np.array([4, 3]), context=1, corners=np.array([(3, 7), (0, 4)]), side=8)
    for image, rows, corner in zip(read, ([3, 4, 5], [None, 3, 4]), [(3, 7), (0, 4)], strict=True):
        for plane, row in zip(image, rows, strict=True):
            expected = -1.0 if row is None else whole(two_cases, row, corner, 8)
            assert torch.equal(plane, torch.as_tensor(expected).expand(8, 8))


def test_no_more_than_the_squares_is_read(two_cases):
    class Noting:
        """Array that notes how many pixels of it are read."""

        dtype, shape, read = two_cases.data.dtype, two_cases.data.shape, 0

        def __getitem__(self, key: Any) -> Any:
            pixels = two_cases.data[key]
            self.read += pixels.size
            return pixels

    data = Noting()
    store = SliceStore(data, two_cases.entries, two_cases.filled, TWO, {}, ())  # type: ignore[arg-type]
    store.read(np.array([1, 2, 4]), context=1, corners=np.array([(0, 0)] * 3), side=4)
    assert data.read == 3 * 3 * 4 * 4


def test_labels_are_cut_too_and_are_none_without_a_segmentation():
    store = store_of({("a", "t1"): 2, ("b", "t1"): 2}, segmented={"b": [1]})
    read = store.read_labels(np.array([1, 0, -1]), corners=np.array([(2, 5)] * 3), side=4)
    assert read.tolist()[0] == [[0, 0, 0, 0], [0, 3, 3, 0], [0, 3, 3, 0], [0, 0, 0, 0]]
    assert not read[1:].any()
    assert not store_of({("a", "t1"): 1}).read_labels(np.array([-1])).any()


# --- places -----------------------------------------------------------------------------------------------------------


def test_squares_lie_inside_the_slice_around_any_pixel_of_the_brain(two_cases):
    drawn = Crops(two_cases, 4, (0, 0)).around(np.zeros(2000, dtype=np.int64)).corners
    centres = {tuple(corner + 2) for corner in drawn}
    # BRAIN; the lowest square that fits begins at 12
    assert centres == {(y, x) for y in range(2, 14) for x in range(5, 12)}
    at_the_edge = Crops(two_cases, 12, (0, 0)).around(np.zeros(500, dtype=np.int64)).corners
    assert at_the_edge.min() == 0
    assert at_the_edge.max() == SIDE - 12


def test_slices_drawn_for_their_tumour_have_it_in_the_middle():
    store = store_of({(case, name): 3 for case in "ab" for name in TWO}, segmented={"a": [0, 1, 2]})
    sampler = CaseSampler(store, lambda *_: TWO, batch_size=32, seed=0, tumour_slices=1.0, crop=4)
    batch = sampler.batch(0)
    assert set(batch.has_labels.tolist()) == {True, False}
    for labels, has in zip(batch.labels, batch.has_labels, strict=True):
        if has:
            assert labels[2, 2] == 3
    any_place = CaseSampler(store, lambda *_: TWO, batch_size=32, seed=0, crop=4).batch(0)
    assert (any_place.labels[any_place.has_labels, 2, 2] == 0).any()


def place_of(image: torch.Tensor) -> tuple[int, int, int]:
    """Return (row, y, x) of a pixel of brain that an image (S, S) shows, the pixel moved to the image's corner."""
    values = (image * STEPS).round().long()
    y, x = np.argwhere(values.numpy() > -STEPS)[0]
    value = int(values[y, x])
    return value // 256, value % 256 // 16 - int(y), value % 16 - int(x)


def corner(image: torch.Tensor) -> tuple[int, int]:
    """Return the upper left (y, x) of an image's square in the slice."""
    return place_of(image)[1:]


def test_a_source_has_the_square_of_its_pair_and_references_have_their_own(two_cases):
    sampler = DomainSampler(two_cases, batch_size=16, seed=0, crop=8, many=True, context=1)
    places = set()
    for step in range(4):
        batch = sampler.batch(step)
        assert batch.x_src.shape == (16, 3, 8, 8)
        assert batch.x_all.shape == (16, 2, 3, 8, 8)
        for name in ("x_ref", "x_ref2", "x_pair"):
            assert getattr(batch, name).shape == (16, 1, 8, 8)
        for index in range(16):
            source = corner(batch.x_src[index, 1])
            assert corner(batch.x_pair[index, 0]) == source
            for modality in torch.nonzero(batch.given[index])[:, 0]:
                assert corner(batch.x_all[index, modality, 1]) == source
            places.add((source, corner(batch.x_ref[index, 0]), corner(batch.x_ref2[index, 0])))
    assert sum(len(set(three)) == 3 for three in places) > 30


def test_all_modalities_neighbours_and_labels_of_a_case_have_one_square():
    store = store_of({("a", name): 3 for name in TWO}, segmented={"a": [0, 1, 2]})
    sampler = CaseSampler(store, lambda *_: TWO, batch_size=16, seed=0, crop=8, context=1)
    for batch in (sampler.batch(0), sampler.batch(1)):
        for index in range(16):
            y, x = corner(batch.images[index, 0])
            for modality in range(2):
                for plane in batch.source(modality)[index]:
                    assert plane.eq(-1).all() or corner(plane) == (y, x)
            classes = np.zeros((SIDE, SIDE), np.int64)
            classes[TUMOUR] = 3
            assert batch.labels[index].tolist() == classes[y : y + 8, x : x + 8].tolist()


def test_a_square_is_mirrored_after_it_is_cut(two_cases):
    for kind, args, field in (
        (DomainSampler, (), "x_src"),
        (CaseSampler, (lambda *_: TWO,), "images"),
    ):
        plain, mirrored = (
            kind(two_cases, *args, batch_size=4, seed=0, crop=8, mirror=share).batch(0)
            for share in (0.0, 1.0)
        )
        assert torch.equal(getattr(mirrored, field), getattr(plain, field).flip(-1))


# --- what crops leave as it is ----------------------------------------------------------------------------------------


def test_squares_are_cut_from_the_slices_that_would_be_seen_whole(two_cases):
    rows = [
        kind(two_cases, *args, batch_size=8, seed=3, mirror=0.5, crop=side).rows(5)
        for kind, args in ((DomainSampler, ()), (CaseSampler, (lambda *_: TWO,)))
        for side in (0, 8)
    ]
    for without, cropped in (rows[:2], rows[2:]):
        assert without.keys() == cropped.keys()
        assert all(np.array_equal(without[key], cropped[key]) for key in without)


def test_without_crops_the_draws_of_a_seed_are_those_of_earlier_versions(two_cases):
    domains = DomainSampler(two_cases, batch_size=4, seed=3).rows(5)
    assert {key: domains[key].tolist() for key in DOMAIN_ROWS} == DOMAIN_ROWS
    cases = CaseSampler(two_cases, lambda *_: TWO, batch_size=4, seed=3, leave_out=0.5).rows(5)
    assert {key: cases[key].tolist() for key in CASE_ROWS} == CASE_ROWS


def test_a_cropped_batch_is_a_function_of_seed_and_step(two_cases):
    one, two = (DomainSampler(two_cases, batch_size=4, seed=3, crop=8) for _ in range(2))
    one.batch(0)
    assert torch.equal(one.batch(7).x_src, two.batch(7).x_src)
    assert not torch.equal(one.batch(7).x_src, one.batch(8).x_src)
