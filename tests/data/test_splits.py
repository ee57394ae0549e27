"""The paper's Table 1, cell by cell; whole patients; scenarios of one's own; reading `splits.json`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath

import pytest
from completers import phantom_file

from attcl_cli.data.dataset import Case, Dataset, Source, open_dataset
from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.data.splits import (
    Splits,
    group_sizes,
    make_splits,
    open_truth,
    read_ratio,
    read_splits,
)
from attcl_cli.errors import AttclError, ProblemsError, UsageError

FOUR = ("flair", "t1", "t1ce", "t2")


def dataset_of(
    cases: Mapping[str, Iterable[str]], *, patients: Mapping[str, str] | None = None
) -> Dataset:
    """A dataset in memory: case id -> modalities."""
    return Dataset(
        root=Path("/nowhere"),
        layout=LAYOUTS["brats"],
        modalities=FOUR,
        cases=tuple(
            Case(
                id=name,
                patient=(patients or {}).get(name, name),
                files={
                    item: (PurePosixPath(f"{name}/{name}_{item}.nii.gz"),) for item in modalities
                },
            )
            for name, modalities in sorted(cases.items())
        ),
        wrong={},
        ignored=(),
        spellings=dict(LAYOUTS["brats"].tokens),
        extension=".nii.gz",
    )


def whole(count: int) -> Dataset:
    return dataset_of({f"P{number:04d}": FOUR for number in range(count)})


def hidden_pattern(splits: Splits, split: str) -> list[tuple[str, ...]]:
    return [item.hidden for item in splits.splits[split]]


# --- Table 1 ----------------------------------------------------------------------------------------------------------

# ratio, subset -> split -> cases, FLAIR, T1, T1ce, T2 (method.md, section 4)
TABLE_1 = {
    ("ratio1", 1): {
        "train": (170, 170, 57, 57, 56),
        "val": (23, 23, 8, 8, 7),
        "test": (50, 50, 17, 17, 16),
    },
    ("ratio2", 1): {
        "train": (170, 170, 170, 85, 85),
        "val": (23, 23, 23, 12, 11),
        "test": (50, 50, 50, 25, 25),
    },
    ("ratio3", 1): {
        "train": (170, 170, 170, 170, 85),
        "val": (23, 23, 23, 23, 12),
        "test": (50, 50, 50, 50, 25),
    },
    ("ratio1", 8): {
        "train": (21, 21, 7, 7, 7),
        "val": (23, 23, 8, 8, 7),
        "test": (50, 50, 17, 17, 16),
    },
    ("ratio2", 8): {
        "train": (21, 21, 21, 11, 10),
        "val": (23, 23, 23, 12, 11),
        "test": (50, 50, 50, 25, 25),
    },
    ("ratio3", 8): {
        "train": (21, 21, 21, 21, 11),
        "val": (23, 23, 23, 23, 12),
        "test": (50, 50, 50, 50, 25),
    },
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(("ratio", "eighths"), TABLE_1)
def test_table_1_of_the_paper_cell_by_cell(ratio, eighths, split):
    splits = make_splits(whole(243), ratio=ratio, subset=Fraction(1, eighths))
    (row,) = (row for row in splits.table() if row["split"] == split)
    assert (row["cases"], *(row[name] for name in FOUR)) == TABLE_1[ratio, eighths][split]


def test_brats_s_keeps_val_and_test_and_a_part_of_train():
    full = make_splits(whole(243), ratio="ratio1")
    small = make_splits(whole(243), ratio="ratio1", subset=Fraction(1, 8))
    assert small.splits["val"] == full.splits["val"]
    assert small.splits["test"] == full.splits["test"]
    assert set(small.names("train")) < set(full.names("train"))


@pytest.mark.parametrize(
    ("count", "groups", "sizes"),
    [
        (170, 3, [57, 57, 56]),
        (23, 3, [8, 8, 7]),
        (21, 2, [11, 10]),
        (2, 3, [1, 1, 0]),
        (0, 2, [0, 0]),
    ],
)
def test_groups_are_nearly_equal_the_ceiling_first(count, groups, sizes):
    assert group_sizes(count, groups) == sizes


@pytest.mark.parametrize(
    ("ratio", "pattern"),
    [
        ("ratio1", [("t1ce", "t2")] * 2 + [("t1", "t2")] * 2 + [("t1", "t1ce")]),
        ("ratio2", [("t2",)] * 3 + [("t1ce",)] * 2),
        ("ratio3", [()] * 3 + [("t2",)] * 2),
    ],
)
def test_thirds_and_halves_lack_what_section_4_1_says(ratio, pattern):
    splits = make_splits(whole(15), ratio=ratio, sizes=(5, 5, 5))
    for split in ("train", "val", "test"):
        assert hidden_pattern(splits, split) == pattern


def test_present_and_hidden_together_are_what_a_case_has():
    dataset = dataset_of(
        {"A": FOUR, "B": FOUR, "C": ["flair", "t2"], "D": FOUR, "E": FOUR, "F": FOUR}
    )
    splits = make_splits(dataset, ratio="ratio1", sizes=(6, 0, 0))
    has = {case.id: set(case.files) for case in dataset.cases}
    for item in splits.splits["train"]:
        assert set(item.present) | set(item.hidden) == has[item.case]
        assert not set(item.present) & set(item.hidden)


# --- patients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_time_points_of_one_patient_never_cross_splits(seed):
    names = [
        f"BraTS-GLI-{patient:05d}-{time:03d}"
        for patient in range(20)
        for time in range(patient % 3 + 1)
    ]
    patients = {name: name[:-4] for name in names}
    splits = make_splits(dataset_of(dict.fromkeys(names, FOUR), patients=patients), seed=seed)
    where = {split: {patients[name] for name in splits.names(split)} for split in splits.splits}
    assert not where["train"] & where["val"]
    assert not where["train"] & where["test"]
    assert not where["val"] & where["test"]
    drawn = Counter(name for split in splits.splits for name in splits.names(split))
    assert set(drawn.values()) == {1}
    assert set(drawn) == set(names)


def test_sessions_of_a_bids_folder_never_cross_splits(tmp_path):
    for patient in range(8):
        for session in (1, 2):
            folder = tmp_path / f"sub-{patient}" / f"ses-{session}" / "anat"
            folder.mkdir(parents=True)
            for token in ("T1w", "T2w", "FLAIR", "ce-gadolinium_T1w"):
                (folder / f"sub-{patient}_ses-{session}_{token}.nii.gz").touch()
    splits = make_splits(open_dataset(tmp_path))
    where = {name[:5]: split for split in splits.splits for name in splits.names(split)}
    assert all(where[name[:5]] == split for split in splits.splits for name in splits.names(split))
    assert sum(len(splits.names(split)) for split in splits.splits) == 16


def test_a_seed_gives_one_order_and_another_seed_another():
    first, again, other = (make_splits(whole(60), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert set(first.names("train")) != set(other.names("train"))


def test_the_order_in_which_cases_are_found_does_not_matter():
    forwards = whole(60)
    backwards = Dataset(**{**vars(forwards), "cases": forwards.cases[::-1]})
    assert make_splits(forwards) == make_splits(backwards)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "options", "sizes"),
    [
        (243, {}, (170, 23, 50)),
        (243, {"fractions": (0.7, 0.1, 0.2)}, (170, 24, 49)),
        (10, {}, (7, 1, 2)),
        (100, {}, (70, 10, 20)),
        (1251, {}, (876, 125, 250)),
        (10, {"sizes": (5, 2, 1)}, (5, 2, 1)),
        (10, {"sizes": (10, 0, 0)}, (10, 0, 0)),
        (10, {"fractions": (1.0, 0.0, 0.0)}, (10, 0, 0)),
        (10, {"fractions": (0.5, 0.0, 0.0)}, (5, 0, 0)),
        (3, {"fractions": (0.4, 0.3, 0.3)}, (1, 1, 1)),
    ],
)
def test_sizes_are_the_papers_or_the_nearest_whole_numbers(count, options, sizes, tmp_path):
    (tmp_path / "nothing.toml").write_text("hidden = [[]]\n")
    splits = make_splits(whole(count), ratio=str(tmp_path / "nothing.toml"), **options)
    assert tuple(len(splits.names(split)) for split in ("train", "val", "test")) == sizes


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sizes": (5, 3, 3)}, "--sizes: 5/3/3 of 10 cases, expected a sum from 1 to 10"),
        ({"sizes": (0, 0, 0)}, "--sizes: 0/0/0"),
        ({"sizes": (8, -1, 2)}, "--sizes: 8/-1/2"),
        ({"fractions": (0.7, 0.2, 0.2)}, "--fractions: 0.7/0.2/0.2"),
        ({"fractions": (0.0, 0.5, 0.5)}, "--fractions: 0.0/0.5/0.5"),
        ({"fractions": (0.7, -0.1, 0.2)}, "--fractions: 0.7/-0.1/0.2"),
        ({"sizes": (5, 3, 2), "fractions": (0.7, 0.1, 0.2)}, "both given"),
        ({"subset": Fraction(1, 8)}, "--subset: 1/8 of 7 training cases is 0"),
        ({"subset": Fraction(2)}, "--subset: 2 of 7"),
        ({"subset": Fraction(-1, 8)}, "--subset: -1/8 of 7"),
    ],
)
def test_sizes_that_cannot_be_are_usage_errors(options, complaint):
    with pytest.raises(UsageError) as caught:
        make_splits(whole(10), **options)
    assert complaint in caught.value.message


@pytest.mark.parametrize("fractions", [(float("nan"), 0.1, 0.2), (0.7, float("inf"), 0.2)])
def test_fractions_that_are_no_numbers_are_usage_errors(fractions):
    with pytest.raises(UsageError, match="--fractions"):
        make_splits(whole(10), fractions=fractions)


# --- ratios of one's own ----------------------------------------------------------------------------------------------


def test_a_ratio_of_ones_own_is_read_from_toml(tmp_path):
    (tmp_path / "mine.toml").write_text('hidden = [["t1ce", "t2"], ["T1"], [], ["t2f"]]\n')
    splits = make_splits(whole(8), ratio=str(tmp_path / "mine.toml"), sizes=(8, 0, 0))
    assert splits.ratio == "mine"
    assert (
        hidden_pattern(splits, "train")
        == [("t1ce", "t2")] * 2 + [("t1",)] * 2 + [()] * 2 + [("flair",)] * 2
    )


def test_a_ratio_of_ones_own_may_have_a_name(tmp_path):
    (tmp_path / "mine.toml").write_text('name = "no t2"\nhidden = [["t2"], []]\n')
    assert read_ratio(str(tmp_path / "mine.toml"), FOUR) == ("no t2", (("t2",), ()))


@pytest.mark.parametrize(
    "content",
    ["hidden = []", 'hidden = ["t2"]', "hidden = [[1]]", "hide = [[]]", 'hidden = [[]]\nnote = "x"', "hidden = [["],
)  # fmt: skip
def test_a_ratio_file_that_says_something_else_is_a_usage_error(content, tmp_path):
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(UsageError, match=r"mine\.toml: .*expected hidden"):
        read_ratio(str(tmp_path / "mine.toml"), FOUR)


def test_a_ratio_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_ratio(str(tmp_path / "none.toml"), FOUR)


def test_an_unknown_ratio_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'ratio4', expected ratio1, ratio2, ratio3 or a \.toml"):
        make_splits(whole(10), ratio="ratio4")


def test_a_ratio_with_an_unknown_modality_is_a_usage_error(tmp_path):
    (tmp_path / "mine.toml").write_text('hidden = [["pet"], []]\n')
    with pytest.raises(UsageError, match="modality 'pet': unknown here"):
        read_ratio(str(tmp_path / "mine.toml"), FOUR)


def test_a_ratio_that_hides_everything_is_a_usage_error(tmp_path):
    (tmp_path / "mine.toml").write_text('hidden = [["flair", "t1", "t1c", "t2"], []]\n')
    with pytest.raises(UsageError, match="hides all of flair, t1, t1ce, t2 from a group"):
        read_ratio(str(tmp_path / "mine.toml"), FOUR)


def test_a_ratio_that_leaves_a_modality_untrained_is_a_usage_error():
    with pytest.raises(UsageError) as caught:
        make_splits(whole(10), ratio="ratio1", sizes=(2, 0, 0))
    assert caught.value.message.startswith(
        "--ratio: ratio1 leaves no t2 in any of 2 training cases"
    )


def test_every_modality_without_a_training_case_is_reported():
    dataset = dataset_of({name: ["t1", "t2"] for name in "ABCDEF"})
    with pytest.raises(ProblemsError) as caught:
        make_splits(dataset, ratio="ratio3", sizes=(6, 0, 0))
    assert [problem.code for problem in caught.value.problems] == ["modality-of-no-case"] * 2
    messages = [problem.message for problem in caught.value.problems]
    assert [message.split()[4].rstrip(",") for message in messages] == ["flair", "t1ce"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_ratio_that_leaves_a_case_with_nothing_is_a_usage_error(split, tmp_path):
    (tmp_path / "half.toml").write_text('hidden = [["t1"], ["t2"]]\n')
    ratio, sizes = str(tmp_path / "half.toml"), (4, 0, 4)
    last = make_splits(whole(8), ratio=ratio, sizes=sizes).names(split)[-1]  # t2 is hidden from it
    dataset = dataset_of({case.id: ["t2"] if case.id == last else FOUR for case in whole(8).cases})
    with pytest.raises(UsageError, match=f"leaves case {last} with no modality"):
        make_splits(dataset, ratio=ratio, sizes=sizes)


# --- splits.json -----------------------------------------------------------------------------------------------------


def test_a_folder_that_prepare_splits_did_not_write_has_no_splits(tmp_path):
    assert read_splits(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not readable as JSON"),
        ("[]", "not the content that prepare-splits writes"),
        ('{"schema_version": 1}', "not the content that prepare-splits writes"),
        ('{"schema_version": 2}', "schema_version 2, expected 1"),
        ('{"schema_version": 1, "splits": []}', "not the content that prepare-splits writes"),
    ],
)
def test_a_splits_json_of_another_kind_is_an_error(content, complaint, tmp_path):
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(AttclError, match=complaint) as caught:
        read_splits(tmp_path)
    assert str(tmp_path / "splits.json") in caught.value.message


@pytest.mark.parametrize(
    ("others", "complaint"),
    [
        ({"train": ["A", "A"]}, "splits.train: case 'A', twice"),
        ({"train": ["A"], "test": ["A"]}, "splits.test: case 'A', which is in train, too"),
    ],
)
def test_a_case_stands_in_one_split_once(others, complaint, tmp_path):
    splits = {
        split: [{"case": case, "present": ["t1"], "hidden": []} for case in cases]
        for split, cases in others.items()
    }
    document = {
        "schema_version": 1,
        "source": "/data",
        "layout": "brats",
        "ratio": "ratio1",
        "seed": 0,
        "modalities": ["t1"],
        "splits": splits,
    }
    (tmp_path / "splits.json").write_text(json.dumps(document))
    with pytest.raises(AttclError, match=complaint):
        read_splits(tmp_path)


def test_what_a_folder_holds_otherwise_than_its_splits_say_is_named(phantom_root, tmp_path):
    data = tmp_path / "data"
    prepare_splits(phantom_root, data, ratio="ratio3", sizes=(2, 1, 1))
    assert open_dataset(data).notes == ()
    record = json.loads((data / "splits.json").read_text())
    items = [item for split in record["splits"].values() for item in split]
    answered = next(item["case"] for item in items if item["hidden"])
    lacking, gone, unlisted = [item["case"] for item in items if item["case"] != answered]
    shutil.copy(phantom_root / answered / f"{answered}_t2.nii.gz", data / answered)
    (data / lacking / f"{lacking}_t1.nii.gz").unlink()
    shutil.rmtree(data / gone)
    for split in record["splits"]:
        record["splits"][split] = [
            item for item in record["splits"][split] if item["case"] != unlisted
        ]
    (data / "splits.json").write_text(json.dumps(record))
    file = data / "splits.json"
    assert list(open_dataset(data).notes) == [
        f"{file} does not list {unlisted}: neither trained on nor scored",
        f"{file} lists {gone}, not found in this folder",
        f"{file} calls t2 of {answered} hidden, but found in this folder: what learns from it knows the answer",
        f"{file} calls t1 of {lacking} present, but not found in this folder",
    ]


def test_the_truth_is_read_with_the_names_that_the_dataset_was_split_with(phantom_root, tmp_path):
    root, images = tmp_path / "all", {"t1": "t1", "t1_denoised": "flair", "t2": "t2"}
    for case, number in zip("ABC", range(3), strict=True):
        for name, image in images.items():
            file = root / case / f"{case}_{name}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(phantom_root / phantom_file(number, image), file)
    names = tmp_path / "mine.toml"
    names.write_text('ignore = ["*_t1.nii.gz"]\n[modalities]\nt1 = ["t1_denoised"]\nt2 = ["t2"]\n')
    ratio = tmp_path / "ratio.toml"
    ratio.write_text('hidden = [["t1"], ["t2"]]')
    data = tmp_path / "data"
    prepare_splits(root, data, modalities=names, ratio=str(ratio), sizes=(2, 0, 1))
    splits = read_splits(data)
    for folder in (None, root):
        truth = open_truth(Source(data), splits, folder)
        assert {files["t1"][0].name[1:] for files in (case.files for case in truth.cases)} == {
            "_t1_denoised.nii.gz"
        }
    # Another complete dataset has its own names, if it has any.
    other = tmp_path / "other"
    shutil.copytree(root, other)
    (other / "modalities.toml").write_text('[modalities]\nt1 = ["t1"]\nt2 = ["t2"]\n')
    truth = open_truth(Source(data), splits, other)
    assert truth.cases[0].files["t1"][0].name == "A_t1.nii.gz"


def test_the_truth_is_read_in_the_layout_that_was_split(phantoms, tmp_path):
    root, data = tmp_path / "all", tmp_path / "data"
    shutil.copytree(phantoms("bids"), root)
    for number in range(9):  # more than there are of BIDS
        file = root / f"Other_{number}" / f"Other_{number}_t1.nii.gz"
        file.parent.mkdir()
        file.touch()
    prepare_splits(root, data, layout="bids", sizes=(2, 1, 1), ratio="ratio3")
    truth = open_truth(Source(data), read_splits(data), None)
    assert truth.layout.name == "bids"
    assert len(truth.cases) == 4
