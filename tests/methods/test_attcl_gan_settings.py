"""The settings of AttCL-GAN: the paper's values, presets, what fits together, and the variants of Table 4."""

from __future__ import annotations

import pytest

from attcl_cli.errors import UsageError
from attcl_cli.methods.attcl_gan import AttclGanSettings
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import parse, resolve

# method.md, section 1: image_size, first and last width of the generator, halvings
SIZES = {
    "tiny": (64, 16, 128, 3),
    "small": (256, 24, 192, 4),
    "base": (256, 40, 320, 4),
    "paper": (256, 64, 512, 4),
}


def parsed(**values: object) -> AttclGanSettings:
    settings = parse({"method": "attcl-gan", **values})
    assert isinstance(settings, AttclGanSettings)
    return settings


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_sizes_of_the_method_page(preset):
    settings = resolve(preset=preset)
    sizes = (settings.image_size, settings.width, settings.max_width, settings.downs)
    assert sizes == SIZES[preset]
    assert settings.canvas == 256


def test_preset_paper_is_the_published_set_up():
    s = resolve(preset="paper")
    assert (s.acl, s.att_adain, s.scd) == ("attention", True, True)
    assert (s.contrastive_layers, s.contrastive_patches) == ((2, 3), 256)
    assert (s.temperature, s.attention_scale) == (0.07, "none")
    assert (s.lambda_sty, s.lambda_cyc, s.lambda_ds, s.lambda_patch) == (1, 1, 1, 1)
    assert (s.lambda_r1, s.lambda_scd, s.lambda_pair) == (1, 0.1, 0)
    assert (s.learning_rate, s.learning_rate_mapping) == (1e-4, 1e-6)
    assert (s.beta1, s.beta2, s.weight_decay) == (0, 0.99, 1e-4)
    assert (s.batch_size, s.ema_decay) == (8, 0.999)
    assert (s.style_dim, s.latent_dim, s.mapping_width) == (64, 16, 512)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "paper"])
def test_beside_a_paired_term_the_contrastive_loss_weighs_what_it_does_in_plave(preset):
    s, plave = resolve(preset=preset), resolve(preset=preset, method="plave")
    assert s.lambda_pair > 0
    assert s.lambda_patch / s.lambda_pair == plave.plave_lambda_patch / plave.plave_lambda_image


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lambda_scd", -1.0),
        ("lambda_cyc", float("nan")),
        ("lambda_cyc", float("inf")),
        ("temperature", 0.0),
        ("scd_bound", 0.0),
        ("downs", 0),
        ("downs", 7),
        ("acl", "some"),
        ("attention_scale", "cube"),
        ("contrastive_layers", [0]),
    ],
)
def test_a_value_out_of_bounds_is_an_error_of_its_key(key, value):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={key: value})
    assert caught.value.code == "invalid-setting"
    assert caught.value.message.startswith(f"setting {key}")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"image_size": 32, "downs": 4},
            "downs: 4, expected at most 3 for slices of 32 pixels",
        ),
        (
            {"image_size": 64, "downs": 4, "coarse": 0.5, "supervised": 0.5},
            "downs: 4, expected at most 3 for slices of 64 pixels with coarse",
        ),
        (
            {"coarse": 0.5, "supervised": 0.25},
            "coarse: 0.5, expected at most supervised (0.25): "
            "only true pairs are learned from at half the resolution",
        ),
        (
            {"generator": "u-net", "max_width": 100},
            "max_width: 100, expected a multiple of 8 with generator u-net",
        ),
        (
            {"generator": "u-net", "adain_start": 0.1, "shortcut_refined": True},
            "shortcut_refined: true, expected false with generator u-net",
        ),
        (
            {"contrastive_layers": [1, 5]},
            "contrastive_layers: [5], expected layers from 1 to downs (4)",
        ),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(values, complaint):
    with pytest.raises(UsageError) as caught:
        parsed(**{"downs": 4} | values)
    assert caught.value.message == f"setting {complaint}"


@pytest.mark.parametrize("layers", [[], [2, 2]])
def test_contrastive_layers_are_some_and_each_once(layers):
    with pytest.raises(UsageError, match="contrastive_layers") as caught:
        parsed(contrastive_layers=layers)
    assert caught.value.code == "invalid-setting"


def test_no_contrastive_layer_is_needed_if_none_is_used():
    settings = parsed(contrastive_layers=[], acl="none", att_adain=False)
    assert settings.contrastive_layers == ()


# the eight rows of Table 4 (ACL, AttAdaIN, SCD), and the two contrastive baselines of Table 2
TABLE_4 = {
    "stargan-v2": ("none", False, False),
    "acl": ("attention", False, False),
    "att-adain": ("none", True, False),
    "scd": ("none", False, True),
    "acl+att-adain": ("attention", True, False),
    "acl+scd": ("attention", False, True),
    "att-adain+scd": ("none", True, True),
    "attcl-gan": ("attention", True, True),
    "stargan-v2+cut": ("cut", False, False),
    "stargan-v2+qs": ("qs", False, False),
}


def test_variants_are_the_rows_of_the_papers_tables():
    variants = {name: resolve(preset="tiny", variant=name) for name in AttclGanSettings.variants}
    assert {name: (s.acl, s.att_adain, s.scd) for name, s in variants.items()} == TABLE_4


def test_a_variant_changes_the_switches_alone_and_overrides_beat_it():
    for preset, more in (("paper", set()), ("small", {"sources"})):  # as published, from one source
        plain = resolve(preset=preset).model_dump()
        variant = resolve(preset=preset, variant="stargan-v2").model_dump()
        changed = {key for key in plain if plain[key] != variant[key]}
        assert changed == {"acl", "att_adain", "scd"} | more
    assert resolve(preset="small", variant="scd", overrides={"scd": False}).scd is False


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", variant="stargan")
    assert caught.value.message.startswith("--variant: unknown variant 'stargan' of AttCL-GAN, ")
    assert caught.value.hint == "did you mean 'stargan-v2'?"
