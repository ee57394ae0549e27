"""The mutation run: which changes of a source file are tried, and that their record is kept."""

from __future__ import annotations

import json
import sys

import pytest
from helpers import REPOSITORY, fresh_python

sys.path.append(str(REPOSITORY / "benchmarks"))

import mutants
import mutate

from attcl_cli.methods import METHODS

SOURCE = '''
"""A method in few lines: lambda x: -x."""

STEPS = 3


class TinySettings:
    weight: float = 1.0


class Tiny:
    inference = ("generator", "discriminator")

    def losses(self, x: Tensor, *, bright: float = 0.5) -> Losses:
        terms = {}
        terms["adv"] = (self.weight, losses.real_loss(self.discriminator(x)))
        if x.size > 0:
            with torch.no_grad():
                still = self.generator(x, bright=bright).detach()
        self.note(still)
        return terms
'''


def changes(kind: str, source: str = SOURCE) -> set[tuple[str, str]]:
    found = [one for one in mutants.mutants_of("tiny.py", source) if one.kind == kind]
    assert all(one.source != source for one in found)
    for one in found:
        compile(one.source, "tiny.py", "exec")
    return {(one.before, one.after) for one in found}


ADV = 'terms["adv"] = (self.weight, losses.real_loss(self.discriminator(x)))'
STILL = "still = self.generator(x, bright=bright).detach()"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sign", {(ADV, ADV.replace("self.weight", "-(self.weight)"))}),
        ("drop", {(ADV, ADV.replace("self.weight", "0 * (self.weight)"))}),
        (
            "network",
            {
                ('("generator", "discriminator")', "('discriminator',)"),
                ('("generator", "discriminator")', "('generator',)"),
                ('("generator", "discriminator")', "('discriminator', \"discriminator\")"),
                ('("generator", "discriminator")', "(\"generator\", 'generator')"),
                (ADV, ADV.replace("discriminator", "generator")),
                (STILL, STILL.replace("generator", "discriminator")),
            },
        ),
        (
            "detach",
            {
                ("with torch.no_grad():", "with torch.enable_grad():"),
                (STILL, STILL.removesuffix(".detach()")),
                (ADV, ADV.replace("self.discriminator(x)", "(self.discriminator(x)).detach()")),
            },
        ),
        ("swap", {(ADV, ADV.replace("real_loss", "fake_loss"))}),
        ("keyword", {(STILL, STILL.replace("x, bright=bright", "x"))}),
        ("call", {("self.note(still)", "pass")}),
        (
            "arithmetic",
            {
                ("if x.size > 0:", "if (x.size >= 0):"),
                ("if x.size > 0:", "if (not (x.size > 0)):"),
            },
        ),
        (
            "number",
            {
                ("STEPS = 3", "STEPS = 4"),
                ("if x.size > 0:", "if x.size > 1:"),
                ("bright: float = 0.5", "bright: float = 1.0"),
            },
        ),
    ],
)
def test_a_kind_of_change_is_found_wherever_it_can_be_made(kind, expected):
    def short(line: str) -> str:
        line = line.removeprefix("inference = ")
        return line.removeprefix("def losses(self, x: Tensor, *, ").removesuffix(") -> Losses:")

    assert {(short(before), short(after)) for before, after in changes(kind)} == expected


def test_every_file_of_methods_and_losses_has_mutants_and_tests():
    networks = (REPOSITORY / mutate.METHODS / "networks").glob("[!_]*.py")
    methods = {f"{METHODS[name].__module__.rpartition('.')[2]}.py" for name in METHODS}
    assert mutate.TESTS.keys() >= methods | {f"networks/{path.name}" for path in networks}
    for file, tests in mutate.TESTS.items():
        source = (REPOSITORY / mutate.METHODS / file).read_text()
        assert mutants.mutants_of(file, source), file
        assert all((REPOSITORY / "tests" / name).is_file() for name in tests), file


def test_the_weight_0_of_a_figure_that_is_only_reported_is_left():
    source = SOURCE.replace("(self.weight, losses", "(0.0, losses")
    assert changes("sign", source) == changes("drop", source) == set()


def test_every_weight_of_a_loss_is_changed():
    source = (REPOSITORY / mutate.METHODS / "attcl_gan.py").read_text()
    found = [one.before for one in mutants.mutants_of("attcl_gan.py", source) if one.kind == "sign"]
    for name in ("real", "r1", "fake", "adv", "sty", "cyc", "ds", "patch", "pair", "structure"):
        assert any(line.startswith(f'terms["{name}"] = (') for line in found), name


def test_a_mutant_keeps_its_key_when_lines_move_above_it():
    before = mutants.mutants_of("tiny.py", SOURCE)
    after = mutants.mutants_of("tiny.py", "import torch\n\n" + SOURCE)
    assert [one.key for one in before] == [one.key for one in after]
    assert len({one.key for one in before}) == len(before)


@pytest.mark.slow
def test_a_run_tells_what_is_caught_from_what_survives_and_resumes(tmp_path):
    original = REPOSITORY / mutate.METHODS / "losses.py"
    before = original.read_bytes()
    record = tmp_path / "mutants.jsonl"
    line = ("--files", "losses.py", "--match", "return total / max(", "--kinds", "number")
    options = ("benchmarks/mutate.py", "--output", record, *line, "arithmetic")
    output = fresh_python(*options, "--tests", "methods/test_losses.py")
    assert "1/3 caught: attcl_cli/methods/losses.py" in output
    assert "    + return (total * max(len(per_slice) * share, 1e-09))" in output
    assert "arithmetic  2 of 2 caught" in output
    # Whatever is larger than 0 does: it stands there against a division by zero.
    assert "number      0 of 1 caught\n1 survive\n" in output
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["caught", "caught", "survived"]
    assert lines[0]["test"].startswith("tests/methods/test_losses.py::test_")
    assert fresh_python(*options, "--list") == "0 mutants\n"
    again = fresh_python(*options, "--again", "--list")
    assert again.endswith(f"    + {lines[2]['after']}\n1 mutants\n")
    assert original.read_bytes() == before
