"""Strided towers against plain stacks of layers, spectral norm against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from attcl_cli.methods.networks.towers import (
    SpectralNorm,
    StridedTower,
    add_spectral_norm,
    follow_spectra,
)


def image(side: int = 32, channels: int = 1) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


# --- towers -----------------------------------------------------------------------------------------------------------


def test_each_stage_halves_and_the_last_is_what_the_tower_returns():
    tower = StridedTower(3, [4, 8, 16], norm="batch")
    features = tower.features(image(channels=3))
    assert [tuple(one.shape) for one in features] == [
        (2, 4, 16, 16),
        (2, 8, 8, 8),
        (2, 16, 4, 4),
    ]
    assert torch.equal(tower.eval()(image(channels=3)), tower.features(image(channels=3))[-1])


def test_a_stage_is_convolution_norm_and_activation():
    tower = StridedTower(1, [4, 6], norm="instance-affine", slope=0.1)
    expected = image()
    for conv, norm, _ in tower:
        convolved = F.conv2d(expected, conv.weight, stride=2, padding=1)
        expected = F.leaky_relu(F.instance_norm(convolved, weight=norm.weight), 0.1)
    assert torch.allclose(tower(image()), expected, atol=1e-5)


def test_a_patch_discriminator_of_70_pixels_is_a_tower_and_a_convolution():
    tower = StridedTower(
        1, [64, 128, 256, 512], strides=[2, 2, 2, 1], norm="instance", norm_first=False
    )
    assert [len(stage) for stage in tower] == [2, 3, 3, 3]
    assert tower(image(64)).shape == (2, 512, 7, 7)
    # conv 4x4 with bias each, and the map: 1-64-128-256-512-1
    assert parameters(tower) + 512 * 16 + 1 == 2_762_689


@pytest.mark.parametrize(
    ("norm", "biased"),
    [("none", True), ("instance", True), ("instance-affine", False), ("batch", False)],
)
def test_convolutions_have_a_bias_unless_an_affine_norm_follows(norm, biased):
    (stage,) = StridedTower(1, [4], norm=norm)
    assert (stage[0].bias is not None) is biased


def test_padding_can_mirror_the_image():
    tower = StridedTower(1, [4], padding_mode="reflect")
    conv = tower[0][0]
    padded = F.pad(image(), (1, 1, 1, 1), mode="reflect")
    expected = F.conv2d(padded, conv.weight, conv.bias, stride=2)
    assert torch.equal(tower(image()), F.leaky_relu(expected, 0.2))


def test_every_stage_needs_its_stride():
    with pytest.raises(ValueError, match="shorter"):
        StridedTower(1, [4, 8], strides=[2])


@pytest.mark.parametrize("norm", ["none", "instance", "instance-affine"])
def test_instance_norms_do_the_same_in_eval_mode(norm):
    tower = StridedTower(1, [4, 8], norm=norm)
    assert torch.equal(tower.train()(image()), tower.eval()(image()))


# --- spectral norm ----------------------------------------------------------------------------------------------------


def test_it_divides_by_the_largest_singular_value():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 4)
    expected = conv.weight.detach() / torch.linalg.svdvals(conv.weight.detach().flatten(1))[0]
    add_spectral_norm(conv)
    for _ in range(200):
        follow_spectra(conv)
    assert torch.allclose(conv.weight, expected, atol=1e-5)


def test_one_step_is_that_of_torch():
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 5, 4)
    theirs = spectral_norm(copy.deepcopy(ours))
    add_spectral_norm(ours)
    with torch.no_grad():
        ours.parametrizations.weight[0].left.copy_(theirs.parametrizations.weight[0]._u)
    follow_spectra(ours)
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_a_forward_pass_changes_nothing_in_training_either():
    tower = StridedTower(1, [4, 8])
    add_spectral_norm(tower)
    before = copy.deepcopy(tower.state_dict())
    assert torch.equal(tower.train()(image()), tower(image()))
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())
    follow_spectra(tower)
    key = "0.0.parametrizations.weight.0.left"
    assert not torch.equal(tower.state_dict()[key], before[key])


def test_gradients_pass_through_the_norm_as_in_torch():
    torch.manual_seed(0)
    ours = nn.Linear(3, 5)
    theirs = spectral_norm(copy.deepcopy(ours)).eval()
    add_spectral_norm(ours)
    with torch.no_grad():
        norm, reference = ours.parametrizations.weight[0], theirs.parametrizations.weight[0]
        norm.left.copy_(reference._u)
        norm.right.copy_(reference._v)
    gradients = []
    for layer in (ours, theirs):
        layer(torch.ones(1, 3)).pow(2).sum().backward()
        gradients.append(layer.parametrizations.weight.original.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_the_norm_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    linear = nn.Linear(64, 64)
    add_spectral_norm(linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = linear.weight
    assert torch.equal(mixed, linear.weight)


def test_copies_and_saved_states_keep_the_norm():
    tower = StridedTower(1, [4])
    add_spectral_norm(tower)
    again = StridedTower(1, [4])
    add_spectral_norm(again)
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(image()), tower(image()))
    assert torch.equal(copy.deepcopy(tower)(image()), tower(image()))


def test_a_norm_can_be_made_without_memory():
    with torch.device("meta"):
        tower = StridedTower(1, [4])
        add_spectral_norm(tower)
        follow_spectra(tower)
    assert tower(torch.zeros(2, 1, 8, 8, device="meta")).shape == (2, 4, 4, 4)


def test_a_norm_begins_close_to_the_largest_singular_value():
    torch.manual_seed(0)
    weight = torch.randn(6, 8)
    normal = SpectralNorm(weight)(weight)
    assert torch.linalg.svdvals(normal)[0] == pytest.approx(1, abs=0.05)
