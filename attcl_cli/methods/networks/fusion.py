"""PLAVE's networks and its ancestors': a branch per source, their fusion, a trunk, decoders, and the auto-encoder.

Knows tensors and slots, no modality's name. `Design` says how they are built; what their layers are, `layers` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.blocks import initialise, widths
from attcl_cli.methods.networks.layers import Layers, Norm, layers_of

HALVINGS = 2  # the features that are fused have a quarter of the image's size: 64 of 256

Excitation = Literal["none", "last", "each", "decoder"]
FusionKind = Literal["modality", "position", "plain"]
Contrast = Literal["attended", "following", "none"]

_REDUCTION = 16  # of the scores' hidden layer
_MIXED = 0.1  # share of the weighted mean in what each source contributes


@dataclass(frozen=True)
class Design:
    """How PLAVE's networks are built; the defaults are the published ones at 256 pixels.

    Attributes:
        width, max_width: channels of the first convolution, and the most there are.
        side: of the images in training, in pixels.
        norm: of all layers.
        style_dim: length of a target's code; only with norm `adain`.
        blocks: residual blocks of the trunk.
        excitation: where squeeze-and-excitation is: in the branches after each halving or after the last, in the
            generator's decoder after each doubling (AE-GAN), or nowhere.
        fusion: sources are weighed by a score per modality and channel, or at each position, or not at all.
        contrast: which features are compared: what multi-modal attention gives and what the convolution makes of it, or
            the latter and what a further convolution makes of that, or none.
        skips: the decoders also see the branches' larger features, fused at each position.
        autoencoder_blocks: residual blocks of the auto-encoder, whose branch then has no excitation; 0: a 1x1
            convolution in their place, and a branch as the generator's.
    """

    width: int = 64
    max_width: int = 512
    side: int = 256
    norm: Norm = "batch"
    style_dim: int = 64
    blocks: int = 6
    excitation: Excitation = "each"
    fusion: FusionKind = "modality"
    contrast: Contrast = "attended"
    skips: bool = False
    autoencoder_blocks: int = 6

    @property
    def layers(self) -> Layers:
        """What makes the layers."""
        return layers_of(self.norm, self.style_dim)

    @property
    def channels(self) -> list[int]:
        """The channels after 0, 1 and 2 halvings."""
        return widths(self.width, self.max_width, HALVINGS)


class Branch(nn.Module):
    """The encoder of one source modality: three convolutions to a quarter of the size, with squeeze-and-excitation."""

    def __init__(self, design: Design, *, excitation: Excitation) -> None:
        super().__init__()
        layers, channels = design.layers, design.channels
        self.stem = layers.conv(1, design.width, kernel=7)
        self.down = nn.ModuleList(layers.conv(a, b, stride=2) for a, b in pairwise(channels))
        *halved, last = channels[1:]
        self.early = nn.ModuleList(layers.excitation(c) for c in halved if excitation == "each")
        attends = excitation in {"each", "last"}
        self.attention = layers.excitation(last) if attends else nn.Identity()
        layers.initialise(self)

    def forward(self, x: Tensor, style: Tensor) -> list[Tensor]:
        """Return features of sizes H, H / 2 and H / 4.

        Args:
            x: (B, 1, H, W) in [-1, 1].
            style: (B or 1, style_dim), `code` of the target.
        """
        features = [self.stem(x, style)]
        early = [*self.early] or [nn.Identity()] * (len(self.down) - 1)
        for block, attention in zip(self.down, [*early, self.attention], strict=True):
            features.append(attention(block(features[-1], style)))
        return features


class PlainFusion(nn.Module):
    """Concatenates the sources and mixes them, without attention (AE-GAN; Auto-GAN): an absent one contributes 0."""

    def __init__(self, channels: int, *, slots: int, layers: Layers) -> None:
        super().__init__()
        self.mix = nn.Conv2d(slots * channels, channels, 1)
        layers.initialise(self)

    def attend(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the sources side by side, (B, M * C, H, W); what absent slots hold is never looked at."""
        there = present[:, :, None, None, None]
        return torch.where(there, features, torch.zeros_like(features)).flatten(1, 2)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Fuse (B, M, C, H, W), (B, M) bool -> (B, C, H, W)."""
        value: Tensor = self.mix(self.attend(features, present))
        return value


class PositionFusion(nn.Module):
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

    def attend(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the weighted sources side by side, (B, M * C, H, W); what absent slots hold is never looked at."""
        there = present[:, :, None, None, None]
        features = torch.where(there, features, torch.zeros_like(features))
        return (self.weights(features, present)[:, :, None] * features).flatten(1, 2)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Fuse (B, M, C, H, W), (B, M) bool -> (B, C, H, W)."""
        value: Tensor = self.mix(self.attend(features, present))
        return value


class ModalityFusion(nn.Module):
    """ACA-GAN's multi-modal attention: a score per modality and channel, made of that channel's whole maps.

    The scores go through a softmax over the modalities; each modality then contributes nine tenths of its own features
    and a tenth of the weighted mean, side by side. An absent source has no weight and contributes 0 (ours: the
    published one has all of them). Maps of another size than in training are averaged to it before they are scored.
    """

    def __init__(self, channels: int, *, slots: int, size: int, layers: Layers) -> None:
        super().__init__()
        self.size = size
        inputs = slots * size * size
        hidden = max(inputs // _REDUCTION, 1)
        self.score = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, slots, bias=False),
            nn.Sigmoid(),
        )
        self.mix = nn.Conv2d(slots * channels, channels, 1)
        layers.initialise(self)

    def weights(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the weights of the slots in each channel, which add up to 1; exactly 0 if a source is absent.

        Args:
            features: (B, M, C, H, W), in the order of the slots; 0 if a source is absent.
            present: (B, M) bool, at least one per row.

        Returns:
            (B, M, C).
        """
        maps = features.flatten(0, 1)
        if maps.shape[-2:] != (self.size, self.size):
            maps = F.adaptive_avg_pool2d(maps, self.size)
        maps = maps.unflatten(0, features.shape[:2])  # (B, M, C, size, size)
        scores = self.score(maps.transpose(1, 2).flatten(2))  # (B, C, M)
        scores = scores.float().masked_fill(~present[:, None], -torch.inf)
        value: Tensor = scores.softmax(dim=2).transpose(1, 2).to(features.dtype)
        return value

    def attend(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the attended sources side by side, (B, M * C, H, W); what absent slots hold is never looked at."""
        there = present[:, :, None, None, None]
        features = torch.where(there, features, torch.zeros_like(features))
        weights = self.weights(features, present)[..., None, None]
        mean = (weights * features).sum(dim=1, keepdim=True)
        attended = (1 - _MIXED) * features + _MIXED * mean
        return torch.where(there, attended, torch.zeros_like(attended)).flatten(1, 2)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Fuse (B, M, C, H, W), (B, M) bool -> (B, C, H, W)."""
        value: Tensor = self.mix(self.attend(features, present))
        return value


class Decoder(nn.Module):
    """Doubles the size twice; its features after each doubling are handed out, too.

    No norm after the last doubling's own: what is black and what is bright must survive.

    Args:
        design: how it is built.
        outputs: channels of the result.
        excited: there is squeeze-and-excitation after each doubling.
    """

    def __init__(self, design: Design, *, outputs: int, excited: bool = False) -> None:
        super().__init__()
        layers, channels = design.layers, design.channels[::-1]
        self.up = nn.ModuleList(layers.up(a, b) for a, b in pairwise(channels))
        self.attention = nn.ModuleList(layers.excitation(c) for c in channels[1:] if excited)
        self.last = layers.last(design.width, outputs)
        layers.initialise(self)

    def forward(
        self, h: Tensor, style: Tensor, skips: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode (B, C, H, W), (B or 1, style_dim) -> (B, outputs, 4 H, 4 W) unbounded, and the features on the way.

        `skips` are added after each doubling: of sizes 2 H and 4 H, or none.
        """
        features = []
        for block, attention, skip in zip_longest(self.up, self.attention, skips):
            h = block(h, style)
            h = h if attention is None else attention(h)
            h = h if skip is None else h + skip
            features.append(h)
        return self.last(h), features


class Fused(NamedTuple):
    """What fusion gives, (B, ?, H / 4, W / 4) each.

    Attributes:
        attended: the weighed sources side by side, M * C channels.
        mixed: what the 1x1 convolution makes of them, C channels; the auto-encoder's last features are its example.
        following: what the trunk takes, C channels.
    """

    attended: Tensor
    mixed: Tensor
    following: Tensor


class FusionGenerator(nn.Module):
    """Branches, fusion, trunk and image decoder; the segmentation decoder starts from the trunk's output, too.

    Args:
        design: how it is built.
        slots: number of source modalities.
        targets: number of modalities that can be asked for; each has a learned code, unless norms know no code.
    """

    def __init__(self, design: Design, *, slots: int, targets: int) -> None:
        super().__init__()
        layers = design.layers
        *larger, channels = design.channels
        self.layers, self.contrast = layers, design.contrast
        self.code = layers.codes(targets)
        self.branches = nn.ModuleList(
            Branch(design, excitation=design.excitation) for _ in range(slots)
        )
        self.fusion = _fusion_of(design, channels, slots=slots)
        skipping = [*reversed(larger)] if design.skips else []
        self.skip = nn.ModuleList(
            _fusion_of(design, count, slots=slots, skips=True) for count in skipping
        )
        self.next = layers.conv(channels, channels) if self.contrast == "following" else None
        self.trunk = nn.ModuleList(layers.residual(channels) for _ in range(design.blocks))
        self.decoder = Decoder(design, outputs=1, excited=design.excitation == "decoder")
        if self.next is not None:
            layers.initialise(self.next)
        self.compared_channels: tuple[int, ...] = {
            "attended": (slots * channels, channels),
            "following": (channels, channels),
            "none": (),
        }[self.contrast]
        """The channels of what is compared by the contrastive loss."""

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

    def fuse(self, features: Sequence[Tensor], present: Tensor, style: Tensor) -> Fused:
        """Return the fused features of what `encode` gave."""
        attended = self.fusion.attend(features[-1], present)
        mixed = self.fusion.mix(attended)
        if self.next is not None:
            return Fused(attended, mixed, self.next(mixed, style))
        mixed = self.layers.activate(mixed)
        return Fused(attended, mixed, mixed)

    def compared(self, fused: Fused) -> tuple[Tensor, Tensor]:
        """Return the two layers that the contrastive loss compares."""
        if self.contrast == "attended":
            return fused.attended, fused.mixed
        return fused.mixed, fused.following

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


def _fusion_of(
    design: Design, channels: int, *, slots: int, skips: bool = False
) -> ModalityFusion | PositionFusion | PlainFusion:
    """Return what fuses features of the sources; larger ones for the decoders (`skips`) never by their whole maps."""
    if design.fusion == "plain":
        return PlainFusion(channels, slots=slots, layers=design.layers)
    if design.fusion == "position" or skips:
        return PositionFusion(channels, slots=slots)
    return ModalityFusion(
        channels, slots=slots, size=design.side // 2**HALVINGS, layers=design.layers
    )


class Encoded(NamedTuple):
    """What the auto-encoder makes of an image on the way down.

    Attributes:
        style: (B, style_dim), the target's code.
        branch: (B, C, H / 4, W / 4), the example of the branches.
        last: (B, C, H / 4, W / 4), the example of what is fused.
        deep: (B, C, H / 4, W / 4), what is decoded; AE-GAN's discriminator judges it.
    """

    style: Tensor
    branch: Tensor
    last: Tensor
    deep: Tensor


class AutoEncoder(nn.Module):
    """The self-representation network: encodes and decodes the target itself.

    What the generator should arrive at: its branch is compared with the branches, its last features with the fused
    ones, its decoder's with the decoder's.
    """

    def __init__(self, design: Design, *, targets: int) -> None:
        super().__init__()
        layers, channels = design.layers, design.channels[-1]
        slim = design.autoencoder_blocks == 0
        self.code = layers.codes(targets)
        self.branch = Branch(design, excitation=design.excitation if slim else "none")
        self.mix = nn.Conv2d(channels, channels, 1) if slim else nn.Identity()
        self.trunk = nn.ModuleList(
            layers.residual(channels) for _ in range(design.autoencoder_blocks)
        )
        self.decoder = Decoder(design, outputs=1)
        layers.initialise(self.mix)

    def encode(self, x: Tensor, target: Tensor) -> Encoded:
        """Encode (B, 1, H, W) in [-1, 1] of the target modality, (B,) int64."""
        style = self.code(target)
        branch = self.branch(x, style)[-1]
        last = self.mix(branch)
        deep = last
        for block in self.trunk:
            deep = block(deep, style)
        return Encoded(style, branch, last, deep)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the image and what the generator's features are compared with.

        Args:
            x: (B, 1, H, W) in [-1, 1], of the target modality.
            target: (B,) int64.

        Returns:
            The reconstruction (B, 1, H, W), branch features and last encoder features (B, C, H / 4, W / 4), and the
            decoder's features.
        """
        style, branch, last, deep = self.encode(x, target)
        image, features = self.decoder(deep, style)
        return torch.tanh(image), branch, last, features

    def hand_over(self, generator: FusionGenerator) -> None:
        """Copy code, branch, trunk and decoder to a generator of the same design, as far as it has such layers."""
        generator.code.load_state_dict(self.code.state_dict())
        for branch in generator.branches:
            branch.load_state_dict(self.branch.state_dict(), strict=False)
        for theirs, own in zip(generator.trunk, self.trunk, strict=False):
            theirs.load_state_dict(own.state_dict())
        generator.decoder.load_state_dict(self.decoder.state_dict(), strict=False)
