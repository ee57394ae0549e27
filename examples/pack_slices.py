"""Pack the training slices of a prepared dataset into a few small files, and unpack them on another machine.

For training on machines that the dataset itself cannot reach: the packed slices are cropped to the brain, 8 bit and
compressed, in parts of a size that you choose. `attcl train --data FOLDER` takes the unpacked folder in place of a
dataset.

    python pack_slices.py pack data/ packed/ --image-size 256 --part-mb 60
    python pack_slices.py unpack packed/ slices/        # any subset of the parts may lie there, one after the other
    attcl train --data slices/
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from attcl_cli.data import slices
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.splits import read_splits

LEVELS = 255  # [-1, 1] in 8 bits; -1, the background, stays exact
STORES = {"train": slices.TRAINING_FOLDER, "val": slices.VALIDATION_FOLDER}


def pack(data: Path, output: Path, *, image_size: int, canvas: int, part_mb: int) -> None:
    """Write `<split>.json` and `<split>-<part>.xz` for the training and validation cases."""
    dataset = open_dataset(data)
    splits = read_splits(data)
    output.mkdir(parents=True, exist_ok=True)
    for split, name in STORES.items():
        chosen = [
            case for case in dataset.cases if splits is None or case.id in splits.names(split)
        ]
        if not chosen or (splits is None and split == "val"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            store = slices.build(
                dataset, chosen, Path(folder), image_size=image_size, canvas=canvas
            )
            index = json.loads((Path(folder) / slices.INDEX_FILE).read_text())
            filled = store.data > -slices.STEPS
            rows, columns = (np.flatnonzero(filled.any(axis=(0, other))) for other in (2, 1))
            box = [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]
            # Slices that compress to about 40 % of their 8-bit size.
            at_once = max(int(part_mb * 2**20 / ((box[1] - box[0]) * (box[3] - box[2]) * 0.6)), 1)
            parts = []
            for start in range(0, len(store.data), at_once):
                block = store.data[start : start + at_once, box[0] : box[1], box[2] : box[3]]
                grey = np.rint((block.astype(np.float32) / slices.STEPS + 1) * LEVELS / 2)
                part = f"{split}-{len(parts):03d}.xz"
                (output / part).write_bytes(
                    lzma.compress(grey.astype(np.uint8).tobytes(), preset=6)
                )
                parts.append({"file": part, "start": start, "count": len(block)})
        described = {"store": name, "side": image_size, "box": box, "parts": parts, "index": index}
        (output / f"{split}.json").write_text(json.dumps(described))
        total = sum((output / part["file"]).stat().st_size for part in parts) / 2**20
        print(
            f"{split}: {len(chosen)} cases, {len(store.data)} slices, {total:.1f} MB in {len(parts)} parts"
        )


def unpack(packed: Path, output: Path) -> None:
    """Add the parts that lie in `packed` to the slice folders below `output`."""
    for description in sorted(packed.glob("*.json")):
        described = json.loads(description.read_text())
        folder = output / described["store"]
        folder.mkdir(parents=True, exist_ok=True)
        side, box = described["side"], described["box"]
        count = sum(part["count"] for part in described["parts"])
        path = folder / slices.DATA_FILE
        if path.exists():
            data = np.lib.format.open_memmap(path, mode="r+")
        else:
            data = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.int16, shape=(count, side, side)
            )
            with path.open("r+b") as stream:  # a full disk would kill what writes to a memory map
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
            data[:] = -slices.STEPS
        for part in described["parts"]:
            file = packed / part["file"]
            if not file.exists():
                print(f"{part['file']}: not here, another call may bring it")
                continue
            shape = (part["count"], box[1] - box[0], box[3] - box[2])
            grey = np.frombuffer(lzma.decompress(file.read_bytes()), dtype=np.uint8).reshape(shape)
            values = np.rint((grey.astype(np.float32) * 2 / LEVELS - 1) * slices.STEPS)
            rows = slice(part["start"], part["start"] + part["count"])
            data[rows, box[0] : box[1], box[2] : box[3]] = values
        data.flush()
        index = folder / slices.INDEX_FILE
        index.write_text(json.dumps(described["index"]))
        print(f"{folder}: {count} slices")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("data", type=Path)
    packing.add_argument("output", type=Path)
    packing.add_argument("--image-size", type=int, default=256)
    packing.add_argument("--canvas", type=int, default=256)
    packing.add_argument("--part-mb", type=int, default=60)
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("packed", type=Path)
    unpacking.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        shutil.rmtree(options.output, ignore_errors=True)
        sizes = {"image_size": options.image_size, "canvas": options.canvas}
        pack(options.data, options.output, **sizes, part_mb=options.part_mb)
    else:
        unpack(options.packed, options.output)


if __name__ == "__main__":
    main()
