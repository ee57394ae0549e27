"""Completion against the paper's Algorithm 1 to the letter, and its memory: figures measured side by side in one run.

Prints ratios, and the shares of the time in which a thread is in the network, decodes or encodes files, copies to and
from the device, and in which the network waits for them. Seconds and megabytes depend on the machine, ratios hardly do;
networks are untrained, since weights change no time. `--help` lists the options that make it small.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from memory import peak_megabytes
from shares import COPY, DECODE, ENCODE, NETWORK, Clock, finish

from attcl_cli import devices
from attcl_cli.completion import inference, preparation
from attcl_cli.completion.jobs import Manner
from attcl_cli.completion.making import make_volumes
from attcl_cli.completion.plan import plan_completion
from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset, open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.sampling import Sampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.data.splits import RATIOS
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.sources import AnyOne, SourceRule
from attcl_cli.methods.weights import (
    Weights,
    WeightsInfo,
    find_weights,
    load_method,
    save_weights,
)

MODALITIES = ("flair", "t1", "t1ce", "t2")


class Clocked(Method):
    """A method whose clock counts the seconds in which at least one thread is in another one's networks."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.settings, method.modalities)
        self.method = method
        self.clock = Clock(DECODE, ENCODE, COPY)

    @classmethod
    def sources(cls, settings: Any, modalities: Sequence[str]) -> SourceRule:
        """See `Method`."""
        del settings
        return AnyOne(tuple(modalities))

    @property
    def stride(self) -> int:
        """See `Method`."""
        return self.method.stride

    def sampler(self, store: SliceStore) -> Sampler:
        """See `Method`."""
        return self.method.sampler(store)

    def training_step(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
        """See `Method`."""
        return self.method.training_step(batch, step)

    def synthesise(
        self,
        sources: Mapping[str, torch.Tensor],
        targets: Sequence[str],
        *,
        sample: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """See `Method`."""
        device = next(iter(sources.values())).device
        synthesise = self.clock.timed(NETWORK, self.method.synthesise, device)
        return synthesise(sources, targets, sample=sample)


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.child:
        root, output, weights_file = map(Path, options.child)
        _complete_and_print_memory(root, output, weights_file, give_back=options.give_back)
        return
    device = devices.select(options.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*_speed(Path(folder), options, device), *_memory(Path(folder), options)]
        rows += _freed_memory(Path(folder), options)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"torch {torch.__version__} on {device}{threads}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="base", choices=PRESETS)
    parser.add_argument("--cases", type=int, default=3, help="phantoms, ratio1 (default: 3)")
    parser.add_argument("--voxel-mm", type=float, default=1.0, help="1 is BraTS's 240x240x155")
    parser.add_argument("--slices", default="all", help="all, or FIRST:STOP")
    parser.add_argument(
        "--literal-slices",
        type=int,
        default=12,
        help="source slices that Algorithm 1 to the letter is timed on; its total is extrapolated",
    )
    parser.add_argument("--memory-cases", type=int, nargs=2, default=(4, 40), metavar="N")
    parser.add_argument("--memory-voxel-mm", type=float, default=2.0)
    parser.add_argument("--turns", type=int, default=3, help="with freed memory kept or given back")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--give-back", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- speed ------------------------------------------------------------------------------------------------------------


def _speed(
    folder: Path, options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[str, str]]:
    root = folder / "cohort"
    write_cohort(root, cases=options.cases, voxel_mm=options.voxel_mm, missing=RATIOS["ratio1"])
    dataset = open_dataset(root)
    weights = untrained_weights(folder / "untrained.safetensors", options.preset)
    first, stop = (
        (int(part) for part in options.slices.split(":")) if ":" in options.slices else (0, None)
    )
    method = load_method(weights, device)
    size = weights.info.settings.image_size
    for batch in (1, inference.slices_per_call(size, device)):  # first calls also choose kernels
        method.synthesise({"flair": torch.zeros(batch, 1, size, size, device=device)}, ["t1"])
    finish(device)

    clocked = Clocked(method)
    clock = clocked.clock
    start = time.perf_counter()
    manner = Manner(slices=(first, stop) if stop else None)
    plan = plan_completion(dataset, folder / "ours", [weights], manner=manner)
    with (
        mock.patch.object(volumes, "load_case", clock.timed(DECODE, volumes.load_case)),
        mock.patch.object(volumes, "save", clock.timed(ENCODE, volumes.save)),
        mock.patch.object(inference, "to_device", clock.timed(COPY, inference.to_device, device)),
        mock.patch.object(
            inference, "from_device", clock.timed(COPY, inference.from_device, device)
        ),
    ):
        items = make_volumes(plan, {weights.sha256: clocked}, device=device)
        count = sum(len(item.outputs) for item in items)
    ours = time.perf_counter() - start

    every = [
        (case, modality, number)
        for modality in dataset.by_frequency()
        for case in dataset.cases
        if modality in case.files
        for number in range(volumes.read_grid(dataset.paths(case, modality)).axial_shape[0])[
            first:stop
        ]
    ]
    step = max(len(every) // max(options.literal_slices, 1), 1)
    chosen = every[step // 2 :: step]
    seconds = _literal(dataset, chosen, folder / "literal", weights, method, device)
    literal = seconds / len(chosen) * len(every)

    yield (
        "cohort",
        f"{options.cases} phantoms, ratio1, {options.voxel_mm:g} mm, slices {options.slices}",
    )
    yield "network", f"preset {options.preset}, untrained, {size}x{size}"
    yield "ours", f"{ours:.1f} s for {count} volumes"
    yield "  of that not in the network", f"{1 - clock.seconds[NETWORK] / ours:.1%}"
    yield "  shares, which overlap", clock.shares(ours)
    how = (
        "measured whole"
        if len(chosen) == len(every)
        else f"extrapolated from {len(chosen)} of {len(every)} source slices ({seconds:.1f} s), files not counted"
    )
    yield "Algorithm 1 to the letter", f"{literal:.1f} s, {how}"
    yield "Algorithm 1 / ours", f"{literal / ours:.2f}"


def _literal(
    dataset: Dataset,
    chosen: Sequence[tuple[Case, str, int]],
    path_cpl: Path,
    weights: Weights,
    method: Method,
    device: torch.device,
) -> float:
    """Return the seconds of Algorithm 1 as printed: E and every modality for each slice; reading is not counted."""
    settings = weights.info.settings
    x_ref = _references(settings.image_size, device)
    loaded: tuple[str, volumes.CaseImages] | None = None
    seconds = 0.0
    for case, modal_src, number in chosen:
        if loaded is None or loaded[0] != case.id:
            files = {name: dataset.paths(case, name) for name in case.files}
            loaded = case.id, volumes.load_case(files)
        normalised = loaded[1].normalised(modal_src)[number : number + 1]
        start = time.perf_counter()
        small = preparation.fit(normalised, settings, stride=method.stride)
        x_src = torch.from_numpy(small)[:, None].to(device)
        method.remember_references(x_ref)  # line 4: the style codes, for each slice anew
        for target in dataset.by_frequency():
            x_fake = method.synthesise({modal_src: x_src}, [target])[target]
            name = dataset.place(case, target)[0]
            corr_path_cpl = path_cpl / target / f"{case.id}_{number}.npy"
            if not (dataset.root / name).exists() and not corr_path_cpl.exists():
                corr_path_cpl.parent.mkdir(parents=True, exist_ok=True)
                np.save(corr_path_cpl, x_fake.cpu().numpy())
        finish(device)
        seconds += time.perf_counter() - start
    return seconds


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Measure the peak of a process each, with the smallest network: does memory grow with the cases?"""
    weights = untrained_weights(folder / "tiny.safetensors", "tiny")
    peaks, growths = [], []
    for count in options.memory_cases:
        root = folder / f"memory-{count}"
        write_cohort(root, cases=count, voxel_mm=options.memory_voxel_mm, missing=RATIOS["ratio1"])
        before, peak, _ = _in_a_process(root, folder / f"memory-{count}-out", weights.path)
        peaks.append(peak)
        growths.append(peak - before)
    few, many = options.memory_cases
    where = f"{options.memory_voxel_mm:g} mm, preset tiny, CPU"
    yield (
        f"peak memory, {few} cases",
        f"{peaks[0]:.0f} MB, {growths[0]:.0f} of it beyond the imports ({where})",
    )
    yield (
        f"peak memory, {many} cases",
        f"{peaks[1]:.0f} MB, {growths[1]:.0f} of it beyond the imports ({where})",
    )
    yield f"memory {many} / {few} cases", f"{peaks[1] / peaks[0]:.3f}"


def _freed_memory(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Complete two cases in processes that keep freed memory and in such that give it back, in turns."""
    weights = untrained_weights(folder / "kept.safetensors", options.preset)
    root = folder / "kept"
    write_cohort(root, cases=2, voxel_mm=options.memory_voxel_mm, missing=[["t1"], ["t2"]])
    figures: dict[str, list[tuple[float, float]]] = {"kept": [], "--give-back": []}
    for turn in range(options.turns):
        for name, found in figures.items():
            flags = [] if name == "kept" else [name]
            output = folder / f"kept-{name}-{turn}"
            _, peak, seconds = _in_a_process(root, output, weights.path, *flags)
            found.append((seconds, peak))
    (kept, kept_peak), (given, given_peak) = (
        (statistics.median(seconds), statistics.median(peaks))
        for seconds, peaks in (zip(*found, strict=True) for found in figures.values())
    )
    where = f"{options.memory_voxel_mm:g} mm, preset {options.preset}, CPU"
    yield "freed memory given back / kept: seconds", f"{given / kept:.2f} ({where})"
    yield "freed memory given back / kept: peak", f"{given_peak / kept_peak:.2f} ({where})"


def _in_a_process(root: Path, output: Path, weights: Path, *flags: str) -> tuple[float, ...]:
    """Return the peak in MB before and after completion, and its seconds."""
    command = [__file__, "--child", root, output, weights, *flags]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=True
    )
    return tuple(map(float, done.stdout.split()))


def _complete_and_print_memory(
    root: Path, output: Path, weights_file: Path, *, give_back: bool
) -> None:
    device = torch.device("cpu")
    if not give_back:
        devices.keep_freed_memory()
    weights = find_weights(str(weights_file))
    method = load_method(weights, device)
    before = peak_megabytes()
    plan = plan_completion(open_dataset(root), output, [weights])
    start = time.perf_counter()
    for _ in make_volumes(plan, {weights.sha256: method}, device=device):
        pass
    print(before, peak_megabytes(), time.perf_counter() - start)


# --- both -------------------------------------------------------------------------------------------------------------


def untrained_weights(path: Path, preset: str) -> Weights:
    """Save weights of AttCL-GAN at its random start, and return them."""
    settings = resolve(preset=preset, overrides={"context": 0})  # Algorithm 1 sees no neighbours
    torch.manual_seed(settings.seed)
    method = METHODS[settings.method](settings, MODALITIES)
    method.remember_references(_references(settings.image_size, torch.device("cpu")))
    info = WeightsInfo(
        settings=settings,
        modalities=MODALITIES,
        scales=dict.fromkeys(MODALITIES, Scale(0.0, 1000.0)),
        references={},
        trained_on=(),
        steps=0,
    )
    save_weights(path, method, info)
    return find_weights(str(path))


def _references(size: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1, 1, size, size, device=device) for name in MODALITIES}


if __name__ == "__main__":
    main()
