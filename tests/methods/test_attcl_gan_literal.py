"""A training step of AttCL-GAN against a literal one: losses, gradients, order and size of the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from attcl_gan_steps import ALL_OFF, batch_of, method_of, small_paper, weights_of
from gradients import gradients_left_by, recorded, require_equal
from helpers import changed
from oracles import masked, similarity
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.settings import Settings


def literal_adam(method: AttclGan) -> dict[str, Adam]:
    s = method.settings
    return {
        name: Adam(
            net.parameters(),
            lr=s.learning_rate_mapping if name == "mapping" else s.learning_rate,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
        )
        for name, net in method.networks().items()
        if list(net.parameters())
    }


def literal_step(  # noqa: PLR0915 - read from top to bottom, as an iteration is printed
    method: AttclGan,
    adam: Mapping[str, Adam],
    batch: DomainBatch,
    step: int,
    paths: Sequence[str] = ("latent", "reference"),
) -> dict[str, Tensor]:
    """Run one iteration as the papers print it (Section 3.5; StarGAN v2, Section 3.2), every graph made anew.

    Works on the method's own networks, and returns the losses. With one of the two paths it is the turn of `alternate`.
    """
    s = method.settings
    g, f, e, d = method.generator, method.mapping, method.style_encoder, method.discriminator
    attention, heads = method.attention, method.heads
    number = s.seed * 1_000_003 + step
    noise = torch.Generator().manual_seed(number)
    z, z2 = (torch.randn(len(batch.y_src), s.latent_dim, generator=noise) for _ in range(2))
    rows = torch.arange(len(batch.y_src))
    losses: dict[str, Tensor] = {}

    def refine(features):
        return {int(layer): cbam(features.layers[int(layer)]) for layer, cbam in attention.items()}

    def translate(x, style):
        features = g.encode(x)
        fake = g.decode(features, style, refine(features) if s.att_adain else None)
        # x_src is all that was shown, also on the way back.
        return masked(fake, batch.x_src) if s.keep_background else fake

    def bce(x, domain, label):
        logits = d(x, domain)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    def spread(codes):
        own = codes[rows, batch.y_ref][:, None]
        keep = torch.ones(codes.shape[:2], dtype=torch.bool)
        keep[rows, batch.y_ref] = False
        return (own - codes)[keep].norm(dim=-1).clamp_max(s.scd_bound).sum() / keep.numel()

    def learn(loss, *names):
        for optimiser in adam.values():
            optimiser.zero_grad()
        loss.backward()
        for name in names:
            if name in adam:
                adam[name].step()

    def learn_d(style, path):
        with torch.no_grad():
            x_fake = translate(batch.x_src, style)
        x_real = batch.x_src.clone().requires_grad_()
        logits = d(x_real, batch.y_src)
        (slope,) = torch.autograd.grad(logits.sum(), x_real, create_graph=True)
        r1 = 0.5 * slope.square().sum() / len(rows)
        real = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        fake = bce(x_fake, batch.y_ref, 0.0)
        learn(real + fake + s.lambda_r1 * r1, "discriminator")
        losses.update({f"d_{path}_real": real, f"d_{path}_fake": fake, f"d_{path}_r1": r1})

    def contrast(x_fake):
        total = 0
        for name, head in heads.items():
            layer = int(name)
            found = [g.encode(batch.x_src), g.encode(x_fake)]
            seen = [refine(one) if s.acl == "attention" else one.layers for one in found]
            source, fake = (one[layer].flatten(2).transpose(1, 2) for one in seen)
            for b in rows:
                p = source[b].detach()
                if s.acl == "cut":
                    key = (number * len(rows) + int(b)) * 31 + layer
                    drawn = torch.randperm(len(p), generator=torch.Generator().manual_seed(key))
                    chosen = torch.eye(len(p))[drawn[: s.contrastive_patches]]
                else:
                    scale = math.sqrt(p.shape[1]) if s.attention_scale == "sqrt" else 1
                    weights = (p @ p.T / scale).softmax(dim=-1)
                    entropies = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1)
                    chosen = weights[entropies.argsort(stable=True)[: s.contrastive_patches]]
                key = head(chosen @ p).detach()
                scores = head(chosen @ fake[b]) @ key.T / s.temperature
                total = total + F.cross_entropy(scores, torch.arange(len(key)))
        return total / (len(heads) * len(rows))

    def learn_g(style, style2, path, *names):
        x_fake = translate(batch.x_src, style)
        parts = {"adv": bce(x_fake, batch.y_ref, 1.0)}
        parts["sty"] = F.l1_loss(e(x_fake)[rows, batch.y_ref], style)
        seen = x_fake if s.cycle_style == "generated" else batch.x_src
        x_rec = translate(x_fake, e(seen)[rows, batch.y_src])
        parts["cyc"] = F.l1_loss(x_rec, batch.x_src)
        parts["ds"] = F.l1_loss(translate(batch.x_src, style2).detach(), x_fake)
        weights = {"adv": 1, "sty": s.lambda_sty, "cyc": s.lambda_cyc}
        weights["ds"] = -s.lambda_ds * (1 - step / s.steps)
        if s.acl != "none":
            parts["patch"], weights["patch"] = contrast(x_fake), s.lambda_patch
        if s.scd and path == "latent":
            parts["scd"], weights["scd"] = spread(f(z)), -s.lambda_scd
            parts["scd_reference"] = spread(e(batch.x_ref))
            weights["scd_reference"] = -s.lambda_scd
        if s.lambda_pair > 0 or s.lambda_structure > 0:  # ours
            fake, true = x_fake[batch.has_pair], batch.x_pair[batch.has_pair]
            counts = 1 + (s.pair_bright - 1) * (true > 0.8)
            parts["pair"] = (counts * (fake - true).abs()).mean()
            weights["pair"] = s.lambda_pair
            inside = similarity(fake, true) * (true > -1)
            shares = inside.sum(dim=(1, 2, 3)) / (true > -1).sum(dim=(1, 2, 3))
            parts["structure"] = 1 - shares.mean()
            weights["structure"] = s.lambda_structure
        learn(sum(weights[name] * parts[name] for name in parts), *names)
        losses.update({f"g_{path}_{name}": value for name, value in parts.items()})

    image = ("generator", "attention", "heads")
    with torch.no_grad():
        style = {"latent": f(z)[rows, batch.y_ref], "reference": e(batch.x_ref)[rows, batch.y_ref]}
    for path in paths:
        learn_d(style[path], path)
    if "latent" in paths:
        with torch.no_grad():
            style2 = f(z2)[rows, batch.y_ref]
        learn_g(f(z)[rows, batch.y_ref], style2, "latent", *image, "mapping", "style_encoder")
    if "reference" in paths:
        with torch.no_grad():
            one, two = (e(x)[rows, batch.y_ref] for x in (batch.x_ref, batch.x_ref2))
        learn_g(one, two, "reference", *image)
    return losses


# Of like size, so that each is seen in the gradients, and no two alike.
WEIGHTS = {
    "lambda_sty": 1.3,
    "lambda_cyc": 0.7,
    "lambda_ds": 1.7,
    "lambda_patch": 0.8,
    "lambda_scd": 0.6,
    "lambda_r1": 1.1,
    "lambda_pair": 2.0,
    "lambda_structure": 1.5,
}


def batch_with_background(size: int = 2) -> DomainBatch:
    """Return a batch whose slices show no brain in their left third."""
    batch = batch_of(size)
    names = ("x_src", "x_ref", "x_ref2", "x_pair")
    images = {name: getattr(batch, name).clone() for name in names}
    for image in images.values():
        image[..., :5] = -1
    return replace(batch, **images)


def require_literal(
    settings: Settings, turns: Sequence[Sequence[str]] = (("latent", "reference"),) * 2
) -> None:
    """Check two steps against the literal ones: losses, gradients, weights.

    Args:
        settings: of a small method.
        turns: the paths of each step.
    """
    ours, literal = method_of(settings), method_of(settings)
    batch, adam = batch_with_background(), literal_adam(literal)
    seen, printed = recorded(ours.optimisers()), recorded(adam)
    for step, paths in enumerate(turns):
        losses = ours.training_step(batch, step)
        expected = literal_step(literal, adam, batch, step, paths)
        assert set(losses) == set(expected)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    require_equal(seen, printed)
    # A gradient that is zero but for rounding (biases before an instance norm) has a sign by chance, and Adam's first
    # steps have the size of the learning rate all the same: weights only.
    trained = weights_of(ours)
    for name, weights in weights_of(literal).items():
        for key, value in weights.items():
            if value.ndim > 1:
                rate = adam[name].param_groups[0]["lr"]
                close = (trained[name][key] - value).abs() < 0.1 * rate
                assert close.float().mean() > 0.95, f"{name}.{key}"


@pytest.mark.parametrize(
    "switches",
    [
        ALL_OFF,
        {},
        {**ALL_OFF, "acl": "qs"},
        {**ALL_OFF, "acl": "cut"},
        {"cycle_style": "generated"},
    ],
    ids=["stargan-v2", "attcl-gan", "stargan-v2+qs", "stargan-v2+cut", "cycle-generated"],
)
def test_a_step_is_the_literal_iteration_of_the_papers(switches, tiny_settings):
    require_literal(changed(tiny_settings, **WEIGHTS, **switches))


@pytest.mark.parametrize("changes", [{}, {"cycle_style": "generated"}, ALL_OFF])
def test_a_step_of_preset_paper_is_the_literal_iteration_without_anything_of_ours(changes):
    require_literal(small_paper(**changes))


def test_alternating_steps_are_the_two_halves_of_the_literal_iteration(tiny_settings):
    settings = changed(tiny_settings, **WEIGHTS, alternate=True)
    require_literal(settings, (("latent",), ("reference",)))


@pytest.mark.parametrize("alternate", [False, True])
def test_gradients_are_computed_for_the_networks_that_learn_and_for_no_other(
    alternate, tiny_settings
):
    method = method_of(changed(tiny_settings, alternate=alternate))
    left = gradients_left_by(method)
    for step in (0, 1):
        method.training_step(batch_of(), step)
        assert left == set()
