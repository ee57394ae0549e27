"""`prepare_splits` from Python: what it returns, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import pytest
from helpers import states

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.data.splits import make_splits, read_splits
from attcl_cli.errors import AttclError, UsageError


def test_it_returns_the_splits_that_it_wrote_with_their_record(phantom_root, tmp_path):
    output = tmp_path / "data"
    prepared = prepare_splits(
        str(phantom_root), str(output), ratio="ratio3", sizes=(2, 1, 1), link="copy", seed=3
    )
    expected = make_splits(open_dataset(phantom_root), ratio="ratio3", sizes=(2, 1, 1), seed=3)
    assert (prepared.output, prepared.written) == (output, True)
    assert prepared.splits == expected == read_splits(output)
    record = json.loads((output / "run.json").read_text())
    assert (record["command"], record["status"], record["seed"]) == ("prepare-splits", "done", 3)
    assert record["config"] == {
        "dataset": str(phantom_root),
        "ratio": "ratio3",
        "link": "copy",
        "layout": "brats",
        "subset": "1",
    }


def test_the_same_splits_again_are_not_written(phantom_root, tmp_path):
    first = prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3")
    before = states(tmp_path)
    again = prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3")
    assert (first.written, again.written) == (True, False)
    assert again.splits == first.splits
    assert states(tmp_path) == before


def test_a_dry_run_draws_the_splits_and_writes_nothing(phantom_root, tmp_path):
    prepared = prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3", dry_run=True)
    assert not prepared.written
    assert prepared.splits == make_splits(open_dataset(phantom_root), ratio="ratio3")
    assert not (tmp_path / "data").exists()


def test_a_dry_run_refuses_another_link(phantom_root, tmp_path):
    prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3")
    with pytest.raises(UsageError) as caught:
        prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3", link="copy", dry_run=True)
    assert caught.value.code == "other-link"


def test_a_dry_run_refuses_what_the_run_would(phantom_root, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        prepare_splits(phantom_root, tmp_path / "data", ratio="ratio3", dry_run=True)


@pytest.mark.parametrize("subset", ["1/2", 0.5, Fraction(1, 2)])
def test_a_subset_is_a_text_a_number_or_a_fraction(subset, phantom_root, tmp_path):
    prepared = prepare_splits(
        phantom_root, tmp_path / "d", ratio="ratio3", sizes=(4, 0, 0), subset=subset
    )
    assert len(prepared.splits.names("train")) == 2
    record = json.loads((tmp_path / "d/run.json").read_text())
    assert record["config"]["subset"] == "1/2"


@pytest.mark.parametrize("subset", ["1/0", "some", ""])
def test_a_subset_that_is_no_number_is_refused(subset, phantom_root, tmp_path):
    with pytest.raises(UsageError, match="--subset") as caught:
        prepare_splits(phantom_root, tmp_path / "data", subset=subset)
    assert caught.value.code == "malformed-subset"


def test_an_unusable_file_is_refused_before_anything_is_written(incomplete_root, tmp_path):
    (incomplete_root / "Phantom_00002/Phantom_00002_t1.nii.gz").write_bytes(b"no volume")
    with pytest.raises(AttclError, match="Phantom_00002_t1"):
        prepare_splits(incomplete_root, tmp_path / "data", ratio="ratio3")
    assert not (tmp_path / "data").exists()


def test_synthetic_volumes_are_no_ground_truth_to_hide(phantom_root, tmp_path):
    whole = tmp_path / "out"
    shutil.copytree(phantom_root, whole)
    for name in ("t1", "t2"):
        (whole / f"Phantom_00001/Phantom_00001_{name}.json").write_text('{"synthetic": true}')
    for dry_run in (True, False):
        with pytest.raises(AttclError, match="2 volumes have a side-car that says") as caught:
            prepare_splits(whole, tmp_path / "data", ratio="ratio3", dry_run=dry_run)
        assert caught.value.code == "synthetic-truth"
        assert "t1 of Phantom_00001" in caught.value.message
    assert not (tmp_path / "data").exists()
