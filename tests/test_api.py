"""The functions that `attcl_cli` offers: found lazily, typed, silent, and enough for a whole study."""

from __future__ import annotations

import importlib
import inspect
from fractions import Fraction
from pathlib import Path

import pytest

import attcl_cli

FUNCTIONS = [name for name in attcl_cli.__all__ if name not in {"AttclError", "__version__"}]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented_and_its_result_is_typed(name):
    function = getattr(attcl_cli, name)
    signature = inspect.signature(function)
    assert function.__doc__
    assert signature.return_annotation not in {inspect.Signature.empty, "None", "Any"}
    for parameter in list(signature.parameters.values())[2:]:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        attcl_cli.nothing  # noqa: B018 - the access is what is tested
    assert set(attcl_cli.__all__) <= set(dir(attcl_cli))


def test_the_modules_that_type_checkers_see_are_those_that_are_loaded():
    source = inspect.getsource(attcl_cli)
    for name in FUNCTIONS:
        module = getattr(attcl_cli, name).__module__
        assert f"from {module} import {name} as {name}" in source
        assert hasattr(importlib.import_module(module), name)


def test_the_functions_go_end_to_end_and_print_nothing(
    phantom_root: Path, trained_run: Path, tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    prepared = attcl_cli.prepare_splits(phantom_root, "data", sizes=(3, 0, 1), subset=Fraction(1))
    completed = attcl_cli.complete("data", "out", weights=trained_run, device="cpu")
    scored = attcl_cli.score("data", "out", metrics=("psnr",), split="all", device="cpu")
    assert capfd.readouterr() == ("", "")
    hidden = [
        (item.case, name)
        for items in prepared.splits.splits.values()
        for item in items
        for name in item.hidden
    ]
    assert completed.written == len(hidden)
    assert not completed.failed and not scored.missing
    assert {(row.case, row.modality) for row in scored.rows} == set(hidden)
    assert scored.figure("psnr").n == len(hidden)


def test_a_wrong_call_raises_an_error_with_a_code_and_writes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(attcl_cli.AttclError) as caught:
        attcl_cli.complete("nowhere", "out")
    assert caught.value.code
    assert list(tmp_path.iterdir()) == []
