"""Devices, and several processes that train as one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from attcl_cli import devices
from attcl_cli.errors import UsageError

# Each process takes its share of one and the same batch; after every step the weights must agree to the bit.
TOGETHER = """
import json, sys, torch
from attcl_cli import devices
from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.settings import resolve

torch.set_num_threads(1)
device, processes = devices.join("cpu")
small = {"image_size": 16, "canvas": 16, "downs": 2, "width": 4, "max_width": 8, "mapping_width": 8}
settings = resolve(preset="tiny", overrides={**small, "contrastive_patches": 8})
torch.manual_seed(0)
method = METHODS["attcl-gan"](settings, ("t1", "t2"))
method.runtime = Runtime(
    rank=processes.rank, processes=processes.count, average=processes.average_gradients
)
noise = torch.Generator().manual_seed(1)
image = lambda: torch.rand(4, 1, 16, 16, generator=noise) * 2 - 1
domain = lambda: torch.randint(2, (4,), generator=noise)
apart = []
for step in range(3):
    pairs = torch.tensor([True, False, True, True])
    whole = DomainBatch(image(), domain(), image(), image(), domain(), image(), pairs)
    method.training_step(whole.part(method.runtime.share(4)), step)
    weights = torch.cat([item.detach().flatten() for item in method.parameters()])
    apart.append(float(processes.mean((weights - processes.mean(weights)).abs()).max()))
processes.leave()
if processes.main:
    print(json.dumps({"processes": processes.count, "apart": apart, "weights": weights.tolist()}))
"""


def run_together(folder: Path, count: int) -> dict:
    script = folder / "together.py"
    script.write_text(TOGETHER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = (
        [*launch, f"--nproc-per-node={count}", str(script)]
        if count > 1
        else [sys.executable, str(script)]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_agree_at_every_step_and_learn_what_one_learns(tmp_path: Path) -> None:
    one, two = run_together(tmp_path, 1), run_together(tmp_path, 2)
    assert two["processes"] == 2
    assert two["apart"] == [0.0, 0.0, 0.0]
    # The mean of two halves is rounded otherwise than the whole; Adam's first steps have the size of the rate, 4e-4.
    gap = (torch.tensor(one["weights"]) - torch.tensor(two["weights"])).abs()
    assert gap.mean() < 4e-5


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


def test_one_process_alone_is_the_main_one_and_changes_nothing() -> None:
    device, processes = devices.join("cpu")
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    processes.average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert (processes.main, processes.count, processes.agree("x")) == (True, 1, "x")
    assert processes.mean(torch.tensor(3.0)) == 3.0
    assert [processes.any(flag, device) for flag in (True, False)] == [True, False]
    processes.wait()
    processes.leave()
