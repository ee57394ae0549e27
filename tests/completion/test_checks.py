"""What is refused before anything is computed: requests, models, results of other runs, links, a full disk."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from completers import completed, phantom_file, plan_of
from helpers import states

from attcl_cli.completion import checks
from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.layouts import SUBMISSIONS
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.errors import AttclError, UsageError, single_problems
from attcl_cli.methods.weights import Weights

LACKING = (("t1ce",), ("t1", "t2"), (), ("t1ce",))
BRASYN = SUBMISSIONS["brasyn-submission"]


# --- the request ------------------------------------------------------------------------------------------------------


def test_a_folder_among_the_originals_is_refused(gappy, weights):
    root = gappy()
    with pytest.raises(UsageError) as caught:
        plan_of(root, root / "out", weights)
    assert caught.value.message.startswith(f"--cpl: {root / 'out'} lies inside {root}")


def test_a_folder_that_links_of_the_dataset_lead_to_is_refused(gappy, weights, tmp_path):
    originals = tmp_path / "originals"
    with pytest.raises(UsageError) as caught:
        plan_of(gappy(), originals / "out", weights, originals=[originals])
    assert caught.value.message.startswith(f"--cpl: {originals / 'out'} lies inside {originals}")


def test_a_file_in_the_place_of_the_output_is_refused(gappy, weights, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError) as caught:
        plan_of(gappy(), tmp_path / "out", weights)
    assert caught.value.code == "output-not-a-folder"


def test_uncertainty_of_fewer_than_two_samples_is_refused(gappy, weights, tmp_path):
    with pytest.raises(UsageError) as caught:
        plan_of(gappy(), tmp_path / "out", weights, samples=1, uncertainty=True)
    assert caught.value.code == "too-few-samples"


def test_uncertainty_of_png_slices_is_refused(gappy, weights, tmp_path):
    with pytest.raises(UsageError) as caught:
        plan_of(gappy("slices"), tmp_path / "out", weights, samples=2, uncertainty=True)
    assert caught.value.code == "slices-instead-of-volumes"


@pytest.mark.parametrize("first", [True, False])
def test_samples_of_a_method_with_one_style_are_refused(first, gappy, weights, general, tmp_path):
    """Also if another of the models has styles."""
    models = (general, weights) if first else (weights, general)
    with pytest.raises(UsageError, match="--samples: 3 with weights of plave") as caught:
        plan_of(gappy(), tmp_path / "out", *models, samples=3)
    assert caught.value.code == "method-without-styles"


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_slices_beyond_the_volume_are_refused(layout, gappy, weights, tmp_path):
    root = gappy(layout, [("t2",), (), (), ()])
    with pytest.raises(UsageError, match=r"--slices: 26:30.*Phantom.*26 slices") as caught:
        plan_of(root, tmp_path / "out", weights, slices=(26, 30))
    assert caught.value.code == "slices-beyond-volume"


@pytest.mark.parametrize("slices", [(12, 3), (-5, 0), (4, 4)])
def test_a_span_without_slices_is_refused(slices, gappy, weights, tmp_path):
    with pytest.raises(UsageError, match=f"--slices: {slices[0]}:{slices[1]}, expected") as caught:
        completed(gappy(), tmp_path / "out", weights, slices=slices)
    assert caught.value.code == "malformed-slices"


def test_a_folder_of_another_command_is_no_place_for_volumes(gappy, weights, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(weights.path.parent, run)
    (run / "run.json").write_text(json.dumps({"command": "train", "status": "stopped"}))
    before = states(run)
    with pytest.raises(
        UsageError, match=r"--cpl: .*run\.json is the record of attcl train"
    ) as caught:
        completed(gappy(), run, weights)
    assert caught.value.code == "folder-of-another-command"
    assert states(run) == before


@pytest.mark.parametrize(("stop", "short"), [(26, False), (27, True)])
def test_slices_past_the_last_of_a_case_are_named(stop, short, gappy, weights, tmp_path):
    root = gappy("brats", [("t2",), ("t2",), (), ()])
    plan = plan_of(root, tmp_path / "out", weights, slices=(20, stop))
    assert len(plan.jobs) == 2
    note = (
        "--slices 20:27: 2 cases have fewer slices (Phantom_00000 26, Phantom_00001 26), "
        "and are made to the last"
    )
    assert plan.notes == ((note,) if short else ())


def test_keep_going_leaves_out_a_case_without_the_slices(gappy, weights, tmp_path, write_nifti):
    root = gappy("brats", [("t2",), (), (), ()])
    from numpy import ones

    for name in ("flair", "t1", "t1ce"):
        values = ones((6, 5, 30))
        values[0] = 2
        write_nifti(root / f"Phantom_00009/Phantom_00009_{name}.nii.gz", values.astype("int16"))
    plan = plan_of(root, tmp_path / "out", weights, slices=(26, 30), keep_going=True)
    assert [job.case.id for job in plan.jobs] == ["Phantom_00009"]
    assert {case: error.code for case, error in plan.failed.items()} == {
        "Phantom_00000": "slices-beyond-volume"
    }


# --- what no model makes ----------------------------------------------------------------------------------------------


def test_what_a_dedicated_model_cannot_make_is_reported_once_per_target(gappy, dedicated, tmp_path):
    root = gappy(lacking=[("t1ce",), ("t1", "t2"), ("t1", "t1ce"), ("t2",)])
    with pytest.raises(AttclError) as caught:
        plan_of(root, tmp_path / "out", dedicated)
    problems = caught.value.problems
    assert {problem.code for problem in problems} == {"no-model-for-target"}
    assert [problem.message for problem in problems] == [
        f"{dedicated.path} makes t1ce, not t1, "
        "expected a model for t1 of 2 cases: Phantom_00001, Phantom_00002",
        f"{dedicated.path} makes t1ce from flair, t1, t2, which these cases lack, "
        "expected a model for t1ce of 1 case: Phantom_00002",
        f"{dedicated.path} makes t1ce, not t2, "
        "expected a model for t2 of 2 cases: Phantom_00001, Phantom_00003",
    ]
    assert all("-w FIRST -w SECOND" in problem.hint for problem in problems)
    assert not (tmp_path / "out").exists()


def test_every_model_that_cannot_make_a_target_is_named(gappy, dedicated, tmp_path):
    other = Weights("other", Path("other.safetensors"), "1" * 64, dedicated.info)
    with pytest.raises(AttclError) as caught:
        plan_of(gappy(), tmp_path / "out", dedicated, other)
    for problem in caught.value.problems:
        assert f"{dedicated.path} makes t1ce, not t" in problem.message
        assert "; other.safetensors makes t1ce, not t" in problem.message


def test_only_models_that_know_the_target_are_named_if_there_are_any(
    gappy, dedicated, weights, tmp_path
):
    problem, *others = checks.cannot_make([weights, dedicated], {"A": ["t1ce"], "B": ["t1ce"]})
    assert others == []
    assert problem.message == (
        f"{weights.path} makes t1ce from any one of flair, t1, t2; "
        f"{dedicated.path} makes t1ce from flair, t1, t2, "
        "which these cases lack, expected a model for t1ce of 2 cases: A, B"
    )


def test_keep_going_does_the_cases_that_the_models_can_make(gappy, dedicated, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", dedicated, keep_going=True)
    assert [job.case.id[-1] for job in plan.jobs] == ["0", "3"]
    ((case, error),) = plan.failed.items()
    assert (case, error.code) == ("Phantom_00001", "no-model-for-target")
    assert "makes t1ce, not t1" in error.message


def test_keep_going_leaves_out_the_whole_case_of_which_one_target_cannot_be_made(
    gappy, dedicated, tmp_path
):
    root = gappy(lacking=[("t1ce",), ("t1ce",), (), ("t1", "t1ce")])
    plan = plan_of(root, tmp_path / "out", dedicated, keep_going=True)
    assert [job.case.id[-1] for job in plan.jobs] == ["0", "1"]
    assert list(plan.failed) == ["Phantom_00003"]


def test_keep_going_with_no_case_to_do_is_refused(gappy, dedicated, tmp_path):
    root = gappy(lacking=[("t1",), ("t2",), (), ()])
    with pytest.raises(AttclError) as caught:
        plan_of(root, tmp_path / "out", dedicated, keep_going=True)
    assert [problem.code for problem in caught.value.problems] == ["no-model-for-target"] * 2


def test_a_synthetic_volume_is_no_source(gappy, weights, tmp_path):
    completed(gappy(lacking=[("t2", "t1"), (), (), ()]), tmp_path / "out", weights)
    with pytest.raises(AttclError) as caught:
        plan_of(tmp_path / "out", tmp_path / "again", weights, targets=["flair"])
    assert caught.value.code == "synthetic-source"
    assert "of Phantom_00000" in caught.value.message


# --- results of other runs --------------------------------------------------------------------------------------------


def test_results_of_other_weights_are_not_taken_for_done(finished, weights, other_weights):
    before = states(finished["cpl"])
    with pytest.raises(AttclError) as caught:
        plan_of(finished["ori"], finished["cpl"], other_weights)
    error = caught.value
    assert error.code == "made-in-another-way"
    assert error.message.startswith(
        f"{finished['cpl'] / phantom_file(0, 't1ce')}: made by weights {weights.sha256[:12]}"
    )
    assert error.message.endswith("and 3 more like it")  # one line for a whole folder
    assert error.hint.startswith("choose another --cpl")
    assert states(finished["cpl"]) == before


def test_results_of_a_source_that_was_hidden_since_are_not_taken_for_done(gappy, general, tmp_path):
    root = gappy(lacking=[("t1ce",), ("t1ce",), (), ()])
    completed(root, tmp_path / "out", general)
    for case in (0, 1):
        (root / phantom_file(case, "t1")).unlink()
    with pytest.raises(AttclError) as caught:
        plan_of(root, tmp_path / "out", general, targets=["t1ce"])
    assert caught.value.code == "made-in-another-way"
    assert caught.value.message == (
        f"{tmp_path / 'out' / phantom_file(0, 't1ce')}: made from t1, which its case does not have (any more), "
        "expected sources that it has; and 1 more like it"
    )
    assert plan_of(root, tmp_path / "out", general, overwrite=True).volumes == 4


def test_results_of_fewer_sources_than_the_case_has_now_stay_done(
    gappy, general, phantom_root, tmp_path
):
    root = gappy(lacking=[("t1", "t1ce"), (), (), ()])
    completed(root, tmp_path / "out", general, targets=["t1ce"])
    shutil.copy(phantom_root / phantom_file(0, "t1"), root / phantom_file(0, "t1"))
    plan = plan_of(root, tmp_path / "out", general)
    assert (plan.volumes, plan.done) == (0, 1)


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_results_of_another_dataset_with_the_same_names_are_not_taken_for_done(
    layout, gappy, weights, tmp_path
):
    completed(gappy(layout), tmp_path / "out", weights, targets=["t1ce"])
    lacking = [["t1ce"], ["t1ce"]]
    write_cohort(
        tmp_path / "others", cases=2, layout=layout, voxel_mm=8, missing=lacking, workers=1
    )
    with pytest.raises(AttclError, match="made on another grid than its case has") as caught:
        plan_of(tmp_path / "others", tmp_path / "out", weights, targets=["t1ce"])
    assert {it.code for it in single_problems(caught.value)} == {"grids-differ"}
    plan = plan_of(tmp_path / "others", tmp_path / "out", weights, targets=["t1ce"], overwrite=True)
    assert plan.volumes == 2


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"target": "t1"}, "a synthetic t1, as its side-car says"),
        ({"synthetic": False}, "has no side-car Phantom_00000_t2.json that says how it was made"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_a_side_car_that_contradicts_its_volume_is_named(change, found, gappy, weights, tmp_path):
    root = gappy(lacking=[("t2",), (), (), ()])
    completed(root, tmp_path / "out", weights)
    side_car = tmp_path / "out" / phantom_file(0, "t2").replace(".nii.gz", ".json")
    side_car.write_text(json.dumps(json.loads(side_car.read_text()) | change))
    with pytest.raises(AttclError, match=found) as caught:
        plan_of(root, tmp_path / "out", weights)
    assert "Phantom_00000_t2" in caught.value.message


@pytest.mark.parametrize("layout", ["brats", "slices"])
@pytest.mark.parametrize("slices", [(8, 12), (14, 16)], ids=["overlapping", "apart"])
def test_results_of_other_slices_are_not_taken_for_done(layout, slices, gappy, weights, tmp_path):
    root = gappy(layout, [("t2",), (), (), ()])
    completed(root, tmp_path / "out", weights, slices=(10, 13))
    before = states(tmp_path / "out")
    with pytest.raises(AttclError, match=r"_t2|t2/.*made with --slices 10:13") as caught:
        plan_of(root, tmp_path / "out", weights, slices=slices)
    assert caught.value.code == "made-in-another-way"
    assert states(tmp_path / "out") == before


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-9])


def of_another_program(path):
    path.with_name(path.name.replace(".nii.gz", ".json")).unlink(missing_ok=True)
    nib.save(nib.Nifti1Image(np.ones((32, 32, 8), np.int16), np.eye(4)), path)


def of_another_program_with_a_side_car(path):
    of_another_program(path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text('{"weights": "T2"}')


def with_an_unusable_side_car(path):
    side_car = path.with_name(path.name.replace(".nii.gz", ".json"))
    side_car.write_text(json.dumps(json.loads(side_car.read_text()) | {"slices": [10]}))


@pytest.mark.parametrize(
    "spoil",
    [cut_off, of_another_program, of_another_program_with_a_side_car, with_an_unusable_side_car],
)
def test_with_keep_going_only_the_case_fails_in_whose_place_something_else_lies(
    spoil, gappy, weights, tmp_path
):
    root, out = gappy(lacking=[("t2", "t1"), ("t1",), ("t2", "t1"), ()]), tmp_path / "out"
    completed(root, out, weights, part=(1, 4))
    (first,) = out.glob("*/*_t2.nii.gz")
    (second,) = out.glob("*/*_t1.nii.gz")
    second.unlink()  # it would be made again, if the case did not fail
    spoil(first)
    before = first.read_bytes()
    with pytest.raises(AttclError, match=first.name.removesuffix(".nii.gz")):
        completed(root, out, weights)
    items = completed(root, out, weights, keep_going=True)
    assert [(item.case[-1], item.error) for item in items] == [("1", None), ("2", None)]
    assert first.read_bytes() == before
    plan = plan_of(root, out, weights, keep_going=True)
    assert list(plan.failed) == ["Phantom_00000"]
    assert plan.present.keys() == {"Phantom_00001", "Phantom_00002"}
    assert not second.exists()


def test_keep_going_writes_nothing_where_only_files_of_others_lie(gappy, weights, tmp_path):
    """The output may be a whole dataset of somebody's own."""
    root = gappy(lacking=[("t2",), (), (), ()])
    stranger = tmp_path / "out" / phantom_file(0, "t2")
    stranger.parent.mkdir(parents=True)
    of_another_program(stranger)
    before = states(tmp_path / "out")
    with pytest.raises(AttclError) as caught:
        complete(root, tmp_path / "out", weights=weights.path, device="cpu", keep_going=True)
    assert caught.value.code == "not-made-by-attcl"
    assert states(tmp_path / "out") == before


def test_what_fails_one_case_is_named_beside_what_stops_the_run(gappy, weights, tmp_path):
    root, out = gappy(lacking=[("t2",), ("t1",), (), ()]), tmp_path / "out"
    completed(root, out, weights, mirror=True)
    (foreign,) = out.glob("*/*_t2.nii.gz")
    of_another_program(foreign)
    with pytest.raises(AttclError) as caught:
        plan_of(root, out, weights, mirror=False, keep_going=True)
    codes = {problem.code for problem in single_problems(caught.value)}
    assert codes == {"not-made-by-attcl", "made-in-another-way"}


def test_keep_going_does_not_pass_over_volumes_that_were_made_in_another_way(
    gappy, weights, tmp_path
):
    """They would be all, or many: not what is wrong with one case."""
    root = gappy(lacking=[("t2",), ("t1",), (), ()])
    completed(root, tmp_path / "out", weights, part=(1, 4), mirror=True)
    with pytest.raises(AttclError) as caught:
        plan_of(root, tmp_path / "out", weights, mirror=False, keep_going=True)
    assert caught.value.code == "made-in-another-way"


@pytest.mark.parametrize("said", [None, '{"RepetitionTime": 2}', "[]"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_attcl_did_not_make_is_never_replaced(
    overwrite, said, gappy, weights, phantom_root, tmp_path
):
    root = gappy(lacking=[("t2",), (), (), ()])
    stranger = tmp_path / "out" / phantom_file(0, "t2")
    stranger.parent.mkdir(parents=True)
    shutil.copyfile(phantom_root / phantom_file(0, "t2"), stranger)
    if said is not None:  # as dcm2niix writes one
        (stranger.parent / "Phantom_00000_t2.json").write_text(said)
    before = states(tmp_path / "out")
    with pytest.raises(AttclError) as caught:
        completed(root, tmp_path / "out", weights, overwrite=overwrite)
    assert caught.value.code == "not-made-by-attcl"
    assert caught.value.message.startswith(f"{stranger}: has no side-car Phantom_00000_t2.json")
    assert "--cpl" in caught.value.hint
    assert "--overwrite" not in caught.value.hint
    assert states(tmp_path / "out") == before


def test_a_broken_result_is_refused_and_overwrite_makes_it_again(finished, weights):
    broken = finished["cpl"] / phantom_file(0, "t1ce")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    with pytest.raises(AttclError, match=re.escape(str(broken))) as caught:
        plan_of(finished["ori"], finished["cpl"], weights)
    assert "--overwrite" in caught.value.hint
    completed(finished["ori"], finished["cpl"], weights, overwrite=True)
    assert broken.read_bytes() == whole


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_link_that_leads_out_of_the_output_is_refused(gappy, weights, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/Phantom_00000").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AttclError) as caught:
        plan_of(gappy(), tmp_path / "out", weights)
    assert caught.value.code == "leads-out-of-output"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_disk_without_room_is_refused(gappy, weights, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    with pytest.raises(AttclError) as caught:
        plan_of(gappy(), tmp_path / "out", weights)
    assert caught.value.code == "disk-full"
    assert not (tmp_path / "out").exists()


def test_room_is_asked_for_the_volumes_that_are_left(gappy, weights, tmp_path, monkeypatch):
    volume = 40 * 40 * 26 * 2 / 4  # bytes of int16, compressed
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 0, round(2 * volume)))
    root = gappy()
    assert plan_of(root, tmp_path / "out", weights, targets=["t1ce"]).volumes == 2
    with pytest.raises(AttclError) as caught:
        plan_of(root, tmp_path / "out", weights)
    assert caught.value.code == "disk-full"


def test_room_is_asked_for_standard_deviations_too(gappy, weights, tmp_path, monkeypatch):
    voxels = 40 * 40 * 26
    usage = namedtuple("usage", "total used free")
    free = round(voxels * (2 + 4) / 4)  # of a volume of int16 and one of float32, compressed
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 0, free))
    options = {"samples": 2, "uncertainty": True}
    root = gappy(lacking=[("t2",), ("t1",), (), ()])
    assert plan_of(root, tmp_path / "out", weights, targets=["t2"], **options).volumes == 1
    assert plan_of(root, tmp_path / "out", weights).volumes == 2
    with pytest.raises(AttclError) as caught:
        plan_of(root, tmp_path / "out", weights, **options)
    assert caught.value.code == "disk-full"


# --- the challenge's names --------------------------------------------------------------------------------------------


def test_a_challenge_takes_no_uncertainty(gappy, weights, tmp_path):
    with pytest.raises(UsageError) as caught:
        plan_of(
            gappy("brats2023"),
            tmp_path / "out",
            weights,
            naming=BRASYN,
            samples=2,
            uncertainty=True,
        )
    assert caught.value.code == "options-exclude-each-other"


def test_a_challenge_takes_volumes_alone(gappy, weights, tmp_path):
    with pytest.raises(UsageError) as caught:
        plan_of(gappy("slices"), tmp_path / "out", weights, naming=BRASYN)
    assert caught.value.code == "slices-instead-of-volumes"


def test_a_challenge_takes_cases_named_as_its_own(gappy, weights, tmp_path):
    with pytest.raises(UsageError, match="case 'Phantom_00000' \\(4 of 4\\)") as caught:
        plan_of(gappy("brats"), tmp_path / "out", weights, naming=BRASYN)
    assert caught.value.code == "case-name-not-of-challenge"


def test_a_challenge_takes_its_own_modalities(gappy, weights, tmp_path):
    root = gappy("brats2023")
    names = "".join(f'{name} = ["{token}"]\n' for name, token in (("flair", "t2f"), ("pd", "t1n")))
    (root / "modalities.toml").write_text(f"[modalities]\n{names}")
    with pytest.raises(UsageError, match="modality pd") as caught:
        plan_of(root, tmp_path / "out", weights, naming=BRASYN)
    assert caught.value.code == "modality-not-of-challenge"


def test_the_pattern_of_a_submission_takes_the_challenge_s_names():
    pattern = re.compile(BRASYN.fields["case"])
    assert pattern.fullmatch("BraTS-GLI-00001-000")
    assert not pattern.fullmatch("BraTS2021_00001")


def test_a_folder_that_holds_something_else_takes_no_submission(gappy, weights, tmp_path):
    dataset = open_dataset(gappy("brats2023"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.hidden").write_text("")  # half written, perhaps
    plan_of(dataset, tmp_path / "out", weights, naming=BRASYN)
    (tmp_path / "out/notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"holds notes\.txt") as caught:
        plan_of(dataset, tmp_path / "out", weights, naming=BRASYN)
    assert caught.value.code == "output-of-another-layout"


# --- files of others in the output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_side_car_of_another_program_is_not_replaced(overwrite, gappy, weights, tmp_path):
    """As if a dataset was copied into the output: the JSON of a scan that was discarded."""
    root = gappy(lacking=[("t2",), (), (), ()])
    side_car = tmp_path / "out" / phantom_file(0, "t2").replace(".nii.gz", ".json")
    side_car.parent.mkdir(parents=True)
    side_car.write_text('{"RepetitionTime": 2}')
    with pytest.raises(AttclError, match="not written by attcl") as caught:
        completed(root, tmp_path / "out", weights, overwrite=overwrite)
    assert caught.value.code == "not-made-by-attcl"
    assert side_car.read_text() == '{"RepetitionTime": 2}'


@pytest.mark.parametrize("made", [False, True])
def test_a_deviation_of_another_program_is_neither_replaced_nor_removed(
    made, gappy, weights, other_weights, tmp_path
):
    root, out = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    if made:
        completed(root, out, weights)
    theirs = out / phantom_file(0, "t2").replace(".nii.gz", "_uncertainty.nii.gz")
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(AttclError, match=r"_uncertainty.nii.gz: not written by attcl"):
        completed(root, out, other_weights, overwrite=True)
    assert theirs.read_bytes() == b"theirs"


def test_a_scan_that_was_put_in_the_place_of_a_volume_is_not_overwritten(
    gappy, weights, phantom_root, tmp_path
):
    """The real T2 arrived later, and was copied over the synthetic one."""
    root, out = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    completed(root, out, weights)
    volume = out / phantom_file(0, "t2")
    shutil.copyfile(phantom_root / phantom_file(0, "t2"), volume)
    before = volume.read_bytes()
    with pytest.raises(AttclError, match="its header does not say that attcl made it"):
        completed(root, out, weights, overwrite=True)
    assert volume.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.json", '{"mine": 1}'), ("run.json", "[]"), ("report.html", "<p>x")],
)
def test_files_of_others_with_the_names_of_results_are_not_replaced(
    name, text, gappy, weights, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name}: not written by attcl") as caught:
        complete(gappy(), tmp_path / "out", weights=weights.path, device="cpu")
    assert caught.value.code == "output-not-ours"
    assert (tmp_path / "out" / name).read_text() == text


def test_the_log_of_a_shell_in_the_output_is_no_obstacle(gappy, weights, tmp_path):
    """`attcl complete ... | tee out/log.txt`, and the summary that nnU-Net wrote there: neither is replaced."""
    (tmp_path / "out").mkdir()
    for name in ("log.txt", "summary.json"):
        (tmp_path / "out" / name).write_text("mine\n")
    complete(gappy(), tmp_path / "out", weights=weights.path, device="cpu")
    for name in ("log.txt", "summary.json"):
        assert (tmp_path / "out" / name).read_text().startswith("mine\n")


@pytest.mark.parametrize("lost", [".json", ".nii.gz .json"])
def test_a_deviation_of_ours_is_no_strangers_if_the_rest_was_removed(
    lost, gappy, weights, tmp_path
):
    root, out = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    request = {"samples": 2, "uncertainty": True}
    completed(root, out, weights, **request)
    before = states(out)
    for ending in lost.split():
        (out / phantom_file(0, "t2").replace(".nii.gz", ending)).unlink()
    completed(root, out, weights, **request)
    assert states(out).keys() == before.keys()
    assert completed(root, out, weights, overwrite=True)  # another manner, without a deviation
    assert not list(out.rglob("*_uncertainty*"))


def test_a_volume_that_was_worked_on_by_others_is_not_written_again_for_its_deviation(
    gappy, weights, tmp_path
):
    root, out = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    request = {"samples": 2, "uncertainty": True}
    completed(root, out, weights, **request)
    volume = out / phantom_file(0, "t2")
    image = nib.load(volume)
    corrected = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)  # no word of attcl
    nib.save(corrected, volume)
    before = volume.read_bytes()
    volume.with_name(volume.name.replace(".nii.gz", "_uncertainty.nii.gz")).unlink()
    with pytest.raises(AttclError, match="its header does not say that attcl made it"):
        completed(root, out, weights, **request)
    assert volume.read_bytes() == before


def test_a_single_damaged_volume_of_ours_is_a_failed_case_and_no_refusal(gappy, weights, tmp_path):
    root, out = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    complete(root, out, weights=weights.path, device="cpu")
    cut_off(out / phantom_file(0, "t2"))
    result = complete(root, out, weights=weights.path, device="cpu", keep_going=True)
    assert [case for case, _ in result.failed] == ["Phantom_00000"]


def test_a_side_car_that_was_edited_does_not_stop_the_end_of_a_run(
    gappy, weights, other_weights, tmp_path
):
    """At its end, a run looks at all side-cars, if an earlier one had other weights."""
    root, out = gappy(lacking=[("t2",), ("t1",), (), ()]), tmp_path / "out"
    complete(root, out, weights=other_weights.path, device="cpu", targets=["t2"])
    with_an_unusable_side_car(out / phantom_file(0, "t2"))
    result = complete(root, out, weights=weights.path, device="cpu", keep_going=True)
    assert (result.written, [case for case, _ in result.failed]) == (1, ["Phantom_00000"])


def test_a_record_that_was_removed_is_written_again(gappy, weights, tmp_path):
    root, out = gappy(), tmp_path / "out"
    complete(root, out, weights=weights.path, device="cpu")
    (out / "run.json").unlink()
    assert complete(root, out, weights=weights.path, device="cpu").written == 0
    assert json.loads((out / "run.json").read_text())["status"] == "done"
