"""Label maps of BraTS releases -> classes -> whole tumour, tumour core, enhancing tumour, and back; and smaller maps.

Releases are data (`CONVENTIONS`). Knows numbers in arrays; files, networks and scores are left to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attcl_cli.data import intensities
from attcl_cli.errors import AttclError, counted, some

BACKGROUND, NCR, ED, ET = range(4)
"""The classes that networks predict, whatever values a release uses: background, necrotic and non-enhancing
core, oedema, enhancing tumour."""

CLASSES = ("background", "ncr", "ed", "et")

REGIONS: Mapping[str, tuple[int, ...]] = {"WT": (NCR, ED, ET), "TC": (NCR, ET), "ET": (ET,)}
"""Whole tumour, tumour core, enhancing tumour: the classes that each is made of (Menze 2015)."""


@dataclass(frozen=True)
class Convention:
    """How a release writes the classes.

    Attributes:
        name: the release.
        values: the label value of each class, in the order of `CLASSES`.
    """

    name: str
    values: tuple[int, int, int, int]

    def __str__(self) -> str:
        """Return the release and its values, for messages."""
        return f"BraTS {self.name} ({', '.join(str(value) for value in self.values)})"


CONVENTIONS: Mapping[str, Convention] = {
    "2021": Convention("2021", (0, 1, 2, 4)),  # and all before it
    "2023": Convention("2023", (0, 1, 2, 3)),
}
# Other public label maps of brains stay within these values: the challenge of 2012 to 2015 (Menze 2015, 0 to 4),
# BraTS 2024 after treatment (de Verdier 2024, arXiv 2405.18368, with the resection cavity), the Medical Segmentation
# Decathlon (Antonelli 2022, 0 to 3), and maps of one kind of lesion (0 and 1).
KNOWN = sorted({value for item in CONVENTIONS.values() for value in item.values})
_MASK = 255  # what image programs save for 1


def convention_of(values: Iterable[int], *, default: str = "2021") -> Convention:
    """Return the convention of a whole dataset, from all the values that its label maps hold.

    Args:
        values: of all cases together: a case without enhancing tumour fits both conventions.
        default: the convention to take if all values fit both.

    Raises:
        AttclError: the values are of several conventions, or of none.
    """
    present = set(values)
    fitting = [item for item in CONVENTIONS.values() if present <= set(item.values)]
    if not fitting:
        known = " or ".join(str(item) for item in CONVENTIONS.values())
        raise AttclError(
            f"label values {some(sorted(present))}: of no release that is known, expected {known}",
            "give all label maps the values of one release",
            code="labels-of-no-release",
        )
    return fitting[0] if len(fitting) == 1 else CONVENTIONS[default]


def unknown_labels(path: Path, counts: Mapping[int, int]) -> AttclError:
    """Return the error that a label map has values of no known release.

    Args:
        path: of the label map.
        counts: value that is none of `KNOWN` -> voxels that have it; at least one.
    """
    named = f"{'label' if len(counts) == 1 else 'labels'} {some(sorted(counts))}"
    rename = "rename the labels, or move the label map away; or take the data as they are: --force"
    return AttclError(
        f"{path}: {named} in {counted(sum(counts.values()), 'voxel')}, expected the labels of BraTS: 0, 1, 2, 3 or 4",
        f"is it a mask of 0 and 255? save it as 0 and 1; otherwise {rename}"
        if _MASK in counts
        else rename,
        code="label-values-unknown",
    )


def to_classes(labels: NDArray[np.integer], *conventions: Convention) -> NDArray[np.uint8]:
    """Return label values as classes, any shape; a value of none of these conventions is background.

    Conventions differ in the value of the enhancing tumour alone, so that several may be given if it is not known
    which one a map follows.
    """
    classes = np.zeros(labels.shape, dtype=np.uint8)
    numbers = {value: number for item in conventions for number, value in enumerate(item.values)}
    for value, number in numbers.items():
        classes[labels == value] = number
    return classes


def to_labels(classes: NDArray[np.integer], convention: Convention) -> NDArray[np.uint8]:
    """Return classes as label values of a convention, any shape."""
    value: NDArray[np.uint8] = np.asarray(convention.values, dtype=np.uint8)[classes]
    return value


def mask_of(classes: NDArray[np.integer], region: str) -> NDArray[np.bool_]:
    """Return the mask of a region of `REGIONS`, any shape."""
    return np.isin(classes, REGIONS[region])


def shrink_classes(
    classes: NDArray[np.integer], *, image_size: int, canvas: int
) -> NDArray[np.uint8]:
    """Return smaller label maps: (..., H, W) classes -> (..., image_size, image_size).

    They are padded to `canvas` as images are; each pixel then gets the most frequent class of its block, of equally
    frequent ones the lowest.
    """
    padded = np.maximum(intensities.pad(classes.astype(np.int8), (canvas, canvas)), BACKGROUND)
    factor = canvas // image_size
    if factor == 1:
        return padded.astype(np.uint8)
    shares = [
        intensities.shrink((padded == number).astype(np.float32), factor)
        for number in range(len(CLASSES))
    ]
    value: NDArray[np.uint8] = np.argmax(shares, axis=0).astype(np.uint8)
    return value
