"""`attcl evaluate`: its options and how its result is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.cli.options import (
    Completed,
    Debug,
    Device,
    DryRun,
    ForceData,
    Json,
    LayoutName,
    Ori,
    Overwrite,
    Quiet,
    Truth,
    Viewer,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.segment import PerSlice
from attcl_cli.cli.segmentation_scores import show_scores
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.errors import counted

EXAMPLES = "Examples:  attcl evaluate segment/predictions   |   attcl evaluate --weights segment --input incomplete"


def evaluate(
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PREDICTIONS]",
            help="Folder of label maps, one CASE.nii.gz per test case.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "-w",
            "--weights",
            metavar="SEGMENTER",
            help="Evaluate a trained segmenter instead: its folder or weights file.",
        ),
    ] = None,
    ori: Ori = Path("data"),
    cpl: Completed = Path("out"),
    truth: Truth = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the scores.  [default: segment-PREDICTIONS, or segment-evaluated]",
        ),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="What the segmenter sees: completed, incomplete, real, or a modality.  "
            "[default: what it was trained on]",
        ),
    ] = None,
    per_slice: PerSlice = False,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Leave out cases without label map or prediction (exit code 3)."
        ),
    ] = False,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    background: Annotated[
        str | None,
        typer.Option(
            "--background",
            metavar="VALUE",
            help="What is background in the images: auto, keep, or a value.  [default: as the segmenter was trained]",
        ),
    ] = None,
    force: ForceData = False,
    device: Device = "auto",
    workers: Workers = 2,
    overwrite: Overwrite = False,
    viewer: Viewer = "slices",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score label maps of test cases, or a trained segmenter. Any program may have made the label maps."""
    from attcl_cli.data.background import parse_background
    from attcl_cli.segmentation import run_evaluate

    terminal = Terminal(as_json=as_json, quiet=quiet)
    result = run_evaluate.evaluate(
        predictions,
        weights=weights,
        ori=ori,
        cpl=cpl,
        truth=truth,
        output=output,
        input=input_,
        per_slice=per_slice,
        allow_missing=allow_missing,
        layout=layout,
        modalities=modalities,
        background=None if background is None else parse_background(background),
        force=force,
        device=device,
        num_workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        viewer=viewer,
        progress=terminal,
    )
    if result.scores is not None:
        show_scores(result.output, result.scores, terminal)
        return
    for note in result.notes:
        terminal.say(f"note: {note}")
    if as_json:
        content = {"output": str(result.output), "cases": result.cases}
        document({**content, "notes": list(result.notes)})
    else:
        terminal.result(f"would score {counted(result.cases, 'test case')}, into {result.output}")
