"""What a user says about names in `modalities.toml`: modalities, the label map, the patient, a naming of their own.

Knows the file alone. What names mean without it is left to `layouts` and `patients`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attcl_cli.data.layouts import DEFAULT_MODALITIES, NIFTI_ENDING, SEGMENTATION_NAMES, Layout
from attcl_cli.documents import clipped, is_name
from attcl_cli.errors import UsageError, nearest
from attcl_cli.files import read_toml

VOCABULARY_FILE = "modalities.toml"  # read if it lies in a dataset's root; prepare-splits copies it
_KEYS = ("modalities", "pattern", "patient", "segmentation", "ignore")
_FEWEST_MODALITIES = 2


@dataclass(frozen=True)
class Vocabulary:
    """What names mean in a dataset.

    Attributes:
        modalities: modality -> its spellings; None: those of the layout.
        layout: a naming of the user's own; None: one of `LAYOUTS`.
        patient: a regular expression whose first group, found in a case's id, names the patient; None: guessed.
        segmentations: names of a label map, the first that a case has is taken; (): those of the layout.
        ignore: patterns of files that are left out, in the syntax of .gitignore.
    """

    modalities: Mapping[str, tuple[str, ...]] | None = None
    layout: Layout | None = None
    patient: str | None = None
    segmentations: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def read_vocabulary(path: Path) -> Vocabulary:
    """Read other modality names, and optionally other things that names say, from TOML.

    ```toml
    pattern = "IXI-{modality}/{case}-{modality}.nii.gz"   # without it one of LAYOUTS
    patient = "^(IXI[0-9]+)-"                             # without it guessed
    segmentation = ["tumor", "auto_tumor"]                # without it seg, dseg or segm
    ignore = ["*_old.nii.gz", "scratch/"]                 # as in .gitignore
    [modalities]
    t1 = ["T1"]
    t2 = ["T2"]
    pd = ["PD"]
    ```

    Every key may be left out, but not all of them.

    Raises:
        UsageError: the file is unreadable or holds something else.
    """
    document = read_toml(path, expected=f"some of {', '.join(_KEYS)}")
    unknown = set(document) - set(_KEYS)
    if unknown or not document:
        near = f"{nearest(min(unknown), _KEYS)} " if unknown else ""
        raise UsageError(
            f"{path}: {f'unknown key {clipped(min(unknown))!r}' if unknown else 'empty'}, "
            f"expected some of {', '.join(_KEYS)}",
            f'{near}[modalities] holds lines such as t1 = ["T1"]; docs/guides/data.md has an example',
            code="invalid-vocabulary",
        )
    segmentations = _texts(path, document, "segmentation", example="tumor_segmentation")
    modalities = _modalities(path, document, segmentations or SEGMENTATION_NAMES)
    return Vocabulary(
        modalities,
        _layout(path, document, modalities or DEFAULT_MODALITIES, segmentations),
        _patient(path, document),
        segmentations,
        _texts(path, document, "ignore", example="*_old.nii.gz"),
    )


def _texts(path: Path, document: Mapping[str, Any], key: str, *, example: str) -> tuple[str, ...]:
    texts = document.get(key, [])
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(
            f"{path}: {key} = {clipped(repr(texts))}, expected a text or a list of texts",
            f'for example {key} = ["{example}"]',
            code="invalid-vocabulary",
        )
    return tuple(texts)


def _patient(path: Path, document: Mapping[str, Any]) -> str | None:
    if "patient" not in document:
        return None
    text = document["patient"]
    try:
        valid = isinstance(text, str) and re.compile(text).groups > 0
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{path}: patient = {clipped(repr(text))} is no regular expression ({error}), expected one",
            "for example patient = '^(UPENN-GBM-\\d+)'",
            code="invalid-patient-pattern",
        ) from error
    if not valid:
        raise UsageError(
            f"{path}: patient = {clipped(repr(text))}, "
            "expected a regular expression with the patient's name in parentheses",
            "for example patient = '^(UPENN-GBM-\\d+)'",
            code="invalid-patient-pattern",
        )
    return str(text)


def _modalities(
    path: Path, document: Mapping[str, Any], reserved: Sequence[str]
) -> Mapping[str, tuple[str, ...]] | None:
    if "modalities" not in document:
        return None
    table = document["modalities"]
    if not isinstance(table, dict) or len(table) < _FEWEST_MODALITIES:
        raise UsageError(
            f"{path}: no [modalities] table of two names or more, "
            "expected [modalities] with a list of spellings each",
            '[modalities] holds lines such as t1 = ["T1"]; docs/guides/data.md has an example',
            code="invalid-vocabulary",
        )
    for name, spellings in table.items():
        if (
            not re.fullmatch(r"[A-Za-z0-9]+", name)
            or not isinstance(spellings, list)
            or not all(isinstance(item, str) and _stays(item) for item in spellings)
        ):
            raise UsageError(
                f"{path}: modality {clipped(name)!r} = {clipped(repr(spellings))}, "
                "expected letters and digits = a list of spellings",
                'for example pd = ["PD"]',
                code="invalid-vocabulary",
            )
    owner: dict[str, str] = {}
    for name, spellings in table.items():
        for spelling in (name, *spellings):
            if spelling.lower() in {item.lower() for item in reserved}:
                raise UsageError(
                    f"{path}: {spelling!r} names the label map, expected another name",
                    "choose another spelling",
                    code="spelling-reserved",
                )
            first = owner.setdefault(spelling.lower(), name)
            if first != name:
                raise UsageError(
                    f"{path}: {spelling!r} is a spelling of {first} and of {name}, expected one owner",
                    "leave it to one of them",
                    code="spelling-ambiguous",
                )
    return {name: (name, *spellings) for name, spellings in table.items()}


def _layout(
    path: Path,
    document: Mapping[str, Any],
    modalities: Mapping[str, tuple[str, ...]],
    segmentations: tuple[str, ...],
) -> Layout | None:
    """Return the layout that `pattern` describes; its modalities are matched by the spellings alone."""
    if "pattern" not in document:
        return None
    pattern = document["pattern"]
    fields = set(re.findall(r"\{(\w+)\}", pattern)) if isinstance(pattern, str) else set()
    ending = re.search(rf"{NIFTI_ENDING}$", pattern) if isinstance(pattern, str) else None
    if (
        not {"case", "modality"} <= fields
        or fields - {"case", "modality"}
        or ending is None
        or not _stays(pattern)
        or set("{}") & set(pattern.replace("{case}", "").replace("{modality}", ""))
    ):
        raise UsageError(
            f"{path}: pattern {clipped(repr(pattern))}, "
            f"expected a path with {{case}} and {{modality}} that ends in .nii or .nii.gz",
            'for example pattern = "{case}/{case}-{modality}.nii.gz"',
            code="invalid-pattern",
        )
    names = segmentations or SEGMENTATION_NAMES
    spellings = {spelling for items in modalities.values() for spelling in items} | {*names}
    longest_first = sorted(spellings, key=lambda spelling: (-len(spelling), spelling))
    return Layout(
        name="own",
        title=f"own ({pattern})",
        template="{prefix}"
        + pattern.removesuffix(ending[0]).replace("{modality}", "{token}")
        + "{ext}",
        fields={
            "prefix": r"(?:.*/)?",
            "case": r"[^/]+",
            "token": f"(?i:{'|'.join(map(re.escape, longest_first))})",
            "ext": NIFTI_ENDING,
        },
        tokens={name: items[1] for name, items in modalities.items() if len(items) > 1},
        segmentations=names,
        case_folders="{case}" in pattern.rpartition("/")[0],
    )


def _stays(text: str) -> bool:
    """Return whether a part of a file's name leads to no other folder than those below."""
    return all(is_name(part) for part in text.split("/"))
