"""What tests of scores read and change: rows, figures, volumes."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from attcl_cli.scoring import feature_weights

HIDDEN = {  # what conftest's incomplete_root lacks
    ("Phantom_00000", "t2"),
    ("Phantom_00001", "t1"),
    ("Phantom_00001", "t1ce"),
    ("Phantom_00003", "t2"),
}


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Return the lines of `scores.csv`."""
    with (folder / "scores.csv").open() as stream:
        return list(csv.DictReader(stream))


def figures_of(folder: Path) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """Return (group, prediction, metric, region) -> figure of `summary.json`."""
    document = json.loads((folder / "summary.json").read_text())
    return {
        (item["group"], item["prediction"], item["metric"], item["region"]): item
        for item in document["scores"]
    }


def spoil(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a volume's numbers by `change(numbers)`."""
    image = nib.load(file)
    data = change(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(data.astype(np.int16), image.affine, image.header), file)


def stand_in(name: str, state: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save other weights in the place of one of `feature_weights.FILES`, and let its record describe them."""
    path = folder / feature_weights.FILES[name].name
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = replace(feature_weights.FILES[name], size_bytes=path.stat().st_size, sha256=digest)
    monkeypatch.setitem(feature_weights.FILES, name, record)
    return path


def first_completed(folders: SimpleNamespace) -> Path:
    """Return the completed t2 of the first case."""
    return folders.cpl / "Phantom_00000" / "Phantom_00000_t2.nii.gz"
