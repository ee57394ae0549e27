"""The streams of a command, stdout and stderr, of which a reader may leave or the disk be full.

What is written to them is left to `terminal`; what a reader who left means for a run, to `run_ends`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from attcl_cli.errors import AttclError
from attcl_cli.run_ends import is_finished, lose_reader

_LEFT = {errno.EPIPE, errno.EIO}  # a pipe without reader, a terminal that was closed


class _Watched:
    """A stream that raises no error: what nobody can read any more is dropped."""

    def __init__(self, stream: TextIO, on_left: Callable[[], None]) -> None:
        """Take a stream.

        Args:
            stream: what is written to.
            on_left: called when its reader has left.
        """
        self._stream, self._on_left = stream, on_left
        self.error: OSError | None = None  # the first one

    def __getattr__(self, name: str) -> Any:
        """Return all else as the stream has it."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return len(text) if self._is_left else self._stream.write(text)
        except OSError as error:
            self._note(error)
            return len(text)

    def flush(self) -> None:
        """Write what waits in memory."""
        try:
            if not self._is_left:
                self._stream.flush()
        except OSError as error:
            self._note(error)

    def close_failed(self) -> None:
        """Let nothing more be written: Python itself tries so at the end of the process, and complains."""
        if self.error is not None:
            with contextlib.suppress(OSError, ValueError):  # no real file
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    @property
    def _is_left(self) -> bool:
        return self.error is not None and self.error.errno in _LEFT

    def _note(self, error: OSError) -> None:
        if self.error is None:
            self.error = error
        if error.errno in _LEFT:
            self.error = error
            self.close_failed()
            self._on_left()


def occupy_closed() -> None:
    """Put the null device in the place of stdin, stdout and stderr that were closed before this process began.

    Otherwise the next file that is opened gets the number of one of them, and a message of a compiled library its text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number


@contextmanager
def watched() -> Iterator[None]:
    """Watch over stdout and stderr within the block.

    A reader of stdout who leaves, as `attcl info | head` does, has read enough. One of stderr who leaves ends a run
    that is under way, as SIGPIPE does. A full disk behind stderr costs messages, behind stdout the result.

    Raises:
        AttclError: results could not be written to stdout.
    """
    before = sys.stdout, sys.stderr
    out = _Watched(_opened(sys.stdout), lambda: None)
    err = _Watched(_opened(sys.stderr), lose_reader)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    try:
        yield
        out.flush()
        if out.error is not None and out.error.errno not in _LEFT:
            again = (
                "; the run is finished, and its files are whole (run.json: done)"
                if is_finished()
                else ", then run the same command again"
            )
            raise AttclError(
                f"stdout: not written ({out.error.strerror}), expected a place with free space",
                f"free some space, or write to another file{again}",
                code="file-not-written",
            )
    finally:
        err.flush()
        out.close_failed()
        err.close_failed()
        sys.stdout, sys.stderr = before


def _opened(stream: TextIO | None) -> TextIO:
    """Return a stream; if it was closed before this process began, one that goes nowhere."""
    return cast("TextIO", _Nowhere()) if stream is None else stream


class _Nowhere:
    """A stream that nobody reads."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Drop a text."""
        return len(text)

    def flush(self) -> None:
        """Do nothing."""

    def isatty(self) -> bool:
        """Return False."""
        return False

    def fileno(self) -> int:
        """Raise the error of a stream that is no file."""
        raise OSError("no file")
