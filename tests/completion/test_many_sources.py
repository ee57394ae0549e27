"""Completion and training with a method of many sources: what is made from what, side-cars, scores, samples."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from completers import CPU, completed, content, plan_of

from attcl_cli.methods.settings import dump
from attcl_cli.methods.weights import load_method, read_tensors
from attcl_cli.training.state import load_state
from attcl_cli.training.trainer import STATE_FILE, Hooks, train

FOUR = ("flair", "t1", "t1ce", "t2")
LACKING = (("t1ce",), ("t1", "t2"), (), ("t1ce",))


# --- training of such a method, by the loop that knows none -----------------------------------------------------------


def test_a_killed_run_is_resumed_to_the_same_bits_across_both_phases(
    plave_settings, plave_store, tmp_path
):
    settings = plave_settings.model_copy(update={"steps": 6, "save_every": 1, "log_every": 1})

    class Killed(BaseException):
        pass

    def die(step: int, _losses: object) -> None:
        if step == 2:  # of the first phase's 3
            raise Killed

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train(settings, plave_store, tmp_path / "whole", device=CPU)
    with pytest.raises(Killed):
        train(settings, plave_store, tmp_path / "stopped", device=CPU, hooks=Hooks(on_step=die))
    train(settings, plave_store, tmp_path / "stopped", device=CPU, resume=True)
    one, two = (load_state(tmp_path / name / STATE_FILE) for name in ("whole", "stopped"))
    assert set(one.tensors) == set(two.tensors)
    assert all(torch.equal(one.tensors[key], two.tensors[key]) for key in one.tensors)
    files = [
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "stopped")
    ]
    assert files[0] == files[1]


def test_samples_show_the_sources_the_synthetic_slice_and_the_real_one(
    plave_settings, plave_store, tmp_path
):
    seen = []
    settings = plave_settings.model_copy(update={"steps": 1, "save_every": 1})
    hooks = Hooks(draw=lambda *arguments: seen.append(arguments))
    train(settings, plave_store, tmp_path, device=CPU, hooks=hooks)
    ((_, titles, rows),) = seen
    assert titles == [*(f"source {name}" for name in FOUR), "synthetic", "real"]
    for slot, (title, images) in enumerate(rows):
        assert title.endswith(FOUR[slot])
        assert len(images) == 6
        assert (images[slot] == -1).all()  # the target is no source
        assert (images[5] > -1).any()


def test_weights_hold_no_references_and_no_discriminator(general):
    method = load_method(general, CPU)
    assert method.references == {}
    kinds = {key.split(".")[0] for key in read_tensors(general.path)}
    assert kinds == {"generator", "segmenter"}


# --- side-cars and voxels ---------------------------------------------------------------------------------------------


def test_the_side_car_lists_every_source(gappy, general, tmp_path):
    completed(gappy(), tmp_path / "out", general)
    side_car = json.loads((tmp_path / "out/Phantom_00001/Phantom_00001_t2.json").read_text())
    assert side_car["sources"] == [
        {"modality": name, "files": [f"Phantom_00001/Phantom_00001_{name}.nii.gz"]}
        for name in ("flair", "t1ce")
    ]
    assert "source" not in side_car
    assert side_car["method"] == "plave"
    image = nib.load(tmp_path / "out/Phantom_00001/Phantom_00001_t2.nii.gz")
    assert image.header["descrip"].item().decode().endswith("synthetic t2 from flair, t1ce")


def test_a_single_source_is_named_as_by_any_other_method(gappy, general, tmp_path):
    root = gappy(lacking=[("flair", "t1", "t1ce"), (), (), ()])
    completed(root, tmp_path / "out", general, targets=["t1"])
    side_car = json.loads((tmp_path / "out/Phantom_00000/Phantom_00000_t1.json").read_text())
    assert side_car["source"]["modality"] == "t2"
    assert "sources" not in side_car


def test_voxels_are_zero_if_all_sources_are_and_only_then(gappy, general, tmp_path):
    root = gappy()
    path = root / "Phantom_00000/Phantom_00000_t1.nii.gz"
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[16:24, 16:24, 14:20] = 0
    nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
    completed(root, tmp_path / "out", general, force=True)  # a hole within the brain is refused
    volume = nib.load(tmp_path / "out/Phantom_00000/Phantom_00000_t1ce.nii.gz").get_fdata()
    filled = [
        nib.load(root / f"Phantom_00000/Phantom_00000_{name}.nii.gz").get_fdata() != 0
        for name in ("flair", "t1", "t2")
    ]
    inside = np.any(filled, axis=0)
    assert not volume[~inside].any()
    assert volume[inside & ~filled[1]].any()


# --- results depend on nothing but the case and the weights -----------------------------------------------------------


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 9}, {"workers": 0}], ids=str)
def test_batch_size_and_workers_change_no_byte(options, gappy, general, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", general)
    completed(root, tmp_path / "other", general, **options)
    assert content(tmp_path / "other") == content(tmp_path / "plain")


def test_parts_together_write_what_one_run_writes(gappy, general, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", general)
    for number in (2, 1):
        completed(root, tmp_path / "parts", general, part=(number, 2))
    assert content(tmp_path / "parts") == content(tmp_path / "plain")
    again = plan_of(root, tmp_path / "parts", general)
    assert (again.jobs, again.done) == ((), 4)


def test_a_dedicated_model_and_a_general_one_serve_all_cases(gappy, dedicated, general, tmp_path):
    root = gappy(lacking=[("t1ce",), ("t1", "t2"), ("t1", "t1ce"), ()])
    completed(root, tmp_path / "out", dedicated, general)
    made_by = {
        path.name: json.loads(path.read_text())["weights"]["sha256"]
        for path in (tmp_path / "out").rglob("*.json")
    }
    assert made_by == {
        "Phantom_00000_t1ce.json": dedicated.sha256,
        "Phantom_00001_t1.json": general.sha256,
        "Phantom_00001_t2.json": general.sha256,
        "Phantom_00002_t1.json": general.sha256,
        "Phantom_00002_t1ce.json": general.sha256,
    }
    completed(root, tmp_path / "alone", general)
    name = "Phantom_00001/Phantom_00001_t2.nii.gz"
    assert content(tmp_path / "out")[name] == content(tmp_path / "alone")[name]
    again = plan_of(root, tmp_path / "out", dedicated, general)
    assert (again.jobs, again.done) == ((), 5)


# --- the command line -------------------------------------------------------------------------------------------------


def test_plave_trains_and_completes_by_the_same_commands(
    gappy, plave_settings, attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(dump(plave_settings))
    root = gappy()
    code, _, err = attcl("train", "--data", root, "-c", "tiny.toml", "-o", "run", "-d", "cpu")
    assert code == 0, err
    code, out, err = attcl("complete", "--ori", root, "--cpl", "out", "-w", "run", "-d", "cpu")
    assert code == 0, err
    assert "4 volumes written" in out
    code, out, err = attcl(
        "score", "--ori", root, "--cpl", "out", "--truth", root.parent / "gappy-brats", "--ssim",
        "--split", "all", "-o", "scores", "-d", "cpu",
    )  # fmt: skip
    assert code == 2 and "is the incomplete dataset itself" in err


def test_directions_need_a_method_of_one_source(gappy, runs, attcl, tmp_path):
    root = gappy()
    code, out, err = attcl(
        "score", "--ori", root, "--cpl", tmp_path / "out", "-w", runs["dedicated"], "--directions",
        "--ssim", "--truth", root, "-o", tmp_path / "scores", "--split", "all",
    )  # fmt: skip
    assert (code, out) == (2, ""), err
    assert err.startswith("error: --directions: ")
    assert "hint: " in err
    assert not (tmp_path / "out").exists()


def test_training_reports_an_unknown_target_at_once(phantom_root, attcl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = attcl(
        "train", "--data", phantom_root, "--method", "plave", "--preset", "tiny",
        "--set", "plave_target=t9",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert err.startswith("error: setting plave_target: 't9', expected one of flair, t1, t1ce, t2")
    assert list(tmp_path.iterdir()) == []


def test_scores_read_side_cars_of_several_sources(gappy, runs, phantom_root, attcl, tmp_path):
    root = gappy()
    attcl("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", runs["general"], "-d", "cpu")
    code, out, err = attcl(
        "score", "--ori", root, "--cpl", tmp_path / "out", "--truth", phantom_root, "--ssim",
        "--split", "all", "-o", tmp_path / "scores", "-d", "cpu",
    )  # fmt: skip
    assert code == 0, err
    with (tmp_path / "scores/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    sources = {
        (row["case"], row["modality"]): set(row["source"].split("+"))
        for row in rows
        if row["prediction"] == "synthetic"
    }
    expected = {}
    for path in (tmp_path / "out").rglob("Phantom_*.json"):
        case, _, modality = path.stem.rpartition("_")
        named = json.loads(path.read_text())["sources"]
        expected[case, modality] = {item["modality"] for item in named}
    assert sources == expected
    assert {len(names) for names in sources.values()} == {2, 3}
    # flair, the most frequent modality, comes first: a copy is made of it
    assert all(row["source"].startswith("flair") for row in rows), out
