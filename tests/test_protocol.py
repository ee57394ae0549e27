"""The split of the open patients: read, checked against a cohort, linked without a change to any original."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import REPOSITORY

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.splits import read_splits
from attcl_cli.errors import AttclError, ProblemsError, UsageError
from attcl_cli.methods.weights import find_weights

sys.path.append(str(REPOSITORY / "benchmarks"))

import protocol

TEST = ("BraTS2021_01483", "BraTS2021_01485", "Brats18_TCIA01_201_1", "Brats18_TCIA01_425_1")
BRASYN = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}
SMALL = """
test = ["A1"]
folds = [["B1"], ["B2"]]
validation = ["V1"]
other_domain = ["M1"]
[folders]
test = "brats"
folds = "brats"
validation = "brats"
other_domain = "openms"
"""


def stand_in(root: Path, split: protocol.Protocol) -> Path:
    """Write empty files under the names of all patients: what a cohort holds is told by names."""
    brats = (*split.test, *split.train)
    names = [f"{split.folders['test']}/{case}/{case}_{kind}" for case in brats for kind in BRASYN]
    names += [f"brats/{case}/{case}_seg" for case in brats]
    names += [
        f"openms/{case}/{case}_{kind}" for case in split.other_domain for kind in (*BRASYN, "seg")
    ]
    names += [
        f"brasyn/{case}/{case}-{kind}"
        for case in split.validation
        for kind in (*BRASYN.values(), "seg")
    ]
    for name in names:
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.fixture
def split() -> protocol.Protocol:
    return protocol.read_protocol()


@pytest.fixture
def standing_in(split: protocol.Protocol, tmp_path: Path) -> Path:
    return stand_in(tmp_path / "cohort", split)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """`written(text)` is a protocol file of that text."""

    def write(text: str) -> Path:
        path = tmp_path / "protocol.toml"
        path.write_text(text)
        return path

    return write


def codes(error: AttclError) -> list[str]:
    """Return the codes of all problems of an error."""
    return [one.code for one in (error.problems if isinstance(error, ProblemsError) else [error])]


def test_the_protocol_has_15_training_and_5_test_patients_and_5_folds_of_3(split):
    assert len(split.train) == 15 and [len(fold) for fold in split.folds] == [3] * 5
    assert len(split.test) == 5 and set(TEST) < set(split.test)
    assert (len(split.validation), len(split.other_domain)) == (2, 2)
    assert not {*split.test, *split.validation, *split.other_domain} & set(split.train)


@pytest.mark.parametrize("name", ["brain-attcl", "brain-many"])
def test_the_bundled_weights_saw_the_training_patients_and_no_other(name, split):
    weights = find_weights(name)
    assert sorted(weights.info.trained_on) == sorted(split.train)


def test_outside_a_fold_are_the_other_training_patients(split):
    outside = split.outside(3)
    assert set(outside) == set(split.train) - set(split.folds[3]) and len(outside) == 12
    with pytest.raises(UsageError) as caught:
        split.outside(5)
    assert caught.value.code == "no-such-fold"


def test_a_whole_cohort_is_opened_by_part(split, standing_in):
    datasets = protocol.open_cohort(split, standing_in)
    assert {part: len(data.cases) for part, data in datasets.items()} == {
        "test": 20,
        "folds": 20,
        "validation": 2,
        "other_domain": 2,
    }


def test_everything_that_a_cohort_lacks_is_reported_together(split, standing_in):
    shutil.rmtree(standing_in / "brats" / split.test[0])
    gone = split.folds[1][2]
    (standing_in / "brats" / gone / f"{gone}_t2.nii.gz").unlink()
    with pytest.raises(ProblemsError) as caught:
        protocol.open_cohort(split, standing_in)
    assert sorted(codes(caught.value)) == ["protocol-case-missing", "protocol-volume-missing"]
    text = " ".join(problem.message for problem in caught.value.problems)
    assert f"no case {split.test[0]}" in text and f"{gone} has no t2" in text


def test_a_patient_in_two_parts_is_refused(written):
    path = written(SMALL.replace('"V1"', '"V1", "B2"'))
    with pytest.raises(UsageError) as caught:
        protocol.read_protocol(path)
    assert caught.value.code == "patient-named-twice"
    assert "B2 is named 2 times" in caught.value.message


def test_two_cases_of_one_patient_are_refused(written, tmp_path):
    text = SMALL.replace('folds = "brats"', 'folds = "brasyn"').replace(
        '[["B1"], ["B2"]]', '[["BraTS-GLI-00003-000"], ["BraTS-GLI-00003-001"]]'
    )
    split = protocol.read_protocol(written(text))
    for case in split.train:
        for kind in BRASYN.values():
            file = tmp_path / "cohort" / "brasyn" / case / f"{case}-{kind}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    for folder, case in (("brats", "A1"), ("brats", "V1"), ("openms", "M1")):
        for kind in BRASYN:
            file = tmp_path / "cohort" / folder / case / f"{case}_{kind}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    with pytest.raises(AttclError) as caught:
        protocol.open_cohort(split, tmp_path / "cohort")
    assert codes(caught.value) == ["patient-named-twice"]
    assert "are of one patient" in caught.value.message


def test_a_patient_of_the_other_domain_is_never_trained_on(split, standing_in):
    stray = split.folds[0][0]
    shutil.copytree(standing_in / "brats" / stray, standing_in / "openms" / stray)
    with pytest.raises(AttclError) as caught:
        protocol.open_cohort(split, standing_in)
    assert codes(caught.value) == ["other-domain-trained-on"]


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('test = ["A1"]', "", "no test"),
        ('test = ["A1"]', "test = []", "test = []"),
        ('[["B1"], ["B2"]]', '["B1", "B2"]', "expected lists of case ids"),
        ('other_domain = "openms"', "", "no folder for other_domain"),
    ],
)
def test_a_part_that_is_missing_or_no_list_is_named(before, after, complaint, written):
    path = written(SMALL.replace(before, after))
    with pytest.raises(UsageError) as caught:
        protocol.read_protocol(path)
    assert caught.value.code == "invalid-protocol" and complaint in caught.value.message


def test_releases_are_linked_under_one_naming_and_originals_stay(split, standing_in, tmp_path):
    before = sorted(standing_in.rglob("*"))
    datasets = protocol.open_cohort(split, standing_in)
    links = tmp_path / "links"
    for _ in range(2):  # links that exist stay
        protocol.link_cases(datasets["folds"], split.train, links)
        protocol.link_cases(datasets["validation"], split.validation, links, labels=False)
    linked = open_dataset(links)
    assert linked.layout.name == "brats"
    assert {case.id for case in linked.cases} == {*split.train, *split.validation}
    case = split.validation[0]
    file = links / case / f"{case}_t1ce.nii.gz"
    assert file.resolve() == (standing_in / "brasyn" / case / f"{case}-t1c.nii.gz").resolve()
    assert not (links / case / f"{case}_seg.nii.gz").exists()
    assert sorted(standing_in.rglob("*")) == before


def test_a_data_tree_has_the_splits_that_are_named(split, standing_in, tmp_path):
    datasets = protocol.open_cohort(split, standing_in)
    case = split.test[0]
    tree = tmp_path / "data"
    protocol.write_data_tree(
        datasets["test"],
        tree,
        scenario="from-flair",
        train=split.train[:2],
        test=[case],
        hidden={case: ("t1", "t1ce", "t2")},
    )
    splits = read_splits(tree)
    assert splits is not None
    assert splits.names("train") == split.train[:2] and splits.names("val") == ()
    (item,) = splits.splits["test"]
    assert (item.present, item.hidden) == (("flair",), ("t1", "t1ce", "t2"))
    assert sorted(path.name for path in (tree / case).iterdir()) == [
        f"{case}_flair.nii.gz",
        f"{case}_seg.nii.gz",
    ]


def test_nothing_is_written_into_the_repository(tmp_path):
    protocol.refuse_repository(tmp_path / "out")
    for inside in (REPOSITORY / "out", REPOSITORY / "docs" / ".." / "runs"):
        with pytest.raises(UsageError) as caught:
            protocol.refuse_repository(inside)
        assert caught.value.code == "output-inside-repository"


@pytest.mark.cohort
def test_the_real_cohort_is_the_protocols(split, cohort):
    if not (cohort / "openms").is_dir():
        pytest.skip(f"no openms/ in {cohort}: this cohort has no patients of another domain")
    datasets = protocol.open_cohort(split, cohort)
    assert {case.id for case in datasets["test"].cases} == {*split.test, *split.train}
