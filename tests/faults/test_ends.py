"""Commands that are killed, told to stop, or left by their reader: the record is true, and the next run finishes.

`ATTCL_FAULTS=100` draws so many moments per command, kind of end and number of threads.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.commands import Commands, Ended, commands
from faults.size import examples
from helpers import complete_perfectly, small_settings
from segmenters import FLAGS

from attcl_cli.data.prepare import prepare_splits
from attcl_cli.methods.settings import dump

LEFT = "left"  # by the reader of stdout and stderr
STOPS = {
    "SIGTERM": signal.SIGTERM,
    "SIGINT": signal.SIGINT,
    "SIGHUP": signal.SIGHUP,
    "SIGPIPE": LEFT,
}
QUICK = ("prepare-splits", "train", "complete", "score", "segment", "evaluate", "export")
EVERY = (*QUICK, "demo")
_SECONDS = re.compile(rb'"seconds_a_step": [^,}]*|"seconds": [^,}]*')


@dataclass(frozen=True)
class Command:
    """A command that writes a folder.

    Attributes:
        arguments: of the first run.
        output: the folder, relative to the current one.
        again: of the run that resumes a broken one; None: the same.
    """

    arguments: tuple[object, ...]
    output: str
    again: tuple[object, ...] | None = None

    def next(self, cwd: Path) -> tuple[object, ...]:
        """Return the arguments of the run after a broken one, as its message says."""
        folder = cwd / self.output
        begun = (folder / "run.json").exists() or (folder / "config.toml").exists()
        return self.again if self.again is not None and begun else self.arguments


@pytest.fixture(scope="module")
def world(phantom_root: Path, trained_run: Path, tmp_path_factory: Any) -> dict[str, Command]:
    """Every command that writes, on 4 phantoms."""
    root = tmp_path_factory.mktemp("world")
    ratio = root / "ratio.toml"
    ratio.write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    prepare_splits(phantom_root, root / "data", ratio=str(ratio), sizes=(2, 1, 1))
    complete_perfectly(root, phantom_root)
    record = {"command": "complete", "weights": {"name": "w", "sha256": "0"}, "trained_on": []}
    (root / "out" / "run.json").write_text(json.dumps(record))
    tiny = root / "tiny.toml"
    tiny.write_text(dump(small_settings()))
    predictions = root / "predictions"
    predictions.mkdir()
    splits = json.loads((root / "data/splits.json").read_text())["splits"]
    for item in splits["test"]:
        label = root / "data" / item["case"] / f"{item['case']}_seg.nii.gz"
        (predictions / f"{item['case']}.nii.gz").write_bytes(label.read_bytes())
    both = ("--ori", root / "data", "--cpl", root / "out")
    return {
        "prepare-splits": Command(
            ("prepare-splits", phantom_root, "-o", "data", "--ratio", ratio, "--sizes", "2/1/1"),
            "data",
        ),
        "train": Command(
            ("train", "--data", root / "data", "-o", "run", "-c", tiny, "-d", "cpu"),
            "run",
            ("train", "--resume", "run", "-d", "cpu"),
        ),
        "complete": Command(
            ("complete", "--ori", root / "data", "--cpl", "out", "-w", trained_run, "-d", "cpu"),
            "out",
        ),
        "score": Command(("score", *both, "-o", "scores", "-d", "cpu"), "scores"),
        "segment": Command(
            ("segment", *both, "-o", "segment", "--preset", "tiny", *FLAGS, "-d", "cpu"),
            "segment",
            ("segment", "--resume", "segment", "-d", "cpu"),
        ),
        "evaluate": Command(("evaluate", predictions, *both, "-o", "evaluated"), "evaluated"),
        "export": Command(("export", "nnunet", "Dataset501_x", *both), "Dataset501_x"),
        "demo": Command(("demo", "-o", "demo", "--cases", 3, "-d", "cpu"), "demo"),
    }


@dataclass(frozen=True)
class Campaign:
    """Commands with a number of threads, and what each leaves when nothing disturbs it."""

    world: Mapping[str, Command]
    server: Commands
    temporary: Path
    undisturbed: dict[str, tuple[float, dict[str, bytes]]]

    def expected(self, name: str, cwd: Path) -> tuple[float, dict[str, bytes]]:
        """Return the seconds that a command takes, and what it leaves."""
        if name not in self.undisturbed:
            ended = self.server.run(self.world[name].arguments, cwd)
            assert ended.code == 0, ended.err
            self.undisturbed[name] = ended.seconds, content(cwd)
        return self.undisturbed[name]


@pytest.fixture(scope="module")
def campaign(world: dict[str, Command], tmp_path_factory: Any) -> Iterator[Callable[[int], Any]]:
    """`campaign(threads)`: the commands with so many threads."""
    running: dict[int, tuple[Any, Campaign]] = {}

    def of(threads: int) -> Campaign:
        if threads not in running:
            folder = tmp_path_factory.mktemp(f"threads-{threads}")
            context = commands(folder, threads=threads)
            server = context.__enter__()
            running[threads] = context, Campaign(world, server, folder / "tmp", {})
        return running[threads][1]

    yield of
    for context, _ in running.values():
        context.__exit__(None, None, None)


def content(folder: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of all that lies in a folder, times left out; of a link where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        elif path.name == "run.json":
            found[name] = b""
        elif path.is_file():
            found[name] = _SECONDS.sub(b"", path.read_bytes())
    return {name: data.replace(str(folder).encode(), b".") for name, data in found.items()}


def moments(name: str, count: int, *seed: object) -> list[float]:
    """Return when a command is disturbed, as shares of the time that it takes."""
    return [random.Random(f"{name} {seed} {index}").random() for index in range(count)]


def require_same(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """Check that two folders hold the same files with the same bytes."""
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def finish(campaign: Campaign, name: str, cwd: Path, expected: Mapping[str, bytes]) -> None:
    """Run a command again after it was broken off; check that all is as if nothing had happened."""
    command = campaign.world[name]
    ended = campaign.server.run(command.next(cwd), cwd)
    assert ended.code == 0, ended.err
    require_same(content(cwd), expected)
    assert record_in(cwd / command.output)["status"] == "done"
    assert sorted(campaign.temporary.rglob("*")) == []


def record_in(folder: Path) -> dict[str, Any]:
    """Return the record in a folder."""
    return json.loads((folder / "run.json").read_text())


def require_true(ended: Ended, folder: Path, number: int) -> str:
    """Check that a record says what happened; return its status, `nothing` if there is none."""
    assert "Traceback" not in ended.err
    if ended.code > 0 and number != signal.SIGPIPE:
        assert ended.err.splitlines()[-2].startswith("error: "), ended.err
        assert ended.err.splitlines()[-1].startswith("hint: "), ended.err
    if not (folder / "run.json").exists():
        # before the first file; in the milliseconds after the fork, handlers are not ours yet
        assert ended.code in {128 + number, -number}, ended
        assert {path.name for path in folder.rglob("*")} <= {"config.toml"}
        return "nothing"
    record = record_in(folder)
    if record["status"] == "done":
        assert record["exit_code"] == 0
        assert ended.code in {0, 128 + number, -number}, ended  # when all was done, or the process ended
    else:
        assert record["status"] == "stopped"
        assert record["exit_code"] == ended.code == 128 + number
        assert record["code"] in {"interrupted", "stopped"}
    return record["status"]


def kill(campaign: Campaign, name: str, count: int, tmp_path: Path) -> Counter[str]:
    """Kill a command at some moments, and finish it; return how many kills found which status."""
    (tmp_path / "whole").mkdir()
    seconds, expected = campaign.expected(name, tmp_path / "whole")
    statuses: Counter[str] = Counter()
    for index, share in enumerate(moments(name, count, "kill")):
        cwd = tmp_path / str(index)
        cwd.mkdir()
        ended = campaign.server.run(
            campaign.world[name].arguments, cwd, signals=[signal.SIGKILL], after=share * seconds
        )
        assert ended.code in {0, -signal.SIGKILL}, ended
        folder = cwd / campaign.world[name].output
        begun = (folder / "run.json").exists()
        statuses[record_in(folder)["status"] if begun else "nothing"] += 1
        finish(campaign, name, cwd, expected)
    return statuses


def stop(campaign: Campaign, name: str, how: str, count: int, tmp_path: Path) -> Counter[str]:
    """Stop a command at some moments, check its record, and finish it; return how many stops found which status."""
    (tmp_path / "whole").mkdir()
    seconds, expected = campaign.expected(name, tmp_path / "whole")
    number = signal.SIGPIPE if how == "SIGPIPE" else STOPS[how]
    statuses: Counter[str] = Counter()
    for index, share in enumerate(moments(name, count, how)):
        cwd = tmp_path / str(index)
        cwd.mkdir()
        ended = campaign.server.run(
            campaign.world[name].arguments, cwd, signals=[STOPS[how]], after=share * seconds
        )
        statuses[require_true(ended, cwd / campaign.world[name].output, number)] += 1
        assert [path for path in cwd.rglob("*") if path.name.endswith(".attcl-tmp")] == []
        assert sorted(campaign.temporary.rglob("*")) == []
        finish(campaign, name, cwd, expected)
    return statuses


@pytest.mark.parametrize("name", QUICK)
def test_a_killed_command_is_finished_by_the_next_run(name, campaign, tmp_path):
    kill(campaign(1), name, 1, tmp_path)


@pytest.mark.parametrize(("name", "how"), list(zip(QUICK, [*STOPS, *STOPS], strict=False)))
def test_a_command_told_to_stop_leaves_a_true_record(name, how, campaign, tmp_path):
    stop(campaign(1), name, how, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", EVERY)
def test_kills_at_many_moments_are_survived(name, threads, campaign, tmp_path, record_property):
    count = examples(3)
    statuses = kill(campaign(threads), name, count, tmp_path)
    record_property("kills", {"command": name, "threads": threads, **statuses})


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("name", EVERY)
def test_stops_at_many_moments_are_survived(name, how, campaign, tmp_path, record_property):
    count = examples(3)
    statuses = stop(campaign(1), name, how, count, tmp_path)
    record_property("stops", {"command": name, "signal": how, **statuses})
