"""Slices on their way through a network: fitted to its size, with neighbours, in calls of one shape, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from completers import CPU, Echo, completed, phantom_file

from attcl_cli.completion.inference import InMemory, Network, slices_per_call, translate
from attcl_cli.completion.preparation import Prepared
from attcl_cli.data import volumes
from attcl_cli.methods import METHODS
from attcl_cli.methods.settings import resolve

WHOLE = (slice(0, 16), slice(0, 16))


def settings_of(tiny_settings, image_size: int, canvas: int):
    return tiny_settings.model_copy(update={"image_size": image_size, "canvas": canvas})


def echo(tiny_settings, *, kind: type[Echo] = Echo, image_size: int = 16, canvas: int = 16) -> Echo:
    return kind(settings_of(tiny_settings, image_size, canvas))


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_results_are_the_same_to_the_bit_for_every_number_of_threads(name):
    """A kernel whose sums are shared by two threads rounds otherwise: AttCL-GAN's images would differ by 5e-7."""
    settings = resolve(preset="tiny", method=name)
    torch.manual_seed(0)
    method = METHODS[name](settings, ("t1", "t2")).eval().requires_grad_(requires_grad=False)
    size = settings.image_size
    method.remember_references({it: torch.zeros(1, 1, size, size) for it in ("t1", "t2")})
    small = np.random.default_rng(0).uniform(-1, 1, (12, 1, size, size)).astype(np.float32)
    window = (slice(0, size), slice(0, size))
    prepared = Prepared({"t1": small}, np.arange(12), np.ones((12, size, size), bool), window)
    before, made = torch.get_num_threads(), {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        parts = Network(method, CPU, 8).styles(prepared, ["t2"], [None])
        made[threads] = torch.cat([styles["t2"][0] for _, styles in parts])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(made[1], made[2]) and torch.equal(made[1], made[3])
    assert made[1].std() > 0


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
def test_blocks_of_slices_cover_all_of_them_in_order(batch_size, tiny_settings):
    numbers = np.arange(20, dtype=np.float32)
    small = {"t1": (numbers[:, None, None, None] / 20) * np.ones((1, 16, 16), np.float32)}
    prepared = Prepared(small, np.arange(20), np.ones((20, 16, 16), bool), WHOLE)
    network = Network(echo(tiny_settings), CPU, batch_size)
    blocks = list(network.styles(prepared, ["t2"], [None, 0, 1]))
    assert [(rows.start, rows.stop) for rows, _ in blocks] == [(0, 8), (8, 16), (16, 20)]
    for rows, styles in blocks:
        assert styles["t2"].shape == (3, rows.stop - rows.start, 16, 16)
        assert torch.equal(styles["t2"][1, :, 0, 0], torch.from_numpy(numbers[rows] / 20))


def test_samples_are_asked_for_by_number(tiny_settings):
    asked = []

    class Counting(Echo):
        def synthesise(self, sources, targets, *, sample=None):
            asked.append(sample)
            return super().synthesise(sources, targets, sample=sample)

    small = {"t1": np.zeros((9, 1, 16, 16), np.float32)}
    prepared = Prepared(small, np.arange(9), np.ones((9, 16, 16), bool), WHOLE)
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
        {"flair": case.volumes["flair"]}, case.brain, ["t1", "t2"]
    )
    assert list(made) == ["t1", "t2"]
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
    arguments = ({"flair": source}, case.brain, "t2", indices)
    three, two = (memory.samples(*arguments, count=count) for count in (3, 2))
    assert [sample.shape for sample in three] == [(2, 40, 40)] * 3
    assert all((one == other).all() for one, other in zip(three, two, strict=False))
    assert not np.array_equal(three[0], three[1])
    for sample in three:
        assert not sample[source.data[indices] == 0].any()
        assert sample.min() >= 0 and sample.max() <= 1
