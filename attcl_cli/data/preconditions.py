"""What volumes must be before anything is learnt from them: skull-stripped, registered, background 0, alike in units.

Judges the figures that `voxels` measures: what is fixed on reading is a note, what cannot be fixed a problem. Headers
and names are left to `dataset`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np

from attcl_cli.data import label_maps
from attcl_cli.data.alignment import FEWEST_VOXELS, PairRecord, read_pair, read_ranks
from attcl_cli.data.contrasts import JUDGED, Swap, find_swap
from attcl_cli.data.dataset import Case, Dataset, read_grids
from attcl_cli.data.intensities import Array
from attcl_cli.data.label_maps import LabelRecord
from attcl_cli.data.labels import KNOWN, unknown_labels
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.voxels import LEVELS, Look, VolumeRecord, read_record, read_sample
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
LEAST_MIRRORED_GAIN = (
    1.1  # of mutual information by mirroring; 1 was never reached, 1.17 the least of a mirrored one
)
LEAST_MIRRORED_OVERLAP = 0.95  # Dice then; 0.946 was the most of two brains
LEAST_OUT_OF_ORDER = (
    2  # slices of the sample; 0 was the most, slabs of 10 mm exchanged have 2 or more
)
LEAST_OVERLAP = 0.9  # Dice of two masks; 0.99 was the least; half a head has 0.67, cut beside its middle up to 0.8
MOST_APART = 0.15  # of the length along an axis, between the ends of two masks of which one lies in the other; 0.00
LEAST_SHARED = 0.75  # Dice of two masks below which what lies in them is not asked
SAME_MASK = 0.97  # Dice of two masks of one brain; 0.99 was the least, 0.95 the most of two brains
LEAST_INFORMATION = 0.016  # with another mask: 0.013 was the most of two brains
MOST_FACTOR = 100.0  # between a volume's range and the others' of its modality; 35 was the most
MOST_FACTOR_OF_FLOATS = 20.0  # the same between floats and integers
FEWEST_OTHERS = 3  # volumes of a modality by which another is judged
MOST_OF_ONE_VALUE = 0.5  # of the brain; 0.05 was the most
MOST_LABELS_OFF = 0.1  # of the labelled voxels; 0.000 was the most
_SMALL_CASE = 2**18  # bytes; threads made 10,000 cases of 2 KB take twice as long
FEWEST_LABELLED = 100  # voxels of a label map of which it is asked

_NEARLY_ALL = LEVELS.index(95.0)
_AXES = ("foot to head", "front to back", "side to side")
_MANY_CASES = 50  # take long enough to be counted aloud
_LEAST_SIDE = 16  # voxels
_LEAST_FIELD_ML = 500.0
_STRIP = "strip the skull (HD-BET, SynthStrip) and set the background to 0"
_REGISTER = "co-register the case's volumes (ANTs, FSL FLIRT, elastix)"
_MASK = "mask all volumes of the case with one brain mask (HD-BET, SynthStrip)"
_SORT = "convert it anew from its DICOM (dcm2niix), or sort its slices"
_MIRROR = "convert it anew from its DICOM (dcm2niix), or mirror its voxels back"
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
    labels: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> Findings:
    """Look at the names, the files and the voxels of some cases.

    Args:
        dataset: the dataset.
        cases: only these cases; None: all with their label maps, and folders that are no case.
        labels: look at the label maps of these cases, too.
        force: take what is wrong with voxels as notes.
        progress: hears of the cases, if they are many.
    """
    labels = labels or cases is None
    chosen = list(dataset.cases if cases is None else cases)
    known = {case.id for case in dataset.cases}
    unusable = {
        name: problems
        for name, problems in dataset.wrong.items()
        if cases is None and name not in known
    }
    listener = progress if len(chosen) > _MANY_CASES else SILENT
    examined = []
    with (
        _threads(dataset, chosen) as pool,
        listener.bar(len(chosen), "check", every_seconds=10) as bar,
    ):
        for case, it in zip(
            chosen,
            pool.map(lambda case: _examine_case(dataset, case, labels=labels), chosen),
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
        (*notes_of(volumes), *_swaps([it for it in examined if it.swap is not None])),
    )
    return findings.forced() if force else findings


def labels_off_brain(dataset: Dataset, cases: Collection[str]) -> list[AttclError]:
    """Return which label maps of some cases lie off the brain. What cannot be read is left to those who use it.

    Args:
        dataset: the dataset.
        cases: their ids.
    """
    chosen = [case for case in dataset.cases if case.id in cases and case.segmentation]
    with _threads(dataset, chosen) as pool:
        found = pool.map(lambda case: _label_problems(dataset, case), chosen)
        return [it for problems in found for it in problems if it.code == "labels-off-brain"]


def _threads(dataset: Dataset, cases: Sequence[Case]) -> ThreadPoolExecutor:
    """Return the threads that look at cases: one if these are small, for several would wait for Python's lock alone."""
    first = [
        path for case in cases[:1] for name in case.files for path in dataset.paths(case, name)
    ]
    small = sum(path.stat().st_size for path in first if path.is_file()) < _SMALL_CASE
    return ThreadPoolExecutor(max_workers=1 if small else min(8, (os.cpu_count() or 1) * 2))


def _label_problems(dataset: Dataset, case: Case) -> list[AttclError]:
    """Return what is wrong with the labels of a case; nothing if something cannot be read."""
    files = {modality: dataset.paths(case, modality) for modality in case.files}
    maps = dataset.paths(case, SEGMENTATION)
    if label_maps.off_grid(maps, files[next(iter(files))]) is not None:
        return []
    try:
        with dataset.records(case) as records:
            look = Look(records, dataset.background)
            volumes = {
                name: Examined(case.id, name, paths[0], read_record(paths, look))
                for name, paths in files.items()
            }
            return _judge_labels(maps, files, volumes, look)
    except AttclError:
        return []


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
    """Return what is wrong with a volume on its own: one problem at most, the first that explains the others."""
    if _is_small(volume.record):
        return []
    found = _skull(volume) or _around_the_brain(volume) or _in_the_brain(volume)
    return [] if found is None else [found]


def _around_the_brain(volume: Examined) -> AttclError | None:
    """Return the error about a border that is no background."""
    record = volume.record
    if record.background == "noise":
        return AttclError(
            f"{volume.path}: {_percent(record.noise)} of the border is noise around {record.border:.4g}, "
            "expected one background value around a skull-stripped brain",
            f"{_STRIP}; {_ANYWAY}",
            code="background-noisy",
        )
    if record.background == "none":
        return AttclError(
            f"{volume.path}: the border holds many values (median {record.border:.4g}), "
            "expected one background value around a skull-stripped brain",
            f"{_STRIP}; name it with --background VALUE; {_ANYWAY}",
            code="background-missing",
        )
    return None


def _in_the_brain(volume: Examined) -> AttclError | None:
    """Return the error about intensities that are no image's."""
    record = volume.record
    if record.percentiles[_NEARLY_ALL] < 0:
        return AttclError(
            f"{volume.path}: nearly all of its image is darker than the background {record.value:.4g}, "
            "expected a brain that is brighter",
            f"an inverted image? multiply it by -1, or name its background with --background VALUE; {_ANYWAY}",
            code="image-inverted",
        )
    if record.commonest > MOST_OF_ONE_VALUE:
        return AttclError(
            f"{volume.path}: {_percent(record.commonest)} of the voxels that are not background have one value, "
            f"expected an image ({_percent(MOST_OF_ONE_VALUE)} at most)",
            f"a label map, or a saturated image? replace or remove it; {_ANYWAY}",
            code="volume-of-one-value",
        )
    return None


def judge_pair(first: Examined, second: Examined, pair: PairRecord) -> AttclError | None:
    """Return what is wrong with how the second volume lies on the first one; None if nothing is."""
    between = f"{second.path}: {{}} against {first.modality} ({first.path.name}), expected {{}}"
    disagree = _disagree(first, second, pair)
    if pair.voxels < FEWEST_VOXELS:
        return disagree
    shift = max(pair.shift_mm, key=abs)
    aligned = pair.information * pair.gain  # mutual information after that shift
    rearranged = _rearranged(between, pair)
    if rearranged:
        return rearranged
    if disagree and (pair.overlap < LEAST_SHARED or _within(pair)):
        return disagree
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
        found = f"shifted by about {abs(shift):.0f} mm ({_AXES[pair.shift_mm.index(shift)]})"
        return AttclError(
            between.format(found, f"less than {MOST_SHIFT_MM:.0f} mm"),
            f"{_REGISTER}; {_ANYWAY}",
            code="volumes-not-registered",
        )
    return disagree


def _rearranged(between: str, pair: PairRecord) -> AttclError | None:
    """Return that the second volume is mirrored, or has its slices in another order; None if neither.

    Args:
        between: the message, without what was found and what is expected.
        pair: how the volumes lie on each other.
    """
    fits = pair.mirrored and pair.mirrored_overlap >= LEAST_MIRRORED_OVERLAP
    least = max(LEAST_MIRRORED_GAIN * pair.information * pair.gain, LEAST_ALIGNED)
    if fits and pair.mirrored_information >= least:
        axes = " and ".join(_AXES[axis] for axis in pair.mirrored)
        found = (
            f"mirrored ({axes}; mutual information {pair.mirrored_information:.3f} mirrored back, "
            f"{pair.information:.3f} as stored)"
        )
        return AttclError(
            between.format(found, "volumes of one orientation"),
            f"{_MIRROR}; {_ANYWAY}",
            code="volume-mirrored",
        )
    moved = max(pair.out_of_order)
    if moved >= LEAST_OUT_OF_ORDER:
        axis = _AXES[pair.out_of_order.index(moved)]
        found = f"slices in another order ({axis}, at least {moved} slices of a sample)"
        return AttclError(
            between.format(found, "slices in one order"),
            f"{_SORT}; {_ANYWAY}",
            code="slices-out-of-order",
        )
    return None


def _disagree(first: Examined, second: Examined, pair: PairRecord) -> AttclError | None:
    """Return that the masks of two volumes are not those of one brain; None if they are."""
    apart = max(pair.apart)
    cut = apart > MOST_APART and _within(pair)
    if pair.overlap >= LEAST_OVERLAP and not cut:
        return None
    lost, more = (1 - share for share in pair.covered)
    where = f", they end {_percent(apart)} of their length apart ({_AXES[pair.apart.index(apart)]})"
    part = "is a part of the other volume empty?" if more > lost else "is a part of it empty?"
    return AttclError(
        f"{second.path}: masks overlap by {pair.overlap:.2f} (Dice) against {first.modality} ({first.path.name}), "
        f"{_percent(lost)} of that brain is background here, {_percent(more)} of this one there"
        f"{where if cut else ''}; expected an overlap of at least {LEAST_OVERLAP}, "
        f"and ends at most {_percent(MOST_APART)} apart",
        f"{part} {_MASK}, or {_REGISTER}; {_ANYWAY}",
        code="masks-disagree",
    )


def _within(pair: PairRecord) -> bool:
    """Return whether one mask lies within the other: both are of one brain, of which one may lack a part."""
    return max(pair.covered) >= SAME_MASK


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
    swap: Swap | None = None


def _examine_case(dataset: Dataset, case: Case, *, labels: bool) -> _ExaminedCase:
    """Return the volumes of a case that can be read, with what is wrong with them, and with its label map if asked."""
    if case.id in dataset.wrong:  # which file is meant is not clear
        return _ExaminedCase((), dataset.wrong[case.id], ())
    files = {modality: dataset.paths(case, modality) for modality in case.files}
    maps = dataset.paths(case, SEGMENTATION) if labels else ()
    grids, unusable = read_grids(files.values())
    with dataset.records(case) as records:
        look = Look(records, dataset.background, grids)
        return _examine_files(case.id, files, maps, unusable, look)


def _examine_files(
    case: str,
    files: Mapping[str, Sequence[Path]],
    maps: Sequence[Path],
    unusable: list[AttclError],
    look: Look,
) -> _ExaminedCase:
    """Return what `_examine_case` does.

    Args:
        case: its id.
        files: modality -> the files of its volume.
        maps: those of its label map, if it is asked for.
        unusable: what is wrong with the headers of the volumes.
        look: at the case.
    """
    reported = {problem.message for problem in unusable}
    volumes: dict[str, Examined] = {}
    wrong: list[AttclError] = []
    swap: Swap | None = None
    for modality, paths in files.items():
        try:
            record = read_record(paths, look)
        except AttclError as error:
            if error.message not in reported:
                unusable.append(error)
            continue
        volumes[modality] = Examined(case, modality, paths[0], record)
    if maps and volumes and not unusable:
        problem = label_maps.off_grid(maps, files[next(iter(volumes))])
        try:
            wrong += [] if problem else _judge_labels(maps, files, volumes, look)
        except AttclError as error:
            problem = error
        unusable += [problem] if problem is not None else []
    if look.background != "keep":  # without a background nothing can be said
        faults = [it for volume in volumes.values() for it in judge_volume(volume)]
        faults += _copies(volumes)
        faults += [] if faults else _judge_pairs(files, volumes, look)
        wrong += faults
        swap = None if faults else _swap_in(files, volumes, look)
    return _ExaminedCase(tuple(volumes.values()), tuple(unusable), tuple(wrong), swap)


def _judge_labels(
    maps: Sequence[Path],
    files: Mapping[str, Sequence[Path]],
    volumes: Mapping[str, Examined],
    look: Look,
) -> list[AttclError]:
    """Return what is wrong with the label map of a case, which lies on its grid.

    Raises:
        AttclError: as `label_maps.read_record`.
    """

    def brain() -> Array:
        masks = [read_sample(files[name], look).data != 0 for name in volumes]
        union: Array = np.logical_or.reduce(masks)
        return union

    images = [path for name in volumes for path in files[name]]
    records = look.records
    record = label_maps.read_record(maps, KNOWN, records, images, brain, look.background)
    problems = [unknown_labels(maps[0], record.beyond)] if record.beyond else []
    small = any(_is_small(volume.record) for volume in volumes.values())
    # Without a background nothing can be said.
    if look.background == "keep" or small or not _are_off(record):
        return problems
    off = AttclError(
        f"{maps[0]}: {_percent(record.outside / record.labelled)} of its {record.labelled} labelled voxels lie off "
        f"the brain, expected {_percent(MOST_LABELS_OFF)} at most",
        "is it of this patient, and in the orientation of the images? replace it, or move it away; "
        f"{_ANYWAY}",
        code="labels-off-brain",
    )
    return [*problems, off]


def _are_off(record: LabelRecord) -> bool:
    """Return whether a label map, unless it is tiny, lies off the brain."""
    enough = record.labelled >= FEWEST_LABELLED
    return enough and record.outside > MOST_LABELS_OFF * record.labelled


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


def _swap_in(
    files: Mapping[str, Sequence[Path]], volumes: Mapping[str, Examined], look: Look
) -> Swap | None:
    """Return which two volumes of a case have contrasts as if their names were exchanged; None if none have."""
    chosen = [name for name in JUDGED if name in volumes]
    if len(chosen) < 2 or any(_is_small(volumes[name].record) for name in chosen):  # noqa: PLR2004
        return None
    ranks = read_ranks([files[name] for name in chosen], look)
    if ranks is None:
        return None
    return find_swap({name: volumes[name].record for name in chosen}, ranks)


def _swaps(cases: Sequence[_ExaminedCase]) -> list[str]:
    """Return the notes about modalities that look exchanged, a line per pair of them: how many cases, and one."""
    by_names: dict[tuple[str, str], list[_ExaminedCase]] = defaultdict(list)
    for it in cases:
        if it.swap is not None:
            by_names[it.swap.names].append(it)
    lines = []
    for (one, other), members in by_names.items():
        paths = {volume.modality: volume.path for volume in members[0].volumes}
        swap = members[0].swap
        figures = "" if swap is None else f" ({swap.figures})"
        lines.append(
            f"{counted(len(members), 'case')} with {one} and {other} as if their names were exchanged, "
            f"such as {paths[one]} and {paths[other].name}{figures}; look at them, and rename them if they are"
        )
    return lines


def _judge_pairs(
    files: Mapping[str, Sequence[Path]], volumes: Mapping[str, Examined], look: Look
) -> list[AttclError]:
    """Return which volumes of a case do not lie on the others.

    All are compared with the first; if something is wrong, all pairs are, and the volumes that most pairs speak against
    are named.
    """
    if len(volumes) < 2:  # noqa: PLR2004
        return []

    covered: dict[tuple[str, str], tuple[float, float]] = {}

    def compare(first: str, second: str) -> AttclError | None:
        pair = read_pair(files[first], files[second], look)
        if pair is None:
            return None
        covered[first, second] = pair.covered
        return judge_pair(volumes[first], volumes[second], pair)

    def lacking(name: str) -> int:
        """Return of how many other volumes whose masks disagree this one shows but a part."""
        disagreeing = [pair for pair in found if found[pair].code == "masks-disagree"]
        return sum(
            name in pair and covered[pair][pair[1] == name] > covered[pair][pair[0] == name]
            for pair in disagreeing
        )

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
        # Of two that speak against each other alone, the one that shows less is named, otherwise the later one.
        worst = max(left, key=lambda name: (counts[name], lacking(name), left.index(name)))
        left.remove(worst)
        of_worst = [pair for pair in found if worst in pair]
        pair = next((it for it in of_worst if found[it].code == "volume-mirrored"), of_worst[0])
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


def _is_small(record: VolumeRecord) -> bool:
    """Return whether a volume has no room for a brain."""
    return record.sides < _LEAST_SIDE or (record.field_ml or _LEAST_FIELD_ML) < _LEAST_FIELD_ML


def _range(record: VolumeRecord) -> float:
    return record.percentiles[-1] - record.percentiles[0]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"  # noqa: PLR2004
