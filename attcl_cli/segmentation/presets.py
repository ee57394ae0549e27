"""The presets of a segmenter's training; apart from `settings`, so that commands start without loading its models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Small ones are trained for minutes, so they take larger steps, as the methods' presets do.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"image_size": 64, "width": 8, "levels": 4, "steps": 1_000, "learning_rate": 0.02, "validate_every": 100},
    "small": {"image_size": 128, "width": 16, "steps": 5_000, "learning_rate": 0.01, "validate_every": 250},
    "base": {},
}  # fmt: skip
