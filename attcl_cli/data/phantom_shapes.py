"""Shapes as depths: how many mm a point lies below a surface, negative outside; and painting with them.

Points are p (3, N) in mm. What is painted where is left to `phantom_anatomy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32, for speed
Triple = tuple[float, float, float]


def ellipsoid(p: Floats, centre: Triple, radii: Triple, *, boxy: float = 0.0) -> Floats:
    """Return the depth in an ellipsoid, true near its surface; `boxy` makes it more of a cushion."""
    a, b, c = (((p[i] - np.float32(centre[i])) / np.float32(radii[i])) ** 2 for i in range(3))
    k = np.sqrt(a + b + c)
    slope = np.sqrt(a / radii[0] ** 2 + b / radii[1] ** 2 + c / radii[2] ** 2) + np.float32(1e-6)
    if boxy:
        k = (1 - boxy) * k + boxy * np.sqrt(np.sqrt(a * a + b * b + c * c))
    value: Floats = k * (1 - k) / slope
    return value


def tube(
    p: Floats, nodes: Sequence[Triple], radii: Sequence[float], *, flat: float = 1.0
) -> Floats:
    """Return the depth in a chain of round cones; `flat` above 1 squeezes it from the sides."""
    depth = np.full(p.shape[1:], -1e3, np.float32)
    for a, b, r_a, r_b in zip(nodes, nodes[1:], radii, radii[1:], strict=False):
        along = [b[i] - a[i] for i in range(3)]
        d = [p[i] - np.float32(a[i]) for i in range(3)]
        t = sum(e * v for e, v in zip(along, d, strict=True)) / sum(e * e for e in along)
        t = np.clip(t, 0, 1)
        dx, dy, dz = (v - t * e for e, v in zip(along, d, strict=True))
        gap = np.sqrt(flat**2 * dx * dx + dy * dy + dz * dz)
        depth = np.maximum(depth, r_a + (r_b - r_a) * t - gap)
    return depth


def smooth_max(a: Floats, b: Floats, width: float) -> Floats:
    """Return the maximum with a seam rounded over `width` mm: the union of two depths."""
    h = np.maximum(width - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h / (4 * width)


def step(t: Floats) -> Floats:
    """Return a smooth step from 0 to 1 around t = 0."""
    return 1 / (1 + np.exp(-t))


def cover(depth: Floats, width: float) -> Floats:
    """Return the share of a voxel inside a surface at this depth."""
    value: Floats = np.clip(0.5 + depth / width, 0, 1)
    return value


def paint(f: Floats, mixture: Mapping[int, float | Floats], covered: Floats) -> None:
    """Let a mixture of tissues take the share `covered` (N,) of every voxel, in place."""
    touched = np.flatnonzero(covered > 0)
    share = covered[touched]
    f[:, touched] *= 1 - share
    for tissue, part in mixture.items():
        f[tissue, touched] += share * (part[touched] if isinstance(part, np.ndarray) else part)
