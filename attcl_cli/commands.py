"""What each command does, free of Typer: from options to files and a rendered result.

Puts the stages together and hands them what they must not know of one another. Used by `cli` and `demo`.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attcl_cli import __version__, console
from attcl_cli import splits as splitting
from attcl_cli.config import Settings, dump, resolve
from attcl_cli.dataset import Case, Dataset, canonical, check, describe, open_dataset
from attcl_cli.errors import AttclError, IncompleteError, UsageError, raise_all
from attcl_cli.files import read_json, refuse_inside, sha256, sweep, write_whole
from attcl_cli.runinfo import RunInfo

if TYPE_CHECKING:
    from torch import device as Device

    from attcl_cli.complete import Plan
    from attcl_cli.devices import Processes
    from attcl_cli.slices import SliceStore

_SLOW_CPU_PIXELS = 128  # networks for larger slices train for months on a CPU
_SHOWN_LOSSES = ("g_latent_adv", "g_reference_cyc", "g_reference_pair")


@dataclass(frozen=True)
class Source:
    """A dataset as the command line names it."""

    folder: Path
    layout: str = "auto"
    modalities: Path | None = None

    def open(self) -> Dataset:
        """Finds the cases.

        Raises:
            AttclError: there is no such folder, or nothing in it that we know.
        """
        if not self.folder.exists():
            raise AttclError(
                f"{self.folder}: no such folder, wanted a dataset or what prepare-splits wrote",
                "check the path; data/ is what attcl prepare-splits DATASET writes",
            )
        return open_dataset(self.folder, layout=self.layout, modalities=self.modalities)


@dataclass(frozen=True)
class Talk:
    """How much is said, and in which form the result is given."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, text: str) -> None:
        """A line of the result, unless nothing is to be said."""
        if not self.quiet:
            console.result(text)

    def table(self, rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
        """A table of the result, unless nothing is to be said."""
        if not self.quiet:
            console.table(rows, title=title)


def prepare_splits(
    source: Source,
    output: Path,
    *,
    ratio: str = "ratio1",
    sizes: tuple[int, int, int] | None = None,
    fractions: tuple[float, float, float] | None = None,
    subset: Fraction = Fraction(1),
    link: Literal["symlink", "hardlink", "copy"] = "symlink",
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Draws the splits and writes the data tree."""
    dataset = source.open()
    raise_all(check(dataset))
    made = splitting.make_splits(
        dataset, ratio=ratio, sizes=sizes, fractions=fractions, subset=subset, seed=seed
    )
    written = False
    if dry_run:
        splitting.is_written(dataset, made, output, overwrite=overwrite)
    else:
        written = splitting.write_tree(dataset, made, output, link=link, overwrite=overwrite)
    if written:
        config = {"dataset": str(source.folder), "ratio": made.ratio, "link": link}
        config |= {"layout": dataset.layout.name, "subset": str(subset)}
        RunInfo(output / "run.json", "prepare-splits", config=config, seed=seed).finish(0)
    if talk.as_json:
        console.document({"output": str(output), "written": written, **splitting.to_json(made)})
        return
    talk.table(made.table(), title=f"{made.ratio}: what remains of {source.folder}")
    said = "written" if written else "holds these very splits, nothing written"
    console.say(f"{output}: {'nothing written (dry run)' if dry_run else said}", quiet=talk.quiet)


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
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
    tensorboard: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Prepares the training slices and trains."""
    from attcl_cli import devices, slices
    from attcl_cli.checkpoint import STATE_FILE, WEIGHTS_FILE, state_step
    from attcl_cli.methods import METHODS

    settings = _settings(preset, variant, config, overrides or {}, resume)
    if settings.method not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(f"--method: {settings.method!r}, wanted one of {known}", f"known: {known}")
    if resume is not None and state_step(resume / STATE_FILE) >= settings.steps:
        told = f"finished at step {settings.steps}, nothing to do; --steps N goes on"
        console.say(f"{resume}: {told}", quiet=talk.quiet)
        return
    place, processes = devices.join(device)
    run_dir = processes.agree(_run_folder(settings, output, resume))
    processes.wait()  # before the main process puts something there
    origin: Dataset | Path = source.folder
    cases: list[Case] = []
    validation: list[Case] = []
    if not slices.is_store(source.folder / slices.TRAINING_FOLDER):
        origin = source.open()
        cases, validation = _training_cases(origin)
        raise_all(check(origin, cases=[*cases, *validation], values=True))
        refuse_inside(run_dir, splitting.originals_of(origin.root), flag="--output")
        if resume is not None:
            _require_same_cases(resume, cases)
    if place.type == "cpu" and settings.image_size > _SLOW_CPU_PIXELS and processes.main:
        console.say(
            f"note: no GPU; {settings.image_size}-pixel networks take months on a CPU. "
            "To try things out: attcl train --preset tiny",
            quiet=talk.quiet,
        )
    described = {"run": str(run_dir), "device": str(place), "cases": len(cases)}
    if dry_run:
        if talk.as_json:
            console.document({**described, "settings": settings.model_dump(mode="json")})
        else:
            told = f"{len(cases)} cases" if cases else f"the slices in {source.folder}"
            talk.result(f"would train on {told}, on {place}, into {run_dir}\n")
            talk.result(dump(settings))
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
        workers=workers,
        tensorboard=tensorboard,
        talk=talk,
    )
    steps = _train(run)
    processes.leave()
    if not processes.main:
        return
    weights = run_dir / WEIGHTS_FILE
    console.say(f"{weights}: written, from step {steps} of {settings.steps}", quiet=talk.quiet)
    if talk.as_json:
        outcome = {"steps": steps, "weights": str(weights), "sha256": sha256(weights)}
        console.document({**described, **outcome})
    else:
        talk.result(str(weights))


def complete(
    source: Source,
    output: Path,
    *,
    weights: str | None = None,
    targets: Sequence[str] = (),
    batch_size: int = 64,
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    link_originals: bool = False,
    part: tuple[int, int] = (1, 1),
    keep_going: bool = False,
    device: str = "auto",
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Plans and makes the missing volumes."""
    from attcl_cli import checkpoint, devices
    from attcl_cli import complete as completing

    dataset = source.open()
    place = devices.select(device)
    found = checkpoint.find_weights(weights)
    if weights is None:
        trained = f"{found.info.steps} steps on {len(found.info.trained_on)} cases"
        console.say(f"weights: {found.path} ({trained})", quiet=talk.quiet)
        if found.name == checkpoint.BUNDLED:
            console.say(
                "warning: these bundled weights know simulated phantoms only; "
                "train on your own data first: attcl train",
                quiet=talk.quiet,
            )
    plan = completing.plan(
        dataset,
        output,
        found,
        targets=_targets(targets, dataset),
        slices=slices,
        samples=samples,
        uncertainty=uncertainty,
        part=part,
        originals=splitting.originals_of(dataset.root),
        keep_going=keep_going,
        overwrite=overwrite,
    )
    if dry_run:
        _show_plan(plan, talk)
        return
    name = "run.json" if part == (1, 1) else f"run-{part[0]}of{part[1]}.json"
    run = RunInfo(
        output / name,
        "complete",
        config={
            "ori": str(source.folder),
            "cpl": str(output),
            "targets": list(targets),
            **plan.made_how,
            "part": list(part),
            "keep_going": keep_going,
            "overwrite": overwrite,
        },
        seed=found.info.settings.seed,
        device=str(place),
        weights={"name": found.name, "sha256": found.sha256},
    )
    if output.is_dir():
        sweep(output)
    linked = completing.link_originals(dataset, output) if link_originals else 0
    made = 0
    if plan.jobs or plan.failed:
        method = checkpoint.load_method(found, place)
        items = completing.run(
            plan,
            method,
            device=place,
            batch_size=batch_size,
            workers=workers,
            keep_going=keep_going,
        )
        made = _complete(plan, run, items, talk)
    else:
        _finish_earlier(run)
    failed = run.count("failed")
    _show_outcome(plan, made, linked, failed, talk)
    if failed:
        raise IncompleteError(
            f"{output}: {failed} of {len(plan.jobs) + len(plan.failed)} cases failed, wanted all",
            f"see {output / name}; mend the cases and run the same command again",
        )


def info_dataset(source: Source, *, as_json: bool = False) -> None:
    """Shows what a folder holds."""
    dataset = source.open()
    problems = check(dataset, values=True)
    content = describe(dataset, problems)
    splits = splitting.read_splits(dataset.root)
    if splits is not None:
        content["splits"] = {
            "ratio": splits.ratio,
            "source": splits.source,
            "table": splits.table(),
        }
    if as_json:
        console.document(content)
        return
    cases, patients = content["cases"], content["patients"]
    with_seg = content["segmentations"]
    console.result(
        f"{source.folder}: {dataset.layout.title}, {cases} cases of {patients} patients, "
        f"{with_seg} with segmentation\n"
    )
    counts = content["volumes"].items()
    console.table([{"modality": name, "volumes": n, "missing": cases - n} for name, n in counts])
    console.result("")
    patterns = content["patterns"]
    console.table(
        [
            {"cases": item["cases"], "missing": ", ".join(item["missing"]) or "nothing"}
            for item in patterns
        ]
    )
    if splits is not None:
        console.result("")
        console.table(splits.table(), title=f"splits ({splits.ratio} of {splits.source})")
    if dataset.ignored:
        console.result(
            f"\n{len(dataset.ignored)} images do not fit this layout and are ignored, such as {dataset.ignored[0]}"
        )
    console.result(f"\n{len(problems)} problems" if problems else "\nno problems")
    for problem in problems:
        console.result(f"- {problem.message}" + (f"\n  {problem.hint}" if problem.hint else ""))


def info_installation(*, as_json: bool = False) -> None:
    """Shows versions, device and weights."""
    import torch

    from attcl_cli import checkpoint, devices

    newest = checkpoint.newest_run(Path("runs"))
    content = {
        "attcl": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(devices.select("auto")),
        "weights": {name: str(path) for name, path in checkpoint.named_weights().items()},
        "newest_run": str(newest) if newest else None,
    }
    if as_json:
        console.document(content)
        return
    shown = {**content, "weights": ", ".join(checkpoint.named_weights()) or "none"}
    console.table([{"what": key, "found": value or "none"} for key, value in shown.items()])


def _settings(
    preset: str | None,
    variant: str | None,
    file: Path | None,
    overrides: Mapping[str, Any],
    resume: Path | None,
) -> Settings:
    """The settings of a new run, or those of the run to resume with what is changed in them."""
    if resume is not None and preset is not None:
        raise UsageError(
            "--preset: given with --resume, wanted one of them",
            "a run keeps the sizes it was started with",
        )
    if resume is not None and file is None:
        file = resume / "config.toml"
        if not file.is_file():
            raise UsageError(
                f"--resume: {resume} has no config.toml, wanted the folder of a run",
                "start without --resume, or name another run",
            )
    return resolve(preset=preset or "base", variant=variant, file=file, overrides=dict(overrides))


def data_of(run_dir: Path | None) -> Path:
    """The dataset that a run was trained on; `data/` where there is no run, or it does not say."""
    if run_dir is not None and (run_dir / "run.json").is_file():
        told = read_json(run_dir / "run.json").get("data")
        if isinstance(told, str):
            return Path(told)
    return Path("data")


def _require_same_cases(run_dir: Path, cases: Sequence[Case]) -> None:
    """A resumed run must see the patients that it was started with, and no others."""
    if not (run_dir / "run.json").is_file():
        return
    before = read_json(run_dir / "run.json").get("trained_on")
    now = [case.id for case in cases]
    if before is not None and before != now:
        raise UsageError(
            f"--resume: {run_dir} was trained on {len(before)} other cases than the {len(now)} here, "
            "wanted the same",
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
            f"--output: {folder} cannot be made ({existing} is a file), wanted a folder",
            "choose another --output",
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"--output: {folder} is not empty, wanted a new folder",
            f"choose another --output, or go on with: attcl train --resume {folder}",
        )
    return folder


def _targets(names: Sequence[str], dataset: Dataset) -> list[str]:
    try:
        return [canonical(name, dataset.modalities) for name in names]
    except UsageError as error:
        raise UsageError(f"--target: {error.message}", "name one of these") from error


def _training_cases(dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """The training split (all cases of a dataset that nobody split), and the validation cases with a pair."""
    splits = splitting.read_splits(dataset.root)
    cases = [case for case in dataset.cases if splits is None or case.id in splits.names("train")]
    if not cases:
        raise AttclError(
            f"{dataset.root}: no training case, wanted at least one",
            "run attcl prepare-splits with a larger --fractions or --sizes",
        )
    chosen = splits.names("val") if splits else ()
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
    device: Device
    processes: Processes
    precision: Literal["fp32", "bf16"]
    resume: bool
    workers: int
    tensorboard: bool
    talk: Talk


def _train(run: _TrainingRun) -> int:
    """Runs the loop with its progress, pictures and `run.json`; returns the steps that the weights have seen."""
    from attcl_cli import report, slices, validate
    from attcl_cli import train as training

    settings, main = run.settings, run.processes.main
    on_log = _tensorboard(run.folder) if run.tensorboard and main else training.Hooks().on_log
    record = RunInfo(
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
        record.start()
    quiet = run.talk.quiet or not main
    code = 1
    try:
        store = _slices(run, run.cases, slices.TRAINING_FOLDER, quiet=quiet)
        if store is None:
            raise AttclError(f"{run.origin}: no training slices, wanted packed ones")
        record.extra["trained_on"] = list(store.trained_on)
        paired = _slices(run, run.validation, slices.VALIDATION_FOLDER, quiet=quiet)
        score = validate.on_pairs(paired, run.device, seed=settings.seed) if paired else None
        with console.progress(settings.steps, "train", every_seconds=10, quiet=quiet) as bar:

            def on_step(step: int, losses: Mapping[str, float]) -> None:
                shown = (f"{key} {losses[key]:.3f}" for key in _SHOWN_LOSSES if key in losses)
                bar("  ".join(shown), to=step)

            steps = training.train(
                settings,
                store,
                run.folder,
                device=run.device,
                precision=run.precision,
                processes=run.processes,
                resume=run.resume,
                hooks=training.Hooks(on_step, on_log, report.write_grid, score),
            )
        code = 0
    except AttclError as error:
        code = error.exit_code
        raise
    finally:
        if main:
            _end(record, code)
    if main:
        for cache in (slices.TRAINING_FOLDER, slices.VALIDATION_FOLDER):
            shutil.rmtree(run.folder / cache, ignore_errors=True)
    return steps


def _slices(
    run: _TrainingRun, cases: Sequence[Case], name: str, *, quiet: bool
) -> SliceStore | None:
    """Packed slices, those that an interrupted run left, or new ones, made by the main process; None without cases."""
    from attcl_cli import slices

    settings = run.settings
    if isinstance(run.origin, Path):
        folder = run.origin / name
        if not slices.is_store(folder):
            return None
        store = slices.open_store(folder)
        side = store.data.shape[-1]
        if side != settings.image_size:
            raise UsageError(
                f"{folder}: slices of {side} pixels, wanted {settings.image_size} (image_size)",
                "pack them again with this --image-size, or choose another --preset",
            )
        return store
    if not cases:
        return None
    folder = run.folder / name
    if run.processes.main and not (run.resume and slices.is_store(folder)):
        with console.progress(len(cases), name, quiet=quiet) as bar:
            slices.build(
                run.origin,
                cases,
                folder,
                image_size=settings.image_size,
                canvas=settings.canvas,
                on_case=bar,
                workers=run.workers,
            )
    run.processes.wait()
    return slices.open_store(folder)


def _tensorboard(folder: Path) -> Callable[[Mapping[str, float]], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard: the package tensorboard is not installed, wanted it",
            "pip install tensorboard",
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def on_log(record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, int(record["step"]))
        writer.flush()

    return on_log


def _complete(plan: Plan, run: RunInfo, items: Any, talk: Talk) -> int:
    """Runs the plan with its progress and `run.json`; returns how many volumes were made."""
    run.start()
    made = 0
    code = 1
    targets = {job.case.id: len(job.outputs) for job in plan.jobs}
    try:
        for case, error in plan.failed.items():
            run.add(case, "failed", seconds=0, outputs=[], error=error.message)
            console.error(error)
        with console.progress(len(plan.jobs), "complete", quiet=talk.quiet) as bar:
            for item in items:
                status, text = ("failed", item.error.message) if item.error else ("done", "")
                run.add(
                    item.case, status, seconds=item.seconds, outputs=list(item.outputs), error=text
                )
                if item.error:
                    console.error(item.error)
                else:
                    made += targets[item.case]
                bar(item.case)
                if talk.verbose:
                    console.say(
                        f"{item.case}: {item.seconds:.1f} s in the network", quiet=talk.quiet
                    )
        code = IncompleteError.exit_code if run.count("failed") else 0
    except AttclError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        _end(run, code)
    return made


def _end(run: RunInfo, code: int) -> None:
    """Finishes `run.json`; where that fails beside another error (a full disk), the other one is told."""
    told = sys.exc_info()[1] is not None
    try:
        run.finish(code)
    except AttclError:
        if not told:
            raise


def _finish_earlier(run: RunInfo) -> None:
    """A run that was killed after its last file left `run.json` as "running"; a finished one is not touched."""
    if run.path.is_file() and read_json(run.path).get("status") == "running":
        run.finish(0)


def _show_plan(plan: Plan, talk: Talk) -> None:
    jobs = [
        {
            "case": job.case.id,
            "source": job.source,
            "targets": list(job.outputs),
            "files": [str(file) for files in job.outputs.values() for file in files],
        }
        for job in plan.jobs
    ]
    if talk.as_json:
        failed = {case: error.message for case, error in plan.failed.items()}
        counts = {"volumes": plan.volumes, "done": plan.done, "jobs": jobs, "failed": failed}
        console.document({"modal_list": list(plan.modal_list), **counts})
        return
    talk.table(
        [{**job, "targets": ", ".join(job["targets"]), "files": len(job["files"])} for job in jobs]
    )
    frequency = ", ".join(plan.modal_list)
    talk.result(
        f"{plan.volumes} volumes to make, {plan.done} done; sources by frequency: {frequency}"
    )


def _show_outcome(plan: Plan, made: int, linked: int, failed: int, talk: Talk) -> None:
    if talk.as_json:
        counts = {"written": made, "done_before": plan.done, "linked": linked}
        console.document({"output": str(plan.output), **counts, "failed": failed})
    elif plan.jobs or failed:
        talk.result(f"{plan.output}: {made} volumes written, {plan.done} were there already")
    else:
        talk.result(f"{plan.output}: nothing to do, {plan.done} volumes are there already")
    if linked:
        console.say(f"{plan.output}: {linked} originals linked", quiet=talk.quiet)
