"""`training.run.train`: what it returns, what it refuses, and how a run is continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import SMALL_NETWORKS, SMALL_RUN, fingerprint, small_settings
from training_runs import require_same_runs

from attcl_cli import devices
from attcl_cli.data import slices
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.run_record import RunRecord
from attcl_cli.training.run import TrainingResult, train, weights_sha256
from attcl_cli.training.state import STATE_FILE

# Nothing that depends on how many steps a run has, so that a continued run can be compared with a longer one.
LASTING = {"learning_rate_decay": 0.0, "lambda_ds": 0.0}
SMALL = {**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], **LASTING}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(data: Path, output: str = "run", **options: Any) -> TrainingResult:
    overrides = {**SMALL, **options.pop("overrides", {})}
    options.setdefault("precision", "fp32")  # chosen: nothing to note on a CPU with bf16
    return train(data, output=output, preset="tiny", overrides=overrides, device="cpu", **options)


@pytest.fixture(scope="module")
def finished(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps; read-only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(phantom_root, output=folder, preset="tiny", overrides=SMALL, device="cpu")
    return folder


@pytest.fixture(scope="module")
def halfway(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after 2 of the steps of `finished`; read-only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(phantom_root, output=folder, preset="tiny", overrides=SMALL | {"steps": 2}, device="cpu")
    return folder


@pytest.fixture
def half(halfway: Path, here: Path) -> Path:
    """A copy of `halfway` that may be changed."""
    return Path(shutil.copytree(halfway, "run"))


# --- what it returns --------------------------------------------------------------------------------------------------


def test_a_run_is_described_by_its_result(phantom_root, here):
    result = start(phantom_root, overrides={"steps": 2})
    assert result.run_dir == Path("run")
    assert result.weights == Path("run/weights.safetensors")
    assert result.weights_step == 2
    assert result.settings == small_settings(**LASTING, steps=2)
    assert result.cases == tuple(case.id for case in open_dataset(phantom_root).cases)
    assert (result.data, str(result.device)) == (phantom_root, "cpu")
    assert (result.main, result.finished_before) == (True, False)
    assert weights_sha256(result) == json.loads(Path("run/weights.json").read_text())["sha256"]
    record = json.loads(Path("run/run.json").read_text())
    assert record["exit_code"] == 0
    assert record["trained_on"] == list(result.cases)
    assert not Path("run/slices").exists()  # as large as the dataset, and of no use any more


def test_without_an_output_a_run_gets_a_folder_of_its_own(phantom_root, here):
    result = train(phantom_root, preset="tiny", method="plave", device="cpu", dry_run=True)
    assert result.run_dir.parent == Path("runs")
    assert result.run_dir.name.endswith("-plave")


def test_a_dry_run_checks_everything_and_writes_nothing(phantom_root, here):
    result = start(phantom_root, dry_run=True)
    assert (result.weights, result.weights_step, weights_sha256(result)) == (None, 0, "")
    assert len(result.cases) == 4
    assert not list(here.iterdir())


def test_a_dry_run_into_a_folder_of_results_notes_that_they_are_there(phantom_root, here):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    note, _ = start(phantom_root, dry_run=True, overrides={"canvas": 48}).notes
    assert note.startswith("--output: run") and "attcl train --resume run" in note
    with pytest.raises(UsageError) as caught:
        start(phantom_root)
    assert caught.value.code == "output-not-empty"


# --- data that teaches nothing ----------------------------------------------------------------------------------------


def test_a_single_patient_is_noted_before_anything_costly(gappy, here):
    root = gappy(lacking=[()] * 4)
    for case in open_dataset(root).cases[1:]:
        shutil.rmtree(root / case.id)
    _, note = start(root, dry_run=True, overrides={"canvas": 48}).notes
    assert note.startswith("one training patient: networks that saw a single patient are of no use")


@pytest.mark.parametrize(("precision", "noted"), [(None, True), ("fp32", False), ("bf16", False)])
def test_a_cpu_with_fast_bf16_is_noted_unless_the_precision_is_chosen(
    precision, noted, phantom_root, here, monkeypatch
):
    monkeypatch.setattr(
        devices, "fast_bf16", lambda device: "avx512_bf16" if device.type == "cpu" else None
    )
    options = {"dry_run": True, "overrides": {"canvas": 48}, "precision": precision}
    notes = start(phantom_root, **options).notes
    assert sum("avx512_bf16" in note for note in notes) == noted


def test_several_patients_are_noted_only_if_none_of_them_validates(phantom_root, here):
    options = {"dry_run": True, "overrides": {"canvas": 48}}
    (note,) = start(phantom_root, **options).notes
    assert note.startswith("not validated, since no splits.json names validation cases")
    Path("ratio.toml").write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    prepare_splits(phantom_root, ratio="ratio.toml", sizes=(2, 1, 1))
    assert start(Path("data"), **options).notes == ()


def test_a_modality_that_is_never_beside_another_one_is_noted(gappy, here):
    without_t2 = [("t2",)] * 3
    root = gappy(lacking=[*without_t2, ("flair", "t1", "t1ce")])
    options = {"dry_run": True, "overrides": {"canvas": 48}}
    notes = start(root, **options).notes
    assert [note for note in notes if "true pair" in note] == [
        "t2: in no training case beside another modality, so that no true pair teaches how to make it; "
        "add cases that have both"
    ]
    unpaired = dict.fromkeys(("lambda_pair", "lambda_structure", "supervised", "coarse"), 0)
    published = {**options, "overrides": {"canvas": 48, **unpaired}}
    assert not any("true pair" in note for note in start(root, **published).notes)


def test_a_modality_of_no_training_case_is_refused_before_anything_costly(gappy, here):
    root = gappy(lacking=[("t2",)] * 4)
    assert start(root, dry_run=True).run_dir == Path("run")  # t2 is no modality of this dataset
    names = "\n".join(f"{name} = []" for name in ("flair", "t1", "t1ce", "t2"))
    (root / "modalities.toml").write_text(f"[modalities]\n{names}\n")
    with pytest.raises(AttclError) as caught:
        start(root)
    assert caught.value.code == "modality-of-no-case"
    assert caught.value.message == (
        f"{root}: no training case has t2, expected at least one to learn from"
    )
    assert str(root / "modalities.toml") in caught.value.hint
    assert not Path("run").exists()


def test_a_model_of_one_target_needs_the_modalities_that_there_are(gappy, here):
    root = gappy(lacking=[("t2",)] * 4)
    overrides = {**SMALL_RUN, **SMALL_NETWORKS["plave"], "plave_target": "t1ce"}
    options = {"method": "plave", "preset": "tiny", "device": "cpu", "dry_run": True}
    assert train(root, overrides=overrides, **options).settings.plave_target == "t1ce"


# --- how a run is continued -------------------------------------------------------------------------------------------


def test_a_shorter_run_is_continued_to_the_bits_of_a_longer_one(half, finished):
    result = train(resume=half, overrides={"steps": 4}, device="cpu")
    assert result.weights_step == 4
    require_same_runs(finished, half)


def test_a_finished_run_is_left_as_it_is(finished):
    before = fingerprint(finished)
    result = train(resume=finished, device="cpu")
    assert result.finished_before
    assert (result.weights, result.weights_step) == (finished / WEIGHTS_FILE, 4)
    assert result.cases == tuple(json.loads((finished / "run.json").read_text())["trained_on"])
    assert fingerprint(finished) == before


def test_a_finished_run_without_its_weights_is_not_done(finished, here):
    run = Path(shutil.copytree(finished, "run"))
    (run / WEIGHTS_FILE).unlink()
    before = fingerprint(run)
    with pytest.raises(AttclError, match=r"run/weights\.safetensors: removed") as caught:
        train(resume=run, device="cpu")
    assert (caught.value.code, caught.value.hint) == ("output-removed", "start a new run")
    assert fingerprint(run) == before


def test_a_run_whose_weights_are_removed_at_its_end_is_not_done(phantom_root, here, monkeypatch):
    require_files = RunRecord.require_files

    def removing(record: RunRecord) -> None:
        (Path("run") / WEIGHTS_FILE).unlink()
        require_files(record)

    monkeypatch.setattr(RunRecord, "require_files", removing)
    with pytest.raises(AttclError, match=r"weights\.safetensors: removed while"):
        start(phantom_root, overrides={"steps": 1})
    record = json.loads(Path("run/run.json").read_text())
    assert (record["status"], record["code"]) == ("failed", "output-removed")


def as_first_schema(folder: Path) -> None:
    """Rewrite a run's settings as version 0.1 did: flat, with those of every method."""
    settings = small_settings(**LASTING, steps=2)
    others = {
        key: value
        for name in METHODS
        for key, value in small_settings(name).model_dump(mode="json").items()
        if key not in type(settings).model_fields
    }
    flat = {**others, **settings.model_dump(mode="json")}
    (folder / "config.toml").write_text(tomli_w.dumps(flat))


def test_a_run_of_the_first_schema_is_continued(half, finished):
    as_first_schema(half)
    train(resume=half, overrides={"steps": 4}, device="cpu")
    require_same_runs(finished, half)
    assert "[attcl-gan]" in (half / "config.toml").read_text()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"output": "other"}, "options-exclude-each-other"),
        ({"preset": "tiny"}, "options-exclude-each-other"),
        ({"overrides": {"seed": 1}}, "resumed-run-changed"),
        ({"overrides": {"width": 8}}, "resumed-run-changed"),
        ({"method": "plave"}, "resumed-run-changed"),
    ],
    ids=str,
)
def test_what_a_run_cannot_change_is_refused_and_leaves_it_as_it_is(options, code, half):
    before = fingerprint(half)
    with pytest.raises(UsageError) as caught:
        train(resume=half, device="cpu", **options)
    assert caught.value.code == code
    assert fingerprint(half) == before


def test_a_run_is_continued_on_its_own_patients_alone(half, phantom_root, here):
    shutil.copytree(phantom_root, here / "fewer")
    shutil.rmtree(here / "fewer" / "Phantom_00003")
    with pytest.raises(UsageError) as caught:
        train(here / "fewer", resume=half, overrides={"steps": 4}, device="cpu")
    assert caught.value.code == "resumed-run-changed"


def test_what_is_no_run_cannot_be_resumed(half):
    (half / "config.toml").unlink()
    with pytest.raises(UsageError) as caught:
        train(resume=half, device="cpu")
    assert caught.value.code == "nothing-to-resume"


def test_weights_are_not_replaced_if_the_checkpoint_was_removed(half):
    """To save room, for example: the run would begin at step 0, and replace the weights at its first checkpoint."""
    (half / STATE_FILE).unlink()
    before = fingerprint(half)
    with pytest.raises(UsageError, match=f"has {WEIGHTS_FILE} and no {STATE_FILE}") as caught:
        train(resume=half, overrides={"steps": 4}, device="cpu")
    assert caught.value.code == "checkpoint-removed"
    assert fingerprint(half) == before


@pytest.mark.parametrize("code", [None, "interrupted"])
def test_a_run_that_was_broken_off_at_its_first_checkpoint_begins_again(code, half):
    """A kill, or a second Ctrl-C, between the weights and the checkpoint, which comes after them."""
    (half / STATE_FILE).unlink()
    record = json.loads((half / "run.json").read_text())
    ended = {"exit_code": 130 if code else None, "code": code, "status": "failed"}
    (half / "run.json").write_text(json.dumps(record | ended))
    train(resume=half, overrides={"steps": 4}, device="cpu")
    assert (half / STATE_FILE).is_file()


def test_a_run_that_is_being_written_is_not_resumed(half):
    """As after a requeue of a run that was taken for dead: the second would replace the weights of the first."""
    with RunRecord(half / "run.json", "train").recorded():
        before = fingerprint(half)
        with pytest.raises(UsageError, match="is being written by another run") as caught:
            train(resume=half, overrides={"steps": 4}, device="cpu")
        assert fingerprint(half) == before
    assert caught.value.code == "output-in-use"


def test_a_run_that_was_killed_before_its_settings_is_begun_by_resuming_it(half, finished):
    for path in list(half.iterdir()):
        if path.name != "run.json":  # which is written first, and knows dataset and settings
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(resume=half, overrides={"steps": 4}, device="cpu")
    require_same_runs(finished, half)


def test_a_run_whose_record_cannot_be_written_leaves_its_folder_free(
    phantom_root, here, monkeypatch
):
    def full(*_: object, **__: object):
        raise AttclError("run.json: No space left on device", "free some", code="file-not-written")

    with monkeypatch.context() as patch, pytest.raises(AttclError):
        patch.setattr("attcl_cli.run_record.write_whole", full)
        start(phantom_root)
    assert list((here / "run").glob("*")) == []
    start(phantom_root)


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_no_place_for_a_run(phantom_root, half):
    before = fingerprint(half)
    with pytest.raises(UsageError) as caught:
        start(phantom_root)
    assert caught.value.code == "output-not-empty"
    assert fingerprint(half) == before


def without(root: Path, lacking: Callable[[int, str], bool]) -> Path:
    """Remove modalities of a copied cohort."""
    for index, case in enumerate(open_dataset(root).cases):
        for name in case.files:
            if lacking(index, name):
                (root / case.id / f"{case.id}_{name}.nii.gz").unlink()
    return root


@pytest.mark.parametrize(
    ("lacking", "overrides", "code"),
    [
        (lambda _, name: name != "t1", {}, "one-modality"),
        (lambda index, name: name == ("t1", "t2")[index % 2], {"plave_target": "t1"}, "nothing-to-learn-from"),
        (lambda *_: False, {"plave_target": "pd"}, "unknown-target"),
    ],
    ids=["one-modality", "no-case-of-the-target", "unknown-target"],
)  # fmt: skip
def test_a_dataset_that_teaches_nothing_is_refused_before_anything_is_made(
    lacking, overrides, code, phantom_root, here
):
    shutil.copytree(phantom_root, here / "data")
    data = without(here / "data", lacking)
    with pytest.raises(AttclError) as caught:
        train(
            data,
            output="run",
            preset="tiny",
            method="plave",
            overrides={**SMALL_RUN, **overrides},
            device="cpu",
        )
    assert caught.value.code == code
    assert not Path("run").exists()


def test_packed_slices_of_which_parts_lack_are_refused(store, here):
    packed = here / "packed" / slices.TRAINING_FOLDER
    shutil.copytree(Path(store.data.filename).parent, packed)
    (packed / slices.INDEX_FILE).unlink()
    with pytest.raises(AttclError, match="expected all parts of packed slices") as caught:
        start(here / "packed", overrides={"steps": 2})
    assert caught.value.code == "packed-slices-incomplete"
    assert not (here / "runs").exists()


def test_packed_slices_of_another_size_are_refused(store, here):
    packed = here / "packed" / slices.TRAINING_FOLDER
    shutil.copytree(Path(store.data.filename).parent, packed)
    result = start(here / "packed", overrides={"steps": 2})
    assert (result.cases, result.weights_step) == ((), 2)
    with pytest.raises(UsageError) as caught:
        start(here / "packed", "other", overrides={"image_size": 32})
    assert caught.value.code == "packed-slices-of-another-size"


def test_a_checkpoint_that_is_damaged_is_refused(half):
    (half / STATE_FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(AttclError) as caught:
        train(resume=half, overrides={"steps": 4}, device="cpu")
    assert caught.value.code == "weights-unreadable"


def test_a_resumed_run_reads_its_volumes_as_before(phantoms, here):
    data = here / "all"
    shutil.copytree(phantoms("brats"), data)
    for path in data.rglob("*_t1.nii.gz"):
        path.rename(path.with_name(path.name.replace("_t1.", "_first.")))
    names = here / "names.toml"
    tokens = {"flair": ["flair"], "t1": ["first"], "t1ce": ["t1ce"], "t2": ["t2"]}
    names.write_text(tomli_w.dumps({"modalities": tokens}))
    how = {"modalities": names, "background": "keep", "force": True}
    start(data, "whole", overrides={"steps": 4}, **how)
    start(data, overrides={"steps": 2}, **how)
    record = json.loads(Path("run/run.json").read_text())
    assert (record["background"], record["force"]) == ("keep", True)
    assert record["modalities"] == str(names)
    with pytest.raises(UsageError, match="was started with keep") as caught:
        train(resume="run", overrides={"steps": 4}, background=3.0, device="cpu")
    assert caught.value.code == "resumed-run-changed"
    train(resume="run", overrides={"steps": 4}, device="cpu")
    require_same_runs(Path("whole"), Path("run"))
    record = json.loads(Path("run/run.json").read_text())
    assert (record["background"], record["force"]) == ("keep", True)
