"""Residual trunks of two-domain generators (Johnson et al. 2016, as CycleGAN and its kin build them), and PatchGAN.

Knows shapes, not purposes. Which blocks stand in the trunk, and what comes after it, is an argument or the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import InstanceNorm
from attcl_cli.methods.networks.towers import StridedTower

Pad = Literal["zeros", "reflect"]
MakeNorm = Callable[[int], nn.Module]
MakeBlock = Callable[[int], nn.Module]

_MOST_STEPS_DOWN = 3  # of the 70-pixel PatchGAN


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3; no activation after the sum (CycleGAN, Appendix 7.2).

    Args:
        channels: in and out.
        pad: how the convolutions pad.
        norm: makes the norms.
        bias: whether the convolutions have one.
        attend: what the branch goes through before the sum.
    """

    def __init__(
        self,
        channels: int,
        *,
        pad: Pad = "reflect",
        norm: MakeNorm = InstanceNorm,
        bias: bool = True,
        attend: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode=pad, bias=bias),
            norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode=pad, bias=bias),
            norm(channels),
        ]
        self.branch = nn.Sequential(*layers, *([attend] if attend is not None else []))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape: (B, C, H, W)."""
        value: Tensor = x + self.branch(x)
        return value


class Res2NetBlock(nn.Module):
    """Residual block of several scales (Gao et al. 2021, Eq 1): each group of channels sees what the last one found.

    1x1; groups x_i; y_1 = x_1, y_2 = K_2(x_2), y_i = K_i(x_i + y_(i - 1)) with 3x3 convolutions K_i; 1x1; sum.
    Instance norms instead of batch norms, mirrored edges and no activation after the sum, as in CycleGAN (ours).

    Args:
        channels: in and out.
        inner: channels that are split, a multiple of `scales`.
        scales: groups.
        attend: what the branch goes through before the sum.
    """

    def __init__(
        self, channels: int, *, inner: int, scales: int = 4, attend: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.scales, group = scales, inner // scales
        self.first = nn.Sequential(nn.Conv2d(channels, inner, 1), InstanceNorm(inner), nn.ReLU())
        self.scale = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(group, group, 3, padding=1, padding_mode="reflect"),
                InstanceNorm(group),
                nn.ReLU(),
            )
            for _ in range(scales - 1)
        )
        self.last = nn.Sequential(
            nn.Conv2d(inner, channels, 1),
            InstanceNorm(channels),
            *([attend] if attend is not None else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape: (B, C, H, W)."""
        first, *others = self.first(x).chunk(self.scales, dim=1)
        results = [first]
        for index, (group, convolve) in enumerate(zip(others, self.scale, strict=True)):
            results.append(convolve(group + results[-1] if index else group))
        value: Tensor = x + self.last(torch.cat(results, dim=1))
        return value


class ResnetTrunk(nn.Sequential):
    """7x7 convolution, two halvings that double the channels, residual blocks: what the generators begin with.

    (B, inputs, H, W) -> (B, `outputs`, H / 4, W / 4), H and W multiples of 4 and 8 at least.

    Args:
        inputs: channels of the image.
        width: channels after the first convolution.
        blocks: residual blocks.
        block: makes one of so many channels; `ResnetBlock` is CycleGAN's.
        pad: of the 7x7 convolution.
        pad_halvings: of the two convolutions that halve.
        norm: makes the norms after the first three convolutions.
        bias: whether these have one.
        kernel: side of the two convolutions that halve; an even one halves without a shift.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        width: int = 64,
        blocks: int = 9,
        block: MakeBlock = ResnetBlock,
        pad: Pad = "reflect",
        pad_halvings: Pad = "zeros",
        norm: MakeNorm = InstanceNorm,
        bias: bool = True,
        kernel: int = 3,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, width, 7, padding=3, padding_mode=pad, bias=bias),
            norm(width),
            nn.ReLU(),
        ]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(
                    *(channels, 2 * channels, kernel),
                    stride=2,
                    padding=1,
                    padding_mode=pad_halvings,
                    bias=bias,
                ),
                norm(2 * channels),
                nn.ReLU(),
            ]
        super().__init__(*layers, *(block(4 * width) for _ in range(blocks)))
        self.outputs = 4 * width


class ResnetHead(nn.Sequential):
    """Two transposed convolutions to four times the size, then 7x7: what the generators end with, no activation last.

    (B, 4 * width, H, W) -> (B, outputs, 4 * H, 4 * W).

    Args:
        outputs: channels of the result.
        width: of the trunk.
        last: side of the last convolution; 7 mirrors the edges, 1 pads nothing.
    """

    def __init__(self, *, outputs: int = 1, width: int = 64, last: int = 7) -> None:
        layers: list[nn.Module] = []
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(
                    channels, channels // 2, 3, stride=2, padding=1, output_padding=1
                ),
                InstanceNorm(channels // 2),
                nn.ReLU(),
            ]
        super().__init__(
            *layers, nn.Conv2d(width, outputs, last, padding=last // 2, padding_mode="reflect")
        )


class PatchGan(nn.Module):
    """The discriminator of CycleGAN: a map of logits, each of a patch of 70 pixels at 256 (Isola et al. 2017).

    Args:
        image_size: side of the slices; smaller ones are halved less often, so that patches stay patches.
        width: channels after the first convolution; doubled by each of the next ones.
        inputs: channels of the image.
        attend: makes what the features go through before the last convolution, of so many channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        width: int = 64,
        inputs: int = 1,
        attend: MakeBlock | None = None,
    ) -> None:
        super().__init__()
        halvings = max(1, min(_MOST_STEPS_DOWN, image_size.bit_length() - 5))
        channels = [width * 2**index for index in range(halvings + 1)]
        self.tower = StridedTower(
            inputs,
            channels,
            strides=[*[2] * halvings, 1],
            norm="instance",
            norm_first=False,
        )
        self.attend = nn.Identity() if attend is None else attend(channels[-1])
        self.head = nn.Conv2d(channels[-1], 1, 4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of logits: (B, inputs, H, W) -> (B, 1, h, w)."""
        logits: Tensor = self.head(self.attend(self.tower(x)))
        return logits


class ResnetGenerator(nn.Module):
    """The generator of CycleGAN: trunk, head, tanh (Zhu et al. 2017, Appendix 7.2).

    Args:
        width: channels after the first convolution.
        blocks: residual blocks.
        block: makes one (`ResnetTrunk`).
        channels: of the image.
    """

    def __init__(
        self, *, width: int = 64, blocks: int = 9, block: MakeBlock = ResnetBlock, channels: int = 1
    ) -> None:
        super().__init__()
        self.trunk = ResnetTrunk(inputs=channels, width=width, blocks=blocks, block=block)
        self.head = ResnetHead(outputs=channels, width=width)

    def forward(self, x: Tensor) -> Tensor:
        """Translate: (B, channels, H, W) -> the same shape, in [-1, 1]."""
        image: Tensor = torch.tanh(self.head(self.trunk(x)))
        return image
