"""Each equation against numbers computed by hand, torch's own losses, or a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import similarity
from torch.nn import functional as F

from attcl_cli.methods import losses

LOGITS = torch.tensor([0.0, 2.0, -3.0])


def test_real_and_fake_loss_of_logit_zero_are_log_2():
    assert losses.real_loss(torch.zeros(4)).item() == pytest.approx(math.log(2))
    assert losses.fake_loss(torch.zeros(4)).item() == pytest.approx(math.log(2))


def test_real_and_fake_loss_are_binary_cross_entropy_on_logits():
    real = F.binary_cross_entropy_with_logits(LOGITS, torch.ones(3))
    fake = F.binary_cross_entropy_with_logits(LOGITS, torch.zeros(3))
    assert losses.real_loss(LOGITS).item() == pytest.approx(real.item())
    assert losses.fake_loss(LOGITS).item() == pytest.approx(fake.item())


def test_the_generators_loss_does_not_saturate_where_d_is_sure():
    logits = torch.tensor([-20.0], requires_grad=True)
    losses.real_loss(logits).backward()
    assert logits.grad.item() == pytest.approx(-1)


def test_r1_of_a_quadratic_is_half_the_squared_gradient():
    # D(x) = 3 |x|^2 / 2, gradient 3 x: R1 = 0.5 * 9 |x|^2, mean over the batch
    x = torch.tensor([[[[1.0, 2.0]]], [[[0.0, -1.0]]]], requires_grad=True)
    logits = 1.5 * x.pow(2).sum(dim=(1, 2, 3))
    assert losses.r1_penalty(logits, x).item() == pytest.approx((0.5 * 9 * 5 + 0.5 * 9 * 1) / 2)


def test_r1_is_learnt_from():
    slope = torch.tensor(2.0, requires_grad=True)
    x = torch.ones(1, 1, 1, 3, requires_grad=True)
    losses.r1_penalty((slope * x).sum(dim=(1, 2, 3)), x).backward()
    assert slope.grad.item() == pytest.approx(6)  # 0.5 * 3 * slope^2


def test_r1_of_one_slice_does_not_depend_on_the_others():
    x = torch.randn(3, 1, 2, 2, requires_grad=True)

    def r1(images: torch.Tensor) -> torch.Tensor:
        return losses.r1_penalty(images.pow(3).sum(dim=(1, 2, 3)), images)

    alone = [r1(x[index : index + 1]).item() for index in range(3)]
    assert r1(x).item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [losses.style_loss, losses.diversity_loss, losses.cycle_loss])
def test_style_diversity_and_cycle_loss_are_l1(loss):
    first, second = torch.tensor([[1.0, -2.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [1.0, 4.0]])
    assert loss(first, second).item() == pytest.approx((1 + 2 + 1 + 0) / 4)
    assert loss(first, second).item() == pytest.approx(F.l1_loss(first, second).item())


def test_scd_is_the_mean_distance_to_the_code_of_the_own_domain():
    # own code (0, 0); the others at distance 5 and 13, and itself at 0: (0 + 5 + 13) / 3
    codes = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [5.0, 12.0]]])
    value = losses.style_code_diversity(codes, torch.tensor([1]), bound=100)
    assert value.item() == pytest.approx(6)


def test_scd_is_the_mean_over_the_batch():
    codes = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
    value = losses.style_code_diversity(codes, torch.tensor([0, 1]), bound=100)
    assert value.item() == pytest.approx((5 / 2 + 2 / 2) / 2)


def test_scd_counts_no_distance_beyond_its_bound_and_pushes_no_further():
    codes = torch.tensor([[[0.0, 0.0], [0.0, 3.0], [0.0, 100.0]]], requires_grad=True)
    value = losses.style_code_diversity(codes, torch.tensor([0]), bound=10)
    value.backward()
    assert value.item() == pytest.approx((0 + 3 + 10) / 3)
    assert codes.grad[0, 1].tolist() == pytest.approx([0, 1 / 3])
    assert codes.grad[0, 2].tolist() == [0, 0]


def test_scd_of_equal_codes_is_zero_with_a_finite_gradient():
    codes = torch.ones(2, 3, 4, requires_grad=True)
    value = losses.style_code_diversity(codes, torch.tensor([0, 2]), bound=10)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(codes.grad).all()


def test_patch_nce_is_equation_1_in_a_plain_loop():
    queries = F.normalize(torch.randn(2, 5, 8, dtype=torch.float64), dim=-1)
    keys = F.normalize(torch.randn(2, 5, 8, dtype=torch.float64), dim=-1)
    total = 0.0
    for b in range(2):
        for r in range(5):
            scores = [math.exp(float(queries[b, r] @ keys[b, n]) / 0.07) for n in range(5)]
            total -= math.log(scores[r] / sum(scores))
    value = losses.patch_nce(queries, keys, temperature=0.07)
    assert value.item() == pytest.approx(total / 10, rel=1e-10)


def test_patch_nce_takes_no_negatives_from_other_images():
    queries, keys = (F.normalize(torch.randn(2, 4, 8), dim=-1) for _ in range(2))
    alone = [
        losses.patch_nce(queries[b : b + 1], keys[b : b + 1], temperature=0.07) for b in (0, 1)
    ]
    both = losses.patch_nce(queries, keys, temperature=0.07)
    assert both.item() == pytest.approx(float(sum(alone)) / 2, rel=1e-5)


def test_patch_nce_of_orthogonal_patches_has_a_closed_form():
    # e_r against e_1 .. e_R: -log(exp(1/tau) / (exp(1/tau) + R - 1))
    rows = torch.eye(6)[None]
    value = losses.patch_nce(rows, rows, temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + 5 * math.exp(-2)), rel=1e-5)


def test_keys_carry_no_gradient():
    queries = torch.randn(1, 3, 4, requires_grad=True)
    keys = torch.randn(1, 3, 4, requires_grad=True)
    losses.patch_nce(queries, keys, temperature=0.07).backward()
    assert keys.grad is None
    assert queries.grad.abs().sum() > 0


def paired_example() -> tuple[torch.Tensor, torch.Tensor]:
    fake = torch.stack([torch.full((1, 2, 2), value) for value in (0.0, 1.0, 5.0)])
    return fake, torch.zeros(3, 1, 2, 2)


def test_the_paired_loss_is_l1_over_the_slices_that_have_a_pair():
    fake, pair = paired_example()
    value = losses.paired_loss(fake, pair, torch.tensor([True, True, False]))
    assert value.item() == pytest.approx(0.5)


def test_the_brightest_pixels_of_the_truth_count_more_often_where_that_is_set():
    pair = torch.tensor([0.9, 0.8, 0.0, -1.0]).view(1, 1, 2, 2)
    fake = torch.tensor([0.4, 0.7, 0.9, -0.8]).view(1, 1, 2, 2)  # bright where the truth is not
    has = torch.ones(1, dtype=torch.bool)
    once = losses.paired_loss(fake, pair, has)
    value = losses.paired_loss(fake, pair, has, bright=10.0)
    assert once.item() == pytest.approx((0.5 + 0.1 + 0.9 + 0.2) / 4)
    assert value.item() == pytest.approx((10 * 0.5 + 0.1 + 0.9 + 0.2) / 4)


def test_the_paired_loss_without_any_pair_is_zero_and_teaches_nothing():
    fake, pair = paired_example()
    fake.requires_grad_()
    value = losses.paired_loss(fake, pair, torch.zeros(3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert not fake.grad.any()


def test_paired_losses_of_equal_parts_average_to_that_of_the_whole():
    fake, pair = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    has = torch.tensor([True, False, True, True])
    whole = losses.paired_loss(fake, pair, has)
    parts = [
        losses.paired_loss(fake[rows], pair[rows], has[rows], share=0.75)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_structure_loss_is_one_minus_ssim_in_the_brain_of_the_slices_that_have_a_pair():
    pair = torch.rand(3, 1, 16, 16) * 2 - 1
    pair[:, :, :, :6] = -1
    pair[1, :, :8] = -1  # half the brain of the first
    fake = pair + 0.3 * torch.randn(pair.shape)
    apart = 1 - similarity(fake, pair)
    each = [apart[index][pair[index] > -1].mean().item() for index in range(3)]
    assert max(each) - min(each) > 1e-3
    has = torch.tensor([True, True, False])
    value = losses.structure_loss(fake, pair, has)
    assert value.item() == pytest.approx((each[0] + each[1]) / 2, rel=1e-5)
    # of parts of one slice each, two of three slices with a pair
    parts = [
        losses.structure_loss(*(item[[index]] for item in (fake, pair, has)), share=2 / 3).item()
        for index in range(3)
    ]
    assert parts == pytest.approx([each[0] * 1.5, each[1] * 1.5, 0], rel=1e-5)


def test_the_structure_loss_is_the_same_in_bf16_networks():
    # Where contrast is low, a variance is a small difference of large numbers.
    true = 0.8 + 0.02 * torch.randn(2, 1, 32, 32)
    fake, pairs = true + 0.02 * torch.randn(2, 1, 32, 32), torch.tensor([True, True])
    exact = losses.structure_loss(fake, true, pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses.structure_loss(fake, true, pairs)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, exact)


def test_the_structure_loss_is_zero_without_a_pair_and_without_a_brain():
    fake, empty = torch.rand(2, 1, 16, 16), torch.full((2, 1, 16, 16), -1.0)
    everywhere = torch.ones(2, dtype=torch.bool)
    assert losses.structure_loss(fake, fake, ~everywhere) == 0
    assert losses.structure_loss(fake, empty, everywhere) == 0
    assert losses.structure_loss(fake, fake, everywhere).item() == pytest.approx(0, abs=1e-5)


# --- PLAVE's ----------------------------------------------------------------------------------------------------------


def test_the_branch_loss_is_the_mean_square_over_the_sources_that_are_there():
    features = torch.tensor([1.0, 2.0, 9.0])[None, :, None, None, None].expand(1, 3, 2, 2, 2)
    expected = torch.zeros(1, 2, 2, 2)
    there = torch.tensor([[True, True, False]])
    assert losses.branch_loss(features, expected, there).item() == pytest.approx((1 + 4) / 2)


def test_the_image_loss_in_the_brain_leaves_out_the_background_and_weighs_slices_alike():
    real = torch.full((2, 1, 4, 4), -1.0)
    real[0, 0, :2] = 0.5  # 8 pixels of brain
    real[1, 0, 0, 0] = 0.0  # one
    fake = real + 1  # wrong by 1 everywhere
    fake[1, 0, 0, 0] = 3.0
    assert losses.image_loss(fake, real, brain=True).item() == pytest.approx((1 + 3) / 2)
    assert losses.image_loss(fake, real).item() == pytest.approx((31 + 3) / 32)
    empty = torch.full((1, 1, 4, 4), -1.0)
    assert losses.image_loss(empty + 1, empty, brain=True) == 0


def test_every_case_weighs_the_same_in_the_branch_loss_however_many_sources_it_has():
    features = torch.ones(2, 3, 1, 1, 1)
    features[1] = 3.0
    there = torch.tensor([[True, False, False], [True, True, True]])
    value = losses.branch_loss(features, torch.zeros(2, 1, 1, 1), there)
    assert value.item() == pytest.approx((1 + 9) / 2)


def test_the_decoder_loss_is_the_kl_divergence_over_channels_at_each_position():
    expected = torch.tensor([0.75, 0.25]).log()[None, :, None, None].expand(1, 2, 3, 4)
    features = torch.tensor([0.5, 0.5]).log()[None, :, None, None].expand(1, 2, 3, 4)
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    value = losses.decoder_loss([features], [expected], scale="positions")
    assert value.item() == pytest.approx(by_hand)
    # a constant added to all channels is the same distribution
    value = losses.decoder_loss([expected + 5], [expected], scale="positions")
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_the_decoder_loss_of_ae_gan_is_the_mean_over_all_elements_summed_over_layers():
    pairs = [(torch.randn(2, c, 3, 3), torch.randn(2, c, 3, 3)) for c in (5, 8)]
    expected = sum(
        F.kl_div(a.log_softmax(1), b.softmax(1), reduction="none").mean() for a, b in pairs
    )
    value = losses.decoder_loss(*zip(*pairs, strict=True), scale="elements")
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    # of one layer with 5 channels: a fifth of the divergence at each position
    layer, true = ([item] for item in pairs[0])
    by_position = losses.decoder_loss(layer, true, scale="positions")
    assert losses.decoder_loss(layer, true).item() == pytest.approx(by_position.item() / 5)


def test_our_decoder_loss_is_torch_s_and_the_mean_over_layers():
    pairs = [(torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)) for _ in range(2)]
    expected = [
        F.kl_div(a.log_softmax(1), b.log_softmax(1), log_target=True, reduction="none")
        .sum(1)
        .mean()
        for a, b in pairs
    ]
    value = losses.decoder_loss(*zip(*pairs, strict=True), scale="positions")
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_the_self_representation_is_what_is_learned_from_not_what_learns():
    expected = torch.randn(2, 4, 3, 3, requires_grad=True)
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    total = (
        losses.fused_loss(features, expected)
        + losses.decoder_loss([features], [expected])
        + losses.branch_loss(features[:, None], expected, torch.ones(2, 1, dtype=torch.bool))
    )
    total.backward()
    assert expected.grad is None
    assert features.grad.abs().sum() > 0


def test_the_segmentation_loss_is_the_cross_entropy_of_the_cases_that_have_one():
    logits, labels = torch.randn(3, 4, 5, 5), torch.randint(4, (3, 5, 5))
    has = torch.tensor([True, False, True])
    expected = F.cross_entropy(logits[has], labels[has])
    assert losses.segmentation_loss(logits, labels, has).item() == pytest.approx(expected.item())
    none = torch.zeros(3, dtype=torch.bool)
    assert losses.segmentation_loss(logits, labels, none) == 0
