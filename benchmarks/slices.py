"""Peak memory and seconds of building training slices, for few and for many cases: memory must not grow with them.

Each build runs in a fresh process. The volumes are random, 32x32x24 voxels, four modalities and a segmentation per
case; in the rows of 256 pixels they are padded, so that few cases make large files.

    python benchmarks/slices.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (32, 32, 24)
ROW = "{:<7} {:>6} {:>8} {:>9} {:>10} {:>16} {:>9}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, nargs=2, default=(4, 400), metavar="N")
    parser.add_argument("--large-cases", type=int, nargs=2, default=(4, 40), metavar="N")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        root, output, count, side = options.child
        print(json.dumps(build(Path(root), Path(output), cases=int(count), side=int(side))))
        return
    print(ROW.format("pixels", "cases", "slices", "on disk", "peak", "beyond imports", "seconds"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "cohort"
        write_cases(root, max(*options.cases, *options.large_cases))
        for side, counts in ((32, options.cases), (256, options.large_cases)):
            for count in counts:
                with tempfile.TemporaryDirectory(dir=name) as output:
                    command = [__file__, "--child", root, output, count, side]
                    done = subprocess.run(
                        [sys.executable, *map(str, command)],
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                figures = json.loads(done.stdout)
                texts = (f"{figures[key]:.0f} MB" for key in ("disk", "peak", "grown"))
                seconds = f"{figures['seconds']:.1f} s"
                print(ROW.format(side, count, figures["slices"], *texts, seconds), flush=True)


def write_cases(root: Path, count: int) -> None:
    """Write random volumes in the layout of BraTS 2021."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for index in range(count):
        rng = np.random.default_rng(index)
        folder = root / f"Case_{index:05d}"
        folder.mkdir(parents=True)
        for name in ("flair", "t1", "t1ce", "t2"):
            data = np.zeros(SHAPE, dtype=np.int16)
            data[4:-4, 4:-4, 2:-2] = rng.integers(1, 1000, (24, 24, 20))
            nib.save(nib.Nifti1Image(data, affine), folder / f"{folder.name}_{name}.nii.gz")
        labels = np.zeros(SHAPE, dtype=np.uint8)
        labels[8:16, 8:16, 8:16] = rng.choice([1, 2, 4])
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{folder.name}_seg.nii.gz")


def build(root: Path, output: Path, *, cases: int, side: int) -> dict[str, float]:
    """Build the slices of the first cases, and return megabytes and seconds."""
    from attcl_cli.data import (
        slices,  # not in the parent: on Linux a child's peak begins at its parent's
    )
    from attcl_cli.data.dataset import open_dataset

    dataset = open_dataset(root)
    before = peak_megabytes()
    clock = time.perf_counter()
    store = slices.build(
        dataset, dataset.cases[:cases], output, image_size=side, canvas=side, labels=True
    )
    seconds = time.perf_counter() - clock
    peak = peak_megabytes()
    disk = sum(file.stat().st_size for file in output.iterdir()) / 2**20
    return {
        "slices": len(store.data),
        "disk": disk,
        "peak": peak,
        "grown": peak - before,
        "seconds": seconds,
    }


def peak_megabytes() -> float:
    """Return this process' peak of resident memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
