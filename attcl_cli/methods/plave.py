"""PLAVE (Lim, Kang, Kam 2024): many sources to one target; networks, step, synthesis, segmentation.

Follows method.md, section 6. With `plave_target` a dedicated model, which needs all the other modalities; without, a
general one that makes any modality from any others. Leaves the loop, the averaging and all files to `training`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attcl_cli.data.sampling import CaseBatch, CaseSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import UsageError, nearest
from attcl_cli.methods import losses
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.networks import patches
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.networks.discriminator import PatchDiscriminator
from attcl_cli.methods.networks.fusion import AutoEncoder, Decoder, FusionGenerator
from attcl_cli.methods.networks.patches import PatchHead
from attcl_cli.methods.settings import Decay, Positive, Rate, Settings, Share, Weight, setting
from attcl_cli.methods.sources import AllPresent, Exactly, SourceRule
from attcl_cli.methods.updates import contrast, frozen

CLASSES = 4  # background, necrosis, oedema, enhancing tumour

# What the presets other than `paper` change: completion makes slices without tumour, too, so training sees them; the
# background is kept as completion keeps it; small cohorts are overfitted soon, so half of the slices are mirrored.
# The small ones take larger steps, which shrink over the whole run: 600 steps of `tiny` at 32 pixels on 32 phantoms
# with a modality missing each, in-brain SSIM on 8 others, mean over the four targets (seeds 0 and 1): 0.557 and 0.563
# at 1e-3, 0.524 and 0.531 at 5e-4, 0.460 and 0.463 at 2e-4. (0.577 and 0.589 at 2e-3, but that is not measured at the
# preset's own size and length.) The steps of `small`, 3e-4, are not measured.
_OURS: Mapping[str, Any] = {
    "keep_background": True,
    "mirror": 0.5,
    "plave_tumour_slices": 0.5,
    "plave_skips": True,
}
_QUICK: Mapping[str, Any] = {**_OURS, "learning_rate_decay": 1.0, "plave_pretraining": 0.1}


class PlaveSettings(Settings):
    """The settings of PLAVE; the defaults are the paper's (its Section 3 and docs/method.md, section 6)."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"width": 16, "max_width": 128, "ema_decay": 0.995, "steps": 3_000, **_QUICK, "learning_rate": 1e-3},
        "small": {"width": 32, "max_width": 256, "steps": 20_000, **_QUICK, "learning_rate": 3e-4},
        "base": {"width": 32, "max_width": 256, **_OURS},
        "paper": {},
    }  # fmt: skip

    batch_size: Positive = setting(4, "Slices per iteration.", section="run")
    learning_rate: Rate = setting(1e-4, "Adam step of the networks.", section="optimiser")
    beta1: Decay = setting(0.5, "Adam: decay of the mean of the gradients.", section="optimiser")
    beta2: Decay = setting(0.999, "Adam: decay of the mean of their squares.", section="optimiser")
    weight_decay: Weight = setting(0.0, "Adam: weight decay.", section="optimiser")

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    max_width: Positive = setting(512, "Channels never grow beyond this.", fixed=True)
    style_dim: Positive = setting(64, "Length of a target's code.", fixed=True)
    contrastive_patches: Positive = setting(256, "Patches compared per layer and image (R).")
    attention_scale: patches.AttentionScale = setting(
        "sqrt", "Scaling of the dot products before the row softmax (QS-Attn)."
    )
    temperature: float = setting(0.07, "Temperature of the contrastive loss (Eq 1).", gt=0)
    plave_target: str = setting(
        "",
        "The one modality that a dedicated model makes; empty: a general model makes any.",
        fixed=True,
    )
    plave_blocks: int = setting(6, "Residual blocks of the trunk.", fixed=True, ge=1, le=16)
    plave_skips: bool = setting(
        default=False,
        description="The decoders also see the branches' larger features, fused (ours).",
        fixed=True,
    )
    plave_pretraining: Decay = setting(
        0.4, "Share of the steps, the first ones, that train the self-representation network."
    )
    plave_leave_out: Share = setting(
        0.5, "General model: share of slices with some sources left out (ours)."
    )
    plave_tumour_slices: Share = setting(
        1.0, "Share of slices drawn from those with tumour, if that is known."
    )
    plave_lambda_image: Weight = setting(100.0, "L1 to the true slice.")
    plave_lambda_patch: Weight = setting(0.1, "Contrastive loss (Eq 1).")
    plave_lambda_seg: Weight = setting(0.1, "Cross-entropy of the segmentation (Eq 3).")
    plave_lambda_branch: Weight = setting(0.1, "Branch features against the target's own.")
    plave_lambda_fused: Weight = setting(0.1, "Fused features against the target's own.")
    plave_lambda_decoder: Weight = setting(
        0.05, "Decoder features against the target's own (Eq 4)."
    )


class Plave(Method):
    """A branch per source, fused, decoded into the target and its segmentation."""

    settings_class = PlaveSettings
    learns_labels = True
    shown = ("a_image", "g_image", "g_adv", "g_seg")
    inference = ("generator", "segmenter")
    settings: PlaveSettings

    def __init__(self, settings: PlaveSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        s = settings
        # The modalities that have a branch, by their index; a dedicated model's target has none.
        self._slots = [i for i, name in enumerate(modalities) if name != s.plave_target]
        count = len(modalities)
        shape = {"width": s.width, "max_width": s.max_width}
        self.generator = FusionGenerator(
            slots=len(self._slots),
            targets=count,
            **shape,
            blocks=s.plave_blocks,
            style_dim=s.style_dim,
            skips=s.plave_skips,
        )
        self.segmenter = Decoder(**shape, outputs=CLASSES, style_dim=s.style_dim)
        self.discriminator = PatchDiscriminator(
            image_size=s.image_size, **shape, sources=len(self._slots), targets=count
        )
        self.autoencoder = AutoEncoder(targets=count, **shape, style_dim=s.style_dim)
        # of the fused features, and of those after the next convolution
        self.heads = nn.ModuleList(PatchHead(self.generator.channels) for _ in range(2))

    @classmethod
    def sources(cls, settings: PlaveSettings, modalities: Sequence[str]) -> SourceRule:
        """See `Method`: a dedicated model makes one modality and needs all the others."""
        target = settings.plave_target
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
        """See `Method`: the branches halve twice."""
        return 4

    def sampler(self, store: SliceStore) -> CaseSampler:
        """See `Method`: whole cases at one slice."""
        s = self.settings
        return CaseSampler(
            store,
            self.sources_for,
            batch_size=s.batch_size,
            seed=s.seed,
            mirror=s.mirror,
            leave_out=0.0 if s.plave_target else s.plave_leave_out,
            tumour_slices=s.plave_tumour_slices,
        )

    @property
    def pretraining(self) -> int:
        """The number of steps in which the self-representation network learns, and nothing else does."""
        return round(self.settings.plave_pretraining * self.settings.steps)

    def training_step(self, batch: CaseBatch, step: int) -> dict[str, Tensor]:
        """Run one iteration: first the auto-encoder alone; then it is frozen, and D and G take turns."""
        parts = self.parts(batch)
        if step < self.pretraining:
            return self.update(parts, ("autoencoder",), self._autoencoder_loss, path="a")
        # G does not change before its own update: with the batch in one part, D is shown what G then learns from.
        kept = self._translate(parts[0]) if len(parts) == 1 else None

        def fake(part: CaseBatch) -> Tensor:
            with torch.no_grad():
                return (kept or self._translate(part)).x_fake.detach()

        logged = self.update(
            parts,
            ("discriminator",),
            lambda part: self._discriminator_loss(part, fake(part)),
            path="d",
        )
        with frozen(self.discriminator):
            logged |= self.update(
                parts,
                ("generator", "segmenter", "heads"),
                lambda part: self._generator_loss(part, kept or self._translate(part)),
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
        """Return what the segmentation decoder sees on the way to `target`: logits (B, 4, H, W) of `CLASSES`."""
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
        h = self.generator.refine(self.generator.fuse(features, present, style)[1], style)
        return h, style, self.generator.skips(features, present)

    def _translate(self, part: CaseBatch) -> _Translation:
        with self.runtime.autocast(part.images.device):
            style = self.generator.code(part.target)
            present = part.sources[:, self._slots]
            images = [part.images[:, index : index + 1] for index in self._slots]
            features = self.generator.encode(images, present, style)
            fused, following = self.generator.fuse(features, present, style)
            h = self.generator.refine(following, style)
            skips = self.generator.skips(features, present)
            x_fake, decoded = self.generator.decode(h, style, skips)
            x_fake = self._masked(x_fake, self._visible(part))
            return _Translation(
                style, present, features[-1], fused, following, h, skips, x_fake, decoded
            )

    def _autoencoder_loss(self, part: CaseBatch) -> Losses:
        x_real = part.image(part.target)
        x_rec, *_ = self.autoencoder(x_real, part.target)
        return {"image": (1.0, losses.image_loss(x_rec.float(), x_real))}

    def _discriminator_loss(self, part: CaseBatch, x_fake: Tensor) -> Losses:
        sources = self._visible(part)
        real = self.discriminator(sources, part.image(part.target), part.target)
        fake = self.discriminator(sources, x_fake, part.target)
        return {
            "real": (1.0, losses.real_loss(real.float())),
            "fake": (1.0, losses.fake_loss(fake.float())),
        }

    def _generator_loss(self, part: CaseBatch, translation: _Translation) -> Losses:
        """Return Eq 5, and the L1 of ACA-GAN: name -> (weight, loss)."""
        s = self.settings
        x_real = part.image(part.target)
        x_fake = translation.x_fake
        logits = self.discriminator(self._visible(part), x_fake, part.target)
        terms: Losses = {
            "adv": (1.0, losses.real_loss(logits.float())),
            "image": (s.plave_lambda_image, losses.image_loss(x_fake.float(), x_real)),
        }
        if s.plave_lambda_patch > 0:
            terms["patch"] = (s.plave_lambda_patch, self._patch_loss(translation))
        if s.plave_lambda_seg > 0:
            predicted = self.segmenter(translation.h, translation.style, translation.skips)[0]
            loss = losses.segmentation_loss(
                predicted.float(), part.labels, part.has_labels, share=part.label_share
            )
            terms["seg"] = (s.plave_lambda_seg, loss)
        if max(s.plave_lambda_branch, s.plave_lambda_fused, s.plave_lambda_decoder) > 0:
            with torch.no_grad():
                _, branch, last, decoded = self.autoencoder(x_real, part.target)
            features, present = translation.features.float(), translation.present
            terms["branch"] = (
                s.plave_lambda_branch,
                losses.branch_loss(features, branch.float(), present),
            )
            terms["fused"] = (
                s.plave_lambda_fused,
                losses.fused_loss(translation.fused.float(), last.float()),
            )
            terms["decoder"] = (
                s.plave_lambda_decoder,
                losses.decoder_loss(
                    [layer.float() for layer in translation.decoded],
                    [layer.float() for layer in decoded],
                ),
            )
        return terms

    def _patch_loss(self, translation: _Translation) -> Tensor:
        """Return Eq 1 and 2: the generated image, sent through the branches of its sources, against these."""
        images = [translation.x_fake] * len(self._slots)
        present, style = translation.present, translation.style
        features = self.generator.encode(images, present, style)
        fake = self.generator.fuse(features, present, style)
        source = (translation.fused, translation.following)
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
    fused: Tensor
    following: Tensor
    h: Tensor
    skips: list[Tensor]
    x_fake: Tensor
    decoded: list[Tensor]
