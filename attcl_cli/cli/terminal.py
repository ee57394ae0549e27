"""The only module that writes to the terminal: results to stdout, progress and messages to stderr.

Knows how things are shown, also names that hold control characters, and on terminals that know few letters; what they
mean is left to the commands.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO, cast

import typer

from attcl_cli.errors import UNSEEN, AttclError, counted, single_problems, visible
from attcl_cli.progress import Lines, duration
from attcl_cli.report.rounding import number

_MAX_PROBLEMS = 50
_TABLE_GAP = 2  # between columns
_LEAST_WORDS = 8  # letters that a folded column of words has
_WITHOUT_PACE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # of tqdm


class TerminalBar:
    """One bar on a terminal; otherwise a plain line per item, or every few seconds."""

    def __init__(self, *, total: int, title: str, every_seconds: float, quiet: bool) -> None:
        """Open a bar.

        Args:
            total: number of items.
            title: what is counted.
            every_seconds: without a terminal, the shortest time between two lines; 0: a line per item.
            quiet: show nothing.
        """
        self._quiet = quiet
        self._lines = Lines(total, title, every_seconds=every_seconds)
        self._bar: Any = None
        stream = _Gate(sys.stderr)
        if not quiet and stream.isatty():
            from tqdm import tqdm  # not needed for --help

            self._bar = tqdm(
                total=total, desc=visible(title), file=stream, dynamic_ncols=True, smoothing=0.05
            )

    def __call__(self, item: str = "", *, to: int | None = None, left: float | None = None) -> None:
        """See `Bar`."""
        previous = self._lines.done
        line = self._lines.count(item, to=to, left=left)
        if self._bar is None:
            if line:
                say(line, quiet=self._quiet)
            return
        if to is not None and previous == 0:  # steps of an earlier run took none of this one's time
            self._bar.update(to - 1)
            self._bar.unpause()
            previous = to - 1
        if left is not None:  # in the place of what follows from the pace
            self._bar.bar_format = _WITHOUT_PACE
            item = f"{duration(left)} left  {item}".rstrip()
        if item:
            self._bar.set_postfix_str(visible(item), refresh=False)
        self._bar.update(self._lines.done - previous)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


class _Gate:
    """The only way to a stream: writes nothing that its encoding lacks, and nothing at all if it was closed."""

    def __init__(self, stream: TextIO | None) -> None:
        """Take a stream; None: it was closed before this program began."""
        self._stream = io.StringIO() if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        """Return all else as the stream has it: Rich and tqdm ask for its encoding and its file number."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; letters that the encoding lacks are written as escapes."""
        return self._stream.write(self.encodable(text))

    def show(self, lines: Sequence[str]) -> None:
        """Write lines, each of which stays one."""
        self.write("".join(f"{visible(line)}\n" for line in lines))

    def encodable(self, text: str) -> str:
        r"""Return a text with escapes (`\xe9`, `\u2026`) for what the encoding of the stream lacks."""
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)


@dataclass(frozen=True)
class Terminal:
    """Listens to a stage (`attcl_cli.progress`) and shows results, as much as the user asked for.

    Attributes:
        as_json: the result is one JSON document, shown by the command itself.
        quiet: show errors and JSON documents only.
        verbose: also show details.
        title: begins each line but those of errors, bars and tables: which of several processes it comes from.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    title: str = ""

    @contextmanager
    def bar(self, total: int, title: str, *, every_seconds: float = 0) -> Iterator[TerminalBar]:
        """See `Progress`: closed at the end of the block."""
        bar = TerminalBar(total=total, title=title, every_seconds=every_seconds, quiet=self.quiet)
        try:
            yield bar
        finally:
            bar.close()

    def say(self, text: str) -> None:
        """See `Progress`: a line on stderr."""
        say(f"{self.title}{text}", quiet=self.quiet)

    def detail(self, text: str) -> None:
        """See `Progress`: a line on stderr, with --verbose."""
        say(f"{self.title}{text}", quiet=self.quiet or not self.verbose)

    def fail(self, error: AttclError) -> None:
        """See `Progress`: shown also with --quiet."""
        show_error(error)

    def result(self, *lines: str) -> None:
        """Show lines of the result on stdout, unless --quiet."""
        if not self.quiet:
            result(*(f"{self.title}{line}" for line in lines))

    def table(self, rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
        """Show a table of the result on stdout, unless --quiet."""
        if not self.quiet:
            table(rows, title=title)

    def end(self, content: Mapping[str, Any], error: AttclError | None = None) -> None:
        """End a command: with --json, one document holds the result and the error, if there is one.

        Args:
            content: the document of the result; without --json, the result has been shown.
            error: why the exit code is not 0.

        Raises:
            AttclError: the error, without --json.
            typer.Exit: its exit code, with --json: it has been shown.
        """
        if self.as_json:
            document({**content, **(describe(error) if error is not None else {})})
        if error is None:
            return
        if not self.as_json:
            raise error
        show_error(error)
        raise typer.Exit(error.exit_code)


def say(*lines: str, quiet: bool = False) -> None:
    """Show a message on stderr."""
    if not quiet:
        stream = _Gate(sys.stderr)
        stream.show(lines)
        stream.flush()


def result(*lines: str) -> None:
    """Show lines of the result on stdout; what a name holds never begins a line."""
    _Gate(sys.stdout).show(lines)


def document(content: Any) -> None:
    """Show the result as one JSON document on stdout.

    Names stay what they are: what is unseen on a terminal, is no UTF-8 or has no letter there is an escape of JSON.
    """
    stream = _Gate(sys.stdout)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    text = UNSEEN.sub(
        lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text
    )
    if stream.encodable(text) != text:
        text = json.dumps(content, indent=2)
    stream.write(text + "\n")


def table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Show a table on stdout, the columns of all rows in order; at most 80 characters wide if that is no terminal.

    Nothing is cut. If it is too wide, headings of numbers are folded; numbers that do not fit then are in further
    tables below, beside the same names; and words that are still too long are folded.
    """
    from rich.console import Console  # not needed for --help

    if not rows:
        return
    if title:  # Rich would wrap it to the width of the columns
        result(title)
    stream = _Gate(sys.stdout)
    console = Console(
        file=cast("TextIO", stream),
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else 80,
    )
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [_column(name, rows, first=not place) for place, name in enumerate(names)]
    for part in _parts(columns, console.width):
        console.print(_grid(part, console.width))


@dataclass(frozen=True)
class _Column:
    """A column of a table: its heading, its cells, and whether they are numbers, which nothing may break."""

    heading: str
    cells: tuple[str, ...]
    numbers: bool

    @property
    def width(self) -> int:
        """Return how wide it is with its heading on one line, and with the gap before the next."""
        return _widest(self.heading, *self.cells) + _TABLE_GAP

    @property
    def least(self) -> int:
        """Return how wide it has to be if the heading is folded."""
        return _widest(*self.heading.split(), *self.cells) + _TABLE_GAP


def _widest(*texts: str) -> int:
    from rich.cells import cell_len  # not needed for --help

    return max(map(cell_len, texts), default=0)


def _column(name: str, rows: Sequence[Mapping[str, Any]], *, first: bool) -> _Column:
    values = [row.get(name, "") for row in rows]
    numbers = not first and any(not isinstance(value, str) for value in values)
    return _Column(visible(name), tuple(map(_cell, values)), numbers)


def _parts(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Return the columns of one table, or of several: those of words in each of them, those of numbers in one."""
    names = [column for column in columns if not column.numbers]
    numbers = [column for column in columns if column.numbers]
    room = width + _TABLE_GAP - sum(column.width for column in names)
    if sum(column.least for column in numbers) <= room or any(it.least > room for it in numbers):
        return [list(columns)]  # it fits, or words leave no room and are folded
    parts: list[list[_Column]] = [[]]
    for column in numbers:
        if parts[-1] and sum(it.least for it in (*parts[-1], column)) > room:
            parts.append([])
        parts[-1].append(column)
    return [[*names, *part] for part in parts]


def _grid(columns: Sequence[_Column], width: int) -> Any:
    """Return a table for Rich, with headings of numbers folded if it would be too wide."""
    from rich.table import Table

    folded = sum(column.width for column in columns) > width + _TABLE_GAP
    first, *others = columns
    words = [column for column in others if not column.numbers]
    room = width + _TABLE_GAP - sum(it.least for it in others if it.numbers) - first.width
    # A name that somebody copies stays whole if the other words have room: they are folded.
    whole = first if room >= len(words) * (_LEAST_WORDS + _TABLE_GAP) else None
    grid = Table(box=None, pad_edge=False)
    for column in columns:
        fixed = column.width if column is whole else column.least if column.numbers else None
        grid.add_column(
            column.heading,
            justify="right" if column.numbers else "left",
            overflow="fold",
            width=fixed - _TABLE_GAP if folded and fixed else None,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        grid.add_row(*cells)
    return grid


def show_error(problem: AttclError) -> None:
    """Show an error and its hint on stderr; of several, all, but never more than a screenful."""
    problems = single_problems(problem)
    for single in problems[:_MAX_PROBLEMS]:
        say(f"error: {single.message}")
        if single.hint:
            say(f"hint: {single.hint}")
    if len(problems) > _MAX_PROBLEMS:
        more = counted(len(problems) - _MAX_PROBLEMS, "more problem")
        say(f"error: {more}, {len(problems):,} in all")
        say("hint: `attcl info DIR --json` lists them all")


def show_traceback() -> None:
    """Show on stderr where the exception that is being handled comes from."""
    say(*traceback.format_exc().splitlines())


def describe(problem: AttclError) -> dict[str, Any]:
    """Return an error as plain data for JSON: the first problem at the top, and all of them in `problems`."""
    every = [
        {"error": single.message, "hint": single.hint, "code": single.code}
        for single in single_problems(problem)
    ]
    return {**every[0], "exit_code": problem.exit_code, "problems": every}


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else visible(str(value))
