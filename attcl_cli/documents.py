"""Documents that are validated before anything in them is believed: one function, and the types of their parts.

Stands between `files`, which parses, and those who read a document of their own; what its keys mean is left to these.
Importing it loads pydantic, so that `attcl --help` must not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from attcl_cli.errors import AttclError, nearest

_MOST_SHOWN = 80  # characters of a wrong value
_LONGEST_NAME = 255  # bytes, of a part of a path
_LONGEST_PATH = 4096  # bytes
# Kind of error (pydantic's) -> what is expected, in the words of JSON.
_WORDS = {
    "tuple_type": "a list",
    "too_short": "a longer list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "string_type": "a text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
}

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


class Document(BaseModel):
    """A document that attcl wrote: no type is converted, and keys of other versions are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


@lru_cache(maxsize=1024)  # a document says the same few names thousands of times
def is_name(text: str) -> bool:
    """Return whether a text can be one part of a path, and leads nowhere else."""
    return (
        text not in {"", ".", ".."}
        and "/" not in text
        and "\0" not in text
        and 0 < _bytes(text) <= _LONGEST_NAME
    )


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("a name without / that is not ..")
    return text


def _within(short: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether another error is about something within what is called too short."""
    place = short["loc"]
    return any(it is not short and it["loc"][: len(place)] == place for it in found)


def _relative(text: str) -> str:
    if not all(is_name(part) for part in text.split("/")):
        raise ValueError("a name that leads to no other folder")
    return text


def _path(text: str) -> str:
    if "\0" in text or not 0 < _bytes(text) <= _LONGEST_PATH:
        raise ValueError("a path")
    return text


def _bytes(text: str) -> int:
    """Return the length of a text as the name of a file; 0 if it can be none."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return 0


Items = Annotated[tuple[T, ...], Strict(strict=False)]
"""A list, which becomes a tuple; its items are not converted."""

Name = Annotated[str, AfterValidator(_name)]
"""One part of a path: it cannot lead to another folder."""

CaseId = Annotated[str, AfterValidator(_relative)]
"""The id of a case: parts of a path, none of which leads upwards."""

PathText = Annotated[str, AfterValidator(_path)]
"""A path that the system can be asked for."""

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A number of things, or a seed; JSON of other languages has it exactly."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is one."""


class RunPart(Document):
    """An earlier part of a run that was resumed, in `run.json`."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class RunPattern(Document):
    """Modalities that are there together, in `run.json` of a training, and the cases that have exactly these."""

    modalities: Items[Name]
    cases: Count


class RunValidation(Document):
    """What a training was validated on, in `run.json`, and what a copy of the source reaches there."""

    cases: Count | None = None
    copy_ssim: Finite | None = None


class RunDocument(Document):
    """What later commands take from a `run.json`, of whatever command and version; none of its keys need be there."""

    schema_version: int | None = None
    status: str | None = None
    command: str | None = None
    config: dict[str, Any] = Field({})
    weights: dict[str, str] = Field({})
    further_weights: Items[dict[str, str]] = ()
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    earlier: Items[RunPart] = ()
    cases: Items[dict[str, Any]] = ()
    exit_code: int | None = None
    data: PathText | None = None
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    precision: str | None = None
    simulated: bool | None = None
    device: str | None = None
    processes: Count | None = None
    gpu_memory_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    present: Items[RunPattern] = ()
    validation: RunValidation | None = None
    trained_on: Items[str] | None = None
    trained_on_by_weights: dict[Name, Items[str]] = Field({})
    validated_on: Items[str] | None = None
    tested_on: Items[str] | None = None
    inputs: dict[Name, Any] = Field({})
    fingerprints: dict[Name, dict[Name, str]] = Field({})
    files: Items[str] = ()


def validated(
    kind: type[Model],
    document: Any,
    *,
    name: Path | str,
    expected: str,
    hint: str,
    code: str,
    error: Callable[..., AttclError] = AttclError,
) -> Model:
    """Return a document as the record that it should be; the gate through which every one passes.

    Args:
        kind: the record.
        document: what was parsed.
        name: the file, for the error.
        expected: the document, in a few words ("the file that ... writes").
        hint: the next step if it is something else.
        code: of the error.
        error: its class.

    Raises:
        AttclError: a key is missing, unknown, or has a value of another kind; one of these is named. An unknown key
            comes first: it may be the one that is missing, misspelt.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as failure:
        found = failure.errors(include_url=False)
        # A list is also called too short if none of its items is sound.
        found = [it for it in found if it["type"] != "too_short" or not _within(it, found)]
        first, *others = sorted(found, key=lambda it: it["type"] != "extra_forbidden")
        key = ".".join(clipped(str(part)) for part in first["loc"])
        more = f"; and {len(others)} more like it" if others else ""
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            hint = f"{nearest(str(first['loc'][-1]), kind.model_fields)}; {hint}"
        raise error(
            f"{name}: {key and f'{key}: '}{_complaint(first, expected)}{more}",
            hint,
            code=code,
        ) from failure


def clipped(text: str) -> str:
    """Return a text of a document as a message takes it: not all of a megabyte."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def shown(value: Any) -> str:
    """Return a value of a document as a message takes it: short, and a list or table by its kind alone."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    try:
        return clipped(repr(value))
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _complaint(error: Any, expected: str) -> str:
    """Return what was found in place of what, of one of pydantic's errors."""
    if error["type"] == "missing":
        return f"missing, expected it in {expected}"
    if error["type"] == "extra_forbidden":
        return f"no such key, expected one of {expected}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if isinstance(error["input"], dict) and error["type"] == "value_error":  # of several keys
        return message
    message = _WORDS.get(error["type"], re.sub(r"^(Input|Value) should (be|have) ", "", message))
    found = shown(error["input"])
    return f"found {found}, expected {message} in {expected}"
