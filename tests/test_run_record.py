"""`run.json`: how a run ended, and what became of its cases."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from attcl_cli import __version__
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.run_record import RunRecord, precision_for, read_record

BAD = AttclError("A_t1.nii.gz: empty", "copy it again", code="file-empty")


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path / "out/run.json", "complete", config={"slices": None}, seed=3)


def read(record: RunRecord) -> dict:
    return json.loads(record.path.read_text())


def test_a_record_says_running_until_its_block_ends(record):
    with record.recorded():
        during = read(record)
    after = read(record)
    assert (during["status"], during["exit_code"]) == ("running", None)
    assert (after["status"], after["exit_code"]) == ("done", 0)
    assert after["started"] == during["started"]
    assert after["attcl_version"] == __version__
    assert (after["command"], after["config"], after["seed"]) == ("complete", {"slices": None}, 3)


def test_a_failed_case_carries_its_error_and_code_and_makes_the_run_incomplete(record):
    with record.recorded():
        record.add("A", "failed", seconds=0, outputs=[], error=BAD)
        record.add("B", "done", seconds=1.23456, outputs=("B/B_t1.nii.gz",))
    document = read(record)
    assert document["cases"] == [
        {
            "id": "A",
            "status": "failed",
            "seconds": 0,
            "outputs": [],
            "error": BAD.message,
            "code": "file-empty",
        },
        {"id": "B", "status": "done", "seconds": 1.235, "outputs": ["B/B_t1.nii.gz"]},
    ]
    assert (document["status"], document["exit_code"]) == ("incomplete", 3)
    assert (record.count("failed"), record.count("done"), record.count("present")) == (1, 1, 0)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BAD, "failed", 1),
        (UsageError("--x", code="x"), "failed", 2),
        (InterruptedRun("stopped", code="interrupted"), "stopped", 130),
        (KeyboardInterrupt(), "stopped", 130),
        (ZeroDivisionError(), "failed", 1),
    ],
)
def test_an_error_ends_the_record_and_goes_on_to_the_caller(error, status, code, record):
    with pytest.raises(type(error)) as caught, record.recorded():
        raise error
    assert caught.value is error
    assert (read(record)["status"], read(record)["exit_code"]) == (status, code)


def test_a_record_that_cannot_be_written_does_not_hide_the_error_of_the_run(record, tmp_path):
    with pytest.raises(UsageError, match="the first"), record.recorded():
        record.path = tmp_path / "out/run.json/below"  # below a file
        raise UsageError("the first", code="first")


def test_a_record_that_cannot_be_written_at_the_end_is_an_error(record, tmp_path):
    with pytest.raises(AttclError, match="not written"), record.recorded():
        record.path = tmp_path / "out/run.json/below"


def test_a_command_may_add_keys(record):
    record.extra["trained_on"] = ["A"]
    record.finish(0)
    assert read(record)["trained_on"] == ["A"]


def test_a_resumed_run_keeps_the_arguments_and_times_of_its_parts(tmp_path, monkeypatch):
    for argument, seconds, error in (("one", 10.0, None), ("two", 5.0, BAD), ("three", 0, None)):
        monkeypatch.setattr("sys.argv", ["attcl", "train", argument])
        record = RunRecord(tmp_path / "run.json", "train", seed=3, device="cpu")
        record.resume()
        with suppress(AttclError), record.recorded():
            if error is not None:
                raise error
        if seconds:  # as if it had taken so long
            record.path.write_text(json.dumps({**read(record), "seconds": seconds}))
    document = read(record)
    assert [part["argv"][-1] for part in document["earlier"]] == ["one", "two"]
    assert [part["seconds"] for part in document["earlier"]] == [10.0, 5.0]
    assert [part["status"] for part in document["earlier"]] == ["done", "failed"]
    assert [part["exit_code"] for part in document["earlier"]] == [0, 1]
    assert {part["attcl_version"] for part in document["earlier"]} == {__version__}
    assert document["argv"] == ["attcl", "train", "three"]
    assert document["seconds_in_all"] == pytest.approx(15 + document["seconds"])


def test_a_killed_part_is_kept_too(record):
    record.start()
    again = RunRecord(record.path, "complete")
    again.resume()
    again.finish(0)
    (part,) = read(again)["earlier"]
    assert (part["status"], part["exit_code"]) == ("running", None)


@pytest.mark.parametrize(
    "before", [None, "[]", '{"command": "segment", "seconds": 9}', '{"seconds": 9}']
)
def test_there_are_no_parts_of_another_command(before, record):
    if before is not None:
        record.path.parent.mkdir()
        record.path.write_text(before)
    record.resume()
    record.finish(0)
    assert (record.earlier, read(record)["earlier"]) == ([], [])


def test_a_record_of_an_earlier_version_is_a_part(record):
    record.path.parent.mkdir()
    record.path.write_text('{"command": "complete", "argv": ["attcl"], "started": "then"}')
    record.resume()
    record.finish(0)
    (part,) = read(record)["earlier"]
    assert (part["argv"], part["started"], part["seconds"]) == (["attcl"], "then", None)
    assert read(record)["seconds_in_all"] == read(record)["seconds"]


def test_a_folder_without_a_record_has_an_empty_one(tmp_path):
    assert read_record(tmp_path) == {}
    (tmp_path / "run.json").write_text("[]")
    assert read_record(tmp_path) == {}
    (tmp_path / "run.json").write_text('{"command": "train"}')
    assert read_record(tmp_path) == {"command": "train"}


@pytest.mark.parametrize(
    ("asked", "before", "expected"),
    [
        (None, None, "fp32"),
        ("bf16", None, "bf16"),
        (None, "bf16", "bf16"),
        (None, "fp32", "fp32"),
        ("fp32", "bf16", "fp32"),
        (None, "strange", "fp32"),
    ],
)
def test_a_resumed_run_keeps_its_precision_unless_another_is_asked_for(
    asked, before, expected, tmp_path
):
    if before is not None:
        (tmp_path / "run.json").write_text(json.dumps({"precision": before}))
    assert precision_for(asked, None if before is None else tmp_path) == expected
