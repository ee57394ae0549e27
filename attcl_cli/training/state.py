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
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.optim import Optimizer

from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import write_whole
from attcl_cli.methods.weights import METADATA_KEY, read_metadata, read_tensors, tensors_below

SCHEMA_VERSION = 1
STATE_FILE = "checkpoint-last.safetensors"
BEST_FILE = "checkpoint-best.safetensors"


@dataclass
class TrainingState:
    """All that a stopped run needs to continue as if it had not stopped; randomness is a function of the step."""

    step: int
    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def save_state(path: Path, state: TrainingState) -> None:
    """Write a training state, float32 and whole."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
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
    step = read_metadata(path).get("step")
    return step if isinstance(step, int) else 0  # `load_state` complains


def load_state(path: Path) -> TrainingState:
    """Read what `save_state` wrote.

    Raises:
        AttclError: the file is missing or not such a file.
    """
    require_state(path)
    metadata = read_metadata(path)
    if not {"step", "extra"} <= metadata.keys():
        raise AttclError(
            f"{path}: weights and no training state, expected a checkpoint",
            f"name a run's folder; its checkpoint is called {STATE_FILE}",
            code="not-a-checkpoint",
        )
    return TrainingState(step=metadata["step"], tensors=read_tensors(path), extra=metadata["extra"])


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
    """Put back what `optimiser_tensors` returned."""
    for name, optimiser in optimisers.items():
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors_below(f"optimiser.{name}.", tensors).items():
            index, slot = key.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": slots, "param_groups": groups})
