"""`attcl train`: learn to translate between the modalities that the training cases have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.cli.options import (
    Debug,
    Device,
    DryRun,
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
from attcl_cli.cli.terminal import Terminal
from attcl_cli.methods.settings import PRESETS, VARIANTS, parse_override

EXAMPLES = "Examples:  attcl train   |   attcl train --preset tiny --steps 200 --set lambda_pair=5"


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
            help="attcl-gan (one source a volume) or plave (all that a case has).  [default: attcl-gan]",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help=f"Sizes of images and networks, and what goes with them: {', '.join(PRESETS)}.  [default: base]",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", help=f"AttCL-GAN's ablations (Table 4): {', '.join(VARIANTS)}."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="TOML file of settings, such as a run's config.toml."),
    ] = None,
    set_: Overrides = None,
    steps: Steps = None,
    resume: Resume = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
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
    """Learn to translate between the modalities that the training cases have; writes runs/<run>/."""
    from attcl_cli.data.dataset import Source
    from attcl_cli.training import run as training

    given = {"method": method, "steps": steps, "seed": seed}
    overrides = dict(parse_override(text) for text in set_ or [])
    training.train(
        Source(data or training.data_of(resume), layout, modalities),
        output,
        preset=preset,
        variant=variant,
        config=config,
        overrides=overrides | {key: value for key, value in given.items() if value is not None},
        resume=resume,
        device=device,
        precision=precision,
        workers=workers,
        tensorboard=tensorboard,
        dry_run=dry_run,
        talk=Terminal(as_json=as_json, quiet=quiet),
    )
