"""Segmentation scores as people read them: the tables on the terminal, the files, the warnings that belong to them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.data.labels import REGIONS
from attcl_cli.errors import IncompleteError, some
from attcl_cli.files import as_json, write_csv
from attcl_cli.segmentation.inputs import COMPLETED, INCOMPLETE, REAL, Completion
from attcl_cli.segmentation.metrics import KINDS
from attcl_cli.segmentation.summary import (
    BY_SLICE,
    Difference,
    Figure,
    Row,
    differences,
    summarise,
    write_summary,
)

_SHOWN = 3  # ids that a warning names
_SHORT_POLICY = (
    "both masks empty: dice, sens, iou 1, hd95 0; one empty: dice, iou 0, hd95\n"
    "undefined (n counts the cases that have one); sens, sensitivity, is undefined\n"
    "where only the truth is empty"
)
_BY_SLICE_TOLD = (
    "the paper's way, a slice is the unit: those at 20 to 80 % of the height, mean\n"
    "over a case's slices, then over cases; hd95 where both masks have any"
)
_FEW_CASES = 10  # below this, an interval says little


@dataclass(frozen=True)
class Report:
    """What is to be shown.

    Attributes:
        rows: all scores.
        inputs: their inputs, in the order of the table.
        missing: ids of the cases that were left out.
        warnings: what makes the figures doubtful.
        notes: what else is to be said.
        trained: how long, and on what, the segmenters were trained; empty where nobody knows.
        seed: of the bootstrap.
    """

    rows: Sequence[Row]
    inputs: tuple[str, ...]
    missing: Sequence[str] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    trained: str = ""
    seed: int = 0

    @property
    def cases(self) -> int:
        """How many were scored."""
        return len({row.case for row in self.rows})

    @property
    def remarks(self) -> list[str]:
        """The notes, and what is to be said of the figures themselves."""
        few = len(self.inputs) > 1 and self.cases < _FEW_CASES
        said = f"few test cases ({self.cases}): the intervals say little"
        return [*self.notes, *([said] if few else [])]

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        return summarise(self.rows)

    @property
    def differences(self) -> list[Difference]:
        """What completion brings, and what is left to the ceiling."""
        single = next(
            (name for name in self.inputs if name not in {COMPLETED, INCOMPLETE, REAL}), ""
        )
        pairs = [(COMPLETED, single), (COMPLETED, INCOMPLETE), (REAL, single), (REAL, COMPLETED)]
        there = [pair for pair in pairs if set(pair) <= set(self.inputs)]
        return differences(self.rows, there, seed=self.seed)


def leaks(completion: Completion, inputs: Sequence[str]) -> list[str]:
    """Warnings about the weights that made the completed volumes."""
    if COMPLETED not in inputs:
        return []
    if not completion.known:
        return [
            "what the completion weights were trained on is not recorded beside the completed volumes, "
            "so whether they have seen test patients is unknown"
        ]
    if not completion.seen:
        return []
    return [
        f"the completion weights were trained on {len(completion.seen)} of the test patients "
        f"({some(completion.seen, most=_SHOWN)}): the figures of completed are too good"
    ]


def seen(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Warnings about a segmenter that has seen test cases."""
    both = [
        case
        for case in lists["tested_on"]
        if case in {*lists["trained_on"], *lists["validated_on"]}
    ]
    if not both:
        return []
    return [
        f"the segmenter was trained on {len(both)} of the test cases ({some(both, most=_SHOWN)}): "
        "its figures are too good"
    ]


def write(output: Path, report: Report, *, facts: Mapping[str, Any]) -> None:
    """Writes `segment.csv` and `summary.json`."""
    write_csv(output / "segment.csv", Row, report.rows)
    write_summary(
        output / "summary.json",
        report.figures,
        report.differences,
        {
            **facts,
            "split": "test",
            "cases": report.cases,
            "trained": report.trained,
            "missing": list(report.missing),
            "warnings": list(report.warnings),
            "notes": report.remarks,
        },
    )


def show(output: Path, report: Report, talk: Terminal) -> None:
    """The tables, or one JSON document."""
    files = {name: str(output / name) for name in ("segment.csv", "summary.json")}
    if talk.as_json:
        scores: dict[str, Any] = {}
        for item in report.figures:
            mean = None if math.isnan(item.mean) else item.mean
            scores.setdefault(item.input, {}).setdefault(item.region, {})[item.metric] = mean
        counts = {"cases": report.cases, "missing": len(report.missing)}
        terminal.document(
            {
                "output": str(output),
                **files,
                **counts,
                "trained": report.trained,
                "scores": scores,
                "figures": [as_json(item) for item in report.figures],
                "differences": [as_json(gap) for gap in report.differences],
                "warnings": list(report.warnings),
                "notes": report.remarks,
            }
        )
        return
    if report.trained:
        talk.result(textwrap.fill(report.trained, 80))
    told = f"{report.cases} test cases; WT whole tumour, TC tumour core, ET enhancing tumour"
    talk.result(told)
    talk.table(_table(report.figures, ""))
    by_slice = _table(report.figures, BY_SLICE)
    if by_slice:
        talk.result("")
        talk.result(_BY_SLICE_TOLD)
        talk.table(by_slice)
    gaps = report.differences
    if gaps:
        talk.result("")
        talk.result("differences, case by case, with the 95 % interval of Dice; n: cases with hd95")
        talk.table(_gaps(gaps))
    talk.result("")
    talk.result(_SHORT_POLICY)
    for remark in report.remarks[len(report.notes) :]:  # the others were said before the training
        terminal.say(f"note: {remark}", quiet=talk.quiet)
    for warning in report.warnings:
        talk.result(textwrap.fill(f"warning: {warning}", 80, break_long_words=False))
    talk.result(f"{files['summary.json']}: how each figure was measured")


def complain(output: Path, missing: Sequence[str]) -> None:
    """Raises an `IncompleteError` where cases were left out."""
    if missing:
        raise IncompleteError(
            f"{output}: cases left out: {len(missing)}, expected all (the first: {missing[0]})",
            "they have no label map, or no prediction; summary.json lists them",
        )


def _table(figures: Sequence[Figure], suffix: str) -> list[dict[str, Any]]:
    """A row a region and input, a column a metric (the paper's Table 3)."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for item in figures:
        name = item.metric.removesuffix(suffix) if suffix else item.metric
        if name not in KINDS or (suffix and not item.metric.endswith(suffix)):
            continue
        row = rows.setdefault(
            (item.region, item.input), {"region": item.region, "input": item.input}
        )
        row[_column(name)] = "" if math.isnan(item.mean) else item.mean
        if name == "hd95":
            row["n"] = item.n
    order = list(REGIONS)
    return sorted(rows.values(), key=lambda row: order.index(row["region"]))


def _gaps(gaps: Sequence[Difference]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for gap in gaps:
        if gap.metric not in KINDS:
            continue
        row = rows.setdefault(
            (gap.first, gap.second, gap.region),
            {"difference": f"{gap.first} - {gap.second}", "of": gap.region},
        )
        row[_column(gap.metric)] = _signed(gap.mean)
        if gap.metric == "dice":
            shown = "" if math.isnan(gap.low) else f"{_signed(gap.low)} to {_signed(gap.high)}"
            row["95 % of dice"] = shown
        if gap.metric == "hd95":
            row["n"] = gap.n
    return list(rows.values())


def _signed(value: float) -> str:
    """Three decimals with their sign; nothing where undefined, and no sign where they are 0."""
    if math.isnan(value):
        return ""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _column(metric: str) -> str:
    unit = KINDS[metric].unit
    return metric if unit == "1" else f"{metric} {unit}"
