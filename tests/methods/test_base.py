"""What the base class does for every method: networks, optimisers, and an update over the parts of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import small_settings
from torch import Tensor, nn

from attcl_cli.methods.base import Losses, Method, Runtime
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import AnyOne


@dataclass(frozen=True)
class Numbers:
    """A batch of numbers."""

    x: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Numbers:
        return Numbers(self.x.to(device))

    def part(self, chosen: slice) -> Numbers:
        return Numbers(self.x[chosen])


class Line(Method):
    """y = w x, and another network that has nothing to do with it."""

    inference = ("slope",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, ("a", "b"))
        self.slope = nn.Linear(1, 1, bias=False)
        self.other = nn.Linear(1, 1)
        self.nothing = nn.Identity()
        with torch.no_grad():
            self.slope.weight.fill_(2.0)

    @classmethod
    def sources(cls, settings: Any, modalities: Any) -> AnyOne:
        return AnyOne(tuple(modalities))

    def sampler(self, store: Any) -> Any:
        raise AssertionError("not drawn from here")

    def training_step(self, batch: Any, step: int) -> dict[str, Tensor]:
        raise AssertionError("not trained here")

    def synthesise(self, sources: Any, targets: Any, *, sample: int | None = None) -> Any:
        raise AssertionError("not asked here")

    def losses(self, part: Numbers) -> Losses:
        y = self.slope(part.x[:, None])
        return {"mean": (3.0, y.mean()), "away": (-1.0, y.square().mean())}


@pytest.fixture
def line() -> Line:
    return Line(Settings(**small_settings("plave").model_dump(include=set(Settings.model_fields))))


BATCH = Numbers(torch.tensor([1.0, 2.0, 3.0, 6.0]))


def test_a_method_that_leaves_out_what_it_must_say_cannot_be_made():
    class Half(Method):
        """Says only what it is made from."""

        @classmethod
        def sources(cls, settings: Any, modalities: Any) -> AnyOne:
            return AnyOne(tuple(modalities))

    with pytest.raises(TypeError, match=r"abstract.*sampler.*synthesise.*training_step"):
        Half(small_settings("plave"), ("a", "b"))


def test_networks_are_the_children_and_those_for_completion_are_named(line):
    assert list(line.networks()) == ["slope", "other", "nothing"]
    assert list(line.inference_networks()) == ["slope"]
    line.inference = ()
    assert list(line.inference_networks()) == ["slope", "other", "nothing"]


def test_every_network_with_weights_has_an_optimiser_of_the_settings(line):
    optimisers = line.optimisers()
    assert list(optimisers) == ["slope", "other"]
    s = line.settings
    group = optimisers["slope"].param_groups[0]
    assert group["lr"] == s.learning_rate
    assert (group["betas"], group["weight_decay"]) == ((s.beta1, s.beta2), s.weight_decay)
    assert line.optimisers() is optimisers


@pytest.mark.parametrize(("size", "lengths"), [(0, [4]), (1, [1, 1, 1, 1]), (3, [3, 1]), (9, [4])])
def test_a_batch_is_taken_in_parts_of_micro_batch(size, lengths, line):
    line.runtime = Runtime(micro_batch=size)
    parts = line.parts(BATCH)
    assert [len(part) for part in parts] == lengths
    assert torch.cat([part.x for part in parts]).equal(BATCH.x)


def test_an_update_returns_unweighted_losses_by_path_and_name(line):
    logged = line.update(line.parts(BATCH), ["slope"], line.losses, path="g")
    # y = 2 x: mean 2 * 3, mean square 4 * 50 / 4
    assert {name: value.item() for name, value in logged.items()} == {"g_mean": 6.0, "g_away": 50.0}
    assert not any(value.requires_grad for value in logged.values())


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_update_descends_the_weighted_sum_whatever_the_parts(size, line):
    line.runtime = Runtime(micro_batch=size)
    line.update(line.parts(BATCH), ["slope"], line.losses, path="g")
    # d/dw of 3 w mean(x) - w^2 mean(x^2) at w = 2: 3 * 3 - 2 * 2 * 12.5
    assert line.slope.weight.grad.item() == pytest.approx(-41.0)
    assert line.slope.weight.item() == pytest.approx(2.0 + line.settings.learning_rate, rel=1e-5)


def test_an_update_moves_the_named_networks_alone_and_passes_over_one_without_weights(line):
    before = line.other.weight.clone()
    line.update(line.parts(BATCH), ["slope", "nothing"], line.losses, path="g")
    assert torch.equal(line.other.weight, before)
    assert line.slope.weight.item() != 2.0


def test_gradients_are_averaged_over_processes_before_the_step(line):
    seen: list[float] = []

    @contextmanager
    def averaging(parameters: Any) -> Iterator[None]:
        yield
        seen.extend(parameter.grad.item() for parameter in parameters)
        for parameter in parameters:
            parameter.grad.neg_()

    line.runtime = Runtime(averaging=averaging)
    line.update(line.parts(BATCH), ["slope"], line.losses, path="g")
    assert seen == pytest.approx([-41.0])
    assert line.slope.weight.item() < 2.0


def test_an_update_forgets_the_gradients_of_the_one_before(line):
    for _ in range(2):
        line.update(line.parts(BATCH), ["slope"], line.losses, path="g")
    weight = 2.0 + line.settings.learning_rate
    assert line.slope.weight.grad.item() == pytest.approx(9 - 2 * weight * 12.5, rel=1e-4)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_networks_are_called_in_the_precision_of_the_run(precision, dtype, line):
    line.runtime = Runtime(precision=precision)
    seen: list[torch.dtype] = []
    line.slope.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    logged = line.update(line.parts(BATCH), ["slope"], line.losses, path="g")
    assert seen == [dtype]
    assert {value.dtype for value in logged.values()} == {torch.float32}


def test_a_process_has_its_share_of_a_batch():
    shares = [Runtime(rank=rank, processes=3).share(6) for rank in range(3)]
    assert shares == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_defaults_ask_for_nothing(line):
    line.remember_references({})
    assert (line.stride, line.context, line.styled, line.learns_labels) == (1, 0, False, False)
    assert line.references == {}
    assert line.learning_rate_of("slope") == line.settings.learning_rate
