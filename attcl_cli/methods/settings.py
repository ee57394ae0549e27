"""Every setting of a training run: names, types, bounds, presets, and TOML in and out.

Knows no network and no file format but its own; what a setting does is documented where it is used.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from attcl_cli.errors import AttclError, UsageError, nearest, raise_all
from attcl_cli.files import read_toml

Positive = Annotated[int, Field(gt=0)]


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Rate = Annotated[float, Field(gt=0, lt=1)]


Model = TypeVar("Model", bound=BaseModel)


_LEAST_SIZE = 16  # pixels; D and E end at 4x4


class Settings(BaseModel):
    """The settings of one training run; frozen, and an unknown key is an error.

    The defaults are the paper's (Section 4.4 and method.md); `PRESETS` says what differs where.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field("attcl-gan", description="Which method is trained.")
    seed: int = Field(0, ge=0, description="Seeds weights, sampling and latent codes.")

    # Images
    image_size: Positive = Field(
        256, description="Side of the square slices that the networks see, in pixels."
    )
    canvas: Positive = Field(
        256,
        description="Side of the square that slices are padded to, in voxels; averaged down to image_size.",
    )

    keep_background: bool = Field(
        default=False,
        description="What is background in the sources stays so, in training as in completion (ours).",
    )

    # Networks (method.md, sections 2 and 6); a description that names a method says that no other looks at the setting
    width: Positive = Field(64, description="Channels of the first convolution.")
    max_width: Positive = Field(512, description="Channels never grow beyond this.")
    downs: Annotated[int, Field(ge=1, le=6)] = Field(
        4, description="AttCL-GAN: halvings in the generator's encoder."
    )
    bottleneck: Annotated[int, Field(ge=0, le=8)] = Field(
        2, description="AttCL-GAN: residual blocks at the smallest size, on each side."
    )
    full_size_skips: bool = Field(
        default=False,
        description="AttCL-GAN: the decoder sees the source at full size, too, and learns the difference (ours).",
    )
    style_dim: Positive = Field(
        64, description="Length of a style code (AttCL-GAN), or of a target's code (PLAVE)."
    )
    latent_dim: Positive = Field(
        16, description="AttCL-GAN: length of the latent z of the mapping network."
    )
    mapping_width: Positive = Field(
        512, description="AttCL-GAN: width of the mapping network's layers."
    )

    # AttCL-GAN's switches (Table 4); all off is StarGAN v2. The three settings of patches are PLAVE's, too
    acl: Literal["none", "cut", "qs", "attention"] = Field(
        "attention", description="AttCL-GAN: contrastive learning: which patches are compared."
    )
    att_adain: bool = Field(
        default=True,
        description="AttCL-GAN: add the refined encoder features to the decoder's (Eq 8, 9).",
    )
    scd: bool = Field(
        default=True,
        description="AttCL-GAN: push style codes of different modalities apart (Eq 11).",
    )
    contrastive_layers: tuple[Positive, ...] = Field(
        (2, 3), description="AttCL-GAN: encoder layers whose patches are compared."
    )
    contrastive_patches: Positive = Field(
        256, description="Patches compared per layer and image (R)."
    )
    attention_scale: Literal["none", "sqrt", "l2"] = Field(
        "sqrt", description="Scaling of the dot products before the row softmax (Eq 6)."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.07, description="Temperature of the contrastive loss (Eq 1)."
    )

    # AttCL-GAN's weights of the losses (Eq 16)
    lambda_sty: Weight = Field(1.0, description="AttCL-GAN: style reconstruction (Eq 13).")
    lambda_cyc: Weight = Field(1.0, description="AttCL-GAN: cycle consistency (Eq 15).")
    lambda_ds: Weight = Field(
        1.0, description="AttCL-GAN: diversity (Eq 14); falls linearly to 0 over the run."
    )
    lambda_patch: Weight = Field(1.0, description="AttCL-GAN: contrastive loss (Eq 1).")
    lambda_scd: Weight = Field(0.1, description="AttCL-GAN: style code diversity (Eq 11).")
    scd_bound: Annotated[float, Field(gt=0)] = Field(
        10.0, description="AttCL-GAN: style code distances beyond this no longer count."
    )
    lambda_r1: Weight = Field(
        1.0, description="AttCL-GAN: R1 gradient penalty of the discriminator."
    )
    lambda_pair: Weight = Field(
        0.0,
        description="AttCL-GAN: L1 to the true target slice where the training case has it (ours).",
    )
    pair_bright: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.0,
        description="AttCL-GAN: how many times the brightest pixels of the true slice count in that L1 (ours).",
    )

    # PLAVE only (method.md, section 6)
    plave_target: str = Field(
        "",
        description="PLAVE: the one modality that a dedicated model makes; empty: a general model makes any.",
    )
    plave_blocks: Annotated[int, Field(ge=1, le=16)] = Field(
        6, description="PLAVE: residual blocks of the trunk."
    )
    plave_skips: bool = Field(
        default=False,
        description="PLAVE: the decoders also see the branches' larger features, fused (ours).",
    )
    plave_pretraining: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.4,
        description="PLAVE: share of the steps, the first ones, that train the self-representation network.",
    )
    plave_leave_out: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="PLAVE, general model: share of slices with some sources left out (ours)."
    )
    plave_tumour_slices: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="PLAVE: share of slices drawn from those with tumour, where that is known."
    )
    plave_lambda_image: Weight = Field(100.0, description="PLAVE: L1 to the true slice.")
    plave_lambda_patch: Weight = Field(0.1, description="PLAVE: contrastive loss (its Eq 1).")
    plave_lambda_seg: Weight = Field(
        0.1, description="PLAVE: cross-entropy of the segmentation (its Eq 3)."
    )
    plave_lambda_branch: Weight = Field(
        0.1, description="PLAVE: branch features against the target's own."
    )
    plave_lambda_fused: Weight = Field(
        0.1, description="PLAVE: fused features against the target's own."
    )
    plave_lambda_decoder: Weight = Field(
        0.05, description="PLAVE: decoder features against the target's own (its Eq 4)."
    )

    # Optimisation
    steps: Positive = Field(100_000, description="Training iterations.")
    pair_targets: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="AttCL-GAN: share of targets drawn from the modalities that the source's case has (ours).",
    )
    mirror: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of slices mirrored left to right (ours)."
    )
    batch_size: Positive = Field(8, description="Slices an iteration.")
    micro_batch: Annotated[int, Field(ge=0)] = Field(
        0, description="Slices at once; gradients of the parts add up. 0: the whole batch."
    )
    learning_rate: Rate = Field(
        1e-4, description="Adam step of all networks (AttCL-GAN: but the mapping network)."
    )
    learning_rate_mapping: Rate = Field(
        1e-6, description="AttCL-GAN: Adam step of the mapping network."
    )
    learning_rate_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of the steps, the last ones, over which all Adam steps fall linearly to 0 (ours).",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Adam: decay of the mean of the gradients."
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99, description="Adam: decay of the mean of their squares."
    )
    weight_decay: Weight = Field(1e-4, description="Adam: weight decay.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="Decay of the averaged weights that completion uses."
    )

    # Bookkeeping
    log_every: Positive = Field(10, description="Steps between lines of stats.jsonl.")
    save_every: Positive = Field(500, description="Steps between checkpoints.")
    sample_every: Positive = Field(500, description="Steps between sample pictures.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Settings:
        if self.image_size < _LEAST_SIZE or self.image_size & (self.image_size - 1):
            raise ValueError(
                f"image_size: {self.image_size}, expected a power of two of at least {_LEAST_SIZE}"
            )
        if self.canvas % self.image_size:
            raise ValueError(
                f"canvas: {self.canvas}, expected a multiple of image_size ({self.image_size})"
            )
        if self.image_size < 4 * 2**self.downs:
            raise ValueError(
                f"downs: {self.downs}, "
                f"expected at most {(self.image_size // 4).bit_length() - 1} at image_size {self.image_size}"
            )
        wrong = [layer for layer in self.contrastive_layers if layer > self.downs]
        if wrong:
            raise ValueError(
                f"contrastive_layers: {wrong}, expected layers from 1 to downs ({self.downs})"
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


# What a preset changes in the defaults. `paper` is the published set-up; the others add the paired term
# (method.md, "Beyond the paper") with the weight that L1 has in pix2pix and ACA-GAN, and beside it the contrastive loss
# with the weight that it has beside such an L1 in PLAVE: at 1 it holds the paired term back (500 steps of tiny on
# phantoms, SSIM on the validation cases .304; .373 at 0.1; .386 without). The small ones also take larger
# steps, with momentum, since they are trained for minutes: 300 steps of tiny on phantoms, 12 directions, mean SSIM in
# the brain .438 with momentum .5, .404 without. These steps shrink over the whole run, for at full size they undo what
# was learnt now and then: 1,500 steps of the paired term alone, tiny, give .719; .477 where the last fifth shrinks.
# Wider networks do not bear steps of 1e-3: `small` on patients lost its style codes (g_latent_sty 13,000) at step 90.
# What completion does with the background is done in training, too; in-brain SSIM after 300 steps of the paired term
# alone: .305, else .224. All of them see half of the slices mirrored, for small cohorts are overfitted soon.
# The decoder sees the source at full size, for fine detail: 1,500 steps of the paired term alone, .766, else .719.
# `tiny` also weighs the brightest pixels, or its T1ce lacks the bright tail (t1 -> t1ce .719, .683 without); what that
# does to patients is not measured yet, so the others do not.
# Nor does PLAVE see slices with tumour alone there, for completion makes the others, too; and it has skips.
_OURS: dict[str, Any] = {
    "keep_background": True,
    "mirror": 0.5,
    "plave_tumour_slices": 0.5,
    "plave_skips": True,
}


_PAIRED: dict[str, Any] = {
    "lambda_pair": 100.0,
    "lambda_patch": 0.1,
    "pair_targets": 0.75,
    "full_size_skips": True,
    **_OURS,
}


_QUICK: dict[str, Any] = _PAIRED | {
    "learning_rate": 1e-3,
    "learning_rate_mapping": 1e-5,
    "beta1": 0.5,
    "learning_rate_decay": 1.0,
    "plave_pretraining": 0.1,
}


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 64, "width": 16, "max_width": 128, "downs": 3, "mapping_width": 128,
             "contrastive_layers": (1, 2), "ema_decay": 0.995, "steps": 3_000, **_QUICK, "pair_bright": 10.0},
    "small": {"image_size": 128, "width": 32, "max_width": 256, "mapping_width": 256, "steps": 20_000, **_QUICK,
              "learning_rate": 3e-4, "learning_rate_mapping": 3e-6},
    "base": {"width": 32, "max_width": 256, **_PAIRED},
    "paper": {},
}  # fmt: skip


# What other methods' papers fix otherwise (the defaults are AttCL-GAN's); a preset, a file and the line are stronger.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "plave": {"batch_size": 4, "beta1": 0.5, "beta2": 0.999, "weight_decay": 0.0},
}


# Kind of error (pydantic's) -> how such a value is written.
_WRITTEN = {
    "tuple_type": "lists are written [1, 2]; ",
    "bool_parsing": "expected true or false; ",
}


_TITLES = {"attcl-gan": "AttCL-GAN", "plave": "PLAVE"}  # what begins a description names the method


# What a run keeps when it is resumed: its networks, its data and its random numbers hang on these.
FIXED = (
    "method", "seed", "image_size", "canvas", "width", "max_width", "downs", "bottleneck", "full_size_skips",
    "style_dim", "latent_dim", "mapping_width", "acl", "att_adain", "contrastive_layers",
    "plave_target", "plave_blocks", "plave_skips",
)  # fmt: skip


# The paper's switches by name: the eight rows of Table 4, and the two contrastive baselines of Table 2.
_OFF: dict[str, Any] = {"acl": "none", "att_adain": False, "scd": False}


VARIANTS: dict[str, dict[str, Any]] = {
    "attcl-gan": {"acl": "attention", "att_adain": True, "scd": True},
    "stargan-v2": _OFF,
    "acl": {**_OFF, "acl": "attention"},
    "att-adain": {**_OFF, "att_adain": True},
    "scd": {**_OFF, "scd": True},
    "acl+att-adain": {**_OFF, "acl": "attention", "att_adain": True},
    "acl+scd": {**_OFF, "acl": "attention", "scd": True},
    "att-adain+scd": {**_OFF, "att_adain": True, "scd": True},
    "stargan-v2+cut": {**_OFF, "acl": "cut"},
    "stargan-v2+qs": {**_OFF, "acl": "qs"},
}


def resolve(
    *,
    preset: str,
    variant: str | None = None,
    file: Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> Settings:
    """Builds the settings of a run: the method's defaults, preset, TOML file, variant, overrides; later ones win.

    Args:
        preset: a key of `PRESETS`.
        variant: a key of `VARIANTS`, or None for what preset and file say.
        file: a TOML file of settings, as `dump` writes it; may name its own `preset`.
        overrides: single settings, values as TOML would give them.

    Raises:
        UsageError: unknown preset, unknown key (with the nearest known one), wrong type or bound; all at once.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = read_toml(file, wanted="a file of `key = value` lines")
        preset = values.pop("preset", preset)
    if preset not in PRESETS:
        raise UsageError(
            f"--preset: {preset!r}, expected one of {', '.join(PRESETS)}", nearest(preset, PRESETS)
        )
    if variant is not None and variant not in VARIANTS:
        raise UsageError(
            f"--variant: {variant!r}, expected one of {', '.join(VARIANTS)}",
            nearest(variant, VARIANTS),
        )
    chosen = values | VARIANTS.get(variant or "", {}) | (overrides or {})
    method = chosen.get("method", "attcl-gan")
    if variant is not None and method != "attcl-gan":
        raise UsageError(
            f"--variant: {variant!r} with method {method}, expected it with attcl-gan alone",
            "leave out --variant; settings of PLAVE begin with plave_: --set plave_lambda_seg=0",
        )
    own = METHOD_DEFAULTS.get(method, {}) if isinstance(method, str) else {}
    merged = own | PRESETS[preset] | chosen
    problems: list[AttclError] = [
        UsageError(
            f"setting {key}: is {_TITLES[owner]}'s, found it with method {method}, expected --method {owner}",
            f"add --method {owner}, or leave it out",
        )
        for key in overrides or {}
        if (owner := _owner(key)) and method in _TITLES and owner != method
    ]
    problems += [
        UsageError(
            f"setting {key!r}: no such setting, "
            "expected one of those that `attcl train --dry-run` lists",
            nearest(key, Settings.model_fields),
        )
        for key in merged
        if key not in Settings.model_fields
    ]
    raise_all(problems)
    return parse(merged)


def parse(values: dict[str, Any]) -> Settings:
    """Validates the settings of a training run, with each complaint as a `UsageError` that names the key."""
    return validated(Settings, values)


def validated(kind: type[Model], values: dict[str, Any]) -> Model:
    """Validates a dict as a model of settings, with each complaint as a `UsageError` that names the key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems: list[AttclError] = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            text = item["msg"].removeprefix("Value error, ")
            problems.append(
                UsageError(
                    f"setting {key}: found {item['input']!r}, {_wanted(text)}"
                    if key
                    else f"setting {text}",
                    _WRITTEN.get(item["type"], "") + "--dry-run shows every setting",
                )
            )
        raise_all(problems)
        raise


def _wanted(text: str) -> str:
    """pydantic's complaint in our words: `Input should be ...` -> `expected ...`."""
    ours = re.sub(r"^(Input|Value) should be ", "expected ", text)
    return ours[0].lower() + ours[1:]


def parse_override(text: str) -> tuple[str, Any]:
    """Reads `key=value`, the value as TOML (`0.1`, `true`, `[2, 3]`), bare words as strings."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set: {text!r}, expected KEY=VALUE", "for example --set batch_size=4")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _owner(key: str) -> str:
    """The one method that looks at a setting; nothing where all do, or where there is no such setting."""
    field = Settings.model_fields.get(key)
    told = (field.description if field else "") or ""
    return next((method for method, title in _TITLES.items() if told.startswith(title)), "")


def dump(settings: Settings) -> str:
    """The settings as TOML, every key, in the order of the class."""
    return tomli_w.dumps(settings.model_dump(mode="json"))


def explain(settings: Settings) -> str:
    """The settings that the method looks at, as TOML with what each one is."""
    lines = []
    for name, field in type(settings).model_fields.items():
        if _owner(name) not in {"", settings.method}:
            continue
        value = tomli_w.dumps({name: settings.model_dump(mode="json")[name]}).strip()
        lines.append(f"{value}  # {field.description}" if field.description else value)
    return "\n".join(lines)
