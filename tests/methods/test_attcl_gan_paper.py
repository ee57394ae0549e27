"""Preset `paper` of AttCL-GAN against the publication: weights counted by hand, AttAdaIN and SCD from the text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from attcl_gan_steps import small_paper
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.networks.blocks import AdaIN
from attcl_cli.methods.networks.generator import Generator
from attcl_cli.methods.settings import Settings, parse, resolve

FOUR = ("flair", "t1", "t1ce", "t2")


def method_of(settings: Settings) -> AttclGan:
    torch.manual_seed(1)
    return METHODS["attcl-gan"](settings, FOUR)


def batch_of(size: int = 3) -> DomainBatch:
    x_src, x_ref, x_ref2, x_pair = (torch.rand(size, 1, 16, 16) * 2 - 1 for _ in range(4))
    y_src = torch.arange(size) % 4
    no_pair = torch.zeros(size, dtype=torch.bool)
    return DomainBatch(x_src, y_src, x_ref, x_ref2, (y_src + 1) % 4, x_pair, no_pair)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- weights ----------------------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


def block(inputs: int, outputs: int, *, norm: int = 0) -> int:
    """StarGAN v2's residual block; the first convolution keeps the width. `norm`: numbers per normalised channel."""
    shortcut = inputs * outputs if inputs != outputs else 0
    return conv(inputs, inputs) + conv(inputs, outputs) + shortcut + 2 * inputs * norm


def style_block(inputs: int, outputs: int) -> int:
    """The decoder's block: the first convolution widens; two affine maps of the 64 numbers of a code."""
    shortcut = inputs * outputs if inputs != outputs else 0
    affine = 65 * 2 * inputs + 65 * 2 * outputs
    return conv(inputs, outputs) + conv(outputs, outputs) + shortcut + affine


def test_the_networks_have_as_many_weights_as_the_papers_layers():
    with torch.device("meta"):
        method = METHODS["attcl-gan"](resolve(preset="paper"), FOUR)
    down = [(64, 128), (128, 256), (256, 512), (512, 512)]
    generator = conv(1, 64) + sum(block(a, b, norm=2) for a, b in down)
    generator += 2 * block(512, 512, norm=2) + 2 * style_block(512, 512)
    generator += sum(style_block(b, a) for a, b in down) + 2 * 64 + conv(64, 1, 1)
    assert count(method.generator) == generator == 33_891_713
    # to 4x4: six halvings of 256
    trunk = conv(1, 64) + sum(block(a, b) for a, b in (*down, (512, 512), (512, 512)))
    trunk += conv(512, 512, 4)
    assert count(method.style_encoder) == trunk + 4 * (513 * 64) == 20_981_440
    assert count(method.discriminator) == trunk + 4 * 513 == 20_852_164
    mapping = (17 * 512 + 3 * 513 * 512) + 4 * (3 * 513 * 512 + 513 * 64)
    assert count(method.mapping) == mapping == 4_079_872

    def cbam(channels: int) -> int:
        hidden = channels // 16
        return (channels + 1) * hidden + (hidden + 1) * channels + 2 * 49 + 1

    assert count(method.attention) == cbam(256) + cbam(512)  # layers 2 and 3
    assert count(method.heads) == 257 * 256 + 513 * 256 + 2 * 257 * 256


@pytest.mark.parametrize(("preset", "factor"), [("paper", 1.0), ("tiny", 0.1)])
def test_the_affine_maps_of_the_style_start_as_he_says_or_at_a_tenth(preset, factor):
    settings = resolve(preset=preset, overrides={"width": 16, "max_width": 64})
    maps = [item for item in method_of(settings).generator.modules() if isinstance(item, AdaIN)]
    assert maps
    spread = torch.cat([item.affine.weight.flatten() for item in maps]).std().item()
    assert spread == pytest.approx(factor * math.sqrt(2 / 64), rel=0.02)


def test_all_networks_start_as_he_says_with_biases_of_zero():
    sizes = {"width": 8, "max_width": 32, "image_size": 32, "downs": 3}
    settings = resolve(preset="paper", overrides=sizes)
    spreads: dict[str, list[float]] = {}
    for name, network in method_of(settings).networks().items():
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                assert layer.bias is None or not layer.bias.any(), name
                if layer.weight.numel() > 500:
                    he = math.sqrt(2 / layer.weight[0].numel())
                    spreads.setdefault(name, []).append(layer.weight.std().item() / he)
    expected = {"generator", "mapping", "style_encoder", "discriminator", "heads"}
    assert spreads.keys() == expected  # those of attention are small
    for name, values in spreads.items():
        assert values == pytest.approx([1] * len(values), rel=0.15), name


# --- E, D, F and the encoder of G: StarGAN v2's, Appendix -------------------------------------------------------------


def drawn(module: nn.Module) -> Mapping[str, Tensor]:
    """Give every weight a value that is not its first one, so that no bias is 0 and no scale is 1; return them."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return dict(module.named_parameters())


def down_block(x: Tensor, p: Mapping[str, Tensor], at: str, *, down: bool = True) -> Tensor:
    """Norm (G has it, E and D do not), LeakyReLU, convolution, twice; with the shortcut, over sqrt 2."""

    def normed(h: Tensor, name: str) -> Tensor:
        weights = (p.get(f"{at}.{name}.weight"), p.get(f"{at}.{name}.bias"))
        return h if weights[0] is None else F.instance_norm(h, weight=weights[0], bias=weights[1])

    h = F.leaky_relu(normed(x, "norm1"), 0.2)
    h = F.conv2d(h, p[f"{at}.conv1.weight"], p[f"{at}.conv1.bias"], padding=1)
    h = F.avg_pool2d(h, 2) if down else h
    h = F.leaky_relu(normed(h, "norm2"), 0.2)
    h = F.conv2d(h, p[f"{at}.conv2.weight"], p[f"{at}.conv2.bias"], padding=1)
    shortcut = F.conv2d(x, p[f"{at}.skip.weight"]) if f"{at}.skip.weight" in p else x
    shortcut = F.avg_pool2d(shortcut, 2) if down else shortcut
    return (h + shortcut) / math.sqrt(2)


def trunk(x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """To 4x4 in halvings, LeakyReLU, a 4x4 convolution, LeakyReLU."""
    h = F.conv2d(x, p["trunk.stem.weight"], p["trunk.stem.bias"], padding=1)
    for index in range(2):  # of 16 pixels
        h = down_block(h, p, f"trunk.down.{index}")
    h = F.conv2d(F.leaky_relu(h, 0.2), p["trunk.last.1.weight"], p["trunk.last.1.bias"])
    return F.leaky_relu(h, 0.2).flatten(1)


def test_the_style_encoder_and_the_discriminator_are_the_trunk_with_a_head_per_modality():
    method, x = method_of(small_paper()), torch.randn(3, 1, 16, 16)
    p = drawn(method.style_encoder)
    codes = trunk(x, p) @ p["heads.weight"].T + p["heads.bias"]
    assert torch.allclose(method.style_encoder(x), codes.reshape(3, 4, 8), rtol=1e-4, atol=1e-4)
    p = drawn(method.discriminator)
    logits = trunk(x, p) @ p["heads.weight"].T + p["heads.bias"]
    result = method.discriminator(x, torch.tensor([2, 0, 3]))
    assert torch.allclose(result, logits[[0, 1, 2], [2, 0, 3]], rtol=1e-4, atol=1e-4)


def test_the_mapping_network_is_four_shared_layers_and_four_of_each_modality():
    method, z = method_of(small_paper()), torch.randn(3, 4)
    p = drawn(method.mapping)
    h = z
    for index in (0, 2, 4, 6):
        h = torch.relu(h @ p[f"shared.{index}.weight"].T + p[f"shared.{index}.bias"])
    for domain in range(4):
        code = h
        for index in (0, 2, 4, 6):
            at = f"domain.{domain}.{index}"
            code = (torch.relu(code) if index else code) @ p[f"{at}.weight"].T + p[f"{at}.bias"]
        assert torch.allclose(method.mapping(z)[:, domain], code, rtol=1e-4, atol=1e-5)


def test_the_encoder_of_the_generator_has_its_layers_and_its_image_comes_from_a_norm():
    generator, x = method_of(small_paper()).generator, torch.randn(2, 1, 16, 16)
    p = drawn(generator)
    layers = [F.conv2d(x, p["stem.weight"], p["stem.bias"], padding=1)]
    for index in range(2):
        layers.append(down_block(layers[-1], p, f"down.{index}"))
    features = generator.encode(x)
    for ours, expected in zip(features.layers, layers, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4)
    deep = down_block(layers[-1], p, "encode_deep.0", down=False)
    assert torch.allclose(features.deep, deep, rtol=1e-4, atol=1e-4)
    h = torch.randn(2, 4, 16, 16)
    normed = F.instance_norm(h, weight=p["to_image.0.weight"], bias=p["to_image.0.bias"])
    image = F.conv2d(F.leaky_relu(normed, 0.2), p["to_image.2.weight"], p["to_image.2.bias"])
    assert torch.allclose(generator.to_image(h), image, atol=1e-5)


# --- AttAdaIN ---------------------------------------------------------------------------------------------------------


def adain(x: Tensor, s: Tensor, p: Mapping[str, Tensor], name: str) -> Tensor:
    """Eq 7 and 9 with StarGAN v2's 1 + gamma."""
    gamma, beta = (s @ p[f"{name}.affine.weight"].T + p[f"{name}.affine.bias"]).chunk(2, dim=1)
    mean, variance = (
        x.mean(dim=(2, 3), keepdim=True),
        x.var(dim=(2, 3), unbiased=False, keepdim=True),
    )
    normed = (x - mean) / (variance + 1e-5).sqrt()
    return (1 + gamma[:, :, None, None]) * normed + beta[:, :, None, None]


def att_adain_block(
    h: Tensor, refined: Tensor | None, s: Tensor, p: Mapping[str, Tensor], *, up: bool
) -> Tensor:
    """A decoder block; Eq 8: what goes into AdaIN is h + A(F), and nothing else of the block sees A(F)."""
    x = adain(h if refined is None else h + refined, s, p, "norm1")
    x = F.leaky_relu(x, 0.2)
    x = F.interpolate(x, scale_factor=2, mode="nearest") if up else x
    x = F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1)
    x = F.leaky_relu(adain(x, s, p, "norm2"), 0.2)
    x = F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=1)
    shortcut = F.interpolate(h, scale_factor=2, mode="nearest") if up else h
    if "skip.weight" in p:
        shortcut = F.conv2d(shortcut, p["skip.weight"])
    return (x + shortcut) / math.sqrt(2)


@pytest.mark.parametrize("ours", [False, True])
def test_refined_features_go_into_adain_and_only_ours_let_the_shortcut_carry_them(ours):
    generator = Generator(
        width=4, max_width=8, downs=2, bottleneck=1, style_dim=6, shortcut_refined=ours
    )
    x, s = torch.rand(2, 1, 16, 16), torch.randn(2, 6)
    features = generator.encode(x)
    refined = {layer: torch.randn_like(features.layers[layer]) for layer in (1, 2)}
    h = att_adain_block(
        features.deep, None, s, dict(generator.decode_deep[0].named_parameters()), up=False
    )
    for index, layer in enumerate((2, 1)):
        p = dict(generator.up[index].named_parameters())
        if ours:
            h = att_adain_block(h + refined[layer], None, s, p, up=True)
        else:
            h = att_adain_block(h, refined[layer], s, p, up=True)
    expected = generator.to_image(h)
    assert torch.allclose(generator.decode(features, s, refined), expected, atol=1e-5)
    other = Generator(
        width=4, max_width=8, downs=2, bottleneck=1, style_dim=6, shortcut_refined=not ours
    )
    other.load_state_dict(generator.state_dict())
    assert not torch.allclose(other.decode(features, s, refined), expected, atol=1e-2)


# --- SCD --------------------------------------------------------------------------------------------------------------


def gradients_of(method: AttclGan, batch: DomainBatch) -> list[dict[str, Tensor]]:
    """Run a step; return the gradients with which E's optimiser stepped, one dict per step that it took."""
    steps: list[dict[str, Tensor]] = []
    method.optimisers()["style_encoder"].register_step_pre_hook(
        lambda *_: steps.append(
            {name: p.grad.clone() for name, p in method.style_encoder.named_parameters()}
        )
    )
    method.training_step(batch, 0)
    return steps


def diversity(codes: Tensor, y: Tensor) -> Tensor:
    """Eq 11 as printed: the mean over all N codes of the distance to the code of modality y, mean over the batch."""
    total = torch.zeros(())
    for b, own in enumerate(y.tolist()):
        others = [i for i in range(codes.shape[1]) if i != own]
        total = total + sum((codes[b, own] - codes[b, i]).norm() for i in others) / codes.shape[1]
    return total / len(y)


def test_the_style_encoder_learns_its_diversity_within_its_one_update():
    batch = batch_of()
    switches = {"acl": "none", "att_adain": False}
    with_scd, without = (
        gradients_of(method_of(small_paper(**switches, scd=scd)), batch) for scd in (True, False)
    )
    assert len(with_scd) == len(without) == 1
    method = method_of(small_paper(**switches))
    loss = -method.settings.lambda_scd * diversity(method.style_encoder(batch.x_ref), batch.y_ref)
    names = [name for name, _ in method.style_encoder.named_parameters()]
    expected = torch.autograd.grad(loss, [*method.style_encoder.parameters()])
    for name, value in zip(names, expected, strict=True):
        difference = with_scd[0][name] - without[0][name]
        assert torch.allclose(difference, value, atol=1e-5), name
    assert max(value.abs().max() for value in expected) > 1e-3


# --- settings ---------------------------------------------------------------------------------------------------------


def test_paper_has_none_of_ours():
    s = resolve(preset="paper")
    assert (s.adain_start, s.shortcut_refined, s.attention_scale) == (1, False, "none")
    assert (s.keep, s.ema_warm_up, s.ema_decay) == ("last", False, 0.999)
    assert (s.sources, s.context, s.crop, s.mirror) == ("one", 0, 0, 0)
    assert (s.generator, s.muon, s.warm_up, s.coarse) == ("stargan-v2", False, 0, 0)
    assert (s.discriminator, s.alternate, s.r1_every) == ("slices", False, 1)
    assert (s.supervised, s.ramp, s.lambda_pair, s.lambda_structure) == (0, 0, 0, 0)
    assert not (s.keep_background or s.full_size_skips)
    assert (s.epochs, s.learning_rate_decay, s.slice_span) == (0, 0, "middle")


@pytest.mark.parametrize("ours", [False, True])
def test_the_generator_is_built_as_the_settings_say(ours):
    s = small_paper(shortcut_refined=ours, full_size_skips=ours)
    generator = method_of(s).generator
    assert generator.shortcut_refined == ours
    assert (generator.full_size is not None) == ours


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_presets_keep_what_was_measured(preset):
    s = resolve(preset=preset)
    assert (s.adain_start, s.attention_scale) == (0.1, "sqrt")
    assert (s.keep, s.ema_warm_up) == ("best", True)


def test_an_older_run_keeps_its_generator():
    s = parse({"method": "attcl-gan", "attention_scale": "sqrt", "scd_bound": 10.0})
    assert (s.adain_start, s.shortcut_refined, s.scd_bound) == (0.1, True, 10)
    assert (s.sources, s.supervised, s.discriminator) == ("one", 0, "slices")


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, True),
        ({"attention_scale": "sqrt"}, False),
        ({"acl": "cut"}, False),
        ({"lambda_patch": 0.0}, False),
    ],
)
def test_a_scale_as_printed_is_warned_of(changes, warned):
    notes = resolve(preset="paper", overrides=changes).notes
    assert [("19 to 35 %" in note, "attention_scale=sqrt" in note) for note in notes] == [
        (True, True)
    ] * warned
