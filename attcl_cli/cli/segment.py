"""`attcl segment`: its options and how its result is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attcl_cli.cli.options import (
    BackgroundText,
    Completed,
    Debug,
    Device,
    DryRun,
    ForceData,
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
    Viewer,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.segmentation_scores import show_scores
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.errors import counted
from attcl_cli.methods.presets import overrides_of
from attcl_cli.segmentation.presets import PRESETS

if TYPE_CHECKING:
    from attcl_cli.segmentation.run import SegmentResult

EXAMPLES = "Examples:  attcl segment --compare   |   attcl segment --input flair --preset tiny -o segment-flair"

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="What the segmenter sees: completed, incomplete (missing channels are 0), real (the held-out "
        "ground truth), or a modality that all cases have, such as flair.  [default: completed]",
    ),
]
PerSlice = Annotated[
    bool, typer.Option("--per-slice", help="Also score each slice by itself, as the paper does.")
]


def segment(
    ori: Ori = Path("data"),
    cpl: Completed = Path("out"),
    truth: Truth = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for weights, predictions and scores.  [default: segment]",
        ),
    ] = None,
    input_: Input = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Train on one modality, incomplete, completed and real, for the same number of steps.",
        ),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help=f"Sizes of slices and network: {', '.join(PRESETS)}.  "
            "[default: small on a CPU, base on a GPU]",
        ),
    ] = None,
    set_: Overrides = None,
    steps: Steps = None,
    per_slice: PerSlice = False,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Leave out cases without a label map (exit code 3)."),
    ] = False,
    resume: Resume = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    background: BackgroundText = "auto",
    force: ForceData = False,
    seed: RunSeed = None,
    device: Device = "auto",
    precision: PrecisionOption = None,
    workers: Workers = 2,
    overwrite: Overwrite = False,
    viewer: Viewer = "slices",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train tumour segmenters and score them. On the completed dataset, or with --compare on all inputs."""
    from attcl_cli.data.background import parse_background
    from attcl_cli.segmentation import run

    terminal = Terminal(as_json=as_json, quiet=quiet)
    result = run.segment(
        ori,
        cpl,
        truth=truth,
        output=output,
        input=input_,
        compare=compare,
        preset=preset,
        overrides=overrides_of(set_, steps=steps, seed=seed),
        per_slice=per_slice,
        allow_missing=allow_missing,
        resume=resume,
        layout=layout,
        modalities=modalities,
        background=parse_background(background),
        force=force,
        device=device,
        precision=precision,
        num_workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        viewer=viewer,
        progress=terminal,
    )
    if not result.main:
        return
    if result.scores is None:
        _show_plan(result, terminal)
    else:
        show_scores(result.output, result.scores, terminal)


def _show_plan(result: SegmentResult, terminal: Terminal) -> None:
    from attcl_cli.segmentation.settings import explain

    if terminal.as_json:
        document(
            {
                "output": str(result.output),
                "device": result.device,
                "labels": result.labels,
                "inputs": {name: dict(counts) for name, counts in result.cases.items()},
                "left_out": list(result.left_out),
                "notes": list(result.notes),
                "settings": result.settings.model_dump(mode="json"),
            }
        )
        return
    terminal.table([{"input": name, **counts} for name, counts in result.cases.items()])
    terminal.result(
        f"would train {counted(result.settings.steps, 'step')} at {result.settings.image_size} pixels "
        f"on {result.device}, into {result.output}",
        "",
        *explain(result.settings).splitlines(),
    )
