"""Outputs that must not or cannot be written to, through the command line; what was there before stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import pytest
from helpers import REPOSITORY, refusal, states


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
    """Without splits.json nothing but the links says where the originals are."""
    source, data = tmp_path / "source", tmp_path / "mine"
    shutil.copytree(phantom_root, source)
    for path in source.rglob("*[!2].nii.gz"):
        link = data / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    before = states(source)
    command = ("complete", "--ori", data, "-w", trained_run, "--target", "t2", *overwrite, "--cpl")
    for place in (source, source / "new", source / "Phantom_00000"):
        refusal(
            attcl(*command, place),
            code=2,
            names=f"--cpl: {place} lies inside {source}",
            hint=f"choose another --cpl, such as {data}-attcl",
        )
    refusal(
        attcl(*command, tmp_path),
        code=2,
        names=f"--cpl: {tmp_path} holds {data}",
        hint=f"choose another --cpl, such as {data}-attcl",
    )
    assert states(source) == before


@pytest.mark.parametrize("command", ["prepare-splits", "train", "complete"])
def test_a_file_in_the_place_of_the_output_is_named(
    command, phantom_root, incomplete_root, trained_run, attcl, tmp_path
):
    (tmp_path / "file").write_text("mine")
    options = {
        "prepare-splits": (phantom_root, "-o"),
        "train": ("--data", phantom_root, "-o"),
        "complete": ("--ori", incomplete_root, "-w", trained_run, "--cpl"),
    }
    flag = "--cpl" if command == "complete" else "--output"
    for place in (tmp_path / "file", tmp_path / "file/sub"):
        refusal(
            attcl(command, *options[command], place),
            code=2,
            names=f"{flag}: {place} ",
            hint=f"choose another {flag}",
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


def test_a_disk_that_is_too_small_is_found_before_the_start(
    incomplete_root, trained_run, attcl, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 999, 999)
    )
    refusal(
        attcl("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", trained_run),
        code=1,
        names=f"{tmp_path / 'out'}: 999 bytes free, expected about",
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
        if path.name != "log.txt":
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
    left = [path for path in out.rglob("*") if path.is_file() and path.name != "log.txt"]
    assert {path.suffix for path in left} == {".json"}
    assert json.loads((out / "run.json").read_text())["exit_code"] == 1
