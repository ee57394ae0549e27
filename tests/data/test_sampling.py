"""Batches are a function of (seed, step): single slices with a target, whole cases, unpaired slices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from slice_stores import FOUR, MIXED, PARTLY_PAIRED, all_others, store_of_cases, store_of_volumes

from attcl_cli.data.sampling import CaseSampler, DomainBatch, DomainSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import AttclError

# --- single slices ----------------------------------------------------------------------------------------------------


def same(first: DomainBatch, second: DomainBatch) -> bool:
    fields = ("x_src", "y_src", "x_ref", "x_ref2", "y_ref", "x_pair", "has_pair")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in fields)


def test_a_batch_is_a_function_of_seed_and_step(store):
    one, two = (DomainSampler(store, batch_size=4, seed=3) for _ in range(2))
    one.batch(0)
    one.batch(1)
    assert same(one.batch(7), two.batch(7))
    assert not same(one.batch(7), one.batch(8))
    assert not same(one.batch(7), DomainSampler(store, batch_size=4, seed=4).batch(7))


def test_a_batch_has_its_shapes_and_range(store):
    batch = DomainSampler(store, batch_size=3, seed=0).batch(0)
    for image in (batch.x_src, batch.x_ref, batch.x_ref2, batch.x_pair):
        assert image.shape == (3, 1, 16, 16)
        assert image.dtype == torch.float32
        assert image.min() >= -1
        assert image.max() <= 1
    assert batch.y_src.dtype == batch.y_ref.dtype == torch.int64


def row_owner(store: SliceStore) -> list[tuple[str, str, int]]:
    """Row -> case, modality, axial slice."""
    return [
        (entry.case, entry.modality, entry.first + offset)
        for entry in store.entries
        for offset in range(entry.count)
    ]


def test_domains_are_those_of_the_rows():
    store = store_of_volumes(PARTLY_PAIRED)
    owner, sampler = row_owner(store), DomainSampler(store, batch_size=8, seed=0)
    for step in range(30):
        rows = sampler.rows(step)
        for images, domains in (("x_src", "y_src"), ("x_ref", "y_ref"), ("x_ref2", "y_ref")):
            modalities = [owner[row][1] for row in rows[images]]
            assert modalities == [store.modalities[domain] for domain in rows[domains]]


def test_a_pair_is_the_same_slice_of_the_same_case_in_the_target_modality():
    store = store_of_volumes(PARTLY_PAIRED)
    owner, sampler = row_owner(store), DomainSampler(store, batch_size=8, seed=0)
    there = set(owner)
    counts = {True: 0, False: 0}
    for step in range(30):
        rows = sampler.rows(step)
        for source, target, pair in zip(rows["x_src"], rows["y_ref"], rows["x_pair"], strict=True):
            case, _, slice_ = owner[source]
            expected = (case, store.modalities[target], slice_)
            assert (pair >= 0) == (expected in there)
            if pair >= 0:
                assert owner[pair] == expected
            counts[bool(pair >= 0)] += 1
    assert min(counts.values()) > 20


def test_targets_can_be_drawn_uniformly_from_the_other_modalities():
    store = store_of_cases({"A": FOUR, "B": ("flair",), "C": ("flair", "t1")})
    sampler = DomainSampler(store, batch_size=60, seed=0, others=True)
    counts: Counter[tuple[int, int]] = Counter()
    for step in range(40):
        rows = sampler.rows(step)
        counts.update(zip(rows["y_src"].tolist(), rows["y_ref"].tolist(), strict=True))
    # 2,400 draws over 12 directions: 200 each, standard deviation 14
    assert set(counts) == {(one, two) for one in range(4) for two in range(4) if one != two}
    assert all(abs(count - 200) < 60 for count in counts.values())


def test_other_targets_change_nothing_unless_asked_for():
    store = store_of_cases({"A": FOUR})
    plain, others = (
        DomainSampler(store, batch_size=8, seed=0, others=one) for one in (False, True)
    )
    assert np.array_equal(plain.rows(3)["y_src"], others.rows(3)["y_src"])
    assert any(np.any(plain.rows(s)["y_src"] == plain.rows(s)["y_ref"]) for s in range(5))


def test_a_single_modality_has_no_other_one_to_draw():
    store = store_of_volumes([("A", "t1", 5, 3)])
    DomainSampler(store, batch_size=2, seed=0)
    with pytest.raises(AttclError) as caught:
        DomainSampler(store, batch_size=2, seed=0, others=True)
    assert caught.value.code == "nothing-to-learn-from"
    assert str(caught.value).startswith("training slices: t1 alone")


def test_a_modality_that_no_slice_shows_cannot_be_drawn():
    t2 = [*range(5, 10), *range(14, 20)]
    with pytest.raises(AttclError, match="none of t2 shows brain") as caught:
        DomainSampler(store_of_volumes(PARTLY_PAIRED, empty=t2), batch_size=4, seed=0)
    assert caught.value.code == "nothing-to-learn-from"


def test_jitter_enlarges_a_source_and_its_pair_alike(store):
    plain, other = (DomainSampler(store, batch_size=8, seed=1, jitter=one) for one in (0.0, 0.5))
    before, after = plain.batch(2), other.batch(2)
    assert torch.equal(before.y_ref, after.y_ref) and torch.equal(before.has_pair, after.has_pair)
    assert after.x_src.shape == after.x_pair.shape == before.x_src.shape
    for images, changed in ((before.x_src, after.x_src), (before.x_ref, after.x_ref)):
        assert not torch.equal(images, changed)
        # 1.5 times as large: 2.25 times the area, if the square shows the whole brain
        assert (changed > -1).float().mean() > 1.2 * (images > -1).float().mean()
    assert torch.equal(after.x_src, other.batch(2).x_src)


def test_jitter_keeps_a_pair_aligned():
    store = store_of_cases({"A": FOUR})
    noise = np.random.default_rng(0).integers(-9000, 9000, (5, 16, 16)).astype(np.int16)
    alike = replace(store, data=np.concatenate([noise] * 4))  # every modality shows the same
    batch = DomainSampler(alike, batch_size=6, seed=1, jitter=0.2, mirror=0.5).batch(0)
    assert batch.has_pair.all()
    assert torch.equal(batch.x_src, batch.x_pair)


def test_pairs_that_are_not_there_are_background():
    store = store_of_volumes(PARTLY_PAIRED)
    sampler = DomainSampler(store, batch_size=8, seed=0)
    step = next(n for n in range(50) if {True, False} == set(sampler.rows(n)["x_pair"] >= 0))
    rows, batch = sampler.rows(step), sampler.batch(step)
    assert batch.has_pair.tolist() == (rows["x_pair"] >= 0).tolist()
    expected = [row / 32767 if row >= 0 else -1 for row in rows["x_pair"]]
    assert batch.x_pair[:, 0, 1, 1].tolist() == pytest.approx(expected)


def test_modalities_are_drawn_uniformly_however_many_volumes_they_have():
    store = store_of_volumes([("A", "t1", 90, 0), ("B", "t2", 10, 0)])
    sampler = DomainSampler(store, batch_size=10, seed=0)
    drawn = [sampler.rows(step) for step in range(200)]
    for name in ("y_src", "y_ref"):
        share = np.mean([rows[name] for rows in drawn])
        assert abs(share - 0.5) < 0.05  # 2000 draws: standard deviation 0.011


def test_slices_without_brain_are_never_drawn():
    empty = [0, 1, 2, 5, 10, 14]
    store = store_of_volumes(PARTLY_PAIRED, empty=empty)
    sampler = DomainSampler(store, batch_size=10, seed=0)
    drawn = {
        int(row)
        for step in range(50)
        for name in ("x_src", "x_ref", "x_ref2")
        for row in sampler.rows(step)[name]
    }
    assert drawn == set(range(20)) - set(empty)


def test_a_mirrored_source_takes_its_pair_along_and_references_are_mirrored_by_themselves():
    plain_store = store_of_volumes(PARTLY_PAIRED)
    store = replace(
        plain_store,
        data=np.random.default_rng(0).integers(0, 99, plain_store.data.shape, dtype=np.int16),
    )
    plain = DomainSampler(store, batch_size=8, seed=0)
    mirrored = DomainSampler(store, batch_size=8, seed=0, mirror=0.5)
    combinations = set()
    for step in range(20):
        rows, before, after = mirrored.rows(step), plain.batch(step), mirrored.batch(step)
        for name, chosen in zip(
            ("x_src", "x_ref", "x_ref2", "x_pair"),
            (*rows["mirrored"], rows["mirrored"][0]),
            strict=True,
        ):
            for index in range(8):
                expected = getattr(before, name)[index]
                expected = expected.flip(-1) if chosen[index] else expected
                assert torch.equal(getattr(after, name)[index], expected)
        combinations |= {tuple(column) for column in rows["mirrored"].T.tolist()}
    assert len(combinations) == 8  # every combination of the three


# --- whole cases ------------------------------------------------------------------------------------------------------


def t1ce_from_three(target, present):
    """Make T1ce alone, from all three others."""
    return tuple(present) if target == "t1ce" and len(present) == 3 else None


def drawn(sampler: CaseSampler, steps: int = 200) -> list[tuple[str, str, frozenset[str], int]]:
    """(case, target, sources, offset) of many draws."""
    names = list(dict.fromkeys(entry.case for entry in sampler.store.entries))
    draws = []
    for step in range(steps):
        rows = sampler.rows(step)
        for case, target, sources, offset in zip(
            rows["case"], rows["target"], rows["sources"], rows["offset"], strict=True
        ):
            used = frozenset(np.array(FOUR)[sources])
            draws.append((names[case], FOUR[target], used, int(offset)))
    return draws


def test_a_target_is_there_and_all_others_of_the_case_are_its_sources():
    for case, target, sources, _ in drawn(
        CaseSampler(store_of_cases(MIXED), all_others, batch_size=4, seed=0)
    ):
        assert target in MIXED[case]
        assert sources == set(MIXED[case]) - {target}
        assert sources


def test_a_case_with_one_modality_teaches_nothing():
    draws = drawn(CaseSampler(store_of_cases(MIXED), all_others, batch_size=4, seed=0))
    assert {case for case, *_ in draws} == {"A", "B", "D"}


def test_targets_are_drawn_uniformly_however_many_cases_have_them():
    draws = drawn(CaseSampler(store_of_cases(MIXED), all_others, batch_size=10, seed=0))
    counts = Counter(target for _, target, *_ in draws)
    assert all(abs(counts[name] / len(draws) - 0.25) < 0.04 for name in FOUR)  # sd .01


def test_a_share_of_the_targets_of_cases_is_drawn_as_often_as_cases_lack_them():
    store = store_of_cases(MIXED)
    draws = drawn(CaseSampler(store, all_others, batch_size=10, seed=0, missing_targets=0.75))
    counts = Counter(target for _, target, *_ in draws)
    lacking = {name: sum(name not in names for names in MIXED.values()) for name in FOUR}
    for name in FOUR:
        expected = 0.25 / 4 + 0.75 * lacking[name] / sum(lacking.values())
        assert counts[name] / len(draws) == pytest.approx(expected, abs=0.04)  # sd .01


def test_sources_that_are_left_out_leave_any_set_but_the_empty_one():
    store = store_of_cases({"A": FOUR})
    draws = drawn(CaseSampler(store, all_others, batch_size=10, seed=0, leave_out=1.0))
    sets = {target: {sources for _, name, sources, _ in draws if name == target} for target in FOUR}
    for target, subsets in sets.items():
        assert len(subsets) == 7  # of three others
        assert frozenset() not in subsets
        assert all(target not in sources for sources in subsets)


def test_half_of_the_cases_keep_all_their_sources_if_half_lose_some():
    store = store_of_cases({"A": FOUR})
    draws = drawn(CaseSampler(store, all_others, batch_size=10, seed=0, leave_out=0.5))
    share = np.mean([len(sources) == 3 for _, _, sources, _ in draws])
    assert abs(share - (0.5 + 0.5 / 3)) < 0.05  # a third of those that may lose some lose none


def test_a_share_of_cases_keeps_a_single_source_any_of_them():
    store = store_of_cases({"A": FOUR})
    draws = drawn(CaseSampler(store, all_others, batch_size=10, seed=0, alone=0.3))
    single = [next(iter(sources)) for _, _, sources, _ in draws if len(sources) == 1]
    assert abs(len(single) / len(draws) - 0.3) < 0.04  # sd .01
    assert all(len(sources) in {1, 3} for _, _, sources, _ in draws)
    assert all(abs(single.count(name) / len(single) - 0.25) < 0.07 for name in FOUR)  # sd .018
    assert all(target not in sources for _, target, sources, _ in draws)


def test_gamma_changes_the_sources_and_neither_what_is_learned_nor_background():
    plain_store = store_of_cases(MIXED)
    noise = np.random.default_rng(0).integers(-32767, 32767, plain_store.data.shape, np.int16)
    noise[:, 0] = -32767
    store = replace(plain_store, data=noise)
    before, after = (
        CaseSampler(store, all_others, batch_size=8, seed=0, context=1, leave_out=1.0, gamma=spread)
        for spread in (0.0, 0.15)
    )
    one, two = before.batch(2), after.batch(2)
    assert torch.equal(one.sources, two.sources)
    assert torch.equal(one.images[~one.sources], two.images[~one.sources])
    powers = []
    for modality in range(4):
        first, second = (batch.source(modality)[one.sources[:, modality]] for batch in (one, two))
        assert torch.equal(first == -1, second == -1)
        inside = (first > -0.999) & (first < 0.999)
        for a, b, there in zip((first + 1) / 2, (second + 1) / 2, inside, strict=True):
            power = b[there].log() / a[there].log()
            assert power.std() < 1e-3  # one per source, neighbours too
            powers.append(power.mean().item())
    assert len({round(power, 4) for power in powers}) == len(powers)
    assert all(0.6 < power < 1.7 for power in powers)  # exp(3 * 0.15) = 1.57


def test_a_dedicated_model_learns_from_cases_that_have_all_it_needs():
    cases = {"A": FOUR, "B": ("flair", "t1", "t1ce"), "C": FOUR}
    draws = drawn(CaseSampler(store_of_cases(cases), t1ce_from_three, batch_size=4, seed=0))
    assert {(case, target, sources) for case, target, sources, _ in draws} == {
        (case, "t1ce", frozenset({"flair", "t1", "t2"})) for case in "AC"
    }


def test_nothing_to_learn_from_is_an_error():
    store = store_of_cases({"B": ("flair", "t1", "t1ce")})
    with pytest.raises(AttclError, match="of 1 case: none has a target together with") as caught:
        CaseSampler(store, t1ce_from_three, batch_size=1, seed=0)
    assert caught.value.code == "nothing-to-learn-from"


def test_slices_with_tumour_are_preferred_if_that_is_known():
    cases = {"A": ("t1", "t2"), "B": ("t1", "t2")}
    store = store_of_cases(cases, segmented={"A": [1, 3]})
    draws = drawn(CaseSampler(store, all_others, batch_size=4, seed=0, tumour_slices=1.0))
    assert {offset for case, _, _, offset in draws if case == "A"} == {1, 3}
    assert {offset for case, _, _, offset in draws if case == "B"} == {0, 1, 2, 3, 4}


def test_without_the_preference_all_slices_are_drawn():
    store = store_of_cases({"A": ("t1", "t2")}, segmented={"A": [1]})
    draws = drawn(CaseSampler(store, all_others, batch_size=4, seed=0))
    assert {offset for *_, offset in draws} == {0, 1, 2, 3, 4}


def test_a_batch_holds_the_slices_and_background_for_missing_modalities():
    store = store_of_cases(MIXED, segmented={"A": [0, 1, 2, 3, 4]})
    sampler = CaseSampler(store, all_others, batch_size=8, seed=0)
    start = {(entry.case, entry.modality): entry.start for entry in store.entries}
    rows, batch = sampler.rows(3), sampler.batch(3)
    assert batch.images.shape == (8, 4, 2, 2)
    for index, (case, offset) in enumerate(zip(rows["case"], rows["offset"], strict=True)):
        name = "ABCD"[case]
        for slot, modality in enumerate(FOUR):
            row = start.get((name, modality))
            expected = -1 if row is None else (row + offset) / 32767
            assert batch.images[index, slot, 0, 0] == pytest.approx(expected)
        assert batch.has_labels[index] == (name == "A")
        assert batch.labels[index].tolist() == (
            [[3, 0], [0, 0]] if name == "A" else [[0, 0], [0, 0]]
        )
    assert batch.image(batch.target).shape == (8, 1, 2, 2)


def test_a_batch_of_cases_is_a_function_of_seed_and_step():
    store = store_of_cases(MIXED)
    one, two = (
        CaseSampler(store, all_others, batch_size=4, seed=3, leave_out=0.5, tumour_slices=0.5)
        for _ in range(2)
    )
    one.batch(0)
    first, again, other = one.batch(7), two.batch(7), one.batch(8)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.sources, again.sources)
    assert not torch.equal(first.images, other.images)


def test_mirrored_cases_take_their_labels_along():
    plain_store = store_of_cases({"A": FOUR}, segmented={"A": [0, 1, 2, 3, 4]})
    noise = np.random.default_rng(0).integers(0, 99, plain_store.data.shape, dtype=np.int16)
    store = replace(plain_store, data=noise)
    before = CaseSampler(store, all_others, batch_size=4, seed=0).batch(0)
    after = CaseSampler(store, all_others, batch_size=4, seed=0, mirror=1).batch(0)
    assert torch.equal(after.images, before.images.flip(-1))
    assert torch.equal(after.labels, before.labels.flip(-1))
    assert before.labels[:, 0, 0].eq(3).all()
    assert after.labels[:, 0, -1].eq(3).all()


def test_a_part_of_a_batch_knows_the_share_of_labels_in_the_whole():
    store = store_of_cases({"A": FOUR, "B": FOUR}, segmented={"A": [0]})
    batch = CaseSampler(store, all_others, batch_size=8, seed=0).batch(0)
    part = batch.part(slice(2, 4))
    assert len(part) == 2
    assert part.label_share == pytest.approx(batch.has_labels.float().mean().item())
    assert part.part(slice(0, 1)).label_share == part.label_share
