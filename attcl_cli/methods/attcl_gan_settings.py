"""The settings of AttCL-GAN: what a preset or a variant changes, and which settings fit together.

What they do is written in `attcl_gan` and in the networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from attcl_cli.methods.networks import patches
from attcl_cli.methods.networks.brain_norm import GROUPS
from attcl_cli.methods.setting_fields import Positive, Rate, Share, Weight, setting
from attcl_cli.methods.settings import Settings

AclKind = Literal["none", "cut", "qs", "attention"]

# StarGAN v2, from one source.
OFF: Mapping[str, Any] = {"sources": "one", "acl": "none", "att_adain": False, "scd": False}

# What was done before there were such settings. A tenth of He's affine maps begins close to plain instance norm, and
# learns faster (docs/experiments/phantoms.md); the shortcut was not compared, so our presets keep it.
_EARLIER: Mapping[str, Any] = {"adain_start": 0.1, "shortcut_refined": True}

# What a preset changes. `paper` is the published set-up; what each of ours adds to it, and what that brings, stands in
# docs/methods ("Beyond the paper") and docs/experiments. In short: true pairs teach the generator first and most (L1
# has the weight of pix2pix and ACA-GAN, the contrastive loss that of PLAVE); the adversary and all else come in
# for the last steps, when rates are small already. Before, steps of 1e-3 cost wider networks their style codes.
_PAIRED: Mapping[str, Any] = {
    "keep": "best",
    "ema_warm_up": True,
    **_EARLIER,
    "attention_scale": "sqrt",
    "lambda_pair": 100.0,
    "lambda_patch": 0.1,
    "pair_targets": 0.75,
    "full_size_skips": True,
    "keep_background": True,
    "mirror": 0.5,
}
QUICK: Mapping[str, Any] = {
    **_PAIRED,
    "learning_rate": 1e-3,
    "learning_rate_mapping": 1e-5,
    "beta1": 0.5,
    "learning_rate_decay": 1.0,
}
TINY: Mapping[str, Any] = {
    "width": 16,
    "max_width": 128,
    "downs": 3,
    "mapping_width": 128,
    "contrastive_layers": (1, 2),
    "ema_decay": 0.995,
    "steps": 3_000,
    **QUICK,
    "pair_bright": 10.0,
}
# Presets that see squares of full-resolution slices, and all that a case has.
_SQUARES: Mapping[str, Any] = {
    "sources": "many",
    "missing_targets": 0.75,
    "generator": "u-net",
    "full_size_skips": False,
    "shortcut_refined": False,
    "muon": True,
    "warm_up": 30,
    "context": 1,
    "coarse": 0.6,
    "lambda_structure": 60.0,
    "supervised": 0.96,
    "ramp": 0.02,
    "discriminator": "patches",
    "fixed_style": "latent",
    "alternate": True,
    "r1_every": 16,
    "augment": 0.5,
    "warp": 0.25,
}
# What goes with a GPU: so many steps that the training patients are learned by heart unless they look different each
# time, and weights decay.
_PLENTY: Mapping[str, Any] = {
    "coarse": 0.3,
    "supervised": 0.85,
    "augment": 0.9,
    "warp": 0.5,
    "weight_decay": 0.1,
}


class AttclGanSettings(Settings):
    """The settings of AttCL-GAN; the defaults are the paper's (Section 4.4 and docs/method.md)."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": TINY,
        "small": {
            "width": 24, "max_width": 192, "mapping_width": 128, "steps": 20_000, **QUICK, **_SQUARES,
        },
        "base": {
            "width": 40, "max_width": 320, "mapping_width": 128, "batch_size": 32, "steps": 10_000, **QUICK,
            **_SQUARES, **_PLENTY,
        },
        "paper": {},
    }  # fmt: skip

    earlier: ClassVar[Mapping[str, Any]] = {**Settings.earlier, **_EARLIER}

    # The paper's switches by name: the eight rows of Table 4, and the two contrastive baselines of Table 2; one source.
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "attcl-gan": {"sources": "one", "acl": "attention", "att_adain": True, "scd": True},
        "stargan-v2": OFF,
        "acl": {**OFF, "acl": "attention"},
        "att-adain": {**OFF, "att_adain": True},
        "scd": {**OFF, "scd": True},
        "acl+att-adain": {**OFF, "acl": "attention", "att_adain": True},
        "acl+scd": {**OFF, "acl": "attention", "scd": True},
        "att-adain+scd": {**OFF, "att_adain": True, "scd": True},
        "stargan-v2+cut": {**OFF, "acl": "cut"},
        "stargan-v2+qs": {**OFF, "acl": "qs"},
    }

    generator: Literal["stargan-v2", "u-net"] = setting(
        "stargan-v2", "The layers of G: StarGAN v2's, or a U-Net's (ours).", fixed=True
    )
    muon: bool = setting(
        default=False,
        description="Muon moves the kernels of G, in place of Adam (ours).",
        fixed=True,
    )
    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    max_width: Positive = setting(512, "Channels never grow beyond this.", fixed=True)
    downs: int = setting(4, "Halvings in the generator's encoder.", fixed=True, ge=1, le=6)
    bottleneck: int = setting(
        2,
        "Residual blocks at the smallest size, on each side; StarGAN v2's generator alone has them.",
        fixed=True,
        ge=0,
        le=8,
    )
    full_size_skips: bool = setting(
        default=False,
        description="The decoder sees the source at full size, too, and learns the difference (ours).",
        fixed=True,
    )
    sources: Literal["one", "many"] = setting(
        "one",
        "What the generator sees of a case: one modality, or all that it has (many; ours).",
        fixed=True,
    )
    alone: Share = setting(
        0.4, "With many sources: share of training slices that are made from a single one (ours)."
    )
    context: int = setting(
        0,
        "Neighbouring slices that the generator sees on each side (ours).",
        fixed=True,
        ge=0,
        le=4,
    )
    adain_start: float = setting(
        1.0,
        "What He's start of the style's affine maps in the decoder is multiplied by (ours: 0.1).",
        fixed=True,
        gt=0,
        le=1,
    )
    shortcut_refined: bool = setting(
        default=False,
        description="The shortcuts of AttAdaIN's blocks also carry the refined features (ours).",
        fixed=True,
    )
    fixed_style: Literal["reference", "latent"] = setting(
        "reference",
        "What fixes the style of completed volumes: a reference image, or a latent drawn once (ours).",
        fixed=True,
    )
    style_dim: Positive = setting(64, "Length of a style code.", fixed=True)
    latent_dim: Positive = setting(16, "Length of the mapping network's latent z.", fixed=True)
    mapping_width: Positive = setting(512, "Width of the mapping network's layers.", fixed=True)

    # The switches (Table 4); all off is StarGAN v2
    acl: AclKind = setting(
        "attention", "Contrastive learning: which patches are compared.", fixed=True
    )
    att_adain: bool = setting(
        default=True,
        description="Add the refined encoder features to the decoder's (Eq 8, 9).",
        fixed=True,
    )
    scd: bool = setting(
        default=True,
        description="Push style codes of different modalities apart (Eq 11).",
    )
    contrastive_layers: tuple[Positive, ...] = setting(
        (2, 3), "Encoder layers whose patches are compared.", fixed=True
    )
    contrastive_patches: Positive = setting(256, "Patches compared per layer and image (R).")
    attention_scale: patches.AttentionScale = setting(
        "none", "Scaling of the dot products before the row softmax (Eq 6)."
    )
    temperature: float = setting(0.07, "Temperature of the contrastive loss (Eq 1).", gt=0)

    # Weights of the losses (Eq 16)
    lambda_sty: Weight = setting(1.0, "Style reconstruction (Eq 13).")
    lambda_cyc: Weight = setting(1.0, "Cycle consistency (Eq 15).")
    cycle_style: Literal["source", "generated"] = setting(
        "source",
        "Image in which E finds the style of the way back: the source, as StarGAN v2, or the generated one (Eq 15).",
    )
    lambda_ds: Weight = setting(1.0, "Diversity (Eq 14); falls linearly to 0 over the run.")
    lambda_patch: Weight = setting(1.0, "Contrastive loss (Eq 1).")
    lambda_scd: Weight = setting(0.1, "Style code diversity (Eq 11).")
    scd_bound: float = setting(10.0, "Style code distances beyond this no longer count.", gt=0)
    lambda_r1: Weight = setting(1.0, "R1 gradient penalty of the discriminator.")
    r1_every: Positive = setting(
        1, "Steps between R1 penalties, each of which weighs this many times as much (lazy; ours)."
    )
    lambda_pair: Weight = setting(
        0.0, "L1 to the true target slice if the training case has it (ours)."
    )
    pair_bright: float = setting(
        1.0,
        "How many times the brightest pixels of the true slice count in that L1 (ours).",
        ge=1,
        le=1000,
    )
    lambda_structure: Weight = setting(
        0.0, "1 - SSIM in the brain to the true target slice if the training case has it (ours)."
    )
    pair_targets: Share = setting(0.0, "Share of slices whose case has the target (ours).")
    missing_targets: Share = setting(
        0.0,
        "Share of these targets drawn as often as training cases lack the modality; the others uniformly (ours).",
    )
    supervised: Share = setting(
        0.0,
        "Share of the steps, the first ones, in which true pairs alone teach the generator (ours).",
    )
    coarse: Share = setting(
        0.0, "Share of the steps, the first ones, that see half the resolution (ours)."
    )
    ramp: Share = setting(
        0.0, "Share of the steps over which the other losses then grow to their weights (ours)."
    )
    discriminator: Literal["slices", "patches"] = setting(
        "slices", "What D judges: whole slices, or patches of them (pix2pix's; ours).", fixed=True
    )
    alternate: bool = setting(
        default=False,
        description="Latent and reference path take turns, instead of both in every step (ours).",
    )
    learning_rate_mapping: Rate = setting(1e-6, "Adam step of the mapping network.")

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Settings`."""
        selects = self.acl in {"qs", "attention"} and self.lambda_patch > 0
        return (patches.UNSCALED,) if selects and self.attention_scale == "none" else ()

    @model_validator(mode="after")
    def _require_fitting_layers(self) -> AttclGanSettings:
        smallest = self.side // (8 if self.coarse else 4)
        if smallest < 2**self.downs:
            raise ValueError(
                f"downs: {self.downs}, expected at most {max(smallest, 1).bit_length() - 1} "
                f"for slices of {self.side} pixels" + (" with coarse" if self.coarse else "")
            )
        if self.generator == "u-net":
            self._require_fitting_unet()
        if self.coarse > self.supervised:
            raise ValueError(
                f"coarse: {self.coarse}, expected at most supervised ({self.supervised}): "
                "only true pairs are learned from at half the resolution"
            )
        if self.supervised and not (self.lambda_pair or self.lambda_structure):
            raise ValueError(
                f"supervised: {self.supervised}, expected 0, and coarse 0, while lambda_pair and lambda_structure "
                "are 0: no other loss learns from true pairs"
            )
        missing = [layer for layer in self.contrastive_layers if layer > self.downs]
        if missing:
            raise ValueError(
                f"contrastive_layers: {missing}, expected layers from 1 to downs ({self.downs})"
            )
        if len(set(self.contrastive_layers)) < len(self.contrastive_layers):
            raise ValueError(
                f"contrastive_layers: {list(self.contrastive_layers)}, expected each layer once"
            )
        if not self.contrastive_layers and (self.acl != "none" or self.att_adain):
            raise ValueError(
                "contrastive_layers: [], expected at least one layer while acl or att_adain is on"
            )
        return self

    def _require_fitting_unet(self) -> None:
        for name in ("width", "max_width"):
            if getattr(self, name) % GROUPS:
                raise ValueError(
                    f"{name}: {getattr(self, name)}, expected a multiple of {GROUPS} with generator u-net"
                )
        only_stargan = [
            name for name in ("full_size_skips", "shortcut_refined") if getattr(self, name)
        ]
        if only_stargan:
            raise ValueError(f"{only_stargan[0]}: true, expected false with generator u-net")
