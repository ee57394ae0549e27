"""`attcl train` as a function: checks everything that was asked for, then runs a `session`.

Knows no terminal: talk goes to `progress`, the outcome is returned. What is wrong with names is found before torch is
loaded.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli import devices
from attcl_cli.data import slices, splits
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Case, Dataset, Source
from attcl_cli.data.originals import folders_of, refuse_among_originals
from attcl_cli.data.preconditions import examine
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, as_note, counted, raise_all
from attcl_cli.files import sha256
from attcl_cli.methods.settings import Settings, notes_of, read_settings, require_names, resolve
from attcl_cli.methods.weights import WEIGHTS_FILE, find_weights
from attcl_cli.processes import Processes, join
from attcl_cli.progress import SILENT, Progress
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import finish_killed, precision_for, read_record
from attcl_cli.training.request import (
    about_default_preset,
    data_of,
    default_preset,
    minutes_of,
    read_as_before,
    require_free,
    require_one_place,
    require_run,
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

if TYPE_CHECKING:
    import torch

_NOT_VALIDATED = (
    "not validated, since no splits.json names validation cases with two modalities: the last weights are kept, "
    "whether they are worth having or not (attcl prepare-splits sets cases apart)"
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
        notes: what a user should know before the run starts.
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
    notes: tuple[str, ...] = ()
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
    background: BackgroundOption = "auto",
    force: bool = False,
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
        background: what is background in the volumes (`volumes.load`).
        force: take volumes that a check of their voxels refuses.
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
    require_one_place(output, resume)
    source = Source(
        Path(data) if data is not None else data_of(resume),
        layout,
        Path(modalities) if modalities is not None else None,
        tuple(bids_filter),
        background,
    )
    source, force = read_as_before(resume, source, force=force)
    file = Path(config) if config is not None else None
    chosen = with_length(overrides or {}, file, epochs=epochs, minutes=minutes)
    if resume is None:
        require_names(method, preset, file)
        origin = _open(source)
    else:
        require_run(resume)
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
    place, processes = join(device)
    progress = RunLog(progress if processes.main else SILENT)
    if (
        resume is not None
        and first >= settings.steps
        and minutes is None
        and not chosen.get("epochs")
    ):
        return _finished_before(
            resume, settings, place, source.folder, first, progress, processes, dry_run=dry_run
        )
    from attcl_cli.training.loop import share_of

    share_of(settings.batch_size, processes)
    if tensorboard:
        require_tensorboard()
    run_dir = processes.agree(run_folder(settings, output, resume))
    notes: list[str] = []
    if resume is None:
        with as_note(notes, when=dry_run):
            require_free(run_dir)
    processes.wait()  # before the main process puts something there
    if resume is not None:
        origin = _open(source)
    cases, validated, remarks = _checked_cases(
        origin, settings, run_dir, resume, force=force, progress=progress
    )
    notes += remarks + _notes(
        settings, place, cases, precision, timed=minutes is not None, resumed=resume is not None
    )
    precision = precision_for(precision, resume)
    if resume is not None:
        progress.say(f"{resume}: continues from step {first} in {precision}")
    elif preset is None and (file is None or "preset" not in read_settings(file)[0]):
        progress.say(about_default_preset(place, usual))
    for note in notes:
        progress.say(f"note: {note}")
    planned = TrainingResult(
        run_dir,
        settings,
        place,
        tuple(case.id for case in cases),
        source.folder,
        notes=tuple(notes),
        main=processes.main,
    )
    if dry_run:
        return planned
    from attcl_cli.training.session import Session, run_session

    run = Session(
        origin=origin,
        source=source,
        force=force,
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
    run, steps = run_session(run)
    processes.leave()
    weights = run_dir / WEIGHTS_FILE
    progress.say(f"{weights}: written, from step {steps} of {run.settings.steps}")
    return replace(planned, settings=run.settings, weights=weights, weights_step=steps)


def weights_sha256(result: TrainingResult) -> str:
    """Return the SHA-256 of the weights that a run wrote; empty after a dry run."""
    return sha256(result.weights) if result.weights is not None else ""


def _open(source: Source) -> Dataset | Path:
    """Return the dataset, or the folder itself if it holds packed slices."""
    packed = source.folder / slices.TRAINING_FOLDER
    if slices.is_store(packed):
        return source.folder
    if (packed / slices.DATA_FILE).is_file():
        raise AttclError(
            f"{packed}: slices without {slices.INDEX_FILE}, expected all parts of packed slices",
            "examples/pack_slices.py unpack names the parts that lack: bring and unpack them",
            code="packed-slices-incomplete",
        )
    return source.open()


def _finished_before(
    run_dir: Path,
    settings: Settings,
    device: torch.device,
    data: Path,
    step: int,
    progress: Progress,
    processes: Processes,
    *,
    dry_run: bool,
) -> TrainingResult:
    """Say that a run to resume has reached its last step, and return what it made.

    If it was killed after that step, its record is finished, and what it left is removed.
    """
    weights = run_dir / WEIGHTS_FILE
    if step == settings.steps and not weights.is_file():
        raise AttclError(
            f"{weights}: removed, expected the weights of a finished run",
            "start a new run",
            code="output-removed",
        )
    if processes.main and not dry_run and step == settings.steps:
        _finish_page(run_dir, settings, progress)
        finish_killed(run_dir)
        slices.remove_caches(run_dir)
    where = (
        "finished at"
        if step == settings.steps
        else f"expected {counted(settings.steps, 'step')}, is at"
    )
    progress.say(f"{run_dir}: {where} step {step}, nothing to do; --steps N continues")
    return TrainingResult(
        run_dir,
        settings,
        device,
        tuple(read_record(run_dir).get("trained_on") or ()),
        data,
        weights=weights if weights.is_file() else None,
        weights_step=find_weights(str(weights)).info.steps if weights.is_file() else 0,
        finished_before=True,
        main=processes.main,
    )


def _finish_page(run_dir: Path, settings: Settings, progress: Progress) -> None:
    """Write the page of a run that was broken off after its last step; one that is there stays.

    Raises:
        AttclError: the page cannot be written.
    """
    from attcl_cli.training.report import RunPage

    page = RunPage(run_dir, settings, read_record(run_dir), progress)
    if not page.is_done():
        page.done()


def _checked_cases(
    origin: Dataset | Path,
    settings: Settings,
    run_dir: Path,
    resume: Path | None,
    *,
    force: bool,
    progress: Progress,
) -> tuple[list[Case], list[Case], list[str]]:
    """Return the training and the validation cases of a dataset, checked, and notes; none of packed slices."""
    if isinstance(origin, Path):
        if resume is not None:
            packed = slices.open_store(origin / slices.TRAINING_FOLDER)
            require_same_cases(resume, packed.trained_on)
        return [], [], []
    cases, validated = training_cases(origin)
    require_usable(settings, origin, cases)
    findings = examine(origin, [*cases, *validated], force=force, progress=progress)
    raise_all([*synthetic_volumes(origin, cases), *findings.problems])
    refuse_among_originals(run_dir, folders_of(origin), flag="--output")
    if resume is not None:
        require_same_cases(resume, [case.id for case in cases])
    notes = [*origin.notes, *(problem.message for problem in splits.leaks_of(origin))]
    notes += findings.notes
    if not validated:
        notes.append(_NOT_VALIDATED)
    if resume is None:
        size = {"image_size": settings.image_size, "canvas": settings.canvas}
        notes += slices.notes_of_canvas(origin, cases, **size)
    return cases, validated, notes


def _notes(
    settings: Settings,
    device: torch.device,
    cases: Sequence[Case],
    precision: Precision | None,
    *,
    timed: bool,
    resumed: bool,
) -> list[str]:
    """Return what a new run's settings bring with them, what makes it faster, and what makes it useless."""
    notes = [] if resumed else list(notes_of(settings))
    if not timed and device.type == "cpu" and settings.side > _SLOW_CPU_PIXELS:
        notes.append(
            f"no GPU; {settings.side}-pixel networks take months on a CPU. "
            "To try things out: attcl train --preset tiny"
        )
    faster = devices.fast_bf16(device) if precision is None and not resumed else None
    if faster is not None:
        share = "less than half" if faster == "amx_bf16" else "about three quarters of"
        notes.append(
            f"this CPU has {faster}: with --precision bf16 steps at full resolution take {share} the time"
        )
    if len({case.patient for case in cases}) == 1:
        notes.append(
            "one training patient: networks that saw a single patient are of no use on others; add patients"
        )
    beside = {name for case in cases if len(case.files) > 1 for name in case.files}
    alone = sorted({name for case in cases for name in case.files} - beside)
    if alone and getattr(settings, "lambda_pair", 1) > 0:  # at 0 no true pair teaches at all
        notes.append(
            f"{', '.join(alone)}: in no training case beside another modality, so that no true pair teaches how to "
            "make it; add cases that have both"
        )
    return notes


def _kept(file: Path | None, overrides: Mapping[str, Any], resume: Path | None) -> frozenset[str]:
    """Return the settings that the user chose, or that the run to resume has, as far as a plan would change them."""
    chosen = {*overrides, *(read_settings(file)[0] if file is not None else ())}
    every = {"save_every", "sample_every"}
    return frozenset(every if resume is not None and step_of(resume) else every & chosen)
