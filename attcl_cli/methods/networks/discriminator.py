"""Discriminators: AttCL-GAN's D, a real-or-fake logit per domain, and maps of them: PLAVE's PatchGAN and AE-GAN's."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import (
    InstanceNorm,
    initialise,
    initialise_as_pix2pix,
    pick,
    widths,
)
from attcl_cli.methods.networks.style import Trunk

_MOST_HALVINGS = 3  # pix2pix's


class Discriminator(nn.Module):
    """D of StarGAN v2: like the style encoder, with a logit instead of a code per domain."""

    def __init__(self, *, image_size: int, width: int, max_width: int, domains: int) -> None:
        super().__init__()
        self.trunk = Trunk(image_size=image_size, width=width, max_width=max_width)
        self.heads = nn.Linear(self.trunk.outputs, domains)
        initialise(self)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Return the logit of each slice's own domain: x (B, 1, image_size, image_size), domain (B,) int64 -> (B,)."""
        return pick(self.heads(self.trunk(x)), domain)


class PatchDiscriminator(nn.Module):
    """Conditional PatchGAN: is each patch of the image real, given the sources that it was made from?

    Args:
        image_size: side of the slices; 256 gives pix2pix's patches of 70 pixels, smaller ones patches of a like share.
        width, max_width: channels of the first convolution, and the most there are.
        sources: number of source planes.
        targets: number of modalities; each has a logit map of its own.
    """

    batch_norm: ClassVar[bool] = False

    def __init__(
        self, *, image_size: int, width: int, max_width: int, sources: int, targets: int
    ) -> None:
        super().__init__()
        halvings = max(1, min(_MOST_HALVINGS, image_size.bit_length() - 5))
        channels = widths(width, max_width, halvings)
        layers: list[nn.Module] = [
            nn.Conv2d(sources + 1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for index, (inputs, outputs) in enumerate(pairwise(channels)):
            stride = 2 if index < halvings - 1 else 1
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=not self.batch_norm),
                nn.BatchNorm2d(outputs) if self.batch_norm else InstanceNorm(outputs, affine=True),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], targets, 4, padding=1))
        if self.batch_norm:
            initialise_as_pix2pix(self)
        else:
            initialise(self)

    def forward(self, sources: Tensor, x: Tensor, target: Tensor) -> Tensor:
        """Judge patches: sources (B, M, H, W), absent ones -1; x (B, 1, H, W); target (B,) -> logits (B, h, w)."""
        return pick(self.layers(torch.cat([sources, x], dim=1)), target)


class BatchNormPatchDiscriminator(PatchDiscriminator):
    """The same as pix2pix built it: with batch norm, no bias before it, and weights that start from N(0, 0.02)."""

    batch_norm = True


class FeatureDiscriminator(nn.Module):
    """AE-GAN's: is each patch real, judged by what the auto-encoder's encoder makes of the image?

    A 1x1 convolution, norm, LeakyReLU, and a 4x4 convolution with stride 2 (published code bcaosudo/AE-GAN, commit
    015fd52: `SrResnetGenerator`). With one target, batch norm as there; with several, instance norm (ours).

    Args:
        channels: of the features.
        targets: number of modalities; each has a logit map of its own.
    """

    def __init__(self, channels: int, *, targets: int) -> None:
        super().__init__()
        one = targets == 1
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels) if one else InstanceNorm(channels, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, targets, 4, stride=2, bias=False),
        )
        if one:
            initialise_as_pix2pix(self)
        else:
            initialise(self)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Judge patches: features (B, C, H, W), target (B,) -> logits (B, H / 2 - 1, W / 2 - 1)."""
        return pick(self.layers(features), target)
