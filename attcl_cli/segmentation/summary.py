"""Predicted classes against true ones: rows a case and region, figures of an input, differences of two inputs.

What a metric is stands in `segmentation_metrics`; where predictions come from, in `segment`.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from attcl_cli import __version__
from attcl_cli.data import intensities, volumes
from attcl_cli.data.intensities import Array
from attcl_cli.data.labels import REGIONS, convention_of, mask_of, to_classes
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import as_json, write_json
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Plan, Sample
from attcl_cli.segmentation.metrics import KINDS, POLICY, scores

SCHEMA_VERSION = 1
BY_SLICE = "-slice"  # ends the names of metrics whose unit is a slice
CASE_POLICY = f"a case is the unit; {POLICY}"
SLICE_POLICY = (
    "a slice is the unit, those at 20 to 80 % of the height (the paper's), mean over those of a case, then over "
    f"cases; {POLICY}; hd95 is in 2-D, over the slices where both masks have any: undefined where no slice has"
)
_BOOTSTRAPS = 10_000
_CONFIDENCE = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Row:
    """A line of `segment.csv`."""

    case: str
    region: str
    metric: str
    value: float
    input: str


@dataclass(frozen=True)
class Figure:
    """One metric of one region over the cases of an input.

    Attributes:
        mean: over the n defined values; NaN where there is none.
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
    """How much better `first` is than `second`, over the cases that both have a value for.

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
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def rows_of(
    prediction: Array,
    truth: Array,
    spacing_mm: Sequence[float],
    *,
    case: str,
    input_: str,
    per_slice: bool = False,
) -> list[Row]:
    """All scores of one case.

    Args:
        prediction: (D, H, W) uint8 classes.
        truth: the same.
        spacing_mm: along these axes.
        case: its id.
        input_: what the segmenter saw.
        per_slice: also the paper's way: each slice by itself.
    """
    rows = []
    for region in REGIONS:
        predicted, real = mask_of(prediction, region), mask_of(truth, region)
        found = scores(predicted, real, spacing_mm)
        if per_slice:
            single = [
                scores(predicted[index], real[index], spacing_mm[1:])
                for index in intensities.training_slices(len(truth))
            ]
            found |= {name + BY_SLICE: _mean([item[name] for item in single]) for name in KINDS}
            # Most slices have neither mask: their 0 mm would drown the others, and hide those where one is empty.
            met = [
                item["hd95"]
                for index, item in zip(intensities.training_slices(len(truth)), single, strict=True)
                if predicted[index].any() and real[index].any()
            ]
            found["hd95" + BY_SLICE] = _mean(met)
        rows += [Row(case, region, name, value, input_) for name, value in found.items()]
    return rows


def find_predictions(folder: Path, samples: Sequence[Sample]) -> tuple[dict[str, Path], list[str]]:
    """The prediction of each case, `<case>.nii.gz` or `.nii`, and the cases that have none."""
    found: dict[str, Path] = {}
    for sample in samples:
        for ending in (".nii.gz", ".nii"):
            path = folder / f"{sample.case}{ending}"
            if path.is_file():
                found.setdefault(sample.case, path)
    return found, [sample.case for sample in samples if sample.case not in found]


def score_folder(
    found: Mapping[str, Path],
    plan: Plan,
    samples: Sequence[Sample],
    *,
    name: str,
    per_slice: bool = False,
    workers: int = 2,
) -> Iterator[list[Row]]:
    """Scores label maps that lie in a folder, whatever made them.

    They may have the values of any release, all the same; nnU-Net's, trained on what `nnunet` exports, have 2023's.

    Raises:
        AttclError: a file is unreadable, on another grid, or holds other labels; all are told before the first score.
    """
    problems: list[AttclError] = []
    values: set[int] = set()
    for sample in samples:
        path = found[sample.case]
        try:
            grid = volumes.read_grid(sample.segmentation)
            own = volumes.read_grid((path,))
            if grid.header is None:  # PNG slices say nothing of where they lie
                same = own.axial_shape == grid.axial_shape
                difference = "" if same else f"shape {own.axial_shape} against {grid.axial_shape}"
            else:
                difference = own.differs_from(grid)
            if difference:
                problems.append(
                    AttclError(
                        f"{path}: {difference} of {sample.segmentation[0]}, expected the case's grid",
                        "predict on the case's own grid",
                    )
                )
                continue
            values |= _values_of(path)
        except AttclError as error:
            problems.append(error)
    raise_all(problems)
    try:
        convention = convention_of(values, default=plan.convention.name)
    except AttclError as error:
        raise AttclError(
            f"{next(iter(found.values())).parent}: {error.message}", error.hint
        ) from error

    def read(sample: Sample) -> list[Row]:
        truth = to_classes(volumes.load_labels(sample.segmentation), plan.convention)
        predicted = to_classes(volumes.load_labels((found[sample.case],)), convention)
        spacing = volumes.read_grid(sample.segmentation).axial_spacing_mm
        return rows_of(
            predicted, truth, spacing, case=sample.case, input_=name, per_slice=per_slice
        )

    for _, future in read_ahead(read, samples, depth=workers):
        yield future.result()


def _values_of(path: Path) -> set[int]:
    """The label values in a prediction; an `AttclError` that names it where no release has them."""
    values = {int(value) for value in np.unique(volumes.load_labels((path,)))}
    try:
        convention_of(values)
    except AttclError as error:
        raise AttclError(f"{path}: {error.message}", error.hint) from error
    return values


def summarise(rows: Iterable[Row]) -> list[Figure]:
    """The figures of each input, region and metric, in the order in which they come."""
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        gathered.setdefault((row.input, row.region, row.metric), []).append(row.value)
    figures = []
    for (input_, region, metric), values in gathered.items():
        defined = [value for value in values if not math.isnan(value)]
        by_slice = metric.endswith(BY_SLICE)
        kind = KINDS[metric.removesuffix(BY_SLICE)]
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
                unit=kind.unit,
                higher_is_better=kind.higher_is_better,
                policy=SLICE_POLICY if by_slice else CASE_POLICY,
            )
        )
    return figures


def differences(
    rows: Sequence[Row], pairs: Sequence[tuple[str, str]], *, seed: int = 0
) -> list[Difference]:
    """How the first input of each pair differs from the second, for all that both were scored by."""
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
    """One metric of two inputs, case by case; `values` is (input, region, metric) -> case -> value."""
    one, other = values[first, region, metric], values[second, region, metric]
    gaps = np.array([one[case] - other[case] for case in one if case in other])
    defined = gaps[~np.isnan(gaps)]
    low, high = bootstrap(defined, seed=seed)
    mean = float(defined.mean()) if len(defined) else float("nan")
    lost = len(gaps) - len(defined)
    return Difference(first, second, region, metric, mean, low, high, len(defined), lost)


def bootstrap(gaps: Array, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of (n,) paired differences, cases drawn with replacement."""
    if len(gaps) < 2:  # noqa: PLR2004 - of one case nothing can be drawn
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = gaps[rng.integers(len(gaps), size=(_BOOTSTRAPS, len(gaps)))].mean(axis=1)
    low, high = np.percentile(means, _CONFIDENCE)
    return float(low), float(high)


def read_csv(path: Path) -> list[Row]:
    """Reads `segment.csv`, as `files.write_csv` writes it."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Row(**{**line, "value": float(line["value"] or "nan")})  # type: ignore[arg-type]
            for line in csv.DictReader(stream)
        ]


def write_summary(
    path: Path,
    figures: Sequence[Figure],
    gaps: Sequence[Difference],
    facts: Mapping[str, Any],
) -> None:
    """Writes `summary.json`; NaN as null."""
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


def _mean(values: Sequence[float]) -> float:
    """Over what is defined; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as expected
        return float(np.nanmean(values))
