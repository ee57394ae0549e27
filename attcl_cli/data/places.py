"""Where files of a dataset really lie, links followed, and which folder a tree of links leads to.

Knows paths alone; which folders nothing may be written into is left to `originals`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


def led_to(root: Path, files: Iterable[PurePosixPath], known: Iterable[Path]) -> list[Path]:
    """Return the real folders of the files that lie in none of the known folders.

    Costs a look at each file's name, none at its bytes.

    Args:
        root: the folder of a dataset.
        files: relative to it.
        known: folders.
    """
    folders: dict[str, str] = {}  # as a file's path names it -> where it really lies
    inside = [Path(os.path.realpath(folder)) for folder in known]
    found: list[Path] = []
    checked: set[Path] = set()
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(root / folder)
        real = Path(folders[folder], name)
        if real.is_symlink():
            real = Path(os.path.realpath(real))
        if real.parent in checked:
            continue
        checked.add(real.parent)
        if not any(real.is_relative_to(it) for it in (*inside, *found)):
            found.append(root_of(real, file))
    return found


def root_of(real: Path, file: PurePosixPath) -> Path:
    """Return the real folder that a dataset's file comes from, given where it really lies.

    A tree of links that keeps the names of its source leads to that as a whole; any other link to the folder of its
    file.
    """
    count = len(file.parts)
    return real.parents[count - 1] if real.parts[-count:] == file.parts else real.parent
