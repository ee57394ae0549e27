"""What is wrong with a study is said before its first job, with what is wrong and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checks import (
    require_apart,
    require_commands,
    require_places,
    require_runnable,
    require_same,
    require_single_keys,
    require_splits,
)
from plan import Study, read_study

from attcl_cli.errors import AttclError, ProblemsError, single_problems

HERE = Path(__file__).resolve().parents[2] / "examples" / "study"
CELL = "p/ratio1/all/seed0"


def study(**changes: object) -> Study:
    return read_study(
        {
            "title": "A question",
            "output": "study",
            "datasets": {"p": {"path": "DATA", "sizes": "4/1/3"}},
            "methods": {"attcl-gan": {"method": "attcl-gan"}},
            **changes,
        }
    )


@pytest.fixture
def data(tmp_path, monkeypatch, names_alone) -> Path:
    monkeypatch.chdir(tmp_path)
    return names_alone(Path("DATA"), 8)


def test_a_study_that_is_as_it_should_be_passes(data):
    require_runnable(study(subsets=["1", "3/4"], ratios=["ratio1", "ratio3"], seeds=[0, 1]))


def test_a_dataset_or_a_scenario_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttclError, match=r"datasets: p: DATA, no such folder"):
        require_places(study())
    Path("DATA").mkdir()
    require_places(study())
    with pytest.raises(
        AttclError, match=r"ratios: own.toml, no such file, expected ratio1, ratio2"
    ):
        require_places(study(ratios=["ratio1", "own.toml"]))


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.yaml")))
def test_the_files_that_come_with_it_have_commands_and_settings_that_exist(name):
    require_commands(read_study(yaml.safe_load((HERE / name).read_text()), name=name))


def rows(**changes: object) -> dict:
    return {"methods": {"attcl-gan": {"method": "attcl-gan", **changes}}}


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (rows(variant="alc"), r"methods: attcl-gan: .*alc.*expected", "did you mean 'acl'"),
        (rows(options=["--set", "batchsize=2"]), r"methods: attcl-gan: .*batchsize", "batch_size"),
        (
            rows(options=["--set", "batch_size=no"]),
            r"methods: attcl-gan: .*batch_size: found 'no'",
            "",
        ),
        (
            rows(options=["--stepps", "2"]),
            r"methods: attcl-gan: No such option: --stepps",
            "--help",
        ),
        (
            rows(options=["--steps", "many"]),
            r"methods: attcl-gan: Invalid value for '--steps'",
            "--help",
        ),
        (rows(layers=[9]), r"methods: attcl-gan: .*contrastive_layers: \[9\]", ""),
        (
            {"train": {"steps": 5, "options": ["--minutes", "2"]}},
            r"--minutes: given with --steps",
            "one option says",
        ),
        ({"train": {"preset": "huge"}}, r"methods: attcl-gan: .*huge", "tiny"),
        ({"segment": {"preset": "huge"}}, r"segment: .*huge", "tiny"),
        ({"segment": {"options": ["--set", "canvass=64"]}}, r"segment: .*canvass", "canvas"),
        (
            {"datasets": {"p": {"path": "DATA", "options": ["--layuot", "bids"]}}},
            r"splits: No such option: --layuot",
            "attcl prepare-splits --help",
        ),
    ],
)
def test_options_and_settings_that_do_not_exist_are_named_before_the_first_job(
    changes, message, hint
):
    with pytest.raises(AttclError, match=message) as caught:
        require_commands(study(**changes))
    assert hint in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.code == "study-not-runnable"


def test_the_mistakes_of_several_methods_are_named_together():
    wrong = {
        name: {"method": name, "variant": "none-of-its"} for name in ("attcl-gan", "plave", "unet")
    }
    with pytest.raises(AttclError) as caught:
        require_commands(study(methods=wrong))
    problems = [problem.message for problem in single_problems(caught.value)]
    assert [message.split(": --variant")[0] for message in problems] == [
        f"methods: {name}" for name in wrong
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"datasets": {"p": {"path": "DATA", "sizes": "6/2/4"}}},
            r"datasets: p: --sizes: 6/2/4 of 8 cases",
        ),
        ({"subsets": ["1/8"]}, r"datasets: p: --subset: 1/8 of 4 training cases is 0"),
        ({"without": "t1"}, r"datasets: p: \d cases of ratio1 without t1, such as Case_\d"),
        (
            {"datasets": {"p": {"path": "DATA", "options": ["--fractions", "1/0"]}}},
            r"datasets: p: --fractions: '1/0', expected three numbers",
        ),
    ],
)
def test_splits_that_a_dataset_does_not_bear_are_named_before_the_first_job(data, changes, message):
    with pytest.raises(AttclError, match=message):
        require_splits(study(**changes))


def test_a_hidden_modality_is_no_mistake_without_a_segmenter(data):
    require_splits(study(without="t1", segment=None))


@pytest.fixture
def begun(tmp_path, monkeypatch) -> Study:
    """Return a study of which each job was begun, and has left nothing but its note."""
    monkeypatch.chdir(tmp_path)
    plan = study(train={"steps": 5, "options": ["--set", "batch_size=2"]})
    for job in plan.jobs():
        plan.log(plan.done(*job)).parent.mkdir(parents=True, exist_ok=True)
        command = plan.command(*job).replace(sys.executable, "true")
        assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    return plan


def longer(steps: int = 6) -> Study:
    return study(train={"steps": steps, "options": ["--set", "batch_size=2"]})


def test_a_study_that_was_changed_is_not_taken_for_the_one_that_was_run(begun):
    for job in begun.jobs():
        begun.done(*job).touch()
    require_same(begun)
    require_same(study(train=begun.file.train, device="cpu", offline=True))
    with pytest.raises(AttclError) as caught:
        require_same(longer())
    assert caught.value.message == (
        f"study/jobs/{CELL}/train-attcl-gan.command: the job was run with '--steps 5', "
        "expected '--steps 6' as the study says now"
    )
    assert "another output" in caught.value.hint
    with pytest.raises(AttclError, match="'--steps 5 --set batch_size=2', expected '--steps 5'"):
        require_same(study(train={"steps": 5}))
    (note,) = Path("study").rglob("train-attcl-gan.command")
    note.write_bytes(b"a note that was 'damaged \xff")
    with pytest.raises(AttclError, match="the job was run with"):
        require_same(begun)
    note.unlink()  # as an earlier version of the workflow left it
    require_same(longer())


def test_a_training_that_is_to_be_resumed_is_that_of_the_study(begun):
    require_same(longer())  # there is nothing to resume
    record = begun.folder(CELL, "train", "attcl-gan") / "run.json"
    record.parent.mkdir(parents=True)
    record.touch()
    require_same(begun)
    with pytest.raises(AttclError, match=r"'--steps 5', expected '--steps 6'"):
        require_same(longer())


def test_a_study_does_not_lie_in_its_dataset_nor_the_dataset_in_it(data):
    for output in ("DATA", "DATA/study", "."):
        with pytest.raises(AttclError, match="lie in one another") as caught:
            require_apart(study(output=output))
        assert caught.value.code == "output-among-originals"
    require_apart(study())


def test_a_key_that_stands_twice_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("methods:\n  plave: {method: plave}\n  plave: {method: unet}\n")
    with pytest.raises(AttclError, match=r"plave stands twice in one table \(line 3\)"):
        require_single_keys([file])
    file.write_text("methods:\n  plave: {method: plave}\n  unet: {method: unet}\n")
    require_single_keys([file, tmp_path / "none.yaml"])


def test_all_jobs_that_were_run_otherwise_are_named_with_what_makes_them_anew(begun):
    for job in begun.jobs():
        begun.done(*job).touch()
    with pytest.raises(ProblemsError) as caught:
        require_same(study(train=begun.file.train, metrics=["psnr"]))
    problems = single_problems(caught.value)
    assert len(problems) > 1
    assert problems[0].hint.endswith(
        f"rm -r study/{CELL}/attcl-gan/scores study/jobs/{CELL}/score-attcl-gan.done"
    )
