"""Every row of the paper's Table 4, and StarGAN v2 + CUT and + QS, trained in the same way on complete phantoms.

Prints per variant: whether all logged losses are finite; the cycle loss in the first and the last tenth of the steps;
in-brain SSIM, mean over the 12 directions, on slices of other phantoms; and how far apart the style codes are that E
finds in these: mean distance between the modalities' mean codes, and of the codes to their own mean. Few steps say that
a variant trains, not which one is best. A stopped run resumes when it is called again with the same folder.

    python benchmarks/variants.py --output bench-variants --steps 200
    python benchmarks/variants.py --output bench-variants --variants attcl-gan stargan-v2 --steps 3000
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from cohorts import canvas_for, phantoms

from attcl_cli import devices
from attcl_cli.data import slices
from attcl_cli.data.dataset import Dataset
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods.attcl_gan import AttclGan, AttclGanSettings
from attcl_cli.methods.presets import PRESETS
from attcl_cli.methods.settings import Settings, resolve
from attcl_cli.methods.weights import find_weights, load_method
from attcl_cli.training.state import STATE_FILE
from attcl_cli.training.stats import STATS_FILE
from attcl_cli.training.trainer import train
from attcl_cli.training.validation import make_validation

VARIANTS = AttclGanSettings.variants
CYCLE = "g_latent_cyc"
SLICES_PER_MODALITY = 64


def main() -> None:
    """Train what is not trained yet, and print a line per variant."""
    options = _options()
    device = devices.select(options.device)
    root: Path = options.output
    settings = {name: _settings(name, options) for name in options.variants}
    any_of_them = settings[options.variants[0]]
    edge = {"voxel_mm": options.voxel_mm}
    learned = _store(phantoms(root / "train", options.cases, seed=0, **edge), any_of_them)
    unseen = _store(phantoms(root / "test", options.test_cases, seed=1_000, **edge), any_of_them)
    judge = make_validation(unseen, AttclGan.sources(any_of_them, unseen.modalities), device)
    assert judge is not None
    print(
        f"{options.cases} training and {options.test_cases} test phantoms of {options.voxel_mm:g} mm, complete; "
        f"preset {options.preset}, {options.steps} steps of {options.batch_size} slices, {device}, "
        f"{options.precision}, torch {torch.__version__}"
    )
    print(
        f"{'variant':<16} {'finite':<6}  {'cycle loss':>14}  {'SSIM':>5}  codes: between / within",
        flush=True,
    )
    for name, chosen in settings.items():
        folder = root / name
        folder.mkdir(exist_ok=True)
        resume = (folder / STATE_FILE).is_file()
        train(chosen, learned, folder, device=device, precision=options.precision, resume=resume)
        method = load_method(find_weights(str(folder)), device)
        assert isinstance(method, AttclGan)
        lines = [json.loads(line) for line in (folder / STATS_FILE).read_text().splitlines()]
        finite = all(math.isfinite(value) for line in lines for value in line.values())
        tenth = max(len(lines) // 10, 1)
        first, last = (
            mean(line[CYCLE] for line in part) for part in (lines[:tenth], lines[-tenth:])
        )
        between, within = _codes(method, unseen, device)
        print(
            f"{name:<16} {'yes' if finite else 'NO':<6}  {first:.3f} -> {last:.3f}  {judge(method):5.3f}  "
            f"{between:.2f} / {within:.2f}",
            flush=True,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--test-cases", type=int, default=8)
    parser.add_argument("--voxel-mm", type=float, default=4.0)
    parser.add_argument("--image-size", type=int, help="instead of the preset's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def _settings(variant: str, options: argparse.Namespace) -> Settings:
    size = options.image_size or resolve(preset=options.preset).image_size
    changes = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "image_size": size,
        "canvas": canvas_for(options.voxel_mm, size),
        "log_every": 1,
        "sample_every": options.steps,
    }
    return resolve(preset=options.preset, variant=variant, overrides=changes)


def _store(dataset: Dataset, settings: Settings) -> SliceStore:
    return slices.build(
        dataset,
        dataset.cases,
        dataset.root.with_name(f"{dataset.root.name}-slices"),
        image_size=settings.image_size,
        canvas=settings.canvas,
    )


@torch.inference_mode()
def _codes(method: AttclGan, store: SliceStore, device: torch.device) -> tuple[float, float]:
    """Return the mean distance between the modalities' mean codes, and of codes to the mean of their modality."""
    rng = np.random.default_rng(0)
    centres, within = [], []
    for domain, modality in enumerate(store.modalities):
        rows = np.concatenate(
            [
                np.arange(entry.start, entry.start + entry.count)
                for entry in store.entries
                if entry.modality == modality
            ]
        )
        filled = rng.permutation(rows[store.filled[rows]])[:SLICES_PER_MODALITY]
        codes = method.style_encoder(store.read(filled).to(device))[:, domain]
        centres.append(codes.mean(dim=0))
        within.append((codes - centres[-1]).norm(dim=-1).mean())
    between = [(one - two).norm() for one, two in itertools.combinations(centres, 2)]
    return float(torch.stack(between).mean()), float(torch.stack(within).mean())


if __name__ == "__main__":
    main()
