"""The patch sampler P: which positions are compared, and the head that makes them comparable (Eq 6).

The matrix of all similarities, HW x HW, never exists: entropies are computed a block of rows at a time, and only the
rows of the selected positions are kept.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.blocks import initialise

AttentionScale = Literal["none", "sqrt", "l2"]

UNSCALED = (
    "attention_scale is none, as published: 19 to 35 % of the rows of the attention matrix saturate on a real slice, "
    "so which patches are compared is partly chance; --set attention_scale=sqrt avoids that"
)
"""What a user of `none` should know (measured of AttCL-GAN at preset `paper`)."""

# Similarities that exist at once, of all slices together: on a CPU what its caches hold (four times as fast as what
# they do not hold), on a GPU enough to keep it busy.
_AT_ONCE = {"cpu": 2**20}
_AT_ONCE_ELSEWHERE = 2**25


class PatchHead(nn.Module):
    """Two-layer MLP, L2-normalised: what makes patches of one layer comparable (CUT, Section 3.2)."""

    def __init__(self, channels: int, hidden: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        initialise(self)

    def forward(self, patches: Tensor) -> Tensor:
        """Return rows of length 1: (B, R, C) -> (B, R, hidden)."""
        return F.normalize(self.mlp(patches), dim=-1)


def as_rows(features: Tensor) -> Tensor:
    """Return one row per position: (B, C, H, W) -> (B, HW, C)."""
    return features.flatten(2).transpose(1, 2)


def similarity_operand(rows: Tensor, scale: AttentionScale) -> Tensor:
    """Scale rows (B, HW, C) so that their plain dot products are the logits of the row softmax.

    Unscaled products saturate at many channels: every entropy is near 0, the ranking noise (method.md, section 2).
    """
    if scale == "l2":
        return F.normalize(rows, dim=-1)
    return rows / math.sqrt(math.sqrt(rows.shape[-1])) if scale == "sqrt" else rows


@torch.no_grad()
def row_entropies(rows: Tensor, *, scale: AttentionScale = "sqrt") -> Tensor:
    """Return the entropy of every row of softmax(P P^T) (Eq 6): (B, HW, C) -> (B, HW), in nats."""
    operand = similarity_operand(rows, scale)
    columns = operand.transpose(1, 2)
    at_once = _AT_ONCE.get(rows.device.type, _AT_ONCE_ELSEWHERE)
    entropies = []
    for block in operand.split(max(1, at_once // (rows.shape[0] * rows.shape[1])), dim=1):
        logits = block @ columns
        # Otherwise large logits cancel badly in float32
        logits -= logits.amax(dim=-1, keepdim=True)
        # H = log Z - sum exp(logit) * logit / Z: no logarithm of a probability that underflowed to 0
        exponentials = logits.exp()
        partition = exponentials.sum(dim=-1)
        weighted = exponentials.mul_(logits).sum(dim=-1)
        entropies.append((partition.log() - weighted / partition).clamp_min_(0))
    return torch.cat(entropies, dim=1)


@torch.no_grad()
def select(entropies: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` smallest entropies, smallest first: (B, HW) -> (B, min(count, HW)) int64."""
    return entropies.argsort(dim=1, stable=True)[:, :count]


@torch.no_grad()
def importance_rows(rows: Tensor, positions: Tensor, *, scale: AttentionScale = "sqrt") -> Tensor:
    """Return the selected rows I_p of softmax(P P^T): (B, HW, C), (B, R) -> (B, R, HW)."""
    operand = similarity_operand(rows, scale)
    return (gather(operand, positions) @ operand.transpose(1, 2)).softmax(dim=-1)


def gather(rows: Tensor, positions: Tensor) -> Tensor:
    """Return the rows at positions: (B, HW, C), (B, R) -> (B, R, C)."""
    return rows.gather(1, positions[..., None].expand(-1, -1, rows.shape[-1]))
