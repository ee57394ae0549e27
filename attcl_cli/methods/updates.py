"""What training steps of all methods share: an update over the parts of a batch, and contrastive learning of patches.

Knows no method; losses come in as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attcl_cli.methods import losses
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.networks import patches
from attcl_cli.methods.settings import Settings


class _Part(Protocol):
    def __len__(self) -> int: ...


Part = TypeVar("Part", bound=_Part)
Losses = dict[str, tuple[float, Tensor]]
"""Name -> (weight, loss); what is maximised weighs below 0."""


def update(
    parts: Sequence[Part],
    stepping: Sequence[Optimizer],
    loss_of: Callable[[Part], Losses],
    *,
    path: str,
    runtime: Runtime,
    device: torch.device,
) -> dict[str, Tensor]:
    """One step of the optimisers down the weighted sum of the losses.

    Args:
        parts: of the batch, after each other; their gradients add up to those of the whole.
        stepping: the optimisers.
        loss_of: the losses of a part, each a mean over its slices.
        path: what the names of the losses begin with.
        runtime, device: how and where.

    Returns:
        The losses of the whole batch, unweighted, as `<path>_<name>`.
    """
    for optimiser in stepping:
        optimiser.zero_grad(set_to_none=True)
    total = sum(len(part) for part in parts)
    found: dict[str, Tensor] = {}
    for part in parts:
        share = len(part) / total
        with runtime.autocast(device):
            losses_ = loss_of(part)
        objective = torch.stack(
            [weight * value.float() for weight, value in losses_.values()]
        ).sum()
        (share * objective).backward()
        for name, (_, value) in losses_.items():
            key = f"{path}_{name}"
            found[key] = found.get(key, 0) + share * value.detach().float()
    runtime.average(
        [
            parameter
            for optimiser in stepping
            for group in optimiser.param_groups
            for parameter in group["params"]
        ]
    )
    for optimiser in stepping:
        optimiser.step()
    return found


def contrast(
    head: nn.Module,
    source: Tensor,
    fake: Tensor,
    settings: Settings,
    *,
    positions: Tensor | None = None,
) -> Tensor:
    """Contrastive loss of the patches of one layer (Eq 1); nothing of the source side carries a gradient.

    Args:
        head: makes patches comparable.
        source, fake: (B, C, H, W), features of the source and of what was made of it.
        settings: how many patches, scaling and temperature.
        positions: (B, R), the patches to compare; None: those whose rows of the attention matrix have the smallest
            entropy, routed through these rows (Eq 6; QS-Attn).
    """
    rows = patches.as_rows(source).detach()
    fake_rows = patches.as_rows(fake)
    if positions is not None:
        query, key = patches.gather(fake_rows, positions), patches.gather(rows, positions)
    else:
        scale = settings.attention_scale
        # What is selected must not depend on rounding to 8 bits, so autocast is off here.
        with torch.autocast(rows.device.type, enabled=False):
            rows32 = rows.float()
            entropies = patches.row_entropies(rows32, scale=scale)
            chosen = patches.select(entropies, settings.contrastive_patches)
            importance = patches.importance_rows(rows32, chosen, scale=scale).to(rows.dtype)
        query, key = importance @ fake_rows, importance @ rows
    with torch.no_grad():
        key = head(key)
    return losses.patch_nce(head(query).float(), key.float(), temperature=settings.temperature)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module, but none are computed for its weights."""
    for parameter in module.parameters():
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.requires_grad = True
