"""CycleGAN (Zhu et al. 2017): two generators and two PatchGANs per pair of modalities, unpaired slices, a cycle.

The networks and what is set. Leaves losses, pairs and synthesis to the frame in `pairwise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from attcl_cli.methods.networks.blocks import initialise_as_pix2pix
from attcl_cli.methods.networks.resnet import PatchGan, ResnetGenerator
from attcl_cli.methods.pairwise import Pairwise, PairwiseSettings
from attcl_cli.methods.setting_fields import Positive, setting

PUBLISHED: Mapping[str, Any] = {"epochs": 200, "jitter": 30 / 256, "mirror": 0.5}
"""Length and augmentation of the CycleGAN code: 100 epochs, 100 of falling rates; from 286 pixels, 256 are cut out."""

COMMON_ADAM: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "beta1": 0.0,
    "beta2": 0.99,
    "weight_decay": 1e-4,
}
"""What the AttCL-GAN paper says of the optimiser of all systems that it compares (its Section 4.4)."""

OURS: Mapping[str, Any] = {
    "schedule": "interleaved",
    "keep": "best",
    "keep_background": True,
    "mirror": 0.5,
    "batch_size": 4,
    "lambda_pair": 100.0,
}
"""What our sizes change: a run that is stopped, shortened or validated has all pairs at any time; true pairs teach."""


class CycleGanSettings(PairwiseSettings):
    """The settings of CycleGAN; the defaults are those of its published code."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {**OURS, "width": 16, "resnet_blocks": 4, "steps": 9_000},
        "small": {**OURS, "width": 32, "resnet_blocks": 6, "steps": 30_000},
        "base": {**OURS, "steps": 120_000},
        "paper": {**PUBLISHED, **COMMON_ADAM},
        "published": PUBLISHED,
    }

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    resnet_blocks: int = setting(9, "Residual blocks of a generator.", fixed=True, ge=1, le=32)


class CycleGan(Pairwise):
    """CycleGAN for every pair of the hub and another modality."""

    settings_class = CycleGanSettings
    settings: CycleGanSettings

    def make_generator(self) -> nn.Module:
        """See `Pairwise`."""
        s = self.settings
        generator = ResnetGenerator(width=s.width, blocks=s.resnet_blocks)
        initialise_as_pix2pix(generator)
        return generator

    def make_discriminator(self) -> nn.Module:
        """See `Pairwise`."""
        discriminator = PatchGan(image_size=self.settings.side, width=self.settings.width)
        initialise_as_pix2pix(discriminator)
        return discriminator
