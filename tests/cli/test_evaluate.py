"""`attcl evaluate`: the same tables and document as `attcl segment`, for predictions or for a segmenter."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from segmenters import FLAGS, perfect_prediction

from attcl_cli.segmentation import evaluation


@pytest.fixture
def theirs(study) -> Path:
    """A folder with a perfect prediction of the test case."""
    perfect_prediction(study, Path("theirs"))
    return Path("theirs")


def test_predictions_are_shown_in_a_table(attcl, theirs):
    code, out, err = attcl("evaluate", theirs)
    assert code == 0, err
    assert "WT      theirs  1.000  1.000  1.000    0.000  1" in out
    assert "1 test case;" in out and "segment-theirs/summary.json" in out
    assert "evaluate 1/1" in err


def test_json_is_one_document(attcl, theirs):
    code, out, _ = attcl("evaluate", theirs, "--json", "-o", "scores")
    document = json.loads(out)
    assert code == 0 and document["scores"]["theirs"]["WT"]["dice"] == 1
    assert (document["output"], document["cases"], document["missing"]) == ("scores", 1, 0)


def test_a_dry_run_says_what_would_be_scored(attcl, theirs):
    assert attcl("evaluate", theirs, "-n")[:2] == (
        0,
        "would score 1 test case, into segment-theirs\n",
    )
    code, out, _ = attcl("evaluate", theirs, "-n", "--json")
    assert (code, json.loads(out)) == (0, {"output": "segment-theirs", "cases": 1, "notes": []})


def test_one_of_predictions_and_weights_is_needed(attcl, theirs):
    for arguments in ((), (theirs, "-w", "segment")):
        code, out, err = attcl("evaluate", *arguments)
        assert (code, out) == (2, "")
        assert "expected either a folder of label maps or --weights SEGMENTER" in err


def test_predictions_left_out_are_exit_code_3(attcl, study, theirs):
    path = study.root / "data" / "splits.json"
    document = json.loads(path.read_text())
    document["splits"]["test"] += document["splits"]["val"]
    document["splits"]["val"] = []
    path.write_text(json.dumps(document))
    code, out, err = attcl("evaluate", theirs)
    assert (code, out) == (1, "") and "--allow-missing" in err
    code, out, err = attcl("evaluate", theirs, "--allow-missing")
    assert code == 3 and "1.000" in out and "cases left out: 1" in err


def test_a_dry_run_beside_results_says_what_would_be_scored(attcl, study):
    assert attcl("segment", *FLAGS, "-d", "cpu", "-q")[0] == 0
    command = ("evaluate", "segment/predictions")
    assert attcl(*command, "-q")[0] == 0
    code, out, err = attcl(*command, "-n")
    assert (code, out) == (0, "would score 1 test case, into segment-predictions\n")
    assert "note: --output: segment-predictions" in err and "--overwrite" in err
    code, out, err = attcl(*command, "-n", "--overwrite", "--json")
    assert (code, json.loads(out)["notes"], err) == (0, [], "")
    assert attcl(*command)[0] == 2


def test_an_interrupted_evaluation_is_begun_again_by_the_same_command(attcl, study):
    assert attcl("segment", *FLAGS, "-d", "cpu", "-q")[0] == 0
    command = ("evaluate", "-w", "segment", "-d", "cpu", "-q")
    with mock.patch.object(evaluation, "predict_and_score", side_effect=KeyboardInterrupt):
        code, _, err = attcl(*command)
    assert code == 130 and "run the same command again" in err
    assert attcl(*command)[0] == 0
