"""The learning-rate schedule, by hand."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from attcl_cli.training.learning_rates import full_rates, rate_factor, set_rates


@pytest.mark.parametrize(
    ("decay", "factors"),
    [(0.0, [1, 1, 1, 1]), (0.5, [1, 1, 1, 1 / 2]), (1.0, [1, 3 / 4, 1 / 2, 1 / 4])],
)
def test_the_rate_falls_over_the_last_share_of_the_run(decay, factors):
    assert [rate_factor(step, steps=4, decay=decay) for step in range(4)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("decay", "factors"),
    [(0.0, [1 / 2, 1, 1, 1]), (0.5, [1 / 2, 1, 1, 1 / 2]), (1.0, [1 / 2, 3 / 4, 1 / 2, 1 / 4])],
)
def test_the_rate_first_rises_over_the_warm_up(decay, factors):
    found = [rate_factor(step, steps=4, decay=decay, warm_up=2) for step in range(4)]
    assert found == pytest.approx(factors)


def test_the_rate_begins_anew_at_every_restart():
    shares = (1 / 3, 2 / 3)
    found = [
        rate_factor(step, steps=12, decay=0.5, warm_up=2, restarts=shares) for step in range(12)
    ]
    assert found == pytest.approx([1 / 2, 1, 1, 1 / 2] * 3)


def test_stretches_between_restarts_may_be_unequal_by_a_step():
    found = [rate_factor(step, steps=5, decay=1.0, restarts=(1 / 3, 2 / 3)) for step in range(5)]
    assert found == pytest.approx([1, 1 / 2, 1, 1, 1 / 2])  # begin at 0, 2 and 3


def test_every_group_of_every_optimiser_is_set_to_its_share_of_the_full_rate():
    one, two, three = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimisers = {
        "a": SGD([{"params": [one]}, {"params": [two], "lr": 0.4}], lr=0.8),
        "b": SGD([three], lr=0.2),
    }
    full = full_rates(optimisers)
    assert full == {"a": [0.8, 0.4], "b": [0.2]}
    for factor in (0.5, 0.25):  # of the full rate, not of the last one
        set_rates(optimisers, full, factor)
        assert full_rates(optimisers) == {"a": [0.8 * factor, 0.4 * factor], "b": [0.2 * factor]}
