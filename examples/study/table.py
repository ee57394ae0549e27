"""A table as a record: values with deviations and counts, what is best; and as CSV, Markdown and LaTeX (booktabs).

Knows no study and no paper.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

FEW = 10  # cases: fewer are flagged
MARK = "\u2020"


@dataclass(frozen=True)
class Value:
    """A cell of a table.

    Attributes:
        mean: over seeds; NaN if there is none.
        sd: of the seeds (n - 1); NaN for fewer than two.
        n: cases, or slices of a distance of sets, of a seed.
        seeds: how many have a value.
        low, high: an interval of the mean, if the column is a difference.
        p: of a difference, by a test that has no difference as its null hypothesis.
    """

    mean: float
    sd: float = math.nan
    n: int = 0
    seeds: int = 0
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    def __neg__(self) -> Value:
        """Return the same difference seen from the other side."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    def text(self, decimals: int = 3) -> str:
        """Return it as a table shows it; a count has no decimals."""
        if math.isnan(self.mean):
            return "\u2013"
        if isinstance(self.mean, int):
            return str(self.mean)
        words = f"{self.mean:.{decimals}f}"
        if not math.isnan(self.sd):
            words += f" \u00b1 {self.sd:.{decimals}f}"
        if not math.isnan(self.low):
            words += f" [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"
        return words


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: above it.
        better: 1 if more is better, -1 if less is; 0: nothing is marked.
    """

    heading: str
    better: int = 0


@dataclass(frozen=True)
class Table:
    """A table of a paper, with our figures.

    Attributes:
        name: of its files: `table-2-fid`.
        title: above it.
        labels: the headings of the first columns.
        columns: those of values.
        rows: labels -> column's heading -> value; a missing one is a dash.
        group: how many labels say what is compared with what: best and second best are marked among rows that have
            these labels in common.
        notes: below it.
        unmarked: last labels of rows that take no part in the comparison: trivial baselines and bounds.
        seeds: how many a value should have; of fewer, the cell says how many it has.
    """

    name: str
    title: str
    labels: Sequence[str]
    columns: Sequence[Column]
    rows: Mapping[tuple[str, ...], Mapping[str, Value]]
    group: int = 0
    notes: Sequence[str] = ()
    unmarked: frozenset[str] = frozenset()
    seeds: int = 0

    def text(self, labels: tuple[str, ...], heading: str) -> str:
        """Return a cell as it is shown: a dagger for few cases, the number of seeds if some are missing."""
        value = self.rows[labels].get(heading, Value(math.nan))
        words = value.text(self._decimals(heading)) + (MARK if 0 < value.n < FEW else "")
        if self._lacks_seeds(value):
            words += f" ({value.seeds} of {self.seeds} seeds)"
        return words

    def _lacks_seeds(self, value: Value) -> bool:
        """Return whether a value has fewer seeds than others, with other cases: it is not compared with them."""
        return 0 < value.seeds < self.seeds

    def _decimals(self, heading: str) -> int:
        """Return how many decimals the values of a column have: all the same, fewer where they are large."""
        means = [abs(row[heading].mean) for row in self.rows.values() if heading in row]
        largest = max((mean for mean in means if not math.isnan(mean)), default=0)
        return 1 if largest >= 100 else 2 if largest >= 10 else 3

    def marks(self) -> dict[tuple[tuple[str, ...], str], int]:
        """Return (labels, heading) -> 1 for the best value of its group, 2 for the second best."""
        marks: dict[tuple[tuple[str, ...], str], int] = {}
        groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for labels in self.rows:
            if labels[-1] not in self.unmarked:
                groups.setdefault(labels[: self.group], []).append(labels)
        for members in groups.values():
            for column in self.columns:
                known = {
                    labels: column.better * self.rows[labels][column.heading].mean
                    for labels in members
                    if column.heading in self.rows[labels]
                    and not self._lacks_seeds(self.rows[labels][column.heading])
                }
                levels = sorted({it for it in known.values() if not math.isnan(it)}, reverse=True)
                if column.better and len(levels) > 1:
                    for labels, value in known.items():
                        if value in levels[:2]:
                            marks[labels, column.heading] = 1 + levels.index(value)
        return marks


def as_csv(table: Table) -> str:
    """Return a table in full precision: a line per value, so that nothing has to be parsed out of a cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*table.labels, "column", "mean", "sd", "low", "high", "n", "seeds", "p"])
    for labels, values in table.rows.items():
        for column in table.columns:
            value = values.get(column.heading)
            if value is not None:
                numbers = (value.mean, value.sd, value.low, value.high)
                *cells, p = [
                    "" if math.isnan(it) else repr(float(it)) for it in (*numbers, value.p)
                ]
                counts = (value.n or "", value.seeds or "")
                writer.writerow([*labels, column.heading, *cells, *counts, p])
    return stream.getvalue()


def as_markdown(table: Table) -> str:
    """Return a table for a page: the best value of each group bold, the second best in italics."""
    lines = _lines(table, {1: "**{}**".format, 2: "*{}*".format}, _without_bars)
    head = [*table.labels, *(column.heading for column in table.columns)]
    rows = [head, ["---"] * len(head), *lines]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "".join(f"\n- {note}" for note in table.notes)
    return f"### {table.title}\n\n{text}\n{notes}\n"


def as_latex(table: Table) -> str:
    """Return a table for a paper, in booktabs: the best value of each group bold, the second best underlined."""
    lines = _lines(table, {1: r"\textbf{{{}}}".format, 2: r"\underline{{{}}}".format}, _escaped)
    head = [_escaped(it) for it in (*table.labels, *(column.heading for column in table.columns))]
    layout = "l" * len(table.labels) + "r" * len(table.columns)
    body = "\n".join(f"{' & '.join(row)} \\\\" for row in lines)
    notes = "\n".join(f"% {note}" for note in table.notes if MARK not in note)
    marks = "".join(
        f"\\par\\footnotesize {_escaped(note)}\n" for note in table.notes if MARK in note
    )
    return (
        f"% needs \\usepackage{{booktabs}}\n\\begin{{table}}\n\\caption{{{_escaped(table.title)}}}\n"
        f"\\label{{tab:{table.name}}}\n"
        f"\\begin{{tabular}}{{{layout}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}\n{marks}\\end{{table}}\n{notes}\n"
    )


def _lines(
    table: Table, styles: Mapping[int, Callable[[str], str]], escape: Callable[[str], str]
) -> list[list[str]]:
    marks = table.marks()
    lines = []
    for labels in table.rows:
        line = [escape(label) for label in labels]
        for column in table.columns:
            text = escape(table.text(labels, column.heading))
            mark = marks.get((labels, column.heading))
            line.append(styles[mark](text) if mark else text)
        lines.append(line)
    return lines


def _without_bars(text: str) -> str:
    """Return a cell of Markdown, in which a bar ends none."""
    return text.replace("|", r"\|")


_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "\u2013": "--",
    "\u00b1": r"$\pm$",
    MARK: r"$^\dagger$",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
