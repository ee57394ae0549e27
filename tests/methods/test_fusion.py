"""The networks of PLAVE: branches, fusion, decoders, the self-representation network, and the PatchGAN."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.attention import SqueezeExcitation
from attcl_cli.methods.networks.discriminator import PatchDiscriminator
from attcl_cli.methods.networks.fusion import (
    AutoEncoder,
    Design,
    FusionGenerator,
    PositionFusion,
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_squeeze_and_excitation_adds_each_channel_times_its_gate():
    layer = SqueezeExcitation(32)
    assert [tuple(item.weight.shape) for item in layer.mlp if isinstance(item, nn.Linear)] == [
        (2, 32),
        (32, 2),
    ]  # reduction 16
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 32, 3, 5)
    assert torch.equal(layer(x), x + x * 0.5)  # sigmoid(0)
    layer.mlp[2].bias.data[7] = math.log(3)  # sigmoid = 3/4
    assert torch.allclose(layer(x)[:, 7], 1.75 * x[:, 7])


def ours(width: int = 4, max_width: int = 64, **changes: Any) -> Design:
    """Return the design of our presets, with small networks."""
    design = Design(
        width=width,
        max_width=max_width,
        side=32,
        norm="adain",
        style_dim=8,
        excitation="last",
        fusion="position",
        contrast="following",
        autoencoder_blocks=0,
    )
    return replace(design, **changes)


def fusion_of(slots: int = 3, channels: int = 4) -> tuple[PositionFusion, Tensor]:
    return PositionFusion(channels, slots=slots), torch.randn(2, slots, channels, 3, 5)


ALL_THERE = torch.ones(2, 3, dtype=torch.bool)


def test_fusion_weights_are_a_softmax_over_the_sources_at_each_position():
    fusion, features = fusion_of()
    weights = fusion.weights(features, ALL_THERE)
    scores = torch.stack([fusion.score[slot](features[:, slot])[:, 0] for slot in range(3)], dim=1)
    exponents = scores.exp()
    assert torch.allclose(weights, exponents / exponents.sum(dim=1, keepdim=True), atol=1e-6)


def test_fusion_concatenates_the_weighted_sources_and_mixes_them():
    fusion, features = fusion_of()
    weights = fusion.weights(features, ALL_THERE)
    weighted = torch.cat([weights[:, [slot]] * features[:, slot] for slot in range(3)], dim=1)
    kernel = fusion.mix.weight[:, :, 0, 0]
    expected = torch.einsum("oc,bchw->bohw", kernel, weighted) + fusion.mix.bias[:, None, None]
    assert torch.allclose(fusion(features, ALL_THERE), expected, atol=1e-5)


def test_the_weights_of_those_that_are_there_add_up_to_1_and_of_the_others_are_exactly_0():
    fusion, features = fusion_of()
    present = torch.tensor([[True, False, True], [False, True, False]])
    weights = fusion.weights(features, present)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2, 3, 5))
    assert (weights[~present] == 0).all()
    assert (weights[1, 1] == 1).all()


@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
def test_what_an_absent_slot_holds_changes_no_bit_of_the_fusion(junk):
    fusion, features = fusion_of()
    present = torch.tensor([[True, False, True], [True, True, False]])
    spoiled = features.clone()
    spoiled[~present] = junk
    assert torch.equal(fusion(spoiled, present), fusion(features, present))


def test_the_generator_goes_down_to_a_quarter_and_back():
    generator = FusionGenerator(ours(), slots=3, targets=4)
    images, present = [torch.randn(2, 1, 32, 32)] * 3, ALL_THERE
    style = generator.code(torch.tensor([0, 2]))
    features = generator.encode(images, present, style)
    assert [layer.shape for layer in features] == [
        (2, 3, 4, 32, 32),
        (2, 3, 8, 16, 16),
        (2, 3, 16, 8, 8),
    ]
    assert generator.skips(features, present) == []
    attended, mixed, following = generator.fuse(features, present, style)
    assert attended.shape == (2, 3 * 16, 8, 8)
    assert mixed.shape == following.shape == (2, 16, 8, 8)
    h = generator.refine(following, style)
    image, decoded = generator.decode(h, style)
    assert image.shape == (2, 1, 32, 32)
    assert image.abs().max() < 1  # tanh
    assert [layer.shape for layer in decoded] == [(2, 8, 16, 16), (2, 4, 32, 32)]
    assert len(generator.trunk) == 6


def test_skips_are_fused_at_both_larger_sizes_and_added_in_the_decoder():
    generator = FusionGenerator(ours(blocks=1, skips=True), slots=3, targets=4)
    style = generator.code(torch.tensor([0, 2]))
    present = torch.tensor([[True, False, True], [False, True, False]])
    features = generator.encode([torch.randn(2, 1, 32, 32)] * 3, present, style)
    half, whole = generator.skips(features, present)
    assert torch.equal(half, generator.skip[0](features[1], present))
    assert torch.equal(whole, generator.skip[1](features[0], present))
    h = torch.randn(2, 16, 8, 8)
    first = generator.decoder.up[0](h, style) + half
    second = generator.decoder.up[1](first, style) + whole
    image, decoded = generator.decode(h, style, [half, whole])
    assert all(map(torch.equal, decoded, (first, second)))
    assert torch.equal(image, generator.decoder.last(second).tanh())


def test_256_pixels_are_fused_at_64():
    generator = FusionGenerator(ours(width=2, max_width=4, blocks=1), slots=1, targets=1)
    present = torch.ones(1, 1, dtype=torch.bool)
    code = generator.code(torch.tensor([0]))
    assert generator.encode([torch.zeros(1, 1, 256, 256)], present, code)[-1].shape[-2:] == (64, 64)


def test_a_target_s_code_changes_every_stage_of_the_generator():
    """A constant on an input plane would not survive the first instance norm."""
    generator = FusionGenerator(ours(max_width=16, blocks=1), slots=1, targets=2)
    present, x = torch.ones(1, 1, dtype=torch.bool), torch.randn(1, 1, 16, 16)
    codes = [generator.code(torch.tensor([index])) for index in range(2)]
    one, two = (generator.encode([x], present, code) for code in codes)
    assert not torch.allclose(one[-1], two[-1], atol=1e-3)
    fused = [generator.fuse(one, present, code).following for code in codes]
    assert not torch.allclose(*fused, atol=1e-3)
    assert torch.equal(
        *(generator.refine(fused[0], code) for code in codes)
    )  # at first the identity
    nn.init.normal_(generator.trunk[0].conv2.weight)
    refined = [generator.refine(fused[0], code) for code in codes]
    assert not torch.allclose(*refined, atol=1e-3)
    assert not torch.allclose(*(generator.decode(refined[0], code)[0] for code in codes), atol=1e-3)


def test_the_autoencoder_s_features_have_the_shapes_of_the_generator_s():
    generator = FusionGenerator(ours(blocks=1), slots=2, targets=4)
    image, branch, last, decoded = AutoEncoder(ours(), targets=4)(
        torch.randn(2, 1, 32, 32), torch.tensor([0, 3])
    )
    assert image.shape == (2, 1, 32, 32)
    assert branch.shape == last.shape == (2, 16, 8, 8)
    features = generator.decode(last, generator.code(torch.tensor([0, 3])))[1]
    assert [layer.shape for layer in decoded] == [layer.shape for layer in features]


@pytest.mark.parametrize(("size", "patches", "field"), [(256, 30, 70), (64, 14, 34), (16, 6, 16)])
def test_the_discriminator_judges_patches(size, patches, field):
    """70 of 256 pixels, and 30 x 30 of them, are pix2pix's."""
    d = PatchDiscriminator(image_size=size, width=4, max_width=8, sources=3, targets=2)
    sources, x = torch.zeros(1, 3, size, size), torch.zeros(1, 1, size, size)
    assert d(sources, x, torch.tensor([1])).shape == (1, patches, patches)
    span = 1
    for layer in reversed([item for item in d.layers if isinstance(item, nn.Conv2d)]):
        span = (span - 1) * layer.stride[0] + layer.kernel_size[0]
    assert span == field


def test_the_discriminator_is_conditional():
    d = PatchDiscriminator(image_size=16, width=4, max_width=8, sources=3, targets=2)
    sources, x = torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
    logits = d(sources, x, torch.tensor([0]))
    assert not torch.allclose(logits, d(-sources, x, torch.tensor([0])))
    assert not torch.allclose(logits, d(sources, x, torch.tensor([1])))
