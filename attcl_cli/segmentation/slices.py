"""Cases read and normalised for a segmenter, its training slices on disk, and the sampler that draws from them.

Memory does not grow with the dataset: the operating system keeps in memory what is used. Knows no network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, Strict
from torch import Tensor

from attcl_cli.confined import make_parent
from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.data.intensities import Array
from attcl_cli.data.labels import Convention, shrink_classes, to_classes
from attcl_cli.data.slices import INDEX_FILE, MOST_INDEX_BYTES, STEPS, no_room_for_slices
from attcl_cli.data.volumes import Grid
from attcl_cli.documents import Count, Document, Items, validated
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import appended, read_json, write_json
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Sample, Size

_Length = Annotated[int, Field(gt=0, lt=2**40)]
_IMAGES, _CLASSES = "images.int16", "classes.uint8"
CACHE_FILES = (INDEX_FILE, _IMAGES, _CLASSES)
"""What `build` writes into a folder."""

_GAIN, _SHIFT = 0.1, 0.1  # of augmentation: intensities in [-1, 1] times 1 +- .1, plus 0 +- .1


@dataclass(frozen=True, eq=False)
class Loaded:
    """One case as the network sees it.

    Attributes:
        sample: the case and its files.
        images: (D, C, S, S) float32 in [-1, 1], background -1; a missing channel is 0 everywhere.
        brain: (D, H, W) bool, non-zero in any channel.
        truth: (D, H, W) uint8 classes.
        grid: of the first image; a prediction is written on it.
    """

    sample: Sample
    images: Array
    brain: Array
    truth: Array
    grid: Grid


def load(sample: Sample, size: Size, convention: Convention) -> Loaded:
    """Read a case, each channel clipped at its own 0.5 and 99.5 percentiles in the brain, to [-1, 1].

    Raises:
        AttclError: a file cannot be read, or the grids differ.
    """
    channels = [(str(place), paths) for place, paths in enumerate(sample.channels)]
    case = volumes.load_case(
        {name: paths for name, paths in channels if paths}, background=sample.background
    )
    depth = len(case.brain)
    images = np.zeros((depth, len(channels), size.image, size.image), dtype=np.float32)
    if max(case.brain.shape[1:]) > size.canvas:
        height, width = case.brain.shape[1:]
        raise AttclError(
            f"{next(filter(None, sample.channels))[0]}: axial slices of {height}x{width} voxels, "
            f"expected at most {size.canvas}x{size.canvas}, as when it was checked",
            "wait until nothing writes there, then run the same command again",
            code="slices-larger-than-canvas",
        )
    for place, (name, paths) in enumerate(channels):
        if paths:
            padded = intensities.pad(case.normalised(name), (size.canvas, size.canvas))
            images[:, place] = intensities.shrink(padded, size.factor)
    first = next(paths for paths in sample.channels if paths)
    truth = to_classes(label_maps.load_labels(sample.segmentation, beside=first), convention)
    grid = next(iter(case.volumes.values())).grid
    return Loaded(sample, images, case.brain, truth, grid)


@dataclass(frozen=True)
class CaseRows:
    """One case in a store: `count` slices from row `start` on, all that show brain."""

    case: str
    start: int
    count: int

    @property
    def rows(self) -> slice:
        """Return the rows as a slice of the store's arrays."""
        return slice(self.start, self.start + self.count)


class _RowsDocument(Document):
    case: str
    start: Count
    count: Count


class _IndexDocument(Document):
    shape: Annotated[tuple[_Length, _Length, _Length, _Length], Strict(strict=False)]
    entries: Items[_RowsDocument]
    tumour: Items[bool]


@dataclass(frozen=True, eq=False)
class SegmentationStore:
    """Slices with their classes.

    Attributes:
        images: (N, C, S, S) int16, memory-mapped; [-1, 1] times `slices.STEPS`.
        classes: (N, S, S) uint8, memory-mapped.
        entries: the cases, in the order of the rows.
        tumour: (N,) bool, set if the slice shows any tumour.
    """

    images: Array
    classes: Array
    entries: tuple[CaseRows, ...]
    tumour: Array

    @property
    def cases(self) -> tuple[str, ...]:
        """Return the ids of the cases."""
        return tuple(entry.case for entry in self.entries)


def build(
    samples: Sequence[Sample],
    folder: Path,
    *,
    size: Size,
    convention: Convention,
    on_case: Callable[[str], None] = lambda _: None,
    workers: int = 2,
) -> SegmentationStore:
    """Write all slices of the samples that show brain into `folder`, and open them.

    Raises:
        AttclError: a volume cannot be used, or the disk is too full; all cases are reported.
    """
    _require_room(samples, folder, size)
    make_parent(folder / INDEX_FILE)
    (folder / INDEX_FILE).unlink(missing_ok=True)  # an old index would vouch for unfinished files
    problems: list[AttclError] = []
    entries: list[CaseRows] = []
    tumour: list[bool] = []
    # Rows are appended: how many slices show brain is known only when they are read.
    with appended(folder / _IMAGES) as images, appended(folder / _CLASSES) as classes:
        for sample, future in read_ahead(
            lambda item: load(item, size, convention), samples, depth=workers
        ):
            try:
                case = future.result()
            except AttclError as error:
                problems.append(error)
                continue
            with_brain = case.brain.any(axis=(1, 2))
            small = shrink_classes(
                case.truth[with_brain], image_size=size.image, canvas=size.canvas
            )
            entries.append(CaseRows(sample.case, len(tumour), len(small)))
            tumour += [bool(slice_.any()) for slice_ in small]
            images.write(np.rint(case.images[with_brain] * STEPS).astype(np.int16).tobytes())
            classes.write(small.tobytes())
            on_case(sample.case)
    raise_all(problems)
    write_json(
        folder / INDEX_FILE,
        {
            "shape": [len(tumour), len(samples[0].channels), size.image, size.image],
            "entries": [asdict(entry) for entry in entries],
            "tumour": tumour,
        },
    )
    return open_store(folder)


def open_store(folder: Path) -> SegmentationStore:
    """Open what `build` wrote.

    Raises:
        AttclError: a file is missing or damaged, or the files do not fit each other.
    """
    hint = "remove the folder, and the slices are made again"
    index = validated(
        _IndexDocument,
        read_json(folder / INDEX_FILE, most=MOST_INDEX_BYTES),
        name=folder / INDEX_FILE,
        expected="the index of a segmenter's slices",
        hint=hint,
        code="slices-damaged",
    )
    rows, channels, height, width = index.shape
    starts = itertools.accumulate((it.count for it in index.entries), initial=0)
    fits = rows == len(index.tumour) == sum(it.count for it in index.entries) and all(
        it.start == start for it, start in zip(index.entries, starts, strict=False)
    )
    sizes = {_IMAGES: 2 * rows * channels * height * width, _CLASSES: rows * height * width}
    for name, size in sizes.items():
        if not fits or not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise AttclError(
                f"{folder / name}: of other slices than {INDEX_FILE}, expected {size:,} bytes",
                hint,
                code="slices-damaged",
            )
    return SegmentationStore(
        images=np.memmap(
            folder / _IMAGES, dtype=np.int16, mode="r", shape=(rows, channels, height, width)
        ),
        classes=np.memmap(folder / _CLASSES, dtype=np.uint8, mode="r", shape=(rows, height, width)),
        entries=tuple(CaseRows(it.case, it.start, it.count) for it in index.entries),
        tumour=np.array(index.tumour, dtype=bool),
    )


@dataclass(frozen=True)
class SliceBatch:
    """B slices as they lie on disk, and how each is to be varied.

    Attributes:
        images: (B, C, S, S) int16.
        classes: (B, S, S) uint8.
        mirrored: (B,) bool, left and right exchanged.
        gain: (B, C, 1, 1) float32.
        shift: (B, C, 1, 1) float32.
    """

    images: Tensor
    classes: Tensor
    mirrored: Tensor
    gain: Tensor
    shift: Tensor

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.images)

    def to(self, device: torch.device) -> SliceBatch:
        """Return the batch on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> SliceBatch:
        """Return the batch in memory that a GPU fetches by itself; torch's `DataLoader` asks for it."""
        return self._each(Tensor.pin_memory)

    def part(self, chosen: slice) -> SliceBatch:
        """Return some of the slices, as a part of this batch."""
        return self._each(lambda value: value[chosen])

    def varied(self) -> tuple[Tensor, Tensor]:
        """Return images (B, C, S, S) float32 and classes (B, 1, S, S) int64, augmented where the batch lies."""
        images = self.images.float() / STEPS
        classes = self.classes.long()[:, None]
        mirrored = self.mirrored[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images)
        classes = torch.where(mirrored, classes.flip(-1), classes)
        # Neither background nor a missing channel carries an intensity that could vary.
        present = (images > -1) & images.any(dim=-1, keepdim=True).any(dim=-2, keepdim=True)
        changed = (images * self.gain + self.shift).clamp(-1, 1)
        return torch.where(present, changed, images), classes

    def _each(self, change: Callable[[Tensor], Tensor]) -> SliceBatch:
        return SliceBatch(*(change(getattr(self, item.name)) for item in fields(self)))


class SliceSampler:
    """Draws batches as a function of (seed, step), so that a resumed run sees what an undisturbed one does."""

    def __init__(
        self,
        store: SegmentationStore,
        *,
        batch_size: int,
        seed: int,
        tumour_share: float,
        augment: bool,
    ) -> None:
        """Take `tumour_share` of each batch from slices with tumour; `augment` mirrors and varies intensities."""
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.tumour_share, self.augment = tumour_share, augment
        self._tumour = np.flatnonzero(store.tumour)

    def batch(self, step: int) -> SliceBatch:
        """Return the batch of a step: a share from slices with tumour, the rest from all."""
        rng = np.random.default_rng((self.seed, step))
        size, channels = self.batch_size, self.store.images.shape[1]
        rows = rng.integers(len(self.store.images), size=size)
        chosen = round(size * self.tumour_share)
        if len(self._tumour):
            # Spread over the batch: several processes have a part of it each.
            rows[np.arange(chosen) * size // max(chosen, 1)] = rng.choice(self._tumour, size=chosen)
        mirrored = rng.random(size) < 0.5  # noqa: PLR2004 - half of them
        gain = rng.uniform(1 - _GAIN, 1 + _GAIN, (size, channels, 1, 1))
        shift = rng.uniform(-_SHIFT, _SHIFT, (size, channels, 1, 1))
        if not self.augment:
            mirrored[:], gain[:], shift[:] = False, 1, 0
        return SliceBatch(
            torch.from_numpy(self.store.images[rows]),
            torch.from_numpy(self.store.classes[rows]),
            torch.from_numpy(mirrored),
            torch.from_numpy(gain.astype(np.float32)),
            torch.from_numpy(shift.astype(np.float32)),
        )


def _require_room(samples: Sequence[Sample], folder: Path, size: Size) -> None:
    needed = 0
    for sample in samples:
        first = next(paths for paths in sample.channels if paths)
        depth = volumes.read_grid(first).axial_shape[0]
        needed += depth * size.image**2 * (2 * len(sample.channels) + 1)
    raise_all(no_room_for_slices(folder, needed))
