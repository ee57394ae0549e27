"""Haar wavelets of feature maps, and the gate that weighs their details by place (W2GAN, re-specified).

Knows tensors only. Which layers have details, and what becomes of them, the generator and the method say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.blocks import initialise


@dataclass(frozen=True)
class Bands:
    """The four bands of an orthonormal Haar transform of (B, C, H, W), each (B, C, H / 2, W / 2).

    Attributes:
        low: LL, twice the mean of each square of 2x2 pixels.
        across: LH, how the left column of each square differs from the right one.
        down: HL, how its upper row differs from the lower one.
        diagonal: HH, how its diagonals differ.
    """

    low: Tensor
    across: Tensor
    down: Tensor
    diagonal: Tensor

    @property
    def details(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three bands that a constant map has nothing in."""
        return self.across, self.down, self.diagonal


def haar(x: Tensor) -> Bands:
    """Return the Haar transform, filters of 2x2 with taps of 1/2 and stride 2: x (B, C, H, W), H and W even."""
    top, bottom = x[..., ::2, :], x[..., 1::2, :]
    a, b, c, d = top[..., ::2], top[..., 1::2], bottom[..., ::2], bottom[..., 1::2]
    return Bands(
        low=(a + b + c + d) / 2,
        across=(a - b + c - d) / 2,
        down=(a + b - c - d) / 2,
        diagonal=(a - b - c + d) / 2,
    )


def inverse_haar(bands: Bands) -> Tensor:
    """Return what has these bands: (B, C, H, W) each -> (B, C, 2 H, 2 W)."""
    low, across, down, diagonal = bands.low, *bands.details
    return _interleaved(
        (low + across + down + diagonal) / 2,
        (low - across + down - diagonal) / 2,
        (low + across - down - diagonal) / 2,
        (low - across - down + diagonal) / 2,
    )


def _interleaved(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Put the four pixels of each square into place: (B, C, H, W) each -> (B, C, 2 H, 2 W)."""
    return F.pixel_shuffle(torch.stack([a, b, c, d], dim=2).flatten(1, 2), 2)


class ImportanceGate(nn.Module):
    """Weighs the details of a feature map at each place, the same in all three bands and all channels.

    w = sigmoid(conv3x3([mean_c |LH|, mean_c |HL|, mean_c |HH|])): 28 weights (our specification of W2GAN's importance
    weights; what is published says only that they steer attention to key regions). It starts near 1/2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        initialise(self)

    def importance(self, bands: Bands) -> Tensor:
        """Return w in [0, 1]: (B, 1, H / 2, W / 2)."""
        energy = [band.abs().mean(dim=1, keepdim=True) for band in bands.details]
        return torch.sigmoid(self.conv(torch.cat(energy, dim=1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the details add to a map, and their importance.

        Args:
            x: (B, C, H, W), H and W even.

        Returns:
            IDWT(0, w LH, w HL, w HH), (B, C, H, W): without LL, or contrast would get through. And w,
            (B, 1, H / 2, W / 2).
        """
        bands = haar(x)
        w = self.importance(bands)
        weighed = Bands(torch.zeros_like(bands.low), *(w * band for band in bands.details))
        return inverse_haar(weighed), w


def weights_of_cycle(importance: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the weight of each pixel in the cycle loss: `importance`, of mean 1 in each image, without a gradient.

    With a gradient the gate would learn to look where the error is small already.

    Args:
        importance: (B, 1, h, w), at least 0.
        size: H and W, multiples of h and w.

    Returns:
        (B, 1, H, W) float32; 1 everywhere if the importance is 0 everywhere.
    """
    w = importance.detach().float()
    mean = w.mean(dim=(2, 3), keepdim=True)
    # A gate that is shut everywhere prefers no place.
    w = torch.where(mean > 0, w / mean.clamp_min(torch.finfo(w.dtype).tiny), torch.ones_like(w))
    return F.interpolate(w, size=size, mode="nearest")
