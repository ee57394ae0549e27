"""One rounding of numbers, for pages and for files."""

from __future__ import annotations

import math

import pytest

from attcl_cli.report.rounding import number, rounded


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.012345, "0.012"), (0.87349, "0.873"), (-1.5, "-1.500"), (2, "2"), (5.2349, "5.2")],
)
def test_a_file_holds_the_number_that_a_page_shows(value, shown):
    assert number(value) == shown
    assert rounded(value) == float(shown) == float(number(rounded(value)))


def test_what_is_no_number_has_a_sign():
    assert [number(it) for it in (None, math.nan, math.inf, -math.inf)] == [
        "\u2013", "\u2013", "\u221e", "-\u221e",
    ]  # fmt: skip
