"""Runs that are killed, interrupted or started twice: no file is ever half there, and running again finishes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from completers import LACKING, completed, images, outputs
from helpers import REPOSITORY, fresh_python, states

from attcl_cli.methods.attcl_gan import AttclGan

# Forks a process for each moment, which completes into a folder of its own and is killed at its n-th fsync: of the two
# that a file takes, the first lies between writing and renaming it, the second after that.
_KILLED = """
import os, signal, sys
from attcl_cli.completion.run import complete  # once, not in every process
from attcl_cli.cli.app import main
ori, weights, cpl, *moments = sys.argv[1:]
for moment in map(int, moments):
    child = os.fork()
    if not child:
        real, seen = os.fsync, 0
        def fsync(handle):
            global seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)
        os.fsync = fsync
        main(["complete", "--ori", ori, "--cpl", f"{cpl}-{moment}", "-w", weights, "-d", "cpu", "-q"])
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
_TWO_AT_ONCE = """
import os, sys
from attcl_cli.completion.run import complete
from attcl_cli.cli.app import main
ori, weights, cpl = sys.argv[1:]
children = []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        main(["complete", "--ori", ori, "--cpl", cpl, "-w", weights, "-d", "cpu", "-q"])
for child in children:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


@needs_fork
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([1, 2, 3, 5, 8, 13, 18], id="some"),
        # `tests/faults/test_ends.py` kills at random moments, as many as it is told
        pytest.param([4, 7, 10, 15, 20, 24, 28, 32], id="more", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_finished_by_running_it_again(
    moments, gappy, attcl, trained_run, weights, tmp_path
):
    root = gappy()
    before = states(root)
    completed(root, tmp_path / "undisturbed", weights)
    undisturbed = outputs(tmp_path / "undisturbed")
    printed = fresh_python("-c", _KILLED, root, trained_run, tmp_path / "killed", *moments)
    assert printed.splitlines() == [f"{moment} {-9}" for moment in moments]
    temporary = 0
    for moment in moments:
        out = tmp_path / f"killed-{moment}"
        left = outputs(out)
        whole = {name: data for name, data in left.items() if not name.endswith(".attcl-tmp")}
        temporary += len(left) - len(whole)
        assert whole.items() <= undisturbed.items()
        for name in images(out):  # an image without its side-car never exists
            assert name.replace(".nii.gz", ".json") in whole
        code, *_ = attcl("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu")
        assert code == 0
        assert outputs(out) == undisturbed
        assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert temporary > 0  # otherwise the kills came too late to mean anything
    assert states(root) == before


@needs_fork
def test_two_runs_at_once_on_one_output_do_no_harm(gappy, trained_run, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights)
    printed = fresh_python("-c", _TWO_AT_ONCE, root, trained_run, tmp_path / "both")
    assert printed.splitlines()[-2:] == ["0", "0"]
    assert outputs(tmp_path / "both") == outputs(tmp_path / "undisturbed")
    assert json.loads((tmp_path / "both/run.json").read_text())["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_command_killed_from_outside_is_finished_by_running_it_again(
    count, gappy, attcl, trained_run, weights, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "attcl_cli", "complete", "--ori", root, "--cpl", out]
    process = subprocess.Popen(
        [*map(str, command), "-w", str(trained_run), "-d", "cpu"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(out.rglob("*.nii.gz"))) < count:
        time.sleep(0.001)
    process.kill()
    process.wait()
    code, *_ = attcl("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu")
    assert code == 0
    assert outputs(out) == outputs(tmp_path / "undisturbed")


def test_control_c_keeps_what_is_finished_and_says_how_to_resume(
    gappy, attcl, trained_run, weights, monkeypatch, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights)
    undisturbed = outputs(tmp_path / "undisturbed")
    real = AttclGan.synthesise

    def interrupted(method, sources, targets, **options):
        if tuple(targets) == LACKING[3]:
            raise KeyboardInterrupt
        return real(method, sources, targets, **options)

    arguments = ("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", trained_run)
    with monkeypatch.context() as patch:
        patch.setattr(AttclGan, "synthesise", interrupted)
        code, _, err = attcl(*arguments)
    assert code == 130
    assert "error: interrupted" in err
    assert "hint: run the same command again" in err
    assert set(outputs(tmp_path / "out")) == {n for n in undisturbed if "Phantom_00003" not in n}
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", 130)
    assert attcl(*arguments)[0] == 0
    assert outputs(tmp_path / "out") == undisturbed
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [part["status"] for part in record["earlier"]] == ["stopped"]
    assert attcl(*arguments, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["earlier"] == []
