"""AttCL-GAN (Xu et al.), and with its three switches off StarGAN v2 (Choi et al. 2020): networks, step, synthesis.

Follows method.md, section 2. Leaves the loop, the averaging and all files to `training`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from attcl_cli.data.sampling import DomainBatch, DomainSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods import losses
from attcl_cli.methods.attcl_gan_settings import AttclGanSettings
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.muon import Muon
from attcl_cli.methods.networks import patches
from attcl_cli.methods.networks.attention import CBAM
from attcl_cli.methods.networks.blocks import keep_background, pick
from attcl_cli.methods.networks.discriminator import Discriminator, PatchDiscriminator
from attcl_cli.methods.networks.generator import Features, Generator
from attcl_cli.methods.networks.style import MappingNetwork, StyleEncoder
from attcl_cli.methods.networks.styled_unet import StyledUNet
from attcl_cli.methods.sources import AllPresent, AnyOne, SourceRule
from attcl_cli.methods.updates import contrast, frozen

_MUON_BETA1 = 0.9  # of what Muon moves as Adam does: biases and norms need no GAN's low momentum
_IMAGE = ("generator", "attention", "heads")
"""The networks that make an image and compare its patches."""


class AttclGan(Method):
    """One generator for all directions; a style code says which modality, and in which style."""

    settings_class = AttclGanSettings
    styled = True
    shown = ("g_latent_adv", "g_reference_cyc", "g_reference_pair")
    inference = ("generator", "attention", "mapping", "style_encoder")
    references_only = ("style_encoder",)
    settings: AttclGanSettings

    def __init__(self, settings: AttclGanSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        self.context = settings.context
        domains = len(modalities)
        shape = {"width": settings.width, "max_width": settings.max_width}
        stack = 1 + 2 * settings.context
        many = settings.sources == "many"
        images, flags = (domains * stack, domains) if many else (stack, 0)
        self.generator: Generator | StyledUNet
        if settings.generator == "u-net":
            self.generator = StyledUNet(
                **shape,
                downs=settings.downs,
                style_dim=settings.style_dim,
                images=images,
                flags=flags,
                adain_start=settings.adain_start,
            )
        else:
            self.generator = Generator(
                **shape,
                downs=settings.downs,
                bottleneck=settings.bottleneck,
                style_dim=settings.style_dim,
                full_size_skips=settings.full_size_skips,
                planes=images + flags,
                adain_start=settings.adain_start,
                shortcut_refined=settings.shortcut_refined,
                wavelet_layers=self.wavelet_layers,
            )
        self.mapping = MappingNetwork(
            latent_dim=settings.latent_dim,
            style_dim=settings.style_dim,
            domains=domains,
            hidden=settings.mapping_width,
        )
        self.style_encoder = StyleEncoder(
            image_size=settings.side, **shape, style_dim=settings.style_dim, domains=domains
        )
        self.discriminator: Discriminator | PatchDiscriminator
        if settings.discriminator == "slices":
            self.discriminator = Discriminator(image_size=settings.side, **shape, domains=domains)
        else:
            self.discriminator = PatchDiscriminator(
                image_size=settings.side, **shape, sources=0, targets=domains
            )
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

    @property
    def wavelet_layers(self) -> tuple[int, ...]:
        """The encoder layers whose wavelets reach the decoder; W2GAN has some."""
        return ()

    @classmethod
    def sources(cls, settings: AttclGanSettings, modalities: Sequence[str]) -> SourceRule:
        """See `Method`: every modality from any other, or from all others that a case has."""
        names = tuple(modalities)
        return AllPresent(names) if settings.sources == "many" else AnyOne(names)

    @classmethod
    def settled(cls, settings: AttclGanSettings, store: SliceStore) -> AttclGanSettings:
        """See `Method`: without a single true pair there is no start in which these alone teach."""
        if any(len(volumes) > 1 for volumes in store.volumes_by_case().values()):
            return settings
        return settings.model_copy(update={"supervised": 0.0, "coarse": 0.0})

    @property
    def stride(self) -> int:
        """See `Method`."""
        return int(2**self.settings.downs)

    def sampler(self, store: SliceStore) -> DomainSampler:
        """See `Method`: slices with a target modality each, and references of it."""
        s = self.settings
        return DomainSampler(
            store,
            batch_size=s.batch_size,
            seed=s.seed,
            mirror=s.mirror,
            pair_targets=s.pair_targets,
            missing_targets=s.missing_targets,
            paired_until=self._supervised_steps,
            context=s.context,
            crop=s.crop,
            augment=s.augment,
            warp=s.warp,
            many=s.sources == "many",
            alone=s.alone,
        )

    @property
    def phases(self) -> tuple[float, ...]:
        """See `Method`: full size after the coarse start; adversary and all else after the supervised one."""
        s = self.settings
        return tuple(share for share in (s.coarse, s.supervised) if round(share * s.steps))

    @classmethod
    def phases_in_words(cls, settings: AttclGanSettings) -> tuple[tuple[float, str], ...]:
        """See `Method`: true pairs first, at half and then at full size; then the adversary joins."""
        coarse, supervised = settings.coarse, settings.supervised
        pairs = "true pairs alone teach"
        begins = {
            0.0: f"{pairs}, at half the resolution" if coarse else pairs,
            coarse: f"{pairs}, at full resolution" if coarse else pairs,
            supervised: "the adversary and the other losses join",
        }
        return tuple(begins.items()) if supervised else ()

    @property
    def _coarse_steps(self) -> int:
        s = self.settings
        return round(s.coarse * s.steps)

    @property
    def _supervised_steps(self) -> int:
        s = self.settings
        return round(s.supervised * s.steps)

    def optimiser_of(self, network: str, parameters: list[nn.Parameter]) -> Optimizer:
        """See `Method`: with `muon`, Muon for the generator, and AdamW for the others: all weights decay alike."""
        s = self.settings
        if not s.muon:
            return super().optimiser_of(network, parameters)
        rate = self.learning_rate_of(network)
        if network == "generator":
            return Muon(parameters, rate, (_MUON_BETA1, s.beta2), s.weight_decay)
        return AdamW(parameters, rate, (s.beta1, s.beta2), weight_decay=s.weight_decay)

    def learning_rate_of(self, network: str) -> float:
        """See `Method`: the mapping network has its own small step (Section 4.4)."""
        s = self.settings
        return s.learning_rate_mapping if network == "mapping" else s.learning_rate

    def training_step(self, batch: DomainBatch, step: int) -> dict[str, Tensor]:
        """Run an iteration: D on the latent and the reference path, then G+F+E+A+P, then G+A+P (StarGAN v2's order).

        With `supervised`, the first steps are G's and F's alone.
        """
        if step < self._coarse_steps:
            batch = batch.halved()
        parts = self._parts(batch, step)
        if step < self._supervised_steps:
            return self._supervised_step(parts)
        if self.settings.alternate:
            return self._alternating_step(parts, step)
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

        d = ("discriminator",)
        logged = self.update(
            parts,
            d,
            lambda part: self._discriminator_loss(part, latent_fake(part), step),
            path="d_latent",
        )
        logged |= self.update(
            parts,
            d,
            lambda part: self._discriminator_loss(part, reference_fake(part), step),
            path="d_reference",
        )
        with frozen(self.discriminator):
            logged |= self.update(
                parts,
                (*_IMAGE, "mapping", "style_encoder"),
                lambda part: self._generator_loss(part, latent(part), self._latent_style2, step),
                path="g_latent",
            )
        with frozen(self.discriminator), frozen(self.style_encoder):
            logged |= self.update(
                parts,
                _IMAGE,
                lambda part: self._generator_loss(
                    part, self._reference(part), self._reference_style2, step
                ),
                path="g_reference",
            )
        return logged

    def _supervised_step(self, parts: Sequence[_Part]) -> dict[str, Tensor]:
        """Teach G and F by true pairs alone, half of the slices in the style that completion will take."""
        return self.update(
            parts,
            ("generator", *(("attention",) if self.settings.att_adain else ()), "mapping"),
            lambda part: self._supervised_losses(self._half_fixed(part)),
            path="g_latent",
        )

    def _supervised_losses(self, part: _Part) -> Losses:
        """Return the distances to the true slices; with many sources, those of all modalities that are not given."""
        batch = part.batch
        if batch.x_taught is None or batch.taught is None or not bool(batch.taught.any()):
            translation = self._latent(part)
            return self._distances(
                translation.x_fake, batch.x_pair, batch.has_pair, batch.pair_share
            )
        rows, targets = torch.nonzero(batch.taught, as_tuple=True)
        features = self._encode_batch(batch)
        refined = self._to_add(self._refine(features)) or {}
        x_fake = self._masked(
            self.generator.decode(
                features.of(rows),
                self.mapping(part.z)[rows, targets],
                {layer: refined_one[rows] for layer, refined_one in refined.items()},
            ),
            self._shown(batch)[rows],
        )
        true = batch.x_taught[rows, targets][:, None]
        # Of a part, so that parts add up to the whole.
        share = batch.taught_share
        share = None if share is None else share * batch.taught.numel() / len(rows)
        return self._distances(x_fake, true, torch.ones_like(rows, dtype=torch.bool), share)

    def _half_fixed(self, part: _Part) -> _Part:
        """Give every second slice of the batch the fixed latent (`fixed_style`)."""
        if self.settings.fixed_style == "reference":
            return part
        second = torch.tensor([key % 2 == 1 for key in part.keys], device=part.z.device)
        return replace(part, z=torch.where(second[:, None], self._fixed_latent(), part.z))

    def _fixed_latent(self) -> Tensor:
        """Return the latent whose styles completion takes with `fixed_style` latent: (1, latent_dim)."""
        s = self.settings
        noise = torch.Generator().manual_seed((s.seed + 1) * 1_000_003 - 1)  # no step's
        return torch.randn(1, s.latent_dim, generator=noise).to(self.device)

    def _alternating_step(self, parts: Sequence[_Part], step: int) -> dict[str, Tensor]:
        """Update D and then G on one of the two paths: the latent one in even steps, the reference one in odd steps."""
        by_reference = step % 2 == 1
        translate = self._reference if by_reference else self._latent
        style2 = self._reference_style2 if by_reference else self._latent_style2
        path = "reference" if by_reference else "latent"
        kept = translate(parts[0]) if len(parts) == 1 else None

        def translation(part: _Part) -> _Translation:
            return kept or translate(part)

        def fake(part: _Part) -> Tensor:
            with torch.no_grad():
                return translation(part).x_fake.detach()

        logged = self.update(
            parts,
            ("discriminator",),
            lambda part: self._discriminator_loss(part, fake(part), step // 2),
            path=f"d_{path}",
        )
        # As in both paths at once: G alone learns on the reference path.
        stepping = _IMAGE if by_reference else (*_IMAGE, "mapping", "style_encoder")
        with frozen(self.discriminator), ExitStack() as still:
            if by_reference:
                still.enter_context(frozen(self.style_encoder))
            logged |= self.update(
                parts,
                stepping,
                lambda part: self._generator_loss(part, translation(part), style2, step),
                path=f"g_{path}",
            )
        return logged

    def remember_references(self, images: Mapping[str, Tensor]) -> None:
        """See `Method`: the style code of each modality, (style_dim,), from its reference image or the fixed latent."""
        with torch.inference_mode():
            if self.settings.fixed_style == "latent":
                codes = self.mapping(self._fixed_latent())[0].cpu()
                self.references = dict(zip(self.modalities, codes, strict=True))
                return
            self.references = {
                name: self.style_encoder(_middle_square(image, self.settings.side))[
                    0, self.modalities.index(name)
                ].cpu()
                for name, image in images.items()
            }

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`. A slice is encoded once, whatever the number of targets."""
        x, start = self._planes_of(sources)
        features = self.generator.encode(x, start)
        to_add = self._to_add(self._refine(features))
        # One row of style for the whole batch: its affine maps are then computed once, and in the same way for every
        # batch size.
        styles = {
            target: self._style(target, sample)[None].to(x.device, x.dtype) for target in targets
        }
        return {
            target: self._masked(self.generator.decode(features, style, to_add), *sources.values())
            for target, style in styles.items()
        }

    def _planes_of(self, sources: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the generator sees of sources (B, 1 + 2 * context, H, W), and the image that it starts from."""
        if self.settings.sources == "one":
            (x,) = sources.values()
            return x, self._middle(x)
        some = next(iter(sources.values()))
        nothing = torch.full_like(some, -1)
        stacked = torch.stack([sources.get(name, nothing) for name in self.modalities], dim=1)
        given = torch.tensor([[name in sources for name in self.modalities]], device=some.device)
        return self._many_planes(stacked, given.expand(len(some), -1))

    def _many_planes(self, stacked: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the planes of many sources, and their mean.

        Args:
            stacked: (B, N, 1 + 2 * context, H, W), -1 where not given.
            given: (B, N) bool, at least one per row.

        Returns:
            (B, N * (2 + 2 * context), H, W): the images, then a plane per modality that says whether it is given (1) or
            not (0); and (B, 1, H, W), the mean of the given slices.
        """
        flags = given[:, :, None, None].to(stacked.dtype)
        planes = flags.expand(-1, -1, *stacked.shape[3:])
        slices = stacked[:, :, self.context]
        mean = (slices * flags).sum(dim=1, keepdim=True) / flags.sum(dim=1, keepdim=True)
        return torch.cat([stacked.flatten(1, 2), planes], dim=1), mean

    def _middle(self, x: Tensor) -> Tensor:
        """Return the slice itself, without its neighbours: (B, 1 + 2 * context, H, W) -> (B, 1, H, W)."""
        return x[:, self.context : self.context + 1]

    def _shown(self, batch: DomainBatch) -> Tensor:
        """Return all that the generator sees of a batch: (B, C, H, W)."""
        return batch.x_src if batch.x_all is None else batch.x_all.flatten(1, 2)

    def _encode_batch(self, batch: DomainBatch) -> Features:
        """Encode what a batch has to translate."""
        if batch.x_all is None or batch.given is None:
            return self.generator.encode(batch.x_src, self._middle(batch.x_src))
        return self.generator.encode(*self._many_planes(batch.x_all, batch.given))

    def _encode_image(self, x: Tensor, domain: Tensor) -> Features:
        """Encode an image (B, 1, H, W) of a domain (B,) as a single source; it stands in for its neighbours."""
        alone = x.expand(-1, 1 + 2 * self.context, -1, -1)
        if self.settings.sources == "one":
            return self.generator.encode(alone, x)
        numbers = torch.arange(len(self.modalities), device=x.device)
        given = domain[:, None] == numbers
        nothing = torch.full_like(alone, -1)
        stacked = torch.where(given[:, :, None, None, None], alone[:, None], nothing[:, None])
        return self.generator.encode(*self._many_planes(stacked, given))

    def _style(self, target: str, sample: int | None) -> Tensor:
        """Return the reference's style code, or one that the mapping network makes of a latent drawn by `sample`."""
        if sample is None:
            return self.references[target]
        noise = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + sample)
        z = torch.randn(1, self.settings.latent_dim, generator=noise)
        device = next(self.mapping.parameters()).device
        value: Tensor = self.mapping(z.to(device))[0, self.modalities.index(target)]
        return value

    @property
    def _uses_scd(self) -> bool:
        return self.settings.scd and self.settings.lambda_scd > 0

    def _parts(self, batch: DomainBatch, step: int) -> list[_Part]:
        """Return the batch in parts that go through the networks at once, with the random numbers of the step.

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

    def _latent(self, part: _Part) -> _Translation:
        with self.runtime.autocast(part.batch.x_src.device):
            codes = self.mapping(part.z)
            return replace(self._translate(part, pick(codes, part.batch.y_ref)), codes=codes)

    def _reference(self, part: _Part) -> _Translation:
        with self.runtime.autocast(part.batch.x_src.device):
            with torch.no_grad():
                style = pick(self.style_encoder(part.batch.x_ref), part.batch.y_ref)
            return self._translate(part, style)

    def _latent_style2(self, part: _Part) -> Tensor:
        return pick(self.mapping(part.z2), part.batch.y_ref)

    def _reference_style2(self, part: _Part) -> Tensor:
        return pick(self.style_encoder(part.batch.x_ref2), part.batch.y_ref)

    def _translate(self, part: _Part, style: Tensor) -> _Translation:
        batch = part.batch
        features = self._encode_batch(batch)
        refined = self._refine(features)
        shown = self._shown(batch)
        fake = self.generator.decode(features, style, self._to_add(refined))
        return _Translation(features, refined, style, self._masked(fake, shown), shown)

    def _decode(self, translation: _Translation, style: Tensor) -> Tensor:
        refined = self._to_add(translation.refined)
        fake = self.generator.decode(translation.features, style, refined)
        return self._masked(fake, translation.shown)

    def _masked(self, fake: Tensor, *sources: Tensor) -> Tensor:
        return keep_background(fake, *sources) if self.settings.keep_background else fake

    def _refine(self, features: Features) -> dict[int, Tensor]:
        return {
            int(layer): cbam(features.layers[int(layer)]) for layer, cbam in self.attention.items()
        }

    def _to_add(self, refined: Mapping[int, Tensor]) -> Mapping[int, Tensor] | None:
        return refined if self.settings.att_adain else None

    def _discriminator_loss(self, part: _Part, x_fake: Tensor, number: int) -> Losses:
        """Return D's losses in its update of this number, which says whether R1 is due."""
        s, batch = self.settings, part.batch
        # A source whose appearance was changed is no example of what is real.
        x_real, y_real = (
            (batch.x_ref, batch.y_ref) if s.augment else (self._middle(batch.x_src), batch.y_src)
        )
        terms: Losses = {}
        penalised = s.lambda_r1 > 0 and number % s.r1_every == 0
        x_real = x_real.detach().requires_grad_(penalised)
        logits = self._judge(x_real, y_real)
        terms["real"] = (1.0, losses.real_loss(logits))
        if penalised:
            terms["r1"] = (s.r1_every * s.lambda_r1, losses.r1_penalty(logits, x_real))
        terms["fake"] = (1.0, losses.fake_loss(self._judge(x_fake, batch.y_ref)))
        return terms

    def _judge(self, x: Tensor, domain: Tensor) -> Tensor:
        """Return D's logits in float32: of whole slices (B,), or of their patches (B, h, w)."""
        if isinstance(self.discriminator, PatchDiscriminator):
            logits = self.discriminator(x[:, :0], x, domain)
        else:
            logits = self.discriminator(x, domain)
        value: Tensor = logits.float()
        return value

    def _distances(
        self, x_fake: Tensor, x_pair: Tensor, has_pair: Tensor, share: float | None
    ) -> Losses:
        """Return the distances to the true slices of the target modality, if the cases have them (ours)."""
        s = self.settings
        terms: Losses = {}
        if s.lambda_pair > 0:
            pair = losses.paired_loss(
                x_fake.float(), x_pair, has_pair, bright=s.pair_bright, share=share
            )
            terms["pair"] = (s.lambda_pair, pair)
        if s.lambda_structure > 0:
            structure = losses.structure_loss(x_fake.float(), x_pair, has_pair, share=share)
            terms["structure"] = (s.lambda_structure, structure)
        return terms

    def _generator_loss(
        self,
        part: _Part,
        translation: _Translation,
        style2_of: Callable[[_Part], Tensor],
        step: int,
    ) -> Losses:
        """Return Eq 16 without D's side: name -> (weight, loss); what is maximised weighs below 0."""
        s, batch = self.settings, part.batch
        x_fake = translation.x_fake
        x_org = self._middle(batch.x_src)
        terms: Losses = {}
        terms["adv"] = (1.0, losses.real_loss(self._judge(x_fake, batch.y_ref)))
        codes_fake = self.style_encoder(x_fake)
        encoded = pick(codes_fake, batch.y_ref)
        style = translation.style.float()
        terms["sty"] = (s.lambda_sty, losses.style_loss(style, encoded.float()))
        # The way back starts from the fake's own features, which the contrastive loss compares, too.
        fake_features = self._encode_image(x_fake, batch.y_ref)
        fake_refined = self._refine(fake_features)
        generated = s.cycle_style == "generated"
        style_org = pick(codes_fake if generated else self.style_encoder(x_org), batch.y_src)
        x_rec = self.generator.decode(fake_features, style_org, self._to_add(fake_refined))
        x_rec = self._masked(x_rec, translation.shown)
        terms |= self.cycle_losses(x_org, x_rec.float(), translation.features)
        lambda_ds = s.lambda_ds * max(0.0, 1 - step / s.steps)
        if lambda_ds > 0:
            with torch.no_grad():
                x_fake2 = self._decode(translation, style2_of(part))
            terms["ds"] = (-lambda_ds, losses.diversity_loss(x_fake.float(), x_fake2.float()))
        if s.acl != "none" and s.lambda_patch > 0:
            use_attention = s.acl == "attention"
            source = translation.refined if use_attention else translation.features.layers
            fake = fake_refined if use_attention else fake_features.layers
            terms["patch"] = (s.lambda_patch, self._patch_loss(source, fake, part.keys))
        if translation.codes is not None and self._uses_scd:
            # Of F's codes, and of E's in the reference: both learn on the latent path, and there alone.
            codes = {"scd": translation.codes, "scd_reference": self.style_encoder(batch.x_ref)}
            for name, each in codes.items():
                scd = losses.style_code_diversity(each.float(), batch.y_ref, bound=s.scd_bound)
                terms[name] = (-s.lambda_scd, scd)
        grown = self._grown(step)
        terms = {name: (grown * weight, loss) for name, (weight, loss) in terms.items()}
        return terms | self._distances(x_fake, batch.x_pair, batch.has_pair, batch.pair_share)

    def cycle_losses(self, x_org: Tensor, x_rec: Tensor, features: Features) -> Losses:
        """Return what compares slices with their reconstructions.

        Args:
            x_org: (B, 1, H, W).
            x_rec: (B, 1, H, W) float32, their translations translated back.
            features: of the slices, as the generator encoded them.
        """
        del features  # a subclass may weigh by them
        terms: Losses = {}
        terms["cyc"] = (self.settings.lambda_cyc, losses.cycle_loss(x_org, x_rec))
        return terms

    def _grown(self, step: int) -> float:
        """Return the share of their weights that the losses other than the pair's have at a step (`ramp`)."""
        steps = self.settings.ramp * self.settings.steps
        return min(1.0, (step + 1 - self._supervised_steps) / steps) if steps else 1.0

    def _patch_loss(
        self,
        source: Sequence[Tensor] | Mapping[int, Tensor],
        fake: Sequence[Tensor] | Mapping[int, Tensor],
        keys: Sequence[int],
    ) -> Tensor:
        """Return Eq 1 and 6, mean over the contrastive layers; nothing of the source side carries a gradient."""
        s = self.settings
        total = []
        for name, head in self.heads.items():
            layer = int(name)
            positions = None
            if s.acl == "cut":
                count = source[layer].shape[2] * source[layer].shape[3]
                drawn = [_positions(key, layer, count, s.contrastive_patches) for key in keys]
                positions = torch.stack(drawn).to(source[layer].device)
            total.append(
                contrast(
                    head,
                    source[layer],
                    fake[layer],
                    patches_compared=s.contrastive_patches,
                    scale=s.attention_scale,
                    temperature=s.temperature,
                    positions=positions,
                )
            )
        return torch.stack(total).mean()


@dataclass(frozen=True)
class _Part:
    """Slices that go through the networks at once, and their random numbers."""

    batch: DomainBatch
    z: Tensor  # (B, latent_dim)
    z2: Tensor  # (B, latent_dim)
    keys: list[int]  # one per slice: seeds what is drawn for it alone

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True)
class _Translation:
    """A translation with all that is learned from it."""

    features: Features  # of what was translated
    refined: dict[int, Tensor]
    style: Tensor
    x_fake: Tensor
    shown: Tensor  # (B, C, H, W), all that was seen: x_fake keeps its background
    codes: Tensor | None = None  # of all domains, if SCD applies to them


def _middle_square(image: Tensor, side: int) -> Tensor:
    """Cut the square of this side out of the middle of an image's brain: (1, 1, S, S) -> (1, 1, side, side)."""
    corner = []
    for axis, length in ((3, image.shape[2]), (2, image.shape[3])):
        filled = torch.nonzero((image > -1).any(dim=axis)[0, 0])
        middle = (int(filled.min()) + int(filled.max()) + 1) // 2 if len(filled) else length // 2
        corner.append(min(max(middle - side // 2, 0), length - side))
    top, left = corner
    return image[:, :, top : top + side, left : left + side]


def _positions(key: int, layer: int, count: int, most: int) -> Tensor:
    """Return random positions of one slice and layer, without repetition (CUT)."""
    noise = torch.Generator().manual_seed((key * 31 + layer) % 2**63)
    return torch.randperm(count, generator=noise)[:most]
