"""A U-Net whose decoder a style code modulates: learns faster per second than StarGAN v2's generator (ours).

Offers what `Generator` does. Two convolutions per level instead of residual blocks, features of both sides next to each
other instead of added (Ronneberger et al. 2015), and norms that see the brain alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.blocks import initialise, widths
from attcl_cli.methods.networks.brain_norm import BrainNorm
from attcl_cli.methods.networks.generator import Features

_OUTSIDE = (
    1e-4  # what a pixel of the background weighs, so that a square without brain has a mean, too
)


class Convolution(nn.Module):
    """3x3 convolution, norm of the brain, perhaps modulated by a style code as AdaIN does (Eq 7), LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = BrainNorm(outputs)
        self.style = nn.Linear(style_dim, 2 * outputs) if style_dim else None

    def forward(self, x: Tensor, inside: Tensor, style: Tensor | None = None) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H, W); inside (B, 1, H * W), style (B or 1, style_dim)."""
        h = self.conv(x)
        modulation = None if self.style is None else self.style(style)
        value: Tensor = self.norm(h, inside, modulation)
        return value


class Level(nn.ModuleList):
    """Two convolutions, one after the other."""

    def __init__(self, inputs: int, outputs: int, style_dim: int = 0) -> None:
        super().__init__(
            [Convolution(inputs, outputs, style_dim), Convolution(outputs, outputs, style_dim)]
        )

    def forward(self, x: Tensor, inside: Tensor, style: Tensor | None = None) -> Tensor:
        """See `Convolution`."""
        for convolution in self:
            x = convolution(x, inside, style)
        return x


class StyledUNet(nn.Module):
    """G with the layers of a U-Net; what is decoded is modulated by a style code at every level.

    Inside, background and what is not given are 0, as the padding of a convolution is.

    Args:
        width: channels of the first level, a multiple of 8.
        max_width: channels never grow beyond this, a multiple of 8.
        downs: halvings; `channels[l]` for l = 0..downs are those of the encoder.
        style_dim: length of a style code.
        images: channels of what is encoded that are images in [-1, 1].
        flags: further channels, which say in 0 and 1 what is given.
        adain_start: what He's weights of the affine maps of the style are multiplied by at first.
    """

    def __init__(
        self,
        *,
        width: int,
        max_width: int,
        downs: int,
        style_dim: int,
        images: int = 1,
        flags: int = 0,
        adain_start: float = 1.0,
    ) -> None:
        super().__init__()
        self.images = images
        self.channels = channels = widths(width, max_width, downs)
        self.encoder = nn.ModuleList(Level(a, b) for a, b in pairwise([images + flags, *channels]))
        # What leaves a level of the decoder has as many channels as the encoder has one level up.
        decoded = [channels[0], *channels[:-1]]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2)
            for below, here in zip((*decoded[1:-1], channels[-1]), decoded[:-1], strict=True)
        )
        self.decoder = nn.ModuleList(
            Level(skip + here, here, style_dim)
            for skip, here in zip(channels[:-1], decoded[:-1], strict=True)
        )
        self.to_image = nn.Conv2d(width, 1, 1)
        initialise(self)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, Convolution) and layer.style is not None:
                    layer.style.weight *= adain_start

    def encode(self, x: Tensor, start: Tensor | None = None) -> Features:
        """Return the encoder's features, one per level; `deep` is the last of them.

        Args:
            x: (B, images + flags, H, W), H and W multiples of 2 ** downs.
            start: see `Generator.encode`; kept, and without influence here.
        """
        seen = (x[:, : self.images] + 1) / 2
        brain = (seen.amax(dim=1, keepdim=True) > 0).float() + _OUTSIDE
        h = torch.cat([seen, x[:, self.images :]], dim=1)
        layers: list[Tensor] = []
        inside: list[Tensor] = []
        for level in self.encoder:
            if layers:
                h, brain = F.max_pool2d(h, 2), F.avg_pool2d(brain, 2)
            inside.append(brain.flatten(2))
            h = level(h, inside[-1])
            layers.append(h)
        return Features(x if start is None else start, tuple(layers), h, tuple(inside))

    def decode(
        self, features: Features, style: Tensor, refined: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """Return the image.

        Args:
            features: `encode(x)`.
            style: (B, style_dim), or one row for all.
            refined: layer -> what the decoder sees of that level of the encoder, in place of its features (AttAdaIN,
                Eq 8, 9: there added, here next to the decoder's own).

        Returns:
            (B, 1, H, W), about [-1, 1] but not clipped.
        """
        refined = refined or {}
        *skips, h = [refined.get(level, layer) for level, layer in enumerate(features.layers)]
        for level in reversed(range(len(self.up))):
            h = torch.cat([skips[level], self.up[level](h)], dim=1)
            h = self.decoder[level](h, features.inside[level], style)
        image: Tensor = 2 * self.to_image(h) - 1
        return image

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Compute `decode(encode(x))` without attention."""
        return self.decode(self.encode(x), style)
