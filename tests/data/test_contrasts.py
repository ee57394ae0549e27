"""Modalities under exchanged names, from figures made by hand."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest

from attcl_cli.data.contrasts import JUDGED, find_swap
from attcl_cli.data.voxels import VolumeRecord

# 0.5, 5, 50, 95 and 99.5 %: dark fluid makes a long dark tail, bright fluid a bright one, and so does contrast medium.
PERCENTILES = {
    "flair": (100.0, 300.0, 500.0, 700.0, 900.0),
    "t1": (100.0, 200.0, 500.0, 600.0, 650.0),
    "t1ce": (100.0, 200.0, 500.0, 600.0, 1200.0),
    "t2": (100.0, 200.0, 300.0, 600.0, 900.0),
}
CORRELATIONS = {
    ("flair", "t1"): 0.2,
    ("flair", "t1ce"): 0.1,
    ("flair", "t2"): 0.4,
    ("t1", "t1ce"): 0.7,
    ("t1", "t2"): -0.3,
    ("t1ce", "t2"): -0.2,
}


def record(percentiles: tuple[float, ...]) -> VolumeRecord:
    return VolumeRecord(
        background="zero",
        value=0,
        noise=0,
        border=0,
        below=0,
        shape=(100, 100, 100),
        spacing_mm=None,
        field_ml=None,
        volume_ml=None,
        tissue_ml=None,
        rim=None,
        percentiles=percentiles,
        commonest=0.01,
        smoothness=1,
        jumps=0,
        empty=(0, 0, 0),
        floating=False,
    )


def look(stored: dict[str, str], *, scale: float = 1, offset: float = 0) -> tuple[str, str] | None:
    """Return the names of the exchange that is found; `stored`: name -> what the volume really is."""
    records = {
        name: record(tuple(scale * value + offset for value in PERCENTILES[real]))
        for name, real in stored.items()
    }
    both = {frozenset(pair): value for pair, value in CORRELATIONS.items()}
    ranks = {
        frozenset((a, b)): both[frozenset((stored[a], stored[b]))]
        for a, b in combinations(stored, 2)
    }
    swap = find_swap(records, ranks)
    return None if swap is None else swap.names


SUBSETS = [names for count in (2, 3, 4) for names in combinations(JUDGED, count)]


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_right_names_are_right(names):
    assert look({name: name for name in names}) is None


@pytest.mark.parametrize(("one", "other"), list(combinations(JUDGED, 2)))
def test_any_two_of_four_that_are_exchanged_are_named(one, other):
    assert look({name: {one: other, other: one}.get(name, name) for name in JUDGED}) == (one, other)


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [("t1", "t2", True), ("t1ce", "t2", True), ("t1", "t1ce", True), ("flair", "t1", False)],
)
def test_of_two_modalities_those_with_other_tails_are_known(one, other, known):
    assert look({one: other, other: one}) == ((one, other) if known else None)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (0.001, -0.5), (50, 1000)])
def test_units_and_offsets_change_nothing(scale, offset):
    names = {name: name for name in JUDGED}
    assert look(names, scale=scale, offset=offset) is None
    exchanged = {**names, "t1": "t2", "t2": "t1"}
    assert look(exchanged, scale=scale, offset=offset) == ("t1", "t2")


def test_three_names_that_went_round_are_no_exchange_of_two():
    found = [
        look(
            {
                **{name: name for name in JUDGED},
                **dict(zip(("flair", "t1", "t2"), order, strict=True)),
            }
        )
        for order in permutations(("flair", "t1", "t2"))
        if all(a != b for a, b in zip(order, ("flair", "t1", "t2"), strict=True))
    ]
    assert found == [None, None]


def test_figures_name_both_sides_and_what_patients_have():
    records = {"t1": record(PERCENTILES["t2"]), "t2": record(PERCENTILES["t1"])}
    swap = find_swap(records, {frozenset(records): -0.3})
    assert swap is not None
    assert swap.figures == (
        "skew of t2 and t1: -0.50 and 0.50, a difference of -1.00; patients have 0.26 or more"
    )


def test_volumes_of_one_value_are_not_judged():
    flat = record((5.0,) * 5)
    correlations = {frozenset(pair): 0.0 for pair in combinations(("t1", "t1ce", "t2"), 2)}
    assert find_swap({"t1": flat, "t1ce": flat, "t2": flat}, correlations) is None


def test_nothing_is_found_where_no_correlation_is_known():
    assert find_swap({name: record(PERCENTILES["t2"]) for name in ("t1", "t2")}, {}) is None
