"""Do gradients that travel during the backward pass save time? Beside gradients that are sent when it is over.

Several processes train the segmenter's network on noise and average its gradients, in both ways and not at all, in
turns; so the seconds say, too, what all processes pay for being several.

    torchrun --nproc-per-node 2 benchmarks/gradients.py
    torchrun --nproc-per-node 4 benchmarks/gradients.py --preset base --device cuda
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from attcl_cli.data.labels import CLASSES
from attcl_cli.gradients import MESSAGE_BYTES, GradientMean
from attcl_cli.processes import Processes, join
from attcl_cli.segmentation.network import make_network
from attcl_cli.segmentation.presets import PRESETS
from attcl_cli.segmentation.settings import resolve

_CHANNELS = 4
_Way = Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]]


def main() -> None:
    """Print the table, in the first process alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    parser.add_argument("--image-size", type=int, help="side of a slice  [default: the preset's]")
    parser.add_argument("--batch-size", type=int, default=4, help="slices of each process")
    parser.add_argument("--steps", type=int, default=20, help="of each way; further ones warm up")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device, processes = join(options.device)
    if processes.count == 1:
        parser.error("one process has nothing to send: torchrun --nproc-per-node 2 " + parser.prog)

    sides = {"image_size": options.image_size, "canvas": options.image_size}
    settings = resolve(options.preset, sides if options.image_size else {})
    torch.manual_seed(0)  # the same weights in all processes
    network = make_network(settings, _CHANNELS).to(device)
    side = settings.image_size
    images = torch.randn(options.batch_size, _CHANNELS, side, side, device=device)
    classes = torch.randint(len(CLASSES), (options.batch_size, side, side), device=device)

    def step(way: _Way) -> float:
        network.zero_grad(set_to_none=True)
        clock = time.perf_counter()
        loss = nn.functional.cross_entropy(network(images), classes)
        with way(list(network.parameters())):
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - clock

    ways = _ways(processes)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1 + options.steps):
        for name, way in ways.items():
            processes.wait()
            took = step(way)
            if turn:
                seconds[name].append(took)
    if processes.main:
        size = 4 * sum(parameter.numel() for parameter in network.parameters()) / 2**20
        print(
            f"{processes.count} processes on {device.type}, {size:.1f} MiB of gradients in messages of "
            f"{MESSAGE_BYTES / 2**20:.0f} MiB; median seconds per step of {options.batch_size} slices of {side} pixels"
        )
        medians = {name: statistics.median(each) for name, each in seconds.items()}
        for name, median in medians.items():
            print(f"{name:<32}{median:.4f} s  {median / medians['sent meanwhile']:.2f}")
    processes.leave()


def _ways(processes: Processes) -> dict[str, _Way]:
    """Return what encloses a backward pass, by name."""

    @contextmanager
    def afterwards(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        yield
        GradientMean(parameters, processes.count).receive()

    @contextmanager
    def not_at_all(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        del parameters
        yield

    return {
        "sent meanwhile": processes.averaging,
        "sent afterwards": afterwards,
        "not sent": not_at_all,
    }


if __name__ == "__main__":
    main()
