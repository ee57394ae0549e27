"""PLAVE (Lim, Kang, Kam 2024): many sources to one target; networks, step, synthesis, segmentation.

Follows method.md, section 6. With `plave_target` a dedicated model, which needs all the other modalities; without, a
general one that makes any modality from any others. Leaves the loop, the averaging and all files to `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from attcl_cli.data.sampling import CaseBatch, CaseBatches, SliceBatches
from attcl_cli.errors import UsageError, nearest
from attcl_cli.methods import losses
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.networks.discriminator import PatchDiscriminator
from attcl_cli.methods.networks.fusion import AutoEncoder, Decoder, FusionGenerator
from attcl_cli.methods.networks.patches import PatchHead
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.updates import Losses, contrast, frozen, update

CLASSES = 4  # background, necrosis, oedema, enhancing tumour


class Plave:
    """A branch a source, fused, decoded into the target and its segmentation."""

    accepts: ClassVar[Literal["one", "many"]] = "many"
    learns_labels: ClassVar[bool] = True
    styled: ClassVar[bool] = False
    shown: ClassVar[tuple[str, ...]] = ("a_image", "g_image", "g_adv", "g_seg")

    def __init__(self, settings: Settings, modalities: tuple[str, ...]) -> None:
        needs = self.needs(settings, modalities)
        s = self.settings = settings
        self.modalities = modalities
        self.references: dict[str, Tensor] = {}
        self.runtime = Runtime()
        self.batches: SliceBatches | CaseBatches = CaseBatches(
            needs,
            leave_out=0.0 if s.plave_target else s.plave_leave_out,
            tumour_slices=s.plave_tumour_slices,
        )
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
        self.inference: tuple[str, ...] = ("generator", "segmenter")
        self._optimisers: dict[str, Optimizer] = {}

    @staticmethod
    def needs(settings: Settings, modalities: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """See `Method`: a dedicated model makes one modality and needs all the others."""
        target = settings.plave_target
        if not target:
            return dict.fromkeys(modalities, ())
        if target not in modalities:
            known = ", ".join(modalities)
            raise UsageError(
                f"setting plave_target: {target!r}, expected one of {known}, or '' for a general model",
                nearest(target, modalities),
            )
        return {target: tuple(name for name in modalities if name != target)}

    def modules(self) -> dict[str, nn.Module]:
        """See `Method`."""
        return {
            "generator": self.generator,
            "segmenter": self.segmenter,
            "discriminator": self.discriminator,
            "autoencoder": self.autoencoder,
            "heads": self.heads,
        }

    def optimisers(self) -> dict[str, Optimizer]:
        """See `Method`: one Adam a network."""
        if not self._optimisers:
            s = self.settings
            self._optimisers = {
                name: Adam(
                    module.parameters(),
                    lr=s.learning_rate,
                    betas=(s.beta1, s.beta2),
                    weight_decay=s.weight_decay,
                )
                for name, module in self.modules().items()
            }
        return self._optimisers

    @property
    def pretraining(self) -> int:
        """The steps in which the self-representation network learns, and nothing else does."""
        return round(self.settings.plave_pretraining * self.settings.steps)

    def training_step(self, batch: CaseBatch, step: int) -> dict[str, Tensor]:
        """One iteration: first the auto-encoder alone; then it is frozen, and D and G take turns."""
        size = self.runtime.micro_batch or len(batch)
        parts = [batch.part(slice(i, i + size)) for i in range(0, len(batch), size)]
        if step < self.pretraining:
            return self._update(parts, ("autoencoder",), "a", self._autoencoder_loss)
        # G does not change before its own update: with the batch in one part, D is shown what G then learns from.
        kept = self._translate(parts[0]) if len(parts) == 1 else None

        def fake(part: CaseBatch) -> Tensor:
            with torch.no_grad():
                return (kept or self._translate(part)).x_fake.detach()

        found = self._update(
            parts, ("discriminator",), "d", lambda part: self._discriminator_loss(part, fake(part))
        )
        with frozen(self.discriminator):
            found |= self._update(
                parts,
                ("generator", "segmenter", "heads"),
                "g",
                lambda part: self._generator_loss(part, kept or self._translate(part)),
            )
        return found

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """See `Method`: a target's code is learned, no image fixes it."""

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`. A target's own image among the sources is not looked at."""
        del sample  # not styled: there is nothing to draw
        made = {}
        for target in targets:
            fake = self.generator.decode(*self._trunk_of(sources, target))[0]
            used = [image for name, image in sources.items() if name != target]
            made[target] = self._shown(fake, *used)
        return made

    def _shown(self, fake: Tensor, *sources: Tensor) -> Tensor:
        return keep_background(fake, *sources) if self.settings.keep_background else fake

    @torch.inference_mode()
    def segment(self, sources: Mapping[str, Tensor], target: str) -> Tensor:
        """What the segmentation decoder sees on the way to `target`: logits (B, 4, H, W) of `CLASSES`."""
        return self.segmenter(*self._trunk_of(sources, target))[0]

    def _trunk_of(
        self, sources: Mapping[str, Tensor], target: str
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What decoders take: the trunk's output (B, C, H / 4, W / 4), the target's code (1, style_dim), and skips."""
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

    def _update(
        self,
        parts: Sequence[CaseBatch],
        names: Sequence[str],
        path: str,
        loss_of: Callable[[CaseBatch], Losses],
    ) -> dict[str, Tensor]:
        """One step of the optimisers of `names`."""
        stepping = [self.optimisers()[name] for name in names]
        device = parts[0].images.device
        return update(parts, stepping, loss_of, path=path, runtime=self.runtime, device=device)

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
            x_fake = self._shown(x_fake, self._shown_sources(part))
            return _Translation(
                style, present, features[-1], fused, following, h, skips, x_fake, decoded
            )

    def _autoencoder_loss(self, part: CaseBatch) -> Losses:
        x_real = part.image(part.target)
        x_rec, *_ = self.autoencoder(x_real, part.target)
        return {"image": (1.0, losses.image_loss(x_rec.float(), x_real))}

    def _discriminator_loss(self, part: CaseBatch, x_fake: Tensor) -> Losses:
        shown = self._shown_sources(part)
        real = self.discriminator(shown, part.image(part.target), part.target)
        fake = self.discriminator(shown, x_fake, part.target)
        return {
            "real": (1.0, losses.real_loss(real.float())),
            "fake": (1.0, losses.fake_loss(fake.float())),
        }

    def _generator_loss(self, part: CaseBatch, made: _Translation) -> Losses:
        """Eq 5, and the L1 of ACA-GAN: name -> (weight, loss)."""
        s = self.settings
        x_real = part.image(part.target)
        logits = self.discriminator(self._shown_sources(part), made.x_fake, part.target)
        found: Losses = {
            "adv": (1.0, losses.real_loss(logits.float())),
            "image": (s.plave_lambda_image, losses.image_loss(made.x_fake.float(), x_real)),
        }
        if s.plave_lambda_patch > 0:
            found["patch"] = (s.plave_lambda_patch, self._patch_loss(made))
        if s.plave_lambda_seg > 0:
            guessed = self.segmenter(made.h, made.style, made.skips)[0]
            loss = losses.segmentation_loss(
                guessed.float(), part.labels, part.has_labels, share=part.label_share
            )
            found["seg"] = (s.plave_lambda_seg, loss)
        if max(s.plave_lambda_branch, s.plave_lambda_fused, s.plave_lambda_decoder) > 0:
            with torch.no_grad():
                _, branch, last, decoded = self.autoencoder(x_real, part.target)
            close = losses.branch_loss(made.features.float(), branch.float(), made.present)
            found["branch"] = (s.plave_lambda_branch, close)
            found["fused"] = (
                s.plave_lambda_fused,
                losses.fused_loss(made.fused.float(), last.float()),
            )
            found["decoder"] = (
                s.plave_lambda_decoder,
                losses.decoder_loss(
                    [layer.float() for layer in made.decoded], [layer.float() for layer in decoded]
                ),
            )
        return found

    def _patch_loss(self, made: _Translation) -> Tensor:
        """Eq 1 and 2: the generated image, sent through the branches of its sources, against these."""
        images = [made.x_fake] * len(self._slots)
        features = self.generator.encode(images, made.present, made.style)
        fake = self.generator.fuse(features, made.present, made.style)
        pairs = zip(self.heads, (made.fused, made.following), fake, strict=True)
        return torch.stack([contrast(*pair, self.settings) for pair in pairs]).mean()

    def _shown_sources(self, part: CaseBatch) -> Tensor:
        """(B, slots, S, S): what D may know; absent sources are background."""
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
