"""The one training loop: batches in, averaged weights out. Knows no method, no layout and no terminal.

Everything random is a function of (seed, step), so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attcl_cli.data.sampling import Batch, CaseBatch, sampler_of
from attcl_cli.data.slices import Entry, SliceStore
from attcl_cli.devices import Precision, Processes
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.files import copy_whole
from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method, Runtime
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import WEIGHTS_FILE, WeightsInfo, save_weights
from attcl_cli.prefetch import read_ahead
from attcl_cli.training.loop import STATS_FILE, log_stats, stop_requested, trim_stats
from attcl_cli.training.state import BEST_FILE, STATE_FILE, TrainingState, load_state, save_state

VALIDATION_SSIM = "validation_ssim"  # in stats.jsonl
_SAMPLES_AN_IMAGE = 4
_Rows = list[tuple[str, list[np.ndarray[Any, Any]]]]


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to see of a run; all may be left out.

    Attributes:
        on_step: called after each step with its number (from 1) and the last logged losses.
        on_log: called with each record of `stats.jsonl`.
        on_stop: called when a stop is asked for, while the step in progress goes on.
        draw: writes a sample picture: path, column titles, rows of (row title, images (S, S) in [-1, 1]).
        validate: scores the averaged method, higher is better; called before each checkpoint, and the weights that
            score best are kept. None: the last ones are.
    """

    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _losses: None
    on_log: Callable[[Mapping[str, float]], None] = lambda _record: None
    on_stop: Callable[[], None] = lambda: None
    draw: Callable[[Path, list[str], _Rows], None] = lambda _path, _titles, _rows: None
    validate: Callable[[Method], float] | None = None


def train(
    settings: Settings,
    store: SliceStore,
    run_dir: Path,
    *,
    device: torch.device,
    precision: Precision = "fp32",
    processes: Processes = Processes(),  # noqa: B008 - one process, and never changed
    resume: bool = False,
    hooks: Hooks = Hooks(),
    note: str = "",
) -> int:
    """Trains a method and leaves weights, checkpoint, statistics and sample pictures in `run_dir`.

    Args:
        settings: what is trained, and how long.
        store: the training slices.
        run_dir: exists.
        device: where.
        precision: `bf16` computes networks in bfloat16; weights and losses stay float32.
        processes: who takes part; each has its share of every batch, the main one writes.
        resume: go on from the checkpoint in `run_dir`.
        hooks: progress, pictures and validation.
        note: said on the weights' card.

    Returns:
        The steps that the weights in `run_dir` have seen.

    Raises:
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: a loss is no longer finite, or the device is out of memory; the last good checkpoint is kept.
    """
    require_shares(settings, processes)
    run = _Run(settings, store, run_dir, device, hooks, note)
    run.method.runtime = Runtime(
        precision=precision,
        micro_batch=settings.micro_batch,
        rank=processes.rank,
        processes=processes.count,
        average=processes.average_gradients,
    )
    first = run.restore() if resume else 0
    if processes.main:
        trim_stats(run_dir / STATS_FILE, first)
    draw: Callable[[int], Batch | CaseBatch] = sampler_of(
        store,
        run.method.batches,
        batch_size=settings.batch_size,
        seed=settings.seed,
        mirror=settings.mirror,
    ).batch
    own = run.method.runtime.share(settings.batch_size)
    clock, clock_step = time.monotonic(), first
    logged: dict[str, float] = {}
    with stop_requested(hooks.on_stop) as stop:
        for step, future in read_ahead(draw, range(first, settings.steps), depth=2):
            try:
                batch = future.result().part(own).to(device)
                run.set_rates(step)
                losses = run.method.training_step(batch, step)
            except torch.cuda.OutOfMemoryError as error:
                raise _out_of_memory(settings, precision, device) from error
            run.average(step)
            done = step + 1
            last = done == settings.steps
            stopped = processes.any(stop.is_set(), device)
            saving = done % settings.save_every == 0 or last or stopped
            if done % settings.log_every == 0 or saving:
                # The only place where the loop waits for the device.
                logged = _values(losses, processes)
                _require_finite(logged, done, run_dir)
                now = time.monotonic()
                record = {
                    "step": done,
                    "seconds_a_step": round((now - clock) / (done - clock_step), 4),
                    **logged,
                }
                clock, clock_step = now, done
                if processes.main and (done % settings.log_every == 0 or last):
                    run.log(record)
            if processes.main and (done % settings.sample_every == 0 or last):
                run.draw_samples(done)
            if processes.main and saving:
                # Off the grid (Ctrl-C) nothing is judged: an undisturbed run would not have looked at this step.
                run.save(done, judge=done % settings.save_every == 0 or last)
            hooks.on_step(done, logged)
            if stopped and not last:
                raise InterruptedRun(
                    f"{run_dir}: stopped after step {done} of {settings.steps}, everything is saved",
                    f"go on with: attcl train --resume {run_dir}",
                )
    processes.wait()
    return run.best_step


def require_shares(settings: Settings, processes: Processes) -> None:
    """Every process has an equal share of a batch.

    Raises:
        UsageError: the batch cannot be shared.
    """
    if settings.batch_size % processes.count:
        raise UsageError(
            f"setting batch_size: {settings.batch_size} slices, expected a multiple of the {processes.count} processes",
            f"--set batch_size={math.ceil(settings.batch_size / processes.count) * processes.count}",
        )


class _Run:
    """A method in training, its average, and their files."""

    def __init__(
        self,
        settings: Settings,
        store: SliceStore,
        run_dir: Path,
        device: torch.device,
        hooks: Hooks,
        note: str,
    ) -> None:
        self.settings, self.store, self.run_dir = settings, store, run_dir
        self.device, self.hooks, self.note = device, hooks, note
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # every process starts from the same weights
            self.method = METHODS[settings.method](settings, store.modalities)
        for module in self.method.modules().values():
            module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.method)
        self.modules = {
            name: self.averaged.modules()[name].eval().requires_grad_(requires_grad=False)
            for name in self.method.inference
        }
        self.references = _choose_references(store, settings.seed)
        self.rates = {
            name: [group["lr"] for group in optimiser.param_groups]
            for name, optimiser in self.method.optimisers().items()
        }
        self.best: float | None = None
        self.best_step = 0

    def set_rates(self, step: int) -> None:
        """The learning rates of a step: constant, then a line that would reach 0 with the step after the last."""
        share, steps = self.settings.learning_rate_decay, self.settings.steps
        factor = min(1.0, (steps - step) / (share * steps)) if share else 1.0
        for name, optimiser in self.method.optimisers().items():
            for group, rate in zip(optimiser.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor

    def average(self, step: int) -> None:
        """Moving average of the weights, started as an exact copy; at first it forgets faster.

        Buffers are copied: running statistics are averages already, and others (counters, masks) have no mean.
        """
        decay = min(self.settings.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, module in self.modules.items():
                trained = self.method.modules()[name]
                own: list[Tensor] = list(trained.parameters())
                if own:
                    torch._foreach_lerp_([*module.parameters()], own, 1 - decay)
                for buffer, current in zip(module.buffers(), trained.buffers(), strict=True):
                    buffer.copy_(current)

    def log(self, record: Mapping[str, float]) -> None:
        """A line of `stats.jsonl`."""
        log_stats(self.run_dir / STATS_FILE, record)
        self.hooks.on_log(record)

    def save(self, step: int, *, judge: bool = True) -> None:
        """The weights, if they are the best so far, and the checkpoint to resume from."""
        self._remember_references()
        info = WeightsInfo(
            settings=self.settings,
            modalities=self.store.modalities,
            scales=self.store.scales,
            references={name: described for name, (_, described) in self.references.items()},
            trained_on=self.store.trained_on,
            steps=step,
        )
        validate = self.hooks.validate if judge else None
        score = validate(self.averaged) if validate else None
        if score is not None:
            self.log({"step": step, VALIDATION_SSIM: score})
        unjudged = self.hooks.validate is not None and not judge
        if self.best is None or (not unjudged and (score is None or score > self.best)):
            self.best, self.best_step = score, step
            save_weights(self.run_dir / WEIGHTS_FILE, self.averaged, info, note=self.note)
        save_state(self.run_dir / STATE_FILE, self._state(step))
        if score is not None and self.best_step == step:
            copy_whole(self.run_dir / STATE_FILE, self.run_dir / BEST_FILE)

    def draw_samples(self, step: int) -> None:
        """Some training slices, and what the averaged weights make of them."""
        self._remember_references()
        show = self._of_one if self.method.accepts == "one" else self._of_many
        titles, rows = show()
        self.hooks.draw(self.run_dir / "samples" / f"step-{step:06d}.png", titles, rows)

    def _of_one(self) -> tuple[list[str], _Rows]:
        """A row a source slice: the source, then its translation into every modality."""
        store = self.store
        rng = np.random.default_rng((self.settings.seed, 1))
        rows = []
        for index in range(min(_SAMPLES_AN_IMAGE, len(store.entries))):
            modality = store.modalities[index % len(store.modalities)]
            entries = [entry for entry in store.entries if entry.modality == modality]
            entry = entries[int(rng.integers(len(entries)))]
            x = store.read(np.array([entry.start + entry.count // 2])).to(self.device)
            fakes = self.averaged.synthesise({modality: x}, store.modalities)
            shown = [image[0, 0].float().cpu().numpy() for image in (x, *fakes.values())]
            rows.append((f"{entry.case} {modality}", shown))
        return ["source", *(f"synthetic {name}" for name in store.modalities)], rows

    def _of_many(self) -> tuple[list[str], _Rows]:
        """A row a target: the sources that the case has (black: none, or the target itself), synthetic and real."""
        store = self.store
        rng = np.random.default_rng((self.settings.seed, 1))
        volumes: dict[str, dict[str, Entry]] = {}
        for entry in store.entries:
            volumes.setdefault(entry.case, {})[entry.modality] = entry
        rows: _Rows = []
        for target, needed in self.method.needs(self.settings, store.modalities).items():
            chosen = [
                (case, own)
                for case, own in volumes.items()
                if target in own and len(own) > 1 and set(needed) <= set(own)
            ]
            if not chosen or len(rows) == _SAMPLES_AN_IMAGE:
                continue
            case, own = chosen[int(rng.integers(len(chosen)))]
            images = {
                name: store.read(np.array([entry.start + entry.count // 2])).to(self.device)
                for name, entry in own.items()
            }
            real = images.pop(target)
            fake = self.averaged.synthesise(images, [target])[target]
            black = torch.full_like(real, -1)
            shown = [images.get(name, black) for name in store.modalities] + [fake, real]
            rows.append(
                (f"{case} {target}", [image[0, 0].float().cpu().numpy() for image in shown])
            )
        return [*(f"source {name}" for name in store.modalities), "synthetic", "real"], rows

    def restore(self) -> int:
        """Everything as it was at the checkpoint; returns its step."""
        state = load_state(self.run_dir / STATE_FILE)

        def own(prefix: str) -> dict[str, Tensor]:
            found = ((key, value) for key, value in state.tensors.items() if key.startswith(prefix))
            return {key.removeprefix(prefix): value for key, value in found}

        try:
            for name, module in self.method.modules().items():
                module.load_state_dict(own(f"module.{name}."))
            for name, module in self.modules.items():
                module.load_state_dict(own(f"average.{name}."))
        except RuntimeError as error:
            raise UsageError(
                f"--resume: {self.run_dir / STATE_FILE} does not fit these settings or modalities, "
                "expected those that the run began with",
                "leave out the --set and --config that change networks, or start a new run",
            ) from error
        for name, optimiser in self.method.optimisers().items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in own(f"optimiser.{name}.").items():
                index, slot = key.split(".", 1)
                slots.setdefault(int(index), {})[slot] = value
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": slots, "param_groups": groups})
        self.best, self.best_step = state.extra["best"], state.extra["best_step"]
        return state.step

    def _state(self, step: int) -> TrainingState:
        tensors: dict[str, Tensor] = {}
        for name, module in self.method.modules().items():
            tensors |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
        for name, module in self.modules.items():
            tensors |= {
                f"average.{name}.{key}": value for key, value in module.state_dict().items()
            }
        for name, optimiser in self.method.optimisers().items():
            for index, slots in optimiser.state_dict()["state"].items():
                tensors |= {
                    f"optimiser.{name}.{index}.{slot}": torch.as_tensor(value)
                    for slot, value in slots.items()
                }
        return TrainingState(
            step=step, tensors=tensors, extra={"best": self.best, "best_step": self.best_step}
        )

    def _remember_references(self) -> None:
        rows = {
            name: self.store.read(np.array([row])) for name, (row, _) in self.references.items()
        }
        self.averaged.remember_references(
            {name: image.to(self.device) for name, image in rows.items()}
        )


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


def _values(losses: Mapping[str, Tensor], processes: Processes) -> dict[str, float]:
    """The losses as numbers, mean over the processes."""
    mean = processes.mean(torch.stack([value.float() for value in losses.values()]))
    return dict(zip(losses, mean.tolist(), strict=True))


def _require_finite(losses: Mapping[str, float], step: int, run_dir: Path) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    smaller = "--set learning_rate=5e-5"
    if bad:
        raise AttclError(
            f"{run_dir}: loss {bad[0]} is {losses[bad[0]]} at step {step}, expected a finite number",
            f"the last good checkpoint is kept; take smaller steps: attcl train --resume {run_dir} {smaller}"
            if (run_dir / STATE_FILE).is_file()
            else f"start again with smaller steps: attcl train {smaller}",
        )


def _out_of_memory(settings: Settings, precision: str, device: torch.device) -> AttclError:
    at_once = settings.micro_batch or settings.batch_size
    smaller = f"--set micro_batch={max(at_once // 2, 1)}"
    other = " or --precision bf16" if precision == "fp32" else ""
    return AttclError(
        f"{device}: out of memory with {at_once} slices of {settings.image_size} pixels, "
        "expected a step that fits",
        f"{smaller} (the same results in smaller parts){other}",
    )
