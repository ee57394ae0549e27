"""Which weights there are, what their cards say, and which a dataset takes if none is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_settings

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.phantom_cohort import is_phantom
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.methods import METHODS, bundled
from attcl_cli.methods import weights as checkpoint
from attcl_cli.methods.sources import AllPresent, AnyOne, Exactly
from attcl_cli.methods.weights import (
    BUNDLED,
    WEIGHTS_FILE,
    WeightsInfo,
    find_weights,
    named_weights,
    save_weights,
)

FOUR = ("flair", "t1", "t1ce", "t2")
PATIENTS = {
    "kind": "patients",
    "title": "a stand-in",
    "data": "3 patients",
    "terms": "CC BY 4.0",
    "citations": ["Somebody 2020"],
    "split": "3 trained on, 1 held out",
    "hours": 1.5,
    "device": "a CPU",
    "voxel_mm": 1.0,
    "skull_stripped": True,
    "scored": "by a test",
    "scores": [
        {
            "data": "1 patient",
            "sources": "flair",
            "target": "t1",
            "metric": "ssim, brain",
            "n": 1,
            "value": 0.5,
            "beside": {"copy": 0.25},
        }
    ],
    "limits": ["made by a test"],
}


@pytest.fixture
def save() -> Callable[..., Path]:
    """`save(path, modalities)` writes untrained weights of a method; further keys go into the card."""

    def write(
        path: Path,
        modalities: Sequence[str] = FOUR,
        *,
        method: str = "attcl-gan",
        changes: Mapping[str, Any] | None = None,
        **card: Any,
    ) -> Path:
        settings = small_settings(method, **(changes or {}))
        torch.manual_seed(1)
        network = METHODS[method](settings, modalities)
        side = settings.image_size
        network.remember_references({name: torch.zeros(1, 1, side, side) for name in modalities})
        info = WeightsInfo(
            settings=settings,
            modalities=tuple(modalities),
            scales=dict.fromkeys(modalities, Scale(0.0, 1000.0)),
            references={},
            trained_on=("A", "B", "C"),
            steps=7,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, network, info)
        file = path.with_suffix(".json")
        file.write_text(json.dumps({**json.loads(file.read_text()), **card}))
        return path

    return write


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of named weights; beside it there are those of phantoms alone."""
    folder, own = tmp_path / "named", tmp_path / "own"
    folder.mkdir()
    own.mkdir()
    phantoms = named_weights()[BUNDLED]
    for file in (phantoms, phantoms.with_suffix(".json")):
        (own / file.name).symlink_to(file)
    monkeypatch.setenv("ATTCL_WEIGHTS", str(folder))
    monkeypatch.setattr(checkpoint, "weights_folders", lambda: [folder, own])
    return folder


@pytest.fixture
def make_run(save: Callable[..., Path], named: Path, tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name)` writes a run's folder below runs/, each newer than the one before; `record` is its run.json.

    Beside the runs there are no named weights of patients, unless a test saves some.
    """
    made: list[Path] = []

    def make(name: str, modalities: Sequence[str] = FOUR, **record: Any) -> Path:
        path = save(tmp_path / "runs" / name / WEIGHTS_FILE, modalities)
        if record:
            (path.parent / "run.json").write_text(json.dumps(record))
        stamp = 1_700_000_000 + len(made)
        os.utime(path, (stamp, stamp))
        made.append(path)
        return path

    return make


@pytest.fixture
def patients(write_nifti: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`patients()` is a dataset of two cases without a t2: a cube of brain, alone or in a head, voxels of 1 mm.

    Of more `cases`, those that are `odd` alone have that spacing or head.
    """

    def write(
        spacing: Sequence[float] = (1, 1, 1),
        *,
        head: bool = False,
        cases: str = "AB",
        odd: str = "",
    ) -> Path:
        root = tmp_path / "patients"
        shutil.rmtree(root, ignore_errors=True)
        for case in cases:
            usual = bool(odd) and case not in odd
            for number, name in enumerate(("flair", "t1", "t1ce")):
                random = np.random.default_rng(number)
                image = random.integers(20, 100, (12, 12, 12)).astype(np.int16)
                image *= head and not usual
                image[2:10, 2:10, 2:10] = random.integers(100, 1000, (8, 8, 8))
                affine = np.diag([*((1, 1, 1) if usual else spacing), 1.0])
                write_nifti(root / case / f"{case}_{name}.nii.gz", image, affine=affine)
        return root

    return write


def chosen(root: Path, tmp_path: Path, targets: Sequence[str] = ("t2",)) -> bundled.Choice:
    return bundled.choose_weights(open_dataset(root), targets, runs=tmp_path / "runs")


def describe_sources_of(name: str) -> str:
    info = find_weights(name).info
    return bundled.describe_sources(info.rule, info.modalities)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_newest_run_is_taken(make_run, patients, tmp_path):
    make_run("older", status="done")
    newer = make_run("newer", status="done")
    choice = chosen(patients(), tmp_path)
    assert choice.weights.path == newer
    assert (choice.origin, choice.notes) == ("newest run", ())
    assert choice.title == f"{newer} (7 steps on 3 cases)"


def test_a_run_that_knows_fewer_modalities_makes_what_it_can_for_a_single_patient(
    make_run, patients, tmp_path
):
    make_run("useless", ("flair", "t1", "t1ce"), status="done")
    narrow = make_run("narrow", ("flair", "t1", "t1ce", "t2"), status="done")
    root = patients(cases="A")
    (root / "A/A_t1ce.nii.gz").unlink()
    assert chosen(root, tmp_path, ()).weights.path == narrow
    shutil.rmtree(narrow.parent)
    two = make_run("two", ("flair", "t1", "t2"), status="done")
    assert chosen(root, tmp_path, ()).weights.path == two  # makes no t1ce
    shutil.rmtree(two.parent)
    assert chosen(root, tmp_path, ()).weights.path.parent.name == "useless"  # makes t1ce
    nothing_new = make_run("nothing-new", ("flair", "t1"), status="done")
    choice = chosen(root, tmp_path, ())
    assert choice.weights.path.parent.name == "useless"
    assert choice.notes == (f"{nothing_new.parent} makes no t1ce, t2",)


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        (None, ""),  # a copied file, or packed slices of an earlier version
        ({}, ", not validated"),
        ({"cases": 2, "copy_ssim": 0.0864}, ""),  # by a version that did not note what was kept
        (
            {"cases": 2, "copy_ssim": 0.0864, "ssim": 0.41},
            ", validation SSIM 0.410, of a copy 0.086",
        ),
    ],
    ids=str,
)
def test_what_is_known_of_a_run_is_said_where_it_is_taken(
    validation, told, make_run, patients, tmp_path
):
    made = make_run(
        "mine", status="done", **({} if validation is None else {"validation": validation})
    )
    assert chosen(patients(), tmp_path).title == f"{made} (7 steps on 3 cases{told})"


def test_weights_that_come_along_are_named_where_a_run_is_taken(
    save, named, make_run, patients, tmp_path
):
    make_run("mine", status="done")
    save(named / "others.safetensors", **PATIENTS)
    assert chosen(patients(), tmp_path).notes == ("others, which fits, too: -w others",)
    assert chosen(patients(spacing=(1, 1, 3)), tmp_path).notes == ()  # they do not fit
    (named / "others.safetensors").write_bytes(b"damaged")
    assert chosen(patients(), tmp_path).notes == ()  # nobody asked for them


@pytest.mark.parametrize("status", ["running", "failed", "stopped"])
def test_a_run_that_is_not_finished_is_passed_over_and_named(status, make_run, patients, tmp_path):
    make_run("older", status="done")
    make_run("newer", status=status)
    choice = chosen(patients(), tmp_path)
    assert choice.weights.name == "older"
    assert choice.notes == (f"{tmp_path / 'runs' / 'newer'} is not finished ({status})",)
    newest = bundled.newest_finished_run(runs=tmp_path / "runs")
    assert newest == choice.weights.path


def test_weights_in_a_folder_without_a_record_count_as_finished(make_run, patients, tmp_path):
    make_run("older", status="done")
    copied = make_run("copied")
    assert chosen(patients(), tmp_path).weights.path == copied


def test_a_run_must_know_what_the_cases_have_and_what_is_asked_for(make_run, patients, tmp_path):
    make_run("four", status="done")
    make_run("three", ("flair", "t1", "t1ce"), status="done")
    assert chosen(patients(), tmp_path, ()).weights.name == "three"
    choice = chosen(patients(), tmp_path, ("t2",))
    assert choice.weights.name == "four"
    assert choice.notes == (f"{tmp_path / 'runs' / 'three'} knows no t2",)


def test_a_run_must_make_what_is_missing(save, make_run, patients, tmp_path):
    make_run("general", status="done")
    dedicated = make_run("dedicated", status="done")
    stamp = dedicated.stat().st_mtime_ns
    save(dedicated, method="plave", changes={"plave_target": "t1"})
    os.utime(dedicated, ns=(stamp, stamp))
    choice = chosen(patients(), tmp_path, ("t2",))
    assert choice.weights.name == "general"
    assert choice.notes == (f"{dedicated.parent} makes no t2",)
    root = patients()
    (root / "A" / "A_t1.nii.gz").rename(root / "A" / "A_t2.nii.gz")  # t1 lacks in A, t2 in B
    assert chosen(root, tmp_path, ("t1",)).weights.name == "dedicated"
    assert chosen(root, tmp_path, ()).weights.name == "general"


def test_a_run_of_two_modalities_is_taken_for_data_of_these(make_run, patients, tmp_path):
    make_run("four", status="done")
    make_run("two", ("flair", "t1"), status="done")
    make_run("others", ("t1ce", "t2"), status="done")
    root = patients()
    for case in "AB":
        (root / case / f"{case}_t1ce.nii.gz").unlink()
    (root / "B" / "B_t1.nii.gz").unlink()
    choice = chosen(root, tmp_path, ())
    assert choice.weights.name == "two"
    assert choice.notes == (f"{tmp_path / 'runs' / 'others'} knows no flair, t1",)
    assert chosen(root, tmp_path, ("t2",)).weights.name == "four"


def test_a_modality_of_no_case_is_not_to_be_learned_from_the_dataset(named, patients, tmp_path):
    with pytest.raises(UsageError) as caught:
        chosen(patients(), tmp_path, ("t2",))
    assert caught.value.hint.startswith("no case has t2, so that training on this dataset does not")
    with pytest.raises(UsageError) as caught:
        chosen(patients(), tmp_path, ("t1",))
    assert caught.value.hint.startswith("train on this dataset: attcl train --data")


def test_a_run_on_phantoms_is_taken_for_phantoms_alone(
    make_run, patients, incomplete_root, tmp_path
):
    make_run("real", status="done")
    make_run("simulated", status="done", simulated=True)
    assert chosen(incomplete_root, tmp_path).weights.name == "simulated"
    choice = chosen(patients(), tmp_path)
    assert choice.weights.name == "real"
    assert choice.notes == (f"{tmp_path / 'runs' / 'simulated'} knows simulated phantoms only",)


def test_the_newest_run_that_is_damaged_is_an_error(make_run, patients, tmp_path):
    make_run("older", status="done")
    make_run("newer", status="done").write_bytes(b"damaged")
    with pytest.raises(AttclError) as caught:
        chosen(patients(), tmp_path)
    assert caught.value.code == "weights-changed"


# --- bundled weights --------------------------------------------------------------------------------------------------


def test_weights_of_patients_are_taken_without_a_run_those_of_many_sources_first(
    save, named, make_run, patients, tmp_path
):
    save(named / "a-one.safetensors", **PATIENTS)
    choice = chosen(patients(), tmp_path)
    assert choice.title == "a-one (bundled, trained on 3 patients)"
    save(named / "brain-many.safetensors", method="plave", **PATIENTS)
    choice = chosen(patients(), tmp_path)
    assert (choice.weights.name, choice.origin) == ("brain-many", "bundled")
    run = make_run("mine", status="done")
    assert chosen(patients(), tmp_path).weights.path == run


def test_skull_stripped_volumes_of_1_mm_take_the_weights_that_come_along(
    patients, monkeypatch, tmp_path
):
    monkeypatch.delenv("ATTCL_WEIGHTS", raising=False)
    choice = chosen(patients(), tmp_path)
    assert choice.title == "brain-many (bundled, trained on 15 patients)"
    assert describe_sources_of("brain-many") == "any"
    assert describe_sources_of("brain-attcl") == "one"
    for prepared in ({"spacing": (1, 1, 3)}, {"head": True}):
        with pytest.raises(UsageError, match=r"brain-attcl needs .*; brain-many needs "):
            chosen(patients(**prepared), tmp_path)


@pytest.mark.parametrize(
    ("prepared", "reason"),
    [
        ({"spacing": (1, 1, 1.25)}, "needs voxels of about 1 mm, found 1 x 1 x 1.2 mm"),
        ({"spacing": (0.75, 1, 1)}, "needs voxels of about 1 mm, found 0.75 x 1 x 1 mm"),
        ({"head": True}, "needs skull-stripped volumes with a background of 0"),
    ],
    ids=str,
)
def test_data_that_is_prepared_otherwise_gets_an_error_that_says_what_to_do(
    prepared, reason, save, named, patients, tmp_path
):
    save(named / "mine.safetensors", **PATIENTS)
    root = patients(**prepared)
    with pytest.raises(UsageError) as caught:
        chosen(root, tmp_path, ("t1",))
    assert caught.value.code == "no-weights"
    assert f"mine {reason}" in caught.value.message
    assert f"attcl train --data {root}" in caught.value.hint
    assert "attcl weights list" in caught.value.hint


def test_voxels_within_a_fifth_of_the_size_fit(save, named, patients, tmp_path):
    save(named / "mine.safetensors", **PATIENTS)
    assert chosen(patients(spacing=(0.81, 1.19, 1)), tmp_path).weights.name == "mine"


def test_bundled_weights_must_fit_every_case_that_is_to_be_completed(
    save, named, patients, tmp_path
):
    save(named / "mine.safetensors", **PATIENTS)
    root = patients(spacing=(1, 1, 6), cases="ABCDEFG", odd="BDEFG")
    with pytest.raises(UsageError) as caught:
        chosen(root, tmp_path)
    expected = "mine needs voxels of about 1 mm, found 1 x 1 x 6 mm in B, D, E and 2 more"
    assert expected in caught.value.message
    for case in "BDEFG":  # they lack nothing any more
        shutil.copy(root / case / f"{case}_t1.nii.gz", root / case / f"{case}_t2.nii.gz")
    assert chosen(root, tmp_path).weights.name == "mine"


@pytest.mark.parametrize("odd", ["A", "D", "G"])  # the first, a middle and the last one
def test_the_background_of_three_cases_is_looked_at(odd, save, named, patients, tmp_path):
    save(named / "mine.safetensors", **PATIENTS)
    root = patients(head=True, cases="ABCDEFG", odd=odd)
    with pytest.raises(UsageError, match=f"with a background of 0, unlike those of {odd},"):
        chosen(root, tmp_path)


def test_a_volume_that_cannot_be_read_speaks_neither_for_nor_against_weights(
    save, named, patients, tmp_path
):
    """It is reported when all volumes are checked."""
    save(named / "mine.safetensors", **PATIENTS)
    root = patients(cases="ABC")
    for name in ("flair", "t1", "t1ce"):
        (root / "A" / f"A_{name}.nii.gz").write_bytes(b"no image")
    assert chosen(root, tmp_path).weights.name == "mine"
    for path in root.rglob("*.nii.gz"):
        path.write_bytes(b"no image")
    with pytest.raises(UsageError, match="fits volumes only, and none is readable"):
        chosen(root, tmp_path)


def test_slices_do_not_state_the_size_of_their_voxels(save, named, phantoms, tmp_path):
    save(named / "mine.safetensors", **PATIENTS)
    with pytest.raises(UsageError, match="PNG slices do not state theirs"):
        chosen(phantoms("slices"), tmp_path)


def test_bundled_weights_must_know_every_modality(save, named, patients, tmp_path):
    save(named / "mine.safetensors", ("flair", "t1"), **PATIENTS)
    with pytest.raises(UsageError, match="mine knows no t1ce, t2"):
        chosen(patients(), tmp_path)


def test_weights_of_phantoms_or_without_a_card_of_ours_are_never_taken_unasked(
    save, named, incomplete_root, tmp_path
):
    save(named / "mine.safetensors")
    save(named / "simulated.safetensors", **{**PATIENTS, "kind": "phantom", "voxel_mm": 6.0})
    with pytest.raises(UsageError) as caught:
        chosen(incomplete_root, tmp_path)
    assert caught.value.code == "no-weights"


@pytest.mark.parametrize("damaged", ["card", "weights"])
def test_damaged_weights_do_not_stand_in_the_way_of_sound_ones(
    damaged, save, named, patients, tmp_path
):
    save(named / "mine.safetensors", **PATIENTS)
    other = save(named / "a-damaged.safetensors", **PATIENTS)
    broken = other.with_suffix(".json") if damaged == "card" else other
    broken.write_text("{")
    choice = chosen(patients(), tmp_path)
    assert choice.weights.name == "mine"
    (note,) = choice.notes
    assert note.startswith(f"a-damaged is damaged: {broken}: ")
    (named / "mine.safetensors").unlink()
    with pytest.raises(UsageError, match="a-damaged is damaged: "):
        chosen(patients(), tmp_path)


def test_damaged_weights_that_come_with_attcl_are_an_error(
    save, named, patients, monkeypatch, tmp_path
):
    save(named / "mine.safetensors", **PATIENTS)
    save(named / "a-damaged.safetensors", **PATIENTS).write_text("{")
    monkeypatch.setattr(bundled, "_origin", lambda _path: "bundled")
    with pytest.raises(AttclError, match=r"a-damaged\.safetensors"):
        chosen(patients(), tmp_path)


def test_a_folder_of_weights_that_is_not_there_is_noted(patients, monkeypatch, tmp_path):
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "mistyped"))
    words = f"ATTCL_WEIGHTS: {tmp_path / 'mistyped'} is no folder"
    assert chosen(patients(), tmp_path).notes == (f"{words}, expected one with weights",)
    with pytest.raises(UsageError, match=rf"{words}"):
        find_weights("mine")
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path))
    assert chosen(patients(), tmp_path).notes == ()


# --- phantoms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["brats", "brats2023", "bids", "slices"])
def test_phantoms_are_recognised_in_every_layout(layout, phantoms):
    dataset = open_dataset(phantoms(layout))
    assert all(is_phantom(dataset, case) for case in dataset.cases)
    assert bundled.strangers(dataset) == []


def test_phantoms_are_recognised_through_the_links_of_prepare_splits(phantom_root, tmp_path):
    prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3", sizes=(2, 1, 1))
    assert bundled.strangers(open_dataset(tmp_path / "data")) == []


def test_patients_are_no_phantoms(patients):
    assert bundled.strangers(open_dataset(patients())) == ["A", "B"]


def test_weights_of_phantoms_refuse_patients_unless_forced(patients, incomplete_root):
    models = [find_weights(BUNDLED)]
    others, own = open_dataset(patients()), open_dataset(incomplete_root)
    assert bundled.refuse_patients(models, own, force=False) == ""
    with pytest.raises(AttclError) as caught:
        bundled.refuse_patients(models, others, force=False)
    assert caught.value.code == "phantom-weights-on-patients"
    assert f"attcl train --data {others.root}; " in caught.value.hint
    assert "A, B of 2 cases" in caught.value.message
    assert "--force" in caught.value.hint
    assert bundled.refuse_patients(models, others, force=True).startswith("warning: ")


def test_weights_of_others_take_any_data(save, patients, tmp_path):
    models = [find_weights(str(save(tmp_path / "mine.safetensors")))]
    assert bundled.refuse_patients(models, open_dataset(patients()), force=False) == ""


# --- cards and lists --------------------------------------------------------------------------------------------------


def test_a_card_says_what_it_adds(save, tmp_path):
    card = bundled.read_card(save(tmp_path / "mine.safetensors", **PATIENTS))
    assert card.model_dump(mode="json") == PATIENTS
    assert bundled.read_card(save(tmp_path / "plain.safetensors")) is None


def test_a_card_that_is_incomplete_is_an_error(save, tmp_path):
    lacking = {key: value for key, value in PATIENTS.items() if key != "terms"}
    path = save(tmp_path / "mine.safetensors", **lacking)
    with pytest.raises(AttclError, match="terms") as caught:
        bundled.read_card(path)
    assert caught.value.code == "card-incomplete"


def test_every_bundled_file_is_small_and_has_a_card():
    own = [item for item in bundled.list_weights(runs=Path("nowhere")) if item.origin == "bundled"]
    assert BUNDLED in {item.name for item in own}
    for item in own:
        assert item.problem is None
        assert item.card is not None
        assert item.path.stat().st_size <= 1e6 * bundled.MOST_MB
        if item.kind == "patients":
            assert "CC BY" in item.card.terms
            assert item.card.citations
            assert item.card.scores


def test_the_list_has_named_weights_then_the_runs_from_the_newest(save, named, make_run, tmp_path):
    save(named / "mine.safetensors", **PATIENTS)
    make_run("older", status="done")
    make_run("newer", status="stopped")
    found = bundled.list_weights(runs=tmp_path / "runs")
    assert {item.name for item in found[:-2]} == set(named_weights())
    described = {item.name: (item.origin, item.kind, item.finished) for item in found}
    assert described["mine"] == ("ATTCL_WEIGHTS", "patients", True)
    assert described[BUNDLED] == ("bundled", "phantom", True)
    runs = tmp_path / "runs"
    assert [item.name for item in found[-2:]] == [str(runs / "newer"), str(runs / "older")]
    assert described[str(runs / "newer")] == ("runs", "run", False)
    assert described[str(runs / "older")] == ("runs", "run", True)


def test_damaged_weights_are_listed_with_what_is_wrong(save, named):
    path = save(named / "mine.safetensors", **PATIENTS)
    path.write_bytes(path.read_bytes()[:-4])
    for item in (bundled.look_up("mine"), bundled.look_up(str(path))):
        assert item.weights is None
        assert item.problem.code == "weights-changed"


def test_a_name_that_leads_to_no_file_is_listed_as_damaged(named):
    (named / "broken.safetensors").symlink_to(named / "nowhere")
    (named / "folder.safetensors").mkdir()
    for name, found in (("broken", "a link that leads nowhere"), ("folder", "a folder")):
        path = named / f"{name}.safetensors"
        listed = {item.name: item for item in bundled.list_weights(runs=Path("nowhere"))}
        for item in (listed[name], bundled.look_up(name), bundled.look_up(str(path))):
            assert (item.path, item.weights) == (path, None)
            assert item.problem.message == f"{path}: {found}, expected a file of weights"
            assert (item.problem.code, item.problem.exit_code) == ("weights-unreadable", 1)


def test_a_name_of_nothing_is_refused(named):
    with pytest.raises(UsageError) as caught:
        bundled.look_up("nothing")
    assert caught.value.code == "unknown-weights"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (AnyOne(FOUR), "one"),
        (AllPresent(FOUR), "any"),
        (Exactly({"t2": ("flair", "t1")}), "t2 from flair, t1"),
    ],
    ids=str,
)
def test_the_sources_of_a_model_are_described(rule, words):
    assert bundled.describe_sources(rule, FOUR) == words
