"""Temporary files and folders: hidden neighbours of what is being made, locked as long as their maker lives.

A kill leaves them behind; `sweep` removes what nobody holds. What is written into them is left to `files`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".attcl-tmp"

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"
_NAME = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9-]+)-(?P<pid>\d+)-[^.]*\.attcl-tmp$")
_STALE_SECONDS = 3600  # without locks, what was last written so long ago is a leftover
_LONGEST = 150  # bytes of a name to which a temporary one may add its own part
_ours: dict[
    str, Path
] = {}  # held by this process; some locks do not see other holders in one process


def temporary_prefix(path: Path) -> str:
    """Return how the name of a temporary neighbour of `path` begins; it ends in `TEMPORARY_SUFFIX`."""
    return f"{_stem(path)}{_HOST}-{os.getpid()}-"


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[int, Path]]:
    """Make an empty, locked file beside `path` for the block; what is not renamed by then is removed.

    Yields:
        Its open handle, and where it is.
    """
    handle, place = open_temporary(path)
    try:
        yield handle, place
    finally:
        close_temporary(handle, place)


def open_temporary(path: Path) -> tuple[int, Path]:
    """Make an empty, locked file beside `path`; return its handle, and where it is. `close_temporary` removes it."""
    while True:
        handle, name = tempfile.mkstemp(
            prefix=temporary_prefix(path), suffix=TEMPORARY_SUFFIX, dir=path.parent
        )
        if _claim(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)  # a sweep was faster than the lock


def close_temporary(handle: int, place: Path) -> None:
    """Remove what `open_temporary` made, unless it was renamed."""
    with contextlib.suppress(OSError):
        place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.close(handle)
    _ours.pop(place.name, None)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make an empty, locked folder beside `path` for the block; what is not renamed by then is removed.

    Folders of that name that killed runs left there are removed before.
    """
    sweep_beside(path)
    handle = -1
    place: Path | None = None
    try:
        while place is None:
            place = Path(
                tempfile.mkdtemp(
                    prefix=temporary_prefix(path), suffix=TEMPORARY_SUFFIX, dir=path.parent
                )
            )
            with contextlib.suppress(OSError):  # not every system opens a folder
                handle = os.open(place, os.O_RDONLY)
            if not _claim(handle, place):
                os.close(handle)
                place = None
        yield place
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
            _ours.pop(place.name, None)
        with contextlib.suppress(OSError):
            os.close(handle)


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one that a run makes and sweeps."""
    return _NAME.match(name) is not None


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing but temporary files and folders, which a run sweeps."""
    return all(is_temporary(path.name) for path in folder.iterdir())


def sweep(root: Path) -> int:
    """Remove the temporary files and folders that nobody holds below `root`; return their number."""
    removed = 0
    for folder, folders, names in os.walk(root):
        temporary = [name for name in folders if _NAME.match(name)]
        folders[:] = [name for name in folders if name not in temporary]
        removed += sum(remove_leftover(Path(folder) / name) for name in [*temporary, *names])
    return removed


def sweep_beside(path: Path) -> int:
    """Remove the temporary neighbours of `path` that nobody holds; return their number."""
    try:
        places = list(path.parent.iterdir())
    except OSError:
        return 0
    return sum(remove_leftover(it) for it in places if it.name.startswith(_stem(path)))


def remove_leftover(place: Path) -> bool:
    """Remove a temporary file or folder of a process that has ended; return whether it was one.

    Its maker holds a lock on it, also in another container. On file systems without locks, it is a leftover if nothing
    was written to it for an hour, unless its maker lives on this machine.
    """
    match = _NAME.match(place.name)
    if match is None or place.name in _ours:
        return False
    try:
        status = place.lstat()
        folder = stat.S_ISDIR(status.st_mode)
        if not folder and not stat.S_ISREG(status.st_mode):
            return False
        handle = os.open(place, (os.O_RDONLY if folder else os.O_RDWR) | _flag("O_NOFOLLOW"))
    except OSError:
        return False
    try:
        free = _lock(handle)
        if free is None:  # no locks here
            alive = match["host"] == _HOST and _alive(int(match["pid"]))
            free = not alive and time.time() - status.st_mtime > _STALE_SECONDS
        if free and folder:
            shutil.rmtree(place)
        elif free:
            place.unlink()
    except OSError:
        return False
    finally:
        os.close(handle)
    return free


def is_being_written(path: Path) -> bool:
    """Return whether a living process holds a temporary neighbour of `path`; False where there are no locks."""
    try:
        places = [it for it in path.parent.iterdir() if it.name.startswith(_stem(path))]
    except OSError:
        return False
    return any(_NAME.match(place.name) and _is_held(place) for place in places)


def discard_all() -> None:
    """Remove what this process holds: it must end at once, and threads of it may still write."""
    for place in list(_ours.values()):
        with contextlib.suppress(OSError):
            place.unlink()
        shutil.rmtree(place, ignore_errors=True)


def _is_held(place: Path) -> bool:
    try:
        handle = os.open(place, os.O_RDONLY | _flag("O_NOFOLLOW") | _flag("O_NONBLOCK"))
    except OSError:
        return False
    try:
        return _lock(handle) is False
    finally:
        os.close(handle)


def _stem(path: Path) -> str:
    """Return how the names of all temporary neighbours of `path` begin."""
    name = os.fsencode(path.name)
    short = hashlib.sha256(name).hexdigest()[:16] if len(name) > _LONGEST else path.name
    return f".{short}."


def _claim(handle: int, place: Path) -> bool:
    """Lock a temporary file or folder that was just made; return whether it is still there and ours."""
    if handle >= 0 and _lock(handle) is False:
        return False
    if not place.exists():
        return False
    _ours[place.name] = place
    return True


def _lock(handle: int) -> bool | None:
    """Lock an open file or folder until it is closed; return whether that worked, None if there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _flag(name: str) -> int:
    return int(getattr(os, name, 0))
