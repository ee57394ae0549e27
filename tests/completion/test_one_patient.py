"""One patient, whose files are named one by one or as modalities: what is made, where it may go, whose it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import fingerprint

from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import Source
from attcl_cli.data.originals import folders_of
from attcl_cli.data.suggested import complete_images
from attcl_cli.errors import AttclError, UsageError, single_problems

NAMES = ("Phantom_00000", "Phantom_00001")


@pytest.fixture
def files(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with images of two patients that no layout fits: `flair-0.nii.gz`, `x/t1-0.nii.gz`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for number, name in enumerate(NAMES):
        shutil.copy(phantom_root / name / f"{name}_flair.nii.gz", f"flair-{number}.nii.gz")
        shutil.copy(phantom_root / name / f"{name}_t1.nii.gz", f"x/t1-{number}.nii.gz")
    return tmp_path


def test_images_named_one_by_one_are_completed_as_the_same_patient_in_a_dataset(
    files, phantom_root, trained_run
):
    before = fingerprint(files)
    images = {"FLAIR": "flair-0.nii.gz", "t1n": "x/t1-0.nii.gz"}
    result = complete(cpl="out", images=images, targets=["t2"], weights=trained_run, device="cpu")
    assert result.written == 1
    case = files / "whole" / NAMES[0]
    case.mkdir(parents=True)
    for name, file in (("flair", "flair-0.nii.gz"), ("t1", "x/t1-0.nii.gz")):
        shutil.copy(file, case / f"{NAMES[0]}_{name}.nii.gz")
    complete("whole", "other", targets=["t2"], weights=trained_run, device="cpu")
    own = np.asarray(nib.load("out/t2.nii.gz").dataobj)
    theirs = np.asarray(nib.load(f"other/{NAMES[0]}/{NAMES[0]}_t2.nii.gz").dataobj)
    assert np.array_equal(own, theirs)
    source = json.loads(Path("out/t2.json").read_text())["source"]
    assert (source["modality"], source["files"]) == ("flair", ["flair-0.nii.gz"])
    config = json.loads(Path("out/run.json").read_text())["config"]
    assert config["images"] == images and "ori" not in config
    assert {name: hashed for name, hashed in fingerprint(files).items() if name in before} == before


def test_the_originals_are_the_files_and_not_their_folder(files, trained_run):
    dataset = Source(Path("data"), images=(("flair", Path("flair-0.nii.gz")),)).open()
    assert folders_of(dataset) == [files / "flair-0.nii.gz"]
    with pytest.raises(UsageError) as caught:
        complete(cpl=".", images={"flair": "flair-0.nii.gz"}, targets=["t2"], weights=trained_run)
    assert caught.value.code == "output-holds-originals"
    assert caught.value.hint.endswith(
        f"such as {files}-attcl"
    )  # not inside the folder of the images


@pytest.mark.parametrize(
    ("images", "codes"),
    [
        ([("flair", "flair-0.nii.gz"), ("FLAIR", "flair-1.nii.gz")], ["image-given-twice"]),
        ([("pd", "flair-0.nii.gz"), ("t1", "none.nii")], ["unknown-modality", "image-not-found"]),
        ([("flair", "x"), ("t1", "notes.txt")], ["image-not-found", "image-not-nifti"]),
    ],
    ids=["twice", "unknown", "no image"],
)
def test_what_names_no_image_is_refused_together(images, codes, files):
    Path("notes.txt").touch()
    with pytest.raises(AttclError) as caught:
        complete(cpl="out", images=images)
    problems = getattr(caught.value, "problems", [caught.value])
    assert [problem.code for problem in problems] == codes
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "options",
    [{"ori": "x"}, {"layout": "flat"}, {"bids_filter": ["run=1"]}, {"link_originals": True}],
    ids=lambda options: next(iter(options)),
)
def test_images_go_with_nothing_that_a_dataset_needs(options, files):
    with pytest.raises(UsageError) as caught:
        complete(cpl="out", images={"flair": "flair-0.nii.gz"}, **options)
    assert caught.value.code == "options-exclude-each-other"


def test_an_image_whose_name_says_another_modality_is_a_note(files, attcl, trained_run):
    image = ("--image", "t1=flair-0.nii.gz")
    code, _, err = attcl("complete", *image, "-o", "out", "-w", trained_run, "--dry-run")
    assert code == 0
    note = "note: --image: flair-0.nii.gz is taken as t1, but its name says flair: check"
    assert err.count(note) == 1


def test_names_of_images_may_come_from_a_file(files, trained_run):
    Path("names.toml").write_text('[modalities]\nflair = ["dark fluid"]\nt2 = ["T2"]\n')
    images = {"dark fluid": "flair-0.nii.gz"}
    plan = complete(
        cpl="out", images=images, modalities="names.toml", weights=trained_run, targets=["T2"],
        device="cpu", dry_run=True,
    ).plan  # fmt: skip
    assert [list(job.outputs) for job in plan.jobs] == [["t2"]]


def test_a_volume_of_another_patient_is_not_taken_for_this_ones(files, trained_run):
    """Names that do not tell the patient: without a look at the sources, one volume would stand for two patients."""
    for number in (0, 1):
        Path(f"patient-{number}").mkdir()
        shutil.copy(f"flair-{number}.nii.gz", f"patient-{number}/flair.nii.gz")
    request = {"targets": ["t2"], "weights": trained_run, "device": "cpu"}
    assert complete("patient-0", "out", **request).written == 1
    with pytest.raises(AttclError, match="made from another flair, expected patient-1") as caught:
        complete("patient-1", "out", **request)
    assert caught.value.code == "made-in-another-way"
    images = {"flair": "flair-1.nii.gz"}
    with pytest.raises(AttclError, match="made from another flair"):
        complete(cpl="out", images=images, **request)
    with pytest.raises(
        AttclError, match=r"made from flair, which its case .* it may be of another patient"
    ):
        complete(cpl="out", images={"t1": "x/t1-0.nii.gz"}, **request)
    assert complete("patient-0", "out", **request).done_before == 1
    said = json.loads(Path("out/t2.json").read_text())
    Path("out/t2.json").write_text(json.dumps({**said, "source": None}))
    with pytest.raises(AttclError, match="made from unknown sources"):
        complete("patient-0", "out", **request)
    assert complete(cpl="out", images=images, overwrite=True, **request).written == 1


def test_the_command_line_reads_images_and_points_to_them(files, trained_run, attcl):
    options = ("--target", "t2", "-w", trained_run, "-d", "cpu")
    code, out, err = attcl("complete", "--image", "flair=flair-0.nii.gz", "-o", "out", *options)
    assert (code, out) == (
        0,
        "out: 1 volume written, 0 were there already\nout/report.html: open it in a browser\n",
    ), err
    code, _, err = attcl("complete", "--image", "flair", *options)
    assert code == 2 and "expected MODALITY=FILE" in err
    code, _, err = attcl("complete", "flair-0.nii.gz", *options)
    assert code == 2
    assert "for this image: attcl complete --image flair=flair-0.nii.gz -o out; " in err
    code, _, err = attcl("complete", "flair-0.nii.gz", "x/t1-0.nii.gz", *options)
    images = "--image flair=flair-0.nii.gz --image t1=x/t1-0.nii.gz"
    assert code == 2 and f"for these images: attcl complete {images} -o out; " in err
    code, _, err = attcl("complete", "x", *options)
    assert code == 2 and "this folder: attcl complete -i x -o out" in err
    for folder in ("new", "../new"):
        code, _, err = attcl("complete", "x", folder, *options)
        assert code == 2 and f"this folder: attcl complete -i x -o {folder}" in err
    code, _, err = attcl("complete", "flair-0.nii.gz", "new", *options)
    assert code == 2 and "attcl complete --image flair=flair-0.nii.gz -o new; " in err
    code, _, err = attcl("complete", "nowhere", *options)
    assert code == 2 and "-o out" not in err
    code, _, err = attcl("complete", "-i", "flair-0.nii.gz", *options)
    assert code == 1 and "attcl complete --image flair=flair-0.nii.gz -o out; " in err


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("-i", "see: attcl complete --help"),
        ("-o", "see: attcl complete --help"),
        ("-i {flair} {t1}", "attcl complete --image flair={flair} --image t1={t1} -o out;"),
        ("--image flair={flair} {t1} -o x", "--image flair={flair} --image t1={t1} -o x;"),
        ("--image {flair} --image {t1}", "attcl complete --image flair={flair} --image t1={t1} -o"),
        ("--image a.txt", "for example --image flair=a.nii.gz"),
        ("-i P -o .", "such as P-attcl: attcl complete -i P -o P-attcl"),
        ("-n -i P --cpl=P/out", "such as P-attcl: attcl complete -n -i P --cpl=P-attcl"),
        ("-i P/.. -o o -i PP", "did you mean P? attcl complete -i P/.. -o o -i P"),
        ("-i {flair}", "complete from all (flair, t1): attcl complete -i P -o out; or complete it"),
        ("-i flat/B_t2.nii.gz", "--image t1=flat/B_t1.nii.gz --image t2=flat/B_t2.nii.gz -o out"),
    ],
)
def test_a_wrong_try_is_answered_with_a_command_that_works(typed, hint, named, attcl):
    names = {"flair": "P/P_flair.nii.gz", "t1": "P/P_t1.nii.gz"}
    code, out, err = attcl("complete", *typed.format(**names).split())
    assert code != 0 and out == ""
    assert hint.format(**names) in err.splitlines()[1]


def test_paths_without_a_command_are_answered_with_complete(named, attcl):
    assert "folder: attcl complete -i P -o out" in attcl("P")[2]
    assert "folder: attcl complete -i P -o P-attcl" in attcl("P", "-o", "P/x")[2]
    for words in (("P", "flat"), ("compelte", "P", "flat")):
        assert "folder: attcl complete -i P -o flat" in attcl(*words)[2]
    assert "folder: attcl complete -i P -o out" in attcl("compelte", "P")[2]
    assert "image: attcl complete --image t1=P/P_t1.nii.gz -o out" in attcl("P/P_t1.nii.gz")[2]
    Path("P/P_seg.nii.gz").touch()  # a label map among P/*.nii.gz is no source
    images = sorted(Path("P").iterdir())
    for command in ((), ("complete",)):
        err = attcl(*command, *images)[2]
        assert "--image flair=P/P_flair.nii.gz --image t1=P/P_t1.nii.gz -o out;" in err
    assert attcl("nowhere")[2].splitlines()[1] == "hint: see: attcl --help"


def test_without_data_the_current_folder_is_offered_if_it_holds_a_patient(
    named, attcl, monkeypatch
):
    command = "hint: to complete what the current folder holds: attcl complete -i . "
    monkeypatch.chdir("P")
    assert f"{command}-o ../P-attcl\n" in attcl("complete")[2]
    assert f"{command}-n -o ../P-attcl\n" in attcl("complete", "-n", "-o", "out")[2]
    assert command not in attcl("complete", "-i", "data")[2]
    (named / "empty").mkdir()
    monkeypatch.chdir(named / "empty")
    named_folder = "writes; name yours: attcl {}\n".format
    assert named_folder("complete -o x -i MINE/") in attcl("complete", "-o", "x")[2]
    assert named_folder("train --data MINE/") in attcl("train")[2]
    assert named_folder("train --steps 1 --data MINE/") in attcl("train", "--steps", "1")[2]
    assert attcl("info", "data")[2].endswith("writes; name yours\n")


def test_output_is_another_name_of_cpl(named, trained_run, attcl):
    options = ("-w", trained_run, "-d", "cpu", "--target", "t2")
    code, out, err = attcl("complete", "-i", "P", "--output", "new", *options)
    assert (code, out.splitlines()[0]) == (0, "new: 1 volume written, 0 were there already"), err
    assert attcl("complete", "-i", "P", "--output", "P")[2].startswith("error: --output: P lies")


@pytest.fixture
def named(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with `P/P_flair.nii.gz`, `P/P_t1.nii.gz`, and two patients in one folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("P", "flat"):
        Path(name).mkdir()
    images = {"P/P": ("flair", "t1"), "flat/A": ("t1", "t2"), "flat/B": ("t1", "t2")}
    for patient, modalities in images.items():
        for name in modalities:
            source = phantom_root / NAMES[0] / f"{NAMES[0]}_{name}.nii.gz"
            shutil.copy(source, f"{patient}_{name}.nii.gz")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "modalities"),
    [
        (["BraTS2021_00006_t1ce.nii.gz"], ["t1ce"]),
        (["BraTS-GLI-00000-000-t2f.nii.gz"], ["flair"]),
        (["sub-01_ce-gadolinium_T1w.nii.gz"], ["t1ce"]),
        (["BraTS2021_00006_seg.nii.gz", "scan.nii"], ["MODALITY", "MODALITY"]),
        (["a_t1.nii.gz", "b_t1.nii.gz", "flair.nii.gz"], ["MODALITY", "MODALITY", "flair"]),
    ],
)
def test_the_command_for_images_names_a_modality_that_the_name_tells(names, modalities):
    command = complete_images([Path(name) for name in names])
    images = [f"--image {it}={name}" for name, it in zip(names, modalities, strict=True)]
    assert command.startswith(f"attcl complete {' '.join(images)} -o out")
    assert ("MODALITY is one of flair, t1, t1ce, t2" in command) == ("MODALITY" in modalities)


def test_an_error_names_options_as_they_were_typed(files, phantom_root, attcl):
    folder = phantom_root / NAMES[0]
    inside = folder / "out"
    message = f": {inside} lies inside {folder}, expected a folder outside of the originals"
    _, _, err = attcl("complete", "-i", folder, "-o", inside)
    assert err.startswith(f"error: -o{message}") and "choose another -o, such as" in err
    assert attcl("complete", "--ori", folder, "--cpl", inside)[2].startswith(
        f"error: --cpl{message}"
    )
    image = ("--image", "flair=flair-0.nii.gz")
    assert "error: --image: given with -i x," in attcl("complete", *image, "-i", "x")[2]
    assert "given with --ori x," in attcl("complete", *image, "--ori", "x", "-o", "out")[2]


def test_all_that_is_wrong_with_a_patient_is_named_before_the_weights_that_do_not_fit(
    write_nifti, tmp_path
):
    for name, thick in {"flair": 5, "t1": 1, "t1ce": 1}.items():
        image = np.arange(1, 2001, dtype=np.int16).reshape(20, 20, 5).repeat(5 // thick, axis=2)
        affine = np.diag([1, 1, thick, 1])
        write_nifti(tmp_path / "A" / f"A_{name}.nii.gz", image, affine=affine)
    with pytest.raises(AttclError) as caught:
        complete(tmp_path / "A", tmp_path / "out", device="cpu")
    problems = single_problems(caught.value)
    assert [it.code for it in problems] == ["grids-differ", "images-identical", "no-weights"]
    found = "A_flair.nii.gz: shape 20x20x5 against 20x20x25 of A_t1.nii.gz"
    assert found in problems[0].message
