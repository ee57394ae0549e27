"""Windows: how a volume of any intensity scale becomes an image in [0, 1], by its own percentiles in the brain.

Every volume that is scored takes this one way: truths, completed volumes, samples and baselines. Which volumes these
are is left to `rows`, what is computed of them to `metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attcl_cli.data.intensities import in_own_window, own_scale
from attcl_cli.scoring.metrics import VolumePair

Array = NDArray[Any]


def outside_in_own_window(image: Array, brain: Array) -> Array | None:
    """Return what an image holds outside the brain, in widths of its own window; None if it is 0 there throughout.

    The background of every volume is 0, whatever the intensities in the brain are. So the distance from 0 counts,
    towards either side: an offset of the brain changes nothing, and faint noise is not lost below the window. Without
    contrast in the brain, the largest intensity counts as the width.

    Args:
        image: any shape; 0 is background.
        brain: bool of the same shape.

    Returns:
        float32 in [0, 1], 0 inside the brain.
    """
    drawn = ~brain & (image != 0)
    if not drawn.any():
        return None
    scale = own_scale(image, brain)
    width = float(np.abs(image).max()) if scale is None else scale.high - scale.low
    away = np.abs(image[drawn].astype(np.float64)) / width
    outside = np.zeros(image.shape, dtype=np.float32)
    outside[drawn] = np.minimum(away, 1)
    return outside


@dataclass(frozen=True, eq=False)
class TrueVolume:
    """A true volume, to which predictions are compared.

    Attributes:
        raw: (D, H, W) intensities; 0 is background.
        brain: (D, H, W) bool, where it is not 0.
        image: (D, H, W) float32 in [0, 1], in its own window.
    """

    raw: Array
    brain: Array
    image: Array

    @classmethod
    def of(cls, raw: Array) -> TrueVolume | None:
        """Return the volume of these intensities; None if there is no contrast in its brain."""
        brain = raw != 0
        if own_scale(raw, brain) is None:
            return None
        return cls(raw, brain, in_own_window(raw, brain))

    def beside(self, raw: Array) -> VolumePair:
        """Return a prediction beside this truth, each in its own window: a method's, or a baseline's.

        Args:
            raw: (D, H, W) intensities of any scale; 0 is background.
        """
        image = in_own_window(raw, self.brain)
        outside = outside_in_own_window(raw, self.brain)
        whole = image if outside is None else image + outside
        return VolumePair(image, self.image, raw, self.raw, whole)
