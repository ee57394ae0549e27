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
    checked: set[str] = set()
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(root / folder)
        place = os.path.join(folders[folder], name)  # noqa: PTH118 - of every file; a Path takes as long as the look
        if os.path.islink(place):  # noqa: PTH114
            place = os.path.realpath(place)
        parent = os.path.dirname(place)  # noqa: PTH120
        if parent in checked:
            continue
        checked.add(parent)
        real = Path(place)
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
