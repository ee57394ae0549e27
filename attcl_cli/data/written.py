"""The values of a volume before its file gets its name: finite, in range, and not constant if it is an image.

Every writer of volumes asks here, `volumes.save` for all of them. Files are left to `volumes`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attcl_cli.data.intensities import Array
from attcl_cli.errors import AttclError, counted

_FEW = 1000  # voxels that may have one value by chance: the tip of a head
_CONTRAST = 1e-3  # of the range: an image that varies less is none
_ROUNDING = 1e-4  # of the range: float32 sums of its ends


def require_finite(values: Array, path: Path, *, made_by: str = "") -> tuple[float, float]:
    """Return the least and the greatest value; (0, 0) if there are none.

    Args:
        values: of any shape and number type.
        path: the file that they are for.
        made_by: what made them, such as "weights run/weights.safetensors"; "": no weights.

    Raises:
        AttclError: a value is NaN or infinite.
    """
    if values.size == 0:
        return 0.0, 0.0
    low, high = float(values.min()), float(values.max())  # NaN if any value is
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    count = int(values.size - np.isfinite(values).sum())
    raise AttclError(
        f"{path}: not written, {count:,} of {counted(values.size, 'voxel')}{_from(made_by)} are NaN or infinite, "
        "expected finite intensities",
        _hint(made_by),
        code="output-not-finite",
    )


def require_image(values: Array, path: Path, ends: tuple[float, float], *, made_by: str) -> None:
    """Refuse the tissue of a volume that is no image.

    Args:
        values: (V,) intensities of the voxels that were made. Fewer than 1,000 may have a single value.
        path: the file that they are for.
        ends: the least and the greatest value that the scale of the volume allows.
        made_by: what made them, as of `require_finite`.

    Raises:
        AttclError: a value is NaN, infinite or out of range, or all of them are equal within a thousandth of the range.
    """
    low, high = require_finite(values, path, made_by=made_by)
    span = ends[1] - ends[0]
    slack = _ROUNDING * max(abs(ends[0]), abs(ends[1]), span)
    if values.size and not (ends[0] - slack <= low and high <= ends[1] + slack):
        raise AttclError(
            f"{path}: not written, values{_from(made_by)} from {low:.4g} to {high:.4g}, "
            f"expected {ends[0]:.4g} to {ends[1]:.4g}, as its scale allows",
            _hint(made_by),
            code="output-out-of-range",
        )
    if values.size >= _FEW and high - low < _CONTRAST * span:
        raise AttclError(
            f"{path}: not written, all {counted(values.size, 'voxel')}{_from(made_by)} are {low:.4g}, "
            "expected an image",
            _hint(made_by),
            code="output-constant",
        )


def _from(made_by: str) -> str:
    return f" made by {made_by}" if made_by else ""


def _hint(made_by: str) -> str:
    if not made_by:
        return "please report this with the whole message"
    return (
        "these weights make no image here: choose others with -w, "
        "or train again with smaller steps: --set learning_rate=5e-5"
    )
