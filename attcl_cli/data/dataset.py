"""A dataset: its cases, what is missing, where a new file belongs, and what is wrong with its files.

How names are read is left to `naming`, what files hold to `volumes`, which cases are used to the stages.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from attcl_cli.data import bids, volumes
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.layouts import (
    DEFAULT_MODALITIES,
    LAYOUTS,
    SEGMENTATION,
    SUBMISSIONS,
    Layout,
    ending_of,
    is_nifti,
    modality_of,
)
from attcl_cli.data.naming import Case as Case  # noqa: PLC0414 - part of what a dataset is
from attcl_cli.data.naming import read_folder
from attcl_cli.data.patients import patient_by_name
from attcl_cli.data.places import led_to
from attcl_cli.data.record_cache import FOLDER_VARIABLE, Records, cache_folder
from attcl_cli.data.records import MOST_BYTES, SplitsRecord, require_side_car, splits_record
from attcl_cli.data.suggested import complete_folder, complete_images, modalities_told_by
from attcl_cli.data.vocabulary import VOCABULARY_FILE, Vocabulary, read_vocabulary
from attcl_cli.errors import AttclError, UsageError, nearest, quoted, raise_all
from attcl_cli.files import read_json, refuse_inside

_DEFAULT = Path("data")  # of every command that names none

_ENDINGS = frozenset((".nii", ".nii.gz"))

SPLITS_FILE = "splits.json"
"""What prepare-splits writes into a data tree; `splits` reads it."""


@dataclass(frozen=True)
class Dataset:
    """What a folder holds.

    Attributes:
        root: the folder.
        layout: the convention its names follow.
        modalities: every modality that a case should have, sorted: some case has it, `splits.json` says that it is
            hidden, or the user named it.
        cases: sorted by id.
        wrong: case id, or name of an empty folder -> what is wrong with its names; `check_case` adds
            what is wrong with files.
        ignored: relative paths of files that are no image of the layout.
        spellings: modality -> the token that most files of this dataset use.
        tokens: modality -> every token that a file of this dataset uses.
        extension: the file ending that most files use.
        vocabulary: every modality whose names are known, sorted.
        vocabulary_file: where the modality names come from, if not the default ones.
        notes: what was left out of the folder, and why, or is surprising; no problems.
        naming_files: files that the names are read with, to be kept beside the images.
        recognised: public datasets that the cases' ids come from.
        desc: the value of the entity `desc-` in names of new volumes (BIDS alone); "": as the dataset's others.
        background: what is background in its volumes, so that all readers agree (`volumes.load`).
        completed: the folder of synthetic volumes, which keep the names that they have there; None: there is none.
        scattered: its files were named one by one, so that the root is no folder of its own.
    """

    root: Path
    layout: Layout
    modalities: tuple[str, ...]
    cases: tuple[Case, ...]
    wrong: Mapping[str, tuple[AttclError, ...]]
    ignored: tuple[PurePosixPath, ...]
    spellings: Mapping[str, str]
    extension: str
    vocabulary: tuple[str, ...] = ()
    vocabulary_file: Path | None = None
    notes: tuple[str, ...] = ()
    naming_files: tuple[PurePosixPath, ...] = ()
    recognised: tuple[str, ...] = ()
    desc: str = ""
    background: BackgroundOption = "auto"
    scattered: bool = False
    tokens: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    completed: Path | None = None

    @property
    def problems(self) -> tuple[AttclError, ...]:
        """Return everything that is wrong with names."""
        return tuple(problem for problems in self.wrong.values() for problem in problems)

    @property
    def absent(self) -> tuple[str, ...]:
        """Return the modalities whose names are known, and that no case should have."""
        return tuple(name for name in self.vocabulary if name not in self.modalities)

    @property
    def alone(self) -> bool:
        """Return whether there is one case alone, which cannot show what cases should have."""
        return len(self.cases) == 1

    def including(self, names: Iterable[str]) -> Dataset:
        """Return the dataset with further modalities that every case should have."""
        return replace(self, modalities=tuple(sorted({*self.modalities, *names})))

    def paths(self, case: Case, modality: str) -> tuple[Path, ...]:
        """Return the files of a modality that the case has, or of its label map (`SEGMENTATION`)."""
        files = case.segmentation if modality == SEGMENTATION else case.files[modality]
        return tuple(self.root / file for file in files)

    def records(self, case: Case) -> Records:
        """Return what the cache knows of the case's files."""
        file = next(file for files in (*case.files.values(), case.segmentation) for file in files)
        return Records(self.root, case.id, file)

    def every_file(self) -> Iterator[PurePosixPath]:
        """Yield every file that is read, relative to the root."""
        for case in self.cases:
            for files in case.files.values():
                yield from files
            yield from case.segmentation
        yield from self.naming_files

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
        """Return where the files of a modality that the case lacks belong, relative to the root.

        They are named as most files of the dataset are. A synthetic volume in `completed` keeps its name if the dataset
        was compressed since, or got further cases that spell the modality otherwise.
        """
        token, extension = self._token(case, modality), self.extension_of(case)
        usual = self._named(case, token, extension)
        folder = self.completed
        if folder is None or _any_lies_in(folder, usual):
            return usual
        for other in self._other_names(modality, token, extension):
            files = self._named(case, *other)
            side_car = folder / self.layout.place_side_car(files[0], case.id)
            if _any_lies_in(folder, files) and _is_synthetic(side_car, modality):
                return files
        return usual

    def place_side_car(self, case: Case, modality: str) -> PurePosixPath:
        """Return where the side-car JSON of a synthetic volume belongs; the slices of a volume share one."""
        return self.layout.place_side_car(self.place(case, modality)[0], case.id)

    def synthetic(self, case: Case, names: Iterable[str]) -> list[str]:
        """Return which of a case's modalities have a side-car that says they are synthetic; BIDS has others, too."""
        return [
            name
            for name in names
            if read_side_car(self.root / self._side_car_of(case, name)).get("synthetic") is True
        ]

    def extension_of(self, case: Case) -> str:
        """Return the ending of most files of the case (`.nii` beside `.nii.gz` happens)."""
        endings = Counter(ending_of(files[0]) for files in case.files.values())
        return endings.most_common(1)[0][0].lower() if endings else self.extension

    def _named(self, case: Case, token: str, extension: str) -> tuple[PurePosixPath, ...]:
        model = next(iter(case.files.values()))  # slices are numbered as those of another modality
        return tuple(
            self.layout.place(
                case=case.id,
                token=token,
                prefix=case.prefix,
                slice_=self.layout.slice_number(file),
                extension=extension,
            )
            for file in (model if self.layout.sliced else model[:1])
        )

    def _other_names(self, modality: str, token: str, extension: str) -> list[tuple[str, str]]:
        """Return the other tokens and endings that a volume may be named with; in BIDS only the ending differs."""
        tokens = [token]
        if self.layout.name != bids.LAYOUT:
            first = self.layout.tokens.get(modality, modality)  # when no case had the modality
            tokens = [*dict.fromkeys((token, *self.tokens.get(modality, ()), first))]
        endings = [extension] if self.layout.sliced else [extension, *_ENDINGS - {extension}]
        return [(name, ending) for name in tokens for ending in endings][1:]

    def _token(self, case: Case, modality: str) -> str:
        """Return how a modality that the case lacks is spelled."""
        usual = self.spellings.get(modality, modality)
        if self.layout.name != bids.LAYOUT:
            return usual
        return bids.new_token(
            case.id, case.files, modality, known=self._habits, usual=usual, desc=self.desc
        )

    def patient_of(self, case: str) -> str:
        """Return the patient of a case, by its id; also of one that is elsewhere, such as a training case."""
        return self._patients.get(case) or patient_by_name(case, self.layout)

    @cached_property
    def _patients(self) -> dict[str, str]:
        return {case.id: case.patient for case in self.cases}

    @cached_property
    def _habits(self) -> bids.Habits:
        return bids.habits((case.id, case.files) for case in self.cases)

    def _side_car_of(self, case: Case, modality: str) -> PurePosixPath:
        """Return where the side-car of a volume that the case has would lie."""
        return self.layout.place_side_car(case.files[modality][0], case.id)


def read_side_car(path: Path) -> dict[str, Any]:
    """Return a volume's side-car; {} if it is missing or no JSON.

    Raises:
        AttclError: attcl wrote it, and a key has a value of another kind.
    """
    try:
        document = read_json(path, default={}, most=MOST_BYTES)
    except AttclError:
        return {}
    if not isinstance(document, dict):
        return {}
    require_side_car(document, path)
    return document


def makers_in(side_car: Mapping[str, Any]) -> frozenset[str]:
    """Return the SHA-256 of all weights that a side-car says made its volume."""
    makers = [side_car.get("weights"), *_documents(side_car.get("averaged") or [])]
    return frozenset(str(it["sha256"]) for it in _documents(makers) if "sha256" in it)


def _any_lies_in(folder: Path, files: Iterable[PurePosixPath]) -> bool:
    return any((folder / file).exists() for file in files)


def _is_synthetic(side_car: Path, modality: str) -> bool:
    """Return whether a side-car is that of a synthetic volume of a modality."""
    said = read_side_car(side_car)
    return said.get("synthetic") is True and said.get("target", modality) == modality


def sources_in(side_car: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a side-car says that its volume was made from, a modality and its files each.

    What another program's side-car has under these keys is left out.
    """
    return _documents(side_car.get("sources") or [side_car.get("source") or {}])


def guides_in(side_car: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a side-car says that its volume was sharpened by, beside its sources; as `sources_in`."""
    return _documents(side_car.get("sharpened_by") or [])


def weights_in(side_car: Mapping[str, Any]) -> dict[str, str]:
    """Return SHA-256 -> name of the weights that a side-car says made its volume; {} if it says nothing of the kind."""
    found = side_car.get("weights")
    if not isinstance(found, Mapping) or not {"sha256", "name"} <= found.keys():
        return {}
    return {str(found["sha256"]): str(found["name"])}


def _documents(found: Any) -> list[dict[str, Any]]:
    items = found if isinstance(found, list) else [found]
    return [item for item in items if isinstance(item, dict)]


def open_dataset(
    root: Path,
    *,
    layout: str = "auto",
    modalities: Path | None = None,
    bids_filter: Sequence[str] = (),
) -> Dataset:
    """Find the cases below a folder by looking at names alone.

    Args:
        root: the dataset's folder; links to folders are followed.
        layout: a key of `LAYOUTS`, or `auto`: the one that most files fit.
        modalities: a TOML file with other modality names and, if needed, another naming (`read_vocabulary`); None: the
            dataset's own `modalities.toml`, otherwise those of the four of BraTS that some case has.
        bids_filter: of several files of a modality in BIDS, which is meant: "run=1", "t1:acq=mprage".

    Raises:
        AttclError: there is no such folder, or nothing in it fits a layout.
        UsageError: unknown `layout`, the TOML file is wrong, or a filter is.
    """
    if not root.is_dir():
        raise AttclError(
            f"{root}: {'a file' if root.exists() else 'no such folder'}, "
            "expected the folder of a dataset",
            _of_image(root) if root.is_file() else "check the path",
            code="dataset-not-found",
        )
    if modalities is None and (root / VOCABULARY_FILE).is_file():
        modalities = root / VOCABULARY_FILE
    said = read_vocabulary(modalities) if modalities else Vocabulary()
    own_layout = said.layout
    if layout not in {"auto", *LAYOUTS, *([own_layout.name] if own_layout else [])}:
        raise UsageError(
            f"--layout: {layout!r}, expected one of auto, {', '.join(LAYOUTS)}",
            f"{nearest(layout, ['auto', *LAYOUTS, *SUBMISSIONS])} auto finds it by the names of the files",
            code="unknown-layout",
        )
    named = [LAYOUTS[layout]] if layout in LAYOUTS else list(LAYOUTS.values())
    candidates = [own_layout] if own_layout else named
    reading = read_folder(root, candidates, said, bids_filter=bids_filter)
    splits = _splits_of(root)
    expected = {name for case in reading.cases for name in case.files}
    expected |= splits.hidden if splits else set()
    holds = {case.id: case.files.keys() for case in reading.cases}
    unlike = splits.differences(holds) if splits else []
    return Dataset(
        root=root,
        layout=reading.layout,
        modalities=tuple(sorted(expected.union(reading.expected))),
        cases=reading.cases,
        wrong=reading.wrong,
        ignored=reading.ignored,
        spellings=reading.spellings,
        tokens=reading.tokens,
        extension=reading.extension,
        vocabulary=tuple(sorted(reading.vocabulary)),
        vocabulary_file=modalities,
        notes=(*reading.notes, *(f"{root / SPLITS_FILE} {words}" for words in unlike)),
        naming_files=reading.naming_files,
        recognised=reading.recognised,
    )


def _of_image(file: Path) -> str:
    """Return what to do with one image: complete it with the patient's others, if they lie beside it, or alone."""
    alone = f"complete it alone: {complete_images([file])}"
    try:
        beside = open_dataset(file.parent) if is_nifti(file) else None
    except AttclError:
        beside = None
    cases = beside.cases if beside else ()
    case = next((it for it in cases if (PurePosixPath(file.name),) in it.files.values()), None)
    if case is None or len(case.files) == 1:
        return f"name its folder, or {alone}"
    if len(cases) > 1:
        images = {file.with_name(files[0].name): name for name, files in case.files.items()}
        whole = complete_images(list(images), named=images)
    else:
        whole = complete_folder(file.parent)
    names = ", ".join(case.files)
    return f"beside it lie images of the same patient; complete from all ({names}): {whole}; or {alone}"


def _splits_of(root: Path) -> SplitsRecord | None:
    """Return what `splits.json` of a folder says; None if it is missing or invalid."""
    path = root / SPLITS_FILE
    try:
        document = read_json(path, default=None)
        return splits_record(document, path) if document is not None else None
    except AttclError:  # `splits.read_splits` reports it
        return None


def dataset_of_images(images: Sequence[tuple[str, Path]], modalities: Path | None) -> Dataset:
    """Return one patient as a dataset whose files are named one by one; new volumes are called as their modalities.

    Args:
        images: modality, in any spelling, and its NIfTI file.
        modalities: a TOML file with other modality names (`read_vocabulary`); None: those of BraTS.

    Raises:
        UsageError: all that is wrong together: an unknown modality, one that is named twice, a file that is missing or
            no NIfTI; or the TOML file is wrong.
    """
    said = read_vocabulary(modalities) if modalities else Vocabulary()
    known = said.modalities or DEFAULT_MODALITIES
    root = Path(os.path.commonpath([path.parent.absolute() for _, path in images]))
    files: dict[str, tuple[PurePosixPath, ...]] = {}
    named: dict[str, Path] = {}
    problems: list[AttclError] = []
    for spelt, path in images:
        try:
            name = _require_image(spelt, path, known, files)
        except UsageError as error:
            problems.append(error)
        else:
            named[name] = path
            files[name] = (PurePosixPath(path.absolute().relative_to(root)),)
    raise_all(problems)
    case = Case(id=root.name or "patient", patient=root.name or "patient", files=files)
    return Dataset(
        root=root,
        layout=LAYOUTS["patient"],
        modalities=tuple(sorted(files)),
        cases=(case,),
        wrong={},
        ignored=(),
        spellings={},
        extension=".nii.gz",
        vocabulary=tuple(sorted(known)),
        vocabulary_file=modalities,
        scattered=True,
        notes=tuple(
            f"--image: {path} is taken as {name}, but its name says {others}: check that it is the right file"
            for name, path in named.items()
            if (others := ", ".join(_other_modalities(name, path, known)))
        ),
    )


def _other_modalities(
    name: str, path: Path, known: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the modalities that the name of an image tells, if its own is none of them.

    `T1_pre_contrast` and `T1_without_gad` name a contrast agent that was not there.
    """
    told = modalities_told_by(path, known)
    before = name == "t1" and re.search(r"(?<![a-z])(pre|non?|without)(?![a-z])", path.name.lower())
    return () if name in told or (before and told == ("t1ce",)) else told


def _require_image(
    spelt: str, path: Path, known: Mapping[str, tuple[str, ...]], taken: Iterable[str]
) -> str:
    """Return our name for the modality of an image that was named on its own, if there is such a file."""
    name = modality_of(spelt, known)
    if name is None or name == SEGMENTATION:
        raise UsageError(
            f"--image: modality {spelt!r}: unknown here, expected one of {', '.join(known)}",
            "a TOML file given with --modalities names others",
            code="unknown-modality",
        )
    if name in taken:
        raise UsageError(
            f"--image: {name} given twice, expected one file for each modality",
            "leave one of them out",
            code="image-given-twice",
        )
    if not path.is_file():
        raise UsageError(
            f"--image: {path}: {'a folder' if path.is_dir() else 'no such file'}, expected a NIfTI file of {name}",
            "check the path; --ori takes the folder of a patient or of a dataset",
            code="image-not-found",
        )
    if not is_nifti(path):
        raise UsageError(
            f"--image: {path}, expected a name that ends with .nii or .nii.gz",
            "convert it; dcm2niix does so with DICOM",
            code="image-not-nifti",
        )
    return name


@dataclass(frozen=True)
class Source:
    """A dataset as a user names it: by its folder, or one patient by its images (`dataset_of_images`)."""

    folder: Path
    layout: str = "auto"
    modalities: Path | None = None
    bids_filter: tuple[str, ...] = ()
    background: BackgroundOption = "auto"
    images: tuple[tuple[str, Path], ...] = ()

    def open(self) -> Dataset:
        """Find the cases.

        Raises:
            AttclError: there is no such folder, or nothing in it fits a layout.
            UsageError: see `open_dataset` and `dataset_of_images`; or ATTCL_CACHE lies among the originals.
        """
        if self.images:
            dataset = dataset_of_images(self.images, self.modalities)
            return replace(dataset, background=self.background)
        if not self.folder.exists():
            hint, instead = _where_else(self.folder)
            raise AttclError(
                f"{self.folder}: no such folder, expected a dataset, or the folder of a patient",
                hint,
                code="dataset-not-found",
                instead=instead,
            )
        dataset = open_dataset(
            self.folder,
            layout=self.layout,
            modalities=self.modalities,
            bids_filter=self.bids_filter,
        )
        _refuse_cache_inside(dataset)
        return replace(dataset, background=self.background)


def _where_else(folder: Path) -> tuple[str, tuple[str, str] | None]:
    """Return what to do about a folder that is missing, and what to give instead (`AttclError`), if that is known."""
    if folder == _DEFAULT:
        return (
            "data/, the default, is what attcl prepare-splits DATASET writes; name yours",
            ("--ori", "MINE/"),
        )
    try:
        neighbours = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        neighbours = []
    names = difflib.get_close_matches(folder.name, neighbours, n=1)
    if not names:
        return "check the path", None
    close = folder.with_name(names[0])
    return f"did you mean {quoted(close)}?", (str(folder), str(close))


def _refuse_cache_inside(dataset: Dataset) -> None:
    """Raise a `UsageError` if the user put the cache among the originals, where records would be written."""
    if os.environ.get(FOLDER_VARIABLE):
        originals = [dataset.root, *led_to(dataset.root, dataset.every_file(), [dataset.root])]
        refuse_inside(cache_folder(), originals, flag=FOLDER_VARIABLE)


def check_case(dataset: Dataset, case: Case) -> list[AttclError]:
    """Return what is wrong with the names and headers of a case's images: unreadable, not 3-D, not on one grid.

    What the images hold is left to `preconditions`. The label map is not looked at.
    """
    if case.id in dataset.wrong:  # which file is meant is not clear: more would only confuse
        return list(dataset.wrong[case.id])
    return read_grids(dataset.paths(case, modality) for modality in case.files)[1]


def read_grids(
    images: Iterable[Sequence[Path]],
) -> tuple[dict[Path, volumes.Grid], list[AttclError]]:
    """Return the grids of a case's images that can be read, by first file, and what is wrong with the headers."""
    grids: dict[Path, volumes.Grid] = {}
    problems: list[AttclError] = []
    for paths in images:
        try:
            grids[paths[0]] = volumes.read_grid(paths)
        except AttclError as error:
            problems.append(error)
    return grids, problems + volumes.other_grids(grids)
