"""The Typer app: a command is its options, and a few lines that build, call and render.

Modules that need torch are imported inside the commands, so that `attcl --help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from attcl_cli import __version__
from attcl_cli.cli import terminal
from attcl_cli.cli.options import Source, Talk
from attcl_cli.devices import Precision
from attcl_cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, AttclError, InterruptedRun, UsageError
from attcl_cli.methods.settings import PRESETS, VARIANTS, parse_override
from attcl_cli.segmentation.settings import PRESETS as SEGMENT_PRESETS

# What the parser raises. Recent Typers bring a click of their own, so the class is found, not imported.
_ParserError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="attcl",
    help="Fill the holes of a multi-modal MRI dataset: learn from what is there, synthesise what is missing.",
    epilog="Examples:  attcl demo   |   attcl info BraTS2021/",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda, cuda:N or mps.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More talk on stderr.")]
DryRun = Annotated[
    bool, typer.Option("-n", "--dry-run", help="Say what would be done, and do nothing.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace earlier results; originals are never touched.")
]
Workers = Annotated[int, typer.Option("--num-workers", min=0, max=64, help="Cases read ahead.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
LayoutName = Annotated[
    str, typer.Option("--layout", help="auto, brats, brats2023, bids or slices.")
]
Vocabulary = Annotated[
    Path | None,
    typer.Option("--modalities", help="TOML file with other modality names or another naming."),
]
Ori = Annotated[Path, typer.Option("--ori", help="The incomplete dataset; it is only read.")]
Completed = Annotated[Path, typer.Option("--cpl", help="The synthesised volumes.")]
Truth = Annotated[
    Path | None,
    typer.Option(
        "--truth", help="The complete dataset.  [default: the one that splits.json names]"
    ),
]
# Of what trains: None where nothing was given.
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
Resume = Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="bf16 is faster on recent GPUs, and on CPUs with AMX; weights stay float32.  "
        "[default: fp32, or that of the run to --resume]",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        terminal.result(f"attcl {__version__}")
        raise typer.Exit


@app.command(
    "prepare-splits",
    epilog="Examples:  attcl prepare-splits BraTS2021/   |   attcl prepare-splits --ratio ratio2 -o small BraTS2021/",
)
def prepare_splits(
    dataset: Annotated[
        Path, typer.Argument(help="The dataset; it is only read.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the data tree.")
    ] = Path("data"),
    ratio: Annotated[
        str,
        typer.Option(
            "--ratio", help="ratio1, ratio2, ratio3 (the paper's scenarios) or a TOML file."
        ),
    ] = "ratio1",
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Cases of train/val/test, for example 170/23/50.")
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option("--fractions", help="Shares of train/val/test.  [default: 0.7/0.1/0.2]"),
    ] = None,
    subset: Annotated[
        str,
        typer.Option(
            "--subset", help="Share of the training cases to keep, for example 1/8 (BraTS_s)."
        ),
    ] = "1",
    link: Annotated[
        Literal["symlink", "hardlink", "copy"],
        typer.Option("--link", help="How files get into the data tree."),
    ] = "symlink",
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Split a dataset by patients and hide modalities as a scenario says; writes data/ with links and splits.json."""
    from attcl_cli.cli import prepare_splits as preparation

    preparation.prepare_splits(
        Source(dataset, layout, modalities),
        output,
        ratio=ratio,
        sizes=_triple(sizes, "--sizes", int),
        fractions=_triple(fractions, "--fractions", float),
        subset=_fraction(subset),
        link=link,
        seed=seed,
        overwrite=overwrite,
        dry_run=dry_run,
        talk=Talk(as_json=as_json, quiet=quiet),
    )


@app.command(
    "train",
    epilog="Examples:  attcl train   |   attcl train --preset tiny --steps 200 --set lambda_pair=5",
)
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
    from attcl_cli.cli import train as training

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
        talk=Talk(as_json=as_json, quiet=quiet),
    )


@app.command(
    "complete",
    epilog="Examples:  attcl complete --ori data/ --cpl out/   |   attcl complete -w runs/mine --target t2 --dry-run",
)
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
    from attcl_cli.cli import complete as completion

    if part_id > num_parts:
        raise UsageError(
            f"--part-id: {part_id}, wanted 1 to --num-parts ({num_parts})",
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
        talk=Talk(as_json=as_json, quiet=quiet, verbose=verbose),
    )


@app.command(
    "score",
    epilog="Examples:  attcl score --fid --lpips   |   attcl score --ssim --psnr --baselines --split all",
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
    from attcl_cli.cli import score as scoring

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
        talk=Talk(as_json=as_json, quiet=quiet),
    )


@app.command(
    "segment",
    epilog="Examples:  attcl segment --compare   |   attcl segment --input flair --preset tiny -o segment-flair",
)
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
    from attcl_cli.cli import segment as segmentation

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
        talk=Talk(as_json=as_json, quiet=quiet),
    )


@app.command("demo", epilog="Examples:  attcl demo   |   attcl demo -o /tmp/demo --cases 8")
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for everything that the demo makes.")
    ] = Path("demo"),
    cases: Annotated[int, typer.Option("--cases", min=3, max=200, help="Phantom patients.")] = 6,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole way on simulated patients, with bundled weights: about a minute on a CPU, ends with a report."""
    from attcl_cli.cli.demo import run

    talk = Talk(as_json=as_json, quiet=quiet)
    run(output, cases=cases, seed=seed, device=device, talk=talk)


@app.command("info", epilog="Examples:  attcl info BraTS2021/   |   attcl info data/ --json")
def info(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A dataset; without it: versions, device, weights.", show_default=False
        ),
    ] = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a folder holds: layout, cases, modalities, what is missing, what is wrong."""
    from attcl_cli.cli import info as inspection

    if folder is None:
        inspection.info_installation(as_json=as_json)
    else:
        inspection.info_dataset(Source(folder, layout, modalities), as_json=as_json)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the code that cli.md promises."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    code, told = 0, False
    try:
        code = app(args=arguments, prog_name="attcl", standalone_mode=False) or 0
    except AttclError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        terminal.error(error)
        code, told = error.exit_code, True
    except _ParserError as error:
        context = getattr(error, "ctx", None)
        help_of = context.command_path if context else "attcl"
        terminal.error(UsageError(error.format_message(), f"see: {help_of} --help"))  # type: ignore[attr-defined]
        code = EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `attcl info | head` does
        sys.stderr.close()
    if code == EXIT_INTERRUPTED and not told:  # Typer turns Ctrl-C into this code by itself
        terminal.error(
            InterruptedRun(
                "interrupted: finished files are kept, no half-written ones are left",
                "run the same command again to go on",
            )
        )
    sys.exit(code)


def _triple(text: str | None, flag: str, kind: type[Any]) -> Any:
    """`a/b/c` as three numbers, or None."""
    if text is None:
        return None
    try:
        first, second, third = (kind(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(
            f"{flag}: {text!r}, "
            f"wanted three numbers such as {'170/23/50' if kind is int else '0.7/0.1/0.2'}",
            "one for training, validation and test each",
        ) from error
    return first, second, third


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"--subset: {text!r}, wanted a share such as 1/8 or 0.125", "for example --subset 1/8"
        ) from error


def _span(text: str) -> tuple[int, int] | None:
    if text == "all":
        return None
    try:
        first, stop = (int(part) for part in text.split(":"))
    except ValueError:
        first = stop = 0
    if not 0 <= first < stop:
        raise UsageError(
            f"--slices: {text!r}, wanted all or FIRST:STOP such as 31:125",
            "for example --slices 31:125",
        )
    return first, stop
