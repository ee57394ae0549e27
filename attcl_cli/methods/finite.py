"""Tensors on their way from and to weights files and checkpoints: all of them finite.

Which tensors these are is left to `weights`, and to training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attcl_cli.errors import AttclError, counted

if TYPE_CHECKING:
    from torch import Tensor

_LOADED = "copy the file again from its source, choose others with -w, or train again"
_SAVED = (
    "training diverged; what was saved before is kept: resume it, or train again, "
    "with smaller steps: --set learning_rate=5e-5"
)


def require_finite_tensors(tensors: Mapping[str, Tensor], path: Path, *, saving: bool) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: by name; those of whole numbers are not looked at.
        path: the file that they come from, or are for.
        saving: whether they are to be written; otherwise they were read.

    Raises:
        AttclError: a tensor holds NaN or infinity.
    """
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        written = "not written, " if saving else ""
        raise AttclError(
            f"{path}: {written}{len(bad)} of {counted(len(tensors), 'tensor')} hold NaN or infinity "
            f"({bad[0]} first), expected finite weights",
            _SAVED if saving else _LOADED,
            code="weights-not-finite",
        )
