"""What methods share whose one generator is told the target modality by a label: settings, batches, synthesis.

Knows no network. Which losses teach it, and when, is left to the methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from attcl_cli.data.sampling import DomainBatch, DomainSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods import losses
from attcl_cli.methods.adversarial import Adversary, adversarial_loss, gradient_penalty
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.setting_fields import Decay, Positive, Share, Weight, setting
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import AnyOne

# What our presets add to the published set-up; true pairs teach as in AttCL-GAN's.
OURS: Mapping[str, Any] = {
    "keep": "best",
    "keep_background": True,
    "mirror": 0.5,
    "learning_rate_decay": 1.0,
    "lambda_pair": 100.0,
    "pair_targets": 0.75,
    "missing_targets": 0.75,
}

_PLACES = 1_000_003  # a prime: seeds of (seed, step) do not meet


class LabelledSettings(Settings):
    """The settings that such methods share."""

    mirror: Share = setting(0.5, "Share of slices mirrored left to right.", section="image")
    ema_decay: Decay = setting(
        0.0,
        "Decay of the averaged weights that completion uses; 0: no average.",
        section="optimiser",
    )

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    jitter: Share = setting(
        0.0,
        "Slices are enlarged by this share of their side, and a random square of the old size is cut out.",
    )
    critic_steps: Positive = setting(5, "Updates of the discriminator per update of the generator.")
    lambda_rec: Weight = setting(1.0, "L1 between a slice and its reconstruction.")
    lambda_gp: Weight = setting(1.0, "Gradient penalty of the discriminator.")
    lambda_pair: Weight = setting(
        0.0, "L1 to the true slice of the target modality, if the case has it (ours)."
    )
    pair_targets: Share = setting(0.0, "Share of slices whose case has the target (ours).")
    missing_targets: Share = setting(
        0.0,
        "Share of these targets drawn as often as training cases lack the modality; the others uniformly (ours).",
    )


@dataclass(frozen=True)
class LabelledPart:
    """Slices that go through the networks at once, and what was drawn for each."""

    batch: DomainBatch
    alpha: Tensor  # (B,) in [0, 1): where on the line from fake to real the gradient is penalised
    turn: (
        Tensor  # (B,) in [-1, 1): how far what the classifier sees is turned, of the largest angle
    )

    def __len__(self) -> int:
        return len(self.batch)


class LabelledMethod(Method):
    """One generator for all directions; a label says which modality. No styles: a slice has one translation."""

    adversary: ClassVar[Adversary]
    inference = ("generator",)
    settings: Any

    @classmethod
    def sources(cls, settings: LabelledSettings, modalities: Sequence[str]) -> AnyOne:
        """See `Method`: every modality from any other."""
        del settings
        return AnyOne(tuple(modalities))

    def sampler(self, store: SliceStore) -> DomainSampler:
        """See `Method`: slices with another modality each as the target, and other slices of that modality.

        A shuffle of the batch's own labels, as published, would ask for the source's modality in a third of the slices
        if modalities are missing (ratio 1).
        """
        s = self.settings
        return DomainSampler(
            store,
            batch_size=s.batch_size,
            seed=s.seed,
            mirror=s.mirror,
            pair_targets=s.pair_targets,
            missing_targets=s.missing_targets,
            crop=s.crop,
            augment=s.augment,
            warp=s.warp,
            others=True,
            jitter=s.jitter,
        )

    @abstractmethod
    def translate(self, x: Tensor, domains: Sequence[Tensor], *, shown: Tensor) -> list[Tensor]:
        """Translate slices into several modalities.

        Args:
            x: (B, 1, H, W) in [-1, 1].
            domains: indices of modalities, (B,) int64 each.
            shown: (B, 1, H, W), whose background the results keep (setting `keep_background`).

        Returns:
            (B, 1, H, W) per entry of `domains`.
        """

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`."""
        del sample  # not styled: there is nothing to draw
        (x,) = sources.values()
        domains = [
            torch.full((len(x),), self.modalities.index(target), device=x.device)
            for target in targets
        ]
        return dict(zip(targets, self.translate(x, domains, shown=x), strict=True))

    def labelled_parts(self, batch: DomainBatch, step: int) -> list[LabelledPart]:
        """Return the batch in parts that go through the networks at once, with the random numbers of the step.

        These are a function of (seed, step), drawn for the whole batch of all processes.
        """
        total = len(batch) * self.runtime.processes
        noise = torch.Generator().manual_seed(self.settings.seed * _PLACES + step)
        own = self.runtime.share(total)
        alpha, turn = (
            torch.rand(total, generator=noise)[own].to(batch.x_src.device) for _ in range(2)
        )
        size = self.runtime.micro_batch or len(batch)
        return [
            LabelledPart(batch.part(chosen), alpha[chosen], 2 * turn[chosen] - 1)
            for start in range(0, len(batch), size)
            for chosen in [slice(start, start + size)]
        ]

    def masked(self, fake: Tensor, shown: Tensor) -> Tensor:
        """Return a translation that keeps the background of what was shown, if the settings say so."""
        return keep_background(fake, shown) if self.settings.keep_background else fake

    def one_hot(self, domain: Tensor) -> Tensor:
        """Return 1 for the modality of each row and 0 for the others: (B,) int64 -> (B, N) float32."""
        return F.one_hot(domain, len(self.modalities)).float()

    def real(self, batch: DomainBatch) -> tuple[Tensor, Tensor]:
        """Return slices that D takes as examples of what is real, and their modalities.

        A source whose appearance was changed is none.
        """
        if self.settings.augment:
            return batch.x_ref, batch.y_ref
        return batch.x_src, batch.y_src

    def critic_terms(
        self,
        judge: Callable[[Tensor], Tensor],
        judged: tuple[Tensor, Tensor],
        images: tuple[Tensor, Tensor],
        alpha: Tensor,
    ) -> Losses:
        """Return what D learns of real and fake: both adversarial terms and the gradient penalty.

        Args:
            judge: slices -> logits of being real.
            judged: the logits of the real and of the fake slices.
            images: the real and the fake slices, (B, 1, H, W) each.
            alpha: (B,), see `gradient_penalty`.
        """
        weight = self.settings.lambda_gp
        terms: Losses = {
            "real": (1.0, adversarial_loss(judged[0], self.adversary, "real")),
            "fake": (1.0, adversarial_loss(judged[1], self.adversary, "fake")),
        }
        if weight > 0:
            terms["gp"] = (weight, gradient_penalty(judge, *images, alpha))
        return terms

    def pair_term(self, x_fake: Tensor, batch: DomainBatch) -> Losses:
        """Return the distance to the true slices, where the cases have them (ours); nothing if it has no weight."""
        weight = self.settings.lambda_pair
        if weight == 0:
            return {}
        pair = losses.paired_loss(
            x_fake.float(), batch.x_pair, batch.has_pair, share=batch.pair_share
        )
        return {"pair": (weight, pair)}
