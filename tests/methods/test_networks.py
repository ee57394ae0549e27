"""The networks: shapes, sizes and costs of every preset, and each published formula against a plain one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attcl_cli.data import intensities, volumes
from attcl_cli.methods.networks import patches
from attcl_cli.methods.networks.attention import CBAM
from attcl_cli.methods.networks.blocks import (
    AdaIN,
    AdaINResidualBlock,
    InstanceNorm,
    ResidualBlock,
    convolve_and_halve,
    double_and_convolve,
    initialise,
    keep_background,
    leaky_relu,
    pick,
    widths,
)
from attcl_cli.methods.networks.discriminator import Discriminator
from attcl_cli.methods.networks.generator import Generator
from attcl_cli.methods.networks.style import MappingNetwork, StyleEncoder
from attcl_cli.methods.networks.styled_unet import StyledUNet
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import Settings, resolve


def generator_of(s: Settings) -> Generator | StyledUNet:
    if s.generator == "u-net":
        return StyledUNet(
            width=s.width, max_width=s.max_width, downs=s.downs, style_dim=s.style_dim
        )
    return Generator(
        width=s.width,
        max_width=s.max_width,
        downs=s.downs,
        bottleneck=s.bottleneck,
        style_dim=s.style_dim,
        full_size_skips=s.full_size_skips,
        adain_start=s.adain_start,
        shortcut_refined=s.shortcut_refined,
    )


def small_generator(bottleneck: int = 1) -> Generator:
    return Generator(width=4, max_width=8, downs=2, bottleneck=bottleneck, style_dim=6)


# --- sizes and costs --------------------------------------------------------------------------------------------------

# method.md, section 2: the first convolution and layers 1..4 of preset `paper` at 256
PAPER_LAYERS = [(64, 256), (128, 128), (256, 64), (512, 32), (512, 16)]


def test_the_encoder_of_the_paper_has_its_layers():
    with torch.device("meta"):
        features = generator_of(resolve(preset="paper")).encode(torch.empty(2, 1, 256, 256))
    assert [tuple(item.shape) for item in features.layers] == [
        (2, channels, size, size) for channels, size in PAPER_LAYERS
    ]
    assert features.deep.shape == features.layers[-1].shape


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_an_image_and_codes_of_all_domains(preset):
    s = resolve(preset=preset)
    size, shape = s.image_size, {"width": s.width, "max_width": s.max_width}
    with torch.device("meta"):
        x, z = torch.empty(2, 1, size, size), torch.empty(2, s.latent_dim)
        domain = torch.zeros(2, dtype=torch.int64)
        mapping = MappingNetwork(
            latent_dim=s.latent_dim, style_dim=s.style_dim, domains=4, hidden=s.mapping_width
        )
        encoder = StyleEncoder(image_size=size, **shape, style_dim=s.style_dim, domains=4)
        discriminator = Discriminator(image_size=size, **shape, domains=4)
        assert mapping(z).shape == encoder(x).shape == (2, 4, s.style_dim)
        assert discriminator(x, domain).shape == (2,)
        assert generator_of(s)(x, torch.empty(2, s.style_dim)).shape == x.shape


@pytest.mark.parametrize(
    ("preset", "skips", "expected"),
    [
        ("tiny", False, 0.32), ("tiny", True, 0.36), ("paper", False, 63),
        ("small", False, 8.4), ("base", False, 23.3),
    ],
)  # fmt: skip
def test_a_slice_costs_what_the_method_page_says(preset, skips, expected):
    s = resolve(preset=preset, overrides={"full_size_skips": skips})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        generator_of(s)(torch.empty(1, 1, s.image_size, s.image_size), torch.empty(1, s.style_dim))
    gflop = counter.get_total_flops() / 1e9
    assert gflop == pytest.approx(expected, rel=0.02)


def test_the_trunk_ends_at_4x4_whatever_the_image_size():
    for size, halvings in ((16, 2), (64, 4), (256, 6)):
        encoder = StyleEncoder(image_size=size, width=2, max_width=4, style_dim=3, domains=2)
        assert len(encoder.trunk.down) == halvings
        assert encoder(torch.zeros(1, 1, size, size)).shape == (1, 2, 3)


def test_widths_double_up_to_the_largest():
    assert widths(64, 512, 4) == [64, 128, 256, 512, 512]
    assert widths(16, 16, 2) == [16, 16, 16]


def test_the_mapping_network_has_4_shared_and_4_own_layers_a_domain():
    mapping = MappingNetwork(latent_dim=3, style_dim=5, domains=2, hidden=7)
    assert [layer.out_features for layer in mapping.shared if isinstance(layer, nn.Linear)] == [
        7
    ] * 4
    for head in mapping.domain:
        assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [
            7,
            7,
            7,
            5,
        ]


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_adain_is_one_plus_gamma_times_the_normalised_plus_beta():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    style = torch.randn(2, 6, dtype=torch.float64)
    layer = AdaIN(3, 6).double()
    result = layer(x, style)
    weight, bias = layer.affine.weight, layer.affine.bias
    for b in range(2):
        both = weight @ style[b] + bias
        for c in range(3):
            mean, variance = x[b, c].mean(), x[b, c].var(unbiased=False)
            normal = (x[b, c] - mean) / torch.sqrt(variance + 1e-5)
            expected = (1 + both[c]) * normal + both[3 + c]
            assert torch.allclose(result[b, c], expected, atol=1e-12)


def test_adain_of_code_zero_with_no_bias_is_instance_norm():
    layer = AdaIN(3, 6)
    initialise(layer)
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(layer(x, torch.zeros(2, 6)), F.instance_norm(x))


def with_gradients(function: Callable[[], Tensor], *inputs: Tensor) -> list[Tensor]:
    """What the function gives, its gradients, and those of their squares, as R1 needs them."""
    result = function()
    first = torch.autograd.grad(result.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(item.square().sum() for item in first), inputs)
    return [result, *first, *second]


@pytest.mark.parametrize(
    ("ours", "plain", "sides", "expected_sides"),
    [
        (convolve_and_halve, lambda x, conv: F.avg_pool2d(conv(x), 2), (8, 8), (4, 4)),
        (convolve_and_halve, lambda x, conv: F.avg_pool2d(conv(x), 2), (2, 6), (1, 3)),
        (double_and_convolve, lambda x, conv: conv(F.interpolate(x, scale_factor=2)), (4, 4), (8, 8)),
        (double_and_convolve, lambda x, conv: conv(F.interpolate(x, scale_factor=2)), (1, 3), (2, 6)),
    ],
)  # fmt: skip
def test_one_convolution_does_what_it_and_a_change_of_size_do(ours, plain, sides, expected_sides):
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    result = with_gradients(lambda: ours(x, conv), *inputs)
    expected = with_gradients(lambda: plain(x, conv), *inputs)
    assert result[0].shape == (2, 5, *expected_sides)
    for one, other in zip(result, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_a_residual_block_is_the_sum_over_sqrt_2():
    block = ResidualBlock(2, 3, norm=True, down=True)
    x = torch.randn(1, 2, 8, 8)
    h = F.instance_norm(x, weight=block.norm1.weight, bias=block.norm1.bias)
    h = F.avg_pool2d(block.conv1(F.leaky_relu(h, 0.2)), 2)
    h = F.instance_norm(h, weight=block.norm2.weight, bias=block.norm2.bias)
    h = block.conv2(F.leaky_relu(h, 0.2))
    skip = F.avg_pool2d(block.skip(x), 2)  # the published order; ours pools first
    assert torch.allclose(block(x), (skip + h) / math.sqrt(2), atol=1e-6)


def test_a_residual_block_without_norm_or_change_of_size_keeps_x_on_the_skip():
    block = ResidualBlock(2, 2)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 4, 4)
    assert torch.allclose(block(x), x / math.sqrt(2))


def test_a_style_block_is_the_sum_over_sqrt_2_after_upsampling():
    block = AdaINResidualBlock(4, 2, 6, up=True)
    x, style = torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    doubled = leaky_relu(block.norm1(x, style)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = block.conv2(leaky_relu(block.norm2(block.conv1(doubled), style)))
    skip = block.skip(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(block(x, style), (skip + h) / math.sqrt(2), atol=1e-6)


def test_initialisation_is_hes_with_biases_of_zero():
    layer = nn.Conv2d(64, 128, 3)
    initialise(layer)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert not layer.bias.any()


def test_a_new_generators_styles_only_tilt_its_instance_norms():
    net = generator_of(resolve(preset="tiny"))
    style = torch.randn(32, 64)  # as long as E's and F's codes at first
    layers = [layer for layer in net.modules() if isinstance(layer, AdaIN)]
    assert len(layers) == 2 * 6
    for layer in layers:
        spread = layer.affine(style).std().item()
        assert spread == pytest.approx(0.1 * math.sqrt(2), rel=0.2)


def test_pick_takes_each_rows_own_domain():
    codes = torch.arange(24).reshape(3, 4, 2)
    assert pick(codes, torch.tensor([2, 0, 3])).tolist() == [[4, 5], [8, 9], [22, 23]]


def test_the_discriminator_gives_the_logit_of_the_domain_that_is_asked_for():
    net = Discriminator(image_size=16, width=2, max_width=4, domains=3)
    x = torch.randn(3, 1, 16, 16)
    all_logits = net.heads(net.trunk(x))
    domain = torch.tensor([1, 0, 2])
    assert torch.equal(net(x, domain), all_logits[torch.arange(3), domain])


# --- the generator ----------------------------------------------------------------------------------------------------


def test_encode_then_decode_is_forward():
    net = small_generator()
    x, style = torch.randn(2, 1, 16, 16), torch.randn(2, 6)
    assert torch.equal(net.decode(net.encode(x), style), net(x, style))


def test_features_are_numbered_by_layer():
    net = small_generator(bottleneck=0)
    x = torch.randn(1, 1, 16, 16)
    features = net.encode(x)
    assert [tuple(item.shape[1:]) for item in features.layers] == [
        (4, 16, 16),
        (8, 8, 8),
        (8, 4, 4),
    ]
    assert torch.equal(features.layers[0], net.stem(x))
    assert torch.equal(features.deep, features.layers[2])


def test_refined_features_are_added_before_the_block_that_mirrors_their_layer():
    net = small_generator()
    x, style = torch.randn(2, 1, 16, 16), torch.randn(2, 6)
    features = net.encode(x)
    refined = {layer: torch.randn_like(features.layers[layer]) for layer in (1, 2)}
    for chosen in ([], [1], [2], [1, 2]):
        h = features.deep
        for block in net.decode_deep:
            h = block(h, style)
        for block, layer in zip(net.up, (2, 1), strict=True):
            h = block(h, style, refined[layer] if layer in chosen else None)
        expected = net.to_image(h)
        result = net.decode(features, style, {layer: refined[layer] for layer in chosen})
        assert torch.equal(result, expected)


def test_full_size_skips_bring_the_first_convolutions_features_and_the_image_itself():
    net = Generator(width=4, max_width=8, downs=2, bottleneck=1, style_dim=6, full_size_skips=True)
    x, style = torch.randn(2, 1, 16, 16), torch.randn(2, 6)
    features = net.encode(x)
    h = features.deep
    for block in (*net.decode_deep, *net.up):
        h = block(h, style)
    assert h.shape == features.layers[0].shape
    difference = net.to_image(net.full_size(h + net.stem(x), style))
    assert difference.std() > 0.1
    assert torch.equal(net.decode(features, style), x + difference)


def test_a_generator_without_full_size_skips_has_the_papers_layers_alone():
    assert small_generator().full_size is None
    assert not any(name.startswith("full_size") for name in small_generator().state_dict())


def test_another_style_gives_another_image():
    net = small_generator()
    x = torch.randn(1, 1, 16, 16)
    assert not torch.allclose(net(x, torch.zeros(1, 6)), net(x, torch.ones(1, 6)))


def test_sizes_that_are_no_square_go_through():
    net = small_generator()
    assert net(torch.randn(1, 1, 16, 24), torch.zeros(1, 6)).shape == (1, 1, 16, 24)


# --- attention --------------------------------------------------------------------------------------------------------


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def plain_cbam(net: CBAM, features: np.ndarray) -> np.ndarray:
    """Eq 2 to 5 for one image (C, H, W), position by position."""
    first, _, second = net.mlp
    (w1, b1), (w2, b2) = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in (first, second)
    )
    kernel, offset = net.conv.weight.detach().double().numpy()[0], net.conv.bias.item()

    def mlp(vector: np.ndarray) -> np.ndarray:
        return w2 @ np.maximum(w1 @ vector + b1, 0) + b2

    channels, height, width = features.shape
    channel = mlp(features.reshape(channels, -1).mean(axis=1)) + mlp(
        features.reshape(channels, -1).max(axis=1)
    )
    first_refined = np.stack([sigmoid(channel[c]) * features[c] for c in range(channels)])
    pooled = np.pad(
        np.stack([first_refined.mean(axis=0), first_refined.max(axis=0)]), ((0, 0), (3, 3), (3, 3))
    )
    result = np.empty_like(features)
    for i in range(height):
        for j in range(width):
            spatial = sigmoid((pooled[:, i : i + 7, j : j + 7] * kernel).sum() + offset)
            result[:, i, j] = spatial * first_refined[:, i, j]
    return result


def test_cbam_is_equations_2_to_5():
    net = CBAM(32)
    for parameter in net.parameters():  # biases of zero would hide a mistake
        nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, 32, 6, 5, dtype=torch.float64)
    result = net.double()(features).detach().numpy()
    for index in range(2):
        assert np.abs(result[index] - plain_cbam(net, features[index].numpy())).max() < 1e-10


def test_cbam_reduces_by_16_and_keeps_one_hidden_unit_at_least():
    assert [CBAM(channels).mlp[0].out_features for channels in (8, 16, 256)] == [1, 1, 16]


def test_cbam_has_no_batch_norm_so_images_do_not_mix():
    net = CBAM(16)
    assert not any("norm" in type(module).__name__.lower() for module in net.modules())
    x = torch.randn(3, 16, 4, 4)
    assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-6)


# --- patches ----------------------------------------------------------------------------------------------------------


def dense_entropies(rows: torch.Tensor, scale: str) -> np.ndarray:
    """Eq 6 in float64 with the whole matrix, entropies by scipy."""
    p = rows.double().numpy()
    if scale == "l2":
        p = p / np.linalg.norm(p, axis=-1, keepdims=True)
    logits = p @ p.transpose(0, 2, 1)
    if scale == "sqrt":
        logits = logits / math.sqrt(p.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return entropy(weights / weights.sum(axis=-1, keepdims=True), axis=-1)


@pytest.mark.parametrize("scale", ["none", "sqrt", "l2"])
@pytest.mark.parametrize("positions", [7, 724, 725, 1100])  # of 724 the whole matrix is one block
def test_entropies_by_chunks_are_those_of_the_whole_matrix(scale, positions):
    rows = torch.randn(2, positions, 24, dtype=torch.float64)
    dense = dense_entropies(rows, scale)
    assert np.abs(patches.row_entropies(rows, scale=scale).numpy() - dense).max() < 1e-10
    if scale != "none":  # unscaled logits are beyond what float32 resolves
        single = patches.row_entropies(rows.float(), scale=scale).numpy()
        assert np.abs(single - dense).max() < 1e-5


def test_the_selection_is_that_of_the_whole_matrix():
    rows = torch.randn(2, 1100, 24, dtype=torch.float64)
    chosen = patches.select(patches.row_entropies(rows), 256)
    dense = dense_entropies(rows, "sqrt")
    assert chosen.tolist() == np.argsort(dense, axis=1, kind="stable")[:, :256].tolist()


def test_entropies_of_512_channels_spread_under_the_default_scale_and_collapse_without(
    phantom_root,
):
    path = phantom_root / "Phantom_00000" / "Phantom_00000_t1.nii.gz"
    brain = volumes.load([path]).data[13]
    x = intensities.pad(2 * brain / brain.max() - 1, (64, 64))
    net = Generator(width=64, max_width=512, downs=3, bottleneck=0, style_dim=4)
    with torch.no_grad():
        features = net.encode(torch.from_numpy(x)[None, None].float()).layers[3]
    assert features.shape == (1, 512, 8, 8)
    rows = patches.as_rows(features).double()
    default, without = (patches.row_entropies(rows, scale=name)[0] for name in ("sqrt", "none"))
    assert default.std() > 0.5
    assert default.median() > 0.1
    assert without.median() < 1e-3  # of log 64 = 4.2: most rows attend to themselves alone


def test_entropy_of_equal_rows_is_the_logarithm_of_their_number():
    result = patches.row_entropies(torch.ones(1, 50, 8))
    assert torch.allclose(result, torch.full((1, 50), math.log(50)), atol=1e-5)


def test_select_takes_the_smallest_first_and_the_earlier_of_equals():
    entropies = torch.tensor([[3.0, 1.0, 2.0, 1.0, 0.5]])
    assert patches.select(entropies, 3).tolist() == [[4, 1, 3]]
    assert patches.select(entropies, 99).tolist() == [[4, 1, 3, 2, 0]]


@pytest.mark.parametrize("scale", ["none", "sqrt", "l2"])
def test_importance_rows_are_the_selected_rows_of_the_softmax(scale):
    rows, positions = torch.randn(2, 30, 8), torch.tensor([[4, 0, 29], [7, 7, 1]])
    operand = F.normalize(rows, dim=-1) if scale == "l2" else rows
    logits = operand @ operand.transpose(1, 2) / (math.sqrt(8) if scale == "sqrt" else 1)
    whole = logits.softmax(dim=-1)
    result = patches.importance_rows(rows, positions, scale=scale)
    for b in range(2):
        assert torch.allclose(result[b], whole[b, positions[b]], atol=1e-6)
    assert torch.allclose(result.sum(dim=-1), torch.ones(2, 3), atol=1e-6)


def test_importance_carries_no_gradient():
    rows = torch.randn(1, 10, 4, requires_grad=True)
    chosen = patches.select(patches.row_entropies(rows), 3)
    assert not patches.importance_rows(rows, chosen).requires_grad


def test_rows_are_positions_in_reading_order():
    features = torch.arange(12.0).reshape(1, 2, 2, 3)
    assert patches.as_rows(features).tolist() == [
        [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    ]


def test_gather_takes_rows_at_positions():
    rows = torch.arange(12).reshape(2, 3, 2)
    result = patches.gather(rows, torch.tensor([[2, 0], [1, 1]]))
    assert result.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_the_patch_head_gives_rows_of_length_1_and_256_numbers():
    result = patches.PatchHead(24)(torch.randn(2, 5, 24))
    assert result.shape == (2, 5, 256)
    assert torch.allclose(result.norm(dim=-1), torch.ones(2, 5), atol=1e-5)


def test_instance_norm_of_bfloat16_is_computed_in_float32():
    x = (torch.randn(2, 3, 64, 64) + 40).to(
        torch.bfloat16
    )  # a mean that bfloat16's 8 bits do not resolve
    result = InstanceNorm(3)(x)
    assert result.dtype == torch.bfloat16
    wide = x.double()
    expected = (wide - wide.mean((2, 3), keepdim=True)) / wide.std(
        (2, 3), correction=0, keepdim=True
    )
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=1e-3)


def test_background_of_all_sources_is_background_of_what_is_made():
    sources = torch.full((1, 2, 6, 6), -1.0)
    sources[0, 0, 1:4, 1:4] = 0.5
    sources[0, 0, 2, 2] = -1  # clipped to -1, within the brain
    sources[0, 1, 5, 5] = 0.1
    fake = torch.randn(1, 1, 6, 6, requires_grad=True)
    shown = keep_background(fake, sources)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[0:5, 0:5] = True  # the square and its rim
    inside[4:6, 4:6] = True
    assert torch.equal(shown[0, 0][inside], fake[0, 0][inside])
    assert shown[0, 0][~inside].eq(-1).all()
    shown.sum().backward()
    assert torch.equal(fake.grad[0, 0] == 1, inside)
    assert torch.equal(keep_background(fake, sources[:, :1], sources[:, 1:]), shown)
