"""Every command looks at the voxels first: what it fixes is a note, what it cannot fix stops it, `--force` goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import fingerprint, refusal

from attcl_cli.data import volumes

NOISY = "Phantom_00001/Phantom_00001_t1.nii.gz"


def rewrite(path: Path, how: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    data = how(np.asanyarray(image.dataobj))
    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    nib.save(nib.Nifti1Image(data, image.affine, header), path)


def with_noise(data: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(1, 40, data.shape)
    return np.where(data > 0, data, noise).astype(np.int16)


def z_scored(data: np.ndarray) -> np.ndarray:
    return ((data - data.mean()) / data.std()).astype(np.float32)


def off_the_brain(labels: np.ndarray) -> np.ndarray:
    result = np.zeros_like(labels)
    result[:3] = 1
    return result


def images_of(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*.nii.gz")) if "_seg" not in path.name]


@pytest.fixture
def noisy(incomplete_root: Path) -> Path:
    """Four phantoms with missing modalities; the air of one volume is noise."""
    shutil.copy(
        incomplete_root / "Phantom_00000" / "Phantom_00000_t1.nii.gz", incomplete_root / NOISY
    )
    rewrite(incomplete_root / NOISY, with_noise)
    return incomplete_root


def test_info_lists_the_fault_and_ends_with_code_3(noisy, attcl):
    code, out, _ = attcl("info", noisy)
    assert code == 3
    assert f"- {noisy / NOISY}: " in out
    assert "HD-BET" in out
    code, out, _ = attcl("info", noisy, "--json")
    assert code == 3
    assert [item["code"] for item in json.loads(out)["problems"]] == ["background-noisy"]


@pytest.mark.parametrize(
    ("modality", "how", "code"),
    [
        ("t2", lambda data: np.flip(data, 0).copy(), "volume-mirrored"),
        (
            "t1ce",
            lambda data: np.where(np.arange(data.shape[1])[:, None] < 30, data, 0),
            "masks-disagree",
        ),
        ("t1", lambda data: np.concatenate([data[::2], data[1::2]]), "slices-out-of-order"),
        ("seg", lambda data: (255 * (data > 0)).astype(np.uint8), "label-values-unknown"),
        ("seg", off_the_brain, "labels-off-brain"),
    ],
)
@pytest.mark.parametrize("command", ["info", "prepare-splits"])
def test_what_once_passed_in_silence_is_refused_by_its_code(
    command, modality, how, code, phantom_root, attcl, tmp_path
):
    root = tmp_path / "cohort"
    shutil.copytree(phantom_root, root)
    path = root / "Phantom_00002" / f"Phantom_00002_{modality}.nii.gz"
    rewrite(path, how)
    if command == "info":
        exit_code, out, _ = attcl("info", root, "--json")
        assert exit_code == 3
        assert [item["code"] for item in json.loads(out)["problems"]] == [code]
    else:
        arguments = commands(root, tmp_path)[command]
        refusal(attcl(*arguments), code=1, names=f"{path}: ", hint="--force")
        exit_code, _, err = attcl(*arguments, "--force")
        assert exit_code == 0, err
        assert f"note: taken all the same: {path}: " in err


@pytest.mark.parametrize("command", ["prepare-splits", "train", "complete"])
def test_exchanged_names_are_said_by_every_command(
    command, incomplete_root, attcl, tmp_path, elsewhere
):
    folder = incomplete_root / "Phantom_00002"  # the case that lacks nothing
    one, other = (folder / f"Phantom_00002_{name}.nii.gz" for name in ("t1", "t2"))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    exit_code, _, err = attcl(*commands(incomplete_root, tmp_path)[command])
    assert exit_code == 0, err
    said = "note: 1 case with t1 and t2 as if their names were exchanged, such as "
    assert (f"{said}{one}" in err) == (command != "complete")  # which completes the other cases


def ratio_file(folder: Path) -> Path:
    path = folder / "ratio.toml"
    path.write_text('hidden = [["t1ce"], ["t1"]]')
    return path


def commands(root: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    tree, out = tmp_path / "data", tmp_path / "out"
    sizes = ("--sizes", "2/1/1", "--ratio", ratio_file(tmp_path))
    return {
        "prepare-splits": ("prepare-splits", root, "-o", tree, *sizes, "-n"),
        "train": ("train", "--data", root, "--preset", "tiny", "-d", "cpu", "-n"),
        "complete": ("complete", "--ori", root, "--cpl", out, "-w", "phantom-tiny", "-n"),
    }


@pytest.mark.parametrize("command", ["prepare-splits", "train", "complete"])
def test_a_command_refuses_it_and_takes_it_by_force(command, noisy, attcl, tmp_path, elsewhere):
    arguments = commands(noisy, tmp_path)[command]
    lines = refusal(attcl(*arguments), code=1, names=f"{noisy / NOISY}: ", hint="--force")
    assert "expected one background value" in lines[0]
    code, _, err = attcl(*arguments, "--force")
    assert code == 0, err
    assert f"note: taken all the same: {noisy / NOISY}: " in err


@pytest.mark.parametrize(("name", "how"), [("flair", with_noise), ("seg", off_the_brain)])
def test_segment_refuses_it_and_takes_it_by_force(name, how, study, attcl):
    tree = study.root / "data"
    case = study.splits.names("train")[1]
    link = tree / case / f"{case}_{name}.nii.gz"
    original = link.resolve()
    link.unlink()
    shutil.copy(original, link)
    rewrite(link, how)
    arguments = ("segment", "--preset", "tiny", "-d", "cpu", "-n")
    refusal(attcl(*arguments), code=1, names=f"data/{case}/{case}_{name}.nii.gz: ", hint="--force")
    code, _, err = attcl(*arguments, "--force")
    assert code == 0, err
    assert "note: taken all the same: " in err


def test_a_dry_run_of_segment_beside_an_output_passes_and_writes_nothing(study, attcl):
    (study.root / "segment").mkdir()
    (study.root / "segment" / "mine.txt").write_text("mine")
    before = fingerprint(study.root / "segment")
    code, _, err = attcl("segment", "--preset", "tiny", "-d", "cpu", "-n")
    assert code == 0, err
    assert "note: --output: segment" in err
    assert fingerprint(study.root / "segment") == before


def test_complete_keeps_going_without_the_faulty_case(noisy, attcl, tmp_path):
    arguments = commands(noisy, tmp_path)["complete"]
    code, out, _ = attcl(*arguments, "--keep-going", "--json")
    assert code == 0
    assert list(json.loads(out)["failed"]) == ["Phantom_00001"]


def test_a_background_that_is_not_0_is_taken_off_and_put_back(incomplete_root, attcl, tmp_path):
    """Completing volumes plus 10 gives the volumes of the clean dataset plus 10."""
    shifted = tmp_path / "shifted"
    shutil.copytree(incomplete_root, shifted)
    for path in images_of(shifted):
        rewrite(path, lambda data: data + np.int16(10))
    told = {}
    for root in (incomplete_root, shifted):
        arguments = ("--ori", root, "--cpl", tmp_path / f"out-{root.name}", "-w", "phantom-tiny")
        code, _, told[root.name] = attcl("complete", *arguments, "-d", "cpu", "--target", "t2")
        assert code == 0, told[root.name]
    assert "a background other than 0" in told["shifted"]
    assert "note: " not in told[incomplete_root.name]
    made = images_of(tmp_path / "out-shifted")
    assert len(made) == 2
    for path in made:
        own = np.asanyarray(nib.load(path).dataobj)
        clean = (
            tmp_path / f"out-{incomplete_root.name}" / path.relative_to(tmp_path / "out-shifted")
        )
        expected = np.asanyarray(nib.load(clean).dataobj) + 10
        assert own.dtype == expected.dtype == np.int16
        assert np.abs(own.astype(int) - expected).max() <= 1
        assert np.array_equal(own == 10, expected == 10)


def test_z_scores_are_completed_and_scored_end_to_end(phantom_root, attcl, tmp_path, elsewhere):
    root = tmp_path / "z"
    shutil.copytree(phantom_root, root)
    for path in images_of(root):
        rewrite(path, z_scored)
    data, out = tmp_path / "data", tmp_path / "out"
    splits = ("--sizes", "2/1/1", "--ratio", ratio_file(tmp_path))
    code, _, err = attcl("prepare-splits", root, "-o", data, *splits)
    assert code == 0, err
    assert "16 volumes have a background other than 0" in err
    arguments = ("--ori", data, "--cpl", out)
    code, _, err = attcl("complete", *arguments, "-w", "phantom-tiny", "-d", "cpu")
    assert code == 0, err
    made = images_of(out)
    assert made
    for path in made:
        stored = np.asanyarray(nib.load(path).dataobj)
        truth = volumes.load([root / path.relative_to(out)])
        assert stored.dtype == np.float32
        assert stored[0, 0, 0] < 0
        assert volumes.load([path]).background == pytest.approx(truth.background, abs=0.1)
        assert np.mean((volumes.load([path]).data != 0) == (truth.data != 0)) > 0.99
    code, _, err = attcl("score", *arguments, "-o", tmp_path / "scores", "--split", "all")
    assert code == 0, err


def test_another_background_than_in_training_is_said(incomplete_root, attcl, tmp_path):
    arguments = ("--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", "phantom-tiny")
    code, _, err = attcl("complete", *arguments, "--background", "0")
    assert code == 0, err
    assert "trained with --background auto, used with 0" in err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "trained with --background auto, used with 0" in page


@pytest.mark.parametrize(
    "arguments",
    [("info", "."), ("prepare-splits", "."), ("train",), ("complete",), ("score",), ("segment",)],
)
def test_a_background_that_is_no_number_is_refused(arguments, attcl, elsewhere):
    refusal(attcl(*arguments, "--background", "none"), code=2, names="--background: 'none'")
