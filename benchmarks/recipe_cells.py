"""One cell of a comparison: a run is trained on a part of the protocol, completes it from every set of sources, scores.

A finished step of a cell is not done again. What is compared is read by `recipe_runs` and `protocol`; tables are made
by `recipe_report`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from protocol import MODALITIES, Protocol, link_cases, write_data_tree
from recipe_report import write_pictures
from recipe_runs import RecipeRun, machine

import attcl_cli
from attcl_cli import devices
from attcl_cli.completion.doubt import calibration
from attcl_cli.completion.jobs import Places
from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.splits import RATIOS, read_splits
from attcl_cli.errors import UsageError
from attcl_cli.files import read_json, write_json, write_whole
from attcl_cli.progress import Progress
from attcl_cli.run_record import read_record
from attcl_cli.scoring.baselines import measure_quantiles
from attcl_cli.scoring.feature_networks import load_network
from attcl_cli.scoring.pairs import CasePairs, Comparison, plan_comparison
from attcl_cli.scoring.rows import COPY, MATCHED, MEAN, SYNTHETIC, Measures, Row, score_cases
from attcl_cli.scoring.summary import summarise
from attcl_cli.training.stats import STATS_FILE

METRICS = ("ssim", "psnr", "nmse", "gms", "fd-effnet")
BASELINES = "baselines"  # the name of the cell that holds them
OTHERS = "others"  # the three other modalities as sources
SHOWN = (*MODALITIES, OTHERS)
SCENARIOS: Mapping[str, Sequence[Sequence[str]]] = {
    "ratio1": RATIOS["ratio1"],
    "one-missing": tuple((name,) for name in MODALITIES),
}


@dataclass(frozen=True)
class Part:
    """What a cell is trained on, and what it completes.

    Attributes:
        name: `test`, `fold-0`, `other-domain`, `evening-ratio1`.
        patients: the complete patients.
        scored: ids of those that are scored.
        trees: name -> incomplete data tree; each is completed in one call.
        training: the data tree of `attcl train`; None if nothing is trained.
    """

    name: str
    patients: Dataset
    scored: tuple[str, ...]
    trees: Mapping[str, Path]
    training: Path | None = None

    @property
    def data_trees(self) -> list[Path]:
        """All data trees, the one of the training first."""
        training = [] if self.training is None else [self.training]
        return list(dict.fromkeys([*training, *self.trees.values()]))


@dataclass(frozen=True)
class Place:
    """Where and how the cells of a comparison are computed.

    Attributes:
        folder: of all results.
        minutes: of each training.
        device: as of `attcl train`.
        progress: listens.
        keep_volumes: keep the completed volumes after they were scored.
        features: also measure the distance of EfficientNet's features, which takes most of the time of scoring.
    """

    folder: Path
    minutes: float
    device: str
    progress: Progress
    keep_volumes: bool = True
    features: bool = True

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured in every cell."""
        return METRICS if self.features else METRICS[:-1]


# --- Parts --------------------------------------------------------------------------------------------------------


def part_of_protocol(
    protocol: Protocol,
    datasets: Mapping[str, Dataset],
    output: Path,
    *,
    part: str,
    fold: int | None = None,
    shown: Sequence[str] = SHOWN,
) -> Part:
    """Link the patients of a part of the protocol, and write its data trees.

    Args:
        protocol: the split.
        datasets: of `protocol.open_cohort`.
        output: folder of links and trees.
        part: `test`, `folds` or `other_domain`.
        fold: the fold that is left out and scored, of part `folds`.
        shown: the sets of sources: single modalities, and `OTHERS`.
    """
    if part == "other_domain":
        return _shown_part("other-domain", datasets[part], protocol.other_domain, output, shown)
    links = output / "patients"
    link_cases(datasets["folds"], protocol.train, links)
    link_cases(datasets["test"], protocol.test, links)
    link_cases(datasets["validation"], protocol.validation, links, labels=False)
    patients = open_dataset(links)
    if fold is None:
        name, train, scored = "test", protocol.train, protocol.test
    else:
        name, train, scored = f"fold-{fold}", protocol.outside(fold), protocol.folds[fold]
    training = output / "trees" / f"{name}-train"
    write_data_tree(
        patients, training, scenario="complete", train=train, validation=protocol.validation
    )
    return replace(_shown_part(name, patients, scored, output, shown), training=training)


def evening(
    protocol: Protocol, datasets: Mapping[str, Dataset], output: Path, scenario: str
) -> Part:
    """Link training and test patients with holes: the dataset of a laboratory that completes what it trains on.

    Args:
        protocol: the split.
        datasets: of `protocol.open_cohort`.
        output: folder of links and trees.
        scenario: one of `SCENARIOS`; which patient lacks what is drawn once, with default_rng(0).
    """
    names = sorted([*protocol.train, *protocol.test])
    links = output / "patients"
    link_cases(datasets["folds"], protocol.train, links)
    link_cases(datasets["test"], protocol.test, links)
    link_cases(datasets["validation"], protocol.validation, links, labels=False)
    patients = open_dataset(links)
    groups = SCENARIOS[scenario]
    drawn = np.random.default_rng(0).permutation(names)
    hidden = {str(name): groups[place % len(groups)] for place, name in enumerate(drawn)}
    tree = output / "trees" / f"evening-{scenario}"
    write_data_tree(patients, tree, scenario=scenario, train=names, hidden=hidden)
    return Part(f"evening-{scenario}", patients, tuple(names), {scenario: tree}, tree)


def _shown_part(
    name: str, patients: Dataset, scored: Sequence[str], output: Path, shown: Sequence[str]
) -> Part:
    """Write a data tree per set of sources: from each modality alone, and without each one."""
    keeping = {f"from-{source}": (source,) for source in MODALITIES if source in shown} | {
        f"no-{target}": tuple(kind for kind in MODALITIES if kind != target)
        for target in MODALITIES
        if OTHERS in shown
    }
    trees = {}
    for tree, kept in keeping.items():
        trees[tree] = output / "trees" / f"{name}-{tree}"
        hidden = tuple(kind for kind in MODALITIES if kind not in kept)
        write_data_tree(
            patients,
            trees[tree],
            scenario=tree,
            test=scored,
            hidden=dict.fromkeys(scored, hidden),
        )
    return Part(name, patients, tuple(scored), trees)


# --- Cells --------------------------------------------------------------------------------------------------------


def baselines(part: Part, place: Place) -> dict[str, Any]:
    """Score the trivial baselines of a part: the best copy, its quantiles matched, the mean of several sources."""
    folder = place.folder / part.name / BASELINES
    wanted = [name for name in part.trees if not _is_scored(folder / f"{name}.json", place)]
    measures = _measures(place)
    if wanted:
        quantiles = measure_quantiles(part.patients, MODALITIES, progress=place.progress)
        measures = replace(measures, baselines=True, quantiles=quantiles)
    for name in wanted:
        tree = open_dataset(part.trees[name])
        several = any(len(case.files) > 1 for case in tree.cases)
        only = (COPY, MATCHED, MEAN) if several else (COPY, MATCHED)
        with tempfile.TemporaryDirectory() as truths:
            _link_hidden(tree, part.patients, Path(truths))  # something must be there to be scored
            scores, volumes = _score(tree, part, Path(truths), replace(measures, only=only), place)
        document = {"metrics": place.metrics, "scores": scores, "volumes": volumes}
        write_json(folder / f"{name}.json", document)
    return _finish(folder, part, {"name": BASELINES, "seed": None, "minutes": 0}, place)


def cell(run: RecipeRun, seed: int | None, part: Part, place: Place) -> dict[str, Any]:
    """Train, complete, score and picture; what an earlier call has done is not done again.

    Args:
        run: the run.
        seed: of its training; None for finished weights.
        part: what it is trained on and completes.
        place: where.

    Returns:
        The record of the cell.

    Raises:
        UsageError: the folder holds a cell of this name with other settings.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", run.name).strip("-")
    folder = place.folder / part.name / (name if seed is None else f"{name}-seed{seed}")
    definition = {
        "name": run.name,
        "seed": seed,
        "minutes": place.minutes if run.trained else None,
        "run": json.loads(json.dumps(run.document())),
    }
    _require_same(folder, definition)
    weights: Sequence[str] = run.weights
    facts: dict[str, Any] = {}
    if run.trained:
        assert (
            part.training is not None and seed is not None
        )  # a part without training has no such runs
        facts = _train(run, seed, part.training, folder / "run", place)
        weights = [str(folder / "run")]
    measures = replace(_measures(place), only=(SYNTHETIC,))
    for tree_name, root in part.trees.items():
        if _is_scored(folder / f"{tree_name}.json", place):
            continue
        tree, out = open_dataset(root), folder / "volumes" / tree_name
        started = time.monotonic()
        result = attcl_cli.complete(
            root,
            out,
            weights=weights,
            device=place.device,
            progress=place.progress,
            **run.complete,
        )
        seconds = (time.monotonic() - started) / result.written if result.written else None
        scores, volumes = _score(tree, part, out, measures, place)
        write_pictures(_comparison(tree, part, out).cases, folder / "pictures" / tree_name)
        write_json(
            folder / f"{tree_name}.json",
            {
                "metrics": place.metrics,
                "scores": scores,
                "volumes": volumes,
                "seconds_per_volume": seconds,  # None: an earlier call had made them
            },
        )
        if not place.keep_volumes:
            shutil.rmtree(out)
    return _finish(folder, part, {**definition, **facts}, place)


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all finished cells below a folder."""
    return [read_json(path) for path in sorted(folder.glob("*/*/cell.json"))]


# --- Steps of a cell ----------------------------------------------------------------------------------------------


def _require_same(folder: Path, definition: Mapping[str, Any]) -> None:
    path = folder / "definition.json"
    if not path.is_file():
        write_json(path, definition)
    elif read_json(path) != definition:
        raise UsageError(
            f"{folder}: holds a cell of other settings or minutes, expected the same",
            "give the run another name, or choose another --output",
            code="cell-of-other-settings",
        )


def _train(run: RecipeRun, seed: int, data: Path, folder: Path, place: Place) -> dict[str, Any]:
    """Train, or resume; return what the run was."""
    done = read_record(folder).get("status") == "done"
    if not done:
        started = (folder / "config.toml").is_file()
        if not started:
            shutil.rmtree(folder, ignore_errors=True)
        arguments = (
            {"resume": folder}
            if started
            else {"output": folder, "minutes": place.minutes, **run.of_training(seed)}
        )
        attcl_cli.train(data, device=place.device, progress=place.progress, **arguments)
    record = read_record(folder)
    lines = [json.loads(line) for line in (folder / STATS_FILE).read_text().splitlines()]
    lines = [line for line in lines if "seconds_a_step" in line]  # others tell of validation
    logged = [0, *(line["step"] for line in lines)]
    steps = (after - before for before, after in itertools.pairwise(logged))
    spans = zip(steps, lines, strict=True)
    return {
        "method": record["config"]["method"],
        "steps": record["config"]["steps"],
        "precision": record["precision"],
        "trained_on": len(record["trained_on"]),
        "seconds": round(sum(step * line["seconds_a_step"] for step, line in spans)),
        "seconds_per_step": round(float(np.median([line["seconds_a_step"] for line in lines])), 4),
    }


def _is_scored(path: Path, place: Place) -> bool:
    """Return whether a data tree was scored by all metrics that are wanted now."""
    return path.is_file() and set(place.metrics) <= set(read_json(path)["metrics"])


def _measures(place: Place) -> Measures:
    """Return what is measured in every cell, and the network for it."""
    device = devices.select(place.device)
    embed = load_network("effnet-lite0", offline=True, device=device) if place.features else None
    return Measures(place.metrics, embed=embed, cache=place.folder / "features")


def _comparison(tree: Dataset, part: Part, completed: Path) -> Comparison:
    return plan_comparison(tree, part.patients, completed, read_splits(tree.root), split="all")


def _score(
    tree: Dataset, part: Part, completed: Path, measures: Measures, place: Place
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score the volumes that were completed of a data tree.

    Returns:
        The figures by set of present modalities, target, prediction, metric and region; and the values of each volume.
    """
    comparison = _comparison(tree, part, completed)
    scores: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    for present, group in _by_present(comparison.cases):
        chosen = replace(comparison, cases=tuple(group))
        rows: list[Row] = []
        with (
            tempfile.TemporaryDirectory() as features,
            place.progress.bar(len(group), "score") as bar,
        ):
            for pairs, of_case in zip(
                group, score_cases(chosen, measures, folder=Path(features)), strict=True
            ):
                rows += of_case
                bar(pairs.case)
            figures = summarise(rows, chosen, measures, folder=Path(features))
        scores += [
            {
                "present": list(present),
                "target": figure.group,
                "prediction": figure.prediction,
                "metric": figure.metric,
                "region": figure.region,
                "mean": _finite(figure.mean),
                "sd": _finite(figure.sd),
                "n": figure.n,
                "n_undefined": figure.n_undefined,
            }
            for figure in figures
            if figure.group in MODALITIES
        ]
        values: dict[tuple[str, str, str, str], dict[str, float | None]] = {}
        for row in rows:
            key = (row.case, row.modality, row.source, row.prediction)
            values.setdefault(key, {})[f"{row.metric} {row.region}"] = _finite(row.value)
        volumes += [
            {
                "case": case,
                "present": list(present),
                "target": target,
                "source": source,
                "prediction": prediction,
                "values": measured,
            }
            for (case, target, source, prediction), measured in values.items()
        ]
    errors = {
        (volume["case"], volume["target"]): 1 - volume["values"]["ssim brain"]
        for volume in volumes
        if volume["prediction"] == SYNTHETIC
    }
    points = calibration(Places(tree, completed), errors)
    doubts = {(point.case, point.target): point.doubt.document() for point in points}
    for volume in volumes:
        volume["doubt"] = doubts.get((volume["case"], volume["target"]), {})
    return scores, volumes


def _by_present(cases: Sequence[CasePairs]) -> Iterator[tuple[tuple[str, ...], list[CasePairs]]]:
    """Yield the cases that have the same modalities together."""
    groups: dict[tuple[str, ...], list[CasePairs]] = {}
    for case in cases:
        groups.setdefault(tuple(sorted(case.present)), []).append(case)
    yield from sorted(groups.items())


def _link_hidden(tree: Dataset, patients: Dataset, output: Path) -> None:
    """Link the truth of everything that is hidden in a data tree to where a completion would write it."""
    complete = {case.id: case for case in patients.cases}
    for case in tree.cases:
        for name in tree.missing(case):
            for link, truth in zip(
                tree.place(case, name), patients.paths(complete[case.id], name), strict=True
            ):
                (output / link).parent.mkdir(parents=True, exist_ok=True)
                (output / link).symlink_to(truth.resolve())


def _finish(folder: Path, part: Part, facts: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Write the record of a cell, and the lines of all cells."""
    steps = [read_json(folder / f"{name}.json") for name in part.trees]
    per_volume = [seconds for step in steps if (seconds := step.get("seconds_per_volume"))]
    path = folder / "cell.json"
    before = read_json(path) if path.is_file() else {}
    record = {
        "part": part.name,
        **facts,
        "patients": len(part.scored),
        "attcl": attcl_cli.__version__,
        "machine": before.get("machine") or machine(devices.select(place.device)),
        "seconds_per_volume": round(fmean(per_volume), 2)
        if per_volume
        else before.get("seconds_per_volume"),
        "scores": [score for step in steps for score in step["scores"]],
        "volumes": [volume for step in steps for volume in step["volumes"]],
    }
    write_json(path, record)
    lines = [
        json.dumps({key: value for key, value in item.items() if key != "volumes"})
        for item in read_cells(place.folder)
    ]
    write_whole(place.folder / "cells.jsonl", ("\n".join(lines) + "\n").encode())
    return record


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
