"""The methods by name. A new one is a new file here and a line in `METHODS`; nothing else changes."""

from __future__ import annotations

from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.contract import (
    Batch,
    CaseBatch,
    CaseBatches,
    Method,
    Runtime,
    SliceBatches,
)
from attcl_cli.methods.plave import Plave

METHODS: dict[str, type[Method]] = {
    "attcl-gan": AttclGan,
    "plave": Plave,
}

__all__ = [
    "METHODS",
    "Batch",
    "CaseBatch",
    "CaseBatches",
    "Method",
    "Runtime",
    "SliceBatches",
]
