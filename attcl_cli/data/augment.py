"""Random changes of training images that keep what is true of them: contrast, shading, noise, shape.

Functions of a random generator. Who is changed, and how often, is left to the samplers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attcl_cli.data.intensities import Array

GAMMA = 0.15  # spread of the random power of `change_appearance`
_SHADING = 0.2  # the bias field is within 1 +- this
_FIELD = 17  # points that the field is computed at, along each side
_NOISE = 0.02  # largest standard deviation, of the window
_TURN = 10.0  # degrees, largest rotation
_ZOOM = 0.1  # largest change of size
_KNOTS = 4  # of the elastic deformation, along each side
_BEND = 0.02  # its standard deviation at the knots, of half a side
MARGIN = 0.15  # what a warped square may be read from on each side of itself, of its side


def change_contrast(images: Tensor, spread: float, rng: np.random.Generator) -> Tensor:
    """Raise the intensities of each image to a power of its own, exp(N(0, spread)).

    Args:
        images: (K, C, S, S) float32 in [-1, 1]; the C planes of an image have one power.
        spread: standard deviation of the logarithm of the power.
        rng: draws the powers.

    Returns:
        Images of the same shape and range; background stays -1 exactly.
    """
    powers = np.exp(rng.normal(0, spread, len(images))).astype(np.float32)
    changed = ((images + 1) / 2).pow_(torch.from_numpy(powers)[:, None, None, None])
    return changed.mul_(2).sub_(1)


def change_appearance(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Change what depends on the scanner: contrast by a random gamma, a smooth bias field, noise.

    Args:
        images: (K, C, S, S) float32 in [-1, 1]; the C planes of an image have one gamma and one field.
        rng: draws all.

    Returns:
        Images of the same shape and range; background stays -1 exactly.
    """
    values = change_contrast(images, GAMMA, rng).add_(1).div_(2)
    values.mul_(_bias_fields(len(images), images.shape[-1], rng).add_(1))
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    sigma = rng.uniform(0, _NOISE, len(images)).astype(np.float32)
    values.add_(noise.mul_(torch.from_numpy(sigma)[:, None, None, None]))
    return torch.where(images > -1, values.clamp_(0, 1).mul_(2).sub_(1), images)


def warp_grids(count: int, side: int, rng: np.random.Generator) -> Tensor:
    """Draw rotations within 10 degrees, changes of size within 10 %, and mild elastic deformations.

    Returns:
        (count, side, side, 2) float32: the place (x, y) that each pixel of a warped square is read from, in half sides
        from the middle of the square.
    """
    angle = np.deg2rad(rng.uniform(-_TURN, _TURN, count))
    scale = rng.uniform(1 - _ZOOM, 1 + _ZOOM, count)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    affine = np.concatenate([matrix, np.zeros((2, 1, count))], axis=1).transpose(2, 0, 1)
    plain = F.affine_grid(
        torch.from_numpy(affine.astype(np.float32)), [count, 1, side, side], align_corners=False
    )
    knots = rng.normal(0, _BEND, (count, 2, _KNOTS, _KNOTS)).astype(np.float32)
    bent = F.interpolate(
        torch.from_numpy(knots), size=(side, side), mode="bicubic", align_corners=True
    )
    return plain + bent.movedim(1, -1)


def warp_images(images: Tensor, grids: Tensor) -> Tensor:
    """Warp images bilinearly; background takes no part, so that the rim of the brain does not darken.

    Args:
        images: (K, C, W, W) float32 in [-1, 1], with a margin around the squares that are wanted.
        grids: (K, S, S, 2) of `warp_grids`, S at most W.

    Returns:
        (K, C, S, S): -1 exactly if the nearest pixel is background or beyond the image.
    """
    places = grids * (grids.shape[1] / images.shape[-1])
    brain = (images > -1).to(images.dtype)
    both = torch.cat([(images + 1).mul_(brain), brain], dim=1)  # one call computes the places once
    read = F.grid_sample(both, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    values, weights = read.chunk(2, dim=1)
    warped = values.div_(weights.clamp_min_(1e-6)).sub_(1).clamp_(-1, 1)
    outside = F.grid_sample(brain, places, mode="nearest", align_corners=False) == 0
    return warped.masked_fill_(outside, -1)


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn images about their middle, bilinearly; background takes no part (`warp_images`).

    Args:
        images: (K, C, S, S) float32 in [-1, 1].
        degrees: (K,), counter-clockwise as images are shown, row 0 on top.

    Returns:
        Images of the same shape; -1 exactly where the nearest pixel is background or beyond the image.
    """
    angle = torch.deg2rad(degrees.to(images.dtype))
    cosine, sine, nothing = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [torch.stack([cosine, -sine, nothing], 1), torch.stack([sine, cosine, nothing], 1)]
    grids = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return warp_images(images, grids)


def warp_labels(labels: Tensor, grids: Tensor) -> Tensor:
    """Warp label maps as `warp_images` does, by the nearest pixel: (K, W, W) int64 -> (K, S, S) int64."""
    places = grids * (grids.shape[1] / labels.shape[-1])
    read = F.grid_sample(labels[:, None].float(), places, mode="nearest", align_corners=False)
    return read[:, 0].round().long()


def _bias_fields(count: int, side: int, rng: np.random.Generator) -> Tensor:
    """Draw polynomials of the second degree in x and y, each within +-`_SHADING`: (count, 1, side, side) float32."""
    line = np.linspace(-1, 1, _FIELD)
    y, x = np.meshgrid(line, line, indexing="ij")
    terms = np.stack([x, y, x * y, x * x - 1 / 3, y * y - 1 / 3])
    fields: Array = np.tensordot(rng.normal(size=(count, 5)), terms, axes=1)
    largest = np.abs(fields).max(axis=(1, 2), keepdims=True)
    small = fields / largest * rng.uniform(0, _SHADING, (count, 1, 1))
    return F.interpolate(
        torch.from_numpy(small.astype(np.float32))[:, None],
        size=(side, side),
        mode="bilinear",
        align_corners=True,
    )
