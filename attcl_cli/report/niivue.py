"""What a page embeds for NiiVue (niivue.com): the program, and a few volumes as small NIfTI files.

Which volumes these are is said by the section (`sections.WholeVolumes`); how the page shows them, by `page/niivue.js`.
"""

from __future__ import annotations

import base64
import gzip
import math
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from attcl_cli.errors import visible
from attcl_cli.report import pictures
from attcl_cli.report.pictures import DIFFERENCE, Array, Panel

VERSION = "0.69.0"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
MOST_PANELS = 3  # panels of which whole volumes are embedded

_MOST_VOXELS = 4_000_000  # of a volume: a head at 1 mm, cropped to its brain, has 3.5 million
_MOST_BYTES = 9_000_000  # of all files, if there are several panels: a page has 20 MB at most
_OUTLINE_COLOURS = 4  # as `page/niivue.js` has
_GZIP_LEVEL = 6
_GREY_VALUES = (
    0xFE  # bits that are kept: 128 values look the same, and take a seventh less than 256
)


def program() -> str:
    """Return NiiVue itself, gzip in base64.

    It stays packed in the package and in the page (0.8 instead of 2.3 MB): packed, no `</script>` in it can end the
    element around it, a page that nobody scrolls to it compiles nothing, and every browser with WebGL 2 that is still
    maintained unpacks it (DecompressionStream: Chrome 80, Firefox 113, Safari 16.4), from `file://`, too. The page's
    policy runs it only if its hash is `SHA256`.
    """
    return base64.b64encode(_file("niivue.umd.js.gz")).decode()


def policy() -> str:
    """Return the source of NiiVue as a Content Security Policy names it."""
    return f"'sha256-{base64.b64encode(bytes.fromhex(SHA256)).decode()}'"


def licence() -> str:
    """Return the licences of NiiVue and of what it contains, which every copy has to show."""
    return _file("LICENSE").decode()


def _file(name: str) -> bytes:
    return resources.files("attcl_cli.report").joinpath("page", "niivue", name).read_bytes()


# --- Volumes --------------------------------------------------------------------------------------


def document(panels: Sequence[Panel]) -> dict[str, Any]:
    """Return what the page's script needs of the first panels: their volumes, captions and where to look first.

    Args:
        panels: in this order; `MOST_PANELS` at most are taken, fewer if their files grow too large. The first is always
            there. Large volumes are thinned, so that the size of a page does not depend on the dataset.
    """
    files: dict[str, int] = {}  # a NIfTI file in base64 -> position; two targets share their source
    entries: list[dict[str, Any]] = []
    names = dict.fromkeys(name for panel in panels[:MOST_PANELS] for name in panel.outlines)
    colours = {name: place % _OUTLINE_COLOURS for place, name in enumerate(names)}
    for panel in panels[:MOST_PANELS]:
        for most in _MOST_VOXELS, _MOST_VOXELS // 2, _MOST_VOXELS // 4:
            more = dict(files)
            entry = _entry(panel, more, colours, most)
            fits = sum(map(len, more)) * 3 // 4 <= _MOST_BYTES
            if fits or entries:  # only the first panel is thinned, rather than left out
                break
        if entries and not fits:
            break
        files = more
        entries.append(entry)
    return {"files": list(files), "panels": entries}


def _entry(
    panel: Panel, files: dict[str, int], colours: Mapping[str, int], most: int
) -> dict[str, Any]:
    """Return a panel for the script, with `most` voxels per volume; add its volumes to `files`."""
    box = pictures.brain_box(panel.brain)
    steps = _steps(tuple(side.stop - side.start for side in box), panel.spacing_mm, most)
    block = tuple(slice(side.start, side.stop, step) for side, step in zip(box, steps, strict=True))
    affine = of_block(panel.place, block)

    def place_of(volume: Array) -> int:
        packed = gzip.compress(nifti(volume, affine), _GZIP_LEVEL, mtime=0)
        return files.setdefault(base64.b64encode(packed).decode(), len(files))

    names = [panel.case, panel.source_modality, panel.target_modality]
    return {
        "case": visible(names[0]),
        "title": visible(" \u2192 ".join(filter(None, names[1:]))),
        "volumes": [
            {
                "caption": visible(tile.caption),
                "kind": tile.kind,
                "file": place_of(pictures.grey(tile.volume[block]) & _GREY_VALUES),
            }
            for tile in panel.tiles
            if tile.kind != DIFFERENCE
        ],
        "regions": [
            {
                "name": visible(name),
                "colour": colours[name],
                "file": place_of(region[block].astype(np.uint8)),
            }
            for name, region in panel.outlines.items()
        ],
        "start": [round(float(each), 3) for each in _start(panel, box)],
        "thinned": max(steps) > 1,
    }


def _steps(shape: Sequence[int], spacing_mm: Sequence[float], most: int) -> list[int]:
    """Return a step per axis with which a volume has at most so many voxels; the finest axis is thinned first."""
    steps = [1, 1, 1]
    while math.prod(-(-n // step) for n, step in zip(shape, steps, strict=True)) > most:
        apart = [mm * step for mm, step in zip(spacing_mm, steps, strict=True)]
        steps[apart.index(min(apart))] += 1
    return steps


def of_block(affine: Array, block: Sequence[slice]) -> Array:
    """Return the affine of a block of a volume.

    Args:
        affine: (column, row, slice, 1) of the whole volume to RAS+ mm, (4, 4).
        block: which slices, rows and columns it has; every side has a start and perhaps a step.
    """
    first = [side.start or 0 for side in reversed(block)]
    steps = [float(side.step or 1) for side in reversed(block)]
    moved = np.diag([*steps, 1.0])
    moved[:3, 3] = first
    value: Array = np.asarray(affine, float) @ moved
    return value


def _start(panel: Panel, box: Sequence[slice]) -> Array:
    """Return where to look first, in mm: inside the regions, otherwise in the middle of the brain's largest slice."""
    regions = np.any(list(panel.outlines.values()), axis=0) if panel.outlines else panel.brain
    inside = regions if regions.any() else panel.brain
    index = int(inside.sum(axis=(1, 2)).argmax())
    if panel.outlines and regions.any():
        row = int(inside[index].sum(axis=1).argmax())
        columns = np.flatnonzero(inside[index, row])
        column = int(columns[len(columns) // 2])
    else:
        row, column = ((side.start + side.stop) // 2 for side in box[1:])
    value: Array = panel.place @ [column, row, index, 1]
    return value[:3]


def nifti(volume: Array, affine: Array) -> bytes:
    """Return a volume as a NIfTI-1 file (nifti1.h), uint8, shown from 0 to 255.

    Args:
        volume: (D, H, W) uint8.
        affine: (column, row, slice, 1) to RAS+ mm, (4, 4).
    """
    depth, height, width = volume.shape
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    header = bytearray(352)  # that of 348 bytes, and four more: no extension
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)  # dim
    struct.pack_into("<2h", header, 70, 2, 8)  # datatype uint8, bits
    struct.pack_into("<8f", header, 76, 1, *spacing, 1, 1, 1, 1)  # pixdim
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # where the voxels start, slope, intercept
    struct.pack_into("<B", header, 123, 2)  # mm
    struct.pack_into("<2f", header, 124, 255, 0)  # cal_max, cal_min
    struct.pack_into("<2h", header, 252, 0, 2)  # no qform, an sform that aligns
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    struct.pack_into("<4s", header, 344, b"n+1\0")
    return bytes(header) + np.ascontiguousarray(volume, np.uint8).tobytes()
