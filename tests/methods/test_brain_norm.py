"""The norm of the brain: what it computes, its written backward pass, and that neither depends on parts or on bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attcl_cli.methods.networks import brain_norm
from attcl_cli.methods.networks.brain_norm import BrainNorm


def everywhere(x: Tensor) -> Tensor:
    return torch.ones(len(x), 1, x.shape[2] * x.shape[3])


def norm_of(channels: int) -> BrainNorm:
    norm = BrainNorm(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return norm


def bent(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def plain(norm: BrainNorm, x: Tensor, inside: Tensor, style: Tensor | None = None) -> Tensor:
    """Return what the norm should, one operation after the other."""
    weights = inside.view(len(x), 1, 1, *x.shape[2:])
    grouped = x.unflatten(1, (8, -1))
    total = weights.sum(dim=(2, 3, 4), keepdim=True) * grouped.shape[2]
    mean = (grouped * weights).sum(dim=(2, 3, 4), keepdim=True) / total
    variance = ((grouped - mean).square() * weights).sum(dim=(2, 3, 4), keepdim=True) / total
    h = ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    h = h * norm.weight[:, None, None] + norm.bias[:, None, None]
    if style is not None:
        gamma, beta = style[:, :, None, None].chunk(2, dim=1)
        h = (1 + gamma) * h + beta
    return bent(h)


def test_where_all_pixels_count_it_is_a_group_norm():
    norm, x = norm_of(16), torch.randn(3, 16, 5, 4)
    expected = bent(F.group_norm(x, 8, norm.weight, norm.bias))
    torch.testing.assert_close(norm(x, everywhere(x)), expected)


def test_it_is_that_of_the_brain_alone():
    norm, x = norm_of(16), torch.randn(3, 16, 6, 8)
    inside = torch.zeros(3, 1, 6, 8)
    inside[..., 3:] = 1
    found = norm(x, inside.flatten(2))
    expected = bent(F.group_norm(x[..., 3:], 8, norm.weight, norm.bias))
    torch.testing.assert_close(found[..., 3:], expected)


@pytest.mark.parametrize("in_cache", [1, 3000, 10**9])  # one image at a time, two, all
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_its_gradients_are_those_of_single_operations(monkeypatch, in_cache, layout, rows):
    monkeypatch.setattr(brain_norm, "_IN_CACHE", in_cache)
    norm = norm_of(16)
    x = (1 + torch.randn(3, 16, 6, 4)).to(memory_format=layout).requires_grad_()
    inside = torch.rand(3, 1, 24)
    style = torch.randn(rows, 32, requires_grad=True) if rows else None
    learned = [x, norm.weight, norm.bias, *([] if style is None else [style])]
    towards = torch.randn(3, 16, 6, 4)
    found, expected = norm(x, inside, style), plain(norm, x, inside, style)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)
    gradients = torch.autograd.grad((found * towards).sum(), learned)
    for one, other in zip(
        gradients, torch.autograd.grad((expected * towards).sum(), learned), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_in_bf16_networks_mean_and_variance_are_as_exact():
    # Far from 0 the variance is a small difference of large numbers.
    x = (5 + 0.05 * torch.randn(2, 16, 8, 8)).bfloat16()
    norm = norm_of(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x, everywhere(x))
    assert found.dtype == torch.bfloat16
    expected = norm(x.float(), everywhere(x))
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)  # its last digit


def test_a_constant_image_has_a_norm_and_a_gradient():
    norm = norm_of(8)
    x = torch.full((1, 8, 4, 4), 3.0, requires_grad=True)
    norm(x, everywhere(x)).sum().backward()
    assert torch.isfinite(x.grad).all()
