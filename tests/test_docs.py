"""The README and the pages of docs/ agree with the code: commands, options, links, settings, examples."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from attcl_cli.cli import app
from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.data.splits import read_ratio
from attcl_cli.data.vocabulary import read_vocabulary
from attcl_cli.methods import ENTRY_POINTS, METHODS
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import resolve
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.segmentation.settings import SegmentSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "weights" / "README.md",
        ROOT / "benchmarks" / "GPU.md",
        *sorted(DOCS.rglob("*.md")),
    )
}
APP: Any = typer.main.get_command(app.app)
COMMANDS = APP.commands
SUBCOMMANDS = {
    f"{name} {below}": command
    for name, group in COMMANDS.items()
    for below, command in getattr(group, "commands", {}).items()
}
"""The commands of `attcl weights`, as `weights list`."""
SINGLE = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}
EVERY = {**COMMANDS, **SUBCOMMANDS}
OTHER_OPTIONS = {
    *("--nnodes", "--node-rank", "--master-addr", "--rdzv-endpoint"),
    *("--nproc-per-node", "--array", "--image-size", "--part-mb", "--card", "--help"),
    *("--methods", "--only-count", "--files"),
    *("--index-url", "--no-index", "--find-links", "--wheel-dir"),
    *(
        "--configfile",
        "--cores",
        "--workflow-profile",
        "--resources",
        "--unlock",
        "--head",
        "--address",
        "--num-cpus",
    ),
}
"""Options in the pages that are not of `attcl`: of torchrun, sbatch, pip, Snakemake, Ray, and our own scripts."""
OF_BENCHMARKS = {
    *("--preset", "--cases", "--voxel-mm", "--variants", "--memory-voxel-mm", "--against"),
    *(
        "--cohort",
        "--test",
        "--fold",
        "--settings",
        "--scenario",
        "--holes",
        "--seeds",
        "--calibration",
        "--shown",
        "--without-features",
    ),
    *("--parts", "--workers", "--volumes", "--rounds", "--turns"),
}
"""Options of the scripts in benchmarks/."""


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of one language in a page; "" is the blocks without a language."""
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [body for name, body in fences if name == language]


def commands_of(page: str) -> list[list[str]]:
    """Return the arguments of every `attcl ...` command in the fenced blocks of a page."""
    found = []
    for block in [*blocks(page, ""), *blocks(page, "text"), *blocks(page, "bash")]:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "attcl_cli" in words:  # torchrun ... -m attcl_cli train
                words = ["attcl", *words[words.index("attcl_cli") + 1 :]]
            if words[:1] == ["attcl"]:
                found.append(words[1:])
    return found


def hooks() -> ModuleType:
    """Return docs/hooks.py, which makes pages from the code."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The pages that are made from the code: path in docs/ -> Markdown."""
    return hooks().pages()


# --- The README ---------------------------------------------------------------------------------------------------


def test_the_readme_has_about_120_lines() -> None:
    assert len(README.splitlines()) <= 130


def test_the_first_screen_names_the_two_commands() -> None:
    first = "\n".join(README.splitlines()[:30])
    assert "make demo" in first
    assert "make test" in first


def test_the_readme_says_that_it_is_no_medical_device() -> None:
    assert "not a medical device" in README


def test_every_command_is_in_the_readme_or_in_the_guide_of_its_own() -> None:
    for name in COMMANDS:
        page = f"docs/guides/{name}.md"
        assert any(command[0] == name for command in commands_of(page)), page


# --- Commands and options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page: str) -> None:
    for command in commands_of(page):
        name = " ".join(command[:2])
        if name in SUBCOMMANDS:
            SUBCOMMANDS[name].make_context(name, command[2:])
        elif command[0] in SINGLE:
            SINGLE[command[0]].make_context(command[0], command[1:])
        else:
            assert command[0] in {option for item in APP.params for option in item.opts}, command


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`attcl ([a-z]+(?:-[a-z]+)*)", PAGES[page])
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page: str) -> None:
    known = {
        option
        for command in (APP, *EVERY.values())
        for item in command.params
        for option in (*item.opts, *item.secondary_opts)
    }
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGES[page])) - OTHER_OPTIONS
    if page in ("CHANGELOG.md", "benchmarks/GPU.md", "weights/README.md") or page.startswith(
        "docs/experiments/"
    ):
        used -= OF_BENCHMARKS
    if page == "docs/extend/metric.md":
        used -= {"--mae"}
    assert used <= known


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_examples_in_a_commands_help_parse(name: str) -> None:
    examples = EVERY[name].epilog.removeprefix("Examples:").split("|")
    assert len(examples) == 2
    for example in examples:
        program, *words = shlex.split(example)
        used = next(it for it in (" ".join(words[:2]), words[0]) if it in SUBCOMMANDS | SINGLE)
        assert program == "attcl"
        assert used == name or used.startswith(f"{name} ")
        EVERY[used].make_context(used, words[len(used.split()) :])


def test_every_option_of_every_command_has_a_sentence_of_help() -> None:
    for command in EVERY.values():
        for item in command.params:
            assert getattr(item, "hidden", False) or getattr(item, "help", None), item.name


# --- Links and examples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str, generated: dict[str, str]) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
        if "://" not in link:
            target = ((ROOT / page).parent / link).resolve()
            made = target.is_relative_to(DOCS) and target.relative_to(DOCS).as_posix() in generated
            # the repository's reader cannot open a generated page, so only pages of the site link to one
            assert target.exists() or (made and page.startswith("docs/")), f"{page}: {link}"


def test_readers_of_the_repository_are_told_which_pages_are_made(generated: dict[str, str]) -> None:
    assert "docs/reference/README.md" in README
    listed = re.findall(r"^\| `([\w/]+\.md)` \|", PAGES["docs/reference/README.md"], re.MULTILINE)
    assert set(listed) == set(generated)


@pytest.mark.parametrize("page", PAGES)
def test_the_toml_examples_of_a_page_are_read(page: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, encoding="utf-8")
        document = tomllib.loads(block)
        if "hidden" in document:
            assert read_ratio(str(file), ("flair", "t1", "t1ce", "t2"))[0] == "mine"
        elif {"modalities", "patient", "ignore"} & set(document):
            modalities = read_vocabulary(file).modalities
            assert modalities is None or set(modalities) == {"t1", "t2", "pd"}
        elif "project" in document:
            assert set(document["project"]["entry-points"]) == {ENTRY_POINTS}
        else:
            assert resolve(file=file).steps == document["run"]["steps"]


def test_the_guides_list_the_presets_and_layouts() -> None:
    for name in PRESETS:
        assert f"| `{name}`" in PAGES["docs/guides/train.md"]
    for name in LAYOUTS:
        assert f"| `{name}`" in PAGES["docs/guides/data.md"]


def test_the_sections_that_comments_refer_to_are_listed_in_method_md() -> None:
    for section in range(1, 10):
        (page,) = (DOCS / "methods").glob(f"{section}-*.md")
        assert page.read_text(encoding="utf-8").startswith(f"# {section}. ")
        assert f"| {section} | [" in PAGES["docs/method.md"]
        assert f"](methods/{page.name})" in PAGES["docs/method.md"]


# --- Pages made from the code -------------------------------------------------------------------------------------


def test_the_reference_lists_every_command_and_option(generated: dict[str, str]) -> None:
    page = generated["reference/commands.md"]
    for name, command in EVERY.items():
        assert f"## attcl {name}\n" in page
        for item in command.params:
            if not getattr(item, "hidden", False) and item.param_type_name == "option":
                assert item.opts[-1] in page


def test_the_reference_lists_every_setting_with_what_it_does(generated: dict[str, str]) -> None:
    page = generated["reference/settings.md"]
    kinds = [METHODS[name].settings_class for name in METHODS] + [SegmentSettings]
    for kind in kinds:
        for name, field in kind.model_fields.items():
            assert field.description, name
            assert f"| `{name}` |" in page


def test_the_reference_lists_every_metric_layout_and_error(generated: dict[str, str]) -> None:
    for name in METRICS:
        assert f"| `{name}` |" in generated["reference/metrics.md"]
    for name in LAYOUTS:
        assert f"| `{name}` |" in generated["reference/layouts.md"]
    for code in hooks().error_codes():
        assert f"| `{code}` |" in generated["reference/errors.md"]


def test_the_reference_shows_the_message_of_an_error(generated: dict[str, str]) -> None:
    line = "| `unknown-method` | 2 | --method: unknown method ..., expected one of ... |"
    assert line in generated["reference/errors.md"]


def test_the_reference_describes_the_arguments_of_a_function(generated: dict[str, str]) -> None:
    page = generated["reference/python.md"]
    assert "    ori: Path | str = 'data',\n    cpl: Path | str = 'out',\n    *,\n" in page
    assert "- `keep_going`: do the sound cases" in page
    assert "- `written`: volumes made." in page
