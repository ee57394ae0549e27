"""What training steps of several methods share: contrastive learning of patches, networks held still.

Knows no method. The update of networks over the parts of a batch is `base.Method.update`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attcl_cli.methods import losses
from attcl_cli.methods.networks import patches


def contrast(
    head: nn.Module,
    source: Tensor,
    fake: Tensor,
    *,
    patches_compared: int,
    scale: patches.AttentionScale,
    temperature: float,
    positions: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of the patches of one layer (Eq 1); nothing of the source side carries a gradient.

    Args:
        head: makes patches comparable.
        source: (B, C, H, W), features of the source.
        fake: (B, C, H, W), features of its translation.
        patches_compared: how many patches of an image are compared (R).
        scale: of the dot products before the row softmax (Eq 6).
        temperature: tau of Eq 1.
        positions: (B, R), the patches to compare; None: those whose rows of the attention matrix have the smallest
            entropy, routed through these rows (Eq 6; QS-Attn).
    """
    rows = patches.as_rows(source).detach()
    fake_rows = patches.as_rows(fake)
    if positions is not None:
        query, key = patches.gather(fake_rows, positions), patches.gather(rows, positions)
    else:
        # What is selected must not depend on rounding to 8 bits, so autocast is off here.
        with torch.autocast(rows.device.type, enabled=False):
            rows32 = rows.float()
            entropies = patches.row_entropies(rows32, scale=scale)
            chosen = patches.select(entropies, patches_compared)
            importance = patches.importance_rows(rows32, chosen, scale=scale).to(rows.dtype)
        query, key = importance @ fake_rows, importance @ rows
    with torch.no_grad():
        key = head(key)
    return losses.patch_nce(head(query).float(), key.float(), temperature=temperature)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through the module, but compute none for its weights."""
    for parameter in module.parameters():
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.requires_grad = True
