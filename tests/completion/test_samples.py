"""Several looks of a missing volume: their mean, and their standard deviation under a name of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attcl_cli.completion import plan as planning
from attcl_cli.completion import run as complete
from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.methods import weights as checkpoint


@pytest.fixture
def parts(incomplete_root: Path, trained_run: Path) -> tuple:
    weights = checkpoint.find_weights(str(trained_run))
    method = checkpoint.load_method(weights, torch.device("cpu"))
    return open_dataset(incomplete_root), weights, method


def make(parts: tuple, output: Path, **options: object) -> list[str]:
    dataset, weights, method = parts
    plan = planning.plan(dataset, output, weights, **options)
    ran = complete.run(plan, method, device=torch.device("cpu"))
    return [file for completed in ran for file in completed.outputs]


def load(output: Path, file: str) -> np.ndarray:
    return volumes.load([output / file]).data


def test_the_mean_of_samples_is_the_mean_of_each_drawn_alone(parts: tuple, tmp_path: Path) -> None:
    dataset, _, method = parts
    files = make(parts, tmp_path / "mean", samples=3)
    whole = method.synthesise
    single = []
    for number in range(3):
        # A method that answers every request with this one draw.
        method.synthesise = lambda sources, targets, *, sample, number=number: whole(
            sources, targets, sample=number
        )
        make(parts, tmp_path / str(number), samples=1)
        single.append(load(tmp_path / str(number), files[0]))
    method.synthesise = whole
    assert np.abs(load(tmp_path / "mean", files[0]) - np.mean(single, axis=0)).max() <= 1  # int16
    assert dataset.cases


def test_uncertainty_is_the_deviation_of_the_samples_and_no_layout_takes_it_for_an_image(
    parts: tuple, tmp_path: Path
) -> None:
    files = make(parts, tmp_path / "out", samples=4, uncertainty=True)
    maps = [file for file in files if "_uncertainty" in file]
    assert len(maps) == len(files) / 2
    found = volumes.load([tmp_path / "out" / maps[0]])
    assert found.grid.dtype == np.float32
    assert found.data.min() == 0
    assert found.data.max() > 0
    seen = open_dataset(tmp_path / "out")
    assert sum(len(case.files) for case in seen.cases) == len(maps)
    assert {str(path) for path in seen.ignored} == set(maps)


def test_the_same_command_again_makes_nothing(parts: tuple, tmp_path: Path) -> None:
    make(parts, tmp_path, samples=2, uncertainty=True)
    assert make(parts, tmp_path, samples=2, uncertainty=True) == []


def test_volumes_of_other_samples_are_not_taken_for_done(parts: tuple, tmp_path: Path) -> None:
    make(parts, tmp_path, samples=2)
    with pytest.raises(AttclError, match="made with --samples 2, expected 0"):
        make(parts, tmp_path)


def test_uncertainty_of_fewer_than_two_samples_is_refused(parts: tuple, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--uncertainty"):
        make(parts, tmp_path, samples=1, uncertainty=True)
