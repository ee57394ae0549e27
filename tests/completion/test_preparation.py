"""What a network sees of a case: fitted slices with neighbours, the brain's box, three planes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from completers import Echo, completed, content, echo_weights, echoed, own_scale, phantom_file

from attcl_cli.completion.preparation import Prepared, fit, prepare, turn, turn_back
from attcl_cli.data.intensities import Scale, brain_of, crop

UNIT = Scale(0.0, 2.0)  # normalised, an intensity v is v - 1


def settings_of(tiny_settings, image_size: int, canvas: int, **changes):
    return tiny_settings.model_copy(update={"image_size": image_size, "canvas": canvas, **changes})


def echo(
    tiny_settings, *, kind: type[Echo] = Echo, image_size: int = 16, canvas: int = 16, **changes
) -> Echo:
    return kind(settings_of(tiny_settings, image_size, canvas, **changes))


class WithNeighbours(Echo):
    """Returns the slice before each."""

    context = 1

    def synthesise(self, sources, targets, *, sample=None):
        (x,) = sources.values()
        return dict.fromkeys(targets, x[:, :1])


class FarSighted(Echo):
    context = 2


class StrideOfFive(Echo):
    stride = 5

    def synthesise(self, sources, targets, *, sample=None):
        assert all(x.shape[-2:] == (65, 65) for x in sources.values())
        return super().synthesise(sources, targets, sample=sample)


def levels(*values: float) -> np.ndarray:
    """Return a volume whose slice k has the value k of the list everywhere, (D, 4, 5)."""
    return np.repeat(np.array(values, np.float32), 20).reshape(-1, 4, 5)


def seen(prepared: Prepared) -> list[list[float]]:
    """Return the value in the middle of each channel of each slice."""
    (small,) = prepared.small.values()
    return small[:, :, small.shape[-2] // 2, small.shape[-1] // 2].tolist()


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_only_slices_that_show_a_source_are_prepared(tiny_settings):
    data = levels(0, 0.5, 0, 1.5, 2, 0)
    inside = data != 0
    prepared = prepare({"t1": data}, inside, inside, inside, {"t1": UNIT}, echo(tiny_settings))
    assert prepared.indices.tolist() == [1, 3, 4]
    assert prepared.small["t1"].shape == (3, 1, 16, 16)
    assert seen(prepared) == [[-0.5], [0.5], [1.0]]


def test_the_background_and_the_margin_are_minus_one(tiny_settings):
    data = levels(2, 2, 2, 2, 2, 2)
    data[:, 1] = 0
    brain = data != 0
    prepared = prepare({"t1": data}, brain, brain, brain, {"t1": UNIT}, echo(tiny_settings))
    (image,) = prepared.small["t1"][0]
    expected = np.full((16, 16), -1, np.float32)
    expected[6:10, 5:10] = 1
    expected[7, 5:10] = -1
    assert (image == expected).all()


def test_neighbours_of_a_slice_are_channels_around_it(tiny_settings):
    data = levels(0.5, 1, 1.5, 2, 0, 0.25)
    inside = data != 0
    inside[[1, 5]] = False  # not to be synthesised, yet neighbours of slices that are
    prepared = prepare(
        {"t1": data},
        data != 0,
        inside,
        data != 0,
        {"t1": UNIT},
        echo(tiny_settings, kind=WithNeighbours),
    )
    assert prepared.indices.tolist() == [0, 2, 3]
    assert prepared.small["t1"].dtype == np.float32
    assert seen(prepared) == [
        [-1.0, -0.5, 0.0],  # nothing is below the lowest slice
        [0.0, 0.5, 1.0],
        [0.5, 1.0, -1.0],  # the slice above is empty
    ]


def test_neighbours_beyond_the_volume_are_background_on_both_ends(tiny_settings):
    data = levels(0.5, 0.75, 1, 1.25, 1.5, 1.75)
    whole = data != 0
    prepared = prepare(
        {"t1": data}, whole, whole, whole, {"t1": UNIT}, echo(tiny_settings, kind=FarSighted)
    )
    assert seen(prepared)[0] == [-1.0, -1.0, -0.5, -0.25, 0.0]
    assert seen(prepared)[1] == [-1.0, -0.5, -0.25, 0.0, 0.25]
    assert seen(prepared)[4] == [0.0, 0.25, 0.5, 0.75, -1.0]
    assert seen(prepared)[5] == [0.25, 0.5, 0.75, -1.0, -1.0]


def test_every_source_has_its_own_scale_and_the_same_slices(tiny_settings):
    flair, t1 = levels(0, 1, 0, 0, 0, 0), levels(0, 0, 0, 4, 0, 0)
    inside = brain_of([flair, t1])
    prepared = prepare(
        {"flair": flair, "t1": t1},
        inside,
        inside,
        inside,
        {"flair": UNIT, "t1": Scale(0.0, 4.0)},
        echo(tiny_settings),
    )
    assert prepared.indices.tolist() == [1, 3]
    assert {name: small[:, 0, 8, 8].tolist() for name, small in prepared.small.items()} == {
        "flair": [0.0, -1.0],
        "t1": [-1.0, 1.0],
    }


# --- fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "canvas", "stride", "slices", "fitted"),
    [
        (64, 64, 1, (40, 50), (64, 64)),
        (32, 64, 1, (40, 50), (32, 32)),
        (32, 64, 3, (40, 50), (33, 33)),  # 66 is the next multiple of 2 * 3 after 64
        (32, 64, 5, (40, 50), (35, 35)),
        (64, 64, 4, (70, 50), (72, 64)),  # larger than the canvas
        (32, 64, 6, (64, 73), (36, 42)),
    ],
)
def test_slices_fit_the_stride(image_size, canvas, stride, slices, fitted, tiny_settings):
    settings = settings_of(tiny_settings, image_size, canvas)
    values = np.random.default_rng(0).uniform(-1, 1, (3, *slices)).astype(np.float32)
    small = fit(values, settings, stride=stride)
    assert small.shape == (3, *fitted)
    assert not any(side % stride for side in fitted)
    factor = canvas // image_size
    assert small[0].mean() == pytest.approx(
        (values[0].sum() - (small[0].size * factor**2 - values[0].size))
        / (small[0].size * factor**2),
        abs=1e-5,
    )
    if factor == 1:
        assert (crop(small, slices) == values).all()


def test_a_stride_that_is_no_power_of_two_changes_no_byte(gappy, tiny_settings, tmp_path):
    """Slices are padded further, and cropped again."""
    root = gappy(lacking=[("t2",), (), (), ()])
    echoed(root, tmp_path / "plain", tiny_settings)
    weights = echo_weights(tiny_settings)
    methods = {weights.sha256: StrideOfFive(weights.info.settings)}
    completed(root, tmp_path / "strided", weights, methods=methods)
    assert content(tmp_path / "strided") == content(tmp_path / "plain")


def test_a_method_sees_the_neighbours_of_a_slice_in_a_volume(gappy, tiny_settings, tmp_path):
    root = gappy(lacking=[("t2",), (), (), ()])
    weights = echo_weights(tiny_settings)
    methods = {weights.sha256: WithNeighbours(weights.info.settings)}
    completed(root, tmp_path / "out", weights, methods=methods, slices=(10, 13))
    source = nib.load(root / phantom_file(0, "flair")).get_fdata()
    brain = np.any(
        [nib.load(root / phantom_file(0, m)).get_fdata() for m in ("flair", "t1", "t1ce")], axis=0
    )
    low, high = np.percentile(source[brain], [0.5, 99.5])
    unit = (np.clip(source, low, high) - low) / (high - low)
    unit[~brain] = 0
    scale = own_scale(root, "t2")
    expected = scale.low + unit[:, :, 9:12] * (scale.high - scale.low)  # each from the one below
    expected[source[:, :, 10:13] == 0] = 0
    volume = nib.load(tmp_path / "out" / phantom_file(0, "t2")).get_fdata()
    assert np.abs(volume[:, :, 10:13] - expected).max() < 0.51  # rounding to integers, and float32
    assert not volume[:, :, :10].any()
    assert not volume[:, :, 13:].any()


# --- the brain's box --------------------------------------------------------------------------------------------------


def ball(shape: tuple[int, int, int], middle: tuple[int, int, int], radius: float) -> np.ndarray:
    """Return the voxels of a ball."""
    grid = np.indices(shape)
    return sum((grid[axis] - middle[axis]) ** 2 for axis in range(3)) <= radius**2


@pytest.mark.parametrize(
    ("crop", "stride", "size", "fitted"),
    [
        (0, 1, (40, 50), (64, 64)),
        (16, 1, (27, 27), (27, 27)),  # 11 voxels of brain, 8 on each side
        (16, 4, (27, 27), (28, 28)),
        (32, 4, (27, 27), (32, 32)),  # no smaller than the squares of training
    ],
)
def test_weights_of_squares_see_the_brain_s_box(crop, stride, size, fitted, tiny_settings):
    brain = ball((20, 40, 50), (9, 20, 25), 5)
    method = echo(tiny_settings, image_size=64, canvas=64, crop=crop)
    type(method).stride, before = stride, type(method).stride
    try:
        prepared = prepare({"t1": 1.5 * brain}, brain, brain, brain, {"t1": UNIT}, method)
    finally:
        type(method).stride = before
    assert prepared.size == size
    assert prepared.small["t1"].shape == (11, 1, *fitted)
    assert (prepared.small["t1"] == 0.5).sum() == brain.sum()
    assert (prepared.mask(slice(3, 5)).sum(axis=(1, 2)) == brain[7:9].sum(axis=(1, 2))).all()


def test_the_box_is_that_of_the_whole_case_whichever_slices_are_made(tiny_settings):
    brain = ball((20, 40, 50), (9, 20, 25), 5)
    inside = brain.copy()
    inside[5:] = False
    prepared = prepare(
        {"t1": 1.5 * brain},
        brain,
        inside,
        brain,
        {"t1": UNIT},
        echo(tiny_settings, image_size=64, canvas=64, crop=16),
    )
    assert (prepared.box, prepared.indices.tolist()) == ((slice(7, 34), slice(12, 39)), [4])


def test_the_box_ends_with_the_image_and_is_padded_with_background(tiny_settings):
    brain = ball((20, 40, 50), (9, 3, 25), 5)
    prepared = prepare(
        {"t1": 1.5 * brain},
        brain,
        brain,
        brain,
        {"t1": UNIT},
        echo(tiny_settings, image_size=64, canvas=64, crop=32),
    )
    assert prepared.box == (slice(0, 17), slice(12, 39))
    assert prepared.small["t1"].shape[-2:] == (32, 32)
    values = prepared.small["t1"]
    assert set(np.unique(values)) == {-1, 0.5}


def test_a_box_is_averaged_down_as_slices_are(tiny_settings):
    brain = ball((20, 40, 50), (9, 20, 25), 5)
    prepared = prepare(
        {"t1": 1.5 * brain},
        brain,
        brain,
        brain,
        {"t1": UNIT},
        echo(tiny_settings, image_size=32, canvas=64, crop=16),
    )
    assert prepared.small["t1"].shape == (11, 1, 16, 16)  # 32 voxels
    assert prepared.small["t1"].mean(dtype=float) == pytest.approx(
        -1 + 1.5 * brain.sum() / (11 * 32 * 32), abs=1e-6
    )


# --- planes -----------------------------------------------------------------------------------------------------------


def test_slices_of_all_planes_have_the_head_up_and_are_turned_back():
    data = np.arange(24).reshape(
        2, 3, 4
    )  # from foot to head, from front to back, from right to left
    coronal, sagittal = turn(data, "coronal"), turn(data, "sagittal")
    assert coronal.shape == (3, 2, 4)
    assert (coronal[1] == [data[1, 1], data[0, 1]]).all()
    assert sagittal.shape == (4, 2, 3)
    assert (sagittal[2] == [data[1, :, 2], data[0, :, 2]]).all()
    for plane in ("axial", "coronal", "sagittal"):
        assert (turn_back(turn(data, plane), plane) == data).all()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_voxels_of_every_plane_come_back_in_the_order_of_the_axial_volume(plane):
    data = np.random.default_rng(0).normal(size=(4, 5, 6))
    inside = data > 0
    prepared = Prepared({}, np.arange(4), turn(inside, plane), (slice(0), slice(0)), plane)
    values = turn(data, plane)[prepared.inside]
    assert (prepared.in_axial_order(values) == data[inside]).all()
