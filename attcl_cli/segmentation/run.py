"""Trains and evaluates the segmenter of each input, with its progress and `run.json`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.cli.terminal import Terminal
from attcl_cli.devices import Precision
from attcl_cli.errors import InterruptedRun, UsageError
from attcl_cli.files import read_json, sha256, write_csv
from attcl_cli.run_record import RunRecord
from attcl_cli.segmentation import report as segment_report
from attcl_cli.segmentation.request import TRAINING, VALIDATION, Asked, Setup, clear
from attcl_cli.segmentation.settings import SegmentSettings

if TYPE_CHECKING:
    import torch

    from attcl_cli.segmentation.inputs import Input, Plan
    from attcl_cli.segmentation.summary import Row
    from attcl_cli.segmentation.training import SegmenterInfo

_SEEN = {"trained_on": "train", "validated_on": "val", "tested_on": "test"}


@dataclass(frozen=True)
class Session:
    """What one run needs to know."""

    asked: Asked
    config: Mapping[str, Any]
    setup: Setup
    plan: Plan
    settings: SegmentSettings
    output: Path
    device: torch.device
    precision: Precision
    workers: int
    resume: bool
    given: tuple[Path, SegmenterInfo] | None
    notes: tuple[str, ...]
    talk: Terminal

    def folder(self, name: str) -> Path:
        """Where the results of an input go."""
        return self.output / name if self.asked.compare else self.output

    def cases(self, part: str) -> list[str]:
        """The ids of a split's cases: the same for all inputs."""
        first = next(iter(self.plan.inputs.values()))
        return [sample.case for sample in first.splits.get(part, ())]


def run(session: Session) -> None:
    """Trains and scores all inputs of the plan; raises what `train` and `evaluate` of `segment` do."""
    output = session.output
    lists = {name: session.cases(part) for name, part in _SEEN.items()}
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
    record = RunRecord(
        output / "run.json",
        "segment",
        config=dict(session.config),
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
    if not session.resume:
        clear(output)
    with record.recorded():
        try:
            for name, shown in session.plan.inputs.items():
                rows += _one_input(session, name, shown, record)
        except (InterruptedRun, KeyboardInterrupt) as stop:
            if session.given:  # the same command begins again
                raise
            told = f"{output}: interrupted, what was finished is kept"
            raise InterruptedRun(
                stop.message if isinstance(stop, InterruptedRun) else told,
                f"go on with: attcl segment --resume {output}",
            ) from stop
        report = segment_report.Report(
            rows,
            tuple(session.plan.inputs),
            missing=session.plan.unlabelled,
            warnings=tuple(warnings),
            notes=session.notes,
            trained=_trained(session, record.extra["inputs"]),
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
    segment_report.complain(output, report.missing)


def _trained(session: Session, inputs: Mapping[str, Mapping[str, Any]]) -> str:
    """How long the segmenters were trained, on how much, and which step's weights were kept."""
    settings = session.settings
    cases = session.given[1].trained_on if session.given else session.cases("train")
    kept = ", ".join(
        f"{name} {own['steps']}" if len(inputs) > 1 else str(own["steps"])
        for name, own in inputs.items()
    )
    each = "each trained" if len(inputs) > 1 else "trained"
    return (
        f"{each} for {settings.steps} steps of {settings.batch_size} slices at {settings.image_size} pixels on "
        f"{len(cases)} cases; weights of step: {kept}"
    )


def _require_same_cases(output: Path, lists: Mapping[str, Sequence[str]]) -> None:
    before = read_json(output / "run.json")
    for name, cases in lists.items():
        if before.get(name, cases) != cases:
            raise UsageError(
                f"--resume: {output} was {name.replace('_', ' ')} other cases than those here, expected the same",
                "start a new run with another --output",
            )


def _one_input(session: Session, name: str, shown: Input, record: RunRecord) -> list[Row]:
    """Trains and evaluates; what an earlier run finished is read instead."""
    from attcl_cli.methods.weights import WEIGHTS_FILE
    from attcl_cli.segmentation import summary as segment_scores
    from attcl_cli.segmentation import training as segmenting

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
        with session.talk.bar(len(samples), f"test {name}") as bar:
            for case, own in found:
                rows += own
                bar(case)
        if session.asked.compare:
            write_csv(folder / "segment.csv", segment_scores.Row, rows)
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
    from attcl_cli.segmentation import summary as segment_scores

    if not all((folder / name).is_file() for name in ("summary.json", "segment.csv")):
        return None
    same = read_json(folder / "summary.json").get("sha256") == described["sha256"]
    if not same or not all(path.is_file() for path in outputs.values()):
        return None
    return segment_scores.read_csv(folder / "segment.csv")


def _train(session: Session, name: str, shown: Input, folder: Path) -> Path:
    from attcl_cli.methods.weights import WEIGHTS_FILE
    from attcl_cli.segmentation import slices as segment_slices
    from attcl_cli.segmentation import training as segmenting
    from attcl_cli.training.state import STATE_FILE, state_step

    settings, quiet = session.settings, session.talk.quiet
    begun = session.resume and (folder / STATE_FILE).is_file()
    if begun and state_step(folder / STATE_FILE) >= settings.steps:
        return folder / WEIGHTS_FILE
    stores = {}
    for part, cache in (("train", TRAINING), ("val", VALIDATION)):
        samples = shown.splits[part]
        if not samples:
            continue
        if session.resume and segment_slices.is_store(folder / cache):
            stores[part] = segment_slices.open_store(folder / cache)
            continue
        with Terminal(quiet=quiet).bar(len(samples), f"read {part} {name}") as bar:
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

    with Terminal(quiet=quiet).bar(settings.steps, f"train {name}", every_seconds=10) as bar:

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
    for cache in (TRAINING, VALIDATION):
        shutil.rmtree(folder / cache, ignore_errors=True)
    return folder / WEIGHTS_FILE
