"""What tests of scoring share: folders for feature networks, a completed dataset, the command on both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Run
from score_files import HIDDEN


@pytest.fixture
def network_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the folders that files of feature networks are looked for in: `named` (ATTCL_WEIGHTS), `cache` (torch)."""
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "named"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ATTCL_OFFLINE", raising=False)
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    folders = SimpleNamespace(named=tmp_path / "named", cache=cache)
    folders.named.mkdir()
    folders.cache.mkdir(parents=True)
    return folders


@pytest.fixture
def folders(
    incomplete_root: Path, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """Return a dataset that lacks `HIDDEN`, its truth, and a completed folder that holds the truth itself."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for case, modality in HIDDEN:
        file = Path(case) / f"{case}_{modality}.nii.gz"
        (out / case).mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom_root / file, out / file)
    return SimpleNamespace(
        ori=incomplete_root, truth=phantom_root, cpl=out, scores=tmp_path / "scores"
    )


@pytest.fixture
def scored(attcl: Run, folders: SimpleNamespace) -> Callable[..., tuple[int, str, str]]:
    """Return `scored("--ssim")`, which runs the command and returns (code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        places = ["--ori", folders.ori, "--cpl", folders.cpl, "--truth", folders.truth]
        return attcl("score", *places, "-o", folders.scores, "-d", "cpu", *arguments)

    return run
