"""The exported dataset is what nnU-Net v2 reads: names, links, consecutive labels, regions; and its check is asked."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from segmenters import json_in, plan_of

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.data.splits import read_splits
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.segmentation import nnunet
from attcl_cli.segmentation.inputs import plan_inputs
from attcl_cli.segmentation.run_export import export

FOLDER = Path("Dataset501_completed")


def exported(study: SimpleNamespace, name: str = "completed") -> nnunet.Exported:
    """Export an input of the study into `FOLDER`."""
    plan = plan_of(study, name)
    return nnunet.export(
        plan.inputs[name], FOLDER, convention=plan.convention, ending=".nii.gz", workers=1
    )


def test_a_dataset_is_links_to_images_and_consecutive_labels(study):
    assert exported(study) == nnunet.Exported(train=3, test=1, linked=16, written=3)
    trained = [*study.splits.names("train"), *study.splits.names("val")]
    (test,) = study.splits.names("test")
    images = {path.name: path for path in (FOLDER / "imagesTr").iterdir()}
    assert set(images) == {f"{case}_{number:04d}.nii.gz" for case in trained for number in range(4)}
    assert {path.name for path in (FOLDER / "imagesTs").iterdir()} == {
        f"{test}_{number:04d}.nii.gz" for number in range(4)
    }
    hidden = study.splits.splits["train"][0].hidden
    for number, name in enumerate(("flair", "t1", "t1ce", "t2")):
        link = images[f"{trained[0]}_{number:04d}.nii.gz"]
        root = study.root / "out" if name in hidden else study.truth
        assert (
            link.is_symlink()
            and link.resolve() == root / trained[0] / f"{trained[0]}_{name}.nii.gz"
        )
    for case in trained:
        written = nib.load(FOLDER / "labelsTr" / f"{case}.nii.gz")
        truth = nib.load(study.truth / case / f"{case}_seg.nii.gz")
        labels, expected = np.asarray(written.dataobj), np.asarray(truth.dataobj)
        assert 4 in expected
        np.testing.assert_array_equal(labels, np.where(expected == 4, 3, expected))
        np.testing.assert_array_equal(written.affine, truth.affine)
    assert not (FOLDER / "labelsTs").exists()  # test labels stay where they are


def test_dataset_json_describes_channels_and_regions(study):
    exported(study)
    document = json_in(FOLDER / "dataset.json")
    assert document["channel_names"] == {"0": "flair", "1": "t1", "2": "t1ce", "3": "t2"}
    assert document["labels"] == {
        "background": 0,
        "whole tumour": [1, 2, 3],
        "tumour core": [1, 3],
        "enhancing tumour": [3],
    }
    assert (document["numTraining"], document["file_ending"]) == (3, ".nii.gz")
    # what nnU-Net writes: the value of the last region that holds a voxel, so oedema, core, enhancing give 2, 1, 3
    regions = [set(value) for name, value in document["labels"].items() if name != "background"]
    for label in (1, 2, 3):
        inside = [
            value
            for region, value in zip(regions, document["regions_class_order"], strict=True)
            if label in region
        ]
        assert inside[-1] == label
    assert json_in(FOLDER / "splits_final.json") == [
        {"train": list(study.splits.names("train")), "val": list(study.splits.names("val"))}
    ]


def test_labels_of_2023_are_linked_unless_their_header_differs(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(phantoms("brats2023"), whole)
    for number, path in enumerate(sorted(whole.glob("*/*-seg.nii.gz"))):
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        kind = np.float32 if number == 0 else np.uint8
        new = nib.Nifti1Image(np.where(labels == 4, 3, labels).astype(kind), image.affine)
        nib.save(new, path)
    Path("none.toml").write_text("hidden = [[]]")
    prepare_splits(whole, ratio="none.toml", sizes=(3, 0, 1), seed=1)
    data = open_dataset(tmp_path / "data")
    plan = plan_inputs(
        data, read_splits(data.root), ["flair"], completed=tmp_path, truth=None, size=None
    )
    nnunet.export(plan.inputs["flair"], FOLDER, convention=plan.convention, ending=".nii.gz")
    labels = sorted((FOLDER / "labelsTr").iterdir())
    floats = [path for path in labels if "00000" in path.name]
    assert all(path.is_symlink() for path in labels if path not in floats)
    assert not any(path.is_symlink() for path in floats)
    assert json_in(FOLDER / "dataset.json")["channel_names"] == {"0": "flair"}
    assert not (FOLDER / "splits_final.json").exists()


# --- single files ---


@pytest.fixture
def image(study: SimpleNamespace) -> Path:
    """A synthesised volume."""
    return next((study.root / "out").rglob("*.nii.gz"))


def test_files_of_another_ending_are_written_anew(image, tmp_path):
    plain = image.with_suffix("")
    nib.save(nib.load(image), plain)
    target = tmp_path / "link.nii.gz"
    assert not nnunet.place(plain, target, ".nii.gz")
    np.testing.assert_array_equal(
        np.asarray(nib.load(target).dataobj), np.asarray(nib.load(image).dataobj)
    )
    unpacked = tmp_path / "link.nii"
    assert not nnunet.place(image, unpacked, ".nii")
    assert unpacked.read_bytes() == plain.read_bytes()


def test_without_links_files_are_copied(image, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    target = tmp_path / "copy.nii.gz"
    assert not nnunet.place(image, target, ".nii.gz")
    assert target.read_bytes() == image.read_bytes() and not target.is_symlink()


def test_removing_an_export_leaves_what_its_links_lead_to(study):
    exported(study)
    listed = [path for path in FOLDER.rglob("*") if path.is_file()]
    (FOLDER / "notes.txt").touch()
    record = {"files": [str(path.relative_to(FOLDER)) for path in listed]}
    theirs = FOLDER / "imagesTr" / "theirs_0000.nii.gz"
    theirs.touch()
    with pytest.raises(UsageError, match="holds 1 file that attcl export did not write: imagesTr"):
        nnunet.remove(FOLDER, record)
    with pytest.raises(UsageError, match="in the record of an earlier version"):
        nnunet.remove(FOLDER, {})
    assert all(path.exists() for path in listed)
    theirs.unlink()
    nnunet.remove(FOLDER, record)
    assert [path.name for path in FOLDER.iterdir()] == ["notes.txt"]
    assert len(list((study.root / "out").rglob("*.nii.gz"))) > 0


# --- what nnU-Net refuses ---


def test_png_slices_and_missing_channels_are_refused(study):
    plan = plan_of(study, "flair", "incomplete")
    for name, ending, code in (
        ("flair", ".png", "nnunet-png-slices"),
        ("incomplete", ".nii.gz", "nnunet-channel-missing"),
    ):
        with pytest.raises(UsageError) as error:
            nnunet.export(plan.inputs[name], FOLDER, convention=plan.convention, ending=ending)
        assert error.value.code == code
    assert not FOLDER.exists()


@pytest.mark.parametrize(
    ("name", "fits"), [("Dataset001_x", True), ("Dataset1_x", False), ("here", False)]
)
def test_the_folder_is_named_as_nnunets_are(name, fits):
    if fits:
        nnunet.require_name(Path(name))
        return
    with pytest.raises(UsageError, match="DatasetNNN_Name") as error:
        nnunet.require_name(Path(name))
    assert error.value.code == "nnunet-folder-name"


def fake_nnunet(monkeypatch, check) -> None:
    """Stand in for nnU-Net, whose check prints."""
    names = ("nnunetv2", "nnunetv2.experiment_planning")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType(f"{names[1]}.verify_dataset_integrity")
    module.verify_dataset_integrity = check
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_nnunets_own_check_is_run_if_it_is_installed(monkeypatch, capsys, tmp_path):
    calls = []

    def good(folder: str, num_processes: int) -> None:
        calls.append((folder, num_processes))
        sys.stdout.write("checking\n")

    fake_nnunet(monkeypatch, good)
    assert nnunet.verify(tmp_path, workers=0)
    assert calls == [(str(tmp_path), 1)]
    assert capsys.readouterr() == ("", "checking\n")

    def bad(folder: str, num_processes: int) -> None:
        raise AssertionError("labels are not consecutive")

    fake_nnunet(monkeypatch, bad)
    with pytest.raises(AttclError, match="refused by nnU-Net") as error:
        nnunet.verify(tmp_path)
    assert error.value.code == "nnunet-refused"


@pytest.mark.slow
def test_the_real_nnunet_accepts_the_dataset(study):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    assert export("nnunet", FOLDER).checked
