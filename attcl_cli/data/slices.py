"""Training slices on disk, memory-mapped, with the label maps beside them.

Memory does not grow with the dataset: slices are appended case by case, and read through the memory map. How batches
are drawn from them is left to `sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import numpy as np
from pydantic import Field, model_validator

from attcl_cli.confined import make_parent
from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.intensities import Array, Scale
from attcl_cli.data.labels import CONVENTIONS, KNOWN, shrink_classes, to_classes
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.records import ScaleDocument
from attcl_cli.data.unchanged import State, look_at, require_unchanged
from attcl_cli.documents import Count, Document, Items, Name, validated
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import appended, lack_of_room, read_json, remove_files, write_json
from attcl_cli.prefetch import read_ahead

if TYPE_CHECKING:  # the checks of a training ask for stores, and end before torch is loaded
    import torch

Span = Literal["middle", "all"]

STEPS = 32767  # [-1, 1] is stored as int16; -1 (background) is exact
INDEX_FILE = "index.json"
DATA_FILE = "slices.npy"
LABELS_FILE = "labels.npy"
MOST_INDEX_BYTES = 2**28
"""The size of the largest index that is read: a line per slice."""

_NPY_HEADER = 128  # bytes, of an array of three axes
_AXES = 3  # slice, row, column
_MADE_AGAIN = "remove the folder, and train or pack the slices again"
# The stores in a run's folder, or in a folder of packed slices that stands in for a dataset.
TRAINING_FOLDER, VALIDATION_FOLDER = "slices", "slices-val"


@dataclass(frozen=True)
class Entry:
    """One volume in the store: `count` rows from `start` on, the first of them being axial slice `first`."""

    case: str
    modality: str
    start: int
    count: int
    first: int


class _EntryDocument(Document):
    case: str
    modality: str
    start: Count
    count: Count
    first: Count

    def entry(self) -> Entry:
        return Entry(self.case, self.modality, self.start, self.count, self.first)


class _IndexDocument(Document):
    """The index of a store; it lies in a user's folder of packed slices as well."""

    modalities: Annotated[Items[Name], Field(min_length=1)]
    scales: dict[Name, ScaleDocument]
    entries: Annotated[Items[_EntryDocument], Field(min_length=1)]
    filled: Items[bool]
    cases: Items[str]
    background: BackgroundOption = "auto"
    segmentations: Items[_EntryDocument] = ()
    tumour: Items[bool] = ()

    @model_validator(mode="after")
    def _agrees(self) -> _IndexDocument:
        unknown = {it.modality for it in self.entries} - {*self.modalities}
        if unknown or not {*self.modalities} <= self.scales.keys():
            raise ValueError("modalities: not those of entries and scales, expected the same")
        return self


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
        labels: (L, S, S) uint8, memory-mapped: the classes of segmented cases; None if they were not asked for.
        segmentations: the label maps, in the order of the rows of `labels`.
        tumour: (L,) bool, whether a slice shows any.
        background: what was background in the volumes (`volumes.load`).
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
    background: BackgroundOption = "auto"

    def starts(self) -> Array:
        """Return the first row of each volume: (V,) int64, in the order of `entries`."""
        return np.array([entry.start for entry in self.entries])

    def partner_starts(self) -> Array:
        """Return the first rows of the volumes of each volume's case: (V, M) int64, -1 where it lacks a modality."""
        starts = {(entry.case, entry.modality): entry.start for entry in self.entries}
        return np.array(
            [
                [starts.get((entry.case, name), -1) for name in self.modalities]
                for entry in self.entries
            ]
        )

    def volumes_by_case(self) -> dict[str, dict[str, Entry]]:
        """Return case -> modality -> its volume, in the order of the rows."""
        cases: dict[str, dict[str, Entry]] = {}
        for entry in self.entries:
            cases.setdefault(entry.case, {})[entry.modality] = entry
        return cases

    def read(
        self, rows: Array, *, context: int = 0, corners: Array | None = None, side: int = 0
    ) -> torch.Tensor:
        """Read rows as images, whole or a square of each.

        Args:
            rows: (B,) int64.
            context: neighbouring slices to read on each side; background beyond a volume's first or last stored slice.
            corners: (B, 2) int64, the upper left (y, x) of each square, which may lie outside the image: background
                there. None: whole slices.
            side: side of the squares, in pixels; only with corners.

        Returns:
            (B, 1 + 2 * context, S, S) float32 in [-1, 1], the row itself in the middle; S is `side` with corners.
        """
        import torch  # noqa: PLC0415

        around = rows[:, None] + np.arange(-context, context + 1)
        inside = self._in_same_volume(rows, around) if context else np.ones(around.shape, bool)
        around = np.where(inside, around, rows[:, None])
        pixels = _squares(self.data, around, corners, side, beyond=-STEPS)
        images = torch.from_numpy(pixels.astype(np.float32) / STEPS)
        images[torch.from_numpy(~inside)] = -1
        return images

    def read_labels(
        self, rows: Array, *, corners: Array | None = None, side: int = 0
    ) -> torch.Tensor:
        """Read rows of `labels`, whole or a square of each, as `read` does.

        Args:
            rows: (B,) int64; -1: a case without a segmentation.
            corners: as of `read`.
            side: as of `read`.

        Returns:
            (B, S, S) int64, the classes; 0 everywhere without a segmentation.
        """
        import torch  # noqa: PLC0415

        maps = np.zeros((1, *self.data.shape[1:]), np.uint8) if self.labels is None else self.labels
        there = rows >= 0 if self.labels is not None else np.zeros(len(rows), bool)
        read = _squares(maps, np.where(there, rows, 0)[:, None], corners, side, beyond=0)[:, 0]
        classes = torch.from_numpy(read.astype(np.int64))
        classes[torch.from_numpy(~there)] = 0
        return classes

    def _in_same_volume(self, rows: Array, around: Array) -> Array:
        """Return which rows (B, K) are of the same volume as `rows` (B,)."""
        starts = self.starts()
        ends = np.array([entry.start + entry.count for entry in self.entries])
        volume = np.searchsorted(starts, rows, side="right") - 1
        value: Array = (around >= starts[volume, None]) & (around < ends[volume, None])
        return value


def build(
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
    *,
    image_size: int,
    canvas: int,
    labels: bool = False,
    span: Span = "middle",
    on_case: Callable[[str], None] = lambda _: None,
    workers: int = 2,
) -> SliceStore:
    """Write the training slices of `cases` (all modalities that each has) into `folder`, and open them.

    Args:
        dataset: the dataset of the cases.
        cases: the cases.
        folder: the folder of the store.
        image_size: edge of the stored slices, in pixels.
        canvas: edge that slices are padded to before they are averaged down, in voxels; a multiple of `image_size`.
        labels: also store the classes of the segmentations that there are.
        span: which axial slices are stored: the middle ones (`intensities.training_slices`), or all.
        on_case: called with the id of each case that is done.
        workers: cases read ahead.

    Raises:
        AttclError: a volume cannot be used, slices are larger than the canvas, or there is no room on the disk; the
            problems of all cases together.
    """
    seen = {case.id: look_at(_files_of(dataset, case)) for case in cases}
    entries, maps, problems = _plan_rows(
        dataset, cases, image_size=image_size, canvas=canvas, labels=labels, span=span
    )
    rows = sum(entry.count for entry in entries)
    needed = (rows * 2 + sum(entry.count for entry in maps)) * image_size * image_size
    problems += no_room_for_slices(folder, needed)
    raise_all(problems)

    make_parent(folder / INDEX_FILE)
    (folder / INDEX_FILE).unlink(missing_ok=True)  # an old index would vouch for unfinished files
    side = (image_size, image_size)
    filled = np.zeros(rows, dtype=bool)
    tumour = np.zeros(sum(entry.count for entry in maps), dtype=bool)
    map_of = {entry.case: entry for entry in maps}
    scales: dict[str, list[Scale]] = {modality: [] for modality in dataset.modalities}
    by_case: dict[str, list[Entry]] = {}
    for entry in entries:
        by_case.setdefault(entry.case, []).append(entry)

    def load(case: Case) -> tuple[volumes.CaseImages, Array | None]:
        return _load(dataset, case, seen[case.id], labelled=case.id in map_of)

    with ExitStack() as files:
        data = files.enter_context(_npy_file(folder / DATA_FILE, np.int16, (rows, *side)))
        if maps:
            shape = (len(tumour), *side)
            classes = files.enter_context(_npy_file(folder / LABELS_FILE, np.uint8, shape))
        for case, future in read_ahead(load, cases, depth=workers):
            try:
                images, case_classes = future.result()
            except AttclError as error:
                problems.append(error)  # the files lack its rows from here on, and get no index
                continue
            for entry in by_case[case.id]:
                scales[entry.modality].append(images.scales[entry.modality])
                chosen = images.normalised(entry.modality)[entry.first : entry.first + entry.count]
                small = intensities.shrink(
                    intensities.pad(chosen, (canvas, canvas)), canvas // image_size
                )
                pixels = np.empty((entry.count, *side), dtype=np.int16)
                pixels[:] = np.rint(small * STEPS)
                filled[entry.start : entry.start + entry.count] = _shows(pixels > -STEPS)
                data.write(pixels.data)
            if case_classes is not None:
                entry = map_of[case.id]
                chosen = case_classes[entry.first : entry.first + entry.count]
                labelled = shrink_classes(chosen, image_size=image_size, canvas=canvas)
                tumour[entry.start : entry.start + entry.count] = _shows(labelled > 0)
                classes.write(labelled.data)
            on_case(case.id)
    raise_all(problems)
    medians = {
        modality: Scale(median(item.low for item in items), median(item.high for item in items))
        for modality, items in scales.items()
        if items
    }
    write_json(
        folder / INDEX_FILE,
        {
            "modalities": [modality for modality in dataset.modalities if scales[modality]],
            "scales": {modality: asdict(scale) for modality, scale in medians.items()},
            "entries": [asdict(entry) for entry in entries],
            "filled": filled.tolist(),
            "cases": [case.id for case in cases],
            **({"background": dataset.background} if dataset.background != "auto" else {}),
            **_described(maps, tumour),
        },
    )
    return open_store(folder)


def no_room_for_slices(folder: Path, needed: float) -> list[AttclError]:
    """Return a problem if so many bytes of training slices cannot be written into a folder."""
    return lack_of_room(folder, needed, "training slices", flag="--output")


def remove_caches(folder: Path) -> None:
    """Remove the slices that a finished run in this folder does not need any more."""
    for name in (TRAINING_FOLDER, VALIDATION_FOLDER):
        remove_files(folder / name, (INDEX_FILE, DATA_FILE, LABELS_FILE))


def is_store(folder: Path) -> bool:
    """Return whether the folder holds all that `build` writes; the index is written last."""
    return (folder / INDEX_FILE).is_file()


def open_store(folder: Path) -> SliceStore:
    """Open what `build` wrote.

    Raises:
        AttclError: a file is missing or damaged, or the files do not fit each other.
    """
    index = validated(
        _IndexDocument,
        read_json(folder / INDEX_FILE, most=MOST_INDEX_BYTES),
        name=folder / INDEX_FILE,
        expected="the index of training slices",
        hint=_MADE_AGAIN,
        code="slices-damaged",
    )
    data = _memory_map(folder / DATA_FILE, np.int16, _AXES)
    labels = None
    if index.segmentations and (folder / LABELS_FILE).is_file():  # packed slices leave them behind
        labels = _memory_map(folder / LABELS_FILE, np.uint8, _AXES)
    store = SliceStore(
        data=data,
        entries=tuple(it.entry() for it in index.entries),
        filled=np.array(index.filled, dtype=bool),
        modalities=index.modalities,
        scales={name: Scale(scale.low, scale.high) for name, scale in index.scales.items()},
        trained_on=index.cases,
        labels=labels,
        segmentations=() if labels is None else tuple(it.entry() for it in index.segmentations),
        tumour=np.array(index.tumour, dtype=bool),
        background=index.background,
    )
    rows = sum(entry.count for entry in store.entries)
    fits = rows == len(data) == len(store.filled) and _in_order(store.entries)
    if labels is not None:
        own = sum(entry.count for entry in store.segmentations)
        fits = fits and own == len(labels) == len(store.tumour) and _in_order(store.segmentations)
        fits = fits and labels.shape[1:] == data.shape[1:]
    if not fits:
        raise AttclError(
            f"{folder}: {INDEX_FILE} is of other slices than {DATA_FILE}, expected as many as it lists",
            _MADE_AGAIN,
            code="slices-damaged",
        )
    return store


def _in_order(entries: Sequence[Entry]) -> bool:
    """Return whether each volume begins where the one before it ends."""
    row = 0
    for entry in entries:
        if entry.start != row:
            return False
        row += entry.count
    return True


def _memory_map(path: Path, dtype: type[np.generic], axes: int) -> Array:
    """Open the array in a .npy file of ours without reading it.

    Raises:
        AttclError: it is missing, damaged or of another kind.
    """
    try:
        array: Array = np.load(path, mmap_mode="r")
    except (AttclError, MemoryError):
        raise
    except Exception as error:  # numpy raises what it likes on a damaged header
        raise AttclError(
            f"{path}: not readable ({error}), expected training slices",
            _MADE_AGAIN,
            code="slices-damaged",
        ) from error
    if array.dtype != dtype or array.ndim != axes or not array.size:
        shape = "x".join(map(str, array.shape))
        raise AttclError(
            f"{path}: {shape} numbers of type {array.dtype}, expected slices of {np.dtype(dtype)}",
            _MADE_AGAIN,
            code="slices-damaged",
        )
    return array


def _squares(data: Array, rows: Array, corners: Array | None, side: int, *, beyond: int) -> Array:
    """Cut squares out of stored slices; nothing else of them is read from the memory map.

    Args:
        data: (N, S, S).
        rows: (B, K) int64; the K of a line have one corner.
        corners: (B, 2) int64, the upper left (y, x) of the squares; None: whole slices.
        side: of the squares, in pixels.
        beyond: value of what lies outside the slice.

    Returns:
        (B, K, S, S) of the type of `data`; S is `side` with corners.
    """
    if corners is None:
        return data[rows]
    out = np.full((*rows.shape, side, side), beyond, dtype=data.dtype)
    height, width = data.shape[1:]
    for index, (top, left) in enumerate(corners):
        y, x = (
            slice(*np.clip((first, first + side), 0, edge))
            for first, edge in ((top, height), (left, width))
        )
        here = np.s_[y.start - top : y.stop - top, x.start - left : x.stop - left]
        for place, row in enumerate(rows[index]):
            out[index, place][here] = data[row, y, x]
    return out


def notes_of_canvas(
    dataset: Dataset, cases: Iterable[Case], *, image_size: int, canvas: int
) -> list[str]:
    """Return a note if a smaller canvas would hold all slices, so that networks would see more detail; [] otherwise.

    Reads headers, up to that of the first case that needs the canvas.

    Args:
        dataset: the dataset of the cases.
        cases: the cases.
        image_size: edge of the slices that networks see, in pixels.
        canvas: edge that slices are padded to before they are averaged down, in voxels; a multiple of `image_size`.
    """
    largest = 0
    if canvas > image_size:
        for case in cases:
            first = dataset.paths(case, next(iter(case.files)))
            _, height, width = volumes.read_grid(first).axial_shape
            largest = max(largest, height, width)
            if largest > canvas - image_size:
                return []
    if not largest:
        return []
    fitting = fitting_canvas(largest, image_size)
    kept = fitting // image_size
    return [
        f"slices have at most {largest}x{largest} voxels, and are padded to {canvas}x{canvas}: a pixel of the network "
        f"is the mean of {canvas // image_size}x{canvas // image_size} voxels; --set canvas={fitting} makes it "
        + ("one voxel" if kept == 1 else f"that of {kept}x{kept}")
    ]


def fitting_canvas(side: int, image_size: int) -> int:
    """Return the smallest canvas, a multiple of `image_size`, that holds slices of a side."""
    return -(-side // image_size) * image_size


def _plan_rows(
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    image_size: int,
    canvas: int,
    labels: bool,
    span: Span,
) -> tuple[list[Entry], list[Entry], list[AttclError]]:
    """Return the place of each volume, the place of each label map, and what does not fit."""
    problems: list[AttclError] = []
    entries: list[Entry] = []
    rows = 0
    for case in cases:
        for modality in dataset.modalities:
            if modality not in case.files:
                continue
            depth, height, width = volumes.read_grid(dataset.paths(case, modality)).axial_shape
            if max(height, width) > canvas:
                size = fitting_canvas(max(height, width), image_size)
                problems.append(
                    AttclError(
                        f"{dataset.paths(case, modality)[0]}: axial slices of {height}x{width} voxels, "
                        f"expected at most {canvas}x{canvas}",
                        f"train with --set canvas={size}",
                        code="slices-larger-than-canvas",
                    )
                )
            chosen = intensities.training_slices(depth) if span == "middle" else range(depth)
            entries.append(Entry(case.id, modality, rows, len(chosen), chosen.start))
            rows += len(chosen)
    segmented = [case for case in cases if labels and case.segmentation]
    spans = {entry.case: entry for entry in entries}
    maps: list[Entry] = []
    for case in segmented:
        like = spans[case.id]
        start = maps[-1].start + maps[-1].count if maps else 0
        maps.append(Entry(case.id, SEGMENTATION, start, like.count, like.first))
    return entries, maps, problems


def _load(
    dataset: Dataset, case: Case, seen: Mapping[Path, State], *, labelled: bool
) -> tuple[volumes.CaseImages, Array | None]:
    """Return the volumes of a case, and its classes if it is `labelled`.

    Raises:
        AttclError: a file cannot be read, or has changed since its rows were planned.
    """
    with require_unchanged(seen):
        images = volumes.load_case(
            {modality: dataset.paths(case, modality) for modality in case.files},
            background=dataset.background,
        )
        return images, _classes(dataset, case) if labelled else None


def _files_of(dataset: Dataset, case: Case) -> Iterator[Path]:
    for name in case.files:
        yield from dataset.paths(case, name)
    yield from (dataset.root / file for file in case.segmentation)


@contextmanager
def _npy_file(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Open a .npy file of this shape for its rows to be appended; all its room is taken at once.

    A writable memory map would do as well, but its pages count as the process' memory until they are written back, and
    a full disk would kill the process.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with appended(path, size=_NPY_HEADER + size) as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield file
        file.truncate()


def _shows(pixels: Array) -> Array:
    """Return which slices have any such pixel: (N, S, S) bool -> (N,) bool."""
    value: Array = np.any(pixels, axis=(1, 2))
    return value


def _described(maps: Sequence[Entry], tumour: Array) -> dict[str, Any]:
    """Return the entries of the index about label maps; {} if there are none."""
    if not maps:
        return {}
    return {
        "segmentations": [asdict(entry) for entry in maps],
        "tumour": tumour.tolist(),
    }


def _classes(dataset: Dataset, case: Case) -> Array:
    """Return the label map of a case as classes: (D, H, W) uint8.

    Raises:
        AttclError: it is unreadable, not on the images' grid, or has labels of no BraTS release.
    """
    paths = dataset.paths(case, SEGMENTATION)
    image = dataset.paths(case, next(iter(case.files)))
    labels = label_maps.load_labels(paths, beside=image)
    strange = sorted(set(np.unique(labels).tolist()) - set(KNOWN))
    if strange:
        raise AttclError(
            f"{paths[0]}: label {strange[0]}, expected the labels of BraTS: 0, 1, 2, 3 or 4",
            "rename the labels, or remove the segmentation",
            code="label-values-unknown",
        )
    return to_classes(labels, *CONVENTIONS.values())
