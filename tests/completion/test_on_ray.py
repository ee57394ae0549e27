"""Completion on a Ray cluster of this machine: the same bytes, workers that die, cases that fail, their errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from completers import LACKING, outputs
from helpers import pids_of

from attcl_cli.completion.run import complete
from attcl_cli.errors import AttclError, UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = pytest.mark.slow

__all__ = ["LACKING"]  # of the fixture gappy


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two workers; `complete` takes a cluster that the caller has, and leaves it."""
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "nobody answers"),
        ("ray://127.0.0.1:10001", "no address HOST:PORT"),
        ("here", "no address HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(address, reason, gappy, weights, tmp_path):
    with pytest.raises(
        UsageError, match=f"--ray: {address}: {reason}.*expected a Ray cluster"
    ) as caught:
        complete(gappy(), tmp_path / "out", weights=weights.path, device="cpu", ray=address)
    assert caught.value.code == "no-cluster"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cluster")
def test_a_cluster_makes_the_same_bytes_as_one_process(gappy, weights, tmp_path):
    arguments = {"ori": gappy(), "weights": weights.path, "device": "cpu"}
    complete(**arguments, cpl=tmp_path / "here")
    result = complete(**arguments, cpl=tmp_path / "there", ray="local")
    assert result.written == 7
    assert outputs(tmp_path / "there") == outputs(tmp_path / "here")
    record = json.loads((tmp_path / "there/run.json").read_text())
    assert (record["status"], record["device"]) == ("done", "ray (cpu)")
    assert record["config"]["ray"] == "local"
    assert [case["status"] for case in record["cases"]] == ["done"] * len(record["cases"])
    again = complete(**arguments, cpl=tmp_path / "there", ray="local")
    assert (again.written, again.done_before) == (0, 7)


@pytest.mark.usefixtures("cluster")
def test_a_case_that_fails_on_a_worker_keeps_its_error_and_its_hint(gappy, weights, tmp_path):
    root = gappy()
    damaged = next(iter(sorted(root.rglob("*_flair.nii.gz"))))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    arguments = {"ori": root, "weights": weights.path, "device": "cpu", "keep_going": True}
    here = complete(**arguments, cpl=tmp_path / "here")
    there = complete(**arguments, cpl=tmp_path / "there", ray="local")
    assert there.written == here.written
    assert [(case, error.message, error.hint, error.code) for case, error in there.failed] == [
        (case, error.message, error.hint, error.code) for case, error in here.failed
    ]
    assert len(there.failed) == 1
    assert outputs(tmp_path / "there") == outputs(tmp_path / "here")


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_changes_nothing(gappy, weights, tmp_path):
    arguments = {"ori": gappy(), "weights": weights.path, "device": "cpu"}
    complete(**arguments, cpl=tmp_path / "here")
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 300  # workers load torch first
        while not killed and time.monotonic() < end:
            for number in pids_of("_Worker"):
                os.kill(number, signal.SIGKILL)
                killed.append(number)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    complete(**arguments, cpl=tmp_path / "there", ray="local")
    killer.join()
    assert killed
    assert outputs(tmp_path / "there") == outputs(tmp_path / "here")
    assert not list((tmp_path / "there").rglob("*.attcl-tmp"))


def test_the_command_starts_a_cluster_and_ends_it(gappy, weights, tmp_path):
    command = [sys.executable, "-m", "attcl_cli", "complete", "-i", str(gappy())]
    out = tmp_path / "out"
    outcome = subprocess.run(
        [*command, "-o", str(out), "-w", str(weights.path), "--ray", "-d", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert f"{out}: 7 volumes written" in outcome.stdout
    assert "Traceback" not in outcome.stderr
    assert not list(out.rglob("*.attcl-tmp"))


@pytest.mark.usefixtures("cluster")
def test_a_gpu_that_no_machine_has_is_an_error(gappy, weights, tmp_path):
    with pytest.raises(AttclError, match="no machine of the cluster has a GPU"):
        complete(gappy(), tmp_path / "out", weights=weights.path, device="cuda", ray="local")
