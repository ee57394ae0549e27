"""The generator G: an image and a style code in, the image in that style out.

Encoder and decoder are called apart: completion encodes a slice once and decodes it into every missing modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import (
    AdaIN,
    AdaINResidualBlock,
    InstanceNorm,
    ResidualBlock,
    initialise,
    widths,
)
from attcl_cli.methods.networks.wavelets import ImportanceGate


@dataclass(frozen=True)
class Features:
    """What the encoder found in an image.

    Attributes:
        image: (B, 1, H, W), what was encoded; of several planes, the one that the result starts from.
        layers: `layers[l]` for l = 0..downs is (B, channels[l], H / 2**l, W / 2**l); `layers[0]` is the first
            convolution's.
        deep: the output of the whole encoder, at the size of the last layer.
        inside: of each layer's pixels, the weight in the norms, (B, 1, H * W); empty: all count the same.
        details: layer -> what its wavelets add to the decoder's input of that size, shaped as `layers[layer]`.
        importance: layer -> the weight of its details at each place, (B, 1, H / 2**(l + 1), W / 2**(l + 1)).
    """

    image: Tensor
    layers: tuple[Tensor, ...]
    deep: Tensor
    inside: tuple[Tensor, ...] = ()
    details: Mapping[int, Tensor] = field(default_factory=dict)
    importance: Mapping[int, Tensor] = field(default_factory=dict)

    def of(self, rows: Tensor) -> Features:
        """Return the features of some of the images, (K,) int64; an image may be chosen several times."""

        def chosen(each: Tensor) -> Tensor:
            # Twice as fast as each[rows], by its backward pass; of channels-last memory, it stays so.
            return each.movedim(1, -1).index_select(0, rows).movedim(-1, 1)

        return Features(
            chosen(self.image),
            tuple(chosen(layer) for layer in self.layers),
            chosen(self.deep),
            tuple(chosen(weights) for weights in self.inside),
            {layer: chosen(detail) for layer, detail in self.details.items()},
            {layer: chosen(weights) for layer, weights in self.importance.items()},
        )


class Generator(nn.Module):
    """G of StarGAN v2 and AttCL-GAN (method.md, section 2).

    Args:
        width: channels of the first convolution.
        max_width: channels never grow beyond this.
        downs: halvings in the encoder; as many doublings in the decoder.
        bottleneck: residual blocks at the smallest size, on each side.
        style_dim: length of a style code.
        full_size_skips: the decoder also sees the image at full size, which otherwise reaches it halved at least once:
            one more AdaIN block there, on the sum with the first convolution's features, and the image itself is
            added to what comes out, so that only the difference is learnt (ours).
        planes: channels of what is encoded: one image, or several with what says which they are (ours).
        adain_start: what He's weights of the affine maps of the style are multiplied by at first.
        shortcut_refined: what AttAdaIN adds also runs through its block's un-normalised shortcut (ours).
        wavelet_layers: encoder layers from 1 to downs - 1 whose wavelet details, weighed by place, are added to the
            decoder's input of that size (W2GAN, re-specified).
    """

    def __init__(
        self,
        *,
        width: int,
        max_width: int,
        downs: int,
        bottleneck: int,
        style_dim: int,
        full_size_skips: bool = False,
        planes: int = 1,
        adain_start: float = 1.0,
        shortcut_refined: bool = False,
        wavelet_layers: Sequence[int] = (),
    ) -> None:
        super().__init__()
        channels = widths(width, max_width, downs)
        deep = channels[-1]
        self.channels = channels
        self.shortcut_refined = shortcut_refined
        self.stem = nn.Conv2d(planes, width, 3, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(a, b, norm=True, down=True) for a, b in pairwise(channels)
        )
        self.encode_deep = nn.ModuleList(
            ResidualBlock(deep, deep, norm=True) for _ in range(bottleneck)
        )
        self.decode_deep = nn.ModuleList(
            AdaINResidualBlock(deep, deep, style_dim) for _ in range(bottleneck)
        )
        backwards = channels[::-1]
        self.up = nn.ModuleList(
            AdaINResidualBlock(a, b, style_dim, up=True) for a, b in pairwise(backwards)
        )
        self.full_size = AdaINResidualBlock(width, width, style_dim) if full_size_skips else None
        self.to_image = nn.Sequential(
            InstanceNorm(width, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1)
        )
        initialise(self)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, AdaIN):
                    layer.affine.weight *= adain_start
        self.gates = nn.ModuleDict({str(layer): ImportanceGate() for layer in wavelet_layers})

    def encode(self, x: Tensor, start: Tensor | None = None) -> Features:
        """Return the encoder's features.

        Args:
            x: (B, planes, H, W) in [-1, 1], H and W multiples of 2 ** downs.
            start: (B, 1, H, W), the image that the result starts from; None: `x`, which is one.
        """
        layers = [self.stem(x)]
        for block in self.down:
            layers.append(block(layers[-1]))
        deep = layers[-1]
        for block in self.encode_deep:
            deep = block(deep)
        details: dict[int, Tensor] = {}
        importance: dict[int, Tensor] = {}
        for name, gate in self.gates.items():
            details[int(name)], importance[int(name)] = gate(layers[int(name)])
        return Features(
            x if start is None else start,
            tuple(layers),
            deep,
            details=details,
            importance=importance,
        )

    def decode(
        self, features: Features, style: Tensor, refined: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """Return the image.

        Args:
            features: `encode(x)`.
            style: (B, style_dim).
            refined: layer -> A_l(F_l), added to what the first AdaIN of the decoder block that mirrors layer l takes
                (AttAdaIN, Eq 8, 9).

        Returns:
            (B, 1, H, W), about [-1, 1] but not clipped.
        """
        refined = refined or {}
        h = features.deep
        for block in self.decode_deep:
            h = block(h, style)
        # The input of each block has the size and the channels of the encoder's layer of that number.
        for layer, block in zip(range(len(self.up), 0, -1), self.up, strict=True):
            added = refined.get(layer)
            if added is not None and self.shortcut_refined:
                h, added = h + added, None
            detail = features.details.get(layer)
            h = h if detail is None else h + detail
            h = block(h, style, added)
        if self.full_size is not None:
            h = self.full_size(h + features.layers[0], style)
        image: Tensor = self.to_image(h)
        return image if self.full_size is None else features.image + image

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Compute `decode(encode(x))` without attention."""
        return self.decode(self.encode(x), style)
