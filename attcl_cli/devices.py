"""Which device networks run on, in which precision, and how a CPU is made ready for them.

What runs there is left to the stages, and which other processes take part to `processes`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from attcl_cli.errors import UsageError
from attcl_cli.prefetch import read_ahead

if TYPE_CHECKING:  # the command line imports this file to answer --help at once
    import torch

Precision = Literal["fp32", "bf16"]
"""What networks compute in: a matter of the machine, no setting of a method."""

MOST_AT_ONCE = 16
"""Items that a CPU works on at once: each needs memory of its own."""

Item = TypeVar("Item")
Result = TypeVar("Result")


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
            "name one of them; only attcl complete takes several; attcl score --ray and torchrun divide work, too",
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


def memory_of(device: torch.device) -> int | None:
    """Return the memory of a GPU, or of this machine, in bytes; None if it is not known."""
    import torch  # noqa: PLC0415

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    with contextlib.suppress(OSError, ValueError):  # a system that does not know these names
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def fast_bf16(device: torch.device, listing: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the instructions by which a CPU multiplies bfloat16 faster than float32, by the name that Linux has.

    Args:
        device: where networks run.
        listing: Linux's description of the CPU.

    Returns:
        amx_bf16 (Intel), else avx512_bf16; None if it has neither, on other devices, and on systems without a listing.
    """
    if device.type != "cpu" or not listing.is_file():
        return None
    words = set(listing.read_text(encoding="utf-8", errors="replace").split())
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in words), None)


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the most memory of a GPU that tensors of this process have held, in MB (10^6 bytes); None on a CPU."""
    import torch  # noqa: PLC0415

    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)


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
    ahead = one_core_each(work, items, depth=min(cores, MOST_AT_ONCE))
    yield from (future.result() for _, future in ahead)


def one_core_each(
    work: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Do what `read_ahead` does; each of its threads computes on one core, and the caller on as many as before.

    Where every thread shares its operations among all cores, OpenMP has more threads than cores, and lets them sleep
    between two operations instead of waiting for a moment: many small ones then take twice as long, the caller's too.
    """
    import torch  # noqa: PLC0415

    cores = torch.get_num_threads()
    try:
        yield from read_ahead(work, items, depth=depth, begin=partial(torch.set_num_threads, 1))
    finally:
        torch.set_num_threads(cores)  # threads that begin later share again
