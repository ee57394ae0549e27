"""What tests of training share: runs that may be killed, their statistics, and two runs compared to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attcl_cli.data.slices import SliceStore
from attcl_cli.files import sha256
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.training.state import STATE_FILE, load_state
from attcl_cli.training.stats import STATS_FILE
from attcl_cli.training.trainer import Hooks, train

CPU = torch.device("cpu")


class KilledError(Exception):
    """Stands for a kill: nothing of the loop's own catches it."""


def run(
    settings: Settings, store: SliceStore, folder: Path, *, kill_after: int = 0, **options: Any
) -> int:
    """Train in a new or an old folder, and return the steps of its weights; die after step `kill_after`."""

    def on_step(step: int, _losses: Mapping[str, float]) -> None:
        if step == kill_after:
            raise KilledError

    folder.mkdir(exist_ok=True)
    options.setdefault("hooks", Hooks(on_step=on_step))
    return train(settings, store, folder, device=CPU, **options)


def stats(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's `stats.jsonl`, without the times."""
    lines = (folder / STATS_FILE).read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds_a_step"}
        for line in lines
    ]


def require_same_runs(first: Path, second: Path) -> None:
    """Check that two runs left the same checkpoint, weights and statistics to the bit."""
    one, two = load_state(first / STATE_FILE), load_state(second / STATE_FILE)
    assert (one.step, one.extra) == (two.step, two.extra)
    assert set(one.tensors) == set(two.tensors)
    for key, value in one.tensors.items():
        assert torch.equal(value, two.tensors[key]), key
    assert sha256(first / WEIGHTS_FILE) == sha256(second / WEIGHTS_FILE)
    assert stats(first) == stats(second)
