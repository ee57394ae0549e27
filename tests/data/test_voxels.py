"""The figures of a volume, against what arrays made by hand must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ellipsoids import MM, textured

from attcl_cli.data.voxels import describe


def test_volume_and_field_are_in_millilitres():
    record, _ = describe(textured(0).astype(np.int16), MM, "auto", path=Path("x"))
    assert record.field_ml == pytest.approx(40 * 48 * 44 * 27 / 1000)
    assert record.volume_ml == pytest.approx(4 / 3 * np.pi * 5.4 * 6.6 * 6.0, rel=0.02)


def test_percentiles_are_less_the_background():
    clean, _ = describe(textured(0).astype(np.int16), MM, "auto", path=Path("x"))
    moved, _ = describe((textured(0) - 500).astype(np.int16), MM, "auto", path=Path("x"))
    assert moved.value == -500
    assert moved.percentiles == clean.percentiles
    assert moved.volume_ml == clean.volume_ml


def test_without_a_spacing_there_are_no_millilitres():
    record, _ = describe(textured(0).astype(np.uint16), None, "auto", path=Path("x"))
    assert (record.field_ml, record.volume_ml) == (None, None)


def fine(profile: dict[float, int]) -> np.ndarray:
    """An ellipsoid of 2 mm voxels whose brightness depends on the depth in mm alone."""
    z, y, x = np.indices((60, 72, 66))
    radius = np.sqrt(((z - 29.5) / 27) ** 2 + ((y - 35.5) / 33) ** 2 + ((x - 32.5) / 30) ** 2)
    depth = (1 - radius) * 60
    data = np.zeros(depth.shape, np.int16)
    for least, brightness in profile.items():
        data[depth > least] = brightness
    return data


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({0: 600}, 1.0),
        ({0: 300, 6: 600}, 1.0),  # grey matter around white, or partial volume
        ({0: 900, 6: 600}, 1.0),  # fluid around the brain, T2
        ({0: 800, 6: 100, 14: 600}, 100 / 600),  # scalp, skull, brain
    ],
)
def test_the_rim_is_dark_under_a_scalp_alone(profile, expected):
    record, _ = describe(fine(profile), (2.0, 2.0, 2.0), "auto", path=Path("x"))
    assert record.rim == pytest.approx(expected)
