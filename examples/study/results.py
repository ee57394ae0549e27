"""What the jobs of a study have left: scores of single cases, figures of sets, counts, costs, and what is missing.

Reads `splits.json`, `scores.csv`, `summary.json`, `segment.csv` and `run.json` below the folders that `plan` names.
What is made of them is left to `tables` and `report`.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from signal import Signals
from typing import Any

from plan import Study

from attcl_cli.data.splits import read_splits
from attcl_cli.errors import AttclError, visible
from attcl_cli.files import read_csv, read_json
from attcl_cli.run_record import read_record
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.scoring.summary import ALL
from attcl_cli.segmentation.summary import read_rows

ERROR, STATUS = "error: ", "exit status "
SYNTHETIC, COPY, MATCHED, MEAN = "synthetic", "copy", "matched-copy", "mean"
COPIES = (COPY, MATCHED)  # of a source, whatever the method
_PARTLY = ("score", "directions")  # stages whose failed jobs may have left some of their results
_LONGEST_LOG = 2**20  # bytes at the end of a log that are searched for its error


@dataclass(frozen=True)
class Missing:
    """A job that is not done.

    Attributes:
        cell: its name.
        stage: of the job.
        of: its method or input.
        reason: its error, how it ended, what it waits for, what cannot be read of it, or "not run".
    """

    cell: str
    stage: str
    of: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What a job took.

    Attributes:
        seconds: in all of its parts.
        memory_mb: most memory of its last part on the host; None if nobody measured it.
        gpu_mb: most memory of its last part on a GPU, of a training; None without one.
        steps: of a training.
        device: of its networks; "" without.
    """

    seconds: float
    memory_mb: float | None = None
    device: str = ""
    gpu_mb: float | None = None
    steps: int | None = None


@dataclass
class Results:
    """Everything that tables are made of; keys begin with the name of a cell.

    Attributes:
        counts: cell -> split -> "cases" and modality -> how many.
        hidden: cell -> what the scenario hides from its groups of patients, each kind of group once.
        cases: (cell, method or input, region, metric) -> case -> value, of segmenters.
        volumes: (cell, method, target, region, metric, prediction) -> case -> value, of completed volumes.
        figures: (cell, method, group, metric, prediction) -> (mean, n), of translations in every direction; a metric
            of volumes is that in the brain.
        costs: (cell, stage, method or input) -> cost.
        missing: what is not there, and why.
    """

    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    hidden: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    cases: dict[tuple[str, str, str, str], dict[str, float]] = field(default_factory=dict)
    volumes: dict[tuple[str, ...], dict[str, float]] = field(default_factory=dict)
    figures: dict[tuple[str, ...], tuple[float, int]] = field(default_factory=dict)
    costs: dict[tuple[str, str, str], Cost] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)

    def add(self, other: Results) -> None:
        """Take what another job has; no two have a key in common."""
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            ours.extend(theirs) if each.name == "missing" else ours.update(theirs)


def collect(study: Study) -> Results:
    """Read what is done of a study; of a job whose results are damaged or gone, nothing is taken.

    Of a job of scores that failed, what it left is taken: without a network of FID, the other scores.
    """
    results = Results()
    undone: set[tuple[str, str, str]] = set()
    for job in study.jobs():
        cell, stage, of = job
        if not study.done(*job).is_file():
            undone.add(job)
            waits = [
                " ".join(part for part in before if part)
                for before in study.needed(stage, of)
                if (cell, *before) in undone
            ]
            reason = f"waits for {waits[0]}" if waits else _reason(study, study.done(*job))
            simulated = study.simulated(study.cell(cell).dataset)
            if stage == "splits" and simulated is not None and not simulated.is_file():
                reason = f"waits for simulated patients: {_reason(study, simulated)}"
            left = study.folder(*job) / "scores.csv"
            found, damage = (
                _read(study, *job) if stage in _PARTLY and left.is_file() else (Results(), "")
            )
            if found.volumes or found.figures:
                reason += (
                    "; what an earlier call or the metrics without a network have left is shown"
                )
                found.costs.clear()
                results.add(found)
            results.missing.append(Missing(cell, stage, of, reason))
            continue
        found, damage = _read(study, *job)
        if damage:
            reason = f"done, but {damage}; remove {study.done(*job)} to run it again"
            results.missing.append(Missing(cell, stage, of, reason))
        else:
            results.add(found)
    return results


def _read(study: Study, cell: str, stage: str, of: str) -> tuple[Results, str]:
    """Return what a job has left, and what is wrong with it; "" if nothing is."""
    found = Results()
    try:
        _READERS[stage](study, found, cell, of)
        found.costs[cell, stage, of] = _cost(study, cell, stage, of)
    except (AttclError, KeyError, TypeError, ValueError) as error:
        damage = getattr(error, "message", f"its results are not read ({error!r})")
        return Results(), visible(damage)
    return found, ""


def _read_splits(study: Study, results: Results, cell: str, _of: str) -> None:
    folder = study.folder(cell, "splits")
    splits = read_splits(folder)
    if splits is None:
        raise ValueError(f"{folder} has no splits.json")
    results.counts[cell] = {
        row["split"]: {name: n for name, n in row.items() if name != "split"}
        for row in splits.table()
    }
    items = [item for each in splits.splits.values() for item in each]
    results.hidden[cell] = tuple(sorted({item.hidden for item in items}))


def _read_scores(study: Study, results: Results, cell: str, of: str) -> None:
    folder = study.folder(cell, "score", of)
    rows = read_csv(folder / "scores.csv")
    _require_all(
        folder / "scores.csv",
        Counter((row["prediction"], row["region"], row["metric"]) for row in rows),
        {
            (figure["prediction"], figure["region"], figure["metric"]): figure
            for figure in read_json(folder / "summary.json")["scores"]
            if figure["group"] == ALL and METRICS[figure["metric"]].sees != "sets"
        },
    )
    for row in rows:
        key = (cell, of, row["modality"], row["region"], row["metric"], row["prediction"])
        results.volumes.setdefault(key, {})[row["case"]] = _number(row["value"])


def _read_directions(study: Study, results: Results, cell: str, of: str) -> None:
    summary = read_json(study.folder(cell, "directions", of) / "summary.json")
    for figure in summary["scores"]:
        if figure["region"] in {"", "slices", "brain"}:
            key = (cell, of, figure["group"], figure["metric"], figure["prediction"])
            mean = figure["mean"]
            results.figures[key] = (math.nan if mean is None else mean, figure["n"])


def _read_segment(study: Study, results: Results, cell: str, of: str, stage: str) -> None:
    folder = study.folder(cell, stage, of)
    rows = read_rows(folder / "segment.csv")
    _require_all(
        folder / "segment.csv",
        Counter((row.input, row.region, row.metric) for row in rows),
        {
            (figure["input"], figure["region"], figure["metric"]): figure
            for figure in read_json(folder / "summary.json")["scores"]
        },
    )
    for row in rows:
        key = (cell, of, row.region, row.metric)
        results.cases.setdefault(key, {})[row.case] = row.value


def _require_all(
    table: Path, rows: Mapping[tuple[str, ...], int], figures: Mapping[tuple[str, ...], Any]
) -> None:
    """Check that a table has all rows that the summary beside it counts: one that was cut off reads well, too.

    Args:
        table: its file.
        rows: what a row is of -> how many the table has.
        figures: what a row is of -> figure of the summary.

    Raises:
        AttclError: rows are lacking.
    """
    for key, figure in figures.items():
        wanted = figure["n"] + figure["n_undefined"] + figure.get("n_infinite", 0)
        if rows.get(key, 0) != wanted:
            raise AttclError(
                f"{table}: {rows.get(key, 0)} rows of {', '.join(key)}, expected {wanted} as summary.json has",
                "run the job again",
                code="rows-lacking",
            )


def _nothing(_study: Study, _results: Results, _cell: str, _of: str) -> None:
    """Read nothing: the results of this stage are those of the next."""


_READERS = {
    "splits": _read_splits,
    "train": _nothing,
    "complete": _nothing,
    "score": _read_scores,
    "directions": _read_directions,
    "segment": lambda *job: _read_segment(*job, "segment"),
    "reference": lambda *job: _read_segment(*job, "reference"),
}


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _cost(study: Study, cell: str, stage: str, of: str) -> Cost:
    record: Mapping[str, Any] = read_record(study.folder(cell, stage, of))
    seconds = record.get("seconds_in_all") or record.get("seconds") or 0.0
    table = study.done(cell, stage, of).with_suffix(".tsv")
    device = str(record.get("device") or "")
    steps = (record.get("config") or {}).get("steps") if stage == "train" else None
    return Cost(float(seconds), _memory(table), device, record.get("gpu_memory_mb"), steps)


def _memory(table: Path) -> float | None:
    """Return the most memory that Snakemake's benchmark of a job saw, MB; short jobs have none."""
    if not table.is_file():
        return None
    with table.open(newline="") as stream:
        values = [row.get("max_rss", "") for row in csv.DictReader(stream, delimiter="\t")]
    try:
        return max(float(value) for value in values if value not in {"", "-", "NA"})
    except ValueError:
        return None


def _reason(study: Study, done: Path) -> str:
    """Return why a job is not done, and whether that is what an earlier call of the study has left."""
    log, record = study.log(done), study.record
    if not log.is_file():
        return "not run"
    earlier = record.is_file() and log.stat().st_mtime_ns < record.stat().st_mtime_ns
    return ("not tried again by the last call; before it: " if earlier else "") + _end(log)


def _end(log: Path) -> str:
    """Return how a job ended: the last error in its log, otherwise its exit status and its last words."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LONGEST_LOG))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if errors:
        return visible(errors[-1])
    words = [line.strip() for line in lines if line.strip() and not line.startswith(STATUS)]
    ends = [line.removeprefix(STATUS) for line in lines if line.startswith(STATUS)]
    end = _ended(ends[-1]) if ends else "broken off"
    if not words:
        return f"{end}, without a message: the disk may be full"
    return visible(f"{end}; its last words: {words[-1]}")


def _ended(status: str) -> str:
    """Return what a shell's exit status says of a job that did not say it itself."""
    try:
        number = int(status) - 128
        name = Signals(number).name
    except ValueError:
        return f"failed with exit status {status}"
    why = ": out of memory, or stopped by the cluster" if number == Signals.SIGKILL else ""
    return f"killed by {name}{why}"


def published(path: Path) -> dict[tuple[str, ...], float]:
    """Return the papers' own figures: (table, ratio, subset, method, group, metric) -> value."""
    with path.open(newline="") as stream:
        return {
            (row["table"], row["ratio"], row["subset"], row["method"], row["group"], row["metric"]):
            float(row["value"])
            for row in csv.DictReader(stream)
        }  # fmt: skip


def runs_of(study: Study, results: Results) -> Iterator[dict[str, Any]]:
    """Yield the records of all trainings, with the name of their method: for versions and settings."""
    for cell, stage, of in results.costs:
        if stage == "train":
            yield {"method": of, "cell": cell} | read_record(study.folder(cell, stage, of))


def as_text(document: Any) -> str:
    """Return a document for people to read."""
    return json.dumps(document, indent=2, ensure_ascii=False)
