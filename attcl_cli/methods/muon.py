"""Muon: the momentum of a kernel, made orthogonal, is the step (Jordan et al. 2024); all else moves as Adam does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

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
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if tall else matrix.float()
    x = x / (x.norm() + _EPS)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result


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
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if parameter.ndim == 4 and parameter.shape[0] > _LEAST_OUTPUTS:  # noqa: PLR2004 - (K, C, h, w)
                    _move_kernel(parameter, self.state[parameter], group["lr"])
                else:
                    _move_as_adam(parameter, self.state[parameter], group)
        return loss


def _move_kernel(kernel: Tensor, state: dict[str, Any], rate: float) -> None:
    gradient: Any = kernel.grad
    if not state:
        state["momentum"] = torch.zeros_like(kernel)
    state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
    ahead = gradient.lerp(state["momentum"], _MOMENTUM)
    matrix = ahead.flatten(1)
    direction = orthogonalised(matrix).view(kernel.shape).to(kernel.dtype)
    # All singular values near 1: the root mean square of an (M, N) matrix is then 1 / sqrt(max(M, N)).
    kernel.add_(direction, alpha=-rate * max(matrix.shape) ** 0.5)


def _move_as_adam(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    gradient: Any = parameter.grad
    first, second = group["betas"]
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    done = float(state["step"])
    state["exp_avg"].lerp_(gradient, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    spread = (state["exp_avg_sq"] / (1 - second**done)).sqrt_().add_(_EPS)
    parameter.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - first**done))
