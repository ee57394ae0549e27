"""The pairs: every hidden volume is compared, and nothing that is missing goes unsaid."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from score_files import HIDDEN, figures_of, first_completed, rows_of

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.splits import SplitCase, Splits, read_splits
from attcl_cli.errors import AttclError, ProblemsError, UsageError
from attcl_cli.scoring.pairs import plan_comparison, plan_directions


def test_a_pair_is_the_truth_and_the_completed_volume(folders):
    comparison = plan_comparison(
        open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None
    )
    pairs = {(case.case, pair.modality): pair for case in comparison.cases for pair in case.pairs}
    assert set(pairs) == HIDDEN
    assert comparison.volumes == 4 and comparison.missing == ()
    pair = pairs["Phantom_00000", "t2"]
    assert pair.prediction == (first_completed(folders),)
    assert pair.truth == (folders.truth / "Phantom_00000" / "Phantom_00000_t2.nii.gz",)


def test_what_is_background_is_what_the_dataset_says(folders):
    ori, truth = (
        replace(open_dataset(root), background="keep") for root in (folders.ori, folders.truth)
    )
    completed = plan_comparison(ori, truth, folders.cpl, None)
    translated = plan_directions(truth, None)
    for comparison in (completed, translated):
        assert {case.background for case in comparison.cases} == {"keep"}
    assert not completed.by_direction and translated.by_direction


def test_volumes_of_one_case_with_the_same_sources_stand_together(folders):
    label = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.json"
    both = [{"modality": "t2"}, {"modality": "flair"}]
    weights = {"name": "mine", "sha256": "abc"}
    label.write_text(json.dumps({"sources": both, "weights": weights}))
    comparison = plan_comparison(
        open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None
    )
    cases = [case for case in comparison.cases if case.case == "Phantom_00001"]
    assert {case.made_from: [pair.modality for pair in case.pairs] for case in cases} == {
        "flair+t2": ["t1"],
        "flair": ["t1ce"],
    }
    assert [case.source for case in cases] == ["flair", "flair"]
    assert comparison.weights == {"abc": "mine"}


def test_a_volume_that_was_made_from_what_its_case_lacks_is_refused(folders):
    file = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.nii.gz"
    leaked = {"sources": [{"modality": "flair"}, {"modality": "t1ce"}]}
    file.with_name("Phantom_00001_t1.json").write_text(json.dumps(leaked))
    with pytest.raises(AttclError) as caught:
        plan_comparison(open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None)
    assert caught.value.code == "made-in-another-way"
    assert caught.value.message.startswith(f"{file}: made from t1ce, which its case does not have")


def test_all_problems_are_reported_together(folders):
    first_completed(folders).write_bytes(b"no volume")
    (folders.cpl / "Phantom_00001" / "Phantom_00001_t1.nii.gz").unlink()
    with pytest.raises(ProblemsError) as caught:
        plan_comparison(open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None)
    found = {problem.code: problem.message for problem in caught.value.problems}
    assert found.keys() == {"completed-unreadable", "not-completed"}
    lacking = f"expected all volumes that {folders.ori} lacks and {folders.truth} has"
    assert found["not-completed"].endswith(lacking)


def test_names_that_leave_open_which_file_is_the_truth_are_refused(folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    for number in (0, 2):  # of which the second has nothing hidden
        case = f"Phantom_{number:05d}"
        shutil.copy(truth / case / f"{case}_flair.nii.gz", truth / case / f"{case}_T2.nii.gz")
    wrong = open_dataset(truth).wrong
    with pytest.raises(AttclError) as caught:
        plan_comparison(open_dataset(folders.ori), open_dataset(truth), folders.cpl, None)
    assert caught.value.code == "modality-twice"
    assert caught.value.message == wrong["Phantom_00000"][0].message
    with pytest.raises(ProblemsError) as every:
        plan_directions(open_dataset(truth), None)
    assert len(every.value.problems) == len(wrong) == 2


def test_names_of_the_incomplete_dataset_are_checked_with_its_splits(study):
    item = study.splits.splits["test"][0]
    folder = study.root / "data" / item.case
    shutil.copy(
        folder / f"{item.case}_flair.nii.gz",
        folder / f"{item.case}_{item.present[0].upper()}.nii.gz",
    )
    data, truth = open_dataset(study.root / "data"), open_dataset(study.truth)
    with pytest.raises(AttclError) as caught:
        plan_comparison(data, truth, study.root / "out", study.splits)
    assert caught.value.code == "modality-twice"


def test_a_synthetic_volume_is_no_truth(folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    label = json.dumps({"synthetic": True, "target": "t2"})
    (truth / "Phantom_00003" / "Phantom_00003_t2.json").write_text(label)
    (truth / "Phantom_00002" / "Phantom_00002_t2.json").write_text(label)  # hidden from nobody
    with pytest.raises(AttclError) as caught:
        plan_comparison(open_dataset(folders.ori), open_dataset(truth), folders.cpl, None)
    assert caught.value.code == "synthetic-truth"
    file = truth / "Phantom_00003" / "Phantom_00003_t2.nii.gz"
    assert caught.value.message.startswith(f"{file}: synthetic, as its side-car says")
    with pytest.raises(ProblemsError) as every:
        plan_directions(open_dataset(truth), None)
    assert [problem.code for problem in every.value.problems] == ["synthetic-truth"] * 2


def test_synthetic_truths_of_the_splits_are_reported_with_what_is_missing(study):
    hidden = [(item.case, name) for item in study.splits.splits["train"] for name in item.hidden]
    truth = study.root / "truth"
    shutil.copytree(study.truth, truth)
    for case, name in hidden:
        (truth / case / f"{case}_{name}.json").write_text('{"synthetic": true}')
    case, name = hidden[0]
    (study.root / "out" / case / f"{case}_{name}.nii.gz").unlink()
    with pytest.raises(ProblemsError) as caught:
        plan_comparison(
            study.data, open_dataset(truth), study.root / "out", study.splits, split="train"
        )
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["synthetic-truth"] * len(hidden) + ["not-completed"]


def test_directions_pair_every_modality_with_every_other(phantom_root):
    comparison = plan_directions(open_dataset(phantom_root), None)
    first = [case for case in comparison.cases if case.case == "Phantom_00000"]
    assert {(case.source, pair.modality) for case in first for pair in case.pairs} == {
        (source, target)
        for source in ("flair", "t1", "t1ce", "t2")
        for target in ("flair", "t1", "t1ce", "t2")
        if source != target
    }
    assert all(pair.prediction == () for case in comparison.cases for pair in case.pairs)


def test_directions_need_volumes_on_one_grid(phantom_root, tmp_path):
    root = tmp_path / "shifted"
    shutil.copytree(phantom_root, root)
    file = root / "Phantom_00002/Phantom_00002_t2.nii.gz"
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 3] += 40
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), file)
    with pytest.raises(AttclError) as caught:
        plan_directions(open_dataset(root), None)
    assert caught.value.code == "grids-differ"
    assert "Phantom_00002" in caught.value.message


def test_a_case_of_which_nothing_is_hidden_needs_no_truth(folders, tmp_path):
    scores = tmp_path / "truth"
    shutil.copytree(folders.truth, scores)
    (lost,) = {f"Phantom_0000{number}" for number in range(4)} - {case for case, _ in HIDDEN}
    shutil.rmtree(scores / lost)
    items = {case: [name for it, name in HIDDEN if it == case] for case, _ in HIDDEN}
    listed = [SplitCase(case, (), tuple(names)) for case, names in {**items, lost: ()}.items()]
    names = ("flair", "t1", "t1ce", "t2")
    parts = {"train": (), "val": (), "test": tuple(listed)}
    splits = Splits(str(scores), "brats", "ratio3", 0, names, parts)
    comparison = plan_comparison(
        open_dataset(folders.ori), open_dataset(scores), folders.cpl, splits, split="test"
    )
    assert comparison.volumes == len(HIDDEN)


def test_completed_volumes_without_a_truth_are_named(folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    case, modality = min(HIDDEN)
    (truth / case / f"{case}_{modality}.nii.gz").unlink()
    comparison = plan_comparison(open_dataset(folders.ori), open_dataset(truth), folders.cpl, None)
    assert comparison.volumes == len(HIDDEN) - 1
    assert comparison.notes == (
        f"{truth} has no truth for 1 completed volume ({modality} of {case}), not scored",
    )


@pytest.mark.parametrize(
    "words",
    [{"weights": "epoch9.pth"}, {"source": "t1"}, {"sources": ["t1"]}, {"sharpened_by": "t2"},
     {"weights": {"sha256": "abc"}, "averaged": 3}],
)  # fmt: skip
def test_the_side_car_of_another_program_says_nothing(words, folders):
    case, modality = min(HIDDEN)
    (folders.cpl / case / f"{case}_{modality}.json").write_text(json.dumps(words))
    comparison = plan_comparison(
        open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None
    )
    assert comparison.weights == {}
    assert {case.source for case in comparison.cases} == {"flair"}


def test_the_folder_of_a_training_is_no_place_for_scores(scored, folders):
    folders.scores.mkdir()
    record = folders.scores / "run.json"
    record.write_text('{"command": "train", "status": "stopped"}')
    code, _, err = scored()
    assert (code, "is the record of attcl train" in err) == (2, True)
    assert record.read_text() == '{"command": "train", "status": "stopped"}'


def test_directions_need_two_modalities(gappy):
    root = gappy(lacking=[["t1", "t1ce", "t2"]] * 4)
    with pytest.raises(AttclError) as caught:
        plan_directions(open_dataset(root), None)
    assert caught.value.code == "no-pairs"


def test_a_split_without_splits_json_is_refused(phantom_root):
    with pytest.raises(UsageError) as caught:
        plan_directions(open_dataset(phantom_root), None, split="test")
    assert caught.value.code == "no-splits"


# --- as the command reports them ---


def test_a_missing_volume_is_an_error_unless_it_may_be_counted(scored, folders):
    first_completed(folders).unlink()
    code, out, err = scored("--ssim")
    assert (code, out) == (1, "")
    assert "t2 of Phantom_00000 was not completed, expected" in err and "--allow-missing" in err
    assert not folders.scores.exists()

    code, _, err = scored("--ssim", "--allow-missing")
    assert code == 3
    assert "1 of 4 hidden volumes not there, counted" in err
    figures = figures_of(folders.scores)
    assert figures["t2", "synthetic", "ssim", "brain"]["n_missing"] == 1
    assert figures["t2", "synthetic", "ssim", "brain"]["n"] == 1
    assert figures["all", "synthetic", "ssim", "brain"]["n_missing"] == 1
    document = json.loads((folders.scores / "summary.json").read_text())
    assert document["missing"] == [{"case": "Phantom_00000", "modality": "t2"}]
    assert json.loads((folders.scores / "run.json").read_text())["status"] == "done"


def test_all_missing_volumes_are_counted_too(scored, folders):
    for file in folders.cpl.rglob("*.nii.gz"):
        file.unlink()
    code, _, err = scored("--allow-missing", "--ssim")
    assert code == 3
    assert "4 of 4 hidden volumes not there" in err
    figure = figures_of(folders.scores)["t1ce", "synthetic", "ssim", "brain"]
    assert (figure["mean"], figure["n"], figure["n_missing"]) == (None, 0, 1)
    page = (folders.scores / "report.html").read_text()
    assert "t1ce of Phantom_00001" in page


def test_a_volume_of_another_shape_is_named(scored, folders):
    file = first_completed(folders)
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), file)
    code, _, err = scored()
    assert code == 1
    assert str(file) in err and "39x40x26 against 40x40x26" in err


def test_splits_choose_the_cases_and_name_the_truth(attcl, phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attcl("prepare-splits", phantom_root, "--sizes", "3/0/1")[0] == 0
    made = read_splits(tmp_path / "data")
    for split in ("train", "test"):
        for item in made.splits[split]:
            for name in item.hidden:
                file = Path(item.case) / f"{item.case}_{name}.nii.gz"
                (tmp_path / "out" / item.case).mkdir(parents=True, exist_ok=True)
                shutil.copy(phantom_root / file, tmp_path / "out" / file)
    assert attcl("score", "-q")[0] == 0
    assert {row["case"] for row in rows_of(tmp_path / "scores")} == set(made.names("test"))
    assert attcl("score", "-q", "--split", "all", "-o", "everything")[0] == 0
    assert len({(row["case"], row["modality"]) for row in rows_of(tmp_path / "everything")}) == 8
    code, _, err = attcl("score", "--split", "val")
    assert code == 1 and "there are no volumes hidden in the val split" in err
    code, _, err = attcl("score", "--split", "tset")
    assert code == 2 and "'tset'" in err
    code, _, err = attcl("score", "--cpl", "nowhere")
    assert code == 1 and "nowhere: no such folder, expected the completed volumes" in err


def test_the_wrong_places_are_refused(attcl, scored, folders, tmp_path):
    code, _, err = attcl("score", "--ori", folders.ori, "--cpl", folders.cpl)
    assert code == 2 and "--truth" in err and "splits.json" in err
    code, _, err = scored("-o", folders.ori / "scores")
    assert code == 2 and "--output" in err
    code, _, err = scored("--truth", tmp_path / "nowhere")
    assert code == 1 and "nowhere: no such folder" in err
    code, _, err = scored("--truth", folders.ori)
    assert code == 2 and "is the incomplete dataset itself" in err
    other = tmp_path / "other"
    shutil.copytree(folders.truth / "Phantom_00000", other / "Someone")
    for file in (other / "Someone").iterdir():
        file.rename(file.with_name(file.name.replace("Phantom_00000", "Someone")))
    code, _, err = scored("--truth", other)
    assert code == 2 and "holds none of the 4 cases" in err
    code, _, err = scored("--split", "val")
    assert code == 2 and "no splits.json says which cases these are" in err


def test_a_damaged_volume_is_to_be_made_again(scored, folders):
    file = first_completed(folders)
    file.write_bytes(file.read_bytes()[:2000])
    code, _, err = scored()
    assert code == 1
    assert str(file) in err and "remove this file and run attcl complete again" in err


def test_a_case_that_the_splits_list_is_never_left_out(attcl, phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attcl("prepare-splits", phantom_root, "--sizes", "3/0/1")[0] == 0
    lost = read_splits(tmp_path / "data").names("test")[0]
    shutil.rmtree(tmp_path / "data" / lost)
    (tmp_path / "out").mkdir()
    code, _, err = attcl("score")
    assert code == 1 and f"data: no case {lost}" in err
