"""When not to trust a volume: how far a case's sources are from the training volumes, and how doubt goes with error.

The numbers of a volume are `data.volume_statistics`; the disagreement of passes is measured by `inference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attcl_cli.completion.jobs import Doubt, Places
from attcl_cli.completion.preparation import fit
from attcl_cli.data import intensities, volume_statistics
from attcl_cli.data.dataset import Case, read_side_car
from attcl_cli.data.intensities import Array, Scale
from attcl_cli.methods.settings import Settings

Vectors = Mapping[str, tuple[float, ...]]
"""Modality or case -> the vector of a volume (`data.volume_statistics.NAMES`)."""

_FEWEST_CASES = 5  # training volumes of a modality, without which nothing is said about it
_MAD_TO_SD = 1.4826  # of a normal distribution
# Deviations below these are no reason for doubt, however alike the training volumes are.
_FLOORS = {"quantile": 0.02, "log": 0.05, "share": 0.005}


@dataclass(frozen=True)
class Distance:
    """How far a case is from the training cases.

    Attributes:
        value: the RMS of its robust z-scores.
        bound: the greatest such value of a training case, measured against the others.
    """

    value: float
    bound: float

    @property
    def far(self) -> bool:
        """Whether the case is farther than every training case."""
        return self.value > self.bound


@dataclass(frozen=True)
class DoubtAndError:
    """A point of a calibration plot: what was said of a volume, and how wrong it is."""

    case: str
    target: str
    doubt: Doubt
    error: float


def vector_of(
    data: Array, brain: Array, scale: Scale, settings: Settings
) -> tuple[float, ...] | None:
    """Return the vector of a source as training measured those of its volumes; None if it shows almost no brain.

    Args:
        data: (D, H, W) intensities.
        brain: (D, H, W) bool.
        scale: the intensities that become -1 and 1.
        settings: of the weights.
    """
    span = intensities.training_slices(len(data))
    pairs = span.start + volume_statistics.sampled_pairs(min(span.stop, len(data)) - span.start)
    rows = pairs.ravel()
    slices = fit(intensities.normalise(data[rows], brain[rows], scale), settings, stride=1)
    return volume_statistics.describe(slices.reshape(*pairs.shape, *slices.shape[1:]), len(span))


def distance(vectors: Vectors, training: Mapping[str, Vectors]) -> Distance | None:
    """Return how far the sources of a case are from the training volumes of their modalities.

    Each number of a vector becomes a robust z-score: its difference from the training median in units of the median
    absolute deviation, of which there is a least one. The bound is the greatest distance of a training case that is
    left out (of those of the sources that it has).

    Args:
        vectors: source -> its vector.
        training: modality -> training case -> vector.

    Returns:
        The distance; None if there are too few training volumes of every source.
    """
    known = {
        name: training[name]
        for name in vectors
        if name in training
        and len(training[name]) >= _FEWEST_CASES
        and all(len(vector) == len(volume_statistics.NAMES) for vector in training[name].values())
    }
    if not known:
        return None
    scores = [_scores(vectors[name], np.array([*cases.values()])) for name, cases in known.items()]
    left_out: dict[str, list[Array]] = {}
    for cases in known.values():
        matrix = np.array([*cases.values()])
        for row, case in enumerate(cases):
            scored = _scores(matrix[row], np.delete(matrix, row, axis=0))
            left_out.setdefault(case, []).append(scored)
    return Distance(_rms(scores), max(map(_rms, left_out.values())))


def calibration(places: Places, errors: Mapping[tuple[str, str], float]) -> list[DoubtAndError]:
    """Return what the side-cars of a completed folder say of volumes whose error is known.

    Args:
        places: the dataset, and the folder that was completed.
        errors: (case, target) -> the error of the volume, such as 1 - SSIM in the brain.

    Returns:
        One per volume that was made and has an error, in the order of the dataset.
    """
    points = []
    for case in places.dataset.cases:
        for target in places.dataset.missing(case):
            doubt = read_doubt(places, case, target)
            if doubt is not None and (case.id, target) in errors:
                points.append(DoubtAndError(case.id, target, doubt, errors[case.id, target]))
    return points


def read_doubt(places: Places, case: Case, target: str) -> Doubt | None:
    """Return what the side-car of a volume says of doubt; None if there is no volume or nothing is said."""
    return doubt_in(read_side_car(places.side_car(case, target)))


def doubt_in(side_car: Mapping[str, Any]) -> Doubt | None:
    """Return what a side-car says of doubt; None if it says nothing."""
    document = side_car.get("doubt")
    if not isinstance(document, dict):
        return None
    return Doubt(document.get("disagreement"), document.get("distance"), document.get("far"))


def _scores(vector: tuple[float, ...] | Array, training: Array) -> Array:
    """Return robust z-scores: (F,) against (cases, F) -> (F,)."""
    middle = np.median(training, axis=0)
    spread = _MAD_TO_SD * np.median(np.abs(training - middle), axis=0)
    floors = np.array([_FLOORS[name.split()[0]] for name in volume_statistics.NAMES])
    scores: Array = (np.asarray(vector) - middle) / np.maximum(spread, floors)
    return scores


def _rms(scores: list[Array]) -> float:
    return float(np.sqrt(np.mean(np.concatenate(scores) ** 2)))
