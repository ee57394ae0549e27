"""Settings: the paper's values, presets, strictness, and the way through TOML and back."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from attcl_cli.errors import ProblemsError, UsageError
from attcl_cli.methods.settings import (
    PRESETS,
    VARIANTS,
    Settings,
    dump,
    explain,
    parse,
    parse_override,
    resolve,
)

# method.md, section 1: image_size, first and last width of the generator, halvings
SIZES = {
    "tiny": (64, 16, 128, 3),
    "small": (128, 32, 256, 4),
    "base": (256, 32, 256, 4),
    "paper": (256, 64, 512, 4),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_sizes_of_the_method_page(preset):
    settings = resolve(preset=preset)
    found = (settings.image_size, settings.width, settings.max_width, settings.downs)
    assert found == SIZES[preset]
    assert settings.canvas == 256


def test_preset_paper_is_the_published_set_up():
    s = resolve(preset="paper")
    assert (s.acl, s.att_adain, s.scd) == ("attention", True, True)
    assert (s.contrastive_layers, s.contrastive_patches) == ((2, 3), 256)
    assert (s.temperature, s.attention_scale) == (0.07, "sqrt")
    assert (s.lambda_sty, s.lambda_cyc, s.lambda_ds, s.lambda_patch) == (1, 1, 1, 1)
    assert (s.lambda_r1, s.lambda_scd, s.lambda_pair) == (1, 0.1, 0)
    assert (s.learning_rate, s.learning_rate_mapping) == (1e-4, 1e-6)
    assert (s.beta1, s.beta2, s.weight_decay) == (0, 0.99, 1e-4)
    assert (s.batch_size, s.ema_decay) == (8, 0.999)
    assert (s.style_dim, s.latent_dim, s.mapping_width) == (64, 16, 512)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "paper"])
def test_beside_a_paired_term_the_contrastive_loss_weighs_what_it_does_in_plave(preset):
    s = resolve(preset=preset)
    assert s.lambda_pair > 0
    assert s.lambda_patch / s.lambda_pair == s.plave_lambda_patch / s.plave_lambda_image


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(ValidationError, match="frozen"):
        resolve(preset="tiny").seed = 1


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(preset="papr")
    assert caught.value.message == "--preset: 'papr', expected one of tiny, small, base, paper"
    assert caught.value.hint == "did you mean 'paper'?"


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={"lamda_scd": 1.0})
    assert caught.value.message.startswith("setting 'lamda_scd': no such setting")
    assert caught.value.hint == "did you mean 'lambda_scd'?"


def test_a_key_like_no_other_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={"xyzzyxyzzy": 1})
    assert "image_size" in caught.value.hint


def test_an_ill_typed_value_is_named_with_what_was_found():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={"batch_size": "many"})
    assert caught.value.message.startswith("setting batch_size: found 'many', ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("lambda_scd", -1.0),
        ("lambda_cyc", float("nan")),
        ("lambda_cyc", float("inf")),
        ("learning_rate", 0.0),
        ("learning_rate", 1.0),
        ("temperature", 0.0),
        ("scd_bound", 0.0),
        ("downs", 0),
        ("downs", 7),
        ("seed", -1),
        ("ema_decay", 1.0),
        ("acl", "some"),
        ("attention_scale", "cube"),
        ("contrastive_layers", [0]),
    ],
)
def test_a_value_out_of_bounds_is_an_error_of_its_key(key, value):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={key: value})
    assert caught.value.message.startswith(f"setting {key}")


def test_several_problems_are_told_at_once():
    with pytest.raises(ProblemsError) as caught:
        resolve(preset="tiny", overrides={"batch_size": 0, "steps": "x", "lambda_r1": -1})
    keys = {problem.message.split(":")[0] for problem in caught.value.problems}
    assert keys == {"setting batch_size", "setting lambda_r1", "setting steps"}


def test_several_unknown_keys_are_told_at_once():
    with pytest.raises(ProblemsError) as caught:
        resolve(preset="tiny", overrides={"one": 1, "two": 2})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"image_size": 48}, "image_size: 48, expected a power of two of at least 16"),
        ({"image_size": 8}, "image_size: 8, expected a power of two of at least 16"),
        ({"image_size": 64, "canvas": 240}, "canvas: 240, expected a multiple of image_size (64)"),
        ({"image_size": 32, "downs": 4}, "downs: 4, expected at most 3 at image_size 32"),
        (
            {"contrastive_layers": [1, 5]},
            "contrastive_layers: [5], expected layers from 1 to downs (4)",
        ),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(values, complaint):
    with pytest.raises(UsageError) as caught:
        parse({"downs": 4} | values)
    assert caught.value.message == f"setting {complaint}"


@pytest.mark.parametrize("layers", [[], [2, 2]])
def test_contrastive_layers_are_some_and_each_once(layers):
    with pytest.raises(UsageError, match="contrastive_layers"):
        parse({"contrastive_layers": layers})


def test_no_contrastive_layer_is_needed_where_none_is_used():
    settings = parse({"contrastive_layers": [], "acl": "none", "att_adain": False})
    assert settings.contrastive_layers == ()


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("contrastive_layers", 1, "lists are written [1, 2]; --dry-run shows every setting"),
        ("scd", "maybe", "expected true or false; --dry-run shows every setting"),
        ("acl", "kut", "--dry-run shows every setting"),
    ],
)
def test_a_wrong_value_is_told_how_it_is_written(key, value, hint):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={key: value})
    assert str(caught.value).startswith(f"setting {key}: found {value!r}, ")
    assert caught.value.hint == hint


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_toml(preset, tmp_path):
    settings = resolve(preset=preset, overrides={"seed": 7})
    file = tmp_path / "config.toml"
    file.write_text(dump(settings), encoding="utf-8")
    assert resolve(preset="paper", file=file) == settings
    assert parse(tomllib.loads(dump(settings))) == settings


def test_dump_holds_every_key():
    assert list(tomllib.loads(dump(Settings()))) == list(Settings.model_fields)


def test_a_file_beats_the_preset_and_overrides_beat_the_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("steps = 5\nbatch_size = 3\n")
    settings = resolve(preset="tiny", file=file, overrides={"batch_size": 2})
    assert (settings.steps, settings.batch_size, settings.image_size) == (5, 2, 64)


def test_a_file_may_name_its_preset(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('preset = "small"\nsteps = 5\n')
    settings = resolve(preset="tiny", file=file)
    assert (settings.image_size, settings.steps) == (128, 5)


@pytest.mark.parametrize("content", ["steps 5", "steps = "])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "config.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"config\.toml: not readable as TOML"):
        resolve(preset="tiny", file=file)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=r"config\.toml: no such file, expected"):
        resolve(preset="tiny", file=tmp_path / "config.toml")


def test_settings_that_only_another_method_looks_at_are_refused(tmp_path):
    with pytest.raises(UsageError, match="setting plave_target: is PLAVE's"):
        resolve(preset="tiny", overrides={"plave_target": "t1"})
    file = tmp_path / "config.toml"
    file.write_text(dump(resolve(preset="tiny")))  # every run's own has them all
    assert resolve(preset="tiny", file=file) == resolve(preset="tiny")


def test_settings_are_explained_for_their_method_alone():
    own = explain(resolve(preset="tiny"))
    assert "lambda_scd = 0.1  # AttCL-GAN: style code diversity (Eq 11)." in own.splitlines()
    assert "plave_" not in own
    plave = explain(resolve(preset="tiny", overrides={"method": "plave"}))
    assert "plave_blocks = 6" in plave and "lambda_scd" not in plave
    assert tomllib.loads(own)["image_size"] == 64


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("lambda_scd=0.2", ("lambda_scd", 0.2)),
        ("att_adain=false", ("att_adain", False)),
        ("contrastive_layers=[1, 2]", ("contrastive_layers", [1, 2])),
        ("acl=cut", ("acl", "cut")),
        ('acl="cut"', ("acl", "cut")),
        (" steps = 10 ", ("steps", 10)),
        ("learning_rate=1e-4", ("learning_rate", 1e-4)),
    ],
)
def test_set_reads_toml_values_and_bare_words(text, pair):
    assert parse_override(text) == pair


@pytest.mark.parametrize("text", ["steps", "=5", ""])
def test_set_without_key_or_value_is_an_error(text):
    with pytest.raises(UsageError, match="expected KEY=VALUE"):
        parse_override(text)


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
    found = {name: resolve(preset="tiny", variant=name) for name in VARIANTS}
    assert {name: (s.acl, s.att_adain, s.scd) for name, s in found.items()} == TABLE_4


def test_a_variant_changes_the_switches_alone_and_overrides_beat_it():
    plain = resolve(preset="small").model_dump()
    variant = resolve(preset="small", variant="stargan-v2").model_dump()
    assert {key for key in plain if plain[key] != variant[key]} == {"acl", "att_adain", "scd"}
    assert resolve(preset="small", variant="scd", overrides={"scd": False}).scd is False


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(UsageError, match="--variant: 'stargan', expected one of") as caught:
        resolve(preset="tiny", variant="stargan")
    assert caught.value.hint == "did you mean 'stargan-v2'?"
