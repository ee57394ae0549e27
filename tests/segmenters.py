"""What tests of segmentation share: a tiny segmenter's settings, plans, rows on disk, files that a test may spoil."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.labels import CONVENTIONS
from attcl_cli.segmentation import run, slices
from attcl_cli.segmentation.inputs import Size, StudyPlan, plan_inputs
from attcl_cli.segmentation.network import SegmenterInfo
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.segmentation.slices import Loaded, SegmentationStore

MODALITIES = ("flair", "t1", "t1ce", "t2")
# A network of some thousand weights on the shared phantoms, which are 40x40x26 voxels.
TINY = {
    "image_size": 40,
    "canvas": 40,
    "levels": 3,
    "width": 2,
    "batch_size": 2,
    "validate_every": 2,
    "steps": 2,
}
FLAGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
SIZE = Size(image=40, canvas=40)
BRATS_2021 = CONVENTIONS["2021"]


def plan_of(study: SimpleNamespace, *names: str, **changes: Any) -> StudyPlan:
    """Return the plan of some inputs."""
    options = {"completed": study.root / "out", "truth": open_dataset(study.truth), "size": SIZE}
    return plan_inputs(study.data, study.splits, names, **{**options, **changes})


def first_case(study: SimpleNamespace, name: str) -> Loaded:
    """Return the first training case as an input shows it."""
    sample = plan_of(study, name).inputs[name].splits["train"][0]
    return slices.load(sample, SIZE, BRATS_2021)


def info_of(packed: SegmentationStore, **changes: Any) -> SegmenterInfo:
    """Return what a small segmenter of the packed slices is."""
    values = {"image_size": 40, "canvas": 40, "levels": 3, "width": 4, "batch_size": 4}
    settings = SegmentSettings(**{**values, "learning_rate": 0.05, **changes})
    return SegmenterInfo(settings, "incomplete", MODALITIES, "2021", packed.cases)


def segment(**options: Any) -> run.SegmentResult:
    """Call `segment` of a tiny segmenter for two steps on a CPU."""
    overrides = {**TINY, **options.pop("overrides", {})}
    return run.segment(**{"device": "cpu", "overrides": overrides, **options})


def forced(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[bool]:
    """Return a list that each later plan of inputs of a module adds its `force` to."""
    seen: list[bool] = []

    def noting(*values: Any, **options: Any) -> StudyPlan:
        seen.append(options["force"])
        return plan_inputs(*values, **options)

    monkeypatch.setattr(module, "plan_inputs", noting)
    return seen


def rows_in(folder: Path) -> list[dict[str, str]]:
    """Return the lines of a folder's `segment.csv`."""
    with (folder / "segment.csv").open() as stream:
        return list(csv.DictReader(stream))


def json_in(path: Path) -> Any:
    """Return the JSON document in a file."""
    return json.loads(path.read_text())


def own_data(study: SimpleNamespace) -> Path:
    """Replace the links in data/ by files, so that a test may spoil them, and return it."""
    copy = study.root / "copy"
    shutil.copytree(study.root / "data", copy)  # follows links
    shutil.rmtree(study.root / "data")
    return copy.rename(study.root / "data")


def label_map(study: SimpleNamespace, part: str = "train") -> Path:
    """Return the label map of a split's first case, in data/."""
    case = study.splits.names(part)[0]
    return study.root / "data" / case / f"{case}_seg.nii.gz"


def the_test_case(study: SimpleNamespace) -> str:
    """Return the id of the test case."""
    return study.splits.names("test")[0]


def perfect_prediction(study: SimpleNamespace, folder: Path, *, values_of: str = "2021") -> Path:
    """Write the test case's true label map as a prediction, with the values of a release."""
    case = the_test_case(study)
    image = nib.load(study.truth / case / f"{case}_seg.nii.gz")
    labels = np.asarray(image.dataobj)
    if values_of == "2023":
        labels = np.where(labels == 4, 3, labels)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case}.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), image.affine), path)
    return path
