"""Errors: one or several, folded and pickled; hints; and every error in the code has a code."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

from attcl_cli import errors
from attcl_cli.errors import (
    AttclError,
    IncompleteError,
    ProblemsError,
    UsageError,
    all_of,
    as_note,
    counted,
    fold,
    nearest,
    raise_all,
    size_in_words,
    some,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, AttclError)
]
SINGLE = [kind for kind in CLASSES if kind is not ProblemsError]
PACKAGE = Path(errors.__file__).parent


@pytest.mark.parametrize("kind", SINGLE)
def test_an_error_survives_pickling(kind: type[AttclError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a: found, expected", "do this", code="a-found")))
    assert type(error) is kind
    assert str(error) == error.message == "a: found, expected"
    assert (error.hint, error.code) == ("do this", "a-found")
    assert error.exit_code == kind.exit_code


@pytest.mark.parametrize("second", SINGLE)
def test_several_errors_at_once_survive_pickling(second: type[AttclError]) -> None:
    problems = [UsageError("a: found, expected", "do this", code="a-found"), second("b", code="b")]
    before = ProblemsError(problems)
    before.add_note("found by a worker")
    error = pickle.loads(pickle.dumps(before))
    assert type(error) is ProblemsError
    assert (str(error), error.message, error.hint) == (str(before), before.message, before.hint)
    assert error.code == "a-found"
    assert error.exit_code == before.exit_code
    assert [(type(each), each.message, each.hint, each.code) for each in error.problems] == [
        (UsageError, "a: found, expected", "do this", "a-found"),
        (second, "b", "", "b"),
    ]
    assert error.__notes__ == ["found by a worker"]


def test_raise_all_raises_nothing_the_problem_or_all_of_them() -> None:
    one, two = UsageError("a", code="a"), AttclError("b", "do this", code="b")
    raise_all([])
    with pytest.raises(UsageError) as single:
        raise_all([one])
    assert single.value is one
    with pytest.raises(ProblemsError) as both:
        raise_all([one, two])
    assert both.value.problems == (one, two)
    assert [str(problem) for problem in both.value.problems] == ["a", "b"]


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ([UsageError, UsageError], 2),
        ([IncompleteError, IncompleteError], 3),
        ([UsageError, AttclError], 1),
        ([UsageError, IncompleteError], 1),
    ],
)
def test_several_errors_exit_with_the_code_of_all_or_with_1(
    kinds: list[type[AttclError]], code: int
) -> None:
    assert ProblemsError([kind("a", code="a") for kind in kinds]).exit_code == code


def test_problems_of_one_key_are_folded_into_the_first() -> None:
    problems = [AttclError(text, "do", code="made") for text in ("a: old", "b: new", "c: old")]
    folded = fold(problems, lambda problem: problem.message[3:])
    assert [(each.message, each.hint, each.code) for each in folded] == [
        ("a: old; and 1 more like it", "do", "made"),
        ("b: new", "do", "made"),
    ]
    assert folded[1] is problems[1]


def test_some_names_the_first_and_counts_the_others() -> None:
    assert some([]) == ""
    assert some(range(3)) == "0, 1, 2"
    assert some("abcde", most=2) == "a, b and 3 more"
    assert some(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_the_nearest_word_is_found_without_regard_to_case_otherwise_all_are_named() -> None:
    known = ["BraTS", "bids"]
    assert nearest("bratss", known) == "did you mean 'BraTS'?"
    assert nearest("zzz", known) == "known: BraTS, bids"


# --- codes ------------------------------------------------------------------------------------------------------------

# Constructions that take over the code of another error.
TAKEN_OVER = {"code=first.code", "code=error.code", "code=problem.code", "code=problems[0].code"}


def constructions(tree: ast.Module) -> list[ast.Call]:
    """Every call of an error class of ours; of `ProblemsError`, which has the code of its first, none."""
    names = {kind.__name__ for kind in SINGLE}
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) in names
    ]


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (1, ("case",), "1 case"),
        (0, ("case",), "0 cases"),
        (2, ("case",), "2 cases"),
        (1200, ("step",), "1,200 steps"),
        (1, ("volume is", "volumes are"), "1 volume is"),
        (3, ("volume is", "volumes are"), "3 volumes are"),
    ],
)
def test_what_is_counted_is_singular_or_plural(number, words, text) -> None:
    assert counted(number, *words) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (12_345, "12.3 kB"),
        (999_960, "1.0 MB"),
        (3_950_000.5, "4.0 MB"),
        (10**9, "1.0 GB"),
        (5 * 10**15, "5,000.0 TB"),
    ],
)
def test_a_size_is_said_in_the_unit_in_which_it_is_no_zero(size, text) -> None:
    assert size_in_words(size) == text


def test_a_dry_run_notes_wrong_usage_and_raises_other_errors() -> None:
    notes: list[str] = []
    with as_note(notes, when=True):
        raise UsageError("--output: not empty", "choose another", code="a")
    with as_note(notes, when=True):
        raise UsageError("--output: a file", code="a")
    assert notes == ["--output: not empty; choose another", "--output: a file"]
    with pytest.raises(AttclError), as_note(notes, when=True):
        raise AttclError("data: damaged", code="b")
    with pytest.raises(UsageError), as_note(notes, when=False):
        raise UsageError("--output: not empty", code="a")
    assert len(notes) == 2


def test_no_problem_is_no_error_and_one_is_itself() -> None:
    one, two = AttclError("a", code="a"), UsageError("b", code="b")
    assert all_of([]) is None
    assert all_of([one]) is one
    several = all_of([one, two])
    assert isinstance(several, ProblemsError) and several.problems == (one, two)


def problem_of(call: ast.Call) -> str:
    """What is wrong with the code of an error; "" if nothing is."""
    code = next((item.value for item in call.keywords if item.arg == "code"), None)
    if code is None:
        return "no code"
    if isinstance(code, ast.Constant) and isinstance(code.value, str):
        return "" if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code.value) else f"code {code.value!r}"
    return "" if f"code={ast.unparse(code)}" in TAKEN_OVER else f"code {ast.unparse(code)}"


def test_the_reader_of_errors_sees_what_is_wrong() -> None:
    source = """
errors.AttclError("a", "b")
UsageError("a", code="Not kebab")
UsageError("a", code=made_up)
AttclError("a", code="good-1")
AttclError(error.message, code=error.code)
ProblemsError([])
print("a")
"""
    found = [problem_of(call) for call in constructions(ast.parse(source))]
    assert found == ["no code", "code 'Not kebab'", "code made_up", "", ""]


def test_every_error_has_a_stable_code() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}: {problem}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in constructions(ast.parse(path.read_text(encoding="utf-8")))
        if (problem := problem_of(call))
    ]
    assert wrong == []
