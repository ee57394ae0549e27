"""An ellipsoid of blobs, as large as a brain, for what is measured on volumes."""

from __future__ import annotations

import numpy as np

SHAPE = (40, 48, 44)  # 3 mm voxels: 120 x 144 x 132 mm
MM = (3.0, 3.0, 3.0)


def depth_of_ball() -> np.ndarray:
    """Distance in mm from the surface of an ellipsoid of 54, 66 and 60 mm inwards; negative outside."""
    z, y, x = np.indices(SHAPE)
    radius = np.sqrt(((z - 19.5) / 18) ** 2 + ((y - 23.5) / 22) ** 2 + ((x - 21.5) / 20) ** 2)
    return (1 - radius) * 60


def textured(seed: int) -> np.ndarray:
    """Smooth blobs, the same for the same seed."""
    coarse = np.random.default_rng(seed).integers(200, 1000, (10, 12, 11))
    return np.kron(coarse, np.ones((4, 4, 4))) * (depth_of_ball() > 0)
