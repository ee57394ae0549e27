"""PLAVE: its networks and losses against hand-computed numbers, its step against a literal one, sources in and out."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from attcl_cli.data.sampling import CaseBatch
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS, losses
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.networks.attention import SqueezeExcitation
from attcl_cli.methods.networks.discriminator import PatchDiscriminator
from attcl_cli.methods.networks.fusion import AutoEncoder, Fusion, FusionGenerator
from attcl_cli.methods.plave import Plave
from attcl_cli.methods.settings import Settings, resolve

FOUR = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def settings(tiny_settings) -> Settings:
    return Settings.model_validate(
        {
            **tiny_settings.model_dump(),
            "method": "plave",
            "weight_decay": 0.0,
            "plave_blocks": 2,
            "plave_pretraining": 0.5,
        }
    )


def changed(settings: Settings, **values: object) -> Settings:
    return Settings.model_validate({**settings.model_dump(), **values})


def method_of(settings: Settings, modalities: tuple[str, ...] = FOUR) -> Plave:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["plave"](settings, modalities)


def batch_of(size: int = 3, *, sources: Tensor | None = None) -> CaseBatch:
    """Targets t1, t1ce, t2, ...; each made from the other three, the first of them without a segmentation."""
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
    return {name: copy.deepcopy(module.state_dict()) for name, module in method.modules().items()}


def moved(method: Plave, before: dict[str, dict[str, Tensor]]) -> set[str]:
    now = weights_of(method)
    return {
        name
        for name in now
        if any(not torch.equal(now[name][key], before[name][key]) for key in now[name])
    }


# --- networks ---------------------------------------------------------------------------------------------------------


def test_squeeze_and_excitation_adds_each_channel_times_its_gate():
    layer = SqueezeExcitation(32)
    assert [tuple(item.weight.shape) for item in layer.mlp if isinstance(item, nn.Linear)] == [
        (2, 32),
        (32, 2),
    ]  # reduction 16
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 32, 3, 5)
    assert torch.equal(layer(x), x + x * 0.5)  # sigmoid(0)
    layer.mlp[2].bias.data[7] = math.log(3)  # sigmoid = 3/4
    assert torch.allclose(layer(x)[:, 7], 1.75 * x[:, 7])


def fusion_of(slots: int = 3, channels: int = 4) -> tuple[Fusion, Tensor]:
    return Fusion(channels, slots=slots), torch.randn(2, slots, channels, 3, 5)


ALL_THERE = torch.ones(2, 3, dtype=torch.bool)


def test_fusion_weights_are_a_softmax_over_the_sources_at_each_position():
    fusion, features = fusion_of()
    weights = fusion.weights(features, ALL_THERE)
    scores = torch.stack([fusion.score[slot](features[:, slot])[:, 0] for slot in range(3)], dim=1)
    exponents = scores.exp()
    assert torch.allclose(weights, exponents / exponents.sum(dim=1, keepdim=True), atol=1e-6)


def test_fusion_concatenates_the_weighted_sources_and_mixes_them():
    fusion, features = fusion_of()
    weights = fusion.weights(features, ALL_THERE)
    weighted = torch.cat([weights[:, [slot]] * features[:, slot] for slot in range(3)], dim=1)
    kernel = fusion.mix.weight[:, :, 0, 0]
    wanted = torch.einsum("oc,bchw->bohw", kernel, weighted) + fusion.mix.bias[:, None, None]
    assert torch.allclose(fusion(features, ALL_THERE), wanted, atol=1e-5)


def test_the_weights_of_those_that_are_there_add_up_to_1_and_of_the_others_are_exactly_0():
    fusion, features = fusion_of()
    present = torch.tensor([[True, False, True], [False, True, False]])
    weights = fusion.weights(features, present)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2, 3, 5))
    assert (weights[~present] == 0).all()
    assert (weights[1, 1] == 1).all()


@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
def test_what_an_absent_slot_holds_changes_no_bit_of_the_fusion(junk):
    fusion, features = fusion_of()
    present = torch.tensor([[True, False, True], [True, True, False]])
    spoiled = features.clone()
    spoiled[~present] = junk
    assert torch.equal(fusion(spoiled, present), fusion(features, present))


def test_the_generator_goes_down_to_a_quarter_and_back():
    generator = FusionGenerator(slots=3, targets=4, width=4, max_width=64, blocks=6, style_dim=8)
    images, present = [torch.randn(2, 1, 32, 32)] * 3, ALL_THERE
    style = generator.code(torch.tensor([0, 2]))
    features = generator.encode(images, present, style)
    assert [layer.shape for layer in features] == [
        (2, 3, 4, 32, 32),
        (2, 3, 8, 16, 16),
        (2, 3, 16, 8, 8),
    ]
    assert generator.skips(features, present) == []
    fused, following = generator.fuse(features, present, style)
    assert fused.shape == following.shape == (2, 16, 8, 8)
    h = generator.refine(following, style)
    image, decoded = generator.decode(h, style)
    assert image.shape == (2, 1, 32, 32)
    assert image.abs().max() < 1  # tanh
    assert [layer.shape for layer in decoded] == [(2, 8, 16, 16), (2, 4, 32, 32)]
    assert len(generator.trunk) == 6


def test_skips_are_fused_at_both_larger_sizes_and_added_in_the_decoder():
    sizes = {"slots": 3, "targets": 4, "width": 4, "max_width": 64, "blocks": 1, "style_dim": 8}
    generator = FusionGenerator(**sizes, skips=True)
    style = generator.code(torch.tensor([0, 2]))
    present = torch.tensor([[True, False, True], [False, True, False]])
    features = generator.encode([torch.randn(2, 1, 32, 32)] * 3, present, style)
    half, whole = generator.skips(features, present)
    assert torch.equal(half, generator.skip[0](features[1], present))
    assert torch.equal(whole, generator.skip[1](features[0], present))
    h = torch.randn(2, 16, 8, 8)
    first = generator.decoder.up[0](h, style) + half
    second = generator.decoder.up[1](first, style) + whole
    image, decoded = generator.decode(h, style, [half, whole])
    assert all(map(torch.equal, decoded, (first, second)))
    assert torch.equal(image, generator.decoder.last(second).tanh())


def test_256_pixels_are_fused_at_64():
    generator = FusionGenerator(slots=1, targets=1, width=2, max_width=4, blocks=1, style_dim=2)
    present = torch.ones(1, 1, dtype=torch.bool)
    code = generator.code(torch.tensor([0]))
    assert generator.encode([torch.zeros(1, 1, 256, 256)], present, code)[-1].shape[-2:] == (64, 64)


def test_a_target_s_code_changes_every_stage_of_the_generator():
    """A constant on an input plane would not survive the first instance norm."""
    generator = FusionGenerator(slots=1, targets=2, width=4, max_width=16, blocks=1, style_dim=8)
    present, x = torch.ones(1, 1, dtype=torch.bool), torch.randn(1, 1, 16, 16)
    codes = [generator.code(torch.tensor([index])) for index in range(2)]
    one, two = (generator.encode([x], present, code) for code in codes)
    assert not torch.allclose(one[-1], two[-1], atol=1e-3)
    fused = [generator.fuse(one, present, code)[1] for code in codes]
    assert not torch.allclose(*fused, atol=1e-3)
    assert torch.equal(
        *(generator.refine(fused[0], code) for code in codes)
    )  # at first the identity
    nn.init.normal_(generator.trunk[0].conv2.weight)
    refined = [generator.refine(fused[0], code) for code in codes]
    assert not torch.allclose(*refined, atol=1e-3)
    assert not torch.allclose(*(generator.decode(refined[0], code)[0] for code in codes), atol=1e-3)


def test_the_autoencoder_s_features_have_the_shapes_of_the_generator_s():
    sizes = {"targets": 4, "width": 4, "max_width": 64, "style_dim": 8}
    generator = FusionGenerator(slots=2, blocks=1, **sizes)
    image, branch, last, decoded = AutoEncoder(**sizes)(
        torch.randn(2, 1, 32, 32), torch.tensor([0, 3])
    )
    assert image.shape == (2, 1, 32, 32)
    assert branch.shape == last.shape == (2, 16, 8, 8)
    made = generator.decode(last, generator.code(torch.tensor([0, 3])))[1]
    assert [layer.shape for layer in decoded] == [layer.shape for layer in made]


@pytest.mark.parametrize(("size", "patches", "field"), [(256, 30, 70), (64, 14, 34), (16, 6, 16)])
def test_the_discriminator_judges_patches(size, patches, field):
    """70 of 256 pixels, and 30 x 30 of them, are pix2pix's."""
    d = PatchDiscriminator(image_size=size, width=4, max_width=8, sources=3, targets=2)
    sources, x = torch.zeros(1, 3, size, size), torch.zeros(1, 1, size, size)
    assert d(sources, x, torch.tensor([1])).shape == (1, patches, patches)
    span = 1
    for layer in reversed([item for item in d.layers if isinstance(item, nn.Conv2d)]):
        span = (span - 1) * layer.stride[0] + layer.kernel_size[0]
    assert span == field


def test_the_discriminator_is_conditional():
    d = PatchDiscriminator(image_size=16, width=4, max_width=8, sources=3, targets=2)
    sources, x = torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
    logits = d(sources, x, torch.tensor([0]))
    assert not torch.allclose(logits, d(-sources, x, torch.tensor([0])))
    assert not torch.allclose(logits, d(sources, x, torch.tensor([1])))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_branch_loss_is_the_mean_square_over_the_sources_that_are_there():
    features = torch.tensor([1.0, 2.0, 9.0])[None, :, None, None, None].expand(1, 3, 2, 2, 2)
    wanted = torch.zeros(1, 2, 2, 2)
    there = torch.tensor([[True, True, False]])
    assert losses.branch_loss(features, wanted, there).item() == pytest.approx((1 + 4) / 2)


def test_every_case_weighs_alike_in_the_branch_loss_however_many_sources_it_has():
    features = torch.ones(2, 3, 1, 1, 1)
    features[1] = 3.0
    there = torch.tensor([[True, False, False], [True, True, True]])
    found = losses.branch_loss(features, torch.zeros(2, 1, 1, 1), there)
    assert found.item() == pytest.approx((1 + 9) / 2)


def test_the_decoder_loss_is_the_kl_divergence_over_channels_at_each_position():
    wanted = torch.tensor([0.75, 0.25]).log()[None, :, None, None].expand(1, 2, 3, 4)
    found = torch.tensor([0.5, 0.5]).log()[None, :, None, None].expand(1, 2, 3, 4)
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert losses.decoder_loss([found], [wanted]).item() == pytest.approx(by_hand)
    # a constant added to all channels is the same distribution
    assert losses.decoder_loss([wanted + 5], [wanted]).item() == pytest.approx(0, abs=1e-6)


def test_the_decoder_loss_is_torch_s_and_the_mean_over_layers():
    pairs = [(torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)) for _ in range(2)]
    wanted = [
        F.kl_div(a.log_softmax(1), b.log_softmax(1), log_target=True, reduction="none")
        .sum(1)
        .mean()
        for a, b in pairs
    ]
    found = losses.decoder_loss(*zip(*pairs, strict=True))
    assert found.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-5)


def test_the_self_representation_is_what_is_learned_from_not_what_learns():
    wanted = torch.randn(2, 4, 3, 3, requires_grad=True)
    found = torch.randn(2, 4, 3, 3, requires_grad=True)
    total = (
        losses.fused_loss(found, wanted)
        + losses.decoder_loss([found], [wanted])
        + losses.branch_loss(found[:, None], wanted, torch.ones(2, 1, dtype=torch.bool))
    )
    total.backward()
    assert wanted.grad is None
    assert found.grad.abs().sum() > 0


def test_the_segmentation_loss_is_the_cross_entropy_of_the_cases_that_have_one():
    logits, labels = torch.randn(3, 4, 5, 5), torch.randint(4, (3, 5, 5))
    has = torch.tensor([True, False, True])
    wanted = F.cross_entropy(logits[has], labels[has])
    assert losses.segmentation_loss(logits, labels, has).item() == pytest.approx(wanted.item())
    none = torch.zeros(3, dtype=torch.bool)
    assert losses.segmentation_loss(logits, labels, none) == 0


# --- a step -----------------------------------------------------------------------------------------------------------


def test_at_first_the_autoencoder_learns_and_nothing_else_then_it_is_frozen(settings):
    method = method_of(settings)  # of 4 steps the first 2
    for step in range(4):
        before = weights_of(method)
        found = method.training_step(batch_of(), step)
        if step < 2:
            assert set(found) == {"a_image"}
            assert moved(method, before) == {"autoencoder"}
        else:
            assert moved(method, before) == {"generator", "segmenter", "discriminator", "heads"}
            assert all(math.isfinite(value) for value in found.values())


def test_losses_are_named_by_network(settings):
    found = method_of(settings).training_step(batch_of(), 3)
    parts = ("adv", "image", "patch", "seg", "branch", "fused", "decoder")
    assert list(found) == ["d_real", "d_fake", *(f"g_{part}" for part in parts)]
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("part", ["patch", "seg"])
def test_a_loss_of_weight_zero_is_not_computed(part, settings):
    method = method_of(changed(settings, **{f"plave_lambda_{part}": 0.0}))
    assert f"g_{part}" not in method.training_step(batch_of(), 3)


def test_without_a_segmentation_the_segmenter_stays_as_it_is(settings):
    method = method_of(settings)
    before = weights_of(method)
    batch = replace(batch_of(), has_labels=torch.zeros(3, dtype=torch.bool))
    assert method.training_step(batch, 3)["g_seg"] == 0
    assert "segmenter" not in moved(method, before)


def test_a_step_is_a_function_of_weights_batch_and_step(settings):
    first, second = method_of(settings), method_of(settings)
    before = torch.get_rng_state()
    one = first.training_step(batch_of(), 3)
    torch.manual_seed(99)
    two = second.training_step(batch_of(), 3)
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_in_parts_has_the_losses_of_the_whole(settings):
    whole, parts = method_of(settings), method_of(settings)
    parts.runtime = Runtime(micro_batch=1)
    wanted, found = whole.training_step(batch_of(4), 3), parts.training_step(batch_of(4), 3)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name


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
    wanted = one.training_step(batch, 3)
    found = two.training_step(replace(batch, images=spoiled), 3)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert moved(two, weights_of(one)) == set()


def literal_step(method: Plave, batch: CaseBatch) -> dict[str, Tensor]:  # noqa: PLR0915 - as it is printed
    """One iteration after the first phase, case by case, from the paper's text (Section 2) and method.md, section 6."""
    s = method.settings
    g, seg, d, a = (
        method.modules()[name]
        for name in ("generator", "segmenter", "discriminator", "autoencoder")
    )
    heads = method.modules()["heads"]
    adam = {
        name: Adam(
            net.parameters(),
            lr=s.learning_rate,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
        )
        for name, net in method.modules().items()
    }
    cases = range(len(batch))

    def fused_of(images, code):
        """images: slot -> (1, 1, S, S)."""
        layers = {slot: g.branches[slot](image, code) for slot, image in images.items()}

        def mixed(fusion, level):
            own = {slot: found[level] for slot, found in layers.items()}
            scores = torch.cat([fusion.score[slot](own[slot]) for slot in own], dim=1).softmax(
                dim=1
            )
            weighted = dict(zip(own, scores.split(1, dim=1), strict=True))
            zero = torch.zeros_like(next(iter(own.values())))
            parts = [weighted[slot] * own[slot] if slot in own else zero for slot in range(4)]
            return fusion.mix(torch.cat(parts, dim=1))

        fused = mixed(g.fusion, 2)
        skips = [mixed(g.skip[0], 1), mixed(g.skip[1], 0)] if s.plave_skips else []
        return {slot: found[2] for slot, found in layers.items()}, fused, g.next(fused, code), skips

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

    made = []
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
        shown = torch.where(
            batch.sources[b], batch.images[b].movedim(0, -1), -torch.ones(())
        ).movedim(-1, 0)[None]
        made.append(
            (images, code, own, fused, following, h, skips, raw.tanh(), decoded, real, shown)
        )
    found: dict[str, Tensor] = {}
    target = [batch.target[b : b + 1] for b in cases]
    d_real = [bce(d(made[b][10], made[b][9], target[b]), 1.0) for b in cases]
    d_fake = [bce(d(made[b][10], made[b][7].detach(), target[b]), 0.0) for b in cases]
    found["d_real"], found["d_fake"] = torch.stack(d_real).mean(), torch.stack(d_fake).mean()
    adam["discriminator"].zero_grad()
    (found["d_real"] + found["d_fake"]).backward()
    adam["discriminator"].step()

    terms: dict[str, list[Tensor]] = {}
    for b in cases:
        images, code, own, fused, following, h, skips, fake, decoded, real, shown = made[b]
        with torch.no_grad():
            _, branch, last, layers = a(real, target[b])
        _, fused2, following2, _ = fused_of(dict.fromkeys(images, fake), code)
        pairs = ((heads[0], fused, fused2), (heads[1], following, following2))
        one = {
            "adv": bce(d(shown, fake, target[b]), 1.0),
            "image": (fake - real).abs().mean(),
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
    weights = {
        "adv": 1,
        "image": 100,
        "patch": 0.1,
        "seg": 0.1,
        "branch": 0.1,
        "fused": 0.1,
        "decoder": 0.05,
    }
    for optimiser in adam.values():
        optimiser.zero_grad()
    sum(weights[name] * value for name, value in total.items()).backward()
    for name in ("generator", "segmenter", "heads"):
        adam[name].step()
    return found | {f"g_{name}": value for name, value in total.items()}


@pytest.mark.parametrize("skips", [False, True])
def test_a_step_is_the_literal_iteration_of_the_paper(skips, settings):
    settings = changed(settings, plave_skips=skips)
    ours, literal = method_of(settings), method_of(settings)
    sources = torch.tensor(
        [[True, False, True, True], [True, True, False, False], [False, False, True, False]]
    )
    batch = batch_of(sources=sources)
    for step in (2, 3):
        found, wanted = ours.training_step(batch, step), literal_step(literal, batch)
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            assert found[name].item() == pytest.approx(value.item(), rel=3e-3, abs=1e-5), name
        if step == 2:  # later Adam's sign of rounding errors drifts
            now = weights_of(ours)
            for name, tensors in weights_of(literal).items():
                for key, value in tensors.items():
                    if value.ndim > 1:
                        close = (now[name][key] - value).abs() < 0.1 * settings.learning_rate
                        assert close.float().mean() > 0.95, f"{name}.{key}"


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
    made = method.synthesise(sources_of(*names), ["t1ce"])["t1ce"]
    assert made.shape == (2, 1, 16, 16)
    assert torch.isfinite(made).all()
    if len(names) < 3:
        more = method.synthesise(sources_of("flair", "t1", "t2"), ["t1ce"])["t1ce"]
        assert not torch.allclose(made, more, atol=1e-4)


def test_an_absent_branch_has_exactly_no_influence(settings):
    method = method_of(settings)
    before = method.synthesise(sources_of("flair", "t2"), ["t1ce"])["t1ce"]
    for slot in (1, 2):  # t1, t1ce
        for parameter in method.generator.branches[slot].parameters():
            nn.init.constant_(parameter, float("nan"))
    assert torch.equal(method.synthesise(sources_of("flair", "t2"), ["t1ce"])["t1ce"], before)


def test_the_target_s_own_image_is_not_looked_at(settings):
    method = method_of(settings)
    wanted = method.synthesise(sources_of("flair", "t1"), ["t1ce"])["t1ce"]
    found = method.synthesise(sources_of("flair", "t1", "t1ce"), ["t1ce"])["t1ce"]
    assert torch.equal(found, wanted)


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
    x_fake = method._translate(batch).x_fake
    names = [name for name in FOUR if name != "t1"]
    images = {name: batch.images[:, [FOUR.index(name)]] for name in names}
    assert torch.allclose(method.synthesise(images, ["t1"])["t1"], x_fake, atol=1e-5)


def test_the_segmentation_head_gives_background_and_three_classes(settings):
    logits = method_of(settings).segment(sources_of("flair", "t1"), "t2")
    assert logits.shape == (2, 4, 16, 16)


# --- dedicated and general --------------------------------------------------------------------------------------------


def test_a_general_model_makes_anything_from_anything(settings):
    assert Plave.needs(settings, FOUR) == {"flair": (), "t1": (), "t1ce": (), "t2": ()}
    assert method_of(settings).batches.leave_out == settings.plave_leave_out


def test_a_dedicated_model_makes_one_target_from_all_the_others(settings):
    dedicated = changed(settings, plave_target="t1ce")
    assert Plave.needs(dedicated, FOUR) == {"t1ce": ("flair", "t1", "t2")}
    method = method_of(dedicated)
    assert len(method.generator.branches) == 3
    assert method.batches.leave_out == 0
    made = method.synthesise(sources_of("flair", "t1", "t2"), ["t1ce"])
    assert made["t1ce"].shape == (2, 1, 16, 16)
    batch = batch_of(2)
    batch = replace(
        batch,
        target=torch.tensor([2, 2]),
        sources=torch.arange(4)[None] != torch.tensor([[2], [2]]),
    )
    assert all(math.isfinite(value) for value in method.training_step(batch, 3).values())


def test_a_target_that_nobody_knows_is_an_error(settings):
    with pytest.raises(
        UsageError, match="setting plave_target: 'pd', expected one of flair, t1"
    ) as e:
        Plave.needs(changed(settings, plave_target="pd"), FOUR)
    assert e.value.hint == "known: flair, t1, t1ce, t2"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_preset_paper_is_the_published_set_up():
    s = resolve(preset="paper", overrides={"method": "plave"})
    assert (s.beta1, s.beta2, s.learning_rate, s.batch_size) == (0.5, 0.999, 1e-4, 4)
    assert (s.plave_pretraining, s.plave_blocks, s.plave_tumour_slices) == (0.4, 6, 1.0)
    assert (s.plave_lambda_image, s.plave_lambda_patch, s.plave_lambda_seg) == (100, 0.1, 0.1)
    assert (s.plave_lambda_branch, s.plave_lambda_fused, s.plave_lambda_decoder) == (0.1, 0.1, 0.05)
    assert (s.contrastive_patches, s.temperature) == (256, 0.07)
    assert not s.plave_skips


def test_what_the_user_says_is_stronger_than_the_method_s_defaults():
    s = resolve(preset="tiny", overrides={"method": "plave", "batch_size": 2, "beta2": 0.9})
    assert (s.batch_size, s.beta2, s.beta1) == (2, 0.9, 0.5)
    assert resolve(preset="tiny").batch_size == 8


def test_a_variant_is_attcl_gan_s():
    with pytest.raises(UsageError, match="--variant: 'scd' with method plave"):
        resolve(preset="tiny", variant="scd", overrides={"method": "plave"})
