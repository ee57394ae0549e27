"""`attcl segment`: trains segmenters on data/ + out/ and on what that is compared with, and scores them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.data import splits
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import refuse_inside
from attcl_cli.run_record import RunRecord, precision_for
from attcl_cli.segmentation.request import (
    DEFAULT_INPUT,
    DEFAULT_OUTPUT,
    Asked,
    Mode,
    Setup,
    asked_before,
    clear,
    inputs_of,
    open_setup,
    require_free,
    truth_for,
)
from attcl_cli.segmentation.settings import SegmentSettings, resolve

if TYPE_CHECKING:
    from attcl_cli.data.dataset import Dataset
    from attcl_cli.segmentation.inputs import Completion, Input, Plan
    from attcl_cli.segmentation.summary import Row
    from attcl_cli.segmentation.training import SegmenterInfo

__all__ = ["Asked", "Mode", "start"]

_SLOW_CPU_PIXELS = 128


def start(
    asked: Asked,
    mode: Mode,
    *,
    device: str = "auto",
    precision: Precision | None = None,
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
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
            raise UsageError(f"--export: {kind!r}, expected nnunet", "--export nnunet DIR")
        export(asked, folder, **common)
    elif mode.evaluate is not None:
        folder = mode.output or Path(f"{DEFAULT_OUTPUT}-{mode.evaluate.resolve().name}")
        evaluate(asked, mode.evaluate, folder, **common)
    else:
        usual = f"{DEFAULT_OUTPUT}-evaluated" if mode.weights else DEFAULT_OUTPUT
        segment(
            asked,
            mode.resume or mode.output or Path(usual),
            resume=mode.resume is not None,
            weights=mode.weights,
            device=device,
            precision=precision_for(precision, mode.resume),
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
    if mode.output is not None and len(given) == 1 and (mode.resume or mode.export):
        given.insert(0, "--output")
    if len(given) > 1:
        raise UsageError(
            f"{given[0]}: given with {given[1]}, expected one of them", f"leave {given[1]} out"
        )
    flag = next((flag for flag in ("--weights", "--evaluate", "--export") if chosen[flag]), None)
    if flag and (asked.preset or asked.overrides):
        key = "--preset" if asked.preset else f"setting {asked.overrides[0][0]}"
        raise UsageError(
            f"{flag}: given with {key}, expected it without settings: nothing is trained",
            "leave out --preset, --set, --steps and --seed",
        )
    if mode.evaluate and asked.input:
        raise UsageError(
            "--evaluate: given with --input, expected one of them",
            "leave --input out: predictions are what they are",
        )


def segment(
    asked: Asked,
    output: Path,
    *,
    resume: bool = False,
    weights: Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Trains a segmenter an input, or takes the one in `weights`, and scores it on the test split."""
    if resume:
        asked = asked_before(output, asked)
    setup = open_setup(asked)
    names, notes = inputs_of(asked, setup)
    from attcl_cli import devices
    from attcl_cli.segmentation import inputs as segment_inputs
    from attcl_cli.segmentation import run as segment_run
    from attcl_cli.segmentation import training as segmenting

    given = segmenting.read_info(weights) if weights is not None else None
    settings = given.settings if given else resolve(asked.preset, dict(asked.overrides))
    if given and asked.input is None:
        names = (given.input,)
    truth = truth_for(names, asked, setup)
    if asked.compare and truth is not None and segment_inputs.lacks_truth(setup.data, truth):
        names = tuple(name for name in names if name != segment_inputs.REAL)
        notes.append("real is left out: the complete dataset lacks volumes, too")
        truth = None
    _refuse_place(output, setup, asked, truth, flag="--output")
    place = devices.select(device)
    config = {
        **asdict(asked),
        "overrides": [list(item) for item in asked.overrides],
        "weights": str(weights) if weights else None,
    }
    reads = [weights] if weights else []
    require_free(output, config=config, resume=resume, overwrite=overwrite, reads=reads)
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
    if place.type == "cpu" and settings.image_size > _SLOW_CPU_PIXELS and not given:
        terminal.say(
            f"note: no GPU; {settings.image_size}-pixel networks take days on a CPU. "
            "To try things out: attcl segment --preset tiny",
            quiet=talk.quiet,
        )
    for note in notes:
        terminal.say(f"note: {note}", quiet=talk.quiet)
    if dry_run:
        _say_plan(plan, settings, str(place), output, talk)
        return
    session = segment_run.Session(
        asked=asked,
        config=config,
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
    segment_run.run(session)


def evaluate(
    asked: Asked,
    predictions: Path,
    output: Path,
    *,
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Scores label maps of the test split that something else made, `<case>.nii.gz` each."""
    setup = open_setup(asked)
    from attcl_cli.segmentation import inputs as segment_inputs
    from attcl_cli.segmentation import report as segment_report
    from attcl_cli.segmentation import summary as segment_scores

    if not predictions.is_dir():
        raise AttclError(
            f"{predictions}: no such folder, expected predictions named CASE.nii.gz",
            "name the folder that holds them: --evaluate DIR",
        )
    _refuse_place(output, setup, asked, None, flag="--output")
    config = {**asdict(asked), "evaluate": str(predictions)}
    require_free(output, config=config, overwrite=overwrite, reads=[predictions])
    plan = segment_inputs.plan_truths(setup.data, setup.made, allow_missing=asked.allow_missing)
    samples = plan.inputs[""].splits["test"]
    found, missing = segment_scores.find_predictions(predictions, samples)
    if not found or (missing and not asked.allow_missing):
        raise AttclError(
            f"{predictions}: {len(missing)} of {len(samples)} test cases have no prediction, expected all "
            f"(the first: {missing[0]}.nii.gz)",
            "add them, or count them with --allow-missing",
        )
    if dry_run:
        talk.result(f"would score {len(found)} predictions into {output}")
        return
    chosen = [sample for sample in samples if sample.case in found]
    record = RunRecord(
        output / "run.json",
        "segment",
        config=config,
        extra={"tested_on": [sample.case for sample in chosen]},
    )
    name = predictions.resolve().name
    rows: list[Row] = []
    scored = segment_scores.score_folder(
        found, plan, chosen, name=name, per_slice=asked.per_slice, workers=workers
    )
    with talk.bar(len(chosen), "segment") as bar:
        for own in scored:
            rows += own
            bar(own[0].case)
    clear(output)
    with record.recorded():
        report = segment_report.Report(rows, (name,), missing=(*plan.unlabelled, *missing))
        segment_report.write(output, report, facts={"labels": str(plan.convention)})
    segment_report.show(output, report, talk)
    segment_report.complain(output, report.missing)


def export(
    asked: Asked,
    folder: Path,
    *,
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Writes what nnU-Net trains on, and has nnU-Net check it where it is installed."""
    from attcl_cli.segmentation import inputs as segment_inputs
    from attcl_cli.segmentation import nnunet
    from attcl_cli.segmentation import report as segment_report

    nnunet.require_name(folder)
    setup = open_setup(asked)
    name = asked.input or DEFAULT_INPUT
    truth = truth_for((name,), asked, setup)
    flag = "--export nnunet"
    _refuse_place(folder, setup, asked, truth, flag=flag)
    config = {**asdict(asked), "export": "nnunet"}
    require_free(folder, config=config, overwrite=overwrite, flag=flag)
    plan = segment_inputs.plan(
        setup.data,
        setup.made,
        (name,),
        completed=Path(asked.cpl),
        truth=truth,
        canvas=1_000_000,  # nnU-Net takes any size
        allow_missing=asked.allow_missing,
    )
    shown = plan.inputs[name]
    counts = {part: len(own) for part, own in shown.splits.items()}
    if dry_run:
        cases = ", ".join(f"{count} {part}" for part, count in counts.items())
        talk.result(f"would export {name} ({cases}) to {folder}")
        return
    clear(folder)
    record = RunRecord(folder / "run.json", "segment", config=config)
    with record.recorded():
        with talk.bar(sum(counts.values()), "export") as bar:
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
        terminal.say(
            "note: nnU-Net is not installed here, so its own check was not run: "
            "nnUNetv2_plan_and_preprocess --verify_dataset_integrity runs it",
            quiet=talk.quiet,
        )
    if talk.as_json:
        terminal.document({"output": str(folder), "checked_by_nnunet": checked, **asdict(done)})
    else:
        talk.result(
            f"{folder}: {done.train} training and {done.test} test cases, "
            f"{done.linked} files linked, {done.written} written"
        )
    _warn(setup.completion, name, talk)
    segment_report.complain(folder, plan.unlabelled)


def _refuse_place(
    folder: Path, setup: Setup, asked: Asked, truth: Dataset | None, *, flag: str
) -> None:
    """Results go neither among originals nor among synthesised volumes."""
    originals = [*splits.originals_of(setup.data.root), *([truth.root] if truth else [])]
    refuse_inside(folder, originals, flag=flag)
    refuse_inside(folder, [Path(asked.cpl)], flag=flag, kept="synthesised volumes")


def _warn(completion: Completion, name: str, talk: Terminal) -> None:
    from attcl_cli.segmentation import report as segment_report

    for warning in segment_report.leaks(completion, (name,)):
        terminal.say(f"warning: {warning}", quiet=talk.quiet)


def _require_channels(given: SegmenterInfo, shown: Input) -> None:
    if given.channels != shown.channels:
        raise UsageError(
            f"--weights: trained on {', '.join(given.channels)}, expected {', '.join(shown.channels)} "
            f"for --input {shown.name}",
            f"--input {given.input} is what these weights were trained on",
        )


def _say_plan(
    plan: Plan, settings: SegmentSettings, device: str, output: Path, talk: Terminal
) -> None:
    inputs = {
        name: {part: len(own) for part, own in shown.splits.items()}
        for name, shown in plan.inputs.items()
    }
    described = {"output": str(output), "device": device, "labels": str(plan.convention)}
    if talk.as_json:
        told = {"inputs": inputs, "left_out": list(plan.unlabelled)}
        terminal.document({**described, **told, "settings": settings.model_dump(mode="json")})
        return
    talk.table([{"input": name, **counts} for name, counts in inputs.items()])
    talk.result(
        f"would train {settings.steps} steps at {settings.image_size} pixels on {device}, into {output}"
    )
