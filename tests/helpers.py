"""What tests share besides fixtures: paths, sizes, fingerprints of folders, a fresh interpreter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attcl_cli.data.splits import read_splits
from attcl_cli.files import sha256
from attcl_cli.methods.settings import Settings, resolve
from attcl_cli.report import pictures
from attcl_cli.scoring import feature_networks

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = 4
VOXEL_MM = 6.0  # 40x40x26 voxels
BRATS_AFFINE = np.array(
    [[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
)  # stored L, P, S


Run = Callable[..., tuple[int, str, str]]

# Settings of a network of a few thousand weights per method, whose training step takes milliseconds; fits the shared
# cohorts. A method that is not named takes `SMALL_RUN` alone.
SMALL_RUN: Mapping[str, Any] = {
    "image_size": 16,
    "canvas": 64,
    "batch_size": 2,
    "steps": 4,
    "log_every": 1,
    "save_every": 2,
    "sample_every": 4,
}
SMALL_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "attcl-gan": {
        "width": 4,
        "max_width": 8,
        "downs": 2,
        "bottleneck": 1,
        "style_dim": 8,
        "latent_dim": 4,
        "mapping_width": 8,
        "contrastive_layers": (1, 2),
        "contrastive_patches": 16,
    },
    "plave": {
        "width": 4,
        "max_width": 8,
        "style_dim": 8,
        "contrastive_patches": 16,
        "plave_blocks": 2,
        "plave_pretraining": 0.5,
        "plave_supervised": 0.0,
        "plave_ramp": 0.0,
    },
    "unet": {"width": 4},
    "attgan": {"width": 4, "max_width": 8, "downs": 2, "critic_steps": 2},
    "superstargan": {"width": 4, "blocks": 1, "critic_steps": 2},
    "cyclegan": {"width": 4, "resnet_blocks": 1, "image_pool": 3},
    "msa-gan": {"width": 4, "resnet_blocks": 1, "image_pool": 3},
    "u-gat-it": {"width": 4, "resnet_blocks": 1},
    "attentiongan": {"width": 4, "resnet_blocks": 1, "image_pool": 3},
    "w2gan": {
        "width": 4,
        "max_width": 8,
        "downs": 2,
        "bottleneck": 1,
        "style_dim": 8,
        "latent_dim": 4,
        "mapping_width": 8,
        "wavelet_layers": (1,),
    },
}


def small_settings(method: str = "attcl-gan", **changes: Any) -> Settings:
    """Return settings of a method that trains in milliseconds on the shared cohorts."""
    networks = SMALL_NETWORKS.get(method, {})
    return resolve(preset="tiny", method=method, overrides={**SMALL_RUN, **networks, **changes})


def changed(settings: Settings, **values: Any) -> Settings:
    """Return a copy with other values, validated."""
    return type(settings).model_validate({**settings.model_dump(), **values})


def touch(root: Path, names: Iterable[str]) -> Path:
    """Make empty files of these names below a folder, and return it."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def states(root: Path) -> dict[str, tuple[int, bytes]]:
    """Relative path -> (time of the last change, bytes) of everything below a folder; folders have no bytes."""
    return {
        path.relative_to(root).as_posix(): (
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
    }


def fingerprint(root: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder (of what links lead to)."""
    return {
        path.relative_to(root).as_posix(): sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def fresh_python(*arguments: object) -> str:
    """What a new interpreter with these arguments prints, in the repository; fails with what it complains of."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,  # benchmarks on a busy machine
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(tab: Any, holds: Callable[[], bool]) -> bool:
    """Wait until a page, which glides, has arrived: `wait_for_function` would need the eval that our pages forbid."""
    for _ in range(200):
        if holds():
            return True
        tab.wait_for_timeout(50)
    return False


def complete_perfectly(root: Path, truth: Path) -> None:
    """Copy the held-out ground truth of `root/data` into `root/out`, as a perfect completion would write it."""
    for cases in read_splits(root / "data").splits.values():
        for case in cases:
            for name in case.hidden:
                file = Path(case.case) / f"{case.case}_{name}.nii.gz"
                (root / "out" / case.case).mkdir(parents=True, exist_ok=True)
                shutil.copy(truth / file, root / "out" / file)


def panel(**changes) -> pictures.Panel:
    """A (6, 20, 16) head whose brain is rows 4..15 and columns 5..12 of slices 1..4."""
    shape = (6, 20, 16)
    brain = np.zeros(shape, bool)
    brain[1:5, 4:16, 5:13] = True
    brain[3, 3, 5:13] = True  # slice 3 has most brain
    volumes = {
        "source": np.where(brain, np.float32(0.2), 0),
        "synthetic": np.where(brain, np.float32(0.4), 0),
        "truth": np.where(brain, np.float32(0.9), 0),
        "brain": brain,
    } | {
        name: changes.pop(name)
        for name in ("source", "synthetic", "truth", "brain")
        if name in changes
    }
    source, target = changes.get("source_modality", "flair"), changes.get("target_modality", "t1")
    settings = {
        "case": "Patient_1",
        "source_modality": source,
        "target_modality": target,
        "tiles": pictures.compared(
            target,
            {source: volumes["source"]},
            volumes["synthetic"],
            volumes["truth"],
            volumes["brain"],
        ),
        "brain": volumes["brain"],
        "scores": {"SSIM brain": 0.8125, "PSNR brain (dB)": 22.34},
        "baseline": {"SSIM brain": 0.25, "PSNR brain (dB)": 25.0},
    }
    return pictures.Panel(**(settings | changes))


def alexnet_state() -> dict[str, torch.Tensor]:
    """Random weights in the shapes of AlexNet's convolutions."""
    feature_networks.require_torchvision()
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = alexnet(weights=None).features.state_dict()
    return {f"features.{key}": 2 * value for key, value in state.items()}


def refusal(outcome: tuple[int, str, str], *, code: int, names: str, hint: str = "") -> list[str]:
    """Check an error's form; return the lines of stderr.

    Args:
        outcome: what `attcl` returned.
        code: the exit code.
        names: what line 1 must begin with, after `error: `.
        hint: a regular expression for a `hint:` that must follow; "" if none is promised.
    """
    exit_code, out, err = outcome
    lines = err.splitlines()
    assert exit_code == code, err
    assert out == ""
    assert "Traceback" not in err
    assert lines[0].startswith(f"error: {names}"), err
    if hint:
        hints = [line for line in lines if line.startswith("hint: ")]
        assert hints, err
        assert re.search(hint, hints[0]), err
    return lines


def pids_of(title: str) -> list[int]:
    """Return the processes that call themselves so; Ray names its workers after what they run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::" + title.encode()):
                found.append(int(folder.name))
    return found
