"""Naming conventions as data: how a relative path is read, how a new one is made, whose it is; names of modalities.

Knows names only; which cases a folder holds is left to `dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
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


VOCABULARY_FILE = "modalities.toml"  # read if it lies in a dataset's root; prepare-splits copies it
SEGMENTATION = "seg"
SEGMENTATION_NAMES = ("seg", "dseg", "segm")


@dataclass(frozen=True)
class Layout:
    """A naming convention.

    Attributes:
        name: what `--layout` takes.
        title: what people call it.
        template: the relative path of a file; `{prefix}`, `{case}`, `{token}` (the modality's spelling), `{slice}` and
            `{ext}` vary.
        fields: a regular expression for each of these.
        tokens: the spelling of the default modalities, for a dataset that shows none of its own.
        patient: a regular expression whose first group, found in a case's id, names the patient.
        extension: the ending of a new file, for a dataset that shows none of its own.
        label_convention: the key of `labels.CONVENTIONS` that label maps usually follow.
    """

    name: str
    title: str
    template: str
    fields: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=dict)
    patient: str = r"^(.*)$"
    extension: str = ".nii.gz"
    label_convention: str = "2021"

    @property
    def sliced(self) -> bool:
        """Return whether a volume is one file per slice (PNG), not one file (NIfTI)."""
        return "{slice}" in self.template

    def pattern(self) -> re.Pattern[str]:
        """Return the template as a regular expression over a POSIX relative path."""
        return _pattern_of(self.template, tuple(self.fields.items()))

    def patient_of(self, case_id: str) -> str:
        """Return the patient of a case: the part of its id that names one, otherwise the whole id."""
        match = re.match(self.patient, case_id)
        return match[1] if match else case_id

    def slice_number(self, file: PurePosixPath) -> str:
        """Return the digits that number a slice in its file's name; "" if a volume is one file."""
        match = self.pattern().fullmatch(str(file)) if self.sliced else None
        return match["slice"] if match else ""

    def place(
        self, *, case: str, token: str, prefix: str = "", slice_: str = "", extension: str = ""
    ) -> PurePosixPath:
        """Return where a file belongs, relative to the dataset's root.

        Args:
            case: the case's id.
            token: the spelling of the modality.
            prefix: the folder that the template begins with.
            slice_: the digits that number the slice, if a volume is one file per slice.
            extension: the ending; none: that of the layout.
        """
        ext = extension or self.extension
        return PurePosixPath(
            self.template.format(prefix=prefix, case=case, token=token, slice=slice_, ext=ext)
        )

    def place_side_car(self, file: PurePosixPath, case: str) -> PurePosixPath:
        """Return where the JSON side-car of a volume belongs, given the first of its files; slices share one."""
        if self.sliced:
            return file.with_name(f"{case}.json")
        return file.with_name(file.name.removesuffix(ending_of(file)) + ".json")

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
            label_convention="2023",
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
            extension=".png",
        ),
    )
}


# What a challenge takes: names of the output of `attcl complete` alone; no dataset is read by them.
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
    """Read other modality names, and optionally a naming of the user's own, from TOML.

    ```toml
    pattern = "IXI-{modality}/{case}-{modality}.nii.gz"   # optional; without it one of LAYOUTS
    [modalities]
    t1 = ["T1"]
    t2 = ["T2"]
    pd = ["PD"]
    ```

    Returns:
        Modality -> its spellings, and the user's own layout or None.

    Raises:
        UsageError: the file is unreadable or holds something else.
    """
    document = read_toml(path, expected="a [modalities] table")
    table = document.get("modalities")
    unknown = set(document) - {"modalities", "pattern"}
    if unknown or not isinstance(table, dict) or len(table) < 2:  # noqa: PLR2004
        reason = (
            f"unknown key {min(unknown)!r}"
            if unknown
            else "no [modalities] table of two names or more"
        )
        raise UsageError(
            f"{path}: {reason}, "
            "expected `pattern` (optional) and [modalities] with a list of spellings each",
            '[modalities] holds lines such as t1 = ["T1"]; docs/guides/data.md has an example',
            code="invalid-vocabulary",
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
                code="invalid-vocabulary",
            )
    owner: dict[str, str] = {}
    for name, spellings in table.items():
        for spelling in (name, *spellings):
            if spelling.lower() in SEGMENTATION_NAMES:
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
            code="invalid-pattern",
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
    """Return our name for a modality that a user may spell otherwise (`t1c`, `T1Gd` -> `t1ce`).

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
        code="unknown-modality",
    )


def modality_of(token: str, vocabulary: Mapping[str, tuple[str, ...]]) -> str | None:
    """Return the modality that a token in a file's name stands for, or None; `SEGMENTATION` for a label map.

    In BIDS, entities such as `acq-...`, `ce-...` and `run-...` stand before the suffix; after contrast agent (`ce-`)
    an image is another modality. Phase, real and imaginary parts are none.
    """
    *entities, suffix = token.lower().split("_")
    if {"part-phase", "part-real", "part-imag"} & set(entities):
        return None
    if suffix in SEGMENTATION_NAMES:
        return SEGMENTATION
    spellings = {
        spelling.lower(): name for name, names in vocabulary.items() for spelling in (name, *names)
    }
    if any(entity.startswith("ce-") for entity in entities):
        return spellings.get(f"ce-gadolinium_{suffix}")
    return spellings.get(suffix)


def ending_of(path: PurePosixPath) -> str:
    """Return the ending of an image's name: `.nii.gz`, `.nii` or `.png`."""
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


@cache  # a dataset of slices asks for every file
def _pattern_of(template: str, fields: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    expressions = dict(fields)
    parts = []
    for literal, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if name in expressions:
            parts.append(f"(?P<{name}>{expressions.pop(name)})")
        elif name:
            parts.append(f"(?P={name})")
    return re.compile("".join(parts))
