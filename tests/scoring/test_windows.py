"""Every volume in its own window: other units change no score, what is drawn outside the brain is seen."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attcl_cli.data.phantom import make_case
from attcl_cli.scoring.feature_store import FeatureSet, batches, to_bytes
from attcl_cli.scoring.metrics import METRICS, Metric, VolumePair
from attcl_cli.scoring.pairs import CasePairs, Comparison, Pair
from attcl_cli.scoring.rows import Measures, score_cases
from attcl_cli.scoring.windows import (
    TrueVolume,
    in_own_window,
    outside_in_own_window,
    own_scale,
)

Change = Callable[[np.ndarray], np.ndarray]


@functools.cache
def ball() -> np.ndarray:
    """A textured ball of 100 to 1100 in a background of 0, float32."""
    z, y, x = np.indices((20, 24, 26)) - np.array([10, 12, 13])[:, None, None, None]
    texture = np.random.default_rng(0).uniform(100, 1100, z.shape)
    return np.where(x**2 + y**2 + z**2 < 81, texture, 0).astype(np.float32)


@functools.cache
def phantom() -> np.ndarray:
    """The T2 of a phantom, (D, H, W) float32."""
    return make_case(0, seed=3, voxel_mm=8).images["t2"].transpose(2, 1, 0).astype(np.float32)


def in_brain(change: Change) -> Change:
    """Change what is not 0, and nothing else."""
    return lambda volume: np.where(volume != 0, change(volume), 0).astype(np.float32)


def median_units(volume: np.ndarray) -> np.ndarray:
    """What a perfect network writes: clipped at its percentiles, in the window that training found in others."""
    low, high = np.percentile(volume[volume != 0], [0.5, 99.5])
    return 37 + (np.clip(volume, low, high) - low) / (high - low) * 800


def z_scored(volume: np.ndarray) -> np.ndarray:
    inside = volume[volume != 0]
    return (volume - inside.mean()) / inside.std()


FACTORS: dict[str, Change] = {
    "times 3": lambda volume: volume * 3,
    "floats in 0..1": lambda volume: volume / volume.max(),
}
OFFSETS: dict[str, Change] = {
    "plus 100": in_brain(lambda volume: volume + 100),
    "median units": in_brain(median_units),
    "z-scored": in_brain(z_scored),
}
UNITS = FACTORS | OFFSETS


# --- every metric -----------------------------------------------------------------------------------------------------


class Grey:
    """A feature network, and a perceptual one: the mean and the deviation of a slice, and the difference of pixels."""

    name, sha256, dim = "grey", "0", 2

    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        return torch.stack([slices.mean(dim=(1, 2, 3)), slices.std(dim=(1, 2, 3))], dim=1)

    def embed(self, slices: torch.Tensor) -> torch.Tensor:
        return slices.flatten(1)

    def between(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean(dim=1)


def values_of(metric: Metric, pair: VolumePair, folder: Path) -> dict[str, float]:
    """Return the values of a metric by region, from the slices that networks see or from the volumes."""
    brain = pair.raw_truth != 0
    if metric.sees == "volume":
        masks = {"brain": brain, "whole": None, "tumour": brain & (pair.truth > 0.8)}
        return metric.function(pair, masks)
    network = Grey()
    real, predicted = (next(batches(to_bytes(image), 1000)) for image in (pair.truth, pair.shown))
    if metric.sees == "slices":
        value = metric.function(network, [network.embed(real)], [network.embed(predicted)])
        return {"slices": value}
    sets = []
    for name, slices in (("real", real), ("predicted", predicted)):
        np.save(folder / f"{name}.npy", network(slices).numpy())
        sets.append(FeatureSet([folder / f"{name}.npy"], network.dim))
    return {"slices": metric.function(*sets)}


SCORED = [name for name, metric in METRICS.items() if metric.sees != "samples"]


@pytest.mark.parametrize("source", [ball, phantom])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", [name for name in SCORED if name != "ssim-brasyn"])
def test_a_perfect_volume_in_other_units_scores_as_perfect(name, unit, source, tmp_path):
    metric, raw = METRICS[name], source()
    truth = TrueVolume.of(raw)
    perfect = values_of(metric, truth.beside(raw), tmp_path)
    found = values_of(metric, truth.beside(UNITS[unit](raw)), tmp_path)
    assert set(found) == set(perfect)
    for region, value in found.items():
        if name == "psnr":
            assert perfect[region] == math.inf and value > 60
        else:
            assert value == pytest.approx(perfect[region], abs=5e-4)
    darker = values_of(metric, truth.beside((raw / raw.max()) ** 3), tmp_path)
    for region, value in darker.items():  # such equality is no matter of course
        assert abs(value - perfect[region]) > 1e-3


@pytest.mark.parametrize("unit", UNITS)
def test_the_challenge_s_similarity_ignores_factors_alone_as_its_policy_says(unit, tmp_path):
    metric, raw = METRICS["ssim-brasyn"], ball()
    found = values_of(metric, TrueVolume.of(raw).beside(UNITS[unit](raw)), tmp_path)
    if unit in FACTORS:
        assert found == pytest.approx({"tumour": 1, "healthy": 1}, abs=1e-5)
    else:
        assert found["healthy"] < 0.999
    assert "a factor of the intensities changes nothing, an offset" in metric.policy


def test_samples_need_no_window_of_their_own():
    assert [name for name in METRICS if name not in SCORED] == ["lpips-diversity"]
    assert "in the one window of training" in METRICS["lpips-diversity"].policy


@pytest.fixture
def scored_file(tmp_path: Path, write_nifti) -> Callable[..., dict[tuple[str, str], float]]:
    """`scored_file(change)` writes the ball and what `change` makes of it, and returns (metric, region) -> value."""

    def scored(change: Change, **options) -> dict[tuple[str, str], float]:
        raw = ball().transpose(2, 1, 0)
        truth = write_nifti(tmp_path / "t2.nii.gz", raw)
        source = write_nifti(tmp_path / "t1.nii.gz", raw[::-1].copy())
        made = write_nifti(tmp_path / "made.nii.gz", change(raw).astype(np.float32))
        pairs = (Pair("t2", (truth,), (made,)),)
        case = CasePairs("A", ("t1",), {"t1": (source,)}, pairs, (), **options)
        comparison = Comparison((case,), (), tmp_path)
        measures = Measures(("ssim", "nmse", "gms"), only=("synthetic",))
        (rows,) = score_cases(comparison, measures, folder=tmp_path)
        return {(row.metric, row.region): row.value for row in rows}

    return scored


@pytest.mark.parametrize(
    "change",
    [
        *UNITS.values(),
        lambda volume: volume + 100,  # a background of 100
        lambda volume: (volume - volume.mean()) / volume.std(),
    ],
    ids=[*UNITS, "plus 100, background too", "z-scored, background too"],
)
def test_files_in_other_units_score_as_perfect(change, scored_file):
    values = scored_file(change)
    assert values == pytest.approx(
        {("ssim", "brain"): 1, ("ssim", "whole"): 1, ("gms", "brain"): 1}
        | {("nmse", "brain"): 0, ("nmse", "whole"): 0},
        abs=5e-4,
    )


def test_intensities_that_are_to_be_kept_are_scored_as_stored(scored_file):
    values = scored_file(lambda volume: volume + 100, background="keep")
    assert values["nmse", "brain"] == pytest.approx(0, abs=1e-6)
    assert values["nmse", "whole"] > 0.01  # its background is 100, that of the truth 0


# --- outside the brain ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [30, 500], ids=["fainter than the brain", "as bright"])
def test_noise_outside_the_brain_is_seen_by_whole_and_by_no_other_region(level, tmp_path):
    raw = ball()
    truth = TrueVolume.of(raw)
    noisy = np.where(raw != 0, raw, np.random.default_rng(1).uniform(1, level, raw.shape))
    clean, pair = truth.beside(raw), truth.beside(noisy.astype(np.float32))
    for name in ("ssim", "psnr", "nmse"):
        before, after = (values_of(METRICS[name], each, tmp_path) for each in (clean, pair))
        assert after["brain"] == before["brain"]
        assert after["tumour"] == before["tumour"]
        assert after["whole"] != before["whole"]
    assert values_of(METRICS["ssim"], pair, tmp_path)["whole"] < 0.9


@pytest.mark.parametrize("level", [30, 500])
def test_noise_outside_the_brain_of_a_file_is_seen(level, scored_file):
    noise = np.random.default_rng(1).uniform(1, level, ball().transpose(2, 1, 0).shape)
    values = scored_file(lambda volume: np.where(volume != 0, volume, noise))
    assert values["ssim", "brain"] == pytest.approx(1) and values["nmse", "brain"] == 0
    assert values["ssim", "whole"] < 0.9 and values["nmse", "whole"] > 1e-4


def test_what_lies_outside_counts_in_widths_of_the_window():
    raw = np.zeros((4, 10, 11), np.float32)
    raw[1:3] = np.linspace(50, 250, 220).reshape(2, 10, 11)
    low, high = np.percentile(raw[raw != 0], [0.5, 99.5])
    drawn = raw.copy()
    drawn[0, 0, :4] = 20, -20, 100, 1000  # the last is brighter than the window is wide
    pair = TrueVolume.of(raw).beside(drawn)
    away = np.array([20, 20, 100, high - low]) / (high - low)
    np.testing.assert_allclose(pair.whole[0, 0, :5], [*away, 0], rtol=1e-6)
    np.testing.assert_array_equal(pair.whole[1:], pair.image[1:])
    assert not pair.image[0].any()
    energy = (np.clip((raw[1:3] - low) / (high - low), 0, 1) ** 2).sum()
    values = METRICS["nmse"].function(pair, {"brain": raw != 0, "whole": None})
    assert values == pytest.approx({"brain": 0, "whole": (away**2).sum() / energy}, rel=1e-5)
    psnr = METRICS["psnr"].function(pair, {"whole": None})["whole"]
    assert psnr == pytest.approx(10 * np.log10(raw.size / (away**2).sum()), rel=1e-5)


def test_networks_and_pictures_see_what_is_drawn_outside():
    raw = ball()
    drawn = raw.copy()
    drawn[:, 0] = 700
    pair = TrueVolume.of(raw).beside(drawn)
    assert pair.shown[:, 0].min() > 0.5
    assert TrueVolume.of(raw).beside(raw).shown[:, 0].max() == 0


def test_outside_a_brain_without_contrast_the_largest_intensity_is_the_width():
    image = np.zeros((3, 5, 5))
    image[1], image[2, 2] = 40, [10, 20, 40, 80, 0]
    outside = outside_in_own_window(image, np.arange(3)[:, None, None] * np.ones((3, 5, 5)) == 1)
    assert outside[2, 2].tolist() == [0.125, 0.25, 0.5, 1, 0]
    assert not outside[:2].any()


def test_without_anything_outside_there_is_no_second_image():
    raw = ball()
    assert outside_in_own_window(raw, raw != 0) is None
    pair = TrueVolume.of(raw).beside(raw)
    assert pair.shown is pair.image


# --- near-constant volumes --------------------------------------------------------------------------------------------


def noise(deviation: float) -> np.ndarray:
    return np.random.default_rng(2).normal(0, deviation, (8, 20, 20)).astype(np.float32)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((8, 20, 20)),
        np.full((8, 20, 20), 300.0),
        300 + noise(0.01),
        1 + noise(1e-4),
        -5 + noise(1e-4),
        np.where(np.arange(3200).reshape(8, 20, 20) < 3, 900, 300),  # 99.9 % one value
        np.where(np.arange(3200).reshape(8, 20, 20) < 64, 300.1, 300),  # 2 % differ, hardly
    ],
    ids=["zeros", "constant", "ringing", "ringing of floats", "negative", "99.9 %", "98 %"],
)
def test_a_volume_without_contrast_is_black_not_stretched_noise(values):
    brain = np.ones(values.shape, bool)
    assert own_scale(values, brain) is None
    assert not in_own_window(values, brain).any()
    assert TrueVolume.of(np.where(values == 0, 0, values)) is None


@pytest.mark.parametrize("offset", [0, 10, 100])
def test_a_volume_with_contrast_keeps_it_whatever_its_offset(offset):
    values = noise(1.0) + offset
    found = in_own_window(values, np.ones(values.shape, bool))
    assert (found.min(), found.max()) == (0, 1)
    np.testing.assert_allclose(
        found, in_own_window(noise(1.0), np.ones(values.shape, bool)), atol=1e-4
    )


def test_a_slice_without_contrast_stays_flat_beside_others():
    values = noise(100) + 1000
    values[3] = 1000 + noise(0.01)[3]
    found = in_own_window(values, np.ones(values.shape, bool))
    assert np.ptp(found[3]) < 1e-3
    assert min(np.ptp(found[index]) for index in (0, 1, 2, 4)) > 0.5


def test_a_prediction_without_contrast_scores_as_zeros_do():
    truth = TrueVolume.of(ball())
    masks = {"brain": truth.brain, "whole": None}
    flat = truth.beside(np.where(truth.brain, 300 + 0.001 * truth.raw / 1100, 0))
    zeros = truth.beside(np.zeros_like(truth.raw))
    for name in ("ssim", "psnr", "nmse", "gms"):
        assert METRICS[name].function(flat, masks) == METRICS[name].function(zeros, masks)
