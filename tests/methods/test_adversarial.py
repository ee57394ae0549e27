"""The adversarial terms by hand, and the gradient penalty against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attcl_cli.methods.adversarial import adversarial_loss, gradient_penalty

LOGITS = torch.tensor([[-2.0, 0.5], [0.0, 3.0]])


def of_each(function) -> float:
    """Return the mean of a function of single logits."""
    return sum(function(value) for value in LOGITS.flatten().tolist()) / LOGITS.numel()


BY_HAND = {
    ("wgan", "real"): lambda x: -x,
    ("wgan", "fake"): lambda x: x,
    ("wgan", "fooled"): lambda x: -x,
    ("hinge", "real"): lambda x: max(0.0, 1 - x),
    ("hinge", "fake"): lambda x: max(0.0, 1 + x),
    ("hinge", "fooled"): lambda x: -x,
    ("lsgan", "real"): lambda x: (x - 1) ** 2,
    ("lsgan", "fake"): lambda x: x**2,
    ("lsgan", "fooled"): lambda x: (x - 1) ** 2,
}


@pytest.mark.parametrize(("kind", "judged"), BY_HAND, ids="-".join)
def test_a_term_is_the_mean_of_its_formula_over_all_logits(kind, judged):
    expected = of_each(BY_HAND[kind, judged])
    assert adversarial_loss(LOGITS, kind, judged).item() == pytest.approx(expected, rel=1e-6)


def test_terms_of_bfloat16_logits_are_float32():
    assert adversarial_loss(LOGITS.bfloat16(), "wgan", "real").dtype == torch.float32


# --- gradient penalty -------------------------------------------------------------------------------------------------


def slices(seed: int) -> Tensor:
    return torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_penalty_of_a_linear_critic_is_the_square_of_its_length_less_one():
    weight = torch.full((1, 4, 4), 0.75)  # length 3
    critic = lambda x: (weight * x).sum(dim=(1, 2, 3))  # noqa: E731
    assert gradient_penalty(critic, slices(1), slices(2), torch.rand(3)).item() == pytest.approx(4)


def test_the_logits_of_a_map_are_summed_up():
    critic = lambda x: 0.5 * x  # noqa: E731 - the gradient of the sum is 0.5 in each of 16 pixels: length 2
    assert gradient_penalty(critic, slices(1), slices(2), torch.rand(3)).item() == pytest.approx(1)


def test_the_penalty_is_taken_between_fake_and_real():
    real, fake, alpha = slices(1), slices(2), torch.tensor([0.0, 0.25, 1.0])
    half_square = lambda x: 0.5 * x.pow(2).sum(dim=(1, 2, 3))  # noqa: E731 - its gradient is x
    between = alpha[:, None, None, None] * real + (1 - alpha[:, None, None, None]) * fake
    expected = (between.flatten(1).norm(dim=1) - 1).pow(2).mean()
    penalty = gradient_penalty(half_square, real, fake, alpha)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_penalty_teaches_the_critic_and_not_the_generator():
    weight = torch.full((1, 4, 4), 0.75, requires_grad=True)
    fake = slices(2).requires_grad_()
    penalty = gradient_penalty(
        lambda x: (weight * x).sum(dim=(1, 2, 3)), slices(1), fake, torch.rand(3)
    )
    penalty.backward()
    # d (|w| - 1)^2 / d w = 2 (|w| - 1) w / |w|
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.full_like(weight, 2 * 2 * 0.75 / 3))
    assert fake.grad is None


def test_the_penalty_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 4, 3)
    arguments = (conv, slices(1), slices(2), torch.rand(3))
    x = slices(1).requires_grad_()
    (slope,) = torch.autograd.grad(conv(x).sum(), x)  # a convolution's is the same everywhere
    expected = (slope.flatten(1).norm(dim=1) - 1).pow(2).mean().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gradient_penalty(*arguments)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(expected, rel=1e-5)
