"""`attcl complete`: synthesise every missing volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.cli.options import (
    Debug,
    Device,
    DryRun,
    Json,
    Ori,
    Overwrite,
    Quiet,
    Verbose,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal
from attcl_cli.errors import UsageError

EXAMPLES = "Examples:  attcl complete --ori data/ --cpl out/   |   attcl complete -w runs/mine --target t2 --dry-run"


def complete(
    ori: Ori = Path("data"),
    cpl: Annotated[
        Path, typer.Option("--cpl", help="Folder for the synthesised volumes, and only these.")
    ] = Path("out"),
    weights: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--weights",
            help="A run's folder, a weights file, or a bundled name.  [default: the newest run]",
        ),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            "--fallback",
            help="Weights for the cases that lack sources that the others need.  [default: none]",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Only this modality; may be given several times."),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", min=1, help="Slices on the device at once; never changes results."
        ),
    ] = 64,
    slices: Annotated[
        str, typer.Option("--slices", help="all, or FIRST:STOP such as 31:125.")
    ] = "all",
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            min=0,
            max=1000,
            help="Write the mean of so many drawn looks; 0: the reference's.",
        ),
    ] = 0,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="Also write the samples' standard deviation (<name>_uncertainty)."
        ),
    ] = False,
    link_originals: Annotated[
        bool,
        typer.Option(
            "--link-originals", help="Also link the originals, so that --cpl is a whole dataset."
        ),
    ] = False,
    num_parts: Annotated[
        int, typer.Option("--num-parts", min=1, help="Share the cases between this many runs.")
    ] = 1,
    part_id: Annotated[
        int, typer.Option("--part-id", min=1, help="Which share this run does, from 1.")
    ] = 1,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Do the sound cases; bad ones are listed, exit code 3."),
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="auto, brats, brats2023, bids or slices; or brasyn-submission: writes the challenge's flat folder.",
        ),
    ] = "auto",
    modalities: Vocabulary = None,
    device: Device = "auto",
    workers: Workers = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Synthesise every missing volume (Algorithm 1); finished files are never made again."""
    from attcl_cli.completion import command as completion
    from attcl_cli.data.dataset import Source

    if part_id > num_parts:
        raise UsageError(
            f"--part-id: {part_id}, expected 1 to --num-parts ({num_parts})",
            "parts are counted from 1: --num-parts 4 --part-id 1",
        )
    completion.complete(
        Source(ori, layout, modalities),
        cpl,
        weights=weights,
        fallback=fallback,
        targets=target or [],
        batch_size=batch_size,
        slices=_span(slices),
        samples=samples,
        uncertainty=uncertainty,
        link_originals=link_originals,
        part=(part_id, num_parts),
        keep_going=keep_going,
        device=device,
        workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        talk=Terminal(as_json=as_json, quiet=quiet, verbose=verbose),
    )


def _span(text: str) -> tuple[int, int] | None:
    if text == "all":
        return None
    try:
        first, stop = (int(part) for part in text.split(":"))
    except ValueError:
        first = stop = 0
    if not 0 <= first < stop:
        raise UsageError(
            f"--slices: {text!r}, expected all or FIRST:STOP such as 31:125",
            "for example --slices 31:125",
        )
    return first, stop
