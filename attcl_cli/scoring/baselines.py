"""The quantile-matched copy: the intensities of another modality, distributed as the target's are elsewhere.

Needs the volumes of other patients, which are read once. The baselines that need nothing but the case itself are in
`rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import Dataset
from attcl_cli.data.intensities import Array, own_scale
from attcl_cli.prefetch import read_ahead
from attcl_cli.progress import SILENT, Progress

MOST_PATIENTS = 50  # whose volumes are read
LEVELS = np.linspace(*intensities.PERCENTILES, 397)  # percentiles, every quarter of a per cent


@dataclass(frozen=True, eq=False)
class Quantiles:
    """How intensities are distributed in the brains of some patients.

    Attributes:
        patients: case -> its patient, of all cases of the dataset.
        tables: modality -> patient -> the quantiles at `LEVELS` of a volume in its own window, from 0 to 1.
    """

    patients: Mapping[str, str]
    tables: Mapping[str, Mapping[str, Array]]

    def of_others(self, case: str, modality: str) -> Array | None:
        """Return the mean quantiles of a modality over the patients that this case is not of; None without any."""
        own = self.patients[case]
        others = [
            table for patient, table in self.tables.get(modality, {}).items() if patient != own
        ]
        return np.mean(others, axis=0) if others else None


def measure_quantiles(
    dataset: Dataset,
    modalities: Sequence[str],
    *,
    num_workers: int = 2,
    progress: Progress = SILENT,
) -> Quantiles:
    """Read the volumes of at most `MOST_PATIENTS` patients, one case of each, spread over the dataset.

    Args:
        dataset: the complete dataset.
        modalities: those to read.
        num_workers: cases that are read ahead.
        progress: counts the cases.

    Raises:
        AttclError: a file cannot be read.
    """
    first = {case.patient: case for case in reversed(dataset.cases)}
    step = -(-len(first) // MOST_PATIENTS)
    cases = [first[patient] for patient in sorted(first)[::step]]
    tables: dict[str, dict[str, Array]] = {name: {} for name in modalities}
    load = partial(volumes.load, background=dataset.background)
    with progress.bar(len(cases), "quantiles") as bar:
        read = read_ahead(
            lambda case: {
                name: quantiles_of(load(dataset.paths(case, name)).data)
                for name in modalities
                if name in case.files
            },
            cases,
            depth=num_workers,
        )
        for case, future in read:
            for name, table in future.result().items():
                if table is not None:
                    tables[name][case.patient] = table
            bar(case.id)
    return Quantiles({case.id: case.patient for case in dataset.cases}, tables)


def quantiles_of(data: Array) -> Array | None:
    """Return the quantiles at `LEVELS` of the voxels that are not 0, scaled to [0, 1]; None without contrast."""
    scale = own_scale(data, data != 0)
    if scale is None:
        return None
    value: Array = (np.percentile(data[data != 0], LEVELS) - scale.low) / (scale.high - scale.low)
    return value


def matched_copy(source: Array, target: Array) -> Array:
    """Map the quantiles of a source to those of the target modality.

    Args:
        source: (D, H, W) intensities; 0 is background.
        target: the quantiles at `LEVELS` of the target modality.

    Returns:
        (D, H, W) float32 in [0, 1]; what lies beyond the source's outermost levels has their values, the background is
        0. A source without contrast gives zeros: its noise would become an image.
    """
    brain = source != 0
    copied = np.zeros(source.shape, np.float32)
    if own_scale(source, brain) is not None:
        inside = source[brain]
        copied[brain] = np.interp(inside, np.percentile(inside, LEVELS), target)
    return copied
