"""Modalities whose names look exchanged, by their contrasts: fluid is bright in T2, dark in T1 and FLAIR.

Judges the figures that `voxels` measures. What is made of it is left to `preconditions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

from attcl_cli.data.voxels import VolumeRecord

JUDGED = ("flair", "t1", "t1ce", "t2")
"""The modalities that contrasts are known of."""


@dataclass(frozen=True)
class Swap:
    """Two modalities of a case that look as if their names were exchanged.

    Attributes:
        names: the two, in the order of `JUDGED`.
        figures: what speaks for it, for messages.
    """

    names: tuple[str, str]
    figures: str


class Contrasts:
    """The figures of a case, by the names that its volumes have, or would have if two were exchanged."""

    def __init__(
        self,
        records: Mapping[str, VolumeRecord],
        correlations: Mapping[frozenset[str], float],
        named: Mapping[str, str],
    ) -> None:
        """Take the figures of a case.

        Args:
            records: modality as stored -> figures of the volume.
            correlations: two modalities as stored -> rank correlation.
            named: modality that a volume is taken as -> modality as stored.
        """
        self._records, self._correlations, self.named = records, correlations, named

    def skew(self, name: str) -> float:
        """Return by how much the 95th percentile is further from the median than the 5th, over both: -1 to 1."""
        _, low, middle, high, _ = self._records[self.named[name]].percentiles
        return (high + low - 2 * middle) / (high - low) if high > low else 0.0

    def tail(self, name: str) -> float:
        """Return by how much the 99.5th percentile is above the median, over the range of 5 to 95 %; its logarithm."""
        _, low, middle, high, top = self._records[self.named[name]].percentiles
        return math.log((top - middle) / (high - low)) if top > middle and high > low else 0.0

    def rank(self, one: str, other: str) -> float:
        """Return the rank correlation of two volumes."""
        return self._correlations[frozenset((self.named[one], self.named[other]))]


@dataclass(frozen=True)
class _Rule:
    """A difference that is positive if the names are right.

    Attributes:
        needs: the modalities that it is made of.
        text: the two sides, for messages.
        sides: what must be more, and what less.
        slack: by how much it may be less all the same.
        least: the least difference of the 24 prepared patients.
    """

    needs: tuple[str, ...]
    text: str
    sides: Callable[[Contrasts], tuple[float, float]]
    slack: float
    least: float

    def margin(self, contrasts: Contrasts) -> float:
        """Return by how much a labelling passes the rule; below 0 it does not."""
        more, less = self.sides(contrasts)
        return more - less + self.slack


# Fluid, and the order of grey and white matter, decide all but the last: T1 weighting inverts T2's, FLAIR is T2 with
# dark fluid. Contrast medium brightens vessels and tumours in T1ce alone. `least`: docs/guides/data.md.
_RULES = (
    _Rule(("t1", "t2"), "skew of t2 and t1", lambda it: (it.skew("t2"), it.skew("t1")), 0.1, 0.26),
    _Rule(
        ("t1ce", "t2"),
        "skew of t2 and t1ce",
        lambda it: (it.skew("t2"), it.skew("t1ce")),
        0.1,
        0.23,
    ),
    _Rule(
        ("t1", "t1ce", "t2"),
        "rank correlation of t1ce with t1 and t2",
        lambda it: (it.rank("t1", "t1ce"), it.rank("t1ce", "t2")),
        0.1,
        0.32,
    ),
    _Rule(
        ("t1", "t1ce", "t2"),
        "rank correlation of t1 with t1ce and t2",
        lambda it: (it.rank("t1", "t1ce"), it.rank("t1", "t2")),
        0.1,
        0.40,
    ),
    _Rule(
        ("flair", "t1", "t2"),
        "rank correlation of t1 with flair and t2",
        lambda it: (it.rank("flair", "t1"), it.rank("t1", "t2")),
        0.05,
        0.10,
    ),
    _Rule(
        ("flair", "t1", "t2"),
        "rank correlation of t2 with flair and t1",
        lambda it: (it.rank("flair", "t2"), it.rank("t1", "t2")),
        0.05,
        0.21,
    ),
    _Rule(
        ("flair", "t1ce", "t2"),
        "rank correlation of t2 with flair and t1ce",
        lambda it: (it.rank("flair", "t2"), it.rank("t1ce", "t2")),
        0.05,
        0.08,
    ),
    _Rule(
        ("t1", "t1ce"),
        "bright tail (logarithm) of t1ce and t1",
        lambda it: (it.tail("t1ce"), it.tail("t1")),
        0.25,
        0.05,
    ),
)


def find_swap(
    records: Mapping[str, VolumeRecord], correlations: Mapping[frozenset[str], float]
) -> Swap | None:
    """Return the two modalities whose names look exchanged; None if the names fit, or no exchange makes them fit.

    Args:
        records: the volumes of a case; modalities that are not in `JUDGED` are passed over.
        correlations: two modalities -> rank correlation; empty if it is not known, and then nothing is found.
    """
    names = [name for name in JUDGED if name in records]
    if not correlations or len(names) < 2:  # noqa: PLR2004
        return None
    as_stored = Contrasts(records, correlations, {name: name for name in names})
    rules = [rule for rule in _RULES if set(rule.needs) <= set(names)]
    broken = [rule for rule in rules if rule.margin(as_stored) < 0]
    if not broken:
        return None
    fitting: dict[tuple[str, str], float] = {}
    for one, other in combinations(names, 2):
        named = {**as_stored.named, one: other, other: one}
        exchanged = Contrasts(records, correlations, named)
        fitting[one, other] = min(rule.margin(exchanged) for rule in rules)
    best = max(fitting, key=lambda pair: fitting[pair])
    if fitting[best] < 0:
        return None
    worst = min(broken, key=lambda rule: rule.margin(as_stored))
    more, less = worst.sides(as_stored)
    figures = (
        f"{worst.text}: {more:.2f} and {less:.2f}, a difference of {more - less:.2f}; "
        f"patients have {worst.least:.2f} or more"
    )
    return Swap(best, figures)
