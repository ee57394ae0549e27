"""Which other processes take part: all train together, or each does cases of its own.

Several processes are started by `torchrun` or `accelerate launch`. Accelerate finds out what they are if they train
together, `launched` if each does cases of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from attcl_cli.devices import select
from attcl_cli.errors import UsageError

if TYPE_CHECKING:  # the command line imports this file to answer --help at once
    import torch
    from accelerate import PartialState
    from torch import Tensor, nn

_LOOK_SECONDS = 0.2  # between two looks at what other processes have done

Value = TypeVar("Value")


class Processes:
    """The processes that train together; by default there is one.

    Attributes:
        rank: the number of this process, from 0.
        count: how many processes there are.
    """

    def __init__(self, state: PartialState | None = None) -> None:
        """Join the processes of an accelerate state; None is a process alone."""
        self._state = state
        self.rank = state.process_index if state else 0
        self.count = state.num_processes if state else 1

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes files and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self._state:
            self._state.wait_for_everyone()

    def leave(self) -> None:
        """End the common work, all at once: a process that exits while another still listens takes that one down."""
        if self._state:
            self._state.wait_for_everyone()
            self._state.destroy_process_group()
            self._state = None

    def agree(self, value: Value) -> Value:
        """Return the main process' `value` in all processes."""
        if self._state is None:
            return value
        from accelerate.utils import broadcast_object_list  # noqa: PLC0415 - slow, and rarely needed

        values = [value]
        broadcast_object_list(values)
        return values[0]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self._state is None:
            return value
        from accelerate.utils import reduce  # noqa: PLC0415

        mean: Tensor = reduce(value, "mean")
        return mean

    def any(self, flag: bool, device: torch.device) -> bool:  # noqa: FBT001 - the value itself
        """Return whether `flag` is set in any process."""
        if self._state is None:
            return flag
        import torch  # noqa: PLC0415

        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    @contextmanager
    def averaging(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Replace gradients by their mean over the processes; most travel while the backward pass goes on.

        Encloses the last backward pass before a step. All processes give the same parameters in the same order; one
        without a gradient counts as 0.
        """
        if self._state is None or not parameters:
            yield
            return
        from attcl_cli.gradients import GradientMean  # noqa: PLC0415 - torch

        mean = GradientMean(parameters, self.count)
        with mean.sending():
            yield
        mean.receive()


def join(name: str) -> tuple[torch.device, Processes]:
    """Return the device of this process, and the processes it was started with.

    Raises:
        UsageError: there is no such device on this machine, one GPU is named for several processes, or only a part of
            what `torchrun` sets is set.
    """
    device = select(name)
    count = os.environ.get("WORLD_SIZE") or "1"
    if count == "1":
        return device, Processes()
    if launched() is None or not os.environ.get("LOCAL_RANK", "").isdigit():
        raise UsageError(
            f"WORLD_SIZE: {count}, expected RANK and LOCAL_RANK beside it, as torchrun sets them",
            "start the processes with torchrun; to train in one process, unset WORLD_SIZE",
            code="processes-unknown",
        )
    if device.index is not None:  # accelerate gives each process the GPU of its number
        raise UsageError(
            f"--device: {name}, given to {count} processes, expected cuda, of which each takes one",
            f"-d cuda; CUDA_VISIBLE_DEVICES={device.index} shows them that GPU alone",
            code="device-of-one-process",
        )
    from accelerate import PartialState  # noqa: PLC0415

    state = PartialState(cpu=device.type == "cpu")
    return state.device, Processes(state)


@dataclass(frozen=True)
class Launch:
    """One of several processes that `torchrun` started, each of which does cases of its own.

    Attributes:
        rank: its number among all, from 0.
        count: how many there are.
        local: its number among those of this machine, from 0.
    """

    rank: int
    count: int
    local: int


def launched() -> Launch | None:
    """Return which process of `torchrun` this is; None: it was started alone."""
    values = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(value.isdigit() for value in values[:2]):
        return None
    rank, count, local = (int(value) if value.isdigit() else 0 for value in values)
    return Launch(rank, count, local) if count > 1 else None


def own_device(name: str, launch: Launch) -> str:
    """Return the device of one process: `auto` and `cuda` are the GPU of its number, if the machine has GPUs.

    Raises:
        UsageError: the machine has fewer GPUs than processes.
    """
    if name not in {"auto", "cuda"}:
        return name
    import torch  # noqa: PLC0415

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        return name
    if launch.local >= gpus:
        raise UsageError(
            f"torchrun: process {launch.local + 1} of this machine has no GPU of its own, "
            f"expected {gpus} at most, as there are GPUs",
            f"--nproc-per-node {gpus}; -d cpu needs no GPU",
            code="too-many-processes",
        )
    return f"cuda:{launch.local}"


def leave(launch: Launch, *, after_all: bool) -> None:
    """Announce that this process has done its cases; wait until all have if it will end with an error.

    As soon as one process ends with an error, `torchrun` ends the others.

    Args:
        launch: this process.
        after_all: wait for the others.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # nobody ends the others
        return
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

    try:
        store, _, _ = next(rendezvous("env://", launch.rank, launch.count))
        store.set(f"attcl/{launch.rank}", "done")
        names = [f"attcl/{rank}" for rank in range(launch.count)]
        while after_all and not store.check(names):
            time.sleep(_LOOK_SECONDS)  # signals break in here, unlike in `store.wait`
    except RuntimeError:  # the store is gone, and with it torchrun
        return
