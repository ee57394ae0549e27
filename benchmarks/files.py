"""Seconds to read and to write a volume, beside nibabel alone and, if wanted, beside another checkout of attcl.

attcl reads through gates: what the header promises bounds what is read, values are checked, the background is found. It
writes a checked volume under a temporary name. This prints what that costs. Every side works in a process of its own,
and the sides take turns, so that a busy machine slows all of them.

    python benchmarks/files.py
    python benchmarks/files.py --volume T1.nii.gz --against ../older-checkout --rounds 20
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
WORK = ("read", "write")


def main() -> None:
    """Measure, and print a line per side."""
    options = _options()
    if options.side:
        serve(options.side, options.volume)
        return
    with tempfile.TemporaryDirectory() as folder:
        volume = options.volume or make_volume(Path(folder) / "made_up.nii.gz", options.shape)
        places = {"attcl": REPOSITORY, "nibabel": REPOSITORY}
        if options.against:
            places["other checkout"] = options.against.resolve()
        sides = {name: start(name, place, volume) for name, place in places.items()}
        seconds: dict[tuple[str, str], list[float]] = {}
        for turn in range(options.rounds + 1):
            for name, side in sides.items():
                for work in WORK:
                    took = ask(side, work)
                    if turn:  # the first round fills caches
                        seconds.setdefault((name, work), []).append(took)
        for side in sides.values():
            side.communicate()
    print(f"{volume.name}, {options.rounds} rounds; median seconds, and times attcl's")
    for name in sides:
        cells = []
        for work in WORK:
            ratio = statistics.median(
                theirs / ours
                for theirs, ours in zip(seconds[name, work], seconds["attcl", work], strict=True)
            )
            cells.append(f"{work} {statistics.median(seconds[name, work]):7.3f} s  {ratio:5.2f}")
        print(f"{name:<16}" + "    ".join(cells))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--volume", type=Path, help="the file to read; without it, one is made up")
    parser.add_argument("--against", type=Path, help="the root of another checkout")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_volume(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write a brain-sized ball of noisy intensities, int16, background 0."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 0.4
    noise = np.random.default_rng(0).normal(600, 120, shape)
    image = nib.Nifti1Image(np.where(inside, noise.clip(1), 0).astype(np.int16), np.eye(4))
    path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
    return path


def start(name: str, place: Path, volume: Path) -> subprocess.Popen[str]:
    """Start the process of a side, which imports `attcl_cli` from a place."""
    return subprocess.Popen(
        [sys.executable, __file__, "--side", name, "--volume", volume],
        env={**os.environ, "PYTHONPATH": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(side: subprocess.Popen[str], work: str) -> float:
    """Return the seconds that a side took to read or to write."""
    assert side.stdin
    assert side.stdout
    side.stdin.write(work + "\n")
    side.stdin.flush()
    return float(side.stdout.readline())


def serve(name: str, path: Path) -> None:
    """Read or write as standard input asks for, and print the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        read, write = hands(name, path, Path(folder) / "written.nii.gz")
        work = {"read": read, "write": write}
        for line in sys.stdin:
            begin = time.perf_counter()
            work[line.strip()]()
            print(time.perf_counter() - begin, flush=True)


def hands(name: str, path: Path, target: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what reads `path`, and what writes its values as `target`."""
    if name == "nibabel":
        image: Any = nib.load(path)
        stored = np.asarray(image.dataobj)
        same = nib.Nifti1Image(stored, image.affine, image.header)
        return (
            lambda: np.asarray(nib.load(path).dataobj, np.float32),  # type: ignore[attr-defined]  # of all its formats
            lambda: nib.save(same, target),
        )
    from attcl_cli.data import volumes

    volume = volumes.load([path])
    return (
        lambda: volumes.load([path]),
        lambda: volumes.save([target], volume.data, volume.grid, description="benchmark"),
    )


if __name__ == "__main__":
    main()
