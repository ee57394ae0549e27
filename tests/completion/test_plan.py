"""The plan: what is missing, which model makes it and from what, what is done; cases with problems."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from completers import (
    LACKING,
    SOURCES,
    completed,
    expected_files,
    phantom_file,
    plan_of,
)

from attcl_cli.completion.jobs import Maker
from attcl_cli.completion.plan import choose_makers
from attcl_cli.completion.provenance import notes_of_learned
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, ProblemsError
from attcl_cli.methods import bundled

ORDER = ("t2", "flair", "t1", "t1ce")


# --- what is made of what ---------------------------------------------------------------------------------------------


def test_the_source_is_the_most_frequent_modality_that_the_case_has(gappy, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", weights)
    assert plan.modal_list == ORDER
    assert {job.case.id: job.sources for job in plan.jobs} == {
        f"Phantom_{case:05d}": (source,) for case, source in enumerate(SOURCES) if source
    }


def test_all_that_a_case_has_are_sources_of_a_method_that_takes_them(gappy, general, tmp_path):
    root = gappy(lacking=[("t1ce",), ("t1", "t2"), (), ("t1ce",)])
    plan = plan_of(root, tmp_path / "out", general)
    assert {job.case.id[-1]: job.sources for job in plan.jobs} == {
        "0": ("flair", "t1", "t2"),
        "1": ("flair", "t1ce"),
        "3": ("flair", "t1", "t2"),
    }


def test_the_plan_holds_what_is_missing_and_nothing_else(gappy, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", weights)
    files = {str(file) for job in plan.jobs for files in job.outputs.values() for file in files}
    assert files == {name for name in expected_files() if name.endswith(".gz")}
    assert (plan.volumes, plan.done) == (7, 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "said"), [("patients", True), ("run", False)])
def test_patients_that_published_weights_were_trained_on_are_named(
    kind, said, gappy, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(bundled, "kind_of", lambda _path: kind)
    info = replace(weights.info, trained_on=("Phantom_00000", "Phantom_00001", "Phantom_09999"))
    learned = replace(weights, info=info)
    notes = notes_of_learned(plan_of(gappy(), tmp_path / "out", learned).learned)
    assert (
        any(
            note.startswith("Phantom_00000, Phantom_00001: by their names among the patients that")
            for note in notes
        )
        == said
    )  # a run of one's own completes the cases that it learned from


def test_volumes_of_one_source_and_one_model_are_one_job(gappy, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", weights)
    assert [(job.case.id[-1], tuple(job.outputs)) for job in plan.jobs] == [
        (str(case), names) for case, names in enumerate(LACKING) if names
    ]


def test_a_whole_dataset_leaves_nothing_to_plan(phantom_root, weights, tmp_path):
    plan = plan_of(phantom_root, tmp_path / "out", weights)
    assert (plan.jobs, plan.volumes, plan.done, plan.used) == ((), 0, 0, ())


def test_target_limits_the_plan_to_these_modalities(gappy, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", weights, targets=["t1", "t2"])
    assert [(job.case.id[-1], list(job.outputs)) for job in plan.jobs] == [
        ("0", ["t2"]),
        ("1", ["t1"]),
        ("3", ["t1"]),
    ]


def test_parts_share_the_cases_without_overlap(gappy, weights, tmp_path):
    dataset = open_dataset(gappy())
    parts = [
        [job.case.id for job in plan_of(dataset, tmp_path / "out", weights, part=(k, 2)).jobs]
        for k in (1, 2)
    ]
    assert parts == [["Phantom_00000"], ["Phantom_00001", "Phantom_00003"]]


# --- which model makes a target ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "lacking", "choice"),
    [
        ("t1ce", ("t1ce",), ("dedicated", ("flair", "t1", "t2"))),
        ("t1ce", ("t1", "t1ce"), ("one", ("t2",))),  # the first model lacks t1
        ("t1", ("t1", "t1ce"), ("one", ("t2",))),  # the first model makes no t1
        ("t1", ("t1", "t2"), ("one", ("flair",))),
    ],
)
def test_the_first_model_that_can_make_a_target_does(
    target, lacking, choice, gappy, dedicated, weights, general
):
    case = open_dataset(gappy(lacking=[lacking, (), (), ()])).cases[0]
    models = {"dedicated": dedicated, "one": weights, "general": general}
    makers = choose_makers(list(models.values()), case, target, ORDER)
    assert makers == (Maker(models[choice[0]], choice[1]),)


def test_no_model_is_chosen_if_none_can_make_the_target(gappy, dedicated):
    case = open_dataset(gappy(lacking=[("t1", "t1ce"), (), (), ()])).cases[0]
    assert choose_makers([dedicated], case, "t1", ORDER) == ()
    assert choose_makers([dedicated], case, "t1ce", ORDER) == ()


# --- what is done -----------------------------------------------------------------------------------------------------


def test_volumes_that_lie_in_the_output_count_as_done(gappy, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "out", weights, targets=["t1"])
    plan = plan_of(root, tmp_path / "out", weights)
    assert (plan.volumes, plan.done) == (5, 2)
    assert {case[-1]: list(files) for case, files in plan.present.items()} == {
        "1": ["t1"],
        "3": ["t1"],
    }


def test_png_slices_that_lie_in_the_output_count_as_done(gappy, weights, tmp_path):
    root = gappy("slices")
    completed(root, tmp_path / "out", weights, slices=(10, 12))
    plan = plan_of(root, tmp_path / "out", weights, slices=(10, 12))
    assert (plan.jobs, plan.done) == ((), 7)


def test_overwrite_plans_what_is_done_again(gappy, weights, tmp_path):
    root = gappy("slices")
    completed(root, tmp_path / "out", weights, slices=(10, 12))
    plan = plan_of(root, tmp_path / "out", weights, slices=(10, 12), overwrite=True)
    assert (plan.volumes, plan.done) == (7, 0)


# --- cases with problems ----------------------------------------------------------------------------------------------


def test_all_problems_of_all_cases_are_reported_together(gappy, weights, tmp_path):
    root = gappy()
    for case, modality in ((0, "t1"), (1, "t2"), (3, "t2")):
        (root / phantom_file(case, modality)).write_bytes(b"")
    with pytest.raises(ProblemsError) as caught:
        plan_of(root, tmp_path / "out", weights)
    assert [problem.message.split(":")[0] for problem in caught.value.problems] == [
        str(root / phantom_file(case, modality))
        for case, modality in ((0, "t1"), (1, "t2"), (3, "t2"))
    ]


def test_by_default_one_bad_case_keeps_all_from_starting(one_bad, weights, tmp_path):
    with pytest.raises(AttclError) as caught:
        plan_of(one_bad, tmp_path / "out", weights)
    assert caught.value.message.startswith(f"{one_bad / phantom_file(1, 't2')}: ")


def test_keep_going_leaves_out_the_bad_case(one_bad, weights, tmp_path):
    plan = plan_of(one_bad, tmp_path / "out", weights, keep_going=True)
    assert [job.case.id[-1] for job in plan.jobs] == ["0", "3"]
    assert list(plan.failed) == ["Phantom_00001"]


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_keep_going_fails_a_case_with_two_files_for_one_modality(layout, gappy, weights, tmp_path):
    """Which of the two is meant, nobody can know: neither may be used in silence."""
    root = gappy(layout)
    file = root / (phantom_file(1, "flair") if layout == "brats" else "flair/Phantom00001_003.png")
    twin = file.with_name(file.name.replace("flair", "FLAIR").replace("_003", "_3"))
    shutil.copyfile(file, twin)
    plan = plan_of(root, tmp_path / "out", weights, keep_going=True)
    assert [job.case.id[-1] for job in plan.jobs] == ["0", "3"]
    (error,) = plan.failed.values()
    assert "a second file for flair" in error.message


def test_keep_going_counts_a_case_without_any_modality_as_failed(gappy, weights, tmp_path):
    root = gappy("brats", [("t2",), (), (), ("flair", "t1", "t1ce", "t2")])
    plan = plan_of(root, tmp_path / "out", weights, keep_going=True)
    assert [job.case.id for job in plan.jobs] == ["Phantom_00000"]
    (error,) = plan.failed.values()
    assert "Phantom_00003: a case with no modality" in error.message


def test_of_two_parts_the_first_alone_counts_a_case_without_any_modality(gappy, weights, tmp_path):
    root = gappy("brats", [("t2",), (), (), ("flair", "t1", "t1ce", "t2")])
    failed = [
        list(plan_of(root, tmp_path / "out", weights, keep_going=True, part=(k, 2)).failed)
        for k in (1, 2)
    ]
    assert failed == [["Phantom_00003"], []]


def test_a_case_that_is_wrong_fails_its_own_part_alone(gappy, weights, tmp_path):
    root = gappy()
    file = root / phantom_file(1, "flair")
    shutil.copyfile(file, file.with_name(file.name.replace("flair", "FLAIR")))
    first = plan_of(root, tmp_path / "out", weights, part=(1, 2))
    assert [job.case.id for job in first.jobs] == ["Phantom_00000"]
    with pytest.raises(AttclError, match="a second file for flair"):
        plan_of(root, tmp_path / "out", weights, part=(2, 2))
    failed = [
        list(plan_of(root, tmp_path / "out", weights, keep_going=True, part=(k, 2)).failed)
        for k in (1, 2)
    ]
    assert failed == [[], ["Phantom_00001"]]


def test_a_wrong_case_of_which_nothing_is_missing_is_its_own_parts_too(gappy, weights, tmp_path):
    root = gappy(lacking=[("t2",), (), (), ("t1",)])
    file = root / phantom_file(1, "flair")
    shutil.copyfile(file, file.with_name(file.name.replace("flair", "FLAIR")))
    plan_of(root, tmp_path / "out", weights, part=(1, 2))
    with pytest.raises(AttclError, match="a second file for flair"):
        plan_of(root, tmp_path / "out", weights, part=(2, 2))
