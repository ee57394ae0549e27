"""`attcl weights`: which weights there are, what their cards say, and whether the files are sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attcl_cli.cli import terminal
from attcl_cli.cli.options import Debug, Json
from attcl_cli.errors import AttclError, all_of, counted

if TYPE_CHECKING:
    from attcl_cli.methods.bundled import Listed

EXAMPLES = "Examples:  attcl weights list   |   attcl weights show phantom-tiny"

_TRAINED_ON = {"patients": "patients", "phantom": "phantoms"}  # kind of weights -> its cases

app = typer.Typer(
    help="List, show and verify weights. These are bundled, in the folder ATTCL_WEIGHTS, or of runs.",
    epilog=EXAMPLES,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        terminal.result(*context.get_help().splitlines())


@app.command("list", epilog="Examples:  attcl weights list   |   attcl weights list --json")
def list_(as_json: Json = False, debug: Debug = False) -> None:
    """List the weights that are found, also those of the runs in runs/."""
    from attcl_cli.methods.bundled import list_weights
    from attcl_cli.methods.weights import note_of_folder

    found = list_weights()
    notes = [note] if (note := note_of_folder()) else []
    if as_json:
        terminal.document({"weights": [_described(item) for item in found], "notes": notes})
        return
    if not found:
        terminal.result("no weights found: attcl train makes some")
    terminal.table([_row(item) for item in found])
    for note in notes:
        terminal.result(f"- {note}")
    for item in found:
        if item.problem is not None:
            terminal.result(f"- {item.problem.message}")
        elif not item.finished:
            terminal.result(
                f"- {item.name}: not finished ({item.status}), taken only if it is named"
            )
    if found:
        terminal.result("", "attcl weights show NAME: data, terms, scores and limits of one")


@app.command(
    "show",
    epilog="Examples:  attcl weights show phantom-tiny   |   attcl weights show runs/mine --json",
)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A bundled name, a run's folder, or a weights file.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the card of weights: data, terms, scores, limits."""
    from attcl_cli.methods.bundled import look_up

    item = look_up(name)
    if item.problem is not None:
        raise item.problem
    content = _described(item)
    if as_json:
        terminal.document(content)
        return
    scores = content.pop("scores", [])
    rows = {
        **content,
        "trained_on": f"{counted(len(content['trained_on']), 'case')} (--json names them)",
    }
    if item.origin != "runs":
        del rows["finished"]
    terminal.table(
        [{"what": key.replace("_", " "), "found": _text(value)} for key, value in rows.items()]
    )
    for title, table in _score_tables(scores).items():
        terminal.result("")
        terminal.table(table, title=title)


@app.command(
    "verify",
    epilog="Examples:  attcl weights verify   |   attcl weights verify phantom-tiny",
)
def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A bundled name, a run's folder, or a weights file.  [default: all that are listed]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check weights against their cards, and load them. Exit code 1 if a file is damaged."""
    from attcl_cli.methods.bundled import list_weights, look_up

    found = [look_up(name)] if name is not None else list_weights()
    problems = {item.path: _problem(item) for item in found}
    damaged = [problem for problem in problems.values() if problem is not None]
    if not as_json:
        for item in found:
            terminal.result(f"{item.name}: {'damaged' if problems[item.path] else 'sound'}")
    content = {"weights": [_verified(item, problems[item.path]) for item in found]}
    terminal.Terminal(as_json=as_json).end(content, all_of(damaged))


def _problem(item: Listed) -> AttclError | None:
    """Return what is wrong with weights, also with tensors that a hash says nothing about; None if they are sound."""
    import torch

    from attcl_cli.methods.weights import load_method

    if item.problem is not None or item.weights is None:
        return item.problem
    try:
        load_method(item.weights, torch.device("cpu"))
    except AttclError as error:
        return error
    return None


def _described(item: Listed) -> dict[str, Any]:
    """Return all that is known of weights, as plain data."""
    from attcl_cli.methods.bundled import describe_sources
    from attcl_cli.methods.settings import title_of

    content: dict[str, Any] = {
        "name": item.name,
        "path": str(item.path),
        "origin": item.origin,
        "kind": item.kind,
        "finished": item.finished,
    }
    if item.problem is not None:
        content |= {"problem": item.problem.message, "code": item.problem.code}
    if item.weights is not None:
        info = item.weights.info
        content |= {
            "method": info.settings.method,
            "method_title": title_of(info.settings),
            "sources": describe_sources(info.rule, info.modalities),
            "modalities": list(info.modalities),
            "image_size": info.settings.image_size,
            "steps": info.steps,
            "trained_on": list(info.trained_on),
            "sha256": item.weights.sha256,
            "attcl_version": info.attcl_version,
        }
    if item.card is not None:
        card = item.card.model_dump(mode="json")
        content |= {key: value for key, value in card.items() if key != "kind"}
    return content


def _verified(item: Listed, problem: AttclError | None) -> dict[str, Any]:
    digest = item.weights.sha256 if item.weights is not None else None
    return {
        "name": item.name,
        "path": str(item.path),
        "sha256": digest,
        "sound": problem is None,
        "problem": problem.message if problem is not None else None,
    }


def _row(item: Listed) -> dict[str, Any]:
    """Return one row of the table of weights."""
    content = _described(item)
    trained_on = content.get("trained_on", [])
    return {
        "name": item.name,
        "trained on": f"{len(trained_on)} {_TRAINED_ON.get(item.kind, 'cases')}"
        if trained_on
        else "",
        "method": content.get("method_title", "damaged"),
        "sources": content.get("sources", ""),
        "modalities": ", ".join(content.get("modalities", [])),
        "pixels": content.get("image_size", ""),
    }


def _score_tables(scores: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return a table per data and metric: what the weights reach and each baseline, by direction and on average."""
    from attcl_cli.scoring.metrics import METRICS

    tables: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        row = {"sources": score["sources"], "target": score["target"], "weights": score["value"]}
        metric = METRICS.get(score["metric"].split()[0].rstrip(","))
        better = (
            f" ({'higher' if metric.higher_is_better else 'lower'} is better)" if metric else ""
        )
        title = f"{score['data']} (n = {score['n']}): {score['metric']}{better}"
        tables.setdefault(title, []).append(row | score["beside"])
    return {title: [*rows, *_means(rows)] for title, rows in tables.items()}


def _means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean of the directions from one source and of those from several, where there are two or more."""
    means = []
    for sources, several in (("mean of one", False), ("mean of several", True)):
        chosen = [row for row in rows if ("," in row["sources"]) == several]
        if len(chosen) < 2:  # noqa: PLR2004
            continue
        digits = max(len(str(row["weights"]).partition(".")[2]) for row in chosen)
        figures = {
            name: round(fmean(row[name] for row in chosen), digits)
            for name in chosen[0]
            if name not in {"sources", "target"} and all(name in row for row in chosen)
        }
        means.append({"sources": sources, "target": "", **figures})
    return means


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
