"""Seconds and memory of the commands that look at a whole dataset, with 100, 1,000 and 10,000 made-up cases.

A volume has 8x8x8 voxels, so nothing but the number of cases counts. Each command runs in a process of its own; the
time per case must stay flat, and memory must not grow with the cases. `--help` lists the options that make it small.

    python benchmarks/many_cases.py
    python benchmarks/many_cases.py --cases 100 1000 --whole
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

MODALITIES = ("flair", "t1", "t1ce", "t2")
_SIDE = 8
_TRAIN = (
    *("train", "--preset", "tiny", "--steps", "2", "--set", "image_size=16", "--set", "canvas=16"),
    *(
        "--set",
        "width=4",
        "--set",
        "max_width=8",
        "--set",
        "crop=0",
        "--set",
        "downs=2",
        "-d",
        "cpu",
        "-q",
    ),
)


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, and the most memory that its process had, in MB."""

    seconds: float
    megabytes: float


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = write_cases(Path(folder) / "weights", 20)
        run(["prepare-splits", root, "-o", "data", "--ratio", "ratio1"], Path(folder))
        run([*_TRAIN, "--data", "data", "-o", "run"], Path(folder))
        print(f"{'command':<22}{'cases':>8}{'seconds':>10}{'ms per case':>13}{'peak MB':>9}")
        for count in options.cases:
            cohort = write_cases(Path(folder) / f"cases-{count}", count)
            for name, arguments in commands(cohort, whole=options.whole):
                cost = run(arguments, Path(folder))
                line = f"{name:<22}{count:>8,}{cost.seconds:>10.1f}{1000 * cost.seconds / count:>13.2f}"
                print(f"{line}{cost.megabytes:>9.0f}", flush=True)
            if options.whole:
                page = Path(folder) / f"out-{count}" / "report.html"
                print(
                    f"{'  page of complete':<22}{count:>8,}{page.stat().st_size / 2**20:>10.1f} MB"
                )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=(100, 1000, 10_000), metavar="N")
    parser.add_argument("--whole", action="store_true", help="complete them and score, too")
    parser.add_argument("--folder", type=Path, help="where the files are made for the time being")
    return parser.parse_args()


def commands(cohort: Path, *, whole: bool) -> Iterator[tuple[str, list[str | Path]]]:
    """Yield the command lines for a cohort by name, each of which may need the files of those before it."""
    count = cohort.name.rpartition("-")[2]
    data, out = f"data-{count}", f"out-{count}"
    yield "info", ["info", cohort]
    yield "info, again", ["info", cohort]
    yield "prepare-splits", ["prepare-splits", cohort, "-o", data, "--ratio", "ratio1"]
    complete: list[str | Path] = ["complete", "-i", data, "-o", out, "-w", "run", "-d", "cpu", "-q"]
    yield "complete --dry-run", [*complete, "--dry-run"]
    yield "train --dry-run", ["train", "--data", data, "-o", f"run-{count}", "--dry-run", "-q"]
    if whole:
        yield "complete", complete
        yield "complete, again", complete
        yield "score", ["score", "--ori", data, "--cpl", out, "-o", f"scores-{count}", "-q"]


def run(arguments: Sequence[str | Path], folder: Path) -> Cost:
    """Run attcl in a folder, and return what it cost.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "attcl_cli", *map(str, arguments)]
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ATTCL_CACHE": str(folder / "cache")},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(
                f"{' '.join(command)}: exit code {process.returncode}\n{output.read()[-2000:]}"
            )
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Cost(seconds, usage.ru_maxrss / unit)


def write_cases(root: Path, count: int, *, holes: bool = False) -> Path:
    """Write cases of volumes of 8x8x8 voxels in `root`, and return it; with `holes`, each lacks one modality."""
    image = nib.nifti1.Nifti1Image(np.zeros((_SIDE,) * 3, np.int16), np.diag([20.0, 20, 20, 1]))
    header = image.to_bytes()[: -2 * _SIDE**3]
    along = np.linspace(-1, 1, _SIDE)
    inside = np.add.outer(np.add.outer(along**2, along**2), along**2) < 1
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"Madeup_{number:05d}"
        (root / name).mkdir(parents=True)
        tissue = rng.uniform(200, 800, inside.shape)
        for place, modality in enumerate(MODALITIES):
            if holes and number % len(MODALITIES) == place:
                continue
            voxels = (1 + 0.2 * place) * tissue + rng.uniform(0, 50, inside.shape)
            data = np.where(inside, voxels, 0).astype("<i2").tobytes("F")
            (root / name / f"{name}_{modality}.nii.gz").write_bytes(
                gzip.compress(header + data, 1, mtime=0)
            )
    return root


if __name__ == "__main__":
    main()
