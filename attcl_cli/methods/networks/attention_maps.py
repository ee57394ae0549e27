"""Attention maps that share out an image among generated contents and the source itself (AttentionGAN).

Knows shapes. Which domains are translated, and what is learned, is left to the method.

Formulas: Tang et al., "AttentionGAN", TNNLS 2021 (arXiv 1911.11897), scheme II, as the published code has it
(Ha0Tang/AttentionGAN, commit 45da496; facts, no line of it).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.resnet import ResnetHead, ResnetTrunk


class Composition(NamedTuple):
    """A translation, and what it is composed of: n maps, the last one for the source.

    Attributes:
        image: (B, 1, H, W) in [-1, 1].
        contents: (B, n - 1, H, W) in [-1, 1], generated.
        attention: (B, n, H, W) float32 in [0, 1], which add up to 1 at each pixel.
    """

    image: Tensor
    contents: Tensor
    attention: Tensor

    @property
    def background(self) -> Tensor:
        """The map of the source: 1 where the translation copies it, (B, 1, H, W)."""
        return self.attention[:, -1:]


def compose(x: Tensor, contents: Tensor, attention: Tensor) -> Composition:
    """Return the sum of the contents and of the source, each times its map.

    Args:
        x: (B, 1, H, W), the source.
        contents: (B, n - 1, H, W).
        attention: (B, n, H, W).
    """
    parts = torch.cat([contents.float(), x.float()], dim=1)
    return Composition((attention * parts).sum(dim=1, keepdim=True), contents, attention)


class AttentionMapGenerator(nn.Module):
    """G: a ResNet trunk with two decoders, one of contents and one of attention maps.

    Args:
        width: channels of the first convolution.
        blocks: residual blocks of the trunk.
        maps: number of attention maps, the background map among them; 10 as published.
    """

    def __init__(self, *, width: int = 64, blocks: int = 9, maps: int = 10) -> None:
        super().__init__()
        self.trunk = ResnetTrunk(width=width, blocks=blocks)
        self.contents = ResnetHead(outputs=maps - 1, width=width)
        self.attention = ResnetHead(outputs=maps, width=width, last=1)

    def forward(self, x: Tensor) -> Composition:
        """Translate x: (B, 1, H, W) in [-1, 1], H and W multiples of 4."""
        h = self.trunk(x)
        # Softmax in float32: in bfloat16 the maps add up to 1 but for 1 %, and background would not stay -1.
        attention = self.attention(h).float().softmax(dim=1)
        return compose(x, torch.tanh(self.contents(h)), attention)
