"""The command that was meant by one that was refused, as far as its words and the names of files tell it.

Knows command lines and names alone; whether the command succeeds is left to its checks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from attcl_cli.data.layouts import SEGMENTATION_NAMES, is_nifti
from attcl_cli.data.suggested import complete_folder, complete_images, outside
from attcl_cli.errors import AttclError, quoted, single_problems

_COMPLETE = "complete"
_OUTPUTS = ("-o", "--cpl", "--output")  # of complete
_FOLDERS = ("-i", "--ori")
_INPUTS = (*_FOLDERS, "--image")
# P_seg.nii.gz, which is among P/*.nii.gz
_LABEL_MAP = re.compile(rf"(?i:(?:^|[_-])(?:{'|'.join(SEGMENTATION_NAMES)})\.nii)")


def names_of(flag: str, command: str) -> tuple[str, ...]:
    """Return all names of the option that errors call `flag`, the shortest first."""
    if command == _COMPLETE and flag == "--cpl":
        return _OUTPUTS
    if flag == "--ori":  # others take the dataset by its place
        return {"train": ("--data",), "info": (), "prepare-splits": ()}.get(command, _FOLDERS)
    return {"--output": ("-o", "--output")}.get(flag, (flag,))


def name_as_typed(error: AttclError, arguments: Sequence[str]) -> None:
    """Name options in an error as they were typed, if not by the name that errors use: `-o` for `--cpl`."""
    typed = {argument.partition("=")[0] for argument in arguments}
    for flag in ("--ori", "--cpl"):
        names = [name for name in names_of(flag, "".join(arguments[:1])) if name in typed]
        if names and flag not in names:
            for single in single_problems(error):
                single.message = re.sub(rf"{flag}\b", names[0], single.message)
                single.hint = re.sub(rf"{flag}\b", names[0], single.hint)


def add_command(error: AttclError, arguments: Sequence[str]) -> None:
    """End the hint of an error with the whole command that would work, if the error or the current folder tells it."""
    command = "".join(arguments[:1])
    for single in single_problems(error):
        if (
            (command, single.code) == (_COMPLETE, "dataset-not-found")
            and not _value_of(_INPUTS, arguments)
            and _is_dataset(Path())
        ):
            output = outside(Path(), Path(_value_of(_OUTPUTS, arguments) or "out"))
            words = _with_value([command, "-i", ".", *arguments[1:]], _OUTPUTS, str(output))
            single.hint = f"to complete what the current folder holds: {_shown(words)}"
        elif single.instead is not None:
            words = _corrected(arguments, single.instead)
            if words:
                joint = " " if single.hint.endswith("?") else ": "
                single.hint += f"{joint}{_shown(words)}"


def for_paths(message: str, arguments: Sequence[str]) -> str:
    """Return the command for paths that stand alone, as after other tools; "" if the parser refused something else.

    Args:
        message: of the parser.
        arguments: of the command line.
    """
    if re.match(r"No such command ", message):
        paths = _paths(arguments, lambda before, _: not before.startswith("-"))
    elif arguments[:1] == [_COMPLETE] and (
        extra := re.fullmatch(r"Got unexpected extra argument(?:\(s\)|s)? \((.+)\)", message)
    ):
        alone = f" {extra[1]} "
        paths = _paths(arguments[1:], lambda _, argument: f" {argument} " in alone)
    else:
        return ""
    output = Path(_value_of(_OUTPUTS, arguments) or _output_among(list(paths)) or "out")
    images = [path for path in paths if path.is_file() and is_nifti(path)]
    if images:
        images = [path for path in images if not _LABEL_MAP.search(path.name)] or images
        what = "this image" if len(images) == 1 else "these images"
        return f"; for {what}: {complete_images(images, named=paths, output=output)}"
    folders = [path for path in paths if path.is_dir() and path != output]
    if len(folders) == 1:
        return f"; for the dataset or patient in this folder: {complete_folder(folders[0], output)}"
    return ""


def _paths(arguments: Sequence[str], alone: Callable[[str, str], bool]) -> dict[Path, str]:
    """Return the paths that were given to complete, with the modality of those that have one, otherwise "".

    Args:
        arguments: behind the command.
        alone: whether an argument, given the one before it, is a path that stands alone.
    """
    paths = {}
    for before, argument in pairwise(["", *arguments]):
        name, _, file = argument.partition("=")
        if before == "--image" and file:
            paths[Path(file)] = name
        elif before in _INPUTS or alone(before, argument):
            paths[Path(argument)] = ""
    return paths


def _output_among(paths: Sequence[Path]) -> Path | None:
    """Return the last of some paths if it can be the output: no image, after one that exists; otherwise None."""
    if not any(path.exists() for path in paths[:-1]) or is_nifti(paths[-1]):
        return None
    return paths[-1]


def _value_of(names: Sequence[str], arguments: Sequence[str]) -> str:
    """Return the value that an option was given, "" if none."""
    for argument, following in pairwise([*arguments, ""]):
        name, _, value = argument.partition("=")
        if name in names:
            return value or following
    return ""


def _with_value(arguments: Sequence[str], names: Sequence[str], value: str) -> list[str]:
    """Return arguments in which an option, by any of its names, has this value."""
    words = list(arguments)
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name in names and equals:
            words[index] = f"{name}={value}"
            return words
        if name in names and index + 1 < len(words):
            words[index + 1] = value
            return words
    return [*words, names[0], value]


def _corrected(arguments: Sequence[str], instead: tuple[str, str]) -> list[str]:
    """Return the arguments with what an error says to give instead (`AttclError`); [] if they have no place for it."""
    wrong, value = instead
    if wrong.startswith("--"):
        names = names_of(wrong, "".join(arguments[:1]))
        return _with_value(arguments, names, value) if names else []
    words = [value if _same(word, wrong) else word for word in arguments]
    return [] if words == list(arguments) else words


def _same(word: str, path: str) -> bool:
    return not word.startswith("-") and Path(word) == Path(path)


def _shown(arguments: Sequence[str]) -> str:
    return " ".join(["attcl", *map(quoted, arguments)])


def _is_dataset(folder: Path) -> bool:
    """Return whether a folder holds a dataset or a patient; large trees of other files are not searched."""
    from attcl_cli.data.dataset import open_dataset  # not needed for --help

    with suppress(OSError, AttclError):
        patterns = ("*.nii*", "*/*.nii*", "*/anat/*.nii*", "*/*/anat/*.nii*")
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return bool(open_dataset(folder).cases)
    return False
