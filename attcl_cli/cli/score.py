"""`attcl score`: compare synthesised volumes with the held-out ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from attcl_cli.cli.options import (
    Completed,
    Debug,
    Device,
    DryRun,
    Json,
    LayoutName,
    Ori,
    Quiet,
    Truth,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal

EXAMPLES = (
    "Examples:  attcl score --fid --lpips   |   attcl score --ssim --psnr --baselines --split all"
)


def score(
    ori: Ori = Path("data"),
    cpl: Completed = Path("out"),
    truth: Truth = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for scores, report and pictures.")
    ] = Path("scores"),
    fid: Annotated[
        bool, typer.Option("--fid", help="Frechet Inception distance, real against synthetic.")
    ] = False,
    kid: Annotated[
        bool, typer.Option("--kid", help="Kernel Inception distance; sound for few slices, too.")
    ] = False,
    lpips: Annotated[
        bool,
        typer.Option("--lpips", help="Perceptual distance to the real slice; lower is better."),
    ] = False,
    lpips_diversity: Annotated[
        bool,
        typer.Option(
            "--lpips-diversity", help="Distance between samples of one source; higher is better."
        ),
    ] = False,
    ssim: Annotated[
        bool, typer.Option("--ssim", help="Structural similarity by region, and the challenge's.")
    ] = False,
    psnr: Annotated[bool, typer.Option("--psnr", help="Peak signal-to-noise ratio, dB.")] = False,
    nmse: Annotated[
        bool, typer.Option("--nmse", help="Squared error over squared truth; lower is better.")
    ] = False,
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
        bool,
        typer.Option(
            "--baselines", help="Score copies, means of the sources and zeros by the networks, too."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--weights",
            help="For --directions and --lpips-diversity.  [default: the newest run]",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=2, max=1000, help="Samples of --lpips-diversity.")
    ] = 10,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Count missing volumes (exit code 3) and go on."),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never download a feature network.")
    ] = False,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Slices a feature network sees at once.")
    ] = 32,
    device: Device = "auto",
    workers: Workers = 2,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare synthesised volumes with the hidden truths; writes scores/ with a report. Default: SSIM, PSNR, NMSE."""
    from attcl_cli.data.dataset import Source
    from attcl_cli.scoring import run as scoring

    chosen = {
        "fid": fid,
        "kid": kid,
        "lpips": lpips,
        "lpips-diversity": lpips_diversity,
        "ssim": ssim,
        "ssim-brasyn": ssim,
        "psnr": psnr,
        "nmse": nmse,
    }
    scoring.score(
        Source(ori, layout, modalities),
        cpl,
        output,
        scoring.Wanted(
            metrics=[name for name, on in chosen.items() if on],
            fid_network=fid_network,
            baselines=baselines,
            directions=directions,
            samples=samples,
            offline=offline,
        ),
        truth=truth,
        split=split,
        weights=weights,
        allow_missing=allow_missing,
        device=device,
        batch_size=batch_size,
        workers=workers,
        dry_run=dry_run,
        talk=Terminal(as_json=as_json, quiet=quiet),
    )
