"""The background of a volume: found in what its border holds, and taken off, so that inside the program it is 0.

Knows one array at a time. What is an error and what a note is left to `preconditions`, reading to `volumes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attcl_cli.data.intensities import Array, percentiles_of
from attcl_cli.errors import UsageError

BackgroundOption = float | Literal["auto", "keep"]
"""`auto`: find and subtract it; `keep`: take intensities as stored; a number: subtract that."""

Kind = Literal["zero", "constant", "ringing", "noise", "none"]

RINGING = 1e-3  # of the contrast: nearer to a background that is not exact is background (interpolation leaves 1e-5)
_ROUNDING = 1e-6  # the same for a background that is exact, of float32
_TRACES = 1e-4  # the same for ringing between exact zeros
_WIDER = 3.0  # ringing near the image is wider than the 99th percentile of that of the border, by this factor
NOISE = 0.1  # of the contrast: what is nearer to the background than this, but not background, is noise of the air
MOST_NOISE = 0.15  # of the border; 0.00 in 98 prepared volumes of patients
MOST_BELOW = 0.1  # of the other voxels may lie below the background and be clipped; more are meant (z-scores)
_MOST_OF_BORDER = 0.5  # of the border that must be near one value, for that to be the background
_SOME_OF_BORDER = 0.02  # of the border that must be exactly 0, if nothing else is the background
_TINY = 0.01  # of the voxels that are not 0: so many within _TRACES of 0 are no intensities
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
    low, high = percentiles_of(np.sort(sample, axis=None), (0.5, 99.5))
    contrast = high - low
    border = _border(data)
    kind, value = (
        _kind_and_value(border, sample, contrast) if wanted == "auto" else ("none", wanted)
    )
    near = np.abs(border - value)
    near = near[near <= RINGING * contrast]
    if wanted != "auto":
        kind = "ringing" if near.any() else "constant" if value else "zero"
    tolerance = 0.0
    if kind == "ringing":
        half, most = (float(share) for share in np.percentile(near, (50, 99)))
        wide = _WIDER * most if half > 0 else _TRACES * contrast
        tolerance = min(wide, RINGING * contrast)
    elif kind == "constant":
        tolerance = _ROUNDING * contrast
    centre = float(np.median(border)) if kind == "none" else value
    distance = np.abs(border - centre)
    noise = _share((distance > RINGING * contrast) & (distance < NOISE * contrast))
    if noise > (_MOST_OF_BORDER if kind == "none" else MOST_NOISE) and wanted == "auto":
        kind = "noise"
    return Background(kind, float(value), tolerance, contrast, noise)


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


def _kind_and_value(border: Array, sample: Array, contrast: float) -> tuple[Kind, float]:
    """Return the kind of the background that the border shows, and its value, 0 if it shows none."""
    zeros = _share(border == 0)
    if zeros >= _MOST_OF_BORDER:
        other = np.abs(sample[sample != 0])
        traces = _share(other <= _TRACES * contrast) if other.size else 0.0
        return "ringing" if traces > _TINY else "zero", 0.0
    middle = float(np.median(border))
    if _share(border == np.float32(middle)) >= _MOST_OF_BORDER:
        return "constant", middle
    if _share(np.abs(border - middle) <= RINGING * contrast) >= _MOST_OF_BORDER:
        return "ringing", 0.0 if abs(middle) <= RINGING * contrast else middle
    return "zero" if zeros >= _SOME_OF_BORDER else "none", 0.0


def _share(flags: Array) -> float:
    """Return the share of True; the mean takes several times as long."""
    return int(np.count_nonzero(flags)) / flags.size
