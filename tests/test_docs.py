"""What the documents say is true of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from attcl_cli.cli import app
from attcl_cli.data.layouts import LAYOUTS, read_vocabulary
from attcl_cli.data.splits import read_ratio
from attcl_cli.methods.settings import PRESETS, Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app.app).commands


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_screen_names_the_two_commands() -> None:
    first = "\n".join(README.splitlines()[:30])
    assert "make demo" in first
    assert "make test" in first


def test_every_command_of_the_readme_exists_and_every_command_is_in_it() -> None:
    named = set(re.findall(r"attcl ([a-z]+(?:-[a-z]+)*)", README))
    assert named == set(COMMANDS)


def test_nothing_in_the_readme_is_only_planned() -> None:
    assert "planned" not in README


def test_every_option_of_the_readme_exists() -> None:
    known = {
        option for command in COMMANDS.values() for item in command.params for option in item.opts
    }
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) - {
        "--nproc-per-node"
    }  # of torchrun
    assert used <= known | {"--help"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_examples_in_a_commands_help_parse(name: str) -> None:
    epilog = COMMANDS[name].epilog
    examples = epilog.removeprefix("Examples:").split("|")
    assert len(examples) == 2
    for example in examples:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("attcl", name)
        COMMANDS[name].make_context(command, arguments)


def test_every_option_of_every_command_has_a_sentence_of_help() -> None:
    for command in COMMANDS.values():
        for item in command.params:
            assert getattr(item, "help", None), f"{command.name} {item.name}"


def test_every_setting_is_described_or_named_after_its_symbol() -> None:
    bare = {name for name, field in Settings.model_fields.items() if not field.description}
    assert bare <= {"beta1", "beta2", "weight_decay"}


def test_the_readme_lists_the_presets_and_layouts() -> None:
    for name in (*PRESETS, *LAYOUTS):
        assert f"| `{name}`" in README


def test_the_toml_examples_of_the_readme_are_read(tmp_path: Path) -> None:
    ratio, vocabulary = blocks("toml")
    (tmp_path / "ratio.toml").write_text(ratio)
    (tmp_path / "modalities.toml").write_text(vocabulary)
    assert read_ratio(str(tmp_path / "ratio.toml"), ("flair", "t1", "t1ce", "t2"))[0] == "mine"
    assert set(read_vocabulary(tmp_path / "modalities.toml")[0]) == {"t1", "t2", "pd"}


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "weights" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_readme_and_report_say_that_it_is_no_medical_device() -> None:
    assert "not a medical device" in README
