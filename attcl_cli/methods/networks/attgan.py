"""AttGAN's networks: an encoder and a decoder that is told the modality, and a discriminator that names it, too.

Knows shapes, not purposes. Layers as in He et al., "AttGAN", IEEE TIP 28(11), 2019 (arXiv 1711.10678), and in the
published code (LynnHo/AttGAN-Tensorflow, commit f1231fc; facts, no line of it). A label is 1 for the modality and -1
for the others, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import initialise_as_slim, leaky_relu, widths
from attcl_cli.methods.networks.towers import StridedTower

Head = Literal["pooled", "flat"]

_POOLED = 4  # pixels; what the published head sees of a slice of 128


@dataclass(frozen=True)
class Latent:
    """What the encoder makes of a slice.

    Attributes:
        deepest: (B, C, H / 2^downs, W / 2^downs).
        shortcut: (B, K, 2 * H / 2^downs, 2 * W / 2^downs), of the stage before.
    """

    deepest: Tensor
    shortcut: Tensor


class AttganGenerator(nn.Module):
    """Encodes a slice, and decodes it as another modality; batch norm throughout.

    The label stands beside the deepest features, and again after the first step up, where one shortcut comes in (more
    of them make the reconstruction better and the change weaker: issue 54 of the published code).

    Args:
        width, max_width: channels of the first convolution, and the most there are.
        downs: halvings, 2 at least.
        domains: number of modalities.
        norm_epsilon: in the root of a batch norm's variance; TensorFlow-Slim's default.
    """

    def __init__(
        self, *, width: int, max_width: int, downs: int, domains: int, norm_epsilon: float = 1e-3
    ) -> None:
        super().__init__()
        channels = widths(width, max_width, downs - 1)
        self.encoder = StridedTower(1, channels, norm="batch")
        outputs = channels[:0:-1]
        inputs = [outputs[0] + domains, outputs[0] + channels[-2] + domains, *outputs[1:]]
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in zip(inputs[:-1], outputs, strict=True)
        )
        self.last = nn.ConvTranspose2d(inputs[-1], 1, 4, stride=2, padding=1)
        initialise_as_slim(self)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = norm_epsilon

    def encode(self, x: Tensor) -> Latent:
        """Encode slices (B, 1, H, W), H and W multiples of 2^downs."""
        *_, shortcut, deepest = self.encoder.features(x)
        return Latent(deepest, shortcut)

    def decode(self, latent: Latent, label: Tensor) -> Tensor:
        """Decode as the modality of each row's label, (B, domains): (B, 1, H, W) in [-1, 1]."""
        h = _beside(latent.deepest, label)
        for index, stage in enumerate(self.decoder):
            h = stage(h)
            if index == 0:
                h = _beside(torch.cat([h, latent.shortcut], dim=1), label)
        return torch.tanh(self.last(h))


class AttganDiscriminator(nn.Module):
    """Says of a slice whether it is real, and which modality it shows: one trunk with instance norm, two heads.

    Args:
        image_size: side of the slices.
        width, max_width: channels of the first convolution, and the most there are; heads are as wide as the last.
        downs: halvings.
        domains: number of modalities.
        head: `flat` gives the heads all places, as published, 134 million weights at 256 pixels; `pooled` averages to
            4x4 places first, what the published heads see of a slice of 128 pixels.
    """

    def __init__(
        self, *, image_size: int, width: int, max_width: int, downs: int, domains: int, head: Head
    ) -> None:
        super().__init__()
        channels = widths(width, max_width, downs - 1)
        side = image_size >> downs
        self.trunk = StridedTower(1, channels, norm="instance-affine")
        self.pool: nn.Module = nn.Identity()
        if head == "pooled" and side > _POOLED:
            side = _POOLED
            self.pool = nn.AdaptiveAvgPool2d(side)
        inputs = channels[-1] * side**2
        self.judge = _Head(inputs, channels[-1], 1)
        self.classify = _Head(inputs, channels[-1], domains)
        initialise_as_slim(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return how real slices look, (B,), and a logit per modality, (B, domains): (B, 1, S, S)."""
        features = self.pool(self.trunk(x)).flatten(1)
        return self.judge(features)[:, 0], self.classify(features)

    def judged(self, x: Tensor) -> Tensor:
        """Return how real slices look alone: (B, 1, S, S) -> (B,)."""
        real: Tensor = self.judge(self.pool(self.trunk(x)).flatten(1))[:, 0]
        return real


class _Head(nn.Module):
    """Two linear layers."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        logits: Tensor = self.last(leaky_relu(self.first(x)))
        return logits


def _beside(features: Tensor, label: Tensor) -> Tensor:
    """Return features with a plane per entry of the label: (B, C, H, W), (B, N) -> (B, C + N, H, W)."""
    planes = label[:, :, None, None].expand(-1, -1, *features.shape[2:])
    return torch.cat([features, planes.to(features.dtype)], dim=1)
