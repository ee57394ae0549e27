"""Validation during training gives the figure of `score`: equal of the same volumes, close of what it samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_settings

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom import make_case
from attcl_cli.data.slices import SliceStore, build
from attcl_cli.methods.sources import AnyOne
from attcl_cli.methods.weights import find_weights, load_method
from attcl_cli.scoring.run import score
from attcl_cli.training.stats import STATS_FILE
from attcl_cli.training.trainer import VALIDATION_SSIM, Hooks, train
from attcl_cli.training.validation import make_validation

CPU = torch.device("cpu")
SIDE = 64  # pixels


@pytest.fixture
def one(tmp_path: Path, write_nifti) -> Path:
    """A dataset of one phantom, in volumes as large as the slices that networks see, so that nothing is fitted."""
    root = tmp_path / "one"
    for modality, volume in make_case(0, seed=3, voxel_mm=8).images.items():
        rows, columns, slices = volume.shape
        whole = np.zeros((SIDE, SIDE, slices + 12), volume.dtype)
        whole[16 : 16 + rows, 16 : 16 + columns, 6:-6] = volume
        write_nifti(root / "Phantom_00000" / f"Phantom_00000_{modality}.nii.gz", whole)
    return root


def slices_of(root: Path, folder: Path, span) -> SliceStore:
    dataset = open_dataset(root)
    return build(dataset, dataset.cases, folder, image_size=SIDE, canvas=SIDE, span=span, workers=0)


def test_of_the_same_volumes_validation_gives_the_figure_of_score(one, tmp_path):
    middle = slices_of(one, tmp_path / "middle", "middle")
    rule = AnyOne(middle.modalities)
    settings = small_settings(image_size=SIDE, canvas=SIDE, steps=1)
    validate = make_validation(middle, rule, CPU)
    run = tmp_path / "run"
    run.mkdir()
    train(settings, middle, run, device=CPU, hooks=Hooks(validate=validate))
    during = [json.loads(line) for line in (run / STATS_FILE).read_text().splitlines()]
    (sampled,) = [line[VALIDATION_SSIM] for line in during if VALIDATION_SSIM in line]

    result = score(
        one, truth=one, output=tmp_path / "scores", metrics=["ssim"],
        directions=True, weights=run, device="cpu",
    )  # fmt: skip
    scored = result.figure("ssim").mean
    assert result.figure("ssim").n == 12

    weights = find_weights(str(run))
    whole = make_validation(slices_of(one, tmp_path / "all", "all"), rule, CPU, depth=None)
    assert whole(load_method(weights, CPU)) == pytest.approx(scored, abs=2e-3)
    # Blocks of the middle slices, each in a window of its own, instead of whole volumes.
    assert sampled == pytest.approx(scored, abs=0.1)
