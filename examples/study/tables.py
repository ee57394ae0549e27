"""The tables of the papers, from the results of a study: their rows, columns and notes.

Knows no folders of results; what a cell's figure is, `values` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from plan import INCOMPLETE, REAL, Cell, Study, ratio_name, share_name, title_of
from results import COPIES, COPY, MATCHED, MEAN, SYNTHETIC, Results
from table import FEW, MARK, Column, Table, Value
from values import (
    REGION,
    difference,
    mean_defined,
    of_figures,
    of_volumes,
    over_seeds,
    paired,
    paired_ssim,
)

from attcl_cli.scoring.metrics import METRICS as SCORES
from attcl_cli.scoring.summary import SIX, SIX_DIRECTIONS
from attcl_cli.segmentation.metrics import METRICS as SEGMENT

WITHOUT = "w/o DA"  # a single modality, as the paper calls it
OVERALL = "mean of modalities"
"""Heading of the last column of completed volumes, as in Table 1 of PLAVE: each modality counts once."""
PARTS = {"acl": "ACL", "att-adain": "AttAdaIN", "scd": "SCD"}
"""Variant of AttCL-GAN -> the part that it adds to StarGAN v2."""
_ALL_WAYS = "mean of directions"
_PUBLISHED = "published (other data)"
_OF_VOLUMES = ("ssim", "psnr", "nmse", "gms")  # metrics that each volume has in the brain
_TRANSLATED = ("fid", "fd-effnet", "lpips", *_OF_VOLUMES)
_BASELINES = {COPY: COPY, MATCHED: "quantile-matched copy", MEAN: "mean of sources"}
_UNMARKED = frozenset(_BASELINES.values())
_GPU = "GPU memory, MB"
_INTERVAL = (
    "Mean of the paired differences over test cases, those of several seeds averaged first, with its 95 % interval "
    "(percentiles of a paired bootstrap, 10,000 draws), which is too narrow for few cases. A verdict takes 6 cases or "
    "more and a test of flipped signs, too (p below 0.05); other cases and other trainings are another matter."
)
_MEMORY = "Memory is that of the process on the host; that of a GPU has a column of its own."


# --- The tables -------------------------------------------------------------------------------------------------------


def all_tables(
    study: Study, results: Results, published: Mapping[tuple[str, ...], float]
) -> list[Table]:
    """Return every table that the results have something for, in the order of the papers."""
    tables = [counts(study, results)]
    tables += [directions(study, results, published, metric) for metric in _TRANSLATED]
    tables += [every_direction(study, results, metric) for metric in _TRANSLATED]
    tables += [
        segmentation(study, results, published),
        differences(study, results),
        ablation(study, results, published),
        layers(study, results),
        small_data(study, results),
        completed(study, results, published),
        *(completed_in_brain(study, results, metric) for metric in _OF_VOLUMES),
        completed_differences(study, results),
        costs(study, results),
    ]
    seeds = len(study.file.seeds)
    return [replace(table, seeds=seeds) for table in tables if any(table.rows.values())]


def counts(study: Study, results: Results) -> Table:
    """Return Table 1 of AttCL-GAN: how many volumes each split keeps, of the first seed."""
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    columns: dict[str, Column] = {}
    hidden = {}
    for cell in _first_seeds(study):
        groups = [" and ".join(group) or "nothing" for group in results.hidden.get(cell.name, ())]
        if groups:
            hidden[ratio_name(cell.ratio)] = ", ".join(groups)
        for split, numbers in results.counts.get(cell.name, {}).items():
            for name, number in numbers.items():
                heading = f"{split} {'total' if name == 'cases' else name}"
                columns.setdefault(heading, Column(heading))
                row = rows.setdefault(
                    (cell.dataset, ratio_name(cell.ratio), share_name(cell.subset)), {}
                )
                row[heading] = Value(number)
    return Table(
        "table-1-counts",
        "Table 1. Volumes that are left, by scenario",
        ("dataset", "ratio", "training cases"),
        list(columns.values()),
        rows,
        notes=[
            "Patients are divided, never slices.",
            *(f"{ratio} hides, by group of patients: {words}." for ratio, words in hidden.items()),
        ],
    )


def directions(
    study: Study, results: Results, published: Mapping[tuple[str, ...], float], metric: str
) -> Table:
    """Return Table 2 of AttCL-GAN for one metric: real volumes of the test cases translated in every direction.

    Args:
        study: the study.
        results: its results.
        published: the paper's figures.
        metric: a key of the scores' metrics.
    """
    better = 1 if SCORES[metric].higher_is_better else -1
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    headings: dict[str, Column] = {}
    groups = dict.fromkeys(
        (*(_pair(direction) for direction in SIX_DIRECTIONS), SIX)
    )  # Flair-T1, Flair-T1ce, Flair-T2 and their mean, as in the paper
    ways = {_pair(direction): [] for direction in SIX_DIRECTIONS}
    for direction in SIX_DIRECTIONS:
        ways[_pair(direction)].append(direction)
    for pair in groups:
        for subset in study.file.subsets:
            for place, direction in enumerate(ways.get(pair, [SIX])):
                way = "mean" if pair == SIX else ("A to B", "B to A")[place]
                heading = f"{share_name(subset)}: {way}"
                for dataset, ratio, cells in _scenarios(study, subset):
                    for name in (*study.methods, *COPIES):
                        value = of_figures(results, cells, name, direction, metric)
                        labels = (dataset, ratio, "mean of six" if pair == SIX else pair, name)
                        known = published.get(
                            ("2", ratio, subset, _known_as(study, name), direction, metric)
                        )
                        if value is not None:
                            headings.setdefault(heading, Column(heading, better))
                            rows.setdefault(labels, {})[heading] = value
                        if value is not None and known is not None:
                            beside = f"{heading}, {_PUBLISHED}"
                            headings.setdefault(beside, Column(beside))
                            rows[labels][beside] = Value(known)
    title = SCORES[metric].title
    return Table(
        f"table-2-{metric}",
        f"Table 2. Translation in both directions: {title}",
        ("dataset", "ratio", "A-B", "method"),
        list(headings.values()),
        _titled(study, rows),
        group=3,
        notes=[
            "The real volumes of the test cases are translated; A is FLAIR. The mean is that of the six directions.",
            *([f"{title} is that in the brain."] if metric in _OF_VOLUMES else []),
            *(
                ["Mean over seeds, with their deviation; each seed has test patients of its own."]
                if len(study.file.seeds) > 1
                else []
            ),
            *_copied(rows),
            *_few_tested(results),
        ],
        unmarked=_UNMARKED,
    )


def every_direction(study: Study, results: Results, metric: str) -> Table:
    """Return one metric of translations between all modalities; Table 2 has those from and to FLAIR alone."""
    ways = sorted({key[2] for key in results.figures if "->" in key[2]})
    if not {*ways} - {*SIX_DIRECTIONS}:
        ways = []  # Table 2 has them all
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    for subset in study.file.subsets:
        for dataset, ratio, cells in _scenarios(study, subset):
            for name in (*study.methods, *COPIES):
                found = {way: of_figures(results, cells, name, way, metric) for way in ways}
                row = {_to(way): value for way, value in found.items() if value is not None}
                if row:
                    rows[dataset, ratio, share_name(subset), name] = row
                if row and len(row) == len(ways):
                    values = [*row.values()]
                    row[_ALL_WAYS] = Value(
                        fmean(it.mean for it in values), seeds=min(it.seeds for it in values)
                    )
    better = 1 if SCORES[metric].higher_is_better else -1
    title = SCORES[metric].title
    return Table(
        f"directions-{metric}",
        f"Translation in every direction: {title}",
        ("dataset", "ratio", "training cases", "method"),
        [
            Column(heading, better)
            for heading in (*map(_to, ways), _ALL_WAYS)
            if any(heading in row for row in rows.values())
        ],
        _titled(study, rows),
        group=3,
        notes=[
            "The real volumes of the test cases are translated.",
            *([f"{title} is that in the brain."] if metric in _OF_VOLUMES else []),
            *_copied(rows),
            *_few_tested(results),
        ],
        unmarked=_UNMARKED,
    )


def segmentation(
    study: Study, results: Results, published: Mapping[tuple[str, ...], float]
) -> Table:
    """Return Table 3 of AttCL-GAN: the whole tumour of the test cases, segmented on what each method completed."""
    apart = [_title(study, name) for name in study.methods if name not in _compared(study)]
    return _segmented(
        study,
        results,
        published,
        "3",
        [study.file.without, INCOMPLETE, *_compared(study), REAL],
        name="table-3-segmentation",
        title="Table 3. Segmentation of the whole tumour, by what completed the dataset",
        notes=[f"In Table 4 or Figure 4, as in the paper: {', '.join(apart)}."] if apart else [],
    )


def ablation(study: Study, results: Results, published: Mapping[tuple[str, ...], float]) -> Table:
    """Return Table 4 of AttCL-GAN: what each of its parts brings to segmentation."""
    parts = [name for name in study.methods if _is_ablation(study, name)]
    return _segmented(
        study,
        results,
        published,
        "4",
        parts if len(parts) > 1 else [],
        name="table-4-ablation",
        title="Table 4. What each part of AttCL-GAN brings to segmentation",
    )


def layers(study: Study, results: Results) -> Table:
    """Return the values of Figure 4 of AttCL-GAN: the layers of the contrastive loss, with memory and time."""
    table = _segmented(
        study,
        results,
        {},
        "",
        [name for name, model in study.file.methods.items() if model.layers],
        name="figure-4-layers",
        title="Figure 4. Layers of the contrastive loss",
    )
    rows = {}
    for labels, values in table.rows.items():
        dataset, ratio, title = labels
        (name,) = (it for it in study.methods if _title(study, it) == title)
        taken = [
            cost
            for (cell, stage, of), cost in results.costs.items()
            if stage == "train"
            and of == name
            and study.cell(cell).dataset == dataset
            and ratio_name(study.cell(cell).ratio) == ratio
        ]
        hours = [cost.seconds / 3600 for cost in taken]
        memory = {
            "memory, MB": [cost.memory_mb for cost in taken if cost.memory_mb is not None],
            _GPU: [cost.gpu_mb for cost in taken if cost.gpu_mb is not None],
        }
        chosen = "{" + ", ".join(map(str, study.file.methods[name].layers)) + "}"
        rows[dataset, ratio, chosen] = {
            **values,
            "training, hours": over_seeds(hours),
            **{heading: over_seeds(values) for heading, values in memory.items() if values},
        }
    further = ("training, hours", "memory, MB", _GPU)
    columns = [
        *table.columns,
        *(Column(name, -1) for name in further if any(name in row for row in rows.values())),
    ]
    return Table(
        table.name,
        table.title,
        ("dataset", "ratio", "layers"),
        columns,
        rows,
        group=2,
        notes=[*table.notes, _MEMORY],
    )


def small_data(study: Study, results: Results) -> Table:
    """Return section 5.5 of AttCL-GAN: what is lost with fewer training cases."""
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    columns: dict[str, Column] = {}
    whole, *parts = study.file.subsets
    for part in parts:
        for dataset, ratio, cells in _scenarios(study, whole):
            fewer = [_other(study, cell, part) for cell in cells]
            for name in (study.file.without, *study.methods, REAL):
                for metric, definition in SEGMENT.items():
                    value = difference(
                        (
                            results.cases.get((less, name, REGION, metric), {}),
                            results.cases.get((cell, name, REGION, metric), {}),
                        )
                        for cell, less in zip(cells, fewer, strict=True)
                    )
                    if value is not None:
                        better = 1 if definition.higher_is_better else -1
                        columns.setdefault(metric, Column(metric, better))
                        labels = (dataset, ratio, f"{part} instead of {share_name(whole)}", name)
                        rows.setdefault(labels, {})[metric] = value
    return Table(
        "section-5.5-small-data",
        "Section 5.5. Segmentation with fewer training cases: the difference",
        ("dataset", "ratio", "training cases", "method"),
        list(columns.values()),
        _titled(study, rows),
        group=3,
        notes=[_INTERVAL, *_few(_most(rows))],
    )


def completed(study: Study, results: Results, published: Mapping[tuple[str, ...], float]) -> Table:
    """Return Table 1 of PLAVE: the similarity of the completed volumes with the held-out ones, by modality."""
    rows, columns = _by_target(study, results, ("whole", "ssim"), (COPY,))
    known = {key[4]: Value(value) for key, value in published.items() if key[0] == "plave-1"}
    if rows and any(model.method == "plave" for model in study.file.methods.values()):
        rows["\u2013", "\u2013", "\u2013", f"PLAVE, {_PUBLISHED}"] = {
            column.heading: known[column.heading] for column in columns if column.heading in known
        }
    return Table(
        "plave-table-1-ssim",
        "Table 1 of PLAVE. SSIM of the whole volume, by missing modality",
        ("dataset", "ratio", "training cases", "method"),
        columns,
        _titled(study, rows),
        group=3,
        notes=[
            "Completed volumes of the test cases beside the held-out ones. The whole volume is mostly background, "
            "so all values are high; other tables have the brain alone.",
            *(
                ["The mean that PLAVE published is over FLAIR, T1, T1ce and T2."]
                if any(_PUBLISHED in row[-1] for row in rows)
                else []
            ),
            *_few(_most(rows)),
        ],
        unmarked=_UNMARKED,
    )


def completed_in_brain(study: Study, results: Results, metric: str) -> Table:
    """Return one metric of the completed volumes in the brain, by missing modality, beside what needs no training."""
    rows, columns = _by_target(study, results, ("brain", metric), tuple(_BASELINES))
    return Table(
        f"completed-{metric}",
        f"Completed volumes of the test cases: {SCORES[metric].title} in the brain, by missing modality",
        ("dataset", "ratio", "training cases", "method"),
        columns,
        _titled(study, rows),
        group=3,
        notes=[
            "Copies are those of the sources that the reference method takes; the mean of sources is that of the first "
            "method that takes several. Such baselines are never marked.",
            *_few(_most(rows)),
        ],
        unmarked=_UNMARKED,
    )


def differences(study: Study, results: Results) -> Table:
    """Return how each input differs from the reference method in Dice, case by case, with its interval."""
    reference = study.file.reference
    return _compared_with_reference(
        study,
        [study.file.without, INCOMPLETE, *study.methods, REAL],
        lambda cells, name: paired(results, cells, name, reference),
        name="table-3-differences",
        title="Dice of the whole tumour",
        label="input",
    )


def completed_differences(study: Study, results: Results) -> Table:
    """Return how each method differs from the reference method in SSIM, case by case, with its interval."""
    reference = study.file.reference

    def gap(cells: Sequence[str], name: str) -> Value | None:
        if name not in COPIES:
            return paired_ssim(results, cells, name, reference)
        gap = paired_ssim(results, cells, reference, reference, name)
        return None if gap is None else -gap

    return _compared_with_reference(
        study,
        [*study.methods, *COPIES],
        gap,
        name="completed-differences",
        title="SSIM of completed volumes, in the brain",
        label="method",
        notes=[
            "A case's volumes are averaged first; the tables above average each modality first."
        ],
    )


def costs(study: Study, results: Results) -> Table:
    """Return what each method took, mean over its jobs."""
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    for name in study.methods:
        row = {}
        for stage in ("train", "complete"):
            taken = [it for (_, at, of), it in results.costs.items() if (at, of) == (stage, name)]
            memory = [cost.memory_mb for cost in taken if cost.memory_mb is not None]
            if taken:
                row[f"{stage}, minutes"] = Value(fmean(cost.seconds / 60 for cost in taken))
            if memory:
                row[f"{stage}, MB"] = Value(max(memory))
            gpu = [cost.gpu_mb for cost in taken if cost.gpu_mb is not None]
            if gpu:
                row[f"{stage}, GPU, MB"] = Value(max(gpu))
            steps = [cost.steps for cost in taken if cost.steps is not None]
            if steps:
                row[f"{stage}, steps"] = Value(round(fmean(steps)))
        rows[(name,)] = row
    columns = [
        Column(f"{stage}, {unit}")
        for stage in ("train", "complete")
        for unit in ("steps", "minutes", "MB", "GPU, MB")
        if unit in {"minutes", "MB"} or any(f"{stage}, {unit}" in row for row in rows.values())
    ]
    return Table(
        "costs",
        "What each method takes",
        ("method",),
        columns,
        _titled(study, rows),
        notes=[
            f"Steps and minutes are the mean, memory the most over all jobs. {_MEMORY} They differ from call to call, "
            "and are no part of the other tables."
        ],
    )


def _by_target(
    study: Study, results: Results, measure: tuple[str, str], baselines: Sequence[str]
) -> tuple[dict[tuple[str, ...], dict[str, Value]], list[Column]]:
    """Return the rows and columns of a table of completed volumes, by missing modality.

    Args:
        study: the study.
        results: its results.
        measure: region and metric.
        baselines: what stands beside the methods; each is that of the reference method, which others lack or repeat.
    """
    better = 1 if SCORES[measure[1]].higher_is_better else -1
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    columns: dict[str, Column] = {}
    targets: dict[str, str | None] = {key[2]: key[2] for key in results.volumes}
    targets[OVERALL] = None
    makers = {name: ([name], SYNTHETIC) for name in study.methods}
    first = [study.file.reference, *study.methods]  # whose sources are copied
    makers |= {baseline: (first, baseline) for baseline in baselines}
    for subset in study.file.subsets:
        for dataset, ratio, cells in _scenarios(study, subset):
            for name, (makers_of, shown) in makers.items():
                for heading, target in targets.items():
                    values = (
                        of_volumes(results, cells, of, target, (*measure, shown))
                        for of in makers_of
                    )
                    value = next((it for it in values if it is not None), None)
                    if value is not None:
                        columns.setdefault(heading, Column(heading, better))
                        labels = (dataset, ratio, share_name(subset), name)
                        rows.setdefault(labels, {})[heading] = value
    return rows, list(columns.values())


def _compared_with_reference(
    study: Study,
    names: Sequence[str],
    gap: Callable[[Sequence[str], str], Value | None],
    *,
    name: str,
    title: str,
    label: str,
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of differences from the reference method.

    Args:
        study: the study.
        names: of the rows; the reference method is left out.
        gap: (the cells of all seeds, name) -> difference; None if unknown.
        name: of the table.
        title: of what is compared.
        label: the heading of the names.
        notes: further ones.
    """
    reference = study.file.reference
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    columns: dict[str, Column] = {}
    for subset in study.file.subsets:
        for dataset, ratio, cells in _scenarios(study, subset):
            for row in names:
                value = None if row == reference else gap(cells, row)
                if value is not None:
                    columns.setdefault(share_name(subset), Column(share_name(subset)))
                    rows.setdefault((dataset, ratio, row), {})[share_name(subset)] = value
    return Table(
        name,
        f"{title}: the difference from {_title(study, reference)}",
        ("dataset", "ratio", label),
        list(columns.values()),
        _titled(study, rows),
        notes=[
            f"A difference is the row's value - that of {_title(study, reference)}.",
            _INTERVAL,
            *notes,
            *_few(_most(rows)),
        ],
    )


def _segmented(
    study: Study,
    results: Results,
    published: Mapping[tuple[str, ...], float],
    number: str,
    names: Sequence[str],
    *,
    name: str,
    title: str,
    notes: Sequence[str] = (),
) -> Table:
    rows: dict[tuple[str, ...], dict[str, Value]] = {}
    columns: dict[str, Column] = {}
    for subset in study.file.subsets:
        for metric, definition in SEGMENT.items():
            heading = f"{share_name(subset)}: {metric}"
            for dataset, ratio, cells in _scenarios(study, subset):
                for row in names:
                    values = [results.cases.get((cell, row, REGION, metric), {}) for cell in cells]
                    means = [mean_defined(it.values()) for it in values]
                    known = [it for it in means if not math.isnan(it)]
                    if not known:
                        continue
                    n = max(len(it) for it in values)
                    better = 1 if definition.higher_is_better else -1
                    columns.setdefault(heading, Column(heading, better))
                    labels = (dataset, ratio, row)
                    rows.setdefault(labels, {})[heading] = over_seeds(known, n)
                    theirs = published.get(
                        (number, ratio, subset, _known_as(study, row), REGION, metric)
                    )
                    if theirs is not None:
                        beside = f"{heading}, {_PUBLISHED}"
                        columns.setdefault(beside, Column(beside))
                        rows[labels][beside] = Value(theirs)
    return Table(
        name,
        title,
        ("dataset", "ratio", "method"),
        list(columns.values()),
        _titled(study, rows),
        group=2,
        notes=[
            "Mean over the test cases, then over seeds, with the deviation of the seeds. The columns before the colon "
            "say which share of the training cases was used.",
            *(
                [
                    f"{WITHOUT} (without data augmentation, the paper's name for completion): one modality "
                    f"({study.file.without}) alone; incomplete: missing channels are 0; real: "
                    "the held-out volumes. These three are never marked."
                ]
                if study.file.without in names
                else []
            ),
            *notes,
            *_few(_most(rows)),
        ],
        unmarked=frozenset({WITHOUT, INCOMPLETE, REAL}),
    )


# --- Scenarios and names ----------------------------------------------------------------------------------------------


def _scenarios(study: Study, subset: str) -> Iterable[tuple[str, str, list[str]]]:
    """Yield (dataset, name of the ratio, the cells of all seeds)."""
    for dataset in study.file.datasets:
        for ratio in study.file.ratios:
            cells = [Cell(dataset, ratio, subset, seed).name for seed in study.file.seeds]
            yield dataset, ratio_name(ratio), cells


def _first_seeds(study: Study) -> list[Cell]:
    return [cell for cell in study.cells if cell.seed == study.file.seeds[0]]


def _other(study: Study, cell: str, subset: str) -> str:
    place = study.cell(cell)
    return Cell(place.dataset, place.ratio, subset, place.seed).name


def _to(direction: str) -> str:
    """`t1->flair` -> `t1 to flair`, for a heading."""
    return direction.replace("->", " to ")


def _pair(direction: str) -> str:
    """`t1->flair` -> `flair-t1`: FLAIR is A."""
    return "-".join(sorted(direction.split("->"), key=lambda name: name != "flair"))


def _compared(study: Study) -> list[str]:
    """Return the methods of Table 3: all but those of Table 4 and Figure 4 alone."""
    return [
        name
        for name, model in study.file.methods.items()
        if not model.layers
        and (not _is_ablation(study, name) or name in {"attcl-gan", "stargan-v2"})
    ]


def _is_ablation(study: Study, name: str) -> bool:
    """Return whether a row is AttCL-GAN with some of its parts, as Table 4 has them."""
    model = study.file.methods[name]
    return (
        model.method == "attcl-gan"
        and not model.layers
        and (
            model.variant in {"attcl-gan", "stargan-v2"}
            or (bool(model.variant) and {*model.variant.split("+")} <= PARTS.keys())
        )
    )


def _known_as(study: Study, name: str) -> str:
    """Return what `published.csv` calls a row."""
    if name == study.file.without:
        return WITHOUT
    model = study.file.methods.get(name)
    return name if model is None else model.published or model.variant or model.method


def _title(study: Study, name: str) -> str:
    if name == study.file.without:
        return WITHOUT
    return title_of(study.file, name) if name in study.methods else _BASELINES.get(name, name)


def _titled(
    study: Study, rows: Mapping[tuple[str, ...], Mapping[str, Value]]
) -> dict[tuple[str, ...], Mapping[str, Value]]:
    """Return rows with the titles of the methods, which are their last label, in the study's order in each group.

    Of a study that is partly done, the rows were found in another order.
    """
    names = [study.file.without, INCOMPLETE, *study.methods, REAL, *_BASELINES]
    groups = [*dict.fromkeys(labels[:-1] for labels in rows)]

    def place(labels: tuple[str, ...]) -> tuple[int, int]:
        name = labels[-1]
        return groups.index(labels[:-1]), names.index(name) if name in names else len(names)

    return {
        (*labels[:-1], _title(study, labels[-1])): rows[labels]
        for labels in sorted(rows, key=place)
    }


def _most(rows: Mapping[tuple[str, ...], Mapping[str, Value]]) -> int:
    """Return the most cases that a value of a table has."""
    return max((value.n for row in rows.values() for value in row.values()), default=0)


def _few(n: int) -> list[str]:
    return (
        [f"{MARK} {n} test cases at most: fewer than {FEW}, so that a single one decides."]
        if 0 < n < FEW
        else []
    )


def _copied(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the remark on copies of the source for a table that has any."""
    return (
        ["Copies of the source are trivial baselines and never marked."]
        if any(labels[-1] in COPIES for labels in rows)
        else []
    )


def _few_tested(results: Results) -> list[str]:
    """Return the remark on few test cases for a table of which some n count slices or directions."""
    n = max((counts["test"]["cases"] for counts in results.counts.values()), default=0)
    return (
        [
            f"All values, {MARK} or not: {n} test cases at most, fewer than {FEW}, so that a single one decides."
        ]
        if 0 < n < FEW
        else []
    )
