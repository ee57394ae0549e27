"""Whose a case is: names of public datasets, the user's pattern, visits that look like one patient's, leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attcl_cli.completion.provenance import training_cases
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.data.patients import PUBLIC_NAMES, find_patients, leaks
from attcl_cli.errors import UsageError

BRATS = LAYOUTS["brats"]


def patients(*cases: str, layout: str = "brats", pattern: str | None = None) -> dict[str, str]:
    return dict(find_patients(cases, LAYOUTS[layout], pattern).of)


# --- public datasets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "patient", "title"),
    [
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001", "UPENN-GBM"),
        ("UPENN-GBM-00001_21", "UPENN-GBM-00001", "UPENN-GBM"),
        ("UCSF-PDGM-0004", "UCSF-PDGM-0004", "UCSF-PDGM"),
        ("UCSF-PDGM-0431_FU001d", "UCSF-PDGM-0431", "UCSF-PDGM"),
        ("Brats17_CBICA_AAB_1", "Brats17_CBICA_AAB", "BraTS 2017 to 2019"),
        ("Brats18_TCIA02_370_1", "Brats18_TCIA02_370", "BraTS 2017 to 2019"),
        ("BraTS19_2013_2_1", "BraTS19_2013_2", "BraTS 2017 to 2019"),
        ("BraTS20_Training_355", "BraTS20_Training_355", "BraTS 2020"),
        ("BraTS20_Validation_001", "BraTS20_Validation_001", "BraTS 2020"),
        ("BraTS2021_00000", "BraTS2021_00000", "BraTS 2021"),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000", "BraTS 2023 to 2025"),
        ("BraTS-GLI-02062-100", "BraTS-GLI-02062", "BraTS 2023 to 2025"),
        ("BraTS-MEN-00004-000", "BraTS-MEN-00004", "BraTS 2023 to 2025"),
        ("BraTS-MET-00001-000", "BraTS-MET-00001", "BraTS 2023 to 2025"),
        ("BraTS-PED-00001-000", "BraTS-PED-00001", "BraTS 2023 to 2025"),
        ("BraTS-SSA-00002-000", "BraTS-SSA-00002", "BraTS 2023 to 2025"),
        ("BraTS-MEN-RT-0000-1", "BraTS-MEN-RT-0000", "BraTS-MEN-RT 2024"),
        ("TCGA-02-0006", "TCGA-02-0006", "TCGA"),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006", "TCGA"),
        ("TCGA-CS-4941-01A", "TCGA-CS-4941", "TCGA"),
        ("IXI002-Guys-0828", "IXI002", "IXI"),
        ("upenn-gbm-00001_21", "upenn-gbm-00001", "UPENN-GBM"),
        ("tcga-02-0006_1996.08.23", "tcga-02-0006", "TCGA"),
    ],
)
def test_the_names_of_public_datasets_say_the_patient(case, patient, title):
    found = find_patients([case], BRATS)
    assert (dict(found.of), found.recognised, found.notes) == ({case: patient}, (title,), ())


@pytest.mark.parametrize("names", PUBLIC_NAMES, ids=lambda names: names.title)
def test_the_example_of_a_public_naming_fits_it_alone(names):
    assert find_patients([names.example], BRATS).recognised == (names.title,)


def test_a_training_case_elsewhere_is_another_visit_of_a_patient_here(write_nifti, tmp_path):
    for name in ("flair", "t1"):
        write_nifti(
            tmp_path / f"UPENN-GBM-00001_21/UPENN-GBM-00001_21_{name}.nii.gz",
            np.ones((4, 4, 4), np.int16),
        )
    dataset = open_dataset(tmp_path)
    assert dataset.layout.name == "brats"
    here, elsewhere, other = "UPENN-GBM-00001_21", "UPENN-GBM-00001_11", "UPENN-GBM-00002_11"
    assert training_cases([here], [elsewhere], dataset.patient_of) == [here]
    assert training_cases([here], [other], dataset.patient_of) == []


def test_many_cases_of_public_datasets_are_no_visits_of_one_patient():
    cases = [f"BraTS2021_{number:05d}" for number in range(5)]
    cases += [f"TCGA-02-{number:04d}" for number in range(5)]
    assert patients(*cases) == {case: case for case in cases}


# --- the layout, and the user -----------------------------------------------------------------------------------------


def test_bids_subjects_are_patients():
    found = patients("sub-01_ses-1", "sub-01_ses-2", "sub-02", layout="bids")
    assert found == {"sub-01_ses-1": "sub-01", "sub-01_ses-2": "sub-01", "sub-02": "sub-02"}


def test_the_users_pattern_is_taken_before_all_others():
    pattern = r"^[A-Z]+-([0-9]+)"
    found = find_patients(["UPENN-00001_11", "UPENN-00001_21"], BRATS, pattern)
    assert set(found.of.values()) == {"00001"}
    assert (found.recognised, found.notes) == ((), ())


def test_a_pattern_can_say_that_visits_are_patients():
    assert patients("P001_1", "P001_2", pattern="^(.*)$") == {
        "P001_1": "P001_1",
        "P001_2": "P001_2",
    }


def test_a_case_that_the_pattern_does_not_fit_is_an_error_with_its_name():
    with pytest.raises(UsageError, match=r"does not fit 1 of 2 cases \(Q7\)") as caught:
        patients("P1_a", "Q7", pattern=r"^(P\d+)")
    assert caught.value.code == "patient-pattern-misses"


# --- visits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffixes",
    [
        ("_11", "_21"),
        ("-1", "-2"),
        ("_01", "_02"),
        (".0", ".1"),
        ("_baseline", "_followup"),
        ("_pre", "_post"),
        ("-preop", "-postop"),
        ("_ses-1", "_ses-2"),
        ("_v1", "_v2"),
        ("_TP01", "_TP02"),
        ("_FU001", "_FU100"),
        ("-study1", "-study2"),
    ],
)
def test_ids_that_differ_in_a_visit_are_one_patient(suffixes):
    cases = [f"Cohort-GBM-{number:05d}{suffix}" for number in range(1, 5) for suffix in suffixes]
    found = find_patients(cases, BRATS)
    assert set(found.of.values()) == {f"Cohort-GBM-{number:05d}" for number in range(1, 5)}
    (note,) = found.notes
    assert note.startswith("8 cases look like visits of 4 patients by their names, such as ")
    assert cases[0] in note


def test_two_patients_with_two_visits_each_are_two():
    found = patients("P001_1", "P001_2", "P002_1", "P002_2")
    assert set(found.values()) == {"P001", "P002"}


def test_a_patient_with_one_visit_keeps_the_id_of_the_case():
    found = patients("P001_1", "P001_2", "P002_1")
    assert found == {"P001_1": "P001", "P001_2": "P001", "P002_1": "P002_1"}


@pytest.mark.parametrize(
    "cases",
    [
        [f"Phantom_{number:05d}" for number in range(20)],
        [f"patient{number}" for number in range(20)],
        [f"site{site:02d}_{number:03d}" for site in range(3) for number in range(20)],
        [f"study_2020_{number:03d}" for number in range(4)],
        [f"case_{letter}" for letter in "abcd"],
        [f"hospital_scan{number}" for number in range(12)],
        ["A_1", "A_2", "B_1"],
    ],
    ids=lambda cases: cases[0],
)
def test_ids_that_number_patients_are_no_visits(cases):
    found = find_patients(cases, BRATS)
    assert dict(found.of) == {case: case for case in cases}
    assert found.notes == ()


@pytest.mark.parametrize(
    "visits",
    [
        ("20190521", "20200604"),
        ("2019-05-21", "2020-06-04_101500"),
        ("v1", "ses-2"),
        ("pre", "post"),
    ],
)
def test_the_folder_above_a_visit_is_the_patient(visits):
    first, second = visits
    found = find_patients(
        [*visits, "P7"], BRATS, None, {first: "pat1", second: "pat1", "P7": "site"}
    )
    assert dict(found.of) == {first: "pat1", second: "pat1", "P7": "P7"}
    (note,) = found.notes
    assert note.startswith("2 cases named as visits: the folder above is taken for the patient (")


def test_visits_without_a_folder_above_and_numbers_are_their_own_patients():
    ids = ["20190521", "20200604", "001", "12345678"]
    folders = {"20190521": "", "20200604": "", "001": "siteA", "12345678": "siteA"}
    found = find_patients(ids, BRATS, None, folders)
    assert dict(found.of) == {case: case for case in ids}
    assert found.notes == ()


def test_a_folder_of_many_visits_is_no_patient():
    visits = [f"201905{day:02d}" for day in range(1, 11)]
    folders = dict.fromkeys(visits, "train")
    assert set(find_patients(visits, BRATS, None, folders).of.values()) == {*visits}
    assert set(find_patients(visits[1:], BRATS, None, folders).of.values()) == {"train"}


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_a_patient_in_two_splits_is_a_leak_that_names_both_cases():
    of = {"P1_1": "P1", "P1_2": "P1", "P2_1": "P2"}
    (problem,) = leaks(
        Path("splits.json"), {"train": ["P1_1", "P2_1"], "val": [], "test": ["P1_2"]}, of
    )
    assert problem.message.startswith(
        "splits.json: P1_1 in train and P1_2 in test look like one patient (P1)"
    )
    assert problem.code == "patient-in-two-splits"


def test_whole_patients_are_no_leak():
    of = {"P1_1": "P1", "P1_2": "P1", "P2_1": "P2"}
    assert (
        leaks(Path("splits.json"), {"train": ["P1_1", "P1_2"], "val": ["P2_1"], "test": ["Q"]}, of)
        == []
    )
