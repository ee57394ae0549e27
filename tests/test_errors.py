"""Errors keep what they say when they travel between processes."""

from __future__ import annotations

import pickle

import pytest

from attcl_cli import errors
from attcl_cli.errors import AttclError, ProblemsError, UsageError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, AttclError)
]
SINGLE = [kind for kind in CLASSES if kind is not ProblemsError]


@pytest.mark.parametrize("kind", SINGLE)
def test_an_error_survives_pickling(kind: type[AttclError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a: found, expected", "do this")))
    assert type(error) is kind
    assert (str(error), error.message, error.hint) == (
        "a: found, expected",
        "a: found, expected",
        "do this",
    )
    assert error.exit_code == kind.exit_code


@pytest.mark.parametrize("second", SINGLE)
def test_several_errors_at_once_survive_pickling(second: type[AttclError]) -> None:
    before = ProblemsError([UsageError("a: found, expected", "do this"), second("b", "do that")])
    before.add_note("found by a worker")
    error = pickle.loads(pickle.dumps(before))
    assert type(error) is ProblemsError
    assert (str(error), error.message, error.hint) == (str(before), before.message, before.hint)
    assert error.exit_code == before.exit_code
    assert [(type(each), each.message, each.hint) for each in error.problems] == [
        (UsageError, "a: found, expected", "do this"),
        (second, "b", "do that"),
    ]
    assert error.__notes__ == ["found by a worker"]
