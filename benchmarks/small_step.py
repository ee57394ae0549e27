"""What a step of AttCL-GAN's preset `small` is made of, each part beside a plain way to do the same, in one run.

Norms of the brain as one function beside single operations, Muon's collected polynomials beside the published rounds,
and steps beside threads that draw batches on one core each or on all cores. Both sides take turns, so that a machine
whose speed drifts is fair to both.

    python benchmarks/small_step.py
    python benchmarks/small_step.py --device cuda    (without the threads, which do not draw beside a GPU)
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from attcl_cli import devices
from attcl_cli.methods.muon import orthogonalised
from attcl_cli.methods.networks.brain_norm import GROUPS, BrainNorm
from attcl_cli.methods.networks.styled_unet import StyledUNet
from attcl_cli.prefetch import read_ahead
from attcl_cli.training.feed import feed

_LEVELS = ((24, 128), (48, 64), (96, 32), (192, 16), (192, 8))
"""Channels and side of the features of a square of 128 pixels."""
_SLICES = 8


def plain_norm(norm: BrainNorm, x: Tensor, inside: Tensor, style: Tensor) -> Tensor:
    """Do what `BrainNorm` does, by one operation of torch after the other."""
    count, channels = x.shape[:2]
    groups = (count, GROUPS, channels // GROUPS)
    pixels = x.permute(0, 2, 3, 1).reshape(count, -1, channels)
    total = inside.sum(dim=2)
    mean = torch.bmm(inside, pixels).view(groups).mean(dim=2) / total
    square = torch.bmm(inside, pixels.square()).view(groups).mean(dim=2) / total
    scale = torch.rsqrt((square - mean.square()).clamp(min=0) + 1e-5)[:, :, None]
    times = (scale * norm.weight.view(groups[1:])).view(count, channels)
    plus = norm.bias - mean[:, :, None].expand(groups).reshape(count, channels) * times
    gamma, beta = style.chunk(2, dim=1)
    times, plus = times * (1 + gamma), plus * (1 + gamma) + beta
    return F.leaky_relu(torch.addcmul(plus[:, :, None, None], times[:, :, None, None], x), 0.2)


def plain_rounds(matrix: Tensor) -> Tensor:
    """Do what `orthogonalised` does, with the whole matrix in every round (Jordan et al. 2024)."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def norms(device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return both ways through a norm of every level, forward and backward."""
    layers = []
    for channels, side in _LEVELS:
        x = torch.randn(_SLICES, channels, side, side, device=device)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        inside = (torch.rand(_SLICES, 1, side * side, device=device) > 0.3).float() + 1e-4
        style = torch.randn(_SLICES, 2 * channels, device=device, requires_grad=True)
        layers.append((BrainNorm(channels).to(device), x, inside, style))

    def run(function: Callable[[BrainNorm, Tensor, Tensor, Tensor], Tensor]) -> None:
        for norm, x, inside, style in layers:
            result = function(norm, x, inside, style)
            result.backward(result.detach())

    return lambda: run(plain_norm), lambda: run(lambda norm, *of: norm(*of))


def rounds(device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return both ways to make the kernels of the generator orthogonal."""
    kernels = [each for each in _generator().parameters() if each.ndim == 4]
    matrices = [torch.randn_like(kernel, device=device).flatten(1) for kernel in kernels]

    def run(function: Callable[[Tensor], Tensor]) -> None:
        for matrix in matrices:
            function(matrix)

    return lambda: run(plain_rounds), lambda: run(orthogonalised)


def steps(count: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return both ways to run this many steps of the generator beside two threads that draw."""
    generator = _generator()
    planes = torch.rand(_SLICES, 16, 64, 64).to(memory_format=torch.channels_last)
    style = torch.randn(_SLICES, 64)
    grid = torch.rand(_SLICES, 128, 128, 2) * 2 - 1

    def draw(_step: int) -> Tensor:
        return F.grid_sample(torch.rand(_SLICES, 12, 160, 160), grid, align_corners=False)

    def run(drawn: Iterator[object]) -> None:
        for _ in drawn:
            generator(planes, style).square().mean().backward()

    return (
        lambda: run(read_ahead(draw, range(count))),
        lambda: run(feed(draw, range(count), device=torch.device("cpu"))),
    )


def _generator() -> StyledUNet:
    torch.manual_seed(0)
    network = StyledUNet(width=24, max_width=192, downs=4, style_dim=64, images=12, flags=4)
    return network.to(memory_format=torch.channels_last)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    device = devices.select(options.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32")
    parts = {
        "norms, forward and backward": norms(device),
        "orthogonal kernels": rounds(device),
    }
    if device.type == "cpu":
        parts["10 coarse steps beside drawing"] = steps(10)
    for name, (plain, ours) in parts.items():
        times: list[tuple[float, float]] = []
        for repeat in range(options.repeats + 1):  # the first one warms up
            both = _seconds(plain, device), _seconds(ours, device)
            if repeat:
                times.append(both)
        ratio = statistics.median(one / other for one, other in times)
        medians = [statistics.median(each) for each in zip(*times, strict=True)]
        print(f"{name:<32} plain {medians[0]:.3f} s, ours {medians[1]:.3f} s: {ratio:.2f} times")


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    clock = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock


if __name__ == "__main__":
    main()
