"""Pack the training slices of a prepared dataset into a few small files, and unpack them on another machine.

For training on machines that the dataset itself cannot reach: the packed slices are cropped to the brain, 8 bit and
compressed, in parts of a size that you choose. `attcl train --data FOLDER` takes the unpacked folder in place of a
dataset, as soon as all parts are unpacked: some may be brought by one call, the others by later ones.

    python pack_slices.py pack data/ packed/ --image-size 256 --part-mb 60
    python pack_slices.py unpack packed/ slices/        # any subset of the parts may lie there, one after the other
    attcl train --data slices/
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attcl_cli.cli.terminal import show_error
from attcl_cli.data import slices
from attcl_cli.data.dataset import Case, Dataset, open_dataset
from attcl_cli.data.intensities import Array
from attcl_cli.data.originals import folders_of, refuse_among_originals
from attcl_cli.data.splits import read_splits
from attcl_cli.data.synthetic import describe_synthetic
from attcl_cli.errors import AttclError, UsageError, raise_all, some
from attcl_cli.files import read_json, require_folder, sha256, write_json
from attcl_cli.temporaries import sweep_beside, temporary_folder

LEVELS = 255  # [-1, 1] in 8 bits; -1, the background, stays exact
STORES = {"train": slices.TRAINING_FOLDER, "val": slices.VALIDATION_FOLDER}
STATE_FILE = "unpacked.json"  # in a folder of slices: which parts of which pack are in it

_DESCRIPTION = {"box", "index", "parts", "side", "store"}  # what every <split>.json has
_PART = re.compile(rf"({'|'.join(STORES)})-\d{{3,}}\.xz")
_BUILDING = "pack"  # how the name of a hidden folder in the output begins
_XZ = b"\xfd7zXZ\x00"  # how the format begins


def pack(data: Path, output: Path, *, image_size: int, canvas: int, part_mb: float) -> None:
    """Write `<split>.json` and `<split>-<part>.xz` for the training and validation cases.

    Of a folder that holds them already, they take the place of the old ones when all of them are written.

    Raises:
        UsageError: the folder holds anything else, or is, holds or lies in the dataset.
    """
    dataset = open_dataset(data)
    raise_all(dataset.problems)
    if found := describe_synthetic(dataset, dataset.cases):
        raise UsageError(
            f"{dataset.root}: {found}, expected real ones to learn from",
            "pack the dataset that was completed",
            code="synthetic-training-data",
        )
    refuse_among_originals(output, folders_of(dataset), flag="output")
    replaced = _own_files(output)
    splits = read_splits(data)
    chosen = {
        split: [case for case in dataset.cases if splits is None or case.id in splits.names(split)]
        for split in (STORES if splits is not None else ["train"])
    }
    chosen = {split: cases for split, cases in chosen.items() if cases}
    output.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output / _BUILDING) as building:
        for split, cases in chosen.items():
            described = _packed(
                dataset, cases, building, split, image_size=image_size, canvas=canvas, mb=part_mb
            )
            write_json(building / f"{split}.json", {**described, "splits": list(chosen)})
        # Descriptions go first and come last, so that none ever describes parts of another pack.
        for file in sorted(replaced, key=lambda it: it.suffix != ".json"):
            file.unlink(missing_ok=True)
        for file in sorted(building.iterdir(), key=lambda it: it.suffix == ".json"):
            file.rename(output / file.name)


def _packed(
    dataset: Dataset,
    cases: list[Case],
    output: Path,
    split: str,
    *,
    image_size: int,
    canvas: int,
    mb: float,
) -> dict[str, Any]:
    """Write the parts of a split; return their description."""
    with tempfile.TemporaryDirectory() as folder:
        store = slices.build(dataset, cases, Path(folder), image_size=image_size, canvas=canvas)
        index = json.loads((Path(folder) / slices.INDEX_FILE).read_text())
        filled = store.data > -slices.STEPS
        rows, columns = (np.flatnonzero(filled.any(axis=(0, other))) for other in (2, 1))
        box = [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]
        # Slices that compress to about 40 % of their 8-bit size.
        at_once = max(int(mb * 2**20 / ((box[1] - box[0]) * (box[3] - box[2]) * 0.6)), 1)
        parts: list[dict[str, Any]] = []
        for start in range(0, len(store.data), at_once):
            block = store.data[start : start + at_once, box[0] : box[1], box[2] : box[3]]
            grey = np.rint((block.astype(np.float32) / slices.STEPS + 1) * LEVELS / 2)
            data = lzma.compress(grey.astype(np.uint8).tobytes(), preset=6)
            part = f"{split}-{len(parts):03d}.xz"
            (output / part).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            parts.append({"file": part, "start": start, "count": len(block), "sha256": digest})
    total = sum((output / part["file"]).stat().st_size for part in parts) / 2**20
    print(
        f"{split}: {len(cases)} cases, {len(store.data)} slices, {total:.1f} MB in {len(parts)} parts"
    )
    return {"store": STORES[split], "side": image_size, "box": box, "parts": parts, "index": index}


def _own_files(folder: Path) -> list[Path]:
    """Return the files of an earlier pack in a folder; one that holds anything else is refused."""
    require_folder(folder, flag="output")
    if not folder.exists():
        return []
    sweep_beside(folder / _BUILDING)  # what a killed call left
    files = sorted(folder.iterdir())
    foreign = [file.name for file in files if not _is_own(file)]
    if foreign:
        raise UsageError(
            f"output: {folder} holds {some(foreign, most=3)}, which pack did not write, expected a new folder",
            "choose another folder, or remove what is in it yourself",
            code="output-not-empty",
        )
    return files


def _is_own(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    if _PART.fullmatch(file.name):
        with file.open("rb") as stream:
            return stream.read(len(_XZ)) == _XZ
    return file.suffix == ".json" and file.stem in STORES and _read_description(file) is not None


def _read_description(file: Path) -> dict[str, Any] | None:
    """Return what a `<split>.json` says; None if pack did not write it."""
    try:
        described = read_json(file, most=slices.MOST_INDEX_BYTES)
    except AttclError:
        return None
    is_ours = isinstance(described, dict) and described.keys() >= _DESCRIPTION
    return described if is_ours else None


def unpack(packed: Path, output: Path) -> None:
    """Add the parts that lie in `packed` to the slice folders below `output`.

    A folder gets its index, which makes it one to train on, when the parts of all folders are there. Which parts are is
    written beside them, each after its slices: so a call that was killed is repeated, and no part is needed twice.

    Raises:
        AttclError: a description or a part is damaged, or slices of something else lie there.
    """
    states = {}
    for split, name in STORES.items():
        state = read_json(output / name / STATE_FILE, default=None, most=slices.MOST_INDEX_BYTES)
        file = packed / f"{split}.json"
        if file.exists():
            described = _read_description(file)
            if described is None:
                raise _damaged(file, "not a description that pack wrote")
            if state is None or state["pack"] != described:
                state = _begin(output / name, described)
        if state is not None:
            removed = state["done"] and not (output / name / slices.DATA_FILE).exists()
            states[split] = _begin(output / name, state["pack"]) if removed else state
    if not states:
        names = " or ".join(f"{split}.json" for split in STORES)
        raise UsageError(
            f"{packed}: no {names}, expected a folder that pack wrote, or parts of it",
            "bring the .json files with the first parts",
            code="no-packed-slices",
        )
    missing = []
    for split, state in states.items():
        missing += _add_parts(packed, output / STORES[split], state)
    every = {
        name for split, state in states.items() for name in state["pack"].get("splits", [split])
    }
    missing += [f"{split}.json" for split in sorted(every - states.keys())]
    if missing:
        print(f"not here yet: {', '.join(missing)}; another call may bring them")
        print(f"{output}: not complete, so nothing can be trained on it yet")
        return
    for split in sorted(
        states, reverse=True
    ):  # that of the training slices last: it vouches for all
        folder = output / STORES[split]
        write_json(folder / slices.INDEX_FILE, states[split]["pack"]["index"])
        print(f"{folder}: {_count(states[split]['pack'])} slices")


def _begin(folder: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a folder that no part of this pack is in, and remove the index of another pack."""
    if not (folder / STATE_FILE).exists() and _holds_other(folder, described):
        raise UsageError(
            f"{folder}: holds other slices, which unpack did not write, expected a new folder",
            "choose another folder",
            code="output-not-empty",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / slices.INDEX_FILE).unlink(missing_ok=True)
    state = {"pack": described, "done": []}
    write_json(folder / STATE_FILE, state)
    return state


def _holds_other(folder: Path, described: Mapping[str, Any]) -> bool:
    """Return whether a folder that no state describes holds slices, unless they are those of this pack."""
    index = folder / slices.INDEX_FILE
    if index.exists():  # an earlier unpack wrote it at once, and no state
        return bool(read_json(index, default=None) != described["index"])
    return os.path.lexists(folder / slices.DATA_FILE)


def _add_parts(packed: Path, folder: Path, state: dict[str, Any]) -> list[str]:
    """Add the parts that lie in `packed` and are not yet in a folder; return the names of those that lack."""
    described, done = state["pack"], state["done"]
    box = described["box"]
    lacking = [part for part in described["parts"] if part["file"] not in done]
    here = [part for part in lacking if (packed / part["file"]).exists()]
    if here:
        data = _memory_map(folder / slices.DATA_FILE, described, new=not done)
    for part in here:
        shape = (part["count"], box[1] - box[0], box[3] - box[2])
        grey = _read_part(packed / part["file"], part, shape)
        values = np.rint((grey.astype(np.float32) * 2 / LEVELS - 1) * slices.STEPS)
        rows = slice(part["start"], part["start"] + part["count"])
        data[rows, box[0] : box[1], box[2] : box[3]] = values
        data.flush()  # before the part counts as done
        done = state["done"] = sorted([*done, part["file"]])
        write_json(folder / STATE_FILE, state)
        print(f"{part['file']}: unpacked")
    return [part["file"] for part in lacking if part not in here]


def _read_part(file: Path, part: Mapping[str, Any], shape: tuple[int, int, int]) -> Array:
    """Return the pixels of a part: (N, H, W) uint8."""
    if "sha256" in part and sha256(file) != part["sha256"]:  # earlier versions did not write it
        raise _damaged(file, "not the bytes that its description names")
    try:
        return np.frombuffer(lzma.decompress(file.read_bytes()), dtype=np.uint8).reshape(shape)
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise _damaged(file, f"not readable ({error})") from error


def _memory_map(path: Path, described: Mapping[str, Any], *, new: bool) -> np.memmap[Any, Any]:
    """Open the slices of a folder for writing; new ones are background."""
    if not new:
        return np.lib.format.open_memmap(path, mode="r+")
    side = described["side"]
    shape = (_count(described), side, side)
    data = np.lib.format.open_memmap(path, mode="w+", dtype=np.int16, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:  # a full disk would kill what writes to a memory map
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    data[:] = -slices.STEPS
    return data


def _count(described: Mapping[str, Any]) -> int:
    return sum(part["count"] for part in described["parts"])


def _damaged(file: Path, found: str) -> AttclError:
    return AttclError(
        f"{file}: {found}, expected the file as pack wrote it",
        "copy it again from its source",
        code="packed-slices-damaged",
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("data", type=Path)
    packing.add_argument("output", type=Path, help="a new folder, or one that pack wrote")
    packing.add_argument("--image-size", type=int, default=256)
    packing.add_argument("--canvas", type=int, default=256)
    packing.add_argument("--part-mb", type=float, default=60)
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("packed", type=Path)
    unpacking.add_argument("output", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "pack":
            sizes = {"image_size": options.image_size, "canvas": options.canvas}
            pack(options.data, options.output, **sizes, part_mb=options.part_mb)
        else:
            unpack(options.packed, options.output)
    except AttclError as error:
        show_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
