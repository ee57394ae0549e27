"""What tests compare losses and networks with: published formulas, written as they are printed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM at each pixel as Wang et al. 2004 print it: a Gaussian of 1.5 pixels, 11 wide, intensities of range 2."""
    bell = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, padding=5)

    mu1, mu2 = mean(first), mean(second)
    var1, var2 = mean(first**2) - mu1**2, mean(second**2) - mu2**2
    cov, c1, c2 = mean(first * second) - mu1 * mu2, 0.02**2, 0.06**2
    return ((2 * mu1 * mu2 + c1) * (2 * cov + c2)) / ((mu1**2 + mu2**2 + c1) * (var1 + var2 + c2))


def masked(fake: Tensor, shown: Tensor) -> Tensor:
    """Background (-1) for every pixel around which, 3x3, nothing that was shown is brain.

    Args:
        fake: (B, 1, H, W).
        shown: (B, M, H, W), background exactly -1.
    """
    brain = F.pad((shown > -1).any(dim=1), (1, 1, 1, 1))
    height, width = fake.shape[2:]
    near = [
        brain[:, row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    ]
    return torch.where(torch.stack(near).any(dim=0)[:, None], fake, torch.tensor(-1.0))
