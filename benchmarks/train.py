"""Seconds per training step: a plain transcription of StarGAN v2's iteration over ours, at equal settings, in one run.

The plain one does what the paper says, in the order in which it says it, with networks of the same weights: every image
is generated where it is needed, gradients are computed for whatever is in the graph, and a residual block convolves
before it pools and after it has upsampled. The two take turns, so that a machine whose speed drifts is fair to both.

    python benchmarks/train.py --preset tiny
    python benchmarks/train.py --preset paper --device cuda --precision bf16
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import fields
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli import devices
from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS, losses
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.networks.blocks import AdaINResidualBlock, ResidualBlock, leaky_relu, pick
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import Settings, resolve

MODALITIES = ("flair", "t1", "t1ce", "t2")

# Both sides run the published iteration on whole slices, whatever the preset's own recipe is.
_PUBLISHED_STEP: Mapping[str, Any] = {
    "crop": 0,
    "lambda_pair": 0.0,
    "lambda_structure": 0.0,
    "supervised": 0.0,
    "alternate": False,
    "discriminator": "slices",
    "r1_every": 1,
    "generator": "stargan-v2",
    "muon": False,
    "coarse": 0.0,
    "context": 0,
    "augment": 0.0,
}


def plain_residual_block(self: ResidualBlock, x: Tensor) -> Tensor:
    """Do what `ResidualBlock.forward` does, in the order of StarGAN v2's Appendix."""
    h, x = self.conv1(leaky_relu(self.norm1(x))), self.skip(x)
    if self.down:
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    return (x + self.conv2(leaky_relu(self.norm2(h)))) / math.sqrt(2)


def plain_style_block(
    self: AdaINResidualBlock, x: Tensor, style: Tensor, added: Tensor | None = None
) -> Tensor:
    """Do what `AdaINResidualBlock.forward` does, in the order of StarGAN v2's Appendix."""
    h = leaky_relu(self.norm1(x if added is None else x + added, style))
    if self.up:
        h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
    h = self.conv2(leaky_relu(self.norm2(self.conv1(h), style)))
    return (self.skip(x) + h) / math.sqrt(2)


def as_written(network: nn.Module) -> None:
    """Make the network's residual blocks compute their sums in the published order."""
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            block.forward = MethodType(plain_residual_block, block)
        if isinstance(block, AdaINResidualBlock):
            block.forward = MethodType(plain_style_block, block)


def plain_step(method: AttclGan, batch: DomainBatch, z: Tensor, z2: Tensor) -> None:
    """Run one iteration as StarGAN v2's paper describes it (Section 3, Appendix), eager and float32."""
    s = method.settings
    optimisers = method.optimisers()
    g, f, e, d = method.generator, method.mapping, method.style_encoder, method.discriminator

    def descend(loss: Tensor, names: tuple[str, ...]) -> None:
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        loss.backward()
        for name in names:
            optimisers[name].step()

    for latent in (True, False):
        x_real = batch.x_src.detach().requires_grad_()
        logits = d(x_real, batch.y_src)
        with torch.no_grad():
            style = pick(f(z) if latent else e(batch.x_ref), batch.y_ref)
            x_fake = g(batch.x_src, style)
        loss = losses.real_loss(logits) + losses.fake_loss(d(x_fake, batch.y_ref))
        descend(loss + s.lambda_r1 * losses.r1_penalty(logits, x_real), ("discriminator",))
    for latent in (True, False):
        style = pick(f(z) if latent else e(batch.x_ref), batch.y_ref)
        style2 = pick(f(z2) if latent else e(batch.x_ref2), batch.y_ref)
        x_fake = g(batch.x_src, style)
        loss = losses.real_loss(d(x_fake, batch.y_ref))
        loss = loss + s.lambda_sty * losses.style_loss(style, pick(e(x_fake), batch.y_ref))
        x_fake2 = g(batch.x_src, style2).detach()
        loss = loss - s.lambda_ds * losses.diversity_loss(x_fake, x_fake2)
        x_rec = g(x_fake, pick(e(batch.x_src), batch.y_src))
        loss = loss + s.lambda_cyc * losses.cycle_loss(batch.x_src, x_rec)
        descend(loss, ("generator", "mapping", "style_encoder") if latent else ("generator",))


def random_batch(settings: Settings) -> DomainBatch:
    """Return a batch of noise; time does not depend on what is in the pictures."""
    noise = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, 1, settings.image_size, settings.image_size)
    images = [torch.rand(shape, generator=noise) * 2 - 1 for _ in range(4)]
    domains = [
        torch.randint(len(MODALITIES), (settings.batch_size,), generator=noise) for _ in range(2)
    ]
    pairs = torch.ones(settings.batch_size, dtype=torch.bool)
    return DomainBatch(
        x_src=images[0],
        y_src=domains[0],
        x_ref=images[1],
        x_ref2=images[2],
        y_ref=domains[1],
        x_pair=images[3],
        has_pair=pairs,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image-size", type=int, help="instead of the preset's, to make it small")
    options = parser.parse_args()
    device = devices.select(options.device)
    changes = {**_PUBLISHED_STEP, "batch_size": options.batch_size}
    if options.image_size:
        changes |= {"image_size": options.image_size, "canvas": options.image_size, "downs": 2}
    settings = resolve(preset=options.preset, variant="stargan-v2", overrides=changes)
    whole = resolve(preset=options.preset, variant="attcl-gan", overrides=changes)
    noise = random_batch(settings)
    batch = noise.to(device)  # channels-last
    tensors = {item.name: getattr(noise, item.name) for item in fields(noise)}
    contiguous = DomainBatch(
        **{name: value.to(device) for name, value in tensors.items() if value is not None}
    )
    z, z2 = (torch.randn(len(batch), settings.latent_dim, device=device) for _ in range(2))

    def make(chosen: Settings, *, plain: bool) -> AttclGan:
        torch.manual_seed(0)
        method = METHODS[chosen.method](chosen, MODALITIES)
        for network in method.networks().values():
            network.to(device)
            if plain:
                as_written(network)
            else:
                network.to(memory_format=torch.channels_last)
        if not plain:
            method.runtime = Runtime(precision=options.precision)
        return method

    plain, ours, attcl = (
        make(settings, plain=True),
        make(settings, plain=False),
        make(whole, plain=False),
    )
    runs = {
        "plain StarGAN v2": lambda _step: plain_step(plain, contiguous, z, z2),
        "ours, StarGAN v2": lambda step: ours.training_step(batch, step),
        "ours, AttCL-GAN": lambda step: attcl.training_step(batch, step),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(options.repeats + 1):  # the first one warms up
        for name, run in runs.items():
            clock = time.perf_counter()
            run(repeat)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - clock)
    print(
        f"preset {options.preset}, batch {options.batch_size}, {device}, "
        f"ours in {options.precision}, torch {torch.__version__}"
    )
    for name, times in seconds.items():
        print(f"{name:<18} {statistics.median(times):8.3f} s per step (median of {len(times)})")
    paired = zip(seconds["plain StarGAN v2"], seconds["ours, StarGAN v2"], strict=True)
    print(f"plain / ours, StarGAN v2: {statistics.median(a / b for a, b in paired):.2f} times")


if __name__ == "__main__":
    main()
