"""Completion on several devices, a process for each; two CPUs stand in for two GPUs, which no test machine has."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from completers import LACKING, outputs, phantom_file, plan_of
from helpers import REPOSITORY

from attcl_cli import devices
from attcl_cli.completion import making, on_devices
from attcl_cli.completion.run import complete
from attcl_cli.completion.warm import WarmModels
from attcl_cli.errors import AttclError, UsageError

__all__ = ["LACKING"]  # of the fixture gappy

# The command with two CPUs for two GPUs; its arguments are those of the command line.
TWO_CPUS = """
import sys
from attcl_cli import devices
from attcl_cli.cli.app import main
devices.several = lambda _name: ("cpu", "cpu")
main(sys.argv[1:])
"""


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(devices, "several", lambda _name: ("cpu", "cpu"))


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_two_workers_make_the_same_bytes_as_one_process(gappy, weights, tmp_path, monkeypatch):
    root = gappy()
    here = complete(root, tmp_path / "here", weights=weights.path, device="cuda:0,cuda:1")
    assert (here.written, here.device) == (7, "cpu,cpu")
    record = json.loads((tmp_path / "here/run.json").read_text())
    assert (record["status"], record["device"]) == ("done", "cpu,cpu")
    assert [case["id"][-1] for case in record["cases"]] == ["0", "1", "3"]
    assert not multiprocessing.active_children()
    again = complete(root, tmp_path / "here", weights=weights.path)
    assert (again.written, again.done_before) == (0, 7)
    monkeypatch.undo()
    complete(root, tmp_path / "alone", weights=weights.path, device="cpu")
    assert outputs(tmp_path / "here") == outputs(tmp_path / "alone")
    assert here.page.is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_a_case_that_fails_in_a_worker_keeps_its_error_and_its_hint(
    gappy, weights, tmp_path, monkeypatch
):
    root = gappy()
    damaged = root / phantom_file(1, "flair")
    whole = damaged.read_bytes()
    planned = on_devices.make_on_devices

    def damage_then_make(*arguments, **options):
        damaged.write_bytes(whole[:-300])  # sound when it was checked
        return planned(*arguments, **options)

    monkeypatch.setattr(on_devices, "make_on_devices", damage_then_make)
    arguments = {"ori": root, "weights": weights.path}
    result = complete(**arguments, cpl=tmp_path / "going", keep_going=True)
    ((case, error),) = result.failed
    assert (case[-1], error.code) == ("1", "file-changed")
    assert error.hint
    assert result.written == 5
    damaged.write_bytes(whole)
    with pytest.raises(AttclError, match="has changed since it was checked") as caught:
        complete(**arguments, cpl=tmp_path / "stopped")
    assert (caught.value.hint, caught.value.code) == (error.hint, error.code)
    record = json.loads((tmp_path / "stopped/run.json").read_text())
    assert (record["status"], record["code"]) == ("failed", error.code)
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_the_cases_of_a_worker_that_is_killed_fail_and_others_do_the_rest(gappy, weights, tmp_path):
    def kill() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(min(worker.pid for worker in workers), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    arguments = {"ori": gappy(), "weights": weights.path, "cpl": tmp_path / "out"}
    result = complete(**arguments, keep_going=True)
    killer.join()
    ((case, error),) = result.failed
    assert error.message == f"{case}: its worker on cpu died (SIGKILL), expected one that lives"
    assert error.code == "worker-died"
    assert len({job.case.id for job in result.plan.jobs}) == 3
    assert result.written == 7 - sum(len(j.outputs) for j in result.plan.jobs if j.case.id == case)
    again = complete(**arguments)  # finishes what is left
    assert (result.written + again.written, again.failed) == (7, ())


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_without_any_worker_left_the_run_ends_with_an_error(gappy, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(on_devices, "_work", die)
    lacking = [["t1"], ["t1"], ["t2"], ["t2"]]  # more cases than workers
    with pytest.raises(AttclError, match=r"all workers died .*exit code 7.*expected one") as caught:
        complete(gappy(lacking=lacking), tmp_path / "out", weights=weights.path, keep_going=True)
    assert caught.value.code == "worker-died"


def die(*_arguments: object) -> None:
    """Stand in for a worker that cannot even begin."""
    os._exit(7)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_workers_and_leaves_no_half_file(number, gappy, weights, tmp_path):
    root, out = gappy(), tmp_path / "out"
    arguments = ["complete", "-i", root, "-o", out, "-w", weights.path, "--samples", "200"]
    script = tmp_path / "two_cpus.py"
    script.write_text(TWO_CPUS.replace("main(sys", "if __name__ == '__main__':\n    main(sys"))
    run = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments), "-d", "cuda:0,cuda:1"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not list(out.rglob("*.nii.gz")):  # then another case is in work
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as a terminal does
    else:
        run.send_signal(number)
    _, said = run.communicate(timeout=60)
    left = time.monotonic() + 30
    while in_group(run.pid) and time.monotonic() < left:
        time.sleep(0.05)
    assert not in_group(run.pid)
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert run.returncode == 130
        record = json.loads((out / "run.json").read_text())
        assert (record["status"], record["code"]) == ("stopped", "interrupted")
        assert not list(out.rglob("*attcl-tmp"))
    assert len(list(out.rglob("*.nii.gz"))) < 7  # otherwise the signal came too late
    for image in out.rglob("*.nii.gz"):
        assert image.with_name(image.name.replace(".nii.gz", ".json")).is_file()
    assert not list(out.glob("*/.*")) or number == signal.SIGKILL


def in_group(leader: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == leader and state != "Z":
                found.append(int(folder.name))
    return found


def worker_of(answer: Callable[[int], Any]) -> on_devices._Worker:
    """Return a worker whose process is a thread of this one; its groups are their numbers."""
    ours, theirs = multiprocessing.Pipe()

    def work() -> None:
        with suppress(EOFError, OSError):  # the test has ended
            while True:
                (number,) = theirs.recv()
                theirs.send(answer(number))

    threading.Thread(target=work, daemon=True).start()
    return on_devices._Worker("cuda:0", multiprocessing.Process(), ours)


def test_results_come_in_order_and_nobody_runs_far_ahead_of_a_slow_worker():
    ahead, others = threading.Semaphore(0), []

    def slow(number: int) -> list[Any]:
        while ahead.acquire(timeout=0.3):  # until the other one is given nothing more
            pass
        return [((f"{number}",), 0.0, None, {})]

    def fast(number: int) -> list[Any]:
        others.append(number)
        ahead.release()
        return [((f"{number}",), 0.0, None, {})]

    pool = [worker_of(slow), worker_of(fast)]
    items = on_devices._in_order(pool, [(number,) for number in range(20)])
    first = next(items)
    assert max(others, default=0) < 2 * on_devices._MOST  # of 20
    assert [item.outputs for item in (first, *items)] == [(f"{number}",) for number in range(20)]


def test_what_is_no_matter_of_a_single_case_ends_the_run():
    problem = AttclError("cuda:0: out of memory", "lower --batch-size", code="out-of-memory")
    pool = [worker_of(lambda number: problem if number == 2 else [((), 0.0, None, {})])]
    items = on_devices._in_order(pool, [(number,) for number in range(5)])
    assert [next(items).job for _ in range(2)] == [0, 1]
    with pytest.raises(AttclError, match="out of memory") as caught:
        next(items)
    assert caught.value.hint == "lower --batch-size"


def test_a_bug_in_a_worker_is_an_error_that_names_its_device(gappy, weights, tmp_path, monkeypatch):
    def broken(*_arguments, **_options):
        raise TypeError("no such thing")

    monkeypatch.setattr(making, "make_volumes", broken)
    plan = plan_of(gappy(), tmp_path / "out", weights)
    models = WarmModels(plan, "cpu", batch_size=1, workers=0)
    answer = on_devices._answer(models, "cpu", plan.jobs)
    assert isinstance(answer, AttclError)
    assert answer.code == "unexpected"
    assert answer.message.startswith("cpu: unexpected TypeError (no such thing)")
    assert "-d cpu" in answer.hint


@pytest.mark.usefixtures("two_gpus")
def test_a_list_names_gpus():
    assert devices.several("cuda:1, cuda:0") == ("cuda:1", "cuda:0")
    assert devices.several("cuda:1") == devices.several("auto") == ()


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("cuda:0,cuda:2", "'cuda:2' is not on this machine, expected auto, cpu, cuda:0, cuda:1"),
        ("cuda:0,cpu", "'cpu' among several devices, expected cuda:N"),
        ("cuda:0,", "'' among several devices, expected cuda:N"),
        ("cuda,cuda:1", "'cuda' among several devices, expected cuda:N"),
        ("cuda:1,cuda:0,cuda:01", "cuda:1 is named twice, expected each GPU once"),
    ],
)
def test_a_list_with_something_else_is_refused(names, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        devices.several(names)
    assert caught.value.code in {"device-list", "device-absent"}


def test_a_list_on_a_machine_without_gpus_is_refused_before_anything_is_made(
    gappy, weights, tmp_path, attcl, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = ("complete", "-i", gappy(), "-o", tmp_path / "out", "-w", weights.path)
    code, _, said = attcl(*arguments, "-d", "cuda:0,cuda:1")
    assert code == 2
    assert "--device: 'cuda:0' is not on this machine, expected auto, cpu" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("two_gpus")
def test_several_gpus_and_a_cluster_exclude_each_other(gappy, weights, tmp_path):
    with pytest.raises(UsageError, match="--ray: given with --device cuda:0,cuda:1"):
        complete(
            *(gappy(), tmp_path / "out"), weights=weights.path, device="cuda:0,cuda:1", ray="local"
        )


def test_other_commands_take_one_device(attcl, phantom_root, elsewhere):
    code, _, said = attcl("train", "--data", phantom_root, "-d", "cuda:0,cuda:1")
    assert code == 2
    assert "--device: 'cuda:0,cuda:1' names several devices, expected one" in said
    with pytest.raises(UsageError) as caught:
        devices.select("cpu,cpu")
    assert caught.value.code == "several-devices"
    assert not list(elsewhere.iterdir())
