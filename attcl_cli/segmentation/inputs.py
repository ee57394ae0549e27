"""The files that a segmenter sees: the inputs that are compared, their cases per split, and what is wrong with them.

Reads names, headers and label maps; images are left to `slices`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attcl_cli.data import derivative, label_maps, volumes
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Case, Dataset, check_case, read_side_car
from attcl_cli.data.labels import CONVENTIONS, KNOWN, Convention, convention_of
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.preconditions import Findings, examine
from attcl_cli.data.slices import fitting_canvas
from attcl_cli.data.splits import SPLITS, Splits
from attcl_cli.data.synthetic import no_truths, notes_of_slices
from attcl_cli.errors import AttclError, UsageError, counted, fold, raise_all, some
from attcl_cli.progress import SILENT, Progress

COMPLETED, INCOMPLETE, REAL = "completed", "incomplete", "real"
USUAL = "flair"  # the paper's "w/o DA"

EXPLAINED: Mapping[str, str] = {
    INCOMPLETE: "what each case has; a missing channel is 0 after normalisation, background included",
    COMPLETED: "what each case has, and the synthesised volumes",
    REAL: "the held-out ground truth restored: the upper bound",
}


@dataclass(frozen=True)
class Size:
    """Slices are padded to `canvas` voxels and averaged down to `image` pixels."""

    image: int
    canvas: int

    @property
    def factor(self) -> int:
        """Return the voxels per pixel, along each side."""
        return self.canvas // self.image


@dataclass(frozen=True)
class Sample:
    """One case as an input shows it.

    Attributes:
        case: its id.
        patient: the patient it belongs to.
        channels: the files of each channel; empty if it is missing.
        segmentation: the label map's files.
        background: what is background in the channels (`Dataset.background`).
    """

    case: str
    patient: str
    channels: tuple[tuple[Path, ...], ...]
    segmentation: tuple[Path, ...]
    background: BackgroundOption = "auto"


@dataclass(frozen=True)
class Input:
    """The cases and channels that one segmenter is trained and tested on.

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
        """Return what the segmenter sees, in words."""
        return EXPLAINED.get(self.name, f"{self.name} alone, which all cases have")

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of cases per split."""
        return {part: len(samples) for part, samples in self.splits.items()}


@dataclass(frozen=True)
class StudyPlan:
    """The inputs that are trained on and evaluated.

    Attributes:
        inputs: name -> input; all have the same cases.
        convention: how the dataset's label maps write the classes.
        unlabelled: ids of the cases that are left out, since they have no label map.
        notes: what is fixed on reading the images (`preconditions.examine`), and which are completed in part.
    """

    inputs: Mapping[str, Input]
    convention: Convention
    unlabelled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def cases(self, part: str) -> list[str]:
        """Return the ids of a split's cases."""
        first = next(iter(self.inputs.values()))
        return [sample.case for sample in first.splits.get(part, ())]


def single_input(data: Dataset) -> str | None:
    """Return the modality that stands for "without completion".

    That is FLAIR, otherwise the first by name that all cases have, or None.
    """
    everywhere = [name for name, count in data.counts().items() if count == len(data.cases)]
    return USUAL if USUAL in everywhere else next(iter(everywhere), None)


def lacks_truth(data: Dataset, truth: Dataset) -> bool:
    """Return whether volumes are missing in the ground truth as well, so that nothing real can take their place."""
    whole = {case.id: case for case in truth.cases}
    return any(
        name not in getattr(whole.get(case.id), "files", {})
        for case in data.cases
        for name in data.missing(case)
    )


def require_inputs(data: Dataset, names: Sequence[str]) -> None:
    """Check the names of inputs.

    Raises:
        UsageError: an input is unknown.
    """
    for name in names:
        if name not in (*EXPLAINED, *data.modalities):
            known = ", ".join((*EXPLAINED, *data.modalities))
            raise UsageError(
                f"--input: {name!r}, expected one of {known}",
                "--input completed is the default",
                code="unknown-input",
            )


def plan_inputs(
    data: Dataset,
    splits: Splits,
    names: Sequence[str],
    *,
    completed: Path,
    truth: Dataset | None,
    size: Size | None,
    parts: Sequence[str] = SPLITS,
    allow_missing: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> StudyPlan:
    """Find the files of every input, and check them all: headers, grids, labels, sizes.

    Args:
        data: the incomplete dataset.
        splits: which case is in which split.
        names: the inputs: `completed`, `incomplete`, `real`, or a modality.
        completed: the folder of the synthesised volumes.
        truth: the complete dataset; needed by `real`.
        size: no slice may be larger than its canvas; None: any size.
        parts: only these splits.
        allow_missing: leave out cases without a label map instead of refusing.
        force: take volumes that a check of their voxels refuses.
        progress: hears of the checks, if there are many cases.

    Raises:
        UsageError: an input is unknown.
        AttclError: everything that is wrong, together.
    """
    require_inputs(data, names)
    data = derivative.named_in(data, completed)
    cases = find_cases(data, splits, parts)
    whole = {case.id: case for case in truth.cases} if truth is not None else {}
    problems = _wrong_names(data, truth, cases) if truth is not None and REAL in names else []
    extra: dict[str, list[tuple[Path, ...]]] = {}  # files outside of the dataset, by case
    inputs: dict[str, Input] = {}
    for name in names:
        channels = (name,) if name in data.modalities else data.modalities
        samples: dict[str, tuple[Sample, ...]] = {}
        for part, members in cases.items():
            listed = []
            for case in members:
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
                listed.append(Sample(case.id, case.patient, tuple(files), labels, data.background))
            samples[part] = tuple(listed)
        inputs[name] = Input(name, channels, samples)
    everything = [case for members in cases.values() for case in members]
    findings = examine(data, everything, labels=True, force=force, progress=progress)
    checks = _check(data, everything, extra, size, findings, allow_missing=allow_missing)
    raise_all([*fold(problems, _same_lack), *checks.problems])
    unlabelled = set(checks.unlabelled)
    labelled = {
        name: replace(
            item,
            splits={
                part: tuple(sample for sample in members if sample.case not in unlabelled)
                for part, members in item.splits.items()
            },
        )
        for name, item in inputs.items()
    }
    notes = (
        *findings.notes,
        *(_notes_of_completed(data, everything, completed) if COMPLETED in names else ()),
    )
    plan = StudyPlan(labelled, checks.convention, tuple(checks.unlabelled), notes)
    for part in ("train", "test"):
        if part in parts and not plan.cases(part):
            raise _empty_split(data, part)
    return plan


def plan_truths(
    data: Dataset, splits: Splits, *, split: str = "test", allow_missing: bool = False
) -> StudyPlan:
    """Find the label maps of a split alone, for predictions that come from elsewhere; errors as `plan_inputs`."""
    cases = find_cases(data, splits, (split,))[split]
    checks = _check(data, cases, {}, None, None, allow_missing=allow_missing)
    raise_all(checks.problems)
    samples = tuple(
        Sample(
            case.id,
            case.patient,
            (data.paths(case, next(iter(case.files))),),
            data.paths(case, SEGMENTATION),
        )
        for case in cases
        if case.id not in checks.unlabelled
    )
    if not samples:
        raise _empty_split(data, split)
    only = Input("", (), {split: samples})
    return StudyPlan({"": only}, checks.convention, tuple(checks.unlabelled))


def find_cases(data: Dataset, splits: Splits, parts: Sequence[str]) -> dict[str, list[Case]]:
    """Return the cases of some splits, in their order.

    Raises:
        AttclError: a case is missing, or a patient is in two splits.
    """
    known = {case.id: case for case in data.cases}
    problems: list[AttclError] = []
    cases: dict[str, list[Case]] = {part: [] for part in parts}
    owner: dict[str, str] = {}
    for part in SPLITS:
        for case_id in splits.names(part) if part in splits.splits else ():
            case = known.get(case_id)
            if case is None:
                problems.append(
                    AttclError(
                        f"{data.root}: no case {case_id}, expected it as splits.json lists it",
                        "run attcl prepare-splits again",
                        code="case-missing",
                    )
                )
                continue
            if owner.setdefault(case.patient, part) != part:
                problems.append(
                    AttclError(
                        f"{data.root / 'splits.json'}: patient {case.patient} is in {owner[case.patient]} "
                        f"and in {part}, expected one split per patient",
                        "run attcl prepare-splits again",
                        code="patient-in-two-splits",
                    )
                )
            if part in cases:
                cases[part].append(case)
    raise_all(problems)
    return cases


def _wrong_names(
    data: Dataset, truth: Dataset, cases: Mapping[str, Sequence[Case]]
) -> list[AttclError]:
    """Return what is wrong with the names of the truths that take the place of missing volumes."""
    return [
        problem
        for members in cases.values()
        for case in members
        if data.missing(case)
        for problem in truth.wrong.get(case.id, ())
    ]


def _notes_of_completed(data: Dataset, cases: Iterable[Case], completed: Path) -> list[str]:
    return notes_of_slices(
        [
            read_side_car(completed / data.place_side_car(case, name))
            for case in cases
            for name in data.missing(case)
        ]
    )


def _channel(  # noqa: PLR0911 - one per input, and one per lack
    data: Dataset,
    case: Case,
    modality: str,
    name: str,
    completed: Path,
    truth: Dataset | None,
    whole: Mapping[str, Case],
) -> tuple[Path, ...] | AttclError:
    """Return the files of one channel of one case; none if the input leaves it empty."""
    if modality in case.files:
        return data.paths(case, modality)
    if name == INCOMPLETE:
        return ()
    if name == COMPLETED:
        files = tuple(completed / file for file in data.place(case, modality))
        if all(file.is_file() for file in files):
            return files
        return AttclError(
            f"{files[0]}: missing, expected every missing volume completed",
            "finish attcl complete",
            code="completed-volume-missing",
        )
    if name != REAL:
        return AttclError(
            f"{data.root}: no {modality} of {case.id}, expected a modality that all cases have",
            "choose another --input",
            code="modality-missing",
        )
    real = whole.get(case.id)
    if truth is None or real is None or modality not in real.files:
        return AttclError(
            f"{truth.root if truth else '--truth'}: no {modality} of {case.id}, "
            "expected the held-out ground truth",
            "name the complete dataset with --truth, or choose another --input",
            code="truth-missing",
        )
    synthetic = no_truths(truth, real, [modality])
    return synthetic[0] if synthetic else truth.paths(real, modality)


def _same_lack(problem: AttclError) -> str:
    """Return what was expected: whatever lacks it, the reason is one."""
    return problem.message.rpartition(", expected ")[2]


def _empty_split(data: Dataset, part: str) -> AttclError:
    return AttclError(
        f"{data.root}: no case with a label map in the {part} split, expected at least one",
        "run attcl prepare-splits with other --fractions or --sizes",
        code="empty-split",
    )


# --- Checks -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checks:
    """Of all cases: everything wrong, the labels' convention, ids of the cases without a label map."""

    problems: list[AttclError]
    convention: Convention
    unlabelled: list[str]


@dataclass(frozen=True)
class _CaseChecks:
    problems: list[AttclError]
    values: frozenset[int]  # of the label map
    labelled: bool


def _check(
    data: Dataset,
    cases: Sequence[Case],
    extra: Mapping[str, Sequence[tuple[Path, ...]]],
    size: Size | None,
    findings: Findings | None,
    *,
    allow_missing: bool,
) -> _Checks:
    problems: list[AttclError] = []
    file_of: dict[int, Path] = {}  # label value -> a file that holds it
    unlabelled = []
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) * 2)) as pool:
        checked = pool.map(
            lambda case: _check_one(data, case, extra.get(case.id, ()), size, findings), cases
        )
        for case, checks in zip(cases, checked, strict=True):
            problems += checks.problems
            if not checks.labelled:
                unlabelled.append(case.id)
            for value in checks.values:
                file_of.setdefault(value, data.paths(case, SEGMENTATION)[0])
    if unlabelled and not allow_missing:
        problems.append(
            AttclError(
                f"{data.root}: {counted(len(unlabelled), 'case has', 'cases have')} no segmentation file, "
                f"expected one each (the first: {unlabelled[0]})",
                "add them, or leave these cases out with --allow-missing",
                code="label-map-missing",
            )
        )
    usual = data.layout.label_convention
    convention = CONVENTIONS[usual]
    try:
        convention = convention_of(file_of, default=usual)
    except AttclError as error:
        clash = [
            value
            for value in file_of
            if sum(value in item.values for item in CONVENTIONS.values()) == 1
        ]
        examples = " and ".join(f"{value} in {file_of[value].name}" for value in sorted(clash))
        problems.append(
            AttclError(
                f"{data.root}: {error.message} ({examples})", error.hint, code="label-values-mixed"
            )
        )
    return _Checks(problems, convention, unlabelled)


def _check_one(
    data: Dataset,
    case: Case,
    extra: Iterable[tuple[Path, ...]],
    size: Size | None,
    findings: Findings | None,
) -> _CaseChecks:
    """Check the files of a case; without `findings`, which know what its images hold, headers alone."""
    problems = check_case(data, case) if findings is None else list(findings.of(case.id))
    # Values are asked below: of a release, whose values a segmenter needs even by force.
    problems = [it for it in problems if it.code != "label-values-unknown"]
    if problems:  # what follows would only repeat them
        return _CaseChecks(problems, frozenset(), labelled=True)
    first = data.paths(case, next(iter(case.files)))
    grid = volumes.read_grid(first)
    _, height, width = grid.axial_shape
    if size is not None and max(height, width) > size.canvas:
        problems.append(
            AttclError(
                f"{first[0]}: axial slices of {height}x{width} voxels, expected at most {size.canvas}x{size.canvas}",
                f"train with --set canvas={fitting_canvas(max(height, width), size.image)}",
                code="slices-larger-than-canvas",
            )
        )
    for paths in dict.fromkeys(extra):
        problems += _check_beside(paths, first)
    if not case.segmentation:
        return _CaseChecks(problems, frozenset(), labelled=False)
    labels = data.paths(case, SEGMENTATION)
    label_problems: list[AttclError] = []
    values: frozenset[int] = frozenset()
    try:
        found = label_maps.load_labels(labels, beside=first)  # all zeros: a case without tumour
        values = frozenset(int(value) for value in np.unique(found))
    except AttclError as error:
        label_problems = [error]
    strange = sorted(values - set(KNOWN))
    if strange:
        known = " or ".join(str(item) for item in CONVENTIONS.values())
        label_problems = [
            AttclError(
                f"{labels[0]}: label {some(strange)}, expected those of {known}",
                "give the label maps the values of one release",
                code="label-values-unknown",
            )
        ]
    return _CaseChecks([*problems, *label_problems], values - set(strange), labelled=True)


def _check_beside(paths: tuple[Path, ...], first: Sequence[Path]) -> list[AttclError]:
    """Return what keeps an image from lying beside the case's others; values are read only if they may be unusable."""
    problem = label_maps.off_grid(paths, first)
    if problem is not None:
        return [problem]
    try:
        if volumes.suspicious(paths, volumes.read_grid(paths)):
            volumes.load(paths)
    except AttclError as error:
        return [error]
    return []
