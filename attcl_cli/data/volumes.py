"""Volumes on disk and as arrays: in and out, geometry, the volumes of a case together.

Which file is which modality is left to `dataset`, what is read of a file to `nifti_files` and `png_slices`, arrays
without files to `intensities`. Only this file and `nifti_files` know nibabel.

Inside the program a volume is always (D, H, W): axial slices from foot to head, row 0 anterior, column 0 the patient's
right, whatever the file's orientation. That is BraTS's own voxel order (LPS) transposed, so for BraTS it is a view.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from attcl_cli.data import nifti_files, png_slices
from attcl_cli.data.background import BackgroundOption, find_background, subtract
from attcl_cli.data.image_files import require_bytes, times
from attcl_cli.data.intensities import Array, Scale, brain_of, intensity_scale, normalise
from attcl_cli.data.written import require_finite
from attcl_cli.errors import AttclError, counted, raise_all
from attcl_cli.files import write_whole

AFFINE_TOLERANCE_MM = 0.01  # headers of one patient differ by float32 rounding, not more
_WORKING_ORDER = axcodes2ornt(("L", "P", "S"))
_GZIP_LEVEL = 1
_MOST_GRIDS = 256  # that are remembered
# A brain compresses to a tenth or more of its size, a constant volume to a thousandth.
_SUSPICIOUS_COMPRESSION = 0.01
_DIMENSIONS = 3
_LARGEST = 1e18  # intensities whose squares a float32 can still hold
# Header as stored -> what it says. The volumes of a dataset share few headers: 100 files of 20 patients have 22.
_grids: dict[bytes, Grid] = {}


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

    @cached_property
    def block(self) -> nifti_files.Block:
        """Return where the voxels lie in a NIfTI file with this header; not of PNG slices."""
        return nifti_files.block_of(self.header)

    @cached_property
    def orientation(self) -> Array:
        """Return how stored axes become those of the working order, (3, 2), as nibabel has it; not of PNG slices."""
        order: Array = ornt_transform(io_orientation(self.affine), _WORKING_ORDER)
        return order

    @cached_property
    def axes_and_flips(self) -> tuple[tuple[int, ...], tuple[slice, ...]]:
        """Return which stored axes are (D, H, W), and how each stored axis is run through."""
        places, directions = self.orientation.T
        order = tuple(int(axis) for axis in np.argsort(places)[::-1])
        return order, tuple(slice(None, None, int(direction)) for direction in directions)

    @cached_property
    def axial_spacing_mm(self) -> tuple[float, float, float]:
        """Return the voxel edge lengths along (D, H, W) in working order, mm; 1 for PNG slices, which have none."""
        if self.header is None:
            return 1.0, 1.0, 1.0
        x, y, z = (
            self.spacing_mm[int(np.flatnonzero(self.orientation[:, 0] == axis)[0])]
            for axis in range(3)
        )
        return z, y, x

    @property
    def axial_affine(self) -> Array:
        """Return (column, row, slice, 1) in working order to RAS+ mm, (4, 4); PNG slices start at the origin."""
        if self.header is None:
            return np.diag([-1.0, -1.0, 1.0, 1.0])
        value: Array = self.affine @ inv_ornt_aff(self.orientation, self.shape)
        return value

    @cached_property
    def axial_shape(self) -> tuple[int, int, int]:
        """Return (D, H, W) of the volume in working order."""
        if self.header is None:
            return self.shape[2], self.shape[0], self.shape[1]
        x, y, z = (
            self.shape[int(np.flatnonzero(self.orientation[:, 0] == axis)[0])] for axis in range(3)
        )
        return z, y, x

    def differs_from(self, other: Grid) -> str:
        """Return in words how the grids differ; "" if they do not. PNG slices have no position, only a size."""
        if self is other:
            return ""
        if (self.header is None) != (other.header is None):
            here, there = self.axial_shape, other.axial_shape
            return "" if here == there else f"slices of {times(here)} against {times(there)}"
        if self.shape != other.shape:
            return f"shape {times(self.shape)} against {times(other.shape)}"
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
    ends = nifti_files.read_ends(path)
    grid = _grid_of(ends.header, path)
    nifti_files.require_whole(path, grid.block, ends.length)
    return grid


def read_description(paths: Sequence[Path]) -> str | None:
    """Return what a volume says of itself (`save`): the NIfTI field `descrip`, or a PNG's text; None if unreadable."""
    path = paths[0]
    if _is_png(path):
        return png_slices.read_description(path)
    try:
        return nifti_files.read_description(path)
    except AttclError:
        return None


def is_described(path: Path, description: str) -> bool:
    """Return whether a volume, or a slice, says of itself what `save` puts into one with this description."""
    if not _is_png(path):
        description = _as_descrip(description).decode()
    return read_description([path]) == description


def axes_of(path: Path) -> int:
    """Return how many axes a NIfTI file says it has; those of length 1 beyond the third are dropped when it is read."""
    return len(read_grid([path]).header.get_data_shape())


def read_as_3d(path: Path) -> bytes:
    """Return a NIfTI file decompressed and to the byte, but for axes of length 1 beyond the third, which are dropped.

    Raises:
        AttclError: as `read_grid`.
    """
    grid = read_grid([path])
    header, raw = grid.header.copy(), nifti_files.read_bytes(path, grid.block)
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
    size = require_bytes(path, "a NIfTI file")
    packed = size / (math.prod(grid.shape) * grid.dtype.itemsize)
    return (
        grid.dtype.kind == "f"
        or not nifti_files.is_packed(path)
        or packed < _SUSPICIOUS_COMPRESSION
    )


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


def other_grids(grids: Mapping[Path, Grid]) -> list[AttclError]:
    """Return the problems of a case's images that are off the grid of most; if several have as many, of the first."""
    first = next(iter(grids.values()), None)
    if first is None or not any(grid.differs_from(first) for grid in grids.values()):
        return []
    alike = {
        path: sum(not it.differs_from(grid) for it in grids.values())
        for path, grid in grids.items()
    }
    usual = max(alike, key=lambda path: alike[path])
    return [
        AttclError(
            f"{path}: {difference} of {usual.name}, expected one grid for all volumes of a case",
            "bring the case's volumes onto one grid: reorient them, or co-register and resample them; "
            "or remove the one that differs",
            code="grids-differ",
        )
        for path, grid in grids.items()
        if (difference := grid.differs_from(grids[usual]))
    ]


def require_image(data: Array, path: Path) -> None:
    """Refuse intensities that are no image.

    Raises:
        AttclError: they hold NaN or infinity, values beyond all images, or a single value everywhere.
    """
    low, high = data.min(), data.max()  # NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        wrong = ~np.isfinite(data)
        if wrong.all():
            raise AttclError(
                f"{path}: every voxel is NaN or infinite, expected finite intensities",
                "copy or convert it again from its source, or remove it, so that the modality counts as missing",
                code="voxels-not-finite",
            )
        raise AttclError(
            f"{path}: {counted(int(wrong.sum()), 'voxel is', 'voxels are')} NaN or infinite, expected finite "
            "intensities",
            "write 0 in their place if they are background (fslmaths IN -nan OUT, numpy.nan_to_num), "
            "otherwise repair or remove this file",
            code="voxels-not-finite",
        )
    if max(-float(low), float(high)) > _LARGEST:
        raise AttclError(
            f"{path}: intensities from {low:.4g} to {high:.4g}, expected no more than {_LARGEST:g} on either side of 0",
            "repair its scaling (scl_slope, scl_inter) or the voxels that mark something else, or remove this file",
            code="intensities-too-large",
        )
    if low == high:
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
    raise_all(other_grids({files[name][0]: it.grid for name, it in volumes.items()}))
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


def read_exactly(paths: Sequence[Path], grid: Grid | None = None) -> tuple[Array, float]:
    """Return the values of a volume as its file has them, (D, H, W) in working order; for label maps.

    Args:
        paths: one NIfTI file, or the PNG slices of one volume in slice order.
        grid: of `read_grid`, if it was read before.

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

    grid = grid or _grid_of(nifti_files.read_ends(path).header, path)
    stored = nifti_files.read_stored(path, grid.block)
    if grid.scaled:
        stored = nifti_files.scaled(stored, grid.header, np.float64, path)
    integers = grid.scaled and grid.dtype.kind in "iu"
    step = abs(grid.header.get_slope_inter()[0]) if integers else 0.0
    return to_working_order(stored, grid), step


def save(
    paths: Sequence[Path], data: Array, like: Grid, *, description: str, made_by: str = ""
) -> None:
    """Write a volume on the grid of another one: same shape, affine, qform and sform codes, units.

    Integers keep the type of `like` if the values fit, otherwise become int16, otherwise float32. Scaled integers
    become float32.

    Args:
        paths: one NIfTI file, or one PNG per slice.
        data: (D, H, W) in working order, intensities.
        like: the grid of a volume of the same case.
        description: put into the NIfTI `descrip` field (80 bytes) or the PNG text `Description`.
        made_by: the weights that made the volume, for an error (`written.require_finite`).

    Raises:
        AttclError: the file cannot be written, or the volume holds NaN or infinity. Nothing half-written stays.
    """
    ends = require_finite(data, paths[0], made_by=made_by)
    if _is_png(paths[0]):
        png_slices.save(paths, data, like.dtype, description=description)
        return
    dtype = _output_type(ends, like)
    stored = _to_stored_order(data, like)
    if dtype.kind in "iu":
        stored = np.rint(stored)
    header = like.header.copy()
    header.extensions.clear()
    header.set_data_offset(0)  # nibabel chooses it; of an odd one it would write a line to stderr
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = _as_descrip(description)
    # in the file's order, so that nothing is transposed when it becomes bytes
    image = type_of_image(header)(stored.astype(dtype, order="F"), like.affine, header)
    raw = image.to_bytes()
    _check_written(raw, like, paths[0])
    write_whole(
        paths[0],
        gzip.compress(raw, _GZIP_LEVEL, mtime=0) if nifti_files.is_packed(paths[0]) else raw,
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
    order, flips = grid.axes_and_flips
    return stored[flips].transpose(order)


def type_of_image(header: Any) -> type[Any]:
    """Return the nibabel image class that belongs to a header (NIfTI-1 or NIfTI-2)."""
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def _as_descrip(description: str) -> bytes:
    return description.encode("ascii", "replace")[:79]


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _read(paths: Sequence[Path]) -> Volume:
    if not _is_png(paths[0]):
        return _load_nifti(paths[0])
    data, dtype = png_slices.load(paths)
    depth, height, width = data.shape
    return Volume(data, _png_grid((height, width, depth), dtype))


def _png_grid(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Grid:
    return Grid(shape=shape, affine=np.eye(4), dtype=dtype)


def _load_nifti(path: Path) -> Volume:
    grid = _grid_of(nifti_files.read_ends(path).header, path)
    stored = nifti_files.read_stored(path, grid.block)
    values = nifti_files.scaled(stored, grid.header, np.float32, path)
    return Volume(np.ascontiguousarray(to_working_order(values, grid)), grid)


def _grid_of(start: bytes, path: Path) -> Grid:
    """Return the geometry that a header describes, the same object for files with the same header."""
    known = _grids.get(start)
    if known is not None:
        return known
    header = nifti_files.parse_header(start, path)
    block = nifti_files.block_of(header)
    grid = Grid(
        shape=block.shape,
        affine=header.get_best_affine(),
        dtype=block.dtype,
        header=header,
        scaled=header.get_slope_inter() not in {(1, 0), (None, None)},
    )
    for shared in (grid.affine, header.structarr):
        shared.flags.writeable = False
    if len(_grids) >= _MOST_GRIDS:
        _grids.clear()
    return _grids.setdefault(start, grid)


def _to_stored_order(data: Array, grid: Grid) -> Array:
    order = ornt_transform(_WORKING_ORDER, io_orientation(grid.affine))
    value: Array = apply_orientation(data.transpose(2, 1, 0), order)
    return value


def _output_type(ends: tuple[float, float], like: Grid) -> np.dtype[Any]:
    if like.dtype.kind == "f" or like.scaled:
        return np.dtype(np.float32)
    low, high = ends
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
