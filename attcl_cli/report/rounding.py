"""How numbers are rounded for people: one rule for pages, pictures, tables of a terminal, and figures of side-cars."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

DASH = "\u2013"


def number(value: Any) -> str:
    """Format a number for people: three decimals below 2, one above; a dash for NaN and None."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "\u221e" if value > 0 else "-\u221e"
    if isinstance(value, Integral):
        return str(value)
    return f"{value:.{_decimals(value)}f}"


def rounded(value: float) -> float:
    """Return a number with the decimals that `number` shows: a file then says what a page shows."""
    return round(value, _decimals(value))


def _decimals(value: float) -> int:
    # An SSIM or a Dice needs the third decimal, a PSNR in dB or a distance in mm does not have it.
    return 1 if abs(value) >= 2 else 3  # noqa: PLR2004
