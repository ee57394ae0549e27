"""Temporary files and folders: what nobody holds is swept, what is being written is not, on any machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attcl_cli import temporaries
from attcl_cli.files import write_whole
from attcl_cli.temporaries import (
    TEMPORARY_SUFFIX,
    remove_leftover,
    sweep,
    sweep_beside,
    temporary_file,
    temporary_folder,
    temporary_prefix,
)

# Makes a temporary file and a temporary folder, says so, and waits.
_HOLDER = """
import pathlib, sys
from attcl_cli.temporaries import temporary_file, temporary_folder
place = pathlib.Path(sys.argv[1])
with temporary_file(place / "a.nii.gz"), temporary_folder(place / "b") as folder:
    (folder / "inner").touch()
    print("holds", flush=True)
    sys.stdin.read()
"""

HOST = temporary_prefix(Path("a")).removeprefix(".a.").rsplit("-", 2)[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def holder(tmp_path):
    """A process that holds a temporary file and a temporary folder in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def as_another_machine(root: Path) -> None:
    """Rename what is temporary below a folder, as if another host with these very process numbers had made it."""
    for path in list(root.rglob(f"*{TEMPORARY_SUFFIX}")):
        path.rename(path.with_name(path.name.replace(f".{HOST}-", ".elsewhere-")))


@pytest.mark.parametrize("rename", [lambda _root: None, as_another_machine])
def test_what_a_live_process_holds_is_spared_and_what_a_killed_one_left_is_swept(
    rename, holder, tmp_path
):
    rename(tmp_path)
    before = names(tmp_path)
    assert len(before) == 2
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == before
    holder.kill()
    holder.wait()
    assert sweep(tmp_path) == 2
    assert names(tmp_path) == []


def test_a_leftover_of_a_process_with_our_own_number_is_swept(tmp_path):
    # two containers: the same host name, and both ran as process 1
    left = tmp_path / f"{temporary_prefix(tmp_path / 'a')}x{TEMPORARY_SUFFIX}"
    left.touch()
    assert sweep(tmp_path) == 1


def test_what_this_process_holds_is_spared_also_where_a_lock_does_not_keep_it_out(tmp_path):
    with temporary_file(tmp_path / "a") as (_, place), temporary_folder(tmp_path / "b") as folder:
        assert not remove_leftover(place)
        assert not remove_leftover(folder)
        assert sweep(tmp_path) == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["a.host-1-x.attcl-tmp", ".hidden.attcl-tmp", ".a.host-1-x", ".a.host-one-x.attcl-tmp"]
)
def test_other_files_are_no_leftovers(name, tmp_path):
    (tmp_path / name).touch()
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == [name]


def test_a_link_or_a_pipe_with_the_name_of_a_leftover_is_left_alone(tmp_path):
    name = f"{temporary_prefix(tmp_path / 'a')}x{TEMPORARY_SUFFIX}"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / name).symlink_to(tmp_path / "folder")
    (tmp_path / "below").mkdir()
    os.mkfifo(tmp_path / "below" / name)
    assert sweep(tmp_path) == 0
    assert (tmp_path / "folder/file").exists()


def test_without_locks_age_and_process_decide(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = f"{temporary_prefix(tmp_path / 'a')}x{TEMPORARY_SUFFIX}"
    other = mine.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = other.replace(f".{HOST}-", ".elsewhere-")
    monkeypatch.setattr(temporaries, "fcntl", None)
    hour_ago = time.time() - 3700
    for name in (mine, other, elsewhere):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (hour_ago, hour_ago))
    young = other.replace("x.attcl", "young.attcl")
    (tmp_path / young).touch()
    assert sweep(tmp_path) == 2
    assert names(tmp_path) == sorted([mine, young])


def test_only_the_neighbours_of_a_path_are_swept_beside_it(tmp_path):
    for name in ("a", "ab"):
        (tmp_path / f"{temporary_prefix(Path(name))}x{TEMPORARY_SUFFIX}").mkdir()
    assert sweep_beside(tmp_path / "a") == 1
    assert [name.split(".")[1] for name in names(tmp_path)] == ["ab"]
    assert sweep_beside(tmp_path / "none" / "a") == 0


def test_a_long_name_leaves_room_for_what_a_temporary_one_adds(tmp_path):
    path = tmp_path / f"{'ä' * 120}.nii.gz"  # 247 bytes of at most 255
    write_whole(path, b"data")
    assert names(tmp_path) == [path.name]
    (tmp_path / f"{temporary_prefix(path)}x{TEMPORARY_SUFFIX}").touch()
    assert sweep_beside(path) == 1


def test_a_temporary_name_holds_that_of_the_file_and_the_process(tmp_path, monkeypatch):
    names_before = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (names_before.append(self.name), replace(self, to))
    )
    path = tmp_path / "Case_01_t1.nii.gz"
    write_whole(path, b"data")
    assert names_before[0].startswith(temporary_prefix(path))
    assert names_before[0].endswith(TEMPORARY_SUFFIX)
    assert f"-{os.getpid()}-" in names_before[0]


def test_a_file_that_a_sweep_without_locks_took_is_written_again(tmp_path, monkeypatch):
    replace, taken = Path.replace, []

    def replaced(self, to):
        if not taken:
            taken.append(self)
            self.unlink()
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(tmp_path / "a", b"data")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert names(tmp_path) == ["a"]


def test_an_exception_of_any_kind_removes_what_is_temporary(tmp_path):
    for make in (temporary_file, temporary_folder):
        with pytest.raises(KeyboardInterrupt), make(tmp_path / "a"):
            raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_folder_that_was_renamed_stays(tmp_path):
    with temporary_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
        folder.rename(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    shutil.rmtree(tmp_path / "a")


def test_sweep_of_a_folder_that_does_not_exist_removes_nothing(tmp_path):
    assert sweep(tmp_path / "none") == 0
