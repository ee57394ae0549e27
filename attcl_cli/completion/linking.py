"""Links to the originals in the output folder, which then is a whole dataset (`--link-originals`).

Links are ours: one that leads elsewhere is replaced. Files are not: `in_the_way` names them before anything is written.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
from pathlib import Path

from attcl_cli.confined import leads_out, make_parent
from attcl_cli.data import derivative
from attcl_cli.data.dataset import Dataset, read_side_car
from attcl_cli.data.vocabulary import VOCABULARY_FILE
from attcl_cli.errors import AttclError, fold
from attcl_cli.files import copy_whole, is_within


def in_the_way(dataset: Dataset, output: Path) -> list[AttclError]:
    """Return a problem if something lies where an original is to be linked, and is no link.

    That is a synthetic volume whose original arrived later, or a file of somebody's own; a copy of the original stays.
    """
    problems = [
        AttclError(
            f"{copy}: another file than {source}, expected a copy of it",
            "remove it if it is an old copy, otherwise move it away, or choose another --cpl",
            code="no-place-for-link",
        )
        for copy, source in _copies(dataset, output).items()
        if _is_another(copy, source)
    ]
    for case in dataset.cases:
        for files in (*case.files.values(), *([case.segmentation] if case.segmentation else [])):
            side_car = output / dataset.layout.place_side_car(files[0], case.id)
            original = dataset.root / files[0]
            if read_side_car(side_car).get("synthetic") is True:
                problems.append(
                    AttclError(
                        f"{output / files[0]}: synthetic, as {side_car.name} says, "
                        f"expected a link to {original}, which is there now",
                        "move the synthetic volumes and their side-cars away, or choose another --cpl",
                        code="no-place-for-link",
                    )
                )
                continue
            strange = [it for it in files if _is_another(output / it, dataset.root / it)]
            problems += [
                AttclError(
                    f"{output / file}: no link, expected a link to {dataset.root / file}",
                    "move it away, or choose another --cpl",
                    code="no-place-for-link",
                )
                for file in strange[:1]
            ]
    return fold(problems, lambda problem: problem.hint)


def link_originals(dataset: Dataset, output: Path) -> int:
    """Link every file of the dataset into the output folder, and copy what its names are read with.

    A link that leads elsewhere or nowhere is replaced: the dataset was corrected or moved.

    Returns:
        How many links were made.

    Raises:
        AttclError: a link would lead out of the output folder, or the file system has no links.
    """
    count = 0
    for case in dataset.cases:
        for files in (*case.files.values(), case.segmentation):
            for file in files:
                link = output / file
                if not is_within(link.parent, output):
                    raise leads_out(link, output)
                old = link.is_symlink()
                if _leads_to(link, dataset.root / file) if old else link.exists():
                    continue
                try:
                    make_parent(link)
                    if old:
                        link.unlink(missing_ok=True)
                    with contextlib.suppress(FileExistsError):  # another part was faster
                        link.symlink_to((dataset.root / file).resolve())
                except OSError as error:
                    raise AttclError(
                        f"{link}: not linked ({error.strerror}), "
                        "expected a file system with symbolic links",
                        "run without --link-originals",
                        code="no-links",
                    ) from error
                count += 1
                derivative.write_side_car_of_link(dataset, case, file, output, anew=old)
    for copy, source in _copies(dataset, output).items():
        if not copy.is_file():
            copy_whole(source, copy)
    return count


def _copies(dataset: Dataset, output: Path) -> dict[Path, Path]:
    """Return copy -> file of the dataset without which its names cannot be read."""
    copies = {output / file: dataset.root / file for file in dataset.naming_files}
    if dataset.vocabulary_file is not None:
        copies[output / VOCABULARY_FILE] = dataset.vocabulary_file
    return copies


def _is_another(path: Path, original: Path) -> bool:
    """Return whether something lies there that is neither a link nor holds the bytes of the original."""
    if path.is_symlink() or not path.exists():
        return False
    readable = path.is_file() and original.is_file()
    return not (readable and filecmp.cmp(path, original, shallow=False))


def _leads_to(link: Path, original: Path) -> bool:
    return os.path.realpath(link) == os.path.realpath(original)
