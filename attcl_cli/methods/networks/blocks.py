"""Residual blocks, plain and style-modulated; what all networks are built of.

Knows shapes, not purposes. Feature maps are (B, C, H, W); a residual sum is divided by sqrt(2) to keep its variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # of LeakyReLU, everywhere (StarGAN v2, Appendix)


def leaky_relu(x: Tensor) -> Tensor:
    """Apply LeakyReLU with the slope that all networks share."""
    return F.leaky_relu(x, SLOPE)


def widths(first: int, largest: int, count: int) -> list[int]:
    """Return the channels after 0..count halvings: doubled each time, never beyond `largest`."""
    return [min(first * 2**index, largest) for index in range(count + 1)]


def convolve_and_halve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute `avg_pool2d(conv(x), 2)` as one convolution: (B, C, H, W) -> (B, K, H / 2, W / 2).

    The mean of four neighbouring outputs of a 3x3 kernel is the output of one 4x4 kernel, the mean of the four shifted
    ones, at stride 2: 4 products for each of the larger image's pixels in place of 9, and that image is never written.

    Args:
        x: H and W even.
        conv: 3x3, stride 1, padding 1.
    """
    return F.conv2d(x, _mean_of_shifts(conv.weight), conv.bias, stride=2, padding=1)


def double_and_convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute `conv(interpolate(x, scale_factor=2))`, nearest, as one convolution: (B, C, H, W) -> (B, K, 2 H, 2 W).

    A pixel that is repeated four times meets the sums of the kernel's entries, so the same holds as of
    `convolve_and_halve`, turned round: a transposed convolution by a 4x4 kernel.

    Args:
        x: any size.
        conv: 3x3, stride 1, padding 1.
    """
    kernel = 4 * _mean_of_shifts(conv.weight).flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)


def _mean_of_shifts(kernel: Tensor) -> Tensor:
    """Return the mean of the four places that a 3x3 kernel has in a 4x4 one: (K, C, 3, 3) -> (K, C, 4, 4)."""
    return F.avg_pool2d(F.pad(kernel, (1, 1, 1, 1)), 2, stride=1)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm as a group norm of single channels: the same numbers, without a copy of channels-last features."""

    def __init__(self, channels: int, *, affine: bool = False) -> None:
        super().__init__(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each image: (B, C, H, W) -> the same shape."""
        # In float32: bfloat16 has too few digits for a variance, and its kernel on a CPU takes five times as long.
        wide = F.group_norm(x.float(), self.num_features, self.weight, self.bias, self.eps)
        return wide.to(x.dtype)


class ResidualBlock(nn.Module):
    """Pre-activation residual block, optionally with affine instance norm and average-pool downsampling.

    Args:
        inputs: channels in.
        outputs: channels out.
        norm: normalise (the generator's encoder does, style encoder and discriminator do not).
        down: halve height and width.
    """

    def __init__(
        self, inputs: int, outputs: int, *, norm: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        self.down = down
        self.norm1 = InstanceNorm(inputs, affine=True) if norm else nn.Identity()
        self.norm2 = InstanceNorm(inputs, affine=True) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W) of (B, inputs, H, W), or half the size with `down`."""
        h = leaky_relu(self.norm1(x))
        if self.down:
            # A 1x1 convolution (the skip) and average pooling commute; pooling first costs a quarter.
            h, x = convolve_and_halve(h, self.conv1), F.avg_pool2d(x, 2)
        else:
            h = self.conv1(h)
        h = self.conv2(F.leaky_relu_(self.norm2(h), SLOPE))
        value: Tensor = (self.skip(x) + h).div_(math.sqrt(2))
        return value


class AdaIN(nn.Module):
    """Adaptive instance norm: (1 + gamma(s)) * InstanceNorm(x) + beta(s) (Eq 7, 9)."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.norm = InstanceNorm(channels)
        self.affine = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Normalise and modulate: x (B, C, H, W), style (B, style_dim) -> (B, C, H, W)."""
        gamma, beta = self.affine(style)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(beta, 1 + gamma, self.norm(x))


class AdaINResidualBlock(nn.Module):
    """Residual block of the decoder, modulated by a style code, optionally with nearest x2 upsampling."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.up = up
        self.norm1 = AdaIN(inputs, style_dim)
        self.norm2 = AdaIN(outputs, style_dim)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor, style: Tensor, added: Tensor | None = None) -> Tensor:
        """Return (B, outputs, H, W) of (B, inputs, H, W) and (B, style_dim), or twice the size with `up`.

        `added`, (B, inputs, H, W), is added to what the first AdaIN takes, but not to what the shortcut takes.
        """
        h = F.leaky_relu_(self.norm1(x if added is None else x + added, style), SLOPE)
        x = self.skip(x)
        if self.up:
            # A 1x1 convolution (the skip) and nearest upsampling commute; the convolution first costs a quarter.
            h, x = double_and_convolve(h, self.conv1), F.interpolate(x, scale_factor=2)
        else:
            h = self.conv1(h)
        h = self.conv2(F.leaky_relu_(self.norm2(h, style), SLOPE))
        value: Tensor = (x + h).div_(math.sqrt(2))
        return value


def keep_background(fake: Tensor, *sources: Tensor) -> Tensor:
    """Set what lies outside the brain in all sources to background, as completion does.

    The rim of one pixel, and pixels within the brain that normalising clipped to -1, stay as they are: a pixel is
    background if its whole neighbourhood (3x3) is -1.

    Args:
        fake: (B, 1, H, W), what was made of the sources.
        sources: (B, M, H, W) each, in [-1, 1], background exactly -1.
    """
    brightest = torch.cat(sources, dim=1).amax(dim=1, keepdim=True)
    inside = F.max_pool2d(brightest, 3, stride=1, padding=1) > -1
    return torch.where(inside, fake, torch.full_like(fake, -1))


def initialise(module: nn.Module) -> None:
    """Initialise every convolution and linear layer as He et al. do, biases 0 (StarGAN v2, Appendix)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_as_pix2pix(module: nn.Module) -> None:
    """Initialise weights by N(0, 0.02), those of batch norms by N(1, 0.02), biases by 0 (pix2pix, ACA-GAN)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialise_as_slim(module: nn.Module) -> None:
    """Initialise weights by Xavier's uniform distribution, biases by 0 (TensorFlow-Slim's defaults)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def pick(codes: Tensor, domain: Tensor) -> Tensor:
    """Return the entry of each row's own domain: codes (B, N, ...), domain (B,) int64 -> (B, ...)."""
    return codes[torch.arange(codes.shape[0], device=codes.device), domain]
