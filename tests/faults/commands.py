"""Commands in processes of their own that are killed, told to stop, or left by their reader, at any moment.

One interpreter loads all libraries and forks a process per command, so a moment costs no start. What must hold
afterwards is left to the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers import REPOSITORY

# Reads a task per line, forks, and says how the command ended. Nothing is computed before: a fork has no threads.
_SERVER = """
import json, os, signal, sys, time
import matplotlib.pyplot, monai.losses.dice, scipy.ndimage, torch._dynamo
from attcl_cli import complete, evaluate, export, prepare_splits, score, segment, train
import attcl_cli.completion.making, attcl_cli.data.phantom, attcl_cli.scoring.report, attcl_cli.scoring.summary
import attcl_cli.segmentation.training, attcl_cli.training.session
from attcl_cli.cli.app import main

LONGEST = 240  # seconds, after which a command hangs
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    # of a child too, until its handlers are ours; under nohup, no command would hear of SIGHUP
    signal.signal(number, signal.SIG_DFL)

def forked(task, streams):
    child = os.fork()
    if child:
        return child
    os.chdir(task["cwd"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    os.closerange(3, 64)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["attcl", *task["argv"]]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)  # the libraries take seconds to go, in which nothing happens

for line in sys.stdin:
    task = json.loads(line)
    out, err = (os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in task["streams"])
    reader = None
    if task["signals"] == ["left"]:
        reader, writer = os.pipe()
        streams = writer, writer
    else:
        streams = out, err
    begun = time.monotonic()
    child = forked(task, streams)
    if reader is not None:
        os.close(writer)
    for number in task["signals"]:
        time.sleep(max(begun + task["after"] - time.monotonic(), 0))
        if reader is not None:
            os.close(reader)
        else:
            os.kill(child, number)
    seconds, hangs = 0, False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - begun
        if done:
            break
        if seconds > LONGEST:
            hangs = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps({"code": code, "seconds": seconds, "hangs": hangs}), flush=True)
    for stream in (out, err):
        os.close(stream)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: killed), what it said, and the seconds that it took."""

    code: int
    out: str
    err: str
    seconds: float


class Commands:
    """Runs commands with a number of threads."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self._streams = [str(folder / "stdout"), str(folder / "stderr")]
        self._process = process

    def run(
        self,
        arguments: Sequence[object],
        cwd: Path,
        *,
        signals: Sequence[int | str] = (),
        after: float = 0.0,
    ) -> Ended:
        """Run a command in a folder.

        Args:
            arguments: of `attcl`.
            cwd: the folder.
            signals: sent to it one after the other; `left` alone: the reader of stdout and stderr leaves.
            after: seconds, when they are sent.
        """
        task = {
            "argv": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "signals": list(signals),
            "after": after,
            "streams": self._streams,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        out, err = (
            Path(name).read_text(encoding="utf-8", errors="replace") for name in self._streams
        )
        assert not said["hangs"], f"{task} hangs: {err}"
        return Ended(said["code"], out, err, said["seconds"])


@contextmanager
def commands(folder: Path, *, threads: int = 1) -> Iterator[Commands]:
    """Start the interpreter that forks commands, for the block.

    Args:
        folder: for what they say; `tmp` in it is their folder for temporary files.
        threads: that torch has.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "TMPDIR": str(temporary),
        # which torch makes in TMPDIR as soon as it is imported, unless it is told another
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the cores of a busy machine
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=REPOSITORY,
        env={**os.environ, **environment, "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Commands(folder, process)
    finally:
        process.kill()
        process.communicate()
