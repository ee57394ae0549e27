"""What volumes must be before anything is learnt from them: skull-stripped, registered, background 0, alike in units.

Looks at a dataset's volumes, and lets `judgements` judge their figures: what is fixed on reading is a note, what cannot
be fixed a problem. Headers and names are left to `dataset`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from attcl_cli.data import label_maps
from attcl_cli.data.alignment import read_pair, read_ranks
from attcl_cli.data.contrasts import Swap, find_swap
from attcl_cli.data.dataset import Case, Dataset, read_grids
from attcl_cli.data.intensities import Array
from attcl_cli.data.judgements import (
    Examined,
    find_copies,
    find_recoloured,
    find_repeated,
    is_small,
    judge_gaps,
    judge_labels,
    judge_pair,
    judge_units,
    judge_volume,
    percent,
)
from attcl_cli.data.labels import KNOWN, unknown_labels
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.voxels import Look, read_record, read_sample
from attcl_cli.errors import AttclError, counted
from attcl_cli.progress import SILENT, Progress

_SMALL_CASE = 2**18  # bytes; threads made 10,000 cases of 2 KB take twice as long
_TELLING = {"volume-mirrored": 0, "images-unrelated": 2}  # the rest: 1
_MANY_CASES = 50  # take long enough to be counted aloud

_Found = TypeVar("_Found")


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
    found = _of_each(dataset, chosen, lambda case: _examine_case(dataset, case, labels=labels))
    with listener.bar(len(chosen), "check", every_seconds=10) as bar, closing(found):
        for case, it in zip(chosen, found, strict=True):
            examined.append(it)
            bar(case.id)
    volumes = [volume for it in examined for volume in it.volumes]
    wrong = {case.id: list(it.wrong) for case, it in zip(chosen, examined, strict=True)}
    if dataset.background != "keep":
        for volume, problem in judge_units(volumes):
            wrong[volume.case].append(problem)
    for volume, problem in find_repeated(volumes):
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
    found = _of_each(dataset, chosen, lambda case: _label_problems(dataset, case))
    return [it for problems in found for it in problems if it.code == "labels-off-brain"]


def _of_each(
    dataset: Dataset, cases: Sequence[Case], look: Callable[[Case], _Found]
) -> Generator[_Found]:
    """Yield what a look at each case finds, in their order.

    Threads look at several at once, unless cases are small: then they would only wait for Python's lock.
    """
    first = [
        path for case in cases[:1] for name in case.files for path in dataset.paths(case, name)
    ]
    if sum(path.stat().st_size for path in first if path.is_file()) < _SMALL_CASE:
        yield from map(look, cases)
        return
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) * 2)) as pool:
        yield from pool.map(look, cases)


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


def notes_of(volumes: Sequence[Examined]) -> tuple[str, ...]:
    """Return what is fixed on reading, a line per kind: how many volumes, and one of them."""
    found: dict[str, list[tuple[Examined, str]]] = {
        "a background other than 0, subtracted on reading": [
            (it, f"about {it.record.value:.4g}")
            for it in volumes
            if it.record.background == "constant"
        ],
        "a background that is not exact (ringing of interpolation), set to 0 on reading": [
            (it, f"around {it.record.value:.4g}")
            for it in volumes
            if it.record.background == "ringing"
        ],
        "values below the background (resampling), set to 0 on reading": [
            (it, f"{percent(it.record.below)} of its voxels")
            for it in volumes
            if it.record.below > 0
        ],
    }
    return tuple(
        f"{counted(len(members), 'volume has', 'volumes have')} {what}, such as {members[0][0].path} ({members[0][1]})"
        for what, members in found.items()
        if members
    )


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
        return _examine_files(case.id, files, maps, unusable, look, lambda: _made(dataset, case))


def _made(dataset: Dataset, case: Case) -> list[str]:
    """Return the synthetic modalities of a case; a damaged side-car says nothing, and is named elsewhere."""
    try:
        return dataset.synthetic(case, case.files)
    except AttclError:
        return []


def _examine_files(
    case: str,
    files: Mapping[str, Sequence[Path]],
    maps: Sequence[Path],
    unusable: list[AttclError],
    look: Look,
    made: Callable[[], Collection[str]],
) -> _ExaminedCase:
    """Return what `_examine_case` does.

    Args:
        case: its id.
        files: modality -> the files of its volume.
        maps: those of its label map, if it is asked for.
        unusable: what is wrong with the headers of the volumes.
        look: at the case.
        made: returns the modalities that are synthetic; they may well look like what they are made from.
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
        judged = [judge_volume(volume) for volume in volumes.values()]
        faults = [problem for problem in judged if problem is not None]
        faults += [] if faults else find_copies(list(volumes.values()))
        faults += [] if faults else _judge_pairs(files, volumes, look)
        if all(problem.code == "brain-incomplete" for problem in faults):  # what gaps are, too
            gaps = [judge_gaps(volume) for volume in volumes.values()]
            faults = [problem for problem in gaps if problem is not None] or faults
        ranks = {} if faults else _ranks(files, volumes, look)
        if find_recoloured(volumes, ranks):  # seldom: side-cars are read for it alone
            synthetic = made()
            real = {name: it for name, it in volumes.items() if name not in synthetic}
            faults += find_recoloured(real, ranks)
        wrong += faults
        swap = find_swap({name: it.record for name, it in volumes.items()}, ranks)
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
        masks = [read_sample(files[name], look).mask for name in volumes]
        union: Array = np.logical_or.reduce(masks)
        return union

    images = [path for name in volumes for path in files[name]]
    records = look.records
    record = label_maps.read_record(maps, KNOWN, records, images, brain, look.background)
    problems = [unknown_labels(maps[0], record.beyond)] if record.beyond else []
    small = any(is_small(volume.record) for volume in volumes.values())
    # Without a background nothing can be said.
    off = None if look.background == "keep" or small else judge_labels(maps[0], record)
    return [*problems, off] if off is not None else problems


def _ranks(
    files: Mapping[str, Sequence[Path]], volumes: Mapping[str, Examined], look: Look
) -> dict[frozenset[str], float]:
    """Return the rank correlation of each two volumes of a case; none if one is too small, or the grids differ."""
    if len(volumes) < 2 or any(is_small(volume.record) for volume in volumes.values()):  # noqa: PLR2004
        return {}
    ranks = read_ranks([files[name] for name in volumes], look)
    pairs = [frozenset(pair) for pair in combinations(volumes, 2)]
    return dict(zip(pairs, ranks.correlations, strict=True)) if ranks is not None else {}


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
        # What explains the most is named: mirrored, or at least something that can be put right.
        pair = min(of_worst, key=lambda it: _TELLING.get(found[it].code, 1))
        other = pair[0] if pair[1] == worst else pair[1]
        problem = found[pair] if pair[1] == worst else compare(other, worst)
        if (
            counts[worst] == len(left) or found[pair].code != "images-unrelated"
        ):  # T1ce alone says little of FLAIR
            problems.append(problem or found[pair])
        found = {pair: problem for pair, problem in found.items() if worst not in pair}
    return problems
