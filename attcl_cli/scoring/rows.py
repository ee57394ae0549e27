"""The rows of `scores.csv`: every prediction of a case against its truth, a row per volume, region and metric.

Reads each case once. What is compared with what is left to `pairs`, what a metric computes to `metrics`, the figures of
groups to `summary`; the networks that some metrics need are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.data.intensities import Array, correlation, in_own_window
from attcl_cli.data.unchanged import require_unchanged
from attcl_cli.errors import AttclError
from attcl_cli.prefetch import read_ahead
from attcl_cli.scoring.baselines import Quantiles, matched_copy
from attcl_cli.scoring.feature_store import (
    Embedding,
    FeatureCollector,
    FeatureStore,
    batches,
    shown_slices,
    to_bytes,
)
from attcl_cli.scoring.metrics import (
    BRAIN,
    DIVERSITY_STEP,
    METRICS,
    SLICES,
    TUMOUR,
    WHOLE,
    Metric,
    VolumePair,
    default_metrics,
)
from attcl_cli.scoring.pairs import CasePairs, Comparison, Pair
from attcl_cli.scoring.windows import TrueVolume

SYNTHETIC, SAMPLES, COPY, MATCHED, MEAN, ZEROS = (
    *("synthetic", "samples"),
    *("copy", "matched-copy", "mean", "zeros"),
)
BASELINES = (COPY, MEAN, ZEROS)  # those that need nothing but the case itself


class Perceptual(Protocol):
    """A perceptual distance in two halves, so that the features of a slice serve several comparisons."""

    name: str
    sha256: str

    def embed(self, slices: Any) -> Any:
        """Return the features of slices (B, 1, H, W) float32 in [0, 1]."""

    def between(self, first: Any, second: Any) -> Any:
        """Return the distance of each pair, (B,) float32."""


Sources = Mapping[str, volumes.Volume]  # modality -> volume, the most frequent one first


class Translate(Protocol):
    """Makes whole volumes, as a completion does."""

    def __call__(
        self, sources: Sources, brain: Array, targets: Sequence[str], *, sample: int | None = None
    ) -> Mapping[str, Array]:
        """Return target -> (D, H, W) intensities; of the reference style, or of the style of a number."""


Draw = Callable[[Sources, Array, str, Array], Sequence[Array]]
"""(sources, brain, target, slice indices) -> samples (N, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Row:
    """A line of `scores.csv`."""

    case: str
    modality: str
    source: str
    region: str
    metric: str
    value: float
    prediction: str = SYNTHETIC


@dataclass(frozen=True)
class Measures:
    """What is measured, and by which networks.

    Attributes:
        metrics: names, keys of `METRICS`.
        baselines: score the trivial baselines by the networks, too; without a network they always are.
        only: names of the predictions that are scored; empty: all.
        quantiles: of other patients, for the baseline that is a quantile-matched copy.
        embed: the network of metrics that see sets.
        perceptual: the network of metrics that see slices or samples.
        translate: makes the volumes that are not on disk (`--directions`), and style samples.
        samples: style samples per volume that metrics of slices and sets see, too, as another prediction; 0: none.
        draw: draws samples of slices, for metrics that see samples.
        batch_size: slices that a network sees at once; never changes results beyond rounding.
        cache: folder in which features of real volumes are kept between runs, by content.
    """

    metrics: tuple[str, ...] = field(default_factory=default_metrics)
    baselines: bool = False
    only: tuple[str, ...] = ()
    quantiles: Quantiles | None = None
    embed: Embedding | None = None
    perceptual: Perceptual | None = None
    translate: Translate | None = None
    samples: int = 0
    draw: Draw | None = None
    batch_size: int = 32
    cache: Path | None = None

    def that_see(self, what: str) -> list[Metric]:
        """Return the metrics whose function is called with volumes, slices, samples or sets."""
        return [METRICS[name] for name in self.metrics if METRICS[name].sees == what]

    def network_of(self, metric: Metric) -> Embedding | Perceptual | None:
        """Return the network that a metric needs; None if it needs none."""
        if not metric.network:
            return None
        return self.embed if metric.sees == "sets" else self.perceptual

    def store(self, folder: Path) -> FeatureStore | None:
        """Open the features of slices in a folder; None if no metric sees sets."""
        if self.embed is None:
            return None
        return FeatureStore(self.embed, folder, self.cache or folder / "real", self.batch_size)

    def collector(self) -> FeatureCollector | None:
        """Return what takes the features of slices for a store in another process; None if no metric sees sets."""
        if self.embed is None:
            return None
        assert self.cache is not None  # passed with every recipe that travels
        return FeatureCollector(self.embed, self.cache, self.batch_size)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction beside its truth.

    Attributes:
        name: `synthetic` or the name of a baseline.
        pair: the files, and the modality that it should be.
        volumes: prediction and truth as arrays.
        truth: the truth, whose brain is where it is not 0.
    """

    name: str
    pair: Pair
    volumes: VolumePair
    truth: TrueVolume


def score_cases(
    comparison: Comparison, measures: Measures, *, folder: Path, num_workers: int = 2
) -> Iterator[list[Row]]:
    """Yield the rows of each entry of `comparison.cases`.

    Memory holds a handful of cases, however many there are. Threads read the next cases and compute what needs no
    network while the networks work on this one.

    Args:
        comparison: what is compared.
        measures: what is measured.
        folder: for the features of slices, which `summary.summarise` reads; removed by the caller.
        num_workers: cases that are read ahead.

    Raises:
        AttclError: a file cannot be read, or the shapes of a case differ.
    """
    yield from rows_of(comparison.cases, measures, measures.store(folder), num_workers=num_workers)


def rows_of(
    cases: Sequence[CasePairs],
    measures: Measures,
    features: FeatureStore | FeatureCollector | None,
    *,
    num_workers: int = 2,
) -> Iterator[list[Row]]:
    """Yield the rows of each case; as `score_cases`, but for where the features of slices go.

    Args:
        cases: entries of a comparison.
        measures: what is measured.
        features: takes the features of slices; None if no metric sees sets.
        num_workers: cases that are read ahead.
    """
    networks = _Networks(measures, features)

    def measure(case: CasePairs) -> list[_Measured]:
        arrays = _read(case)
        return [
            _measure(arrays, prediction, measures) for prediction in _predictions(arrays, measures)
        ]

    for case, future in read_ahead(measure, cases, depth=num_workers):
        rows: list[Row] = []
        for item in future.result():
            scored = {
                item.prediction: item.values | networks.score(case, item),
                SAMPLES: networks.score_samples(case, item),
            }
            rows += [
                Row(case.case, item.pair.modality, case.made_from, region, metric, value, name)
                for name, values in scored.items()
                for (metric, region), value in values.items()
            ]
        yield rows


@dataclass(frozen=True, eq=False)
class CaseInPictures:
    """What pictures show of a case.

    Attributes:
        sources: modality -> (D, H, W) in [0, 1].
        predictions: its synthetic volumes beside their truths.
        tumour: (D, H, W) bool; None without a label map.
        spacing_mm: of the voxels along D, H, W.
        affine: (column, row, slice, 1) to RAS+ mm, (4, 4).
    """

    sources: Mapping[str, Array]
    predictions: Sequence[Prediction]
    tumour: Array | None
    spacing_mm: tuple[float, float, float]
    affine: Array


def read_in_pictures(case: CasePairs, translate: Translate | None = None) -> CaseInPictures:
    """Read a case again, for pictures."""
    arrays = _read(case)
    grid = arrays.present[case.source].grid
    return CaseInPictures(
        sources={
            name: in_own_window(volume.data, volume.data != 0)
            for name, volume in arrays.sources.items()
        },
        predictions=list(_predictions(arrays, Measures(metrics=(), translate=translate))),
        tumour=arrays.tumour,
        spacing_mm=grid.axial_spacing_mm,
        affine=grid.axial_affine,
    )


# --- Reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _CaseArrays:
    """The volumes of one entry of a comparison, by modality."""

    case: CasePairs
    present: Mapping[str, volumes.Volume]
    truths: Mapping[str, volumes.Volume]
    completed: Mapping[str, Array]
    tumour: Array | None  # (D, H, W) bool

    @property
    def sources(self) -> Sources:
        """What the predictions were made from."""
        return {name: self.present[name] for name in self.case.sources}

    @cached_property
    def brain(self) -> Array:
        """Where any volume that the case has is not 0, (D, H, W) bool."""
        return intensities.brain_of([volume.data for volume in self.present.values()])

    @cached_property
    def mean_of_sources(self) -> Array:
        """The mean of all volumes that the case has, each in its own window."""
        scaled = [in_own_window(volume.data, volume.data != 0) for volume in self.present.values()]
        return np.asarray(np.mean(scaled, axis=0, dtype=np.float32))


def _read(case: CasePairs) -> _CaseArrays:
    """Return the volumes of a case, as they were when they were checked.

    Raises:
        AttclError: a file has changed since, or cannot be read, or the shapes differ.
    """
    with require_unchanged(case.seen):
        return _load(case)


def _load(case: CasePairs) -> _CaseArrays:
    load = partial(volumes.load, background=case.background)
    present = {name: load(paths) for name, paths in case.present.items()}
    truths = {pair.modality: load(pair.truth) for pair in case.pairs}
    completed = {
        pair.modality: load(pair.prediction).data for pair in case.pairs if pair.prediction
    }
    tumour = None
    if case.segmentation:
        tumour = label_maps.load_labels(case.segmentation, beside=case.pairs[0].truth) > 0
    shape = next(iter(truths.values())).data.shape
    for name, volume in present.items():
        if volume.data.shape != shape:
            raise AttclError(
                f"{case.present[name][0]}: {volume.data.shape} slices, rows and columns, "
                f"expected {shape} as the truth has",
                "put the case's own file there",
                code="shape-differs",
            )
    return _CaseArrays(case, present, truths, completed, tumour)


def _predictions(arrays: _CaseArrays, measures: Measures) -> Iterator[Prediction]:
    """Yield what is scored, the synthetic volume of each pair first."""
    case = arrays.case
    synthetic = dict(arrays.completed)
    to_make = [pair.modality for pair in case.pairs if not pair.prediction]
    if to_make:
        assert measures.translate is not None  # `plan_comparison` lists no pair without a file
        synthetic |= measures.translate(arrays.sources, arrays.brain, to_make)
    with_baselines = measures.baselines or bool(measures.that_see("volume"))
    with_baselines &= measures.only != (SYNTHETIC,)
    for pair in case.pairs:
        truth = TrueVolume.of(arrays.truths[pair.modality].data)
        if truth is None:
            raise AttclError(
                f"{pair.truth[0]}: 99 % of the brain has nearly one value, expected contrast",
                "remove this volume from the truth",
                code="truth-without-contrast",
            )
        predictions = {SYNTHETIC: synthetic[pair.modality]}
        if with_baselines:
            predictions |= _baselines(arrays, pair, truth, measures.quantiles)
        for name, raw in predictions.items():
            if measures.only and name not in measures.only:
                continue
            yield Prediction(name, pair, truth.beside(raw), truth)


def _baselines(
    arrays: _CaseArrays, pair: Pair, truth: TrueVolume, quantiles: Quantiles | None
) -> dict[str, Array]:
    """Return the trivial baselines of a pair by name, in the order of the tables.

    Copied is the volume of the case that is most like the truth, whether or not the prediction was made from it: what
    copying could reach at best.
    """
    copied = max(
        (volume.data for volume in arrays.present.values()),
        key=lambda data: correlation(data[truth.brain], truth.raw[truth.brain]),
    )
    made = {COPY: copied}
    others = quantiles.of_others(arrays.case.case, pair.modality) if quantiles else None
    if others is not None:
        made[MATCHED] = matched_copy(copied, others)
    if len(arrays.present) > 1:  # the mean of one volume is its copy
        made[MEAN] = arrays.mean_of_sources
    return {**made, ZEROS: np.zeros_like(copied)}


# --- Scores of one prediction -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """What was computed of a prediction without a network, and what the networks need of it."""

    prediction: str  # its name
    pair: Pair
    values: dict[tuple[str, str], float]  # (metric, region) -> value
    slices: tuple[Array, Array] | None  # real and predicted, (N, H, W) uint8
    to_sample: _ToSample | None


@dataclass(frozen=True, eq=False)
class _ToSample:
    """What style samples of a volume are made from, and compared with."""

    sources: Sources
    brain: Array  # (D, H, W) bool, non-zero in any volume of the case
    truth: TrueVolume


def _measure(arrays: _CaseArrays, prediction: Prediction, measures: Measures) -> _Measured:
    masks: dict[str, Array | None] = {BRAIN: prediction.truth.brain, WHOLE: None}
    if arrays.tumour is not None:
        masks[TUMOUR] = arrays.tumour
    values = {
        (metric.name, region): value
        for metric in measures.that_see("volume")
        for region, value in metric.function(prediction.volumes, masks).items()
    }
    synthetic = prediction.name == SYNTHETIC
    slices = to_sample = None
    if (synthetic or measures.baselines) and (measures.embed or measures.that_see("slices")):
        slices = _slices(prediction.volumes)
    if synthetic and (measures.samples or measures.that_see("samples")):
        to_sample = _ToSample(arrays.sources, arrays.brain, prediction.truth)
    return _Measured(prediction.name, prediction.pair, values, slices, to_sample)


def _slices(pair: VolumePair) -> tuple[Array, Array]:
    """Return the slices that networks see, of truth and prediction, (N, H, W) uint8; each volume in its own window."""
    indices = shown_slices(pair.raw_truth != 0)
    return to_bytes(pair.truth[indices]), to_bytes(pair.shown[indices])


@dataclass
class _Networks:
    """Computes what networks score, one prediction after the other."""

    measures: Measures
    store: FeatureStore | FeatureCollector | None
    # The latest truth and its features: these are kept while its predictions are compared.
    _latest: tuple[Pair | None, list[Any]] = field(default=(None, []), init=False)

    def score(self, case: CasePairs, item: _Measured) -> dict[tuple[str, str], float]:
        """Return (metric, region) -> value of a prediction; keep its features for the distances of sets."""
        values: dict[tuple[str, str], float] = {}
        if item.slices is not None:
            real, predicted = item.slices
            self._keep(case, item.pair, item.prediction, real, predicted)
            values |= self._distances(item.pair, real, predicted)
        diversity = self.measures.that_see("samples")
        if item.to_sample is not None and diversity:
            assert self.measures.draw is not None  # passed with every metric that sees samples
            of, modality = item.to_sample, item.pair.modality
            indices = shown_slices(of.truth.brain)[::DIVERSITY_STEP]
            drawn = self.measures.draw(of.sources, of.brain, modality, indices)
            samples = [self._embed(to_bytes(sample)) for sample in drawn]
            for metric in diversity:
                values[metric.name, SLICES] = metric.function(self.measures.perceptual, samples)
        return values

    def score_samples(self, case: CasePairs, item: _Measured) -> dict[tuple[str, str], float]:
        """Return (metric, region) -> mean over the style samples of a volume; keep their features, too."""
        if item.to_sample is None or item.slices is None or not self.measures.samples:
            return {}
        assert self.measures.translate is not None  # passed with a number of samples
        of, (real, _), modality = item.to_sample, item.slices, item.pair.modality
        values: dict[tuple[str, str], list[float]] = {}
        for number in range(self.measures.samples):
            made = self.measures.translate(of.sources, of.brain, [modality], sample=number)
            _, drawn = _slices(of.truth.beside(made[modality]))
            # Real slices count once, however many samples are compared with them.
            self._keep(case, item.pair, SAMPLES, None if number else real, drawn)
            for key, value in self._distances(item.pair, real, drawn).items():
                values.setdefault(key, []).append(value)
        return {key: fmean(of_samples) for key, of_samples in values.items()}

    def _keep(
        self, case: CasePairs, pair: Pair, prediction: str, real: Array | None, predicted: Array
    ) -> None:
        if self.store is not None:
            origin = {"source": case.made_from, "modality": pair.modality}
            self.store.add({**origin, "prediction": prediction}, real, predicted)

    def _distances(self, pair: Pair, real: Array, predicted: Array) -> dict[tuple[str, str], float]:
        """Return the values of the metrics that see slices."""
        by_slices = self.measures.that_see("slices")
        if not by_slices:
            return {}
        if self._latest[0] is not pair:
            self._latest = (pair, self._embed(real))
        network, features = self.measures.perceptual, (self._latest[1], self._embed(predicted))
        return {(metric.name, SLICES): metric.function(network, *features) for metric in by_slices}

    def _embed(self, slices: Array) -> list[Any]:
        assert self.measures.perceptual is not None  # passed with every metric that sees slices
        embed = self.measures.perceptual.embed
        return [embed(block) for block in batches(slices, self.measures.batch_size)]
