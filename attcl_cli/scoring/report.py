"""Scores as people read them: the table on the terminal, the page, the montage, the notes that belong to figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attcl_cli import __version__
from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.files import read_json
from attcl_cli.report import html as report
from attcl_cli.report import pictures
from attcl_cli.report.html import Distribution
from attcl_cli.scoring import rows as score
from attcl_cli.scoring.feature_store import FEW_IMAGES, KERNEL_DISTANCES
from attcl_cli.scoring.pairs import Plan
from attcl_cli.scoring.rows import (
    BRAIN,
    COPY,
    KINDS,
    SYNTHETIC,
    TUMOUR,
    WHOLE,
    Figure,
    Measures,
    Row,
)

_Key = tuple[str, str, str]  # case, source, modality
_HEAD = ("modality", "prediction", "volumes", "slices")
_NAMED = 5  # missing volumes that the page names
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
    quiet: bool = False,
) -> None:
    """Writes `report.html` and `montage.png`: the worst volumes first, read once more for their pictures."""
    ranked = _worst_first(rows, plan)
    own, copied = _labelled(rows, SYNTHETIC), _labelled(rows, COPY)
    panels = _panels(list(ranked)[:_PICTURED], own, copied, plan, measures, quiet=quiet)
    if panels:
        pictures.write_montage(output / "montage.png", panels, title=title)
    lower = [
        _label(name, region) for name, region in _kinds(figures) if not KINDS[name].higher_is_better
    ]
    missing = ", ".join(f"{name} of {case}" for case, name in plan.missing[:_NAMED])
    more = f" and {len(plan.missing) - _NAMED} more" if len(plan.missing) > _NAMED else ""
    report.write_html(
        output / "report.html",
        panels,
        title=title,
        facts={
            "volumes": str(plan.volumes),
            "missing": missing + more or "none",
            **facts,
            "attcl": __version__,
        },
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
                **own.get(key, {}),
            }
            for key in (ranked if rows else ())
        ],
        distributions=_distributions(rows),
        order="worst first" if rows else "",
        pictured=f"Pictures of {len(panels)} of {plan.volumes} volumes."
        if len(panels) < plan.volumes
        else "",
    )


def _panels(
    chosen: Sequence[_Key],
    scores: Mapping[_Key, dict[str, float]],
    baselines: Mapping[_Key, dict[str, float]],
    plan: Plan,
    measures: Measures,
    *,
    quiet: bool,
) -> list[pictures.Panel]:
    """The panels of (case, source, target), in this order; a job is read once, whatever the number of its targets."""
    made: dict[_Key, pictures.Panel] = {}
    jobs = [job for job in plan.jobs if any((job.case, job.made_from) == key[:2] for key in chosen)]
    with Terminal(quiet=quiet).bar(len(jobs), "pictures") as bar:
        for job in jobs:
            image, shown = score.compare(job, measures.predict)
            for own in shown:
                key = (job.case, job.made_from, own.target.modality)
                if key not in chosen:
                    continue
                made[key] = pictures.Panel(
                    case=job.case,
                    source_modality=job.made_from,
                    target_modality=own.target.modality,
                    source=image,
                    synthetic=own.image,
                    truth=own.truth,
                    brain=own.brain,
                    scores=scores.get(key, {}),
                    baseline=baselines.get(key, {}),
                )
            bar(f"{job.case} {job.made_from}")
    return [made[key] for key in chosen]


def show(figures: Sequence[Figure], output: Path, plan: Plan, talk: Terminal) -> None:
    """Shows the figures on the terminal, as tables or as one document."""
    if talk.as_json:
        files = {name: str(output / name) for name in ("report.html", "scores.csv", "summary.json")}
        told = read_json(output / "summary.json")
        terminal.document({"output": str(output), "files": files, **told})
        return
    shown = [
        key for key in _kinds(figures) if key[1] not in {WHOLE, TUMOUR} or key[0] == "ssim-brasyn"
    ]
    by_volume = [key for key in shown if not KINDS[key[0]].network]
    by_network = [key for key in shown if KINDS[key[0]].network]
    for title, kinds in {
        "volume by volume, inside the brain": by_volume,
        "by feature networks, slices at 20 to 80 % of the height": by_network,
    }.items():
        if kinds:
            talk.table(_table(figures, kinds), title=title)
            talk.result("")
    names = dict.fromkeys(name for name, _ in shown)
    lower = [_LABELS[name] for name in names if not KINDS[name].higher_is_better]
    if lower:
        terminal.say(f"lower is better: {', '.join(lower)}; of all others higher", quiet=talk.quiet)
    for note in _few_slices(figures):
        terminal.say(f"note: {note}", quiet=talk.quiet)
    talk.result(f"{output / 'report.html'}: open it in a browser")


def _table(figures: Sequence[Figure], kinds: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row a group and prediction, a column a metric; for the terminal."""
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
    return {"lpips-diversity": "diversity", "psnr": "psnr dB"}.get(metric, metric)


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


def _summary_rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The page's table: a row a group and prediction, mean and standard deviation in a cell.

    Image scores over the whole volume, which are mostly background, stay in the plots and files.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    hidden = _only_directions(figures)
    for figure in figures:
        if figure.group in hidden or figure.region == WHOLE:
            continue
        row = rows.setdefault(
            (figure.group, figure.prediction),
            {"modality": figure.group, "prediction": figure.prediction},
        )
        count = figure.n + figure.n_undefined + figure.n_infinite
        unit = "slices" if KINDS[figure.metric].network == "embed" else "volumes"
        row[unit] = max(row.get(unit, 0), count)
        row[_label(figure.metric, figure.region)] = _cell(figure)
    columns = dict.fromkeys(
        [*_HEAD, *(name for row in rows.values() for name in row if name not in _HEAD)]
    )
    used = [name for name in columns if any(name in row for row in rows.values())]
    return [{name: row.get(name) for name in used} for row in rows.values()]


def _cell(figure: Figure) -> str | float:
    if figure.n_infinite and not figure.n:
        return math.inf
    if math.isnan(figure.sd):
        return figure.mean
    mean = pictures.number(figure.mean)
    decimals = len(mean.partition(".")[2])
    return f"{mean} \u00b1 {figure.sd:.{decimals}f}"


def _labelled(rows: Sequence[Row], prediction: str) -> dict[_Key, dict[str, float]]:
    """The scores of each volume by their labels, without those that are mostly background."""
    found: dict[_Key, dict[str, float]] = {}
    for row in rows:
        if row.prediction == prediction and row.region != WHOLE:
            key = row.case, row.source, row.modality
            found.setdefault(key, {})[_label(row.metric, row.region)] = row.value
    return found


def _worst_first(rows: Sequence[Row], plan: Plan) -> dict[_Key, float]:
    """Volumes by the first metric that there is, the worst first, without a value last; unscored ones as planned."""
    values = {
        (job.case, job.made_from, target.modality): math.inf
        for job in plan.jobs
        for target in job.targets
    }
    own = [row for row in rows if row.prediction == SYNTHETIC]
    if not own:
        return values
    first = next((row for row in own if row.region == BRAIN), own[0])
    sign = 1 if KINDS[first.metric].higher_is_better else -1
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
    names = {item.metric for item in figures}
    few = [item for item in figures if item.metric in {"fid", "fd-effnet"} and item.n < FEW_IMAGES]
    if not few:
        return []
    least = min(item.n for item in few)
    return [
        f"{_LABELS[few[0].metric]} of as few as {least} slices: below {FEW_IMAGES} the covariance is singular and "
        "the figure depends on n; compare figures of equal n only"
        + ("" if names & set(KERNEL_DISTANCES) else ", and see --kid")
    ]


def _notes(figures: Sequence[Figure]) -> list[str]:
    """How each figure was measured."""
    networks = {item.metric: item.network for item in figures}
    return _few_slices(figures) + [
        f"{_LABELS[name]}: {KINDS[name].policy}." + (f" Network: {network}." if network else "")
        for name, network in networks.items()
    ]
