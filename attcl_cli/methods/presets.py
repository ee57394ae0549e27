"""The names of presets, and how a single setting is written on the command line.

Apart from `settings`, so that `attcl --help` and other commands start without loading its models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from attcl_cli.errors import UsageError

DEFAULT_METHOD = "attcl-gan"
DEFAULT_PRESET = "base"

# Sizes of slices alone: what else goes with a size is the method's own (`Settings.presets`).
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"image_size": 64},
    "small": {"crop": 128},
    "base": {"crop": 128},
    "paper": {},
}

# Presets that some of our methods have besides; whether one has it is known when it is loaded.
FURTHER_PRESETS = ("published",)


def parse_override(text: str) -> tuple[str, Any]:
    """Read `key=value`, the value as TOML (`0.1`, `true`, `[2, 3]`), bare words as strings."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f"--set: {text!r}, expected KEY=VALUE",
            "for example --set batch_size=4",
            code="malformed-override",
        )
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number of thousands of digits
        return key.strip(), value.strip()


def overrides_of(texts: Iterable[str] | None, **flags: Any) -> dict[str, Any]:
    """Return single settings as a command line gives them: those of `--set`, over which flags win.

    Args:
        texts: each `key=value`, as `parse_override` reads it.
        flags: setting -> value of its own flag; None: not given.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    return dict(parse_override(text) for text in texts or ()) | given
