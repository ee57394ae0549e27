"""AttCL-GAN (Xu et al.), and with its three switches off StarGAN v2 (Choi et al. 2020): networks, step, synthesis.

Follows method.md, section 2. Leaves the loop, the averaging and all files to `train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from attcl_cli import losses
from attcl_cli.config import Settings
from attcl_cli.methods.contract import Batch
from attcl_cli.networks import patches
from attcl_cli.networks.attention import CBAM
from attcl_cli.networks.blocks import pick
from attcl_cli.networks.discriminator import Discriminator
from attcl_cli.networks.generator import Generator
from attcl_cli.networks.style import MappingNetwork, StyleEncoder


class AttclGan:
    """One generator for all directions; a style code says which modality, and how it looks."""

    accepts: Literal["one", "many"] = "one"

    def __init__(self, settings: Settings, modalities: tuple[str, ...]) -> None:
        self.settings = settings
        self.modalities = modalities
        self.references: dict[str, Tensor] = {}
        domains = len(modalities)
        shape = {"width": settings.width, "max_width": settings.max_width}
        self.generator = Generator(
            **shape,
            downs=settings.downs,
            bottleneck=settings.bottleneck,
            style_dim=settings.style_dim,
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
        # Latent codes are a function of (seed, step), so that a resumed run draws the same ones; made on the CPU, so
        # that every device sees the same.
        noise = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        z, z2 = (
            torch.randn(len(batch.y_src), self.settings.latent_dim, generator=noise).to(
                batch.x_src.device
            )
            for _ in range(2)
        )
        found: dict[str, Tensor] = {}

        with torch.no_grad():
            style = pick(self.mapping(z), batch.y_ref)
        found |= self._discriminator_step(batch, style, "latent")
        with torch.no_grad():
            style = pick(self.style_encoder(batch.x_ref), batch.y_ref)
        found |= self._discriminator_step(batch, style, "reference")

        codes = self.mapping(z)
        style = pick(codes, batch.y_ref)
        with torch.no_grad():
            style2 = pick(self.mapping(z2), batch.y_ref)
        found |= self._generator_step(batch, codes, style, style2, step, noise, "latent")

        found |= self._style_encoder_step(batch)
        with torch.no_grad():
            style = pick(self.style_encoder(batch.x_ref), batch.y_ref)
            style2 = pick(self.style_encoder(batch.x_ref2), batch.y_ref)
        found |= self._generator_step(batch, None, style, style2, step, noise, "reference")
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
        self, sources: Mapping[str, Tensor], targets: Sequence[str]
    ) -> dict[str, Tensor]:
        """See `Method`. A slice is encoded once, whatever the number of targets."""
        (x,) = sources.values()
        features = self.generator.encode(x)
        refined = self._refine(features)
        # One row of style for the whole batch: its affine maps are then computed once, and in the same way for every
        # batch size.
        return {
            target: self.generator.decode(
                features[0],
                self.references[target][None].to(x.device, x.dtype),
                self._to_add(refined),
            )
            for target in targets
        }

    def _refine(self, features: Sequence[Tensor]) -> dict[int, Tensor]:
        return {int(layer): cbam(features[int(layer)]) for layer, cbam in self.attention.items()}

    def _to_add(self, refined: Mapping[int, Tensor]) -> Mapping[int, Tensor] | None:
        return refined if self.settings.att_adain else None

    def _discriminator_step(self, batch: Batch, style: Tensor, path: str) -> dict[str, Tensor]:
        with torch.no_grad():
            features = self.generator.encode(batch.x_src)
            x_fake = self.generator.decode(
                features[0],
                style,
                self._to_add(self._refine(features) if self.settings.att_adain else {}),
            )
        x_real = batch.x_src.detach().requires_grad_()
        logits = self.discriminator(x_real, batch.y_src)
        real = losses.real_loss(logits)
        r1 = losses.r1_penalty(logits, x_real)
        fake = losses.fake_loss(self.discriminator(x_fake, batch.y_ref))
        self._descend(real + fake + self.settings.lambda_r1 * r1, ("discriminator",))
        return {
            f"d_{path}_real": real.detach(),
            f"d_{path}_fake": fake.detach(),
            f"d_{path}_r1": r1.detach(),
        }

    def _style_encoder_step(self, batch: Batch) -> dict[str, Tensor]:
        """SCD of the reference path (Eq 11): all that E learns there; StarGAN v2 updates only G on it."""
        s = self.settings
        if not s.scd or s.lambda_scd == 0:
            return {}
        scd = losses.style_code_diversity(
            self.style_encoder(batch.x_ref), batch.y_ref, bound=s.scd_bound
        )
        self._descend(-s.lambda_scd * scd, ("style_encoder",))
        return {"g_reference_scd": scd.detach()}

    def _generator_step(
        self,
        batch: Batch,
        codes: Tensor | None,
        style: Tensor,
        style2: Tensor,
        step: int,
        noise: torch.Generator,
        path: str,
    ) -> dict[str, Tensor]:
        s = self.settings
        latent = path == "latent"
        _require_gradients(self.discriminator.parameters(), wanted=False)
        _require_gradients(self.style_encoder.parameters(), wanted=latent)
        features = self.generator.encode(batch.x_src)
        refined = self._refine(features)
        x_fake = self.generator.decode(features[0], style, self._to_add(refined))

        parts = {"adv": losses.real_loss(self.discriminator(x_fake, batch.y_ref))}
        weighted = parts["adv"]
        parts["sty"] = losses.style_loss(style, pick(self.style_encoder(x_fake), batch.y_ref))
        # The way back starts from the fake's own features, which the contrastive loss compares, too.
        fake_features = self.generator.encode(x_fake)
        fake_refined = self._refine(fake_features)
        x_rec = self.generator.decode(
            fake_features[0],
            pick(self.style_encoder(batch.x_src), batch.y_src),
            self._to_add(fake_refined),
        )
        parts["cyc"] = losses.cycle_loss(batch.x_src, x_rec)
        weighted = weighted + s.lambda_sty * parts["sty"] + s.lambda_cyc * parts["cyc"]
        lambda_ds = s.lambda_ds * max(0.0, 1 - step / s.steps)
        if lambda_ds > 0:
            with torch.no_grad():
                x_fake2 = self.generator.decode(features[0], style2, self._to_add(refined))
            parts["ds"] = losses.diversity_loss(x_fake, x_fake2)
            weighted = weighted - lambda_ds * parts["ds"]
        if s.acl != "none" and s.lambda_patch > 0:
            parts["patch"] = self._patch_loss(features, refined, fake_features, fake_refined, noise)
            weighted = weighted + s.lambda_patch * parts["patch"]
        if codes is not None and s.scd and s.lambda_scd > 0:
            parts["scd"] = losses.style_code_diversity(codes, batch.y_ref, bound=s.scd_bound)
            weighted = weighted - s.lambda_scd * parts["scd"]
        if s.lambda_pair > 0:
            parts["pair"] = losses.paired_loss(x_fake, batch.x_pair, batch.has_pair)
            weighted = weighted + s.lambda_pair * parts["pair"]

        names = ("generator", "attention", "heads") + (
            ("mapping", "style_encoder") if latent else ()
        )
        self._descend(weighted, names)
        _require_gradients(self.discriminator.parameters(), wanted=True)
        _require_gradients(self.style_encoder.parameters(), wanted=True)
        return {f"g_{path}_{name}": value.detach() for name, value in parts.items()}

    def _patch_loss(
        self,
        features: Sequence[Tensor],
        refined: Mapping[int, Tensor],
        fake_features: Sequence[Tensor],
        fake_refined: Mapping[int, Tensor],
        noise: torch.Generator,
    ) -> Tensor:
        s = self.settings
        total = features[0].new_zeros(())
        for name, head in self.heads.items():
            layer = int(name)
            with_attention = s.acl == "attention"
            source = patches.as_rows((refined if with_attention else features)[layer]).detach()
            fake = patches.as_rows((fake_refined if with_attention else fake_features)[layer])
            if s.acl == "cut":
                count = min(s.contrastive_patches, source.shape[1])
                drawn = torch.stack(
                    [
                        torch.randperm(source.shape[1], generator=noise)[:count]
                        for _ in range(len(source))
                    ]
                ).to(source.device)
                queries, keys = patches.gather(fake, drawn), patches.gather(source, drawn)
            else:
                chosen = patches.select(
                    patches.row_entropies(source, scale=s.attention_scale), s.contrastive_patches
                )
                importance = patches.importance_rows(source, chosen, scale=s.attention_scale)
                queries, keys = importance @ fake, importance @ source
            with torch.no_grad():
                keys = head(keys)
            total = total + losses.patch_nce(head(queries), keys, temperature=s.temperature)
        return total / len(self.heads)

    def _descend(self, loss: Tensor, names: Iterable[str]) -> None:
        stepping = [self.optimisers()[name] for name in names if name in self.optimisers()]
        for optimiser in stepping:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in stepping:
            optimiser.step()


def _require_gradients(parameters: Iterable[nn.Parameter], *, wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)
