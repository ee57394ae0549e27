"""Passes over the same voxels: mirrored, in three planes, of several models; their mean, and how they disagree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from completers import (
    CPU,
    Echo,
    completed,
    content,
    echo_weights,
    images,
    own_scale,
    phantom_file,
    plan_of,
)
from helpers import states

from attcl_cli.completion.inference import Made, Network, intensities_of, make, passes_of
from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.errors import AttclError
from attcl_cli.methods.weights import WeightsInfo

SHAPE = (14, 22, 24)
LACKING = (("t2",), (), (), ())


class Blur(Echo):
    """A network of one layer, without norm, that does not know left from right."""

    def synthesise(self, sources, targets, *, sample=None):
        (x,) = sources.values()
        kernel = torch.full((1, 1, 3, 3), 1 / 9)
        return dict.fromkeys(targets, torch.nn.functional.conv2d(x, kernel, padding=1))


class FromTheLeft(Echo):
    """Shows the neighbour of the column before."""

    def synthesise(self, sources, targets, *, sample=None):
        (x,) = sources.values()
        return dict.fromkeys(targets, x.roll(1, -1))


class FromAbove(Echo):
    """Shows the neighbour of the row before."""

    def synthesise(self, sources, targets, *, sample=None):
        (x,) = sources.values()
        return dict.fromkeys(targets, x.roll(1, -2))


class Dim(Echo):
    """Half as far from the middle of the scale."""

    def synthesise(self, sources, targets, *, sample=None):
        (x,) = sources.values()
        return dict.fromkeys(targets, x / 2)


@pytest.fixture
def data() -> np.ndarray:
    """A brain of random intensities from 0 to 2, so that the scale makes v - 1 of each."""
    values = np.random.default_rng(0).uniform(0, 2, SHAPE).astype(np.float32)
    values[:2] = values[-2:] = values[:, :3] = values[:, -3:] = values[..., :4] = 0
    values[..., -4:] = 0
    return values


def made(kind: type[Echo], data: np.ndarray, tiny_settings, **options) -> Made:
    """Send a volume through a method, and return what comes out at the voxels that are not 0."""
    settings = {name: options.pop(name) for name in ("crop",) if name in options}
    method = kind(tiny_settings.model_copy(update={"image_size": 64, "canvas": 64, **settings}))
    brain = data != 0
    scales = {"t1": Scale(0.0, 2.0)}
    options = {"mirror": False, **options}
    passes = passes_of("w", method, {"t1": data}, brain, brain, brain, scales, **options)
    return make(passes, {"w": Network(method, CPU, 64)}, ["t2"], [None])["t2"]


def shifted(data: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Return the normalised neighbour of each voxel of the brain, `step` voxels before it."""
    normalised = np.where(data != 0, data - 1, np.float32(-1))
    return np.roll(normalised, step, axis)[data != 0]


# --- the box ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
def test_the_box_gives_what_whole_slices_give_without_norms(mirror, data, tiny_settings):
    whole = made(Blur, data, tiny_settings, mirror=mirror)
    box = made(Blur, data, tiny_settings, mirror=mirror, crop=16)
    assert np.abs(box.mean - whole.mean).max() < 1e-6


# --- mirrored ---------------------------------------------------------------------------------------------------------


def test_a_method_that_does_not_know_left_from_right_makes_the_same_mirrored(data, tiny_settings):
    plain, both = (made(Blur, data, tiny_settings, mirror=it, crop=16) for it in (False, True))
    assert np.abs(both.mean - plain.mean).max() < 1e-6
    assert plain.disagreement is None
    assert both.disagreement == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("crop", [0, 16])
def test_the_mean_with_a_mirrored_pass_looks_to_both_sides(crop, data, tiny_settings):
    both = made(FromTheLeft, data, tiny_settings, mirror=True, crop=crop)
    left, right = shifted(data, 2, 1), shifted(data, 2, -1)
    assert both.mean == pytest.approx((left + right) / 2, abs=1e-6)
    assert both.disagreement == pytest.approx(np.abs(left - right).mean() / 2, abs=1e-6)


# --- planes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [0, 16])
def test_three_planes_are_averaged(crop, data, tiny_settings):
    """The row before a voxel is the one in front of it in axial slices, and the one above in the others."""
    three = made(FromAbove, data, tiny_settings, planes="three", crop=crop)
    front, above = shifted(data, 1, 1), shifted(data, 0, -1)
    assert three.mean == pytest.approx((front + 2 * above) / 3, abs=1e-6)
    expected = np.abs(front - above).mean() / 2 * 2 / 3  # two of three pairs differ
    assert three.disagreement == pytest.approx(expected, abs=1e-6)


def test_planes_count_the_same_if_sagittal_slices_are_not_mirrored(data, tiny_settings):
    """Left of a voxel there is another one in axial and coronal slices, and the one in front in sagittal ones."""
    three = made(FromTheLeft, data, tiny_settings, planes="three", mirror=True)
    sides = (shifted(data, 2, 1) + shifted(data, 2, -1)) / 2
    front = shifted(data, 1, 1)
    assert three.mean == pytest.approx((2 * sides + front) / 3, abs=1e-6)


def test_voxels_that_are_no_cubes_are_refused_in_three_planes(write_nifti, tiny_settings, tmp_path):
    values = np.random.default_rng(3).integers(1, 200, (9, 11, 7)).astype(np.int16)
    for case, z in (("A", 1.1), ("B", 3)):
        affine = np.diag([1, 1, z, 1])
        write_nifti(tmp_path / f"in/{case}/{case}_flair.nii.gz", values, affine=affine)
    write_nifti(tmp_path / "in/B/B_t1.nii.gz", values, affine=affine)
    options = {"planes": "three", "targets": ["t2"]}
    for case in ("A", "B"):
        write_nifti(tmp_path / f"in/C{case}/C{case}_t2.nii.gz", values)
    weights = echo_weights(tiny_settings)
    with pytest.raises(AttclError, match="voxels of 1x1x3 mm") as caught:
        plan_of(tmp_path / "in", tmp_path / "out", weights, **options)
    assert caught.value.code == "voxels-not-isotropic"
    plan = plan_of(tmp_path / "in", tmp_path / "out", weights, **options, keep_going=True)
    assert [job.case.id for job in plan.jobs] == ["A"]
    assert list(plan.failed) == ["B"]


def test_three_planes_of_png_slices_are_refused(gappy, tiny_settings, tmp_path):
    with pytest.raises(AttclError) as caught:
        plan_of(gappy("slices"), tmp_path / "out", echo_weights(tiny_settings), planes="three")
    assert caught.value.code == "slices-instead-of-volumes"


# --- several models ---------------------------------------------------------------------------------------------------


def test_all_models_are_averaged_on_demand(gappy, tiny_settings, tmp_path):
    root = gappy()
    one, other = (
        echo_weights(tiny_settings, name=name, sha256=digit * 64)
        for name, digit in (("one", "1"), ("other", "2"))
    )
    settings = one.info.settings
    methods = {one.sha256: Echo(settings), other.sha256: Dim(settings)}
    completed(root, tmp_path / "first", one, other, methods=methods)
    completed(root, tmp_path / "mean", one, other, methods=methods, average=True)
    inside = volumes.load([root / phantom_file(0, "flair")]).data != 0
    mean = volumes.load([tmp_path / "mean" / phantom_file(0, "t2")]).data
    scale = own_scale(root, "t2")
    side_car = json.loads((tmp_path / "mean/Phantom_00000/Phantom_00000_t2.json").read_text())
    assert side_car["weights"]["name"] == "one"
    assert side_car["averaged"] == [
        {"name": "one", "sha256": one.sha256, "sources": ["flair"]},
        {"name": "other", "sha256": other.sha256, "sources": ["flair"]},
    ]
    first = volumes.load([tmp_path / "first" / phantom_file(0, "t2")]).data
    unit = (first[inside] - scale.low) / (scale.high - scale.low)
    value = 2 * unit - 1
    wanted = scale.low + (value * 3 / 4 + 1) / 2 * (scale.high - scale.low)
    assert np.abs(mean[inside] - wanted).max() <= 1  # both volumes are rounded
    expected = np.abs(value / 2).mean() / 2  # |x - x / 2| / 2
    assert side_car["doubt"]["disagreement"] == pytest.approx(expected, abs=1e-3)
    first_side_car = json.loads(
        (tmp_path / "first/Phantom_00000/Phantom_00000_t2.json").read_text()
    )
    assert not {"averaged", "doubt"} & set(first_side_car)


def test_the_mean_of_models_is_not_taken_for_what_one_makes(gappy, tiny_settings, tmp_path):
    root = gappy()
    models = [echo_weights(tiny_settings, name=it, sha256=it * 64) for it in "12"]
    methods = {model.sha256: Echo(model.info.settings) for model in models}
    completed(root, tmp_path / "mean", *models, methods=methods, average=True)
    assert plan_of(root, tmp_path / "mean", *models, average=True).jobs == ()
    with pytest.raises(AttclError, match="made by the mean of 1, 2, expected 1 alone") as caught:
        plan_of(root, tmp_path / "mean", *models)
    assert caught.value.code == "made-in-another-way"
    assert plan_of(root, tmp_path / "new", *models, average=True).used == tuple(models)
    assert plan_of(root, tmp_path / "new", *models).used == (models[0],)


# --- what is done by default ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "mirror", "expected"),
    [
        ({"mirror": 0.5, "crop": 16}, None, True),
        ({"mirror": 0.0, "crop": 16}, None, False),
        ({"mirror": 0.5, "crop": 0}, None, False),
        ({"mirror": 0.5, "crop": 16}, False, False),
        ({"mirror": 0.0, "crop": 0}, True, True),
    ],
)
def test_slices_are_mirrored_if_the_weights_were_trained_so_or_on_demand(
    settings, mirror, expected, gappy, tiny_settings, tmp_path
):
    weights = echo_weights(tiny_settings, **settings)
    methods = {weights.sha256: Echo(weights.info.settings)}
    completed(gappy(), tmp_path / "out", weights, methods=methods, mirror=mirror)
    side_car = json.loads((tmp_path / "out/Phantom_00000/Phantom_00000_t2.json").read_text())
    assert side_car["mirror"] is expected
    assert side_car.get("doubt", {}).get("disagreement") == (0 if expected else None)


def test_side_cars_of_before_mean_that_nothing_was_averaged(gappy, tiny_settings, tmp_path):
    root = gappy()
    weights = echo_weights(tiny_settings)
    methods = {weights.sha256: Echo(weights.info.settings)}
    completed(root, tmp_path / "out", weights, methods=methods)
    side_car = tmp_path / "out/Phantom_00000/Phantom_00000_t2.json"
    document = json.loads(side_car.read_text())
    keys = {"mirror", "planes", "intensities", "even", "sharpened_by", "background"}
    side_car.write_text(json.dumps({key: it for key, it in document.items() if key not in keys}))
    assert plan_of(root, tmp_path / "out", weights).jobs == ()
    for options, message in (
        ({"mirror": True}, "made with --no-mirror, expected --mirror"),
        ({"planes": "three"}, "made with --planes axial, expected three"),
        ({"even": True}, "made with --no-even, expected --even"),
    ):
        with pytest.raises(AttclError, match=message) as caught:
            plan_of(root, tmp_path / "out", weights, **options)
        assert caught.value.code == "made-in-another-way"
    kept = replace(open_dataset(root), background="keep")
    with pytest.raises(AttclError, match="made with --background auto, expected keep"):
        plan_of(kept, tmp_path / "out", weights)


def test_a_png_slice_that_is_made_again_leaves_the_others_and_the_doubt_as_they_were(
    gappy, tiny_settings, tmp_path
):
    root = gappy("slices")
    weights = echo_weights(tiny_settings)
    methods = {weights.sha256: FromTheLeft(weights.info.settings)}
    completed(root, tmp_path / "out", weights, methods=methods, mirror=True)
    before = content(tmp_path / "out")
    (tmp_path / "out/t2/Phantom00000_012.png").unlink()
    times = {name: it for name, (it, _) in states(tmp_path / "out").items() if ".png" in name}
    completed(root, tmp_path / "out", weights, methods=methods, mirror=True)
    assert content(tmp_path / "out") == before
    after = states(tmp_path / "out")
    assert {name: after[name][0] for name in times} == times


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 1000}, {"workers": 0}], ids=str
)
def test_batch_size_changes_no_byte_of_a_box_in_three_planes(
    options, gappy, tiny_settings, tmp_path
):
    root = gappy()
    weights = echo_weights(tiny_settings, crop=16)
    methods = {weights.sha256: Blur(weights.info.settings)}
    manner = {"mirror": True, "planes": "three"}
    completed(root, tmp_path / "plain", weights, methods=methods, **manner)
    completed(root, tmp_path / "other", weights, methods=methods, **manner, **options)
    assert content(tmp_path / "other") == content(tmp_path / "plain")


# --- quantiles --------------------------------------------------------------------------------------------------------

BRIGHT = tuple(np.linspace(0, 1, 129) ** 0.5 * 2 - 1)
ENDS = tuple(np.interp((0.005, 0.995), np.linspace(0, 1, 129), BRIGHT))


class Faint(Echo):
    """A method that returns its source with half of its contrast."""

    def synthesise(self, *arguments, **options) -> dict[str, torch.Tensor]:
        return {name: x / 2 for name, x in super().synthesise(*arguments, **options).items()}


def bent(root: Path, output: Path, tiny_settings, *, crop: int = 16, **options) -> np.ndarray:
    """Complete with weights that know the quantiles of t2, and return the volume, normalised."""
    weights = echo_weights(tiny_settings, crop=crop, measured={"quantiles": {"t2": BRIGHT}})
    methods = {weights.sha256: Faint(weights.info.settings)}
    completed(root, output, weights, methods=methods, **options)
    volume = volumes.load([output / phantom_file(0, "t2")]).data
    scale = own_scale(root, "t2")
    return 2 * (volume - scale.low) / (scale.high - scale.low) - 1


@pytest.mark.parametrize(
    ("crop", "asked", "said"),
    [
        (16, "auto", "stretched"),
        (0, "auto", "network"),
        (0, "stretched", "stretched"),
        (0, "matched", "matched"),
        (16, "network", "network"),
    ],
)
def test_volumes_have_the_intensities_that_were_asked_for(
    crop, asked, said, gappy, tiny_settings, tmp_path
):
    root = gappy(lacking=[("t1", "t2"), (), (), ()])
    options = {"targets": ["t2"], "intensities": asked}
    values = bent(root, tmp_path / "out", tiny_settings, crop=crop, **options)
    side_car = json.loads((tmp_path / "out/Phantom_00000/Phantom_00000_t2.json").read_text())
    assert side_car["intensities"] == said
    source = volumes.load([root / phantom_file(0, "flair")]).data
    inside = source != 0
    scale = intensities.intensity_scale(source, inside)
    assert scale is not None
    span = intensities.training_slices(len(inside))
    middle = inside & np.isin(np.arange(len(inside)), span)[:, None, None]
    own = intensities.quantiles(values[middle])
    faint = np.median(intensities.normalise(source, inside, scale)[middle]) / 2
    gap = np.abs(own - BRIGHT)[5:-5].max()  # beyond, the source's own window is cut
    assert gap < 0.02 if said == "matched" else gap > 0.2
    ends = np.percentile(values[middle], intensities.PERCENTILES)
    assert (np.abs(ends - ENDS).max() < 0.03) == (said == "stretched")
    assert np.median(own) == pytest.approx(BRIGHT[64] if said == "matched" else faint, abs=0.02)


def test_a_modality_without_quantiles_is_left_as_it_is(gappy, tiny_settings, tmp_path):
    root = gappy(lacking=[("t1", "t2"), (), (), ()])
    bent(root, tmp_path / "out", tiny_settings)
    said = {
        name: json.loads((tmp_path / f"out/Phantom_00000/Phantom_00000_{name}.json").read_text())
        for name in ("t1", "t2")
    }
    assert (said["t1"]["intensities"], said["t2"]["intensities"]) == ("network", "stretched")
    for asked in ("stretched", "matched"):
        message = f"{asked}, but .* has no quantiles of flair, t1, t1ce, expected"
        with pytest.raises(AttclError, match=message) as caught:
            bent(root, tmp_path / "again", tiny_settings, intensities=asked)
        assert caught.value.code == "weights-without-quantiles"


@pytest.mark.parametrize("asked", ["stretched", "matched"])
def test_slices_that_are_not_written_count_for_the_quantiles(asked, gappy, tiny_settings, tmp_path):
    root = gappy()
    options = {"targets": ["t2"], "intensities": asked}
    whole = bent(root, tmp_path / "whole", tiny_settings, even=False, **options)
    some = bent(root, tmp_path / "some", tiny_settings, slices=(2, 12), **options)
    assert (some[2:12] == whole[2:12]).all()
    assert (some[:2] == some[0, 0, 0]).all() and (some[12:] == some[0, 0, 0]).all()


@pytest.mark.parametrize("asked", ["stretched", "matched"])
def test_a_png_slice_that_is_made_again_is_bent_as_in_its_volume(
    asked, gappy, tiny_settings, tmp_path
):
    root = gappy("slices")
    options = {"targets": ["t2"], "intensities": asked}
    weights = echo_weights(tiny_settings, crop=16, measured={"quantiles": {"t2": BRIGHT}})
    methods = {weights.sha256: Faint(weights.info.settings)}
    completed(root, tmp_path / "out", weights, methods=methods, **options)
    before = images(tmp_path / "out")
    (tmp_path / "out/t2/Phantom00000_002.png").unlink()
    completed(root, tmp_path / "out", weights, methods=methods, **options)
    assert images(tmp_path / "out") == before


def test_the_quantiles_are_those_of_the_slices_that_training_uses(tiny_settings):
    """Of 5 slices these are 1 to 3; two voxels each, of which the outer ones are darker."""
    info: WeightsInfo = echo_weights(
        tiny_settings, Scale(0.0, 2.0), measured={"quantiles": {"t2": (-1.0, 0.6, 1.0)}}
    ).info
    inside = np.zeros((5, 1, 2), bool)
    inside[:] = True
    values = np.array([-1, -1, -0.5, 0, 0, 0, 0, 0.5, 1, 1], np.float32)
    result = intensities_of(values, inside, info, "t2", asked="matched")
    # -0.5 becomes -1, 0 becomes 0.6, 0.5 becomes 1; beyond these it is clipped
    assert result.tolist() == pytest.approx([0, 0, 0, 1.6, 1.6, 1.6, 1.6, 2, 2, 2])


def test_an_empty_volume_stays_empty(tiny_settings):
    info = echo_weights(tiny_settings, measured={"quantiles": {"t2": BRIGHT}}).info
    inside = np.zeros((5, 2, 2), bool)
    assert intensities_of(np.empty(0, np.float32), inside, info, "t2", asked="matched").size == 0


@pytest.mark.parametrize(("name", "value"), [("planes", "two"), ("intensities", "match")])
def test_an_unknown_choice_is_refused(name, value, gappy, tiny_settings, tmp_path):
    with pytest.raises(AttclError, match=f"--{name}: '{value}', expected ") as caught:
        plan_of(gappy(), tmp_path / "out", echo_weights(tiny_settings), **{name: value})
    assert caught.value.code == "unknown-choice"


# --- steps between slices ---------------------------------------------------------------------------------------------


def said_even(root: Path, output: Path, tiny_settings, **options) -> bool:
    bent(root, output, tiny_settings, **options)
    document = json.loads((output / "Phantom_00000/Phantom_00000_t2.json").read_text())
    return bool(document["even"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"crop": 0}, False),
        ({"slices": (2, 12)}, False),
        ({"even": False}, False),
        ({"crop": 0, "even": True}, True),
    ],
    ids=str,
)
def test_whole_volumes_of_networks_that_saw_squares_are_evened_out(
    options, expected, gappy, tiny_settings, tmp_path
):
    assert said_even(gappy(), tmp_path / "out", tiny_settings, **options) is expected


class Flickering(Echo):
    """Makes every second slice of a call brighter."""

    def synthesise(self, sources, targets, *, sample=None):
        (x,) = sources.values()
        brighter = 0.3 * (torch.arange(len(x)) % 2)[:, None, None, None]
        return dict.fromkeys(targets, (0.5 * x + brighter).clamp(-1, 1))


def test_evened_volumes_have_smaller_steps(gappy, tiny_settings, tmp_path):
    root = gappy()
    weights = echo_weights(tiny_settings, crop=16)
    methods = {weights.sha256: Flickering(weights.info.settings)}
    largest = []
    for even in (False, True):
        output = tmp_path / f"even-{even}"
        completed(root, output, weights, methods=methods, even=even)
        volume = volumes.load([output / phantom_file(0, "t2")]).data
        middle = [image[image != 0].mean() for image in volume[8:18]]
        largest.append(np.abs(np.diff(middle)).max())
    assert largest[1] < 0.3 * largest[0]
