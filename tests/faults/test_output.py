"""What is written: no volume that is no image, nothing outside of the output, nothing half there on a full disk.

`ATTCL_FAULTS=100` tries so many sizes of a full disk per command.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from completers import completed, expected_files, images, make, outputs, phantom_file, plan_of
from faults.size import examples
from helpers import REPOSITORY, refusal, small_settings, states
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segmenters import FLAGS

from attcl_cli.confined import confined
from attcl_cli.data import slices
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.volumes import new_grid, save
from attcl_cli.data.written import require_image
from attcl_cli.errors import AttclError
from attcl_cli.files import appended, write_json, write_whole
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.settings import dump
from attcl_cli.methods.weights import Weights, find_weights
from attcl_cli.training.stats import log_stats
from attcl_cli.training.trainer import Hooks, Trainer

LACKING = (("t2",), ("t1", "t1ce"), (), ("t2",))
NOWHERE = Path("nowhere/volume.nii.gz")


@pytest.fixture
def weights(trained_run: Path) -> Weights:
    """The weights of `trained_run`."""
    return find_weights(str(trained_run))


def code_of(caught: pytest.ExceptionInfo[AttclError]) -> str:
    return caught.value.code


# --- Volumes that are no image ----------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, value: float, targets: set[str]) -> None:
    """Let a network of AttCL-GAN give a single value for some targets."""
    real = AttclGan.synthesise

    def synthesise(method: AttclGan, sources: Any, names: Any, **options: Any) -> Any:
        made = real(method, sources, names, **options)
        return {
            name: torch.full_like(x, value) if name in targets else x for name, x in made.items()
        }

    monkeypatch.setattr(AttclGan, "synthesise", synthesise)


@pytest.mark.parametrize(
    ("value", "says"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (0.25, "expected an image")],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_weights_that_make_no_image_write_none(
    dtype, value, says, gappy, trained_run, attcl, monkeypatch, tmp_path
):
    root = gappy()
    if dtype == np.float32:
        for path in root.rglob("*_t[12]*.nii.gz"):
            image = nib.load(path)
            nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), path)
    spoil(monkeypatch, value, {"t2"})
    before, out = states(root), tmp_path / "out"
    lines = refusal(
        attcl("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu", "-q"),
        code=1,
        names=f"{out / phantom_file(0, 't2')}: not written, ",
        hint="choose others with -w, or train again",
    )
    assert says in lines[0]
    assert f"made by weights {trained_run / 'weights.safetensors'}" in lines[0]
    assert not [name for name in outputs(out) if "_t2" in name]
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 1)
    assert states(root) == before


def test_with_keep_going_only_the_cases_without_an_image_fail(
    gappy, trained_run, attcl, monkeypatch, tmp_path
):
    spoil(monkeypatch, np.nan, {"t2"})
    out = tmp_path / "out"
    command = ("complete", "--ori", gappy(), "--cpl", out, "-w", trained_run, "-d", "cpu", "-q")
    code, _, err = attcl(*command, "--keep-going")
    assert code == 3
    assert "Traceback" not in err
    assert set(outputs(out)) == {
        phantom_file(1, name).replace(".nii.gz", ending)
        for name in ("t1", "t1ce")
        for ending in (".nii.gz", ".json")
    }
    cases = {item["id"]: item for item in json.loads((out / "run.json").read_text())["cases"]}
    assert [cases[f"Phantom_{n:05d}"]["status"] for n in (0, 1, 3)] == ["failed", "done", "failed"]
    assert cases["Phantom_00000"]["code"] == "output-not-finite"
    monkeypatch.undo()
    assert attcl(*command)[0] == 0
    assert set(outputs(out)) == expected_files(LACKING)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_hold_no_numbers_are_refused_when_they_are_loaded(
    value, gappy, trained_run, attcl, tmp_path
):
    spoiled = tmp_path / "spoiled.safetensors"
    with safe_open(trained_run / "weights.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(trained_run / "weights.safetensors")
    name = next(key for key, it in sorted(tensors.items()) if it.is_floating_point())
    tensors[name].view(-1)[0] = value
    save_file(tensors, spoiled, metadata)
    out = tmp_path / "out"
    lines = refusal(
        attcl("complete", "--ori", gappy(), "--cpl", out, "-w", spoiled, "-d", "cpu", "-q"),
        code=1,
        names=f"{spoiled}: 1 of ",
        hint="copy the file again",
    )
    assert f"hold NaN or infinity ({name} first), expected finite weights" in lines[0]
    assert not images(out)


@pytest.mark.parametrize(("value", "loses"), [(np.nan, "weights"), (1e6, "weights"), (1.0, "none")])
def test_training_keeps_its_last_sound_files_if_weights_are_no_longer_finite(
    value, loses, store, tmp_path
):
    """1e6 is finite, but not in the float16 of a weights file."""
    trainer = Trainer(small_settings(), store, tmp_path, torch.device("cpu"), Hooks(), "")
    trainer.judge(2)
    trainer.save(2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for networks in (trainer.method, trainer.averaged):
        with torch.no_grad():
            next(networks.inference_networks()["generator"].parameters()).view(-1)[0] = value
    if loses == "none":
        trainer.judge(4)
        trainer.save(4)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} != before
        return
    with pytest.raises(AttclError, match="expected finite weights") as caught:
        trainer.judge(4)
    assert code_of(caught) == "weights-not-finite"
    if value != value:  # noqa: PLR0124
        with pytest.raises(AttclError, match="not written"):
            trainer.save(4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii", "v-{}.png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_no_writer_writes_a_volume_with_nan(name, dtype, tmp_path):
    data = np.ones((3, 5, 4), np.float32)
    data[1, 2, 3] = np.nan
    paths = [tmp_path / name.format(n) for n in range(3 if "png" in name else 1)]
    with pytest.raises(AttclError, match=r"1 of 60 voxels are NaN or infinite") as caught:
        save(paths, data, new_grid((4, 5, 3), np.eye(4), dtype), description="test")
    assert code_of(caught) == "output-not-finite"
    assert not list(tmp_path.iterdir())


def test_an_empty_label_map_is_written(tmp_path):
    grid = new_grid((4, 5, 3), np.eye(4), np.uint8)
    save([tmp_path / "seg.nii.gz"], np.zeros((3, 5, 4), np.uint8), grid, description="labels")
    assert not np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj).any()


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (np.linspace(100, 200, 2000), ""),
        (np.full(999, 150.0), ""),  # the tip of a head
        (np.empty(0), ""),  # slices below the brain
        (np.full(1000, 150.0), "output-constant"),
        (np.linspace(150, 150.09, 2000), "output-constant"),
        (np.linspace(100, 201, 2000), "output-out-of-range"),
        (np.linspace(98, 200, 2000), "output-out-of-range"),
        (np.array([150.0, np.inf]), "output-not-finite"),
    ],
)
def test_an_image_is_finite_in_range_and_has_contrast(values, code):
    if not code:
        require_image(values.astype(np.float32), NOWHERE, (100.0, 200.0), made_by="weights w")
        return
    with pytest.raises(
        AttclError, match=r"nowhere/volume.nii.gz: not written, .*by weights w"
    ) as it:
        require_image(values.astype(np.float32), NOWHERE, (100.0, 200.0), made_by="weights w")
    assert code_of(it) == code


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"a": [np.nan, 1.5, (float("inf"),)], "é": {"b": -np.inf}})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": [None, 1.5, [None]],
        "é": {"b": None},
    }


# --- Links ------------------------------------------------------------------------------------------------------------


def linked(source: Path, tree: Path) -> Path:
    """Make a tree of links to the files of a dataset, and return it."""
    for path in source.rglob("*.nii.gz"):
        link = tree / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return tree


def test_no_command_writes_where_the_links_of_a_dataset_lead(
    phantom_root, trained_run, attcl, elsewhere, tmp_path
):
    """splits.json names the tree of links that it was made from, not what these lead to."""
    source = tmp_path / "source"
    shutil.copytree(phantom_root, source)
    mine = linked(source, tmp_path / "mine")
    place = source / "Dataset501_x"
    splits = ("prepare-splits", mine, "--ratio", "ratio3", "-q")
    before = states(source)
    refused = {"code": 2, "names": f"--output: {place} lies inside {source}", "hint": "such as"}
    refusal(attcl(*splits, "-o", place), **refused)
    assert attcl(*splits, "-o", "data")[0] == 0
    both = ("--ori", "data", "--cpl", "out")
    cpl, folder = (refused["names"].replace("--output", flag) for flag in ("--cpl", "DIR"))
    command = ("complete", "--ori", "data", "-w", trained_run, "-q")
    refusal(attcl(*command, "--cpl", place), **{**refused, "names": cpl})
    assert attcl(*command, "--cpl", "out")[0] == 0
    for name in ("train", "score", "segment"):
        options = ("--data", "data") if name == "train" else both
        refusal(attcl(name, *options, "-o", place, "-q"), **refused)
    refusal(attcl("export", "nnunet", place, *both), **{**refused, "names": folder})
    assert states(source) == before


@pytest.mark.parametrize("place", ["data/cache", "source/cache"])
def test_no_records_are_kept_among_originals_wherever_the_links_lead(
    place, phantom_root, attcl, monkeypatch, elsewhere, tmp_path
):
    shutil.copytree(phantom_root, tmp_path / "source")
    linked(tmp_path / "source", tmp_path / "data")
    before = states(tmp_path)
    monkeypatch.setenv("ATTCL_CACHE", str(tmp_path / place))
    folder = tmp_path / place
    refusal(
        attcl("info", tmp_path / "data"),
        code=2,
        names=f"ATTCL_CACHE: {folder} lies inside {folder.parent}",
        hint="choose another ATTCL_CACHE",
    )
    assert states(tmp_path) == before


def test_the_hint_names_a_place_outside_that_is_taken(phantoms, trained_run, attcl, tmp_path):
    root = tmp_path / "bids"
    shutil.copytree(phantoms("bids"), root)
    for path in root.rglob("*T2w*"):
        path.unlink()
    command = ("complete", "--ori", root, "-w", trained_run, "--target", "t2", "-q", "--cpl")
    lines = refusal(
        attcl(*command, root / "derivatives" / "attcl"),
        code=2,
        names=f"--cpl: {root / 'derivatives/attcl'} lies inside {root}",
        hint="not even into derivatives/; choose another --cpl, such as ",
    )
    place = lines[1].rsplit("such as ", 1)[1]
    assert attcl(*command, place)[0] == 0
    assert len(images(Path(place))) == 4


@pytest.mark.parametrize("keep_going", [(), ("--keep-going",)], ids=str)
def test_a_case_folder_that_becomes_a_link_on_the_way_is_not_written_through(
    keep_going, gappy, trained_run, attcl, monkeypatch, tmp_path
):
    root, out, others = gappy(), tmp_path / "out", tmp_path / "others"
    others.mkdir()
    real = AttclGan.synthesise

    def synthesise(method: AttclGan, *arguments: Any, **options: Any) -> Any:
        if not (out / "Phantom_00003").exists():
            (out / "Phantom_00003").symlink_to(others)
        return real(method, *arguments, **options)

    monkeypatch.setattr(AttclGan, "synthesise", synthesise)
    command = ("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu", "-q")
    code, _, err = attcl(*command, *keep_going)
    assert code == (3 if keep_going else 1)
    side_car = out / phantom_file(3, "t2").replace(".nii.gz", ".json")
    assert f"{side_car}: leads out of {out} through a link, expected a place inside" in err
    assert not list(others.iterdir())
    assert {name for name in expected_files(LACKING) if "_00003" not in name} == set(outputs(out))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, b"data"),
        lambda path: appended(path).__enter__(),
        lambda path: log_stats(path, {"step": 1}),
    ],
    ids=["whole", "appended", "stats"],
)
@pytest.mark.parametrize("link", ["out/sub", "out", "out/sub/file"])
def test_no_writer_leaves_its_folder_through_a_link(write, link, tmp_path):
    others = tmp_path / "others"
    (others / "sub").mkdir(parents=True)
    (others / "file").write_text("theirs")
    (tmp_path / "out/sub").mkdir(parents=True)
    before = states(others)
    with confined(tmp_path / "out"):
        if link == "out/sub/file":
            (tmp_path / link).symlink_to(others / "file")
        else:
            shutil.rmtree(tmp_path / link)
            (tmp_path / link).symlink_to(others)
        replaced = write.__code__.co_names[0] == "write_whole" and link == "out/sub/file"
        if replaced:  # the link is, not what it leads to
            write(tmp_path / "out/sub/file")
        else:
            with pytest.raises(AttclError, match="leads out of") as caught:
                write(tmp_path / "out/sub/file")
            assert code_of(caught) == "leads-out-of-output"
    assert states(others) == before


def test_an_output_that_is_a_link_itself_is_written(gappy, weights, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    with confined(tmp_path / "out"):
        completed(gappy(), tmp_path / "out", weights)
    assert set(outputs(tmp_path / "scratch")) == expected_files(LACKING)


# --- Files that change between the check and their reading ------------------------------------------------------------


def vanish(path: Path) -> None:
    path.unlink()


def shrink(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def regrid(path: Path) -> None:
    """Take another volume into its place, and with it all of the case: their grids agree."""
    for other in path.parent.glob("*.nii.gz"):
        image = nib.load(other)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::2], image.affine), other)


def link_away(path: Path) -> None:
    other = next(it for it in path.parent.glob("*.nii.gz") if it != path)
    path.unlink()
    path.symlink_to(other)


CHANGES = [vanish, shrink, regrid, link_away]


@pytest.mark.parametrize("change", CHANGES)
def test_a_case_that_changes_after_it_was_checked_fails_alone(change, gappy, weights, tmp_path):
    root, out = gappy(), tmp_path / "out"
    plan = plan_of(root, out, weights, keep_going=True)
    change(root / phantom_file(0, "flair"))
    items = {item.case: item for item in make(plan, keep_going=True)}
    error = items["Phantom_00000"].error
    assert error is not None
    assert error.code == "file-changed"
    assert error.message.startswith(f"{root / 'Phantom_00000'}")
    assert "since it was checked" in error.message
    assert [items[f"Phantom_{n:05d}"].error for n in (1, 3)] == [None, None]
    assert {name for name in expected_files(LACKING) if "_00000" not in name} == set(outputs(out))


@pytest.mark.parametrize("change", CHANGES)
def test_slices_of_a_case_that_changes_after_it_was_checked_are_not_trained_on(
    change, phantom_root, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(phantom_root, root)
    dataset = open_dataset(root)

    def on_case(case: str) -> None:
        if case == "Phantom_00000":
            change(root / phantom_file(1, "flair"))

    with pytest.raises(AttclError, match="since it was checked") as caught:
        slices.build(
            dataset,
            dataset.cases[:2],
            tmp_path / "store",
            image_size=16,
            canvas=64,
            on_case=on_case,
            workers=0,
        )
    assert code_of(caught) == "file-changed"
    assert not slices.is_store(tmp_path / "store")


# --- Full disks -------------------------------------------------------------------------------------------------------

# Forks processes none of whose files may grow beyond a size: as on a full disk, a write fails in the middle.
_LIMITED = """
import json, os, resource, sys
from attcl_cli import complete, export, score, segment, train
import attcl_cli.completion.making, attcl_cli.segmentation.training, attcl_cli.training.session
from attcl_cli.cli.app import main
for line in sys.stdin:
    task = json.loads(line)
    children = []
    open(task["said"], "w").close()
    for _ in range(task["count"]):
        children.append(os.fork())
        if not children[-1]:
            os.chdir(task["cwd"])
            stream = os.open(task["said"], os.O_WRONLY | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (task["size"], task["size"]))
            try:
                main(task["argv"])
            except SystemExit as end:
                os._exit(end.code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(max(codes, key=abs), flush=True)
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, str]]]:
    """`limited(size, *arguments, count=1)` runs a command so often at once, with files of this size at most."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LIMITED],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    said = tmp_path_factory.mktemp("limited") / "said"

    def run(size: int, *arguments: object, count: int = 1) -> tuple[int, str]:
        task = {
            "cwd": str(Path.cwd()),
            "size": size,
            "count": count,
            "said": str(said),
            "argv": [str(it) for it in arguments],
        }
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline()), said.read_text()

    yield run
    process.kill()
    process.communicate()


def require_whole(folder: Path) -> None:
    """Read every file below a folder to its end; slices count from their index on."""
    for path in folder.rglob("*"):
        assert not path.name.endswith(".attcl-tmp"), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".gz":
            nib.load(path).get_fdata()
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("command", ["train", "complete", "score", "segment", "export"])
def test_on_a_full_disk_files_are_whole_or_absent(command, study, trained_run, limited):
    tiny = study.root / "tiny.toml"
    tiny.write_text(dump(small_settings()))
    both = ("--ori", "data", "--cpl", "out")
    arguments = {
        "train": ("--data", "data", "-c", tiny, "-d", "cpu", "-o"),
        "complete": ("--ori", "data", "-w", trained_run, "-d", "cpu", "--cpl"),
        "score": (*both, "-d", "cpu", "-o"),
        "segment": (*both, "--preset", "tiny", *FLAGS, "-d", "cpu", "-o"),
        "export": (*both, "nnunet"),
    }[command]
    draw = random.Random(command)
    sizes = [4000, *(int(10 ** draw.uniform(2, 5.5)) for _ in range(examples(1) - 1))]
    for number, size in enumerate(sizes):
        place = study.root / f"Dataset{number:03d}_x"
        code, said = limited(size, command, *arguments, place, "-q")
        assert "Traceback" not in said, said
        assert code in {0, 1}, said
        if code:
            assert "not written (File too large)" in said or "disk-full" in said, said
            assert "hint: " in said
        require_whole(place)
        if size == 4000 and command != "export":  # which links, and writes little
            assert code == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="takes no room at once here")
def test_the_room_of_slices_is_taken_at_once(limited, phantom_root, tmp_path):
    """All of it, before the first case is read: so no later write can lack room."""
    place = tmp_path / "slices.npy"
    with appended(place, size=10**6) as stream:
        assert place.stat().st_size == 10**6
        stream.write(b"x")
    code, said = limited(
        20_000, "train", "--data", phantom_root, "-o", tmp_path / "run", "--preset", "tiny", "-q"
    )
    assert code == 1
    assert f"{tmp_path / 'run/slices/slices.npy'}: not written (File too large)" in said


# --- Runs at the same time --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_runs_at_the_same_time_on_one_output_do_no_harm(
    number, gappy, trained_run, weights, limited, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights)
    for attempt in range(examples(1)):
        out = tmp_path / f"out-{attempt}"
        command = ("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu", "-q")
        code, said = limited(2**40, *command, count=number)
        assert code == 0, said
        assert outputs(out) == outputs(tmp_path / "undisturbed")
        assert json.loads((out / "run.json").read_text())["status"] == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_of_trainings_that_begin_in_one_folder_one_goes_on(phantom_root, limited, tmp_path):
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(dump(small_settings()))
    for attempt in range(examples(1)):
        run = tmp_path / f"run-{attempt}"
        command = ("train", "--data", phantom_root, "-c", tiny, "-d", "cpu", "-o", run, "-q")
        code, said = limited(2**40, *command, count=3)
        assert code == 2
        assert said.count("error: ") == 2, said
        assert "written by another run meanwhile" in said or "is not empty" in said
        assert json.loads((run / "run.json").read_text())["status"] == "done"
        steps = [
            json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()
        ]
        assert sorted(set(steps)) == [1, 2, 3, 4]
        require_whole(run)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_scores_of_runs_at_the_same_time_are_those_of_one(study, limited):
    command = ("score", "--ori", "data", "--cpl", "out", "-d", "cpu", "-q", "-o")
    assert limited(2**40, *command, "alone") == (0, "")
    tables = ("scores.csv", "summary.json")
    for attempt in range(examples(1)):
        folder = study.root / f"scores-{attempt}"
        code, said = limited(2**40, *command, folder, count=2)
        assert code == 0, said
        for name in tables:
            assert (folder / name).read_bytes() == (study.root / "alone" / name).read_bytes()
        assert json.loads((folder / "run.json").read_text())["status"] == "done"
        require_whole(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("command", ["export", pytest.param("segment", marks=pytest.mark.slow)])
def test_of_two_runs_that_begin_in_one_folder_one_goes_on(command, study, limited):
    both = ("--ori", "data", "--cpl", "out")
    arguments = {
        "segment": (*both, "--preset", "tiny", *FLAGS, "-d", "cpu", "-o"),
        "export": (*both, "nnunet"),
    }[command]
    for attempt in range(examples(1)):
        folder = study.root / f"Dataset{attempt:03d}_x"
        code, said = limited(2**40, command, *arguments, folder, "-q", count=2)
        assert code == 2, said
        assert said.count("error: ") == 1, said
        assert "another run" in said or "is not empty" in said
        assert json.loads((folder / "run.json").read_text())["status"] == "done"
        require_whole(folder)


def test_a_new_file_is_not_written_over_another(tmp_path):
    write_whole(tmp_path / "a", b"first", new=True)
    with pytest.raises(AttclError, match="written by another run meanwhile"):
        write_whole(tmp_path / "a", b"second", new=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"first")]


# --- Nothing outside of the output ------------------------------------------------------------------------------------


def watched(root: Path) -> dict[str, tuple[Any, ...]]:
    """Relative path -> all that a write would change, of everything below a folder; links are not followed."""
    return {
        path.relative_to(root).as_posix(): (
            status.st_ino,
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in sorted(root.rglob("*"))
        for status in [path.lstat()]
    }


def test_no_command_writes_outside_of_its_output(
    study: SimpleNamespace, phantom_root, trained_run, attcl, monkeypatch
):
    """Home, temporary and current folder are watched, and the dataset; caches are where the environment says."""
    root = study.root
    for name in ("home", "tmp", "cache", "source"):
        (root / name).mkdir()
    shutil.copytree(phantom_root, root / "source", dirs_exist_ok=True)
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("TMPDIR", str(root / "tmp"))
    monkeypatch.setenv("ATTCL_CACHE", str(root / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(root / "cache"))  # for the list of fonts
    tiny = root / "tiny.toml"
    tiny.write_text(dump(small_settings()))
    both, cpu = ("--ori", "data", "--cpl", "out"), ("-d", "cpu")
    predictions = root / "segment" / "predictions"
    commands = {
        "": ("info", "source"),
        "tree": ("prepare-splits", "source", "-o", "tree", "--ratio", "ratio3"),
        "run": ("train", "--data", "data", "-o", "run", "-c", tiny, *cpu),
        "completed": ("complete", "--ori", "data", "--cpl", "completed", "-w", trained_run, *cpu),
        "scores": ("score", *both, "-o", "scores", *cpu),
        "segment": ("segment", *both, "-o", "segment", "--preset", "tiny", *FLAGS, *cpu),
        "evaluated": ("evaluate", predictions, *both, "-o", "evaluated"),
        "Dataset501_x": ("export", "nnunet", "Dataset501_x", *both),
    }
    for output, command in commands.items():
        before = watched(root)
        code, _, err = attcl(*command)
        assert code == 0, err
        after = watched(root)
        changed = {
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        }
        allowed = {"cache", *([output] if output else []), "tmp"}
        assert {name.split("/")[0] for name in changed} <= allowed, sorted(changed)
        assert not list((root / "tmp").iterdir()), command
