"""What several commands are told: which dataset, how much to say, which modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.cli import terminal
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.run_record import read_record

if TYPE_CHECKING:  # the command line imports this file to answer --help at once
    from attcl_cli.data.dataset import Dataset
    from attcl_cli.data.splits import Splits


@dataclass(frozen=True)
class Source:
    """A dataset as the command line names it."""

    folder: Path
    layout: str = "auto"
    modalities: Path | None = None

    def open(self) -> Dataset:
        """Finds the cases.

        Raises:
            AttclError: there is no such folder, or nothing in it that we know.
        """
        from attcl_cli.data.dataset import open_dataset

        if not self.folder.exists():
            raise AttclError(
                f"{self.folder}: no such folder, wanted a dataset or what prepare-splits wrote",
                "check the path; data/ is what attcl prepare-splits DATASET writes",
            )
        return open_dataset(self.folder, layout=self.layout, modalities=self.modalities)


def open_truth(
    source: Source,
    made: Splits | None,
    truth: Path | None,
    *,
    hint: str = "name it with --truth DATASET",
) -> Dataset:
    """The complete dataset: the folder that --truth names, or else the one that `splits.json` does.

    Raises:
        AttclError: neither names one, or it is not there.
    """
    if truth is not None:
        folder = truth
    elif made is not None:
        folder = Path(made.source)
    else:
        raise UsageError(
            f"--truth: {source.folder} has no splits.json that names the complete dataset, wanted --truth",
            "name the folder that holds the real volumes: --truth DATASET",
        )
    if not folder.is_dir():
        raise AttclError(f"{folder}: no such folder, wanted the complete dataset", hint)
    return replace(source, folder=folder).open()


@dataclass(frozen=True)
class Talk:
    """How much is said, and in which form the result is given."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, text: str) -> None:
        """A line of the result, unless nothing is to be said."""
        if not self.quiet:
            terminal.result(text)

    def table(self, rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
        """A table of the result, unless nothing is to be said."""
        if not self.quiet:
            terminal.table(rows, title=title)


def precision_for(asked: Precision | None, resumed: Path | None) -> Precision:
    """What networks compute in: what was asked for, else what the run to resume did, else float32."""
    told = read_record(resumed).get("precision") if asked is None and resumed else asked
    return "bf16" if told == "bf16" else "fp32"
