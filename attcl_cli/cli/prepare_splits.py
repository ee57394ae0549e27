"""`attcl prepare-splits`: draws the splits and writes the data tree."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from attcl_cli.cli import terminal
from attcl_cli.cli.options import (
    Debug,
    DryRun,
    Json,
    LayoutName,
    Overwrite,
    Quiet,
    Seed,
    Vocabulary,
)
from attcl_cli.cli.terminal import Terminal
from attcl_cli.data import splits
from attcl_cli.data.dataset import Source, check
from attcl_cli.errors import UsageError, raise_all
from attcl_cli.run_record import RunInfo

EXAMPLES = "Examples:  attcl prepare-splits BraTS2021/   |   attcl prepare-splits --ratio ratio2 -o small BraTS2021/"


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
    _prepare(
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
        talk=Terminal(as_json=as_json, quiet=quiet),
    )


def _prepare(
    source: Source,
    output: Path,
    *,
    ratio: str = "ratio1",
    sizes: tuple[int, int, int] | None = None,
    fractions: tuple[float, float, float] | None = None,
    subset: Fraction = Fraction(1),
    link: Literal["symlink", "hardlink", "copy"] = "symlink",
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Draws the splits and writes the data tree."""
    dataset = source.open()
    raise_all(check(dataset))
    made = splits.make_splits(
        dataset, ratio=ratio, sizes=sizes, fractions=fractions, subset=subset, seed=seed
    )
    written = False
    if dry_run:
        splits.is_written(dataset, made, output, overwrite=overwrite)
    else:
        written = splits.write_tree(dataset, made, output, link=link, overwrite=overwrite)
    if written:
        config = {"dataset": str(source.folder), "ratio": made.ratio, "link": link}
        config |= {"layout": dataset.layout.name, "subset": str(subset)}
        RunInfo(output / "run.json", "prepare-splits", config=config, seed=seed).finish(0)
    if talk.as_json:
        terminal.document({"output": str(output), "written": written, **splits.to_json(made)})
        return
    talk.table(made.table(), title=f"{made.ratio}: what remains of {source.folder}")
    said = "written" if written else "holds these very splits, nothing written"
    terminal.say(f"{output}: {'nothing written (dry run)' if dry_run else said}", quiet=talk.quiet)


def _triple(text: str | None, flag: str, kind: type[Any]) -> Any:
    """`a/b/c` as three numbers, or None."""
    if text is None:
        return None
    try:
        first, second, third = (kind(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(
            f"{flag}: {text!r}, "
            f"expected three numbers such as {'170/23/50' if kind is int else '0.7/0.1/0.2'}",
            "one for training, validation and test each",
        ) from error
    return first, second, third


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"--subset: {text!r}, expected a share such as 1/8 or 0.125", "for example --subset 1/8"
        ) from error
