"""CycleGAN: its networks against plain layers and published numbers, its first weights, its presets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from attcl_cli.methods.cyclegan import CycleGan, CycleGanSettings
from attcl_cli.methods.networks.blocks import InstanceNorm
from attcl_cli.methods.networks.resnet import PatchGan, ResnetGenerator
from attcl_cli.methods.settings import resolve

FOUR = ("flair", "t1", "t1ce", "t2")


def settings_of(preset: str, **changes: Any) -> CycleGanSettings:
    settings = resolve(preset=preset, method="cyclegan", overrides=changes)
    assert isinstance(settings, CycleGanSettings)
    return settings


def weights_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- networks ---------------------------------------------------------------------------------------------------------


def test_at_three_channels_the_networks_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        generator, judge = ResnetGenerator(channels=3), PatchGan(image_size=256, inputs=3)
    assert (weights_of(generator), weights_of(judge)) == (11_378_179, 2_764_737)  # 11.378, 2.765 M


def test_at_one_channel_they_have_fewer_in_their_first_and_last_layers_alone():
    with torch.device("meta"):
        method = CycleGan(settings_of("published", image_pool=0), ("t1", "t2"))
    first_and_last = 2 * 64 * 49 + 2 * (64 * 49 + 1)
    generator, judge = (
        method.get_submodule(f"{name}_0_1") for name in ("generator", "discriminator")
    )
    assert weights_of(generator) == 11_378_179 - first_and_last == 11_365_633
    assert weights_of(judge) == 2_764_737 - 2 * 64 * 16 == 2_762_689


def plain_generator(width: int, blocks: int) -> nn.Sequential:
    """Return the generator of the paper's appendix, in plain layers; its residual blocks are `Sum`s."""

    class Sum(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = x + super().forward(x)
            return value

    def block(channels: int) -> Sum:
        return Sum(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def up(channels: int) -> list[nn.Module]:
        return [
            nn.ConvTranspose2d(channels, channels // 2, 3, 2, padding=1, output_padding=1),
            nn.InstanceNorm2d(channels // 2),
            nn.ReLU(),
        ]

    def down(channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.InstanceNorm2d(2 * channels),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *(nn.ReflectionPad2d(3), nn.Conv2d(1, width, 7), nn.InstanceNorm2d(width), nn.ReLU()),
        *down(width),
        *down(2 * width),
        *(block(4 * width) for _ in range(blocks)),
        *up(4 * width),
        *up(2 * width),
        *(nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Tanh()),
    )


def test_the_generator_is_that_of_the_appendix_in_plain_layers():
    generator, plain = ResnetGenerator(width=4, blocks=2), plain_generator(4, 2)
    plain.load_state_dict(
        dict(zip(plain.state_dict(), generator.state_dict().values(), strict=True))
    )
    x = torch.rand(2, 1, 24, 16) * 2 - 1
    assert torch.allclose(generator(x), plain(x), atol=1e-5)


def test_the_discriminator_judges_patches_of_70_pixels():
    judge = PatchGan(image_size=256, width=4)
    for module in list(judge.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):  # it looks at the whole slice
                setattr(module, name, nn.Identity())
    x = torch.rand(1, 1, 256, 256, requires_grad=True)
    logits = judge(x)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    assert (int(seen.any(dim=0).sum()), int(seen.any(dim=1).sum())) == (70, 70)


@pytest.mark.parametrize(("side", "map_side"), [(16, 6), (32, 14), (64, 14), (128, 14)])
def test_smaller_slices_are_halved_less_often(side, map_side):
    judge = PatchGan(image_size=side, width=4)
    assert judge(torch.zeros(1, 1, side, side)).shape[2:] == (map_side, map_side)


def test_the_first_weights_are_drawn_from_a_normal_distribution_of_width_002():
    torch.manual_seed(0)
    method = CycleGan(settings_of("tiny", width=16), ("t1", "t2"))
    for network in method.networks().values():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any()
            elif parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


# --- presets ----------------------------------------------------------------------------------------------------------


def test_preset_published_is_that_of_the_code():
    s = settings_of("published")
    assert (s.learning_rate, s.beta1, s.beta2, s.weight_decay) == (2e-4, 0.5, 0.999, 0.0)
    assert (s.batch_size, s.epochs, s.learning_rate_decay) == (1, 200, 0.5)
    assert (s.lambda_cycle, s.lambda_identity, s.lambda_discriminator) == (10.0, 5.0, 0.5)
    assert (s.image_pool, s.image_size, s.crop, s.width, s.resnet_blocks) == (50, 256, 0, 64, 9)
    assert (s.mirror, round(s.jitter * 256), s.ema_decay) == (0.5, 30, 0.0)
    assert s.schedule == "successive"


def test_preset_paper_has_the_common_adam_and_all_else_as_published():
    published, paper = (settings_of(name).model_dump() for name in ("published", "paper"))
    changed = {name: paper[name] for name in paper if paper[name] != published[name]}
    assert changed == {"learning_rate": 1e-4, "beta1": 0.0, "beta2": 0.99, "weight_decay": 1e-4}


@pytest.mark.parametrize("preset", ["published", "paper"])
def test_what_is_published_learns_from_no_pair(preset):
    s = settings_of(preset)
    assert (s.lambda_pair, s.keep_background) == (0.0, False)


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_sizes_train_all_pairs_at_any_time(preset):
    s = settings_of(preset)
    assert (s.schedule, s.ema_decay, s.steps % 3) == ("interleaved", 0.0, 0)
    assert s.lambda_pair > 0
