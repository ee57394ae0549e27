"""Neighbouring slices (`context`): what the store reads beside a slice, and what the samplers hand to a method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from attcl_cli.data.sampling import CaseBatch, CaseSampler, DomainSampler
from attcl_cli.data.slices import STEPS, Entry, SliceStore

TWO = ("t1", "t2")


def store_of(volumes: Mapping[tuple[str, str], int]) -> SliceStore:
    """Return a store in which every pixel of row r is (r + 1) / 100; the volumes have these many slices."""
    entries, start = [], 0
    for (case, modality), count in volumes.items():
        entries.append(Entry(case, modality, start, count, first=10))
        start += count
    values = np.rint((np.arange(start) + 1) / 100 * STEPS).astype(np.int16)
    return SliceStore(
        data=np.broadcast_to(values[:, None, None], (start, 4, 4)).copy(),
        entries=tuple(entries),
        filled=np.ones(start, dtype=bool),
        modalities=TWO,
        scales={},
        trained_on=tuple(dict.fromkeys(case for case, _ in volumes)),
    )


def rows_of(images: torch.Tensor) -> list[list[int]]:
    """Return which row each plane shows; -1 is background."""
    planes = images[..., 0, 0]
    return torch.where(planes < 0, -1, (planes * 100).round().long() - 1).tolist()


@pytest.fixture
def two_cases() -> SliceStore:
    """Rows 0..2 and 3..5 are a's t1 and t2, 6..8 and 9..11 b's."""
    return store_of({(case, modality): 3 for case in "ab" for modality in TWO})


def test_a_slice_is_read_between_its_neighbours(two_cases):
    assert rows_of(two_cases.read(np.array([4, 7]), context=1)) == [[3, 4, 5], [6, 7, 8]]


def test_beyond_the_first_and_the_last_slice_of_a_volume_there_is_background(two_cases):
    first_and_last = np.array([0, 2, 3, 11])
    assert rows_of(two_cases.read(first_and_last, context=2)) == [
        [-1, -1, 0, 1, 2],
        [0, 1, 2, -1, -1],
        [-1, -1, 3, 4, 5],
        [9, 10, 11, -1, -1],
    ]
    assert two_cases.read(np.array([0]), context=1)[0, 0].eq(-1).all()  # exactly


def test_without_context_a_slice_is_read_alone(two_cases):
    rows = np.array([5, 0, 5])
    assert two_cases.read(rows).shape == (3, 1, 4, 4)
    assert torch.equal(two_cases.read(rows), two_cases.read(rows, context=1)[:, 1:2])


def test_a_case_batch_has_the_neighbours_of_every_modality(two_cases):
    sampler = CaseSampler(two_cases, lambda *_: ("t1",), batch_size=8, seed=0, context=1)
    batch = sampler.batch(0)
    assert batch.neighbours.shape == (8, 2, 2, 4, 4)
    for modality in range(2):
        planes = rows_of(batch.source(modality))
        assert [row for _, row, _ in planes] == [
            row for (row,) in rows_of(batch.images[:, [modality]])
        ]
        for before, row, after in planes:
            assert before == (row - 1 if row % 3 else -1)
            assert after == (row + 1 if row % 3 < 2 else -1)


def test_a_modality_that_a_case_lacks_has_no_neighbours_either():
    store = store_of({("a", "t1"): 3, ("a", "t2"): 3, ("b", "t1"): 3})
    # target t1, made of itself for once, so that b, which lacks t2, is drawn
    batch = CaseSampler(store, lambda *_: ("t1",), batch_size=64, seed=0, context=1).batch(0)
    lacking = batch.images[:, 1].eq(-1).all(dim=(1, 2))
    assert lacking.any()
    assert batch.source(1)[lacking].eq(-1).all()


def test_parts_of_a_case_batch_keep_their_neighbours(two_cases):
    whole = CaseSampler(two_cases, lambda *_: ("t1",), batch_size=4, seed=0, context=1).batch(0)
    part = whole.part(slice(1, 3)).to(torch.device("cpu"))
    assert torch.equal(part.source(0), whole.source(0)[1:3])


def test_without_context_a_case_batch_is_what_it_was(two_cases):
    plain, beside = (
        CaseSampler(two_cases, lambda *_: ("t1",), batch_size=4, seed=0, mirror=0.5, context=c)
        for c in (0, 1)
    )
    one, two = plain.batch(3), beside.batch(3)
    assert isinstance(one, CaseBatch)
    assert one.neighbours is None
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.source(0), two.source(0)[:, 1:2])


def test_neighbours_are_mirrored_as_their_slice_is(two_cases):
    two_cases.data[:, :, 0] = -STEPS  # background on the left
    batch = CaseSampler(
        two_cases, lambda *_: ("t1",), batch_size=8, seed=0, mirror=1.0, context=1
    ).batch(0)
    assert batch.images[..., -1].eq(-1).all() and batch.images[..., 0].ne(-1).all()
    shows = batch.neighbours.ne(-1).any(dim=(3, 4))
    assert batch.neighbours[..., -1].eq(-1).all()
    assert batch.neighbours[..., 0][shows].ne(-1).all()


def test_a_domain_batch_has_the_neighbours_of_what_it_translates(two_cases):
    plain, beside = (
        DomainSampler(two_cases, batch_size=6, seed=0, pair_targets=0.5, context=c) for c in (0, 1)
    )
    one, two = plain.batch(0), beside.batch(0)
    assert two.x_src.shape == (6, 3, 4, 4)
    assert torch.equal(two.x_src[:, 1:2], one.x_src)
    for name in ("x_ref", "x_ref2", "x_pair"):
        assert torch.equal(getattr(one, name), getattr(two, name))
