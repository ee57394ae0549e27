"""Compare two training steps by the gradients of their updates.

Adam's first steps have the size of the learning rate whatever the gradient is: weights show its sign, gradients show
the weight of every loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from attcl_cli.methods.base import Method

Gradients = list[tuple[str, Tensor]]
"""Of each update: the network's name, and the gradients of all its weights in a row."""


def recorded(optimisers: Mapping[str, Optimizer]) -> Gradients:
    """Return a list that every later step of these optimisers (by network) adds its gradients to."""
    seen: Gradients = []
    for name, optimiser in optimisers.items():

        def note(optimiser: Optimizer, *_: object, name: str = name) -> None:
            weights = [one for group in optimiser.param_groups for one in group["params"]]
            every = [torch.zeros_like(one) if one.grad is None else one.grad for one in weights]
            seen.append((name, torch.cat([one.flatten() for one in every])))

        optimiser.register_step_pre_hook(note)
    return seen


def gradients_left_by(method: Method) -> set[str]:
    """Return a set that holds, at any time, the networks with gradients that they have not yet stepped with."""
    left: set[str] = set()
    for name, optimiser in method.optimisers().items():
        for parameter in method.networks()[name].parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: left.add(name))
        optimiser.register_step_post_hook(lambda *_, name=name: left.discard(name))
    return left


def require_equal(seen: Gradients, expected: Gradients, *, tolerance: float = 2e-5) -> None:
    """Check that the same networks stepped, in the same order, down the same gradients.

    Args:
        seen: of the method.
        expected: of the oracle; at least one update.
        tolerance: the largest length of a difference, in lengths of the expected gradient.
    """
    assert expected
    assert [name for name, _ in seen] == [name for name, _ in expected]
    for number, ((name, one), (_, other)) in enumerate(zip(seen, expected, strict=True)):
        assert (one - other).norm() <= tolerance * other.norm(), f"update {number}, {name}"
