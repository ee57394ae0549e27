"""Label maps of every kind through segment, evaluate and export: cases without tumour, slopes, number types, axes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from segmenters import BRATS_2021, label_map, own_data, plan_of, rows_in, segment, the_test_case

from attcl_cli.data import volumes
from attcl_cli.segmentation import nnunet
from attcl_cli.segmentation.evaluation import score_predictions
from attcl_cli.segmentation.run_evaluate import evaluate

FOLDER = Path("Dataset501_flair")


def rewrite(path: Path, labels: np.ndarray, kind: str) -> None:
    """Store labels as another program would: `slope` is how nibabel saves floats under a header of integers."""
    affine = nib.load(path).affine
    if kind == "slope":
        image = nib.Nifti1Image(labels.astype(np.float64), affine)
        image.header.set_data_dtype(np.uint8)
    else:
        image = nib.Nifti1Image(labels.astype(kind), affine, dtype=kind)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)


def labels_in(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def all_label_maps(study: SimpleNamespace) -> list[Path]:
    return sorted((study.root / "data").glob("*/*_seg.nii.gz"))


# --- cases without tumour ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("train",), ("test",), ("train", "val", "test")], ids=str)
@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_cases_without_tumour_are_trained_on_and_scored(parts, kind, study):
    own_data(study)
    for part in parts:
        path = label_map(study, part)
        rewrite(path, np.zeros(nib.load(path).shape), kind)
    if len(parts) == 3:  # no case has a tumour
        for path in all_label_maps(study):
            rewrite(path, np.zeros(nib.load(path).shape), kind)
    segment(input="flair")
    rows = rows_in(study.root / "segment")
    dice = {row["region"]: row["value"] for row in rows if row["metric"] == "dice"}
    assert set(dice) == {"WT", "TC", "ET"}
    assert all(0 <= float(value) <= 1 for value in dice.values())


def test_an_empty_prediction_of_a_case_without_tumour_is_perfect(study):
    own_data(study)
    path, case = label_map(study, "test"), the_test_case(study)
    rewrite(path, np.zeros(nib.load(path).shape), "u1")
    (study.root / "theirs").mkdir()
    rewrite_to = study.root / "theirs" / f"{case}.nii.gz"
    nib.save(nib.load(path), rewrite_to)
    result = evaluate("theirs")
    values = {(row.metric, row.region): row.value for row in result.scores.rows}
    for region in ("WT", "TC", "ET"):
        assert values["dice", region] == 1
        assert values["hd95", region] == 0


def test_a_case_without_tumour_is_exported(study):
    own_data(study)
    path = label_map(study)
    rewrite(path, np.zeros(nib.load(path).shape), "u1")
    export_flair(study)
    assert not labels_in(FOLDER / "labelsTr" / path.name.replace("_seg", "")).any()


# --- number types -----------------------------------------------------------------------------------------------------


def export_flair(study: SimpleNamespace) -> nnunet.Exported:
    plan = plan_of(study, "flair")
    return nnunet.export(
        plan.inputs["flair"], FOLDER, convention=plan.convention, ending=".nii.gz", workers=0
    )


@pytest.mark.parametrize(
    ("kind", "linked"),
    [
        ("u1", True),
        ("i2", True),
        ("u4", True),
        ("i8", False),  # not every tool reads it
        ("f4", False),
        ("f8", False),
        ("slope", False),
    ],
)
def test_exported_labels_are_integers_whatever_they_were(kind, linked, study):
    """Maps of 2023 could be linked, as their values are those that nnU-Net wants; others are always written."""
    own_data(study)
    expected = {}
    for path in all_label_maps(study):
        labels = labels_in(path)
        expected[path.parent.name] = np.where(labels == 4, 3, labels)
        rewrite(path, expected[path.parent.name], kind)
    if kind == "slope":
        assert 1 not in nib.load(path).get_fdata()  # 1.0039 or so
    export_flair(study)
    files = sorted((FOLDER / "labelsTr").iterdir())
    assert len(files) == 3
    for file in files:
        image = nib.load(file)
        assert file.is_symlink() is linked
        assert image.get_data_dtype().kind in "iu"
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        assert np.array_equal(np.asarray(image.dataobj), expected[file.name.split(".")[0]])


@pytest.mark.parametrize("kind", ["f4", "i8", "slope"])
def test_a_prediction_of_any_type_is_scored_by_its_values(kind, study):
    case = the_test_case(study)
    sample = plan_of(study, "flair").inputs["flair"].splits["test"][0]
    path = study.root / f"{case}.nii.gz"
    nib.save(nib.load(sample.segmentation[0]), path)
    rewrite(path, labels_in(path), kind)
    rows = [row for rows in score_predictions({case: path}, [sample], BRATS_2021, name="theirs")
            for row in rows]  # fmt: skip
    assert {row.value for row in rows if row.metric == "dice"} == {1.0}


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_images_and_labels_are_exported_with_three_axes(more, study):
    own_data(study)
    for path in sorted((study.root / "data").glob("*/*.nii.gz")):
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(values.reshape(*values.shape, *more), image.affine), path)
    done = export_flair(study)
    assert done.linked == 0
    for file in sorted(FOLDER.glob("*/*.nii.gz")):
        assert len(nib.load(file).shape) == 3
    image = next((study.root / "data").glob("*/*_flair.nii.gz"))
    name = image.name.replace("_flair", "_0000")
    (copy,) = FOLDER.glob(f"images*/{name}")
    assert np.array_equal(volumes.load([copy]).data, volumes.load([image]).data)
