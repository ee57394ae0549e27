"""Random changes of training images that keep what is true of them: contrast, shading, noise, shape.

Functions of a random generator; who is changed, and how often, is left to the samplers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def change_contrast(images: Tensor, spread: float, rng: np.random.Generator) -> Tensor:
    """Raise the intensities of each image to a power of its own, exp(N(0, spread)).

    Args:
        images: (K, C, S, S) float32 in [-1, 1]; the C planes of an image have one power.
        spread: standard deviation of the logarithm of the power.
        rng: draws the powers.

    Returns:
        Images of the same shape and range; background stays -1 exactly.
    """
    powers = np.exp(rng.normal(0, spread, len(images))).astype(np.float32)
    return 2 * ((images + 1) / 2) ** torch.from_numpy(powers)[:, None, None, None] - 1
