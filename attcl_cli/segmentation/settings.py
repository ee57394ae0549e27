"""Every setting of a segmenter's training: names, types, bounds, presets.

Those of the methods that complete are in `methods`; so is the reading of `--set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from attcl_cli.methods.presets import DEFAULT_PRESET
from attcl_cli.methods.setting_fields import Decay, Positive, Rate, Share, Weight
from attcl_cli.methods.settings import require_preset, validated
from attcl_cli.segmentation.presets import PRESETS


class SegmentSettings(BaseModel):
    """The settings of a segmenter's training; frozen, and an unknown key is an error.

    Optimiser, batch and learning rate are the paper's (Section 4.1); it does not say how long or how wide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="Seeds weights, sampling, augmentation, bootstrap.")
    steps: Positive = Field(20_000, description="Training steps, of each input.")
    batch_size: Positive = Field(16, description="Slices per step.")
    image_size: Positive = Field(256, description="Side of the slices that the network sees.")
    canvas: Positive = Field(
        256, description="Side that slices are padded to, in voxels; averaged down to image_size."
    )
    width: Positive = Field(32, description="Channels of the first level; doubled at each next.")
    levels: Annotated[int, Field(ge=3, le=7)] = Field(5, description="Resolutions of the U-Net.")
    learning_rate: Rate = Field(1e-3, description="Learning rate of SGD.")
    learning_rate_decay: Share = Field(
        0.0,
        description="Share of the steps, the last ones, over which the learning rate falls to 0.",
    )
    momentum: Decay = Field(0.9, description="Momentum of SGD.")
    weight_decay: Weight = Field(1e-4, description="Weight decay of SGD.")
    tumour_share: Share = Field(
        0.5, description="Share of a batch that is drawn from slices with tumour."
    )
    augment: bool = Field(default=True, description="Mirror slices and vary their intensities.")
    log_every: Positive = Field(10, description="Steps between lines of stats.jsonl.")
    validate_every: Positive = Field(500, description="Steps between validations and checkpoints.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> SegmentSettings:
        least = (
            2**self.levels
        )  # the lowest level is two pixels wide: one has no variance to normalise
        if self.image_size % (least // 2) or self.image_size < least:
            raise ValueError(
                f"image_size: {self.image_size}, "
                f"expected a multiple of {least // 2} from {least} on with {self.levels} levels"
            )
        if self.canvas % self.image_size:
            raise ValueError(
                f"canvas: {self.canvas}, expected a multiple of image_size ({self.image_size})"
            )
        return self


def resolve(preset: str | None, overrides: Mapping[str, Any]) -> SegmentSettings:
    """Return the settings of a preset (None: `base`) with single ones changed.

    Raises:
        UsageError: unknown preset or key (with the nearest known one), wrong type or bound; all at once.
    """
    name = preset or DEFAULT_PRESET
    require_preset(name, PRESETS)
    return validated(SegmentSettings, {**PRESETS[name], **overrides})


def explain(settings: SegmentSettings) -> str:
    """Return the settings as TOML with what each one does."""
    lines = []
    for name, field in SegmentSettings.model_fields.items():
        value = tomli_w.dumps({name: getattr(settings, name)}).strip()
        lines.append(f"{value}  # {field.description}")
    return "\n".join(lines)
