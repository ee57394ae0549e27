"""Which package may import which, who may know the terminal, and that asking for help loads no heavy library."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

import pytest
from helpers import fresh_python

PACKAGE = Path(__file__).resolve().parents[1] / "attcl_cli"

# Each package may import those before it, and the files of the root. Change the order only for a reason:
# `scoring` stands on `completion` because `attcl score --directions` translates, `training` on `scoring` because it
# validates, `segmentation` on `training` because it trains.
ORDER = ("data", "report", "methods", "completion", "scoring", "training", "segmentation", "cli")
APART = {("methods", "report")}  # a method draws nothing
# The files that every package stands on, and what of ours each may import.
ROOT = {
    "errors": set(),
    "confined": {"errors"},
    "run_ends": {"errors"},
    "cluster": {"errors", "run_ends"},
    "temporaries": set(),
    "files": {"confined", "errors", "run_ends", "temporaries"},
    "documents": {"errors"},
    "devices": {"errors", "prefetch"},
    "gradients": set(),
    "processes": {"devices", "errors", "gradients"},
    "prefetch": set(),
    "progress": {"errors"},
    "run_log": {"__init__", "confined", "errors", "files", "progress"},
    "run_record": {
        "__init__",
        "confined",
        "devices",
        "documents",
        "errors",
        "files",
        "run_ends",
        "run_log",
        "temporaries",
    },
}
ENTRIES = {"__init__", "__main__"}  # how one gets in, from Python and from the shell


def part_of(path: Path) -> str:
    """`attcl_cli/methods/base.py` -> `methods`; `attcl_cli/files.py` -> `files`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, types: bool = True) -> set[str]:
    """What of ours a file imports, wherever in the file, as dotted names below attcl_cli; `types`: also for types."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {below for line in node.body for below in ast.walk(line)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, below = name.partition(".")
            if first == "attcl_cli":
                found.add("__init__" if not below or below.startswith("__") else below)
    return found


def edges() -> dict[str, set[str]]:
    """Part -> the other parts that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = part_of(path)
        others = {name.partition(".")[0] for name in imports_of(path)}
        found.setdefault(part, set()).update(others - {part})
    return found


def test_the_reader_of_imports_sees_every_form(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import attcl_cli.data.volumes\nfrom attcl_cli import __version__, files\n"
        "from attcl_cli.methods.base import Method\nimport numpy\n"
        "def f():\n    from attcl_cli.training import trainer as t\n"
    )
    expected = {"data.volumes", "__init__", "files", "methods.base.Method", "training.trainer"}
    assert imports_of(path) == expected
    path.write_text(f"{path.read_text()}if TYPE_CHECKING:\n    from attcl_cli import errors\n")
    assert imports_of(path) == {*expected, "errors"}
    assert imports_of(path, types=False) == expected


def test_the_package_shows_its_stages_and_the_files_at_its_root():
    names = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__pyc")}
    assert names - {"weights"} == {
        *ORDER,
        *(f"{name}.py" for name in (*ROOT, *ENTRIES)),
        "py.typed",
    }


@pytest.mark.parametrize("part", ORDER)
def test_a_package_imports_only_those_before_it(part):
    allowed = {*ORDER[: ORDER.index(part)], *ROOT, "__init__"}
    allowed -= {other for one, other in APART if one == part}
    assert edges()[part] <= allowed, f"{part} must not import {edges()[part] - allowed}"


@pytest.mark.parametrize("part", ROOT)
def test_a_root_file_imports_no_package(part):
    assert edges()[part] <= ROOT[part]


def module_of(name: str, modules: Collection[str]) -> str:
    """The module that a dotted name is, or lies in."""
    while name:
        for module in (name, f"{name}.__init__"):
            if module in modules:
                return module
        name = name.rpartition(".")[0]
    return "__init__"


def test_no_module_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {}
    modules = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
        for path in PACKAGE.rglob("*.py")
    }
    for name, path in modules.items():
        found = {module_of(target, modules) for target in imports_of(path, types=False)}
        graph[name] = found - {name, "__init__"}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in graph.get(module, set()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_the_command_line_knows_the_terminal():
    """A stage is told whom to report to (`progress`); it never prints, and never imports Typer, Rich or tqdm."""
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) not in {"cli", "__main__"}:
            assert not any(name.startswith("cli") for name in imports_of(path)), path
            assert not foreign_imports(path) & {"typer", "rich", "tqdm"}, path


def foreign_imports(path: Path) -> set[str]:
    """The libraries that a file imports, by their first name."""
    return {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }


def test_nibabel_is_imported_by_volumes_and_the_gate_of_its_files_alone():
    users = [path for path in PACKAGE.rglob("*.py") if "nibabel" in foreign_imports(path)]
    names = {path.relative_to(PACKAGE).as_posix() for path in users}
    assert names == {"data/nifti_files.py", "data/volumes.py"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("attcl_cli", ["torch", "nibabel", "matplotlib", "numpy", "typer"]),
        (
            "attcl_cli.cli.app",
            ["torch", "nibabel", "matplotlib", "scipy", "PIL", "monai", "pydantic"],
        ),
        ("attcl_cli.methods", ["torch", "numpy"]),
        ("attcl_cli.data.dataset", ["torch", "matplotlib"]),
        ("attcl_cli.data.splits", ["torch", "matplotlib"]),
    ],
)
def test_importing_a_module_loads_nothing_heavy(module, heavy):
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert fresh_python("-c", script).strip() == "[]"
