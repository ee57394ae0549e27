"""The log of a run: everything that its stage reports, a line each with the time, in a file beside `run.json`.

Listens to a stage in place of the terminal, and passes everything on to it. When the file is opened is up to
`run_record`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from attcl_cli import __version__
from attcl_cli.confined import require_inside
from attcl_cli.errors import AttclError, single_problems, visible
from attcl_cli.files import not_written
from attcl_cli.progress import Bar, Lines, Progress

LOG_FILE = "log.txt"
_STEPS_SECONDS = 60.0  # between two lines of a bar that counts steps


class RunLog:
    """Passes on what a stage reports, and keeps it in the log of its run.

    What is reported before the file is open waits in memory: few lines, since a run that has no record makes nothing.
    """

    def __init__(self, progress: Progress) -> None:
        """Take the listener that everything is passed on to."""
        self._progress = progress
        self._file: FileIO | None = None
        self._waiting: list[tuple[datetime, str]] = []  # what was reported, and when

    def begin(self, path: Path, command: str) -> None:
        """Open the file, after the lines of earlier runs, and write what has waited.

        Args:
            path: the file; made if it is missing.
            command: of the run: `complete`, `train`, ...

        Raises:
            AttclError: a link leads out of the folder of the run, or the file cannot be written.
        """
        if self._file is not None:
            return
        require_inside(path, in_place=True)
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise not_written(path, error) from error
        before, self._waiting = self._waiting, []
        began = before[0][0] if before else datetime.now(UTC)
        self._write(began, f"attcl {__version__} {command} begins: {shlex.join(sys.argv)}")
        for when, text in before:
            self._write(when, text)

    def end(self, status: str, seconds: float, error: AttclError | None = None) -> None:
        """Write how the run ended, and close the file."""
        if self._file is None:
            return
        if error is not None:
            self._note_error(error)
        self._note(f"{status} after {seconds:.1f} s")
        with suppress(OSError):
            self._file.close()
        self._file = None

    @contextmanager
    def bar(self, total: int, title: str, *, every_seconds: float = 0) -> Iterator[Bar]:
        """See `Progress`: a line per item in the log, or per minute if these are steps."""
        lines = Lines(total, title, every_seconds=every_seconds and _STEPS_SECONDS)
        with self._progress.bar(total, title, every_seconds=every_seconds) as bar:

            def count(item: str = "", *, to: int | None = None, left: float | None = None) -> None:
                bar(item, to=to, left=left)
                if line := lines.count(item, to=to, left=left):
                    self._note(line)

            yield count

    def say(self, text: str) -> None:
        """See `Progress`."""
        self._progress.say(text)
        self._note(text)

    def detail(self, text: str) -> None:
        """See `Progress`: details are in the log, whoever listens."""
        self._progress.detail(text)
        self._note(text)

    def fail(self, error: AttclError) -> None:
        """See `Progress`."""
        self._progress.fail(error)
        self._note_error(error)

    def _note_error(self, error: AttclError) -> None:
        for single in single_problems(error):
            self._note(f"error: {single.message}")
            if single.hint:
                self._note(f"hint: {single.hint}")

    def _note(self, text: str) -> None:
        self._write(datetime.now(UTC), text)

    def _write(self, when: datetime, text: str) -> None:
        if self._file is None:
            self._waiting.append((when, text))
            return
        line = f"{when:%Y-%m-%dT%H:%M:%SZ} {visible(text)}\n"
        # A log that finds no room ends no run: the next result that finds none does, and says so.
        with suppress(OSError):
            self._file.write(line.encode())
