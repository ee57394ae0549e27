"""SuperstarGAN: its layers and losses by hand, the published numbers, and the traps of labels and instance norm."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from gradients import Gradients, recorded, require_equal
from labelled_steps import batch_of, new_method, parameters
from slice_stores import FOUR
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Adam

from attcl_cli.data.augment import turned
from attcl_cli.data.sampling import DomainBatch
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods import METHODS
from attcl_cli.methods.networks.superstargan import (
    SuperstarClassifier,
    SuperstarDiscriminator,
    SuperstarGenerator,
)
from attcl_cli.methods.networks.towers import follow_spectra
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.superstargan import Superstargan


def method_of(**changes: Any) -> Superstargan:
    method = new_method("superstargan", **changes)
    assert isinstance(method, Superstargan)
    return method


# --- the networks -----------------------------------------------------------------------------------------------------


def generator_of(*, width: int = 8, blocks: int = 2) -> SuperstarGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return SuperstarGenerator(width=width, blocks=blocks, domains=4)


def test_the_networks_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        generator = SuperstarGenerator(width=64, blocks=6, domains=4)
        discriminator = SuperstarDiscriminator(image_size=256, width=64)
        classifier = SuperstarClassifier(image_size=256, width=64, domains=4)
    norms = 2 * (64 + 128 + 256 + 6 * 2 * 256 + 128 + 64)
    down = 49 * 5 * 64 + 16 * (64 * 128 + 128 * 256)
    up = 16 * (256 * 128 + 128 * 64) + 49 * 64
    assert (
        parameters(generator) == down + 6 * 2 * 9 * 256**2 + up + norms == 8_414_848
    )  # 8.4 million
    channels = [1, 64, 128, 256, 512, 1024, 2048]
    tower = sum(16 * a * b + b for a, b in pairwise(channels))
    assert parameters(discriminator) == tower + 9 * 2048 == 44_719_040  # 44.7 million
    assert parameters(classifier) == tower + 4 * 4 * 2048 * 4 == 44_831_680  # 44.8 million


def test_the_generator_is_that_of_stargan_with_a_plane_per_modality():
    generator = generator_of(blocks=1)
    x = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    label = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    planes = label[:, :, None, None].expand(-1, -1, 16, 24)

    def normed(h: Tensor, norm: nn.Module) -> Tensor:
        return F.instance_norm(h, weight=norm.weight, bias=norm.bias)

    first, norm1, _, down1, norm2, _, down2, norm3, _, block = generator.trunk
    h = F.relu(normed(F.conv2d(torch.cat([x, planes], 1), first.weight, padding=3), norm1))
    h = F.relu(normed(F.conv2d(h, down1.weight, stride=2, padding=1), norm2))
    h = F.relu(normed(F.conv2d(h, down2.weight, stride=2, padding=1), norm3))
    conv1, inner1, _, conv2, inner2 = block.branch
    branch = F.relu(normed(F.conv2d(h, conv1.weight, padding=1), inner1))
    h = h + normed(F.conv2d(branch, conv2.weight, padding=1), inner2)
    up1, norm4, _, up2, norm5, _, last = generator.head
    h = F.relu(normed(F.conv_transpose2d(h, up1.weight, stride=2, padding=1), norm4))
    h = F.relu(normed(F.conv_transpose2d(h, up2.weight, stride=2, padding=1), norm5))
    expected = F.conv2d(h, last.weight, padding=3).tanh()
    assert torch.allclose(generator(x, label), expected, atol=1e-5)
    assert not [
        one for one in generator.modules() if getattr(one, "padding_mode", "zeros") != "zeros"
    ]


def change_of_label(generator: SuperstarGenerator, side: int) -> Tensor:
    """Return how far two labels move the image of a phantom, in its standard deviations."""
    line = torch.linspace(-1, 1, side)
    head = line[:, None] ** 2 + line**2 < 0.6
    x = torch.where(head, 0.5 * torch.sin(7 * line[:, None]) * torch.cos(5 * line), -1.0)
    with torch.inference_mode():
        one, two = (generator(x[None, None], torch.eye(4)[[index]]) for index in (0, 2))
    return (one - two).abs().mean() / one.std()


def test_the_label_changes_the_output_through_zero_padding_alone():
    generator = generator_of()
    assert change_of_label(generator, 64) > 0.05
    # A constant plane adds a constant, which the instance norm takes away, unless the edges differ.
    generator.trunk[0].padding_mode = "reflect"
    assert change_of_label(generator, 64) < 1e-4


def test_a_label_is_one_for_the_modality_and_zero_for_the_others():
    method, seen = method_of(), []
    method.generator.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = batch_of().x_src
    method.synthesise({"flair": x}, ["t1ce"])
    assert torch.equal(seen[0][:, :1], x)
    assert seen[0][0, 1:, 3, 5].tolist() == [0, 0, 1, 0]


def test_background_of_the_source_stays_background_if_it_is_kept():
    x = batch_of().x_src
    x[..., :8] = -1
    outside = torch.arange(16) < 7  # the rim of one pixel may change
    images = {
        kept: method_of(keep_background=kept).eval().synthesise({"flair": x}, ["t1"])["t1"]
        for kept in (True, False)
    }
    assert images[True][..., outside].eq(-1).all()
    assert images[False][..., outside].ne(-1).all()
    assert torch.equal(images[True][..., ~outside], images[False][..., ~outside])


def test_no_norm_remembers_anything_and_eval_mode_changes_nothing():
    method = method_of()
    batch = batch_of()
    for step in range(2):
        method.training_step(batch, step)
    images = [
        method.train(mode).synthesise({"flair": batch.x_src}, ["t2"])["t2"]
        for mode in (True, False)
    ]
    assert torch.equal(*images)
    assert not [name for name, _ in method.named_buffers() if "running" in name]
    assert not [one for one in method.modules() if getattr(one, "track_running_stats", False)]


@pytest.mark.parametrize(
    ("side", "stages", "last"), [(16, 2, 4), (64, 4, 4), (128, 5, 4), (256, 6, 4), (512, 6, 8)]
)
def test_towers_halve_to_four_pixels_but_six_times_at_most(side, stages, last):
    with torch.device("meta"):
        discriminator = SuperstarDiscriminator(image_size=side, width=4)
        classifier = SuperstarClassifier(image_size=side, width=4, domains=4)
        x = torch.zeros(2, 1, side, side)
    assert len(discriminator.tower) == len(classifier.tower) == stages
    assert discriminator(x).shape == (2, 1, last, last)
    assert classifier.head.kernel_size == (last, last)
    assert classifier(x).shape == (2, 4)


def test_only_the_discriminator_has_spectral_norm_and_in_every_layer():
    method = method_of()
    for network in (method.discriminator, method.classifier, method.generator):
        layers = [one for one in network.modules() if isinstance(one, nn.Conv2d)]
        normed = [is_parametrized(one, "weight") for one in layers]
        assert normed == [network is method.discriminator] * len(layers)
        assert network is method.generator or layers[-1].bias is None
    slopes = {one.negative_slope for one in method.modules() if isinstance(one, nn.LeakyReLU)}
    assert slopes == {0.01}


# --- the losses -------------------------------------------------------------------------------------------------------


def updates_written_out(
    method: Superstargan, batch: DomainBatch, step: int
) -> tuple[Gradients, dict[str, float]]:
    """Return the gradients and losses of C, D and G, from the published formulas alone.

    Each network's loss depends on the others as they are after their own update, so these step, too.
    """
    s, d, c, g = method.settings, method.discriminator, method.classifier, method.generator
    noise = torch.Generator().manual_seed(s.seed * 1_000_003 + step)
    alpha, turn = torch.rand(len(batch), generator=noise), torch.rand(len(batch), generator=noise)
    follow_spectra(d)
    target, back = (F.one_hot(domain, 4).float() for domain in (batch.y_ref, batch.y_src))
    gradients: Gradients = []
    values: dict[str, float] = {}

    def move(name: str, network: nn.Module, loss: Tensor) -> None:
        optimiser = method.optimisers()[name]
        optimiser.zero_grad()
        slopes = torch.autograd.grad(loss, list(network.parameters()))
        gradients.append((name, torch.cat([one.flatten() for one in slopes])))
        for one, slope in zip(network.parameters(), slopes, strict=True):
            one.grad = slope
        optimiser.step()

    logits = c(turned(batch.x_ref, 20 * (2 * turn - 1)))
    values["c_cls"] = -logits.softmax(1)[torch.arange(len(batch)), batch.y_ref].log().mean()
    values["c_accuracy"] = (logits.argmax(1) == batch.y_ref).float().mean()
    move("classifier", c, values["c_cls"])

    fake = g(batch.x_src, target).detach()
    real, judged = d(batch.x_src), d(fake)
    weight = alpha[:, None, None, None]
    between = (weight * batch.x_src + (1 - weight) * fake).requires_grad_()
    slope = torch.autograd.grad(d(between).sum(), between, create_graph=True)[0]
    values["d_real"] = (1 - real).clamp_min(0).mean()
    values["d_fake"] = (1 + judged).clamp_min(0).mean()
    values["d_gp"] = (slope.pow(2).sum(dim=(1, 2, 3)).sqrt() - 1).pow(2).mean()
    values["d_accuracy"] = ((real > 0).float().mean() + (judged < 0).float().mean()) / 2
    move("discriminator", d, values["d_real"] + values["d_fake"] + s.lambda_gp * values["d_gp"])

    fake = g(batch.x_src, target)
    classes = c(fake).softmax(1)[torch.arange(len(batch)), batch.y_ref]
    values["g_adv"] = -d(fake).mean()
    values["g_rec"] = (batch.x_src - g(fake, back)).abs().mean()
    values["g_cls"] = -classes.log().mean()
    values["g_pair"] = (batch.x_pair - fake)[batch.has_pair].abs().mean()
    loss = values["g_adv"] + s.lambda_rec * values["g_rec"] + s.lambda_cls * values["g_cls"]
    move("generator", g, loss + s.lambda_pair * values["g_pair"])
    return gradients, {key: float(value.detach()) for key, value in values.items()}


def test_a_step_goes_down_the_published_losses_of_all_three_networks():
    changes = {"critic_steps": 1, "lambda_pair": 3.0, "keep_background": False}
    method, oracle = method_of(**changes), method_of(**changes)
    seen = recorded(method.optimisers())
    losses = method.training_step(batch_of(), 1)
    expected, values = updates_written_out(oracle, batch_of(), 1)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(values, rel=1e-4)
    require_equal(seen, expected, tolerance=1e-4)


def test_the_generator_steps_at_every_fifth_step_of_the_other_two():
    method = method_of(critic_steps=5)
    stepped = []
    for step in range(10):
        losses = method.training_step(batch_of(), step)
        assert {"c_cls", "d_real", "d_fake", "d_gp"} <= set(losses)
        stepped.append("g_adv" in losses)
    assert stepped == 2 * [False, False, False, False, True]


def test_the_classifier_never_learns_from_what_the_generator_makes():
    method = method_of(critic_steps=1)
    before = copy.deepcopy(method.classifier.state_dict())
    batch = batch_of()
    # Its own update, on real slices, is made to move nothing.
    method.optimisers()["classifier"].param_groups[0]["lr"] = 0.0
    method.training_step(batch, 0)
    assert all(
        torch.equal(value, before[key]) for key, value in method.classifier.state_dict().items()
    )


def test_spectral_norms_are_followed_once_per_step_whatever_the_parts(store: SliceStore):
    states = []
    for parts in (0, 1):
        method = method_of(batch_size=4, critic_steps=1)
        method.runtime = type(method.runtime)(micro_batch=parts)
        method.training_step(method.sampler(store).batch(0), 0)
        states.append(dict(method.discriminator.named_buffers()))
    assert states[0]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_classifier_has_an_adam_of_its_own():
    optimisers = METHODS["superstargan"](
        resolve(
            preset="published",
            method="superstargan",
            overrides={"image_size": 16, "canvas": 64, "width": 4, "blocks": 1},
        ),
        FOUR,
    ).optimisers()
    made = {
        name: (one.param_groups[0]["lr"], one.param_groups[0]["betas"])
        for name, one in optimisers.items()
        if isinstance(one, Adam)
    }
    assert made == {
        "generator": (1e-4, (0.0, 0.999)),
        "discriminator": (1e-4, (0.0, 0.999)),
        "classifier": (1.2e-4, (0.9, 0.999)),
    }


# --- batches ----------------------------------------------------------------------------------------------------------


def test_targets_are_uniform_over_the_other_modalities(store: SliceStore):
    sampler = method_of(batch_size=40, pair_targets=0.0).sampler(store)
    counts = torch.zeros(4, 4)
    for step in range(30):
        rows = sampler.rows(step)
        for source, target in zip(rows["y_src"], rows["y_ref"], strict=True):
            counts[source, target] += 1
    assert counts.diag().eq(0).all()  # 1,200 draws over 12 directions, standard deviation 10
    assert (counts[~torch.eye(4, dtype=torch.bool)] - 100).abs().max() < 45


def test_the_classifier_sees_slices_turned_by_up_to_20_degrees_filled_with_background():
    method = method_of(critic_steps=2)
    seen: list[Tensor] = []
    method.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = batch_of(8)
    method.training_step(batch, 0)
    method.training_step(batch, 1)
    assert not torch.equal(seen[0], seen[1])  # another angle in every step
    parts = [part.turn for step in range(50) for part in method.labelled_parts(batch, step)]
    turns = torch.cat(parts)
    assert turns.min() < -0.95 and turns.max() > 0.95 and turns.mean().abs() < 0.1
    assert seen[0][..., 0, 0].eq(-1).any()  # a corner that shows what was beyond the slice
    assert seen[0].amin() == -1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_preset_published_is_the_published_set_up():
    s = resolve(preset="published", method="superstargan")
    assert (s.image_size, s.crop, s.width, s.blocks) == (256, 0, 64, 6)
    assert (s.learning_rate, s.beta1, s.beta2, s.weight_decay) == (1e-4, 0, 0.999, 0)
    classifier = (s.learning_rate_classifier, s.beta1_classifier, s.beta2_classifier)
    assert classifier == (1.2e-4, 0.9, 0.999)
    assert (s.batch_size, s.critic_steps, s.mirror, s.jitter) == (16, 5, 0.5, 0)
    # the published decay takes away a thousandth of the rate in all: none
    assert (s.steps, s.epochs, s.learning_rate_decay, s.ema_decay) == (1_000_000, 0, 0, 0)
    assert (s.lambda_cls, s.lambda_rec, s.lambda_gp) == (0.25, 1.3, 1)
    assert not any((s.lambda_pair, s.pair_targets, s.keep_background, s.augment, s.warp))


def test_preset_paper_has_the_common_adam_and_is_otherwise_as_published():
    paper, published = (
        resolve(preset=name, method="superstargan") for name in ("paper", "published")
    )
    adam = {
        "learning_rate": 1e-4,
        "beta1": 0.0,
        "beta2": 0.99,
        "weight_decay": 1e-4,
        "learning_rate_classifier": 1e-4,
        "beta1_classifier": 0.0,
        "beta2_classifier": 0.99,
    }
    assert {key: getattr(paper, key) for key in adam} == adam
    assert paper.model_dump() == {**published.model_dump(), **adam}


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_presets_learn_from_pairs_too_and_see_whole_slices(preset):
    s = resolve(preset=preset, method="superstargan")
    assert (
        s.crop == 0
    )  # the label works through the edges of the slice, so these stay where they are
    assert (s.keep, s.keep_background) == ("best", True)
    assert s.lambda_pair > 0
    assert s.learning_rate_classifier == s.learning_rate
