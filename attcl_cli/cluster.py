"""A Ray cluster: starts or joins it, and gives the workers of a stage their items, a few at a time and in order.

Survives workers that die. What a worker does with its items, and what becomes of those that are lost, is left to the
stage. What the stage reads and writes must lie at the same paths on every machine.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attcl_cli.errors import AttclError, UsageError, first_line
from attcl_cli.run_ends import in_main_thread

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ends with the run."""

TRIES = 3
"""Of a group of items whose worker died, then of each item; stages try an item that failed as often."""

_DEVICES = ("auto", "cpu", "cuda")
_WAITING = 2  # groups of a worker: one that it makes, and one that it takes up at once
_PATIENCE_SECONDS = 5.0
_ROUNDING = 1e-9  # 1 / 0.1 is not always 10
_MOST = 4  # groups per worker that the driver knows of

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Taken_contra = TypeVar("Taken_contra", contravariant=True)
Made_co = TypeVar("Made_co", covariant=True)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what a worker on it has.

    Attributes:
        address: `local`, `auto` (the cluster of this machine) or that of a cluster.
        device: auto, cpu or cuda; of each worker.
        share_of_gpu: of a GPU, for each worker on one.
    """

    address: str
    device: str
    share_of_gpu: float = 1.0


def asked_for(ray: str | None, device: str, gpu_share: float | None) -> Cluster | None:
    """Return the cluster that options ask for; None if they ask for none.

    Raises:
        UsageError: a share of a GPU without a cluster, or one that is none; a device that only one machine can have.
    """
    if ray is None and gpu_share is not None:
        raise UsageError(
            "--gpu-share: given without --ray, expected both or none",
            "attcl complete --ray --gpu-share 0.5 puts two workers on each GPU of a cluster",
            code="options-belong-together",
        )
    if device == "cpu" and gpu_share is not None:
        raise UsageError(
            "--gpu-share: given with --device cpu, expected one of them",
            "leave one of them out",
            code="options-exclude-each-other",
        )
    share = 1.0 if gpu_share is None else gpu_share
    if not 0 < share <= 1:
        raise UsageError(
            f"--gpu-share: {share:g}, expected more than 0 and at most 1",
            "--gpu-share 0.5 puts two workers on each GPU",
            code="gpu-share-out-of-range",
        )
    if ray is None:
        return None
    if device not in _DEVICES:
        raise UsageError(
            f"--ray: given with --device {device}, expected {', '.join(_DEVICES)}",
            "Ray chooses the GPU of each worker: -d cuda",
            code="options-exclude-each-other",
        )
    return Cluster(ray, device, share)


class Worker(Protocol[Taken_contra, Made_co]):
    """A process of the cluster; made of what all groups share and of further arguments."""

    def work(self, group: tuple[Taken_contra, ...]) -> Made_co:
        """Return what becomes of a group; an item that fails is part of it, and no exception."""


def work_on_ray(
    kind: type[Worker[Item, Outcome]],
    items: Sequence[Item],
    lost: Callable[[Sequence[Item], str], Outcome],
    *,
    at_once: int,
    shared: object,
    arguments: Sequence[object],
    on: Cluster,
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each group of items, in order; close the generator to leave the cluster before its end.

    The driver holds a few groups per worker, however many there are. A worker that dies is started again and its group
    done again, three times; then its items are done one by one, and one whose worker dies three times more is lost.

    Args:
        kind: the class of the workers, called with `shared` and `arguments`.
        items: what there is to do.
        lost: (group, reason) -> what becomes of a group whose workers died.
        at_once: items that a worker is given at once; fewer if there are not enough for all workers.
        shared: the large part of the arguments; travels once.
        arguments: the others.
        on: where the workers are.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or no GPU that is asked for.
        Exception: what a worker raised.
    """
    with _joined(on.address) as ray:
        count, needs = _places(ray, on)
        groups = _divided(items, count, at_once)
        handle = ray.put(shared)
        actor = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **needs)(kind)
        pool = [actor.remote(handle, *arguments) for _ in range(min(count, len(groups)))]
        try:
            yield from _in_order(ray, pool, groups, lost)
        finally:
            for worker in pool:  # otherwise one does all that it was given, after the run has ended
                ray.kill(worker)


def worker_died(name: str, reason: str) -> AttclError:
    """Return the error of an item whose workers died again and again."""
    return AttclError(
        f"{name}: its worker died {TRIES} times ({reason}), expected one that lives",
        "look at the memory of the machines, then run the same command again",
        code="worker-died",
    )


def enter(folder: str) -> None:
    """Work in the driver's folder, to which paths are relative.

    Raises:
        AttclError: this machine has no such folder.
    """
    if not Path(folder).is_dir():
        raise AttclError(
            f"{folder}: not on {os.uname().nodename}, expected the folder in which the command was started",
            "use folders that every machine of the cluster has at the same path",
            code="no-shared-folder",
        )
    os.chdir(folder)


def require(address: str) -> None:
    """Raise an error unless Ray is installed and somebody answers at the address; starts and joins nothing."""
    if not _library().is_initialized():
        _require_address(address)


def _divided(items: Sequence[Item], workers: int, most: int) -> list[Sequence[Item]]:
    """Return the items in groups of `most`, or smaller ones, so that each worker has two if there are enough."""
    size = max(1, min(most, len(items) // (_WAITING * workers)))
    return [items[at : at + size] for at in range(0, len(items), size)]


def _in_order(
    ray: Any,
    pool: Sequence[Any],
    groups: Sequence[Sequence[Item]],
    lost: Callable[[Sequence[Item], str], Outcome],
) -> Iterator[Outcome]:
    """Yield what becomes of each group, in order; each worker has one that it makes and one that waits for it.

    A group whose workers died is divided into groups of one item each, so that one which kills them is lost alone.
    """
    left = deque((number, group) for number, group in enumerate(groups))
    running: dict[Any, tuple[int, Sequence[Item], int]] = {}  # reference -> (number, group, worker)
    order = deque(range(len(groups)))  # of the numbers whose outcomes were not shown yet
    finished: dict[int, Outcome] = {}
    busy = [0] * len(pool)
    new = len(groups)  # the number of the next group that comes of a divided one
    while left or running:
        for place, worker in enumerate(pool):
            # Groups that are done and cannot be shown yet count, too: memory does not grow behind a slow one.
            while (
                left and busy[place] < _WAITING and len(running) + len(finished) < _MOST * len(pool)
            ):
                number, group = left.popleft()
                running[worker.work.remote(tuple(group))] = number, group, place
                busy[place] += 1
        (done, *_), _ = ray.wait(list(running))
        number, group, place = running.pop(done)
        busy[place] -= 1
        try:
            finished[number] = ray.get(done)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            if len(group) == 1:
                finished[number] = lost(group, first_line(error))
            else:
                single = [(new + at, [item]) for at, item in enumerate(group)]
                new += len(single)
                left.extendleft(reversed(single))
                at = order.index(number)
                del order[at]
                for inner, (of_one, _) in enumerate(single):
                    order.insert(at + inner, of_one)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # Ray's own copy lacks the number and the file of an OSError
        del done  # or the cluster keeps what it refers to
        while order and order[0] in finished:
            yield finished.pop(order.popleft())


def _library() -> Any:
    """Import Ray, an optional package."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            "--ray: Ray is not installed, expected the package ray",
            'install it: pip install "attcl[ray]"',
            code="no-ray",
        ) from error


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine; disconnect, or end it, however the block ends."""
    ray = _library()
    if ray.is_initialized():  # by the caller, to whom the cluster belongs
        yield ray
        return
    _require_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    # What Ray says of its tokens, and of workers that died or were ended, is no message of ours; its log files have it.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _without_stderr():  # it says there that its level was set
            ray.init(
                address=address,  # "local" is a word of Ray's: None would join a cluster that runs here
                include_dashboard=False if address == LOCAL else None,
                configure_logging=False,
                log_to_driver=False,
            )
    except Exception as error:  # of no class in particular if its processes are slow to start
        raise _no_cluster(address, first_line(error)) from error
    try:
        if in_main_thread():  # Ray's own handler of SIGTERM would end the run without its record
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what compiled code writes to stderr within the block; errors of Python are raised as ever."""
    try:
        kept = os.dup(2)
    except OSError:  # closed before this process began
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _require_address(address: str) -> None:
    """Raise an error unless the address is a word that Ray knows, or somebody listens there: Ray tries for minutes."""
    if address in {LOCAL, "auto"}:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        client = ", and Ray's client (ray://) is not taken" if "://" in address else ""
        raise _no_cluster(address, f"no address HOST:PORT{client}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, f"nobody answers ({first_line(error)})") from error


def _no_cluster(address: str, reason: str) -> UsageError:
    return UsageError(
        f"--ray: {address}: {reason.rstrip('.')}, expected a Ray cluster",
        "if this machine is busy, run the same command again"
        if address == LOCAL
        else "--ray local starts one on this machine; ray start --head starts one that other machines join",
        code="no-cluster",
    )


def _places(ray: Any, on: Cluster) -> tuple[int, dict[str, float]]:
    """Return how many workers the cluster has room for, and what each needs.

    A worker without a GPU has one core: that is how many a call of a network uses (`completion.inference`).
    """
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    if on.share_of_gpu < 1 and not gpus:
        raise UsageError(
            f"--gpu-share: {on.share_of_gpu:g}, but no machine of the cluster has a GPU that Ray knows",
            "leave it out; ray start --num-gpus N tells Ray of GPUs",
            code="device-absent",
        )
    if on.device == "cuda" and not gpus:
        raise UsageError(
            "--device: cuda, but no machine of the cluster has a GPU that Ray knows",
            "ray start --num-gpus N tells it; -d cpu needs none",
            code="device-absent",
        )
    if gpus and on.device != "cpu":
        per_gpu = int(
            1 / on.share_of_gpu + _ROUNDING
        )  # a worker is on one GPU: of 0.4 each, two fit
        cores = int(resources.get("CPU", 0.0))
        count = min(int(gpus) * per_gpu, cores)  # one without a core would never start
        return max(count, 1), {"num_gpus": on.share_of_gpu, "num_cpus": 1}
    return max(int(resources.get("CPU", 1)), 1), {"num_cpus": 1}
