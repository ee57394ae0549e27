"""SuperstarGAN's networks: StarGAN's generator, a discriminator of patches, and a classifier of its own.

Knows shapes, not purposes. Layers as in Ko, Yeom and Lee, "SuperstarGAN", Neural Networks 162, 2023, and in the
published code (KKhyeok/SuperstarGAN, commit cb86be0, without a licence; facts, no line of it).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import InstanceNorm, widths
from attcl_cli.methods.networks.resnet import ResnetBlock, ResnetTrunk
from attcl_cli.methods.networks.towers import StridedTower, add_spectral_norm

_MOST_HALVINGS = 6  # of discriminator and classifier; 256 pixels become 4
_LAST_BITS = 2  # a tower ends at 4 pixels
_SLOPE = 0.01


class SuperstarGenerator(nn.Module):
    """StarGAN's generator: a plane per modality beside the slice says what to make (Choi et al. 2018).

    Every convolution pads with zeros and has no bias. A label's plane is constant, so the first instance norm leaves
    nothing of it but what zero padding makes at the edges: with mirrored edges the label would have no effect. Norms
    look at the slice alone, in training and afterwards (the published ones have running statistics, too, which `eval`
    would switch to).

    Args:
        width: channels of the first convolution.
        blocks: residual blocks.
        domains: number of modalities.
    """

    def __init__(self, *, width: int, blocks: int, domains: int) -> None:
        super().__init__()
        self.trunk = ResnetTrunk(
            inputs=1 + domains,
            width=width,
            blocks=blocks,
            block=lambda channels: ResnetBlock(channels, pad="zeros", norm=_norm, bias=False),
            pad="zeros",
            norm=_norm,
            bias=False,
            kernel=4,
        )
        layers: list[nn.Module] = []
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
                _norm(channels // 2),
                nn.ReLU(),
            ]
        self.head = nn.Sequential(*layers, nn.Conv2d(width, 1, 7, padding=3, bias=False))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Translate slices into the modality of each row's label.

        Args:
            x: (B, 1, H, W), H and W multiples of 4.
            label: (B, domains), 1 for the modality and 0 for the others.

        Returns:
            (B, 1, H, W) in [-1, 1].
        """
        planes = label[:, :, None, None].expand(-1, -1, *x.shape[2:]).to(x.dtype)
        return torch.tanh(self.head(self.trunk(torch.cat([x, planes], dim=1))))


class SuperstarDiscriminator(nn.Module):
    """Says of large patches whether they are real, and nothing else; spectral norm in every layer, no other norm.

    Args:
        image_size: side of the slices, which are halved until 4 pixels are left, six times at most.
        width: channels of the first convolution, doubled by each further one.
    """

    def __init__(self, *, image_size: int, width: int) -> None:
        super().__init__()
        channels = _channels(image_size, width)
        self.tower = StridedTower(1, channels, slope=_SLOPE)
        self.head = nn.Conv2d(channels[-1], 1, 3, padding=1, bias=False)
        add_spectral_norm(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of logits: (B, 1, S, S) -> (B, 1, 4, 4), larger for slices of more than 256 pixels."""
        logits: Tensor = self.head(self.tower(x))
        return logits


class SuperstarClassifier(nn.Module):
    """Says which modality a slice shows.

    Args:
        image_size: side of the slices.
        width: channels of the first convolution, doubled by each further one.
        domains: number of modalities.
    """

    def __init__(self, *, image_size: int, width: int, domains: int) -> None:
        super().__init__()
        channels = _channels(image_size, width)
        side = image_size >> len(channels)
        self.tower = StridedTower(1, channels, slope=_SLOPE)
        self.head = nn.Conv2d(channels[-1], domains, side, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit per modality: (B, 1, image_size, image_size) -> (B, domains)."""
        logits: Tensor = self.head(self.tower(x))
        return logits.flatten(1)


def _channels(image_size: int, width: int) -> list[int]:
    """Return the channels of a tower's stages."""
    halvings = min(_MOST_HALVINGS, image_size.bit_length() - 1 - _LAST_BITS)
    return widths(width, width << halvings, halvings - 1)


def _norm(channels: int) -> nn.Module:
    return InstanceNorm(channels, affine=True)
