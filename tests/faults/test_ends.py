"""Commands that are killed, told to stop, or left by their reader: the record is true, and the next run finishes.

`ATTCL_FAULTS=100` draws so many moments per command, kind of end and number of threads; `ATTCL_FAULTS_LOG=FILE` counts
what they met.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.commands import Commands, Ended, commands
from faults.size import examples
from helpers import REPOSITORY, Run, complete_perfectly, small_settings
from segmenters import FLAGS

from attcl_cli.cli.app import main
from attcl_cli.completion import making
from attcl_cli.data import tree
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.settings import dump
from attcl_cli.run_record import RunRecord

LEFT = "left"  # by the reader of stdout and stderr
STOPS = {
    "SIGTERM": signal.SIGTERM,
    "SIGINT": signal.SIGINT,
    "SIGHUP": signal.SIGHUP,
    "SIGPIPE": LEFT,
}
QUICK = ("prepare-splits", "train", "complete", "score", "segment", "evaluate", "export")
EVERY = (*QUICK, "demo")
_SECONDS = re.compile(
    rb'"seconds_a_step": [^,}]*|"seconds": [^,}]*|<dt>seconds per step</dt><dd>[^<]*'
)


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
        begun = (folder / "run.json").exists()
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

    def expected(
        self, name: str, cwd: Path, *, warm: bool = True
    ) -> tuple[float, dict[str, bytes]]:
        """Return the seconds that a command takes, with filled caches if `warm`, and what it leaves."""
        if name not in self.undisturbed:
            for folder in (cwd / "cold", cwd / "warm")[: 1 + warm]:
                folder.mkdir()
                ended = self.server.run(self.world[name].arguments, folder)
                assert ended.code == 0, ended.err
            self.undisturbed[name] = ended.seconds, content(folder)
            require_same(content(cwd / "cold"), content(folder))
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
        elif path.name in {"run.json", "log.txt"}:  # which hold times
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
    record = cwd / command.output / "run.json"
    done = record.exists() and record_in(record.parent)["status"] == "done"
    if not done or name not in {"evaluate", "export"}:  # these refuse a folder in which all is done
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
        assert ended.code in {130, -number}, ended
        assert list(folder.rglob("*")) == []
        return "nothing"
    record = record_in(folder)
    if record["status"] == "done":
        assert record["exit_code"] == 0
        assert ended.code in {0, 130}, ended  # when all was done
    else:
        assert record["status"] == "stopped"
        assert record["exit_code"] == ended.code == 130
        assert record["code"] in {"interrupted", "stopped"}
    return record["status"]


def note(**facts: Any) -> None:
    """Append a line about a campaign to the file that ATTCL_FAULTS_LOG names, if it names one."""
    if name := os.environ.get("ATTCL_FAULTS_LOG"):
        with Path(name).open("a", encoding="utf-8") as log:
            log.write(json.dumps(facts) + "\n")


def kill(campaign: Campaign, name: str, count: int, tmp_path: Path) -> Counter[str]:
    """Kill a command at some moments, and finish it; return how many kills found which status."""
    (tmp_path / "whole").mkdir()
    seconds, expected = campaign.expected(name, tmp_path / "whole", warm=count > 1)
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
    seconds, expected = campaign.expected(name, tmp_path / "whole", warm=count > 1)
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


# --- kills and signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prepare-splits", "complete", "score"])
def test_a_killed_command_is_finished_by_the_next_run(name, campaign, tmp_path):
    kill(campaign(1), name, 1, tmp_path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("train", "SIGTERM"),
        ("segment", "SIGINT"),
        ("evaluate", "SIGHUP"),
        ("export", "SIGPIPE"),
    ],
)
def test_a_command_told_to_stop_leaves_a_true_record(name, how, campaign, tmp_path):
    stop(campaign(1), name, how, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", EVERY)
def test_kills_at_many_moments_are_survived(name, threads, campaign, tmp_path, record_property):
    count = examples(3)
    statuses = kill(campaign(threads), name, count, tmp_path)
    if name == "complete":  # the volumes do not depend on the number of threads
        (tmp_path / "alone").mkdir()
        alone = campaign(1).expected(name, tmp_path / "alone")
        require_same(campaign(threads).undisturbed[name][1], alone[1])
    note(command=name, threads=threads, kills=count, statuses=statuses)


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("name", EVERY)
def test_stops_at_many_moments_are_survived(name, how, campaign, tmp_path, record_property):
    count = examples(3)
    statuses = stop(campaign(1), name, how, count, tmp_path)
    note(command=name, signal=how, stops=count, statuses=statuses)


# --- disks ------------------------------------------------------------------------------------------------------------


class Failing:
    """A disk on which writing works a number of times, and then fails in one way."""

    def __init__(self, after: int, code: int) -> None:
        self._left, self._code, self._real = after, code, os.fsync

    def __call__(self, handle: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(self._code, os.strerror(self._code))
        self._real(handle)


def fail(
    attcl: Run, command: Command, cwd: Path, after: int, code: int
) -> tuple[int, dict[str, Any] | None]:
    """Run a command on a failing disk; check what it says, and return its exit code and record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(os, "fsync", Failing(after, code))
        ended, _, err = attcl(*command.arguments)
    assert "Traceback" not in err
    folder = cwd / command.output
    record = record_in(folder) if (folder / "run.json").exists() else None
    assert [path for path in cwd.rglob("*") if path.name.endswith(".attcl-tmp")] == []
    if ended == 0:
        return ended, record
    assert ended == 1
    assert os.strerror(code) in err
    assert "hint: " in err
    if record is not None:
        assert (record["status"], record["exit_code"]) == ("failed", 1), err
        assert record["code"] == "file-not-written"
    return ended, record


@pytest.mark.parametrize(
    ("after", "code"),
    [(0, errno.EROFS), (5, errno.ENOSPC)],
    ids=["read-only", "full"],
)
def test_a_completion_on_a_failing_disk_says_so_on_record(
    code, after, world, attcl, tmp_path, monkeypatch
):
    ended, record = fail(attcl, world["complete"], tmp_path, after, code)
    assert ended == 1
    assert (record is None) == (after == 0)
    if after:
        monkeypatch.chdir(tmp_path)
        assert attcl(*world["complete"].arguments)[0] == 0
        assert record_in(tmp_path / "out")["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_every_command_on_a_disk_that_fails_at_any_file_says_so_on_record(
    name, campaign, attcl, tmp_path
):
    (tmp_path / "whole").mkdir()
    _, expected = campaign(1).expected(name, tmp_path / "whole")
    after, ended, records = 0, 1, 0
    while ended:
        cwd = tmp_path / str(after)
        cwd.mkdir()
        ended, record = fail(attcl, campaign(1).world[name], cwd, after, errno.ENOSPC)
        records += record is not None
        finish(campaign(1), name, cwd, expected)
        after += max(1, after // 2)
    assert records > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["complete", "train", "score", "segment", "export"])
def test_a_disk_that_is_really_full_leaves_a_true_record(name, campaign, tmp_path):
    (tmp_path / "whole").mkdir()
    _, expected = campaign(1).expected(name, tmp_path / "whole")
    used = sum(path.lstat().st_size for path in (tmp_path / "whole").rglob("*"))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        for share in (0.0, 0.3, 0.6, 0.9):
            size = int(used * share) + 65_536
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            cwd = disk / str(share)
            cwd.mkdir()
            ended = campaign(1).server.run(campaign(1).world[name].arguments, cwd)
            assert "Traceback" not in ended.err
            folder = cwd / campaign(1).world[name].output
            if ended.code:
                assert ended.code == 1
                assert "No space left on device" in ended.err or " free, expected" in ended.err, (
                    ended.err
                )
                if (folder / "run.json").exists():
                    assert record_in(folder)["status"] == "failed"
            subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
            if (folder / "run.json").exists() or not folder.exists():
                finish(campaign(1), name, cwd, expected)
            shutil.rmtree(cwd)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- what is removed, and what has no room in memory ------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["its files", "the folder"])
def test_a_completion_whose_output_is_removed_is_not_done(
    kept, world, attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    real, calls = making._load, []

    def removing(*arguments: Any) -> Any:
        calls.append(True)
        if len(calls) == 3:  # a writer has the first case by now, or the second
            end = time.monotonic() + 60
            while not (made := list(Path("out").rglob("*.nii.gz"))):
                assert time.monotonic() < end
                time.sleep(0.01)
            if kept:
                made[0].unlink()
            while not kept and Path("out").exists():
                # A thread that writes gives files their names meanwhile, at which rmtree would stumble.
                shutil.rmtree("out", ignore_errors=True)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(making, "_load", removing)
        code, _, err = attcl(*world["complete"].arguments, "--num-workers", 0)
    assert len(calls) >= 3
    assert code == 1
    assert "removed while" in err
    assert "hint: run the same command again" in err
    assert Path("out").exists() == kept
    if kept:
        assert record_in(Path("out"))["status"] == "failed"
        assert record_in(Path("out"))["code"] == "output-removed"
    assert attcl(*world["complete"].arguments)[0] == 0


@pytest.fixture(scope="module")
def untouched(world, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """`untouched(name)` is what a command leaves when nothing disturbs it."""
    known: dict[str, dict[str, bytes]] = {}

    def of(name: str) -> dict[str, bytes]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
                patch.chdir(folder)
                main([*map(str, world[name].arguments)])
            assert ended.value.code == 0
            known[name] = content(folder)
        return known[name]

    return of


@dataclass(frozen=True)
class Removal:
    """What is removed right before or right after a volume gets its name."""

    what: str
    before: bool

    def of(self, volume: Path) -> None:
        """Remove it: the output, the folder of the case, the side-car or the volume."""
        side_car = volume.with_name(volume.name.replace(".nii.gz", ".json"))
        place = {"output": Path("out"), "case": volume.parent, "side-car": side_car}
        path = place.get(self.what, volume)
        while path.is_dir():
            # A thread that writes gives files their names meanwhile, at which rmtree would stumble.
            shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("number", [1, 4], ids=["first volume", "fourth volume"])
@pytest.mark.parametrize(
    "removal",
    [
        Removal("output", before=True),
        Removal("case", before=True),
        Removal("side-car", before=True),
        Removal("output", before=False),
        Removal("case", before=False),
        Removal("side-car", before=False),
        Removal("volume", before=False),
    ],
    ids=lambda it: f"{it.what} {'before' if it.before else 'after'}",
)
def test_what_is_removed_at_any_moment_of_a_completion_is_made_by_the_same_command(
    removal, number, world, untouched, attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    real, volumes, numbers = making.volumes.save, [], itertools.count(1)

    def save(paths: Any, *arguments: Any, **options: Any) -> None:
        volumes.append(paths[0])
        disturbed = next(numbers) == number  # by one of several threads
        if disturbed and removal.before:
            removal.of(paths[0])
        real(paths, *arguments, **options)
        if disturbed and not removal.before:
            removal.of(paths[0])

    with monkeypatch.context() as patch:
        patch.setattr(making.volumes, "save", save)
        code, _, err = attcl(*world["complete"].arguments)
    assert len(volumes) >= number
    assert code == 1
    assert "removed while" in err
    assert "hint: run the same command again" in err
    if Path("out").exists():
        record = record_in(Path("out"))
        assert (record["status"], record["exit_code"]) == ("failed", 1)
        assert record["code"] == "output-removed"
        for case in record["cases"]:
            assert all(Path("out", file).exists() for file in case["outputs"])
            side_cars = list(Path("out", case["id"]).glob("*.json"))
            assert case["status"] == "failed" or len(side_cars) == len(case["outputs"])
    code, _, err = attcl(*world["complete"].arguments)
    assert code == 0, err
    require_same(content(tmp_path), untouched("complete"))
    assert record_in(Path("out"))["status"] == "done"


class Removing:
    """A disk from which something is removed while a file is written to it, after a number of others."""

    def __init__(self, after: int, remove: Callable[[], None]) -> None:
        self._left, self._remove, self._real = after, remove, os.fsync
        self.removed = False

    def __call__(self, handle: int) -> None:
        self._left -= 1
        if self._left < 0 and not self.removed:
            self.removed = True
            self._remove()
        self._real(handle)


def remove_all(folder: Path) -> None:
    """Remove everything in a folder, also what is hidden there, and what others put there meanwhile."""
    while left := list(folder.iterdir()):
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def vanish(
    attcl: Run, command: Command, cwd: Path, after: int, remove: Callable[[], None]
) -> tuple[bool, int]:
    """Run a command whose files are removed meanwhile; check what it says, and return whether that happened."""
    disk = Removing(after, remove)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(os, "fsync", disk)
        code, _, err = attcl(*command.arguments)
    folder = cwd / command.output
    assert "Traceback" not in err
    assert not [path for path in cwd.rglob("*") if path.name.endswith(".attcl-tmp")]
    if disk.removed:  # what was removed is not made anew
        assert list(cwd.iterdir()) == []
    if code == 0:  # it was over, and all is gone
        assert not disk.removed or not folder.exists()
        return disk.removed, code
    assert code == 1
    assert "removed" in err
    assert "hint: " in err
    if (folder / "run.json").exists():
        record = record_in(folder)
        assert (record["status"], record["exit_code"]) == ("failed", 1), err
        assert record["code"] in {"output-removed", "file-not-written"}
        for case in record["cases"]:
            assert all((folder / file).exists() for file in case["outputs"])
    return disk.removed, code


@pytest.mark.parametrize("name", ["prepare-splits", "score", "evaluate", "export"])
def test_a_command_whose_output_vanishes_says_so_and_is_finished_by_the_same_command(
    name, world, untouched, attcl, tmp_path, monkeypatch
):
    after = 0 if name == "prepare-splits" else 4
    removed, code = vanish(attcl, world[name], tmp_path, after, lambda: remove_all(tmp_path))
    assert (removed, code) == (True, 1)
    monkeypatch.chdir(tmp_path)
    assert attcl(*world[name].arguments)[0] == 0
    require_same(content(tmp_path), untouched(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_every_command_whose_output_vanishes_at_any_file_says_so(
    name, world, untouched, attcl, tmp_path, monkeypatch
):
    after, removed = 0, True
    while removed:
        cwd = tmp_path / str(after)
        cwd.mkdir()
        removed, _ = vanish(attcl, world[name], cwd, after, lambda cwd=cwd: remove_all(cwd))
        if removed and name not in {"train", "segment"}:  # these ask for a new run
            monkeypatch.chdir(cwd)
            assert attcl(*world[name].arguments)[0] == 0
            require_same(content(cwd), untouched(name))
        after += max(1, after // 2)
    assert after > 1


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("score", "scores.csv"),
        ("evaluate", "summary.json"),
        ("export", "imagesTs/*_0000.nii.gz"),
        ("export", "dataset.json"),
    ],
)
def test_a_command_whose_result_is_removed_is_not_done(
    name, file, world, untouched, attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    real, folder = RunRecord.require_files, Path(world[name].output)

    def removing(record: RunRecord) -> None:
        next(folder.glob(file)).unlink()
        real(record)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "require_files", removing)
        code, _, err = attcl(*world[name].arguments)
    assert code == 1
    assert "removed while the run was going on" in err
    assert (record_in(folder)["status"], record_in(folder)["code"]) == ("failed", "output-removed")
    assert attcl(*world[name].arguments)[0] == 0
    require_same(content(tmp_path), untouched(name))


def test_a_data_tree_of_which_a_part_was_removed_gets_no_name(world, attcl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real, links = tree._link, []

    def linking(source: Path, target: Path, kind: Any) -> None:
        real(source, target, kind)
        links.append(target)
        if len(links) == 3:
            remove_all(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(tree, "_link", linking)
        code, _, err = attcl(*world["prepare-splits"].arguments)
    assert code == 1
    assert "error: data: Phantom" in err
    assert "was removed while" in err
    assert list(tmp_path.iterdir()) == []
    assert attcl(*world["prepare-splits"].arguments)[0] == 0


@pytest.mark.parametrize(
    ("log_every", "steps_done"), [(1, 3), (100, 4)], ids=["a log line", "a checkpoint"]
)
def test_a_training_whose_folder_is_removed_ends_with_the_next_thing_that_it_writes(
    log_every, steps_done, world, attcl, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    real, steps = AttclGan.training_step, []

    def removing(method: Any, *arguments: Any) -> Any:
        steps.append(True)
        if len(steps) == 3:
            shutil.rmtree("run")
        return real(method, *arguments)

    monkeypatch.setattr(AttclGan, "training_step", removing)
    code, _, err = attcl(
        *world["train"].arguments, "--set", f"log_every={log_every}", "--set", "steps=6"
    )
    assert code == 1
    assert "error: run: removed while the run wrote into it" in err
    assert "hint: start a new run" in err
    assert len(steps) == steps_done
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), "out-of-memory", "error: out of memory"),
        (ZeroDivisionError("by zero"), "unexpected", "error: unexpected ZeroDivisionError"),
    ],
    ids=["memory", "bug"],
)
def test_what_ends_a_completion_from_within_is_on_record(
    error, code, said, world, attcl, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)

    def failing(*_arguments: Any, **_options: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(AttclGan, "synthesise", failing)
        if code == "unexpected":  # goes on to Python, which shows where it comes from
            with pytest.raises(ZeroDivisionError):
                main([str(argument) for argument in world["complete"].arguments])
            err = capsys.readouterr().err
        else:
            ended, _, err = attcl(*world["complete"].arguments)
            assert ended == 1
    assert said in err
    assert "hint: " in err
    record = record_in(tmp_path / "out")
    assert (record["status"], record["exit_code"], record["code"]) == ("failed", 1, code)
    assert attcl(*world["complete"].arguments)[0] == 0


# --- streams, and those who cannot wait -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("{} info --json | head -c 1", 0, ""),
        ("{} info | true", 0, ""),
        ("{} inf 2>&1 | true", 2, ""),
        ("{} info >&- 2>&-", 0, ""),
        ("{} info > /dev/full", 1, "error: stdout: not written (No space left on device)"),
        ("{} info 2> /dev/full", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full_end_no_command_in_an_odd_way(line, code, said, tmp_path):
    shell = f"{line.format(f'{sys.executable} -m attcl_cli')}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from attcl_cli.cli.streams import occupy_closed\n"
        "occupy_closed()\n"
        "devices = [os.fstat(number).st_rdev for number in range(3)]\n"
        "assert devices == [os.stat(os.devnull).st_rdev] * 3\n"
        "sys.exit(open(__file__).fileno())\n"
    )
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} {script} <&- >&- 2>&-"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == 3


@pytest.mark.slow
def test_results_that_cannot_be_shown_are_said_to_be_whole_if_they_are(world, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "attcl_cli", *map(str, world["score"].arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "the run is finished, and its files are whole" in done.stderr
    assert record_in(tmp_path / world["score"].output)["status"] == "done"


# Runs a command that gets SIGTERM at one moment of its end, after its work.
_SIGNALLED_AT_ITS_END = """
import atexit, os, signal, sys, threading
from attcl_cli.cli import app
signal.signal(signal.SIGTERM, signal.SIG_DFL)
def send(*_):
    os.kill(os.getpid(), signal.SIGTERM)
class Collected:
    def __del__(self, send=send):
        send()
moment = sys.argv.pop(1)
if moment == "the last record is written":
    from attcl_cli.run_record import RunRecord
    finish = RunRecord.finish
    RunRecord.finish = lambda *arguments: (finish(*arguments), send())
elif moment == "results are shown":
    from attcl_cli.run_record import RunRecord
    release = RunRecord.recorded
    from contextlib import contextmanager
    @contextmanager
    def recorded(*arguments, **options):
        with release(*arguments, **options):
            yield
        send()
    RunRecord.recorded = recorded
elif moment == "the exit code is known":
    real = sys.exit
    sys.exit = lambda code: (send(), real(code))
elif moment == "threads are waited for":
    threading._register_atexit(send)
elif moment == "libraries end":
    atexit.register(send)
else:
    collected = Collected()
app.main()
"""


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        (
            "score",
            "the last record is written",
        ),  # `prepare-splits` shows nothing before its record is there
        ("score", "results are shown"),
        ("prepare-splits", "the exit code is known"),
        ("prepare-splits", "threads are waited for"),
        ("prepare-splits", "libraries end"),
        ("prepare-splits", "modules go"),
    ],
)
def test_a_signal_after_the_work_does_not_change_how_a_command_ends(name, moment, world, tmp_path):
    command = world[name]
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_AT_ITS_END, moment, *map(str, command.arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "error: " not in done.stderr
    assert "Traceback" not in done.stderr
    assert record_in(tmp_path / command.output)["exit_code"] == 0


# Completes with a writer that takes a minute for its first volume, and says when it begins.
_SLOW_WRITER = """
import sys, time
from attcl_cli.cli.app import main
from attcl_cli.completion import making
def save(*arguments, **options):
    print("writes", flush=True)
    time.sleep(60)
making.volumes.save = save
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_what_is_being_written(world, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_WRITER, *map(str, world["complete"].arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writes\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):  # the volume is finished first
        process.wait(2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "error: interrupted (SIGTERM)" in err
    record = record_in(tmp_path / "out")
    assert (record["status"], record["exit_code"]) == ("stopped", 130)
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".attcl-tmp")] == []
