"""`attcl evaluate` without its command line: score label maps of the test split, or a trained segmenter.

How the result is shown is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.data.background import BackgroundOption
from attcl_cli.errors import AttclError, UsageError, as_note, counted
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report.viewers import SLICES, require_viewer
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import RunRecord
from attcl_cli.segmentation import evaluation, page, report
from attcl_cli.segmentation.inputs import Input, Size, plan_inputs, plan_truths, require_inputs
from attcl_cli.segmentation.report import Scores
from attcl_cli.segmentation.request import (
    DEFAULT_OUTPUT,
    FILES,
    Request,
    as_text,
    clear,
    open_ground_truth,
    open_study,
    refuse_place,
    require_free,
)
from attcl_cli.segmentation.summary import Row

if TYPE_CHECKING:
    from attcl_cli.segmentation.network import SegmenterInfo


@dataclass(frozen=True)
class EvaluateResult:
    """The result of `evaluate`.

    Attributes:
        output: the folder of the scores.
        cases: how many test cases are scored.
        scores: None after a dry run.
        notes: why the run itself would be refused, after a dry run.
    """

    output: Path
    cases: int
    scores: Scores | None = None
    notes: tuple[str, ...] = ()


def evaluate(
    predictions: Path | str | None = None,
    *,
    weights: Path | str | None = None,
    ori: Path | str = "data",
    cpl: Path | str = "out",
    truth: Path | str | None = None,
    output: Path | str | None = None,
    input: str | None = None,
    per_slice: bool = False,
    allow_missing: bool = False,
    layout: str = "auto",
    modalities: Path | str | None = None,
    background: BackgroundOption | None = None,
    force: bool = False,
    device: str = "auto",
    num_workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    viewer: str = SLICES,
    progress: Progress = SILENT,
) -> EvaluateResult:
    """Score label maps of the test split, whatever made them, or a trained segmenter.

    Args:
        predictions: a folder of label maps, `<case>.nii.gz` each; exclusive with `weights`.
        weights: a segmenter's folder or weights file.
        ori: the incomplete dataset, as prepare-splits wrote it.
        cpl: the folder of the synthesised volumes.
        truth: the complete dataset, needed by input `real`; None: the one that `splits.json` names.
        output: the folder for the scores; None: `segment-<name of predictions>`, or `segment-evaluated`.
        input: what the segmenter is shown; None: what it was trained on. Only with `weights`.
        per_slice: also score each slice by itself, as the paper does.
        allow_missing: leave out cases without label map or prediction.
        layout: a key of `layouts.LAYOUTS`, or `auto`.
        modalities: a TOML file with other modality names or another naming.
        background: what is background in the images (`volumes.load`); None: as the segmenter was trained.
        force: show the segmenter volumes that a check of their voxels refuses. Only with `weights`.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; only a segmenter needs it.
        num_workers: cases read ahead.
        overwrite: replace what an earlier evaluation left in `output`.
        dry_run: check everything, score nothing.
        viewer: `slices`, or `niivue`: the page also has NiiVue, with the worst cases in whole.
        progress: listens.

    Raises:
        UsageError: an option is impossible, or `output` holds something else.
        AttclError: a file is unusable (all problems together).
        InterruptedRun: Ctrl-C or another signal; finished files are kept.
    """
    require_viewer(viewer)
    request = Request(
        ori=str(ori),
        cpl=str(cpl),
        truth=as_text(truth),
        layout=layout,
        modalities=as_text(modalities),
        background="auto" if background is None else background,
        force=force,
        input=input,
        allow_missing=allow_missing,
    )
    options = _Options(
        request, per_slice, num_workers, overwrite, dry_run, viewer, RunLog(progress)
    )
    if weights is not None and predictions is None:
        folder = Path(output or f"{DEFAULT_OUTPUT}-evaluated")
        own = background is None
        return _evaluate_segmenter(Path(weights), folder, device, options, own_background=own)
    if predictions is None or weights is not None:
        raise UsageError(
            f"PREDICTIONS: {'missing' if predictions is None else 'given with --weights'}, "
            "expected either a folder of label maps or --weights SEGMENTER",
            "attcl evaluate PREDICTIONS scores label maps; attcl evaluate --weights SEGMENTER predicts first",
            code="one-of-two",
        )
    for flag, given in {"--input": input is not None, "--force": force}.items():
        if given:
            raise UsageError(
                f"{flag}: given with PREDICTIONS, expected it with --weights alone",
                f"leave {flag} out: predictions are what they are",
                code="options-exclude-each-other",
            )
    folder = Path(output or f"{DEFAULT_OUTPUT}-{Path(predictions).resolve().name}")
    return _evaluate_predictions(Path(predictions), folder, options)


@dataclass(frozen=True)
class _Options:
    """The options that both kinds of evaluation share."""

    request: Request
    per_slice: bool
    workers: int
    overwrite: bool
    dry_run: bool
    viewer: str
    progress: RunLog

    def config(self, key: str, path: Path) -> dict[str, Any]:
        """Return the request as `run.json` keeps it."""
        return {**self.request.config, "per_slice": self.per_slice, key: str(path)}

    def notes_unless_free(
        self, output: Path, config: Mapping[str, Any], reads: Path
    ) -> tuple[str, ...]:
        """Check the output folder as `require_free` does; a dry run notes why the run would be refused."""
        notes: list[str] = []
        with as_note(notes, when=self.dry_run):
            require_free(
                output,
                command="evaluate",
                config=config,
                overwrite=self.overwrite,
                reads=[reads],
            )
        return tuple(notes)


def _evaluate_predictions(predictions: Path, output: Path, options: _Options) -> EvaluateResult:
    request = options.request
    study = open_study(request)
    if not predictions.is_dir():
        raise AttclError(
            f"{predictions}: no such folder, expected predictions named CASE.nii.gz",
            "name the folder that holds them",
            code="predictions-missing",
        )
    refuse_place(output, request, study, None)
    config = options.config("predictions", predictions)
    notes = options.notes_unless_free(output, config, predictions)
    plan = plan_truths(study.data, study.splits, allow_missing=request.allow_missing)
    samples = plan.inputs[""].splits["test"]
    files, missing = evaluation.find_predictions(predictions, samples)
    if not files or (missing and not request.allow_missing):
        raise AttclError(
            f"{predictions}: {len(missing)} of {counted(len(samples), 'test case')} without a prediction, expected all "
            f"(the first: {missing[0]}.nii.gz)",
            "add them, or count them with --allow-missing",
            code="predictions-missing",
        )
    chosen = [sample for sample in samples if sample.case in files]
    if options.dry_run:
        return EvaluateResult(output, len(chosen), notes=notes)
    name = predictions.resolve().name
    rows: list[Row] = []
    scored = evaluation.score_predictions(
        files,
        chosen,
        plan.convention,
        name=name,
        per_slice=options.per_slice,
        workers=options.workers,
    )
    with options.progress.bar(len(chosen), "evaluate") as bar:
        for of_case in scored:
            rows += of_case
            bar(of_case[0].case)
    clear(output, command="evaluate", config=config, overwrite=options.overwrite)
    record = RunRecord(
        output / "run.json",
        "evaluate",
        config=config,
        alone=True,
        extra={"tested_on": [sample.case for sample in chosen]},
    )
    with record.recorded(options.progress):
        scores = Scores(tuple(rows), (name,), missing=(*plan.unlabelled, *missing))
        report.write(output, scores, facts={"labels": str(plan.convention)})
        page.write_report(
            output,
            scores,
            title=f"Scores of the label maps in {name}",
            data=study.data,
            predictions={name: files},
            facts={"labels": str(plan.convention)},
            viewer=options.viewer,
            progress=options.progress,
        )
        record.results = report.files(output)
    return EvaluateResult(output, len(chosen), scores)


def _evaluate_segmenter(
    weights: Path, output: Path, device: str, options: _Options, *, own_background: bool
) -> EvaluateResult:
    """Predict and score; with `own_background`, volumes are read as those that the segmenter was trained on."""
    request = options.request
    study = open_study(request)
    if request.input is not None:
        require_inputs(study.data, [request.input])
    config = options.config("weights", weights)
    notes = options.notes_unless_free(output, config, weights)
    from attcl_cli import devices
    from attcl_cli.segmentation.network import load_segmenter, read_info, weights_file

    info, file = read_info(weights), weights_file(weights)
    if own_background:
        request = replace(request, background=info.background)
        study = replace(study, data=replace(study.data, background=info.background))
    name = request.input or info.input
    ground_truth = open_ground_truth(request, study, (name,))
    refuse_place(output, request, study, ground_truth)
    place = devices.select(device)
    plan = plan_inputs(
        study.data,
        study.splits,
        (name,),
        completed=Path(request.cpl),
        truth=ground_truth,
        size=Size(info.settings.image_size, info.settings.canvas),
        parts=("test",),
        allow_missing=request.allow_missing,
        force=request.force,
        progress=options.progress,
    )
    for note in plan.notes:
        options.progress.say(f"note: {note}")
    item = plan.inputs[name]
    _require_channels(info, item)
    if options.dry_run:
        return EvaluateResult(output, item.counts["test"], notes=notes)
    tested_on = plan.cases("test")
    warnings = [
        *report.leaks(study.provenance, (name,)),
        *report.seen(tested_on, (*info.trained_on, *info.validated_on), study.data.patient_of),
    ]
    described = evaluation.describe(item, file, str(file))
    record = RunRecord(
        output / "run.json",
        "evaluate",
        config=config,
        alone=True,
        seed=info.settings.seed,
        device=str(place),
        weights={"name": str(file), "sha256": described["sha256"]},
        extra={
            "settings": info.settings.model_dump(mode="json"),
            "background": study.data.background,
            "trained_on": list(info.trained_on),
            "validated_on": list(info.validated_on),
            "tested_on": tested_on,
            "left_out": list(plan.unlabelled),
            "completed_by": list(study.provenance.weights),
            "warnings": warnings,
            "inputs": {name: described},
            FILES: [
                str(path.relative_to(output))
                for path in evaluation.prediction_files(item, output).values()
            ],
        },
    )
    clear(output, command="evaluate", config=config, overwrite=options.overwrite)
    with record.recorded(options.progress):
        rows: list[Row] = []
        with options.progress.bar(item.counts["test"], f"test {name}") as bar:
            for case, of_case in evaluation.predict_and_score(
                load_segmenter(file, place),
                item,
                output,
                convention=plan.convention,
                per_slice=options.per_slice,
                workers=options.workers,
            ):
                rows += of_case
                bar(case)
        for case, path in evaluation.prediction_files(item, output).items():
            record.add(case, "done", seconds=0, outputs=[str(path.relative_to(output))])
        scores = Scores(
            rows=tuple(rows),
            inputs=(name,),
            missing=plan.unlabelled,
            warnings=tuple(warnings),
            notes=plan.notes,
            trained=report.describe_training(
                info.settings, len(info.trained_on), {name: described}
            ),
            seed=info.settings.seed,
        )
        facts = {
            "labels": str(plan.convention),
            "inputs": {name: item.explained},
            "settings": info.settings.model_dump(mode="json"),
            "segmenters": {name: described},
        }
        report.write(output, scores, facts=facts)
        page.write_report(
            output,
            scores,
            title=f"Scores of the segmenter in {weights.name}",
            data=study.data,
            predictions={name: evaluation.prediction_files(item, output)},
            facts={
                "training cases": str(len(info.trained_on)),
                "steps": f"{info.settings.steps:,}; weights of step {described['steps']}",
                "labels": str(plan.convention),
                "device": str(place),
            },
            settings=info.settings,
            viewer=options.viewer,
            progress=options.progress,
        )
        record.results = report.files(output)
    return EvaluateResult(output, scores.cases, scores)


def _require_channels(info: SegmenterInfo, item: Input) -> None:
    if info.channels != item.channels:
        raise UsageError(
            f"--weights: trained on {', '.join(info.channels)}, expected {', '.join(item.channels)} "
            f"for --input {item.name}",
            f"--input {info.input} is what these weights were trained on",
            code="other-channels",
        )
