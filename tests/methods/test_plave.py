"""PLAVE: its step against a literal one, which sources it takes, and synthesis."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradients import gradients_left_by, recorded, require_equal
from helpers import changed, small_settings
from oracles import masked, similarity
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from attcl_cli.data.sampling import CaseBatch
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.plave import Plave
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import AllPresent, Exactly

FOUR = ("flair", "t1", "t1ce", "t2")
PARTS = ("adv", "image", "structure", "patch", "seg", "branch", "fused", "decoder")


@pytest.fixture
def settings() -> Settings:
    return small_settings("plave")


def method_of(settings: Settings, modalities: tuple[str, ...] = FOUR) -> Plave:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["plave"](settings, modalities)


def batch_of(size: int = 3, *, sources: Tensor | None = None) -> CaseBatch:
    """Return targets t1, t1ce, t2, ..., each from the other three, the first of them without a segmentation."""
    noise = torch.Generator().manual_seed(5)
    target = torch.arange(1, size + 1) % 4
    if sources is None:
        sources = torch.arange(4)[None] != target[:, None]
    return CaseBatch(
        images=torch.rand(size, 4, 16, 16, generator=noise) * 2 - 1,
        sources=sources,
        target=target,
        labels=torch.randint(4, (size, 16, 16), generator=noise),
        has_labels=torch.arange(size) > 0,
    )


def weights_of(method: Plave) -> dict[str, dict[str, Tensor]]:
    return {
        name: copy.deepcopy(network.state_dict()) for name, network in method.networks().items()
    }


def moved(method: Plave, before: dict[str, dict[str, Tensor]]) -> set[str]:
    """Return the networks whose weights have changed."""
    now = weights_of(method)
    return {
        name
        for name in now
        if any(not torch.equal(now[name][key], before[name][key]) for key in now[name])
    }


# --- a step -----------------------------------------------------------------------------------------------------------


def test_at_first_the_autoencoder_learns_and_nothing_else_then_it_is_frozen(settings):
    method = method_of(settings)  # of 4 steps the first 2
    for step in range(4):
        before = weights_of(method)
        losses = method.training_step(batch_of(), step)
        if step < 2:
            assert set(losses) == {"a_image"}
            assert moved(method, before) == {"autoencoder"}
        else:
            assert moved(method, before) == {"generator", "segmenter", "discriminator", "heads"}
            assert all(math.isfinite(value) for value in losses.values())


def test_losses_are_named_by_network(settings):
    losses = method_of(settings).training_step(batch_of(), 3)
    assert list(losses) == ["d_real", "d_fake", *(f"g_{part}" for part in PARTS)]
    assert not any(value.requires_grad for value in losses.values())


@pytest.mark.parametrize("part", PARTS)
def test_a_loss_of_weight_zero_is_not_computed(part, settings):
    method = method_of(changed(settings, **{f"plave_lambda_{part}": 0.0}))
    seen = recorded(method.optimisers())
    losses = method.training_step(batch_of(), 3)
    without = {"adv": "discriminator", "seg": "segmenter", "patch": "heads"}
    learning = ["discriminator", "generator", "segmenter", "heads"]
    assert [name for name, _ in seen] == [one for one in learning if one != without.get(part)]
    assert [name for name in PARTS if f"g_{name}" in losses] == [
        name for name in PARTS if name != part
    ]
    assert ("d_real" in losses) == (part != "adv")


def test_without_self_representation_losses_the_autoencoder_is_not_asked(settings):
    weights = dict.fromkeys(
        ("plave_lambda_branch", "plave_lambda_fused", "plave_lambda_decoder"), 0.0
    )
    method = method_of(changed(settings, **weights))
    for parameter in method.autoencoder.parameters():
        nn.init.constant_(parameter, float("nan"))
    assert all(math.isfinite(value) for value in method.training_step(batch_of(), 3).values())


def test_without_a_segmentation_the_segmenter_stays_as_it_is(settings):
    method = method_of(settings)
    before = weights_of(method)
    batch = replace(batch_of(), has_labels=torch.zeros(3, dtype=torch.bool))
    assert method.training_step(batch, 3)["g_seg"] == 0
    assert "segmenter" not in moved(method, before)


def test_weights_hold_what_makes_volumes_and_segmentations_and_nothing_else(settings):
    assert method_of(settings).stored_networks().keys() == {"generator", "segmenter"}
    without = method_of(changed(settings, plave_segmentation=False, plave_lambda_seg=0.0))
    assert without.stored_networks().keys() == {"generator"}


def test_a_step_is_a_function_of_weights_batch_and_step(settings):
    first, second = method_of(settings), method_of(settings)
    before = torch.get_rng_state()
    one = first.training_step(batch_of(), 3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        two = second.training_step(batch_of(), 3)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_batch_in_parts_has_the_losses_of_the_whole(settings):
    whole, parts = method_of(settings), method_of(settings)
    parts.runtime = Runtime(micro_batch=1)
    expected, losses = whole.training_step(batch_of(4), 3), parts.training_step(batch_of(4), 3)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("junk", [7.0, float("nan")])
def test_absent_sources_change_no_bit_of_a_step(junk, settings):
    sources = torch.tensor(
        [[True, False, False, False], [True, True, False, False], [True, False, True, False]]
    )
    batch = batch_of(sources=sources)
    spoiled = batch.images.clone()
    hidden = ~sources
    hidden[torch.arange(3), batch.target] = False  # the truth is looked at, as the truth
    assert hidden.any()
    spoiled[hidden] = junk
    one, two = method_of(settings), method_of(settings)
    expected = one.training_step(batch, 3)
    losses = two.training_step(replace(batch, images=spoiled), 3)
    assert all(torch.equal(expected[name], losses[name]) for name in expected)
    assert moved(two, weights_of(one)) == set()


def literal_adam(method: Plave) -> dict[str, Adam]:
    s = method.settings
    return {
        name: Adam(
            net.parameters(),
            lr=s.learning_rate,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
        )
        for name, net in method.networks().items()
    }


def literal_step(  # noqa: PLR0915 - as it is printed
    method: Plave, adam: Mapping[str, Adam], batch: CaseBatch
) -> dict[str, Tensor]:
    """Run one iteration after the first phase, case by case, from the paper's text and method.md, section 6."""
    s = method.settings
    g, seg, d, a = method.generator, method.segmenter, method.discriminator, method.autoencoder
    heads = method.heads
    cases = range(len(batch))

    def fused_of(images, code):
        """images: slot -> (1, 1, S, S)."""
        layers = {slot: g.branches[slot](image, code) for slot, image in images.items()}

        def mixed(fusion, level):
            own = {slot: features[level] for slot, features in layers.items()}
            scores = torch.cat([fusion.score[slot](own[slot]) for slot in own], dim=1).softmax(
                dim=1
            )
            weighted = dict(zip(own, scores.split(1, dim=1), strict=True))
            zero = torch.zeros_like(next(iter(own.values())))
            parts = [weighted[slot] * own[slot] if slot in own else zero for slot in range(4)]
            return fusion.mix(torch.cat(parts, dim=1))

        fused = mixed(g.fusion, 2)
        skips = [mixed(g.skip[0], 1), mixed(g.skip[1], 0)] if s.plave_skips else []
        deep = {slot: features[2] for slot, features in layers.items()}
        return deep, fused, g.next(fused, code), skips

    def contrast(head, source, fake):
        p, q = (
            x[0].detach().flatten(1).T if x is source else x[0].flatten(1).T for x in (source, fake)
        )
        rows = (p @ p.T / math.sqrt(p.shape[1])).softmax(dim=-1)
        entropies = -(rows * rows.clamp_min(1e-30).log()).sum(dim=-1)
        chosen = rows[entropies.argsort(stable=True)[: s.contrastive_patches]]
        key = head(chosen @ p).detach()
        return F.cross_entropy(head(chosen @ q) @ key.T / s.temperature, torch.arange(len(key)))

    def bce(logits, label):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    translations = []
    for b in cases:
        images = {
            slot: batch.images[b, slot][None, None] for slot in range(4) if batch.sources[b, slot]
        }
        code = g.code(batch.target[b : b + 1])
        own, fused, following, skips = fused_of(images, code)
        h = following
        for block in g.trunk:
            h = block(h, code)
        raw, decoded = g.decoder(h, code, skips)
        real = batch.images[b, batch.target[b]][None, None]
        visible = torch.where(
            batch.sources[b], batch.images[b].movedim(0, -1), -torch.ones(())
        ).movedim(-1, 0)[None]
        fake = masked(raw.tanh(), visible)
        translations.append(
            (images, code, own, fused, following, h, skips, fake, decoded, real, visible)
        )
    losses: dict[str, Tensor] = {}
    target = [batch.target[b : b + 1] for b in cases]
    d_real, d_fake = [], []
    for b in cases:
        *_, fake, _, real, visible = translations[b]
        d_real.append(bce(d(visible, real, target[b]), 1.0))
        d_fake.append(bce(d(visible, fake.detach(), target[b]), 0.0))
    losses["d_real"], losses["d_fake"] = torch.stack(d_real).mean(), torch.stack(d_fake).mean()
    adam["discriminator"].zero_grad()
    (s.plave_lambda_discriminator * (losses["d_real"] + losses["d_fake"])).backward()
    adam["discriminator"].step()

    terms: dict[str, list[Tensor]] = {}
    for b in cases:
        images, code, own, fused, following, h, skips, fake, decoded, real, visible = translations[
            b
        ]
        with torch.no_grad():
            _, branch, last, layers = a(real, target[b])
        _, fused2, following2, _ = fused_of(dict.fromkeys(images, fake), code)
        pairs = ((heads[0], fused, fused2), (heads[1], following, following2))
        one = {
            "adv": bce(d(visible, fake, target[b]), 1.0),
            "image": (fake - real).abs()[real > -1].mean(),
            "structure": 1 - similarity(fake, real)[real > -1].mean(),
            "patch": torch.stack([contrast(*pair) for pair in pairs]).mean(),
            "branch": torch.stack([F.mse_loss(x, branch) for x in own.values()]).mean(),
            "fused": F.mse_loss(fused, last),
            "decoder": torch.stack(
                [
                    F.kl_div(x.log_softmax(1), y.softmax(1), reduction="sum") / x[0, 0].numel()
                    for x, y in zip(decoded, layers, strict=True)
                ]
            ).mean(),
        }
        if batch.has_labels[b]:
            one["seg"] = F.cross_entropy(seg(h, code, skips)[0], batch.labels[b : b + 1])
        for name, value in one.items():
            terms.setdefault(name, []).append(value)
    total = {name: torch.stack(values).mean() for name, values in terms.items()}
    for optimiser in adam.values():
        optimiser.zero_grad()
    weights = s.model_dump()
    sum(weights[f"plave_lambda_{name}"] * value for name, value in total.items()).backward()
    for name in ("generator", "segmenter", "heads"):
        adam[name].step()
    return losses | {f"g_{name}": value for name, value in total.items()}


# Of like size, so that each is seen in the gradients, and no two alike.
WEIGHTS = {
    "plave_lambda_adv": 1.3,
    "plave_lambda_image": 3.0,
    "plave_lambda_structure": 2.0,
    "plave_lambda_discriminator": 0.9,
    "plave_lambda_patch": 0.7,
    "plave_lambda_seg": 1.1,
    "plave_lambda_branch": 0.6,
    "plave_lambda_fused": 0.8,
    "plave_lambda_decoder": 1.7,
}


@pytest.mark.parametrize("skips", [False, True])
def test_a_step_is_the_literal_iteration_of_the_paper(skips, settings):
    settings = changed(settings, **WEIGHTS, plave_skips=skips)
    ours, literal = method_of(settings), method_of(settings)
    adam = literal_adam(literal)
    seen, printed = recorded(ours.optimisers()), recorded(adam)
    sources = torch.tensor(
        [[True, False, True, True], [True, True, False, False], [False, False, True, False]]
    )
    batch = batch_of(sources=sources)
    batch.images[..., :5] = -1  # no brain in the left third
    for step in (2, 3):
        losses, expected = ours.training_step(batch, step), literal_step(literal, adam, batch)
        assert set(losses) == set(expected)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
        if step == 2:  # later Adam's sign of rounding errors drifts
            now = weights_of(ours)
            for name, tensors in weights_of(literal).items():
                for key, value in tensors.items():
                    if value.ndim > 1:
                        close = (now[name][key] - value).abs() < 0.1 * settings.learning_rate
                        assert close.float().mean() > 0.95, f"{name}.{key}"
    require_equal(seen, printed)


def test_at_first_the_autoencoder_descends_the_l1_of_its_reconstruction(settings):
    method, batch = method_of(settings), batch_of()
    real = torch.stack([batch.images[b, target] for b, target in enumerate(batch.target)])[:, None]
    result = method.autoencoder(real, batch.target)[0]
    expected = (result - real).abs().mean()
    weights = [*method.autoencoder.parameters()]
    gradients = torch.autograd.grad(expected, weights, materialize_grads=True)
    seen = recorded(method.optimisers())
    assert method.training_step(batch, 0)["a_image"].item() == pytest.approx(expected.item())
    flat = torch.cat([one.flatten() for one in gradients])
    require_equal(seen, [("autoencoder", flat)])


def test_gradients_are_computed_for_the_networks_that_learn_and_for_no_other(settings):
    method = method_of(settings)
    left = gradients_left_by(method)
    for step in (1, 2, 3):
        method.training_step(batch_of(), step)
        assert left == set()


# --- the supervised start -------------------------------------------------------------------------------------------


@pytest.fixture
def supervised(settings) -> Settings:
    """10 steps: 2 of the auto-encoder, 4 of the image terms, 2 in which the other losses grow."""
    return changed(settings, steps=10, plave_pretraining=0.2, plave_supervised=0.4, plave_ramp=0.2)


def test_at_first_the_image_terms_alone_teach_the_generator(supervised):
    method = method_of(supervised)
    assert method.phases == (0.2, pytest.approx(0.6))
    for step in range(2, 6):
        before = weights_of(method)
        assert list(method.training_step(batch_of(), step)) == ["g_image", "g_structure"]
        assert moved(method, before) == {"generator"}
    before = weights_of(method)
    assert "g_adv" in method.training_step(batch_of(), 6)
    assert moved(method, before) == {"generator", "segmenter", "discriminator", "heads"}


def test_the_first_steps_of_the_generator_see_half_the_resolution(supervised, monkeypatch):
    method = method_of(changed(supervised, plave_coarse=0.2))
    assert method.phases == (0.2, pytest.approx(0.4), pytest.approx(0.6))
    seen: list[int] = []
    for network in (method.generator, method.autoencoder):
        encode = network.encode

        def recording(images: Any, *others: Any, encode: Any = encode) -> Any:
            seen.append((images if isinstance(images, Tensor) else images[0]).shape[-1])
            return encode(images, *others)

        monkeypatch.setattr(network, "encode", recording)
    for step in range(6):
        method.training_step(batch_of(), step)
    assert seen == [16, 16, 8, 8, 16, 16]


def test_a_coarse_step_learns_from_the_mean_of_four_pixels(supervised):
    coarse, full = (method_of(changed(supervised, plave_coarse=share)) for share in (0.2, 0.0))
    batch = batch_of()
    half = batch.halved()
    assert coarse.training_step(batch, 2) == full.training_step(half, 2)
    for image, other in zip(half.images.flatten(0, 1), batch.images.flatten(0, 1), strict=True):
        assert torch.allclose(image[0, 0], other[:2, :2].mean())
    assert torch.equal(half.labels[:, 1, 2], batch.labels[:, 2, 4])
    assert torch.equal(half.sources, batch.sources) and len(half) == len(batch)


def gradient_of(method: Plave, step: int, network: str) -> Tensor:
    method.training_step(batch_of(), step)
    modules = method.networks()
    return torch.cat([item.grad.flatten() for item in modules[network].parameters()])


def test_the_other_losses_grow_to_their_weights(supervised):
    """The segmenter learns from a single loss: half of its weight in the first of two steps, then all of it."""
    half, whole, after = (
        gradient_of(method_of(supervised), step, "segmenter") for step in (6, 7, 8)
    )
    assert torch.allclose(2 * half, whole, atol=1e-7)
    assert torch.equal(whole, after)


def test_all_losses_but_the_image_terms_have_a_share_of_their_weights(settings):
    method = method_of(changed(settings, **WEIGHTS))
    part = batch_of()
    for share in (0.25, 1.0):
        terms = method._generator_loss(part, method._translate(part), share)
        weights = {name: weight for name, (weight, _) in terms.items()}
        expected = {name: WEIGHTS[f"plave_lambda_{name}"] for name in PARTS}
        assert weights == pytest.approx(
            {
                name: weight if name in ("image", "structure") else share * weight
                for name, weight in expected.items()
            }
        )


def test_what_the_discriminator_learns_does_not_grow(supervised):
    first, second = (gradient_of(method_of(supervised), step, "discriminator") for step in (6, 7))
    assert torch.equal(first, second)


def test_without_phases_a_run_costs_the_same_throughout(settings):
    assert method_of(changed(settings, plave_pretraining=0.0)).phases == ()


# --- synthesis --------------------------------------------------------------------------------------------------------


def sources_of(*names: str, size: int = 2) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(3)
    images = {name: torch.rand(size, 1, 16, 16, generator=noise) * 2 - 1 for name in FOUR}
    return {name: images[name] for name in names}


def test_the_order_of_the_sources_changes_no_bit(settings):
    method = method_of(settings)
    orders = itertools.permutations(("flair", "t1", "t2"))
    first, *others = [method.synthesise(sources_of(*order), ["t1ce"])["t1ce"] for order in orders]
    assert len(others) == 5
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    "names",
    [
        names
        for count in (1, 2, 3)
        for names in itertools.combinations(("flair", "t1", "t2"), count)
    ],
    ids="+".join,
)
def test_any_non_empty_set_of_sources_makes_an_image_of_its_own(names, settings):
    method = method_of(settings)
    image = method.synthesise(sources_of(*names), ["t1ce"])["t1ce"]
    assert image.shape == (2, 1, 16, 16)
    assert torch.isfinite(image).all()
    if len(names) < 3:
        more = method.synthesise(sources_of("flair", "t1", "t2"), ["t1ce"])["t1ce"]
        assert not torch.allclose(image, more, atol=1e-4)


def test_an_absent_branch_has_exactly_no_influence(settings):
    method = method_of(settings)
    before = method.synthesise(sources_of("flair", "t2"), ["t1ce"])["t1ce"]
    for slot in (1, 2):  # t1, t1ce
        for parameter in method.generator.branches[slot].parameters():
            nn.init.constant_(parameter, float("nan"))
    assert torch.equal(method.synthesise(sources_of("flair", "t2"), ["t1ce"])["t1ce"], before)


def test_the_target_s_own_image_is_not_looked_at(settings):
    method = method_of(settings)
    without = method.synthesise(sources_of("flair", "t1"), ["t1ce"])["t1ce"]
    beside = method.synthesise(sources_of("flair", "t1", "t1ce"), ["t1ce"])["t1ce"]
    assert torch.equal(beside, without)


def test_several_targets_at_once_equal_one_by_one_and_differ(settings):
    method = method_of(settings)
    together = method.synthesise(sources_of("flair", "t1"), ["t2", "t1ce"])
    assert list(together) == ["t2", "t1ce"]
    for target, image in together.items():
        assert torch.equal(method.synthesise(sources_of("flair", "t1"), [target])[target], image)
    assert not torch.allclose(together["t2"], together["t1ce"], atol=1e-3)


def test_synthesis_is_what_training_shows_the_discriminator(settings):
    method = method_of(settings)
    batch = batch_of(1)  # target t1, from all others
    names = [name for name in FOUR if name != "t1"]
    images = {name: batch.images[:, [FOUR.index(name)]] for name in names}
    expected = method.synthesise(images, ["t1"])["t1"]
    judged: list[Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[1]))
    method.training_step(batch, 3)
    _real, x_fake, *_ = judged
    assert torch.allclose(x_fake, expected, atol=1e-5)


def test_the_segmentation_head_gives_background_and_three_classes(settings):
    logits = method_of(settings).segment(sources_of("flair", "t1"), "t2")
    assert logits.shape == (2, 4, 16, 16)


# --- dedicated and general --------------------------------------------------------------------------------------------


def test_a_general_model_makes_anything_from_anything(settings):
    assert Plave.sources(settings, FOUR) == AllPresent(FOUR)
    method = method_of(settings)
    assert method.sources_for("t1ce", ["t2", "flair", "t1ce"]) == ("flair", "t2")


def test_sources_are_drawn_with_another_contrast_and_the_target_with_its_own(settings, store):
    whole = {"plave_leave_out": 0.0, "plave_alone": 0.0, "mirror": 0.0}
    as_it_is, varied = (
        method_of(changed(settings, **whole, plave_gamma=spread)).sampler(store).batch(0)
        for spread in (0.0, 0.3)
    )
    assert torch.equal(as_it_is.image(as_it_is.target), varied.image(varied.target))
    changes = (as_it_is.images != varied.images).flatten(2).any(dim=2)
    assert torch.equal(changes, as_it_is.sources)


def leaves_out(method: Plave, store: SliceStore) -> bool:
    """Return whether some slices of the first batches are made from fewer sources than their case has."""
    sampler = method.sampler(store)
    return any(int(sampler.batch(step).sources.sum(dim=1).min()) < 3 for step in range(20))


def test_a_general_model_learns_with_sources_left_out_and_a_dedicated_one_does_not(settings, store):
    assert leaves_out(method_of(settings), store)
    whole = changed(settings, plave_leave_out=0.0, plave_alone=0.0)
    assert not leaves_out(method_of(whole), store)
    for share in ("plave_leave_out", "plave_alone"):
        assert leaves_out(method_of(changed(whole, **{share: 1.0})), store)
    assert not leaves_out(method_of(changed(settings, plave_target="t1ce")), store)


def test_a_dedicated_model_makes_one_target_from_all_the_others(settings):
    dedicated = changed(settings, plave_target="t1ce")
    assert Plave.sources(dedicated, FOUR) == Exactly({"t1ce": ("flair", "t1", "t2")})
    method = method_of(dedicated)
    assert method.sources_for("t1ce", ["flair", "t1"]) is None
    assert len(method.generator.branches) == 3
    images = method.synthesise(sources_of("flair", "t1", "t2"), ["t1ce"])
    assert images["t1ce"].shape == (2, 1, 16, 16)
    batch = batch_of(2)
    batch = replace(
        batch,
        target=torch.tensor([2, 2]),
        sources=torch.arange(4)[None] != torch.tensor([[2], [2]]),
    )
    assert all(math.isfinite(value) for value in method.training_step(batch, 3).values())


def test_a_target_that_nobody_knows_is_an_error(settings):
    with pytest.raises(UsageError) as caught:
        Plave.sources(changed(settings, plave_target="pd"), FOUR)
    assert caught.value.code == "unknown-target"
    assert caught.value.message.startswith("setting plave_target: 'pd', expected one of flair, t1")
    assert caught.value.hint == "known: flair, t1, t1ce, t2"
