"""Folders of public datasets, made of phantoms: what `info` recognises, whose they are, where new files belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.info import dataset_info
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.errors import AttclError, UsageError

FOUR = ("flair", "t1", "t1ce", "t2")
UPPER = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1GD", "t2": "T2"}
UCSF = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1c", "t2": "T2", "seg": "tumor_segmentation"}
BRATS_2023 = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
TCGA = {
    "flair": "flair",
    "t1": "t1",
    "t1ce": "t1Gd",
    "t2": "t2",
    "seg": "GlistrBoost_ManuallyCorrected",
}

Names = Callable[[str, str], str]
"""(case, modality or "seg") -> the path of its file."""


def in_folder(join: str, tokens: dict[str, str] | None = None, folder: str = "{}") -> Names:
    return lambda case, name: (
        f"{folder.format(case)}/{case}{join}{(tokens or {}).get(name, name)}.nii.gz"
    )


def upenn(case: str, name: str) -> str:
    if name == SEGMENTATION:
        return f"images_segm/{case}_segm.nii.gz"
    return f"images_structural/{case}/{case}_{UPPER[name]}.nii.gz"


def nnunet(case: str, name: str) -> str:
    if name == SEGMENTATION:
        return f"labelsTr/{case}.nii.gz"
    return f"imagesTr/{case}_{FOUR.index(name):04d}.nii.gz"


def tcga(case: str, name: str) -> str:
    return f"{case.partition('_')[0]}/{case}_{TCGA[name]}.nii.gz"


# dataset -> layout, what info calls its ids, the ids of four cases, how many patients these are, names of files
PUBLIC = {
    "BraTS 2020": (
        "brats", "BraTS 2020", [f"BraTS20_Training_{number:03d}" for number in (1, 2, 3, 355)], 4, in_folder("_"),
    ),
    "BraTS 2021": (
        "brats", "BraTS 2021", [f"BraTS2021_{number:05d}" for number in (0, 2, 3, 5)], 4, in_folder("_"),
    ),
    **{
        f"BraTS {cohort}": (
            "brats2023", "BraTS 2023 to 2025",
            [f"BraTS-{cohort}-{number}" for number in ("00005-000", "00005-001", "00006-100", "00008-100")],
            3, in_folder("-", BRATS_2023),
        )
        for cohort in ("GLI", "MEN", "MET", "PED", "SSA")
    },
    "BraTS MEN-RT": (
        "brats", "BraTS-MEN-RT 2024", [f"BraTS-MEN-RT-000{number}-1" for number in range(4)], 4,
        in_folder("_", {"seg": "gtv"}),
    ),
    "UPENN-GBM": (
        "brats", "UPENN-GBM",
        [f"UPENN-GBM-{name}" for name in ("00001_11", "00001_21", "00002_11", "00003_11")], 3, upenn,
    ),
    "UCSF-PDGM": (
        "ucsf", "UCSF-PDGM",
        [f"UCSF-PDGM-{name}" for name in ("0004", "0431", "0431_FU001d", "0541")], 3,
        in_folder("_", UCSF, folder="{}_nifti"),
    ),
    "TCGA": (
        "tcga", "TCGA",
        [f"TCGA-{name}" for name in ("02-0006_1996.08.23", "02-0009_1997.06.14", "CS-4941_2000.05.17",
                                     "CS-4941_2001.01.02")],
        3, tcga,
    ),
    "nnU-Net": ("nnunet", None, [f"BRATS_{number:03d}" for number in range(4)], 4, nnunet),
    "patient folders": (
        "folders", None, [f"pat{number}" for number in range(4)], 4,
        lambda case, name: f"{case}/{UPPER.get(name, name)}.nii.gz",
    ),
}  # fmt: skip


def arrange(phantom_root: Path, root: Path, dataset: str) -> Path:
    """Link the phantoms under the names of a public dataset."""
    _, _, cases, _, names = PUBLIC[dataset]
    for case, phantom in zip(cases, open_dataset(phantom_root).cases, strict=True):
        for name in (*FOUR, SEGMENTATION):
            path = root / names(case, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(phantom_root / f"{phantom.id}/{phantom.id}_{name}.nii.gz")
    if dataset == "nnU-Net":
        channels = {"channel_names": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}
        (root / "dataset.json").write_text(json.dumps(channels))
    return root


@pytest.mark.parametrize("dataset", PUBLIC)
def test_info_recognises_a_public_dataset(dataset, phantom_root, tmp_path):
    layout, title, cases, patients, _ = PUBLIC[dataset]
    document = dataset_info(arrange(phantom_root, tmp_path, dataset))
    assert document["problems"] == []
    assert document["layout"] == layout
    assert document["recognised"] == ([title] if title else [])
    assert (document["cases"], document["patients"]) == (4, patients)
    assert document["volumes"] == dict.fromkeys(FOUR, 4)
    assert document["segmentations"] == 4
    assert [case.id for case in open_dataset(tmp_path).cases] == sorted(cases)


@pytest.mark.parametrize("dataset", PUBLIC)
def test_a_new_file_is_named_as_the_dataset_names_it(dataset, phantom_root, tmp_path):
    _, _, cases, _, names = PUBLIC[dataset]
    arrange(phantom_root, tmp_path, dataset)
    for name in ("t1ce", "flair"):
        path = tmp_path / names(cases[1], name)
        path.unlink()
        incomplete = open_dataset(tmp_path)
        (case,) = (it for it in incomplete.cases if it.id == cases[1])
        assert name in incomplete.missing(case)
        assert [str(it) for it in incomplete.place(case, name)] == [names(cases[1], name)]


@pytest.mark.parametrize("dataset", ["UPENN-GBM", "UCSF-PDGM", "TCGA", "BraTS GLI"])
def test_the_cases_of_a_patient_stay_in_one_split(dataset, phantom_root, tmp_path):
    arrange(phantom_root, tmp_path / "whole", dataset)
    ratio = tmp_path / "nothing.toml"
    ratio.write_text("hidden = [[]]\n")
    for seed in range(4):
        splits = prepare_splits(
            tmp_path / "whole", tmp_path / "data", ratio=str(ratio), sizes=(2, 1, 1), seed=seed, dry_run=True
        ).splits  # fmt: skip
        owner = {case.id: case.patient for case in open_dataset(tmp_path / "whole").cases}
        places: dict[str, set[str]] = {}
        for split in splits.splits:
            for case in splits.names(split):
                places.setdefault(owner[case], set()).add(split)
        assert all(len(of_patient) == 1 for of_patient in places.values())


def test_the_data_tree_of_nnu_net_reads_back(phantom_root, tmp_path):
    arrange(phantom_root, tmp_path / "whole", "nnU-Net")
    prepare_splits(tmp_path / "whole", tmp_path / "data", ratio="ratio1")
    document = dataset_info(tmp_path / "data")
    assert (document["layout"], document["segmentations"], document["problems"]) == (
        "nnunet",
        4,
        [],
    )
    assert sum(document["volumes"].values()) == 8  # ratio1 hides two of each four


# --- BraTS 2020 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_odd_label_map_of_brats_2020_is_read_and_said(ending, tmp_path):
    for name in FOUR:
        path = tmp_path / f"BraTS20_Training_355/BraTS20_Training_355_{name}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    odd = f"BraTS20_Training_355/W39_1998.09.19_Segm{ending}"
    (tmp_path / odd).touch()
    dataset = open_dataset(tmp_path)
    (case,) = dataset.cases
    assert [str(path) for path in case.segmentation] == [odd]
    assert dataset.notes == (
        f"{odd}: taken as the label map of BraTS20_Training_355, by the end of its name",
    )
    assert (dataset.problems, dataset.ignored) == ((), ())


@pytest.mark.parametrize(
    "others",
    [
        ["A/A_seg.nii.gz", "A/W39_Segm.nii.gz"],  # it has one
        ["A/W39_Segm.nii.gz", "A/W40_Segm.nii.gz"],  # which of them?
        ["A/B_seg.nii.gz"],  # that of another case
    ],
)
def test_a_label_map_that_may_be_anothers_is_not_taken(others, tmp_path):
    for path in ["A/A_t1.nii.gz", "B/B_t1.nii.gz", *others]:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    dataset = open_dataset(tmp_path)
    expected = ["A/A_seg.nii.gz"] if "A/A_seg.nii.gz" in others else []
    assert [str(path) for path in dataset.cases[0].segmentation] == expected
    assert {str(path) for path in dataset.ignored} == {*others} - {*expected}


# --- label maps -------------------------------------------------------------------------------------------------------


def test_the_corrected_label_map_of_tcga_is_taken_before_the_automatic_one(tmp_path):
    stem = "TCGA-02-0006/TCGA-02-0006_1996.08.23_"
    (tmp_path / "TCGA-02-0006").mkdir()
    for name in ("t1", "GlistrBoost", "GlistrBoost_ManuallyCorrected"):
        (tmp_path / f"{stem}{name}.nii.gz").touch()
    dataset = open_dataset(tmp_path)
    assert str(dataset.cases[0].segmentation[0]) == f"{stem}GlistrBoost_ManuallyCorrected.nii.gz"
    assert [str(path) for path in dataset.ignored] == [f"{stem}GlistrBoost.nii.gz"]
    assert dataset.problems == ()


def test_the_user_can_say_what_label_maps_are_called(tmp_path):
    (tmp_path / "A").mkdir()
    for name in ("t1", "t2", "seg", "GT_manual"):
        (tmp_path / f"A/A_{name}.nii.gz").touch()
    (tmp_path / "modalities.toml").write_text("segmentation = ['GT_manual', 'GT']\n")
    (case,) = open_dataset(tmp_path).cases
    assert [str(path) for path in case.segmentation] == ["A/A_GT_manual.nii.gz"]


# --- IXI --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [("ixi", "IXI-{m}/IXI{c}-{m}.nii.gz"), ("ixi-flat", "IXI{c}-{m}.nii.gz"), ("ixi-flat", "x/IXI{c}-{m}.nii.gz")],
)  # fmt: skip
def test_ixi_is_read_with_its_own_modalities(layout, pattern, tmp_path):
    names = [
        pattern.format(m=modality, c=case)
        for case in ("002-Guys-0828", "012-HH-1211")
        for modality in ("T1", "T2", "PD")
    ]
    for name in names[:-1]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    dataset = open_dataset(tmp_path)
    assert (dataset.layout.name, dataset.recognised) == (layout, ("IXI",))
    assert dataset.counts() == {"pd": 1, "t1": 2, "t2": 2}
    assert [case.patient for case in dataset.cases] == ["IXI002", "IXI012"]
    assert [str(path) for path in dataset.place(dataset.cases[1], "pd")] == [names[-1]]
    assert dataset.problems == ()


# --- nnU-Net ----------------------------------------------------------------------------------------------------------


def touch_channels(root: Path, document: object) -> Path:
    for number in range(2):
        path = root / f"imagesTr/A_{number:04d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if document is not None:
        (root / "dataset.json").write_text(json.dumps(document))
    return root


@pytest.mark.parametrize(
    ("document", "modalities"),
    [
        ({"channel_names": {"0": "T1", "1": "FLAIR"}}, {"t1": "0000", "flair": "0001"}),
        ({"modality": {"0": "MR T1-weighted", "1": "ADC map"}}, {"t1": "0000", "adcmap": "0001"}),
        ({"channel_names": {"1": "t1gd", "0": "t1n"}}, {"t1ce": "0001", "t1": "0000"}),
    ],
)
def test_dataset_json_says_what_the_channels_are(document, modalities, tmp_path):
    dataset = open_dataset(touch_channels(tmp_path, document))
    assert dataset.modalities == tuple(sorted(modalities))
    (case,) = dataset.cases
    for name, number in modalities.items():
        assert [str(path) for path in case.files[name]] == [f"imagesTr/A_{number}.nii.gz"]


def test_channels_can_be_named_in_modalities_toml(tmp_path):
    touch_channels(tmp_path, None)
    (tmp_path / "modalities.toml").write_text("[modalities]\nt1 = ['0000']\nt2 = ['0001']\n")
    assert open_dataset(tmp_path).counts() == {"t1": 1, "t2": 1}


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (None, "channels-unknown"),
        ({"labels": {}}, "channels-invalid"),
        ({"channel_names": ["T1", "T2"]}, "channels-invalid"),
        ({"channel_names": {"zero": "T1"}}, "channels-invalid"),
        ({"channel_names": {"0": "T1", "1": "t1n"}}, "channels-ambiguous"),
    ],
)
def test_channels_that_nothing_explains_are_an_error(document, code, tmp_path):
    with pytest.raises(AttclError) as caught:
        open_dataset(touch_channels(tmp_path, document))
    assert caught.value.code == code
    assert "dataset.json" in caught.value.message


def test_completed_channels_without_their_dataset_are_an_error_with_another_hint(tmp_path):
    (touch_channels(tmp_path, None) / "run.json").write_text('{"command": "complete"}')
    with pytest.raises(AttclError) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "channels-unknown"
    assert "--link-originals" in (caught.value.hint or "")


def test_two_orders_of_channels_are_an_error(tmp_path):
    touch_channels(tmp_path / "Dataset001_A", {"channel_names": {"0": "T1", "1": "T2"}})
    touch_channels(tmp_path / "Dataset002_B", {"channel_names": {"0": "T2", "1": "T1"}})
    with pytest.raises(
        AttclError, match=r"Dataset002_B/dataset\.json: other channels than"
    ) as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "channels-differ"


# --- patients ---------------------------------------------------------------------------------------------------------


def test_the_patient_can_be_said(tmp_path):
    for case in ("Site-7-a", "Site-7-b", "Site-8-a"):
        (tmp_path / case).mkdir()
        (tmp_path / f"{case}/{case}_t1.nii.gz").touch()
    (tmp_path / "modalities.toml").write_text("patient = '^(Site-\\d+)'\n")
    assert [case.patient for case in open_dataset(tmp_path).cases] == ["Site-7", "Site-7", "Site-8"]
    (tmp_path / "modalities.toml").write_text("patient = '^(Hospital-\\d+)'\n")
    with pytest.raises(UsageError, match="does not fit 3 of 3 cases"):
        open_dataset(tmp_path)


def test_info_names_a_patient_in_two_splits_of_a_splits_json_from_before(phantom_root, tmp_path):
    arrange(phantom_root, tmp_path / "whole", "UPENN-GBM")
    prepare_splits(tmp_path / "whole", tmp_path / "data", ratio="ratio3", sizes=(2, 1, 1))
    file = tmp_path / "data" / "splits.json"
    document = json.loads(file.read_text())
    everything = [item for items in document["splits"].values() for item in items]
    first = [item for item in everything if item["case"] == "UPENN-GBM-00001_11"]
    document["splits"] = {
        "train": [item for item in everything if item not in first],
        "val": [],
        "test": first,
    }
    file.write_text(json.dumps(document))
    (problem,) = dataset_info(tmp_path / "data")["problems"]
    assert problem["code"] == "patient-in-two-splits"
    assert problem["error"].startswith(
        f"{file}: UPENN-GBM-00001_21 in train and UPENN-GBM-00001_11 in test look like one patient"
    )
