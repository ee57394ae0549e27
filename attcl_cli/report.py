"""Pictures of completed cases: a montage (PNG) and a page with a slice viewer (one HTML file).

Knows nothing of datasets, networks or metrics: arrays, names and numbers come from the caller.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from attcl_cli.files import write_whole

Array = NDArray[Any]

DISCLAIMER = "Research software for datasets, not a medical device."
COPY_SUFFIX = " (copy)"  # a column of this ending holds the baseline of the column without it
DIFFERENCE_TOP = 0.5  # differences from here on, in units of the window, have the brightest colour
DASH = "\u2013"

# A page of any number of panels stays below about 6 MB: all pictures together hold no more pixels
# than this (a compressed one takes about a tenth of a byte), down to a least number of slices.
_PAGE_PIXELS = 36_000_000
_MOST_SLICES, _LEAST_SLICES = 52, 12
_MOST_PIXELS_A_SIDE = 160
_WEBP_QUALITY = 72
_MARGIN = 3  # voxels around the brain

_BACKGROUND, _TEXT, _MUTED = (12, 14, 18), (236, 239, 242), (150, 160, 171)
_AMBER = (255, 186, 92)  # marks what is synthetic, in the montage and on the page
_GRID_CELL = 160  # pixels
_CELL, _GAP, _EDGE = 220, 10, 28  # pixels
_LABEL_WIDTH, _SCORES_WIDTH = 190, 230
_NUMBER = (int, float, np.integer, np.floating)
_COLUMNS = ("source", "synthetic", "real", "|synthetic - real|")


@dataclass(frozen=True, eq=False)
class Panel:
    """One completed volume beside its source and, where there is one, the real volume.

    Attributes:
        case: the patient's name.
        source_modality: what was there.
        target_modality: what was synthesised.
        source: (D, H, W) in [0, 1]; axial slices, row 0 anterior.
        synthetic: the same shape, in [0, 1].
        truth: the same shape, in [0, 1]; None where the real volume does not exist.
        brain: the same shape, bool.
        scores: name -> value of the synthetic volume.
        baseline: the same names -> value of a copy of the source.
    """

    case: str
    source_modality: str
    target_modality: str
    source: Array
    synthetic: Array
    truth: Array | None
    brain: Array
    scores: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        volumes = [self.source, self.synthetic, self.brain]
        volumes += [] if self.truth is None else [self.truth]
        shapes = {volume.shape for volume in volumes}
        if len(shapes) > 1 or self.source.ndim != 3 or 0 in self.source.shape:  # noqa: PLR2004
            raise ValueError(f"{self.case}: shapes {sorted(shapes)}, wanted one (D, H, W)")


def write_montage(path: Path, panels: Sequence[Panel], *, title: str, max_rows: int = 8) -> None:
    """Writes a PNG with a row a panel: source, synthetic, real, difference, at its largest slice.

    Args:
        path: the file to write.
        panels: one or more; those beyond `max_rows` are counted in the title's line.
        title: the heading.
        max_rows: the most rows.

    Raises:
        ValueError: there is no panel.
        AttclError: the file cannot be written.
    """
    if not panels:
        raise ValueError("panels: none, wanted one or more")
    rows = panels[:max_rows]
    top, bottom = 112, 56
    left = _EDGE + _LABEL_WIDTH
    right = left + len(_COLUMNS) * (_CELL + _GAP)
    width = right + _GAP + _SCORES_WIDTH + _EDGE
    height = top + len(rows) * (_CELL + _GAP) + bottom
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)

    _write(draw, (_EDGE, 24), title, 26, room=width - 2 * _EDGE - 200, bold=True)
    shown = f"{len(rows)} of {len(panels)}" if len(rows) < len(panels) else f"{len(rows)}"
    _write(draw, (width - _EDGE, 32), f"{shown} synthesised volumes", 15, _MUTED, anchor="ra")
    for column, name in enumerate(_COLUMNS):
        colour = _AMBER if name == "synthetic" else _MUTED
        _write(draw, (left + column * (_CELL + _GAP), 84), name, 15, colour)
    _write(draw, (right + _GAP, 84), "scores", 15, _MUTED)

    for row, panel in enumerate(rows):
        y = top + row * (_CELL + _GAP)
        index = _largest_slice(panel.brain)
        _write(draw, (_EDGE, y + 4), panel.case, 16, room=_LABEL_WIDTH - 16, bold=True)
        arrow = f"{panel.source_modality} \u2192 {panel.target_modality}"
        _write(draw, (_EDGE, y + 30), arrow, 15, room=_LABEL_WIDTH - 16)
        depth = panel.source.shape[0]
        _write(draw, (_EDGE, y + 54), f"slice {index + 1} of {depth}", 13, _MUTED)
        box = _brain_box(panel.brain[index : index + 1])
        for column, picture in enumerate(_pictures(panel, np.s_[index : index + 1, *box[1:]])):
            x = left + column * (_CELL + _GAP)
            draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=(0, 0, 0))
            if picture is None:
                _write(draw, (x + _CELL // 2, y + _CELL // 2), DASH, 30, _MUTED, anchor="mm")
                continue
            image = _fit(picture[0], (_CELL, _CELL))
            offset = (_CELL - image.width) // 2, (_CELL - image.height) // 2
            canvas.paste(image, (x + offset[0], y + offset[1]))
            if _COLUMNS[column] == "synthetic":
                _badge(draw, (x + 4, y + _CELL - 24))
        _write_scores(draw, (right + _GAP, y + 4), panel)

    _write(draw, (_EDGE, height - 36), DISCLAIMER, 14, _MUTED)
    _colour_bar(canvas, draw, (right - _CELL - _GAP, height - 40))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG", optimize=True)
    write_whole(Path(path), stream.getvalue())


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
) -> None:
    """Writes one page that needs nothing beside itself: facts, scores, a slice viewer, notes.

    Args:
        path: the file to write.
        panels: what the viewer shows, in this order; may be empty.
        title: the heading.
        facts: label -> value, a strip under the heading.
        summary: the table's rows, column -> cell. A column `X (copy)` is the baseline of column
            `X`; the better of the two is emphasised.
        notes: paragraphs under the pictures; the disclaimer is always added.
        files: what else was written, as links relative to the page.
        lower_is_better: the names (columns and scores) in which less is better.

    Raises:
        AttclError: the file cannot be written.
    """
    images: dict[str, int] = {}
    budget = _PAGE_PIXELS // (len(_COLUMNS) * max(len(panels), 1))
    shown = [_viewer_entry(panel, images, budget, lower_is_better) for panel in panels]
    script_hash = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    page = Template(_PAGE).substitute(
        title=_escape(title),
        # Nothing may be fetched, and no script runs but ours, whatever a name in the data says.
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{script_hash}'",
        style=_STYLE,
        facts="".join(
            f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>"
            for name, value in facts.items()
        ),
        summary=_table(summary, lower_is_better),
        viewer=_VIEWER if panels else "",
        notes=_note_list(notes),
        files=_file_list(files),
        disclaimer=DISCLAIMER,
        data=_inert_json({"images": list(images), "panels": shown}),
        script=_SCRIPT,
    )
    write_whole(Path(path), page.encode("utf-8", "replace"))


# --- Arrays to pictures ---------------------------------------------------------------------------


def write_grid(path: Path, titles: list[str], rows: list[tuple[str, list[Array]]]) -> None:
    """Writes a plain grid of slices as a PNG: what training shows of itself.

    Args:
        path: the PNG.
        titles: one a column.
        rows: (title, images (H, W) in [-1, 1]), as many images as there are titles.
    """
    side = max(_GRID_CELL, rows[0][1][0].shape[-1])
    sheet = Image.new("RGB", (len(titles) * side, len(rows) * side), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = _font(11, bold=False)
    for top, (title, images) in enumerate(rows):
        for left, (column, image) in enumerate(zip(titles, images, strict=True)):
            grey = Image.fromarray(((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8))
            sheet.paste(
                grey.resize((side, side), Image.Resampling.BICUBIC), (left * side, top * side)
            )
            draw.text(
                (left * side + 3, top * side + 2), title if left == 0 else column, _AMBER, font
            )
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    write_whole(path, stream.getvalue())


def _pictures(panel: Panel, block: tuple[slice, ...]) -> Iterator[Array | None]:
    """A block's pictures, (D, H, W[, 3]) uint8, in the order of `_COLUMNS`; None: no truth."""
    synthetic = panel.synthetic[block]
    yield _grey(panel.source[block])
    yield _grey(synthetic)
    if panel.truth is None:
        yield from (None, None)
        return
    truth = panel.truth[block]
    yield _grey(truth)
    level = _grey(np.abs(synthetic - truth) / DIFFERENCE_TOP)
    yield _colours()[np.where(panel.brain[block], level, 0)]


def _grey(volume: Array) -> Array:
    # A NaN has no grey: it is black here, and the scores (which become NaN) tell of it.
    unit = np.nan_to_num(np.clip(volume, 0, 1), nan=0.0)
    return np.rint(unit * 255).astype(np.uint8)


def _colours() -> Array:
    """The colours of the differences: (256, 3) uint8, black for none."""
    return np.rint(colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _largest_slice(brain: Array) -> int:
    """The slice with most brain; the middle one where there is none."""
    areas = brain.sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def _brain_box(brain: Array) -> tuple[slice, slice, slice]:
    """The bounding box of the brain with a margin; everything where there is no brain."""
    box = []
    for axis, length in enumerate(brain.shape):
        hits = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        first, last = (int(hits[0]), int(hits[-1])) if hits.size else (0, length - 1)
        margin = _MARGIN if axis else 0
        box.append(slice(max(first - margin, 0), min(last + margin + 1, length)))
    return box[0], box[1], box[2]


def _fit(picture: Array, room: tuple[int, int]) -> Image.Image:
    """A slice scaled to fill `room` (width, height) without changing its proportions."""
    image = Image.fromarray(picture)
    scale = min(room[0] / image.width, room[1] / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.BICUBIC)


# --- The montage's text ---------------------------------------------------------------------------


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int] = _TEXT,
    *,
    room: int | None = None,
    bold: bool = False,
    anchor: str = "la",
) -> None:
    """Draws one line, shortened with an ellipsis where it is wider than `room` pixels."""
    font = _font(size, bold=bold)
    line = " ".join(text.split())
    if room is not None and draw.textlength(line, font) > room:
        while line and draw.textlength(line + "\u2026", font) > room:
            line = line[:-1]
        line += "\u2026"
    draw.text(at, line, fill=colour, font=font, anchor=anchor)


def _font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib brings a font with it, so that a picture looks the same on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _badge(draw: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    font = _font(11, bold=True)
    text = "SYNTHETIC"
    end = at[0] + draw.textlength(text, font) + 10, at[1] + 20
    draw.rounded_rectangle((*at, *end), radius=4, fill=_BACKGROUND, outline=_AMBER)
    draw.text((at[0] + 5, at[1] + 10), text, fill=_AMBER, font=font, anchor="lm")


def _write_scores(draw: ImageDraw.ImageDraw, at: tuple[int, int], panel: Panel) -> None:
    x, y = at
    lines = (_CELL - 4) // 46
    for row, (name, value) in enumerate(list(panel.scores.items())[:lines]):
        top = y + row * 46
        end = x + _SCORES_WIDTH
        _write(draw, (x, top), name, 14, _MUTED, room=_SCORES_WIDTH - 70)
        _write(draw, (end, top - 1), _number(value), 16, bold=True, anchor="ra")
        if name in panel.baseline:
            copy = f"copy {_number(panel.baseline[name])}"
            _write(draw, (end, top + 21), copy, 12, _MUTED, anchor="ra")


def _colour_bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    bar = Image.fromarray(np.broadcast_to(_colours(), (10, 256, 3)).copy())
    canvas.paste(bar.resize((_CELL, 10)), at)
    _write(draw, (at[0], at[1] + 14), "0", 12, _MUTED)
    top = f"{DIFFERENCE_TOP:g} of the window"
    _write(draw, (at[0] + _CELL, at[1] + 14), top, 12, _MUTED, anchor="ra")


# --- The page -------------------------------------------------------------------------------------


def _viewer_entry(
    panel: Panel, images: dict[str, int], budget: int, lower_is_better: Collection[str]
) -> dict[str, Any]:
    """What the page's script needs of a panel; its sprite sheets are added to `images`.

    Args:
        panel: the panel.
        images: data URI -> position; equal pictures (one source, two targets) are kept once.
        budget: the most pixels of one sprite sheet.
        lower_is_better: as in `write_html`.
    """
    box = _brain_box(panel.brain)
    rows, columns = (side.stop - side.start for side in box[1:])
    scale = min(_MOST_PIXELS_A_SIDE / max(rows, columns), 1)
    size = max(round(columns * scale), 1), max(round(rows * scale), 1)
    count = max(_LEAST_SLICES, min(_MOST_SLICES, budget // (size[0] * size[1])))
    step = max(1, math.ceil((box[0].stop - box[0].start) / count))
    # In steps from the largest slice, so that the viewer opens at the one that the montage shows.
    largest = _largest_slice(panel.brain)
    first = box[0].start + (largest - box[0].start) % step
    slices = list(range(first, box[0].stop, step))
    across = math.ceil(math.sqrt(len(slices)))

    sheets: list[int | None] = []
    for pictures in _pictures(panel, np.s_[first : box[0].stop : step, *box[1:]]):
        if pictures is None:
            sheets.append(None)
            continue
        uri = _sprite_sheet(pictures, size, across)
        sheets.append(images.setdefault(uri, len(images)))
    return {
        "case": panel.case,
        "source": panel.source_modality,
        "target": panel.target_modality,
        "sheets": sheets,
        "size": size,
        "grid": (across, math.ceil(len(slices) / across)),
        "slices": slices,
        "depth": panel.source.shape[0],
        "start": slices.index(largest),
        "scores": [
            {
                "name": name,
                "value": _number(value),
                "copy": _number(panel.baseline[name]) if name in panel.baseline else None,
                "better": _better(value, panel.baseline.get(name), lower=name in lower_is_better),
            }
            for name, value in panel.scores.items()
        ],
    }


def _sprite_sheet(slices: Array, size: tuple[int, int], across: int) -> str:
    """Slices side by side in one picture, as a data URI.

    Args:
        slices: (N, H, W) or (N, H, W, 3) uint8.
        size: (width, height) of a slice in the sheet.
        across: slices in a row.
    """
    down = math.ceil(len(slices) / across)
    mode = "RGB" if slices.ndim == 4 else "L"  # noqa: PLR2004
    sheet = Image.new(mode, (across * size[0], down * size[1]))
    for place, slice_ in enumerate(slices):
        row, column = divmod(place, across)
        small = Image.fromarray(np.ascontiguousarray(slice_)).resize(size, Image.Resampling.BICUBIC)
        sheet.paste(small, (column * size[0], row * size[1]))
    stream = io.BytesIO()
    sheet.save(stream, format="WEBP", quality=_WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def _table(rows: Sequence[Mapping[str, str | float]], lower_is_better: Collection[str]) -> str:
    """The summary as an HTML table; pairs of a column and its baseline share a heading."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    paired = {name for name in names if name + COPY_SUFFIX in names}
    columns = [name for name in names if name.removesuffix(COPY_SUFFIX) not in paired - {name}]

    head = "".join(
        f'<th colspan="2" scope="colgroup">{_escape(name)}</th>'
        if name in paired
        else f'<th rowspan="2" scope="col">{_escape(name)}</th>'
        for name in columns
    )
    second = '<th scope="col">synthetic</th><th scope="col">copy</th>' * len(paired)
    body = []
    for row in rows:
        cells = []
        for name in columns:
            value = row.get(name)
            if name not in paired:
                cells.append(f"<td>{_cell(value)}</td>")
                continue
            copy = row.get(name + COPY_SUFFIX)
            better = _better(value, copy, lower=name in lower_is_better)
            for side, content in (("synthetic", value), ("copy", copy)):
                mark = ' class="better"' if better == side else ""
                cells.append(f"<td{mark}>{_cell(content)}</td>")
        body.append("<tr>" + "".join(cells) + "</tr>")
    return (
        '<section><h2>Scores</h2><div class="scroll"><table><thead>'
        f"<tr>{head}</tr><tr>{second}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        + (_COPY_HINT if paired else "")
        + "</section>"
    )


def _note_list(notes: Sequence[str]) -> str:
    # The page's foot carries the disclaimer, whether the caller thought of it or not.
    others = [note for note in notes if note.rstrip(".") != DISCLAIMER.rstrip(".")]
    paragraphs = "".join(f"<p>{_escape(note)}</p>" for note in others)
    return f"<section><h2>Notes</h2>{paragraphs}</section>" if others else ""


def _file_list(files: Sequence[str]) -> str:
    if not files:
        return ""
    # Quoted whole, a name with a colon stays a file's name and never becomes a scheme.
    links = "".join(f'<li><a href="{quote(name)}">{_escape(name)}</a></li>' for name in files)
    return f"<section><h2>Files</h2><ul>{links}</ul></section>"


def _better(value: object, copy: object, *, lower: bool) -> str:
    """Which is better, "synthetic" or "copy"; "" where they are equal or one is no number."""
    if not (isinstance(value, _NUMBER) and isinstance(copy, _NUMBER)):
        return ""
    if value == copy or np.isnan(value) or np.isnan(copy):
        return ""
    return "synthetic" if (value < copy) == lower else "copy"


def _cell(value: object) -> str:
    if value is None or isinstance(value, _NUMBER):
        return _number(value)
    return _escape(str(value))


def _number(value: Any) -> str:
    """A number for people: three decimals below 2, one above; a dash for NaN and None."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "\u221e" if value > 0 else "-\u221e"
    if isinstance(value, int | np.integer):
        return str(value)
    # An SSIM or a Dice needs the third decimal, a PSNR in dB or a distance in mm does not have it.
    return f"{value:.1f}" if abs(value) >= 2 else f"{value:.3f}"  # noqa: PLR2004


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _inert_json(document: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_STYLE = """
:root { color-scheme: dark; --ground: #0c0e12; --raised: #14181e; --line: #262c35;
  --text: #eceff2; --muted: #97a1ac; --amber: #ffba5c; --good: #66dcc0; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 24px; }
h1 { font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; margin: 0 0 20px;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: .8rem; text-transform: uppercase; letter-spacing: .1em; color: var(--muted);
  margin: 0 0 12px; font-weight: 600; }
section { margin-top: 36px; }
.facts { display: flex; flex-wrap: wrap; margin: 0; background: var(--line); gap: 1px;
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.facts div { flex: 1 1 auto; min-width: 116px; padding: 10px 16px; background: var(--raised); }
.facts dt { color: var(--muted); font-size: .78rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px;
  background: var(--raised); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 16px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--raised); }
thead tr:nth-child(2) th:first-child { text-align: right; position: static; }
th { color: var(--muted); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
thead tr:nth-child(2) th { padding-top: 0; font-size: .75rem; }
tbody td { border-top: 1px solid var(--line); }
.better { color: var(--good); font-weight: 650; }
.hint { color: var(--muted); font-size: .85rem; margin: 8px 0 0; }
.controls { display: flex; flex-wrap: wrap; gap: 12px 20px; align-items: center;
  margin-bottom: 14px; }
select, .targets button { font: inherit; color: inherit; background: var(--raised);
  border: 1px solid var(--line); border-radius: 8px; min-height: 40px; padding: 6px 12px; }
select { max-width: 100%; }
.targets { display: inline-flex; flex-wrap: wrap; gap: 6px; }
.targets button { cursor: pointer; color: var(--muted); }
.targets button[aria-pressed="true"] { color: var(--ground); background: var(--text);
  border-color: var(--text); }
.slice { display: flex; align-items: center; gap: 12px; flex: 1 1 260px; }
.slice input { flex: 1; accent-color: var(--text); min-width: 0; height: 32px; }
.slice output { color: var(--muted); font-size: .85rem; white-space: nowrap; min-width: 8.2em;
  font-variant-numeric: tabular-nums; }
:focus-visible { outline: 2px solid var(--good); outline-offset: 2px; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; }
figure { margin: 0; background: #000; border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; position: relative; }
figure.synthetic { border-color: var(--amber); }
.sprite { width: 100%; aspect-ratio: 1; display: grid; place-items: center; overflow: hidden;
  color: var(--muted); font-size: 2rem; }
.sprite i { display: block; background-repeat: no-repeat; }
figcaption { display: flex; justify-content: space-between; gap: 8px; align-items: center;
  min-height: 40px; padding: 6px 12px; font-size: .88rem; background: var(--raised);
  overflow-wrap: anywhere; }
.badge { border: 1px solid var(--amber); color: var(--amber); border-radius: 5px;
  font-size: .66rem; font-weight: 700; letter-spacing: .06em; padding: 1px 6px; }
.ramp { flex: none; width: 84px; display: flex; gap: 4px; align-items: center;
  font-size: .7rem; color: var(--muted); }
.ramp i { flex: 1; height: 6px; border-radius: 3px;
  background: linear-gradient(90deg, #000004, #57106e, #bc3754, #f98e09, #fcffa4); }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 14px; }
.chips div { background: var(--raised); border: 1px solid var(--line); border-radius: 10px;
  padding: 8px 14px; font-variant-numeric: tabular-nums; }
.chips span { color: var(--muted); font-size: .8rem; display: block; }
.chips small { color: var(--muted); margin-left: 10px; }
.chips small.better { color: var(--good); }
kbd { border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; font: inherit; }
p { margin: 0 0 10px; max-width: 78ch; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 20px; }
li { overflow-wrap: anywhere; }
a { color: var(--text); text-underline-offset: 3px; text-decoration-color: var(--muted); }
footer { border-top: 1px solid var(--line); margin-top: 40px; padding-top: 16px;
  color: var(--muted); font-size: .88rem; }
footer strong { color: var(--amber); font-weight: 600; }
@media (max-width: 760px) {
  main { padding: 24px 14px 16px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  th, td { padding: 7px 9px; font-size: .88rem; }
  .facts div { flex-basis: 40%; padding: 8px 12px; }
  figcaption { padding: 6px 9px; font-size: .8rem; }
  .ramp { width: 62px; }
}
"""

_COPY_HINT = (
    '<p class="hint">copy: the source itself handed in as the answer, what costs nothing. '
    "The better of the two is emphasised.</p>"
)

_VIEWER = f"""
<section id="viewer" aria-label="Slice viewer">
<h2>Slices</h2>
<div class="controls">
<label><span hidden>Case</span><select id="case" aria-label="Case"></select></label>
<div class="targets" id="targets" role="group" aria-label="Synthesised modality"></div>
<label class="slice"><input id="slice" type="range" min="0" value="0" aria-label="Slice">
<output id="place" for="slice"></output></label>
</div>
<div class="tiles">
<figure><div class="sprite" role="img" aria-label="source"></div>
<figcaption><span id="source">source</span></figcaption></figure>
<figure class="synthetic"><div class="sprite" role="img" aria-label="synthetic"></div>
<figcaption><span id="target">synthetic</span><b class="badge">SYNTHETIC</b></figcaption></figure>
<figure><div class="sprite" role="img" aria-label="real"></div>
<figcaption><span id="real">real</span></figcaption></figure>
<figure><div class="sprite" role="img" aria-label="absolute difference"></div>
<figcaption><span>difference</span>
<span class="ramp">0<i></i>{DIFFERENCE_TOP:g}</span></figcaption></figure>
</div>
<div class="chips" id="scores"></div>
<p class="hint"><kbd>&larr;</kbd> <kbd>&rarr;</kbd> slices. Pictures are reduced and compressed;
intensities are scaled to the window of each modality, differences are shown inside the brain.</p>
<noscript><p>The slice viewer needs JavaScript; everything else is readable without.</p></noscript>
</section>
"""

_SCRIPT = """
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.panels.length) return;
  const element = (id) => document.getElementById(id);
  const cases = element("case"), targets = element("targets"), slider = element("slice");
  const sprites = [...document.querySelectorAll(".sprite")];
  let panel = null;

  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  function showSlice() {
    const place = Number(slider.value), [across, down] = panel.grid;
    const x = across > 1 ? (place % across) / (across - 1) : 0;
    const y = down > 1 ? Math.floor(place / across) / (down - 1) : 0;
    for (const sprite of sprites) {
      if (sprite.firstElementChild)
        sprite.firstElementChild.style.backgroundPosition = x * 100 + "% " + y * 100 + "%";
    }
    element("place").textContent = "slice " + (panel.slices[place] + 1) + " of " + panel.depth;
  }

  function showPanel(next) {
    // The same height in the head, so that two cases or targets can be compared.
    const height = panel ? Number(slider.value) / Math.max(panel.slices.length - 1, 1) : null;
    const old = panel;
    panel = next;
    const last = panel.slices.length - 1, [width, tall] = panel.size;
    slider.max = last;
    slider.value = height === null || (old && old.case !== panel.case)
      ? panel.start : Math.round(height * last);
    sprites.forEach((sprite, index) => {
      const sheet = panel.sheets[index];
      if (sheet === null) { sprite.replaceChildren("\\u2013"); return; }
      const image = document.createElement("i");
      image.style.backgroundImage = "url(" + data.images[sheet] + ")";
      image.style.backgroundSize = panel.grid[0] * 100 + "% " + panel.grid[1] * 100 + "%";
      image.style.width = Math.min(1, width / tall) * 100 + "%";
      image.style.aspectRatio = width + " / " + tall;
      sprite.replaceChildren(image);
    });
    element("source").textContent = panel.source + ", source";
    element("target").textContent = panel.target;
    const known = panel.sheets[2] !== null;
    element("real").textContent = panel.target + (known ? ", real" : ", no truth");
    for (const button of targets.children)
      button.setAttribute("aria-pressed", String(button.panel === panel));
    element("scores").replaceChildren(...panel.scores.map((score) => {
      const chip = document.createElement("div");
      chip.append(make("span", score.name));
      chip.append(make("b", score.value, score.better === "synthetic" ? "better" : ""));
      if (score.copy !== null)
        chip.append(make("small", "copy " + score.copy, score.better === "copy" ? "better" : ""));
      return chip;
    }));
    showSlice();
  }

  function showCase() {
    const target = panel && panel.target;
    const mine = data.panels.filter((each) => each.case === cases.value);
    targets.replaceChildren(...mine.map((each) => {
      const button = make("button", each.source + " \\u2192 " + each.target);
      button.type = "button";
      button.panel = each;
      button.addEventListener("click", () => showPanel(each));
      return button;
    }));
    showPanel(mine.find((each) => each.target === target) || mine[0]);
  }

  for (const name of new Set(data.panels.map((each) => each.case))) {
    const option = make("option", name);
    option.value = name;
    cases.append(option);
  }
  cases.addEventListener("change", showCase);
  slider.addEventListener("input", showSlice);
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    // A focused slider or list moves by itself.
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === slider || event.target === cases) return;
    event.preventDefault();
    slider.value = Number(slider.value) + step;
    showSlice();
  });
  showCase();
})();
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header><h1>$title</h1><dl class="facts">$facts</dl></header>
$summary
$viewer
$notes
$files
<footer><strong>$disclaimer</strong>
The volumes marked SYNTHETIC were made by a network and show no measurement.</footer>
</main>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body>
</html>
"""
