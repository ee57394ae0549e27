"""Augmentation: what is changed, what stays exactly as it is, and that all images of a place are warped alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import small_settings
from scipy.ndimage import map_coordinates
from slice_stores import FOUR, all_others, store_of_cases
from torch.nn import functional as F

from attcl_cli.data.augment import (
    MARGIN,
    change_appearance,
    warp_grids,
    warp_images,
    warp_labels,
)
from attcl_cli.data.augment import turned as rotated
from attcl_cli.data.sampling import CaseSampler, DomainSampler
from attcl_cli.data.slices import STEPS, SliceStore
from attcl_cli.methods import METHODS

SIDE = 32


def brain_of(count: int = 3, *, planes: int = 1) -> torch.Tensor:
    """Return random images whose brain is the middle of the square."""
    noise = torch.Generator().manual_seed(0)
    images = torch.full((count, planes, SIDE, SIDE), -1.0)
    images[..., 8:24, 6:26] = torch.rand(count, planes, 16, 20, generator=noise) * 1.8 - 0.9
    return images


def turned(degrees: float, *, scale: float = 1.0) -> torch.Tensor:
    """Return the grid of a rotation: (1, SIDE, SIDE, 2)."""
    angle = np.deg2rad(degrees)
    rows = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]) / scale
    matrix = torch.from_numpy(rows.astype(np.float32))[None]
    return F.affine_grid(matrix, [1, 1, SIDE, SIDE], align_corners=False)


# --- appearance -------------------------------------------------------------------------------------------------------


def test_appearance_changes_the_brain_alone_and_stays_in_the_window():
    images = brain_of(planes=3)
    changed = change_appearance(images, np.random.default_rng(0))
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert changed[images == -1].eq(-1).all()
    assert changed.min() >= -1 and changed.max() <= 1
    assert (changed != images)[images > -1].float().mean() > 0.99


def test_shading_is_smooth_and_within_a_fifth_and_noise_within_a_fiftieth():
    images = torch.zeros(50, 2, SIDE, SIDE)  # the middle of the window
    values = (change_appearance(images, np.random.default_rng(0)) + 1) / 2
    noise = (values[:, 0] - values[:, 1]) / np.sqrt(2)  # both planes have one gamma and one field
    sigmas = noise.flatten(1).std(dim=1)
    assert sigmas.max() < 0.022 and sigmas.min() < 0.004  # uniform in 0 .. 0.02
    fields = F.avg_pool2d(values.mean(dim=1, keepdim=True), 5, stride=1)[:, 0].flatten(1)
    middle = fields.median(dim=1, keepdim=True).values
    assert (fields / middle).max() < 1.2 / 0.8 * 1.05
    assert (fields / middle).min() > 0.8 / 1.2 * 0.95
    assert (fields.amax(dim=1) / fields.amin(dim=1)).max() > 1.2  # and there is some


# --- shape ------------------------------------------------------------------------------------------------------------


def test_images_turn_by_the_angle_of_each_and_background_stays_exact():
    images = brain_of(count=3, planes=2)
    quarter = rotated(images, torch.tensor([90.0, 0.0, -90.0]))
    for index, times in enumerate((1, 0, -1)):
        expected = images[index].rot90(times, (1, 2))
        assert torch.allclose(quarter[index], expected, atol=1e-5)
        assert torch.equal(quarter[index] == -1, expected == -1)


def test_what_turns_in_from_beyond_an_image_is_background():
    whole = torch.zeros(1, 1, SIDE, SIDE)
    image = rotated(whole, torch.tensor([20.0]))
    assert image[0, 0, 0, 0] == image[0, 0, -1, -1] == -1
    assert torch.allclose(image[0, 0, 8:24, 8:24], whole[0, 0, 8:24, 8:24], atol=1e-6)


def test_grids_turn_by_ten_degrees_resize_by_a_tenth_and_bend_a_little():
    grids = warp_grids(300, SIDE, np.random.default_rng(0)).numpy()
    line = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    plain = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    turns, sizes, bends = [], [], []
    for grid in grids.reshape(300, -1, 2):
        fitted, *_ = np.linalg.lstsq(plain, grid, rcond=None)
        bends.append(np.abs(grid - plain @ fitted).max())
        turns.append(
            np.rad2deg(np.arctan2(fitted[0, 1] - fitted[1, 0], fitted[0, 0] + fitted[1, 1]))
        )
        sizes.append(1 / np.sqrt(np.linalg.det(fitted[:2])))
    # the least squares take a part of the bends for turns and sizes
    assert max(turns) == pytest.approx(10, abs=1) and min(turns) == pytest.approx(-10, abs=1)
    assert max(sizes) == pytest.approx(1.1, abs=0.03) and min(sizes) == pytest.approx(0.9, abs=0.03)
    assert 0.01 < np.median(bends) < 0.08
    assert (
        np.abs(grids).max() < 1 + 2 * MARGIN
    )  # no pixel of a warped square is read from beyond its margin


def test_a_quarter_turn_is_that_of_torch():
    images = brain_of()
    warped = warp_images(images, turned(90).expand(3, -1, -1, -1))
    assert torch.allclose(warped, torch.rot90(images, 1, (2, 3)), atol=1e-4)


def test_a_square_is_read_from_the_middle_of_a_wider_image():
    images = brain_of()
    identity = F.affine_grid(
        torch.eye(2, 3)[None].expand(3, -1, -1), [3, 1, 16, 16], align_corners=False
    )
    assert torch.allclose(warp_images(images, identity), images[..., 8:24, 8:24], atol=1e-5)
    labels = (images[:, 0] > 0).long() * 3
    assert torch.equal(warp_labels(labels, identity), labels[:, 8:24, 8:24])


def test_pixels_within_the_brain_are_interpolated_as_scipy_does():
    noise = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, SIDE, SIDE, generator=noise) * 1.8 - 0.9
    grid = turned(7, scale=1.3)  # nothing from beyond the edge
    x, y = ((grid[0, ..., axis].numpy() + 1) * SIDE / 2 - 0.5 for axis in (0, 1))
    expected = map_coordinates(image[0, 0].numpy(), [y, x], order=1)
    assert np.allclose(warp_images(image, grid)[0, 0].numpy(), expected, atol=1e-4)


def test_the_rim_of_the_brain_does_not_darken_and_labels_keep_to_it():
    images = torch.full((1, 1, SIDE, SIDE), -1.0)
    images[..., 8:24, 6:26] = 0.4
    grid = warp_grids(1, SIDE, np.random.default_rng(1))
    warped = warp_images(images, grid)
    inside = warped > -1
    assert torch.allclose(warped[inside], torch.tensor(0.4), atol=1e-5)
    assert 200 < inside.sum() < 450  # 320 pixels, up to a tenth larger or smaller in each direction
    assert torch.equal(warp_labels((images[:, 0] > -1).long() * 2, grid), inside[:, 0].long() * 2)


# --- samplers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alike() -> SliceStore:
    """Return a store of one case whose modalities are all the same image; bright pixels have label 3."""
    store = store_of_cases({"A": FOUR}, segmented={"A": list(range(5))})
    pixels = np.full((SIDE, SIDE), -STEPS, dtype=np.int16)
    pixels[4:28, 6:26] = np.random.default_rng(0).choice([-9000, 20000], (24, 20))
    labels = np.where(pixels > 0, 3, 0).astype(np.uint8)
    return replace(
        store,
        data=np.repeat(pixels[None], len(store.data), axis=0),
        labels=np.repeat(labels[None], 5, axis=0),
        tumour=np.ones(5, dtype=bool),
    )


@pytest.mark.parametrize("crop", [0, 16])
def test_a_pair_is_warped_as_its_source_is_and_references_by_themselves(crop, alike):
    sampler = DomainSampler(alike, batch_size=16, seed=0, many=True, crop=crop, warp=1.0)
    plain = DomainSampler(alike, batch_size=16, seed=0, many=True, crop=crop).batch(0)
    batch = sampler.batch(0)
    assert batch.x_src.shape == plain.x_src.shape
    assert torch.equal(batch.x_src, batch.x_pair)
    for index in range(16):
        for modality in torch.nonzero(batch.given[index])[:, 0]:
            assert torch.equal(batch.x_all[index, modality], batch.x_src[index])
        assert not torch.equal(batch.x_src[index], plain.x_src[index])
        assert not torch.equal(batch.x_src[index], batch.x_ref[index])
        assert not torch.equal(batch.x_ref2[index], batch.x_ref[index])


@pytest.mark.parametrize("crop", [0, 16])
def test_labels_and_neighbours_are_warped_with_their_case(crop, alike):
    sampler = CaseSampler(alike, all_others, batch_size=8, seed=0, context=1, crop=crop, warp=1.0)
    batch = sampler.batch(0)
    for modality in range(4):
        planes = batch.source(modality)
        there = planes.ne(-1).flatten(2).any(dim=2)
        for index in range(8):
            assert all(torch.equal(one, planes[index, 1]) for one in planes[index][there[index]])
    sure = batch.images[:, 0] > 0.55  # hardly any of a dark neighbour in it
    assert batch.labels[sure].eq(3).float().mean() > 0.99
    assert batch.labels[batch.images[:, 0] < -0.2].eq(0).all()


def test_a_share_of_places_is_warped_and_the_others_are_what_they_were(alike):
    plain, half = (
        CaseSampler(alike, all_others, batch_size=64, seed=0, crop=16, warp=share).batch(0)
        for share in (0.0, 0.5)
    )
    same = (plain.images == half.images).flatten(1).all(dim=1)
    assert 16 < same.sum() < 48  # 32, standard deviation 4
    assert torch.equal(plain.labels[same], half.labels[same])
    assert torch.equal(plain.sources, half.sources)


def test_warped_squares_see_beyond_themselves():
    store = store_of_cases({"A": FOUR})
    store = replace(store, data=np.zeros((len(store.data), 64, 64), dtype=np.int16))
    # whole slices of nothing but brain have background in their corners when they are turned, squares in the middle
    # of one have none
    whole = CaseSampler(store, all_others, batch_size=16, seed=0, warp=1.0).batch(0)
    assert (whole.images == -1).any()
    squares = CaseSampler(store, all_others, batch_size=16, seed=0, crop=16, warp=1.0)
    inside = [
        image
        for step in range(4)
        for batch in [squares.batch(step)]
        for image in batch.images
        if image.ne(-1).all()
    ]
    assert len(inside) > 32  # the others touch the edge of the slice


def test_the_appearance_of_sources_alone_is_changed(alike):
    plain, changed = (
        DomainSampler(alike, batch_size=8, seed=0, many=many, crop=16, augment=share).batch(0)
        for many, share in ((True, 0.0), (True, 1.0))
    )
    for name in ("x_ref", "x_ref2", "x_pair", "given"):
        assert torch.equal(getattr(plain, name), getattr(changed, name))
    for index in range(8):
        assert not torch.equal(plain.x_src[index], changed.x_src[index])
        assert torch.equal(changed.x_all[index, changed.y_src[index]], changed.x_src[index])
    assert torch.equal(plain.x_all == -1, changed.x_all == -1)
    single = DomainSampler(alike, batch_size=8, seed=0, crop=16, augment=1.0).batch(0)
    assert not torch.equal(single.x_src, plain.x_src)
    assert torch.equal(single.x_src == -1, plain.x_src == -1)


def test_what_a_case_is_to_teach_keeps_its_appearance(alike):
    plain, changed = (
        CaseSampler(
            alike, all_others, batch_size=16, seed=0, leave_out=1.0, context=1, augment=share
        ).batch(0)
        for share in (0.0, 0.5)
    )
    same = (plain.images == changed.images).flatten(2).all(dim=2)
    assert same[~plain.sources].all()
    assert torch.equal(plain.labels, changed.labels)
    rows = same.all(dim=1)
    assert 2 < rows.sum() < 14  # 8, standard deviation 2
    assert not same[plain.sources & ~rows[:, None]].any()


def test_augmented_batches_are_a_function_of_seed_and_step(alike):
    for kind, rule in ((DomainSampler, ()), (CaseSampler, (all_others,))):
        one, two = (
            kind(alike, *rule, batch_size=4, seed=0, crop=16, warp=0.5, augment=0.5)
            for _ in range(2)
        )
        one.batch(0)
        first, again = one.batch(3), two.batch(3)
        name = "x_src" if kind is DomainSampler else "images"
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(one.batch(4), name))


@pytest.mark.parametrize("setting", ["augment", "warp"])
@pytest.mark.parametrize("name", ["attcl-gan", "plave", "unet"])
def test_every_method_of_ours_hands_its_settings_on(name, setting, alike):
    sources = []
    for share in (0.0, 1.0):
        settings = small_settings(name, image_size=32, crop=16, **{setting: share})
        batch = METHODS[name](settings, FOUR).sampler(alike).batch(0)
        sources.append(batch.x_src if hasattr(batch, "x_src") else batch.images[batch.sources])
    assert not torch.equal(*sources)
