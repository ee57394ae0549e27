"""The figures of a study's tables: means over cases and seeds, and differences that are paired by case.

A figure is the mean over seeds of the mean over cases, with the deviation of the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray
from results import COPIES, SYNTHETIC, Results
from scipy import stats
from table import Value

from attcl_cli.scoring.summary import SIX
from attcl_cli.segmentation.summary import bootstrap

REGION = "WT"  # whole tumour


def paired(results: Results, cells: Sequence[str], name: str, other: str) -> Value | None:
    """Return the mean paired difference of two inputs in Dice of the whole tumour, with its interval; None if unknown.

    Args:
        results: of the study.
        cells: the seeds of a scenario; the differences of a case are averaged over them.
        name: method or input.
        other: what it is compared with.
    """
    return difference(
        (
            results.cases.get((cell, name, REGION, "dice"), {}),
            results.cases.get((cell, other, REGION, "dice"), {}),
        )
        for cell in cells
    )


def ssim_of_cases(
    results: Results, cell: str, name: str, prediction: str = SYNTHETIC
) -> dict[str, float]:
    """Return case -> mean SSIM in the brain of the volumes that a method completed."""
    values: dict[str, list[float]] = {}
    for key, by_case in results.volumes.items():
        if key[:2] == (cell, name) and key[3:] == ("brain", "ssim", prediction):
            for case, value in by_case.items():
                values.setdefault(case, []).append(value)
    return {case: mean_defined(of_case) for case, of_case in values.items()}


def paired_ssim(
    results: Results, cells: Sequence[str], name: str, other: str, baseline: str = SYNTHETIC
) -> Value | None:
    """Return the mean paired difference of two methods in SSIM of completed volumes in the brain; None if unknown.

    Args:
        results: of the study.
        cells: the seeds of a scenario; the differences of a case are averaged over them.
        name: of a method.
        other: what it is compared with.
        baseline: what stands in place of the other's volumes: a copy of its sources.
    """
    return difference(
        (ssim_of_cases(results, cell, name), ssim_of_cases(results, cell, other, baseline))
        for cell in cells
    )


def difference(seeds: Iterable[tuple[Mapping[str, float], Mapping[str, float]]]) -> Value | None:
    """Return the mean paired difference, the first minus the second, with its interval; None without a common case.

    Args:
        seeds: (case -> value, case -> value) of each seed; the differences of a case are averaged over them.
    """
    gaps: dict[str, list[float]] = {}
    known = 0
    for one, two in seeds:
        of_seed = {case: one[case] - two[case] for case in sorted(one.keys() & two.keys())}
        defined = {case: gap for case, gap in of_seed.items() if not math.isnan(gap)}
        known += bool(defined)
        for case, gap in defined.items():
            gaps.setdefault(case, []).append(gap)
    if not gaps:
        return None
    means = np.array([fmean(it) for it in gaps.values()])
    low, high = bootstrap(means)
    mean = float(means.mean())
    return Value(mean, n=len(means), low=low, high=high, seeds=known, p=_sign_flips(means))


def _sign_flips(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p of differences whose signs are flipped; exact up to 13 of them.

    Intervals of a bootstrap are too narrow for few cases; this is not.
    """
    if len(differences) < 2 or not differences.any():
        return 1.0
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, random_state=0
    )
    return float(test.pvalue)


def of_figures(
    results: Results, cells: Sequence[str], name: str, direction: str, metric: str
) -> Value | None:
    """Return the figure of a direction; that of a copy is the same whatever the method, so the first one is taken."""
    found = []
    for cell in cells:
        keys = (
            [
                key
                for key in results.figures
                if key[0] == cell and key[2:] == (direction, metric, name)
            ][:1]
            if name in COPIES
            else [(cell, name, direction, metric, SYNTHETIC)]
        )
        found += [results.figures[key] for key in keys if key in results.figures]
    known = [(mean, n) for mean, n in found if not math.isnan(mean)]
    if not known:
        return None
    cases = 0 if direction == SIX else max(n for _, n in known)  # its n counts directions
    return over_seeds([mean for mean, _ in known], cases)


def of_volumes(
    results: Results,
    cells: Sequence[str],
    of: str,
    target: str | None,
    measure: tuple[str, str, str],
) -> Value | None:
    """Return a mean over completed volumes, then over seeds; None if there is none.

    Args:
        results: of the study.
        cells: the seeds of a scenario.
        of: the method.
        target: the modality; None: the mean of all modalities.
        measure: region, metric, and what is compared with the truth.
    """
    means, most = [], 0
    for cell in cells:
        of_targets = [
            {case: value for case, value in by_case.items() if not math.isnan(value)}
            for key, by_case in results.volumes.items()
            if key[:2] == (cell, of) and key[3:] == measure and target in {key[2], None}
        ]
        known = [by_case for by_case in of_targets if by_case]
        if known:
            means.append(fmean(fmean(by_case.values()) for by_case in known))
            most = max(most, len(set().union(*known)))
    return over_seeds(means, most) if means else None


def over_seeds(values: Sequence[float], n: int = 0) -> Value:
    if not values:
        return Value(math.nan)
    return Value(fmean(values), stdev(values) if len(values) > 1 else math.nan, n, len(values))


def mean_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return fmean(defined) if defined else math.nan
