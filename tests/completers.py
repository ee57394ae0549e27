"""What tests of completion share: plans, a method that shows every voxel as it is, what lies in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from attcl_cli.completion.jobs import Completed, CompletionPlan, Manner
from attcl_cli.completion.making import make_volumes
from attcl_cli.completion.plan import plan_completion
from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.sampling import Sampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import AnyOne, SourceRule
from attcl_cli.methods.weights import Weights, WeightsInfo, load_method

CPU = torch.device("cpu")
FOUR = ("flair", "t1", "t1ce", "t2")
# Of the four shared phantoms: t2 is there three times, the others twice, so modal_list is t2, flair, t1, t1ce.
LACKING = (("flair", "t2"), ("t1", "t1ce"), (), ("flair", "t1", "t1ce"))
SOURCES = ("t1", "t2", None, "t2")
SCALE = Scale(100.0, 5100.0)


class Untrained(Method):
    """A method for completion alone: no test trains it."""

    def sampler(self, store: SliceStore) -> Sampler:
        raise AssertionError("trained by no test")

    def training_step(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
        raise AssertionError("trained by no test")


class Echo(Untrained):
    """A method without networks that returns its source, and notes what it was asked for."""

    def __init__(self, settings: Settings, modalities: Sequence[str] = FOUR) -> None:
        super().__init__(settings, modalities)
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.slices: list[bytes] = []

    @classmethod
    def sources(cls, settings: Settings, modalities: Sequence[str]) -> SourceRule:
        del settings
        return AnyOne(tuple(modalities))

    def synthesise(
        self,
        sources: Mapping[str, torch.Tensor],
        targets: Sequence[str],
        *,
        sample: int | None = None,
    ) -> dict[str, torch.Tensor]:
        del sample
        ((source, x),) = sources.items()
        self.asked.append((source, tuple(targets)))
        self.slices += [image.numpy().tobytes() for image in x if (image > -1).any()]
        return dict.fromkeys(targets, x)


class Failing(Untrained):
    """Another method that raises an error when it is asked for a certain target."""

    def __init__(self, method: Method, target: str, error: BaseException) -> None:
        super().__init__(method.settings, method.modalities)
        self.method, self.target, self.error = method, target, error

    @classmethod
    def sources(cls, settings: Settings, modalities: Sequence[str]) -> SourceRule:
        del settings
        return AnyOne(tuple(modalities))

    @property
    def stride(self) -> int:
        return self.method.stride

    def synthesise(
        self,
        sources: Mapping[str, torch.Tensor],
        targets: Sequence[str],
        *,
        sample: int | None = None,
    ) -> dict[str, torch.Tensor]:
        if self.target in targets:
            raise self.error
        return self.method.synthesise(sources, targets, sample=sample)


def echo_weights(
    settings: Settings,
    scale: Scale = SCALE,
    *,
    name: str = "echo",
    sha256: str = "0" * 64,
    measured: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Weights:
    """Return weights for `Echo`, which then sees every voxel as it is: slices of 64x64, not averaged down.

    Args:
        settings: of a small run.
        scale: of all modalities.
        name: of the weights.
        sha256: of the weights.
        measured: what the weights say of their training volumes.
        changes: other settings.
    """
    info = WeightsInfo(
        settings=settings.model_copy(update={"image_size": 64, "canvas": 64, **changes}),
        modalities=FOUR,
        scales=dict.fromkeys(FOUR, scale),
        references={},
        trained_on=(),
        steps=0,
        **(measured or {}),
    )
    return Weights(name=name, path=Path(f"{name}.safetensors"), sha256=sha256, info=info)


def plan_of(
    dataset: Dataset | Path, output: Path, *models: Weights, **options: Any
) -> CompletionPlan:
    """Plan a completion; the fields of `Manner` are options, too."""
    fields = (field.name for field in dataclasses.fields(Manner))
    manner = Manner(**{name: options.pop(name) for name in fields if name in options})
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    opened = opened.including(options.get("targets", ()))
    return plan_completion(opened, output, models, manner=manner, **options)


def make(
    plan: CompletionPlan, methods: Mapping[str, Method] | None = None, **options: Any
) -> list[Completed]:
    """Carry out a plan on the CPU; without `methods` those of its weights are loaded."""
    if methods is None:
        methods = {weights.sha256: load_method(weights, CPU) for weights in plan.used}
    return list(make_volumes(plan, methods, device=CPU, **options))


def completed(
    dataset: Dataset | Path,
    output: Path,
    *models: Weights,
    methods: Mapping[str, Method] | None = None,
    **options: Any,
) -> list[Completed]:
    """Plan and carry out; which options belong to which is known by name."""
    making = {name: options.pop(name) for name in ("batch_size", "workers") if name in options}
    keep_going = bool(options.get("keep_going"))
    plan = plan_of(dataset, output, *models, **options)
    return make(plan, methods, keep_going=keep_going, **making)


def echoed(
    root: Path, output: Path, settings: Settings, scale: Scale = SCALE, **options: Any
) -> Echo:
    """Complete with `Echo`, and return it with what it noted."""
    weights = echo_weights(settings, scale)
    echo = Echo(weights.info.settings)
    completed(root, output, weights, methods={weights.sha256: echo}, **options)
    return echo


def own_scale(root: Path, modality: str) -> Scale:
    """Return the range of a dataset's volumes of a modality, which made volumes get: medians of two percentiles."""
    ends = []
    for path in sorted(root.rglob(f"*_{modality}.nii*")):
        values = nib.load(path).get_fdata()
        ends.append(np.percentile(values[values != 0], [0.5, 99.5]))
    low, high = np.median(ends, axis=0)
    return Scale(float(low), float(high))


def content(root: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of every file, hidden ones too."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def outputs(folder: Path) -> dict[str, bytes]:
    """Return `content` but run.json and the log, which hold times, and the page."""
    ours = {"run.json", "log.txt", "report.html"}
    return {name: data for name, data in content(folder).items() if name not in ours}


def images(root: Path) -> dict[str, bytes]:
    """Return `content` of the volumes or slices alone."""
    return {name: data for name, data in content(root).items() if name.endswith((".gz", ".png"))}


def phantom_file(case: int, modality: str) -> str:
    """Return where a volume of the shared cohort lies."""
    return f"Phantom_{case:05d}/Phantom_{case:05d}_{modality}.nii.gz"


def expected_files(lacking: Iterable[Iterable[str]] = LACKING) -> set[str]:
    """Return the volumes and side-cars that completing the shared cohort must give."""
    volumes = {phantom_file(case, name) for case, names in enumerate(lacking) for name in names}
    return volumes | {name.replace(".nii.gz", ".json") for name in volumes}
