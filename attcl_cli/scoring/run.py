"""Score completed volumes against the held-out ground truth: checks, networks, rows, figures, pages, `run.json`.

What is shown on a terminal is left to the command line.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attcl_cli import cluster
from attcl_cli.data import splits, volumes
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.originals import folders_of
from attcl_cli.data.preconditions import labels_off_brain
from attcl_cli.errors import AttclError, UsageError, raise_all
from attcl_cli.files import refuse_inside, write_csv
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report.viewers import SLICES, require_viewer
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import SCORES, RunRecord, require_no_other
from attcl_cli.scoring import feature_weights
from attcl_cli.scoring.metrics import LPIPS_MIN_SIDE, METRICS, select
from attcl_cli.scoring.pairs import Comparison, plan_comparison, plan_directions
from attcl_cli.temporaries import temporary_folder

if TYPE_CHECKING:
    from attcl_cli.methods.weights import Weights
    from attcl_cli.scoring.baselines import Quantiles
    from attcl_cli.scoring.recipe import Recipe
    from attcl_cli.scoring.rows import Measures, Row
    from attcl_cli.scoring.summary import Figure


@dataclass(frozen=True)
class ScoreResult:
    """The result of `score`.

    Attributes:
        output: the folder with `report.html`, `montage.png`, `scores.csv`, `summary.json` and `run.json`.
        split: which cases were scored.
        metrics: names of what was measured, keys of `METRICS`.
        comparison: what was compared.
        rows: a value per volume, region and metric; empty after a dry run.
        figures: each metric over the volumes of a group; empty after a dry run.
        verdict: what came out in one sentence, with the worst volume; "" after a dry run.
    """

    output: Path
    split: str
    metrics: tuple[str, ...]
    comparison: Comparison = field(repr=False)
    rows: tuple[Row, ...] = field(default=(), repr=False)
    figures: tuple[Figure, ...] = field(default=(), repr=False)
    verdict: str = ""

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """(case, modality) that should have been completed and is not there; counted in every figure's `n_missing`."""
        return self.comparison.missing

    def figure(
        self,
        metric: str,
        *,
        group: str = "all",
        prediction: str = "synthetic",
        region: str | None = None,
    ) -> Figure:
        """Return one of the figures.

        Args:
            metric: its name.
            group: a modality, a direction such as `flair->t1`, or `all`.
            prediction: `synthetic` or the name of a trivial baseline.
            region: None: the first region of the metric.

        Raises:
            KeyError: there is no such figure.
        """
        key = (group, prediction, metric, region or METRICS[metric].regions[0])
        for figure in self.figures:
            if (figure.group, figure.prediction, figure.metric, figure.region) == key:
                return figure
        raise KeyError(key)


def score(
    ori: Path | str = "data",
    cpl: Path | str = "out",
    *,
    truth: Path | str | None = None,
    output: Path | str = "scores",
    metrics: Sequence[str] = (),
    fid_network: str = "inception",
    baselines: bool | None = None,
    directions: bool = False,
    samples: int | None = None,
    weights: Path | str | None = None,
    split: str | None = None,
    allow_missing: bool = False,
    offline: bool = False,
    layout: str = "auto",
    modalities: Path | str | None = None,
    bids_filter: Sequence[str] = (),
    background: BackgroundOption = "auto",
    batch_size: int = 32,
    device: str = "auto",
    num_workers: int = 2,
    ray: str | None = None,
    gpu_share: float | None = None,
    dry_run: bool = False,
    viewer: str = SLICES,
    title: str = "attcl score: synthetic volumes against the truth",
    notes: Sequence[str] = (),
    progress: Progress = SILENT,
) -> ScoreResult:
    """Compare synthesised volumes with the held-out ground truth; write tables, a page and pictures.

    Args:
        ori: the incomplete dataset; it is only read.
        cpl: the folder of the synthesised volumes; not read with `directions`.
        truth: the complete dataset; None: the one that `splits.json` names.
        output: the folder for the results; those of an earlier run are replaced.
        metrics: the command line's flags without dashes, such as "ssim" and "fid"; none: those without a network.
        fid_network: `inception`, or `effnet-lite0`, which needs no download and is reported as fd-effnet and kd-effnet.
        baselines: True: score the trivial baselines by the networks, too, and with them a copy whose quantiles are
            matched to those of other patients' volumes of the target modality; False: score none. None: those that
            need no network, if a metric needs none.
        directions: translate the real volumes in every direction instead of reading completed ones (Table 2).
        samples: style samples per volume. "fid", "kid" and "lpips" then also score these samples, as the prediction
            "samples" (StarGAN v2's protocol: 10), and "lpips-diversity" compares so many of them. None: 10 for
            "lpips-diversity", otherwise none.
        weights: name or path of the weights for `directions`, `samples` and "lpips-diversity"; None: those that
            `complete` takes.
        split: train, val, test or all; None: test, or all without `splits.json`.
        allow_missing: count missing volumes instead of raising an error.
        offline: never download a feature network.
        layout: a key of `layouts.LAYOUTS`, or `auto`.
        modalities: a TOML file with other modality names or another naming.
        bids_filter: of several files of a modality in BIDS, which is meant; none: as `splits.json` says.
        background: what is background in all volumes (`volumes.load`).
        batch_size: slices that a feature network sees at once.
        device: auto, cpu, cuda, cuda:N or mps.
        num_workers: cases that are read ahead.
        ray: measure the cases on this Ray cluster: `local` (started for this run), `auto`, or its address. None: here.
        gpu_share: of a GPU, for each worker of the cluster; None: a whole one.
        dry_run: check everything, but measure and write nothing.
        viewer: `slices`, or `niivue`: the page also has NiiVue, with the worst volumes in whole.
        title: the heading of the page.
        notes: paragraphs of the page, before those on how each figure was measured.
        progress: listens.

    Returns:
        The scores. Missing volumes raise no error with `allow_missing`: they are in `ScoreResult.missing` (the command
        line then ends with exit code 3).

    Raises:
        AttclError: a file is missing, unusable or not writable, or a network is out of reach; all problems together.
        UsageError: an option is impossible, or `output` lies among volumes.
        InterruptedRun: Ctrl-C or another signal; finished files are kept.
    """
    progress = RunLog(progress)
    names = select(metrics, fid_network=fid_network)
    _require_options(samples, names, viewer, weights, directions=directions)
    on_cluster = _cluster(ray, device, gpu_share)
    source = Source(
        Path(ori),
        layout,
        None if modalities is None else Path(modalities),
        tuple(bids_filter),
        background,
    )
    folder, completed = Path(output), Path(cpl)
    data = source.open()
    known_splits = splits.read_splits(data.root)
    complete = splits.open_truth(source, known_splits, None if truth is None else Path(truth))
    data = data.including(complete.modalities)  # of which perhaps no case has a volume here
    for note in data.notes:
        progress.say(f"note: {note}")
    split = split or ("test" if known_splits else "all")
    refuse_inside(folder, folders_of(data, complete), flag="--output")  # a demo holds its data
    refuse_inside(folder, [completed], flag="--output", kept="synthesised volumes")
    require_no_other(folder / "run.json", "score", flag="--output", besides="demo", results=SCORES)
    if not dry_run:
        _locate_networks(names, offline=offline, progress=progress)  # before torch is imported
    comparison = _large_enough(
        plan_directions(complete, known_splits, split=split)
        if directions
        else plan_comparison(
            data, complete, completed, known_splits, split=split, allow_missing=allow_missing
        ),
        names,
    )
    for note in comparison.notes:
        progress.say(f"note: {note}")
    if dry_run:
        return ScoreResult(folder, split, names, comparison)
    record = RunRecord(
        folder / "run.json",
        "score",
        config={
            "ori": str(source.folder),
            "cpl": str(completed),
            "truth": str(complete.root),
            "split": split,
            "metrics": list(metrics),
            "fid_network": fid_network,
            "baselines": baselines,
            "directions": directions,
            "samples": samples,
            "offline": offline,
        },
    )
    from attcl_cli import devices
    from attcl_cli.scoring import report, rows, summary
    from attcl_cli.scoring.recipe import Recipe

    place = devices.select(device if on_cluster is None else "cpu")  # a cluster has its own
    record.device = str(place) if ray is None else f"ray ({device})"
    draws = _draws(samples, names)
    chosen = (
        _find_weights(weights, complete, comparison, directions=directions, draws=draws)
        if directions or draws
        else None
    )
    comparison = _with_training_patients(comparison, completed, complete, chosen)
    _record_weights(record, comparison, chosen, progress)
    recipe = Recipe(
        names,
        folder / "features",
        fid_network=fid_network,
        baselines=bool(baselines),
        only=(rows.SYNTHETIC,) if baselines is False else (),
        weights=chosen,
        samples=samples,
        offline=offline,
        batch_size=batch_size,
    )
    # With a cluster, too: for the pictures, and so that a network which cannot be loaded is an error early.
    measures = recipe.load(place)
    record.extra["networks"] = {
        network.name: network.sha256
        for network in (measures.embed, measures.perceptual)
        if network is not None
    }
    _report_what_is_replaced(folder, progress)
    if baselines:
        recipe = replace(recipe, quantiles=_quantiles(complete, comparison, num_workers, progress))
        measures = replace(measures, quantiles=recipe.quantiles)
    scored: list[Row] = []
    with record.recorded(progress), temporary_folder(_temporary_place()) as features:
        rows_by_case = _rows(
            comparison,
            recipe,
            measures,
            folder=features,
            num_workers=num_workers,
            on=on_cluster,
        )
        with closing(rows_by_case), progress.bar(len(comparison.cases), "score") as bar:
            for case, rows_of_case in zip(comparison.cases, rows_by_case, strict=True):
                scored += rows_of_case
                record.add(case.case, "done", seconds=0, outputs=[])
                bar(f"{case.case} {case.made_from}")
        figures = summary.summarise(scored, comparison, measures, folder=features)
        write_csv(folder / "scores.csv", rows.Row, scored)
        summary.write_summary(folder / "summary.json", figures, comparison, split=split)
        pages = report.write_pages(
            folder,
            comparison,
            scored,
            figures,
            title=title,
            facts={
                "split": split,
                "truth": complete.root.name,
                "weights": _weights_of(comparison, record),
            },
            notes=[
                *notes,
                *(f"{note}." for note in comparison.notes),
                *_warn_of_labels(complete, comparison, progress),
            ],
            translate=measures.translate,
            viewer=viewer,
            progress=progress,
        )
        record.results = [folder / "scores.csv", folder / "summary.json", *pages]
    return ScoreResult(
        folder,
        split,
        names,
        comparison,
        tuple(scored),
        tuple(figures),
        report.describe_result(scored, comparison),
    )


def _rows(
    comparison: Comparison,
    recipe: Recipe,
    measures: Measures,
    *,
    folder: Path,
    num_workers: int,
    on: cluster.Cluster | None,
) -> Generator[list[Row], None, None]:
    """Yield the rows of each case, measured here or on a cluster."""
    from attcl_cli.scoring.rows import score_cases

    if on is None:
        yield from score_cases(comparison, measures, folder=folder, num_workers=num_workers)
        return
    from attcl_cli.scoring.on_ray import score_on_ray

    yield from score_on_ray(
        comparison.cases,
        recipe,
        measures.store(folder),
        on,
        num_workers=num_workers,
    )


def _cluster(ray: str | None, device: str, gpu_share: float | None) -> cluster.Cluster | None:
    """Return the cluster that is asked for, if somebody answers there."""
    on = cluster.asked_for(ray, device, gpu_share)
    if on is not None:
        cluster.require(on.address)
    return on


def _require_options(
    samples: int | None,
    names: Sequence[str],
    viewer: str,
    weights: Path | str | None,
    *,
    directions: bool,
) -> None:
    """Refuse an unknown viewer, weights that nothing is made with, and a number of samples that no metric can use.

    Raises:
        UsageError: there is no such viewer; weights are named in vain; there are fewer than 2 samples, or no metric
            looks at them.
    """
    require_viewer(viewer)
    if weights is not None and not (directions or _draws(samples, names)):
        raise UsageError(
            f"--weights: {weights}, but nothing is made here, expected --directions, --samples or --lpips-diversity",
            "leave --weights out: completed volumes say what made them",
            code="weights-not-used",
        )
    if samples is None:
        return
    if samples < 2:  # noqa: PLR2004
        raise UsageError(
            f"--samples: {samples}, expected 2 or more, for a distance between them",
            "--samples 10 is StarGAN v2's protocol",
            code="too-few-samples",
        )
    if all(METRICS[name].sees == "volume" for name in names):
        raise UsageError(
            f"--samples: {samples}, but {', '.join(names)} score the completed volume alone, "
            "expected a metric of samples",
            "add --fid, --kid, --lpips or --lpips-diversity, or leave --samples out",
            code="samples-not-scored",
        )


def _draws(samples: int | None, names: Sequence[str]) -> bool:
    """Return whether samples are drawn for the metrics."""
    return samples is not None or any(METRICS[name].sees == "samples" for name in names)


def _large_enough(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """Return the comparison; refuse slices that are too small for LPIPS, before any network is loaded."""
    seen = {METRICS[name].sees for name in names}
    for case in comparison.cases if seen & {"slices", "samples"} else ():
        file = case.pairs[0].truth
        _, height, width = volumes.read_grid(file).axial_shape
        if min(height, width) < LPIPS_MIN_SIDE:
            raise AttclError(
                f"{file[0]}: slices of {width}x{height} pixels, expected {LPIPS_MIN_SIDE} or more per side for LPIPS",
                "leave --lpips and --lpips-diversity out",
                code="slices-too-small",
            )
    return comparison


def _locate_networks(names: Sequence[str], *, offline: bool, progress: Progress) -> None:
    """Find, or download, the files of the networks that are needed; raise one error for all that are out of reach."""
    reported: set[str] = set()

    def report(done: int, total: int) -> None:
        text = f"downloading a feature network: {10 * done // total * 10} % of {total / 1e6:.0f} MB"
        if text not in reported:
            reported.add(text)
            progress.say(text)

    needed = {METRICS[name].network for name in names}
    problems: list[AttclError] = []
    for network, file in feature_weights.FILES.items():
        if network in needed:
            try:
                feature_weights.locate(file, offline=offline, on_bytes=report)
            except AttclError as error:
                problems.append(error)
    raise_all(problems)


def _find_weights(
    weights: Path | str | None,
    complete: Dataset,
    comparison: Comparison,
    *,
    directions: bool,
    draws: bool,
) -> Weights:
    """Find the weights of what translates and draws samples.

    Raises:
        UsageError: the model cannot make a volume of a comparison from its source alone, or draws no samples.
    """
    from attcl_cli.methods.bundled import choose_weights
    from attcl_cli.methods.weights import find_weights

    named = None if weights is None else find_weights(str(weights))
    chosen = named or choose_weights(complete).weights
    hint = "choose weights of attcl-gan with -w"
    rule = chosen.info.rule
    if directions:
        for case in comparison.cases:
            for pair in case.pairs:
                if rule.sources_for(pair.modality, case.sources) != case.sources:
                    raise UsageError(
                        f"--directions: {chosen.path} makes {pair.modality} from {rule.describe(pair.modality)}, "
                        f"expected a model that makes it from {case.source} alone",
                        hint,
                        code="direction-not-possible",
                    )
    if draws and not chosen.info.method.styled:
        raise UsageError(
            f"--samples, --lpips-diversity: {chosen.info.settings.method} has one style per target, "
            "expected weights that draw style samples",
            hint,
            code="no-style-samples",
        )
    for case in comparison.cases if draws else ():
        for pair in case.pairs:
            if not rule.sources_for(pair.modality, case.sources):
                raise UsageError(
                    f"--samples, --lpips-diversity: {chosen.path} makes {pair.modality} from "
                    f"{rule.describe(pair.modality)}, expected weights that make it from "
                    f"{case.made_from} ({case.case})",
                    hint,
                    code="samples-not-possible",
                )
    return chosen


def _record_weights(
    record: RunRecord, comparison: Comparison, chosen: Weights | None, progress: Progress
) -> None:
    """Note the weights that make what is scored, or made it, and which cases they learned from."""
    if chosen is not None:
        record.weights = {"name": chosen.name, "sha256": chosen.sha256}
        progress.say(f"weights: {chosen.path}")
    if not comparison.by_direction:
        makers = comparison.weights
        record.extra["completed_by"] = [
            {"name": name, "sha256": sha256} for sha256, name in makers.items()
        ]
        if chosen is not None and makers and chosen.sha256 not in makers:
            progress.say(
                f"note: samples are drawn by {chosen.name}, but the volumes were made by {', '.join(makers.values())}: "
                "name those weights with -w"
            )
    record.extra["training_patients"] = comparison.training_patients


def _with_training_patients(
    comparison: Comparison, completed: Path, complete: Dataset, chosen: Weights | None
) -> Comparison:
    """Add which of the cases are of training patients of what made them: with `--directions`, of the weights named."""
    from attcl_cli.completion import provenance
    from attcl_cli.methods.weights import BUNDLED

    patient_of = complete.patient_of
    cases = [name for name in comparison.made_by if name in {it.case for it in comparison.cases}]
    seen: Sequence[str] = ()
    learned = True
    if not comparison.by_direction:
        made_by = {case: comparison.made_by[case] for case in cases}
        origin = provenance.read_provenance(completed, made_by, patient_of)
        seen, learned = origin.seen, origin.known
    elif chosen is not None and chosen.name != BUNDLED:
        seen = provenance.training_cases(cases, chosen.info.trained_on, patient_of)
    caveat = provenance.describe_training_patients(seen, cases, patient_of)
    return replace(comparison, seen=tuple(seen), learned=learned, caveat=caveat)


def _warn_of_labels(complete: Dataset, comparison: Comparison, progress: Progress) -> list[str]:
    """Report label maps that lie off the brain; return the paragraphs of the page about them."""
    problems = labels_off_brain(complete, {case.case for case in comparison.cases})
    for problem in problems:
        progress.say(f"warning: {problem.message}; {problem.hint}")
    return [f"{problem.message}: its tumour scores may mean nothing." for problem in problems]


def _quantiles(
    complete: Dataset, comparison: Comparison, num_workers: int, progress: Progress
) -> Quantiles:
    """Read how the intensities of the targets are distributed in the patients of the complete dataset."""
    from attcl_cli.scoring.baselines import measure_quantiles

    quantiles = measure_quantiles(
        complete, comparison.targets, num_workers=num_workers, progress=progress
    )
    alone = [name for name in comparison.targets if len(quantiles.tables[name]) <= 1]
    if alone:
        progress.say(
            f"note: no matched-copy of {', '.join(alone)}: no other patient of {complete.root} has it"
        )
    return quantiles


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir()) / "attcl-score"
    except FileNotFoundError as error:
        raise AttclError(
            f"{os.environ.get('TMPDIR', '/tmp')}: no folder for temporary files, expected a writable one",
            "name one in TMPDIR, then run the same command again",
            code="no-temporary-folder",
        ) from error


def _report_what_is_replaced(output: Path, progress: Progress) -> None:
    earlier = output / "summary.json"
    if earlier.is_file():
        from attcl_cli.scoring import summary

        names = summary.metrics_of(earlier)
        progress.say(
            f"{output}: the scores of an earlier run are replaced ({', '.join(names) or 'none'})"
        )


def _weights_of(comparison: Comparison, record: RunRecord) -> str:
    """Return the names of the weights that made what is scored, for the page."""
    if comparison.by_direction:
        return str(record.weights["name"])
    return ", ".join(sorted(set(comparison.weights.values()))) or "unknown"
