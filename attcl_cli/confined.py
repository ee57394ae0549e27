"""The folders that a run writes into: no link leads it out of them, and none that was removed is made anew.

A run names its folders with `confined`; whatever writes asks `require_inside` right before, and makes folders with
`make_parent`. Which folders a user may choose is left to `files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from attcl_cli.errors import AttclError


class _Folder(NamedTuple):
    named: str  # absolute, links not followed
    real: str
    lasting: Path | None  # without it, nothing is written


_folders: list[_Folder] = []  # of the runs under way; writers in other threads ask as well


@contextmanager
def confined(*folders: Path, lasting: Path | None = None) -> Iterator[None]:
    """Let no writer leave these folders through a link while the block runs.

    Where they really lie is decided at the beginning: a link that takes the place of one later leads out of it, too.

    Args:
        folders: of the run.
        lasting: a file or folder in them that exists; if it is removed, nothing more is written.
    """
    added = [_Folder(_named(folder), os.path.realpath(folder), lasting) for folder in folders]
    _folders.extend(added)
    try:
        yield
    finally:
        for item in added:
            _folders.remove(item)


def require_inside(path: Path, *, in_place: bool = False) -> None:
    """Refuse to write a file that would land outside the folder of its run, through a link, or in a removed one.

    Args:
        path: the file; need not exist. One that lies in no folder of a run is not looked at.
        in_place: the file is opened where it lies, instead of being replaced as a whole: so it must not be a link.

    Raises:
        AttclError: a link leads out of the folder, or what should last was removed.
    """
    place = _named(path)
    folders = [item for item in tuple(_folders) if place.startswith(f"{item.named}{os.sep}")]
    if not folders:
        return
    parent = f"{os.path.realpath(path.parent)}{os.sep}"
    for folder in folders:
        if not parent.startswith(f"{folder.real}{os.sep}") or (in_place and path.is_symlink()):
            raise leads_out(path, Path(folder.named))
        if folder.lasting is not None and not folder.lasting.exists():
            raise AttclError(
                f"{folder.lasting}: removed while the run was going on, expected what a run writes to stay",
                "run the same command again",
                code="output-removed",
            )


def make_parent(path: Path) -> None:
    """Make the folder of a file that is about to be written, and those above it, unless `require_inside` refuses it."""
    require_inside(path)
    path.parent.mkdir(parents=True, exist_ok=True)


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
