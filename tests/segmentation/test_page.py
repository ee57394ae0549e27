"""The page of a segmentation: a verdict that the intervals allow, the worst cases first, and what made the figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from embedded import centre_of_labels, centre_of_region, embedded
from segmenters import json_in, perfect_prediction, segment, the_test_case

from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError
from attcl_cli.report.page import Page
from attcl_cli.report.sections import (
    BoxPlots,
    CaseTable,
    Curves,
    Patterns,
    Section,
    Table,
    Text,
    Viewer,
)
from attcl_cli.segmentation import page as pages
from attcl_cli.segmentation.page import verdict, write_report
from attcl_cli.segmentation.report import Scores
from attcl_cli.segmentation.run_evaluate import evaluate
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.segmentation.summary import Row


def scores_of(*, prefix: str = "case", **dice: list[float]) -> Scores:
    """Return scores whose Dice of the whole tumour are these, by input; case ids begin with `prefix`."""
    rows = [
        Row(f"{prefix}{number}", "WT", "dice", value, name)
        for name, values in dice.items()
        for number, value in enumerate(values)
    ]
    return Scores(tuple(rows), tuple(dice))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Page]:
    """Collect the pages that are written."""
    found: list[Page] = []
    write = pages.write_page

    def collecting(path: Path, page: Page) -> None:
        found.append(page)
        write(path, page)

    monkeypatch.setattr(pages, "write_page", collecting)
    return found


def section(page: Page, kind: type[Section], heading: str = "") -> Section:
    (found,) = [
        each
        for each in page.sections
        if isinstance(each, kind) and (not heading or each.heading == heading)
    ]
    return found


PHANTOM = "Phantom_0000"  # the beginning of the ids of the study's cases


# --- the verdict ---


LOW = [0.5 + number / 100 for number in range(12)]
HIGHER = [value + 0.1 + number % 2 / 50 for number, value in enumerate(LOW)]
MIXED = [value + (0.1 if number % 2 else -0.1) for number, value in enumerate(LOW)]


def test_a_clear_gain_is_said_with_its_interval_and_what_remains():
    real = [value + 0.01 + number % 3 / 1000 for number, value in enumerate(HIGHER)]
    text = verdict(scores_of(incomplete=LOW, completed=HIGHER, real=real))
    assert re.fullmatch(
        r"With completed volumes, Dice of the whole tumour is 0\.110 higher than without "
        r"\(95 % interval 0\.10\d to 0\.11\d, 12 cases\); 0\.011 below real volumes\.",
        text,
    )


def test_a_clear_loss_is_said_as_a_loss():
    text = verdict(scores_of(incomplete=HIGHER, completed=LOW))
    assert re.search(r"0\.110 lower than without \(95 % interval 0\.10\d to 0\.11\d, 12", text)


def test_an_interval_that_holds_zero_is_no_difference():
    text = verdict(scores_of(incomplete=LOW, completed=MIXED, real=MIXED))
    assert text.startswith("No difference can be told: with completed volumes, Dice")
    assert "is 0.000 against without (95 % interval -0.0" in text
    assert text.endswith("12 cases); no difference from real volumes can be told.")
    assert "higher" not in text and "lower" not in text


def test_few_cases_are_said():
    text = verdict(scores_of(incomplete=LOW[:4], completed=HIGHER[:4]))
    assert "only 4 cases, which says little)" in text
    text = verdict(scores_of(incomplete=LOW[:1], completed=HIGHER[:1], real=LOW[:1]))
    assert "0.100 higher than without in only 1 case, which says little" in text
    assert text.endswith("; 0.100 above real volumes.")


def test_one_modality_alone_stands_for_no_completion_if_nothing_else_was_trained():
    assert "higher than with flair alone" in verdict(scores_of(flair=LOW, completed=HIGHER))
    both = scores_of(flair=HIGHER, incomplete=LOW, completed=HIGHER)
    assert "higher than without (" in verdict(both)


def test_a_single_input_has_its_mean_alone():
    text = verdict(scores_of(completed=[0.5, 0.75]))
    assert text == (
        "Dice of the whole tumour is 0.625 in the mean of only 2 test cases (completed)."
    )


def test_figures_in_doubt_are_said_to_be_so():
    doubtful = dataclasses.replace(scores_of(completed=LOW), warnings=("the weights saw them",))
    assert verdict(doubtful).endswith("These figures are in doubt: see the warnings below.")


# --- a run's page ---


def test_a_run_leaves_a_page_of_its_worst_cases_scores_training_and_settings(study, written):
    result = segment(compare=True)
    (page,) = written
    assert (study.root / "segment" / "report.html").stat().st_size < 1_000_000
    assert page.verdict == verdict(result.scores)
    assert page.facts["inputs"] == "flair, incomplete, completed, real"
    assert page.facts["test cases"] == "1" and page.facts["device"] == "cpu"
    titles = [each.title for each in section(page, BoxPlots).distributions]
    assert titles == ["Dice WT", "Dice TC", "Dice ET", "HD95 WT", "HD95 TC", "HD95 ET"]
    assert len(section(page, Table, "Scores").rows) == 3 * 4
    assert len(section(page, Table, "Differences").rows) == 3 * 4  # pairs of inputs
    curves = {each.title: each.lines for each in section(page, Curves).curves}
    assert set(curves) == {"Loss", "Dice of validation cases"}
    assert list(curves["Loss"]) == list(result.scores.inputs)
    about = section(page, Text, "How it was made")
    assert about.folded["Settings"].startswith("seed = 0")
    assert any("Each trained for 2 steps" in text for text in about.paragraphs)
    assert page.files == ["segment.csv", "summary.json"]


def test_the_page_shows_which_modalities_were_missing_in_how_many_cases(study, written):
    segment(compare=True)
    cases = open_dataset(study.root / "data").cases
    patterns = section(written[0], Patterns, "Missing modalities, before completion")
    assert patterns.modalities == ("flair", "t1", "t1ce", "t2")
    assert sum(patterns.counts.values()) == len(cases)
    for present, count in patterns.counts.items():
        assert count == sum(set(case.files) == set(present) for case in cases)


def test_the_outlines_are_the_true_tumour_and_the_predictions_on_a_real_image(study, written):
    segment(compare=True)
    case = the_test_case(study)
    (panel,) = section(written[0], Viewer).panels
    assert (panel.case, [tile.kind for tile in panel.tiles]) == (case, ["source"])
    assert list(panel.outlines) == ["true label map", "incomplete", "completed", "real"]
    assert panel.outlines["true label map"].any()
    # A perfect completion is segmented as the real volumes are.
    assert (panel.outlines["completed"] == panel.outlines["real"]).all()
    assert "Not drawn: flair." in section(written[0], Viewer).hint
    assert set(panel.scores) == {
        *(f"Dice WT, {name}" for name in ("flair", "incomplete", "completed", "real")),
        "Dice TC, completed",
        "Dice ET, completed",
    }
    rows = section(written[0], CaseTable).rows
    assert (rows[0]["case"], rows[0]["input"]) == (case, "flair")
    text = (study.root / "segment" / "report.html").read_text()
    assert text.count('data-panel="0"') == 4  # each input's row shows the case


def test_the_image_under_the_outlines_is_one_that_the_case_has(study, written):
    perfect_prediction(study, study.root / "maps")
    case = the_test_case(study)
    data = open_dataset(study.root / "data")
    scores = Scores((Row(case, "WT", "dice", 0.5, "maps"),), ("maps",))
    only = dataclasses.replace(
        next(each for each in data.cases if each.id == case), files={"t2": "t2"}
    )
    less = dataclasses.replace(
        data,
        cases=tuple(
            dataclasses.replace(
                each,
                files={name: file for name, file in each.files.items() if name != "flair"},
            )
            for each in data.cases
            if each.id == only.id
        ),
    )
    files = {"maps": {case: study.root / "maps" / f"{case}.nii.gz"}}
    for source, expected in ((data, "flair"), (less, next(iter(less.cases[0].files)))):
        write_report(study.root, scores, title="t", data=source, predictions=files, facts={})
        (panel,) = section(written[-1], Viewer).panels
        assert panel.source_modality == expected
    assert expected != "flair"


def write_with_dice(study, dice):
    """Write the page of cases with these values of Dice."""
    rows = tuple(Row(case, "WT", "dice", value, "maps") for case, value in dice.items())
    write_report(
        study.root, Scores(rows, ("maps",)), title="t", data=study.data, predictions={}, facts={}
    )


def test_the_worst_cases_come_first_and_only_so_many_have_pictures(study, written, monkeypatch):
    monkeypatch.setattr(pages, "_PICTURED", 1)
    cases = [case.id for case in study.data.cases]
    write_with_dice(study, dict(zip(cases, (0.75, 0.5, float("nan"), 0.25), strict=True)))
    worst_first = [cases[3], cases[1], cases[0], cases[2]]
    assert [row["case"] for row in section(written[0], CaseTable).rows] == worst_first
    assert written[0].facts["worst"] == f"{cases[3]}, Dice 0.250 (maps)"


def test_of_many_cases_the_worst_the_best_and_a_sample_have_pictures(study, written, monkeypatch):
    monkeypatch.setattr(pages, "_PICTURED", 3)
    cases = [case.id for case in study.data.cases]
    write_with_dice(study, dict(zip(cases, (0.75, 0.5, float("nan"), 0.25), strict=True)))
    viewer = section(written[0], Viewer)
    worst, best, sampled = viewer.panels
    assert (worst.case, worst.role) == (cases[3], "worst")
    assert (best.case, best.role) == (cases[0], "best")  # not the one without a value
    assert sampled.case in {cases[1], cases[2]} and sampled.role == "random sample"
    counts = "worst: 1, best: 1, random sample: 1"
    assert (
        f"Pictures of 3 of 4 cases ({counts}), by the Dice of the whole tumour (maps)."
        in viewer.hint
    )


def test_a_case_without_a_readable_image_has_no_picture_and_is_named(study, written):
    perfect_prediction(study, study.root / "maps")
    case = the_test_case(study)
    files = {"maps": {case: study.root / "maps" / "missing.nii.gz"}}
    scores = Scores((Row(case, "WT", "dice", 0.5, "maps"),), ("maps",))
    write_report(study.root, scores, title="t", data=study.data, predictions=files, facts={})
    assert section(written[0], Viewer).panels == []
    assert any(note.startswith(f"No picture of {case}: ") for note in written[0].notes)


def test_a_case_that_only_an_edited_table_knows_has_no_picture(study, written):
    scores = Scores((Row("stranger", "WT", "dice", 0.5, "maps"),), ("maps",))
    write_report(study.root, scores, title="t", data=study.data, predictions={}, facts={})
    assert section(written[0], Viewer).panels == []
    assert [row["case"] for row in section(written[0], CaseTable).rows] == ["stranger"]


def test_warnings_and_cases_that_were_left_out_are_notes(study, written):
    scores = dataclasses.replace(
        scores_of(prefix=PHANTOM, completed=[0.5]),
        missing=("x", "y"),
        warnings=("leaking",),
        notes=("a note",),
    )
    write_report(study.root, scores, title="t", data=study.data, predictions={}, facts={})
    notes = written[0].notes
    assert notes[0] == "Warning: leaking."
    assert "2 cases left out: x, y." in notes and "A note." in notes


def test_lines_of_the_statistics_that_a_kill_has_cut_are_left_out(tmp_path, study, written):
    path = tmp_path / "stats.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n[1]\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    write_report(
        study.root,
        scores_of(prefix=PHANTOM, completed=[0.5]),
        title="t",
        data=study.data,
        predictions={},
        facts={},
        settings=SegmentSettings(),
        statistics={"completed": path, "other": tmp_path / "none.jsonl"},
    )
    (curve,) = section(written[0], Curves).curves
    assert list(curve.lines) == ["completed"]
    assert [step for step, _ in curve.lines["completed"]] == [1, 2]


def test_an_evaluation_leaves_a_page_too(study, written):
    maps = perfect_prediction(study, study.root / "maps", values_of="2023").parent
    evaluate(maps)
    (page,) = written
    assert page.verdict.startswith("Dice of the whole tumour is 1.000")
    (panel,) = section(page, Viewer).panels
    assert (panel.outlines["maps"] == panel.outlines["true label map"]).all()
    assert panel.outlines["maps"].any() and panel.scores["Dice WT"] == 1
    assert section(page, Text, "How it was made").paragraphs[0].startswith("The label maps were")
    assert not any("MONAI" in text for text in section(page, Text, "How to cite").paragraphs)


def test_a_segmenter_that_is_evaluated_leaves_a_page_with_its_settings(study, written):
    segment()
    evaluate(weights="segment", input="incomplete", device="cpu")
    page = written[-1]
    assert Path("segment-evaluated/report.html").is_file()
    assert page.facts["inputs"] == "incomplete" and page.facts["steps"] == "2; weights of step 2"
    assert list(section(page, Viewer).panels[0].outlines) == ["true label map", "incomplete"]


def test_a_dry_run_writes_no_page(study):
    segment(dry_run=True)
    evaluate(perfect_prediction(study, study.root / "maps").parent, dry_run=True)
    assert not list(study.root.rglob("report.html"))


def test_a_page_that_cannot_be_written_keeps_the_scores(study, monkeypatch):
    def full(*_: object) -> None:
        raise AttclError("no space", code="file-not-written")

    monkeypatch.setattr(pages, "write_page", full)
    with pytest.raises(AttclError, match="no space"):
        segment()
    folder = study.root / "segment"
    assert (folder / "segment.csv").is_file() and (folder / "summary.json").is_file()
    assert json_in(folder / "run.json")["status"] == "failed"


def test_niivue_has_the_worst_case_in_whole_where_its_file_lies(study):
    maps = perfect_prediction(study, study.root / "maps").parent
    result = evaluate(maps, viewer="niivue")
    document = embedded(result.output / "report.html")
    case = the_test_case(study)
    assert [entry["case"] for entry in document["panels"]] == [case]
    labels = study.truth / case / f"{case}_seg.nii.gz"
    for name in ("true label map", "maps"):
        np.testing.assert_allclose(
            centre_of_region(document, name), centre_of_labels(labels), atol=1e-3
        )
