"""`run.json`: how a run ended, and what became of its cases."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from attcl_cli import __version__, run_ends, run_record
from attcl_cli.confined import confined, make_parent
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.files import write_json, write_whole
from attcl_cli.run_record import (
    RunRecord,
    finish_killed,
    precision_for,
    read_record,
    was_broken_off,
)
from attcl_cli.temporaries import TEMPORARY_SUFFIX, temporary_prefix
from attcl_cli.training.stats import log_stats

PWRITE = os.pwrite
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
        (record.path.parent / "B").mkdir()
        (record.path.parent / "B/B_t1.nii.gz").touch()
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


# --- ends that nobody planned -----------------------------------------------------------------------------------------


def test_a_signal_ends_the_record_with_its_number_and_says_how_to_resume(record):
    record.again = "resume with: attcl train --resume run"
    with pytest.raises(InterruptedRun) as caught, record.recorded():
        os.kill(os.getpid(), signal.SIGTERM)
    assert (caught.value.exit_code, caught.value.hint) == (130, record.again)
    document = read(record)
    assert (document["status"], document["exit_code"]) == ("stopped", 130)
    assert (document["code"], document["error"]) == ("interrupted", caught.value.message)


def test_a_signal_right_after_the_first_record_ends_it_too(tmp_path, monkeypatch):
    record = RunRecord(tmp_path / "out/run.json", "train", alone=True)
    write = run_record.write_whole

    def write_and_send(*arguments, **options):
        write(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_record, "write_whole", write_and_send)
    with pytest.raises(InterruptedRun), record.recorded():
        pass
    assert read(record)["status"] == "stopped"


@pytest.mark.parametrize("ended", [True, False])
def test_a_signal_while_the_end_is_written_does_not_change_it(ended, record, monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    finish = RunRecord.finish

    def finished(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self, *arguments)

    monkeypatch.setattr(RunRecord, "finish", finished)
    try:
        with suppress(UsageError), record.recorded():
            if not ended:
                raise UsageError("--x", code="x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read(record)["status"] == ("done" if ended else "failed")
    assert heard == ([True] if ended else [])  # a run that ends anyway needs no second reason


def test_a_signal_after_the_record_of_a_command_does_not_end_it(record):
    with run_ends.signals():
        with record.recorded():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        run_ends.check()
    assert read(record)["status"] == "done"


def test_a_signal_after_the_record_of_a_stage_ends_its_command(record, tmp_path):
    stage = RunRecord(tmp_path / "stage/run.json", "train")
    with run_ends.signals(), pytest.raises(InterruptedRun), record.recorded():
        with stage.recorded():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
    assert (read(stage)["status"], read(record)["status"]) == ("done", "stopped")


def test_a_record_that_nobody_leaves_is_finished_when_it_is_forgotten(record):
    block = record.recorded()
    block.__enter__()
    assert read(record)["status"] == "running"
    del block
    assert (read(record)["status"], read(record)["code"]) == ("failed", "unexpected")


def test_an_unexpected_exception_is_named(record):
    with pytest.raises(ZeroDivisionError), record.recorded():
        raise ZeroDivisionError("division by zero")
    assert read(record)["error"] == "ZeroDivisionError: division by zero"
    assert read(record)["code"] == "unexpected"


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room(_handle: int, data: bytes, at: int) -> int:
    if at + len(data) > 30_000:  # more than was kept
        full_disk()
    return PWRITE(_handle, data, at)


@pytest.mark.parametrize("cases", [3, 3000])
def test_on_a_full_disk_the_record_takes_the_room_that_was_kept_for_it(cases, record, monkeypatch):
    with pytest.raises(AttclError, match="No space left"), record.recorded():
        (kept,) = record.path.parent.glob(".run.json.*")
        for number in range(cases):
            record.add(f"case-{number:04d}", "done", seconds=1, outputs=[])
        monkeypatch.setattr(os, "fsync", full_disk)
        monkeypatch.setattr(os, "pwrite", no_room)
        write_json(record.path.parent / "other.json", {})
    assert not kept.exists()
    document = read(record)
    assert (document["status"], document["code"]) == ("failed", "file-not-written")
    few = cases == 3
    assert len(document["cases"]) == (3 if few else 0)
    assert document.get("cases_left_out") == (None if few else 3000)
    assert [path.name for path in record.path.parent.iterdir()] == ["run.json"]


def test_without_room_for_its_end_no_run_begins(record, monkeypatch):
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(AttclError, match=r"not written \(No space left"), record.recorded():
        raise AssertionError("begun")
    assert list(record.path.parent.glob(".*")) == []


@pytest.mark.parametrize("made_anew", [True, False])
def test_a_folder_that_was_removed_is_no_finished_run(made_anew, record):
    with pytest.raises(AttclError) as caught, record.recorded():
        shutil.rmtree(record.path.parent)
        if made_anew:  # by others
            record.path.parent.mkdir()
            (record.path.parent / "other.json").touch()
    assert caught.value.code == "output-removed"
    assert caught.value.message.startswith(str(record.path.parent))
    assert "removed while the run wrote into" in caught.value.message
    assert record.path.exists() == made_anew
    if made_anew:
        assert (read(record)["status"], read(record)["code"]) == ("failed", "output-removed")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, _: write_whole(folder / "sub/a.nii.gz", b"data"),
        lambda folder, _: make_parent(folder / "sub/a.nii.gz"),
        lambda folder, _: log_stats(folder / "stats.jsonl", {"step": 1}),
        lambda _, record: record.add("A", "done", seconds=1, outputs=[]),
    ],
    ids=["file", "folder", "statistics", "case"],
)
def test_nothing_is_written_once_the_folder_was_removed(write, record):
    ended = []
    with pytest.raises(AttclError) as caught, record.recorded():
        shutil.rmtree(record.path.parent)
        try:
            write(record.path.parent, record)
        except AttclError as error:
            ended.append(error.code)
            raise
    assert ended == ["output-removed"]
    assert caught.value.message.startswith(f"{record.path.parent}: removed while the run wrote")
    assert not record.path.parent.exists()


def test_a_process_that_keeps_no_record_makes_no_removed_folder_anew(tmp_path):
    with pytest.raises(AttclError) as caught, confined(tmp_path / "out", lasting=tmp_path / "out"):
        write_json(tmp_path / "out/a.json", {})
    assert caught.value.code == "output-removed"
    assert list(tmp_path.iterdir()) == []


def test_what_fails_because_the_folder_was_removed_says_so(record):
    with pytest.raises(AttclError) as caught, record.recorded():
        shutil.rmtree(record.path.parent)
        (record.path.parent / "stats.jsonl").open("a")
    assert caught.value.code == "output-removed"


@pytest.mark.parametrize("code", ["json-unreadable", "file-not-written", "volume-cut-off"])
def test_whatever_fails_when_the_folder_was_removed_is_a_consequence(code, record):
    with pytest.raises(AttclError) as caught, record.recorded():
        shutil.rmtree(record.path.parent)
        raise AttclError("slices/index.json: not readable", code=code)
    assert caught.value.code == "output-removed"


def test_a_run_that_is_stopped_after_its_folder_was_removed_is_stopped(record):
    with pytest.raises(InterruptedRun), record.recorded():
        shutil.rmtree(record.path.parent)
        os.kill(os.getpid(), signal.SIGTERM)
    assert not record.path.parent.exists()


def test_a_folder_that_is_removed_while_the_end_is_written_is_not_made_anew(record, monkeypatch):
    real = os.fsync

    def removing(handle: int) -> None:
        shutil.rmtree(record.path.parent)
        real(handle)

    with pytest.raises(AttclError) as caught, record.recorded():
        monkeypatch.setattr(os, "fsync", removing)
    assert caught.value.code == "output-removed"
    assert not record.path.parent.exists()


def removed_in_mid_run(record: RunRecord, name: str) -> None:
    """Make two cases with a file beside each of them, and a result; then remove a file."""
    folder = record.path.parent
    record.results = [folder / "scores.csv"]
    record.beside = lambda case: [folder / f"{case}.json"]
    for case in "AB":
        for ending in (".nii.gz", "_std.nii.gz", ".json"):
            (folder / f"{case}{ending}").touch()
        outputs = [f"{case}.nii.gz", f"{case}_std.nii.gz"]
        record.add(case, "done", seconds=1, outputs=outputs)
    (folder / "scores.csv").touch()
    (folder / name).unlink()


@pytest.mark.parametrize(("name", "left"), [("A.nii.gz", 1), ("A_std.nii.gz", 1), ("A.json", 2)])
def test_a_case_whose_file_was_removed_is_not_done(name, left, record):
    with pytest.raises(AttclError) as caught, record.recorded():
        removed_in_mid_run(record, name)
    assert caught.value.exit_code == 1
    assert caught.value.message.startswith(f"{record.path.parent / name}: removed while")
    document = read(record)
    assert (document["status"], document["exit_code"]) == ("failed", 1)
    assert document["code"] == "output-removed"
    lost, kept = document["cases"]
    assert (lost["status"], lost["code"]) == ("failed", "output-removed")
    assert lost["error"] == caught.value.message
    assert len(lost["outputs"]) == left
    assert (kept["status"], len(kept["outputs"])) == ("done", 2)


def test_a_result_that_was_removed_is_missed(record):
    with pytest.raises(AttclError, match=r"scores\.csv: removed while"), record.recorded():
        removed_in_mid_run(record, "scores.csv")
    assert [case["status"] for case in read(record)["cases"]] == ["done", "done"]
    assert (read(record)["status"], read(record)["code"]) == ("failed", "output-removed")


def test_files_that_several_cases_lost_are_one_error(record):
    with pytest.raises(AttclError, match=r"A_std.* and 1 more like it"), record.recorded():
        removed_in_mid_run(record, "A_std.nii.gz")
        (record.path.parent / "B.json").unlink()
    assert [case["status"] for case in read(record)["cases"]] == ["failed", "failed"]


def test_a_stopped_run_says_which_cases_lost_files(record):
    with pytest.raises(InterruptedRun), record.recorded():
        removed_in_mid_run(record, "A.nii.gz")
        os.kill(os.getpid(), signal.SIGTERM)
    assert (read(record)["status"], read(record)["exit_code"]) == ("stopped", 130)
    assert [case["status"] for case in read(record)["cases"]] == ["failed", "done"]


def test_a_case_that_failed_before_keeps_its_error(record):
    with pytest.raises(AttclError), record.recorded():
        record.add("A", "failed", seconds=0, outputs=["A.nii.gz"], error=BAD)
    (case,) = read(record)["cases"]
    assert (case["code"], case["outputs"]) == ("file-empty", [])


def test_a_killed_part_tells_how_long_it_lived_at_least(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    record = RunRecord(tmp_path / "run.json", "complete", _clock=now[0])
    record.start()
    for seconds in (30.0, 61.0, 90.0):  # a sign of life a minute
        now[0] = 100.0 + seconds
        record.live()
    assert (read(record)["status"], read(record)["seconds"]) == ("running", 61.0)
    now[0] = 500.0
    again = RunRecord(record.path, "complete", _clock=now[0])
    again.resume()
    again.finish(0)
    assert read(again)["earlier"][0]["seconds"] == 61.0
    assert read(again)["seconds_in_all"] == 61.0


def test_a_run_sweeps_what_killed_ones_left(record):
    record.path.parent.mkdir()
    left = record.path.parent / f"{temporary_prefix(Path('a.nii.gz'))}x{TEMPORARY_SUFFIX}"
    left.touch()
    with record.recorded():
        assert not left.exists()
    assert [path.name for path in record.path.parent.iterdir()] == ["run.json"]


def test_a_record_that_was_broken_off_after_all_was_done_is_finished(record):
    record.start()
    finish_killed(record.path.parent)
    assert (read(record)["status"], read(record)["exit_code"]) == ("done", 0)
    record.finish(1, AttclError("no room for the page", code="file-not-written"))
    finish_killed(record.path.parent)
    ended = read(record)
    assert (ended["status"], ended["exit_code"], ended["error"]) == ("done", 0, None)
    record.finish(3)  # some cases failed: no work is left that a run would do
    finish_killed(record.path.parent)
    assert read(record)["status"] == "incomplete"


@pytest.mark.parametrize(
    ("code", "broken"),
    [(None, True), (1, True), (130, True), (0, False), (2, False), (3, False)],
)
def test_killed_failed_and_stopped_runs_may_be_begun_again(code, broken):
    assert was_broken_off({"exit_code": code}) is broken
