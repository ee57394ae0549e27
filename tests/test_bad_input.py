"""What users get wrong, through the command line: the exit code, one line that names the thing, and nothing written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import states
from PIL import Image

from attcl_cli.methods.settings import dump

REPOSITORY = Path(__file__).resolve().parents[1]
BAD = "Phantom_00001/Phantom_00001_flair.nii.gz"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that no default path leads anywhere."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refusal(outcome: tuple[int, str, str], *, code: int, names: str, hint: str = "") -> list[str]:
    """Checks an error's form; returns the lines of stderr.

    Args:
        outcome: what `attcl` returned.
        code: the exit code.
        names: what line 1 must begin with, after `error: `.
        hint: a regular expression for a `hint:` that must follow; "" where none is promised.
    """
    found, out, err = outcome
    lines = err.splitlines()
    assert found == code, err
    assert out == ""
    assert "Traceback" not in err
    assert lines[0].startswith(f"error: {names}"), err
    if hint:
        hints = [line for line in lines if line.startswith("hint: ")]
        assert hints, err
        assert re.search(hint, hints[0]), err
    return lines


# --- files that are no good -------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **options: object) -> None:
    image = nib.load(path)
    data = change(np.asanyarray(image.dataobj))
    nib.save(nib.Nifti1Image(data, options.get("affine", image.affine)), path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


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


@pytest.mark.parametrize("spoil", BAD_FILES, ids=lambda spoil: spoil.__name__)
def test_info_lists_a_bad_file(spoil, incomplete_root, attcl):
    spoil(incomplete_root / BAD)
    code, out, _ = attcl("info", incomplete_root, "--json")
    (problem,) = json.loads(out)["problems"]
    assert code == 0
    assert re.search(BAD_FILES[spoil], problem["error"])


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
    name, found = BAD_SLICES[spoil]
    before = states(root)
    lines = refusal(
        attcl("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=f"{root / 'flair' / name}: ",
        hint=".",
    )
    assert re.search(found, lines[0])
    assert not (tmp_path / "out").exists()
    assert states(root) == before


def test_several_problems_are_told_together(incomplete_root, trained_run, attcl, tmp_path):
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
def test_a_layout_that_nobody_knows_is_shown_next_to_the_known_ones(
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
        names=f"{root}: unknown folder layout: 1 images such as scan 1.nii.gz",
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


# --- places that must not or cannot be written to ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["incomplete", "incomplete/out", "link/out", "link", "a/../incomplete/b"]
)
def test_an_output_inside_the_originals_is_refused(
    place, incomplete_root, trained_run, attcl, tmp_path
):
    (tmp_path / "link").symlink_to(incomplete_root)
    before = states(incomplete_root)
    refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", tmp_path / place, "-w", trained_run),
        code=2,
        names=f"--cpl: {tmp_path / place} lies inside {incomplete_root}",
        hint="choose another --cpl",
    )
    assert states(incomplete_root) == before


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_an_output_inside_the_source_of_a_data_tree_is_refused(
    link, phantom_root, trained_run, attcl, tmp_path
):
    source, data = tmp_path / "source", tmp_path / "data"
    shutil.copytree(phantom_root, source)
    assert attcl("prepare-splits", source, "-o", data, "--ratio", "ratio3", "--link", link)[0] == 0
    before = states(source)
    (tmp_path / "way").symlink_to(source / "Phantom_00001")
    for place in (source, source / "out", tmp_path / "way"):
        refusal(
            attcl("complete", "--ori", data, "--cpl", place, "-w", trained_run),
            code=2,
            names=f"--cpl: {place} lies inside {source}",
            hint="choose another --cpl",
        )
    assert states(source) == before


@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--link-originals",)], ids=str)
@pytest.mark.parametrize("linked", ["Phantom_00000", "Phantom_00000/Phantom_00000_t2.nii.gz"])
def test_a_link_in_the_output_that_leads_to_the_originals_is_refused(
    linked, options, incomplete_root, phantom_root, trained_run, attcl, tmp_path
):
    """A linked folder that lacks t2, in which the result would be written; a linked file that it would replace."""
    out = tmp_path / "out"
    (out / linked).parent.mkdir(parents=True)
    (out / linked).symlink_to((phantom_root if "_t2" in linked else incomplete_root) / linked)
    before = states(out), states(incomplete_root), states(phantom_root)
    lines = refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", out, "-w", trained_run, *options),
        code=1,
        names=f"{out / 'Phantom_00000/Phantom_00000_t2.nii.gz'}: leads out of {out} through a link",
        hint="remove the link",
    )
    assert lines[0].endswith("expected a place inside")
    assert (states(out), states(incomplete_root), states(phantom_root)) == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=str)
def test_a_tree_of_ones_own_links_cannot_be_completed_over_its_originals(
    overwrite, phantom_root, trained_run, attcl, tmp_path
):
    """Without splits.json nothing says where the links lead; the hidden originals must survive all the same."""
    source, data = tmp_path / "source", tmp_path / "mine"
    shutil.copytree(phantom_root, source)
    for path in source.rglob("*[!2].nii.gz"):
        link = data / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    before = states(source)
    refusal(
        attcl("complete", "--ori", data, "--cpl", source, "-w", trained_run, *overwrite),
        code=1,
        names=f"{source / 'Phantom_00000/Phantom_00000_t2.nii.gz'}: has no label",
        hint="another --cpl",
    )
    assert states(source) == before


def test_a_file_in_the_place_of_the_output_is_named(incomplete_root, trained_run, attcl, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place, code in ((tmp_path / "file", 2), (tmp_path / "file/out", 1)):
        refusal(
            attcl("complete", "--ori", incomplete_root, "--cpl", place, "-w", trained_run),
            code=code,
            names="--cpl: " if code == 2 else str(place),
            hint="another",
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_in_the_place_of_a_case_folder_is_named(
    incomplete_root, trained_run, attcl, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/Phantom_00001").write_text("mine")
    outcome = attcl(
        "complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run, "-q"
    )
    refusal(outcome, code=1, names=f"{tmp_path / 'out/Phantom_00001'}", hint="another output")
    assert (tmp_path / "out/Phantom_00001").read_text() == "mine"


@pytest.mark.parametrize("command", ["prepare-splits", "train"])
def test_a_file_in_the_place_of_another_output_is_named(command, phantom_root, attcl, tmp_path):
    (tmp_path / "file").write_text("mine")
    options = {"prepare-splits": (phantom_root,), "train": ("--data", phantom_root)}
    for place in (tmp_path / "file", tmp_path / "file/sub"):
        code, out, err = attcl(command, *options[command], "-o", place)
        assert (code in {1, 2}, out) == (True, ""), err
        assert err.startswith("error: "), err
        assert str(place) in err.splitlines()[0]
        assert "Traceback" not in err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_too_small_is_found_before_the_start(
    incomplete_root, trained_run, attcl, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 999, 999)
    )
    refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=f"{tmp_path / 'out'}: 0.00 GB free, expected about",
        hint="free some space",
    )
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_whole_files_only(
    incomplete_root, trained_run, attcl, monkeypatch, tmp_path
):
    out = tmp_path / "out"
    command = ("complete", "--ori", incomplete_root, "--cpl", out, "-w", trained_run, "-q")
    real, count = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        refusal(attcl(*command), code=1, names=str(out), hint="free some space")
    left = [path for path in out.rglob("*") if path.is_file()]
    assert any(path.suffix == ".gz" for path in left)
    assert not [path for path in left if path.suffix == ".attcl-tmp"]
    for path in left:
        nib.load(path).get_fdata() if path.suffix == ".gz" else json.loads(path.read_text())
    assert attcl(*command)[0] == 0
    assert len(list(out.rglob("*.nii.gz"))) == 4


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
from attcl_cli.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are a matter of POSIX")
def test_files_that_are_too_large_for_the_system_leave_none_half_written(
    incomplete_root, trained_run, tmp_path
):
    out = tmp_path / "out"
    command = ("complete", "--ori", incomplete_root, "--cpl", out, "-w", trained_run, "-q")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    refusal(
        (done.returncode, done.stdout, done.stderr),
        code=1,
        names=f"{out}/Phantom_0000",
        hint="free some space",
    )
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json"}
    assert json.loads((out / "run.json").read_text())["exit_code"] == 1


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied_weights(trained_run: Path, tmp_path: Path) -> Path:
    """Weights and card, to be spoiled."""
    for name in ("weights.safetensors", "weights.json"):
        shutil.copyfile(trained_run / name, tmp_path / name)
    return tmp_path / "weights.safetensors"


def test_weights_with_another_hash_than_their_card_are_refused(
    copied_weights, incomplete_root, attcl, tmp_path
):
    data = bytearray(copied_weights.read_bytes())
    data[-1] ^= 1
    copied_weights.write_bytes(data)
    lines = refusal(
        attcl(
            "complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", copied_weights
        ),
        code=1,
        names=f"{copied_weights}: SHA-256 ",
        hint="copy the weights again",
    )
    assert "as its card weights.json says" in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_card_that_is_no_json_is_named(copied_weights, incomplete_root, attcl, tmp_path):
    card = copied_weights.with_suffix(".json")
    for content in ("{", "[]"):
        card.write_text(content)
        refusal(
            attcl(
                "complete",
                "--ori",
                incomplete_root,
                "--cpl",
                tmp_path / "out",
                "-w",
                copied_weights,
            ),
            code=1,
            names=f"{card}: " if content == "{" else str(copied_weights),
        )


def no_safetensors(path: Path) -> None:
    path.write_text("not a tensor\n")


def cut_off_weights(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_bytes(path: Path) -> None:
    path.write_bytes(b"")


def others_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)


def described_by_nonsense(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path, metadata={"attcl": "nonsense"})


def of_another_method(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["attcl"])
    document["settings"]["method"] = "magic"
    save_file(load_file(path), path, metadata={"attcl": json.dumps(document)})


@pytest.mark.parametrize(
    "spoil",
    [
        no_safetensors,
        cut_off_weights,
        no_bytes,
        others_safetensors,
        described_by_nonsense,
        of_another_method,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_file_that_is_no_weights_is_named(
    spoil, copied_weights, incomplete_root, attcl, tmp_path
):
    copied_weights.with_suffix(".json").unlink()
    spoil(copied_weights)
    refusal(
        attcl(
            "complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", copied_weights
        ),
        code=1,
        names=f"{copied_weights}: ",
    )
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_know_a_needed_modality_are_refused(
    incomplete_root, tiny_settings, attcl, tmp_path
):
    import torch

    from attcl_cli.data.intensities import Scale
    from attcl_cli.methods import METHODS
    from attcl_cli.methods.weights import WeightsInfo, save_weights

    known = ("flair", "t1")
    method = METHODS["attcl-gan"](tiny_settings, known)
    size = tiny_settings.image_size
    method.remember_references({name: torch.zeros(1, 1, size, size) for name in known})
    info = WeightsInfo(
        settings=tiny_settings,
        modalities=known,
        scales=dict.fromkeys(known, Scale(0.0, 100.0)),
        references={},
        trained_on=(),
        steps=0,
    )
    path = tmp_path / "two.safetensors"
    save_weights(path, method, info)
    command = ("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", path)
    lines = refusal(attcl(*command), code=1, names=f"{path}: knows flair, t1", hint="--target")
    assert "t1ce too (1 cases need it)" in lines[0]
    assert any("t2 too (2 cases need it)" in line for line in lines[1:])
    assert not (tmp_path / "out").exists()
    assert attcl(*command, "--target", "t1")[0] == 0


def test_weights_that_are_not_there_are_named(incomplete_root, trained_run, attcl, elsewhere):
    (elsewhere / "empty").mkdir()
    for name in ("nowhere", "empty", "nowhere.safetensors"):
        refusal(
            attcl("complete", "--ori", incomplete_root, "-w", name),
            code=2,
            names=f"--weights: {name!r} is no file",
        )
    assert set(states(elsewhere)) == {"empty"}


def test_without_any_weights_the_next_step_is_to_train(
    incomplete_root, attcl, elsewhere, monkeypatch
):
    from attcl_cli.methods import weights as checkpoint

    monkeypatch.setattr(checkpoint, "weights_folders", list)
    refusal(
        attcl("complete", "--ori", incomplete_root),
        code=2,
        names="--weights: none given",
        hint="attcl train",
    )
    assert states(elsewhere) == {}


# --- wrong usage ------------------------------------------------------------------------------------------------------

# arguments -> what line 1 begins with; {data} is a sound dataset, {run} a run with weights, {config} its settings
USAGE = {
    "complete --ori {data} -w {run} --device cuda:7": "--device: 'cuda:7' is not on this machine",
    "complete --ori {data} -w {run} --device tpu": "--device: 'tpu' is not on this machine",
    "train --data {data} --device cuda:x": "--device: 'cuda:x' is not on this machine",
    "complete --ori {data} -w {run} --target adc": "--target: ",
    "complete --ori {data} -w {run} --slices 5": "--slices: '5'",
    "complete --ori {data} -w {run} --slices 9:3": "--slices: '9:3'",
    "complete --ori {data} -w {run} --slices a:b": "--slices: 'a:b'",
    "complete --ori {data} -w {run} --slices=-1:4": "--slices: '-1:4'",
    "complete --ori {data} -w {run} --num-parts 2 --part-id 3": "--part-id: 3, expected 1 to",
    "complete --ori {data} -w {run} --num-parts 0": "Invalid value for '--num-parts'",
    "complete --ori {data} -w {run} --batch-size 0": "Invalid value for '--batch-size'",
    "complete --ori {data} -w {run} --num-workers -1": "Invalid value for '--num-workers'",
    "complete --ori {data} -w {run} --layout dicom": "--layout: 'dicom'",
    "complete --ori {data} -w {run} --cpll out": "No such option: --cpll",
    "complete --ori": "Option '--ori' requires an argument",
    "complete {data}": "Got unexpected extra argument",
    "complet --ori {data}": "No such command 'complet'",
    "prepare-splits": "Missing argument",
    "prepare-splits {data} --ratio ratio9": "--ratio: 'ratio9'",
    "prepare-splits {data} --sizes 1/2": "--sizes: '1/2'",
    "prepare-splits {data} --sizes 9/9/9": "--sizes: 9/9/9 of 4 cases",
    "prepare-splits {data} --sizes 2/1/1 --fractions 0.5/0.3/0.2": "--sizes and --fractions",
    "prepare-splits {data} --fractions a/b/c": "--fractions: 'a/b/c'",
    "prepare-splits {data} --fractions 0.9/0.9/0.9": "--fractions: 0.9/0.9/0.9",
    "prepare-splits {data} --subset 1/0": "--subset: '1/0'",
    "prepare-splits {data} --subset 1/100": "--subset: 1/100",
    "prepare-splits {data} --link magic": "Invalid value for '--link'",
    "prepare-splits {data} --seed -1": "Invalid value for '--seed'",
    "train --data {data} --preset huge": "--preset: 'huge'",
    "train --data {data} --method magic": "--method: ",
    "train --data {data} --set lambda_scdd=1": "setting 'lambda_scdd': no such setting",
    "train --data {data} --set steps=-1": "setting steps: found -1",
    "train --data {data} --set steps": "--set: 'steps'",
    "train --data {data} --steps 0": "Invalid value for '--steps'",
    "train --data {data} --config nowhere.toml": "nowhere.toml: no such file",
    "train --data {data} --resume nowhere": "--resume: nowhere",
    "train --data {data} --resume nowhere --config {config}": "--resume: nowhere",
    "info --jsn": "No such option: --jsn",
}  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage_exits_with_2_names_the_flag_and_writes_nothing(
    arguments, phantom_root, trained_run, tiny_settings, attcl, elsewhere, tmp_path
):
    config = tmp_path / "tiny.toml"
    config.write_text(dump(tiny_settings))
    words = arguments.format(data=phantom_root, run=trained_run, config=config).split()
    lines = refusal(attcl(*words), code=2, names=USAGE[arguments])
    if not re.search(", expected |input should be", lines[0]):  # the parser's own words
        assert lines[1].startswith("hint: see: attcl")
    assert states(elsewhere) == {}


def test_an_unknown_setting_is_answered_with_the_nearest_one(phantom_root, attcl, elsewhere):
    (elsewhere / "mine.toml").write_text("lamda_scd = 0.2\nlerning_rate = 0.1\n")
    before = states(elsewhere)
    lines = refusal(
        attcl("train", "--data", phantom_root, "-c", "mine.toml"),
        code=2,
        names="setting 'lamda_scd': no such setting",
        hint="did you mean 'lambda_scd'",
    )
    assert any(line.startswith("error: setting 'lerning_rate'") for line in lines[1:])
    assert states(elsewhere) == before


def test_a_run_that_holds_no_checkpoint_cannot_be_resumed(
    phantom_root, tiny_settings, attcl, elsewhere
):
    (elsewhere / "run").mkdir()
    (elsewhere / "run/config.toml").write_text(dump(tiny_settings))
    before = states(elsewhere)
    refusal(
        attcl("train", "--data", phantom_root, "--resume", "run"),
        code=2,
        names="--resume: run",
        hint="another run",
    )
    assert states(elsewhere) == before


def test_an_existing_run_is_not_trained_over(phantom_root, attcl, elsewhere):
    (elsewhere / "run").mkdir()
    (elsewhere / "run/note.txt").write_text("mine")
    before = states(elsewhere)
    refusal(
        attcl("train", "--data", phantom_root, "-o", "run"),
        code=2,
        names="--output: run is not empty",
        hint="attcl train --resume run",
    )
    assert states(elsewhere) == before


def test_prepare_splits_replaces_nothing_that_it_did_not_make(phantom_root, attcl, elsewhere):
    (elsewhere / "data").mkdir()
    (elsewhere / "data/note.txt").write_text("mine")
    before = states(elsewhere)
    for options in ((), ("--overwrite",)):
        refusal(
            attcl("prepare-splits", phantom_root, "--ratio", "ratio3", *options),
            code=2,
            names="--output: data",
            hint="another --output",
        )
        assert states(elsewhere) == before


def test_debug_shows_the_traceback_before_the_error(attcl, elsewhere):
    code, _, err = attcl("info", "nowhere", "--debug")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.splitlines()[-2].startswith("error: nowhere: no such folder")
