"""The pictures of a study's report: methods ranked with their critical difference, layers, and patients side by side.

Returns PNG files and panels; where they stand is left to `report`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from plan import Study, title_of
from results import Results
from scipy import stats
from table import Table
from values import REGION, ssim_of_cases

from attcl_cli.data.dataset import Source
from attcl_cli.data.splits import open_truth, read_splits
from attcl_cli.errors import AttclError, counted
from attcl_cli.report.pictures import (
    REAL,
    SOURCE,
    SYNTHETIC,
    Panel,
    Tile,
    brain_box,
    compared,
)
from attcl_cli.scoring.pairs import plan_comparison
from attcl_cli.scoring.rows import read_in_pictures

_LEAST_METHODS, _LEAST_CASES = 3, 5
_PATIENTS = 4  # rows of Figure 3
_MOST_METHODS = 6  # columns of a picture of it
_SOURCE, _REAL = "source", "real"
_ALPHA = 0.05


def critical_difference(
    values: Mapping[str, Mapping[str, float]], *, higher_is_better: bool = True
) -> tuple[bytes, str] | None:
    """Draw the mean ranks of methods over cases, with bars over those that do not differ (Demsar 2006, Nemenyi's test).

    Args:
        values: title -> case -> value; only cases that all have are used.
        higher_is_better: which end is the best.

    Returns:
        A PNG and a sentence; None of a single method, or if something speaks against it (`unranked`).
    """
    if len(values) < 2 or unranked(values):
        return None
    cases = _cases_of_all(values)
    sign = -1 if higher_is_better else 1
    table = np.array([[sign * it[case] for it in values.values()] for case in cases])
    ranks = stats.rankdata(table, axis=1).mean(axis=0)
    count, n = len(values), len(cases)
    # the critical difference of Nemenyi's test: q / sqrt(2) * sqrt(k (k + 1) / (6 n))
    q = stats.studentized_range.ppf(1 - _ALPHA, count, np.inf) / math.sqrt(2)
    critical = float(q * math.sqrt(count * (count + 1) / (6 * n)))
    p = float(stats.friedmanchisquare(*table.T).pvalue)
    words = (
        f"Mean ranks over {n} cases, 1 is the best. Friedman's test: p = {p:.2g}. Methods under one bar do not differ "
        f"at the 5 % level by Nemenyi's test (critical difference {critical:.2f})."
    )
    return _ranks_png(dict(zip(values, ranks, strict=True)), critical), words


def unranked(values: Mapping[str, Mapping[str, float]]) -> str:
    """Return why several methods are not ranked: too few, or too few cases; "" if nothing speaks against it."""
    n = len(_cases_of_all(values))
    if len(values) < 2 or (len(values) >= _LEAST_METHODS and n >= _LEAST_CASES):
        return ""
    return (
        f"{len(values)} methods with {counted(n, 'test case')} in common; a ranking needs "
        f"{_LEAST_METHODS} methods and {_LEAST_CASES} cases"
    )


def _cases_of_all(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the cases of which every method has a value."""
    cases = sorted(set.intersection(*(set(it) for it in values.values()))) if values else []
    return [case for case in cases if not any(math.isnan(it[case]) for it in values.values())]


def _ranks_png(ranks: Mapping[str, float], critical: float) -> bytes:
    order = sorted(ranks, key=lambda name: ranks[name])
    figure = Figure(figsize=(9, 1.4 + 0.3 * len(order)), dpi=110)
    axes = figure.add_axes((0.02, 0.05, 0.96, 0.9))
    last = len(order)
    axes.set(xlim=(0.2, last + 2.4), ylim=(-len(order) - 1.2, 1.2))
    axes.axis("off")
    axes.plot([1, last], [0, 0], color="black", linewidth=1)
    for tick in range(1, last + 1):
        axes.plot([tick, tick], [0, 0.15], color="black", linewidth=1)
        axes.text(tick, 0.3, str(tick), ha="center")
    for row, name in enumerate(order):
        level = -row - 1
        axes.plot(
            [ranks[name], ranks[name], last + 0.2], [0, level, level], color="0.4", linewidth=1
        )
        axes.text(last + 0.3, level, f"{name} ({ranks[name]:.2f})", va="center")
    for row, (first, end) in enumerate(cliques([ranks[name] for name in order], critical)):
        level = -0.3 - 0.22 * row
        axes.plot([first - 0.04, end + 0.04], [level, level], color="tab:blue", linewidth=4)
    return _png(figure, whole=True)


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[float, float]]:
    """Return (first, last) of the largest groups of ascending ranks that are closer than the critical difference."""
    found: list[tuple[float, float]] = []
    for first in ranks:
        last = max(rank for rank in ranks if first <= rank < first + critical)
        if last > first and not any(last <= end for _, end in found):
            found.append((first, last))
    return found


def layers_png(table: Table) -> bytes | None:
    """Draw Figure 4: the scores of segmentation by the layers of the contrastive loss; None without any."""
    if not table.rows:
        return None
    headings = [column.heading for column in table.columns]
    figure = Figure(figsize=(12, 2.2 * math.ceil(len(headings) / 4)), dpi=110, layout="constrained")
    scenarios = list(dict.fromkeys(labels[:2] for labels in table.rows))
    for place, heading in enumerate(headings):
        axes = figure.add_subplot(math.ceil(len(headings) / 4), 4, place + 1)
        for scenario in scenarios:
            rows = {labels[2]: it for labels, it in table.rows.items() if labels[:2] == scenario}
            axes.plot(
                [*rows],
                [it[heading].mean if heading in it else math.nan for it in rows.values()],
                marker="o",
                label=", ".join(scenario),
            )
        axes.set_title(heading, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=7)
    return _png(figure)


def dice_of_cases(study: Study, results: Results, cell: str) -> dict[str, dict[str, float]]:
    """Return title -> case -> Dice of the whole tumour, of all methods of a cell."""
    return {
        title_of(study.file, name): results.cases[cell, name, REGION, "dice"]
        for name in study.methods
        if (cell, name, REGION, "dice") in results.cases
    }


def similarity_of_cases(study: Study, results: Results, cell: str) -> dict[str, dict[str, float]]:
    """Return title -> case -> SSIM in the brain of the completed volumes, of all methods of a cell."""
    values = {
        title_of(study.file, name): ssim_of_cases(results, cell, name) for name in study.methods
    }
    return {title: by_case for title, by_case in values.items() if by_case}


def patients(study: Study, results: Results, cell: str) -> tuple[list[Panel], list[str]]:
    """Return Figure 3: a row per test patient, his sources, the real volume and what each method made of them.

    Each volume is shown in its own window, as the scores see it. Methods whose volumes are missing or cannot be read
    are left out; the second value says which, and why.
    """
    done = [
        of
        for (at, stage, of) in results.costs
        if (at, stage) == (cell, "complete") and of in study.file.methods
    ]
    data = study.folder(cell, "splits")
    source = Source(data)
    try:
        splits = read_splits(data)
        dataset = source.open()
        truth = open_truth(source, splits, None)
    except AttclError as error:
        return [], [f"No pictures of patients: {error.message}."]
    panels: dict[tuple[str, str], Panel] = {}
    unread: list[str] = []
    for name in done:
        title = title_of(study.file, name)
        try:
            comparison = plan_comparison(
                dataset.including(truth.modalities),
                truth,
                study.folder(cell, "complete", name),
                splits,
                split="test",
                allow_missing=True,
            )
        except AttclError as error:
            unread.append(f"No pictures of what {title} made: {error.message}.")
            continue
        chosen = list(dict.fromkeys(case.case for case in comparison.cases))[:_PATIENTS]
        for pairs in comparison.cases:
            if pairs.case not in chosen:
                continue
            try:
                shown = read_in_pictures(pairs)
            except AttclError as error:
                unread.append(f"No picture of what {title} made of {pairs.case}: {error.message}.")
                continue
            prediction = shown.predictions[0]
            target = prediction.pair.modality
            key = pairs.case, target
            tiles = compared(
                target,
                shown.sources,
                prediction.volumes.shown,
                prediction.volumes.truth,
                prediction.truth.brain,
            )
            made = next(
                Tile(f"{target}, {title}", tile.volume, tile.kind)
                for tile in tiles
                if tile.kind == SYNTHETIC
            )
            if key in panels:
                panels[key] = _with(panels[key], made)
            elif len(panels) < _PATIENTS:
                others = [tile for tile in tiles if tile.kind not in {SYNTHETIC, "difference"}]
                panels[key] = Panel(
                    case=pairs.case,
                    source_modality=pairs.made_from,
                    target_modality=target,
                    tiles=[
                        *(it for it in others if it.kind != REAL),
                        made,
                        *(it for it in others if it.kind == REAL),
                    ],
                    brain=prediction.truth.brain,
                    outlines={} if shown.tumour is None else {"tumour": shown.tumour},
                    spacing_mm=shown.spacing_mm,
                )
    return list(panels.values()), unread


def figure_3(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Draw Figure 3: a row per patient, a column per method, between the first source and the real volume.

    All pictures of a row are of one slice, that with most brain, cropped to it. What a method lacks is left white.

    Args:
        panels: of `patients`.

    Returns:
        Caption -> PNG; of many methods, several pictures. {} without a panel.
    """
    rows = [{_column(tile): tile for tile in reversed(panel.tiles)} for panel in panels]
    methods = list(dict.fromkeys(name for row in rows for name in reversed(row)))
    methods = [name for name in methods if name not in {_SOURCE, _REAL}]
    figures: dict[str, bytes] = {}
    for first in range(0, len(methods), _MOST_METHODS):
        columns = [_SOURCE, *methods[first : first + _MOST_METHODS], _REAL]
        size = (1.6 * len(columns), 1.75 * len(rows) + 0.3)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, panel, row in zip(grid, panels, rows, strict=True):
            index = int(panel.brain.sum(axis=(1, 2)).argmax())
            box = brain_box(panel.brain[index : index + 1])[1:]
            for axes, name in zip(line, columns, strict=True):
                axes.axis("off")
                if panel is panels[0]:
                    made = "" if name in {_SOURCE, _REAL} else "\nSYNTHETIC"
                    axes.set_title(f"{name}{made}", fontsize=8, parse_math=False)
                if name in row:
                    slice_ = row[name].volume[index][box]
                    axes.imshow(slice_, cmap="gray", vmin=0, vmax=255)
            words = f"{panel.case}\n{panel.source_modality} to {panel.target_modality}, slice {index + 1}"
            line[0].text(
                x=0,
                y=-0.02,
                s=words,
                fontsize=6,
                va="top",
                transform=line[0].transAxes,
                parse_math=False,
            )
        figures[", ".join(columns[1:-1])] = _png(figure)
    return figures


def _column(tile: Tile) -> str:
    """Return the heading of a tile's column: that of a synthetic one is its method."""
    return {SOURCE: _SOURCE, REAL: _REAL}.get(tile.kind) or tile.caption.partition(", ")[2]


def _with(panel: Panel, made: Tile) -> Panel:
    """Return a panel with one more synthetic volume, before the real one."""
    *before, real = panel.tiles
    return Panel(
        case=panel.case,
        source_modality=panel.source_modality,
        target_modality=panel.target_modality,
        tiles=[*before, made, real],
        brain=panel.brain,
        outlines=panel.outlines,
        spacing_mm=panel.spacing_mm,
    )


def _png(figure: Figure, *, whole: bool = False) -> bytes:
    """Return a figure as PNG; with `whole`, as large as what is drawn, such as long names beside the axes."""
    stream = io.BytesIO()
    box = "tight" if whole else None
    figure.savefig(stream, format="png", metadata={"Software": None}, bbox_inches=box)
    return stream.getvalue()
