"""Names -> cases in four layouts and the user's own; what is missing, where it belongs, and what is wrong.

Names are all that `open_dataset` looks at, so most tests use empty files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from helpers import touch
from PIL import Image

from attcl_cli.data.dataset import Case, Dataset, Source, check_case, open_dataset
from attcl_cli.data.layouts import LAYOUTS, SEGMENTATION
from attcl_cli.data.phantom_cohort import COHORT_LAYOUTS
from attcl_cli.data.preconditions import examine
from attcl_cli.errors import AttclError, UsageError

FOUR = ("flair", "t1", "t1ce", "t2")


def brats(case: str, modalities: Iterable[str], *, ext: str = ".nii.gz") -> list[str]:
    return [f"{case}/{case.rsplit('/', 1)[-1]}_{name}{ext}" for name in modalities]


def placed(dataset: Dataset, modality: str, *, case: int = 0) -> str:
    (path,) = dataset.place(dataset.cases[case], modality)
    return str(path)


def check(dataset: Dataset, cases: Sequence[Case] | None = None) -> list[AttclError]:
    """Everything that is wrong with the names, the files and the voxels of a dataset."""
    return examine(dataset, cases).problems


def messages(problems: Iterable[AttclError]) -> str:
    return "\n".join(problem.message for problem in problems)


# --- the four layouts -----------------------------------------------------------------------------------------------

EXAMPLES = {
    "brats": "BraTS2021_00006/BraTS2021_00006_{}.nii.gz",
    "brats2023": "BraTS-GLI-00027-000/BraTS-GLI-00027-000-{}.nii.gz",
    "bids": "sub-01/anat/sub-01_{}.nii.gz",
}


@pytest.mark.parametrize("layout", EXAMPLES)
def test_a_layout_is_found_by_looking(layout, tmp_path):
    tokens = [LAYOUTS[layout].tokens[name] for name in FOUR]
    dataset = open_dataset(touch(tmp_path, [EXAMPLES[layout].format(token) for token in tokens]))
    (case,) = dataset.cases
    assert dataset.layout.name == layout
    assert dataset.modalities == FOUR
    assert case.files == {
        name: (PurePosixPath(EXAMPLES[layout].format(token)),)
        for name, token in zip(FOUR, tokens, strict=True)
    }
    assert dataset.problems == ()


def test_png_slices_are_found_by_looking_and_sorted_by_number(tmp_path):
    names = [f"{name}/P_1_{number}.png" for name in FOUR for number in (10, 9, 100)]
    dataset = open_dataset(touch(tmp_path, names))
    (case,) = dataset.cases
    assert (dataset.layout.name, case.id) == ("slices", "P_1")
    assert [str(path) for path in case.files["t2"]] == [
        "t2/P_1_9.png",
        "t2/P_1_10.png",
        "t2/P_1_100.png",
    ]


@pytest.mark.parametrize("layout", COHORT_LAYOUTS)
def test_generated_cohorts_read_back_complete_in_every_layout(layout, phantoms):
    dataset = open_dataset(phantoms(layout))
    assert dataset.layout.name == layout
    assert dataset.counts() == dict.fromkeys(FOUR, 4)
    assert all(case.segmentation for case in dataset.cases)
    assert len({case.patient for case in dataset.cases}) == 4
    assert check(dataset) == []
    assert dataset.ignored == ()


@pytest.mark.cohort
def test_real_brats_folders_are_read(cohort):
    dataset = open_dataset(cohort / "brats")
    assert (dataset.layout.name, len(dataset.cases)) == ("brats", 20)
    assert all(set(case.files) == set(FOUR) and case.segmentation for case in dataset.cases)
    assert check(dataset) == []


@pytest.mark.cohort
def test_real_brasyn_folders_are_read(cohort):
    dataset = open_dataset(cohort / "brasyn")
    assert dataset.layout.name == "brats2023"
    assert [case.id for case in dataset.cases] == ["BraTS-GLI-00000-000", "BraTS-GLI-00027-000"]
    assert [bool(case.segmentation) for case in dataset.cases] == [True, False]
    assert check(dataset) == []


def test_the_layout_that_most_files_fit_wins(tmp_path):
    names = [*brats("A", FOUR), "B/B-t1n.nii.gz"]
    dataset = open_dataset(touch(tmp_path, names))
    assert dataset.layout.name == "brats"
    assert [case.id for case in dataset.cases] == ["A"]


def test_a_layout_that_is_asked_for_is_taken(tmp_path):
    names = [*brats("A", FOUR), "B/B-t1n.nii.gz"]
    dataset = open_dataset(touch(tmp_path, names), layout="brats2023")
    assert [case.id for case in dataset.cases] == ["B"]


def test_a_layout_that_does_not_exist_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--layout: 'dicom', expected one of auto, brats, "):
        open_dataset(tmp_path, layout="dicom")


def test_an_unknown_layout_shows_a_file_and_the_first_that_were_expected(tmp_path):
    touch(tmp_path, ["patient1/scan_a.nii.gz", "notes.txt"])
    with pytest.raises(AttclError) as caught:
        open_dataset(tmp_path)
    message = caught.value.message
    assert "1 image such as patient1/scan_a.nii.gz" in message
    assert f"expected one of {len(LAYOUTS)} namings, such as" in message
    assert [layout.title in message for layout in LAYOUTS.values()].index(False) >= 3
    assert "--modalities" in caught.value.hint


def test_a_folder_without_images_says_so(tmp_path):
    touch(tmp_path, ["notes.txt"])
    with pytest.raises(AttclError, match="1 file and no image"):
        open_dataset(tmp_path)


def test_a_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(AttclError, match="no such folder, expected the folder of a dataset"):
        open_dataset(tmp_path / "none")
    touch(tmp_path, ["file"])
    with pytest.raises(AttclError, match="a file, expected the folder of a dataset"):
        open_dataset(tmp_path / "file")


# --- spellings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "modality"),
    [
        ("FLAIR", "flair"),
        ("t2f", "flair"),
        ("t1n", "t1"),
        ("T1w", "t1"),
        ("t1Gd", "t1ce"),
        ("t1c", "t1ce"),
        ("T1CE", "t1ce"),
        ("t1post", "t1ce"),
        ("t2w", "t2"),
    ],
)
def test_a_modality_goes_by_many_names(token, modality, tmp_path):
    dataset = open_dataset(touch(tmp_path, brats("A", [token])))
    assert tuple(dataset.cases[0].files) == (modality,)


@pytest.mark.parametrize("token", ["seg", "Segm", "dseg"])
def test_a_label_map_is_no_modality(token, tmp_path):
    dataset = open_dataset(touch(tmp_path, brats("A", ["t1", token])))
    assert tuple(dataset.cases[0].files) == ("t1",)
    assert dataset.paths(dataset.cases[0], SEGMENTATION) == (tmp_path / f"A/A_{token}.nii.gz",)


# --- missing modalities and where they belong -----------------------------------------------------------------------


def test_missing_modalities_are_those_that_a_case_lacks_and_another_has(tmp_path):
    dataset = open_dataset(touch(tmp_path, [*brats("A", ["t1"]), *brats("B", FOUR)]))
    assert [dataset.missing(case) for case in dataset.cases] == [("flair", "t1ce", "t2"), ()]


@pytest.mark.parametrize(
    ("there", "place"),
    [
        (["A/A_t1.nii.gz"], "A/A_t1ce.nii.gz"),
        (["A/A_t1.nii"], "A/A_t1ce.nii"),
        (["HGG/A/A_t1.nii.gz"], "HGG/A/A_t1ce.nii.gz"),
        (["a/b/A/A_t1.nii.gz"], "a/b/A/A_t1ce.nii.gz"),
        (["A-00001-000/A-00001-000-t1n.nii.gz"], "A-00001-000/A-00001-000-t1c.nii.gz"),
        (["sub-01/anat/sub-01_T1w.nii.gz"], "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz"),
        (
            ["sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"],
            "sub-01/ses-2/anat/sub-01_ses-2_ce-gadolinium_T1w.nii.gz",
        ),
    ],
)
def test_a_missing_volume_is_placed_and_named_as_the_others_are(there, place, tmp_path):
    dataset = open_dataset(touch(tmp_path, there))
    assert placed(dataset, "t1ce") == place


def test_a_missing_volume_takes_the_spelling_that_the_dataset_uses(tmp_path):
    names = [*brats("A", ["t1", "t1Gd"]), *brats("B", ["t1", "t1Gd"]), *brats("C", ["t1", "t1c"])]
    dataset = open_dataset(touch(tmp_path, [*names, *brats("D", ["t1"])]))
    assert placed(dataset, "t1ce", case=3) == "D/D_t1Gd.nii.gz"


def test_a_missing_volume_takes_the_ending_of_its_own_case(tmp_path):
    names = [*brats("A", FOUR), *brats("B", ["t1", "t2"], ext=".nii")]
    dataset = open_dataset(touch(tmp_path, names))
    assert placed(dataset, "flair", case=1) == "B/B_flair.nii"


def test_missing_slices_are_placed_under_the_numbers_of_the_others(tmp_path):
    dataset = open_dataset(touch(tmp_path, [f"x/t1/P_{number}.png" for number in ("008", "009")]))
    assert [str(path) for path in dataset.place(dataset.cases[0], "t2")] == [
        "x/t2/P_008.png",
        "x/t2/P_009.png",
    ]


@pytest.mark.parametrize("layout", COHORT_LAYOUTS)
def test_a_placed_file_is_found_as_that_modality_of_that_case(layout, phantoms, tmp_path):
    whole = open_dataset(phantoms(layout))
    touch(
        tmp_path,
        [
            str(path)
            for case in whole.cases
            for name, paths in case.files.items()
            for path in paths
            if name != "t1ce" or case.id != whole.cases[0].id
        ],
    )
    for file in whole.naming_files:
        (tmp_path / file).write_bytes((whole.root / file).read_bytes())
    holed = open_dataset(tmp_path)
    assert holed.missing(holed.cases[0]) == ("t1ce",)
    assert holed.place(holed.cases[0], "t1ce") == whole.cases[0].files["t1ce"]


def test_modal_list_goes_by_falling_number_of_volumes_ties_by_name(tmp_path):
    names = [*brats("A", ["t2", "t1ce"]), *brats("B", ["t2", "flair"]), *brats("C", ["t2", "t1"])]
    dataset = open_dataset(touch(tmp_path, names))
    assert dataset.counts() == {"flair": 1, "t1": 1, "t1ce": 1, "t2": 3}
    assert dataset.by_frequency() == ("t2", "flair", "t1", "t1ce")


# --- patients and sessions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "case", "patient"),
    [
        ("Brats18_TCIA02_370_1/Brats18_TCIA02_370_1_t1.nii.gz", "Brats18_TCIA02_370_1", "Brats18_TCIA02_370"),
        ("BraTS-GLI-00027-001/BraTS-GLI-00027-001-t1n.nii.gz", "BraTS-GLI-00027-001", "BraTS-GLI-00027"),
        ("Odd-7/Odd-7-t1n.nii.gz", "Odd-7", None),
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01", "sub-01"),
        ("sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz", "sub-01_ses-b", "sub-01"),
        ("t1/P_12_004.png", "P_12", None),
    ],
)  # fmt: skip
def test_the_patient_is_read_from_the_case(name, case, patient, tmp_path):
    (parsed,) = open_dataset(touch(tmp_path, [name])).cases
    assert (parsed.id, parsed.patient) == (case, patient or case)


def test_dates_in_the_folder_of_a_patient_are_visits_of_this_patient(tmp_path):
    visits = ["pat1/20190521", "pat1/20200604", "pat2/20181130"]
    names = [f"{visit}/{name}.nii.gz" for visit in visits for name in ("T1", "T2")]
    dataset = open_dataset(touch(tmp_path, names))
    assert [case.patient for case in dataset.cases] == ["pat2", "pat1", "pat1"]
    assert dataset.problems == ()


def test_bids_sessions_are_cases_of_their_own(tmp_path):
    names = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T1w.nii.gz" for n in (1, 2)]
    dataset = open_dataset(touch(tmp_path, names))
    assert [case.id for case in dataset.cases] == ["sub-01_ses-1", "sub-01_ses-2"]
    assert dataset.problems == ()


@pytest.mark.parametrize("token", ["ce-gadolinium_T1w", "ce-GADOLINIUM_T1w", "acq-3d_ce-gd_T1w"])
def test_a_bids_t1w_with_contrast_agent_is_t1ce(token, tmp_path):
    names = ["sub-01/anat/sub-01_T1w.nii.gz", f"sub-01/anat/sub-01_{token}.nii.gz"]
    (case,) = open_dataset(touch(tmp_path, names)).cases
    assert set(case.files) == {"t1", "t1ce"}


def test_other_bids_entities_change_no_modality(tmp_path):
    names = ["sub-01/anat/sub-01_acq-3d_T1w.nii.gz", "sub-01/anat/sub-01_rec-norm_FLAIR.nii.gz"]
    dataset = open_dataset(touch(tmp_path, [*names, "sub-02/anat/sub-02_T2w.nii.gz"]))
    assert set(dataset.cases[0].files) == {"t1", "flair"}
    assert placed(dataset, "t1", case=1) == "sub-02/anat/sub-02_acq-3d_T1w.nii.gz"


# --- other vocabularies ---------------------------------------------------------------------------------------------

IXI = """
pattern = "IXI-{modality}/{case}-{modality}.nii.gz"
[modalities]
t1 = ["T1"]
t2 = ["T2"]
pd = ["PD"]
"""


def ixi(root: Path) -> Path:
    return touch(
        root,
        [
            "IXI-T1/IXI002-Guys-0828-T1.nii.gz",
            "IXI-T2/IXI002-Guys-0828-T2.nii.gz",
            "IXI-PD/IXI002-Guys-0828-PD.nii.gz",
            "IXI-T1/IXI012-HH-1211-T1.nii.gz",
            "IXI-T2/IXI012-HH-1211-PD.nii.gz",
        ],
    )


def test_a_naming_of_ones_own_is_described_in_toml(tmp_path):
    (tmp_path / "ixi.toml").write_text(IXI)
    dataset = open_dataset(ixi(tmp_path / "IXI"), modalities=tmp_path / "ixi.toml")
    assert dataset.modalities == ("pd", "t1", "t2")
    assert [case.id for case in dataset.cases] == ["IXI002-Guys-0828", "IXI012-HH-1211"]
    assert dataset.missing(dataset.cases[1]) == ("pd", "t2")
    assert placed(dataset, "pd", case=1) == "IXI-PD/IXI012-HH-1211-PD.nii.gz"
    (problem,) = dataset.problems
    assert "IXI-T2/IXI012-HH-1211-PD.nii.gz: looks like pd of IXI012-HH-1211" in problem.message


def test_modalities_toml_in_the_root_is_read_unasked(tmp_path):
    (tmp_path / "modalities.toml").write_text(IXI)
    dataset = open_dataset(ixi(tmp_path))
    assert dataset.modalities == ("pd", "t1", "t2")
    assert dataset.vocabulary_file == tmp_path / "modalities.toml"


def test_other_modalities_work_in_a_known_layout(tmp_path):
    (tmp_path / "v.toml").write_text('[modalities]\nadc = ["ADC"]\nt2 = []\n')
    touch(tmp_path / "d", brats("A", ["ADC", "t1"]))
    dataset = open_dataset(tmp_path / "d", modalities=tmp_path / "v.toml")
    assert dataset.layout.name == "brats"
    assert tuple(dataset.cases[0].files) == ("adc",)
    assert placed(dataset, "t2") == "A/A_t2.nii.gz"


def test_a_vocabulary_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        open_dataset(tmp_path, modalities=tmp_path / "none.toml")


# --- what is wrong with names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second", ["A/A_t1n.nii.gz", "A/A_T1.nii.gz", "A/A_t1.nii", "LGG/A/A_t1.nii.gz"]
)
def test_two_files_for_one_modality_of_a_case_are_a_problem(second, tmp_path):
    dataset = open_dataset(touch(tmp_path, ["A/A_t1.nii.gz", "A/A_t2.nii.gz", second]))
    (problem,) = dataset.problems
    assert "a second file for t1 of A" in problem.message
    assert second in problem.message
    assert "A/A_t1.nii.gz" in problem.message


@pytest.mark.parametrize(
    "names",
    [
        ["pat1/v1/T1.nii.gz", "pat1/v1/T2.nii.gz", "pat2/v1/FLAIR.nii.gz", "pat2/v1/T1c.nii.gz"],
        ["a/1/1_t1.nii.gz", "a/1/1_t2.nii.gz", "b/1/1_flair.nii.gz", "b/2/2_t1.nii.gz"],
        ["a/sub-1/anat/sub-1_T1w.nii.gz", "a/sub-1/anat/sub-1_T2w.nii.gz", "b/sub-1/anat/sub-1_FLAIR.nii.gz"],
        ["a/t1/P_1.png", "a/t2/P_1.png", "b/flair/P_1.png"],
        ["a/IXI-T1/IXI002-Guys-1-T1.nii.gz", "a/IXI-T2/IXI002-Guys-1-T2.nii.gz", "b/IXI-PD/IXI002-Guys-1-PD.nii.gz"],
    ],
    ids=lambda names: names[0],
)  # fmt: skip
def test_two_cases_of_one_name_are_a_problem_though_no_modality_is_there_twice(names, tmp_path):
    (problem,) = open_dataset(touch(tmp_path, names)).problems
    assert problem.code == "case-in-two-folders"
    (tmp_path / "modalities.toml").write_text(
        problem.hint.split("with ")[1].removesuffix(" in modalities.toml")
    )
    assert open_dataset(tmp_path).problems == ()


@pytest.mark.parametrize(
    "names",
    [
        ["T1/A/A_t1.nii.gz", "T2/A/A_t2.nii.gz", "T1/B/B_t1.nii.gz", "T2/B/B_t2.nii.gz"],
        [
            *(
                f"{name.upper()}/{case}/{case}_{name}.nii.gz"
                for name in ("t1", "flair")
                for case in "ABC"
            ),
            *("T2/C/C_t2.nii.gz", "T1/A/A_t2.nii.gz", "T1/B/B_t2.nii.gz"),
        ],
        ["images/A/A_t1.nii.gz", "images/A/A_t2.nii.gz", "labels/A/A_seg.nii.gz"],
        ["HGG/A/A_t1.nii.gz", "HGG/A/A_t2.nii.gz", "LGG/B/B_t1.nii.gz"],
    ],
    ids=["a folder per modality", "the same, completed", "label maps elsewhere", "grades"],
)
def test_folders_that_are_a_habit_of_the_dataset_are_no_problem(names, tmp_path):
    assert open_dataset(touch(tmp_path, names)).problems == ()


def test_the_hint_about_a_second_file_leaves_it_out_and_deletes_nothing(tmp_path):
    names = ["pat1/v1/T1.nii.gz", "pat1/v1/T2.nii.gz", "pat2/v1/T1.nii.gz"]
    (problem,) = open_dataset(touch(tmp_path, names)).problems
    assert problem.hint.startswith(
        "if these are two cases, give each a name of its own, such as the folders pat1_v1 and pat2_v1; or leave"
    )
    assert "remove" not in problem.hint
    line = problem.hint.split("with ")[1].removesuffix(" in modalities.toml")
    (tmp_path / "modalities.toml").write_text(line)
    assert open_dataset(tmp_path).problems == ()


def test_one_slice_under_two_numbers_is_a_problem(tmp_path):
    dataset = open_dataset(touch(tmp_path, ["t1/P_1.png", "t1/P_01.png", "t1/P_2.png"]))
    assert "a second file for t1 of P" in messages(dataset.problems)


def test_missing_slices_of_one_modality_are_a_problem(tmp_path):
    names = [f"t1/P_{number}.png" for number in range(5)]
    names += [f"t2/P_{number}.png" for number in (0, 1, 4)]
    (problem,) = open_dataset(touch(tmp_path, names)).problems
    assert "t2/P_0.png: t2 of P has 3" in problem.message
    assert "(no slice 2)" in problem.message


def test_a_case_folder_without_images_is_a_problem(tmp_path):
    (tmp_path / "B").mkdir()
    dataset = open_dataset(touch(tmp_path, brats("A", FOUR)))
    (problem,) = dataset.problems
    assert problem.message.startswith(f"{tmp_path / 'B'}: a case with no modality")
    assert [case.id for case in dataset.cases] == ["A"]


def test_a_copied_folder_is_said_to_hold_images_of_other_names(tmp_path):
    names = [*brats("P1", FOUR), *(f"P1 (copy)/P1_{name}.nii.gz" for name in FOUR)]
    dataset = open_dataset(touch(tmp_path, names))
    (problem,) = dataset.problems
    assert problem.code == "case-empty"
    assert problem.message.startswith(f"{tmp_path / 'P1 (copy)'}: 4 images such as P1_flair.nii.gz")
    line = problem.hint.split("with ")[1].removesuffix(" in modalities.toml")
    (tmp_path / "modalities.toml").write_text(line)
    assert open_dataset(tmp_path).problems == ()


def test_a_folder_that_is_not_named_like_a_case_is_no_problem(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "protocol.txt").touch()
    assert open_dataset(touch(tmp_path, brats("P1", FOUR))).problems == ()


def test_a_case_with_a_label_map_alone_is_a_problem(tmp_path):
    dataset = open_dataset(touch(tmp_path, [*brats("A", FOUR), *brats("B", ["seg"])]))
    (problem,) = dataset.problems
    assert problem.message.startswith(f"{tmp_path / 'B'}: a case with no modality")


def test_grades_in_folders_are_no_empty_cases(tmp_path):
    names = [*brats("HGG/A", FOUR), *brats("LGG/B", FOUR), *brats("C", FOUR)]
    dataset = open_dataset(touch(tmp_path, names))
    assert dataset.problems == ()
    assert [(case.id, case.prefix) for case in dataset.cases] == [
        ("A", "HGG/"),
        ("B", "LGG/"),
        ("C", ""),
    ]


def test_images_that_fit_no_name_are_listed_and_other_files_are_not(tmp_path):
    extra = ["A/W39_1998.09.19.nii", "A/A_dwi.nii.gz", "x.png", "notes.json", "A/A_t1.json"]
    dataset = open_dataset(touch(tmp_path, [*brats("A", FOUR), *extra]))
    assert sorted(str(path) for path in dataset.ignored) == [
        "A/A_dwi.nii.gz",
        "A/W39_1998.09.19.nii",
        "x.png",
    ]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    hidden = [".git/A/A_t1.nii.gz", "A/.A_t2.nii.gz.host-1-x.attcl-tmp", "A/._A_t2.nii.gz"]
    dataset = open_dataset(touch(tmp_path, [*brats("A", ["t1"]), *hidden]))
    assert dataset.counts() == {"t1": 1}
    assert dataset.ignored == ()


# --- links ----------------------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path / "store", brats("A", FOUR))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "A").symlink_to(tmp_path / "store" / "A")
    dataset = open_dataset(tmp_path / "data")
    assert dataset.counts() == dict.fromkeys(FOUR, 1)


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, brats("A", FOUR))
    (tmp_path / "A" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["A"]
    assert dataset.problems == ()


def test_a_link_never_takes_the_place_of_the_folder_it_leads_to(tmp_path):
    touch(tmp_path, brats("B", FOUR))
    (tmp_path / "A-latest").symlink_to(tmp_path / "B")  # comes before B
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["B"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, [*brats("A", FOUR), *brats("B", FOUR)])
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "B":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AttclError, match=r"B: not readable \(Permission denied\)"):
        open_dataset(tmp_path)


# --- what is wrong with files ---------------------------------------------------------------------------------------


def test_check_finds_nothing_wrong_with_good_files(tmp_path, write_case):
    write_case(tmp_path, brats("A", FOUR))
    assert check(open_dataset(tmp_path)) == []


def test_check_reports_a_volume_of_another_shape(tmp_path, write_case):
    write_case(tmp_path, brats("A", ["flair", "t1"]))
    write_case(tmp_path, brats("A", ["t2"]), shape=(6, 5, 3))
    (problem,) = check(open_dataset(tmp_path))
    assert problem.message == (
        f"{tmp_path}/A/A_t2.nii.gz: shape 6x5x3 against 6x5x4 of A_flair.nii.gz, "
        "expected one grid for all volumes of a case"
    )


def test_check_names_the_volume_that_is_off_the_grid_of_most(tmp_path, write_case):
    write_case(tmp_path, brats("A", ["flair"]), shape=(6, 5, 3))
    write_case(tmp_path, brats("A", ["t1", "t1ce", "t2"]))
    (problem,) = check(open_dataset(tmp_path))
    found = f"{tmp_path}/A/A_flair.nii.gz: shape 6x5x3 against 6x5x4 of A_t1.nii.gz, "
    assert problem.message.startswith(found)


def test_check_reports_a_volume_of_another_affine(tmp_path, write_nifti):
    values = np.arange(60).reshape(5, 4, 3)
    shifted = np.diag([-1.0, -1, 1, 1])
    shifted[0, 3] = 0.5
    write_nifti(tmp_path / "A/A_t1.nii.gz", values.astype("i2"), affine=np.diag([-1, -1, 1, 1]))
    write_nifti(tmp_path / "A/A_t2.nii.gz", values.astype("i2"), affine=shifted)
    (problem,) = check(open_dataset(tmp_path))
    assert "A_t2.nii.gz: affine off by 0.5 mm of A_t1.nii.gz" in problem.message


def test_check_accepts_affines_that_differ_by_rounding(tmp_path, write_nifti):
    values = np.arange(60).reshape(5, 4, 3).astype("i2")
    close = np.diag([-1.0, -1, 1, 1]) + 1e-4
    close[3] = 0, 0, 0, 1
    write_nifti(tmp_path / "A/A_t1.nii.gz", values, affine=np.diag([-1, -1, 1, 1]))
    write_nifti(tmp_path / "A/A_t2.nii.gz", values, affine=close)
    assert check(open_dataset(tmp_path)) == []


def test_check_reports_slices_of_another_size(tmp_path):
    for name, size in (("t1", 8), ("t2", 9)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.eye(size, dtype=np.uint8)).save(tmp_path / name / "P_0.png")
    (problem,) = check(open_dataset(tmp_path))
    assert "shape 9x9x1 against 8x8x1" in problem.message


def test_check_reports_all_problems_names_first_in_the_order_of_cases(tmp_path, write_case):
    write_case(tmp_path, [*brats("A", ["t1"]), *brats("C", ["t1"])])
    touch(tmp_path, [*brats("A", ["t2"]), *brats("C", ["t2"])])
    (tmp_path / "B").mkdir()
    tree = [problem.message for problem in check(open_dataset(tmp_path))]
    assert [message.split(": ")[0].removeprefix(str(tmp_path)) for message in tree] == [
        "/B",
        "/A/A_t2.nii.gz",
        "/C/C_t2.nii.gz",
    ]


def test_check_of_some_cases_leaves_the_others_alone(tmp_path, write_case):
    write_case(tmp_path, brats("A", ["t1"]))
    touch(tmp_path, brats("B", ["t1"]))
    dataset = open_dataset(tmp_path)
    assert check(dataset, dataset.cases[:1]) == []
    assert len(check(dataset, dataset.cases[1:])) == 1


def test_a_broken_link_is_a_problem_that_names_it(tmp_path, write_case):
    write_case(tmp_path, brats("A", ["t1"]))
    (tmp_path / "A" / "A_t2.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (problem,) = check(open_dataset(tmp_path))
    assert problem.message.startswith(f"{tmp_path}/A/A_t2.nii.gz: not readable")


def test_nan_is_found_by_reading_the_voxels(tmp_path, write_nifti):
    bad = np.ones((5, 4, 3), np.float32)
    bad[1, 1, 1] = np.nan
    write_nifti(tmp_path / "A/A_t1.nii.gz", bad)
    dataset = open_dataset(tmp_path)
    assert check_case(dataset, dataset.cases[0]) == []
    (problem,) = check(dataset)
    assert "1 voxel is NaN" in problem.message


def test_a_folder_that_is_not_there_has_a_neighbour_that_was_meant(tmp_path, monkeypatch):
    (tmp_path / "BraTS2021_00006").mkdir()
    with pytest.raises(AttclError) as caught:
        Source(tmp_path / "BraTS2021_0006").open()
    assert caught.value.hint == f"did you mean {tmp_path / 'BraTS2021_00006'}?"
    with pytest.raises(AttclError) as caught:
        Source(tmp_path / "other").open()
    assert caught.value.hint == "check the path"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttclError) as caught:
        Source(Path("data")).open()
    assert caught.value.hint.startswith("data/, the default, is")
