"""The page of `attcl score`: `report.html` and `montage.png`, the worst volumes first.

How pages and pictures look is left to `attcl_cli.report`, what a terminal shows to the command line.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attcl_cli import __version__
from attcl_cli.data.synthetic import span_in_words
from attcl_cli.errors import counted, some
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report import pictures
from attcl_cli.report.chosen import Chosen, choose, count_roles
from attcl_cli.report.page import REPORT_FILE, Page, write_page
from attcl_cli.report.rounding import number
from attcl_cli.report.sections import (
    BoxPlots,
    CaseTable,
    Cell,
    Distribution,
    Table,
    Text,
    Viewer,
    viewers,
)
from attcl_cli.report.viewers import SLICES
from attcl_cli.scoring.metrics import BRAIN, METRICS, WHOLE
from attcl_cli.scoring.pairs import CasePairs, Comparison
from attcl_cli.scoring.rows import (
    COPY,
    MATCHED,
    MEAN,
    SYNTHETIC,
    Row,
    Translate,
    read_in_pictures,
)
from attcl_cli.scoring.summary import (
    SIX,
    Figure,
    left_out_of_tumour,
    measured,
    redundant_directions,
    warn_of_few_slices,
)

_Key = tuple[str, str, str]  # case, source, modality
_HEAD = ("modality", "prediction", "volumes", "slices", "directions")
_NAMED = 5  # missing volumes that the page names
_PICTURED = 24  # volumes with pictures: memory and the page do not grow with the dataset
_DISTANCE = (
    "Heusel M, Ramsauer H, Unterthiner T, Nessler B, Hochreiter S. GANs trained by a two time-scale update rule "
    "converge to a local Nash equilibrium. NeurIPS 2017."
)
_KERNEL = "Binkowski M, Sutherland DJ, Arbel M, Gretton A. Demystifying MMD GANs. ICLR 2018."
_PERCEPTUAL = (
    "Zhang R, Isola P, Efros AA, Shechtman E, Wang O. The unreasonable effectiveness of deep features as a perceptual "
    "metric. CVPR 2018, 586-595."
)
_SIMILARITY = (
    "Wang Z, Bovik AC, Sheikh HR, Simoncelli EP. Image quality assessment: from error visibility to structural "
    "similarity. IEEE Transactions on Image Processing 13(4), 600-612, 2004."
)
_CITED = {
    "ssim": _SIMILARITY,
    "ssim-brasyn": _SIMILARITY,
    "gms": "Xue W, Zhang L, Mou X, Bovik AC. Gradient magnitude similarity deviation: a highly efficient perceptual "
    "image quality index. IEEE Transactions on Image Processing 23(2), 684-695, 2014.",
    "lpips": _PERCEPTUAL,
    "lpips-diversity": _PERCEPTUAL,
    "fid": _DISTANCE,
    "fd-effnet": _DISTANCE,
    "kid": _KERNEL,
    "kd-effnet": _KERNEL,
}


def write_pages(
    output: Path,
    comparison: Comparison,
    rows: Sequence[Row],
    figures: Sequence[Figure],
    *,
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    translate: Translate | None = None,
    viewer: str = SLICES,
    progress: Progress = SILENT,
) -> list[Path]:
    """Write `report.html` and `montage.png`; return these. At most 24 volumes are read once more for their pictures.

    Of more volumes, these are the worst, the best and a random sample of the others.

    Args:
        output: the folder, which holds `scores.csv` and `summary.json` already.
        comparison: what was compared.
        rows: of `rows.score_cases`.
        figures: of `summary.summarise`.
        title: the heading of both.
        facts: label -> value, beside those of the comparison.
        notes: paragraphs before those on how each figure was measured.
        translate: makes the volumes that are not on disk (`--directions`).
        viewer: one of `viewers.VIEWERS`.
        progress: counts the cases that are read.

    Raises:
        AttclError: a file cannot be read or written.
    """
    ranked, unranked = _worst_first(rows, comparison)
    scores, copies = _labelled(rows, SYNTHETIC), _labelled(rows, COPY)
    chosen = choose(ranked, unranked, most=_PICTURED)
    panels = _panels(chosen, scores, copies, comparison, translate, progress)
    montage = [output / "montage.png"] if panels else []
    for file in montage:
        pictures.write_montage(file, panels, title=title)
    names = ("montage.png", "scores.csv", "summary.json")
    missing = ", ".join(f"{name} of {case}" for case, name in comparison.missing[:_NAMED])
    more = len(comparison.missing) - _NAMED
    lower_is_better = [
        METRICS[metric].label(region)
        for metric, region in measured(figures)
        if not METRICS[metric].higher_is_better
    ]
    roles = count_roles(panel.role for panel in panels)
    slices = Viewer(
        panels,
        order="worst first" if ranked else "",
        hint=f"Pictures of {len(panels)} of {counted(comparison.volumes, 'volume')} ({roles})."
        if roles
        else "",
        lower_is_better=lower_is_better,
    )
    cases: list[dict[str, Cell]] = [
        {"case": key[0], "source": key[1], "modality": key[2], **scores.get(key, {})}
        for key in ([*ranked, *unranked] if rows else ())
    ]
    page = Page(
        title,
        verdict=_sentence(
            _verdict(scores, copies, lower_is_better, _others(rows)), comparison.caveat
        )
        + _partial(comparison),
        facts={
            "volumes": str(comparison.volumes),
            **_worst(ranked, scores),
            "missing": (missing + (f" and {more} more" if more > 0 else "")) or "none",
            **facts,
            "attcl": __version__,
        },
        sections=[
            *viewers(slices, viewer),
            Table("Scores", _summary_rows(figures)),
            BoxPlots(_distributions(rows)),
            CaseTable(cases),
            Text("Methods, for a paper", [_methods_paragraph(comparison, figures)]),
            Text("How to cite", _citations(figures)),
        ],
        notes=[*notes, *_notes(figures)],
        files=[name for name in names if (output / name).exists()],
    )
    write_page(output / REPORT_FILE, page)
    return [*montage, output / REPORT_FILE]


def describe_result(rows: Sequence[Row], comparison: Comparison) -> str:
    """Return the verdict of the page and its worst volume, as one line without a full stop; "" without any score."""
    scores = _labelled(rows, SYNTHETIC)
    lower = [
        METRICS[row.metric].label(row.region)
        for row in rows
        if not METRICS[row.metric].higher_is_better
    ]
    ranked, _ = _worst_first(rows, comparison)
    worst = _worst(ranked, scores).get("worst", "")
    verdict = _verdict(scores, _labelled(rows, COPY), set(lower), _others(rows))
    return "; ".join(filter(None, (verdict, worst and f"worst: {worst}")))


def _others(rows: Sequence[Row]) -> list[dict[_Key, dict[str, float]]]:
    """Return the scores of the baselines beside the copy."""
    return [_labelled(rows, name) for name in (MATCHED, MEAN)]


def _partial(comparison: Comparison) -> str:
    """Return a sentence about the volumes that were made in some slices alone; "" if there are none."""
    spans = [pair.slices for case in comparison.cases for pair in case.pairs if pair.slices]
    if not spans:
        return ""
    names = some(dict.fromkeys(map(span_in_words, spans)))
    were = "was" if len(spans) == 1 else "were"
    made = f"{counted(len(spans), 'volume')} {were} made in slices {names} only"
    return f" {made}: scores count all, pictures show these."


def _sentence(*parts: str) -> str:
    """Return parts of a sentence as one; "" if none has any words."""
    words = "; ".join(filter(None, parts))
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _verdict(
    scores: Mapping[_Key, Mapping[str, float]],
    copies: Mapping[_Key, Mapping[str, float]],
    lower_is_better: Collection[str],
    others: Sequence[Mapping[_Key, Mapping[str, float]]] = (),
) -> str:
    """Return in how many volumes the first score is better than that of a copy; "" without any.

    Args:
        scores: volume -> label -> value.
        copies: the same of the copies.
        lower_is_better: labels of which the lower value is the better one.
        others: the same of further baselines; if volumes that are better than a copy are not better than all of these,
            the verdict says so.
    """
    label = next((name for values in scores.values() for name in values), "")
    sign = -1 if label in lower_is_better else 1
    compared = better = best = 0
    for key, values in scores.items():
        made, copy = values.get(label, math.nan), copies.get(key, {}).get(label, math.nan)
        if math.isnan(made) or math.isnan(copy):
            continue
        compared += 1
        if sign * made > sign * copy:
            better += 1
            rivals = [other.get(key, {}).get(label, math.nan) for other in others]
            best += not any(sign * rival >= sign * made for rival in rivals)
    if not compared:
        return ""
    every = f", than every baseline in {best}" if best < better else ""
    volumes = counted(compared, "volume")
    return (
        f"Better than a copy of the most similar source in {better} of {volumes}{every} ({label})"
    )


def _worst_first(rows: Sequence[Row], comparison: Comparison) -> tuple[list[_Key], list[_Key]]:
    """Return the volumes by the first metric, the worst first, and those without a value as compared."""
    every = [
        (case.case, case.made_from, pair.modality)
        for case in comparison.cases
        for pair in case.pairs
    ]
    synthetic = [row for row in rows if row.prediction == SYNTHETIC]
    if not synthetic:
        return [], every
    first = next((row for row in synthetic if row.region == BRAIN), synthetic[0])
    sign = 1 if METRICS[first.metric].higher_is_better else -1
    ranks = {
        (row.case, row.source, row.modality): sign * row.value
        for row in synthetic
        if (row.metric, row.region) == (first.metric, first.region) and not math.isnan(row.value)
    }
    ranked = sorted((key for key in every if key in ranks), key=lambda key: ranks[key])
    return ranked, [key for key in every if key not in ranks]


def _worst(ranked: Sequence[_Key], scores: Mapping[_Key, Mapping[str, float]]) -> dict[str, str]:
    """Return the volume to look at first, as a fact of the page; {} if no volume has a score."""
    for case, source, modality in ranked[:1]:
        label, value = next(iter(scores.get((case, source, modality), {}).items()), ("", math.nan))
        if not math.isnan(value):
            return {"worst": f"{modality} of {case} from {source}, {label} {number(value)}"}
    return {}


def _labelled(rows: Sequence[Row], prediction: str) -> dict[_Key, dict[str, float]]:
    """Return the scores of each volume by their labels, without those that are mostly background."""
    scores: dict[_Key, dict[str, float]] = {}
    for row in rows:
        if row.prediction == prediction and row.region != WHOLE:
            key = row.case, row.source, row.modality
            scores.setdefault(key, {})[METRICS[row.metric].label(row.region)] = row.value
    return scores


def _panels(
    chosen: Sequence[Chosen[_Key]],
    scores: Mapping[_Key, dict[str, float]],
    copies: Mapping[_Key, dict[str, float]],
    comparison: Comparison,
    translate: Translate | None,
    progress: Progress,
) -> list[pictures.Panel]:
    """Return the panels of (case, source, modality), in this order; a case is read once for all of its pairs."""
    panels: dict[_Key, pictures.Panel] = {}
    roles = dict(chosen)
    pictured = {key[:2] for key in roles}
    cases: list[CasePairs] = [
        case for case in comparison.cases if (case.case, case.made_from) in pictured
    ]
    with progress.bar(len(cases), "pictures") as bar:
        for case in cases:
            shown = read_in_pictures(case, translate)
            for prediction in shown.predictions:
                key = (case.case, case.made_from, prediction.pair.modality)
                if key in roles:
                    panels[key] = pictures.Panel(
                        case=case.case,
                        source_modality=case.made_from,
                        target_modality=prediction.pair.modality,
                        tiles=pictures.compared(
                            prediction.pair.modality,
                            shown.sources,
                            prediction.volumes.shown,
                            prediction.volumes.truth,
                            prediction.truth.brain,
                        ),
                        brain=pictures.within(prediction.truth.brain, prediction.pair.slices),
                        outlines={} if shown.tumour is None else {"tumour": shown.tumour},
                        spacing_mm=shown.spacing_mm,
                        scores=scores.get(key, {}),
                        baseline=copies.get(key, {}),
                        affine=shown.affine,
                        role=roles[key],
                    )
            bar(f"{case.case} {case.made_from}")
    return [panels[key] for key in roles]


def _summary_rows(figures: Sequence[Figure]) -> list[dict[str, Cell]]:
    """Return the page's table: a row per group and prediction, mean and standard deviation in a cell.

    Scores over the whole volume, which is mostly background, are shown by plots and files only.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    redundant = redundant_directions(figures)
    for figure in figures:
        if figure.group in redundant or figure.region == WHOLE:
            continue
        row = rows.setdefault(
            (figure.group, figure.prediction),
            {"modality": figure.group, "prediction": figure.prediction},
        )
        metric = METRICS[figure.metric]
        count = figure.n + figure.n_undefined + figure.n_infinite
        of_volumes = "slices" if metric.sees == "sets" else "volumes"
        unit = "directions" if figure.group == SIX else of_volumes
        row[unit] = max(row.get(unit, 0), count)
        row[metric.label(figure.region)] = _cell(figure)
    columns = dict.fromkeys([*_HEAD, *(name for row in rows.values() for name in row)])
    used = [name for name in columns if any(name in row for row in rows.values())]
    return [{name: row.get(name) for name in used} for row in rows.values()]


def _cell(figure: Figure) -> Cell:
    if figure.n_infinite and not figure.n:
        return math.inf
    if math.isnan(figure.sd):
        return figure.mean
    mean = number(figure.mean)
    decimals = len(mean.partition(".")[2])
    return f"{mean} \u00b1 {figure.sd:.{decimals}f}"


def _distributions(rows: Sequence[Row]) -> list[Distribution]:
    """Return a box plot per metric and region, by modality."""
    gathered: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        if row.prediction in {SYNTHETIC, COPY}:
            groups = gathered.setdefault((row.metric, row.region), {SYNTHETIC: {}, COPY: {}})
            groups[row.prediction].setdefault(row.modality, []).append(row.value)
    return [
        Distribution(
            METRICS[metric].label(region),
            "" if METRICS[metric].unit == "1" else METRICS[metric].unit,
            dict(sorted(values[SYNTHETIC].items())),
            dict(sorted(values[COPY].items())),
        )
        for (metric, region), values in gathered.items()
    ]


def _notes(figures: Sequence[Figure]) -> list[str]:
    """Return how each metric was measured."""
    networks = {figure.metric: figure.network for figure in figures}
    return (
        left_out_of_tumour(figures)
        + warn_of_few_slices(figures)
        + [
            f"{METRICS[name].title}: {METRICS[name].policy}."
            + (f" Network: {network}." if network else "")
            for name, network in networks.items()
        ]
    )


def _methods_paragraph(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """Return what a paper may say of how the volumes were scored."""
    cases = counted(len({case.case for case in comparison.cases}), "case")
    titles = ", ".join(METRICS[name].title for name in dict.fromkeys(it.metric for it in figures))
    volumes = counted(comparison.volumes, "volume")
    what = (
        f"Real volumes of {cases} were translated in every direction and compared with the real targets ({volumes})"
        if comparison.by_direction
        else f"{volumes[0].upper()}{volumes[1:]} of {cases}, synthesised, were compared with the held-out real ones"
    )
    seen = ""
    if comparison.caveat:
        seen = f" By their names, {comparison.caveat}: such volumes look better than those of new patients."
    elif not comparison.learned:
        seen = " Whether the weights were trained on some of these patients is not known."
    return (
        f"{what} by {titles} (attcl {__version__}); the notes below say how each is measured.{seen}"
    )


def _citations(figures: Sequence[Figure]) -> list[str]:
    """Return what to cite: the metrics that were computed, and attcl."""
    cited = dict.fromkeys(_CITED[it.metric] for it in figures if it.metric in _CITED)
    return [
        *cited,
        f"attcl {__version__} (CITATION.cff).",
        "Cite the method that made the volumes as well: the page of attcl complete names it.",
    ]
