"""Nothing is left out in silence: what looks like a volume or a patient is a problem, the rest is noted or harmless."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import touch

from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.layouts import DEFAULT_MODALITIES
from attcl_cli.data.preconditions import examine
from attcl_cli.data.unread import kind_of_name, misread_in, misspelt_in, modalities_in
from attcl_cli.errors import AttclError

FOUR = ("flair", "t1", "t1ce", "t2")


def cases(*ids: str, lacking: str = "", modalities: Iterable[str] = FOUR) -> list[str]:
    """Names of whole cases; the first of them lacks a modality."""
    names = [f"{case}/{case}_{name}.nii.gz" for case in ids for name in modalities]
    return [name for name in names if name != f"{ids[0]}/{ids[0]}_{lacking}.nii.gz"]


def lacking_t1(root: Path, *extra: str) -> Dataset:
    """A dataset whose Case_000 lacks its T1, and has these instead."""
    return open_dataset(touch(root, [*cases("Case_000", "Case_001", lacking="t1"), *extra]))


def codes(dataset: Dataset) -> list[str]:
    return [problem.code for problem in dataset.problems]


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".NII.GZ", ".Nii.gz", ".nii.GZ", ".NII", ".Nii"])
def test_endings_in_any_letters_are_read(ending, tmp_path, write_nifti):
    values = np.arange(60).reshape(5, 4, 3).astype("i2")
    for name in FOUR:
        write_nifti(tmp_path / f"A/A_{name}.nii.gz", values)
    path = tmp_path / "A/A_t1.nii.gz"
    if ending.lower() == ".nii":
        nib.save(nib.load(path), tmp_path / "A/A_t1.nii")
        (tmp_path / "A/A_t1.nii").rename(tmp_path / f"A/A_t1{ending}")
        path.unlink()
    else:
        path.rename(tmp_path / f"A/A_t1{ending}")
    dataset = open_dataset(tmp_path)
    assert dataset.counts() == dict.fromkeys(FOUR, 1)
    assert examine(dataset).problems == []


def test_a_new_file_has_its_ending_in_small_letters(tmp_path):
    dataset = open_dataset(
        touch(tmp_path, ["A/A_t1.NII.GZ", "A/A_t2.NII.GZ", "B/B_t1.NII.GZ", "B/B_flair.nii.gz"])
    )
    (place,) = dataset.place(dataset.cases[0], "flair")
    assert str(place) == "A/A_flair.nii.gz"


# --- what looks like a volume that a case lacks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason", "hint"),
    [
        ("Case_000/Case_000_t1.hdr", "a pair of files", "nibabel"),
        ("Case_000/Case_000_t1.img", "a pair of files", "nibabel"),
        ("Case_000/Case_000_T1.mha", "MetaImage", "SimpleITK"),
        ("Case_000/Case_000_t1.MHD", "MetaImage", "SimpleITK"),
        ("Case_000/Case_000_t1n.nrrd", "NRRD", "3D Slicer"),
        ("Case_000/Case_000_t1.nhdr", "NRRD", "3D Slicer"),
        ("Case_000/Case_000_t1.mgz", "FreeSurfer", "mri_convert"),
        ("Case_000/Case_000_t1.mnc", "MINC", "mnc2nii"),
        ("Case_000/Case_000_t1.npy", "a NumPy array", "affine"),
        ("Case_000/Case_000_t1.PAR", "Philips' PAR/REC", "dcm2niix"),
        ("Case_000/Case_000_t1.rec", "Philips' PAR/REC", "dcm2niix"),
        ("Case_000/Case_000_t1+orig.HEAD", "AFNI", "3dAFNItoNIFTI"),
        ("Case_000/Case_000_t1+orig.BRIK.gz", "AFNI", "3dAFNItoNIFTI"),
        ("Case_000/Case_000_t1.tif", "TIFF", "affine"),
        ("Case_000/Case_000_t1.H5", "HDF5", "affine"),
        ("Case_000/Case_000_t1.dcm", "DICOM", "dcm2niix"),
        ("Case_000/T1_AX/IM0001.dcm", "DICOM", "dcm2niix"),
        ("Case_000/dicom/t1w/1.2.3.IMA", "DICOM", "dcm2niix"),
        ("Case_000/unknown/IM0001.dcm", "DICOM", "dcm2niix"),
        ("Case_000/Case_000_t1.zip", "an archive", "unpack"),
        ("Case_000/Case_000_t1.nii.gz.part", "another ending", "rename"),
        ("Case_000/Case_000_t1.nii.gz~", "another ending", "rename"),
        ("Case_000/Case_000_t1.nii.bz2", "another ending", "unpack"),
        ("Case_000/Case_000_t1.gz", "another ending", "unpack"),
        ("Case_000/Case_000_t1.nii.gz/scan.nii.gz", "a folder", "out of the folder"),
        ("Case_000/Case_000_t1.nii/a/b.txt", "a folder", "out of the folder"),
        ("Case_000/case_000_t1.nii.gz", "another name", "rename"),
        ("Case_000/CASE_000_T1.nii.gz", "another name", "rename"),
        ("Case_000/Case_000-t1.nii.gz", "another name", "rename"),
        ("Case_000/Case_000_t1_bias.nii.gz", "another name", "rename"),
        ("Case_000/Case_000_old_t1.nii.gz", "another name", "rename"),
        ("Case_000/Case_000_t1reg.nii.gz", "another name", "rename"),
        ("Case_000/Case_000_t1 (1).nii.gz", "another name", "rename"),
        ("Case_000/T1.nii.gz", "another name", "rename"),
        ("Case_000/axT1.nii", "another name", "rename"),
        ("Case_000/raw/T1_mprage.nii.gz", "another name", "rename"),
        ("other/Case_000_t1.nii.gz", "another name", "rename"),
        ("nrrd/Case_000_t1.nrrd", "NRRD", "3D Slicer"),
    ],
)
def test_what_looks_like_a_missing_volume_is_a_problem_with_its_name(name, reason, hint, tmp_path):
    dataset = lacking_t1(tmp_path, name)
    (problem,) = dataset.problems
    assert problem.code == "volume-not-read"
    path = problem.message.split(": looks like t1 of Case_000 and is not read (")[0]
    assert (tmp_path / name).is_relative_to(path)
    assert f"({reason}" in problem.message
    assert problem.message.endswith("expected a file named as Case_000/Case_000_t1.nii.gz")
    assert hint in problem.hint
    assert dataset.wrong.keys() == {"Case_000"}
    assert dataset.counts()["t1"] == 1
    assert dataset.ignored == ()


@pytest.mark.parametrize("both", [False, True], ids=["the host has its own", "both lack it"])
def test_a_volume_among_the_files_of_another_case_is_a_problem_of_its_own_case(both, tmp_path):
    names = [
        name
        for name in cases("Case_000", "Case_001", lacking="t1")
        if not both or name != "Case_001/Case_001_t1.nii.gz"
    ]
    dataset = open_dataset(touch(tmp_path, [*names, "Case_001/Case_000_t1.nii.gz"]))
    (problem,) = dataset.wrong["Case_000"]
    assert "Case_001" not in dataset.wrong
    assert "looks like t1 of Case_000 and is not read (among the files of Case_001)" in str(problem)
    assert problem.hint.startswith("move it to where Case_000 has its files; or leave it out")


@pytest.mark.parametrize(
    "name",
    ["t1/P_{}.jpg", "t1/P_{}.TIF", "T1_new/P_{}.png", "t1/P-{}.png", "t1/P/{}.png", "P/t1/{}.bmp"],
)
def test_slices_of_another_name_or_format_are_one_problem(name, tmp_path):
    slices = [f"{it}/{case}_{number}.png" for it in FOUR for case in "PQ" for number in range(3)]
    names = [it for it in slices if not it.startswith("t1/P_")]
    touch(
        tmp_path,
        [*names, *(name.format(number) for number in range(3)), "t1/preview.txt", "overview.jpg"],
    )
    (problem,) = open_dataset(tmp_path).problems
    assert problem.code == "volume-not-read"
    assert f"{name.format(0)}: looks like t1 of P and is not read (slices of" in problem.message
    assert ", 3 files), expected a file named as t1/P_{slice}.png" in problem.message
    line = problem.hint.split("with ")[1].removesuffix(" in modalities.toml")
    (tmp_path / "modalities.toml").write_text(line, encoding="utf-8")
    assert open_dataset(tmp_path).problems == ()


def test_a_patient_of_pictures_of_another_format_is_a_problem(tmp_path):
    slices = [f"{it}/{case}_{number}.png" for it in FOUR for case in "PQ" for number in range(3)]
    problems = open_dataset(
        touch(tmp_path, [it.replace(".png", ".jpg") if "/Q_" in it else it for it in slices])
    ).problems
    assert {problem.code for problem in problems} == {"case-not-read"}
    assert len(problems) == len(FOUR)


def test_a_dicom_file_without_an_ending_is_found_by_its_first_bytes(tmp_path):
    path = tmp_path / "Case_000" / "series" / "IM000001"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(128) + b"DICM" + bytes(10))
    (problem,) = lacking_t1(tmp_path).problems
    assert "Case_000/series: looks like t1 of Case_000 and is not read (DICOM)" in problem.message


def test_a_matlab_file_is_found_by_its_first_bytes_and_a_matrix_is_none(tmp_path):
    dataset = lacking_t1(tmp_path, "Case_000/Case_000_t1.mat", "Case_000/t1_to_flair.mat")
    assert dataset.problems == ()
    (tmp_path / "Case_000/Case_000_t1.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64")
    (tmp_path / "Case_000/t1_to_flair.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    (problem,) = open_dataset(tmp_path).problems
    assert "Case_000_t1.mat: looks like t1 of Case_000 and is not read (MATLAB)" in problem.message


@pytest.mark.parametrize("endings", [(".PAR", ".REC"), ("+orig.HEAD", "+orig.BRIK")])
def test_the_two_files_of_another_format_are_one_problem(endings, tmp_path):
    (problem,) = lacking_t1(tmp_path, *(f"Case_000/x_t1{ending}" for ending in endings)).problems
    assert all(f"x_t1{ending}'" in problem.hint for ending in endings)


def test_dicom_files_of_a_folder_are_one_problem(tmp_path):
    names = [f"Case_000/t1/IM{number:04d}.dcm" for number in range(40)]
    (problem,) = lacking_t1(tmp_path, *names).problems
    assert f"{tmp_path}/Case_000/t1: looks like t1 of Case_000" in problem.message
    assert "(DICOM, 40 files)" in problem.message


def test_the_two_files_of_a_pair_are_one_problem(tmp_path):
    assert len(lacking_t1(tmp_path, "Case_000/x_t1.hdr", "Case_000/x_t1.img").problems) == 1


def test_a_broken_link_is_a_problem_under_any_name(tmp_path):
    lacking_t1(tmp_path)
    (tmp_path / "Case_000" / "t1_link").symlink_to(tmp_path / "gone")
    (problem,) = open_dataset(tmp_path).problems
    assert (
        "Case_000/t1_link: looks like t1 of Case_000 and is not read (a broken link)"
        in problem.message
    )


def test_an_empty_folder_named_as_a_volume_is_a_problem(tmp_path, write_case):
    write_case(tmp_path, cases("A", modalities=["flair", "t2"]))
    (tmp_path / "A" / "A_t1.nii.gz").mkdir()
    (problem,) = examine(open_dataset(tmp_path)).problems
    assert problem.message.startswith(f"{tmp_path}/A/A_t1.nii.gz: ")


def test_a_case_in_two_spellings_is_a_problem(tmp_path):
    names = [*cases("Case_000", "Case_001", lacking="t1"), "case_000/case_000_t1.nii.gz"]
    dataset = open_dataset(touch(tmp_path, names))
    assert codes(dataset) == ["case-in-two-spellings"] * 2
    assert dataset.wrong.keys() == {"Case_000", "case_000"}
    message = dataset.wrong["case_000"][0].message
    assert "case_000/case_000_t1.nii.gz: Case_000 and case_000 differ in capitals" in message


def test_a_case_in_two_encodings_of_its_accents_is_a_problem(tmp_path):
    composed, decomposed = "Ren\u00e9", "Rene\u0301"
    dataset = open_dataset(touch(tmp_path, [*cases(composed, lacking="t1"), *cases(decomposed)]))
    assert codes(dataset) == ["case-in-two-spellings"] * 2
    assert "differ in how accents are encoded (NFC, NFD) alone" in dataset.problems[0].message


def test_a_case_whose_name_is_no_utf8_is_a_problem(tmp_path):
    latin = os.fsdecode(b"Ren\xe9")
    dataset = open_dataset(touch(tmp_path, [*cases("A"), *cases(latin)]))
    assert codes(dataset) == ["name-not-utf8"]
    assert dataset.wrong.keys() == {latin}
    assert dataset.problems[0].hint.startswith("rename it, for example with: convmv")


def test_contrast_agent_makes_it_another_modality(tmp_path):
    names = cases("Case_000", "Case_001", lacking="t1ce")
    (problem,) = open_dataset(touch(tmp_path, [*names, "Case_000/T1_post_contrast.nii"])).problems
    assert "looks like t1ce of Case_000" in problem.message


def test_a_modality_that_all_cases_have_in_another_format_is_found(tmp_path):
    names = cases("A", "B", modalities=["flair", "t2"])
    dataset = open_dataset(touch(tmp_path, [*names, "A/A_t1.nrrd", "B/B_t1.nrrd"]))
    assert codes(dataset) == ["volume-not-read"] * 2
    assert dataset.modalities == ("flair", "t2")


@pytest.mark.parametrize(
    ("layout", "names", "odd", "modality"),
    [
        ("bids", ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz"],
         "sub-1/anat/T2w.nii.gz", "t2"),
        ("brats2023", ["A-1/A-1-t1n.nii.gz", "A-1/A-1-t2w.nii.gz", "A-2/A-2-t2w.nii.gz"],
         "A-2/A-2-t1n.mha", "t1"),
        ("ucsf", ["A_nifti/A_T1.nii.gz", "A_nifti/A_T2.nii.gz", "B_nifti/B_T2.nii.gz"],
         "B_nifti/B_T1_bias.nii.gz", "t1"),
        ("folders", ["A/T1.nii.gz", "A/T2.nii.gz", "B/T2.nii.gz"], "B/T1.nrrd", "t1"),
        ("slices", [f"{name}/{case}_{number}.png" for name, case in (("t1", "A"), ("t2", "A"), ("t2", "B"))
                    for number in range(3)], "t1/B.nii.gz", "t1"),
    ],
)  # fmt: skip
def test_every_layout_names_what_it_does_not_read(layout, names, odd, modality, tmp_path):
    dataset = open_dataset(touch(tmp_path, [*names, odd]))
    assert dataset.layout.name == layout
    (problem,) = dataset.problems
    assert problem.message.startswith(f"{tmp_path / odd}: looks like {modality} of ")


def test_a_case_folder_with_other_files_alone_is_still_an_empty_case(tmp_path):
    touch(tmp_path, [*cases("Case_000", "Case_001"), "Case_002/README.txt"])
    assert codes(open_dataset(tmp_path)) == ["case-empty"]


# --- what looks like a patient ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "folder", "names"),
    [
        (["B/B-t1n.nii.gz", "B/B-t2w.nii.gz"], "B", "BraTS 2023 and later"),
        (["x/B-1/B-1-t1n.nii.gz"], "x/B-1", "BraTS 2023 and later"),
        (["sub-01/anat/sub-01_T1w.nii.gz"], "sub-01/anat", "BIDS"),
        (["pat1/T1.nii.gz", "pat1/T2.nii.gz"], "pat1", "a folder per patient"),
        (["t1/B_0.png", "t1/B_1.png"], "t1", "PNG slices"),
        (["UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1.nii.gz"], "UCSF-PDGM-0004_nifti", "UCSF-PDGM"),
        (["P9/P9_t1.mha", "P9/P9_t2.mha"], "P9", "MetaImage"),
        (["P9/t1/IM1.dcm", "P9/t2/IM1.dcm"], "P9", "DICOM"),
        (["scans/flair.nrrd"], "scans", "NRRD"),
        (["Case_002.zip"], ".", "an archive"),
        (["Case_002.nii.gz"], ".", "another name"),
    ],
)
def test_images_of_no_known_case_are_a_problem(extra, folder, names, tmp_path):
    dataset = open_dataset(touch(tmp_path, [*cases("Case_000", "Case_001"), *extra]))
    assert [case.id for case in dataset.cases] == ["Case_000", "Case_001"]
    (problem,) = dataset.problems
    assert problem.code == "case-not-read"
    assert problem.message.startswith(f"{tmp_path / folder}: ")
    assert names in problem.message


def test_a_layout_that_was_asked_for_leaves_the_other_out_with_a_note(tmp_path):
    names = [*cases("A"), "B/B-t1n.nii.gz"]
    dataset = open_dataset(touch(tmp_path, names), layout="brats2023")
    assert dataset.problems == ()
    (note,) = dataset.notes
    assert note.startswith(
        "4 images are ignored, by name of no modality that is known here, or of one that the case has "
        "(rename what a case lacks): A/A_flair.nii.gz"
    )


def test_a_link_to_a_patient_that_is_gone_is_a_problem(tmp_path):
    touch(tmp_path, cases("Case_000", "Case_001"))
    (tmp_path / "Case_002").symlink_to(tmp_path / "gone")
    (problem,) = open_dataset(tmp_path).problems
    assert problem.code == "case-not-read"
    assert "Case_002: may be images of a case and are not read (a broken link)" in problem.message


def test_slices_and_volumes_of_one_patient_are_no_two_patients(tmp_path):
    slices = [f"{name}/A_{number}.png" for name in FOUR for number in range(5)]
    dataset = open_dataset(touch(tmp_path, [*slices, *cases("A")]))
    assert (dataset.layout.name, dataset.problems) == ("slices", ())
    assert len(dataset.ignored) == 4


@pytest.mark.parametrize(
    ("names", "content", "hint"),
    [
        (["P1/t1/IM1.dcm", "P1/t1/IM2.dcm", "P2/t1/IM1.dcm"], "2 images such as P1/t1 (DICOM)", "dcm2niix"),
        (["P1/P1_t1.mha", "P1/P1_t2.mha"], "2 images such as P1/P1_t1.mha (MetaImage)", "SimpleITK"),
        (["P1/P1_t1.zip"], "1 image such as P1/P1_t1.zip (an archive)", "unpack"),
        (["notes.txt", "README"], "2 files and no image", "--modalities"),
    ],
)  # fmt: skip
def test_a_folder_of_other_formats_alone_says_what_to_do(names, content, hint, tmp_path):
    with pytest.raises(AttclError) as caught:
        open_dataset(touch(tmp_path, names))
    assert caught.value.code == "unrecognised-layout"
    assert f"unknown folder layout: {content}, expected " in caught.value.message
    assert hint in caught.value.hint


def test_a_folder_without_files_is_called_empty(tmp_path):
    (tmp_path / "P1" / "t1").mkdir(parents=True)
    with pytest.raises(AttclError) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "dataset-empty"
    assert caught.value.message.startswith(f"{tmp_path}: empty, without a file in any folder, ")
    assert caught.value.hint.startswith("check the path, and ")


def test_images_of_unknown_names_get_the_command_that_would_take_them(tmp_path):
    root = touch(tmp_path, ["scan 1.nii.gz", "b.nii"])
    with pytest.raises(AttclError) as caught:
        open_dataset(root)
    assert (
        "expected one of 13 namings, such as {case}/{case}_<modality>.nii.gz"
        in caught.value.message
    )
    options = f"--image MODALITY={root}/b.nii --image MODALITY='{root}/scan 1.nii.gz'"
    assert f"attcl complete {options}; of several: rename" in caught.value.hint


def test_more_images_than_a_patient_has_get_no_such_command(tmp_path):
    with pytest.raises(AttclError) as caught:
        open_dataset(touch(tmp_path, [f"scan{number}.nii.gz" for number in range(7)]))
    assert "--image" not in caught.value.hint and "--modalities" in caught.value.hint


# --- what is harmless -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "README",
        "README.md",
        ".DS_Store",
        "Case_000/.DS_Store",
        "Case_000/._Case_000_t1.nii.gz",
        "name_mapping.csv",
        "Case_000/Case_000_t1.json",
        "Case_000/Case_000_dwi.bval",
        "Case_000/Case_000_dwi.bvec",
        "Case_000/t1_to_t2.mat",
        "Case_000/Case_000_physio.tsv.gz",
        "run.json",
        "log.txt",
        "report.html",
    ],
)
def test_what_is_no_image_is_passed_over_without_a_word(name, tmp_path):
    dataset = lacking_t1(tmp_path, name)
    assert (dataset.problems, dataset.notes, dataset.ignored) == ((), (), ())


@pytest.mark.parametrize(
    "name",
    [
        "Case_000/Case_000_dwi.nii.gz",
        "Case_000/Case_000_flair.mha",
        "Case_000/Case_000_t1_mask.nii.gz",
        "Case_000/Case_000_t1_uncertainty.nii.gz",
        "Case_000/Case_000_brain_segmentation.nii.gz",
        "Case_000/T1map.nii.gz",
        "Case_000/T2star.nii.gz",
        "Case_001/Case_001_t1_bias.nii.gz",
        "Case_000/Case_000_flair_space-t1.nii.gz",
        "Case_000/t1.png",
        "qc/overview.png",
        "Case_001/dicom/t1/IM1.dcm",
        "templates/atlas.nii.gz",
    ],
)
def test_an_image_that_no_case_lacks_is_ignored_and_named(name, tmp_path):
    dataset = lacking_t1(tmp_path, name)
    if "templates" not in name:  # beside the cases it may be one: reported as before
        assert dataset.problems == ()
    (path,) = dataset.ignored
    assert (tmp_path / name).is_relative_to(tmp_path / path)
    assert dataset.notes == (
        "1 image is ignored, by name of no modality that is known here, or of one that the case has "
        f"(rename what a case lacks): {path}",
    )


@pytest.mark.parametrize(
    "pattern", ["*.mha", "Case_000/", "Case_000/Case_000_t1.mha", "**/Case_000_t1.*"]
)
def test_a_file_is_left_out_if_the_user_says_so(pattern, tmp_path):
    touch(tmp_path, [*cases("Case_000", "Case_001", lacking="t1"), "Case_000/Case_000_t1.mha"])
    (tmp_path / "modalities.toml").write_text(f"ignore = ['{pattern}']\n")
    dataset = open_dataset(tmp_path)
    assert dataset.problems == ()
    (note,) = dataset.notes
    assert "left out by modalities.toml, such as Case_000/Case_000_" in note


@pytest.mark.parametrize(
    "names",
    [
        ["Case_000/case_000_t1.nii.gz"],
        ["Case_000/x_t1.hdr", "Case_000/x_t1.img"],
        ["Case_000/it's [t1]?*\\.mha"],
        ["Case_000/two\nlines_t1.mha"],
        ["#Case_007_t1.mha", "!Case_008_t1.mha"],
        [" Case_007_t1.mha"],
    ],
)
def test_the_hint_of_a_problem_leaves_the_files_out(names, tmp_path):
    (problem,) = lacking_t1(tmp_path, *names).problems
    line = problem.hint.split("with ")[1].removesuffix(" in modalities.toml")
    (tmp_path / "modalities.toml").write_text(line, encoding="utf-8")
    dataset = open_dataset(tmp_path)
    assert dataset.problems == ()
    assert f"{len(names)} file" in dataset.notes[0]


def test_a_misspelt_modality_is_missed_where_the_case_lacks_it_and_nowhere_else(tmp_path):
    touch(tmp_path, cases("Case_000", "Case_001", lacking="flair"))
    touch(tmp_path, ["Case_000/Case_000_flar.nii.gz"])
    (problem,) = open_dataset(tmp_path).problems
    assert problem.code == "volume-not-read"
    assert "Case_000_flar.nii.gz: looks like flair of Case_000" in problem.message
    touch(tmp_path, ["Case_000/Case_000_flair.nii.gz"])
    assert open_dataset(tmp_path).problems == ()


def test_a_letter_for_a_digit_is_missed_where_the_case_lacks_it_and_nowhere_else(tmp_path):
    touch(tmp_path, cases("Case_000", "Case_001", lacking="t1"))
    touch(tmp_path, ["Case_000/Case_000_tl.nii.gz", "Case_001/Case_001_dwi.nii.gz"])
    (problem,) = open_dataset(tmp_path).problems
    assert problem.code == "volume-not-read"
    assert "Case_000_tl.nii.gz: looks like t1 of Case_000" in problem.message
    touch(tmp_path, ["Case_000/Case_000_t1.nii.gz"])
    assert open_dataset(tmp_path).problems == ()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "modalities"),
    [
        ("t1", ("t1",)),
        ("T1w_mprage", ("t1",)),
        ("axT2", ("t2",)),
        ("t2_flair", ("flair",)),
        ("FLAIRreg", ("flair",)),
        ("T1_Gd", ("t1ce",)),
        ("T1_KM", ("t1ce",)),
        ("t1gado", ("t1ce",)),
        ("CT1", ("t1ce",)),
        ("t1 mprage post contrast", ("t1ce",)),
        ("t1ce_n4", ("t1ce",)),
        ("t1_space-flair", ("t1",)),
        ("t1_t2", ("t1", "t2")),
        ("T2star", ()),
        ("t1_map", ()),
        ("t1_brainmask", ()),
        ("scan", ()),
        ("t10", ()),
        ("set1", ()),
    ],
)
def test_a_name_tells_modalities_by_its_words(name, modalities):
    assert modalities_in(name, DEFAULT_MODALITIES) == modalities


@pytest.mark.parametrize(
    ("name", "modalities"),
    [
        ("flar", ("flair",)),
        ("ax_FLIAR", ("flair",)),
        ("flairr", ("flair",)),
        ("flare_n4", ("flair",)),
        ("flar_mask", ()),
        *[(name, ()) for name in ("t1n", "t1c", "t2w", "mask", "brain", "dwi", "filter", "fa")],
        ("blair", ()),
        ("final", ()),
        ("t2ce", ()),
        ("t1", ()),
        ("scan", ()),
    ],
)
def test_a_long_spelling_with_a_wrong_letter_is_known(name, modalities):
    assert misspelt_in(name, DEFAULT_MODALITIES) == modalities


@pytest.mark.parametrize(
    ("name", "modalities"),
    [
        ("tl", ("t1",)),
        ("ax TI n4", ("t1",)),
        ("tz", ("t2",)),
        ("t1ec", ("t1ce",)),
        ("1tce_n4", ("t1ce",)),
        ("1t", ()),
        ("tIce", ("t1ce",)),
        ("tl_mask", ()),
        *[(name, ()) for name in ("t0", "t3", "lt", "tof", "pd", "dwi", "t", "t1", "flair")],
        ("flalr", ("flair",)),
    ],
)
def test_a_short_spelling_with_a_letter_for_its_digit_is_known(name, modalities):
    assert misread_in(name, DEFAULT_MODALITIES) == modalities


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.nii.gz", "nifti"),
        ("a.tar.gz", "archive"),
        ("a.img.gz", "analyze"),
        ("a.nii.gz.crdownload", "odd"),
        ("a.tsv.gz", ""),
        ("a.json", ""),
        ("a.nii.json", ""),
        ("a", ""),
    ],
)
def test_the_end_of_a_name_tells_its_kind(name, kind):
    assert kind_of_name(name) == kind
