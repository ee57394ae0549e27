"""BIDS beyond the names of single files: what is raw data, which of several runs is meant, how a new file is named.

Opens `.bidsignore` and `dataset_description.json` alone. What a derivative says of itself is left to `derivative`, the
template of a path to `layouts`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from attcl_cli.data.layouts import SEGMENTATION, ending_of
from attcl_cli.data.records import MOST_BYTES
from attcl_cli.data.unread import CONTRAST_AGENT, kind_of_name
from attcl_cli.documents import clipped
from attcl_cli.errors import AttclError, UsageError, counted, nearest, some
from attcl_cli.files import read_json, read_lines

LAYOUT = "bids"
"""The key of `layouts.LAYOUTS`."""

DESCRIPTION_FILE = "dataset_description.json"
IGNORE_FILE = ".bidsignore"
NO_RAW_DATA = ("derivatives", "sourcedata", "code")
"""Folders of a dataset that hold no raw data (BIDS 1.10, "Storage of raw data" and "Storage of derived datasets").

In other letters (`Derivatives`) they are taken for the same.
"""

# In the order in which names have them (BIDS 1.10, appendix "Entity table"), as far as images may have them.
ENTITIES = (
    "sub", "ses", "sample", "task", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo",
    "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "chunk", "seg", "res", "den", "label", "desc",
)  # fmt: skip
_LONG_NAMES: Mapping[str, str] = {  # as filters of PyBIDS and fMRIPrep call them
    "subject": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "tracer": "trc",
    "staining": "stain",
    "reconstruction": "rec",
    "direction": "dir",
    "modality": "mod",
    "inversion": "inv",
    "mtransfer": "mt",
    "resolution": "res",
    "density": "den",
    "description": "desc",
}
_NUMBERED = ("run", "echo", "flip", "inv", "split", "chunk")  # run-1 and run-01 are one
_OF_THE_GRID = ("space", "res", "den")  # a new volume lies on the grid of its case
_NO_IMAGES = ("", "archive", "packed", "odd")  # kinds of files that may hold anything
_SUBJECT = re.compile(r"(?P<top>(?:.*?/)?)sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?anat/[^/]+")


class Named(Protocol):
    """A file whose name was read."""

    @property
    def path(self) -> PurePosixPath:
        """Return its path, relative to the dataset's root."""

    @property
    def case(self) -> str:
        """Return the id of its case."""

    @property
    def modality(self) -> str:
        """Return its modality, or `SEGMENTATION`."""


_AnyNamed = TypeVar("_AnyNamed", bound=Named)


@dataclass(frozen=True)
class Filter:
    """One `--bids-filter`: which value of an entity is meant.

    Attributes:
        modality: the modality it holds for; "": all.
        key: the entity (`run`), or `suffix` or `extension`.
        value: its value; "": files without this entity.
    """

    modality: str
    key: str
    value: str

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.modality}{self.modality and ':'}{self.key}={self.value}"


def parse_filters(texts: Iterable[str], modalities: Iterable[str]) -> tuple[Filter, ...]:
    """Read `KEY=VALUE` or `MODALITY:KEY=VALUE`; keys may have their long names (`acquisition`).

    Raises:
        UsageError: a text has another form, or names an unknown entity or modality.
    """
    known = (*modalities, SEGMENTATION)
    keys = (*ENTITIES, "suffix", "extension")
    filters = []
    for text in texts:
        match = re.fullmatch(r"(?:(\w+):)?([A-Za-z]+)=([A-Za-z0-9+.]*)", text)
        if match is None:
            raise UsageError(
                f"--bids-filter: {text!r}, expected KEY=VALUE such as run=1 or t1:acq=mprage",
                "KEY= without a value takes files that lack the entity",
                code="malformed-bids-filter",
            )
        modality, key, value = match[1] or "", _LONG_NAMES.get(match[2], match[2]), match[3]
        if key not in keys:
            raise UsageError(
                f"--bids-filter: unknown entity {match[2]!r}, expected an entity of BIDS, suffix or extension",
                nearest(key, (*keys, *_LONG_NAMES)),
                code="unknown-bids-entity",
            )
        if modality and modality not in known:
            raise UsageError(
                f"--bids-filter: unknown modality {modality!r}, expected one of {', '.join(known)}",
                nearest(modality, known),
                code="unknown-modality",
            )
        filters.append(Filter(modality, key, value.lstrip(".") if key == "extension" else value))
    return tuple(filters)


def entities(path: PurePosixPath) -> dict[str, str]:
    """Return what a file's name says: entity -> value, `suffix`, and `extension` without its first dot."""
    ending = ending_of(path)
    *parts, suffix = path.name.removesuffix(ending).split("_")
    pairs = (part.split("-", 1) for part in parts if "-" in part)
    return dict(pairs) | {"suffix": suffix, "extension": ending[1:]}


# --- raw data ---------------------------------------------------------------------------------------------------------


def set_aside(files: Sequence[PurePosixPath], root: Path) -> dict[PurePosixPath, str]:
    """Return which files below a folder are no raw data of a BIDS dataset, and why.

    A folder is a BIDS dataset if it has a `dataset_description.json`, or folders of subjects with images. It may be a
    derivative itself: what its own folders of subjects hold is read.

    Args:
        files: relative paths of all files below `root`; hidden ones are left out already.
        root: the folder that the user named.

    Returns:
        File -> the folder that makes it no raw data, or `.bidsignore`.
    """
    tops = {
        PurePosixPath(match["top"])
        for path in files
        if (match := _SUBJECT.fullmatch(str(path))) is not None
    }
    tops |= {path.parent for path in files if path.name == DESCRIPTION_FILE}
    if not tops:
        return {}
    aside: dict[PurePosixPath, str] = {}
    open_tops = {top for top in tops if not any(map(_is_no_raw_data, top.parts))}
    derived = {top for top in open_tops if is_derivative(root / top)}
    folders = {top: str(top) for top in derived} if open_tops - derived else {}
    folders |= {top: _folder_of(top) for top in tops - open_tops}
    folders |= {
        folder: str(folder)
        for folder in {folder for path in files for folder in path.parents}
        if _is_no_raw_data(folder.name) and folder.parent in open_tops
    }
    folders.pop(PurePosixPath(), None)  # what the user named is read, whatever it is
    rules = {
        top: ignore_rules(read_lines(file), named=str(file))
        for top in open_tops
        if (file := root / top / IGNORE_FILE).is_file()
    }
    for path in files:
        folder = next((folders[it] for it in reversed(path.parents) if it in folders), None)
        if folder is not None:
            aside[path] = f"{folder}/"
        elif any(
            path.is_relative_to(top) and ignored(path.relative_to(top))
            for top, ignored in rules.items()
        ):
            aside[path] = IGNORE_FILE
    return aside


def notes_of(aside: Mapping[PurePosixPath, str], root: Path) -> tuple[str, ...]:
    """Return a sentence for each reason why images were set aside."""
    counts: dict[str, list[PurePosixPath]] = defaultdict(list)
    for path, reason in sorted(aside.items()):
        if kind_of_name(path.name) not in _NO_IMAGES:
            counts[reason].append(path)
    return tuple(
        f"{root}: {counted(len(paths), 'image')} set aside by {IGNORE_FILE}, such as {paths[0]}"
        if reason == IGNORE_FILE
        else f"{root / reason}: {counted(len(paths), 'image')}, no raw data in BIDS and not read, "
        f"such as {paths[0].name}"
        for reason, paths in counts.items()
    )


def only_set_aside(root: Path, aside: Mapping[PurePosixPath, str]) -> AttclError | None:
    """Return the error about a folder whose images are no raw data; None if it has none of these either."""
    tops = {
        match["top"].rstrip("/")
        for path in aside
        if (match := _SUBJECT.fullmatch(str(path))) is not None
    }
    if not tops:
        return None
    places = sorted(tops - {""})
    if not places:
        return AttclError(
            f"{root}: every image is named in {IGNORE_FILE}, expected some that are not",
            f"change {root / IGNORE_FILE}",
            code="no-raw-data",
        )
    return AttclError(
        f"{root}: no raw data, images are in {some(places)} alone, expected sub-.../anat/ below the folder",
        f"name the dataset that is meant: {root / places[0]}",
        code="no-raw-data",
    )


def is_derivative(folder: Path) -> bool:
    """Return whether a dataset says of itself that it is a derivative."""
    return read_description(folder).get("DatasetType") == "derivative"


def read_description(folder: Path) -> dict[str, Any]:
    """Return the `dataset_description.json` of a folder; {} if it is missing or invalid."""
    try:
        document = read_json(folder / DESCRIPTION_FILE, default={}, most=MOST_BYTES)
    except AttclError:
        return {}
    return document if isinstance(document, dict) else {}


def ignore_rules(
    lines: Iterable[str], *, named: str = IGNORE_FILE
) -> Callable[[PurePosixPath], bool]:
    """Return whether the lines of a `.bidsignore` name a file, as `.gitignore` would (BIDS refers to its syntax).

    Args:
        lines: of the file.
        named: the file, for an error.

    Raises:
        UsageError: a line is no pattern.
    """
    rules = []
    for raw in lines:
        line = raw.rstrip()
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        line = line[1:] if negated else line
        folder = line.endswith("/")
        line = line.rstrip("/")
        anchored = "/" in line
        start = "" if anchored else "(?:.*/)?"
        try:
            pattern = re.compile(start + _expression(line.lstrip("/")))
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"{named}: {clipped(raw)!r} is no pattern ({error}), expected some of a .gitignore",
                "correct the line, or leave it out",
                code="invalid-ignore-pattern",
            ) from error
        rules.append((negated, folder, pattern))

    def ignored(path: PurePosixPath) -> bool:
        for place in (*reversed(path.parents[:-1]), path):
            named = False
            for negated, folder, pattern in rules:
                if (place != path or not folder) and pattern.fullmatch(str(place)):
                    named = not negated
            if named:  # what lies in an ignored folder cannot be called back
                return True
        return False

    return ignored


def _is_no_raw_data(folder: str) -> bool:
    return folder.lower() in NO_RAW_DATA


def _folder_of(top: PurePosixPath) -> str:
    """Return the folder among the parents of a dataset that makes it no raw data."""
    index = next(i for i, part in enumerate(top.parts) if _is_no_raw_data(part))
    return str(PurePosixPath(*top.parts[: index + 1]))


def _expression(glob: str) -> str:
    """Return a glob of `.gitignore` as a regular expression."""
    parts = re.findall(r"\*\*/|/\*\*$|\*+|\?|\[!?[^\]]+\]|\\.|.", glob)
    return "".join(_meaning(part) for part in parts)


def _meaning(part: str) -> str:
    known = {"**/": "(?:.*/)?", "/**": "/.*", "?": "[^/]"}
    if part in known:
        return known[part]
    if part.startswith("*"):
        return "[^/]*"
    if re.fullmatch(r"\[.+\]", part):
        negated = part[1] == "!"
        characters = re.sub(r"([\[&~|])", r"\\\1", part[2:-1] if negated else part[1:-1])
        return f"[{'^' if negated else ''}{characters}]"
    return re.escape(part[-1])


# --- which of several files is meant ----------------------------------------------------------------------------------


def select(
    names: Mapping[PurePosixPath, _AnyNamed], filters: Sequence[Filter]
) -> tuple[dict[PurePosixPath, _AnyNamed], tuple[str, ...]]:
    """Return the files that the filters leave, and a note on cases that keep no file of a modality.

    Of the files of a modality that a case has, those with the value are taken. If none has it, those without the entity
    are taken: `run=1` does not drop a FLAIR image of which there is one run.

    Args:
        names: the images of a dataset.
        filters: several values of one entity mean any of these.

    Raises:
        UsageError: no file has the value of a filter.
    """
    _require_known(names.values(), filters)
    groups: dict[tuple[str, str], list[_AnyNamed]] = defaultdict(list)
    for name in names.values():
        groups[name.case, name.modality].append(name)
    kept: dict[PurePosixPath, _AnyNamed] = {}
    lost: dict[str, list[tuple[str, PurePosixPath]]] = defaultdict(list)
    for (case, modality), members in groups.items():
        wanted = _wanted(filters, modality)
        paths = _chosen([member.path for member in members], wanted)
        kept |= {member.path: member for member in members if member.path in paths}
        if not paths:
            lost[modality].append((case, members[0].path))
    left = {name.case for name in kept.values()}
    notes = []
    for modality, items in sorted(lost.items()):
        gone = [(case, path) for case, path in items if case in left]
        if gone:
            number = counted(len(gone), "case")
            notes.append(
                f"--bids-filter leaves no {modality} of {number}, which then lack it: "
                f"{some([path.name for _, path in gone], most=3)}"
            )
    return {path: kept[path] for path in names if path in kept}, tuple(notes)


def ambiguity(root: Path, case: str, modality: str, paths: Sequence[PurePosixPath]) -> AttclError:
    """Return the error about several files of one modality: it names them, and the filter that chooses one."""
    tops = {str(path).partition("sub-")[0].rstrip("/") for path in paths}
    if len(tops) > 1:
        hint = f"name one dataset: {' or '.join(str(root / top) for top in sorted(tops))}"
    else:
        filters = _distinguishing(paths)
        texts = " ".join(f"--bids-filter {item}" for item in filters)
        alone = " ".join(f"--bids-filter {modality}:{item}" for item in filters)
        lacking = [
            it for it in filters[:1] if it.value and any(not entities(p).get(it.key) for p in paths)
        ]
        without = f" ({lacking[0].key}= takes the file without it)" if lacking else ""
        hint = (
            f"choose one, for example {texts}{without}, or for {modality} alone {alone}"
            if filters
            else f"move the others, or name them in a {IGNORE_FILE} file in the dataset's root"
        )
    names = [path.name for path in paths]
    shown = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return AttclError(
        f"{root / paths[0]}: one of {len(paths)} files for {modality} of {case} "
        f"({some(shown, most=4)}), expected one",
        hint,
        code="modality-twice",
    )


def misplaced(root: Path, case: str, paths: Iterable[PurePosixPath]) -> AttclError | None:
    """Return the error about an image whose name has another subject or session than its folder; None if none has."""
    for path in paths:
        folders = [part for part in path.parts[:-1] if part.startswith(("sub-", "ses-"))]
        subject = max(i for i, part in enumerate(folders) if part.startswith("sub-"))
        place = "_".join(folders[subject:])
        if place != case:
            return AttclError(
                f"{root / path}: lies in the folder of {place}, expected {place} in its name, or the folder of {case}",
                f"rename or move it; or name it in a {IGNORE_FILE} file in the dataset's root",
                code="bids-name-and-folder",
            )
    return None


def _wanted(filters: Iterable[Filter], modality: str) -> dict[str, list[str]]:
    """Return entity -> accepted values, for one modality; a filter of the modality alone replaces those of all."""
    wanted: dict[str, list[str]] = {}
    own = {item.key for item in filters if item.modality == modality}
    for item in filters:
        if item.modality == modality or (not item.modality and item.key not in own):
            wanted.setdefault(item.key, []).append(_plain(item.key, item.value))
    return wanted


def _chosen(
    paths: Sequence[PurePosixPath], wanted: Mapping[str, Sequence[str]]
) -> list[PurePosixPath]:
    left = list(paths)
    for key, values in wanted.items():
        of_path = {path: _plain(key, entities(path).get(key, "")) for path in left}
        with_value = [path for path in left if of_path[path] in values]
        left = with_value or [path for path in left if not of_path[path]]
    return left


def _plain(key: str, value: str) -> str:
    """Return a value as it is compared: run-01 is run-1."""
    return str(int(value)) if key in _NUMBERED and value.isdecimal() else value


def _require_known(names: Iterable[Named], filters: Sequence[Filter]) -> None:
    if not filters:
        return
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in names:
        said = entities(name.path)
        for item in filters:
            if item.modality in ("", name.modality):
                values[item.modality, item.key].add(said.get(item.key, ""))
    for item in filters:
        there = values[item.modality, item.key]
        if _plain(item.key, item.value) in {_plain(item.key, value) for value in there}:
            continue
        known = some([value or f"files without {item.key}" for value in sorted(there)])
        raise UsageError(
            f"--bids-filter: {item}, but no image has this, expected one of: {known}",
            f"for example --bids-filter {Filter(item.modality, item.key, max(there))}",
            code="bids-filter-without-match",
        )


def _distinguishing(paths: Sequence[PurePosixPath]) -> list[Filter]:
    """Return filters that choose one of several files, as few as possible; [] if their names do not differ so."""
    said = {path: entities(path) for path in paths}
    keys = [key for key in (*ENTITIES, "suffix", "extension") if _differ(said.values(), key)]
    with_agent = [path for path in paths if _names_contrast(path)]
    for path in sorted(paths, key=with_agent.__contains__):
        for key in keys:
            value = said[path].get(key, "")
            known = key in said[path] or with_agent  # no value chooses the file without the entity
            if known and _chosen(paths, {key: [_plain(key, value)]}) == [path]:
                return [Filter("", key, value)]
    everything = {key: [_plain(key, said[paths[0]].get(key, ""))] for key in keys}
    if _chosen(paths, everything) != [paths[0]]:
        return []
    return [Filter("", key, said[paths[0]].get(key, "")) for key in keys]


def _names_contrast(path: PurePosixPath) -> bool:
    """Return whether a name speaks of a contrast agent, which is seldom meant by one of several T1."""
    return bool(CONTRAST_AGENT & set(re.split(r"[^a-z0-9]+", path.name.lower())))


def _differ(said: Iterable[Mapping[str, str]], key: str) -> bool:
    return len({_plain(key, item.get(key, "")) for item in said}) > 1


# --- names of new files -----------------------------------------------------------------------------------------------

Habits = Mapping[tuple[str, str, str], Mapping[str, int]]
"""(modality, its token, another modality) -> how often cases with the first two have which token of the last."""


def token_of(path: PurePosixPath, case: str) -> str:
    """Return the part of a name that follows the case: entities and suffix."""
    return path.name.removesuffix(ending_of(path)).removeprefix(f"{case}_")


def habits(cases: Iterable[tuple[str, Mapping[str, Sequence[PurePosixPath]]]]) -> Habits:
    """Count which tokens go together in the cases of a dataset (id, modality -> files)."""
    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for case, files in cases:
        tokens = {modality: token_of(paths[0], case) for modality, paths in files.items()}
        for modality, token in tokens.items():
            for other, its_token in tokens.items():
                counts[modality, token, other][its_token] += 1
    return counts


def new_token(
    case: str,
    files: Mapping[str, Sequence[PurePosixPath]],
    modality: str,
    *,
    known: Habits,
    usual: str,
    desc: str = "",
) -> str:
    """Return entities and suffix of a modality that a case lacks.

    They are those of cases that name the modalities alike. If there is none: the usual ones of the dataset, with the
    space that all volumes of this case have.

    Args:
        case: the id of the case.
        files: what it has.
        modality: what it lacks.
        known: `habits` of the dataset.
        usual: the token that most files of this modality have.
        desc: the value of `desc-`, if it is to be another.
    """
    tokens = {name: token_of(paths[0], case) for name, paths in files.items()}
    votes: Counter[str] = Counter()
    for name, token in tokens.items():
        votes.update(known.get((name, token, modality), {}))
    if votes:
        token = max(votes, key=lambda it: (votes[it], it == usual, it))
        return _with(token, {"desc": desc} if desc else {})
    said = [entities(paths[0]) for paths in files.values()]
    shared = {key: said[0].get(key, "") for key in _OF_THE_GRID if not _differ(said, key)}
    return _with(usual, shared | ({"desc": desc} if desc else {}))


def _with(token: str, changes: Mapping[str, str]) -> str:
    """Return a token with other values of some entities, in the order of BIDS; "" takes an entity away."""
    *parts, suffix = token.split("_")
    before = dict(part.split("-", 1) for part in parts if "-" in part)
    after = {key: value for key, value in {**before, **changes}.items() if value}
    if after == before:
        return token
    order = {key: index for index, key in enumerate(ENTITIES)}
    keys = sorted(after, key=lambda key: order.get(key, len(order)))
    return "_".join([*(f"{key}-{after[key]}" for key in keys), suffix])
