"""Shares of a run's time: in the network, decoding, encoding, and how long the network waits for the others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

CPU = torch.device("cpu")
NETWORK, DECODE, ENCODE, COPY = "network", "decode", "encode", "copy"
WAIT = "wait"

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Clock:
    """Counts the seconds in which at least one thread is in a phase; phases overlap, so shares add up to more than 1.

    `wait` counts while any other phase goes on and the network stands still.
    """

    def __init__(self, *phases: str) -> None:
        """Begin with no thread in any of these phases."""
        self.seconds = dict.fromkeys((NETWORK, *phases, WAIT), 0.0)
        self._inside: Counter[str] = Counter()
        self._since = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as a part of a phase."""
        self._change(name, 1)
        try:
            yield
        finally:
            self._change(name, -1)

    def timed(
        self,
        name: str,
        function: Callable[Given, Result],
        device: torch.device = CPU,
    ) -> Callable[Given, Result]:
        """Return a function whose calls count as a part of a phase, until the device has done them."""

        def call(*arguments: Given.args, **options: Given.kwargs) -> Result:
            with self.phase(name):
                result = function(*arguments, **options)
                finish(device)
                return result

        return call

    def shares(self, seconds: float) -> str:
        """Return all phases as shares of a time: `network 62.0%, decode 12.1%, wait 30.5%`."""
        return ", ".join(f"{name} {part / seconds:.1%}" for name, part in self.seconds.items())

    def _change(self, name: str, count: int) -> None:
        with self._lock:
            now = time.perf_counter()
            running = {phase for phase, threads in self._inside.items() if threads}
            for phase in running:
                self.seconds[phase] += now - self._since
            if running and NETWORK not in running:
                self.seconds[WAIT] += now - self._since
            self._inside[name] += count
            self._since = now


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
