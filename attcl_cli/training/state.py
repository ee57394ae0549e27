"""Training states on disk: all that a stopped run needs to continue, written whole.

Leaves weights for completion to `methods.weights`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.optim import Optimizer

from attcl_cli.documents import Count, Document, validated
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import write_whole
from attcl_cli.methods.finite import require_finite_tensors
from attcl_cli.methods.weights import (
    METADATA_KEY,
    WEIGHTS_FILE,
    read_metadata,
    read_tensors,
    tensors_below,
)

SCHEMA_VERSION = 1
STATE_FILE = "checkpoint-last.safetensors"
BEST_FILE = "checkpoint-best.safetensors"


class _Extra(Document):
    model_config = ConfigDict(extra="allow")

    best: float | None = None
    best_step: Count = 0


class _StateDocument(Document):
    step: Count
    extra: _Extra


@dataclass
class TrainingState:
    """All that a stopped run needs to continue as if it had not stopped; randomness is a function of the step."""

    step: int
    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def require_checkpoint(folder: Path) -> None:
    """Refuse to go on in a folder that has weights, and no checkpoint: training would begin anew and replace them.

    Raises:
        UsageError: the checkpoint was removed.
    """
    if (folder / WEIGHTS_FILE).is_file() and not (folder / STATE_FILE).is_file():
        raise UsageError(
            f"--resume: {folder} has {WEIGHTS_FILE} and no {STATE_FILE}, expected both: training would begin at step "
            "0, and replace these weights",
            f"put {STATE_FILE} back, or begin another run in another folder",
            code="checkpoint-removed",
        )


def save_state(path: Path, state: TrainingState) -> None:
    """Write a training state, float32 and whole.

    Raises:
        AttclError: a tensor holds NaN or infinity, or the file cannot be written; an earlier state stays.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
    require_finite_tensors(tensors, path, saving=True)
    metadata = {"schema_version": SCHEMA_VERSION, "step": state.step, "extra": state.extra}
    write_whole(path, to_safetensors(tensors, {METADATA_KEY: json.dumps(metadata)}))


def require_state(path: Path) -> None:
    """Check that there is a checkpoint.

    Raises:
        UsageError: there is none.
    """
    if not path.is_file():
        raise UsageError(
            f"--resume: {path} does not exist, expected the folder of a run that saved a checkpoint",
            "start without --resume, or name another run",
            code="nothing-to-resume",
        )


def state_step(path: Path) -> int:
    """Return the step at which a checkpoint was saved; errors as `load_state`."""
    require_state(path)
    document = read_metadata(path)
    return _validated(document, path).step if "extra" in document else 0  # `load_state` complains


def load_state(path: Path) -> TrainingState:
    """Read what `save_state` wrote.

    Raises:
        AttclError: the file is missing or not such a file.
    """
    require_state(path)
    document = read_metadata(path)
    if not {"step", "extra"} <= document.keys():
        raise AttclError(
            f"{path}: weights and no training state, expected a checkpoint",
            f"name a run's folder; its checkpoint is called {STATE_FILE}",
            code="not-a-checkpoint",
        )
    record = _validated(document, path)
    extra = record.extra.model_dump(exclude_unset=True)
    return TrainingState(step=record.step, tensors=read_tensors(path), extra=extra)


def _validated(document: dict[str, Any], path: Path) -> _StateDocument:
    return validated(
        _StateDocument,
        document,
        name=path,
        expected="the checkpoint of a run",
        hint="copy the file again from its source, or start a new run",
        code="invalid-checkpoint",
    )


def optimiser_tensors(optimisers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Return what optimisers remember: `optimiser.<name>.<parameter>.<slot>` -> tensor."""
    return {
        f"optimiser.{name}.{index}.{slot}": torch.as_tensor(value)
        for name, optimiser in optimisers.items()
        for index, slots in optimiser.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def restore_optimisers(optimisers: Mapping[str, Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` returned.

    Raises:
        ValueError: a tensor is of no parameter, or of another shape.
    """
    for name, optimiser in optimisers.items():
        parameters = [item for group in optimiser.param_groups for item in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors_below(f"optimiser.{name}.", tensors).items():
            index, slot = key.split(".", 1)
            if not index.isdecimal() or int(index) >= len(parameters):
                raise ValueError(f"optimiser.{name}.{key} is of no parameter")
            if value.numel() > 1 and value.shape != parameters[int(index)].shape:
                raise ValueError(f"optimiser.{name}.{key} is of another shape than its parameter")
            slots.setdefault(int(index), {})[slot] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": slots, "param_groups": groups})
