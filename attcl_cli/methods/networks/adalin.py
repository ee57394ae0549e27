"""AdaLIN: a norm between instance norm and layer norm, with a learned share of each per channel (U-GAT-IT).

Knows norms and what modulates them. Which network they stand in is left to `u_gat_it`.

Formulas: Kim et al., "U-GAT-IT", ICLR 2020 (arXiv 1907.10830), as its published PyTorch code has them
(znxlwm/UGATIT-pytorch, commit b8c4251; facts, no line of it).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GammaInput = Literal["full", "pool8", "light"]

_EPSILON = 1e-5  # in the root of a variance
_FIRST_SHARE = 0.9  # of instance norm in AdaLIN; LIN begins as a layer norm
_POOLED = 8  # pixels of a side, with `pool8`


class AdaLIN(nn.Module):
    """gamma * (rho * IN(x) + (1 - rho) * LN(x)) + beta, with gamma and beta from outside.

    A gradient step may carry rho out of [0, 1]: `clip_shares` brings it back.
    """

    def __init__(self, channels: int, *, share: float = _FIRST_SHARE) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((channels,), share))

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Normalise and modulate: x (B, C, H, W), gamma and beta (B, C) or (1, C) -> (B, C, H, W)."""
        wide = x.float()  # bfloat16 has too few digits for a variance
        instance = F.group_norm(wide, x.shape[1], eps=_EPSILON)
        layer = F.group_norm(wide, 1, eps=_EPSILON)
        mixed = layer + self.rho[:, None, None] * (instance - layer)
        return torch.addcmul(
            beta.float()[:, :, None, None], gamma.float()[:, :, None, None], mixed
        ).to(x.dtype)


class LIN(nn.Module):
    """AdaLIN with a gamma and a beta of its own, which starts as a layer norm: rho and beta 0, gamma 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = AdaLIN(channels, share=0.0)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise: (B, C, H, W) -> the same shape."""
        value: Tensor = self.norm(x, self.gamma[None], self.beta[None])
        return value


def clip_shares(module: nn.Module) -> None:
    """Bring the rho of every AdaLIN and LIN in a module back into [0, 1]; to be called after each step."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, AdaLIN):
                layer.rho.clamp_(0, 1)


class AdaLINBlock(nn.Module):
    """Residual block of the decoder: x + AdaLIN(conv(ReLU(AdaLIN(conv(x))))), 3x3, reflected rims, no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)
            for _ in range(2)
        )
        self.norm1, self.norm2 = AdaLIN(channels), AdaLIN(channels)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Return (B, C, H, W) of (B, C, H, W), gamma and beta (B, C)."""
        h = F.relu(self.norm1(self.conv1(x), gamma, beta))
        value: Tensor = x + self.norm2(self.conv2(h), gamma, beta)
        return value


class Modulation(nn.Module):
    """Reads the gamma and beta of all decoder blocks off a feature map: two layers of ReLU, then one for each.

    Args:
        channels: of the feature map, of the hidden layers and of gamma and beta.
        pixels: side of the square that the map is averaged down to before it is flattened (`pooled_side`).
    """

    def __init__(self, channels: int, pixels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(pixels)
        self.hidden = nn.Sequential(
            nn.Linear(pixels * pixels * channels, channels, bias=False),
            nn.ReLU(),
            nn.Linear(channels, channels, bias=False),
            nn.ReLU(),
        )
        self.gamma = nn.Linear(channels, channels, bias=False)
        self.beta = nn.Linear(channels, channels, bias=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, (B, C) each, of features (B, C, H, W)."""
        h = self.hidden(self.pool(features).flatten(1))
        return self.gamma(h), self.beta(h)


def pooled_side(gamma_input: GammaInput, side: int) -> int:
    """Return the side of the map that `Modulation` flattens.

    Args:
        gamma_input: `full` flattens the whole map, as published; `light` a single pixel, as the published light
            version; `pool8` 8x8 pixels (ours).
        side: of the feature map in training, in pixels.
    """
    return {"full": side, "pool8": _POOLED, "light": 1}[gamma_input]
