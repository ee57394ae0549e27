"""U-GAT-IT (Kim et al., ICLR 2020): CycleGAN with attention by class activation maps, and with AdaLIN.

The losses that CycleGAN has not, and what is set. Leaves pairs, the cycle and synthesis to the frame in `pairwise`.

Weights and order of steps as in the published PyTorch code (znxlwm/UGATIT-pytorch, commit b8c4251; facts, no line of
it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from attcl_cli.data.couples import CoupleBatch
from attcl_cli.methods import losses
from attcl_cli.methods.base import Losses
from attcl_cli.methods.cyclegan import COMMON_ADAM, OURS
from attcl_cli.methods.networks.adalin import GammaInput, clip_shares, pooled_side
from attcl_cli.methods.networks.resnet import Pad
from attcl_cli.methods.networks.towers import follow_spectra
from attcl_cli.methods.networks.u_gat_it import (
    AttentiveDiscriminators,
    AttentiveGenerator,
    Judgement,
    Translation,
)
from attcl_cli.methods.pairwise import Pairwise, PairwiseSettings, Way
from attcl_cli.methods.setting_fields import Positive, Rate, Weight, setting

_PAIRS = 3  # of four modalities

_PUBLISHED: Mapping[str, Any] = {"steps": _PAIRS * 1_000_000, "jitter": 30 / 256, "mirror": 0.5}

# Attention by class activation maps was reported to harm greyscale images of equal shapes (issues 108 of the TensorFlow
# code and 57 of the PyTorch code), which is our case: a hundredth of its published weight.
_OURS: Mapping[str, Any] = {**OURS, "gamma_input": "pool8", "lambda_cam": 10.0}


class UGatItSettings(PairwiseSettings):
    """The settings of U-GAT-IT; the defaults are those of its published code."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {**_OURS, "width": 16, "resnet_blocks": 2, "steps": 9_000},
        "small": {**_OURS, "width": 32, "resnet_blocks": 3, "steps": 30_000},
        "base": {**_OURS, "steps": 120_000},
        "paper": {**_PUBLISHED, **COMMON_ADAM},
        "published": _PUBLISHED,
    }

    earlier: ClassVar[Mapping[str, Any]] = {**PairwiseSettings.earlier, "halving_edges": "zeros"}

    learning_rate: Rate = setting(1e-4, "Adam step of the networks.", section="optimiser")
    weight_decay: Weight = setting(1e-4, "Adam: weight decay.", section="optimiser")
    image_pool: int = setting(
        0, "Earlier fakes that a discriminator is shown half of the time.", fixed=True, ge=0
    )
    lambda_identity: Weight = setting(
        10.0, "L1 between a slice and what its own modality's generator makes of it."
    )
    lambda_discriminator: Weight = setting(1.0, "All losses of a discriminator.")

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    resnet_blocks: int = setting(
        4, "Residual blocks of a generator's encoder, and of its decoder.", fixed=True, ge=1, le=32
    )
    halving_edges: Pad = setting(
        "reflect",
        "What the generators' halvings see beyond the edges: their mirror image, as published, or zeros.",
        fixed=True,
    )
    gamma_input: GammaInput = setting(
        "full",
        "What gamma and beta of AdaLIN are read off: the whole feature map (full), the mean of each channel (light), "
        "or 8x8 means of each channel (pool8; ours).",
        fixed=True,
    )
    lambda_cam: Weight = setting(
        1000.0, "Cross-entropy of the generators' attention, which tells sources from targets."
    )


class UGatIt(Pairwise):
    """U-GAT-IT for every pair of the hub and another modality; each modality of a pair has two discriminators."""

    settings_class = UGatItSettings
    shown = ("g_gan", "g_cycle", "g_cam", "d_fake")
    discriminators_first = True
    settings: UGatItSettings

    def make_generator(self) -> nn.Module:
        """See `Pairwise`."""
        s = self.settings
        pooled = pooled_side(s.gamma_input, s.side // 4)
        return AttentiveGenerator(
            width=s.width, blocks=s.resnet_blocks, pooled=pooled, pad_halvings=s.halving_edges
        )

    def make_discriminator(self) -> nn.Module:
        """See `Pairwise`: a local and a global one."""
        return AttentiveDiscriminators(image_size=self.settings.side, width=self.settings.width)

    @property
    def stride(self) -> int:
        """See `Method`: a layer that reads the whole feature map expects images of the size of training."""
        return self.settings.side if self.settings.gamma_input == "full" else super().stride

    def optimiser_of(self, network: str, parameters: list[nn.Parameter]) -> Optimizer:
        """See `Method`: Adam; after each of its steps, rho goes back into [0, 1]."""
        optimiser, module = super().optimiser_of(network, parameters), self.get_submodule(network)
        optimiser.register_step_post_hook(lambda *_: clip_shares(module))
        return optimiser

    def training_step(self, batch: CoupleBatch, step: int) -> dict[str, Tensor]:
        """See `Pairwise`; the spectral norms of the discriminators follow their weights."""
        for x, y in (batch.pair, batch.pair[::-1]):
            follow_spectra(self.network("discriminator", x, y))
        return super().training_step(batch, step)

    def image_of(self, made: Translation) -> Tensor:
        """See `Pairwise`."""
        return made.image

    def logits_of(self, judged: Judgement) -> Sequence[Tensor]:
        """See `Pairwise`: the maps of both discriminators, and the logits of their attention."""
        return judged

    def way_losses(self, way: Way) -> Losses:
        """See `Pairwise`; and the cross-entropy of the attention, which tells sources from targets.

        It is a plain classifier, hence no least squares. The target is an unpaired slice, which the generator is given
        for the identity loss anyway.
        """
        source, target = way.made.logits.float(), way.made_of_own.logits.float()
        cam = losses.real_loss(source) + losses.fake_loss(target)
        return {**super().way_losses(way), "cam": (self.settings.lambda_cam, cam)}
