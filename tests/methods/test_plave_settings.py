"""The settings of PLAVE: the paper's values, its own presets, and which models it makes of them."""

from __future__ import annotations

import pytest

from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import parse, parse_first_schema, resolve


def test_preset_paper_is_the_published_set_up():
    s = resolve(preset="paper", method="plave")
    assert (s.beta1, s.beta2, s.learning_rate, s.batch_size) == (0.5, 0.999, 1e-4, 4)
    # 200 epochs of the auto-encoder, 300 of the rest, the last 100 with falling steps; all slices with tumour
    assert (s.epochs, s.plave_pretraining * s.epochs, s.learning_rate_decay * s.epochs) == (
        500,
        200,
        100,
    )
    assert (s.slice_span, s.plave_tumour_slices) == ("all", 1.0)
    assert (s.plave_lambda_image, s.plave_lambda_patch, s.plave_lambda_seg) == (100, 0.1, 0.1)
    assert (s.plave_lambda_branch, s.plave_lambda_fused, s.plave_lambda_decoder) == (0.1, 0.1, 0.05)
    assert (s.plave_lambda_adv, s.plave_lambda_discriminator) == (1, 0.5)
    assert (s.contrastive_patches, s.temperature, s.attention_scale) == (256, 0.07, "none")
    assert (s.plave_norm, s.plave_excitation, s.plave_fusion) == ("batch", "each", "modality")
    assert (s.plave_contrast, s.plave_divergence) == ("attended", "elements")
    assert (s.plave_blocks, s.plave_autoencoder_blocks) == (6, 6)
    assert (s.ema_decay, s.keep, s.plave_loads) == (0, "last", False)
    ours = (s.plave_skips, s.plave_brain, s.keep_background, s.mirror, s.crop, s.weight_decay)
    assert not any((*ours, s.plave_supervised, s.plave_coarse, s.plave_ramp))
    assert s.plave_lambda_structure == 0


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_our_presets_make_any_modality_and_start_with_the_image_terms(preset):
    s = resolve(preset=preset, method="plave")
    assert (s.plave_norm, s.plave_fusion, s.attention_scale) == ("adain", "position", "sqrt")
    assert (s.epochs, s.keep, s.ema_warm_up) == (0, "best", True)
    assert s.plave_pretraining <= 0.1
    assert s.plave_supervised > 0 and s.plave_ramp > 0
    assert s.plave_brain and s.plave_lambda_structure > 0


def test_small_sees_squares_of_full_resolution_slices_at_first_at_half_the_resolution():
    s = resolve(preset="small", method="plave")
    assert (s.image_size, s.canvas, s.crop) == (256, 256, 128)
    assert 0 < s.plave_coarse < s.plave_supervised
    # the weights of its fusion belong to maps of one size
    assert resolve(preset="small", method="plave", variant="aca-gan").plave_coarse == 0
    assert resolve(preset="tiny", method="plave").image_size == 64


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"plave_pretraining": 0.5, "plave_supervised": 0.4, "plave_ramp": 0.2},
            "setting plave_ramp: 0.2 after plave_pretraining (0.5) and plave_supervised (0.4), "
            "expected a sum of at most 1",
        ),
        (
            {"plave_lambda_image": 0, "plave_lambda_structure": 0},
            "setting plave_supervised: 0.5, expected 0, and plave_coarse 0, "
            "without plave_lambda_image and plave_lambda_structure",
        ),
        (
            {"plave_coarse": 0.6, "plave_supervised": 0.5},
            "setting plave_coarse: 0.6, expected at most plave_supervised (0.5): "
            "only the image terms are learned from at half the resolution",
        ),
        (
            {"plave_coarse": 0.2, "plave_fusion": "modality"},
            "setting plave_coarse: 0.2, expected 0 with plave_fusion modality, "
            "whose weights belong to maps of one size",
        ),
    ],
)
def test_phases_that_do_not_fit_together_are_refused(values, complaint):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method="plave", overrides=values)
    assert caught.value.message == complaint


# What a run of version 0.1 wrote of PLAVE's own settings and of those that it changes.
WRITTEN_BEFORE = {
    "method": "plave",
    "steps": 3000,
    "attention_scale": "sqrt",
    "ema_decay": 0.995,
    "plave_target": "",
    "plave_blocks": 6,
    "plave_skips": True,
    "plave_pretraining": 0.1,
    "plave_lambda_image": 100.0,
}


@pytest.mark.parametrize("read", [parse, parse_first_schema])
def test_an_older_run_keeps_the_networks_and_losses_that_it_had(read):
    s = read(WRITTEN_BEFORE)
    assert (s.plave_norm, s.plave_fusion, s.plave_excitation) == ("adain", "position", "last")
    assert (s.plave_contrast, s.plave_autoencoder_blocks) == ("following", 0)
    assert (s.plave_divergence, s.plave_lambda_discriminator) == ("positions", 1.0)
    assert (s.keep, s.ema_warm_up, s.epochs, s.slice_span) == ("best", True, 0, "middle")
    assert (s.plave_supervised, s.plave_lambda_structure, s.plave_brain) == (0, 0, False)
    assert (s.ema_decay, s.plave_skips, s.steps) == (0.995, True, 3000)
    assert (s.learning_rate_decay, s.attention_scale) == (0, "sqrt")


def test_weights_of_an_older_run_fit_the_networks_of_its_settings():
    settings = parse(
        {**WRITTEN_BEFORE, "width": 4, "max_width": 8, "style_dim": 8, "plave_blocks": 1}
    )
    method = METHODS["plave"](settings, ("flair", "t1"))
    conv = [f"{place}.{name}" for place in ("conv", "norm.affine") for name in ("weight", "bias")]
    branch = ["stem", "down.0", "down.1"]
    excitation = [
        f"attention.mlp.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")
    ]
    fusion = [*(f"score.{slot}" for slot in range(2)), "mix"]
    block = ("norm1.affine", "norm2.affine", "conv1", "conv2")
    both = ("weight", "bias")
    expected = {
        "code.weight",
        *(f"branches.{slot}.{part}.{key}" for slot in range(2) for part in branch for key in conv),
        *(f"branches.{slot}.{key}" for slot in range(2) for key in excitation),
        *(
            f"{at}.{part}.{key}"
            for at in ("fusion", "skip.0", "skip.1")
            for part in fusion
            for key in both
        ),
        *(f"next.{key}" for key in conv),
        *(f"trunk.0.{part}.{key}" for part in block for key in both),
        *(f"decoder.up.{level}.{key}" for level in range(2) for key in conv),
        "decoder.last.weight",
        "decoder.last.bias",
    }
    assert set(method.generator.state_dict()) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_same_slices_whatever_the_method(preset):
    plave, attcl_gan = (resolve(preset=preset, method=name) for name in ("plave", "attcl-gan"))
    for name in ("image_size", "canvas", "crop"):
        assert getattr(plave, name) == getattr(attcl_gan, name)


def test_what_the_user_says_is_stronger_than_the_methods_defaults():
    s = resolve(preset="tiny", overrides={"method": "plave", "batch_size": 2, "beta2": 0.9})
    assert (s.batch_size, s.beta2, s.beta1) == (2, 0.9, 0.5)
    assert resolve(preset="tiny").batch_size == 8


def test_32_pixels_are_enough_for_two_halvings():
    assert resolve(preset="tiny", method="plave", overrides={"image_size": 32}).image_size == 32


def test_variants_are_plave_s_ancestors():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", variant="scd", overrides={"method": "plave"})
    assert caught.value.code == "unknown-variant"
    assert caught.value.message == (
        "--variant: unknown variant 'scd' of PLAVE, expected one of aca-gan, ae-gan, auto-gan"
    )


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        ({"plave_segmentation": False}, "plave_lambda_seg: 0.1, expected 0 with plave_segmentation false"),
        ({"plave_contrast": "none"}, "plave_lambda_patch: 0.1, expected 0 with plave_contrast none"),
    ],
)  # fmt: skip
def test_a_loss_without_its_network_is_refused(network, complaint):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method="plave", overrides=network)
    assert caught.value.message == f"setting {complaint}"
