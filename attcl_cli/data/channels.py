"""Numbers of channels -> modalities: what nnU-Net's `dataset.json` says.

Knows the file alone. How images are named is left to `layouts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from attcl_cli.data.layouts import SEGMENTATION, modality_of
from attcl_cli.data.unread import modalities_in
from attcl_cli.errors import AttclError
from attcl_cli.files import read_json, write_json

_CHANNEL = re.compile("[0-9]{1,4}")
_KEYS = ("channel_names", "modality")  # of version 2, of version 1


@dataclass(frozen=True)
class Channels:
    """What the numbers in names of images stand for.

    Attributes:
        vocabulary: modality -> its number, as names have it (`0000`).
        tokens: the same, a text each.
        files: the files that say so, relative to the root.
    """

    vocabulary: Mapping[str, tuple[str, ...]]
    tokens: Mapping[str, str]
    files: tuple[PurePosixPath, ...]


def read_channels(
    root: Path,
    folders: Iterable[str],
    name: str,
    vocabulary: Mapping[str, tuple[str, ...]],
) -> Channels | None:
    """Return what the channels of images are; None if no file says so.

    A channel that is no known modality is one under its own name.

    Args:
        root: the dataset's folder.
        folders: the folders of images; the file lies above them.
        name: of the file.
        vocabulary: modality -> its spellings.

    Raises:
        AttclError: such a file is invalid, or two say different things.
    """
    tops = sorted({PurePosixPath(folder).parent for folder in folders})
    files = tuple(top / name for top in tops if (root / top / name).is_file())
    tables = [_table(root / file, vocabulary) for file in files]
    if not tables:
        return None
    for file, table in zip(files, tables, strict=True):
        if table != tables[0]:
            raise AttclError(
                f"{root / file}: other channels than {root / files[0]}, expected one order of channels",
                "open one of the folders at a time",
                code="channels-differ",
            )
    return Channels({key: (token,) for key, token in tables[0].items()}, tables[0], files)


def write_channels(file: Path, tokens: Mapping[str, str], *, cases: int) -> None:
    """Write a file that says what the channels are, with nnU-Net's label values of BraTS 2021.

    Args:
        file: of this name.
        tokens: modality -> the number of its channel, as names have it.
        cases: how many cases there are to train on.
    """
    write_json(
        file,
        {
            "channel_names": {str(int(token)): name for name, token in tokens.items()},
            "labels": {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4},
            "numTraining": cases,
            "file_ending": ".nii.gz",
        },
    )


def _table(file: Path, vocabulary: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return modality -> number of its channel, as names have it."""
    document = read_json(file)
    tables = document if isinstance(document, dict) else {}
    names = next((tables[key] for key in _KEYS if key in tables), None)
    if not isinstance(names, dict) or not all(
        _CHANNEL.fullmatch(number) and isinstance(name, str) and re.search("[A-Za-z0-9]", name)
        for number, name in names.items()
    ):
        raise AttclError(
            f'{file}: no channel_names such as {{"0": "FLAIR", "1": "T1"}}, expected a name per channel',
            "see nnU-Net's description of dataset.json",
            code="channels-invalid",
        )
    table: dict[str, str] = {}
    for number, name in names.items():
        modality = _modality(name, vocabulary)
        if modality in table:
            raise AttclError(
                f"{file}: channels {int(table[modality])} and {number} are both {modality}, "
                "expected a modality per channel",
                "give one of them another name",
                code="channels-ambiguous",
            )
        table[modality] = f"{int(number):04d}"
    return table


def _modality(name: str, vocabulary: Mapping[str, tuple[str, ...]]) -> str:
    exact = modality_of(name, vocabulary)
    similar = modalities_in(name, vocabulary)
    if exact is not None and exact != SEGMENTATION:
        return exact
    return similar[0] if len(similar) == 1 else re.sub(r"[^a-z0-9]", "", name.lower())
