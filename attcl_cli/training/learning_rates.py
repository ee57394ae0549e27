"""The learning-rate schedule of all training loops: a function of (settings, step), so a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.optim import Optimizer


def rate_factor(
    step: int, *, steps: int, decay: float, warm_up: int = 0, restarts: Sequence[float] = ()
) -> float:
    """Return what the learning rates of a step are multiplied by.

    Over the first `warm_up` steps it rises to 1; over the last `decay * steps` steps it falls on a line that reaches 0
    with the step after the last. Where both are at work, they multiply.

    Args:
        step: from 0.
        steps: of the whole run.
        decay: share of the steps over which the rates fall; 0: they do not.
        warm_up: steps over which they rise.
        restarts: rising shares of the steps; from each to the next the rates go as in a run of these steps alone.
    """
    begins = [0, *(round(share * steps) for share in restarts)]
    ends = [*begins[1:], steps]
    begin, end = next(
        (one, two) for one, two in zip(reversed(begins), reversed(ends), strict=True) if one <= step
    )
    step, steps = step - begin, end - begin
    risen = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    return risen * (min(1.0, (steps - step) / (decay * steps)) if decay else 1.0)


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
