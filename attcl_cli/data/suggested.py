"""The commands that a hint suggests to complete one patient: by the folder, or by images.

Looks at names alone. Whether the command succeeds is left to its checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from attcl_cli.data.layouts import DEFAULT_MODALITIES, ending_of
from attcl_cli.data.unread import modalities_in
from attcl_cli.errors import quoted
from attcl_cli.files import is_within, place_beside

_OUTPUT = Path("out")


def complete_folder(folder: Path, output: Path = _OUTPUT, *, reading: Sequence[str] = ()) -> str:
    """Return the command that completes what a folder holds, with an output outside of it.

    Args:
        folder: a dataset, or a patient.
        output: where the volumes go, unless that is inside.
        reading: the options by which the folder was read.
    """
    options = "".join(f" {quoted(it)}" for it in reading)
    return f"attcl complete -i {quoted(folder)} -o {quoted(outside(folder, output))}{options}"


def outside(folder: Path, output: Path = _OUTPUT) -> Path:
    """Return an output folder if it is apart from a folder, otherwise one beside that folder, if any is free."""
    among = is_within(output, folder) or is_within(folder, output)
    return (place_beside([folder]) if among else None) or output


def complete_images(
    files: Sequence[Path],
    *,
    named: Mapping[Path, str] | None = None,
    output: Path = _OUTPUT,
    targets: Sequence[str] = (),
) -> str:
    """Return the command that completes a patient from images.

    Args:
        files: the images.
        named: file -> its modality, if known; otherwise the name tells it, or `MODALITY` stands in its place.
        output: where the volumes go.
        targets: what is made; empty: all, and the command is followed by how to choose.
    """
    guesses = [modalities_told_by(file, DEFAULT_MODALITIES) for file in files]
    names = [
        (named or {}).get(file) or (guess[0] if len(guess) == 1 else "")
        for file, guess in zip(files, guesses, strict=True)
    ]
    known = [name if names.count(name) == 1 else "" for name in names]
    images = [
        f"--image {name or 'MODALITY'}={quoted(file)}"
        for name, file in zip(known, files, strict=True)
    ]
    options = "".join(f" --target {name}" for name in targets)
    command = f"attcl complete {' '.join(images)}{options} -o {quoted(output)}"
    if "" in known:
        command += f", where MODALITY is one of {', '.join(DEFAULT_MODALITIES)}"
    return command if targets else f"{command}; --target NAME makes one modality alone"


def modalities_told_by(file: Path, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the modalities that the name of a file seems to name."""
    return modalities_in(file.name.removesuffix(ending_of(PurePosixPath(file))), known)
