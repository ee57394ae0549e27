"""NIfTI files as headers and stored numbers: the gate of all their readers; a damaged file is an error of ours.

The header comes first. It bounds what is read of the rest, which is never more than the file can hold. Orientation,
geometry and writing are left to `volumes`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import math
import operator
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import DTypeLike

from attcl_cli.data.image_files import (
    COPY_AGAIN,
    can_hold,
    gate,
    require_bytes,
    require_voxels,
    times,
)
from attcl_cli.data.intensities import Array
from attcl_cli.data.nifti_headers import shorten_quaternion
from attcl_cli.errors import AttclError

gzip_codec: ModuleType = gzip
"""What decompresses."""
with contextlib.suppress(ImportError):  # no wheel for every platform
    # Intel's ISA-L is several times faster than zlib on volumes. It does not compress: under load it was seen to write
    # other bytes for the same volume (isal 1.9.1), and the same run must write the same bytes.
    from isal import igzip as gzip_codec

_KIND = "a NIfTI file"
_DIMENSIONS = 3
_NIFTI2_HEADER = 540  # bytes; the first number of such a file
_STARTS_OF_NIFTI = {struct.pack(order, size) for order in ("<i", ">i") for size in (348, 540)}
_MOST_OFFSET = 2**28  # bytes of header and extensions before the first voxel
_SPARE = 2**20  # bytes that a file may go on for, besides once more what its header promises
_MAINLY = 0.9  # of an axis' length along one axis of space: along the others it is less
_START_OF_GZIP = b"\x1f\x8b"
_GZIP = 31  # zlib's name for a gzip stream
_START = 2**13  # bytes of a compressed file that hold its header, if it has no comment
_CHUNK = 2**20
# nibabel logs what it repairs in a header; its own logger writes to stderr.
_SILENT = logging.Logger("attcl_cli.nibabel")
_SILENT.addHandler(logging.NullHandler())


def is_packed(path: Path) -> bool:
    """Return whether a file's name says that it is compressed."""
    return path.name[-3:].lower() == ".gz"


@dataclass(frozen=True)
class Ends:
    """What both ends of a NIfTI file say; nothing between them is read.

    Attributes:
        header: its bytes as they are stored. Extensions are not among them, nothing needs them.
        length: of the file in bytes; if it is compressed, of what it holds, modulo 2**32, as its last four bytes say.
    """

    header: bytes
    length: int


def read_ends(path: Path) -> Ends:
    """Read the header of a NIfTI-1 or NIfTI-2 file, and how long it says it is.

    Raises:
        AttclError: the file is missing, empty, or damaged before the header ends.
    """
    size = require_bytes(path, _KIND)
    with gate(path, _KIND, partial(_no_nifti, path)):
        block, last = _first_and_last_bytes(path)
        header = block[: _kind_of(block).template_dtype.itemsize]
        return Ends(header, struct.unpack("<I", last)[0] if is_packed(path) else size)


def parse_header(start: bytes, path: Path) -> Any:
    """Return a header; that it is of one 3-D volume of numbers with a place in space is certain then.

    Args:
        start: the bytes of a header (`Ends.header`).
        path: named in errors.

    Raises:
        AttclError: it is no NIfTI, or makes no sense.
    """
    with gate(path, _KIND, partial(_no_nifti, path)), np.errstate(all="ignore"):
        header = _parse(start)
        shorten_quaternion(header, path)
        _require_volume(header, path)
        _require_start(header, path)
        _require_space(header, path)
        header.get_slope_inter()
    return header


def read_description(path: Path) -> str:
    """Read the field `descrip` of a NIfTI file.

    Raises:
        AttclError: the file is missing, empty, or no NIfTI.
    """
    require_bytes(path, _KIND)
    with gate(path, _KIND, partial(_no_nifti, path)):
        return (
            bytes(_parse(_first_and_last_bytes(path)[0])["descrip"]).rstrip(b"\0").decode("latin-1")
        )


@dataclass(frozen=True)
class Block:
    """Where the voxels of a volume lie in its file, decompressed.

    Attributes:
        shape: as stored, (X, Y, Z), without further axes of length 1.
        dtype: of the stored numbers.
        start: the byte of the first one.
        end: the byte after the last one, to which a whole file goes at least.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    start: int
    end: int


def block_of(header: Any) -> Block:
    """Return where the voxels lie by a header of `parse_header`; always exact."""
    shape, dtype, start = _shape_of(header), header.get_data_dtype(), int(header.get_data_offset())
    return Block(shape, dtype, start, start + math.prod(shape) * int(dtype.itemsize))


def require_whole(path: Path, block: Block, length: int) -> None:
    """Prove cheaply that a file holds what its header promises; mostly no voxel is decompressed.

    Only if the length that gzip stores disagrees (some writers chain several members) the file is decompressed, as far
    as it may go on.

    Args:
        path: a NIfTI file.
        block: of its header.
        length: of `read_ends`.

    Raises:
        AttclError: it is cut off, damaged, or goes on for too long.
    """
    if not is_packed(path):
        if length < block.end:
            raise _cut_off(path, length, block.end)
    elif length != block.end % 2**32:
        with gate(path, _KIND, partial(_not_to_its_end, path)):
            _measure(path, block.end)


def read_stored(path: Path, block: Block) -> Array:
    """Read the numbers of a volume as they are stored, (X, Y, Z).

    Args:
        path: a NIfTI file.
        block: of its header.

    Raises:
        AttclError: the file is cut off, damaged, or goes on for too long.
    """
    with gate(path, _KIND, partial(_not_to_its_end, path)):
        _require_room(path, block)
        voxels = memoryview(bytearray(block.end - block.start))
        with _opened(path) as stream:
            stream.seek(block.start)
            filled = 0
            while filled < len(voxels):
                chunk = stream.read(min(_CHUNK, len(voxels) - filled))
                if not chunk:
                    raise _cut_off(path, stream.tell(), block.end)
                voxels[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
            if is_packed(path):
                deque(_rest(stream, path, block.end), maxlen=0)
        stored: Array = np.ndarray(block.shape, block.dtype, buffer=voxels, order="F")
    return stored


def scaled(stored: Array, header: Any, dtype: DTypeLike, path: Path) -> Array:
    """Return stored numbers times the slope plus the intercept of their header, as nibabel computes them.

    Args:
        stored: of `read_stored`.
        header: of `parse_header`.
        dtype: the number type of the result.
        path: named in errors.

    Raises:
        AttclError: slope and intercept go beyond all number types.
    """
    slope, intercept = header.get_slope_inter()
    with gate(path, _KIND, partial(_no_nifti, path)), np.errstate(all="ignore"):
        values = apply_read_scaling(stored, slope, intercept)
        wide = values.astype(np.promote_types(values.dtype, dtype), copy=False)
        result: Array = wide.astype(dtype, copy=False)
    return result


def read_bytes(path: Path, block: Block) -> bytes:
    """Read a whole file, decompressed.

    Args:
        path: a NIfTI file.
        block: of its header.

    Raises:
        AttclError: the file is cut off, damaged, or goes on for too long.
    """
    with gate(path, _KIND, partial(_not_to_its_end, path)):
        _require_room(path, block)
        with _opened(path) as stream:
            first = stream.read(block.end)
            if len(first) < block.end:
                raise _cut_off(path, len(first), block.end)
            return b"".join((first, *_rest(stream, path, block.end)))


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip_codec.open(path) if is_packed(path) else path.open("rb"))


def _parse(start: bytes) -> Any:
    """Return a header as nibabel checks and repairs it."""
    kind = _kind_of(start)
    header = kind(start[: kind.template_dtype.itemsize], check=False)
    header.check_fix(logger=_SILENT)
    return header


def _kind_of(start: bytes) -> Any:
    """Return nibabel's class for a header that begins so."""
    of_version_2 = _NIFTI2_HEADER in (struct.unpack(order, start[:4])[0] for order in ("<i", ">i"))
    return nib.Nifti2Header if of_version_2 else nib.Nifti1Header


def _first_and_last_bytes(path: Path) -> tuple[bytes, bytes]:
    """Return the decompressed bytes that hold a header, and the last four as stored; fewer if the file has no more."""
    with path.open("rb") as stream:
        start = stream.read(_START)
        stream.seek(max(stream.seek(0, io.SEEK_END) - 4, 0))
        last = stream.read(4)
    if is_packed(path):
        with contextlib.suppress(zlib.error):
            block = zlib.decompressobj(_GZIP).decompress(start, _NIFTI2_HEADER)
            if len(block) == _NIFTI2_HEADER:
                return block, last
        with _opened(path) as stream:  # members of few bytes, or damage
            return stream.read(_NIFTI2_HEADER), last
    return start[:_NIFTI2_HEADER], last


def _shape_of(header: Any) -> tuple[int, int, int]:
    first, second, third = (int(side) for side in header.get_data_shape()[:_DIMENSIONS])
    return first, second, third


def _require_volume(header: Any, path: Path) -> None:
    shape = tuple(int(side) for side in header.get_data_shape())
    while len(shape) > _DIMENSIONS and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != _DIMENSIONS:
        raise AttclError(
            f"{path}: {len(shape)}-D ({times(shape)}), expected one 3-D volume",
            "split it and keep one volume per modality",
            code="volume-not-3d",
        )
    if min(shape) < 1:
        raise AttclError(
            f"{path}: shape {times(shape)}, expected voxels",
            "repair or remove this file",
            code="volume-empty",
        )
    require_voxels(path, shape)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise AttclError(
            f"{path}: voxels of type {dtype}, expected one number per voxel",
            "convert it to a grey-scale image",
            code="voxel-type",
        )


def _require_start(header: Any, path: Path) -> None:
    """Refuse a file whose voxels would begin within its header, or nowhere.

    The standard wants 352 or more in a single file. Of 0, nibabel makes the header's own bytes the first voxels, and
    NIfTI's reference library begins right after the header: no two readers show the same image.
    """
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= _MOST_OFFSET:
        least = header.single_vox_offset
        raise AttclError(
            f"{path}: its voxels begin at byte {offset:g} (vox_offset), expected {least} to {_MOST_OFFSET}",
            f"write the file again with the program that made it; without extensions vox_offset is {least}",
            code="voxel-offset",
        )


def _require_space(header: Any, path: Path) -> None:
    """Refuse an affine that gives the voxels no place, or axes that are one axis when rounded."""
    affine = header.get_best_affine()
    matrix = affine.tolist()  # of numbers of Python, several times faster than arrays of nine
    shape = (*_shape_of(header), 1)
    corner = [sum(map(operator.mul, row, shape)) for row in matrix]
    axes = list(zip(*(row[:3] for row in matrix[:3]), strict=True))
    edges = [math.hypot(*axis) for axis in axes]
    (a, b, c), (d, e, f), (g, h, i) = axes
    volume = abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    if (
        not all(map(math.isfinite, (*corner, *edges, volume)))
        or volume < 1e-9  # noqa: PLR2004
        or not (_along_axes(axes, edges) or set(io_orientation(affine)[:, 0]) == {0, 1, 2})
    ):
        raise AttclError(
            f"{path}: its affine maps voxels to no 3-D space, expected an invertible one",
            "repair the header's sform or qform",
            code="affine-singular",
        )


def _along_axes(axes: Sequence[Sequence[float]], edges: Sequence[float]) -> bool:
    """Return whether each axis is mainly along one of space, as nearly always; edges are their lengths."""
    pairs = zip(axes, edges, strict=True)
    return {
        place
        for axis, edge in pairs
        for place, part in enumerate(axis)
        if abs(part) > _MAINLY * edge
    } == {0, 1, 2}


def _require_room(path: Path, block: Block) -> None:
    """Check that a file can hold its voxels; memory for them may be taken then.

    Raises:
        AttclError: it is too small.
    """
    size = require_bytes(path, _KIND)
    if is_packed(path):
        if not can_hold(size, block.end):
            _measure(path, block.end)
    elif size < block.end:
        raise _cut_off(path, size, block.end)


def _measure(path: Path, promised: int) -> None:
    """Decompress a file to its end, with no more than a chunk of it in memory.

    Raises:
        AttclError: it is shorter than promised, or goes on for too long.
    """
    length = 0
    with _opened(path) as stream:
        while length < promised:
            chunk = stream.read(min(_CHUNK, promised - length))
            if not chunk:
                raise _cut_off(path, length, promised)
            length += len(chunk)
        deque(_rest(stream, path, promised), maxlen=0)


def _rest(stream: BinaryIO, path: Path, promised: int) -> Iterator[bytes]:
    """Yield what follows the voxels; at its end gzip verifies its checksums.

    Raises:
        AttclError: it is more than as much again and a mebibyte.
    """
    length = promised
    while chunk := stream.read(_CHUNK):
        length += len(chunk)
        if length > 2 * promised + _SPARE:
            raise AttclError(
                f"{path}: goes on after the {promised:,} bytes that its header promises, for more than as many again, "
                "expected one volume",
                COPY_AGAIN,
                code="volume-too-long",
            )
        yield chunk


def _no_nifti(path: Path, reason: str) -> AttclError:
    with path.open("rb") as stream:
        start = stream.read(4)
    if is_packed(path) and start in _STARTS_OF_NIFTI:
        return AttclError(
            f"{path}: not compressed, expected a gzip file by its ending",
            "rename it to end in .nii",
            code="volume-not-compressed",
        )
    if not is_packed(path) and start[:2] == _START_OF_GZIP:
        return AttclError(
            f"{path}: compressed, expected NIfTI that is not, by its ending",
            "rename it to end in .nii.gz",
            code="volume-compressed",
        )
    return AttclError(
        f"{path}: not readable as NIfTI ({reason}), expected .nii or .nii.gz",
        COPY_AGAIN,
        code="volume-unreadable",
    )


def _not_to_its_end(path: Path, reason: str) -> AttclError:
    return AttclError(
        f"{path}: not readable to its end ({reason}), expected a whole "
        f"{'gzip' if is_packed(path) else 'NIfTI'} file",
        COPY_AGAIN,
        code="volume-cut-off",
    )


def _cut_off(path: Path, length: int, expected: int) -> AttclError:
    return AttclError(
        f"{path}: cut off after {length} of {expected} bytes, expected a whole file",
        COPY_AGAIN,
        code="volume-cut-off",
    )
