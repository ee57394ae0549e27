"""Training slices on disk, memory-mapped, and the sampler that draws batches from them.

Memory does not grow with the dataset: the operating system keeps in memory what is used. Knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from attcl_cli import volume
from attcl_cli.dataset import Case, Dataset
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import free_bytes, read_json, write_json
from attcl_cli.methods.contract import Batch
from attcl_cli.overlap import read_ahead
from attcl_cli.volume import Array, Scale

STEPS = 32767  # [-1, 1] is stored as int16; -1 (background) is exact
INDEX_FILE = "index.json"
DATA_FILE = "slices.npy"
# Where they lie in a run's folder, or in a folder of packed slices that stands in for a dataset.
TRAINING_FOLDER, VALIDATION_FOLDER = "slices", "slices-val"
TRAINING_FOLDER, VALIDATION_FOLDER = (
    "slices",
    "slices-val",
)  # in a run's folder, or a packed dataset


@dataclass(frozen=True)
class Entry:
    """One volume in the store: `count` rows from `start` on, the first of them being axial slice `first`."""

    case: str
    modality: str
    start: int
    count: int
    first: int


@dataclass(frozen=True)
class SliceStore:
    """The training slices of a dataset.

    Attributes:
        data: (N, S, S) int16, memory-mapped; `read` gives floats.
        entries: the volumes, in the order of the rows.
        filled: (N,) bool, whether a slice shows any brain.
        modalities: their order is that of domain numbers.
        scales: modality -> median of the volumes' (low, high); completed volumes are written in this scale.
        trained_on: the ids of the cases.
    """

    data: Array
    entries: tuple[Entry, ...]
    filled: Array
    modalities: tuple[str, ...]
    scales: dict[str, Scale]
    trained_on: tuple[str, ...]

    def read(self, rows: Array) -> torch.Tensor:
        """Rows (B,) -> (B, 1, S, S) float32 in [-1, 1]."""
        return torch.from_numpy(self.data[rows].astype(np.float32) / STEPS)[:, None]


def build(
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
    *,
    image_size: int,
    canvas: int,
    on_case: Callable[[str], None] = lambda _: None,
    workers: int = 2,
) -> SliceStore:
    """Writes the training slices of `cases` (all modalities that each has) into `folder`, and opens them.

    Raises:
        AttclError: a volume cannot be used, slices are larger than the canvas, no room on the disk; all cases are told.
    """
    problems: list[AttclError] = []
    entries: list[Entry] = []
    rows = 0
    for case in cases:
        for modality in dataset.modalities:
            if modality not in case.files:
                continue
            depth, height, width = volume.read_grid(dataset.paths(case, modality)).axial_shape
            if max(height, width) > canvas:
                size = -(-max(height, width) // image_size) * image_size
                problems.append(
                    AttclError(
                        f"{dataset.paths(case, modality)[0]}: axial slices of {height}x{width} voxels, "
                        f"wanted at most {canvas}x{canvas}",
                        f"train with --set canvas={size}",
                    )
                )
            span = volume.training_slices(depth)
            entries.append(Entry(case.id, modality, rows, len(span), span.start))
            rows += len(span)
    needed = rows * image_size * image_size * 2
    if free_bytes(folder) < needed:
        problems.append(
            AttclError(
                f"{folder}: {free_bytes(folder) / 1e9:.1f} GB free, "
                f"wanted {needed / 1e9:.1f} GB for training slices",
                "free some space or choose another --output",
            )
        )
    raise_all(problems)

    folder.mkdir(parents=True, exist_ok=True)
    data = np.lib.format.open_memmap(
        folder / DATA_FILE, mode="w+", dtype=np.int16, shape=(rows, image_size, image_size)
    )
    scales: dict[str, list[Scale]] = {modality: [] for modality in dataset.modalities}
    by_case: dict[str, list[Entry]] = {}
    for entry in entries:
        by_case.setdefault(entry.case, []).append(entry)

    def load(case: Case) -> volume.CaseImages:
        return volume.load_case(
            {modality: dataset.paths(case, modality) for modality in case.files}
        )

    for case, future in read_ahead(load, cases, depth=workers):
        try:
            images = future.result()
        except AttclError as error:
            problems.append(error)
            continue
        for entry in by_case[case.id]:
            scales[entry.modality].append(images.scales[entry.modality])
            chosen = images.normalised(entry.modality)[entry.first : entry.first + entry.count]
            small = volume.shrink(volume.pad(chosen, (canvas, canvas)), canvas // image_size)
            data[entry.start : entry.start + entry.count] = np.rint(small * STEPS)
        on_case(case.id)
    raise_all(problems)
    data.flush()
    medians = {
        modality: Scale(median(item.low for item in found), median(item.high for item in found))
        for modality, found in scales.items()
        if found
    }
    write_json(
        folder / INDEX_FILE,
        {
            "modalities": [modality for modality in dataset.modalities if scales[modality]],
            "scales": {modality: asdict(scale) for modality, scale in medians.items()},
            "entries": [asdict(entry) for entry in entries],
            "filled": np.any(data > -STEPS, axis=(1, 2)).tolist(),
            "cases": [case.id for case in cases],
        },
    )
    return open_store(folder)


def is_store(folder: Path) -> bool:
    """Whether the folder holds all that `build` writes; the index is written last."""
    return (folder / INDEX_FILE).is_file()


def open_store(folder: Path) -> SliceStore:
    """Opens what `build` wrote."""
    index: dict[str, Any] = read_json(folder / INDEX_FILE)
    return SliceStore(
        data=np.load(folder / DATA_FILE, mmap_mode="r"),
        entries=tuple(Entry(**entry) for entry in index["entries"]),
        filled=np.array(index["filled"]),
        modalities=tuple(index["modalities"]),
        scales={modality: Scale(**scale) for modality, scale in index["scales"].items()},
        trained_on=tuple(index["cases"]),
    )


class Sampler:
    """Draws batches; a batch is a function of (seed, step), so a resumed run sees what an undisturbed one would have.

    Modalities are drawn uniformly, however unequal their numbers of volumes (StarGAN v2 balances its domains, too).
    """

    def __init__(
        self, store: SliceStore, *, batch_size: int, seed: int, pair_targets: float = 0.0
    ) -> None:
        self.store = store
        self.batch_size = batch_size
        self.seed = seed
        self.pair_targets = pair_targets
        count = len(store.modalities)
        rows = store.data.shape[0]
        self._domain = np.empty(rows, dtype=np.int64)
        self._entry = np.empty(rows, dtype=np.int64)
        for index, entry in enumerate(store.entries):
            self._domain[entry.start : entry.start + entry.count] = store.modalities.index(
                entry.modality
            )
            self._entry[entry.start : entry.start + entry.count] = index
        self._pools = [
            np.flatnonzero((self._domain == domain) & store.filled) for domain in range(count)
        ]
        # (entry, domain) -> first row of the same case in that modality, or -1
        starts = {(entry.case, entry.modality): entry.start for entry in store.entries}
        self._partner = np.array(
            [
                [starts.get((entry.case, modality), -1) for modality in store.modalities]
                for entry in store.entries
            ]
        )
        self._starts = np.array([entry.start for entry in store.entries])

    def rows(self, step: int) -> dict[str, Array]:
        """The rows and domains of a step's batch, before any pixel is read."""
        rng = np.random.default_rng((self.seed, step))
        size, domains = self.batch_size, len(self._pools)
        y_src, y_ref = rng.integers(domains, size=size), rng.integers(domains, size=size)
        source = np.array([rng.choice(self._pools[domain]) for domain in y_src])
        for index in np.flatnonzero(rng.random(size) < self.pair_targets):
            # Uniformly drawn, few targets have a truth (one in five under ratio1): the true ones are drawn more often.
            partners = self._partner[self._entry[source[index]]] >= 0
            partners[y_src[index]] = False
            if partners.any():
                y_ref[index] = rng.choice(np.flatnonzero(partners))
        first, second = (
            np.array([rng.choice(self._pools[domain]) for domain in y_ref]) for _ in range(2)
        )
        start = self._partner[self._entry[source], y_ref]
        pair = np.where(start >= 0, start + source - self._starts[self._entry[source]], -1)
        return {
            "x_src": source,
            "y_src": y_src,
            "x_ref": first,
            "x_ref2": second,
            "y_ref": y_ref,
            "x_pair": pair,
        }

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        rows = self.rows(step)
        has_pair = rows["x_pair"] >= 0
        pair = self.store.read(np.maximum(rows["x_pair"], 0))
        pair[torch.from_numpy(~has_pair)] = -1
        return Batch(
            x_src=self.store.read(rows["x_src"]),
            y_src=torch.from_numpy(rows["y_src"]),
            x_ref=self.store.read(rows["x_ref"]),
            x_ref2=self.store.read(rows["x_ref2"]),
            y_ref=torch.from_numpy(rows["y_ref"]),
            x_pair=pair,
            has_pair=torch.from_numpy(has_pair),
        )
