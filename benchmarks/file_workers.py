"""Reading and writing volumes in threads and in worker processes, side by side, and who holds Python's lock.

Worker processes hand arrays over in shared memory, which is the fastest way. A busy loop in the main thread stands for
the Python that calls a network on a GPU. `files.py` prints what this measures.
"""

from __future__ import annotations

import gzip
import math
import multiprocessing
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from file_levels import decoder, unpacked

from attcl_cli.data import nifti_files, volumes

KINDS = THREADS, PROCESSES = ("threads", "processes")
WORK = READ, WRITE = ("read", "write")
_LOOK = 1_000  # steps of the busy loop between two looks at the workers


@dataclass(frozen=True)
class Timed:
    """What a round took.

    Attributes:
        seconds: per volume.
        python: the speed of the busy loop beside it, as a share of its speed alone; NaN if there was none.
    """

    seconds: float
    python: float


@dataclass(frozen=True)
class Hand:
    """How a kind of worker does some work.

    Attributes:
        submit: the file to write, if it writes -> what comes of it.
        take: what the main thread does with that.
    """

    submit: Callable[[Path], Future[Any]]
    take: Callable[[Any], None]


@dataclass(frozen=True)
class Shared:
    """An array in shared memory, as another process finds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def compare(path: Path, folder: Path, *, workers: int, count: int, rounds: int) -> None:
    """Print threads beside processes, and for how long packing and unpacking let no other thread run."""
    found = measure(path, folder, workers=workers, count=count, rounds=rounds)
    print(
        f"\nworkers: {workers}, {count} volumes per round; median seconds per volume, and processes / threads\n"
        "(loop: speed of a busy main thread beside them, as a share of its speed alone)"
    )
    for line in report(found):
        print(line)
    raw = unpacked(path)
    packed = gzip.compress(raw, 1, mtime=0)
    volume = volumes.load([path])
    calls: dict[str, Callable[[], object]] = {
        f"{decoder()}, unpack": partial(nifti_files.gzip_codec.decompress, packed),
        "zlib 1, pack": partial(gzip.compress, raw, 1, mtime=0),
        "attcl, read": partial(volumes.load, [path]),
        "attcl, write": partial(
            volumes.save, [folder / "pause.nii.gz"], volume.data, volume.grid, description="pause"
        ),
        "a call that keeps Python's lock": keep_the_lock,
    }
    print(
        "\nlongest pause of another thread, of the seconds of a call; the least of all rounds, since other work adds"
    )
    for name, call in calls.items():
        pauses = [longest_pause(call) for _ in range(rounds)]
        seconds, pause = min(pauses, key=lambda it: it[1])
        print(f"{name:<33}{pause:8.4f} s of {seconds:.4f} s")


def measure(
    path: Path, folder: Path, *, workers: int, count: int, rounds: int
) -> dict[tuple[str, bool, str], list[Timed]]:
    """Measure (work, whether Python is busy beside it, kind of worker) in turns.

    Args:
        path: the volume that is read, again and again.
        folder: where volumes are written.
        workers: threads, or processes.
        count: volumes per round.
        rounds: after the first, which fills caches and starts processes.
    """
    resource_tracker.ensure_running()  # one for all processes, or each would clear up what others still use
    volume = volumes.load([path])
    context = multiprocessing.get_context("spawn")
    found: dict[tuple[str, bool, str], list[Timed]] = {}
    with (
        ThreadPoolExecutor(workers) as threads,
        ProcessPoolExecutor(workers, mp_context=context) as processes,
    ):
        hands = _hands({THREADS: threads, PROCESSES: processes}, volume, path)
        for turn in range(rounds + 1):
            alone = _speed_alone()
            for work, busy, kind in product(WORK, (False, True), KINDS):
                targets = [folder / f"{turn}-{kind}-{number}.nii.gz" for number in range(count)]
                timed = _round(hands[work, kind], targets, ahead=workers, busy=busy)
                for target in targets:
                    target.unlink(missing_ok=True)
                if turn:
                    timed = Timed(timed.seconds / count, timed.python / alone)
                    found.setdefault((work, busy, kind), []).append(timed)
    return found


def report(found: dict[tuple[str, bool, str], list[Timed]]) -> Iterator[str]:
    """Yield a line per work, alone and beside a busy main thread; ratios are medians over the rounds."""
    for work in WORK:
        for busy in (False, True):
            threads, processes = (found[work, busy, kind] for kind in KINDS)
            ratio = statistics.median(
                theirs.seconds / ours.seconds
                for theirs, ours in zip(processes, threads, strict=True)
            )
            name = f"{work}, Python busy" if busy else work
            line = f"{name:<20}"
            for kind, each in zip(KINDS, (threads, processes), strict=True):
                line += f"  {kind} {statistics.median(it.seconds for it in each):.4f} s"
                if busy:
                    line += f" (loop {statistics.median(it.python for it in each):.0%})"
            yield f"{line}  {ratio:.2f}"


def _round(hand: Hand, targets: Sequence[Path], *, ahead: int, busy: bool) -> Timed:
    """Return the seconds of all volumes, and the steps per second of the busy loop while it waits for them."""
    pending: deque[Future[Any]] = deque()
    loop = _Loop()

    def finish() -> None:
        first = pending.popleft()
        if busy:
            loop.run(first.done)
        hand.take(first.result())

    begin = time.perf_counter()
    for target in targets:
        pending.append(hand.submit(target))
        if len(pending) > ahead:
            finish()
    while pending:
        finish()
    return Timed(time.perf_counter() - begin, loop.speed)


def _hands(
    pools: Mapping[str, Executor], volume: volumes.Volume, path: Path
) -> dict[tuple[str, str], Hand]:
    """Return how each kind of worker does each work."""
    threads, processes = (pools[kind] for kind in KINDS)

    def save(target: Path) -> None:
        volumes.save([target], volume.data, volume.grid, description="benchmark")

    return {
        (READ, THREADS): Hand(
            lambda _target: threads.submit(volumes.load, [path]), lambda it: _look_at(it.data)
        ),
        (READ, PROCESSES): Hand(
            lambda _target: processes.submit(read_shared, path), lambda it: remove(it, _look_at)
        ),
        (WRITE, THREADS): Hand(lambda target: threads.submit(save, target), lambda _none: None),
        (WRITE, PROCESSES): Hand(
            lambda target: processes.submit(write_shared, share(volume.data), target, volume.grid),
            remove,
        ),
    }


def _look_at(data: Any) -> None:
    """Touch each page of an array, as whoever works with it does."""
    np.asarray(data).reshape(-1)[::1024].sum()


class _Loop:
    """Python that runs while others work."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def run(self, done: Callable[[], bool]) -> None:
        """Run until something is done."""
        begin = time.perf_counter()
        while not done():
            for _ in range(_LOOK):
                self.steps += 1
        self.seconds += time.perf_counter() - begin

    @property
    def speed(self) -> float:
        """Return the steps per second; NaN if nothing ran."""
        return self.steps / self.seconds if self.seconds else math.nan


def _speed_alone() -> float:
    loop, end = _Loop(), time.perf_counter() + 0.3
    loop.run(lambda: time.perf_counter() > end)
    return loop.speed


# --- Shared memory ----------------------------------------------------------------------------------------------------


def read_shared(path: Path) -> Shared:
    """Read a volume in a worker process."""
    return share(volumes.load([path]).data)


def write_shared(shared: Shared, target: Path, grid: volumes.Grid) -> Shared:
    """Write a volume in a worker process; return it, so that it can be removed."""
    block = SharedMemory(shared.name)
    data = np.ndarray(shared.shape, shared.dtype, buffer=block.buf)
    volumes.save([target], data, grid, description="benchmark")
    del data
    block.close()
    return shared


def share(data: Any) -> Shared:
    """Copy an array into shared memory."""
    array = np.ascontiguousarray(data)
    block = SharedMemory(create=True, size=array.nbytes)
    np.ndarray(array.shape, array.dtype, buffer=block.buf)[...] = array
    block.close()
    return Shared(block.name, array.shape, array.dtype.str)


def remove(shared: Shared, look: Callable[[Any], None] | None = None) -> None:
    """Take an array out of shared memory, after a look at it."""
    block = SharedMemory(shared.name)
    if look is not None:
        look(np.ndarray(shared.shape, shared.dtype, buffer=block.buf))
    block.unlink()
    block.close()


# --- Python's lock ----------------------------------------------------------------------------------------------------


def longest_pause(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call, and the longest time for which it let no other thread run.

    A call that keeps Python's lock stops the others for as long as it goes on. One that releases it stops them for
    milliseconds at most, even on one core.
    """
    took: list[float] = []

    def call() -> None:
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)

    other = threading.Thread(target=call)
    longest, before = 0.0, time.perf_counter()
    other.start()
    while not took:
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    longest = max(longest, time.perf_counter() - before)
    other.join()
    return took[0], longest


def keep_the_lock() -> None:
    """Call what never releases Python's lock, to show that `longest_pause` finds it."""
    math.factorial(40_000)
