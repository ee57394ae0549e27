"""Muon: the momentum of a kernel, made orthogonal, is the step (Jordan et al. 2024); all else moves as Adam does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam

# The quintic iteration of Jordan et al. (2024, "Muon: An optimizer for hidden layers in neural networks"): five rounds
# bring singular values between about 0.7 and 1.2, which is as good as 1 for a step, and need products alone.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_MOMENTUM = 0.95  # theirs, with Nesterov's look ahead
_EPS = 1e-8
_LEAST_OUTPUTS = (
    8  # a kernel with as few maps into an image or a logit, and moves as Adam does, as they advise
)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return about U V^T of a matrix U S V^T: (M, N) -> (M, N), float32."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if tall else matrix.float()
    x = x / (x.norm() + _EPS)
    # Each round multiplies x by a polynomial of its x x^T. These have the size of the smaller side alone, so they are
    # collected, and x itself is multiplied once.
    a, b, c = _QUINTIC
    square = x @ x.T
    factor = None
    for last in range(_ROUNDS)[::-1]:
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        factor = polynomial if factor is None else factor @ polynomial
        if last:
            square = polynomial @ (square @ polynomial)
    result: Tensor = factor @ x
    return result.T if tall else result


class Muon(Optimizer):
    """Moves kernels by their orthogonalised momentum, and all other parameters by Adam.

    A kernel (K, C, h, w) counts as a matrix (K, C * h * w). Its step has the root mean square `lr` (Liu et al. 2025),
    as Adam's has about: one learning rate fits both. torch's own Muon takes matrices alone.

    Args:
        parameters: of a network.
        lr: the step.
        betas: Adam's decays.
        weight_decay: times lr, what every parameter shrinks by (decoupled).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [each for each in group["params"] if each.grad is not None]
            if moved and group["weight_decay"]:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            others = []
            for parameter in moved:
                if parameter.ndim == 4 and parameter.shape[0] > _LEAST_OUTPUTS:  # noqa: PLR2004 - (K, C, h, w)
                    _move_kernel(parameter, self.state[parameter], group["lr"])
                else:
                    others.append(parameter)
            self._move_as_adam(others, group)
        return loss

    def _move_as_adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move all of them at once: a GPU would wait for the calls of each."""
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        adam(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=_EPS,
            maximize=False,
        )


def _move_kernel(kernel: Tensor, state: dict[str, Any], rate: float) -> None:
    gradient: Any = kernel.grad
    if not state:
        state["momentum"] = torch.zeros_like(kernel)
    state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
    ahead = gradient.lerp(state["momentum"], _MOMENTUM)
    # As columns lie in memory: their order makes no difference to singular vectors, and a copy costs time.
    matrix = ahead.permute(0, 2, 3, 1).flatten(1)
    height, width = kernel.shape[2:]
    direction = orthogonalised(matrix).view(len(kernel), height, width, -1).permute(0, 3, 1, 2)
    # All singular values near 1: the root mean square of an (M, N) matrix is then 1 / sqrt(max(M, N)).
    kernel.add_(direction.to(kernel.dtype), alpha=-rate * max(matrix.shape) ** 0.5)
