"""The ready source rules: which modalities a missing one is made from."""

from __future__ import annotations

import pytest

from attcl_cli.methods.sources import (
    AllPresent,
    AnyOne,
    Exactly,
    HubAndSpokes,
    SeenTogether,
    made_between,
    takes_one,
)

FOUR = ("flair", "t1", "t1ce", "t2")
DEDICATED = Exactly({"t1ce": ("flair", "t1"), "t2": ("flair",)})
HUB = HubAndSpokes(FOUR, "t1")


def test_any_one_takes_the_first_present_modality_that_the_model_knows():
    rule = AnyOne(FOUR)
    assert rule.targets == FOUR
    assert rule.sources_for("t1", ["t2", "flair"]) == ("t2",)
    assert rule.sources_for("t1", ["pd", "flair"]) == ("flair",)
    assert rule.sources_for("t1", ["t1", "t1ce"]) == ("t1ce",)  # never the target itself


def test_all_present_takes_every_known_modality_in_its_own_order():
    rule = AllPresent(FOUR)
    assert rule.targets == FOUR
    assert rule.sources_for("t1", ["t2", "pd", "flair", "t1"]) == ("flair", "t2")
    assert rule.sources_for("t1", ["t2"]) == ("t2",)


# What the scenario ratio1 leaves of the training cases: FLAIR and one other modality.
RATIO1 = frozenset(frozenset({"flair", name}) for name in ("t1", "t1ce", "t2"))


def test_sources_that_no_training_case_had_beside_the_target_are_left_out():
    rule = SeenTogether(AllPresent(FOUR), RATIO1)
    assert rule.targets == FOUR
    assert rule.sources_for("t2", ["flair", "t1"]) == ("flair",)
    assert rule.sources_for("flair", ["t1", "t2"]) == ("t1",)  # one of them, the first in order
    assert rule.sources_for("flair", ["t2", "t1"]) == ("t2",)


def test_as_many_sources_are_taken_as_a_training_case_had():
    rule = SeenTogether(AllPresent(FOUR), RATIO1 | {frozenset({"flair", "t1", "t2"})})
    assert rule.sources_for("t2", ["flair", "t1"]) == ("flair", "t1")
    assert rule.sources_for("t2", ["flair", "t1", "t1ce"]) == ("flair", "t1")
    assert rule.sources_for("t1ce", ["flair", "t1", "t2"]) == ("flair",)


def test_without_any_training_case_of_the_pair_the_other_rule_decides():
    rule = SeenTogether(AllPresent(FOUR), RATIO1)
    assert rule.sources_for("t2", ["t1", "t1ce"]) == ("t1", "t1ce")
    assert SeenTogether(AllPresent(FOUR), frozenset()).sources_for("t2", ["t1"]) == ("t1",)
    assert rule.sources_for("pd", ["t1"]) is None
    assert rule.sources_for("t2", ["pd"]) is None


def test_exactly_takes_its_sources_if_all_are_present():
    assert DEDICATED.targets == ("t1ce", "t2")
    assert DEDICATED.sources_for("t1ce", ["t2", "t1", "flair"]) == ("flair", "t1")
    assert DEDICATED.sources_for("t1ce", ["t2", "flair"]) is None
    assert DEDICATED.sources_for("t2", ["flair"]) == ("flair",)
    assert DEDICATED.sources_for("t1", list(FOUR)) is None


def test_a_hub_is_preferred_as_a_source_and_made_from_the_first_present_modality():
    assert HUB.targets == FOUR
    assert HUB.sources_for("t2", ["t2", "flair", "t1"]) == ("t1",)
    assert HUB.sources_for("t1", ["t2", "pd", "flair"]) == ("t2",)
    assert HUB.sources_for("t1ce", ["pd", "t2", "flair"]) == ("t2",)


def test_without_the_hub_a_target_is_made_through_it():
    assert made_between(HUB, "t1ce", ("t2",)) == ("t1",)
    assert made_between(HUB, "t1", ("t2",)) == ()
    assert made_between(HUB, "t1ce", ("t1",)) == ()


@pytest.mark.parametrize("rule", [AnyOne(FOUR), AllPresent(FOUR), DEDICATED], ids=repr)
def test_other_rules_make_nothing_on_the_way(rule):
    assert made_between(rule, "t1ce", ("flair",)) == ()


@pytest.mark.parametrize("rule", [AnyOne(FOUR), AllPresent(FOUR), DEDICATED, HUB], ids=repr)
@pytest.mark.parametrize(
    ("target", "present"), [("pd", FOUR), ("t1ce", ()), ("t1ce", ("t1ce",)), ("t1ce", ("pd",))]
)
def test_no_rule_makes_what_it_does_not_know_or_from_nothing(rule, target, present):
    assert rule.sources_for(target, present) is None


def test_what_a_target_needs_is_described_in_words():
    assert AnyOne(FOUR).describe("t1") == "any one of flair, t1ce, t2"
    assert AllPresent(FOUR).describe("t1") == "any of flair, t1ce, t2"
    assert DEDICATED.describe("t1ce") == "flair, t1"
    assert HUB.describe("t1") == "any one of flair, t1ce, t2"
    assert HUB.describe("t2") == "any one of t1, flair, t1ce"  # the hub first


@pytest.mark.parametrize(
    ("rule", "one"),
    [
        (AnyOne(FOUR), True),
        (HUB, True),
        (AllPresent(FOUR), False),
        (DEDICATED, False),
        (Exactly({"t2": ("flair",)}), False),  # from flair alone, not from any
    ],
    ids=repr,
)
def test_a_model_of_one_source_makes_every_target_from_any(rule, one):
    assert takes_one(rule, FOUR) is one
