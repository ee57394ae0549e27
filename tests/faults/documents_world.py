"""A folder in which every kind of document lies that attcl reads, made by attcl itself, with the commands that read it.

What may be wrong with a document is left to the tests.
"""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
from helpers import SMALL_NETWORKS, SMALL_RUN
from safetensors import safe_open
from safetensors.torch import save_file

from attcl_cli.cli.app import main
from attcl_cli.data import slices
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.run_record import RunRecord
from attcl_cli.segmentation import network
from attcl_cli.segmentation.request import TrainingRequest
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.training.state import load_state
from attcl_cli.training.stats import trim_stats

DRY = ("--dry-run", "-d", "cpu")
SETTINGS = {**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], "steps": 2, "canvas": 32}


@dataclass(frozen=True)
class Subject:
    """A document, and what reads it.

    Attributes:
        file: relative to the world.
        commands: command lines, in the world's folder.
        calls: readers that no quick command calls; each is given the file.
        key: of the metadata of a safetensors file; "": the file is the document.
    """

    file: str
    commands: tuple[tuple[str, ...], ...] = ()
    calls: tuple[Callable[[Path], object], ...] = ()
    key: str = ""

    @property
    def is_toml(self) -> bool:
        """Whether it is TOML, otherwise JSON."""
        return self.file.endswith(".toml")

    def text(self, root: Path) -> str:
        """Return the document as it is."""
        if not self.key:
            return (root / self.file).read_text(encoding="utf-8")
        with safe_open(root / self.file, framework="pt") as file:
            return file.metadata()[self.key]

    def parsed(self, root: Path) -> Any:
        """Return the document, parsed; of a file of lines the first."""
        text = self.text(root)
        if self.file.endswith("l") and not self.is_toml:
            return json.loads(text.splitlines()[0])
        return tomllib.loads(text) if self.is_toml else json.loads(text)

    def written(self, document: Any) -> str:
        """Return a changed document as text."""
        return tomli_w.dumps(document) if self.is_toml else json.dumps(document)

    def put(self, root: Path, data: bytes) -> None:
        """Write the document; of a safetensors file what is no UTF-8 cannot be written."""
        path = root / self.file
        if not self.key:
            path.write_bytes(data)
            return
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, {self.key: data.decode("utf-8", "replace")})


def _trimmed(path: Path) -> None:
    before = path.read_bytes()
    trim_stats(path, 1)
    path.write_bytes(before)


SUBJECTS: Mapping[str, Subject] = {
    "splits": Subject(
        "data/splits.json",
        (
            ("info", "data"),
            ("train", "--data", "data", *DRY),
            ("complete", "--ori", "data", "--cpl", "out", "-w", "runs/mine", *DRY),
            ("score", "--ori", "data", "--cpl", "out", "--allow-missing", *DRY),
            ("segment", "--ori", "data", "--cpl", "out", *DRY),
        ),
    ),
    "side-car": Subject(
        "out/Phantom_00003/Phantom_00003_t2.json",
        (
            ("complete", "--ori", "data", "--cpl", "out", "-w", "runs/mine", *DRY),
            ("score", "--ori", "data", "--cpl", "out", *DRY),
            ("info", "out"),
        ),
    ),
    "record-of-complete": Subject(
        "out/run.json",
        (
            ("segment", "--ori", "data", "--cpl", "out", *DRY),
            ("complete", "--ori", "data", "--cpl", "out", "-w", "runs/mine", *DRY),
        ),
    ),
    "record-of-train": Subject(
        "runs/mine/run.json",
        (
            ("train", "--resume", "runs/mine", *DRY),
            ("weights", "list"),
            ("weights", "show", "runs/mine"),
        ),
    ),
    "record-of-segment": Subject(
        "segment/run.json",
        (
            ("segment", "--resume", "segment", *DRY),
            ("segment", "--ori", "data", "--cpl", "out", "--overwrite", *DRY),
        ),
    ),
    "settings-of-run": Subject(
        "runs/mine/config.toml", (("train", "--resume", "runs/mine", *DRY),)
    ),
    "settings": Subject("my.toml", (("train", "--data", "data", "-c", "my.toml", *DRY),)),
    "card": Subject(
        "named/mine.json",
        (
            ("weights", "show", "mine"),
            ("complete", "--ori", "data", "--cpl", "new", "-w", "mine", *DRY),
        ),
    ),
    "weights": Subject(
        "bare.safetensors",
        (
            ("weights", "show", "bare.safetensors"),
            ("complete", "--ori", "data", "--cpl", "new", "-w", "bare.safetensors", *DRY),
        ),
        key="attcl",
    ),
    "checkpoint": Subject(
        "runs/mine/checkpoint-last.safetensors",
        (("train", "--resume", "runs/mine", *DRY),),
        (load_state,),
        key="attcl",
    ),
    "segmenter": Subject(
        "segmenter.safetensors",
        (("evaluate", "--weights", "segmenter.safetensors", "--cpl", "out", *DRY),),
        key="attcl-segment",
    ),
    "vocabulary": Subject("phantoms/modalities.toml", (("info", "phantoms"),)),
    "ratio": Subject(
        "ratio.toml",
        (("prepare-splits", "phantoms", "--ratio", "ratio.toml", "-o", "other", "-n"),),
    ),
    "statistics": Subject("runs/mine/stats.jsonl", (), (_trimmed,)),
    "index": Subject(
        "packed/slices/index.json",
        (),
        (lambda path: slices.open_store(path.parent),),
    ),
    "channels": Subject("nnunet/dataset.json", (("info", "nnunet"),)),
    "description": Subject(
        "bids/dataset_description.json",
        (
            ("info", "bids"),
            ("complete", "--ori", "bids", "--cpl", "bids-out", "-w", "runs/mine", *DRY),
        ),
    ),
    "description-of-ours": Subject(
        "bids-out/dataset_description.json",
        (("complete", "--ori", "bids", "--cpl", "bids-out", "-w", "runs/mine", *DRY),),
    ),
}


def attcl(root: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command in the world's folder; return its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(root), redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main did not exit")


def build(root: Path) -> None:
    """Make the world with attcl's own commands."""
    write_cohort(root / "phantoms", cases=4, voxel_mm=12, workers=1)
    _copies(root)
    (root / "ratio.toml").write_text('name = "mine"\nhidden = [["t1ce", "t2"], ["t1"]]\n')
    ours = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]
    for command in (
        ("prepare-splits", "phantoms", "--ratio", "ratio.toml", "--sizes", "2/1/1"),
        ("train", "--data", "data", "-o", "runs/mine", "--preset", "tiny", "-d", "cpu", *ours),
        ("complete", "--ori", "data", "--cpl", "out", "-w", "runs/mine", "-d", "cpu", "--force"),
        (
            "complete",
            "--ori",
            "bids",
            "--cpl",
            "bids-out",
            "-w",
            "runs/mine",
            "-d",
            "cpu",
            "--force",
        ),
    ):
        code, _, err = attcl(root, *command)
        assert code == 0, (command, err)
    (root / "phantoms" / "modalities.toml").write_text(
        'patient = "^(Phantom_[0-9]+)"\nsegmentation = ["seg"]\nignore = ["scratch/"]\n'
        'pattern = "{case}/{case}_{modality}.nii.gz"\n'
        '[modalities]\nflair = ["FLAIR"]\nt1 = []\nt1ce = ["t1c"]\nt2 = []\n'
    )
    shutil.copy(root / "runs/mine" / "config.toml", root / "my.toml")
    shutil.copy(root / "runs/mine" / "weights.safetensors", root / "bare.safetensors")
    (root / "named").mkdir()
    shutil.copy(root / "runs/mine" / "weights.safetensors", root / "named" / "mine.safetensors")
    card = json.loads((root / "runs/mine" / "weights.json").read_text())
    shipped = Path(__file__).resolve().parents[2] / "weights" / "brain-attcl.json"
    further = json.loads(shipped.read_text())
    (root / "named" / "mine.json").write_text(json.dumps({**further, **card}))
    folder = root / "packed" / "slices"
    dataset = open_dataset(root / "data")
    store = slices.build(dataset, dataset.cases, folder, image_size=16, canvas=32, labels=True)
    request = TrainingRequest(overrides=(("steps", 4), ("image_size", 32)), preset="tiny")
    extra: dict[str, Any] = {"inputs": {"completed": {}}, "trained_on": list(store.trained_on)}
    RunRecord(root / "segment" / "run.json", "segment", config=request.config, extra=extra).finish(
        1
    )
    _segmenter(root / "segmenter.safetensors", store)


def _copies(root: Path) -> None:
    """Give the volumes of two phantoms the names of BIDS and of nnU-Net; the first patient of BIDS lacks a modality."""
    images = {"flair": ("FLAIR", 0), "t1": ("T1w", 1), "t1ce": ("ce-gd_T1w", 2), "t2": ("T2w", 3)}
    (root / "bids").mkdir()
    about = {"Name": "phantoms", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (root / "bids" / "dataset_description.json").write_text(json.dumps(about))
    (root / "nnunet" / "imagesTr").mkdir(parents=True)
    channels = {str(number): name for name, (_, number) in images.items()}
    (root / "nnunet" / "dataset.json").write_text(json.dumps({"channel_names": channels}))
    for case in ("Phantom_00000", "Phantom_00001"):
        subject = f"sub-{case[-2:]}"
        (root / "bids" / subject / "anat").mkdir(parents=True)
        for name, (suffix, number) in images.items():
            volume = root / "phantoms" / case / f"{case}_{name}.nii.gz"
            shutil.copy(volume, root / "nnunet" / "imagesTr" / f"{case}_{number:04d}.nii.gz")
            if (case, name) != ("Phantom_00000", "t2"):
                place = root / "bids" / subject / "anat" / f"{subject}_{suffix}.nii.gz"
                shutil.copy(volume, place)


def _segmenter(path: Path, store: slices.SliceStore) -> None:
    settings = SegmentSettings(image_size=32, canvas=32, levels=3, width=4)
    info = network.SegmenterInfo(settings, "completed", store.modalities, "2021", ("A",))
    network.save_segmenter(path, torch.nn.Linear(1, 1), info)
