"""Completion with a method of many sources: plan, labels, other weights for some cases, the challenge's folder."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import states

from attcl_cli.completion import plan as planning
from attcl_cli.completion import run as complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.layouts import SUBMISSIONS
from attcl_cli.data.slices import build
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.methods import weights as checkpoint
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import Weights
from attcl_cli.training.state import load_state
from attcl_cli.training.trainer import STATE_FILE, Hooks, train

CPU = torch.device("cpu")
FOUR = ("flair", "t1", "t1ce", "t2")
LACKING = (("t1ce",), ("t1", "t2"), (), ("t1ce",))


@pytest.fixture(scope="session")
def plave_settings(tiny_settings) -> Settings:
    own = {"method": "plave", "plave_blocks": 1, "weight_decay": 0.0, "plave_pretraining": 0.5}
    return Settings.model_validate({**tiny_settings.model_dump(), **own})


@pytest.fixture(scope="session")
def plave_store(phantom_root, plave_settings, tmp_path_factory):
    dataset = open_dataset(phantom_root)
    folder = tmp_path_factory.mktemp("plave-slices")
    sizes = {"image_size": plave_settings.image_size, "canvas": plave_settings.canvas}
    return build(dataset, dataset.cases[:3], folder, **sizes, labels=True, workers=0)


@pytest.fixture(scope="session")
def runs(plave_settings, plave_store, tmp_path_factory) -> dict[str, Path]:
    """Finished runs: a general model and one dedicated to t1ce."""
    made = {}
    for name, target in (("general", ""), ("dedicated", "t1ce")):
        folder = tmp_path_factory.mktemp("plave") / name
        folder.mkdir()
        settings = plave_settings.model_copy(update={"plave_target": target})
        train(settings, plave_store, folder, device=CPU)
        made[name] = folder
    return made


@pytest.fixture(scope="session")
def weights(runs) -> dict[str, Weights]:
    return {name: checkpoint.find_weights(str(folder)) for name, folder in runs.items()}


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def completed(
    root: Path, output: Path, found: Weights, *, fallback: Weights | None = None, **options
):
    of_run = {key: options.pop(key) for key in ("batch_size", "workers") if key in options}
    plan = planning.plan(open_dataset(root), output, found, fallback=fallback, **options)
    second = checkpoint.load_method(fallback, CPU) if fallback else None
    method = checkpoint.load_method(found, CPU)
    return list(complete.run(plan, method, device=CPU, fallback=second, **of_run))


# --- training of such a method, by the loop that knows none -----------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bits_across_both_phases(
    plave_settings, plave_store, tmp_path
):
    settings = plave_settings.model_copy(update={"steps": 6, "save_every": 1, "log_every": 1})

    class Killed(Exception):
        pass

    def die(step: int, _losses: object) -> None:
        if step == 2:  # of the first phase's 3
            raise Killed

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train(settings, plave_store, tmp_path / "whole", device=CPU)
    with pytest.raises(Killed):
        train(settings, plave_store, tmp_path / "stopped", device=CPU, hooks=Hooks(on_step=die))
    train(settings, plave_store, tmp_path / "stopped", device=CPU, resume=True)
    one, two = (load_state(tmp_path / name / STATE_FILE) for name in ("whole", "stopped"))
    assert set(one.tensors) == set(two.tensors)
    assert all(torch.equal(one.tensors[key], two.tensors[key]) for key in one.tensors)
    names = [
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "stopped")
    ]
    assert names[0] == names[1]


def test_samples_show_the_sources_what_is_made_of_them_and_the_truth(
    plave_settings, plave_store, tmp_path
):
    seen = []
    settings = plave_settings.model_copy(update={"steps": 1, "save_every": 1})
    hooks = Hooks(draw=lambda *arguments: seen.append(arguments))
    train(settings, plave_store, tmp_path, device=CPU, hooks=hooks)
    ((_, titles, rows),) = seen
    assert titles == [*(f"source {name}" for name in FOUR), "synthetic", "real"]
    for slot, (title, images) in enumerate(rows):
        assert title.endswith(FOUR[slot])
        assert len(images) == 6
        assert (images[slot] == -1).all()  # the target is no source
        assert (images[5] > -1).any()


def test_weights_hold_no_references_and_no_discriminator(weights):
    method = checkpoint.load_method(weights["general"], CPU)
    assert method.references == {}
    kinds = {key.split(".")[0] for key in checkpoint.read_tensors(weights["general"].path)}
    assert kinds == {"generator", "segmenter"}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_all_that_a_case_has_are_its_sources(gappy, weights, tmp_path):
    plan = planning.plan(open_dataset(gappy()), tmp_path / "out", weights["general"])
    assert {job.case.id[-1]: job.sources for job in plan.jobs} == {
        "0": ("flair", "t1", "t2"),
        "1": ("flair", "t1ce"),
        "3": ("flair", "t1", "t2"),
    }


def test_the_side_car_lists_every_source(gappy, weights, tmp_path):
    completed(gappy(), tmp_path / "out", weights["general"])
    label = json.loads((tmp_path / "out/Phantom_00001/Phantom_00001_t2.json").read_text())
    assert label["sources"] == [
        {"modality": name, "files": [f"Phantom_00001/Phantom_00001_{name}.nii.gz"]}
        for name in ("flair", "t1ce")
    ]
    assert "source" not in label
    assert label["method"] == "plave"
    image = nib.load(tmp_path / "out/Phantom_00001/Phantom_00001_t2.nii.gz")
    assert image.header["descrip"].item().decode().endswith("synthetic t2 from flair, t1ce")


def test_a_single_source_is_told_as_ever(gappy, weights, tmp_path):
    root = gappy(lacking=[("flair", "t1", "t1ce"), (), (), ()])
    completed(root, tmp_path / "out", weights["general"], targets=["t1"])
    label = json.loads((tmp_path / "out/Phantom_00000/Phantom_00000_t1.json").read_text())
    assert label["source"]["modality"] == "t2"
    assert "sources" not in label


def test_voxels_are_zero_where_all_sources_are_and_nowhere_else(gappy, weights, tmp_path):
    root = gappy()
    path = root / "Phantom_00000/Phantom_00000_t1.nii.gz"
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[:20] = 0
    nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
    completed(root, tmp_path / "out", weights["general"])
    made = nib.load(tmp_path / "out/Phantom_00000/Phantom_00000_t1ce.nii.gz").get_fdata()
    own = [
        nib.load(root / f"Phantom_00000/Phantom_00000_{name}.nii.gz").get_fdata() != 0
        for name in ("flair", "t1", "t2")
    ]
    inside = np.any(own, axis=0)
    assert not made[~inside].any()
    assert made[inside & ~own[1]].any()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 9}, {"workers": 0}], ids=str)
def test_batch_size_and_workers_change_no_byte(options, gappy, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", weights["general"])
    completed(root, tmp_path / "other", weights["general"], **options)
    assert files(tmp_path / "other") == files(tmp_path / "plain")


def test_parts_together_write_what_one_run_writes(gappy, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", weights["general"])
    for number in (2, 1):
        completed(root, tmp_path / "parts", weights["general"], part=(number, 2))
    assert files(tmp_path / "parts") == files(tmp_path / "plain")
    again = planning.plan(open_dataset(root), tmp_path / "parts", weights["general"])
    assert (again.jobs, again.done) == ((), 4)


def test_a_method_with_one_look_draws_no_samples(gappy, weights, tmp_path):
    with pytest.raises(UsageError, match="--samples: 3 with weights of plave"):
        planning.plan(open_dataset(gappy()), tmp_path / "out", weights["general"], samples=3)


# --- dedicated models, and what else serves ---------------------------------------------------------------------------


def test_what_a_dedicated_model_cannot_make_is_told_before_anything_runs(gappy, weights, tmp_path):
    root = gappy(lacking=[("t1ce",), ("t1", "t2"), ("t1", "t1ce"), ("t2",)])
    with pytest.raises(AttclError) as caught:
        planning.plan(open_dataset(root), tmp_path / "out", weights["dedicated"])
    told = [problem.message for problem in caught.value.problems]
    assert len(told) == 3
    assert any("makes t1ce, not t1, expected a model for these (2): " in text for text in told)
    assert any("makes t1ce, not t2, expected a model for these (2): " in text for text in told)
    (lacks,) = [text for text in told if "but cases lack t1" in text]
    assert "from flair, t1, t2" in lacks
    assert "for these (1): Phantom_00002" in lacks
    assert all("--fallback" in problem.hint for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_the_fallback_serves_the_cases_that_the_first_model_cannot(gappy, weights, tmp_path):
    root = gappy(lacking=[("t1ce",), ("t1", "t2"), ("t1", "t1ce"), ()])
    dedicated, general = weights["dedicated"], weights["general"]
    completed(root, tmp_path / "out", dedicated, fallback=general)
    made_by = {
        path.name: json.loads(path.read_text())["weights"]["sha256"]
        for path in (tmp_path / "out").rglob("*.json")
    }
    assert made_by == {
        "Phantom_00000_t1ce.json": dedicated.sha256,
        "Phantom_00001_t1.json": general.sha256,
        "Phantom_00001_t2.json": general.sha256,
        "Phantom_00002_t1.json": general.sha256,
        "Phantom_00002_t1ce.json": general.sha256,
    }
    completed(root, tmp_path / "alone", general)
    name = "Phantom_00001/Phantom_00001_t2.nii.gz"
    assert files(tmp_path / "out")[name] == files(tmp_path / "alone")[name]
    again = planning.plan(open_dataset(root), tmp_path / "out", dedicated, fallback=general)
    assert (again.jobs, again.done) == ((), 5)


def travelled(plan: planning.Plan) -> planning.Plan:
    """The plan with jobs that came from another process: their weights are equal copies."""
    return replace(plan, jobs=tuple(pickle.loads(pickle.dumps(job)) for job in plan.jobs))


def test_jobs_from_another_process_use_the_same_weights(gappy, weights, tmp_path):
    dataset, pair = open_dataset(gappy()), (weights["dedicated"], weights["general"])
    methods = [checkpoint.load_method(found, CPU) for found in pair]
    for name, change in (("here", lambda plan: plan), ("travelled", travelled)):
        plan = change(planning.plan(dataset, tmp_path / name, pair[0], fallback=pair[1]))
        done = list(complete.run(plan, methods[0], device=CPU, fallback=methods[1], workers=0))
        assert len(done) == 3
    assert files(tmp_path / "travelled") == files(tmp_path / "here")


def test_the_command_loads_the_fallback_for_jobs_from_another_process(
    gappy, runs, weights, attcl, tmp_path, monkeypatch
):
    root = gappy()
    completed(root, tmp_path / "here", weights["dedicated"], fallback=weights["general"])
    plan_of = planning.plan
    monkeypatch.setattr(
        planning, "plan", lambda *given, **options: travelled(plan_of(*given, **options))
    )
    arguments = ["-w", runs["dedicated"], "--fallback", runs["general"], "-d", "cpu"]
    code, _, err = attcl("complete", "--ori", root, "--cpl", tmp_path / "out", *arguments)
    assert code == 0, err
    made = files(tmp_path / "out")
    del made["run.json"]
    assert made == files(tmp_path / "here")


def test_lacking_modalities_are_reported_once_for_equal_weights(gappy, weights, tmp_path):
    dataset, dedicated = open_dataset(gappy()), weights["dedicated"]
    plan = planning.plan(dataset, tmp_path / "out", dedicated, fallback=weights["general"])
    jobs = [replace(job, weights=copy.deepcopy(dedicated), outputs={"t2": ()}) for job in plan.jobs]
    _, _, problems = planning._sound(dataset, jobs, None, dedicated, keep_going=False)
    (problem,) = problems
    assert problem.message.endswith("(3): Phantom_00000, Phantom_00001, Phantom_00003")


def test_a_model_of_one_source_may_be_the_fallback(gappy, weights, trained_run, tmp_path):
    root, one = gappy(), checkpoint.find_weights(str(trained_run))
    plan = planning.plan(open_dataset(root), tmp_path / "out", weights["dedicated"], fallback=one)
    assert {job.case.id[-1]: (job.sources, job.weights is one) for job in plan.jobs} == {
        "0": (("flair", "t1", "t2"), False),
        "1": (("flair",), True),
        "3": (("flair", "t1", "t2"), False),
    }


def test_a_fallback_that_cannot_make_it_either_is_told(gappy, weights, tmp_path):
    dedicated = weights["dedicated"]
    other = checkpoint.Weights("other", Path("other.safetensors"), "1" * 64, dedicated.info)
    with pytest.raises(AttclError) as caught:
        planning.plan(open_dataset(gappy()), tmp_path / "out", dedicated, fallback=other)
    problems = caught.value.problems
    assert all(problem.message.startswith("other.safetensors: makes t1ce") for problem in problems)
    assert all(problem.hint.startswith("choose another --fallback") for problem in problems)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_names_both_weights(gappy, runs, weights, attcl, tmp_path):
    root = gappy()
    arguments = ["complete", "--ori", root, "--cpl", tmp_path / "out", "-d", "cpu"]
    arguments += ["-w", runs["dedicated"], "--fallback", runs["general"]]
    code, out, _ = attcl(*arguments, "--dry-run", "--json")
    jobs = json.loads(out)["jobs"]
    assert code == 0
    assert [(job["source"], job["weights"]) for job in jobs] == [
        ("flair, t1, t2", "dedicated"),
        ("flair, t1ce", "general"),
        ("flair, t1, t2", "dedicated"),
    ]
    code, out, err = attcl(*arguments)
    assert code == 0, err
    assert "4 volumes written" in out
    told = json.loads((tmp_path / "out/run.json").read_text())
    assert told["weights"]["sha256"] == weights["dedicated"].sha256
    assert told["fallback"]["sha256"] == weights["general"].sha256


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("complete", "--fallback", "nothing"), "--fallback: 'nothing' is no file"),
        (("complete", "--samples", "2"), "--samples: 2 with weights of plave"),
        (
            ("complete", "--layout", "brasyn-submission"),
            "--layout brasyn-submission: case 'Phantom_00000'",
        ),
        (("complete", "--layout", "brasyn-submission", "--link-originals"), "--link-originals: "),
        (("score", "--directions", "--ssim", "--truth", "{root}"), "--directions: "),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_told_in_one_line(
    arguments, names, gappy, runs, attcl, tmp_path
):
    root = gappy()
    weights = runs["dedicated"] if arguments[0] == "score" else runs["general"]
    words = [word.format(root=root) for word in arguments]
    code, out, err = attcl(
        words[0], "--ori", root, "--cpl", tmp_path / "out", "-w", weights, *words[1:],
        *(["-o", tmp_path / "scores", "--split", "all"] if words[0] == "score" else []),
    )  # fmt: skip
    assert (code, out) == (2, ""), err
    assert err.startswith(f"error: {names}")
    assert "hint: " in err
    assert not (tmp_path / "out").exists()


def test_training_tells_an_unknown_target_at_once(phantom_root, attcl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = attcl(
        "train", "--data", phantom_root, "--method", "plave", "--preset", "tiny",
        "--set", "plave_target=t9",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert err.startswith("error: setting plave_target: 't9', expected one of flair, t1, t1ce, t2")
    assert list(tmp_path.iterdir()) == []


def test_plave_trains_and_completes_by_the_same_commands(
    gappy, plave_settings, attcl, tmp_path, monkeypatch
):
    from attcl_cli.methods.settings import dump

    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(dump(plave_settings))
    root = gappy()
    code, _, err = attcl("train", "--data", root, "-c", "tiny.toml", "-o", "run", "-d", "cpu")
    assert code == 0, err
    code, out, err = attcl("complete", "--ori", root, "--cpl", "out", "-w", "run", "-d", "cpu")
    assert code == 0, err
    assert "4 volumes written" in out
    code, out, err = attcl(
        "score", "--ori", root, "--cpl", "out", "--truth", root.parent / "gappy-brats", "--ssim",
        "--split", "all", "-o", "scores", "-d", "cpu",
    )  # fmt: skip
    assert code == 2 and "is the incomplete dataset itself" in err


def test_scores_read_labels_of_several_sources(gappy, runs, phantom_root, attcl, tmp_path):
    root = gappy()
    attcl("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", runs["general"], "-d", "cpu")
    code, out, err = attcl(
        "score", "--ori", root, "--cpl", tmp_path / "out", "--truth", phantom_root, "--ssim",
        "--split", "all", "-o", tmp_path / "scores", "-d", "cpu",
    )  # fmt: skip
    assert code == 0, err
    with (tmp_path / "scores/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = {
        (row["case"], row["modality"]): set(row["source"].split("+"))
        for row in rows
        if row["prediction"] == "synthetic"
    }
    wanted = {}
    for label in (tmp_path / "out").rglob("Phantom_*.json"):
        case, _, modality = label.stem.rpartition("_")
        named = json.loads(label.read_text())["sources"]
        wanted[case, modality] = {item["modality"] for item in named}
    assert told == wanted
    assert {len(sources) for sources in told.values()} == {2, 3}
    # flair, the most frequent modality, comes first: a copy is made of it
    assert all(row["source"].startswith("flair") for row in rows), out


# --- the challenge's folder -------------------------------------------------------------------------------------------


def test_a_submission_holds_the_right_names_and_nothing_else(gappy, runs, attcl, tmp_path):
    root = gappy("brats2023")
    arguments = ["complete", "--ori", root, "--cpl", tmp_path / "out", "-d", "cpu"]
    arguments += ["-w", runs["general"]]
    code, out, err = attcl(*arguments, "--layout", "brasyn-submission")
    assert code == 0, err
    wanted = {
        "Phantom-GLI-00000-000-t1c",
        "Phantom-GLI-00001-000-t1n",
        "Phantom-GLI-00001-000-t2w",
        "Phantom-GLI-00003-000-t1c",
    }
    assert set(files(tmp_path / "out")) == {f"{name}.nii.gz" for name in wanted}
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []
    assert set(files(tmp_path / "out-labels")) == {
        *(f"{name}.json" for name in wanted),
        "run.json",
    }
    before = files(tmp_path / "out")
    code, out, _ = attcl(*arguments, "--layout", "brasyn-submission")
    assert "nothing to do, 4 volumes are there already" in out
    assert files(tmp_path / "out") == before
    attcl(*arguments[:4], tmp_path / "usual", *arguments[5:])
    usual = files(tmp_path / "usual")
    for name, content in before.items():
        case = "-".join(name.split("-")[:4])
        assert usual[f"{case}/{name}"] == content


def test_a_submission_and_a_dataset_s_own_names_do_not_share_a_folder(
    gappy, runs, attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = ("complete", "--ori", gappy("brats2023"), "-w", runs["general"], "-d", "cpu", "-q")
    flat = (*own, "--layout", "brasyn-submission")
    assert attcl(*flat, "--cpl", "sub")[0] == 0
    before = states(tmp_path)
    code, _, err = attcl(*own, "--cpl", "sub")
    assert code == 2 and "sub holds what --layout brasyn-submission wrote" in err
    assert states(tmp_path) == before
    assert attcl(*own, "--cpl", "out")[0] == 0
    before = states(tmp_path)
    code, _, err = attcl(*flat, "--cpl", "out")
    assert code == 2 and "expected a folder for brasyn-submission alone" in err
    assert states(tmp_path) == before


def test_keep_going_does_the_cases_that_the_weights_can_make(gappy, runs, attcl, tmp_path):
    out = tmp_path / "out"
    given = ("complete", "--ori", gappy(), "--cpl", out, "-w", runs["dedicated"], "--keep-going")
    code, told, err = attcl(*given, "-n")
    assert code == 0 and "cases that cannot be done: 1" in told and "makes t1ce, not t1" in err
    code, _, err = attcl(*given, "-d", "cpu")
    assert code == 3
    statuses = {case["status"] for case in json.loads((out / "run.json").read_text())["cases"]}
    assert statuses == {"done", "failed"}


def test_the_pattern_of_a_submission_takes_the_challenge_s_names():
    import re

    pattern = re.compile(SUBMISSIONS["brasyn-submission"].fields["case"])
    assert pattern.fullmatch("BraTS-GLI-00001-000")
    assert not pattern.fullmatch("BraTS2021_00001")
