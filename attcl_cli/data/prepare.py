"""`attcl prepare-splits` without its command line: check a dataset, draw the splits, write the data tree.

How splits are drawn is left to `splits`, how the tree is written to `tree`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from attcl_cli import run_ends
from attcl_cli.data import tree
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.preconditions import examine
from attcl_cli.data.splits import Splits, make_splits
from attcl_cli.data.synthetic import describe_synthetic
from attcl_cli.data.tree import LinkKind
from attcl_cli.errors import AttclError, UsageError, counted, raise_all
from attcl_cli.progress import SILENT, Progress
from attcl_cli.run_record import RunRecord


@dataclass(frozen=True)
class PreparedSplits:
    """The result of `prepare_splits`.

    Attributes:
        output: the folder of the data tree.
        splits: what it holds, or would hold.
        written: False after a dry run, and if the folder held these very splits already.
    """

    output: Path
    splits: Splits
    written: bool


def prepare_splits(  # noqa: PLR0913 - what a user may ask for
    dataset: Path | str,
    output: Path | str = "data",
    *,
    ratio: str = "ratio1",
    sizes: tuple[int, int, int] | None = None,
    fractions: tuple[float, float, float] | None = None,
    subset: Fraction | float | str = 1,
    link: LinkKind = "symlink",
    layout: str = "auto",
    modalities: Path | str | None = None,
    bids_filter: Sequence[str] = (),
    background: BackgroundOption = "auto",
    force: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> PreparedSplits:
    """Split a dataset by patients, hide modalities as a scenario says, and write the data tree.

    Args:
        dataset: the complete dataset; it is only read.
        output: the folder of the data tree.
        ratio: `ratio1`, `ratio2`, `ratio3` (the paper's scenarios), or the path of a TOML file.
        sizes: cases of train, val and test; exclusive with `fractions`.
        fractions: shares of train, val and test; without both, the paper's 70/10/20 %.
        subset: share of the training cases that is kept, such as "1/8" (BraTS_s).
        link: how files get into the data tree.
        layout: a key of `layouts.LAYOUTS`, or `auto`.
        modalities: a TOML file with other modality names or another naming.
        bids_filter: of several files of a modality in BIDS, which is meant; noted in `splits.json`.
        background: what is background in the volumes (`volumes.load`).
        force: take volumes that a check of their voxels refuses.
        seed: draws the order of the patients.
        overwrite: replace a data tree that an earlier run wrote.
        dry_run: check everything and draw the splits, but write nothing.
        progress: listens.

    Raises:
        AttclError: a file of the dataset is unusable (all problems together), or the tree cannot be written.
        UsageError: an option is impossible, or `output` holds something else.
        InterruptedRun: Ctrl-C or another signal; finished files are kept.
    """
    vocabulary = None if modalities is None else Path(modalities)
    source = Source(Path(dataset), layout, vocabulary, tuple(bids_filter), background)
    share, folder = _share(subset), Path(output)
    opened = source.open()
    progress.detail(
        f"{source.folder}: {counted(len(opened.cases), 'case')}, checking their volumes"
    )
    findings = examine(opened, force=force, progress=progress)
    for note in (*opened.notes, *findings.notes):
        progress.say(f"note: {note}")
    raise_all([*_synthetic_volumes(opened), *findings.problems])
    splits = make_splits(
        opened, ratio=ratio, sizes=sizes, fractions=fractions, subset=share, seed=seed
    )
    splits = replace(splits, bids_filter=source.bids_filter)
    if dry_run:
        tree.is_written(opened, splits, folder, link=link, overwrite=overwrite)
        return PreparedSplits(folder, splits, written=False)
    config = {"dataset": str(source.folder), "ratio": splits.ratio, "link": link}
    config |= {"layout": opened.layout.name, "subset": str(share)}
    record = RunRecord(folder / "run.json", "prepare-splits", config=config, seed=seed)

    def finish(building: Path) -> None:
        replace(record, path=building / record.path.name).finish(0)

    with run_ends.reported():
        written = tree.write_tree(
            opened, splits, folder, link=link, overwrite=overwrite, finish=finish
        )
    return PreparedSplits(folder, splits, written)


def _synthetic_volumes(dataset: Dataset) -> list[AttclError]:
    """Return a problem if attcl made some volumes: the tree has no side-cars, so they would pass as real ones."""
    found = describe_synthetic(dataset, dataset.cases)
    if not found:
        return []
    return [
        AttclError(
            f"{dataset.root}: {found}, expected real ones, which are learned from and compared with",
            "name the dataset that was completed",
            code="synthetic-truth",
        )
    ]


def _share(subset: Fraction | float | str) -> Fraction:
    try:
        return Fraction(str(subset))  # of a float its shortest digits: 0.1 is a tenth
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"--subset: {str(subset)!r}, expected a share such as 1/8 or 0.125",
            "for example --subset 1/8",
            code="malformed-subset",
        ) from error
