"""The rows of scores: by the right numbers, in every region, beside the trivial baselines."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from score_files import figures_of, first_completed, rows_of, spoil
from skimage.metrics import structural_similarity

from attcl_cli.data import volumes
from attcl_cli.errors import AttclError
from attcl_cli.scoring.pairs import CasePairs, Comparison, Pair
from attcl_cli.scoring.rows import Measures, read_in_pictures, score_cases

SHAPE = (6, 8, 40)  # of the arrays that are written: X, Y, Z


@pytest.fixture
def case(tmp_path: Path, write_nifti) -> CasePairs:
    """A case with flair and t2, whose t1 is its true one plus noise, and whose t1ce a network makes."""
    generator = np.random.default_rng(0)
    volumes = {name: generator.integers(1, 1000, SHAPE) for name in ("flair", "t1", "t1ce", "t2")}
    volumes["made"] = volumes["t1"] + generator.integers(0, 50, SHAPE)
    files = {
        name: (write_nifti(tmp_path / f"{name}.nii.gz", array.astype(np.int16)),)
        for name, array in volumes.items()
    }
    return CasePairs(
        case="A",
        sources=("flair",),
        present={"flair": files["flair"], "t2": files["t2"]},
        pairs=(Pair("t1", files["t1"], files["made"]), Pair("t1ce", files["t1ce"], ())),
        segmentation=(),
    )


def rows_for(case: CasePairs, measures: Measures, folder: Path, **options):
    comparison = Comparison((case,), (), folder)
    return [
        row for rows in score_cases(comparison, measures, folder=folder, **options) for row in rows
    ]


def test_a_case_has_a_row_per_volume_prediction_and_region(case, tmp_path):
    case = replace(case, pairs=case.pairs[:1])
    rows = rows_for(case, Measures(("psnr", "nmse")), tmp_path)
    assert [(row.prediction, row.metric, row.region) for row in rows] == [
        (prediction, metric, region)
        for prediction in ("synthetic", "copy", "mean", "zeros")
        for metric in ("psnr", "nmse")
        for region in ("brain", "whole")
    ]
    assert {(row.case, row.source, row.modality) for row in rows} == {("A", "flair", "t1")}
    nmse = {
        row.prediction: row.value for row in rows if (row.metric, row.region) == ("nmse", "brain")
    }
    assert nmse["synthetic"] < min(nmse["copy"], nmse["mean"])
    assert nmse["zeros"] == 1


def test_the_mean_of_one_volume_is_no_baseline_of_its_own(case, tmp_path):
    case = replace(case, pairs=case.pairs[:1], present={"flair": case.present["flair"]})
    rows = rows_for(case, Measures(("psnr",)), tmp_path)
    assert {row.prediction for row in rows} == {"synthetic", "copy", "zeros"}


@pytest.mark.parametrize("only", [("synthetic",), ("copy", "zeros"), ("synthetic", "mean")])
def test_some_predictions_alone_have_the_scores_that_they_have_among_all(only, case, tmp_path):
    case = replace(case, pairs=case.pairs[:1])
    some = rows_for(case, Measures(("ssim", "nmse"), only=only), tmp_path)
    rows = rows_for(case, Measures(("ssim", "nmse")), tmp_path)
    assert some == [row for row in rows if row.prediction in only]


def test_the_copy_is_of_the_volume_that_is_most_like_the_truth(case, write_nifti, tmp_path):
    data = np.asarray(nib.load(case.pairs[0].truth[0]).dataobj).astype(float)
    noise = np.random.default_rng(1).normal(0, 50, SHAPE)
    near = (write_nifti(tmp_path / "near.nii.gz", (9000 - 3 * data).astype(np.int16)),)
    nearer = (write_nifti(tmp_path / "nearer.nii.gz", (5 * data + noise).astype(np.int16)),)
    pairs = case.pairs[:1]
    with_it = replace(case, pairs=pairs, present={**case.present, "pd": near, "t1ce": nearer})
    alone = replace(case, pairs=pairs, sources=("t1ce",), present={"t1ce": nearer})
    measures = Measures(("ssim", "psnr"), only=("copy",))
    values = [[row.value for row in rows_for(it, measures, tmp_path)] for it in (with_it, alone)]
    assert values[0] == values[1]
    assert values[0][0] > 0.9


def test_reading_ahead_changes_nothing(case, tmp_path):
    case = replace(case, pairs=case.pairs[:1])
    measures = Measures(("ssim", "psnr"))
    assert rows_for(case, measures, tmp_path, num_workers=0) == rows_for(
        case, measures, tmp_path, num_workers=3
    )


def test_a_volume_that_is_not_on_disk_is_translated_from_the_source(case, tmp_path):
    calls = []

    def translate(sources, brain, targets, *, sample=None):
        ((name, source),) = sources.items()
        calls.append((name, tuple(targets), source.data.shape, bool(brain.all()), sample))
        return dict.fromkeys(targets, source.data)

    case = replace(case, present={"flair": case.present["flair"]})
    rows = rows_for(case, Measures(("ssim",), translate=translate), tmp_path)
    assert calls == [("flair", ("t1ce",), SHAPE[::-1], True, None)]
    values = {(row.modality, row.prediction): row.value for row in rows if row.region == "brain"}
    assert values["t1ce", "synthetic"] == values["t1ce", "copy"]
    assert values["t1", "synthetic"] > values["t1", "copy"]


def test_every_eighth_slice_is_sampled_for_the_distance_between_samples(case, tmp_path):
    case = replace(case, pairs=case.pairs[:1])
    drawn = []

    class Network:
        name, sha256 = "grey", "0"

        def embed(self, slices):
            return slices.mean(dim=(1, 2, 3))

        def between(self, first, second):
            return (first - second).abs()

    def draw(sources, brain, target, indices):
        drawn.append((*sources, target, indices.tolist()))
        return [np.full((len(indices), *SHAPE[1::-1]), grey) for grey in (0, 0.2, 0.6)]

    measures = Measures(("lpips-diversity",), perceptual=Network(), draw=draw)
    (row,) = rows_for(case, measures, tmp_path)
    assert drawn == [("flair", "t1", [8, 16, 24])]  # of 40 slices, those at 20 to 80 %
    assert (row.metric, row.region, row.prediction) == ("lpips-diversity", "slices", "synthetic")
    assert row.value == pytest.approx((0.2 + 0.6 + 0.4) / 3, abs=1e-6)


def test_style_samples_are_scored_beside_the_completed_volume(case, tmp_path):
    case = replace(case, pairs=case.pairs[:1])
    asked = []

    class Pixels:
        name, sha256 = "pixels", "0"

        def embed(self, slices):
            return slices.flatten(1)

        def between(self, first, second):
            return (first - second).abs().mean(dim=1)

    def translate(sources, brain, targets, *, sample=None):
        asked.append((*sources, *targets, sample))
        volume = volumes.load(case.pairs[0].prediction if sample == 0 else case.pairs[0].truth)
        return dict.fromkeys(targets, 2 * volume.data + 50)  # in other units than the truth

    measures = Measures(("lpips",), perceptual=Pixels(), translate=translate, samples=4)
    synthetic, samples = rows_for(case, measures, tmp_path)
    assert asked == [("flair", "t1", number) for number in range(4)]
    assert (synthetic.prediction, samples.prediction) == ("synthetic", "samples")
    assert synthetic.value > 0.001
    # The first is the completed volume, the others are perfect: the mean over samples is a quarter.
    assert samples.value == pytest.approx(synthetic.value / 4, rel=1e-3)


def test_the_pictures_are_those_that_were_scored(case):
    case = replace(case, pairs=case.pairs[:1])
    shown = read_in_pictures(case)
    (prediction,) = shown.predictions
    assert list(shown.sources) == [case.source]
    source = shown.sources[case.source]
    assert source.shape == prediction.volumes.image.shape == SHAPE[::-1]
    assert prediction.name == "synthetic" and prediction.pair is case.pairs[0]
    for image in (source, prediction.volumes.image, prediction.volumes.truth):
        assert (image.min(), image.max()) == (0, 1)


def test_a_truth_without_contrast_is_named(case, tmp_path, write_nifti):
    values = np.full(SHAPE, 7, np.int16)
    values[0, 0, 0] = 9
    flat = write_nifti(tmp_path / "flat.nii.gz", values)
    case = replace(case, pairs=(replace(case.pairs[0], truth=(flat,)),))
    with pytest.raises(AttclError) as caught:
        rows_for(case, Measures(("ssim",)), tmp_path)
    assert caught.value.code == "truth-without-contrast"
    assert str(flat) in caught.value.message


def test_a_source_of_another_shape_is_named(case, tmp_path, write_nifti):
    small = write_nifti(
        tmp_path / "small.nii.gz", np.arange(6 * 8 * 39).reshape(6, 8, 39).astype(np.int16)
    )
    case = replace(case, present={"flair": (small,)}, pairs=case.pairs[:1])
    with pytest.raises(AttclError) as caught:
        rows_for(case, Measures(("ssim",)), tmp_path)
    assert caught.value.code == "shape-differs"
    assert str(small) in caught.value.message


# --- of whole datasets ---


def test_the_image_scores_are_those_of_other_tools(scored, folders):
    spoil(first_completed(folders), lambda data: np.where(data > 0, data * 0.5 + 60, 0) ** 1.1)
    assert scored("--ssim", "--psnr", "--nmse")[0] == 0
    name = "Phantom_00000/Phantom_00000_t2.nii.gz"
    truth, made = (
        np.asarray(nib.load(root / name).dataobj).astype(np.float64)
        for root in (folders.truth, folders.cpl)
    )
    brain = truth != 0

    def unit(image):
        low, high = np.percentile(image[brain], [0.5, 99.5])
        return np.where(brain, np.clip((image - low) / (high - low), 0, 1), 0)

    x, y = unit(made), unit(truth)
    _, similarity = structural_similarity(
        x, y, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    segmentation = nib.load(folders.truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz")
    masks = {
        "brain": brain,
        "whole": np.ones_like(brain),
        "tumour": np.asarray(segmentation.dataobj) > 0,
    }
    found = {
        (row["metric"], row["region"]): float(row["value"])
        for row in rows_of(folders.scores)
        if (row["case"], row["prediction"]) == ("Phantom_00000", "synthetic")
    }
    for region, mask in masks.items():
        error = ((x - y)[mask] ** 2).mean()
        energy = (y[mask] ** 2).mean()
        assert found["ssim", region] == pytest.approx(similarity[mask].mean(), abs=1e-5)
        assert found["psnr", region] == pytest.approx(10 * np.log10(1 / error), abs=1e-3)
        assert found["nmse", region] == pytest.approx(error / energy, rel=1e-4)


def test_a_segmentation_of_another_shape_is_named(scored, folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    file = truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), file)
    code, _, err = scored("--truth", truth)
    assert code == 1
    assert str(file) in err


def test_without_a_tumour_its_scores_are_undefined_and_counted(scored, folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    spoil(truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz", np.zeros_like)
    (truth / "Phantom_00003" / "Phantom_00003_seg.nii.gz").unlink()
    code, _, err = scored("--truth", truth, "--ssim")
    assert code == 0
    figure = figures_of(folders.scores)["t2", "synthetic", "ssim", "tumour"]
    assert (figure["mean"], figure["n"], figure["n_undefined"]) == (None, 0, 1)
    assert figure["n_unsegmented"] == 1
    note = "the tumour is scored in 2 of 4 volumes; left out: 1 without tumour and 1 of cases without a label map"
    assert f"note: {note}" in err
    assert note in (folders.scores / "report.html").read_text()
    empty = [row for row in rows_of(folders.scores) if row["value"] == ""]
    assert {row["case"] for row in empty} == {"Phantom_00000"}
    assert {row["region"] for row in empty} == {"tumour"}


def test_baselines_stand_beside_the_method(scored, folders):
    assert scored("--ssim")[0] == 0
    predictions = {row["prediction"] for row in rows_of(folders.scores) if row["metric"] == "ssim"}
    assert predictions == {"synthetic", "copy", "mean", "zeros"}
    figures = figures_of(folders.scores)
    assert figures["all", "zeros", "ssim", "brain"]["mean"] < 0.05
    # the case without t2 has three sources, so their mean is no copy of one
    assert (
        figures["t2", "mean", "ssim", "brain"]["mean"]
        != figures["t2", "copy", "ssim", "brain"]["mean"]
    )
    spread = figures["t2", "copy", "ssim", "brain"]
    values = [
        float(row["value"])
        for row in rows_of(folders.scores)
        if (row["modality"], row["metric"], row["region"], row["prediction"])
        == ("t2", "ssim", "brain", "copy")
    ]
    assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    assert figures["t1", "copy", "ssim", "brain"]["sd"] is None  # of one volume


def test_the_label_says_which_source_a_copy_is_made_of(scored, folders):
    label = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.json"
    label.write_text(json.dumps({"source": {"modality": "t2"}}))
    assert scored("--ssim")[0] == 0
    sources = {(row["case"], row["modality"]): row["source"] for row in rows_of(folders.scores)}
    assert sources["Phantom_00001", "t1"] == "t2"
    assert sources["Phantom_00001", "t1ce"] == "flair"  # the first of the modalities by frequency


def test_a_damaged_label_counts_as_none(scored, folders):
    label = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.json"
    label.write_text('{"source": {"modality": "t2"')
    code, _, err = scored("--ssim")
    assert code == 0, err
    sources = {(row["case"], row["modality"]): row["source"] for row in rows_of(folders.scores)}
    assert sources["Phantom_00001", "t1"] == "flair"
