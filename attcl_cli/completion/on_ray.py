"""Makes the volumes of a plan on a Ray cluster: workers that keep their models, each with a few cases at a time.

What is made, and every byte of it, is `making`'s; this file divides the jobs and survives workers that die. Dataset,
output folder and weights must lie at the same paths on every machine.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from attcl_cli.completion.jobs import Completed, CompletionPlan, Job
from attcl_cli.confined import confined
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.run_ends import in_main_thread

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ends with the run."""

_GROUP = 4  # jobs that a worker has at once: one is read while another is computed and a third is written
_TRIES = 3  # of a group whose worker died, and of a case that failed
_WAITING = 2  # groups of a worker: one that it makes, and one that it takes up at once
_PATIENCE_SECONDS = 5.0
_MOST = 4  # groups per worker that the driver knows of


def make_on_ray(
    plan: CompletionPlan,
    *,
    address: str,
    device: str,
    batch_size: int = 64,
    workers: int = 2,
    keep_going: bool = False,
    share_of_gpu: float = 1.0,
) -> Iterator[Completed]:
    """Make the planned volumes on a Ray cluster; the same contract as `making.make_volumes`.

    The driver holds a few groups of jobs per worker, however many cases there are. A worker that dies is started again
    and its group made again, three times; then its cases are failed cases.

    Args:
        plan: what is to be done.
        address: `local`, `auto` (the cluster of this machine) or that of a cluster.
        device: auto, cpu or cuda; of each worker.
        batch_size: slices on the device at once; never changes results.
        workers: cases that a worker reads ahead.
        keep_going: yield a failed case and continue; otherwise its error is raised.
        share_of_gpu: of a GPU, for each worker on one.

    Yields:
        Each job when its files are on the disk, in the plan's order.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
        AttclError: a case failed. What was finished stays.
    """
    with _cluster(address) as ray:
        count, needs = _places(ray, device, share_of_gpu)
        groups = [plan.jobs[at : at + _GROUP] for at in range(0, len(plan.jobs), _GROUP)]
        shared = ray.put(replace(plan, jobs=()))
        actor = ray.remote(max_restarts=-1, max_task_retries=_TRIES - 1, **needs)(_Worker)
        pool = [
            actor.remote(shared, str(Path.cwd()), device, batch_size, workers)
            for _ in range(min(count, len(groups)))
        ]
        yield from _in_order(ray, pool, groups, keep_going=keep_going)


def _in_order(
    ray: Any, pool: Sequence[Any], groups: Sequence[Sequence[Job]], *, keep_going: bool
) -> Iterator[Completed]:
    """Yield what becomes of each group, in order; each worker has one that it makes and one that waits for it."""
    left = deque(enumerate(groups))
    running: dict[Any, tuple[int, int]] = {}  # reference -> (number of the group, of the worker)
    finished: dict[int, list[Completed]] = {}
    busy = [0] * len(pool)
    shown = 0
    while left or running:
        for place, worker in enumerate(pool):
            # Groups that are done and cannot be shown yet count, too: memory does not grow behind a slow one.
            while (
                left and busy[place] < _WAITING and len(running) + len(finished) < _MOST * len(pool)
            ):
                number, group = left.popleft()
                running[worker.make.remote(tuple(group))] = number, place
                busy[place] += 1
        (done, *_), _ = ray.wait(list(running))
        number, place = running.pop(done)
        busy[place] -= 1
        finished[number] = _outcome(ray, done, groups[number])
        while shown in finished:
            for item in finished.pop(shown):
                if item.error is not None and not keep_going:
                    raise item.error
                yield item
            shown += 1


def _outcome(ray: Any, done: Any, group: Sequence[Job]) -> list[Completed]:
    """Return what became of a group; if its workers died again and again, all of its cases failed."""
    try:
        outcome: list[Completed] = ray.get(done)
    except ray.exceptions.RayActorError as error:
        return [
            Completed(
                job,
                (),
                0.0,
                AttclError(
                    f"{job.case.id}: its worker died {_TRIES} times ({_first_line(error)}), expected one that lives",
                    "look at the memory of the machines, then run the same command again",
                    code="worker-died",
                ),
            )
            for job in group
        ]
    return outcome


class _Worker:
    """A process of the cluster with its models, which are loaded when the first job needs them."""

    def __init__(
        self, plan: CompletionPlan, cwd: str, device: str, batch_size: int, workers: int
    ) -> None:
        """Take what all jobs share; paths of the plan are relative to the driver's folder."""
        if not Path(cwd).is_dir():
            raise AttclError(
                f"{cwd}: not on {os.uname().nodename}, expected the folder in which the command was started",
                "use folders that every machine of the cluster has at the same path",
                code="no-shared-folder",
            )
        os.chdir(cwd)
        from attcl_cli import devices  # noqa: PLC0415 - the driver needs no torch

        self._plan = plan
        self._device = devices.select(device)
        self._batch_size, self._workers = batch_size, workers
        self._methods: dict[str, Any] = {}

    def make(self, jobs: tuple[Job, ...]) -> list[Completed]:
        """Make the volumes of a few jobs; those that fail are tried again."""
        outcome = list(self._made(jobs))
        for _ in range(_TRIES - 1):
            failed = [place for place, item in enumerate(outcome) if item.error is not None]
            again = self._made(tuple(jobs[place] for place in failed))
            for place, item in zip(failed, again, strict=True):
                outcome[place] = item
        return outcome

    def _made(self, jobs: tuple[Job, ...]) -> Iterator[Completed]:
        from attcl_cli.completion.making import make_volumes  # noqa: PLC0415 - as above
        from attcl_cli.methods.weights import load_method  # noqa: PLC0415 - as above

        plan = replace(self._plan, jobs=jobs)
        for model in plan.used:
            if model.sha256 not in self._methods:
                self._methods[model.sha256] = load_method(model, self._device)
        with confined(plan.output, plan.places.records):
            yield from make_volumes(
                plan,
                self._methods,
                device=self._device,
                batch_size=self._batch_size,
                workers=self._workers,
                keep_going=True,
            )


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; disconnect, or end it, however the block ends."""
    try:
        import ray  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise UsageError(
            "--ray: Ray is not installed, expected the package ray",
            'install it: pip install "attcl[ray]"',
            code="no-ray",
        ) from error
    if ray.is_initialized():  # by the caller, to whom the cluster belongs
        yield ray
        return
    _require_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            configure_logging=False,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, _first_line(error)) from error
    try:
        if in_main_thread():  # Ray's own handler of SIGTERM would end the run without its record
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


def _require_address(address: str) -> None:
    """Raise an error unless the address is a word that Ray knows, or somebody listens there: Ray tries for minutes."""
    if address in {LOCAL, "auto"}:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise _no_cluster(address, "no address HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, f"nobody answers ({_first_line(error)})") from error


def _no_cluster(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--ray: {address}: {reason.rstrip('.')}, expected a Ray cluster",
        "--ray local starts one on this machine; ray start --head starts one that other machines join",
        code="no-cluster",
    )


def _places(ray: Any, device: str, share_of_gpu: float) -> tuple[int, dict[str, float]]:
    """Return how many workers the cluster has room for, and what each needs.

    A worker without a GPU has one core: that is how many a call of a network uses (`inference`).
    """
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    if device == "cuda" and not gpus:
        raise UsageError(
            "--device: cuda, but no machine of the cluster has a GPU that Ray knows",
            "ray start --num-gpus N tells it; -d cpu needs none",
            code="device-absent",
        )
    if gpus and device != "cpu":
        return max(int(gpus / share_of_gpu), 1), {"num_gpus": share_of_gpu, "num_cpus": 1}
    return max(int(resources.get("CPU", 1)), 1), {"num_cpus": 1}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
