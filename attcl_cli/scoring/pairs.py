"""Which volumes are compared with which: every hidden truth beside the completed volume, or every direction.

Looks at names and headers only, and refuses to leave a volume out silently; what the scores are is `score`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset, read_label
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.splits import Splits
from attcl_cli.errors import AttclError, UsageError, raise_all

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Target:
    """One volume to score; `made` is empty where it is missing, or comes from a network (`--directions`)."""

    modality: str
    truth: tuple[Path, ...]
    made: tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """All volumes of one case that were made from the same sources.

    Attributes:
        case: its id.
        sources: the modalities that they were made from, the most frequent one first.
        present: what the case has, modality -> files; the sources are among them.
        targets: what is scored.
        segmentation: the label map; empty where there is none.
    """

    case: str
    sources: tuple[str, ...]
    present: Mapping[str, tuple[Path, ...]]
    targets: tuple[Target, ...]
    segmentation: tuple[Path, ...]

    @property
    def source(self) -> str:
        """The source that stands for all where one is expected: a copy of it is what costs nothing."""
        return self.sources[0]

    @property
    def made_from(self) -> str:
        """All sources, as tables name them: `flair`, or `flair+t1+t2`."""
        return "+".join(self.sources)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        jobs: a case and source each.
        missing: (case, modality) that should have been completed and is not there.
        truth: the folder of the truths.
        weights: SHA-256 -> name of the weights that the labels beside the completed volumes tell of.
    """

    jobs: tuple[Job, ...]
    missing: tuple[tuple[str, str], ...]
    truth: Path
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def volumes(self) -> int:
        """How many volumes are scored."""
        return sum(len(job.targets) for job in self.jobs)


def plan(
    data: Dataset,
    truth: Dataset,
    output: Path,
    splits: Splits | None,
    *,
    split: str = "all",
    allow_missing: bool = False,
) -> Plan:
    """Lists every hidden truth and the completed volume that belongs to it; checks that all are there and fit.

    Args:
        data: the incomplete dataset.
        truth: the complete one.
        output: the completed folder.
        splits: what was hidden; None: every volume that `truth` has and `data` has not.
        split: one of `SPLITS`.
        allow_missing: count missing volumes instead of refusing.

    Raises:
        AttclError: everything that is wrong, together.
    """
    modal_list = data.by_frequency()
    jobs: list[Job] = []
    missing: list[tuple[str, str]] = []
    weights: dict[str, str] = {}
    if not output.is_dir():
        raise AttclError(
            f"{output}: no such folder, expected the completed volumes",
            "name it with --cpl, or make it with attcl complete",
        )
    problems: list[AttclError] = []
    for case, real, hidden in _hidden(data, truth, splits, split, problems):
        by_sources: dict[tuple[str, ...], list[Target]] = {}
        for name in hidden:
            files = tuple(output / file for file in data.place(case, name))
            if not all(file.is_file() for file in files):
                missing.append((case.id, name))
                continue
            target = Target(name, truth.paths(real, name), files)
            problems += _unlike(target)
            label = read_label(output / data.place_label(case, name))
            if made_by := label.get("weights"):
                weights[made_by["sha256"]] = made_by["name"]
            sources = _sources(label, case, modal_list)
            by_sources.setdefault(sources, []).append(target)
        present = {name: data.paths(case, name) for name in case.files}
        jobs += [
            Job(case.id, sources, present, tuple(targets), _segmentation(truth, real))
            for sources, targets in by_sources.items()
        ]
    if missing and not allow_missing:
        case_id, name = missing[0]
        problems.append(
            AttclError(
                f"{output}: {name} of {case_id} was not completed"
                + (f", nor were {len(missing) - 1} more" if len(missing) > 1 else "")
                + f", expected all volumes hidden in {'any' if split == 'all' else f'the {split}'} split",
                "finish attcl complete (a challenge's flat folder is not read: complete into another --cpl, too), "
                "or count them with --allow-missing",
            )
        )
    raise_all(problems)
    if not jobs and not missing:
        raise AttclError(
            f"{data.root}: nothing is hidden in {'any' if split == 'all' else f'the {split}'} split, "
            "expected truths to compare with",
            "choose another --split (train, val, test or all)",
        )
    return Plan(tuple(jobs), tuple(missing), truth.root, weights)


def plan_directions(truth: Dataset, splits: Splits | None, *, split: str = "all") -> Plan:
    """Every ordered pair of modalities that a case really has (the paper's Table 2).

    Args:
        truth: the complete dataset.
        splits: which cases belong to which split; None: all are scored.
        split: one of `SPLITS`.

    Raises:
        AttclError: no case has two modalities.
    """
    jobs = []
    chosen = _chosen(splits, split)
    for case in truth.cases:
        if chosen is not None and case.id not in chosen:
            continue
        paths = {name: truth.paths(case, name) for name in case.files}
        for source, files in paths.items():
            others = tuple(Target(name, paths[name], ()) for name in paths if name != source)
            if others:
                own = {source: files}
                jobs.append(Job(case.id, (source,), own, others, _segmentation(truth, case)))
    if not jobs:
        raise AttclError(
            f"{truth.root}: no case of the {split} split has two modalities, expected pairs",
            "choose another --split, or name the complete dataset with --truth",
        )
    return Plan(tuple(jobs), (), truth.root)


def _chosen(splits: Splits | None, split: str) -> dict[str, tuple[str, ...]] | None:
    """Case -> what was hidden of it; None where nobody wrote it down."""
    if split not in SPLITS:
        raise UsageError(
            f"--split: {split!r}, expected one of {', '.join(SPLITS)}",
            "--split test is the default",
        )
    if splits is None:
        if split != "all":
            raise UsageError(
                f"--split: {split}, but no splits.json says which cases these are, expected all",
                "leave --split out: all cases are scored",
            )
        return None
    names = splits.splits if split == "all" else (split,)
    return {item.case: item.hidden for name in names for item in splits.splits[name]}


def _hidden(
    data: Dataset, truth: Dataset, splits: Splits | None, split: str, problems: list[AttclError]
) -> Iterator[tuple[Case, Case, Sequence[str]]]:
    """(incomplete case, true case, what is hidden); what should be there and is not goes to `problems`."""
    ours = {case.id: case for case in data.cases}
    theirs = {case.id: case for case in truth.cases}
    chosen = _chosen(splits, split)
    if data.root.resolve() == truth.root.resolve():
        raise UsageError(
            f"--truth: {truth.root} is the incomplete dataset itself, expected the complete one",
            "name the folder that holds the hidden volumes",
        )
    if not ours.keys() & theirs.keys():
        raise UsageError(
            f"--truth: {truth.root} holds none of the {len(ours)} cases of {data.root}, expected the same patients",
            "name the complete dataset",
        )
    if chosen is None:  # what the truth has and the data has not
        for case_id in sorted(ours.keys() & theirs.keys()):
            case, real = ours[case_id], theirs[case_id]
            yield case, real, [name for name in data.missing(case) if name in real.files]
        return
    for case_id, hidden in chosen.items():
        if case_id not in ours:
            problems.append(
                AttclError(
                    f"{data.root}: no case {case_id}, expected every case that splits.json lists",
                    "run attcl prepare-splits again",
                )
            )
            continue
        found = theirs[case_id].files if case_id in theirs else {}
        lost = [name for name in hidden if name not in found]
        problems += [
            AttclError(
                f"{truth.root}: no {name} of {case_id}, expected the truth that was hidden",
                "name the complete dataset with --truth",
            )
            for name in lost
        ]
        if not lost:
            yield ours[case_id], theirs[case_id], hidden


def _unlike(target: Target) -> list[AttclError]:
    """A completed volume must be whole, and lie on its truth's grid."""
    hint = "remove this file and run attcl complete again"
    try:
        made = volumes.read_grid(target.made)
    except AttclError as error:
        return [AttclError(error.message, hint)]
    difference = made.differs_from(volumes.read_grid(target.truth))
    if not difference:
        return []
    told = f"{target.made[0]}: {difference} of the truth {target.truth[0]}, expected the same grid"
    return [AttclError(told, hint)]


def _sources(label: Mapping[str, Any], case: Case, modal_list: Sequence[str]) -> tuple[str, ...]:
    """What a completed volume was made from, by falling frequency; where no label says it, Algorithm 1's source."""
    told = label.get("sources", [label.get("source", {})])
    named = {item.get("modality") for item in told}
    there = [name for name in modal_list if name in case.files]
    return tuple(name for name in there if name in named) or (there[0],)


def _segmentation(truth: Dataset, case: Case | None) -> tuple[Path, ...]:
    return truth.paths(case, SEGMENTATION) if case is not None and case.segmentation else ()
