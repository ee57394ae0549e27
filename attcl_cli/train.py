"""The one training loop: batches in, averaged weights out. Knows no method, no layout and no terminal.

Everything random is a function of (seed, step), so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attcl_cli.checkpoint import (
    STATE_FILE,
    WEIGHTS_FILE,
    TrainingState,
    WeightsInfo,
    load_state,
    save_state,
    save_weights,
)
from attcl_cli.config import Settings
from attcl_cli.errors import AttclError, InterruptedRun
from attcl_cli.methods import METHODS, Batch, Method
from attcl_cli.overlap import read_ahead
from attcl_cli.slices import Sampler, SliceStore

STATS_FILE = "stats.jsonl"
_SAMPLES_AN_IMAGE = 4


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to see of a run; all may be left out.

    Attributes:
        on_step: called after each step with its number (from 1) and the last logged losses.
        draw: writes a sample picture: path, column titles, rows of (row title, images (S, S) in [-1, 1]).
    """

    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _losses: None
    draw: Callable[[Path, list[str], list[tuple[str, list[np.ndarray[Any, Any]]]]], None] = (
        lambda _path, _titles, _rows: None
    )


def train(
    settings: Settings,
    store: SliceStore,
    run_dir: Path,
    *,
    device: torch.device,
    resume: bool = False,
    hooks: Hooks = Hooks(),
    note: str = "",
) -> WeightsInfo:
    """Trains a method and leaves weights, checkpoint, statistics and sample pictures in `run_dir`.

    Args:
        settings: what is trained, and how long.
        store: the training slices.
        run_dir: exists.
        device: where.
        resume: go on from the checkpoint in `run_dir`.
        hooks: progress and pictures.
        note: said on the weights' card.

    Raises:
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: a loss is no longer finite; the last good checkpoint is kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        method = METHODS[settings.method](settings, store.modalities)
    for module in method.modules().values():
        module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(method)
    average_modules = {
        name: average.modules()[name].requires_grad_(requires_grad=False)
        for name in method.inference
    }
    first = 0
    if resume:
        first = _restore(load_state(run_dir / STATE_FILE), method, average_modules)
    references = _choose_references(store, settings.seed)
    sampler = Sampler(store, batch_size=settings.batch_size, seed=settings.seed)

    def save(step: int) -> WeightsInfo:
        average.remember_references(
            {name: store.read(np.array([row])).to(device) for name, (row, _) in references.items()}
        )
        info = WeightsInfo(
            settings=settings,
            modalities=store.modalities,
            scales=store.scales,
            references={name: described for name, (_, described) in references.items()},
            trained_on=store.trained_on,
            steps=step,
        )
        save_state(run_dir / STATE_FILE, _state(step, method, average_modules))
        save_weights(run_dir / WEIGHTS_FILE, average, info, note=note)
        return info

    _trim_stats(run_dir / STATS_FILE, first)
    clock, clock_step = time.monotonic(), first
    logged: dict[str, float] = {}
    info = save(0) if first == 0 else None
    with _stop_requested() as stopped, (run_dir / STATS_FILE).open("a", encoding="utf-8") as stats:
        for step, future in read_ahead(sampler.batch, range(first, settings.steps), depth=2):
            batch: Batch = future.result().to(device)
            losses = method.training_step(batch, step)
            _average(method, average_modules, settings.ema_decay, step)
            done = step + 1
            if done % settings.log_every == 0 or done == settings.steps:
                # The only place where the loop waits for the device.
                logged = {name: float(value) for name, value in losses.items()}
                _require_finite(logged, done, run_dir)
                now = time.monotonic()
                stats.write(
                    json.dumps(
                        {
                            "step": done,
                            "seconds_a_step": round((now - clock) / (done - clock_step), 4),
                            **{name: round(value, 6) for name, value in logged.items()},
                        }
                    )
                    + "\n"
                )
                stats.flush()
                clock, clock_step = now, done
            if done % settings.sample_every == 0 or done == settings.steps:
                _draw_samples(
                    run_dir / "samples" / f"step-{done:06d}.png",
                    average,
                    store,
                    hooks,
                    settings.seed,
                    save_references=references,
                    device=device,
                )
            if done % settings.save_every == 0 or done == settings.steps or stopped.is_set():
                _require_finite(
                    {name: float(value) for name, value in losses.items()}, done, run_dir
                )
                info = save(done)
            hooks.on_step(done, logged)
            if stopped.is_set() and done < settings.steps:
                raise InterruptedRun(
                    f"{run_dir}: stopped after step {done} of {settings.steps}, everything is saved",
                    f"go on with: attcl train --resume {run_dir}",
                )
    return info if info is not None else save(first)


def _average(method: Method, average: Mapping[str, nn.Module], decay: float, step: int) -> None:
    """Exponential moving average, started as an exact copy; early on it forgets faster, or it would keep the start."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, module in average.items():
            own: list[Tensor] = list(method.modules()[name].parameters())
            if own:
                torch._foreach_lerp_([*module.parameters()], own, 1 - decay)


def _state(step: int, method: Method, average: Mapping[str, nn.Module]) -> TrainingState:
    tensors: dict[str, Tensor] = {}
    for name, module in method.modules().items():
        tensors |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, module in average.items():
        tensors |= {f"average.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in method.optimisers().items():
        for index, slots in optimiser.state_dict()["state"].items():
            tensors |= {
                f"optimiser.{name}.{index}.{slot}": torch.as_tensor(value)
                for slot, value in slots.items()
            }
    return TrainingState(step=step, tensors=tensors)


def _restore(state: TrainingState, method: Method, average: Mapping[str, nn.Module]) -> int:
    def own(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): value
            for key, value in state.tensors.items()
            if key.startswith(prefix)
        }

    for name, module in method.modules().items():
        module.load_state_dict(own(f"module.{name}."))
    for name, module in average.items():
        module.load_state_dict(own(f"average.{name}."))
    for name, optimiser in method.optimisers().items():
        document = optimiser.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in own(f"optimiser.{name}.").items():
            index, slot = key.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        optimiser.load_state_dict({"state": slots, "param_groups": document["param_groups"]})
    return state.step


def _choose_references(store: SliceStore, seed: int) -> dict[str, tuple[int, dict[str, Any]]]:
    """One reference slice a modality (Section 3.6): the middle slice of a seeded choice of case."""
    chosen = {}
    for index, modality in enumerate(store.modalities):
        entries = [entry for entry in store.entries if entry.modality == modality]
        entry = entries[int(np.random.default_rng((seed, index)).integers(len(entries)))]
        offset = entry.count // 2
        chosen[modality] = (
            entry.start + offset,
            {"case": entry.case, "slice": entry.first + offset},
        )
    return chosen


def _draw_samples(
    path: Path,
    average: Method,
    store: SliceStore,
    hooks: Hooks,
    seed: int,
    *,
    save_references: Mapping[str, tuple[int, Any]],
    device: torch.device,
) -> None:
    """A row a source slice: the source, then its translation into every modality by the averaged weights."""
    average.remember_references(
        {name: store.read(np.array([row])).to(device) for name, (row, _) in save_references.items()}
    )
    rng = np.random.default_rng((seed, 1))
    rows = []
    for index in range(min(_SAMPLES_AN_IMAGE, len(store.entries))):
        modality = store.modalities[index % len(store.modalities)]
        entries = [entry for entry in store.entries if entry.modality == modality]
        entry = entries[int(rng.integers(len(entries)))]
        x = store.read(np.array([entry.start + entry.count // 2])).to(device)
        fakes = average.synthesise({modality: x}, store.modalities)
        rows.append(
            (
                f"{entry.case} {modality}",
                [image[0, 0].float().cpu().numpy() for image in (x, *fakes.values())],
            )
        )
    hooks.draw(path, ["source", *(f"synthetic {name}" for name in store.modalities)], rows)


def _require_finite(losses: Mapping[str, float], step: int, run_dir: Path) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise AttclError(
            f"{run_dir}: loss {bad[0]} is {losses[bad[0]]} at step {step}, wanted a finite number",
            f"the last good checkpoint is kept; take smaller steps: attcl train --resume {run_dir} "
            "--set learning_rate=5e-5",
        )


def _trim_stats(path: Path, first: int) -> None:
    """Drops the lines beyond the checkpoint that a resumed run starts from: it will write them again."""
    if path.exists():
        kept = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith("{") and line.endswith("}") and json.loads(line)["step"] <= first
        ]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Set by Ctrl-C or a polite kill, so that the step in progress ends and is saved; a second one stops at once."""
    stopped = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    previous = {}
    with suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
