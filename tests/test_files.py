"""Files appear whole or not at all; what killed writers leave is swept, what live ones make is not."""

from __future__ import annotations

import csv
import errno
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from attcl_cli import files
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import (
    free_bytes,
    is_within,
    lack_of_room,
    place_beside,
    read_json,
    read_toml,
    refuse_inside,
    require_empty,
    require_folder,
    sha256,
    write_json,
    write_whole,
)
from attcl_cli.temporaries import sweep


@dataclass(frozen=True)
class Record:
    name: str
    value: float
    count: int = 1


def refuse(code: int):
    def call(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_whole_makes_missing_folders_and_leaves_nothing_else(tmp_path):
    write_whole(tmp_path / "a" / "b" / "c.bin", b"\x00\x01")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00\x01"
    assert names(tmp_path / "a" / "b") == ["c.bin"]


def test_written_files_have_ordinary_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_before_the_rename_keeps_the_old_content_and_no_temporary(
    tmp_path, monkeypatch, step
):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    owner = os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, refuse(errno.EIO))
    with pytest.raises(AttclError, match="not written"):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(AttclError) as caught:
        write_whole(tmp_path / "file", b"data")
    assert caught.value.message == (
        f"{tmp_path / 'file'}: not written (No space left on device), "
        "expected a writable place with free space"
    )
    assert caught.value.hint.startswith("free some space")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "expected", "hint"),
    [
        (errno.EROFS, "a file system that can be written to", "mount this file system for writing"),
        (errno.EACCES, "permission for it", "change its permissions"),
    ],
)
def test_a_place_that_lets_nothing_be_written_is_not_taken_for_a_full_disk(
    code, expected, hint, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", refuse(code))
    with pytest.raises(AttclError, match=f"{os.strerror(code)}.*expected {expected}") as caught:
        write_whole(tmp_path / "file", b"data")
    assert caught.value.hint.startswith(hint)
    monkeypatch.setattr("attcl_cli.files.free_bytes", lambda _folder: 0)
    monkeypatch.setattr("attcl_cli.files._is_read_only", lambda _folder: code == errno.EROFS)
    monkeypatch.setattr(os, "access", lambda _folder, _mode: False)
    (problem,) = lack_of_room(tmp_path / "out", 10, "volumes", flag="--cpl")
    assert problem.message == caught.value.message.replace("/file:", "/out:")
    assert problem.hint == caught.value.hint


def test_a_kill_in_the_middle_leaves_the_old_file_and_a_temporary_that_sweep_removes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = (
        "import os, signal, sys; from pathlib import Path; from attcl_cli import files;"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL);"
        "files.write_whole(Path(sys.argv[1]), b'new')"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == ["file"]


def test_a_file_too_large_for_the_system_is_an_error_and_leaves_nothing(tmp_path):
    script = (
        "import resource, signal, sys; from pathlib import Path;"
        "from attcl_cli import errors, files;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: files.write_whole(Path(sys.argv[1]), b'x' * 5000)\n"
        "except errors.AttclError as error: sys.exit(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "not written (File too large)" in done.stderr
    assert names(tmp_path) == []


def test_a_place_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AttclError, match=r"file/inner: not written"):
        write_whole(tmp_path / "file" / "inner", b"data")
    assert names(tmp_path) == ["file"]


def test_a_file_in_place_of_the_target_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(AttclError, match="not written"):
        write_whole(tmp_path / "folder", b"data")
    assert names(tmp_path) == ["folder"]


def test_is_within_follows_links_on_both_sides(tmp_path):
    (tmp_path / "ori" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "ori" / "inner")
    (tmp_path / "alias").symlink_to(tmp_path / "ori")
    assert is_within(tmp_path / "link" / "new", tmp_path / "ori")
    assert is_within(tmp_path / "ori" / "new", tmp_path / "alias")
    assert is_within(tmp_path / "ori", tmp_path / "ori")
    assert is_within(tmp_path / "other" / ".." / "ori" / "new", tmp_path / "ori")


def test_is_within_is_no_comparison_of_prefixes(tmp_path):
    assert not is_within(tmp_path / "original", tmp_path / "ori")
    assert not is_within(tmp_path, tmp_path / "ori")


def test_json_is_readable_ends_with_a_newline_and_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Müller", "n": None})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Müller",\n  "n": null\n}\n'
    assert read_json(tmp_path / "a.json") == {"name": "Müller", "n": None}


def test_nan_never_gets_into_json(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("nan"), -math.inf, 0.5]})
    assert read_json(tmp_path / "a.json") == {"x": [None, None, 0.5]}


def test_a_record_as_json_has_null_for_what_is_not_finite():
    assert files.as_json(Record("a", 0.5)) == {"name": "a", "value": 0.5, "count": 1}
    assert files.as_json(Record("a", math.nan))["value"] is None
    assert files.as_json(Record("a", -math.inf))["value"] is None


def test_a_table_has_a_line_a_record_and_an_empty_cell_for_nan(tmp_path):
    rows = [Record("a,b", 0.5, 2), Record("c", math.nan), Record("d", math.inf)]
    files.write_csv(tmp_path / "a.csv", Record, rows)
    assert (tmp_path / "a.csv").read_bytes() == (b'name,value,count\n"a,b",0.5,2\nc,,1\nd,inf,1\n')


FORMULAS = {
    "=1+1": "'=1+1",
    "+1": "'+1",
    "-1": "'-1",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": "'\t=1",
    "\r=1": "'\r=1",
    "\n=1": "'\n=1",
    "\uff1d1": "'\uff1d1",
    "'=1": "''=1",  # a name that looks as ours do stays apart from them
    "'A": "'A",
    "'": "'",
    "A=1": "A=1",
    "": "",
}


def test_a_text_that_a_spreadsheet_would_run_has_an_apostrophe_before_it(tmp_path):
    files.write_csv(tmp_path / "a.csv", Record, [Record(name, -0.3, -2) for name in FORMULAS])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))[1:]
    assert [line[0] for line in lines] == list(FORMULAS.values())
    assert {(line[1], line[2]) for line in lines} == {("-0.3", "-2")}
    assert [line["name"] for line in files.read_csv(tmp_path / "a.csv")] == list(FORMULAS)


@pytest.mark.parametrize("content", [None, b"a,b\n1,2,3\n", b"a\n\xff\n", b'a\n"'])
def test_what_is_no_table_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AttclError, match=r"a\.csv: not readable as CSV") as error:
        files.read_csv(path)
    assert error.value.code == "table-unreadable"


def test_a_table_of_nothing_is_its_header(tmp_path):
    files.write_csv(tmp_path / "a.csv", Record, [])
    assert (tmp_path / "a.csv").read_text() == "name,value,count\n"


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_what_is_no_json_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AttclError, match=r"a\.json: not readable as JSON"):
        read_json(path)


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_free_space_of_a_folder_to_be_is_that_of_its_disk(tmp_path):
    there = os.statvfs(tmp_path)
    free = free_bytes(tmp_path / "not" / "yet")
    assert free == pytest.approx(there.f_bavail * there.f_frsize, rel=0.1)


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "toml-missing"), (b"a = ", "toml-unreadable"), (b"\xff", "toml-unreadable")],
)
def test_what_is_no_toml_is_a_usage_error_that_says_what_was_expected(content, code, tmp_path):
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.toml: .*, expected a \[table\]") as caught:
        read_toml(path, expected="a [table]")
    assert caught.value.code == code


def test_toml_is_read(tmp_path):
    (tmp_path / "a.toml").write_text('a = ["ü"]\n', encoding="utf-8")
    assert read_toml(tmp_path / "a.toml", expected="a list") == {"a": ["ü"]}


# --- folders to write into --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("require", [require_folder, require_empty])
def test_an_empty_or_a_new_folder_may_be_written_into(require, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "new/below", Path("new"), Path()):
        require(folder, flag="--output")


@pytest.mark.parametrize("require", [require_folder, require_empty])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "--cpl: file is a file, expected a folder"),
        ("file/a/b", "--cpl: file/a/b cannot be made (file is a file), expected a folder"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_refused(require, place, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UsageError) as caught:
        require(Path(place), flag="--cpl")
    assert (caught.value.message, caught.value.code) == (message, "output-not-a-folder")
    assert caught.value.hint == "choose another --cpl"


def test_a_folder_that_is_not_empty_is_no_new_one(tmp_path):
    (tmp_path / "note").touch()
    require_folder(tmp_path, flag="--output")
    with pytest.raises(UsageError, match="is not empty, expected a new folder") as caught:
        require_empty(tmp_path, flag="--output", hint="or resume it")
    assert caught.value.code == "output-not-empty"
    assert caught.value.hint == "choose another --output, or resume it"
    with pytest.raises(UsageError) as caught:
        require_empty(tmp_path, flag="--output")
    assert caught.value.hint == "choose another --output"


def test_a_folder_inside_the_originals_is_refused_also_through_a_link(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "two")
    originals = [tmp_path / "one", tmp_path / "two"]
    refuse_inside(tmp_path / "out", originals, flag="--output")
    with pytest.raises(UsageError, match=r"expected a folder outside of the truths") as caught:
        refuse_inside(tmp_path / "link/out", originals, flag="--output", kept="truths")
    assert caught.value.code == "output-inside-originals"


def test_a_folder_inside_the_current_one_is_refused_with_a_place_beside_it(tmp_path, monkeypatch):
    (tmp_path / "patient").mkdir()
    monkeypatch.chdir(tmp_path / "patient")
    with pytest.raises(UsageError, match="out lies inside") as caught:
        refuse_inside(Path("out"), [Path()], flag="--cpl")
    assert caught.value.hint.endswith("such as ../patient-attcl")
    assert caught.value.instead == ("--cpl", "../patient-attcl")


def test_the_place_beside_a_file_is_beside_its_folder(tmp_path, monkeypatch):
    (tmp_path / "patient/sub").mkdir(parents=True)
    (tmp_path / "patient/flair.nii.gz").touch()
    monkeypatch.chdir(tmp_path)
    assert place_beside([Path("patient/flair.nii.gz")]) == Path("patient-attcl")
    monkeypatch.chdir(tmp_path / "patient/sub")
    assert place_beside([Path("..")]) == Path("../../patient-attcl")
