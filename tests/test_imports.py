"""Who may import whom (a table), and that asking for help loads no heavy library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import fresh_python

PACKAGE = Path(__file__).resolve().parents[1] / "attcl_cli"

# Module -> what of ours it may import; `errors` and `files` (which itself imports errors alone) are open to all.
# A package's own files may import one another. Change this table and the layout together, for a reason.
FREE = {"errors", "files", "__init__"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "files": set(),
    "config": set(),
    "console": set(),
    "devices": set(),
    "runinfo": set(),
    "overlap": set(),
    "losses": set(),
    "metrics": set(),
    "features": {"feature_files"},
    "phantom": set(),
    "pictures": set(),
    "report": {"pictures"},
    "feature_files": set(),
    "feature_store": {"metrics", "volume"},
    "pairs": {"dataset", "splits", "volume"},
    "score": {"pairs", "volume", "metrics", "feature_store", "overlap"},
    "volume": set(),
    "networks": set(),
    "methods": {"networks", "losses", "config"},
    "dataset": {"volume"},
    "splits": {"dataset"},
    "slices": {"dataset", "volume", "overlap", "methods"},
    "checkpoint": {"methods", "config", "volume"},
    "planning": {"dataset", "volume", "checkpoint", "methods", "runinfo"},
    "translation": {"volume", "checkpoint", "config", "methods"},
    "complete": {"planning", "translation", "dataset", "volume", "methods", "overlap"},
    "train": {"checkpoint", "config", "devices", "loops", "methods", "overlap", "slices"},
    "loops": set(),
    "regions": set(),
    "segmentation_metrics": set(),
    "segment_settings": {"config"},
    "segment_inputs": {"dataset", "regions", "splits", "volume"},
    "segment_slices": {"overlap", "regions", "segment_inputs", "slices", "volume"},
    "segment_scores": {"overlap", "regions", "segment_inputs", "segmentation_metrics", "volume"},
    "segment": {
        "checkpoint",
        "config",
        "loops",
        "overlap",
        "regions",
        "segment_inputs",
        "segment_scores",
        "segment_settings",
        "segment_slices",
        "segmentation_metrics",
        "slices",
        "volume",
    },
    "nnunet": {"dataset", "overlap", "regions", "segment_inputs", "volume"},
    "validate": {"methods", "metrics", "slices"},
    "cohort": {"phantom", "volume", "dataset"},
    "cli": {"commands", "demo", "console", "config", "segment_settings"},
}
NARROW = {"errors": set(), "files": {"errors"}, "losses": set(), "overlap": set()}
STAGES = {"train", "complete", "score", "segment"}
ASSEMBLERS = {
    "commands",
    "demo",
}  # they put the stages together: all but the command line is theirs


def module_of(path: Path) -> str:
    """`attcl_cli/methods/contract.py` -> `methods`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """What of ours a file imports, wherever in the file, by the first name below attcl_cli."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = below if node.module == "attcl_cli" else [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "attcl_cli":
                second = parts[1] if len(parts) > 1 else "__init__"
                found.add("__init__" if second.startswith("__") else second)
    return found


def edges() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_of(path)
        found.setdefault(module, set()).update(imports_of(path) - {module})
    return found


def test_the_reader_of_imports_sees_every_form(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import attcl_cli.volume\nfrom attcl_cli import __version__, console\n"
        "from attcl_cli.methods.contract import Batch\nimport numpy\n"
        "def f():\n    from attcl_cli import train as t\n"
    )
    assert imports_of(path) == {"volume", "__init__", "console", "methods", "train"}


@pytest.mark.parametrize("module", sorted(edges()))
def test_a_module_imports_only_what_the_table_allows(module):
    found = edges()[module]
    if module in ASSEMBLERS:
        assert "cli" not in found
        return
    assert module in ALLOWED, f"{module} is new: give it a line in the table"
    allowed = NARROW.get(module, ALLOWED[module] | FREE)
    assert found <= allowed, f"{module} must not import {sorted(found - allowed)}"


def test_the_stages_never_import_one_another():
    for stage, found in edges().items():
        if stage in STAGES:
            assert not found & STAGES, f"{stage} imports {found & STAGES}"


def test_no_imports_go_in_a_circle():
    found = edges()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in found.get(module, set()):
                visit(other, (*path, module))
            done.add(module)

    for module in found:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("attcl_cli", ["torch", "nibabel", "matplotlib", "numpy", "typer"]),
        ("attcl_cli.cli", ["torch", "nibabel", "matplotlib", "scipy", "PIL", "monai"]),
        ("attcl_cli.dataset", ["torch", "matplotlib"]),
        ("attcl_cli.splits", ["torch", "matplotlib"]),
    ],
)
def test_importing_a_module_loads_nothing_heavy(module, heavy):
    script = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert fresh_python("-c", script).strip() == "[]"


def test_nibabel_is_imported_by_volume_alone():
    for path in PACKAGE.rglob("*.py"):
        if module_of(path) != "volume":
            names = {
                (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            assert not any(name.split(".")[0] == "nibabel" for name in names), path
