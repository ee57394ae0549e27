"""Volumes on disk and as arrays: NIfTI in and out, geometry, the volumes of a case together; the only nibabel user.

Which file is which modality is left to `dataset`, PNG files to `png_slices`, arrays without files to `intensities`.

Inside the program a volume is always (D, H, W): axial slices from foot to head, row 0 anterior, column 0 the patient's
right, whatever the file's orientation. That is BraTS's own voxel order (LPS) transposed, so for BraTS it is a view.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from attcl_cli.data import png_slices
from attcl_cli.data.background import BackgroundOption, find_background, subtract
from attcl_cli.data.intensities import Array, Scale, brain_of, intensity_scale, normalise
from attcl_cli.data.nifti_headers import shorten_quaternion
from attcl_cli.errors import AttclError, counted
from attcl_cli.files import write_whole

gzip_codec: ModuleType = gzip
"""What decompresses."""
with contextlib.suppress(ImportError):  # no wheel for every platform
    # Intel's ISA-L is several times faster than zlib on volumes. It does not compress: under load it was seen to write
    # other bytes for the same volume (isal 1.9.1), and the same run must write the same bytes.
    from isal import igzip as gzip_codec

AFFINE_TOLERANCE_MM = 0.01  # headers of one patient differ by float32 rounding, not more
_WORKING_ORDER = axcodes2ornt(("L", "P", "S"))
_GZIP_LEVEL = 1
# A brain compresses to a tenth or more of its size, a constant volume to a thousandth.
_SUSPICIOUS_COMPRESSION = 0.01
_DIMENSIONS = 3
_COPY_AGAIN = "copy it again from its source, or remove it"
_NIFTI2_HEADER = 540  # bytes; the first number of such a file
_STARTS_OF_NIFTI = {struct.pack(order, size) for order in ("<i", ">i") for size in (348, 540)}


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie, and how a new volume on the same grid is written.

    Attributes:
        shape: stored shape without further axes of length 1, three numbers (of PNG slices: rows, columns, slices).
        affine: voxel to RAS+ world in mm, (4, 4).
        dtype: the stored number type.
        header: the NIfTI header, or None for PNG slices.
        scaled: whether intensities are the stored numbers times a slope, or plus an intercept.
    """

    shape: tuple[int, int, int]
    affine: Array
    dtype: np.dtype[Any]
    header: Any = None
    scaled: bool = False

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the voxel edge lengths in stored axis order, mm."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def axial_spacing_mm(self) -> tuple[float, float, float]:
        """Return the voxel edge lengths along (D, H, W) in working order, mm; 1 for PNG slices, which have none."""
        if self.header is None:
            return 1.0, 1.0, 1.0
        order = ornt_transform(io_orientation(self.affine), _WORKING_ORDER)
        x, y, z = (
            self.spacing_mm[int(np.flatnonzero(order[:, 0] == axis)[0])] for axis in range(3)
        )
        return z, y, x

    @property
    def axial_shape(self) -> tuple[int, int, int]:
        """Return (D, H, W) of the volume in working order."""
        if self.header is None:
            return self.shape[2], self.shape[0], self.shape[1]
        order = ornt_transform(io_orientation(self.affine), _WORKING_ORDER)
        x, y, z = (self.shape[int(np.flatnonzero(order[:, 0] == axis)[0])] for axis in range(3))
        return z, y, x

    def differs_from(self, other: Grid) -> str:
        """Return in words how the grids differ; "" if they do not. PNG slices have no position, only a size."""
        if (self.header is None) != (other.header is None):
            here, there = self.axial_shape, other.axial_shape
            return "" if here == there else f"slices of {_times(here)} against {_times(there)}"
        if self.shape != other.shape:
            return f"shape {_times(self.shape)} against {_times(other.shape)}"
        gap = float(np.abs(_corners(self) - _corners(other)).max())
        if gap <= AFFINE_TOLERANCE_MM:
            return ""
        own, others = ("".join(nib.aff2axcodes(grid.affine)) for grid in (self, other))
        turned = f" (orientation {own} against {others})" if own != others else ""
        return f"affine off by {gap:.3g} mm{turned}"


@dataclass(frozen=True)
class Volume:
    """A volume in working order.

    Attributes:
        data: (D, H, W) float32, the file's own intensities less its background, which is exactly 0.
        grid: the geometry of the file it came from.
        background: the intensity that was subtracted.
    """

    data: Array
    grid: Grid
    background: float = 0.0


@dataclass(frozen=True)
class CaseImages:
    """The volumes of one case, read together, since normalisation needs the brain of them all.

    Attributes:
        volumes: modality -> volume.
        brain: (D, H, W) bool, non-zero in any of them.
        scales: modality -> the intensities that become -1 and 1.
    """

    volumes: dict[str, Volume]
    brain: Array
    scales: dict[str, Scale]

    def normalised(self, modality: str) -> Array:
        """Return a volume as (D, H, W) float32 in [-1, 1], background exactly -1."""
        return normalise(self.volumes[modality].data, self.brain, self.scales[modality])


def read_grid(paths: Sequence[Path]) -> Grid:
    """Read the geometry of a volume, and prove cheaply that the file is whole; no voxel is decoded.

    A cut-off `.nii.gz` is found through the length that gzip stores in its last four bytes; only if that disagrees
    (some writers chain several members) the file is decompressed.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.

    Raises:
        AttclError: the file is missing, empty, no NIfTI, cut off, or not a 3-D volume of numbers.
    """
    path = paths[0]
    if _is_png(path):
        return _png_grid(*png_slices.read_shape(paths))
    _require_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with gzip.open(path) if _is_packed(path) else path.open("rb") as stream:
                header = _read_header(stream, path)
            grid = _grid(header, path)
    except AttclError:
        raise
    except _UNREADABLE as error:
        raise _no_nifti(path, error) from error
    expected = (
        int(header.get_data_offset())
        + int(np.prod(grid.shape, dtype=np.int64)) * grid.dtype.itemsize
    )
    if not _is_packed(path):
        length = path.stat().st_size
        if length < expected:
            raise _cut_off(path, length, expected)
    elif _stored_length(path) != expected % 2**32 and (length := len(_read_bytes(path))) < expected:
        raise _cut_off(path, length, expected)
    return grid


def depth_of(paths: Sequence[Path]) -> int:
    """Return the number of axial slices of a volume; of PNG slices no file is read.

    Raises:
        AttclError: as `read_grid`.
    """
    return len(paths) if _is_png(paths[0]) else read_grid(paths).axial_shape[0]


def read_description(paths: Sequence[Path]) -> str | None:
    """Return what a volume says of itself (`save`): the NIfTI field `descrip`, or a PNG's text; None if unreadable."""
    path = paths[0]
    if _is_png(path):
        return png_slices.read_description(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header: Any = nib.load(path).header
            return bytes(header["descrip"]).rstrip(b"\0").decode("latin-1")
    except (*_UNREADABLE, KeyError):
        return None


def axes_of(path: Path) -> int:
    """Return how many axes a NIfTI file says it has; those of length 1 beyond the third are dropped when it is read."""
    return len(read_grid([path]).header.get_data_shape())


def read_as_3d(path: Path) -> bytes:
    """Return a NIfTI file decompressed and to the byte, but for axes of length 1 beyond the third, which are dropped.

    Raises:
        AttclError: as `read_grid`.
    """
    grid, raw = read_grid([path]), _read_bytes(path)
    header = grid.header.copy()
    if len(header.get_data_shape()) == _DIMENSIONS:
        return raw
    header.set_data_shape(grid.shape)
    block: bytes = header.binaryblock
    return block + raw[len(block) :]


def suspicious(paths: Sequence[Path], grid: Grid) -> bool:
    """Return whether the values of a volume must be read before a run: it may hold NaN or be constant.

    Integers hold no NaN, and a constant volume compresses to almost nothing; so mostly this costs a `stat`.
    """
    path = paths[0]
    if _is_png(path):
        return False
    packed = path.stat().st_size / (np.prod(grid.shape, dtype=np.int64) * grid.dtype.itemsize)
    return grid.dtype.kind == "f" or not _is_packed(path) or bool(packed < _SUSPICIOUS_COMPRESSION)


def load(paths: Sequence[Path], *, background: BackgroundOption = "auto") -> Volume:
    """Read a volume into working order, and subtract its background.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.
        background: what is background (`Dataset.background`).

    Raises:
        AttclError: as `read_grid`; or the volume holds NaN or infinity, or a single value everywhere.
    """
    path = paths[0]
    volume = _read(paths)
    require_image(volume.data, path)
    ground = find_background(volume.data, background)
    data = subtract(volume.data, ground)
    return Volume(data, volume.grid, ground.value)


def other_grid(path: Path, grid: Grid, first: Path, expected: Grid) -> AttclError | None:
    """Return the problem of an image that lies on another grid than the first one of its case, or None."""
    difference = grid.differs_from(expected)
    if not difference:
        return None
    return AttclError(
        f"{path}: {difference} of {first.name}, expected one grid for all volumes of a case",
        "reorient the case's volumes, or co-register and resample them; or move the one that is off away",
        code="grids-differ",
    )


def require_image(data: Array, path: Path) -> None:
    """Refuse intensities that are no image.

    Raises:
        AttclError: they hold NaN or infinity, or a single value everywhere.
    """
    if not np.isfinite(data).all():
        count = int(data.size - np.isfinite(data).sum())
        raise AttclError(
            f"{path}: {counted(count, 'voxel is', 'voxels are')} NaN or infinite, expected finite intensities",
            "repair or remove this file",
            code="voxels-not-finite",
        )
    if data.min() == data.max():
        raise AttclError(
            f"{path}: every voxel is {data.flat[0]:g}, expected an image",
            "remove this file, so that the modality counts as missing",
            code="volume-constant",
        )


def load_case(
    files: Mapping[str, Sequence[Path]], *, background: BackgroundOption = "auto"
) -> CaseImages:
    """Read all volumes of a case.

    Args:
        files: modality -> files.
        background: what is background (`Dataset.background`).

    Raises:
        AttclError: as `load`; or the grids differ, or a volume has one value everywhere in the brain.
    """
    volumes = {modality: load(paths, background=background) for modality, paths in files.items()}
    first = next(iter(volumes))
    for modality, other in volumes.items():
        problem = other_grid(files[modality][0], other.grid, files[first][0], volumes[first].grid)
        if problem is not None:
            raise problem
    brain = brain_of([other.data for other in volumes.values()])
    scales = {}
    for modality, other in volumes.items():
        scale = intensity_scale(other.data, brain)
        if scale is None:
            raise AttclError(
                f"{files[modality][0]}: 99 % of the brain has one value, expected contrast",
                "remove this file, so that the modality counts as missing",
                code="volume-without-contrast",
            )
        scales[modality] = scale
    return CaseImages(volumes, brain, scales)


def read_exactly(paths: Sequence[Path]) -> tuple[Array, float]:
    """Return the values of a volume as its file has them, (D, H, W) in working order; for label maps.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.

    Returns:
        Integers of the stored type, or floats if values are stored so or scaled; and the step between neighbouring
        scaled integers, 0 if values are not scaled integers.

    Raises:
        AttclError: as `read_grid`.
    """
    path = paths[0]
    if _is_png(path):
        pixels, dtype = png_slices.load(paths)
        return pixels.astype(dtype), 0.0

    def exactly(proxy: ArrayProxy) -> Array:
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        values: Array = np.asanyarray(proxy, dtype=np.float64) if scaled else proxy.get_unscaled()
        return values

    stored, grid = _decode(path, exactly)
    integers = grid.dtype.kind in "iu"
    step = abs(grid.header.get_slope_inter()[0]) if grid.scaled and integers else 0.0
    return to_working_order(stored, grid), step


def save(paths: Sequence[Path], data: Array, like: Grid, *, description: str) -> None:
    """Write a volume on the grid of another one: same shape, affine, qform and sform codes, units.

    Integers keep the type of `like` if the values fit, otherwise become int16, otherwise float32. Scaled integers
    become float32.

    Args:
        paths: one NIfTI file, or one PNG per slice.
        data: (D, H, W) in working order, intensities.
        like: the grid of a volume of the same case.
        description: put into the NIfTI `descrip` field (80 bytes) or the PNG text `Description`.

    Raises:
        AttclError: the file cannot be written. Nothing half-written stays.
    """
    if _is_png(paths[0]):
        png_slices.save(paths, data, like.dtype, description=description)
        return
    dtype = _output_type(data, like)
    stored = _to_stored_order(data, like)
    if dtype.kind in "iu":
        stored = np.rint(stored)
    header = like.header.copy()
    header.extensions.clear()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = description.encode("ascii", "replace")[:79]
    image = type_of_image(header)(np.ascontiguousarray(stored).astype(dtype), like.affine, header)
    raw = image.to_bytes()
    _check_written(raw, like, paths[0])
    write_whole(
        paths[0],
        gzip.compress(raw, _GZIP_LEVEL, mtime=0) if _is_packed(paths[0]) else raw,
    )


def new_grid(shape: tuple[int, int, int], affine: Array, dtype: Any = np.int16) -> Grid:
    """Make a NIfTI grid for generated volumes: mm, scanner coordinates in qform and sform."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    return Grid(shape=shape, affine=header.get_best_affine(), dtype=np.dtype(dtype), header=header)


def to_working_order(stored: Array, grid: Grid) -> Array:
    """Return (X, Y, Z) as stored as (D, H, W) in working order; a view."""
    order = ornt_transform(io_orientation(grid.affine), _WORKING_ORDER)
    value: Array = apply_orientation(stored, order).transpose(2, 1, 0)
    return value


def type_of_image(header: Any) -> type[Any]:
    """Return the nibabel image class that belongs to a header (NIfTI-1 or NIfTI-2)."""
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _is_packed(path: Path) -> bool:
    """Return whether a file's name says that it is compressed."""
    return path.suffix.lower() == ".gz"


def _read(paths: Sequence[Path]) -> Volume:
    if not _is_png(paths[0]):
        return _load_nifti(paths[0])
    data, dtype = png_slices.load(paths)
    depth, height, width = data.shape
    return Volume(data, _png_grid((height, width, depth), dtype))


def _png_grid(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Grid:
    return Grid(shape=shape, affine=np.eye(4), dtype=dtype)


_UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    struct.error,
)


def _load_nifti(path: Path) -> Volume:
    stored, grid = _decode(path, lambda proxy: np.asanyarray(proxy, dtype=np.float32))
    return Volume(np.ascontiguousarray(to_working_order(stored, grid)), grid)


def _decode(path: Path, read: Callable[[ArrayProxy], Array]) -> tuple[Array, Grid]:
    """Return the voxels of a file in stored order, (X, Y, Z), as `read` takes them from it, and its geometry."""
    _require_bytes(path)
    raw = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = _read_header(io.BytesIO(raw), path)
            grid = _grid(header, path)
            stored = read(ArrayProxy(io.BytesIO(raw), header))
    except AttclError:
        raise
    except _UNREADABLE as error:
        raise _no_nifti(path, error) from error
    return stored.reshape(grid.shape), grid


def _read_header(stream: io.BufferedIOBase, path: Path) -> Any:
    """Read a NIfTI-1 or NIfTI-2 header."""
    start = stream.read(4)
    stream.seek(0)
    of_version_2 = _NIFTI2_HEADER in (struct.unpack(order, start)[0] for order in ("<i", ">i"))
    header = (nib.Nifti2Header if of_version_2 else nib.Nifti1Header).from_fileobj(stream)
    shorten_quaternion(header, path)
    return header


def _grid(header: Any, path: Path) -> Grid:
    shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > _DIMENSIONS and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != _DIMENSIONS:
        raise AttclError(
            f"{path}: {len(shape)}-D ({_times(shape)}), expected one 3-D volume",
            "split it and keep one volume per modality",
            code="volume-not-3d",
        )
    if 0 in shape:
        raise AttclError(
            f"{path}: shape {_times(shape)}, expected voxels",
            "repair or remove this file",
            code="volume-empty",
        )
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise AttclError(
            f"{path}: voxels of type {dtype}, expected one number per voxel",
            "convert it to a grey-scale image",
            code="voxel-type",
        )
    affine = header.get_best_affine()
    with np.errstate(all="ignore"):
        singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9  # noqa: PLR2004
    if singular:
        raise AttclError(
            f"{path}: its affine maps voxels to no 3-D space, expected an invertible one",
            "repair the header's sform or qform",
            code="affine-singular",
        )
    scaled = header.get_slope_inter() not in {(1, 0), (None, None)}
    return Grid((shape[0], shape[1], shape[2]), affine, dtype, header, scaled)


def _require_bytes(path: Path) -> None:
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise AttclError(
            f"{path}: not readable ({error.strerror}), expected a NIfTI file",
            "a broken link? check that its target exists",
            code="file-missing",
        ) from error
    if empty:
        raise AttclError(
            f"{path}: empty (0 bytes), expected a NIfTI file",
            _COPY_AGAIN,
            code="file-empty",
        )
    if not _is_packed(path):
        return
    start = b""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        start = stream.read(4)
    if start in _STARTS_OF_NIFTI:
        raise AttclError(
            f"{path}: not compressed, expected a gzip file by its ending",
            "rename it to end in .nii",
            code="volume-not-compressed",
        )


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return bytes(gzip_codec.decompress(raw)) if _is_packed(path) else raw
    except Exception as error:
        known = (OSError, EOFError, zlib.error, ValueError)
        if not isinstance(error, known) and not type(error).__module__.startswith("isal"):
            raise
        raise AttclError(
            f"{path}: not readable to its end ({error}), expected a whole gzip file",
            _COPY_AGAIN,
            code="volume-cut-off",
        ) from error


def _stored_length(path: Path) -> int:
    with path.open("rb") as stream:
        stream.seek(-4, io.SEEK_END)
        return int(struct.unpack("<I", stream.read(4))[0])


def _no_nifti(path: Path, error: BaseException) -> AttclError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return AttclError(
        f"{path}: not readable as NIfTI ({reason}), expected .nii or .nii.gz",
        _COPY_AGAIN,
        code="volume-unreadable",
    )


def _cut_off(path: Path, length: int, expected: int) -> AttclError:
    return AttclError(
        f"{path}: cut off after {length} of {expected} bytes, expected a whole file",
        _COPY_AGAIN,
        code="volume-cut-off",
    )


def _to_stored_order(data: Array, grid: Grid) -> Array:
    order = ornt_transform(_WORKING_ORDER, io_orientation(grid.affine))
    value: Array = apply_orientation(data.transpose(2, 1, 0), order)
    return value


def _output_type(data: Array, like: Grid) -> np.dtype[Any]:
    if like.dtype.kind == "f" or like.scaled:
        return np.dtype(np.float32)
    low, high = float(data.min()), float(data.max())
    for dtype in (like.dtype.newbyteorder("="), np.dtype(np.int16)):
        limits = np.iinfo(dtype)
        if limits.min <= round(low) and round(high) <= limits.max:
            return dtype
    return np.dtype(np.float32)


def _check_written(raw: bytes, like: Grid, path: Path) -> None:
    header = type(like.header).from_fileobj(io.BytesIO(raw))
    fields = ("qform_code", "sform_code", "xyzt_units")
    same = all(int(header[field]) == int(like.header[field]) for field in fields)
    if (
        not same
        or header.get_data_shape() != like.shape
        or not np.array_equal(header.get_best_affine(), like.affine)
    ):
        raise AttclError(
            f"{path}: geometry changed in writing, expected that of the case",
            "please report this with the case's header",
            code="geometry-changed",
        )


def _corners(grid: Grid) -> Array:
    ends = np.array(
        [
            [x, y, z, 1]
            for x in (0, grid.shape[0])
            for y in (0, grid.shape[1])
            for z in (0, grid.shape[2])
        ]
    )
    return (ends @ grid.affine.T)[:, :3]


def _times(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)
