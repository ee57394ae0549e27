"""`log.txt`: what a stage reported, when, and how its run ended."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from attcl_cli import __version__
from attcl_cli.cli.terminal import Terminal
from attcl_cli.errors import AttclError, InterruptedRun, ProblemsError
from attcl_cli.progress import SILENT
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import RunRecord, log_file

BAD = AttclError("A_t1.nii.gz: empty", "copy it again", code="file-empty")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["attcl", "complete", "--ori", "my data"])


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path / "out/run.json", "complete")


def lines(record: RunRecord) -> list[str]:
    """Return the lines of the log without their times, each of which has one."""
    found = log_file(record.path).read_text().splitlines()
    assert all(TIME.match(line) for line in found)
    return [TIME.sub("", line, count=1) for line in found]


BEGINS = f"attcl {__version__} complete begins: attcl complete --ori 'my data'"


def test_a_log_has_every_line_of_a_run_from_its_arguments_to_its_end(record):
    log = RunLog(SILENT)
    log.say("weights: brain-many")  # before the folder of the run is known
    with record.recorded(log):
        with log.bar(2, "complete") as bar:
            bar("P1")
            log.detail("P2: 1.3 s in the network")
            bar("P2")
        log.fail(BAD)
    first, *rest, last = lines(record)
    assert (first, rest[0]) == (BEGINS, "weights: brain-many")
    assert re.fullmatch(r"complete 1/2 P1 \(\d+\.\d s each, \d+ s left\)", rest[1])
    assert rest[2:] == [
        "P2: 1.3 s in the network",
        "complete 2/2 P2",
        "error: A_t1.nii.gz: empty",
        "hint: copy it again",
    ]
    assert re.fullmatch(r"done after \d+\.\d s", last)


def test_the_times_of_a_log_rise_from_what_was_said_before_it_was_open(record):
    log = RunLog(SILENT)
    log.say("weights: brain-many")
    time.sleep(1.1)  # seconds are the finest that a log tells
    with record.recorded(log):
        log.say("1 volume to make")
    times = [line.partition(" ")[0] for line in log_file(record.path).read_text().splitlines()]
    assert times == sorted(times) and times[0] < times[-1]


def test_all_of_it_is_passed_on_to_the_listener_too(record, capsys):
    log = RunLog(Terminal(verbose=True))
    with record.recorded(log):
        log.say("note")
        log.detail("detail")
        log.fail(BAD)
        with log.bar(1, "score") as bar:
            bar("P1")
    expected = [
        "note",
        "detail",
        "error: A_t1.nii.gz: empty",
        "hint: copy it again",
        "score 1/1 P1",
    ]
    assert capsys.readouterr().err.splitlines() == expected
    assert lines(record)[1:-1] == expected


def test_a_log_is_written_line_by_line_so_that_a_killed_run_has_it_all(record):
    log = RunLog(SILENT)
    with record.recorded(log):
        log.say("half way")
        assert lines(record)[-1] == "half way"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BAD, ["error: A_t1.nii.gz: empty", "hint: copy it again", "failed"]),
        (InterruptedRun("stopped at step 3"), ["error: stopped at step 3", "stopped"]),
        (ZeroDivisionError("a bug"), ["error: ZeroDivisionError: a bug", "failed"]),
        (
            ProblemsError([BAD, AttclError("B_t1.nii.gz: empty")]),
            [
                *("error: A_t1.nii.gz: empty", "hint: copy it again"),
                *("error: B_t1.nii.gz: empty", "failed"),
            ],
        ),
    ],
)
def test_the_last_lines_say_why_a_run_ended(error, expected, record):
    with pytest.raises(type(error)), record.recorded(RunLog(SILENT)):
        raise error
    *before, last = lines(record)[1:]
    assert [*before, last.split(" after ")[0]] == expected


def test_failed_cases_make_the_end_incomplete(record):
    log = RunLog(SILENT)
    with record.recorded(log):
        record.add("A", "failed", seconds=0, outputs=[], error=BAD)
    assert lines(record)[-1].startswith("incomplete after ")


def test_a_second_run_of_a_folder_adds_to_its_log(record):
    for text in ("first", "second"):
        log = RunLog(SILENT)
        with record.recorded(log):
            log.say(text)
    assert [line for line in lines(record) if not line.startswith("done")] == [
        *(BEGINS, "first"),
        *(BEGINS, "second"),
    ]


def test_a_record_that_is_written_anew_begins_no_second_log(record):
    log = RunLog(SILENT)
    with record.recorded(log):
        record.start()
        log.begin(log_file(record.path), "complete")
    assert lines(record).count(BEGINS) == 1


def test_names_with_control_characters_stay_on_their_line(record):
    log = RunLog(SILENT)
    with record.recorded(log):
        log.say("P1\nP2\x1b[31m")
    assert lines(record)[1] == r"P1\nP2\x1b[31m"


def test_steps_are_a_line_per_minute(record, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("attcl_cli.progress.time.monotonic", lambda: now[0])
    log = RunLog(SILENT)
    with record.recorded(log), log.bar(1_000, "train", every_seconds=10) as bar:
        for step in range(1, 13):
            now[0] += 11
            bar(to=step)
    steps = [line.split(" (")[0] for line in lines(record)[1:-1]]
    assert steps == ["train 6/1000", "train 12/1000"]


def test_each_part_of_a_run_has_a_log_of_its_own(tmp_path):
    assert log_file(tmp_path / "run.json") == tmp_path / "log.txt"
    assert log_file(tmp_path / "run-2of4.json") == tmp_path / "log-2of4.txt"


def test_a_log_is_never_written_through_a_link_out_of_the_folder(record, tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("kept")
    record.path.parent.mkdir()
    log_file(record.path).symlink_to(theirs)
    with pytest.raises(AttclError) as caught, record.recorded(RunLog(SILENT)):
        pass
    assert caught.value.code == "leads-out-of-output"
    assert theirs.read_text() == "kept"


def test_a_log_that_cannot_be_opened_is_an_error_that_names_it(record):
    log_file(record.path).mkdir(parents=True)
    message = r"log\.txt: not written \(Is a directory\)"
    with pytest.raises(AttclError, match=message), record.recorded(RunLog(SILENT)):
        pass


def test_a_full_disk_loses_lines_of_the_log_and_not_the_run(record, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = RunLog(SILENT)
    with record.recorded(log):
        log._file.close()
        log._file = open("/dev/full", "ab", buffering=0)  # noqa: PTH123, SIM115 - closed by the log
        log.say("lost")
    assert record.path.is_file()
    assert lines(record) == [BEGINS]


def test_what_begins_no_run_leaves_no_log(tmp_path):
    log = RunLog(SILENT)
    log.say("a dry run")
    log.end("done", 0.0)
    assert not list(tmp_path.iterdir())
