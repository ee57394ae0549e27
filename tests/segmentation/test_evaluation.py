"""A case is scored as a whole and slice by slice; predictions are written in its grid; those of others are checked."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from segmenters import (
    BRATS_2021,
    MODALITIES,
    perfect_prediction,
    plan_of,
    the_test_case,
)

from attcl_cli.errors import AttclError
from attcl_cli.segmentation.evaluation import (
    describe,
    find_predictions,
    predict_and_score,
    score_case,
    score_predictions,
)
from attcl_cli.segmentation.metrics import METRICS
from attcl_cli.segmentation.network import save_segmenter
from attcl_cli.segmentation.summary import summarise

MM = (1.0, 1.0, 1.0)


def small_truth(*slices: int) -> np.ndarray:
    """(10, 6, 6) classes with a square of oedema in some slices."""
    truth = np.zeros((10, 6, 6), dtype=np.uint8)
    truth[list(slices), 2:4, 2:4] = 2
    return truth


def by_metric(rows) -> dict[tuple[str, str], float]:
    return {(row.metric, row.region): row.value for row in rows}


# --- one case ---


def test_a_case_has_a_row_per_region_and_metric():
    truth = small_truth(4)
    rows = score_case(truth, truth, MM, case="1", input_="a")
    assert {(row.region, row.metric) for row in rows} == {
        (region, metric) for region in ("WT", "TC", "ET") for metric in METRICS
    }
    assert {(row.case, row.input) for row in rows} == {("1", "a")}


def test_the_papers_way_averages_over_slices():
    truth = small_truth(4)
    prediction = small_truth(4, 5)
    values = by_metric(score_case(prediction, truth, MM, case="1", input_="a", per_slice=True))
    assert values["dice", "WT"] == 2 * 4 / 12
    # slices 2 to 7: one equal, one wrong, four empty in both
    assert values["dice-slice", "WT"] == pytest.approx(5 / 6)
    assert values["hd95-slice", "WT"] == 0 and values["dice-slice", "TC"] == 1


def test_by_slice_a_prediction_that_finds_nothing_has_no_distance():
    truth = small_truth(4)
    rows = score_case(np.zeros_like(truth), truth, MM, case="1", input_="a", per_slice=True)
    figures = {(item.metric, item.region): item for item in summarise(rows)}
    assert math.isnan(figures["hd95-slice", "WT"].mean)  # not 0 mm, as slices without tumour have
    assert figures["hd95-slice", "WT"].n_undefined == 1


def test_by_slice_distances_are_averaged_over_the_slices_with_both_masks():
    truth = small_truth(4, 5)
    prediction = np.zeros_like(truth)
    prediction[4, 2:4, 3:5] = 2  # one voxel off
    values = by_metric(score_case(prediction, truth, MM, case="1", input_="a", per_slice=True))
    assert values["hd95-slice", "WT"] == 1  # slice 4 alone: in slice 5 the prediction is empty


# --- a segmenter ---


def test_a_prediction_has_the_cases_geometry_and_the_datasets_labels(study, untrained, tmp_path):
    plan = plan_of(study, "incomplete")
    item = plan.inputs["incomplete"]
    ((case, rows),) = predict_and_score(untrained, item, tmp_path, convention=plan.convention)
    assert case == the_test_case(study) and {row.input for row in rows} == {"incomplete"}
    prediction = nib.load(tmp_path / "predictions" / f"{case}.nii.gz")
    image = nib.load(study.truth / case / f"{case}_flair.nii.gz")
    assert prediction.shape == image.shape and prediction.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(prediction.affine, image.affine)
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert prediction.header[field] == image.header[field]
    labels = np.asarray(prediction.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, 4} and labels.any()
    brain = np.zeros(labels.shape, dtype=bool)
    for modality in MODALITIES:
        volume = nib.load(study.truth / case / f"{case}_{modality}.nii.gz")
        brain |= np.asarray(volume.dataobj) != 0
    assert not labels[~brain].any()


@pytest.mark.parametrize("workers", [0, 3])
def test_scores_do_not_depend_on_the_workers(study, untrained, tmp_path, workers):
    plan = plan_of(study, "incomplete")
    item = plan.inputs["incomplete"]
    ((_, one),) = predict_and_score(
        untrained, item, tmp_path / "a", convention=plan.convention, workers=1
    )
    ((_, other),) = predict_and_score(
        untrained, item, tmp_path / "b", convention=plan.convention, workers=workers
    )
    assert [row for row in one if row.value == row.value] == [
        row for row in other if row.value == row.value
    ]


def test_a_segmenter_is_described_by_its_weights(study, untrained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_segmenter(path, untrained.network, untrained.info)
    described = describe(plan_of(study, "flair").inputs["flair"], path, "flair/weights")
    assert described["sees"] == "flair alone, which all cases have"
    assert (described["weights"], described["steps"]) == ("flair/weights", 0)
    assert len(described["sha256"]) == 64


# --- predictions of others ---


def scored(study, folder: Path) -> dict[tuple[str, str], float]:
    plan = plan_of(study, "flair")
    samples = plan.inputs["flair"].splits["test"]
    files, missing = find_predictions(folder, samples)
    assert missing == []
    (rows,) = score_predictions(files, samples, plan.convention, name="theirs")
    return by_metric(rows)


@pytest.mark.parametrize("release", ["2021", "2023"])
def test_the_truth_is_a_perfect_prediction_with_the_values_of_any_release(study, tmp_path, release):
    perfect_prediction(study, tmp_path / "theirs", values_of=release)
    values = scored(study, tmp_path / "theirs")
    assert {(name, value) for (name, _), value in values.items()} == {
        ("dice", 1), ("sens", 1), ("iou", 1), ("hd95", 0),
    }  # fmt: skip


def test_predictions_may_be_compressed_or_not_and_missing_ones_are_named(study, tmp_path):
    samples = plan_of(study, "flair").inputs["flair"].splits["test"]
    case = the_test_case(study)
    assert find_predictions(tmp_path, samples) == ({}, [case])
    plain = tmp_path / f"{case}.nii"
    plain.touch()
    assert find_predictions(tmp_path, samples) == ({case: plain}, [])
    packed = tmp_path / f"{case}.nii.gz"
    packed.touch()
    assert find_predictions(tmp_path, samples) == ({case: packed}, [])


@pytest.mark.parametrize(
    ("spoil", "message", "code"),
    [
        (lambda labels: labels[:-1], "39x40x26 against 40x40x26", "prediction-off-grid"),
        (lambda labels: labels + 5, "of no release that is known", "label-values-unknown"),
        (
            lambda labels: np.arange(labels.size).reshape(labels.shape) % 300,
            "0, 1, 2, 3, 4, 5, 6, 7 and 292 more",
            "label-values-unknown",
        ),
    ],
)
def test_a_prediction_that_does_not_fit_is_named(study, tmp_path, spoil, message, code):
    path = perfect_prediction(study, tmp_path / "theirs")
    image = nib.load(path)
    labels = spoil(np.asarray(image.dataobj)).astype(np.int16)
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    with pytest.raises(AttclError, match=message) as error:
        scored(study, tmp_path / "theirs")
    assert error.value.code == code and str(path) in str(error.value)


def test_predictions_of_two_releases_are_refused(study, tmp_path):
    item = plan_of(study, "flair").inputs["flair"]
    samples = (*item.splits["test"], *item.splits["val"])
    files = {}
    for sample, enhancing in zip(samples, (4, 3), strict=True):
        image = nib.load(sample.segmentation[0])
        labels = np.zeros(image.shape, dtype=np.uint8)
        labels[20, 20, 13] = enhancing
        files[sample.case] = tmp_path / f"{sample.case}.nii.gz"
        nib.save(nib.Nifti1Image(labels, image.affine), files[sample.case])
    with pytest.raises(AttclError) as error:
        list(score_predictions(files, samples, BRATS_2021, name="theirs"))
    assert error.value.code == "label-values-mixed"
    assert str(tmp_path) in str(error.value)
