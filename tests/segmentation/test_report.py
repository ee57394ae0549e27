"""Scores know their differences, and say what makes them doubtful."""

from __future__ import annotations

import pytest
from segmenters import json_in, rows_in

from attcl_cli.completion.provenance import Provenance
from attcl_cli.segmentation.report import Scores, describe_training, leaks, seen, write
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.segmentation.summary import Row


def scores_of(*inputs: str, cases: int = 2, **changes) -> Scores:
    rows = [
        Row(str(case), "WT", "dice", 0.5 + number / 10, name)
        for number, name in enumerate(inputs)
        for case in range(cases)
    ]
    return Scores(tuple(rows), inputs, **changes)


@pytest.mark.parametrize(
    ("inputs", "pairs"),
    [
        (
            ("flair", "incomplete", "completed", "real"),
            {"completed-flair", "completed-incomplete", "real-flair", "real-completed"},
        ),
        (("incomplete", "completed", "real"), {"completed-incomplete", "real-completed"}),
        (("completed",), set()),
    ],
)
def test_completion_is_compared_with_what_is_there(inputs, pairs):
    gaps = scores_of(*inputs).differences
    assert {f"{gap.first}-{gap.second}" for gap in gaps} == pairs


def test_few_cases_are_a_caution_where_intervals_are_shown():
    assert scores_of("flair", "completed").cautions == (
        "few test cases (2): the intervals say little",
    )
    assert scores_of("flair", "completed", cases=10).cautions == ()
    assert scores_of("completed").cautions == ()


def test_completion_that_has_seen_test_patients_is_a_warning():
    weights = ({"name": "w", "sha256": "0"},)
    leaking = Provenance(weights, known=True, seen=("a", "b", "c", "d"))
    (warning,) = leaks(leaking, ("flair", "completed"))
    assert "trained on 4 of the test patients (a, b, c and 1 more)" in warning
    assert leaks(leaking, ("flair", "real")) == []  # have nothing to do with completion
    assert leaks(Provenance(weights, known=True, seen=()), ("completed",)) == []
    (warning,) = leaks(Provenance((), known=False, seen=()), ("completed",))
    assert "is not recorded" in warning


def test_a_segmenter_that_has_seen_test_cases_is_a_warning():
    assert seen(["a", "b"], ["c"], str) == []
    (warning,) = seen(["a", "b"], ["c", "b"], str)
    assert "trained on 1 of the test cases (b)" in warning


def test_the_training_is_described_with_the_step_of_the_weights():
    settings = SegmentSettings(steps=20, batch_size=4)
    assert describe_training(settings, 3, {"completed": {"steps": 10}}) == (
        "trained for 20 steps of 4 slices at 256 pixels on 3 cases; weights of step: 10"
    )
    both = describe_training(settings, 3, {"flair": {"steps": 10}, "completed": {"steps": 20}})
    assert both.startswith("each trained") and both.endswith("flair 10, completed 20")


def test_scores_are_written_with_all_remarks(tmp_path):
    scores = scores_of(
        "flair", "completed", missing=("x",), warnings=("w",), notes=("n",), trained="t"
    )
    write(tmp_path, scores, facts={"labels": "BraTS"})
    assert len(rows_in(tmp_path)) == 4
    summary = json_in(tmp_path / "summary.json")
    assert (summary["labels"], summary["missing"], summary["warnings"]) == ("BraTS", ["x"], ["w"])
    assert summary["notes"] == ["n", "few test cases (2): the intervals say little"]
    assert (summary["cases"], summary["trained"], summary["split"]) == (2, "t", "test")
