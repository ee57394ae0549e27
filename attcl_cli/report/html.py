"""The page of a run: facts, scores, box plots, a table of cases and a slice viewer in one HTML file.

Knows nothing of datasets, networks or metrics: panels, names and numbers come from the caller.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from attcl_cli.errors import counted, visible
from attcl_cli.files import write_whole
from attcl_cli.report import pictures
from attcl_cli.report.pictures import DASH, DISCLAIMER, Array, Panel

# A page of a hundred panels stays below about 6 MB: all pictures together hold no more pixels than
# this (a compressed one takes about a tenth of a byte), down to the fewest and smallest slices.
_PAGE_PIXELS = 36_000_000
_NUMBER = (int, float, np.integer, np.floating)

# The box plots, in pixels; a chart takes a column of the page, or, if that is too narrow, all three.
_PLOT_WIDTH, _WIDE_PLOT_WIDTH, _PLOT_HEIGHT = 360, 1104, 236
_TOP, _RIGHT, _BOTTOM = 26, 8, 40
_LEAST_SLOT = 46  # a group is no narrower
_LETTER = 6.6  # the width of a label's letter
_INTERVALS = 6  # the most on an axis
_MOST_DOTS = 30  # of more values in a group, only the outliers are drawn one by one


@dataclass(frozen=True)
class Distribution:
    """The values of one score in some groups, for a box plot.

    Attributes:
        title: the score and its region.
        unit: the label of the axis; may be empty.
        groups: name -> the values of the synthetic volumes; NaN and infinity are left out and
            counted.
        baseline: the same names -> the values of a copy of the source.
    """

    title: str
    unit: str
    groups: Mapping[str, Sequence[float]]
    baseline: Mapping[str, Sequence[float]] = field(default_factory=dict)


def write_html(
    path: Path,
    panels: Sequence[Panel],
    *,
    title: str,
    facts: Mapping[str, str],
    summary: Sequence[Mapping[str, str | float]],
    notes: Sequence[str],
    files: Sequence[str] = (),
    lower_is_better: Collection[str] = (),
    cases: Sequence[Mapping[str, str | float | None]] = (),
    distributions: Sequence[Distribution] = (),
    order: str = "",
    pictured: str = "",
) -> None:
    """Write one page that needs nothing beside itself: facts, scores, a slice viewer, notes.

    Args:
        path: the file to write.
        panels: the volumes of the viewer, in this order; may be empty.
        title: the heading.
        facts: label -> value, a strip under the heading.
        summary: the table's rows, column -> cell.
        notes: paragraphs under the pictures; the disclaimer is always added.
        files: other results, as links relative to the page.
        lower_is_better: the names of those scores of the panels in which less is better.
        cases: the rows of a table that sorts, column -> cell. A row shows the panel of the same
            `case`, `source` and `modality` (the target).
        distributions: the box plots, in this order.
        order: what the order of the panels means, "worst first"; shown beside the position.
        pictured: a line above the viewer, if it shows some of the volumes only.

    Raises:
        AttclError: the file cannot be written.
    """
    images: dict[str, int] = {}
    pixels = _PAGE_PIXELS // (len(pictures.COLUMNS) * max(len(panels), 1))
    shown = [_viewer_entry(panel, images, pixels, lower_is_better) for panel in panels]
    script = _page_file("script.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Template(_page_file("page.html")).substitute(
        title=_escape(title),
        # Nothing may be fetched, and no script runs but ours, whatever a name in the data says.
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{script_hash}'",
        style=_page_file("style.css"),
        facts="".join(
            f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>"
            for name, value in facts.items()
        ),
        summary=_table(summary),
        distributions=_plots(distributions),
        cases=_case_table(cases, panels),
        viewer=_viewer(pictured) if panels else "",
        notes=_note_list(notes),
        files=_file_list(files),
        disclaimer=DISCLAIMER,
        data=_inert_json({"images": list(images), "panels": shown, "order": order}),
        script=script,
    )
    write_whole(Path(path), page.encode("utf-8", "replace"))


def _page_file(name: str) -> str:
    return resources.files("attcl_cli.report").joinpath("page", name).read_text(encoding="utf-8")


# --- The viewer -----------------------------------------------------------------------------------


def _viewer(pictured: str) -> str:
    return Template(_page_file("viewer.html")).substitute(
        pictured=f'<p class="hint">{_escape(pictured)}</p>' if pictured else "",
        top=f"{pictures.DIFFERENCE_TOP:g}",
    )


def _viewer_entry(
    panel: Panel, images: dict[str, int], pixels: int, lower_is_better: Collection[str]
) -> dict[str, Any]:
    """Return what the page's script needs of a panel; add its sprite sheets to `images`.

    Args:
        panel: the panel.
        images: data URI -> position; identical pictures (one source, two targets) are kept once.
        pixels: the most pixels of one sprite sheet.
        lower_is_better: as in `write_html`.
    """
    sprites = pictures.sprites(panel, pixels=pixels)
    uris = ["data:image/webp;base64," + base64.b64encode(it).decode() for it in sprites.sheets]
    return {
        "case": visible(panel.case),
        "source": visible(panel.source_modality),
        "target": visible(panel.target_modality),
        "sheets": [images.setdefault(uri, len(images)) for uri in uris],
        "size": sprites.size,
        "grid": sprites.grid,
        "slices": sprites.slices,
        "depth": panel.source.shape[0],
        "start": sprites.start,
        "scores": [
            {
                "name": name,
                "value": pictures.number(value),
                "copy": pictures.number(panel.baseline[name]) if name in panel.baseline else None,
                "better": _better(value, panel.baseline.get(name), lower=name in lower_is_better),
            }
            for name, value in panel.scores.items()
        ],
    }


# --- The tables -----------------------------------------------------------------------------------


def _table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Return the summary as an HTML table, "" without rows."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return (
        '<section><h2>Scores</h2><div class="scroll" role="region" aria-label="Scores" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _case_table(rows: Sequence[Mapping[str, str | float | None]], panels: Sequence[Panel]) -> str:
    """Return the table that the page's script sorts; without a script its order is that of `rows`."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    words = {name for name in columns if any(isinstance(row.get(name), str) for row in rows)}
    places: dict[tuple[object, ...], int] = {
        (panel.case, panel.target_modality, panel.source_modality): place
        for place, panel in enumerate(panels)
    }

    head = "".join(f'<th scope="col"{_kind(name, words)}>{_escape(name)}</th>' for name in columns)
    body = []
    for row in rows:
        panel = places.get((row.get("case"), row.get("modality"), row.get("source")))
        cells = []
        for column, name in enumerate(columns):
            value = row.get(name)
            text = _cell(value)
            if column == 0 and panel is not None:
                text = f'<a href="#viewer">{text}</a>'
            # the value itself beside the rounded one that is shown; "" is no value
            sortable = "" if isinstance(value, str) else f' data-value="{_sort_key(value)}"'
            full = f' title="{_escape(str(value))}"' if column == 0 else ""
            cells.append(f"<td{_kind(name, words)}{sortable}{full}>{text}</td>")
        mark = "" if panel is None else f' data-panel="{panel}"'
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    hint = f"{len(rows)} rows; a heading sorts."
    hint += " An underlined row shows its pictures in the viewer." if panels else ""
    return (
        '<section id="cases"><h2>Cases</h2>'
        '<div class="scroll tall" role="region" aria-label="Cases" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="hint">{hint}</p></section>'
    )


def _kind(name: str, words: Collection[str]) -> str:
    return ' class="word"' if name in words else ""


def _sort_key(value: float | None) -> str:
    """Return a number as JavaScript reads it; "" if there is none."""
    if value is None or math.isnan(value):
        return ""
    return repr(float(value)).replace("inf", "Infinity")


# --- The box plots --------------------------------------------------------------------------------


def _plots(distributions: Sequence[Distribution]) -> str:
    if not distributions:
        return ""
    charts = "".join(_plot(each, place) for place, each in enumerate(distributions))
    copies = any(each.baseline for each in distributions)
    legend = '<p class="hint legend"><i></i>synthetic<i class="copy"></i>copy</p>' if copies else ""
    return (
        '<section id="distributions"><h2>Distributions</h2>'
        f'{legend}<div class="plots">{charts}</div>'
        '<p class="hint">A box holds the middle half of the values, its line is their median; '
        "whiskers end at the last value within 1.5 heights of the box. "
        f"Up to {_MOST_DOTS} values, each is a dot; of more, only those beyond the whiskers.</p>"
        "</section>"
    )


def _plot(distribution: Distribution, place: int) -> str:
    """Return one box plot: a figure with an inline SVG, or a line that says that there is no finite value.

    Args:
        distribution: the values.
        place: its number on the page, for the ids of the title and the description.
    """
    names = list(dict.fromkeys([*distribution.groups, *distribution.baseline]))
    synthetic = {name: _finite(distribution.groups.get(name, ())) for name in names}
    copies = {name: _finite(distribution.baseline.get(name, ())) for name in names}
    values = np.concatenate([np.empty(0), *synthetic.values(), *copies.values()])
    caption = f"<figcaption>{_escape(distribution.title)}</figcaption>"
    without_value = _without_value(distribution)
    if not values.size:
        return f"<figure>{caption}<p>no values</p>{without_value}</figure>"

    low, high = _reach(values)
    ticks = _ticks(low, high)
    left = 12 + _LETTER * max(len(label) for label in ticks.values())
    needed = math.ceil(left + _RIGHT + _LEAST_SLOT * len(names))
    wide = needed > _PLOT_WIDTH
    width = max(needed, _WIDE_PLOT_WIDTH if wide else _PLOT_WIDTH)
    slot = (width - left - _RIGHT) / len(names)
    bottom = _PLOT_HEIGHT - _BOTTOM

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    unit = _short(distribution.unit, width)
    parts = [f'<text x="2" y="11">{_escape(unit)}</text>']
    for tick, label in ticks.items():
        y = height(tick)
        parts.append(f'<path class="rule" d="M{left:.1f} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" class="tick">{label}</text>')
    paired = bool(distribution.baseline)
    breadth = min(slot * (0.34 if paired else 0.46), 40)
    half = breadth * 0.62 if paired else 0.0
    for index, name in enumerate(names):
        centre = left + slot * (index + 0.5)
        parts.append(_box(copies[name], centre + half, breadth, height, "copy"))
        parts.append(_box(synthetic[name], centre - half, breadth, height, "made"))
        label = f"<title>{_escape(name)}</title>{_escape(_short(name, slot - 4))}"
        parts.append(f'<text x="{centre:.1f}" y="{bottom + 18}" class="group">{label}</text>')
        count = f"n {synthetic[name].size}"
        parts.append(f'<text x="{centre:.1f}" y="{bottom + 33}" class="n">{count}</text>')
    medians = "; ".join(
        f"{name}: median {_median(synthetic[name])} of {synthetic[name].size}"
        + (f", copy {_median(copies[name])}" if copies[name].size else "")
        for name in names
    )
    return (
        f'<figure class="{"wide" if wide else "plain"}">{caption}<div class="across">'
        f'<svg viewBox="0 0 {width} {_PLOT_HEIGHT}"'
        + (f' style="min-width:{width}px"' if wide else "")
        + f' role="img" aria-labelledby="plot-{place}" aria-describedby="values-{place}">'
        f'<title id="plot-{place}">{_escape(distribution.title)}</title>'
        f'<desc id="values-{place}">{_escape(medians)}</desc>'
        f"{''.join(parts)}</svg></div>{without_value}</figure>"
    )


def _box(
    values: Array, centre: float, breadth: float, height: Callable[[float], float], kind: str
) -> str:
    """Return box, whiskers and dots of one group's finite values; "" if there is none."""
    if not values.size:
        return ""
    lower, median, upper = (float(each) for each in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (upper - lower)
    inside = values[(values >= lower - reach) & (values <= upper + reach)]
    left, right = centre - breadth / 2, centre + breadth / 2
    cap = breadth / 4
    lines = [f"M{left:.1f} {height(median):.1f}H{right:.1f}"]
    # An interpolated quartile may lie beyond the last value inside: the whisker has no length then.
    ends = float(inside.min(initial=lower)), float(inside.max(initial=upper))
    for edge, end in zip((lower, upper), ends, strict=True):
        lines.append(f"M{centre:.1f} {height(edge):.1f}V{height(end):.1f}")
        lines.append(f"M{centre - cap:.1f} {height(end):.1f}h{2 * cap:.1f}")
    top, base = height(upper), height(lower)
    dots = []
    each_a_dot = kind == "made" and values.size <= _MOST_DOTS
    for place, value in enumerate(values):
        if each_a_dot or not lower - reach <= value <= upper + reach:
            # The golden ratio spreads many dots evenly, and the same way each time.
            side = (place * 0.618034 % 1 - 0.5) * breadth * 0.7 if each_a_dot else 0.0
            dots.append(f'<circle cx="{centre + side:.1f}" cy="{height(value):.1f}" r="2.2"/>')
    return (
        f'<g class="{kind}"><rect x="{left:.1f}" y="{top:.1f}" width="{breadth:.1f}" '
        f'height="{base - top:.1f}"/><path d="{"".join(lines)}"/>{"".join(dots)}</g>'
    )


def _finite(values: Sequence[float]) -> Array:
    array = np.asarray(values, dtype=float)
    value: Array = array[np.isfinite(array)]
    return value


def _without_value(distribution: Distribution) -> str:
    counts = [
        sum(len(values) - _finite(values).size for values in groups.values())
        for groups in (distribution.groups, distribution.baseline)
    ]
    parts = [f"{counts[0]} without value"] if counts[0] else []
    parts += [f"{counted(counts[1], 'copy', 'copies')} without value"] if counts[1] else []
    return f'<p class="hint">{", ".join(parts)}</p>' if parts else ""


def _median(values: Array) -> str:
    return pictures.number(float(np.median(values))) if values.size else DASH


def _reach(values: Array) -> tuple[float, float]:
    """Return the ends of an axis: somewhat beyond the values, and never equal."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.05 * abs(low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> dict[float, str]:
    """Return the round values from `low` to `high`, 1, 2 or 5 times a power of ten apart, and their labels."""
    least = (high - low) / _INTERVALS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    decimals = max(0, -math.floor(math.log10(step * 1.001)))
    form = f".{decimals}f" if 1e-4 <= step < 1e6 else "g"  # noqa: PLR2004
    places = range(math.ceil(low / step), math.floor(high / step) + 1)
    return {place * step: format(place * step, form) for place in places}


def _short(text: str, room: float) -> str:
    """Shorten with an ellipsis what is wider than `room` pixels."""
    letters = max(int(room / _LETTER), 2)
    return text if len(text) <= letters else text[: letters - 1] + "\u2026"


# --- The rest of the page --------------------------------------------------------------------------


def _note_list(notes: Sequence[str]) -> str:
    paragraphs = "".join(f"<p>{_escape(note)}</p>" for note in notes)
    return f"<section><h2>Notes</h2>{paragraphs}</section>" if notes else ""


def _file_list(files: Sequence[str]) -> str:
    if not files:
        return ""
    # Quoted whole, a name with a colon stays a file's name and never becomes a scheme.
    links = "".join(
        f'<li><a href="{quote(name, errors="surrogateescape")}">{_escape(name)}</a></li>'
        for name in files
    )
    return f"<section><h2>Files</h2><ul>{links}</ul></section>"


def _better(value: object, copy: object, *, lower: bool) -> str:
    """Return which is better, "synthetic" or "copy"; "" if they are equal or one is no number."""
    if not (isinstance(value, _NUMBER) and isinstance(copy, _NUMBER)):
        return ""
    if value == copy or np.isnan(value) or np.isnan(copy):
        return ""
    return "synthetic" if (value < copy) == lower else "copy"


def _cell(value: object) -> str:
    if value is None or isinstance(value, _NUMBER):
        return pictures.number(value)
    return _escape(str(value))


def _escape(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _inert_json(document: Any) -> str:
    """Return JSON that cannot end the script element around it, whatever its strings hold."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
