"""PLAVE (Lim, Kang, Kam 2024) and its ancestors: many sources to one target; step, synthesis, segmentation.

Follows docs/methods/6-plave.md. With `plave_target` a dedicated model, which needs all the other modalities; without, a
general one that makes any modality from any others. Leaves the loop, the averaging and all files to `training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attcl_cli.data.sampling import CaseBatch, CaseSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import AttclError, UsageError, nearest
from attcl_cli.methods import losses
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.networks.discriminator import (
    BatchNormPatchDiscriminator,
    FeatureDiscriminator,
    PatchDiscriminator,
)
from attcl_cli.methods.networks.fusion import (
    AutoEncoder,
    Decoder,
    Design,
    Fused,
    FusionGenerator,
)
from attcl_cli.methods.networks.patches import PatchHead
from attcl_cli.methods.plave_settings import PlaveSettings
from attcl_cli.methods.sources import AllPresent, Exactly, SourceRule
from attcl_cli.methods.updates import contrast, frozen

CLASSES = 4  # background, necrosis, oedema, enhancing tumour


class Plave(Method):
    """A branch per source, fused, decoded into the target and its segmentation."""

    settings_class = PlaveSettings
    learns_labels = True
    shown = ("a_image", "g_image", "g_adv", "g_seg")
    inference: tuple[str, ...] = ("generator", "segmenter")
    settings: PlaveSettings

    def __init__(self, settings: PlaveSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        s = settings
        # The modalities that have a branch, by their index; a dedicated model's target has none.
        self._slots = [i for i, name in enumerate(modalities) if name != s.plave_target]
        count = len(modalities)
        design = Design(
            width=s.width,
            max_width=s.max_width,
            side=s.side,
            norm=s.plave_norm,
            style_dim=s.style_dim,
            blocks=s.plave_blocks,
            excitation=s.plave_excitation,
            fusion=s.plave_fusion,
            contrast=s.plave_contrast,
            skips=s.plave_skips,
            autoencoder_blocks=s.plave_autoencoder_blocks,
        )
        self.generator = FusionGenerator(design, slots=len(self._slots), targets=count)
        if s.plave_segmentation:
            self.segmenter = Decoder(design, outputs=CLASSES)
        else:
            self.inference = ("generator",)
        one = s.plave_norm == "batch"  # one target, so one map of logits
        targets = 1 if one else count
        self.discriminator: PatchDiscriminator | FeatureDiscriminator
        if s.plave_discriminator == "autoencoder":
            self.discriminator = FeatureDiscriminator(design.channels[-1], targets=targets)
        else:
            self.discriminator = (BatchNormPatchDiscriminator if one else PatchDiscriminator)(
                image_size=s.side,
                width=s.width,
                max_width=s.max_width,
                sources=len(self._slots),
                targets=targets,
            )
        self.autoencoder = AutoEncoder(design, targets=count)
        self.heads = nn.ModuleList(PatchHead(c) for c in self.generator.compared_channels)

    @classmethod
    def sources(cls, settings: PlaveSettings, modalities: Sequence[str]) -> SourceRule:
        """See `Method`: a dedicated model makes one modality and needs all the others."""
        target = settings.plave_target
        if not target and settings.plave_norm == "batch":
            example = "t1ce" if "t1ce" in modalities else modalities[-1]
            raise UsageError(
                f"setting plave_target: '', expected one of {', '.join(modalities)}: with batch norm, as published, "
                "a model makes one modality",
                f"--set plave_target={example}, or a model of any modality: --preset base",
                code="target-not-named",
            )
        if not target:
            return AllPresent(tuple(modalities))
        if target not in modalities:
            known = ", ".join(modalities)
            raise UsageError(
                f"setting plave_target: {target!r}, expected one of {known}, or '' for a general model",
                nearest(target, modalities),
                code="unknown-target",
            )
        return Exactly({target: tuple(name for name in modalities if name != target)})

    @property
    def stride(self) -> int:
        """See `Method`: the branches halve twice; scores of whole maps want images of the size of training."""
        return self.settings.side if self.settings.plave_fusion == "modality" else 4

    @property
    def phases(self) -> tuple[float, ...]:
        """See `Method`: the auto-encoder, the image terms alone, at half and then at full size, then all losses."""
        s = self.settings
        ends = (s.plave_pretraining + share for share in (0.0, s.plave_coarse, s.plave_supervised))
        return tuple(dict.fromkeys(end for end in ends if 0 < end < 1))

    @classmethod
    def phases_in_words(cls, settings: PlaveSettings) -> tuple[tuple[float, str], ...]:
        """See `Method`: the auto-encoder, the image terms alone, at half and then at full size, then all losses."""
        first, coarse, second = (
            settings.plave_pretraining,
            settings.plave_coarse,
            settings.plave_supervised,
        )
        alone = "the image losses alone teach the generator"
        begins = {
            0.0: "the self-representation network learns",
            first: f"{alone}, at half the resolution" if coarse else alone,
            first + coarse: f"{alone}, at full resolution" if coarse else alone,
            first + second: "the adversary and the other losses join"
            if second
            else "the generator learns with all losses",
        }
        return tuple(begins.items()) if first or second else ()

    def sampler(self, store: SliceStore) -> CaseSampler:
        """See `Method`: whole cases at one slice."""
        s = self.settings
        return CaseSampler(
            store,
            self.sources_for,
            batch_size=s.batch_size,
            seed=s.seed,
            mirror=s.mirror,
            missing_targets=s.missing_targets,
            crop=s.crop,
            leave_out=0.0 if s.plave_target else s.plave_leave_out,
            alone=0.0 if s.plave_target else s.plave_alone,
            gamma=s.plave_gamma,
            augment=s.augment,
            warp=s.warp,
            tumour_slices=s.plave_tumour_slices,
        )

    @property
    def pretraining(self) -> int:
        """The number of steps in which the self-representation network learns, and nothing else does."""
        return round(self.settings.plave_pretraining * self.settings.steps)

    @property
    def _coarse(self) -> int:
        """The number of steps after the pretraining that see half the resolution."""
        return round(self.settings.plave_coarse * self.settings.steps)

    @property
    def _supervised(self) -> int:
        """The number of steps in which the image terms alone teach the generator."""
        return round(self.settings.plave_supervised * self.settings.steps)

    def _grown(self, step: int) -> float:
        """Return the share of their weights that all losses but the image terms have at a step."""
        since = step - self.pretraining - self._supervised
        if since < 0:
            return 0.0
        steps = self.settings.plave_ramp * self.settings.steps
        return min(1.0, (since + 1) / steps) if steps else 1.0

    def training_step(self, batch: CaseBatch, step: int) -> dict[str, Tensor]:
        """Run one iteration: first the auto-encoder alone; then it is frozen, and D and G take turns.

        As part of D (AE-GAN) it learns all the time, with D or before D joins.
        """
        if self.pretraining <= step < self.pretraining + self._coarse:
            batch = batch.halved()
        parts = self.parts(batch)
        self.autoencoder.train(step < self.pretraining or self._judged_by_autoencoder)
        if step < self.pretraining:
            return self.update(parts, ("autoencoder",), self._autoencoder_loss, path="a")
        s, grown = self.settings, self._grown(step)
        # Before its first update, whichever step that is: a plan that changed moves the end of the pretraining.
        if s.plave_loads and not self.optimisers()["generator"].state:
            self.autoencoder.hand_over(self.generator)
        # G does not change before its own update: with the batch in one part, D is shown what G then learns from.
        kept = self._translate(parts[0]) if len(parts) == 1 else None

        def fake(part: CaseBatch) -> Tensor:
            with torch.no_grad():
                return (kept or self._translate(part)).x_fake.detach()

        logged: dict[str, Tensor] = {}
        if grown * s.plave_lambda_adv > 0:
            logged = self.update(
                parts,
                ("discriminator", *(["autoencoder"] if self._judged_by_autoencoder else [])),
                lambda part: self._discriminator_loss(part, fake(part)),
                path="d",
            )
        elif self._judged_by_autoencoder:
            logged = self.update(parts, ("autoencoder",), self._autoencoder_loss, path="a")
        learning = ["generator"]
        learning += ["segmenter"] if grown * s.plave_lambda_seg > 0 else []
        learning += ["heads"] if grown * s.plave_lambda_patch > 0 else []
        with frozen(self.discriminator), frozen(self.autoencoder):
            logged |= self.update(
                parts,
                learning,
                lambda part: self._generator_loss(part, kept or self._translate(part), grown),
                path="g",
            )
        return logged

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`. A target's own image among the sources is not looked at."""
        del sample  # not styled: there is nothing to draw
        images = {}
        for target in targets:
            fake = self.generator.decode(*self._trunk_of(sources, target))[0]
            used = [image for name, image in sources.items() if name != target]
            images[target] = self._masked(fake, *used)
        return images

    def _masked(self, fake: Tensor, *sources: Tensor) -> Tensor:
        return keep_background(fake, *sources) if self.settings.keep_background else fake

    @torch.inference_mode()
    def segment(self, sources: Mapping[str, Tensor], target: str) -> Tensor:
        """Return what the segmentation decoder sees on the way to `target`: logits (B, 4, H, W) of `CLASSES`.

        Raises:
            AttclError: the model has no such decoder.
        """
        if not self.settings.plave_segmentation:
            raise AttclError(
                "segment: plave_segmentation is false, expected a model with a segmentation decoder",
                "train one without --variant",
                code="no-segmentation-decoder",
            )
        value: Tensor = self.segmenter(*self._trunk_of(sources, target))[0]
        return value

    def _trunk_of(
        self, sources: Mapping[str, Tensor], target: str
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what decoders take: trunk output (B, C, H / 4, W / 4), the target's code (1, style_dim), and skips."""
        used = {name: image for name, image in sources.items() if name != target}
        images = [used.get(self.modalities[index]) for index in self._slots]
        some = next(image for image in images if image is not None)
        there = torch.tensor([[image is not None for image in images]], device=some.device)
        present = there.expand(len(some), -1)
        # One row of code for the whole batch: its affine maps are then computed once, and in the same way for every
        # batch size.
        index = torch.tensor([self.modalities.index(target)], device=some.device)
        style = self.generator.code(index).to(some.dtype)
        features = self.generator.encode(images, present, style)
        h = self.generator.refine(self.generator.fuse(features, present, style).following, style)
        return h, style, self.generator.skips(features, present)

    def _translate(self, part: CaseBatch) -> _Translation:
        with self.runtime.autocast(part.images.device):
            style = self.generator.code(part.target)
            present = part.sources[:, self._slots]
            images = [part.images[:, index : index + 1] for index in self._slots]
            features = self.generator.encode(images, present, style)
            fused = self.generator.fuse(features, present, style)
            h = self.generator.refine(fused.following, style)
            skips = self.generator.skips(features, present)
            x_fake, decoded = self.generator.decode(h, style, skips)
            x_fake = self._masked(x_fake, self._visible(part))
            return _Translation(style, present, features[-1], fused, h, skips, x_fake, decoded)

    def _autoencoder_loss(self, part: CaseBatch) -> Losses:
        x_real = part.image(part.target)
        x_rec, *_ = self.autoencoder(x_real, part.target)
        return {"image": (1.0, losses.image_loss(x_rec.float(), x_real))}

    @property
    def _judged_by_autoencoder(self) -> bool:
        return self.settings.plave_discriminator == "autoencoder"

    def _judge(self, part: CaseBatch, x: Tensor) -> Tensor:
        """Return D's logits (B, h, w) in float32; there may be one map for all targets."""
        one = self.settings.plave_norm == "batch"
        target = torch.zeros_like(part.target) if one else part.target
        value: Tensor
        if isinstance(self.discriminator, FeatureDiscriminator):
            value = self.discriminator(self.autoencoder.encode(x, part.target).deep, target)
        else:
            value = self.discriminator(self._visible(part), x, target)
        return value.float()

    def _discriminator_loss(self, part: CaseBatch, x_fake: Tensor) -> Losses:
        """Return D's losses; with AE-GAN's D those of the auto-encoder, whose reconstruction is the second fake."""
        s, x_real = self.settings, part.image(part.target)
        weight = s.plave_lambda_discriminator
        terms: Losses = {"real": (weight, losses.real_loss(self._judge(part, x_real)))}
        if not self._judged_by_autoencoder:
            return {**terms, "fake": (weight, losses.fake_loss(self._judge(part, x_fake)))}
        x_rec, *_ = self.autoencoder(x_real, part.target)
        return {
            **terms,
            "fake": (weight / 2, losses.fake_loss(self._judge(part, x_fake))),
            "fake_rec": (weight / 2, losses.fake_loss(self._judge(part, x_rec.detach()))),
            "image": (s.plave_lambda_image, losses.image_loss(x_rec.float(), x_real)),
        }

    def _generator_loss(self, part: CaseBatch, translation: _Translation, grown: float) -> Losses:
        """Return Eq 5, and the L1 of ACA-GAN: name -> (weight, loss).

        Args:
            part: the true slices.
            translation: what was made of them.
            grown: share of their weights that all losses but the image terms have.
        """
        s = self.settings
        x_real = part.image(part.target)
        x_fake = translation.x_fake
        terms: Losses = {}
        weight = grown * s.plave_lambda_adv
        if weight > 0:
            terms["adv"] = (weight, losses.real_loss(self._judge(part, x_fake)))
        if s.plave_lambda_image > 0:
            loss = losses.image_loss(x_fake.float(), x_real, brain=s.plave_brain)
            terms["image"] = (s.plave_lambda_image, loss)
        if s.plave_lambda_structure > 0:
            everywhere = torch.ones_like(part.has_labels)
            loss = losses.structure_loss(x_fake.float(), x_real, everywhere)
            terms["structure"] = (s.plave_lambda_structure, loss)
        weight = grown * s.plave_lambda_patch
        if weight > 0:
            terms["patch"] = (weight, self._patch_loss(translation))
        weight = grown * s.plave_lambda_seg
        if weight > 0:
            predicted = self.segmenter(translation.h, translation.style, translation.skips)[0]
            loss = losses.segmentation_loss(
                predicted.float(), part.labels, part.has_labels, share=part.label_share
            )
            terms["seg"] = (weight, loss)
        return terms | self._self_representation_losses(part, translation, grown)

    def _self_representation_losses(
        self, part: CaseBatch, translation: _Translation, grown: float
    ) -> Losses:
        """Return the distances of the generator's features from the auto-encoder's of the true slice."""
        s = self.settings
        if grown * max(s.plave_lambda_branch, s.plave_lambda_fused, s.plave_lambda_decoder) == 0:
            return {}
        with torch.no_grad():
            _, branch, last, decoded = self.autoencoder(part.image(part.target), part.target)
        terms: Losses = {}
        if s.plave_lambda_branch > 0:
            loss = losses.branch_loss(
                translation.features.float(), branch.float(), translation.present
            )
            terms["branch"] = (grown * s.plave_lambda_branch, loss)
        if s.plave_lambda_fused > 0:
            loss = losses.fused_loss(translation.fused.mixed.float(), last.float())
            terms["fused"] = (grown * s.plave_lambda_fused, loss)
        if s.plave_lambda_decoder > 0:
            loss = losses.decoder_loss(
                [layer.float() for layer in translation.decoded],
                [layer.float() for layer in decoded],
                scale=s.plave_divergence,
            )
            terms["decoder"] = (grown * s.plave_lambda_decoder, loss)
        return terms

    def _patch_loss(self, translation: _Translation) -> Tensor:
        """Return Eq 1 and 2: the generated image, sent through the branches of its sources, against these."""
        images = [translation.x_fake] * len(self._slots)
        present, style = translation.present, translation.style
        features = self.generator.encode(images, present, style)
        fake = self.generator.compared(self.generator.fuse(features, present, style))
        source = self.generator.compared(translation.fused)
        pairs = zip(self.heads, source, fake, strict=True)
        s = self.settings
        terms = [
            contrast(
                *pair,
                patches_compared=s.contrastive_patches,
                scale=s.attention_scale,
                temperature=s.temperature,
            )
            for pair in pairs
        ]
        return torch.stack(terms).mean()

    def _visible(self, part: CaseBatch) -> Tensor:
        """Return what D may know, (B, slots, S, S); absent sources are background."""
        there = part.sources[:, self._slots, None, None]
        images = part.images[:, self._slots]
        return torch.where(there, images, torch.full_like(images, -1))


@dataclass(frozen=True)
class _Translation:
    """A translation with all that is learned from it."""

    style: Tensor
    present: Tensor
    features: Tensor
    fused: Fused
    h: Tensor
    skips: list[Tensor]
    x_fake: Tensor
    decoded: list[Tensor]
