"""Pictures of completed cases: arrays as grey values and colours, sheets of slices, montage and grid.

Knows nothing of datasets, networks, metrics or pages: arrays, names and numbers come from the caller.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from attcl_cli.data.intensities import bounding_box
from attcl_cli.errors import visible
from attcl_cli.files import write_whole
from attcl_cli.report.rounding import number

Array = NDArray[Any]

DISCLAIMER = "Research software for datasets, not a medical device."
SOURCE, SYNTHETIC, REAL, DIFFERENCE = KINDS = ("source", "synthetic", "real", "difference")
_COLUMNS = {
    SOURCE: "source",
    SYNTHETIC: "synthetic",
    REAL: "real",
    DIFFERENCE: "|synthetic - real|",
}
DIFFERENCE_TOP = 0.5  # differences from here on, in units of the window, have the brightest colour

_MOST_SLICES, _LEAST_SLICES = 52, 12
_MOST_PIXELS_A_SIDE, _LEAST_PIXELS_A_SIDE = 160, 72
_WEBP_QUALITY = 72
_MARGIN = 3  # voxels around the brain

_BACKGROUND, _TEXT, _MUTED = (12, 14, 18), (236, 239, 242), (150, 160, 171)
_AMBER = (255, 186, 92)  # marks what is synthetic
_GRID_CELL = 160  # pixels
_CELL, _GAP, _EDGE = 220, 10, 28  # pixels
_LABEL_WIDTH, _SCORES_WIDTH = 190, 230


@dataclass(frozen=True, eq=False)
class Tile:
    """One of the volumes that are shown side by side.

    Attributes:
        caption: under it: "flair, source".
        volume: (D, H, W) in [0, 1], or grey values (uint8); axial slices, row 0 anterior.
        kind: one of `KINDS`; a difference is drawn in colours, a synthetic volume is marked.
    """

    caption: str
    volume: Array
    kind: str = SOURCE


@dataclass(frozen=True, eq=False)
class Panel:
    """The volumes of a case side by side.

    Attributes:
        case: the patient's name.
        source_modality: the source; all of them if there are several, `flair+t2`.
        target_modality: the synthesised modality.
        tiles: the volumes, all of one shape (D, H, W).
        brain: the same shape, bool; what is cropped to.
        outlines: name -> the same shape, bool; regions whose borders can be drawn, such as the tumour.
        spacing_mm: of the voxels along D, H, W.
        scores: name -> value of the synthetic volume.
        baseline: the same names -> value of a copy of the most similar source.
        affine: (column, row, slice, 1) of the volumes to RAS+ mm, (4, 4); None: around the middle (`place`).
        role: why this one has pictures (`chosen.choose`), shown beside its position; "" if all have.
    """

    case: str
    source_modality: str
    target_modality: str
    tiles: Sequence[Tile]
    brain: Array
    outlines: Mapping[str, Array] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scores: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    affine: Array | None = None
    role: str = ""

    def __post_init__(self) -> None:
        """Raise a `ValueError` if the shapes differ, or nothing is shown."""
        volumes = [*(tile.volume for tile in self.tiles), self.brain, *self.outlines.values()]
        shapes = {volume.shape for volume in volumes}
        if len(shapes) > 1 or self.brain.ndim != 3 or 0 in self.brain.shape:  # noqa: PLR2004
            raise ValueError(f"{self.case}: shapes {sorted(shapes)}, expected one (D, H, W)")
        if not self.tiles:
            raise ValueError(f"{self.case}: no tile, expected one or more")

    @property
    def place(self) -> Array:
        """Return the affine; without one, columns go to the left, rows back and slices up, around the middle."""
        if self.affine is not None:
            return self.affine
        d, h, w = self.spacing_mm
        affine = np.diag([-w, -h, d, 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(self.brain.shape[::-1]) - 1) / 2)
        return affine


def compared(
    target: str, sources: Mapping[str, Array], synthetic: Array, truth: Array | None, brain: Array
) -> tuple[Tile, ...]:
    """Return the tiles of a completed volume: its sources, what was made, and, if known, the real volume.

    Args:
        target: the synthesised modality.
        sources: modality -> (D, H, W) in [0, 1].
        synthetic: the same shape, in [0, 1].
        truth: the same; None if nobody knows it: then there is no difference either.
        brain: the same shape, bool; the difference is shown inside it.

    Returns:
        The tiles with grey values, a quarter of the memory: a page has many panels.
    """
    tiles = [Tile(f"{name}, source", grey(volume)) for name, volume in sources.items()]
    tiles.append(Tile(target, grey(synthetic), SYNTHETIC))
    if truth is not None:
        difference = np.where(brain, np.abs(synthetic - truth) / DIFFERENCE_TOP, 0)
        tiles += [
            Tile(f"{target}, real", grey(truth), REAL),
            Tile("difference", grey(difference), DIFFERENCE),
        ]
    return tuple(tiles)


@dataclass(frozen=True, eq=False)
class Sprites:
    """The slices of a panel that a viewer shows, side by side in one picture per column.

    Attributes:
        sheets: a WebP file per tile.
        outlines: name -> a lossless WebP file of the same grid, white inside the region.
        size: (width, height) of a slice in a sheet, in pixels.
        grid: (slices in a row, rows).
        slices: which slices of the volume these are, ascending.
        box: ((first, end) row, (first, end) column) that the sheets show of each slice.
        spacing_mm: from slice to slice, row to row and column to column of the sheets.
        starts: where a viewer opens along each axis: the position in `slices` of the one to show first (`first_slice`),
            and a row and a column of the sheets, those with most of what is outlined, or the middle ones.
    """

    sheets: tuple[bytes, ...]
    outlines: Mapping[str, bytes]
    size: tuple[int, int]
    grid: tuple[int, int]
    slices: tuple[int, ...]
    box: tuple[tuple[int, int], tuple[int, int]]
    spacing_mm: tuple[float, float, float]
    starts: tuple[int, int, int]


def write_montage(path: Path, panels: Sequence[Panel], *, title: str, max_rows: int = 8) -> None:
    """Write a montage as a PNG.

    Args:
        path: the file to write.
        panels: one or more; those beyond `max_rows` are counted in the title's line.
        title: the heading.
        max_rows: the most rows.

    Raises:
        ValueError: there is no panel.
        AttclError: the file cannot be written.
    """
    stream = io.BytesIO()
    maker = PngInfo()
    maker.add_text("Software", "attcl")  # `run_record` knows ours by it
    picture = montage(panels, title=title, max_rows=max_rows)
    picture.save(stream, format="PNG", optimize=True, pnginfo=maker)
    write_whole(Path(path), stream.getvalue())


def montage(panels: Sequence[Panel], *, title: str, max_rows: int = 8) -> Image.Image:
    """Draw a row per panel at its first slice: its sources, what was made, and, if known, real and difference.

    Each picture names its modality; the first slice is that of `first_slice`.

    Args:
        panels: one or more; those beyond `max_rows` are counted in the title's line.
        title: the heading.
        max_rows: the most rows.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("panels: none, expected one or more")
    rows = panels[:max_rows]
    columns = _montage_columns(rows)
    top, bottom = 112, 56
    left = _EDGE + _LABEL_WIDTH
    right = left + len(columns) * (_CELL + _GAP)
    width = right + _GAP + _SCORES_WIDTH + _EDGE
    height = top + len(rows) * (_CELL + _GAP) + bottom
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)

    _write(draw, (_EDGE, 24), title, 26, room=width - 2 * _EDGE - 200, bold=True)
    shown = f"{len(rows)} of {len(panels)}" if len(rows) < len(panels) else f"{len(rows)}"
    _write(
        draw,
        (width - _EDGE, 32),
        f"{shown} synthesised {'volume' if len(panels) == 1 else 'volumes'}",
        15,
        _MUTED,
        anchor="ra",
    )
    for column, (kind, _) in enumerate(columns):
        colour = _AMBER if kind == SYNTHETIC else _MUTED
        _write(draw, (left + column * (_CELL + _GAP), 84), _COLUMNS[kind], 15, colour)
    # Without a real volume there is nothing to score.
    figures = "scores" if (REAL, 0) in columns else "doubt"
    _write(draw, (right + _GAP, 84), figures, 15, _MUTED)

    for row, panel in enumerate(rows):
        y = top + row * (_CELL + _GAP)
        index = first_slice(panel)
        _write(draw, (_EDGE, y + 4), panel.case, 16, room=_LABEL_WIDTH - 16, bold=True)
        arrow = f"{panel.source_modality} \u2192 {panel.target_modality}"
        _write(draw, (_EDGE, y + 30), arrow, 15, room=_LABEL_WIDTH - 16)
        depth = panel.brain.shape[0]
        _write(draw, (_EDGE, y + 54), f"slice {index + 1} of {depth}", 13, _MUTED)
        box = brain_box(panel.brain[index : index + 1])
        for column, (kind, place) in enumerate(columns):
            x = left + column * (_CELL + _GAP)
            draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=(0, 0, 0))
            tiles = [tile for tile in panel.tiles if tile.kind == kind]
            if place >= len(tiles):
                continue
            picture = _picture(tiles[place], np.s_[index : index + 1, *box[1:]])
            image = _fit(picture[0], (_CELL, _CELL))
            offset = (_CELL - image.width) // 2, (_CELL - image.height) // 2
            canvas.paste(image, (x + offset[0], y + offset[1]))
            if kind == SYNTHETIC:
                _badge(draw, (x + 4, y + _CELL - 24))
            if kind != DIFFERENCE:
                _name(draw, (x + 4, y + 4), tiles[place].caption)
        _write_scores(draw, (right + _GAP, y + 4), panel)

    _write(draw, (_EDGE, height - 36), DISCLAIMER, 14, _MUTED)
    if (DIFFERENCE, 0) in columns:
        _colour_bar(canvas, draw, (right - _CELL - _GAP, height - 40))
    return canvas


def _montage_columns(rows: Sequence[Panel]) -> list[tuple[str, int]]:
    """Return (kind, number among the tiles of its kind) per column: as many of each kind as any row has."""
    counts = {
        kind: max(sum(tile.kind == kind for tile in panel.tiles) for panel in rows)
        for kind in KINDS
    }
    return [(kind, place) for kind in KINDS for place in range(counts[kind])]


def write_grid(path: Path, titles: list[str], rows: list[tuple[str, list[Array]]]) -> None:
    """Write a plain grid of slices as a PNG: the sample pictures of training.

    Args:
        path: the PNG.
        titles: one per column.
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
                (left * side + 3, top * side + 2),
                visible(title if left == 0 else column),
                _AMBER,
                font,
            )
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    write_whole(path, stream.getvalue())


def sprites(panel: Panel, *, pixels: int) -> Sprites:
    """Return the slices of a panel, cropped to the brain and reduced, for a viewer.

    Args:
        panel: the panel.
        pixels: the most that one sheet should hold: first there are fewer slices, then smaller
            ones. A sheet of the fewest and smallest ones is made in any case.
    """
    box = brain_box(panel.brain)
    depth, rows, columns = (side.stop - side.start for side in box)
    most = min(_MOST_PIXELS_A_SIDE / max(rows, columns), 1)
    least = min(_LEAST_PIXELS_A_SIDE / max(rows, columns), 1)
    fewest = min(_LEAST_SLICES, depth)
    scale = min(most, max(least, math.sqrt(pixels / (fewest * rows * columns))))
    size = max(round(columns * scale), 1), max(round(rows * scale), 1)
    count = max(_LEAST_SLICES, min(_MOST_SLICES, pixels // (size[0] * size[1])))
    step = max(1, math.ceil(depth / count))
    # In steps from the first one to show, so that the viewer opens at the one that the montage shows.
    shown = first_slice(panel)
    first = box[0].start + (shown - box[0].start) % step
    slices = tuple(range(first, box[0].stop, step))
    across = math.ceil(math.sqrt(len(slices)))
    block = np.s_[first : box[0].stop : step, *box[1:]]
    regions = {name: region[block] for name, region in panel.outlines.items()}
    mm = panel.spacing_mm
    return Sprites(
        sheets=tuple(_sheet(_picture(tile, block), size, across) for tile in panel.tiles),
        outlines={name: _mask_sheet(region, size, across) for name, region in regions.items()},
        size=size,
        grid=(across, math.ceil(len(slices) / across)),
        slices=slices,
        box=((box[1].start, box[1].stop), (box[2].start, box[2].stop)),
        spacing_mm=(mm[0] * step, mm[1] * rows / size[1], mm[2] * columns / size[0]),
        starts=(slices.index(shown), *_starts(regions.values(), (rows, columns), size)),
    )


# --- Arrays to pictures ---------------------------------------------------------------------------


def _picture(tile: Tile, block: tuple[slice, ...]) -> Array:
    """Return a block of a tile as it is drawn: (D, H, W) uint8, or (D, H, W, 3) for colours."""
    level = grey(tile.volume[block])
    return _colours()[level] if tile.kind == DIFFERENCE else level


def grey(volume: Array) -> Array:
    """Return grey values, uint8, of a volume in [0, 1]; grey values stay."""
    if volume.dtype == np.uint8:
        return volume
    # A NaN has no grey: it is black here, and seen in the scores, which become NaN.
    unit = np.nan_to_num(np.clip(volume, 0, 1), nan=0.0)
    value: Array = np.rint(unit * 255).astype(np.uint8)
    return value


def _colours() -> Array:
    """Return the colours of the differences: (256, 3) uint8, black for none."""
    value: Array = np.rint(colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    return value


def within(brain: Array, slices: tuple[int, int] | None) -> Array:
    """Return the brain in some slices alone, which are then all that is shown; unchanged for None, or without any.

    Args:
        brain: (D, H, W) bool.
        slices: first, stop.
    """
    if slices is None or not brain[slice(*slices)].any():
        return brain
    inside = np.zeros_like(brain)
    inside[slice(*slices)] = brain[slice(*slices)]
    return inside


def first_slice(panel: Panel) -> int:
    """Return the slice to look at first: with most of what is outlined, otherwise with most brain.

    Outlines beyond the slices of the brain, which no viewer shows, do not count; without any brain, it is the middle
    slice.
    """
    brain = panel.brain.sum(axis=(1, 2))
    outlined = np.any([np.zeros_like(panel.brain), *panel.outlines.values()], axis=0)
    for areas in (outlined.sum(axis=(1, 2)) * (brain > 0), brain):
        if areas.any():
            return int(areas.argmax())
    return len(brain) // 2


def _starts(
    regions: Iterable[Array], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Return the row and the column of the sheets with most of the regions; the middle ones if there is nothing.

    Args:
        regions: (N, H, W) bool.
        shape: (H, W).
        size: (width, height) of a slice in a sheet.
    """
    outlined = sum((region.sum(axis=0) for region in regions), np.zeros(shape, int))
    starts = []
    for counts, length in ((outlined.sum(axis=1), size[1]), (outlined.sum(axis=0), size[0])):
        place = (int(counts.argmax()) + 0.5) / len(counts) if counts.any() else 0.5
        starts.append(int(place * length))
    return starts[0], starts[1]


def brain_box(brain: Array) -> tuple[slice, slice, slice]:
    """Return the bounding box of the brain, with a margin within slices; everything if there is no brain."""
    tight = bounding_box(brain) or tuple(slice(0, length) for length in brain.shape)
    wide = bounding_box(brain, margin=_MARGIN) or tight
    return tight[0], wide[1], wide[2]


def _fit(picture: Array, room: tuple[int, int]) -> Image.Image:
    """Scale a slice to fill `room` (width, height) without changing its proportions."""
    image = Image.fromarray(picture)
    scale = min(room[0] / image.width, room[1] / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.BICUBIC)


def _sheet(slices: Array, size: tuple[int, int], across: int) -> bytes:
    """Return slices side by side in one picture, as a WebP file.

    Args:
        slices: (N, H, W) or (N, H, W, 3) uint8.
        size: (width, height) of a slice in the sheet.
        across: slices in a row.
    """
    stream = io.BytesIO()
    sheet = _side_by_side(slices, size, across, Image.Resampling.BICUBIC)
    sheet.save(stream, format="WEBP", quality=_WEBP_QUALITY, method=4)
    return stream.getvalue()


def _mask_sheet(slices: Array, size: tuple[int, int], across: int) -> bytes:
    """Return the slices of a region, (N, H, W) bool, as `_sheet` does, but without loss: white inside."""
    levels = slices.astype(np.uint8) * np.uint8(255)
    stream = io.BytesIO()
    sheet = _side_by_side(levels, size, across, Image.Resampling.NEAREST)
    sheet.save(stream, format="WEBP", lossless=True, quality=50, method=4)
    return stream.getvalue()


def _side_by_side(
    slices: Array, size: tuple[int, int], across: int, resampling: Image.Resampling
) -> Image.Image:
    down = math.ceil(len(slices) / across)
    mode = "RGB" if slices.ndim == 4 else "L"  # noqa: PLR2004
    sheet = Image.new(mode, (across * size[0], down * size[1]))
    for place, slice_ in enumerate(slices):
        row, column = divmod(place, across)
        small = Image.fromarray(np.ascontiguousarray(slice_)).resize(size, resampling)
        sheet.paste(small, (column * size[0], row * size[1]))
    return sheet


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
    """Draw one line, shortened with an ellipsis if it is wider than `room` pixels."""
    font = _font(size, bold=bold)
    text = visible(text)
    line = " ".join(text.split())
    if room is not None and draw.textlength(line, font) > room:
        # Names of patients differ at their ends.
        kept = len(line)
        while kept and draw.textlength(line, font) > room:
            kept -= 1
            line = " ".join(text.split())
            line = line[: kept // 2] + "\u2026" + line[len(line) - (kept - kept // 2) :]
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


def _name(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    """Write what a picture shows into its corner, on a ground that keeps it readable."""
    line, room = " ".join(visible(text).split()), _CELL - 20
    end = at[0] + min(draw.textlength(line, _font(12, bold=False)), room) + 10, at[1] + 20
    draw.rounded_rectangle((*at, *end), radius=4, fill=_BACKGROUND)
    _write(draw, (at[0] + 5, at[1] + 10), line, 12, room=room, anchor="lm")


def _write_scores(draw: ImageDraw.ImageDraw, at: tuple[int, int], panel: Panel) -> None:
    x, y = at
    lines = (_CELL - 4) // 46
    for row, (name, value) in enumerate(list(panel.scores.items())[:lines]):
        top = y + row * 46
        end = x + _SCORES_WIDTH
        _write(draw, (x, top), name, 14, _MUTED, room=_SCORES_WIDTH - 70)
        _write(draw, (end, top - 1), number(value), 16, bold=True, anchor="ra")
        if name in panel.baseline:
            copy = f"copy {number(panel.baseline[name])}"
            _write(draw, (end, top + 21), copy, 12, _MUTED, anchor="ra")


def _colour_bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    bar = Image.fromarray(np.broadcast_to(_colours(), (10, 256, 3)).copy())
    canvas.paste(bar.resize((_CELL, 10)), at)
    _write(draw, (at[0], at[1] + 14), "0", 12, _MUTED)
    top = f"{DIFFERENCE_TOP:g} of the window"
    _write(draw, (at[0] + _CELL, at[1] + 14), top, 12, _MUTED, anchor="ra")
