"""The page of a run: one HTML file that needs nothing beside itself.

Turns records (`sections`) into HTML by the templates in `page/`. Knows nothing of datasets, networks or metrics.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from attcl_cli.errors import counted, visible
from attcl_cli.files import write_whole
from attcl_cli.report import niivue, pictures, plots
from attcl_cli.report.pictures import DISCLAIMER, Panel
from attcl_cli.report.rounding import number
from attcl_cli.report.sections import Cell, Section, Viewer, WholeVolumes

REPORT_FILE = "report.html"

# A page of a hundred panels stays below about 6 MB: all pictures together hold no more pixels than
# this (a compressed one takes about a tenth of a byte), down to the fewest and smallest slices.
_PAGE_PIXELS = 36_000_000
_FIRST_ROWS = 1_000  # of the table of cases; the others are shown on a click, since their layout takes seconds
_OUTLINE_COLOURS = 4  # the script and the style sheet have so many
_NUMBER = (int, float, np.integer, np.floating)


@dataclass(frozen=True)
class Page:
    """What a page says, from top to bottom.

    Attributes:
        title: the heading.
        verdict: one sentence under it: what came out, "better than a copy in 8 of 12 volumes".
        facts: label -> value, a strip under the verdict.
        sections: what is shown, in this order: pictures before tables.
        notes: paragraphs below; the disclaimer is always added.
        files: other results, as links relative to the page.
        refresh_seconds: a browser reads the page again after so many seconds; 0: never. For a run that goes on.
    """

    title: str
    verdict: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    notes: Sequence[str] = ()
    files: Sequence[str] = ()
    refresh_seconds: int = 0


def write_page(path: Path, page: Page) -> None:
    """Write a page. It fetches nothing, and no script runs but its own, whatever a name in the data says.

    Args:
        path: the file to write.
        page: what it says; at most one of its sections is a `Viewer`, and one `WholeVolumes`.

    Raises:
        AttclError: the file cannot be written.
    """
    viewers = [each for each in page.sections if isinstance(each, Viewer) and each.panels]
    whole = [each for each in page.sections if isinstance(each, WholeVolumes) and each.panels]
    if len(viewers) > 1 or len(whole) > 1:
        raise ValueError(
            f"{page.title}: {len(viewers)} slice viewers and {len(whole)} of whole volumes, "
            "expected one of each at most"
        )
    viewer = viewers[0] if viewers else Viewer(())
    scripts = [_page_file("script.js"), *([_page_file("niivue.js")] if whole else [])]
    sources = [*map(_source_of, scripts), *([niivue.policy()] if whole else [])]
    text = _templates(viewer.panels).render(
        page=page,
        disclaimer=DISCLAIMER,
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(sources)}",
        style=Markup(_page_file("style.css")),
        scripts=list(map(Markup, scripts)),
        data=Markup(_inert_json(_viewer_data(viewer))),
    )
    write_whole(Path(path), text.encode("utf-8", "replace"))


def _source_of(script: str) -> str:
    """Return a script as a Content Security Policy names it."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _page_file(name: str) -> str:
    return resources.files("attcl_cli.report").joinpath("page", name).read_text(encoding="utf-8")


def _templates(panels: Sequence[Panel]) -> Any:
    """Return the template of the page, with the functions that it and its parts call."""
    environment = Environment(
        loader=FunctionLoader(_page_file),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "box_plot": plots.box_plot,
        "curve_plot": plots.curve_plot,
        "counted": counted,
        "columns_of": _columns_of,
        "word_columns": _word_columns,
        "is_text": _is_text,
        "sort_key": _sort_key,
        "panel_of": _panel_finder(panels),
        "png": _png,
        "most_dots": plots.MOST_DOTS,
        "first_rows": _FIRST_ROWS,
        "has_panels": bool(panels),
        "is_shown": _is_shown,
        "niivue": niivue,
        "whole_volumes": niivue.document,
        "inert_json": lambda document: Markup(_inert_json(document)),
    }
    environment.filters |= {"cell": _cell, "link": _link}
    return environment.get_template("page.html")


def _plain(value: Any) -> Any:
    """Return a text of a template's `{{ }}` on one line, without what could move or reorder the text around it."""
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def _is_shown(section: Section) -> bool:
    """Return whether a section has anything to show."""
    return bool(getattr(section, section.content))


# --- Tables ---------------------------------------------------------------------------------------


def _columns_of(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _word_columns(rows: Sequence[Mapping[str, Cell]]) -> set[str]:
    """Return the columns that hold words; a table puts them to the left."""
    return {name for row in rows for name, value in row.items() if isinstance(value, str)}


def _cell(value: object) -> str:
    """Return a cell as it is shown: words as they are, numbers rounded for people."""
    if value is None or isinstance(value, _NUMBER):
        return number(value)
    return str(value)


def _is_text(value: object) -> bool:
    """Return whether a cell holds words that paper may break; a figure or a name stays on one line."""
    return isinstance(value, str) and " " in value and "\u00b1" not in value


def _sort_key(value: Cell) -> str:
    """Return a number as JavaScript reads it; "" if there is none."""
    if value is None or isinstance(value, str) or math.isnan(value):
        return ""
    return repr(float(value)).replace("inf", "Infinity")


def _panel_finder(panels: Sequence[Panel]) -> Callable[[Mapping[str, Cell]], int | None]:
    """Return the function that finds the panel of a row of the table of cases.

    A row without a `modality` is of the case as a whole, and so is a panel without a target.
    """
    places = {
        (panel.case, panel.source_modality, panel.target_modality)
        if panel.target_modality
        else (panel.case, None, None): place
        for place, panel in enumerate(panels)
    }
    return lambda row: places.get((row.get("case"), row.get("source"), row.get("modality")))  # type: ignore[arg-type]


def _link(name: str) -> str:
    """Return a link to a file. Quoted whole, a name with a colon stays a file's name and never becomes a scheme."""
    return quote(name, errors="surrogateescape")


def _png(image: bytes) -> str:
    return _data_uri(image, "png")


def _data_uri(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()


# --- The viewer -----------------------------------------------------------------------------------


def _viewer_data(viewer: Viewer) -> dict[str, Any]:
    """Return what the page's script needs of the panels; identical pictures (one source, two targets) are kept once."""
    images: dict[str, int] = {}
    names = dict.fromkeys(name for panel in viewer.panels for name in panel.outlines)
    colours = {name: place % _OUTLINE_COLOURS for place, name in enumerate(names)}
    count = sum(len(panel.tiles) for panel in viewer.panels)
    pixels = _PAGE_PIXELS // max(count, 1)
    panels = [
        _viewer_entry(panel, images, colours, pixels, viewer.lower_is_better)
        for panel in viewer.panels
    ]
    return {
        "images": list(images),
        "panels": panels,
        "order": viewer.order,
        "differenceTop": f"{pictures.DIFFERENCE_TOP:g}",
    }


def _viewer_entry(
    panel: Panel,
    images: dict[str, int],
    colours: Mapping[str, int],
    pixels: int,
    lower_is_better: Collection[str],
) -> dict[str, Any]:
    """Return what the page's script needs of a panel; add its sprite sheets to `images`.

    Args:
        panel: the panel.
        images: data URI -> position.
        colours: the name of an outline -> the number of its colour.
        pixels: the most pixels of one sprite sheet.
        lower_is_better: the names of those scores in which less is better.
    """
    sprites = pictures.sprites(panel, pixels=pixels)

    def place_of(sheet: bytes) -> int:
        return images.setdefault(_data_uri(sheet, "webp"), len(images))

    return {
        "case": visible(panel.case),
        "source": visible(panel.source_modality),
        "target": visible(panel.target_modality),
        "role": panel.role,
        "tiles": [
            {
                "caption": visible(tile.caption),
                "kind": tile.kind,
                "sheet": place_of(sheet),
            }
            for tile, sheet in zip(panel.tiles, sprites.sheets, strict=True)
        ],
        "outlines": [
            {"name": visible(name), "colour": colours[name], "sheet": place_of(sheet)}
            for name, sheet in sprites.outlines.items()
        ],
        "shape": panel.brain.shape,
        "size": sprites.size,
        "grid": sprites.grid,
        "slices": sprites.slices,
        "box": sprites.box,
        "spacing": [round(float(each), 4) for each in sprites.spacing_mm],
        "starts": sprites.starts,
        "scores": [
            {
                "name": visible(name),
                "value": number(value),
                "copy": number(panel.baseline[name]) if name in panel.baseline else None,
                "better": _better(value, panel.baseline.get(name), lower=name in lower_is_better),
            }
            for name, value in panel.scores.items()
        ],
    }


def _better(value: object, copy: object, *, lower: bool) -> str:
    """Return which is better, "synthetic" or "copy"; "" if they are equal or one is no number."""
    if not (isinstance(value, _NUMBER) and isinstance(copy, _NUMBER)):
        return ""
    if value == copy or np.isnan(value) or np.isnan(copy):
        return ""
    return "synthetic" if (value < copy) == lower else "copy"


def _inert_json(document: Any) -> str:
    """Return JSON that cannot end the script element around it, whatever its strings hold."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
