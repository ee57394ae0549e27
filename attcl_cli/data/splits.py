"""Cases -> train, val and test, and what is hidden in each: the scenarios and the content of `splits.json`.

Knows patients and names, no voxel; the folder of links is left to `tree`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from attcl_cli.data.dataset import SPLITS_FILE, Case, Dataset, Source
from attcl_cli.data.layouts import LAYOUTS, canonical
from attcl_cli.data.patients import leaks
from attcl_cli.data.records import SPLITS as SPLITS  # noqa: PLC0414 - part of what splits are
from attcl_cli.data.records import SPLITS_VERSION, splits_record
from attcl_cli.data.vocabulary import VOCABULARY_FILE
from attcl_cli.documents import clipped
from attcl_cli.errors import AttclError, UsageError, counted, nearest, raise_all, some
from attcl_cli.files import read_json, read_toml

SCHEMA_VERSION = SPLITS_VERSION
DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)
# The paper's own cut of its 243 cases. No rounding rule gives it from 70 / 10 / 20 %, so it is written down (Table 1).
PAPER_SIZES = {243: (170, 23, 50)}

# Scenario -> groups of patients of (nearly) equal size, and what each group lacks (Section 4.1, Table 1).
RATIOS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "ratio1": (("t1ce", "t2"), ("t1", "t2"), ("t1", "t1ce")),
    "ratio2": (("t2",), ("t1ce",)),
    "ratio3": ((), ("t2",)),
}


@dataclass(frozen=True)
class SplitCase:
    """What remains of a case, and what is hidden from it."""

    case: str
    present: tuple[str, ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """The content of `splits.json`.

    Attributes:
        source: the folder that the data tree was made from.
        layout: its layout's name.
        ratio: the scenario's name.
        seed: the order of the patients was drawn with it.
        modalities: all modalities of the dataset.
        splits: `train`, `val`, `test` -> their cases.
        bids_filter: which of several files of a modality in BIDS was meant.
    """

    source: str
    layout: str
    ratio: str
    seed: int
    modalities: tuple[str, ...]
    splits: Mapping[str, tuple[SplitCase, ...]]
    schema_version: int = SCHEMA_VERSION
    bids_filter: tuple[str, ...] = ()

    def names(self, split: str) -> tuple[str, ...]:
        """Return the ids of a split's cases."""
        return tuple(item.case for item in self.splits[split])

    def table(self) -> list[dict[str, Any]]:
        """Return cases and volumes that remain, one row per split (the paper's Table 1)."""
        return [
            {"split": split, "cases": len(items)}
            | {name: sum(name in item.present for item in items) for name in self.modalities}
            for split, items in self.splits.items()
        ]


def make_splits(
    dataset: Dataset,
    *,
    ratio: str = "ratio1",
    sizes: tuple[int, int, int] | None = None,
    fractions: tuple[float, float, float] | None = None,
    subset: Fraction = Fraction(1),
    seed: int = 0,
) -> Splits:
    """Draw the splits and apply the scenario inside each of them.

    Args:
        dataset: the dataset, as complete as it is.
        ratio: a key of `RATIOS`, or the path of a TOML file with `hidden = [["t2"], []]`, one list per group.
        sizes: cases of train, val, test; exclusive with `fractions`.
        fractions: their shares; without both, those of the paper.
        subset: share of the training cases that are kept (BraTS_s: 1/8); val and test stay the same.
        seed: draws the order of the patients.

    Raises:
        UsageError: impossible sizes, an unknown ratio, or a scenario under which no training case keeps a modality.
    """
    name, groups = read_ratio(ratio, dataset.modalities)
    counts = _sizes(len(dataset.cases), sizes, fractions)
    drawn = _draw(dataset.cases, counts, seed)
    if subset != 1:
        keep = int(len(drawn["train"]) * subset)
        if not 0 < subset <= 1 or keep == 0:
            raise UsageError(
                f"--subset: {subset} of {len(drawn['train'])} training cases is {keep}, "
                "expected at least one",
                "for BraTS_s: --subset 1/8",
                code="subset-impossible",
            )
        drawn["train"] = drawn["train"][:keep]
    splits = {split: _hide(cases, groups, dataset.modalities) for split, cases in drawn.items()}
    _require_every_modality(name, splits, dataset)
    return Splits(
        str(dataset.root.resolve()), dataset.layout.name, name, seed, dataset.modalities, splits
    )


def read_ratio(ratio: str, modalities: Sequence[str]) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """Return the name and the groups of a scenario; `ratio` as in `make_splits`."""
    if ratio in RATIOS:
        name, groups = ratio, RATIOS[ratio]
    else:
        path = Path(ratio)
        if path.suffix != ".toml":
            raise UsageError(
                f"--ratio: {ratio!r}, expected {', '.join(RATIOS)} or a .toml file",
                'such a file says: hidden = [["t1ce", "t2"], ["t1"], []]',
                code="unknown-ratio",
            )
        document = read_toml(path, expected="hidden = [[...], ...]")
        name = document.get("name", path.stem)
        hidden = document.get("hidden")
        valid = (
            isinstance(hidden, list)
            and hidden
            and all(
                isinstance(group, list) and all(isinstance(item, str) for item in group)
                for group in hidden
            )
        )
        unknown = sorted(set(document) - {"name", "hidden"})
        if not valid or unknown or not isinstance(name, str):
            near = f"{nearest(unknown[0], ['hidden', 'name'])} " if unknown else ""
            raise UsageError(
                f"{path}: keys {some(map(clipped, sorted(document)))}, "
                "expected hidden = [[...], ...] and, if you like, name",
                f'{near}for example: hidden = [["t1ce", "t2"], ["t1"], []]',
                code="invalid-ratio",
            )
        groups = tuple(tuple(group) for group in document["hidden"])
    try:
        known = tuple(
            tuple(canonical(clipped(item), modalities) for item in group) for group in groups
        )
    except UsageError as error:
        raise UsageError(
            f"--ratio: {clipped(name)} hides a modality that no case has ({error.message})",
            "describe a scenario of the modalities that there are in a TOML file: "
            'hidden = [["t1"], ["t2"]], one list per group of patients, and name it with --ratio',
            code=error.code,
        ) from error
    for group in known:
        if set(group) >= set(modalities):
            raise UsageError(
                f"--ratio: {clipped(name)} hides all of {', '.join(modalities)} from a group, "
                "expected at least one to stay",
                "leave one modality out of that list",
                code="ratio-hides-everything",
            )
    return name, known


def group_sizes(count: int, groups: int) -> list[int]:
    """Divide `count` cases into nearly equal groups, the ceiling first: 170 in 3 -> 57, 57, 56."""
    return [count // groups + (index < count % groups) for index in range(groups)]


def read_splits(data: Path) -> Splits | None:
    """Return the splits of a data tree; None for a dataset that prepare-splits did not write.

    Raises:
        AttclError: there is a `splits.json`, but of another kind or version.
    """
    path = data / SPLITS_FILE
    document = read_json(path, default=None)
    if document is None and not path.is_file():
        return None
    record = splits_record(document, path)
    return Splits(
        record.source,
        record.layout,
        record.ratio,
        record.seed,
        record.modalities,
        {
            split: tuple(
                SplitCase(item.case, item.present, item.hidden)
                for item in record.splits.get(split, ())
            )
            for split in SPLITS
        },
        bids_filter=record.bids_filter,
    )


def leaks_of(dataset: Dataset) -> list[AttclError]:
    """Return a problem per patient that `splits.json` of a dataset puts into several splits; [] if there is none."""
    splits = read_splits(dataset.root)
    if splits is None:
        return []
    named = {split: splits.names(split) for split in splits.splits}
    return leaks(
        dataset.root / SPLITS_FILE, named, {case.id: case.patient for case in dataset.cases}
    )


def originals_of(root: Path) -> list[Path]:
    """Return the folders that nothing may be written into: a dataset, and the one that a data tree's links lead to."""
    splits = read_splits(root)
    return [root, *([Path(splits.source)] if splits else [])]


def open_truth(
    source: Source,
    splits: Splits | None,
    truth: Path | None,
    *,
    hint: str = "name it with --truth DATASET",
) -> Dataset:
    """Open the complete dataset.

    Args:
        source: the incomplete dataset; the complete one has its layout and modalities.
        splits: of the incomplete dataset, if it has any.
        truth: the folder of the complete dataset; None: the one that `splits` names.
        hint: the next step if there is no such folder.

    Raises:
        AttclError: no folder is named, or it is missing.
    """
    if truth is not None:
        folder = truth
    elif splits is not None:
        folder = Path(splits.source)
    else:
        raise UsageError(
            f"--truth: {source.folder} has no splits.json that names the complete dataset, expected --truth",
            "name the folder that holds the real volumes: --truth DATASET",
            code="truth-not-named",
        )
    if not folder.is_dir():
        raise AttclError(
            f"{folder}: no such folder, expected the complete dataset", hint, code="truth-not-found"
        )
    return _as_it_was_split(replace(source, folder=folder), splits, source.folder).open()


def _as_it_was_split(complete: Source, splits: Splits | None, data: Path) -> Source:
    """Return how a complete dataset is read: as `prepare-splits` read it, but for what the user says.

    The data tree has a copy of the modality names that it was made with. They hold for another complete dataset, too,
    unless that has names of its own.
    """
    same = splits is not None and complete.folder.resolve() == Path(splits.source).resolve()
    names = data / VOCABULARY_FILE
    has_its_own = not same and (complete.folder / VOCABULARY_FILE).is_file()
    if complete.modalities is None and names.is_file() and not has_its_own:
        complete = replace(complete, modalities=names)
    if splits is None:
        return complete
    if complete.layout == "auto" and same and splits.layout in LAYOUTS:
        complete = replace(complete, layout=splits.layout)
    return replace(complete, bids_filter=complete.bids_filter or splits.bids_filter)


def to_json(splits: Splits) -> dict[str, Any]:
    """Return the document of `splits.json`."""
    document = asdict(splits)
    return {
        "schema_version": document.pop("schema_version"),
        **{
            key: list(value) if isinstance(value, tuple) else value
            for key, value in document.items()
            if key not in ("splits", "bids_filter") or (key == "bids_filter" and value)
        },
        "splits": {
            split: [
                {"case": item.case, "present": list(item.present), "hidden": list(item.hidden)}
                for item in items
            ]
            for split, items in splits.splits.items()
        },
    }


def _sizes(
    total: int, sizes: tuple[int, int, int] | None, fractions: tuple[float, float, float] | None
) -> tuple[int, int, int]:
    if sizes is not None and fractions is not None:
        raise UsageError(
            "--sizes and --fractions: both given, expected one of them",
            "leave one of them out",
            code="options-exclude-each-other",
        )
    if sizes is not None:
        if min(sizes) < 0 or not 0 < sum(sizes) <= total:
            raise UsageError(
                f"--sizes: {'/'.join(map(str, sizes))} of {counted(total, 'case')}, expected a sum from 1 to {total}",
                "for example --fractions 0.7/0.1/0.2, which fits any number of cases",
                code="sizes-impossible",
            )
        return sizes
    if fractions is None:
        if total in PAPER_SIZES:
            return PAPER_SIZES[total]
        fractions = DEFAULT_FRACTIONS
    # "not" and not the opposite comparison: NaN is wrong, too
    if not min(fractions) >= 0 or fractions[0] == 0 or not sum(fractions) <= 1 + 1e-9:
        raise UsageError(
            f"--fractions: {'/'.join(map(str, fractions))}, "
            "expected shares that sum to at most 1, the first above 0",
            "for example --fractions 0.7/0.1/0.2",
            code="fractions-impossible",
        )
    exact = [Fraction(str(share)) * total for share in fractions]
    counts = [int(value) for value in exact]
    whole = min(total, round(sum(exact)))
    largest_remainder_first = sorted(
        range(3), key=lambda index: (counts[index] - exact[index], index)
    )
    for index in largest_remainder_first[: whole - sum(counts)]:
        counts[index] += 1
    return counts[0], counts[1], counts[2]


def _draw(cases: Sequence[Case], counts: tuple[int, int, int], seed: int) -> dict[str, list[Case]]:
    """Fill the splits with whole patients in a seeded order; with one case per patient the sizes are exact."""
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        patients[case.patient].append(case)
    order = sorted(patients)
    random.Random(seed).shuffle(order)
    drawn: dict[str, list[Case]] = {split: [] for split in SPLITS}
    for patient in order:
        theirs = patients[patient]
        room = {
            split: count - len(drawn[split]) for split, count in zip(SPLITS, counts, strict=True)
        }
        fitting = [split for split in SPLITS if room[split] >= len(theirs)]
        if not fitting and max(room.values()) <= 0:
            break
        drawn[fitting[0] if fitting else max(SPLITS, key=lambda split: room[split])] += theirs
    return drawn


def _hide(
    cases: Sequence[Case], groups: Sequence[Sequence[str]], modalities: Sequence[str]
) -> tuple[SplitCase, ...]:
    hidden_by_case: list[Sequence[str]] = []
    for group, size in zip(groups, group_sizes(len(cases), len(groups)), strict=True):
        hidden_by_case += [group] * size
    return tuple(
        SplitCase(
            case=case.id,
            present=tuple(name for name in modalities if name in case.files and name not in hidden),
            hidden=tuple(name for name in modalities if name in case.files and name in hidden),
        )
        for case, hidden in zip(cases, hidden_by_case, strict=True)
    )


def _require_every_modality(
    name: str, splits: Mapping[str, Sequence[SplitCase]], dataset: Dataset
) -> None:
    """Raise an error unless the training cases show every modality, and every case keeps one.

    Without a training split nothing is to be learned: the weights come from elsewhere.
    """
    train = splits["train"]
    counts = dataset.counts()
    problems: list[AttclError] = [
        UsageError(
            f"{dataset.root}: no case has {modality}, which {dataset.vocabulary_file} names, expected at least one",
            f"leave {modality} out of that file, or add its volumes",
            code="modality-of-no-case",
        )
        if counts[modality] == 0
        else UsageError(
            f"--ratio: {clipped(name)} leaves no {modality} in any of {counted(len(train), 'training case')}, "
            "expected at least one to learn from",
            "use more training cases (--sizes, --fractions) or a ratio with fewer groups; "
            "if your dataset is already incomplete, skip prepare-splits: attcl train --data DATASET",
            code="ratio-leaves-no-training-case",
        )
        for modality in dataset.modalities
        if train and not any(modality in item.present for item in train)
    ]
    problems += [
        UsageError(
            f"--ratio: {clipped(name)} leaves case {item.case} with no modality, "
            "expected at least one to stay",
            "complete or remove this case, or choose another ratio",
            code="ratio-hides-everything",
        )
        for items in splits.values()
        for item in items
        if not item.present
    ]
    raise_all(problems)
