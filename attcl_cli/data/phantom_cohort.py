"""Phantom cases written as a dataset, in any layout: for the demo, the tests and the benchmarks.

What a phantom looks like is left to `phantom`, how files are named to `layouts`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from attcl_cli.data import intensities, volumes
from attcl_cli.data.channels import write_channels
from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.layouts import LAYOUTS, SEGMENTATION

DESCRIPTION = "attcl phantom, simulated"
"""What every phantom volume says of itself: the NIfTI field `descrip`, or the text `Description` of a PNG slice."""

# Layout -> the id of the n-th phantom there, and the folder that its template begins with.
_NAMES: Mapping[str, tuple[str, str]] = {
    "brats": ("Phantom_{:05d}", ""),
    "brats2023": ("Phantom-GLI-{:05d}-000", ""),
    "bids": ("sub-phantom{:05d}", "sub-phantom{:05d}/"),
    "slices": ("Phantom{:05d}", ""),
    "ucsf": ("Phantom-{:05d}", ""),
    "nnunet": ("PHANTOM_{:05d}", "imagesTr/"),
    "folders": ("phantom{:05d}", ""),
}
_LABEL_FOLDERS = {"nnunet": "labelsTr/"}
COHORT_LAYOUTS = tuple(_NAMES)
"""The layouts that `write_cohort` writes."""


def write_cohort(
    root: Path,
    *,
    cases: int,
    layout: str = "brats",
    seed: int = 0,
    voxel_mm: float = 1.0,
    missing: Sequence[Sequence[str]] = (),
    workers: int | None = None,
    on_case: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write a cohort of phantoms and return the ids of the cases.

    Args:
        root: the dataset's folder; made if it does not exist.
        cases: how many.
        layout: one of `COHORT_LAYOUTS`. PNG slices are 16-bit.
        seed: the same seed gives the same bytes.
        voxel_mm: voxel edge; 1 is BraTS's 240x240x155, 4 a small one for tests.
        missing: modalities that are not written, one list per case, repeated cyclically; empty: all are written.
        workers: threads; default the processors.
        on_case: called with the id of each case that is done.
    """
    naming = LAYOUTS[layout]
    if naming.channel_file:
        write_channels(root / naming.channel_file, naming.tokens, cases=cases)
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count()) as pool:
        jobs = [
            pool.submit(
                _write_case,
                root,
                index,
                layout,
                seed,
                voxel_mm,
                tuple(missing[index % len(missing)]) if missing else (),
            )
            for index in range(cases)
        ]
        ids = []
        for job in jobs:
            ids.append(job.result())
            on_case(ids[-1])
    return ids


def is_phantom(dataset: Dataset, case: Case) -> bool:
    """Return whether a case is a phantom: one of its volumes says so (`DESCRIPTION`)."""
    return any(
        volumes.read_description(dataset.paths(case, name)) == DESCRIPTION for name in case.files
    )


def _write_case(
    root: Path, index: int, layout: str, seed: int, voxel_mm: float, missing: Sequence[str]
) -> str:
    from attcl_cli.data import phantom  # noqa: PLC0415 - loads scipy; `is_phantom` is asked by every completion

    case = phantom.make_case(index, seed=seed, voxel_mm=voxel_mm)
    naming = LAYOUTS[layout]
    name, prefix = (text.format(index) for text in _NAMES[layout])
    grid = volumes.new_grid(case.segmentation.shape, case.affine)
    images: dict[str, intensities.Array] = {**case.images, SEGMENTATION: case.segmentation}
    for modality, image in images.items():
        if modality in missing:
            continue
        data = volumes.to_working_order(image, grid).astype(np.float32)
        token = naming.tokens.get(modality, "")
        if naming.sliced:
            grey = volumes.Grid(
                shape=(*data.shape[1:], data.shape[0]), affine=np.eye(4), dtype=np.dtype(np.uint16)
            )
            paths = [
                root / naming.place(case=name, token=token, prefix=prefix, slice_=f"{number:03d}")
                for number in range(len(data))
            ]
            volumes.save(paths, data, grey, description=DESCRIPTION)
        else:
            place = (
                naming.place_label(case=name, prefix=_LABEL_FOLDERS.get(layout, prefix))
                if modality == SEGMENTATION
                else naming.place(case=name, token=token, prefix=prefix)
            )
            volumes.save(
                [root / place],
                data,
                grid,
                description=DESCRIPTION,
            )
    return name
