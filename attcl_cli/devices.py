"""Which device networks run on, in which precision, and which other processes take part.

What runs there is left to the stages. Several processes are started by `torchrun` or `accelerate launch`; accelerate
finds out what they are if they train together, `launched` if each does cases of its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from attcl_cli.errors import UsageError
from attcl_cli.prefetch import read_ahead

if TYPE_CHECKING:  # the command line imports this file to answer --help at once
    import torch
    from accelerate import PartialState
    from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]
"""What networks compute in: a matter of the machine, no setting of a method."""

MOST_AT_ONCE = 16
"""Items that a CPU works on at once: each needs memory of its own."""

_LOOK_SECONDS = 0.2  # between two looks at what other processes have done

Value = TypeVar("Value")
Item = TypeVar("Item")
Result = TypeVar("Result")


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

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes, in one message."""
        if self._state is None or not parameters:
            return
        import torch  # noqa: PLC0415

        for parameter in parameters:
            if parameter.grad is None:  # all processes must send tensors of one shape
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(
            gradients, mean.split([item.numel() for item in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


# Of glibc's mallopt (malloc.h), and its own limits on 64-bit machines.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_CHOICES_OF_USERS = {
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
}
_LARGEST_MMAP_THRESHOLD, _LARGEST_INT = 32 * 2**20, 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the next layer of a network.

    By default, glibc gives large freed blocks back to the system at once, which must fill their pages with zeros when
    the next layer asks for as much. All threads share one store of it, for those of threads are kept small. Other C
    libraries are left alone, and so is who chose by glibc's own variables.
    """
    if sys.platform != "linux" or _CHOICES_OF_USERS & set(os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_ARENA_MAX, 1)


def select(name: str) -> torch.device:
    """Return the device of this name; `auto` is the best one that is present.

    A CPU is made ready for networks: the process keeps the memory that it frees.

    Args:
        name: auto, cpu, mps, cuda or cuda:N.

    Raises:
        UsageError: there is no such device on this machine, or several are named.
    """
    if "," in name:
        raise UsageError(
            f"--device: {name!r} names several devices, expected one",
            "name one of them; attcl complete alone divides its cases among several",
            code="several-devices",
        )
    kind, _, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (kind == "auto" and index):
        raise UsageError(
            f"--device: {name!r} is not on this machine, expected auto, cpu, cuda, cuda:N or mps",
            "-d auto takes the best there is",
            code="device-absent",
        )
    import torch  # noqa: PLC0415

    if name == "auto":
        best = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else best
        kind = name
    present = {
        "cpu": not index,
        "mps": torch.backends.mps.is_available() and not index,
        "cuda": torch.cuda.is_available()
        and (not index or (index.isdecimal() and int(index) < torch.cuda.device_count())),
    }
    if not present.get(kind, False):
        raise UsageError(
            f"--device: {name!r} is not on this machine, expected auto, {', '.join(_present())}",
            "-d auto takes the best there is",
            code="device-absent",
        )
    if kind == "cpu":
        keep_freed_memory()
    return torch.device(kind, int(index)) if index else torch.device(name)


def _present() -> list[str]:
    """Return the names of the CPU and of all GPUs."""
    import torch  # noqa: PLC0415

    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def several(name: str) -> tuple[str, ...]:
    """Return the GPUs that a list names: `cuda:0,cuda:1`; () if the name is no list.

    Raises:
        UsageError: the list has something else than GPUs of this machine, or one of them twice.
    """
    if "," not in name:
        return ()
    names = [part.strip() for part in name.split(",")]
    for one in names:
        kind, _, index = one.partition(":")
        if kind != "cuda" or not index.isdecimal():
            raise UsageError(
                f"--device: {one!r} among several devices, expected cuda:N, of GPUs",
                f"this machine has {', '.join(_present())}; for example -d cuda:0,cuda:1",
                code="device-list",
            )
        select(one)
    numbers = [int(one.partition(":")[2]) for one in names]
    for number in numbers:
        if numbers.count(number) > 1:
            raise UsageError(
                f"--device: cuda:{number} is named twice, expected each GPU once",
                "leave one of them out",
                code="device-list",
            )
    return tuple(f"cuda:{number}" for number in numbers)


def in_turn(
    work: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> Iterator[Result]:
    """Yield `work(item)` in order; a CPU works on several items at once, each on one core.

    Kernels split their sums by the number of threads that share them, and round accordingly. If no two threads share
    an item, results are the same to the bit for every number of cores.

    Args:
        work: runs networks on the device, and changes nothing that other items see.
        items: its arguments; as many as there are cores are in memory at once, `MOST_AT_ONCE` at most.
        device: where the networks run.
    """
    import torch  # noqa: PLC0415

    cores = torch.get_num_threads()
    if device.type != "cpu" or cores == 1:
        yield from map(work, items)
        return
    depth = min(cores, MOST_AT_ONCE)
    try:
        ahead = read_ahead(work, items, depth=depth, begin=partial(torch.set_num_threads, 1))
        yield from (future.result() for _, future in ahead)
    finally:
        torch.set_num_threads(cores)  # threads that begin later share again


def join(name: str) -> tuple[torch.device, Processes]:
    """Return the device of this process, and the processes it was started with.

    Raises:
        UsageError: there is no such device on this machine.
    """
    device = select(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, Processes()
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
