"""Small records about files, kept in the user's cache folder, so that a file that did not change is not read again.

A record is plain JSON; what it says is left to others. A folder that cannot be written costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from attcl_cli.errors import AttclError
from attcl_cli.files import read_json
from attcl_cli.temporaries import sweep_beside, temporary_file

FOLDER_VARIABLE = "ATTCL_CACHE"
_MOST_BYTES = 2**16  # of a record; ours have less than a hundredth of it

Record = TypeVar("Record")


def cache_folder() -> Path:
    """Return where records are kept: $ATTCL_CACHE, otherwise $XDG_CACHE_HOME/attcl, otherwise ~/.cache/attcl."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "attcl"


def key_of(kind: str, version: int, paths: Sequence[Path], *options: str | float) -> str | None:
    """Return the key of a record about files; None if a file is missing.

    The key changes with the place of the first file, the size and the time of each (links are followed), with the
    options and with the version of the record.
    """
    try:
        files: list[object] = [str(paths[0].resolve())]
        for path in paths:
            status = path.stat()
            files.append([path.name, status.st_ino, status.st_size, status.st_mtime_ns])
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        return None
    text = json.dumps([kind, version, files, [str(option) for option in options]])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read_cached(key: str | None) -> dict[str, Any] | None:
    """Return the record with this key; None if there is none, or it is damaged."""
    if key is None:
        return None
    try:
        document = read_json(_path(key), default=None, most=_MOST_BYTES)
    except (AttclError, RuntimeError):  # damaged, or nowhere to look: a user without a home
        return None
    return document if isinstance(document, dict) else None


def read_known(key: str | None, kind: TypeAdapter[Record]) -> Record | None:
    """Return the record with this key as a dataclass; None if there is none, or it was written by something else."""
    document = read_cached(key)
    if document is None:
        return None
    try:
        return kind.validate_python(document)
    except ValidationError:
        return None


def write_cached(key: str | None, document: Mapping[str, Any]) -> None:
    """Keep a record, whole or not at all; if the folder cannot be written, nothing happens."""
    if key is None:
        return
    # No fsync, unlike `files.write_whole`: a record that is lost is made again.
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_beside(path)
        with temporary_file(path) as (_, temporary):
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(path)


def _path(key: str) -> Path:
    return cache_folder() / "voxels" / key[:2] / f"{key[2:40]}.json"
