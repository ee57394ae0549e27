"""The learning-rate schedule of all training loops: a function of (settings, step), so a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Mapping

from torch.optim import Optimizer


def rate_factor(step: int, *, steps: int, decay: float) -> float:
    """Return what the learning rates of a step are multiplied by.

    It is 1 first; over the last `decay * steps` steps it falls on a line that reaches 0 with the step after the last.

    Args:
        step: from 0.
        steps: of the whole run.
        decay: share of the steps over which the rates fall; 0: constant rates.
    """
    return min(1.0, (steps - step) / (decay * steps)) if decay else 1.0


def full_rates(optimisers: Mapping[str, Optimizer]) -> dict[str, list[float]]:
    """Return the learning rates that the optimisers were made with: name -> one per parameter group."""
    return {
        name: [group["lr"] for group in optimiser.param_groups]
        for name, optimiser in optimisers.items()
    }


def set_rates(
    optimisers: Mapping[str, Optimizer], full: Mapping[str, list[float]], factor: float
) -> None:
    """Set every learning rate to `factor` times the full one (`full_rates`)."""
    for name, optimiser in optimisers.items():
        for group, rate in zip(optimiser.param_groups, full[name], strict=True):
            group["lr"] = rate * factor
