"""The page of scores: the worst volume first, a table by modality, notes on how each figure was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from score_files import HIDDEN, first_completed, spoil

from attcl_cli.data import volumes
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.scoring.run import score


@pytest.fixture
def page(folders) -> str:
    """Score a dataset whose first t2 is spoiled, and whose second case lacks its t1; return the page."""
    spoil(first_completed(folders), lambda data: np.where(data > 0, data[::-1], 0))
    (folders.cpl / "Phantom_00001" / "Phantom_00001_t1.nii.gz").unlink()
    score(
        folders.ori,
        folders.cpl,
        truth=folders.truth,
        output=folders.scores,
        metrics=["ssim", "nmse"],
        allow_missing=True,
    )
    return (folders.scores / "report.html").read_text()


def test_the_page_shows_the_worst_volume_first_and_names_what_is_missing(page):
    table = page.partition('<section id="cases">')[2].partition("</tbody>")[0]
    cases = re.findall(r'title="(Phantom_\d+)"', table)
    assert cases[0] == "Phantom_00000"
    assert len(cases) == len(HIDDEN) - 1
    assert "t1 of Phantom_00001" in page


def test_the_table_has_a_row_per_modality_and_prediction_and_no_background(page):
    table = page.partition("<h2>Scores</h2>")[2].partition("</table>")[0]
    heads = re.findall(r'<th scope="col">([^<]*)', table)
    assert heads[:3] == ["modality", "prediction", "volumes"]
    assert set(heads[3:]) == {
        *("SSIM brain", "SSIM tumour", "NMSE brain", "NMSE tumour"),
        *("SSIM (BraSyn) healthy", "SSIM (BraSyn) tumour"),
    }
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td>", table)
    predictions = ("synthetic", "copy", "mean", "zeros")
    assert rows[-4:] == [("all", prediction) for prediction in predictions]
    assert "flair-&gt;" not in table  # every target has one source: its own row shows the same


def test_the_notes_are_the_policies(page):
    for name in ("ssim", "nmse", "ssim-brasyn"):
        metric = METRICS[name]
        assert f"{metric.title}: {metric.policy}."[:60] in page.replace("&#39;", "'")


def test_a_case_is_read_once_for_its_scores_and_once_for_its_pictures(folders, monkeypatch):
    reads: list[Path] = []
    load = volumes.load

    def counting(paths, **options):
        reads.append(paths[0])
        return load(paths, **options)

    monkeypatch.setattr(volumes, "load", counting)
    score(
        folders.ori,
        folders.cpl,
        truth=folders.truth,
        output=folders.scores,
        metrics=["psnr"],
        num_workers=0,
    )
    assert {reads.count(path) for path in reads} == {2}
