"""What completed volumes of a BIDS dataset say of themselves, so that their folder is a BIDS derivative.

Writes `dataset_description.json` and `.bidsignore`, and knows the fields that BIDS wants in a side-car. How files are
named is left to `bids`, what a synthetic volume's side-car says beside that to the completion.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from attcl_cli import __version__
from attcl_cli.data.bids import (
    DESCRIPTION_FILE,
    IGNORE_FILE,
    LAYOUT,
    entities,
    read_description,
)
from attcl_cli.data.dataset import Case, Dataset, read_side_car
from attcl_cli.data.layouts import ending_of
from attcl_cli.data.splits import originals_of
from attcl_cli.documents import shown
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import write_json, write_whole

BIDS_VERSION = "1.10.0"
LINK = "source"
"""The name of the source dataset in BIDS URIs (`bids:source:sub-01/anat/...`)."""

FIELDS = ("Description", "Sources", "SkullStripped", "SpatialReference")
"""The fields of a side-car that `image_fields` gives; they say nothing of how a volume was made."""

# Our own files beside the images, in the syntax of .gitignore.
_IGNORED = (
    "run.json",
    "run-*of*.json",
    "log.txt",
    "log-*of*.txt",
    "report.html",
    "report-*of*.html",
    "*_uncertainty.nii",
    "*_uncertainty.nii.gz",
)
_CODE_URLS = ("Source", "Repository", "Homepage")  # labels of the package's URLs, the best first


def named_in(dataset: Dataset, output: Path) -> Dataset:
    """Return the dataset with the names of synthetic volumes that an output folder has (`--bids-desc`, `completed`)."""
    return replace(dataset, desc=desc_of(dataset, output), completed=output)


def desc_of(dataset: Dataset, output: Path) -> str:
    """Return the value of `desc-` in names of an output folder of ours; "" if they have none.

    Raises:
        AttclError: the folder's description says what can be none.
    """
    for top in _tops(dataset, dataset.cases):
        for item in _ours(read_description(output / top)):
            desc = item.get("Desc", "")
            if not isinstance(desc, str) or not re.fullmatch(r"[A-Za-z0-9]*", desc):
                raise AttclError(
                    f"{output / top / DESCRIPTION_FILE}: Desc of attcl is {shown(desc)}, expected letters and digits",
                    "correct it to what follows desc- in the names of the synthetic volumes",
                    code="invalid-description",
                )
            return desc
    return ""


def choose_desc(dataset: Dataset, output: Path, desc: str | None) -> str:
    """Return the value of `desc-` for new files: the one asked for, otherwise that of the output folder.

    Raises:
        UsageError: it is no label of BIDS, the dataset is none, or the output folder has another.
    """
    if desc is None:
        return desc_of(dataset, output)
    if dataset.layout.name != LAYOUT:
        raise UsageError(
            f"--bids-desc: {dataset.root} is named as {dataset.layout.title}, expected BIDS",
            "leave it out",
            code="bids-desc-without-bids",
        )
    if not re.fullmatch(r"[A-Za-z0-9]+", desc):
        raise UsageError(
            f"--bids-desc: {desc!r}, expected letters and digits",
            "for example --bids-desc synthetic",
            code="malformed-bids-desc",
        )
    described = any(_ours(read_description(output / top)) for top in _tops(dataset, dataset.cases))
    before = desc_of(dataset, output)
    if described and before != desc:
        raise UsageError(
            f"--bids-desc: {desc}, but names in {output} have {before or 'no desc'}, expected the same",
            "leave it out, or choose another --cpl",
            code="output-of-another-desc",
        )
    return desc


def write_description(dataset: Dataset, output: Path, cases: Iterable[Case]) -> None:
    """Write `dataset_description.json` and `.bidsignore` for the folders of these cases, if they are not there.

    Args:
        dataset: the BIDS dataset that the sources lie in; its `desc` is noted.
        output: the folder of the synthetic volumes.
        cases: whose volumes lie there.

    Raises:
        AttclError: a file cannot be written.
    """
    for top in _tops(dataset, cases):
        file = output / top / DESCRIPTION_FILE
        if not file.exists():
            write_json(file, _description(dataset, output, top))
        ignore = output / top / IGNORE_FILE
        if not ignore.exists():
            write_whole(ignore, ("\n".join(_IGNORED) + "\n").encode())


def image_fields(
    dataset: Dataset, sources: Sequence[PurePosixPath], file: PurePosixPath, description: str
) -> dict[str, Any]:
    """Return the fields that BIDS wants in the side-car of an image made from others (`FIELDS`); {} if it is not BIDS.

    `SkullStripped` is that of the sources; if these do not say it, true, since attcl takes skull-stripped data alone.

    Args:
        dataset: the dataset that the sources lie in.
        sources: their files, the most important first.
        file: the image.
        description: what it is, in a sentence.
    """
    if dataset.layout.name != LAYOUT:
        return {}
    uris = [_uri(it) for it in sources]
    known = metadata_of(dataset.root, sources[0])
    stripped = known.get("SkullStripped")
    fields: dict[str, Any] = {
        "Description": description,
        "Sources": uris,
        "SkullStripped": stripped if isinstance(stripped, bool) else True,
    }
    if "space" in entities(file):  # required unless BIDS knows the space
        fields["SpatialReference"] = known.get("SpatialReference", uris[0])
    return fields


OF_LINK = "The original, linked by attcl"
"""How the side-car of a link describes it."""


def write_side_car_of_link(
    dataset: Dataset, case: Case, file: PurePosixPath, output: Path, *, anew: bool = False
) -> None:
    """Write the side-car of an original that is linked into the output folder, if it is not there; in BIDS alone.

    With `anew` also if one of ours is: the link led elsewhere before. It says what the dataset says of the image, but
    for the fields that BIDS wants of an image in a derivative.

    Raises:
        AttclError: the file cannot be written.
    """
    side_car = output / dataset.layout.place_side_car(file, case.id)
    if dataset.layout.name != LAYOUT:
        return
    if side_car.exists() and not (anew and read_side_car(side_car).get("Description") == OF_LINK):
        return
    fields = image_fields(dataset, [file], file, OF_LINK)
    if file in case.segmentation:  # a label map has no skull
        del fields["SkullStripped"]
    write_json(side_car, metadata_of(dataset.root, file) | fields)


def metadata_of(root: Path, file: PurePosixPath) -> dict[str, Any]:
    """Return the fields of an image's side-car, with those that it inherits from folders above (BIDS, "Inheritance").

    Beside the image only a side-car of the very name counts: that of `sub-01_T1w` says nothing of the image after
    contrast agent.

    Args:
        root: the folder that the path is relative to.
        file: the image.
    """
    known: dict[str, Any] = {}
    for path in _side_cars(root, file, _named):
        known |= read_side_car(root / path)
    return known


def side_cars_of(dataset: Dataset, files: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Return the side-cars that `metadata_of` reads of some images, relative to the root; none if it is not BIDS."""
    if dataset.layout.name != LAYOUT:
        return []
    named = cache(_named)  # the folders above are those of many images
    found = {path: None for file in files for path in _side_cars(dataset.root, file, named)}
    return list(found)


def _side_cars(
    root: Path, file: PurePosixPath, named: Callable[[Path, str], Sequence[str]]
) -> Iterator[PurePosixPath]:
    """Yield the side-cars that say something of an image, the nearest last; `named` is `_named`."""
    said = entities(file)
    for folder in reversed(file.parents[1:]):
        applicable = []
        for name in named(root / folder, said["suffix"]):
            its = entities(PurePosixPath(name))
            if its.items() - {("extension", "json")} <= said.items():
                applicable.append((len(its), folder / name))
        yield from (path for _, path in sorted(applicable))
    own = file.with_name(file.name.removesuffix(ending_of(file)) + ".json")
    if (root / own).is_file():
        yield own


def _named(folder: Path, suffix: str) -> list[str]:
    """Return the names of the side-cars of a suffix that lie in a folder."""
    return [path.name for path in folder.glob(f"*{suffix}.json")]


def _description(dataset: Dataset, output: Path, top: PurePosixPath) -> dict[str, Any]:
    known: Mapping[str, Any] = {}
    for root in originals_of(dataset.root):
        known = known or read_description(root / top)
    url = _way(output / top, dataset.root / top)
    doi = known.get("DatasetDOI")
    code = _code_url()
    return {
        "Name": f"{known.get('Name') or dataset.root.resolve().name}, completed by attcl",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "attcl",
                "Version": __version__,
                "Description": "Synthesises the MR modalities that a case lacks. "
                "A synthetic volume has a side-car that says so.",
                **({"CodeURL": code} if code else {}),
                **({"Desc": dataset.desc} if dataset.desc else {}),
            }
        ],
        "SourceDatasets": [{"URL": url, **({"DOI": doi} if isinstance(doi, str) else {})}],
        "DatasetLinks": {LINK: url},
    }


def _ours(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    made_by = description.get("GeneratedBy")
    items = made_by if isinstance(made_by, list) else []
    return [it for it in items if isinstance(it, dict) and it.get("Name") == "attcl"]


def _tops(dataset: Dataset, cases: Iterable[Case]) -> list[PurePosixPath]:
    """Return the folders below the root that are BIDS datasets; [] for another layout."""
    if dataset.layout.name != LAYOUT:
        return []
    return sorted({_top(PurePosixPath(case.prefix)) for case in cases})


def _top(path: PurePosixPath) -> PurePosixPath:
    """Return the part of a path that comes before the subject."""
    index = next(i for i, part in enumerate(path.parts) if part.startswith("sub-"))
    return PurePosixPath(*path.parts[:index])


def _uri(file: PurePosixPath) -> str:
    return f"bids:{LINK}:{file.relative_to(_top(file))}"


def _way(start: Path, to: Path) -> str:
    """Return the relative path from one folder to another; on another drive, the absolute one."""
    try:
        return PurePosixPath(Path(os.path.relpath(to.resolve(), start.resolve()))).as_posix()
    except ValueError:
        return to.resolve().as_uri()


def _code_url() -> str:
    """Return where the code is, as the package says it; "" if it does not."""
    try:
        lines = metadata.metadata("attcl").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    urls = dict(line.split(", ", 1) for line in lines if ", " in line)
    return next((urls[label] for label in _CODE_URLS if label in urls), "")
