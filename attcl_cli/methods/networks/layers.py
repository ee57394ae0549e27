"""The layers that PLAVE's networks are built of, in two kinds: with batch norm as ACA-GAN's, or styled by a target.

Knows shapes, not purposes: what is built of them is `fusion`'s business. Every layer is called with a style code; those
with batch norm pass over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.attention import SqueezeExcitation
from attcl_cli.methods.networks.blocks import (
    AdaIN,
    AdaINResidualBlock,
    initialise,
    initialise_as_pix2pix,
    leaky_relu,
)

Norm = Literal["batch", "adain"]


class Layers(Protocol):
    """Makes the layers of one kind."""

    def codes(self, targets: int) -> nn.Module:
        """Return what gives each target its code: (B,) int64 -> (B, style_dim)."""

    def conv(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
        """Return a convolution with norm and activation."""

    def up(self, inputs: int, outputs: int) -> nn.Module:
        """Return a transposed convolution to twice the size, with norm and activation."""

    def residual(self, channels: int) -> nn.Module:
        """Return a residual block."""

    def last(self, inputs: int, outputs: int) -> nn.Module:
        """Return the convolution to the output; called without a style."""

    def excitation(self, channels: int) -> SqueezeExcitation:
        """Return channel attention."""

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation."""

    def initialise(self, module: nn.Module) -> None:
        """Initialise the weights of a new module."""


def layers_of(norm: Norm, style_dim: int) -> Layers:
    """Return what makes the layers with this norm; `style_dim` is the length of a target's code."""
    return BatchNormLayers() if norm == "batch" else AdaINLayers(style_dim)


# --- ours: AdaIN of a target's code, so that one set of weights makes several targets --------------------------------


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


class UpAdaIN(nn.Module):
    """Transposed convolution to twice the size, AdaIN, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, style_dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = AdaIN(outputs, style_dim)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, outputs, 2 H, 2 W) of (B, inputs, H, W) and (B or 1, style_dim)."""
        return leaky_relu(self.norm(self.conv(x), style))


@dataclass(frozen=True)
class AdaINLayers:
    """See `Layers`: the target's code modulates every norm; a constant plane would not survive an instance norm."""

    style_dim: int

    def codes(self, targets: int) -> nn.Module:
        """See `Layers`."""
        return TargetCodes(targets, self.style_dim)

    def conv(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
        """See `Layers`."""
        return ConvAdaIN(inputs, outputs, self.style_dim, kernel=kernel, stride=stride)

    def up(self, inputs: int, outputs: int) -> nn.Module:
        """See `Layers`."""
        return UpAdaIN(inputs, outputs, self.style_dim)

    def residual(self, channels: int) -> nn.Module:
        """See `Layers`: begins as the identity, or six blocks would drown what the branches found."""
        block = AdaINResidualBlock(channels, channels, self.style_dim)
        initialise(block)
        nn.init.zeros_(block.conv2.weight)
        return block

    def last(self, inputs: int, outputs: int) -> nn.Module:
        """See `Layers`."""
        return nn.Conv2d(inputs, outputs, 7, padding=3)

    def excitation(self, channels: int) -> SqueezeExcitation:
        """See `Layers`."""
        return SqueezeExcitation(channels)

    def activate(self, x: Tensor) -> Tensor:
        """See `Layers`."""
        return leaky_relu(x)

    def initialise(self, module: nn.Module) -> None:
        """See `Layers`."""
        initialise(module)


# --- the published ones: batch norm, as ACA-GAN's and pix2pix' ResNet generator have ---------------------------------


class NoCodes(nn.Module):
    """Stands in for codes if there is one target."""

    def forward(self, target: Tensor) -> Tensor:
        """Return codes of no length: (B,) -> (B, 0)."""
        return torch.zeros(len(target), 0, device=target.device)


class ConvBatchNorm(nn.Module):
    """Convolution, batch norm, ReLU; the first one, of 7x7, mirrors the image at its edges."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=kernel // 2,
            bias=False,
            padding_mode="zeros" if stride > 1 else "reflect",
        )
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        del style
        return torch.relu(self.norm(self.conv(x)))


class UpBatchNorm(nn.Module):
    """Transposed convolution to twice the size, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return (B, outputs, 2 H, 2 W) of (B, inputs, H, W)."""
        del style
        return torch.relu(self.norm(self.conv(x)))


class BatchNormResidualBlock(nn.Module):
    """The residual block of pix2pix' ResNet generator: x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shape = {"kernel_size": 3, "padding": 1, "bias": False, "padding_mode": "reflect"}
        self.conv1 = nn.Conv2d(channels, channels, **shape)  # type: ignore[arg-type]
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, **shape)  # type: ignore[arg-type]
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Return the same shape: (B, C, H, W)."""
        del style
        value: Tensor = x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return value


@dataclass(frozen=True)
class BatchNormLayers:
    """See `Layers`: batch norm, so one target per model; no bias before a norm; weights start from N(0, 0.02)."""

    def codes(self, targets: int) -> nn.Module:
        """See `Layers`."""
        del targets
        return NoCodes()

    def conv(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
        """See `Layers`."""
        return ConvBatchNorm(inputs, outputs, kernel=kernel, stride=stride)

    def up(self, inputs: int, outputs: int) -> nn.Module:
        """See `Layers`."""
        return UpBatchNorm(inputs, outputs)

    def residual(self, channels: int) -> nn.Module:
        """See `Layers`."""
        block = BatchNormResidualBlock(channels)
        initialise_as_pix2pix(block)
        return block

    def last(self, inputs: int, outputs: int) -> nn.Module:
        """See `Layers`."""
        return nn.Conv2d(inputs, outputs, 7, padding=3, padding_mode="reflect")

    def excitation(self, channels: int) -> SqueezeExcitation:
        """See `Layers`."""
        return SqueezeExcitation(channels, bias=False)

    def activate(self, x: Tensor) -> Tensor:
        """See `Layers`."""
        return torch.relu(x)

    def initialise(self, module: nn.Module) -> None:
        """See `Layers`."""
        initialise_as_pix2pix(module)
