"""Where the originals of a dataset really lie, links followed, and that no output folder is among them.

Nothing is ever written into such a folder. Links that appear while a run writes are left to `confined`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attcl_cli.data.dataset import Dataset
from attcl_cli.data.places import led_to
from attcl_cli.data.splits import originals_of
from attcl_cli.errors import UsageError
from attcl_cli.files import another_place, is_within, refuse_inside


def folders_of(*datasets: Dataset) -> list[Path]:
    """Return the folders that hold the originals of datasets: their own, and those that their links lead to.

    A link tree that keeps the names of its source leads to that as a whole; any other link to the folder of its file.
    Costs a look at each file's name, none at its bytes. Files that were named one by one stand for themselves.
    """
    folders: dict[Path, None] = {}
    for dataset in datasets:
        if dataset.scattered:
            real = (Path(os.path.realpath(dataset.root / file)) for file in dataset.every_file())
            folders |= dict.fromkeys(real)
            continue
        known = originals_of(dataset.root)
        folders |= dict.fromkeys([*known, *led_to(dataset.root, dataset.every_file(), known)])
    return list(folders)


def refuse_among_originals(folder: Path, originals: Iterable[Path], *, flag: str) -> None:
    """Raise a `UsageError` if an output folder, named by `flag`, lies in a folder of originals, or holds one."""
    originals = list(originals)
    refuse_inside(folder, originals, flag=flag)
    for original in originals:
        if is_within(original, folder):
            advice, instead = another_place(originals, flag=flag)
            raise UsageError(
                f"{flag}: {folder} holds {original}, expected a folder without originals",
                f"originals are never touched; {advice}",
                code="output-holds-originals",
                instead=instead,
            )
