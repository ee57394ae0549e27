"""Label maps: values through slopes, number types, narrowing, empty maps, and whether one lies on its case's grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attcl_cli.data import label_maps
from attcl_cli.data.label_maps import LabelRecord
from attcl_cli.data.record_cache import Records
from attcl_cli.errors import AttclError

LPS = np.array([[-2.0, 0, 0, 90], [0, -3, 0, 120], [0, 0, 5, -70], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)
LABELS = np.resize([0, 0, 1, 2, 4, 0, 2], SHAPE)


@pytest.fixture
def image(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    return write_nifti(tmp_path / "image.nii.gz", np.arange(120).reshape(SHAPE).astype("i2"))


def scaled(path: Path, values: np.ndarray, dtype: type, *, slope: float, inter: float = 0) -> Path:
    """Store the nearest number of the type, as a program that saves floats under a header of integers does."""
    stored = np.rint((values - inter) / slope).astype(dtype)
    nifti = nib.Nifti1Image(stored, LPS)
    nifti.header.set_slope_inter(slope, inter)
    nib.save(nifti, path)
    header = nib.load(path).dataobj
    assert (header.slope, header.inter) == pytest.approx((slope, inter))
    return path


def refused(paths: list[Path], code: str, match: str, **options: object) -> AttclError:
    with pytest.raises(AttclError, match=match) as caught:
        label_maps.load_labels(paths, **options)
    assert caught.value.code == code
    assert str(paths[0]) in caught.value.message
    return caught.value


# --- number types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"]
)
def test_whole_numbers_are_labels_whatever_their_type(dtype, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "seg.nii.gz", LABELS.astype(dtype))
    labels = label_maps.load_labels([path])
    assert labels.dtype == np.int16
    assert np.array_equal(labels, LABELS.transpose(2, 1, 0))


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_a_map_of_zeros_is_a_case_without_tumour(dtype, tmp_path, image, write_nifti):
    path = write_nifti(tmp_path / "seg.nii.gz", np.zeros(SHAPE, dtype))
    assert not label_maps.load_labels([path], beside=[image]).any()
    assert label_maps.check_labels([path], [image]) is None


@pytest.mark.parametrize(
    ("dtype", "value", "named"),
    [
        ("u2", 32768, "32768"),
        ("i4", 65537, "65537"),  # 1, if only its last 16 bits were kept
        ("u4", 2**32 - 1, "4294967295"),
        ("u4", 2**24 + 1, "16777217"),  # no float32 is this number
        ("i8", 2**40 + 2, "1099511627778"),
        ("u8", 2**64 - 1, "18446744073709551615"),
        ("f4", 65540.0, "65540"),
        ("f8", 1e20, "100000000000000000000"),
        ("i1", -1, "-1"),
        ("i8", -65535, "-65535"),
        ("f4", -3.0, "-3"),
    ],
)
def test_a_value_that_int16_does_not_hold_is_named(
    dtype, value, named, tmp_path, image, write_nifti
):
    values = LABELS.astype(dtype)
    values[0, 0, 0] = value
    path = write_nifti(tmp_path / "seg.nii.gz", values)
    refused([path], "label-out-of-range", f"label {named}, expected 0 to 32767")
    if dtype != "i1":
        assert label_maps.check_labels([path], [image]) is not None


def test_the_largest_label_is_read(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "seg.nii.gz", np.full(SHAPE, 32767, "u4"))
    assert label_maps.load_labels([path]).max() == 32767


# --- values through a slope -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [
        (np.uint8, 4 / 255, 0),  # as nibabel writes floats under a header of uint8
        (np.int16, 4 / 65534, 2),
        (np.uint8, 0.3, 0),  # 0.9, 2.1 and 3.9
        (np.uint8, 0.9, 0),  # 0.9, 1.8 and 3.6
        (np.uint8, -4 / 255, 4),
        (np.uint8, 1.0, -1),
        (np.uint8, 2.0, -4),
        (np.int16, 0.5, 0),
    ],
)
def test_labels_come_back_through_a_slope(dtype, slope, inter, tmp_path):
    values = LABELS if slope < 1 or inter == -1 else LABELS // 2 * 2
    path = scaled(tmp_path / "seg.nii.gz", values, dtype, slope=slope, inter=inter)
    assert np.array_equal(label_maps.load_labels([path]), values.transpose(2, 1, 0))


def test_labels_come_back_as_nibabel_scales_them(tmp_path):
    nifti = nib.Nifti1Image(LABELS.astype(np.float64), LPS)
    nifti.header.set_data_dtype(np.uint8)
    nib.save(nifti, tmp_path / "seg.nii.gz")
    stored = np.unique(nib.load(tmp_path / "seg.nii.gz").get_fdata())
    assert stored[1] != 1  # 1.0039: the slope has rounded it
    labels = label_maps.load_labels([tmp_path / "seg.nii.gz"])
    assert np.array_equal(labels, LABELS.transpose(2, 1, 0))


@pytest.mark.parametrize("slope", [1.5, 2.5])
def test_a_step_beyond_1_rounds_nothing(slope, tmp_path):
    path = scaled(tmp_path / "seg.nii.gz", LABELS * slope, np.uint8, slope=slope)
    refused([path], "labels-not-whole", f"label .*, stored with slope {slope}")


@pytest.mark.parametrize("value", [1.37, 2.5])
def test_interpolated_labels_are_refused_also_through_a_slope(value, tmp_path):
    values = np.where(LABELS == 1, value, LABELS)
    path = scaled(tmp_path / "seg.nii.gz", values, np.uint8, slope=4 / 255)
    error = refused([path], "labels-not-whole", "stored with slope 0.0157, expected whole numbers")
    assert "nearest neighbours" in error.hint


@pytest.mark.parametrize("value", [0.5, 1.002, np.nan, np.inf, -np.inf])
def test_floats_that_are_no_whole_number_are_counted(value, tmp_path, image, write_nifti):
    values = LABELS.astype(np.float32)
    values[0, 0, :3] = value
    path = write_nifti(tmp_path / "seg.nii.gz", values)
    refused([path], "labels-not-whole", f"label {value:g} in 3 voxels, expected whole numbers")
    assert label_maps.check_labels([path], [image]).code == "labels-not-whole"


def test_a_float_that_is_almost_whole_is_that_number(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "seg.nii.gz", (LABELS + 1e-4).astype(np.float32))
    assert np.array_equal(label_maps.load_labels([path]), LABELS.transpose(2, 1, 0))


# --- labels of no release ---------------------------------------------------------------------------------------------


def figures(path: Path, known: tuple[int, ...], brain: np.ndarray | None = None) -> LabelRecord:
    """Measure through the cache, as the only map of a case; the brain is everywhere unless one is named."""
    mask = np.ones((2, 3, 3), bool) if brain is None else brain
    with Records(path.parent, "case", PurePosixPath(path.name)) as records:
        return label_maps.read_record([path], known, records, [], lambda: mask, "auto")


def counted(path: Path, known: tuple[int, ...]) -> dict[int, int]:
    return figures(path, known).beyond


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4"])
def test_labels_beyond_some_are_counted(dtype, tmp_path, write_nifti):
    values = LABELS.astype(dtype)
    values[0, 0, :2], values[1, 1, 1] = 100, 9
    path = write_nifti(tmp_path / "seg.nii.gz", values)
    assert counted(path, (0, 1, 2, 3, 4)) == {9: 1, 100: 2}
    assert counted(path, (0, 1, 2, 4, 9, 100)) == {}
    assert counted(path, (0, 1, 2)) == {4: np.count_nonzero(values == 4), 9: 1, 100: 2}


def test_counts_of_an_unchanged_map_are_kept(tmp_path, write_nifti, monkeypatch):
    path = write_nifti(tmp_path / "seg.nii.gz", np.where(LABELS == 4, 255, LABELS).astype("u1"))
    counts = counted(path, (0, 1, 2, 3, 4)), counted(path, (0, 1, 2, 255))
    assert counts == ({255: np.count_nonzero(LABELS == 4)}, {})
    monkeypatch.setattr(label_maps.volumes, "read_exactly", None)
    assert (counted(path, (0, 1, 2, 3, 4)), counted(path, (0, 1, 2, 255))) == counts


@pytest.mark.parametrize(
    "beyond", [[], 1, {"x": 1}, {"9": "1"}, {"9": 0}, {"-1": 2}, pytest.param(None, id="none")]
)
def test_counts_that_something_else_wrote_are_counted_again(beyond, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "seg.nii.gz", LABELS.astype("u1"))
    with Records(path.parent, "case", PurePosixPath(path.name)) as records:
        key = records.key_of("labels", label_maps._VERSION, [path], "auto", 0, 1)
        records.add(key, {"beyond": beyond, "labelled": 1, "outside": 0})
    assert set(counted(path, (0, 1))) == {2, 4}


@pytest.mark.parametrize("step", [1, 3, 4])
def test_labels_off_a_coarse_brain_are_counted_with_a_sample_of_tolerance(
    step, tmp_path, write_nifti
):
    """On a line: the brain begins at voxel 20."""
    brain = np.zeros((1, 1, 40), bool)
    brain[..., 20:] = True
    labels = np.zeros((40, 1, 1), "u1")
    labels[10:30] = 1
    path = write_nifti(tmp_path / "seg.nii.gz", labels)
    record = figures(path, (0, 1), brain[..., ::step])
    assert record.labelled == 20
    assert 10 - 2 * step <= record.outside <= 10 - step + 1


def test_an_empty_map_asks_for_no_brain(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "seg.nii.gz", np.zeros(SHAPE, "u1"))
    with Records(path.parent, "case", PurePosixPath(path.name)) as records:
        record = label_maps.read_record([path], (0, 1), records, [], lambda: 1 / 0, "auto")
    assert record == LabelRecord({}, 0, 0)


# --- the case's grid --------------------------------------------------------------------------------------------------


def moved(by_mm: float) -> np.ndarray:
    affine = np.array(nib.Nifti1Image(np.zeros(SHAPE, "u1"), LPS).affine)
    affine[0, 3] += by_mm
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "found"),
    [
        (SHAPE, moved(1), "affine off by 1 mm"),
        (SHAPE, np.diag([4.0, 4, 4, 1]), "affine off by"),
        (SHAPE, LPS * np.array([[-1], [1], [1], [1]]), "affine off by"),  # left and right exchanged
        ((6, 5, 3), LPS, "shape 6x5x3 against 6x5x4"),
    ],
)
def test_a_map_on_another_grid_is_refused_with_the_image_named(
    shape, affine, found, tmp_path, write_nifti
):
    image = write_nifti(tmp_path / "image.nii.gz", np.arange(120).reshape(SHAPE), affine=LPS)
    path = write_nifti(tmp_path / "seg.nii.gz", np.resize(LABELS, shape), affine=affine)
    expected = f"{found}.* of .*image.nii.gz, expected one grid for all files of a case"
    refused([path], "grids-differ", expected, beside=[image])
    for check in (label_maps.off_grid, label_maps.check_labels):
        assert check([path], [image]).code == "grids-differ"


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 4), (1, 1)])
@pytest.mark.parametrize("dtype", ["f4", "u1"])
def test_a_header_that_says_the_same_in_other_words_fits(codes, dtype, tmp_path, write_nifti):
    image = write_nifti(tmp_path / "image.nii.gz", np.arange(120).reshape(SHAPE), affine=LPS)
    path = write_nifti(tmp_path / "seg.nii.gz", LABELS.astype(dtype), affine=LPS, codes=codes)
    labels = label_maps.load_labels([path], beside=[image])
    assert np.array_equal(labels, LABELS.transpose(2, 1, 0))


def test_rounding_of_the_affine_is_no_difference(tmp_path, image, write_nifti):
    affine = nib.load(image).affine
    affine[:3, 3] += 0.001
    path = write_nifti(tmp_path / "seg.nii.gz", LABELS.astype("u1"), affine=affine)
    assert label_maps.off_grid([path], [image]) is None


def test_a_volume_lies_beside_png_slices_of_its_size(tmp_path, write_nifti):
    slices = [tmp_path / f"{number}.png" for number in range(4)]
    for path in slices:
        Image.fromarray(np.zeros((5, 6), np.uint8)).save(path)
    fits = write_nifti(tmp_path / "a.nii.gz", LABELS.astype("u1"), affine=LPS)
    assert label_maps.off_grid([fits], slices) is None
    short = write_nifti(tmp_path / "b.nii.gz", LABELS[:-1].astype("u1"), affine=LPS)
    problem = label_maps.off_grid([short], slices)
    assert "slices of 4x5x5 against 4x5x6" in problem.message


def test_png_slices_are_labels(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, slice_ in zip(paths, LABELS.transpose(2, 1, 0), strict=True):
        Image.fromarray(slice_.astype(np.uint8)).save(path)
    assert np.array_equal(label_maps.load_labels(paths, beside=paths), LABELS.transpose(2, 1, 0))


def test_what_is_wrong_with_either_file_is_said(tmp_path, image, write_nifti):
    missing = tmp_path / "missing.nii.gz"
    assert label_maps.off_grid([missing], [image]).code == "file-missing"
    assert label_maps.check_labels([image], [missing]).code == "file-missing"


def test_usual_maps_are_checked_by_their_headers_alone(tmp_path, image, write_nifti, monkeypatch):
    path = write_nifti(tmp_path / "seg.nii.gz", LABELS.astype("u1"))
    monkeypatch.setattr(Path, "read_bytes", None)
    assert label_maps.check_labels([path], [image]) is None


@pytest.mark.cohort
def test_every_label_map_of_real_patients_is_read_beside_each_image(cohort):
    maps = sorted(cohort.glob("*/*/*seg.nii.gz"))
    assert len(maps) > 20
    for path in maps:
        others = sorted(item for item in path.parent.glob("*.nii.gz") if item != path)
        assert len(others) == 4
        for other in others:
            assert label_maps.off_grid([path], [other]) is None
        values = set(np.unique(label_maps.load_labels([path], beside=[others[0]])).tolist())
        assert values <= {0, 1, 2, 3, 4} and len(values) > 1
