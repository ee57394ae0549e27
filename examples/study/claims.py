"""What the AttCL-GAN paper says of orderings, and what a study shows of each: holds, does not hold, cannot be told.

A claim about cases rests on paired intervals and a test of flipped signs, one about distances of sets on all seeds
agreeing. Nothing is claimed from a single seed of a distance, from an interval that holds 0, or from fewer than 6
cases. No claim holds before all of its comparisons are there; one of them is enough to contradict it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from plan import INCOMPLETE, Cell, Study, ratio_name, share_name
from results import COPIES, SYNTHETIC, Results
from table import Value
from tables import PARTS
from values import paired, paired_ssim

from attcl_cli.scoring.metrics import METRICS

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
_DISTANCES = ("fid", "fd-effnet")  # the paper's first; without it ours
_TWO = 2
_LEVEL = 0.05
LEAST_CASES = 6


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what came out.

    Attributes:
        words: the claim, with the place in the paper.
        verdict: `HOLDS`, `FAILS` or `OPEN`.
        evidence: the figures that decide.
    """

    words: str
    verdict: str
    evidence: str


def claims(study: Study, results: Results) -> list[Claim]:
    """Return every claim that a study asks about, whether or not it has results of it yet."""
    reference = study.file.reference
    segments = study.file.segment is not None
    found: list[Claim] = []
    for dataset in study.file.datasets:
        for ratio in study.file.ratios:
            for subset in study.file.subsets:
                cells = [Cell(dataset, ratio, subset, seed).name for seed in study.file.seeds]
                place = f"{dataset}, {ratio_name(ratio)}, training cases {share_name(subset)}"

                def gap(one: str, two: str, cells: Sequence[str] = cells) -> Value | None:
                    return paired(results, cells, one, two)

                found += _of_volumes(study, results, cells, place)
                if segments:
                    base = _named(study, "stargan-v2")
                    found += _by_case(
                        f"Each addition to StarGAN v2 helps segmentation (5.2); {place}",
                        {
                            f"{title} - StarGAN v2": gap(_named(study, part), base)
                            for part, title in PARTS.items()
                            if base
                        },
                    )
                    found += _by_case(
                        f"Completion is better than one modality alone (5.1.2 i); {place}",
                        {f"{reference} - w/o DA": gap(reference, study.file.without)},
                        beside={"incomplete - w/o DA": gap(INCOMPLETE, study.file.without)},
                    )
                    found += _by_case(
                        f"The reference method is better than every other (5.1.2 v); {place}",
                        {
                            f"{reference} - {name}": gap(reference, name)
                            for name in study.methods
                            if name != reference
                        },
                    )
                if "fid" not in study.file.metrics or not study.file.methods[reference].directions:
                    continue
                found += _by_direction(
                    f"FLAIR to T2 is the easiest direction, FLAIR to T1ce the hardest (5.1.1 vi); {place}",
                    results,
                    cells,
                    reference,
                    lambda it: it["flair->t2"] < it["flair->t1"] < it["flair->t1ce"],
                    ("flair->t2", "flair->t1", "flair->t1ce"),
                )
                found += _by_direction(
                    f"From FLAIR is easier than to FLAIR (5.1.1 v); {place}",
                    results,
                    cells,
                    reference,
                    lambda it: all(
                        it[f"flair->{name}"] < it[f"{name}->flair"] for name in ("t1", "t1ce", "t2")
                    ),
                    tuple(
                        direction
                        for name in ("t1", "t1ce", "t2")
                        for direction in (f"flair->{name}", f"{name}->flair")
                    ),
                )
        if segments:
            found += _by_scenario(study, results, dataset, reference)
    return found


def sign_of(value: Value) -> int:
    """Return 1 or -1 if a paired difference is clearly above or below 0, otherwise 0.

    Both its interval and the test of flipped signs must say so: the interval alone is too narrow for few cases. Of
    fewer than 6 cases nothing is clear: even if all point the same way, the test has p > 0.05 (two-sided).
    """
    if value.n < LEAST_CASES or not value.p < _LEVEL:
        return 0
    return (value.low > 0) - (value.high < 0)


def _of_volumes(study: Study, results: Results, cells: Sequence[str], place: str) -> list[Claim]:
    """Return our own questions, which need no segmenter: is the reference method above copies, and above others."""
    reference = study.file.reference
    copies = {
        f"{reference} - {name}": paired_ssim(results, cells, reference, reference, name)
        for name in COPIES
    }
    copies = {name: gap for name, gap in copies.items() if gap is not None} or copies
    others = {
        f"{reference} - {name}": paired_ssim(results, cells, reference, name)
        for name in study.methods
        if name != reference
    }
    words = "Completed volumes of the reference method have a higher SSIM than"
    return [
        *_by_case(f"{words} copies of their sources (ours); {place}", copies, what="SSIM"),
        *_by_case(f"{words} those of every other method (ours); {place}", others, what="SSIM"),
    ]


def _by_case(
    words: str,
    gaps: dict[str, Value | None],
    beside: Mapping[str, Value | None] | None = None,
    *,
    what: str = "Dice",
) -> list[Claim]:
    """Return the claim that all of these differences are above 0; none if the study has no such difference.

    Args:
        words: of the claim.
        gaps: name -> difference; None: there is no result of it, so that the claim does not hold yet.
        beside: the same of what is shown, too, and decides nothing.
        what: the metric of the differences.
    """
    if not gaps:
        return []
    signs = {0 if value is None else sign_of(value) for value in gaps.values()}
    verdict = HOLDS if signs == {1} else FAILS if -1 in signs else OPEN
    evidence = "; ".join(
        f"{name}: no result"
        if value is None
        else f"{name} {value.text()} (n {value.n}, p {value.p:.2g})"
        for name, value in {**gaps, **(beside or {})}.items()
    )
    return [Claim(words, verdict, f"{what}: {evidence}")]


def _by_direction(
    words: str,
    results: Results,
    cells: Sequence[str],
    name: str,
    holds: Callable[[dict[str, float]], bool],
    needed: Sequence[str],
) -> list[Claim]:
    """Return a claim about distances of sets, which have no interval: all seeds must agree, and be two or more."""
    for metric in _DISTANCES:
        seeds = [
            {
                direction: results.figures.get(
                    (cell, name, direction, metric, SYNTHETIC), (math.nan, 0)
                )[0]
                for direction in needed
            }
            for cell in cells
        ]
        known = [it for it in seeds if not any(math.isnan(value) for value in it.values())]
        if known:
            agree = {holds(it) for it in known}
            verdict = (
                OPEN if len(known) < _TWO or len(agree) > 1 else HOLDS if True in agree else FAILS
            )
            one = ", ".join(f"{direction} {value:.1f}" for direction, value in known[0].items())
            why = f" ({len(known)} of {len(cells)})" if len(known) < len(cells) else ""
            why = " (one seed)" if len(known) < _TWO else why
            return [
                Claim(words, verdict, f"{METRICS[metric].title} of {name}, first seed{why}: {one}")
            ]
    return [Claim(words, OPEN, "No seed has a result of all of these directions")]


def _by_scenario(study: Study, results: Results, dataset: str, name: str) -> list[Claim]:
    """Return the claims about fewer missing volumes and fewer training cases: the test cases are the same."""
    file = study.file
    seeds, first = file.seeds, file.subsets[0]
    gaps: dict[str, Value | None] = {}
    for less, more in pairwise(file.ratios):
        gaps[f"{ratio_name(more)} - {ratio_name(less)}"] = _across(
            results,
            name,
            *([Cell(dataset, it, first, seed) for seed in seeds] for it in (more, less)),
        )
    found = _by_case(f"The fewer volumes are missing, the better (5.3); {dataset}", gaps)
    gaps = {
        f"{share_name(first)} - {part}, {ratio_name(ratio)}": _across(
            results,
            name,
            *([Cell(dataset, ratio, it, seed) for seed in seeds] for it in (first, part)),
        )
        for part in file.subsets[1:]
        for ratio in file.ratios
    }
    return found + _by_case(f"More training cases are better (5.5); {dataset}", gaps)


def _across(results: Results, name: str, one: Sequence[Cell], two: Sequence[Cell]) -> Value | None:
    """Return the paired difference of the same method in two scenarios."""
    renamed = Results()
    for place, cells in (("one", one), ("two", two)):
        for index, cell in enumerate(cells):
            for (at, of, region, metric), by_case in results.cases.items():
                if (at, of) == (cell.name, name):
                    renamed.cases[str(index), place, region, metric] = by_case
    return paired(renamed, [str(index) for index in range(len(one))], "one", "two")


def _named(study: Study, variant: str) -> str:
    """Return the row that is this variant of AttCL-GAN; "" if there is none."""
    return next(
        (
            name
            for name, model in study.file.methods.items()
            if (model.method, model.variant) == ("attcl-gan", variant) and not model.layers
        ),
        "",
    )
