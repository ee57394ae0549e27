"""Pages of the documentation that are made from the code when the site is built: commands, settings, metrics, errors.

Knows the Typer app, the settings classes and the registries. The pages written by hand lie beside this file.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import attcl_cli
from attcl_cli import errors
from attcl_cli.cli import app
from attcl_cli.data.layouts import DEFAULT_MODALITIES, LAYOUTS, SUBMISSIONS
from attcl_cli.data.patients import PUBLIC_NAMES
from attcl_cli.data.unread import KINDS
from attcl_cli.methods import METHODS
from attcl_cli.methods import settings as method_settings
from attcl_cli.progress import SILENT
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.segmentation import metrics as segmentation_metrics
from attcl_cli.segmentation import presets as segmentation_presets
from attcl_cli.segmentation import settings as segmentation_settings

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = (
    "open_dataset",
    "prepare_splits",
    "train",
    "complete",
    "show",
    "score",
    "segment",
    "evaluate",
    "export",
)
"""The public functions, in the order in which they are used."""

REPOSITORY_FILES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page -> the file at the root of the repository that it shows."""

_MADE = "*This page is made from the code when the site is built.*\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (a hook of MkDocs and ProperDocs)."""
    from properdocs.structure.files import File  # noqa: PLC0415 - the pages are made without it, too

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Return path in docs/ -> Markdown of every generated page."""
    made: dict[str, Callable[[], str]] = {
        "reference/commands.md": commands_page,
        "reference/settings.md": settings_page,
        "reference/metrics.md": metrics_page,
        "reference/layouts.md": layouts_page,
        "reference/python.md": python_page,
        "reference/errors.md": errors_page,
    }
    return {
        **{path: make() for path, make in made.items()},
        **{path: repository_page(name) for path, name in REPOSITORY_FILES.items()},
    }


def commands_page() -> str:
    """Return every command with its options, as its own --help shows them."""
    root: Any = typer.main.get_command(app.app)
    context = root.make_context("attcl", [], resilient_parsing=True)
    lines = ["# Commands", "", _MADE, root.help, "", *_options(root, context)]
    for name, command in root.commands.items():
        lines += _command(name, command, context.find_root(), mark="##")
        for below, single in getattr(command, "commands", {}).items():
            lines += _command(f"{name} {below}", single, context.find_root(), mark="###")
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any, root: Any, *, mark: str) -> list[str]:
    """Return a command, or a group of them, as its own --help shows it."""
    context = command.make_context(name, [], parent=root, resilient_parsing=True)
    usage = " ".join(["attcl", name, *command.collect_usage_pieces(context)])
    lines = ["", f"{mark} attcl {name}", "", _cell(command.help or ""), ""]
    lines += ["```text", usage, "```", ""]
    lines += _options(command, context) if command.params else []
    examples = (command.epilog or "").removeprefix("Examples:").split("|")
    return [*lines, "", "Examples:", "", "```", *(example.strip() for example in examples), "```"]


def settings_page() -> str:
    """Return every setting of every method and of the segmenter, with its value in each preset."""
    lines = [
        "# Settings",
        "",
        _MADE,
        "Set one with `--set KEY=VALUE`, or several in a TOML file that you pass with `--config` (`attcl train`). "
        "A later source wins: the method's defaults, the preset, the TOML file, the variant, `--set`. "
        "A resumed run keeps the settings that are marked **fixed**.",
    ]
    for name in METHODS:
        kind = METHODS[name].settings_class
        columns = {
            preset: method_settings.resolve(preset=preset, method=name)
            for preset in method_settings.preset_names(kind)
        }
        lines += ["", f"## {METHODS.title(name)}", "", f"`attcl train --method {name}`"]
        tables: dict[str, list[str]] = {}
        for key in kind.model_fields:
            tables.setdefault(method_settings.section_of(key, kind, name), []).append(key)
        fixed = method_settings.fixed_names(kind)
        for table, keys in tables.items():
            lines += [
                "",
                f"### {METHODS.title(name)}: `[{table}]`",
                "",
                *_settings(kind, keys, columns, fixed),
            ]
        if kind.variants:
            lines += [
                "",
                f"### {METHODS.title(name)}: variants",
                "",
                "| `--variant` | sets |",
                "|---|---|",
            ]
            for variant, switches in kind.variants.items():
                chosen = ", ".join(f"`{key} = {_value(value)}`" for key, value in switches.items())
                lines.append(f"| `{variant}` | {chosen} |")
    segmenter = {
        preset: segmentation_settings.resolve(preset, {}) for preset in segmentation_presets.PRESETS
    }
    kind = segmentation_settings.SegmentSettings
    lines += ["", "## The segmenter", "", "`attcl segment`", ""]
    lines += _settings(kind, list(kind.model_fields), segmenter, [])
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Return every metric of volumes and of segmentations."""
    lines = ["# Metrics", "", _MADE, "## Volumes", "", "`attcl score` computes these.", ""]
    lines += [
        "| name | flag | unit | better | network | how it is measured |",
        "|---|---|---|---|---|---|",
    ]
    for name, metric in METRICS.items():
        better = "higher" if metric.higher_is_better else "lower"
        unit = "" if metric.unit == "1" else metric.unit
        network = metric.network or "none"
        flag = f"`--{metric.flag or name}`"
        lines.append(
            f"| `{name}` | {flag} | {unit} | {better} | {network} | {_cell(metric.policy)} |"
        )
    lines += [
        "",
        "## Segmentations",
        "",
        "`attcl segment` and `attcl evaluate` compute these. Empty masks: ",
    ]
    lines[-1] += f"{segmentation_metrics.POLICY}."
    lines += ["", "| name | title | unit | better |", "|---|---|---|---|"]
    for name, record in segmentation_metrics.METRICS.items():
        better = "higher" if record.higher_is_better else "lower"
        unit = "" if record.unit == "1" else record.unit
        lines.append(f"| `{name}` | {_cell(record.title)} | {unit} | {better} |")
    return "\n".join(lines) + "\n"


def layouts_page() -> str:
    """Return every layout of folders, and every name that a modality goes by."""
    lines = ["# Layouts", "", _MADE, "| `--layout` | datasets | path of a file |", "|---|---|---|"]
    for name, layout in LAYOUTS.items():
        lines.append(f"| `{name}` | {layout.title} | `{layout.template}` |")
    lines += ["", "`{prefix}` may be any folders. `attcl complete --layout` also writes:", ""]
    lines += ["| `--layout` | for | path of a file |", "|---|---|---|"]
    for name, layout in SUBMISSIONS.items():
        lines.append(f"| `{name}` | {layout.title} | `{layout.template}` |")
    lines += [
        "",
        "## Names of modalities",
        "",
        "Upper and lower case are equal. A new file is named as the other files ",
    ]
    lines[-1] += "of the dataset are; a layout's own name is used if there are none."
    heads = [f"`{name}`" for name in LAYOUTS]
    lines += [
        "",
        f"| modality | recognised names | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    for name, spellings in DEFAULT_MODALITIES.items():
        new = " | ".join(
            "" if layout.vocabulary else layout.tokens.get(name, name)
            for layout in LAYOUTS.values()
        )
        lines.append(f"| `{name}` | {', '.join(spellings)} | {new} |")
    lines += ["", "IXI has `t1`, `t2` and `pd`. In nnU-Net, `dataset.json` says what a number is."]
    lines += ["", "## Patients", "", "Who the patient of a case is follows from these names:", ""]
    lines += ["| dataset | a case | its patient | source |", "|---|---|---|---|"]
    for names in PUBLIC_NAMES:
        match = re.fullmatch(names.case, names.example)
        patient = match[1] if match else ""
        lines.append(f"| {names.title} | `{names.example}` | `{patient}` | {names.source} |")
    lines += ["", "## Formats that are not read", ""]
    lines += [
        "`attcl info` names such files; the next step is:",
        "",
        "| files | next step |",
        "|---|---|",
    ]
    for kind in KINDS.values():
        if kind.endings and kind.image and ".nii" not in kind.endings:
            lines.append(f"| {', '.join(f'`{it}`' for it in kind.endings)} | {kind.hint} |")
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """Return every public function of the package with its signature, arguments and result."""
    lines = [
        "# Python functions",
        "",
        _MADE,
        "[Use it from Python](../guides/python.md) has examples.",
        "",
    ]
    results: dict[str, type[Any]] = {}
    for name in PIPELINE:
        function = getattr(attcl_cli, name)
        signature = inspect.signature(function)
        parameters = ",\n    ".join(_parameters(signature))
        answer = str(signature.return_annotation).replace("'", "")
        lines += [
            f"## attcl_cli.{name}",
            "",
            "```text",
            f"{name}(\n    {parameters}\n) -> {answer}",
            "```",
            "",
        ]
        lines += _docstring(function)
        kind = getattr(inspect.getmodule(function), answer, None)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            results[answer] = kind
    lines += ["## Results", ""]
    for answer, kind in results.items():
        lines += [f"### {answer}", "", *_docstring(kind)]
        for member, value in vars(kind).items():
            if isinstance(value, property):
                lines += [f"- `{member}`: {_cell(inspect.getdoc(value) or '')}"]
            elif inspect.isfunction(value) and not member.startswith("_"):
                lines += [
                    f"- `{member}(...)`: {_cell((inspect.getdoc(value) or '').splitlines()[0])}"
                ]
        lines.append("")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Return every error code with its message, as they stand in the code."""
    lines = [
        "# Errors and exit codes",
        "",
        _MADE,
        "Every error has a message, a hint with the next step, and a code that does not change when the wording does. "
        "In Python, read them from `error.message`, `error.hint` and `error.code` of an `attcl_cli.AttclError`.",
        "",
        "With `--json`, a failure is a JSON document on stdout: `error`, `hint` and `code` of the first problem, "
        "`exit_code`, and `problems`, a list of all with `error`, `hint` and `code`. A command that has a result and "
        "failures, such as `attcl complete --keep-going`, adds these keys to the document of its result. "
        "The same lines are on stderr.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done; also: nothing to do |",
        "| 1 | failed |",
        "| 2 | wrong usage |",
        "| 3 | finished, but some cases failed or are missing |",
        "| 130 | interrupted by Ctrl-C, SIGTERM, a closed terminal or reader; the last line says how to resume |",
        "",
        "| code | exit code | message |",
        "|---|---|---|",
    ]
    for code, raised in sorted(error_codes().items()):
        kind, message = raised[0]
        exit_code = getattr(getattr(errors, kind, errors.AttclError), "exit_code", 1)
        lines.append(f"| `{code}` | {exit_code} | {_cell(message)} |")
    return "\n".join(lines) + "\n"


def error_codes() -> dict[str, list[tuple[str, str]]]:
    """Return code -> (class, message) of each place that raises it; what varies in a message is written `...`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "attcl_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        message = _skeleton(node.args[0])
                        found.setdefault(str(keyword.value.value), []).append(
                            (node.func.id, message)
                        )
    return found


def repository_page(name: str) -> str:
    """Return a file of the repository's root as a page: its links lead to pages if they are in docs/."""
    text = (ROOT / name).read_text(encoding="utf-8")
    links = {f"]({file}": f"]({page}" for page, file in REPOSITORY_FILES.items()}
    for old, new in {"](docs/": "](", **links}.items():
        text = text.replace(old, new)
    return re.sub(
        r"\[([^\]]+)\]\((?![a-z-]+:)([^)#]+\.(?:toml|txt|sh|py|cff|html)|[a-z]+/README\.md)\)",
        r"`\1`",
        text,
    )


def _parameters(signature: inspect.Signature) -> list[str]:
    """Return the parameters as text, `*` before the first that is keyword-only."""
    texts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        default = "SILENT" if parameter.default is SILENT else repr(parameter.default)
        needed = parameter.default is parameter.empty
        texts.append(
            f"{parameter.name}: {parameter.annotation}" + ("" if needed else f" = {default}")
        )
    return texts


def _docstring(described: Any) -> list[str]:
    """Return a Google docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    for line in (inspect.getdoc(described) or "").splitlines():
        entry = re.match(r"    (\w[\w, ]*): (.*)", line)
        if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            lines += ["", f"**{line}**", ""]
        elif entry:
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            lines.append(f"- {names}: {_cell(entry[2])}")
        elif line.startswith("    ") and lines and lines[-1]:
            lines[-1] += f" {_cell(line)}"
        else:
            lines.append(_cell(line))
    return [*lines, ""]


def _options(command: Any, context: Any) -> list[str]:
    rows = []
    for item in command.params:
        record = None if getattr(item, "hidden", False) else item.get_help_record(context)
        if record:
            flag, text = record
            rows.append(f"| `{flag}` | {_cell(text)} |")
    return ["| option | meaning |", "|---|---|", *rows]


def _settings(
    kind: type[BaseModel], keys: list[str], columns: Mapping[str, BaseModel], fixed: list[str]
) -> list[str]:
    lines = [
        f"| setting | {' | '.join(columns)} | type | meaning |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    for key in keys:
        field = kind.model_fields[key]
        values = " | ".join(_value(getattr(settings, key)) for settings in columns.values())
        note = " **fixed**" if key in fixed else ""
        lines.append(
            f"| `{key}` | {values} | {_type(field)} | {_cell(field.description or '')}{note} |"
        )
    return lines


def _type(field: FieldInfo) -> str:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return _cell(" | ".join(choices))
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    kind = names.get(field.annotation, "list of integers")  # type: ignore[arg-type]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join([kind, *bounds])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _skeleton(node: ast.expr) -> str:
    """Return a message with `...` for what varies."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_skeleton(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _skeleton(node.left) + _skeleton(node.right)
    return "..."


def _cell(text: str) -> str:
    """Return text that a cell of a table can hold."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()
