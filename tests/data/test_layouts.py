"""Layouts: how paths are read and made, whose a case is, which files hold which slices; names of modalities."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from attcl_cli.data.labels import CONVENTIONS
from attcl_cli.data.layouts import (
    DEFAULT_MODALITIES,
    LAYOUTS,
    SUBMISSIONS,
    canonical,
    ending_of,
    modality_of,
)
from attcl_cli.data.vocabulary import read_vocabulary
from attcl_cli.errors import UsageError

FOUR = ("flair", "t1", "t1ce", "t2")

# layout -> a prefix, a case, its patient, a path of its T1, the side-car of that, a name of no such layout
EXAMPLES = {
    "brats": ("HGG/", "P_1", "P_1", "HGG/P_1/P_1_t1.nii.gz", "HGG/P_1/P_1_t1.json", "P_1/P_2_t1.nii.gz"),
    "brats2023": (
        "", "B-GLI-00027-001", "B-GLI-00027", "B-GLI-00027-001/B-GLI-00027-001-t1n.nii.gz",
        "B-GLI-00027-001/B-GLI-00027-001-t1n.json", "B-GLI-00027-001/B-t1n.nii.gz",
    ),
    "bids": (
        "sub-1/ses-b/", "sub-1_ses-b", "sub-1", "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_T1w.json", "sub-1/anat/1_T1w.nii.gz",
    ),
    "slices": ("a/", "P_1", "P_1", "a/t1/P_1_007.png", "a/t1/P_1.json", "a/t1/P.png"),
    "ucsf": (
        "v5/", "U-0004", "U-0004", "v5/U-0004_nifti/U-0004_T1.nii.gz", "v5/U-0004_nifti/U-0004_T1.json",
        "U-0004/U-0004_T1.nii.gz",
    ),
    "tcga": (
        "TCGA-02-0006/", "TCGA-02-0006_1996.08.23", "TCGA-02-0006_1996.08.23",
        "TCGA-02-0006/TCGA-02-0006_1996.08.23_t1.nii.gz", "TCGA-02-0006/TCGA-02-0006_1996.08.23_t1.json",
        "TCGA-02-0006/TCGA-02-0006_t1.nii.gz",
    ),
    "nnunet": (
        "imagesTr/", "B_001", "B_001", "imagesTr/B_001_0001.nii.gz", "imagesTr/B_001_0001.json",
        "imagesTr/B_001.nii.gz",
    ),
    "ixi": (
        "", "IXI002-Guys-0828", "IXI002-Guys-0828", "IXI-T1/IXI002-Guys-0828-T1.nii.gz",
        "IXI-T1/IXI002-Guys-0828-T1.json", "IXI-T2/IXI002-Guys-0828-T1.nii.gz",
    ),
    "ixi-flat": (
        "x/", "IXI002-Guys-0828", "IXI002-Guys-0828", "x/IXI002-Guys-0828-T1.nii.gz",
        "x/IXI002-Guys-0828-T1.json", "IXI-T1/IXI002-Guys-0828-T1.nii.gz",
    ),
    "folders": ("a/", "pat1", "pat1", "a/pat1/t1.nii.gz", "a/pat1/t1.json", "t1.nii.gz"),
    "flat": ("", "P_1", "P_1", "P_1_t1.nii.gz", "P_1_t1.json", "sub-1_T1w.nii.gz"),
    "flat2023": (
        "", "B-00027-001", "B-00027", "B-00027-001-t1n.nii.gz", "B-00027-001-t1n.json", "a/B-00027-001-t1n.nii.gz",
    ),
    "patient": ("", "", "", "t1.nii.gz", "t1.json", "pat1/t1.nii.gz"),
}  # fmt: skip
PNG = [PurePosixPath(f"t1/P_{number:03d}.png") for number in range(5)]
NIFTI = [PurePosixPath("P/P_t1.nii.gz")]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_path_that_a_layout_makes_is_one_that_it_reads(name):
    layout = LAYOUTS[name]
    prefix, case, patient, path, _, other = EXAMPLES[name]
    number = "007" if layout.sliced else ""
    file = layout.place(case=case, token=layout.tokens["t1"], prefix=prefix, slice_=number)
    assert str(file) == path
    match = layout.pattern().fullmatch(path)
    assert match is not None
    assert (match.groupdict().get("case", ""), match["token"], match["ext"]) == (
        case,
        layout.tokens["t1"],
        layout.extension,
    )
    assert layout.slice_number(file) == number
    assert layout.patient_of(case) == patient
    assert layout.pattern().fullmatch(other) is None


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_side_car_of_a_volume_lies_beside_it(name):
    _, case, _, path, sidecar, _ = EXAMPLES[name]
    assert str(LAYOUTS[name].place_side_car(PurePosixPath(path), case)) == sidecar


def test_a_new_file_takes_another_ending_if_the_dataset_has_one():
    file = LAYOUTS["brats"].place(case="A", token="t2", extension=".nii")
    assert str(file) == "A/A_t2.nii"


def test_a_challenge_takes_all_files_in_one_folder():
    naming = SUBMISSIONS["brasyn-submission"]
    file = naming.place(case="BraTS-GLI-00001-000", token="t2w")
    assert str(file) == "BraTS-GLI-00001-000-t2w.nii.gz"
    assert naming.pattern().fullmatch(str(file))


def test_a_case_whose_id_names_no_patient_is_its_own():
    assert LAYOUTS["brats2023"].patient_of("Odd-7") == "Odd-7"


def test_the_usual_label_convention_is_one_that_is_known():
    usual = {name: layout.label_convention for name, layout in LAYOUTS.items()}
    assert {name for name, convention in usual.items() if convention == "2023"} == {
        "brats2023",
        "flat2023",
    }
    assert set(usual.values()) <= set(CONVENTIONS)


# --- slices and files -------------------------------------------------------------------------------------------------


def test_a_span_of_slices_is_those_files_or_the_whole_volume():
    assert LAYOUTS["slices"].files_of_slices(PNG, (1, 3)) == tuple(PNG[1:3])
    assert LAYOUTS["slices"].files_of_slices(PNG, None) == tuple(PNG)
    assert LAYOUTS["brats"].files_of_slices(NIFTI, (1, 3)) == tuple(NIFTI)


def test_files_hold_their_own_slices_or_all():
    assert LAYOUTS["slices"].slices_of_files(PNG, PNG[1:3], 5) == [False, True, True, False, False]
    assert LAYOUTS["brats"].slices_of_files(NIFTI, NIFTI, 5) == [True] * 5


def test_an_option_that_needs_volumes_refuses_slices():
    LAYOUTS["brats"].require_volumes("--uncertainty")
    with pytest.raises(UsageError, match="--uncertainty: of PNG slices") as caught:
        LAYOUTS["slices"].require_volumes("--uncertainty")
    assert caught.value.code == "slices-instead-of-volumes"


# --- modalities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "modality"),
    [
        ("FLAIR", "flair"),
        ("t1n", "t1"),
        ("acq-3d_T1w", "t1"),
        ("ce-gd_run-1_T1w", "t1ce"),
        ("ce-gd_T2w", None),
        ("dseg", "seg"),
        ("space-x_dseg", "seg"),
        ("adc", None),
        ("T1_bias", None),
        ("old_t1", None),
        ("brain_segmentation", None),
    ],
)
def test_a_token_stands_for_a_modality_a_label_map_or_nothing(token, modality):
    assert modality_of(token, DEFAULT_MODALITIES) == modality


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".png", ".NII.GZ", ".Nii.gz", ".PNG"])
def test_an_ending_may_have_two_parts(ending):
    assert ending_of(PurePosixPath(f"a/b.c{ending}")) == ending


@pytest.mark.parametrize(
    ("name", "ours"), [("t1ce", "t1ce"), ("t1c", "t1ce"), ("T1Gd", "t1ce"), ("FLAIR", "flair")]
)
def test_a_users_spelling_becomes_our_name(name, ours):
    assert canonical(name, FOUR) == ours


def test_a_users_spelling_of_an_own_modality_may_differ_in_case():
    assert canonical("PD", ("pd", "t1")) == "pd"


def test_a_name_that_is_no_modality_is_an_error_with_the_known_ones():
    with pytest.raises(UsageError, match="'t3': unknown here, expected one of flair, t1, t1ce, t2"):
        canonical("t3", FOUR)


def test_an_alias_of_a_modality_that_the_dataset_has_not_is_unknown():
    with pytest.raises(UsageError):
        canonical("t1c", ("t1", "t2"))


# --- the user's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint", "code"),
    [
        ("modalities = [", "not readable as TOML", "toml-unreadable"),
        ('[modalities]\nt1 = ["T1"]', "no [modalities] table of two names or more", "invalid-vocabulary"),
        ('names = 1\n[modalities]\nt1 = ["a"]\nt2 = ["b"]', "unknown key 'names'", "invalid-vocabulary"),
        ('[modalities]\nt1 = "T1"\nt2 = []', "modality 't1' = 'T1'", "invalid-vocabulary"),
        ('[modalities]\n"t 1" = ["T1"]\nt2 = []', "modality 't 1'", "invalid-vocabulary"),
        ('pattern = "{case}.nii.gz"\n[modalities]\nt1 = []\nt2 = []', "{case} and {modality}", "invalid-pattern"),
        ('pattern = "{case}_{modality}.mha"\n[modalities]\nt1 = []\nt2 = []', ".nii or .nii.gz", "invalid-pattern"),
        ('pattern = "{x}{case}_{modality}.nii"\n[modalities]\nt1 = []\nt2 = []', "pattern '{x}", "invalid-pattern"),
        ('[modalities]\nt1 = ["a"]\nt2 = ["A"]', "'A' is a spelling of t1 and of t2", "spelling-ambiguous"),
        ('[modalities]\nt1 = ["t2"]\nt2 = []', "'t2' is a spelling of t1 and of t2", "spelling-ambiguous"),
        ('[modalities]\nt1 = []\nseg = []', "'seg' names the label map", "spelling-reserved"),
        ('[modalities]\nt1 = ["dseg"]\nt2 = []', "'dseg' names the label map", "spelling-reserved"),
        ('segmentation = "GT"\n[modalities]\nt1 = ["gt"]\nt2 = []', "'gt' names the label map", "spelling-reserved"),
        ("", "empty, expected some of modalities, pattern, patient, segmentation", "invalid-vocabulary"),
        ("segmentation = 1", "segmentation = 1", "invalid-vocabulary"),
        ('segmentation = ["a", ""]', "segmentation = ['a', '']", "invalid-vocabulary"),
        ('patient = "(a"', "patient = '(a' is no regular expression", "invalid-patient-pattern"),
        ('patient = "P-[0-9]+"', "expected a regular expression with the patient's name in parentheses",
         "invalid-patient-pattern"),
        ("patient = 3", "patient = 3", "invalid-patient-pattern"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_says_something_else_is_a_usage_error(content, complaint, code, tmp_path):
    (tmp_path / "v.toml").write_text(content)
    with pytest.raises(UsageError) as caught:
        read_vocabulary(tmp_path / "v.toml")
    assert complaint in caught.value.message
    assert caught.value.code == code
    assert caught.value.message.startswith(str(tmp_path / "v.toml"))


def test_a_naming_of_the_users_own_is_a_layout(tmp_path):
    (tmp_path / "v.toml").write_text(
        'pattern = "IXI-{modality}/{case}-{modality}.nii"\n[modalities]\nt1 = ["T1"]\npd = []\n'
    )
    said = read_vocabulary(tmp_path / "v.toml")
    layout = said.layout
    assert said.modalities == {"t1": ("t1", "T1"), "pd": ("pd",)}
    assert str(layout.place(case="7", token=layout.tokens["t1"])) == "IXI-T1/7-T1.nii.gz"
    assert layout.tokens == {"t1": "T1"}


def test_a_spelling_of_the_users_own_naming_may_hold_any_sign(tmp_path):
    (tmp_path / "v.toml").write_text(
        'pattern = "{case}_{modality}.nii.gz"\n[modalities]\nt1 = ["T1_brain-1.0"]\nt2 = ["T2_brain"]\n'
    )
    layout = read_vocabulary(tmp_path / "v.toml").layout
    match = layout.pattern().fullmatch("a/P_1_t1_brain-1.0.nii.gz")
    assert (match["prefix"], match["case"], match["token"]) == ("a/", "P_1", "t1_brain-1.0")
    assert layout.pattern().fullmatch("P_1_flair.nii.gz") is None


def test_patient_and_label_map_can_be_said_alone(tmp_path):
    (tmp_path / "v.toml").write_text("patient = '^(P\\d+)_'\nsegmentation = 'GT'\n")
    said = read_vocabulary(tmp_path / "v.toml")
    assert (said.modalities, said.layout) == (None, None)
    assert (said.patient, said.segmentations) == (r"^(P\d+)_", ("GT",))
