"""Naming conventions as data: how a relative path is read, how a new one is made, whose it is; names of modalities.

Knows names only; which cases a folder holds is left to `dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath, PurePosixPath

from attcl_cli.errors import UsageError

DEFAULT_MODALITIES: Mapping[str, tuple[str, ...]] = {
    # our name: every name it goes by, compared without case; a layout's own spelling is found in `Layout.tokens`
    "flair": ("flair", "t2f", "t2flair", "t2-flair"),
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1wce", "ct1", "ce-gadolinium_t1w"),
    "t2": ("t2", "t2w"),
}

SEGMENTATION = "seg"
SEGMENTATION_NAMES = ("seg", "dseg", "segm")
NIFTI_ENDING = r"(?i:\.nii(?:\.gz)?)"
_ANY_FOLDERS = r"(?:.*/)?"
_ANY_TOKEN = r"[^/]+?"  # what is no modality's spelling is left out by `modality_of`


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
        segmentations: names of a label map, the first that a case has is taken; compared without case.
        label_template: the path of a label map that lies elsewhere; `{labels}` is its folder. "": beside the images.
        vocabulary: modality -> its spellings, if the layout does not go by `DEFAULT_MODALITIES`.
        case_folders: whether a folder with images belongs to one case.
        channel_file: the JSON file above the images that tells which modality each number is (nnU-Net).
        label_convention: the key of `labels.CONVENTIONS` that label maps usually follow.
        last_resort: its names fit files of other layouts, too, so that it is tried if no file fits any of these.
    """

    name: str
    title: str
    template: str
    fields: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=dict)
    patient: str = r"^(.*)$"
    extension: str = ".nii.gz"
    label_convention: str = "2021"
    segmentations: tuple[str, ...] = SEGMENTATION_NAMES
    label_template: str = ""
    vocabulary: Mapping[str, tuple[str, ...]] | None = None
    case_folders: bool = True
    channel_file: str = ""
    last_resort: bool = False

    @property
    def sliced(self) -> bool:
        """Return whether a volume is one file per slice (PNG), not one file (NIfTI)."""
        return "{slice}" in self.template

    @property
    def names_cases(self) -> bool:
        """Return whether a file's path tells its case; otherwise a folder holds one patient alone."""
        return "{case}" in self.template

    def pattern(self) -> re.Pattern[str]:
        """Return the template as a regular expression over a POSIX relative path."""
        return _pattern_of(self.template, tuple(self.fields.items()))

    def label_pattern(self) -> re.Pattern[str] | None:
        """Return the template of label maps that lie elsewhere as a regular expression, if there is one."""
        if not self.label_template:
            return None
        return _pattern_of(self.label_template, tuple(self.fields.items()))

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

    def place_label(self, *, case: str, prefix: str = "", slice_: str = "") -> PurePosixPath:
        """Return where the label map of a case belongs; `prefix` is its own folder if it lies elsewhere."""
        if SEGMENTATION in self.tokens:
            token = self.tokens[SEGMENTATION]
            return self.place(case=case, token=token, prefix=prefix, slice_=slice_)
        return PurePosixPath(
            self.label_template.format(labels=prefix, case=case, ext=self.extension)
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


_FIELDS = {"prefix": _ANY_FOLDERS, "case": r"[^/]+", "token": _ANY_TOKEN, "ext": NIFTI_ENDING}
"""What most layouts have in common; a layout states the fields that differ."""

_IXI_TOKENS = {"t1": "T1", "t2": "T2", "pd": "PD"}
_IXI_MODALITIES = {name: (name,) for name in _IXI_TOKENS}

# Sources of the names: docs/guides/data.md. Of layouts that as many files fit, the first is taken.
LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="brats",
            title="BraTS 2018-2021",
            template="{prefix}{case}/{case}_{token}{ext}",
            fields={
                **_FIELDS,
                "labels": _ANY_FOLDERS + "images_segm/",  # UPENN-GBM
            },
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
            segmentations=(*SEGMENTATION_NAMES, "tumor_segmentation", "gtv"),
            label_template="{labels}{case}_{token}{ext}",
        ),
        Layout(
            name="brats2023",
            title="BraTS 2023 and later (BraSyn)",
            template="{prefix}{case}/{case}-{token}{ext}",
            fields=_FIELDS,
            tokens={"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", SEGMENTATION: "seg"},
            patient=r"^(.+-\d{5})-\d{3}$",  # the last number is the time point
            label_convention="2023",
        ),
        Layout(
            name="bids",
            title="BIDS",
            template="{prefix}anat/{case}_{token}{ext}",
            fields={
                **_FIELDS,
                "prefix": r"(?:.*/)?sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?",
                "case": r"sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?",
                "token": r"(?:[a-z]+-[A-Za-z0-9+]+_)*[A-Za-z0-9]+",
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
                **_FIELDS,
                "token": r"[A-Za-z0-9]+",
                "slice": r"\d+",
                "ext": r"(?i:\.png)",
            },
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
            extension=".png",
            case_folders=False,
        ),
        Layout(
            name="ucsf",
            title="UCSF-PDGM",
            template="{prefix}{case}_nifti/{case}_{token}{ext}",
            fields=_FIELDS,
            tokens={
                "flair": "FLAIR",
                "t1": "T1",
                "t1ce": "T1c",
                "t2": "T2",
                SEGMENTATION: "tumor_segmentation",
            },
            segmentations=("tumor_segmentation",),
        ),
        Layout(
            name="tcga",
            title="TCGA-GBM and TCGA-LGG, prepared as BraTS",
            template="{prefix}{case}_{token}{ext}",
            fields={
                **_FIELDS,
                "prefix": _ANY_FOLDERS + r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}/",
                "case": r"TCGA-[0-9A-Z]{2}-[0-9A-Z]{4}_\d{4}\.\d{2}\.\d{2}",  # the last part is the date
            },
            tokens={
                "flair": "flair",
                "t1": "t1",
                "t1ce": "t1Gd",
                "t2": "t2",
                SEGMENTATION: "GlistrBoost_ManuallyCorrected",
            },
            segmentations=("GlistrBoost_ManuallyCorrected", "GlistrBoost"),
        ),
        Layout(
            name="nnunet",
            title="nnU-Net",
            template="{prefix}{case}_{token}{ext}",
            fields={
                **_FIELDS,
                "prefix": _ANY_FOLDERS + r"images(?:Tr|Ts)/",
                "token": r"\d{4}",
                "labels": _ANY_FOLDERS + r"labels(?:Tr|Ts)/",
            },
            tokens={"flair": "0000", "t1": "0001", "t1ce": "0002", "t2": "0003"},
            label_template="{labels}{case}{ext}",
            case_folders=False,
            channel_file="dataset.json",
        ),
        Layout(
            name="ixi",
            title="IXI",
            template="{prefix}IXI-{token}/{case}-{token}{ext}",
            fields={
                **_FIELDS,
                "case": r"IXI\d+-[A-Za-z]+-\d+",
                "token": r"[A-Za-z0-9]+",
            },
            tokens=_IXI_TOKENS,
            vocabulary=_IXI_MODALITIES,
            case_folders=False,
        ),
        Layout(
            name="ixi-flat",
            title="IXI in one folder",
            template="{prefix}{case}-{token}{ext}",
            fields={
                **_FIELDS,
                "prefix": r"(?:(?:.*/)?(?!IXI-)[^/]+/)?",
                "case": r"IXI\d+-[A-Za-z]+-\d+",
                "token": r"[A-Za-z0-9]+",
            },
            tokens=_IXI_TOKENS,
            vocabulary=_IXI_MODALITIES,
            case_folders=False,
        ),
        Layout(
            name="folders",
            title="a folder per patient, files named as modalities",
            template="{prefix}{case}/{token}{ext}",
            fields={
                **_FIELDS,
                "token": r"[A-Za-z0-9-]+",
            },
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
        ),
        Layout(
            name="flat",
            title="one folder, named as BraTS 2018-2021",
            template="{case}_{token}{ext}",
            fields={**_FIELDS, "case": r"(?!sub-)[^/]+"},  # names of BIDS have more parts
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
            case_folders=False,
            last_resort=True,
        ),
        Layout(
            name="flat2023",
            title="one folder, named as BraTS 2023",
            template="{case}-{token}{ext}",
            fields=_FIELDS,
            tokens={"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", SEGMENTATION: "seg"},
            patient=r"^(.+-\d{5})-\d{3}$",
            label_convention="2023",
            case_folders=False,
            last_resort=True,
        ),
        Layout(
            name="patient",
            title="one patient, files named as modalities",
            template="{token}{ext}",  # the case is called as its folder
            fields={**_FIELDS, "token": r"[A-Za-z0-9-]+"},
            tokens={"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", SEGMENTATION: "seg"},
            last_resort=True,
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


def modality_of(
    token: str,
    vocabulary: Mapping[str, tuple[str, ...]],
    segmentations: Sequence[str] = SEGMENTATION_NAMES,
) -> str | None:
    """Return the modality that a token in a file's name stands for, or None; `SEGMENTATION` for a label map.

    A whole token is compared, without case: `T1_bias` is no `T1`. In BIDS, entities such as `acq-...`, `ce-...` and
    `run-...` stand before the suffix; after contrast agent (`ce-`) an image is another modality. Phase, real and
    imaginary parts are none.
    """
    text = token.lower()
    labels = {name.lower() for name in segmentations}
    spellings = {
        spelling.lower(): name for name, names in vocabulary.items() for spelling in (name, *names)
    }
    *entities, suffix = text.split("_")
    if text in labels or text in spellings:
        return SEGMENTATION if text in labels else spellings[text]
    if not all("-" in entity for entity in entities):
        return None  # T1_bias
    if {"part-phase", "part-real", "part-imag"} & set(entities):
        return None
    if suffix in labels:
        return SEGMENTATION
    if any(entity.startswith("ce-") for entity in entities):
        return spellings.get(f"ce-gadolinium_{suffix}")
    return spellings.get(suffix)


def ending_of(path: PurePosixPath) -> str:
    """Return the ending of an image's name, as it is spelt: `.nii.gz`, `.nii` or `.png`, or `.NII.GZ`."""
    length = len(".nii.gz")
    return path.name[-length:] if path.name.lower().endswith(".nii.gz") else path.suffix


def is_nifti(path: PurePath) -> bool:
    """Return whether a name ends as that of a NIfTI file."""
    return re.search(f"{NIFTI_ENDING}$", path.name) is not None


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
