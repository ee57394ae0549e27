"""Which volumes have pictures: the worst, the best, and a random sample that is always the same."""

from __future__ import annotations

import random

import pytest

from attcl_cli.report.chosen import BEST, SAMPLE, WORST, choose, count_roles


def test_if_there_is_room_for_all_they_keep_their_order_and_have_no_role():
    assert choose([3, 1], [2], most=3) == [(3, ""), (1, ""), (2, "")]
    assert choose([], most=3) == []


def test_half_are_the_worst_and_a_quarter_each_the_best_and_a_random_sample():
    chosen = choose(range(10_000), most=24)
    roles = [role for _, role in chosen]
    assert roles == [WORST] * 12 + [BEST] * 6 + [SAMPLE] * 6
    items = [item for item, _ in chosen]
    assert items[:18] == [*range(12), *range(9_999, 9_993, -1)]
    sample = items[18:]
    assert sample == sorted(set(sample))
    assert set(sample) <= set(range(12, 9_994))
    assert sample[-1] - sample[0] > 2_500  # from all over the order


def test_the_choice_does_not_depend_on_what_was_drawn_before():
    first = choose(range(1_000), most=12)
    random.random()
    assert choose(range(1_000), most=12) == first


def test_choosing_draws_nothing_that_others_see():
    random.seed(1)
    state = random.getstate()
    choose(range(1_000), most=12)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("ranked", "roles"),
    [
        (0, [SAMPLE] * 8),
        (2, [WORST] * 2 + [SAMPLE] * 6),
        (5, [WORST] * 4 + [BEST] + [SAMPLE] * 3),
        (7, [WORST] * 4 + [BEST] * 2 + [SAMPLE] * 2),
    ],
)
def test_what_has_no_rank_is_neither_worst_nor_best(ranked, roles):
    known, unknown = [f"known {it}" for it in range(ranked)], [f"unknown {it}" for it in range(90)]
    chosen = choose(known, unknown, most=8)
    assert [role for _, role in chosen] == roles
    assert len({item for item, _ in chosen}) == 8
    assert all(item in known for item, role in chosen if role != SAMPLE)


def test_roles_are_counted_in_words():
    chosen = choose(range(100), most=4, worst="most doubt", best="least doubt")
    words = "most doubt: 2, least doubt: 1, random sample: 1"
    assert count_roles(role for _, role in chosen) == words
    assert count_roles(["", ""]) == ""
