"""Settings of any method: presets, files and overrides, strictness, ownership, and the way through TOML and back."""

from __future__ import annotations

import tomllib

import pytest
import tomli_w
from pydantic import ValidationError

from attcl_cli.errors import ProblemsError, UsageError
from attcl_cli.methods import METHODS, VARIANTS
from attcl_cli.methods.presets import PRESETS, parse_override
from attcl_cli.methods.settings import (
    SECTIONS,
    Settings,
    dump,
    explain,
    fixed_names,
    parse,
    parse_first_schema,
    preset_names,
    read_run_settings,
    resolve,
    section_of,
    settings_of,
    title_of,
    to_tables,
)

every_method = pytest.mark.parametrize("method", METHODS)


def test_settings_cannot_be_changed_once_made():
    with pytest.raises(ValidationError, match="frozen"):
        resolve(preset="tiny").seed = 1


# --- what adds up -----------------------------------------------------------------------------------------------------


@every_method
def test_a_preset_is_the_common_sizes_and_what_the_method_adds(method):
    kind = settings_of(method)
    for preset in preset_names(kind):
        expected = {**PRESETS.get(preset, {}), **kind.presets.get(preset, {})}
        settings = resolve(preset=preset, method=method)
        assert {key: getattr(settings, key) for key in expected} == expected


def test_common_presets_hold_sizes_of_slices_alone():
    assert {key for preset in PRESETS.values() for key in preset} <= {
        "image_size",
        "canvas",
        "crop",
    }


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(preset="papr")
    assert (
        caught.value.message
        == "--preset: unknown preset 'papr', expected one of tiny, small, base, paper"
    )
    assert caught.value.hint == "did you mean 'paper'?"
    with pytest.raises(UsageError) as caught:
        resolve(preset="published", method="plave")
    assert caught.value.hint == "paper is the published set-up of this method"


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method="plav")
    assert caught.value.code == "unknown-method"
    assert caught.value.hint == "did you mean 'plave'?"


@pytest.mark.parametrize("name", [*VARIANTS, "ACA-GAN"])
def test_a_published_method_that_is_a_variant_is_named_with_its_method(name):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method=name)
    method = VARIANTS[name.lower()]
    assert caught.value.hint == f"it is a variant: --method {method} --variant {name.lower()}"
    assert name.lower() in settings_of(method).variants


@pytest.mark.parametrize(
    ("method", "variant", "title"),
    [
        ("attcl-gan", None, "AttCL-GAN"),
        ("attcl-gan", "attcl-gan", "AttCL-GAN"),
        ("attcl-gan", "stargan-v2", "AttCL-GAN, variant stargan-v2"),
        ("attcl-gan", "acl+scd", "AttCL-GAN, variant acl+scd"),
        ("plave", None, "PLAVE"),
        ("plave", "aca-gan", "PLAVE, variant aca-gan"),
        ("plave", "auto-gan", "PLAVE, variant auto-gan (re-specified)"),
        ("w2gan", "w2gan", "W2GAN (re-specified)"),
        ("w2gan", "wavelet-loss", "W2GAN (re-specified), variant wavelet-loss"),
        ("msa-gan", "cyclegan", "MSA-GAN (re-specified), variant cyclegan"),
        ("unet", None, "U-Net"),
    ],
)
def test_a_variant_is_part_of_the_title(method, variant, title):
    for preset in ("tiny", "small", "paper"):
        overrides = {"plave_target": "t1"} if method == "plave" else {}
        settings = resolve(preset=preset, method=method, variant=variant, overrides=overrides)
        assert title_of(settings) == title


def test_a_file_beats_the_preset_and_overrides_beat_the_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("steps = 5\nbatch_size = 3\n")
    settings = resolve(preset="tiny", file=file, overrides={"batch_size": 2})
    assert (settings.steps, settings.batch_size, settings.image_size) == (5, 2, 64)


def test_a_variant_beats_the_file_and_the_preset(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('[attcl-gan]\nacl = "cut"\nscd = true\n')
    settings = resolve(preset="tiny", file=file, variant="stargan-v2")
    assert (settings.acl, settings.scd) == ("none", False)


def test_a_file_may_name_its_preset_and_its_method(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('preset = "small"\nsteps = 5\n[run]\nmethod = "plave"\n')
    settings = resolve(preset="tiny", file=file)
    assert (settings.method, settings.image_size, settings.steps) == ("plave", 256, 5)


def test_a_run_to_resume_stands_in_for_a_file_and_overrides_beat_it():
    before = resolve(preset="tiny", method="plave", overrides={"steps": 5, "width": 4})
    after = resolve(before=before, overrides={"steps": 9})
    assert after == before.model_copy(update={"steps": 9})


def test_a_file_changes_what_it_names_of_a_run_to_resume(tmp_path):
    before = resolve(preset="base", method="plave", overrides={"steps": 5, "batch_size": 16})
    file = tmp_path / "rate.toml"
    file.write_text("[optimiser]\nlearning_rate = 2e-4\n")
    after = resolve(before=before, file=file)
    assert after == before.model_copy(update={"learning_rate": 2e-4})
    file.write_text('preset = "small"\n')
    assert resolve(before=before, method="plave", file=file) == resolve(
        preset="small", method="plave"
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={"lamda_scd": 1.0})
    assert caught.value.message.startswith("setting 'lamda_scd': no such setting")
    assert caught.value.hint == "did you mean 'lambda_scd'?"


def test_a_key_like_no_other_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={"xyzzyxyzzy": 1})
    assert caught.value.code == "unknown-setting"
    assert "image_size" in caught.value.hint


def test_an_ill_typed_value_is_named_with_what_was_found():
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={"batch_size": "many"})
    assert caught.value.message.startswith("setting batch_size: found 'many', ")
    assert caught.value.exit_code == 2


@every_method
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", 1.0),
        ("seed", -1),
        ("ema_decay", 1.0),
        ("mirror", 1.5),
    ],
)
def test_a_value_out_of_bounds_is_an_error_of_its_key(method, key, value):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method=method, overrides={key: value})
    assert caught.value.code == "invalid-setting"
    assert caught.value.message.startswith(f"setting {key}")


def test_several_problems_are_reported_at_once():
    with pytest.raises(ProblemsError) as caught:
        resolve(preset="tiny", overrides={"batch_size": 0, "steps": "x", "lambda_r1": -1})
    keys = {problem.message.split(":")[0] for problem in caught.value.problems}
    assert keys == {"setting batch_size", "setting lambda_r1", "setting steps"}


def test_several_unknown_keys_are_reported_at_once():
    with pytest.raises(ProblemsError) as caught:
        resolve(preset="tiny", overrides={"one": 1, "two": 2})
    assert len(caught.value.problems) == 2


@every_method
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"image_size": 48}, "image_size: 48, expected a power of two of at least 16"),
        ({"image_size": 8}, "image_size: 8, expected a power of two of at least 16"),
        ({"image_size": 64, "canvas": 240}, "canvas: 240, expected a multiple of image_size (64)"),
    ],
)
def test_sizes_of_slices_that_do_not_fit_together_are_refused(method, values, complaint):
    with pytest.raises(UsageError) as caught:
        parse({"method": method, **values})
    assert caught.value.message == f"setting {complaint}"


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("contrastive_layers", 1, "lists are written [1, 2]; --dry-run shows every setting"),
        ("scd", "maybe", "expected true or false; --dry-run shows every setting"),
        ("acl", "kut", "--dry-run shows every setting"),
    ],
)
def test_the_hint_for_a_wrong_value_says_how_it_is_written(key, value, hint):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", overrides={key: value})
    assert str(caught.value).startswith(f"setting {key}: found {value!r}, ")
    assert caught.value.hint == hint


# --- who owns a setting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "key", "value", "owner", "title"),
    [
        ("attcl-gan", "plave_target", "t1", "plave", "PLAVE"),
        ("plave", "lambda_scd", 0.1, "attcl-gan", "AttCL-GAN"),
        ("plave", "downs", 3, "attcl-gan", "AttCL-GAN"),
    ],
)
def test_a_setting_of_another_method_is_refused_and_its_owner_named(
    method, key, value, owner, title
):
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method=method, overrides={key: value})
    assert caught.value.code == "setting-of-another-method"
    assert caught.value.message == (
        f"setting {key}: is {title}'s, found it with method {method}, expected --method {owner}"
    )


@pytest.mark.parametrize("table", ["", "[run]\n", "[image]\n", "[attcl-gan]\n", "[plave]\n"])
def test_a_setting_of_another_method_is_refused_wherever_a_file_has_it(table, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(f'{table}plave_target = "t1"\n')
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", file=file)
    assert caught.value.code == "setting-of-another-method"


@pytest.mark.parametrize(
    "content",
    [dump(resolve(preset="tiny", method="plave")), "[plave]\nwidth = 4\n", "[plave]\nx = 1\n"],
)
def test_the_table_of_another_method_is_refused_once_and_its_owner_named(content, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method="attcl-gan", file=file)
    assert caught.value.code == "setting-of-another-method"
    assert caught.value.message == (
        f"{file}: [plave]: the table of PLAVE, found it with method attcl-gan, expected --method plave"
    )


def test_a_table_that_nothing_has_names_the_nearest(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[optimizer]\nlearning_rate = 0.1\n")
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", file=file)
    assert caught.value.code == "unknown-table"
    assert caught.value.hint == "did you mean 'optimiser'?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[image]\nsteps = 5\n", "setting steps: found in [image], expected in [run]"),
        ("[attcl-gan]\nsteps = 5\n", "setting steps: found in [attcl-gan], expected in [run]"),
        ("[run]\nlambda_scd = 1\n", "setting lambda_scd: found in [run], expected in [attcl-gan]"),
    ],
)
def test_a_setting_in_another_table_than_its_own_is_refused(content, message, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", file=file)
    assert (caught.value.code, caught.value.message) == (
        "setting-in-another-table",
        f"{file}: {message}",
    )


def test_a_setting_that_stands_twice_in_a_file_is_refused(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("steps = 5\n[run]\nsteps = 6\n")
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", file=file)
    assert caught.value.code == "setting-given-twice"


@every_method
def test_every_setting_stands_in_a_common_table_or_in_the_methods_own(method):
    kind = settings_of(method)
    for name in kind.model_fields:
        section = section_of(name, kind, method)
        assert section in SECTIONS if name in Settings.model_fields else section == method


@every_method
def test_what_a_run_was_started_with_and_keeps_is_marked(method):
    names = fixed_names(settings_of(method))
    assert {"method", "seed", "image_size", "canvas"} <= set(names)
    assert not {"steps", "learning_rate", "log_every", "batch_size"} & set(names)


# --- through TOML and back --------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_toml(preset, method, tmp_path):
    settings = resolve(preset=preset, method=method, overrides={"seed": 7})
    file = tmp_path / "config.toml"
    file.write_text(dump(settings), encoding="utf-8")
    assert resolve(preset="paper", file=file) == settings
    assert parse(tomllib.loads(dump(settings))) == settings
    assert read_run_settings(file) == settings
    assert type(read_run_settings(file)) is type(settings)


@every_method
def test_dump_holds_every_key_in_the_tables_of_its_sections(method):
    tables = tomllib.loads(dump(resolve(preset="tiny", method=method)))
    assert list(tables) == [*SECTIONS, method]
    keys = [key for table in tables.values() for key in table]
    assert sorted(keys) == sorted(settings_of(method).model_fields)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_file_lacks_is_younger_than_the_file(method):
    kind = settings_of(method)
    assert set(kind.earlier) <= set(kind.model_fields)
    older = parse({"method": method})
    assert {name: getattr(older, name) for name in kind.earlier} == dict(kind.earlier)
    assert (older.keep, older.ema_warm_up) == ("best", True)
    written = resolve(preset="paper", method=method)
    assert parse(to_tables(written)) == written  # a file of today states everything


def test_settings_are_read_flat_as_well():
    settings = resolve(preset="small", overrides={"seed": 3})
    assert parse(settings.model_dump(mode="json")) == settings
    assert parse(to_tables(settings)) == settings


@every_method
def test_a_run_of_the_first_schema_keeps_what_its_method_has(method, tmp_path):
    settings = resolve(preset="small", method=method, overrides={"seed": 3})
    others = [
        resolve(preset="tiny", method=name).model_dump(mode="json")
        for name in METHODS
        if name != method
    ]
    flat: dict[str, object] = {}
    for values in (*others, settings.model_dump(mode="json")):
        flat |= values
    assert parse_first_schema(flat) == settings
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(flat))
    assert read_run_settings(file) == settings


def test_a_run_of_the_first_schema_with_an_unknown_key_is_refused():
    flat = resolve(preset="tiny").model_dump(mode="json") | {"unknown": 1}
    with pytest.raises(UsageError) as caught:
        parse_first_schema(flat)
    assert caught.value.code == "unknown-setting"


@pytest.mark.parametrize("content", ["steps 5", "steps = "])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "config.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"config\.toml: not readable as TOML"):
        resolve(preset="tiny", file=file)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=r"config\.toml: no such file, expected"):
        resolve(preset="tiny", file=tmp_path / "config.toml")


def test_settings_are_explained_for_their_method_alone():
    attcl_gan = explain(resolve(preset="tiny"))
    assert "lambda_scd = 0.1  # Style code diversity (Eq 11)." in attcl_gan.splitlines()
    assert "plave_" not in attcl_gan
    plave = explain(resolve(preset="tiny", method="plave"))
    assert "plave_blocks = 6" in plave and "lambda_scd" not in plave
    assert tomllib.loads(attcl_gan)["image"]["image_size"] == 64


@every_method
def test_every_setting_says_what_it_does_in_a_sentence(method):
    for name, field in settings_of(method).model_fields.items():
        assert field.description and field.description.endswith("."), name


# --- --set ------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(UsageError, match="expected KEY=VALUE") as caught:
        parse_override(text)
    assert caught.value.code == "malformed-override"
