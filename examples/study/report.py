"""Write the tables of a study, `tables/*.csv|md|tex`, its page, `study.html`, and all tables as one text, `study.md`.

    python examples/study/report.py study-phantom/study.yaml

Made from what its jobs have left. Snakemake calls it at the end, also if jobs failed: page and text then name what is
missing, and why.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from charts import (
    critical_difference,
    dice_of_cases,
    figure_3,
    layers_png,
    patients,
    similarity_of_cases,
    unranked,
)
from claims import LEAST_CASES, Claim, claims, sign_of
from plan import Source, Study, Training, read_study
from results import Results, as_text, collect, published, runs_of
from table import Table, as_csv, as_latex, as_markdown
from tables import OVERALL, WITHOUT, all_tables
from values import REGION

from attcl_cli import __version__
from attcl_cli.errors import EXIT_INCOMPLETE, AttclError, counted
from attcl_cli.files import write_whole
from attcl_cli.methods import RE_SPECIFIED
from attcl_cli.report import sections
from attcl_cli.report.page import Page, write_page
from attcl_cli.report.sections import BoxPlots, Curve, Curves, Distribution, Images, Text, Viewer
from attcl_cli.training.report import read_statistics

_HERE = Path(__file__).resolve().parent
_SHOWN_MISSING = 200
_RANKED = {
    "SSIM of completed volumes, in the brain": similarity_of_cases,
    "Dice of the whole tumour": dice_of_cases,
}
_MISSING = "What is missing"
_CLAIMS = "What the paper claims, and what this study shows"
_HOW_CLAIMED = (
    "Claims about Dice rest on paired 95 % intervals over the test cases, of which there must be "
    f"{LEAST_CASES} or more, and on a test that flips the signs of their differences (p < 0.05); "
    "those about distances of sets on two or more seeds that agree. "
    "No claim holds before all of its comparisons are there."
)


def main() -> int:
    """Write everything; return 3 if a job of the study is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, help="its YAML file")
    path = parser.parse_args().study
    try:
        study = read_study(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, name=str(path))
        missing = write_study(study)
    except (AttclError, OSError, yaml.YAMLError) as error:
        hint = getattr(error, "hint", "")
        sys.stderr.write(f"error: {error}\n" + (f"hint: {hint}\n" if hint else ""))
        return getattr(error, "exit_code", 1)
    sys.stderr.write(f"{study.root / 'study.html'}: open it in a browser\n")
    return EXIT_INCOMPLETE if missing else 0


def write_study(study: Study) -> int:
    """Write tables and page; return how many jobs are missing.

    Raises:
        AttclError: a result is damaged, or a file cannot be written.
    """
    results = collect(study)
    tables = all_tables(study, results, published(_HERE / "published.csv"))
    folder = study.root / "tables"
    for table in tables:
        for ending, render in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex)):
            write_whole(folder / f"{table.name}.{ending}", render(table).encode())
    claimed = claims(study, results)
    text = _document(study, results, tables, claimed)
    write_whole(study.root / "study.md", text.encode("utf-8", "replace"))
    write_page(study.root / "study.html", _page(study, results, tables, claimed))
    return len(results.missing)


def _document(study: Study, results: Results, tables: list[Table], claimed: Sequence[Claim]) -> str:
    """Return everything but pictures as Markdown, below a heading of the second level: for a page of many studies."""
    file = study.file
    versions = {
        f"attcl {run.get('attcl_version')}, torch {run.get('torch_version')}, {run.get('device')}"
        for run in runs_of(study, results)
    }
    segment = "none" if file.segment is None else _as_options(file.segment)
    parts = [
        f"## {file.title}",
        _verdict(study, tables),
        "\n".join(
            [
                f"- Data: {'; '.join(_described(name, it) for name, it in file.datasets.items())}.",
                f"- Training: {_as_options(file.train)}; steps and minutes of each method stand in the last table.",
                f"- Segmentation: {segment}.",
                f"- Seeds: {', '.join(map(str, file.seeds))}. Jobs that are done: {_done(study, results)}.",
                f"- Machine: {'; '.join(sorted(versions)) or 'no training is done'}.",
            ]
        ),
        f"### {_CLAIMS}",
        _grid(
            ("claim", "verdict", "evidence"),
            [(it.words, f"**{it.verdict}**", it.evidence) for it in claimed],
        ),
        _HOW_CLAIMED,
        *(as_markdown(table) for table in tables),
    ]
    if results.missing:
        rows = [
            (it.cell, f"{it.stage} {it.of}".strip(), it.reason)
            for it in results.missing[:_SHOWN_MISSING]
        ]
        parts += [f"### {_MISSING}", _grid(("cell", "job", "why"), rows), _not_shown(results)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _as_options(training: Training) -> str:
    """Return common options of training as code."""
    return f"`{' '.join(training.arguments)}`"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; "" without a row."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _done(study: Study, results: Results) -> str:
    jobs = sum(1 for _ in study.jobs())
    return f"{jobs - len(results.missing)} of {jobs}"


def _not_shown(results: Results) -> str:
    missing = len(results.missing)
    return f"The first {_SHOWN_MISSING} of {missing}." if missing > _SHOWN_MISSING else ""


def _page(study: Study, results: Results, tables: list[Table], claimed: Sequence[Claim]) -> Page:
    shown = _first_cell(results)
    pictured, unread = patients(study, results, shown) if shown else ([], [])
    return Page(
        study.file.title,
        verdict=_verdict(study, tables)
        + (f" {counted(len(results.missing), 'job')} missing." if results.missing else ""),
        facts={
            "jobs": _done(study, results),
            "methods": str(len(study.methods)),
            "seeds": str(len(study.file.seeds)),
            "attcl": __version__,
        },
        sections=[
            Viewer(
                pictured,
                hint=f"Test patients of {shown}, the volumes of all methods.",
            ),
            Images(
                "Figure 3. Patients in rows, methods in columns",
                figure_3(pictured),
                "The slice with most brain of each patient; each volume in its own window, as the scores see it.",
            ),
            sections.Table(
                _MISSING,
                [
                    {"cell": it.cell, "job": f"{it.stage} {it.of}".strip(), "why": it.reason}
                    for it in results.missing[:_SHOWN_MISSING]
                ],
                _not_shown(results),
            ),
            Text(
                _CLAIMS,
                [
                    *(f"{it.words}: {it.verdict.upper()}. {it.evidence}." for it in claimed),
                    *([_HOW_CLAIMED] if claimed else []),
                ],
            ),
            *(_shown(table) for table in tables),
            BoxPlots(_boxes(study, results)),
            *_images(study, results, tables),
            *_curves(study, results),
            Text(
                "How it was made",
                [
                    "Each method was trained on what the scenario leaves of the training cases, completed all missing "
                    "volumes of all cases, and was scored on the test cases beside the held-out volumes."
                    + (
                        " Segmenters were trained on the completed dataset and tested on the test cases."
                        if study.file.segment is not None
                        else ""
                    )
                ],
                {
                    "Study": as_text(study.file.model_dump(mode="json")),
                    "Versions": as_text(
                        [
                            {
                                key: run.get(key)
                                for key in (
                                    "cell",
                                    "method",
                                    "attcl_version",
                                    "torch_version",
                                    "device",
                                )
                            }
                            for run in runs_of(study, results)
                        ]
                    ),
                },
            ),
        ],
        notes=[
            "Columns called published hold the papers' own figures, of BraTS 2021 with 243 patients: other data, other "
            "training. They stand there for orientation, and never in a comparison.",
            *(
                ["W2GAN, MSA-GAN and Auto-GAN are re-specifications of ours: none has public code."]
                if {name for it in study.file.methods.values() for name in (it.method, it.variant)}
                & RE_SPECIFIED
                else []
            ),
            *_not_ranked(study, results),
            *unread,
        ],
        files=[
            "study.md",
            *(f"tables/{it.name}.{ending}" for it in tables for ending in ("csv", "md", "tex")),
        ],
    )


def _verdict(study: Study, tables: list[Table]) -> str:
    """Return what the largest questions came to: are volumes better than copies, and than one modality alone."""
    return " ".join(filter(None, (_beside_copies(tables), _beside_one_modality(study, tables))))


def _described(name: str, source: Source) -> str:
    """Return what a dataset is, in words."""
    sizes = f", {source.sizes} train/val/test" if source.sizes else ""
    if source.simulate is None:
        return f"{name}{sizes}"
    return f"{name}, {source.simulate} simulated patients of {source.voxel_mm:g} mm{sizes}"


def _beside_copies(tables: list[Table]) -> str:
    """Return how the best completed volumes and what needs no training compare; "" without scores of them."""
    table = next((it for it in tables if it.name == "completed-ssim"), None)
    words = []
    rows = table.rows if table is not None else {}
    for scenario in dict.fromkeys(labels[:-1] for labels in rows):
        means = {
            labels[-1]: row[OVERALL].mean
            for labels, row in rows.items()
            if labels[:-1] == scenario and OVERALL in row
        }
        free = {
            name: mean
            for name, mean in means.items()
            if table is not None and name in table.unmarked and not math.isnan(mean)
        }
        made = {
            name: mean
            for name, mean in means.items()
            if table is not None and name not in table.unmarked
        }
        if made and free:
            best, rival = max(made, key=made.__getitem__), max(free, key=free.__getitem__)
            above = sum(mean > free[rival] for mean in made.values())
            few = max(row[OVERALL].n for row in rows.values() if OVERALL in row)
            words.append(
                f"{', '.join(scenario[:2])}, training cases {scenario[2]}: the best method has "
                f"{made[best]:.3f} ({best}), the best of what needs no training {free[rival]:.3f} ({rival}); "
                f"methods above it: {above} of {len(made)} ({counted(few, 'test case')})"
            )
    return f"SSIM of completed volumes in the brain, {'; '.join(words)}." if words else ""


def _beside_one_modality(study: Study, tables: list[Table]) -> str:
    """Return whether completion is better than one modality alone, for segmentation."""
    reference = study.file.reference
    if study.file.segment is None:
        return "No segmenter is part of this study."
    table = next((it for it in tables if it.name == "table-3-differences"), None)
    words = []
    for labels, values in table.rows.items() if table is not None else ():
        if labels[-1] == WITHOUT:
            for column, value in values.items():
                way = {-1: "worse than", 1: "better than"}.get(
                    sign_of(value), "not clearly different from"
                )
                words.append(
                    f"{labels[1]}, training cases {column}: one modality alone is {way} the completed dataset "
                    f"(Dice, {WITHOUT} - {reference}: {value.text()}, {counted(value.n, 'case')})"
                )
    unknown = "One modality alone and the completed dataset cannot be compared: their segmenters are missing."
    return f"{'; '.join(words)}." if words else unknown


def _shown(table: Table) -> sections.Table:
    marks = table.marks()
    rows: list[dict[str, sections.Cell]] = []
    for labels in table.rows:
        row: dict[str, sections.Cell] = dict(zip(table.labels, labels, strict=True))
        for column in table.columns:
            row[column.heading] = table.text(labels, column.heading) + {
                1: " (best)",
                2: " (2nd)",
            }.get(marks.get((labels, column.heading), 0), "")
        rows.append(row)
    return sections.Table(table.title, rows, hint=" ".join(table.notes))


def _boxes(study: Study, results: Results) -> list[Distribution]:
    """Return box plots of Dice by region, of the first seed of each scenario."""
    plots = []
    for cell in study.cells:
        if cell.seed != study.file.seeds[0]:
            continue
        for region in (REGION, "TC", "ET"):
            groups = {
                name: list(by_case.values())
                for (at, name, where, metric), by_case in results.cases.items()
                if (at, where, metric) == (cell.name, region, "dice")
            }
            if groups:
                plots.append(Distribution(f"Dice, {region}, {cell.name}", "", groups))
    return plots


def _not_ranked(study: Study, results: Results) -> list[str]:
    """Return why methods are not ranked, by measure and cell."""
    found = []
    for what, values_of in _RANKED.items():
        for cell in study.cells:
            why = unranked(values_of(study, results, cell.name))
            if why:
                found.append(f"Methods of {cell.name} are not ranked by {what}: {why}.")
    return found


def _images(study: Study, results: Results, tables: list[Table]) -> list[Images]:
    found = []
    for what, values_of in _RANKED.items():
        images = {}
        for cell in study.cells:
            drawn = critical_difference(values_of(study, results, cell.name))
            if drawn is not None:
                picture, words = drawn
                images[f"{cell.name}. {words}"] = picture
        if images:
            found.append(Images(f"Methods ranked by {what}", images))
    table = next((it for it in tables if it.name == "figure-4-layers"), None)
    picture = layers_png(table) if table is not None else None
    return found + (
        [Images("Figure 4. Layers of the contrastive loss", {"": picture})] if picture else []
    )


def _curves(study: Study, results: Results) -> list[Curves]:
    """Return how the validation figure of each method grew, a chart per cell."""
    charts = []
    for cell in study.cells:
        lines = {
            of: points
            for (at, stage, of) in results.costs
            if (at, stage) == (cell.name, "train")
            and (points := list(read_statistics(study.folder(cell.name, "train", of)).validation))
        }
        if lines:
            charts.append(Curve(f"SSIM of validation cases, {cell.name}", "", lines))
    return [Curves("Training", charts)] if charts else []


def _first_cell(results: Results) -> str:
    """Return the first cell that has completed volumes; "" if none has."""
    return next((cell for cell, stage, _ in results.costs if stage == "complete"), "")


if __name__ == "__main__":
    sys.exit(main())
