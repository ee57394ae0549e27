"""The yardstick: a plain U-Net that regresses all missing modalities at once, from any set of the others.

No adversary, no style, no paper. A method that does not beat it in what it is for is not worth its cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from attcl_cli.data.sampling import CaseBatch, CaseSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods import losses
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.setting_fields import Decay, Positive, Rate, Share, Weight, setting
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import AllPresent

_LARGEST_GROUPS = 8  # of the group norms
_LEVELS = (
    1,
    2,
    4,
    8,
    8,
    1,
)  # monai's BasicUNet: five levels down, and the last one up; times the width

_OURS: Mapping[str, Any] = {
    "keep": "best",
    "ema_warm_up": True,
    "keep_background": True,
    "mirror": 0.5,
    "learning_rate_decay": 1.0,
}
_PATCHES: Mapping[str, Any] = {**_OURS, "crop": 128, "missing_targets": 0.75}
_BASE: Mapping[str, Any] = {**_PATCHES, "width": 64, "steps": 40_000}


class UnetSettings(Settings):
    """The settings of the U-Net. There is no publication: preset `paper` is `base`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {**_OURS, "width": 8, "steps": 3_000},
        "small": {**_PATCHES, "width": 32, "steps": 10_000},
        "base": _BASE,
        "paper": _BASE,
    }

    earlier: ClassVar[Mapping[str, Any]] = {**Settings.earlier, "warm_up": 50}

    learning_rate: Rate = setting(1e-3, "AdamW step.", section="optimiser")
    warm_up: int = setting(
        50, "Steps over which it first rises to its full value.", section="optimiser", ge=0
    )
    beta1: Decay = setting(0.9, "AdamW: decay of the mean of the gradients.", section="optimiser")
    beta2: Decay = setting(0.999, "AdamW: decay of the mean of their squares.", section="optimiser")
    weight_decay: Weight = setting(0.01, "AdamW: weight decay.", section="optimiser")
    ema_decay: Decay = setting(
        0.998, "Decay of the averaged weights that completion uses.", section="optimiser"
    )

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    missing_targets: Share = setting(
        0.0,
        "Share of targets drawn as often as training cases lack the modality; the others uniformly.",
    )
    unet_alone: Share = setting(0.4, "Share of slices that are made from a single modality.")
    unet_gamma: Weight = setting(
        0.15, "Spread of the random gamma of each source: exp(N(0, this)); 0: none."
    )
    unet_lambda_ssim: Weight = setting(
        0.6, "Weight of 1 - SSIM in the brain; the L1 has 1, at intensities in [-1, 1]."
    )


class Unet(Method):
    """A U-Net of monai's: N images and N flags in, N images out; what is not given is zero and has no influence."""

    settings_class = UnetSettings
    shown = ("g_l1", "g_ssim")
    settings: UnetSettings

    def __init__(self, settings: UnetSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        from monai.networks.nets.basic_unet import BasicUNet  # noqa: PLC0415 - takes seconds

        count = len(modalities)
        self.network = BasicUNet(
            spatial_dims=2,
            in_channels=2 * count,
            out_channels=count,
            features=[settings.width * times for times in _LEVELS],
            act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            norm=("group", {"num_groups": math.gcd(settings.width, _LARGEST_GROUPS)}),
            bias=False,
        )

    @classmethod
    def sources(cls, settings: UnetSettings, modalities: Sequence[str]) -> AllPresent:
        """See `Method`: every modality from all others that there are."""
        del settings
        return AllPresent(tuple(modalities))

    @property
    def stride(self) -> int:
        """See `Method`: the network halves four times."""
        return 16

    def sampler(self, store: SliceStore) -> CaseSampler:
        """See `Method`: whole cases, some of their modalities given, the others to be learned."""
        s = self.settings
        return CaseSampler(
            store,
            self.sources_for,
            batch_size=s.batch_size,
            seed=s.seed,
            mirror=s.mirror,
            missing_targets=s.missing_targets,
            leave_out=1.0,
            alone=s.unet_alone,
            gamma=s.unet_gamma,
            crop=s.crop,
            augment=s.augment,
            warp=s.warp,
        )

    def optimiser_of(self, network: str, parameters: list[nn.Parameter]) -> Optimizer:
        """See `Method`: AdamW."""
        s = self.settings
        rate = self.learning_rate_of(network)
        return AdamW(parameters, lr=rate, betas=(s.beta1, s.beta2), weight_decay=s.weight_decay)

    def training_step(self, batch: CaseBatch, step: int) -> dict[str, Tensor]:
        """Update the network once, on every modality that was left out and that the case has."""
        del step
        return self.update(self.parts(batch), ("network",), self._losses, path="g")

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`. A target's own image among the sources is not looked at."""
        del sample  # not styled: there is nothing to draw
        some = next(iter(sources.values()))
        made: dict[frozenset[str], Tensor] = {}
        images = {}
        for target in targets:
            used = frozenset(sources) - {target}
            if used not in made:
                given = torch.tensor([[name in used for name in self.modalities]]).to(some.device)
                stacked = torch.cat(
                    [sources.get(name, torch.zeros_like(some)) for name in self.modalities], dim=1
                )
                made[used] = self._translate(stacked, given.expand(len(some), -1))
            index = self.modalities.index(target)
            images[target] = made[used][:, index : index + 1]
        return images

    def _losses(self, part: CaseBatch) -> Losses:
        taught = part.taught
        fake = self._translate(part.images, part.sources)[taught][:, None].float()
        true = part.images[taught][:, None]
        # Parts have unequal numbers of targets: a part's mean counts by them.
        share = taught.float().mean() if part.taught_share is None else part.taught_share
        weight = len(true) / (taught.numel() * share)
        everywhere = torch.ones(len(true), dtype=torch.bool, device=true.device)
        return {
            "l1": (1.0, weight * losses.image_loss(fake, true, brain=True)),
            "ssim": (
                self.settings.unet_lambda_ssim,
                weight * losses.structure_loss(fake, true, everywhere),
            ),
        }

    def _translate(self, images: Tensor, given: Tensor) -> Tensor:
        """Return all modalities as the network sees them in those given: (B, N, H, W), (B, N) bool -> (B, N, H, W).

        Inside, background and what is not given are 0, as a convolution's padding is.
        """
        flags = given[:, :, None, None]
        seen = torch.where(flags, (images + 1) / 2, torch.zeros_like(images))
        planes = flags.expand_as(images).to(images.dtype)
        fake: Tensor = 2 * self.network(torch.cat([seen, planes], dim=1)) - 1
        return keep_background(fake, 2 * seen - 1) if self.settings.keep_background else fake
