"""PNG slices: pixels to the bit, rounding, and files that are refused; written and read through `volumes`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attcl_cli.data import volumes
from attcl_cli.errors import AttclError


def fails(path: Path, match: str, code: str) -> None:
    """Both readers refuse the file and name it."""
    for read in (volumes.read_grid, volumes.load):
        with pytest.raises(AttclError, match=match) as caught:
            read([path])
        assert caught.value.message.startswith(f"{path}: ")
        assert caught.value.code == code


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_slices_come_back_to_the_bit(dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 5, 6)).astype(dtype)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, slice_ in zip(paths, values, strict=True):
        Image.fromarray(slice_).save(path)
    volume = volumes.load(paths)
    assert volume.grid.axial_shape == (3, 5, 6)
    assert np.array_equal(volume.data, values)
    outputs = [tmp_path / "out" / f"{number}.png" for number in range(3)]
    volumes.save(outputs, volume.data, volume.grid, description="synthetic t1")
    for path, slice_ in zip(outputs, values, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), slice_)
            assert image.text["Description"] == "synthetic t1"


def test_png_values_are_rounded(tmp_path):
    Image.fromarray(np.eye(2, dtype=np.uint8)).save(tmp_path / "in.png")
    grid = volumes.read_grid([tmp_path / "in.png"])
    values = np.array([[[-0.4, 0.6], [254.6, 255.4]]])
    volumes.save([tmp_path / "a.png"], values, grid, description="")
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 1], [255, 255]]


@pytest.mark.parametrize(("value", "dtype"), [(-1, "uint8"), (256, "uint8"), (65536, "uint16")])
def test_png_values_that_the_type_does_not_hold_are_refused(value, dtype, tmp_path):
    Image.fromarray(np.eye(2, dtype=dtype)).save(tmp_path / "in.png")
    grid = volumes.read_grid([tmp_path / "in.png"])
    with pytest.raises(AttclError, match=f"PNG of {dtype}") as caught:
        volumes.save([tmp_path / "a.png"], np.full((1, 2, 2), value), grid, description="")
    assert caught.value.code == "values-beyond-type"
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "LA"])
def test_png_of_another_mode_is_refused(mode, tmp_path):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    fails(tmp_path / "a.png", f"PNG of mode {mode}, expected 8- or 16-bit grey", "slice-not-grey")


@pytest.mark.parametrize("other", [np.eye(5, dtype=np.uint8), np.eye(4, dtype=np.uint16)])
def test_png_slices_of_one_volume_have_one_size_and_mode(other, tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, slice_ in zip(paths, (np.eye(4, dtype=np.uint8), other), strict=True):
        Image.fromarray(slice_).save(path)
    for read in (volumes.read_grid, volumes.load):
        with pytest.raises(AttclError, match=r"1\.png: .* expected 4x4 L as 0\.png") as caught:
            read(paths)
        assert caught.value.code == "slices-differ"


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_what_is_no_png_is_refused(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    fails(tmp_path / "a.png", "not readable as PNG", "slice-unreadable")


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "GIF", "BMP"])
def test_another_format_under_the_name_of_a_png_is_refused(kind, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png", format=kind)
    fails(tmp_path / "a.png", "not readable as PNG", "slice-unreadable")


def test_a_png_that_is_cut_off_is_found_when_pixels_are_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 50)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(AttclError, match=r"a\.png: not readable to its end") as caught:
        volumes.load([tmp_path / "a.png"])
    assert caught.value.code == "slice-cut-off"
