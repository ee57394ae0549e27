"""PLAVE's general model against AttCL-GAN trained as long, and against the mean of the sources, on simulated patients.

Each case lacks one modality, in turn; the test cases are other patients. Both methods see the same slices for the same
number of steps, at the same batch size. Prints in-brain SSIM and PSNR by target, the Dice of PLAVE's segmentation head,
and the seconds that each took. A stopped run resumes when it is called again with the same folder.

    python benchmarks/plave.py --output bench-plave --steps 3000
    python benchmarks/plave.py --output bench-plave --preset small --voxel-mm 2 --device cuda --steps 20000
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from cohorts import canvas_for, phantoms

from attcl_cli import complete, devices
from attcl_cli.data import slices
from attcl_cli.data.dataset import Dataset
from attcl_cli.devices import Precision
from attcl_cli.methods import METHODS
from attcl_cli.methods.plave import Plave
from attcl_cli.methods.presets import PRESETS, parse_override
from attcl_cli.methods.settings import Settings, resolve
from attcl_cli.methods.weights import find_weights, load_method
from attcl_cli.scoring import pairs
from attcl_cli.scoring import rows as score
from attcl_cli.scoring.metrics import BRAIN
from attcl_cli.training.state import STATE_FILE
from attcl_cli.training.stats import STATS_FILE
from attcl_cli.training.trainer import Hooks, train

FOUR = ("flair", "t1", "t1ce", "t2")
ONE_MISSING = [[name] for name in FOUR]
METHOD_NAMES = ("attcl-gan", "plave")
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}  # whole tumour, core, enhancing tumour


def main() -> None:
    """Train what is not trained yet, complete, score, print."""
    options = _options()
    device = devices.select(options.device)
    root: Path = options.output
    edge = options.voxel_mm
    train_set = phantoms(root / "train", options.cases, voxel_mm=edge, seed=0, missing=ONE_MISSING)
    test = {"cases": options.test_cases, "voxel_mm": edge, "seed": 1_000}
    hidden = phantoms(root / "test", **test, missing=ONE_MISSING)
    truth = phantoms(root / "truth", **test)
    print(
        f"{options.cases} training and {options.test_cases} test phantoms of {options.voxel_mm:g} mm, one modality "
        f"missing in each; preset {options.preset}, {options.steps} steps of {options.batch_size} slices, {device}, "
        f"{options.precision}, torch {torch.__version__}",
        flush=True,
    )
    table: dict[str, dict[tuple[str, str], float]] = {}
    notes = []
    for name in METHOD_NAMES:
        settings = _settings(name, options)
        seconds = _train(settings, train_set, root / name, device, options.precision)
        out = root / f"{name}-out"
        complete(hidden.root, out, weights=root / name, device=options.device, overwrite=True)
        scores = _scores(hidden, truth, out)
        table[name] = scores[score.SYNTHETIC]
        table["mean of sources"] = scores[score.MEAN]
        weights = find_weights(str(root / name))
        notes.append(f"{name}: {weights.info.steps} steps, {seconds:.0f} s of training")
        method = load_method(weights, device)
        if isinstance(method, Plave):
            dice = _dice(method, settings, hidden, truth, device)
            figures = ", ".join(f"{region} {value:.3f}" for region, value in dice.items())
            notes.append(
                f"segmentation head, Dice by case in the middle slices of {settings.image_size} pixels: {figures}"
            )
    _print(table)
    print("\n".join(notes))
    wins = all(
        table["plave"][key] > table[other][key]
        for other in ("attcl-gan", "mean of sources")
        for key in table["plave"]
    )
    print(f"plave best for all four targets in both scores: {'yes' if wins else 'no'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--test-cases", type=int, default=12, help="a multiple of 4")
    parser.add_argument("--voxel-mm", type=float, default=4.0)
    parser.add_argument("--image-size", type=int, help="instead of the preset's")
    parser.add_argument("--canvas", type=int, help="default: what holds the slices")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of PLAVE")
    return parser.parse_args()


def _settings(name: str, options: argparse.Namespace) -> Settings:
    size = options.image_size or resolve(preset=options.preset).image_size
    changes = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "image_size": size,
        "canvas": options.canvas or canvas_for(options.voxel_mm, size),
        "save_every": max(options.steps // 10, 1),
        "sample_every": options.steps,
    }
    if name == "plave":
        changes |= dict(parse_override(text) for text in options.set)
    return resolve(preset=options.preset, method=name, overrides=changes)


def _train(
    settings: Settings,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    precision: Precision,
) -> float:
    """Train or resume, and return the seconds that all steps took, those of earlier calls, too."""
    store = slices.build(
        dataset,
        dataset.cases,
        folder / "slices",
        image_size=settings.image_size,
        canvas=settings.canvas,
        labels=METHODS[settings.method].learns_labels,
    )

    def on_log(record: object) -> None:
        print(f"  {settings.method} {record}", flush=True)

    resume = (folder / STATE_FILE).is_file()
    train(
        settings,
        store,
        folder,
        device=device,
        precision=precision,
        resume=resume,
        hooks=Hooks(on_log=on_log),
    )
    lines = [json.loads(line) for line in (folder / STATS_FILE).read_text().splitlines()]
    steps = [0, *(line["step"] for line in lines)]
    spans = (after - before for before, after in itertools.pairwise(steps))
    return sum(span * line["seconds_a_step"] for span, line in zip(spans, lines, strict=True))


def _scores(data: Dataset, truth: Dataset, out: Path) -> dict[str, dict[tuple[str, str], float]]:
    """Return prediction -> (metric, target) -> mean in the brain over the cases."""
    comparison = pairs.plan_comparison(data, truth, out, None, split="all")
    measures = score.Measures(("ssim", "psnr"), baselines=True)
    values: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        for rows in score.score_cases(comparison, measures, folder=Path(folder)):
            for row in rows:
                if row.region == BRAIN:
                    values[row.prediction][row.metric, row.modality].append(row.value)
    return {
        prediction: {key: mean(scores) for key, scores in of_one.items()}
        for prediction, of_one in values.items()
    }


def _dice(
    method: Plave, settings: Settings, data: Dataset, truth: Dataset, device: torch.device
) -> dict[str, float]:
    """Return region -> mean Dice over the cases, each seen on the way to the modality that it lacks."""
    present = {case.id: set(case.files) for case in data.cases}
    with tempfile.TemporaryDirectory() as folder:
        store = slices.build(
            truth,
            truth.cases,
            Path(folder),
            image_size=settings.image_size,
            canvas=settings.canvas,
            labels=True,
        )
        assert store.labels is not None
        starts = {(entry.case, entry.modality): entry for entry in store.entries}
        values: dict[str, list[float]] = {region: [] for region in REGIONS}
        for entry in store.segmentations:
            sources = {
                name: store.read(np.arange(volume.start, volume.start + volume.count)).to(device)
                for name in FOUR
                if name in present[entry.case] and (volume := starts[entry.case, name])
            }
            (target,) = set(FOUR) - set(sources)
            predicted = method.segment(sources, target).argmax(dim=1).cpu().numpy()
            true = np.array(store.labels[entry.start : entry.start + entry.count])
            for region, labels in REGIONS.items():
                one, two = np.isin(predicted, labels), np.isin(true, labels)
                total = one.sum() + two.sum()
                values[region].append(2 * (one & two).sum() / total if total else 1.0)
    return {region: mean(dice) for region, dice in values.items()}


def _print(table: dict[str, dict[tuple[str, str], float]]) -> None:
    width = max(len(name) for name in table)
    for metric, digits in (("ssim", 3), ("psnr", 2)):
        print(f"\n{metric + ' in the brain':<{width}}  " + "  ".join(f"{name:>6}" for name in FOUR))
        for name, values in table.items():
            figures = "  ".join(f"{values[metric, target]:>6.{digits}f}" for target in FOUR)
            print(f"{name:<{width}}  {figures}")
    print()


if __name__ == "__main__":
    main()
