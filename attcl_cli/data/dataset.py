"""A folder of patients -> cases: which file is which modality, what is missing, and where a new file belongs.

How files are named is left to `layouts`, what they hold to `volumes`, which cases are used to the stages.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from attcl_cli.data import volumes
from attcl_cli.data.layouts import (
    DEFAULT_MODALITIES,
    LAYOUTS,
    SEGMENTATION,
    SUBMISSIONS,
    VOCABULARY_FILE,
    Layout,
    ending_of,
    modality_of,
    read_vocabulary,
)
from attcl_cli.errors import AttclError, UsageError, nearest
from attcl_cli.files import read_json


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
class Dataset:
    """What a folder holds.

    Attributes:
        root: the folder.
        layout: the convention its names follow.
        modalities: every modality that a case should have, sorted.
        cases: sorted by id.
        wrong: case id, or name of an empty folder -> what is wrong with its names; `check` adds what is wrong
            with files.
        ignored: relative paths of files that are no image of the layout.
        spellings: modality -> the token that most files of this dataset use.
        extension: the file ending that most files use.
        vocabulary_file: where the modality names come from, if not the default ones.
    """

    root: Path
    layout: Layout
    modalities: tuple[str, ...]
    cases: tuple[Case, ...]
    wrong: Mapping[str, tuple[AttclError, ...]]
    ignored: tuple[PurePosixPath, ...]
    spellings: Mapping[str, str]
    extension: str
    vocabulary_file: Path | None = None

    @property
    def problems(self) -> tuple[AttclError, ...]:
        """Return everything that is wrong with names."""
        return tuple(problem for problems in self.wrong.values() for problem in problems)

    def paths(self, case: Case, modality: str) -> tuple[Path, ...]:
        """Return the files of a modality that the case has, or of its label map (`SEGMENTATION`)."""
        files = case.segmentation if modality == SEGMENTATION else case.files[modality]
        return tuple(self.root / file for file in files)

    def missing(self, case: Case) -> tuple[str, ...]:
        """Return the modalities that the case lacks."""
        return tuple(name for name in self.modalities if name not in case.files)

    def counts(self) -> dict[str, int]:
        """Return modality -> number of cases that have it."""
        return {name: sum(name in case.files for case in self.cases) for name in self.modalities}

    def by_frequency(self) -> tuple[str, ...]:
        """Return the paper's `modal_list`: modalities by falling number of volumes, ties by name (Section 3.6)."""
        counts = self.counts()
        return tuple(sorted(self.modalities, key=lambda name: (-counts[name], name)))

    def place(self, case: Case, modality: str) -> tuple[PurePosixPath, ...]:
        """Return where the files of a modality that the case lacks belong, relative to the root."""
        model = next(iter(case.files.values()))  # slices are numbered as those of another modality
        return tuple(
            self.layout.place(
                case=case.id,
                token=self.spellings.get(modality, modality),
                prefix=case.prefix,
                slice_=self.layout.slice_number(file),
                extension=self.extension_of(case),
            )
            for file in (model if self.layout.sliced else model[:1])
        )

    def place_side_car(self, case: Case, modality: str) -> PurePosixPath:
        """Return where the side-car JSON of a synthetic volume belongs; the slices of a volume share one."""
        return self.layout.place_side_car(self.place(case, modality)[0], case.id)

    def synthetic(self, case: Case, names: Iterable[str]) -> list[str]:
        """Return which of a case's modalities have a side-car that says they are synthetic; BIDS has others, too."""
        return [
            name
            for name in names
            if read_side_car(self.root / self.place_side_car(case, name)).get("synthetic") is True
        ]

    def extension_of(self, case: Case) -> str:
        """Return the ending of most files of the case (`.nii` beside `.nii.gz` happens)."""
        endings = Counter(ending_of(files[0]) for files in case.files.values())
        return endings.most_common(1)[0][0] if endings else self.extension


def read_side_car(path: Path) -> dict[str, Any]:
    """Return a volume's side-car JSON; {} if it is missing or invalid."""
    try:
        document = read_json(path) if path.is_file() else {}
    except AttclError:
        return {}
    return document if isinstance(document, dict) else {}


def open_dataset(root: Path, *, layout: str = "auto", modalities: Path | None = None) -> Dataset:
    """Find the cases below a folder by looking at names alone.

    Args:
        root: the dataset's folder; links to folders are followed.
        layout: a key of `LAYOUTS`, or `auto`: the one that most files fit.
        modalities: a TOML file with other modality names and, if needed, another naming (`read_vocabulary`); None: the
            dataset's own `modalities.toml`, otherwise the four of BraTS.

    Raises:
        AttclError: there is no such folder, or nothing in it fits a layout.
        UsageError: unknown `layout`, or the TOML file is wrong.
    """
    if not root.is_dir():
        raise AttclError(
            f"{root}: {'a file' if root.exists() else 'no such folder'}, "
            "expected the folder of a dataset",
            "check the path",
            code="dataset-not-found",
        )
    if modalities is None and (root / VOCABULARY_FILE).is_file():
        modalities = root / VOCABULARY_FILE
    vocabulary, own_layout = (
        read_vocabulary(modalities) if modalities else (DEFAULT_MODALITIES, None)
    )
    if layout not in {"auto", *LAYOUTS, *([own_layout.name] if own_layout else [])}:
        raise UsageError(
            f"--layout: {layout!r}, expected one of auto, {', '.join(LAYOUTS)}",
            f"{nearest(layout, ['auto', *LAYOUTS, *SUBMISSIONS])} auto finds it by the names of the files",
            code="unknown-layout",
        )
    files = _walk(root)
    named = [LAYOUTS[layout]] if layout in LAYOUTS else list(LAYOUTS.values())
    candidates = [own_layout] if own_layout else named
    readings = {
        candidate.name: _read_names(files, candidate, vocabulary) for candidate in candidates
    }
    chosen = max(candidates, key=lambda candidate: len(readings[candidate.name]))
    names = readings[chosen.name]
    if not names:
        raise _unknown_layout(root, files, candidates)
    return replace(_assemble(root, files, chosen, names, vocabulary), vocabulary_file=modalities)


@dataclass(frozen=True)
class Source:
    """A dataset as a user names it."""

    folder: Path
    layout: str = "auto"
    modalities: Path | None = None

    def open(self) -> Dataset:
        """Find the cases.

        Raises:
            AttclError: there is no such folder, or nothing in it fits a layout.
        """
        if not self.folder.exists():
            raise AttclError(
                f"{self.folder}: no such folder, expected a dataset or what prepare-splits wrote",
                "check the path; data/ is what attcl prepare-splits DATASET writes",
                code="dataset-not-found",
            )
        return open_dataset(self.folder, layout=self.layout, modalities=self.modalities)


def check(
    dataset: Dataset, *, cases: Sequence[Case] | None = None, values: bool = False
) -> list[AttclError]:
    """Return everything that is wrong with the files of a dataset: unreadable, not 3-D, not on one grid.

    Args:
        dataset: the dataset; what is wrong with folders that are no case comes first in the result.
        cases: only these cases.
        values: also look for NaN and constant volumes, reading only files that could be such (`volumes.suspicious`).

    Returns:
        The problems, in the order of the cases.
    """
    problems: list[AttclError] = []
    if cases is None:
        cases = dataset.cases
        known = {case.id for case in cases}
        problems += [
            item for name in dataset.wrong if name not in known for item in dataset.wrong[name]
        ]
    threads = min(8, (os.cpu_count() or 1) * 2)  # they wait for disks, not for processors
    with ThreadPoolExecutor(max_workers=threads) as pool:
        checked = pool.map(lambda case: check_case(dataset, case, values=values), cases)
        return problems + [problem for case_problems in checked for problem in case_problems]


def check_case(dataset: Dataset, case: Case, *, values: bool = False) -> list[AttclError]:
    """Return what is wrong with the images of a single case, as `check` does; its label map is not looked at."""
    if (
        case.id in dataset.wrong
    ):  # which file is meant is not clear: what they hold would only confuse
        return list(dataset.wrong[case.id])
    problems: list[AttclError] = []
    grids: dict[str, volumes.Grid] = {}
    for modality in case.files:
        paths = dataset.paths(case, modality)
        try:
            grids[modality] = volumes.read_grid(paths)
            if values and volumes.suspicious(paths, grids[modality]):
                volumes.load(paths)
        except AttclError as error:
            problems.append(error)
    names = list(grids)
    for modality in names[1:]:
        difference = grids[modality].differs_from(grids[names[0]])
        if difference:
            path = dataset.paths(case, modality)[0]
            first = dataset.paths(case, names[0])[0].name
            problems.append(
                AttclError(
                    f"{path}: {difference} of {first}, expected one grid for all volumes of a case",
                    "co-register and resample the case's volumes, or remove the one that is off",
                    code="grids-differ",
                )
            )
    return problems


# --- reading names ----------------------------------------------------------------------------------------------------
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
) -> Dataset:
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
    return Dataset(
        root=root,
        layout=layout,
        modalities=tuple(sorted(vocabulary)),
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
        if twins:
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
