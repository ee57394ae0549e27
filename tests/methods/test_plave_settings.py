"""The settings of PLAVE: the paper's values, its own presets, and which models it makes of them."""

from __future__ import annotations

import pytest

from attcl_cli.errors import UsageError
from attcl_cli.methods.settings import PRESETS, resolve


def test_preset_paper_is_the_published_set_up():
    s = resolve(preset="paper", method="plave")
    assert (s.beta1, s.beta2, s.learning_rate, s.batch_size) == (0.5, 0.999, 1e-4, 4)
    assert (s.plave_pretraining, s.plave_blocks, s.plave_tumour_slices) == (0.4, 6, 1.0)
    assert (s.plave_lambda_image, s.plave_lambda_patch, s.plave_lambda_seg) == (100, 0.1, 0.1)
    assert (s.plave_lambda_branch, s.plave_lambda_fused, s.plave_lambda_decoder) == (0.1, 0.1, 0.05)
    assert (s.contrastive_patches, s.temperature) == (256, 0.07)
    assert not s.plave_skips


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_same_slices_whatever_the_method(preset):
    plave, attcl_gan = (resolve(preset=preset, method=name) for name in ("plave", "attcl-gan"))
    assert plave.canvas == attcl_gan.canvas
    assert (plave.width, plave.max_width) == (attcl_gan.width, attcl_gan.max_width)


def test_what_the_user_says_is_stronger_than_the_methods_defaults():
    s = resolve(preset="tiny", overrides={"method": "plave", "batch_size": 2, "beta2": 0.9})
    assert (s.batch_size, s.beta2, s.beta1) == (2, 0.9, 0.5)
    assert resolve(preset="tiny").batch_size == 8


def test_32_pixels_are_enough_for_two_halvings():
    assert resolve(preset="tiny", method="plave", overrides={"image_size": 32}).image_size == 32


def test_plave_has_no_variants():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", variant="scd", overrides={"method": "plave"})
    assert caught.value.code == "unknown-variant"
    assert caught.value.message.startswith("--variant: 'scd' with method plave, expected none")
