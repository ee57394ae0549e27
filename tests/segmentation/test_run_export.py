"""`export`: checks, writes, records; refuses what the format cannot take; replaces only what it wrote."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from unittest import mock

import pytest
from helpers import fingerprint
from segmenters import json_in

from attcl_cli.errors import AttclError, UsageError
from attcl_cli.segmentation import EXPORTS, nnunet
from attcl_cli.segmentation.run_export import export

NAME = "Dataset501_completed"


def test_an_export_is_recorded_and_says_whether_it_was_checked(study):
    result = export("nnunet", NAME)
    assert (result.output, result.input) == (Path(NAME), "completed")
    assert result.cases == {"train": 2, "val": 1, "test": 1}
    assert (result.exported.train, result.exported.test) == (3, 1)
    record = json_in(Path(NAME, "run.json"))
    assert (record["command"], record["status"]) == ("export", "done")
    assert record["config"]["format"] == "nnunet"
    assert record["checked_by_nnunet"] == result.checked
    if importlib.util.find_spec("nnunetv2") is None:
        assert not result.checked and result.notes == (nnunet.NOT_CHECKED,)


def test_the_check_of_the_other_segmenter_is_asked(study):
    with mock.patch.object(nnunet, "verify", return_value=True) as verify:
        result = export("nnunet", NAME, num_workers=1)
    verify.assert_called_once_with(Path(NAME), workers=1)
    assert result.checked and result.notes == ()


def test_an_export_of_completed_volumes_warns_of_leaks(study):
    (study.root / "out" / "run.json").unlink()
    assert "is not recorded" in export("nnunet", NAME).warnings[0]
    assert export("nnunet", "Dataset502_flair", input="flair").warnings == ()


def test_cases_without_a_label_map_are_left_out(study):
    shutil.copytree(study.root / "data", "copy")
    case = study.splits.names("train")[0]
    Path("copy", case, f"{case}_seg.nii.gz").unlink()
    with pytest.raises(AttclError) as error:
        export("nnunet", NAME, ori="copy", input="flair")
    assert error.value.code == "label-map-missing"
    result = export("nnunet", NAME, ori="copy", input="flair", allow_missing=True)
    assert result.left_out == (case,) and result.exported.train == 2


@pytest.mark.parametrize(
    ("format_", "folder", "options", "code"),
    [
        ("monai", NAME, {}, "unknown-format"),
        ("nnunet", "here", {}, "nnunet-folder-name"),
        ("nnunet", NAME, {"input": "incomplete"}, "nnunet-channel-missing"),
        ("nnunet", NAME, {"input": "t7"}, "unknown-input"),
        ("nnunet", f"data/{NAME}", {}, "output-inside-originals"),
        ("nnunet", f"out/{NAME}", {}, "output-inside-originals"),
    ],
)
def test_what_cannot_be_exported_is_refused(study, format_, folder, options, code):
    with pytest.raises(UsageError) as error:
        export(format_, folder, **options)
    assert error.value.code == code and error.value.hint


def test_an_export_is_replaced_only_when_asked(study):
    export("nnunet", NAME)
    with pytest.raises(UsageError) as error:
        export("nnunet", NAME)
    assert error.value.code == "output-not-empty" and "--overwrite" in error.value.hint
    before = fingerprint(study.root / "out")
    theirs = Path(NAME, "labelsTr", "by_hand.nii.gz")
    theirs.touch()
    with pytest.raises(UsageError, match="that attcl export did not write: labelsTr/by_hand"):
        export("nnunet", NAME, input="flair", overwrite=True)
    theirs.unlink()
    export("nnunet", NAME, input="flair", overwrite=True)
    assert len(list(Path(NAME, "imagesTr").iterdir())) == 3
    assert fingerprint(study.root / "out") == before


def test_an_export_that_broke_off_is_begun_again_by_the_same_call(study):
    with (
        mock.patch.object(nnunet, "verify", side_effect=AttclError("refused", code="x")),
        pytest.raises(AttclError),
    ):
        export("nnunet", NAME)
    assert json_in(Path(NAME, "run.json"))["exit_code"] == 1
    export("nnunet", NAME)


def test_a_dry_run_writes_nothing(study):
    result = export("nnunet", NAME, dry_run=True)
    assert result.exported is None and result.cases["train"] == 2
    assert not Path(NAME).exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_has_what_an_export_needs(name):
    module = importlib.import_module(EXPORTS[name])
    for attribute in ("require_name", "export", "files", "verify", "remove", "NOT_CHECKED"):
        assert hasattr(module, attribute)
