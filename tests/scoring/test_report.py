"""The page of scores: the worst volume first, a table by modality, notes on how each figure was measured."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from embedded import centre_of_labels, centre_of_region, embedded
from score_files import HIDDEN, first_completed, spoil

from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.files import read_csv
from attcl_cli.scoring import report, run
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.scoring.pairs import Comparison, plan_directions
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


def test_the_page_names_the_worst_volume_with_its_score(page, folders):
    rows = read_csv(folders.scores / "scores.csv")
    ssim = {
        (row["modality"], row["case"], row["source"]): float(row["value"])
        for row in rows
        if (row["metric"], row["region"], row["prediction"]) == ("ssim", "brain", "synthetic")
    }
    worst = min(ssim, key=lambda key: ssim[key])
    words = "{} of {} from {}".format(*worst)
    assert f"<dt>worst</dt><dd>{words}, SSIM brain {ssim[worst]:.3f}</dd>" in page


@pytest.mark.parametrize("values", [{}, {"SSIM brain": math.nan}])
def test_without_a_score_no_volume_is_the_worst(values):
    assert report._worst([("A", "flair", "t1")], {("A", "flair", "t1"): values}) == {}
    assert report._worst([], {}) == {}


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


def test_a_paragraph_and_the_publications_are_those_of_what_was_computed(page):
    paragraph = page.partition("<h2>Methods, for a paper</h2>")[2].partition("</p>")[0]
    count, cases = len(HIDDEN) - 1, len({case for case, _ in HIDDEN})
    assert f"{count} volumes of {cases} cases, synthesised, were compared" in paragraph
    assert "by SSIM, NMSE, SSIM (BraSyn) (attcl" in paragraph
    cited = page.partition("<h2>How to cite</h2>")[2].partition("</section>")[0]
    assert cited.count("Wang Z") == 1
    assert "Heusel" not in cited


def test_every_publication_is_of_a_metric():
    assert set(report._CITED) == set(METRICS) - {"psnr", "nmse"}


def test_of_many_volumes_the_worst_the_best_and_a_random_sample_have_pictures(folders, monkeypatch):
    monkeypatch.setattr(report, "_PICTURED", 3)
    spoil(first_completed(folders), lambda data: np.where(data > 0, data[::-1], 0))
    other = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.nii.gz"
    spoil(other, lambda data: np.where(data > 0, data + 0.1 * data.max(), 0))
    pages = []
    for _ in range(2):
        score(
            folders.ori,
            folders.cpl,
            truth=folders.truth,
            output=folders.scores,
            metrics=["nmse"],
        )
        pages.append((folders.scores / "report.html").read_text())
    data, again = (json.loads(re.search(r'id="data">(.*?)</script>', it)[1]) for it in pages)
    assert data == again
    panels = data["panels"]
    assert [panel["role"] for panel in panels] == ["worst", "best", "random sample"]
    rows = [
        row
        for row in read_csv(folders.scores / "scores.csv")
        if (row["prediction"], row["region"]) == ("synthetic", "brain")
    ]
    nmse = {(row["case"], row["modality"]): float(row["value"]) for row in rows}
    worst, best, random = ((panel["case"], panel["target"]) for panel in panels)
    assert nmse[worst] == max(nmse.values()) > nmse[random]
    assert nmse[best] == min(nmse.values())
    words = "Pictures of 3 of 4 volumes (worst: 1, best: 1, random sample: 1)."
    assert words in pages[0]


def test_without_scores_of_volumes_none_is_the_worst_or_the_best(folders):
    comparison = plan_directions(open_dataset(folders.truth), None)
    ranked, unranked = report._worst_first([], comparison)
    assert (ranked, len(unranked)) == ([], comparison.volumes)


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


def test_the_verdict_counts_the_volumes_that_are_better_than_a_copy(page, folders):
    rows = [row for row in read_csv(folders.scores / "scores.csv") if row["region"] == "brain"]
    ssim = {
        (row["prediction"], row["case"], row["modality"]): float(row["value"])
        for row in rows
        if row["metric"] == "ssim"
    }
    volumes_scored = [key[1:] for key in ssim if key[0] == "synthetic"]
    better = sum(ssim["synthetic", *key] > ssim["copy", *key] for key in volumes_scored)
    best = sum(
        all(
            ssim["synthetic", *key] > ssim.get((name, *key), -1)
            for name in ("copy", "matched-copy", "mean")
        )
        for key in volumes_scored
    )
    words = f"Better than a copy of the most similar source in {better} of {len(volumes_scored)} volumes"
    words += f", than every baseline in {best} (SSIM brain)." if best < better else " (SSIM brain)."
    assert f'<p class="verdict">{words}</p>' in page


@pytest.mark.parametrize(
    ("made", "copy", "lower", "words"),
    [
        ({"flair": 0.5}, {"flair": 0.4}, [], "source in 1 of 1 volume (SSIM)"),
        ({"flair": 0.5}, {"flair": 0.4}, ["SSIM"], "source in 0 of 1 volume (SSIM)"),
        ({"flair+t1": 0.5}, {"flair+t1": 0.6}, [], "source in 0 of 1 volume (SSIM)"),
        ({"flair": 0.5, "t1": math.nan}, {"flair": 0.5, "t1": 0.1}, [], "in 0 of 1 volume"),
        ({"flair": 0.5}, {}, [], ""),
    ],
)
def test_the_verdict_of_few_volumes(made, copy, lower, words):
    scores, copies = (
        {("A", source, "t2"): {"SSIM": value} for source, value in values.items()}
        for values in (made, copy)
    )
    verdict = report._verdict(scores, copies, lower)
    assert words in verdict if words else verdict == ""


@pytest.mark.parametrize(
    ("mean", "lower", "words"),
    [
        ([0.6, 0.1], [], "source in 2 of 2 volumes, than every baseline in 1 (SSIM)"),
        ([0.1, 0.1], [], "source in 2 of 2 volumes (SSIM)"),
        ([0.5, 0.9], ["SSIM"], "source in 0 of 2 volumes (SSIM)"),
    ],
)
def test_the_verdict_says_which_of_them_are_not_better_than_every_baseline(mean, lower, words):
    def table(values):
        return {("A", str(number), "t2"): {"SSIM": each} for number, each in enumerate(values)}

    verdict = report._verdict(table([0.5, 0.5]), table([0.4, 0.4]), lower, [table(mean), {}])
    assert verdict.endswith(words)


def test_each_volume_is_shown_beside_its_source_the_truth_and_the_difference(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    for panel in data["panels"]:
        kinds = [tile["kind"] for tile in panel["tiles"]]
        assert kinds == ["source", "synthetic", "real", "difference"]
        assert [outline["name"] for outline in panel["outlines"]] == ["tumour"]


def test_niivue_has_the_worst_volume_in_whole_where_its_file_lies(folders):
    spoil(first_completed(folders), lambda data: np.where(data > 0, data[::-1], 0))
    score(
        folders.ori,
        folders.cpl,
        truth=folders.truth,
        output=folders.scores,
        metrics=["ssim"],
        viewer="niivue",
    )
    document = embedded(folders.scores / "report.html")
    worst = document["panels"][0]
    assert (worst["case"], len(document["panels"])) == ("Phantom_00000", 3)
    kinds = [volume["kind"] for volume in worst["volumes"]]
    assert kinds == ["source", "synthetic", "real"]
    labels = folders.truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz"
    np.testing.assert_allclose(
        centre_of_region(document, "tumour"), centre_of_labels(labels), atol=1e-3
    )


def test_training_patients_among_the_scored_are_named_wherever_the_scores_are(
    scored, folders, tmp_path
):
    document = {
        "command": "complete",
        "weights": {"name": "w", "sha256": "a" * 64},
        "trained_on": ["Phantom_00001", "Phantom_00002", "Phantom_00009"],  # two of them not scored
    }
    (folders.cpl / "run.json").write_text(json.dumps(document))
    words = "1 of 3 patients is a training patient of the weights"
    code, out, err = scored("--ssim")
    assert (code, err.count(f"note: {words}, by name (Phantom_00001)")) == (0, 1)
    page = (folders.scores / "report.html").read_text()
    assert f"(SSIM brain); {words}.</p>" in page
    paragraph = page.partition("<h2>Methods, for a paper</h2>")[2].partition("</p>")[0]
    assert f"By their names, {words}: such volumes look better" in paragraph
    assert json.loads((folders.scores / "run.json").read_text())["training_patients"] == [
        "Phantom_00001"
    ]
    assert json.loads(scored("--ssim", "--json")[1])["training_patients"] == ["Phantom_00001"]
    document["trained_on"] = ["Phantom_00009"]
    (folders.cpl / "run.json").write_text(json.dumps(document))
    code, out, err = scored("--ssim")
    assert "training patient" not in out + err + (folders.scores / "report.html").read_text()
    assert json.loads((folders.scores / "summary.json").read_text())["training_patients"] == []


def test_without_a_record_it_is_not_known_whether_training_patients_are_among_the_scored(
    scored, folders
):
    code, _, err = scored("--ssim")
    assert (
        code,
        "whether the weights were trained on some of these patients is not known" in err,
    ) == (0, True)
    for name in ("summary.json", "run.json"):
        assert json.loads((folders.scores / name).read_text())["training_patients"] is None
    page = (folders.scores / "report.html").read_text()
    assert "Whether the weights were trained on some of these patients is not known." in page


def test_weights_that_translate_in_every_direction_have_training_patients_too(folders):
    comparison = plan_directions(open_dataset(folders.truth), None)
    chosen = SimpleNamespace(name="w", info=SimpleNamespace(trained_on=["Phantom_00002", "Other"]))
    truth = open_dataset(folders.truth)
    found = run._with_training_patients(comparison, folders.cpl, truth, chosen)
    assert found.seen == ("Phantom_00002",)
    assert found.caveat == "1 of 4 patients is a training patient of the weights"
    chosen.name = "phantom-tiny"
    assert run._with_training_patients(comparison, folders.cpl, truth, chosen).seen == ()


def test_the_terminal_ends_with_the_verdict_of_the_page_and_the_worst_volume(scored, folders):
    spoil(first_completed(folders), lambda data: np.where(data > 0, data[::-1], 0))
    _, out, _ = scored("--ssim", "--nmse")
    page = (folders.scores / "report.html").read_text()
    verdict = re.search(r'<p class="verdict">(.*)\.</p>', page)[1]
    worst = re.search(r"<dt>worst</dt><dd>(.*)</dd>", page)[1]
    assert worst.startswith("t2 of Phantom_00000 from ")
    end = " ".join(out.splitlines()[:-1])  # the last line is the page
    assert end.endswith(f" {verdict}; worst: {worst}")


@pytest.mark.parametrize(("maker", "seen"), [("a", ["Phantom_00001"]), ("b", [])])
def test_other_weights_than_those_of_the_side_cars_do_not_count(maker, seen, folders):
    weights = {"name": "w", "sha256": "a" * 64}
    document = {"command": "complete", "weights": weights, "trained_on": ["Phantom_00001"]}
    (folders.cpl / "run.json").write_text(json.dumps(document))
    for name in ("t1", "t1ce"):
        side_car = {"synthetic": True, "weights": weights | {"sha256": maker * 64}}
        path = folders.cpl / "Phantom_00001" / f"Phantom_00001_{name}.json"
        path.write_text(json.dumps(side_car))
    result = score(
        folders.ori, folders.cpl, truth=folders.truth, output=folders.scores, metrics=["psnr"]
    )
    assert list(result.comparison.seen) == seen


def test_without_a_score_the_terminal_has_no_verdict():
    assert report.describe_result([], Comparison((), (), Path())) == ""
    assert report._sentence("", "") == ""
