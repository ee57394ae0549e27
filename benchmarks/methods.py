"""What every method costs, side by side in one run: parameters, GFLOP, seconds, memory, and ratios to the U-Net.

GFLOP are counted without computing (2 per multiplication and addition). Each method is then timed in a process of its
own, in turns, so that a machine whose speed drifts is fair to all; a ratio is the median of those of the turns. Seconds
per step are those that `attcl train --minutes` measures, the mean over a run with all its phases; a completed slice is
one target at `image_size`, made as `attcl complete` makes it. Networks are untrained: weights change no time.

    python benchmarks/methods.py
    python benchmarks/methods.py --preset base --only-count
    python benchmarks/methods.py --preset base --device cuda --precision bf16
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from memory import peak_megabytes
from shapes import (
    PUBLISHED_METHODS,
    FlopCounter,
    example_store,
    made,
    slices_for,
    translations,
    without_values,
)
from torch import nn

from attcl_cli import devices
from attcl_cli.cli.terminal import show_error
from attcl_cli.completion import inference
from attcl_cli.errors import AttclError, UsageError, nearest
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.presets import PRESETS, parse_override
from attcl_cli.methods.settings import Settings, resolve
from attcl_cli.processes import Processes
from attcl_cli.training import planning

YARDSTICK = "unet"
PUBLISHED = "published"
_CALLS = 2  # of the networks, per core, that a completed slice is timed on


@dataclass(frozen=True)
class Counts:
    """What is the same on every machine.

    Attributes:
        parameters: of all networks that training needs.
        of_completion: of those that weights hold.
        step: GFLOP of a training step, the mean over a run.
        slice_: GFLOP of a completed slice, the mean over the targets.
    """

    parameters: int
    of_completion: int
    step: float
    slice_: float


@dataclass(frozen=True)
class Times:
    """What a machine needs.

    Attributes:
        step: seconds per training step, the mean over a run.
        slice_: seconds per completed slice, the mean over the targets.
        training: MB of memory beyond the imports while it trains.
        completion: the same of completion.
    """

    step: float
    slice_: float
    training: float
    completion: float


def main() -> None:
    """Count, measure, print."""
    options = _options()
    if options.child:
        print(json.dumps(asdict(measure(_settings(options.child, options), options))))
        return
    names = list(dict.fromkeys([*(options.methods or PUBLISHED_METHODS), YARDSTICK]))
    every = {name: _settings(name, options) for name in names}  # wrong usage before a costly second
    for key in dict(map(parse_override, options.set)):
        if not any(key in type(it).model_fields for it in every.values()):
            raise UsageError(
                f"--set: setting {key!r}, expected one of a method of {', '.join(every)}",
                "attcl train --method NAME --dry-run lists them",
                code="unknown-setting",
            )
    device = devices.select(options.device)
    print(_title(options, every, device), flush=True)
    counts = {name: count(it, steps=options.counted_steps) for name, it in every.items()}
    turns = [] if options.only_count else [_turn(names) for _ in range(options.turns)]
    for line in table(counts, turns):
        print(line)


def count(settings: Settings, *, steps: int) -> Counts:
    """Count parameters and operations; nothing is computed.

    Args:
        settings: of the method.
        steps: consecutive steps, in the middle of each phase of a run, whose mean is taken.
    """
    with without_values():
        method = made(settings)
    slice_ = gflop_per_slice(method)
    method.train()
    sampler = method.sampler(example_store(settings.image_size))
    begins = sorted({0.0, *(share for share in method.phases if 0 < share < 1)})
    mean = 0.0
    for begin, end in pairwise([*begins, 1.0]):
        first = round((begin + end) / 2 * settings.steps)
        flop = 0
        for step in range(first, first + steps):
            batch = sampler.batch(step)
            whole = batch.part(slice(0, len(batch)))  # its shares are known from here on
            with without_values(), FlopCounter() as counter:
                method.training_step(whole, step)
            flop += counter.flop
        mean += (end - begin) * flop / steps
    return Counts(
        parameters=_parameters(method.networks()),
        of_completion=_parameters(method.stored_networks()),
        step=mean / 1e9,
        slice_=slice_,
    )


def gflop_per_slice(method: Method) -> float:
    """Return the GFLOP of a completed slice, the mean over the targets; the method has been made without values."""
    flop = []
    for target, sources in translations(method):
        with without_values(), FlopCounter() as counter:
            method.synthesise(slices_for(method, sources, 1), [target])
        flop.append(counter.flop)
    return statistics.mean(flop) / 1e9


def measure(settings: Settings, options: argparse.Namespace) -> Times:
    """Measure time and memory in this process, completion first, since training needs more memory."""
    device = devices.select(options.device)
    store = example_store(settings.image_size)
    with without_values():
        made(settings)  # what it imports is no memory of its own
    before = _peak(device)
    method = made(settings, device)
    slice_ = _seconds_per_slice(method, device)
    completion = _peak(device)
    del method
    with tempfile.TemporaryDirectory() as folder:
        costs = planning.measure(
            settings,
            store,
            Path(folder),
            device=device,
            precision=options.precision,
            processes=Processes(),
            validate=None,
        )
    steps_alone = replace(costs, checkpoint=0.0, picture=0.0)
    return Times(
        step=steps_alone.seconds(settings) / settings.steps,
        slice_=slice_,
        training=_peak(device) - before,
        completion=completion - before,
    )


def table(counts: Mapping[str, Counts], turns: Sequence[Mapping[str, Times]]) -> Iterator[str]:
    """Return the lines of the table; without turns there are no times."""
    heads = ["Mparam", "trained", "GF/slice", "/ unet", "GF/step", "/ unet"]
    if turns:
        heads += ["s/slice", "/ unet", "s/step", "/ unet", "MB compl.", "MB train."]
    width = max(map(len, counts))
    yield " ".join([f"{'method':<{width}}", *(f"{head:>9}" for head in heads)])
    base = counts[YARDSTICK]
    for name, it in counts.items():
        cells = [f"{it.of_completion / 1e6:.2f}", f"{it.parameters / 1e6:.2f}"]
        for mine, theirs in ((it.slice_, base.slice_), (it.step, base.step)):
            cells += [_short(mine), f"{mine / theirs:.2f}"]
        if turns:
            for key in ("slice_", "step"):
                pairs = [
                    (getattr(turn[name], key), getattr(turn[YARDSTICK], key)) for turn in turns
                ]
                ratio = statistics.median(mine / theirs for mine, theirs in pairs)
                cells += [_short(statistics.median(mine for mine, _ in pairs)), f"{ratio:.2f}"]
            for key in ("completion", "training"):
                cells.append(f"{statistics.median(getattr(turn[name], key) for turn in turns):.0f}")
        yield " ".join([f"{name:<{width}}", *(f"{cell:>9}" for cell in cells)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="default: all, with the variants that are published methods; or NAME:VARIANT",
    )
    parser.add_argument(
        "--preset",
        choices=[*PRESETS, PUBLISHED],
        default="tiny",
        help=f"a method without {PUBLISHED} takes paper, in which PLAVE has the target t1ce",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--counted-steps", type=int, default=6)
    parser.add_argument("--only-count", action="store_true", help="no times and no memory")
    parser.add_argument("--turns", type=int, default=3, help="how often each method is timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the methods that have it",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _settings(text: str, options: argparse.Namespace) -> Settings:
    """Return the settings of a method, or of `method:variant`."""
    name, _, variant = text.partition(":")
    if name not in METHODS:
        raise UsageError(
            f"--methods: {name!r}, expected some of {', '.join(METHODS)}",
            nearest(name, METHODS),
            code="unknown-method",
        )
    kind = METHODS[name].settings_class
    preset = options.preset
    if preset == PUBLISHED and preset not in kind.presets:
        preset = "paper"
    changes: dict[str, Any] = {"batch_size": options.batch_size, "epochs": 0}
    if preset == "paper" and "plave_target" in kind.model_fields:
        changes["plave_target"] = "t1ce"
    changes |= {
        key: value for key, value in map(parse_override, options.set) if key in kind.model_fields
    }
    settings = resolve(preset=preset, method=name, variant=variant or None, overrides=changes)
    settled: Settings = METHODS[name].settled(settings, example_store(16))
    METHODS[name].sources(settled, example_store(16).modalities)
    return settled


def _turn(names: Sequence[str]) -> dict[str, Times]:
    """Time every method once, each in a new process with the options of this one."""
    return {
        name: Times(
            **json.loads(
                subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--child", name],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                ).stdout
            )
        )
        for name in names
    }


def _seconds_per_slice(method: Method, device: torch.device) -> float:
    """Return the seconds per completed slice, the mean over the targets."""
    settings: Settings = method.settings
    at_once = inference.slices_per_call(settings.image_size, device)
    seconds = []
    for target, sources in translations(method):
        slices = slices_for(method, sources, at_once)
        calls = _CALLS * (torch.get_num_threads() if device.type == "cpu" else 1)

        def work(_: int, slices: Any = slices, target: str = target) -> None:
            inference.translate(method, slices, [target])

        work(0)  # the first call also chooses kernels
        _wait(device)
        clock = time.perf_counter()
        for _ in devices.in_turn(work, range(calls), device):
            pass
        _wait(device)
        seconds.append((time.perf_counter() - clock) / (calls * at_once))
    return statistics.mean(seconds)


def _title(options: argparse.Namespace, every: Mapping[str, Settings], device: torch.device) -> str:
    """Return what was done, in two lines."""
    sizes = sorted({it.image_size for it in every.values()})
    where = (
        "nothing timed"
        if options.only_count
        else f"{device}, {options.precision} in training, {options.turns} turns"
        + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
    )
    return (
        f"preset {options.preset}, {options.batch_size} slices per step (pairs: of each side), slices of "
        f"{', '.join(map(str, sizes))} pixels, {where}, torch {torch.__version__}\n"
        f"Mparam: million parameters of the weights file; trained: of all networks; GF: GFLOP; / unet: ratio to U-Net"
    )


def _parameters(networks: Mapping[str, nn.Module]) -> int:
    return sum(it.numel() for network in networks.values() for it in network.parameters())


def _peak(device: torch.device) -> float:
    """Return the most memory that this process has had on its device, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_megabytes()


def _short(number: float) -> str:
    """Return a number with three digits, without an exponent."""
    if not number:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(number)))
    return f"{number:.{digits}f}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    try:
        main()
    except AttclError as error:
        show_error(error)
        sys.exit(error.exit_code)
