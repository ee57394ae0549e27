"""The frame of two-domain models: whose turn it is, the step by hand, the pool of fakes, two hops, the hub."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gradients import recorded, require_equal
from helpers import small_settings
from slice_stores import MIXED, PARTLY_PAIRED, store_of_cases, store_of_volumes
from torch import Tensor, nn
from training_runs import KilledError, require_same_runs, run

from attcl_cli.data.couples import CoupleBatch, Truth
from attcl_cli.errors import UsageError
from attcl_cli.methods.base import Runtime
from attcl_cli.methods.cyclegan import CycleGan
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.pairwise import ImagePool, Pairwise, Way
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.sources import HubAndSpokes

FOUR = ("flair", "t1", "t1ce", "t2")
PLAIN = {"lambda_pair": 0.0, "keep_background": False, "schedule": "successive"}


def method_of(modalities: Sequence[str] = FOUR, seed: int = 1, **changes: Any) -> CycleGan:
    """Return a new small method of the frame, with the same weights for the same settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CycleGan(small_settings("cyclegan", **{**PLAIN, **changes}), modalities)


def batch_of(pair: tuple[int, int] = (0, 1), count: int = 2, seed: int = 3) -> CoupleBatch:
    """Return random slices in [-1, 1]."""
    noise = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(count, 1, 16, 16, generator=noise) * 2 - 1 for _ in range(2))
    return CoupleBatch(a, b, pair)


# --- whose turn it is -------------------------------------------------------------------------------------------------


def test_successive_pairs_have_an_equal_part_of_the_steps_each_and_rates_begin_anew():
    method = method_of(steps=9, hub="t1")
    assert method.pairs == ((1, 0), (1, 2), (1, 3))
    turns = [(method.pairs.index(turn.pair), turn.count) for turn in map(method.turn, range(9))]
    assert turns == [(index, count) for index in range(3) for count in range(3)]
    assert method.restarts == pytest.approx((1 / 3, 2 / 3))


def test_interleaved_pairs_take_turns_at_every_step_and_rates_fall_once():
    method = method_of(steps=9, schedule="interleaved")
    turns = [(method.pairs.index(turn.pair), turn.count) for turn in map(method.turn, range(9))]
    assert turns == [(step % 3, step // 3) for step in range(9)]
    assert method.restarts == ()


def test_two_modalities_are_a_single_pair():
    method = method_of(("t1", "t2"), steps=4)
    assert method.pairs == ((0, 1),)
    assert method.restarts == ()
    assert list(method.networks()) == [
        *("generator_0_1", "generator_1_0", "discriminator_0_1", "discriminator_1_0"),
        "pool",
    ]


def test_an_epoch_of_all_pairs_is_an_epoch_of_each():
    method = method_of(hub="flair")
    store = store_of_cases({"A": FOUR, "B": ("flair", "t1"), "C": ("flair",)})
    assert method.sampler(store).size == 3 * 15  # flair's 15 slices, in every pair


def test_a_step_trains_the_networks_of_its_pair_alone():
    method = method_of()
    before = {key: value.clone() for key, value in method.named_parameters()}
    losses = method.training_step(batch_of((0, 2)), 0)
    changed = {
        key.split(".")[0]
        for key, value in method.named_parameters()
        if not torch.equal(value, before[key])
    }
    assert changed == {
        *("generator_0_2", "generator_2_0", "discriminator_0_2", "discriminator_2_0")
    }
    assert losses["which_pair"] == 1


@pytest.mark.parametrize("schedule", ["successive", "interleaved"])
def test_a_stopped_run_resumes_to_the_same_bits_with_either_schedule(schedule, store, tmp_path):
    settings = small_settings("cyclegan", schedule=schedule, steps=6, save_every=3, sample_every=9)
    run(settings, store, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(settings, store, tmp_path / "stopped", kill_after=5)
    run(settings, store, tmp_path / "stopped", resume=True)
    require_same_runs(tmp_path / "whole", tmp_path / "stopped")


# --- a training step, by hand -----------------------------------------------------------------------------------------


def lsgan(logits: Tensor, expected: float) -> Tensor:
    return ((logits - expected) ** 2).mean()


def test_a_step_is_that_of_cyclegan_written_out():
    method, oracle = method_of(image_pool=0), method_of(image_pool=0)
    batch = batch_of()
    seen, expected = recorded(method.optimisers()), recorded(oracle.optimisers())
    losses = method.training_step(batch, 0)

    to_spoke, to_hub = (oracle.get_submodule(f"generator_{name}") for name in ("0_1", "1_0"))
    spoke, hub = (oracle.get_submodule(f"discriminator_{name}") for name in ("0_1", "1_0"))
    fake_b, fake_a = to_spoke(batch.a), to_hub(batch.b)
    gan = lsgan(spoke(fake_b), 1) + lsgan(hub(fake_a), 1)
    cycle = (to_hub(fake_b) - batch.a).abs().mean() + (to_spoke(fake_a) - batch.b).abs().mean()
    identity = (to_spoke(batch.b) - batch.b).abs().mean()
    identity = identity + (to_hub(batch.a) - batch.a).abs().mean()
    optimisers = oracle.optimisers()
    inputs = [*to_spoke.parameters(), *to_hub.parameters()]
    gradients = torch.autograd.grad(gan + 10 * cycle + 5 * identity, inputs)
    for parameter, gradient in zip(inputs, gradients, strict=True):
        parameter.grad = gradient
    optimisers["generator_0_1"].step()
    optimisers["generator_1_0"].step()
    real = lsgan(spoke(batch.b), 1) + lsgan(hub(batch.a), 1)
    fake = lsgan(spoke(fake_b.detach()), 0) + lsgan(hub(fake_a.detach()), 0)
    inputs = [*spoke.parameters(), *hub.parameters()]
    gradients = torch.autograd.grad((real + fake) / 2, inputs)
    for parameter, gradient in zip(inputs, gradients, strict=True):
        parameter.grad = gradient
    optimisers["discriminator_0_1"].step()
    optimisers["discriminator_1_0"].step()

    require_equal(seen, expected)
    values = {
        "g_gan": gan,
        "g_cycle": cycle,
        "g_identity": identity,
        "d_real": real,
        "d_fake": fake,
    }
    assert list(losses) == [*values, "which_pair"]
    assert {key: float(losses[key]) for key in values} == pytest.approx(
        {key: value.item() for key, value in values.items()}, rel=1e-5
    )


class JudgesFirst(CycleGan):
    """CycleGAN the other way round."""

    discriminators_first = True


def test_discriminators_that_step_first_see_the_fakes_of_the_same_generators():
    settings = small_settings("cyclegan", **{**PLAIN, "image_pool": 0})
    torch.manual_seed(1)
    method = JudgesFirst(settings, FOUR)
    other, batch = method_of(image_pool=0), batch_of()
    seen, expected = recorded(method.optimisers()), recorded(other.optimisers())
    losses, others = (one.training_step(batch, 0) for one in (method, other))
    assert [name for name, _ in seen] == [name for name, _ in expected[2:] + expected[:2]]
    assert list(losses)[:2] == ["d_real", "d_fake"]
    assert losses["d_fake"] == pytest.approx(float(others["d_fake"]))
    assert losses["g_gan"] != pytest.approx(float(others["g_gan"]))  # judged after they stepped


def test_generators_leave_no_gradient_in_the_discriminators():
    class Watching(CycleGan):
        def judge_losses(self, judge: nn.Module, real: Tensor, fake: Tensor) -> Any:
            assert not fake.requires_grad
            assert all(parameter.grad is None for parameter in judge.parameters())
            return super().judge_losses(judge, real, fake)

    Watching(small_settings("cyclegan", **PLAIN), FOUR).training_step(batch_of(), 0)


def test_true_pairs_teach_where_a_case_has_them_and_only_if_they_are_asked_for():
    batch = batch_of()
    true = Truth(torch.full_like(batch.a, 0.25), torch.tensor([True, False]))
    none = Truth(torch.full_like(batch.b, -1.0), torch.tensor([False, False]))
    batch = CoupleBatch(batch.a, batch.b, batch.pair, true, none)
    method = method_of(lambda_pair=100.0)
    fake = method.get_submodule("generator_0_1")(batch.a)
    losses = method.training_step(batch, 0)
    expected = (fake[0] - 0.25).abs().mean().item()
    assert losses["g_pair"].item() == pytest.approx(expected, rel=1e-5)
    store = store_of_volumes(PARTLY_PAIRED)
    for weight, asked in ((0.0, False), (100.0, True)):
        method = method_of(("t1", "t2"), lambda_pair=weight)
        assert (method.sampler(store).batch(0).true_of_a is not None) is asked


def test_the_background_of_what_is_translated_is_kept_if_asked_for():
    class Seeing(CycleGan):
        def way_losses(self, way: Way) -> Any:
            for image, source in ((way.fake, way.x), (way.cycled, way.fake), (way.own, way.y)):
                assert torch.equal(image, keep_background(image, source))
                assert (image[..., :4] == -1).all()
            return super().way_losses(way)

    batch = batch_of()
    for side in (batch.a, batch.b):
        side[..., :6] = -1
    Seeing(small_settings("cyclegan", **PLAIN | {"keep_background": True}), FOUR).training_step(
        batch, 0
    )


# --- the pool of earlier fakes ----------------------------------------------------------------------------------------


def image(value: float) -> Tensor:
    return torch.full((1, 1, 4, 4), value)


def test_the_pool_is_that_of_a_list_of_images():
    pool, kept = ImagePool(slots=2, size=3, side=4), []
    for step in range(40):
        fakes = torch.cat([image(2 * step), image(2 * step + 1)])
        result = pool.exchange(1, fakes, np.random.default_rng(step))
        rng = np.random.default_rng(step)
        swapped, places = rng.random(2) < 0.5, rng.integers(3, size=2)
        for index in range(2):
            value = 2.0 * step + index
            if len(kept) < 3:
                kept.append(value)
                expected = value
            elif swapped[index]:
                expected, kept[places[index]] = kept[places[index]], value
            else:
                expected = value
            assert result[index].unique().tolist() == [expected]
    assert pool.images[3:, 0, 0].tolist() == kept
    assert pool.count.tolist() == [0, 3]
    assert not pool.images[:3].any()  # the other discriminator's


def test_a_full_pool_returns_an_earlier_image_half_of_the_time():
    pool, rng = ImagePool(slots=1, size=5, side=4), np.random.default_rng(0)
    shown = [float(pool.exchange(0, image(float(i)), rng)[0, 0, 0, 0]) for i in range(405)]
    assert shown[:5] == [0, 1, 2, 3, 4]
    earlier = sum(value != i for i, value in enumerate(shown[5:], start=5))
    assert 160 < earlier < 240
    assert all(count == 1 for count in Counter(shown).values() if count > 2)


def test_the_pool_of_two_processes_is_that_of_one():
    whole, batches = method_of(batch_size=4), [batch_of(count=4, seed=step) for step in range(4)]
    for step, batch in enumerate(batches):
        whole.training_step(batch, step)
    barrier, slots = threading.Barrier(2, timeout=60), [[], []]

    @contextmanager
    def averaging(rank: int, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        yield
        slots[rank] = [parameter.grad.clone() for parameter in parameters]
        barrier.wait()
        for parameter, one, two in zip(parameters, *slots, strict=True):
            parameter.grad = (one + two) / 2
        barrier.wait()

    methods = [method_of(batch_size=4) for _ in range(2)]

    def work(rank: int) -> None:
        method = methods[rank]
        method.runtime = Runtime(rank=rank, processes=2, averaging=partial(averaging, rank))
        for step, batch in enumerate(batches):
            method.training_step(batch.part(method.runtime.share(4)), step)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = (method.pool.images for method in methods)
    assert torch.equal(one, two)
    assert whole.pool.count.tolist() == methods[0].pool.count.tolist() == [3, 3, 0, 0, 0, 0]
    assert torch.allclose(one, whole.pool.images, atol=1e-3)


# --- volumes ----------------------------------------------------------------------------------------------------------


def slices(*names: str) -> dict[str, Tensor]:
    """Return a random slice of each modality, with background on the left."""
    noise = torch.Generator().manual_seed(5)
    images = {name: torch.rand(2, 1, 16, 16, generator=noise) * 2 - 1 for name in FOUR}
    for one in images.values():
        one[..., :5] = -1
    return {name: images[name] for name in names}


def test_a_target_is_made_by_the_generator_of_its_pair():
    method, sources = method_of().eval(), slices("flair")
    expected = method.get_submodule("generator_0_3")(sources["flair"])
    assert torch.equal(method.synthesise(sources, ["t2"])["t2"], expected)
    sources = slices("t1ce")
    expected = method.get_submodule("generator_2_0")(sources["t1ce"])
    assert torch.equal(method.synthesise(sources, ["flair"])["flair"], expected)


def test_without_the_hub_it_is_made_through_it_and_between_lies_a_volume():
    method, sources = method_of().eval(), slices("t1")
    between = keep_background(method.get_submodule("generator_1_0")(sources["t1"]), sources["t1"])
    assert (between[..., :4] == -1).all()
    expected = method.get_submodule("generator_0_3")(between)
    made = method.synthesise(sources, ["t2", "flair"])
    assert torch.equal(made["t2"], expected)
    assert torch.equal(made["flair"], method.get_submodule("generator_1_0")(sources["t1"]))


def test_of_more_sources_than_are_needed_the_hub_is_taken():
    method, sources = method_of().eval(), slices("t1", "flair", "t2")
    alone = method.synthesise({"flair": sources["flair"]}, ["t2"])["t2"]
    assert torch.equal(method.synthesise(sources, ["t2"])["t2"], alone)  # nor its own image


@pytest.mark.parametrize(("name", "way"), [("flair", "0_1 1_0"), ("t1ce", "2_0 0_2")])
def test_a_modality_of_its_own_image_alone_is_made_there_and_back(name, way):
    method, sources = method_of().eval(), slices(name)
    there, back = (method.get_submodule(f"generator_{part}") for part in way.split())
    expected = back(keep_background(there(sources[name]), sources[name]))
    assert torch.equal(method.synthesise(sources, [name])[name], expected)


def test_weights_hold_the_generators_of_all_pairs_and_nothing_else():
    names = [*method_of(hub="t2").stored_networks()]
    assert names == [f"generator_{x}_{y}" for i in range(3) for x, y in ((3, i), (i, 3))]


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_the_hub_is_the_modality_with_most_volumes_of_several_the_first_by_name():
    settings = small_settings("cyclegan")
    store = store_of_cases(MIXED)  # flair, t1 and t2 three times each
    assert CycleGan.settled(settings, store).hub == "flair"
    more = store_of_volumes([("A", "t2", 5, 0), ("B", "t2", 5, 0), ("A", "flair", 90, 0)])
    settled = CycleGan.settled(settings, more)
    assert settled.hub == "t2"  # of most cases, not of most slices
    assert CycleGan.settled(settled, store) == settled
    assert settled.model_copy(update={"hub": ""}) == settings


def test_a_hub_that_is_named_stays():
    settings = small_settings("cyclegan", hub="t1ce")
    assert CycleGan.settled(settings, store_of_cases(MIXED)) == settings
    assert CycleGan.sources(settings, FOUR) == HubAndSpokes(FOUR, "t1ce")


def test_a_hub_of_nothing_names_the_nearest():
    with pytest.raises(UsageError, match="setting hub: 't1c'") as caught:
        CycleGan.sources(small_settings("cyclegan", hub="t1c"), FOUR)
    assert caught.value.code == "unknown-hub"
    assert "t1ce" in str(caught.value.hint)


def test_one_modality_makes_no_pair():
    with pytest.raises(UsageError) as caught:
        CycleGan.sources(small_settings("cyclegan"), ("t1",))
    assert caught.value.code == "one-modality"


def test_sources_of_another_contrast_would_be_learned_as_targets_and_are_refused():
    with pytest.raises(UsageError, match=r"augment: 0\.5, expected 0"):
        resolve(preset="tiny", method="cyclegan", overrides={"augment": 0.5})


def test_the_frame_asks_for_both_networks():
    assert Pairwise.__abstractmethods__ == {"make_generator", "make_discriminator"}
