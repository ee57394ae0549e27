"""`attcl train`: prepares the training slices and runs the loop with its progress, pictures and `run.json`."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from attcl_cli import devices
from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.data import slices, splits
from attcl_cli.data.dataset import Case, Dataset, Source, check
from attcl_cli.data.slices import SliceStore
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, InterruptedRun, UsageError, nearest, raise_all
from attcl_cli.files import refuse_inside, sha256, write_whole
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import FIXED, Settings, dump, explain, resolve
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.report import pictures
from attcl_cli.run_record import RunRecord, precision_for, read_record
from attcl_cli.training import trainer as loop
from attcl_cli.training import validation as validate
from attcl_cli.training.state import STATE_FILE, state_step

_SLOW_CPU_PIXELS = 128  # networks for larger slices train for months on a CPU


def train(
    source: Source,
    output: Path | None,
    *,
    preset: str | None = None,
    variant: str | None = None,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: Path | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    workers: int = 2,
    tensorboard: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Prepares the training slices and trains."""
    if resume is not None and output is not None:
        raise UsageError(
            "--output: given with --resume, expected one of them", "leave --output out"
        )
    settings = _settings(preset, variant, config, overrides or {}, resume)
    kind = METHODS[settings.method]
    first = _step_of(resume) if resume is not None else 0
    if first >= settings.steps:
        where = (
            "finished at" if first == settings.steps else f"expected {settings.steps} steps, is at"
        )
        told = f"{where} step {first}, nothing to do; --steps N goes on"
        terminal.say(f"{resume}: {told}", quiet=talk.quiet)
        return
    place, processes = devices.join(device)
    loop.require_shares(settings, processes)
    if tensorboard:
        _require_tensorboard()
    run_dir = processes.agree(_run_folder(settings, output, resume))
    processes.wait()  # before the main process puts something there
    origin: Dataset | Path = source.folder
    cases: list[Case] = []
    validation: list[Case] = []
    if not slices.is_store(source.folder / slices.TRAINING_FOLDER):
        origin = source.open()
        kind.needs(settings, origin.modalities)  # a modality that nobody knows is told at once
        cases, validation = _training_cases(origin)
        _require_usable(settings, origin, cases)
        problems = check(origin, cases=[*cases, *validation], values=True)
        raise_all([*_synthetic(origin, cases), *problems])
        refuse_inside(run_dir, splits.originals_of(origin.root), flag="--output")
        if resume is not None:
            _require_same_cases(resume, cases)
    precision = precision_for(precision, resume)
    quiet = talk.quiet or not processes.main
    _say_first(settings, place, resume, first, precision, quiet=quiet)
    described = {"run": str(run_dir), "device": str(place), "cases": len(cases)}
    if dry_run:
        told = f"{len(cases)} cases" if cases else f"the slices in {source.folder}"
        _say_plan(settings, told, described, talk)
        return
    run = _TrainingRun(
        origin=origin,
        cases=cases,
        validation=validation,
        settings=settings,
        folder=run_dir,
        device=place,
        processes=processes,
        precision=precision,
        resume=resume is not None,
        first=first,
        workers=workers,
        tensorboard=tensorboard,
        talk=talk,
    )
    steps = _train(run)
    processes.leave()
    if not processes.main:
        return
    weights = run_dir / WEIGHTS_FILE
    terminal.say(f"{weights}: written, from step {steps} of {settings.steps}", quiet=talk.quiet)
    if talk.as_json:
        outcome = {"steps": steps, "weights": str(weights), "sha256": sha256(weights)}
        terminal.document({**described, **outcome})
    else:
        talk.result(str(weights))


def _say_first(
    settings: Settings,
    place: torch.device,
    resume: Path | None,
    first: int,
    precision: Precision,
    *,
    quiet: bool,
) -> None:
    """What a user should know before it takes long."""
    if resume is not None:
        terminal.say(f"{resume}: goes on from step {first} in {precision}", quiet=quiet)
    if place.type == "cpu" and settings.image_size > _SLOW_CPU_PIXELS:
        terminal.say(
            f"note: no GPU; {settings.image_size}-pixel networks take months on a CPU. "
            "To try things out: attcl train --preset tiny",
            quiet=quiet,
        )


def _say_plan(settings: Settings, told: str, described: Mapping[str, Any], talk: Terminal) -> None:
    """What a dry run would have done."""
    if talk.as_json:
        terminal.document({**described, "settings": settings.model_dump(mode="json")})
        return
    talk.result(f"would train on {told}, on {described['device']}, into {described['run']}\n")
    talk.result(explain(settings))


def data_of(run_dir: Path | None) -> Path:
    """The dataset that a run was trained on; `data/` where there is no run, or it does not say."""
    told = read_record(run_dir).get("data") if run_dir is not None else None
    return Path(told) if isinstance(told, str) else Path("data")


def _settings(
    preset: str | None,
    variant: str | None,
    file: Path | None,
    overrides: Mapping[str, Any],
    resume: Path | None,
) -> Settings:
    """The settings of a new run, or those of the run to resume with what is changed in them.

    Raises:
        UsageError: nothing to resume, an unknown method, or a change that the run's checkpoint cannot bear.
    """
    if resume is not None and preset is not None:
        raise UsageError(
            "--preset: given with --resume, expected one of them",
            "a run keeps the sizes it was started with",
        )
    if resume is None:
        chosen = resolve(
            preset=preset or "base", variant=variant, file=file, overrides=dict(overrides)
        )
        _require_method(chosen)
        return chosen
    own = resume / "config.toml"
    if not own.is_file():
        raise UsageError(
            f"--resume: {resume} has no config.toml, expected the folder of a run",
            "start without --resume, or name another run",
        )
    if not (resume / STATE_FILE).is_file() and not (resume / "run.json").is_file():
        raise UsageError(
            f"--resume: {resume} has no checkpoint, expected the folder of a run",
            "start without --resume, or name another run",
        )
    before = resolve(preset="base", file=own)
    asked = resolve(preset="base", variant=variant, file=file or own, overrides=dict(overrides))
    _require_method(asked)
    was, now = before.model_dump(), asked.model_dump()
    problems: list[AttclError] = [
        UsageError(
            f"--resume: {resume} was started with {key} {was[key]!r}, found {now[key]!r}, expected the same",
            "leave out what changes it, or start a new run",
        )
        for key in FIXED
        if was[key] != now[key]
    ]
    raise_all(problems)
    return asked


def _require_method(settings: Settings) -> None:
    if settings.method not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(
            f"--method: {settings.method!r}, expected one of {known}",
            nearest(settings.method, METHODS),
        )


def _step_of(run_dir: Path) -> int:
    """The step of a run's checkpoint; 0 where it was stopped before its first one."""
    path = run_dir / STATE_FILE
    return state_step(path) if path.is_file() else 0


def _require_usable(settings: Settings, dataset: Dataset, cases: Sequence[Case]) -> None:
    """There must be two modalities, and some case with what a method that needs certain sources learns from."""
    known = sorted({name for case in cases for name in case.files})
    if len(known) == 1:
        raise AttclError(
            f"{dataset.root}: {known[0]} alone in {len(cases)} training cases, expected two modalities at least",
            "add the volumes of another modality, of any of the cases",
        )
    needs = METHODS[settings.method].needs(settings, dataset.modalities)
    if not any(needs.values()):
        return
    if any(
        {target, *needed} <= set(case.files) for case in cases for target, needed in needs.items()
    ):
        return
    wanted = " or ".join(
        f"{target} and {', '.join(needed)} together" for target, needed in needs.items()
    )
    raise AttclError(
        f"{dataset.root}: none of {len(cases)} training cases has {wanted}, expected one at least",
        "train a general model, which takes any sources: leave plave_target out",
    )


def _synthetic(dataset: Dataset, cases: Sequence[Case]) -> list[AttclError]:
    """Volumes that attcl made are no truth to learn from: their labels lie beside them."""
    found = [
        f"{name} of {case.id}" for case in cases for name in dataset.synthetic(case, case.files)
    ]
    if not found:
        return []
    return [
        AttclError(
            f"{dataset.root}: {len(found)} volumes have a label that says they are synthetic (the first: {found[0]}), "
            "expected real ones to learn from",
            "train on the dataset that was completed: --data ORIGINALS",
        )
    ]


def _require_same_cases(run_dir: Path, cases: Sequence[Case]) -> None:
    """A resumed run must see the patients that it was started with, and no others."""
    before = read_record(run_dir).get("trained_on")
    now = [case.id for case in cases]
    if before is not None and before != now:
        raise UsageError(
            f"--resume: {run_dir} was trained on {len(before)} other cases than the {len(now)} here, "
            "expected the same",
            "name the run's own dataset with --data",
        )


def _run_folder(settings: Settings, output: Path | None, resume: Path | None) -> Path:
    """Where the run goes: an existing one to resume, else a new folder."""
    if resume is not None:
        return resume
    folder = output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{settings.method}"
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(
            f"--output: {folder} cannot be made ({existing} is a file), expected a folder",
            "choose another --output",
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"--output: {folder} is not empty, expected a new folder",
            f"choose another --output, or go on with: attcl train --resume {folder}",
        )
    return folder


def _training_cases(dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """The training split (all cases of a dataset that nobody split), and the validation cases with a pair."""
    made = splits.read_splits(dataset.root)
    cases = [case for case in dataset.cases if made is None or case.id in made.names("train")]
    if not cases:
        raise AttclError(
            f"{dataset.root}: no training case, expected at least one",
            "run attcl prepare-splits with a larger --fractions or --sizes",
        )
    chosen = made.names("val") if made else ()
    validation = [case for case in dataset.cases if case.id in chosen and len(case.files) > 1]
    return cases, validation


@dataclass(frozen=True)
class _TrainingRun:
    """What one training run needs to know."""

    origin: Dataset | Path  # a dataset, or a folder of packed slices
    cases: Sequence[Case]
    validation: Sequence[Case]
    settings: Settings
    folder: Path
    device: torch.device
    processes: devices.Processes
    precision: Precision
    resume: bool
    first: int  # the step of the checkpoint to resume from; 0: none
    workers: int
    tensorboard: bool
    talk: Terminal


def _train(run: _TrainingRun) -> int:
    """Runs the loop with its progress, pictures and `run.json`; returns the steps that the weights have seen."""
    settings, main = run.settings, run.processes.main
    kind = METHODS[settings.method]
    record = RunRecord(
        run.folder / "run.json",
        "train",
        config=settings.model_dump(mode="json"),
        seed=settings.seed,
        device=str(run.device),
        extra={
            "precision": run.precision,
            "processes": run.processes.count,
            "data": str(
                (run.origin if isinstance(run.origin, Path) else run.origin.root).resolve()
            ),
            "trained_on": [case.id for case in run.cases] or None,
        },
    )
    if main:
        write_whole(run.folder / "config.toml", dump(settings).encode())
    quiet = run.talk.quiet or not main
    note = _tensorboard(run.folder) if run.tensorboard and main else loop.Hooks().on_log

    def on_log(line: Mapping[str, float]) -> None:
        note(line)
        if loop.VALIDATION_SSIM in line:
            terminal.say(
                f"step {line['step']}: in-brain SSIM {line[loop.VALIDATION_SSIM]:.3f} on the validation cases",
                quiet=quiet,
            )

    with record.recorded() if main else nullcontext(), _interrupted(run.folder):
        store = _slices(run, run.cases, slices.TRAINING_FOLDER, quiet=quiet)
        if store is None:
            raise AttclError(
                f"{run.origin}: no training slices, expected packed ones",
                "examples/pack_slices.py packs them",
            )
        record.extra["trained_on"] = list(store.trained_on)
        paired = _slices(run, run.validation, slices.VALIDATION_FOLDER, quiet=quiet)
        score = _validation(paired, run) if paired else None
        with Terminal(quiet=quiet).bar(settings.steps, "train", every_seconds=10) as bar:

            def on_step(step: int, losses: Mapping[str, float]) -> None:
                shown = (f"{key} {losses[key]:.3f}" for key in kind.shown if key in losses)
                bar("  ".join(shown), to=step)

            def on_stop() -> None:
                told = "stopping after this step; all will be saved (a second Ctrl-C stops at once)"
                terminal.say(told, quiet=quiet)

            steps = loop.train(
                settings,
                store,
                run.folder,
                device=run.device,
                precision=run.precision,
                processes=run.processes,
                resume=run.first > 0,
                hooks=loop.Hooks(on_step, on_log, on_stop, pictures.write_grid, score),
            )
    if main:
        for cache in (slices.TRAINING_FOLDER, slices.VALIDATION_FOLDER):
            shutil.rmtree(run.folder / cache, ignore_errors=True)
    return steps


@contextmanager
def _interrupted(run_dir: Path) -> Iterator[None]:
    """Ctrl-C where the loop does not wait for the end of a step: says what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        step = _step_of(run_dir)
        kept = f"the checkpoint of step {step} is kept" if step else "no step was saved yet"
        raise InterruptedRun(
            f"{run_dir}: interrupted, {kept}", f"go on with: attcl train --resume {run_dir}"
        ) from stop


def _validation(store: SliceStore, run: _TrainingRun) -> Callable[[Method], float] | None:
    """How the method is judged while it trains."""
    settings, kind = run.settings, METHODS[run.settings.method]
    if kind.accepts == "one":
        return validate.on_pairs(store, run.device, seed=settings.seed)
    needs = kind.needs(settings, store.modalities)
    return validate.on_cases(store, run.device, needs=needs, seed=settings.seed)


def _slices(
    run: _TrainingRun, cases: Sequence[Case], name: str, *, quiet: bool
) -> SliceStore | None:
    """Packed slices, those that an interrupted run left, or new ones, made by the main process; None without cases."""
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
            )
        return store
    if not cases:
        return None
    folder = run.folder / name
    if run.processes.main and not (run.resume and slices.is_store(folder)):
        with Terminal(quiet=quiet).bar(len(cases), name) as bar:
            slices.build(
                run.origin,
                cases,
                folder,
                image_size=settings.image_size,
                canvas=settings.canvas,
                labels=METHODS[settings.method].learns_labels,
                on_case=bar,
                workers=run.workers,
            )
    run.processes.wait()
    return slices.open_store(folder)


def _require_tensorboard() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard: the package tensorboard is not installed, expected it",
            "pip install tensorboard",
        )


def _tensorboard(folder: Path) -> Callable[[Mapping[str, float]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def on_log(record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return on_log
