"""Records about the files of a case: shared, bounded, and never a reason to fail, whatever happens to their folder."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path, PurePosixPath

import pytest
from pydantic import TypeAdapter

from attcl_cli.data import record_cache
from attcl_cli.data.record_cache import Records
from attcl_cli.temporaries import temporary_file, temporary_prefix

KIND = TypeAdapter(dict[str, int])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a_t1.nii").write_bytes(b"one")
    return tmp_path / "data" / "a_t1.nii"


def records_of(file: Path, case: str = "a") -> Records:
    return Records(file.parent, case, PurePosixPath(file.name))


def keep(file: Path, value: int, *options: str, case: str = "a") -> None:
    with records_of(file, case) as records:
        records.add(records.key_of("kind", 1, [file], *options), {"value": value})


def kept(file: Path, *options: str, case: str = "a") -> int | None:
    records = records_of(file, case)
    record = records.read(records.key_of("kind", 1, [file], *options), KIND)
    return None if record is None else record["value"]


def test_the_records_of_a_case_are_one_file(file, cache):
    keep(file, 1, "x")
    keep(file, 2, "y")
    keep(file, 3, case="b")
    assert (kept(file, "x"), kept(file, "y"), kept(file), kept(file, case="b")) == (1, 2, None, 3)
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2


def test_a_record_is_of_a_place_a_size_a_time_and_an_inode(file, tmp_path):
    status = file.stat()
    keep(file, 1)
    assert kept(file) == 1
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert kept(file) is None
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept(file) == 1
    file.write_bytes(b"longer")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept(file) is None
    file.rename(tmp_path / "old")
    file.write_bytes(b"one")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept(file) is None
    file.unlink()
    assert records_of(file).key_of("kind", 1, [file]) is None
    keep(file, 1)


def test_a_file_that_changes_while_it_is_measured_does_not_fit_its_record(file):
    with records_of(file) as records:
        key = records.key_of("kind", 1, [file])
        file.write_bytes(b"changed meanwhile")
        assert records.key_of("kind", 1, [file]) == key
        records.add(key, {"value": 1})
    assert kept(file) is None


def test_a_link_has_the_records_of_its_file_and_a_copy_its_own(file, tmp_path):
    keep(file, 1)
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / file.name
    link.symlink_to(file)
    assert kept(link) == 1
    link.unlink()
    link.write_bytes(file.read_bytes())
    assert kept(link) is None


def test_nothing_is_written_if_nothing_was_added(file, cache):
    keep(file, 1)
    (path,) = cache.rglob("*.json")
    before = path.stat()
    with records_of(file) as records:
        assert records.read(records.key_of("kind", 1, [file]), KIND) == {"value": 1}
    assert path.stat() == before


def test_what_was_added_is_kept_if_the_case_fails_later(file):
    with pytest.raises(KeyError), records_of(file) as records:
        records.add(records.key_of("kind", 1, [file]), {"value": 1})
        raise KeyError
    assert kept(file) == 1


def test_the_oldest_records_of_a_case_are_dropped(file, monkeypatch):
    monkeypatch.setattr(record_cache, "_MOST_RECORDS", 3)
    for number in range(5):
        keep(file, number, str(number))
    assert [kept(file, str(number)) for number in range(5)] == [None, None, 2, 3, 4]


def test_two_who_add_records_of_a_case_lose_no_more_than_those_of_one(file):
    first, second = records_of(file), records_of(file)
    for value, records in enumerate((first, second)):
        key = records.key_of("kind", 1, [file], str(value))
        assert records.read(key, KIND) is None
        records.add(key, {"value": value})
    first.save()
    second.save()
    assert (kept(file, "0"), kept(file, "1")) == (None, 1)


def test_many_at_once_leave_whole_records_and_nothing_else(file, cache):
    def add(number: int) -> None:
        for step in range(10):
            keep(file, number, str(number), str(step))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = (it for it in cache.rglob("*") if it.is_file())
    records = json.loads(path.read_bytes())
    assert all(set(record) == {"value"} for record in records.values())
    assert records


def test_what_killed_processes_left_is_removed_once_and_what_others_write_is_not(file, cache):
    keep(file, 1)
    (path,) = cache.rglob("*.json")
    record_cache._swept.clear()
    dead = path.with_name(f"{temporary_prefix(path)}x.attcl-tmp")
    dead.touch()
    with temporary_file(path.with_name("other.json")) as (_, alive):
        keep(file, 2)
        assert not dead.exists()
        assert alive.exists()
    dead.touch()
    keep(file, 3)
    assert dead.exists()  # the next process removes it
    assert kept(file) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_json_cannot_hold_is_not_kept_and_harms_no_other(value, file, cache):
    keep(file, 1, "x")
    with records_of(file) as records:
        records.add(records.key_of("kind", 1, [file]), {"value": value})
    assert (kept(file, "x"), kept(file)) == (1, None)
    assert list(cache.rglob("*.attcl-tmp")) == []


def test_a_cache_that_is_removed_meanwhile_is_made_again(file, cache):
    keep(file, 1)
    (path,) = cache.rglob("*.json")
    path.unlink()
    path.parent.rmdir()
    keep(file, 2)
    assert kept(file) == 2


@pytest.mark.parametrize("place", ["cache", "cache/cases"])
def test_a_file_in_the_place_of_the_cache_costs_time_only(place, file, tmp_path):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("no folder")
    keep(file, 1)
    assert kept(file) is None
    assert (tmp_path / place).read_text() == "no folder"


def test_a_folder_in_the_place_of_the_records_costs_time_only(file, cache):
    keep(file, 1)
    (path,) = cache.rglob("*.json")
    path.unlink()
    path.mkdir()
    keep(file, 2)
    assert kept(file) is None
    assert list(cache.rglob("*.attcl-tmp")) == []
