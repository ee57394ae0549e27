"""The quantile-matched copy: the source's voxels, distributed as other patients' volumes of the target modality are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from score_files import rows_of

from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.files import read_json
from attcl_cli.scoring import baselines
from attcl_cli.scoring.baselines import LEVELS, Quantiles, matched_copy, measure_quantiles


def table_of(root, case: str, modality: str) -> np.ndarray:
    """The quantiles of a volume in its own window, straight on."""
    data = volumes.load((root / case / f"{case}_{modality}.nii.gz",)).data
    values = np.percentile(data[data != 0], np.linspace(0.5, 99.5, 397))
    return (values - values[0]) / (values[-1] - values[0])


def test_the_quantiles_are_the_mean_over_the_other_patients(phantom_root):
    dataset = open_dataset(phantom_root)
    quantiles = measure_quantiles(dataset, ["t1", "t2"])
    others = [
        table_of(phantom_root, case.id, "t2")
        for case in dataset.cases
        if case.id != "Phantom_00001"
    ]
    assert len(others) == len(dataset.cases) - 1
    expected = np.mean(others, axis=0)
    np.testing.assert_allclose(quantiles.of_others("Phantom_00001", "t2"), expected, rtol=1e-6)
    assert quantiles.of_others("Phantom_00001", "flair") is None  # which was not asked for


def test_all_cases_of_a_patient_are_left_out():
    tables = {"t1": {"p": np.array([0.0, 1.0]), "q": np.array([0.0, 3.0])}}
    quantiles = Quantiles({"p-1": "p", "p-2": "p", "q-1": "q"}, tables)
    assert quantiles.of_others("p-2", "t1").tolist() == [0, 3]
    alone = Quantiles({"p-1": "p"}, {"t1": {"p": np.array([0.0, 1.0])}})
    assert alone.of_others("p-1", "t1") is None


def test_of_many_patients_some_are_read_spread_over_the_dataset(phantom_root, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_PATIENTS", 2)
    quantiles = measure_quantiles(open_dataset(phantom_root), ["t1"], num_workers=0)
    assert list(quantiles.tables["t1"]) == ["Phantom_00000", "Phantom_00002"]


def test_a_matched_copy_has_the_targets_quantiles_in_the_order_of_the_source():
    source = np.zeros((2, 30, 30), np.float32)
    source[1] = np.random.default_rng(0).permutation(900).reshape(30, 30) + 1
    target = (LEVELS / 100) ** 3
    copied = matched_copy(source, target)
    assert copied.dtype == np.float32 and not copied[0].any()
    assert (np.diff(copied[1].ravel()[np.argsort(source[1].ravel())]) >= 0).all()
    np.testing.assert_allclose(np.percentile(copied[1], LEVELS), target, atol=2e-3)


def test_a_volume_of_zeros_has_no_quantiles_and_an_empty_copy():
    empty = np.zeros((2, 3, 4), np.float32)
    assert baselines.quantiles_of(empty) is None
    assert not matched_copy(empty, LEVELS).any()


def test_without_baselines_the_volumes_alone_are_scored_and_just_as_with_them(scored, folders):
    scored("--ssim", "--fid", "--fid-network", "effnet-lite0")
    with_them = [row for row in rows_of(folders.scores) if row["prediction"] == "synthetic"]
    figures = read_json(folders.scores / "summary.json")["scores"]
    assert scored("--ssim", "--fid", "--fid-network", "effnet-lite0", "--no-baselines")[0] == 0
    assert rows_of(folders.scores) == with_them
    assert read_json(folders.scores / "summary.json")["scores"] == [
        figure for figure in figures if figure["prediction"] == "synthetic"
    ]


def test_a_matched_copy_is_scored_beside_the_copy_if_baselines_are_asked_for(scored, folders):
    assert scored("--nmse", "--baselines")[0] == 0
    values = {
        row["prediction"]: float(row["value"])
        for row in rows_of(folders.scores)
        if (row["case"], row["modality"], row["region"]) == ("Phantom_00000", "t2", "brain")
    }
    assert list(values) == ["synthetic", "copy", "matched-copy", "mean", "zeros"]
    source, truth = (
        volumes.load((folders.truth / "Phantom_00000" / f"Phantom_00000_{name}.nii.gz",)).data
        for name in ("flair", "t2")
    )
    others = [table_of(folders.truth, f"Phantom_0000{number}", "t2") for number in (1, 2, 3)]
    windows = []
    for image in (matched_copy(source, np.mean(others, axis=0)), truth):
        low, high = np.percentile(image[truth != 0], [0.5, 99.5])
        windows.append(np.clip((image[truth != 0] - low) / (high - low), 0, 1))
    copied, real = windows
    expected = ((copied - real) ** 2).sum() / (real**2).sum()
    assert values["matched-copy"] == pytest.approx(expected, rel=1e-4)
    assert values["matched-copy"] != pytest.approx(values["copy"], rel=0.01)


def test_without_another_patient_there_is_no_matched_copy_and_this_is_said(
    scored, folders, tmp_path
):
    truth = tmp_path / "one"
    shutil.copytree(folders.truth / "Phantom_00000", truth / "Phantom_00000")
    code, _, err = scored("--truth", truth, "--nmse", "--baselines")
    assert code == 0, err
    assert "note: no matched-copy of t2: no other patient" in err
    assert {row["prediction"] for row in rows_of(folders.scores)} == {
        *("synthetic", "copy", "mean", "zeros")
    }
