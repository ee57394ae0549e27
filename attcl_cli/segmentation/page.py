"""The page of `attcl segment` and `attcl evaluate`: `report.html`, the verdict first, then the worst cases.

The numbers are those of `report`, how a page looks is left to `attcl_cli.report`, what a terminal shows to `cli`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from attcl_cli import __version__
from attcl_cli.data import label_maps, volumes
from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.intensities import Array, bounding_box
from attcl_cli.data.labels import CONVENTIONS, REGIONS, mask_of, to_classes
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.errors import AttclError, counted, some
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report.chosen import Chosen, choose, count_roles
from attcl_cli.report.niivue import of_block
from attcl_cli.report.page import REPORT_FILE, Page, write_page
from attcl_cli.report.pictures import Panel, Tile
from attcl_cli.report.rounding import number
from attcl_cli.report.sections import (
    BoxPlots,
    CaseTable,
    Cell,
    Curve,
    Curves,
    Distribution,
    Table,
    Text,
    Viewer,
    patterns_of,
    viewers,
)
from attcl_cli.report.viewers import SLICES
from attcl_cli.segmentation.inputs import COMPLETED, EXPLAINED, INCOMPLETE, REAL, USUAL
from attcl_cli.segmentation.metrics import METRICS, POLICY
from attcl_cli.segmentation.report import FEW_CASES, SCORES_FILE, SUMMARY_FILE, Scores
from attcl_cli.segmentation.settings import SegmentSettings, explain
from attcl_cli.segmentation.summary import BY_SLICE, Difference, Figure
from attcl_cli.training.stats import numbers_in, stats_lines

_PICTURED = 8  # cases with pictures; of more: the worst, the best and a random sample
_MARGIN = 3  # voxels around the brain, as pictures have
_OUTLINED = 4  # outlines that a viewer tells apart by their colours
_NAMED = 5  # cases that a note names
_WHOLE = "WT"
_TRUTH = "true label map"
_TITLES = {"dice": "Dice", "sens": "Sensitivity", "iou": "IoU", "hd95": "HD95"}
_CITED = (
    "Network and loss are of MONAI (Cardoso et al. 2022, arXiv:2211.02701): its DynUNet, a U-Net (Ronneberger et al. "
    "2015, arXiv:1505.04597) as nnU-Net builds it (Isensee et al. 2021, Nature Methods 18, 203-211).",
)
_REGIONS_CITED = (
    "The tumour regions are those of BraTS (Menze et al. 2015, IEEE TMI 34, 1993-2024)."
)
_METHOD = (
    "The segmenter is a 2-D U-Net on concatenated modalities, trained by SGD on the sum of Dice loss and "
    "cross-entropy. The weights that did best on the validation cases were kept; without such cases, the last."
)
_INTERVALS = "Intervals of 95 % are percentiles of a paired bootstrap over cases."


def write_report(
    output: Path,
    scores: Scores,
    *,
    title: str,
    data: Dataset,
    predictions: Mapping[str, Mapping[str, Path]],
    facts: Mapping[str, str],
    settings: SegmentSettings | None = None,
    statistics: Mapping[str, Path] | None = None,
    files: Sequence[str] = (),
    viewer: str = SLICES,
    progress: Progress = SILENT,
) -> None:
    """Write `report.html`; image and label maps of some cases are read once more for their pictures.

    Args:
        output: the folder, which holds the scores already.
        scores: of the test cases.
        title: the heading.
        data: the incomplete dataset; its images lie under the outlines.
        predictions: input -> case -> its label map.
        facts: label -> value, beside those of the scores.
        settings: of the segmenters' training; None if they are unknown.
        statistics: input -> the `stats.jsonl` of its training.
        files: further results, relative to `output`.
        viewer: one of `viewers.VIEWERS`.
        progress: counts the cases that are read.

    Raises:
        AttclError: the page cannot be written.
    """
    ranked, unranked = _worst_first(scores)
    chosen = choose(ranked, unranked, most=_PICTURED)
    panels, unread = _panels(chosen, scores, data, predictions, progress)
    names = (SCORES_FILE, SUMMARY_FILE, *files)
    page = Page(
        title,
        verdict=verdict(scores),
        facts={
            "inputs": ", ".join(scores.inputs),
            "test cases": str(scores.cases),
            **_worst(ranked, scores),
            **facts,
            "attcl": __version__,
        },
        sections=[
            *viewers(_viewer(panels, scores), viewer),
            BoxPlots(_distributions(scores)),
            Table("Scores", _score_rows(scores.figures, ""), _region_hint()),
            Table(
                "Scores, slice by slice",
                _score_rows(scores.figures, BY_SLICE),
                "The paper's way: slices at 20 to 80 % of the height, mean over those of a case, then over cases.",
            ),
            Table(
                "Differences",
                _difference_rows(scores.differences),
                f"Case by case, the first input minus the second; n: cases that both have a value for. {_INTERVALS}",
            ),
            CaseTable(_case_rows(scores, [*ranked, *unranked])),
            patterns_of(
                (case.files for case in data.cases),
                data.modalities,
                heading="Missing modalities, before completion",
            ),
            Curves("Training", list(_curves(statistics or {}))),
            _about(scores, settings),
            Text("How to cite", _citations(settings)),
        ],
        notes=[*_notes(scores), *unread],
        files=[name for name in names if (output / name).exists()],
    )
    write_page(output / REPORT_FILE, page)


# --- The verdict ----------------------------------------------------------------------------------


def verdict(scores: Scores) -> str:
    """Return in one sentence what came out: what completed volumes bring, if that was compared, otherwise the Dice."""
    gaps = {
        (gap.first, gap.second): gap
        for gap in scores.differences
        if (gap.region, gap.metric) == (_WHOLE, "dice") and gap.n
    }
    with_incomplete = gaps.get((COMPLETED, INCOMPLETE))
    against = [gap for (first, second), gap in gaps.items() if first == COMPLETED]
    gap = with_incomplete or next(iter(against), None)
    doubt = " These figures are in doubt: see the warnings below." if scores.warnings else ""
    if gap is None:
        return _mean_sentence(scores) + doubt
    return f"{_gain(gap)}{_remainder(gaps.get((REAL, COMPLETED)))}.{doubt}"


def _mean_sentence(scores: Scores) -> str:
    """Return the mean Dice of the input that cases are ranked by."""
    name = _ranking_input(scores)
    for figure in scores.figures:
        if (figure.input, figure.region, figure.metric) == (name, _WHOLE, "dice") and figure.n:
            few = "only " if figure.n < FEW_CASES else ""
            return (
                f"Dice of the whole tumour is {figure.mean:.3f} in the mean of "
                f"{few}{counted(figure.n, 'test case')} ({name})."
            )
    return ""


def _gain(gap: Difference) -> str:
    """Return what completed volumes bring, with its interval, and nothing that the interval does not allow."""
    without = "without" if gap.second == INCOMPLETE else f"with {gap.second} alone"
    few = gap.n < FEW_CASES
    cases = f"{'only ' if few else ''}{counted(gap.n, 'case')}"
    if math.isnan(gap.low):
        return (
            f"With completed volumes, Dice of the whole tumour is {_apart(gap.mean, 'than')} {without} "
            f"in {cases}, which says little"
        )
    if not gap.clear:
        return (
            f"No difference can be told: with completed volumes, Dice of the whole tumour is {_signed(gap.mean)} "
            f"against {without} (95 % interval {_signed(gap.low)} to {_signed(gap.high)}, {cases})"
        )
    low, high = sorted((abs(gap.low), abs(gap.high)))
    little = ", which says little" if few else ""
    return (
        f"With completed volumes, Dice of the whole tumour is {_apart(gap.mean, 'than')} {without} "
        f"(95 % interval {low:.3f} to {high:.3f}, {cases}{little})"
    )


def _remainder(gap: Difference | None) -> str:
    """Return how far completed volumes are from real ones; "" if that was not compared."""
    if gap is None:
        return ""
    if not gap.clear and not math.isnan(gap.low):
        return "; no difference from real volumes can be told"
    if not round(gap.mean, 3):
        return "; the same as with real volumes"
    return f"; {abs(gap.mean):.3f} {'below' if gap.mean > 0 else 'above'} real volumes"


def _apart(mean: float, than: str) -> str:
    if not round(mean, 3):
        return "the same as"
    return f"{abs(mean):.3f} {'higher' if mean > 0 else 'lower'} {than}"


def _signed(value: float) -> str:
    """Return three decimals with their sign, and no sign if they are 0."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


# --- Pictures -------------------------------------------------------------------------------------


def _ranking_input(scores: Scores) -> str:
    return COMPLETED if COMPLETED in scores.inputs else next(iter(scores.inputs), "")


def _worst_first(scores: Scores) -> tuple[list[str], list[str]]:
    """Return the cases by the Dice of the whole tumour with completed volumes, or with the first input; then the rest.

    Returns:
        The cases that have one, the worst first, and the others in the order of the table.
    """
    key = (_ranking_input(scores), _WHOLE, "dice")
    ranks = {
        row.case: row.value
        for row in scores.rows
        if (row.input, row.region, row.metric) == key and not math.isnan(row.value)
    }
    every = dict.fromkeys(row.case for row in scores.rows)
    return sorted(ranks, key=lambda case: ranks[case]), [
        case for case in every if case not in ranks
    ]


def _worst(ranked: Sequence[str], scores: Scores) -> dict[str, str]:
    """Return the case to look at first, as a fact of the page; {} if no case has a Dice."""
    key = (*ranked[:1], _ranking_input(scores), _WHOLE, "dice")
    for row in scores.rows:
        if (row.case, row.input, row.region, row.metric) == key and not math.isnan(row.value):
            return {"worst": f"{row.case}, Dice {number(row.value)} ({row.input})"}
    return {}


def _outlined(scores: Scores) -> list[str]:
    """Return the inputs whose predictions are drawn; if they are too many, one modality alone is left out first."""
    order = sorted(scores.inputs, key=lambda name: name not in EXPLAINED)[: _OUTLINED - 1]
    return [name for name in scores.inputs if name in order]


def _panels(
    chosen: Sequence[Chosen[str]],
    scores: Scores,
    data: Dataset,
    predictions: Mapping[str, Mapping[str, Path]],
    progress: Progress,
) -> tuple[list[Panel], list[str]]:
    """Return a panel of each case, in this order, and remarks on those that have none."""
    panels: list[Panel] = []
    remarks: list[str] = []
    roles = dict(chosen)
    cases = {case.id: case for case in data.cases if case.id in roles}
    pictured = [name for name in roles if name in cases]  # others are of a table that was edited
    chips = _chips(pictured, scores)
    names = _outlined(scores)
    with progress.bar(len(pictured), "pictures") as bar:
        for name in pictured:
            files = {it: predictions[it][name] for it in names if name in predictions.get(it, {})}
            try:
                panels.append(_panel(cases[name], data, files, chips[name], role=roles[name]))
            except AttclError as error:  # the scores are there, and need no picture
                remarks.append(f"No picture of {name}: {error.message}.")
            bar(name)
    return panels, remarks


def _panel(
    case: Case,
    data: Dataset,
    predictions: Mapping[str, Path],
    chips: Mapping[str, float],
    *,
    role: str = "",
) -> Panel:
    """Return one image of a case, a real one, with the outlines of the whole tumour."""
    modality = USUAL if USUAL in case.files else next(iter(case.files))
    images = volumes.load_case({modality: data.paths(case, modality)}, background=data.background)
    # What lies around the brain is no picture; every slice is kept, so that their numbers stay right.
    everything = tuple(slice(0, length) for length in images.brain.shape)
    box = (slice(None), *(bounding_box(images.brain, margin=_MARGIN) or everything)[1:])

    def outline(paths: Sequence[Path]) -> Array:
        # A prediction may have the values of another release than the truth.
        classes = to_classes(label_maps.load_labels(paths), *CONVENTIONS.values())
        whole: Array = mask_of(classes, _WHOLE)[box].copy()
        return whole

    shown = (images.normalised(modality)[box] + 1) / 2
    grid = images.volumes[modality].grid
    outlines = {_TRUTH: outline(data.paths(case, SEGMENTATION))}
    outlines |= {name: outline((path,)) for name, path in predictions.items()}
    return Panel(
        case=case.id,
        source_modality=modality,
        target_modality="",
        tiles=(Tile(modality, shown.astype(np.float16)),),
        brain=images.brain[box].copy(),
        outlines=outlines,
        spacing_mm=grid.axial_spacing_mm,
        scores=chips,
        affine=of_block(grid.axial_affine, box),
        role=role,
    )


def _chips(chosen: Sequence[str], scores: Scores) -> dict[str, dict[str, float]]:
    """Return the Dice of each chosen case: of all regions, of several inputs beside it the whole tumour alone."""
    ranking, several = _ranking_input(scores), len(scores.inputs) > 1
    chips: dict[str, dict[str, float]] = {case: {} for case in chosen}
    for row in scores.rows:
        shown = row.region == _WHOLE or row.input == ranking
        if row.metric == "dice" and row.case in chips and shown:
            of_input = f", {row.input}" if several else ""
            chips[row.case][f"Dice {row.region}{of_input}"] = row.value
    return chips


def _viewer(panels: Sequence[Panel], scores: Scores) -> Viewer:
    left_out = [name for name in scores.inputs if name not in _outlined(scores)]
    hints = ["Outlines of the whole tumour on a real image of the case."]
    if left_out:
        hints.append(f"Not drawn: {', '.join(left_out)}.")
    if len(panels) < scores.cases:
        roles = count_roles(panel.role for panel in panels)
        hints.append(
            f"Pictures of {len(panels)} of {counted(scores.cases, 'case')}"
            + (
                f" ({roles}), by the Dice of the whole tumour ({_ranking_input(scores)})."
                if roles
                else "."
            )
        )
    return Viewer(panels, order="worst first", hint=" ".join(hints))


# --- Plots and tables -----------------------------------------------------------------------------


def _distributions(scores: Scores) -> list[Distribution]:
    """Return a box plot of Dice and of HD95 per region, an input per group."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in scores.rows:
        values.setdefault((row.metric, row.region), {}).setdefault(row.input, []).append(row.value)
    return [
        Distribution(f"{_TITLES[metric]} {region}", _unit(metric), values[metric, region])
        for metric in ("dice", "hd95")
        for region in REGIONS
        if (metric, region) in values
    ]


def _score_rows(figures: Sequence[Figure], suffix: str) -> list[dict[str, Cell]]:
    """Return a row per region and input, mean and standard deviation in a cell."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for figure in figures:
        name = figure.metric.removesuffix(suffix) if suffix else figure.metric
        if name not in METRICS or not figure.metric.endswith(suffix):
            continue
        row = rows.setdefault(
            (figure.region, figure.input), {"region": figure.region, "input": figure.input}
        )
        row[_column(name)] = _mean_and_sd(figure)
        if name == "hd95":
            row["n of HD95"] = figure.n
    order = list(REGIONS)
    return sorted(rows.values(), key=lambda row: order.index(str(row["region"])))


def _mean_and_sd(figure: Figure) -> Cell:
    if math.isnan(figure.sd):
        return figure.mean
    mean = number(figure.mean)
    return f"{mean} \u00b1 {figure.sd:.{len(mean.partition('.')[2])}f}"


def _difference_rows(differences: Sequence[Difference]) -> list[dict[str, Cell]]:
    """Return a row per pair of inputs and region, with the differences of Dice and HD95."""
    rows: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for gap in differences:
        if gap.metric in {"dice", "hd95"}:
            row = rows.setdefault(
                (gap.first, gap.second, gap.region),
                {"difference": f"{gap.first} - {gap.second}", "region": gap.region},
            )
            title = _TITLES[gap.metric]
            row[_column(gap.metric)] = _signed(gap.mean) if gap.n else None
            interval = f"{_signed(gap.low)} to {_signed(gap.high)}"
            row[f"95 % of {title}"] = None if math.isnan(gap.low) else interval
            row[f"n of {title}"] = gap.n
    return list(rows.values())


def _case_rows(scores: Scores, ranked: Sequence[str]) -> list[dict[str, Cell]]:
    """Return a row per case and input, the worst case first."""
    rows: dict[tuple[str, str], dict[str, Cell]] = {
        (case, name): {"case": case, "input": name} for case in ranked for name in scores.inputs
    }
    columns = [f"{_column(metric)} {region}" for metric in ("dice", "hd95") for region in REGIONS]
    measured: dict[tuple[str, str], dict[str, float]] = {}
    for row in scores.rows:
        if row.metric in {"dice", "hd95"}:
            name = f"{_column(row.metric)} {row.region}"
            measured.setdefault((row.case, row.input), {})[name] = row.value
    for key, values in measured.items():
        rows[key] |= {name: values[name] for name in columns if name in values}
    return list(rows.values())


def _column(metric: str) -> str:
    return f"{_TITLES[metric]} {_unit(metric)}".rstrip()


def _unit(metric: str) -> str:
    return "" if METRICS[metric].unit == "1" else METRICS[metric].unit


def _region_hint() -> str:
    return "WT whole tumour, TC tumour core, ET enhancing tumour; mean \u00b1 standard deviation over cases."


def _curves(statistics: Mapping[str, Path]) -> Iterator[Curve]:
    """Yield the curves of the training: each quantity of `stats.jsonl`, a line per input."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, path in statistics.items():
        for record in filter(None, map(numbers_in, stats_lines(path))):
            for key, value in record.items():
                if key != "step":
                    of_input = lines.setdefault(key, {}).setdefault(name, [])
                    of_input.append((record["step"], value))
    titles = {"loss": "Loss", "validation_dice": "Dice of validation cases"}
    for key, title in titles.items():
        if key in lines:
            yield Curve(title, "", lines[key])


# --- Words ----------------------------------------------------------------------------------------


def _about(scores: Scores, settings: SegmentSettings | None) -> Text:
    if settings is None:
        unknown = "The label maps were read from a folder; what made them is not known here."
        return Text("How it was made", [unknown])
    seen = [
        f"{name}: {EXPLAINED.get(name, f'{name} alone, which all cases have')}."
        for name in scores.inputs
    ]
    trained = f"{scores.trained[:1].upper()}{scores.trained[1:]}."
    return Text("How it was made", [_METHOD, trained, *seen], {"Settings": explain(settings)})


def _citations(settings: SegmentSettings | None) -> list[str]:
    cited = [] if settings is None else list(_CITED)
    return [
        f"This software: attcl {__version__}; its CITATION.cff names the papers that it implements.",
        *cited,
        _REGIONS_CITED,
        "For completed volumes, cite the method that made them as well.",
    ]


def _notes(scores: Scores) -> list[str]:
    """Return warnings, remarks, and how masks without a voxel count."""
    notes = [f"Warning: {warning}." for warning in scores.warnings]
    if scores.missing:
        notes.append(
            f"{counted(len(scores.missing), 'case')} left out: {some(scores.missing, most=_NAMED)}."
        )
    if scores.trained and len(scores.inputs) == 1:
        notes.append("One input was tested; attcl segment --compare says what completion brings.")
    notes += [f"{note[:1].upper()}{note[1:]}." for note in (*scores.notes, *scores.cautions)]
    return [*notes, f"{POLICY[:1].upper()}{POLICY[1:]}."]
