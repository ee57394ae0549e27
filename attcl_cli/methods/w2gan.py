"""W2GAN (Yang et al. 2023), re-specified: StarGAN v2 with wavelet details and importance weights.

Nothing of the method is public but its title and three sentences of the AttCL-GAN paper: what is made of them here is
ours (docs/methods/12-w2gan.md). Leaves StarGAN v2 to `attcl_gan`, wavelets and gates to `networks.wavelets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.attcl_gan_settings import OFF, QUICK, TINY, AclKind, AttclGanSettings
from attcl_cli.methods.base import Losses
from attcl_cli.methods.networks.generator import Features
from attcl_cli.methods.networks.wavelets import haar, weights_of_cycle
from attcl_cli.methods.setting_fields import Positive, Weight, setting

_SKIP = (1, 2)  # half and a quarter of the slice: 128 and 64 pixels of 256
_PLAIN: Mapping[str, Any] = {"wavelet_layers": (), "weighted_cycle": False, "lambda_wav": 0.0}


class W2GanSettings(AttclGanSettings):
    """The settings of W2GAN: StarGAN v2's, and three of its own. AttCL-GAN's switches are there, and off."""

    # What is published of W2GAN names no number: `published` has StarGAN v2's, which are those of `paper`, too.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": TINY,
        "small": {"width": 24, "max_width": 192, "mapping_width": 128, "steps": 20_000, **QUICK},
        "base": {"width": 40, "max_width": 320, "mapping_width": 128, **QUICK},
        "paper": {},
        "published": {},
    }

    # What each of the three parts brings.
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "w2gan": {**OFF, "wavelet_layers": _SKIP, "weighted_cycle": True, "lambda_wav": 1.0},
        "stargan-v2": {**OFF, **_PLAIN},
        "wavelet-skip": {**OFF, **_PLAIN, "wavelet_layers": _SKIP},
        "wavelet-skip+cycle": {
            **OFF,
            "wavelet_layers": _SKIP,
            "weighted_cycle": True,
            "lambda_wav": 0.0,
        },
        "wavelet-loss": {**OFF, **_PLAIN, "lambda_wav": 1.0},
    }

    acl: AclKind = setting(
        "none", "Contrastive learning: which patches are compared (AttCL-GAN's).", fixed=True
    )
    att_adain: bool = setting(
        default=False,
        description="Add the refined encoder features to the decoder's (AttCL-GAN's).",
        fixed=True,
    )
    scd: bool = setting(
        default=False,
        description="Push style codes of different modalities apart (AttCL-GAN's).",
    )
    wavelet_layers: tuple[Positive, ...] = setting(
        _SKIP,
        "Encoder layers whose wavelet details, weighed by place, reach the decoder; none: no details.",
        fixed=True,
    )
    weighted_cycle: bool = setting(
        default=True,
        description="Places weigh in the cycle loss as the details of the first of these layers do.",
    )
    lambda_wav: Weight = setting(
        1.0, "L1 between the wavelet details of a slice and of its reconstruction."
    )

    @model_validator(mode="after")
    def _require_fitting_wavelets(self) -> W2GanSettings:
        if self.generator != "stargan-v2":
            raise ValueError(
                f"generator: {self.generator}, expected stargan-v2: its decoder takes the wavelets"
            )
        unfit = [layer for layer in self.wavelet_layers if layer >= self.downs]
        if unfit:
            raise ValueError(
                f"wavelet_layers: {unfit}, expected layers from 1 to downs - 1 ({self.downs - 1})"
            )
        if len(set(self.wavelet_layers)) < len(self.wavelet_layers):
            raise ValueError(
                f"wavelet_layers: {list(self.wavelet_layers)}, expected each layer once"
            )
        if self.weighted_cycle and not self.wavelet_layers:
            raise ValueError(
                "weighted_cycle: true, expected false without wavelet_layers, whose weights it takes"
            )
        return self


class W2Gan(AttclGan):
    """StarGAN v2 whose decoder gets the source's high frequencies where a learned gate lets them through."""

    settings_class = W2GanSettings
    shown = ("g_latent_adv", "g_reference_cyc", "g_reference_wav")
    settings: W2GanSettings

    @property
    def wavelet_layers(self) -> tuple[int, ...]:
        """See `AttclGan`."""
        return self.settings.wavelet_layers

    def cycle_losses(self, x_org: Tensor, x_rec: Tensor, features: Features) -> Losses:
        """See `AttclGan`: places weigh in the cycle loss, and the details are compared, too."""
        s = self.settings
        terms: Losses = {}
        if s.weighted_cycle:
            importance = features.importance[min(s.wavelet_layers)]
            terms["cyc"] = (s.lambda_cyc, weighted_cycle_loss(x_org, x_rec, importance))
        else:
            terms |= super().cycle_losses(x_org, x_rec, features)
        if s.lambda_wav > 0:
            terms["wav"] = (s.lambda_wav, wavelet_loss(x_org, x_rec))
        return terms


def weighted_cycle_loss(x: Tensor, x_rec: Tensor, importance: Tensor) -> Tensor:
    """Return mean(w |x - x_rec|), where w is the importance, of mean 1 in each image and without a gradient (ours).

    Args:
        x: (B, 1, H, W).
        x_rec: (B, 1, H, W).
        importance: (B, 1, h, w), at least 0, H and W multiples of h and w.
    """
    height, width = x.shape[2:]
    return (weights_of_cycle(importance, (height, width)) * (x - x_rec).abs()).mean()


def wavelet_loss(x: Tensor, x_rec: Tensor) -> Tensor:
    """Return the L1 between the Haar details of a slice and of its reconstruction, summed over three bands (ours).

    Never between a slice and its translation: an edge that is bright to dark in T1 is dark to bright in T2.

    Args:
        x: (B, 1, H, W), H and W even.
        x_rec: (B, 1, H, W).
    """
    # The transform is linear: the bands of the difference are the differences of the bands.
    return torch.stack([band.abs().mean() for band in haar(x - x_rec).details]).sum()
