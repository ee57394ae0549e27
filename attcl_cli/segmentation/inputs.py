"""Which files a segmenter is shown: the inputs that are compared, their cases by split, and everything wrong with them.

Reads names, headers and label maps; images are left to `segment_slices`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset, check_case
from attcl_cli.data.labels import CONVENTIONS, KNOWN, Convention, convention_of
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.splits import SPLITS, Splits
from attcl_cli.errors import AttclError, UsageError, fold, raise_all, some
from attcl_cli.files import read_json

COMPLETED, INCOMPLETE, REAL = "completed", "incomplete", "real"
USUAL = "flair"  # the paper's "w/o DA"

EXPLAINED: Mapping[str, str] = {
    INCOMPLETE: "what each case has; a missing channel is 0 after normalisation, background and all",
    COMPLETED: "what each case has, and the synthesised volumes",
    REAL: "the hidden truths restored: the ceiling",
}
_DEFAULT_OF_LAYOUT = {"brats2023": "2023"}  # where no case shows enhancing tumour


@dataclass(frozen=True)
class Sample:
    """One case as an input shows it.

    Attributes:
        case: its id.
        patient: whose it is.
        channels: the files of each channel; none where it is missing.
        segmentation: the label map's files.
    """

    case: str
    patient: str
    channels: tuple[tuple[Path, ...], ...]
    segmentation: tuple[Path, ...]


@dataclass(frozen=True)
class Input:
    """What one segmenter is trained and tested on.

    Attributes:
        name: `completed`, `incomplete`, `real`, or a modality.
        channels: the modalities, in order.
        splits: `train`, `val`, `test` -> samples.
    """

    name: str
    channels: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]

    @property
    def explained(self) -> str:
        """What the segmenter sees."""
        return EXPLAINED.get(self.name, f"{self.name} alone, which all cases have")


@dataclass(frozen=True)
class Plan:
    """What is trained and evaluated.

    Attributes:
        inputs: name -> input.
        convention: how the dataset's label maps write the classes.
        unlabelled: ids of the cases that are left out, since they have no label map.
    """

    inputs: Mapping[str, Input]
    convention: Convention
    unlabelled: tuple[str, ...] = ()


def single_input(data: Dataset) -> str | None:
    """The modality that stands for "without completion": FLAIR, else the first by name that all cases have, or None."""
    everywhere = [name for name, count in data.counts().items() if count == len(data.cases)]
    return USUAL if USUAL in everywhere else next(iter(everywhere), None)


def lacks_truth(data: Dataset, truth: Dataset) -> bool:
    """Whether volumes are missing in the truth, too, so that nothing real can take their place."""
    whole = {case.id: case for case in truth.cases}
    return any(
        name not in getattr(whole.get(case.id), "files", {})
        for case in data.cases
        for name in data.missing(case)
    )


def plan(
    data: Dataset,
    splits: Splits,
    names: Sequence[str],
    *,
    completed: Path,
    truth: Dataset | None,
    canvas: int,
    parts: Sequence[str] = SPLITS,
    allow_missing: bool = False,
) -> Plan:
    """Finds the files of every input, and checks them all: headers, grids, labels, sizes.

    Args:
        data: the incomplete dataset.
        splits: which case is in which split.
        names: the inputs: `completed`, `incomplete`, `real`, or a modality.
        completed: the folder of the synthesised volumes.
        truth: the complete dataset; needed by `real`.
        canvas: no slice may be larger, in voxels.
        parts: only these splits.
        allow_missing: leave cases without a label map out instead of refusing.

    Raises:
        UsageError: an input that is unknown.
        AttclError: everything that is wrong, together.
    """
    for name in names:
        if name not in (*EXPLAINED, *data.modalities):
            known = ", ".join((*EXPLAINED, *data.modalities))
            raise UsageError(
                f"--input: {name!r}, expected one of {known}", "--input completed is the default"
            )
    cases = cases_of(data, splits, parts)
    whole = {case.id: case for case in truth.cases} if truth is not None else {}
    problems: list[AttclError] = []
    extra: dict[str, list[tuple[Path, ...]]] = {}  # files outside of the dataset, by case
    inputs: dict[str, Input] = {}
    for name in names:
        channels = (name,) if name in data.modalities else data.modalities
        samples: dict[str, tuple[Sample, ...]] = {}
        for part, own in cases.items():
            found = []
            for case in own:
                files = []
                for modality in channels:
                    paths = _channel(data, case, modality, name, completed, truth, whole)
                    if isinstance(paths, AttclError):
                        problems.append(paths)
                        continue
                    files.append(paths)
                    if modality not in case.files and paths:
                        extra.setdefault(case.id, []).append(paths)
                labels = data.paths(case, SEGMENTATION) if case.segmentation else ()
                found.append(Sample(case.id, case.patient, tuple(files), labels))
            samples[part] = tuple(found)
        inputs[name] = Input(name, channels, samples)
    everything = [case for own in cases.values() for case in own]
    told, convention, unlabelled = _check(data, everything, extra, canvas, allow_missing)
    raise_all([*fold(problems, _same_lack), *told])
    kept = {
        name: Input(
            name,
            item.channels,
            {
                part: tuple(sample for sample in own if sample.case not in unlabelled)
                for part, own in item.splits.items()
            },
        )
        for name, item in inputs.items()
    }
    first = next(iter(kept.values()))
    for part in {"train", "test"} & set(parts):
        if not first.splits[part]:
            raise AttclError(
                f"{data.root}: no case with a label map in the {part} split, expected at least one",
                "run attcl prepare-splits with other --fractions or --sizes",
            )
    return Plan(kept, convention, tuple(unlabelled))


def plan_truths(
    data: Dataset, splits: Splits, *, split: str = "test", allow_missing: bool = False
) -> Plan:
    """The label maps of a split alone, for predictions that come from elsewhere; errors as `plan`."""
    cases = cases_of(data, splits, (split,))
    told, convention, unlabelled = _check(data, cases[split], {}, None, allow_missing)
    raise_all(told)
    samples = tuple(
        Sample(
            case.id,
            case.patient,
            (data.paths(case, next(iter(case.files))),),
            data.paths(case, SEGMENTATION),
        )
        for case in cases[split]
        if case.id not in unlabelled
    )
    if not samples:
        raise AttclError(
            f"{data.root}: no case with a label map in the {split} split, expected at least one",
            "run attcl prepare-splits with other --fractions or --sizes",
        )
    return Plan({"": Input("", (), {split: samples})}, convention, tuple(unlabelled))


def cases_of(data: Dataset, splits: Splits, parts: Sequence[str]) -> dict[str, list[Case]]:
    """The cases of some splits, in their order.

    Raises:
        AttclError: a case is not there, or a patient is in two splits.
    """
    known = {case.id: case for case in data.cases}
    problems: list[AttclError] = []
    found: dict[str, list[Case]] = {part: [] for part in parts}
    owner: dict[str, str] = {}
    for part in SPLITS:
        for case_id in splits.names(part) if part in splits.splits else ():
            case = known.get(case_id)
            if case is None:
                problems.append(
                    AttclError(
                        f"{data.root}: no case {case_id}, expected it as splits.json lists it",
                        "run attcl prepare-splits again",
                    )
                )
                continue
            if owner.setdefault(case.patient, part) != part:
                problems.append(
                    AttclError(
                        f"{data.root / 'splits.json'}: patient {case.patient} is in {owner[case.patient]} "
                        f"and in {part}, expected one split a patient",
                        "run attcl prepare-splits again",
                    )
                )
            if part in found:
                found[part].append(case)
    raise_all(problems)
    return found


@dataclass(frozen=True)
class Completion:
    """What made the synthesised volumes.

    Attributes:
        weights: name and SHA-256, of the records in the folder.
        known: whether they say which cases the weights were trained on.
        seen: ids of test cases whose patient was among these.
    """

    weights: tuple[Mapping[str, str], ...]
    known: bool
    seen: tuple[str, ...]


def completion(completed: Path, data: Dataset, splits: Splits) -> Completion:
    """Reads what `attcl complete` noted beside its volumes, and compares it with the test split."""
    weights: list[Mapping[str, str]] = []
    trained_on: set[str] = set()
    known = True
    for path in sorted(completed.glob("run*.json")):
        record: Any = read_json(path)
        if not isinstance(record, dict) or record.get("command") != "complete":
            continue
        if record.get("weights") and record["weights"] not in weights:
            weights.append(record["weights"])
        cases = record.get("trained_on")
        known = known and isinstance(cases, list)
        trained_on |= set(cases or ())
    patients = {_patient(data, case) for case in trained_on}
    seen = [
        case
        for case in splits.names("test")
        if case in trained_on or _patient(data, case) in patients
    ]
    return Completion(tuple(weights), known and bool(weights), tuple(seen))


def _patient(data: Dataset, case_id: str) -> str:
    match = re.match(data.layout.patient, case_id)
    return match[1] if match else case_id


def _channel(
    data: Dataset,
    case: Case,
    modality: str,
    name: str,
    completed: Path,
    truth: Dataset | None,
    whole: Mapping[str, Case],
) -> tuple[Path, ...] | AttclError:
    """The files of one channel of one case; none where the input leaves it empty."""
    if modality in case.files:
        return data.paths(case, modality)
    if name == INCOMPLETE:
        return ()
    if name == COMPLETED:
        files = tuple(completed / file for file in data.place(case, modality))
        there = all(file.is_file() for file in files)
        lacking = f"{files[0]}: not there, expected every missing volume completed"
        return files if there else AttclError(lacking, "finish attcl complete")
    real = whole.get(case.id)
    if name == REAL and truth is not None and real is not None and modality in real.files:
        return truth.paths(real, modality)
    if name == REAL:
        lacking = f"{truth.root if truth else '--truth'}: no {modality} of {case.id}"
        hint = "name the complete dataset with --truth, or choose another --input"
        return AttclError(f"{lacking}, expected the truths that were hidden", hint)
    lacking = f"{data.root}: no {modality} of {case.id}, expected a modality that all cases have"
    return AttclError(lacking, "choose another --input")


def _same_lack(problem: AttclError) -> str:
    """What was expected: whatever lacks it, the reason is one."""
    return problem.message.rpartition(", expected ")[2]


# --- Checks -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checked:
    problems: list[AttclError]
    values: frozenset[int]  # of the label map
    labelled: bool


def _check(
    data: Dataset,
    cases: Sequence[Case],
    extra: Mapping[str, Sequence[tuple[Path, ...]]],
    canvas: int | None,
    allow_missing: bool,  # noqa: FBT001 - handed through
) -> tuple[list[AttclError], Convention, list[str]]:
    """All problems, the labels' convention, and the cases without a label map."""
    problems: list[AttclError] = []
    shown: dict[int, Path] = {}  # label value -> a file that holds it
    unlabelled = []
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) * 2)) as pool:
        checked = pool.map(
            lambda case: _check_one(data, case, extra.get(case.id, ()), canvas), cases
        )
        for case, found in zip(cases, checked, strict=True):
            problems += found.problems
            if not found.labelled:
                unlabelled.append(case.id)
            for value in found.values:
                shown.setdefault(value, data.paths(case, SEGMENTATION)[0])
    if unlabelled and not allow_missing:
        problems.append(
            AttclError(
                f"{data.root}: {len(unlabelled)} cases have no segmentation file, expected one each "
                f"(the first: {unlabelled[0]})",
                "add them, or leave these cases out with --allow-missing",
            )
        )
    default = _DEFAULT_OF_LAYOUT.get(data.layout.name, "2021")
    convention = CONVENTIONS[default]
    try:
        convention = convention_of(shown, default=default)
    except AttclError as error:
        clash = [
            value for value in shown if sum(value in it.values for it in CONVENTIONS.values()) == 1
        ]
        where = " and ".join(f"{value} in {shown[value].name}" for value in sorted(clash))
        problems.append(AttclError(f"{data.root}: {error.message} ({where})", error.hint))
    return problems, convention, unlabelled


def _check_one(
    data: Dataset, case: Case, extra: Iterable[tuple[Path, ...]], canvas: int | None
) -> _Checked:
    problems = check_case(data, case, values=True)
    if problems:  # what follows would only repeat them
        return _Checked(problems, frozenset(), labelled=True)
    first = data.paths(case, next(iter(case.files)))
    grid = volumes.read_grid(first)
    _, height, width = grid.axial_shape
    if canvas is not None and max(height, width) > canvas:
        problems.append(
            AttclError(
                f"{first[0]}: axial slices of {height}x{width} voxels, expected at most {canvas}x{canvas}",
                f"--set canvas={-(-max(height, width) // canvas) * canvas}",
            )
        )
    for paths in dict.fromkeys(extra):
        problems += _unlike(paths, grid, first[0])
    if not case.segmentation:
        return _Checked(problems, frozenset(), labelled=False)
    labels = data.paths(case, SEGMENTATION)
    told = _unlike(labels, grid, first[0])
    values: frozenset[int] = frozenset()
    if not told:
        try:
            values = frozenset(int(value) for value in np.unique(volumes.load_labels(labels)))
        except AttclError as error:
            told = [error]
    strange = sorted(values - set(KNOWN))
    if strange:
        known = " or ".join(str(item) for item in CONVENTIONS.values())
        told = [
            AttclError(
                f"{labels[0]}: label {some(strange)}, expected those of {known}",
                "give the label maps the values of one release",
            )
        ]
    return _Checked([*problems, *told], values - set(strange), labelled=True)


def _unlike(paths: tuple[Path, ...], grid: volumes.Grid, first: Path) -> list[AttclError]:
    """What keeps a file from lying beside the case's others; its values are looked at where they may be none."""
    try:
        own = volumes.read_grid(paths)
        difference = own.differs_from(grid)
        if not difference and volumes.suspicious(paths, own):
            volumes.load(paths)
    except AttclError as error:
        return [error]
    if not difference:
        return []
    return [
        AttclError(
            f"{paths[0]}: {difference} of {first}, expected one grid for all files of a case",
            "resample it onto the grid of the case's images",
        )
    ]
