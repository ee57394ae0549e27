"""What a worker on a device or a cluster does: jobs with models that stay loaded, and their retries."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from completers import LACKING, outputs, phantom_file, plan_of

from attcl_cli import cluster
from attcl_cli.completion import warm
from attcl_cli.completion.on_ray import _Worker
from attcl_cli.completion.run import complete
from attcl_cli.completion.warm import WarmModels, shared_by_jobs
from attcl_cli.errors import AttclError

__all__ = ["LACKING"]  # of the fixture gappy


def test_a_model_is_loaded_once_for_all_jobs(gappy, weights, tmp_path, monkeypatch):
    root = gappy()
    plan = plan_of(root, tmp_path / "out", weights)
    loaded, load = [], warm.load_method
    monkeypatch.setattr(warm, "load_method", lambda *given: loaded.append(given) or load(*given))
    models = WarmModels(shared_by_jobs(plan), "cpu", batch_size=4, workers=0)
    assert not loaded
    assert [item.job for job in plan.jobs for item in models.made([job])] == list(plan.jobs)
    assert len(loaded) == 1
    complete(root, tmp_path / "alone", weights=weights.path, device="cpu")
    made, alone = (
        {name: data for name, data in outputs(folder).items() if name.endswith(".nii.gz")}
        for folder in (tmp_path / "out", tmp_path / "alone")
    )
    assert made == alone


def test_what_travels_once_does_not_grow_with_what_is_done_and_what_failed(
    gappy, weights, tmp_path
):
    plan = plan_of(gappy(), tmp_path / "out", weights)
    few, many = (
        len(pickle.dumps(shared_by_jobs(replace(plan, present=cases, failed=cases))))
        for cases in ({}, {f"case-{number}": {} for number in range(1000)})
    )
    assert few == many


def test_other_weights_at_the_same_path_are_an_error_and_no_volume_names_the_wrong_ones(
    gappy, weights, tmp_path
):
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.path.read_bytes() + b" ")
    model = replace(weights, path=other)
    plan = plan_of(gappy(), tmp_path / "out", model)
    models = WarmModels(shared_by_jobs(plan), "cpu", batch_size=4, workers=0)
    with pytest.raises(AttclError, match=r"other\.safetensors: SHA-256 .*expected ") as caught:
        list(models.made(plan.jobs))
    assert caught.value.code == "weights-differ"
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_worker_without_the_folder_of_the_driver_names_it(gappy, weights, tmp_path):
    plan = plan_of(gappy(), tmp_path / "out", weights)
    worker = _Worker(shared_by_jobs(plan), str(tmp_path / "elsewhere"), "cpu", 1, 0)
    with pytest.raises(AttclError, match="elsewhere: not on ") as caught:
        worker.work(plan.jobs)
    assert caught.value.code == "no-shared-folder"


def test_a_worker_tries_a_case_that_fails_three_times(gappy, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = gappy()
    plan = plan_of(root, tmp_path / "out", weights)
    (root / phantom_file(1, "flair")).write_bytes(b"damaged")
    worker = _Worker(shared_by_jobs(plan), os.fspath(Path.cwd()), "cpu", 4, 0)
    tries, made = [], worker._models.made
    monkeypatch.setattr(worker._models, "made", lambda jobs: tries.append(len(jobs)) or made(jobs))
    outcome = worker.work(plan.jobs)
    failed = [item for item in outcome if item.error is not None]
    assert tries == [len(plan.jobs)] + [len(failed)] * (cluster.TRIES - 1)
    assert {item.case[-1] for item in failed} == {"1"}
    tries.clear()
    worker.work(plan.jobs[:1])
    assert tries == [1]
