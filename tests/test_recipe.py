"""The comparison of settings at equal wall time: what is run, what its tables say, and that it continues."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPOSITORY, fresh_python, states

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.splits import read_splits
from attcl_cli.errors import AttclError, ProblemsError, UsageError

sys.path.append(str(REPOSITORY / "benchmarks"))

import protocol
import recipe
import recipe_cells
import recipe_report
import recipe_runs

PROTOCOL = """
test = ["Phantom_00000"]
folds = [["Phantom_00001"], ["Phantom_00002"]]
validation = ["Phantom-GLI-00000-000"]
other_domain = ["OpenMS_00000", "OpenMS_00001"]
[folders]
test = "brats"
folds = "brats"
validation = "brasyn"
other_domain = "openms"
"""
RUNS = """
[[run]]
name = "toy net"
method = "unet"
preset = "tiny"
set = { width = 4, image_size = 16, canvas = 32, batch_size = 2 }
"""


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of phantoms in the folders of the open patients, with a protocol for it and a file of runs."""
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root / "brats", cases=3, voxel_mm=8)
    write_cohort(root / "brasyn", cases=1, voxel_mm=8, seed=1, layout="brats2023")
    write_cohort(root / "openms", cases=2, voxel_mm=8, seed=2)
    for path in sorted((root / "openms").rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.replace("Phantom", "OpenMS")))
    (root / "protocol.toml").write_text(PROTOCOL)
    (root / "runs.toml").write_text(RUNS)
    return root


def file_of(folder: Path, text: str) -> Path:
    path = folder / "runs.toml"
    path.write_text(text)
    return path


def codes(error: AttclError) -> list[str]:
    return [one.code for one in (error.problems if isinstance(error, ProblemsError) else [error])]


# --- runs ---


@pytest.mark.parametrize(
    "path", sorted(recipe_runs.RECIPES.glob("*.toml")), ids=lambda path: path.stem
)
def test_the_runs_that_ship_have_settings_that_exist(path):
    assert recipe_runs.read_runs([path])


def test_the_yardstick_joins_whatever_is_trained_and_nothing_else(tmp_path):
    trained = recipe_runs.RecipeRun("mine", method="attcl-gan")
    finished = recipe_runs.RecipeRun("theirs", weights=("phantom-tiny",))
    other = recipe_runs.RecipeRun("my unet", method="unet")
    names = [
        [run.name for run in recipe_runs.with_yardstick(runs)]
        for runs in ([trained], [finished], [other, trained])
    ]
    assert names == [["unet", "mine"], ["theirs"], ["my unet", "mine"]]


def test_a_run_is_trained_with_its_own_settings_and_the_seed(tmp_path):
    text = '[[run]]\nname = "a"\nmethod = "unet"\npreset = "tiny"\nset = { width = 4 }\n'
    (run,) = recipe_runs.read_runs([file_of(tmp_path, text)])
    arguments = run.of_training(7)
    assert arguments.pop("overrides") == {"seed": 7, "width": 4}
    assert arguments == {"method": "unet", "preset": "tiny", "variant": None, "precision": None}


def test_every_wrong_run_is_reported_before_anything_is_trained(tmp_path):
    text = (
        '[[run]]\nname = "a"\nmethd = "unet"\n'
        '[[run]]\nname = "b"\nset = { lambda_cylce = 2 }\n'
        '[[run]]\nmethod = "unet"\n'
        '[[run]]\nname = "c"\nweights = "phantom-tiny"\npreset = "tiny"\n'
        '[[run]]\nname = "d"\n[[run]]\nname = "d"\n'
    )
    with pytest.raises(ProblemsError) as caught:
        recipe_runs.read_runs([file_of(tmp_path, text)])
    assert codes(caught.value) == [
        "unknown-recipe-key",
        "unknown-setting",
        "recipe-run-without-name",
        "options-exclude-each-other",
        "recipe-run-named-twice",
    ]
    with pytest.raises(UsageError) as caught:
        recipe_runs.read_runs([file_of(tmp_path, "steps = 3\n")])
    assert caught.value.code == "no-recipe-run"


def test_the_machine_is_described(tmp_path):
    facts = recipe_runs.machine(torch.device("cpu"))
    assert facts["cores"] >= 1 and facts["threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu" and facts["torch"] == torch.__version__
    assert set(facts["flags"]) <= {
        *("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
    }


# --- parts ---


def test_a_fold_is_scored_from_every_set_of_sources_by_a_model_of_the_others(patients, tmp_path):
    split = protocol.read_protocol(patients / "protocol.toml")
    datasets = protocol.open_cohort(split, patients)
    part = recipe_cells.part_of_protocol(split, datasets, tmp_path, part="folds", fold=1)
    assert part.training is not None
    training = read_splits(part.training)
    assert training.names("train") == ("Phantom_00001",)
    assert training.names("val") == split.validation and training.names("test") == ()
    present = {name: read_splits(tree).splits["test"] for name, tree in part.trees.items()}
    assert {item.case for items in present.values() for item in items} == {"Phantom_00002"}
    assert {name: items[0].present for name, items in present.items()} == {
        "from-flair": ("flair",),
        "from-t1": ("t1",),
        "from-t1ce": ("t1ce",),
        "from-t2": ("t2",),
        "no-flair": ("t1", "t1ce", "t2"),
        "no-t1": ("flair", "t1ce", "t2"),
        "no-t1ce": ("flair", "t1", "t2"),
        "no-t2": ("flair", "t1", "t1ce"),
    }


def test_in_the_evening_all_patients_have_holes_and_all_are_trained_on(patients, tmp_path):
    split = protocol.read_protocol(patients / "protocol.toml")
    datasets = protocol.open_cohort(split, patients)
    for name, holes in recipe_cells.SCENARIOS.items():
        part = recipe_cells.evening(split, datasets, tmp_path, name)
        assert part.trees == {name: part.training}
        items = read_splits(part.training).splits["train"]
        assert [item.case for item in items] == [f"Phantom_0000{number}" for number in range(3)]
        hidden = {item.hidden for item in items}
        assert hidden <= set(holes) and len(hidden) == min(3, len(holes))
        assert len(open_dataset(part.training).cases) == 3  # nobody else's volumes are there


# --- tables ---


def cell_of(name: str, part: str = "test", **values: Any) -> dict[str, Any]:
    """Return a cell with the SSIM of a prediction: `t1__t2=0.5` is from t1 to t2."""
    scores = [
        {
            "present": key.split("__")[0].split("_"),
            "target": key.split("__")[1],
            "prediction": "synthetic",
            "metric": "ssim",
            "region": "brain",
            "mean": value,
        }
        for key, value in values.items()
    ]
    return {
        "part": part,
        "name": name,
        "seed": 0,
        "minutes": 15.0,
        "trained_on": 15,
        "steps": 1200,
        "precision": "fp32",
        "patients": 5,
        "seconds_per_volume": 2.5,
        "machine": {
            **{"processor": "A", "cores": 2, "threads": 2, "flags": ["amx_bf16"]},
            **{"device": "cpu", "torch": "2"},
        },
        "scores": scores,
        "volumes": [],
    }


def baselines_of(value: float) -> dict[str, Any]:
    cell = cell_of("baselines", t1__t2=value, flair_t1_t1ce__t2=value)
    for score in cell["scores"]:
        score["prediction"] = "copy"
    return cell


def test_a_table_has_the_mean_over_seeds_and_half_their_range_the_best_in_bold():
    cells = [
        baselines_of(0.25),
        cell_of("mine", t1__t2=0.5, t1__flair=0.7, flair_t1_t1ce__t2=0.2),
        cell_of("mine", t1__t2=0.6, t1__flair=0.9, flair_t1_t1ce__t2=0.24),
    ]
    lines = recipe_report.tables(cells).splitlines()
    assert "| from | to | copy | mine |" in lines
    assert "| t1 | t2 | 0.250 | **0.550** ± 0.050 |" in lines
    assert "| t1 | flair |  | **0.800** ± 0.100 |" in lines
    assert "| the three others | t2 | **0.250** | 0.220 ± 0.020 |" in lines
    # the copy of one direction is not known, so it has no mean over both
    assert "| mean of one source |  |  | **0.675** ± 0.075 |" in lines
    assert "n = 5 patients." in lines
    assert any(
        line.startswith("- **mine**: 15 minutes on 15 patients, seeds 0, 0, 1,200")
        for line in lines
    )
    assert "- machine: A, 2 cores, 2 torch threads (amx_bf16), cpu, torch 2" in lines


def test_who_is_above_whom_is_counted_over_the_directions_that_both_have():
    cells = [
        baselines_of(0.25),
        cell_of("mine", t1__t2=0.5, t1__flair=0.7, flair_t1_t1ce__t2=0.2),
        cell_of("unet", t1__t2=0.6, t1__flair=0.6, flair_t1_t1ce__t2=0.1),
    ]
    columns = recipe_report.columns_of(cells, "ssim", "brain")
    assert list(columns) == ["copy", "mine", "unet"]
    assert recipe_report.above(columns, "mine", "copy", higher=True) == (1, 2)
    assert recipe_report.above(columns, "mine", "unet", higher=True) == (2, 3)
    assert recipe_report.above(columns, "mine", "unet", higher=False) == (1, 3)
    lines = recipe_report.tables(cells).splitlines()
    assert "| mine | SSIM brain | 1 of 2 |  |  |  | 2 of 3 |" in lines


def test_beside_several_sources_stands_the_copy_of_the_best_one():
    cell = baselines_of(0.25)
    cell["scores"] += [
        {**cell["scores"][0], "present": [source], "mean": value}
        for source, value in (("flair", 0.6), ("t1ce", 0.4))
    ]
    columns = recipe_report.columns_of([cell], "ssim", "brain")
    assert columns["copy"]["flair+t1+t1ce", "t2"] == [0.6]


def test_parts_have_tables_of_their_own():
    text = recipe_report.tables(
        [cell_of("mine", t1__t2=0.5), cell_of("mine", "other-domain", t1__t2=0.1)]
    )
    assert text.index("## test") < text.index("0.500") < text.index("## other-domain")


def volume_of(source: str, error: float, **doubt: Any) -> dict[str, Any]:
    """Return a completed T2 of a cell, from one source."""
    return {
        "prediction": "synthetic",
        "present": [source],
        "target": "t2",
        "values": {"ssim brain": 1 - error},
        "doubt": doubt,
    }


def test_the_calibration_ranks_the_doubt_against_the_error(tmp_path):
    cell = cell_of("mine")
    cell["volumes"] = [
        volume_of("t1", error, disagreement=error**2, distance=-error)
        for error in (0.1, 0.4, 0.2, 0.3)
    ]
    told = recipe_report.write_calibration(tmp_path / "plot.png", [cell])
    assert set(told) == {"disagreement", "distance"}
    for name, value in (("disagreement", 1), ("distance", -1)):
        assert (told[name].overall, told[name].within) == pytest.approx((value, value))
        assert told[name].directions == 1
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError) as caught:
        recipe_report.write_calibration(tmp_path / "none.png", [cell_of("mine")])
    assert caught.value.code == "no-doubt-figures"


def test_the_calibration_within_a_direction_is_not_that_between_directions(tmp_path):
    cell = cell_of("mine")
    # FLAIR is worse than T1 and doubted more, but within each the worse volumes are doubted less.
    cell["volumes"] = [
        volume_of(source, base + step, disagreement=base - step)
        for source, base in (("t1", 0.1), ("flair", 0.6))
        for step in (0.01, 0.02, 0.03)
    ]
    cell["volumes"] += [volume_of("t1ce", 0.9, disagreement=0.9)] * 2  # too few to have an order
    told = recipe_report.write_calibration(tmp_path / "plot.png", [cell])["disagreement"]
    assert told.overall > 0.5
    assert (told.within, told.directions) == (pytest.approx(-1), 2)


def test_volumes_far_from_the_training_data_are_counted_by_run_and_part():
    mine, other = cell_of("mine"), cell_of("mine", "other-domain")
    mine["volumes"] = [volume_of("t1", 0.1, far=False), volume_of("t1", 0.1)]
    other["volumes"] = [volume_of("t1", 0.1, far=True), volume_of("t1", 0.1, far=False)]
    other["volumes"].append({**volume_of("t1", 0.1, far=True), "prediction": "copy"})
    counts = recipe_report.far_volumes([mine, other])
    assert counts == {("mine", "test"): (0, 2), ("mine", "other-domain"): (1, 2)}


# --- whole comparisons ---


def run(*arguments: object) -> int:
    return recipe.main([str(argument) for argument in arguments])


def test_wrong_options_end_with_an_error(patients, tmp_path, capsys):
    places = ("--cohort", patients, "--protocol", patients / "protocol.toml", "-o")
    assert run(*places, REPOSITORY / "out") == 2
    assert "lies in the repository" in capsys.readouterr().err
    assert run(*places, tmp_path, "--seeds", "one") == 2
    assert "--seeds: 'one'" in capsys.readouterr().err
    assert run(*places, tmp_path, "--fold", 7) == 2
    assert "--fold: 7, expected 0 to 1" in capsys.readouterr().err


def test_a_dry_run_writes_the_data_trees_and_nothing_else(patients, tmp_path, capsys):
    places = ("--cohort", patients, "--protocol", patients / "protocol.toml", "-o", tmp_path)
    assert run(*places, "--dry-run", "--settings", patients / "runs.toml", "--shown", "t2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "test: toy net",
        f"  {tmp_path / 'trees' / 'test-train'}",
        f"  {tmp_path / 'trees' / 'test-from-t2'}",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["patients", "trees"]


@pytest.mark.slow
def test_a_comparison_trains_completes_scores_and_is_not_done_twice(patients, tmp_path):
    out = tmp_path / "out"
    arguments = (
        *("benchmarks/recipe.py", "--cohort", patients, "--protocol", patients / "protocol.toml"),
        *("-o", out, "--fold", 0, "--minutes", 0.05, "--seeds", "3", "--device", "cpu"),
        *("--settings", patients / "runs.toml", "--shown", "flair", "others"),
    )
    before = states(patients)
    printed = fresh_python(*arguments)
    assert states(patients) == before
    for column in ("copy", "quantile-matched copy", "mean of sources", "toy net"):
        assert column in printed
    assert printed.rstrip() == (out / "tables.md").read_text().rstrip()
    assert "seeds 3" in printed and "0.05 minutes on 1 patients" in printed
    lines = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["baselines", "toy net"]
    cell = lines[1]
    assert cell["part"] == "fold-0" and cell["steps"] >= 1 and cell["machine"]["cores"] >= 1
    found = {
        ("+".join(score["present"]), score["target"], score["metric"], score["region"])
        for score in cell["scores"]
    }
    shown = {("flair", target) for target in ("t1", "t1ce", "t2")}
    shown |= {
        ("+".join(name for name in protocol.MODALITIES if name != target), target)
        for target in protocol.MODALITIES
    }
    assert {key[:2] for key in found} == shown
    assert {key[2:] for key in found} >= {
        *(("ssim", "brain"), ("ssim", "tumour"), ("psnr", "brain"), ("nmse", "brain")),
        *(("gms", "brain"), ("fd-effnet", "slices")),
    }
    pictures = sorted((out / "fold-0").rglob("pictures/*/*.png"))
    assert len(pictures) == 5
    after = states(out)
    assert fresh_python(*arguments) == printed
    again = states(out)
    changed = {name for name in after if after[name] != again[name] and after[name][1]}
    assert changed == {
        *("fold-0/baselines/cell.json", "fold-0/toy-net-seed3/cell.json"),
        *("cells.jsonl", "tables.md"),
    }

    other = fresh_runs(patients, width=6)
    refused = run(*[*arguments[1:-5], "--settings", other, "--shown", "flair", "others"])
    assert refused == 2


def fresh_runs(patients: Path, *, width: int) -> Path:
    """Return a file of runs with the same name and another width."""
    path = patients.parent / f"runs-{width}.toml"
    path.write_text(RUNS.replace("width = 4", f"width = {width}"))
    return path
