"""The tables of a study, by figures that one can check by hand."""

from __future__ import annotations

import csv
import io
import math
import operator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from charts import (
    cliques,
    critical_difference,
    dice_of_cases,
    figure_3,
    layers_png,
    similarity_of_cases,
    unranked,
)
from claims import FAILS, HOLDS, OPEN, claims
from PIL import Image
from plan import Study, read_study
from results import COPY, MATCHED, MEAN, SYNTHETIC, Cost, Results, published
from table import Column, Table, Value, as_csv, as_latex, as_markdown
from tables import (
    OVERALL,
    ablation,
    all_tables,
    completed,
    completed_differences,
    completed_in_brain,
    costs,
    counts,
    differences,
    directions,
    every_direction,
    layers,
    paired,
    segmentation,
    small_data,
)

from attcl_cli.errors import AttclError
from attcl_cli.report.pictures import REAL as REAL_TILE
from attcl_cli.report.pictures import SYNTHETIC as SYNTHETIC_TILE
from attcl_cli.report.pictures import Panel, Tile

HERE = Path(__file__).resolve().parents[2] / "examples" / "study"
PUBLISHED = published(HERE / "published.csv")


def study(**changes: object) -> Study:
    return read_study(
        {
            "title": "A question",
            "output": "study",
            "datasets": {"p": {"path": "DATA"}},
            "methods": {
                "attcl-gan": {"method": "attcl-gan", "variant": "attcl-gan", "title": "AttCL-GAN"},
                "stargan-v2": {
                    "method": "attcl-gan",
                    "variant": "stargan-v2",
                    "title": "StarGAN v2",
                },
            },
            **changes,
        }
    )


def cell(share: str = "all", seed: int = 0, ratio: str = "ratio1") -> str:
    return f"p/{ratio}/{share}/seed{seed}"


def dice(results: Results, where: str, name: str, *values: float, metric: str = "dice") -> None:
    results.cases[where, name, "WT", metric] = {f"P{n}": value for n, value in enumerate(values)}


# --- Segmentation -----------------------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_over_seeds_of_the_mean_over_cases_with_the_deviation_of_the_seeds():
    results = Results()
    dice(results, cell(seed=0), "attcl-gan", 0.2, 0.4)  # 0.3
    dice(results, cell(seed=1), "attcl-gan", 0.5, math.nan)  # 0.5: the second has no value
    table = segmentation(study(seeds=[0, 1]), results, {})
    value = table.rows["p", "ratio1", "AttCL-GAN"]["all: dice"]
    assert value.mean == pytest.approx(0.4)
    assert value.sd == pytest.approx(math.sqrt(0.02))
    assert (value.n, value.seeds) == (2, 2)
    assert value.text() == "0.400 \u00b1 0.141"


def test_best_and_second_best_are_marked_among_the_methods_alone():
    results = Results()
    for name, value in {
        "flair": 0.1,
        "real": 0.9,
        "attcl-gan": 0.7,
        "stargan-v2": 0.6,
    }.items():
        dice(results, cell(), name, value)
        dice(results, cell(), name, 10 * value, metric="hd95")  # less is better
    marks = segmentation(study(), results, {}).marks()
    assert marks == {
        (("p", "ratio1", "AttCL-GAN"), "all: dice"): 1,
        (("p", "ratio1", "StarGAN v2"), "all: dice"): 2,
        (("p", "ratio1", "AttCL-GAN"), "all: hd95"): 2,
        (("p", "ratio1", "StarGAN v2"), "all: hd95"): 1,
    }


@pytest.mark.parametrize(
    ("means", "texts"),
    [
        ((0.9712, 0.5), ("0.971", "0.500")),
        ((9.971, 10.04), ("9.97", "10.04")),
        ((146.9, 9.9712), ("146.9", "10.0")),
        ((1, 12000), ("1", "12000")),
        ((math.nan, 13.4), ("\u2013", "13.40")),
    ],
)
def test_all_values_of_a_column_have_the_same_decimals(means, texts):
    rows = {(str(n),): {"x": Value(mean)} for n, mean in enumerate(means)}
    table = Table("t", "T", ("name",), [Column("x", 1)], rows)
    assert tuple(table.text(labels, "x") for labels in rows) == texts


def test_equal_values_share_their_mark_and_a_single_one_has_none():
    rows = {("a",): {"x": Value(1.0)}, ("b",): {"x": Value(1.0)}, ("c",): {"x": Value(0.5)}}
    table = Table("t", "T", ("name",), [Column("x", 1)], rows)
    assert set(table.marks().values()) == {1, 2}
    assert table.marks()[("a",), "x"] == table.marks()[("b",), "x"] == 1
    alone = Table("t", "T", ("name",), [Column("x", 1)], {("a",): {"x": Value(1.0)}})
    assert alone.marks() == {}


def test_the_paper_s_own_figures_stand_beside_ours_and_are_never_marked():
    results = Results()
    for name in ("attcl-gan", "stargan-v2", "flair"):
        dice(results, cell(), name, 0.5 if name == "flair" else 0.6)
    table = segmentation(study(), results, PUBLISHED)
    beside = "all: dice, published (other data)"
    assert table.rows["p", "ratio1", "AttCL-GAN"][beside].mean == 0.7551
    assert table.rows["p", "ratio1", "StarGAN v2"][beside].mean == 0.7057
    assert table.rows["p", "ratio1", "w/o DA"][beside].mean == 0.6850
    assert not any(heading == beside for _, heading in table.marks())


def test_the_share_of_the_training_cases_decides_which_published_figure_is_meant():
    results = Results()
    dice(results, cell("1-of-8"), "attcl-gan", 0.6)
    table = segmentation(study(subsets=["1/8"]), results, PUBLISHED)
    row = table.rows["p", "ratio1", "AttCL-GAN"]
    assert row["1/8: dice, published (other data)"].mean == 0.6797


def test_the_ablation_has_the_variants_of_attcl_gan_and_no_other_method():
    results = Results()
    names = ("attcl-gan", "stargan-v2", "acl", "acl+scd", "stargan-v2+cut", "unet")
    methods = {
        name: {"method": "attcl-gan", "variant": name} if name != "unet" else {"method": "unet"}
        for name in names
    }
    for name in names:
        dice(results, cell(), name, 0.5)
    plan = study(methods=methods)
    assert {labels[-1] for labels in ablation(plan, results, {}).rows} == {
        "attcl-gan",
        "stargan-v2",
        "acl",
        "acl+scd",
    }
    compared = {labels[-1] for labels in segmentation(plan, results, {}).rows}
    assert compared == {"attcl-gan", "stargan-v2", "stargan-v2+cut", "unet"}


def test_small_data_is_the_difference_of_the_same_seeds():
    results = Results()
    dice(results, cell(), "attcl-gan", 0.8)
    dice(results, cell("1-of-8"), "attcl-gan", 0.6)
    table = small_data(study(subsets=["1", "1/8"]), results)
    (labels, values), *others = table.rows.items()
    assert labels == ("p", "ratio1", "1/8 instead of all", "AttCL-GAN")
    assert values["dice"].mean == pytest.approx(-0.2)
    assert math.isnan(values["dice"].low)  # of a single case nothing can be drawn
    assert not others
    assert "1 test cases at most" in table.notes[-1]
    assert "-0.200\u2020" in as_markdown(table)


def test_a_title_with_a_bar_stays_in_its_cell():
    table = Table("t", "T", ["method"], [Column("x")], {("A | B",): {"x": Value(0.5)}})
    assert r"| A \| B | 0.500 |" in as_markdown(table)


def test_the_difference_of_fewer_training_cases_has_a_paired_interval():
    results = Results()
    dice(results, cell(), "attcl-gan", 0.8, 0.7, math.nan)
    dice(results, cell("1-of-8"), "attcl-gan", 0.6, 0.6, 0.1)
    (row,) = small_data(study(subsets=["1", "1/8"]), results).rows.values()
    value = row["dice"]
    assert (value.mean, value.n) == (pytest.approx(-0.15), 2)
    assert (value.low, value.high) == (pytest.approx(-0.2), pytest.approx(-0.1))


def test_figure_4_has_a_row_per_choice_of_layers_with_hours_and_memory():
    results = Results()
    methods = {
        "attcl-gan": {"method": "attcl-gan"},
        "one": {"method": "attcl-gan", "variant": "attcl-gan", "layers": [1]},
        "both": {"method": "attcl-gan", "variant": "attcl-gan", "layers": [2, 3]},
    }
    for name, value in {"one": 0.5, "both": 0.7}.items():
        dice(results, cell(), name, value)
        results.costs[cell(), "train", name] = Cost(7200.0, 500.0)
    table = layers(study(methods=methods), results)
    assert [labels[-1] for labels in table.rows] == ["{1}", "{2, 3}"]
    row = table.rows["p", "ratio1", "{2, 3}"]
    assert (row["training, hours"].mean, row["memory, MB"].mean) == (2.0, 500.0)
    assert "GPU memory, MB" not in row
    assert layers_png(table).startswith(b"\x89PNG")
    results.costs[cell(), "train", "both"] = Cost(7200.0, 500.0, "cuda:0", 2048.5)
    table = layers(study(methods=methods), results)
    assert table.columns[-1].heading == "GPU memory, MB"
    assert table.rows["p", "ratio1", "{2, 3}"]["GPU memory, MB"].mean == 2048.5
    assert "GPU memory, MB" not in table.rows["p", "ratio1", "{1}"]
    assert layers_png(table).startswith(b"\x89PNG")


# --- Differences ------------------------------------------------------------------------------------------------------


def test_a_difference_is_paired_by_case_and_averaged_over_seeds_first():
    results = Results()
    dice(results, cell(seed=0), "a", 0.5, 0.7)
    dice(results, cell(seed=0), "b", 0.4, 0.4)
    dice(results, cell(seed=1), "a", 0.6)
    dice(results, cell(seed=1), "b", 0.3)
    value = paired(results, [cell(seed=0), cell(seed=1)], "a", "b")
    assert value is not None
    # P0: (0.1 + 0.3) / 2, P1: 0.3
    assert value.mean == pytest.approx(0.25)
    assert value.n == 2
    assert 0.2 - 1e-9 <= value.low <= value.mean <= value.high <= 0.3 + 1e-9


def test_a_cell_without_all_of_its_seeds_says_how_many_it_has():
    results = Results()
    for seed in (0, 1):
        dice(results, cell(seed=seed), "attcl-gan", 0.5)
    dice(results, cell(seed=0), "stargan-v2", 0.4)
    tables = {it.name: it for it in all_tables(study(seeds=[0, 1]), results, {})}
    text = as_markdown(tables["table-3-segmentation"])
    # Nor is it the best or the second best: the other seed has other cases.
    assert "| StarGAN v2 | 0.400\u2020 (1 of 2 seeds) |" in text
    assert text.count("seeds)") == 1
    assert "(1 of 2 seeds)" in as_latex(tables["table-3-differences"])


def test_the_rows_of_a_study_that_is_partly_done_stand_in_the_study_s_order():
    results = Results()
    for where, name in ((cell(), "stargan-v2"), (cell(), "real"), (cell("1-of-8"), "attcl-gan")):
        dice(results, where, name, 0.5)
    rows = segmentation(study(subsets=["1", "1/8"]), results, {}).rows
    assert [labels[-1] for labels in rows] == ["AttCL-GAN", "StarGAN v2", "real"]


def test_what_has_no_case_in_common_has_no_difference():
    results = Results()
    dice(results, cell(), "a", 0.5)
    assert paired(results, [cell()], "a", "b") is None


def test_few_cases_are_flagged_wherever_they_are_shown():
    results = Results()
    for name in ("attcl-gan", "stargan-v2", "real"):
        dice(results, cell(), name, 0.5, 0.6)
    for table in (segmentation(study(), results, {}), differences(study(), results)):
        assert "2 test cases at most" in table.notes[-1]
        assert "\u2020" in as_markdown(table)


# --- Synthesis --------------------------------------------------------------------------------------------------------


def figures(results: Results, name: str, **by_direction: float) -> None:
    for pair, value in by_direction.items():
        direction = pair.replace("_to_", "->")
        results.figures[cell(), name, direction, "fid", SYNTHETIC] = (value, 94)
        results.figures[cell(), name, direction, "fid", COPY] = (100.0, 94)


def test_table_2_says_which_region_it_has_and_what_its_deviations_are():
    assert not any("in the brain" in it for it in directions(study(), Results(), {}, "fid").notes)
    notes = directions(study(seeds=[0, 1]), Results(), {}, "ssim").notes
    assert "SSIM is that in the brain." in notes
    assert any("over seeds, with their deviation" in it for it in notes)


def test_table_3_says_which_rows_stand_elsewhere():
    methods = {
        "attcl-gan": {"method": "attcl-gan", "variant": "attcl-gan"},
        "acl": {"method": "attcl-gan", "variant": "acl", "title": "ACL alone"},
    }
    notes = segmentation(study(methods=methods), Results(), {}).notes
    assert "In Table 4 or Figure 4, as in the paper: ACL alone." in notes
    assert not any("Table 4" in it for it in segmentation(study(), Results(), {}).notes)


def test_table_2_has_both_ways_of_a_pair_in_one_row_and_the_mean_of_six_below():
    results = Results()
    figures(results, "attcl-gan", flair_to_t1=40.0, t1_to_flair=60.0)
    results.figures[cell(), "attcl-gan", "six-directions", "fid", SYNTHETIC] = (50.0, 6)
    table = directions(study(), results, PUBLISHED, "fid")
    row = table.rows["p", "ratio1", "flair-t1", "AttCL-GAN"]
    assert (row["all: A to B"].mean, row["all: B to A"].mean) == (40.0, 60.0)
    assert row["all: A to B, published (other data)"].mean == 38.6402
    assert row["all: B to A, published (other data)"].mean == 51.3290
    assert table.rows["p", "ratio1", "flair-t1", "copy"]["all: A to B"].mean == 100.0
    assert not any("test cases at most" in note for note in table.notes)
    results.counts[cell()] = {"test": {"cases": 4}}
    table = directions(study(), results, PUBLISHED, "fid")
    assert table.notes[-1].startswith("All values, \u2020 or not: 4 test cases at most")
    mean = table.rows["p", "ratio1", "mean of six", "AttCL-GAN"]["all: mean"]
    assert (mean.mean, mean.n) == (50.0, 0)  # its n would count directions


def test_translations_beyond_those_of_flair_have_a_table_with_a_row_per_method():
    results = Results()
    figures(results, "attcl-gan", flair_to_t1=40.0, t1_to_flair=60.0)
    assert not every_direction(study(), results, "fid").rows  # Table 2 has them
    figures(results, "attcl-gan", flair_to_t1=40.0, t1_to_flair=60.0, t1_to_t2=80.0)
    figures(results, "stargan-v2", flair_to_t1=30.0, t1_to_flair=70.0)
    table = every_direction(study(), results, "fid")
    ours, theirs, copied = (
        table.rows["p", "ratio1", "all", it] for it in ("AttCL-GAN", "StarGAN v2", "copy")
    )
    assert [column.heading for column in table.columns] == [
        *("flair to t1", "t1 to flair", "t1 to t2", "mean of directions")
    ]
    assert ours["t1 to t2"].mean == 80.0
    assert ours["mean of directions"].mean == 60.0
    assert "mean of directions" not in theirs  # one is lacking: no mean of others
    marks = table.marks()
    assert marks[("p", "ratio1", "all", "StarGAN v2"), "flair to t1"] == 1  # the lowest
    assert copied
    results.figures[cell(), "attcl-gan", "flair->t1", "fid", MATCHED] = (1.0, 94)
    table = every_direction(study(), results, "fid")
    matched = table.rows["p", "ratio1", "all", "quantile-matched copy"]
    assert matched["flair to t1"].mean == 1.0
    assert not {"copy", "quantile-matched copy"} & {labels[-1] for labels, _ in table.marks()}
    assert any("never marked" in note for note in table.notes)


def test_what_is_our_specification_says_so_whatever_the_study_calls_it():
    methods = {
        "attcl-gan": {"method": "attcl-gan", "title": "AttCL-GAN"},
        "w2": {"method": "w2gan"},
        "msa": {"method": "msa-gan", "title": "MSA-GAN (re-specified)"},
        "auto": {"method": "plave", "variant": "auto-gan", "title": "Auto"},
    }
    results = Results()
    for name in methods:
        dice(results, cell(), name, 0.5)
    rows = segmentation(study(methods=methods), results, {}).rows
    assert [labels[-1] for labels in rows] == [
        *("AttCL-GAN", "w2 (re-specified)", "MSA-GAN (re-specified)", "Auto (re-specified)")
    ]
    assert "w2 (re-specified)" in dice_of_cases(study(methods=methods), results, cell())
    methods["other"] = {"method": "unet", "title": "Auto (re-specified)"}
    with pytest.raises(AttclError, match="expected each name once"):
        study(methods=methods)


def test_plave_s_table_has_the_ssim_of_each_target_and_of_all_volumes():
    results = Results()
    for target, values in {"t1": (0.9, 0.8), "t2": (0.7,)}.items():
        for prediction, gain in ((SYNTHETIC, 0.0), (COPY, -0.5)):
            results.volumes[cell(), "attcl-gan", target, "whole", "ssim", prediction] = {
                f"P{n}": value + gain for n, value in enumerate(values)
            }
    rows = completed(study(), results, PUBLISHED).rows
    assert rows["p", "ratio1", "all", "AttCL-GAN"]["t1"].mean == pytest.approx(0.85)
    mean = rows["p", "ratio1", "all", "AttCL-GAN"][OVERALL]
    assert mean.mean == pytest.approx((0.85 + 0.7) / 2)  # each modality counts once
    assert mean.n == 2  # cases, not volumes
    assert rows["p", "ratio1", "all", "copy"]["t2"].mean == pytest.approx(0.2)
    assert not any("PLAVE" in labels[-1] for labels in rows)


def volumes(
    results: Results, name: str, prediction: str = SYNTHETIC, **by_target: list[float]
) -> None:
    for target, values in by_target.items():
        key = (cell(), name, target, "brain", "ssim", prediction)
        results.volumes[key] = {f"P{n}": value for n, value in enumerate(values)}


def test_completed_volumes_stand_beside_what_needs_no_training():
    results = Results()
    volumes(results, "attcl-gan", t1=[0.8, 0.6], t2=[0.4])
    volumes(results, "attcl-gan", COPY, t1=[0.5, 0.5], t2=[0.2])
    volumes(results, "stargan-v2", t1=[0.6, 0.4])
    volumes(results, "stargan-v2", COPY, t1=[0.9, 0.9], t2=[0.9])
    volumes(results, "stargan-v2", MEAN, t1=[0.3, 0.1])
    table = completed_in_brain(study(), results, "ssim")
    rows = {
        labels[-1]: {target: value.mean for target, value in row.items()}
        for labels, row in table.rows.items()
    }
    assert [*rows] == ["AttCL-GAN", "StarGAN v2", "copy", "mean of sources"]
    ours, _, copy, mean = rows.values()
    assert ours == {"t1": pytest.approx(0.7), "t2": 0.4, OVERALL: pytest.approx(0.55)}
    assert copy == {"t1": 0.5, "t2": 0.2, OVERALL: pytest.approx(0.35)}  # of the reference method
    assert mean == {
        "t1": pytest.approx(0.2),
        OVERALL: pytest.approx(0.2),
    }  # of the first that has it
    marked = {labels[-1] for labels, _ in table.marks()}
    assert marked == {"AttCL-GAN", "StarGAN v2"}
    assert not completed_in_brain(study(), results, "psnr").rows


def test_completed_volumes_are_compared_case_by_case_in_the_brain():
    results = Results()
    volumes(results, "attcl-gan", t1=[0.8, 0.6], t2=[0.6])  # P0: 0.7, P1: 0.6
    volumes(results, "attcl-gan", COPY, t1=[0.5, 0.5], t2=[0.5])
    volumes(results, "stargan-v2", t1=[0.6, 0.4], t2=[0.6])  # P0: 0.6, P1: 0.4
    table = completed_differences(study(), results)
    found = {labels[-1]: row["all"] for labels, row in table.rows.items()}
    assert found["StarGAN v2"].mean == pytest.approx(-0.15)
    assert found["StarGAN v2"].low == pytest.approx(-0.2)
    assert found["StarGAN v2"].high == pytest.approx(-0.1)
    assert found["copy"].mean == pytest.approx(-0.15)
    assert [*found] == ["StarGAN v2", "copy"]  # the reference method differs from itself by nothing
    assert "2 test cases at most" in table.notes[-1]


def test_methods_are_ranked_by_what_they_completed_also_without_a_segmenter():
    results = Results()
    plan = study(
        methods={name: {"method": "unet", "title": name.upper()} for name in "abc"}, reference="a"
    )
    for place, name in enumerate("abc"):
        volumes(results, name, t1=[0.1 * place + 0.01 * n for n in range(5)])
    ranked = similarity_of_cases(plan, results, cell())
    assert [*ranked] == ["A", "B", "C"]
    drawn = critical_difference(ranked)
    assert drawn is not None
    assert "Mean ranks over 5 cases" in drawn[1]


def test_table_1_counts_what_is_left_of_the_first_seed():
    results = Results()
    results.counts[cell()] = {"train": {"cases": 4, "flair": 4, "t1": 0}}
    (row,) = counts(study(), results).rows.values()
    assert {heading: value.text() for heading, value in row.items()} == {
        "train total": "4",
        "train flair": "4",
        "train t1": "0",
    }


def test_costs_are_minutes_and_memory_of_each_method():
    results = Results()
    for seed, seconds in ((0, 60.0), (1, 180.0)):
        results.costs[cell(seed=seed), "train", "attcl-gan"] = Cost(seconds, 100.0 * (seed + 1))
    table = costs(study(seeds=[0, 1]), results)
    assert "train, GPU, MB" not in [column.heading for column in table.columns]
    row = table.rows[("AttCL-GAN",)]
    assert (row["train, minutes"].mean, row["train, MB"].mean) == (2.0, 200.0)
    assert "train, steps" not in row
    results.costs[cell(), "train", "attcl-gan"] = Cost(60.0, 100.0, "cuda:0", 4096.0, 250)
    table = costs(study(seeds=[0, 1]), results)
    assert table.rows[("AttCL-GAN",)]["train, GPU, MB"].mean == 4096.0
    assert [column.heading for column in table.columns][:4] == [
        *("train, steps", "train, minutes", "train, MB", "train, GPU, MB")
    ]
    assert table.rows[("AttCL-GAN",)]["train, steps"].text() == "250"


def test_a_table_without_a_value_is_left_out():
    assert all_tables(study(), Results(), PUBLISHED) == []


# --- What the paper published -----------------------------------------------------------------------------------------


def test_the_published_figures_agree_with_the_paper_s_own_means():
    """Table 2 gives six FID values; other-methods.md has their means: 64.42 of StarGAN v2, 48.66 of AttCL-GAN."""
    for method, mean in {"stargan-v2": 64.42, "attcl-gan": 48.66}.items():
        six = [
            value
            for (table, _, subset, of, _, metric), value in PUBLISHED.items()
            if (table, subset, of, metric) == ("2", "1", method, "fid")
        ]
        assert len(six) == 6
        assert sum(six) / 6 == pytest.approx(mean, abs=0.005)


def test_tables_3_and_4_of_the_paper_agree_where_they_overlap():
    for method in ("stargan-v2", "attcl-gan"):
        for metric in ("dice", "sens", "hd95", "iou"):
            for share in ("1", "1/8"):
                key = ("ratio1", share, method, "WT", metric)
                assert PUBLISHED["3", *key] == PUBLISHED["4", *key]


# --- Claims -----------------------------------------------------------------------------------------------------------


def verdicts(results: Results, plan: Study | None = None) -> dict[str, str]:
    return {claim.words.split(" (")[0]: claim.verdict for claim in claims(plan or study(), results)}


@pytest.mark.parametrize(
    ("cases", "gain", "expected"), [(6, 0.1, HOLDS), (6, -0.1, FAILS), (5, 0.1, OPEN)]
)
def test_a_claim_about_cases_needs_six_of_them_and_an_interval_without_0(cases, gain, expected):
    results = Results()
    dice(results, cell(), "attcl-gan", *(0.5 + gain + 0.01 * n for n in range(cases)))
    dice(results, cell(), "flair", *(0.5 + 0.01 * n for n in range(cases)))
    assert verdicts(results)["Completion is better than one modality alone"] == expected


def test_an_interval_of_few_cases_decides_nothing_if_flipped_signs_give_as_much():
    """The interval of a bootstrap lies above 0; of the 64 ways to flip 6 signs, 8 give a mean as far from 0."""
    results = Results()
    gains = (0.10, 0.06, 0.05, 0.04, -0.01, -0.02)
    dice(results, cell(), "attcl-gan", *(0.5 + gain for gain in gains))
    dice(results, cell(), "flair", *([0.5] * 6))
    value = paired(results, [cell()], "attcl-gan", "flair")
    flips = [abs(sum(map(operator.mul, signs, gains))) for signs in product((-1, 1), repeat=6)]
    assert value.low > 0
    assert value.p == pytest.approx(np.mean([it >= sum(gains) - 1e-9 for it in flips]))
    assert value.p > 0.05
    (claim,) = [it for it in claims(study(), results) if it.words.startswith("Completion is")]
    assert claim.verdict == OPEN
    assert f"p {value.p:.2g}" in claim.evidence
    assert "incomplete - w/o DA: no result" in claim.evidence


def test_an_interval_with_0_decides_nothing():
    results = Results()
    dice(results, cell(), "attcl-gan", *(0.5 + 0.1 * (-1) ** n for n in range(10)))
    dice(results, cell(), "flair", *([0.5] * 10))
    assert verdicts(results)["Completion is better than one modality alone"] == OPEN


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([(20.0, 30.0, 40.0)], OPEN),  # a single seed
        ([(20.0, 30.0, 40.0), (21.0, 30.0, 40.0)], HOLDS),
        ([(20.0, 30.0, 40.0), (50.0, 30.0, 40.0)], OPEN),  # they do not agree
        ([(50.0, 30.0, 40.0), (50.0, 30.0, 40.0)], FAILS),
    ],
)
def test_a_claim_about_distances_needs_two_seeds_that_agree(seeds, expected):
    results = Results()
    for seed, values in enumerate(seeds):
        for name, value in zip(("t2", "t1", "t1ce"), values, strict=True):
            key = (cell(seed=seed), "attcl-gan", f"flair->{name}", "fid", SYNTHETIC)
            results.figures[key] = (value, 94)
    plan = study(seeds=list(range(len(seeds))), metrics=["fid"], segment=None)
    found = verdicts(results, plan)
    assert {words: it for words, it in found.items() if "FLAIR" in words} == {
        "FLAIR to T2 is the easiest direction, FLAIR to T1ce the hardest": expected,
        "From FLAIR is easier than to FLAIR": OPEN,  # no direction to FLAIR has a result
    }


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"acl": 0.1, "att-adain": 0.1, "scd": 0.1}, HOLDS),
        ({"acl": 0.1, "att-adain": 0.1}, OPEN),
        ({"acl": 0.1, "att-adain": -0.1}, FAILS),
        ({}, OPEN),
    ],
)
def test_a_claim_about_many_does_not_hold_before_all_are_there(gains, expected):
    plan = study(
        methods={
            name: {"method": "attcl-gan", "variant": name}
            for name in ("attcl-gan", "stargan-v2", "acl", "att-adain", "scd")
        }
    )
    results = Results()
    for name, gain in {"stargan-v2": 0.0, **gains}.items():
        dice(results, cell(), name, *(0.5 + gain + 0.01 * n for n in range(6)))
    (claim,) = [it for it in claims(plan, results) if it.words.startswith("Each addition")]
    assert claim.verdict == expected
    assert claim.evidence.count("no result") == 3 - len(gains)


def test_each_claim_of_a_study_without_results_cannot_be_told():
    plan = study(ratios=["ratio1", "ratio3"], subsets=["1", "1/8"], metrics=["ssim", "fid"])
    found = claims(plan, Results())
    assert {claim.verdict for claim in found} == {OPEN}
    assert {claim.words.partition(" (")[2].partition(")")[0] for claim in found} == {
        *("5.2", "5.1.2 i", "5.1.2 v", "5.1.1 vi", "5.1.1 v", "5.3", "5.5", "ours")
    }
    found = claims(study(segment=None), Results())
    assert [claim.words.partition(" (")[2].partition(")")[0] for claim in found] == ["ours"] * 2


@pytest.mark.parametrize(("gain", "expected"), [(0.1, HOLDS), (-0.1, FAILS)])
def test_our_own_questions_need_no_segmenter(gain, expected):
    results = Results()
    base = [0.5 + 0.01 * n for n in range(6)]
    for name, prediction, value in (
        ("attcl-gan", SYNTHETIC, gain),
        ("attcl-gan", COPY, 0.0),
        ("stargan-v2", SYNTHETIC, 0.0),
    ):
        volumes(results, name, prediction, t1=[value + it for it in base])
    found = claims(study(segment=None), results)
    assert [claim.verdict for claim in found] == [expected, expected]
    assert "attcl-gan - copy" in found[0].evidence and "SSIM: " in found[0].evidence
    assert "matched" not in found[0].evidence  # of an earlier study, nobody scored it
    assert "attcl-gan - stargan-v2" in found[1].evidence


def test_scenarios_are_compared_case_by_case():
    results = Results()
    for ratio, level in (("ratio1", 0.5), ("ratio3", 0.7)):
        dice(results, cell(ratio=ratio), "attcl-gan", *(level + 0.01 * n for n in range(6)))
    found = verdicts(results, study(ratios=["ratio1", "ratio3"]))
    assert found["The fewer volumes are missing, the better"] == HOLDS


# --- Ranks ------------------------------------------------------------------------------------------------------------


def test_the_critical_difference_is_that_of_demsar_s_paper():
    """Demsar 2006, section 3.2.3: 4 methods, 14 data sets, alpha 0.05: 2.569 sqrt(4 5 / (6 14)) = 1.25."""
    values = {f"m{k}": {f"P{n}": (k + n) % 4 + 0.1 * k for n in range(14)} for k in range(4)}
    drawn = critical_difference(values)
    assert drawn is not None
    picture, words = drawn
    assert "critical difference 1.25" in words
    assert picture.startswith(b"\x89PNG")


def test_a_bar_joins_the_largest_groups_that_do_not_differ():
    assert cliques([1.0, 1.5, 2.4, 4.0], 1.0) == [(1.0, 1.5), (1.5, 2.4)]
    assert cliques([1.0, 2.0, 3.0], 0.5) == []
    assert cliques([1.0, 1.2, 1.4], 3.0) == [(1.0, 1.4)]


def test_too_few_methods_or_cases_are_not_ranked():
    assert critical_difference({"a": {"P": 1.0}, "b": {"P": 2.0}}) is None
    assert critical_difference({name: {"P": 1.0} for name in "abc"}) is None
    assert unranked({name: {"P": 1.0} for name in "abc"}) == (
        "3 methods with 1 test case in common; a ranking needs 3 methods and 5 cases"
    )
    assert unranked({name: dict.fromkeys("PQRSTU", 1.0) for name in "ab"}).startswith("2 methods")
    assert unranked({name: dict.fromkeys("PQRSTU", 1.0) for name in "abc"}) == ""
    assert unranked({"a": {"P": 1.0}}) == unranked({}) == ""  # nothing to compare


# --- Files ------------------------------------------------------------------------------------------------------------

TABLE = Table(
    "t",
    "A & B",
    ("method",),
    [Column("x_1", 1)],
    {
        ("50 %",): {"x_1": Value(0.5, sd=0.1, n=12, seeds=2)},
        ("other",): {"x_1": Value(0.25, n=3, seeds=1)},
        ("none",): {},
    },
)


def test_a_csv_has_a_line_per_value_in_full_precision():
    lines = list(csv.DictReader(io.StringIO(as_csv(TABLE))))
    assert lines[0] == {
        **{"method": "50 %", "column": "x_1", "mean": "0.5", "sd": "0.1"},
        **{"low": "", "high": "", "n": "12", "seeds": "2", "p": ""},
    }
    assert len(lines) == 2


def test_markdown_marks_the_best_bold_and_flags_few_cases():
    assert as_markdown(TABLE).splitlines()[2:7] == [
        "| method | x_1 |",
        "| --- | --- |",
        "| 50 % | **0.500 \u00b1 0.100** |",
        "| other | *0.250\u2020* |",
        "| none | \u2013 |",
    ]


def test_latex_is_booktabs_and_escapes_what_tex_reads():
    text = as_latex(TABLE)
    assert r"\caption{A \& B}" in text
    assert r"method & x\_1 \\" in text
    assert r"50 \% & \textbf{0.500 $\pm$ 0.100} \\" in text
    assert r"other & \underline{0.250$^\dagger$} \\" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    assert rf"\label{{tab:{TABLE.name}}}" in text
    marked = replace(TABLE, notes=["plain", "\u2020 few cases"])
    body, _, after = as_latex(marked).partition(r"\end{table}")
    assert r"\footnotesize $^\dagger$ few cases" in body
    assert "% plain" in after and "dagger" not in after


# --- Figure 3 ---------------------------------------------------------------------------------------------------------


def head(case: str, *methods: str) -> Panel:
    """Return a head of one bright slice, with what these methods made of it."""
    brain = np.zeros((3, 8, 8), bool)
    brain[1, 2:6, 2:6] = True
    level = np.where(brain, 200, 0).astype(np.uint8)
    made = [Tile(f"t1, {name}", level, SYNTHETIC_TILE) for name in methods]
    tiles = [Tile("flair, source", level), *made, Tile("t1, real", level, REAL_TILE)]
    return Panel(case, "flair", "t1", tiles, brain)


def test_figure_3_has_a_row_per_patient_and_a_column_per_method():
    one = figure_3([head("P$1$_", "AttCL-GAN", "PLAVE")])
    assert list(one) == ["AttCL-GAN, PLAVE"]
    width, height = size_of(one["AttCL-GAN, PLAVE"])
    # a method that lacks one patient has its column all the same
    (two,) = figure_3([head("P1", "AttCL-GAN", "PLAVE"), head("P2", "PLAVE")]).values()
    assert size_of(two)[0] == width
    assert size_of(two)[1] > 1.8 * height
    assert figure_3([]) == {}


def test_figure_3_of_many_methods_is_several_pictures():
    names = [f"m{number}" for number in range(8)]
    assert list(figure_3([head("P1", *names)])) == ["m0, m1, m2, m3, m4, m5", "m6, m7"]


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size
