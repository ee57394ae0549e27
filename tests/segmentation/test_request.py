"""Before anything slow: datasets are opened, inputs chosen, runs to resume found, and folders refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import fingerprint

from attcl_cli.errors import UsageError
from attcl_cli.run_record import RunRecord, read_record
from attcl_cli.segmentation.request import (
    Request,
    TrainingRequest,
    choose_inputs,
    clear,
    open_ground_truth,
    open_study,
    refuse_place,
    require_free,
    resumed,
)
from attcl_cli.segmentation.run import _remove_earlier

REQUEST = TrainingRequest(input="flair", overrides=(("steps", 2), ("canvas", 40)))


def run_in(folder: Path, command: str, config: dict[str, Any], code: int | None = 0) -> Path:
    """Write the record of a run that ended with an exit code; None: that was killed."""
    record = RunRecord(folder / "run.json", command, config=config)
    if code is None:
        record.start()
        record._release()  # as the system does with what a killed process holds
    else:
        record.finish(code)
    return folder


def code_of(error: pytest.ExceptionInfo[UsageError]) -> str:
    return error.value.code


# --- datasets and inputs ---


def test_a_study_needs_splits(study):
    opened = open_study(Request())
    assert opened.splits.names("test") == study.splits.names("test")
    assert opened.provenance.known
    with pytest.raises(UsageError, match="has no splits") as error:
        open_study(Request(ori=str(study.truth)))
    assert code_of(error) == "no-splits" and "hidden = [[]]" in error.value.hint


def test_inputs_are_one_or_all_of_them(study):
    assert choose_inputs(TrainingRequest(), study.data) == (("completed",), [])
    assert choose_inputs(REQUEST, study.data) == (("flair",), [])
    names, notes = choose_inputs(TrainingRequest(compare=True), study.data)
    assert (names, notes) == (("flair", "incomplete", "completed", "real"), [])
    with pytest.raises(UsageError) as error:
        choose_inputs(replace(REQUEST, compare=True), study.data)
    assert code_of(error) == "options-exclude-each-other"


def test_without_a_modality_that_all_cases_have_none_stands_alone(study):
    cases = [
        replace(case, files={key: value for key, value in case.files.items() if key != "flair"})
        for case in study.data.cases
    ]
    data = replace(study.data, cases=tuple(cases))
    names, notes = choose_inputs(TrainingRequest(compare=True), data)
    assert names == ("incomplete", "completed", "real")
    assert notes == ["a single modality is left out: all cases share none"]


def test_the_ground_truth_is_opened_only_for_an_input_that_shows_it(study):
    opened = open_study(Request())
    assert open_ground_truth(Request(), opened, ("completed", "flair")) is None
    whole = open_ground_truth(Request(), opened, ("flair", "real"))
    assert whole is not None and whole.root.resolve() == study.truth.resolve()
    other = Request(truth=str(study.root / "nowhere"))
    with pytest.raises(Exception, match="nowhere: no such folder"):
        open_ground_truth(other, opened, ("real",))


@pytest.mark.parametrize("folder", ["data/segment", "out/segment"])
def test_results_go_neither_among_originals_nor_among_synthesised_volumes(study, folder):
    with pytest.raises(UsageError, match="lies inside") as error:
        refuse_place(study.root / folder, Request(), open_study(Request()), None)
    assert code_of(error) == "output-inside-originals"


def test_results_do_not_go_into_the_ground_truth(study):
    opened = open_study(Request())
    whole = open_ground_truth(Request(), opened, ("real",))
    with pytest.raises(UsageError, match="lies inside"):
        refuse_place(study.truth / "segment", Request(), opened, whole)


# --- resuming ---


def test_a_resumed_run_keeps_its_request_and_may_take_more_steps(tmp_path):
    run_in(tmp_path, "segment", REQUEST.config, 130)
    assert resumed(tmp_path, TrainingRequest()) == REQUEST
    longer = resumed(tmp_path, TrainingRequest(overrides=(("steps", 9),)))
    assert dict(longer.overrides) == {"steps": 9, "canvas": 40}
    assert replace(longer, overrides=()) == replace(REQUEST, overrides=())


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    config = {**REQUEST.config, "weights": None}  # was a key while --weights was a flag
    run_in(tmp_path, "segment", config, 130)
    assert resumed(tmp_path, TrainingRequest()) == REQUEST


@pytest.mark.parametrize(
    "request_", [TrainingRequest(input="t1"), TrainingRequest(overrides=(("width", 4),))]
)
def test_a_resumed_run_takes_nothing_else_along(tmp_path, request_):
    run_in(tmp_path, "segment", REQUEST.config, 130)
    with pytest.raises(UsageError, match="expected it alone") as error:
        resumed(tmp_path, request_)
    assert code_of(error) == "options-exclude-each-other"


@pytest.mark.parametrize(
    ("command", "config"),
    [("train", {}), ("evaluate", {}), ("segment", {})],
)
def test_what_trained_no_segmenter_cannot_be_resumed(tmp_path, command, config):
    with pytest.raises(UsageError) as error:
        resumed(tmp_path / "nowhere", TrainingRequest())
    assert code_of(error) == "nothing-to-resume"
    run_in(tmp_path, command, config)
    with pytest.raises(UsageError) as error:
        resumed(tmp_path, TrainingRequest())
    assert code_of(error) == "nothing-to-resume"


# --- output folders ---


def test_a_new_or_an_empty_folder_is_free(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b"):
        require_free(folder, command="segment", config={})
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(UsageError) as error:
            require_free(folder, command="segment", config={})
        assert code_of(error) == "output-not-a-folder"


def test_a_folder_in_use_is_free_only_to_be_resumed_or_replaced_by_its_own_command(tmp_path):
    run_in(tmp_path, "segment", REQUEST.config)
    with pytest.raises(UsageError) as error:
        require_free(tmp_path, command="segment", config=REQUEST.config)
    assert code_of(error) == "output-not-empty"
    assert error.value.hint.endswith(f"or resume it: attcl segment --resume {tmp_path}")
    require_free(tmp_path, command="segment", config={}, resume=True)
    require_free(tmp_path, command="segment", config={}, overwrite=True)
    with pytest.raises(UsageError, match="it is of attcl segment") as error:
        require_free(tmp_path, command="evaluate", config={}, overwrite=True)
    assert code_of(error) == "output-not-ours"
    with pytest.raises(UsageError) as error:
        require_free(tmp_path, command="evaluate", config={})
    assert "--overwrite" not in error.value.hint


def test_a_folder_of_nobody_is_never_replaced(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"no run\.json says so") as error:
        require_free(tmp_path, command="segment", config={}, overwrite=True)
    assert code_of(error) == "output-not-ours"


@pytest.mark.parametrize(("code", "free"), [(None, True), (1, True), (130, True), (0, False)])
def test_the_same_evaluation_begins_again_if_it_broke_off(tmp_path, code, free):
    run_in(tmp_path, "evaluate", {"predictions": "x"}, code)
    if free:
        require_free(tmp_path, command="evaluate", config={"predictions": "x"})
    for config in [{"predictions": "y"}, *([] if free else [{"predictions": "x"}])]:
        with pytest.raises(UsageError):
            require_free(tmp_path, command="evaluate", config=config)


def test_what_is_to_be_read_is_not_replaced(tmp_path):
    run_in(tmp_path, "evaluate", {})
    with pytest.raises(UsageError, match="which is to be read") as error:
        require_free(
            tmp_path,
            command="evaluate",
            config={},
            overwrite=True,
            reads=[tmp_path / "predictions"],
        )
    assert code_of(error) == "output-holds-input"


def test_what_a_living_run_writes_is_neither_taken_nor_cleared_nor_resumed(tmp_path):
    """A run that was killed holds nothing; one that lives is on record as running, too."""
    record = RunRecord(tmp_path / "run.json", "export", config={})
    with record.recorded():
        before = fingerprint(tmp_path)
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UsageError, match="is being written by another run") as error:
                require_free(tmp_path, command="export", config={}, **options)
            assert code_of(error) == "output-in-use"
        with pytest.raises(UsageError, match="is being written by another run"):
            clear(tmp_path, command="export", config={})
        assert fingerprint(tmp_path) == before
    with pytest.raises(UsageError, match="is not empty"):  # a run that ended meanwhile is kept
        clear(tmp_path, command="export", config={})
    assert (tmp_path / "run.json").exists()


def test_of_runs_that_begin_in_one_folder_one_gets_the_record(tmp_path):
    record = RunRecord(tmp_path / "run.json", "export", config={}, alone=True)
    second = RunRecord(tmp_path / "run.json", "export", config={}, alone=True)
    with record.recorded():
        with (
            pytest.raises(UsageError, match="written by another run meanwhile"),
            second.recorded(),
        ):
            pass
        assert read_record(tmp_path)["status"] == "running"
    assert read_record(tmp_path)["status"] == "done"


def test_clearing_removes_what_the_command_wrote_and_nothing_else(tmp_path):
    files = ["predictions/a.nii.gz", "flair/predictions/a.nii.gz"]
    extra = {"fingerprints": {"flair": {}}, "files": files}  # broken off before anything was tested
    RunRecord(tmp_path / "run.json", "segment", extra=extra).finish(0)
    ours = (
        *("weights.safetensors", "stats.jsonl", "segment.csv", "summary.json"),
        *("log.txt", "report.html"),
    )
    stay = ("notes.txt", "good.safetensors", "slices/a.png", "predictions/a_corrected.nii.gz")
    theirs = {*stay, *(f"flair/{name}" for name in stay)}
    for folder in (tmp_path, tmp_path / "flair"):
        (folder / "predictions").mkdir(parents=True)
        (folder / "slices").mkdir()
        shown = () if folder == tmp_path else ("log.txt", "report.html")
        written = [name for name in ours if name not in shown]
        for name in (*written, "predictions/a.nii.gz", "slices/images.int16", *stay):
            (folder / name).touch()
    with pytest.raises(UsageError, match="was not made by attcl evaluate"):
        clear(tmp_path, command="evaluate", config={}, overwrite=True)
    clear(tmp_path, command="segment", config={}, overwrite=True, remove=_remove_earlier)
    assert set(fingerprint(tmp_path)) == theirs


def test_the_request_is_plain_json():
    assert json.loads(json.dumps(REQUEST.config)) == REQUEST.config
    assert REQUEST.config["overrides"] == [["steps", 2], ["canvas", 40]]
