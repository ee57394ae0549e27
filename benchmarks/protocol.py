"""The fixed split of the open patients (`protocol.toml`), checked against a cohort, and the link trees made of it.

Originals are only read. What is trained on the trees, and how it is scored, is left to `recipe`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attcl_cli.data.dataset import Case, Dataset, open_dataset
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.splits import SplitCase, Splits
from attcl_cli.data.tree import write_tree
from attcl_cli.errors import AttclError, UsageError, raise_all
from attcl_cli.files import is_within, read_toml

PROTOCOL = Path(__file__).with_name("protocol.toml")
MODALITIES = ("flair", "t1", "t1ce", "t2")
PARTS = ("test", "folds", "validation", "other_domain")


@dataclass(frozen=True)
class Protocol:
    """Which patient is used for what.

    Attributes:
        test: settings and weights are compared on these.
        folds: the training patients, in groups for choices.
        validation: choose the step of a run that is kept.
        other_domain: another disease; never trained on.
        folders: part of the protocol -> the folder of its patients in a cohort.
    """

    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]
    validation: tuple[str, ...]
    other_domain: tuple[str, ...]
    folders: Mapping[str, str]

    @property
    def train(self) -> tuple[str, ...]:
        """The training patients: those of all folds."""
        return tuple(case for fold in self.folds for case in fold)

    def outside(self, fold: int) -> tuple[str, ...]:
        """Return the training patients that are not in a fold, counted from 0.

        Raises:
            UsageError: there is no such fold.
        """
        if not 0 <= fold < len(self.folds):
            raise UsageError(
                f"--fold: {fold}, expected 0 to {len(self.folds) - 1}",
                "folds are counted from 0",
                code="no-such-fold",
            )
        return tuple(case for case in self.train if case not in self.folds[fold])


def read_protocol(path: Path = PROTOCOL) -> Protocol:
    """Read a protocol.

    Raises:
        UsageError: the file is missing or no TOML, lacks a part, or names a patient twice; all problems together.
    """
    document = read_toml(path, expected="the split of the patients, as benchmarks/protocol.toml")
    problems: list[AttclError] = [
        UsageError(
            f"{path}: {_found(document, part)}, expected {'lists' if part == 'folds' else 'a list'} of case ids",
            "benchmarks/protocol.toml shows how it is written",
            code="invalid-protocol",
        )
        for part in PARTS
        if not _is_list_of_ids(document.get(part), nested=part == "folds")
    ]
    said = document.get("folders")
    folders = said if isinstance(said, dict) else {}
    problems += [
        UsageError(
            f"{path}: no folder for {part}, expected its name below [folders]",
            "write in which folder of the cohort these patients lie",
            code="invalid-protocol",
        )
        for part in PARTS
        if not isinstance(folders.get(part), str)
    ]
    raise_all(problems)
    protocol = Protocol(
        tuple(document["test"]),
        tuple(tuple(fold) for fold in document["folds"]),
        tuple(document["validation"]),
        tuple(document["other_domain"]),
        folders,
    )
    counts = Counter(
        [*protocol.test, *protocol.train, *protocol.validation, *protocol.other_domain]
    )
    raise_all(
        [
            UsageError(
                f"{path}: {case} is named {count} times, expected each patient once",
                "leave it in one part: a patient who is trained on must not be scored",
                code="patient-named-twice",
            )
            for case, count in counts.items()
            if count > 1
        ]
    )
    return protocol


def open_cohort(protocol: Protocol, cohort: Path) -> dict[str, Dataset]:
    """Open the folders of a cohort, and check that they hold what the protocol names.

    Returns:
        Part of the protocol -> the dataset of its patients.

    Raises:
        AttclError: everything that is wrong, together: a patient or a volume is missing, two cases are of one patient,
            a patient of the other domain is among those that are trained on.
    """
    opened = {folder: open_dataset(cohort / folder) for folder in set(protocol.folders.values())}
    datasets = {part: opened[protocol.folders[part]] for part in PARTS}
    cases = {
        "test": protocol.test,
        "folds": protocol.train,
        "validation": protocol.validation,
        "other_domain": protocol.other_domain,
    }
    problems: list[AttclError] = []
    patients: dict[str, str] = {}
    domain = {case.id for case in datasets["other_domain"].cases}
    for part, names in cases.items():
        known = {case.id: case for case in datasets[part].cases}
        for name in names:
            case = known.get(name)
            if part != "other_domain" and name in domain:
                problems.append(_of_the_other_domain(datasets["other_domain"], name, part))
            elif case is None:
                problems.append(
                    AttclError(
                        f"{datasets[part].root}: no case {name}, expected every case of the protocol's part {part}",
                        "put its folder there, or name another cohort",
                        code="protocol-case-missing",
                    )
                )
            else:
                problems += _lacking(datasets[part], case)
                if (twin := patients.setdefault(case.patient, name)) != name:
                    problems.append(
                        AttclError(
                            f"{datasets[part].root}: {twin} and {name} are of one patient, expected two patients",
                            "leave one of them out of the protocol",
                            code="patient-named-twice",
                        )
                    )
    raise_all(problems)
    return datasets


def link_cases(
    dataset: Dataset, names: Iterable[str], output: Path, *, labels: bool = True
) -> None:
    """Link the volumes of some cases into `<output>/<id>/<id>_<modality>.nii.gz`; links that exist stay.

    Args:
        dataset: where they lie, in any layout of one file per volume.
        names: ids of the cases.
        output: the folder of the links; several releases may be linked into one.
        labels: link the segmentations, too; releases differ in their label values, and must not be mixed.
    """
    cases = {case.id: case for case in dataset.cases}
    for name in names:
        case = cases[name]
        kinds = [*MODALITIES, *([SEGMENTATION] if labels and case.segmentation else [])]
        for kind in kinds:
            (file,) = dataset.paths(case, kind)
            ending = ".nii.gz" if file.name.endswith(".gz") else ".nii"
            link = output / name / f"{name}_{kind}{ending}"
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())


def write_data_tree(
    patients: Dataset,
    output: Path,
    *,
    scenario: str,
    train: Sequence[str] = (),
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    hidden: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a data tree as `attcl prepare-splits` does, with splits that are named instead of drawn.

    Args:
        patients: the complete dataset.
        output: the folder of the tree; one that holds these very splits stays.
        scenario: its name, in `splits.json`.
        train: ids of the training cases.
        validation: ids of the validation cases.
        test: ids of the test cases.
        hidden: case -> the modalities that are hidden from it; all others keep everything.

    Raises:
        UsageError: the folder holds something else.
    """
    lacking = hidden or {}

    def items(names: Sequence[str]) -> tuple[SplitCase, ...]:
        return tuple(
            SplitCase(
                name,
                tuple(kind for kind in MODALITIES if kind not in lacking.get(name, ())),
                tuple(kind for kind in MODALITIES if kind in lacking.get(name, ())),
            )
            for name in names
        )

    splits = Splits(
        source=str(patients.root.resolve()),
        layout=patients.layout.name,
        ratio=scenario,
        seed=0,
        modalities=MODALITIES,
        splits={"train": items(train), "val": items(validation), "test": items(test)},
    )
    write_tree(patients, splits, output)


def refuse_repository(output: Path) -> None:
    """Check that results of real patients do not get into the project, nor pictures of them.

    Raises:
        UsageError: the folder lies in the repository.
    """
    if is_within(output, Path(__file__).parent.parent):
        raise UsageError(
            f"--output: {output} lies in the repository, expected a folder outside",
            "no picture of a patient may get into the project",
            code="output-inside-repository",
        )


def _is_list_of_ids(value: Any, *, nested: bool = False) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(_is_list_of_ids(item) if nested else isinstance(item, str) for item in value)


def _found(document: Mapping[str, Any], part: str) -> str:
    return f"{part} = {document[part]!r}" if part in document else f"no {part}"


def _lacking(dataset: Dataset, case: Case) -> list[AttclError]:
    absent = [name for name in MODALITIES if name not in case.files]
    if not absent:
        return []
    return [
        AttclError(
            f"{dataset.root}: {case.id} has no {', '.join(absent)}, expected all of {', '.join(MODALITIES)}",
            "put the case's own files there",
            code="protocol-volume-missing",
        )
    ]


def _of_the_other_domain(dataset: Dataset, name: str, part: str) -> AttclError:
    return AttclError(
        f"{dataset.root}: {name} of the other domain is in the protocol's part {part}, "
        "expected it in other_domain alone",
        "the other domain is never trained on",
        code="other-domain-trained-on",
    )
