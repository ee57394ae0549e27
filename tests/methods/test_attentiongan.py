"""AttentionGAN: the published sizes, the composition by hand, weights, and who is shown which fakes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import small_settings
from slice_stores import FOUR
from torch import Tensor, nn

from attcl_cli.data.couples import CoupleBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.attentiongan import AttentionGan, copied_share
from attcl_cli.methods.networks.attention_maps import AttentionMapGenerator, compose
from attcl_cli.methods.networks.resnet import PatchGan
from attcl_cli.methods.pairwise import Way
from attcl_cli.methods.settings import resolve

FLAIR, T1 = 0, 1


def method_of(**changes: Any) -> AttentionGan:
    """Return a new method of three pairs round FLAIR, with the same weights for the same settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["attentiongan"](
            small_settings("attentiongan", **{"lambda_pair": 0.0, **changes}), FOUR
        )


def couple(count: int = 2) -> CoupleBatch:
    """Return random slices of FLAIR and of T1, 16x16 pixels, with nothing in common."""
    a, b = torch.rand(2, count, 1, 16, 16) * 2 - 1
    return CoupleBatch(a, b, (FLAIR, T1))


def size_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def generator(maps: int = 4) -> AttentionMapGenerator:
    """Return a generator of 16x16 slices."""
    return AttentionMapGenerator(width=4, blocks=1, maps=maps)


def source(count: int = 2) -> Tensor:
    """Return random slices whose left half is background."""
    x = torch.rand(count, 1, 16, 16) * 2 - 1
    x[..., :8] = -1
    return x


# --- the networks -----------------------------------------------------------------------------------------------------


def test_networks_of_256_pixels_have_their_published_sizes():
    with torch.device("meta"):
        network, judge = AttentionMapGenerator(), PatchGan(image_size=256)
        made = network(torch.empty(1, 1, 256, 256))
    assert size_of(network) == 11_760_211
    assert size_of(judge) == 2_762_689
    assert made.contents.shape == (1, 9, 256, 256)  # one channel each, not three
    assert made.attention.shape == (1, 10, 256, 256)
    assert made.image.shape == (1, 1, 256, 256)


def test_a_composition_by_hand():
    # Two pixels, three maps: contents 0.5 and -1, and the source.
    x = torch.tensor([[[[0.25, -1.0]]]])
    contents = torch.tensor([[[[0.5, 0.5]], [[-1.0, -1.0]]]])
    attention = torch.tensor([[[[0.5, 0.0]], [[0.1, 0.0]], [[0.4, 1.0]]]])
    made = compose(x, contents, attention)
    assert torch.allclose(made.image, torch.tensor([[[[0.25 - 0.1 + 0.1, -1.0]]]]))
    assert made.background.tolist() == [[[pytest.approx([0.4, 1.0])]]]


def test_attention_maps_are_shares_that_add_up_to_1():
    made = generator()(source())
    assert made.attention.min() >= 0
    assert torch.allclose(made.attention.sum(dim=1), torch.ones(2, 16, 16), atol=1e-6)
    assert made.contents.abs().max() <= 1 and made.image.abs().max() <= 1 + 1e-6


def test_they_do_in_bf16_too():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = generator()(source())
    assert made.attention.dtype == made.image.dtype == torch.float32
    assert torch.allclose(made.attention.sum(dim=1), torch.ones(2, 16, 16), atol=1e-6)


def test_the_last_map_copies_the_source():
    network, x = generator(), source()
    with torch.no_grad():
        network.attention[-1].weight.zero_()
        network.attention[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 200.0]))
    assert torch.equal(network(x).image, x)
    with torch.no_grad():
        network.attention[-1].bias.copy_(torch.tensor([0.0, 200.0, 0.0, 0.0]))
    made = network(x)
    assert torch.equal(made.image, made.contents[:, 1:2])


def test_contents_and_maps_have_a_decoder_each_on_one_trunk():
    network, x = generator(), source()
    h = network.trunk(x)
    made = network(x)
    assert torch.equal(made.contents, torch.tanh(network.contents(h)))
    assert torch.equal(made.attention, network.attention(h).softmax(dim=1))
    assert network.contents[-1].kernel_size == (7, 7)
    assert network.attention[-1].kernel_size == (1, 1)


def test_first_weights_are_normal_with_a_deviation_of_0_02():
    method = method_of(width=16)
    for name in ("generator_0_1", "discriminator_0_1"):
        weights = torch.cat(
            [
                layer.weight.flatten()
                for layer in method.get_submodule(name).modules()
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
            ]
        )
        assert weights.std().item() == pytest.approx(0.02, rel=0.03)


# --- losses and steps -------------------------------------------------------------------------------------------------


class Judge(nn.Module):
    """Says the mean of a slice."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


def test_the_losses_of_a_generator_by_hand():
    x, y, fake = (torch.full((2, 1, 16, 16), value) for value in (0.0, 1.0, 0.5))
    maps = torch.tensor([0.25, 0.75])[:, None, None].expand(2, 2, 16, 16)
    made = compose(x, fake, maps)
    way = Way(nn.Identity(), nn.Identity(), Judge(), x, y, made, fake, x + 0.2, made, y - 0.1)
    losses = method_of().way_losses(way)
    weights = {name: weight for name, (weight, _) in losses.items()}
    assert weights == {"gan": 1, "cycle": 10, "identity": 5, "copied": 0}
    values = {name: value.item() for name, (_, value) in losses.items()}
    # Both directions are added up: each brings half of the mean of what is copied.
    expected = {"gan": 0.25, "cycle": 0.2, "identity": 0.1, "copied": 0.375}
    assert values == pytest.approx(expected)


def test_identity_has_half_the_weight_of_the_cycle_as_published():
    for preset in ("published", "paper"):
        settings = resolve(preset=preset, method="attentiongan")
        assert settings.lambda_cycle == 10
        assert settings.lambda_identity == 0.5 * settings.lambda_cycle


def test_the_losses_of_a_discriminator_are_halved():
    real, fake = (torch.full((2, 1, 16, 16), value) for value in (0.5, 0.2))
    losses = method_of().judge_losses(Judge(), real=real, fake=fake)
    assert {name: weight for name, (weight, _) in losses.items()} == {"real": 0.5, "fake": 0.5}
    assert losses["real"][1].item() == pytest.approx(0.25)
    assert losses["fake"][1].item() == pytest.approx(0.04)


def test_generators_step_first_and_the_pool_remembers_their_fakes_of_before():
    method, batch = method_of(learning_rate=0.01), couple()
    before = copy.deepcopy(method)
    logged = method.training_step(batch, 0)
    assert [*logged][:4] == ["g_gan", "g_cycle", "g_identity", "g_copied"]
    assert [*logged][4:6] == ["d_real", "d_fake"]
    with torch.no_grad():
        fake_t1 = before.network("generator", FLAIR, T1)(batch.a).image
        judged = before.network("discriminator", FLAIR, T1)(fake_t1)
        other = before.network("generator", T1, FLAIR)(batch.b).image
        also = before.network("discriminator", T1, FLAIR)(other)
    expected = judged.pow(2).mean() + also.pow(2).mean()
    assert logged["d_fake"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(method.pool.images[:2], fake_t1[:, 0], atol=1e-6)


def test_what_is_copied_is_looked_at_in_the_brain_alone_and_teaches_nothing():
    x = source()
    attention = torch.full((2, 2, 16, 16), 0.5, requires_grad=True)
    left = torch.zeros(2, 2, 16, 16)
    left[:, 1, :, :8] = 0.5  # 1 in the background, 0.5 in the brain
    left[:, 0, :, :8] = -0.5
    share = copied_share(compose(x, torch.zeros(2, 1, 16, 16), attention + left), x)
    assert share.item() == pytest.approx(0.5)
    assert not share.requires_grad


def test_a_slice_without_brain_copies_nothing():
    x = torch.full((2, 1, 16, 16), -1.0)
    maps = torch.full((2, 2, 16, 16), 0.5)
    assert copied_share(compose(x, torch.zeros(2, 1, 16, 16), maps), x).item() == 0


# --- settings ---------------------------------------------------------------------------------------------------------


def test_preset_published_is_what_its_code_does():
    settings = resolve(preset="published", method="attentiongan")
    assert (settings.learning_rate, settings.beta1, settings.beta2) == (2e-4, 0.5, 0.999)
    assert (settings.weight_decay, settings.batch_size, settings.image_size) == (0, 4, 256)
    assert (settings.width, settings.resnet_blocks, settings.attention_maps) == (64, 9, 10)
    assert (settings.lambda_discriminator, settings.image_pool) == (0.5, 50)
    assert (settings.epochs, settings.learning_rate_decay) == (200, 0.5)
    assert (settings.mirror, 256 + round(256 * settings.jitter)) == (0.5, 286)
    assert not settings.keep_background


def test_preset_paper_differs_from_it_by_the_common_adam_alone():
    paper = resolve(preset="paper", method="attentiongan").model_dump()
    published = resolve(preset="published", method="attentiongan").model_dump()
    assert {name: value for name, value in paper.items() if value != published[name]} == {
        "learning_rate": 1e-4,
        "beta1": 0.0,
        "beta2": 0.99,
        "weight_decay": 1e-4,
    }


def test_the_number_of_maps_is_a_setting():
    method = method_of(attention_maps=3)
    assert method.network("generator", FLAIR, T1)(source()).attention.shape[1] == 3
