"""Brain-tumour cases made from anatomy and MR physics: four modalities and their segmentation.

A voxel holds fractions of tissues (`phantom_anatomy`), and its signal is the sum of theirs (`phantom_scanner`), as in
BrainWeb (Kwan 1999). Writing cases in a dataset's layout, and choosing how many to make, is left to others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from attcl_cli.data.phantom_anatomy import (
    FIELD_MM,
    HEAD_ORIGIN_MM,
    anatomy,
    draw_fields,
    draw_patient,
)
from attcl_cli.data.phantom_scanner import scan


@dataclass(frozen=True)
class PhantomCase:
    """One patient.

    Attributes:
        id: `Phantom_00000`.
        images: Modality -> (X, Y, Z) int16 scanner units, x to the patient's left, y to posterior,
            z to superior; 0 outside the brain, positive inside.
        segmentation: (X, Y, Z) uint8: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing.
        affine: (4, 4) float64, from voxels to RAS+ millimetres.
    """

    id: str
    images: dict[str, NDArray[np.int16]]
    segmentation: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_case(
    index: int,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] | None = None,
    voxel_mm: float = 1.0,
    tumour: bool = True,
) -> PhantomCase:
    """Make patient `index` of cohort `seed`; the same arguments give the same bytes.

    Args:
        index: Number of the patient, from 0. Patients do not depend on each other.
        seed: Number of the cohort, from 0.
        shape: Voxels; None covers 240 x 240 x 155 mm. Any other shows the middle of that field.
        voxel_mm: Edge of the cubic voxels. Larger ones show the same head, coarser.
        tumour: False makes the same patient healthy.

    Raises:
        ValueError: `index`, `seed`, `shape` or `voxel_mm` is out of range.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index {index}, seed {seed}: both must be 0 or more")
    if not voxel_mm > 0:
        raise ValueError(f"voxel_mm {voxel_mm}: must be above 0")
    size = shape or tuple(math.ceil(f / voxel_mm) for f in FIELD_MM)
    if len(size) != len(FIELD_MM) or min(size) < 1:
        raise ValueError(f"shape {shape}: must be three numbers of 1 or more")

    # A stream a purpose: the voxel size, which changes how much noise is drawn, changes no anatomy.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(4)]
    patient = draw_patient(streams[0])
    if not tumour:
        patient = replace(patient, tumour=None)
    fields = draw_fields(streams[1])

    # Centre of the first voxel, in mm from that of a BraTS volume's first voxel.
    first = [(f - 1 - (n - 1) * voxel_mm) / 2 for f, n in zip(FIELD_MM, size, strict=True)]
    axes = [
        (first[i] + voxel_mm * np.arange(size[i]) - HEAD_ORIGIN_MM[i]).astype(np.float32)
        for i in range(3)
    ]
    inside, fractions, labels = anatomy(patient, fields, axes, voxel_mm)
    images = scan(fractions, inside, fields, axes, voxel_mm, streams[2], streams[3])
    segmentation = np.zeros(size, np.uint8)
    segmentation[inside] = labels
    affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -first[0], FIELD_MM[1] - 1 - first[1], first[2]
    return PhantomCase(f"Phantom_{index:05d}", images, segmentation, affine)
