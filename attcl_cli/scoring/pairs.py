"""The pairs to compare: every hidden volume's truth with the completed volume, or every direction.

Looks at names and headers only, and leaves no volume out silently; how pairs are scored is left to `rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from attcl_cli.data import derivative, label_maps, volumes
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import (
    Case,
    Dataset,
    guides_in,
    makers_in,
    read_grids,
    read_side_car,
    sources_in,
    weights_in,
)
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.splits import Splits
from attcl_cli.data.synthetic import no_truths, notes_of_slices, slices_made, sources_gone
from attcl_cli.data.unchanged import State, look_at
from attcl_cli.errors import AttclError, UsageError, counted, fold, raise_all, some

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Pair:
    """A true volume and its prediction.

    Attributes:
        modality: of both.
        truth: the files of the true volume.
        prediction: the files of the predicted one; empty if a network makes it (`--directions`).
        slices: first and stop of those that it was made in alone; None: all.
    """

    modality: str
    truth: tuple[Path, ...]
    prediction: tuple[Path, ...]
    slices: tuple[int, int] | None = None


@dataclass(frozen=True)
class CasePairs:
    """All pairs of one case whose predictions were made from the same sources.

    Attributes:
        case: its id.
        sources: the modalities that they were made from, the most frequent one first.
        present: what the case has, modality -> files; the sources are among them.
        pairs: what is scored.
        segmentation: the label map; empty if there is none.
        background: what is background in all of these volumes (`Dataset.background`).
        seen: all of these files as they were before they were checked.
    """

    case: str
    sources: tuple[str, ...]
    present: Mapping[str, tuple[Path, ...]]
    pairs: tuple[Pair, ...]
    segmentation: tuple[Path, ...]
    background: BackgroundOption = "auto"
    seen: Mapping[Path, State] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The source that stands for all if one is needed."""
        return self.sources[0]

    @property
    def made_from(self) -> str:
        """All sources, as tables name them: `flair`, or `flair+t1+t2`."""
        return "+".join(self.sources)


@dataclass(frozen=True)
class Comparison:
    """What is compared with what.

    Attributes:
        cases: one entry per case and sources.
        missing: (case, modality) that should have been completed and is not there.
        truth: the folder of the truths.
        weights: SHA-256 -> name of the weights that the side-cars of the completed volumes name.
        made_by: case id -> SHA-256 of the weights that made its volumes; empty if no side-car names them.
        seen: ids of the cases of which the patient is a training patient of the weights.
        learned: whether it is known which patients the weights were trained on.
        caveat: how many of the patients these are, in words; "" if none is.
        notes: what the side-cars of the completed volumes say that bears on their scores.
    """

    cases: tuple[CasePairs, ...]
    missing: tuple[tuple[str, str], ...]
    truth: Path
    weights: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, frozenset[str]] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    learned: bool = True
    caveat: str = ""
    notes: tuple[str, ...] = ()

    @property
    def training_patients(self) -> list[str] | None:
        """Return `seen`; None if it is not known."""
        return list(self.seen) if self.learned else None

    @property
    def volumes(self) -> int:
        """How many volumes are scored."""
        return sum(len(case.pairs) for case in self.cases)

    @property
    def by_direction(self) -> bool:
        """Whether networks translate real volumes in every direction, instead of what is completed being read."""
        return any(not pair.prediction for case in self.cases for pair in case.pairs)

    @property
    def targets(self) -> tuple[str, ...]:
        """The modalities that are scored, by name."""
        return tuple(sorted({pair.modality for case in self.cases for pair in case.pairs}))


def plan_comparison(
    data: Dataset,
    truth: Dataset,
    output: Path,
    splits: Splits | None,
    *,
    split: str = "all",
    allow_missing: bool = False,
) -> Comparison:
    """Pair every hidden volume's truth with the completed volume; check that all are there and fit.

    Args:
        data: the incomplete dataset.
        truth: the complete one.
        output: the completed folder.
        splits: what was hidden; None: every volume that `truth` has and `data` has not.
        split: one of `SPLITS`.
        allow_missing: count missing volumes instead of raising.

    Raises:
        AttclError: everything that is wrong, together.
    """
    data = derivative.named_in(data, output)
    modal_list = data.by_frequency()
    cases: list[CasePairs] = []
    missing: list[tuple[str, str]] = []
    weights: dict[str, str] = {}
    makers_of: dict[str, frozenset[str]] = {}
    labels: list[dict[str, Any]] = []
    if not output.is_dir():
        raise AttclError(
            f"{output}: no such folder, expected the completed volumes",
            "name it with --cpl, or make it with attcl complete",
            code="no-completed-folder",
        )
    problems: list[AttclError] = []
    strange: list[AttclError] = []
    for case, true_case, hidden in _hidden_volumes(data, truth, splits, split, problems):
        by_sources: dict[tuple[str, ...], list[Pair]] = {}
        present = {modality: data.paths(case, modality) for modality in case.files}
        seen = look_at(chain(*present.values(), truth.paths(true_case, SEGMENTATION)))
        for modality in hidden:
            files = tuple(output / file for file in data.place(case, modality))
            if not all(file.is_file() for file in files):
                missing.append((case.id, modality))
                continue
            label = read_side_car(output / data.place_side_car(case, modality))
            pair = Pair(modality, truth.paths(true_case, modality), files, slices_made(label))
            seen |= look_at((*pair.truth, *pair.prediction))
            problems += _misfits(pair)
            strange += _sources_gone(label, case, files[0])
            labels.append(label)
            weights |= weights_in(label)
            makers_of[case.id] = makers_of.get(case.id, frozenset()) | makers_in(label)
            by_sources.setdefault(_sources_of(label, case, modal_list), []).append(pair)
        segmentation = _segmentation(truth, true_case, problems)
        cases += [
            CasePairs(case.id, sources, present, tuple(pairs), segmentation, data.background, seen)
            for sources, pairs in by_sources.items()
        ]
    problems += fold(strange, lambda problem: problem.message.split(": ", 1)[-1])
    if missing and not allow_missing:
        wanted = _wanted(data, truth, splits, split)
        problems.append(_not_completed(output, missing, wanted))
    raise_all(problems)
    if not cases and not missing:
        raise AttclError(
            f"{data.root}: there are no {_wanted(data, truth, splits, split)}, "
            "expected truths to compare with",
            "choose another --split (train, val, test or all)"
            if splits is not None
            else "name the folder of the complete dataset with --truth",
            code="nothing-hidden",
        )
    return Comparison(
        tuple(cases),
        tuple(missing),
        truth.root,
        weights,
        makers_of,
        notes=(
            *notes_of_slices(labels),
            *(_without_truth(data, truth, output) if splits is None else ()),
        ),
    )


def plan_directions(truth: Dataset, splits: Splits | None, *, split: str = "all") -> Comparison:
    """Pair the modalities that a case really has, each with each other one as source (the paper's Table 2).

    Args:
        truth: the complete dataset.
        splits: which cases belong to which split; None: all are scored.
        split: one of `SPLITS`.

    Raises:
        AttclError: no case has two modalities, names leave open which file is meant, a volume is synthetic, or label
            maps do not fit their case.
    """
    cases = []
    problems: list[AttclError] = []
    hidden = _hidden_by_case(splits, split)
    for case in truth.cases:
        if hidden is not None and case.id not in hidden:
            continue
        files = {modality: truth.paths(case, modality) for modality in case.files}
        problems += [*truth.wrong.get(case.id, ()), *no_truths(truth, case, case.files)]
        problems += read_grids(files.values())[1]
        seen = look_at(chain(*files.values(), truth.paths(case, SEGMENTATION)))
        segmentation = _segmentation(truth, case, problems)
        for source, of_source in files.items():
            pairs = tuple(Pair(name, paths, ()) for name, paths in files.items() if name != source)
            if pairs:
                present = {source: of_source}
                cases.append(
                    CasePairs(
                        case.id, (source,), present, pairs, segmentation, truth.background, seen
                    )
                )
    raise_all(problems)
    if not cases:
        raise AttclError(
            f"{truth.root}: no case of the {split} split has two modalities, expected pairs",
            "choose another --split, or name the complete dataset with --truth",
            code="no-pairs",
        )
    made_by = dict.fromkeys((case.case for case in cases), frozenset[str]())
    return Comparison(tuple(cases), (), truth.root, made_by=made_by)


def _hidden_by_case(splits: Splits | None, split: str) -> dict[str, tuple[str, ...]] | None:
    """Return case -> its hidden modalities, for the cases of a split; None without `splits.json`."""
    if split not in SPLITS:
        raise UsageError(
            f"--split: {split!r}, expected one of {', '.join(SPLITS)}",
            "--split test is the default",
            code="unknown-split",
        )
    if splits is None:
        if split != "all":
            raise UsageError(
                f"--split: {split}, but no splits.json says which cases these are, expected all",
                "leave --split out: all cases are scored",
                code="no-splits",
            )
        return None
    names = splits.splits if split == "all" else (split,)
    return {item.case: item.hidden for name in names for item in splits.splits[name]}


def _hidden_volumes(
    data: Dataset, truth: Dataset, splits: Splits | None, split: str, problems: list[AttclError]
) -> Iterator[tuple[Case, Case, Sequence[str]]]:
    """Yield (incomplete case, true case, hidden modalities); add what should be there and is not to `problems`."""
    incomplete = {case.id: case for case in data.cases}
    complete = {case.id: case for case in truth.cases}
    hidden_by_case = _hidden_by_case(splits, split)
    if data.root.resolve() == truth.root.resolve():
        raise UsageError(
            f"--truth: {truth.root} is the incomplete dataset itself, expected the complete one",
            "name the folder that holds the hidden volumes",
            code="truth-is-incomplete",
        )
    common = sorted(incomplete.keys() & complete.keys())
    if not common:
        raise UsageError(
            f"--truth: {truth.root} holds none of the {len(incomplete)} cases of {data.root}, "
            "expected the same patients",
            "name the complete dataset",
            code="truth-of-others",
        )
    if hidden_by_case is None:
        for case_id in common:
            case, true_case = incomplete[case_id], complete[case_id]
            wrong = _wrong_names(data, truth, case_id) if data.missing(case) else []
            if wrong:
                problems += wrong
                continue
            names = [name for name in data.missing(case) if name in true_case.files]
            problems += no_truths(truth, true_case, names)
            if names:
                yield case, true_case, names
        return
    for case_id, hidden in hidden_by_case.items():
        if case_id not in incomplete:
            problems.append(
                AttclError(
                    f"{data.root}: no case {case_id}, expected every case that splits.json lists",
                    "run attcl prepare-splits again",
                    code="case-missing",
                )
            )
            continue
        if not hidden:
            continue
        wrong = _wrong_names(data, truth, case_id)
        if wrong:  # which file is meant is not clear: more would only confuse
            problems += wrong
            continue
        true_files = complete[case_id].files if case_id in complete else {}
        without_truth = [modality for modality in hidden if modality not in true_files]
        problems += [
            AttclError(
                f"{truth.root}: no {modality} of {case_id}, expected the truth that was hidden",
                "name the complete dataset with --truth",
                code="truth-missing",
            )
            for modality in without_truth
        ]
        if not without_truth:
            problems += no_truths(truth, complete[case_id], hidden)
            yield incomplete[case_id], complete[case_id], hidden


def _without_truth(data: Dataset, truth: Dataset, output: Path) -> list[str]:
    """Name the completed volumes that are not scored, since the complete dataset does not have them."""
    complete = {case.id: case.files for case in truth.cases}
    left = [
        f"{modality} of {case.id}"
        for case in data.cases
        for modality in data.missing(case)
        if modality not in complete.get(case.id, {})
        and all((output / file).is_file() for file in data.place(case, modality))
    ]
    if not left:
        return []
    return [
        f"{truth.root} has no truth for {counted(len(left), 'completed volume')} ({some(left)}), not scored"
    ]


def _wrong_names(data: Dataset, truth: Dataset, case_id: str) -> list[AttclError]:
    """Return what is wrong with the names of a case that is compared."""
    return [*data.wrong.get(case_id, ()), *truth.wrong.get(case_id, ())]


def _misfits(pair: Pair) -> list[AttclError]:
    """Return what is wrong with a completed volume: it must be whole, and lie on its truth's grid."""
    hint = "remove this file and run attcl complete again"
    try:
        grid = volumes.read_grid(pair.prediction)
    except AttclError as error:
        return [AttclError(error.message, hint, code="completed-unreadable")]
    difference = grid.differs_from(volumes.read_grid(pair.truth))
    if not difference:
        return []
    message = (
        f"{pair.prediction[0]}: {difference} of the truth {pair.truth[0]}, expected the same grid"
    )
    return [AttclError(message, hint, code="grid-differs")]


def _not_completed(output: Path, missing: Sequence[tuple[str, str]], wanted: str) -> AttclError:
    case, modality = missing[0]
    others = f", nor were {len(missing) - 1} more" if len(missing) > 1 else ""
    return AttclError(
        f"{output}: {modality} of {case} was not completed{others}, expected all {wanted}",
        "finish attcl complete (a challenge's flat folder is not read: complete into another --cpl, too), "
        "or count them with --allow-missing",
        code="not-completed",
    )


def _wanted(data: Dataset, truth: Dataset, splits: Splits | None, split: str) -> str:
    """Return which volumes are to be scored, in words."""
    if splits is None:
        return f"volumes that {data.root} lacks and {truth.root} has"
    return f"volumes hidden in {'any split' if split == 'all' else f'the {split} split'}"


def _sources_of(label: Mapping[str, Any], case: Case, modal_list: Sequence[str]) -> tuple[str, ...]:
    """Return what a completed volume was made from, by falling frequency; without a label Algorithm 1's source."""
    named = {item.get("modality") for item in sources_in(label)}
    present = [modality for modality in modal_list if modality in case.files]
    return tuple(modality for modality in present if modality in named) or (present[0],)


def _sources_gone(label: Mapping[str, Any], case: Case, file: Path) -> list[AttclError]:
    """Return a problem if a completed volume was made from a modality that its case does not have."""
    named = [it["modality"] for it in (*sources_in(label), *guides_in(label)) if it.get("modality")]
    gone = sources_gone(named, case)
    if not gone:
        return []
    hint = "complete this dataset into another --cpl, or again with attcl complete --overwrite"
    return [AttclError(f"{file}: {gone}", hint, code="made-in-another-way")]


def _segmentation(truth: Dataset, case: Case, problems: list[AttclError]) -> tuple[Path, ...]:
    """Return the files of a case's label map; add what is wrong with it to `problems`."""
    if not case.segmentation:
        return ()
    paths = truth.paths(case, SEGMENTATION)
    problem = label_maps.check_labels(paths, truth.paths(case, next(iter(case.files))))
    if problem is not None:
        problems.append(problem)
    return paths
