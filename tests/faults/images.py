"""Strategies of Hypothesis: NIfTI files, gzip streams and PNG slices, from valid to hostile.

Knows bytes alone; what must hold of them is left to the tests.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

SHAPE = (8, 7, 6)
LPS = np.diag([-2.0, -2, 2, 1])
_CODES = {
    "uint8": 2,
    "int16": 4,
    "int32": 8,
    "float32": 16,
    "float64": 64,
    "int64": 1024,
    "uint16": 512,
}

FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-30,
    1e-5,
    1e5,
    1e18,
    1e30,
    3e38,
    -3e38,
    math.inf,
    -math.inf,
    math.nan,
]
OFFSETS = [
    0,
    1,
    4,
    347,
    348,
    351,
    352,
    353,
    368,
    540,
    544,
    1000,
    10**6,
    2**31,
    2**40,
    -1,
    -352,
    *FLOATS[7:],
]
SIDES = [-32768, -1, 0, 1, 2, 5, 240, 1024, 27307, 32767]
HOSTILE: dict[str, list[Any]] = {
    "sizeof_hdr": [0, 348, 540, -1, 2**30],
    "dim0": [-1, 0, 1, 2, 3, 4, 5, 7, 8, 32767],
    **{f"dim{axis}": SIDES for axis in range(1, 8)},
    "datatype": [0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, -1, 77],
    "bitpix": [0, 1, 8, 16, -1, 32767],
    "vox_offset": OFFSETS,
    "scl_slope": FLOATS,
    "scl_inter": FLOATS,
    "xyzt_units": [0, 1, 255],
    "qform_code": [-1, 0, 1, 2, 5, 77, 32767],
    "sform_code": [-1, 0, 1, 2, 5, 77, 32767],
    "glmin": [-5, 0, 7, 2**31 - 1],
    **{f"pixdim{place}": FLOATS for place in range(4)},
    **{f"quatern_{name}": [0.5, 1.0001, *FLOATS] for name in "bcd"},
    **{f"qoffset_{name}": FLOATS for name in "xyz"},
    **{f"srow_{name}{column}": FLOATS for name in "xyz" for column in range(4)},
    "magic": [b"n+1", b"ni1", b"n+2", b"ni2", b"", b"\xff\xff\xff\xff"],
}  # fmt: skip
EXTENSIONS = [
    b"\1\0\0\0" + struct.pack("<2i", size, 6) + b"x" * 8
    for size in (16, 0, -8, -16, 7, 8, 24, 2**31 - 1)
]


@st.composite
def headers(draw: DrawFn, most_faults: int = 3) -> tuple[bytes, np.dtype[Any]]:
    """A header of a small volume with some fields changed, and the number type before the change."""
    kind: Any = draw(st.sampled_from([nib.Nifti1Header, nib.Nifti1Header, nib.Nifti2Header]))
    header = kind(endianness=draw(st.sampled_from(["<", "<", ">"])))
    name = draw(st.sampled_from(sorted(_CODES)))
    header.set_data_dtype(name)
    header.set_data_shape(SHAPE)
    header.set_sform(LPS, code=1)
    header.set_qform(LPS, code=draw(st.sampled_from([0, 1])))
    header["sform_code"] = draw(st.sampled_from([0, 1, 1]))
    header["vox_offset"] = header.single_vox_offset
    for field in draw(st.lists(st.sampled_from(sorted(HOSTILE)), max_size=most_faults)):
        spoil(header, field, draw(st.sampled_from(HOSTILE[field])))
    return header.binaryblock, np.dtype(name)


def spoil(header: Any, field: str, value: Any) -> None:
    """Set a field of a header (`dim3`, `srow_x1`), cast to its type as C casts."""
    name, place = field, None
    if field.startswith(("dim", "pixdim", "srow")):
        name, place = field[:-1], int(field[-1])
    if name not in header:  # NIfTI-2 has no glmin
        return
    array = header.structarr[name]
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        value = 0 if value != value else int(min(max(value, limits.min), limits.max))  # noqa: PLR0124
    with np.errstate(all="ignore"):
        if place is None:
            header.structarr[name] = value
        else:
            array[place] = value


@st.composite
def niftis(draw: DrawFn, most_faults: int = 3) -> bytes:
    """An unpacked NIfTI file: a header, perhaps extensions that lie, numbers, perhaps of another length."""
    header, dtype = draw(headers(most_faults))
    count = math.prod(SHAPE)
    values = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 99, count).astype(dtype)
    if dtype.kind == "f":
        values[draw(st.lists(st.integers(0, count - 1), max_size=3))] = draw(
            st.sampled_from(FLOATS)
        )
    if draw(st.sampled_from([False, False, True])):
        values[:] = values[0]
    extension = draw(st.sampled_from([bytes(4)] * 4 + EXTENSIONS))
    body = values.tobytes()
    length = draw(st.sampled_from([len(body)] * 4 + [0, 1, len(body) - 1, len(body) // 2]))
    tail = draw(st.sampled_from([b""] * 3 + [b"\0", b"tail", bytes(5000)]))
    return header + extension + body[:length] + tail


@st.composite
def damaged(draw: DrawFn, whole: SearchStrategy[bytes]) -> bytes:
    """Bytes of another strategy, now and then with flipped bits, cut off, or with something in between or behind."""
    data = bytearray(draw(whole))
    what = draw(
        st.sampled_from(["nothing", "nothing", "flip", "flip", "cut", "insert", "append", "repeat"])
    )
    place = draw(st.integers(0, len(data) - 1)) if data else 0
    if what == "flip" and data:
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif what == "cut":
        del data[place:]
    elif what == "insert":
        data[place:place] = draw(st.binary(max_size=9))
    elif what == "append":
        data += draw(
            st.sampled_from([b"\0" * 512, b"\x1f\x8b", b"garbage", b"\x1f\x8b\x08\x04\xff\xff"])
        )
    elif what == "repeat":
        data += bytes(data)
    return bytes(data)


@st.composite
def gzips(draw: DrawFn, content: SearchStrategy[bytes]) -> bytes:
    """Content as a gzip stream of one or several members, with or without a name in its header."""
    data = draw(content)
    cut = draw(st.sampled_from([0, 0, 1, 100, 348, len(data) // 2]))
    parts = [data[:cut], data[cut:]] if cut else [data]
    return b"".join(member(part, draw(st.sampled_from([b"", b"name"]))) for part in parts)


def member(data: bytes, name: bytes = b"") -> bytes:
    """A gzip member (RFC 1952)."""
    if not name:
        return gzip.compress(data, 1, mtime=0)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    start = b"\x1f\x8b\x08\x08" + bytes(6) + name + b"\0"
    return start + body + struct.pack("<2I", zlib.crc32(data), len(data) % 2**32)


def nifti_files() -> SearchStrategy[tuple[str, bytes]]:
    """The ending of a name, and the bytes below it."""
    plain = niftis()
    return st.one_of(
        st.tuples(st.just(".nii"), damaged(plain)),
        st.tuples(st.just(".nii.gz"), damaged(gzips(plain))),
        st.tuples(st.just(".nii.gz"), gzips(damaged(plain))),
        st.tuples(st.sampled_from([".nii", ".nii.gz"]), st.binary(max_size=600)),
    )


def bomb(header: bytes, gibibytes: float) -> bytes:
    """A gzip stream of one member: a header and zeros, a thousandth of what it expands to. The checksum is wrong."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block + again * int(gibibytes * 64) + packer.flush()


@st.composite
def pngs(draw: DrawFn) -> bytes:
    """A PNG slice, from valid to hostile."""
    side = st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**32 - 1, 8192, 30000])
    width, height = (draw(st.one_of(st.just(8), st.just(8), st.just(8), side)) for _ in "wh")
    depth = draw(st.sampled_from([8, 8, 16, 1, 2, 4, 0, 3, 255]))
    colour = draw(st.sampled_from([0, 0, 0, 2, 3, 4, 6, 1, 255]))
    interlaced = draw(st.sampled_from([0, 0, 1, 9]))
    start = struct.pack(">2I5B", width, height, depth, colour, 0, 0, interlaced)
    row = bytes([0]) + bytes(range(8)) * max(depth // 8, 1)
    pixels = zlib.compress(draw(st.sampled_from([row * 8, row * 4, row * 9, b"", bytes(2**16)])))
    others = draw(st.lists(st.sampled_from(sorted(CHUNKS)), max_size=3))
    parts = [chunk(b"IHDR", start), *(chunk(*CHUNKS[name]) for name in others)]
    parts += [
        chunk(b"IDAT", pixels),
        *(chunk(*CHUNKS[name]) for name in others),
        chunk(b"IEND", b""),
    ]
    if draw(st.booleans()):
        parts = parts[: draw(st.integers(0, len(parts)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


_ZEROS = zlib.compress(bytes(2**21), 9)
CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "animation": (b"acTL", struct.pack(">2I", 2**31, 0)),
    "one picture": (b"acTL", struct.pack(">2I", 0, 0)),
    "frame": (b"fcTL", bytes(26)),
    "short frame": (b"fcTL", b"\0"),
    "text": (b"tEXt", b"Description\0attcl"),
    "text bomb": (b"zTXt", b"Description\0\0" + _ZEROS),
    "international": (b"iTXt", b"Description\0\1\0\0\0" + _ZEROS),
    "profile": (b"iCCP", b"name\0\0" + _ZEROS),
    "damaged profile": (b"iCCP", b"name\0\7"),
    "transparent": (b"tRNS", b"\0"),
    "palette": (b"PLTE", b"\0\0\0\1\1\1"),
    "physical": (b"pHYs", b"\0"),
    "gamma": (b"gAMA", b""),
    "chromaticity": (b"cHRM", b"\0" * 3),
    "exif": (b"eXIf", b"Exif\0\0garbage"),
    "second header": (b"IHDR", struct.pack(">2I5B", 9, 9, 8, 0, 0, 0, 0)),
    "end": (b"IEND", b""),
    "unknown": (b"XXXX", b"x"),
}
