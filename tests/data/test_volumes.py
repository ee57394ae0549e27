"""Volumes: orientation, geometry, number types, damage, normalisation and padding with their inverses.

nibabel and Pillow, used directly, are the oracles of what is in a file.
"""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import inv_ornt_aff

from attcl_cli.data import intensities, nifti_files, volumes
from attcl_cli.errors import AttclError

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
LPS = np.array([[-2.0, 0, 0, 90], [0, -3, 0, 120], [0, 0, 5, -70], [0, 0, 0, 1]])


def ramp(shape: tuple[int, int, int] = (6, 5, 4), dtype: str = "int16") -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)


def rewrite(path: Path, raw: bytes) -> Path:
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def raw_of(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


# --- orientation and geometry -----------------------------------------------------------------------------------------


def test_working_order_is_slices_from_the_foot_rows_from_anterior_columns_from_the_right(
    tmp_path, write_nifti
):
    stored = np.zeros((6, 5, 4), np.int16)  # voxel axes run to L, P, S, as in BraTS
    stored[1, 2, 3] = 7
    volume = volumes.load([write_nifti(tmp_path / "a.nii.gz", stored)])
    assert volume.data.shape == (4, 5, 6)
    assert volume.data.dtype == np.float32
    assert volume.data[3, 2, 1] == 7
    assert volume.data.sum() == 7


@pytest.mark.parametrize(
    "orientation", ORIENTATIONS, ids=lambda item: str(item.astype(int).tolist())
)
def test_every_orientation_gives_the_same_working_array_and_is_written_back(
    orientation, tmp_path, write_nifti
):
    original = nib.Nifti1Image(ramp(), LPS)
    turned = original.as_reoriented(orientation)
    assert np.allclose(turned.affine, LPS @ inv_ornt_aff(orientation, (6, 5, 4)))
    path = write_nifti(tmp_path / "a.nii.gz", np.asarray(turned.dataobj), affine=turned.affine)
    volume = volumes.load([path])
    assert np.array_equal(volume.data, ramp().transpose(2, 1, 0))
    assert volumes.read_grid([path]).axial_shape == (4, 5, 6)
    volumes.save([tmp_path / "b.nii.gz"], volume.data, volume.grid, description="")
    written = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(turned.dataobj))
    assert np.array_equal(written.affine, nib.load(path).affine)


def test_an_oblique_volume_takes_the_nearest_orientation(tmp_path, write_nifti):
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = volumes.load([write_nifti(tmp_path / "a.nii.gz", ramp(), affine=turn @ LPS)])
    assert np.array_equal(volume.data, ramp().transpose(2, 1, 0))


def test_files_with_one_header_share_a_grid_that_nobody_can_change(tmp_path, write_nifti):
    first, second, other = (tmp_path / name for name in ("a.nii.gz", "b.nii", "c.nii"))
    write_nifti(first, ramp(), affine=LPS)
    write_nifti(second, ramp() + 1, affine=LPS)
    write_nifti(other, ramp(), affine=2 * LPS)
    grid = volumes.read_grid([first])
    assert volumes.read_grid([second]) is grid
    assert volumes.read_grid([other]) is not grid
    assert grid.differs_from(volumes.read_grid([second])) == ""
    assert "affine off" in grid.differs_from(volumes.read_grid([other]))
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        grid.header["descrip"] = b"changed"
    header = grid.header.copy()
    header["descrip"] = b"changed"
    assert volumes.read_description([first]) != "changed"


def test_no_more_than_some_grids_are_remembered(tmp_path, write_nifti, monkeypatch):
    monkeypatch.setattr(volumes, "_MOST_GRIDS", 2)
    monkeypatch.setattr(volumes, "_grids", {})
    for number in range(5):
        path = write_nifti(tmp_path / "a.nii", ramp(), affine=LPS * (number + 1))
        assert volumes.read_grid([path]).spacing_mm[0] == pytest.approx(2 * (number + 1))
        assert len(volumes._grids) <= 2


def test_spacing_is_in_stored_order_and_mm(tmp_path, write_nifti):
    grid = volumes.read_grid([write_nifti(tmp_path / "a.nii.gz", ramp(), affine=LPS)])
    assert grid.spacing_mm == pytest.approx((2, 3, 5))


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 4), (0, 0), (1, 3)])
def test_geometry_fields_are_kept(ext, image, codes, tmp_path, write_nifti):
    path = write_nifti(tmp_path / f"a{ext}", ramp(), affine=LPS, image=image, codes=codes)
    volume = volumes.load([path])
    volumes.save([tmp_path / f"b{ext}"], volume.data, volume.grid, description="synthetic")
    before, after = nib.load(path), nib.load(tmp_path / f"b{ext}")
    assert type(after) is image
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "qoffset_x"):
        assert np.array_equal(before.header[field], after.header[field]), field
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.get_sform(), after.get_sform())
    assert np.array_equal(np.asarray(after.dataobj), ramp())
    assert bytes(after.header["descrip"]).rstrip(b"\0") == b"synthetic"


@pytest.mark.parametrize("units", [("micron", "msec"), ("unknown", "unknown"), ("mm", "unknown")])
def test_units_are_kept(units, tmp_path, write_nifti):
    volume = volumes.load([write_nifti(tmp_path / "a.nii.gz", ramp(), units=units)])
    volumes.save([tmp_path / "b.nii.gz"], volume.data, volume.grid, description="")
    assert nib.load(tmp_path / "b.nii.gz").header.get_xyzt_units() == units


def test_a_qform_that_says_something_else_than_the_sform_is_kept(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", ramp(), affine=LPS)
    image = nib.load(path)
    image.set_qform(np.diag([-2.0, -3, 5, 1]), code=1)
    nib.save(image, tmp_path / "b.nii.gz")
    volume = volumes.load([tmp_path / "b.nii.gz"])
    volumes.save([tmp_path / "c.nii.gz"], volume.data, volume.grid, description="")
    after = nib.load(tmp_path / "c.nii.gz")
    assert np.allclose(after.get_qform(), np.diag([-2.0, -3, 5, 1]))
    assert np.allclose(after.get_sform(), LPS)


def test_a_long_description_is_cut_and_strange_letters_replaced(tmp_path, write_nifti):
    volume = volumes.load([write_nifti(tmp_path / "a.nii.gz", ramp())])
    volumes.save([tmp_path / "b.nii.gz"], volume.data, volume.grid, description="ä" + "x" * 100)
    text = bytes(nib.load(tmp_path / "b.nii.gz").header["descrip"]).rstrip(b"\0")
    assert text == b"?" + b"x" * 78


def test_the_same_volume_gives_the_same_bytes(tmp_path, write_nifti):
    volume = volumes.load([write_nifti(tmp_path / "a.nii.gz", ramp())])
    for name in ("b.nii.gz", "c.nii.gz"):
        volumes.save([tmp_path / name], volume.data, volume.grid, description="x")
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_extensions_of_the_original_are_not_copied(tmp_path):
    image = nib.Nifti1Image(ramp(), LPS)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient name"))
    nib.save(image, tmp_path / "a.nii.gz")
    volume = volumes.load([tmp_path / "a.nii.gz"])
    volumes.save([tmp_path / "b.nii.gz"], volume.data, volume.grid, description="")
    assert not nib.load(tmp_path / "b.nii.gz").header.extensions
    assert len(nib.load(tmp_path / "a.nii.gz").header.extensions) == 1


@pytest.mark.parametrize(
    ("shape", "shift", "says"),
    [
        ((6, 5, 4), 0.0, ""),
        ((6, 5, 4), 0.009, ""),
        ((6, 5, 4), 0.5, "affine off by 0.5 mm"),
        ((6, 5, 3), 0.0, "shape 6x5x3 against 6x5x4"),
    ],
)
def test_grids_differ_in_words(shape, shift, says):
    moved = LPS.copy()
    moved[0, 3] += shift
    assert volumes.new_grid(shape, moved).differs_from(volumes.new_grid((6, 5, 4), LPS)) == says


def test_a_turn_about_the_first_voxel_is_a_difference():
    turned = LPS.copy()
    turned[:3, 0], turned[:3, 1] = [0, -2, 0], [-3, 0, 0]
    difference = volumes.new_grid((6, 5, 4), turned).differs_from(volumes.new_grid((6, 5, 4), LPS))
    assert difference.startswith("affine off by")
    assert difference.endswith("(orientation PLS against LPS)")


def test_a_written_geometry_that_came_out_different_is_refused(tmp_path, monkeypatch):
    grid = volumes.new_grid((6, 5, 4), LPS)
    monkeypatch.setattr(
        nib.Nifti1Image, "update_header", lambda self: self.header.set_sform(np.eye(4), 1)
    )
    with pytest.raises(AttclError, match="geometry changed in writing"):
        volumes.save([tmp_path / "a.nii.gz"], ramp((4, 5, 6)), grid, description="")
    assert list(tmp_path.iterdir()) == []


# --- number types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "low", "high", "written"),
    [
        ("int16", 0, 32767, "int16"),
        ("int16", 0, 32768, "float32"),
        ("uint8", 0, 255, "uint8"),
        ("uint8", 0, 256, "int16"),
        ("uint8", -1, 200, "int16"),
        ("uint16", 0, 65535, "uint16"),
        ("int32", 0, 70000, "int32"),
        ("float32", 0, 1, "float32"),
        ("float64", 0, 1, "float32"),
    ],
)
def test_integers_keep_their_type_where_the_values_fit(
    stored, low, high, written, tmp_path, write_nifti
):
    grid = volumes.load([write_nifti(tmp_path / "a.nii.gz", ramp(dtype=stored))]).grid
    data = np.linspace(low, high, 120, dtype=np.float32).reshape(4, 5, 6)
    volumes.save([tmp_path / "b.nii.gz"], data, grid, description="")
    after = nib.load(tmp_path / "b.nii.gz")
    assert after.get_data_dtype() == np.dtype(written)
    expected = data if written == "float32" else np.rint(data)
    assert np.array_equal(volumes.load([tmp_path / "b.nii.gz"]).data, expected)


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_floats_come_back_to_the_bit(ext, tmp_path, write_nifti):
    values = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    volume = volumes.load([write_nifti(tmp_path / f"a{ext}", values)])
    volumes.save([tmp_path / f"b{ext}"], volume.data, volume.grid, description="")
    assert np.array_equal(np.asarray(nib.load(tmp_path / f"b{ext}").dataobj), values)


def scaled(path: Path) -> Path:
    """Stored 0..119, scale 0.01, offset -0.5: intensities -0.5 .. 0.69."""
    image = nib.Nifti1Image(ramp() - 1, LPS)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.01, -0.5)
    nib.save(image, path)
    return path


def test_scaled_integers_are_read_as_intensities(tmp_path):
    volume = volumes.load([scaled(tmp_path / "a.nii.gz")])
    assert volume.data.min() == pytest.approx(-0.5)
    assert volume.data.max() == pytest.approx(0.69)


@pytest.mark.parametrize("read", [lambda p: volumes.load(p).grid, volumes.read_grid])
def test_scaled_integers_are_written_as_floats(read, tmp_path):
    path = scaled(tmp_path / "a.nii.gz")
    data = volumes.load([path]).data
    volumes.save([tmp_path / "b.nii.gz"], data, read([path]), description="")
    after = nib.load(tmp_path / "b.nii.gz")
    assert after.get_data_dtype() == np.float32
    assert np.array_equal(volumes.load([tmp_path / "b.nii.gz"]).data, data)


@pytest.mark.parametrize("dtype", [">i2", ">f4"])
def test_big_endian_files_are_read_and_written(dtype, tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(ramp().astype(dtype), LPS, header), tmp_path / "a.nii.gz")
    assert raw_of(tmp_path / "a.nii.gz")[:4] == b"\0\0\x01\x5c"  # 348, most significant byte first
    volume = volumes.load([tmp_path / "a.nii.gz"])
    assert np.array_equal(volume.data, ramp().transpose(2, 1, 0))
    volumes.save([tmp_path / "b.nii.gz"], volume.data, volume.grid, description="")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj), ramp())


# --- damaged files ----------------------------------------------------------------------------------------------------


def fails(path: Path, match: str) -> None:
    """Both readers refuse the file and name it."""
    for read in (volumes.read_grid, volumes.load):
        with pytest.raises(AttclError, match=match) as caught:
            read([path])
        assert caught.value.message.startswith(f"{path}: ")


@pytest.fixture(params=["isal", "zlib"])
def any_gzip(request, monkeypatch):
    """Both ways to decompress: Intel's library, and Python's own where that is not installed."""
    if request.param == "zlib":
        monkeypatch.setattr(nifti_files, "gzip_codec", gzip)


def test_a_missing_file_is_named(tmp_path):
    fails(tmp_path / "a.nii.gz", "not readable .No such file or directory.")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_empty_file_is_named(name, tmp_path):
    (tmp_path / name).touch()
    fails(tmp_path / name, r"empty \(0 bytes\)")


@pytest.mark.usefixtures("any_gzip")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"x", b"not an image at all\n", b"text " * 1000])
def test_text_under_the_name_of_a_volume_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, "not readable")


@pytest.mark.usefixtures("any_gzip")
def test_compressed_text_is_refused(tmp_path):
    fails(rewrite(tmp_path / "a.nii.gz", b"text " * 1000), "not readable as NIfTI")


@pytest.mark.usefixtures("any_gzip")
@pytest.mark.parametrize("kept", [1, 3, 10, 17, 18, 40, 200, 0.25, 0.5, 0.9, -9, -8, -4, -1])
def test_a_gzip_cut_off_anywhere_is_refused(kept, tmp_path, write_nifti):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    fails(path, "not readable|cut off")


@pytest.mark.usefixtures("any_gzip")
@pytest.mark.parametrize("lost", [1, 2, 4, 100])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_volume_that_lacks_voxels_is_refused(name, lost, image, tmp_path, write_nifti):
    path = write_nifti(tmp_path / name, ramp(), image=image)
    rewrite(path, raw_of(path)[:-lost])
    fails(path, "cut off|not readable")


@pytest.mark.parametrize("kept", [3, 100, 347, 350])
def test_a_header_that_is_cut_off_is_refused(kept, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii", ramp())
    rewrite(path, raw_of(path)[:kept])
    fails(path, "not readable|cut off")


@pytest.mark.parametrize("read", [volumes.read_grid, volumes.load])
@pytest.mark.parametrize(
    ("stored", "named", "found", "code", "ending"),
    [
        (".nii", ".nii.gz", "not compressed", "volume-not-compressed", ".nii"),
        (".nii.gz", ".nii", "compressed", "volume-compressed", ".nii.gz"),
    ],
)
def test_a_file_with_the_ending_of_the_other_kind_is_to_be_renamed(
    read, stored, named, found, code, ending, tmp_path
):
    nib.save(nib.Nifti1Image(ramp(), LPS), tmp_path / f"a{stored}")
    path = (tmp_path / f"a{stored}").rename(tmp_path / f"a{named}")
    with pytest.raises(AttclError, match=f"{path}: {found}, expected") as caught:
        read([path])
    assert (caught.value.code, caught.value.hint) == (code, f"rename it to end in {ending}")


@pytest.mark.usefixtures("any_gzip")
def test_damage_in_the_middle_is_found_when_voxels_are_read(tmp_path, write_nifti):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(AttclError, match=r"a\.nii\.gz: not readable to its end"):
        volumes.load([path])


@pytest.mark.usefixtures("any_gzip")
def test_a_gzip_of_several_members_is_whole(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", ramp())
    raw = raw_of(path)
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    assert volumes.read_grid([path]).shape == (6, 5, 4)
    assert np.array_equal(volumes.load([path]).data, ramp().transpose(2, 1, 0))


@pytest.mark.usefixtures("any_gzip")
def test_a_gzip_that_lacks_its_last_member_is_refused(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", ramp())
    path.write_bytes(gzip.compress(raw_of(path)[:400]))
    fails(path, "cut off|not readable")


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_geometry_of_a_whole_file_is_read_without_its_voxels(ext, tmp_path, monkeypatch):
    image = nib.Nifti1Image(ramp(), LPS)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100))
    nib.save(image, tmp_path / f"a{ext}")
    monkeypatch.setattr(Path, "read_bytes", None)
    assert volumes.read_grid([tmp_path / f"a{ext}"]).shape == (6, 5, 4)


@pytest.mark.parametrize(
    ("shape", "reason"), [((6, 5, 4, 2), "4-D (6x5x4x2)"), ((6, 5), "2-D (6x5)")]
)
def test_a_volume_that_is_not_3d_is_refused(shape, reason, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", np.ones(shape, np.int16))
    with pytest.raises(AttclError) as caught:
        volumes.read_grid([path])
    assert caught.value.message == f"{path}: {reason}, expected one 3-D volume"
    fails(path, "expected one 3-D volume")


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "complex64"])
def test_voxels_of_several_numbers_are_refused(dtype, tmp_path, write_nifti):
    fails(
        write_nifti(tmp_path / "a.nii.gz", np.zeros((6, 5, 4), dtype)),
        "expected one number per voxel",
    )


@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan, 0, 0, 0), (np.inf, 0, 0, 0)])
def test_an_affine_that_maps_to_no_space_is_refused(row, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii", ramp())
    raw = bytearray(path.read_bytes())
    raw[280:296] = np.array(row, "<f4").tobytes()  # srow_x
    path.write_bytes(raw)
    fails(path, "its affine maps voxels to no 3-D space")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted(bad, tmp_path, write_nifti):
    values = ramp(dtype="float32")
    values[0, 0, :2] = bad
    path = write_nifti(tmp_path / "a.nii.gz", values)
    with pytest.raises(AttclError) as caught:
        volumes.load([path])
    assert caught.value.message.startswith(f"{path}: 2 voxels are NaN or infinite")
    assert caught.value.hint.startswith("write 0 in their place")


def test_a_volume_without_any_finite_number_is_not_to_be_filled_with_0(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", np.full((5, 4, 3), np.nan, np.float32))
    with pytest.raises(AttclError) as caught:
        volumes.load([path])
    assert caught.value.code == "voxels-not-finite"
    assert caught.value.message.startswith(f"{path}: every voxel is NaN or infinite, expected ")
    assert caught.value.hint.startswith("copy or convert it again from its source, or remove it")


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_is_refused(value, tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", np.full((6, 5, 4), value, np.int16))
    with pytest.raises(AttclError, match=f"every voxel is {value}, expected an image"):
        volumes.load([path])


def test_only_files_that_may_hold_nan_or_a_constant_are_suspicious(tmp_path, write_nifti):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20))
    for name, values, expected in [
        ("noise.nii.gz", noise.astype("i2"), False),
        ("noise.nii", noise.astype("i2"), True),
        ("float.nii.gz", noise.astype("f4"), True),
        ("zeros.nii.gz", np.zeros((50, 50, 50), "i2"), True),
    ]:
        path = write_nifti(tmp_path / name, values)
        assert volumes.suspicious([path], volumes.read_grid([path])) is expected, name


@pytest.mark.cohort
def test_real_volumes_are_not_suspicious(cohort):
    for path in sorted((cohort / "brats").glob("*/*_t1ce.nii.gz"))[:5]:
        assert not volumes.suspicious([path], volumes.read_grid([path]))


@pytest.mark.cohort
def test_a_real_volume_comes_back_with_its_geometry(cohort, tmp_path):
    path = next(iter(sorted((cohort / "brasyn").glob("*/*-t1c.nii.gz"))))
    volume = volumes.load([path])
    volumes.save([tmp_path / "a.nii.gz"], volume.data, volume.grid, description="")
    before, after = nib.load(path), nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
    assert np.array_equal(before.affine, after.affine)
    assert before.get_data_dtype() == after.get_data_dtype()


# --- a whole case -----------------------------------------------------------------------------------------------------


def test_a_case_shares_one_brain_and_each_volume_has_its_scale(tmp_path, write_nifti):
    first, second = np.zeros((2, 10, 10, 10), np.int16)
    first[:5] = np.arange(500).reshape(5, 10, 10) + 1
    second[3:] = np.arange(700).reshape(7, 10, 10) + 1
    case = volumes.load_case(
        {
            "t1": [write_nifti(tmp_path / "t1.nii.gz", first)],
            "t2": [write_nifti(tmp_path / "t2.nii.gz", second)],
        }
    )
    assert case.brain.all()
    low, high = np.percentile(first, (0.5, 99.5))
    assert (case.scales["t1"].low, case.scales["t1"].high) == pytest.approx((low, high))
    assert np.array_equal(
        case.normalised("t2"),
        intensities.normalise(case.volumes["t2"].data, case.brain, case.scales["t2"]),
    )


def test_volumes_of_a_case_on_two_grids_are_refused(tmp_path, write_nifti):
    files = {
        "t1": [write_nifti(tmp_path / "t1.nii.gz", ramp())],
        "t2": [write_nifti(tmp_path / "t2.nii.gz", ramp((6, 5, 3)))],
    }
    with pytest.raises(AttclError, match=r"t2\.nii\.gz: shape 6x5x3 against 6x5x4 of t1\.nii\.gz"):
        volumes.load_case(files)


def test_a_volume_without_contrast_in_the_brain_is_refused(tmp_path, write_nifti):
    flat = np.full((10, 10, 10), 5, np.int16)
    flat[0, 0, 0] = 6
    files = {
        "t1": [write_nifti(tmp_path / "t1.nii.gz", ramp((10, 10, 10)))],
        "t2": [write_nifti(tmp_path / "t2.nii.gz", flat)],
    }
    with pytest.raises(AttclError, match=r"t2\.nii\.gz: 99 % of the brain has one value"):
        volumes.load_case(files)
