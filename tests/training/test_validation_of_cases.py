"""Validation of methods of many sources: which targets, from which modalities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attcl_cli.data.slices import Entry, SliceStore
from attcl_cli.methods.sources import AllPresent, Exactly
from attcl_cli.training.validation import make_validation

CPU = torch.device("cpu")
FOUR = ("flair", "t1", "t1ce", "t2")


class Oracle:
    """Answers with the true slice, which it finds by its sources; notes what it was asked for."""

    context = 0

    def __init__(self, store: SliceStore, noise: float = 0.0) -> None:
        self.noise, self.asked = noise, []
        starts = {(entry.case, entry.modality): entry for entry in store.entries}
        slices = store.read(np.arange(len(store.data)))
        self.answers = {}
        for (case, _), entry in starts.items():
            for target in store.modalities:
                for index in range(entry.count):
                    key = slices[entry.start + index].numpy().tobytes()
                    self.answers[target, key] = slices[starts[case, target].start + index]

    def synthesise(self, sources, targets):
        (target,) = targets
        self.asked.append((tuple(sources), target))
        keys = [item.numpy().tobytes() for item in next(iter(sources.values()))]
        true = torch.stack([self.answers[target, key] for key in keys])
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
        return {target: true + self.noise * noise}


def test_a_target_is_made_from_all_other_modalities(store):
    score = make_validation(store, AllPresent(FOUR), CPU)
    oracle = Oracle(store)
    assert score(oracle) == pytest.approx(1.0)
    assert set(oracle.asked) == {
        (tuple(name for name in FOUR if name != target), target) for target in FOUR
    }
    assert score(Oracle(store, 0.5)) < score(Oracle(store, 0.1)) < 1


def test_a_dedicated_model_is_asked_for_its_target_alone(store):
    oracle = Oracle(store)
    make_validation(store, Exactly({"t1ce": ("flair", "t1", "t2")}), CPU)(oracle)
    assert {target for _, target in oracle.asked} == {"t1ce"}


def test_without_a_case_that_allows_it_there_is_nothing_to_validate_on():
    alone = SliceStore(
        data=np.zeros((5, 2, 2), dtype=np.int16),
        entries=(Entry("A", "t1", 0, 5, 2),),
        filled=np.ones(5, dtype=bool),
        modalities=FOUR,
        scales={},
        trained_on=("A",),
    )
    assert make_validation(alone, AllPresent(FOUR), CPU) is None
