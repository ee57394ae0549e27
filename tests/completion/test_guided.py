"""Volumes are sharpened by modalities that were withheld from their network, and by no others."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from completers import FOUR, Echo, completed, content, echo_weights, images, phantom_file, plan_of
from scipy.ndimage import gaussian_filter

from attcl_cli.completion.guided import Guidance, sharpen
from attcl_cli.data.dataset import Source
from attcl_cli.errors import AttclError

SHAPE = (40, 36, 36)
RATIO1 = [("flair", "t1"), ("flair", "t1ce"), ("flair", "t2")]
LACKING = (("t1ce", "t2"), ("t2",), (), ())


def brain() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return (((z - 20) / 18) ** 2 + ((y - 18) / 16) ** 2 + ((x - 18) / 16) ** 2) < 1


def anatomy(seed: int) -> np.ndarray:
    """Shapes of a few voxels, (D, H, W) in about [-0.7, 0.7], 0 outside the brain."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 1.2)
    return np.where(brain(), noise / np.abs(noise).max() * 0.9, 0).astype(np.float32)


def sharpened(volume, *, withheld, sources=()) -> np.ndarray:
    inside = brain()
    return sharpen(volume[inside], inside, Guidance(list(sources), list(withheld)))


def unlike(values: np.ndarray, true: np.ndarray) -> float:
    """How little two volumes correlate in the brain; brightness and contrast have no part."""
    return 1 - float(np.corrcoef(values, true[brain()])[0, 1])


def error(values: np.ndarray, true: np.ndarray) -> float:
    return float(np.sqrt(np.mean((values - true[brain()]) ** 2)))


@pytest.mark.parametrize("sign", [1, -1])
def test_detail_comes_from_the_other_modality_whatever_its_contrast(sign):
    withheld = anatomy(0)
    true = sign * withheld
    blurred = gaussian_filter(true, 1.0)
    result = sharpened(blurred, withheld=[withheld])
    assert unlike(result, true) < 0.5 * unlike(blurred[brain()], true)


def test_the_sources_are_guides_too():
    source, withheld = anatomy(0), anatomy(1)
    true = 0.5 * source - 0.5 * withheld
    blurred = gaussian_filter(true, 1.0)
    alone = sharpened(blurred, withheld=[withheld])
    both = sharpened(blurred, withheld=[withheld], sources=[source])
    assert unlike(both, true) < 0.5 * unlike(alone, true)


def test_the_modality_that_is_most_alike_has_its_correlation_as_its_share():
    withheld, other = anatomy(0), anatomy(1)
    volume = 0.5 * withheld + 0.5 * anatomy(2)
    inside = brain()
    alike = float(np.corrcoef(volume[inside], withheld[inside])[0, 1])
    assert 0.3 < alike < 0.9
    # The fits are the same with the opposite contrast, which has no share.
    fits = sharpened(volume, withheld=[-withheld, -other])
    if np.corrcoef(volume[inside], -other[inside])[0, 1] > 0:
        fits = sharpened(volume, withheld=[-withheld, other])
    expected = (1 - alike) * fits + alike * withheld[inside]
    np.testing.assert_allclose(sharpened(volume, withheld=[withheld, other]), expected, atol=1e-5)


def test_a_modality_without_contrast_leaves_what_is_smooth():
    smooth = np.where(brain(), np.linspace(-0.8, 0.8, SHAPE[0])[:, None, None], 0)
    result = sharpened(smooth.astype(np.float32), withheld=[np.zeros(SHAPE, np.float32)])
    assert error(result, smooth) < 0.1


def test_nothing_leaves_the_range_and_what_lies_outside_the_brain_has_no_part():
    volume = np.where(brain(), np.sign(anatomy(0)), 0).astype(np.float32)
    withheld = anatomy(0)
    result = sharpened(volume, withheld=[withheld])
    assert result.dtype == np.float32
    assert np.abs(result).max() <= 1
    around = np.where(brain(), withheld, np.float32(0.9))
    np.testing.assert_array_equal(sharpened(volume, withheld=[around]), result)


def test_no_voxel_gives_no_voxel():
    nothing = np.zeros(SHAPE, bool)
    guidance = Guidance([], [anatomy(0)])
    assert sharpen(np.empty(0, np.float32), nothing, guidance).shape == (0,)


# --- in a completion --------------------------------------------------------------------------------------------------


def of_patterns(tiny_settings, patterns=RATIO1, *, quantiles=None, **settings):
    """Return weights of a model of many sources whose training cases had these modalities."""
    statistics: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in FOUR}
    for number, names in enumerate(patterns):
        for name in names:
            statistics[name][f"Case_{number}"] = (0.0,) * 11
    measured = {"training_statistics": statistics, "quantiles": quantiles or {}}
    return echo_weights(
        tiny_settings, **{"crop": 16, "sources": "many", **settings}, measured=measured
    )


def side_car(folder, target):
    return json.loads((folder / f"Phantom_00000/Phantom_00000_{target}.json").read_text())


def test_what_is_withheld_from_the_network_sharpens_the_volume(gappy, tiny_settings, tmp_path):
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings)
    echo = Echo(weights.info.settings)
    methods = {weights.sha256: echo}
    completed(root, tmp_path / "out", weights, methods=methods)
    assert {source for source, _ in echo.asked} == {"flair"}
    document = side_car(tmp_path / "out", "t2")
    assert document["sharpened_by"] == [{"modality": "t1", "files": [phantom_file(0, "t1")]}]
    assert document["source"]["modality"] == "flair"
    image = nib.load(tmp_path / "out" / phantom_file(0, "t2"))
    assert image.header["descrip"].item().decode().endswith("t2 from flair, sharpened by t1")
    completed(root, tmp_path / "plain", weights, methods=methods, guide=False)
    assert side_car(tmp_path / "plain", "t2")["sharpened_by"] == []
    t1, sharp, plain = (
        nib.load(path).get_fdata()
        for path in (
            root / phantom_file(0, "t1"),
            tmp_path / "out" / phantom_file(0, "t2"),
            tmp_path / "plain" / phantom_file(0, "t2"),
        )
    )
    inside = plain != 0
    with_t1 = [abs(np.corrcoef(it[inside], t1[inside])[0, 1]) for it in (plain, sharp)]
    assert with_t1[0] < with_t1[1]
    np.testing.assert_array_equal(sharp != 0, inside)


def test_a_volume_that_is_sharpened_is_matched_and_another_one_stretched(
    gappy, tiny_settings, tmp_path
):
    goal = {name: tuple(np.linspace(-0.9, 0.9, 129)) for name in FOUR}
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings, quantiles=goal)
    methods = {weights.sha256: Echo(weights.info.settings)}
    for guide, carried in ((None, "matched"), (False, "stretched")):
        completed(root, tmp_path / carried, weights, methods=methods, guide=guide)
        assert side_car(tmp_path / carried, "t2")["intensities"] == carried


@pytest.mark.parametrize(
    ("patterns", "settings", "options"),
    [
        ([("flair", "t1", "t1ce", "t2")], {}, {}),  # nothing is withheld
        (RATIO1, {"crop": 0}, {}),  # weights of whole slices
        (RATIO1, {}, {"slices": (4, 12)}),
        (RATIO1, {"sources": "one"}, {}),
    ],
    ids=["all together", "whole slices", "some slices", "one source"],
)
def test_otherwise_nothing_is_sharpened(
    patterns, settings, options, gappy, tiny_settings, tmp_path
):
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings, patterns, **settings)
    plan = plan_of(root, tmp_path / "out", weights, **options)
    assert {plan.manner.guides_of(job.makers) for job in plan.jobs} == {()}


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"workers": 0}, {"part": (1, 2)}], ids=str)
def test_results_depend_on_nothing_but_case_and_weights(options, gappy, tiny_settings, tmp_path):
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings)
    methods = {weights.sha256: Echo(weights.info.settings)}
    for name, manner in (("plain", {}), ("other", options)):
        completed(root, tmp_path / name, weights, methods=methods, targets=["t2"], **manner)
    found = {name: images(tmp_path / name) for name in ("plain", "other")}
    assert found["other"]
    assert found["other"].items() <= found["plain"].items()


def test_a_volume_that_was_not_sharpened_is_made_in_another_way(gappy, tiny_settings, tmp_path):
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings)
    methods = {weights.sha256: Echo(weights.info.settings)}
    completed(root, tmp_path / "out", weights, methods=methods, guide=False)
    with pytest.raises(AttclError, match="made sharpened by nothing, expected by t1") as caught:
        plan_of(root, tmp_path / "out", weights)
    assert caught.value.code == "made-in-another-way"


def test_a_png_slice_is_not_sharpened(gappy, tiny_settings, tmp_path):
    root, weights = gappy("slices", lacking=LACKING), of_patterns(tiny_settings)
    plan = plan_of(root, tmp_path / "out", weights)
    assert {plan.manner.guides_of(job.makers) for job in plan.jobs} == {()}
    with pytest.raises(AttclError, match="--guide"):
        plan_of(root, tmp_path / "out", weights, guide=True)


def test_several_models_share_a_guide_only_if_it_was_withheld_from_all(
    gappy, tiny_settings, tmp_path
):
    root, first = gappy(lacking=LACKING), of_patterns(tiny_settings)
    alike = of_patterns(tiny_settings, RATIO1[::-1])
    other = of_patterns(tiny_settings, [("flair", "t1", "t2")])
    plans = [
        plan_of(root, tmp_path / "out", first, model, average=True, targets=["t2"])
        for model in (alike, other)
    ]
    guides = [{plan.manner.guides_of(job.makers) for job in plan.jobs} for plan in plans]
    assert guides[0] == {("t1",), ("t1", "t1ce")}
    assert () in guides[1]


def test_two_runs_write_the_same_bytes(gappy, tiny_settings, tmp_path):
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings)
    for name in ("one", "two"):
        methods = {weights.sha256: Echo(weights.info.settings)}
        completed(root, tmp_path / name, weights, methods=methods)
    assert all(one == two for one, two in pairwise(content(tmp_path / it) for it in ("one", "two")))


def test_where_names_tell_no_patient_the_guide_of_another_one_is_noticed(
    gappy, tiny_settings, tmp_path
):
    root, weights = gappy(lacking=LACKING), of_patterns(tiny_settings)
    methods = {weights.sha256: Echo(weights.info.settings)}
    files = {name: root / phantom_file(0, name) for name in ("flair", "t1")}
    dataset = Source(Path("data"), images=tuple(files.items())).open()
    completed(dataset, tmp_path / "out", weights, methods=methods, targets=["t2"])
    assert plan_of(dataset, tmp_path / "out", weights, targets=["t2"]).jobs == ()
    other = Source(
        Path("data"), images=(("flair", files["flair"]), ("t1", root / phantom_file(2, "t1")))
    ).open()
    with pytest.raises(AttclError, match="made from another t1") as caught:
        plan_of(other, tmp_path / "out", weights, targets=["t2"])
    assert caught.value.code == "made-in-another-way"
