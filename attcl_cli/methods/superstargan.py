"""SuperstarGAN (Ko, Yeom, Lee 2023): StarGAN with a classifier of its own; networks, step, synthesis.

Facts: "SuperstarGAN: Generative adversarial networks for image-to-image translation in large-scale domains", Neural
Networks 162 (2023) 330-339, and the published code (KKhyeok/SuperstarGAN, commit cb86be0; facts, no line of it). What
is ours stands in docs/methods/11-superstargan.md. Leaves batches and synthesis to `labelled`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from attcl_cli.data.augment import turned
from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import losses
from attcl_cli.methods.adversarial import adversarial_loss
from attcl_cli.methods.base import Losses
from attcl_cli.methods.labelled import OURS, LabelledMethod, LabelledPart, LabelledSettings
from attcl_cli.methods.networks.superstargan import (
    SuperstarClassifier,
    SuperstarDiscriminator,
    SuperstarGenerator,
)
from attcl_cli.methods.networks.towers import follow_spectra
from attcl_cli.methods.setting_fields import Decay, Positive, Rate, Weight, setting
from attcl_cli.methods.updates import frozen

_TURN = 20.0  # degrees, the largest angle of the classifier's slices

# Whole slices: in a square, or in a box of another size, the norms of G would see other statistics, and the zeros at
# the edges, which carry the label, would be elsewhere.
_OURS: Mapping[str, Any] = {
    **OURS,
    "crop": 0,
    "batch_size": 8,
    "beta1": 0.5,
    "beta1_classifier": 0.9,
    "critic_steps": 1,
}


def _rate(rate: float) -> Mapping[str, float]:
    return {"learning_rate": rate, "learning_rate_classifier": rate}


class SuperstarganSettings(LabelledSettings):
    """The settings of SuperstarGAN; the defaults are the published ones, with the Adam of the AttCL-GAN paper."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"width": 16, "steps": 3_000, **_OURS, **_rate(1e-3)},
        "small": {"width": 24, "steps": 20_000, **_OURS, **_rate(3e-4), "batch_size": 4},
        "base": {"width": 48, "steps": 40_000, **_OURS, **_rate(2e-4)},
        "paper": {},
        "published": {
            "beta2": 0.999,
            "weight_decay": 0.0,
            "learning_rate_classifier": 1.2e-4,
            "beta1_classifier": 0.9,
            "beta2_classifier": 0.999,
        },
    }

    steps: Positive = setting(1_000_000, "Training iterations.", section="run")
    batch_size: Positive = setting(16, "Slices per iteration.", section="run")
    learning_rate_classifier: Rate = setting(1e-4, "Adam step of the classifier.")
    beta1_classifier: Decay = setting(
        0.0, "Adam of the classifier: decay of the mean of the gradients."
    )
    beta2_classifier: Decay = setting(
        0.99, "Adam of the classifier: decay of the mean of their squares."
    )
    blocks: Positive = setting(6, "Residual blocks of the generator.", fixed=True)
    lambda_rec: Weight = setting(1.3, "L1 between a slice and its reconstruction (the cycle).")
    lambda_cls: Weight = setting(0.25, "Classification of the generator's slices.")


class Superstargan(LabelledMethod):
    """A generator that sees the label beside the slice, a discriminator, a classifier taught by real slices alone."""

    settings_class = SuperstarganSettings
    adversary = "hinge"
    shown = ("g_adv", "g_rec", "g_cls")
    settings: SuperstarganSettings

    def __init__(self, settings: SuperstarganSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        s, domains = settings, len(modalities)
        self.generator = SuperstarGenerator(width=s.width, blocks=s.blocks, domains=domains)
        self.discriminator = SuperstarDiscriminator(image_size=s.side, width=s.width)
        self.classifier = SuperstarClassifier(image_size=s.side, width=s.width, domains=domains)

    @property
    def stride(self) -> int:
        """See `Method`: the generator halves twice."""
        return 4

    def learning_rate_of(self, network: str) -> float:
        """See `Method`: the classifier has its own step."""
        s = self.settings
        return s.learning_rate_classifier if network == "classifier" else s.learning_rate

    def optimiser_of(self, network: str, parameters: list[nn.Parameter]) -> Optimizer:
        """See `Method`: the classifier has its own decays."""
        if network != "classifier":
            return super().optimiser_of(network, parameters)
        s = self.settings
        return Adam(
            parameters,
            lr=self.learning_rate_of(network),
            betas=(s.beta1_classifier, s.beta2_classifier),
            weight_decay=s.weight_decay,
        )

    def training_step(self, batch: DomainBatch, step: int) -> dict[str, Tensor]:
        """Update C and D, and in every `critic_steps`-th step G."""
        parts = self.labelled_parts(batch, step)
        follow_spectra(self.discriminator)
        logged = self.update(parts, ("classifier",), self._classifier_losses, path="c")
        logged |= self.update(parts, ("discriminator",), self._discriminator_losses, path="d")
        if (step + 1) % self.settings.critic_steps == 0:
            with frozen(self.discriminator), frozen(self.classifier):
                logged |= self.update(parts, ("generator",), self._generator_losses, path="g")
        return logged

    def translate(self, x: Tensor, domains: Sequence[Tensor], *, shown: Tensor) -> list[Tensor]:
        """See `LabelledMethod`."""
        return [self.masked(self.generator(x, self.one_hot(domain)), shown) for domain in domains]

    def _classifier_losses(self, part: LabelledPart) -> Losses:
        """Return the loss of C on turned real slices, other ones than those to translate, and its accuracy."""
        batch = part.batch
        logits = self.classifier(turned(batch.x_ref, _TURN * part.turn)).float()
        accuracy = (logits.argmax(dim=1) == batch.y_ref).float().mean()
        return {"cls": (1.0, F.cross_entropy(logits, batch.y_ref)), "accuracy": (0.0, accuracy)}

    def _discriminator_losses(self, part: LabelledPart) -> Losses:
        """Return the losses of D, and its accuracy; near 1 it has won, and teaches G little."""
        batch, d = part.batch, self.discriminator
        x_real, _ = self.real(batch)
        with torch.no_grad():
            (x_fake,) = self.translate(batch.x_src, [batch.y_ref], shown=batch.x_src)
        real, fake = d(x_real), d(x_fake)
        terms = self.critic_terms(d, (real, fake), (x_real, x_fake), part.alpha)
        accuracy = torch.cat([real > 0, fake < 0]).float().mean()
        return terms | {"accuracy": (0.0, accuracy)}

    def _generator_losses(self, part: LabelledPart) -> Losses:
        """Return the losses of G: pass as real, show the target modality, give the source back on the way back."""
        s, batch = self.settings, part.batch
        x = batch.x_src
        (x_fake,) = self.translate(x, [batch.y_ref], shown=x)
        (x_rec,) = self.translate(x_fake, [batch.y_src], shown=x)
        logits, classes = self.discriminator(x_fake), self.classifier(x_fake).float()
        return {
            "adv": (1.0, adversarial_loss(logits, self.adversary, "fooled")),
            "rec": (s.lambda_rec, losses.cycle_loss(x, x_rec.float())),
            "cls": (s.lambda_cls, F.cross_entropy(classes, batch.y_ref)),
            **self.pair_term(x_fake, batch),
        }
