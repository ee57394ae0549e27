"""`segment`: leaves a whole run, resumes a stopped one, trains on no test patient, and refuses before it trains."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import pytest
from helpers import REPOSITORY, complete_perfectly, fingerprint
from safetensors.numpy import load_file
from segmenters import FLAGS, TINY, forced, json_in, rows_in, segment, the_test_case

from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.data.splits import read_splits
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.run_record import RunRecord
from attcl_cli.segmentation import evaluation, run
from attcl_cli.segmentation.metrics import METRICS
from attcl_cli.segmentation.run_evaluate import evaluate
from attcl_cli.segmentation.training import SegmenterTrainer

INPUTS = ("flair", "incomplete", "completed", "real")


class Lines:
    """Listens to a stage, and keeps what it says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: list[tuple[str, int]] = []

    def bar(self, total: int, title: str, *, every_seconds: float = 0):
        del every_seconds
        self.bars.append((title, total))
        return mock.MagicMock()

    def say(self, text: str) -> None:
        self.said.append(text)

    detail = say


def interrupt(*_: object, **__: object):
    raise KeyboardInterrupt


# --- a whole run ---


def test_a_run_leaves_weights_predictions_scores_and_its_record(study):
    result = segment(per_slice=True)
    folder, test = study.root / "segment", the_test_case(study)
    assert result.output == Path("segment") and result.main
    assert result.cases == {"completed": {"train": 2, "val": 1, "test": 1}}
    assert (result.labels, result.device) == ("BraTS 2021 (0, 1, 2, 4)", "cpu")
    rows = rows_in(folder)
    assert {(row["case"], row["input"]) for row in rows} == {(test, "completed")}
    assert {row["region"] for row in rows} == {"WT", "TC", "ET"}
    assert {row["metric"] for row in rows} == {*METRICS, *(f"{name}-slice" for name in METRICS)}
    assert len(result.scores.rows) == len(rows)
    record = json_in(folder / "run.json")
    assert (record["command"], record["status"], record["exit_code"]) == ("segment", "done", 0)
    assert record["trained_on"] == list(study.splits.names("train"))
    assert record["validated_on"] == list(study.splits.names("val"))
    assert record["tested_on"] == [test]
    assert record["inputs"]["completed"]["weights"] == "weights.safetensors"
    assert record["cases"][0]["outputs"] == [f"predictions/{test}.nii.gz"]
    summary = json_in(folder / "summary.json")
    assert "both masks empty" in summary["scores"][0]["policy"]
    assert summary["labels"].startswith("BraTS 2021")
    assert (folder / "predictions" / f"{test}.nii.gz").is_file()
    assert (folder / "stats.jsonl").exists() and not (folder / "slices").exists()


def test_the_same_call_gives_the_same_bytes(study):
    segment(output="first")
    segment(output="second", num_workers=0)
    case = the_test_case(study)
    for name in ("weights.safetensors", f"predictions/{case}.nii.gz", "segment.csv", "report.html"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes(), name


def test_compare_trains_all_four_and_a_perfect_completion_equals_the_upper_bound(study):
    progress = Lines()
    result = segment(compare=True, progress=progress)
    folder = study.root / "segment"
    assert {row["input"] for row in rows_in(folder)} == set(INPUTS)
    completed, real = (load_file(folder / name / "weights.safetensors") for name in INPUTS[2:])
    assert all((completed[key] == real[key]).all() for key in completed)
    gaps = {f"{gap.first} - {gap.second}": gap for gap in result.scores.differences}
    assert set(gaps) == {
        "completed - flair", "completed - incomplete", "real - flair", "real - completed",
    }  # fmt: skip
    assert all(
        gap.mean == 0 or gap.mean != gap.mean
        for gap in result.scores.differences
        if gap.second == "completed"
    )
    titles = [title for title, _ in progress.bars]
    assert titles == [
        *(f"{what} {name}" for name in INPUTS for what in ("read train", "read val", "train")),
        *(f"test {name}" for name in INPUTS),
        "pictures",
    ]


def test_compare_without_a_whole_truth_leaves_the_upper_bound_out_and_says_so(study):
    whole = study.root / "whole"
    shutil.copytree(study.truth, whole)
    item = study.splits.splits["train"][0]
    (whole / item.case / f"{item.case}_{item.hidden[0]}.nii.gz").unlink()
    progress = Lines()
    result = segment(compare=True, truth=whole, progress=progress, dry_run=True)
    assert set(result.cases) == set(INPUTS) - {"real"}
    assert progress.said == [
        "device cpu: preset small (the default: small on a CPU, base on a GPU)",
        "note: real is left out: the complete dataset lacks volumes as well",
    ]


def test_large_slices_without_a_gpu_are_a_note(study):
    progress = Lines()
    sizes = {"image_size": 256, "canvas": 256}
    segment(input="flair", preset="base", overrides=sizes, dry_run=True, progress=progress)
    assert len(progress.said) == 1 and "no GPU; 256-pixel networks" in progress.said[0]


def test_png_slices_are_segmented_into_nifti_of_their_shape(phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("none.toml").write_text("hidden = [[]]")
    prepare_splits(phantoms("slices"), ratio="none.toml", sizes=(2, 0, 1))
    segment(input="flair")
    (test,) = read_splits(Path("data")).names("test")
    prediction = nib.load(Path("segment", "predictions", f"{test}.nii.gz"))
    assert prediction.shape == (40, 40, 26)
    assert nib.aff2axcodes(prediction.affine) == ("L", "P", "S")
    assert json_in(Path("segment/run.json"))["validated_on"] == []
    evaluate("segment/predictions")
    assert [item["value"] for item in rows_in(Path("segment-predictions"))] == [
        item["value"] for item in rows_in(Path("segment"))
    ]


def test_no_test_patient_is_trained_on_and_a_leak_is_a_warning(study):
    test = the_test_case(study)
    record = study.root / "out" / "run.json"
    record.write_text(json.dumps({**json_in(record), "trained_on": [test]}))
    result = segment()
    (warning,) = result.scores.warnings
    assert "the completion weights were trained on 1 of the test patients" in warning
    document = json_in(Path("segment/run.json"))
    assert not set(document["trained_on"]) & set(document["tested_on"])
    assert document["warnings"] == [warning] == json_in(Path("segment/summary.json"))["warnings"]


def test_cases_without_a_label_map_are_left_out(study):
    copy = study.root / "copy"
    shutil.copytree(study.root / "data", copy)
    case = study.splits.names("train")[0]
    (copy / case / f"{case}_seg.nii.gz").unlink()
    result = segment(ori=copy, input="flair", allow_missing=True)
    assert result.left_out == result.scores.missing == (case,)
    record = json_in(Path("segment/run.json"))
    assert record["left_out"] == [case]
    assert record["trained_on"] == [study.splits.names("train")[1]]


# --- stopping and resuming ---


def test_a_stopped_training_resumes_to_the_same_bits(study):
    segment(output="whole", overrides={"steps": 4})
    step = SegmenterTrainer.step

    def stopping(self, batch, number):
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch, number)

    progress = Lines()
    with (
        mock.patch.object(SegmenterTrainer, "step", stopping),
        pytest.raises(InterruptedRun, match="stopped after step 3 of 4") as stop,
    ):
        segment(overrides={"steps": 4}, progress=progress)
    assert stop.value.hint == "resume with: attcl segment --resume segment"
    assert any("stopping after this step" in text for text in progress.said)
    record = json_in(Path("segment/run.json"))
    assert (record["status"], record["exit_code"]) == ("stopped", 130)
    run.segment(resume="segment", device="cpu")
    record = json_in(Path("segment/run.json"))
    (part,) = record["earlier"]
    assert (part["status"], part["exit_code"]) == ("stopped", 130)
    assert record["seconds_in_all"] == pytest.approx(part["seconds"] + record["seconds"], abs=2e-3)
    case = the_test_case(study)
    for name in ("weights.safetensors", f"predictions/{case}.nii.gz", "segment.csv"):
        assert Path("whole", name).read_bytes() == Path("segment", name).read_bytes(), name


def test_a_resumed_comparison_reads_what_was_finished(study):
    segment(output="whole", compare=True)
    tested = []
    predict = evaluation.predict_and_score

    def counted(segmenter, item, *arguments, **options):
        tested.append(item.name)
        if tested == ["flair", "incomplete"]:
            raise KeyboardInterrupt
        return predict(segmenter, item, *arguments, **options)

    with mock.patch.object(evaluation, "predict_and_score", counted):
        with pytest.raises(InterruptedRun) as stop:
            segment(compare=True)
        assert stop.value.hint == "resume with: attcl segment --resume segment"
        assert json_in(Path("segment/run.json"))["config"]["preset"] == "small"  # that of a CPU
        run.segment(resume="segment", device="cpu")
    assert tested == ["flair", "incomplete", "incomplete", "completed", "real"]
    assert rows_in(Path("segment")) == rows_in(Path("whole"))


@pytest.mark.parametrize("file", ["weights.safetensors", "predictions", "segment.csv"])
def test_what_was_removed_from_a_run_is_made_again_when_it_is_resumed(file, study):
    segment(output="whole")

    def removing(record):
        name = f"predictions/{the_test_case(study)}.nii.gz" if file == "predictions" else file
        Path("segment", name).unlink()
        require_files(record)

    require_files = RunRecord.require_files
    with (
        mock.patch.object(RunRecord, "require_files", removing),
        pytest.raises(AttclError, match=f"segment/{file}.*removed while") as caught,
    ):
        segment()
    assert caught.value.hint == "resume with: attcl segment --resume segment"
    record = json_in(Path("segment/run.json"))
    assert (record["status"], record["code"]) == ("failed", "output-removed")
    lost = file == "predictions"
    assert [case["status"] for case in record["cases"]] == ["failed" if lost else "done"]
    run.segment(resume="segment", device="cpu")
    case = the_test_case(study)
    for name in ("weights.safetensors", f"predictions/{case}.nii.gz", "segment.csv"):
        assert Path("whole", name).read_bytes() == Path("segment", name).read_bytes(), name


def test_weights_are_not_replaced_if_the_checkpoint_was_removed(study):
    segment()
    Path("segment/checkpoint-last.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no checkpoint-last.safetensors") as caught:
        run.segment(resume="segment", overrides={"steps": 4}, device="cpu")
    assert caught.value.code == "checkpoint-removed"


def test_a_resumed_run_may_take_more_steps(study):
    segment(output="whole", overrides={"steps": 4})
    segment()
    run.segment(resume="segment", overrides={"steps": 4}, device="cpu")
    assert rows_in(Path("segment")) == rows_in(Path("whole"))


def test_a_resumed_run_takes_no_fewer_steps_than_it_has_behind_it(study):
    segment()
    with pytest.raises(UsageError) as caught:
        run.segment(resume="segment", overrides={"steps": 1}, device="cpu")
    assert caught.value.code == "resumed-run-changed"
    assert caught.value.message.startswith("--steps: 1, but ")


def test_a_resumed_run_needs_the_cases_that_it_was_started_with(study):
    with (
        mock.patch.object(evaluation, "predict_and_score", interrupt),
        pytest.raises(InterruptedRun),
    ):
        segment()
    path = study.root / "data" / "splits.json"
    document = json_in(path)
    document["splits"]["train"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="trained on other cases") as error:
        run.segment(resume="segment", device="cpu")
    assert error.value.code == "other-cases"


def test_a_resumed_run_needs_the_volumes_that_it_was_started_with(study):
    segment()
    case = study.splits.names("train")[0]
    file = next((study.root / "out" / case).glob("*.nii.gz"))
    before = file.read_bytes()
    image = nib.load(file)
    nib.save(nib.Nifti1Image(image.get_fdata()[::-1].astype("int16"), image.affine), file)
    longer = {"resume": "segment", "overrides": {"steps": 4}, "device": "cpu"}
    with pytest.raises(UsageError, match="have changed since segment was begun") as error:
        run.segment(**longer)
    assert error.value.code == "inputs-changed"
    assert f"of {case} (completed)" in error.value.message
    file.write_bytes(before)  # at another time
    run.segment(**longer)


def test_a_run_of_an_earlier_version_is_resumed_whatever_its_volumes_are(study):
    segment()
    path = Path("segment/run.json")
    record = json_in(path)
    assert set(record.pop("fingerprints")["completed"]) == {
        name for part in ("train", "val", "test") for name in study.splits.names(part)
    }
    path.write_text(json.dumps(record))
    run.segment(resume="segment", device="cpu")
    assert "fingerprints" in json_in(path)


def test_a_resumed_run_goes_into_its_own_folder(study):
    with pytest.raises(UsageError) as error:
        run.segment(resume="segment", output="other")
    assert error.value.code == "options-exclude-each-other"


@pytest.mark.slow
def test_several_processes_train_one_segmenter(study):
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "attcl_cli", "segment", *FLAGS, "-d", "cpu", "-q", "-o", "two",
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )  # fmt: skip
    segment(output="one")
    assert json_in(Path("two/run.json"))["processes"] == 2
    one, two = (
        [
            json.loads(line)["loss"]
            for line in Path(name, "stats.jsonl").read_text().splitlines()[:1]
        ]
        for name in ("one", "two")
    )
    assert one == pytest.approx(two, rel=0.05)  # each process' Dice is that of its share


# --- folders ---


def test_results_are_replaced_only_when_asked_and_only_what_the_run_wrote(study):
    segment()
    own = Path("segment/notes.txt")
    own.write_text("mine")
    with pytest.raises(UsageError) as error:
        segment()
    assert error.value.code == "output-not-empty" and "--resume segment" in error.value.hint
    segment(input="flair", overwrite=True)
    assert json_in(Path("segment/run.json"))["earlier"] == []
    assert own.read_text() == "mine"
    assert {row["input"] for row in rows_in(Path("segment"))} == {"flair"}


def test_a_dry_run_beside_results_shows_its_plan_and_notes_that_they_are_there(study):
    segment()
    before = fingerprint(Path("segment"))
    progress = Lines()
    planned = segment(dry_run=True, progress=progress)
    assert planned.cases == {"completed": {"train": 2, "val": 1, "test": 1}}
    (note,) = planned.notes
    assert note.startswith("--output: segment") and "--overwrite" in note
    assert f"note: {note}" in progress.said
    assert segment(dry_run=True, overwrite=True).notes == ()
    assert fingerprint(Path("segment")) == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"input": "t7"}, "unknown-input"),
        ({"input": "t1"}, "modality-missing"),
        ({"compare": True, "input": "flair"}, "options-exclude-each-other"),
        ({"compare": True, "resume": "x"}, "options-exclude-each-other"),
        ({"overrides": {"canvas": 20, "image_size": 20}}, "slices-larger-than-canvas"),
        ({"overrides": {"wide": 1}}, "unknown-setting"),
        ({"preset": "huge"}, "unknown-preset"),
        ({"output": "data/segment"}, "output-inside-originals"),
        ({"output": "out/segment"}, "output-inside-originals"),
        ({"device": "cuda:99"}, "device-absent"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(study, options, code):
    with pytest.raises(AttclError) as error:
        segment(**options)
    assert error.value.code == code and error.value.hint
    assert not Path("segment").exists()


def test_folders_that_are_missing_are_named(study):
    for options in ({"truth": "nowhere", "input": "real"}, {"ori": "nowhere"}):
        with pytest.raises(AttclError, match="nowhere: no such folder"):
            segment(**options)


def test_a_dry_run_checks_everything_and_writes_nothing(study: SimpleNamespace):
    result = segment(compare=True, dry_run=True)
    assert result.scores is None and set(result.cases) == set(INPUTS)
    assert result.settings.steps == TINY["steps"]
    assert not Path("segment").exists()
    next((study.root / "out").rglob("*.nii.gz")).unlink()
    with pytest.raises(AttclError) as error:
        segment(dry_run=True)
    assert error.value.code == "completed-volume-missing"


# --- the proof ---


@pytest.mark.slow
def test_real_modalities_beat_flair_and_a_perfect_completion_equals_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learned = {"image_size": 40, "canvas": 40, "levels": 3, "width": 8, "batch_size": 16}
    learned |= {"learning_rate": 0.05, "validate_every": 50, "steps": 100}
    with mock.patch("os.fsync"):
        write_cohort(Path("cohort"), cases=20, voxel_mm=6.0)
        prepare_splits("cohort", sizes=(10, 2, 8))
        complete_perfectly(tmp_path, tmp_path / "cohort")
        result = run.segment(compare=True, device="cpu", overrides=learned)
    gaps = {
        (gap.first, gap.second, gap.region): gap
        for gap in result.scores.differences
        if gap.metric == "dice"
    }
    core = gaps["real", "flair", "TC"]
    assert core.low > 0.05 and core.mean > 0.1 and core.n == 8
    for region in ("WT", "TC", "ET"):
        equal = gaps["real", "completed", region]
        assert (equal.mean, equal.low, equal.high) == (0, 0, 0)


def test_a_run_is_resumed_with_force_and_from_any_folder(study, tmp_path, monkeypatch):
    segment(input="flair", force=True)
    config = json_in(Path("segment/run.json"))["config"]
    assert config["force"] is True
    assert (config["ori"], config["cwd"]) == ("data", str(study.root))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    seen = forced(monkeypatch, run)
    result = run.segment(resume=study.root / "segment", overrides={"steps": 4}, device="cpu")
    assert result.scores is not None
    record = study.root / "segment/run.json"
    document = json_in(record)
    del document["config"]["force"]  # as earlier versions wrote it
    record.write_text(json.dumps(document))
    run.segment(resume=study.root / "segment", overrides={"steps": 5}, force=True, device="cpu")
    assert seen == [True, True]
