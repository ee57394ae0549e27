"""`evaluate`: scores label maps of others and trained segmenters alike, and begins again if it broke off."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from helpers import fingerprint
from segmenters import forced, json_in, perfect_prediction, rows_in, segment, the_test_case

from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.segmentation import evaluation, report, run_evaluate
from attcl_cli.segmentation.network import save_segmenter
from attcl_cli.segmentation.run_evaluate import evaluate


def test_a_trained_segmenter_gets_the_scores_of_its_own_run(study):
    segment()
    result = evaluate(weights="segment", output="again", device="cpu")
    assert result.cases == 1 and result.output == Path("again")
    assert rows_in(Path("again")) == rows_in(Path("segment"))
    assert not Path("again", "weights.safetensors").exists()
    record = json_in(Path("again/run.json"))
    assert (record["command"], record["status"]) == ("evaluate", "done")
    assert record["config"]["weights"] == "segment"
    assert record["weights"]["name"] == "segment/weights.safetensors"
    assert record["trained_on"] == list(study.splits.names("train"))
    case = the_test_case(study)
    name = f"predictions/{case}.nii.gz"
    assert Path("again", name).read_bytes() == Path("segment", name).read_bytes()


def test_a_segmenter_may_see_another_input_of_the_same_channels(study, untrained):
    save_segmenter(Path("seg/weights.safetensors"), untrained.network, untrained.info)
    evaluate(weights="seg", device="cpu", input="completed")
    assert {row["input"] for row in rows_in(Path("segment-evaluated"))} == {"completed"}
    with pytest.raises(UsageError, match="trained on flair, t1, t1ce, t2") as error:
        evaluate(weights="seg", device="cpu", input="flair", output="other")
    assert error.value.code == "other-channels"


def test_a_segmenter_that_has_seen_test_cases_is_a_warning(study, untrained):
    from dataclasses import replace

    info = replace(untrained.info, trained_on=(the_test_case(study),))
    save_segmenter(Path("seg/weights.safetensors"), untrained.network, info)
    result = evaluate(weights="seg", device="cpu")
    (warning,) = result.scores.warnings
    assert "trained on 1 of the test cases" in warning
    assert json_in(Path("segment-evaluated/run.json"))["warnings"] == [warning]


def test_predictions_of_a_run_get_its_scores(study):
    segment(per_slice=True)
    result = evaluate("segment/predictions", per_slice=True)
    assert result.output == Path("segment-predictions")
    own, other = rows_in(Path("segment")), rows_in(result.output)
    assert [row["value"] for row in own] == [row["value"] for row in other]
    record = json_in(Path("segment-predictions/run.json"))
    assert (record["command"], record["tested_on"]) == ("evaluate", [the_test_case(study)])


def test_the_truth_as_a_prediction_is_perfect_with_any_releases_values(study):
    perfect_prediction(study, Path("theirs"), values_of="2023")
    result = evaluate("theirs")
    values = {(row.metric, row.value) for row in result.scores.rows}
    assert values == {("dice", 1), ("sens", 1), ("iou", 1), ("hd95", 0)}
    assert result.scores.inputs == ("theirs",)


def test_missing_predictions_are_refused_or_counted(study):
    for _ in range(2):  # what failed leaves nothing behind
        with pytest.raises(AttclError, match="2 of 2 test cases without a prediction") as error:
            _two_test_cases(study)
            Path("theirs").mkdir(exist_ok=True)
            evaluate("theirs")
        assert error.value.code == "predictions-missing"
    perfect_prediction(study, Path("theirs"))
    with pytest.raises(AttclError, match="1 of 2 test cases without a prediction"):
        evaluate("theirs")
    result = evaluate("theirs", allow_missing=True)
    assert (result.cases, len(result.scores.missing)) == (1, 1)
    assert json_in(Path("segment-theirs/summary.json"))["missing"] == list(result.scores.missing)


def _two_test_cases(study) -> None:
    """Move the validation case into the test split."""
    import json

    path = study.root / "data" / "splits.json"
    document = json_in(path)
    document["splits"]["test"] += document["splits"]["val"]
    document["splits"]["val"] = []
    path.write_text(json.dumps(document))


def test_a_folder_that_is_missing_is_named(study):
    with pytest.raises(AttclError, match="nowhere: no such folder") as error:
        evaluate("nowhere")
    assert error.value.code == "predictions-missing"


@pytest.mark.parametrize(
    ("arguments", "options", "code"),
    [
        ((), {}, "one-of-two"),
        (("theirs",), {"weights": "segment"}, "one-of-two"),
        (("theirs",), {"input": "flair"}, "options-exclude-each-other"),
        ((), {"weights": "nowhere"}, "weights-missing"),
        (("out",), {"output": "out/scores"}, "output-inside-originals"),
    ],
)
def test_wrong_usage_is_refused(study, arguments, options, code):
    with pytest.raises(UsageError) as error:
        evaluate(*arguments, **options)
    assert error.value.code == code and error.value.hint


def test_a_dry_run_writes_nothing(study, untrained):
    perfect_prediction(study, Path("theirs"))
    save_segmenter(Path("seg/weights.safetensors"), untrained.network, untrained.info)
    before = fingerprint(study.root)
    for arguments, options in ((("theirs",), {}), ((), {"weights": "seg", "device": "cpu"})):
        result = evaluate(*arguments, **options, dry_run=True)
        assert (result.cases, result.scores) == (1, None)
    assert fingerprint(study.root) == before


# --- folders ---


def test_an_evaluation_that_broke_off_is_begun_again_by_the_same_call(study, untrained):
    save_segmenter(Path("seg/weights.safetensors"), untrained.network, untrained.info)
    with (
        mock.patch.object(evaluation, "predict_and_score", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        evaluate(weights="seg", device="cpu")
    assert json_in(Path("segment-evaluated/run.json"))["exit_code"] == 130
    evaluate(weights="seg", device="cpu")
    with pytest.raises(UsageError) as error:
        evaluate(weights="seg", device="cpu")
    assert error.value.code == "output-not-empty" and "--resume" not in error.value.hint
    evaluate(weights="seg", device="cpu", overwrite=True)


def test_overwrite_never_removes_what_is_still_to_be_read(study, untrained):
    save_segmenter(Path("seg/weights.safetensors"), untrained.network, untrained.info)
    evaluate(weights="seg", device="cpu", output="first")
    before = fingerprint(Path("first"))
    with pytest.raises(UsageError) as error:
        evaluate("first/predictions", output="first", overwrite=True)
    assert error.value.code == "output-holds-input"
    assert fingerprint(Path("first")) == before


def test_overwrite_removes_nothing_before_all_else_is_checked(study):
    path = perfect_prediction(study, Path("theirs"))
    evaluate("theirs")
    before = fingerprint(Path("segment-theirs"))
    path.write_bytes(b"no image")
    with pytest.raises(AttclError):
        evaluate("theirs", overwrite=True)
    assert fingerprint(Path("segment-theirs")) == before


def test_an_evaluation_never_replaces_a_training(study):
    perfect_prediction(study, Path("theirs"))
    segment()
    before = fingerprint(Path("segment"))
    with pytest.raises(UsageError, match="it is of attcl segment") as error:
        evaluate("theirs", output="segment", overwrite=True)
    assert error.value.code == "output-not-ours"
    assert fingerprint(Path("segment")) == before


def test_a_segmenter_sees_volumes_with_the_background_that_it_was_trained_with(study):
    segment(input="flair", background=100.0, force=True)
    evaluate(weights="segment", output="again", device="cpu", force=True)
    assert rows_in(Path("again")) == rows_in(Path("segment"))
    assert json_in(Path("again/run.json"))["background"] == 100.0
    for output, background in (("other", "auto"), ("zero", 0.0)):
        evaluate(weights="segment", output=output, background=background, device="cpu", force=True)
        assert rows_in(Path(output)) != rows_in(Path("segment"))
    assert json_in(Path("zero/run.json"))["background"] == 0.0


def test_volumes_that_a_check_refuses_are_shown_to_a_segmenter_with_force_alone(study, monkeypatch):
    segment()
    seen = forced(monkeypatch, run_evaluate)
    evaluate(weights="segment", output="one", device="cpu")
    evaluate(weights="segment", output="two", device="cpu", force=True)
    assert seen == [False, True]
    with pytest.raises(UsageError, match="--force: given with PREDICTIONS"):
        evaluate("segment/predictions", force=True)


def test_another_visit_of_a_training_patient_is_a_warning():
    patient_of = LAYOUTS["brats2023"].patient_of
    trained_on, tested_on = ["BraTS-GLI-00001-000"], ["BraTS-GLI-00001-001", "BraTS-GLI-00002-000"]
    (warning,) = report.seen(tested_on, trained_on, patient_of)
    assert "1 of the test cases (BraTS-GLI-00001-001)" in warning
    assert report.seen(tested_on[1:], trained_on, patient_of) == []
