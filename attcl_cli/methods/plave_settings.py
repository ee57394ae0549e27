"""The settings of PLAVE and of its ancestors: what a preset or a variant changes, and which settings fit together.

What they do is written in `plave` and in `networks.fusion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from attcl_cli.methods import losses
from attcl_cli.methods.networks import patches
from attcl_cli.methods.networks.fusion import Contrast, Excitation, FusionKind
from attcl_cli.methods.networks.layers import Norm
from attcl_cli.methods.setting_fields import Decay, Positive, Rate, Share, Weight, setting
from attcl_cli.methods.settings import Settings, SliceSpan

# How PLAVE was trained before its preset `paper` followed the publication to the letter; what has not been measured
# against the published way stays so in our presets.
_EARLIER: Mapping[str, Any] = {
    "epochs": 0,
    "slice_span": "middle",
    "attention_scale": "sqrt",
    "learning_rate_decay": 0.0,
    "ema_decay": 0.999,
    "plave_norm": "adain",
    "plave_fusion": "position",
    "plave_excitation": "last",
    "plave_contrast": "following",
    "plave_autoencoder_blocks": 0,
    "plave_divergence": "positions",
    "plave_lambda_discriminator": 1.0,
}

# What the presets other than `paper` change: one model makes all modalities from any; completion makes slices without
# tumour, too, so training sees them; the background is kept as completion keeps it; small cohorts are overfitted soon,
# so half of the slices are mirrored. Which sources are given and how their contrast varies is as `unet` has it. Runs
# begin with the image terms alone, as a step with all losses takes several times as long; both terms are means over the
# brain, and weigh as the yardstick's.
_OURS: Mapping[str, Any] = {
    **_EARLIER,
    "keep": "best",
    "ema_warm_up": True,
    "keep_background": True,
    "mirror": 0.5,
    "learning_rate_decay": 1.0,
    "plave_leave_out": 1.0,
    "plave_alone": 0.4,
    "plave_gamma": 0.15,
    "plave_tumour_slices": 0.5,
    "plave_skips": True,
    "plave_pretraining": 0.05,
    "plave_supervised": 0.3,
    "plave_ramp": 0.1,
    "plave_brain": True,
    "plave_lambda_structure": 60.0,
}
# As AttCL-GAN's small and base: what no case lacks needs little of the time.
_MISSING: Mapping[str, Any] = {"missing_targets": 0.75}
# Real patients in minutes of a CPU (docs/experiments/patients.md): fewer channels, half the resolution first, and the
# costly steps with all losses at the very end, so that more slices are seen; rate, batches and augmentation are those
# of AttCL-GAN's small.
_CPU: Mapping[str, Any] = {
    "width": 24,
    "max_width": 192,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warm_up": 30,
    "augment": 0.5,
    "warp": 0.25,
    "plave_coarse": 0.5,
    "plave_supervised": 0.91,
    "plave_ramp": 0.02,
}

# PLAVE's ancestors: what each has in its networks and losses. Slices, sizes, norm and optimiser stay the preset's, but
# for the half resolution, which ACA-GAN's fusion does not take.
_ANCESTOR: Mapping[str, Any] = {
    "plave_segmentation": False,
    "plave_contrast": "none",
    "plave_autoencoder_blocks": 6,
    "plave_discriminator": "patches",
    "plave_lambda_patch": 0.0,
    "plave_lambda_seg": 0.0,
    "plave_lambda_branch": 0.0,
    "plave_lambda_fused": 0.0,
    "plave_lambda_decoder": 0.0,
}
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "aca-gan": {
        **_ANCESTOR,
        "plave_excitation": "each",
        "plave_fusion": "modality",
        "plave_coarse": 0.0,
        "plave_lambda_branch": 0.1,
        "plave_lambda_fused": 0.1,
    },
    "ae-gan": {
        **_ANCESTOR,
        "plave_excitation": "decoder",
        "plave_fusion": "plain",
        "plave_discriminator": "autoencoder",
        "plave_pretraining": 0.0,
        "plave_divergence": "elements",
        "plave_lambda_decoder": 0.1,
    },
    "auto-gan": {
        **_ANCESTOR,
        "plave_excitation": "none",
        "plave_fusion": "plain",
        "plave_divergence": "absolute",
        "plave_lambda_decoder": 0.1,
    },
}


class PlaveSettings(Settings):
    """The settings of PLAVE; the defaults are the paper's (its Section 3 and docs/methods/6-plave.md)."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Larger steps, which shrink over the whole run (docs/experiments/phantoms.md).
        "tiny": {
            "width": 16, "max_width": 128, "steps": 3_000, **_OURS,
            "plave_supervised": 0.5, "ema_decay": 0.995, "learning_rate": 1e-3,
        },
        "small": {"steps": 20_000, **_OURS, **_MISSING, **_CPU},
        "base": {"width": 32, "max_width": 256, **_OURS, **_MISSING},
        "paper": {},
    }  # fmt: skip

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = _VARIANTS

    earlier: ClassVar[Mapping[str, Any]] = {**Settings.earlier, **_EARLIER}

    epochs: int = setting(
        500,
        "Passes over the training slices, which set steps. 0: steps counts.",
        section="run",
        ge=0,
    )
    batch_size: Positive = setting(4, "Slices per iteration.", section="run")
    slice_span: SliceSpan = setting(
        "all",
        "Axial slices that training draws from: the middle ones (31 to 124 of 155), or all.",
        section="image",
        fixed=True,
    )
    learning_rate: Rate = setting(1e-4, "Adam step of the networks.", section="optimiser")
    learning_rate_decay: Share = setting(
        0.2,
        "Share of the steps, the last ones, over which all Adam steps fall linearly to 0.",
        section="optimiser",
    )
    beta1: Decay = setting(0.5, "Adam: decay of the mean of the gradients.", section="optimiser")
    beta2: Decay = setting(0.999, "Adam: decay of the mean of their squares.", section="optimiser")
    weight_decay: Weight = setting(0.0, "Adam: weight decay.", section="optimiser")
    ema_decay: Decay = setting(
        0.0,
        "Decay of the averaged weights that completion uses; 0: no average.",
        section="optimiser",
    )

    width: Positive = setting(64, "Channels of the first convolution.", fixed=True)
    max_width: Positive = setting(512, "Channels never grow beyond this.", fixed=True)
    style_dim: Positive = setting(64, "Length of a target's code (norm adain).", fixed=True)
    contrastive_patches: Positive = setting(256, "Patches compared per layer and image (R).")
    attention_scale: patches.AttentionScale = setting(
        "none", "Scaling of the dot products before the row softmax (QS-Attn)."
    )
    temperature: float = setting(0.07, "Temperature of the contrastive loss (Eq 1).", gt=0)
    plave_target: str = setting(
        "",
        "The one modality that a dedicated model makes; empty: a general model makes any (ours).",
        fixed=True,
    )

    # How the networks are built
    plave_norm: Norm = setting(
        "batch",
        "Norm of all layers: batch norm, with one target per model, or AdaIN of the target's code (ours).",
        fixed=True,
    )
    plave_excitation: Excitation = setting(
        "each",
        "Squeeze-and-excitation: after each halving of the branches, after the last (ours), "
        "after each doubling of the decoder (AE-GAN), or none.",
        fixed=True,
    )
    plave_fusion: FusionKind = setting(
        "modality",
        "Attention over the sources: per modality and channel as ACA-GAN's, at each position (ours), or none (plain).",
        fixed=True,
    )
    plave_contrast: Contrast = setting(
        "attended",
        "Compared features: after the attention and the convolution that follows, one convolution later (ours), "
        "or none.",
        fixed=True,
    )
    plave_blocks: int = setting(6, "Residual blocks of the trunk.", fixed=True, ge=1, le=16)
    plave_autoencoder_blocks: int = setting(
        6,
        "Residual blocks of the auto-encoder; 0: a 1x1 convolution and squeeze-and-excitation instead (ours).",
        fixed=True,
        ge=0,
        le=16,
    )
    plave_segmentation: bool = setting(
        default=True,
        description="A second decoder segments the tumour.",
        fixed=True,
    )
    plave_discriminator: Literal["patches", "autoencoder"] = setting(
        "patches",
        "What judges an image: a PatchGAN beside its sources, or the encoder of the auto-encoder, "
        "which then never stops learning (AE-GAN).",
        fixed=True,
    )
    plave_skips: bool = setting(
        default=False,
        description="The decoders also see the branches' larger features, fused (ours).",
        fixed=True,
    )

    # What a run goes through
    plave_pretraining: Decay = setting(
        0.4, "Share of the steps, the first ones, that train the self-representation network."
    )
    plave_loads: bool = setting(
        default=False,
        description="The generator starts from the self-representation network's weights; otherwise from its own.",
    )
    plave_supervised: Share = setting(
        0.0,
        "Share of the steps, those after the pretraining, in which the image terms alone teach the generator (ours).",
    )
    plave_coarse: Share = setting(
        0.0,
        "Share of the steps, those after the pretraining, that see half the resolution (ours).",
    )
    plave_ramp: Share = setting(
        0.0,
        "Share of the steps, those after the supervised ones, in which the other losses grow to their weights (ours).",
    )
    missing_targets: Share = setting(
        0.0,
        "Share of targets drawn as often as training cases lack the modality; the others uniformly (ours).",
    )
    plave_leave_out: Share = setting(
        0.5, "General model: share of slices with some sources left out (ours)."
    )
    plave_alone: Share = setting(
        0.0, "General model: share of slices that are made from a single source (ours)."
    )
    plave_gamma: Weight = setting(
        0.0, "Spread of the random gamma of each source: exp(N(0, this)); 0: none (ours)."
    )
    plave_tumour_slices: Share = setting(
        1.0, "Share of slices drawn from those with tumour, if that is known."
    )

    # Weights of the losses (Eq 5)
    plave_lambda_image: Weight = setting(100.0, "L1 to the true slice.")
    plave_lambda_structure: Weight = setting(
        0.0, "1 - SSIM to the true slice, in the brain (ours)."
    )
    plave_brain: bool = setting(
        default=False,
        description="The L1 to the true slice is a mean over the brain; otherwise over the whole slice (ours).",
    )
    plave_lambda_adv: Weight = setting(1.0, "Adversarial loss.")
    plave_lambda_discriminator: Weight = setting(0.5, "Both losses of the discriminator.")
    plave_lambda_patch: Weight = setting(0.1, "Contrastive loss (Eq 1).")
    plave_lambda_seg: Weight = setting(0.1, "Cross-entropy of the segmentation (Eq 3).")
    plave_lambda_branch: Weight = setting(0.1, "Branch features against the target's own.")
    plave_lambda_fused: Weight = setting(0.1, "Fused features against the target's own.")
    plave_lambda_decoder: Weight = setting(
        0.05, "Decoder features against the target's own (Eq 4)."
    )
    plave_divergence: losses.DivergenceScale = setting(
        "elements",
        "Eq 4: mean over all elements, summed over layers, as AE-GAN's, or over positions and layers (ours); "
        "absolute: L1 instead (Auto-GAN).",
    )

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Settings`."""
        unscaled = self.plave_lambda_patch > 0 and self.attention_scale == "none"
        return (patches.UNSCALED,) if unscaled else ()

    @model_validator(mode="after")
    def _require_fitting_phases(self) -> PlaveSettings:
        first, second = self.plave_pretraining, self.plave_supervised
        if first + second + self.plave_ramp > 1 + 1e-9:
            raise ValueError(
                f"plave_ramp: {self.plave_ramp:g} after plave_pretraining ({first:g}) and plave_supervised "
                f"({second:g}), expected a sum of at most 1"
            )
        if self.plave_coarse > second:
            raise ValueError(
                f"plave_coarse: {self.plave_coarse:g}, expected at most plave_supervised ({second:g}): "
                "only the image terms are learned from at half the resolution"
            )
        if self.plave_coarse and self.plave_fusion == "modality":
            raise ValueError(
                f"plave_coarse: {self.plave_coarse:g}, expected 0 with plave_fusion modality, "
                "whose weights belong to maps of one size"
            )
        if second and not max(self.plave_lambda_image, self.plave_lambda_structure):
            raise ValueError(
                f"plave_supervised: {second:g}, expected 0, and plave_coarse 0, "
                "without plave_lambda_image and plave_lambda_structure"
            )
        return self

    @model_validator(mode="after")
    def _require_networks_of_losses(self) -> PlaveSettings:
        for there, network, name in (
            (self.plave_segmentation, "plave_segmentation", "plave_lambda_seg"),
            (self.plave_contrast != "none", "plave_contrast", "plave_lambda_patch"),
        ):
            weight = getattr(self, name)
            if weight and not there:
                found = str(getattr(self, network)).lower()
                raise ValueError(f"{name}: {weight:g}, expected 0 with {network} {found}")
        return self
