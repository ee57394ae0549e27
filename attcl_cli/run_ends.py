"""How a run ends before its work is done: a signal, a full disk, no memory; what the user hears of it.

Prints nothing and writes no file: `run_record` notes how a run ended, `cli` shows it.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from attcl_cli.errors import AttclError, InterruptedRun, refusal

AGAIN = "run the same command again"
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_PIPE = 13  # SIGPIPE, which Windows does not have
FULL = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Stop(KeyboardInterrupt):
    """A signal asked the run to end; raised in the main thread, wherever it is."""

    def __init__(self, number: int) -> None:
        """Say which signal it was."""
        super().__init__(_name(number))
        self.number = number


_GATES = {"weights-unreadable", "volume-unreadable"}  # take whatever a library raises for damage


@dataclass
class _State:
    """What this process knows of signals; there is one, as there is one process.

    Attributes:
        handling: the handlers are ours.
        number: the first signal that came; None: none did.
        count: how many came.
        held: blocks under way that no signal may break into.
        ending: the run is being ended already.
        records: runs under way whose `run.json` says so.
        deaf: stderr was closed by its reader.
        heard: the first signal was waited for, and the work ended before it could be stopped.
        finished: the whole work of a command is done and on record; it is left to report it.
        settled: the work of the process is done and reported.
        on_request: what the first signal calls instead of raising `Stop`.
    """

    handling: bool = False
    number: int | None = None
    count: int = 0
    held: int = 0
    ending: bool = False
    records: int = 0
    deaf: bool = False
    heard: bool = False
    finished: bool = False
    settled: bool = False
    on_request: Callable[[], None] | None = None

    def reset(self) -> None:
        """Forget the signals of an earlier run."""
        self.number, self.count = None, 0
        self.ending = self.deaf = self.heard = self.finished = self.settled = False


STATE = _State()


@contextmanager
def signals() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stop` within the block, and restore the old handlers after it.

    Does nothing in other threads than the main one, and within another such block. A signal that is ignored, as nohup
    and the background jobs of scripts have it, stays ignored. One that came too late to end the run is raised anew.
    After `finish`, nothing is raised; after `settle`, nothing is restored either.
    """
    if STATE.handling or not in_main_thread():
        yield
        return
    STATE.reset()
    previous, hook = {}, sys.unraisablehook
    try:
        STATE.handling = True
        sys.unraisablehook = _pass_over_stops(hook)
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                previous[number] = signal.signal(number, _handle)
        yield
    finally:
        if not STATE.settled:
            for number, handler in previous.items():
                signal.signal(number, handler)
        sys.unraisablehook = hook
        late = None if STATE.ending or STATE.heard or STATE.finished else STATE.number
        STATE.handling = False
        STATE.reset()
    if late is not None and late in previous:
        signal.raise_signal(late)


class held:  # noqa: N801 - reads as a function in a `with`
    """A block that no signal breaks into: one that comes is raised at its end."""

    def __enter__(self) -> None:
        """Begin the block."""
        if in_main_thread():
            STATE.held += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the block."""
        if in_main_thread():
            STATE.held -= 1
            check()


@contextmanager
def last_words() -> Iterator[None]:
    """Say within the block how the run ended; no signal breaks into it, and none that came is raised after it."""
    STATE.ending, STATE.held = True, STATE.held + 1
    try:
        yield
    finally:
        STATE.held -= 1


def finish() -> None:
    """Take the work of a command for done and on record: no signal makes it an interrupted one any more."""
    STATE.finished = True


def is_finished() -> bool:
    """Return whether the work of the command under way is done and on record."""
    return STATE.finished


def settle(leave: Callable[[], object]) -> None:
    """Take the work of this process for done and reported: signals no longer change how it ends.

    For a process that is all ours, within `signals`. Python may wait for threads at its end: a signal ends that, too.
    Handlers go before the last of it; until then `ignore_signals` has to be called.

    Args:
        leave: ends the process at once, with the exit code of its work.
    """
    STATE.settled, STATE.ending, STATE.held = True, True, STATE.held + 1
    for number in _SIGNALS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, lambda _number, _frame: leave())


def ignore_signals() -> None:
    """Ignore the signals that ask for an end, also where Python is no longer there to handle them."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def awaited(on_request: Callable[[], None]) -> Iterator[None]:
    """Call a function on the first signal within the block, instead of raising `Stop`; the second one raises it."""
    with signals():
        before, STATE.on_request = STATE.on_request, on_request
        try:
            if STATE.number is not None and not STATE.ending:
                STATE.heard = True
                on_request()
            yield
        except InterruptedRun:
            STATE.ending = True
            raise
        finally:
            STATE.on_request = before


def request(number: int) -> None:
    """Ask the run to end, as a signal does.

    Raises:
        Stop: unless the signal has to wait (`held`, `awaited`), or nothing is left to end (`finish`).
    """
    STATE.count += 1
    first = STATE.number is None
    if first:
        STATE.number = number
    if STATE.on_request is not None and first:
        STATE.heard = True
        STATE.on_request()
    elif not (STATE.held or STATE.finished) and in_main_thread():
        raise Stop(number)


def check() -> None:
    """Raise `Stop` if a signal waits, or if one was lost where Python drops exceptions."""
    if STATE.number is None or STATE.ending or STATE.finished or STATE.held:
        return
    if STATE.on_request is not None and STATE.count == 1:
        return
    if in_main_thread():
        raise Stop(STATE.number)


def lose_reader() -> None:
    """Note that nobody reads stderr any more, which ends the run that is under way."""
    STATE.deaf = True
    if STATE.records and STATE.number is None:
        request(_PIPE)


def require_heard() -> None:
    """Raise `Stop` if a signal waits, or if nobody reads stderr any more: no run begins then."""
    if STATE.deaf and STATE.number is None:
        request(_PIPE)
    check()


def in_main_thread() -> bool:
    """Return whether signals break into the caller's thread."""
    return threading.current_thread() is threading.main_thread()


def is_urgent() -> bool:
    """Return whether a second signal came, after which nothing is waited for."""
    return STATE.count > 1


def stopped(again: str = AGAIN) -> InterruptedRun:
    """Return the error of a run that a signal ended, of which all finished files are kept.

    Args:
        again: how the run is resumed, an imperative.
    """
    number = STATE.number
    by = f" ({_name(number)})" if number not in {None, signal.SIGINT} else ""
    return InterruptedRun(
        f"interrupted{by}: finished files are kept, no half-written ones are left",
        f"{again} to continue" if again == AGAIN else again,
        code="interrupted",
    )


def explained(error: BaseException, again: str = AGAIN) -> AttclError | None:
    """Return what a user can act on of an exception; None: it is a bug, or a Ctrl-C that no handler of ours saw.

    Args:
        error: what ended the run; an `AttclError` is returned, with a hint that says how this run is resumed.
        again: how the run is resumed, an imperative.
    """
    unheard = STATE.number is not None and not STATE.heard
    if isinstance(error, AttclError) and not (unheard and _hides_stop(error)):
        if error.code == "file-not-written" and again != AGAIN:
            return AttclError(error.message, error.hint.replace(AGAIN, again), code=error.code)
        return error
    # Not every library lets `Stop` through: locks and compiled code raise errors of their own in its place.
    stops = not STATE.heard or isinstance(error, GeneratorExit)
    if isinstance(error, Stop) or (STATE.number is not None and stops):
        return stopped(again)
    # torch has an error of its own for memory of the processor, and names it in the text alone
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return AttclError(
            f"out of memory ({str(error).splitlines()[0] if str(error) else 'of the processor'}), "
            "expected room for the data",
            f"free some memory, or lower --num-workers and --batch-size, then {again}",
            code="out-of-memory",
        )
    if isinstance(error, OSError) and (error.errno in FULL or error.filename is not None):
        return _refused(error, again)
    return None


def _hides_stop(error: AttclError) -> bool:
    """Return whether an error stands for a `Stop` that a library met, and our gate took for a damaged file."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, Stop):
        seen = seen.__cause__ or seen.__context__
    return seen is not None or error.code in _GATES


@contextmanager
def reported() -> Iterator[None]:
    """Turn what ends the block into an error that a user can act on, if it is none yet: for work without a record.

    Raises:
        InterruptedRun: a signal came.
        AttclError: no space or no memory.
    """
    with signals():
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            problem = explained(error)
            if problem is None or problem is error:
                raise
            STATE.ending |= in_main_thread()
            raise problem from error


def _refused(error: OSError, again: str) -> AttclError:
    """Return the error of a place that the system refused, wherever it was used."""
    if error.errno in FULL:
        expected, hint = refusal(
            error, "expected a writable place with free space", "free some space"
        )
        return AttclError(
            f"{error.filename or 'output'}: not written ({error.strerror}), {expected}",
            f"{hint}, then {again}",
            code="file-not-written",
        )
    expected, hint = refusal(error, "expected a place that can be used", "check the path")
    return AttclError(
        f"{error.filename}: {error.strerror}, {expected}",
        f"{hint}, then {again}",
        code="place-refused",
    )


def _pass_over_stops(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return a hook that says nothing of a `Stop` that Python drops, as in `__del__`; `check` raises it again."""

    def hear(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Stop):
            hook(dropped)

    return hear


def _handle(number: int, _frame: FrameType | None) -> None:
    request(number)


def _name(number: int | None) -> str:
    """Return the name of a signal: SIGTERM."""
    return signal.Signals(number).name if number is not None else ""
