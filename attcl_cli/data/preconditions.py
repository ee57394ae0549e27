"""What volumes must be before anything is learnt from them: skull-stripped, registered, background 0, alike in units.

Judges the figures that `voxels` measures: what is fixed on reading is a note, what cannot be fixed a problem. Headers
and names are left to `dataset`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from attcl_cli.data.dataset import Case, Dataset, check_case
from attcl_cli.data.label_maps import check_labels
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.voxels import (
    FEWEST_VOXELS,
    PairRecord,
    Sample,
    VolumeRecord,
    read_pair,
    read_record,
)
from attcl_cli.errors import AttclError, counted
from attcl_cli.progress import SILENT, Progress

# Figures of the 24 prepared patients that these bounds were set on are in docs/guides/data.md.
MOST_BRAIN_ML = 2200.0  # the largest brains have about 2000 ml with their fluid; 1614 was the most, a raw head 2579
LEAST_HEAD_ML = 1000.0  # of a rim that is looked at; smaller objects are no heads
LEAST_RIM = 0.7  # 0.91 was the least of a brain, 0.60 the most of a raw head
MOST_SHIFT_MM = 3.0  # 2.2 was the most
LEAST_GAIN = 1.1  # of mutual information by that shift; 1.04 was the most
LEAST_ALIGNED = (
    0.005  # mutual information after that shift; 0.009 was the least: below it, noise decides
)
CLEAR_GAIN = 1.5  # by a shift that explains why two images look unrelated
LEAST_OVERLAP = 0.75  # Dice of two masks, whatever lies in them
SAME_MASK = 0.97  # Dice of two masks of one brain; 0.99 was the least, 0.95 the most of two brains
LEAST_INFORMATION = 0.016  # with another mask: 0.013 was the most of two brains
MOST_FACTOR = 100.0  # between a volume's range and the others' of its modality; 35 was the most
MOST_FACTOR_OF_FLOATS = 20.0  # the same between floats and integers
FEWEST_OTHERS = 3  # volumes of a modality by which another is judged
MOST_OF_ONE_VALUE = 0.5  # of the brain; 0.05 was the most

_MANY_CASES = 50  # take long enough to be counted aloud
_LEAST_SIDE = 16  # voxels
_LEAST_FIELD_ML = 500.0
_STRIP = "strip the skull (HD-BET, SynthStrip) and set the background to 0"
_REGISTER = "co-register the case's volumes (ANTs, FSL FLIRT, elastix)"
_ANYWAY = "or take the data as they are: --force"


@dataclass(frozen=True)
class Findings:
    """What is wrong with some cases, and what is fixed on reading them.

    Attributes:
        unusable: case id, or name of a folder that is no case -> what is wrong with its names and files.
        wrong: case id -> what is wrong with its voxels.
        notes: what is fixed on reading, once per kind; of data that is taken by force also what is wrong.
    """

    unusable: Mapping[str, tuple[AttclError, ...]]
    wrong: Mapping[str, tuple[AttclError, ...]]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> list[AttclError]:
        """Return everything that is wrong, by case."""
        return [it for name in dict.fromkeys((*self.unusable, *self.wrong)) for it in self.of(name)]

    def of(self, case: str) -> tuple[AttclError, ...]:
        """Return what is wrong with a case."""
        return (*self.unusable.get(case, ()), *self.wrong.get(case, ()))

    def forced(self) -> Findings:
        """Return the findings with what is wrong with voxels as notes: the data is taken all the same."""
        warnings = [
            f"taken all the same: {problem.message}"
            for problems in self.wrong.values()
            for problem in problems
        ]
        return Findings(self.unusable, {}, (*self.notes, *warnings))


def examine(
    dataset: Dataset,
    cases: Sequence[Case] | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Findings:
    """Look at the names, the files and the voxels of some cases.

    Args:
        dataset: the dataset.
        cases: only these cases; None: all with their label maps, and folders that are no case.
        force: take what is wrong with voxels as notes.
        progress: hears of the cases, if they are many.
    """
    chosen = list(dataset.cases if cases is None else cases)
    known = {case.id for case in dataset.cases}
    unusable = {
        name: problems
        for name, problems in dataset.wrong.items()
        if cases is None and name not in known
    }
    threads = min(8, (os.cpu_count() or 1) * 2)
    listener = progress if len(chosen) > _MANY_CASES else SILENT
    examined = []
    with (
        ThreadPoolExecutor(max_workers=threads) as pool,
        listener.bar(len(chosen), "check", every_seconds=10) as bar,
    ):
        for case, it in zip(
            chosen,
            pool.map(lambda case: _examine_case(dataset, case, labels=cases is None), chosen),
            strict=True,
        ):
            examined.append(it)
            bar(case.id)
    volumes = [volume for it in examined for volume in it.volumes]
    wrong = {case.id: list(it.wrong) for case, it in zip(chosen, examined, strict=True)}
    if dataset.background != "keep":
        for volume, problem in judge_units(volumes):
            wrong[volume.case].append(problem)
    unusable |= {case.id: it.unusable for case, it in zip(chosen, examined, strict=True)}
    findings = Findings(
        {name: problems for name, problems in unusable.items() if problems},
        {name: tuple(problems) for name, problems in wrong.items() if problems},
        notes_of(volumes),
    )
    return findings.forced() if force else findings


@dataclass(frozen=True)
class Examined:
    """A volume with its figures.

    Attributes:
        case: id of its case.
        modality: its modality.
        path: its first file.
        record: the figures.
    """

    case: str
    modality: str
    path: Path
    record: VolumeRecord


def judge_volume(volume: Examined) -> list[AttclError]:
    """Return what is wrong with a volume on its own."""
    record, path = volume.record, volume.path
    small = record.sides < _LEAST_SIDE or (record.field_ml or _LEAST_FIELD_ML) < _LEAST_FIELD_ML
    if small:  # has no room for a brain
        return []
    skull = _skull(volume)
    if skull is not None:
        return [skull]
    if record.background == "noise":
        return [
            AttclError(
                f"{path}: {_percent(record.noise)} of the border is noise around {record.border:.4g}, "
                "expected one background value around a skull-stripped brain",
                f"{_STRIP}; {_ANYWAY}",
                code="background-noisy",
            )
        ]
    if record.background == "none":
        return [
            AttclError(
                f"{path}: the border holds many values (median {record.border:.4g}), "
                "expected one background value around a skull-stripped brain",
                f"{_STRIP}; name it with --background VALUE; {_ANYWAY}",
                code="background-missing",
            )
        ]
    if record.commonest > MOST_OF_ONE_VALUE:
        return [
            AttclError(
                f"{path}: {_percent(record.commonest)} of the voxels that are not background have one value, "
                f"expected an image ({_percent(MOST_OF_ONE_VALUE)} at most)",
                f"a label map, or a saturated image? replace or remove it; {_ANYWAY}",
                code="volume-of-one-value",
            )
        ]
    return []


def judge_pair(first: Examined, second: Examined, pair: PairRecord) -> AttclError | None:
    """Return what is wrong with how the second volume lies on the first one; None if nothing is."""
    between = f"{second.path}: {{}} against {first.modality} ({first.path.name}), expected {{}}"
    if pair.overlap < LEAST_OVERLAP:
        found = f"masks overlap by {pair.overlap:.2f} (Dice)"
        return AttclError(
            between.format(found, f"at least {LEAST_OVERLAP}"),
            f"{_REGISTER} and strip all with one mask; {_ANYWAY}",
            code="masks-disagree",
        )
    if pair.voxels < FEWEST_VOXELS:
        return None
    shift = max(pair.shift_mm, key=abs)
    aligned = pair.information * pair.gain  # mutual information after that shift
    found_shift = abs(shift) >= MOST_SHIFT_MM and pair.gain >= LEAST_GAIN
    shifted = found_shift and aligned >= LEAST_ALIGNED
    unlike = pair.overlap < SAME_MASK and pair.information < LEAST_INFORMATION
    if unlike and not (shifted and aligned >= LEAST_INFORMATION and pair.gain >= CLEAR_GAIN):
        found = f"unrelated ({pair.information:.3f} of mutual information, masks overlap by {pair.overlap:.2f})"
        return AttclError(
            between.format(found, "images of one brain"),
            f"is it of this patient? otherwise {_REGISTER}; {_ANYWAY}",
            code="images-unrelated",
        )
    if shifted:
        axis = ("foot to head", "front to back", "side to side")[pair.shift_mm.index(shift)]
        found = f"shifted by about {abs(shift):.0f} mm ({axis})"
        return AttclError(
            between.format(found, f"less than {MOST_SHIFT_MM:.0f} mm"),
            f"{_REGISTER}; {_ANYWAY}",
            code="volumes-not-registered",
        )
    return None


def judge_units(volumes: Sequence[Examined]) -> list[tuple[Examined, AttclError]]:
    """Return the volumes whose percentiles say that they are in other units than the others of their modality."""
    by_modality: dict[str, list[Examined]] = defaultdict(list)
    for volume in volumes:
        if _range(volume.record) > 0:
            by_modality[volume.modality].append(volume)
    strange = []
    for modality, members in by_modality.items():
        if len(members) <= FEWEST_OTHERS:
            continue
        usual = median(_range(member.record) for member in members)
        floats = median(member.record.floating for member in members)
        for member in members:
            own = _range(member.record)
            factor = max(own / usual, usual / own)
            most = MOST_FACTOR if member.record.floating == floats else MOST_FACTOR_OF_FLOATS
            if factor > most:
                low, high = member.record.percentiles[0], member.record.percentiles[-1]
                problem = AttclError(
                    f"{member.path}: intensities from {low:.3g} to {high:.3g}, a range {factor:.0f} times "
                    f"{'less' if own < usual else 'more'} than usual for {modality} here ({usual:.3g}), "
                    "expected the units of the others",
                    f"convert it, or all volumes, to the same units; {_ANYWAY}",
                    code="units-differ",
                )
                strange.append((member, problem))
    return strange


def notes_of(volumes: Sequence[Examined]) -> tuple[str, ...]:
    """Return what is fixed on reading, a line per kind: how many volumes, and one of them."""
    kinds = {
        "a background other than 0, subtracted on reading": [
            it for it in volumes if it.record.background == "constant"
        ],
        "a background that is not exact (ringing of interpolation), set to 0 on reading": [
            it for it in volumes if it.record.background == "ringing"
        ],
        "values below the background (resampling), set to 0 on reading": [
            it for it in volumes if it.record.below > 0
        ],
    }
    lines = []
    for what, members in kinds.items():
        if members:
            number = counted(len(members), "volume has", "volumes have")
            lines.append(f"{number} {what}, such as {_example(members[0])}")
    return tuple(lines)


def _example(volume: Examined) -> str:
    record = volume.record
    if record.background in {"constant", "ringing"}:
        return f"{volume.path} (about {record.value:.4g})"
    return f"{volume.path} ({_percent(record.below)} of its voxels)"


@dataclass(frozen=True)
class _ExaminedCase:
    volumes: tuple[Examined, ...]
    unusable: tuple[AttclError, ...]
    wrong: tuple[AttclError, ...]


def _examine_case(dataset: Dataset, case: Case, *, labels: bool) -> _ExaminedCase:
    """Return the volumes of a case that can be read, with what is wrong with them, and with its label map if asked."""
    unusable = check_case(dataset, case)
    if case.id in dataset.wrong:  # which file is meant is not clear
        return _ExaminedCase((), tuple(unusable), ())
    reported = {problem.message for problem in unusable}
    volumes: dict[str, Examined] = {}
    samples: dict[Path, Sample] = {}
    wrong: list[AttclError] = []
    for modality in case.files:
        paths = dataset.paths(case, modality)
        try:
            record = read_record(paths, dataset.background, samples)
        except AttclError as error:
            if error.message not in reported:
                unusable.append(error)
            continue
        volumes[modality] = Examined(case.id, modality, paths[0], record)
    if labels and case.segmentation and volumes and not unusable:
        beside = dataset.paths(case, next(iter(volumes)))
        problem = check_labels(dataset.paths(case, SEGMENTATION), beside)
        unusable += [problem] if problem is not None else []
    if dataset.background != "keep":  # without a background nothing can be said
        wrong += [it for volume in volumes.values() for it in judge_volume(volume)]
        wrong += _copies(volumes)
        wrong += [] if wrong else _judge_pairs(dataset, case, volumes, samples)
    return _ExaminedCase(tuple(volumes.values()), tuple(unusable), tuple(wrong))


def _copies(volumes: Mapping[str, Examined]) -> list[AttclError]:
    """Return which volumes of a case have the very figures of another one: they are one image under two names."""
    return [
        AttclError(
            f"{second.path}: the same image as {first.modality} ({first.path.name}), expected another modality",
            f"replace one of the two by its own image, or move it away; {_ANYWAY}",
            code="images-identical",
        )
        for first, second in combinations(volumes.values(), 2)
        if first.record == second.record and first.record.sides >= _LEAST_SIDE
    ]


def _judge_pairs(
    dataset: Dataset, case: Case, volumes: Mapping[str, Examined], samples: Mapping[Path, Sample]
) -> list[AttclError]:
    """Return which volumes of a case do not lie on the others.

    All are compared with the first; if something is wrong, all pairs are, and the volumes that most pairs speak against
    are named.
    """
    if len(volumes) < 2:  # noqa: PLR2004
        return []

    def compare(first: str, second: str) -> AttclError | None:
        files = dataset.paths(case, first), dataset.paths(case, second)
        pair = read_pair(*files, dataset.background, samples)
        return None if pair is None else judge_pair(volumes[first], volumes[second], pair)

    reference, *others = volumes
    against = {(reference, other): compare(reference, other) for other in others}
    if not any(against.values()):
        return []
    for first, second in combinations(others, 2):
        against[first, second] = compare(first, second)
    found = {pair: problem for pair, problem in against.items() if problem is not None}
    problems: list[AttclError] = []
    left = list(volumes)
    while found:
        counts = {name: sum(name in pair for pair in found) for name in left}
        # Of two that speak against each other alone, the later one is named.
        worst = max(left, key=lambda name: (counts[name], left.index(name)))
        left.remove(worst)
        pair = next(pair for pair in found if worst in pair)
        other = pair[0] if pair[1] == worst else pair[1]
        problem = found[pair] if pair[1] == worst else compare(other, worst)
        if (
            counts[worst] == len(left) or found[pair].code != "images-unrelated"
        ):  # T1ce alone says little of FLAIR
            problems.append(problem or found[pair])
        found = {pair: problem for pair, problem in found.items() if worst not in pair}
    return problems


def _skull(volume: Examined) -> AttclError | None:
    record = volume.record
    large = record.background not in {"noise", "none"} and (record.volume_ml or 0) > MOST_BRAIN_ML
    head = record.tissue_ml is None or record.tissue_ml >= LEAST_HEAD_ML
    dark = record.rim is not None and record.rim < LEAST_RIM and head
    if not large and not dark:
        return None
    figure = (
        f"{record.volume_ml:.0f} ml are not background"
        if large
        else f"{_percent(1 - (record.rim or 0))} darker below its surface, as a skull is"
    )
    return AttclError(
        f"{volume.path}: {figure}, expected a skull-stripped brain ({MOST_BRAIN_ML:.0f} ml at most, no dark skull)",
        f"{_STRIP}; {_ANYWAY}",
        code="skull-present",
    )


def _range(record: VolumeRecord) -> float:
    return record.percentiles[-1] - record.percentiles[0]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
