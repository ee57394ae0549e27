"""The methods by name. A new one is a new file here and a line in `METHODS`; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

from attcl_cli.config import Settings
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.contract import Batch, Method, Runtime

METHODS: dict[str, Callable[[Settings, tuple[str, ...]], Method]] = {
    "attcl-gan": AttclGan,
}

__all__ = ["METHODS", "Batch", "Method", "Runtime"]
