"""How a stage reports what it does without knowing who listens: a protocol, and a listener that stays silent.

The command line's listener is `cli.terminal.Terminal`, `run_log.RunLog` keeps all in a file besides; a notebook may
bring its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from attcl_cli.errors import AttclError


class Bar(Protocol):
    """Counts the items of one task."""

    def __call__(self, item: str = "", *, to: int | None = None, left: float | None = None) -> None:
        """Count one more item as done (or all up to number `to`), and show `item` beside it.

        Args:
            item: what is done.
            to: its number, from 1.
            left: seconds to the end, if the caller knows better than the pace so far.
        """


class Progress(Protocol):
    """Listens to a stage."""

    def bar(
        self, total: int, title: str, *, every_seconds: float = 0
    ) -> AbstractContextManager[Bar]:
        """Open a bar of `total` items; without a terminal it speaks every so many seconds at most."""

    def say(self, text: str) -> None:
        """Show a line that everybody should read."""

    def detail(self, text: str) -> None:
        """Show a line that only a curious user wants."""

    def fail(self, error: AttclError) -> None:
        """Show an error of a single case, after which the run continues."""


class Silent:
    """Listens, and shows nothing."""

    @contextmanager
    def bar(self, total: int, title: str, *, every_seconds: float = 0) -> Iterator[Bar]:
        """See `Progress`."""
        del total, title, every_seconds
        yield _count_nothing

    def say(self, text: str) -> None:
        """See `Progress`."""

    def detail(self, text: str) -> None:
        """See `Progress`."""

    def fail(self, error: AttclError) -> None:
        """See `Progress`."""


SILENT = Silent()

_LONG_MINUTES = 10  # from which on nobody asks for seconds


class Lines:
    """Counts the items of a task in lines of text: for a listener that draws no bar.

    Attributes:
        done: how many items are done.
    """

    def __init__(self, total: int, title: str, *, every_seconds: float = 0) -> None:
        """Begin to count.

        Args:
            total: number of items.
            title: what is counted.
            every_seconds: the shortest time between two lines; 0: a line per item.
        """
        self.done = 0
        self._total, self._title, self._every = total, title, every_seconds
        self._before = 0  # items of an earlier run
        self._clock = self._last = time.monotonic()

    def count(self, item: str = "", *, to: int | None = None, left: float | None = None) -> str:
        """Count as a `Bar` does; return the line of the item, "" if none is due."""
        if to is not None and self.done == 0:
            self._before = self.done = to - 1
        self.done = self.done + 1 if to is None else to
        now = time.monotonic()
        if self._every and now - self._last < self._every and self.done < self._total:
            return ""
        self._last = now
        line = f"{self._title} {self.done}/{self._total} {item}".rstrip()
        if self.done >= self._total:
            return line
        seconds = (now - self._clock) / max(self.done - self._before, 1)
        pace = "" if self._every else f"{seconds:.1f} s each, "
        if left is None:
            left = seconds * (self._total - self.done)
        return f"{line} ({pace}{duration(left)} left)"


def duration(seconds: float) -> str:
    """Return a time in words, as exact as people need it: `41 s`, `2 min 05 s`, `12 min`, `1 h 30 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= _LONG_MINUTES:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _count_nothing(item: str = "", *, to: int | None = None, left: float | None = None) -> None:
    del item, to, left
