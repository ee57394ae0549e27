"""The exported dataset is what nnU-Net v2 reads: names, links, consecutive labels, regions; and its check is asked."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from attcl_cli.data import splits
from attcl_cli.errors import AttclError
from attcl_cli.segmentation import nnunet

NAME = "Dataset501_completed"


@pytest.fixture
def place(attcl, phantom_root, tmp_path, monkeypatch) -> SimpleNamespace:
    """data/ (2 cases to train on, 1 to validate, 1 to test) and a perfect out/."""
    monkeypatch.chdir(tmp_path)
    Path("ratio.toml").write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    assert (
        attcl("prepare-splits", phantom_root, "--ratio", "ratio.toml", "--sizes", "2/1/1")[0] == 0
    )
    made = splits.read_splits(Path("data"))
    for item in (item for items in made.splits.values() for item in items):
        for name in item.hidden:
            file = Path(item.case) / f"{item.case}_{name}.nii.gz"
            Path("out", item.case).mkdir(parents=True, exist_ok=True)
            shutil.copy(phantom_root / file, "out" / file)
    return SimpleNamespace(root=tmp_path, truth=phantom_root, splits=made, folder=tmp_path / NAME)


def test_a_dataset_is_links_to_images_and_consecutive_labels(attcl, place):
    code, out, err = attcl("segment", "--export", "nnunet", NAME)
    assert code == 0, err
    assert "3 training and 1 test cases, 16 files linked, 3 written" in out
    if importlib.util.find_spec("nnunetv2") is None:
        assert "nnU-Net is not installed" in err
    trained = [*place.splits.names("train"), *place.splits.names("val")]
    (test,) = place.splits.names("test")
    images = {path.name: path for path in (place.folder / "imagesTr").iterdir()}
    assert set(images) == {f"{case}_{number:04d}.nii.gz" for case in trained for number in range(4)}
    assert {path.name for path in (place.folder / "imagesTs").iterdir()} == {
        f"{test}_{number:04d}.nii.gz" for number in range(4)
    }
    hidden = place.splits.splits["train"][0].hidden
    for number, name in enumerate(("flair", "t1", "t1ce", "t2")):
        link = images[f"{trained[0]}_{number:04d}.nii.gz"]
        root = place.root / "out" if name in hidden else place.truth
        assert (
            link.is_symlink()
            and link.resolve() == root / trained[0] / f"{trained[0]}_{name}.nii.gz"
        )
    for case in trained:
        found = nib.load(place.folder / "labelsTr" / f"{case}.nii.gz")
        truth = nib.load(place.truth / case / f"{case}_seg.nii.gz")
        labels, wanted = np.asarray(found.dataobj), np.asarray(truth.dataobj)
        assert 4 in wanted
        np.testing.assert_array_equal(labels, np.where(wanted == 4, 3, wanted))
        np.testing.assert_array_equal(found.affine, truth.affine)
    assert not (place.folder / "labelsTs").exists()  # test labels stay where they are


def test_dataset_json_describes_channels_and_regions(attcl, place):
    assert attcl("segment", "--export", "nnunet", NAME, "-q")[0] == 0
    document = json.loads((place.folder / "dataset.json").read_text())
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
    fold = json.loads((place.folder / "splits_final.json").read_text())
    assert fold == [
        {"train": list(place.splits.names("train")), "val": list(place.splits.names("val"))}
    ]


def test_labels_of_2023_are_linked_unless_their_header_differs(attcl, place, phantoms):
    shutil.rmtree(place.root / "data")
    whole = place.root / "whole"
    shutil.copytree(phantoms("brats2023"), whole)
    for number, path in enumerate(sorted(whole.glob("*/*-seg.nii.gz"))):
        image = nib.load(path)
        labels = np.asarray(image.dataobj)
        kind = np.float32 if number == 0 else np.uint8
        new = nib.Nifti1Image(np.where(labels == 4, 3, labels).astype(kind), image.affine)
        nib.save(new, path)
    Path("none.toml").write_text("hidden = [[]]")
    assert (
        attcl("prepare-splits", whole, "--ratio", "none.toml", "--sizes", "3/0/1", "--seed", 1)[0]
        == 0
    )
    code, _, err = attcl("segment", "--export", "nnunet", NAME, "--input", "flair")
    assert code == 0, err
    labels = sorted((place.folder / "labelsTr").iterdir())
    floats = [path for path in labels if "00000" in path.name]
    assert all(path.is_symlink() for path in labels if path not in floats)
    assert not any(path.is_symlink() for path in floats)
    assert json.loads((place.folder / "dataset.json").read_text())["channel_names"] == {
        "0": "flair"
    }
    assert not (place.folder / "splits_final.json").exists()


def test_files_of_another_ending_are_written_anew(attcl, place):
    path = next(iter(Path("out").rglob("*.nii.gz")))
    plain = path.with_suffix("")
    nib.save(nib.load(path), plain)
    place_ = place.root / "link.nii.gz"
    assert not nnunet._place(plain, place_, ".nii.gz")
    np.testing.assert_array_equal(
        np.asarray(nib.load(place_).dataobj), np.asarray(nib.load(path).dataobj)
    )


def test_what_nnunet_cannot_take_is_refused(attcl, place):
    code, _, err = attcl("segment", "--export", "nnunet", "here")
    assert code == 2 and "DatasetNNN_Name" in err
    code, _, err = attcl("segment", "--export", "nnunet", NAME, "--input", "incomplete")
    assert code == 2 and "lacks a channel" in err
    code, _, err = attcl("segment", "--export", "nnunet", f"data/{NAME}")
    assert code == 2 and "lies inside" in err


def test_an_export_is_replaced_only_when_asked(attcl, place):
    assert attcl("segment", "--export", "nnunet", NAME, "-q")[0] == 0
    code, _, err = attcl("segment", "--export", "nnunet", NAME)
    assert code == 2 and "--overwrite" in err
    before = sorted(path.read_bytes() for path in Path("out").rglob("*.nii.gz"))
    code, _, err = attcl(
        "segment", "--export", "nnunet", NAME, "--overwrite", "--input", "flair", "-q"
    )
    assert code == 0, err
    assert len(list((place.folder / "imagesTr").iterdir())) == 3
    assert sorted(path.read_bytes() for path in Path("out").rglob("*.nii.gz")) == before
    code, out, _ = attcl("segment", "--export", "nnunet", "Dataset002_x", "-n")
    assert code == 0 and "would export completed" in out and not Path("Dataset002_x").exists()
    code, out, _ = attcl("segment", "--export", "nnunet", "Dataset003_x", "--json")
    assert json.loads(out)["train"] == 3


def fake_nnunet(monkeypatch, check) -> None:
    """Stands in for nnU-Net, whose check prints."""
    names = ("nnunetv2", "nnunetv2.experiment_planning")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType(f"{names[1]}.verify_dataset_integrity")
    module.verify_dataset_integrity = check
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_nnunets_own_check_is_asked_where_it_is_installed(monkeypatch, capsys, tmp_path):
    asked = []

    def good(folder: str, num_processes: int) -> None:
        asked.append((folder, num_processes))
        sys.stdout.write("checking\n")

    fake_nnunet(monkeypatch, good)
    assert nnunet.verify(tmp_path, workers=0)
    assert asked == [(str(tmp_path), 1)]
    assert capsys.readouterr() == ("", "checking\n")

    def bad(folder: str, num_processes: int) -> None:
        raise AssertionError("labels are not consecutive")

    fake_nnunet(monkeypatch, bad)
    with pytest.raises(AttclError, match="refused by nnU-Net"):
        nnunet.verify(tmp_path)


@pytest.mark.slow
def test_the_real_nnunet_accepts_the_dataset(attcl, place):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    assert attcl("segment", "--export", "nnunet", NAME, "-q")[0] == 0
    assert json.loads((place.folder / "run.json").read_text())["checked_by_nnunet"]


def test_where_links_are_forbidden_files_are_copied(place, monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = next(iter(Path("out").rglob("*.nii.gz")))
    target = tmp_path / "copy.nii.gz"
    assert not nnunet._place(path, target, ".nii.gz")
    assert target.read_bytes() == path.read_bytes() and not target.is_symlink()
