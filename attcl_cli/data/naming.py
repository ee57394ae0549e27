"""Relative paths below a folder -> cases, and what is wrong with the names.

How one path is read is left to `layouts`, whose a case is to `patients`, what is not read to `unread`, what the cases
are good for to `dataset`.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from attcl_cli.data import bids, unread
from attcl_cli.data.channels import Channels, read_channels
from attcl_cli.data.layouts import (
    DEFAULT_MODALITIES,
    LAYOUTS,
    NIFTI_ENDING,
    SEGMENTATION,
    Layout,
    modality_of,
)
from attcl_cli.data.patients import find_patients
from attcl_cli.data.vocabulary import VOCABULARY_FILE, Vocabulary
from attcl_cli.errors import AttclError, UsageError, counted, quoted, some

_NAMINGS_SHOWN = 3  # of those that an error lists; the documentation has them all
_EXPLAINING = {"modality-twice", "bids-name-and-folder"}  # why a case is in several folders
_MOST_OF_A_PATIENT = 6  # images


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
        wrong: case id, or name of a folder -> what is wrong with its names, or looks like an image and is not read.
        ignored: relative paths of images that are not read and are no loss.
        spellings: modality -> the token that most files use.
        tokens: modality -> every token that a file uses.
        extension: the file ending that most files use.
        vocabulary: modality -> its spellings.
        expected: the modalities that the user or the dataset itself names.
        naming_files: files that the names are read with (`dataset.json` of nnU-Net).
        recognised: public datasets that the cases' ids come from.
        notes: what was left out or guessed, and why.
    """

    layout: Layout
    cases: tuple[Case, ...]
    wrong: Mapping[str, tuple[AttclError, ...]]
    ignored: tuple[PurePosixPath, ...]
    spellings: Mapping[str, str]
    extension: str
    vocabulary: Mapping[str, tuple[str, ...]]
    expected: tuple[str, ...] = ()
    naming_files: tuple[PurePosixPath, ...] = ()
    recognised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_folder(
    root: Path,
    candidates: Sequence[Layout],
    said: Vocabulary,
    *,
    bids_filter: Sequence[str] = (),
) -> Reading:
    """Read every name below a folder by the layout that most files fit.

    Args:
        root: the dataset's folder; links to folders are followed.
        candidates: the layouts to choose from.
        said: what the user says about names.
        bids_filter: which of several files of a modality is meant in BIDS (`bids.parse_filters`).

    Raises:
        AttclError: a folder cannot be listed, or nothing in it fits a layout.
        UsageError: a filter is malformed, matches nothing, or the layout is not BIDS; `said` does not fit the names.
    """
    everything = _walk(root)
    left_out = bids.ignore_rules(said.ignore, named=VOCABULARY_FILE)
    passed = {path for path in everything if left_out(path)} if said.ignore else set()
    everything = [path for path in everything if path not in passed]
    aside = bids.set_aside(everything, root)
    files = [path for path in everything if path not in aside]
    volumes = [path for path in files if not path.name.lower().endswith(".png")]
    pictures = [path for path in files if path.name.lower().endswith(".png")]
    chosen, read = _best_fit(root, volumes, pictures, candidates, said)
    if not read.names:
        raise bids.only_set_aside(root, aside) or _unknown_layout(root, files, candidates)
    notes = bids.notes_of(aside, root)
    if bids_filter and chosen.name != bids.LAYOUT:
        raise UsageError(
            f"--bids-filter: {root} is named as {chosen.title}, expected BIDS",
            "leave it out, or use --layout bids",
            code="bids-filter-without-bids",
        )
    if bids_filter:
        left, dropped = bids.select(read.names, bids.parse_filters(bids_filter, read.vocabulary))
        files = [path for path in files if path not in read.names or path in left]
        read, notes = replace(read, names=left), (*notes, *dropped)
    read, guessed = _settle_labels(files, chosen, read)
    reading = _assemble(root, chosen, read, said)
    chosen_by_user = len(candidates) == 1
    verdict = _judge(root, files, reading, read, said, chosen_by_user=chosen_by_user)
    if passed:
        notes = (
            *notes,
            f"{counted(len(passed), 'file')} left out by modalities.toml, such as {min(passed)}",
        )
    explained = {*verdict.reported, *passed, *(verdict.ignored if chosen_by_user else ())}
    passed_over = (
        (
            f"{counted(len(verdict.ignored), 'image is', 'images are')} ignored, by name of no modality that is "
            f"known here, or of one that the case has (rename what a case lacks): {some(verdict.ignored, most=4)}",
        )
        if verdict.ignored
        else ()
    )
    return replace(
        reading,
        wrong=_with_unread(root, reading.wrong, verdict.wrong, explained),
        ignored=verdict.ignored,
        notes=(*reading.notes, *notes, *guessed, *passed_over),
    )


@dataclass(frozen=True)
class _Name:
    path: PurePosixPath
    case: str
    modality: str
    token: str
    prefix: str
    ending: str
    slice_: str
    elsewhere: bool = False  # a label map in a folder of its own


@dataclass(frozen=True)
class _Read:
    """The files of a folder that fit one layout."""

    names: Mapping[PurePosixPath, _Name]
    vocabulary: Mapping[str, tuple[str, ...]]
    segmentations: tuple[str, ...]
    channels: Channels | None = None


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
            if not folders and not names and unread.kind_of_name(relative.name) == "nifti":
                files.append(relative)  # an empty folder in the place of a file
    return sorted(files)


def _refuse(error: OSError) -> NoReturn:
    hint = "check the path"
    if isinstance(error, PermissionError):
        hint = f"change its permissions: chmod u+rx {quoted(error.filename)}, or ask its owner"
    raise AttclError(
        f"{error.filename}: not readable ({error.strerror}), expected a folder that can be listed",
        hint,
        code="folder-unreadable",
    ) from error


def _best_fit(
    root: Path,
    volumes: Sequence[PurePosixPath],
    pictures: Sequence[PurePosixPath],
    candidates: Sequence[Layout],
    said: Vocabulary,
) -> tuple[Layout, _Read]:
    """Return the layout that most files fit, with these; those of the last resort come after all others."""
    best, read = candidates[0], _Read({}, {}, ())
    for layout in sorted(candidates, key=lambda layout: layout.last_resort):
        if layout.last_resort and read.names and not best.last_resort:
            break
        found = _read_names(root, pictures if layout.sliced else volumes, layout, said)
        if len(found.names) > len(read.names):
            best, read = layout, found
    return best, read


def _read_names(
    root: Path, files: Sequence[PurePosixPath], layout: Layout, said: Vocabulary
) -> _Read:
    vocabulary = said.modalities or layout.vocabulary or DEFAULT_MODALITIES
    segmentations = said.segmentations or layout.segmentations
    pattern, labels = layout.pattern(), layout.label_pattern()
    matches: dict[PurePosixPath, tuple[dict[str, str], bool]] = {}
    for path in files:
        text = str(path)
        image = pattern.fullmatch(text)
        label = labels.fullmatch(text) if labels is not None and image is None else None
        match = image or label
        if match is not None:
            matches[path] = match.groupdict(), image is None
    channels = None
    if layout.channel_file and matches:
        images = [groups["prefix"] for groups, elsewhere in matches.values() if not elsewhere]
        channels = read_channels(root, images, layout.channel_file, vocabulary)
        vocabulary = channels.vocabulary if channels is not None else vocabulary
    tokens = {groups.get("token") or "" for groups, _ in matches.values()}
    modalities = {
        token: modality_of(token, vocabulary, segmentations) if token else SEGMENTATION
        for token in tokens
    }
    names = {}
    for path, (groups, elsewhere) in matches.items():
        token = groups.get("token") or ""
        modality = modalities[token]
        if modality is None or (elsewhere and modality != SEGMENTATION):
            continue
        names[path] = _Name(
            path,
            groups["case"] if "case" in groups else root.resolve().name,
            modality,
            token,
            groups.get("prefix") or "",
            groups["ext"],
            groups.get("slice") or "",
            elsewhere,
        )
    if layout.channel_file and all(name.modality == SEGMENTATION for name in names.values()):
        names = {}  # numbers that nothing explains
    return _Read(names, vocabulary, segmentations, channels)


def _settle_labels(
    files: Sequence[PurePosixPath], layout: Layout, read: _Read
) -> tuple[_Read, tuple[str, ...]]:
    """Choose the label map of a case that has several, by their names; find that of a case that seems to have none.

    Returns:
        The names that are left, and what was guessed.
    """
    order = [name.lower() for name in read.segmentations]

    def rank(name: _Name) -> int:
        token = name.token.lower()
        text = token if token in order else token.rsplit("_", 1)[-1]
        return order.index(text) if text in order else len(order)

    best: dict[str, int] = {}
    for name in read.names.values():
        if name.modality == SEGMENTATION:
            best[name.case] = min(rank(name), best.get(name.case, rank(name)))
    names = {
        path: name
        for path, name in read.names.items()
        if name.modality != SEGMENTATION or rank(name) == best[name.case]
    }
    folders = _case_folders(layout, names.values())
    ids = {name.case.lower() for name in names.values()}
    similar: dict[str, list[PurePosixPath]] = defaultdict(list)  # W39_1998.09.19_Segm.nii
    for path in files:
        case = folders.get(path.parent)
        if case is None or case in best or path in read.names:
            continue
        match = re.fullmatch(
            rf"(?P<stem>.*[^a-z0-9](?P<last>[a-z0-9]+)){NIFTI_ENDING}", path.name.lower()
        )
        if match is None or match["last"] not in order:
            continue
        if not any(match["stem"].startswith(other) for other in ids - {case.lower()}):
            similar[case].append(path)
    notes = []
    for case, paths in similar.items():
        if len(paths) == 1:
            (path,) = paths
            names[path] = _Name(path, case, SEGMENTATION, "", "", "", "", elsewhere=True)
            notes.append(f"{path}: taken as the label map of {case}, by the end of its name")
    return replace(read, names=names), tuple(notes)


def _case_folders(layout: Layout, names: Iterable[_Name]) -> dict[PurePosixPath, str]:
    """Return the folders that hold images of a single case, by the layout and in fact."""
    if not layout.case_folders:
        return {}
    cases: dict[PurePosixPath, set[str]] = defaultdict(set)
    for name in names:
        if not name.elsewhere:
            cases[name.path.parent].add(name.case)
    return {folder: next(iter(ids)) for folder, ids in cases.items() if len(ids) == 1}


def _assemble(
    root: Path,
    layout: Layout,
    read: _Read,
    said: Vocabulary,
) -> Reading:
    by_case: dict[str, list[_Name]] = defaultdict(list)
    for name in read.names.values():
        by_case[name.case].append(name)
    folders = {
        it: names[0].prefix.rstrip("/") if layout.case_folders else ""
        for it, names in by_case.items()
    }
    patients = find_patients(by_case, layout, said.patient, folders)
    wrong: dict[str, tuple[AttclError, ...]] = {}
    cases = []
    for case_id in sorted(by_case):
        patient = patients.of[case_id]
        case, problems = _case(root, layout, case_id, patient, by_case[case_id])
        if case.files:
            cases.append(case)
        elif not problems:
            folder = root / by_case[case_id][0].path.parent
            problems.append(
                AttclError(
                    f"{folder}: a case with no modality, "
                    f"expected at least one of {', '.join(read.vocabulary)}",
                    "add its images or remove the folder",
                    code="case-empty",
                )
            )
        if layout.name == bids.LAYOUT:
            paths = sorted(name.path for name in by_case[case_id] if not name.elsewhere)
            misplaced = bids.misplaced(root, case_id, paths)
            problems += [misplaced] if misplaced is not None else []
        problems += _not_utf8(root, by_case[case_id])
        if problems:
            wrong[case_id] = tuple(problems)
    twice = {it for it, problems in wrong.items() if any(p.code in _EXPLAINING for p in problems)}
    others = {case_id: names for case_id, names in by_case.items() if case_id not in twice}
    for case_id, problem in (
        *_spelt_alike(root, by_case),
        *_in_several_folders(root, others),
        *_without_images(root, layout, by_case),
    ):
        wrong[case_id] = (*wrong.get(case_id, ()), problem)
    tokens: dict[str, Counter[str]] = defaultdict(Counter)
    for name in read.names.values():
        if not name.elsewhere:
            tokens[name.modality][name.token] += 1
    spellings = {
        **(read.channels.tokens if read.channels is not None else layout.tokens),
        **{modality: counter.most_common(1)[0][0] for modality, counter in tokens.items()},
    }
    endings = Counter(name.ending for name in read.names.values() if not name.elsewhere)
    return Reading(
        layout=layout,
        cases=tuple(cases),
        wrong=wrong,
        ignored=(),
        spellings=spellings,
        extension=endings.most_common(1)[0][0].lower(),
        vocabulary=read.vocabulary,
        expected=tuple(read.vocabulary) if said.modalities or read.channels is not None else (),
        naming_files=read.channels.files if read.channels is not None else (),
        recognised=patients.recognised,
        notes=patients.notes,
        tokens={modality: tuple(counter) for modality, counter in tokens.items()},
    )


def _judge(
    root: Path,
    files: Sequence[PurePosixPath],
    reading: Reading,
    read: _Read,
    said: Vocabulary,
    *,
    chosen_by_user: bool,
) -> unread.Verdict:
    """Divide the files that are not read into problems and what is harmless."""
    rest = [path for path in files if path not in read.names]
    items = unread.find_unread(root, rest, sliced=reading.layout.sliced)
    if not items:
        return unread.Verdict({}, (), ())
    left = [path for item in items for path in item.files]
    others = {
        path: layout.title
        for layout in LAYOUTS.values()
        if layout.name != reading.layout.name and not layout.last_resort
        for path in _read_names(root, left, layout, said).names
    }
    present: dict[str, set[str]] = defaultdict(set)
    for name in read.names.values():
        present[name.case].add(name.modality)
    places = {
        modality: str(
            reading.layout.place(
                case="{case}", token=reading.spellings.get(modality, modality), slice_="{slice}"
            )
        )
        for modality in read.vocabulary
    }
    known = unread.Known(
        folders=_case_folders(reading.layout, read.names.values()),
        present=present,
        places=places,
        others=others,
        chosen=chosen_by_user,
    )
    return unread.judge(root, items, known, read.vocabulary)


def _with_unread(
    root: Path,
    wrong: Mapping[str, tuple[AttclError, ...]],
    unread_: Mapping[str, tuple[AttclError, ...]],
    explained: Collection[PurePosixPath],
) -> dict[str, tuple[AttclError, ...]]:
    """Return all problems; a folder is not reported as empty if what it holds is reported, or left out on purpose."""
    reported = {str(root / path.parent) for path in explained}
    reported |= {str(root / name) for name in unread_}
    both: dict[str, list[AttclError]] = defaultdict(list)
    for name, problems in wrong.items():
        both[name] += [
            problem
            for problem in problems
            if problem.code != "case-empty" or problem.message.split(": ")[0] not in reported
        ]
    for name, problems in unread_.items():
        both[name] += problems
    return {name: tuple(problems) for name, problems in both.items() if problems}


def _case(
    root: Path, layout: Layout, case_id: str, patient: str, names: Sequence[_Name]
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
            above = [PurePosixPath(path).parent.parent.name for path in twins]
            apart = layout.case_folders and all(above)
            names_apart = [f"{folder}_{case_id}" for folder in above[:2]]
            problems.append(
                AttclError(
                    f"{root / twins[0]}: a second file for {modality} of {case_id} is {twins[1]}, "
                    "expected one",
                    "if these are two cases, give each a name of its own"
                    f"{f', such as the folders {names_apart[0]} and {names_apart[1]}' if apart else ''}; "
                    f"or leave one out, with {unread.ignoring(map(PurePosixPath, twins[1:]))} in modalities.toml",
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
                    f"{root / files[modality][0]}: {modality} of {case_id} has {counted(len(present), 'slice')} of "
                    f"{len(all_slices)} (no slice {min(all_slices - present)}), expected all or none",
                    "add the missing slices or remove the others",
                    code="slices-missing",
                )
            )
    segmentation = files.pop(SEGMENTATION, ())
    return Case(
        id=case_id,
        patient=patient,
        files=files,
        segmentation=segmentation,
        prefix=next((name.prefix for name in names if not name.elsewhere), ""),
    ), problems


def _spelt_alike(
    root: Path, cases: Mapping[str, Sequence[_Name]]
) -> Iterator[tuple[str, AttclError]]:
    """Return the cases whose ids differ in capitals or encodings alone: some file systems take them for one."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for case_id in cases:
        spellings[unicodedata.normalize("NFC", case_id).lower()].append(case_id)
    for ids in spellings.values():
        alone = "capitals"
        if len({unicodedata.normalize("NFC", it) for it in ids}) == 1:
            alone = "how accents are encoded (NFC, NFD)"
        for case_id in ids if len(ids) > 1 else ():
            yield (
                case_id,
                AttclError(
                    f"{root / cases[case_id][0].path}: {' and '.join(sorted(ids))} differ in {alone} alone, "
                    "expected one name per case",
                    "rename the files of one of them",
                    code="case-in-two-spellings",
                ),
            )


def _without_images(
    root: Path, layout: Layout, cases: Mapping[str, Sequence[_Name]]
) -> Iterator[tuple[str, AttclError]]:
    for folder in _empty_folders(root, layout, cases):
        images = sorted(item.name for item in folder.iterdir() if _is_volume(item.name))
        if images:
            relative = folder.relative_to(root)
            problem = AttclError(
                f"{folder}: {counted(len(images), 'image')} such as {images[0]}, "
                f"expected names such as {layout.place(case=folder.name, token='<modality>')}",
                "rename the folder or its files, if it is a case; otherwise move it away, or leave it out, with "
                f"{unread.ignoring([f'{relative}/*'])} in modalities.toml",
                code="case-empty",
            )
        else:
            problem = AttclError(
                f"{folder}: a case with no modality, expected its images",
                "add its images or remove the folder",
                code="case-empty",
            )
        yield folder.name, problem


def _in_several_folders(
    root: Path, cases: Mapping[str, Sequence[_Name]]
) -> Iterator[tuple[str, AttclError]]:
    """Return the cases whose images lie in several folders, which may be two patients of one name: `a/1/`, `b/1/`.

    A folder per modality (`T1/Case_000/Case_000_t1.nii.gz`) is a habit of the dataset, and no problem.
    """
    images = {
        case_id: [name for name in names if not name.elsewhere and name.modality != SEGMENTATION]
        for case_id, names in cases.items()
    }
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for names in images.values():
        for name in names:
            usual[name.modality][name.prefix] += 1
    homes = {counts.most_common(1)[0][0] for counts in usual.values()}
    folders = {name.prefix for names in images.values() for name in names}
    # Completed volumes lie in the folder of the case's first modality, and may outnumber the originals of theirs.
    if len(homes) == len(usual) or (len(homes) > 1 and len(folders) == len(usual)):
        return
    for case_id, names in images.items():
        places: dict[str, _Name] = {}
        for name in names:
            places.setdefault(name.prefix, name)
        if len(places) > 1:
            first, second, *_ = places.values()
            others = [name.path for name in names if name.prefix != first.prefix]
            problem = AttclError(
                f"{root / first.path}: {case_id} is in {root / second.path.parent}, too, "
                f"which has its {second.modality}, expected all images of a case in one folder",
                "if these are two cases, give each a name of its own; otherwise move them together, or leave some "
                f"out, with {unread.ignoring(others)} in modalities.toml",
                code="case-in-two-folders",
            )
            yield case_id, problem


def _not_utf8(root: Path, names: Sequence[_Name]) -> list[AttclError]:
    """Refuse a case whose names hold bytes that are no UTF-8: reports, tables and weights could not name it."""
    path = next((name.path for name in names if not _is_utf8(str(name.path))), None)
    if path is None:
        return []
    hint = f"rename it, for example with: convmv -r -f latin1 -t utf-8 --notest {quoted(root)}"
    if sys.getfilesystemencoding() != "utf-8":
        hint = "set PYTHONUTF8=1, or choose a locale of UTF-8 (LC_ALL=C.UTF-8)"
    return [
        AttclError(
            f"{root / path}: a name that is not read as UTF-8, expected one that files and reports can hold",
            hint,
            code="name-not-utf8",
        )
    ]


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        return os.fsencode(name).decode() == name  # a locale of Latin-1 reads other letters
    except UnicodeDecodeError:
        return False


def _empty_folders(root: Path, layout: Layout, cases: Mapping[str, Sequence[_Name]]) -> list[Path]:
    """Return case folders without a single file of the layout.

    Such a folder lies beside those of cases, and is empty, holds images, or is named like a case: `docs/` is none.
    """
    if not re.search(r"\{case\}[^/{]*/", layout.template):
        return []
    read = {name.path.parent for names in cases.values() for name in names if not name.elsewhere}
    parents = {root / folder for folder in {folder.parent for folder in read}}
    filled = {root / folder for folder in read}
    shapes = {re.sub(r"\d+", "0", case_id) for case_id in cases}

    def is_case(folder: Path) -> bool:
        names = [item.name for item in folder.iterdir()]
        images = any(map(_is_volume, names))
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


def _is_volume(name: str) -> bool:
    return name.lower().endswith((".nii", ".nii.gz"))


def _unknown_layout(
    root: Path, files: Sequence[PurePosixPath], candidates: Sequence[Layout]
) -> AttclError:
    unexplained = next(
        (
            path
            for layout in candidates
            if layout.channel_file
            for path in files
            if layout.pattern().fullmatch(str(path))
        ),
        None,
    )
    if unexplained is not None:
        return AttclError(
            f"{root}: {unexplained} is named as nnU-Net names channels, but no dataset.json says what they are, "
            "expected its channel_names",
            "complete with --link-originals, and this folder is a whole dataset"
            if (root / "run.json").is_file()
            else "add dataset.json, or name the channels in modalities.toml: [modalities] holds lines such as "
            't1 = ["0001"]',
            code="channels-unknown",
        )
    items = unread.find_unread(root, files)
    if not files and not items:
        return AttclError(
            f"{root}: empty, without a file in any folder, expected a dataset, or the folder of a patient",
            "check the path, and that the files were copied and the disk is mounted",
            code="dataset-empty",
        )
    images = [item for item in items if item.kind in ("nifti", "picture")]
    named = images or items
    kind = unread.KINDS[named[0].kind] if named else None
    content = (
        f"{counted(len(named), 'image')} such as {root.name if named[0].path == PurePosixPath() else named[0].path}"
        + ("" if images or kind is None else f" ({kind.title})")
        if named
        else f"{counted(len(files), 'file')} and no image"
    )
    templates = [
        f"{layout.place(case='{case}', token='<modality>', slice_='{slice}')} ({layout.title})"
        for layout in candidates[:_NAMINGS_SHOWN]
    ]
    expected = " or ".join(templates)
    if len(candidates) > len(templates):
        expected = f"one of {len(candidates)} namings, such as {expected}"
    return AttclError(
        f"{root}: unknown folder layout: {content}, expected {expected}",
        f"{kind.hint}; then name the files so"
        if kind is not None and not images
        else _hint_to_name(root, [item for item in images if item.kind == "nifti"]),
        code="unrecognised-layout",
    )


def _hint_to_name(root: Path, images: Sequence[unread.Unread]) -> str:
    """Return how to go on with files of unknown names: if they may be those of one patient, the command for them."""
    rename = "rename the files, or describe the naming in a TOML file and pass it with --modalities"
    if not 0 < len(images) <= _MOST_OF_A_PATIENT:
        return rename
    options = " ".join(f"--image MODALITY={quoted(root / image.path)}" for image in images)
    return f"images of one patient: attcl complete {options}; of several: {rename}"
