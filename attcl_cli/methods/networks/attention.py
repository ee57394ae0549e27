"""Attention: CBAM (A of AttCL-GAN; Woo et al. 2018; Eq 2-5), and squeeze-and-excitation of PLAVE's branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import initialise

_REDUCTION = 16
_KERNEL = 7


class CBAM(nn.Module):
    """Channel attention, then spatial attention; no batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // _REDUCTION, 1)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.conv = nn.Conv2d(2, 1, _KERNEL, padding=_KERNEL // 2)
        initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return the refined features F'': (B, C, H, W) -> the same shape."""
        channel = torch.sigmoid(
            self.mlp(features.mean(dim=(2, 3))) + self.mlp(features.amax(dim=(2, 3)))
        )  # Eq 2
        features = channel[:, :, None, None] * features  # Eq 4
        pooled = torch.cat(
            [features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)], dim=1
        )
        return torch.sigmoid(self.conv(pooled)) * features  # Eq 3, 5


class SqueezeExcitation(nn.Module):
    """Channel attention of PLAVE's branches: x + x * se(x) (Hu et al. 2018; ACA-GAN's has no bias)."""

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        hidden = max(channels // _REDUCTION, 1)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=bias),
            nn.Sigmoid(),
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Add to each channel what its gate lets through: (B, C, H, W) -> the same shape."""
        value: Tensor = x + x * self.mlp(x.mean(dim=(2, 3)))[:, :, None, None]
        return value
