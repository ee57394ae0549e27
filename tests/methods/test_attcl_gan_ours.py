"""What AttCL-GAN does beyond the paper: many sources, the supervised start, cheaper steps, neighbours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import changed
from oracles import masked, similarity
from slice_stores import store_of_cases
from torch import Tensor

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.networks.styled_unet import StyledUNet
from attcl_cli.methods.settings import Settings, resolve
from attcl_cli.methods.sources import AllPresent

FOUR = ("flair", "t1", "t1ce", "t2")


def method_of(settings: Settings, **changes: Any) -> AttclGan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["attcl-gan"](changed(settings, **changes), FOUR)


def batch_of(*, many: bool = False, context: int = 0, size: int = 2) -> DomainBatch:
    noise = torch.Generator().manual_seed(5)
    planes = 1 + 2 * context
    everything = torch.rand(size, 4, planes, 16, 16, generator=noise) * 2 - 1
    y_src = torch.arange(size) % 4
    given = torch.nn.functional.one_hot(y_src, 4).bool()
    given[0, 2] = True
    x_all = torch.where(given[:, :, None, None, None], everything, torch.tensor(-1.0))
    x_ref, x_ref2, x_pair = (torch.rand(size, 1, 16, 16, generator=noise) for _ in range(3))
    return DomainBatch(
        x_src=everything[torch.arange(size), y_src],
        y_src=y_src,
        x_ref=x_ref,
        x_ref2=x_ref2,
        y_ref=(y_src + 1) % 4,
        x_pair=x_pair,
        has_pair=torch.ones(size, dtype=torch.bool),
        x_all=x_all if many else None,
        given=given if many else None,
    )


def moved(method: AttclGan, batch: DomainBatch, step: int) -> tuple[set[str], dict[str, Tensor]]:
    """Run a step; return the networks that it changed, and its losses."""
    before = {name: copy.deepcopy(net.state_dict()) for name, net in method.networks().items()}
    losses = method.training_step(batch, step)
    return {
        name
        for name, net in method.networks().items()
        if any(not torch.equal(value, before[name][key]) for key, value in net.state_dict().items())
    }, losses


# --- many sources -----------------------------------------------------------------------------------------------------


@pytest.fixture()
def many(tiny_settings) -> AttclGan:
    method = method_of(tiny_settings, sources="many").eval()
    method.remember_references({name: torch.rand(1, 1, 16, 16) for name in FOUR})
    return method


def test_with_many_sources_a_target_is_made_from_all_that_a_case_has(many):
    assert many.rule == AllPresent(FOUR)
    assert many.sources_for("t1", ["t2", "flair"]) == ("flair", "t2")


def test_the_generator_sees_every_source_and_which_they_are(many):
    noise = torch.Generator().manual_seed(3)
    images = {name: torch.rand(1, 1, 16, 16, generator=noise) for name in FOUR}
    planes, start = many._planes_of({"t2": images["t2"], "flair": images["flair"]})
    nothing = torch.full((1, 1, 16, 16), -1.0)
    ones, zeros = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    expected = [images["flair"], nothing, nothing, images["t2"], ones, zeros, zeros, ones]
    assert torch.equal(planes, torch.cat(expected, dim=1))
    torch.testing.assert_close(start, (images["flair"] + images["t2"]) / 2)


def test_a_batch_and_completion_show_the_generator_the_same(many):
    batch = batch_of(many=True)
    of_batch = many._encode_batch(batch)
    row = {"flair": batch.x_all[:1, 0], "t1ce": batch.x_all[:1, 2]}
    planes, start = many._planes_of(row)
    torch.testing.assert_close(of_batch.image[:1], start)
    torch.testing.assert_close(of_batch.deep[:1], many.generator.encode(planes, start).deep)


def test_the_way_back_starts_from_the_fake_as_the_only_source(many):
    fake = torch.rand(2, 1, 16, 16)
    features = many._encode_image(fake, torch.tensor([3, 0]))
    for row, name in enumerate(("t2", "flair")):
        planes, start = many._planes_of({name: fake[row : row + 1]})
        torch.testing.assert_close(
            features.deep[row : row + 1], many.generator.encode(planes, start).deep
        )


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("sources", ["one", "many"])
def test_every_network_learns_from_one_or_many_sources_with_or_without_neighbours(
    sources, context, tiny_settings
):
    method = method_of(tiny_settings, sources=sources, context=context)
    networks, losses = moved(method, batch_of(many=sources == "many", context=context), 0)
    assert networks == set(method.networks())
    assert all(torch.isfinite(value) for value in losses.values())


# --- the supervised start ---------------------------------------------------------------------------------------------

SUPERVISED = {
    "steps": 100,
    "supervised": 0.5,
    "ramp": 0.1,
    "lambda_pair": 10.0,
    "lambda_structure": 2.0,
    "pair_bright": 1.0,
}


def test_the_supervised_start_moves_the_generator_and_the_mapping_network(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED)
    networks, losses = moved(method, batch_of(), 0)
    assert networks == {"generator", "attention", "mapping"}
    assert set(losses) == {"g_latent_pair", "g_latent_structure"}


@pytest.mark.parametrize(("att_adain", "attention"), [(True, {"attention"}), (False, set())])
def test_the_supervised_start_updates_what_it_uses(tiny_settings, att_adain, attention):
    # What has no gradient would be decayed where several processes take the mean of theirs.
    method = method_of(tiny_settings, **SUPERVISED, att_adain=att_adain)
    updated: list[Sequence[str]] = []
    with mock.patch.object(method, "update", lambda _parts, names, *_, **__: updated.append(names)):
        method.training_step(batch_of(), 0)
    assert [set(names) for names in updated] == [{"generator", "mapping"} | attention]


def test_true_pairs_alone_cannot_teach_if_no_loss_looks_at_them():
    unpaired = {"lambda_pair": 0, "lambda_structure": 0}
    with pytest.raises(UsageError, match=r"supervised: 0\.96, expected 0, and coarse 0"):
        resolve(preset="small", overrides=unpaired)
    assert resolve(preset="small", overrides={**unpaired, "supervised": 0, "coarse": 0})


def test_half_of_it_is_in_the_style_that_completion_takes(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED, fixed_style="latent")
    part = method._parts(batch_of(size=4), 6)[0]
    fixed = method._half_fixed(part).z
    assert torch.equal(fixed[1::2], method._fixed_latent().expand(2, -1))
    assert torch.equal(fixed[::2], part.z[::2])
    plain = method_of(tiny_settings, **SUPERVISED)
    assert plain._half_fixed(part) is part


def test_a_fixed_latent_gives_completion_its_styles_without_a_reference(tiny_settings):
    method = method_of(tiny_settings, fixed_style="latent").eval()
    method.remember_references({})
    codes = method.mapping(method._fixed_latent())[0]
    assert list(method.references) == list(FOUR)
    for name, code in zip(FOUR, codes, strict=True):
        torch.testing.assert_close(method.references[name], code)


def test_after_the_supervised_start_everything_learns(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED)
    assert method.phases == (0.5,)
    networks, _ = moved(method, batch_of(), 50)
    assert networks == set(method.networks())


def test_without_a_supervised_start_there_is_one_phase(tiny_settings):
    assert method_of(tiny_settings).phases == ()


def test_without_true_pairs_there_is_no_supervised_start(tiny_settings):
    # Slices that become themselves, which the source's own modality as the target asks for, would be all that teaches.
    settings = changed(tiny_settings, supervised=0.75, coarse=0.5, downs=1, contrastive_layers=(1,))
    pairs = {"A": ("flair", "t1"), "B": ("t2",), "C": ("t1ce",)}
    assert AttclGan.settled(settings, store_of_cases(pairs)) == settings
    alone = store_of_cases({case: (name,) for case, name in zip("ABCD", FOUR, strict=True)})
    settled = AttclGan.settled(settings, alone)
    assert settled == settings.model_copy(update={"supervised": 0.0, "coarse": 0.0})
    assert AttclGan.settled(settled, alone) == settled


def test_the_other_losses_grow_to_their_weights_over_the_ramp(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED)
    assert [method._grown(step) for step in (50, 54, 59, 99)] == pytest.approx([0.1, 0.5, 1, 1])
    assert method_of(tiny_settings, **{**SUPERVISED, "ramp": 0.0})._grown(50) == 1


def weights_at(method: AttclGan, step: int) -> dict[str, float]:
    """Return the weights of the generator's losses on the latent path at a step."""
    part = method._parts(batch_of(), step)[0]
    terms = method._generator_loss(part, method._latent(part), method._latent_style2, step)
    return {name: weight for name, (weight, _) in terms.items()}


def test_on_the_ramp_all_losses_but_the_distances_have_a_share_of_their_weights(tiny_settings):
    changes = {"lambda_sty": 0.3, "lambda_cyc": 0.4, "lambda_patch": 0.6, "lambda_scd": 0.7}
    method = method_of(tiny_settings, **SUPERVISED, **changes, lambda_ds=0.5)
    whole = {"adv": 1, "sty": 0.3, "cyc": 0.4, "patch": 0.6, "scd": -0.7, "scd_reference": -0.7}
    for step, share in ((52, 0.3), (59, 1.0), (80, 1.0)):
        expected = {name: share * weight for name, weight in whole.items()}
        expected |= {"ds": -0.5 * share * (1 - step / 100), "pair": 10, "structure": 2}
        assert weights_at(method, step) == pytest.approx(expected)


def test_the_supervised_start_learns_from_the_true_slice_in_the_style_of_f(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED)
    batch = batch_of()
    part = method._parts(batch, 0)[0]
    style = method.mapping(part.z)[torch.arange(2), batch.y_ref]
    features = method.generator.encode(batch.x_src)
    fake = method.generator.decode(features, style, method._refine(features))
    losses = method.training_step(batch, 0)
    expected = (masked(fake, batch.x_src) - batch.x_pair).abs().mean()
    torch.testing.assert_close(losses["g_latent_pair"], expected.detach())
    expected = (1 - similarity(masked(fake, batch.x_src), batch.x_pair)).mean()
    torch.testing.assert_close(losses["g_latent_structure"], expected.detach())


def taught_batch(size: int = 4) -> DomainBatch:
    """Return a batch of which all that is not given is there to learn from, except in the last row."""
    batch = batch_of(many=True, size=size)
    taught = ~batch.given
    taught[-1] = False
    noise = torch.Generator().manual_seed(8)
    true = torch.rand(size, 4, 16, 16, generator=noise)
    x_taught = torch.where(taught[:, :, None, None], true, torch.tensor(-1.0))
    return replace(batch, x_taught=x_taught, taught=taught)


def test_with_many_sources_every_modality_that_is_not_given_teaches(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED, sources="many")
    batch = taught_batch()
    part = method._parts(batch, 0)[0]
    features = method._encode_batch(batch)
    codes = method.mapping(part.z)
    refined = method._to_add(method._refine(features))
    distances = []
    for row, target in torch.nonzero(batch.taught).tolist():
        style = codes[row : row + 1, target]
        added = {layer: value[row : row + 1] for layer, value in refined.items()}
        fake = method.generator.decode(features.of(torch.tensor([row])), style, added)
        fake = method._masked(fake, batch.x_all[row : row + 1].flatten(1, 2))
        distances.append((fake - batch.x_taught[row, target]).abs().mean())
    losses = method._supervised_losses(part)
    torch.testing.assert_close(losses["pair"][1], torch.stack(distances).mean())


def test_parts_of_what_is_taught_add_up_to_the_whole(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED, sources="many")
    whole = method._parts(taught_batch(), 0)[0]
    method.runtime = replace(method.runtime, micro_batch=2)
    parts = method._parts(taught_batch(), 0)
    assert len(parts) == 2
    for name in ("pair", "structure"):
        _, expected = method._supervised_losses(whole)[name]
        halves = [method._supervised_losses(part)[name][1] for part in parts]
        torch.testing.assert_close(torch.stack(halves).mean(), expected)


def test_a_batch_without_anything_to_learn_gives_losses_of_zero(tiny_settings):
    method = method_of(tiny_settings, **SUPERVISED, sources="many")
    batch = taught_batch()
    empty = replace(
        batch,
        taught=torch.zeros_like(batch.taught),
        has_pair=torch.zeros_like(batch.has_pair),
    )
    losses = method.training_step(empty, 0)
    assert {name: float(loss) for name, loss in losses.items()} == {
        "g_latent_pair": 0.0,
        "g_latent_structure": 0.0,
    }


# --- cheaper steps ----------------------------------------------------------------------------------------------------


def test_alternating_paths_take_turns_and_leave_the_encoder_still_on_the_reference_path(
    tiny_settings,
):
    method = method_of(tiny_settings, alternate=True)
    networks, losses = moved(method, batch_of(), 0)
    assert networks == set(method.networks())
    assert all(name.startswith(("d_latent", "g_latent")) for name in losses)
    networks, losses = moved(method, batch_of(), 1)
    assert networks == set(method.networks()) - {"mapping", "style_encoder"}
    assert all(name.startswith(("d_reference", "g_reference")) for name in losses)


def test_a_lazy_penalty_is_due_now_and_then_and_weighs_as_many_times_as_much(tiny_settings):
    method = method_of(tiny_settings, r1_every=4, lambda_r1=2.0)
    part = method._parts(batch_of(), 0)[0]
    fake = torch.zeros(2, 1, 16, 16)
    assert method._discriminator_loss(part, fake, 0)["r1"][0] == 8.0
    assert list(method._discriminator_loss(part, fake, 3)) == ["real", "fake"]


def test_with_turns_the_penalty_is_due_on_both_paths_alike(tiny_settings):
    method = method_of(tiny_settings, alternate=True, r1_every=2)
    due = [
        name
        for step in range(6)
        for name in method.training_step(batch_of(), step)
        if name.endswith("r1")
    ]
    assert due == ["d_latent_r1", "d_reference_r1", "d_latent_r1", "d_reference_r1"]  # 0, 1, 4, 5


def test_a_step_leaves_its_batch_as_it_was(tiny_settings):
    method = method_of(tiny_settings)
    batch, before = batch_of(), batch_of()
    method.training_step(batch, 0)
    for name, value in vars(before).items():
        if value is not None:
            assert torch.equal(getattr(batch, name), value), name


@pytest.mark.parametrize(("augment", "real"), [(0.0, "source"), (0.5, "reference")])
def test_a_source_of_changed_appearance_is_not_shown_as_real(augment, real, tiny_settings):
    method = method_of(tiny_settings, augment=augment)
    part = method._parts(batch_of(), 0)[0]
    batch = part.batch
    shown = {
        "source": method._judge(batch.x_src, batch.y_src),
        "reference": method._judge(batch.x_ref, batch.y_ref),
    }[real]
    _, loss = method._discriminator_loss(part, torch.zeros(2, 1, 16, 16), 0)["real"]
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-shown).mean())


def test_a_discriminator_of_patches_judges_each_patch_of_an_image_alone(tiny_settings):
    method = method_of(tiny_settings, discriminator="patches")
    logits = method._judge(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    assert logits.ndim == 3
    assert logits.dtype == torch.float32
    networks, _ = moved(method, batch_of(), 0)
    assert "discriminator" in networks


# --- crops ------------------------------------------------------------------------------------------------------------


def test_the_reference_is_the_square_in_the_middle_of_the_brain(tiny_settings):
    method = method_of(tiny_settings, image_size=32, crop=16).eval()
    image = torch.full((1, 1, 32, 32), -1.0)
    image[:, :, 12:24, 0:8] = torch.rand(1, 1, 12, 8)
    method.remember_references(dict.fromkeys(FOUR, image))
    square = image[:, :, 10:26, 0:16]  # the brain's middle is (18, 4); the square stays inside
    torch.testing.assert_close(method.references["t1"], method.style_encoder(square)[0, 1])


# --- the U-Net, Muon and the coarse start -----------------------------------------------------------------------------

UNET = {
    "generator": "u-net",
    "full_size_skips": False,
    "shortcut_refined": False,
    "width": 8,
    "max_width": 16,
}


@pytest.mark.parametrize("sources", ["one", "many"])
def test_with_a_u_net_every_network_learns(sources, tiny_settings):
    method = method_of(tiny_settings, **UNET, sources=sources)
    assert isinstance(method.generator, StyledUNet)
    networks, _ = moved(method, batch_of(many=sources == "many"), 0)
    assert networks == set(method.networks())


def test_completion_with_a_u_net_makes_each_target_in_its_style(tiny_settings):
    method = method_of(tiny_settings, **UNET, sources="many", fixed_style="latent").eval()
    method.remember_references({name: torch.rand(1, 1, 16, 16) for name in FOUR})
    sources = {"flair": torch.rand(3, 1, 16, 16), "t1": torch.rand(3, 1, 16, 16)}
    made = method.synthesise(sources, ["t2", "t1ce"])
    assert list(made) == ["t2", "t1ce"]
    assert not torch.allclose(made["t2"], made["t1ce"])
    alone = method.synthesise({name: each[1:2] for name, each in sources.items()}, ["t2"])
    torch.testing.assert_close(alone["t2"], made["t2"][1:2], rtol=1e-4, atol=1e-4)


def test_muon_moves_the_generator_and_adamw_the_others(tiny_settings):
    optimisers = method_of(tiny_settings, muon=True, learning_rate=1e-3).optimisers()
    kinds = {name: type(optimiser).__name__ for name, optimiser in optimisers.items()}
    assert kinds.pop("generator") == "Muon"
    assert set(kinds.values()) == {"AdamW"}
    assert optimisers["generator"].param_groups[0]["lr"] == 1e-3
    plain = method_of(tiny_settings).optimisers()
    assert {type(optimiser).__name__ for optimiser in plain.values()} == {"Adam"}


def test_the_first_steps_see_half_the_resolution(tiny_settings, monkeypatch):
    changes = {**UNET, "sources": "many", "steps": 10, "coarse": 0.2, "supervised": 0.5, "downs": 1}
    method = method_of(tiny_settings, **changes, contrastive_layers=(1,), lambda_pair=1.0)
    assert method.phases == (0.2, 0.5)
    seen: list[int] = []
    encode = method.generator.encode
    monkeypatch.setattr(
        method.generator,
        "encode",
        lambda x, start=None: seen.append(x.shape[-1]) or encode(x, start),
    )
    for step in range(4):
        method.training_step(taught_batch(), step)
    assert seen == [8, 8, 16, 16]


def test_a_coarse_step_learns_from_the_mean_of_four_pixels(tiny_settings):
    changes = {**UNET, "sources": "many", "steps": 10, "supervised": 1.0, "lambda_pair": 1.0}
    coarse, full = (
        method_of(tiny_settings, **changes, coarse=share, downs=1, contrastive_layers=(1,))
        for share in (1.0, 0.0)
    )
    batch = taught_batch()
    assert coarse.training_step(batch, 0) == full.training_step(batch.halved(), 0)


def test_a_halved_batch_has_the_means_of_squares_in_every_image():
    batch = taught_batch()
    half = batch.halved()
    for name in ("x_src", "x_ref", "x_ref2", "x_pair", "x_all", "x_taught"):
        value = getattr(batch, name)
        rows, columns = value.shape[-2] // 2, value.shape[-1] // 2
        expected = value.reshape(*value.shape[:-2], rows, 2, columns, 2).mean(dim=(-3, -1))
        torch.testing.assert_close(getattr(half, name), expected)
    for name in ("y_src", "y_ref", "has_pair", "given", "taught"):
        assert torch.equal(getattr(half, name), getattr(batch, name))
