"""Headers that are legal but unusual: a quaternion a rounding error too long, further axes of length 1."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attcl_cli.data import label_maps, volumes
from attcl_cli.errors import AttclError

AFFINE = np.array([[-4.0, 0, 0, 0], [0, -4, 0, 160], [0, 0, 4, 0], [0, 0, 0, 1]])
VALUES = np.arange(1, 121).reshape(6, 5, 4).astype(np.int16)
BOTH = pytest.mark.parametrize("ext", [".nii", ".nii.gz"])


def with_quaternion(path: Path, quaternion: tuple[float, float, float], image: type) -> Path:
    """Write a volume whose affine is its qform's alone, with this quaternion."""
    nifti = image(VALUES, AFFINE)
    nifti.set_qform(AFFINE, code=1)
    nifti.set_sform(None, code=0)
    raw = bytearray(nifti.to_bytes())
    if image is nib.Nifti1Image:
        struct.pack_into("<fff", raw, 256, *quaternion)
    else:
        struct.pack_into("<ddd", raw, 352, *quaternion)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


# --- the quaternion ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("length", [1, 1 + 1e-7, 1 + 1e-6, 1 + 1e-5, 1.0009])
def test_a_quaternion_that_is_too_long_is_normalised(length, image, ext, tmp_path):
    path = with_quaternion(tmp_path / f"a{ext}", (0, 0, length), image)
    grid = volumes.read_grid([path])
    assert np.allclose(grid.affine, AFFINE, atol=1e-4)
    volume = volumes.load([path])
    assert np.array_equal(volume.data, VALUES.transpose(2, 1, 0))
    assert not volume.grid.differs_from(volumes.new_grid((6, 5, 4), AFFINE))
    volumes.save([tmp_path / f"b{ext}"], volume.data, volume.grid, description="")
    written = nib.load(tmp_path / f"b{ext}")  # nibabel alone refuses the original
    assert np.array_equal(written.affine, grid.affine)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 0)


@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_long_quaternion_of_any_direction_gives_a_rotation(image, tmp_path):
    random = np.random.default_rng(0)
    for _ in range(50):
        direction = random.normal(size=3)
        direction *= (1 + 1e-6) / np.linalg.norm(direction)
        path = with_quaternion(tmp_path / "a.nii", tuple(direction), image)
        turn = volumes.read_grid([path]).affine[:3, :3] / 4
        assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        # A turn by 180 degrees about the direction (no part of the quaternion is left for a smaller one).
        axis = direction / np.linalg.norm(direction)
        assert np.allclose(turn, 2 * np.outer(axis, axis) - np.eye(3), atol=1e-5)


@pytest.mark.parametrize("length", [1.002, 2, 1e10])
def test_a_quaternion_that_no_rounding_explains_is_named(length, tmp_path):
    path = with_quaternion(tmp_path / "a.nii.gz", (0, 0, length), nib.Nifti1Image)
    for read in (volumes.read_grid, volumes.load):
        with pytest.raises(AttclError) as caught:
            read([path])
        assert caught.value.code == "qform-invalid"
        assert caught.value.message.startswith(f"{path}: the quaternion of its qform has length")


def test_a_quaternion_beside_a_sform_is_not_looked_at(tmp_path):
    path = with_quaternion(tmp_path / "a.nii", (0, 0, 5), nib.Nifti1Image)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<h", raw, 254, 1)  # sform_code
    struct.pack_into("<12f", raw, 280, *AFFINE[:3].ravel())
    path.write_bytes(raw)
    assert np.array_equal(volumes.read_grid([path]).affine, AFFINE)


# --- further axes -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("more", [(1,), (1, 1), (1, 1, 1, 1)])
def test_further_axes_of_length_1_are_dropped(more, image, ext, tmp_path):
    path = tmp_path / f"a{ext}"
    nib.save(image(VALUES.reshape(*VALUES.shape, *more), AFFINE), path)
    assert nib.load(path).shape == (6, 5, 4, *more)
    grid = volumes.read_grid([path])
    assert grid.shape == (6, 5, 4)
    assert not grid.differs_from(volumes.new_grid((6, 5, 4), AFFINE))
    volume = volumes.load([path])
    assert np.array_equal(volume.data, VALUES.transpose(2, 1, 0))
    assert np.array_equal(label_maps.load_labels([path]), VALUES.transpose(2, 1, 0))
    volumes.save([tmp_path / f"b{ext}"], volume.data, volume.grid, description="")
    written = nib.load(tmp_path / f"b{ext}")
    assert written.shape == (6, 5, 4)  # what is made has three axes
    assert np.array_equal(np.asarray(written.dataobj), VALUES)
    assert np.array_equal(written.affine, AFFINE)


@pytest.mark.parametrize("shape", [(6, 5, 4, 2), (6, 5, 4, 1, 3), (6, 5, 4, 2, 1), (6, 5)])
def test_a_longer_axis_or_a_lack_of_one_is_refused(shape, tmp_path):
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), AFFINE), tmp_path / "a.nii")
    with pytest.raises(AttclError) as caught:
        volumes.read_grid([tmp_path / "a.nii"])
    assert caught.value.code == "volume-not-3d"


def test_a_single_slice_is_a_volume(tmp_path):
    nib.save(nib.Nifti1Image(VALUES[:, :, :1], AFFINE), tmp_path / "a.nii")
    assert volumes.load([tmp_path / "a.nii"]).data.shape == (1, 5, 6)


@BOTH
def test_a_file_is_given_three_axes_and_is_otherwise_the_same(ext, tmp_path):
    path = tmp_path / f"a{ext}"
    nifti = nib.Nifti1Image(VALUES[..., None, None], AFFINE)
    nifti.header.set_slope_inter(0.5, 3)
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    nib.save(nifti, path)
    (tmp_path / "b.nii").write_bytes(volumes.read_as_3d(path))
    before, after = nib.load(path), nib.load(tmp_path / "b.nii")
    assert after.shape == (6, 5, 4)
    assert np.array_equal(after.get_fdata(), before.get_fdata()[..., 0, 0])
    assert np.array_equal(after.affine, before.affine)
    assert after.header.extensions == before.header.extensions
    assert (volumes.axes_of(path), volumes.axes_of(tmp_path / "b.nii")) == (5, 3)


def test_a_file_of_three_axes_stays_as_it_is(tmp_path):
    nib.save(nib.Nifti1Image(VALUES, AFFINE), tmp_path / "a.nii")
    assert volumes.read_as_3d(tmp_path / "a.nii") == (tmp_path / "a.nii").read_bytes()
