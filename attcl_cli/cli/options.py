"""Options that several commands share: which dataset, which modalities, how much to show.

Options of a single command are left to its own file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.devices import Precision
from attcl_cli.report.viewers import ViewerName

IF_WITHOUT_VALUE = {"--ray": "local"}
"""Option -> its value if it is given without one."""

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda, cuda:N or mps.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More messages on stderr.")]
DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Show what would be done, and do nothing.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace earlier results; originals are never touched.")
]
Workers = Annotated[int, typer.Option("--num-workers", min=0, max=64, help="Cases read ahead.")]
Viewer = Annotated[
    ViewerName,
    typer.Option(
        "--viewer",
        help="Of the page: slices; or niivue, which adds NiiVue with the worst volumes in whole (up to 20 MB).",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
LayoutName = Annotated[
    str, typer.Option("--layout", help=f"How files are named: auto, {', '.join(LAYOUTS)}.")
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(
        "--modalities",
        help="TOML file that says what names mean: modalities, patients, label maps, paths, files to ignore.",
    ),
]
BidsFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--bids-filter",
        metavar="[MODALITY:]KEY=VALUE",
        help="Which of several files of a modality is meant in BIDS, such as run=1 or t1:acq=mprage; "
        "may be given several times.",
    ),
]
BackgroundText = Annotated[
    str,
    typer.Option(
        "--background",
        metavar="auto|keep|VALUE",
        help="What is background in the volumes: auto finds the value of each and subtracts it, keep takes intensities "
        "as stored, a number is subtracted.",
    ),
]
ForceData = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Take volumes that a check of their voxels refuses (skull, noise, shifts, units).",
    ),
]
Ori = Annotated[Path, typer.Option("-i", "--ori", help="The incomplete dataset; it is only read.")]
Completed = Annotated[Path, typer.Option("--cpl", help="The synthesised volumes.")]
Truth = Annotated[
    Path | None,
    typer.Option(
        "--truth", help="The complete dataset.  [default: the one that splits.json names]"
    ),
]
GpuShare = Annotated[
    float | None,
    typer.Option(
        "--gpu-share", help="With --ray: of a GPU, for each worker on one.  [default: a whole one]"
    ),
]
# Of commands that train; None if the option was not given.
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given several times."),
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Training steps.  [default: the preset's]")
]
RunSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of everything random.  [default: 0]")
]
Resume = Annotated[Path | None, typer.Option("--resume", help="Resume the run in this folder.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="bf16 is faster on recent GPUs, and on CPUs with amx_bf16 or avx512_bf16; weights stay float32.  "
        "[default: fp32, or that of the run to --resume]",
    ),
]
