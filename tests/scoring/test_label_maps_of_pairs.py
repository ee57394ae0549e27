"""Label maps of scores: on the grid of their case, or refused before anything is scored; empty maps are no error."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from score_files import rows_of

from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, ProblemsError
from attcl_cli.scoring.pairs import plan_comparison, plan_directions


@pytest.fixture
def own(folders: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """`folders` with a truth that a test may spoil."""
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    folders.truth = truth
    return folders


def rewrite(own: SimpleNamespace, case: int, *, affine=None, labels=None) -> Path:
    path = own.truth / f"Phantom_{case:05d}" / f"Phantom_{case:05d}_seg.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj) if labels is None else labels(np.asarray(image.dataobj))
    place = image.affine if affine is None else affine
    nib.save(nib.Nifti1Image(values, place, dtype=values.dtype), path)
    return path


def test_a_label_map_on_another_grid_is_refused_before_anything_is_scored(own, scored):
    path = rewrite(own, 0, affine=np.diag([8.0, 8, 8, 1]))
    for plan in (
        lambda truth: plan_comparison(open_dataset(own.ori), truth, own.cpl, None),
        lambda truth: plan_directions(truth, None),
    ):
        with pytest.raises(AttclError, match="affine off by") as caught:
            plan(open_dataset(own.truth))
        assert caught.value.code == "grids-differ"
        assert str(path) in caught.value.message
    code, out, err = scored("--psnr")
    assert (code, out) == (1, "")
    assert "expected one grid for all files of a case" in err
    assert not own.scores.exists()


def test_every_label_map_that_cannot_be_read_is_named(own):
    rewrite(own, 0, affine=np.diag([8.0, 8, 8, 1]))
    rewrite(own, 1, labels=lambda labels: labels.astype(np.float32) * 1.2)
    rewrite(own, 3, labels=lambda labels: labels + np.int32(65537))
    with pytest.raises(ProblemsError) as caught:
        plan_comparison(open_dataset(own.ori), open_dataset(own.truth), own.cpl, None)
    codes = [problem.code for problem in caught.value.problems]
    assert sorted(codes) == ["grids-differ", "label-out-of-range", "labels-not-whole"]


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_the_number_type_of_a_label_map_changes_no_score(kind, own, scored):
    assert scored("--psnr")[0] == 0
    before = rows_of(own.scores)
    shutil.rmtree(own.scores)
    for case in range(4):
        rewrite(own, case, labels=lambda labels: labels.astype(kind))
    assert scored("--psnr")[0] == 0
    assert rows_of(own.scores) == before


def test_a_case_without_tumour_is_scored_and_its_tumour_is_undefined(own, scored):
    rewrite(own, 0, labels=np.zeros_like)
    assert scored("--nmse")[0] == 0
    rows = [row for row in rows_of(own.scores) if row["case"] == "Phantom_00000"]
    values = {row["region"]: row["value"] for row in rows if row["prediction"] == "synthetic"}
    assert values["tumour"] in {"", "nan"}
    assert float(values["brain"]) == 0


def test_a_label_map_off_the_brain_is_a_warning_and_is_scored(own, scored):
    def off(labels: np.ndarray) -> np.ndarray:
        result = np.zeros_like(labels)
        result[:3] = 1
        return result

    path = rewrite(own, 0, labels=off)
    code, _, err = scored("--psnr")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "off the brain" in line]
    assert line.startswith(f"warning: {path}: ")
    assert "its tumour scores may mean nothing" in (own.scores / "report.html").read_text()
