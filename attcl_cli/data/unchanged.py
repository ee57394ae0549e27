"""Files that must not change between the check of them and their reading, or until a run is resumed.

Notes size and time of each, or a fingerprint, of what a link leads to. What the files hold is left to their readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attcl_cli.errors import AttclError

_BLOCK = 4096  # bytes
_DIGITS = 16  # of a fingerprint

State = tuple[int, int] | None
"""Size in bytes and time of the last change in ns; None: there is no such file."""


def look_at(paths: Iterable[Path]) -> dict[Path, State]:
    """Return the state of some files."""
    return {path: _state(path) for path in paths}


def change_of(before: Mapping[Path, State]) -> AttclError | None:
    """Return the error about the first file that is not as it was; None if all are."""
    for path, state in before.items():
        now = _state(path)
        if now != state:
            how = "is gone" if now is None else "has changed"
            return AttclError(
                f"{path}: {how} since it was checked, expected files that stay as they are during a run",
                "wait until nothing writes there, then run the same command again",
                code="file-changed",
            )
    return None


@contextmanager
def require_unchanged(before: Mapping[Path, State]) -> Iterator[None]:
    """Read some files within the block, as they were when they were checked.

    Raises:
        AttclError: one is not as it was; what its reader found in the block is then a consequence.
    """
    try:
        yield
    except AttclError as error:
        change = change_of(before)
        if change is None:
            raise
        raise change from error
    change = change_of(before)
    if change is not None:
        raise change


def fingerprint(paths: Iterable[Path]) -> str:
    """Return a few hexadecimal digits that change with the content of files, and not with their places and times.

    They are made of the sizes, and of a block in the middle and one at the end of each file: that is where gzip and PNG
    have a checksum of the whole. Files that are not there count as such.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb", buffering=0) as stream:
                size = stream.seek(0, 2)
                digest.update(f"{size};".encode())
                for start in (size // 2, max(size - _BLOCK, 0)):
                    stream.seek(start)
                    digest.update(stream.read(_BLOCK))
        except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
            digest.update(b"-;")
    return digest.hexdigest()[:_DIGITS]


def _state(path: Path) -> State:
    try:
        status = path.stat()
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        return None
    return status.st_size, status.st_mtime_ns
