"""Completed volumes against the hidden truths: a row a volume, region and metric, and the figures of groups.

`run` reads each case once and yields its rows; `summarise` turns rows into figures. What is compared with what is in
`pairs`, what a metric is in `metrics`; the networks that some need are passed in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal, Protocol

import numpy as np

from attcl_cli import __version__
from attcl_cli.data import intensities, volumes
from attcl_cli.data.intensities import Array
from attcl_cli.errors import AttclError
from attcl_cli.files import as_json, write_json
from attcl_cli.prefetch import read_ahead
from attcl_cli.scoring import metrics
from attcl_cli.scoring.feature_store import (
    KERNEL_IMAGES,
    SLICE_POLICY,
    Embedding,
    FeatureStore,
    batches,
    grey,
    shown_slices,
    to_bytes,
)
from attcl_cli.scoring.metrics import IMAGE_METRICS
from attcl_cli.scoring.pairs import Job, Plan, Target

SCHEMA_VERSION = 1
SYNTHETIC, COPY, MEAN, ZEROS = "synthetic", "copy", "mean", "zeros"
BASELINES = (COPY, MEAN, ZEROS)
_DIVERSITY_STEP = 8  # every n-th of the training slices is sampled
BRAIN, TUMOUR, HEALTHY, WHOLE = "brain", "tumour", "healthy", "whole"
SLICES = "slices"  # what networks see
ALL = "all"

_OWN = "each volume scaled by its own 0.5 and 99.5 percentiles in the brain (non-zero truth)"


@dataclass(frozen=True)
class Kind:
    """How a metric is measured, and how its figures are read."""

    policy: str
    unit: str = "1"
    higher_is_better: bool = False
    network: Literal["", "embed", "perceptual"] = ""  # the field of `Measures` that it needs


KINDS: Mapping[str, Kind] = {
    "ssim": Kind(
        f"3-D, Gaussian 1.5, window 11, mean over the region; {_OWN}; empty region: undefined",
        higher_is_better=True,
    ),
    "psnr": Kind(f"data range 1; {_OWN}; empty region: undefined", "dB", higher_is_better=True),
    "nmse": Kind(f"squared error over squared truth; {_OWN}; empty region: undefined"),
    "ssim-brasyn": Kind(
        "the BraSyn challenge's: each volume clipped at its own 0.5 and 99.5 percentiles, times the mask, "
        "mean over the whole volume; most of that is background, so zeros score .8 (healthy) and .98 (tumour): "
        "compare with the baselines only",
        higher_is_better=True,
    ),
    "lpips": Kind(f"mean over slices; {SLICE_POLICY}", network="perceptual"),
    "lpips-diversity": Kind(
        f"mean pairwise LPIPS of the samples of a slice, every {_DIVERSITY_STEP}th slice",
        higher_is_better=True,
        network="perceptual",
    ),
    "fid": Kind(f"real against generated slices; {SLICE_POLICY}", network="embed"),
    "fd-effnet": Kind(
        f"Frechet distance of EfficientNet-Lite0 features, not FID; {SLICE_POLICY}", network="embed"
    ),
    "kid": Kind(
        f"cubic kernel, unbiased, at most {KERNEL_IMAGES} slices a side; {SLICE_POLICY}",
        network="embed",
    ),
    "kd-effnet": Kind(
        f"kernel distance of EfficientNet-Lite0 features, not KID; cubic kernel, unbiased, at most "
        f"{KERNEL_IMAGES} slices a side; {SLICE_POLICY}",
        network="embed",
    ),
}


class Perceptual(Protocol):
    """LPIPS in two halves, so that the features of a slice serve several comparisons."""

    name: str
    sha256: str

    def embed(self, slices: Any) -> Any:
        """The features of slices (B, 1, H, W) float32 in [0, 1]."""

    def between(self, first: Any, second: Any) -> Any:
        """The distance of each pair, (B,) float32."""


Predict = Callable[[volumes.Volume, Array, str, Sequence[str]], Mapping[str, Array]]
"""(source volume, brain, source modality, targets) -> target -> (D, H, W) intensities."""

Draw = Callable[[volumes.Volume, Array, str, str, Array], Iterator[Array]]
"""(source volume, brain, source modality, target, slice indices) -> samples (N, H, W) in [0, 1]."""


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
class Figure:
    """A line of `summary.json`: one metric over the volumes of a group.

    Attributes:
        group: a modality, a direction such as `flair->t1` or `flair+t2->t1`, or `all`.
        prediction: `synthetic` or the name of a trivial baseline.
        mean: over the n values that are finite; NaN where there is none.
        sd: of the sample (n - 1); NaN for fewer than two values.
        n: finite values (volumes; of FID, KID and their like generated slices).
        n_missing: volumes of the group that are not there.
        n_undefined: volumes without a value (an empty region).
        n_infinite: volumes with an infinite one (PSNR of equal images).
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
    unit: str = "1"
    higher_is_better: bool = True
    policy: str = ""
    network: str = ""
    network_sha256: str = ""


@dataclass(frozen=True)
class Measures:
    """What is measured, and by which networks.

    Attributes:
        metrics: names, keys of `KINDS`.
        baselines: score what costs nothing by the networks, too, as the image metrics always do.
        embed: the network of fid, fd-effnet and kid.
        perceptual: LPIPS.
        predict: makes the volumes that are not on disk (`--directions`).
        draw: samples for lpips-diversity.
        batch_size: slices a network sees at once; never changes results beyond rounding.
        cache: folder where features of real volumes are kept between runs, by content.
    """

    metrics: tuple[str, ...] = IMAGE_METRICS
    baselines: bool = False
    embed: Embedding | None = None
    perceptual: Perceptual | None = None
    predict: Predict | None = None
    draw: Draw | None = None
    batch_size: int = 32
    cache: Path | None = None


def run(plan: Plan, measures: Measures, *, folder: Path, workers: int = 2) -> Iterator[list[Row]]:
    """Scores case by case; yields the rows of each job. Memory holds a handful of cases, however many there are.

    Threads read the next cases and compute their image scores while the networks are busy with this one.

    Args:
        plan: what is compared.
        measures: what is measured.
        folder: a folder for the features of slices, which `summarise` reads; removed by the caller.
        workers: cases in the making.

    Raises:
        AttclError: a file cannot be read, or the shapes of a case differ.
    """
    networks = _Networks(measures, _store(measures, folder))

    def measure(job: Job) -> list[_Measured]:
        loaded = _read(job)
        return [_measure(loaded, shown, measures) for shown in _predictions(loaded, measures)]

    for job, future in read_ahead(measure, plan.jobs, depth=workers):
        yield [
            Row(job.case, item.target.modality, job.made_from, region, name, value, item.prediction)
            for item in future.result()
            for (name, region), value in (item.found | networks.score(job, item)).items()
        ]


def summarise(
    rows: Iterable[Row], plan: Plan, measures: Measures, *, folder: Path, seed: int = 0
) -> list[Figure]:
    """The figures of each group: all volumes, each target modality, each direction.

    Args:
        rows: of `run`.
        plan: what was compared.
        measures: what was measured.
        folder: what `run` was given.
        seed: draws the slices of KID where there are too many.
    """
    gathered: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        for group in _groups(row.source, row.modality):
            key = (group, row.prediction, row.metric, row.region)
            gathered.setdefault(key, []).append(row.value)
    lost: dict[str, int] = {}
    for _, modality in plan.missing:
        for group in (ALL, modality):
            lost[group] = lost.get(group, 0) + 1
    figures = [
        _figure(key, values, lost.get(key[0], 0), measures) for key, values in gathered.items()
    ]
    store = _store(measures, folder)
    if store is not None:
        figures += _distances(lost, store, measures, seed)
    known = {figure.group for figure in figures}
    figures += [  # nothing of the group is there: it must not vanish from the summary
        _figure(
            (group, SYNTHETIC, metric, BRAIN if metric in IMAGE_METRICS else SLICES),
            [],
            count,
            measures,
        )
        for group, count in lost.items()
        if group not in known
        for metric in measures.metrics
    ]
    order = {name: place for place, name in enumerate(KINDS)}
    return sorted(
        figures,
        key=lambda it: (it.group == ALL, "->" in it.group, it.group, order[it.metric], it.region),
    )


def write_summary(path: Path, figures: Sequence[Figure], plan: Plan, *, split: str) -> None:
    """Writes `summary.json`: every figure with how it was measured; NaN and infinity as null."""
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "attcl_version": __version__,
            "split": split,
            "volumes": plan.volumes,
            "missing": [{"case": case, "modality": name} for case, name in plan.missing],
            "scores": [as_json(figure) for figure in figures],
        },
    )


@dataclass(frozen=True, eq=False)
class Shown:
    """A prediction beside its truth, both scaled to [0, 1] by their own windows; 0 outside the brain.

    Attributes:
        prediction: `synthetic` or the name of a baseline.
        target: what it should be.
        image: (D, H, W) float32, of the prediction.
        truth: the same of the truth.
        raw: the prediction's intensities.
        raw_truth: the truth's.
        brain: (D, H, W) bool, non-zero in the truth.
        scale: the truth's window.
    """

    prediction: str
    target: Target
    image: Array
    truth: Array
    raw: Array
    raw_truth: Array
    brain: Array
    scale: intensities.Scale


def compare(job: Job, predict: Predict | None = None) -> tuple[Array, list[Shown]]:
    """Reads a job again: its (first) source in [0, 1], and the synthetic volumes beside their truths; for pictures."""
    loaded = _read(job)
    shown = list(_predictions(loaded, Measures(metrics=(), predict=predict)))
    source = loaded.present[job.source].data
    return _unit(source, source != 0), shown


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The volumes of one job."""

    job: Job
    present: Mapping[str, volumes.Volume]
    truths: Mapping[str, volumes.Volume]
    made: Mapping[str, Array]
    tumour: Array | None  # (D, H, W) bool


def _read(job: Job) -> _Loaded:
    present = {name: volumes.load(paths) for name, paths in job.present.items()}
    truths = {target.modality: volumes.load(target.truth) for target in job.targets}
    made = {
        target.modality: volumes.load(target.made).data for target in job.targets if target.made
    }
    tumour = volumes.load_labels(job.segmentation) > 0 if job.segmentation else None
    shape = next(iter(truths.values())).data.shape
    for name, found in [
        *((str(job.present[name][0]), item.data) for name, item in present.items()),
        *((str(job.segmentation[0]), item) for item in [tumour] if item is not None),
    ]:
        if found.shape != shape:
            raise AttclError(
                f"{name}: {found.shape} slices, rows and columns, expected {shape} as the truth has",
                "put the case's own file there",
            )
    return _Loaded(job, present, truths, made, tumour)


def _predictions(loaded: _Loaded, measures: Measures) -> Iterator[Shown]:
    """What is scored, the synthetic volume of each target first."""
    job = loaded.job
    made = dict(loaded.made)
    lacking = [target.modality for target in job.targets if target.modality not in made]
    if lacking:
        assert measures.predict is not None  # plan lists no volume without a file otherwise
        brain = intensities.brain_of([item.data for item in loaded.present.values()])
        made |= measures.predict(loaded.present[job.source], brain, job.source, lacking)
    wanted = set(measures.metrics)
    names = [SYNTHETIC]
    if measures.baselines or wanted & set(IMAGE_METRICS):
        names += BASELINES
    source = loaded.present[job.source].data
    mean = None
    if MEAN in names:
        own = [_unit(item.data, item.data != 0) for item in loaded.present.values()]
        mean = np.asarray(np.mean(own, axis=0, dtype=np.float32))
    for target in job.targets:
        truth = loaded.truths[target.modality].data
        brain = truth != 0
        scale = intensities.intensity_scale(truth, brain)
        if scale is None:
            raise AttclError(
                f"{target.truth[0]}: 99 % of the brain has one value, expected contrast",
                "remove this volume from the truth",
            )
        unit_truth = _unit(truth, brain)
        for name in names:
            raw = {
                SYNTHETIC: made[target.modality],
                COPY: source,
                MEAN: mean,
                ZEROS: np.zeros_like(truth) if name == ZEROS else None,
            }[name]
            assert raw is not None
            yield Shown(name, target, _unit(raw, brain), unit_truth, raw, truth, brain, scale)


def _unit(image: Array, brain: Array) -> Array:
    """Scaled to [0, 1] by the image's own percentiles in the brain, 0 outside; 0 throughout without contrast."""
    scale = intensities.intensity_scale(image, brain)
    if scale is None:
        return np.zeros(image.shape, dtype=np.float32)
    return np.where(brain, metrics.to_unit(image, scale.low, scale.high), np.float32(0))


# --- Scores of one volume -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """The image scores of a prediction, and what the networks need of it."""

    target: Target
    prediction: str
    found: dict[tuple[str, str], float]  # (metric, region) -> value
    slices: tuple[Array, Array] | None  # real and predicted, (N, H, W) uint8
    source: (
        tuple[volumes.Volume, Array, Array] | None
    )  # volume, brain, slice indices; to draw samples of


def _measure(loaded: _Loaded, shown: Shown, measures: Measures) -> _Measured:
    wanted = set(measures.metrics)
    synthetic = shown.prediction == SYNTHETIC
    regions: dict[str, Array | None] = {BRAIN: shown.brain, WHOLE: None}
    if loaded.tumour is not None:
        regions[TUMOUR] = loaded.tumour
    found = _image_scores(shown, regions, wanted)
    if "ssim-brasyn" in wanted and loaded.tumour is not None:
        pair = metrics.ssim_brasyn(shown.raw, shown.raw_truth, loaded.tumour)
        found |= {("ssim-brasyn", TUMOUR): pair[0], ("ssim-brasyn", HEALTHY): pair[1]}
    slices = source = None
    if (synthetic or measures.baselines) and (measures.embed or "lpips" in wanted):
        slices = _slices(shown)
    if synthetic and "lpips-diversity" in wanted:
        indices = shown_slices(shown.brain)[::_DIVERSITY_STEP]
        brain = intensities.brain_of([item.data for item in loaded.present.values()])
        source = loaded.present[loaded.job.source], brain, indices
    return _Measured(shown.target, shown.prediction, found, slices, source)


def _slices(shown: Shown) -> tuple[Array, Array]:
    """The slices that networks see, of truth and prediction."""
    indices = shown_slices(shown.brain)
    image = shown.raw
    if shown.prediction != SYNTHETIC:  # of another modality: brought into the truth's window
        span = np.float32(shown.scale.high - shown.scale.low)
        image = shown.scale.low + shown.image * span
    real, made = (
        grey(data, shown.scale, shown.brain, indices) for data in (shown.raw_truth, image)
    )
    return real, made


@dataclass
class _Networks:
    """The scores that networks give; one volume after the other."""

    measures: Measures
    store: FeatureStore | None
    _seen: tuple[object, list[Any]] = field(default=(None, []), init=False)

    def score(self, job: Job, item: _Measured) -> dict[tuple[str, str], float]:
        """Notes the features for FID and its like; returns LPIPS and its diversity."""
        found: dict[tuple[str, str], float] = {}
        if item.slices is not None and self.store is not None:
            origin = {"source": job.made_from, "modality": item.target.modality}
            self.store.add({**origin, "prediction": item.prediction}, *item.slices)
        if item.slices is not None and "lpips" in self.measures.metrics:
            found["lpips", SLICES] = self._distance(item.target, *item.slices)
        if item.source is not None:
            found["lpips-diversity", SLICES] = self._diversity(job, item)
        return found

    def _distance(self, target: Target, real: Array, made: Array) -> float:
        """LPIPS, mean over slices; the truth's features are kept while its predictions are compared."""
        if self._seen[0] is not target:
            self._seen = (target, self._embedded(real))
        return _mean_between(self._perceptual(), self._seen[1], self._embedded(made))

    def _diversity(self, job: Job, item: _Measured) -> float:
        """The mean pairwise LPIPS of the samples of a slice, mean over slices (StarGAN v2, Section 4)."""
        assert self.measures.draw is not None  # given by whoever asks for the metric
        assert item.source is not None  # as `score` has seen
        source, brain, indices = item.source
        drawn = self.measures.draw(source, brain, job.source, item.target.modality, indices)
        looks = [self._embedded(to_bytes(sample)) for sample in drawn]
        pairs = itertools.combinations(looks, 2)
        return fmean(_mean_between(self._perceptual(), one, other) for one, other in pairs)

    def _embedded(self, slices: Array) -> list[Any]:
        embed = self._perceptual().embed
        return [embed(block) for block in batches(slices, self.measures.batch_size)]

    def _perceptual(self) -> Perceptual:
        assert self.measures.perceptual is not None  # given by whoever asks for the metric
        return self.measures.perceptual


def _store(measures: Measures, folder: Path) -> FeatureStore | None:
    if measures.embed is None:
        return None
    cache = measures.cache or folder / "real"
    return FeatureStore(measures.embed, folder, cache, measures.batch_size)


def _mean_between(perceptual: Perceptual, first: Sequence[Any], second: Sequence[Any]) -> float:
    """LPIPS of slices embedded in batches, mean over all of them; NaN for none."""
    values = [
        perceptual.between(one, other).numpy() for one, other in zip(first, second, strict=True)
    ]
    return float(np.concatenate(values).mean()) if values else float("nan")


def _image_scores(
    shown: Shown, regions: Mapping[str, Array | None], wanted: set[str]
) -> dict[tuple[str, str], float]:
    pair = shown.image, shown.truth
    found: dict[tuple[str, str], float] = {}
    if "ssim" in wanted:
        means = metrics.ssim_of_regions(*pair, regions, data_range=1.0)
        found |= {("ssim", region): value for region, value in means.items()}
    if "psnr" in wanted:
        for region, mask in regions.items():
            found["psnr", region] = metrics.psnr(*pair, data_range=1.0, mask=mask)
    if "nmse" in wanted:
        for region in regions.keys() - {WHOLE}:  # where both are 0 nothing is added to either sum
            found["nmse", region] = metrics.nmse(*pair, mask=regions[region])
    return found


# --- Figures --------------------------------------------------------------------------------------


def _groups(source: str, modality: str) -> tuple[str, str, str]:
    return ALL, modality, f"{source}->{modality}"


def _distances(
    lost: Mapping[str, int], store: FeatureStore, measures: Measures, seed: int
) -> list[Figure]:
    """FID and its like of each group."""
    names = [name for name in measures.metrics if KINDS[name].network == "embed"]
    found = []
    for (group, prediction), (count, values) in store.distances(names, _groups, seed).items():
        for name, value in values.items():
            figure = _figure(
                (group, prediction, name, SLICES), [value], lost.get(group, 0), measures
            )
            # A distance of two sets is one number: it has no spread, and its n is the generated slices.
            nothing = float("nan")
            found.append(replace(figure, sd=nothing, median=nothing, n=count))
    return found


def _figure(
    key: tuple[str, str, str, str], values: Sequence[float], missing: int, measures: Measures
) -> Figure:
    group, prediction, metric, region = key
    finite = [value for value in values if math.isfinite(value)]
    kind = KINDS[metric]
    network = getattr(measures, kind.network) if kind.network else None
    return Figure(
        group=group,
        prediction=prediction,
        metric=metric,
        region=region,
        mean=fmean(finite) if finite else float("nan"),
        sd=stdev(finite) if len(finite) > 1 else float("nan"),
        median=median(finite) if finite else float("nan"),
        n=len(finite),
        n_missing=missing if prediction == SYNTHETIC else 0,
        n_undefined=sum(math.isnan(value) for value in values),
        n_infinite=sum(math.isinf(value) for value in values),
        unit=kind.unit,
        higher_is_better=kind.higher_is_better,
        policy=kind.policy,
        network=network.name if network else "",
        network_sha256=network.sha256 if network else "",
    )
