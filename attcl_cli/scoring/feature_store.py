"""Slices as feature networks see them, their features on disk, and the distances between sets of them.

Keeps a file per volume: memory does not grow with the dataset, and features of real volumes serve the next run. Which
volumes belong together is left to the caller, what a distance is to `metrics`.
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
from attcl_cli.documents import Document, PathText, validated
from attcl_cli.errors import AttclError
from attcl_cli.files import read_json, write_json, write_whole
from attcl_cli.scoring import formulas
from attcl_cli.scoring.metrics import METRICS


class Embedding(Protocol):
    """A feature network: slices (B, 1, H, W) float32 in [0, 1] -> (B, dim) float32 on the CPU."""

    name: str
    sha256: str
    dim: int

    def __call__(self, slices: Any) -> Any:
        """Return the features of each slice."""


class _Origin(Document):
    """What the slices of a prediction belong to."""

    source: str
    modality: str
    prediction: str
    real: PathText | None


@dataclass(frozen=True)
class FeatureSet:
    """The features of many slices, a file per volume; reads of them what a distance needs.

    Attributes:
        paths: the files, (n, dim) each.
        dim: the length of a slice's features.
        seed: draws slices if not all are to be used.
    """

    paths: Sequence[Path]
    dim: int
    seed: int = 0

    def __len__(self) -> int:
        """Return the number of slices."""
        return sum(_length(path) for path in self.paths)

    def moments(self) -> formulas.Moments:
        """Return mean and covariance of all features."""
        moments = formulas.Moments(self.dim)
        for path in self.paths:
            moments.add(_features(path))
        return moments

    def drawn(self, most: int) -> Array:
        """Return all features (N, dim), or `most` of them, drawn without repetition."""
        starts = np.cumsum([0, *(_length(path) for path in self.paths)])
        total = int(starts[-1])
        rows = np.arange(total)
        if total > most:
            rows = np.sort(np.random.default_rng(self.seed).choice(total, most, replace=False))
        return np.concatenate(
            [
                _features(path)[rows[(rows >= start) & (rows < stop)] - start]
                for path, start, stop in zip(self.paths, starts, starts[1:], strict=False)
            ]
        )


@dataclass(frozen=True, eq=False)
class Embedded:
    """The features of a prediction's slices, on their way to the store.

    Attributes:
        origin: what the slices are: `source`, `modality` and `prediction`.
        real: name in the cache and features (N, dim) of the real slices; None as in `FeatureStore.add`.
        predicted: features (N, dim) of the predicted ones.
    """

    origin: Mapping[str, str]
    real: tuple[str, Array] | None
    predicted: Array


@dataclass
class FeatureStore:
    """Features of real and of predicted slices.

    Attributes:
        embed: the network.
        folder: features of predicted slices, and what they belong to; the caller removes it.
        cache: features of real slices, named by the content of the slices.
        batch_size: slices that the network sees at once.
    """

    embed: Embedding
    folder: Path
    cache: Path
    batch_size: int = 32
    _count: int = field(default=0, init=False)

    def add(self, origin: Mapping[str, str], real: Array | None, predicted: Array) -> None:
        """Embed the slices of a volume and of its prediction.

        Args:
            origin: what they are: `source`, `modality` and `prediction`.
            real: (N, H, W) uint8; None for one more prediction of a volume whose real slices were added already.
            predicted: (N, H, W) uint8.
        """
        truth = None
        if real is not None:
            truth = self.cache / _name_of(self.embed, real)
            if not truth.exists():
                _write(truth, _embed(self.embed, real, self.batch_size))
        self._note(origin, truth, _embed(self.embed, predicted, self.batch_size))

    def keep(self, item: Embedded) -> None:
        """Take the features that a `FeatureCollector` elsewhere made, as if the slices were added here."""
        truth = None
        if item.real is not None:
            name, features = item.real
            truth = self.cache / name
            if not truth.exists():
                _write(truth, features)
        self._note(item.origin, truth, item.predicted)

    def distances(
        self,
        metrics: Sequence[str],
        groups_of: Callable[[str, str], Sequence[str]],
        seed: int,
    ) -> dict[tuple[str, str], tuple[int, dict[str, float]]]:
        """Return the distances between real and predicted slices, group by group.

        Args:
            metrics: names of metrics that see sets.
            groups_of: (source, modality) -> the groups that such a volume counts in.
            seed: draws the slices of KID if there are too many.

        Returns:
            (group, prediction) -> number of predicted slices, metric -> distance; NaN for fewer than two slices.
        """
        groups: dict[tuple[str, str], tuple[list[Path], list[Path]]] = {}
        for note in sorted(self.folder.glob("*.json")):
            origin = validated(
                _Origin,
                read_json(note),
                name=note,
                expected="a note of this run",
                hint="run attcl score again",
                code="invalid-note",
            )
            for group in groups_of(origin.source, origin.modality):
                files = groups.setdefault((group, origin.prediction), ([], []))
                files[0].extend([Path(origin.real)] if origin.real else [])
                files[1].append(note.with_suffix(".npy"))
        values: dict[tuple[str, str], tuple[int, dict[str, float]]] = {}
        for key, files_of_group in groups.items():
            real, predicted = (FeatureSet(paths, self.embed.dim, seed) for paths in files_of_group)
            count = len(predicted)
            enough = min(count, len(real)) > 1
            values[key] = (
                count,
                {
                    name: METRICS[name].function(real, predicted) if enough else float("nan")
                    for name in metrics
                },
            )
        return values

    def _note(self, origin: Mapping[str, str], truth: Path | None, predicted: Array) -> None:
        """Write the features of a prediction, and where those of its real slices are."""
        prediction = self.folder / f"{self._count:07d}.npy"
        _write(prediction, predicted)
        note = {**origin, "real": None if truth is None else str(truth)}
        write_json(prediction.with_suffix(".json"), note)
        self._count += 1


@dataclass
class FeatureCollector:
    """Embeds slices as a `FeatureStore` does, and writes nothing: for a store in another process.

    Attributes:
        embed: the network.
        cache: features of real slices that earlier runs left; it is only read.
        batch_size: slices that the network sees at once.

    It remembers the features of all real slices that it saw: make a new one for the next few cases.
    """

    embed: Embedding
    cache: Path
    batch_size: int = 32
    _items: list[Embedded] = field(default_factory=list, init=False)
    _real: dict[str, Array] = field(default_factory=dict, init=False)

    def add(self, origin: Mapping[str, str], real: Array | None, predicted: Array) -> None:
        """Embed the slices of a volume and of its prediction; arguments as of `FeatureStore.add`."""
        known = None if real is None else self._features_of(real)
        features = _embed(self.embed, predicted, self.batch_size)
        self._items.append(Embedded(dict(origin), known, features))

    def take(self) -> list[Embedded]:
        """Return what was added since the last call."""
        items, self._items = self._items, []
        return items

    def _features_of(self, real: Array) -> tuple[str, Array]:
        name = _name_of(self.embed, real)
        if name not in self._real:
            path = self.cache / name
            self._real[name] = (
                np.array(_features(path))
                if path.exists()
                else _embed(self.embed, real, self.batch_size)
            )
        return name, self._real[name]


def shown_slices(brain: Array) -> Array:
    """Return the indices of the slices that networks see, (N,): the training slices that show any brain."""
    middle = np.array(intensities.training_slices(len(brain)))
    value: Array = middle[brain[middle].any(axis=(1, 2))]
    return value


def to_bytes(unit: Array) -> Array:
    """Scale [0, 1] to uint8, as a PNG would hold it."""
    value: Array = np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return value


def batches(slices: Array, size: int) -> Iterator[torch.Tensor]:
    """Yield (N, H, W) uint8 as tensors (B, 1, H, W) float32 in [0, 1], B at most `size`."""
    for start in range(0, len(slices), size):
        yield torch.from_numpy(slices[start : start + size].astype(np.float32) / 255)[:, None]


def _embed(network: Embedding, slices: Array, batch_size: int) -> Array:
    """Return the features of slices (N, H, W) uint8, (N, dim) float32."""
    parts = [network(block).numpy() for block in batches(slices, batch_size)]
    return np.concatenate(parts) if parts else np.empty((0, network.dim), np.float32)


def _write(path: Path, features: Array) -> None:
    stream = io.BytesIO()
    np.save(stream, features)
    write_whole(path, stream.getvalue())


def _name_of(network: Embedding, slices: Array) -> str:
    """Return the name that the features of real slices have in the cache."""
    content = hashlib.sha256(f"{network.sha256} {slices.shape}".encode())
    content.update(slices.tobytes())
    return f"{content.hexdigest()[:32]}.npy"


def _length(path: Path) -> int:
    return len(_features(path))


def _features(path: Path) -> Array:
    """Return the features in a file, (n, dim), memory-mapped.

    Raises:
        AttclError: the file is damaged; those of real slices are kept between runs.
    """
    try:
        features: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise AttclError(
            f"{path}: not readable as features ({error}), expected what attcl score wrote",
            "remove it, and run attcl score again: it is made anew",
            code="features-damaged",
        ) from error
    return features
