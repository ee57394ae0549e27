"""Slices as feature networks see them, their features on disk, and the distances between sets of them.

A file a volume: memory does not grow with the dataset, and features of real volumes serve the next run.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from attcl_cli.data import intensities
from attcl_cli.data.intensities import Array
from attcl_cli.files import read_json, write_json, write_whole
from attcl_cli.scoring import metrics

FEW_IMAGES = 2048  # the length of Inception's features: fewer images have a singular covariance
KERNEL_DISTANCES = ("kid", "kd-effnet")
KERNEL_IMAGES = 5_000  # drawn of each side where there are more
SLICE_POLICY = "slices at 20 to 80 % of the height, 8 bit, window of the real volume's 0.5 and 99.5 percentiles"


class Embedding(Protocol):
    """A feature network: slices (B, 1, H, W) float32 in [0, 1] -> (B, dim) float32 on the CPU."""

    name: str
    sha256: str
    dim: int

    def __call__(self, slices: Any) -> Any:
        """The features of each slice."""


def shown_slices(brain: Array) -> Array:
    """The indices of the slices that networks see: the training slices that show any brain, (N,)."""
    middle = np.array(intensities.training_slices(len(brain)))
    return middle[brain[middle].any(axis=(1, 2))]


def grey(image: Array, scale: intensities.Scale, brain: Array, indices: Array) -> Array:
    """Slices in a window, 0 outside the brain: (N, H, W) uint8, as a PNG would hold them."""
    unit = metrics.to_unit(image[indices], scale.low, scale.high)
    return to_bytes(np.where(brain[indices], unit, 0))


def to_bytes(unit: Array) -> Array:
    """[0, 1] -> uint8."""
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def batches(slices: Array, size: int) -> Iterator[torch.Tensor]:
    """(N, H, W) uint8 -> tensors (B, 1, H, W) float32 in [0, 1], B at most `size`."""
    for start in range(0, len(slices), size):
        yield torch.from_numpy(slices[start : start + size].astype(np.float32) / 255)[:, None]


@dataclass
class FeatureStore:
    """Features of real and generated slices.

    Attributes:
        embed: the network.
        folder: features of generated slices, and what belongs together; the caller removes it.
        cache: features of real slices, named by what they were made of.
        batch_size: slices the network sees at once.
    """

    embed: Embedding
    folder: Path
    cache: Path
    batch_size: int = 32
    _count: int = field(default=0, init=False)

    def add(self, origin: Mapping[str, str], real: Array, made: Array) -> None:
        """Embeds the slices of a volume and of its prediction, (N, H, W) uint8 each; `origin` says what they are."""
        truth = self.cache / f"{_digest(self.embed.sha256, real)}.npy"
        prediction = self.folder / f"{self._count:07d}.npy"
        if not truth.exists():
            self._embed(truth, real)
        self._embed(prediction, made)
        write_json(prediction.with_suffix(".json"), {**origin, "real": str(truth)})
        self._count += 1

    def distances(
        self,
        names: Sequence[str],
        groups_of: Callable[[str, str], Sequence[str]],
        seed: int,
    ) -> dict[tuple[str, str], tuple[int, dict[str, float]]]:
        """The distances between real and generated slices, group by group.

        Args:
            names: which of `fid`, `fd-effnet` and `KERNEL_DISTANCES`.
            groups_of: (source, modality) -> the groups that such a volume counts in.
            seed: draws the slices of KID where there are too many.

        Returns:
            (group, prediction) -> number of generated slices, name -> distance; NaN for fewer than two slices.
        """
        groups: dict[tuple[str, str], list[tuple[Path, Path]]] = {}
        for note in sorted(self.folder.glob("*.json")):
            origin = read_json(note)
            for group in groups_of(origin["source"], origin["modality"]):
                pair = (Path(origin["real"]), note.with_suffix(".npy"))
                groups.setdefault((group, origin["prediction"]), []).append(pair)
        return {key: self._distances(names, pairs, seed) for key, pairs in groups.items()}

    def _distances(
        self, names: Sequence[str], pairs: Sequence[tuple[Path, Path]], seed: int
    ) -> tuple[int, dict[str, float]]:
        sides = [[pair[side] for pair in pairs] for side in (0, 1)]
        count = sum(_length(path) for path in sides[1])
        found: dict[str, float] = {}
        for name in names:
            if count < 2:  # noqa: PLR2004 - no covariance of one slice
                found[name] = float("nan")
            elif name in KERNEL_DISTANCES:
                found[name] = metrics.kernel_distance(*(_drawn(side, seed) for side in sides))
            else:
                real, made = (self._moments(side) for side in sides)
                found[name] = metrics.frechet_distance(real, made)
        return count, found

    def _moments(self, paths: Sequence[Path]) -> metrics.Moments:
        moments = metrics.Moments(self.embed.dim)
        for path in paths:
            moments.add(np.load(path))
        return moments

    def _embed(self, path: Path, slices: Array) -> None:
        parts = [self.embed(block).numpy() for block in batches(slices, self.batch_size)]
        whole = np.concatenate(parts) if parts else np.empty((0, self.embed.dim), np.float32)
        stream = io.BytesIO()
        np.save(stream, whole)
        write_whole(path, stream.getvalue())


def _digest(network: str, slices: Array) -> str:
    content = hashlib.sha256(f"{network} {slices.shape}".encode())
    content.update(slices.tobytes())
    return content.hexdigest()[:32]


def _length(path: Path) -> int:
    return len(np.load(path, mmap_mode="r"))


def _drawn(paths: Sequence[Path], seed: int) -> Array:
    """At most `KERNEL_IMAGES` rows of all files, drawn without repetition."""
    starts = np.cumsum([0, *(_length(path) for path in paths)])
    total = int(starts[-1])
    rows = np.arange(total)
    if total > KERNEL_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(total, KERNEL_IMAGES, replace=False))
    return np.concatenate(
        [
            np.load(path)[rows[(rows >= start) & (rows < stop)] - start]
            for path, start, stop in zip(paths, starts, starts[1:], strict=False)
        ]
    )
