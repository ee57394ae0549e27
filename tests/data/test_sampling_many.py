"""Several sources per target in batches of single slices, and how many slices an epoch goes over."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from slice_stores import FOUR, MIXED, PARTLY_PAIRED, all_others, store_of_cases, store_of_volumes

from attcl_cli.data.sampling import CaseSampler, DomainSampler
from attcl_cli.data.slices import STEPS


def sampler_of(cases: dict[str, tuple[str, ...]], **options: float) -> DomainSampler:
    """Return a sampler of many sources."""
    return DomainSampler(store_of_cases(cases), batch_size=16, seed=0, many=True, **options)


def rows_of(sampler: DomainSampler) -> dict[tuple[str, str, int], int]:
    """Return (case, modality, offset) -> row of the store."""
    return {
        (entry.case, entry.modality, offset): entry.start + offset
        for entry in sampler.store.entries
        for offset in range(entry.count)
    }


def test_without_many_there_is_one_source():
    batch = DomainSampler(store_of_cases(MIXED), batch_size=4, seed=0).batch(0)
    assert batch.x_all is batch.given is None
    assert batch.part(slice(0, 2)).x_all is None


def test_many_changes_nothing_in_the_rest_of_a_batch():
    store = store_of_cases(MIXED)
    one = DomainSampler(store, batch_size=8, seed=0, mirror=0.5).batch(3)
    many = DomainSampler(store, batch_size=8, seed=0, mirror=0.5, many=True).batch(3)
    for name in ("x_src", "y_src", "x_ref", "x_ref2", "y_ref", "x_pair", "has_pair"):
        assert torch.equal(getattr(one, name), getattr(many, name))


@pytest.mark.parametrize("many", [False, True])
def test_no_references_are_drawn_while_true_pairs_alone_teach(many):
    store = store_of_cases(MIXED)
    sampler = DomainSampler(
        store, batch_size=8, seed=0, many=many, pair_targets=1.0, paired_until=3
    )
    always = DomainSampler(store, batch_size=8, seed=0, many=many, pair_targets=1.0)
    early, late = sampler.batch(2), sampler.batch(3)
    assert early.x_ref.shape == early.x_ref2.shape == (8, 0, *early.x_src.shape[2:])
    assert early.halved().x_ref.shape == (
        8,
        0,
        early.x_src.shape[2] // 2,
        early.x_src.shape[3] // 2,
    )
    assert torch.equal(late.x_ref, always.batch(3).x_ref)
    for name in ("x_src", "y_ref", "x_pair"):  # nothing else changes
        assert torch.equal(getattr(early, name), getattr(always.batch(2), name))


def test_the_source_is_given_and_the_target_is_not():
    sampler = sampler_of(MIXED)
    for step in range(20):
        batch = sampler.batch(step)
        rows = torch.arange(16)
        assert batch.given[rows, batch.y_src].all()
        differ = batch.y_src != batch.y_ref
        assert not batch.given[rows, batch.y_ref][differ].any()


def test_what_is_given_shows_the_place_of_the_source_and_the_rest_is_background():
    sampler = sampler_of(MIXED, alone=0.0, context=1)
    rows = rows_of(sampler)
    place = {row: key for key, row in rows.items()}
    several = 0
    for step in range(10):
        batch, drawn = sampler.batch(step), sampler.rows(step)
        for index, source in enumerate(drawn["x_src"]):
            case, _, offset = place[source]
            for slot, modality in enumerate(FOUR):
                planes = batch.x_all[index, slot]
                if batch.given[index, slot]:
                    row = rows[case, modality, offset]  # KeyError: given, though the case lacks it
                    assert (planes[1] * STEPS).round().eq(row).all()
                else:
                    assert planes.eq(-1).all()
            assert torch.equal(batch.x_all[index, batch.y_src[index]], batch.x_src[index])
            several += int(batch.given[index].sum() > 1)
    assert several > 40


def test_a_share_of_sources_stands_alone_and_other_numbers_are_drawn_uniformly():
    sampler = sampler_of({"A": FOUR}, pair_targets=1.0, alone=0.4)
    batches = [sampler.batch(step) for step in range(200)]
    counts = Counter(torch.cat([batch.given.sum(dim=1) for batch in batches]).tolist())
    shares = [counts[number] / 3200 for number in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.4 + 0.2, 0.2, 0.2, 0], abs=0.03)  # sd 0.009
    everyone = sampler_of({"A": FOUR}, alone=1.0).batch(0)
    assert everyone.given.sum(dim=1).eq(1).all()


def test_every_set_of_sources_with_the_source_in_it_is_drawn():
    sampler = sampler_of({"A": FOUR}, pair_targets=1.0, alone=0.0)
    batches = [sampler.batch(step) for step in range(100)]
    drawn = {
        (int(source), int(target), tuple(given.tolist()))
        for batch in batches
        for source, target, given in zip(batch.y_src, batch.y_ref, batch.given, strict=True)
    }
    assert len(drawn) == 4 * 3 * 4  # source, target, any of the two others


RATIO1 = {"A": ("flair", "t1"), "B": ("flair", "t1ce"), "C": ("flair", "t2"), "D": ("t2",)}


def targets_of(sampler: DomainSampler) -> list[float]:
    """Return the share of each modality among the targets of true pairs."""
    batches = [sampler.batch(step) for step in range(200)]
    assert all(bool(batch.has_pair.all()) for batch in batches)
    targets = torch.cat([batch.y_ref for batch in batches])
    return (torch.bincount(targets, minlength=4) / len(targets)).tolist()


def test_targets_of_true_pairs_are_drawn_uniformly_whatever_has_a_partner():
    # Of sources that are drawn first, three in four would be taught to become FLAIR.
    assert targets_of(sampler_of(RATIO1, pair_targets=1.0)) == pytest.approx([0.25] * 4, abs=0.03)


def test_a_share_of_targets_is_drawn_as_often_as_cases_lack_them():
    sampler = sampler_of(RATIO1, pair_targets=1.0, missing_targets=0.75)
    lacking = [1, 3, 3, 2]  # flair, t1, t1ce, t2
    expected = [0.25 / 4 + 0.75 * count / 9 for count in lacking]
    assert targets_of(sampler) == pytest.approx(expected, abs=0.03)  # sd 0.009


def test_without_missing_modalities_all_targets_are_drawn_alike():
    sampler = sampler_of({"A": FOUR, "B": FOUR}, pair_targets=1.0, missing_targets=1.0)
    assert targets_of(sampler) == pytest.approx([0.25] * 4, abs=0.03)


def test_a_modality_that_no_case_has_beside_another_is_no_target_of_a_true_pair():
    cases = {"A": ("flair", "t1"), "B": ("t2",), "C": ("t1ce",)}
    sampler = sampler_of(cases, pair_targets=1.0, missing_targets=1.0)
    assert targets_of(sampler) == pytest.approx(
        [0.5, 0.5, 0, 0], abs=0.03
    )  # both are lacking twice


def test_where_no_case_has_two_modalities_nothing_is_paired():
    alone = {case: (name,) for case, name in zip("ABCD", FOUR, strict=True)}
    sampler = sampler_of(alone, pair_targets=1.0)
    for step in range(5):
        batch = sampler.batch(step)
        assert torch.equal(batch.has_pair, batch.y_src == batch.y_ref)


def test_mirrored_sources_are_mirrored_together():
    store = store_of_cases({"A": FOUR})
    noise = np.random.default_rng(0).integers(0, 99, store.data.shape, dtype=np.int16)
    store = replace(store, data=noise)
    before, after = (
        DomainSampler(store, batch_size=8, seed=0, many=True, mirror=share).batch(0)
        for share in (0.0, 1.0)
    )
    assert torch.equal(after.x_all, before.x_all.flip(-1))
    assert torch.equal(after.given, before.given)


def test_parts_and_devices_keep_all_sources():
    batch = sampler_of(MIXED).batch(0)
    part = batch.to(torch.device("cpu")).part(slice(2, 5))
    assert torch.equal(part.x_all, batch.x_all[2:5])
    assert torch.equal(part.given, batch.given[2:5])


def test_many_sources_are_a_function_of_seed_and_step():
    one, two = sampler_of(MIXED), sampler_of(MIXED)
    one.batch(0)
    assert torch.equal(one.batch(7).given, two.batch(7).given)
    assert not torch.equal(one.batch(7).given, one.batch(8).given)


def test_an_epoch_of_slices_goes_over_all_that_show_brain():
    store = store_of_volumes(PARTLY_PAIRED, empty=[0, 5, 12])
    assert DomainSampler(store, batch_size=4, seed=0).size == 20 - 3


def test_an_epoch_of_cases_goes_over_the_slices_that_can_be_drawn():
    store = store_of_cases(MIXED, segmented={"A": [1, 3]})
    sizes = [
        CaseSampler(store, all_others, batch_size=4, seed=0, tumour_slices=share).size
        for share in (0.0, 0.5, 1.0)
    ]
    # A, B and D at 5 slices each; C has nothing to be made from. Tumour alone: A at 2.
    assert sizes == [15, 15, 12]


def test_what_a_case_has_and_is_not_given_teaches_in_its_true_appearance():
    sampler = sampler_of(MIXED, alone=0.5, augment=1.0)
    rows = rows_of(sampler)
    place = {row: key for key, row in rows.items()}
    taught = 0
    for step in range(10):
        batch, drawn = sampler.batch(step), sampler.rows(step)
        for index, source in enumerate(drawn["x_src"]):
            case, _, offset = place[source]
            for slot, modality in enumerate(FOUR):
                row = rows.get((case, modality, offset))
                expected = row is not None and not batch.given[index, slot]
                assert bool(batch.taught[index, slot]) == expected
                true = sampler.store.read(np.array([row]))[0, 0] if expected else -1.0
                assert torch.all(batch.x_taught[index, slot] == true)
                taught += expected
    assert taught > 50


def test_a_part_knows_the_share_of_what_teaches_in_the_whole():
    batch = sampler_of(MIXED).batch(0)
    part = batch.part(slice(0, 4))
    assert part.taught_share == float(batch.taught.float().mean())
    assert part.part(slice(0, 2)).taught_share == part.taught_share
    assert torch.equal(part.taught, batch.taught[:4])
