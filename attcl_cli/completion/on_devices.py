"""Makes the volumes of a plan on several devices of this machine: a process for each, with a few cases at a time.

What is made, and every byte of it, is `making`'s; this file divides the jobs, and survives processes that die.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from threading import Thread

from attcl_cli import run_ends
from attcl_cli.completion.jobs import Completed, CompletionPlan, Doubt, Job
from attcl_cli.completion.warm import GROUP, WarmModels, shared_by_jobs
from attcl_cli.errors import AttclError
from attcl_cli.temporaries import sweep

_WAITING = 2  # groups of a worker: one that it makes, and one that it takes up at once
_MOST = 4  # groups per worker that this process knows of
_PATIENCE_SECONDS = 30.0  # for workers to finish the files that they are writing
_SIGNAL_SECONDS = 0.5  # in which a signal to all processes reaches all of them

_Outcome = tuple[tuple[str, ...], float, AttclError | None, Mapping[str, Doubt]]
"""The fields of `Completed` but the job."""


def make_on_devices(
    plan: CompletionPlan,
    names: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int = 2,
    keep_going: bool = False,
) -> Generator[Completed, None, None]:
    """Make the planned volumes on several devices; the same contract as `making.make_volumes`.

    This process holds a few groups of jobs per worker, however many cases there are. If a worker dies, the cases of the
    group that it had in work failed, and the others do the rest. However the generator ends, no worker is left.

    Args:
        plan: what is to be done.
        names: of the devices; each has a worker, as far as there are jobs.
        batch_size: slices on a device at once; never changes results.
        workers: cases that a worker reads ahead.
        keep_going: yield a failed case and continue; otherwise its error is raised.

    Yields:
        Each job when its files are on the disk, in the plan's order.

    Raises:
        AttclError: a case failed, or no worker is left. What was finished stays.
    """
    size = max(1, min(GROUP, len(plan.jobs) // (_WAITING * len(names))))
    groups = [plan.jobs[at : at + size] for at in range(0, len(plan.jobs), size)]
    with _started(plan, names[: len(groups)], batch_size, workers) as pool:
        for item in _in_order(pool, groups):
            if item.error is not None and not keep_going:
                raise item.error
            yield item


@dataclass
class _Worker:
    """A process of a device, as this one sees it.

    Attributes:
        device: its name.
        process: the process.
        pipe: takes groups of jobs, and gives an answer to each in their order.
        groups: the numbers of the groups that it has, the one in work first.
    """

    device: str
    process: SpawnProcess
    pipe: Connection
    groups: deque[int] = field(default_factory=deque)

    def take(self, number: int, group: tuple[Job, ...]) -> None:
        """Give it a group."""
        self.groups.append(number)
        with suppress(OSError):  # it has died, which its answer will show
            self.pipe.send(group)

    def answer(self) -> list[_Outcome] | AttclError | None:
        """Return what became of its first group, or the error that ends the run; None: the worker died."""
        try:
            answer: list[_Outcome] | AttclError = self.pipe.recv()
        except (EOFError, OSError):
            time.sleep(_SIGNAL_SECONDS)  # a signal that ended it may be on its way here
            self.process.join(_PATIENCE_SECONDS)
            return None
        return answer

    def death(self) -> str:
        """Return how it died."""
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _in_order(pool: Sequence[_Worker], groups: Sequence[tuple[Job, ...]]) -> Iterator[Completed]:
    """Yield what becomes of each group, in order; each worker has one that it makes and one that waits for it."""
    alive = list(pool)
    left = deque(range(len(groups)))
    finished: dict[int, list[Completed] | AttclError] = {}
    shown = 0
    while shown < len(groups):
        for worker in alive:
            # Nothing far behind the next one to show: memory does not grow behind a slow worker.
            while left and len(worker.groups) < _WAITING and left[0] < shown + _MOST * len(pool):
                number = left.popleft()
                worker.take(number, groups[number])
        pipes = wait([worker.pipe for worker in alive])
        for worker in [worker for worker in alive if worker.pipe in pipes]:
            answer = worker.answer()
            if answer is None:
                alive.remove(worker)
                if worker.groups:
                    number = worker.groups.popleft()
                    finished[number] = [_lost(job, worker) for job in groups[number]]
                left = deque(sorted([*left, *worker.groups]))  # the one that waited goes to others
                continue
            number = worker.groups.popleft()
            finished[number] = (
                answer
                if isinstance(answer, AttclError)
                else [Completed(job, *it) for job, it in zip(groups[number], answer, strict=True)]
            )
        while shown in finished:
            outcome = finished.pop(shown)
            if isinstance(outcome, AttclError):
                raise outcome
            yield from outcome
            shown += 1
        if left and not alive:
            raise _none_left(pool)


def _lost(job: Job, worker: _Worker) -> Completed:
    """Return the failure of a case whose worker died."""
    return Completed(
        job,
        (),
        0.0,
        AttclError(
            f"{job.case.id}: its worker on {worker.device} died ({worker.death()}), expected one that lives",
            _hint(worker),
            code="worker-died",
        ),
    )


def _none_left(pool: Sequence[_Worker]) -> AttclError:
    deaths = ", ".join(f"{worker.device}: {worker.death()}" for worker in pool)
    return AttclError(
        f"all workers died ({deaths}), expected one that lives", _hint(pool[-1]), code="worker-died"
    )


def _hint(worker: _Worker) -> str:
    if (worker.process.exitcode or 0) < 0:
        return "look at the memory of the machine, then run the same command again"
    return "see what it printed; a script calls complete() below `if __name__ == '__main__':`"


@contextmanager
def _started(
    plan: CompletionPlan, names: Sequence[str], batch_size: int, workers: int
) -> Iterator[list[_Worker]]:
    """Start a worker per device, and end all of them however the block ends."""
    pool: list[_Worker] = []
    shared = shared_by_jobs(plan)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    try:
        for name in names:
            pipe, its_end = context.Pipe()
            process = context.Process(
                target=_work,
                args=(its_end, shared, name, batch_size, workers),
                name=f"attcl {name}",
                daemon=True,
            )
            with _no_signals_of_the_terminal():
                process.start()
            its_end.close()
            pool.append(_Worker(name, process, pipe))
        yield pool
    finally:
        _end(pool)
        if plan.output.is_dir():
            sweep(plan.output)  # what a killed worker was writing


@contextmanager
def _no_signals_of_the_terminal() -> Iterator[None]:
    """Block Ctrl-C, which comes to all processes of a terminal, in processes that start in the block: we end them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(pool: Sequence[_Worker]) -> None:
    """End all workers: by a signal, after which they finish the files that they are writing; then by force."""
    for worker in pool:
        worker.process.terminate()
    try:
        end = time.monotonic() + _PATIENCE_SECONDS
        for worker in pool:
            worker.process.join(max(0.0, end - time.monotonic()))
    finally:  # also if another signal comes
        for worker in pool:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _work(pipe: Connection, plan: CompletionPlan, name: str, batch_size: int, workers: int) -> None:
    """Answer groups of jobs until a signal comes, in a process of its own."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(
            number, signal.SIG_IGN
        )  # of the terminal: the process that asks ends this one
    with suppress(run_ends.Stop), run_ends.signals():
        groups: SimpleQueue[tuple[Job, ...]] = SimpleQueue()
        Thread(target=_listen, args=(pipe, groups), daemon=True).start()
        models = WarmModels(plan, name, batch_size=batch_size, workers=workers)
        while True:
            answer = _answer(models, name, groups.get())
            with suppress(BrokenPipeError, ConnectionResetError):  # nobody waits: a signal comes
                pipe.send(answer)


def _listen(pipe: Connection, groups: SimpleQueue[tuple[Job, ...]]) -> None:
    """Take groups as they come, so that who gives them never waits; end the worker if there is nobody any more."""
    try:
        while True:
            groups.put(pipe.recv())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def _answer(models: WarmModels, name: str, jobs: tuple[Job, ...]) -> list[_Outcome] | AttclError:
    """Return what became of each job on a device, or what is no matter of a single case."""
    try:
        return [(it.outputs, it.seconds, it.error, it.doubts) for it in models.made(jobs)]
    except Exception as error:  # noqa: BLE001 - raised by the process that asked
        return run_ends.explained(error) or AttclError(
            f"{name}: unexpected {type(error).__name__} ({error}); finished files are kept",
            f"this is a bug: please report what the same command with -d {name} prints",
            code="unexpected",
        )
