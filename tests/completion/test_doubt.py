"""Doubt: a case's distance from the training cases, by hand and on phantoms; where it is said; doubt against error."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from completers import CPU, Echo, completed, echo_weights, phantom_file
from scipy import ndimage

from attcl_cli.completion.doubt import calibration, distance
from attcl_cli.completion.jobs import Doubt, Places
from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.slices import build
from attcl_cli.data.volume_statistics import NAMES, describe_store
from attcl_cli.methods.weights import Weights, load_method, save_weights
from attcl_cli.report import rounding

CASES = 6


def vector(**changes: float) -> tuple[float, ...]:
    """Return a vector of zeros but for some entries."""
    entries = {name.replace(" ", "_").replace(".", "_"): 0.0 for name in NAMES}
    assert set(changes) <= set(entries)
    return tuple({**entries, **changes}.values())


# --- distance ---------------------------------------------------------------------------------------------------------


def test_the_distance_counts_robust_deviations_from_the_median():
    """The logarithms of brain volume are 1 to 5: the median is 3, the median absolute deviation 1."""
    training = {"t1": {str(it): vector(log_brain_pixels=it) for it in (1, 2, 3, 4, 5)}}
    away = distance({"t1": vector(log_brain_pixels=6)}, training)
    assert away.value == pytest.approx(3 / 1.4826 / np.sqrt(len(NAMES)))
    # 1 against 2 to 5: the median is 3.5, the deviations 1.5, 0.5, 0.5, 1.5
    assert away.bound == pytest.approx(2.5 / 1.4826 / np.sqrt(len(NAMES)))
    assert away.far
    assert not distance({"t1": vector(log_brain_pixels=5)}, training).far


@pytest.mark.parametrize(
    ("changes", "floor"),
    [({"quantile_0_5": 0.1}, 0.02), ({"log_brain_pixels": 0.1}, 0.05), ({"share_near_1": 0.1}, 0.005)],
)  # fmt: skip
def test_identical_training_volumes_do_not_make_every_case_far(changes, floor):
    training = {"t1": {str(it): vector() for it in range(5)}}
    away = distance({"t1": vector(**changes)}, training)
    assert away.value == pytest.approx(0.1 / floor / np.sqrt(len(NAMES)))


def test_the_sources_of_a_case_are_taken_together():
    training = {
        name: {str(it): vector(log_brain_pixels=it) for it in (1, 2, 3, 4, 5)}
        for name in ("t1", "t2")
    }
    both = distance({"t1": vector(log_brain_pixels=6), "t2": vector(log_brain_pixels=3)}, training)
    assert both.value == pytest.approx(3 / 1.4826 / np.sqrt(2 * len(NAMES)))


def test_too_few_training_volumes_say_nothing():
    four = {str(it): vector(log_brain_pixels=it) for it in range(4)}
    assert distance({"t1": vector()}, {"t1": four}) is None
    assert distance({"t1": vector()}, {"t2": {**four, "5": vector()}}) is None
    assert distance({}, {"t1": {**four, "5": vector()}}) is None
    assert distance({"t1": vector(), "t2": vector()}, {"t1": four, "t2": {**four, "5": vector()}})


# --- phantoms ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of six phantoms to train on."""
    root: Path = tmp_path_factory.mktemp("training") / "cohort"
    write_cohort(root, cases=CASES, voxel_mm=6, seed=3, workers=1)
    return root


@pytest.fixture(scope="module", params=[0, 16], ids=["whole slices", "squares"])
def knowing(request: Any, training: Path, tmp_path_factory: Any) -> tuple[Weights, Any]:
    """Weights of `Echo` that know the training volumes, and what they know."""
    from helpers import small_settings

    settings = small_settings(image_size=32, canvas=64, crop=request.param)
    dataset = open_dataset(training)
    folder = tmp_path_factory.mktemp("slices")
    store = build(dataset, dataset.cases, folder, image_size=32, canvas=64, workers=0)
    measured = {"training_statistics": describe_store(store).statistics}
    sizes = {"image_size": 32, "canvas": 64, "crop": request.param}
    return echo_weights(settings, measured=measured, **sizes), measured["training_statistics"]


def without_t2(training: Path, root: Path) -> Path:
    shutil.copytree(training, root)
    for path in root.glob("*/*_t2.nii.gz"):
        path.unlink()
    return root


def doubts(root: Path, output: Path, weights: Weights, **options: Any) -> dict[str, Doubt]:
    """Complete t2, and return what is said of each case."""
    methods = {weights.sha256: Echo(weights.info.settings)}
    items = completed(root, output, weights, methods=methods, targets=["t2"], **options)
    return {item.case: item.doubts["t2"] for item in items}


def test_a_training_case_is_as_far_as_its_own_volume_in_the_training_slices(
    training, knowing, tmp_path
):
    """So its distance is below what leaving it out predicts, and it is not far."""
    weights, statistics = knowing
    said = doubts(without_t2(training, tmp_path / "in"), tmp_path / "out", weights)
    assert len(said) == CASES
    for case, doubt in said.items():
        flair = statistics["flair"]
        expected = distance({"flair": flair[case]}, {"flair": flair})
        left_out = distance(
            {"flair": flair[case]}, {"flair": {it: flair[it] for it in flair if it != case}}
        )
        assert doubt.distance == pytest.approx(expected.value, rel=0.02, abs=0.02)
        assert doubt.distance <= left_out.value * 1.02 + 0.02
        assert doubt.far is False


def test_a_case_of_another_scanner_is_far(training, knowing, tmp_path):
    """One was smoothed over and noise added, one is of half the size: as other scanners and patients might be."""
    weights, _ = knowing
    root = without_t2(training, tmp_path / "in")
    everything = ("flair", "t1", "t1ce")
    for number, change, names in ((0, coarse, ("flair",)), (1, small, everything)):
        for name in names:
            path = root / phantom_file(number, name)
            image = nib.load(path)
            values = change(image.get_fdata())
            nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine, image.header), path)
    said = doubts(root, tmp_path / "out", weights, force=True)  # the checks of voxels refuse it
    assert [case[-1] for case, doubt in said.items() if doubt.far] == ["0", "1"]


def coarse(data: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.3 * data.max(), data.shape)
    return np.where(data != 0, np.clip(ndimage.gaussian_filter(data, 2) + noise, 1, None), 0)


def small(data: np.ndarray) -> np.ndarray:
    middle = np.zeros(data.shape, bool)
    middle[12:28, 12:28] = True
    return np.where(middle, data, 0)


# --- where it is said -------------------------------------------------------------------------------------------------


def test_the_side_car_says_it_and_weights_without_statistics_say_nothing(
    training, knowing, tmp_path
):
    weights, _ = knowing
    root = without_t2(training, tmp_path / "in")
    said = doubts(root, tmp_path / "out", weights, mirror=True)
    for case, doubt in said.items():
        side_car = json.loads((tmp_path / "out" / case / f"{case}_t2.json").read_text())
        assert side_car["doubt"] == {
            "disagreement": doubt.disagreement,
            "distance": doubt.distance,
            "far": False,
        }
        shown = tuple(float(rounding.number(it)) for it in (doubt.disagreement, doubt.distance))
        assert shown == (doubt.disagreement, doubt.distance)  # the page says the same
    silent = replace(weights, info=replace(weights.info, training_statistics={}))
    nothing = doubts(root, tmp_path / "silent", silent, mirror=False)
    assert set(nothing.values()) == {Doubt()}
    side_cars = list((tmp_path / "silent").rglob("*.json"))
    assert len(side_cars) == CASES
    assert not any("doubt" in json.loads(path.read_text()) for path in side_cars)


@pytest.fixture
def suspicious(weights: Weights, tmp_path: Path) -> Weights:
    """Weights for which every case is far."""
    nothing = {name: {str(it): vector() for it in range(5)} for name in weights.info.modalities}
    info = replace(weights.info, training_statistics=nothing)
    path = tmp_path / "suspicious.safetensors"
    save_weights(path, load_method(weights, CPU), info)
    return replace(weights, name="suspicious", path=path)


def test_the_result_and_the_record_name_the_cases_that_are_far(suspicious, gappy, tmp_path):
    root = gappy(lacking=[("t2",), ("t1", "t1ce"), (), ()])
    arguments = {"ori": root, "cpl": tmp_path / "out", "weights": suspicious.path, "device": "cpu"}
    first = complete(**arguments)
    assert first.far == ("Phantom_00000", "Phantom_00001")
    assert {case: set(said) for case, said in first.doubts.items()} == {
        "Phantom_00000": {"t2"},
        "Phantom_00001": {"t1", "t1ce"},
    }
    record = json.loads((tmp_path / "out/run.json").read_text())
    for case in record["cases"]:
        assert case["doubt"] == {
            target: doubt.document() for target, doubt in first.doubts[case["id"]].items()
        }
    (tmp_path / "out" / phantom_file(0, "t2")).unlink()
    again = complete(**arguments)
    assert again.written == 1
    assert again.doubts == first.doubts
    assert sorted(again.far) == sorted(first.far)
    cases = json.loads((tmp_path / "out/run.json").read_text())["cases"]
    assert {case["id"]: case["status"] for case in cases} == {
        "Phantom_00000": "done",
        "Phantom_00001": "present",
    }
    assert all(case["doubt"] for case in cases)


def test_doubt_is_paired_with_error(training, knowing, tmp_path):
    weights, _ = knowing
    root = without_t2(training, tmp_path / "in")
    said = doubts(root, tmp_path / "out", weights)
    names = list(said)
    errors = {(names[0], "t2"): 0.5, (names[3], "t2"): 0.25, (names[1], "t1"): 1.0}
    points = calibration(Places(open_dataset(root).including(["t2"]), tmp_path / "out"), errors)
    assert [(it.case, it.target, it.error) for it in points] == [
        (names[0], "t2", 0.5),
        (names[3], "t2", 0.25),
    ]
    for point in points:
        assert point.doubt == said[point.case]
