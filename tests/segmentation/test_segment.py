"""`attcl segment`: an input is what it says, a stopped run goes on, no test patient is trained on, bad data named."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import fingerprint

from attcl_cli.data import intensities, splits, volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.labels import CONVENTIONS
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.segmentation import inputs as segment_inputs
from attcl_cli.segmentation import metrics as segmentation_metrics
from attcl_cli.segmentation import slices as segment_slices
from attcl_cli.segmentation import summary as segment_scores
from attcl_cli.segmentation import training as segment
from attcl_cli.segmentation.settings import PRESETS, SegmentSettings, resolve

MODALITIES = ("flair", "t1", "t1ce", "t2")
# A network of some thousand weights on the shared phantoms, which are 40x40x26 voxels.
TINY = ["image_size=40", "canvas=40", "levels=3", "width=2", "batch_size=2", "validate_every=2"]
SETTINGS = [part for item in TINY for part in ("--set", item)]
SIZE = segment_slices.Size(image=40, canvas=40)


def complete_perfectly(root: Path, truth: Path) -> None:
    """Copies the hidden truths of `root/data` into `root/out`, as a perfect completion would write them."""
    made = splits.read_splits(root / "data")
    for items in made.splits.values():
        for item in items:
            for name in item.hidden:
                file = Path(item.case) / f"{item.case}_{name}.nii.gz"
                (root / "out" / item.case).mkdir(parents=True, exist_ok=True)
                shutil.copy(truth / file, root / "out" / file)


@pytest.fixture
def place(attcl, phantom_root, tmp_path, monkeypatch) -> SimpleNamespace:
    """A folder with data/ (2 cases to train on, 1 to validate, 1 to test) and a perfect out/."""
    monkeypatch.chdir(tmp_path)
    ratio = tmp_path / "ratio.toml"
    ratio.write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    code, _, err = attcl("prepare-splits", phantom_root, "--ratio", ratio, "--sizes", "2/1/1")
    assert code == 0, err
    complete_perfectly(tmp_path, phantom_root)
    (tmp_path / "out" / "run.json").write_text(
        json.dumps(
            {"command": "complete", "weights": {"name": "w", "sha256": "0"}, "trained_on": []}
        )
    )
    return SimpleNamespace(
        root=tmp_path,
        truth=phantom_root,
        data=open_dataset(tmp_path / "data"),
        splits=splits.read_splits(tmp_path / "data"),
        segment=tmp_path / "segment",
    )


@pytest.fixture
def run(attcl, place) -> Callable[..., tuple[int, str, str]]:
    """`run("--compare")` is `attcl segment` at a tiny size for two steps."""

    def call(*arguments: object, steps: int = 2) -> tuple[int, str, str]:
        given = {"-w", "--evaluate", "--export"} & set(arguments)
        settings = [] if given else [*SETTINGS, "--steps", steps]
        return attcl("segment", *settings, "-d", "cpu", *arguments)

    return call


def plan_of(place: SimpleNamespace, *names: str, canvas: int = 40) -> segment_inputs.Plan:
    return segment_inputs.plan(
        place.data,
        place.splits,
        names,
        completed=place.root / "out",
        truth=open_dataset(place.truth),
        canvas=canvas,
    )


def loaded(place: SimpleNamespace, name: str, part: str = "train") -> segment_slices.Loaded:
    """The first case of a split as an input shows it."""
    sample = plan_of(place, name).inputs[name].splits[part][0]
    return segment_slices.load(sample, SIZE, CONVENTIONS["2021"])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "segment.csv").open() as stream:
        return list(csv.DictReader(stream))


def own_data(place: SimpleNamespace) -> Path:
    """data/ as files of one's own, so that a test may spoil them."""
    copy = place.root / "copy"
    shutil.copytree(place.root / "data", copy)  # follows links
    shutil.rmtree(place.root / "data")
    copy.rename(place.root / "data")
    return place.root / "data"


def seg_of(place: SimpleNamespace, part: str = "train") -> Path:
    case = place.splits.names(part)[0]
    return place.root / "data" / case / f"{case}_seg.nii.gz"


# --- what an input is ---


def test_completed_and_real_show_all_channels_and_a_perfect_completion_is_the_truth(place):
    completed, real = (loaded(place, name) for name in ("completed", "real"))
    assert completed.images.shape == (26, 4, 40, 40)
    np.testing.assert_array_equal(completed.images, real.images)


def test_a_missing_channel_is_zero_after_normalisation(place):
    case = loaded(place, "incomplete")
    hidden = place.splits.splits["train"][0].hidden
    for number, name in enumerate(MODALITIES):
        channel = case.images[:, number]
        if name in hidden:
            assert not channel.any()
        else:
            assert (channel.min(), channel.max()) == (-1, 1)
            assert (channel[~case.brain] == -1).all()


def test_a_modality_alone_is_one_channel_of_the_dataset(place):
    case = loaded(place, "flair")
    item = place.splits.names("train")[0]
    image = volumes.load([place.root / "data" / item / f"{item}_flair.nii.gz"]).data
    brain = image != 0
    wanted = intensities.normalise(image, brain, intensities.intensity_scale(image, brain))
    np.testing.assert_array_equal(case.images[:, 0], wanted)
    assert case.images.shape[1] == 1


def test_labels_are_shrunk_by_majority_and_padded_with_background():
    classes = np.zeros((1, 3, 4), dtype=np.uint8)
    classes[0, :, 2:] = [[3, 3], [3, 1], [2, 2]]
    small = segment_slices.shrink_classes(classes, segment_slices.Size(image=2, canvas=4))
    # padded by a row below: blocks [0 0 / 0 0] [3 3 / 3 1] / [0 0 / 0 0] [2 2 / 0 0], a tie goes to background
    assert small.tolist() == [[[0, 3], [0, 0]]]


def test_both_releases_of_a_case_are_read_alike(phantoms, tmp_path):
    # the shared cohort is written with a 4 in every layout; here its labels become those of 2023
    old = open_dataset(phantoms("brats2023"))
    case = old.cases[0]
    source = old.paths(case, "seg")[0]
    image = nib.load(source)
    labels = np.asarray(image.dataobj)
    new = tmp_path / "seg.nii.gz"
    nib.save(
        nib.Nifti1Image(np.where(labels == 4, 3, labels).astype(np.float32), image.affine), new
    )
    flair = old.paths(case, "flair")
    one, other = (
        segment_slices.load(
            segment_inputs.Sample(case.id, case.id, (flair,), (path,)), SIZE, CONVENTIONS[name]
        )
        for path, name in ((source, "2021"), (new, "2023"))
    )
    assert one.truth.max() == 3
    np.testing.assert_array_equal(one.truth, other.truth)


# --- sampling and training ---


@pytest.fixture
def packed(place, tmp_path) -> segment_slices.SegmentationStore:
    samples = plan_of(place, "incomplete").inputs["incomplete"].splits["train"]
    return segment_slices.build(
        samples, tmp_path / "slices", size=SIZE, convention=CONVENTIONS["2021"], workers=0
    )


def test_the_store_holds_the_slices_that_show_brain(place, packed):
    case = loaded(place, "incomplete")
    shown = case.brain.any(axis=(1, 2))
    count = packed.entries[0].count
    assert count == shown.sum() < 26
    np.testing.assert_allclose(packed.images[:count] / 32767, case.images[shown], atol=1e-4)
    np.testing.assert_array_equal(packed.classes[:count], case.truth[shown])
    assert packed.cases == place.splits.names("train")


def sampler(packed, **changes) -> segment_slices.SliceSampler:
    wanted = {"batch_size": 8, "seed": 0, "tumour_share": 0.5, "augment": True}
    return segment_slices.SliceSampler(packed, **{**wanted, **changes})


def test_a_batch_is_a_function_of_seed_and_step(packed):
    first, again, other, seeded = (
        sampler(packed, seed=seed).batch(step) for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert torch.equal(first.images, again.images) and torch.equal(first.gain, again.gain)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, seeded.images)
    whole = sampler(packed, tumour_share=1.0).batch(0)
    assert whole.classes.flatten(1).any(dim=1).all()


def test_augmentation_leaves_background_and_missing_channels_as_they_are(packed):
    batch = sampler(packed).batch(0)
    plain, classes = sampler(packed, augment=False).batch(0).on(torch.device("cpu"))
    varied, mirrored = batch.on(torch.device("cpu"))
    back = torch.where(batch.mirrored[:, None, None, None], varied.flip(-1), varied)
    assert torch.equal(
        torch.where(batch.mirrored[:, None, None, None], mirrored.flip(-1), mirrored), classes
    )
    background = plain == -1
    assert (back[background] == -1).all()
    missing = ~plain.flatten(2).any(dim=2)
    assert missing.any() and not back[missing].any()
    there = ~background & ~missing[:, :, None, None]
    assert 0 < (back - plain)[there].abs().max() <= 0.2 + 1e-6


def info_of(packed, **changes) -> segment.SegmenterInfo:
    values = {"image_size": 40, "canvas": 40, "levels": 3, "width": 4, "batch_size": 4}
    settings = SegmentSettings(**{**values, "learning_rate": 0.05, **changes})
    return segment.SegmenterInfo(settings, "incomplete", MODALITIES, "2021", packed.cases)


def test_training_learns_and_the_best_validated_weights_are_kept(packed, tmp_path):
    info = info_of(packed, steps=24, validate_every=12, log_every=1)
    best = segment.train(info, packed, tmp_path, validation=packed, device=torch.device("cpu"))
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    judged = {line["step"]: line["validation_dice"] for line in lines if "validation_dice" in line}
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert set(judged) == {12, 24} and judged[best] == max(judged.values())
    loaded_back = segment.load_segmenter(tmp_path, torch.device("cpu"))
    assert loaded_back.info.steps == best
    assert segment.validate(loaded_back.network, packed, loaded_back.device) == judged[best]


def test_a_stopped_run_ends_where_an_undisturbed_one_would_have(packed, tmp_path):
    info = info_of(packed, steps=6, validate_every=4)
    device = torch.device("cpu")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    segment.train(info, packed, whole, validation=packed, device=device)

    def stop(step: int, _values: object) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Exception, match="stopped after step"):
        segment.train(info, packed, parts, validation=packed, device=device, on_step=stop)
    segment.train(info, packed, parts, validation=packed, device=device, resume=True)
    for name in ("weights.safetensors", "checkpoint-last.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


@pytest.mark.gpu
def test_bf16_on_a_gpu_trains_finite_weights(packed, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    info = info_of(packed, steps=4)
    segment.train(
        info, packed, tmp_path, validation=packed, device=torch.device("cuda"), precision="bf16"
    )
    found = segment.load_segmenter(tmp_path, torch.device("cuda"))
    assert all(weight.isfinite().all() for weight in found.network.parameters())


def test_every_preset_is_valid_and_a_wrong_setting_is_named():
    for name in PRESETS:
        assert resolve(name, {}).steps > 0
    assert (resolve(None, {}).learning_rate, resolve(None, {}).momentum) == (1e-3, 0.9)
    for overrides, told in [
        ({"with": 3}, "no such setting"),
        ({"image_size": 100}, "expected a multiple of 16"),
        ({"canvas": 300}, "multiple of image_size"),
        ({"steps": 0}, "setting steps"),
    ]:
        with pytest.raises(UsageError, match=told):
            resolve("base", overrides)
    with pytest.raises(UsageError, match="'huge'"):
        resolve("huge", {})


def test_the_loss_that_blows_up_is_named(packed, tmp_path):
    info = info_of(packed, steps=30, log_every=1)
    nan = mock.Mock(return_value=torch.tensor(float("nan"), requires_grad=True))
    with (
        mock.patch("monai.losses.dice.DiceCELoss", return_value=nan),
        pytest.raises(Exception, match="the loss is nan at step 1"),
    ):
        segment.train(info, packed, tmp_path, validation=None, device=torch.device("cpu"))


# --- the command ---


def test_a_run_leaves_weights_predictions_scores_and_its_record(run, place):
    code, out, err = run("--per-slice")
    assert code == 0, err
    folder = place.segment
    test = place.splits.names("test")
    rows = rows_of(folder)
    names = {*segmentation_metrics.KINDS, *(f"{name}-slice" for name in segmentation_metrics.KINDS)}
    assert {(row["case"], row["input"]) for row in rows} == {(test[0], "completed")}
    assert {row["region"] for row in rows} == {"WT", "TC", "ET"}
    assert {row["metric"] for row in rows} == names
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("done", 0)
    assert record["trained_on"] == list(place.splits.names("train"))
    assert record["validated_on"] == list(place.splits.names("val"))
    assert record["tested_on"] == list(test)
    assert record["inputs"]["completed"]["weights"] == "weights.safetensors"
    summary = json.loads((folder / "summary.json").read_text())
    assert "both masks empty" in summary["scores"][0]["policy"]
    assert summary["labels"].startswith("BraTS 2021")
    table = out.splitlines()
    assert max(map(len, table)) <= 80 and "a slice is the unit" in out
    assert not (folder / "slices").exists()
    assert (folder / "stats.jsonl").exists()


def test_a_prediction_has_the_cases_geometry_and_the_datasets_labels(run, place):
    assert run("-q", "--set", "learning_rate=0.2", steps=20)[0] == 0
    case = place.splits.names("test")[0]
    prediction = nib.load(place.segment / "predictions" / f"{case}.nii.gz")
    image = nib.load(place.truth / case / f"{case}_flair.nii.gz")
    assert prediction.shape == image.shape and prediction.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(prediction.affine, image.affine)
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert prediction.header[field] == image.header[field]
    labels = np.asarray(prediction.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2, 4} and labels.any()
    brain = np.zeros(labels.shape, dtype=bool)
    for modality in MODALITIES:
        brain |= np.asarray(nib.load(place.truth / case / f"{case}_{modality}.nii.gz").dataobj) != 0
    assert not labels[~brain].any()


def test_png_slices_are_segmented_into_nifti_of_their_shape(attcl, phantoms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("none.toml").write_text("hidden = [[]]")
    whole = phantoms("slices")
    assert attcl("prepare-splits", whole, "--ratio", "none.toml", "--sizes", "2/0/1")[0] == 0
    code, _, err = attcl("segment", "--input", "flair", *SETTINGS, "--steps", 2, "-d", "cpu")
    assert code == 0, err
    (test,) = splits.read_splits(tmp_path / "data").names("test")
    prediction = nib.load(tmp_path / "segment" / "predictions" / f"{test}.nii.gz")
    assert prediction.shape == (40, 40, 26)
    assert nib.aff2axcodes(prediction.affine) == ("L", "P", "S")
    assert json.loads(Path("segment/run.json").read_text())["validated_on"] == []
    assert attcl("segment", "--evaluate", "segment/predictions", "-q")[0] == 0
    assert [item["value"] for item in rows_of(tmp_path / "segment-predictions")] == [
        item["value"] for item in rows_of(tmp_path / "segment")
    ]
    code, _, err = attcl("segment", "--export", "nnunet", "Dataset001_x", "--input", "flair")
    assert code == 2 and "PNG slices" in err


def test_the_same_command_gives_the_same_bytes(run, place):
    assert run("-q", "-o", "first")[0] == 0
    assert run("-q", "-o", "second", "--num-workers", 0)[0] == 0
    case = place.splits.names("test")[0]
    for name in ("weights.safetensors", f"predictions/{case}.nii.gz", "segment.csv"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes(), name


def test_compare_tells_all_four_and_their_differences(run, place):
    code, out, err = run("--compare")
    assert code == 0, err
    assert {row["input"] for row in rows_of(place.segment)} == {
        "flair", "incomplete", "completed", "real",
    }  # fmt: skip
    # a perfect completion is the truth, so its segmenter is the ceiling's
    for name in ("weights.safetensors", "segment.csv"):
        one, other = ((place.segment / item / name).read_bytes() for item in ("completed", "real"))
        if name == "segment.csv":
            assert one.replace(b"completed", b"real") == other
        else:
            assert [*_tensors(place.segment / "completed")] == [*_tensors(place.segment / "real")]
    summary = json.loads((place.segment / "summary.json").read_text())
    pairs = {f"{item['first']} - {item['second']}" for item in summary["differences"]}
    assert pairs == {
        "completed - flair", "completed - incomplete", "real - flair", "real - completed",
    }  # fmt: skip
    assert all(
        item["mean"] in (0, None)
        for item in summary["differences"]
        if item["second"] == "completed"
    )
    assert "completed - incomplete" in out and max(map(len, out.splitlines())) <= 80
    assert "few test cases (1)" in err


def _tensors(folder: Path):
    from safetensors.numpy import load_file

    for name, value in sorted(load_file(folder / "weights.safetensors").items()):
        yield name, value.tobytes()


def test_compare_without_a_whole_truth_leaves_the_ceiling_out_and_says_so(run, place):
    whole = place.root / "whole"
    shutil.copytree(place.truth, whole)
    item = place.splits.splits["train"][0]
    (whole / item.case / f"{item.case}_{item.hidden[0]}.nii.gz").unlink()
    code, _, err = run("--compare", "--truth", whole)
    assert code == 0, err
    assert "real is left out" in err
    assert "real" not in {row["input"] for row in rows_of(place.segment)}
    code, _, err = run("--input", "real", "--truth", whole, "-o", "other")
    assert code == 1 and f"no {item.hidden[0]} of {item.case}" in err


def test_no_test_patient_is_trained_on_and_a_leak_is_a_warning(run, place):
    test = place.splits.names("test")[0]
    record = place.root / "out" / "run.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps({**document, "trained_on": [test]}))
    code, out, _ = run()
    assert code == 0
    assert "warning: the completion weights were trained on 1 of the test patients" in out
    run_json = json.loads((place.segment / "run.json").read_text())
    assert not set(run_json["trained_on"]) & set(run_json["tested_on"])
    assert test in run_json["warnings"][0]
    assert json.loads((place.segment / "summary.json").read_text())["warnings"]

    record.unlink()
    code, out, _ = run("-o", "unknown")
    assert "is not recorded" in out
    # flair has nothing to do with completion
    _, out, _ = run("-o", "alone", "--input", "flair")
    assert "warning" not in out


def test_a_patient_in_two_splits_is_refused(run, place):
    path = place.root / "data" / "splits.json"
    document = json.loads(path.read_text())
    document["splits"]["test"].append(document["splits"]["train"][0])
    path.write_text(json.dumps(document))
    code, _, err = run()
    assert code == 1 and "is in train and in test" in err


def test_complete_records_what_its_weights_were_trained_on(attcl, place, trained_run):
    shutil.rmtree(place.root / "out")
    assert attcl("complete", "-w", trained_run, "-q", "-d", "cpu")[0] == 0
    found = segment_inputs.completion(place.root / "out", place.data, place.splits)
    assert found.known and found.weights[0]["sha256"]
    card = json.loads((trained_run / "weights.json").read_text())
    assert set(found.seen) == set(place.splits.names("test")) & set(card["trained_on"])


def test_weights_are_evaluated_without_training(run, place):
    assert run("-q")[0] == 0
    code, _, err = run("-w", "segment", "-o", "again")
    assert code == 0, err
    assert rows_of(place.root / "again") == rows_of(place.segment)
    assert not (place.root / "again" / "weights.safetensors").exists()
    code, _, err = run("-w", "segment", "-o", "flair", "--input", "flair")
    assert code == 2 and "trained on flair, t1, t1ce, t2" in err
    # trained on what is complete, tested on what is not
    assert run("-q", "-w", "segment", "-o", "other", "--input", "incomplete")[0] == 0
    record = json.loads(Path("other", "run.json").read_text())
    assert record["trained_on"] == list(place.splits.names("train"))


def test_weights_of_the_wrong_kind_are_refused(run, place, trained_run):
    code, _, err = run("-w", trained_run)
    assert code == 1 and "not readable as a segmenter" in err
    code, _, err = run("-w", "nowhere")
    assert code == 2 and "nowhere does not exist" in err


def test_predictions_of_others_are_scored_alike(run, place):
    assert run("-q")[0] == 0
    code, _, err = run("--evaluate", "segment/predictions")
    assert code == 0, err
    own, other = rows_of(place.segment), rows_of(place.root / "segment-predictions")
    assert [row["value"] for row in own] == [row["value"] for row in other]

    case = place.splits.names("test")[0]
    truth = place.truth / case / f"{case}_seg.nii.gz"
    folder = place.root / "theirs"
    folder.mkdir()
    image = nib.load(truth)
    labels = np.asarray(image.dataobj)
    new = nib.Nifti1Image(np.where(labels == 4, 3, labels).astype(np.uint8), image.affine)
    nib.save(new, folder / f"{case}.nii.gz")  # the truth with 2023's values, as nnU-Net predicts
    assert run("--evaluate", folder)[0] == 0
    values = {(row["metric"], row["value"]) for row in rows_of(place.root / "segment-theirs")}
    assert values == {("dice", "1.0"), ("sens", "1.0"), ("iou", "1.0"), ("hd95", "0.0")}


def test_folders_of_predictions_that_do_not_fit_are_refused(run, place):
    case = place.splits.names("test")[0]
    folder = place.root / "theirs"
    folder.mkdir()
    code, _, err = run("--evaluate", folder)
    assert code == 1 and "1 of 1 test cases have no prediction" in err and case in err
    image = nib.load(place.truth / case / f"{case}_seg.nii.gz")
    labels = np.asarray(image.dataobj)
    path = folder / f"{case}.nii.gz"
    nib.save(nib.Nifti1Image(labels[:-1], image.affine), path)
    code, _, err = run("--evaluate", folder)
    assert code == 1 and "39x40x26 against 40x40x26" in err
    nib.save(nib.Nifti1Image(labels + 5, image.affine), path)
    code, _, err = run(
        "--evaluate", folder
    )  # what failed left nothing behind that had to be replaced
    assert code == 1 and f"{path}: label values" in err and "of no release that is known" in err
    image = np.arange(labels.size).reshape(labels.shape) % 300
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.asarray(nib.load(path).affine)), path)
    code, _, err = run("--evaluate", folder)
    assert code == 1 and "0, 1, 2, 3, 4, 5, 6, 7 and 292 more" in err
    code, _, err = run("--evaluate", place.root / "nowhere")
    assert code == 1 and "no such folder" in err


def test_a_run_goes_on_where_it_stopped(run, attcl, place):
    assert run("-q", "-o", "whole", "--compare", steps=4)[0] == 0

    done = segment.evaluate
    calls = []

    def counted(*arguments: object, **options: object):
        calls.append(options["input_"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(*arguments, **options)

    with mock.patch.object(segment, "evaluate", counted):
        assert run("-q", "--compare", steps=4)[0] == 130
    assert calls == ["flair", "incomplete"]
    with mock.patch.object(segment, "evaluate", wraps=done) as evaluate:
        code, _, err = attcl("segment", "--resume", "segment", "-d", "cpu", "-q")
    assert code == 0, err
    # flair was finished, and is read instead
    made = [call.kwargs["input_"] for call in evaluate.call_args_list]
    assert made == ["incomplete", "completed", "real"]
    assert rows_of(place.segment) == rows_of(place.root / "whole")


def test_overwrite_never_removes_what_is_still_to_be_read(run, place):
    assert run("-q")[0] == 0
    before = fingerprint(place.segment)
    for mode, read in (("-w", place.segment), ("--evaluate", place.segment / "predictions")):
        code, _, err = run(mode, read, "-o", "segment", "--overwrite")
        assert code == 2 and "which is to be read, expected another folder" in err
        assert fingerprint(place.segment) == before


def test_overwrite_removes_nothing_before_all_else_is_checked(run, place):
    assert run("-q")[0] == 0
    before = fingerprint(place.segment)
    case = place.splits.names("test")[0]
    (place.root / "theirs").mkdir()
    (place.root / f"theirs/{case}.nii.gz").write_bytes(b"no image")
    assert run("--evaluate", place.root / "theirs", "-o", "segment", "--overwrite")[0] == 1
    assert fingerprint(place.segment) == before


def test_weights_are_evaluated_beside_their_own_folder(run, place):
    assert run("-q", "--compare")[0] == 0
    code, _, err = run("-w", "segment")
    assert code == 2 and "hint: name one of segment/completed, segment/flair" in err
    assert run("-w", "segment/flair", "-q")[0] == 0
    told = json.loads((place.root / "segment-evaluated/run.json").read_text())
    assert told["config"]["weights"] == "segment/flair"


def test_an_evaluation_that_broke_off_is_begun_again_by_the_same_command(run, place):
    assert run("-q")[0] == 0
    done = segment.evaluate

    def interrupted(*arguments: object, **options: object):
        raise KeyboardInterrupt

    again = ("-w", "segment", "-q")
    with mock.patch.object(segment, "evaluate", interrupted):
        code, _, err = run(*again)
    assert code == 130 and "run the same command again" in err
    with mock.patch.object(segment, "evaluate", wraps=done):
        assert run(*again)[0] == 0
    code, _, err = run(*again)
    assert code == 2 and "is not empty" in err and "--resume" not in err


def test_control_c_between_trainings_says_how_to_go_on(run):
    def interrupted(*arguments: object, **options: object):
        raise KeyboardInterrupt

    with mock.patch.object(segment, "evaluate", interrupted):
        code, _, err = run("-q")
    assert code == 130 and "hint: go on with: attcl segment --resume segment" in err


def test_a_completed_volume_with_nan_is_found_before_anything_is_trained(run, place):
    path = next((place.root / "out").rglob("*.nii.gz"))
    image = nib.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    values[20, 20, 13] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)
    code, _, err = run("--dry-run")
    assert code == 1 and path.name in err and "NaN" in err


def test_the_table_says_what_was_trained_and_json_has_the_differences(run):
    code, out, err = run("--compare")
    assert code == 0, err
    told = " ".join(out.split())
    assert "each trained for 2 steps" in told and "weights of step: flair 2" in told
    code, out, _ = run("--compare", "-q", "--json", "-o", "again")
    told = json.loads(out)
    assert {(gap["first"], gap["second"]) for gap in told["differences"]} >= {("real", "completed")}
    assert {"n", "n_undefined", "sd"} <= set(told["figures"][0])
    assert told["trained"].startswith("each trained for 2 steps")
    assert any("few test cases" in note for note in told["notes"])


def test_resume_takes_nothing_else_along_but_more_steps(run, attcl, place):
    code, _, err = attcl("segment", "--resume", "segment")
    assert code == 2 and "no run.json of a run that trains a segmenter" in err
    assert run("-q")[0] == 0
    code, _, err = attcl("segment", "--resume", "segment", "--input", "flair")
    assert code == 2 and "--input" in err
    code, _, err = attcl("segment", "--resume", "segment", "--steps", 4, "-d", "cpu", "-q")
    assert code == 0, err
    assert run("-q", "-o", "whole", steps=4)[0] == 0
    assert rows_of(place.segment) == rows_of(place.root / "whole")


def test_results_are_replaced_only_when_asked_and_only_ours(run, place):
    assert run("-q")[0] == 0
    own = place.segment / "notes.txt"
    own.write_text("mine")
    code, _, err = run()
    assert code == 2 and "is not empty" in err and "--resume segment" in err
    assert run("-q", "--overwrite", "--input", "flair")[0] == 0
    assert own.read_text() == "mine"
    assert {row["input"] for row in rows_of(place.segment)} == {"flair"}
    other = place.root / "other"
    other.mkdir()
    (other / "something").touch()
    code, _, err = run("-o", other, "--overwrite")
    assert code == 2 and "was not made by attcl segment" in err


def test_a_dry_run_and_json_say_one_thing_each(run, place):
    code, out, _ = run("--compare", "-n")
    assert code == 0 and "would train 2 steps at 40 pixels" in out
    assert not place.segment.exists()
    code, out, _ = run("--json", "-n")
    assert json.loads(out)["inputs"] == {"completed": {"train": 2, "val": 1, "test": 1}}
    code, out, _ = run("--json")
    assert set(json.loads(out)["scores"]["completed"]) == {"WT", "TC", "ET"}
    assert run("-q", "-o", "quiet")[1:] == ("", "")


# --- bad input ---


def test_a_case_without_segmentation_is_named_or_left_out(run, place):
    own_data(place)
    seg_of(place).unlink()
    code, _, err = run()
    assert code == 1 and "1 cases have no segmentation file" in err
    code, _, err = run("--allow-missing")
    assert code == 3 and place.splits.names("train")[0] in err
    record = json.loads((place.segment / "run.json").read_text())
    assert record["left_out"] == [place.splits.names("train")[0]]
    assert record["trained_on"] == [place.splits.names("train")[1]]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda labels: np.where(labels == 4, 7, labels), "label 7, expected those of BraTS 2021"),
        (lambda labels: np.where(labels == 4, 3, labels), "of no release that is known"),
        (lambda labels: labels * 0.5, "expected whole numbers"),
        (lambda labels: labels[:-1], "39x40x26 against 40x40x26"),
    ],
)
def test_labels_that_do_not_fit_are_named(run, place, spoil, told):
    own_data(place)
    path = seg_of(place)
    image = nib.load(path)
    labels = spoil(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(labels, image.affine), path)
    code, out, err = run()
    assert (code, out) == (1, "")
    assert told in err and path.name in err
    assert not place.segment.exists()


@pytest.mark.parametrize(("gap_mm", "code"), [(0.005, 0), (0.5, 1)])
def test_a_label_maps_header_may_differ_within_tolerance_only(run, place, gap_mm, code):
    own_data(place)
    path = seg_of(place)
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += gap_mm
    other = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), affine)
    other.set_sform(None, code=0)  # as the releases of 2023 have them
    other.set_qform(affine, code=1)
    nib.save(other, path)
    found, _, err = run("-q")
    assert found == code, err
    if code:
        assert "affine off by" in err and path.name in err


@pytest.mark.cohort
def test_the_header_of_a_real_label_map_of_2023_is_accepted(cohort):
    data = open_dataset(cohort / "brasyn")
    parts = {case.id: splits.SplitCase(case.id, tuple(case.files), ()) for case in data.cases}
    made = splits.Splits(
        str(data.root), "brats2023", "none", 0, data.modalities,
        {"train": (), "val": (), "test": tuple(parts.values())},
    )  # fmt: skip
    with pytest.raises(AttclError, match="1 cases have no segmentation file"):
        segment_inputs.plan_truths(data, made)
    plan = segment_inputs.plan_truths(data, made, allow_missing=True)
    assert plan.convention.name == "2023" and len(plan.unlabelled) == 1
    assert len(plan.inputs[""].splits["test"]) == 1


def test_all_problems_are_told_together(run, place):
    own_data(place)
    shutil.rmtree(place.root / "out")
    seg_of(place).unlink()
    test = seg_of(place, "test")
    test.write_bytes(test.read_bytes()[:100])
    code, _, err = run()
    assert code == 1
    assert "not there, expected every missing volume completed" in err
    assert "and 6 more like it" in err
    assert "no segmentation file" in err and test.name in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input", "t7"], "--input: 't7', expected one of"),
        (["--input", "t1"], "expected a modality that all cases have"),
        (["--compare", "--input", "flair"], "given with --compare"),
        (["--compare", "--resume", "x"], "--compare: given with --resume"),
        (
            ["-w", "segment", "--steps", "3"],
            "given with setting steps, expected it without settings",
        ),
        (["--evaluate", "data", "--input", "flair"], "--evaluate: given with --input"),
        (["--export", "monai", "x"], "--export: 'monai', expected nnunet"),
        (["--set", "canvas=20", "--set", "image_size=20"], "expected at most 20x20"),
        (["--preset", "huge"], "--preset: 'huge'"),
        (["-o", "data/segment"], "lies inside"),
        (["-o", "out/segment"], "lies inside"),
        (["--truth", "nowhere", "--input", "real"], "nowhere: no such folder"),
        (["--ori", "elsewhere"], "elsewhere: no such folder"),
    ],
)
def test_wrong_usage_is_told_before_anything_slow(run, place, arguments, told):
    code, out, err = run(*arguments)
    assert code in (1, 2) and out == ""
    assert told in err and "hint:" in err
    assert not place.segment.exists()


def test_a_dataset_that_nobody_split_is_sent_to_prepare_splits(attcl, place):
    code, _, err = attcl("segment", "--ori", place.truth)
    assert code == 2 and "splits.json" in err and "hidden = [[]]" in err


# --- figures ---


def row(case: str, value: float, input_: str = "a", metric: str = "dice") -> segment_scores.Row:
    return segment_scores.Row(case, "WT", metric, value, input_)


def test_undefined_values_are_counted_and_not_averaged():
    nan = math.nan
    figure = segment_scores.summarise([row("1", 0.5), row("2", nan), row("3", 0.7)])[0]
    assert (figure.mean, figure.n, figure.n_undefined) == (pytest.approx(0.6), 2, 1)
    assert math.isnan(segment_scores.summarise([row("1", nan)])[0].mean)


def test_the_standard_deviation_is_the_samples_and_undefined_for_one_value():
    rows = [row("1", 0.5), row("2", math.nan), row("3", 0.7)]
    figure = segment_scores.summarise(rows)[0]
    assert figure.sd == pytest.approx(0.02**0.5)  # 0.1^2 + 0.1^2 over n - 1 = 1
    assert math.isnan(segment_scores.summarise(rows[:2])[0].sd)


def test_differences_are_paired_by_case():
    rows = [row("1", 0.5), row("2", 0.7), row("3", math.nan)]
    rows += [row("1", 0.4, "b"), row("2", 0.6, "b"), row("3", 0.1, "b")]
    gap = segment_scores.differences(rows, [("a", "b")])[0]
    assert gap.mean == pytest.approx(0.1) and (gap.n, gap.n_undefined) == (2, 1)
    assert (gap.low, gap.high) == (pytest.approx(0.1), pytest.approx(0.1)) and gap.clear


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(100):
        low, high = segment_scores.bootstrap(rng.normal(0.3, 1, size=40), seed=draw)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 100 <= 0.99
    assert all(math.isnan(value) for value in segment_scores.bootstrap(np.array([1.0])))


def test_the_papers_way_averages_over_slices():
    truth = np.zeros((10, 6, 6), dtype=np.uint8)
    truth[4, 2:4, 2:4] = 2
    prediction = truth.copy()
    prediction[5, 2:4, 2:4] = 2
    found = {
        (item.metric, item.region): item.value
        for item in segment_scores.rows_of(
            prediction, truth, (1, 1, 1), case="1", input_="a", per_slice=True
        )
    }
    assert found["dice", "WT"] == 2 * 4 / 12
    # slices 2 to 7: one equal, one wrong, four empty in both
    assert found["dice-slice", "WT"] == pytest.approx(5 / 6)
    assert found["hd95-slice", "WT"] == 0 and found["dice-slice", "TC"] == 1


def test_by_slice_a_prediction_that_finds_nothing_has_no_distance():
    truth = np.zeros((10, 6, 6), dtype=np.uint8)
    truth[4, 2:4, 2:4] = 2
    rows = segment_scores.rows_of(
        np.zeros_like(truth), truth, (1, 1, 1), case="1", input_="a", per_slice=True
    )
    figures = {(item.metric, item.region): item for item in segment_scores.summarise(rows)}
    assert math.isnan(
        figures["hd95-slice", "WT"].mean
    )  # not 0 mm, as the slices without tumour have
    assert figures["hd95-slice", "WT"].n_undefined == 1


def test_by_slice_distances_are_averaged_where_both_masks_have_any():
    truth = np.zeros((10, 6, 6), dtype=np.uint8)
    truth[4:6, 2:4, 2:4] = 2
    prediction = np.zeros_like(truth)
    prediction[4, 2:4, 3:5] = 2  # one voxel off
    rows = segment_scores.rows_of(
        prediction, truth, (1, 1, 1), case="1", input_="a", per_slice=True
    )
    (value,) = (row.value for row in rows if (row.metric, row.region) == ("hd95-slice", "WT"))
    assert value == 1  # slice 4 alone: in slice 5 the prediction is empty


# --- the proof ---


@pytest.mark.slow
def test_real_modalities_beat_flair_and_a_perfect_completion_equals_them(
    attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with mock.patch("os.fsync"):
        write_cohort(Path("cohort"), cases=40, voxel_mm=6.0)
        assert attcl("prepare-splits", "cohort", "--sizes", "20/4/16")[0] == 0
        complete_perfectly(tmp_path, tmp_path / "cohort")
        shown = ["image_size=40", "canvas=40", "levels=3", "width=8", "batch_size=16"]
        learned = ["learning_rate=0.05", "validate_every=50", "steps=400"]
        settings = [part for item in (*shown, *learned) for part in ("--set", item)]
        code, _, err = attcl("segment", "--compare", "-q", "-d", "cpu", *settings)
    assert code == 0, err
    summary = json.loads(Path("segment/summary.json").read_text())
    gaps = {
        (item["first"], item["second"], item["region"]): item
        for item in summary["differences"]
        if item["metric"] == "dice"
    }
    core = gaps["real", "flair", "TC"]
    assert core["low"] > 0.05 and core["mean"] > 0.1 and core["n"] == 16
    for region in ("WT", "TC", "ET"):
        equal = gaps["real", "completed", region]
        assert (equal["mean"], equal["low"], equal["high"]) == (0, 0, 0)
