"""Preset `paper` of AttCL-GAN against the publication: weights counted by hand, AttAdaIN and SCD from the text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from helpers import SMALL_NETWORKS, SMALL_RUN
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.networks.blocks import AdaIN
from attcl_cli.methods.networks.generator import Generator
from attcl_cli.methods.settings import Settings, parse, resolve

FOUR = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small_paper(**changes: object) -> Settings:
    return resolve(
        preset="paper", overrides={**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], **changes}
    )


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
    assert (s.sources, s.context, s.crop, s.fold, s.mirror) == ("one", 0, 0, 1, 0)
    assert (s.discriminator, s.alternate, s.r1_every) == ("slices", False, 1)
    assert (s.supervised, s.ramp, s.lambda_pair, s.lambda_structure) == (0, 0, 0, 0)
    assert not (s.keep_background or s.full_size_skips or s.all_skips)
    assert (s.epochs, s.learning_rate_decay, s.slice_span) == (0, 0, "middle")


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_presets_keep_what_was_measured(preset):
    s = resolve(preset=preset)
    assert (s.adain_start, s.shortcut_refined, s.attention_scale) == (0.1, True, "sqrt")
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
