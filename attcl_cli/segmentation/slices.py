"""What a segmenter sees: cases read and normalised, training slices on disk, and the sampler that draws from them.

Memory does not grow with the dataset: the operating system keeps in memory what is used. Knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attcl_cli.data import intensities, volumes
from attcl_cli.data.intensities import Array
from attcl_cli.data.labels import CLASSES, Convention, to_classes
from attcl_cli.data.slices import INDEX_FILE, STEPS
from attcl_cli.data.volumes import Grid
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import free_bytes, read_json, write_json
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Sample

_IMAGES, _CLASSES = "images.int16", "classes.uint8"
_GAIN, _SHIFT = 0.1, 0.1  # of augmentation: intensities in [-1, 1] times 1 +- .1, plus 0 +- .1


@dataclass(frozen=True)
class Size:
    """Slices are padded to `canvas` voxels and averaged down to `image` pixels."""

    image: int
    canvas: int

    @property
    def factor(self) -> int:
        """Voxels a pixel."""
        return self.canvas // self.image


@dataclass(frozen=True, eq=False)
class Loaded:
    """One case as the network sees it.

    Attributes:
        sample: which one.
        images: (D, C, S, S) float32 in [-1, 1], background -1; a missing channel is 0 everywhere.
        brain: (D, H, W) bool, non-zero in any channel.
        truth: (D, H, W) uint8 classes.
        grid: where a prediction is written: that of the first image.
    """

    sample: Sample
    images: Array
    brain: Array
    truth: Array
    grid: Grid


def load(sample: Sample, size: Size, convention: Convention) -> Loaded:
    """Reads a case: each channel clipped at its own 0.5 and 99.5 percentiles in the brain, to [-1, 1].

    Raises:
        AttclError: a file cannot be read, or the grids differ.
    """
    channels = [(str(place), paths) for place, paths in enumerate(sample.channels)]
    case = volumes.load_case({name: paths for name, paths in channels if paths})
    depth = len(case.brain)
    images = np.zeros((depth, len(channels), size.image, size.image), dtype=np.float32)
    for place, (name, paths) in enumerate(channels):
        if paths:
            padded = intensities.pad(case.normalised(name), (size.canvas, size.canvas))
            images[:, place] = intensities.shrink(padded, size.factor)
    truth = to_classes(volumes.load_labels(sample.segmentation), convention)
    if truth.shape != case.brain.shape:
        raise AttclError(
            f"{sample.segmentation[0]}: {truth.shape} slices, rows and columns, expected {case.brain.shape}",
            "put the case's own label map there",
        )
    grid = next(iter(case.volumes.values())).grid
    return Loaded(sample, images, case.brain, truth, grid)


def shrink_classes(classes: Array, size: Size) -> Array:
    """(D, H, W) classes -> (D, S, S): padded as images are, then the most frequent class of each block."""
    padded = np.maximum(intensities.pad(classes.astype(np.int8), (size.canvas, size.canvas)), 0)
    if size.factor == 1:
        return padded.astype(np.uint8)
    shares = [
        intensities.shrink((padded == number).astype(np.float32), size.factor)
        for number in range(len(CLASSES))
    ]
    return np.argmax(shares, axis=0).astype(np.uint8)


@dataclass(frozen=True)
class Entry:
    """One case in a store: `count` slices from row `start` on."""

    case: str
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class SegmentationStore:
    """Slices with their classes.

    Attributes:
        images: (N, C, S, S) int16, memory-mapped; [-1, 1] times `slices.STEPS`.
        classes: (N, S, S) uint8, memory-mapped.
        entries: the cases, in the order of the rows.
        tumour: (N,) bool, whether a slice shows any.
    """

    images: Array
    classes: Array
    entries: tuple[Entry, ...]
    tumour: Array

    @property
    def cases(self) -> tuple[str, ...]:
        """The ids of the cases."""
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
    """Writes all slices of the samples that show brain into `folder`, and opens them.

    Raises:
        AttclError: a volume cannot be used, or there is no room on the disk; all cases are told.
    """
    _require_room(samples, folder, size)
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[AttclError] = []
    entries: list[Entry] = []
    tumour: list[bool] = []
    # Rows are appended: how many slices show brain is known only when they are read.
    with (folder / _IMAGES).open("wb") as images, (folder / _CLASSES).open("wb") as classes:
        for sample, future in read_ahead(
            lambda item: load(item, size, convention), samples, depth=workers
        ):
            try:
                case = future.result()
            except AttclError as error:
                problems.append(error)
                continue
            shown = case.brain.any(axis=(1, 2))
            small = shrink_classes(case.truth[shown], size)
            entries.append(Entry(sample.case, len(tumour), len(small)))
            tumour += [bool(slice_.any()) for slice_ in small]
            images.write(np.rint(case.images[shown] * STEPS).astype(np.int16).tobytes())
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


def is_store(folder: Path) -> bool:
    """Whether the folder holds all that `build` writes; the index is written last."""
    return (folder / INDEX_FILE).is_file()


def open_store(folder: Path) -> SegmentationStore:
    """Opens what `build` wrote."""
    index: dict[str, Any] = read_json(folder / INDEX_FILE)
    rows, channels, height, width = index["shape"]
    return SegmentationStore(
        images=np.memmap(
            folder / _IMAGES, dtype=np.int16, mode="r", shape=(rows, channels, height, width)
        ),
        classes=np.memmap(folder / _CLASSES, dtype=np.uint8, mode="r", shape=(rows, height, width)),
        entries=tuple(Entry(**entry) for entry in index["entries"]),
        tumour=np.array(index["tumour"], dtype=bool),
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

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) float32 and classes (B, 1, S, S) int64 on a device, augmented there."""
        images = self.images.to(device, non_blocking=True).float() / STEPS
        classes = self.classes.to(device, non_blocking=True).long()[:, None]
        mirrored = self.mirrored.to(device)[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images)
        classes = torch.where(mirrored, classes.flip(-1), classes)
        # Neither background nor a missing channel carries an intensity that could vary.
        there = (images > -1) & images.any(dim=-1, keepdim=True).any(dim=-2, keepdim=True)
        varied = (images * self.gain.to(device) + self.shift.to(device)).clamp(-1, 1)
        return torch.where(there, varied, images), classes


class SliceSampler:
    """Draws batches; a batch is a function of (seed, step), so a resumed run sees what an undisturbed one does."""

    def __init__(
        self,
        store: SegmentationStore,
        *,
        batch_size: int,
        seed: int,
        tumour_share: float,
        augment: bool,
    ) -> None:
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.tumour_share, self.augment = tumour_share, augment
        self._tumour = np.flatnonzero(store.tumour)

    def batch(self, step: int) -> SliceBatch:
        """The batch of a step: a share from slices with tumour, the rest from all."""
        rng = np.random.default_rng((self.seed, step))
        size, channels = self.batch_size, self.store.images.shape[1]
        rows = rng.integers(len(self.store.images), size=size)
        chosen = round(size * self.tumour_share)
        if len(self._tumour):
            rows[:chosen] = rng.choice(self._tumour, size=chosen)
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
    free = free_bytes(folder)
    if free < needed:
        raise AttclError(
            f"{folder}: {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB for training slices",
            "free some space or choose another --output",
        )
