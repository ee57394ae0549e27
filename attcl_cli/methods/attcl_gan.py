"""AttCL-GAN (Xu et al.), and with its three switches off StarGAN v2 (Choi et al. 2020): networks, step, synthesis.

Follows method.md, section 2. Leaves the loop, the averaging and all files to `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from attcl_cli.data.sampling import Batch, CaseBatches, SliceBatches
from attcl_cli.methods import losses
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.networks import patches
from attcl_cli.methods.networks.attention import CBAM
from attcl_cli.methods.networks.blocks import keep_background, pick
from attcl_cli.methods.networks.discriminator import Discriminator
from attcl_cli.methods.networks.generator import Features, Generator
from attcl_cli.methods.networks.style import MappingNetwork, StyleEncoder
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.updates import Losses, contrast, frozen, update


class AttclGan:
    """One generator for all directions; a style code says which modality, and how it looks."""

    accepts: ClassVar[Literal["one", "many"]] = "one"
    learns_labels: ClassVar[bool] = False
    styled: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("g_latent_adv", "g_reference_cyc", "g_reference_pair")

    def __init__(self, settings: Settings, modalities: tuple[str, ...]) -> None:
        self.settings = settings
        self.modalities = modalities
        self.references: dict[str, Tensor] = {}
        self.runtime = Runtime()
        self.batches: SliceBatches | CaseBatches = SliceBatches(settings.pair_targets)
        domains = len(modalities)
        shape = {"width": settings.width, "max_width": settings.max_width}
        self.generator = Generator(
            **shape,
            downs=settings.downs,
            bottleneck=settings.bottleneck,
            style_dim=settings.style_dim,
            full_size_skips=settings.full_size_skips,
        )
        self.mapping = MappingNetwork(
            latent_dim=settings.latent_dim,
            style_dim=settings.style_dim,
            domains=domains,
            hidden=settings.mapping_width,
        )
        self.style_encoder = StyleEncoder(
            image_size=settings.image_size, **shape, style_dim=settings.style_dim, domains=domains
        )
        self.discriminator = Discriminator(image_size=settings.image_size, **shape, domains=domains)
        layers = sorted(settings.contrastive_layers)
        uses_attention = settings.att_adain or settings.acl == "attention"
        self.attention = nn.ModuleDict(
            {str(layer): CBAM(self.generator.channels[layer]) for layer in layers if uses_attention}
        )
        self.heads = nn.ModuleDict(
            {
                str(layer): patches.PatchHead(self.generator.channels[layer])
                for layer in layers
                if settings.acl != "none"
            }
        )
        self.inference: tuple[str, ...] = ("generator", "attention", "mapping", "style_encoder")
        self._optimisers: dict[str, Optimizer] = {}

    @staticmethod
    def needs(settings: Settings, modalities: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """See `Method`: every modality, from any other."""
        del settings
        return dict.fromkeys(modalities, ())

    def modules(self) -> dict[str, nn.Module]:
        """See `Method`."""
        return {
            "generator": self.generator,
            "mapping": self.mapping,
            "style_encoder": self.style_encoder,
            "discriminator": self.discriminator,
            "attention": self.attention,
            "heads": self.heads,
        }

    def optimisers(self) -> dict[str, Optimizer]:
        """See `Method`: one Adam a network, the mapping network's with its own small step (Section 4.4)."""
        if not self._optimisers:
            s = self.settings
            for name, module in self.modules().items():
                parameters = list(module.parameters())
                if parameters:
                    rate = s.learning_rate_mapping if name == "mapping" else s.learning_rate
                    self._optimisers[name] = Adam(
                        parameters, lr=rate, betas=(s.beta1, s.beta2), weight_decay=s.weight_decay
                    )
        return self._optimisers

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One iteration: D on the latent and the reference path, then G+F+E+A+P, then G+A+P (StarGAN v2's order)."""
        parts = self._parts(batch, step)
        # Neither G nor F changes before the third update: with the batch in one part, the latent path's translation
        # is made once, shown to D, and learned from, and D's reference path decodes the same features.
        kept = self._latent(parts[0]) if len(parts) == 1 else None

        def latent(part: _Part) -> _Translation:
            return kept or self._latent(part)

        def latent_fake(part: _Part) -> Tensor:
            with torch.no_grad():
                return latent(part).x_fake.detach()

        def reference_fake(part: _Part) -> Tensor:
            with torch.no_grad():
                style = pick(self.style_encoder(part.batch.x_ref), part.batch.y_ref)
                return (
                    self._decode(kept, style) if kept else self._translate(part, style).x_fake
                ).detach()

        def reference(part: _Part) -> _Translation:
            with torch.no_grad():
                style = pick(self.style_encoder(part.batch.x_ref), part.batch.y_ref)
            return self._translate(part, style)

        def latent_style2(part: _Part) -> Tensor:
            return pick(self.mapping(part.z2), part.batch.y_ref)

        def reference_style2(part: _Part) -> Tensor:
            return pick(self.style_encoder(part.batch.x_ref2), part.batch.y_ref)

        found: dict[str, Tensor] = {}
        d = ("discriminator",)
        found |= self._update(
            parts, d, "d_latent", lambda part: self._discriminator_loss(part, latent_fake(part))
        )
        found |= self._update(
            parts,
            d,
            "d_reference",
            lambda part: self._discriminator_loss(part, reference_fake(part)),
        )
        with frozen(self.discriminator):
            networks = ("generator", "attention", "heads", "mapping", "style_encoder")
            found |= self._update(
                parts,
                networks,
                "g_latent",
                lambda part: self._generator_loss(part, latent(part), latent_style2, step),
            )
        if self._uses_scd:
            # All that E learns from the reference path, as StarGAN v2 updates only G on it.
            found |= self._update(
                parts, ("style_encoder",), "g_reference", self._style_encoder_loss
            )
        with frozen(self.discriminator), frozen(self.style_encoder):
            found |= self._update(
                parts,
                networks[:3],
                "g_reference",
                lambda part: self._generator_loss(part, reference(part), reference_style2, step),
            )
        return found

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """See `Method`: the style code of each modality, (style_dim,), from its reference image."""
        with torch.inference_mode():
            self.references = {
                name: self.style_encoder(image)[0, self.modalities.index(name)].cpu()
                for name, image in images.items()
            }

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`. A slice is encoded once, whatever the number of targets."""
        (x,) = sources.values()
        features = self.generator.encode(x)
        to_add = self._to_add(self._refine(features))
        # One row of style for the whole batch: its affine maps are then computed once, and in the same way for every
        # batch size.
        styles = {
            target: self._style(target, sample)[None].to(x.device, x.dtype) for target in targets
        }
        return {
            target: self._shown(self.generator.decode(features, style, to_add), x)
            for target, style in styles.items()
        }

    def _style(self, target: str, sample: int | None) -> Tensor:
        """The reference's style code, or one that the mapping network makes of a latent drawn by `sample`."""
        if sample is None:
            return self.references[target]
        noise = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + sample)
        z = torch.randn(1, self.settings.latent_dim, generator=noise)
        device = next(self.mapping.parameters()).device
        return self.mapping(z.to(device))[0, self.modalities.index(target)]

    @property
    def _uses_scd(self) -> bool:
        return self.settings.scd and self.settings.lambda_scd > 0

    def _parts(self, batch: Batch, step: int) -> list[_Part]:
        """The batch in parts that go through the networks at once, with the random numbers of the step.

        These are a function of (seed, step), drawn on the CPU for the whole batch of all processes: a resumed run, more
        processes or smaller parts see the same ones.
        """
        s, runtime = self.settings, self.runtime
        total = len(batch) * runtime.processes
        noise = torch.Generator().manual_seed(s.seed * 1_000_003 + step)
        own = runtime.share(total)
        z, z2 = (
            torch.randn(total, s.latent_dim, generator=noise)[own].to(batch.x_src.device)
            for _ in range(2)
        )
        keys = noise.initial_seed()
        size = runtime.micro_batch or len(batch)
        chosen = [
            slice(start, min(start + size, len(batch))) for start in range(0, len(batch), size)
        ]
        return [
            _Part(
                batch.part(part),
                z[part],
                z2[part],
                [keys * total + own.start + index for index in range(part.start, part.stop)],
            )
            for part in chosen
        ]

    def _update(
        self,
        parts: Sequence[_Part],
        names: Iterable[str],
        path: str,
        loss_of: Callable[[_Part], Losses],
    ) -> dict[str, Tensor]:
        """One step of the optimisers of `names`."""
        stepping = [self.optimisers()[name] for name in names if name in self.optimisers()]
        device = parts[0].batch.x_src.device
        return update(parts, stepping, loss_of, path=path, runtime=self.runtime, device=device)

    def _latent(self, part: _Part) -> _Translation:
        with self.runtime.autocast(part.batch.x_src.device):
            codes = self.mapping(part.z)
            return replace(self._translate(part, pick(codes, part.batch.y_ref)), codes=codes)

    def _translate(self, part: _Part, style: Tensor) -> _Translation:
        x = part.batch.x_src
        features = self.generator.encode(x)
        refined = self._refine(features)
        x_fake = self._shown(self.generator.decode(features, style, self._to_add(refined)), x)
        return _Translation(features, refined, style, x_fake)

    def _decode(self, made: _Translation, style: Tensor) -> Tensor:
        made_of = self.generator.decode(made.features, style, self._to_add(made.refined))
        return self._shown(made_of, made.features.image)

    def _shown(self, fake: Tensor, x: Tensor) -> Tensor:
        return keep_background(fake, x) if self.settings.keep_background else fake

    def _refine(self, features: Features) -> dict[int, Tensor]:
        return {
            int(layer): cbam(features.layers[int(layer)]) for layer, cbam in self.attention.items()
        }

    def _to_add(self, refined: Mapping[int, Tensor]) -> Mapping[int, Tensor] | None:
        return refined if self.settings.att_adain else None

    def _discriminator_loss(self, part: _Part, x_fake: Tensor) -> Losses:
        batch = part.batch
        x_real = batch.x_src.detach().requires_grad_()
        logits = self.discriminator(x_real, batch.y_src).float()
        return {
            "real": (1.0, losses.real_loss(logits)),
            "r1": (self.settings.lambda_r1, losses.r1_penalty(logits, x_real)),
            "fake": (1.0, losses.fake_loss(self.discriminator(x_fake, batch.y_ref).float())),
        }

    def _style_encoder_loss(self, part: _Part) -> Losses:
        """Eq 11, of the codes that E finds in the reference."""
        codes = self.style_encoder(part.batch.x_ref).float()
        scd = losses.style_code_diversity(codes, part.batch.y_ref, bound=self.settings.scd_bound)
        return {"scd": (-self.settings.lambda_scd, scd)}

    def _generator_loss(
        self, part: _Part, made: _Translation, style2_of: Callable[[_Part], Tensor], step: int
    ) -> Losses:
        """Eq 16 without D's side: name -> (weight, loss); what is maximised weighs below 0."""
        s, batch = self.settings, part.batch
        x_fake = made.x_fake
        found: Losses = {}
        found["adv"] = (1.0, losses.real_loss(self.discriminator(x_fake, batch.y_ref).float()))
        style_found = pick(self.style_encoder(x_fake), batch.y_ref)
        found["sty"] = (s.lambda_sty, losses.style_loss(made.style.float(), style_found.float()))
        # The way back starts from the fake's own features, which the contrastive loss compares, too.
        fake_features = self.generator.encode(x_fake)
        fake_refined = self._refine(fake_features)
        style_org = pick(self.style_encoder(batch.x_src), batch.y_src)
        x_rec = self.generator.decode(fake_features, style_org, self._to_add(fake_refined))
        x_rec = self._shown(x_rec, batch.x_src)
        found["cyc"] = (s.lambda_cyc, losses.cycle_loss(batch.x_src, x_rec.float()))
        lambda_ds = s.lambda_ds * max(0.0, 1 - step / s.steps)
        if lambda_ds > 0:
            with torch.no_grad():
                x_fake2 = self._decode(made, style2_of(part))
            found["ds"] = (-lambda_ds, losses.diversity_loss(x_fake.float(), x_fake2.float()))
        if s.acl != "none" and s.lambda_patch > 0:
            use_attention = s.acl == "attention"
            source = made.refined if use_attention else made.features.layers
            fake = fake_refined if use_attention else fake_features.layers
            found["patch"] = (s.lambda_patch, self._patch_loss(source, fake, part.keys))
        if made.codes is not None and self._uses_scd:
            scd = losses.style_code_diversity(made.codes.float(), batch.y_ref, bound=s.scd_bound)
            found["scd"] = (-s.lambda_scd, scd)
        if s.lambda_pair > 0:
            pair = losses.paired_loss(
                x_fake.float(),
                batch.x_pair,
                batch.has_pair,
                bright=s.pair_bright,
                share=batch.pair_share,
            )
            found["pair"] = (s.lambda_pair, pair)
        return found

    def _patch_loss(
        self,
        source: Sequence[Tensor] | Mapping[int, Tensor],
        fake: Sequence[Tensor] | Mapping[int, Tensor],
        keys: Sequence[int],
    ) -> Tensor:
        """Eq 1 and 6, mean over the contrastive layers; nothing of the source side carries a gradient."""
        s = self.settings
        total = []
        for name, head in self.heads.items():
            layer = int(name)
            positions = None
            if s.acl == "cut":
                count = source[layer].shape[2] * source[layer].shape[3]
                drawn = [_positions(key, layer, count, s.contrastive_patches) for key in keys]
                positions = torch.stack(drawn).to(source[layer].device)
            total.append(contrast(head, source[layer], fake[layer], s, positions=positions))
        return torch.stack(total).mean()


@dataclass(frozen=True)
class _Part:
    """Slices that go through the networks at once, and their random numbers."""

    batch: Batch
    z: Tensor  # (B, latent_dim)
    z2: Tensor  # (B, latent_dim)
    keys: list[int]  # one a slice: seeds what is drawn for it alone

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True)
class _Translation:
    """A translation with all that is learned from it."""

    features: Features  # of what was translated
    refined: dict[int, Tensor]
    style: Tensor
    x_fake: Tensor
    codes: Tensor | None = None  # of all domains, where SCD applies to them


def _positions(key: int, layer: int, count: int, wanted: int) -> Tensor:
    """Random positions of one slice and layer, without repetition (CUT)."""
    noise = torch.Generator().manual_seed((key * 31 + layer) % 2**63)
    return torch.randperm(count, generator=noise)[:wanted]
