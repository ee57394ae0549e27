"""`run.json`: what a command did, with what, to which cases, and how it ended; written at the start and at the end.

What a stage's options and results mean is left to the stage.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attcl_cli import __version__
from attcl_cli.devices import Precision
from attcl_cli.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_INTERRUPTED, AttclError
from attcl_cli.files import read_json, write_json

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
    _started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _clock: float = field(default_factory=time.monotonic)

    def resume(self) -> None:
        """Keep the arguments, times and ends of the parts that the file at `path` tells of, if it is this command's.

        A part with status "running" was killed, and how long it ran is not known.
        """
        before = read_record(self.path.parent, self.path.name)
        if before.get("command") == self.command:
            part = {key: before.get(key) for key in _PART}
            self.earlier = [*before.get("earlier", []), part]

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write the record when the block begins, and replace it however the block ends.

        Failed cases make the exit code 3. If the block raises, and the record cannot be written either (a full disk),
        the error of the block is the one that is raised.
        """
        self.start()
        code, raises = EXIT_FAILED, True
        try:
            yield
            code, raises = EXIT_INCOMPLETE if self.count("failed") else 0, False
        except AttclError as error:
            code = error.exit_code
            raise
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
            raise
        finally:
            try:
                self.finish(code)
            except AttclError:
                if not raises:
                    raise

    def start(self) -> None:
        """Write the record with status "running"."""
        self._write("running", None)

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
        """
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

    def count(self, status: str) -> int:
        """Return how many cases ended with this status."""
        return sum(record["status"] == status for record in self.cases)

    def finish(self, exit_code: int) -> None:
        """Replace the record by the final one."""
        self._write(_ENDS.get(exit_code, "failed"), exit_code)

    def _write(self, status: str, exit_code: int | None) -> None:
        torch = sys.modules.get("torch")  # never imported for this alone
        seconds = round(time.monotonic() - self._clock, 3)
        write_json(
            self.path,
            {
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
                "exit_code": exit_code,
            },
        )


def read_record(folder: Path, name: str = "run.json") -> dict[str, Any]:
    """Return the record in a folder; {} if there is none, or it is no record.

    Raises:
        AttclError: the file is no JSON.
    """
    path = folder / name
    record = read_json(path) if path.is_file() else {}
    return record if isinstance(record, dict) else {}


def precision_for(precision: Precision | None, resumed: Path | None) -> Precision:
    """Return the precision to run in: the one asked for, otherwise that of the run to resume, otherwise fp32."""
    if precision is None and resumed is not None:
        precision = "bf16" if read_record(resumed).get("precision") == "bf16" else None
    return precision or "fp32"
