"""MSA-GAN (Wang et al. 2024), re-specified: CycleGAN whose residual blocks are of several scales and attend.

No text or code of it could be read: what is known are its two modules, Res2Net and CBAM, and that it is a two-domain
system. Where they stand is ours. With both off this is CycleGAN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from attcl_cli.methods.cyclegan import CycleGan, CycleGanSettings
from attcl_cli.methods.networks.attention import CBAM
from attcl_cli.methods.networks.blocks import initialise_as_pix2pix
from attcl_cli.methods.networks.resnet import (
    PatchGan,
    Res2NetBlock,
    ResnetBlock,
    ResnetGenerator,
)
from attcl_cli.methods.setting_fields import Positive, setting


class MsaGanSettings(CycleGanSettings):
    """The settings of MSA-GAN; those of CycleGAN, and what stands in the residual blocks."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cyclegan": {"res2net": False, "cbam": False},
        "cyclegan-res2net": {"res2net": True, "cbam": False},
        "cyclegan-cbam": {"res2net": False, "cbam": True},
        "msa-gan": {"res2net": True, "cbam": True},
    }

    res2net: bool = setting(
        default=True,
        description="Residual blocks are of four scales (Res2Net), otherwise CycleGAN's.",
        fixed=True,
    )
    cbam: bool = setting(
        default=True,
        description="The branch of each residual block attends to channels and places (CBAM).",
        fixed=True,
    )
    discriminator_cbam: bool = setting(
        default=False,
        description="The discriminators attend, too, before their last convolution.",
        fixed=True,
    )
    res2net_width: Positive = setting(
        1, "Channels within a Res2Net block, as a multiple of those around it.", fixed=True
    )


class MsaGan(CycleGan):
    """MSA-GAN, re-specified, for every pair of the hub and another modality."""

    settings_class = MsaGanSettings
    settings: MsaGanSettings

    def make_generator(self) -> nn.Module:
        """See `Pairwise`."""
        s = self.settings
        generator = ResnetGenerator(width=s.width, blocks=s.resnet_blocks, block=self._block)
        initialise_as_pix2pix(generator)
        return generator

    def make_discriminator(self) -> nn.Module:
        """See `Pairwise`."""
        s = self.settings
        attend = CBAM if s.discriminator_cbam else None
        discriminator = PatchGan(image_size=s.side, width=s.width, attend=attend)
        initialise_as_pix2pix(discriminator)
        return discriminator

    def _block(self, channels: int) -> nn.Module:
        """Return a residual block of the generator's trunk."""
        s = self.settings
        attend = CBAM(channels) if s.cbam else None
        if not s.res2net:
            return ResnetBlock(channels, attend=attend)
        return Res2NetBlock(channels, inner=s.res2net_width * channels, attend=attend)
