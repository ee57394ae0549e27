"""Naming conventions as data: how a relative path is read, and how one is made; modality names.

Knows names only; which cases a folder holds is left to `dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from attcl_cli.errors import UsageError
from attcl_cli.files import read_toml

DEFAULT_MODALITIES: Mapping[str, tuple[str, ...]] = {
    # our name: every name it goes by, compared without case; a layout's own spelling is found in `Layout.tokens`
    "flair": ("flair", "t2f", "t2flair", "t2-flair"),
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1wce", "ce-gadolinium_t1w"),
    "t2": ("t2", "t2w"),
}


VOCABULARY_FILE = (
    "modalities.toml"  # in a dataset's root it is read unasked; prepare-splits copies it along
)


SEGMENTATION = "seg"


SEGMENTATION_NAMES = ("seg", "dseg", "segm")


@dataclass(frozen=True)
class Layout:
    """A naming convention: how a relative path is read, and how one is made.

    Attributes:
        name: what `--layout` takes.
        title: what people call it.
        template: the relative path; `{prefix}`, `{case}`, `{token}` (the modality's spelling),
            `{slice}` and `{ext}` vary.
        fields: a regular expression for each of these.
        tokens: the spelling of the default modalities, used where a dataset shows none of its own.
        patient: a regular expression whose first group, found in a case's id, names the patient.
    """

    name: str
    title: str
    template: str
    fields: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=dict)
    patient: str = r"^(.*)$"

    @property
    def sliced(self) -> bool:
        """Whether a volume is a file a slice (PNG), not one file (NIfTI)."""
        return "{slice}" in self.template

    def files_of_slices(
        self, files: Sequence[PurePosixPath], span: tuple[int, int] | None
    ) -> tuple[PurePosixPath, ...]:
        """Return which files of a volume are written if only the slices first..stop are synthesised; None: all."""
        return tuple(files[span[0] : span[1]] if span and self.sliced else files)

    def slices_of_files(
        self, whole: Sequence[PurePosixPath], files: Iterable[PurePosixPath], depth: int
    ) -> list[bool]:
        """Return for each of the `depth` slices of a volume whether one of these of its files holds it."""
        if not self.sliced:
            return [True] * depth
        chosen = set(files)
        return [file in chosen for file in whole]

    def require_volumes(self, flag: str) -> None:
        """Check that a volume is one file.

        Raises:
            UsageError: this layout has a file per slice, which the option does not take.
        """
        if self.sliced:
            raise UsageError(
                f"{flag}: of PNG slices, expected NIfTI volumes",
                "leave it out",
                code="slices-instead-of-volumes",
            )

    def pattern(self) -> re.Pattern[str]:
        """The template as a regular expression over a POSIX relative path."""
        seen: set[str] = set()
        parts = []
        for literal, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", self.template):
            parts.append(re.escape(literal))
            if name:
                parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{self.fields[name]})")
                seen.add(name)
        return re.compile("".join(parts))


_NIFTI = r"\.nii(?:\.gz)?"


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="brats",
            title="BraTS 2018-2021",
            template="{prefix}{case}/{case}_{token}{ext}",
            fields={
                "prefix": r"(?:.*/)?",
                "case": r"[^/]+",
                "token": r"[A-Za-z0-9]+",
                "ext": _NIFTI,
            },
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
        ),
        Layout(
            name="brats2023",
            title="BraTS 2023 and later (BraSyn)",
            template="{prefix}{case}/{case}-{token}{ext}",
            fields={
                "prefix": r"(?:.*/)?",
                "case": r"[^/]+",
                "token": r"[A-Za-z0-9]+",
                "ext": _NIFTI,
            },
            tokens={"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", SEGMENTATION: "seg"},
            patient=r"^(.+-\d{5})-\d{3}$",  # the last number is the time point
        ),
        Layout(
            name="bids",
            title="BIDS",
            template="{prefix}anat/{case}_{token}{ext}",
            fields={
                "prefix": r"(?:.*/)?sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?",
                "case": r"sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?",
                "token": r"(?:[a-z]+-[A-Za-z0-9+]+_)*[A-Za-z0-9]+",
                "ext": _NIFTI,
            },
            tokens={
                "flair": "FLAIR",
                "t1": "T1w",
                "t1ce": "ce-gadolinium_T1w",
                "t2": "T2w",
                SEGMENTATION: "dseg",
            },
            patient=r"^(sub-[A-Za-z0-9]+)",
        ),
        Layout(
            name="slices",
            title="PNG slices of the paper",
            template="{prefix}{token}/{case}_{slice}{ext}",
            fields={
                "prefix": r"(?:.*/)?",
                "token": r"[A-Za-z0-9]+",
                "case": r"[^/]+",
                "slice": r"\d+",
                "ext": r"\.png",
            },
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
        ),
    )
}


# What a challenge takes: names of `complete`'s output alone; no dataset is read by them.
SUBMISSIONS: Mapping[str, Layout] = {
    "brasyn-submission": Layout(
        name="brasyn-submission",
        title="BraSyn challenge",
        template="{case}-{token}.nii.gz",  # {cohort}-{ID}-{timepoint}-{modality}.nii.gz, all in one folder
        fields={"case": r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*-\d{5}-\d{3}", "token": r"[a-z0-9]+"},
        tokens={"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"},
    )
}


def read_vocabulary(path: Path) -> tuple[Mapping[str, tuple[str, ...]], Layout | None]:
    """Reads other modality names, and optionally a naming of the user's own, from TOML.

    ```toml
    pattern = "IXI-{modality}/{case}-{modality}.nii.gz"   # optional; without it one of LAYOUTS
    [modalities]
    t1 = ["T1"]
    t2 = ["T2"]
    pd = ["PD"]
    ```

    Raises:
        UsageError: the file is unreadable or says something else.
    """
    document = read_toml(path, expected="a [modalities] table")
    table = document.get("modalities")
    unknown = set(document) - {"modalities", "pattern"}
    if unknown or not isinstance(table, dict) or len(table) < 2:  # noqa: PLR2004
        found = (
            f"unknown key {sorted(unknown)[0]!r}"
            if unknown
            else "no [modalities] table of two names or more"
        )
        raise UsageError(
            f"{path}: {found}, "
            "expected `pattern` (optional) and [modalities] with a list of spellings each",
            "see the README, 'Other modalities'",
        )
    for name, spellings in table.items():
        if (
            not re.fullmatch(r"[A-Za-z0-9]+", name)
            or not isinstance(spellings, list)
            or not all(isinstance(item, str) for item in spellings)
        ):
            raise UsageError(
                f"{path}: modality {name!r} = {spellings!r}, "
                "expected letters and digits = a list of spellings",
                'for example pd = ["PD"]',
            )
    owner: dict[str, str] = {}
    for name, spellings in table.items():
        for spelling in (name, *spellings):
            if spelling.lower() in SEGMENTATION_NAMES:
                raise UsageError(
                    f"{path}: {spelling!r} names the label map, expected another name",
                    "choose another spelling",
                )
            if owner.setdefault(spelling.lower(), name) != name:
                raise UsageError(
                    f"{path}: {spelling!r} is a spelling of {owner[spelling.lower()]} and of {name}, expected one owner",
                    "leave it to one of them",
                )
    vocabulary = {name: (name, *spellings) for name, spellings in table.items()}
    if "pattern" not in document:
        return vocabulary, None
    pattern = document["pattern"]
    fields = set(re.findall(r"\{(\w+)\}", pattern)) if isinstance(pattern, str) else set()
    if (
        not {"case", "modality"} <= fields
        or fields - {"case", "modality"}
        or not re.search(rf"{_NIFTI}$", pattern)
    ):
        raise UsageError(
            f"{path}: pattern {pattern!r}, "
            f"expected a path with {{case}} and {{modality}} that ends in .nii or .nii.gz",
            'for example pattern = "{case}/{case}-{modality}.nii.gz"',
        )
    ending = re.search(rf"{_NIFTI}$", pattern)[0]  # type: ignore[index]
    layout = Layout(
        name="own",
        title=f"own ({pattern})",
        template="{prefix}"
        + pattern.removesuffix(ending).replace("{modality}", "{token}")
        + "{ext}",
        fields={"prefix": r"(?:.*/)?", "case": r"[^/]+", "token": r"[A-Za-z0-9]+", "ext": _NIFTI},
        tokens={name: spellings[0] for name, spellings in table.items() if spellings},
    )
    return vocabulary, layout


def canonical(name: str, modalities: Iterable[str]) -> str:
    """Our name for a modality that a user may spell otherwise (`t1c`, `T1Gd` -> `t1ce`).

    Raises:
        UsageError: the name is none of `modalities`.
    """
    known = list(modalities)
    if name in known:
        return name
    for ours in known:
        if name.lower() in (ours.lower(), *DEFAULT_MODALITIES.get(ours, ())):
            return ours
    raise UsageError(
        f"modality {name!r}: unknown here, expected one of {', '.join(known)}",
        "a TOML file given with --modalities names others",
    )


def ending_of(path: PurePosixPath) -> str:
    """`.nii.gz`, `.nii` or `.png`."""
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
