"""Figures count what is undefined, differences are paired by case, intervals cover what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from segmenters import json_in

from attcl_cli.errors import AttclError
from attcl_cli.files import write_csv
from attcl_cli.segmentation.summary import (
    Row,
    bootstrap,
    differences,
    read_rows,
    summarise,
    weights_of,
    write_summary,
)


def row(case: str, value: float, input_: str = "a", metric: str = "dice") -> Row:
    return Row(case, "WT", metric, value, input_)


def test_undefined_values_are_counted_and_not_averaged():
    figure = summarise([row("1", 0.5), row("2", math.nan), row("3", 0.7)])[0]
    assert (figure.mean, figure.n, figure.n_undefined) == (pytest.approx(0.6), 2, 1)
    assert math.isnan(summarise([row("1", math.nan)])[0].mean)


def test_the_standard_deviation_is_the_samples_and_undefined_for_one_value():
    rows = [row("1", 0.5), row("2", math.nan), row("3", 0.7)]
    assert summarise(rows)[0].sd == pytest.approx(0.02**0.5)  # 0.1^2 + 0.1^2 over n - 1 = 1
    assert math.isnan(summarise(rows[:2])[0].sd)


def test_a_figure_says_how_its_metric_is_read():
    figures = summarise([row("1", 2.0, metric="hd95"), row("1", 0.5, metric="dice-slice")])
    assert (figures[0].unit, figures[0].higher_is_better) == ("mm", False)
    assert figures[0].policy.startswith("a case is the unit")
    assert figures[1].policy.startswith("a slice is the unit")


def test_differences_are_paired_by_case():
    rows = [row("1", 0.5), row("2", 0.7), row("3", math.nan)]
    rows += [row("1", 0.4, "b"), row("2", 0.6, "b"), row("3", 0.1, "b")]
    (gap,) = differences(rows, [("a", "b"), ("a", "c")])
    assert gap.mean == pytest.approx(0.1) and (gap.n, gap.n_undefined) == (2, 1)
    assert (gap.low, gap.high) == (pytest.approx(0.1), pytest.approx(0.1)) and gap.clear


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(100):
        low, high = bootstrap(rng.normal(0.3, 1, size=40), seed=draw)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 100 <= 0.99
    assert all(math.isnan(value) for value in bootstrap(np.array([1.0])))


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [row("1", 0.5), row("2", math.nan)]
    write_csv(tmp_path / "segment.csv", Row, rows)
    first, second = read_rows(tmp_path / "segment.csv")
    assert first == rows[0]
    assert (second.case, math.isnan(second.value)) == ("2", True)


def test_the_summary_writes_nan_as_null(tmp_path):
    rows = [row("1", math.nan), row("1", math.nan, "b")]
    write_summary(
        tmp_path / "summary.json", summarise(rows), differences(rows, [("a", "b")]), {"key": 1}
    )
    document = json_in(tmp_path / "summary.json")
    assert document["key"] == 1 and document["schema_version"] == 1
    assert document["scores"][0]["mean"] is None and document["differences"][0]["low"] is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "case\nA\n",
        "case,region,metric,value,input\nA,WT,dice,much,completed\n",
        "case,region,metric,value,input\nA,WT,dice,1e999,completed\n",
        "case,region,metric,value,input\nA,WT,beauty,1,completed\n",
        "case,region,metric,value,input,more\nA,WT,dice,1,completed,x\n",
        "case,region,metric,value,input\nA,WT,dice,1,completed,x\n",
        'case,region,metric,value,input\n"A,WT\n',
        "case,region,metric,value,input\n" + "x" * 200_000 + ",WT,dice,1,completed\n",
    ],
)
def test_a_table_of_other_lines_is_an_error_that_names_it(text, tmp_path):
    path = tmp_path / "segment.csv"
    path.write_text(text)
    if not text:
        assert read_rows(path) == []
        return
    with pytest.raises(AttclError, match=r"segment\.csv: not readable as CSV") as caught:
        read_rows(path)
    assert caught.value.code == "table-unreadable"


def test_a_summary_of_other_types_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"sha256": "a", "of a newer version": 1}')
    assert weights_of(path) == "a"
    path.write_text('{"sha256": 1}')
    with pytest.raises(
        AttclError, match=r"summary\.json: sha256: found 1, expected a text"
    ) as caught:
        weights_of(path)
    assert caught.value.code == "invalid-summary"
