"""The challenge's folder: its names and nothing else, side-cars and record beside it."""

from __future__ import annotations

import pytest
from completers import content
from helpers import states

from attcl_cli.completion.run import complete
from attcl_cli.errors import UsageError

LACKING = (("t1ce",), ("t1", "t2"), (), ("t1ce",))
NAMES = {
    "Phantom-GLI-00000-000-t1c",
    "Phantom-GLI-00001-000-t1n",
    "Phantom-GLI-00001-000-t2w",
    "Phantom-GLI-00003-000-t1c",
}


def test_a_submission_holds_the_right_names_and_nothing_else(gappy, runs, tmp_path):
    arguments = {"ori": gappy("brats2023"), "weights": runs["general"], "device": "cpu"}
    flat = {**arguments, "cpl": tmp_path / "out", "layout": "brasyn-submission"}
    result = complete(**flat)
    assert (result.written, result.record) == (4, tmp_path / "out-labels/run.json")
    assert set(content(tmp_path / "out")) == {f"{name}.nii.gz" for name in NAMES}
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []
    assert set(content(tmp_path / "out-labels")) == {
        *(f"{name}.json" for name in NAMES),
        "run.json",
        "log.txt",
        "report.html",
    }
    before = content(tmp_path / "out")
    result = complete(**flat)
    assert (result.written, result.done_before) == (0, 4)
    assert content(tmp_path / "out") == before
    complete(**arguments, cpl=tmp_path / "usual")
    usual = content(tmp_path / "usual")
    for name, data in before.items():
        case = "-".join(name.split("-")[:4])
        assert usual[f"{case}/{name}"] == data


def test_a_submission_and_a_dataset_s_own_names_do_not_share_a_folder(
    gappy, runs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = {"ori": gappy("brats2023"), "weights": runs["general"], "device": "cpu"}
    flat = {**own, "layout": "brasyn-submission"}
    complete(**flat, cpl="sub")
    before = states(tmp_path)
    with pytest.raises(
        UsageError, match="sub holds what --layout brasyn-submission wrote"
    ) as caught:
        complete(**own, cpl="sub")
    assert caught.value.code == "output-of-another-layout"
    assert states(tmp_path) == before
    complete(**own, cpl="out")
    before = states(tmp_path)
    with pytest.raises(UsageError, match="expected a folder for brasyn-submission alone") as caught:
        complete(**flat, cpl="out")
    assert caught.value.code == "output-of-another-layout"
    assert states(tmp_path) == before


def test_originals_are_not_linked_into_a_submission(gappy, runs, tmp_path):
    with pytest.raises(UsageError, match="--link-originals: ") as caught:
        complete(
            gappy("brats2023"), tmp_path / "out", weights=runs["general"],
            layout="brasyn-submission", link_originals=True,
        )  # fmt: skip
    assert caught.value.code == "options-exclude-each-other"
    assert not (tmp_path / "out").exists()


def test_a_submission_in_the_working_directory_has_its_records_beside_it(
    gappy, runs, tmp_path, monkeypatch
):
    flat = {"ori": gappy("brats2023"), "weights": runs["general"], "device": "cpu"}
    flat["layout"] = "brasyn-submission"
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert complete(**flat, cpl=".").written == 4
    assert (tmp_path / "sub-labels/run.json").is_file()
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {f"{it}.nii.gz" for it in NAMES}
    assert complete(**flat, cpl=".").done_before == 4


def test_a_submission_that_was_made_in_parts_is_none_of_a_dataset_either(gappy, runs, tmp_path):
    own = {"ori": gappy("brats2023"), "weights": runs["general"], "device": "cpu"}
    own["cpl"] = tmp_path / "sub"
    for part in (1, 2):
        complete(**own, layout="brasyn-submission", num_parts=2, part_id=part)
    with pytest.raises(UsageError, match="holds what --layout brasyn-submission wrote"):
        complete(**own)
