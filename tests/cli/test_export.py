"""`attcl export`: a line or a document with what was written, and notes on stderr."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from segmenters import label_map, own_data

NAME = "Dataset501_completed"


def test_the_result_is_one_line(attcl, study):
    code, out, err = attcl("export", "nnunet", NAME)
    assert code == 0, err
    assert out == f"{NAME}: 3 training and 1 test case, 16 files linked, 3 written\n"
    if importlib.util.find_spec("nnunetv2") is None:
        assert "note: nnU-Net is not installed" in err


def test_json_is_one_document(attcl, study):
    code, out, _ = attcl("export", "nnunet", NAME, "--json")
    document = json.loads(out)
    assert code == 0 and (document["train"], document["test"]) == (3, 1)
    assert {"checked_by_nnunet", "linked", "written", "output", "warnings"} <= set(document)


def test_a_dry_run_says_what_would_be_exported(attcl, study):
    code, out, _ = attcl("export", "nnunet", NAME, "-n")
    assert code == 0 and out == f"would export completed (2 train, 1 val, 1 test) to {NAME}\n"
    code, out, _ = attcl("export", "nnunet", NAME, "-n", "--json")
    assert json.loads(out)["cases"] == {"train": 2, "val": 1, "test": 1}
    assert not Path(NAME).exists()


def test_a_dry_run_beside_an_export_says_what_would_be_exported(attcl, study):
    assert attcl("export", "nnunet", NAME, "-q")[0] == 0
    code, out, err = attcl("export", "nnunet", NAME, "-n")
    assert code == 0 and out.startswith("would export completed")
    assert f"note: DIR: {NAME}" in err and "--overwrite" in err
    assert json.loads(attcl("export", "nnunet", NAME, "-n", "--json")[1])["notes"]
    assert attcl("export", "nnunet", NAME)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("monai", NAME), "FORMAT: 'monai', expected one of nnunet"),
        (("nnunet", "here"), "DatasetNNN_Name"),
        (("nnunet",), "Missing argument 'DIR'"),
    ],
)
def test_wrong_usage_has_a_hint(attcl, study, arguments, message):
    code, out, err = attcl("export", *arguments)
    assert (code, out) == (2, "") and message in err and "hint: " in err


def test_cases_left_out_are_exit_code_3(attcl, study):
    own_data(study)
    label_map(study).unlink()
    code, out, err = attcl("export", "nnunet", NAME, "--allow-missing")
    assert code == 3 and "2 training" in out and "cases left out: 1" in err


def test_a_leak_is_a_warning_on_stderr(attcl, study):
    Path("out/run.json").unlink()
    code, _, err = attcl("export", "nnunet", NAME)
    assert code == 0 and "warning: what the completion weights were trained on" in err
