"""Files that appear whole or not at all, their fingerprints, and which folders may be written into.

Knows the plainest formats (JSON, TOML, CSV); what a file means is left to others. A killed run leaves at most a hidden
temporary file, which `temporaries.sweep` removes.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from attcl_cli.confined import make_parent, require_inside
from attcl_cli.errors import AttclError, UsageError, refusal, size_in_words
from attcl_cli.run_ends import AGAIN, held
from attcl_cli.temporaries import is_empty, temporary_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ATTEMPTS = 3  # to write a file
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

MOST_BYTES = 32 * 2**20
"""The size of the largest JSON document that is read; the record of 50,000 cases is smaller."""

_MOST_TOML = 2**20  # bytes of a file that people write by hand
_MOST_CSV = 2**28  # bytes
_DEEPEST = 64  # lists and tables within one another
_REQUIRED: Any = object()
_MOST_SHOWN = 40  # characters of what is wrong
_TOO_DEEP = f"nested deeper than {_DEEPEST}"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of a half of a surrogate pair
# A key of more parts than may be nested: a.b.c...
_DEEP_KEY = re.compile(
    rf"""(?<![\w-])(?:(?:"[^"\n]*"|'[^'\n]*'|[\w-]+)[ \t]*\.[ \t]*){{{_DEEPEST}}}"""
)

# A text that a spreadsheet may run, or that begins so behind apostrophes: these are kept apart from ours.
# The last four are the wide forms of the first four.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_GUARDED = re.compile(f"'{_FORMULA.pattern}")


def write_whole(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write `data` so that `path` holds all of it or is untouched, even after a kill or a power cut.

    Temporary name in the same folder, fsync, atomic rename, fsync of the folder. Missing folders are made.

    Args:
        path: the file.
        data: its bytes.
        new: refuse a file that exists already: of runs that begin at the same time, one wins (if there are hard links).

    Raises:
        AttclError: the file cannot be written (permissions, full disk), or would land outside the folder of its run, or
            that folder was removed; nothing is left behind.
        UsageError: the file is `new`, and exists.
    """
    try:
        make_parent(path)
        for left in reversed(range(_ATTEMPTS)):
            try:
                with held(), temporary_file(path) as (handle, temporary):
                    _fill(handle, data)
                    temporary.chmod(ordinary_mode(0o666))  # temporary files are private
                    if not (new and _linked(temporary, path)):
                        temporary.replace(path)
                    sync_folder(path.parent)
                break
            except FileNotFoundError:  # swept by a machine that does not see our lock
                if not left or not path.parent.is_dir():
                    raise
    except OSError as error:
        raise not_written(path, error) from error


@contextlib.contextmanager
def appended(path: Path, *, size: int = 0) -> Iterator[BinaryIO]:
    """Open a new file that is written piece by piece within the block, and is not whole before the block ends.

    Args:
        path: the file; its folder exists.
        size: bytes whose room on the disk is taken at once, if the system can do that; 0: none.

    Raises:
        AttclError: there is no room, or the file would land outside the folder of its run.
    """
    require_inside(path, in_place=True)
    try:
        with path.open("wb") as stream:
            if size and hasattr(os, "posix_fallocate"):
                _take_room(stream.fileno(), size)
            yield stream
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise not_written(path, error) from error


def copy_whole(source: Path, target: Path) -> None:
    """Write another file's bytes with `write_whole`."""
    write_whole(target, source.read_bytes())


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document with `write_whole`, as `encoded` has it."""
    write_whole(path, encoded(document))


def encoded(document: Any) -> bytes:
    """Return a JSON document as a file holds it: indented, with a final newline; NaN and infinity are null.

    Names of files that are no UTF-8 (PEP 383) make it plain ASCII, with escapes.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:  # JSON has neither
        document = _without_nan(document)
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(document, indent=2, allow_nan=False).encode()
    return data + b"\n"


def read_json(path: Path, *, default: Any = _REQUIRED, most: int = MOST_BYTES) -> Any:
    """Return the JSON document in `path`; the gate through which every one passes.

    Args:
        path: the file.
        default: returned if there is no such file; without it that is an error.
        most: bytes that the file may have.

    Raises:
        AttclError: the file is missing, cannot be read, is too large or is no JSON (`parse_json`).
    """
    try:
        if default is not _REQUIRED and not path.is_file():
            return default
        return parse_json(_read_text(path, most))
    except (OSError, ValueError) as error:
        raise AttclError(
            f"{path}: not readable as JSON ({_reason(error)}), expected the file that attcl wrote",
            _next_step(error, "remove it, or copy it again from its source"),
            code="json-unreadable",
        ) from error


def parse_json(text: str, *, allow_nan: bool = False) -> Any:
    """Return the JSON document in a text, as RFC 8259 defines it.

    Unlike the library it takes no NaN and no infinity (by name or by size), no key twice, no half of a surrogate pair
    (but the bytes of names that are no UTF-8, as PEP 383 escapes them), and no nesting deeper than 64.

    Args:
        text: the document.
        allow_nan: take NaN and infinity by name, as the library writes them.

    Raises:
        ValueError: it is none; the text says why.
    """
    try:
        document = json.loads(
            text,
            object_pairs_hook=_without_repetition,
            parse_constant=float if allow_nan else _refuse_constant,
            parse_float=_finite,
        )
        _require_shallow(document, text)
        if _HALF.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    return document


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text of at most 1 MiB; what is no UTF-8 becomes a replacement character.

    Raises:
        AttclError: the file is missing, cannot be read or is too large.
    """
    try:
        return _read_bytes(path, _MOST_TOML).decode("utf-8-sig", "replace").splitlines()
    except (OSError, ValueError) as error:
        raise AttclError(
            f"{path}: not readable ({_reason(error)}), expected lines of text",
            _next_step(error, "correct the file, or remove it"),
            code="text-unreadable",
        ) from error


def as_json(record: DataclassInstance) -> dict[str, Any]:
    """Return a flat dataclass as JSON takes it: NaN and infinity are None."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(record).items()
    }


def write_csv(path: Path, kind: type[DataclassInstance], rows: Iterable[DataclassInstance]) -> None:
    """Write a table with `write_whole`: one column per field of `kind`, one line per record, NaN as an empty cell.

    A text that a spreadsheet would take for a formula, because it begins with `=`, `+`, `-`, `@`, a tab or the
    end of a line, gets an apostrophe before it (OWASP, CSV injection). `read_csv` takes it away.
    """
    names = [item.name for item in fields(kind)]
    lines = [_line(names), *(_line(_cell(getattr(row, name)) for name in names) for row in rows)]
    write_whole(path, "".join(lines).encode("utf-8", "backslashreplace"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table that `write_csv` wrote, column -> cell.

    Raises:
        AttclError: the file is missing or no table.
    """
    try:
        stream = io.StringIO(_read_text(path, _MOST_CSV), newline="")
        return [
            {name: text[1:] if _GUARDED.match(text) else text for name, text in line.items()}
            for line in csv.DictReader(stream, restval="", strict=True)
        ]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise table_unreadable(path, error) from error


def table_unreadable(path: Path, error: Exception) -> AttclError:
    """Return the error of a table that `write_csv` did not write so."""
    return AttclError(
        f"{path}: not readable as CSV ({error}), expected the table that attcl wrote",
        "remove it, and run the same command again",
        code="table-unreadable",
    )


def read_toml(path: Path, *, expected: str) -> dict[str, Any]:
    """Return the TOML document in `path`; the gate through which every one passes.

    Args:
        path: the file.
        expected: what it should hold, for the error.

    Raises:
        UsageError: the file is missing, cannot be read, is larger than 1 MiB, nested deeper than 64, or no TOML.
    """
    try:
        if not path.is_file():
            raise UsageError(
                f"{path}: no such file, expected {expected}", "check the path", code="toml-missing"
            )
        text = _read_text(path, _MOST_TOML)
        if _DEEP_KEY.search(text):  # the library's time grows with the square of the parts of a key
            raise ValueError(_TOO_DEEP)
        document = tomllib.loads(text)
        _require_shallow(document, text)
    except (AttclError, MemoryError):
        raise
    except Exception as error:  # what the library raises on hostile text is not documented
        raise UsageError(
            f"{path}: not readable as TOML ({_reason(error)}), expected {expected}",
            _next_step(error, "fix the file"),
            code="toml-unreadable",
        ) from error
    return document


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder by name, as far as that is possible, and the folder if nothing else is in it."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def is_within(path: Path, root: Path) -> bool:
    """Return whether `path`, with every link followed, is `root` or lies inside it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def refuse_inside(
    folder: Path, originals: Iterable[Path], *, flag: str, kept: str = "originals"
) -> None:
    """Raise a `UsageError` if `folder`, named by `flag`, lies in one of `originals`; `kept` says what these are."""
    originals = list(originals)
    inside = ", nor is anything put beside them, not even into derivatives/"
    for original in originals:
        if is_within(folder, original):
            advice, instead = another_place(originals, flag=flag)
            raise UsageError(
                f"{flag}: {folder} lies inside {original}, expected a folder outside of the {kept}",
                f"{kept} are never touched{inside if 'derivatives' in folder.parts else ''}; {advice}",
                code="output-inside-originals",
                instead=instead,
            )


def another_place(originals: Sequence[Path], *, flag: str) -> tuple[str, tuple[str, str] | None]:
    """Return the advice to choose another output, with a folder that is free, and that as `AttclError.instead`."""
    place = place_beside(originals)
    if place is None:
        return f"choose another {flag}", None
    return f"choose another {flag}, such as {place}", (flag, str(place))


def place_beside(originals: Sequence[Path]) -> Path | None:
    """Return a folder outside of all these, beside one of them; of files, beside their folder. None if none is free."""
    folders = [original.parent if original.is_file() else original for original in originals]
    for folder in folders:
        real = Path(os.path.realpath(folder))
        name = f"{real.name}-attcl"
        unnamed = folder.name in ("", "..")  # the current folder, or one above it
        beside = folder / ".." / name if unnamed else folder.with_name(f"{folder.name}-attcl")
        for place in (beside, real.with_name(name)) if real.name else ():
            clear = not any(is_within(place, it) or is_within(it, place) for it in folders)
            if clear and os.access(_first_existing(place), os.W_OK):
                return place
    return None


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
    if path.exists() and not is_empty(path):
        raise UsageError(
            f"{flag}: {path} is not empty, expected a new folder",
            f"choose another {flag}{hint and f', {hint}'}",
            code="output-not-empty",
        )


def free_bytes(folder: Path) -> int:
    """Return the free space at the place of `folder`, which need not exist yet."""
    return shutil.disk_usage(_first_existing(folder)).free


def lack_of_room(folder: Path, needed: float, what: str, *, flag: str) -> list[AttclError]:
    """Return a problem if the disk of a folder has no room for what a run writes, or lets nothing be written.

    Args:
        folder: the place, which need not exist yet.
        needed: bytes.
        what: needs them, such as `training slices`.
        flag: what names the folder.
    """
    free = free_bytes(folder)
    if free >= needed:
        return []
    place = _first_existing(folder)
    if not os.access(place, os.W_OK):  # a read-only file system has no room, but none can be made
        reason = errno.EROFS if _is_read_only(place) else errno.EACCES
        return [not_written(folder, OSError(reason, os.strerror(reason)))]
    problem = AttclError(
        f"{folder}: {size_in_words(free)} free, expected about {size_in_words(needed)} for {what}",
        f"free some space or choose another {flag}",
        code="disk-full",
    )
    return [problem]


def ordinary_mode(bits: int) -> int:
    """Return `bits` less the umask: the mode of an ordinary file (0o666) or folder (0o777)."""
    mask = os.umask(0)
    os.umask(mask)
    return bits & ~mask


def _is_read_only(place: Path) -> bool:
    """Return whether a file system says that nothing can be written to it."""
    return hasattr(os, "statvfs") and bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _first_existing(path: Path) -> Path:
    """Return `path`, or the first of its parents that exists; a broken link counts as missing."""
    return next(place for place in (path, *path.parents) if place.exists())


def _read_text(path: Path, most: int) -> str:
    """Return the text of a file, UTF-8 with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: as `_read_bytes`, or it is no UTF-8.
    """
    data = _read_bytes(path, most)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("UTF-16, not UTF-8")
    return data.decode("utf-8-sig")


def _read_bytes(path: Path, most: int) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file (a pipe would be waited for), or larger than `most` bytes.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise ValueError("no plain file")
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most / 2**20:g} MiB")
    return data


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:_MOST_SHOWN]!r} given twice")
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:_MOST_SHOWN]}, which is too large")
    return value


def _require_shallow(document: Any, text: str) -> None:
    """Raise a `ValueError` if lists and tables are nested too deeply to be handed on."""
    if text.count("[") + text.count("{") + text.count(".") < _DEEPEST:
        return
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(_DEEPEST):
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) is dict or type(value) is list
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _reason(error: Exception) -> str:
    """Return why a document cannot be read, in a few words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    text = str(error)
    return "a number of thousands of digits" if "int_max_str_digits" in text else text


def _next_step(error: Exception, usual: str) -> str:
    if isinstance(error, PermissionError):
        return "allow yourself to read it (chmod u+r)"
    if isinstance(error, OSError):
        return refusal(error, "", usual)[1]
    return "save it as UTF-8" if "UTF-" in str(error) or isinstance(error, UnicodeError) else usual


def _line(cells: Iterable[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerow(cells)  # quotes both; "\n" alone: not "\r"
    return f"{stream.getvalue()[:-2]}\n"


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if _FORMULA.match(value) else value
    return "" if value != value else value  # noqa: PLR0124 - NaN


def not_written(path: Path, error: OSError) -> AttclError:
    """Return the error of a file that the system did not let us write."""
    if isinstance(error, FileNotFoundError):  # missing folders are made
        return AttclError(
            f"{path}: not written (it was removed meanwhile, or its folder), expected a folder that stays",
            AGAIN,
            code="file-not-written",
        )
    expected, hint = refusal(
        error,
        "expected a writable place with free space",
        "free some space or choose another output folder",
    )
    return AttclError(
        f"{path}: not written ({error.strerror or error}), {expected}",
        f"{hint}, then {AGAIN}",
        code="file-not-written",
    )


def _without_nan(value: Any) -> Any:
    """Return a JSON document with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def _take_room(handle: int, size: int) -> None:
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in _NO_ROOM:  # not every file system can do it
            raise


def _linked(temporary: Path, path: Path) -> bool:
    """Give a file a second name that must be new; return whether that worked."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError as error:
        raise UsageError(
            f"{path}: written by another run meanwhile, expected a folder for one run",
            "choose another --output",
            code="output-not-empty",
        ) from error
    except OSError:  # a file system without hard links
        return False
    return True


def _fill(handle: int, data: bytes) -> None:
    """Write an open file, and wait until the disk has it."""
    with os.fdopen(handle, "wb", closefd=False) as stream:  # closing it would give up its lock
        stream.write(data)
        stream.flush()
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder: otherwise a power cut may lose a rename."""
    # some systems cannot open a folder
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
