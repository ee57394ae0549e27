"""The figures of groups, from rows that one can check by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attcl_cli.scoring.metrics import METRICS
from attcl_cli.scoring.pairs import CasePairs, Comparison, Pair
from attcl_cli.scoring.rows import Measures, Row
from attcl_cli.scoring.summary import (
    SIX_DIRECTIONS,
    Figure,
    groups_of,
    left_out_of_tumour,
    measured,
    redundant_directions,
    summarise,
    warn_of_few_slices,
    write_summary,
)

NOTHING_MISSING = Comparison((), (), Path("truth"))


def row(value: float, *, modality: str = "t2", source: str = "flair", **changes) -> Row:
    fields = {"case": "A", "region": "brain", "metric": "ssim"} | changes
    return Row(modality=modality, source=source, value=value, **fields)


def summary_of(rows, folder, *, missing=(), metrics=("ssim",)) -> dict[tuple[str, ...], Figure]:
    comparison = Comparison((), tuple(missing), Path("truth"))
    figures = summarise(rows, comparison, Measures(metrics), folder=folder)
    return {(it.group, it.prediction, it.metric, it.region): it for it in figures}


def test_a_figure_holds_mean_deviation_of_the_sample_and_median(tmp_path):
    figures = summary_of([row(value) for value in (0.2, 0.3, 0.7)], tmp_path)
    figure = figures["all", "synthetic", "ssim", "brain"]
    assert figure.mean == pytest.approx(0.4)
    assert figure.sd == pytest.approx(math.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2))
    assert figure.median == pytest.approx(0.3)
    assert (figure.n, figure.n_missing, figure.n_undefined, figure.n_infinite) == (3, 0, 0, 0)
    assert (figure.unit, figure.higher_is_better) == ("1", True)
    assert figure.policy == METRICS["ssim"].policy


def test_a_volume_counts_in_all_in_its_modality_and_in_its_direction(tmp_path):
    assert groups_of("flair+t1", "t2") == ("all", "t2", "flair+t1->t2")
    figures = summary_of([row(0.25), row(0.75, modality="t1"), row(0.5, source="t1")], tmp_path)
    means = {key[0]: figure.mean for key, figure in figures.items()}
    assert means == {
        "t1": 0.75,
        "t2": 0.375,
        "flair->t1": 0.75,
        "flair->t2": 0.25,
        "t1->t2": 0.5,
        "all": 0.5,
    }
    assert list(means)[-1] == "all"


def test_the_deviation_of_one_value_is_undefined(tmp_path):
    assert math.isnan(summary_of([row(0.5)], tmp_path)["all", "synthetic", "ssim", "brain"].sd)


def test_values_that_are_not_finite_are_counted_and_left_out_of_the_mean(tmp_path):
    values = [0.5, math.nan, math.inf, math.nan]
    figure = summary_of([row(value) for value in values], tmp_path)[
        "t2", "synthetic", "ssim", "brain"
    ]
    assert (figure.mean, figure.n, figure.n_undefined, figure.n_infinite) == (0.5, 1, 2, 1)


def test_predictions_and_regions_are_kept_apart(tmp_path):
    rows = [row(0.5), row(0.1, prediction="copy"), row(0.9, region="whole")]
    figures = summary_of(rows, tmp_path)
    assert figures["all", "synthetic", "ssim", "brain"].mean == 0.5
    assert figures["all", "copy", "ssim", "brain"].mean == 0.1
    assert figures["all", "synthetic", "ssim", "whole"].mean == 0.9


def test_missing_volumes_are_counted_beside_the_synthetic_ones_alone(tmp_path):
    rows = [row(0.5), row(0.1, prediction="copy")]
    figures = summary_of(rows, tmp_path, missing=[("B", "t2"), ("B", "t1")])
    assert figures["t2", "synthetic", "ssim", "brain"].n_missing == 1
    assert figures["all", "synthetic", "ssim", "brain"].n_missing == 2
    assert figures["t2", "copy", "ssim", "brain"].n_missing == 0


def test_a_modality_of_which_nothing_is_there_keeps_its_figures(tmp_path):
    metrics = ("ssim", "ssim-brasyn")
    figures = summary_of([row(0.5)], tmp_path, missing=[("B", "t1")], metrics=metrics)
    for metric, region in (
        ("ssim", "brain"),
        ("ssim-brasyn", "tumour"),
        ("ssim-brasyn", "healthy"),
    ):
        figure = figures["t1", "synthetic", metric, region]
        assert math.isnan(figure.mean)
        assert (figure.n, figure.n_missing) == (0, 1)


def test_figures_are_in_the_order_of_the_metrics(tmp_path):
    rows = [row(20.0, metric="psnr"), row(0.5), row(0.1, metric="nmse")]
    figures = summary_of(rows, tmp_path, metrics=("ssim", "psnr", "nmse"))
    assert [key[2] for key in figures if key[0] == "all"] == ["ssim", "psnr", "nmse"]
    assert measured(list(figures.values())) == [
        ("ssim", "brain"),
        ("psnr", "brain"),
        ("nmse", "brain"),
    ]


def test_the_file_holds_null_for_what_is_not_finite(tmp_path):
    figures = list(summary_of([row(math.inf)], tmp_path).values())
    comparison = Comparison((), (("B", "t1"),), Path("truth"))
    write_summary(tmp_path / "summary.json", figures, comparison, split="test")
    document = json.loads((tmp_path / "summary.json").read_text())
    assert (document["schema_version"], document["split"], document["volumes"]) == (1, "test", 0)
    assert document["missing"] == [{"case": "B", "modality": "t1"}]
    for item in document["scores"]:
        assert (item["mean"], item["sd"], item["n_infinite"]) == (None, None, 1)


def test_a_direction_is_redundant_if_its_target_has_no_other_source(tmp_path):
    rows = [row(0.5), row(0.5, source="t1"), row(0.5, modality="t1")]
    assert redundant_directions(list(summary_of(rows, tmp_path).values())) == {"flair->t1"}


# --- the six directions of Table 2 ---


def directions(values: dict[str, float], **changes) -> list[Row]:
    return [
        row(value, source=source, modality=target, **changes)
        for direction, value in values.items()
        for source, _, target in [direction.partition("->")]
    ]


def by_direction(rows, folder, **options) -> dict[tuple[str, ...], Figure]:
    """The figures of volumes that a network makes: none of them is read."""
    case = CasePairs("A", ("flair",), {}, (Pair("t1", (Path("t1"),), ()),), ())
    comparison = Comparison((case,), (), Path("truth"))
    figures = summarise(rows, comparison, Measures(("ssim", "psnr")), folder=folder, **options)
    return {(it.group, it.prediction, it.metric, it.region): it for it in figures}


VALUES = dict(zip(SIX_DIRECTIONS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.9), strict=True))


def test_the_mean_of_table_2_is_that_of_six_directions_each_counted_once(tmp_path):
    assert set(SIX_DIRECTIONS) == {
        *("flair->t1", "flair->t1ce", "flair->t2"),
        *("t1->flair", "t1ce->flair", "t2->flair"),
    }
    others = directions({"t1->t2": 0.0, "t2->t1": 0.0})  # no directions of the table
    again = directions({"flair->t1": 0.3})  # its mean is 0.2: with two volumes, it counts no more
    figures = by_direction([*directions(VALUES), *others, *again], tmp_path)
    six = figures["six-directions", "synthetic", "ssim", "brain"]
    values = [0.2, 0.2, 0.3, 0.4, 0.5, 0.9]
    assert six.mean == pytest.approx(np.mean(values))
    assert six.sd == pytest.approx(np.std(values, ddof=1))
    assert (six.median, six.n) == (pytest.approx(0.35), 6)
    assert [key[0] for key in figures][-2:] == ["six-directions", "all"]


def test_each_prediction_has_a_mean_of_its_own(tmp_path):
    halves = {name: value / 2 for name, value in VALUES.items()}
    rows = [*directions(VALUES), *directions(halves, prediction="copy")]
    figures = by_direction(rows, tmp_path)
    means = [
        figures["six-directions", name, "ssim", "brain"].mean for name in ("synthetic", "copy")
    ]
    assert means == pytest.approx([0.4, 0.2])


def test_without_all_six_directions_there_is_no_mean_of_them(tmp_path):
    five = {name: value for name, value in VALUES.items() if name != "t2->flair"}
    assert ("six-directions", "synthetic", "ssim", "brain") not in by_direction(
        directions(five), tmp_path
    )


def test_a_direction_without_a_value_leaves_the_mean_undefined_and_is_counted(tmp_path):
    figures = by_direction(directions(VALUES | {"t1->flair": math.nan}), tmp_path)
    six = figures["six-directions", "synthetic", "ssim", "brain"]
    assert math.isnan(six.mean) and (six.n, six.n_undefined) == (5, 1)


def test_completed_volumes_have_no_table_2(tmp_path):
    assert not any(key[0] == "six-directions" for key in summary_of(directions(VALUES), tmp_path))


# --- cases without tumour ---


def test_what_has_no_score_in_the_tumour_is_counted_and_said_with_the_reason(tmp_path):
    def pairs_of(case: str, segmentation: tuple[Path, ...]) -> CasePairs:
        pairs = tuple(Pair(name, (Path(name),), (Path("made"),)) for name in ("t1", "t2"))
        return CasePairs(case, ("flair",), {}, pairs, segmentation)

    cases = (pairs_of("A", (Path("seg"),)), pairs_of("B", (Path("seg"),)), pairs_of("C", ()))
    tumour = {"A": 0.5, "B": math.nan}  # B's label map is empty, C has none
    rows = [
        row(value, case=case, modality=name, region="tumour")
        for case, value in tumour.items()
        for name in ("t1", "t2")
    ]
    rows += [row(0.9, case=case, modality=name) for case in "ABC" for name in ("t1", "t2")]
    figures = summarise(
        rows, Comparison(cases, (), Path("truth")), Measures(("ssim",)), folder=tmp_path
    )
    counts = {
        (it.group, it.region): (it.n, it.n_undefined, it.n_unsegmented)
        for it in figures
        if it.group in {"all", "t2"}
    }
    assert counts == {
        ("all", "brain"): (6, 0, 0),
        ("all", "tumour"): (2, 2, 2),
        ("t2", "brain"): (3, 0, 0),
        ("t2", "tumour"): (1, 1, 1),
    }
    assert left_out_of_tumour(figures) == [
        "the tumour is scored in 2 of 6 volumes; left out: 2 without tumour and 2 of cases without a label map"
    ]


def test_nothing_is_said_if_every_volume_has_a_score_in_the_tumour(tmp_path):
    figures = summary_of([row(0.5, region="tumour"), row(0.9)], tmp_path)
    assert left_out_of_tumour(list(figures.values())) == []


# --- distances of sets ---


class MeanGrey:
    """A network whose only feature is the mean of a slice."""

    name, sha256, dim = "mean", "0" * 64, 1

    def __call__(self, slices: torch.Tensor) -> torch.Tensor:
        return slices.mean(dim=(1, 2, 3))[:, None]


def test_the_distance_of_sets_is_the_closed_form_of_one_feature(tmp_path):
    measures = Measures(("fd-effnet",), embed=MeanGrey())
    store = measures.store(tmp_path)
    real, predicted = np.array([10, 20, 60]), np.array([30, 50, 190])
    for source, target in (("flair", "t1"), ("t2", "t1")):
        origin = {"source": source, "modality": target, "prediction": "synthetic"}
        slices = (
            np.tile(greys[:, None, None], (1, 4, 4)).astype(np.uint8) for greys in (real, predicted)
        )
        store.add(origin, *slices)
    figures = {
        figure.group: figure for figure in summarise([], NOTHING_MISSING, measures, folder=tmp_path)
    }
    x, y = real / 255, predicted / 255
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert figures["flair->t1"].mean == pytest.approx(expected, rel=1e-5)
    assert set(figures) == {"t1", "flair->t1", "t2->t1", "all"}
    assert figures["all"].n == 6
    assert math.isnan(figures["all"].sd) and math.isnan(figures["all"].median)
    assert (figures["all"].network, figures["all"].region) == ("mean", "slices")


def test_samples_are_compared_with_every_real_slice_once(tmp_path):
    measures = Measures(("fd-effnet",), embed=MeanGrey(), samples=2)
    store = measures.store(tmp_path)
    real, first, second = np.array([10, 20, 60]), np.array([30, 50, 190]), np.array([0, 90, 250])
    origin = {"source": "flair", "modality": "t1", "prediction": "samples"}
    slices = [
        np.tile(greys[:, None, None], (1, 4, 4)).astype(np.uint8) for greys in (real, first, second)
    ]
    store.add(origin, slices[0], slices[1])
    store.add(origin, None, slices[2])
    figures = {
        figure.group: figure for figure in summarise([], NOTHING_MISSING, measures, folder=tmp_path)
    }
    x, y = real / 255, np.concatenate([first, second]) / 255
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert figures["flair->t1"].mean == pytest.approx(expected, rel=1e-5)
    assert (figures["all"].n, figures["all"].prediction) == (6, "samples")
    assert figures["all"].policy.endswith("; 2 style samples per volume")


def test_one_slice_has_no_distance(tmp_path):
    measures = Measures(("fd-effnet", "kd-effnet"), embed=MeanGrey())
    origin = {"source": "flair", "modality": "t1", "prediction": "synthetic"}
    one = np.zeros((1, 4, 4), np.uint8)
    measures.store(tmp_path).add(origin, one, one)
    figures = summarise([], NOTHING_MISSING, measures, folder=tmp_path)
    assert all(math.isnan(figure.mean) for figure in figures)
    assert {figure.n for figure in figures} == {1}


def distance(metric: str, n: int) -> Figure:
    return Figure("all", "synthetic", metric, "slices", 1.0, math.nan, math.nan, n)


def test_few_slices_are_warned_of_if_the_distance_depends_on_their_number():
    assert warn_of_few_slices([distance("fid", 2048), distance("kid", 12)]) == []
    (note,) = warn_of_few_slices([distance("fid", 500), distance("fid", 700)])
    assert note.startswith("FID of as few as 500 slices: below 2048")
    assert note.endswith("and see --kid")
    (note,) = warn_of_few_slices([distance("fd-effnet", 500), distance("kd-effnet", 500)])
    assert note.startswith("FD (EfficientNet)")
    assert not note.endswith("--kid")
