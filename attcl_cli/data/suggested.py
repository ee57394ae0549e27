"""The commands that a hint suggests to complete one patient: by the folder, or by images.

Looks at names alone. Whether the command succeeds is left to its checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from attcl_cli.data.layouts import DEFAULT_MODALITIES, ending_of
from attcl_cli.data.unread import modalities_in
from attcl_cli.errors import quoted
from attcl_cli.files import is_within, place_beside

_OUTPUT = Path("out")


def complete_folder(folder: Path) -> str:
    """Return the command that completes what a folder holds, with an output outside of it."""
    inside = is_within(_OUTPUT, folder)
    output = (place_beside([folder]) if inside else None) or _OUTPUT
    return f"attcl complete -i {quoted(folder)} -o {quoted(output)}"


def complete_images(files: Sequence[Path]) -> str:
    """Return the command that completes a patient from images; `MODALITY` stands where a name does not tell it."""
    guesses = [modalities_in(_stem(file), DEFAULT_MODALITIES) for file in files]
    names = [guess[0] if len(guess) == 1 else "" for guess in guesses]
    known = [name if names.count(name) == 1 else "" for name in names]
    images = [
        f"--image {name or 'MODALITY'}={quoted(file)}"
        for name, file in zip(known, files, strict=True)
    ]
    command = f"attcl complete {' '.join(images)} -o {_OUTPUT}"
    if "" in known:
        command += f", where MODALITY is one of {', '.join(DEFAULT_MODALITIES)}"
    return f"{command}; --target NAME makes one modality alone"


def _stem(file: Path) -> str:
    return file.name.removesuffix(ending_of(PurePosixPath(file)))
