"""The adversarial losses of all methods in one function, and the gradient penalty of WGAN-GP.

Knows tensors only: which network judges what, and the weights, are left to the methods. All return a scalar, a mean
over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Adversary = Literal["wgan", "hinge", "lsgan"]
Judged = Literal["real", "fake", "fooled"]


def adversarial_loss(logits: Tensor, kind: Adversary, judged: Judged) -> Tensor:
    """Return one adversarial term: of D on real or on fake slices, or of G, whose slices should pass as real.

    With l the logits: `wgan` (Arjovsky et al. 2017) -l, l, -l; `hinge` (Lim and Ye 2017) max(0, 1 - l), max(0, 1 + l),
    -l; `lsgan` (Mao et al. 2017) (l - 1)^2, l^2, (l - 1)^2.

    Args:
        logits: (B, ...), one per slice or a map; the mean is over all of them.
        kind: the family.
        judged: `real` and `fake` are D's terms, `fooled` is G's.
    """
    wide = logits.float()
    signed = wide if judged == "fake" else -wide  # what the term wants small
    if kind == "wgan" or (kind == "hinge" and judged == "fooled"):
        return signed.mean()
    if kind == "hinge":
        return F.relu(1 + signed).mean()
    expected = torch.zeros_like(wide) if judged == "fake" else torch.ones_like(wide)
    return F.mse_loss(wide, expected)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, alpha: Tensor
) -> Tensor:
    """Return (|grad D(x)| - 1)^2, mean over the batch, x on the lines from fake to real (Gulrajani et al. 2017, Eq 3).

    Computed in float32 whatever autocast says: in bfloat16 the norms of small gradients are lost.

    Args:
        critic: slices -> logits (B, ...); those of a map are summed up.
        real: (B, 1, H, W).
        fake: (B, 1, H, W); it gets no gradient.
        alpha: (B,) in [0, 1], the places on the lines: 0 is fake, 1 is real.
    """
    with torch.autocast(real.device.type, enabled=False):
        x = torch.lerp(fake.detach().float(), real.float(), alpha.float()[:, None, None, None])
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        lengths = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        penalty: Tensor = (lengths - 1).pow(2).mean()
        return penalty
