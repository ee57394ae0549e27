"""`attcl train` as a function: checks everything, prepares the training slices, runs the loop, keeps the record.

Knows no terminal: talk goes to `progress`, the outcome is returned.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attcl_cli import devices
from attcl_cli.data import slices, splits
from attcl_cli.data.dataset import Case, Dataset, Source, check
from attcl_cli.data.phantom_cohort import is_phantom
from attcl_cli.data.slices import SliceStore
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, InterruptedRun, UsageError, raise_all
from attcl_cli.files import refuse_inside, sha256, write_whole
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import DEFAULT_PRESET, Settings, dump, read_settings, resolve
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report import pictures
from attcl_cli.run_record import RunRecord, precision_for
from attcl_cli.training import planning, trainer, validation
from attcl_cli.training.loop import share_of
from attcl_cli.training.request import (
    CPU_PRESET,
    data_of,
    default_preset,
    minutes_of,
    require_same_cases,
    require_tensorboard,
    require_usable,
    resumed_settings,
    run_folder,
    step_of,
    synthetic_volumes,
    training_cases,
    with_length,
)

_SLOW_CPU_PIXELS = 128  # networks for larger slices train for months on a CPU


@dataclass(frozen=True)
class TrainingResult:
    """What became of a run.

    Attributes:
        run_dir: its folder.
        settings: what was trained, and how long.
        device: of this process.
        cases: ids of the training cases; empty if packed slices stood in for a dataset.
        data: the dataset, or the folder of packed slices.
        weights: the weights file; None after a dry run.
        weights_step: the steps that these weights have seen; 0 after a dry run.
        finished_before: there was nothing to do: the run had reached its last step.
        main: whether this process writes files and talks; the others of `torchrun` return the same result.
    """

    run_dir: Path
    settings: Settings
    device: torch.device
    cases: tuple[str, ...]
    data: Path
    weights: Path | None = None
    weights_step: int = 0
    finished_before: bool = False
    main: bool = True


def train(
    data: Path | str | None = None,
    *,
    output: Path | str | None = None,
    method: str | None = None,
    preset: str | None = None,
    variant: str | None = None,
    config: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    resume: Path | str | None = None,
    layout: str = "auto",
    modalities: Path | str | None = None,
    bids_filter: Sequence[str] = (),
    device: str = "auto",
    precision: Precision | None = None,
    num_workers: int = 2,
    tensorboard: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> TrainingResult:
    """Learn to translate between the modalities that the training cases have.

    Args:
        data: what `prepare_splits` wrote, any dataset (then all its cases are used), or a folder of packed slices;
            None: the dataset of the run to resume, otherwise `data`.
        output: folder of the run; None: `runs/<time>-<method>`.
        method: a name of `METHODS`; None: what `config` says, otherwise AttCL-GAN.
        preset: sizes and what goes with them; None: `small` on a CPU, otherwise `base`.
        variant: a variant of the method.
        config: a TOML file of settings, stronger than the preset.
        overrides: single settings, stronger than all others.
        epochs: passes over the training slices; sets the number of steps.
        minutes: time for the whole run, or for what is added to the run to resume: its steps are chosen to fit.
        resume: the folder of a run to continue.
        layout: how the dataset is named (`open_dataset`).
        modalities: a TOML file with other modality names (`open_dataset`).
        bids_filter: of several files of a modality in BIDS, which is meant (`open_dataset`).
        device: auto, cpu, cuda, cuda:N or mps.
        precision: what networks compute in; None: as the run to resume, otherwise fp32.
        num_workers: cases read ahead.
        tensorboard: also write statistics for TensorBoard.
        dry_run: check everything, and train nothing.
        progress: hears how it goes.

    Raises:
        UsageError: options that do not fit together, nothing to resume, or a change that a checkpoint does not bear.
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: all problems of the dataset together; a loss is no longer finite; the device is out of memory.
    """
    started = time.monotonic()
    resume = Path(resume) if resume is not None else None
    output = Path(output) if output is not None else None
    if resume is not None and output is not None:
        raise UsageError(
            "--output: given with --resume, expected one of them",
            "leave --output out",
            code="options-exclude-each-other",
        )
    source = Source(
        Path(data) if data is not None else data_of(resume),
        layout,
        Path(modalities) if modalities is not None else None,
        tuple(bids_filter),
    )
    file = Path(config) if config is not None else None
    chosen = with_length(overrides or {}, file, epochs=epochs, minutes=minutes)
    usual = default_preset(devices.select(device).type)
    settings = (
        resumed_settings(resume, preset, method, variant, file, chosen)
        if resume is not None
        else resolve(
            preset=preset or usual, method=method, variant=variant, file=file, overrides=chosen
        )
    )
    first = step_of(resume) if resume is not None else 0
    if resume is not None and minutes is None and not {"steps", "epochs"} & chosen.keys():
        minutes = minutes_of(resume)  # of a run that is planned again, since it has no checkpoint
    place, processes = devices.join(device)
    progress = progress if processes.main else SILENT
    if resume is not None and first >= settings.steps and minutes is None and epochs is None:
        where = (
            "finished at" if first == settings.steps else f"expected {settings.steps} steps, is at"
        )
        progress.say(f"{resume}: {where} step {first}, nothing to do; --steps N continues")
        return TrainingResult(
            resume,
            settings,
            place,
            (),
            source.folder,
            finished_before=True,
            main=processes.main,
        )
    share_of(settings.batch_size, processes)
    if tensorboard:
        require_tensorboard()
    run_dir = processes.agree(run_folder(settings, output, resume))
    processes.wait()  # before the main process puts something there
    origin: Dataset | Path = source.folder
    cases: list[Case] = []
    validated: list[Case] = []
    if not slices.is_store(source.folder / slices.TRAINING_FOLDER):
        origin = source.open()
        cases, validated = training_cases(origin)
        require_usable(settings, origin, cases)
        problems = check(origin, cases=[*cases, *validated], values=True)
        raise_all([*synthetic_volumes(origin, cases), *problems])
        refuse_inside(run_dir, splits.originals_of(origin.root), flag="--output")
        if resume is not None:
            require_same_cases(resume, cases)
    precision = precision_for(precision, resume)
    if resume is not None:
        progress.say(f"{resume}: continues from step {first} in {precision}")
    elif preset is None and (file is None or "preset" not in read_settings(file)[0]):
        progress.say(
            f"device {place}: preset {usual} (the default: {CPU_PRESET} on a CPU, {DEFAULT_PRESET} on a GPU)"
        )
    _say_notes(settings, place, progress, timed=minutes is not None, resumed=resume is not None)
    planned = TrainingResult(
        run_dir,
        settings,
        place,
        tuple(case.id for case in cases),
        source.folder,
        main=processes.main,
    )
    if dry_run:
        return planned
    run = _TrainingRun(
        origin=origin,
        cases=cases,
        validated=validated,
        settings=settings,
        folder=run_dir,
        device=place,
        processes=processes,
        precision=precision,
        resume=resume is not None,
        first=first,
        started=started,
        minutes=minutes,
        kept=_kept(file, overrides or {}, resume),
        workers=num_workers,
        tensorboard=tensorboard,
        progress=progress,
    )
    run, steps = _train(run)
    processes.leave()
    weights = run_dir / WEIGHTS_FILE
    progress.say(f"{weights}: written, from step {steps} of {run.settings.steps}")
    return replace(planned, settings=run.settings, weights=weights, weights_step=steps)


def weights_sha256(result: TrainingResult) -> str:
    """Return the SHA-256 of the weights that a run wrote; empty after a dry run."""
    return sha256(result.weights) if result.weights is not None else ""


def _say_notes(
    settings: Settings, device: torch.device, progress: Progress, *, timed: bool, resumed: bool
) -> None:
    """Say that networks for such slices train for months on a CPU, and what a new run's settings bring with them."""
    for note in () if resumed else settings.notes:
        progress.say(f"note: {note}")
    if not timed and device.type == "cpu" and settings.side > _SLOW_CPU_PIXELS:
        progress.say(
            f"note: no GPU; {settings.side}-pixel networks take months on a CPU. "
            "To try things out: attcl train --preset tiny"
        )


@dataclass(frozen=True)
class _TrainingRun:
    """What one training run needs to know."""

    origin: Dataset | Path  # a dataset, or a folder of packed slices
    cases: Sequence[Case]
    validated: Sequence[Case]
    settings: Settings
    folder: Path
    device: torch.device
    processes: devices.Processes
    precision: Precision
    resume: bool
    first: int  # the step of the checkpoint to resume from; 0: none
    started: float  # the clock when the command began
    minutes: float | None  # that the run is to take; None: as long as its steps take
    kept: frozenset[str]  # settings that the user chose, which planning leaves as they are
    workers: int
    tensorboard: bool
    progress: Progress


def _train(run: _TrainingRun) -> tuple[_TrainingRun, int]:
    """Run the loop with its progress and `run.json`; return the run as planned, and the steps of its weights."""
    main, progress = run.processes.main, run.progress
    record = _record(run)
    if main:
        _write_settings(run)
    with record.recorded() if main else nullcontext(), _interrupted(run.folder):
        store = _slices(run, run.cases, slices.TRAINING_FOLDER)
        if store is None:
            raise AttclError(
                f"{run.origin}: no training slices, expected packed ones",
                "examples/pack_slices.py packs them",
                code="no-packed-slices",
            )
        record.extra["trained_on"] = list(store.trained_on)
        paired = _slices(run, run.validated, slices.VALIDATION_FOLDER)
        validate = _validation(paired, run) if paired else None
        run, pace = _with_steps(run, store, validate)
        if pace is not None:
            record.extra["measured_seconds"] = asdict(pace.costs)
        hooks = _hooks(run, validate, pace)
        steps = None
        while steps is None:
            record.config = run.settings.model_dump(mode="json")
            if main:
                _write_settings(run)
                record.start()
            try:
                steps = _loop(run, store, hooks)
            except planning.Shortened as shortened:
                progress.say(
                    f"step {shortened.step}: slower than planned, {shortened.settings.steps:,} steps "
                    f"instead of {run.settings.steps:,} to end in {run.minutes:g} minutes"
                )
                run = replace(run, settings=shortened.settings, first=shortened.step)
    if main:
        for cache in (slices.TRAINING_FOLDER, slices.VALIDATION_FOLDER):
            shutil.rmtree(run.folder / cache, ignore_errors=True)
    return run, steps


def _record(run: _TrainingRun) -> RunRecord:
    """Return the record of the run, not yet written."""
    dataset = None if isinstance(run.origin, Path) else run.origin
    origin = run.origin if isinstance(run.origin, Path) else run.origin.root
    phantoms = dataset is not None and all(is_phantom(dataset, case) for case in run.cases)
    return RunRecord(
        run.folder / "run.json",
        "train",
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
        },
    )


def _write_settings(run: _TrainingRun) -> None:
    write_whole(run.folder / "config.toml", dump(run.settings).encode())


def _kept(file: Path | None, overrides: Mapping[str, Any], resume: Path | None) -> frozenset[str]:
    """Return the settings that the user chose, or that the run to resume has, as far as a plan would change them."""
    chosen = {*overrides, *(read_settings(file)[0] if file is not None else ())}
    every = {"save_every", "sample_every"}
    return frozenset(every if resume is not None and step_of(resume) else every & chosen)


def _with_steps(
    run: _TrainingRun, store: SliceStore, validate: Callable[[Method], float] | None
) -> tuple[_TrainingRun, planning.Pace | None]:
    """Return the run with the steps that its epochs or minutes come to, and what watches over the minutes."""
    settings = run.settings
    if run.minutes is None:
        if settings.epochs:
            steps = planning.steps_of_epochs(settings, store)
            settings = settings.model_copy(update={"steps": steps})
            run.progress.say(f"{settings.epochs} epochs: {steps:,} steps")
        return replace(run, settings=settings), None
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
    run: _TrainingRun,
    validate: Callable[[Method], float] | None,
    pace: planning.Pace | None,
) -> trainer.Hooks:
    """Return what happens during the run; its bar is added by `_loop`."""
    board = _tensorboard(run.folder) if run.tensorboard and run.processes.main else None

    def on_log(line: Mapping[str, float]) -> None:
        if board is not None:
            board(line)
        if trainer.VALIDATION_SSIM in line:
            ssim = line[trainer.VALIDATION_SSIM]
            run.progress.say(
                f"step {line['step']}: in-brain SSIM {ssim:.3f} on the validation cases"
            )

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


def _loop(run: _TrainingRun, store: SliceStore, hooks: trainer.Hooks) -> int:
    """Train with a bar; return the steps that the weights have seen."""
    kind = METHODS[run.settings.method]
    with run.progress.bar(run.settings.steps, "train", every_seconds=10) as bar:

        def on_step(step: int, losses: Mapping[str, float]) -> None:
            bar(
                "  ".join(f"{key} {losses[key]:.3f}" for key in kind.shown if key in losses),
                to=step,
            )

        return trainer.train(
            run.settings,
            store,
            run.folder,
            device=run.device,
            precision=run.precision,
            processes=run.processes,
            resume=run.first > 0,
            hooks=replace(hooks, on_step=on_step),
        )


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
            f"resume with: attcl train --resume {run_dir}",
            code="interrupted",
        ) from stop


def _validation(store: SliceStore, run: _TrainingRun) -> Callable[[Method], float] | None:
    """Return how the method is judged while it trains."""
    settings = run.settings
    rule = METHODS[settings.method].sources(settings, store.modalities)
    return validation.make_validation(
        store, rule, run.device, seed=settings.seed, boxed=settings.crop > 0
    )


def _slices(run: _TrainingRun, cases: Sequence[Case], name: str) -> SliceStore | None:
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
    from torch.utils.tensorboard import SummaryWriter  # an optional package

    writer = SummaryWriter(str(folder / "tensorboard"))

    def on_log(record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return on_log
