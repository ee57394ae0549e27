"""Which modalities a dataset has: those of its cases, those hidden from them, and those that the user named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attcl_cli.data.dataset import SPLITS_FILE, Dataset, open_dataset
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.errors import UsageError

TWO = ("t1", "t2")
LACKING = [("flair", "t1ce"), ("flair", "t1ce", "t2"), ("flair", "t1ce"), ("flair", "t1", "t1ce")]


@pytest.fixture
def two(gappy) -> Path:
    """Four cases with T1 and T2, of which one lacks T2 and one T1."""
    root: Path = gappy()
    return root


def ratio(folder: Path, hidden: str) -> str:
    path = folder / "ratio.toml"
    path.write_text(f"hidden = {hidden}")
    return str(path)


def missing(dataset: Dataset) -> list[tuple[str, ...]]:
    return [dataset.missing(case) for case in dataset.cases]


def test_a_modality_that_no_case_has_is_missing_in_none(two):
    dataset = open_dataset(two)
    assert dataset.modalities == TWO
    assert dataset.absent == ("flair", "t1ce")
    assert missing(dataset) == [(), ("t2",), (), ("t1",)]
    assert dataset.counts() == {"t1": 3, "t2": 3}


def test_the_user_names_a_modality_that_no_case_has(two):
    (two / "modalities.toml").write_text('[modalities]\nt1 = []\nt2 = []\npd = ["PD"]\n')
    dataset = open_dataset(two)
    assert dataset.modalities == ("pd", *TWO)
    assert dataset.absent == ()
    assert missing(dataset)[:2] == [("pd",), ("pd", "t2")]


def test_further_modalities_are_missing_in_every_case(two):
    dataset = open_dataset(two).including(["t1ce", "t2"])
    assert dataset.modalities == ("t1", "t1ce", "t2")
    assert dataset.absent == ("flair",)
    assert missing(dataset)[0] == ("t1ce",)


def test_what_is_hidden_from_every_case_is_still_a_modality(phantom_root, tmp_path):
    hidden = ratio(tmp_path, '[["t2"], ["t2", "flair"]]')
    prepare_splits(phantom_root, tmp_path / "data", ratio=hidden, sizes=(0, 0, 4))
    dataset = open_dataset(tmp_path / "data")
    assert dataset.counts() == {"flair": 2, "t1": 4, "t1ce": 4, "t2": 0}
    assert sorted(missing(dataset)) == [("flair", "t2")] * 2 + [("t2",)] * 2


def test_the_modalities_that_an_earlier_version_promised_are_not_missing(two):
    items = [
        {"case": case.id, "present": list(case.files), "hidden": []}
        for case in open_dataset(two).cases
    ]
    document = {"modalities": ["flair", "t1", "t1ce", "t2"], "splits": {"train": items}}
    (two / SPLITS_FILE).write_text(json.dumps(document))
    assert open_dataset(two).modalities == TWO


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", "{}", '{"splits": [1]}', '{"splits": {"train": [1]}}']
)
def test_an_invalid_list_of_splits_hides_nothing(content, two):
    (two / SPLITS_FILE).write_text(content)
    assert open_dataset(two).modalities == TWO


def test_a_scenario_that_hides_what_no_case_has_is_refused(two, tmp_path):
    with pytest.raises(UsageError, match="ratio1 hides a modality that no case has") as caught:
        prepare_splits(two, tmp_path / "data", ratio="ratio1")
    assert caught.value.code == "unknown-modality"
    assert "hidden = [[" in caught.value.hint


def test_a_named_modality_of_no_case_cannot_be_split(two, tmp_path):
    (two / "modalities.toml").write_text('[modalities]\nt1 = []\nt2 = []\npd = ["PD"]\n')
    with pytest.raises(UsageError) as caught:
        prepare_splits(two, tmp_path / "data", ratio=ratio(tmp_path, "[[]]"), sizes=(4, 0, 0))
    assert caught.value.code == "modality-of-no-case"
    assert caught.value.message == (
        f"{two}: no case has pd, which {two / 'modalities.toml'} names, expected at least one"
    )


def test_info_says_what_no_case_has(two, attcl):
    code, out, _ = attcl("info", two)
    assert code == 0
    assert "no case has flair, t1ce: not counted as missing" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["t1", "3", "1"] in rows
    assert not any(row[:1] == ["flair"] for row in rows)
    assert json.loads(attcl("info", two, "--json")[1])["absent"] == ["flair", "t1ce"]


def test_complete_makes_what_no_case_has_only_if_it_is_named(two, trained_run, attcl, elsewhere):
    def targets(*options: str) -> list[tuple[str, list[str]]]:
        command = ("complete", "--ori", two, "-w", trained_run, "-n", "--json", *options)
        code, out, err = attcl(*command)
        assert code == 0, err
        return [(job["case"][-1], job["targets"]) for job in json.loads(out)["jobs"]]

    assert targets() == [("1", ["t2"]), ("3", ["t1"])]
    assert targets("--target", "T1c") == [(case, ["t1ce"]) for case in "0123"]
    code, _, err = attcl("complete", "--ori", two, "-w", trained_run, "--target", "pd", "-n")
    assert code == 2 and "expected one of flair, t1, t1ce, t2" in err


def test_a_complete_dataset_needs_no_weights(gappy, attcl, elsewhere):
    whole = gappy(lacking=[("flair", "t1ce")] * 4)
    code, out, err = attcl("complete", "--ori", whole)
    assert (code, out) == (
        0,
        f"{whole}: nothing to do\nnothing is missing: every case has t1 and t2\n",
    )
    assert err.startswith("note: no case has flair, t1ce; --target makes such a modality")
    assert attcl("complete", "--ori", whole, "-n")[0] == 0
    assert attcl("complete", "--ori", whole, "--target", "flair")[0] == 2  # weights are needed
    assert attcl("complete", "--ori", whole, "--link-originals")[0] == 0
    assert open_dataset(elsewhere / "out").counts() == {"t1": 4, "t2": 4}


def test_a_volume_of_a_modality_that_no_case_has_is_scored(
    two, phantom_root, trained_run, attcl, elsewhere
):
    common = ("--ori", two, "--cpl", "out")
    assert attcl("complete", *common, "-w", trained_run, "--target", "t1ce", "-q")[0] == 0
    score = ("score", *common, "--truth", phantom_root, "--split", "all", "--psnr", "-n", "--json")
    code, out, err = attcl(*score, "--allow-missing")
    assert code == 0, err
    assert json.loads(out)["volumes"] == 4  # of t1ce; t2, t1 and flair count as missing


def test_of_a_single_case_all_is_made_that_the_weights_can_make(gappy, trained_run, attcl):
    root: Path = gappy()
    for case in open_dataset(root).cases[1:]:
        shutil.rmtree(root / case.id)
    code, out, err = attcl("complete", "--ori", root, "-w", trained_run, "-n", "--json")
    assert code == 0, err
    assert [job["targets"] for job in json.loads(out)["jobs"]] == [["flair", "t1ce"]]


@pytest.fixture
def patient(write_nifti, tmp_path) -> Callable[..., Path]:
    """`patient(edge_mm)` is the folder of a case with T1 and T2 alone: a small cube of brain, in slices that thick."""

    def write(edge_mm: float = 1.0) -> Path:
        root = tmp_path / "patient"
        for number, name in enumerate(TWO):
            image = np.zeros((12, 12, 12), np.int16)
            random = np.random.default_rng(number)
            image[2:10, 2:10, 2:10] = random.integers(100, 1000, (8, 8, 8))
            affine = np.diag([1, 1, edge_mm, 1])
            write_nifti(root / "A" / f"A_{name}.nii.gz", image, affine=affine)
        return root

    return write


def test_info_counts_as_missing_what_a_single_case_lacks_and_names_the_command(
    patient, attcl, elsewhere, monkeypatch
):
    root = patient()
    out = attcl("info", root)[1]
    rows = [line.split() for line in out.splitlines()]
    for row in ("flair 0 1", "t1 1 0", "t1ce 0 1", "t2 1 0"):
        assert row.split() in rows
    command = f"attcl complete -i {root} -o out"
    assert f"missing: flair, t1ce; what the weights can make: {command}" in out
    out = attcl("info", root, "--layout", "brats", "--background", "keep")[1]
    assert f"{command} --layout brats --background keep\n" in out
    content = json.loads(attcl("info", root, "--json")[1])
    assert content["patterns"] == [{"missing": ["flair", "t1ce"], "cases": 1}]
    assert content["absent"] == []
    monkeypatch.chdir(root)  # where out/ would lie among the originals
    assert f"attcl complete -i . -o ../{root.name}-attcl" in attcl("info", ".")[1]


def test_info_names_no_command_that_finds_no_weights_and_notes_what_it_would_say(
    patient, attcl, elsewhere
):
    root = patient(5.0)
    code, _, err = attcl("complete", "-i", root)
    error, hint = (line.partition(": ")[2] for line in err.splitlines())
    assert code == 2 and "needs voxels of about 1 mm, found 1 x 1 x 5 mm in A" in error
    assert hint.startswith(
        "no case has flair, t1ce, so that training on this dataset does not help"
    )
    note = f"attcl complete would stop: {error}; {hint}"
    code, out, _ = attcl("info", root)
    assert code == 0 and "attcl complete -i" not in out
    assert "missing: flair, t1ce\n" in out and f"note: {note}\n" in out
    assert json.loads(attcl("info", root, "--json")[1])["notes"] == [note]


def test_info_of_a_whole_case_names_no_command(phantom_root, attcl):
    out = attcl("info", phantom_root / "Phantom_00000")[1]
    assert "missing: nothing\n" in out and "attcl complete" not in out
