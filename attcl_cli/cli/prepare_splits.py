"""`attcl prepare-splits`: draws the splits and writes the data tree."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

from attcl_cli.cli import terminal
from attcl_cli.cli.options import Source, Talk
from attcl_cli.data import splits
from attcl_cli.data.dataset import check
from attcl_cli.errors import raise_all
from attcl_cli.run_record import RunInfo


def prepare_splits(
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
    talk: Talk = Talk(),
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
