"""The figures of `summary.json`: each metric over the volumes of a group, and how it was measured.

Rows come from `rows`, the distances between sets of slices from `feature_store`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev

from attcl_cli import __version__
from attcl_cli.documents import Document, Items, validated
from attcl_cli.errors import counted
from attcl_cli.files import as_json, read_json, write_json
from attcl_cli.scoring.feature_store import FeatureStore
from attcl_cli.scoring.metrics import HEALTHY, METRICS, SLICES, TUMOUR, Metric
from attcl_cli.scoring.pairs import Comparison
from attcl_cli.scoring.rows import SAMPLES, SYNTHETIC, Measures, Row

SCHEMA_VERSION = 1
ALL = "all"  # the group of all volumes
# AttCL-GAN, Table 2: "averaging the six FID values obtained from the same model across three translation tasks, each
# performed in two directions".
SIX = "six-directions"
SIX_DIRECTIONS = (
    *("flair->t1", "t1->flair"),
    *("flair->t1ce", "t1ce->flair"),
    *("flair->t2", "t2->flair"),
)


class _FigureDocument(Document):
    metric: str


class _SummaryDocument(Document):
    scores: Items[_FigureDocument] = ()


@dataclass(frozen=True)
class Figure:
    """A line of `summary.json`: one metric over the volumes of a group.

    Attributes:
        group: a modality, a direction such as `flair->t1` or `flair+t2->t1`, `six-directions`, or `all`.
        prediction: `synthetic`, `samples` or the name of a trivial baseline.
        mean: over the n values that are finite; NaN if there is none.
        sd: of the sample (n - 1); NaN for fewer than two values.
        n: finite values (volumes; for distances of sets, such as FID and KID, generated slices; of `six-directions`,
            whose values are the means of Table 2's directions, directions).
        n_missing: volumes of the group that are not there.
        n_undefined: volumes without a value (an empty region).
        n_infinite: volumes with an infinite one (PSNR of equal images).
        n_unsegmented: volumes of cases without a label map, which have no value in the tumour and beside it.
    """

    group: str
    prediction: str
    metric: str
    region: str
    mean: float
    sd: float
    median: float
    n: int
    n_missing: int = 0
    n_undefined: int = 0
    n_infinite: int = 0
    n_unsegmented: int = 0
    unit: str = "1"
    higher_is_better: bool = True
    policy: str = ""
    network: str = ""
    network_sha256: str = ""


def groups_of(source: str, modality: str) -> tuple[str, str, str]:
    """Return the groups that a volume counts in."""
    return ALL, modality, f"{source}->{modality}"


def summarise(
    rows: Iterable[Row], comparison: Comparison, measures: Measures, *, folder: Path, seed: int = 0
) -> list[Figure]:
    """Return the figures of each group: all volumes, each target modality, each direction, the six of Table 2.

    Args:
        rows: of `rows.score_cases`.
        comparison: what was compared.
        measures: what was measured.
        folder: the one that `rows.score_cases` was called with.
        seed: draws the slices of KID if there are too many.
    """
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        for group in groups_of(row.source, row.modality):
            key = (group, row.prediction, row.metric, row.region)
            values.setdefault(key, []).append(row.value)
    missing = Counter(group for _, modality in comparison.missing for group in (ALL, modality))
    figures = [_figure(*key, values[key], missing, measures) for key in values]
    figures = _count_unsegmented(figures, comparison)
    store = measures.store(folder)
    if store is not None:
        figures += _distances(store, missing, measures, seed)
    if comparison.by_direction:
        figures += _six_directions(figures)
    known = {figure.group for figure in figures}
    figures += [  # no volume of the group is there: it must not vanish from the summary
        _figure(group, SYNTHETIC, metric, region, [], missing, measures)
        for group in missing
        if group not in known
        for metric in measures.metrics
        for region in METRICS[metric].regions
    ]
    order = {name: place for place, name in enumerate(METRICS)}
    return sorted(
        figures,
        key=lambda it: (
            *(it.group == ALL, it.group == SIX, "->" in it.group),
            *(it.group, order[it.metric], it.region),
        ),
    )


def write_summary(
    path: Path, figures: Sequence[Figure], comparison: Comparison, *, split: str
) -> None:
    """Write `summary.json`: every figure with how it was measured; NaN and infinity as null."""
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "attcl_version": __version__,
            "split": split,
            "volumes": comparison.volumes,
            "missing": [{"case": case, "modality": name} for case, name in comparison.missing],
            "training_patients": comparison.training_patients,
            "scores": [as_json(figure) for figure in figures],
        },
    )


def metrics_of(path: Path) -> list[str]:
    """Return the metrics of a `summary.json` that `write_summary` wrote, by name.

    Raises:
        AttclError: the file is no such summary.
    """
    document = validated(
        _SummaryDocument,
        read_json(path),
        name=path,
        expected="the summary of scores",
        hint="move it away, or choose another --output",
        code="invalid-summary",
    )
    return sorted({figure.metric for figure in document.scores})


def redundant_directions(figures: Sequence[Figure]) -> set[str]:
    """Return the directions whose target has no other source: their figures are those of the target itself."""
    directions = {figure.group for figure in figures if "->" in figure.group}
    targets = Counter(direction.split("->")[1] for direction in directions)
    return {direction for direction in directions if targets[direction.split("->")[1]] == 1}


def measured(figures: Sequence[Figure]) -> list[tuple[str, str]]:
    """Return the metrics and regions of figures, each once, in order."""
    return list(dict.fromkeys((figure.metric, figure.region) for figure in figures))


def left_out_of_tumour(figures: Sequence[Figure]) -> list[str]:
    """Return a note if synthetic volumes have no score in the tumour: how many, and why; otherwise none."""
    for figure in figures:
        if (figure.group, figure.prediction, figure.region) == (ALL, SYNTHETIC, TUMOUR):
            left_out = {
                "without tumour": figure.n_undefined,
                "of cases without a label map": figure.n_unsegmented,
            }
            reasons = [f"{count} {why}" for why, count in left_out.items() if count]
            scored = figure.n + figure.n_infinite
            total = scored + sum(left_out.values())
            return [
                f"the tumour is scored in {scored} of {counted(total, 'volume')}; left out: {' and '.join(reasons)}"
            ] * bool(reasons)
    return []


def warn_of_few_slices(figures: Sequence[Figure]) -> list[str]:
    """Return a note if distances between sets were computed from too few slices to stand alone; otherwise none."""
    few = [figure for figure in figures if figure.n < METRICS[figure.metric].few]
    if not few:
        return []
    metric = METRICS[few[0].metric]
    least = min(figure.n for figure in few)
    steady = any((kind := METRICS[it.metric]).sees == "sets" and not kind.few for it in figures)
    return [
        f"{metric.title} of as few as {least} slices: below {metric.few} the covariance is singular and "
        "the figure depends on n; compare figures of equal n only"
        + ("" if steady else ", and see --kid")
    ]


def _count_unsegmented(figures: Sequence[Figure], comparison: Comparison) -> list[Figure]:
    """Count the volumes that have no value because their case has no label map."""
    without = Counter(
        group
        for case in comparison.cases
        if not case.segmentation
        for pair in case.pairs
        for group in groups_of(case.made_from, pair.modality)
    )
    return [
        replace(figure, n_unsegmented=without[figure.group])
        if figure.region in {TUMOUR, HEALTHY}
        else figure
        for figure in figures
    ]


def _six_directions(figures: Sequence[Figure]) -> list[Figure]:
    """Return the mean of the six directions of Table 2, for what all of them have a figure of.

    A distance of sets, such as FID, is averaged, not computed of all slices together. If a direction has no finite
    value, nor has the mean.
    """
    by_key: dict[tuple[str, str, str], dict[str, Figure]] = {}
    for figure in figures:
        if figure.group in SIX_DIRECTIONS:
            key = (figure.prediction, figure.metric, figure.region)
            by_key.setdefault(key, {})[figure.group] = figure
    means = []
    for of_direction in by_key.values():
        if len(of_direction) < len(SIX_DIRECTIONS):
            continue
        values = [figure.mean for figure in of_direction.values()]
        finite = [value for value in values if math.isfinite(value)]
        whole = len(finite) == len(values)
        means.append(
            replace(
                of_direction[SIX_DIRECTIONS[0]],
                group=SIX,
                mean=fmean(values) if whole else float("nan"),
                sd=stdev(values) if whole else float("nan"),
                median=median(values) if whole else float("nan"),
                n=len(finite),
                n_missing=0,
                n_undefined=len(values) - len(finite),
                n_infinite=0,
                n_unsegmented=0,
            )
        )
    return means


def _distances(
    store: FeatureStore, missing: Mapping[str, int], measures: Measures, seed: int
) -> list[Figure]:
    """Return the distances between real and predicted slices of each group: FID and the like."""
    names = [metric.name for metric in measures.that_see("sets")]
    figures = []
    for (group, prediction), (count, values) in store.distances(names, groups_of, seed).items():
        for name, value in values.items():
            figure = _figure(group, prediction, name, SLICES, [value], missing, measures)
            # A distance of two sets is one number: it has no spread, and its n is the generated slices.
            undefined = float("nan")
            figures.append(replace(figure, sd=undefined, median=undefined, n=count))
    return figures


def _figure(
    group: str,
    prediction: str,
    metric: str,
    region: str,
    values: Sequence[float],
    missing: Mapping[str, int],
    measures: Measures,
) -> Figure:
    finite = [value for value in values if math.isfinite(value)]
    record = METRICS[metric]
    network = measures.network_of(record)
    return Figure(
        group=group,
        prediction=prediction,
        metric=metric,
        region=region,
        mean=fmean(finite) if finite else float("nan"),
        sd=stdev(finite) if len(finite) > 1 else float("nan"),
        median=median(finite) if finite else float("nan"),
        n=len(finite),
        n_missing=missing.get(group, 0) if prediction in {SYNTHETIC, SAMPLES} else 0,
        n_undefined=sum(math.isnan(value) for value in values),
        n_infinite=sum(math.isinf(value) for value in values),
        unit=record.unit,
        higher_is_better=record.higher_is_better,
        policy=_policy(record, prediction, measures),
        network=network.name if network else "",
        network_sha256=network.sha256 if network else "",
    )


def _policy(metric: Metric, prediction: str, measures: Measures) -> str:
    """Return how a metric was measured, with the number of samples of those that are a prediction."""
    if prediction != SAMPLES:
        return metric.policy
    return f"{metric.policy}; {measures.samples} style samples per volume"
