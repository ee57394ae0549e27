"""Completion by several models: the first that can make a target does, and each volume says which one made it."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from completers import CPU, Echo, completed, images, make, outputs, phantom_file, plan_of

from attcl_cli.completion import run
from attcl_cli.completion.jobs import CompletionPlan
from attcl_cli.completion.making import make_volumes
from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError
from attcl_cli.methods.sources import Exactly, SourceRule
from attcl_cli.methods.weights import WeightsInfo, load_method

# `narrow` knows no t2: with it first, case 0 is served by two models, case 1 by it alone, case 3 by the other alone.
LACKING = (("t1", "t1ce", "t2"), ("t1ce",), (), ("t2",))


class Ruled(WeightsInfo):
    """Weights whose rule is each target from two others."""

    @property
    def rule(self) -> SourceRule:
        return Exactly({"t1": ("flair", "t2"), "t1ce": ("flair",)})


def makers(output: Path) -> dict[str, str]:
    """Return volume -> name of the weights in its side-car."""
    return {
        path.stem: json.loads(path.read_text())["weights"]["name"]
        for path in sorted(output.rglob("Phantom_*.json"))
    }


def record_in(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


def travelled(plan: CompletionPlan) -> CompletionPlan:
    """Return the plan with jobs that came from another process: their weights are equal copies."""
    return replace(plan, jobs=tuple(pickle.loads(pickle.dumps(job)) for job in plan.jobs))


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_every_target_is_made_by_the_first_model_that_can(gappy, narrow, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", narrow, weights)
    assert plan.modal_list == ("flair", "t1", "t1ce", "t2")
    assert [
        (job.case.id[-1], job.weights.name, job.sources, tuple(job.outputs)) for job in plan.jobs
    ] == [
        ("0", narrow.name, ("flair",), ("t1", "t1ce")),
        ("0", weights.name, ("flair",), ("t2",)),
        ("1", narrow.name, ("flair",), ("t1ce",)),
        ("3", weights.name, ("flair",), ("t2",)),
    ]
    assert plan.used == (narrow, weights)


def test_the_order_of_the_models_decides(gappy, narrow, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", weights, narrow)
    assert plan.used == (weights,)
    assert [tuple(job.outputs) for job in plan.jobs] == [LACKING[0], LACKING[1], LACKING[3]]


def test_targets_that_one_model_makes_from_different_sources_are_different_jobs(
    gappy, weights, tmp_path
):
    values = {field.name: getattr(weights.info, field.name) for field in fields(WeightsInfo)}
    ruled = replace(weights, info=Ruled(**values))
    root = gappy(lacking=[("t1", "t1ce"), (), (), ()])
    plan = plan_of(root, tmp_path / "out", ruled)
    assert [(job.sources, tuple(job.outputs)) for job in plan.jobs] == [
        (("flair", "t2"), ("t1",)),
        (("flair",), ("t1ce",)),
    ]


def test_a_model_of_one_source_serves_the_cases_that_a_dedicated_one_cannot(
    gappy, dedicated, weights, tmp_path
):
    root = gappy(lacking=[("t1ce",), ("t1", "t2"), (), ("t1ce",)])
    plan = plan_of(root, tmp_path / "out", dedicated, weights)
    assert {job.case.id[-1]: (job.sources, job.weights) for job in plan.jobs} == {
        "0": (("flair", "t1", "t2"), dedicated),
        "1": (("flair",), weights),
        "3": (("flair", "t1", "t2"), dedicated),
    }


def test_a_model_is_not_shown_a_source_that_it_does_not_know(gappy, narrow, tmp_path):
    """Although that is the most frequent one."""
    root = gappy(lacking=[("flair", "t1ce"), ("t1", "flair"), ("t1",), ()])
    plan = plan_of(root, tmp_path / "out", narrow, targets=["t1ce"])
    assert plan.modal_list[0] == "t2"
    assert [job.sources for job in plan.jobs] == [("t1",)]


# --- the volumes ------------------------------------------------------------------------------------------------------


def test_a_volume_has_the_bytes_that_its_model_alone_gives_it(gappy, narrow, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "both", narrow, weights)
    completed(root, tmp_path / "narrow", narrow, targets=["t1", "t1ce"])
    completed(root, tmp_path / "weights", weights, targets=["t2"])
    alone = images(tmp_path / "narrow") | images(tmp_path / "weights")
    assert len(alone) == 5
    assert images(tmp_path / "both") == alone


def test_side_cars_name_the_weights_that_made_the_volume(gappy, narrow, weights, tmp_path):
    completed(gappy(), tmp_path / "out", narrow, weights)
    assert makers(tmp_path / "out") == {
        "Phantom_00000_t1": narrow.name,
        "Phantom_00000_t1ce": narrow.name,
        "Phantom_00000_t2": weights.name,
        "Phantom_00001_t1ce": narrow.name,
        "Phantom_00003_t2": weights.name,
    }


def test_each_volume_is_made_by_the_method_of_its_weights(gappy, tiny_settings, narrow, tmp_path):
    scales = {"t2": narrow.info.scales["t1"]}
    info = replace(narrow.info, modalities=("flair", "t2"), scales=scales)
    other = replace(narrow, name="other", sha256="1" * 64, info=info)
    methods = {model.sha256: Echo(tiny_settings) for model in (narrow, other)}
    completed(gappy(), tmp_path / "out", narrow, other, methods=methods, batch_size=1000)
    asked = [set(method.asked) for method in methods.values()]
    assert asked == [
        {("flair", ("t1", "t1ce")), ("flair", ("t1ce",))},
        {("flair", ("t2",))},
    ]


def test_jobs_that_travelled_to_another_process_are_served_by_hash(
    gappy, narrow, weights, tmp_path
):
    dataset = open_dataset(gappy())
    methods = {model.sha256: load_method(model, CPU) for model in (narrow, weights)}
    make(plan_of(dataset, tmp_path / "here", narrow, weights), methods)
    there = travelled(plan_of(dataset, tmp_path / "there", narrow, weights))
    assert all(job.weights is not narrow and job.weights is not weights for job in there.jobs)
    assert there.used == (narrow, weights)
    assert len(make(there, methods)) == 4
    assert outputs(tmp_path / "there") == outputs(tmp_path / "here")


def test_a_whole_plan_travels(gappy, narrow, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", narrow, weights)
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    assert len(make(copy)) == 4


def test_a_job_whose_weights_no_method_has_is_an_error_of_the_caller(
    gappy, narrow, weights, tmp_path
):
    plan = plan_of(gappy(), tmp_path / "out", narrow, weights)
    with pytest.raises(KeyError, match=weights.sha256):
        list(make_volumes(plan, {narrow.sha256: load_method(narrow, CPU)}, device=CPU))


# --- the function -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both(gappy, narrow, weights, tmp_path) -> dict[str, Any]:
    """Arguments of `complete` for a dataset that needs both models."""
    models = [narrow.path.parent, weights.path.parent]
    return {"ori": gappy(), "cpl": tmp_path / "out", "weights": models, "device": "cpu"}


def test_the_record_has_one_entry_per_case_and_all_weights(both, narrow, weights):
    complete(**both)
    record = record_in(both["cpl"])
    assert {case["id"]: sorted(case["outputs"]) for case in record["cases"]} == {
        f"Phantom_{case:05d}": [phantom_file(case, name) for name in names]
        for case, names in enumerate(LACKING)
        if names
    }
    assert len(record["cases"]) == 3
    assert {case["status"] for case in record["cases"]} == {"done"}
    assert record["weights"] == {"name": narrow.name, "sha256": narrow.sha256}
    assert record["further_weights"] == [{"name": weights.name, "sha256": weights.sha256}]
    assert record["trained_on"] == sorted([*weights.info.trained_on, "Elsewhere_7"])
    assert record["trained_on_by_weights"] == {
        it.sha256: list(it.info.trained_on) for it in (narrow, weights)
    }


def test_the_record_of_one_model_has_no_further_weights(finished, weights):
    record = record_in(finished["cpl"])
    assert "further_weights" not in record
    assert record["trained_on"] == sorted(weights.info.trained_on)


def test_weights_that_are_named_twice_count_once(both, narrow, weights):
    models = [*both["weights"], both["weights"][0]]
    plan = complete(**{**both, "weights": models, "dry_run": True}).plan
    assert [model.sha256 for model in plan.models] == [narrow.sha256, weights.sha256]


def test_a_case_that_one_model_left_half_done_is_finished_by_the_other(both, weights):
    result = complete(**both)
    assert (result.written, result.done_before) == (5, 0)
    before = outputs(both["cpl"])
    (both["cpl"] / phantom_file(0, "t2")).unlink()
    result = complete(**both)
    assert (result.written, result.done_before) == (1, 4)
    assert [job.weights for job in result.plan.jobs] == [weights]
    assert outputs(both["cpl"]) == before
    cases = {case["id"]: case for case in record_in(both["cpl"])["cases"]}
    assert {name: case["status"] for name, case in cases.items()} == {
        "Phantom_00000": "done",
        "Phantom_00001": "present",
        "Phantom_00003": "present",
    }
    assert sorted(cases["Phantom_00000"]["outputs"]) == [
        phantom_file(0, name) for name in LACKING[0]
    ]


def test_the_function_does_jobs_that_travelled(both, tmp_path, monkeypatch):
    complete(**both)
    real = run.plan_completion
    monkeypatch.setattr(run, "plan_completion", lambda *args, **kw: travelled(real(*args, **kw)))
    complete(**{**both, "cpl": tmp_path / "again"})
    assert outputs(tmp_path / "again") == outputs(both["cpl"])


def test_a_case_of_which_one_model_fails_is_failed_with_what_the_other_made(
    both, weights, monkeypatch
):
    """Reading the case for the second time fails."""
    from attcl_cli.data import volumes

    real, seen = volumes.load_case, []

    def failing(files, **options):
        seen.append(str(next(iter(files.values()))[0]))
        if sum("Phantom_00000" in path for path in seen) == 2:
            seen.clear()
            raise AttclError("Phantom_00000: lost, expected it", code="lost")
        return real(files, **options)

    monkeypatch.setattr(volumes, "load_case", failing)
    result = complete(**both, keep_going=True, num_workers=0)
    assert [(case, error.code) for case, error in result.failed] == [("Phantom_00000", "lost")]
    assert result.written == 4
    cases = {case["id"]: case for case in record_in(both["cpl"])["cases"]}
    assert cases["Phantom_00000"]["status"] == "failed"
    assert sorted(cases["Phantom_00000"]["outputs"]) == [phantom_file(0, n) for n in ("t1", "t1ce")]
    assert (cases["Phantom_00001"]["status"], cases["Phantom_00003"]["status"]) == ("done", "done")


def test_no_target_without_a_model_and_keep_going_does_the_other_cases(both, narrow):
    alone = {**both, "weights": narrow.path.parent}
    with pytest.raises(AttclError) as caught:
        complete(**alone)
    assert caught.value.code == "no-model-for-target"
    assert caught.value.message == (
        f"{narrow.path} makes flair, t1, t1ce, not t2, "
        "expected a model for t2 of 2 cases: Phantom_00000, Phantom_00003"
    )
    assert not both["cpl"].exists()
    result = complete(**alone, keep_going=True)
    assert (result.written, [case for case, _ in result.failed]) == (
        1,
        ["Phantom_00000", "Phantom_00003"],
    )
    assert list(images(both["cpl"])) == [phantom_file(1, "t1ce")]
