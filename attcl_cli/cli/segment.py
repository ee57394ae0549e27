"""`attcl segment`: train tumour segmenters, and show what completion does for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.cli.options import (
    Completed,
    Debug,
    Device,
    DryRun,
    Json,
    LayoutName,
    Ori,
    Overrides,
    Overwrite,
    PrecisionOption,
    Quiet,
    Resume,
    RunSeed,
    Steps,
    Truth,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal
from attcl_cli.methods.settings import parse_override
from attcl_cli.segmentation.settings import PRESETS as SEGMENT_PRESETS

EXAMPLES = "Examples:  attcl segment --compare   |   attcl segment --input flair --preset tiny -o segment-flair"


def segment(
    ori: Ori = Path("data"),
    cpl: Completed = Path("out"),
    truth: Truth = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for weights, predictions and scores.  [default: segment, or one beside it]",
        ),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="What the segmenter sees: completed, incomplete (missing channels are 0), real (the hidden truths), "
            "or a modality that all cases have, such as flair.  [default: completed]",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="One modality, incomplete, completed and real, with the same budget."
        ),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help=f"Sizes of slices and network: {', '.join(SEGMENT_PRESETS)}.  [default: base]",
        ),
    ] = None,
    set_: Overrides = None,
    steps: Steps = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "-w", "--weights", help="Only evaluate these, a segmenter's folder or weights file."
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--evaluate", metavar="DIR", help="Only score the label maps in a folder, CASE.nii.gz."
        ),
    ] = None,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--export",
            metavar="nnunet DIR",
            help="Only write a raw dataset for nnU-Net v2; DIR is named DatasetNNN_Name.",
        ),
    ] = None,
    per_slice: Annotated[
        bool,
        typer.Option("--per-slice", help="Also score each slice by itself, as the paper does."),
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", help="Leave out cases without label map or prediction (exit code 3)."
        ),
    ] = False,
    resume: Resume = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    seed: RunSeed = None,
    device: Device = "auto",
    precision: PrecisionOption = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train tumour segmenters on the completed and on the incomplete dataset, and score both; writes segment/."""
    from attcl_cli.segmentation import command as segmentation

    given = {"steps": steps, "seed": seed}
    overrides = dict(parse_override(text) for text in set_ or [])
    overrides |= {key: value for key, value in given.items() if value is not None}
    asked = segmentation.Asked(
        ori=str(ori),
        cpl=str(cpl),
        truth=str(truth) if truth else None,
        layout=layout,
        modalities=str(modalities) if modalities else None,
        input=input_,
        compare=compare,
        preset=preset,
        overrides=tuple(overrides.items()),
        per_slice=per_slice,
        allow_missing=allow_missing,
    )
    segmentation.start(
        asked,
        segmentation.Mode(output, resume, weights, evaluate, export),
        device=device,
        precision=precision,
        workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        talk=Terminal(as_json=as_json, quiet=quiet),
    )
