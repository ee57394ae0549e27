"""The request of a segmentation command, and what is checked before anything slow: datasets, inputs, output folder.

Checks only names and folders; files are checked by `inputs`. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Strict

from attcl_cli.completion.provenance import Provenance, read_provenance
from attcl_cli.data import originals, splits
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.originals import refuse_among_originals
from attcl_cli.data.splits import Splits, open_truth
from attcl_cli.documents import Document, Items, PathText, validated
from attcl_cli.errors import UsageError, quoted
from attcl_cli.files import is_within, refuse_inside, remove_files, require_empty, require_folder
from attcl_cli.run_log import LOG_FILE
from attcl_cli.run_record import read_record, require_no_other_run, was_broken_off
from attcl_cli.segmentation.inputs import (
    COMPLETED,
    INCOMPLETE,
    REAL,
    single_input,
)
from attcl_cli.segmentation.report import SCORES_FILE, SUMMARY_FILE
from attcl_cli.temporaries import is_empty

DEFAULT_INPUT = COMPLETED
DEFAULT_OUTPUT = "segment"
FILES = "files"  # the key of a record that lists the files of cases which are written
TRAINING, VALIDATION = "slices", "slices-val"  # caches of a run under way


@dataclass(frozen=True)
class Request:
    """The data that a command works on, as `run.json` keeps it.

    Attributes:
        ori: the incomplete dataset.
        cpl: the folder of the synthesised volumes.
        truth: the complete dataset; None: what `splits.json` names.
        layout: as in `Source`.
        modalities: as in `Source`.
        background: as in `Source`.
        force: take volumes that a check of their voxels refuses.
        input: what the segmenter sees; None: `DEFAULT_INPUT`.
        allow_missing: leave out what has no label map, or no prediction.
    """

    ori: str = "data"
    cpl: str = "out"
    truth: str | None = None
    layout: str = "auto"
    modalities: str | None = None
    background: BackgroundOption = "auto"
    force: bool = False
    input: str | None = None
    allow_missing: bool = False

    @property
    def source(self) -> Source:
        """Return the incomplete dataset."""
        vocabulary = Path(self.modalities) if self.modalities else None
        return Source(Path(self.ori), self.layout, vocabulary, background=self.background)

    @property
    def config(self) -> dict[str, Any]:
        """Return the request as `run.json` keeps it."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for name, usual in (("background", "auto"), ("force", False)):
            if value[name] == usual:  # as earlier versions wrote it
                del value[name]
        return value


@dataclass(frozen=True)
class TrainingRequest(Request):
    """The request of `attcl segment`, as `run.json` keeps it for --resume.

    Attributes:
        compare: train on all four inputs.
        preset: a key of `settings.PRESETS`; None in records of earlier versions: `base`.
        overrides: single settings.
        per_slice: also score slice by slice.
    """

    compare: bool = False
    preset: str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    per_slice: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """Return the request as `run.json` keeps it, with the folder to which its paths are relative."""
        return {**super().config, "cwd": str(Path.cwd())}


class _RequestDocument(Document):
    """A request in the `run.json` of a run to resume."""

    ori: PathText = "data"
    cpl: PathText = "out"
    truth: PathText | None = None
    layout: str = "auto"
    modalities: PathText | None = None
    background: BackgroundOption = "auto"
    force: bool = False
    input: str | None = None
    allow_missing: bool = False
    compare: bool = False
    preset: str | None = None
    overrides: Items[Annotated[tuple[str, Any], Strict(strict=False)]]
    per_slice: bool = False
    cwd: PathText | None = None


@dataclass(frozen=True)
class Study:
    """The datasets of a request, opened.

    Attributes:
        data: the incomplete dataset.
        splits: which case is in which split.
        provenance: what made the synthesised volumes.
    """

    data: Dataset
    splits: Splits
    provenance: Provenance


def as_text(path: Path | str | None) -> str | None:
    """Return a path as `Request` keeps it."""
    return None if path is None else str(path)


def open_study(request: Request) -> Study:
    """Open the incomplete dataset and what `attcl prepare-splits` says about it.

    Raises:
        AttclError: there is no such dataset.
        UsageError: it has no splits.
    """
    data = request.source.open()
    prepared = splits.read_splits(data.root)
    if prepared is None:
        raise UsageError(
            f"--ori: {data.root} has no splits.json, expected what attcl prepare-splits wrote",
            "run attcl prepare-splits DATASET; if the dataset is already incomplete, with a --ratio file that "
            "says hidden = [[]]",
            code="no-splits",
        )
    asked = dict.fromkeys(prepared.names("test"), ())
    provenance = read_provenance(Path(request.cpl), asked, data.patient_of)
    return Study(data, prepared, provenance)


def choose_inputs(request: TrainingRequest, data: Dataset) -> tuple[tuple[str, ...], list[str]]:
    """Return the inputs by name, and remarks on the choice.

    Raises:
        UsageError: one input is asked for together with all of them.
    """
    if not request.compare:
        return (request.input or DEFAULT_INPUT,), []
    if request.input is not None:
        raise UsageError(
            "--input: given with --compare, which takes them all, expected one of them",
            "leave --input out to compare, or --compare out to train on one",
            code="options-exclude-each-other",
        )
    single = single_input(data)
    if single is None:
        return (INCOMPLETE, COMPLETED, REAL), [
            "a single modality is left out: all cases share none"
        ]
    return (single, INCOMPLETE, COMPLETED, REAL), []


def open_ground_truth(request: Request, study: Study, names: Sequence[str]) -> Dataset | None:
    """Return the complete dataset if one of these inputs needs it; errors as `open_truth`."""
    if REAL not in names:
        return None
    return open_truth(
        request.source,
        study.splits,
        Path(request.truth) if request.truth is not None else None,
        hint="name it with --truth DATASET, or choose another --input",
    )


def resumed(output: Path, request: TrainingRequest) -> TrainingRequest:
    """Return the request of the run to resume, with the steps of `request` if it has any.

    Raises:
        UsageError: there is no such run, or the request has other options.
    """
    default = TrainingRequest()
    changed = [
        key
        for key, value in asdict(request).items()
        if value != getattr(default, key) and key != "force"
    ]
    new = dict(request.overrides)
    if (changed and changed != ["overrides"]) or set(new) - {"steps"}:
        flag = changed[0].replace("_", "-").replace("overrides", "set")
        raise UsageError(
            f"--resume: given with --{flag}, expected it alone",
            "a run keeps the options that it was started with; --steps may grow",
            code="options-exclude-each-other",
        )
    record = read_record(output)
    config: dict[str, Any] = record.get("config", {})
    if maker_of(record) != "segment" or "overrides" not in config:
        raise UsageError(
            f"--resume: {output} has no run.json of a run that trains a segmenter, expected the folder of one",
            "start without --resume, or name another run",
            code="nothing-to-resume",
        )
    before = validated(
        _RequestDocument,
        config,
        name=output / "run.json",
        expected="the config of a run that trains a segmenter",
        hint="restore it, or start a new run with another --output",
        code="invalid-record",
    )
    values = before.model_dump(include=before.model_fields_set - {"cwd"})
    for name in ("ori", "cpl", "truth", "modalities"):
        if values.get(name) is not None:
            values[name] = _from_there(values[name], before.cwd)
    values["force"] = request.force or before.force  # which earlier versions did not keep
    overrides = dict(before.overrides) | new
    return TrainingRequest(**{**values, "overrides": tuple(overrides.items())})


def _from_there(path: str, cwd: str | None) -> str:
    """Return a path of a run to resume: where the run began, or here, if the folders were moved since."""
    if cwd is None or Path(cwd) == Path.cwd() or not (Path(cwd) / path).exists():
        return path
    return str(Path(cwd) / path)


def refuse_place(
    output: Path, request: Request, study: Study, truth: Dataset | None, *, flag: str = "--output"
) -> None:
    """Raise a `UsageError` if results would lie among originals or among synthesised volumes."""
    datasets = (study.data, truth) if truth is not None else (study.data,)
    refuse_among_originals(output, originals.folders_of(*datasets), flag=flag)
    refuse_inside(output, [Path(request.cpl)], flag=flag, kept="synthesised volumes")


def maker_of(record: Mapping[str, Any]) -> str:
    """Return the command that made a folder, by its record; "" if none did."""
    command = record.get("command")
    return command if isinstance(command, str) else ""


def require_free(
    output: Path,
    *,
    command: str,
    config: Mapping[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    reads: Sequence[Path] = (),
    flag: str = "--output",
) -> None:
    """Raise a `UsageError` unless `output` is new, or resumed, or made by the same command and to be replaced.

    A folder where the very same evaluation or export was interrupted, or failed, may be begun again. Nothing is
    removed here: `clear` does that, once all else has been checked.

    Args:
        output: the folder.
        command: the command that writes it.
        config: the request, as `run.json` will keep it.
        resume: it is the folder of a run to resume.
        overwrite: what an earlier run of the same command left may be replaced.
        reads: what is to be read; it must not lie in what is replaced.
        flag: what names the folder.
    """
    require_folder(output, flag=flag)
    require_no_other_run(output, flag=flag)
    if resume or not output.exists() or is_empty(output):
        return
    for path in reads:
        if is_within(path, output):
            raise UsageError(
                f"{flag}: {output} holds {path}, which is to be read, expected another folder",
                f"choose another {flag}",
                code="output-holds-input",
            )
    record = read_record(output)
    maker, trains = maker_of(record), command == "segment"
    broken_off = was_broken_off(record)
    if maker == command and not trains and broken_off and record.get("config") == config:
        return
    if not overwrite:
        hint = "or replace it with --overwrite" if maker == command else ""
        if hint and trains:
            hint += f", or resume it: attcl segment --resume {quoted(output)}"
        require_empty(output, flag=flag, hint=hint)
    if maker != command:
        origin = f"it is of attcl {maker}" if maker else "no run.json says so"
        raise UsageError(
            f"{flag}: {output} was not made by attcl {command} ({origin}), "
            "expected a folder that --overwrite may replace",
            f"choose another {flag}",
            code="output-not-ours",
        )


def clear(
    output: Path,
    *,
    command: str,
    config: Mapping[str, Any],
    overwrite: bool = False,
    flag: str = "--output",
    remove: Callable[[Path, Mapping[str, Any]], None] | None = None,
) -> None:
    """Remove what an earlier run of this command wrote, and nothing else that a user may have put there.

    Args:
        output: the folder; checked again (`require_free`), since another run may have begun there meanwhile.
        command: the command.
        config: as `require_free`.
        overwrite: as `require_free`.
        flag: what names the folder.
        remove: removes what the run with this record wrote, by name; None: log, scores and page. What the record names
            as its files is removed, too.
    """
    require_free(output, command=command, config=config, overwrite=overwrite, flag=flag)
    record = read_record(output)
    if maker_of(record) != command:
        return
    if remove is None:
        remove_results(output)
    else:
        remove(output, record)
    files = [output / name for name in record.get(FILES, ())]
    for file in files:
        if is_within(file.parent, output):  # what a link leads to is not ours
            file.unlink(missing_ok=True)
    for folder in {file.parent for file in files} - {output}:
        if is_within(folder, output):
            remove_files(folder, ())
    (output / "run.json").unlink()


def remove_results(output: Path) -> None:
    """Remove the log, the scores and the page of a run."""
    from attcl_cli.report.page import REPORT_FILE  # loads matplotlib

    for name in (LOG_FILE, SCORES_FILE, SUMMARY_FILE, REPORT_FILE):
        (output / name).unlink(missing_ok=True)
