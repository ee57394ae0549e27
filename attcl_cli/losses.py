"""The losses: free functions, one an equation of the AttCL-GAN paper, the number in the docstring.

Knows tensors only; which network made them is `methods`' business. All return a scalar, mean over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def real_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy against "real", of D on real and of G on fake slices (Eq 12): (B,) -> ()."""
    return F.softplus(-logits).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy against "fake" (Eq 12): (B,) -> ()."""
    return F.softplus(logits).mean()


def r1_penalty(logits: Tensor, x_real: Tensor) -> Tensor:
    """0.5 * |grad D(x_real)|^2, mean over the batch (Mescheder et al. 2018); `x_real` must require a gradient."""
    (gradient,) = torch.autograd.grad(logits.sum(), x_real, create_graph=True)
    return 0.5 * gradient.pow(2).flatten(1).sum(dim=1).mean()


def style_loss(style: Tensor, style_found: Tensor) -> Tensor:
    """L1 between the code that went in and the one found in the image (Eq 13): (B, S), (B, S) -> ()."""
    return (style - style_found).abs().mean()


def diversity_loss(first: Tensor, second: Tensor) -> Tensor:
    """L1 between two images of one source (Eq 14); it is maximised."""
    return (first - second).abs().mean()


def cycle_loss(x: Tensor, x_rec: Tensor) -> Tensor:
    """L1 between a slice and its reconstruction (Eq 15)."""
    return (x - x_rec).abs().mean()


def style_code_diversity(codes: Tensor, domain: Tensor, *, bound: float) -> Tensor:
    """Mean distance between the code of the image's domain and all N codes (Eq 11); it is maximised.

    Eq 11 has no upper end, so a long run would drift to infinity: a distance beyond `bound` counts as `bound`, and
    gives no gradient. The distance of a code to itself is 0 and counts in the mean, as printed.

    Args:
        codes: (B, N, S), all domains.
        domain: (B,) int64.
        bound: the largest distance that counts.
    """
    own = codes[torch.arange(codes.shape[0], device=codes.device), domain]
    squared = (own[:, None] - codes).pow(2).sum(dim=-1)
    # The root's derivative is infinite at 0, where the code meets itself.
    distance = torch.where(squared > 0, squared.clamp_min(1e-12).sqrt(), torch.zeros_like(squared))
    return distance.clamp_max(bound).mean()


def patch_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """Contrastive loss of patches (Eq 1): positives on the diagonal, negatives the image's other R - 1 rows.

    Args:
        queries: (B, R, K) of the generated image, rows of length 1.
        keys: (B, R, K) of the source at the same positions; they carry no gradient.
        temperature: tau.
    """
    logits = queries @ keys.detach().transpose(1, 2) / temperature
    target = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def paired_loss(
    x_fake: Tensor, x_pair: Tensor, has_pair: Tensor, *, share: float | None = None
) -> Tensor:
    """L1 to the true slice, over the slices whose case has it (ours, method.md); 0 where none has.

    Args:
        x_fake, x_pair: (B, 1, H, W).
        has_pair: (B,) bool.
        share: share of slices with a pair in the whole batch, where this is a part of one: means of equal parts then
            average to the mean of the whole. None: this is the whole.
    """
    per_slice = (x_fake - x_pair).abs().mean(dim=(1, 2, 3))
    total = torch.where(has_pair, per_slice, torch.zeros_like(per_slice)).sum()
    if share is None:
        return total / has_pair.sum().clamp_min(1)
    return total / max(len(per_slice) * share, 1e-9)
