"""Scores as people read them: the table on the terminal, the page, the montage, the notes that belong to figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attcl_cli import __version__, console, pictures, report, score
from attcl_cli.commands.arguments import Talk
from attcl_cli.feature_store import FEW_IMAGES
from attcl_cli.pairs import Plan
from attcl_cli.report import Distribution
from attcl_cli.score import (
    BRAIN,
    COPY,
    KINDS,
    SYNTHETIC,
    WHOLE,
    Figure,
    Measures,
    Row,
)

_PICTURED = 24  # volumes with pictures in the report, the worst ones
_LABELS = {"ssim": "SSIM", "psnr": "PSNR", "nmse": "NMSE", "ssim-brasyn": "SSIM (BraSyn)", "lpips": "LPIPS",
           "lpips-diversity": "LPIPS diversity", "fid": "FID", "kid": "KID", "fd-effnet": "FD (EfficientNet)",
           "kd-effnet": "KD (EfficientNet)"}  # fmt: skip


def write_pages(
    output: Path,
    plan: Plan,
    rows: Sequence[Row],
    figures: Sequence[Figure],
    measures: Measures,
    *,
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Writes `report.html` and `montage.png`: the worst volumes first, read once more for their pictures."""
    ranked = _worst_first(rows)
    chosen = list(ranked)[:_PICTURED]
    jobs = {
        (job.case, job.source, target.modality): job for job in plan.jobs for target in job.targets
    }
    loaded: dict[int, Any] = {}
    panels = []
    for key in chosen:
        job = jobs[key]
        if id(job) not in loaded:
            loaded = {id(job): score.compare(job, measures.predict)}  # one job in memory
        image, shown = loaded[id(job)]
        own = next(item for item in shown if item.target.modality == key[2])
        values, copies = (_labelled(rows, key, name) for name in (score.SYNTHETIC, score.COPY))
        panels.append(
            pictures.Panel(
                case=key[0],
                source_modality=key[1],
                target_modality=key[2],
                source=image,
                synthetic=own.image,
                truth=own.truth,
                brain=own.brain,
                scores=values,
                baseline=copies,
            )
        )
    if panels:
        pictures.write_montage(output / "montage.png", panels, title=title)
    lower = [
        _label(name, region)
        for name, region in _kinds(figures)
        if not score.KINDS[name].higher_is_better
    ]
    report.write_html(
        output / "report.html",
        panels,
        title=title,
        facts={"volumes": str(plan.volumes), **facts, "attcl": __version__},
        summary=_summary_rows(figures),
        notes=[*notes, *_notes(figures)],
        files=[
            name
            for name in ("montage.png", "scores.csv", "summary.json")
            if (output / name).exists()
        ],
        lower_is_better=lower,
        cases=[
            {
                "case": key[0],
                "source": key[1],
                "modality": key[2],
                **_labelled(rows, key, score.SYNTHETIC),
            }
            for key in ranked
        ],
        distributions=_distributions(rows),
        order="worst first",
        pictured=f"the {len(panels)} worst of {plan.volumes} volumes"
        if len(panels) < plan.volumes
        else "",
    )


def show(figures: Sequence[Figure], output: Path, plan: Plan, talk: Talk) -> None:
    if talk.as_json:
        files = {name: str(output / name) for name in ("report.html", "scores.csv", "summary.json")}
        console.document(
            {"output": str(output), **files, "volumes": plan.volumes, "missing": len(plan.missing)}
        )
        return
    for title, names in {
        "a volume at a time, inside the brain (SSIM of BraSyn: in the tumour and outside)": [
            key
            for key in _kinds(figures)
            if not KINDS[key[0]].network
            and key[1] not in {"whole"}
            and (key[0] == "ssim-brasyn" or key[1] == "brain")
        ],
        "by feature networks, slices at 20 to 80 % of the height": [
            key for key in _kinds(figures) if KINDS[key[0]].network
        ],
    }.items():
        if names:
            talk.table(_table(figures, names), title=title)
            talk.result("")
    for note in _few_slices(figures):
        console.say(f"note: {note}", quiet=talk.quiet)
    talk.result(f"{output / 'report.html'}: open it in a browser")


def _table(figures: Sequence[Figure], kinds: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row a group and prediction, a column a metric."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    hidden = _only_directions(figures)
    for figure in figures:
        if (figure.metric, figure.region) in kinds and figure.group not in hidden:
            row = rows.setdefault(
                (figure.group, figure.prediction),
                {"target": figure.group, "what": figure.prediction, "n": 0}
                | {_short(*kind): "" for kind in kinds},
            )
            row["n"] = max(row["n"], figure.n + figure.n_infinite)
            row[_short(figure.metric, figure.region)] = _value(figure)
    return list(rows.values())


def _only_directions(figures: Sequence[Figure]) -> set[str]:
    """Directions that say the same as their target's own row, since it has no other source."""
    directions = {figure.group for figure in figures if "->" in figure.group}
    targets = [direction.split("->")[1] for direction in directions]
    return {name for name in directions if targets.count(name.split("->")[1]) == 1}


def _short(metric: str, region: str) -> str:
    if metric == "ssim-brasyn":
        return f"brasyn {region}"
    return {"lpips-diversity": "diversity"}.get(metric, metric)


def _value(figure: Figure) -> float | str:
    if figure.n_infinite and not figure.n:
        return "inf"
    return "" if math.isnan(figure.mean) else figure.mean


def _kinds(figures: Sequence[Figure]) -> list[tuple[str, str]]:
    """The metrics and regions that there are, in order."""
    return list(dict.fromkeys((figure.metric, figure.region) for figure in figures))


def _label(metric: str, region: str) -> str:
    unit = KINDS[metric].unit
    where = "" if KINDS[metric].network else f" {region}"
    return f"{_LABELS[metric]}{where}" + (f" ({unit})" if unit != "1" else "")


def _summary_rows(figures: Sequence[Figure]) -> list[dict[str, str | float]]:
    """The page's table: a row a group, the copy beside what it is compared with, other baselines below.

    Image scores over the whole volume, which are mostly background, stay in the plots and files.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    hidden = _only_directions(figures)
    for figure in figures:
        if figure.group in hidden or (figure.region == WHOLE and not KINDS[figure.metric].network):
            continue
        beside = figure.prediction in {SYNTHETIC, COPY}
        key = (figure.group, SYNTHETIC if beside else figure.prediction)
        row = rows.setdefault(
            key,
            {
                "modality": figure.group if beside else f"{figure.group}, {figure.prediction}",
                "n": 0,
            },
        )
        label = _label(figure.metric, figure.region)
        value = math.inf if figure.n_infinite and not figure.n else figure.mean
        row[label + (" (copy)" if figure.prediction == COPY else "")] = value
        if KINDS[figure.metric].network != "embed":
            row["n"] = max(row["n"], figure.n + figure.n_undefined + figure.n_infinite)
    return list(rows.values())


def _labelled(rows: Sequence[Row], key: tuple[str, str, str], prediction: str) -> dict[str, float]:
    """The scores of one volume by their labels."""
    return {
        _label(row.metric, row.region): row.value
        for row in rows
        if (row.case, row.source, row.modality) == key and row.prediction == prediction
    }


def _worst_first(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """Volumes by the first metric that there is, the worst first; without a value last."""
    own = [row for row in rows if row.prediction == SYNTHETIC]
    if not own:
        return {}
    first = next((row for row in own if row.region == BRAIN), own[0])
    sign = 1 if KINDS[first.metric].higher_is_better else -1
    values = {(row.case, row.source, row.modality): math.inf for row in own}
    for row in own:
        if (row.metric, row.region) == (first.metric, first.region) and not math.isnan(row.value):
            values[row.case, row.source, row.modality] = sign * row.value
    return dict(sorted(values.items(), key=lambda item: item[1]))


def _distributions(rows: Sequence[Row]) -> list[Any]:
    """A box plot a metric and region, by modality."""
    gathered: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        if row.prediction in {SYNTHETIC, COPY}:
            groups = gathered.setdefault((row.metric, row.region), {SYNTHETIC: {}, COPY: {}})
            groups[row.prediction].setdefault(row.modality, []).append(row.value)
    return [
        Distribution(
            _label(metric, region),
            "" if KINDS[metric].unit == "1" else KINDS[metric].unit,
            dict(sorted(found[SYNTHETIC].items())),
            dict(sorted(found[COPY].items())),
        )
        for (metric, region), found in gathered.items()
    ]


def _few_slices(figures: Sequence[Figure]) -> list[str]:
    few = [item for item in figures if item.metric in {"fid", "fd-effnet"} and item.n < FEW_IMAGES]
    if not few:
        return []
    least = min(item.n for item in few)
    return [
        f"{_LABELS[few[0].metric]} of as few as {least} slices: below {FEW_IMAGES} the covariance is singular and "
        "the figure depends on n; compare figures of equal n only, and see --kid"
    ]


def _notes(figures: Sequence[Figure]) -> list[str]:
    """How each figure was measured."""
    networks = {item.metric: item.network for item in figures}
    return _few_slices(figures) + [
        f"{_LABELS[name]}: {KINDS[name].policy}." + (f" Network: {network}." if network else "")
        for name, network in networks.items()
    ]
