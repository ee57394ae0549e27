"""The data tree: what remains of a dataset under the same names (in BIDS with its metadata), and `splits.json`.

Which case is in which split, and what is hidden from it, is left to `splits`.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Literal

from attcl_cli.confined import make_parent
from attcl_cli.data.dataset import SPLITS_FILE, Dataset
from attcl_cli.data.derivative import side_cars_of
from attcl_cli.data.originals import folders_of, refuse_among_originals
from attcl_cli.data.splits import Splits, to_json
from attcl_cli.data.vocabulary import VOCABULARY_FILE
from attcl_cli.errors import AttclError, UsageError, counted, refusal, some
from attcl_cli.files import (
    is_within,
    ordinary_mode,
    read_json,
    require_folder,
    write_json,
)
from attcl_cli.run_ends import held
from attcl_cli.temporaries import TEMPORARY_SUFFIX, is_empty, is_temporary, temporary_folder

LinkKind = Literal["symlink", "hardlink", "copy"]

_OF_SYSTEMS = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\.nfs.*")
_MOMENT = 2.0  # seconds; some file systems keep times no finer


def is_written(
    dataset: Dataset,
    splits: Splits,
    output: Path,
    *,
    link: LinkKind = "symlink",
    overwrite: bool = False,
) -> bool:
    """Return whether `output` holds these very splits already; otherwise check that it may be written.

    Raises:
        UsageError: `output` holds something else, has lost files, or has its files in another way than `link` says (and
            not `overwrite`); it cannot be a folder; or it and the dataset contain one another.
    """
    if is_within(output, dataset.root) or is_within(dataset.root, output):
        raise UsageError(
            f"--output: {output} and the dataset {dataset.root} contain one another, "
            "expected two separate folders",
            "originals are never touched; choose another --output",
            code="output-inside-originals",
        )
    refuse_among_originals(output, folders_of(dataset), flag="--output")
    require_folder(output, flag="--output")
    if output.exists() or output.is_symlink():
        existing = output / SPLITS_FILE
        if existing.is_file() and read_json(existing) == to_json(splits):
            problem = _changed(dataset, splits, output, link)
            if problem is None:
                return True
            if not overwrite:
                raise problem
        require_replaceable(dataset, output, overwrite=overwrite)
    return False


def require_replaceable(dataset: Dataset, output: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is to be replaced and holds nothing but a tree of `write_tree`.

    A link to a folder may be replaced: what it leads to stays.

    Raises:
        UsageError: it exists and must not be replaced, or holds something that would be lost.
    """
    if not os.path.lexists(output):
        return
    source = _source_of(output)
    foreign = not output.is_dir() or (not is_empty(output) and source is None)
    if not overwrite:
        replace = "" if foreign else ", or replace it with --overwrite"
        raise UsageError(
            f"--output: {output} exists already, expected a new folder",
            f"choose another --output{replace}",
            code="output-not-empty",
        )
    if foreign:
        raise UsageError(
            f"--output: {output} was not made by prepare-splits (it has no splits.json of attcl), "
            "expected a folder that --overwrite may replace",
            "choose another --output",
            code="output-not-ours",
        )
    if output.is_symlink() or source is None:
        return
    lost = sorted(_would_be_lost(output, [source, dataset.root]))
    if lost:
        raise UsageError(
            f"--output: {output} holds {counted(len(lost), 'file')} that the dataset does not have, or that were "
            f"changed since: {some(lost)}, expected a folder that --overwrite may replace without a loss",
            "move them away, remove the folder yourself, or choose another --output",
            code="output-not-ours",
        )


def _source_of(output: Path) -> Path | None:
    """Return the dataset that a tree was made from; None if it is no tree."""
    file = output / SPLITS_FILE
    if not file.is_file():
        return None
    with suppress(AttclError):
        document = read_json(file)  # of any version
        if isinstance(document, dict) and {"schema_version", "source", "splits"} <= document.keys():
            return Path(str(document["source"]))
    return None


def _would_be_lost(output: Path, sources: Sequence[Path]) -> Iterator[str]:
    """Yield the files of a tree that no source has, or that were changed in the tree.

    Links are lost without a loss, and so are files that systems leave in folders. `splits.json` is the last file of a
    tree: what is younger was put there, or changed.
    """
    vocabulary = Path(VOCABULARY_FILE)
    sources = [source for source in sources if not is_within(source, output)]
    written = (output / SPLITS_FILE).stat().st_mtime
    for folder, _, names in os.walk(output):
        for name in names:
            file = Path(folder) / name
            place = file.relative_to(output)
            if file.is_symlink() or is_temporary(name) or _OF_SYSTEMS.fullmatch(name):
                continue
            changed = file.stat().st_mtime > written + _MOMENT
            if str(place) in {SPLITS_FILE, "run.json"} or (place == vocabulary and not changed):
                continue
            originals = [source / place for source in sources if (source / place).is_file()]
            if not any(_has(it, file, written, changed=changed) for it in originals):
                yield str(place)


def _has(original: Path, file: Path, written: float, *, changed: bool) -> bool:
    """Return whether an original has what a copy holds, or was itself replaced since the tree was `written`."""
    if changed:  # or copied with new times
        return filecmp.cmp(original, file, shallow=False)
    same = original.stat().st_size == file.stat().st_size
    return same or original.stat().st_ctime > written - _MOMENT


def write_tree(
    dataset: Dataset,
    splits: Splits,
    output: Path,
    *,
    link: LinkKind = "symlink",
    overwrite: bool = False,
    finish: Callable[[Path], None] = lambda _folder: None,
) -> bool:
    """Write the data tree: what remains of the dataset under the same names, and `splits.json`.

    The tree is built beside its final place and renamed as a whole, so a killed run leaves no half tree.

    Args:
        dataset: what the splits were drawn from.
        splits: what remains.
        output: the folder of the tree.
        link: how files get there.
        overwrite: replace another tree.
        finish: called with the folder of the whole tree, before it gets its name.

    Returns:
        False if `output` already holds these very splits, with `link`, so that nothing was written.

    Raises:
        AttclError: `output` holds something else (and not `overwrite`), lies inside the dataset, or cannot be written.
    """
    if is_written(dataset, splits, output, link=link, overwrite=overwrite):
        return False
    document = to_json(splits)
    kept = [*_kept_files(dataset, splits)]
    kept += [*dataset.naming_files, *side_cars_of(dataset, kept)]
    with _beside(dataset, output, overwrite=overwrite) as building:
        for file in kept:
            _link(dataset.root / file, building / file, link)
        if dataset.vocabulary_file is not None:
            shutil.copyfile(dataset.vocabulary_file, building / VOCABULARY_FILE)
        write_json(building / SPLITS_FILE, document)
        finish(building)
        _require_whole(kept, building, output)
    return True


def _changed(dataset: Dataset, splits: Splits, output: Path, link: LinkKind) -> UsageError | None:
    """Return how a tree of these splits differs from what `write_tree` would write; None if it does not."""
    lost = []
    for file in (*_kept_files(dataset, splits), *dataset.naming_files):
        kind = _kind(output / file, dataset.root / file)
        if kind is None:
            lost.append(file)
        elif kind != link:
            return UsageError(
                f"--link: {link}, but {output / file} is a {kind}, expected the same",
                f"give --link {kind}, choose another --output, or replace the folder with --overwrite",
                code="other-link",
            )
    if not lost:
        return None
    return UsageError(
        f"--output: {output} has lost {counted(len(lost), 'file')} of its splits (the first: {lost[0]}), "
        "expected all",
        "write the folder again with --overwrite, or choose another --output",
        code="tree-incomplete",
    )


def _kind(file: Path, original: Path) -> LinkKind | None:
    """Return how a file got into the tree; None if it is not there, or a link to nothing."""
    if not file.exists():
        return None
    if file.is_symlink():
        return "symlink"
    return "hardlink" if file.samefile(original) else "copy"


def _kept_files(dataset: Dataset, splits: Splits) -> Iterator[PurePosixPath]:
    cases = {case.id: case for case in dataset.cases}
    for items in splits.splits.values():
        for item in items:
            case = cases[item.case]
            for modality in item.present:
                yield from case.files[modality]
            yield from case.segmentation


def _require_whole(kept: Iterable[PurePosixPath], building: Path, output: Path) -> None:
    """Raise an error if a file of the tree was removed while it was built."""
    for file in kept:
        if not os.path.lexists(building / file):
            raise AttclError(
                f"{output}: {file} was removed while the run was going on, expected a folder that stays",
                "run the same command again",
                code="output-removed",
            )


@contextmanager
def _beside(dataset: Dataset, output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Make a folder that takes the place of `output` when the block ends well, and vanishes when it does not."""
    try:
        make_parent(output)
    except OSError as error:
        expected, hint = refusal(
            error, "expected a folder that can be made", "choose another --output"
        )
        raise AttclError(
            f"{output}: not writable ({error.strerror}), {expected}", hint, code="file-not-written"
        ) from error
    try:
        with temporary_folder(output) as building:
            yield building
            building.chmod(ordinary_mode(0o777))
            with held():
                require_replaceable(
                    dataset, output, overwrite=overwrite
                )  # it may have come meanwhile
                _take_place(building, output)
    except OSError as error:
        expected, hint = refusal(
            error,
            "expected a writable place with free space",
            "choose another --output, or --link symlink, which needs no space",
        )
        raise AttclError(
            f"{output}: not written ({error.strerror or error}), {expected}",
            hint,
            code="file-not-written",
        ) from error


def _take_place(building: Path, output: Path) -> None:
    """Rename a folder to `output`, and remove what was there."""
    if not output.exists() and not output.is_symlink():
        building.rename(output)
        return
    old = building.with_name(f"{building.name.removesuffix(TEMPORARY_SUFFIX)}old{TEMPORARY_SUFFIX}")
    output.rename(old)
    try:
        building.rename(output)
    except OSError:
        old.rename(output)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old)  # links are removed, never what they point to


def _link(source: Path, target: Path, kind: LinkKind) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    if kind == "copy":
        shutil.copyfile(real, target)
    elif kind == "hardlink":
        os.link(real, target)
    else:
        target.symlink_to(real)
