"""The Haar transform against its kernels, its inverse, and the gate that weighs details by place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attcl_cli.methods.networks.wavelets import (
    Bands,
    ImportanceGate,
    haar,
    inverse_haar,
    weights_of_cycle,
)

# LL, LH, HL, HH: products of the averaging and the differencing pair, each divided by the root of 2
KERNELS = torch.tensor(
    [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
)[:, None].double() / 2  # fmt: skip


def stacked(bands: Bands) -> Tensor:
    """Return (B, C, H, W) per band as (4, B, C, H, W)."""
    return torch.stack([bands.low, *bands.details])


def test_the_bands_are_those_of_the_orthonormal_kernels():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    bands = F.conv2d(x.flatten(0, 1)[:, None], KERNELS, stride=2).unflatten(0, (2, 3))
    assert torch.allclose(stacked(haar(x)), bands.movedim(2, 0), atol=1e-12)


def test_the_inverse_is_the_transpose_of_the_kernels():
    each = torch.randn(4, 2, 3, 4, 3, dtype=torch.float64)
    planes = each.movedim(0, 2).flatten(0, 1)
    expected = F.conv_transpose2d(planes, KERNELS, stride=2)[:, 0].unflatten(0, (2, 3))
    assert torch.allclose(inverse_haar(Bands(*each)), expected, atol=1e-12)


def test_the_inverse_gives_the_image_back_and_no_energy_is_lost():
    x = torch.randn(2, 3, 16, 12)
    assert torch.allclose(inverse_haar(haar(x)), x, atol=1e-6)
    assert stacked(haar(x)).square().sum().item() == pytest.approx(x.square().sum().item())


def test_background_has_no_detail():
    bands = haar(torch.full((1, 2, 4, 4), -1.0))
    assert (bands.low == -2).all()
    assert not any(band.any() for band in bands.details)


def test_each_detail_band_sees_edges_of_one_direction():
    upright = torch.tensor([[0.0, 1], [0, 1]])[None, None]  # left to right
    for image, values in (
        (upright, (-1, 0, 0)),
        (upright.mT, (0, -1, 0)),
        (torch.eye(2)[None, None], (0, 0, 1)),
    ):
        assert tuple(band.item() for band in haar(image).details) == values


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_a_gate_has_28_weights_and_starts_at_a_half_where_there_is_no_detail():
    gate = ImportanceGate()
    assert sum(parameter.numel() for parameter in gate.parameters()) == 28
    details, importance = gate(torch.full((2, 3, 8, 8), 0.7))
    assert not details.any()
    assert (importance == 0.5).all()


def test_the_gate_weighs_each_place_by_the_mean_strength_of_its_bands():
    gate, x = ImportanceGate(), torch.randn(2, 5, 8, 6)
    torch.nn.init.normal_(gate.conv.bias)
    bands = haar(x)
    energy = F.pad(torch.stack([band.abs().mean(dim=1) for band in bands.details], 1), (1,) * 4)
    expected = torch.empty(2, 1, 4, 3)
    for row in range(4):
        for column in range(3):
            seen = energy[:, :, row : row + 3, column : column + 3]
            score = (seen * gate.conv.weight).sum(dim=(1, 2, 3)) + gate.conv.bias
            expected[:, 0, row, column] = 1 / (1 + (-score).exp())
    details, importance = gate(x)
    assert torch.allclose(importance, expected, atol=1e-6)
    weighed = [expected * band for band in bands.details]
    assert torch.allclose(
        details, inverse_haar(Bands(torch.zeros_like(bands.low), *weighed)), atol=1e-6
    )


def test_no_contrast_gets_through_a_gate():
    gate, x = ImportanceGate(), torch.randn(1, 4, 8, 8)
    level = torch.randn(1, 4, 1, 1)
    assert torch.allclose(gate(x)[0], gate(x + level)[0], atol=1e-5)
    assert F.avg_pool2d(gate(x)[0], 2).abs().max() < 1e-6


def test_the_weights_of_the_cycle_have_mean_1_in_each_image_and_no_gradient():
    importance = torch.tensor([[[[0.2, 0.6], [0.0, 0.0]]], [[[0.9] * 2] * 2]], requires_grad=True)
    weights = weights_of_cycle(importance, (4, 4))
    first = torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.allclose(weights[0, 0], first)
    assert torch.allclose(weights[1], torch.ones(1, 4, 4))
    assert not weights.requires_grad


def test_a_gate_that_is_shut_everywhere_prefers_no_place():
    assert (weights_of_cycle(torch.zeros(2, 1, 2, 2), (8, 8)) == 1).all()
