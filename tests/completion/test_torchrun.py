"""Completion in several processes of torchrun: parts that add up to the whole, each with its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from completers import LACKING, content, phantom_file
from helpers import REPOSITORY

from attcl_cli import processes
from attcl_cli.completion import linking
from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import UsageError

__all__ = ["LACKING"]  # of the fixture gappy


@pytest.fixture
def second_of_two(monkeypatch):
    """The environment of the second of two processes."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def run_of_two(*arguments: object) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launch, "-m", "attcl_cli", "complete", *map(str, arguments), "-d", "cpu"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def record_of(out: Path, part: int) -> dict:
    return json.loads((out / f"run-{part}of2.json").read_text())


def made(folder: Path) -> dict[str, bytes]:
    """Return volumes and side-cars: all in the folders of cases."""
    return {name: data for name, data in content(folder).items() if "/" in name}


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_bytes_of_one_run(gappy, weights, tmp_path):
    root, out = gappy(), tmp_path / "two"
    outcome = run_of_two("-i", root, "-o", out, "-w", weights.path, "--link-originals")
    assert outcome.returncode == 0, outcome.stderr
    complete(root, tmp_path / "one", weights=weights.path, device="cpu", link_originals=True)
    assert made(out) == made(tmp_path / "one")
    lines = sorted(line for line in outcome.stdout.splitlines() if "written" in line)
    assert lines == [
        f"part 1 of 2: {out}: 2 volumes written, 0 were there already",
        f"part 2 of 2: {out}: 5 volumes written, 0 were there already",
    ]
    assert [record_of(out, part)["config"]["part"] for part in (1, 2)] == [[1, 2], [2, 2]]
    assert {path.name for path in out.iterdir() if path.suffix == ".html"} == {
        "report-1of2.html",
        "report-2of2.html",
    }


@pytest.mark.slow
def test_a_process_with_failed_cases_ends_no_other_that_is_still_at_work(gappy, weights, tmp_path):
    root, out = gappy(), tmp_path / "out"
    for file in root.glob("Phantom_00000/*.nii.gz"):
        file.write_bytes(file.read_bytes()[:-300])
    # the sound part takes some seconds longer, in which torchrun would end it
    outcome = run_of_two(
        *("-i", root, "-o", out, "-w", weights.path, "--samples", 100, "--keep-going")
    )
    assert outcome.returncode == 1  # of torchrun, whatever its processes returned
    first, second = (record_of(out, part) for part in (1, 2))
    assert (first["status"], second["status"]) == ("incomplete", "done"), outcome.stderr
    assert second["seconds"] > first["seconds"] + 1  # otherwise nobody waited


@pytest.mark.usefixtures("second_of_two")
def test_a_process_of_torchrun_makes_its_part_and_names_it(gappy, attcl, weights, tmp_path):
    out = tmp_path / "out"
    arguments = ("complete", "-i", gappy(), "-o", out, "-w", weights.path, "-d", "cpu")
    code, printed, said = attcl(*arguments)
    assert (code, said) == (0, "")  # progress is the first process'
    assert f"part 2 of 2: {out}: 5 volumes written" in printed
    assert [case["id"][-1] for case in record_of(out, 2)["cases"]] == ["1", "3"]
    assert not (out / phantom_file(0, "flair")).exists()
    code, printed, _ = attcl(*arguments, "--json")
    assert json.loads(printed)["part"] == [2, 2]


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(
    "options",
    [("--num-parts", "4"), ("--part-id", "2"), ("--ray",), ("--device", "cuda:0,cuda:1")],
)
def test_cases_that_are_divided_twice_are_refused(options, attcl, tmp_path):
    code, _, said = attcl("complete", "-i", tmp_path, "-o", tmp_path / "out", *options)
    assert code == 2
    assert "given to 2 processes of torchrun, which divide the cases among themselves" in said
    assert not (tmp_path / "out").exists()


def test_a_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = ("auto", "cuda", "cpu", "cuda:0")
    launch = processes.Launch(rank=3, count=4, local=1)
    assert [processes.own_device(name, launch) for name in names] == [
        *("cuda:1", "cuda:1", "cpu", "cuda:0")
    ]
    with pytest.raises(UsageError, match=r"process 3 .* no GPU of its own, expected 2") as caught:
        processes.own_device("auto", processes.Launch(rank=2, count=3, local=2))
    assert caught.value.code == "too-many-processes"


def test_without_a_gpu_a_process_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes.own_device("auto", processes.Launch(rank=1, count=2, local=1)) == "auto"


@pytest.mark.parametrize(
    ("rank", "count", "expected"),
    [("1", "2", processes.Launch(1, 2, 0)), ("0", "1", None), ("", "2", None), ("x", "y", None)],
)
def test_a_process_alone_is_no_part(rank, count, expected, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert processes.launched() == expected


def test_a_link_that_another_part_makes_at_the_same_time_is_no_error(gappy, tmp_path, monkeypatch):
    make_link = Path.symlink_to

    def second(link: Path, target: Path) -> None:
        make_link(link, target)  # by the other part
        make_link(link, target)

    dataset = open_dataset(gappy())
    monkeypatch.setattr(Path, "symlink_to", second)
    linked = linking.link_originals(dataset, tmp_path / "out")
    assert linked == sum(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
