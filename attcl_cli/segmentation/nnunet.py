"""A raw dataset for nnU-Net v2: links to images, labels with consecutive values, and a dataset.json with regions.

Knows nnU-Net's folder, not nnU-Net, whose own check is run if it is installed. A format of `attcl export`.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from attcl_cli import __version__
from attcl_cli.confined import make_parent
from attcl_cli.data import label_maps, volumes
from attcl_cli.data.labels import (
    CONVENTIONS,
    ED,
    ET,
    NCR,
    REGIONS,
    Convention,
    to_classes,
    to_labels,
)
from attcl_cli.data.layouts import ending_of
from attcl_cli.errors import AttclError, UsageError, counted, quoted, some
from attcl_cli.files import copy_whole, is_within, remove_files, write_json, write_whole
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Input, Sample
from attcl_cli.segmentation.request import FILES
from attcl_cli.temporaries import is_temporary

TITLES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
ORDER = (ED, NCR, ET)
"""The value that nnU-Net writes if a region, in the order of `TITLES`, is the last that holds a voxel: predictions have
the label values of BraTS 2023."""
NOT_CHECKED = (
    "nnU-Net is not installed here, so its own check was not run: "
    "nnUNetv2_plan_and_preprocess --verify_dataset_integrity runs it"
)

DESCRIPTION, SPLITS = "dataset.json", "splits_final.json"
_WIDEST_LABELS = 4  # bytes; not every tool reads integers of 8
_NAME = re.compile(r"Dataset\d{3}_.+")


@dataclass(frozen=True)
class Exported:
    """The number of cases and files of an export.

    Attributes:
        train: cases to train on, `val` included.
        test: cases to predict.
        linked: files that are links.
        written: files that are not.
    """

    train: int
    test: int
    linked: int
    written: int


def require_name(folder: Path) -> None:
    """Raise a `UsageError` unless the folder is named as nnU-Net's datasets are."""
    if not _NAME.fullmatch(folder.name):
        raise UsageError(
            f"DIR: {folder}, expected a folder named DatasetNNN_Name, as nnU-Net's are",
            f"for example attcl export nnunet {quoted(folder / 'Dataset501_completed')}",
            code="nnunet-folder-name",
        )


def export(
    item: Input,
    folder: Path,
    *,
    convention: Convention,
    ending: str,
    workers: int = 2,
    on_case: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write an nnU-Net v2 raw dataset: train and val as training cases, test as `imagesTs`.

    Images are linked. Labels are linked as well if they have consecutive values, whole numbers and the images' header;
    others are written on the images' grid. `splits_final.json`, put into nnU-Net's folder of preprocessed data, makes
    our train and val its fold 0. `dataset.json` is written last.

    Args:
        item: an input without missing channels.
        folder: nnUNet_raw/DatasetNNN_Name.
        convention: of the dataset's label maps.
        ending: `.nii.gz` or `.nii`; nnU-Net takes one for all files, so others are written anew.
        workers: cases at once.
        on_case: called with the id of each case that is done.

    Raises:
        UsageError: the dataset has PNG slices, or a channel is missing.
        AttclError: a file cannot be read or written.
    """
    samples = [(part, sample) for part, members in item.splits.items() for sample in members]
    if ending == ".png":
        raise UsageError(
            "--ori: a dataset of PNG slices, expected NIfTI volumes",
            "nnU-Net reads 2-D images as single cases: convert the dataset to NIfTI",
            code="nnunet-png-slices",
        )
    lacking = next((sample.case for _, sample in samples if not all(sample.channels)), None)
    if lacking is not None:
        raise UsageError(
            f"--input: {lacking} lacks a channel, expected all: nnU-Net takes no missing ones",
            "export --input completed, or a modality that all cases have",
            code="nnunet-channel-missing",
        )

    def write(task: tuple[str, Sample]) -> int:
        part, sample = task
        images, labels = _places(folder, part, sample, ending)
        linked = 0
        for (path,), target in zip(sample.channels, images, strict=True):
            linked += place(path, target, ending)
        for target in labels:
            linked += _place_labels(sample, target, convention, ending)
        return linked

    linked = files = 0
    for (part, sample), future in read_ahead(write, samples, depth=workers):
        linked += future.result()
        files += len(sample.channels) + (part != "test")
        on_case(sample.case)
    fold = {
        part: [sample.case for sample in item.splits.get(part, ())] for part in ("train", "val")
    }
    count = sum(len(cases) for cases in fold.values())
    if fold["val"]:
        write_json(folder / SPLITS, [fold])
    write_json(
        folder / DESCRIPTION,
        {
            "channel_names": {str(number): name for number, name in enumerate(item.channels)},
            "labels": {
                "background": 0,
                **{TITLES[name]: list(classes) for name, classes in REGIONS.items()},
            },
            "regions_class_order": list(ORDER),
            "numTraining": count,
            "file_ending": ending,
            "description": f"attcl {__version__}: {item.name}, {item.explained}",
        },
    )
    return Exported(count, len(item.splits.get("test", ())), linked, files - linked)


def files(item: Input, folder: Path, ending: str) -> Iterator[Path]:
    """Yield what `export` writes into a folder."""
    for part, members in item.splits.items():
        for sample in members:
            images, labels = _places(folder, part, sample, ending)
            yield from (*images, *labels)
    if item.splits.get("val"):
        yield folder / SPLITS
    yield folder / DESCRIPTION


def verify(folder: Path, *, workers: int = 2) -> bool:
    """Let nnU-Net check the dataset.

    Returns:
        False if nnU-Net is not installed, so that nothing was checked.

    Raises:
        AttclError: nnU-Net complains.
    """
    with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for results
        try:
            from nnunetv2.experiment_planning.verify_dataset_integrity import (
                verify_dataset_integrity,
            )
        except ImportError:
            return False
        try:
            verify_dataset_integrity(str(folder), num_processes=max(workers, 1))
        except Exception as error:
            raise AttclError(
                f"{folder}: refused by nnU-Net ({error}), expected a dataset that passes its check",
                "please report this with the whole message",
                code="nnunet-refused",
            ) from error
    return True


def remove(folder: Path, record: Mapping[str, Any]) -> None:
    """Remove what an earlier `export` put into a folder, as its record lists it: links, never what they lead to.

    Raises:
        UsageError: there are further files among its images and labels; nothing is removed.
    """
    places = [folder / name for name in ("imagesTr", "imagesTs", "labelsTr")]
    listed = {folder / name for name in record.get(FILES, ())}
    listed = {file for file in listed if is_within(file.parent, folder)}
    found = [file for place in places if is_within(place, folder) for file in _entries(place)]
    known = FILES in record  # records of earlier versions list nothing
    strange = [it for it in found if it not in listed and (known or not it.is_symlink())]
    if strange:
        reason = (
            "did not write"
            if known
            else "does not list as its own, in the record of an earlier version"
        )
        raise UsageError(
            f"DIR: {folder} holds {counted(len(strange), 'file')} that attcl export {reason}: "
            f"{some(it.relative_to(folder) for it in strange)}, expected a folder that may be replaced",
            "move them away, remove the folder yourself, or choose another DIR",
            code="output-not-ours",
        )
    for file in (*found, *(listed if known else (folder / DESCRIPTION, folder / SPLITS))):
        file.unlink(missing_ok=True)
    for place in places:
        remove_files(place, ())


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds; [] if there is none."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in entries if not is_temporary(file.name)]


def place(path: Path, target: Path, ending: str) -> bool:
    """Link a file, or write it if it must change or there are no links; return whether it was linked.

    It changes if it has another ending, or axes of length 1 beyond the third, which some readers refuse.
    """
    same_axes = volumes.axes_of(path) == 3  # noqa: PLR2004 - width, height, depth
    if ending_of(PurePosixPath(path.as_posix())) != ending or not same_axes:
        raw = volumes.read_as_3d(path)
        write_whole(target, gzip.compress(raw, 1, mtime=0) if ending == ".nii.gz" else raw)
        return False
    make_parent(target)
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(path.resolve())
    except OSError:  # a file system without links
        copy_whole(path, target)
        return False
    return True


def _places(folder: Path, part: str, sample: Sample, ending: str) -> tuple[list[Path], list[Path]]:
    """Return where the images and the label map of a case go; that of a test case is not exported."""
    images = folder / ("imagesTs" if part == "test" else "imagesTr")
    labels = [] if part == "test" else [folder / "labelsTr" / f"{sample.case}{ending}"]
    channels = range(len(sample.channels))
    return [images / f"{sample.case}_{number:04d}{ending}" for number in channels], labels


def _place_labels(sample: Sample, target: Path, convention: Convention, ending: str) -> bool:
    images = volumes.read_grid(sample.channels[0])
    grid = volumes.read_grid(sample.segmentation)
    consecutive = CONVENTIONS["2023"]
    integers = grid.dtype.kind in "iu" and grid.dtype.itemsize <= _WIDEST_LABELS and not grid.scaled
    same = integers and np.array_equal(grid.affine, images.affine)
    if convention == consecutive and same:
        return place(sample.segmentation[0], target, ending)
    labels = to_labels(
        to_classes(label_maps.load_labels(sample.segmentation), convention), consecutive
    )
    like = replace(images, dtype=np.dtype(np.uint8), scaled=False)
    volumes.save((target,), labels, like, description=f"attcl {__version__} labels for nnU-Net")
    return False
