"""What sample pictures and validation hand to a method: which slices, with how many neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from attcl_cli.methods.sources import AllPresent, AnyOne, Exactly, SourceRule
from attcl_cli.training.samples import sample_rows
from attcl_cli.training.validation import make_validation

CPU = torch.device("cpu")
FOUR = ("flair", "t1", "t1ce", "t2")


class Echo:
    """A method that returns its first source, without neighbours, and notes the shapes that it was given."""

    def __init__(self, rule: SourceRule, context: int = 0) -> None:
        self.rule, self.context = rule, context
        self.shapes: list[tuple[int, ...]] = []

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        return self.rule.sources_for(target, present)

    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str]
    ) -> dict[str, Tensor]:
        self.shapes += [tuple(image.shape) for image in sources.values()]
        middle = next(iter(sources.values()))[:, [self.context]]
        return dict.fromkeys(targets, middle)


@pytest.mark.parametrize("context", [0, 1])
def test_a_method_of_one_source_is_drawn_by_source_slice(context, store):
    method = Echo(AnyOne(FOUR), context)
    titles, rows = sample_rows(method, store, seed=0, device=CPU)
    assert titles == ["source", *(f"synthetic {name}" for name in FOUR)]
    assert [title.split()[1] for title, _ in rows] == list(FOUR)
    assert method.shapes == [(1, 1 + 2 * context, 16, 16)] * 4
    for _, images in rows:
        assert [image.shape for image in images] == [(16, 16)] * 5
        assert all(np.array_equal(image, images[0]) for image in images)


@pytest.mark.parametrize("context", [0, 1])
def test_a_method_of_several_sources_is_drawn_by_target_beside_the_truth(context, store):
    method = Echo(AllPresent(FOUR), context)
    titles, rows = sample_rows(method, store, seed=0, device=CPU)
    assert titles == [*(f"source {name}" for name in FOUR), "synthetic", "real"]
    assert [title.split()[1] for title, _ in rows] == list(FOUR)
    assert method.shapes == [(1, 1 + 2 * context, 16, 16)] * 12
    for index, (_, images) in enumerate(rows):
        assert [image.shape for image in images] == [(16, 16)] * 6
        assert (images[index] == -1).all()  # the target is no source of itself
        assert np.array_equal(images[4], images[0] if index else images[1])
        assert not np.array_equal(images[4], images[5])


def test_a_method_of_one_target_has_one_row(store):
    _, rows = sample_rows(Echo(Exactly({"t2": ("flair",)})), store, seed=0, device=CPU)
    assert [title.split()[1] for title, _ in rows] == ["t2"]


def test_the_seed_chooses_the_slices_of_all_pictures_of_a_run(store):
    one, again, other = (
        sample_rows(Echo(AnyOne(FOUR)), store, seed=seed, device=CPU)[1] for seed in (0, 0, 7)
    )
    assert [title for title, _ in one] == [title for title, _ in again]
    assert [title for title, _ in one] != [title for title, _ in other]


@pytest.mark.parametrize("rule", [AnyOne(FOUR), AllPresent(FOUR), Exactly({"t2": ("flair",)})])
@pytest.mark.parametrize("context", [0, 2])
def test_validation_hands_over_neighbours(context, rule, store):
    method = Echo(rule, context)
    score = make_validation(store, rule, CPU)
    assert score is not None
    assert -1 <= score(method) < 1
    assert {shape[1] for shape in method.shapes} == {1 + 2 * context}
