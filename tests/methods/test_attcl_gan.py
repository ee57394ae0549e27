"""One training step of AttCL-GAN and its relatives: which networks learn from what, in which order; and synthesis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from attcl_gan_steps import ALL_OFF, FOUR, batch_of, method_of, weights_of
from helpers import changed, small_settings
from torch import Tensor

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.networks import patches
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.sources import AnyOne
from attcl_cli.methods.updates import contrast

NETWORKS = {"generator", "mapping", "style_encoder", "discriminator", "attention", "heads"}
SWITCHES = [
    {"acl": acl, "att_adain": att_adain, "scd": scd}
    for acl, att_adain, scd in itertools.product(
        ("attention", "none"), (True, False), (True, False)
    )
] + [{"acl": acl, "att_adain": False, "scd": False} for acl in ("cut", "qs")]


def name_of(switches: Mapping[str, object]) -> str:
    return ",".join(f"{key}={value}" for key, value in switches.items())


def updates_of(method: AttclGan, batch: DomainBatch) -> tuple[list[str], dict[str, Tensor]]:
    """Run a step; return the networks in the order in which their optimisers stepped, and the losses of the step.

    Each update is checked to change its own network, and nothing else since the last update.
    """
    order: list[str] = []
    seen = weights_of(method)

    def spy(name: str, optimiser: torch.optim.Optimizer) -> None:
        original = optimiser.step

        def step_() -> None:
            original()
            now = weights_of(method)
            moved = [
                other
                for other in now
                if any(not torch.equal(now[other][key], seen[other][key]) for key in now[other])
            ]
            assert moved == [name]
            seen.update(now)
            order.append(name)

        optimiser.step = step_

    for name, optimiser in method.optimisers().items():
        spy(name, optimiser)
    return order, method.training_step(batch, 0)


# --- which networks there are, and which learn ------------------------------------------------------------------------


@pytest.mark.parametrize("switches", SWITCHES, ids=name_of)
def test_attention_and_heads_exist_if_a_switch_needs_them(switches, tiny_settings):
    networks = method_of(changed(tiny_settings, **switches)).networks()
    needs_attention = switches["att_adain"] or switches["acl"] == "attention"
    assert set(networks) == NETWORKS
    assert set(networks["attention"]) == ({"1", "2"} if needs_attention else set())
    assert set(networks["heads"]) == ({"1", "2"} if switches["acl"] != "none" else set())


@pytest.mark.parametrize("switches", SWITCHES, ids=name_of)
def test_every_switch_setting_trains_in_the_order_of_stargan_v2_and_an_update_moves_only_its_own(
    switches, tiny_settings
):
    method = method_of(changed(tiny_settings, **switches))
    order, losses = updates_of(method, batch_of())
    image = ["generator"]
    image += ["attention"] * bool(len(method.attention))
    image += ["heads"] * bool(len(method.heads))
    expected = ["discriminator", "discriminator", *image, "mapping", "style_encoder"]
    assert order[: len(expected)] == expected
    assert sorted(order[len(expected) :]) == sorted(image)
    assert ("g_latent_scd" in losses) == switches["scd"]
    assert ("g_latent_scd_reference" in losses) == switches["scd"]
    assert ("g_latent_patch" in losses) == (switches["acl"] != "none")
    assert all(math.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(parameter).all() for parameter in method.parameters())


def test_losses_are_named_by_network_and_path(tiny_settings):
    losses = method_of(tiny_settings).training_step(batch_of(), 0)
    parts = {"adv", "sty", "cyc", "ds", "patch", "pair"}
    assert set(losses) == {
        *(
            f"d_{path}_{part}"
            for path in ("latent", "reference")
            for part in ("real", "fake", "r1")
        ),
        *(f"g_{path}_{part}" for path in ("latent", "reference") for part in parts),
        "g_latent_scd",
        "g_latent_scd_reference",
    }
    assert not any(value.requires_grad for value in losses.values())


@pytest.mark.parametrize(
    ("setting", "loss"),
    [
        ("lambda_ds", "ds"),
        ("lambda_patch", "patch"),
        ("lambda_scd", "scd"),
        ("lambda_pair", "pair"),
    ],
)
def test_a_loss_of_weight_zero_is_not_computed(setting, loss, tiny_settings):
    losses = method_of(changed(tiny_settings, **{setting: 0.0})).training_step(batch_of(), 0)
    assert f"g_latent_{loss}" not in losses
    assert f"g_reference_{loss}" not in losses


def test_all_networks_can_learn_again_after_a_step(tiny_settings):
    method = method_of(tiny_settings)
    method.training_step(batch_of(), 0)
    assert all(parameter.requires_grad for parameter in method.parameters())


def test_the_mapping_network_takes_its_own_small_steps(tiny_settings):
    rates = {
        name: optimiser.param_groups[0]["lr"]
        for name, optimiser in method_of(tiny_settings).optimisers().items()
    }
    assert rates.pop("mapping") == tiny_settings.learning_rate_mapping
    assert set(rates.values()) == {tiny_settings.learning_rate}
    group = method_of(tiny_settings).optimisers()["generator"].param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.99), 1e-4)
    paper = tiny_settings.model_copy(update={"beta1": resolve(preset="paper").beta1})
    assert method_of(paper).optimisers()["generator"].param_groups[0]["betas"] == (0.0, 0.99)


def test_a_step_is_a_function_of_weights_batch_and_step(tiny_settings):
    torch.manual_seed(0)
    first = method_of(tiny_settings)
    losses = first.training_step(batch_of(), 3)
    torch.manual_seed(99)
    torch.randn(7)
    second = method_of(tiny_settings)
    assert all(
        torch.equal(value, losses[key])
        for key, value in second.training_step(batch_of(), 3).items()
    )
    other = weights_of(second)
    for name, weights in weights_of(first).items():
        assert all(torch.equal(value, other[name][key]) for key, value in weights.items())


def test_another_step_draws_other_latent_codes(tiny_settings):
    losses = [method_of(tiny_settings).training_step(batch_of(), step) for step in (0, 1)]
    assert losses[0]["d_latent_fake"] != losses[1]["d_latent_fake"]


@pytest.mark.parametrize("switches", [{}, {"acl": "cut"}], ids=str)
def test_training_draws_nothing_from_the_global_generator(switches, tiny_settings):
    method = method_of(changed(tiny_settings, **switches))
    before = torch.get_rng_state()
    method.training_step(batch_of(), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_pairs_the_paired_loss_is_zero(tiny_settings):
    losses = method_of(tiny_settings).training_step(batch_of(pairs=False), 0)
    assert losses["g_latent_pair"] == 0


def test_the_weight_of_diversity_reaches_zero_at_the_end(tiny_settings):
    method = method_of(tiny_settings)
    last = method.training_step(batch_of(), tiny_settings.steps - 1)
    after = method.training_step(batch_of(), tiny_settings.steps)
    again = method.training_step(batch_of(), 0)  # a function of the step, no state
    assert "g_latent_ds" in last
    assert "g_latent_ds" not in after
    assert "g_latent_ds" in again


# --- parts of a batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [{}, {**ALL_OFF, "acl": "cut"}], ids=["attcl-gan", "cut"])
def test_a_batch_in_parts_has_the_losses_of_the_whole(switches, tiny_settings):
    settings = changed(tiny_settings, **switches)
    whole, parts = method_of(settings), method_of(settings)
    parts.runtime = Runtime(micro_batch=1)
    expected = whole.training_step(batch_of(4), 0)
    losses = parts.training_step(batch_of(4), 0)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name


# --- patches ----------------------------------------------------------------------------------------------------------


def test_which_patches_are_compared_does_not_depend_on_the_precision(monkeypatch):
    seen = []
    select = patches.select

    def spy(entropies: Tensor, count: int) -> Tensor:
        seen.append(entropies)
        return select(entropies, count)

    monkeypatch.setattr(patches, "select", spy)
    source, fake = torch.randn(2, 2, 16, 12, 12)
    head = patches.PatchHead(16)
    compared = {"patches_compared": 16, "scale": "sqrt", "temperature": 0.07}
    contrast(head, source, fake, **compared)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contrast(head, source, fake, **compared)
    assert seen[1].dtype == torch.float32
    assert torch.equal(seen[0], seen[1])


def test_cut_draws_each_position_once_and_others_for_another_slice_or_step(tiny_settings):
    seen: list[Tensor] = []
    gather = patches.gather

    def spy(rows: Tensor, positions: Tensor) -> Tensor:
        seen.append(positions)
        return gather(rows, positions)

    settings = changed(tiny_settings, acl="cut", att_adain=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "gather", spy)
        method = method_of(settings)
        for step in (0, 1):
            method.training_step(batch_of(), step)
    first = [positions for positions in seen if positions.shape == (2, 16)]
    assert all(len(set(row.tolist())) == 16 for positions in first for row in positions)
    assert not torch.equal(first[0][0], first[0][1])
    assert not torch.equal(first[0], first[-1])


# --- synthesis --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(tiny_settings) -> AttclGan:
    method = method_of(tiny_settings)
    batch = batch_of(4)
    method.remember_references({name: batch.x_ref[i : i + 1] for i, name in enumerate(FOUR)})
    return method


def test_a_reference_is_the_style_code_of_its_modality(ready):
    images = batch_of(4).x_ref
    with torch.no_grad():
        for index, name in enumerate(FOUR):
            code = ready.style_encoder(images[index : index + 1])[0, index]
            assert torch.equal(ready.references[name], code)


def test_several_targets_at_once_equal_one_by_one(ready):
    x = batch_of(3).x_src
    together = ready.synthesise({"t1": x}, ["t2", "flair", "t1ce"])
    assert list(together) == ["t2", "flair", "t1ce"]
    for target, image in together.items():
        assert image.shape == x.shape
        assert torch.equal(ready.synthesise({"t1": x}, [target])[target], image)


def test_targets_differ_and_slices_do_not_mix(ready):
    x = batch_of(3).x_src
    images = ready.synthesise({"t1": x}, FOUR)
    assert not torch.allclose(images["t1"], images["t2"])
    alone = ready.synthesise({"t1": x[1:2]}, ["t2"])["t2"]
    assert torch.allclose(alone, images["t2"][1:2], atol=1e-5)


def test_synthesis_is_the_generator_with_refined_features_and_the_references_code(ready):
    x = batch_of(2).x_src
    with torch.no_grad():
        features = ready.generator.encode(x)
        refined = {layer: ready.attention[str(layer)](features.layers[layer]) for layer in (1, 2)}
        style = ready.references["t2"].expand(2, -1)
        expected = ready.generator.decode(features, style, refined)
    assert torch.allclose(ready.synthesise({"t1": x}, ["t2"])["t2"], expected, atol=1e-5)


def test_without_att_adain_nothing_is_added(tiny_settings):
    method = method_of(changed(tiny_settings, att_adain=False))
    batch = batch_of(2)
    method.remember_references({"t2": batch.x_ref[:1]})
    with torch.no_grad():
        expected = method.generator(batch.x_src, method.references["t2"].expand(2, -1))
    fake = method.synthesise({"t1": batch.x_src}, ["t2"])["t2"]
    assert torch.allclose(fake, expected, atol=1e-5)


def test_a_sample_is_a_function_of_its_number(ready):
    x = batch_of(2).x_src
    one, again, two = (ready.synthesise({"t1": x}, ["t2"], sample=n)["t2"] for n in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert not torch.equal(one, ready.synthesise({"t1": x}, ["t2"])["t2"])


def test_background_stays_background_in_training_and_synthesis(tiny_settings):
    torch.manual_seed(0)
    method = METHODS["attcl-gan"](changed(tiny_settings, keep_background=True), FOUR)
    x = torch.full((2, 1, 16, 16), -1.0)
    x[:, :, 4:8, 4:8] = 0.3
    method.remember_references(dict.fromkeys(FOUR, x[:1]))
    fakes = method.synthesise({"t1": x}, FOUR)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[3:9, 3:9] = True
    for fake in fakes.values():
        assert fake[:, 0, ~inside].eq(-1).all()
        assert not fake[:, 0, inside].eq(-1).any()
    plain = METHODS["attcl-gan"](changed(tiny_settings, keep_background=False), FOUR)
    plain.remember_references(dict.fromkeys(FOUR, x[:1]))
    assert not plain.synthesise({"t1": x}, ["t2"])["t2"].eq(-1).any()


def test_every_modality_is_made_from_any_other(ready):
    assert ready.rule == AnyOne(FOUR)


@pytest.mark.parametrize("downs", [1, 2])
def test_the_stride_is_what_the_encoder_halves_to_one_pixel(downs, tiny_settings):
    layers = tuple(range(1, downs + 1))
    settings = changed(tiny_settings, downs=downs, contrastive_layers=layers)
    assert method_of(settings).stride == 2**downs


def test_the_average_has_what_completion_and_its_references_need_and_weights_lack_their_maker():
    method = method_of(small_settings())
    assert set(method.inference_networks()) == {
        "generator", "attention", "mapping", "style_encoder"
    }  # fmt: skip
    assert set(method.stored_networks()) == {"generator", "attention", "mapping"}
