"""Small records about files, kept in the user's cache folder, so that a file that did not change is not read again.

The records of a case share a file. A record is plain JSON; what it says is left to others. A folder that cannot be
written costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from attcl_cli.data.places import root_of
from attcl_cli.errors import AttclError
from attcl_cli.files import read_json
from attcl_cli.temporaries import sweep, temporary_file

FOLDER_VARIABLE = "ATTCL_CACHE"
_MOST_RECORDS = 200  # of a case: of files that changed or went, the oldest are dropped
_MOST_BYTES = 2**20  # of the records of a case; ours have less than a tenth of it
_swept: set[Path] = set()  # folders whose leftovers this process has removed

Record = TypeVar("Record")


def cache_folder() -> Path:
    """Return where records are kept: $ATTCL_CACHE, otherwise $XDG_CACHE_HOME/attcl, otherwise ~/.cache/attcl."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "attcl"


class Records:
    """What is known of the files of a case: read once, and written once if anything was added.

    Of two processes that add records of one case at the same time, one keeps its own: what is lost is made again. Files
    are looked at once, so that a file that changes meanwhile does not fit its records later. For one thread.
    """

    def __init__(self, root: Path, case: str, file: PurePosixPath) -> None:
        """Name a case.

        Args:
            root: the folder of its dataset. Links are followed, so that a tree of links shares the records of its
                source.
            case: its id.
            file: one of its files, relative to the root.
        """
        self._case, self._root, self._file = case, root, file
        self._path: Path | None = None
        self._known: dict[str, Any] | None = None
        self._added = False
        self._states: dict[str, tuple[str, tuple[str, int, int, int]]] = {}
        self._folders: dict[str, str] = {}

    def __enter__(self) -> Records:
        """Begin a block that ends with `save`."""
        return self

    def __exit__(self, *error: object) -> None:
        """Save what was added, also if the block failed."""
        self.save()

    def key_of(
        self, kind: str, version: int, paths: Sequence[Path], *options: str | float
    ) -> str | None:
        """Return the key of a record about files; None if a file is missing.

        The key changes with the place of the first file, the size, the time and the inode of each (links are followed),
        with the options and with the version of the record.
        """
        try:
            states = [self._state(path) for path in paths]
        except (OSError, ValueError):  # a name with a zero byte is a ValueError
            return None
        files = [state for _, state in states]
        text = repr((kind, version, states[0][0], files, [str(it) for it in options]))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def read(self, key: str | None, kind: TypeAdapter[Record]) -> Record | None:
        """Return the record with this key; None if there is none, or it is damaged or of another kind."""
        if self._known is None:
            self._known = self._read_all()
        document = self._known.get(key) if key is not None else None
        if document is None:
            return None
        try:
            return kind.validate_python(document)
        except ValidationError:
            return None

    def add(self, key: str | None, document: Mapping[str, Any]) -> None:
        """Keep a record from the next `save` on."""
        if key is None:
            return
        if self._known is None:
            self._known = self._read_all()
        self._known[key] = document
        self._added = True

    def save(self) -> None:
        """Write the records if any was added, all or none; if the folder cannot be written, nothing happens."""
        if not self._added or self._known is None:
            return
        self._added = False
        # No fsync, unlike `files.write_whole`: a record that is lost is made again. JSON has no NaN: a ValueError.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            newest = dict(list(self._known.items())[-_MOST_RECORDS:])
            data = json.dumps(newest, allow_nan=False, separators=(",", ":")).encode()
            path = self._place()
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in _swept:
                _swept.add(path.parent)
                sweep(path.parent)
            with temporary_file(path) as (handle, temporary):
                with open(handle, "wb", closefd=False) as stream:
                    stream.write(data)
                temporary.replace(path)

    def _read_all(self) -> dict[str, Any]:
        try:
            document = read_json(self._place(), default=None, most=_MOST_BYTES)
        except (AttclError, OSError, RuntimeError, ValueError):
            return {}  # damaged, or nowhere to look: a user without a home
        return document if isinstance(document, dict) else {}

    def _place(self) -> Path:
        if self._path is None:
            real, _ = self._state(self._root / self._file)
            text = json.dumps([str(root_of(Path(real), self._file)), self._case])
            key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
            self._path = cache_folder() / "cases" / key[:2] / f"{key[2:32]}.json"
        return self._path

    def _state(self, path: Path) -> tuple[str, tuple[str, int, int, int]]:
        """Return where a file really lies, and its name, inode, size and time."""
        place = str(path)
        if place not in self._states:
            folder, name = os.path.split(place)
            if folder not in self._folders:
                self._folders[folder] = os.path.realpath(folder)
            real, status = f"{self._folders[folder]}{os.sep}{name}", path.lstat()
            if stat.S_ISLNK(status.st_mode):
                real, status = os.path.realpath(place), path.stat()
            self._states[place] = real, (name, status.st_ino, status.st_size, status.st_mtime_ns)
        return self._states[place]
