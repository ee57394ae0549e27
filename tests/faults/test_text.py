"""Names that others chose: escape sequences, formulas, markup, bytes that are no UTF-8; and poor surroundings.

The commands are run whole. What a document or an image may hold is left to the tests beside this one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from faults.size import examples
from helpers import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attcl_cli.cli import terminal
from attcl_cli.cli.app import main
from attcl_cli.errors import quoted, visible
from attcl_cli.files import read_csv
from attcl_cli.temporaries import temporary_prefix

# Root without the rights to pass over permissions.
AS_OTHERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
LATIN = os.fsdecode(b"R\xe9mi")
UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
SPECIAL = "=+-@'\"<>&|%#?$`\\ ;*[]{}()!~^,:\t\r\n\x1b\x07\x7f\x9b\u2028\u202e\u2066\u200b\u0301\u00e9\u4e2d\U0001f600"

anything = st.text(
    st.one_of(st.sampled_from(SPECIAL), st.characters(), st.sampled_from("\udc80\udcff\ud800"))
)
names = st.text(
    st.one_of(
        st.sampled_from(SPECIAL),
        st.characters(exclude_categories=("Cs",), exclude_characters="/\0"),
    ),
    min_size=1,
    max_size=40,
).filter(lambda name: not name.startswith(".") and len(name.encode()) < 200)

bounded = settings(
    max_examples=examples(8),
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
many = settings(bounded, max_examples=examples(60))


def attcl(*arguments: object, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Run the command line on strict streams of an encoding; return exit code, stdout and stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        main([str(argument) for argument in arguments])
    for stream in (out, err):
        stream.flush()
    code = stop.value.code
    assert isinstance(code, int)
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))


def require_plain(outcome: tuple[int, str, str]) -> tuple[int, str, str]:
    """Check that a command ended as documented, and that nothing it showed can move a cursor or reorder text."""
    code, *shown = outcome
    assert code in {0, 1, 2, 3}, shown
    for text in shown:
        assert "Traceback" not in text, text
        assert unsafe_in(text.replace("\n", "")) == [], text
    return outcome


def unsafe_in(text: str) -> list[str]:
    return [it for it in text if unicodedata.category(it) in UNSAFE or it in DIRECTIONS]


def link_case(source: Path, root: Path, name: str, modalities: Sequence[str]) -> None:
    """Link files of a phantom as those of a case of another name."""
    folder = root / name
    folder.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        ending = file.name.removeprefix(source.name)
        if ending.split(".")[0].removeprefix("_") in modalities:
            (folder / f"{name}{ending}").symlink_to(file)


# --- the gate ---------------------------------------------------------------------------------------------------------


@many
@given(anything)
def test_a_line_stays_one_line_on_any_terminal(text):
    shown = visible(text)
    assert unsafe_in(shown) == []
    if not unsafe_in(text):
        assert shown == text
    for encoding in ("utf-8", "latin-1", "ascii", "cp1252"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            terminal.result(text)
            terminal.say(text)
            terminal.table([{"case": text, "value": 0.5}])
        stream.flush()
        lines = stream.buffer.getvalue().decode(encoding).split("\n")
        assert lines[0] == lines[1]
        assert unsafe_in("".join(lines)) == []


def test_escapes_show_the_character_or_the_byte():
    assert visible("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert visible(LATIN) == r"R\xe9mi"
    assert visible("M\u00fcller \u4e2d") == "M\u00fcller \u4e2d"


@many
@given(anything, st.sampled_from(["utf-8", "latin-1", "ascii"]))
def test_a_document_holds_the_true_names_on_any_terminal(text, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    with contextlib.redirect_stdout(stream):
        terminal.document({"name": text, text: 1})
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    assert json.loads(shown) == {"name": text, text: 1}
    assert unsafe_in(shown.replace("\n", "")) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_name_in_a_command_is_that_name_for_a_shell():
    every = ["a b", "it's", "$(x)", "a\nb", "\x1b[1m'", "\\n\t", "-x", "\u00e9\u202e", LATIN]
    script = "printf '%s\\0' " + " ".join(map(quoted, every))
    shell = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert [os.fsdecode(name) for name in shell.stdout.split(b"\0")[:-1]] == every


# --- names of cases ---------------------------------------------------------------------------------------------------


@bounded
@given(names)
def test_any_name_of_a_case_is_read_or_refused(phantom_root, trained_run, tmp_path, name):
    root = tmp_path / "d"
    shutil.rmtree(root, ignore_errors=True)
    link_case(phantom_root / "Phantom_00000", root, "A", ["flair", "t1"])
    if name != "A":
        link_case(phantom_root / "Phantom_00001", root, name, ["flair"])
    require_plain(attcl("info", root))
    code, out, _ = require_plain(attcl("info", root, "--json"))
    assert json.loads(out)
    planned = ("complete", "--ori", root, "--cpl", tmp_path / "o", "-w", trained_run, "-n")
    code, out, _ = require_plain(attcl(*planned, "--keep-going", "--json", "-d", "cpu"))
    if code == 0:
        assert {job["case"] for job in json.loads(out)["jobs"]} <= {"A", name}
    require_plain(attcl(*planned, "--keep-going", "-d", "cpu", encoding="ascii"))


HOSTILE = (
    "=SUM(A1)|x",
    "a\nb\x1b[31m",
    "<img src=x onerror=alert(1)>\"'",
    "R\u202etl 50%#? e\u0301 \U0001f600",
)


class Page(HTMLParser):
    """The elements, the links and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def hostile(
    phantom_root: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder with data/, out/ and scores/ of cases with hostile names, in a folder that is no UTF-8."""
    root = tmp_path_factory.mktemp("text") / LATIN
    root.mkdir()
    for number, name in enumerate(HOSTILE):
        modalities = ["flair", "t1", "seg"]
        link_case(phantom_root / f"Phantom_{number:05d}", root / "d", name, modalities)
    (root / "r.toml").write_text('hidden = [["t1"], []]', encoding="utf-8")
    with contextlib.chdir(root):
        split = ("--ratio", "r.toml", "--sizes", "2/1/1", "--seed", 2, "--modalities", "m.toml")
        (root / "m.toml").write_text('[modalities]\nflair = ["flair"]\nt1 = ["t1"]\n', "utf-8")
        for command in (
            ("prepare-splits", "d", *split),
            ("complete", "-w", trained_run, "-d", "cpu"),
        ):
            code, _, err = require_plain(attcl(*command))
            assert code == 0, err
        scoring = ("score", "--split", "all", "--ssim", "--modalities", "m.toml", "-d", "cpu")
        assert require_plain(attcl(*scoring))[0] == 0
        yield root


def test_hostile_names_are_completed_and_recorded(hostile):
    document = json.loads((hostile / "data/splits.json").read_text(encoding="utf-8"))
    items = [item for part in document["splits"].values() for item in part]
    assert sorted(item["case"] for item in items) == sorted(HOSTILE)
    completed = {item["case"] for item in items if item["hidden"]}
    assert completed == set(HOSTILE[:3])
    record = json.loads((hostile / "out/run.json").read_text(encoding="utf-8"))
    assert {case["id"] for case in record["cases"]} == completed
    for name in completed:
        assert (hostile / "out" / name / f"{name}_t1.nii.gz").is_file()
        side_car = json.loads((hostile / "out" / name / f"{name}_t1.json").read_text("utf-8"))
        assert side_car["source"]["modality"] == "flair"


def test_a_table_of_hostile_names_holds_no_formula_and_is_read_back(hostile):
    with (hostile / "scores/scores.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    assert all(not cell.startswith(tuple("=+@\t\r\n")) for line in lines for cell in line)
    numbers = [cell for line in lines[1:] for cell in line if cell.startswith("-")]
    assert all(float(cell) < 0 for cell in numbers)
    record = json.loads((hostile / "out/run.json").read_text(encoding="utf-8"))
    completed = {case["id"] for case in record["cases"]}
    assert {line["case"] for line in read_csv(hostile / "scores/scores.csv")} == completed


def test_a_report_of_hostile_names_holds_them_as_text(hostile):
    page = Page((hostile / "scores/report.html").read_text(encoding="utf-8"))
    assert page.handlers == []
    assert "img" not in page.tags
    record = json.loads((hostile / "out/run.json").read_text(encoding="utf-8"))
    assert all(visible(case["id"]) in page.words for case in record["cases"])


# --- long names, and names that are no UTF-8 --------------------------------------------------------------------------


def test_a_name_that_fits_is_written_and_a_longer_one_is_refused(
    phantom_root, trained_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    longest = "A" * (255 - len("_flair.nii.gz"))
    link_case(phantom_root / "Phantom_00000", tmp_path / "d", longest, ["t1", "t2"])
    complete = ("complete", "--ori", "d", "-w", trained_run, "-d", "cpu", "--target", "flair")
    assert require_plain(attcl(*complete, "--cpl", "o"))[0] == 0
    assert (tmp_path / "o" / longest / f"{longest}_flair.nii.gz").is_file()
    assert len(os.fsencode(temporary_prefix(Path(f"{longest}_flair.nii.gz")))) < 220

    longer = "B" * (255 - len("_t1.nii.gz"))
    link_case(phantom_root / "Phantom_00000", tmp_path / "d2", longer, ["t1"])
    code, _, err = require_plain(attcl(*complete, "--cpl", "o2", *("--ori", "d2")))
    assert code == 1
    assert "File name too long" in err
    assert "hint: shorten the names" in err


@pytest.mark.parametrize(
    "command",
    [
        ("info", "{}"),
        ("prepare-splits", "{}"),
        ("prepare-splits", "d", "-o", "{}"),
        ("train", "--data", "{}"),
        ("train", "-c", "{}"),
        ("complete", "-w", "{}"),
        ("complete", "--cpl", "{}", "-n"),
        ("score", "--cpl", "{}"),
        ("segment", "--ori", "{}"),
        ("evaluate", "{}"),
        ("info", "d", "--modalities", "{}"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["x" * 300, f"{LATIN}\x1b[31m\n"], ids=["long", "hostile"])
def test_places_of_any_name_are_refused_by_name(command, name, tmp_path, monkeypatch, phantom_root):
    monkeypatch.chdir(tmp_path)
    link_case(phantom_root / "Phantom_00000", tmp_path / "d", "A", ["flair", "t1"])
    code, out, err = require_plain(attcl(*(part.format(name) for part in command)))
    assert code in {1, 2} or command[1] == "d"
    if code:
        assert err.startswith("error: ")
        assert out == ""


def test_a_case_whose_name_is_no_utf8_is_refused_and_the_others_are_completed(
    phantom_root, trained_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["A", LATIN]):
        link_case(phantom_root / f"Phantom_{number:05d}", tmp_path / "d", name, ["flair", "t1"])
    complete = ("complete", "--ori", "d", "--cpl", "o", "-w", trained_run, "--target", "t2")
    code, _, err = require_plain(attcl(*complete, "-d", "cpu"))
    assert code == 1
    assert r"R\xe9mi_flair.nii.gz: a name that is not read as UTF-8" in err
    assert require_plain(attcl(*complete, "-d", "cpu", "--keep-going"))[0] == 3
    record = json.loads((tmp_path / "o/run.json").read_text(encoding="utf-8"))
    assert {case["id"]: case["status"] for case in record["cases"]} == {
        "A": "done",
        LATIN: "failed",
    }
    assert [path.name for path in (tmp_path / "o").glob("*/*.nii.gz")] == ["A_t2.nii.gz"]


# --- surroundings -----------------------------------------------------------------------------------------------------

_CHILD = """
import contextlib, io, json, os, sys
from attcl_cli.cli.app import main
ends = []
for arguments in json.loads(os.environ["COMMANDS"]):
    try:
        main(arguments)
    except SystemExit as stop:
        ends.append(stop.code)
with open(os.environ["ENDS"], "w", encoding="utf-8") as stream:
    json.dump(ends, stream)
"""


def run_child(
    commands: Sequence[Sequence[object]],
    *,
    folder: Path,
    environment: dict[str, str] | None = None,
    without: Sequence[str] = (),
    prelude: str = "",
    wrapper: Sequence[str] = (),
) -> tuple[list[int], bytes, bytes]:
    """Run commands in a process of their own; return their exit codes, stdout and stderr."""
    ends = folder / "ends.json"
    variables = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "COMMANDS": json.dumps([list(map(str, each)) for each in commands]),
        "ENDS": str(ends),
        **(environment or {}),
    }
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", prelude + _CHILD],
        cwd=folder,
        env={key: value for key, value in variables.items() if key not in without},
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert ends.is_file(), done.stderr.decode("utf-8", "replace")
    return json.loads(ends.read_text(encoding="utf-8")), done.stdout, done.stderr


def test_poor_surroundings_change_nothing_in_files(phantom_root, trained_run, tmp_path):
    for number, case in enumerate("ABC"):
        link_case(phantom_root / f"Phantom_{number:05d}", tmp_path / "d", case, ["flair", "t1"])
    link_case(phantom_root / "Phantom_00003", tmp_path / "d2", "Ren\u00e9", ["flair", "t1"])
    (tmp_path / "r.toml").write_text('name = "\u4e2d"\nhidden = [["t1"], []]', encoding="utf-8")
    (tmp_path / "d/modalities.toml").write_text(
        '[modalities]\nflair = []\nt1 = ["\u00e9"]\n', "utf-8"
    )
    codes, out, err = run_child(
        [
            ("info", "d2"),
            ("prepare-splits", "d", "--ratio", "r.toml", "--sizes", "2/0/1"),
            ("complete", "-w", trained_run, "-d", "cpu"),
            ("--help",),
        ],
        folder=tmp_path,
        environment={
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "ascii",
            "TMPDIR": str(tmp_path / "none"),
            "COLUMNS": "1",
            "TERM": "dumb",
            "NO_COLOR": "1",
        },
        without=("HOME", "ATTCL_CACHE", "XDG_CACHE_HOME"),
        prelude="import os, sys; os.close(0); sys.stdin = None; os.umask(0o077)\n",
    )
    assert codes == [3, 0, 0, 0], err
    assert b"\x1b" not in out + err
    assert "\\u4e2d: what remains" in out.decode("ascii")
    assert "set PYTHONUTF8=1" in out.decode("ascii")
    document = json.loads((tmp_path / "data/splits.json").read_text(encoding="utf-8"))
    assert document["ratio"] == "\u4e2d"
    assert (tmp_path / "data/modalities.toml").read_text(encoding="utf-8").endswith('"\u00e9"]\n')
    assert stat.S_IMODE((tmp_path / "out/run.json").stat().st_mode) == 0o600


def test_streams_that_were_closed_before_the_start_are_no_bug(phantom_root, tmp_path):
    link_case(phantom_root / "Phantom_00000", tmp_path / "d", "A", ["flair", "t1"])
    codes, out, err = run_child(
        [("info", "d"), ("info", "none"), ("info", "d", "--json")],
        folder=tmp_path,
        prelude="import sys; sys.stdout = sys.stderr = sys.stdin = None\n",
    )
    assert codes == [0, 1, 0], err
    assert (out, err) == (b"", b"")


@pytest.fixture
def bound() -> Sequence[str]:
    """What runs a program so that permissions hold for it, too."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no permissions here")
    if os.geteuid() != 0:
        return ()
    tried = (*AS_OTHERS, "true")
    if shutil.which(tried[0]) is None or subprocess.run(tried, check=False).returncode:
        pytest.skip("root may read everything here")
    return AS_OTHERS


def test_what_may_not_be_read_or_written_says_permission(
    phantom_root, trained_run, tmp_path, bound
):
    for number, (folder, case) in enumerate([("d", "A"), ("d", "B"), ("shut", "A"), ("shut", "B")]):
        link_case(phantom_root / f"Phantom_{number:05d}", tmp_path / folder, case, ["flair", "t1"])
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "r.toml").write_text("hidden = [[]]", encoding="utf-8")
    for place in ("locked", "o/A"):
        (tmp_path / place).mkdir(parents=True)
    modes = {"locked": 0, "shut/B": 0, "o/A": 0o555, "run/weights.safetensors": 0}
    for place, mode in modes.items():
        (tmp_path / place).chmod(mode)
    complete = ("complete", "-d", "cpu", "--target", "t2", "--ori", "d")
    commands = [
        ("info", "shut"),
        ("info", "locked/x"),
        (*complete, "--cpl", "o", "-w", "run"),
        (*complete, "--cpl", "o", "-w", trained_run),
        (*complete, "--cpl", "locked/o", "-w", trained_run),
        ("prepare-splits", "d", "--ratio", "r.toml", "--sizes", "1/0/1", "-o", "locked/data"),
        ("train", "--data", "d", "-o", "locked/run"),
        ("train", "--resume", "locked/run"),
    ]
    try:
        codes, _, err = run_child(commands, folder=tmp_path, wrapper=bound)
    finally:
        for place in modes:
            (tmp_path / place).chmod(0o755)
    text = err.decode()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert all(code in {1, 2} for code in codes), (codes, text)
    assert "Traceback" not in text
    assert len(errors) >= len(commands)
    assert all("ermission" in line for line in errors), text
    assert "copy" not in text
