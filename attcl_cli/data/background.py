"""The background of a volume: found in what its border holds, and taken off, so that inside the program it is 0.

Knows one array at a time. What is an error and what a note is left to `preconditions`, reading to `volumes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attcl_cli.data.intensities import Array
from attcl_cli.errors import UsageError

BackgroundOption = float | Literal["auto", "keep"]
"""`auto`: find and subtract it; `keep`: take intensities as stored; a number: subtract that."""

Kind = Literal["zero", "constant", "ringing", "noise", "none"]

RINGING = 1e-4  # of the contrast: nearer to the background counts as background (interpolation leaves 1e-5)
NOISE = 0.1  # of the contrast: what is nearer to the background than this, but not background, is noise of the air
MOST_NOISE = 0.15  # of the border; 0.00 in 98 prepared volumes of patients
MOST_BELOW = 0.1  # of the other voxels may lie below the background and be clipped; more are meant (z-scores)
_MOST_OF_BORDER = 0.5  # of the border that must be near one value, for that to be the background
_SOME_OF_BORDER = 0.02  # of the border that must be exactly 0, if nothing else is the background
_TINY = 0.01  # of the voxels that are not 0: so many within RINGING of 0 are no intensities
_SAMPLED = 1 << 15  # voxels by which contrast is measured


@dataclass(frozen=True)
class Background:
    """The background of a volume.

    Attributes:
        kind: `zero`; `constant`, another value; `ringing`, a value with interpolation's traces; `noise`, no value but
            air; `none`, image up to the border.
        value: the intensity of the background; 0 if there is none.
        tolerance: intensities this near to `value` are background.
        contrast: the distance of the 0.5 and 99.5 percentiles of the volume.
        noise: share of the border that is neither background nor image.
    """

    kind: Kind
    value: float
    tolerance: float
    contrast: float
    noise: float

    @property
    def found(self) -> bool:
        """Return whether there is a value that can be subtracted."""
        return self.kind not in {"noise", "none"}


AS_STORED = Background("zero", 0.0, 0.0, 0.0, 0.0)
"""The background of a volume that is taken as it is."""


def find_background(data: Array, wanted: BackgroundOption = "auto") -> Background:
    """Find the background of a volume from its six faces.

    Args:
        data: (D, H, W) intensities, any number type, in working order (the sample depends on the order of the axes).
        wanted: a number is the background, whatever the border holds; `keep` finds `AS_STORED`.
    """
    if wanted == "keep":
        return AS_STORED
    step = max(1, math.ceil((data.size / _SAMPLED) ** (1 / 3)))
    sample = data[::step, ::step, ::step].astype(np.float32)
    low, high = np.percentile(sample, (0.5, 99.5))
    contrast = float(high - low)
    tolerance = RINGING * contrast
    border = _border(data)
    if wanted != "auto":
        near = np.abs(border - wanted)
        exact = not np.any((near > 0) & (near <= tolerance))
        kind: Kind = "zero" if wanted == 0 and exact else "constant" if exact else "ringing"
        return Background(
            kind, float(wanted), tolerance, contrast, _noise(near, tolerance, contrast)
        )
    zeros = float(np.mean(border == 0))
    if zeros >= _MOST_OF_BORDER:
        value, middle, kind = 0.0, 0.0, "ringing" if _is_ringing(sample, tolerance) else "zero"
    else:
        value, middle, kind = 0.0, float(np.median(border)), "none"
        near = np.abs(border - middle) <= tolerance
        if near.mean() >= _MOST_OF_BORDER:
            value = 0.0 if abs(middle) <= tolerance else middle
            kind = "constant" if np.all(border[near] == middle) and value else "ringing"
        elif zeros >= _SOME_OF_BORDER:
            kind, middle = "zero", 0.0
    noise = _noise(np.abs(border - (middle if kind == "none" else value)), tolerance, contrast)
    if noise > (_MOST_OF_BORDER if kind == "none" else MOST_NOISE):
        kind = "noise"
    return Background(kind, value, tolerance, contrast, noise)


def subtract(data: Array, background: Background) -> Array:
    """Return intensities whose background is exactly 0, and the data themselves if it is already.

    What lies below the background because of resampling becomes 0. If it is more than a tenth of the voxels that are
    not background, it is meant, such as in z-scores of the brain, and stays.

    Args:
        data: (D, H, W) float32 intensities.
        background: of these data.
    """
    if not background.found or background == AS_STORED:
        return data
    value = np.float32(background.value)
    shifted = data - value if value else data
    if background.kind == "ringing" or value:
        shifted = np.where(np.abs(shifted) <= np.float32(background.tolerance), 0, shifted)
    if is_clipped(shifted):
        shifted = np.maximum(shifted, np.float32(0))
    return np.asarray(shifted, dtype=np.float32)


def is_clipped(shifted: NDArray[Any]) -> bool:
    """Return whether what lies below 0, the background, is so little that it comes from resampling."""
    if shifted.dtype.kind == "u" or shifted.min() >= 0:
        return False
    return below(shifted) <= MOST_BELOW


def below(shifted: NDArray[Any]) -> float:
    """Return the share of the voxels below 0, the background, among those that are not 0."""
    other = np.count_nonzero(shifted)
    return np.count_nonzero(shifted < 0) / other if other else 0.0


def parse_background(text: str) -> BackgroundOption:
    """Return what `--background` asks for.

    Raises:
        UsageError: it is neither auto, keep nor a number.
    """
    if text in {"auto", "keep"}:
        return "auto" if text == "auto" else "keep"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(
            f"--background: {text!r}, expected auto, keep or a number",
            "auto finds the background of each volume and subtracts it",
            code="unknown-background",
        )
    return value


def _border(data: Array) -> Array:
    """Return the voxels of the six faces, (N,) float32."""
    faces = [face for axis in range(3) for face in (data.take(0, axis), data.take(-1, axis))]
    return np.concatenate([face.ravel() for face in faces]).astype(np.float32)


def _noise(distance: Array, tolerance: float, contrast: float) -> float:
    return float(np.mean((distance > tolerance) & (distance < NOISE * contrast)))


def _is_ringing(sample: Array, tolerance: float) -> bool:
    """Return whether many voxels are nearly, but not exactly 0."""
    other = np.abs(sample[sample != 0])
    return bool(other.size) and float(np.mean(other <= tolerance)) > _TINY
