"""Slices on their way through a network: fitted to its size, with neighbours, in calls of one shape, and back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from completers import CPU, SCALE, Echo, completed, content, echo_weights, echoed, phantom_file

from attcl_cli.completion.inference import (
    InMemory,
    Network,
    Prepared,
    fit,
    prepare,
    slices_per_call,
    translate,
)
from attcl_cli.data import volumes
from attcl_cli.data.intensities import Scale, brain_of, crop
from attcl_cli.data.volumes import Grid, Volume

UNIT = Scale(0.0, 2.0)  # normalised, an intensity v is v - 1


def settings_of(tiny_settings, image_size: int, canvas: int):
    return tiny_settings.model_copy(update={"image_size": image_size, "canvas": canvas})


def echo(tiny_settings, *, kind: type[Echo] = Echo, image_size: int = 16, canvas: int = 16) -> Echo:
    return kind(settings_of(tiny_settings, image_size, canvas))


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


@pytest.fixture
def grid(tmp_path: Path, write_nifti) -> Grid:
    """Of a volume of 6 slices, 4x5 pixels."""
    return volumes.read_grid([write_nifti(tmp_path / "grid.nii.gz", np.ones((5, 4, 6), np.int16))])


def levels(*values: float) -> np.ndarray:
    """Return a volume whose slice k has the value k of the list everywhere, (D, 4, 5)."""
    return np.repeat(np.array(values, np.float32), 20).reshape(-1, 4, 5)


def seen(prepared: Prepared) -> list[list[float]]:
    """Return the value in the middle of each channel of each slice."""
    (small,) = prepared.small.values()
    return small[:, :, small.shape[-2] // 2, small.shape[-1] // 2].tolist()


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_only_slices_that_show_a_source_are_prepared(grid, tiny_settings):
    data = levels(0, 0.5, 0, 1.5, 2, 0)
    inside = data != 0
    prepared = prepare(
        {"t1": Volume(data, grid)}, inside, inside, {"t1": UNIT}, echo(tiny_settings)
    )
    assert prepared.indices.tolist() == [1, 3, 4]
    assert prepared.small["t1"].shape == (3, 1, 16, 16)
    assert seen(prepared) == [[-0.5], [0.5], [1.0]]


def test_the_background_and_the_margin_are_minus_one(grid, tiny_settings):
    data = levels(2, 2, 2, 2, 2, 2)
    data[:, 1] = 0
    brain = data != 0
    prepared = prepare({"t1": Volume(data, grid)}, brain, brain, {"t1": UNIT}, echo(tiny_settings))
    (image,) = prepared.small["t1"][0]
    expected = np.full((16, 16), -1, np.float32)
    expected[6:10, 5:10] = 1
    expected[7, 5:10] = -1
    assert (image == expected).all()


def test_neighbours_of_a_slice_are_channels_around_it(grid, tiny_settings):
    data = levels(0.5, 1, 1.5, 2, 0, 0.25)
    inside = data != 0
    inside[[1, 5]] = False  # not to be synthesised, yet neighbours of slices that are
    prepared = prepare(
        {"t1": Volume(data, grid)},
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


def test_neighbours_beyond_the_volume_are_background_on_both_ends(grid, tiny_settings):
    data = levels(0.5, 0.75, 1, 1.25, 1.5, 1.75)
    whole = data != 0
    prepared = prepare(
        {"t1": Volume(data, grid)}, whole, whole, {"t1": UNIT}, echo(tiny_settings, kind=FarSighted)
    )
    assert seen(prepared)[0] == [-1.0, -1.0, -0.5, -0.25, 0.0]
    assert seen(prepared)[1] == [-1.0, -0.5, -0.25, 0.0, 0.25]
    assert seen(prepared)[4] == [0.0, 0.25, 0.5, 0.75, -1.0]
    assert seen(prepared)[5] == [0.25, 0.5, 0.75, -1.0, -1.0]


def test_every_source_has_its_own_scale_and_the_same_slices(grid, tiny_settings):
    flair, t1 = levels(0, 1, 0, 0, 0, 0), levels(0, 0, 0, 4, 0, 0)
    inside = brain_of([flair, t1])
    prepared = prepare(
        {"flair": Volume(flair, grid), "t1": Volume(t1, grid)},
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


def test_slices_are_spread_over_the_volume_and_zero_outside(grid, tiny_settings):
    data = levels(0, 0.5, 0, 1.5, 0, 0)
    data[1, 0, 0] = 0
    inside = data != 0
    prepared = prepare(
        {"t1": Volume(data, grid)}, inside, inside, {"t1": UNIT}, echo(tiny_settings)
    )
    spread = prepared.spread(np.full((2, 4, 5), 7, np.float32))
    assert (spread == np.where(inside, 7, 0)).all()


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
    expected = SCALE.low + unit[:, :, 9:12] * (SCALE.high - SCALE.low)  # each from the one below
    expected[source[:, :, 10:13] == 0] = 0
    volume = nib.load(tmp_path / "out" / phantom_file(0, "t2")).get_fdata()
    assert np.abs(volume[:, :, 10:13] - expected).max() < 0.51  # rounding to integers, and float32
    assert not volume[:, :, :10].any()
    assert not volume[:, :, 13:].any()


# --- calls of the network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kind", "count"),
    [(16, "cpu", 8), (64, "cpu", 8), (128, "cpu", 4), (256, "cpu", 2), (512, "cpu", 2), (256, "cuda", 16)],
)  # fmt: skip
def test_how_many_slices_a_call_takes_depends_on_size_and_kind_of_device(size, kind, count):
    assert slices_per_call(size, torch.device(kind)) == count


def test_a_call_is_filled_up_and_its_answer_cut_and_clipped(tiny_settings):
    shapes = []

    class Loud(Echo):
        def synthesise(self, sources, targets, *, sample=None):
            (x,) = sources.values()
            shapes.append(tuple(x.shape))
            return dict.fromkeys(targets, 3 * x)

    method = echo(tiny_settings, kind=Loud, image_size=16, canvas=32)
    x = torch.full((3, 1, 16, 16), 0.5)
    fakes = translate(method, {"t1": x}, ["t2", "flair"])
    assert shapes == [(8, 1, 16, 16)]
    assert {name: tuple(fake.shape) for name, fake in fakes.items()} == {
        "t2": (3, 1, 32, 32),
        "flair": (3, 1, 32, 32),
    }
    assert (fakes["t2"] == 1).all()


@pytest.mark.parametrize("batch_size", [1, 8, 9, 20, 1000])
def test_blocks_of_slices_cover_all_of_them_in_order(batch_size, grid, tiny_settings):
    numbers = np.arange(20, dtype=np.float32)
    small = {"t1": (numbers[:, None, None, None] / 20) * np.ones((1, 16, 16), np.float32)}
    prepared = Prepared(small, np.arange(20), np.ones((20, 16, 16), bool), grid)
    network = Network(echo(tiny_settings), CPU, batch_size)
    blocks = list(network.styles(prepared, ["t2"], [None, 0, 1]))
    assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 8), (8, 16), (16, 20)]
    for rows, styles in blocks:
        assert styles["t2"].shape == (3, rows.stop - rows.start, 16, 16)
        assert torch.equal(styles["t2"][1, :, 0, 0], torch.from_numpy(numbers[rows] / 20))


def test_samples_are_asked_for_by_number(grid, tiny_settings):
    asked = []

    class Counting(Echo):
        def synthesise(self, sources, targets, *, sample=None):
            asked.append(sample)
            return super().synthesise(sources, targets, sample=sample)

    small = {"t1": np.zeros((9, 1, 16, 16), np.float32)}
    prepared = Prepared(small, np.arange(9), np.ones((9, 16, 16), bool), grid)
    network = Network(echo(tiny_settings, kind=Counting), CPU, 64)
    list(network.styles(prepared, ["t2"], range(3)))
    assert asked == [0, 1, 2, 0, 1, 2]  # two calls


# --- in memory --------------------------------------------------------------------------------------------------------


def test_volumes_in_memory_are_those_that_completion_writes(gappy, weights, method, tmp_path):
    root = gappy(lacking=[("t2", "t1"), (), (), ()])
    completed(root, tmp_path / "out", weights)
    files = {name: [root / phantom_file(0, name)] for name in ("flair", "t1ce")}
    case = volumes.load_case(files)
    made = InMemory(method, weights, CPU).volumes(
        case.volumes["flair"], case.brain, "flair", ["t1", "t2"]
    )
    for target, data in made.items():
        written = volumes.load([tmp_path / "out" / phantom_file(0, target)]).data
        assert np.abs(data - written).max() <= 0.5  # int16 in the file
        assert data.dtype == np.float32


def test_samples_in_memory_are_drawn_by_number_and_show_the_source_s_voxels_alone(
    phantom_root, weights, method
):
    files = {name: [phantom_root / phantom_file(0, name)] for name in ("flair", "t1")}
    case = volumes.load_case(files)
    source = case.volumes["flair"]
    indices = np.array([10, 14])
    memory = InMemory(method, weights, CPU)
    arguments = (source, case.brain, "flair", "t2", indices)
    three, two = (memory.samples(*arguments, count=count) for count in (3, 2))
    assert [sample.shape for sample in three] == [(2, 40, 40)] * 3
    assert all((one == other).all() for one, other in zip(three, two, strict=False))
    assert not np.array_equal(three[0], three[1])
    for sample in three:
        assert not sample[source.data[indices] == 0].any()
        assert sample.min() >= 0 and sample.max() <= 1
