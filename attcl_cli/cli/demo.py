"""The whole way on simulated patients: phantoms, hidden modalities, completion, scores, pictures.

Uses the stages as any caller would; only the wording is its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attcl_cli.cli import terminal
from attcl_cli.cli.options import Debug, Device, Json, Quiet, Seed
from attcl_cli.cli.score import show
from attcl_cli.cli.terminal import Terminal
from attcl_cli.errors import AttclError
from attcl_cli.files import write_csv
from attcl_cli.run_record import RunRecord

if TYPE_CHECKING:
    from attcl_cli.data.dataset import Dataset

EXAMPLES = "Examples:  attcl demo   |   attcl demo -o /tmp/demo --cases 8"


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
    talk = Terminal(as_json=as_json, quiet=quiet)
    run(output, cases=cases, seed=seed, device=device, talk=talk)


_VOXEL_MM = 4.0  # what the bundled weights were trained at
_SEED = 20_000  # far from the seeds that the weights were trained with
_METRICS = ("ssim", "psnr")


def run(output: Path, *, cases: int, seed: int, device: str, talk: Terminal) -> None:
    """Makes a phantom cohort, hides modalities by ratio1, completes it, and shows how good that is.

    Writes `phantoms/`, `data/`, `out/`, `scores.csv`, `summary.json`, `montage.png` and `report.html` into `output`;
    what is there from an earlier, interrupted run is used.

    Raises:
        AttclError: the bundled weights are missing, or `output` holds another demo.
    """
    from attcl_cli import devices
    from attcl_cli.completion import plan as planning
    from attcl_cli.completion import run as complete
    from attcl_cli.data import splits, tree
    from attcl_cli.data.dataset import open_dataset
    from attcl_cli.methods import weights as checkpoint
    from attcl_cli.scoring import pairs, summary
    from attcl_cli.scoring import report as score_report
    from attcl_cli.scoring import rows as score

    clock = time.monotonic()
    measures = score.Measures(_METRICS)
    place = devices.select(device)
    weights = checkpoint.find_weights(checkpoint.BUNDLED)
    record = RunRecord(
        output / "run.json",
        "demo",
        config={"cases": cases},
        seed=seed,
        device=str(place),
        weights={"name": weights.name, "sha256": weights.sha256},
    )
    record.start()
    whole = _cohort(output / "phantoms", cases, seed, talk)
    made = splits.make_splits(whole, ratio="ratio1", sizes=(cases, 0, 0), seed=seed)
    tree.write_tree(whole, made, output / "data")
    data = open_dataset(output / "data")
    hidden = sum(len(item.hidden) for item in made.splits["train"])
    terminal.say(
        f"{output / 'data'}: {hidden} of {4 * cases} volumes hidden (ratio1)", quiet=talk.quiet
    )

    plan = planning.plan(data, output / "out", weights)
    method = checkpoint.load_method(weights, place)
    with talk.bar(len(plan.jobs), "complete") as bar:
        for completed in complete.run(plan, method, device=place):
            bar(completed.case)
    scored = pairs.plan_comparison(data, whole, output / "out", made, split="train")
    rows: list[score.Row] = []
    with talk.bar(len(scored.cases), "score") as bar:
        for found in score.score_cases(scored, measures, folder=output):
            rows += found
            bar(found[0].case)
    figures = summary.summarise(rows, scored, measures, folder=output)
    write_csv(output / "scores.csv", score.Row, rows)
    summary.write_summary(output / "summary.json", figures, scored, split="train")
    seconds = time.monotonic() - clock
    score_report.write_pages(
        output,
        scored,
        rows,
        figures,
        title="attcl demo: simulated patients, completed",
        facts={
            "patients": f"{cases} simulated",
            "weights": f"{weights.name}, {weights.info.steps} steps",
            "time": f"{seconds:.0f} s",
        },
        notes=[
            "The patients are phantoms: anatomy made by formulas, images by MR signal equations. The weights saw "
            "other phantoms of the same kind, with all their modalities. Nothing here says how good "
            "completion is on real patients.",
        ],
        progress=talk,
    )
    record.finish(0)
    if not talk.as_json:
        terminal.say(
            "copy is what copying the source reaches: what costs nothing. These weights are tiny and briefly "
            "trained: the demo shows the way, not the quality.",
            quiet=talk.quiet,
        )
    show(figures, output, talk)


def _cohort(root: Path, cases: int, seed: int, talk: Terminal) -> Dataset:
    from attcl_cli.data.dataset import open_dataset
    from attcl_cli.data.phantom_cohort import write_cohort

    if root.is_dir():
        found = open_dataset(root)
        if len(found.cases) != cases:
            raise AttclError(
                f"{root}: {len(found.cases)} cases of an earlier demo, expected {cases}",
                "choose another --output, or remove the folder",
            )
        return found
    with talk.bar(cases, "phantoms") as bar:
        write_cohort(root, cases=cases, seed=_SEED + seed, voxel_mm=_VOXEL_MM, on_case=bar)
    return open_dataset(root)
