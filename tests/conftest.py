"""What tests share: phantoms in every layout, small volumes, a network that trains in milliseconds, patients."""

from __future__ import annotations

import os

# Before torch is imported, and as `fresh_python` does: sums differ in their last bits with the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from helpers import (
    BRATS_AFFINE,
    CASES,
    VOXEL_MM,
    Run,
    complete_perfectly,
    fingerprint,
    small_settings,
)
from toy_method import install

from attcl_cli.cli.app import main
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.data.splits import read_splits
from attcl_cli.methods.settings import Settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts what runs in the background so; the tests send Ctrl-C, here and to processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Records of volumes go into a folder of the tests, not into the user's."""
    with mock.patch.dict(os.environ, ATTCL_CACHE=str(tmp_path_factory.mktemp("cache"))):
        yield


@pytest.fixture
def attcl(capsys: pytest.CaptureFixture[str]) -> Run:
    """`attcl("complete", ...)` is (exit code, stdout, stderr) of the command line, run in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that no default path leads anywhere."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """`phantoms(layout)` is the folder of a whole cohort of 4 in that layout; shared, so no test may write into it."""
    cohorts: dict[str, tuple[Path, dict[str, str]]] = {}

    def cohort_in(layout: str = "brats") -> Path:
        if layout not in cohorts:
            root = tmp_path_factory.mktemp(f"phantoms-{layout}")
            with mock.patch("os.fsync"):  # hundreds of small files; no power cut is expected here
                write_cohort(root, cases=CASES, layout=layout, voxel_mm=VOXEL_MM, workers=1)
            cohorts[layout] = root, fingerprint(root)
        return cohorts[layout][0]

    yield cohort_in
    for root, before in cohorts.values():
        assert fingerprint(root) == before, f"a test changed the shared cohort {root}"


@pytest.fixture(scope="session")
def phantom_root(phantoms: Callable[[str], Path]) -> Path:
    """The shared cohort in the layout of BraTS 2018-2021; read-only."""
    return phantoms("brats")


@pytest.fixture
def incomplete_root(phantom_root: Path, tmp_path: Path) -> Path:
    """A copy with missing modalities: case 0 lacks t2, case 1 t1 and t1ce, case 2 nothing, case 3 t2 again."""
    root = tmp_path / "incomplete"
    shutil.copytree(phantom_root, root)
    for case, lacking in enumerate([["t2"], ["t1", "t1ce"], [], ["t2"]]):
        for modality in lacking:
            (root / f"Phantom_{case:05d}" / f"Phantom_{case:05d}_{modality}.nii.gz").unlink()
    return root


@pytest.fixture
def gappy(
    request: pytest.FixtureRequest, phantoms: Callable[[str], Path], tmp_path: Path
) -> Callable[..., Path]:
    """`gappy(layout, lacking)` is a copy of the shared cohort, one list of missing modalities a case.

    By default these are the `LACKING` of the test's own file.
    """

    def make(layout: str = "brats", lacking: Sequence[Sequence[str]] | None = None) -> Path:
        root = tmp_path / f"gappy-{layout}"
        shutil.copytree(phantoms(layout), root)
        dataset = open_dataset(root)
        every = request.module.LACKING if lacking is None else lacking
        for case, names in zip(dataset.cases, every, strict=True):
            for path in [path for name in names for path in dataset.paths(case, name)]:
                path.unlink()
        return root

    return make


@pytest.fixture
def study(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The working directory, with data/ (2 cases to train on, 1 to validate, 1 to test) and a perfect out/.

    The training case that comes first lacks t1ce and t2.
    """
    monkeypatch.chdir(tmp_path)
    ratio = tmp_path / "ratio.toml"
    ratio.write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    prepare_splits(phantom_root, ratio=str(ratio), sizes=(2, 1, 1))
    complete_perfectly(tmp_path, phantom_root)
    record = {"command": "complete", "weights": {"name": "w", "sha256": "0"}, "trained_on": []}
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    return SimpleNamespace(
        root=tmp_path,
        truth=phantom_root,
        data=open_dataset(tmp_path / "data"),
        splits=read_splits(tmp_path / "data"),
    )


@pytest.fixture(scope="session")
def write_nifti() -> Callable[..., Path]:
    """`write_nifti(path, array, affine=...)` writes a volume with nibabel alone, and returns the path."""

    def write(
        path: Path,
        array: Any,
        *,
        affine: Any = None,
        dtype: Any = None,
        image: Any = nib.Nifti1Image,
        codes: tuple[int, int] = (1, 1),
        units: tuple[str, str] = ("mm", "sec"),
    ) -> Path:
        array = np.asarray(array)
        nifti = image(
            array,
            BRATS_AFFINE if affine is None else np.asarray(affine, dtype=float),
            dtype=dtype or array.dtype,
        )
        nifti.header.set_qform(nifti.affine, code=codes[0])
        nifti.header.set_sform(nifti.affine, code=codes[1])
        nifti.header.set_xyzt_units(*units)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nifti, path)
        return path

    return write


@pytest.fixture(scope="session")
def write_case(write_nifti: Callable[..., Path]) -> Callable[..., None]:
    """`write_case(root, ["A/A_t1.nii.gz", ...])` writes a small volume of random intensities under each name."""

    def write(root: Path, names: list[str], *, shape: tuple[int, int, int] = (6, 5, 4)) -> None:
        for number, name in enumerate(names):
            values = np.random.default_rng(number).integers(1, 1000, shape).astype(np.int16)
            write_nifti(root / name, values)

    return write


@pytest.fixture(scope="session")
def tiny_settings() -> Settings:
    """A method of a few thousand weights, whose training step takes milliseconds; fits the shared cohorts."""
    return small_settings()


@pytest.fixture(scope="module")
def toy_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """While a module's tests run, the methods of `toy_method` belong to an installed package (its entry points)."""
    site = tmp_path_factory.mktemp("site-packages")
    install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield


@pytest.fixture(scope="session")
def store(
    phantom_root: Path, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The training slices of the first three shared phantoms, at the size of `tiny_settings`."""
    from attcl_cli.data.slices import build

    dataset = open_dataset(phantom_root)
    return build(
        dataset,
        dataset.cases[:3],
        tmp_path_factory.mktemp("slices"),
        image_size=tiny_settings.image_size,
        canvas=tiny_settings.canvas,
        workers=0,
    )


@pytest.fixture(scope="session")
def trained_run(
    store: Any, tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run of `tiny_settings`: weights, card, checkpoint, statistics. Read-only."""
    import torch

    from attcl_cli.training.trainer import train

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    run_dir.mkdir()
    train(tiny_settings, store, run_dir, device=torch.device("cpu"), note="of the tests")
    return run_dir


@pytest.fixture(scope="session")
def cohort() -> Path:
    """The folder of real patients (`brats/`, `brasyn/`); tests that take it are marked `cohort`."""
    named = os.environ.get("ATTCL_COHORT")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "cohort"
    if not folder.is_dir():
        pytest.skip(
            f"no real patients in {folder}: set ATTCL_COHORT to a folder with brats/ and brasyn/"
        )
    return folder
