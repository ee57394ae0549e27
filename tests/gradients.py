"""Compare two training steps by the gradients of their updates.

Adam's first steps have the size of the learning rate whatever the gradient is: weights show its sign, gradients show
the weight of every loss.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

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
