"""Devices, and how a CPU works on several items at once."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from attcl_cli import devices
from attcl_cli.errors import UsageError


def test_auto_takes_a_device_that_is_there() -> None:
    torch.zeros(1, device=devices.select("auto"))


@pytest.mark.parametrize("name", ["cuda:99", "cpu:1", "tpu", "cuda:x"])
def test_a_device_that_is_absent_is_an_error_that_lists_what_is_there(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"--device: .* is not on this machine, expected auto, cpu"
    ):
        devices.select(name)


def test_a_device_that_is_absent_has_a_code() -> None:
    with pytest.raises(UsageError) as caught:
        devices.select("tpu")
    assert caught.value.code == "device-absent"


PAGES_OF_FREED_LAYERS = """
import resource, sys
import torch
from attcl_cli import devices

device = devices.select("cpu")
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(4 * 2**20, device=device), torch.ones(3 * 2**20, device=device)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_of_layers_is_kept_for_the_next_unless_glibc_was_told_otherwise() -> None:
    """28 MB are 7168 pages: filled a few times if they are kept, 40 times if they are given back."""
    pages = {}
    for name, chosen in (("kept", {}), ("chosen", {"MALLOC_TRIM_THRESHOLD_": "131072"})):
        environment = {**without_malloc_variables(), **chosen}
        command = [sys.executable, "-c", PAGES_OF_FREED_LAYERS]
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        pages[name] = int(answer.stdout)
    assert pages["kept"] < 10 * 7168 < 30 * 7168 < pages["chosen"]


def without_malloc_variables() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_a_cpu_works_on_as_many_items_at_once_as_it_has_cores(cores: int) -> None:
    together, threads = threading.Barrier(cores), []

    def work(item: int) -> int:
        together.wait(timeout=30)  # breaks if fewer are at work
        threads.append(torch.get_num_threads())
        return item * item

    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    results = list(devices.in_turn(work, range(2 * cores), torch.device("cpu")))
    assert torch.get_num_threads() == cores
    torch.set_num_threads(before)
    assert results == [item * item for item in range(2 * cores)]
    assert threads == [1] * (2 * cores)


def test_other_devices_work_on_one_item_after_the_other() -> None:
    here = threading.current_thread()
    threads = devices.in_turn(
        lambda _item: threading.current_thread(), range(3), torch.device("meta")
    )
    assert list(threads) == [here, here, here]


def test_memory_of_a_gpu_is_in_megabytes_and_a_cpu_has_none(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: device.index * 2_500_000)
    assert devices.peak_memory_mb(torch.device("cuda", 2)) == 5.0
    assert devices.peak_memory_mb(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx512_bf16 amx_bf16 amx_tile", "amx_bf16"),
        ("fpu avx512_bf16", "avx512_bf16"),
        ("fpu avx512f", None),
        (None, None),
    ],
)
def test_bf16_is_found_in_the_description_of_the_cpu(flags, found, tmp_path) -> None:
    listing = tmp_path / "cpuinfo"
    if flags is not None:
        listing.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert devices.fast_bf16(torch.device("cpu"), listing) == found
    assert devices.fast_bf16(torch.device("meta"), listing) is None


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="Linux alone says it there")
def test_the_memory_of_the_machine_is_that_of_the_system() -> None:
    total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert devices.memory_of(torch.device("cpu")) == pytest.approx(1024 * int(total[1]), rel=0.01)
    assert devices.memory_of(torch.device("meta")) is None
