"""A small method with labels and a batch for it: what the tests of AttGAN's and SuperstarGAN's steps share."""

from __future__ import annotations

from typing import Any

import torch
from helpers import small_settings
from slice_stores import FOUR
from torch import nn

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method


def new_method(name: str, **changes: Any) -> Method:
    """Return a new method, with the same weights for the same settings."""
    settings = small_settings(name, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS[name](settings, FOUR)


def batch_of(count: int = 3) -> DomainBatch:
    """Return random slices of 16x16 pixels; the last one has no pair."""
    noise = torch.Generator().manual_seed(5)
    x_src, x_ref, x_ref2, x_pair = (
        torch.rand(count, 1, 16, 16, generator=noise) * 1.8 - 0.9 for _ in range(4)
    )
    has_pair = torch.arange(count) < count - 1
    x_pair[~has_pair] = -1
    y_src = torch.arange(count) % 4
    return DomainBatch(
        x_src=x_src,
        y_src=y_src,
        x_ref=x_ref,
        x_ref2=x_ref2,
        y_ref=(y_src + 1) % 4,
        x_pair=x_pair,
        has_pair=has_pair,
    )


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())
