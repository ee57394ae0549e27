"""What `attcl info DIR` reports, as plain data."""

from __future__ import annotations

import json

import pytest

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.info import dataset_info, describe
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.errors import AttclError

FOUR = ["flair", "t1", "t1ce", "t2"]


def test_it_counts_volumes_and_patterns_of_missing_modalities(tmp_path):
    for case, names in {"A": ["t1", "seg"], "B": FOUR, "C": ["t1"]}.items():
        (tmp_path / case).mkdir()
        for name in names:
            (tmp_path / case / f"{case}_{name}.nii.gz").touch()
    problem = AttclError("found, expected", "do", code="some-code")
    assert describe(open_dataset(tmp_path), [problem]) == {
        "root": str(tmp_path),
        "layout": "brats",
        "layout_title": "BraTS 2018-2021",
        "modalities": FOUR,
        "absent": [],
        "cases": 3,
        "patients": 3,
        "recognised": [],
        "volumes": {"flair": 1, "t1": 3, "t1ce": 1, "t2": 1},
        "segmentations": 1,
        "synthetic": 0,
        "patterns": [
            {"missing": [], "cases": 1},
            {"missing": ["flair", "t1ce", "t2"], "cases": 2},
        ],
        "problems": [{"error": "found, expected", "hint": "do", "code": "some-code"}],
        "notes": [],
        "ignored": [],
    }


def test_it_is_plain_data_with_the_problems_of_the_voxels(incomplete_root):
    path = incomplete_root / "Phantom_00002/Phantom_00002_t1.nii.gz"
    path.write_bytes(b"no volume")
    document = dataset_info(str(incomplete_root))
    assert json.loads(json.dumps(document)) == document
    assert [str(path) in problem["error"] for problem in document["problems"]] == [True]
    assert "splits" not in document


def test_it_has_the_table_of_splits_if_prepare_splits_wrote_the_folder(phantom_root, tmp_path):
    prepared = prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3")
    assert dataset_info(tmp_path / "data")["splits"] == {
        "ratio": "ratio3",
        "source": str(phantom_root),
        "table": prepared.splits.table(),
    }


def test_a_folder_that_is_no_dataset_is_an_error(tmp_path):
    with pytest.raises(AttclError, match="no such folder"):
        dataset_info(tmp_path / "nowhere")
