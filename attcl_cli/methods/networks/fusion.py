"""PLAVE's generator: a branch per source modality, their fusion, a residual trunk, and decoders (method.md, section 6).

Knows tensors and slots, no modality's name. Every norm is modulated by the code of the target (AdaIN), so that one set
of weights can make several targets; a constant on an input plane would not survive an instance norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.attention import SqueezeExcitation
from attcl_cli.methods.networks.blocks import (
    AdaIN,
    AdaINResidualBlock,
    initialise,
    leaky_relu,
    widths,
)

HALVINGS = 2  # the features that are fused have a quarter of the image's size: 64 of 256


class TargetCodes(nn.Embedding):
    """A learned code per target; of length about 1 at first, so that AdaIN begins close to a plain instance norm."""

    def __init__(self, targets: int, style_dim: int) -> None:
        super().__init__(targets, style_dim)
        nn.init.normal_(self.weight, std=style_dim**-0.5)


class ConvAdaIN(nn.Module):
    """Convolution, AdaIN, LeakyReLU."""

    def __init__(
        self, inputs: int, outputs: int, style_dim: int, *, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        self.norm = AdaIN(outputs, style_dim)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride) of (B, inputs, H, W) and (B or 1, style_dim)."""
        return leaky_relu(self.norm(self.conv(x), style))


class Branch(nn.Module):
    """The encoder of one source modality: three convolutions to a quarter of the size, then squeeze-and-excitation.

    Args:
        width, max_width: channels of the first convolution, and the most there are.
        style_dim: length of the target's code.
    """

    def __init__(self, *, width: int, max_width: int, style_dim: int) -> None:
        super().__init__()
        channels = widths(width, max_width, HALVINGS)
        self.stem = ConvAdaIN(1, width, style_dim, kernel=7)
        self.down = nn.ModuleList(
            ConvAdaIN(a, b, style_dim, stride=2) for a, b in pairwise(channels)
        )
        self.attention = SqueezeExcitation(channels[-1])
        initialise(self)

    def forward(self, x: Tensor, style: Tensor) -> list[Tensor]:
        """Return features of sizes H, H / 2 and, with attention, H / 4.

        Args:
            x: (B, 1, H, W) in [-1, 1].
            style: (B or 1, style_dim), `code` of the target.
        """
        layers = [self.stem(x, style)]
        for block in self.down:
            layers.append(block(layers[-1], style))
        return [*layers[:-1], self.attention(layers[-1])]


class Fusion(nn.Module):
    """Weighs the sources at each position by a softmax over those that are there, then concatenates and mixes them."""

    def __init__(self, channels: int, *, slots: int) -> None:
        super().__init__()
        self.score = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(slots))
        self.mix = nn.Conv2d(slots * channels, channels, 1)
        initialise(self)

    def weights(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the weights of the slots, which add up to 1; exactly 0 if a source is absent.

        Args:
            features: (B, M, C, H, W), in the order of the slots.
            present: (B, M) bool, at least one per row.

        Returns:
            (B, M, H, W).
        """
        scores = torch.cat([score(features[:, slot]) for slot, score in enumerate(self.score)], 1)
        absent = ~present[:, :, None, None]
        return scores.float().masked_fill(absent, -torch.inf).softmax(dim=1).to(features.dtype)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Fuse (B, M, C, H, W), (B, M) bool -> (B, C, H, W); what absent slots hold is never looked at."""
        there = present[:, :, None, None, None]
        features = torch.where(there, features, torch.zeros_like(features))
        weighted = self.weights(features, present)[:, :, None] * features
        value: Tensor = self.mix(weighted.flatten(1, 2))
        return value


class UpAdaIN(nn.Module):
    """Transposed convolution to twice the size, AdaIN, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = AdaIN(outputs, style_dim)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, outputs, 2 H, 2 W) of (B, inputs, H, W) and (B or 1, style_dim)."""
        return leaky_relu(self.norm(self.conv(x), style))


class Decoder(nn.Module):
    """Doubles the size twice; its features after each doubling are handed out, too.

    No norm after the last doubling's own: what is black and what is bright must survive.
    """

    def __init__(self, *, width: int, max_width: int, outputs: int, style_dim: int) -> None:
        super().__init__()
        backwards = widths(width, max_width, HALVINGS)[::-1]
        self.up = nn.ModuleList(UpAdaIN(a, b, style_dim) for a, b in pairwise(backwards))
        self.last = nn.Conv2d(width, outputs, 7, padding=3)
        initialise(self)

    def forward(
        self, h: Tensor, style: Tensor, skips: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode (B, C, H, W), (B or 1, style_dim) -> (B, outputs, 4 H, 4 W) unbounded, and the features on the way.

        `skips` are added after each doubling: of sizes 2 H and 4 H, or none.
        """
        features = []
        for block, skip in zip_longest(self.up, skips):
            h = block(h, style)
            h = h if skip is None else h + skip
            features.append(h)
        return self.last(h), features


class FusionGenerator(nn.Module):
    """Branches, fusion, trunk and image decoder; the segmentation decoder starts from the trunk's output, too.

    Args:
        slots: number of source modalities.
        targets: number of modalities that can be asked for; each has a learned code.
        width, max_width: channels of the first convolution, and the most there are.
        blocks: residual blocks of the trunk.
        style_dim: length of a target's code.
        skips: the decoders also see the branches' larger features, fused in the same way.
    """

    def __init__(
        self,
        *,
        slots: int,
        targets: int,
        width: int,
        max_width: int,
        blocks: int,
        style_dim: int,
        skips: bool = False,
    ) -> None:
        super().__init__()
        shape = {"width": width, "max_width": max_width}
        *larger, self.channels = widths(width, max_width, HALVINGS)
        self.code = TargetCodes(targets, style_dim)
        self.branches = nn.ModuleList(Branch(**shape, style_dim=style_dim) for _ in range(slots))
        self.fusion = Fusion(self.channels, slots=slots)
        self.skip = nn.ModuleList(Fusion(count, slots=slots) for count in reversed(larger) if skips)
        self.next = ConvAdaIN(self.channels, self.channels, style_dim)
        self.trunk = nn.ModuleList(
            AdaINResidualBlock(self.channels, self.channels, style_dim) for _ in range(blocks)
        )
        self.decoder = Decoder(**shape, outputs=1, style_dim=style_dim)
        initialise(self.next)
        initialise(self.trunk)
        # The trunk begins as the identity: otherwise what the branches found would be drowned in what six blocks add.
        for block in self.trunk:
            nn.init.zeros_(block.conv2.weight)  # type: ignore[union-attr,arg-type]

    def encode(
        self, images: Sequence[Tensor | None], present: Tensor, style: Tensor
    ) -> list[Tensor]:
        """Return the features of each source.

        Args:
            images: (B, 1, H, W) per slot; None if no row has that source, which saves the time.
            present: (B, M) bool; the images of absent sources are never looked at.
            style: (B or 1, style_dim), `code` of the target.

        Returns:
            (B, M, C, H, W), then half the size, then a quarter, which is what is fused; 0 if a source is absent.
        """
        encoded: list[list[Tensor] | None] = []
        for slot, (branch, image) in enumerate(zip(self.branches, images, strict=True)):
            if image is None:
                encoded.append(None)
                continue
            there = present[:, slot, None, None, None]
            # All rows, for choosing some would wait for the device; what absent ones hold gets nowhere.
            layers = branch(torch.where(there, image, torch.full_like(image, -1)), style)
            encoded.append([torch.where(there, layer, torch.zeros_like(layer)) for layer in layers])
        like = next(item for item in encoded if item is not None)
        nothing = [torch.zeros_like(layer) for layer in like]
        slots = [nothing if item is None else item for item in encoded]
        return [torch.stack(level, dim=1) for level in zip(*slots, strict=True)]

    def fuse(
        self, features: Sequence[Tensor], present: Tensor, style: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the fused features and those after the next convolution, (B, C, H / 4, W / 4) each, of `encode`'s."""
        fused = self.fusion(features[-1], present)
        return fused, self.next(fused, style)

    def skips(self, features: Sequence[Tensor], present: Tensor) -> list[Tensor]:
        """Return what the decoders see beside the trunk's output: sizes H / 2 and H, or nothing."""
        return [
            fusion(layer, present)
            for fusion, layer in zip(self.skip, reversed(features[:-1]), strict=False)
        ]

    def refine(self, h: Tensor, style: Tensor) -> Tensor:
        """Apply the trunk: (B, C, H, W) -> the same shape."""
        for block in self.trunk:
            h = block(h, style)
        return h

    def decode(
        self, h: Tensor, style: Tensor, skips: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the image (B, 1, 4 H, 4 W) in (-1, 1) of (B, C, H, W), and the decoder's features."""
        image, features = self.decoder(h, style, skips)
        return torch.tanh(image), features


class AutoEncoder(nn.Module):
    """The self-representation network: encodes and decodes the target itself.

    What the generator should arrive at: its branch is compared with the branches, its last features with the fused
    ones, its decoder's with the decoder's. There is no trunk: a target needs no translation.
    """

    def __init__(self, *, targets: int, width: int, max_width: int, style_dim: int) -> None:
        super().__init__()
        shape = {"width": width, "max_width": max_width, "style_dim": style_dim}
        channels = widths(width, max_width, HALVINGS)[-1]
        self.code = TargetCodes(targets, style_dim)
        self.branch = Branch(**shape)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.decoder = Decoder(**shape, outputs=1)
        initialise(self.mix)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the image and what the generator's features are compared with.

        Args:
            x: (B, 1, H, W) in [-1, 1], of the target modality.
            target: (B,) int64.

        Returns:
            The reconstruction (B, 1, H, W), branch features and last encoder features (B, C, H / 4, W / 4), and the
            decoder's features.
        """
        style = self.code(target)
        branch = self.branch(x, style)[-1]
        last = self.mix(branch)
        image, features = self.decoder(last, style)
        return torch.tanh(image), branch, last, features
