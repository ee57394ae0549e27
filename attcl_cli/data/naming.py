"""Relative paths below a folder -> cases, and what is wrong with the names.

Opens no file. How one path is read is left to `layouts`, what the cases are good for to `dataset`.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from attcl_cli.data import bids
from attcl_cli.data.layouts import SEGMENTATION, Layout, modality_of
from attcl_cli.errors import AttclError, UsageError


@dataclass(frozen=True)
class Case:
    """One examination of one patient.

    Attributes:
        id: the name that the files carry.
        patient: the patient it belongs to; several cases of one patient stay in one split.
        files: modality -> its file, relative to the dataset's root (PNG: all slices, in order).
        segmentation: the same for the label map; empty if there is none.
        prefix: the folder that the layout's template begins with.
    """

    id: str
    patient: str
    files: Mapping[str, tuple[PurePosixPath, ...]]
    segmentation: tuple[PurePosixPath, ...] = ()
    prefix: str = ""


@dataclass(frozen=True)
class Reading:
    """What the names below a folder say.

    Attributes:
        layout: the convention they follow.
        cases: sorted by id.
        wrong: case id, or name of an empty folder -> what is wrong with its names.
        ignored: relative paths of files that are no image of the layout.
        spellings: modality -> the token that most files use.
        extension: the file ending that most files use.
        notes: what was left out, and why.
    """

    layout: Layout
    cases: tuple[Case, ...]
    wrong: Mapping[str, tuple[AttclError, ...]]
    ignored: tuple[PurePosixPath, ...]
    spellings: Mapping[str, str]
    extension: str
    notes: tuple[str, ...] = ()


def read_folder(
    root: Path,
    candidates: Sequence[Layout],
    vocabulary: Mapping[str, tuple[str, ...]],
    *,
    bids_filter: Sequence[str] = (),
) -> Reading:
    """Read every name below a folder by the layout that most files fit.

    Args:
        root: the dataset's folder; links to folders are followed.
        candidates: the layouts to choose from.
        vocabulary: modality -> its spellings.
        bids_filter: which of several files of a modality is meant in BIDS (`bids.parse_filters`).

    Raises:
        AttclError: a folder cannot be listed, or nothing in it fits a layout.
        UsageError: a filter is malformed, matches nothing, or the layout is not BIDS.
    """
    everything = _walk(root)
    aside = bids.set_aside(everything, root)
    files = [path for path in everything if path not in aside]
    readings = {
        candidate.name: _read_names(files, candidate, vocabulary) for candidate in candidates
    }
    chosen = max(candidates, key=lambda candidate: len(readings[candidate.name]))
    names = readings[chosen.name]
    if not names:
        raise bids.only_set_aside(root, aside) or _unknown_layout(root, files, candidates)
    notes = bids.notes_of(aside, root)
    if bids_filter and chosen.name != bids.LAYOUT:
        raise UsageError(
            f"--bids-filter: {root} is named as {chosen.title}, expected BIDS",
            "leave it out, or use --layout bids",
            code="bids-filter-without-bids",
        )
    if bids_filter:
        left, dropped = bids.select(names, bids.parse_filters(bids_filter, vocabulary))
        files = [path for path in files if path not in names or path in left]
        names, notes = left, (*notes, *dropped)
    reading = _assemble(root, files, chosen, names, vocabulary)
    return replace(reading, notes=(*reading.notes, *notes))


@dataclass(frozen=True)
class _Name:
    path: PurePosixPath
    case: str
    modality: str
    token: str
    prefix: str
    ending: str
    slice_: str


def _walk(root: Path) -> list[PurePosixPath]:
    """Return every file below `root`, relative and sorted, also through links; no hidden name, no folder twice."""
    files: list[PurePosixPath] = []
    visited: set[tuple[int, int]] = set()
    starts = [root]  # linked folders wait at the end, so that none takes the place of a real one
    for start in starts:
        for folder, folders, names in os.walk(start, onerror=_refuse):
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
            relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
            files += [relative / name for name in names if not name.startswith(".")]
    return sorted(files)


def _refuse(error: OSError) -> NoReturn:
    raise AttclError(
        f"{error.filename}: not readable ({error.strerror}), expected a folder that can be listed",
        "check its permissions",
        code="folder-unreadable",
    ) from error


def _read_names(
    files: Sequence[PurePosixPath], layout: Layout, vocabulary: Mapping[str, tuple[str, ...]]
) -> dict[PurePosixPath, _Name]:
    pattern = layout.pattern()
    names = {}
    for path in files:
        match = pattern.fullmatch(str(path))
        if match is None:
            continue
        groups = match.groupdict()
        modality = modality_of(groups["token"], vocabulary)
        if modality is not None:
            names[path] = _Name(
                path,
                groups["case"],
                modality,
                groups["token"],
                groups["prefix"] or "",
                groups["ext"],
                groups.get("slice") or "",
            )
    return names


def _assemble(
    root: Path,
    files: Sequence[PurePosixPath],
    layout: Layout,
    names: Mapping[PurePosixPath, _Name],
    vocabulary: Mapping[str, tuple[str, ...]],
) -> Reading:
    by_case: dict[str, list[_Name]] = defaultdict(list)
    for name in names.values():
        by_case[name.case].append(name)
    wrong: dict[str, tuple[AttclError, ...]] = {}
    cases = []
    for case_id in sorted(by_case):
        case, problems = _case(root, layout, case_id, by_case[case_id])
        if case.files:
            cases.append(case)
        elif not problems:
            folder = root / by_case[case_id][0].path.parent
            problems.append(
                AttclError(
                    f"{folder}: a case with no modality, "
                    f"expected at least one of {', '.join(vocabulary)}",
                    "add its images or remove the folder",
                    code="case-empty",
                )
            )
        if problems:
            wrong[case_id] = tuple(problems)
    for folder in _empty_folders(root, layout, by_case):
        problem = AttclError(
            f"{folder}: a case with no modality, expected its images",
            "add its images or remove the folder",
            code="case-empty",
        )
        wrong[folder.name] = (*wrong.get(folder.name, ()), problem)
    ignored = tuple(
        path for path in files if path not in names and path.suffix in {".gz", ".nii", ".png"}
    )
    tokens: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names.values():
        tokens[name.modality][name.token] += 1
    spellings = {
        **layout.tokens,
        **{modality: counter.most_common(1)[0][0] for modality, counter in tokens.items()},
    }
    endings = Counter(name.ending for name in names.values())
    return Reading(
        layout=layout,
        cases=tuple(cases),
        wrong=wrong,
        ignored=ignored,
        spellings=spellings,
        extension=endings.most_common(1)[0][0],
    )


def _case(
    root: Path, layout: Layout, case_id: str, names: Sequence[_Name]
) -> tuple[Case, list[AttclError]]:
    problems: list[AttclError] = []
    files: dict[str, tuple[PurePosixPath, ...]] = {}
    numbers: dict[
        str, set[int]
    ] = {}  # modality -> the slices that there are; a volume in one file is slice 0
    for modality in sorted({name.modality for name in names}):
        by_number: dict[int, list[str]] = defaultdict(list)
        for name in names:
            if name.modality == modality:
                by_number[int(name.slice_ or 0)].append(str(name.path))
        twins = next((sorted(paths) for paths in by_number.values() if len(paths) > 1), None)
        if twins and layout.name == bids.LAYOUT:
            paths = [PurePosixPath(path) for path in twins]
            problems.append(bids.ambiguity(root, case_id, modality, paths))
        elif twins:
            problems.append(
                AttclError(
                    f"{root / twins[0]}: a second file for {modality} of {case_id} is {twins[1]}, "
                    "expected one",
                    "remove or rename one of them",
                    code="modality-twice",
                )
            )
        files[modality] = tuple(
            PurePosixPath(path)
            for number in sorted(by_number)
            for path in sorted(by_number[number])
        )
        if modality != SEGMENTATION:
            numbers[modality] = set(by_number)
    all_slices = set().union(*numbers.values())
    for modality, present in numbers.items():
        if present != all_slices:
            problems.append(
                AttclError(
                    f"{root / files[modality][0]}: {modality} of {case_id} has {len(present)} slices of "
                    f"{len(all_slices)} (no slice {min(all_slices - present)}), expected all or none",
                    "add the missing slices or remove the others",
                    code="slices-missing",
                )
            )
    segmentation = files.pop(SEGMENTATION, ())
    return Case(
        id=case_id,
        patient=layout.patient_of(case_id),
        files=files,
        segmentation=segmentation,
        prefix=names[0].prefix,
    ), problems


def _empty_folders(root: Path, layout: Layout, cases: Mapping[str, Sequence[_Name]]) -> list[Path]:
    """Return case folders without a single file of the layout.

    Such a folder lies beside those of cases, and is empty, holds images, or is named like a case: `docs/` is none.
    """
    if "{case}/" not in layout.template:
        return []
    parents = {root / name.path.parent.parent for names in cases.values() for name in names}
    filled = {root / name.path.parent for names in cases.values() for name in names}
    shapes = {re.sub(r"\d+", "0", case_id) for case_id in cases}

    def is_case(folder: Path) -> bool:
        names = [item.name for item in folder.iterdir()]
        images = any(name.endswith((".nii", ".nii.gz", ".png")) for name in names)
        return not names or images or re.sub(r"\d+", "0", folder.name) in shapes

    return [
        folder
        for parent in sorted(parents)
        for folder in sorted(parent.iterdir())
        if folder.is_dir()
        and not folder.name.startswith(".")
        and folder not in filled
        and folder not in parents
        and is_case(folder)
    ]


def _unknown_layout(
    root: Path, files: Sequence[PurePosixPath], candidates: Sequence[Layout]
) -> AttclError:
    images = [path for path in files if path.name.endswith((".nii", ".nii.gz", ".png"))]
    content = (
        f"{len(images)} images such as {images[0]}"
        if images
        else f"{len(files)} files and no image"
    )
    templates = [
        f"{layout.place(case='{case}', token='<modality>', slice_='{slice}')} ({layout.title})"
        for layout in candidates
    ]
    return AttclError(
        f"{root}: unknown folder layout: {content}, expected {' or '.join(templates)}",
        "rename the files, or describe the naming in a TOML file and pass it with --modalities",
        code="unrecognised-layout",
    )
