"""Documents that say something else than attcl writes: an error that names the file, or a clean result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer
from faults.documents_world import SUBJECTS, Subject, attcl, build
from faults.size import examples
from helpers import states
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attcl_cli.cli.app import app
from attcl_cli.errors import AttclError
from attcl_cli.segmentation.request import clear
from attcl_cli.training.stats import trim_stats

JSON = [name for name, subject in SUBJECTS.items() if not subject.is_toml]
FILES = [name for name, subject in SUBJECTS.items() if not subject.key]
# Documents of ours whose damage is said at once; those of others are left aside if they are no JSON.
OURS = [
    name
    for name in FILES
    if name not in {"side-car", "description", "description-of-ours", "statistics"}
]
LONGEST_MESSAGE = 2000  # characters, with all that the document says
LIMIT_SECONDS = 20  # of one command, on a machine with other work


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("documents")
    command = typer.main.get_command(
        app
    )  # the same at each call, and what most of a short one takes
    with (
        mock.patch.dict(os.environ, ATTCL_WEIGHTS=str(root / "named")),
        mock.patch("typer.main.get_command", lambda _: command),
        mock.patch("os.fsync"),
    ):
        build(root)
        yield root


def read(
    subject: Subject, root: Path, *, until_refused: bool = False, most: int | None = None
) -> list[tuple[int, str]]:
    """Read the document; return exit codes and messages, and check how each reader ended.

    Args:
        subject: the document.
        root: the world.
        until_refused: leave out the readers after the first that refuses it.
        most: leave out the readers after so many.
    """
    ends: list[tuple[int, str]] = []
    for reader in [*subject.commands, *subject.calls][:most]:
        ends.append(_called(subject, root, reader) if callable(reader) else _run(root, reader))
        if until_refused and ends[-1][0] in {1, 2}:
            break
    return ends


def _run(root: Path, command: tuple[str, ...]) -> tuple[int, str]:
    begin = time.process_time()  # not a busy machine's
    code, _, err = attcl(root, *command)
    assert time.process_time() - begin < LIMIT_SECONDS, command
    assert code in {0, 1, 2, 3}, (command, code, err)
    assert "Traceback" not in err and "this is a bug" not in err, (command, err)
    if code in {1, 2}:
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert errors, (command, err)
        assert len(errors[0]) < LONGEST_MESSAGE, (command, err)
    return code, err


def _called(subject: Subject, root: Path, call: Callable[[Path], object]) -> tuple[int, str]:
    try:
        call(root / subject.file)
    except AttclError as error:
        assert error.code and error.hint, error.message
        assert len(error.message) < LONGEST_MESSAGE
        return 1, f"error: {error.message}"
    return 0, ""


def with_document(
    subject: Subject, root: Path, data: bytes, **options: Any
) -> list[tuple[int, str]]:
    """Read a world in which the document is another (`read`); put it back."""
    path = root / subject.file
    before = path.read_bytes()
    try:
        subject.put(root, data)
        return read(subject, root, **options)
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(before)


def is_big() -> bool:
    """Return whether the whole campaign is asked for."""
    return examples(0) > 0


def refused(ends: list[tuple[int, str]], name: str) -> None:
    """Check that some reader refused the document, and named the file."""
    assert any(code and name in err for code, err in ends), ends


# --- as attcl wrote them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_document_is_read_as_attcl_wrote_it(name, world):
    subject = SUBJECTS[name]
    ends = with_document(subject, world, subject.text(world).encode())
    assert [code for code, _ in ends] == [0] * len(ends), ends


@pytest.mark.parametrize("name", ["splits", "settings", "vocabulary", "ratio"])
def test_a_byte_order_mark_is_passed_over(name, world):
    subject = SUBJECTS[name]
    ends = with_document(subject, world, b"\xef\xbb\xbf" + subject.text(world).encode())
    assert [code for code, _ in ends] == [0] * len(ends), ends


# --- what is no document ----------------------------------------------------------------------------------------------

NO_DOCUMENT = {
    "empty": b"",
    "cut": None,
    "deep lists": b'{"a": ' + b"[" * 100_000,
    "deep but whole": b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
    "deep tables": b'{"a": ' * 3000 + b"1" + b"}" * 3000,
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a huge float": b'{"a": 1e999}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a key twice": b'{"a": 1, "a": 2}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "NUL bytes": bytes(1000),
    "half a character": b'{"a": "\\ud800"}',
    "a list": b"[1]",
    "a text": b'"text"',
    "null": b"null",
}


def no_document(subject: Subject, root: Path, fault: str) -> bytes:
    """Return the bytes of a fault; cut is the document itself, less its end."""
    data = NO_DOCUMENT[fault]
    return subject.text(root).encode()[:-20] if data is None else data


@pytest.mark.parametrize("fault", NO_DOCUMENT)
def test_what_is_no_json_is_refused_by_name(fault, world):
    subject = SUBJECTS["splits"]
    data = no_document(subject, world, fault)
    for code, err in with_document(subject, world, data, most=None if is_big() else 1):
        assert code == 1
        assert "data/splits.json: " in err


@pytest.mark.parametrize("fault", ["cut", "deep but whole", "a number of 5,000 digits", "a list"])
@pytest.mark.parametrize("name", [name for name in OURS if name in JSON and name != "splits"])
def test_every_other_json_passes_the_same_gate(name, fault, world):
    subject = SUBJECTS[name]
    data = no_document(subject, world, fault)
    ends = with_document(subject, world, data, until_refused=True)
    if fault != "a list" or not name.startswith(("record", "card")):  # of another program
        refused(ends, Path(subject.file).name)


@pytest.mark.slow
@pytest.mark.parametrize("fault", NO_DOCUMENT)
@pytest.mark.parametrize("name", [name for name in FILES if name in JSON])
def test_no_reader_stumbles_over_what_is_no_json(name, fault, world):
    with_document(SUBJECTS[name], world, no_document(SUBJECTS[name], world, fault))


@pytest.mark.parametrize(
    "data",
    [
        b"a = ",
        b"\xff\xfe" + "a = 1".encode("utf-16-le"),
        b"a = " + b"[" * 100_000,
        b"a = " + b"{a = " * 10_000,
        b".".join([b"a"] * 100_000) + b" = 1",
        b'a = "x"\na = "y"',
        b"a = " + b"9" * 5000,
        b"a = nan",
        b"a = inf",
        bytes(100),
        b"# " + b"x" * 2**21,
        b'"\\u0000" = 1',
    ],
    ids=range(12),
)
@pytest.mark.parametrize("name", ["settings", "settings-of-run", "vocabulary", "ratio"])
def test_what_is_no_toml_of_ours_is_refused_by_name(name, data, world):
    (code, err), *_ = with_document(SUBJECTS[name], world, data)
    assert code == 2
    assert Path(SUBJECTS[name].file).name in err, err


@pytest.mark.parametrize("name", [name for name in OURS if name in JSON])
def test_a_document_of_many_megabytes_is_not_read(name, world):
    path = world / SUBJECTS[name].file
    before = path.read_bytes()
    try:
        with path.open("wb") as file:  # a hole in the file: nothing is written
            file.truncate(2**32)
        refused(read(SUBJECTS[name], world, until_refused=True), path.name)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", OURS)
def test_a_pipe_in_the_place_of_a_document_is_not_waited_for(name, world):
    path = world / SUBJECTS[name].file
    before = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    try:
        read(SUBJECTS[name], world, most=None if is_big() else 1)
    finally:
        path.unlink()
        path.write_bytes(before)


@pytest.mark.parametrize("name", OURS)
def test_a_document_without_permission_says_so(name, world):
    path = world / SUBJECTS[name].file
    opened = Path.open

    def refuse(self: Path, *options: Any, **further: Any) -> Any:
        if self.name == path.name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *options, **further)

    with mock.patch.object(Path, "open", refuse):
        ends = read(SUBJECTS[name], world, until_refused=True)
    assert any("Permission denied" in err for _, err in ends), ends
    assert not any("copy it again" in err for _, err in ends)


# --- what says something else -----------------------------------------------------------------------------------------

WRONG = {
    "splits": [
        ("schema_version", 2),
        ("schema_version", True),
        ("source", ["x"]),
        ("source", "a\0b"),
        ("seed", "1"),
        ("seed", 1.5),
        ("modalities", "flair"),
        ("modalities", ["flair", "../t1"]),
        ("splits.train.0.case", "../../etc"),
        ("splits.train.0.case", "/etc/passwd"),
        ("splits.train.0.case", 1),
        ("splits.train.0.present", None),
        ("splits.test.0.hidden", ["../../x"]),
        ("splits.test.0.hidden", ["pd"]),
        ("splits.tset", []),
        ("splits", []),
        ("bids_filter", 1),
    ],
    "side-car": [
        ("weights", "w"),
        ("weights.sha256", 1),
        ("source.modality", ["t1"]),
        ("sources", {"a": 1}),
        ("doubt", {"disagreement": "much"}),
        ("doubt", {"far": 1}),
        ("averaged", [1]),
        ("sharpened_by", "t1"),
        ("sharpened_by", [1]),
        ("stored", 3),
        ("stored", {"number_type": "int16", "range": ["0", 1]}),
        ("stored", {"number_type": "int16", "range": [1]}),
        ("synthetic", 1),
    ],
    "record-of-complete": [("trained_on", "A"), ("weights", ["w"]), ("command", 1)],
    "record-of-train": [
        ("minutes", -1),
        ("minutes", True),
        ("data", "a\0b"),
        ("data", 1),
        ("trained_on", [1]),
        ("earlier", [{}]),
        ("earlier", [{"seconds": "1"}]),
        ("seconds", -1),
        ("config", []),
    ],
    "record-of-segment": [
        ("config.ori", 1),
        ("config.compare", 1),
        ("config.overrides", [1]),
        ("config.overrides", [["steps"]]),
        ("config.background", []),
        ("inputs", {"../data": {}}),
        ("inputs", {"/etc": {}}),
        ("inputs", []),
    ],
    "weights": [
        ("schema_version", 99),
        ("schema_version", True),
        ("modalities", []),
        ("modalities", ["t1", "t1"]),
        ("modalities", ["..", "t1", "t1ce", "t2"]),
        ("modalities", "flair"),
        ("scales", {}),
        ("scales.t1.low", "x"),
        ("scales.t1.low", float("nan")),
        ("scales.t1.high", -1e300),
        ("steps", -1),
        ("steps", True),
        ("trained_on", "A"),
        ("settings", []),
        ("settings.run.steps", True),
        ("settings.attcl-gan.width", -1),
        ("settings.attcl-gan.downs", 10**9),
        ("settings.image.canvas", 2**40),
        ("background", []),
    ],
    "checkpoint": [("step", -1), ("step", True), ("step", "1"), ("extra", []), ("extra.best_step", "x")],
    "segmenter": [
        ("schema_version", 2),
        ("convention", "other"),
        ("channels", []),
        ("channels", "flair"),
        ("settings", {"width": 0}),
        ("settings.levels", 99),
        ("trained_on", None),
        ("steps", 1.5),
        ("input", "../x"),
    ],
    "card": [("hours", True), ("scores.0.n", 1.5), ("limits", "none"), ("kind", "cats")],
    "index": [
        ("modalities", []),
        ("scales", {}),
        ("entries", []),
        ("entries.0.start", -1),
        ("entries.0.start", 5),
        ("entries.0.count", 10**12),
        ("entries.0.case", None),
        ("filled", [1, 2]),
        ("filled", []),
        ("tumour", []),
    ],
    "channels": [
        ("channel_names", {"0": 1}),
        ("channel_names", {"9" * 5000: "T1"}),
        ("channel_names", {"0": "--"}),
        ("channel_names", []),
    ],
    "description-of-ours": [("GeneratedBy.0.Desc", "../../x"), ("GeneratedBy.0.Desc", 1)],
    "vocabulary": [
        ("modalities.t1", ["../../x"]),
        ("modalities.t1", ["/etc/x"]),
        ("modalities.t1", ["a\0b"]),
        ("modalities.t1", 1),
        ("patient", "(" * 5000),
        ("patient", "(a{99999999999})"),
        ("pattern", "{case}/../{case}_{modality}.nii.gz"),
        ("pattern", "/{case}_{modality}.nii.gz"),
        ("pattern", "{case!r}_{case}_{modality}.nii.gz"),
        ("pattern", "{case.__class__}_{case}_{modality}.nii.gz"),
        ("patinet", "(a)"),
        ("segmentation", [1]),
    ],
    "ratio": [("hiden", []), ("hidden", []), ("hidden", [[1]]), ("hidden", [["../x"]]), ("name", 1)],
    "settings": [
        ("run.steps", True),
        ("run.steps", 0),
        ("run.seed", 10**30),
        ("run.stepz", 1),
        ("run", 1),
        ("image.image_size", 2**40),
        ("image.canvas", 2**40),
        ("attcl-gan.width", "wide"),
        ("attcl-gan.contrastive_layers", 1),
        ("run.method", "../x"),
        ("optimiser.learning_rate", [0.1]),
    ],
}  # fmt: skip


def changed(document: Any, keys: str, value: Any) -> Any:
    """Return a copy of a document with another value at `a.0.b`."""
    copy = json.loads(json.dumps(document))
    *parents, last = keys.split(".")
    at = copy
    for key in parents:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    return copy


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        pytest.param(name, keys, value, id=f"{name}-{number}-{keys}")
        for name, faults in WRONG.items()
        for number, (keys, value) in enumerate(faults)
    ],
)
def test_a_key_that_says_something_else_is_refused_by_name(name, keys, value, world):
    subject = SUBJECTS[name]
    document = subject.written(changed(subject.parsed(world), keys, value))
    ends = with_document(subject, world, document.encode(), until_refused=True)
    said = [err for code, err in ends if code]
    assert said, keys
    flags = ("error: --ratio", "error: --method", "error: --weights")
    assert any(Path(subject.file).name in err or err.startswith(flags) for err in said), said


def test_an_unknown_key_of_a_file_that_users_write_names_the_nearest_one(world):
    for name, keys, near in [
        ("vocabulary", "patinet", "patient"),
        ("ratio", "hiden", "hidden"),
        ("settings", "run.stepz", "steps"),
    ]:
        subject = SUBJECTS[name]
        document = subject.written(changed(subject.parsed(world), keys, "x"))
        ((_, err),) = with_document(subject, world, document.encode())
        assert f"did you mean '{near}'?" in err


def test_keys_of_a_newer_version_are_passed_over_in_what_attcl_writes(world):
    for name in ("splits", "side-car", "record-of-train", "weights", "checkpoint", "index"):
        subject = SUBJECTS[name]
        document = subject.written({**subject.parsed(world), "of_a_newer_version": [1]})
        ends = with_document(subject, world, document.encode(), most=None if is_big() else 1)
        assert [code for code, _ in ends if code] in ([], [1]), (name, ends)
        if name != "side-car":  # made in another way, as far as this version can know
            assert [code for code, _ in ends] == [0] * len(ends), (name, ends)


def test_a_split_that_is_left_out_has_no_cases(world):
    subject = SUBJECTS["splits"]
    document = subject.parsed(world)
    del document["splits"]["val"]
    (code, _), *_ = with_document(subject, world, subject.written(document).encode())
    assert code == 0


def test_lines_of_statistics_that_are_none_are_dropped(tmp_path):
    good = [b'{"step": 1, "loss": NaN}', b'{"step": 2}']
    bad = [b"[]", b'{"step": "1"}', b'{"step": true}', b"{}", b"\xff", b"[" * 5000, b"9" * 5000]
    path = tmp_path / "stats.jsonl"
    path.write_bytes(b"\n".join([*bad, good[0], *bad, good[1], b'{"step": 3}', b'{"step": 1']))
    trim_stats(path, 2)
    assert path.read_bytes() == b"\n".join(good) + b"\n"


def test_nothing_is_removed_outside_of_what_is_overwritten(world, tmp_path):
    folder, victim = tmp_path / "segment", tmp_path / "victim"
    folder.mkdir()
    victim.mkdir()
    (victim / "a.safetensors").write_text("mine")
    (folder / "linked").symlink_to(victim)
    document = SUBJECTS["record-of-segment"].parsed(world)
    for inputs in ({"../victim": {}}, {str(victim): {}}, {"linked": {}}):
        (folder / "run.json").write_text(json.dumps({**document, "inputs": inputs}))
        try:
            clear(folder, command="segment", config={}, overwrite=True)
        except AttclError as error:
            assert error.code == "invalid-record"
        assert (victim / "a.safetensors").read_text() == "mine"


# --- random changes ---------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**25, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", ".", "..", "../../x", "/etc/passwd", "a/b", "\0", "\ud800", "\udcff",
    "x" * 100_000, "\x1b[31m", "é\u202e", [], {}, [[]], [{}], {"": 1}, [None], ["../x"], [1, "x"],
    {"a": {"b": {"c": []}}}, [0] * 10_000,
]  # fmt: skip


def places(document: Any, most: int = 400) -> list[tuple[Any, ...]]:
    """Return the paths of all values of a document, at most so many."""
    found: list[tuple[Any, ...]] = []
    level: list[tuple[tuple[Any, ...], Any]] = [((), document)]
    while level and len(found) < most:
        at, value = level.pop(0)
        found.append(at)
        entries = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        level += [((*at, key), entry) for key, entry in entries]
    return found


@st.composite
def mutated(draw: st.DrawFn, subject: Subject, text: str, document: Any) -> bytes:
    """Draw a document with one to three changes: of its values, its keys, or its bytes."""
    kind = draw(
        st.sampled_from(["value", "value", "value", "key", "surplus", "cut", "flip", "insert"])
    )
    if kind in {"value", "key", "surplus"}:
        copy = json.loads(json.dumps(document))
        for _ in range(draw(st.integers(1, 3))):
            copy = _replaced(draw, copy, kind)
        try:
            return subject.written(copy).encode("utf-8", "surrogatepass")
        except (TypeError, AttributeError, ValueError):  # TOML has no null, and no list at the top
            kind = "cut"
    data = bytearray(text.encode())
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if kind == "cut":
        return bytes(data[:at])
    if kind == "flip" and data:
        data[at] ^= 1 << draw(st.integers(0, 7))
        return bytes(data)
    part = draw(
        st.sampled_from([b"\0", b"[" * 2000, b'"', b"\xff", b"9" * 5000, b",", b"{", b"1e999"])
    )
    return bytes(data[:at]) + part + bytes(data[at:])


def _replaced(draw: st.DrawFn, document: Any, kind: str) -> Any:
    path = draw(st.sampled_from(places(document)))
    if not path:
        return deepcopy(draw(st.sampled_from(VALUES))) if kind == "value" else document
    at = document
    for key in path[:-1]:
        at = at[key]
    if kind == "value":
        at[path[-1]] = deepcopy(draw(st.sampled_from(VALUES)))
    elif kind == "key":
        del at[path[-1]]
    elif isinstance(at, dict):
        at[draw(st.sampled_from(["x", "", "..", "schema_version", "run"]))] = draw(
            st.sampled_from(VALUES)
        )
    return document


@pytest.mark.parametrize("name", SUBJECTS)
def test_any_change_of_a_document_ends_in_an_error_of_ours_or_a_result(name, world):
    subject = SUBJECTS[name]
    text, document = subject.text(world), subject.parsed(world)

    @settings(
        max_examples=examples(3), derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutated(subject, text, document))
    def check(data: bytes) -> None:
        with_document(subject, world, data, most=None if is_big() else 1)

    check()


def test_no_reader_wrote_into_the_world(world):
    """Runs last: every command above was a dry run, and every document was put back."""
    before = states(world)
    for name in ("splits", "vocabulary", "channels"):
        read(SUBJECTS[name], world)
    assert states(world) == before
