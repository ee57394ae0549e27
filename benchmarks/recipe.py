"""Compare settings at equal wall time on the fixed split of the open patients (`protocol.toml`), beside baselines.

Trains each run of the settings files (and the yardstick `unet`) for the same minutes and with each seed, completes the
patients that are scored from each modality alone and from the three others, and prints a Markdown table per metric:
in-brain and in-tumour SSIM, PSNR, NMSE, gradient magnitude similarity, and the distance of EfficientNet's features.
A stopped comparison continues where it was when it is called again; `cells.jsonl` has a line per cell, `tables.md` the
tables, `<part>/<run>/pictures` what to look at. Nothing of this may get into the repository.

    cd benchmarks
    python recipe.py --cohort COHORT -o /tmp/folds --fold 0 --minutes 15 --settings recipes/presets.toml
    python recipe.py --cohort COHORT -o /tmp/test --test --minutes 90 --settings recipes/presets.toml
    python recipe.py --cohort COHORT -o /tmp/evening --scenario evening --minutes 90 --settings recipes/evening.toml
    python recipe.py --cohort COHORT -o /tmp/shipped --weights brain-many brain-attcl
    python recipe.py --cohort COHORT -o /tmp/shipped --calibration
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol import PROTOCOL, open_cohort, read_protocol, refuse_repository
from recipe_cells import (
    SCENARIOS,
    SHOWN,
    Part,
    Place,
    baselines,
    cell,
    evening,
    part_of_protocol,
    read_cells,
)
from recipe_report import far_volumes, tables, write_calibration
from recipe_runs import RecipeRun, read_runs, with_yardstick

from attcl_cli.cli.terminal import Terminal, show_error
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import write_whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute the cells that are not there yet, and print the tables; return the exit code."""
    options = _options(arguments)
    try:
        _compare(options)
    except AttclError as error:
        show_error(error)
        return error.exit_code
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cohort", type=Path, required=True, help="brats/, brasyn/ and openms/")
    parser.add_argument("-o", "--output", type=Path, required=True, help="outside the repository")
    parser.add_argument("--protocol", type=Path, default=PROTOCOL)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--fold", type=int, help="leave out this fold of the training patients")
    where.add_argument("--test", action="store_true", help="score the test patients (default)")
    where.add_argument("--scenario", choices=("evening",), help="20 patients with holes")
    parser.add_argument("--holes", nargs="+", choices=SCENARIOS, default=[*SCENARIOS])
    parser.add_argument("--minutes", type=float, default=15.0, help="of each training")
    parser.add_argument("--seeds", default="0,1", help="separated by commas")
    parser.add_argument("--settings", type=Path, nargs="+", default=[], help="[[run]] tables")
    parser.add_argument("--weights", nargs="+", default=[], help="score finished weights")
    parser.add_argument("--without-unet", action="store_true", help="leave out the yardstick")
    parser.add_argument("--shown", nargs="+", choices=SHOWN, default=[*SHOWN], help="sources")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--discard-volumes", action="store_true", help="after they were scored")
    parser.add_argument(
        "--without-features", action="store_true", help="no fd-effnet, most of the scoring's time"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="check, and write data trees")
    parser.add_argument("--calibration", action="store_true", help="draw doubt against 1 - SSIM")
    return parser.parse_args(arguments)


def _compare(options: argparse.Namespace) -> None:
    output: Path = options.output
    refuse_repository(output)
    terminal = Terminal()
    if options.calibration:
        cells = read_cells(output)
        for name, told in write_calibration(output / "calibration.png", cells).items():
            terminal.result(
                f"{name}: Spearman {told.overall:.3f} with 1 - SSIM over all volumes; "
                f"{told.within:.3f} within a direction (mean of {told.directions})"
            )
        for (run, part), (far, of) in far_volumes(cells).items():
            terminal.result(f"far: {far} of {of} volumes of {run} in {part}")
        terminal.result(str(output / "calibration.png"))
        return
    seeds = _seeds(options.seeds)
    runs = read_runs(options.settings)
    if runs and not options.without_unet:  # finished weights alone need no training
        runs = with_yardstick(runs)
    runs += [RecipeRun(Path(name).name, weights=(name,)) for name in options.weights]
    place = Place(
        output,
        options.minutes,
        options.device,
        terminal,
        keep_volumes=not options.discard_volumes,
        features=not options.without_features,
    )
    parts = _parts(options, runs)
    if options.dry_run:
        for part in parts:
            terminal.result(f"{part.name}: {', '.join(run.name for run in runs) or 'baselines'}")
            for tree in part.data_trees:
                terminal.result(f"  {tree}")
        return
    for part in parts:
        baselines(part, place)
        for run in runs:
            for seed in seeds if run.trained else (None,):
                if run.trained and part.training is None:
                    continue
                suffix = "" if seed is None else f", seed {seed}"
                terminal.say(f"{part.name}: {run.name}{suffix}")
                cell(run, seed, part, place)
        _write_tables(output)
    terminal.result(*_write_tables(output).splitlines())


def _parts(options: argparse.Namespace, runs: Sequence[RecipeRun]) -> list[Part]:
    """Return what is scored: the parts that were asked for; without any training the other domain, too."""
    protocol = read_protocol(options.protocol)
    datasets = open_cohort(protocol, options.cohort)
    if options.scenario:
        return [evening(protocol, datasets, options.output, name) for name in options.holes]
    if options.fold is not None:
        protocol.outside(options.fold)  # is there such a fold?
    part = "test" if options.fold is None else "folds"
    parts = [
        part_of_protocol(
            protocol,
            datasets,
            options.output,
            part=part,
            fold=options.fold,
            shown=options.shown,
        )
    ]
    if options.fold is None and not any(run.trained for run in runs):
        parts.append(
            part_of_protocol(
                protocol, datasets, options.output, part="other_domain", shown=options.shown
            )
        )
    return parts


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--seeds: {text!r}, expected whole numbers separated by commas",
            "for example --seeds 0,1",
            code="invalid-seeds",
        ) from error


def _write_tables(output: Path) -> str:
    text = tables(read_cells(output))
    write_whole(output / "tables.md", text.encode())
    return text


if __name__ == "__main__":
    sys.exit(main())
