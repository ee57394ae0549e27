"""`attcl export`: its options and how its result is shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.cli.options import (
    Completed,
    Debug,
    DryRun,
    Json,
    LayoutName,
    Ori,
    Overwrite,
    Quiet,
    Truth,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.errors import IncompleteError, counted
from attcl_cli.segmentation import EXPORTS

EXAMPLES = (
    "Examples:  attcl export nnunet Dataset501_completed   |   "
    "attcl export nnunet Dataset502_flair --input flair"
)


def export(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help=f"Format of the dataset: {', '.join(EXPORTS)}.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder to write; for nnunet: DatasetNNN_Name.", show_default=False
        ),
    ],
    ori: Ori = Path("data"),
    cpl: Completed = Path("out"),
    truth: Truth = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="What is exported: completed, real (the held-out ground truth), or a modality that all cases "
            "have.  [default: completed]",
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Leave out cases without a label map (exit code 3)."),
    ] = False,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the completed dataset for another segmenter. Links to images, label maps, and a description."""
    from attcl_cli.segmentation import run_export

    terminal = Terminal(as_json=as_json, quiet=quiet)
    result = run_export.export(
        format_,
        folder,
        ori=ori,
        cpl=cpl,
        truth=truth,
        input=input_,
        allow_missing=allow_missing,
        layout=layout,
        modalities=modalities,
        num_workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=terminal,
    )
    for note in result.notes:
        terminal.say(f"note: {note}")
    exported = result.exported
    if exported is None:
        cases = ", ".join(f"{count} {part}" for part, count in result.cases.items())
        if as_json:
            document(
                {
                    "output": str(folder),
                    "input": result.input,
                    "cases": dict(result.cases),
                    "notes": list(result.notes),
                }
            )
        else:
            terminal.result(f"would export {result.input} ({cases}) to {folder}")
        return
    for warning in result.warnings:
        terminal.say(f"warning: {warning}")
    incomplete = None
    if result.left_out:
        incomplete = IncompleteError(
            f"{folder}: cases left out: {len(result.left_out)}, expected all (the first: {result.left_out[0]})",
            "they have no label map",
            code="cases-left-out",
        )
    if not as_json:
        terminal.result(
            f"{folder}: {exported.train} training and {counted(exported.test, 'test case')}, "
            f"{counted(exported.linked, 'file')} linked, {exported.written} written"
        )
    content = {
        "output": str(folder),
        f"checked_by_{format_}": result.checked,
        **asdict(exported),
        "warnings": list(result.warnings),
    }
    terminal.end(content, incomplete)
