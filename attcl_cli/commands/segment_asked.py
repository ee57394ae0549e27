"""What `attcl segment` is asked for, and what is found out before anything slow: datasets, inputs, the output."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli import splits
from attcl_cli.commands.arguments import Source, open_truth
from attcl_cli.dataset import Dataset
from attcl_cli.errors import UsageError
from attcl_cli.files import read_json

if TYPE_CHECKING:
    from attcl_cli.segment_inputs import Completion

DEFAULT_INPUT = "completed"
DEFAULT_OUTPUT = "segment"
TRAINING, VALIDATION = "slices", "slices-val"  # while a run is under way


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


def open_setup(asked: Asked) -> Setup:
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


def inputs_of(asked: Asked, setup: Setup) -> tuple[tuple[str, ...], list[str]]:
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


def truth_for(names: Sequence[str], asked: Asked, setup: Setup) -> Dataset | None:
    """The complete dataset, where one of these inputs needs it."""
    from attcl_cli import segment_inputs

    if segment_inputs.REAL not in names:
        return None
    return open_truth(
        asked.source,
        setup.made,
        Path(asked.truth) if asked.truth is not None else None,
        hint="name it with --truth DATASET, or choose another --input",
    )


def asked_before(output: Path, asked: Asked) -> Asked:
    """What the run to resume was asked for; --resume takes nothing else along."""
    path = output / "run.json"
    record = read_json(path) if path.is_file() else {}
    config = record.get("config", {}) if record.get("command") == "segment" else {}
    if "overrides" not in config or {"evaluate", "export"} & set(config) or config.get("weights"):
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


def prepare(
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
        for name in (TRAINING, VALIDATION):
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
