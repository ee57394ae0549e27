"""`attcl segment` without its command line: train a segmenter per input, test it, record it.

How the result is shown is left to the caller; `attcl evaluate` and `attcl export` are in files of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.confined import make_parent
from attcl_cli.data import slices
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.unchanged import fingerprint
from attcl_cli.devices import Precision
from attcl_cli.errors import InterruptedRun, UsageError, as_note, counted, quoted, some
from attcl_cli.files import is_within, remove_files, write_csv
from attcl_cli.processes import Processes, join
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report.viewers import SLICES, require_viewer
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import RunRecord, has_saved, precision_for, read_record
from attcl_cli.segmentation import evaluation, report, summary
from attcl_cli.segmentation.inputs import (
    REAL,
    Input,
    Size,
    StudyPlan,
    lacks_truth,
    plan_inputs,
    require_inputs,
)
from attcl_cli.segmentation.report import SCORES_FILE, SUMMARY_FILE, Scores
from attcl_cli.segmentation.request import (
    DEFAULT_OUTPUT,
    FILES,
    TRAINING,
    VALIDATION,
    Study,
    TrainingRequest,
    as_text,
    choose_inputs,
    clear,
    open_ground_truth,
    open_study,
    refuse_place,
    remove_results,
    require_free,
    resumed,
)
from attcl_cli.segmentation.settings import SegmentSettings, resolve
from attcl_cli.segmentation.summary import Row

if TYPE_CHECKING:
    import torch

    from attcl_cli.segmentation.slices import SegmentationStore

_SLOW_CPU_PIXELS = 128


@dataclass(frozen=True)
class SegmentResult:
    """The result of `segment`.

    Attributes:
        output: the folder of weights, predictions and scores.
        device: of the networks.
        labels: how the dataset's label maps write the classes.
        settings: of the training.
        cases: input -> split -> number of cases.
        left_out: ids of the cases without a label map.
        notes: what a user should know before the training starts.
        scores: of the test split; None after a dry run, and if not `main`.
        main: whether this process writes files and talks; the others of `torchrun` do not.
    """

    output: Path
    device: str
    labels: str
    settings: SegmentSettings
    cases: Mapping[str, Mapping[str, int]]
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()
    scores: Scores | None = field(default=None, repr=False)
    main: bool = True


def segment(
    ori: Path | str = "data",
    cpl: Path | str = "out",
    *,
    truth: Path | str | None = None,
    output: Path | str | None = None,
    input: str | None = None,
    compare: bool = False,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    per_slice: bool = False,
    allow_missing: bool = False,
    resume: Path | str | None = None,
    layout: str = "auto",
    modalities: Path | str | None = None,
    background: BackgroundOption = "auto",
    force: bool = False,
    device: str = "auto",
    precision: Precision | None = None,
    num_workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    viewer: str = SLICES,
    progress: Progress = SILENT,
) -> SegmentResult:
    """Train a segmenter per input, and score each on the test split.

    Args:
        ori: the incomplete dataset, as prepare-splits wrote it.
        cpl: the folder of the synthesised volumes.
        truth: the complete dataset, needed by input `real`; None: the one that `splits.json` names.
        output: the folder for weights, predictions and scores; None: `segment`, or the resumed run's.
        input: `completed` (also if None), `incomplete`, `real`, or a modality that all cases have.
        compare: train on one modality, incomplete, completed and real; exclusive with `input`.
        preset: a key of `settings.PRESETS`; None: `small` on a CPU, `base` on a GPU.
        overrides: single settings, see `SegmentSettings`.
        per_slice: also score each slice by itself, as the paper does.
        allow_missing: leave out cases without a label map.
        resume: the folder of a run to resume; exclusive with all that says what is trained, but more `steps`.
        layout: a key of `layouts.LAYOUTS`, or `auto`.
        modalities: a TOML file with other modality names or another naming.
        background: what is background in the images (`volumes.load`).
        force: take volumes that a check of their voxels refuses.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `fp32` or `bf16`; None: fp32, or that of the resumed run.
        num_workers: cases read ahead.
        overwrite: replace what an earlier run left in `output`.
        dry_run: check everything, train nothing.
        viewer: `slices`, or `niivue`: the page also has NiiVue, with the worst cases in whole.
        progress: listens.

    Raises:
        UsageError: an option is impossible, or `output` holds something else.
        AttclError: a file is unusable (all problems together), or the training fails.
        InterruptedRun: Ctrl-C; the run can be resumed.
    """
    require_viewer(viewer)
    request = TrainingRequest(
        ori=str(ori),
        cpl=str(cpl),
        truth=as_text(truth),
        layout=layout,
        modalities=as_text(modalities),
        background=background,
        force=force,
        input=input,
        allow_missing=allow_missing,
        compare=compare,
        preset=preset,
        overrides=tuple((overrides or {}).items()),
        per_slice=per_slice,
    )
    if resume is not None:
        if output is not None:
            raise UsageError(
                "--output: given with --resume, expected one of them",
                "leave --output out: a run is resumed in its own folder",
                code="options-exclude-each-other",
            )
        request = resumed(Path(resume), request)
    folder = Path(resume or output or DEFAULT_OUTPUT)
    study = open_study(request)
    names, notes = choose_inputs(request, study.data)
    require_inputs(study.data, names)
    resolve(request.preset, dict(request.overrides))  # wrong usage is known before torch is loaded
    ground_truth = open_ground_truth(request, study, names)
    if request.compare and ground_truth is not None and lacks_truth(study.data, ground_truth):
        names = tuple(name for name in names if name != REAL)
        notes.append("real is left out: the complete dataset lacks volumes as well")
        ground_truth = None
    refuse_place(folder, request, study, ground_truth)
    from attcl_cli import devices
    from attcl_cli.training.loop import share_of
    from attcl_cli.training.request import about_default_preset, default_preset

    unsaid = resume is None and preset is None
    if unsaid:
        request = replace(request, preset=default_preset(devices.select(device).type))
    resolved = resolve(request.preset, dict(request.overrides))
    with as_note(notes, when=dry_run):
        require_free(
            folder,
            command="segment",
            config=request.config,
            resume=resume is not None,
            overwrite=overwrite,
            flag="--output" if resume is None else "--resume",
        )
    place, processes = join(device)
    share_of(resolved.batch_size, processes)
    progress = RunLog(progress if processes.main else SILENT)
    plan = plan_inputs(
        study.data,
        study.splits,
        names,
        completed=Path(request.cpl),
        truth=ground_truth,
        size=Size(resolved.image_size, resolved.canvas),
        allow_missing=request.allow_missing,
        force=request.force,
        progress=progress,
    )
    notes += plan.notes
    if resume is None:
        size = {"image_size": resolved.image_size, "canvas": resolved.canvas}
        notes += slices.notes_of_canvas(study.data, study.data.cases, **size)
    if unsaid and request.preset is not None:
        progress.say(about_default_preset(place, request.preset))
    if place.type == "cpu" and resolved.image_size > _SLOW_CPU_PIXELS:
        progress.say(
            f"note: no GPU; {resolved.image_size}-pixel networks take days on a CPU. "
            "To try things out: attcl segment --preset tiny"
        )
    for note in notes:
        progress.say(f"note: {note}")
    result = SegmentResult(
        output=folder,
        device=str(place),
        labels=str(plan.convention),
        settings=resolved,
        cases={name: item.counts for name, item in plan.inputs.items()},
        left_out=plan.unlabelled,
        notes=tuple(notes),
        main=processes.main,
    )
    if dry_run:
        return result
    processes.wait()  # before the main process puts something into the folder
    session = _Session(
        request=request,
        study=study,
        plan=plan,
        settings=resolved,
        output=folder,
        device=place,
        processes=processes,
        precision=precision_for(precision, Path(resume) if resume is not None else None),
        workers=num_workers,
        resume=resume is not None,
        overwrite=overwrite,
        notes=tuple(notes),
        viewer=viewer,
        progress=progress,
    )
    return replace(result, scores=_train_and_test(session))


@dataclass(frozen=True)
class _Session:
    """The request, the plan and the machine of one run."""

    request: TrainingRequest
    study: Study
    plan: StudyPlan
    settings: SegmentSettings
    output: Path
    device: torch.device
    processes: Processes
    precision: Precision
    workers: int
    resume: bool
    overwrite: bool
    notes: tuple[str, ...]
    viewer: str
    progress: RunLog

    @property
    def resume_hint(self) -> str:
        """Return the command that resumes this run."""
        return f"attcl segment --resume {quoted(self.output)}"

    def folder(self, name: str) -> Path:
        """Return where the results of an input go."""
        return self.output / name if self.request.compare else self.output


def _train_and_test(session: _Session) -> Scores | None:
    """Train all inputs, then test them in the main process; None in the others."""
    output, plan, settings = session.output, session.plan, session.settings
    main = session.processes.main
    lists = {
        "trained_on": plan.cases("train"),
        "validated_on": plan.cases("val"),
        "tested_on": plan.cases("test"),
    }
    fingerprints = _fingerprints(plan)
    if session.resume:
        _require_same_cases(output, lists)
        _require_same_files(output, fingerprints)
        _require_resumable(session)
    elif main:
        clear(
            output,
            command="segment",
            config=session.request.config,
            overwrite=session.overwrite,
            remove=_remove_earlier,
        )
    warnings = report.leaks(session.study.provenance, tuple(plan.inputs))
    record = RunRecord(
        output / "run.json",
        "segment",
        again=f"resume with: {session.resume_hint}",
        alone=not session.resume,
        config=session.request.config,
        seed=settings.seed,
        device=str(session.device),
        extra={
            "settings": settings.model_dump(mode="json"),
            "precision": session.precision,
            "processes": session.processes.count,
            **lists,
            "left_out": list(plan.unlabelled),
            "completed_by": list(session.study.provenance.weights),
            "warnings": warnings,
            "inputs": {},
            "fingerprints": fingerprints,
            FILES: _predictions(session),
        },
    )
    if session.resume:
        record.resume()
    described: dict[str, dict[str, Any]] = record.extra["inputs"]
    rows: list[Row] = []
    with record.recorded(session.progress) if main else nullcontext(), _interrupted(session):
        weights = {name: _train(session, item, record.live) for name, item in plan.inputs.items()}
        session.processes.leave()  # testing takes longer than the others would wait
        if not main:
            return None
        for name, item in plan.inputs.items():
            described[name] = evaluation.describe(
                item, weights[name], str(weights[name].relative_to(output))
            )
            rows += _test(session, item, weights[name], described[name])
            for case, path in evaluation.prediction_files(item, session.folder(name)).items():
                record.add(case, "done", seconds=0, outputs=[str(path.relative_to(output))])
        scores = Scores(
            rows=tuple(rows),
            inputs=tuple(plan.inputs),
            missing=plan.unlabelled,
            warnings=tuple(warnings),
            notes=session.notes,
            trained=report.describe_training(settings, len(lists["trained_on"]), described),
            seed=settings.seed,
        )
        facts = {
            "labels": str(plan.convention),
            "inputs": {name: item.explained for name, item in plan.inputs.items()},
            "settings": settings.model_dump(mode="json"),
            "segmenters": described,
        }
        report.write(output, scores, facts=facts)
        _write_page(session, scores, described)
        record.results = [*report.files(output), *weights.values()]
    return scores


def _write_page(
    session: _Session, scores: Scores, described: Mapping[str, Mapping[str, Any]]
) -> None:
    from attcl_cli.segmentation.page import write_report
    from attcl_cli.training.stats import STATS_FILE

    plan, settings = session.plan, session.settings
    steps = dict.fromkeys(str(facts["steps"]) for facts in described.values())
    write_report(
        session.output,
        scores,
        title="Tumour segmentation",
        data=session.study.data,
        predictions={
            name: evaluation.prediction_files(item, session.folder(name))
            for name, item in plan.inputs.items()
        },
        facts={
            "training cases": str(len(plan.cases("train"))),
            "steps": f"{settings.steps:,}; weights of step {', '.join(steps)}",
            "labels": str(plan.convention),
            "device": str(session.device),
        },
        settings=settings,
        statistics={name: session.folder(name) / STATS_FILE for name in plan.inputs},
        viewer=session.viewer,
        progress=session.progress,
    )


@contextmanager
def _interrupted(session: _Session) -> Iterator[None]:
    """Turn a Ctrl-C for which the loop does not wait into an error that says how to resume."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise InterruptedRun(
            f"{session.output}: interrupted, what was finished is kept",
            f"resume with: {session.resume_hint}",
            code="interrupted",
        ) from stop


def _require_same_cases(output: Path, lists: Mapping[str, Sequence[str]]) -> None:
    before = read_record(output)
    for name, cases in lists.items():
        if before.get(name, cases) != cases:
            raise UsageError(
                f"--resume: {output} was {name.replace('_', ' ')} other cases than those here, expected the same",
                "start a new run with another --output",
                code="other-cases",
            )


def _predictions(session: _Session) -> list[str]:
    """Return all label maps that the test writes, relative to the output."""
    return [
        str(path.relative_to(session.output))
        for name, item in session.plan.inputs.items()
        for path in evaluation.prediction_files(item, session.folder(name)).values()
    ]


def _fingerprints(plan: StudyPlan) -> dict[str, dict[str, str]]:
    """Return input -> case -> fingerprint of the files that it is shown as, with its label map."""
    return {
        name: {
            sample.case: fingerprint(chain(*sample.channels, sample.segmentation))
            for samples in item.splits.values()
            for sample in samples
        }
        for name, item in plan.inputs.items()
    }


def _require_same_files(output: Path, now: Mapping[str, Mapping[str, str]]) -> None:
    """Check that no volume was made anew since a run began; one of an earlier version has not noted them."""
    before = read_record(output).get("fingerprints", {})
    changed = [
        f"{case} ({name})"
        for name, cases in now.items()
        for case, value in cases.items()
        if before.get(name, {}).get(case, value) != value
    ]
    if changed:
        raise UsageError(
            f"--resume: images or label maps have changed since {output} was begun, of {some(changed)}; "
            "expected the same",
            "start a new run with another --output, or with --overwrite in place of --resume",
            code="inputs-changed",
        )


def _require_resumable(session: _Session) -> None:
    """Check that each trained input has its checkpoint, and no more steps than the others are to have."""
    from attcl_cli.training.state import STATE_FILE, require_checkpoint, state_step

    record = read_record(session.output)
    ended = has_saved(record) or bool(record.get("inputs"))  # which are noted after their training
    for name in session.plan.inputs:
        if ended:  # a kill may fall between the weights and the checkpoint
            require_checkpoint(session.folder(name))
        file = session.folder(name) / STATE_FILE
        done = state_step(file) if file.is_file() else 0
        if done > session.settings.steps:
            raise UsageError(
                f"--steps: {session.settings.steps:,}, but {name} has been trained for {counted(done, 'step')}, "
                "expected as many or more",
                "resume with more steps: all inputs have the same number",
                code="resumed-run-changed",
            )


def _train(session: _Session, item: Input, live: Callable[[], None]) -> Path:
    """Train on an input, unless an earlier run has finished that, and return its weights file."""
    from attcl_cli.methods.weights import WEIGHTS_FILE
    from attcl_cli.segmentation.network import SegmenterInfo
    from attcl_cli.segmentation.training import train
    from attcl_cli.training.loop import LoopHooks
    from attcl_cli.training.state import STATE_FILE, state_step

    settings, progress, folder = session.settings, session.progress, session.folder(item.name)
    make_parent(folder / STATE_FILE)
    begun = session.resume and (folder / STATE_FILE).is_file()
    if begun and state_step(folder / STATE_FILE) >= settings.steps:
        begun = (
            folder / WEIGHTS_FILE
        ).is_file()  # otherwise they were removed, and are trained anew
    if begun and state_step(folder / STATE_FILE) >= settings.steps:
        if session.processes.main:
            _remove_caches(folder)  # a kill after the last step left them
        return folder / WEIGHTS_FILE
    store = _slices(session, item, "train", folder / TRAINING)
    validation = _slices(session, item, "val", folder / VALIDATION) if item.splits["val"] else None
    info = SegmenterInfo(
        settings=settings,
        input=item.name,
        channels=item.channels,
        convention=session.plan.convention.name,
        background=session.request.background,
        trained_on=store.cases,
        validated_on=validation.cases if validation is not None else (),
    )
    import monai.losses.dice  # noqa: F401 - takes seconds, which are no part of the first step

    with progress.bar(settings.steps, f"train {item.name}", every_seconds=10) as bar:

        def on_step(step: int, values: Mapping[str, float]) -> None:
            bar("  ".join(f"{key} {value:.3f}" for key, value in values.items()), to=step)
            live()

        def on_stop() -> None:
            progress.say(
                "stopping after this step; everything is saved "
                "(press Ctrl-C again to quit without saving)"
            )

        train(
            info,
            store,
            folder,
            validation=validation,
            device=session.device,
            precision=session.precision,
            processes=session.processes,
            resume=begun,
            resume_hint=session.resume_hint,
            workers=session.workers,
            hooks=LoopHooks(on_step=on_step, on_stop=on_stop),
        )
    if session.processes.main:
        _remove_caches(folder)
    return folder / WEIGHTS_FILE


def _remove_earlier(output: Path, record: Mapping[str, Any]) -> None:
    """Remove what an earlier run of `segment` wrote, by name; predictions are in its record."""
    from attcl_cli.methods.weights import WEIGHTS_FILE
    from attcl_cli.training.state import BEST_FILE, STATE_FILE
    from attcl_cli.training.stats import STATS_FILE

    remove_results(output)
    files = (WEIGHTS_FILE, STATE_FILE, BEST_FILE, STATS_FILE, SCORES_FILE, SUMMARY_FILE)
    inputs = {*record.get("inputs", {}), *record.get("fingerprints", {})}
    for folder in (output, *(output / name for name in sorted(inputs))):
        if is_within(folder, output):
            _remove_caches(folder)
            for name in files:
                (folder / name).unlink(missing_ok=True)


def _remove_caches(folder: Path) -> None:
    """Remove the slices that a finished training does not need any more."""
    from attcl_cli.segmentation.slices import CACHE_FILES

    for cache in (TRAINING, VALIDATION):
        remove_files(folder / cache, CACHE_FILES)


def _slices(session: _Session, item: Input, part: str, folder: Path) -> SegmentationStore:
    """Return the slices of a split, made by the main process unless an interrupted run has made them."""
    from attcl_cli.data.slices import is_store
    from attcl_cli.segmentation import slices
    from attcl_cli.segmentation.network import size_of

    samples = item.splits[part]
    if session.processes.main and not (session.resume and is_store(folder)):
        with session.progress.bar(len(samples), f"read {part} {item.name}") as bar:
            slices.build(
                samples,
                folder,
                size=size_of(session.settings),
                convention=session.plan.convention,
                on_case=bar,
                workers=session.workers,
            )
    session.processes.wait()
    return slices.open_store(folder)


def _test(session: _Session, item: Input, weights: Path, described: Mapping[str, Any]) -> list[Row]:
    """Predict and score the test split; read instead what an earlier run finished with these very weights."""
    from attcl_cli.segmentation.network import load_segmenter

    folder = session.folder(item.name)
    earlier = _finished(item, folder, described) if session.resume else None
    if earlier is not None:
        return earlier
    rows: list[Row] = []
    with session.progress.bar(item.counts["test"], f"test {item.name}") as bar:
        for case, of_case in evaluation.predict_and_score(
            load_segmenter(weights, session.device),
            item,
            folder,
            convention=session.plan.convention,
            per_slice=session.request.per_slice,
            workers=session.workers,
        ):
            rows += of_case
            bar(case)
    if session.request.compare:
        write_csv(folder / SCORES_FILE, Row, rows)
        summary.write_summary(folder / SUMMARY_FILE, summary.summarise(rows), [], described)
    return rows


def _finished(item: Input, folder: Path, described: Mapping[str, Any]) -> list[Row] | None:
    if not all((folder / name).is_file() for name in (SUMMARY_FILE, SCORES_FILE)):
        return None
    same = summary.weights_of(folder / SUMMARY_FILE) == described["sha256"]
    if not same or not all(
        path.is_file() for path in evaluation.prediction_files(item, folder).values()
    ):
        return None
    return summary.read_rows(folder / SCORES_FILE)
