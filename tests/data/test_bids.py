"""BIDS beyond single names: raw data and other folders, several files of a modality, names of new files.

Names are all that is read, so the files are empty.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import pytest
from helpers import touch

from attcl_cli.data.bids import ignore_rules, parse_filters
from attcl_cli.data.dataset import Source, open_dataset
from attcl_cli.data.info import dataset_info
from attcl_cli.data.splits import make_splits, open_truth, read_splits
from attcl_cli.data.tree import write_tree
from attcl_cli.errors import AttclError, UsageError

TOKENS = {"flair": "FLAIR", "t1": "T1w", "t1ce": "ce-gadolinium_T1w", "t2": "T2w"}
FOUR = tuple(TOKENS)


def image(subject: str, token: str, *, top: str = "", ext: str = ".nii.gz") -> str:
    return f"{top}sub-{subject}/anat/sub-{subject}_{token}{ext}"


def subject(name: str, modalities: Iterable[str] = FOUR, *, top: str = "") -> list[str]:
    return [image(name, TOKENS[modality], top=top) for modality in modalities]


def describe(root: Path, kind: str | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    document = {"Name": "x", "BIDSVersion": "1.9.0", **({"DatasetType": kind} if kind else {})}
    (root / "dataset_description.json").write_text(json.dumps(document))
    return root


def refused(root: Path, *filters: str, **options: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        open_dataset(root, bids_filter=filters, **options)
    return caught.value


# --- raw data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [
        "derivatives/tool/",
        "derivatives/",
        "sourcedata/",
        "code/",
        "sourcedata/a/b/",
        "Derivatives/tool/",
        "SOURCEDATA/",
    ],
)
def test_what_lies_beside_the_raw_data_is_not_read_and_said(folder, tmp_path):
    names = [*subject("00", ["flair", "t1"]), *subject("01")]
    beside = image("00", "space-MNI152_desc-synthetic_T2w", top=folder)
    dataset = open_dataset(touch(tmp_path, [*names, beside]))
    assert [dataset.missing(case) for case in dataset.cases] == [("t1ce", "t2"), ()]
    assert (dataset.problems, dataset.ignored) == ((), ())
    (note,) = dataset.notes
    assert str(tmp_path / folder.split("/")[0]) in note
    assert "1 image," in note
    assert dataset_info(tmp_path)["notes"] == [note]


@pytest.mark.parametrize("name", ["a/IM0001.dcm", "sub-00_T2w.NII.GZ", "sub-00_T2w.mgz"])
def test_what_is_not_read_is_counted_in_every_format(name, tmp_path):
    dataset = open_dataset(
        touch(tmp_path, [*subject("00"), f"sourcedata/sub-00/{name}", "code/code.zip"])
    )
    (note,) = dataset.notes
    assert f"1 image, no raw data in BIDS and not read, such as {Path(name).name}" in note


def test_a_preprocessed_image_is_no_second_file(tmp_path):
    beside = image("00", "desc-preproc_T1w", top="derivatives/tool/")
    dataset = open_dataset(touch(tmp_path, [*subject("00"), beside]))
    assert dataset.problems == ()
    assert [str(path) for path in dataset.cases[0].files["t1"]] == [image("00", "T1w")]


def test_files_of_a_tool_decide_no_layout_even_if_they_are_more(tmp_path):
    tool = [f"derivatives/tool/A{n}/A{n}_{name}.nii.gz" for n in range(9) for name in FOUR]
    dataset = open_dataset(touch(describe(tmp_path), [*subject("00"), *tool]))
    assert (dataset.layout.name, [case.id for case in dataset.cases]) == ("bids", ["sub-00"])
    assert "36 images" in dataset.notes[0]


def test_folders_of_these_names_mean_nothing_elsewhere(tmp_path):
    names = [f"derivatives/A/A_{name}.nii.gz" for name in FOUR]
    dataset = open_dataset(touch(tmp_path, names))
    assert (dataset.layout.name, dataset.notes) == ("brats", ())
    assert [case.id for case in dataset.cases] == ["A"]


def test_a_derivative_that_is_named_itself_is_read(tmp_path):
    tool = describe(tmp_path / "derivatives" / "tool", "derivative")
    touch(tmp_path, subject("00"))
    touch(tool, [image("00", "desc-preproc_T1w"), *subject("00", ["t2"], top="sourcedata/raw/")])
    (case,) = open_dataset(tool).cases
    assert set(case.files) == {"t1"}


def test_a_derivative_beside_the_raw_data_is_not_read(tmp_path):
    describe(tmp_path / "raw")
    describe(tmp_path / "prep", "derivative")
    touch(tmp_path, [*subject("00", top="raw/"), *subject("00", top="prep/")])
    dataset = open_dataset(tmp_path)
    assert dataset.problems == ()
    assert dataset.cases[0].prefix == "raw/sub-00/"
    assert "prep" in dataset.notes[0]


def test_derivatives_alone_are_named_in_the_error(tmp_path):
    touch(describe(tmp_path), subject("00", top="derivatives/tool/"))
    with pytest.raises(AttclError) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "no-raw-data"
    assert str(tmp_path / "derivatives/tool") in caught.value.hint
    assert len(open_dataset(tmp_path / "derivatives/tool").cases) == 1


def test_a_bidsignore_that_names_everything_is_named_in_the_error(tmp_path):
    touch(tmp_path, subject("00"))
    (tmp_path / ".bidsignore").write_text("sub-*/\n")
    with pytest.raises(AttclError) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "no-raw-data"
    assert str(tmp_path / ".bidsignore") in caught.value.hint


def test_hidden_folders_are_not_read(tmp_path):
    names = [*subject("00", ["t1"]), *subject("00", ["t2"], top=".heudiconv/")]
    dataset = open_dataset(touch(tmp_path, names))
    assert "t2" not in dataset.cases[0].files


def test_what_bidsignore_names_is_not_read(tmp_path):
    touch(tmp_path, [*subject("00"), image("00", "acq-bad_T1w"), *subject("pilot")])
    (tmp_path / ".bidsignore").write_text("*_acq-bad_*\nsub-pilot/\n")
    dataset = open_dataset(tmp_path)
    assert [case.id for case in dataset.cases] == ["sub-00"]
    assert dataset.problems == ()
    assert "5 images set aside by .bidsignore" in dataset.notes[0]


IGNORED = [
    "a.txt", "b/a.txt", "b/c/a.txt", "c", "b/c", "sub-01/anat/x_T1w.nii.gz", "sub-10/anat/x_T1w.json", "#x", "!x",
    "b/c/d/e", "x[1].nii", "x1.nii", "sub-01_mag.nii", "e/b/c", "a/z/b", "a/y/z/b",
]  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        ["a.txt"], ["/a.txt"], ["b/"], ["c"], ["c/"], ["/b/c"], ["b/c"], ["**/c"], ["b/**"], ["*"],
        ["*.nii.gz", "!x_T1w.nii.gz"], ["b/", "!b/c/a.txt"], ["sub-0?/"], ["sub-[01]1/"], ["sub-[!0]*"],
        ["\\#x", "\\!x"], ["# a.txt", "", "  "], ["x[[]1].nii"], ["a/**/b"], ["*/c"], ["sub-*/anat/*.json"],
        ["**/anat/**"],
    ],
)  # fmt: skip
def test_bidsignore_is_read_as_git_reads_gitignore(lines, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n")
    command = ["git", "-C", tmp_path, "check-ignore", "--no-index", "--stdin", "-z"]
    answer = subprocess.run(
        command, input="\0".join(IGNORED), capture_output=True, text=True, check=False
    )
    assert answer.returncode in (0, 1)  # 1: none is ignored
    ignored = ignore_rules(lines)
    assert [name for name in IGNORED if ignored(PurePosixPath(name))] == [
        name for name in IGNORED if name in answer.stdout.split("\0")
    ]


# --- several files of a modality ------------------------------------------------------------------------------------

TWINS = {
    "runs": ["run-1_T1w", "run-2_T1w"],
    "runs of two digits": ["run-01_T1w", "run-02_T1w", "run-10_T1w"],
    "acquisitions": ["acq-mprage_T1w", "acq-tfl_T1w"],
    "one without the entity": ["T1w", "acq-hires_T1w"],
    "reconstructions": ["rec-norm_T1w", "rec-raw_T1w"],
    "echoes": ["echo-1_T1w", "echo-2_T1w"],
    "spaces": ["space-orig_desc-preproc_T1w", "space-MNI152_desc-preproc_T1w"],
    "descriptions": ["desc-brain_T1w", "desc-preproc_T1w"],
    "two entities": ["acq-a_run-1_T1w", "acq-a_run-2_T1w", "acq-b_run-1_T1w", "acq-b_run-2_T1w"],
    "contrast agents": ["acq-x_ce-gadolinium_T1w", "acq-y_ce-gadolinium_T1w"],
    "label maps": ["desc-tumor_dseg", "desc-aseg_dseg"],
}


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("alone", [False, True])
def test_several_files_are_named_and_the_hint_chooses_one(kind, alone, tmp_path):
    names = [image("01", token) for token in TWINS[kind]]
    dataset = open_dataset(touch(tmp_path, [*names, image("01", "T2w")]))
    (problem,) = dataset.problems
    assert problem.code == "modality-twice"
    assert all(Path(name).name in problem.message for name in names)
    assert not re.search(r"\b(remove|rename|delete)\b", problem.hint)
    general, _, scoped = problem.hint.partition("alone")
    words = shlex.split(re.sub(r"[(),]", "", scoped if alone else general.partition(" or for ")[0]))
    filters = [after for word, after in pairwise(words) if word == "--bids-filter"]
    assert filters
    assert all((":" in item) is alone for item in filters)
    chosen = open_dataset(tmp_path, bids_filter=filters)
    assert chosen.problems == ()
    assert set(chosen.cases[0].files) == set(dataset.cases[0].files)


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        (["run=1"], "run-01_T1w"),
        (["run=01"], "run-01_T1w"),
        (["run=2"], "run-02_T1w"),
        (["t1:run=2"], "run-02_T1w"),
        (["run=1", "t1:run=2"], "run-02_T1w"),
    ],
)
def test_a_run_is_chosen_by_number_whatever_its_zeros(filters, chosen, tmp_path):
    touch(tmp_path, [image("01", token) for token in ("run-01_T1w", "run-02_T1w", "FLAIR")])
    (case,) = open_dataset(tmp_path, bids_filter=filters).cases
    assert str(case.files["t1"][0]) == image("01", chosen)
    assert "flair" in case.files  # of which there is one run, and no name says so


@pytest.mark.parametrize(
    ("item", "chosen"),
    [
        ("acq=hires", "acq-hires_T1w"),
        ("acquisition=hires", "acq-hires_T1w"),
        ("acq=", "T1w"),
        ("seg:acq=hires", None),
    ],
)
def test_an_empty_value_takes_the_file_without_the_entity(item, chosen, tmp_path):
    names = ["T1w", "acq-hires_T1w", "acq-hires_dseg"]
    dataset = open_dataset(touch(tmp_path, [image("01", it) for it in names]), bids_filter=[item])
    assert bool(dataset.problems) is (chosen is None)
    if chosen:
        assert str(dataset.cases[0].files["t1"][0]) == image("01", chosen)


def test_an_uncompressed_copy_is_chosen_by_its_extension(tmp_path):
    touch(tmp_path, [image("01", "T1w"), image("01", "T1w", ext=".nii"), image("01", "T2w")])
    (problem,) = open_dataset(tmp_path).problems
    assert "--bids-filter extension=nii" in problem.hint
    (case,) = open_dataset(tmp_path, bids_filter=["extension=.nii"]).cases
    assert str(case.files["t1"][0]).endswith("T1w.nii")
    assert "t2" not in case.files  # it has an extension, and another one


def test_a_filter_of_sessions_chooses_cases(tmp_path):
    names = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T1w.nii.gz" for n in ("pre", "post")]
    dataset = open_dataset(touch(tmp_path, names), bids_filter=["session=post"])
    assert [case.id for case in dataset.cases] == ["sub-01_ses-post"]
    assert dataset.notes == ()


def test_values_of_one_entity_mean_any_of_them(tmp_path):
    touch(tmp_path, [image("01", "acq-a_T1w"), image("02", "acq-b_T1w"), image("02", "acq-c_T1w")])
    dataset = open_dataset(tmp_path, bids_filter=["acq=a", "acq=b"])
    assert dataset.problems == ()
    assert [str(case.files["t1"][0]) for case in dataset.cases] == [
        image("01", "acq-a_T1w"),
        image("02", "acq-b_T1w"),
    ]


def test_a_case_that_keeps_no_file_lacks_the_modality_and_a_note_says_so(tmp_path):
    touch(tmp_path, [image("01", "run-1_T2w"), image("02", "run-2_T2w"), image("02", "T1w")])
    dataset = open_dataset(tmp_path, bids_filter=["run=1"])
    assert [sorted(case.files) for case in dataset.cases] == [["t2"], ["t1"]]
    (note,) = dataset.notes
    assert "no t2 of 1 case" in note
    assert "sub-02_run-2_T2w.nii.gz" in note


def test_two_datasets_in_one_folder_are_named(tmp_path):
    touch(tmp_path, [*subject("01", ["t1"], top="a/"), *subject("01", ["t1"], top="b/")])
    (problem,) = open_dataset(tmp_path).problems
    assert problem.hint == f"name one dataset: {tmp_path / 'a'} or {tmp_path / 'b'}"


def test_a_filter_that_no_file_fits_names_the_values_that_there_are(tmp_path):
    touch(tmp_path, [image("01", "run-1_T1w"), image("01", "run-2_T1w"), image("01", "T2w")])
    error = refused(tmp_path, "run=3")
    assert error.code == "bids-filter-without-match"
    assert "files without run, 1, 2" in error.message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("run", "malformed-bids-filter"),
        ("run-1", "malformed-bids-filter"),
        ("t1:run", "malformed-bids-filter"),
        ("run=1 2", "malformed-bids-filter"),
        ("rum=1", "unknown-bids-entity"),
        ("T5:run=1", "unknown-modality"),
    ],
)
def test_a_filter_of_another_form_is_refused(text, code):
    with pytest.raises(UsageError) as caught:
        parse_filters([text], FOUR)
    assert caught.value.code == code
    assert "--bids-filter" in caught.value.message


def test_a_filter_of_another_layout_is_refused(tmp_path):
    touch(tmp_path, [f"A/A_{name}.nii.gz" for name in FOUR])
    assert refused(tmp_path, "run=1").code == "bids-filter-without-bids"


@pytest.mark.parametrize(
    ("path", "place", "case"),
    [
        ("sub-01/anat/sub-02_T2w.nii.gz", "sub-01", "sub-02"),
        ("sub-01/ses-1/anat/sub-01_ses-2_T2w.nii.gz", "sub-01_ses-1", "sub-01_ses-2"),
        ("sub-01/ses-2/anat/sub-01_T2w.nii.gz", "sub-01_ses-2", "sub-01"),
        ("sub-01/anat/sub-01_ses-2_T2w.nii.gz", "sub-01", "sub-01_ses-2"),
    ],
)
def test_a_name_of_another_subject_or_session_than_its_folder_is_a_problem(
    path, place, case, tmp_path
):
    names = [*subject("01", ["t1"]), *subject("02", ["flair", "t1"])]
    (problem,) = open_dataset(touch(tmp_path, [*names, path])).problems
    assert problem.code == "bids-name-and-folder"
    assert f"{path}: lies in the folder of {place}, expected {place} in its name" in problem.message
    assert problem.message.endswith(f"or the folder of {case}")


@pytest.mark.parametrize("part", ["phase", "real", "imag"])
def test_a_phase_image_is_no_image_of_the_modality(part, tmp_path):
    names = [image("01", "part-mag_T2w"), image("01", f"part-{part}_T2w")]
    dataset = open_dataset(touch(tmp_path, names))
    assert dataset.problems == ()
    assert [str(path) for path in dataset.cases[0].files["t2"]] == names[:1]


def test_splits_remember_the_filter_for_the_complete_dataset(phantoms, attcl, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(phantoms("bids"), root)
    for path in root.glob("*/anat/*[0-9]_T1w.nii.gz"):
        for run in (1, 2):
            shutil.copy(path, path.with_name(path.name.replace("_T1w", f"_run-{run}_T1w")))
        path.unlink()
    ratio = tmp_path / "ratio.toml"
    ratio.write_text('hidden = [["t1"], ["t2"]]')
    data = tmp_path / "data"
    command = ("prepare-splits", root, "-o", data, "--ratio", ratio, "--sizes", "2/0/2")
    code, _, err = attcl(*command)
    assert code == 1
    assert "--bids-filter run=1" in err
    assert attcl(*command, "--bids-filter", "run=2")[0] == 0
    splits = read_splits(data)
    assert splits.bids_filter == ("run=2",)
    dataset = open_dataset(data)
    assert dataset.problems == ()
    truth = open_truth(Source(data), splits, None)
    assert truth.problems == ()
    assert all("run-2" in case.files["t1"][0].name for case in truth.cases)
    hidden = next(case for case in dataset.cases if "t1" not in case.files)
    assert "run-2_T1w" in dataset.place(hidden, "t1")[0].name


# --- names of new files ---------------------------------------------------------------------------------------------


def new_name(root: Path, names: Iterable[str], modality: str, case: int = 0) -> str:
    dataset = open_dataset(touch(root, names))
    (path,) = dataset.place(dataset.cases[case], modality)
    return str(path)


def test_a_new_file_has_the_entities_of_cases_that_are_named_alike(tmp_path):
    names = [image("00", "space-MNI_T1w")]
    names += [image(f"1{n}", f"space-MNI_{it}") for n in range(2) for it in ("T1w", "T2w")]
    names += [image(f"2{n}", f"acq-tse_{it}") for n in range(4) for it in ("T1w", "T2w")]
    assert new_name(tmp_path, names, "t2") == image("00", "space-MNI_T2w")


def test_a_new_file_lies_in_the_space_of_its_case(tmp_path):
    names = [image("00", "space-MNI_desc-brain_T1w"), image("01", "acq-tse_desc-brain_T2w")]
    expected = image("00", "acq-tse_space-MNI_desc-brain_T2w")
    assert new_name(tmp_path / "a", names, "t2") == expected
    names = [image("00", "T1w"), image("01", "acq-tse_space-MNI_T2w")]
    assert new_name(tmp_path / "b", names, "t2") == image("00", "acq-tse_T2w")


def test_registered_images_keep_their_mark_beside_an_unmarked_reference(tmp_path):
    names = [image("00", "T1w"), image("01", "T1w"), image("01", "space-T1w_FLAIR")]
    assert new_name(tmp_path, names, "flair") == image("00", "space-T1w_FLAIR")


def test_a_mark_of_synthetic_images_stands_last_and_replaces_another(tmp_path):
    names = [image("00", "T1w"), *[image("01", it) for it in ("T1w", "desc-x_ce-gd_T1w")]]
    dataset = replace(open_dataset(touch(tmp_path, names)), desc="synthetic")
    (path,) = dataset.place(dataset.cases[0], "t1ce")
    assert str(path) == image("00", "ce-gd_desc-synthetic_T1w")


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_a_new_file_ends_as_those_of_its_case(ext, tmp_path):
    names = [image("00", "T1w", ext=ext), *[image("01", it) for it in ("T1w", "T2w")]]
    assert new_name(tmp_path, names, "t2") == image("00", "T2w", ext=ext)


def test_hidden_names_come_back(tmp_path):
    """What prepare-splits hides gets its own name again, if the dataset is named alike."""
    tokens = ("FLAIR", "acq-mprage_T1w", "acq-mprage_ce-gd_T1w", "acq-tse_T2w")
    names = [image(f"{n:02d}", it) for n in range(6) for it in tokens]
    whole = open_dataset(touch(tmp_path / "raw", names))
    splits = make_splits(whole, ratio="ratio1", sizes=(3, 0, 3))
    write_tree(whole, splits, tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    originals = {case.id: case for case in whole.cases}
    for case in data.cases:
        for modality in data.missing(case):
            assert data.place(case, modality) == originals[case.id].files[modality]


def test_a_line_that_is_no_pattern_is_named():
    with pytest.raises(UsageError, match=r"\.bidsignore: '\[z-a\]' is no pattern") as caught:
        ignore_rules(["*.nii", "[z-a]"])
    assert caught.value.code == "invalid-ignore-pattern"
