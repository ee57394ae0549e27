"""`attcl demo`: end to end on simulated patients: phantoms, hidden modalities, completion, scores, a report.

Uses the functions that `attcl_cli` offers as any script would; only the wording is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attcl_cli.cli.options import Debug, Device, Json, Quiet, Seed
from attcl_cli.cli.score import show
from attcl_cli.cli.terminal import Terminal, TerminalBar
from attcl_cli.errors import AttclError
from attcl_cli.files import ordinary_mode
from attcl_cli.progress import Silent
from attcl_cli.run_record import SCORES, RunRecord, require_no_other
from attcl_cli.temporaries import temporary_folder

if TYPE_CHECKING:
    from attcl_cli.scoring.run import ScoreResult

EXAMPLES = "Examples:  attcl demo   |   attcl demo -o /tmp/demo --cases 8"

_WEIGHTS = "phantom-tiny"
_VOXEL_MM = 4.0  # what the bundled weights were trained at
_SEED = 20_000  # far from the seeds that the weights were trained with
_MODALITIES = 4


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for all results.")] = Path(
        "demo"
    ),
    cases: Annotated[int, typer.Option("--cases", min=3, max=200, help="Simulated patients.")] = 6,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run end to end on simulated patients with bundled weights. Takes a minute at most on a CPU; writes a report."""
    terminal = Terminal(as_json=as_json, quiet=quiet)
    result = _run(output, cases=cases, seed=seed, device=device, terminal=terminal)
    if not as_json:
        terminal.say(
            "copy is what copying the source reaches, a trivial baseline. These weights are tiny and briefly trained: "
            "the demo shows the workflow, not the quality."
        )
    show(result, terminal)


def _run(output: Path, *, cases: int, seed: int, device: str, terminal: Terminal) -> ScoreResult:
    """Make a phantom cohort, hide modalities by ratio1, complete it, and score that.

    Writes `phantoms/`, `data/`, `out/`, `scores.csv`, `summary.json`, `montage.png` and `report.html` into `output`;
    what is there from an earlier, interrupted run is used.

    Raises:
        AttclError: the bundled weights are missing, or `output` holds another demo.
    """
    require_no_other(output / "run.json", "demo", flag="--output", besides="score", results=SCORES)
    _require_same_size(output / "phantoms", cases)
    record = RunRecord(output / "run.json", "demo", config={"cases": cases}, seed=seed)
    with record.recorded():
        return _run_stages(record, output, cases=cases, seed=seed, device=device, terminal=terminal)


def _run_stages(
    record: RunRecord, output: Path, *, cases: int, seed: int, device: str, terminal: Terminal
) -> ScoreResult:
    import attcl_cli

    _write_cohort(output / "phantoms", cases, seed, terminal)
    prepared = attcl_cli.prepare_splits(
        output / "phantoms",
        output / "data",
        ratio="ratio1",
        sizes=(0, 0, cases),  # the weights saw none of them
        seed=seed,
    )
    hidden = sum(len(item.hidden) for item in prepared.splits.splits["test"])
    terminal.say(f"{output / 'data'}: {hidden} of {_MODALITIES * cases} volumes hidden (ratio1)")
    progress = _BarsAlone(terminal)  # a warning about phantom weights would be odd here
    completed = attcl_cli.complete(
        output / "data", output / "out", weights=_WEIGHTS, device=device, progress=progress
    )
    (weights,) = completed.plan.models
    record.device = completed.device
    record.weights = {"name": weights.name, "sha256": weights.sha256}
    return attcl_cli.score(
        output / "data",
        output / "out",
        output=output,
        metrics=("ssim", "psnr"),
        split="test",
        device=device,
        title="attcl demo: simulated patients, completed",
        notes=[
            f"{cases} simulated patients, completed by {weights.name} ({weights.info.steps} steps). "
            "The patients are phantoms: anatomy made by formulas, images by MR signal equations. The weights saw "
            "other phantoms of the same kind, with all their modalities. Nothing here says how good "
            "completion is on real patients.",
        ],
        progress=progress,
    )


def _require_same_size(root: Path, cases: int) -> None:
    """Check that an earlier demo in the same place has as many cases."""
    import attcl_cli

    count = len(attcl_cli.open_dataset(root).cases) if root.is_dir() else cases
    if count != cases:
        raise AttclError(
            f"{root}: {count} cases of an earlier demo, expected {cases}",
            "choose another --output, or remove the folder",
            code="another-demo",
        )


def _write_cohort(root: Path, cases: int, seed: int, terminal: Terminal) -> None:
    """Write the phantoms, unless an earlier run did."""
    from attcl_cli.data.phantom_cohort import write_cohort

    if root.is_dir():
        return
    with terminal.bar(cases, "phantoms") as bar, temporary_folder(root) as building:
        write_cohort(building, cases=cases, seed=_SEED + seed, voxel_mm=_VOXEL_MM, on_case=bar)
        building.chmod(ordinary_mode(0o777))
        building.rename(root)


class _BarsAlone(Silent):
    """Shows the bars of a stage, and nothing that it says."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    @contextmanager
    def bar(self, total: int, title: str, *, every_seconds: float = 0) -> Iterator[TerminalBar]:
        """See `Progress`."""
        with self._terminal.bar(total, title, every_seconds=every_seconds) as bar:
            yield bar
