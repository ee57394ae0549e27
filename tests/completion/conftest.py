"""What tests of completion share as fixtures: weights of both kinds of methods, a dataset that was completed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from completers import CPU, phantom_file
from helpers import small_settings

from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.slices import build
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import (
    WEIGHTS_FILE,
    Weights,
    WeightsInfo,
    find_weights,
    load_method,
    save_weights,
)
from attcl_cli.training.trainer import train


@pytest.fixture(scope="session")
def weights(trained_run: Path) -> Weights:
    """Weights of a method that takes one source."""
    return find_weights(str(trained_run))


@pytest.fixture(scope="session")
def method(weights: Weights) -> Method:
    """The method of `weights`."""
    return load_method(weights, CPU)


@pytest.fixture(scope="session")
def plave_settings() -> Settings:
    """Settings of a method that takes all sources."""
    return small_settings("plave", plave_blocks=1)


@pytest.fixture(scope="session")
def plave_store(
    phantom_root: Path, plave_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The training slices of the first three shared phantoms, with label maps."""
    dataset = open_dataset(phantom_root)
    folder = tmp_path_factory.mktemp("plave-slices")
    sizes = {"image_size": plave_settings.image_size, "canvas": plave_settings.canvas}
    return build(dataset, dataset.cases[:3], folder, **sizes, labels=True, workers=0)


@pytest.fixture(scope="session")
def runs(
    plave_settings: Settings, plave_store: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Finished runs: a general model, and one dedicated to t1ce, which needs all the others."""
    folders = {}
    for name, target in (("general", ""), ("dedicated", "t1ce")):
        folders[name] = tmp_path_factory.mktemp("plave") / name
        folders[name].mkdir()
        settings = plave_settings.model_copy(update={"plave_target": target})
        train(settings, plave_store, folders[name], device=CPU)
    return folders


@pytest.fixture(scope="session")
def dedicated(runs: dict[str, Path]) -> Weights:
    """Weights that make t1ce alone, and only from all the others."""
    return find_weights(str(runs["dedicated"]))


@pytest.fixture(scope="session")
def general(runs: dict[str, Path]) -> Weights:
    """Weights that make any modality from all that a case has."""
    return find_weights(str(runs["general"]))


@pytest.fixture(scope="session")
def other_weights(
    store: Any, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Weights:
    """Weights like `weights`, of another seed."""
    settings = tiny_settings.model_copy(update={"seed": 1, "steps": 1})
    run_dir = tmp_path_factory.mktemp("runs") / "other"
    run_dir.mkdir()
    train(settings, store, run_dir, device=CPU)
    return find_weights(str(run_dir))


@pytest.fixture(scope="session")
def narrow(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Untrained weights that know flair, t1 and t1ce alone: they make no t2, and look at none."""
    names = ("flair", "t1", "t1ce")
    torch.manual_seed(7)
    method = METHODS[tiny_settings.method](tiny_settings, names)
    size = tiny_settings.image_size
    method.remember_references({name: torch.zeros(1, 1, size, size) for name in names})
    info = WeightsInfo(
        settings=tiny_settings,
        modalities=names,
        scales=dict.fromkeys(names, Scale(0.0, 1000.0)),
        references={},
        trained_on=("Elsewhere_7",),
        steps=0,
    )
    path = tmp_path_factory.mktemp("runs") / "narrow" / WEIGHTS_FILE
    save_weights(path, method, info)
    return find_weights(str(path.parent))


@pytest.fixture
def finished(gappy: Any, weights: Weights, tmp_path: Path) -> Mapping[str, Path]:
    """Arguments of `complete` for a dataset that it has completed."""
    places = {"ori": gappy(), "cpl": tmp_path / "out", "weights": weights.path.parent}
    complete(**places, device="cpu")
    return places


@pytest.fixture
def one_bad(gappy: Any) -> Path:
    """An incomplete dataset whose case 1 cannot be read to its end."""
    root: Path = gappy()
    bad = root / phantom_file(1, "t2")
    bad.write_bytes(bad.read_bytes()[:-300])
    return root
