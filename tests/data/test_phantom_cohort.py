"""Phantom cohorts on disk: repeatable bytes, every layout the same patients, holes where asked for."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from attcl_cli.data import label_maps, phantom, volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.phantom_cohort import COHORT_LAYOUTS, write_cohort

VOXEL_MM = 10.0


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _handle: None)


@pytest.fixture
def patients_made_once(monkeypatch):
    """Other tests, and those of `phantom`, show that a patient is the same each time."""
    monkeypatch.setattr(phantom, "make_case", PATIENTS)


PATIENTS = functools.cache(phantom.make_case)


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("layout", COHORT_LAYOUTS)
def test_a_seed_gives_the_same_bytes_with_any_number_of_threads(layout, tmp_path):
    for name, workers in (("a", 1), ("b", 3)):
        write_cohort(tmp_path / name, cases=2, layout=layout, voxel_mm=16.0, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_other_patients(tmp_path):
    for seed in (0, 1):
        write_cohort(tmp_path / str(seed), cases=1, voxel_mm=VOXEL_MM, seed=seed)
    zero, one = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert set(zero) == set(one)
    assert not any(zero[name] == one[name] for name in zero)


def test_more_cases_do_not_change_the_first_ones(tmp_path):
    write_cohort(tmp_path / "a", cases=1, voxel_mm=VOXEL_MM)
    write_cohort(tmp_path / "b", cases=2, voxel_mm=VOXEL_MM)
    few, many = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name: many[name] for name in few} == few


@pytest.mark.usefixtures("patients_made_once")
@pytest.mark.parametrize("layout", COHORT_LAYOUTS)
def test_every_layout_shows_the_same_patient(layout, tmp_path):
    write_cohort(tmp_path, cases=1, layout=layout, voxel_mm=VOXEL_MM, seed=5)
    patient = phantom.make_case(0, seed=5, voxel_mm=VOXEL_MM)
    dataset = open_dataset(tmp_path)
    (case,) = dataset.cases
    for modality, image in patient.images.items():
        volume = volumes.load(dataset.paths(case, modality))
        assert np.array_equal(volume.data, image.transpose(2, 1, 0))
    if layout != "slices":
        labels = label_maps.load_labels(dataset.paths(case, SEGMENTATION))
        assert np.array_equal(labels, patient.segmentation.transpose(2, 1, 0))
        assert np.allclose(volume.grid.affine, patient.affine)


@pytest.mark.usefixtures("patients_made_once")
def test_ids_are_returned_in_order_and_reported(tmp_path):
    reported: list[str] = []
    ids = write_cohort(tmp_path, cases=3, voxel_mm=VOXEL_MM, on_case=reported.append)
    assert ids == reported == ["Phantom_00000", "Phantom_00001", "Phantom_00002"]
    assert [case.id for case in open_dataset(tmp_path).cases] == ids


@pytest.mark.usefixtures("patients_made_once")
@pytest.mark.parametrize("layout", COHORT_LAYOUTS)
def test_what_is_missing_is_repeated_over_the_cases(layout, tmp_path):
    write_cohort(
        tmp_path, cases=3, layout=layout, voxel_mm=VOXEL_MM, missing=[["t2"], ["t1", "t1ce"]]
    )
    dataset = open_dataset(tmp_path)
    assert [dataset.missing(case) for case in dataset.cases] == [("t2",), ("t1", "t1ce"), ("t2",)]
    assert all(case.segmentation for case in dataset.cases)


@pytest.mark.usefixtures("patients_made_once")
def test_a_phantom_is_said_to_be_one(tmp_path):
    write_cohort(tmp_path, cases=1, voxel_mm=VOXEL_MM)
    header = volumes.read_grid([tmp_path / "Phantom_00000" / "Phantom_00000_t1.nii.gz"]).header
    assert b"phantom, simulated" in bytes(header["descrip"])
