"""Files of a dataset that cannot be used, through the command line: each is named, and nothing is started."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import refusal, states
from PIL import Image

BAD = "Phantom_00001/Phantom_00001_flair.nii.gz"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **options: object) -> None:
    image = nib.load(path)
    data = change(np.asanyarray(image.dataobj))
    nib.save(nib.Nifti1Image(data, options.get("affine", image.affine)), path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is not an image\n" * 30)


def other_shape(path: Path) -> None:
    rewrite(path, lambda data: data[:, :, 1:])


def other_affine(path: Path) -> None:
    rewrite(path, lambda data: data, affine=np.diag([-6.0, -6, 7, 1]))


def not_a_number(path: Path) -> None:
    rewrite(path, lambda data: np.where(data > data.mean(), np.nan, data).astype(np.float32))


def constant(path: Path) -> None:
    rewrite(path, lambda data: np.full_like(data, 7))


def four_dimensions(path: Path) -> None:
    rewrite(path, lambda data: np.stack([data, data], axis=-1))


def complex_numbers(path: Path) -> None:
    rewrite(path, lambda data: data.astype(np.complex64))


def second_file(path: Path) -> None:
    shutil.copyfile(path, path.with_name(path.name.replace("flair", "FLAIR")))


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone.nii.gz"))


BAD_FILES = {
    cut_off: "(cut off|not readable)",
    flipped_bit: "not readable to its end",
    empty: r"empty \(0 bytes\)",
    text: "not readable",
    other_shape: "shape 40x40x2[56] against 40x40x2[56]",
    other_affine: "affine off by",
    not_a_number: "voxels are NaN or infinite",
    constant: "every voxel is 7",
    four_dimensions: r"4-D \(40x40x26x2\)",
    complex_numbers: "type complex64",
    second_file: "a second file for flair of Phantom_00001",
    broken_link: "not readable",
}
MISPLACED = {
    other_shape: BAD.replace("flair", "t2"),  # of two that differ, the later one is named
    other_affine: BAD.replace("flair", "t2"),
    second_file: BAD.replace("flair", "FLAIR"),
}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_a_bad_file_is_named_before_anything_is_started(
    spoil, incomplete_root, trained_run, attcl, tmp_path
):
    spoil(incomplete_root / BAD)
    before = states(incomplete_root)
    lines = refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=f"{incomplete_root / MISPLACED.get(spoil, BAD)}: ",
        hint=".",
    )
    assert re.search(BAD_FILES[spoil], lines[0])
    assert len(lines) == 2
    assert not (tmp_path / "out").exists()
    assert states(incomplete_root) == before


def test_a_flipped_bit_leaves_out_its_case_alone(incomplete_root, trained_run, attcl, tmp_path):
    flipped_bit(incomplete_root / BAD)
    options = ("--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run)
    code, _, err = attcl("complete", *options, "--keep-going")
    assert code == 3, err
    assert f"{incomplete_root / BAD}: not readable to its end" in err
    assert "Traceback" not in err
    made = {path.parent.name for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert made == {"Phantom_00000", "Phantom_00003"}


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_info_lists_a_bad_file(spoil, incomplete_root, attcl):
    spoil(incomplete_root / BAD)
    code, out, err = attcl("info", incomplete_root, "--json")
    (problem,) = json.loads(out)["problems"]
    assert (code, err) == (3, "")
    assert re.search(BAD_FILES[spoil], problem["error"])
    assert problem["code"]


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_training_does_not_start_on_a_bad_file(spoil, incomplete_root, attcl, tmp_path):
    spoil(incomplete_root / BAD)
    before = states(incomplete_root)
    lines = refusal(
        attcl("train", "--data", incomplete_root, "-o", tmp_path / "run", "--preset", "tiny"),
        code=1,
        names=f"{incomplete_root / MISPLACED.get(spoil, BAD)}: ",
        hint=".",
    )
    assert re.search(BAD_FILES[spoil], lines[0])
    assert not (tmp_path / "run").exists()
    assert states(incomplete_root) == before


@pytest.mark.parametrize("spoil", [cut_off, empty, other_shape, four_dimensions, second_file])
def test_splits_are_not_drawn_from_bad_files(spoil, incomplete_root, attcl, tmp_path):
    spoil(incomplete_root / BAD)
    refusal(
        attcl("prepare-splits", incomplete_root, "-o", tmp_path / "data"),
        code=1,
        names=f"{incomplete_root / MISPLACED.get(spoil, BAD)}: ",
        hint=".",
    )
    assert not (tmp_path / "data").exists()


def cut_off_png(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def colours(path: Path) -> None:
    Image.new("RGB", (40, 40)).save(path)


def other_size(path: Path) -> None:
    Image.new("I;16", (39, 40)).save(path)


def missing_slice(path: Path) -> None:
    path.unlink()


def second_number(path: Path) -> None:
    shutil.copyfile(path, path.with_name("Phantom00001_12.png"))


BAD_SLICES = {
    cut_off_png: ("Phantom00001_012.png", "not readable as PNG"),
    colours: ("Phantom00001_012.png", "mode RGB, expected 8- or 16-bit grey"),
    other_size: ("Phantom00001_012.png", "40x39 I;16, expected 40x40"),
    missing_slice: ("Phantom00001_000.png", "has 25 slices of 26 .no slice 12"),
    second_number: ("Phantom00001_012.png", "a second file for flair of Phantom00001"),
}


@pytest.mark.parametrize("spoil", BAD_SLICES, ids=lambda spoil: spoil.__name__)
def test_a_bad_png_slice_is_named_before_anything_is_started(
    spoil, phantoms, trained_run, attcl, tmp_path
):
    root = tmp_path / "slices"
    shutil.copytree(phantoms("slices"), root)
    for path in root.glob("t2/Phantom00001_*.png"):
        path.unlink()
    spoil(root / "flair/Phantom00001_012.png")
    name, complaint = BAD_SLICES[spoil]
    before = states(root)
    lines = refusal(
        attcl("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=f"{root / 'flair' / name}: ",
        hint=".",
    )
    assert re.search(complaint, lines[0])
    assert not (tmp_path / "out").exists()
    assert states(root) == before


def test_several_problems_are_reported_together(incomplete_root, trained_run, attcl, tmp_path):
    cut_off(incomplete_root / BAD)
    empty(incomplete_root / BAD.replace("00001", "00003"))
    (incomplete_root / "Phantom_00009").mkdir()
    lines = refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=str(incomplete_root),
        hint=".",
    )
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 3
    for case in ("Phantom_00001", "Phantom_00003", "Phantom_00009"):
        assert sum(case in line for line in errors) == 1
    assert [line for line in lines if not line.startswith(("error: ", "hint: "))] == []


def test_a_case_with_no_modality_is_named(incomplete_root, trained_run, attcl, tmp_path):
    for path in (incomplete_root / "Phantom_00002").glob("*[!g].nii.gz"):
        path.unlink()
    refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=f"{incomplete_root / 'Phantom_00002'}: a case with no modality",
        hint="remove the folder",
    )


@pytest.mark.parametrize("command", ["info", "prepare-splits", "complete", "train"])
def test_an_unknown_layout_is_shown_next_to_the_known_ones(
    command, trained_run, attcl, elsewhere, tmp_path
):
    root = tmp_path / "in"
    root.mkdir()
    (root / "scan 1.nii.gz").write_bytes(b"x")
    options = {
        "info": (root,),
        "prepare-splits": (root,),
        "complete": ("--ori", root, "-w", trained_run),
        "train": ("--data", root),
    }
    lines = refusal(
        attcl(command, *options[command]),
        code=1,
        names=f"{root}: unknown folder layout: 1 image such as scan 1.nii.gz",
        hint="--modalities",
    )
    assert "BIDS" in lines[0]
    assert "BraTS 2018-2021" in lines[0]
    assert states(elsewhere) == {}


@pytest.mark.parametrize("command", ["info", "prepare-splits", "complete", "train"])
def test_a_folder_that_is_not_there_is_named(command, attcl, elsewhere):
    flags = {"complete": ("--ori",), "train": ("--data",)}
    refusal(
        attcl(command, *flags.get(command, ()), "nowhere"), code=1, names="nowhere: no such folder"
    )
    assert states(elsewhere) == {}


def test_a_damaged_splits_json_is_named(incomplete_root, trained_run, attcl, tmp_path):
    (incomplete_root / "splits.json").write_text('{"schema_version": 1}')
    for command in (
        ("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run),
        ("train", "--data", incomplete_root, "-o", tmp_path / "out"),
    ):
        refusal(
            attcl(*command),
            code=1,
            names=f"{incomplete_root / 'splits.json'}: not the content",
            hint="prepare-splits",
        )
        assert not (tmp_path / "out").exists()
