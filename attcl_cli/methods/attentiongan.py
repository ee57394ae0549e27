"""AttentionGAN (Tang et al., TNNLS 2021): CycleGAN with attention maps that say what is generated and what is copied.

The networks and what is set: scheme II. Leaves losses, pairs and synthesis to the frame in `pairwise`.

Numbers as in the published code (Ha0Tang/AttentionGAN, commit 45da496; facts, no line of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from attcl_cli.methods.base import Losses
from attcl_cli.methods.cyclegan import COMMON_ADAM, OURS, PUBLISHED
from attcl_cli.methods.networks.attention_maps import AttentionMapGenerator, Composition
from attcl_cli.methods.networks.blocks import initialise_as_pix2pix
from attcl_cli.methods.networks.resnet import PatchGan
from attcl_cli.methods.pairwise import Pairwise, PairwiseSettings, Way
from attcl_cli.methods.setting_fields import Positive, setting


class AttentionGanSettings(PairwiseSettings):
    """The settings of AttentionGAN; the defaults are those of its published code."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {**OURS, "width": 16, "resnet_blocks": 4, "attention_maps": 5, "steps": 9_000},
        "small": {**OURS, "width": 32, "resnet_blocks": 6, "steps": 30_000},
        "base": {**OURS, "steps": 120_000},
        "paper": {**PUBLISHED, **COMMON_ADAM},
        "published": PUBLISHED,
    }

    batch_size: Positive = setting(4, "Slices of each side per iteration.", section="run")

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    resnet_blocks: int = setting(9, "Residual blocks of a generator.", fixed=True, ge=1, le=32)
    attention_maps: int = setting(
        10,
        "Attention maps of a generator; the last one is for the source, the others for a generated image each.",
        fixed=True,
        ge=2,
        le=64,
    )


class AttentionGan(Pairwise):
    """AttentionGAN for every pair of the hub and another modality."""

    settings_class = AttentionGanSettings
    shown = ("g_gan", "g_cycle", "g_copied", "d_fake")
    settings: AttentionGanSettings

    def make_generator(self) -> nn.Module:
        """See `Pairwise`."""
        s = self.settings
        generator = AttentionMapGenerator(
            width=s.width, blocks=s.resnet_blocks, maps=s.attention_maps
        )
        initialise_as_pix2pix(generator)
        return generator

    def make_discriminator(self) -> nn.Module:
        """See `Pairwise`."""
        discriminator = PatchGan(image_size=self.settings.side, width=self.settings.width)
        initialise_as_pix2pix(discriminator)
        return discriminator

    def image_of(self, made: Composition) -> Tensor:
        """See `Pairwise`."""
        return made.image

    def way_losses(self, way: Way) -> Losses:
        """See `Pairwise`; also watches how much of the brain is copied (weight 0; mean of both directions).

        Near 1 the translation keeps the contrast of its source.
        """
        copied = copied_share(way.made, way.x)
        return {**super().way_losses(way), "copied": (0.0, copied / 2)}


def copied_share(made: Composition, x: Tensor) -> Tensor:
    """Return the mean of the background map in the brain of each slice, mean over the slices; without a gradient.

    Args:
        made: a translation.
        x: (B, 1, H, W), its sources, in [-1, 1], background -1.
    """
    brain = (x > -1).float()
    area = brain.sum(dim=(1, 2, 3)).clamp_min(1)
    return ((made.background.detach() * brain).sum(dim=(1, 2, 3)) / area).mean()
