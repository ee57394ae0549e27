"""What is asked of `attcl train`, and everything that is checked before the first costly second.

Settings of a run to resume, its folder, its cases. Writes nothing.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from attcl_cli import documents
from attcl_cli.data import splits
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Case, Dataset, Source
from attcl_cli.data.synthetic import describe_synthetic
from attcl_cli.errors import AttclError, UsageError, counted, quoted, raise_all
from attcl_cli.files import require_empty
from attcl_cli.methods import METHODS
from attcl_cli.methods.presets import DEFAULT_PRESET
from attcl_cli.methods.settings import (
    Settings,
    fixed_names,
    read_run_settings,
    read_settings,
    resolve,
    settings_of,
    validated,
)
from attcl_cli.methods.sources import takes_one
from attcl_cli.run_record import has_saved, read_record, require_no_other_run

CPU_PRESET = "small"
"""The preset of a run that names none and has no GPU."""


class _Reading(documents.Document):
    """What the `run.json` of a training says of how its volumes are found and read."""

    layout: str = "auto"
    modalities: documents.PathText | None = None
    bids_filter: documents.Items[str] = ()
    background: BackgroundOption = "auto"
    force: bool = False


def default_preset(device: str) -> str:
    """Return the preset of a run that names none: what the kind of device (`cpu`, `cuda`, `mps`) can train."""
    return CPU_PRESET if device == "cpu" else DEFAULT_PRESET


def about_default_preset(place: object, preset: str) -> str:
    """Return the line that says which preset a device gets that no option named."""
    return f"device {place}: preset {preset} (the default: {CPU_PRESET} on a CPU, {DEFAULT_PRESET} on a GPU)"


def with_length(
    overrides: Mapping[str, Any], file: Path | None, *, epochs: int | None, minutes: float | None
) -> dict[str, Any]:
    """Return single settings, stronger than all others, in which one thing says how long the run is.

    Args:
        overrides: single settings.
        file: a TOML file of settings; its steps are stronger than the epochs of a preset.
        epochs: passes over the training slices; None: as the settings say.
        minutes: time for the whole run; None: as the settings say.

    Raises:
        UsageError: several of them say how long the run is, or the time is none.
    """
    given = {
        name: value
        for name, value in {
            "--minutes": minutes,
            "--epochs": epochs or overrides.get("epochs") or None,
            "--steps": overrides.get("steps"),
        }.items()
        if value is not None
    }
    if len(given) > 1:
        first, second = list(given)[:2]
        raise UsageError(
            f"{first}: given with {second}, expected one of them",
            "one option says how long the run is",
            code="options-exclude-each-other",
        )
    if minutes is not None and not (minutes > 0 and math.isfinite(minutes)):
        raise UsageError(
            f"--minutes: {minutes}, expected more than 0",
            "for example --minutes 90",
            code="minutes-not-positive",
        )
    chosen = dict(overrides)
    if epochs is not None:
        chosen["epochs"] = epochs
    by_file = read_settings(file)[0] if file is not None else {}
    if (
        minutes is not None
        or "steps" in overrides
        or ("steps" in by_file and "epochs" not in by_file)
    ):
        chosen.setdefault("epochs", 0)
    return chosen


def minutes_of(run_dir: Path) -> float | None:
    """Return the time that a run was to take if it was stopped before its first checkpoint, otherwise None."""
    minutes = read_record(run_dir).get("minutes")
    return float(minutes) if isinstance(minutes, int | float) and not step_of(run_dir) else None


def data_of(run_dir: Path | None) -> Path:
    """Return the dataset that a run was trained on; `data` if there is no run, or it does not say."""
    recorded = read_record(run_dir).get("data") if run_dir is not None else None
    return Path(recorded) if isinstance(recorded, str) else Path("data")


def reading_of(source: Source, *, force: bool) -> dict[str, Any]:
    """Return how the volumes of a run are found and read, as `run.json` keeps it: what is not left to its default."""
    default = Source(source.folder)
    said = {
        "layout": source.layout,
        "modalities": source.modalities and str(source.modalities.absolute()),
        "bids_filter": list(source.bids_filter),
        "background": source.background,
        "force": force,
    }
    usual = {**asdict(default), "bids_filter": [], "force": False}
    return {name: value for name, value in said.items() if value != usual[name]}


def require_one_place(output: Path | None, resume: Path | None) -> None:
    """Raise a `UsageError` if a new folder and that of a run to resume are both named."""
    if resume is not None and output is not None:
        raise UsageError(
            "--output: given with --resume, expected one of them",
            "leave --output out",
            code="options-exclude-each-other",
        )


def read_as_before(run_dir: Path | None, source: Source, *, force: bool) -> tuple[Source, bool]:
    """Return how the volumes of a run to resume are read: as before, where the user says nothing.

    Of a new run, None, nothing changes.

    Raises:
        UsageError: the background would be another one, so that the slices were others.
        AttclError: the record was edited, and says what no option could.
    """
    if run_dir is None:
        return source, force
    before = documents.validated(
        _Reading,
        read_record(run_dir),
        name=run_dir / "run.json",
        expected="the record of a training",
        hint="restore it, or start a new run",
        code="invalid-record",
    )
    if source.background not in ("auto", before.background):
        raise UsageError(
            f"--background: {source.background}, but {run_dir} was started with {before.background}, expected the same",
            "leave it out, or start a new run",
            code="resumed-run-changed",
        )
    own = Path(before.modalities) if before.modalities else None
    return replace(
        source,
        layout=before.layout if source.layout == "auto" else source.layout,
        modalities=source.modalities or own,
        bids_filter=source.bids_filter or before.bids_filter,
        background=before.background,
    ), force or before.force


def require_run(run_dir: Path) -> None:
    """Check that a folder to resume is that of a run: it has settings."""
    if not ((run_dir / "config.toml").is_file() or _just_begun(run_dir)):
        raise UsageError(
            f"--resume: {run_dir} has no config.toml, expected the folder of a run",
            "start without --resume, or name another run",
            code="nothing-to-resume",
        )
    require_no_other_run(run_dir, flag="--resume")
    _require_checkpoint(run_dir)


def _require_checkpoint(run_dir: Path) -> None:
    """Check that a run which has weights still has the checkpoint to go on from: otherwise they would be replaced.

    A run that was broken off at its first checkpoint may have the one without the other, and begins again.
    """
    from attcl_cli.training.state import require_checkpoint  # noqa: PLC0415 - loads torch

    if has_saved(read_record(run_dir)):
        require_checkpoint(run_dir)


def _just_begun(run_dir: Path) -> bool:
    """Return whether a run was broken off between its record, which comes first, and its settings."""
    return read_record(run_dir).get("command") == "train" and not step_of(run_dir)


def _settings_before(run_dir: Path) -> Settings:
    file = run_dir / "config.toml"
    if file.is_file():
        return read_run_settings(file)
    recorded = read_record(run_dir).get("config") or {}
    return validated(settings_of(str(recorded.get("method"))), recorded)


def resumed_settings(
    run_dir: Path,
    preset: str | None,
    method: str | None,
    variant: str | None,
    file: Path | None,
    overrides: Mapping[str, Any],
) -> Settings:
    """Return the settings of the run to resume, with what is changed in them.

    Raises:
        UsageError: nothing to resume, or a change that the run's checkpoint does not bear.
    """
    if preset is not None:
        raise UsageError(
            "--preset: given with --resume, expected one of them",
            "a run keeps the sizes it was started with",
            code="options-exclude-each-other",
        )
    require_run(run_dir)
    before = _settings_before(run_dir)
    was = before.model_dump()
    if method in (None, before.method):
        after = resolve(
            method=method, variant=variant, file=file, before=before, overrides=dict(overrides)
        )
        now = after.model_dump()
    else:  # which has other settings
        after, now = before, {**was, "method": method}
    problems: list[AttclError] = [
        UsageError(
            f"--resume: {run_dir} was started with {key} {was[key]!r}, found {now.get(key)!r}, expected the same",
            "leave out what changes it, or start a new run",
            code="resumed-run-changed",
        )
        for key in fixed_names(type(before))
        if was[key] != now.get(key)
    ]
    raise_all(problems)
    return after


def step_of(run_dir: Path) -> int:
    """Return the step of a run's checkpoint; 0 if it was stopped before its first one."""
    from attcl_cli.training.state import STATE_FILE, state_step  # noqa: PLC0415 - loads torch

    path = run_dir / STATE_FILE
    return state_step(path) if path.is_file() else 0


def require_usable(settings: Settings, dataset: Dataset, cases: Sequence[Case]) -> None:
    """Check that there are two modalities, volumes of each one, and a case that teaches the method something."""
    known = sorted({name for case in cases for name in case.files})
    if len(known) == 1:
        raise AttclError(
            f"{dataset.root}: {known[0]} alone in {counted(len(cases), 'training case')}, "
            "expected two modalities at least",
            "add the volumes of another modality, of any of the cases",
            code="one-modality",
        )
    lacking = ", ".join(name for name in dataset.modalities if name not in known)
    if lacking:
        named = dataset.vocabulary_file or "modalities.toml"
        raise AttclError(
            f"{dataset.root}: no training case has {lacking}, expected at least one to learn from",
            f"add such volumes to the training cases, or leave {lacking} out of {named}",
            code="modality-of-no-case",
        )
    rule = METHODS[settings.method].sources(settings, known)
    if takes_one(rule, known):
        return  # learns from volumes that have no partner, too
    if any(
        rule.sources_for(target, [name for name in case.files if name != target])
        for case in cases
        for target in rule.targets
        if target in case.files
    ):
        return
    wanted = " or ".join(f"{target} with {rule.describe(target)}" for target in rule.targets)
    raise AttclError(
        f"{dataset.root}: none of {counted(len(cases), 'training case')} has {wanted}, expected one at least",
        "train a method or a model that needs fewer sources (plave: leave plave_target out)",
        code="nothing-to-learn-from",
    )


def synthetic_volumes(dataset: Dataset, cases: Sequence[Case]) -> list[AttclError]:
    """Return a problem if there are volumes that attcl made: their side-cars say so."""
    found = describe_synthetic(dataset, cases)
    if not found:
        return []
    return [
        AttclError(
            f"{dataset.root}: {found}, expected real ones to learn from",
            "train on the dataset that was completed: --data ORIGINALS",
            code="synthetic-training-data",
        )
    ]


def require_same_cases(run_dir: Path, now: Sequence[str]) -> None:
    """Check that a resumed run sees the patients, by their ids, that it was started with, and no others."""
    before = read_record(run_dir).get("trained_on")
    if before is not None and before != list(now):
        raise UsageError(
            f"--resume: {run_dir} was trained on {len(before)} other cases than the {len(now)} here, "
            "expected the same",
            "name the run's own dataset with --data",
            code="resumed-run-changed",
        )


def run_folder(settings: Settings, output: Path | None, resume: Path | None) -> Path:
    """Return where the run goes: the folder to resume, the one that was asked for, or one of this time."""
    return resume or output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{settings.method}"


def require_free(folder: Path) -> None:
    """Check that nothing is in the folder of a new run."""
    require_empty(
        folder, flag="--output", hint=f"or resume with: attcl train --resume {quoted(folder)}"
    )


def training_cases(dataset: Dataset) -> tuple[list[Case], list[Case]]:
    """Return the training split (all cases of a dataset without splits), and the validation cases with a pair."""
    prepared = splits.read_splits(dataset.root)
    cases = [
        case for case in dataset.cases if prepared is None or case.id in prepared.names("train")
    ]
    if not cases:
        raise AttclError(
            f"{dataset.root}: no training case, expected at least one",
            "run attcl prepare-splits with a larger --fractions or --sizes",
            code="no-training-case",
        )
    chosen = prepared.names("val") if prepared else ()
    validated = [case for case in dataset.cases if case.id in chosen and len(case.files) > 1]
    return cases, validated


def require_tensorboard() -> None:
    """Raise a `UsageError` if the optional package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard: the package tensorboard is not installed, expected it",
            'pip install "attcl[tensorboard]"',
            code="tensorboard-missing",
        )
