"""Completion with one and with two workers of a Ray cluster, and the model of where a cluster saturates.

Measured here: cases per hour against workers, the memory of the driver with few and with many cases, what a case of
full size costs besides the network, and what it costs the driver. The model adds what this machine cannot show: seconds
of a GPU, and the speed of the disk that all share; both are options, and assumptions. Networks are untrained, since
weights change no time.

    python benchmarks/scale.py
    python benchmarks/scale.py --gpu-seconds 1.5 --disk-mb 2000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from complete import Clocked, untrained_weights
from many_cases import write_cases
from memory import peak_megabytes
from shares import NETWORK

from attcl_cli.cluster import Cluster
from attcl_cli.completion.making import make_volumes
from attcl_cli.completion.on_ray import make_on_ray
from attcl_cli.completion.plan import plan_completion
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.splits import RATIOS
from attcl_cli.methods.weights import find_weights, load_method


@dataclass(frozen=True)
class ClusterRun:
    """What a completion on a cluster took.

    Attributes:
        rate: cases per second, after each worker had finished its first one.
        seconds: of the whole, with the start of the cluster.
        driver_seconds: of a core, in the driver, per case.
        peak: of the driver, in MB.
    """

    rate: float
    seconds: float
    driver_seconds: float
    peak: float


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.child:
        root, output, weights, workers = options.child
        _complete_on_ray(Path(root), Path(output), Path(weights), int(workers))
        return
    with tempfile.TemporaryDirectory() as folder:
        for line in _lines(Path(folder), options):
            print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=40, help="phantoms that workers complete")
    parser.add_argument("--voxel-mm", type=float, default=2.0, help="of these phantoms")
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2), metavar="N")
    parser.add_argument("--memory-cases", type=int, nargs=2, default=(40, 400), metavar="N")
    parser.add_argument("--full-voxel-mm", type=float, default=1.0, help="1 is BraTS's 240x240x155")
    parser.add_argument("--patients", type=int, default=1251, help="of the model: BraTS 2021")
    parser.add_argument("--gpus", type=int, nargs="+", default=(1, 32), metavar="N")
    parser.add_argument("--gpu-seconds", type=float, default=4.0, help="per case (assumed)")
    parser.add_argument("--disk-mb", type=float, default=500.0, help="MB per second (assumed)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def _lines(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    weights = untrained_weights(folder / "tiny.safetensors", "tiny").path
    root = folder / "cohort"
    write_cohort(root, cases=options.cases, voxel_mm=options.voxel_mm, missing=RATIOS["ratio1"])
    yield f"{options.cases} phantoms of {options.voxel_mm:g} mm, preset tiny; a core per worker"
    alone = 0.0
    driver = 0.0
    for workers in options.workers:
        run = _in_a_process(root, folder / f"out-{workers}", weights, workers)
        alone = alone or run.rate / workers
        driver = run.driver_seconds
        yield (
            f"{workers} workers: {3600 * run.rate:,.0f} cases per hour, efficiency {run.rate / alone / workers:.2f}; "
            f"{run.seconds:.0f} s with the start of the cluster"
        )
    peaks = []
    for count in options.memory_cases:
        small = write_cases(folder / f"small-{count}", count, holes=True)
        run = _in_a_process(small, folder / f"small-out-{count}", weights, max(options.workers))
        peaks.append(run.peak)
        yield f"driver, {count} small cases: peak {run.peak:.0f} MB"
    yield f"driver, peak of many / few cases: {peaks[1] / peaks[0]:.3f}"
    core, megabytes = _full_size(folder, weights, options.full_voxel_mm)
    size = f"{options.full_voxel_mm:g} mm"
    yield f"a case of {size}: {core:.2f} s besides the network, {megabytes:.0f} MB read and written"
    yield f"driver: {1000 * driver:.1f} ms of a core per case"
    yield from _model(options, core, megabytes, driver)


def _model(
    options: argparse.Namespace, core: float, megabytes: float, driver: float
) -> Iterator[str]:
    """Yield the hours of a cohort on several GPUs, and what limits them.

    A worker reads ahead and writes behind, so a case takes the longer of the two: its network, or the rest. The disk
    and the driver are shared by all.
    """
    case = max(options.gpu_seconds, core)
    disk, drive = options.disk_mb / megabytes, 1 / driver
    yield f"model: {options.gpu_seconds:g} s of a GPU per case, {options.disk_mb:g} MB/s shared by all (both assumed)"
    for gpus in options.gpus:
        rates = {"workers": gpus / case, "the disk": disk, "the driver": drive}
        limit = min(rates, key=lambda name: rates[name])
        minutes = options.patients / rates[limit] / 60
        yield f"{options.patients:,} patients on {gpus} GPUs: {minutes:,.1f} minutes, limited by {limit}"
    for name, rate in (("the disk", disk), ("the driver", drive)):
        yield f"{name} would limit from {rate * case:,.0f} GPUs on"


def _full_size(folder: Path, weights_file: Path, voxel_mm: float) -> tuple[float, float]:
    """Return the seconds of a case outside the network, on one core, and the MB of its files."""
    root, output, cases = folder / "full", folder / "full-out", 2
    write_cohort(root, cases=cases, voxel_mm=voxel_mm, missing=[["t1"], ["t2"]])
    weights = find_weights(str(weights_file))
    torch.set_num_threads(1)
    method = Clocked(load_method(weights, torch.device("cpu")))
    begun = time.perf_counter()
    plan = plan_completion(open_dataset(root), output, [weights])
    for _ in make_volumes(plan, {weights.sha256: method}, device=torch.device("cpu"), workers=1):
        pass
    rest = time.perf_counter() - begun - method.clock.seconds[NETWORK]
    files = [path for place in (root, output) for path in place.rglob("*.nii.gz")]
    return rest / cases, sum(path.stat().st_size for path in files) / 2**20 / cases


def _in_a_process(root: Path, output: Path, weights: Path, workers: int) -> ClusterRun:
    command = [sys.executable, __file__, "--child", root, output, weights, workers]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return ClusterRun(*map(float, done.stdout.split()[-4:]))


def _complete_on_ray(root: Path, output: Path, weights_file: Path, workers: int) -> None:
    """Complete on a cluster of its own, and print the fields of `ClusterRun`."""
    import ray

    weights = find_weights(str(weights_file))
    plan = plan_completion(open_dataset(root), output, [weights])
    begun, driver = time.perf_counter(), time.process_time()
    ray.init(num_cpus=workers, num_gpus=0, include_dashboard=False, log_to_driver=False)
    for item in make_on_ray(plan, Cluster("local", "cpu")):
        if item.error is not None:
            raise item.error
    seconds, used = time.perf_counter() - begun, time.process_time() - driver
    ray.shutdown()
    ends = sorted(_written(output / case) for case in {job.case.id for job in plan.jobs})
    rate = (len(ends) - workers) / (ends[-1] - ends[workers - 1])
    print(rate, seconds, used / len(ends), peak_megabytes())


def _written(folder: Path) -> float:
    """Return when the last file of a case was written; a cluster yields its cases in order, hence in bursts."""
    return max(path.stat().st_mtime for path in folder.iterdir())


if __name__ == "__main__":
    main()
