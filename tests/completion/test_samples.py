"""Several style samples of a missing volume: their mean, and their standard deviation under a name of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from completers import Untrained, completed, content

from attcl_cli.completion.jobs import uncertainty_file
from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.errors import AttclError
from attcl_cli.methods.base import Method


class OneSample(Untrained):
    """Another method that answers every request with the same sample."""

    def __init__(self, method: Method, number: int) -> None:
        super().__init__(method.settings, method.modalities)
        self.method, self.number = method, number

    @classmethod
    def sources(cls, settings, modalities):
        from attcl_cli.methods.attcl_gan import AttclGan

        return AttclGan.sources(settings, modalities)

    @property
    def stride(self):
        return self.method.stride

    def synthesise(self, sources, targets, *, sample=None):
        assert sample is not None
        return self.method.synthesise(sources, targets, sample=self.number)


def make(root: Path, output: Path, *models, **options) -> list[str]:
    """Complete, and return the files that were written."""
    return [file for item in completed(root, output, *models, **options) for file in item.outputs]


def load(output: Path, file: str) -> np.ndarray:
    return volumes.load([output / file]).data


def test_the_mean_of_samples_is_the_mean_of_each_drawn_alone(
    incomplete_root, weights, method, tmp_path
):
    files = make(incomplete_root, tmp_path / "mean", weights, samples=3)
    single = []
    for number in range(3):
        methods = {weights.sha256: OneSample(method, number)}
        make(incomplete_root, tmp_path / str(number), weights, methods=methods, samples=1)
        single.append(load(tmp_path / str(number), files[0]))
    assert not np.array_equal(single[0], single[1])
    assert np.abs(load(tmp_path / "mean", files[0]) - np.mean(single, axis=0)).max() <= 1  # int16


def test_uncertainty_is_the_deviation_of_the_samples(incomplete_root, weights, method, tmp_path):
    root = incomplete_root
    files = make(root, tmp_path / "out", weights, samples=3, uncertainty=True)
    single = []
    for number in range(3):
        methods = {weights.sha256: OneSample(method, number)}
        make(root, tmp_path / str(number), weights, methods=methods, samples=1)
        single.append(load(tmp_path / str(number), "Phantom_00000/Phantom_00000_t2.nii.gz"))
    deviation = volumes.load([tmp_path / "out/Phantom_00000/Phantom_00000_t2_uncertainty.nii.gz"])
    assert "Phantom_00000/Phantom_00000_t2_uncertainty.nii.gz" in files
    assert deviation.grid.dtype == np.float32
    assert np.abs(deviation.data - np.std(single, axis=0, ddof=1)).max() <= 1  # int16
    assert deviation.data.max() > 2


def test_no_layout_takes_an_uncertainty_for_an_image(incomplete_root, weights, tmp_path):
    files = make(incomplete_root, tmp_path / "out", weights, samples=4, uncertainty=True)
    maps = [file for file in files if "_uncertainty" in file]
    assert len(maps) == len(files) / 2
    seen = open_dataset(tmp_path / "out")
    assert sum(len(case.files) for case in seen.cases) == len(maps)
    assert {str(path) for path in seen.ignored} == set(maps)


@pytest.mark.parametrize("layout", ["brats", "brats2023", "bids"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_uncertainty_keeps_the_name_and_the_ending_of_its_volume(layout, ending):
    file = LAYOUTS[layout].place(case="sub-1", token="t1", prefix="sub-1/", extension=ending)
    assert str(uncertainty_file(file)) == str(file).replace(ending, f"_uncertainty{ending}")


def test_the_same_command_again_makes_nothing(incomplete_root, weights, tmp_path):
    options = {"samples": 2, "uncertainty": True}
    assert len(make(incomplete_root, tmp_path / "out", weights, **options)) == 8
    assert make(incomplete_root, tmp_path / "out", weights, **options) == []


def test_volumes_of_other_samples_are_not_taken_for_done(incomplete_root, weights, tmp_path):
    make(incomplete_root, tmp_path / "out", weights, samples=2)
    with pytest.raises(AttclError, match="made with --samples 2, expected 0") as caught:
        make(incomplete_root, tmp_path / "out", weights)
    assert caught.value.code == "made-in-another-way"


def test_an_uncertainty_that_was_removed_is_made_again_with_its_volume(gappy, weights, tmp_path):
    root, output = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    options = {"samples": 2, "uncertainty": True}
    files = make(root, output, weights, **options)
    before = content(output)
    (lost,) = [file for file in files if "_uncertainty" in file]
    (output / lost).unlink()
    assert make(root, output, weights, **options) == files
    assert content(output) == before
    assert make(root, output, weights, **options) == []


def test_other_weights_leave_no_deviation_of_the_ones_before(
    incomplete_root, weights, other_weights, tmp_path
):
    out = tmp_path / "out"
    make(incomplete_root, out, weights, samples=3, uncertainty=True)
    assert list(out.rglob("*_uncertainty.nii.gz"))
    make(incomplete_root, out, other_weights, overwrite=True)
    assert not list(out.rglob("*_uncertainty.nii.gz"))
