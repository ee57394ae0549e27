"""Which cases are of training patients of the weights that made their volumes, as records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attcl_cli import complete
from attcl_cli.completion.provenance import (
    describe_training_patients,
    read_provenance,
    training_cases,
)
from attcl_cli.data import volumes
from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.errors import AttclError

ONE, OTHER = "a" * 64, "b" * 64


def visits(case: str) -> str:
    """The patient of `P1-000` is `P1`."""
    return case.partition("-")[0]


def seen(folder: Path, made_by: dict[str, tuple[str, ...]], **record: Any) -> tuple[str, ...]:
    document = {"command": "complete", "weights": {"name": "w", "sha256": ONE}} | record
    (folder / "run.json").write_text(json.dumps(document))
    return read_provenance(folder, made_by, visits).seen


def test_a_case_counts_by_its_own_name_or_another_visit_of_its_patient():
    assert training_cases(["P1-000", "P2-000", "P3-000"], ["P2-001", "P3-000"], visits) == [
        *("P2-000", "P3-000")
    ]
    patient_of = LAYOUTS["brats2023"].patient_of
    assert training_cases(["BraTS-GLI-00001-001"], ["BraTS-GLI-00001-000"], patient_of)


@pytest.mark.parametrize(
    ("makers", "expected"),
    [((ONE,), ("P1",)), ((OTHER,), ()), ((OTHER, ONE), ("P1",)), ((), ("P1",))],
)
def test_only_the_weights_that_made_a_volume_count(makers, expected, tmp_path):
    assert seen(tmp_path, {"P1": makers, "P2": makers}, trained_on=["P1", "P9"]) == expected


@pytest.mark.parametrize(("maker", "expected"), [(ONE, ("P1",)), (OTHER, ("P2",))])
def test_of_several_weights_each_has_its_own_training_cases(maker, expected, tmp_path):
    record = {
        "trained_on": ["P1", "P2"],
        "trained_on_by_weights": {ONE: ["P1"], OTHER: ["P2"]},
    }
    assert seen(tmp_path, {"P1": (maker,), "P2": (maker,)}, **record) == expected


def test_phantoms_of_all_cohorts_share_their_names_and_are_no_training_patients(tmp_path):
    record = {"weights": {"name": "phantom-tiny", "sha256": ONE}, "trained_on": ["P1"]}
    assert seen(tmp_path, {"P1": (ONE,)}, **record) == ()


def test_patients_are_counted_and_not_their_visits():
    cases = ["P1-000", "P1-001", "P2-000", "P3-000"]
    assert describe_training_patients([], cases, visits) == ""
    assert (
        describe_training_patients(cases[:2], cases, visits)
        == "1 of 3 patients is a training patient of the weights"
    )
    assert (
        describe_training_patients(cases[1:3], cases, visits)
        == "2 of 3 patients are training patients of the weights"
    )


def test_weights_of_phantoms_beside_others_do_not_hide_these(tmp_path):
    record = {
        "weights": {"name": "phantom-tiny", "sha256": OTHER},
        "further_weights": [{"name": "w", "sha256": ONE}],
        "trained_on": ["P1", "P2"],
        "trained_on_by_weights": {OTHER: ["P2"], ONE: ["P1"]},
    }
    makers = (ONE, OTHER)
    assert seen(tmp_path, {"P1": makers, "P2": makers}, **record) == ("P1",)
    assert [it["sha256"] for it in read_provenance(tmp_path, {}, visits).weights] == [OTHER, ONE]


def test_a_volume_of_weights_that_no_record_names_leaves_it_unknown(tmp_path):
    document = {
        "command": "complete",
        "weights": {"name": "w", "sha256": ONE},
        "trained_on": ["P1"],
    }
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert read_provenance(tmp_path, {"P2": (ONE,)}, visits).known
    assert not read_provenance(tmp_path, {"P2": (ONE, OTHER)}, visits).known


def test_a_second_run_into_a_folder_keeps_whose_weights_made_what_stays(
    gappy, weights, other_weights, tmp_path
):
    places = {"ori": gappy(lacking=[["t1", "t2"], [], [], []]), "cpl": tmp_path / "out"}
    places["device"] = "cpu"
    complete(**places, weights=weights.path, targets=["t2"])
    file = tmp_path / "out/run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "trained_on": ["X"]}))  # other cases than the next have
    complete(**places, weights=other_weights.path, targets=["t1"])
    record = json.loads(file.read_text())
    named = [record["weights"], *record["further_weights"]]
    assert [it["sha256"] for it in named] == [other_weights.sha256, weights.sha256]
    assert record["trained_on_by_weights"] == {
        other_weights.sha256: list(other_weights.info.trained_on),
        weights.sha256: ["X"],
    }
    assert set(record["trained_on"]) == {"X", *other_weights.info.trained_on}
    # Made again by others, nothing is left of the first.
    complete(**places, weights=other_weights.path, targets=["t1", "t2"], overwrite=True)
    record = json.loads(file.read_text())
    assert record["weights"]["sha256"] == other_weights.sha256
    assert "further_weights" not in record
    assert record["trained_on"] == list(other_weights.info.trained_on)


def test_an_overwriting_run_that_fails_keeps_the_weights_of_what_it_left(
    gappy, weights, other_weights, tmp_path, monkeypatch
):
    places = {"ori": gappy(lacking=[["t2"], ["t2"], [], []]), "cpl": tmp_path / "out"}
    places["device"] = "cpu"
    complete(**places, weights=weights.path)
    save, written = volumes.save, []

    def failing(paths, *values, **options):
        if written:
            raise AttclError("no", "more", code="test")
        written.append(paths)
        return save(paths, *values, **options)

    monkeypatch.setattr(volumes, "save", failing)
    with pytest.raises(AttclError):
        complete(**places, weights=other_weights.path, overwrite=True)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [it["sha256"] for it in record["further_weights"]] == [weights.sha256]
    assert weights.sha256 in record["trained_on_by_weights"]


def test_what_was_unknown_of_earlier_weights_stays_unknown(gappy, weights, other_weights, tmp_path):
    places = {"ori": gappy(lacking=[["t1", "t2"], [], [], []]), "cpl": tmp_path / "out"}
    places["device"] = "cpu"
    complete(**places, weights=weights.path, targets=["t2"])
    file = tmp_path / "out/run.json"
    record = json.loads(file.read_text())
    del record["trained_on"]
    file.write_text(json.dumps(record))
    complete(**places, weights=other_weights.path, targets=["t1"])
    made_by = {"P": (weights.sha256, other_weights.sha256)}
    assert not read_provenance(tmp_path / "out", made_by, visits).known


@pytest.mark.parametrize("wrong", [None, 5, "abc", ["x"]])
def test_a_record_with_other_kinds_of_values_is_an_error(wrong, tmp_path):
    document = {"command": "complete", "trained_on": [], "further_weights": wrong}
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(AttclError) as caught:
        read_provenance(tmp_path, {}, visits)
    assert "further_weights" in caught.value.message
