"""What a page embeds for NiiVue, read back as nibabel reads it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


def embedded(page: Path) -> dict[str, Any]:
    """Return what NiiVue is given by a page; {} if the page has no NiiVue."""
    found = re.search(r'id="niivue-data">(.*?)</script>', page.read_text(encoding="utf-8"))
    document: dict[str, Any] = json.loads(found[1]) if found else {}
    return document


def centre_of_region(document: dict[str, Any], name: str, place: int = 0) -> NDArray[Any]:
    """Return the middle of a region of a panel, x, y, z in mm."""
    (region,) = [each for each in document["panels"][place]["regions"] if each["name"] == name]
    packed = base64.b64decode(document["files"][region["file"]])
    return _centre(nib.Nifti1Image.from_bytes(gzip.decompress(packed)))


def centre_of_labels(path: Path) -> NDArray[Any]:
    """Return the middle of all labels of a label map, x, y, z in mm."""
    return _centre(nib.load(path))


def _centre(image: Any) -> NDArray[Any]:
    inside = np.argwhere(np.asarray(image.dataobj) > 0)
    assert len(inside)
    return nib.affines.apply_affine(image.affine, inside).mean(axis=0)
