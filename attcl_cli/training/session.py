"""One run of training, from its slices to its weights: plan of the steps, loop, validation, `run.json`.

Everything has been checked before, by `run` and `request`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attcl_cli import devices
from attcl_cli.data import slices
from attcl_cli.data.dataset import Case, Dataset, Source
from attcl_cli.data.phantom_cohort import is_phantom
from attcl_cli.data.slices import SliceStore
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, InterruptedRun, UsageError, counted, quoted
from attcl_cli.files import write_whole
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings, dump
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.processes import Processes
from attcl_cli.report import pictures
from attcl_cli.report.page import REPORT_FILE
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import RunRecord
from attcl_cli.training import planning, report, trainer, validation
from attcl_cli.training.request import reading_of, step_of


@dataclass(frozen=True)
class Session:
    """What one run needs to know."""

    origin: Dataset | Path  # a dataset, or a folder of packed slices
    source: Source  # as the user named it
    force: bool  # take volumes that a check of their voxels refuses
    cases: Sequence[Case]
    validated: Sequence[Case]
    settings: Settings
    folder: Path
    device: torch.device
    processes: Processes
    precision: Precision
    resume: bool
    first: int  # the step of the checkpoint to resume from; 0: none
    started: float  # the clock when the command began
    minutes: float | None  # that the run is to take; None: as long as its steps take
    kept: frozenset[str]  # settings that the user chose, which planning leaves as they are
    workers: int
    tensorboard: bool
    progress: RunLog  # hears how it goes, and keeps the log


def run_session(run: Session) -> tuple[Session, int]:
    """Run the loop with its progress and `run.json`; return the run as planned, and the steps of its weights."""
    main, progress = run.processes.main, run.progress
    record = _record(run)
    with _begun(run, record) if main else nullcontext(), _interrupted(run.folder):
        store = _slices(run, run.cases, slices.TRAINING_FOLDER)
        if store is None:
            raise AttclError(
                f"{run.origin}: no training slices, expected packed ones",
                "examples/pack_slices.py packs them",
                code="no-packed-slices",
            )
        record.extra |= {"trained_on": list(store.trained_on), "present": _present(store)}
        run = _settled(run, store)
        paired = _slices(run, run.validated, slices.VALIDATION_FOLDER)
        validate = _validation(paired, run) if paired else None
        judged = len(paired.volumes_by_case()) if paired and validate else 0
        record.extra["validation"] = {"cases": judged} if judged else {}
        run, pace = _with_steps(run, store, validate)
        if pace is not None:
            record.extra["measured_seconds"] = asdict(pace.costs)
        hooks = _hooks(run, _beside_a_copy(validate, record), pace)
        steps = None
        while steps is None:
            record.config = run.settings.model_dump(mode="json")
            if main:
                _write_settings(run)
                record.start()
            try:
                steps = _loop(run, store, hooks, record, pace)
            except planning.Shortened as shortened:
                progress.say(
                    f"step {shortened.step}: slower than planned, {counted(shortened.settings.steps, 'step')} "
                    f"instead of {run.settings.steps:,} to end in {run.minutes:g} min"
                )
                run = replace(run, settings=shortened.settings, first=shortened.step)
        if main:
            slices.remove_caches(run.folder)
            kept = report.read_statistics(run.folder).at(steps)
            if kept is not None:
                record.extra["validation"][report.KEPT_SSIM] = round(kept, 6)
            _page(run, record).done()
            names = (WEIGHTS_FILE, "config.toml", REPORT_FILE)
            record.results = [run.folder / name for name in names]
    return run, steps


def _record(run: Session) -> RunRecord:
    """Return the record of the run, not yet written."""
    dataset = None if isinstance(run.origin, Path) else run.origin
    origin = run.origin if isinstance(run.origin, Path) else run.origin.root
    phantoms = dataset is not None and all(is_phantom(dataset, case) for case in run.cases)
    record = RunRecord(
        run.folder / "run.json",
        "train",
        again=f"resume with: attcl train --resume {quoted(run.folder)}",
        config=run.settings.model_dump(mode="json"),
        seed=run.settings.seed,
        device=str(run.device),
        extra={
            "precision": run.precision,
            "processes": run.processes.count,
            "data": str(origin.resolve()),
            "trained_on": [case.id for case in run.cases] or None,
            **({"simulated": True} if phantoms else {}),  # completion warns of such weights
            **({"minutes": run.minutes} if run.minutes is not None else {}),
            **({} if dataset is None else reading_of(run.source, force=run.force)),
        },
        alone=not run.resume,
    )
    if run.resume:
        record.resume()
    return record


@contextmanager
def _begun(run: Session, record: RunRecord) -> Iterator[None]:
    """Write record and settings of a run. The record of a new one claims its folder: no second run begins there."""
    with record.recorded(run.progress):
        _write_settings(run)
        yield


def _write_settings(run: Session) -> None:
    write_whole(run.folder / "config.toml", dump(run.settings).encode())


def _settled(run: Session, store: SliceStore) -> Session:
    """Return the run with the settings that its slices decide, and say which these are."""
    settings: Settings = METHODS[run.settings.method].settled(run.settings, store)
    before = run.settings.model_dump()
    for name, value in settings.model_dump().items():
        if value != before[name]:
            run.progress.say(f"{name}: {value}, as the training slices have it")
    return replace(run, settings=settings)


def _with_steps(
    run: Session, store: SliceStore, validate: Callable[[Method], float] | None
) -> tuple[Session, planning.Pace | None]:
    """Return the run with the steps that its epochs or minutes come to, and what watches over the minutes."""
    settings = run.settings
    if run.minutes is None:
        if settings.epochs:
            steps = planning.steps_of_epochs(settings, store)
            if steps < run.first:
                raise UsageError(
                    f"--epochs: {counted(settings.epochs, 'epoch')} of {counted(steps, 'step')}, but "
                    f"{counted(run.first, 'step')} are done, expected as many or more",
                    "resume with more epochs",
                    code="resumed-run-changed",
                )
            settings = settings.model_copy(update={"steps": steps})
            run.progress.say(f"{counted(settings.epochs, 'epoch')}: {counted(steps, 'step')}")
        return replace(run, settings=settings), None
    run.progress.say(f"measuring how long steps take, to end in {run.minutes:g} min")
    costs = planning.measure(
        settings,
        store,
        run.folder,
        device=run.device,
        precision=run.precision,
        processes=run.processes,
        validate=validate,
    )
    budget = 60 * run.minutes
    left = budget - (time.monotonic() - run.started)
    settings = run.processes.agree(
        planning.planned(settings, costs, left, first=run.first, kept=run.kept)
    )
    run.progress.say(
        planning.describe(settings, costs, run.minutes, validates=validate is not None)
    )
    pace = planning.Pace(settings, costs, run.started, budget, run.first)
    return replace(run, settings=settings), pace


def _hooks(
    run: Session,
    validate: Callable[[Method], float] | None,
    pace: planning.Pace | None,
) -> trainer.Hooks:
    """Return what happens during the run; its words, its page and its bar are added by `_loop`."""
    board = _tensorboard(run.folder) if run.tensorboard and run.processes.main else None

    def on_log(line: Mapping[str, float]) -> None:
        if board is not None:
            board(line)

    def on_stop() -> None:
        run.progress.say(
            "stopping after this step; everything is saved (press Ctrl-C again to quit without saving)"
        )

    def on_checkpoint(step: int) -> None:
        shorter = run.processes.agree(pace.shortened(step)) if pace is not None else None
        if shorter is not None:
            raise planning.Shortened(step, shorter)

    return trainer.Hooks(
        on_log=on_log,
        on_stop=on_stop,
        on_checkpoint=on_checkpoint,
        draw=pictures.write_grid,
        validate=validate,
    )


def _loop(
    run: Session,
    store: SliceStore,
    hooks: trainer.Hooks,
    record: RunRecord,
    pace: planning.Pace | None,
) -> int:
    """Train with a bar, in words and with a page; return the steps that the weights have seen."""
    steps = run.settings.steps
    page = _page(run, record)
    before = [
        point for point in report.read_statistics(run.folder).validation if point[0] <= run.first
    ]
    words = report.Words(
        steps, report.phases_of(run.settings), run.first, report.Statistics(before).best
    )

    def seconds_left(step: int) -> float | None:
        if pace is not None:
            return max(run.started + pace.budget - time.monotonic(), 0)
        return words.seconds_left(step)

    def say_phase(step: int) -> None:
        if text := words.phase(step):
            run.progress.say(text)

    def on_log(line: Mapping[str, float]) -> None:
        hooks.on_log(line)
        if trainer.VALIDATION_SSIM in line:
            step = int(line["step"])
            words.copy = record.extra["validation"].get(report.COPY_SSIM)
            run.progress.say(
                words.validated(step, line[trainer.VALIDATION_SSIM], seconds_left(step))
            )

    def on_checkpoint(step: int) -> None:
        if run.processes.main:
            page.running(step, seconds_left(step))
        words.mark(step)
        hooks.on_checkpoint(step)

    if run.processes.main:
        page.running(run.first)
        run.progress.say(f"{run.folder / REPORT_FILE}: a page of the run, open it in a browser")
    say_phase(run.first)
    with (
        _page_of_an_end(page) if run.processes.main else nullcontext(),
        run.progress.bar(steps, "train", every_seconds=10) as bar,
    ):

        def on_step(step: int, _losses: Mapping[str, float]) -> None:
            bar(to=step, left=seconds_left(step) if pace is not None else None)
            if step < steps:
                say_phase(step)
            record.live()

        try:
            return trainer.train(
                run.settings,
                store,
                run.folder,
                device=run.device,
                precision=run.precision,
                processes=run.processes,
                resume=run.first > 0,
                hooks=replace(hooks, on_step=on_step, on_log=on_log, on_checkpoint=on_checkpoint),
            )
        finally:
            if (memory := devices.peak_memory_mb(run.device)) is not None:
                record.extra["gpu_memory_mb"] = memory


def _page(run: Session, record: RunRecord) -> report.RunPage:
    """Return the page of the run as it is planned now."""
    facts = {"device": record.device, **record.extra}
    return report.RunPage(run.folder, run.settings, facts, run.progress)


@contextmanager
def _page_of_an_end(page: report.RunPage) -> Iterator[None]:
    """Write the page of a run that ends before its last step; all else is saved by then."""
    try:
        yield
    except AttclError as error:
        page.broken_off(error)
        raise


def _present(store: SliceStore) -> list[dict[str, Any]]:
    """Return which modalities are there together, and in how many training cases; the most frequent first."""
    counts = Counter(
        tuple(name for name in store.modalities if name in volumes)
        for volumes in store.volumes_by_case().values()
    )
    return [{"modalities": list(names), "cases": count} for names, count in counts.most_common()]


def _beside_a_copy(
    validate: Callable[[validation.Judged], float] | None, record: RunRecord
) -> Callable[[Method], float] | None:
    """Return a validation that first notes, once, what a copy of the source reaches."""
    if validate is None:
        return None

    def beside(method: Method) -> float:
        if report.COPY_SSIM not in record.extra["validation"]:
            copy = validation.CopyOfSource(method.context, method.stride)
            record.extra["validation"][report.COPY_SSIM] = round(validate(copy), 6)
            # now: the page of a run that is killed after its last step has it from there
            if record.begun:
                record.start()
        return validate(method)

    return beside


@contextmanager
def _interrupted(run_dir: Path) -> Iterator[None]:
    """Turn a Ctrl-C for which the loop does not wait into an error that says what is kept, and how to resume."""
    try:
        yield
    except KeyboardInterrupt as stop:
        step = step_of(run_dir)
        kept = f"the checkpoint of step {step} is kept" if step else "no step was saved yet"
        raise InterruptedRun(
            f"{run_dir}: interrupted, {kept}",
            f"resume with: attcl train --resume {quoted(run_dir)}",
            code="interrupted",
        ) from stop


def _validation(store: SliceStore, run: Session) -> Callable[[validation.Judged], float] | None:
    """Return how the method is judged while it trains."""
    settings = run.settings
    rule = METHODS[settings.method].sources(settings, store.modalities)
    return validation.make_validation(
        store, rule, run.device, seed=settings.seed, boxed=settings.crop > 0
    )


def _slices(run: Session, cases: Sequence[Case], name: str) -> SliceStore | None:
    """Return packed slices, those of an interrupted run, or new ones, made by the main process; None without cases."""
    settings = run.settings
    if isinstance(run.origin, Path):
        folder = run.origin / name
        if not slices.is_store(folder):
            return None
        store = slices.open_store(folder)
        side = store.data.shape[-1]
        if side != settings.image_size:
            raise UsageError(
                f"{folder}: slices of {side} pixels, expected {settings.image_size} (image_size)",
                "pack them again with this --image-size, or choose another --preset",
                code="packed-slices-of-another-size",
            )
        return store
    if not cases:
        return None
    folder = run.folder / name
    if run.processes.main and not (run.resume and slices.is_store(folder)):
        with run.progress.bar(len(cases), name) as bar:
            slices.build(
                run.origin,
                cases,
                folder,
                image_size=settings.image_size,
                canvas=settings.canvas,
                labels=METHODS[settings.method].learns_labels,
                span=settings.slice_span if name == slices.TRAINING_FOLDER else "middle",
                on_case=bar,
                workers=run.workers,
            )
    run.processes.wait()
    return slices.open_store(folder)


def _tensorboard(folder: Path) -> Callable[[Mapping[str, float]], None]:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional package

    writer = SummaryWriter(str(folder / "tensorboard"))

    def on_log(record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return on_log
