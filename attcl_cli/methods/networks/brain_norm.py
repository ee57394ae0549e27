"""Group norm of the brain, its modulation by a style and LeakyReLU as one function with a written backward pass (ours).

As separate operations they took a third of a training step: each reads and writes all features, which do not fit the
cache of a CPU. Here a few images at a time go through all of them, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attcl_cli.methods.networks.blocks import SLOPE

GROUPS = 8  # of channels that are normalised together (group norm, Wu and He 2018)
_EPS = 1e-5
_IN_CACHE = 4 * 2**20  # bytes of float32 features that go through all operations at once on a CPU


class BrainNorm(nn.Module):
    """Group norm whose mean and variance are those of the brain, then LeakyReLU.

    Over all pixels they would hang on how much background an image has: a network that learns from squares within the
    brain would see other numbers in whole slices.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, inside: Tensor, style: Tensor | None = None) -> Tensor:
        """Return LeakyReLU of the normalised features, modulated as AdaIN does (Eq 7) if there is a style.

        Args:
            x: (B, C, H, W).
            inside: (B, 1, H * W), float32, the weight of each pixel in mean and variance.
            style: (B or 1, 2 * C), gamma and beta of each channel.

        Returns:
            The same shape, type and order in memory.
        """
        count, channels, height, width = x.shape
        times, plus = self.weight[None], self.bias[None]
        if style is not None:
            gamma, beta = style.float().chunk(2, dim=1)
            times, plus = times * (1 + gamma), plus * (1 + gamma) + beta
        pixels = x.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        result: Tensor = _NormedActivation.apply(  # type: ignore[no-untyped-call]
            pixels, inside, times.expand(count, -1), plus.expand(count, -1)
        )
        return result.view(count, height, width, channels).permute(0, 3, 1, 2)


class _NormedActivation(torch.autograd.Function):
    """LeakyReLU(normalised * times + plus), of pixels (B, P, C), inside (B, 1, P), times and plus (B, C)."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, inside: Tensor, times: Tensor, plus: Tensor) -> Tensor:
        result = torch.empty_like(pixels)
        mean, scale = (inside.new_empty(len(pixels), GROUPS) for _ in range(2))
        # The variance is a difference of numbers that can be alike: in 8 bits of bf16 nothing would be left of it.
        with torch.autocast(_kind(pixels), enabled=False):
            for rows in _rows_at_once(pixels):
                x, weights = pixels[rows].float(), inside[rows]
                total = weights.sum(dim=2)
                mean[rows] = _groups(torch.bmm(weights, x)).mean(dim=2) / total
                square = _groups(torch.bmm(weights, x.square())).mean(dim=2) / total
                scale[rows] = torch.rsqrt((square - mean[rows].square()).clamp(min=0) + _EPS)
                factor = _channels(scale[rows], x) * times[rows]
                shift = plus[rows] - _channels(mean[rows], x) * factor
                result[rows] = F.leaky_relu_(
                    torch.addcmul(shift[:, None], factor[:, None], x), SLOPE
                )
        ctx.save_for_backward(pixels, result, inside, times, mean, scale)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        pixels, result, inside, times, mean, scale = ctx.saved_tensors
        of_pixels = torch.empty_like(pixels)
        of_times, of_plus = torch.empty_like(times), torch.empty_like(times)
        ones = torch.ones_like(inside[:1])
        with torch.autocast(_kind(pixels), enabled=False):
            for rows in _rows_at_once(pixels):
                x, weights = pixels[rows].float(), inside[rows]
                bent = torch.ops.aten.leaky_relu_backward(
                    gradient[rows].float(),
                    result[rows].float(),
                    SLOPE,
                    True,  # noqa: FBT003 - LeakyReLU keeps the sign, so its result says as much as its input
                )
                every = ones.expand(len(x), -1, -1)
                middle, spread = _channels(mean[rows], x), _channels(scale[rows], x)
                summed = torch.bmm(every, bent)[:, 0]
                with_x = spread * (torch.bmm(every, bent * x)[:, 0] - middle * summed)
                of_plus[rows], of_times[rows] = summed, with_x
                # d normalised / d pixel is scale * (1 - (what moves the mean) - (what moves the variance)).
                share = scale[rows] / (weights.sum(dim=2) * (x.shape[2] // GROUPS))
                by_mean = -share * _groups(times[rows] * summed).sum(dim=2)
                by_x = -share * scale[rows] * _groups(times[rows] * with_x).sum(dim=2)
                constant = _channels(by_mean - by_x * mean[rows], x)
                moved = torch.addcmul(constant[:, None], _channels(by_x, x)[:, None], x)
                moved.mul_(weights.transpose(1, 2)).addcmul_(bent, (times[rows] * spread)[:, None])
                of_pixels[rows] = moved
        return of_pixels, None, of_times, of_plus


def _rows_at_once(pixels: Tensor) -> Iterator[slice]:
    """Yield the images of (B, P, C) in parts that fit a CPU's cache; on other devices all at once."""
    count, size, channels = pixels.shape
    part = max(1, _IN_CACHE // (4 * size * channels)) if pixels.device.type == "cpu" else count
    for start in range(0, count, part):
        yield slice(start, start + part)


def _groups(of_channels: Tensor) -> Tensor:
    """Take channels apart: (B, C) or (B, 1, C) -> (B, GROUPS, C / GROUPS)."""
    return of_channels.view(len(of_channels), GROUPS, -1)


def _channels(of_groups: Tensor, like: Tensor) -> Tensor:
    """Give each channel what its group has: (B, GROUPS) -> (B, C), C being that of `like` (B, P, C)."""
    return of_groups.repeat_interleave(like.shape[2] // GROUPS, dim=1)


def _kind(pixels: Tensor) -> str:
    return "cpu" if pixels.is_meta else pixels.device.type
