"""`complete` never makes a volume in the place of one that is there under another name, unless it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest

from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, ProblemsError

CASE = "Phantom_00000"
T1 = f"{CASE}/{CASE}_t1.nii.gz"


def as_pair(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Pair(image.get_fdata(), image.affine), path.with_name(f"{CASE}_t1.img"))
    path.unlink()


def as_folder(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / "scan.nii.gz").write_bytes(data)


def as_broken_link(path: Path) -> None:
    path.unlink()
    path.with_name(f"{CASE}_t1.mha").symlink_to("gone")


def named(name: str) -> Callable[[Path], None]:
    return lambda path: path.rename(path.with_name(name))


HIDDEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "pair": (as_pair, f"{CASE}_t1.hdr"),
    "folder": (as_folder, f"{CASE}_t1.nii.gz"),
    "broken link": (as_broken_link, f"{CASE}_t1.mha"),
    "MetaImage": (named(f"{CASE}_t1.mha"), f"{CASE}_t1.mha"),
    "DICOM": (named("t1.dcm"), CASE),
    "letter case": (named(f"{CASE.lower()}_t1.nii.gz"), f"{CASE.lower()}_t1.nii.gz"),
    "another word": (named(f"{CASE}_t1_n4.nii.gz"), f"{CASE}_t1_n4.nii.gz"),
}


@pytest.fixture
def hidden(phantom_root, tmp_path) -> Callable[[str], Path]:
    """`hidden(kind)` is a dataset whose first case has its T1 in a form that is not read; the second lacks T2."""

    def make(kind: str) -> Path:
        root = tmp_path / "hidden"
        shutil.copytree(phantom_root, root)
        HIDDEN[kind][0](root / T1)
        (root / "Phantom_00001/Phantom_00001_t2.nii.gz").unlink()
        return root

    return make


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", HIDDEN)
def test_nothing_is_made_in_the_place_of_a_file_that_is_not_read(
    kind, force, hidden, weights, tmp_path
):
    root = hidden(kind)
    with pytest.raises(AttclError) as caught:
        complete(root, tmp_path / "out", weights=weights.path, device="cpu", force=force)
    assert caught.value.code == "volume-not-read"
    assert f"{HIDDEN[kind][1]}: looks like t1 of {CASE}" in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["flar", "flaiir", "FLIAR"])
def test_no_flair_is_planned_in_the_place_of_a_misspelt_one(name, phantom_root, weights, tmp_path):
    root = tmp_path / "misspelt"
    shutil.copytree(phantom_root, root)
    (root / f"{CASE}/{CASE}_flair.nii.gz").rename(root / f"{CASE}/{CASE}_{name}.nii.gz")
    with pytest.raises(AttclError) as caught:
        complete(root, tmp_path / "out", weights=weights.path, device="cpu", dry_run=True)
    assert caught.value.code == "volume-not-read"
    assert f"{CASE}_{name}.nii.gz: looks like flair of {CASE}" in caught.value.message


def test_the_other_cases_are_done_if_asked(hidden, weights, tmp_path):
    root, out = hidden("MetaImage"), tmp_path / "out"
    result = complete(root, out, weights=weights.path, device="cpu", keep_going=True)
    assert {case: error.code for case, error in result.failed} == {CASE: "volume-not-read"}
    assert sorted(path.name for path in out.rglob("*.nii.gz")) == ["Phantom_00001_t2.nii.gz"]


def test_a_volume_is_made_if_the_user_leaves_the_file_out(hidden, weights, tmp_path):
    root, out = hidden("MetaImage"), tmp_path / "out"
    (tmp_path / "v.toml").write_text("ignore = ['*.mha']\n")
    complete(root, out, weights=weights.path, device="cpu", modalities=tmp_path / "v.toml")
    assert (out / T1).is_file()


def test_a_patient_that_is_not_read_is_named_before_anything_is_made(
    phantom_root, weights, tmp_path
):
    root = tmp_path / "two"
    shutil.copytree(phantom_root, root)
    (root / "Phantom_00001/Phantom_00001_t2.nii.gz").unlink()
    (root / "sub-01" / "anat").mkdir(parents=True)
    (root / "sub-01/anat/sub-01_T1w.nii.gz").symlink_to(phantom_root / T1)
    with pytest.raises(AttclError) as caught:
        complete(root, tmp_path / "out", weights=weights.path, device="cpu")
    assert caught.value.code == "case-not-read"
    assert "sub-01_T1w.nii.gz" in caught.value.message


def test_a_volume_in_capitals_is_read(phantom_root, weights, tmp_path):
    root, out = tmp_path / "capitals", tmp_path / "out"
    shutil.copytree(phantom_root, root)
    (root / T1).rename(root / T1.replace(".nii.gz", ".NII.GZ"))
    (root / f"{CASE}/{CASE}_t2.nii.gz").unlink()
    complete(root, out, weights=weights.path, device="cpu")
    assert [path.name for path in out.rglob("*.nii.gz")] == [f"{CASE}_t2.nii.gz"]


def test_a_new_channel_of_nnu_net_lies_among_the_others(phantoms, weights, tmp_path):
    root, out = tmp_path / "nnunet", tmp_path / "out"
    shutil.copytree(phantoms("nnunet"), root)
    (root / "imagesTr/PHANTOM_00000_0003.nii.gz").unlink()
    complete(root, out, weights=weights.path, device="cpu", link_originals=True)
    side_car = json.loads((out / "imagesTr/PHANTOM_00000_0003.json").read_text())
    assert (side_car["synthetic"], side_car["target"]) == (True, "t2")
    whole = open_dataset(out)
    assert (whole.layout.name, whole.counts()) == ("nnunet", dict.fromkeys(whole.modalities, 4))


def test_a_file_that_is_not_read_is_named_with_what_is_wrong_with_the_weights(hidden, tmp_path):
    root = hidden("MetaImage")
    with pytest.raises(ProblemsError) as caught:
        complete(root, tmp_path / "out", weights=tmp_path / "no-weights", device="cpu")
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["volume-not-read", "unknown-weights"]
