"""The yardstick: what it learns from, what it looks at, and how its steps are sized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gradients import recorded, require_equal
from helpers import fresh_python, small_settings
from oracles import masked, similarity
from slice_stores import FOUR, MIXED, store_of_cases
from torch import Tensor, nn
from torch.optim import AdamW

from attcl_cli.data.sampling import CaseBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.settings import parse, resolve
from attcl_cli.methods.unet import Unet

T1, T1CE, T2 = 1, 2, 3  # among `FOUR`; FLAIR is 0


def method_of(**changes: Any) -> Unet:
    """Return a new method, with the same weights for the same settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["unet"](small_settings("unet", **changes), FOUR)


def batch_of(present: list[list[int]], sources: list[list[int]], target: list[int]) -> CaseBatch:
    """Return random cases of 16x16 pixels whose left half is background.

    Args:
        present: per case, the modalities that it has; the others are background everywhere.
        sources: per case, what is given of them.
        target: per case.
    """
    count = len(target)
    noise = torch.Generator().manual_seed(5)
    images = torch.rand(count, 4, 16, 16, generator=noise) * 1.8 - 0.9
    images[..., :8] = -1
    given = torch.zeros(count, 4, dtype=torch.bool)
    for index, (there, named) in enumerate(zip(present, sources, strict=True)):
        images[index, [number for number in range(4) if number not in there]] = -1
        given[index, named] = True
    return CaseBatch(
        images=images,
        sources=given,
        target=torch.tensor(target),
        labels=torch.zeros(count, 16, 16, dtype=torch.int64),
        has_labels=torch.zeros(count, dtype=torch.bool),
    )


def last_layer(method: Unet) -> nn.Conv2d:
    """Return the convolution that ends in one channel per modality."""
    layer = method.network.final_conv
    assert isinstance(layer, nn.Conv2d) and layer.out_channels == 4
    return layer


# --- the network ------------------------------------------------------------------------------------------------------


def test_preset_small_is_32_to_256_wide_with_group_norm_and_leaky_relu():
    method = METHODS["unet"](resolve(preset="small", method="unet"), FOUR)
    layers = [layer for layer in method.modules() if isinstance(layer, nn.Conv2d)]
    assert layers[0].in_channels == 8  # four images, four flags
    assert layers[0].out_channels == 32
    assert max(layer.out_channels for layer in layers) == 256
    assert {layer.num_groups for layer in method.modules() if isinstance(layer, nn.GroupNorm)} == {
        8
    }
    slopes = {one.negative_slope for one in method.modules() if isinstance(one, nn.LeakyReLU)}
    assert slopes == {0.1}


def test_presets_train_on_squares_of_128_pixels_but_tiny_on_whole_slices():
    sizes = {
        preset: (settings.image_size, settings.crop, settings.batch_size)
        for preset in ("tiny", "small", "base", "paper")
        for settings in [resolve(preset=preset, method="unet")]
    }
    assert sizes == {
        "tiny": (64, 0, 8),
        "small": (256, 128, 8),
        "base": (256, 128, 8),
        "paper": (256, 128, 8),
    }


def test_there_is_no_publication_so_paper_is_base():
    paper, base = (resolve(preset=preset, method="unet") for preset in ("paper", "base"))
    assert paper == base


def test_settings_are_known_without_monai():
    loaded = fresh_python(
        "-c",
        "import sys; from attcl_cli.methods.settings import resolve; resolve(method='unet')\n"
        "print(*sorted({'monai'} & set(sys.modules)))",
    )
    assert not loaded.strip()


# --- what it looks at -------------------------------------------------------------------------------------------------


def images_of(*names: str) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(3)
    images = {name: torch.rand(2, 1, 16, 32, generator=noise) * 1.8 - 0.9 for name in FOUR}
    return {name: images[name] for name in names}


def test_a_target_s_own_image_is_not_looked_at():
    method = method_of().eval()
    alone = method.synthesise(images_of("t1"), ["t2"])["t2"]
    beside = method.synthesise(images_of("t1", "t2"), ["t2"])["t2"]
    assert torch.equal(alone, beside)
    assert not torch.equal(alone, method.synthesise(images_of("t1", "flair"), ["t2"])["t2"])


def test_several_targets_are_those_of_a_call_each():
    method = method_of().eval()
    sources = images_of("flair", "t1")
    together = method.synthesise(sources, ["t2", "t1ce", "t1"])
    assert list(together) == ["t2", "t1ce", "t1"]
    for target, image in together.items():
        assert torch.equal(image, method.synthesise(sources, [target])[target])


def test_the_flags_tell_a_dark_image_from_none():
    method = method_of(keep_background=False).eval()
    dark = {"t2": torch.full((2, 1, 16, 32), -1.0)}
    first = method.synthesise(images_of("t1"), ["t1ce"])["t1ce"]
    second = method.synthesise({**images_of("t1"), **dark}, ["t1ce"])["t1ce"]
    assert not torch.equal(first, second)


def test_the_background_of_all_sources_stays():
    sources = images_of("t1")
    sources["t1"][..., :16] = -1
    fake = method_of().eval().synthesise(sources, ["t2"])["t2"]
    assert fake[..., :15].eq(-1).all()  # but for the rim of one pixel
    assert fake[..., 16:].ne(-1).all()


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_an_untrained_last_layer_gives_the_distance_of_the_truth_from_background():
    method = method_of()
    for value in (last_layer(method).weight, last_layer(method).bias):
        nn.init.zeros_(value)
    batch = batch_of([[0, T1, T2], [T1, T2]], [[T1], [T1]], [T2, T2])
    losses = method.training_step(batch, 0)
    # made: -1 everywhere; learned: FLAIR and T2 of the first case, T2 of the second, in their right halves
    learned = [batch.images[0, 0], batch.images[0, T2], batch.images[1, T2]]
    expected = np.mean([(image[:, 8:] + 1).mean().item() for image in learned])
    assert losses["g_l1"].item() == pytest.approx(expected, rel=1e-5)


def test_a_step_descends_l1_and_structure_in_the_brain_of_all_that_is_learned():
    method = method_of(unet_lambda_ssim=0.7)
    batch = batch_of([[0, T1, T2], [T1, T2]], [[T1], [T1]], [T2, T2])
    given = torch.where(batch.sources[:, :, None, None], (batch.images + 1) / 2, torch.tensor(0.0))
    flags = batch.sources[:, :, None, None].expand(-1, -1, 16, 16).float()
    raw = 2 * method.network(torch.cat([given, flags], dim=1)) - 1
    distances, structures = [], []
    for case, learned in ((0, 0), (0, T2), (1, T2)):
        shown = batch.images[case, [T1]][None]
        fake = masked(raw[[case]][:, [learned]], shown)
        true = batch.images[case, [learned]][None]
        distances.append((fake - true).abs()[true > -1].mean())
        structures.append(1 - similarity(fake, true)[true > -1].mean())
    l1, ssim = torch.stack(distances).mean(), torch.stack(structures).mean()
    weights = list(method.network.parameters())
    expected = torch.autograd.grad(l1 + 0.7 * ssim, weights)
    seen = recorded(method.optimisers())
    losses = method.training_step(batch, 0)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {"g_l1": l1.item(), "g_ssim": ssim.item()}, rel=1e-4
    )
    require_equal(seen, [("network", torch.cat([one.flatten() for one in expected]))])


def test_all_that_is_left_out_is_learned_and_nothing_that_is_given_or_missing():
    for present, sources, target, learned in (
        ([0, T1, T1CE, T2], [0], T1, {T1, T1CE, T2}),
        ([0, T1, T1CE, T2], [0, T1, T2], T1CE, {T1CE}),
        ([T1, T2], [T1], T2, {T2}),  # an incomplete case
        ([0, T1, T2], [T2], 0, {0, T1}),
    ):
        method = method_of()
        seen: list[Tensor] = []
        layer = last_layer(method)
        method.optimisers()["network"].register_step_pre_hook(
            lambda *_, seen=seen, layer=layer: seen.append(layer.weight.grad.flatten(1).clone())
        )
        method.training_step(batch_of([present], [sources], [target]), 0)
        moved = set(torch.nonzero(seen[0].abs().sum(dim=1))[:, 0].tolist())
        assert moved == learned


def test_parts_know_the_share_of_what_is_learned_in_the_whole():
    batch = batch_of([[0, 1, 2, 3], [0, 1], [1, 2, 3]], [[0], [0], [1, 2]], [1, 1, 3])
    assert batch.taught.tolist() == [
        [False, True, True, True],
        [False, True, False, False],
        [False, False, False, True],
    ]
    part = batch.part(slice(1, 3))
    assert part.taught_share == pytest.approx(5 / 12)
    assert part.part(slice(0, 1)).taught_share == part.taught_share


def test_it_learns_a_batch_by_heart():
    method = method_of(width=8, learning_rate=5e-3)
    batch = batch_of([[0, 1, 2, 3]] * 2, [[0], [0, 1]], [1, 2])
    first, *_, last = [method.training_step(batch, step) for step in range(60)]
    assert last["g_l1"] < 0.6 * first["g_l1"]
    assert last["g_ssim"] < 0.6 * first["g_ssim"]


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(store: Any, steps: int = 100, **changes: Any) -> list[CaseBatch]:
    sampler = method_of(batch_size=16, **changes).sampler(store)
    return [sampler.batch(step) for step in range(steps)]


def test_a_single_modality_is_given_in_the_share_that_is_set_and_flair_no_more_often_than_others():
    drawn = torch.cat([batch.sources for batch in batches(store_of_cases({"A": FOUR}))])
    alone = drawn[drawn.sum(dim=1) == 1]
    # 0.4, and a third of the others
    assert len(alone) / len(drawn) == pytest.approx(0.4 + 0.6 / 3, abs=0.04)  # sd 0.012
    assert alone.float().mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.06)  # sd 0.014


def test_incomplete_cases_teach_what_they_have():
    store = store_of_cases(MIXED)
    seen = {
        tuple(row)
        for batch in batches(store, 30)
        for row in (batch.sources.long() + 2 * batch.taught.long()).tolist()
    }
    # B has FLAIR and T1 alone: each of them is made from the other.
    assert {(1, 2, 0, 0), (2, 1, 0, 0)} <= seen


# --- steps ------------------------------------------------------------------------------------------------------------


def test_rates_are_adamws_and_rise_over_the_first_fifty_steps():
    method = method_of(learning_rate=1e-3)
    optimiser = method.optimisers()["network"]
    assert isinstance(optimiser, AdamW)
    assert optimiser.param_groups[0]["lr"] == 1e-3
    assert method.settings.warm_up == 50


def test_an_older_run_rose_over_fifty_steps_too():
    assert parse({"method": "unet"}).warm_up == 50
