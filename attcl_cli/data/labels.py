"""Label maps of BraTS releases -> classes -> whole tumour, tumour core, enhancing tumour, and back.

Releases are data (`CONVENTIONS`). Knows numbers in arrays: no file, no network, no score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attcl_cli.errors import AttclError, some

BACKGROUND, NCR, ED, ET = range(4)
"""The classes that networks predict, whatever values a release's files hold: background, necrotic and non-enhancing
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
        return f"BraTS {self.name} ({', '.join(str(value) for value in self.values)})"


CONVENTIONS: Mapping[str, Convention] = {
    "2021": Convention("2021", (0, 1, 2, 4)),  # and all before it
    "2023": Convention("2023", (0, 1, 2, 3)),
}
KNOWN = sorted({value for item in CONVENTIONS.values() for value in item.values})


def convention_of(values: Iterable[int], *, default: str = "2021") -> Convention:
    """The convention of a whole dataset, from all the values that its label maps hold.

    Args:
        values: of all cases together: one without enhancing tumour does not tell.
        default: what is taken where no case tells.

    Raises:
        AttclError: the values are of several conventions, or of none.
    """
    found = set(values)
    fitting = [item for item in CONVENTIONS.values() if found <= set(item.values)]
    if not fitting:
        known = " or ".join(str(item) for item in CONVENTIONS.values())
        raise AttclError(
            f"label values {some(sorted(found))}: of no release that is known, expected {known}",
            "give all label maps the values of one release",
        )
    return fitting[0] if len(fitting) == 1 else CONVENTIONS[default]


def to_classes(labels: NDArray[np.integer], convention: Convention) -> NDArray[np.uint8]:
    """Label values -> classes, any shape; what the convention lacks is background (`convention_of` refuses it)."""
    classes = np.zeros(labels.shape, dtype=np.uint8)
    for number, value in enumerate(convention.values):
        classes[labels == value] = number
    return classes


def to_labels(classes: NDArray[np.integer], convention: Convention) -> NDArray[np.uint8]:
    """Classes -> label values of a convention, any shape."""
    return np.asarray(convention.values, dtype=np.uint8)[classes]


def mask_of(classes: NDArray[np.integer], region: str) -> NDArray[np.bool_]:
    """Where a region of `REGIONS` is, any shape."""
    return np.isin(classes, REGIONS[region])
