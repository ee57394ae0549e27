"""What is wrong with a study, as far as it is known before the first job: by day, and not at night.

Its folders, its commands with their settings, its splits by names alone, and whether the jobs that are done were those
of this very study. Opens no volume and writes nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer
import yaml
from plan import Cell, Study, ratio_name

from attcl_cli.cli.app import ParserError, app
from attcl_cli.cli.prepare_splits import triple
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.splits import RATIOS, Splits, make_splits
from attcl_cli.errors import AttclError, counted, raise_all
from attcl_cli.files import is_within
from attcl_cli.methods.presets import overrides_of
from attcl_cli.methods.settings import resolve
from attcl_cli.segmentation import settings as segmentation
from attcl_cli.training.request import default_preset, with_length

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def require_runnable(study: Study) -> None:
    """Check everything that is known before the first job.

    Raises:
        AttclError: all problems of the first kind that there is, together.
    """
    require_places(study)
    require_apart(study)
    require_commands(study)
    require_splits(study)
    require_same(study)


def require_places(study: Study) -> None:
    """Check that datasets and files of scenarios are there."""
    for name, source in study.file.datasets.items():
        if source.path is not None and not study.origin(name).is_dir():
            raise AttclError(
                f"datasets: {name}: {source.path}, no such folder, expected a complete dataset",
                "write its path into the study's YAML file; it is relative to where snakemake is called",
                code="no-dataset",
            )
    for ratio in study.file.ratios:
        if ratio not in RATIOS and not Path(ratio).is_file():
            raise AttclError(
                f"ratios: {ratio}, no such file, expected {', '.join(RATIOS)}, or a TOML file",
                "docs/guides/prepare-splits.md shows such a file; paths are relative to where snakemake is called",
                code="no-ratio",
            )


def require_apart(study: Study) -> None:
    """Check that the study's own folder does not lie in a dataset, nor a dataset in it."""
    for name, source in study.file.datasets.items():
        origin = study.origin(name)
        if source.path is not None and (
            is_within(study.root, origin) or is_within(origin, study.root)
        ):
            raise AttclError(
                f"output: {study.file.output} and the dataset {name}, {source.path}, lie in one another, expected a "
                "folder apart from the originals",
                "write another output into the study's YAML file",
                code="output-among-originals",
            )


def require_single_keys(paths: Iterable[Path]) -> None:
    """Check that no key of a YAML file stands there twice: the parser takes the last one, and drops the first.

    Raises:
        AttclError: a key does.
    """
    for path in paths:
        try:
            node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # Snakemake has read it
        _refuse_twice(node, path)


def _refuse_twice(node: yaml.Node | None, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise AttclError(
                    f"{path}: {key.value} stands twice in one table (line {key.start_mark.line + 1}), expected each "
                    "key once",
                    "give one of them another name",
                    code="key-twice",
                )
            seen.add(key.value)
            _refuse_twice(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, path)


def require_commands(study: Study) -> None:
    """Check the options of every kind of job, and the settings of networks; those of one cell are those of all."""
    first = study.cells[0].name
    problems = {}
    for cell, stage, of in study.jobs():
        if cell == first:
            error = _wrong(study, cell, stage, of)
            if error is not None:
                problems.setdefault(error.message, error)
    raise_all([*problems.values()])


def _wrong(study: Study, cell: str, stage: str, of: str) -> AttclError | None:
    """Return what is wrong with the command of a job."""
    try:
        given = parsed(study.arguments(cell, stage, of))
        check = _SETTINGS.get(stage)
        if check is not None:
            check(given)
    except ParserError as error:
        command = study.arguments(cell, stage, of)[0]
        message = error.format_message()  # type: ignore[attr-defined]
        hint = f"attcl {command} --help lists its options"
    except AttclError as error:
        message, hint = error.message, error.hint
    else:
        return None
    place = f"methods: {of}" if stage == "train" else "segment" if stage == "reference" else stage
    return AttclError(f"{place}: {message}", hint, code="study-not-runnable")


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what attcl reads in its arguments: name of a parameter -> value.

    Raises:
        ParserError: attcl would not take them.
    """
    name, *words = arguments
    return COMMANDS[name].make_context(name, list(words)).params


def _require_training(given: Mapping[str, Any]) -> None:
    chosen = with_length(
        _overrides(given), given["config"], epochs=given["epochs"], minutes=given["minutes"]
    )
    resolve(
        preset=given["preset"] or default_preset("cpu"),
        method=given["method"],
        variant=given["variant"],
        file=given["config"],
        overrides=chosen,
    )


def _require_segmenter(given: Mapping[str, Any]) -> None:
    segmentation.resolve(given["preset"], _overrides(given))


def _overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return single settings, as `attcl train` and `attcl segment` put them together."""
    return overrides_of(given["set_"], steps=given["steps"], seed=given["seed"])


_SETTINGS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "train": _require_training,
    "segment": _require_segmenter,
    "reference": _require_segmenter,
}


def require_splits(study: Study) -> None:
    """Draw the splits of every cell by names of files alone: sizes and scenarios that a dataset does not bear.

    Simulated patients are not there yet; the first job finds what is wrong with their splits.
    """
    for name, source in study.file.datasets.items():
        cells = [cell for cell in study.cells if cell.dataset == name]
        if source.path is None:
            continue
        try:
            given = parsed(study.arguments(cells[0].name, "splits"))
            dataset = open_dataset(
                study.origin(name),
                layout=given["layout"],
                modalities=given["modalities"],
                bids_filter=given["bids_filter"] or (),
            )
            shares = {
                "sizes": triple(given["sizes"], "--sizes", int),
                "fractions": triple(given["fractions"], "--fractions", float),
            }
            for cell in cells:
                drawn = make_splits(
                    dataset,
                    ratio=cell.ratio,
                    subset=Fraction(cell.subset),
                    seed=cell.seed,
                    **shares,
                )
                _require_seen(study, cell, drawn)
        except AttclError as error:
            raise AttclError(
                f"datasets: {name}: {error.message}", error.hint, code="study-not-runnable"
            ) from error


def _require_seen(study: Study, cell: Cell, drawn: Splits) -> None:
    """Check that the segmenter "w/o DA" has its modality in every case."""
    lacking = [
        item.case
        for items in drawn.splits.values()
        for item in items
        if study.file.without not in item.present
    ]
    if study.file.segment is not None and lacking:
        raise AttclError(
            f"{counted(len(lacking), 'case')} of {ratio_name(cell.ratio)} without {study.file.without}, such as "
            f"{lacking[0]}, expected the modality of the segmenter w/o DA in every case",
            "write a modality that no scenario hides after without:, or segment: null",
            code="study-not-runnable",
        )


def require_same(study: Study) -> None:
    """Check that what is done or begun of a study was run by its own commands: the page would describe others.

    Where networks run and whether they may be downloaded changes no study. A job that an earlier version of the
    workflow ran has no note.
    """
    problems = []
    for note, now, folder in study.notes():
        was = note.read_text("utf-8", "replace").strip() if note.is_file() else ""
        if was and was != now:
            found, wanted = _differing(was, now)
            remove = shlex.join(["rm", "-r", str(folder), str(note.with_suffix(".done"))])
            problems.append(
                AttclError(
                    f"{note}: the job was run with {found}, expected {wanted} as the study says now",
                    f"write another output for the changed study; or make this job and those after it anew: {remove}",
                    code="study-changed",
                )
            )
    raise_all(problems)


def _differing(was: str, now: str) -> tuple[str, str]:
    """Return where two commands part, from the option before it on."""
    old, new = was.split(), now.split()
    alike = _alike(old, new)
    end = _alike(old[alike:][::-1], new[alike:][::-1])
    options = (index for index in range(alike) if old[index].startswith("-"))
    start = max(options, default=0)
    found, wanted = (repr(" ".join(words[start : len(words) - end])) for words in (old, new))
    return found, wanted


def _alike(one: Sequence[str], two: Sequence[str]) -> int:
    """Return how many first words two commands share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
