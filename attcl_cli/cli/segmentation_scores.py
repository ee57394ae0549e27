"""The tables of `attcl segment` and `attcl evaluate`, and their JSON document.

The numbers are those of `segmentation.report`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.cli.terminal import Terminal
from attcl_cli.errors import IncompleteError, counted
from attcl_cli.files import as_json

if TYPE_CHECKING:
    from attcl_cli.segmentation.report import Scores
    from attcl_cli.segmentation.summary import Difference, Figure

_WIDTH = 80
_POLICY = (
    "both masks empty: dice, sens, iou 1, hd95 0; one empty: dice, iou 0, hd95",
    "undefined (n counts the cases that have one); sens, sensitivity, is undefined",
    "if only the truth is empty",
)
_BY_SLICE_TITLE = (
    "the paper's way, a slice is the unit: those at 20 to 80 % of the height, mean",
    "over a case's slices, then over cases; hd95 over the slices with both masks",
)


def show_scores(output: Path, scores: Scores, terminal: Terminal) -> None:
    """Show the tables, or one JSON document.

    Raises:
        IncompleteError: cases were left out; everything has been shown.
    """
    incomplete = None
    if scores.missing:
        incomplete = IncompleteError(
            f"{output}: cases left out: {len(scores.missing)}, expected all (the first: {scores.missing[0]})",
            "they have no label map, or no prediction; summary.json lists them",
            code="cases-left-out",
        )
    if not terminal.as_json:
        _show_tables(output, scores, terminal)
    terminal.end(_document(output, scores), incomplete)


def _document(output: Path, scores: Scores) -> dict[str, Any]:
    from attcl_cli.report.page import REPORT_FILE
    from attcl_cli.segmentation.report import SCORES_FILE, SUMMARY_FILE

    means: dict[str, Any] = {}
    for figure in scores.figures:
        mean = None if math.isnan(figure.mean) else figure.mean
        means.setdefault(figure.input, {}).setdefault(figure.region, {})[figure.metric] = mean
    return {
        "output": str(output),
        SCORES_FILE: str(output / SCORES_FILE),
        SUMMARY_FILE: str(output / SUMMARY_FILE),
        REPORT_FILE: str(output / REPORT_FILE),
        "cases": scores.cases,
        "missing": len(scores.missing),
        "trained": scores.trained,
        "scores": means,
        "figures": [as_json(figure) for figure in scores.figures],
        "differences": [as_json(gap) for gap in scores.differences],
        "warnings": list(scores.warnings),
        "notes": [*scores.notes, *scores.cautions],
    }


def _show_tables(output: Path, scores: Scores, terminal: Terminal) -> None:
    from attcl_cli.report.page import REPORT_FILE
    from attcl_cli.segmentation.report import SUMMARY_FILE
    from attcl_cli.segmentation.summary import BY_SLICE

    if scores.trained:
        terminal.result(*textwrap.wrap(scores.trained, _WIDTH))
    terminal.result(
        f"{counted(scores.cases, 'test case')}; WT whole tumour, TC tumour core, ET enhancing tumour"
    )
    terminal.table(_figures_table(scores.figures, ""))
    by_slice = _figures_table(scores.figures, BY_SLICE)
    if by_slice:
        terminal.result("")
        terminal.result(*_BY_SLICE_TITLE)
        terminal.table(by_slice)
    if scores.differences:
        terminal.result("")
        terminal.result(
            "differences, case by case, with the 95 % interval of Dice; n: cases with hd95"
        )
        terminal.table(_differences_table(scores.differences))
    terminal.result("")
    terminal.result(*_POLICY)
    for caution in scores.cautions:  # the notes were shown before the training
        terminal.say(f"note: {caution}")
    for warning in scores.warnings:
        terminal.result(*textwrap.wrap(f"warning: {warning}", _WIDTH, break_long_words=False))
    terminal.result(f"{output / SUMMARY_FILE}: how each figure was measured")
    terminal.result(f"{output / REPORT_FILE}: open it in a browser")


def _figures_table(figures: Sequence[Figure], suffix: str) -> list[dict[str, Any]]:
    """Return a row per region and input, a column per metric (the paper's Table 3)."""
    from attcl_cli.data.labels import REGIONS
    from attcl_cli.segmentation.metrics import METRICS

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for figure in figures:
        name = figure.metric.removesuffix(suffix) if suffix else figure.metric
        if name not in METRICS or (suffix and not figure.metric.endswith(suffix)):
            continue
        row = rows.setdefault(
            (figure.region, figure.input), {"region": figure.region, "input": figure.input}
        )
        row[_column(name)] = "" if math.isnan(figure.mean) else figure.mean
        if name == "hd95":
            row["n"] = figure.n
    order = list(REGIONS)
    return sorted(rows.values(), key=lambda row: order.index(row["region"]))


def _differences_table(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    from attcl_cli.segmentation.metrics import METRICS

    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for gap in differences:
        if gap.metric not in METRICS:
            continue
        row = rows.setdefault(
            (gap.first, gap.second, gap.region),
            {"difference": f"{gap.first} - {gap.second}", "of": gap.region},
        )
        row[_column(gap.metric)] = _signed(gap.mean)
        if gap.metric == "dice":
            interval = "" if math.isnan(gap.low) else f"{_signed(gap.low)} to {_signed(gap.high)}"
            row["95 % of dice"] = interval
        if gap.metric == "hd95":
            row["n"] = gap.n
    return list(rows.values())


def _signed(value: float) -> str:
    """Return three decimals with their sign; nothing if undefined, and no sign if they are 0."""
    if math.isnan(value):
        return ""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _column(metric: str) -> str:
    from attcl_cli.segmentation.metrics import METRICS

    unit = METRICS[metric].unit
    return metric if unit == "1" else f"{metric} {unit}"
