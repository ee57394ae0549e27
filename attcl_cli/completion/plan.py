"""Algorithm 1, planned: which volumes are missing, from what each is made, where it goes, and what stands against it.

Looks at names, headers and labels, and decides everything before anything is computed. Writes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset, check_case, read_label
from attcl_cli.data.layouts import SUBMISSIONS, Layout, ending_of
from attcl_cli.errors import AttclError, UsageError, fold, raise_all, some
from attcl_cli.files import free_bytes, is_within, refuse_inside
from attcl_cli.methods import METHODS
from attcl_cli.methods.weights import Weights
from attcl_cli.run_record import read_record

_COMPRESSED_SHARE = 0.25  # of a volume's int16 bytes; generous, real ones take about a seventh


@dataclass(frozen=True)
class Job:
    """All volumes that one case lacks.

    Attributes:
        case: the case.
        sources: the modalities they are made from: one, or all that the case has and the weights know.
        outputs: target -> files to write, relative to the output folder.
        weights: what makes them: the plan's, or its fallback.
    """

    case: Case
    sources: tuple[str, ...]
    outputs: Mapping[str, tuple[PurePosixPath, ...]]
    weights: Weights

    @property
    def source(self) -> str:
        """The source, or the first of them."""
        return self.sources[0]


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before anything is computed.

    Attributes:
        dataset: where the sources lie.
        output: where the volumes go.
        weights: what makes them.
        modal_list: modalities by falling number of volumes; a method of one source takes the first that a case has.
        jobs: what is left to do.
        present: case id -> target -> files of the volumes that it lacked and that lie complete in the output folder.
        slices: (first, stop) of the slices that are synthesised, or None for all.
        samples: looks drawn a volume, whose mean is written; 0: the reference's look.
        uncertainty: whether the standard deviation of the samples is written, too.
        failed: case id -> problem, of cases that `keep_going` leaves out.
        naming: the flat naming of a challenge; None: files are named as the dataset's others are.
        fallback: what makes the volumes of cases that `weights` cannot serve.
    """

    dataset: Dataset
    output: Path
    weights: Weights
    modal_list: tuple[str, ...]
    jobs: tuple[Job, ...]
    present: Mapping[str, Mapping[str, tuple[PurePosixPath, ...]]]
    slices: tuple[int, int] | None
    failed: Mapping[str, AttclError]
    samples: int = 0
    uncertainty: bool = False
    naming: Layout | None = None
    fallback: Weights | None = None

    @property
    def places(self) -> Places:
        """Where files go."""
        return Places(self.dataset, self.output, self.naming)

    @property
    def made_how(self) -> dict[str, Any]:
        """What a label must say alike for a volume of an earlier run to count as done."""
        return _how(self.slices, self.samples, uncertainty=self.uncertainty)

    @property
    def done(self) -> int:
        """How many volumes were missing and are there."""
        return sum(len(own) for own in self.present.values())

    @property
    def volumes(self) -> int:
        """How many volumes are left to make."""
        return sum(len(job.outputs) for job in self.jobs)


@dataclass(frozen=True)
class Places:
    """Where the files of an output folder go.

    A challenge's folder holds its volumes and nothing else, so that what is said of them lies in a folder beside it.
    """

    dataset: Dataset
    output: Path
    naming: Layout | None = None

    @property
    def records(self) -> Path:
        """The folder of labels and `run.json`: the output folder, or the one beside it."""
        if self.naming is None:
            return self.output
        return self.output.parent / f"{self.output.absolute().name}-labels"

    def files(self, case: Case, target: str) -> tuple[PurePosixPath, ...]:
        """The volume, or its PNG slices, relative to the output folder."""
        if self.naming is None:
            return self.dataset.place(case, target)
        token = self.naming.tokens[target]
        return (PurePosixPath(self.naming.template.format(case=case.id, token=token)),)

    def label(self, case: Case, target: str) -> Path:
        """The JSON label of a volume."""
        if self.naming is None:
            return self.output / self.dataset.place_label(case, target)
        file = self.files(case, target)[0]
        return self.records / (file.name.removesuffix(ending_of(file)) + ".json")


def plan(  # noqa: PLR0913 - what a user may ask of a run
    dataset: Dataset,
    output: Path,
    weights: Weights,
    *,
    fallback: Weights | None = None,
    naming: Layout | None = None,
    targets: Sequence[str] = (),
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    part: tuple[int, int] = (1, 1),
    originals: Sequence[Path] = (),
    keep_going: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Decides what is missing and from what it is made (Algorithm 1, Section 3.6), and checks all that can be checked.

    Algorithm 1 walks through every slice and modality and writes a translation where neither the original nor the
    completed folder has a file; the first one written wins. So the source of a missing volume is the first modality of
    `modal_list` that the case has, and nothing else needs to be generated. A method that accepts many sources is given
    all that the case has.

    Args:
        dataset: the incomplete dataset.
        output: the completed folder; may hold results of earlier runs.
        weights: verified weights.
        fallback: weights for the cases of which the others cannot make all that is expected.
        naming: names files in this way, flat, and their labels in a folder beside.
        targets: only these modalities; empty: all.
        slices: synthesise only these slices (first, stop); the others stay 0, or are not written as PNG.
        samples: draw so many looks of each volume from the mapping network, and write their mean; 0: the reference's.
        uncertainty: also write their standard deviation, beside the volume.
        part: (k, n): every n-th case, starting with the k-th; parts never overlap.
        originals: further folders that must not be written into (where links of the dataset lead).
        keep_going: leave out cases with problems instead of refusing to start.
        overwrite: make volumes again that exist in the output folder.

    Raises:
        AttclError: everything that is wrong, together.
    """
    places = Places(dataset, output, naming)
    _refuse_output(places, (dataset.root, *originals))
    _refuse_samples(dataset, samples, uncertainty=uncertainty)
    usable = [weights] if fallback is None else [weights, fallback]
    _refuse_looks(usable, samples)
    _refuse_naming(dataset, naming, uncertainty=uncertainty)
    how = _how(slices, samples, uncertainty=uncertainty)
    modal_list = dataset.by_frequency()
    problems: list[AttclError] = []
    existing: list[AttclError] = []
    jobs: list[Job] = []
    present: dict[str, dict[str, tuple[PurePosixPath, ...]]] = {}
    for case in dataset.cases[part[0] - 1 :: part[1]]:
        wanted = [name for name in dataset.missing(case) if not targets or name in targets]
        served = fallback is None or _can_make(weights, case, wanted, modal_list)
        job = Job(case, (), {}, weights if served or fallback is None else fallback)
        outputs: dict[str, tuple[PurePosixPath, ...]] = {}
        for target in wanted:
            problems += _escapes(output, places.files(case, target)[0])
            missing = _missing_files(places, case, target, slices, overwrite=overwrite)
            existing += _existing_problems(places, job, target, how, overwrite=overwrite)
            if missing is None:
                present.setdefault(case.id, {})[target] = places.files(case, target)
            else:
                outputs[target] = missing
        if outputs:
            sources = _sources_of(job.weights, case, modal_list)
            jobs.append(replace(job, sources=sources, outputs=outputs))
    problems += fold(existing, _same_making)
    problems += _synthetic_sources(dataset, jobs)
    sound, failed, found = _sound(dataset, jobs, slices, fallback, keep_going=keep_going)
    problems += found
    checked = {job.case.id for job in jobs}
    unplanned = {name: own for name, own in dataset.wrong.items() if name not in checked}
    if part[0] == 1 and keep_going:
        failed |= {name: own[0] for name, own in unplanned.items()}
    elif part[0] == 1:
        problems += [problem for own in unplanned.values() for problem in own]
    if not problems:
        problems += _no_room(dataset, output, sound)
    raise_all(problems)
    return Plan(
        dataset=dataset,
        output=output,
        weights=weights,
        modal_list=modal_list,
        jobs=tuple(sound),
        present=present,
        slices=slices,
        failed=failed,
        samples=samples,
        uncertainty=uncertainty,
        naming=naming,
        fallback=fallback,
    )


def source_of(case: Case, modal_list: Sequence[str]) -> str:
    """What a case's missing volumes are made from: the first modality of the list that it has."""
    return next(name for name in modal_list if name in case.files)


def uncertainty_file(file: PurePosixPath) -> PurePosixPath:
    """Where the standard deviation beside a volume goes: under a name that no layout takes for an image."""
    ending = ending_of(file)
    return file.with_name(file.name.removesuffix(ending) + "_uncertainty" + ending)


def escape(path: Path, output: Path) -> AttclError:
    return AttclError(
        f"{path}: leads out of {output} through a link, expected a place inside",
        "remove the link, or choose another --cpl",
    )


def _sound(
    dataset: Dataset,
    jobs: Sequence[Job],
    slices: tuple[int, int] | None,
    fallback: Weights | None,
    *,
    keep_going: bool,
) -> tuple[list[Job], dict[str, AttclError], list[AttclError]]:
    """The jobs that can be done; of `keep_going` why others cannot, by case, else all that is wrong with them."""
    lacking = {job.case.id: _lacking(job.weights, [job], fallback) for job in jobs}
    problems: list[AttclError] = []
    if not keep_going or all(lacking.values()):  # told together, a line for many cases
        for used in dict.fromkeys(job.weights.sha256 for job in jobs):
            own = [job for job in jobs if job.weights.sha256 == used]
            problems += _lacking(own[0].weights, own, fallback)
        lacking = {}
    sound: list[Job] = []
    failed: dict[str, AttclError] = {}
    for job in jobs:
        found = (
            lacking.get(job.case.id)
            or check_case(dataset, job.case, values=True)
            or _beyond(dataset, job.case, slices)
        )
        if found and keep_going:
            failed[job.case.id] = found[0]
            continue
        problems += found
        sound.append(job)
    return sound, failed, problems


def _missing_files(
    places: Places, case: Case, target: str, slices: tuple[int, int] | None, *, overwrite: bool
) -> tuple[PurePosixPath, ...] | None:
    """The files of a volume that are to be written; None where all are there (Algorithm 1's path check).

    Files appear whole, so one that exists is complete.
    """
    whole = places.files(case, target)
    files = whole[slices[0] : slices[1]] if slices and places.dataset.layout.sliced else whole
    if overwrite:
        return files
    missing = tuple(file for file in files if not (places.output / file).exists())
    return missing if missing or not files else None


def _sources_of(weights: Weights, case: Case, modal_list: Sequence[str]) -> tuple[str, ...]:
    """Algorithm 1's source, or all that the case has and the weights know, in the dataset's order."""
    if METHODS[weights.info.settings.method].accepts == "many":
        known = tuple(name for name in sorted(case.files) if name in weights.info.modalities)
        if known:
            return known
    return (source_of(case, modal_list),)


def _synthetic_sources(dataset: Dataset, jobs: Sequence[Job]) -> list[AttclError]:
    """What attcl made is no source: a volume made of it would be called the patient's own."""
    found = [
        f"{name} of {job.case.id}"
        for job in jobs
        for name in dataset.synthetic(job.case, job.sources)
    ]
    if not found:
        return []
    told = f"{dataset.root}: {some(found)}: synthetic, as the label says, expected real sources"
    return [AttclError(told, "complete the originals: --ori ORIGINALS")]


def _can_make(
    weights: Weights, case: Case, targets: Sequence[str], modal_list: Sequence[str]
) -> bool:
    """Whether the weights make all these targets from what the case has."""
    info = weights.info
    needs = METHODS[info.settings.method].needs(info.settings, info.modalities)
    known = all(name in info.modalities for name in _sources_of(weights, case, modal_list))
    return known and all(
        target in needs and set(needs[target]) <= set(case.files) for target in targets
    )


def _refuse_output(places: Places, originals: Sequence[Path]) -> None:
    for folder in (places.output, places.records):
        refuse_inside(folder, originals, flag="--cpl")
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"--cpl: {folder} is a file, expected a folder", "choose another --cpl"
            )
    _refuse_mixture(places)


def _lacking(weights: Weights, jobs: Sequence[Job], fallback: Weights | None) -> list[AttclError]:
    """What the weights would have to know to do their jobs: a problem for each modality, and each target."""
    info = weights.info
    many = METHODS[info.settings.method].accepts == "many"
    needed = Counter(name for job in jobs for name in (*job.sources, *job.outputs))
    known = ", ".join(info.modalities)
    problems = [
        AttclError(
            f"{weights.path}: knows {known}, expected {name} too ({count} cases need it)",
            "train on data that has it, or choose other modalities with --target",
        )
        for name, count in sorted(needed.items())
        if name not in info.modalities
    ]
    if not many:
        return problems
    needs = METHODS[info.settings.method].needs(info.settings, info.modalities)
    hint = (
        "name other weights for these cases: --fallback WEIGHTS, or do only the others: --keep-going"
        if fallback is None
        else "choose another --fallback, or do only the others: --keep-going"
    )
    unmade: dict[str, list[str]] = {}
    for job in jobs:
        for target in job.outputs:
            if target not in info.modalities:
                continue
            absent = sorted(set(needs.get(target, ())) - set(job.case.files))
            if target not in needs:
                unmade.setdefault(f"makes {', '.join(needs)}, not {target}", []).append(job.case.id)
            elif absent:
                told = f"makes {target} from {', '.join(needs[target])}, but cases lack {', '.join(absent)}"
                unmade.setdefault(told, []).append(job.case.id)
    return problems + [
        AttclError(
            f"{weights.path}: {told}, expected a model for these ({len(cases)}): {some(dict.fromkeys(cases))}",
            hint,
        )
        for told, cases in sorted(unmade.items())
    ]


def _beyond(dataset: Dataset, case: Case, slices: tuple[int, int] | None) -> list[AttclError]:
    if slices is None:
        return []
    paths = dataset.paths(case, next(iter(case.files)))
    depth = len(paths) if dataset.layout.sliced else volumes.read_grid(paths).axial_shape[0]
    if slices[0] < depth:
        return []
    return [
        UsageError(
            f"--slices: {slices[0]}:{slices[1]}, but {case.id} has {depth} slices, expected some of these",
            "slices are counted from 0, at the feet",
        )
    ]


def _existing_problems(
    places: Places, job: Job, target: str, how: Mapping[str, Any], *, overwrite: bool
) -> list[AttclError]:
    """A result of an earlier run counts as done only if it is whole and was made in the same way.

    What attcl did not make is never replaced, not even with --overwrite: it may be an original.
    """
    files = (places.output / file for file in places.files(job.case, target))
    present = [file for file in files if file.exists()]
    if not present:
        return []
    weights, label = job.weights, places.label(job.case, target)
    if not label.is_file():
        return [
            AttclError(
                f"{present[0]}: has no label {label.name}, expected a file made by attcl",
                "choose another --cpl, or move that file away",
            )
        ]
    if overwrite:
        return []
    try:
        volumes.read_grid(present)
    except AttclError as error:
        hint = "it is no file that attcl left behind; remove it, or make it again with --overwrite"
        return [AttclError(error.message, hint)]
    told = _made_otherwise(read_label(label), weights, how)
    again = "choose another --cpl, or make it again with --overwrite"
    return [AttclError(f"{present[0]}: {told}", again)] if told else []


def _made_otherwise(document: Mapping[str, Any], weights: Weights, how: Mapping[str, Any]) -> str:
    """How the volume of this label was made, if not as this run would make it; else ""."""
    made_by = str(document.get("weights", {}).get("sha256"))
    if made_by != weights.sha256:
        named = document.get("weights", {}).get("name")
        return f"made by weights {made_by[:12]} ({named}), expected {weights.sha256[:12]} ({weights.name})"
    for name, wanted in how.items():
        if document.get(name) != wanted:
            return f"made with --{name} {document.get(name)}, expected {wanted}"
    return ""


def _same_making(problem: AttclError) -> str:
    """What volumes have in common that were made in another way; else the problem alone."""
    said = problem.message.split(": ", 1)[-1]
    return said if said.startswith("made ") else problem.message


def _escapes(output: Path, file: PurePosixPath) -> list[AttclError]:
    path = output / file
    return [escape(path, output)] if path.is_symlink() or not is_within(path.parent, output) else []


def _no_room(dataset: Dataset, output: Path, jobs: Sequence[Job]) -> list[AttclError]:
    needed = 0.0
    for job in jobs:
        shape = volumes.read_grid(dataset.paths(job.case, job.source)).shape
        share = 1 if dataset.extension_of(job.case) == ".nii" else _COMPRESSED_SHARE
        needed += float(np.prod(shape, dtype=np.int64)) * 2 * share * len(job.outputs)
    free = free_bytes(output)
    if free >= needed:
        return []
    return [
        AttclError(
            f"{output}: {free / 1e9:.2f} GB free, expected about {needed / 1e9:.2f} GB",
            "free some space or choose another --cpl",
        )
    ]


def _refuse_samples(dataset: Dataset, samples: int, *, uncertainty: bool) -> None:
    if uncertainty and samples < 2:  # noqa: PLR2004
        raise UsageError(
            f"--uncertainty: of {samples} samples, expected 2 or more", "add --samples 10"
        )
    if uncertainty and dataset.layout.sliced:
        raise UsageError("--uncertainty: of PNG slices, expected NIfTI volumes", "leave it out")


def _refuse_looks(used: Sequence[Weights], samples: int) -> None:
    for weights in used:
        method = weights.info.settings.method
        if samples and not METHODS[method].styled:
            raise UsageError(
                f"--samples: {samples} with weights of {method}, which has one look a volume, expected 0",
                "leave it out, or choose weights of attcl-gan with -w",
            )


def _refuse_naming(dataset: Dataset, naming: Layout | None, *, uncertainty: bool) -> None:
    """A challenge takes NIfTI volumes of its own cases and modalities, and nothing else."""
    if naming is None:
        return
    flag = f"--layout {naming.name}"
    if dataset.layout.sliced:
        raise UsageError(f"{flag}: of PNG slices, expected NIfTI volumes", "leave it out")
    if uncertainty:
        raise UsageError(
            f"{flag}: with --uncertainty, expected volumes alone", "leave one of them out"
        )
    pattern = re.compile(naming.fields["case"])
    strange = [case.id for case in dataset.cases if not pattern.fullmatch(case.id)]
    if strange:
        raise UsageError(
            f"{flag}: case {strange[0]!r} ({len(strange)} of {len(dataset.cases)}), "
            "expected cohort-ID-timepoint such as BraTS-GLI-00001-000",
            "name the cases as the challenge does, or leave --layout out",
        )
    unknown = [name for name in dataset.modalities if name not in naming.tokens]
    if unknown:
        raise UsageError(
            f"{flag}: modality {unknown[0]}, expected {', '.join(naming.tokens)}", "leave it out"
        )


def _refuse_mixture(places: Places) -> None:
    """A challenge's folder holds its volumes and nothing else: neither kind of output goes into the other's folder."""
    output, naming = places.output, places.naming
    if naming is None:
        record = Places(places.dataset, output, next(iter(SUBMISSIONS.values()))).records
        layout = read_record(record).get("config", {}).get("layout")
        if layout in SUBMISSIONS and output.is_dir():
            raise UsageError(
                f"--cpl: {output} holds what --layout {layout} wrote, expected another folder for the dataset's names",
                "choose another --cpl",
            )
        return
    pattern = naming.pattern()
    if output.is_dir():
        strange = sorted(
            path.name
            for path in output.iterdir()
            if not pattern.fullmatch(path.name) and not path.name.startswith(".")  # half written
        )
        if strange:
            raise UsageError(
                f"--cpl: {output} holds {strange[0]}, expected a folder for {naming.name} alone",
                "choose another --cpl",
            )


def _how(slices: tuple[int, int] | None, samples: int, *, uncertainty: bool) -> dict[str, Any]:
    said = list(slices) if slices else "all"
    return {"slices": said, "samples": samples, "uncertainty": uncertainty}
