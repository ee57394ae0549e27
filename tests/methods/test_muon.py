"""Muon: what it makes of kernels by hand, Adam for all else, and its state in a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attcl_cli.methods.muon import Muon, orthogonalised
from attcl_cli.training.state import optimiser_tensors, restore_optimisers


def with_gradient(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(shape))
    parameter.grad = torch.randn(shape)
    return parameter


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)])
def test_singular_values_become_about_1_and_directions_stay(shape):
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    inner = u.T @ found @ v.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)])
def test_collected_polynomials_are_the_published_iteration(shape):
    matrix = torch.randn(shape)
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    torch.testing.assert_close(orthogonalised(matrix).double(), x, rtol=1e-4, atol=1e-4)


def test_how_a_kernel_lies_in_memory_makes_no_difference():
    plain = with_gradient(16, 4, 3, 3)
    last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    last.grad = plain.grad.to(memory_format=torch.channels_last)
    for kernel in (plain, last):
        Muon([kernel], 0.01, (0.9, 0.99)).step()
    torch.testing.assert_close(plain.detach(), last.detach())


def test_a_kernel_moves_by_its_orthogonalised_momentum():
    kernel = with_gradient(16, 4, 3, 3)
    before, gradients = kernel.detach().clone(), [kernel.grad.clone(), torch.randn(16, 4, 3, 3)]
    muon = Muon([kernel], 0.01, (0.9, 0.99))
    momentum, expected = torch.zeros_like(before), before
    for gradient in gradients:
        kernel.grad = gradient
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * momentum
        step = orthogonalised(ahead.reshape(16, 36)).reshape(16, 4, 3, 3)
        expected = expected - 0.01 * 6 * step  # sqrt(36)
    torch.testing.assert_close(kernel.detach(), expected)


def test_a_step_has_about_the_root_mean_square_of_the_learning_rate():
    kernel = with_gradient(32, 16, 3, 3)
    before = kernel.detach().clone()
    Muon([kernel], 0.01, (0.9, 0.99)).step()
    assert (kernel.detach() - before).square().mean().sqrt() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("shape", [(5,), (16, 6), (1, 16, 1, 1)])
def test_all_else_moves_as_adam_does(shape):
    ours = with_gradient(*shape)
    theirs = copy.deepcopy(ours)
    muon = Muon([ours], 0.01, (0.9, 0.99))
    adam = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0)
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_weights_shrink_by_the_rate_times_the_decay():
    still = nn.Parameter(torch.ones(16, 4, 3, 3))
    still.grad = torch.zeros_like(still)
    without = nn.Parameter(torch.ones(3))
    Muon([still, without], 0.1, (0.9, 0.99), weight_decay=0.5).step()
    torch.testing.assert_close(still.detach(), torch.full_like(still, 0.95))
    assert torch.equal(without.detach(), torch.ones(3))  # no gradient: not looked at


def test_a_restored_optimiser_goes_on_as_if_nothing_had_been():
    def parameters() -> list[nn.Parameter]:
        torch.manual_seed(1)
        return [nn.Parameter(torch.randn(16, 4, 3, 3)), nn.Parameter(torch.randn(7))]

    def run(steps: range, at: list[nn.Parameter], muon: Muon) -> None:
        for step in steps:
            noise = torch.Generator().manual_seed(step)
            for parameter in at:
                parameter.grad = torch.randn(parameter.shape, generator=noise)
            muon.step()

    whole, first = parameters(), parameters()
    run(range(4), whole, Muon(whole, 0.01, (0.9, 0.99)))
    before = Muon(first, 0.01, (0.9, 0.99))
    run(range(2), first, before)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    after = Muon(second, 0.01, (0.9, 0.99))
    restore_optimisers({"a": after}, optimiser_tensors({"a": before}))
    run(range(2, 4), second, after)
    for one, other in zip(whole, second, strict=True):
        assert torch.equal(one, other)


def test_a_closure_gives_the_loss():
    parameter = nn.Parameter(torch.ones(3))
    muon = Muon([parameter], 0.1, (0.9, 0.99))

    def closure() -> float:
        muon.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return float(loss.detach())

    assert muon.step(closure) == 3.0
    assert (parameter < 1).all()
