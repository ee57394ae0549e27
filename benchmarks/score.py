"""Compare the seconds per score with pytorch-fid, lpips and monai as people call them, on the same slices, in one run.

The feature networks have random weights (the time does not depend on them, and nothing is downloaded), the same on both
sides, so that the figures can be compared, too. The volumes are simulated; the predictions are blurred truths. The last
line scores such volumes from files, as `attcl score` does: the shares of the time in which a thread is in the feature
networks, decodes or encodes files or computes the other metrics, and in which the networks wait for the others.

    python benchmarks/score.py
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from shares import CPU, DECODE, ENCODE, NETWORK, Clock

from attcl_cli import devices
from attcl_cli.data import volumes as volume_files
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom import make_case
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.scoring import feature_networks, feature_store, feature_weights, formulas, rows
from attcl_cli.scoring.feature_store import FeatureStore, shown_slices, to_bytes
from attcl_cli.scoring.metrics import default_metrics
from attcl_cli.scoring.pairs import plan_comparison
from attcl_cli.scoring.recipe import Recipe
from attcl_cli.scoring.windows import in_own_window

ROW = "{:<34} {:>9} {:>9} {:>7}   {:>12} {:>12}"


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return wall seconds, and the result of the function."""
    clock = time.perf_counter()
    result = function()
    return time.perf_counter() - clock, result


def line(name: str, theirs: tuple[float, float], ours: tuple[float, float]) -> None:
    """Print seconds, their ratio, and the two figures."""
    ratio = f"{theirs[0] / ours[0]:.1f}"
    seconds = [f"{side[0]:.2f} s" for side in (theirs, ours)]
    figures = [f"{side[1]:.6g}" for side in (theirs, ours)]
    print(ROW.format(name, *seconds, ratio, *figures), flush=True)


def stand_in(name: str, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Put random weights in the place of the real ones."""
    record = feature_weights.FILES[name]
    torch.save(state, folder / record.name)
    content = (folder / record.name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    feature_weights.FILES[name] = feature_weights.FeatureFile(
        record.name, record.url, len(content), digest
    )


def volumes(cases: int, voxel_mm: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (truth, prediction, brain) of each case's T2, (D, H, W)."""
    triples = []
    for index in range(cases):
        truth = make_case(index, seed=7, voxel_mm=voxel_mm).images["t2"].transpose(2, 1, 0)
        brain = truth != 0
        blurred = ndimage.gaussian_filter(truth.astype(np.float32), 1.5)
        triples.append((truth.astype(np.float32), np.where(brain, blurred, 0), brain))
    return triples


def compare_fid(pairs: list[tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Compare with pytorch-fid on folders of PNG slices; ours also with the features of real slices kept."""
    feature_networks.require_torchvision()
    from pytorch_fid import fid_score, inception

    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        state = inception.fid_inception_v3().state_dict()
    torch.manual_seed(0)
    for key, value in state.items():  # torchvision's own start lets features vanish
        if key.endswith("conv.weight"):
            state[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
    stand_in("inception", state, folder)
    with mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
        network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    files: tuple[list[Path], list[Path]] = ([], [])
    for number, pair in enumerate(pairs):
        for side, slices in enumerate(pair):
            for index, image in enumerate(slices):
                files[side].append(folder / f"{side}-{number}-{index:03d}.png")
                Image.fromarray(image).save(files[side][-1])

    def theirs() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            sides = [
                fid_score.calculate_activation_statistics(side, network, 50, 2048, "cpu", 0)
                for side in files
            ]
        return float(fid_score.calculate_frechet_distance(*sides[0], *sides[1]))

    embed = feature_networks.load_network("inception", offline=True)

    def ours(name: str) -> float:
        store = FeatureStore(embed, folder / name, folder / "cache")
        for real, made in pairs:
            store.add({"source": "flair", "modality": "t2", "prediction": "synthetic"}, real, made)
        return store.distances(["fid"], lambda *_: ["all"], 0)["all", "synthetic"][1]["fid"]

    their = timed(theirs)
    line("FID, first run", their, timed(lambda: ours("first")))
    line("FID, real features kept", their, timed(lambda: ours("second")))


def compare_lpips(pairs: list[tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Compare with lpips one slice at a time; ours in batches, for a prediction alone and with its three baselines."""
    feature_networks.require_torchvision()
    import lpips
    from torchvision.models import alexnet

    torch.manual_seed(1)
    state = {
        f"features.{key}": value
        for key, value in alexnet(weights=None).features.state_dict().items()
    }
    stand_in("alexnet", state, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    for name, value in network.net.state_dict().items():
        value.copy_(state[f"features.{name.split('.', 1)[1]}"])

    def tensor(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.astype(np.float32) / 255)

    @torch.no_grad()
    def theirs(times: int) -> float:
        values = [
            float(
                network(
                    tensor(one).expand(1, 3, -1, -1),
                    tensor(other).expand(1, 3, -1, -1),
                    normalize=True,
                )
            )
            for real, made in pairs
            for _ in range(times)
            for one, other in zip(made, real, strict=True)
        ]
        return float(np.mean(values))

    perceptual = feature_networks.load_perceptual(offline=True)

    def ours(times: int) -> float:
        values = []
        for real, made in pairs:
            for start in range(0, len(real), 32):
                known = perceptual.embed(tensor(real[start : start + 32])[:, None])
                for _ in range(times):
                    look = perceptual.embed(tensor(made[start : start + 32])[:, None])
                    values.append(perceptual.between(known, look).numpy())
        return float(np.concatenate(values).mean())

    line("LPIPS", timed(lambda: theirs(1)), timed(lambda: ours(1)))
    line("LPIPS, with three baselines", timed(lambda: theirs(4)), timed(lambda: ours(4)))


def compare_ssim(cases: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Compare with monai's 3-D SSIM of whole volumes; ours of whole volume and brain together."""
    from monai.metrics.regression import SSIMMetric

    units = [
        (in_own_window(made, brain), in_own_window(truth, brain), brain)
        for truth, made, brain in cases
    ]
    measure = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=11, kernel_sigma=1.5)

    def theirs() -> float:
        return float(np.mean([
            float(measure(*(torch.from_numpy(image.astype(np.float32))[None, None] for image in (x, y))))
            for x, y, _ in units
        ]))  # fmt: skip

    def ours() -> float:
        values = [
            formulas.ssim_of_regions(x, y, {"brain": brain, "inner": inner(x)}, data_range=1.0)[
                "inner"
            ]
            for x, y, brain in units
        ]
        return float(np.mean(values))

    def inner(image: np.ndarray) -> np.ndarray:  # monai has no border: windows that lie inside only
        mask = np.zeros(image.shape, dtype=bool)
        mask[tuple(slice(5, -5) for _ in image.shape)] = True
        return mask

    line("SSIM, 3-D (ours: brain, too)", timed(theirs), timed(ours))


def shares(folder: Path, cases: int, voxel_mm: float, device: torch.device) -> str:
    """Score volumes from files by all metrics of a volume, LPIPS and fd-effnet; return the shares of the time."""
    data, truth, completed = (folder / name for name in ("data", "truth", "completed"))
    write_cohort(truth, cases=cases, voxel_mm=voxel_mm)
    write_cohort(data, cases=cases, voxel_mm=voxel_mm, missing=[["t2"]])
    for file in truth.rglob("*_t2.nii.gz"):
        volume = volume_files.load([file])
        blurred = np.where(volume.data != 0, ndimage.gaussian_filter(volume.data, 1.5), 0)
        made = completed / file.relative_to(truth)
        volume_files.save([made], blurred, volume.grid, description="blurred")
    complete = open_dataset(truth)
    incomplete = open_dataset(data).including(complete.modalities)
    comparison = plan_comparison(incomplete, complete, completed, None)
    metrics = (*default_metrics(), "lpips", "fd-effnet")
    recipe = Recipe(metrics, folder / "cache", fid_network="effnet-lite0", offline=True)
    measures = recipe.load(device)
    (folder / "features").mkdir()
    clock = Clock(DECODE, ENCODE, "metrics")
    whole, network = feature_networks.FeatureNetwork, feature_networks.Perceptual
    timed_parts: list[tuple[Any, str, str, torch.device]] = [
        (whole, "__call__", NETWORK, device),
        (network, "embed", NETWORK, device),
        (volume_files, "load", DECODE, CPU),
        (feature_store, "write_whole", ENCODE, CPU),
        (rows, "_measure", "metrics", CPU),
    ]
    with contextlib.ExitStack() as patches:
        for owner, name, phase, where in timed_parts:
            function = clock.timed(phase, getattr(owner, name), where)
            patches.enter_context(mock.patch.object(owner, name, function))
        seconds, _ = timed(
            lambda: list(rows.score_cases(comparison, measures, folder=folder / "features"))
        )
    return f"{seconds:.2f} s for {comparison.volumes} volumes on {device}: {clock.shares(seconds)}"


def main() -> None:
    """Print the table, and the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--voxel-mm", type=float, default=2.0)
    parser.add_argument("--without-fid", action="store_true", help="its matrix root takes a minute")
    parser.add_argument("--device", default="cpu", help="of the last line; the table is the CPU's")
    options = parser.parse_args()
    cases = volumes(options.cases, options.voxel_mm)
    pairs = []
    for truth, made, brain in cases:
        real, predicted = (
            to_bytes(in_own_window(image, brain)[shown_slices(brain)]) for image in (truth, made)
        )
        pairs.append((real, predicted))
    print(
        f"{len(cases)} volumes of {cases[0][0].shape}, {sum(len(real) for real, _ in pairs)} slices"
    )
    print(ROW.format("", "theirs", "ours", "ratio", "theirs", "ours"))
    with tempfile.TemporaryDirectory() as name:
        os.environ["ATTCL_WEIGHTS"] = name
        if not options.without_fid:
            compare_fid(pairs, Path(name))
        compare_lpips(pairs, Path(name))
        compare_ssim(cases)
        device = devices.select(options.device)
        print(f"from files: {shares(Path(name), options.cases, options.voxel_mm, device)}")


if __name__ == "__main__":
    main()
