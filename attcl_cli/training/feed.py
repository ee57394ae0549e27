"""Batches drawn ahead of the steps that learn from them: by threads, or beside a GPU by processes of their own.

What a batch holds is left to the caller; it is a function of the step, so who draws it changes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from attcl_cli import devices

Drawn = TypeVar("Drawn")

_MOST_WORKERS = 12  # processes that draw beside one GPU


def feed(
    draw: Callable[[int], Drawn],
    steps: range,
    *,
    device: torch.device,
    processes: int = 1,
    ahead: int = 2,
) -> Iterator[tuple[int, Drawn]]:
    """Yield (step, batch) in order.

    Args:
        draw: step -> batch; runs in other threads or processes.
        steps: which.
        device: that the batches go to.
        processes: that train on this machine, each with a device of its own; they share its cores.
        ahead: batches that threads draw ahead; 0 draws each in the caller's own thread.
    """
    workers = drawing_processes(device, processes)
    if not workers:
        for step, future in devices.one_core_each(draw, steps, depth=ahead):
            yield step, future.result()
        return
    loader = DataLoader(
        _Steps(draw),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_interrupts,
        multiprocessing_context="fork",
    )
    yield from zip(steps, loader, strict=True)


def drawing_processes(device: torch.device, processes: int = 1) -> int:
    """Return how many processes draw batches for a device; 0: threads of this one do.

    A GPU is done with a batch before threads, which take turns with the training step, have drawn the next one. Only a
    fork sees the slices without a copy of them, and only Linux forks safely beside threads that wait.
    """
    if device.type != "cuda" or sys.platform != "linux":
        return 0
    return max(0, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) // processes - 1))


class _Steps(Dataset[Drawn]):
    """The batches of all steps."""

    def __init__(self, draw: Callable[[int], Drawn]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> Drawn:
        return self.draw(step)


def _leave_interrupts(_worker: int) -> None:
    """Leave what ends a run to the process that trains: it needs batches until its step is done and saved.

    Ctrl-C reaches the whole group of processes, and so do the signals of Slurm and of `torchrun`. A worker ends when
    that process closes its batches, or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
