"""The runs that `recipe` compares: read from TOML files and checked, and the machine that they are measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from attcl_cli.errors import AttclError, UsageError, nearest, raise_all
from attcl_cli.files import read_toml
from attcl_cli.methods.settings import resolve

RECIPES = Path(__file__).with_name("recipes")
YARDSTICK = RECIPES / "unet.toml"
_PRESET = (
    "small"  # that settings are checked with if a run names none; `attcl train` picks by the device
)
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class RecipeRun:
    """One row of a comparison.

    Attributes:
        name: in tables.
        method: as of `attcl train`; "": its default.
        preset: likewise.
        variant: likewise.
        precision: likewise.
        set: single settings.
        complete: further arguments of `attcl_cli.complete`.
        weights: names or paths of finished weights, which are scored without training.
    """

    name: str
    method: str = ""
    preset: str = ""
    variant: str = ""
    precision: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)
    complete: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether the run is trained; otherwise finished weights are scored."""
        return not self.weights

    def of_training(self, seed: int) -> dict[str, Any]:
        """Return the arguments of `attcl_cli.train`."""
        given = {
            "method": self.method or None,
            "preset": self.preset or None,
            "variant": self.variant or None,
            "precision": self.precision or None,
        }
        return {**given, "overrides": {"seed": seed, **self.set}}

    def document(self) -> dict[str, Any]:
        """Return what defines the run, as JSON takes it."""
        return {key: value for key, value in asdict(self).items() if value}


def read_runs(paths: Sequence[Path]) -> list[RecipeRun]:
    """Read files of `[[run]]` tables, and check every run's settings.

    Raises:
        UsageError: a file is missing or no TOML, a key or a setting is unknown, a name stands twice; all together.
    """
    runs: list[RecipeRun] = []
    problems: list[AttclError] = []
    for path in paths:
        tables = read_toml(path, expected="[[run]] tables, as benchmarks/recipes/unet.toml").get(
            "run", []
        )
        if not isinstance(tables, list) or not tables:
            problems.append(
                UsageError(
                    f"{path}: no [[run]], expected one table per run",
                    "benchmarks/recipes/unet.toml shows how it is written",
                    code="no-recipe-run",
                )
            )
            continue
        for table in tables:
            try:
                runs.append(_run_of(path, table))
            except AttclError as error:
                problems.append(error)
    names = [run.name for run in runs]
    problems += [
        UsageError(
            f"run {name!r}: named {names.count(name)} times, expected once",
            "give each run a name of its own",
            code="recipe-run-named-twice",
        )
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    raise_all(problems)
    return runs


def with_yardstick(runs: Sequence[RecipeRun]) -> list[RecipeRun]:
    """Add the U-Net if something is trained, and nothing is trained with that method yet."""
    if any(run.trained for run in runs) and not any(run.method == "unet" for run in runs):
        return [*read_runs([YARDSTICK]), *runs]
    return list(runs)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, its instructions for matrices, GPU, torch."""
    described: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
    }
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        lines: dict[str, str] = {}
        for line in listing.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            lines[name.strip()] = value.strip()
        described["processor"] = lines.get("model name", described["processor"])
        present = (lines.get("flags") or lines.get("Features") or "").split()
        described["flags"] = [flag for flag in _FLAGS if flag in present]
    return described


def _run_of(path: Path, table: Mapping[str, Any]) -> RecipeRun:
    known = {item.name for item in fields(RecipeRun)}
    for key in table:
        if key not in known:
            raise UsageError(
                f"{path}: [[run]] has {key!r}, expected {', '.join(sorted(known))}",
                nearest(key, known),
                code="unknown-recipe-key",
            )
    if not isinstance(table.get("name"), str) or not table["name"]:
        raise UsageError(
            f"{path}: a [[run]] without a name, expected one",
            'name = "..." is what the tables show',
            code="recipe-run-without-name",
        )
    weights = table.get("weights", ())
    run = RecipeRun(
        **{**table, "weights": (weights,) if isinstance(weights, str) else tuple(weights)}
    )
    if run.trained:
        resolve(
            preset=run.preset or _PRESET,
            method=run.method or None,
            variant=run.variant or None,
            overrides=run.set,
        )
    elif run.method or run.preset or run.variant or run.set:
        raise UsageError(
            f"{path}: run {run.name!r} has weights and settings of a training, expected one of them",
            "leave weights out to train, or the settings to score finished weights",
            code="options-exclude-each-other",
        )
    return run
