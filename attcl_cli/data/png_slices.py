"""PNG slices on disk and as arrays: the volumes of a dataset with one grey-scale file per slice.

Geometry is left to `volumes`, which reads and writes through this module.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from attcl_cli.data.image_files import COPY_AGAIN, can_hold, gate, require_file, require_voxels
from attcl_cli.data.intensities import Array
from attcl_cli.errors import AttclError
from attcl_cli.files import write_whole

_MODES = {"L": np.uint8, "I;16": np.uint16, "I": np.uint16}
_KIND = "a PNG slice"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_START = struct.Struct(
    ">16s2I2B"
)  # the signature; of the header width, height, bits and kind of colour
_CHANNELS = {2: 3, 4: 2, 6: 4}  # kind of colour -> numbers per pixel
_MOST_PIXELS = 2**26  # of a slice: 8192 along each side; Pillow warns from a third more on

# An animated PNG's first picture is read like any other; Pillow warns on stderr if its other pictures are damaged.
warnings.filterwarnings("ignore", "Invalid APNG", module=r"PIL\.")


def read_shape(paths: Sequence[Path]) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Read rows, columns and number of slices, and the number type, from the headers of all slices.

    Raises:
        AttclError: a file is missing, no PNG, not grey-scale, or of another size or mode than the first; or a slice
            or the volume is too large.
    """
    sizes: dict[tuple[int, int, str], Path] = {}
    for path in paths:
        with gate(path, _KIND, partial(_no_png, path)), _opened(path) as image:
            sizes.setdefault((image.height, image.width, image.mode), path)
    (height, width, mode), first = next(iter(sizes.items()))
    for (other_height, other_width, other_mode), path in sizes.items():
        if other_mode not in _MODES:
            raise AttclError(
                f"{path}: PNG of mode {other_mode}, expected 8- or 16-bit grey",
                "convert it to grey",
                code="slice-not-grey",
            )
        if (other_height, other_width, other_mode) != (height, width, mode):
            raise AttclError(
                f"{path}: {other_height}x{other_width} {other_mode}, "
                f"expected {height}x{width} {mode} as {first.name}",
                "give all slices of a volume one size and mode",
                code="slices-differ",
            )
    require_voxels(first, (height, width, len(paths)))
    return (height, width, len(paths)), np.dtype(_MODES[mode])


def read_description(path: Path) -> str | None:
    """Return the text `Description` of a slice; None if it is not readable."""
    try:
        with gate(path, _KIND, partial(_no_png, path)), _opened(path) as image:
            return str(image.info.get("Description", ""))
    except AttclError:
        return None


def load(paths: Sequence[Path]) -> tuple[Array, np.dtype[Any]]:
    """Read slices, in order, into (D, H, W) float32; also return their number type.

    Raises:
        AttclError: as `read_shape`; or a file is cut off.
    """
    (height, width, depth), dtype = read_shape(paths)
    data = np.empty((depth, height, width), dtype=np.float32)
    for index, path in enumerate(paths):
        with gate(path, _KIND, partial(_not_to_its_end, path)), _opened(path) as image:
            data[index] = np.asarray(image)
    return data, dtype


def save(paths: Sequence[Path], data: Array, dtype: np.dtype[Any], *, description: str) -> None:
    """Write (D, H, W) as one file per slice, rounded.

    Raises:
        AttclError: the number type does not hold the values, or a file cannot be written.
    """
    rounded = np.rint(data)
    limit = np.iinfo(dtype).max
    if rounded.min() < 0 or rounded.max() > limit:
        raise AttclError(
            f"{paths[0]}: values from {data.min():.4g} to {data.max():.4g}, expected 0 to {limit} in PNG of {dtype}",
            "convert the dataset to NIfTI, which has other number types",
            code="values-beyond-type",
        )
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", description)
    for path, slice_ in zip(paths, rounded, strict=True):
        stream = io.BytesIO()
        image = Image.fromarray(slice_.astype(dtype))
        image.save(stream, format="PNG", pnginfo=text)
        write_whole(path, stream.getvalue())


def _opened(path: Path) -> Image.Image:
    """Open a slice whose file can hold what its header promises; no pixel is decoded yet.

    Pillow is asked for PNG alone: of a file with another format's content it would take the word for that.
    """
    size = require_file(path, _KIND)
    with path.open("rb") as stream:
        start = stream.read(_START.size)
    if not start.startswith(_SIGNATURE):
        raise ValueError("it does not begin as a PNG file")
    _, width, height, depth, colour = _START.unpack(start)
    packed_bits = width * height * depth * _CHANNELS.get(colour, 1)
    if width * height > _MOST_PIXELS:
        raise AttclError(
            f"{path}: its header promises {height}x{width} pixels, expected at most {_MOST_PIXELS:,}",
            COPY_AGAIN,
            code="slice-too-large",
        )
    if not can_hold(size, packed_bits // 8):
        raise ValueError(f"{size:,} bytes cannot hold the {height}x{width} pixels of its header")
    return Image.open(path, formats=("PNG",))


def _no_png(path: Path, reason: str) -> AttclError:
    return AttclError(
        f"{path}: not readable as PNG ({reason}), expected a grey-scale slice",
        COPY_AGAIN,
        code="slice-unreadable",
    )


def _not_to_its_end(path: Path, reason: str) -> AttclError:
    return AttclError(
        f"{path}: not readable to its end ({reason}), expected a whole PNG",
        COPY_AGAIN,
        code="slice-cut-off",
    )
