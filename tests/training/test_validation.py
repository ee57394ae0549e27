"""Validation of methods of one source: SSIM in the brain on paired slices, by direction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from attcl_cli.data.slices import SliceStore
from attcl_cli.methods.sources import AnyOne
from attcl_cli.training.validation import CopyOfSource, make_validation

CPU = torch.device("cpu")


class Oracle:
    """A method that answers with the true slice of the store, worse by some noise; notes the directions."""

    context = 0

    def __init__(self, store: SliceStore, noise: float) -> None:
        self.noise = noise
        self.directions: list[tuple[str, str]] = []
        rows = torch.arange(len(store.data)).numpy()
        slices = store.read(rows)
        self.answers: dict[tuple[str, bytes], torch.Tensor] = {}
        starts = {(entry.case, entry.modality): entry for entry in store.entries}
        for (case, _), entry in starts.items():
            for target in store.modalities:
                other = starts.get((case, target))
                for index in range(entry.count) if other else ():
                    key = slices[entry.start + index].numpy().tobytes()
                    self.answers[target, key] = slices[other.start + index]

    def synthesise(
        self, sources: Mapping[str, torch.Tensor], targets: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        ((source, x),) = sources.items()
        self.directions += [(source, target) for target in targets]
        generator = torch.Generator().manual_seed(0)
        true = {
            name: torch.stack([self.answers[name, item.numpy().tobytes()] for item in x])
            for name in targets
        }
        return {
            name: image + self.noise * torch.randn(image.shape, generator=generator)
            for name, image in true.items()
        }


def test_the_truth_scores_1(store: SliceStore) -> None:
    score = make_validation(store, AnyOne(store.modalities), CPU)
    assert score is not None
    assert score(Oracle(store, 0.0)) == pytest.approx(1.0)


def test_noise_scores_less_and_more_noise_still_less(store: SliceStore) -> None:
    score = make_validation(store, AnyOne(store.modalities), CPU)
    assert score is not None
    little, much = score(Oracle(store, 0.1)), score(Oracle(store, 0.5))
    assert much < little < 1


def test_without_a_pair_there_is_nothing_to_validate_on(store: SliceStore) -> None:
    alone = replace(store, entries=store.entries[:1])
    assert make_validation(alone, AnyOne(store.modalities), CPU) is None


def test_every_direction_is_scored_once(store: SliceStore) -> None:
    oracle = Oracle(store, 0.0)
    score = make_validation(store, AnyOne(store.modalities), CPU)
    assert score is not None
    score(oracle)
    assert sorted(oracle.directions) == sorted(itertools.permutations(store.modalities, 2))


def test_the_seed_chooses_the_slices(store: SliceStore) -> None:
    rule = AnyOne(store.modalities)
    one, again, other = (make_validation(store, rule, CPU, seed=seed) for seed in (0, 0, 1))
    assert one is not None and again is not None and other is not None
    noisy = Oracle(store, 0.3)
    assert one(noisy) == again(noisy) != other(noisy)


class Dimmed(Oracle):
    """Answers with the truth at half the contrast."""

    def synthesise(
        self, sources: Mapping[str, torch.Tensor], targets: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        return {
            name: (image - 1) / 2 for name, image in super().synthesise(sources, targets).items()
        }


def test_a_synthesis_is_judged_in_its_own_window_as_score_does(store: SliceStore) -> None:
    score = make_validation(store, AnyOne(store.modalities), CPU)
    assert score is not None
    assert score(Dimmed(store, 0.0)) == pytest.approx(1.0, abs=1e-4)


class Copy:
    """Answers with the source; notes the sizes that it was shown."""

    context, stride = 0, 4

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def synthesise(
        self, sources: Mapping[str, torch.Tensor], targets: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        (x,) = sources.values()
        self.sizes.append(tuple(x.shape[2:]))
        return dict.fromkeys(targets, x)


def test_the_brain_s_box_alone_gives_the_same_figure_of_a_copy(store: SliceStore) -> None:
    whole, boxed = (
        make_validation(store, AnyOne(store.modalities), CPU, boxed=boxed)
        for boxed in (False, True)
    )
    assert whole is not None and boxed is not None
    copies = Copy(), Copy()
    # SSIM mirrors an image at its border, and the brain lies closer to that of the box.
    assert boxed(copies[1]) == pytest.approx(whole(copies[0]), abs=0.02)
    assert set(copies[0].sizes) == {(16, 16)}
    assert all(height % 4 == 0 and width % 4 == 0 for height, width in copies[1].sizes)
    assert any(height * width < 256 for height, width in copies[1].sizes)


def test_neighbouring_slices_are_no_brain_of_the_slice_itself(store: SliceStore) -> None:
    score = make_validation(store, AnyOne(store.modalities), CPU)
    assert score is not None
    alone, beside = (score(CopyOfSource(context, stride=4)) for context in (0, 1))
    assert beside == alone
