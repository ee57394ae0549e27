"""The losses: free functions, one per equation of the papers; numbers are AttCL-GAN's unless PLAVE is named.

Knows tensors only; leaves networks and weights to the methods. All return a scalar, mean over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

DivergenceScale = Literal["elements", "positions", "absolute"]

_BRIGHT = 0.8  # nine tenths of the window, which is [-1, 1]
_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in pixels
_RANGE = 2.0  # of intensities


def real_loss(logits: Tensor) -> Tensor:
    """Return the binary cross-entropy against "real", of D on real and of G on fake slices (Eq 12): (B, ...) -> ()."""
    return F.softplus(-logits).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """Return the binary cross-entropy against "fake" (Eq 12): (B, ...) -> ()."""
    return F.softplus(logits).mean()


def r1_penalty(logits: Tensor, x_real: Tensor) -> Tensor:
    """Return 0.5 * |grad D(x_real)|^2, mean over the batch (Mescheder et al. 2018); `x_real` needs a gradient."""
    (gradient,) = torch.autograd.grad(logits.sum(), x_real, create_graph=True)
    return 0.5 * gradient.pow(2).flatten(1).sum(dim=1).mean()


def style_loss(style: Tensor, encoded: Tensor) -> Tensor:
    """Return the L1 between the code that went in and the one that E finds (Eq 13): (B, S), (B, S) -> ()."""
    return (style - encoded).abs().mean()


def diversity_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the L1 between two images of one source (Eq 14); it is maximised."""
    return (first - second).abs().mean()


def cycle_loss(x: Tensor, x_rec: Tensor) -> Tensor:
    """Return the L1 between a slice and its reconstruction (Eq 15)."""
    return (x - x_rec).abs().mean()


def style_code_diversity(codes: Tensor, domain: Tensor, *, bound: float) -> Tensor:
    """Return the mean distance between the code of the image's domain and all N codes (Eq 11); it is maximised.

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
    """Return the contrastive loss of patches (Eq 1): positives on the diagonal, negatives the image's other R - 1 rows.

    Args:
        queries: (B, R, K) of the generated image, rows of length 1.
        keys: (B, R, K) of the source at the same positions; they carry no gradient.
        temperature: tau.
    """
    logits = queries @ keys.detach().transpose(1, 2) / temperature
    target = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def paired_loss(
    x_fake: Tensor,
    x_pair: Tensor,
    has_pair: Tensor,
    *,
    bright: float = 1.0,
    share: float | None = None,
) -> Tensor:
    """Return the L1 to the true slice, over the slices whose case has it (ours, method.md); 0 if none has.

    Args:
        x_fake: (B, 1, H, W).
        x_pair: (B, 1, H, W), the true slices.
        has_pair: (B,) bool.
        bright: how many times pixels count that are brighter than nine tenths of the window in truth.
        share: share of slices with a pair in the whole batch, if this is a part of one: means of equal parts then
            average to the mean of the whole. None: this is the whole.
    """
    distance = (x_fake - x_pair).abs()
    distance = torch.where(x_pair > _BRIGHT, bright * distance, distance)
    return _mean_where(distance.mean(dim=(1, 2, 3)), has_pair, share)


def structure_loss(
    x_fake: Tensor,
    x_pair: Tensor,
    has_pair: Tensor,
    *,
    share: float | None = None,
) -> Tensor:
    """Return 1 - SSIM in the brain, over the slices whose case has the true slice (ours); 0 if none has.

    SSIM has a Gaussian window of sigma 1.5 and 11 pixels (Wang et al. 2004), as `scoring.formulas.ssim` in 2-D. The
    brain is where the true slice is not background. Intensities in [-1, 1].

    Args:
        x_fake: (B, 1, H, W).
        x_pair: (B, 1, H, W), the true slices.
        has_pair: (B,) bool.
        share: as of `paired_loss`.
    """
    similarity = _ssim_map(x_fake, x_pair)
    brain = (x_pair > -1).to(similarity.dtype)
    area = brain.sum(dim=(1, 2, 3)).clamp_min(1)
    per_slice = ((1 - similarity) * brain).sum(dim=(1, 2, 3)) / area
    return _mean_where(per_slice, has_pair, share)


def _ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """Return the SSIM of each pixel of two images (B, 1, H, W) in [-1, 1], float32."""
    height, width = first.shape[2:]
    down = _bells(height, first.device)
    across = down if height == width else _bells(width, first.device)
    # Variances are differences of numbers that can be alike: in bf16 nothing would be left of them.
    with torch.autocast(first.device.type, enabled=False):
        # All five means in one call; products of matrices take a tenth of a convolution's time.
        planes = torch.cat([first, second, first * first, second * second, first * second])
        a, b, aa, bb, ab = (down @ (planes @ across)).chunk(5)
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    structure = (2 * (ab - a * b) + c2) / ((aa - a * a) + (bb - b * b) + c2)
    return (2 * a * b + c1) / (a * a + b * b + c1) * structure


def _bells(length: int, device: torch.device) -> Tensor:
    """Return the matrix that SSIM's Gaussian window multiplies a line of pixels by, beyond which is 0: (L, L)."""
    places = torch.arange(length, device=device)
    distance = (places[:, None] - places).float()
    whole = torch.arange(_WINDOW, device=device) - _WINDOW // 2
    bell = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    bell = bell / torch.exp(-(whole**2) / (2 * _SIGMA**2)).sum()
    return torch.where(distance.abs() <= _WINDOW // 2, bell, torch.zeros_like(bell))


def image_loss(x_fake: Tensor, x_real: Tensor, *, brain: bool = False) -> Tensor:
    """Return the L1 between an image and the true one (PLAVE; pix2pix).

    Args:
        x_fake: (B, 1, H, W).
        x_real: (B, 1, H, W), in [-1, 1].
        brain: the mean is over the pixels of each slice whose true value is not background (ours); otherwise over all.
    """
    distance = (x_fake - x_real).abs()
    if not brain:
        return distance.mean()
    inside = (x_real > -1).to(distance.dtype)
    area = inside.sum(dim=(1, 2, 3)).clamp_min(1)
    return ((distance * inside).sum(dim=(1, 2, 3)) / area).mean()


def segmentation_loss(
    logits: Tensor, labels: Tensor, has_labels: Tensor, *, share: float | None = None
) -> Tensor:
    """Return the cross-entropy of every pixel, over the slices whose case has a segmentation (PLAVE, Eq 3).

    It is 0 if none has.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64.
        has_labels: (B,) bool.
        share: as of `paired_loss`.
    """
    per_slice = F.cross_entropy(logits, labels, reduction="none").mean(dim=(1, 2))
    return _mean_where(per_slice, has_labels, share)


def branch_loss(features: Tensor, expected: Tensor, present: Tensor) -> Tensor:
    """Return the mean squared distance of each source's features from the target's own, mean over those present.

    Args:
        features: (B, M, C, H, W).
        expected: (B, C, H, W) of the self-representation network; carries no gradient.
        present: (B, M) bool, at least one per row.
    """
    squared = (features - expected.detach()[:, None]).pow(2).mean(dim=(2, 3, 4))
    there = torch.where(present, squared, torch.zeros_like(squared))
    return (there.sum(dim=1) / present.sum(dim=1)).mean()


def fused_loss(features: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared distance of fused features from the target's own (PLAVE): (B, C, H, W).

    The expected ones carry no gradient.
    """
    return F.mse_loss(features, expected.detach())


def decoder_loss(
    features: Sequence[Tensor], expected: Sequence[Tensor], *, scale: DivergenceScale = "elements"
) -> Tensor:
    """Return the KL divergence of decoder features from the target's own (PLAVE, Eq 4).

    The paper names no distribution. AE-GAN's, whose loss this is: at each position, the softmax over the channels;
    KL(expected || features) in nats. The expected ones carry no gradient.

    Args:
        features: (B, C, H, W) per layer.
        expected: (B, C, H, W) per layer, of the self-representation network.
        scale: `elements` is AE-GAN's mean over all elements, channels too, summed over the layers; `positions` sums
            over the channels, and is the mean over positions, batch and layers (ours). `absolute`: no divergence, but
            the L1 of the features themselves, mean over the elements and summed over the layers (Auto-GAN).
    """
    if scale == "absolute":
        pairs = zip(features, expected, strict=True)
        return torch.stack([(layer - true.detach()).abs().mean() for layer, true in pairs]).sum()
    divergences = []
    for layer, true in zip(features, expected, strict=True):
        log_p, log_q = true.detach().log_softmax(dim=1), layer.log_softmax(dim=1)
        each = log_p.exp() * (log_p - log_q)
        divergences.append(each.mean() if scale == "elements" else each.sum(dim=1).mean())
    total = torch.stack(divergences)
    return total.sum() if scale == "elements" else total.mean()


def _mean_where(per_slice: Tensor, chosen: Tensor, share: float | None) -> Tensor:
    """Return the mean over the chosen slices (B,); of a part, so that parts average to the mean of the whole."""
    total = torch.where(chosen, per_slice, torch.zeros_like(per_slice)).sum()
    if share is None:
        return total / chosen.sum().clamp_min(1)
    return total / max(len(per_slice) * share, 1e-9)
