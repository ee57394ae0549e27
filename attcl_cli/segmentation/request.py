"""What `attcl segment` is asked for, and what is found out before anything slow: datasets, inputs, the output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.data import splits
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.splits import open_truth
from attcl_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, UsageError
from attcl_cli.files import is_within
from attcl_cli.run_record import read_record

if TYPE_CHECKING:
    from attcl_cli.segmentation.inputs import Completion

DEFAULT_INPUT = "completed"
DEFAULT_OUTPUT = "segment"
TRAINING, VALIDATION = "slices", "slices-val"  # while a run is under way
_BROKEN_OFF = (None, EXIT_FAILED, EXIT_INTERRUPTED)  # exit codes; None: killed


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
    from attcl_cli.segmentation import inputs as segment_inputs

    data = asked.source.open()
    made = splits.read_splits(data.root)
    if made is None:
        raise UsageError(
            f"--ori: {data.root} has no splits.json, expected what attcl prepare-splits wrote",
            "attcl prepare-splits DATASET; for a dataset with holes of its own, with a --ratio file that "
            "says hidden = [[]]",
        )
    return Setup(data, made, segment_inputs.completion(Path(asked.cpl), data, made))


def inputs_of(asked: Asked, setup: Setup) -> tuple[tuple[str, ...], list[str]]:
    """The inputs by name, and what is to be said about the choice."""
    from attcl_cli.segmentation import inputs as segment_inputs
    from attcl_cli.segmentation.inputs import COMPLETED, INCOMPLETE, REAL

    if not asked.compare:
        return (asked.input or DEFAULT_INPUT,), []
    if asked.input is not None:
        raise UsageError(
            "--input: given with --compare, which takes them all, expected one of them",
            "leave --input out to compare, or --compare out to train on one",
        )
    single = segment_inputs.single_input(setup.data)
    if single is None:
        told = "a single modality is left out: none is there in all cases"
        return (INCOMPLETE, COMPLETED, REAL), [told]
    return (single, INCOMPLETE, COMPLETED, REAL), []


def truth_for(names: Sequence[str], asked: Asked, setup: Setup) -> Dataset | None:
    """The complete dataset, where one of these inputs needs it."""
    from attcl_cli.segmentation import inputs as segment_inputs

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
    record = read_record(output)
    config = record.get("config", {}) if record.get("command") == "segment" else {}
    if not _trains(config):
        raise UsageError(
            f"--resume: {output} has no run.json of a run that trains a segmenter, expected the folder of one",
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
            f"--resume: given with --{changed[0].replace('_', '-').replace('overrides', 'set')}, expected it alone",
            "a run keeps the options that it was started with; --steps may grow",
        )
    if steps is not None:
        before = replace(
            before, overrides=tuple({**dict(before.overrides), "steps": steps}.items())
        )
    return before


def require_free(
    output: Path,
    *,
    config: Mapping[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    reads: Sequence[Path] = (),
    flag: str = "--output",
) -> None:
    """Only a new folder is written into, or one that is resumed, or one of ours that may be replaced.

    One where the very same evaluation or export was interrupted, or failed, is ours to begin again. Nothing is removed
    here: that is `clear`'s part, once all else has been checked.

    Args:
        output: the folder.
        config: what `run.json` will say was asked for.
        resume: it is the folder of a run to go on with.
        overwrite: what an earlier run left may be replaced.
        reads: what is to be read; it must not lie in what is replaced.
        flag: what names the folder.

    Raises:
        UsageError: the folder is not free.
    """
    existing = next(place for place in (output, *output.parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(
            f"{flag}: {output} cannot be made ({existing} is a file), expected a folder",
            f"choose another {flag}",
        )
    if resume or not output.exists() or not any(output.iterdir()):
        return
    for path in reads:
        if is_within(path, output):
            raise UsageError(
                f"{flag}: {output} holds {path}, which is to be read, expected another folder",
                f"choose another {flag}",
            )
    record = read_record(output)
    ours = record.get("command") == "segment"
    trains = ours and _trains(record.get("config", {}))
    if ours and not trains and record.get("exit_code") in _BROKEN_OFF:
        same = json.loads(json.dumps(config, default=str))
        if record.get("config") == same:
            return
    if not overwrite:
        on = f", or go on with: attcl segment --resume {output}" if trains else ""
        raise UsageError(
            f"{flag}: {output} is not empty, expected a new folder",
            f"choose another {flag}, or replace it with --overwrite{on}",
        )
    if not ours:
        raise UsageError(
            f"{flag}: {output} was not made by attcl segment (no run.json says so), "
            "expected a folder that --overwrite may replace",
            f"choose another {flag}",
        )


def clear(output: Path) -> None:
    """Removes what an earlier run wrote, and nothing else that a user may have put there."""
    from attcl_cli.segmentation import nnunet

    record = read_record(output)
    if record.get("command") != "segment":
        return
    nnunet.remove(output)
    for folder in (output, *(output / name for name in record.get("inputs", {}))):
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


def _trains(config: Mapping[str, Any]) -> bool:
    """Whether that is what a run that trains a segmenter was asked for."""
    other = {"evaluate", "export"} & set(config) or config.get("weights")
    return "overrides" in config and not other
