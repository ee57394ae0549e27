"""Repairs of NIfTI headers that are read as viewers read them, although the letter of the standard forbids it.

Knows fields by name; which library reads headers is left to `volumes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from attcl_cli.errors import AttclError

_TOLERANCE = 1e-3  # of a quaternion's length: what rounding and conversion through text do


def shorten_quaternion(header: Any, path: Path) -> None:
    """Give a quaternion that is longer than 1 the length 1, as the reference code of NIfTI and so all viewers do.

    Args:
        header: of NIfTI-1 or NIfTI-2; it is changed.
        path: named in the error.

    Raises:
        AttclError: the quaternion is longer than rounding explains.
    """
    if int(header["sform_code"]) > 0 or int(header["qform_code"]) <= 0:  # the affine is not its
        return
    fields = ("quatern_b", "quatern_c", "quatern_d")
    quaternion = np.array([header[field] for field in fields], dtype=np.float64)
    length = float(np.linalg.norm(quaternion))
    if length > 1 + _TOLERANCE:
        raise AttclError(
            f"{path}: the quaternion of its qform has length {length:.4g}, expected at most 1",
            "write the header's qform anew, or a sform (with nibabel: image.set_sform(affine, code=1))",
            code="qform-invalid",
        )
    if length > 1:
        for field, value in zip(fields, quaternion / length, strict=True):
            header[field] = value
