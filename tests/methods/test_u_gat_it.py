"""U-GAT-IT: the published sizes, each loss by hand, the order of steps, and shares that stay shares."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import recorded, require_equal
from helpers import small_settings
from slice_stores import FOUR
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from training_runs import CPU, KilledError, run

from attcl_cli.data.couples import CoupleBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.networks.adalin import AdaLIN, pooled_side
from attcl_cli.methods.networks.towers import follow_spectra
from attcl_cli.methods.networks.u_gat_it import (
    AttentiveDiscriminator,
    AttentiveGenerator,
    Judgement,
    Translation,
    halvings_of,
)
from attcl_cli.methods.pairwise import Way
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.u_gat_it import UGatIt
from attcl_cli.methods.weights import WEIGHTS_FILE, find_weights, load_method
from attcl_cli.training.state import STATE_FILE, load_state

FLAIR, T1 = 0, 1


def method_of(**changes: Any) -> UGatIt:
    """Return a new method of three pairs round FLAIR, with the same weights for the same settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["u-gat-it"](
            small_settings("u-gat-it", **{"lambda_pair": 0.0, **changes}), FOUR
        )


def couple(count: int = 2) -> CoupleBatch:
    """Return random slices of FLAIR and of T1, 16x16 pixels, with nothing in common."""
    a, b = torch.rand(2, count, 1, 16, 16) * 2 - 1
    return CoupleBatch(a, b, (FLAIR, T1))


def size_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def generator(**changes: Any) -> AttentiveGenerator:
    """Return a generator of 16x16 slices."""
    return AttentiveGenerator(**{"width": 4, "blocks": 1, "pooled": 4, **changes})


# --- the networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma_input", "parameters"),
    [("full", 278_947_264), ("pool8", 14_706_112), ("light", 10_577_344)],
)
def test_a_generator_of_256_pixels_has_its_published_size(gamma_input, parameters):
    with torch.device("meta"):
        network = AttentiveGenerator(width=64, blocks=4, pooled=pooled_side(gamma_input, 64))
    assert size_of(network) == parameters


@pytest.mark.parametrize(
    ("which", "parameters", "patches"), [("local", 3_288_512, 30), ("global", 53_128_128, 6)]
)
def test_a_discriminator_of_256_pixels_has_its_published_size(which, parameters, patches):
    halvings = dict(zip(("local", "global"), halvings_of(256), strict=True))[which]
    with torch.device("meta"):
        network = AttentiveDiscriminator(width=64, halvings=halvings)
        judged, logits = network(torch.empty(2, 1, 256, 256))
    assert size_of(network) == parameters
    assert judged.shape == (2, 1, patches, patches)
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_discriminators_of_smaller_slices_still_end_in_a_map(side):
    for halvings in halvings_of(side):
        judged, _ = AttentiveDiscriminator(width=2, halvings=halvings)(torch.rand(1, 1, side, side))
        assert judged.shape[-1] >= 6


def test_every_layer_of_a_discriminator_has_a_norm_of_1_but_the_1x1_convolution():
    network = AttentiveDiscriminator(width=4, halvings=2)
    free = []
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
            if parametrize.is_parametrized(layer):
                assert largest == pytest.approx(1, abs=0.1), name
            else:
                free.append(name)
    assert free == ["attention.join"]


def test_spectral_norms_follow_the_weights_once_per_step():
    method = method_of()
    judge = method.network("discriminator", FLAIR, T1)
    convolution = judge.far.tower[0][0]
    norm = convolution.parametrizations.weight[0]
    weight, before = convolution.parametrizations.weight.original.clone(), norm.left.clone()
    method.training_step(couple(), 0)
    right = F.normalize(weight.flatten(1).T @ before, dim=0)
    assert torch.allclose(norm.left, F.normalize(weight.flatten(1) @ right, dim=0), atol=1e-6)


def mirrored(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1) -> Tensor:
    """Convolve with mirrored edges: half of an odd kernel's side; a pixel for one of 4x4."""
    edge = 1 if weight.shape[-1] == 4 else weight.shape[-1] // 2
    padded = nn.ReflectionPad2d(edge)(x)
    return F.conv2d(padded, weight, bias, stride=stride)


def normed(x: Tensor, *axes: int) -> Tensor:
    mean, variance = x.mean(dim=axes, keepdim=True), x.var(dim=axes, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def modulated(x: Tensor, rho: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    share = rho.view(1, -1, 1, 1)
    mixed = share * normed(x, 2, 3) + (1 - share) * normed(x, 1, 2, 3)
    return gamma[..., None, None] * mixed + beta[..., None, None]


def attended(p: dict[str, Tensor], x: Tensor, units: list[Tensor], slope: float) -> Tensor:
    """Weigh the channels by both units, (1, C) each, and join them."""
    both = torch.cat([x * unit.view(1, -1, 1, 1) for unit in units], dim=1)
    return F.leaky_relu(F.conv2d(both, p["attention.join.weight"], p["attention.join.bias"]), slope)


def plain_generator(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and logits of a generator with one block of each kind that reads the whole map, written out."""
    p = dict(network.named_parameters())
    h = normed(mirrored(x, p["trunk.0.weight"]), 2, 3).relu()
    for name in ("trunk.3.weight", "trunk.6.weight"):
        h = normed(mirrored(h, p[name], stride=2), 2, 3).relu()
    inner = normed(mirrored(h, p["trunk.9.branch.0.weight"]), 2, 3).relu()
    h = h + normed(mirrored(inner, p["trunk.9.branch.3.weight"]), 2, 3)
    units = [p["attention.mean.weight"], p["attention.maximum.weight"]]
    logits = torch.cat([h.mean(dim=(2, 3)) @ units[0].T, h.amax(dim=(2, 3)) @ units[1].T], dim=1)
    h = attended(p, h, units, 0.0)
    hidden = (h.flatten(1) @ p["modulation.hidden.0.weight"].T).relu()
    hidden = (hidden @ p["modulation.hidden.2.weight"].T).relu()
    gamma, beta = (hidden @ p[f"modulation.{name}.weight"].T for name in ("gamma", "beta"))
    inner = mirrored(h, p["blocks.0.conv1.weight"])
    inner = modulated(inner, p["blocks.0.norm1.rho"], gamma, beta).relu()
    inner = mirrored(inner, p["blocks.0.conv2.weight"])
    h = h + modulated(inner, p["blocks.0.norm2.rho"], gamma, beta)
    for conv, norm in (("ups.1", "ups.2"), ("ups.5", "ups.6")):
        h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        own = p[f"{norm}.gamma"][None], p[f"{norm}.beta"][None]
        h = modulated(mirrored(h, p[f"{conv}.weight"]), p[f"{norm}.norm.rho"], *own).relu()
    return mirrored(h, p["last.weight"]).tanh(), logits


def plain_discriminator(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return map and logits of a discriminator with one halving, written out.

    Each weight is divided by its norm, but for the 1x1 convolution, and where the units weigh channels.
    """
    p = dict(network.named_parameters()) | dict(network.named_buffers())

    def raw(layer: str) -> Tensor:
        return p[f"{layer}.parametrizations.weight.original"]

    def spectral(layer: str) -> Tensor:
        at, weight = f"{layer}.parametrizations.weight.0", raw(layer)
        return weight / (p[f"{at}.left"] @ weight.flatten(1) @ p[f"{at}.right"])

    h = x
    for layer, stride in (("tower.0.0", 2), ("tower.1.0", 1)):
        h = F.leaky_relu(mirrored(h, spectral(layer), p[f"{layer}.bias"], stride=stride), 0.2)
    mean, most = "attention.mean", "attention.maximum"
    logits = [h.mean(dim=(2, 3)) @ spectral(mean).T, h.amax(dim=(2, 3)) @ spectral(most).T]
    h = attended(p, h, [raw(mean), raw(most)], 0.2)
    return mirrored(h, spectral("last")), torch.cat(logits, dim=1)


def disordered(network: nn.Module) -> None:
    """Give every weight another size, so that norms, shares and units of 0, of 1 or all alike hide nothing."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("rho"):
                parameter.uniform_(0.2, 0.8)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    follow_spectra(network)


def test_the_generator_is_the_published_one_written_out():
    network, x = generator(), torch.rand(2, 1, 16, 16) * 2 - 1
    disordered(network)
    image, logits = plain_generator(network, x)
    made = network(x)
    assert torch.allclose(made.image, image, atol=1e-5)
    assert torch.allclose(made.logits, logits, atol=1e-5)


def test_a_generator_modulates_all_blocks_alike():
    network, seen = generator(blocks=3), []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[1:]))
    network(torch.rand(2, 1, 16, 16) * 2 - 1)
    assert len(seen) == 3
    assert all(one is other for given in seen for one, other in zip(given, seen[0], strict=True))


def test_the_discriminator_is_the_published_one_written_out():
    network, x = AttentiveDiscriminator(width=4, halvings=1), torch.rand(2, 1, 16, 16) * 2 - 1
    disordered(network)
    patches, logits = plain_discriminator(network, x)
    judged = network(x)
    assert torch.allclose(judged[0], patches, atol=1e-5)
    assert torch.allclose(judged[1], logits, atol=1e-5)


def test_instance_norms_are_not_affine_and_convolutions_have_no_bias_but_that_of_the_attention():
    network = generator()
    assert [name for name, _ in network.named_parameters() if name.endswith("bias")] == [
        "attention.join.bias"
    ]
    assert not [one for one in network.modules() if getattr(one, "affine", False)]


def test_gamma_and_beta_of_the_whole_map_want_slices_of_the_size_of_training():
    assert method_of(gamma_input="full").stride == 16
    assert method_of(gamma_input="pool8").stride == 8
    assert method_of(gamma_input="light").stride == 8
    full = method_of(gamma_input="full").network("generator", FLAIR, T1)
    assert full.modulation.hidden[0].in_features == 4 * 4 * 16


# --- losses -----------------------------------------------------------------------------------------------------------


def judgement(*logits: float) -> Judgement:
    """Return constant logits: local map, local units, global map, global units."""
    shapes = ((2, 1, 3, 3), (2, 2), (2, 1, 2, 2), (2, 2))
    return Judgement(
        *(torch.full(shape, value) for shape, value in zip(shapes, logits, strict=True))
    )


class Judge(nn.Module):
    """Says the same of bright slices, and something else of dark ones."""

    def __init__(self, bright: Judgement, dark: Judgement) -> None:
        super().__init__()
        self.bright, self.dark = bright, dark

    def forward(self, x: Tensor) -> Judgement:
        return self.bright if x.mean() > 0 else self.dark


BRIGHT, DARK = judgement(1.0, 0.5, 2.0, 3.0), judgement(0.0, 0.5, -1.0, 2.0)


def way_of(source: Tensor, target: Tensor) -> Way:
    """Return a way from slices of 0 to slices of 1, made as 0.5, with these logits of the attention."""
    zero, half, one = (torch.full((2, 1, 16, 16), value) for value in (0.0, 0.5, 1.0))
    return Way(
        forward=nn.Identity(),
        back=nn.Identity(),
        judge=Judge(BRIGHT, DARK),
        x=zero,
        y=one,
        made=Translation(half, source),
        fake=half,
        cycled=zero + 0.25,
        made_of_own=Translation(one - 0.1, target),
        own=one - 0.1,
    )


def test_the_losses_of_a_generator_by_hand():
    source, target = (
        torch.tensor([[2.0, -1.0], [0.5, 0.0]]),
        torch.tensor([[0.0, 3.0], [-2.0, 1.0]]),
    )
    settings = resolve(preset="published", method="u-gat-it").model_dump()
    method = method_of(**{name: settings[name] for name in settings if name.startswith("lambda_")})
    losses = method.way_losses(way_of(source, target))
    weights = {name: weight for name, (weight, _) in losses.items()}
    assert weights == {"gan": 1, "cycle": 10, "identity": 10, "cam": 1000}
    # Least squares of all four logits from 1: 0, 0.25, 1 and 4.
    assert losses["gan"][1].item() == pytest.approx(5.25)
    assert losses["cycle"][1].item() == pytest.approx(0.25)
    assert losses["identity"][1].item() == pytest.approx(0.1)
    probabilities = torch.sigmoid(source), torch.sigmoid(target)
    cam = -probabilities[0].log().mean() - (1 - probabilities[1]).log().mean()
    assert losses["cam"][1].item() == pytest.approx(cam.item())


def test_the_losses_of_a_discriminator_by_hand_are_not_halved():
    one, minus = torch.full((2, 1, 16, 16), 1.0), torch.full((2, 1, 16, 16), -1.0)
    losses = method_of().judge_losses(Judge(BRIGHT, DARK), real=one, fake=minus)
    assert {name: weight for name, (weight, _) in losses.items()} == {"real": 1, "fake": 1}
    assert losses["real"][1].item() == pytest.approx(0 + 0.25 + 1 + 4)
    assert losses["fake"][1].item() == pytest.approx(0 + 0.25 + 1 + 4)


def test_the_attention_learns_from_a_source_and_from_an_unpaired_target_by_cross_entropy():
    method, batch = method_of(), couple()
    expected = torch.zeros(())
    for (x, y), (source, target) in (
        ((FLAIR, T1), (batch.a, batch.b)),
        ((T1, FLAIR), (batch.b, batch.a)),
    ):
        network = method.network("generator", x, y)
        for image, label in ((source, 1.0), (target, 0.0)):
            logits = network(image).logits
            expected = expected + F.binary_cross_entropy_with_logits(
                logits, torch.full_like(logits, label)
            )
    logged = method.training_step(batch, 0)
    assert logged["g_cam"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_discriminators_step_first_and_see_the_fakes_of_now_alone():
    method, batch = method_of(learning_rate=0.01), couple()
    before = copy.deepcopy(method)
    logged = method.training_step(batch, 0)
    assert [key[0] for key in logged][:6] == ["d", "d", "g", "g", "g", "g"]
    for pair in ((FLAIR, T1), (T1, FLAIR)):
        follow_spectra(before.network("discriminator", *pair))  # as the step begins
    fake_t1 = before.network("generator", FLAIR, T1)(batch.a).image
    fake_flair = before.network("generator", T1, FLAIR)(batch.b).image

    def squares(networks: UGatIt, expected: float) -> float:
        judged = [
            *networks.network("discriminator", FLAIR, T1)(fake_t1),
            *networks.network("discriminator", T1, FLAIR)(fake_flair),
        ]
        return sum((one - expected).pow(2).mean().item() for one in judged)

    # G is judged by what D has become.
    assert logged["g_gan"].item() == pytest.approx(squares(method, 1.0), rel=1e-4)
    assert logged["d_fake"].item() == pytest.approx(squares(before, 0.0), rel=1e-4)
    assert method.pool.images.numel() == 0


def test_a_step_goes_down_the_gradients_of_the_published_losses_written_out():
    changes = {"gamma_input": "full", "resnet_blocks": 1, "keep_background": False}
    changes |= {"lambda_cam": 7.0, "lambda_cycle": 3.0, "lambda_identity": 2.0}
    method, oracle = (method_of(**changes) for _ in range(2))
    oracle.load_state_dict(method.state_dict())
    batch, optimisers = couple(), oracle.optimisers()
    seen, expected = recorded(method.optimisers()), recorded(optimisers)
    logged = method.training_step(batch, 0)

    ways = ((FLAIR, T1), (T1, FLAIR))
    makers = [oracle.network("generator", *way) for way in ways]
    judges = [oracle.network("discriminator", *way) for way in ways]
    real = {FLAIR: batch.a, T1: batch.b}
    for judge in judges:
        follow_spectra(judge)

    def squares(judge: nn.Module, image: Tensor, wanted: float) -> Tensor:
        judged = [
            *plain_discriminator(judge.near, image),
            *plain_discriminator(judge.far, image),
        ]
        return sum(((one - wanted) ** 2).mean() for one in judged)

    def descend(networks: list[nn.Module], names: list[str], loss: Tensor) -> None:
        inputs = [parameter for network in networks for parameter in network.parameters()]
        for parameter, gradient in zip(inputs, torch.autograd.grad(loss, inputs), strict=True):
            parameter.grad = gradient
        for name in names:
            optimisers[name].step()

    loss = torch.zeros(())
    for (x, y), maker, judge in zip(ways, makers, judges, strict=True):
        fake, _ = plain_generator(maker, real[x])
        loss = loss + squares(judge, real[y], 1) + squares(judge, fake.detach(), 0)
    descend(judges, [f"discriminator_{x}_{y}" for x, y in ways], loss)

    loss, of_cam = torch.zeros(()), torch.zeros(())
    for (x, y), maker, back, judge in zip(ways, makers, makers[::-1], judges, strict=True):
        fake, of_source = plain_generator(maker, real[x])
        cycled, _ = plain_generator(back, fake)
        own, of_target = plain_generator(maker, real[y])
        cam = F.binary_cross_entropy_with_logits(of_source, torch.ones_like(of_source))
        cam = cam + F.binary_cross_entropy_with_logits(of_target, torch.zeros_like(of_target))
        of_cam = of_cam + cam
        loss = loss + squares(judge, fake, 1) + 7 * cam
        loss = loss + 3 * (cycled - real[x]).abs().mean() + 2 * (own - real[y]).abs().mean()
    descend(makers, [f"generator_{x}_{y}" for x, y in ways], loss)

    require_equal(seen, expected, tolerance=1e-4)
    assert logged["g_cam"].item() == pytest.approx(of_cam.item(), rel=1e-5)


# --- shares stay shares -----------------------------------------------------------------------------------------------


def shares(module: nn.Module) -> Tensor:
    """Return every rho of a module in a row."""
    return torch.cat([one.rho.detach() for one in module.modules() if isinstance(one, AdaLIN)])


def test_a_step_carries_no_rho_out_of_0_to_1():
    method = method_of(learning_rate=0.5)
    before = shares(method)
    for step in range(2):
        method.training_step(couple(), step)
    after = shares(method)
    # Adam's first step is 0.5 wide: from 0.9 it would reach 1.4, and from LIN's 0 -0.5.
    assert before.min() == 0 and before.max() == pytest.approx(0.9)
    assert after.min() == 0 and after.max() == 1
    assert ((after == 1) & (before > 0)).any() and ((after == 0) & (before == 0)).any()


def test_rho_stays_within_0_and_1_after_resume_in_the_average_and_in_weights(store, tmp_path: Path):
    settings = small_settings("u-gat-it", learning_rate=0.1, ema_decay=0.5, steps=6, save_every=3)
    with pytest.raises(KilledError):
        run(settings, store, tmp_path, kill_after=4)
    run(settings, store, tmp_path, resume=True)
    state = load_state(tmp_path / STATE_FILE).tensors
    for kind in ("module", "average"):
        rho = torch.cat(
            [value for key, value in state.items() if key.startswith(kind) and "rho" in key]
        )
        assert rho.min() >= 0 and rho.max() <= 1
        assert rho.unique().numel() > 10
    loaded = shares(load_method(find_weights(str(tmp_path / WEIGHTS_FILE)), CPU))
    assert loaded.min() >= 0 and loaded.max() <= 1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_preset_published_is_what_its_code_does():
    settings = resolve(preset="published", method="u-gat-it")
    assert (settings.learning_rate, settings.beta1, settings.beta2) == (1e-4, 0.5, 0.999)
    assert (settings.weight_decay, settings.batch_size, settings.image_size) == (1e-4, 1, 256)
    assert (settings.width, settings.resnet_blocks, settings.gamma_input) == (64, 4, "full")
    assert (settings.lambda_cycle, settings.lambda_identity, settings.lambda_cam) == (10, 10, 1000)
    assert (settings.lambda_discriminator, settings.image_pool) == (1, 0)
    assert (settings.steps, settings.learning_rate_decay) == (3_000_000, 0.5)
    assert (settings.mirror, 256 + round(256 * settings.jitter)) == (0.5, 286)
    assert not settings.keep_background


def test_preset_paper_differs_from_it_by_the_common_adam_alone():
    paper = resolve(preset="paper", method="u-gat-it").model_dump()
    published = resolve(preset="published", method="u-gat-it").model_dump()
    assert {name: value for name, value in paper.items() if value != published[name]} == {
        "beta1": 0.0,
        "beta2": 0.99,
    }


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_presets_read_gamma_off_8x8_pixels_and_weigh_the_attention_less(preset):
    settings = resolve(preset=preset, method="u-gat-it")
    assert settings.gamma_input == "pool8"
    assert 0 < settings.lambda_cam <= 100
