"""The networks of PLAVE: branches, fusion, decoders, the self-representation network, and the PatchGAN."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.methods.networks.attention import SqueezeExcitation
from attcl_cli.methods.networks.discriminator import PatchDiscriminator
from attcl_cli.methods.networks.fusion import (
    AutoEncoder,
    Branch,
    Decoder,
    Design,
    FusionGenerator,
    PositionFusion,
)
from attcl_cli.methods.networks.layers import ConvAdaIN, TargetCodes, UpAdaIN


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


def test_a_branch_of_ours_has_squeeze_and_excitation_after_the_last_halving_alone():
    branch = Branch(ours(), excitation="last")
    x, style = torch.randn(2, 1, 32, 32), torch.randn(2, 8)
    stem = branch.stem(x, style)
    half = branch.down[0](stem, style)
    quarter = branch.attention(branch.down[1](half, style))
    for result, expected in zip(branch(x, style), (stem, half, quarter), strict=True):
        assert torch.equal(result, expected)
    assert isinstance(branch.attention, SqueezeExcitation)
    assert isinstance(Branch(ours(), excitation="none").attention, nn.Identity)


def test_the_autoencoder_gives_its_branch_and_what_the_1x1_convolution_makes_of_it():
    net = AutoEncoder(ours(), targets=4)
    x, target = torch.randn(2, 1, 32, 32), torch.tensor([0, 3])
    image, branch, last, decoded = net(x, target)
    style = net.code.weight[target]
    assert torch.equal(branch, net.branch(x, style)[-1])
    kernel, bias = net.mix.weight[:, :, 0, 0], net.mix.bias[:, None, None]
    expected = torch.einsum("oc,bchw->bohw", kernel, branch) + bias
    assert torch.allclose(last, expected, atol=1e-5)
    raw, features = net.decoder(last, style)
    assert torch.equal(image, raw.tanh())
    assert all(map(torch.equal, decoded, features))


def test_codes_of_targets_have_a_length_of_about_1_at_first():
    codes = TargetCodes(50, 64).weight
    assert codes.norm(dim=1).mean().item() == pytest.approx(1, rel=0.05)


def test_layers_of_ours_are_a_convolution_adain_and_leaky_relu():
    style = torch.randn(2, 8)
    x = torch.randn(2, 3, 8, 8)
    for layer, convolved in (
        (ConvAdaIN(3, 5, 8, kernel=7), lambda p: F.conv2d(x, *p, padding=3)),
        (ConvAdaIN(3, 5, 8, stride=2), lambda p: F.conv2d(x, *p, stride=2, padding=1)),
        (UpAdaIN(3, 5, 8), lambda p: F.conv_transpose2d(x, *p, stride=2, padding=1)),
    ):
        gamma, beta = layer.norm.affine(style)[:, :, None, None].chunk(2, dim=1)
        normed = F.instance_norm(convolved((layer.conv.weight, layer.conv.bias)))
        expected = F.leaky_relu((1 + gamma) * normed + beta, 0.2)
        assert torch.allclose(layer(x, style), expected, atol=1e-5)


def test_networks_of_ours_start_as_he_says_with_biases_of_zero():
    design = ours(width=8)
    networks = [
        FusionGenerator(design, slots=2, targets=3),
        AutoEncoder(design, targets=3),
        Decoder(design, outputs=4),
        PatchDiscriminator(image_size=16, width=8, max_width=16, sources=2, targets=3),
    ]
    for network in networks:
        spreads = []
        for name, layer in network.named_modules():
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                continue
            assert layer.bias is None or not layer.bias.any(), name
            at_first_zero = "trunk" in name and name.endswith("conv2")
            if layer.weight.numel() > 500 and not at_first_zero:
                spreads.append(layer.weight.std().item() * math.sqrt(layer.weight[0].numel() / 2))
        assert spreads
        assert spreads == pytest.approx([1] * len(spreads), rel=0.15)


def test_the_discriminator_of_ours_is_pix2pix_s_with_affine_instance_norms():
    d = PatchDiscriminator(image_size=32, width=4, max_width=8, sources=2, targets=3)
    for parameter in d.parameters():
        nn.init.normal_(parameter, std=0.3)
    p = dict(d.named_parameters())
    sources, x, target = torch.randn(2, 2, 32, 32), torch.randn(2, 1, 32, 32), torch.tensor([2, 0])
    h = torch.cat([sources, x], dim=1)
    for index, stride in ((0, 2), (2, 1)):
        at = f"layers.{index}"
        h = F.conv2d(h, p[f"{at}.weight"], p[f"{at}.bias"], stride=stride, padding=1)
        norm = f"layers.{index + 1}"
        if f"{norm}.weight" in p:
            h = F.instance_norm(h, weight=p[f"{norm}.weight"], bias=p[f"{norm}.bias"])
        h = F.leaky_relu(h, 0.2)
    logits = F.conv2d(h, p["layers.5.weight"], p["layers.5.bias"], padding=1)
    assert torch.allclose(d(sources, x, target), logits[[0, 1], target], rtol=1e-4, atol=1e-4)


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
