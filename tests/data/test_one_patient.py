"""Files that lie in one folder: of one patient, or of several; names that only fit if nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError


def opened(root: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the layout, and case -> its modalities, of a dataset without problems."""
    dataset = open_dataset(root)
    assert dataset.problems == () and dataset.ignored == ()
    return dataset.layout.name, {case.id: [*case.files] for case in dataset.cases}


FOUR = ["flair", "t1", "t1ce", "t2"]


@pytest.mark.parametrize(("layout", "name"), [("brats", "flat"), ("brats2023", "flat2023")])
def test_the_folder_of_one_patient_is_a_dataset(phantoms, layout, name):
    folder = next(path for path in sorted(phantoms(layout).iterdir()) if path.is_dir())
    assert opened(folder) == (name, {folder.name: FOUR})
    assert open_dataset(folder).cases[0].segmentation


def test_a_new_file_lies_beside_the_others(phantom_root):
    dataset = open_dataset(phantom_root / "Phantom_00000")
    (case,) = dataset.cases
    (place,) = dataset.place(case, "t2")
    assert str(place) == "Phantom_00000_t2.nii.gz"


def test_files_of_several_patients_may_lie_in_one_folder(phantom_root, tmp_path):
    for path in phantom_root.glob("*/*.nii.gz"):
        if path.parent.name in {"Phantom_00000", "Phantom_00001"}:
            shutil.copy(path, tmp_path)
    assert opened(tmp_path) == ("flat", {"Phantom_00000": FOUR, "Phantom_00001": FOUR})


def test_files_named_as_modalities_belong_to_the_patient_of_their_folder(phantom_root, tmp_path):
    folder = tmp_path / "pat 7"
    folder.mkdir()
    for name, token in (("t1", "T1"), ("flair", "FLAIR"), ("seg", "seg")):
        source = phantom_root / f"Phantom_00000/Phantom_00000_{name}.nii.gz"
        shutil.copy(source, folder / f"{token}.nii.gz")
    assert opened(folder) == ("patient", {"pat 7": ["flair", "t1"]})
    dataset = open_dataset(folder)
    assert [str(path) for path in dataset.place(dataset.cases[0], "t2")] == ["t2.nii.gz"]


def test_such_names_are_not_looked_for_beside_others(incomplete_root):
    """A file of the flat layout beside folders of patients is told of, not taken for a patient of its own."""
    stray = incomplete_root / "Other_t1.nii.gz"
    shutil.copy(incomplete_root / "Phantom_00000/Phantom_00000_t1.nii.gz", stray)
    dataset = open_dataset(incomplete_root)
    assert dataset.layout.name == "brats"
    assert [case.id for case in dataset.cases] == [f"Phantom_{n:05d}" for n in range(4)]
    assert any("Other_t1.nii.gz" in problem.message for problem in dataset.problems)


def test_names_of_bids_are_not_read_without_their_folders(tmp_path, phantom_root):
    source = phantom_root / "Phantom_00000/Phantom_00000_t1.nii.gz"
    shutil.copy(source, tmp_path / "sub-01_ce-gadolinium_T1w.nii.gz")
    with pytest.raises(AttclError, match="unknown folder layout"):
        open_dataset(tmp_path)


def test_one_patient_is_completed_with_i_and_o(phantom_root, tmp_path, attcl, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Phantom_00000"
    shutil.copytree(phantom_root / folder.name, folder)
    (folder / "Phantom_00000_t2.nii.gz").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, _ = attcl("complete", "-i", folder, "-o", "out", "-w", "phantom-tiny", "-d", "cpu")
    page = "out/report.html: open it in a browser\n"
    assert (code, out) == (0, f"out: 1 volume written, 0 were there already\n{page}")
    made = sorted(path.name for path in Path("out").iterdir())
    assert {"Phantom_00000_t2.json", "Phantom_00000_t2.nii.gz", "run.json"} <= set(made)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
