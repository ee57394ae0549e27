"""AttGAN (He et al. 2019): an auto-encoder whose decoder is told the modality; networks, step, synthesis.

Facts: "AttGAN: Facial Attribute Editing by Only Changing What You Want", IEEE TIP 28(11), 2019 (arXiv 1711.10678), and
the published code (LynnHo/AttGAN-Tensorflow, commit f1231fc; facts, no line of it). What is ours stands in
docs/methods/10-attgan.md. Leaves batches and synthesis to `labelled`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import losses
from attcl_cli.methods.adversarial import adversarial_loss
from attcl_cli.methods.base import Losses
from attcl_cli.methods.labelled import OURS, LabelledMethod, LabelledPart, LabelledSettings
from attcl_cli.methods.networks.attgan import AttganDiscriminator, AttganGenerator, Head
from attcl_cli.methods.setting_fields import Positive, Rate, Share, Weight, setting
from attcl_cli.methods.updates import frozen

_LEAST_SIDE = 2  # pixels of the deepest features: an instance norm of a single one is 0

# With one D step per G step, each tenth step would be a step of G, and `stats.jsonl` would never show D.
_OURS: Mapping[str, Any] = {
    **OURS,
    "epochs": 0,
    "batch_size": 16,
    "beta1": 0.5,
    "critic_steps": 2,
    "jitter": 0.0,
}


class AttganSettings(LabelledSettings):
    """The settings of AttGAN; the defaults are the published ones, with the Adam of the AttCL-GAN paper."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"width": 16, "max_width": 256, "downs": 4, "steps": 3_000, **_OURS, "learning_rate": 1e-3},
        "small": {"width": 32, "max_width": 512, "steps": 20_000, **_OURS, "learning_rate": 3e-4},
        "base": {"steps": 40_000, **_OURS, "learning_rate": 2e-4},
        "paper": {},
        "published": {"learning_rate": 2e-4, "beta1": 0.5, "beta2": 0.999, "weight_decay": 0.0},
    }  # fmt: skip

    earlier: ClassVar[Mapping[str, Any]] = {**LabelledSettings.earlier, "norm_epsilon": 1e-5}

    epochs: int = setting(
        60,
        "Passes over the training slices, which set steps. 0: steps counts.",
        section="run",
        ge=0,
    )
    batch_size: Positive = setting(32, "Slices per iteration.", section="run")
    learning_rate_decay: Share = setting(
        0.5,
        "Share of the steps, the last ones, over which all Adam steps fall linearly to 0.",
        section="optimiser",
    )

    max_width: Positive = setting(1024, "Channels never grow beyond this.", fixed=True)
    downs: int = setting(
        5, "Halvings of the encoder and of the discriminator.", fixed=True, ge=2, le=7
    )
    head: Head = setting(
        "pooled",
        "What the discriminator's two heads see: 4x4 means of the features, or all of them (flat, as published).",
        fixed=True,
    )
    norm_epsilon: Rate = setting(
        1e-3, "In the root of a batch norm's variance; TensorFlow-Slim's, as published.", fixed=True
    )
    jitter: Share = setting(
        15 / 128,
        "Slices are enlarged by this share of their side, and a random square of the old size is cut out.",
    )
    lambda_rec: Weight = setting(100.0, "L1 between a slice and its reconstruction.")
    lambda_gp: Weight = setting(10.0, "Gradient penalty of the discriminator.")
    lambda_cls: Weight = setting(10.0, "Classification of the generator's slices.")
    lambda_cls_real: Weight = setting(1.0, "Classification of real slices, by which it is learned.")

    @model_validator(mode="after")
    def _require_fitting_depth(self) -> AttganSettings:
        if self.side >> self.downs < _LEAST_SIDE:
            most = (self.side // _LEAST_SIDE).bit_length() - 1
            raise ValueError(
                f"downs: {self.downs} with slices of {self.side} pixels, expected at most {most}"
            )
        return self


class Attgan(LabelledMethod):
    """An encoder, a decoder that is told the modality, and a discriminator that also names it."""

    settings_class = AttganSettings
    adversary = "wgan"
    shown = ("g_adv", "g_rec", "g_cls")
    settings: AttganSettings

    def __init__(self, settings: AttganSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        s = settings
        shape = {"width": s.width, "max_width": s.max_width, "downs": s.downs}
        self.generator = AttganGenerator(
            **shape, domains=len(modalities), norm_epsilon=s.norm_epsilon
        )
        self.discriminator = AttganDiscriminator(
            image_size=s.side, **shape, domains=len(modalities), head=s.head
        )

    @property
    def stride(self) -> int:
        """See `Method`."""
        return int(2**self.settings.downs)

    def training_step(self, batch: DomainBatch, step: int) -> dict[str, Tensor]:
        """Update D, or in the last of `critic_steps` + 1 steps G: each on a batch of its own, as published."""
        parts = self.labelled_parts(batch, step)
        if (step + 1) % (self.settings.critic_steps + 1):
            return self.update(parts, ("discriminator",), self._discriminator_losses, path="d")
        with frozen(self.discriminator):
            return self.update(parts, ("generator",), self._generator_losses, path="g")

    def translate(self, x: Tensor, domains: Sequence[Tensor], *, shown: Tensor) -> list[Tensor]:
        """See `LabelledMethod`: a slice is encoded once, whatever the number of modalities."""
        latent = self.generator.encode(x)
        return [
            self.masked(self.generator.decode(latent, 2 * self.one_hot(domain) - 1), shown)
            for domain in domains
        ]

    def _discriminator_losses(self, part: LabelledPart) -> Losses:
        """Return the losses of D and of its classifier, which learns from real slices alone."""
        batch = part.batch
        x_real, y_real = self.real(batch)
        with torch.no_grad():
            (x_fake,) = self.translate(batch.x_src, [batch.y_ref], shown=batch.x_src)
        real, classes = self.discriminator(x_real)
        d = self.discriminator
        terms = self.critic_terms(d.judged, (real, d.judged(x_fake)), (x_real, x_fake), part.alpha)
        return terms | {
            "cls": (self.settings.lambda_cls_real, self._classification(classes, y_real))
        }

    def _generator_losses(self, part: LabelledPart) -> Losses:
        """Return the losses of G: pass as real, show the target modality, give the source back."""
        s, batch = self.settings, part.batch
        x_fake, x_rec = self.translate(batch.x_src, [batch.y_ref, batch.y_src], shown=batch.x_src)
        logits, classes = self.discriminator(x_fake)
        return {
            "adv": (1.0, adversarial_loss(logits, self.adversary, "fooled")),
            "rec": (s.lambda_rec, losses.cycle_loss(batch.x_src, x_rec.float())),
            "cls": (s.lambda_cls, self._classification(classes, batch.y_ref)),
            **self.pair_term(x_fake, batch),
        }

    def _classification(self, logits: Tensor, domain: Tensor) -> Tensor:
        """Return the binary cross-entropy, mean over slices and modalities: (B, N), (B,) -> ()."""
        return F.binary_cross_entropy_with_logits(logits.float(), self.one_hot(domain))
