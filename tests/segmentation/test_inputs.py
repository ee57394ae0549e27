"""An input shows the files that it says, no patient is in two splits, and everything wrong is found before training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from segmenters import MODALITIES, label_map, own_data, plan_of, the_test_case

from attcl_cli.completion.provenance import read_provenance
from attcl_cli.data import splits
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, ProblemsError, single_problems
from attcl_cli.segmentation.inputs import (
    Size,
    find_cases,
    lacks_truth,
    plan_inputs,
    plan_truths,
    single_input,
)


def codes(error: pytest.ExceptionInfo[AttclError]) -> list[str]:
    """The codes of all problems of an error."""
    problems = error.value.problems if isinstance(error.value, ProblemsError) else [error.value]
    return [problem.code for problem in problems]


# --- which files ---


def test_each_input_has_its_channels_and_all_have_the_same_cases(study):
    plan = plan_of(study, "flair", "incomplete", "completed", "real")
    assert {name: item.channels for name, item in plan.inputs.items()} == {
        "flair": ("flair",),
        "incomplete": MODALITIES,
        "completed": MODALITIES,
        "real": MODALITIES,
    }
    for item in plan.inputs.values():
        assert item.counts == {"train": 2, "val": 1, "test": 1}
    assert plan.cases("train") == list(study.splits.names("train"))
    assert plan.convention.name == "2021"


@pytest.mark.parametrize(
    ("name", "folder"), [("completed", "out"), ("real", None), ("incomplete", "")]
)
def test_a_missing_channel_comes_from_where_the_input_says(study, name, folder):
    item = study.splits.splits["train"][0]
    sample = plan_of(study, name).inputs[name].splits["train"][0]
    for modality, files in zip(MODALITIES, sample.channels, strict=True):
        if modality not in item.hidden:
            root = study.root / "data"
        elif folder == "":
            assert files == ()
            continue
        else:
            root = study.root / folder if folder else study.truth
        assert files == (root / item.case / f"{item.case}_{modality}.nii.gz",)


def test_the_single_input_is_flair_or_the_first_that_all_cases_have(study):
    assert single_input(study.data) == "flair"
    cases = study.data.cases

    def without(*names: str):
        kept = [
            replace(
                case, files={key: value for key, value in case.files.items() if key not in names}
            )
            for case in cases
        ]
        return replace(study.data, cases=tuple(kept))

    whole = open_dataset(study.truth)
    assert single_input(replace(without("flair"), cases=whole.cases)) == "flair"
    no_flair = [
        replace(case, files={key: value for key, value in case.files.items() if key != "flair"})
        for case in whole.cases
    ]
    assert single_input(replace(whole, cases=tuple(no_flair))) == "t1"
    assert single_input(without("flair")) is None


def test_a_truth_that_lacks_a_volume_is_told_apart(study):
    whole = study.root / "whole"
    shutil.copytree(study.truth, whole)
    assert not lacks_truth(study.data, open_dataset(whole))
    item = study.splits.splits["train"][0]
    (whole / item.case / f"{item.case}_{item.hidden[0]}.nii.gz").unlink()
    assert lacks_truth(study.data, open_dataset(whole))
    with pytest.raises(AttclError, match=f"no {item.hidden[0]} of {item.case}") as error:
        plan_of(study, "real", truth=open_dataset(whole))
    assert codes(error) == ["truth-missing"]


def test_a_synthetic_volume_is_no_ground_truth(study):
    item = study.splits.splits["train"][0]
    truth = study.root / "truth"
    shutil.copytree(study.truth, truth)
    side_cars = [truth / item.case / f"{item.case}_{name}.json" for name in item.hidden]
    for side_car in side_cars:
        side_car.write_text('{"synthetic": true}')
    with pytest.raises(AttclError) as caught:
        plan_of(study, "real", truth=open_dataset(truth))
    assert caught.value.code == "synthetic-truth"
    assert "; and 1 more like it" in caught.value.message
    assert plan_of(study, "completed", truth=None).cases("train")


def test_names_that_leave_open_which_file_is_real_are_refused(study):
    item = study.splits.splits["train"][0]
    truth = study.root / "truth"
    shutil.copytree(study.truth, truth)
    file = truth / item.case / f"{item.case}_{item.hidden[0].upper()}.nii.gz"
    shutil.copy(truth / item.case / f"{item.case}_flair.nii.gz", file)
    with pytest.raises(AttclError) as caught:
        plan_of(study, "real", truth=open_dataset(truth))
    assert codes(caught) == ["modality-twice"]
    assert plan_of(study, "completed", truth=open_dataset(truth)).cases("train")


def test_volumes_made_in_some_slices_alone_are_a_note(study):
    item = study.splits.splits["train"][0]
    for name in item.hidden:
        side_car = study.root / "out" / item.case / f"{item.case}_{name}.json"
        side_car.write_text(json.dumps({"synthetic": True, "slices": [8, 12]}))
    hidden = sum(len(it.hidden) for part in study.splits.splits.values() for it in part)
    (note,) = plan_of(study, "completed").notes
    assert note.startswith(f"2 of {hidden} completed volumes have slices 8:12 alone")
    assert plan_of(study, "incomplete").notes == ()


def test_label_maps_alone_are_planned_without_any_volume(study):
    plan = plan_truths(study.data, study.splits)
    (sample,) = plan.inputs[""].splits["test"]
    assert sample.case == the_test_case(study)
    assert sample.segmentation == (label_map(study, "test"),)


# --- splits ---


def test_a_patient_in_two_splits_is_refused(study):
    both = {**study.splits.splits}
    both["test"] = (*both["test"], both["train"][0])
    with pytest.raises(AttclError, match="is in train and in test") as error:
        find_cases(study.data, replace(study.splits, splits=both), ("test",))
    assert codes(error) == ["patient-in-two-splits"]


def test_a_case_that_is_gone_is_named(study):
    case = study.splits.names("val")[0]
    (study.root / "data" / case).rename(study.root / "elsewhere")
    with pytest.raises(AttclError, match=f"no case {case}") as error:
        find_cases(open_dataset(study.root / "data"), study.splits, ("val",))
    assert codes(error) == ["case-missing"]


def test_an_empty_split_is_refused(study):
    empty = replace(study.splits, splits={**study.splits.splits, "test": ()})
    for plan in (
        lambda: plan_truths(study.data, empty),
        lambda: plan_inputs(
            study.data,
            empty,
            ["flair"],
            completed=study.root / "out",
            truth=None,
            size=Size(40, 40),
        ),
    ):
        with pytest.raises(AttclError, match="in the test split") as error:
            plan()
        assert codes(error) == ["empty-split"]


# --- what made the completed volumes ---


def provenance_of(study):
    asked = dict.fromkeys(study.splits.names("test"), ())
    return read_provenance(study.root / "out", asked, study.data.patient_of)


def test_the_provenance_names_test_patients_that_the_weights_have_seen(study):
    case = the_test_case(study)
    record = study.root / "out" / "run.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps({**document, "trained_on": [case]}))
    provenance = provenance_of(study)
    assert provenance.known and provenance.seen == (case,)
    assert provenance.weights == ({"name": "w", "sha256": "0"},)
    record.unlink()
    provenance = provenance_of(study)
    assert not provenance.known and provenance.seen == () and provenance.weights == ()


def test_complete_records_what_its_weights_were_trained_on(attcl, study, trained_run):
    shutil.rmtree(study.root / "out")
    assert attcl("complete", "-w", trained_run, "-q", "-d", "cpu")[0] == 0
    provenance = provenance_of(study)
    assert provenance.known and provenance.weights[0]["sha256"]
    card = json.loads((trained_run / "weights.json").read_text())
    assert set(provenance.seen) == set(study.splits.names("test")) & set(card["trained_on"])


# --- what is wrong ---


@pytest.mark.parametrize(("name", "code"), [("t7", "unknown-input"), ("t1", "modality-missing")])
def test_an_input_that_cannot_be_shown_is_refused(study, name, code):
    with pytest.raises(AttclError) as error:
        plan_of(study, name)
    assert codes(error) == [code]


def test_slices_larger_than_the_canvas_are_refused_and_without_a_canvas_any_size_fits(study):
    with pytest.raises(AttclError, match="expected at most 24x24") as error:
        plan_of(study, "flair", size=Size(4, 24))
    assert set(codes(error)) == {"slices-larger-than-canvas"}
    hints = {problem.hint for problem in single_problems(error.value)}
    # a multiple of 4 that holds 40 voxels, not one of 24
    assert hints == {"train with --set canvas=40"}
    assert plan_of(study, "flair", size=None).cases("test")


def test_a_case_without_a_label_map_is_refused_or_left_out(study):
    own_data(study)
    label_map(study).unlink()
    changed = open_dataset(study.root / "data")
    study.data = changed
    with pytest.raises(AttclError, match="1 case has no segmentation file") as error:
        plan_of(study, "flair")
    assert codes(error) == ["label-map-missing"]
    plan = plan_of(study, "flair", allow_missing=True)
    assert plan.unlabelled == (study.splits.names("train")[0],)
    assert plan.cases("train") == [study.splits.names("train")[1]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda labels: np.where(labels == 4, 7, labels), "label 7, expected those of BraTS 2021"),
        (lambda labels: np.where(labels == 4, 3, labels), "of no release that is known"),
        (lambda labels: labels * 0.5, "expected whole numbers"),
        (lambda labels: labels[:-1], "39x40x26 against 40x40x26"),
    ],
)
def test_labels_that_do_not_fit_are_named(study, spoil, message):
    own_data(study)
    path = label_map(study)
    image = nib.load(path)
    labels = spoil(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    with pytest.raises(AttclError, match=message) as error:
        plan_of(study, "flair")
    assert path.name in str(error.value)


@pytest.mark.parametrize(("gap_mm", "fits"), [(0.005, True), (0.5, False)])
def test_a_label_maps_header_may_differ_within_tolerance_only(study, gap_mm, fits):
    own_data(study)
    path = label_map(study)
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += gap_mm
    other = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), affine)
    other.set_sform(None, code=0)  # as the releases of 2023 have them
    other.set_qform(affine, code=1)
    nib.save(other, path)
    if fits:
        assert plan_of(study, "flair").unlabelled == ()
        return
    with pytest.raises(AttclError, match="affine off by") as error:
        plan_of(study, "flair")
    assert codes(error) == ["grids-differ"] and path.name in str(error.value)


def test_a_completed_volume_with_nan_is_found_before_anything_is_trained(study):
    path = next((study.root / "out").rglob("*.nii.gz"))
    image = nib.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    values[20, 20, 13] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)
    with pytest.raises(AttclError, match="NaN") as error:
        plan_of(study, "completed")
    assert path.name in str(error.value)


def test_all_problems_are_reported_together(study):
    own_data(study)
    shutil.rmtree(study.root / "out")
    label_map(study).unlink()
    test = label_map(study, "test")
    test.write_bytes(test.read_bytes()[:100])
    study.data = open_dataset(study.root / "data")
    with pytest.raises(ProblemsError) as error:
        plan_of(study, "completed")
    messages = [problem.message for problem in error.value.problems]
    assert "and 6 more like it" in messages[0]
    assert {"completed-volume-missing", "label-map-missing"} <= set(codes(error))
    assert any(test.name in message for message in messages)


@pytest.mark.cohort
def test_the_header_of_a_real_label_map_of_2023_is_accepted(cohort: Path):
    data = open_dataset(cohort / "brasyn")
    parts = {case.id: splits.SplitCase(case.id, tuple(case.files), ()) for case in data.cases}
    prepared = splits.Splits(
        str(data.root), "brats2023", "none", 0, data.modalities,
        {"train": (), "val": (), "test": tuple(parts.values())},
    )  # fmt: skip
    with pytest.raises(AttclError, match="1 case has no segmentation file"):
        plan_truths(data, prepared)
    plan = plan_truths(data, prepared, allow_missing=True)
    assert plan.convention.name == "2023" and len(plan.unlabelled) == 1
    assert len(plan.inputs[""].splits["test"]) == 1
