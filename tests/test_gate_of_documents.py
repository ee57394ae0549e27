"""The gate of documents itself: what `read_json`, `read_toml` and `validated` let through, and how they refuse."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from helpers import fresh_python

from attcl_cli.documents import CaseId, Count, Document, Finite, Items, Name, is_name, validated
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import parse_json, read_json, read_lines, read_toml, write_json


class Sample(Document):
    """A document of the tests."""

    name: Name
    case: CaseId = "A"
    values: Items[Finite] = ()
    count: Count = 0


def check(document: object) -> Sample:
    return validated(
        Sample, document, name="a.json", expected="a sample", hint="remove it", code="no-sample"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' given twice"),
        ('{"b": {"a": 1, "a": 1}}', "key 'a' given twice"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "too large"),
        ("9" * 5000, "digits"),
        ('"\\ud800"', "surrogate"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_what_is_no_json_by_the_rfc_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["[" * 64 + "]" * 64, '{"a": [1, 1.5, true, null, "é"]}', '"\\ud83d\\ude00"', '"\\udcff"', "0"],
)
def test_what_the_library_reads_is_read_alike(text):
    assert parse_json(text) == json.loads(text)


def test_nan_is_taken_if_it_is_allowed():
    assert math.isnan(parse_json("NaN", allow_nan=True))
    with pytest.raises(ValueError, match="too large"):
        parse_json("1e999", allow_nan=True)


def test_the_size_of_a_document_is_bound(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'"' + b"x" * 98 + b'"')
    assert read_json(path, most=100) == "x" * 98
    with pytest.raises(AttclError, match="more than") as caught:
        read_json(path, most=99)
    assert caught.value.code == "json-unreadable"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_of_utf_8_is_passed_over(encoding, tmp_path):
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding=encoding)
    (tmp_path / "a.toml").write_text('a = "é"', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"a": "é"}
    assert read_toml(tmp_path / "a.toml", expected="a") == {"a": "é"}


def test_utf_16_is_named_with_the_way_out(tmp_path):
    (tmp_path / "a.json").write_text("{}", encoding="utf-16")
    with pytest.raises(AttclError, match="UTF-16, not UTF-8") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.hint == "save it as UTF-8"


def test_only_a_file_that_is_not_there_has_a_default(tmp_path):
    assert read_json(tmp_path / "a.json", default=3) == 3
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(AttclError, match=r"b\.json: not readable as JSON"):
        read_json(tmp_path / "b.json", default=3)
    for path in (tmp_path / ("x" * 300), tmp_path / "b.json" / "below"):
        try:
            assert read_json(path, default=3) == 3
        except AttclError as error:
            assert error.code == "json-unreadable"


def test_names_that_are_no_utf_8_come_back(tmp_path):
    write_json(tmp_path / "a.json", {"file": "a\udcff.nii"})
    assert read_json(tmp_path / "a.json") == {"file": "a\udcff.nii"}


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (".".join("a" * 64) + " = 1", False),
        (".".join("a" * 65) + " = 1", True),
        (".".join(['"x y"'] * 65) + " = 1", True),
        ("[" + " . ".join("a" * 65) + "]", True),
        ('a = "1.2.3.4.5.6.7.8.9"', False),
        ("a = [" + ", ".join(["0.5"] * 500) + "]", False),
        ("a = " + "[" * 64 + "]" * 64, True),
        ("a = " + "[" * 63 + "]" * 63, False),
    ],
)
def test_a_key_of_toml_has_so_many_parts_at_most(text, deep, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(text)
    if deep:
        with pytest.raises(UsageError, match="nested deeper than 64"):
            read_toml(path, expected="a")
    else:
        assert read_toml(path, expected="a")


def test_lines_of_any_encoding_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntw\xff\n")
    assert read_lines(tmp_path / "a") == ["one", "tw\ufffd"]
    with pytest.raises(AttclError, match="not readable") as caught:
        read_lines(tmp_path)
    assert caught.value.code == "text-unreadable"


def test_a_document_becomes_a_record_with_tuples():
    record = check({"name": "a", "values": [1, 2.5], "newer": 1})
    assert record == Sample(name="a", values=(1.0, 2.5))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "a.json: name: missing, expected it in a sample"),
        ([], "a.json: found a list, expected a table in a sample"),
        ({"name": 1}, "a.json: name: found 1, expected a text in a sample"),
        ({"name": "a", "count": True}, "a.json: count: found True, expected an integer in a sample"),
        ({"name": "a", "count": "1"}, "a.json: count: found '1', expected an integer in a sample"),
        ({"name": "a", "count": 1.0}, "a.json: count: found 1.0, expected an integer in a sample"),
        ({"name": "a", "count": -1}, "a.json: count: found -1, expected greater than or equal to 0 in a sample"),
        ({"name": "a", "values": 1}, "a.json: values: found 1, expected a list in a sample"),
        ({"name": "a", "values": [1, "2"]}, "a.json: values.1: found '2', expected a number in a sample"),
        ({"name": ".."}, "a.json: name: found '..', expected a name without / that is not .. in a sample"),
        ({"name": "a", "case": "a/../b"},
         "a.json: case: found 'a/../b', expected a name that leads to no other folder in a sample"),
        ({"name": 1, "count": -1}, "a.json: name: found 1, expected a text in a sample; and 1 more like it"),
    ],
)  # fmt: skip
def test_an_error_names_file_and_key_and_what_is_found_and_expected(document, message):
    with pytest.raises(AttclError) as caught:
        check(document)
    assert (caught.value.message, caught.value.hint) == (message, "remove it")
    assert caught.value.code == "no-sample"


def test_an_error_does_not_repeat_a_megabyte():
    with pytest.raises(AttclError) as caught:
        check({"name": "/" * 10**6})
    assert len(caught.value.message) < 300
    with pytest.raises(AttclError) as caught:
        check({"name": "a", "count": 10**4000})
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "/", "a\0", "\ud800", "é" * 128, "x" * 256])
def test_what_can_be_no_part_of_a_path_is_no_name(text):
    assert not is_name(text)


@pytest.mark.parametrize("text", ["a", "...", "a b", "é" * 127, "x" * 255, "\udcff", "a\n"])
def test_any_other_text_is_a_name(text):
    assert is_name(text)


def test_asking_for_help_does_not_load_the_records():
    code = (
        "import sys; from attcl_cli.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', 'pydantic' in sys.modules)"
    )
    assert "loaded: False" in fresh_python("-c", code)


@pytest.mark.skipif(sys.platform == "win32", reason="no such devices")
def test_a_device_is_not_read_without_end():
    with pytest.raises(AttclError, match="no plain file"):
        read_json(Path("/dev/zero"))
