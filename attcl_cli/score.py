"""Completed volumes against the hidden truths: which pairs are compared, their scores, and a summary.

`plan` looks at names and headers and decides everything; `run` reads each case once and yields its rows; `summarise`
turns rows into figures. What a metric is stands in `metrics`; the networks that some need are passed in.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any, Literal, Protocol

import numpy as np

from attcl_cli import __version__, metrics, volume
from attcl_cli.dataset import SEGMENTATION, Case, Dataset
from attcl_cli.errors import AttclError, UsageError, raise_all
from attcl_cli.feature_store import (
    KERNEL_IMAGES,
    SLICE_POLICY,
    Embedding,
    FeatureStore,
    batches,
    grey,
    shown_slices,
    to_bytes,
)
from attcl_cli.files import read_json, write_json, write_whole
from attcl_cli.overlap import read_ahead
from attcl_cli.splits import Splits
from attcl_cli.volume import Array

SCHEMA_VERSION = 1
SPLITS = ("train", "val", "test", "all")
SYNTHETIC, COPY, MEAN, ZEROS = "synthetic", "copy", "mean", "zeros"
BASELINES = (COPY, MEAN, ZEROS)
_DIVERSITY_STEP = 8  # every n-th of the training slices is sampled
BRAIN, TUMOUR, HEALTHY, WHOLE = "brain", "tumour", "healthy", "whole"
ALL = "all"

IMAGE_METRICS = ("ssim", "psnr", "nmse", "ssim-brasyn")

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
        "mean over the whole volume",
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


Predict = Callable[[volume.Volume, Array, str, Sequence[str]], Mapping[str, Array]]
"""(source volume, brain, source modality, targets) -> target -> (D, H, W) intensities."""

Draw = Callable[[volume.Volume, Array, str, str, Array], Iterator[Array]]
"""(source volume, brain, source modality, target, slice indices) -> samples (N, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Target:
    """One volume to score; `made` is empty where it is missing, or comes from a network (`--directions`)."""

    modality: str
    truth: tuple[Path, ...]
    made: tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """All volumes of one case that were made from one source.

    Attributes:
        case: its id.
        source: the modality that they were made from.
        present: what the case has, modality -> files; the source is among them.
        targets: what is scored.
        segmentation: the label map; empty where there is none.
    """

    case: str
    source: str
    present: Mapping[str, tuple[Path, ...]]
    targets: tuple[Target, ...]
    segmentation: tuple[Path, ...]


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        jobs: a case and source each.
        missing: (case, modality) that should have been completed and is not there.
        truth: the folder of the truths.
    """

    jobs: tuple[Job, ...]
    missing: tuple[tuple[str, str], ...]
    truth: Path

    @property
    def volumes(self) -> int:
        """How many volumes are scored."""
        return sum(len(job.targets) for job in self.jobs)


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
        group: a modality, a direction such as `flair->t1`, or `all`.
        prediction: `synthetic` or the name of a trivial baseline.
        mean: over the n values that are finite; NaN where there is none.
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
        baselines: also score what costs nothing, by every metric; a copy is always scored by the image metrics, and all
            of them by the challenge's SSIM, whose figures say nothing alone.
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


def plan(
    data: Dataset,
    truth: Dataset,
    output: Path,
    splits: Splits | None,
    *,
    split: str = "test",
    allow_missing: bool = False,
) -> Plan:
    """Lists every hidden truth and the completed volume that belongs to it; checks that all are there and fit.

    Args:
        data: the incomplete dataset.
        truth: the complete one.
        output: the completed folder.
        splits: what was hidden; None: every volume that `truth` has and `data` has not.
        split: one of `SPLITS`.
        allow_missing: count missing volumes instead of refusing.

    Raises:
        AttclError: everything that is wrong, together.
    """
    whole = {case.id: case for case in truth.cases}
    modal_list = data.by_frequency()
    jobs: list[Job] = []
    missing: list[tuple[str, str]] = []
    problems: list[AttclError] = []
    for case in _cases_of(data, splits, split):
        real = whole.get(case.id)
        hidden = () if real is None else [name for name in data.missing(case) if name in real.files]
        if splits is not None:
            wanted = next(
                item.hidden
                for part in splits.splits.values()
                for item in part
                if item.case == case.id
            )
            problems += [
                AttclError(
                    f"{truth.root}: no {name} of {case.id}, wanted the truth that was hidden",
                    "name the complete dataset with --truth",
                )
                for name in wanted
                if name not in hidden
            ]
            hidden = [name for name in wanted if name in hidden]
        by_source: dict[str, list[Target]] = {}
        for name in hidden:
            assert real is not None  # nothing is hidden of a case that the truth lacks
            files = tuple(output / file for file in data.place(case, name))
            there = files if all(file.is_file() for file in files) else ()
            target = Target(name, truth.paths(real, name), there)
            if there:
                problems += _unlike(target)
            else:
                missing.append((case.id, name))
                continue
            source = _source(output, data, case, name, modal_list)
            by_source.setdefault(source, []).append(target)
        present = {name: data.paths(case, name) for name in case.files}
        jobs += [
            Job(case.id, source, present, tuple(targets), _segmentation(truth, real))
            for source, targets in by_source.items()
        ]
    if missing and not allow_missing:
        case_id, name = missing[0]
        problems.append(
            AttclError(
                f"{output}: {len(missing)} hidden volumes were not completed, "
                f"wanted all (the first: {name} of {case_id})",
                "finish attcl complete, or count them with --allow-missing",
            )
        )
    raise_all(problems)
    if not jobs and not missing:
        raise AttclError(
            f"{data.root}: nothing is hidden in the {split} split, wanted truths to compare with",
            "choose another --split (train, val, test or all)",
        )
    return Plan(tuple(jobs), tuple(missing), truth.root)


def plan_directions(truth: Dataset, splits: Splits | None, *, split: str = "test") -> Plan:
    """Every ordered pair of modalities that a case really has (the paper's Table 2).

    Args:
        truth: the complete dataset.
        splits: which cases belong to which split; None: all are scored.
        split: one of `SPLITS`.

    Raises:
        AttclError: no case has two modalities.
    """
    jobs = []
    for case in _cases_of(truth, splits, split):
        paths = {name: truth.paths(case, name) for name in case.files}
        for source, files in paths.items():
            others = tuple(Target(name, paths[name], ()) for name in paths if name != source)
            if others:
                own = {source: files}
                jobs.append(Job(case.id, source, own, others, _segmentation(truth, case)))
    if not jobs:
        raise AttclError(
            f"{truth.root}: no case of the {split} split has two modalities, wanted pairs",
            "choose another --split, or name the complete dataset with --truth",
        )
    return Plan(tuple(jobs), (), truth.root)


def run(plan: Plan, measures: Measures, *, folder: Path, workers: int = 2) -> Iterator[list[Row]]:
    """Scores case by case; yields the rows of each job. Memory holds a handful of cases, however many there are.

    Args:
        plan: what is compared.
        measures: what is measured.
        folder: a folder for the features of slices, which `summarise` reads; removed by the caller.
        workers: cases read ahead.

    Raises:
        AttclError: a file cannot be read, or the shapes of a case differ.
    """
    session = _Session(measures, _store(measures, folder))
    for _, future in read_ahead(_read, plan.jobs, depth=workers):
        loaded = future.result()
        rows: list[Row] = []
        for shown in _predictions(loaded, measures):
            rows += session.score(loaded, shown)
        yield rows


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
    order = {name: place for place, name in enumerate(KINDS)}
    return sorted(
        figures,
        key=lambda it: (it.group == ALL, "->" in it.group, it.group, order[it.metric], it.region),
    )


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes `scores.csv`, long form, NaN as an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(item.name for item in fields(Row))
    for row in rows:
        writer.writerow("" if value != value else value for value in astuple(row))  # noqa: PLR0124
    write_whole(path, stream.getvalue().encode())


def write_summary(path: Path, figures: Sequence[Figure], plan: Plan, *, split: str) -> None:
    """Writes `summary.json`: every figure with how it was measured; NaN and infinity as null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "attcl_version": __version__,
            "split": split,
            "volumes": plan.volumes,
            "missing": [{"case": case, "modality": name} for case, name in plan.missing],
            "scores": [
                {key: plain(value) for key, value in asdict(figure).items()} for figure in figures
            ],
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
    scale: volume.Scale


def compare(job: Job, predict: Predict | None = None) -> tuple[Array, list[Shown]]:
    """Reads a job again: its source in [0, 1], and the synthetic volumes beside their truths; for pictures."""
    loaded = _read(job)
    shown = list(_predictions(loaded, Measures(metrics=(), predict=predict)))
    source = loaded.present[job.source].data
    return _unit(source, source != 0), shown


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The volumes of one job."""

    job: Job
    present: Mapping[str, volume.Volume]
    truths: Mapping[str, volume.Volume]
    made: Mapping[str, Array]
    tumour: Array | None  # (D, H, W) bool


def _read(job: Job) -> _Loaded:
    present = {name: volume.load(paths) for name, paths in job.present.items()}
    truths = {target.modality: volume.load(target.truth) for target in job.targets}
    made = {target.modality: volume.load(target.made).data for target in job.targets if target.made}
    tumour = volume.load_labels(job.segmentation) > 0 if job.segmentation else None
    shape = next(iter(truths.values())).data.shape
    for name, found in [
        *((str(job.present[name][0]), item.data) for name, item in present.items()),
        *((str(job.segmentation[0]), item) for item in [tumour] if item is not None),
    ]:
        if found.shape != shape:
            raise AttclError(
                f"{name}: {found.shape} slices, rows and columns, wanted {shape} as the truth has",
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
        brain = volume.brain_of([item.data for item in loaded.present.values()])
        made |= measures.predict(loaded.present[job.source], brain, job.source, lacking)
    wanted = set(measures.metrics)
    names = [SYNTHETIC]
    if measures.baselines or "ssim-brasyn" in wanted:
        names += BASELINES
    elif wanted & set(IMAGE_METRICS):
        names.append(COPY)
    source = loaded.present[job.source].data
    mean = None
    if MEAN in names:
        own = [_unit(item.data, item.data != 0) for item in loaded.present.values()]
        mean = np.asarray(np.mean(own, axis=0, dtype=np.float32))
    for target in job.targets:
        truth = loaded.truths[target.modality].data
        brain = truth != 0
        scale = volume.intensity_scale(truth, brain)
        if scale is None:
            raise AttclError(
                f"{target.truth[0]}: 99 % of the brain has one value, wanted contrast",
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
    scale = volume.intensity_scale(image, brain)
    if scale is None:
        return np.zeros(image.shape, dtype=np.float32)
    return np.where(brain, metrics.to_unit(image, scale.low, scale.high), np.float32(0))


def _cases_of(dataset: Dataset, splits: Splits | None, split: str) -> list[Case]:
    if split not in SPLITS:
        raise UsageError(f"--split: {split!r}, wanted one of {', '.join(SPLITS)}")
    if splits is None or split == "all":
        return list(dataset.cases)
    chosen = set(splits.names(split))
    return [case for case in dataset.cases if case.id in chosen]


def _unlike(target: Target) -> list[AttclError]:
    """A completed volume must lie on its truth's grid."""
    try:
        difference = volume.read_grid(target.made).differs_from(volume.read_grid(target.truth))
    except AttclError as error:
        return [error]
    if not difference:
        return []
    return [
        AttclError(
            f"{target.made[0]}: {difference} of the truth {target.truth[0]}, wanted the same grid",
            "remove this file and run attcl complete again",
        )
    ]


def _source(
    output: Path, data: Dataset, case: Case, modality: str, modal_list: Sequence[str]
) -> str:
    """What the label beside a completed volume says it was made from; without one, Algorithm 1's source.

    Of several sources the most frequent one stands for all: it is what a copy costs nothing of.
    """
    label = output / data.place_label(case, modality)
    found: set[str] = set()
    if label.is_file():
        told = read_json(label)
        if isinstance(told, dict):
            sources = told.get("sources", [told.get("source", {})])
            found = {item.get("modality") for item in sources} & set(case.files)
    return next(name for name in modal_list if name in (found or case.files))


def _segmentation(truth: Dataset, case: Case | None) -> tuple[Path, ...]:
    return truth.paths(case, SEGMENTATION) if case is not None and case.segmentation else ()


# --- Scores of one volume -------------------------------------------------------------------------


@dataclass
class _Session:
    """What is kept between the volumes of a run."""

    measures: Measures
    store: FeatureStore | None
    _seen: tuple[object, list[Any]] = field(default=(None, []), init=False)

    def score(self, loaded: _Loaded, shown: Shown) -> list[Row]:
        """All scores of one prediction."""
        job, wanted = loaded.job, set(self.measures.metrics)
        synthetic, all_of_them = shown.prediction == SYNTHETIC, self.measures.baselines
        found: dict[tuple[str, str], float] = {}
        if synthetic or shown.prediction == COPY or all_of_them:
            regions: dict[str, Array | None] = {BRAIN: shown.brain, WHOLE: None}
            if loaded.tumour is not None:
                regions[TUMOUR] = loaded.tumour
            found |= _image_scores(shown, regions, wanted)
        if "ssim-brasyn" in wanted and loaded.tumour is not None:
            pair = metrics.ssim_brasyn(shown.raw, shown.raw_truth, loaded.tumour)
            found |= {("ssim-brasyn", TUMOUR): pair[0], ("ssim-brasyn", HEALTHY): pair[1]}
        if synthetic or all_of_them:
            found |= self._by_networks(job, shown)
        if "lpips-diversity" in wanted and synthetic:
            found["lpips-diversity", WHOLE] = self._diversity(loaded, shown)
        return [
            Row(job.case, shown.target.modality, job.source, region, name, value, shown.prediction)
            for (name, region), value in found.items()
        ]

    def _by_networks(self, job: Job, shown: Shown) -> dict[tuple[str, str], float]:
        """Notes the features for FID and its like; returns LPIPS."""
        wants_lpips = "lpips" in self.measures.metrics
        if self.store is None and not wants_lpips:
            return {}
        indices = shown_slices(shown.brain)
        image = shown.raw
        if shown.prediction != SYNTHETIC:  # of another modality: brought into the truth's window
            span = np.float32(shown.scale.high - shown.scale.low)
            image = shown.scale.low + shown.image * span
        real, made = (
            grey(data, shown.scale, shown.brain, indices) for data in (shown.raw_truth, image)
        )
        if self.store is not None:
            origin = {"source": job.source, "modality": shown.target.modality}
            self.store.add({**origin, "prediction": shown.prediction}, real, made)
        if not wants_lpips:
            return {}
        perceptual = self._perceptual()
        values = [
            perceptual.between(true, perceptual.embed(block)).numpy()
            for true, block in zip(
                self._embedded(shown.target, real), self._batches(made), strict=True
            )
        ]
        return {("lpips", WHOLE): _mean_of(values)}

    def _embedded(self, target: Target, real: Array) -> list[Any]:
        """The truth's LPIPS features, kept while its predictions are compared."""
        if self._seen[0] is not target:
            perceptual = self._perceptual()
            self._seen = (target, [perceptual.embed(block) for block in self._batches(real)])
        return self._seen[1]

    def _diversity(self, loaded: _Loaded, shown: Shown) -> float:
        """The mean pairwise LPIPS of the samples of a slice, mean over slices (StarGAN v2, Section 4)."""
        assert self.measures.draw is not None  # asked for by whoever asks for the metric
        job, perceptual = loaded.job, self._perceptual()
        indices = shown_slices(shown.brain)[::_DIVERSITY_STEP]
        brain = volume.brain_of([item.data for item in loaded.present.values()])
        drawn = self.measures.draw(
            loaded.present[job.source], brain, job.source, shown.target.modality, indices
        )
        looks = [
            [perceptual.embed(block) for block in self._batches(to_bytes(sample))]
            for sample in drawn
        ]
        values = [
            perceptual.between(first, second).numpy()
            for index, one in enumerate(looks)
            for other in looks[index + 1 :]
            for first, second in zip(one, other, strict=True)
        ]
        return _mean_of(values)

    def _perceptual(self) -> Perceptual:
        assert self.measures.perceptual is not None  # asked for by whoever asks for the metric
        return self.measures.perceptual

    def _batches(self, slices: Array) -> Iterator[Any]:
        return batches(slices, self.measures.batch_size)


def _store(measures: Measures, folder: Path) -> FeatureStore | None:
    if measures.embed is None:
        return None
    cache = measures.cache or folder / "real"
    return FeatureStore(measures.embed, folder, cache, measures.batch_size)


def _mean_of(values: Sequence[Array]) -> float:
    return float(np.concatenate(values).mean()) if values else float("nan")


def _image_scores(
    shown: Shown, regions: Mapping[str, Array | None], wanted: set[str]
) -> dict[tuple[str, str], float]:
    pair = shown.image, shown.truth
    found: dict[tuple[str, str], float] = {}
    if "ssim" in wanted:
        means = metrics.ssim_of_regions(*pair, regions, data_range=1.0)
        found |= {("ssim", region): value for region, value in means.items()}
    for name in ("psnr", "nmse"):
        if name in wanted:
            function = metrics.METRICS[name].function
            found |= {
                (name, region): function(*pair, mask=mask) for region, mask in regions.items()
            }
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
                (group, prediction, name, WHOLE), [value], lost.get(group, 0), measures
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
        sd=pstdev(finite) if finite else float("nan"),
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
