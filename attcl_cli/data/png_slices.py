"""PNG slices on disk and as arrays: the volumes of a dataset with one grey-scale file per slice.

Geometry is left to `volumes`, which reads and writes through this module.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from attcl_cli.data.intensities import Array
from attcl_cli.errors import AttclError
from attcl_cli.files import write_whole

_MODES = {"L": np.uint8, "I;16": np.uint16, "I": np.uint16}
_COPY_AGAIN = "copy it again from its source, or remove it"


def read_shape(paths: Sequence[Path]) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Read rows, columns and number of slices, and the number type, from the headers of all slices.

    Raises:
        AttclError: a file is missing, no PNG, not grey-scale, or of another size or mode than the first.
    """
    sizes: dict[tuple[int, int, str], Path] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault((image.height, image.width, image.mode), path)
        except (OSError, SyntaxError, ValueError) as error:
            raise AttclError(
                f"{path}: not readable as PNG ({error}), expected a grey-scale slice",
                _COPY_AGAIN,
                code="slice-unreadable",
            ) from error
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
    return (height, width, len(paths)), np.dtype(_MODES[mode])


def read_description(path: Path) -> str | None:
    """Return the text `Description` of a slice; None if it is not readable."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Description", ""))
    except (OSError, SyntaxError, ValueError):
        return None


def load(paths: Sequence[Path]) -> tuple[Array, np.dtype[Any]]:
    """Read slices, in order, into (D, H, W) float32; also return their number type.

    Raises:
        AttclError: as `read_shape`; or a file is cut off.
    """
    (height, width, depth), dtype = read_shape(paths)
    data = np.empty((depth, height, width), dtype=np.float32)
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                data[index] = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise AttclError(
                f"{path}: not readable to its end ({error}), expected a whole PNG",
                _COPY_AGAIN,
                code="slice-cut-off",
            ) from error
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
