"""AttGAN: its layers and losses by hand, the published numbers, and the traps of batch norm and labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import Gradients, recorded, require_equal
from helpers import small_settings
from labelled_steps import batch_of, new_method, parameters
from slice_stores import store_of_volumes
from torch import Tensor, nn
from torch.nn import functional as F
from training_runs import CPU, KilledError, require_same_runs, run

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.attgan import Attgan
from attcl_cli.methods.networks.attgan import AttganDiscriminator, AttganGenerator
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.weights import find_weights, load_method
from attcl_cli.training.state import STATE_FILE, load_state


def method_of(**changes: Any) -> Attgan:
    method = new_method("attgan", **changes)
    assert isinstance(method, Attgan)
    return method


# --- the networks -----------------------------------------------------------------------------------------------------


def generator_of(downs: int = 3) -> AttganGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return AttganGenerator(width=4, max_width=8, downs=downs, domains=4)


def test_the_networks_have_the_published_numbers_of_weights():
    with torch.device("meta"):
        generator = AttganGenerator(width=64, max_width=1024, downs=5, domains=4)
        heads = {
            head: AttganDiscriminator(
                image_size=256, width=64, max_width=1024, downs=5, domains=4, head=head
            )
            for head in ("pooled", "flat")
        }
    # 4x4 kernels; batch and instance norm have two weights per channel; a bias where no norm follows
    encoder = 16 * (64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 2 * 1984
    up = 16 * (1028 * 1024 + 1540 * 512 + 512 * 256 + 256 * 128 + 128 * 1) + 2 * 1920 + 1
    assert parameters(generator) == encoder + up == 43_231_873  # 43.2 million
    heads_alone = 2 * 1024 + (1024 + 1) + (4 * 1024 + 4)
    flat = encoder + 2 * 8 * 8 * 1024 * 1024 + heads_alone
    assert parameters(heads["flat"]) == flat == 145_371_013  # 145.4 million
    pooled = encoder + 2 * 4 * 4 * 1024 * 1024 + heads_alone
    assert parameters(heads["pooled"]) == pooled == 44_707_717  # 44.7 million


def test_first_weights_and_norms_are_those_of_tensorflow_slim():
    judge = AttganDiscriminator(
        image_size=32, width=8, max_width=32, downs=3, domains=4, head="flat"
    )
    for network in (generator_of(), judge):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.eps == 1e-3
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                size = layer.weight[0, 0].numel()
                limit = (6 / (size * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5
                assert layer.weight.abs().max() <= limit
                if layer.weight.numel() > 500:
                    assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
                assert layer.bias is None or not layer.bias.any()


def test_the_label_stands_beside_the_deepest_features_and_after_the_first_step_up():
    generator = generator_of().eval()
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 32, 32, generator=noise) * 2 - 1
    label = torch.tensor([[1.0, -1, -1, -1], [-1, -1, 1, -1]])
    features = [x]
    for conv, norm, _ in generator.encoder:
        h = F.conv2d(features[-1], conv.weight, stride=2, padding=1)
        features.append(F.leaky_relu(norm(h), 0.2))
    planes = [label[:, :, None, None].expand(-1, -1, side, side) for side in (4, 8)]
    h = torch.cat([features[3], planes[0]], dim=1)
    for number, (conv, norm, _) in enumerate(generator.decoder):
        h = F.relu(norm(F.conv_transpose2d(h, conv.weight, stride=2, padding=1)))
        if number == 0:
            h = torch.cat([h, features[2], planes[1]], dim=1)
    last = generator.last
    expected = F.conv_transpose2d(h, last.weight, last.bias, stride=2, padding=1).tanh()
    image = generator.decode(generator.encode(x), label)
    assert image.shape == x.shape
    assert torch.allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize("downs", [2, 3, 4])
def test_any_depth_gives_the_image_its_size_back(downs):
    x = torch.zeros(2, 1, 32, 48)
    assert (
        generator_of(downs).decode(generator_of(downs).encode(x), torch.ones(2, 4)).shape == x.shape
    )


def test_the_label_changes_the_output():
    method = method_of().eval()
    x = batch_of().x_src
    images = method.synthesise({"flair": x}, ["t1", "t2"])
    assert (images["t1"] - images["t2"]).abs().mean() > 0.01


def test_a_label_is_one_for_the_modality_and_minus_one_for_the_others():
    method, seen = method_of().eval(), []
    method.generator.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.synthesise({"flair": batch_of().x_src}, ["t1ce"])
    assert seen[0][0, -4:, 0, 0].tolist() == [-1, -1, 1, -1]


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


def discriminator_of(**changes: Any) -> AttganDiscriminator:
    shape = {"image_size": 32, "width": 4, "max_width": 8, "downs": 2, "domains": 4, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AttganDiscriminator(**shape)


def test_both_heads_see_one_trunk_averaged_to_four_pixels_unless_flat():
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for head, side in (("pooled", 4), ("flat", 8)):
        network = discriminator_of(head=head)
        features = network.trunk(x)
        assert features.shape == (2, 8, 8, 8)
        seen = F.avg_pool2d(features, 8 // side).flatten(1)
        expected = [
            F.leaky_relu(seen @ one.first.weight.T + one.first.bias, 0.2) @ one.last.weight.T
            + one.last.bias
            for one in (network.judge, network.classify)
        ]
        real, classes = network(x)
        assert torch.allclose(real, expected[0][:, 0], atol=1e-6)
        assert torch.allclose(classes, expected[1], atol=1e-6)
        assert torch.equal(network.judged(x), real)


def test_at_the_published_size_of_the_features_both_heads_are_the_same():
    states = [discriminator_of(head=head, downs=3).state_dict() for head in ("pooled", "flat")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_discriminator_has_no_norm_over_the_batch():
    network = discriminator_of(head="pooled").train()
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x)[0][:1], network(x[:1])[0], atol=1e-6)


# --- the losses -------------------------------------------------------------------------------------------------------


def images_of(method: Attgan, batch: DomainBatch) -> tuple[Tensor, Tensor]:
    """Return the translation and the reconstruction, of one latent."""
    latent = method.generator.encode(batch.x_src)
    labels = [2 * F.one_hot(domain, 4).float() - 1 for domain in (batch.y_ref, batch.y_src)]
    fake, rec = (method.generator.decode(latent, label) for label in labels)
    return fake, rec


def written_out(
    method: Attgan, batch: DomainBatch, step: int
) -> tuple[Gradients, dict[str, float]]:
    """Return the gradient and the losses of D (even steps) or G, from the published formulas alone."""
    s, d = method.settings, method.discriminator
    fake, rec = images_of(method, batch)
    if step % 2 == 0:
        noise = torch.Generator().manual_seed(s.seed * 1_000_003 + step)
        alpha = torch.rand(len(batch), generator=noise)[:, None, None, None]
        fake = fake.detach()
        between = (alpha * batch.x_src + (1 - alpha) * fake).requires_grad_()
        slope = torch.autograd.grad(d(between)[0].sum(), between, create_graph=True)[0]
        parts = {
            "d_real": -d(batch.x_src)[0].mean(),
            "d_fake": d(fake)[0].mean(),
            "d_gp": (slope.pow(2).sum(dim=(1, 2, 3)).sqrt() - 1).pow(2).mean(),
            "d_cls": bits(d(batch.x_src)[1], batch.y_src),
        }
        weights = {"d_gp": s.lambda_gp, "d_cls": s.lambda_cls_real}
        learner: nn.Module = d
        name = "discriminator"
    else:
        logits, classes = d(fake)
        parts = {
            "g_adv": -logits.mean(),
            "g_rec": (batch.x_src - rec).abs().mean(),
            "g_cls": bits(classes, batch.y_ref),
            "g_pair": (batch.x_pair - fake)[batch.has_pair].abs().mean(),
        }
        weights = {"g_rec": s.lambda_rec, "g_cls": s.lambda_cls, "g_pair": s.lambda_pair}
        learner, name = method.generator, "generator"
    total = sum(weights.get(key, 1.0) * value for key, value in parts.items())
    gradients = torch.autograd.grad(total, list(learner.parameters()), allow_unused=True)
    flat = [
        (torch.zeros_like(one) if slope is None else slope).flatten()
        for one, slope in zip(learner.parameters(), gradients, strict=True)
    ]
    return [(name, torch.cat(flat))], {key: value.item() for key, value in parts.items()}


def bits(logits: Tensor, domain: Tensor) -> Tensor:
    """Return the binary cross-entropy of every modality's bit, written out."""
    true = domain[:, None] == torch.arange(4)
    chances = torch.sigmoid(logits)
    return -torch.where(true, chances, 1 - chances).log().mean()


@pytest.mark.parametrize("step", [2, 1], ids=["discriminator", "generator"])
def test_a_step_goes_down_the_published_losses(step):
    changes = {"critic_steps": 1, "lambda_pair": 3.0, "keep_background": False}
    method, oracle = method_of(**changes), method_of(**changes)
    seen = recorded(method.optimisers())
    losses = method.training_step(batch_of(), step)
    expected, values = written_out(oracle, batch_of(), step)
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(values, rel=1e-4)
    require_equal(seen, expected)


def test_without_a_weight_true_slices_are_not_looked_at():
    method = method_of(critic_steps=1, lambda_pair=0.0)
    assert set(method.training_step(batch_of(), 1)) == {"g_adv", "g_rec", "g_cls"}


def test_sources_of_another_appearance_are_no_examples_of_what_is_real():
    plain, augmented = method_of(), method_of(augment=0.5)
    batch = batch_of()
    assert plain.real(batch)[0] is batch.x_src and plain.real(batch)[1] is batch.y_src
    assert augmented.real(batch)[0] is batch.x_ref and augmented.real(batch)[1] is batch.y_ref


def test_five_steps_of_the_discriminator_come_before_one_of_the_generator():
    method = method_of(critic_steps=5)
    stepped = [next(iter(method.training_step(batch_of(), step)))[0] for step in range(12)]
    assert "".join(stepped) == "dddddgdddddg"


# --- batches ----------------------------------------------------------------------------------------------------------


def test_targets_are_uniform_over_the_other_modalities(store: SliceStore):
    sampler = method_of(batch_size=40, pair_targets=0.0).sampler(store)
    assert sampler.others
    drawn = [sampler.rows(step) for step in range(30)]
    counts = torch.zeros(4, 4)
    for rows in drawn:
        for source, target in zip(rows["y_src"], rows["y_ref"], strict=True):
            counts[source, target] += 1
    assert counts.diag().eq(0).all()  # 1,200 draws over 12 directions, standard deviation 10
    assert (counts[~torch.eye(4, dtype=torch.bool)] - 100).abs().max() < 45


def test_a_single_modality_is_refused():
    method = METHODS["attgan"](small_settings("attgan"), ["t1"])
    with pytest.raises(AttclError) as caught:
        method.sampler(store_of_volumes([("A", "t1", 5, 3)]))
    assert caught.value.code == "nothing-to-learn-from"


# --- batch norm -------------------------------------------------------------------------------------------------------


def statistics(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what batch norms remember, by name below a prefix."""
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix) and "running" in key
    }


def test_running_statistics_survive_averaging_saving_and_resuming(
    store: SliceStore, tmp_path: Path
):
    settings = small_settings("attgan", steps=6, save_every=3, ema_decay=0.9)
    run(settings, store, tmp_path / "whole")
    tensors = load_state(tmp_path / "whole" / STATE_FILE).tensors
    trained = statistics(tensors, "module.generator.")
    assert len(trained) == 2 * 3  # a mean and a variance of each of three batch norms
    fresh = statistics(method_of().generator.state_dict(), "")
    assert all(not torch.equal(value, fresh[key]) for key, value in trained.items())
    # averaging copies them: a mean of statistics that lag behind would not fit the weights
    averaged = statistics(tensors, "average.generator.")
    assert averaged.keys() == trained.keys()
    assert all(torch.equal(value, averaged[key]) for key, value in trained.items())
    # saving keeps them, but for the digits of float16
    loaded = load_method(find_weights(str(tmp_path / "whole")), CPU)
    kept = statistics(loaded.generator.state_dict(), "")
    assert all(
        torch.allclose(kept[key], value, rtol=1e-3, atol=1e-4) for key, value in trained.items()
    )
    assert not loaded.training
    # resuming continues from them
    with pytest.raises(KilledError):
        run(settings, store, tmp_path / "broken", kill_after=4)
    run(settings, store, tmp_path / "broken", resume=True)
    require_same_runs(tmp_path / "whole", tmp_path / "broken")


def test_completion_uses_the_running_statistics(store: SliceStore, tmp_path: Path):
    run(small_settings("attgan", steps=6), store, tmp_path / "run")
    method = load_method(find_weights(str(tmp_path / "run")), CPU)
    x = batch_of().x_src
    image = method.synthesise({"flair": x}, ["t1"])["t1"]
    for layer in method.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 1
    assert not torch.equal(method.synthesise({"flair": x}, ["t1"])["t1"], image)


def test_a_batch_in_parts_is_refused(store: SliceStore, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        run(small_settings("attgan", batch_size=4, micro_batch=2), store, tmp_path / "run")
    assert caught.value.code == "batch-norm-in-parts"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_preset_published_is_the_published_set_up():
    s = resolve(preset="published", method="attgan")
    assert (s.image_size, s.crop, s.width, s.max_width, s.downs) == (256, 0, 64, 1024, 5)
    assert (s.learning_rate, s.beta1, s.beta2, s.weight_decay) == (2e-4, 0.5, 0.999, 0)
    assert (s.batch_size, s.critic_steps) == (32, 5)
    assert (s.epochs, s.learning_rate_decay, s.ema_decay, s.warm_up) == (60, 0.5, 0, 0)
    assert (s.mirror, s.jitter * 128) == (0.5, 143 - 128)
    assert (s.lambda_rec, s.lambda_cls, s.lambda_cls_real, s.lambda_gp) == (100, 10, 1, 10)
    assert s.head == "pooled"
    ours = (s.lambda_pair, s.pair_targets, s.keep_background, s.augment, s.warp)
    assert not any(ours)


def test_preset_paper_has_the_common_adam_and_is_otherwise_as_published():
    paper, published = (resolve(preset=name, method="attgan") for name in ("paper", "published"))
    adam = {"learning_rate": 1e-4, "beta1": 0.0, "beta2": 0.99, "weight_decay": 1e-4}
    assert {key: getattr(paper, key) for key in adam} == adam
    assert paper.model_dump() == {**published.model_dump(), **adam}


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_presets_learn_from_pairs_too_and_end_at_four_pixels(preset):
    s = resolve(preset=preset, method="attgan")
    assert s.side >> s.downs == 4
    assert (s.keep, s.keep_background, s.epochs, s.ema_decay) == ("best", True, 0, 0)
    assert s.lambda_pair > 0 and s.batch_size >= 16
    # both networks are seen in what a run logs
    logged = {step % (s.critic_steps + 1) for step in range(s.log_every - 1, 100, s.log_every)}
    assert s.critic_steps in logged and logged != {s.critic_steps}


@pytest.mark.parametrize(("side", "most"), [(16, 3), (32, 4), (64, 5)])
def test_more_halvings_than_a_slice_has_room_for_are_refused(side, most):
    sizes = {"image_size": side, "canvas": 64}
    assert resolve(preset="paper", method="attgan", overrides={**sizes, "downs": most})
    with pytest.raises(UsageError) as caught:
        resolve(preset="paper", method="attgan", overrides={**sizes, "downs": most + 1})
    assert caught.value.code == "invalid-setting"
    assert caught.value.message == (
        f"setting downs: {most + 1} with slices of {side} pixels, expected at most {most}"
    )
