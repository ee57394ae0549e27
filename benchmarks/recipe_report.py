"""What `recipe` shows: tables by direction, how often a run is above others, calibration of the doubt, pictures.

Reads the records of cells (`recipe_cells`) and volumes; computes no score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw
from scipy import stats

from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.errors import UsageError
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.scoring.pairs import CasePairs

Key = tuple[str, str]
"""(the modalities that a case has, the target), as a row of a table names them."""

COLUMNS = (  # metric, region, digits
    ("ssim", "brain", 3),
    ("psnr", "brain", 1),
    ("nmse", "brain", 3),
    ("gms", "brain", 3),
    ("fd-effnet", "slices", 1),
    ("ssim", "tumour", 3),
    ("psnr", "tumour", 1),
    ("gms", "tumour", 3),
)
JUDGED = (("ssim", "brain"), ("psnr", "brain"), ("gms", "brain"), ("fd-effnet", "slices"))
BASELINES = ("copy", "matched-copy", "mean")
TITLES = {"copy": "copy", "matched-copy": "quantile-matched copy", "mean": "mean of sources"}
SYNTHETIC = "synthetic"
DOUBTS = ("disagreement", "distance")  # figures of doubt in the side-car of a volume
_CELL = 200  # pixels of a picture's column
_LABEL = 14


def tables(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: per part its conditions, a table per metric with a column per run, and who is above whom."""
    parts = list(dict.fromkeys(cell["part"] for cell in cells))
    return "\n".join(_part([cell for cell in cells if cell["part"] == part]) for part in parts)


def columns_of(
    cells: Sequence[Mapping[str, Any]], metric: str, region: str
) -> dict[str, dict[Key, list[float]]]:
    """Return run or baseline -> row -> the values of its seeds; an undefined value is left out.

    The copies that stand beside several sources are those of the best of them, if the copies of all are known: the
    first one, which `attcl score` copies, is easier to beat.
    """
    found: dict[str, dict[Key, list[float]]] = {}
    for cell in cells:
        for score in cell["scores"]:
            if (score["metric"], score["region"]) != (metric, region) or score["mean"] is None:
                continue
            made = score["prediction"]
            name = cell["name"] if made == SYNTHETIC else TITLES.get(made)
            if name is not None:
                key = ("+".join(score["present"]), score["target"])
                found.setdefault(name, {}).setdefault(key, []).append(score["mean"])
    best = max if METRICS[metric].higher_is_better else min
    for name in (TITLES["copy"], TITLES["matched-copy"]):
        rows = found.get(name, {})
        for present, target in list(rows):
            singles = [(source, target) for source in present.split("+")]
            if len(singles) > 1 and all(key in rows for key in singles):
                rows[present, target] = [best(rows[key][0] for key in singles)]
    order = [TITLES[name] for name in BASELINES]
    return {
        name: found[name]
        for name in sorted(found, key=lambda it: order.index(it) if it in order else len(order))
    }


def above(
    columns: Mapping[str, Mapping[Key, Sequence[float]]], run: str, other: str, *, higher: bool
) -> tuple[int, int]:
    """Return in how many rows a run is better than another column, means over seeds, and in how many both stand."""
    common = [key for key in columns[run] if key in columns[other]]
    sign = 1 if higher else -1
    better = [sign * (fmean(columns[run][key]) - fmean(columns[other][key])) > 0 for key in common]
    return sum(better), len(common)


@dataclass(frozen=True)
class Calibration:
    """What a figure of doubt tells of the error, by Spearman's rank correlation with 1 - SSIM in the brain.

    Attributes:
        overall: over all volumes.
        within: mean over the directions of a run in a part that have three volumes at least; nan: there are none.
        directions: of how many it is the mean.
    """

    overall: float
    within: float
    directions: int


@dataclass(frozen=True)
class _Dot:
    """A volume with a figure of doubt: its value, the error, the part, and the run and direction in it."""

    value: float
    error: float
    part: str
    direction: tuple[str, ...]


def write_calibration(path: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, Calibration]:
    """Draw each figure of doubt against 1 - SSIM in the brain, a dot per completed volume; no picture of a patient.

    Args:
        path: the PNG.
        cells: with volumes whose side-cars carry a doubt.

    Returns:
        Figure of doubt -> what it tells.

    Raises:
        UsageError: no volume has such a figure.
    """
    dots: dict[str, list[_Dot]] = {}
    for cell, volume in _completed(cells):
        ssim = volume["values"].get("ssim brain")
        if ssim is not None:
            direction = (cell["part"], cell["name"], *volume["present"], volume["target"])
            for name in DOUBTS:
                if (value := volume["doubt"].get(name)) is not None:
                    dot = _Dot(value, 1 - ssim, cell["part"], direction)
                    dots.setdefault(name, []).append(dot)
    if not dots:
        raise UsageError(
            "--calibration: no completed volume has a figure of doubt, expected some",
            "score runs or weights whose side-cars carry a doubt",
            code="no-doubt-figures",
        )
    _draw_calibration(path, dots)
    return {name: _calibration(of_name) for name, of_name in dots.items()}


def far_volumes(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (run, part) -> how many volumes were called far from the training data, of how many."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for cell, volume in _completed(cells):
        far, of = counts.get((cell["name"], cell["part"]), (0, 0))
        here = bool(volume["doubt"].get("far"))
        counts[cell["name"], cell["part"]] = far + here, of + 1
    return counts


def _completed(
    cells: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the completed volumes of cells, each with its cell."""
    for cell in cells:
        for volume in cell["volumes"]:
            if volume["prediction"] == SYNTHETIC:
                yield cell, volume


def _calibration(dots: Sequence[_Dot]) -> Calibration:
    groups: dict[tuple[str, ...], list[_Dot]] = {}
    for dot in dots:
        groups.setdefault(dot.direction, []).append(dot)
    each = [_rank_correlation(group) for group in groups.values()]
    known = [value for value in each if not math.isnan(value)]
    return Calibration(_rank_correlation(dots), fmean(known) if known else math.nan, len(known))


def _draw_calibration(path: Path, dots: Mapping[str, Sequence[_Dot]]) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(dots), figsize=(5 * len(dots), 4), squeeze=False)
    for axis, (name, of_name) in zip(axes[0], dots.items(), strict=True):
        for part in dict.fromkeys(dot.part for dot in of_name):
            chosen = [dot for dot in of_name if dot.part == part]
            values, errors = [dot.value for dot in chosen], [dot.error for dot in chosen]
            axis.scatter(values, errors, s=14, alpha=0.7, label=part)
        axis.set_title(f"Spearman {_rank_correlation(of_name):.2f}, n = {len(of_name)}")
        axis.set_xlabel(name)
        axis.set_ylabel("1 - SSIM in the brain")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_pictures(cases: Sequence[CasePairs], folder: Path) -> None:
    """Write a PNG per case: all sources, then each synthetic volume beside its truth, in three planes.

    The planes cut the middle of the tumour, or of the brain without one: coronal and sagittal cuts show stripes that
    axial ones hide.
    """
    for case in cases:
        columns: list[tuple[str, intensities.Array]] = []
        sources = {name: volumes.load(case.present[name]).data for name in case.present}
        brain = intensities.brain_of(list(sources.values()))
        columns += [(name, _windowed(data, brain)) for name, data in sources.items()]
        for pair in case.pairs:
            for title, files in (("synthetic", pair.prediction), ("real", pair.truth)):
                data = volumes.load(files).data
                columns.append((f"{pair.modality} {title}", _windowed(data, brain)))
        mask = label_maps.load_labels(case.segmentation) > 0 if case.segmentation else brain
        middle = [int(np.median(axis)) for axis in np.nonzero(mask if mask.any() else brain)]
        box = intensities.bounding_box(brain, margin=3)
        assert box is not None  # a case without contrast is refused when it is read
        rows = [
            [
                _tile(
                    data[box], [at - cut.start for at, cut in zip(middle, box, strict=True)], axis
                )
                for _, data in columns
            ]
            for axis in range(3)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        _sheet([title for title, _ in columns], rows).save(folder / f"{case.case}.png")


# --- Tables -------------------------------------------------------------------------------------------------------


def _part(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of one part."""
    lines = [f"## {cells[0]['part']}", "", *_conditions(cells), ""]
    for metric, region, digits in COLUMNS:
        columns = columns_of(cells, metric, region)
        if columns:
            lines += _table(columns, metric, region, digits)
    runs = list(dict.fromkeys(cell["name"] for cell in cells if _is_run(cell)))
    if runs:
        lines += _verdict(cells, runs)
    return "\n".join(lines) + "\n"


def _is_run(cell: Mapping[str, Any]) -> bool:
    return any(score["prediction"] == SYNTHETIC for score in cell["scores"])


def _conditions(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the conditions of a part: patients, minutes, seeds, steps, machine."""
    runs = [cell for cell in cells if _is_run(cell)]
    lines = [f"n = {cells[0]['patients']} patients."]
    for name in dict.fromkeys(cell["name"] for cell in runs):
        seeds = [cell for cell in runs if cell["name"] == name]
        first = seeds[0]
        text = f"- **{name}**: "
        if first.get("minutes") is not None:
            text += (
                f"{first['minutes']:g} minutes on {first['trained_on']} patients, "
                f"seeds {', '.join(str(cell['seed']) for cell in seeds)}, "
                f"{' and '.join(format(cell['steps'], ',') for cell in seeds)} steps, {first['precision']}; "
            )
        if first["seconds_per_volume"] is not None:
            text += f"{first['seconds_per_volume']:g} s per completed volume"
        lines.append(text)
    machines = dict.fromkeys(_machine(cell["machine"]) for cell in runs or cells)
    return [*lines, *(f"- machine: {described}" for described in machines)]


def _machine(facts: Mapping[str, Any]) -> str:
    flags = ", ".join(facts["flags"]) or "none of note"
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} torch threads ({flags}), "
        f"{facts['device']}, torch {facts['torch']}"
    )


def _table(
    columns: Mapping[str, Mapping[Key, Sequence[float]]], metric: str, region: str, digits: int
) -> list[str]:
    """Return a table of one metric: a row per direction, a column per run, the best in bold, and means below."""
    record = METRICS[metric]
    direction = "higher is better" if record.higher_is_better else "lower is better"
    lines = [
        f"**{record.label(region)}** ({direction})",
        "",
        f"| from | to | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    keys = sorted({key for rows in columns.values() for key in rows}, key=_place)
    for key in keys:
        cells = {name: rows.get(key, []) for name, rows in columns.items()}
        lines.append(_line(_from(key), key[1], cells, digits, higher=record.higher_is_better))
    for title, group in (
        ("one source", [key for key in keys if "+" not in key[0]]),
        ("several sources", [key for key in keys if "+" in key[0]]),
    ):
        if len(group) > 1:
            means = {
                name: [fmean(values) for values in zip(*(rows[key] for key in group), strict=False)]
                if all(key in rows for key in group)
                else []
                for name, rows in columns.items()
            }
            lines.append(
                _line(f"mean of {title}", "", means, digits, higher=record.higher_is_better)
            )
    return [*lines, ""]


def _line(
    source: str, target: str, cells: Mapping[str, Sequence[float]], digits: int, *, higher: bool
) -> str:
    means = {name: fmean(values) for name, values in cells.items() if values}
    best = (max if higher else min)(means.values()) if means else None
    texts = []
    for name, values in cells.items():
        if name not in means:
            texts.append("")
            continue
        text = f"{means[name]:.{digits}f}"
        if text == f"{best:.{digits}f}":
            text = f"**{text}**"
        if len(values) > 1:
            text += f" ± {(max(values) - min(values)) / 2:.{digits}f}"
        texts.append(text)
    return f"| {source} | {target} | {' | '.join(texts)} |"


def _verdict(cells: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> list[str]:
    """Return a table: in how many rows each run is above each baseline and each other run."""
    others = [*(TITLES[name] for name in BASELINES), *runs]
    lines = [
        "**Above in so many directions** (means over seeds)",
        "",
        f"| run | by | {' | '.join(f'above {name}' for name in others)} |",
        f"|---|---|{'---|' * len(others)}",
    ]
    for run in runs:
        for metric, region in JUDGED:
            columns = columns_of(cells, metric, region)
            if run not in columns:
                continue
            counts = []
            for other in others:
                if other == run or other not in columns:
                    counts.append("")
                    continue
                better, total = above(columns, run, other, higher=METRICS[metric].higher_is_better)
                counts.append(f"{better} of {total}")
            lines.append(f"| {run} | {METRICS[metric].label(region)} | {' | '.join(counts)} |")
    return [*lines, ""]


def _from(key: Key) -> str:
    present = key[0].split("+")
    return "the three others" if len(present) == 3 else ", ".join(present)


def _place(key: Key) -> tuple[int, str, str]:
    return key[0].count("+"), key[0] if "+" not in key[0] else "", f"{key[1]} {key[0]}"


def _rank_correlation(dots: Sequence[_Dot]) -> float:
    """Return Spearman's correlation of value and error; nan of fewer than three dots, or if one never changes."""
    values, errors = [dot.value for dot in dots], [dot.error for dot in dots]
    if len(dots) < 3 or len(set(values)) == 1 or len(set(errors)) == 1:
        return math.nan
    return float(stats.spearmanr(values, errors).statistic)


# --- Pictures -----------------------------------------------------------------------------------------------------


def _windowed(data: intensities.Array, brain: intensities.Array) -> intensities.Array:
    """Return a volume in [0, 1] by its own percentiles in the brain."""
    scale = intensities.intensity_scale(data, brain)
    if scale is None:
        return np.zeros(data.shape, np.float32)
    return (intensities.normalise(data, brain, scale) + 1) / 2


def _tile(data: intensities.Array, middle: Sequence[int], axis: int) -> Image.Image:
    """Return the cut through `middle` across an axis, upright, scaled to a column's width."""
    cut = np.take(data, middle[axis], axis=axis)
    if axis:
        cut = cut[::-1]  # working order counts slices from the feet
    grey = np.rint(cut * 255).astype(np.uint8)
    height = max(round(_CELL * grey.shape[0] / grey.shape[1]), 1)
    return Image.fromarray(grey).resize((_CELL, height), Image.Resampling.BILINEAR)


def _sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("L", (_CELL * len(titles), _LABEL + sum(heights)))
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * _CELL + 4, 1), title, fill=255)
    top = _LABEL
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * _CELL, top))
        top += height
    return sheet
