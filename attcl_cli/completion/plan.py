"""Algorithm 1, planned: which volumes are missing, which weights make each, and from which source.

The sources are picked by `choose_makers`, which asks the rules of the models (`methods.sources`).

Looks at names, headers and side-cars, and decides everything before anything is computed. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from attcl_cli.completion import checks
from attcl_cli.completion.jobs import CompletionPlan, Job, Maker, Manner, Places
from attcl_cli.completion.provenance import learned_cases
from attcl_cli.completion.styles import Style, Styles
from attcl_cli.data.dataset import Case, Dataset, read_side_car
from attcl_cli.data.layouts import Layout
from attcl_cli.data.preconditions import Findings, examine
from attcl_cli.data.unchanged import look_at
from attcl_cli.errors import AttclError, counted, fold, raise_all, some
from attcl_cli.methods.sources import withheld
from attcl_cli.methods.weights import Weights
from attcl_cli.progress import SILENT, Progress

_Groups = dict[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...], Job]
"""The jobs of a case, by what their volumes are made by and from."""


def plan_completion(
    dataset: Dataset,
    output: Path,
    models: Sequence[Weights],
    *,
    naming: Layout | None = None,
    targets: Sequence[str] = (),
    manner: Manner = Manner(),
    part: tuple[int, int] = (1, 1),
    originals: Sequence[Path] = (),
    keep_going: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> CompletionPlan:
    """Decide what is missing and from what it is made (Algorithm 1, Section 3.6), and check all that can be checked.

    Algorithm 1 walks through every slice and modality and writes a translation if neither the original nor the
    completed folder has a file; the first one written wins. So the source of a missing volume is the first modality of
    `modal_list` that the case has (and the model knows), and nothing else needs to be generated. What a model takes is
    its own rule (`methods.sources`); it is asked with the present modalities in that order.

    Args:
        dataset: the incomplete dataset.
        output: the completed folder; may hold results of earlier runs.
        models: verified weights: the first that can make a target from what a case has does; all that can if `manner`
            averages.
        naming: names files in this way, flat, and their side-cars in a folder beside.
        targets: only these modalities, also if no case has one; empty: all.
        manner: how volumes are made.
        part: (k, n): every n-th case, starting with the k-th; parts never overlap.
        originals: further folders that must not be written into (to which links of the dataset lead).
        keep_going: leave out cases with problems instead of refusing to start.
        overwrite: make volumes again that exist in the output folder.
        force: take data that a check of the voxels refuses.
        progress: hears of the checks, if there are many cases.

    Raises:
        AttclError: everything that is wrong, together.
    """
    dataset = dataset.including(targets)
    # The files of a volume of slices may be made at different times.
    if dataset.layout.sliced:
        manner = replace(manner, even=bool(manner.even), guide=bool(manner.guide))
    places = Places(dataset, output, naming)
    originals = originals if dataset.scattered else (dataset.root, *originals)
    checks.require_sound_request(places, models, manner, originals, targets=targets)
    modal_list = dataset.by_frequency()
    draft = _Draft(
        places, models, modal_list, manner, targets, keep_going=keep_going, overwrite=overwrite
    )
    for case in _cases_of(dataset, part):
        draft.look_at(case)
    jobs, unmade = draft.jobs, draft.unmade
    problems = [
        *draft.problems,
        *fold(draft.unlike, checks.same_making),
        *checks.synthetic_sources(dataset, jobs, manner),
    ]
    busy = {job.case.id for job in jobs}
    sources = [case for case in dataset.cases if case.id in busy]
    findings = examine(dataset, sources, force=force, progress=progress)
    sound, failed, wrong = _sound(
        findings, dataset, models, jobs, unmade, manner, keep_going=keep_going
    )
    problems += wrong
    failed |= draft.failed
    planned = {job.case.id for job in jobs} | set(unmade)
    unplanned = {name: it for name, it in _wrong_of(dataset, part).items() if name not in planned}
    if keep_going:
        failed |= {name: items[0] for name, items in unplanned.items()}
    else:
        problems += [problem for items in unplanned.values() for problem in items]
    styles = Styles(dataset)
    sound, unstorable = _with_styles(places, styles, sound)
    problems += unstorable
    if not problems:
        problems += checks.too_little_room(places, sound, manner)
    runs = [*places.records.glob("run.json"), *places.records.glob("run-*of*.json")]
    strangers = not (sound or draft.present or runs)
    if problems or strangers:  # nothing is written among files of somebody else
        problems += fold(list(draft.failed.values()), lambda problem: problem.hint)
    raise_all(problems)
    return CompletionPlan(
        places=places,
        models=tuple(models),
        modal_list=modal_list,
        jobs=tuple(sound),
        present=draft.present,
        manner=manner,
        failed=failed,
        notes=(
            *findings.notes,
            *_other_backgrounds(dataset, models, sound),
            *_beyond_the_last(dataset, sound, manner),
            *_unread(styles, sound),
            *_other_ranges(places, styles, models, sound, draft.present),
        ),
        learned=learned_cases(
            models,
            [(job.case.id, maker.weights.sha256) for job in sound for maker in job.makers],
            dataset.patient_of,
        ),
    )


def _wrong_of(dataset: Dataset, part: tuple[int, int]) -> dict[str, tuple[AttclError, ...]]:
    """Return what is wrong with names that concern a part: those of its cases; the first also has what is no case."""
    own = {case.id for case in _cases_of(dataset, part)}
    others = {case.id for case in dataset.cases} - own
    return {
        name: items
        for name, items in dataset.wrong.items()
        if name in own or (part[0] == 1 and name not in others)
    }


def _cases_of(dataset: Dataset, part: tuple[int, int]) -> tuple[Case, ...]:
    """Return the cases of part k of n: every n-th one, from the k-th on."""
    return dataset.cases[part[0] - 1 :: part[1]]


_MAY_BE_ALL = frozenset({"made-in-another-way", "grids-differ"})
"""Codes of problems that the results of a whole run have: of other weights, of another dataset with the same names."""


@dataclass
class _Draft:
    """A plan that grows case by case: what is done, what is to be made, and what is in the way."""

    places: Places
    models: Sequence[Weights]
    modal_list: Sequence[str]
    manner: Manner
    targets: Sequence[str]
    _: KW_ONLY
    keep_going: bool
    overwrite: bool
    jobs: list[Job] = field(default_factory=list)
    unmade: dict[str, list[str]] = field(default_factory=dict)
    """Case id -> targets that no model can make."""
    present: dict[str, dict[str, tuple[PurePosixPath, ...]]] = field(default_factory=dict)
    problems: list[AttclError] = field(default_factory=list)
    unlike: list[AttclError] = field(default_factory=list)
    """Results of earlier runs that this one would not make."""
    failed: dict[str, AttclError] = field(default_factory=dict)
    """With `keep_going`, what lies where a volume of a case belongs, by case."""

    def look_at(self, case: Case) -> None:
        """Decide about each missing volume of a case."""
        groups: _Groups = {}
        unmade: list[str] = []
        for target in self.places.dataset.missing(case):
            if self.targets and target not in self.targets:
                continue
            try:
                self._look_at_volume(case, target, groups, unmade)
            except AttclError as error:  # of a side-car that was edited
                if self.keep_going:
                    self.failed.setdefault(case.id, error)
                else:
                    self.problems.append(error)
        if case.id in self.failed:
            return
        if unmade:
            self.unmade[case.id] = unmade
        self.jobs += _as_they_are(self.places.dataset, case, groups.values())

    def _look_at_volume(self, case: Case, target: str, groups: _Groups, unmade: list[str]) -> None:
        places, manner = self.places, self.manner
        makers = choose_makers(self.models, case, target, self.modal_list, average=manner.average)
        existing = places.existing(case, target)
        unproven = checks.unproven(places, case, target, existing, makers, manner)
        unlike = checks.unlike_existing(
            places,
            case,
            target,
            () if unproven else existing,
            makers or (Maker(self.models[0], ()),),
            manner,
            overwrite=self.overwrite,
        )
        escapes = checks.escapes(places.output, places.files(case, target)[0])
        own = [*escapes, *(it for it in unlike if it.code not in _MAY_BE_ALL)]
        if own and self.keep_going:
            self.failed.setdefault(case.id, own[0])
            return
        self.problems += escapes
        self.unlike += unlike
        if unlike:
            return
        anew = self.overwrite or places.lacks_uncertainty(case, target, manner)
        done = () if anew else set(existing) - set(unproven)
        files = _files_to_write(places, case, target, manner, done)
        if files and done:
            self.problems += checks.other_sources(places, case, target, makers)
        if files is None:
            self.present.setdefault(case.id, {})[target] = places.dataset.layout.files_of_slices(
                places.files(case, target), manner.slices
            )
        elif not makers:
            unmade.append(target)
        else:
            volume = Job(
                case,
                makers,
                {target: files},
                unproven={target: unproven},
                existing={target: existing},
            )
            _add(groups, volume)


def _add(groups: _Groups, volume: Job) -> None:
    """Add a job of one volume to those of its case: the same weights make from the same sources all at once."""
    key = tuple((it.weights.sha256, it.sources, it.withheld) for it in volume.makers)
    job = groups.get(key, volume)
    groups[key] = replace(
        job,
        outputs={**job.outputs, **volume.outputs},
        unproven={**job.unproven, **volume.unproven},
        existing={**job.existing, **volume.existing},
    )


def _other_backgrounds(
    dataset: Dataset, models: Sequence[Weights], jobs: Sequence[Job]
) -> list[str]:
    """Name the weights in use that were trained with another --background."""
    used = {maker.weights.sha256 for job in jobs for maker in job.makers}
    own = dataset.background
    return [
        f"{weights.path}: trained with --background {weights.info.background}, used with {own}"
        for weights in models
        if weights.sha256 in used and weights.info.background != own
    ]


def _beyond_the_last(dataset: Dataset, jobs: Sequence[Job], manner: Manner) -> list[str]:
    """Name the cases that end before the last of the slices that were asked for."""
    if manner.slices is None:
        return []
    first, stop = manner.slices
    depths = {job.case.id: checks.depth_of(dataset, job.case) for job in jobs}
    short = [f"{case} {depth}" for case, depth in depths.items() if depth < stop]
    if not short:
        return []
    return [
        f"--slices {first}:{stop}: {counted(len(short), 'case')} {'has' if len(short) == 1 else 'have'} fewer slices "
        f"({some(short)}), and {'is' if len(short) == 1 else 'are'} made to the last"
    ]


def _as_they_are(dataset: Dataset, case: Case, jobs: Collection[Job]) -> list[Job]:
    """Return the jobs of a case with the present state of its files."""
    if not jobs:
        return []
    seen = look_at(path for name in case.files for path in dataset.paths(case, name))
    return [replace(job, seen=seen) for job in jobs]


def notes_of_unproven(plan: CompletionPlan) -> list[str]:
    """Return what is done about volumes without a side-car, in words; it is over when they are made, unlike `notes`."""
    first = [
        plan.output / files[0] for job in plan.jobs for files in job.unproven.values() if files
    ]
    if not first:
        return []
    return [
        f"{counted(len(first), 'volume')} without a side-car ({some(first, most=2)}): "
        "made again and compared, and kept if not a byte differs"
    ]


def choose_makers(
    models: Sequence[Weights],
    case: Case,
    target: str,
    modal_list: Sequence[str],
    *,
    average: bool = False,
) -> tuple[Maker, ...]:
    """Return the first model that can make a target from what the case has, or all that can; () if none can."""
    present = [name for name in modal_list if name in case.files]
    makers: list[Maker] = []
    for weights in models:
        rule = weights.info.rule
        sources = rule.sources_for(target, present)
        if sources:
            makers.append(Maker(weights, sources, withheld(rule, target, present)))
            if not average:
                break
    return tuple(makers)


def _files_to_write(
    places: Places, case: Case, target: str, manner: Manner, done: Collection[PurePosixPath]
) -> tuple[PurePosixPath, ...] | None:
    """Return the files of a volume that are to be made; None if all are done (Algorithm 1's path check).

    Files appear whole, so one that exists is complete.
    """
    layout = places.dataset.layout
    files = layout.files_of_slices(places.files(case, target), manner.slices)
    missing = tuple(file for file in files if file not in done)
    return missing if missing or not files else None


def _with_styles(
    places: Places, styles: Styles, jobs: Sequence[Job]
) -> tuple[list[Job], list[AttclError]]:
    """Return the jobs with how their volumes are stored, and the problems of those that cannot be."""
    with_styles: list[Job] = []
    problems: dict[str, AttclError] = {}  # by message: a modality's is that of all its cases
    for job in jobs:
        own: dict[str, Style] = {}
        for target in job.outputs:
            try:
                own[target] = styles.of(target, job.weights.info.scales[target])
            except AttclError as error:
                problems[error.message] = error
        with_styles.append(replace(job, styles=own))
        problems |= {it.message: it for it in checks.other_style(places, with_styles[-1])}
    return with_styles, list(problems.values())


def _unread(styles: Styles, jobs: Sequence[Job]) -> list[str]:
    """Name the volumes that cannot be read and would count for the range of those that are made."""
    notes = []
    for target, style in {name: it for job in jobs for name, it in job.styles.items()}.items():
        names = styles.unread(target)
        if names:
            others = "of the others" if style.own else "that the weights were trained on"
            notes.append(
                f"{target} of {some(names)} cannot be read: new volumes of {target} get the intensity range {others}, "
                f"and may get another one when {'it is' if len(names) == 1 else 'they are'} repaired"
            )
    return notes


def _other_ranges(
    places: Places,
    styles: Styles,
    models: Sequence[Weights],
    jobs: Sequence[Job],
    present: Mapping[str, Collection[str]],
) -> list[str]:
    """Name the volumes of earlier runs that are stored in another way than they would be now.

    The dataset that decides it has changed since. Nothing is looked at if nothing is left to make.
    """
    made = {target for job in jobs for target in job.outputs}
    scales = {weights.sha256: weights.info.scales for weights in models}
    others: dict[str, dict[str, str]] = {}  # target -> case id -> how the volume is stored
    expected: dict[str, str] = {}
    for case in places.dataset.cases if made else ():
        for target in present.get(case.id, ()):
            side_car = read_side_car(places.side_car(case, target))
            stored, maker = side_car.get("stored"), side_car.get("weights") or {"sha256": ""}
            trained = scales.get(maker["sha256"], {}).get(target)
            if stored is None or trained is None:
                continue
            with suppress(AttclError):  # raised before if volumes of this modality are left to make
                style = styles.of(target, trained)
                # A range that is learned from a part of the volumes is no measure, but new volumes will have it.
                if not style.agrees(stored) and (target in made or not styles.unread(target)):
                    others.setdefault(target, {})[case.id] = _in_words(stored)
                    expected[target] = _in_words(style.document())
    first = {name: "repair what cannot be read, then " for name in others if styles.unread(name)}
    return [
        f"{target}: {counted(len(ranges), 'volume')} made before ({some(ranges)}) "
        f"{'has' if len(ranges) == 1 else 'have'} another intensity range, {some(dict.fromkeys(ranges.values()))}, "
        f"expected {expected[target]}: the dataset's volumes of {target}, which decide it, are not those of that run "
        f"(added, removed, changed, damaged or repaired); {first.get(target, '')}--overwrite makes all volumes again"
        for target, ranges in others.items()
    ]


def _in_words(stored: Mapping[str, Any]) -> str:
    low, high = stored["range"]
    return f"{stored['number_type']} from {low:.4g} to {high:.4g}"


def _sound(
    findings: Findings,
    dataset: Dataset,
    models: Sequence[Weights],
    jobs: Sequence[Job],
    unmade: dict[str, list[str]],
    manner: Manner,
    *,
    keep_going: bool,
) -> tuple[list[Job], dict[str, AttclError], list[AttclError]]:
    """Return the jobs that can be done, with `keep_going` why others cannot, by case, otherwise all that is wrong."""
    problems: list[AttclError] = []
    busy = {job.case.id for job in jobs}
    failed: dict[str, AttclError] = {}
    if keep_going and busy - set(unmade):
        failed = {
            case: checks.cannot_make(models, {case: names})[0] for case, names in unmade.items()
        }
    else:  # reported together, a line for many cases
        problems += checks.cannot_make(models, unmade)
    sound: list[Job] = []
    for job in jobs:
        if job.case.id in failed:
            continue
        wrong = (
            list(findings.of(job.case.id))
            or checks.slices_beyond(dataset, job.case, manner)
            or checks.not_isotropic(dataset, job.case, manner)
        )
        if wrong and keep_going:
            failed[job.case.id] = wrong[0]
            continue
        problems += wrong
        sound.append(job)
    return [job for job in sound if job.case.id not in failed], failed, problems
