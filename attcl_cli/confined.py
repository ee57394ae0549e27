"""The folders that a run writes into, and the links that would lead it out of them.

A run names its folders with `confined`; whatever writes asks `require_inside` right before. Which folders a user may
choose is left to `files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attcl_cli.errors import AttclError

# (as it is named, really) of the folders of the runs under way; writers in other threads ask as well.
_folders: list[tuple[str, str]] = []


@contextmanager
def confined(*folders: Path) -> Iterator[None]:
    """Let no writer leave these folders through a link while the block runs.

    Where they really lie is decided at the beginning: a link that takes the place of one later leads out of it, too.
    """
    added = [(_named(folder), os.path.realpath(folder)) for folder in folders]
    _folders.extend(added)
    try:
        yield
    finally:
        for item in added:
            _folders.remove(item)


def require_inside(path: Path, *, in_place: bool = False) -> None:
    """Refuse to write a file that would land outside the folder of its run, through a link.

    Args:
        path: the file; need not exist. One that lies in no folder of a run is not looked at.
        in_place: the file is opened where it lies, instead of being replaced as a whole: so it must not be a link.

    Raises:
        AttclError: a link leads out of the folder.
    """
    place = _named(path)
    folders = [item for item in tuple(_folders) if place.startswith(f"{item[0]}{os.sep}")]
    if not folders:
        return
    parent = f"{os.path.realpath(path.parent)}{os.sep}"
    for named, real in folders:
        if not parent.startswith(f"{real}{os.sep}") or (in_place and path.is_symlink()):
            raise leads_out(path, Path(named))


def leads_out(path: Path, output: Path) -> AttclError:
    """Return the error about a link that leads out of an output folder."""
    return AttclError(
        f"{path}: leads out of {output} through a link, expected a place inside",
        "remove the link, or choose another output folder",
        code="leads-out-of-output",
    )


def _named(path: Path) -> str:
    """Return a path made absolute as it is named, links not followed."""
    return os.path.normpath(path.absolute())
