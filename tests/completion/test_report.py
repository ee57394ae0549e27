"""The page of a completion: what it shows, what it says, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from completers import LACKING, content, phantom_file
from embedded import centre_of_labels, centre_of_region, embedded

import attcl_cli
from attcl_cli.completion import provenance, report
from attcl_cli.completion.run import complete
from attcl_cli.data import volumes
from attcl_cli.errors import AttclError
from attcl_cli.methods import bundled


@pytest.fixture
def arguments(gappy: Any, weights: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "ori": gappy(lacking=LACKING),
        "cpl": tmp_path / "out",
        "weights": weights.path,
        "device": "cpu",
    }


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script reads."""
    text = page.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


def set_doubt(folder: Path, file: str, **doubt: Any) -> None:
    path = folder / file.replace(".nii.gz", ".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"doubt": doubt}))


def test_each_volume_is_shown_beside_its_sources_and_no_truth(arguments):
    result = complete(**arguments)
    assert result.page == arguments["cpl"] / "report.html"
    panels = data_of(result.page)["panels"]
    assert len(panels) == 7
    for panel in panels:
        assert [tile["kind"] for tile in panel["tiles"]] == ["source", "synthetic"]
        assert panel["tiles"][0]["caption"] == f"{panel['source']}, source"


def test_the_page_says_how_many_volumes_of_how_many_cases_which_weights_made(arguments, weights):
    text = complete(**arguments).page.read_text()
    assert f"7 volumes of 3 cases, made by {weights.name}." in text
    assert f"SHA-256 {weights.sha256[:12]}" in text
    assert "AttCL-GAN: Attentional contrastive learning" in text  # what to cite
    assert "The real volumes are not known" in text


@pytest.mark.parametrize(
    ("options", "expected", "untrue"),
    [
        ({}, "Axial slices were translated.", "coronal"),
        ({"planes": "three"}, "Axial, coronal and sagittal slices were translated", "Axial slices"),
        ({"samples": 2}, "The mean of 2 style samples was written.", "coronal"),
        ({"slices": (5, 20)}, "Axial slices 5 to 19 were translated.", "style sample"),
        ({"mirror": True}, "their mirror images were averaged", "coronal"),
        ({}, "carry the intensity range of their modality.", "stretched"),
        (
            {"intensities": "stretched"},
            "were stretched to the ends of the training volumes.",
            "carry the intensity range",
        ),
        ({"even": True}, "Steps between neighbouring slices were evened out.", "mirror images"),
    ],
)
def test_the_methods_paragraph_says_how_this_run_made_volumes(arguments, options, expected, untrue):
    text = complete(**arguments, **options).page.read_text()
    paragraph = text[text.index("were synthesised with attcl") :].partition("</p>")[0]
    assert expected in paragraph
    assert untrue not in paragraph


def test_volumes_of_some_slices_show_these_alone(arguments):
    text = complete(**arguments, slices=(10, 14)).page.read_text()
    assert "7 volumes were made in slices 10:14 only." in text
    assert "Of a volume that was made in some slices only, these are shown." in text
    panels = data_of(arguments["cpl"] / "report.html")["panels"]
    assert {len(panel["slices"]) for panel in panels} == {4}


def test_the_result_is_short_in_a_notebook(arguments):
    shown = repr(complete(**arguments))
    assert "written=7" in shown
    assert len(shown) < 500


def test_a_rule_for_sources_is_claimed_only_if_all_volumes_follow_it(arguments, monkeypatch):
    rule = "the most frequent one that the case has"
    assert rule in complete(**arguments).page.read_text()
    (arguments["cpl"] / "report.html").unlink()
    made = report.volumes_made
    monkeypatch.setattr(
        report,
        "volumes_made",
        lambda plan: [
            dataclasses.replace(it, sources=("t1",)) if it.target == "t1ce" else it
            for it in made(plan)
        ],
    )
    assert rule not in complete(**arguments).page.read_text()


def test_the_largest_distance_comes_first_and_what_is_far_is_named(arguments):
    complete(**arguments)
    out = arguments["cpl"]
    set_doubt(out, phantom_file(1, "t1"), disagreement=0.01, distance=5.0, far=True)
    set_doubt(out, phantom_file(3, "t1ce"), disagreement=0.09, distance=2.0, far=False)
    (out / "report.html").unlink()
    page = complete(**arguments).page  # nothing is left to do, and the page is written again
    shown = [(panel["case"], panel["target"]) for panel in data_of(page)["panels"]]
    assert shown[:2] == [("Phantom_00001", "t1"), ("Phantom_00003", "t1ce")]
    assert data_of(page)["order"] == "most doubt first"
    text = page.read_text()
    assert "1 case unlike the training data (Phantom_00001): check these first." in text


def verdict_of(page: Path) -> str:
    return re.search(r'<p class="verdict">(.*)</p>', page.read_text())[1]


def test_if_nothing_is_far_the_headline_names_the_farthest_volume(arguments):
    complete(**arguments)
    out = arguments["cpl"]
    places = [(case, name) for case, names in enumerate(LACKING) for name in names]
    for case, name in places:
        set_doubt(out, phantom_file(case, name), disagreement=0.01, distance=1.0, far=False)
    set_doubt(out, phantom_file(3, "t1ce"), disagreement=0.01, distance=2.0, far=False)
    (out / "report.html").unlink()
    words = "No case is unlike the training data; farthest from it: t1ce of Phantom_00003."
    assert verdict_of(complete(**arguments).page).endswith(words)
    set_doubt(out, phantom_file(1, "t1"))  # of one volume nothing is known: nothing is claimed
    (out / "report.html").unlink()
    assert "training data" not in verdict_of(complete(**arguments).page)


def test_training_patients_are_named_under_the_headline_also_after_a_kill(arguments, monkeypatch):
    monkeypatch.setattr(bundled, "kind_of", lambda _path: "patients")
    monkeypatch.setattr(provenance, "training_cases", lambda cases, *_: sorted(cases)[:2])
    page = complete(**arguments).page
    whole = page.read_bytes()
    words = "2 of 3 patients are training patients of the weights."
    assert verdict_of(page).endswith(words)
    assert "Phantom_00000, Phantom_00001: by their names among the patients" in page.read_text()
    (arguments["cpl"] / phantom_file(3, "t1")).unlink()
    page.unlink()
    assert complete(**arguments).page.read_bytes() == whole


def test_figures_of_doubt_are_rounded_once(arguments):
    """Not to 0.87 first and then to 0.870."""
    complete(**arguments)
    set_doubt(arguments["cpl"], phantom_file(1, "t1"), disagreement=0.0126, distance=0.8734)
    (arguments["cpl"] / "report.html").unlink()
    page = complete(**arguments).page
    first = data_of(page)["panels"][0]["scores"]
    assert {it["name"]: it["value"] for it in first} == {
        "disagreement": "0.013",
        "distance": "0.873",
    }


def loaded_by(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that the first file of each volume is added to when it is read."""
    loaded: list[Path] = []
    load = volumes.load
    monkeypatch.setattr(
        volumes, "load", lambda paths, **options: loaded.append(paths[0]) or load(paths, **options)
    )
    return loaded


def test_of_many_volumes_the_most_and_the_least_doubtful_and_a_random_sample_are_read_once(
    arguments, monkeypatch
):
    complete(**arguments)
    places = [(case, name) for case, names in enumerate(LACKING) for name in names]
    for distance, place in enumerate(places):
        set_doubt(arguments["cpl"], phantom_file(*place), distance=distance, far=False)
    monkeypatch.setattr(report, "_PICTURED", 4)
    pages = []
    for _ in range(2):
        (arguments["cpl"] / "report.html").unlink()
        loaded = loaded_by(monkeypatch)
        page = complete(**arguments).page
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    panels = data_of(page)["panels"]
    assert [panel["role"] for panel in panels] == [
        *("most doubt", "most doubt", "least doubt", "random sample")
    ]
    shown = [(panel["case"], panel["target"]) for panel in panels]
    names = [(f"Phantom_{case:05d}", target) for case, target in places]
    assert shown[:3] == [names[-1], names[-2], names[0]]
    assert shown[3] in names[1:-2]
    words = "Pictures of 4 of 7 volumes (most doubt: 2, least doubt: 1, random sample: 1)."
    assert words in page.read_text()
    assert len(loaded) == len(set(loaded))
    assert len([path for path in loaded if path.is_relative_to(arguments["cpl"])]) == 4


def test_volumes_of_whose_doubt_nothing_is_known_are_pictured_at_random(arguments, monkeypatch):
    complete(**arguments)
    for case, names in enumerate(LACKING):
        for name in names:
            set_doubt(arguments["cpl"], phantom_file(case, name))
    set_doubt(arguments["cpl"], phantom_file(3, "t1ce"), disagreement=0.02)
    (arguments["cpl"] / "report.html").unlink()
    monkeypatch.setattr(report, "_PICTURED", 4)
    panels = data_of(complete(**arguments).page)["panels"]
    assert [panel["role"] for panel in panels] == ["most doubt", *["random sample"] * 3]


def test_without_figures_of_doubt_no_order_is_claimed(arguments):
    complete(**arguments)
    for case, names in enumerate(LACKING):
        for name in names:
            set_doubt(arguments["cpl"], phantom_file(case, name))
    (arguments["cpl"] / "report.html").unlink()
    assert data_of(complete(**arguments).page)["order"] == ""


def test_of_few_volumes_all_have_pictures_without_a_role(arguments):
    page = complete(**arguments).page
    assert {panel["role"] for panel in data_of(page)["panels"]} == {""}
    assert "of 7 volumes" not in page.read_text()


def test_a_broken_off_run_that_is_finished_has_the_page_of_an_undisturbed_one(arguments, tmp_path):
    whole = complete(**arguments).page.read_bytes()
    (arguments["cpl"] / phantom_file(3, "t1")).unlink()
    (arguments["cpl"] / "report.html").unlink()
    assert complete(**arguments).page.read_bytes() == whole


def test_a_page_that_is_there_is_not_written_again_if_nothing_was_made(arguments):
    page = complete(**arguments).page
    page.write_text("mine")
    assert complete(**arguments).page.read_text() == "mine"


def test_a_page_that_was_removed_is_written_again_as_it_was(arguments):
    page = complete(**arguments).page
    before = page.read_bytes()
    page.unlink()
    result = complete(**arguments)
    assert (result.written, result.page) == (0, page)
    assert page.read_bytes() == before


def before_the_pages(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let something happen when all volumes are made, and the page is not begun."""
    real = report.write_report

    def write(*arguments: Any, **options: Any) -> Path:
        change()
        return real(*arguments, **options)

    monkeypatch.setattr(report, "write_report", write)


def test_the_page_says_which_sources_changed_or_vanished_after_their_volumes_were_made(
    arguments, monkeypatch
):
    root = arguments["ori"]
    gone, changed = root / phantom_file(0, "t1"), root / phantom_file(1, "t2")

    def change() -> None:
        gone.unlink()
        image = nib.load(changed)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine), changed)

    before_the_pages(monkeypatch, change)
    result = complete(**arguments)
    text = result.page.read_text()
    assert (result.written, result.failed) == (7, ())
    for case, target in ((0, "flair"), (0, "t2"), (1, "t1"), (1, "t1ce")):
        assert f"No picture of {target} of Phantom_{case:05d}: " in text
    assert f"{gone}: is gone since it was checked" in text
    assert f"{changed}: has changed since it was checked" in text
    assert len(data_of(result.page)["panels"]) == 3
    record = json.loads(result.record.read_text())
    assert (record["status"], record["exit_code"]) == ("done", 0)


def test_a_source_of_another_shape_than_its_volume_has_no_picture(arguments):
    page = complete(**arguments).page
    page.unlink()
    source = arguments["ori"] / phantom_file(1, "t2")
    image = nib.load(source)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::2], image.affine), source)
    text = complete(**arguments).page.read_text()
    assert f"No picture of t1 of Phantom_00001: {source}: " in text
    assert len(data_of(page)["panels"]) == 5


def test_a_failed_case_is_named_and_costs_no_other_its_picture(arguments):
    complete(**arguments)
    (arguments["cpl"] / phantom_file(1, "t1")).unlink()
    bad = arguments["ori"] / phantom_file(1, "t2")
    bad.write_bytes(bad.read_bytes()[:-300])
    text = complete(**arguments, keep_going=True).page.read_text()
    assert "1 case failed." in text
    assert "No picture of t1ce of Phantom_00001" in text
    assert len(data_of(arguments["cpl"] / "report.html")["panels"]) == 5


def test_nothing_missing_and_a_dry_run_have_no_page(arguments, phantom_root, tmp_path):
    assert complete(**arguments, dry_run=True).page is None
    assert complete(**arguments | {"ori": phantom_root, "cpl": tmp_path / "none"}).page is None
    assert not list(tmp_path.rglob("*.html"))


def test_the_volumes_do_not_depend_on_the_page(arguments, tmp_path, monkeypatch):
    complete(**arguments)
    monkeypatch.setattr("attcl_cli.completion.run._write_page", lambda *_, **__: None)
    complete(**arguments | {"cpl": tmp_path / "bare"})
    ours = {"run.json", "log.txt", "report.html"}
    one, other = (
        {name: data for name, data in content(folder).items() if name not in ours}
        for folder in (arguments["cpl"], tmp_path / "bare")
    )
    assert one == other


# --- show: a picture from Python ---


def size_of(rows: int, columns: int) -> tuple[int, int]:
    """Width and height of a picture of so many volumes with so many tiles each."""
    return 28 + 190 + columns * 230 + 10 + 230 + 28, 112 + rows * 230 + 56


def test_a_picture_has_a_row_per_volume_with_its_sources_and_what_was_made(arguments):
    complete(**arguments)
    ori, cpl = arguments["ori"], arguments["cpl"]
    assert attcl_cli.show(ori, cpl).size == size_of(7, 2)
    assert attcl_cli.show(str(ori), str(cpl), case="Phantom_00001").size == size_of(2, 2)
    assert attcl_cli.show(ori, cpl, target="t2").size == size_of(1, 2)


def test_a_picture_of_one_patient_s_folder(arguments):
    complete(**arguments)
    picture = attcl_cli.show(arguments["ori"] / "Phantom_00001", arguments["cpl"] / "Phantom_00001")
    assert picture.size == size_of(2, 2)


def test_what_is_not_there_cannot_be_shown(arguments):
    complete(**arguments)
    for options in ({"case": "Phantom_00002"}, {"target": "t2", "case": "Phantom_00001"}):
        with pytest.raises(AttclError) as caught:
            attcl_cli.show(arguments["ori"], arguments["cpl"], **options)
        assert caught.value.code == "nothing-to-show"
        assert "Phantom_0000" in caught.value.message
        assert "attcl complete --ori" in caught.value.hint


def test_niivue_is_added_to_the_page_of_what_is_done_already(arguments):
    first = complete(**arguments)
    assert embedded(first.page) == {}
    again = complete(**arguments, viewer="niivue")
    assert (again.written, again.done_before) == (0, 7)
    document = embedded(again.page)
    assert len(document["panels"]) == 3
    for place, entry in enumerate(document["panels"]):
        assert [volume["kind"] for volume in entry["volumes"]] == ["source", "synthetic"]
        labels = arguments["ori"] / entry["case"] / f"{entry['case']}_seg.nii.gz"
        np.testing.assert_allclose(
            centre_of_region(document, "tumour", place), centre_of_labels(labels), atol=1e-3
        )
