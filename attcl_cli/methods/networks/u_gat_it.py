"""The networks of U-GAT-IT: a generator and two discriminators that attend by class activation maps.

Knows shapes. Which domain a network belongs to, and what is learned, is left to the method.

Layers: Kim et al., "U-GAT-IT", ICLR 2020 (arXiv 1907.10830), as its published PyTorch code has them
(znxlwm/UGATIT-pytorch, commit b8c4251; facts, no line of it); first weights as in the TensorFlow code (taki0112/UGATIT,
commit d508e8f).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.adalin import LIN, AdaLINBlock, Modulation
from attcl_cli.methods.networks.blocks import initialise_as_pix2pix, leaky_relu
from attcl_cli.methods.networks.cam import CamAttention
from attcl_cli.methods.networks.resnet import Pad, ResnetBlock, ResnetTrunk
from attcl_cli.methods.networks.towers import StridedTower, add_spectral_norm

_LOCAL_HALVINGS, _GLOBAL_HALVINGS = 3, 5


class Translation(NamedTuple):
    """What the generator makes of a slice.

    Attributes:
        image: (B, 1, H, W) in [-1, 1].
        logits: (B, 2), of "this is a source, not a target", by both units of the attention.
    """

    image: Tensor
    logits: Tensor


class Judgement(NamedTuple):
    """Logits of "real", of a local and a global discriminator.

    Attributes:
        local_map, global_map: (B, 1, h, w), of patches.
        local_logits, global_logits: (B, 2), by both units of the attention.
    """

    local_map: Tensor
    local_logits: Tensor
    global_map: Tensor
    global_logits: Tensor


class AttentiveGenerator(nn.Module):
    """G: a ResNet encoder, attention by class activation maps, a decoder that AdaLIN modulates.

    Args:
        width: channels of the first convolution; the features in the middle have four times as many.
        blocks: residual blocks of the encoder, and of the decoder.
        pooled: side of the map that gamma and beta are read off (`adalin.pooled_side`).
        pad_halvings: how the two convolutions that halve pad.
    """

    def __init__(
        self, *, width: int, blocks: int, pooled: int, pad_halvings: Pad = "reflect"
    ) -> None:
        super().__init__()
        deep = 4 * width
        self.trunk = ResnetTrunk(
            width=width, blocks=blocks, block=_block, pad_halvings=pad_halvings, bias=False
        )
        self.attention = CamAttention(deep, F.relu)
        self.modulation = Modulation(deep, pooled)
        self.blocks = nn.ModuleList(AdaLINBlock(deep) for _ in range(blocks))
        self.ups = nn.Sequential(*_up(deep, 2 * width), *_up(2 * width, width))
        self.last = nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect", bias=False)
        initialise_as_pix2pix(self)

    def forward(self, x: Tensor) -> Translation:
        """Translate x: (B, 1, H, W) in [-1, 1], H and W multiples of 4."""
        h, logits = self.attention(self.trunk(x))
        gamma, beta = self.modulation(h)
        for block in self.blocks:
            h = block(h, gamma, beta)
        return Translation(torch.tanh(self.last(self.ups(h))), logits)


def _block(channels: int) -> ResnetBlock:
    """Return a residual block of the encoder."""
    return ResnetBlock(channels, bias=False)


def _up(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return the layers of a decoder stage: each pixel four times, a 3x3 convolution, LIN, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect", bias=False)
    return nn.Upsample(scale_factor=2), conv, LIN(outputs), nn.ReLU()


class AttentiveDiscriminator(nn.Module):
    """D: a tower with spectral norm, attention by class activation maps, a map of logits.

    Args:
        width: channels of the first convolution.
        halvings: convolutions of stride 2, each with twice the channels; one of stride 1 follows.
    """

    def __init__(self, *, width: int, halvings: int) -> None:
        super().__init__()
        channels = [width * 2**index for index in range(halvings + 1)]
        self.tower = StridedTower(1, channels, strides=[*[2] * halvings, 1], padding_mode="reflect")
        self.attention = CamAttention(channels[-1], leaky_relu)
        self.last = nn.Conv2d(channels[-1], 1, 4, padding=1, padding_mode="reflect", bias=False)
        initialise_as_pix2pix(self)
        for layer in (self.tower, self.attention.mean, self.attention.maximum, self.last):
            add_spectral_norm(layer)  # all but the 1x1 convolution

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Judge x (B, 1, H, W): logits of "real" per patch, (B, 1, h, w), and of the attention's units, (B, 2)."""
        h, logits = self.attention(self.tower(x))
        return self.last(h), logits


class AttentiveDiscriminators(nn.Module):
    """A local and a global discriminator of one modality.

    Args:
        image_size: side of the slices.
        width: channels of the first convolution of each.
    """

    def __init__(self, *, image_size: int, width: int) -> None:
        super().__init__()
        near, far = halvings_of(image_size)
        self.near = AttentiveDiscriminator(width=width, halvings=near)
        self.far = AttentiveDiscriminator(width=width, halvings=far)

    def forward(self, x: Tensor) -> Judgement:
        """Judge x: (B, 1, H, W)."""
        return Judgement(*self.near(x), *self.far(x))


def halvings_of(side: int) -> tuple[int, int]:
    """Return how often the local and the global discriminator halve images of a side.

    3 and 5 at 256 pixels, as published. Fewer below (ours): the last map of the global one keeps 6x6 pixels.
    """
    size = side.bit_length() - 1
    return max(1, min(_LOCAL_HALVINGS, size - 4)), min(_GLOBAL_HALVINGS, size - 3)
