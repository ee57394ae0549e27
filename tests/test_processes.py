"""Several processes that train as one, on one machine or on several; gradients that travel during the backward pass."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attcl_cli.errors import UsageError
from attcl_cli.gradients import GradientMean
from attcl_cli.processes import join

LAUNCH = [sys.executable, "-m", "torch.distributed.run"]

# Each process takes its share of one and the same batch; after every step the weights must agree to the bit.
TOGETHER = """
import json, sys, torch
from attcl_cli import gradients
from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.settings import resolve
from attcl_cli.processes import join

torch.set_num_threads(1)
gradients.MESSAGE_BYTES = 2000  # several per network
device, processes = join("cpu")
small = {"image_size": 16, "canvas": 16, "downs": 2, "width": 4, "max_width": 8, "mapping_width": 8}
settings = resolve(preset="tiny", overrides={**small, "contrastive_patches": 8})
torch.manual_seed(0)
method = METHODS["attcl-gan"](settings, ("t1", "t2"))
method.runtime = Runtime(
    rank=processes.rank, processes=processes.count, averaging=processes.averaging
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

# Two processes whose gradients come in another order, and not all of them.
GRADIENTS = """
import json, torch
import torch.distributed as dist
from torch import nn
from attcl_cli import gradients
from attcl_cli.processes import join

gradients.MESSAGE_BYTES = 4
device, processes = join("cpu")
first, second, third, still = (nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0, 5.0, 7.0))
still.requires_grad = False
events = []
send = dist.all_reduce
dist.all_reduce = lambda total, **rest: (events.append(f"send {len(total)}"), send(total, **rest))[1]
loss = first * 10 + second * 100 if processes.rank == 0 else (second * 4) * first * 2
third.grad = torch.tensor([8.0]) if processes.rank == 0 else None  # of an earlier part of the batch
with processes.averaging([first, second, third, still]):
    loss.sum().backward()
    events.append("backward is done")
result = [parameter.grad.tolist() for parameter in (first, second, third, still)]
processes.leave()
if processes.main:
    print(json.dumps({"gradients": result, "events": events}))
"""

# What has left when the gradient of the first layer's weights is computed, the last of all?
OVERLAP = """
import json, torch
import torch.distributed as dist
from torch import nn
from attcl_cli import gradients
from attcl_cli.processes import join

gradients.MESSAGE_BYTES = 4
device, processes = join("cpu")
layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
events = []
send = dist.all_reduce
dist.all_reduce = lambda total, **rest: (events.append("send"), send(total, **rest))[1]
layers[0].weight.register_hook(lambda gradient: events.append("first layer"))
with processes.averaging(list(layers.parameters())):
    layers(torch.ones(2, 3)).sum().backward()
processes.leave()
if processes.main:
    print(json.dumps(events))
"""


def script(folder: Path, text: str) -> str:
    path = folder / "together.py"
    path.write_text(text)
    return str(path)


def answer_of(*commands: list[str]) -> object:
    """Run commands at once, one per machine, and return what the last line of the first one says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    ended = [process.communicate(timeout=300) for process in running]
    for process, (_, err) in zip(running, ended, strict=True):
        assert process.returncode == 0, err
    return json.loads(ended[0][0].splitlines()[-1])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.mark.slow
def test_processes_of_two_machines_agree_at_every_step_and_learn_what_one_learns(tmp_path):
    """Two launchers, as on two machines, with two processes each that average by gloo."""
    path, port = script(tmp_path, TOGETHER), str(free_port())
    machines = [
        [*LAUNCH, "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=2",
         "--master-addr=127.0.0.1", f"--master-port={port}", path]
        for rank in range(2)
    ]  # fmt: skip
    one, four = answer_of([sys.executable, path]), answer_of(*machines)
    assert four["processes"] == 4
    assert four["apart"] == [0.0, 0.0, 0.0]
    # The mean of quarters is rounded otherwise than the whole; Adam's first steps have the size of the rate, 4e-4.
    gap = (torch.tensor(one["weights"]) - torch.tensor(four["weights"])).abs()
    assert gap.mean() < 4e-5


@pytest.mark.slow
def test_gradients_that_come_in_another_order_or_not_at_all_are_averaged_with_their_own(tmp_path):
    path = script(tmp_path, GRADIENTS)
    answer = answer_of([*LAUNCH, "--standalone", "--nproc-per-node=2", path])
    # rank 1: d/d first = 8 * second = 24, d/d second = 8 * first = 16
    assert answer["gradients"] == [[(10 + 24) / 2], [(100 + 16) / 2], [8 / 2], [0.0]]
    assert answer["events"].count("send 1") == 4


@pytest.mark.slow
def test_gradients_of_the_last_layers_leave_before_those_of_the_first_are_computed(tmp_path):
    path = script(tmp_path, OVERLAP)
    events = answer_of([*LAUNCH, "--standalone", "--nproc-per-node=2", path])
    assert events.count("send") == 6
    assert events.index("first layer") >= 4  # weights and biases of two layers


def test_one_process_alone_is_the_main_one_and_changes_nothing():
    device, processes = join("cpu")
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    with processes.averaging([parameter]):
        pass
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert (processes.main, processes.count, processes.agree("x")) == (True, 1, "x")
    assert processes.mean(torch.tensor(3.0)) == 3.0
    assert [processes.any(flag, device) for flag in (True, False)] == [True, False]
    processes.wait()
    processes.leave()


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "many", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_processes_that_do_not_know_each_other_do_not_train_each_alone(environment, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"WORLD_SIZE: .*expected RANK and LOCAL_RANK") as caught:
        join("cpu")
    assert caught.value.code == "processes-unknown"
    assert "torchrun" in caught.value.hint


class Arrived:
    """A message to another process that has the same gradients."""

    def __init__(self, total: torch.Tensor) -> None:
        self.total = total

    def wait(self) -> None:
        self.total *= 2


def all_reduce(total: torch.Tensor, *, async_op: bool) -> Arrived:
    assert async_op
    return Arrived(total)


def test_a_gradient_that_changes_after_it_has_left_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    weight = torch.nn.Parameter(torch.ones(2))
    with (
        pytest.raises(RuntimeError, match="changed after it had left"),
        GradientMean([weight], 2).sending(),
    ):
        weight.sum().backward()
        weight.sum().backward()


def test_the_gradient_of_a_weight_that_is_used_twice_leaves_once_and_keeps_its_memory_format(
    monkeypatch,
):
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.arange(96.0).reshape(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    layer(layer(image)).square().mean().backward()
    alone = {name: item.grad.clone() for name, item in layer.named_parameters()}
    layer.zero_grad(set_to_none=True)
    mean = GradientMean(list(layer.parameters()), 2)
    with mean.sending():
        layer(layer(image)).square().mean().backward()
        assert len(mean._sent) == 1
    mean.receive()
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)
    for name, item in layer.named_parameters():
        assert torch.equal(item.grad, alone[name])


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("attcl_cli.processes.select", torch.device)
    with pytest.raises(UsageError, match="--device: cuda:1, given to 2 processes") as caught:
        join("cuda:1")
    assert caught.value.code == "device-of-one-process"
