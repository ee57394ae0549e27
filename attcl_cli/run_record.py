"""`run.json`: what a command did, with what, to which cases, and how it ended; written at the start and at the end.

What a stage's options and results mean is left to the stage.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attcl_cli import __version__, run_ends
from attcl_cli.confined import confined
from attcl_cli.devices import Precision
from attcl_cli.errors import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    AttclError,
    InterruptedRun,
    UsageError,
    fold,
    raise_all,
    some,
)
from attcl_cli.files import (
    encoded,
    not_written,
    ordinary_mode,
    read_json,
    sync_folder,
    write_json,
    write_whole,
)
from attcl_cli.run_log import LOG_FILE, RunLog
from attcl_cli.temporaries import close_temporary, is_being_written, open_temporary, sweep

SCHEMA_VERSION = 1

# What a record keeps of an earlier part of its run.
_PART = (
    "attcl_version",
    "argv",
    "seed",
    "device",
    "torch_version",
    "started",
    "seconds",
    "status",
    "exit_code",
)
# Exit code -> status; any other code is "failed".
_ENDS = {0: "done", EXIT_INCOMPLETE: "incomplete", EXIT_INTERRUPTED: "stopped"}
_BEGINNING = 4096  # bytes of a result that are looked at
_LIFE_SECONDS = 60.0  # between two signs of life
_RESERVED = 16_384  # bytes that a record may grow by on a full disk


@dataclass
class RunRecord:
    """The record of one run; `start` writes it with status "running", `finish` replaces it with how it ended.

    Attributes:
        path: the file.
        command: `complete`, `train`, ...
        config: the options of the run.
        seed: its seed.
        device: the device of the networks; "" if none ran.
        weights: name and SHA-256 of the weights used; empty if there were none.
        cases: one record per case: id, status, seconds, outputs, and of a failed case error and code.
        extra: further keys of this command.
        earlier: the parts of the run before this one, oldest first: their arguments, times and ends (`resume`).
        again: how the run is resumed if it does not end well, an imperative.
        alone: the file must be new: of runs that begin in one folder at the same time, one goes on.
        outputs_in: the folder that the outputs of cases are relative to; None: that of the record.
        results: files besides the outputs of cases that must be there when the run ends.
        beside: case id -> further files that belong to its outputs.
    """

    path: Path
    command: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    again: str = run_ends.AGAIN
    alone: bool = False
    outputs_in: Path | None = None
    results: list[Path] = field(default_factory=list)
    beside: Callable[[str], Iterable[Path]] = lambda _case: ()
    _started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _clock: float = field(default_factory=time.monotonic)
    _lived: float | None = (
        None  # the clock when the file was last written while running; None: it was not
    )
    _begun: Path | None = None  # the file that `start` wrote
    _reserve: tuple[int, Path] | None = (
        None  # a file whose room the record takes if the disk is full
    )

    @property
    def begun(self) -> bool:
        """Whether the record was written at all."""
        return self._begun is not None

    def resume(self) -> None:
        """Keep the arguments, times and ends of the parts that the file at `path` tells of, if it is this command's.

        A part with status "running" was killed; its time is that of its last sign of life (`live`).
        """
        before = read_record(self.path.parent, self.path.name)
        if before.get("command") == self.command:
            part = {key: before.get(key) for key in _PART}
            self.earlier = [*before.get("earlier", []), part]

    @contextmanager
    def recorded(self, log: RunLog | None = None) -> Iterator[None]:
        """Write the record when the block begins, and replace it however the block ends; so too the log.

        Failed cases make the exit code 3. Within the block, signals raise `run_ends.Stop`, and what earlier runs left
        in the folder is swept. If the block raises, and the record cannot be written either, the error of the block
        is the one that is raised. However the block ends, a case whose files were removed meanwhile failed. If the
        record is removed, nothing more is written (`confined`), so that the folder is not made anew without it.

        Args:
            log: gets its file beside the record (`log_file`); None: the run keeps none.

        Raises:
            InterruptedRun: a signal ended the run.
            AttclError: no space, no memory, or the folder was removed while the run wrote into it.
        """
        whole = (
            run_ends.STATE.handling and not run_ends.STATE.records
        )  # of a command, no stage of it
        with run_ends.signals(), confined(self.path.parent):
            mine = run_ends.in_main_thread()  # the only one that signals break into
            ended: BaseException | None = None
            run_ends.STATE.records += 1
            try:
                run_ends.require_heard()
                sweep(self.path.parent)
                self.start()
                with confined(self.path.parent, lasting=self._begun):
                    if log is not None:
                        log.begin(log_file(self.path), self.command)
                    yield
                    self.require_files()
                run_ends.STATE.held += mine  # a signal that comes later does not end this run
            except BaseException as error:  # noqa: BLE001 - raised again below, when it is on record
                run_ends.STATE.held += (
                    mine  # before any call: a signal may come between two of them
                )
                run_ends.STATE.ending |= mine
                ended = error
            problem = None
            try:
                problem = self._explained(ended)
                self._end(ended, problem)
            finally:
                self._release()
                if log is not None:
                    code, note = self._outcome(ended, problem)
                    log.end(_ENDS.get(code, "failed"), self._seconds(), note)
                run_ends.STATE.records -= 1
                if whole and mine and ended is None and problem is None:
                    run_ends.finish()
                run_ends.STATE.held -= mine
            if problem is not None and not isinstance(ended, GeneratorExit | AttclError):
                raise problem from ended
            if ended is not None:
                raise problem or ended

    def start(self) -> None:
        """Write the record with status "running", also anew with what was found since; keep some room for its end."""
        self._require_kept()
        new = self.alone and self._begun is None
        with run_ends.held():  # a file that is there is known as ours
            write_whole(self.path, encoded(self._document("running", None)), new=new)
            self._lived, self._begun = time.monotonic(), self.path
            if self._reserve is None:
                self._reserve = _reserved(self.path)

    def live(self) -> None:
        """Write the record anew after a minute: if the run is killed, `seconds` says how long it lived at least.

        Raises:
            AttclError: the record was removed, and with it the folder.
        """
        now = time.monotonic()
        if self._lived is not None and now - self._lived > _LIFE_SECONDS:
            self._require_kept()
            write_json(self.path, self._document("running", None))
            self._lived = now

    def add(
        self,
        case: str,
        status: str,
        *,
        seconds: float,
        outputs: Sequence[str],
        error: AttclError | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        """Note how a case ended; kept in memory until `finish`, since the files themselves show the progress.

        Args:
            case: its id.
            status: `done`, `failed` or `present`.
            seconds: that it took.
            outputs: the files, relative to the output folder.
            error: of a failed case.
            further: keys of this command.

        Raises:
            AttclError: the record was removed, and with it the folder.
        """
        self._require_kept()
        record: dict[str, Any] = {
            "id": case,
            "status": status,
            "seconds": round(seconds, 3),
            "outputs": list(outputs),
        }
        if error is not None:
            record |= {"error": error.message, "code": error.code}
        record |= further or {}
        self.cases.append(record)
        self.live()

    def require_files(self) -> None:
        """Check that all is there that the run has made; note the cases that lost files as failed.

        Raises:
            AttclError: a case lost files, or a result, or the record itself is gone.
        """
        problems = self._note_losses()
        self._require_kept()
        problems += [self._removed(path) for path in self.results if not os.path.lexists(path)]
        raise_all(fold(problems, lambda problem: problem.code))

    def count(self, status: str) -> int:
        """Return how many cases ended with this status."""
        return sum(record["status"] == status for record in self.cases)

    def finish(self, exit_code: int, error: AttclError | None = None) -> None:
        """Replace the record by the final one.

        Args:
            exit_code: of the run.
            error: what ended it.

        Raises:
            AttclError: the record cannot be written, or a run that ended well has lost its folder at the last moment.
        """
        document = self._document(_ENDS.get(exit_code, "failed"), exit_code, error)
        if not self._replace(document):
            if error is None:
                self._require_kept()
            write_json(self.path, document)

    def _explained(self, ended: BaseException | None) -> AttclError | None:
        """Return the error that the user hears of what ended the block; None: none, or the exception itself."""
        if ended is None:
            return None
        stopped = isinstance(ended, InterruptedRun)
        if self._is_lost() and isinstance(ended, AttclError | OSError) and not stopped:
            return self._lost()  # what fails then is a consequence
        return run_ends.explained(ended, self.again)

    def _outcome(
        self, ended: BaseException | None, problem: AttclError | None
    ) -> tuple[int, AttclError | None]:
        """Return the exit code, and the error to note of what ended the block; None: nothing did."""
        if ended is None:
            return (EXIT_INCOMPLETE if self.count("failed") else 0), None
        note = problem
        if note is None and isinstance(ended, KeyboardInterrupt):
            note = run_ends.stopped(self.again)
        elif note is None:
            note = AttclError(f"{type(ended).__name__}: {ended}", code="unexpected")
        return note.exit_code, note

    def _end(self, ended: BaseException | None, problem: AttclError | None) -> None:
        """Write the final record; of a folder that was removed only if others have made it anew."""
        code, note = self._outcome(ended, problem)
        if ended is not None:
            self._note_losses()
        # nothing was begun, or all is gone
        gone = self._begun is None or not self._begun.parent.is_dir()
        if ended is not None and gone:
            return
        try:
            self.finish(code, note)
        except AttclError as second:
            if ended is None:
                raise
            if problem is not None:
                problem.hint += f"; {self.path} still says running ({second.message})"

    def _note_losses(self) -> list[AttclError]:
        """Note each case whose files were removed as failed, with the outputs that are left; return why."""
        folder = self.outputs_in or self.path.parent
        problems = []
        for record in self.cases:
            paths = [*(folder / file for file in record["outputs"]), *self.beside(record["id"])]
            lost = next((path for path in paths if not os.path.lexists(path)), None)
            if lost is None:
                continue
            problems.append(self._removed(lost))
            left = [file for file in record["outputs"] if os.path.lexists(folder / file)]
            record["outputs"] = left
            if record["status"] != "failed":
                error = problems[-1]
                record |= {"status": "failed", "error": error.message, "code": error.code}
        return problems

    def _removed(self, path: Path) -> AttclError:
        return AttclError(
            f"{path}: removed while the run was going on, expected what a run writes to stay",
            self.again,
            code="output-removed",
        )

    def _is_lost(self) -> bool:
        """Return whether the record that `start` wrote is gone."""
        return self._begun is not None and not self._begun.exists()

    def _lost(self) -> AttclError:
        folder = self.path.parent
        lost = self.path if folder.is_dir() and any(folder.iterdir()) else folder
        return AttclError(
            f"{lost}: removed while the run wrote into {'it' if lost == folder else 'its folder'}, "
            "expected what a run writes to stay",
            self.again if self.again == run_ends.AGAIN else "start a new run",
            code="output-removed",
        )

    def _require_kept(self) -> None:
        if self._is_lost():
            raise self._lost()

    def _replace(self, document: dict[str, Any]) -> bool:
        """Write the final record into the file that keeps room for it, and rename that; return whether it worked.

        On a full disk, cases that have no room are left out.
        """
        if self._reserve is None:
            return False
        handle, place = self._reserve
        short = {**document, "cases": [], "cases_left_out": len(self.cases)}
        written = _refill(handle, encoded(document)) or _refill(handle, encoded(short))
        try:
            place.chmod(ordinary_mode(0o666))
            if written:
                place.replace(self.path)
                sync_folder(self.path.parent)
        except OSError:
            return False
        return written

    def _release(self) -> None:
        if self._reserve is not None:
            close_temporary(*self._reserve)
            self._reserve = None

    def _seconds(self) -> float:
        return round(time.monotonic() - self._clock, 3)

    def _document(
        self, status: str, exit_code: int | None, error: AttclError | None = None
    ) -> dict[str, Any]:
        torch = sys.modules.get("torch")  # never imported for this alone
        seconds = self._seconds()
        return {
            "schema_version": SCHEMA_VERSION,
            "attcl_version": __version__,
            "status": status,
            "command": self.command,
            "argv": sys.argv,
            "config": self.config,
            "seed": self.seed,
            "device": self.device,
            "python_version": platform.python_version(),
            "torch_version": str(torch.__version__) if torch else None,
            "weights": self.weights,
            "started": self._started,
            "seconds": seconds,
            "seconds_in_all": round(
                seconds + sum(part["seconds"] or 0 for part in self.earlier), 3
            ),
            "earlier": self.earlier,
            "cases": self.cases,
            **self.extra,
            "error": error.message if error is not None else None,
            "code": error.code if error is not None else None,
            "exit_code": exit_code,
        }


def log_file(record: Path) -> Path:
    """Return where the log of a run lies: `log.txt` beside `run.json`, `log-1of4.txt` beside `run-1of4.json`."""
    name = Path(LOG_FILE)
    return record.with_name(f"{name.stem}{record.stem.removeprefix('run')}{name.suffix}")


SCORES = ("report.html", "scores.csv", "summary.json", "montage.png")
"""What `score` and `demo` write beside their record."""

# Names of results -> what is in the first bytes of one of ours.
_MARKS = {
    "report.html": b'name="generator" content="attcl"',
    "scores.csv": b"case,modality,source,",
    "summary.json": b'"attcl_version"',
    "montage.png": b"Software\0attcl",
}


def require_no_other(
    path: Path,
    command: str,
    *,
    flag: str,
    besides: str = "",
    results: Sequence[str] = ("report.html",),
) -> None:
    """Check that a record would not take the place of another command's or program's, and with it of its page and log.

    Args:
        path: where the record goes.
        command: whose it is.
        flag: the option that names the folder.
        besides: a command whose record may be replaced.
        results: what the command writes beside the record, of the names that are known here.

    Raises:
        UsageError: a record of another command lies there, or files of another program have the names of results.
    """
    record = read_record(path.parent, path.name)
    found = record.get("command", command)
    if found not in {command, besides}:
        raise UsageError(
            f"{flag}: {path} is the record of attcl {found}, expected a folder that no other command writes",
            "choose another folder",
            code="folder-of-another-command",
        )
    if record.get("command"):
        return
    others = [path] if path.exists() else []
    others += [it for name in results if not _is_marked(it := path.parent / name, _MARKS[name])]
    if others:
        raise UsageError(
            f"{flag}: {some(others)}: not written by attcl, as it seems, expected no other files of these names",
            "move them away, or choose another folder",
            code="output-not-ours",
        )


def _is_marked(path: Path, mark: bytes) -> bool:
    """Return whether a file begins as one of ours, or is not there."""
    if not path.is_file():
        return not path.exists()
    with path.open("rb") as file:
        return mark in file.read(_BEGINNING)


def read_record(folder: Path, name: str = "run.json") -> dict[str, Any]:
    """Return the record in a folder; {} if there is none, or it is no record.

    Raises:
        AttclError: the file is no JSON, or a key has a value of another kind.
    """
    path = folder / name
    document = read_json(path, default={})
    if not isinstance(document, dict) or not document:
        return {}
    from attcl_cli.documents import RunDocument, validated  # noqa: PLC0415 - loads pydantic

    validated(
        RunDocument,
        document,
        name=path,
        expected="the record of a run",
        hint="restore it, or move it away and start anew",
        code="invalid-record",
    )
    return document


def has_saved(record: Mapping[str, Any]) -> bool:
    """Return whether a training came to its end, or was stopped and saved (not: by a second Ctrl-C)."""
    return record.get("exit_code") == 0 or record.get("code") == "stopped"


def was_broken_off(record: Mapping[str, Any]) -> bool:
    """Return whether the run of a record was killed, stopped or failed, so that it may be begun again."""
    return record.get("exit_code") in {None, EXIT_FAILED, EXIT_INTERRUPTED}


def require_no_other_run(folder: Path, *, flag: str) -> None:
    """Raise a `UsageError` if a living run, seen by the room that it keeps for its record, writes into a folder.

    Args:
        folder: the folder.
        flag: what names it.
    """
    if is_being_written(folder / "run.json"):
        raise UsageError(
            f"{flag}: {folder} is being written by another run, expected a folder for one run",
            "wait until it ends, or stop it"
            if flag == "--resume"
            else f"wait until it ends, or choose another {flag}",
            code="output-in-use",
        )


def finish_killed(folder: Path) -> None:
    """Replace the record of a run that was broken off after its work was done, and sweep what it left."""
    sweep(folder)
    record = read_record(folder)
    if record and was_broken_off(record):
        ended = {"status": "done", "exit_code": 0, "error": None, "code": None}
        write_json(folder / "run.json", {**record, **ended})


def precision_for(precision: Precision | None, resumed: Path | None) -> Precision:
    """Return the precision to run in: the one asked for, otherwise that of the run to resume, otherwise fp32."""
    if precision is None and resumed is not None:
        precision = "bf16" if read_record(resumed).get("precision") == "bf16" else None
    return precision or "fp32"


def _reserved(path: Path) -> tuple[int, Path]:
    """Return an open temporary file beside a record, with room for it and more.

    Raises:
        AttclError: there is no such room.
    """
    try:
        handle, place = open_temporary(path)
        try:
            os.write(handle, bytes(path.stat().st_size * 2 + _RESERVED))
        except OSError:
            close_temporary(handle, place)
            raise
    except OSError as error:
        raise not_written(path, error) from error
    return handle, place


def _refill(handle: int, data: bytes) -> bool:
    """Replace what an open file holds; return whether the disk has room for it."""
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(handle, data[written:], written)
        os.ftruncate(handle, len(data))
        os.fsync(handle)
    except OSError as error:
        # room that was taken before may be written to, although a full disk refuses to wait for it
        return error.errno in run_ends.FULL and written == len(data)
    return True
