"""Presets are valid, and a wrong setting is named."""

from __future__ import annotations

import tomllib

import pytest

from attcl_cli.errors import UsageError
from attcl_cli.segmentation.presets import PRESETS
from attcl_cli.segmentation.settings import SegmentSettings, explain, resolve


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name):
    assert resolve(name, {}).steps > 0


def test_without_a_preset_the_papers_optimiser_is_taken():
    settings = resolve(None, {})
    assert settings == SegmentSettings()
    assert (settings.learning_rate, settings.momentum) == (1e-3, 0.9)
    assert settings.learning_rate_decay == 0


def test_overrides_are_stronger_than_the_preset():
    settings = resolve("tiny", {"steps": 7})
    assert (settings.steps, settings.image_size) == (7, PRESETS["tiny"]["image_size"])


@pytest.mark.parametrize(
    ("overrides", "message", "code"),
    [
        ({"with": 3}, "no such setting", "unknown-setting"),
        ({"image_size": 100}, "expected a multiple of 16", "invalid-setting"),
        ({"canvas": 300}, "multiple of image_size", "invalid-setting"),
        ({"steps": 0}, "setting steps", "invalid-setting"),
    ],
)
def test_a_wrong_setting_is_named(overrides, message, code):
    with pytest.raises(UsageError, match=message) as error:
        resolve("base", overrides)
    assert error.value.code == code


def test_an_unknown_preset_is_named():
    with pytest.raises(UsageError, match="'huge'") as error:
        resolve("huge", {})
    assert error.value.code == "unknown-preset"


def test_the_explanation_is_toml_of_all_settings():
    settings = resolve("tiny", {})
    assert tomllib.loads(explain(settings)) == settings.model_dump()
