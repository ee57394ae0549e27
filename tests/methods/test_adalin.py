"""AdaLIN, and attention by class activation maps: U-GAT-IT's layers by hand and against torch's own norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.adalin import (
    LIN,
    AdaLIN,
    AdaLINBlock,
    Modulation,
    clip_shares,
    pooled_side,
)
from attcl_cli.methods.networks.cam import CamAttention


def mixture(channels: int, share: float) -> AdaLIN:
    """Return an AdaLIN with this share of instance norm."""
    return AdaLIN(channels, share=share)


def image() -> Tensor:
    """Return features (2, 3, 5, 4) whose channels have other means and spreads."""
    spread = torch.tensor([1.0, 3.0, 0.2])[:, None, None]
    return torch.randn(2, 3, 5, 4) * spread + 2 * spread


# --- AdaLIN -----------------------------------------------------------------------------------------------------------


def test_adalin_by_hand():
    # Channels (0, 2) and (4, 10): means 1 and 7, deviations 1 and 3; all four: mean 4, variance 14.
    x = torch.tensor([[[[0.0, 2.0]], [[4.0, 10.0]]]])
    gamma, beta = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.5, 0.0]])
    layer = (x - 4) / 14**0.5
    instance = torch.tensor([[[[-1.0, 1.0]], [[-1.0, 1.0]]]])
    expected = (0.9 * instance + 0.1 * layer) * torch.tensor([2.0, 1.0])[:, None, None]
    expected[:, 0] += 0.5
    assert torch.allclose(AdaLIN(2)(x, gamma, beta), expected, atol=1e-4)


def test_with_rho_1_it_is_adain_and_with_rho_0_a_layer_norm():
    x, gamma, beta = image(), torch.randn(2, 3), torch.randn(2, 3)

    def modulated(normal: Tensor) -> Tensor:
        return gamma[:, :, None, None] * normal + beta[:, :, None, None]

    adain = modulated(F.instance_norm(x))
    assert torch.allclose(mixture(3, 1.0)(x, gamma, beta), adain, atol=1e-5)
    layer = modulated(F.layer_norm(x, x.shape[1:]))
    assert torch.allclose(mixture(3, 0.0)(x, gamma, beta), layer, atol=1e-5)


def test_rho_is_per_channel_and_starts_at_0_9():
    layer = AdaLIN(3)
    assert layer.rho.tolist() == pytest.approx([0.9] * 3)
    with torch.no_grad():
        layer.rho.copy_(torch.tensor([0.0, 1.0, 0.0]))
    x, one, zero = image(), torch.ones(1, 3), torch.zeros(1, 3)
    expected = F.layer_norm(x, x.shape[1:])
    expected[:, 1] = F.instance_norm(x)[:, 1]
    assert torch.allclose(layer(x, one, zero), expected, atol=1e-5)


def test_lin_starts_as_a_layer_norm_with_its_own_gamma_and_beta():
    x, layer = image(), LIN(3)
    assert torch.allclose(layer(x), F.layer_norm(x, x.shape[1:]), atol=1e-5)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 9


def test_a_norm_in_bf16_is_computed_in_float32():
    x, one, zero = image().bfloat16() + 100, torch.ones(1, 3), torch.zeros(1, 3)
    result = AdaLIN(3)(x, one, zero)
    assert result.dtype == torch.bfloat16
    expected = AdaLIN(3)(x.float(), one, zero)
    assert torch.allclose(result.float(), expected, atol=0.02)


def test_rho_below_0_and_above_1_is_clipped_and_the_rest_stays():
    block = nn.ModuleList([AdaLINBlock(3), LIN(3)])
    with torch.no_grad():
        block[0].norm1.rho.copy_(torch.tensor([-0.2, 0.5, 1.2]))
        block[1].norm.rho.copy_(torch.tensor([0.0, 1.0, 1.5]))
        block[1].gamma.fill_(2.0)
    clip_shares(block)
    assert block[0].norm1.rho.tolist() == [0.0, 0.5, 1.0]
    assert block[1].norm.rho.tolist() == [0.0, 1.0, 1.0]
    assert block[1].gamma.tolist() == [2.0] * 3


def test_a_block_adds_two_reflected_convolutions_to_what_it_takes():
    block = AdaLINBlock(3)
    x, gamma, beta = image(), torch.randn(2, 3), torch.randn(2, 3)

    def convolved(h: Tensor, conv: nn.Conv2d) -> Tensor:
        return F.conv2d(F.pad(h, (1, 1, 1, 1), mode="reflect"), conv.weight)

    h = F.relu(block.norm1(convolved(x, block.conv1), gamma, beta))
    expected = x + block.norm2(convolved(h, block.conv2), gamma, beta)
    assert torch.allclose(block(x, gamma, beta), expected, atol=1e-5)


# --- gamma and beta ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma_input", "parameters"),
    [("full", 268_632_064), ("pool8", 4_390_912), ("light", 262_144)],
)
def test_gamma_and_beta_of_a_slice_of_256_pixels_cost(gamma_input, parameters):
    with torch.device("meta"):
        network = Modulation(256, pooled_side(gamma_input, 64))
    # The first layer has 64 * 64, 8 * 8 or 1 pixels of 256 channels; three more are 256 x 256.
    assert sum(one.numel() for one in network.parameters()) == parameters


def test_gamma_and_beta_read_the_flattened_map():
    network, features = Modulation(3, 4), torch.randn(2, 3, 4, 4)
    first, _, second, _ = network.hidden
    h = F.relu(F.relu(features.flatten(1) @ first.weight.T) @ second.weight.T)
    gamma, beta = network(features)
    assert torch.allclose(gamma, h @ network.gamma.weight.T, atol=1e-6)
    assert torch.allclose(beta, h @ network.beta.weight.T, atol=1e-6)


def test_the_light_version_reads_the_mean_of_each_channel():
    network, features = Modulation(3, pooled_side("light", 4)), torch.randn(2, 3, 4, 4)
    moved = features.flip(-1)
    assert torch.allclose(network(features)[0], network(moved)[0], atol=1e-6)
    wider, other = Modulation(3, pooled_side("pool8", 16)), torch.randn(2, 3, 16, 16)
    assert not torch.allclose(wider(other)[0], wider(other.flip(-1))[0], atol=1e-3)


# --- class activation maps --------------------------------------------------------------------------------------------


def test_attention_by_hand():
    layer = CamAttention(2, F.relu)
    with torch.no_grad():
        layer.mean.weight.copy_(torch.tensor([[1.0, -2.0]]))
        layer.maximum.weight.copy_(torch.tensor([[0.5, 3.0]]))
        layer.join.weight.copy_(
            torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, 0, 0, 0]])[..., None, None]
        )
        layer.join.bias.copy_(torch.tensor([0.0, 1.0]))
    features = torch.tensor([[[[0.0, 2.0]], [[1.0, 3.0]]]])  # means 1 and 2, maxima 2 and 3
    attended, logits = layer(features)
    assert logits.tolist() == [[1.0 - 4.0, 1.0 + 9.0]]
    # By the mean: (0, 2) and (-2, -6); by the maximum: (0, 1) and (3, 9).
    assert attended.tolist() == [[[[1.0, 6.0]], [[1.0, 0.0]]]]


def test_the_weights_that_attend_are_those_that_classify():
    layer, features = CamAttention(2, nn.Identity()), torch.rand(1, 2, 3, 3)
    attended, _ = layer(features)
    attended.sum().backward()
    assert layer.mean.weight.grad is not None and layer.mean.weight.grad.abs().min() > 0
