"""Training slices on disk, memory-mapped, and the sampler that draws batches from them.

Memory does not grow with the dataset: slices are appended case by case, and read through the memory map. Knows no
network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import numpy as np
import torch

from attcl_cli import volume
from attcl_cli.dataset import SEGMENTATION, Case, Dataset
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import free_bytes, read_json, write_json
from attcl_cli.methods.contract import Batch, CaseBatch, CaseBatches, SliceBatches
from attcl_cli.overlap import read_ahead
from attcl_cli.volume import Array, Scale

STEPS = 32767  # [-1, 1] is stored as int16; -1 (background) is exact
INDEX_FILE = "index.json"
DATA_FILE = "slices.npy"
LABELS_FILE = "labels.npy"
# BraTS's labels -> classes: background, necrosis, oedema, enhancing tumour (4 until 2022, 3 since)
_CLASSES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3}
# Where they lie in a run's folder, or in a folder of packed slices that stands in for a dataset.
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
        labels: (L, S, S) uint8, memory-mapped: the classes of segmented cases; None where they were not asked for.
        segmentations: the label maps, in the order of the rows of `labels`.
        tumour: (L,) bool, whether a slice shows any.
    """

    data: Array
    entries: tuple[Entry, ...]
    filled: Array
    modalities: tuple[str, ...]
    scales: dict[str, Scale]
    trained_on: tuple[str, ...]
    labels: Array | None = None
    segmentations: tuple[Entry, ...] = ()
    tumour: Array = field(default_factory=lambda: np.zeros(0, dtype=bool))

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
    labels: bool = False,
    on_case: Callable[[str], None] = lambda _: None,
    workers: int = 2,
) -> SliceStore:
    """Writes the training slices of `cases` (all modalities that each has) into `folder`, and opens them.

    With `labels` also those of the segmentations that there are.

    Raises:
        AttclError: a volume cannot be used, slices are larger than the canvas, no room on the disk; all cases are told.
    """
    entries, maps, problems = _layout(
        dataset, cases, image_size=image_size, canvas=canvas, labels=labels
    )
    rows = sum(entry.count for entry in entries)
    needed = (rows * 2 + sum(entry.count for entry in maps)) * image_size * image_size
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
    (folder / INDEX_FILE).unlink(missing_ok=True)  # an old index would vouch for unfinished files
    side = (image_size, image_size)
    filled = np.zeros(rows, dtype=bool)
    tumour = np.zeros(sum(entry.count for entry in maps), dtype=bool)
    map_of = {entry.case: entry for entry in maps}
    scales: dict[str, list[Scale]] = {modality: [] for modality in dataset.modalities}
    by_case: dict[str, list[Entry]] = {}
    for entry in entries:
        by_case.setdefault(entry.case, []).append(entry)

    def load(case: Case) -> tuple[volume.CaseImages, Array | None]:
        images = volume.load_case(
            {modality: dataset.paths(case, modality) for modality in case.files}
        )
        return images, _classes(dataset, case, images) if case.id in map_of else None

    with ExitStack() as files:
        data = files.enter_context(_npy_file(folder / DATA_FILE, np.int16, (rows, *side)))
        if maps:
            shape = (len(tumour), *side)
            classes = files.enter_context(_npy_file(folder / LABELS_FILE, np.uint8, shape))
        for case, future in read_ahead(load, cases, depth=workers):
            try:
                images, found = future.result()
            except AttclError as error:
                problems.append(error)  # the files lack its rows from here on, and get no index
                continue
            for entry in by_case[case.id]:
                scales[entry.modality].append(images.scales[entry.modality])
                chosen = images.normalised(entry.modality)[entry.first : entry.first + entry.count]
                small = volume.shrink(volume.pad(chosen, (canvas, canvas)), canvas // image_size)
                pixels = np.empty((entry.count, *side), dtype=np.int16)
                pixels[:] = np.rint(small * STEPS)
                filled[entry.start : entry.start + entry.count] = _shows(pixels > -STEPS)
                data.write(pixels.data)
            if found is not None:
                entry = map_of[case.id]
                chosen = found[entry.first : entry.first + entry.count]
                labelled = _shrink_classes(chosen, image_size=image_size, canvas=canvas)
                tumour[entry.start : entry.start + entry.count] = _shows(labelled > 0)
                classes.write(labelled.data)
            on_case(case.id)
    raise_all(problems)
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
            "filled": filled.tolist(),
            "cases": [case.id for case in cases],
            **_described(maps, tumour),
        },
    )
    return open_store(folder)


def is_store(folder: Path) -> bool:
    """Whether the folder holds all that `build` writes; the index is written last."""
    return (folder / INDEX_FILE).is_file()


def open_store(folder: Path) -> SliceStore:
    """Opens what `build` wrote."""
    index: dict[str, Any] = read_json(folder / INDEX_FILE)
    maps = index.get("segmentations", [])
    labels = None
    if maps and (folder / LABELS_FILE).is_file():  # packed slices leave them behind
        labels = np.load(folder / LABELS_FILE, mmap_mode="r")
    return SliceStore(
        data=np.load(folder / DATA_FILE, mmap_mode="r"),
        entries=tuple(Entry(**entry) for entry in index["entries"]),
        filled=np.array(index["filled"]),
        modalities=tuple(index["modalities"]),
        scales={modality: Scale(**scale) for modality, scale in index["scales"].items()},
        trained_on=tuple(index["cases"]),
        labels=labels,
        segmentations=() if labels is None else tuple(Entry(**entry) for entry in maps),
        tumour=np.array(index.get("tumour", []), dtype=bool),
    )


def sampler_of(
    store: SliceStore,
    wanted: SliceBatches | CaseBatches,
    *,
    batch_size: int,
    seed: int,
    mirror: float = 0.0,
) -> Sampler | CaseSampler:
    """What draws the batches that a method asks for, this share of their slices mirrored left to right.

    Raises:
        AttclError: the store has nothing of the kind.
    """
    if isinstance(wanted, SliceBatches):
        return Sampler(
            store, batch_size=batch_size, seed=seed, mirror=mirror, pair_targets=wanted.pair_targets
        )
    return CaseSampler(store, wanted, batch_size=batch_size, seed=seed, mirror=mirror)


class Sampler:
    """Draws batches; a batch is a function of (seed, step), so a resumed run sees what an undisturbed one would have.

    Modalities are drawn uniformly, however unequal their numbers of volumes (StarGAN v2 balances its domains, too).
    """

    def __init__(
        self,
        store: SliceStore,
        *,
        batch_size: int,
        seed: int,
        mirror: float = 0.0,
        pair_targets: float = 0.0,
    ) -> None:
        self.store = store
        self.batch_size = batch_size
        self.seed = seed
        self.mirror = mirror
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
            "mirrored": rng.random((3, size))
            < self.mirror,  # the source (and its pair), the references
        }

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        rows = self.rows(step)
        has_pair = rows["x_pair"] >= 0
        pair = self.store.read(np.maximum(rows["x_pair"], 0))
        pair[torch.from_numpy(~has_pair)] = -1
        source, first, second = rows["mirrored"]
        return Batch(
            x_src=_mirrored(self.store.read(rows["x_src"]), source),
            y_src=torch.from_numpy(rows["y_src"]),
            x_ref=_mirrored(self.store.read(rows["x_ref"]), first),
            x_ref2=_mirrored(self.store.read(rows["x_ref2"]), second),
            y_ref=torch.from_numpy(rows["y_ref"]),
            x_pair=_mirrored(pair, source),
            has_pair=torch.from_numpy(has_pair),
        )


class CaseSampler:
    """Draws whole cases at one slice; a batch is a function of (seed, step), as `Sampler`'s is.

    Targets are drawn uniformly among those that any case can teach: it has the target, all sources that the target
    needs, and at least one.
    """

    def __init__(
        self,
        store: SliceStore,
        wanted: CaseBatches,
        *,
        batch_size: int,
        seed: int,
        mirror: float = 0.0,
    ) -> None:
        self.store = store
        self.wanted = wanted
        self.batch_size = batch_size
        self.seed = seed
        self.mirror = mirror
        modalities = store.modalities
        cases = list(dict.fromkeys(entry.case for entry in store.entries))
        number = {case: index for index, case in enumerate(cases)}
        # (case, domain) -> first row of that volume, or -1; (case,) -> first row of its label map, or -1
        self._start = np.full((len(cases), len(modalities)), -1, dtype=np.int64)
        self._labels = np.full(len(cases), -1, dtype=np.int64)
        for entry in store.entries:
            self._start[number[entry.case], modalities.index(entry.modality)] = entry.start
        for entry in store.segmentations:
            self._labels[number[entry.case]] = entry.start
        # target -> (K, 2): case and offset of every slice that can be drawn; and of those with tumour, or none known
        self._pools: dict[int, Array] = {}
        self._preferred: dict[int, Array] = {}
        for target, needed in wanted.needs.items():
            domain = modalities.index(target) if target in modalities else -1
            indices = [modalities.index(name) for name in needed if name in modalities]
            if domain < 0 or len(indices) < len(needed):
                continue
            pool, preferred = [], []
            for entry in store.entries:
                case = number[entry.case]
                there = self._start[case] >= 0
                if entry.modality != target or not there[indices].all() or there.sum() < 2:  # noqa: PLR2004
                    continue
                rows = np.arange(entry.count)
                filled = rows[store.filled[entry.start : entry.start + entry.count]]
                pool += [(case, offset) for offset in filled]
                first = self._labels[case]
                shown = filled if first < 0 else filled[store.tumour[first + filled]]
                preferred += [(case, offset) for offset in shown]
            if pool:
                self._pools[domain] = np.array(pool)
                self._preferred[domain] = np.array(preferred or pool)
        if not self._pools:
            names = ", ".join(wanted.needs)
            raise AttclError(
                f"training slices of {len(cases)} cases: none has {names} beside what it is made from, "
                "wanted one case at least",
                "train on cases with more modalities, or another method: --method attcl-gan",
            )

    def rows(self, step: int) -> dict[str, Array]:
        """The cases, slices, sources and targets of a step's batch, before any pixel is read."""
        rng = np.random.default_rng((self.seed, step))
        targets = rng.choice(list(self._pools), size=self.batch_size)
        places, sources = [], []
        for target in targets:
            prefers = rng.random() < self.wanted.tumour_slices
            pool = (self._preferred if prefers else self._pools)[int(target)]
            places.append(pool[rng.integers(len(pool))])
            others = self._start[places[-1][0]] >= 0
            others[target] = False
            if rng.random() < self.wanted.leave_out:
                there = rng.permutation(np.flatnonzero(others))
                others[there[rng.integers(1, len(there) + 1) :]] = False
            sources.append(others)
        case, offset = np.array(places).T
        return {
            "case": case,
            "offset": offset,
            "target": targets,
            "sources": np.array(sources),
            "mirrored": rng.random(self.batch_size) < self.mirror,
        }

    def batch(self, step: int) -> CaseBatch:
        """The batch of a step."""
        chosen = self.rows(step)
        case, offset = chosen["case"], chosen["offset"]
        start = self._start[case]
        count, modalities = start.shape
        rows = np.maximum(start, 0) + offset[:, None]
        images = self.store.read(rows.ravel()).unflatten(0, (count, modalities))[:, :, 0]
        images[torch.from_numpy(start < 0)] = -1
        first = self._labels[case]
        labels = torch.zeros(count, *images.shape[2:], dtype=torch.int64)
        if self.store.labels is not None:
            read = self.store.labels[np.maximum(first, 0) + np.where(first < 0, 0, offset)]
            labels = torch.from_numpy(read.astype(np.int64))
            labels[torch.from_numpy(first < 0)] = 0
        return CaseBatch(
            images=_mirrored(images, chosen["mirrored"]),
            sources=torch.from_numpy(chosen["sources"]),
            target=torch.from_numpy(chosen["target"]),
            labels=_mirrored(labels, chosen["mirrored"]),
            has_labels=torch.from_numpy(first >= 0),
        )


def _mirrored(images: torch.Tensor, chosen: Array) -> torch.Tensor:
    """(B, ..., W), left and right exchanged where chosen: (B,) bool."""
    images[torch.from_numpy(chosen)] = images[torch.from_numpy(chosen)].flip(-1)
    return images


def _layout(
    dataset: Dataset, cases: Sequence[Case], *, image_size: int, canvas: int, labels: bool
) -> tuple[list[Entry], list[Entry], list[AttclError]]:
    """Where each volume and each label map goes, and what does not fit."""
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
    segmented = [case for case in cases if labels and case.segmentation]
    spans = {entry.case: entry for entry in entries}
    maps: list[Entry] = []
    for case in segmented:
        like = spans[case.id]
        start = maps[-1].start + maps[-1].count if maps else 0
        maps.append(Entry(case.id, SEGMENTATION, start, like.count, like.first))
    return entries, maps, problems


def _npy_file(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> BinaryIO:
    """Open a .npy file of this shape for its rows to be appended.

    A writable memory map would do as well, but its pages count as the process' memory until they are written back.
    """
    file = path.open("wb")
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _shows(pixels: Array) -> Array:
    """Return which slices have any such pixel: (N, S, S) bool -> (N,) bool."""
    return np.any(pixels, axis=(1, 2))


def _described(maps: Sequence[Entry], tumour: Array) -> dict[str, Any]:
    """What the index says of label maps; nothing where there are none."""
    if not maps:
        return {}
    return {
        "segmentations": [asdict(entry) for entry in maps],
        "tumour": tumour.tolist(),
    }


def _classes(dataset: Dataset, case: Case, images: volume.CaseImages) -> Array:
    """The label map of a case as classes: (D, H, W) uint8.

    Raises:
        AttclError: it is unreadable, of another shape than the images, or has labels that BraTS has not.
    """
    path = dataset.paths(case, SEGMENTATION)[0]
    labels = volume.load_labels(dataset.paths(case, SEGMENTATION))
    if labels.shape != images.brain.shape:
        raise AttclError(
            f"{path}: shape {labels.shape}, wanted {images.brain.shape} as the images have",
            "resample the segmentation, or remove it",
        )
    strange = sorted(set(np.unique(labels).tolist()) - set(_CLASSES))
    if strange:
        raise AttclError(
            f"{path}: label {strange[0]}, wanted the labels of BraTS: 0, 1, 2, 3 or 4",
            "rename the labels, or remove the segmentation",
        )
    return np.array([_CLASSES[label] for label in range(len(_CLASSES))], dtype=np.uint8)[labels]


def _shrink_classes(slices: Array, *, image_size: int, canvas: int) -> Array:
    """(N, H, W) -> (N, image_size, image_size): the class of most voxels; of equals, the lowest number."""
    padded = np.maximum(volume.pad(slices.astype(np.int16), (canvas, canvas)), 0)
    shares = [
        volume.shrink((padded == label).astype(np.float32), canvas // image_size)
        for label in sorted(set(_CLASSES.values()))
    ]
    return np.argmax(shares, axis=0).astype(np.uint8)
