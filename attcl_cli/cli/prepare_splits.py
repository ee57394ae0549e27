"""`attcl prepare-splits`: its options and how its result is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from attcl_cli.cli.options import (
    BackgroundText,
    BidsFilter,
    Debug,
    DryRun,
    ForceData,
    Json,
    LayoutName,
    Overwrite,
    Quiet,
    Seed,
    Vocabulary,
)
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.errors import UsageError, quoted

EXAMPLES = "Examples:  attcl prepare-splits BraTS2021/   |   attcl prepare-splits --ratio ratio2 -o small BraTS2021/"

# Split -> what follows if no case is in it.
_WITHOUT = {
    "train": "weights come from elsewhere",
    "val": "training keeps its last weights instead of the best",
    "test": "score and segment have nothing to measure",
}


def prepare_splits(
    dataset: Annotated[
        Path, typer.Argument(help="The complete dataset; it is only read.", show_default=False)
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
        str | None,
        typer.Option("--sizes", help="Numbers of train/val/test cases, for example 170/23/50."),
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
        typer.Option("--link", help="How files are placed in the data tree."),
    ] = "symlink",
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    bids_filter: BidsFilter = None,
    background: BackgroundText = "auto",
    force: ForceData = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Split a dataset by patients and hide modalities. Write data/: links to what remains, and splits.json."""
    from attcl_cli.data import prepare, splits
    from attcl_cli.data.background import parse_background

    terminal = Terminal(as_json=as_json, quiet=quiet)
    prepared = prepare.prepare_splits(
        dataset,
        output,
        ratio=ratio,
        sizes=triple(sizes, "--sizes", int),
        fractions=triple(fractions, "--fractions", float),
        subset=subset,
        link=link,
        layout=layout,
        modalities=modalities,
        bids_filter=bids_filter or [],
        background=parse_background(background),
        force=force,
        seed=seed,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=terminal,
    )
    if as_json:
        document(
            {
                "output": str(output),
                "written": prepared.written,
                **splits.to_json(prepared.splits),
            }
        )
        return
    title = f"{prepared.splits.ratio}: what remains of {dataset}"
    terminal.table(prepared.splits.table(), title=title)
    if dry_run:
        outcome = "nothing written (dry run)"
    elif prepared.written:
        outcome = "written"
    else:
        outcome = "holds these very splits, nothing written"
    terminal.say(f"{output}: {outcome}")
    empty = [split for split, items in prepared.splits.splits.items() if not items]
    for split in empty:
        terminal.say(f"note: no case in {split}: {_WITHOUT[split]}; --sizes sets the numbers")
    if not dry_run:
        terminal.say(f"next: {_next(output, trains='train' not in empty)}")


def _next(output: Path, *, trains: bool) -> str:
    """Return the commands that a data tree is for."""
    complete = f"attcl complete --ori {quoted(output)} --cpl out"
    if not trains:
        return complete
    data = "" if output == Path("data") else f" --data {quoted(output)}"
    return f"attcl train{data}; or, with bundled weights: {complete}"


def triple(text: str | None, flag: str, kind: type[Any]) -> Any:
    """Return `a/b/c` as three numbers; None stays None.

    Raises:
        UsageError: the text is something else.
    """
    if text is None:
        return None
    try:
        first, second, third = (kind(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(
            f"{flag}: {text!r}, "
            f"expected three numbers such as {'170/23/50' if kind is int else '0.7/0.1/0.2'}",
            "one for training, validation and test each",
            code="malformed-triple",
        ) from error
    return first, second, third
