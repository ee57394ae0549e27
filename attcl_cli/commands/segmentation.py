"""`attcl segment`: trains segmenters on data/ + out/ and on what that is compared with, and scores them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attcl_cli import console, splits
from attcl_cli.commands.arguments import Source, Talk
from attcl_cli.dataset import Dataset
from attcl_cli.errors import AttclError, IncompleteError, InterruptedRun, UsageError
from attcl_cli.files import read_json, refuse_inside, sha256
from attcl_cli.runinfo import RunInfo
from attcl_cli.segment_settings import SegmentSettings, resolve

if TYPE_CHECKING:
    import torch

    from attcl_cli.segment import SegmenterInfo
    from attcl_cli.segment_inputs import Completion, Input, Plan
    from attcl_cli.segment_scores import Row

DEFAULT_INPUT = "completed"
DEFAULT_OUTPUT = "segment"
_TRAINING, _VALIDATION = "slices", "slices-val"
_SLOW_CPU_PIXELS = 128


@dataclass(frozen=True)
class Asked:
    """What is asked of `attcl segment`, as `run.json` keeps it for --resume.

    Attributes:
        ori, cpl: the incomplete dataset and the synthesised volumes.
        truth: the complete dataset; None: what `splits.json` names.
        layout, modalities: as `Source`.
        input: what the segmenter sees; None: `DEFAULT_INPUT`.
        compare: all four inputs.
        preset, overrides: of `SegmentSettings`.
        per_slice: also score slice by slice.
        allow_missing: leave out what has no label map (and, of --evaluate, no prediction).
    """

    ori: str = "data"
    cpl: str = "out"
    truth: str | None = None
    layout: str = "auto"
    modalities: str | None = None
    input: str | None = None
    compare: bool = False
    preset: str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    per_slice: bool = False
    allow_missing: bool = False

    @property
    def source(self) -> Source:
        """The incomplete dataset."""
        return Source(
            Path(self.ori), self.layout, Path(self.modalities) if self.modalities else None
        )


@dataclass(frozen=True)
class Mode:
    """What is done with it; at most one of these but `output`.

    Attributes:
        output: where results go; None: the default of each.
        resume: the folder of a run to go on with.
        weights: a segmenter to evaluate without training.
        evaluate: a folder of predictions to score.
        export: format and folder of a dataset for another segmenter.
    """

    output: Path | None = None
    resume: Path | None = None
    weights: Path | None = None
    evaluate: Path | None = None
    export: tuple[str, Path] | None = None


@dataclass(frozen=True)
class Setup:
    """What all modes need, found before anything slow."""

    data: Dataset
    made: splits.Splits
    completion: Completion


def start(
    asked: Asked,
    mode: Mode,
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Trains and evaluates, or does the one other thing that was asked for."""
    _require_one(asked, mode)
    common: dict[str, Any] = {
        "workers": workers,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "talk": talk,
    }
    if mode.export is not None:
        kind, folder = mode.export
        if kind != "nnunet":
            raise UsageError(f"--export: {kind!r}, wanted nnunet", "--export nnunet DIR")
        export(asked, folder, **common)
    elif mode.evaluate is not None:
        folder = mode.output or Path(f"{DEFAULT_OUTPUT}-{mode.evaluate.resolve().name}")
        evaluate(asked, mode.evaluate, folder, **common)
    else:
        segment(
            asked,
            mode.resume or mode.output or Path(DEFAULT_OUTPUT),
            resume=mode.resume is not None,
            weights=mode.weights,
            device=device,
            precision=precision,
            **common,
        )


def _require_one(asked: Asked, mode: Mode) -> None:
    chosen = {
        "--compare": asked.compare,
        "--weights": mode.weights,
        "--evaluate": mode.evaluate,
        "--export": mode.export,
        "--resume": mode.resume,
    }
    given = [flag for flag, value in chosen.items() if value]
    if mode.output is not None and (mode.resume or mode.export):
        given.insert(0, "--output")
    if len(given) > 1:
        raise UsageError(f"{given[0]}: given with {given[1]}, wanted one of them")


def segment(
    asked: Asked,
    output: Path,
    *,
    resume: bool = False,
    weights: Path | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Trains a segmenter an input, or takes the one in `weights`, and scores it on the test split."""
    if resume:
        asked = _asked_before(output, asked)
    setup = _open(asked)
    names, notes = _inputs(asked, setup)
    from attcl_cli import devices, segment_inputs
    from attcl_cli import segment as segmenting

    given = segmenting.read_info(weights) if weights is not None else None
    settings = given.settings if given else resolve(asked.preset, dict(asked.overrides))
    if given and asked.input is None:
        names = (given.input,)
    truth = _truth(asked, setup) if segment_inputs.REAL in names else None
    if asked.compare and truth is not None and segment_inputs.lacks_truth(setup.data, truth):
        names = tuple(name for name in names if name != segment_inputs.REAL)
        notes.append("real is left out: the complete dataset lacks volumes, too")
        truth = None
    protected = [*splits.originals_of(setup.data.root), Path(asked.cpl)]
    refuse_inside(output, [*protected, *([truth.root] if truth else [])], flag="--output")
    place = devices.select(device)
    plan = segment_inputs.plan(
        setup.data,
        setup.made,
        names,
        completed=Path(asked.cpl),
        truth=truth,
        canvas=settings.canvas,
        parts=("test",) if given else splits.SPLITS,
        allow_missing=asked.allow_missing,
    )
    if given:
        _require_channels(given, plan.inputs[names[0]])
    _prepare(output, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if place.type == "cpu" and settings.image_size > _SLOW_CPU_PIXELS and not given:
        console.say(
            f"note: no GPU; {settings.image_size}-pixel networks take days on a CPU. "
            "To try things out: attcl segment --preset tiny",
            quiet=talk.quiet,
        )
    for note in notes:
        console.say(f"note: {note}", quiet=talk.quiet)
    if dry_run:
        _say_plan(plan, settings, str(place), output, talk)
        return
    session = _Session(
        asked=asked,
        setup=setup,
        plan=plan,
        settings=settings,
        output=output,
        device=place,
        precision=precision,
        workers=workers,
        resume=resume,
        given=(weights, given) if weights and given else None,
        notes=tuple(notes),
        talk=talk,
    )
    _run(session)


def evaluate(
    asked: Asked,
    predictions: Path,
    output: Path,
    *,
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Scores label maps of the test split that something else made, `<case>.nii.gz` each."""
    setup = _open(asked)
    from attcl_cli import segment_inputs, segment_scores
    from attcl_cli.commands import segment_report

    if not predictions.is_dir():
        raise AttclError(
            f"{predictions}: no such folder, wanted predictions named CASE.nii.gz",
            "name the folder that holds them: --evaluate DIR",
        )
    refuse_inside(output, [*splits.originals_of(setup.data.root), Path(asked.cpl)], flag="--output")
    plan = segment_inputs.plan_truths(setup.data, setup.made, allow_missing=asked.allow_missing)
    samples = plan.inputs[""].splits["test"]
    found, missing = segment_scores.find_predictions(predictions, samples)
    if not found or (missing and not asked.allow_missing):
        raise AttclError(
            f"{predictions}: {len(missing)} of {len(samples)} test cases have no prediction, wanted all "
            f"(the first: {missing[0]}.nii.gz)",
            "add them, or count them with --allow-missing",
        )
    _prepare(output, resume=False, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        talk.result(f"would score {len(found)} predictions into {output}")
        return
    chosen = [sample for sample in samples if sample.case in found]
    record = RunInfo(
        output / "run.json",
        "segment",
        config={**asdict(asked), "evaluate": str(predictions)},
        extra={"tested_on": [sample.case for sample in chosen]},
    )
    name = predictions.resolve().name
    rows: list[Row] = []
    with record.recorded():
        scored = segment_scores.score_folder(
            found, plan, chosen, name=name, per_slice=asked.per_slice, workers=workers
        )
        with console.progress(len(chosen), "segment", quiet=talk.quiet) as bar:
            for own in scored:
                rows += own
                bar(own[0].case)
        report = segment_report.Report(rows, (name,), missing=(*plan.unlabelled, *missing))
        segment_report.write(output, report, facts={"labels": str(plan.convention)})
    segment_report.show(output, report, talk)
    _complain(output, report.missing)


def export(
    asked: Asked,
    folder: Path,
    *,
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> None:
    """Writes what nnU-Net trains on, and has nnU-Net check it where it is installed."""
    from attcl_cli import nnunet, segment_inputs

    nnunet.require_name(folder)
    setup = _open(asked)
    name = asked.input or DEFAULT_INPUT
    truth = _truth(asked, setup) if name == segment_inputs.REAL else None
    protected = [*splits.originals_of(setup.data.root), Path(asked.cpl)]
    refuse_inside(folder, [*protected, *([truth.root] if truth else [])], flag="--export nnunet")
    plan = segment_inputs.plan(
        setup.data,
        setup.made,
        (name,),
        completed=Path(asked.cpl),
        truth=truth,
        canvas=1_000_000,  # nnU-Net takes any size
        allow_missing=asked.allow_missing,
    )
    _prepare(folder, resume=False, overwrite=overwrite, dry_run=dry_run, flag="--export nnunet")
    shown = plan.inputs[name]
    counts = {part: len(own) for part, own in shown.splits.items()}
    if dry_run:
        cases = ", ".join(f"{count} {part}" for part, count in counts.items())
        talk.result(f"would export {name} ({cases}) to {folder}")
        return
    record = RunInfo(folder / "run.json", "segment", config={**asdict(asked), "export": "nnunet"})
    with record.recorded():
        with console.progress(sum(counts.values()), "export", quiet=talk.quiet) as bar:
            done = nnunet.export(
                shown,
                folder,
                convention=plan.convention,
                ending=setup.data.extension,
                workers=workers,
                on_case=bar,
            )
        checked = nnunet.verify(folder, workers=workers)
        record.extra |= {"checked_by_nnunet": checked, **asdict(done)}
    if not checked:
        console.say(
            "note: nnU-Net is not installed here, so its own check was not run: "
            "nnUNetv2_plan_and_preprocess --verify_dataset_integrity runs it",
            quiet=talk.quiet,
        )
    if talk.as_json:
        console.document({"output": str(folder), "checked_by_nnunet": checked, **asdict(done)})
    else:
        talk.result(
            f"{folder}: {done.train} training and {done.test} test cases, "
            f"{done.linked} files linked, {done.written} written"
        )
    _warn(setup.completion, name, talk)
    _complain(folder, plan.unlabelled)


def _warn(completion: Completion, name: str, talk: Talk) -> None:
    from attcl_cli.commands import segment_report

    for warning in segment_report.leaks(completion, (name,)):
        console.say(f"warning: {warning}", quiet=talk.quiet)


def _complain(output: Path, missing: Sequence[str]) -> None:
    if missing:
        raise IncompleteError(
            f"{output}: {len(missing)} cases were left out, wanted all (the first: {missing[0]})",
            "they have no label map, or no prediction; summary.json lists them",
        )


# --- Before anything slow -----------------------------------------------------------------------------


def _open(asked: Asked) -> Setup:
    from attcl_cli import segment_inputs

    data = asked.source.open()
    made = splits.read_splits(data.root)
    if made is None:
        raise UsageError(
            f"--ori: {data.root} has no splits.json, wanted what attcl prepare-splits wrote",
            "attcl prepare-splits DATASET; for a dataset with holes of its own, with a --ratio file that "
            "says hidden = [[]]",
        )
    return Setup(data, made, segment_inputs.completion(Path(asked.cpl), data, made))


def _inputs(asked: Asked, setup: Setup) -> tuple[tuple[str, ...], list[str]]:
    """The inputs by name, and what is to be said about the choice."""
    from attcl_cli import segment_inputs
    from attcl_cli.segment_inputs import COMPLETED, INCOMPLETE, REAL

    if not asked.compare:
        return (asked.input or DEFAULT_INPUT,), []
    if asked.input is not None:
        raise UsageError("--input: given with --compare, which takes them all, wanted one of them")
    single = segment_inputs.single_input(setup.data)
    if single is None:
        told = "a single modality is left out: none is there in all cases"
        return (INCOMPLETE, COMPLETED, REAL), [told]
    return (single, INCOMPLETE, COMPLETED, REAL), []


def _truth(asked: Asked, setup: Setup) -> Dataset:
    folder = Path(asked.truth) if asked.truth is not None else Path(setup.made.source)
    if not folder.is_dir():
        raise AttclError(
            f"{folder}: no such folder, wanted the complete dataset",
            "name it with --truth DATASET, or choose another --input",
        )
    return replace(asked.source, folder=folder).open()


def _require_channels(given: SegmenterInfo, shown: Input) -> None:
    if given.channels != shown.channels:
        raise UsageError(
            f"--weights: trained on {', '.join(given.channels)}, wanted {', '.join(shown.channels)} "
            f"for --input {shown.name}",
            f"--input {given.input} is what these weights were trained on",
        )


def _asked_before(output: Path, asked: Asked) -> Asked:
    """What the run to resume was asked for; --resume takes nothing else along."""
    path = output / "run.json"
    record = read_json(path) if path.is_file() else {}
    config = record.get("config", {}) if record.get("command") == "segment" else {}
    if "overrides" not in config or "evaluate" in config or "export" in config:
        raise UsageError(
            f"--resume: {output} has no run.json of a segmentation run, wanted the folder of one",
            "start without --resume, or name another run",
        )
    known = {key: config[key] for key in asdict(asked)}
    before = Asked(
        **{**known, "overrides": tuple((key, value) for key, value in config["overrides"])}
    )
    changed = [key for key, value in asdict(asked).items() if value != getattr(Asked(), key)]
    steps = dict(asked.overrides).get("steps")
    if (changed and changed != ["overrides"]) or set(dict(asked.overrides)) - {"steps"}:
        raise UsageError(
            f"--resume: given with --{changed[0].replace('_', '-').replace('overrides', 'set')}, wanted it alone",
            "a run keeps the options that it was started with; --steps may grow",
        )
    if steps is not None:
        before = replace(
            before, overrides=tuple({**dict(before.overrides), "steps": steps}.items())
        )
    return before


def _prepare(
    output: Path, *, resume: bool, overwrite: bool, dry_run: bool, flag: str = "--output"
) -> None:
    """Only a new folder is written into, or one that is resumed, or one of ours that may be replaced."""
    existing = next(place for place in (output, *output.parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(
            f"{flag}: {output} cannot be made ({existing} is a file), wanted a folder",
            f"choose another {flag}",
        )
    if resume or not output.exists() or not any(output.iterdir()):
        return
    path = output / "run.json"
    record = read_json(path) if path.is_file() else {}
    ours = isinstance(record, dict) and record.get("command") == "segment"
    if not overwrite:
        on = (
            f", or go on with: attcl segment --resume {output}"
            if flag == "--output" and ours
            else ""
        )
        raise UsageError(
            f"{flag}: {output} is not empty, wanted a new folder",
            f"choose another {flag}, or replace it with --overwrite{on}",
        )
    if not ours:
        raise UsageError(
            f"{flag}: {output} was not made by attcl segment (no run.json says so), "
            "wanted a folder that --overwrite may replace",
            f"choose another {flag}",
        )
    if not dry_run:
        _clear(output, record.get("inputs", {}))


def _clear(output: Path, inputs: Mapping[str, Any]) -> None:
    """Removes what an earlier run wrote, and nothing else that a user may have put there."""
    from attcl_cli import nnunet

    nnunet.remove(output)
    for folder in (output, *(output / name for name in inputs)):
        for name in (_TRAINING, _VALIDATION):
            shutil.rmtree(folder / name, ignore_errors=True)
        ours = (
            "*.safetensors",
            "stats.jsonl",
            "segment.csv",
            "summary.json",
            "predictions/*.nii.gz",
        )
        for file in (file for pattern in ours for file in folder.glob(pattern)):
            file.unlink()
    (output / "run.json").unlink()


# --- Training and evaluation --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Session:
    """What one run needs to know."""

    asked: Asked
    setup: Setup
    plan: Plan
    settings: SegmentSettings
    output: Path
    device: torch.device
    precision: Literal["fp32", "bf16"]
    workers: int
    resume: bool
    given: tuple[Path, SegmenterInfo] | None
    notes: tuple[str, ...]
    talk: Talk

    def folder(self, name: str) -> Path:
        """Where the results of an input go."""
        return self.output / name if self.asked.compare else self.output

    def cases(self, part: str) -> list[str]:
        """The ids of a split's cases: the same for all inputs."""
        first = next(iter(self.plan.inputs.values()))
        return [sample.case for sample in first.splits.get(part, ())]


def _run(session: _Session) -> None:
    from attcl_cli.commands import segment_report

    asked, output = session.asked, session.output
    lists = {f"{what}_on": session.cases(part) for what, part in _SEEN.items()}
    if session.given:
        lists |= {
            "trained_on": list(session.given[1].trained_on),
            "validated_on": list(session.given[1].validated_on),
        }
    if session.resume:
        _require_same_cases(output, lists)
    warnings = segment_report.leaks(session.setup.completion, tuple(session.plan.inputs))
    if session.given:
        warnings += segment_report.seen(lists)
    record = RunInfo(
        output / "run.json",
        "segment",
        config={**asdict(asked), "overrides": [list(item) for item in asked.overrides]},
        seed=session.settings.seed,
        device=str(session.device),
        extra={
            "settings": session.settings.model_dump(mode="json"),
            "precision": session.precision,
            **lists,
            "left_out": list(session.plan.unlabelled),
            "completed_by": list(session.setup.completion.weights),
            "warnings": warnings,
            "inputs": {},
        },
    )
    rows: list[Row] = []
    with record.recorded():
        try:
            for name, shown in session.plan.inputs.items():
                rows += _one_input(session, name, shown, record)
        except InterruptedRun as stop:
            again = f"go on with: attcl segment --resume {output}"
            raise InterruptedRun(stop.message, again) from stop
        report = segment_report.Report(
            rows,
            tuple(session.plan.inputs),
            missing=session.plan.unlabelled,
            warnings=tuple(warnings),
            notes=session.notes,
            seed=session.settings.seed,
        )
        facts = {
            "labels": str(session.plan.convention),
            "inputs": {name: shown.explained for name, shown in session.plan.inputs.items()},
            "settings": session.settings.model_dump(mode="json"),
            "segmenters": record.extra["inputs"],
        }
        segment_report.write(output, report, facts=facts)
    segment_report.show(output, report, session.talk)
    _complain(output, report.missing)


_SEEN = {"trained": "train", "validated": "val", "tested": "test"}


def _require_same_cases(output: Path, lists: Mapping[str, Sequence[str]]) -> None:
    before = read_json(output / "run.json")
    for name, cases in lists.items():
        if before.get(name, cases) != cases:
            raise UsageError(
                f"--resume: {output} was {name.replace('_', ' ')} other cases than those here, wanted the same",
                "start a new run with another --output",
            )


def _one_input(session: _Session, name: str, shown: Input, record: RunInfo) -> list[Row]:
    """Trains and evaluates; what an earlier run finished is read instead."""
    from attcl_cli import segment as segmenting
    from attcl_cli import segment_scores
    from attcl_cli.checkpoint import WEIGHTS_FILE

    folder = session.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    weights = session.given[0] if session.given else _train(session, name, shown, folder)
    if weights.is_dir():
        weights /= WEIGHTS_FILE
    segmenter = segmenting.load_segmenter(weights, session.device)
    samples = shown.splits["test"]
    outputs = {
        sample.case: (folder / segmenting.PREDICTIONS / f"{sample.case}.nii.gz")
        for sample in samples
    }
    described = {
        "sees": shown.explained,
        "weights": str(weights if session.given else weights.relative_to(session.output)),
        "sha256": sha256(weights),
        "steps": segmenter.info.steps,
    }
    record.extra["inputs"][name] = described
    rows = _finished(folder, described, outputs) if session.resume else None
    if rows is None:
        rows = []
        found = segmenting.evaluate(
            segmenter,
            samples,
            folder / segmenting.PREDICTIONS,
            convention=session.plan.convention,
            input_=name,
            per_slice=session.asked.per_slice,
            workers=session.workers,
        )
        with console.progress(len(samples), f"test {name}", quiet=session.talk.quiet) as bar:
            for case, own in found:
                rows += own
                bar(case)
        if session.asked.compare:
            segment_scores.write_csv(folder / "segment.csv", rows)
            figures = segment_scores.summarise(rows)
            segment_scores.write_summary(folder / "summary.json", figures, [], described)
    for case, path in outputs.items():
        said = str(path.relative_to(session.output))
        record.add(case, "done", seconds=0, outputs=[said])
    return rows


def _finished(
    folder: Path, described: Mapping[str, Any], outputs: Mapping[str, Path]
) -> list[Row] | None:
    """The rows of an input that an earlier run evaluated with these very weights, or None."""
    from attcl_cli import segment_scores

    if not all((folder / name).is_file() for name in ("summary.json", "segment.csv")):
        return None
    same = read_json(folder / "summary.json").get("sha256") == described["sha256"]
    if not same or not all(path.is_file() for path in outputs.values()):
        return None
    return segment_scores.read_csv(folder / "segment.csv")


def _train(session: _Session, name: str, shown: Input, folder: Path) -> Path:
    from attcl_cli import segment as segmenting
    from attcl_cli import segment_slices
    from attcl_cli.checkpoint import STATE_FILE, WEIGHTS_FILE, state_step

    settings, quiet = session.settings, session.talk.quiet
    begun = session.resume and (folder / STATE_FILE).is_file()
    if begun and state_step(folder / STATE_FILE) >= settings.steps:
        return folder / WEIGHTS_FILE
    stores = {}
    for part, cache in (("train", _TRAINING), ("val", _VALIDATION)):
        samples = shown.splits[part]
        if not samples:
            continue
        if session.resume and segment_slices.is_store(folder / cache):
            stores[part] = segment_slices.open_store(folder / cache)
            continue
        with console.progress(len(samples), f"read {part} {name}", quiet=quiet) as bar:
            stores[part] = segment_slices.build(
                samples,
                folder / cache,
                size=segmenting.size_of(settings),
                convention=session.plan.convention,
                on_case=bar,
                workers=session.workers,
            )
    info = segmenting.SegmenterInfo(
        settings=settings,
        input=name,
        channels=shown.channels,
        convention=session.plan.convention.name,
        trained_on=stores["train"].cases,
        validated_on=stores["val"].cases if "val" in stores else (),
    )
    import monai.losses.dice  # noqa: F401 - takes seconds, which are no part of the first step

    with console.progress(settings.steps, f"train {name}", every_seconds=10, quiet=quiet) as bar:

        def on_step(step: int, values: Mapping[str, float]) -> None:
            bar("  ".join(f"{key} {value:.3f}" for key, value in values.items()), to=step)

        segmenting.train(
            info,
            stores["train"],
            folder,
            validation=stores.get("val"),
            device=session.device,
            precision=session.precision,
            resume=begun,
            workers=session.workers,
            on_step=on_step,
        )
    for cache in (_TRAINING, _VALIDATION):
        shutil.rmtree(folder / cache, ignore_errors=True)
    return folder / WEIGHTS_FILE


def _say_plan(plan: Plan, settings: SegmentSettings, device: str, output: Path, talk: Talk) -> None:
    inputs = {
        name: {part: len(own) for part, own in shown.splits.items()}
        for name, shown in plan.inputs.items()
    }
    described = {"output": str(output), "device": device, "labels": str(plan.convention)}
    if talk.as_json:
        told = {"inputs": inputs, "left_out": list(plan.unlabelled)}
        console.document({**described, **told, "settings": settings.model_dump(mode="json")})
        return
    talk.table([{"input": name, **counts} for name, counts in inputs.items()])
    talk.result(
        f"would train {settings.steps} steps at {settings.image_size} pixels on {device}, into {output}"
    )
