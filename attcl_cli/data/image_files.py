"""Files of images before a library decodes them: whether one can be read, and how much it may hold.

Knows files and sizes, and what libraries raise on damaged ones. Formats are left to `nifti_files` and `png_slices`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attcl_cli.errors import AttclError

MOST_VOXELS = 2**30
"""The most voxels of a volume that is read: 1024 along each side, 4 GiB as float32."""

COPY_AGAIN = "copy it again from its source, or remove it"

# A byte of deflate stands for at most so many: two bits are a copy of 258 bytes (RFC 1951).
_MOST_PER_BYTE = 1032
_REASON = 200  # characters of a library's own message


def require_file(path: Path, kind: str) -> int:
    """Return the size of a file, in bytes, which may be 0.

    Args:
        path: the file.
        kind: what it should be, such as "a NIfTI file".

    Raises:
        AttclError: it is missing, or no file: a folder, a pipe, a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise not_readable(path, error, kind) from error
    except ValueError as error:  # a name with a zero byte
        raise not_readable(path, OSError(0, str(error)), kind) from error
    if not stat.S_ISREG(status.st_mode):
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
        raise AttclError(
            f"{path}: {found}, expected {kind}", "move it out of the dataset", code="file-missing"
        )
    return status.st_size


def require_bytes(path: Path, kind: str) -> int:
    """Return the size of a file, in bytes.

    Args:
        path: the file.
        kind: what it should be, such as "a NIfTI file".

    Raises:
        AttclError: as `require_file`, or it is empty.
    """
    size = require_file(path, kind)
    if size == 0:
        raise AttclError(f"{path}: empty (0 bytes), expected {kind}", COPY_AGAIN, code="file-empty")
    return size


def not_readable(path: Path, error: OSError, kind: str) -> AttclError:
    """Return the problem of a file that the system does not hand out.

    Args:
        path: the file.
        error: what the system says.
        kind: what the file should be, such as "a NIfTI file".
    """
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return AttclError(
            f"{path}: not readable ({reason}), expected permission to read it",
            "change its permissions and those of its folders (chmod u+r FILE, chmod u+rx FOLDER), or ask its owner",
            code="file-no-permission",
        )
    if not isinstance(error, FileNotFoundError):
        hint = "check the path and the disk that the file is on"
    elif path.is_symlink():
        hint = "it is a broken link: check that its target exists"
    else:
        hint = "check the path: was the file removed or renamed?"
    return AttclError(
        f"{path}: not readable ({reason}), expected {kind}", hint, code="file-missing"
    )


@contextmanager
def gate(path: Path, kind: str, problem: Callable[[str], AttclError]) -> Iterator[None]:
    """Turn whatever a library raises on a file into an error that names the file.

    Args:
        path: the file that is read inside the block.
        kind: what it should be, such as "a NIfTI file".
        problem: makes the error from the library's message, of one line.

    Raises:
        AttclError: as `not_readable` or `problem` make it. Errors of ours and a lack of memory pass unchanged.
    """
    try:
        yield
    except (AttclError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of the system, not of a decoder
            raise not_readable(path, error, kind) from error
        lines = str(error).splitlines()
        raise problem((lines[0] if lines else type(error).__name__)[:_REASON]) from error


def can_hold(size: int, promised: int) -> bool:
    """Return whether compressed bytes can stand for so many; no deflate stream packs tighter.

    Args:
        size: bytes of the compressed file.
        promised: bytes that its header promises.
    """
    return promised <= size * _MOST_PER_BYTE


def require_voxels(path: Path, shape: Sequence[int]) -> None:
    """Refuse a volume that is larger than any MR image.

    Args:
        path: named in the error.
        shape: of the volume, each at least 1.

    Raises:
        AttclError: it has more than `MOST_VOXELS`.
    """
    voxels = 1
    for side in shape:
        voxels *= int(side)
    if voxels > MOST_VOXELS:
        raise AttclError(
            f"{path}: its header promises {times(shape)} = {voxels:,} voxels, expected at most {MOST_VOXELS:,}",
            "crop or resample it, or copy it again if its header is damaged",
            code="volume-too-large",
        )


def times(shape: Sequence[int]) -> str:
    """Return sides as a text: 240x240x155."""
    return "x".join(str(side) for side in shape)
