"""Scores of single cases as figures over cases, differences of inputs with their intervals, and the files of both.

A metric is defined in `metrics`, a case scored in `evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from attcl_cli import __version__
from attcl_cli.data.intensities import Array
from attcl_cli.documents import Document, clipped, validated
from attcl_cli.files import as_json, read_csv, read_json, table_unreadable, write_json
from attcl_cli.segmentation.metrics import METRICS, POLICY

SCHEMA_VERSION = 1
BY_SLICE = "-slice"  # ends the names of metrics whose unit is a slice
CASE_POLICY = f"a case is the unit; {POLICY}"
SLICE_POLICY = (
    "a slice is the unit, those at 20 to 80 % of the height (the paper's), mean over those of a case, then over "
    f"cases; {POLICY}; hd95 is in 2-D, over the slices with both masks: undefined without such a slice"
)
_BOOTSTRAPS = 10_000
_CONFIDENCE = (2.5, 97.5)  # percentiles


class _SummaryDocument(Document):
    sha256: str = ""


@dataclass(frozen=True)
class Row:
    """One line of `segment.csv`."""

    case: str
    region: str
    metric: str
    value: float
    input: str


@dataclass(frozen=True)
class Figure:
    """One metric of one region over the cases of an input.

    Attributes:
        mean: over the n defined values; NaN if there is none.
        sd: of the sample (n - 1); NaN for fewer than two values.
        n_undefined: cases without a value.
        policy: what an empty mask counts.
    """

    input: str
    region: str
    metric: str
    mean: float
    sd: float
    median: float
    n: int
    n_undefined: int
    unit: str
    higher_is_better: bool
    policy: str


@dataclass(frozen=True)
class Difference:
    """The difference of two inputs, over the cases that both have a value for.

    Attributes:
        mean: of the differences, first minus second.
        low, high: the 95 % confidence interval of that mean: percentiles of a paired bootstrap over cases; NaN for
            fewer than two cases.
        n: cases.
        n_undefined: cases where one of the two is undefined.
    """

    first: str
    second: str
    region: str
    metric: str
    mean: float
    low: float
    high: float
    n: int
    n_undefined: int

    @property
    def clear(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def summarise(rows: Iterable[Row]) -> list[Figure]:
    """Return the figures of each input, region and metric, in the order of the rows."""
    by_metric: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        by_metric.setdefault((row.input, row.region, row.metric), []).append(row.value)
    figures = []
    for (input_, region, metric), values in by_metric.items():
        defined = [value for value in values if not math.isnan(value)]
        by_slice = metric.endswith(BY_SLICE)
        definition = METRICS[metric.removesuffix(BY_SLICE)]
        figures.append(
            Figure(
                input=input_,
                region=region,
                metric=metric,
                mean=fmean(defined) if defined else float("nan"),
                sd=stdev(defined) if len(defined) > 1 else float("nan"),
                median=median(defined) if defined else float("nan"),
                n=len(defined),
                n_undefined=len(values) - len(defined),
                unit=definition.unit,
                higher_is_better=definition.higher_is_better,
                policy=SLICE_POLICY if by_slice else CASE_POLICY,
            )
        )
    return figures


def differences(
    rows: Sequence[Row], pairs: Sequence[tuple[str, str]], *, seed: int = 0
) -> list[Difference]:
    """Return how the first input of each pair differs from the second, by all metrics that both have."""
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        values.setdefault((row.input, row.region, row.metric), {})[row.case] = row.value
    measured = dict.fromkeys((row.region, row.metric) for row in rows)
    return [
        difference(first, second, region, metric, values, seed=seed)
        for first, second in pairs
        for region, metric in measured
        if (first, region, metric) in values and (second, region, metric) in values
    ]


def difference(
    first: str,
    second: str,
    region: str,
    metric: str,
    values: Mapping[tuple[str, str, str], Mapping[str, float]],
    *,
    seed: int = 0,
) -> Difference:
    """Compare two inputs by one metric, case by case; `values` is (input, region, metric) -> case -> value."""
    one, other = values[first, region, metric], values[second, region, metric]
    gaps = np.array([one[case] - other[case] for case in one if case in other])
    defined = gaps[~np.isnan(gaps)]
    low, high = bootstrap(defined, seed=seed)
    mean = float(defined.mean()) if len(defined) else float("nan")
    undefined = len(gaps) - len(defined)
    return Difference(first, second, region, metric, mean, low, high, len(defined), undefined)


def bootstrap(gaps: Array, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of (n,) paired differences.

    Cases are drawn with replacement; NaN for fewer than two.
    """
    if len(gaps) < 2:  # noqa: PLR2004 - of one case nothing can be drawn
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = gaps[rng.integers(len(gaps), size=(_BOOTSTRAPS, len(gaps)))].mean(axis=1)
    low, high = np.percentile(means, _CONFIDENCE)
    return float(low), float(high)


def read_rows(path: Path) -> list[Row]:
    """Read `segment.csv`, as `files.write_csv` writes it.

    Raises:
        AttclError: the file is missing or no such table.
    """
    lines = read_csv(path)
    try:
        rows = [
            Row(**{**line, "value": float(line["value"] or "nan")})  # type: ignore[arg-type]
            for line in lines
        ]
        for row in rows:
            if row.metric.removesuffix(BY_SLICE) not in METRICS or math.isinf(row.value):
                raise ValueError(f"{clipped(row.metric)} {row.value}")
        return rows
    except (KeyError, TypeError, ValueError) as error:
        raise table_unreadable(path, error) from error


def weights_of(path: Path) -> str:
    """Return the SHA-256 of the weights that a `summary.json` is about; "" if it does not say.

    Raises:
        AttclError: the file is no such summary.
    """
    document = validated(
        _SummaryDocument,
        read_json(path),
        name=path,
        expected="the summary of a segmenter",
        hint="remove it, and the run tests this input again",
        code="invalid-summary",
    )
    return document.sha256


def write_summary(
    path: Path,
    figures: Sequence[Figure],
    gaps: Sequence[Difference],
    facts: Mapping[str, Any],
) -> None:
    """Write `summary.json`; NaN as null."""
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "attcl_version": __version__,
            **facts,
            "regions": {
                "WT": "whole tumour",
                "TC": "tumour core",
                "ET": "enhancing tumour",
            },
            "scores": [as_json(figure) for figure in figures],
            "interval": f"95 %, percentiles of a paired bootstrap over cases, {_BOOTSTRAPS} draws",
            "differences": [as_json(gap) for gap in gaps],
        },
    )
