"""Signals and other ends of a run: what is raised where, what waits, and what a user hears of it."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

from attcl_cli import run_ends
from attcl_cli.cli.app import main
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.run_ends import (
    Stop,
    awaited,
    check,
    explained,
    held,
    reported,
    request,
    signals,
    stopped,
)

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def own_handlers():
    """Ctrl-C as Python has it, and handlers that are as before at the end, whatever a test does."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    for number in HANDLED:  # nohup has SIGHUP ignored
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_raised_where_the_run_is_and_the_old_handlers_come_back(number):
    before = [signal.getsignal(it) for it in HANDLED]
    with pytest.raises(Stop) as caught, signals():
        send(number)
    assert caught.value.number == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(it) for it in HANDLED] == before


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals():
        send(signal.SIGHUP)


def test_outside_of_the_main_thread_handlers_stay_as_they_are():
    before = [signal.getsignal(number) for number in HANDLED]
    inside = []

    def run() -> None:
        with signals(), held(), awaited(lambda: None):
            inside.extend(signal.getsignal(number) for number in HANDLED)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == before


def test_inner_blocks_leave_the_handlers_to_the_outer_one():
    with pytest.raises(Stop), signals():
        with signals():
            pass
        send()


def test_a_signal_waits_for_the_end_of_a_held_block():
    done = []
    with pytest.raises(Stop), signals():
        with held():
            with held():
                send()
            done.append("inner")
        done.append("too far")
    assert done == ["inner"]


def test_a_signal_whose_exception_python_drops_is_raised_at_the_next_check():
    class Collected:
        def __del__(self) -> None:
            send()

    class Failing:
        def __del__(self) -> None:
            raise ZeroDivisionError

    raised = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", raised.append)
        with pytest.raises(Stop), signals():
            Collected()
            check()
        assert raised == []  # nothing is said of it
        Failing()
    assert [it.exc_type for it in raised] == [ZeroDivisionError]


def test_a_signal_too_late_to_end_the_run_goes_to_the_old_handler():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    with signals():
        run_ends.STATE.held += 1  # as a record does when its end is written
        send()
        run_ends.STATE.held -= 1
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_a_loop_that_waits_for_a_signal_goes_on_until_the_second():
    requests = []
    with pytest.raises(Stop) as caught, awaited(lambda: requests.append(True)):
        send()
        check()
        with held():
            pass
        assert requests == [True]
        with held():
            send(signal.SIGINT)
    assert caught.value.number == signal.SIGTERM  # the first one names the end
    assert requests == [True]


def test_a_signal_before_a_loop_that_waits_stops_it_in_its_first_step():
    requests = []
    with pytest.raises(Stop), signals(), held():
        send()
        with awaited(lambda: requests.append(True)):
            pass
        assert requests == [True]
    assert not run_ends.STATE.handling


def test_a_reader_of_stderr_who_leaves_ends_the_run_under_way_and_no_other():
    with signals():
        run_ends.lose_reader()  # no run is on record
    with pytest.raises(Stop) as caught, signals():
        run_ends.lose_reader()
        run_ends.require_heard()
    assert caught.value.number == signal.SIGPIPE


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGINT, "interrupted: finished files are kept, no half-written ones are left"),
        (
            signal.SIGTERM,
            "interrupted (SIGTERM): finished files are kept, no half-written ones are left",
        ),
    ],
)
def test_a_stop_says_which_signal_it_was(number, message):
    with signals(), held():
        request(number)
        error = stopped()
        assert (error.message, error.exit_code) == (message, 130)
        assert error.hint == "run the same command again to continue"
        assert stopped("resume with: x").hint == "resume with: x"
        run_ends.STATE.ending = True


def test_what_a_user_can_act_on_is_told_apart_from_a_bug():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a")
    error = explained(full, "resume with: x")
    assert error.message == (
        "out/a: not written (No space left on device), expected a writable place with free space"
    )
    assert (error.hint, error.code) == ("free some space, then resume with: x", "file-not-written")
    read_only = explained(OSError(errno.EROFS, os.strerror(errno.EROFS), "out/a"))
    assert read_only.message.endswith("expected a file system that can be written to")
    assert read_only.hint.startswith("mount this file system for writing, or choose a folder")
    for memory in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert explained(memory).code == "out-of-memory"
    ours = UsageError("a", "b", code="c")
    assert explained(ours, "resume with: x") is ours
    unwritten = AttclError("a", "b, then run the same command again", code="file-not-written")
    assert explained(unwritten) is unwritten
    assert explained(unwritten, "resume with: x").hint == "b, then resume with: x"
    for bug in (
        ZeroDivisionError(),
        KeyboardInterrupt(),
        GeneratorExit(),
        FileNotFoundError(2, ""),
    ):
        assert explained(bug) is None


def test_an_error_that_a_library_makes_of_a_signal_is_the_signal():
    with signals():
        with pytest.raises(RuntimeError) as caught:
            try:
                send()
            finally:
                raise RuntimeError("release unlocked lock")
        assert explained(caught.value).code == "interrupted"
        run_ends.STATE.ending = True
    with signals(), awaited(lambda: None):  # which is no error of its own: the work ends by itself
        send()
        assert explained(RuntimeError("a bug in the last step")) is None


@pytest.mark.parametrize("code", ["weights-unreadable", "volume-unreadable"])
def test_a_damaged_file_that_a_signal_made_is_the_signal(code):
    damage = AttclError("w.safetensors: not readable", "copy it again", code=code)
    assert explained(damage) is damage
    with signals():
        with pytest.raises(run_ends.Stop):
            send()
        assert explained(damage).code == "interrupted"
        other = AttclError("no space", "free some", code="disk-full")
        assert explained(other) is other
        run_ends.STATE.ending = True


def test_a_signal_before_the_command_begins_is_reported(monkeypatch, capsys):
    def told_to_stop(_: list[str]) -> int:
        send()
        return 0

    monkeypatch.setattr("attcl_cli.cli.app._run", told_to_stop)
    with pytest.raises(SystemExit) as caught:
        main(["info"])
    assert caught.value.code == 130
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: interrupted (SIGTERM)")
    assert hint.strip().startswith("hint: ")


def test_work_without_a_record_ends_with_an_error_all_the_same():
    with pytest.raises(InterruptedRun) as caught, reported():
        send()
    assert caught.value.exit_code == 130
    with pytest.raises(AttclError, match="out of memory"), reported():
        raise MemoryError
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError
