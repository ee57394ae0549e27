"""Hostile images through every reader: an error that names the file, or an image; nothing else, in bounded memory."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from faults import images
from faults.size import examples
from helpers import fresh_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attcl_cli.cli.app import main
from attcl_cli.data import alignment, label_maps, nifti_files, record_cache, volumes, voxels
from attcl_cli.data.image_files import MOST_VOXELS
from attcl_cli.errors import AttclError

Paths = Sequence[Path]
CAMPAIGN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
READERS: dict[str, Callable[[Paths, Paths], Any]] = {
    "read_grid": lambda paths, good: volumes.read_grid(paths),
    "read_description": lambda paths, good: volumes.read_description(paths),
    "load": lambda paths, good: volumes.load(paths),
    "load as stored": lambda paths, good: volumes.load(paths, background="keep"),
    "load_case": lambda paths, good: volumes.load_case({"t1": good, "t2": paths}).normalised("t2"),
    "load_case alone": lambda paths, good: volumes.load_case({"t1": paths}).normalised("t1"),
    "read_exactly": lambda paths, good: volumes.read_exactly(paths),
    "suspicious": lambda paths, good: volumes.suspicious(paths, volumes.read_grid(good)),
    "off_grid": lambda paths, good: refuse(label_maps.off_grid(paths, good)),
    "off_grid of it": lambda paths, good: refuse(label_maps.off_grid(good, paths)),
    "check_labels": lambda paths, good: refuse(label_maps.check_labels(paths, good)),
    "load_labels": lambda paths, good: label_maps.load_labels(paths),
    "read_record": lambda paths, good: figures_of(paths),
    "read_pair": lambda paths, good: alignment.read_pair(good, paths, look_at(good)),
}
NIFTI_READERS = {
    **READERS,
    "axes_of": lambda paths, good: volumes.axes_of(paths[0]),
    "read_as_3d": lambda paths, good: volumes.read_as_3d(paths[0]),
}


def look_at(paths: Paths) -> voxels.Look:
    """Return a look at a volume as the only one of its case."""
    return voxels.Look(record_cache.Records(paths[0].parent, "case", PurePosixPath(paths[0].name)))


def figures_of(paths: Paths) -> voxels.VolumeRecord:
    """Return the figures of a volume as the only one of its case, through the cache."""
    look = look_at(paths)
    with look.records:
        return voxels.read_record(paths, look)


def refuse(problem: AttclError | None) -> None:
    if problem is not None:
        raise problem


def outcomes(
    readers: dict[str, Callable[[Paths, Paths], Any]], paths: Paths, good: Paths
) -> dict[str, str]:
    """Reader -> "" or the code of its error, which names a file; no reader may do anything else, or warn."""
    ends = {}
    for name, read in readers.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", "Invalid APNG")  # as `png_slices` sets it for good
            try:
                read(paths, good)
                ends[name] = ""
            except AttclError as error:
                assert any(str(path) in error.message for path in (*paths, *good)), error.message
                assert "\n" not in error.message
                assert error.code
                assert error.hint
                ends[name] = error.code
        assert [str(it.message) for it in warned] == [], name
    return ends


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    """`place(".nii")` is a new path: each input has its own, so that none is taken from the cache of another."""
    numbers = itertools.count()
    return lambda ending: tmp_path / f"{next(numbers)}{ending}"


@pytest.fixture
def good_nifti(tmp_path: Path, write_nifti: Callable[..., Path]) -> Paths:
    values = np.random.default_rng(0).integers(1, 900, images.SHAPE).astype(np.int16)
    return [write_nifti(tmp_path / "good.nii.gz", values, affine=images.LPS)]


@pytest.fixture
def good_png(tmp_path: Path) -> Paths:
    values = np.random.default_rng(0).integers(1, 200, (8, 8)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "good.png")
    return [tmp_path / "good.png"]


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No library writes to stdout or stderr, or logs anything."""
    yield
    assert capfd.readouterr() == ("", "")
    assert [
        it.getMessage() for it in caplog.get_records("call") if it.levelno >= logging.WARNING
    ] == []


# --- campaigns --------------------------------------------------------------------------------------------------------


def hostile_nifti(content: tuple[str, bytes], place: Callable[[str], Path], good: Paths) -> None:
    ending, data = content
    path = place(ending)
    path.write_bytes(data)
    outcomes(NIFTI_READERS, [path], good)
    path.unlink()


def hostile_png(contents: list[bytes], place: Callable[[str], Path], good: Paths) -> None:
    paths = [place(".png") for _ in contents]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    outcomes(READERS, paths, good)
    for path in paths:
        path.unlink()


SLICES = st.lists(images.damaged(images.pngs()), min_size=1, max_size=2)


@settings(CAMPAIGN, max_examples=60)
@given(content=images.nifti_files())
def test_hostile_nifti_files_are_errors_or_images(content, place, good_nifti):
    hostile_nifti(content, place, good_nifti)


@settings(CAMPAIGN, max_examples=60)
@given(contents=SLICES)
def test_hostile_png_slices_are_errors_or_images(contents, place, good_png):
    hostile_png(contents, place, good_png)


@pytest.mark.slow
@settings(CAMPAIGN, max_examples=examples(500))
@given(content=images.nifti_files())
def test_many_hostile_nifti_files(content, place, good_nifti):
    hostile_nifti(content, place, good_nifti)


@pytest.mark.slow
@settings(CAMPAIGN, max_examples=examples(300))
@given(contents=SLICES)
def test_many_hostile_png_slices(contents, place, good_png):
    hostile_png(contents, place, good_png)


# --- one by one -------------------------------------------------------------------------------------------------------


def nifti(shape: Sequence[int] = images.SHAPE, *, dtype: str = "int16", **fields: Any) -> bytes:
    """A file of values 1, 2, ..., then with these fields of its header changed."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(images.LPS, code=1)
    header["vox_offset"] = 352
    body = np.arange(1, 1 + math.prod(shape)).astype(dtype).tobytes()
    for name, value in fields.items():
        images.spoil(header, name, value)
    return header.binaryblock + bytes(4) + body


def code_of(read: Callable[[Paths], Any], path: Path) -> str:
    with pytest.raises(AttclError) as caught:
        read([path])
    assert str(path) in caught.value.message
    return caught.value.code


def refused(path: Path, data: bytes) -> str:
    """The code with which all readers of geometry and of voxels refuse a file, which is one."""
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    codes = {
        code_of(read, path) for read in (volumes.read_grid, volumes.load, volumes.read_exactly)
    }
    codes.add(code_of(label_maps.load_labels, path))
    assert len(codes) == 1, codes
    return codes.pop()


ENDINGS = pytest.mark.parametrize("ending", [".nii", ".nii.gz"])


@ENDINGS
@pytest.mark.parametrize("offset", [math.inf, math.nan, 2.0**31, 1e30, 0])
def test_voxels_that_begin_nowhere_are_refused(offset, ending, place):
    """Of a vox_offset of 0, nibabel makes the header's own bytes the first voxels."""
    assert refused(place(ending), nifti(vox_offset=offset)) == "voxel-offset"


@ENDINGS
@pytest.mark.parametrize("offset", [4, 348, 351, -352, -math.inf])
def test_voxels_that_begin_within_the_header_are_refused(offset, ending, place):
    assert refused(place(ending), nifti(vox_offset=offset)) == "volume-unreadable"


def test_voxels_behind_an_extension_are_read(place):
    data = nifti(vox_offset=384)
    path = place(".nii")
    path.write_bytes(data[:348] + b"\1\0\0\0" + struct.pack("<2i", 32, 6) + bytes(24) + data[352:])
    assert volumes.read_exactly([path])[0].max() == math.prod(images.SHAPE)


def test_what_nibabel_repairs_in_a_header_is_not_logged_in_reading_and_in_writing(place):
    """The fixture `silence` looks at the log."""
    path, copy = place(".nii"), place(".nii")
    data = nifti(vox_offset=361, pixdim0=0.0, bitpix=7, qform_code=77)
    path.write_bytes(data[:352] + bytes(9) + data[352:])
    volume = volumes.load([path])
    volumes.save([copy], volume.data, volume.grid, description="")
    np.testing.assert_array_equal(volumes.load([copy]).data, volume.data)


@ENDINGS
@pytest.mark.parametrize("extension", images.EXTENSIONS)
def test_an_extension_that_lies_does_not_reach_the_voxels(extension, ending, place):
    data = nifti(vox_offset=384)
    whole = data[:348] + extension.ljust(36, b"\0") + data[352:]
    path = place(ending)
    path.write_bytes(gzip.compress(whole) if ending == ".nii.gz" else whole)
    assert sorted(volumes.read_exactly([path])[0].ravel()) == list(range(1, 337))


@ENDINGS
@pytest.mark.parametrize(
    "fields",
    [
        {"srow_x0": math.inf},
        {"srow_x3": math.nan},
        {"srow_y1": 0.0},
        {"srow_x0": 3e38, "srow_y1": 3e38, "srow_z2": 3e38, "srow_z3": math.inf},
        {"srow_x0": 1e30, "srow_x1": 1e30},  # of two axes only one remains, when rounded
        {"sform_code": 0, "qform_code": 1, "qoffset_x": math.inf},
    ],
)
def test_an_affine_without_a_place_is_refused(fields, ending, place):
    assert refused(place(ending), nifti(**fields)) == "affine-singular"


@ENDINGS
@pytest.mark.parametrize("intercept", [math.inf, -math.inf, math.nan])
def test_an_intercept_that_is_no_number_is_refused(intercept, ending, place):
    data = nifti(scl_slope=2.0, scl_inter=intercept)
    assert refused(place(ending), data) == "volume-unreadable"


@pytest.mark.parametrize("slope", [0.0, math.inf, math.nan])
def test_a_slope_that_is_no_number_is_none(slope, place):
    """As nibabel and NIfTI's reference library read it."""
    path = place(".nii")
    path.write_bytes(nifti(scl_slope=slope, scl_inter=7.0))
    assert volumes.read_exactly([path])[0].max() == 336


@pytest.mark.parametrize(
    ("slope", "code"), [(3e38, "voxels-not-finite"), (1e17, "intensities-too-large")]
)
def test_intensities_beyond_all_images_are_refused(slope, code, place):
    path = place(".nii")
    path.write_bytes(nifti(scl_slope=slope))
    assert code_of(volumes.load, path) == code
    assert code_of(figures_of, path) == "intensities-too-large"  # in float64, which holds them


@ENDINGS
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"dim1": -8}, "volume-empty"),
        ({"dim3": 0}, "volume-empty"),
        ({"dim1": -1, "dim2": 1, "dim3": 1, "glmin": -5}, "volume-empty"),  # as FreeSurfer writes
        ({"dim1": 32767, "dim2": 32767, "dim3": 2}, "volume-too-large"),
        ({"dim0": 4, "dim4": 2}, "volume-not-3d"),
        ({"dim0": 2}, "volume-not-3d"),
        ({"dim0": 0}, "volume-not-3d"),
        ({"dim0": -1}, "volume-unreadable"),
        ({"dim3": 7}, "volume-cut-off"),
        ({"dim1": 1024, "dim2": 1024, "dim3": 1024}, "volume-cut-off"),
        ({"datatype": 77}, "volume-unreadable"),
        ({"datatype": 0}, "volume-unreadable"),
        ({"datatype": 1}, "volume-unreadable"),
        ({"datatype": 32, "bitpix": 64}, "voxel-type"),
        ({"datatype": 128, "bitpix": 24}, "voxel-type"),
        ({"magic": b"nope"}, "volume-unreadable"),
    ],
)
def test_a_header_that_promises_no_volume_is_refused(fields, code, ending, place):
    assert refused(place(ending), nifti(**fields)) == code


def test_the_most_voxels_are_named_in_the_error(place):
    path = place(".nii")
    path.write_bytes(nifti(dim1=1025, dim2=1024, dim3=1024))
    with pytest.raises(
        AttclError, match=f"{1025 * 1024**2:,} voxels, expected at most {MOST_VOXELS:,}"
    ):
        volumes.read_grid([path])


def test_every_flipped_bit_of_a_compressed_volume_is_an_error_or_without_effect(place, good_nifti):
    whole = good_nifti[0].read_bytes()
    before = volumes.read_exactly(good_nifti)[0]
    path, found = place(".nii.gz"), set()
    for position in range(0, len(whole), 3):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(volumes.read_exactly([path])[0], before)
        except AttclError as error:
            found.add(error.code)
    assert found == {"volume-cut-off", "volume-unreadable"}


@pytest.mark.parametrize("codec", ["isal", "zlib"])
@pytest.mark.parametrize(
    "tail", [b"", bytes(512), gzip.compress(b"more", mtime=0), gzip.compress(bytes(10**6), mtime=0)]
)
def test_what_follows_the_voxels_is_passed_over(tail, codec, place, monkeypatch):
    if codec == "zlib":
        monkeypatch.setattr(nifti_files, "gzip_codec", gzip)
    path = place(".nii.gz")
    path.write_bytes(gzip.compress(nifti()) + tail)
    assert volumes.read_grid([path]).shape == images.SHAPE
    assert volumes.read_exactly([path])[0].max() == 336


@pytest.mark.parametrize("codec", ["isal", "zlib"])
@pytest.mark.parametrize(
    "tail", [b"garbage", gzip.compress(bytes(10**6), mtime=0)[:-9], b"\x1f\x8b"]
)
def test_garbage_behind_the_stream_is_refused(tail, codec, place, monkeypatch):
    if codec == "zlib":
        monkeypatch.setattr(nifti_files, "gzip_codec", gzip)
    path = place(".nii.gz")
    path.write_bytes(gzip.compress(nifti()) + tail)
    for read in (volumes.read_grid, volumes.load, volumes.read_exactly):
        assert code_of(read, path) == "volume-cut-off"


def test_a_file_that_goes_on_is_refused_before_it_is_read_to_its_end(place):
    path = place(".nii.gz")
    path.write_bytes(images.bomb(nifti(), 0.1))
    for read in (volumes.read_grid, volumes.load, lambda paths: volumes.read_as_3d(paths[0])):
        assert code_of(read, path) == "volume-too-long"


BOMBS = """
import resource, sys, time
from pathlib import Path, PurePosixPath
from attcl_cli.data import volumes, label_maps, voxels
from attcl_cli.data.record_cache import Records
from attcl_cli.errors import AttclError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
measure = lambda paths: voxels.read_record(
    paths, voxels.Look(Records(paths[0].parent, "case", PurePosixPath(paths[0].name)))
)
readers = volumes.read_grid, volumes.load, volumes.read_exactly, label_maps.load_labels, measure
for path in map(Path, sys.argv[1:]):
    for read in readers:
        try:
            read([path])
        except AttclError as error:
            print(path.name, error.code)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit memory")
def test_no_lie_about_a_size_takes_memory(place, tmp_path):
    """Each file has at most a few megabytes; readers get 100 MiB more than an idle process has."""
    large = {"dim1": 1000, "dim2": 1000, "dim3": 1000, "datatype": 64, "bitpix": 64}
    contents = {
        "zeros.nii.gz": images.bomb(nifti(), 6),
        "promised.nii.gz": gzip.compress(nifti(**large)),
        "promised.nii": nifti(**large),
        "offset.nii": nifti(vox_offset=2.0**28),
        "offset.nii.gz": gzip.compress(nifti(vox_offset=2.0**28)),
        "wide.png": b"\x89PNG\r\n\x1a\n"
        + images.chunk(b"IHDR", struct.pack(">2I5B", 60000, 60000, 8, 0, 0, 0, 0)),
        "hollow.png": b"\x89PNG\r\n\x1a\n"
        + images.chunk(b"IHDR", struct.pack(">2I5B", 8192, 8192, 16, 0, 0, 0, 0))
        + images.chunk(b"IDAT", b"x"),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    assert (tmp_path / "zeros.nii.gz").stat().st_size < 10e6
    (tmp_path / "read.py").write_text(BOMBS)
    lines = fresh_python(tmp_path / "read.py", *(tmp_path / name for name in contents)).splitlines()
    codes = {
        "zeros.nii.gz": "volume-too-long",
        "wide.png": "slice-too-large",
        "hollow.png": "slice-unreadable",
    }
    assert lines == [
        f"{name} {codes.get(name, 'volume-cut-off')}" for name in contents for _ in range(5)
    ]


def test_a_pipe_a_folder_and_a_missing_file_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    names = [
        "pipe.nii.gz",
        "pipe.png",
        "folder.nii",
        "folder.png",
        "loop.nii.gz",
        "no.nii",
        "no.png",
    ]
    for name in [*names, "nul\0.nii", f"{'long' * 99}.nii.gz"]:
        assert code_of(volumes.read_grid, tmp_path / name) == "file-missing"
        assert code_of(volumes.load, tmp_path / name) == "file-missing"


@pytest.mark.parametrize(
    ("link", "hint"),
    [(True, "it is a broken link: "), (False, "check the path: was the file removed")],
)
def test_a_missing_file_is_a_broken_link_only_if_it_is_a_link(link, hint, tmp_path):
    if link:
        (tmp_path / "a.nii").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AttclError, match="not readable") as caught:
        volumes.read_grid([tmp_path / "a.nii"])
    assert caught.value.hint.startswith(hint)


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """The user root may read everything: become another one for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".png"])
def test_a_file_without_permission_is_not_said_to_be_damaged(ending, place, good_nifti, good_png):
    path = place(ending)
    path.write_bytes((good_png if ending == ".png" else good_nifti)[0].read_bytes())
    path.chmod(0)
    with as_somebody_else():
        for read in (volumes.read_grid, volumes.load, volumes.read_exactly):
            with pytest.raises(AttclError, match=r"not readable \(Permission denied\)") as caught:
                read([path])
            assert caught.value.code == "file-no-permission"
            assert "chmod" in caught.value.hint
        assert volumes.read_description([path]) is None


# --- PNG slices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(images.CHUNKS))
def test_a_chunk_beside_the_pixels_is_passed_over_or_an_error(name, place, good_png):
    start, end = (good_png[0].read_bytes()[part] for part in (slice(33), slice(33, None)))
    path = place(".png")
    path.write_bytes(start + images.chunk(*images.CHUNKS[name]) + end)
    ends = outcomes(READERS, [path], good_png)
    assert set(ends.values()) - {""} <= {"slice-unreadable", "slice-cut-off", "grids-differ"}


@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 2**31 - 1), (60000, 60000), (8193, 8192)]
)
def test_a_slice_that_promises_too_much_is_refused(width, height, place):
    path = place(".png")
    start = images.chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + start + images.chunk(b"IDAT", bytes(99)))
    for read in (volumes.read_grid, volumes.load):
        assert code_of(read, path) == "slice-too-large"


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"a": ' * 100_000,
        b'{"value": ' + b"9" * 5000 + b"}",
        b" " * 2**21,
    ],
)
def test_a_damaged_cache_is_computed_again(content, good_nifti, tmp_path, monkeypatch):
    monkeypatch.setenv(record_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    before = figures_of(good_nifti)
    (record,) = (tmp_path / "cache").rglob("*.json")
    record.write_bytes(content)
    assert figures_of(good_nifti) == before
    assert len(json.loads(record.read_bytes())) == 1


@pytest.mark.parametrize(
    "value", [None, [], {}, "text", -1, [1, 2], ["a"] * 5, [None] * 5, [[]] * 5]
)
def test_a_record_of_other_types_is_computed_again(value, good_nifti, tmp_path, monkeypatch):
    monkeypatch.setenv(record_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    before = figures_of(good_nifti)
    (path,) = (tmp_path / "cache").rglob("*.json")
    ((key, record),) = json.loads(path.read_text()).items()
    assert record == json.loads(json.dumps(asdict(before)))
    for field in ("background", "percentiles"):
        path.write_text(json.dumps({key: {**record, field: value}}))
        assert figures_of(good_nifti) == before, field


def test_a_user_without_a_home_has_no_cache(good_nifti, monkeypatch):
    for name in (record_cache.FOLDER_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError))
    assert figures_of(good_nifti).sides == min(images.SHAPE)


# --- the command line -------------------------------------------------------------------------------------------------


def dataset(root: Path, write_nifti: Callable[..., Path]) -> Path:
    """Two patients with all modalities and a label map; returns a file of the second."""
    values = np.random.default_rng(0).integers(1, 900, images.SHAPE).astype(np.int16)
    for case, name in itertools.product("AB", ("t1", "t1ce", "t2", "flair", "seg")):
        data = values % 2 if name == "seg" else values
        write_nifti(root / f"P_{case}/P_{case}_{name}.nii.gz", data, affine=images.LPS)
    return root / "P_B/P_B_t2.nii.gz"


def through_info(
    capfd: pytest.CaptureFixture[str], write_nifti: Callable[..., Path], root: Path, data: bytes
) -> None:
    path = dataset(root, write_nifti)
    path.write_bytes(data)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["info", str(root), "--json"])
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert (stop.value.code, err) == (3 if document["problems"] else 0, "")
    assert all(problem["code"] for problem in document["problems"])


@settings(CAMPAIGN, max_examples=12)
@given(content=images.damaged(images.gzips(images.niftis())))
def test_info_names_hostile_volumes(content, place, capfd, write_nifti):
    through_info(capfd, write_nifti, place(""), content)


@pytest.mark.slow
@settings(CAMPAIGN, max_examples=examples(150))
@given(content=images.damaged(images.gzips(images.niftis())))
def test_info_names_many_hostile_volumes(content, place, capfd, write_nifti):
    through_info(capfd, write_nifti, place(""), content)
