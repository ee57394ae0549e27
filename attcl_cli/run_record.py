"""`run.json`: what a command did, with what, to which cases, and how it ended; written at the start and at the end."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attcl_cli import __version__
from attcl_cli.devices import Precision
from attcl_cli.errors import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    AttclError,
    IncompleteError,
)
from attcl_cli.files import read_json, write_json

SCHEMA_VERSION = 1

# Exit code -> status; any other code is "failed".
_ENDS = {0: "done", EXIT_INCOMPLETE: "incomplete", EXIT_INTERRUPTED: "stopped"}


@dataclass
class RunRecord:
    """The record of one run; `start` writes it with status "running", `finish` replaces it with how it ended.

    Attributes:
        path: the file.
        command: `complete`, `train`, ...
        config: the options that the run went by.
        seed: its seed.
        device: where networks ran; "" where none did.
        weights: name and SHA-256 of the weights used; empty where none were.
        cases: one record a case: id, status, seconds, outputs, and error where it failed.
    """

    path: Path
    command: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    _started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _clock: float = field(default_factory=time.monotonic)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Writes the record when the block begins, and replaces it however the block ends.

        Failed cases make the exit code 3. Where the record cannot be written beside another error (a full disk), the
        other one is told.
        """
        self.start()
        code, told = EXIT_FAILED, True
        try:
            yield
            code, told = IncompleteError.exit_code if self.count("failed") else 0, False
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
                if not told:
                    raise

    def start(self) -> None:
        """Writes the record with status "running"."""
        self._write("running", None)

    def add(
        self, case: str, status: str, *, seconds: float, outputs: list[str], error: str = ""
    ) -> None:
        """Notes what became of a case; kept in memory until `finish`, for the files themselves tell progress."""
        record: dict[str, Any] = {
            "id": case,
            "status": status,
            "seconds": round(seconds, 3),
            "outputs": outputs,
        }
        if error:
            record["error"] = error
        self.cases.append(record)

    def count(self, status: str) -> int:
        """How many cases ended with this status."""
        return sum(record["status"] == status for record in self.cases)

    def finish(self, exit_code: int) -> None:
        """Replaces the record by the final one."""
        self._write(_ENDS.get(exit_code, "failed"), exit_code)

    def _write(self, status: str, exit_code: int | None) -> None:
        torch = sys.modules.get("torch")  # never imported for this alone
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
                "seconds": round(time.monotonic() - self._clock, 3),
                "cases": self.cases,
                **self.extra,
                "exit_code": exit_code,
            },
        )


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` in a folder; empty where there is none, or it is no record."""
    path = folder / "run.json"
    record = read_json(path) if path.is_file() else {}
    return record if isinstance(record, dict) else {}


def precision_for(asked: Precision | None, resumed: Path | None) -> Precision:
    """What networks compute in: what was asked for, else what the run to resume did, else float32."""
    told = read_record(resumed).get("precision") if asked is None and resumed else asked
    return "bf16" if told == "bf16" else "fp32"
