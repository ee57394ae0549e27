"""`attcl score`: its options, and how the scores are shown on a terminal.

What a metric is called comes from `scoring.metrics`; a flag per metric is made of its record.
"""

from __future__ import annotations

import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from attcl_cli.cli.options import (
    BackgroundText,
    BidsFilter,
    Completed,
    Debug,
    Device,
    DryRun,
    GpuShare,
    Json,
    LayoutName,
    Ori,
    Quiet,
    Truth,
    Viewer,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.errors import IncompleteError, counted, some
from attcl_cli.files import read_json
from attcl_cli.scoring.metrics import METRICS, flags

if TYPE_CHECKING:
    from attcl_cli.scoring.run import ScoreResult
    from attcl_cli.scoring.summary import Figure

_WIDTH = 80
EXAMPLES = (
    "Examples:  attcl score --fid --lpips   |   attcl score --ssim --psnr --baselines --split all"
)


def with_metric_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag per metric; its parameter `metrics` receives the names of those that are set."""
    parameters: list[inspect.Parameter] = []
    named: dict[str, str] = {}  # parameter -> flag
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name != "metrics":
            parameters.append(parameter)
            continue
        for flag, description in flags().items():
            name = flag.replace("-", "_")
            named[name] = flag
            kind = Annotated[bool, typer.Option(f"--{flag}", help=description)]
            parameters.append(parameter.replace(name=name, annotation=kind, default=False))

    @functools.wraps(command)
    def with_flags(**options: Any) -> None:
        chosen = {name: options.pop(name) for name in named}
        command(metrics=[named[name] for name, on in chosen.items() if on], **options)

    # What Typer reads.
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_flags


@with_metric_flags
def score(
    ori: Ori = Path("data"),
    cpl: Completed = Path("out"),
    truth: Truth = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for scores, report and pictures.")
    ] = Path("scores"),
    metrics: Sequence[str] = (),
    fid_network: Annotated[
        Literal["inception", "effnet-lite0"],
        typer.Option(
            "--fid-network",
            help="effnet-lite0 needs no download and is reported as fd-effnet and kd-effnet.",
        ),
    ] = "inception",
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(
            "--split", help="Which cases are scored.  [default: test; all without splits.json]"
        ),
    ] = None,
    directions: Annotated[
        bool,
        typer.Option(
            "--directions", help="Translate the real volumes in every direction (Table 2) instead."
        ),
    ] = False,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Also score a quantile-matched copy, and all trivial baselines by the networks; or no baseline.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--weights",
            help="Weights for --directions, --samples and --lpips-diversity.  "
            "[default: as attcl complete]",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=2,
            max=1000,
            help="Also score so many style samples per volume by --fid, --kid and --lpips "
            "(StarGAN v2: 10).  [default: 10 for --lpips-diversity, otherwise none]",
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Count missing volumes instead of failing (exit code 3)."
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never download a feature network.")
    ] = False,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    bids_filter: BidsFilter = None,
    background: BackgroundText = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Slices that a feature network sees at once.")
    ] = 32,
    device: Device = "auto",
    workers: Workers = 2,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Measure the cases on a Ray cluster: without an address (or local) one on this machine is started for "
            "the run, auto takes the running one, HOST:PORT another.  [default: in this process]",
        ),
    ] = None,
    gpu_share: GpuShare = None,
    viewer: Viewer = "slices",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare synthesised volumes with the ground truth.

    The scores and a report are written into the folder of --output.
    """
    from attcl_cli.data.background import parse_background
    from attcl_cli.scoring import run

    del debug  # `app.main` looks for it among the arguments
    terminal = Terminal(as_json=as_json, quiet=quiet)
    result = run.score(
        ori,
        cpl,
        truth=truth,
        output=output,
        metrics=metrics,
        fid_network=fid_network,
        baselines=baselines,
        directions=directions,
        samples=samples,
        weights=weights,
        split=split,
        allow_missing=allow_missing,
        offline=offline,
        layout=layout,
        modalities=modalities,
        bids_filter=bids_filter or [],
        background=parse_background(background),
        batch_size=batch_size,
        device=device,
        num_workers=workers,
        ray=ray,
        gpu_share=gpu_share,
        dry_run=dry_run,
        viewer=viewer,
        progress=terminal,
    )
    if dry_run:
        _show_plan(result, terminal)
        return
    incomplete = None
    hidden = result.comparison.volumes + len(result.missing)
    if result.missing:
        incomplete = IncompleteError(
            f"{cpl}: {len(result.missing)} of {counted(hidden, 'hidden volume')} not there, "
            "counted as n_missing, expected all",
            "summary.json lists them; attcl complete makes them",
            code="volumes-missing",
        )
    show(result, terminal, incomplete)


def show(
    result: ScoreResult, terminal: Terminal, incomplete: IncompleteError | None = None
) -> None:
    """Show the figures as tables, or the content of `summary.json` as one document; then raise the error, if any."""
    from attcl_cli.report.page import REPORT_FILE

    if not terminal.as_json:
        _show_tables(result, terminal)
    output = result.output
    files = {name: str(output / name) for name in (REPORT_FILE, "scores.csv", "summary.json")}
    summary = read_json(output / "summary.json")
    terminal.end({"output": str(output), "files": files, **summary}, incomplete)


def _show_tables(result: ScoreResult, terminal: Terminal) -> None:
    from attcl_cli.report.page import REPORT_FILE
    from attcl_cli.scoring.summary import left_out_of_tumour, measured, warn_of_few_slices

    figures, comparison = result.figures, result.comparison
    columns = [
        (metric, region)
        for metric, region in measured(figures)
        if region in METRICS[metric].regions
    ]
    by_volume = [column for column in columns if not METRICS[column[0]].network]
    by_network = [column for column in columns if METRICS[column[0]].network]
    for title, group in {
        "volume by volume, inside the brain": by_volume,
        "by feature networks, slices at 20 to 80 % of the height": by_network,
    }.items():
        if group:
            terminal.table(_table(figures, group), title=title)
            terminal.result("")
    metrics = [METRICS[name] for name in dict.fromkeys(name for name, _ in columns)]
    lower = [metric.title for metric in metrics if not metric.higher_is_better]
    if lower:
        terminal.say(f"lower is better: {', '.join(lower)}; of all others higher")
    for note in [*left_out_of_tumour(figures), *warn_of_few_slices(figures)]:
        terminal.say(f"note: {note}")
    if comparison.caveat:
        terminal.say(
            f"note: {comparison.caveat}, by name ({some(comparison.seen)}): such volumes look better than those of "
            "new patients"
        )
    elif not comparison.learned:
        terminal.say(
            "note: whether the weights were trained on some of these patients is not known: no run.json of attcl "
            "complete beside the volumes says it"
        )
    if result.verdict:
        terminal.result(
            *textwrap.wrap(result.verdict, _WIDTH, break_long_words=False, break_on_hyphens=False)
        )
    terminal.result(f"{result.output / REPORT_FILE}: open it in a browser")


def _table(figures: Sequence[Figure], columns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return a row per group and prediction, with a column per metric and region."""
    from attcl_cli.scoring.summary import redundant_directions

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    redundant = redundant_directions(figures)
    for figure in figures:
        if (figure.metric, figure.region) in columns and figure.group not in redundant:
            row = rows.setdefault(
                (figure.group, figure.prediction),
                {"target": figure.group, "what": figure.prediction, "n": 0}
                | {METRICS[metric].heading(region): "" for metric, region in columns},
            )
            row["n"] = max(row["n"], figure.n + figure.n_infinite)
            row[METRICS[figure.metric].heading(figure.region)] = _value(figure)
    return list(rows.values())


def _value(figure: Figure) -> float | str:
    if figure.n_infinite and not figure.n:
        return "inf"
    return "" if math.isnan(figure.mean) else figure.mean


def _show_plan(result: ScoreResult, terminal: Terminal) -> None:
    volumes, missing = result.comparison.volumes, len(result.missing)
    if terminal.as_json:
        document({"volumes": volumes, "missing": missing, "metrics": result.metrics})
    else:
        terminal.result(
            f"would score {counted(volumes, 'volume')} by {', '.join(result.metrics)} into {result.output}; "
            f"{missing} missing"
        )
