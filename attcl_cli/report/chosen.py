"""Which volumes of a run have pictures: all of them, or the worst, the best and a random sample of the others.

Knows the order alone; what makes a volume good or bad is left to the caller.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")

WORST, BEST, SAMPLE = "worst", "best", "random sample"
_SEED = 0  # the same volumes give the same page


class Chosen(NamedTuple, Generic[Item]):
    """One of those that have pictures.

    Attributes:
        item: the volume.
        role: why it was chosen, as the page names it; "" if all of them were.
    """

    item: Item
    role: str


def choose(
    ranked: Sequence[Item],
    unranked: Sequence[Item] = (),
    *,
    most: int,
    worst: str = WORST,
    best: str = BEST,
) -> list[Chosen[Item]]:
    """Choose what has pictures: half of them the worst, a quarter the best, a random sample of the rest.

    Without any order, all are chosen at random. The choice depends on nothing but the order and the numbers.

    Args:
        ranked: the worst first.
        unranked: those of which nothing is known.
        most: the most to choose.
        worst: what the page calls the worst.
        best: what it calls the best.

    Returns:
        The worst first, then the best, the very best first, then the sample in the order given.
    """
    every = [*ranked, *unranked]
    if len(every) <= most:
        return [Chosen(item, "") for item in every]
    half = most // 2
    first = min(half, len(ranked))
    last = min((most - half) // 2, len(ranked) - first)
    end = len(ranked) - last
    others = [*ranked[first:end], *unranked]
    count = min(most - first - last, len(others))
    picked = sorted(random.Random(_SEED).sample(range(len(others)), count))
    return [
        *(Chosen(item, worst) for item in ranked[:first]),
        *(Chosen(item, best) for item in reversed(ranked[end:])),
        *(Chosen(others[place], SAMPLE) for place in picked),
    ]


def count_roles(roles: Iterable[str]) -> str:
    """Return how many were chosen as what: `worst: 12, best: 6, random sample: 6`; "" if all were."""
    return ", ".join(f"{role}: {count}" for role, count in Counter(roles).items() if role)
