"""Towers of strided 4x4 convolutions, which discriminators, classifiers and encoders begin with, and spectral norm.

Knows shapes, not purposes. Heads, and what the first weights are, are left to the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from attcl_cli.methods.networks.blocks import InstanceNorm

TowerNorm = Literal["none", "instance", "instance-affine", "batch"]

_KERNEL = 4
_FIRST_ITERATIONS = 15  # of the power method, as torch's own spectral norm begins


class StridedTower(nn.Sequential):
    """A stack of stages, each a 4x4 convolution, a norm and LeakyReLU; a stride of 2 halves height and width.

    `tower[i]` is one stage. The weights are torch's defaults: initialise them before `add_spectral_norm`.

    Args:
        inputs: channels of the image.
        channels: channels after each stage.
        strides: of each stage, 1 or 2; None: 2 everywhere. A stage of stride 1 loses one row and one column.
        norm: what stands between convolution and activation.
        norm_first: whether the first stage has that norm, too (PatchGAN's has not).
        slope: of LeakyReLU.
        padding_mode: how convolutions pad by one pixel (`nn.Conv2d`).
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        norm: TowerNorm = "none",
        norm_first: bool = True,
        slope: float = 0.2,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
    ) -> None:
        stages = []
        steps = strides if strides is not None else [2] * len(channels)
        for index, ((before, after), stride) in enumerate(
            zip(pairwise([inputs, *channels]), steps, strict=True)
        ):
            kind = norm if index or norm_first else "none"
            conv = nn.Conv2d(
                before,
                after,
                _KERNEL,
                stride=stride,
                padding=1,
                padding_mode=padding_mode,
                bias=kind in ("none", "instance"),  # an affine norm has its own
            )
            activation = nn.LeakyReLU(slope)
            norms = [] if kind == "none" else [norm_layer(kind, after)]
            stages.append(nn.Sequential(conv, *norms, activation))
        super().__init__(*stages)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return what each stage makes of (B, inputs, H, W): (B, channels[i], H / 2^i, W / 2^i), from the first on."""
        features = []
        for stage in self:
            x = stage(x)
            features.append(x)
        return features


def norm_layer(kind: TowerNorm, channels: int) -> nn.Module:
    """Return a norm of that many channels; instance norms look at the image alone, in training and afterwards."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return (
        nn.Identity()
        if kind == "none"
        else InstanceNorm(channels, affine=kind == "instance-affine")
    )


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, which a power method follows (Miyato et al. 2018).

    torch's own iterates in every forward pass, so that its result would depend on `micro_batch`, and computes under
    autocast. This one iterates when `follow_spectra` asks for it, and in float32.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("left", F.normalize(weight.new_empty(rows).normal_(), dim=0))
        self.register_buffer("right", F.normalize(weight.new_empty(columns).normal_(), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """Take one step of the power method: weight (K, C, h, w), read as a matrix of K rows."""
        matrix = weight.flatten(1)
        self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
        self.left.copy_(F.normalize(matrix @ self.right, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight divided by its norm; gradients pass through both."""
        with _full_precision(weight.device.type):
            # Clones, for a later iteration must not change what this pass' gradients need.
            sigma = self.left.clone() @ (weight.flatten(1) @ self.right.clone())
            return weight / sigma


def _full_precision(device: str) -> AbstractContextManager[object]:
    """Return a context without autocast; on a device that has none (`meta`), one without effect."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def add_spectral_norm(module: nn.Module) -> None:
    """Give every convolution and linear layer of a module spectral norm; call it after they are initialised."""
    for layer in list(module.modules()):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))


def follow_spectra(module: nn.Module) -> None:
    """Take one step of the power method in every spectral norm of a module: once per training step, before its use."""
    for layer in list(module.modules()):
        if isinstance(layer, parametrize.ParametrizationList):
            for norm in layer:
                if isinstance(norm, SpectralNorm):
                    norm.iterate(layer.original)
