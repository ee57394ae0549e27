"""Seconds to read and to write a volume: attcl, nibabel and an older attcl; levels of compression; threads, processes.

`sides`: attcl reads through gates: what the header promises bounds what is read, values are checked, the background is
found. It writes a checked volume under a temporary name. This prints what that costs. Every side works in a process of
its own.

`levels`: what zlib and isal make of the volume at each level: seconds, size, seconds to read it again, and whether the
bytes are the same in all rounds.

`workers`: reading and writing by threads and by worker processes, alone and beside a busy main thread; and for how long
the calls that pack and unpack let no other thread run.

Sides, levels and workers take turns, so that a busy machine slows all of them.

    python benchmarks/files.py
    python benchmarks/files.py --volume T1.nii.gz --against ../older-checkout --rounds 20
    python benchmarks/files.py --parts levels workers --shape 64 64 32 --rounds 2 --volumes 4
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
SIDES, LEVELS, WORKERS = PARTS = ("sides", "levels", "workers")


def main() -> None:
    """Measure, and print a table per part."""
    options = _options()
    if options.side:
        serve(options.side, options.volume)
        return
    with tempfile.TemporaryDirectory() as folder:
        volume = options.volume or make_volume(Path(folder) / "made_up.nii.gz", options.shape)
        print(f"{volume.name}, {options.rounds} rounds, {os.cpu_count()} cores")
        if SIDES in options.parts:
            compare_sides(volume, options.against, options.rounds)
        # A side that is another checkout has other modules: these are for the other parts alone.
        if LEVELS in options.parts:
            import file_levels

            file_levels.compare(volume, options.rounds)
        if WORKERS in options.parts:
            import file_workers

            file_workers.compare(
                volume,
                Path(folder),
                workers=options.workers,
                count=options.volumes,
                rounds=options.rounds,
            )


# --- Sides ------------------------------------------------------------------------------------------------------------


def compare_sides(volume: Path, against: Path | None, rounds: int) -> None:
    """Print a line per side."""
    places = {"attcl": REPOSITORY, "nibabel": REPOSITORY}
    if against:
        places["other checkout"] = against.resolve()
    sides = {name: start(name, place, volume) for name, place in places.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            for work in WORK:
                took = ask(side, work)
                if turn:  # the first round fills caches
                    seconds.setdefault((name, work), []).append(took)
    for side in sides.values():
        side.communicate()
    print("\nsides: median seconds, and times attcl's")
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workers", type=int, default=2, help="threads, or worker processes")
    parser.add_argument("--volumes", type=int, default=8, help="per round of workers")
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
