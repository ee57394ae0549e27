"""Unpaired batches of two modalities: what is drawn, how often, and that one side says nothing about the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slice_stores import MIXED, store_of_cases, store_of_volumes

from attcl_cli.data.couples import CoupleBatch, CoupleSampler, Truth, Turn, jittered
from attcl_cli.data.slices import STEPS, SliceStore
from attcl_cli.errors import AttclError

UNEQUAL = [("A", "flair", 6, 0), ("B", "flair", 5, 0), ("A", "t1", 4, 0)]  # rows 0-10 and 11-14
PAIR = (0, 1)


def sampler_of(store: SliceStore, **options) -> CoupleSampler:
    """Return a sampler of a single pair."""
    settings = {"batch_size": 2, "seed": 0, **options}
    return CoupleSampler(store, [PAIR], lambda step: Turn(PAIR, step), **settings)


def rows_of(images: torch.Tensor) -> list[int]:
    """Return which rows of a store of `slice_stores` were drawn."""
    return [round(float(value) * STEPS) for value in images[:, 0, 0, 0]]


def aligned(cases: int, depth: int) -> SliceStore:
    """Return a store whose cases all have both modalities, flair first: row r + depth is the pair of row r."""
    volumes = [(f"C{i:03}", name, depth, 0) for i in range(cases) for name in ("flair", "t1")]
    return store_of_volumes(volumes)


def test_each_list_is_gone_through_as_a_whole_before_it_begins_again():
    sampler = sampler_of(store_of_volumes(UNEQUAL), batch_size=1)
    a, b = np.array([sampler.rows(step) for step in range(22)])[:, :, 0].T
    assert sorted(a[:11]) == sorted(a[11:]) == list(range(11))
    assert all(sorted(b[start : start + 4]) == [11, 12, 13, 14] for start in range(0, 20, 4))
    assert list(a[:11]) != list(a[11:])
    assert len({tuple(b[start : start + 4]) for start in range(0, 20, 4)}) > 1


def test_a_batch_reaches_over_the_end_of_a_list():
    sampler = sampler_of(store_of_volumes(UNEQUAL), batch_size=3)
    b = np.concatenate([sampler.rows(step)[1] for step in range(4)])
    assert [sorted(b[start : start + 4]) for start in (0, 4, 8)] == [[11, 12, 13, 14]] * 3


def test_the_two_sides_are_shuffled_independently():
    store = aligned(cases=50, depth=4)
    sampler = sampler_of(store, batch_size=200)
    a, b = sampler.rows(0)
    volume = store.entries
    assert {volume[row // 4].modality for row in a} == {"flair"}
    assert {volume[row // 4].modality for row in b} == {"t1"}
    pairs = int((b - a == 4).sum())  # of 200 slices one is met by chance
    assert pairs < 8
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.25


def test_the_hub_comes_in_another_order_in_every_pair():
    store = store_of_cases(MIXED)
    turns = {0: Turn((0, 1), 0), 1: Turn((0, 3), 0)}
    sampler = CoupleSampler(store, [(0, 1), (0, 3)], turns.__getitem__, batch_size=15, seed=0)
    (first, _), (second, _) = sampler.rows(0), sampler.rows(1)
    assert sorted(first) == sorted(second)
    assert list(first) != list(second)


def test_a_batch_is_a_function_of_seed_and_step():
    store = store_of_volumes(UNEQUAL)
    one, same, other = (sampler_of(store, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.batch(5).a, same.batch(5).a)
    assert torch.equal(one.batch(5).b, same.batch(5).b)
    assert any(rows_of(one.batch(i).a) != rows_of(other.batch(i).a) for i in range(4))


def test_slices_without_brain_are_not_drawn():
    sampler = sampler_of(store_of_volumes(UNEQUAL, empty=[0, 1, 14]))
    drawn = np.concatenate([np.concatenate(sampler.rows(step)) for step in range(12)])
    assert set(drawn) == set(range(2, 14))


def test_a_modality_without_any_brain_cannot_be_learned():
    with pytest.raises(AttclError, match="none of t1") as caught:
        sampler_of(store_of_volumes(UNEQUAL, empty=[11, 12, 13, 14]))
    assert caught.value.code == "nothing-to-learn-from"


def test_an_epoch_goes_over_the_longer_list_of_every_pair():
    store = store_of_cases(MIXED)  # 5 slices each: flair 3 times, t1 3, t1ce 1, t2 3
    turn = Turn((2, 1), 0)
    sampler = CoupleSampler(store, [(2, 1), (2, 0)], lambda _: turn, batch_size=1, seed=0)
    assert sampler.size == 15 + 15


def test_what_a_slice_should_become_is_the_same_place_of_its_case():
    store = store_of_volumes([("A", "t1", 5, 3), ("A", "t2", 5, 3), ("B", "t1", 4, 2)])
    sampler = sampler_of(store, batch_size=9, paired=True)
    batch = sampler.batch(0)
    assert batch.true_of_a is not None
    assert batch.true_of_b is not None
    for row, true, known in zip(
        rows_of(batch.a), batch.true_of_a.images, batch.true_of_a.known, strict=True
    ):
        assert bool(known) is (row < 5)
        expected = (row + 5) / STEPS if known else -1
        assert true.flatten().tolist() == pytest.approx([expected] * 4)
    assert rows_of(batch.true_of_b.images) == [row - 5 for row in rows_of(batch.b)]
    assert batch.true_of_b.known.all()


def test_nobody_is_shown_what_was_not_asked_for():
    batch = sampler_of(aligned(2, 3)).batch(0)
    assert (batch.true_of_a, batch.true_of_b) == (None, None)


@pytest.mark.parametrize(
    "changes", [{"mirror": 0.5}, {"jitter": 0.5}, {"crop": 16}, {"warp": 0.5}], ids=str
)
def test_a_slice_and_what_it_should_become_are_changed_together(changes):
    gradient = np.arange(24 * 24, dtype=np.int16).reshape(24, 24)
    flat = store_of_volumes([("A", "flair", 1, 0), ("A", "t1", 1, 0)])
    store = SliceStore(
        np.stack([gradient, gradient]), flat.entries, flat.filled, flat.modalities, {}, ()
    )
    batch = sampler_of(store, batch_size=8, paired=True, **changes).batch(0)
    assert batch.true_of_a is not None
    assert torch.equal(batch.a, batch.true_of_a.images)
    assert len({image.numpy().tobytes() for image in batch.a}) > 1


def test_parts_keep_the_share_of_the_whole():
    truth = Truth(torch.zeros(4, 1, 2, 2), torch.tensor([True, False, False, False]))
    batch = CoupleBatch(torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2), PAIR, truth)
    half = batch.part(slice(2, 4))
    assert len(half) == 2
    assert half.true_of_a is not None
    assert (half.true_of_a.share, half.true_of_b) == (0.25, None)
    assert half.part(slice(0, 1)).true_of_a.share == 0.25  # type: ignore[union-attr]


# --- enlarged and cut -------------------------------------------------------------------------------------------------


def test_jitter_keeps_the_size_and_background_exactly():
    images = torch.full((6, 1, 32, 32), -1.0)
    images[:, :, 8:24, 8:24] = 0.3
    moved = jittered(images, 30 / 256, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert ((moved == -1) | (moved > -1 + 1e-3)).all()  # no -0.9999999
    assert (moved == -1).any()
    assert float(moved.max()) == pytest.approx(0.3)


def test_jitter_enlarges_and_moves_what_is_shown():
    images = torch.full((16, 1, 64, 64), -1.0)
    images[:, :, 24:40, 24:40] = 1
    moved = jittered(images, 0.25, np.random.default_rng(1))
    areas = (moved > 0).sum(dim=(1, 2, 3)).tolist()
    assert areas == [20 * 20] * 16
    tops = {int((image[0] > 0).any(dim=1).nonzero()[0]) for image in moved}
    assert len(tops) > 3
    assert tops <= set(range(30 - 16, 30 + 1))  # 24 pixels become 30, and up to 16 are cut off


def test_no_jitter_is_the_image():
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    assert torch.equal(jittered(images, 0.0, np.random.default_rng(0)), images)
