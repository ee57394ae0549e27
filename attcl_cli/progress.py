"""How a stage reports what it does without knowing who listens: a protocol, and a listener that stays silent.

The command line's listener is `cli.terminal.Terminal`; a notebook may bring its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from attcl_cli.errors import AttclError


class Bar(Protocol):
    """Counts the items of one task."""

    def __call__(self, item: str = "", *, to: int | None = None) -> None:
        """Count one more item as done (or all up to number `to`), and show `item` beside it."""


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


def _count_nothing(item: str = "", *, to: int | None = None) -> None:
    del item, to
