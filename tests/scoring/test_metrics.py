"""The table of metrics: what a flag asks for, what a metric is called, and that a new one is one record."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
from helpers import fresh_python
from score_files import HIDDEN, figures_of, first_completed, rows_of, spoil

from attcl_cli.cli.score import with_metric_flags
from attcl_cli.errors import UsageError
from attcl_cli.scoring import feature_weights
from attcl_cli.scoring.metrics import (
    FID_NETWORKS,
    METRICS,
    WHOLE,
    Metric,
    VolumePair,
    default_metrics,
    flags,
    select,
)
from attcl_cli.scoring.run import score


def test_every_metric_is_found_by_its_name():
    assert {metric.name for metric in METRICS.values()} == set(METRICS)
    for name, metric in METRICS.items():
        assert name == metric.name
        assert metric.title and metric.description and metric.policy and metric.regions


def test_every_network_of_a_metric_is_one_that_we_have():
    networks = {metric.network for metric in METRICS.values()}
    assert networks == {"", *feature_weights.FILES, *FID_NETWORKS}


def test_the_table_is_read_without_numpy_and_torch():
    heavy = ["numpy", "scipy", "torch"]
    script = (
        f"import sys, attcl_cli.scoring.metrics; print([n for n in {heavy} if n in sys.modules])"
    )
    assert fresh_python("-c", script).strip() == "[]"


def test_without_flags_the_metrics_without_network_are_scored():
    without = ("ssim", "psnr", "nmse", "gms", "ssim-brasyn")
    assert select([]) == default_metrics() == without


@pytest.mark.parametrize(
    ("asked", "network", "names"),
    [
        (["psnr"], "inception", ("psnr",)),
        (["psnr", "ssim"], "inception", ("ssim", "psnr", "ssim-brasyn")),
        (["ssim-brasyn"], "inception", ("ssim-brasyn",)),
        (["fid", "kid"], "inception", ("fid", "kid")),
        (["kid", "fid"], "effnet-lite0", ("fd-effnet", "kd-effnet")),
        (["fd-effnet", "lpips"], "effnet-lite0", ("lpips", "fd-effnet")),
    ],
)
def test_a_flag_asks_for_the_metrics_of_the_chosen_network(asked, network, names):
    assert select(asked, fid_network=network) == names


@pytest.mark.parametrize("name", ["ssmi", "fd-effnet"])
def test_a_metric_that_there_is_not_is_refused(name):
    with pytest.raises(UsageError, match=f"'{name}', expected one of") as caught:
        select([name])
    assert caught.value.code == "unknown-metric"


def test_a_network_that_there_is_not_is_refused():
    with pytest.raises(UsageError) as caught:
        select(["fid"], fid_network="vgg")
    assert caught.value.code == "unknown-fid-network"


@pytest.mark.parametrize(
    ("name", "region", "label", "heading"),
    [
        ("ssim", "brain", "SSIM brain", "ssim"),
        ("psnr", "tumour", "PSNR tumour (dB)", "psnr dB"),
        ("ssim-brasyn", "healthy", "SSIM (BraSyn) healthy", "brasyn healthy"),
        ("lpips-diversity", "slices", "LPIPS diversity", "diversity"),
        ("fd-effnet", "slices", "FD (EfficientNet)", "fd-effnet"),
    ],
)
def test_pages_and_terminals_name_a_metric(name, region, label, heading):
    assert METRICS[name].label(region) == label
    assert METRICS[name].heading(region) == heading


def test_the_command_has_a_flag_per_metric(attcl):
    code, out, _ = attcl("score", "--help")
    assert code == 0
    for flag, description in flags().items():
        assert f"--{flag} " in out
        assert description.split()[0] in out
    assert " ".join(flags()) == "ssim psnr nmse gms lpips lpips-diversity fid kid"


# --- a new metric ---


def _mean_absolute_error(pair, masks):
    return {
        region: float(np.abs(pair.image - pair.truth)[mask].mean())
        for region, mask in masks.items()
        if region != WHOLE
    }


@pytest.fixture
def with_toy(monkeypatch):
    """Add a metric to the table: the mean absolute error."""
    toy = Metric(
        name="mae",
        title="MAE",
        description="Mean absolute error; lower is better.",
        policy="mean absolute error of scaled volumes; empty region: undefined",
        function=_mean_absolute_error,
        unit="window",
    )
    monkeypatch.setitem(METRICS, "mae", toy)


@pytest.mark.usefixtures("with_toy")
def test_a_new_metric_is_one_record(folders):
    spoil(first_completed(folders), lambda data: np.where(data > 0, data[::-1], 0))
    result = score(
        folders.ori, folders.cpl, truth=folders.truth, output=folders.scores, metrics=["mae"]
    )
    rows = {
        (row["case"], row["modality"]): float(row["value"])
        for row in rows_of(folders.scores)
        if (row["metric"], row["region"], row["prediction"]) == ("mae", "brain", "synthetic")
    }
    assert set(rows) == HIDDEN
    assert rows.pop(("Phantom_00000", "t2")) > 0.01
    assert set(rows.values()) == {0.0}
    figure = figures_of(folders.scores)["all", "synthetic", "mae", "brain"]
    assert figure["mean"] == pytest.approx(result.figure("mae").mean)
    assert (figure["unit"], figure["higher_is_better"], figure["n"]) == ("window", False, 4)
    assert figure["policy"].startswith("mean absolute error")
    page = (folders.scores / "report.html").read_text()
    assert "MAE brain (window)" in page and "MAE: mean absolute error of scaled volumes" in page
    ((case, modality), *_) = [  # of lower is better the largest is the worst
        (panel["case"], panel["target"])
        for panel in json.loads(page.partition('id="data">')[2].partition("</script>")[0])["panels"]
    ]
    assert (case, modality) == ("Phantom_00000", "t2")


@pytest.mark.usefixtures("with_toy")
def test_a_new_metric_is_scored_by_default_and_shown_on_a_terminal(scored):
    code, out, err = scored()
    assert code == 0, err
    assert {"mae", "window"} < set(out.split())  # its heading, in two lines
    assert "lower is better: NMSE, MAE" in err


@pytest.mark.usefixtures("with_toy")
def test_a_new_metric_has_a_flag():
    received = []

    def command(*, metrics: list[str], quiet: bool = False) -> None:
        received.append((metrics, quiet))

    flagged = with_metric_flags(command)
    assert [*inspect.signature(flagged).parameters] == [
        *("ssim", "psnr", "nmse", "gms", "lpips", "lpips_diversity", "fid", "kid", "mae", "quiet")
    ]
    off = {name.replace("-", "_"): False for name in flags()}
    flagged(**(off | {"mae": True, "lpips_diversity": True}), quiet=True)
    assert received == [(["lpips-diversity", "mae"], True)]


# --- functions ---


@pytest.mark.parametrize("name", ["ssim", "psnr", "nmse", "gms"])
def test_an_empty_region_is_what_the_policy_says(name):
    image = np.random.default_rng(0).random((12, 13, 14)).astype(np.float32)
    pair = VolumePair(image, image, image, image)
    values = METRICS[name].function(pair, {"tumour": np.zeros(image.shape, bool)})
    assert math.isnan(values["tumour"])
    assert "empty region: undefined" in METRICS[name].policy


def test_without_a_segmentation_the_challenges_similarity_has_no_region():
    image = np.ones((12, 13, 14), np.float32)
    pair = VolumePair(image, image, image, image)
    assert METRICS["ssim-brasyn"].function(pair, {"brain": image > 0, "whole": None}) == {}
