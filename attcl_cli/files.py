"""Files that appear whole or not at all, their fingerprints, and which folders may be written into.

Knows the plainest formats (JSON, TOML, CSV); what a file means is left to others. A killed run leaves at most a hidden
temporary file, which `sweep` removes.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.errors import AttclError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"
TEMPORARY_SUFFIX = ".attcl-tmp"
# A temporary name holds its machine and process, so that a later run can tell a live one from a leftover.
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9-]+)-(?P<pid>\d+)-[^.]*\.attcl-tmp$")


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or is untouched, even after a kill or a power cut.

    Temporary name in the same folder, fsync, atomic rename, fsync of the folder. Missing folders are made.

    Raises:
        AttclError: the file cannot be written (permissions, full disk); nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=temporary_prefix(path), suffix=TEMPORARY_SUFFIX, dir=path.parent
        )
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(ordinary_mode(0o666))  # mkstemp makes private files
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise AttclError(
            f"{path}: not written ({error.strerror or error}), "
            "expected a writable place with free space",
            "free some space or choose another output folder, then run the same command again",
            code="file-not-written",
        ) from error


def copy_whole(source: Path, target: Path) -> None:
    """Write another file's bytes with `write_whole`."""
    write_whole(target, source.read_bytes())


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document with `write_whole`: indented, with a final newline."""
    write_whole(
        path, (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def read_json(path: Path) -> Any:
    """Return the JSON document in `path`.

    Raises:
        AttclError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AttclError(
            f"{path}: not readable as JSON ({error}), expected the file that attcl wrote",
            "remove it, or copy it again from its source",
            code="json-unreadable",
        ) from error


def as_json(record: DataclassInstance) -> dict[str, Any]:
    """Return a flat dataclass as JSON takes it: NaN and infinity are None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(record).items()
    }


def write_csv(path: Path, kind: type[DataclassInstance], rows: Iterable[DataclassInstance]) -> None:
    """Write a table with `write_whole`: one column per field of `kind`, one line per record, NaN as an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(item.name for item in fields(kind))
    for row in rows:
        writer.writerow("" if value != value else value for value in astuple(row))  # noqa: PLR0124
    write_whole(path, stream.getvalue().encode())


def read_toml(path: Path, *, expected: str) -> dict[str, Any]:
    """Return the TOML document in `path`.

    Args:
        path: the file.
        expected: what it should hold, for the error.

    Raises:
        UsageError: the file is missing or no TOML.
    """
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file, expected {expected}", "check the path", code="toml-missing"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{path}: not readable as TOML ({error}), expected {expected}",
            "fix the file",
            code="toml-unreadable",
        ) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def temporary_prefix(path: Path) -> str:
    """Return how the name of a temporary neighbour of `path` begins; it ends in `TEMPORARY_SUFFIX`."""
    return f".{path.name}.{_HOST}-{os.getpid()}-"


def is_leftover(name: str) -> bool:
    """Return whether a name is that of a temporary file or folder of an ended process of this machine."""
    match = _TEMPORARY.match(name)
    return bool(match and match["host"] == _HOST and not _alive(int(match["pid"])))


def sweep(root: Path) -> int:
    """Remove the files that killed runs on this machine left below `root`; return their number."""
    removed = 0
    for folder, _, names in os.walk(root):
        for name in filter(is_leftover, names):
            with contextlib.suppress(OSError):
                (Path(folder) / name).unlink()
                removed += 1
    return removed


def is_within(path: Path, root: Path) -> bool:
    """Return whether `path`, with every link followed, is `root` or lies inside it."""
    return path.resolve().is_relative_to(root.resolve())


def refuse_inside(
    folder: Path, originals: Iterable[Path], *, flag: str, kept: str = "originals"
) -> None:
    """Raise a `UsageError` if `folder`, named by `flag`, lies in one of `originals`; `kept` says what these are."""
    for original in originals:
        if is_within(folder, original):
            raise UsageError(
                f"{flag}: {folder} lies inside {original}, expected a folder outside of the {kept}",
                f"{kept} are never touched; choose another {flag}",
                code="output-inside-originals",
            )


def require_folder(path: Path, *, flag: str) -> None:
    """Raise a `UsageError` unless `path`, named by `flag`, is a folder or can become one."""
    existing = _first_existing(path)
    if existing.is_dir():
        return
    reason = "is a file" if existing == path else f"cannot be made ({existing} is a file)"
    raise UsageError(
        f"{flag}: {path} {reason}, expected a folder",
        f"choose another {flag}",
        code="output-not-a-folder",
    )


def require_empty(path: Path, *, flag: str, hint: str = "") -> None:
    """Raise a `UsageError` unless `path`, named by `flag`, is an empty folder or can become one.

    Args:
        path: the folder.
        flag: the option that names it.
        hint: a further way out for a folder that is not empty, after "choose another <flag>".
    """
    require_folder(path, flag=flag)
    if path.exists() and any(path.iterdir()):
        raise UsageError(
            f"{flag}: {path} is not empty, expected a new folder",
            f"choose another {flag}{hint and f', {hint}'}",
            code="output-not-empty",
        )


def free_bytes(folder: Path) -> int:
    """Return the free space at the place of `folder`, which need not exist yet."""
    return shutil.disk_usage(_first_existing(folder)).free


def ordinary_mode(bits: int) -> int:
    """Return `bits` less the umask: the mode of an ordinary file (0o666) or folder (0o777)."""
    mask = os.umask(0)
    os.umask(mask)
    return bits & ~mask


def _first_existing(path: Path) -> Path:
    """Return `path`, or the first of its parents that exists; a broken link counts as missing."""
    return next(place for place in (path, *path.parents) if place.exists())


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may lose the rename although the bytes are safe; some systems cannot open a folder
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
