"""`attcl train`: learn to translate between the modalities that the training cases have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.cli.options import (
    BackgroundText,
    BidsFilter,
    Debug,
    Device,
    DryRun,
    ForceData,
    Json,
    LayoutName,
    Overrides,
    PrecisionOption,
    Quiet,
    Resume,
    RunSeed,
    Steps,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.errors import counted
from attcl_cli.methods import METHODS
from attcl_cli.methods.presets import FURTHER_PRESETS, PRESETS, overrides_of

EXAMPLES = "Examples:  attcl train --minutes 90   |   attcl train --preset tiny --steps 200 --set lambda_pair=5"


def train(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="What prepare-splits wrote, or any dataset (then all its cases are used).  "
            "[default: data; with --resume, the run's own]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the run.  [default: runs/<time>-<method>]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help=f"The method: {METHODS.listing()}.  [default: attcl-gan]",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help=f"Sizes, and the settings that go with them: {', '.join(PRESETS)}; some methods have "
            f"{', '.join(FURTHER_PRESETS)}, too.  [default: small on a CPU, base on a GPU]",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="A variant of the method, such as stargan-v2 (AttCL-GAN, Table 4) or aca-gan (PLAVE's ancestor).",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="TOML file of settings, such as a run's config.toml."),
    ] = None,
    set_: Overrides = None,
    steps: Steps = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs", min=1, help="Passes over the training slices, in place of --steps."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.01,
            help="Plan the run to end in this time on this machine, in place of --steps; with --resume, so much more.",
        ),
    ] = None,
    resume: Resume = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    bids_filter: BidsFilter = None,
    background: BackgroundText = "auto",
    force: ForceData = False,
    seed: RunSeed = None,
    device: Device = "auto",
    precision: PrecisionOption = None,
    workers: Workers = 2,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write statistics for TensorBoard.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on the modalities that the cases have. Write runs/<run>/ with its weights."""
    from attcl_cli.data.background import parse_background
    from attcl_cli.methods.settings import explain
    from attcl_cli.report.page import REPORT_FILE
    from attcl_cli.training import run

    terminal = Terminal(as_json=as_json, quiet=quiet)
    result = run.train(
        data,
        output=output,
        method=method,
        preset=preset,
        variant=variant,
        config=config,
        overrides=overrides_of(set_, steps=steps, seed=seed),
        epochs=epochs,
        minutes=minutes,
        resume=resume,
        layout=layout,
        modalities=modalities,
        bids_filter=bids_filter or [],
        background=parse_background(background),
        force=force,
        device=device,
        precision=precision,
        num_workers=workers,
        tensorboard=tensorboard,
        dry_run=dry_run,
        progress=terminal,
    )
    if not result.main or (result.finished_before and not as_json):
        return
    page = result.run_dir / REPORT_FILE
    described = {
        "run": str(result.run_dir),
        "device": str(result.device),
        "cases": len(result.cases),
        "notes": list(result.notes),
    }
    if dry_run:
        if as_json:
            document({**described, "settings": result.settings.model_dump(mode="json")})
            return
        learned = (
            counted(len(result.cases), "case") if result.cases else f"the slices in {result.data}"
        )
        terminal.result(
            f"would train on {learned}, on {result.device}, into {result.run_dir}",
            "",
            *explain(result.settings).splitlines(),
        )
        if minutes is not None:
            planned = f"as many as end in {minutes:g} min on this machine, which is measured"
            terminal.result("", f"steps: {planned} when the training slices are ready")
        elif result.settings.epochs:
            terminal.result("", "steps are counted when the training slices are ready")
    elif as_json:
        outcome = {
            "steps": result.weights_step,
            "weights": str(result.weights),
            "report": str(page),
        }
        document({**described, **outcome, "sha256": run.weights_sha256(result)})
    else:
        terminal.result(str(result.weights), f"{page}: open it in a browser")
