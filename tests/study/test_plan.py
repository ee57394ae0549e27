"""What a study's YAML file comes to: cells, jobs, commands, and errors that say what is wrong in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import typer
import yaml
from plan import Study, read_study

from attcl_cli.cli.app import app
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.splits import make_splits
from attcl_cli.errors import AttclError
from attcl_cli.methods import METHODS
from attcl_cli.methods.settings import resolve

HERE = Path(__file__).resolve().parents[2] / "examples" / "study"
FILES = ("phantom.yaml", "cohort.yaml", "methods.yaml", "methods-cohort.yaml", "paper.yaml")
SMALL = {
    "title": "A question",
    "output": "study",
    "datasets": {"p": {"path": "DATA", "sizes": "4/1/3"}},
    "methods": {"attcl-gan": {"method": "attcl-gan"}},
}
CELL = "p/ratio1/all/seed0"
COMMANDS = typer.main.get_command(app).commands


def study(**changes: object) -> Study:
    return read_study({**SMALL, **changes})


def options(command: str) -> list[str]:
    """Return the arguments of the last attcl in a command."""
    return shlex.split(
        command.rsplit(" -m attcl_cli ", 1)[1].replace("; }", "").removesuffix("; fi")
    )


def test_a_study_has_a_cell_per_dataset_ratio_share_and_seed():
    plan = study(ratios=["ratio1", "own/rare.toml"], subsets=["1", "1/8"], seeds=[0, 3])
    assert [cell.name for cell in plan.cells] == [
        f"p/{ratio}/{share}/seed{seed}"
        for ratio in ("ratio1", "rare")
        for share in ("all", "1-of-8")
        for seed in (0, 3)
    ]


def test_each_job_comes_after_what_it_needs():
    plan = study(methods={name: {"method": name} for name in ("attcl-gan", "unet")})
    seen: set[tuple[str, str, str]] = set()
    for cell, stage, of in plan.jobs():
        assert {(cell, *before) for before in plan.needed(stage, of)} <= seen
        seen.add((cell, stage, of))
    assert len(seen) == 1 + 3 + 2 * 5


def test_without_segmentation_no_segmenter_is_trained():
    stages = {stage for _, stage, _ in study(segment=None).jobs()}
    assert stages == {"splits", "train", "complete", "score", "directions"}


def test_a_method_may_leave_the_directions_out():
    plan = study(methods={"attcl-gan": {"method": "attcl-gan", "directions": False}})
    assert "directions" not in {stage for _, stage, _ in plan.jobs()}


def test_the_splits_have_the_ratio_the_share_and_the_seed_of_their_cell():
    plan = study(subsets=["1/8"], seeds=[3])
    command = plan.command("p/ratio1/1-of-8/seed3", "splits")
    assert options(command) == shlex.split(
        "prepare-splits DATA -o study/p/ratio1/1-of-8/seed3/data --ratio ratio1 --subset 1/8 --seed 3 --sizes 4/1/3"
    )


def test_a_training_that_was_begun_is_resumed_and_keeps_its_options():
    plan = study(
        methods={
            "attcl-gan": {
                "method": "attcl-gan",
                "variant": "acl",
                "layers": [1, 2],
                "options": ["--set", "lambda_pair=1"],
            }
        },
        train={"preset": "small", "steps": 5},
        device="cpu",
    )
    run = f"study/{CELL}/attcl-gan/run"
    command = plan.command(CELL, "train", "attcl-gan")
    assert command.startswith(f"if [ -e {run}/run.json ]; then ")
    resumed, started = command.split("; else ")
    assert options(resumed) == shlex.split(f"train --resume {run} --data study/{CELL}/data -d cpu")
    assert options(started) == shlex.split(
        f"train --data study/{CELL}/data -o {run} --method attcl-gan --variant acl --preset small --steps 5 "
        "--set 'contrastive_layers=[1, 2]' --set lambda_pair=1 --seed 0 -d cpu"
    )


def test_what_a_job_was_made_by_is_the_same_elsewhere_and_on_another_device():
    plan = study(datasets={"p": {"simulate": 8}}, metrics=["ssim", "fid"], device="cpu")
    moved = study(
        datasets={"p": {"simulate": 8}},
        metrics=["ssim", "fid"],
        device="cuda",
        offline=True,
        output="/elsewhere/study",
    )
    for job in plan.jobs():
        assert plan.made_by(*job) == moved.made_by(*job)
    assert "'simulate.py p/phantoms --cases 8 --voxel-mm 4'" in plan.simulation("p")
    assert plan.made_by(CELL, "train", "attcl-gan") == (
        f"attcl train --data {CELL}/data -o {CELL}/attcl-gan/run --method attcl-gan --preset tiny --seed 0"
    )


def test_the_references_see_no_completed_volume():
    plan = study()
    assert plan.references == ("flair", "incomplete", "real")
    for name in plan.references:
        words = options(plan.command(CELL, "reference", name))
        assert words[words.index("--input") + 1] == name
        assert "--cpl" not in words


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"seeds": ["a"]}, "seeds.0: found 'a'", "examples/"),
        ({"seeds": ["a", "b"]}, "; and 1 more like it", "examples/"),
        ({"datasets": {"p": {"voxelmm": 3}}}, "datasets.p.voxelmm: no such key", "examples/"),
        ({"seed": [0]}, "seed: no such key", "did you mean 'seeds'?"),
    ],
)
def test_a_mistake_in_a_study_is_counted_once_and_has_the_keys_of_its_own_table(
    change, message, hint
):
    with pytest.raises(AttclError) as caught:
        study(**change)
    assert message in caught.value.message
    assert caught.value.message.count("more like it") == message.count("more like it")
    assert caught.value.hint.startswith(hint)


def test_baselines_are_scored_once_with_the_reference_method():
    plan = study(methods={name: {"method": name} for name in ("unet", "attcl-gan", "plave")})
    assert plan.scorer_of_baselines("score") == "attcl-gan"
    for stage in ("score", "directions"):
        words = {
            name: [word for word in options(plan.command(CELL, stage, name)) if "baselines" in word]
            for name in plan.file.methods
        }
        assert words == {
            "attcl-gan": ["--baselines"],
            **{name: ["--no-baselines"] for name in ("unet", "plave")},
        }


def test_another_method_has_the_baselines_of_directions_if_the_reference_has_none():
    methods = {name: {"method": name} for name in ("attcl-gan", "unet", "plave")}
    methods["attcl-gan"]["directions"] = False
    plan = study(methods=methods)
    assert "--baselines" in plan.command(CELL, "directions", "unet")
    assert "--no-baselines" in plan.command(CELL, "directions", "plave")


def test_directions_are_scored_with_the_weights_of_the_run():
    words = options(study().command(CELL, "directions", "attcl-gan"))
    assert words[words.index("-w") + 1] == f"study/{CELL}/attcl-gan/run"
    assert "--directions" in words


@pytest.mark.parametrize(
    ("status", "left", "calls"),
    [
        (0, False, ["--ssim --fid"]),
        (1, False, ["--ssim --fid", "--ssim"]),
        (1, True, ["--ssim --fid"]),  # an earlier call has left scores
        (137, False, ["--ssim --fid"]),  # killed: not even tried
    ],
)
def test_without_a_network_the_other_metrics_are_scored_and_the_job_fails(
    status, left, calls, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    plan = study(metrics=["ssim", "fid"])
    scores = plan.folder(CELL, "score", "attcl-gan") / "scores.csv"
    plan.done(CELL, "score", "attcl-gan").parent.mkdir(parents=True)  # as Snakemake does
    if left:
        scores.parent.mkdir(parents=True)
        scores.touch()
    Path("attcl").write_text(f'echo "$*" >> called; exit {status}\n')
    command = plan.command(CELL, "score", "attcl-gan")
    command = command.replace(f"{sys.executable} -m attcl_cli", "sh attcl")
    ended = subprocess.run(["bash", "-c", f"set -euo pipefail; ( {command} )"], check=False)
    assert ended.returncode == status
    called = Path("called").read_text().splitlines()
    assert len(called) == len(calls)
    for line, flags in zip(called, calls, strict=True):
        assert f" {flags}" in line
        assert ("--fid-network inception" in line) == ("--fid" in flags)


@pytest.mark.parametrize("metrics", [["fid"], ["ssim", "psnr"]])
def test_metrics_that_all_need_a_network_or_none_are_scored_once(metrics):
    command = study(metrics=metrics).command(CELL, "score", "attcl-gan")
    assert command.count(f"{sys.executable} -m attcl_cli score ") == 1


@pytest.mark.parametrize("name", FILES)
def test_the_files_that_come_with_it_are_studies(name):
    plan = read_study(yaml.safe_load((HERE / name).read_text()), name=name)
    assert all(plan.command(*job).count(sys.executable) for job in plan.jobs())
    assert plan.file.reference in plan.methods
    for model in plan.file.methods.values():
        resolve(preset=plan.file.train.preset, method=model.method, variant=model.variant)


@pytest.mark.parametrize("name", FILES)
def test_every_command_of_the_files_that_come_with_it_parses(name):
    plan = read_study(yaml.safe_load((HERE / name).read_text()), name=name)
    seen = 0
    for cell, *job in plan.jobs():
        if cell == plan.cells[0].name:
            for part in plan.command(cell, *job).split(" -m attcl_cli ")[1:]:
                command, *words = shlex.split(re.split(r"; | \|\| ", part)[0])
                COMMANDS[command].make_context(command, words)
                seen += 1
    assert seen > len(plan.methods)


def test_a_study_that_is_kept_is_read_as_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = study(segment=None, ratios=["own/rare.toml"], train={"options": ["--minutes", "2"]})
    plan.keep()
    assert plan.record == Path("study/study.yaml")
    assert read_study(yaml.safe_load(plan.record.read_text())).file == plan.file


def test_a_file_of_ones_own_that_says_the_same_is_not_written_over(tmp_path, monkeypatch):
    """A study's own file may lie in its folder, under the name of the record."""
    monkeypatch.chdir(tmp_path)
    plan = study(segment=None)
    plan.record.parent.mkdir()
    own = f"# why these seeds\n{plan.text}"
    plan.record.write_text(own)
    os.utime(plan.record, (0, 0))
    plan.page.touch()
    assert not plan.has_old_page()
    plan.keep()
    assert plan.record.read_text() == own
    assert plan.record.stat().st_mtime > 0  # by which jobs of earlier calls are known
    other = study(segment=None, seeds=[7])
    assert other.has_old_page()
    other.keep()
    assert read_study(yaml.safe_load(plan.record.read_text())).file == other.file
    plan.record.write_text("[1]")
    plan.keep()
    assert plan.record.read_text() == plan.text


@pytest.mark.parametrize("name", ["methods.yaml", "methods-cohort.yaml"])
def test_the_studies_of_methods_leave_none_out(name):
    plan = read_study(yaml.safe_load((HERE / name).read_text()), name=name)
    assert {model.method for model in plan.file.methods.values()} == set(METHODS)


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.yaml")))
def test_the_splits_of_every_cell_of_a_file_can_be_drawn(name, tmp_path, names_alone):
    """A scenario may leave too few training cases nothing to learn a modality from."""
    plan = read_study(yaml.safe_load((HERE / name).read_text()), name=name)
    for number, source in enumerate(plan.file.datasets.values()):
        sizes = tuple(map(int, source.sizes.split("/"))) if source.sizes else None
        dataset = open_dataset(names_alone(tmp_path / str(number), source.simulate or sum(sizes)))
        for cell in plan.cells:
            share = {"subset": Fraction(cell.subset), "seed": cell.seed}
            splits = make_splits(dataset, ratio=cell.ratio, sizes=sizes, **share)
            assert splits.names("train") and splits.names("test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, r"colour: no such key, expected one of a study"),
        ({"methods": None, "method": {}}, r"method: no such key"),
        ({"methods": {"x": {"method": "gan"}}}, r"method: found 'gan', expected one of attcl-gan"),
        ({"reference": "unet"}, r"reference 'unet' is none of the methods"),
        ({"datasets": {"p": {}}}, r"expected either path or simulate"),
        ({"datasets": {"../p": {"path": "DATA"}}}, r"pattern"),
        ({"subsets": ["half"]}, r"found 'half', expected .*pattern"),
        ({"ratios": ["a/r.toml", "b/r.toml"]}, r"ratios: r, r, expected each name once"),
        (
            {"methods": {"flair": {"method": "unet"}}, "reference": "flair"},
            r"cannot be called flair",
        ),
        ({"seeds": []}, r"expected a longer list"),
        ({"needs": {"cook": {}}}, r"needs.cook"),
        (
            {
                "methods": {
                    "attcl-gan": {"method": "attcl-gan", "title": "A"},
                    "b": {"method": "unet", "title": "A"},
                }
            },
            r"titles of methods: A, A, expected each name once",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_named(changes, message):
    with pytest.raises(AttclError, match=message) as caught:
        study(**changes)
    assert caught.value.code == "invalid-study"


def test_seeds_and_shares_are_named_once_and_are_possible():
    with pytest.raises(AttclError, match="seeds: 0, 0, expected each name once"):
        study(seeds=[0, 0])
    with pytest.raises(AttclError, match="subsets"):
        study(subsets=["1", "1/0"])


def test_what_the_file_alone_shows_to_be_impossible_is_an_error():
    with pytest.raises(AttclError, match="sizes 30/1/2 of 6 simulated patients"):
        study(datasets={"p": {"simulate": 6, "sizes": "30/1/2"}})
    with pytest.raises(AttclError, match="device"):
        study(device="cudaa")
    with pytest.raises(AttclError, match="write reference: unet"):
        study(methods={"unet": {"method": "unet"}})


def test_a_study_that_was_run_before_copies_were_scored_by_networks_is_the_same():
    plan = study()
    for stage in ("score", "directions"):
        assert "--baselines" in plan.command(CELL, stage, "attcl-gan")
        assert "baselines" not in plan.made_by(CELL, stage, "attcl-gan")
