"""The documents that lie in a dataset's folders, as records: `splits.json`, and the side-car of a synthetic volume.

Knows types and names alone; who reads which file, and what it means, is left to `splits` and `dataset`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Strict, model_validator

from attcl_cli.documents import (
    CaseId,
    Document,
    Finite,
    Items,
    Name,
    PathText,
    clipped,
    validated,
)
from attcl_cli.errors import AttclError, nearest, some

SPLITS = ("train", "val", "test")
SPLITS_VERSION = 1

MOST_BYTES = 4 * 2**20
"""The size of the largest side-car or description of a dataset that is read."""


class SplitCaseRecord(Document):
    """A case of a split in `splits.json`."""

    case: CaseId
    present: Items[Name]
    hidden: Items[Name]


class SplitsRecord(Document):
    """The content of `splits.json`; a split that is left out has no cases."""

    schema_version: int
    source: PathText
    layout: str
    ratio: str
    seed: int
    modalities: Items[Name]
    splits: dict[str, Items[SplitCaseRecord]]
    bids_filter: Items[str] = ()

    @model_validator(mode="after")
    def _agrees(self) -> SplitsRecord:
        known = {*self.modalities}
        split_of: dict[str, str] = {}
        for split, items in self.splits.items():
            if split not in SPLITS:
                raise ValueError(
                    f"splits: {clipped(split)!r}, expected train, val or test; {nearest(split, SPLITS)}"
                )
            for item in items:
                other = split_of.get(item.case)
                if other is not None:
                    place = "twice" if other == split else f"which is in {other}, too"
                    raise ValueError(
                        f"splits.{split}: case {item.case!r}, {place}; expected it once"
                    )
                split_of[item.case] = split
                strange = {*item.present, *item.hidden} - known
                if strange:
                    raise ValueError(
                        f"splits.{split}: modality {min(strange)!r} of {item.case!r}, "
                        f"expected one of {', '.join(self.modalities)}"
                    )
        return self

    @property
    def hidden(self) -> set[str]:
        """The modalities that are hidden from some case."""
        return {name for items in self.splits.values() for item in items for name in item.hidden}

    def differences(self, folder: Mapping[str, Collection[str]]) -> list[str]:
        """Return in words what a folder holds otherwise than the splits say; [] if nothing.

        Args:
            folder: case id -> its modalities.
        """
        said = {item.case: item for items in self.splits.values() for item in items}
        both = sorted(folder.keys() & said.keys())
        shown = [f"{name} of {it}" for it in both for name in said[it].hidden if name in folder[it]]
        gone = [
            f"{name} of {it}" for it in both for name in said[it].present if name not in folder[it]
        ]
        unlisted, absent = sorted(folder.keys() - said.keys()), sorted(said.keys() - folder.keys())
        found = [
            (unlisted, "does not list {}: neither trained on nor scored"),
            (absent, "lists {}, not found in this folder"),
            (
                shown,
                "calls {} hidden, but found in this folder: what learns from it knows the answer",
            ),
            (gone, "calls {} present, but not found in this folder"),
        ]
        return [words.format(some(names)) for names, words in found if names]


class ScaleDocument(Document):
    """The intensities that -1 and 1 stand for."""

    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _rises(self) -> ScaleDocument:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} and high {self.high:g}, expected low below high")
        return self


class MakerRecord(Document):
    """Weights that took part in a volume."""

    name: str
    sha256: str


class SourceRecord(Document):
    """A volume that another was made from."""

    modality: str
    files: Items[str] = ()
    sha256: str = ""


class DoubtRecord(Document):
    """What is said of a volume's doubt."""

    disagreement: Finite | None = None
    distance: Finite | None = None
    far: bool | None = None


class StoredRecord(Document):
    """How a volume is stored."""

    number_type: str
    range: Annotated[tuple[Finite, Finite], Strict(strict=False)]


def _slices(value: Any) -> Any:
    """Return the slices that a volume was made in: `all`, or the first and the one after the last, from 0."""
    if value == "all":
        return value
    whole = isinstance(value, list) and all(type(it) is int for it in value)
    if not whole or len(value) != 2 or not 0 <= value[0] < value[1]:  # noqa: PLR2004
        raise ValueError("all, or [FIRST, STOP] with 0 <= FIRST < STOP")
    return value


class SideCarRecord(Document):
    """What the side-car of a synthetic volume says; other keys are compared as they are."""

    synthetic: bool
    target: str = ""
    source: SourceRecord | None = None
    sources: Items[SourceRecord] = ()
    weights: MakerRecord | None = None
    sharpened_by: Items[SourceRecord] = ()
    averaged: Items[MakerRecord] = ()
    doubt: DoubtRecord | None = None
    stored: StoredRecord | None = None
    seed: int = 0
    slices: Annotated[Any, AfterValidator(_slices)] = "all"


def splits_record(document: Any, path: Path) -> SplitsRecord:
    """Return the content of `splits.json`.

    Raises:
        AttclError: it is of another version, or not what prepare-splits writes.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is int and version != SPLITS_VERSION:
        raise AttclError(
            f"{path}: schema_version {version}, expected {SPLITS_VERSION}",
            "run prepare-splits of this version again",
            code="splits-version",
        )
    return validated(
        SplitsRecord,
        document,
        name=f"{path}: not the content that prepare-splits writes",
        expected="splits.json",
        hint="run prepare-splits again",
        code="invalid-splits",
    )


def require_side_car(document: dict[str, Any], path: Path) -> None:
    """Check what a side-car says, if attcl wrote it; what other programs write is theirs.

    Raises:
        AttclError: a key has a value of another kind.
    """
    if document.get("synthetic") is True or "attcl_version" in document:
        validated(
            SideCarRecord,
            document,
            name=path,
            expected="the side-car of a synthetic volume",
            hint="remove it and its volume, then run attcl complete again",
            code="invalid-side-car",
        )
