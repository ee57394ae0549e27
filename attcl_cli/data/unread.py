"""What lies in a dataset's folder and is not read: what looks like a volume or a patient, and what is harmless.

Looks at names, at links, and at the first bytes of files without an ending. What is read is left to `naming`.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from attcl_cli.data.layouts import SEGMENTATION_NAMES
from attcl_cli.errors import UNSEEN, AttclError, some


@dataclass(frozen=True)
class Kind:
    """A kind of file that is not read.

    Attributes:
        title: what an error calls it.
        endings: how its name ends, in lower case.
        hint: how to turn it into a file that is read.
        image: False for what is listed, but never taken for a volume.
    """

    title: str
    endings: tuple[str, ...]
    hint: str
    image: bool = True


_CONVERT = "convert it to NIfTI (3D Slicer, c3d, SimpleITK)"
KINDS: Mapping[str, Kind] = {
    "archive": Kind("an archive", (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar"), "unpack it"),
    "nifti": Kind("another name", (".nii", ".nii.gz"), "rename it"),
    "dicom": Kind(
        "DICOM", (".dcm", ".dicom", ".ima"), "convert it to NIfTI with dcm2niix, then prepare it"
    ),
    "analyze": Kind(
        "a pair of files", (".hdr", ".img", ".hdr.gz", ".img.gz"), f"{_CONVERT[:-1]}, nibabel)"
    ),
    "metaimage": Kind("MetaImage", (".mha", ".mhd"), _CONVERT),
    "nrrd": Kind("NRRD", (".nrrd", ".nhdr"), _CONVERT),
    "mgh": Kind("FreeSurfer's format", (".mgz", ".mgh"), "convert it to NIfTI with mri_convert"),
    "minc": Kind("MINC", (".mnc", ".mnc.gz"), "convert it to NIfTI with mnc2nii"),
    "philips": Kind(
        "Philips' PAR/REC", (".par", ".rec"), "convert it to NIfTI with dcm2niix, then prepare it"
    ),
    "afni": Kind(
        "AFNI's format", (".head", ".brik", ".brik.gz"), "convert it to NIfTI with 3dAFNItoNIFTI"
    ),
    "tiff": Kind("TIFF", (".tif", ".tiff"), "write it as NIfTI with its affine (nibabel)"),
    "hdf5": Kind("HDF5", (".h5", ".hdf5"), "write it as NIfTI with its affine (nibabel)"),
    "matlab": Kind("MATLAB", (), "write it as NIfTI with its affine (niftiwrite, nibabel)"),
    "numpy": Kind("a NumPy array", (".npy", ".npz"), "write it as NIfTI with its affine (nibabel)"),
    "packed": Kind("another ending", (".gz", ".bz2", ".xz", ".zst"), "unpack or rename it"),
    "picture": Kind("a picture", (".png",), "move it to another folder", image=False),
    "slice": Kind("slices of another name or format", (), "save them as PNG under this name"),
    "odd": Kind("another ending", (), "rename it, if it is whole"),  # x.nii.gz.part
    "broken": Kind("a broken link", (), "restore the file that the link leads to"),
    "folder": Kind("a folder", (), "move the image out of the folder of this name"),
}
_TABLES = (".tsv.gz", ".csv.gz", ".txt.gz", ".json.gz", ".bvec.gz", ".bval.gz")  # harmless
_NAMELESS_FOLDERS = {"odd", "packed", "picture", "archive"}  # a folder may be called photos.zip

_DERIVED = {  # words of images that show no tissue
    *SEGMENTATION_NAMES, "segmentation", "mask", "brainmask", "label", "labels", "prob", "probseg", "uncertainty",
    "map", "warp", "xfm",
}  # fmt: skip
CONTRAST_AGENT = {
    "c", "ce", "gd", "gad", "gado", "gadolinium", "km", "contrast", "post", "postcontrast",
}  # fmt: skip
_OTHER_IMAGES = re.compile(r"(?:star|s|rho|map|maps|mapping)w?")  # T2star, T1map: no weighted image
_REFERENCES = re.compile(
    r"(?<![A-Za-z0-9])(?:space|from|to|ref|template)[-_][A-Za-z0-9]+", re.IGNORECASE
)
_MANY = {"dicom", "slice"}  # of a volume
_MOST_PATTERNS = 8
_LIKE_DIGITS = str.maketrans("liz", "112")
_LONG = 4  # letters of a spelling that may begin a longer word: flairreg
_NEAR = 0.8  # difflib's ratio of flair to flar, fliar, flare or flairr
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_PAIRS = {"analyze", "philips", "afni"}  # of a header and its voxels
_MAGIC_AT, _MAGIC = 128, b"DICM"  # DICOM part 10, section 7.1
_MATLAB = b"MATLAB"  # FSL and ANTs call matrices .mat, too, and begin them otherwise


@dataclass(frozen=True)
class Unread:
    """Something that is not read.

    Attributes:
        path: a file, or the folder of several that belong together; relative to the dataset's root.
        kind: a key of `KINDS`.
        files: the files that it stands for.
    """

    path: PurePosixPath
    kind: str
    files: tuple[PurePosixPath, ...]


@dataclass(frozen=True)
class Known:
    """What was read, as far as it explains what was not.

    Attributes:
        folders: folder of a single case -> this case.
        present: case id -> its modalities.
        places: modality -> an example of the path that was expected.
        others: file -> the title of another layout that it fits.
        chosen: the user chose the layout: what fits others is left out on purpose.
    """

    folders: Mapping[PurePosixPath, str]
    present: Mapping[str, Collection[str]]
    places: Mapping[str, str]
    others: Mapping[PurePosixPath, str] = field(default_factory=dict)
    chosen: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is to be said about what is not read.

    Attributes:
        wrong: case id, or path of a folder -> its problems.
        reported: the files that these are about.
        ignored: the rest, which is harmless.
    """

    wrong: Mapping[str, tuple[AttclError, ...]]
    reported: tuple[PurePosixPath, ...]
    ignored: tuple[PurePosixPath, ...]


def find_unread(
    root: Path, files: Iterable[PurePosixPath], *, sliced: bool = False
) -> list[Unread]:
    """Return what looks like an image among files that were not read; all other files are harmless.

    A folder that is named as a file stands for all that it holds, a folder for its DICOM files.

    Args:
        root: the dataset's folder.
        files: their paths, relative to it.
        sliced: a volume of the dataset is a picture per slice; then pictures that differ in a last number are one.
    """
    groups: dict[tuple[PurePosixPath, str], list[PurePosixPath]] = defaultdict(list)
    for path in files:
        as_file = next((it for it in reversed(path.parents) if _is_named_as_file(it)), None)
        kind = "folder" if as_file is not None else _kind(root, path)
        if sliced and kind in ("", "picture", "tiff") and path.suffix.lower() in _PICTURES:
            kind = "slice"
        if as_file is not None:
            groups[as_file, kind].append(path)
        elif kind == "dicom":
            groups[path.parent, kind].append(path)
        elif kind == "slice":
            groups[PurePosixPath(_without_number(path) + "#"), kind].append(path)
        elif kind in _PAIRS:
            groups[path.with_name(_stem(path.name)), kind].append(path)
        elif kind:
            groups[path, kind].append(path)
    return [
        Unread(members[0] if kind in {*_PAIRS, "slice"} else path, kind, tuple(members))
        for (path, kind), members in sorted(groups.items())
    ]


def judge(
    root: Path,
    unread: Iterable[Unread],
    known: Known,
    vocabulary: Mapping[str, tuple[str, ...]],
) -> Verdict:
    """Divide what is not read into problems and what is harmless.

    A problem is what looks like a modality that its case lacks, and what looks like images of another patient.

    Args:
        root: the dataset's folder.
        unread: of `find_unread`.
        known: what was read.
        vocabulary: modality -> its spellings.
    """
    wrong: dict[str, list[AttclError]] = defaultdict(list)
    patients: dict[PurePosixPath, list[Unread]] = defaultdict(list)
    reported: list[PurePosixPath] = []
    ignored: list[PurePosixPath] = []
    ids = {case.lower(): case for case in known.present}
    shapes = {_shape(case) for case in known.present}
    for item in unread:
        case, text, folder = _case_of(item, known, ids)
        modalities: tuple[str, ...] = ()
        if KINDS[item.kind].image:
            modalities = modalities_in(text, vocabulary)
            modalities = modalities or modalities_in(f"{folder} {text}", vocabulary)
            if case is not None:
                lacks = {
                    name: spellings
                    for name, spellings in vocabulary.items()
                    if name not in known.present[case]
                }
                modalities = modalities or misspelt_in(text, vocabulary) or misread_in(text, lacks)
        lacking: tuple[str, ...] = ()
        if case is not None:
            if item.kind == "dicom" and not modalities:
                modalities = tuple(vocabulary)
            lacking = tuple(name for name in modalities if name not in known.present[case])
        fits_another = any(path in known.others for path in item.files)
        if lacking and case is not None:
            wrong[case].append(_volume_not_read(root, item, case, lacking, known))
            reported += item.files
        elif case is None and (
            not known.chosen
            if fits_another
            else modalities or (KINDS[item.kind].image and _shape(_stem(item.path.name)) in shapes)
        ):
            patients[item.path.parent].append(item)
            reported += item.files
        else:
            ignored.append(item.path)
    for place, items in patients.items():
        wrong[str(place)].append(_patient_not_read(root, place, items, known))
    return Verdict(
        {name: tuple(problems) for name, problems in wrong.items()}, tuple(reported), tuple(ignored)
    )


def modalities_in(text: str, vocabulary: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the modalities that a name seems to name: by words, or by how a word begins (`T1w_coreg`, `flairReg`).

    Masks, label maps and quantitative maps are none. T1 with a word for a contrast agent is T1ce.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _REFERENCES.sub(" ", text))
    words = _words(spaced)
    owners = {re.sub(r"[^a-z0-9]", "", it): name for it, name in _owners(vocabulary).items()}
    named: dict[str, None] = {}
    index = 0
    while index < len(words):
        length = next((n for n in (3, 2, 1) if "".join(words[index : index + n]) in owners), 0)
        if length:
            named[owners["".join(words[index : index + length])]] = None
        else:
            named |= dict.fromkeys(_beginning(words[index], owners))
        index += length or 1
    if "t1" in named and "t1ce" in vocabulary and CONTRAST_AGENT & set(words):
        named = {"t1ce" if name == "t1" else name: None for name in named}
    return tuple(named)


def misspelt_in(text: str, vocabulary: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the modality that a word of a name spells with one letter too few, too many or wrong (`flar`).

    Short spellings are left out: t1ce is as near to t2ce as to what was meant.
    """
    owners = {
        spelling: name
        for spelling, name in _owners(vocabulary).items()
        if len(spelling) > _LONG and spelling.isalpha()
    }
    near = [
        owners[match]
        for word in _words(text)
        for match in difflib.get_close_matches(word, owners, n=1, cutoff=_NEAR)
        if match[0] == word[0]
    ]
    return tuple(dict.fromkeys(near))


def misread_in(text: str, vocabulary: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the modalities that a word of a name spells with a letter like a digit (`tl`), or two exchanged (`t1ec`).

    Args:
        text: a name without its case.
        vocabulary: modality -> its spellings, of modalities that the case lacks.
    """
    owners = _owners(vocabulary)
    alike = {spelling.translate(_LIKE_DIGITS): name for spelling, name in owners.items()}
    seen: dict[str, None] = {}
    for word in [it for it in _words(text) if it not in owners]:
        name = alike.get(word.translate(_LIKE_DIGITS))
        exchanged = [owners[it] for it in owners if len(it) >= _LONG and _is_exchanged(word, it)]
        seen |= dict.fromkeys([name] if name is not None else exchanged)
    return tuple(seen)


def _is_exchanged(word: str, spelling: str) -> bool:
    """Return whether a word is a spelling with two neighbouring letters exchanged."""
    exchanged = (
        f"{spelling[:at]}{spelling[at + 1]}{spelling[at]}{spelling[at + 2 :]}"
        for at in range(len(spelling) - 1)
    )
    return word in exchanged


def _words(text: str) -> list[str]:
    """Return the words of a name in lower case; none if one says that the image shows no tissue."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [] if _DERIVED & set(words) else words


def _owners(vocabulary: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return spelling in lower case -> modality."""
    return {
        spelling.lower(): name
        for name, spellings in vocabulary.items()
        for spelling in (name, *spellings)
    }


# --- kinds of files -------------------------------------------------------------------------------------------------


def _kind(root: Path, path: PurePosixPath) -> str:
    """Return the key of `KINDS` of a file, "" if it is harmless."""
    file = root / path
    if file.is_symlink() and not file.exists():
        return "broken"
    kind = kind_of_name(path.name)
    if (
        not kind
        and (not path.suffix or path.suffix[1:].isdigit())
        and _has(file, _MAGIC_AT, _MAGIC)
    ):
        return "dicom"
    if path.suffix.lower() == ".mat" and _has(file, 0, _MATLAB):
        return "matlab"
    return kind


def kind_of_name(name: str) -> str:
    """Return the key of `KINDS` that the end of a name shows, "" if it is no image's."""
    lower = name.lower()
    if lower.endswith(_TABLES):
        return ""
    ending = next((key for key, kind in KINDS.items() if lower.endswith(kind.endings)), "")
    return ending or ("odd" if ".nii" in lower and not lower.endswith(".json") else "")


def _is_named_as_file(folder: PurePosixPath) -> bool:
    kind = kind_of_name(folder.name)
    return bool(kind) and kind not in _NAMELESS_FOLDERS


def _has(file: Path, place: int, magic: bytes) -> bool:
    """Return whether a file holds these bytes at this place."""
    try:
        with file.open("rb") as stream:
            return stream.read(place + len(magic))[place:] == magic
    except OSError:
        return False


def _stem(name: str) -> str:
    """Return a file's name without the ending of an image."""
    endings = sorted((it for kind in KINDS.values() for it in kind.endings), key=len, reverse=True)
    ending = next((it for it in endings if name.lower().endswith(it)), "")
    stem = name[: len(name) - len(ending)]
    return re.split(r"\.nii", stem, maxsplit=1, flags=re.IGNORECASE)[0]


def _shape(name: str) -> str:
    return re.sub(r"\d+", "0", name).lower()


# --- cases and modalities -------------------------------------------------------------------------------------------


def _case_of(item: Unread, known: Known, ids: Mapping[str, str]) -> tuple[str | None, str, str]:
    """Return the known case that something belongs to, the rest of its path, and the folder before that.

    Rest and folder may name a modality. A file that bears the name of another case than its folder's is that case's.
    """
    named = _leading_case(item.path.name, ids)
    for folder in (item.path, *item.path.parents):
        case = known.folders.get(folder)
        if case is not None and named in (None, case):
            rest = item.path.relative_to(folder)
            text = str(rest) if rest.parts else " ".join(file.name for file in item.files[:8])
            return case, _without(_stem(text), case), ""
    for number in range(len(item.path.parts) - 1, -1, -1):
        part = item.path.parts[number]
        case = _leading_case(part, ids)
        if case is not None:
            text = "/".join([part[len(case) :], *item.path.parts[number + 1 :]])
            before = item.path.parts[number - 1] if number else ""
            return case, _without(_stem(text), case), _without(before, case)
    return None, _stem(item.path.name), item.path.parent.name


def _leading_case(name: str, ids: Mapping[str, str]) -> str | None:
    """Return the case that a name begins with, the longest if there are several."""
    ends = [*(match.start() for match in re.finditer(r"[^A-Za-z0-9]", name)), len(name)]
    cases = (ids.get(name[:end].lower()) for end in reversed(ends))
    return next((case for case in cases if case is not None), None)


def _without(text: str, case: str) -> str:
    """Return a text without the id of its case, which may look like a modality."""
    return re.sub(re.escape(case), " ", text, flags=re.IGNORECASE)


def _beginning(word: str, owners: Mapping[str, str]) -> list[str]:
    """Return the modality whose spelling begins a word, if the rest does not make it another image."""
    for spelling in sorted(owners, key=len, reverse=True):
        rest = word[len(spelling) :]
        telling = any(letter.isdigit() for letter in spelling) or len(spelling) >= _LONG
        if telling and rest and word.startswith(spelling) and not rest[0].isdigit():
            if _OTHER_IMAGES.fullmatch(rest):
                return []
            with_agent = owners[spelling] == "t1" and rest in CONTRAST_AGENT  # t1km
            return ["t1ce" if with_agent and "t1ce" in owners.values() else owners[spelling]]
    return []


# --- problems -------------------------------------------------------------------------------------------------------


def _volume_not_read(
    root: Path, item: Unread, case: str, modalities: Sequence[str], known: Known
) -> AttclError:
    kind = KINDS[item.kind]
    count = f", {len(item.files)} files" if item.kind in _MANY and len(item.files) > 1 else ""
    place = known.places[modalities[0]].replace("{case}", case)
    host = next((known.folders[it] for it in item.path.parents if it in known.folders), case)
    title, hint = kind.title, kind.hint
    if host != case:
        title, hint = f"among the files of {host}", f"move it to where {case} has its files"
    return AttclError(
        f"{root / item.path}: looks like {' or '.join(modalities)} of {case} and is not read "
        f"({title}{count}), expected a file named as {place}",
        f"{hint}; or leave it out, with {_ignoring([item])} in modalities.toml",
        code="volume-not-read",
    )


def _patient_not_read(
    root: Path, folder: PurePosixPath, items: Sequence[Unread], known: Known
) -> AttclError:
    first = items[0]
    other = next((known.others[path] for path in first.files if path in known.others), "")
    names = some([it.path.relative_to(folder) for it in items], most=4)
    reason = f"named as {other}" if other else KINDS[first.kind].title
    hint = (
        "name all cases alike, or choose one naming with --layout"
        if other
        else f"{KINDS[first.kind].hint}"
    )
    return AttclError(
        f"{root / folder}: {names}: may be images of a case and are not read ({reason}), "
        f"expected files named as {next(iter(known.places.values()))}",
        f"{hint}; or leave them out, with {_ignoring(items)} in modalities.toml",
        code="case-not-read",
    )


def _ignoring(items: Iterable[Unread]) -> str:
    """Return the line of `modalities.toml` that leaves files out, both of a pair."""
    return ignoring(
        f"{_without_number(it.path)}*" if it.kind == "slice" else path
        for it in items
        for path in (it.files if it.kind in _PAIRS else (it.path,))
    )


def ignoring(paths: Iterable[PurePosixPath | str]) -> str:
    """Return the line of `modalities.toml` that leaves files out; of many, the first eight.

    Args:
        paths: relative to the root; a text may end in `*`.
    """
    return f"ignore = [{', '.join(map(_pattern, islice(paths, _MOST_PATTERNS)))}]"


def _without_number(path: PurePosixPath) -> str:
    """Return a path without its ending and the number before it: `t1/P_`."""
    return re.sub(r"\d+$", "", str(path).removesuffix(path.suffix))


def _pattern(path: PurePosixPath | str) -> str:
    """Return a path as a pattern of `ignore`, in TOML; a character that it cannot hold becomes a `?`, which is any."""
    star = "*" if isinstance(path, str) and path.endswith("*") else ""
    text = re.sub(r"[\\*?[]|^[!#]", r"\\\g<0>", str(path).removesuffix(star)) + star
    text = re.sub(r"'|^\s|\s$", "?", UNSEEN.sub("?", text))
    return f"'{text}'"
