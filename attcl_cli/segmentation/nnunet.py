"""A dataset as nnU-Net v2 wants it: links to images, labels with consecutive values, and a dataset.json with regions.

Knows nnU-Net's folder, not nnU-Net: its own check is asked where it is installed.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from attcl_cli import __version__
from attcl_cli.data import volumes
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
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import copy_whole, write_json, write_whole
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Input, Sample

TITLES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
ORDER = (ED, NCR, ET)
"""What nnU-Net writes where a region, in the order of `TITLES`, is the last that holds a voxel: so its predictions have
the label values of BraTS 2023."""

_NAME = re.compile(r"Dataset\d{3}_.+")


@dataclass(frozen=True)
class Exported:
    """What an export put into its folder."""

    train: int
    test: int
    linked: int
    written: int


def require_name(folder: Path) -> None:
    """Raises a `UsageError` unless the folder is called as nnU-Net's datasets are."""
    if not _NAME.fullmatch(folder.name):
        raise UsageError(
            f"--export nnunet: {folder}, expected a folder named DatasetNNN_Name, as nnU-Net does",
            f"for example --export nnunet {folder / 'Dataset501_completed'}",
        )


def export(
    shown: Input,
    folder: Path,
    *,
    convention: Convention,
    ending: str,
    workers: int = 2,
    on_case: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Writes an nnU-Net v2 raw dataset: train and val as training cases, test as `imagesTs`.

    Images are linked. Labels are linked, too, where they have consecutive values, whole numbers and the images' header;
    others are written on the images' grid. `splits_final.json`, put into nnU-Net's folder of preprocessed data, makes
    our train and val its fold 0. `dataset.json` is written last.

    Args:
        shown: an input without missing channels.
        folder: nnUNet_raw/DatasetNNN_Name.
        convention: of the dataset's label maps.
        ending: `.nii.gz` or `.nii`; nnU-Net takes one for all files, so others are written anew.
        workers: cases at once.
        on_case: called with the id of each case that is done.

    Raises:
        UsageError: the dataset has PNG slices, or a channel is missing.
        AttclError: a file cannot be read or written.
    """
    samples = [(part, sample) for part, own in shown.splits.items() for sample in own]
    if ending == ".png":
        raise UsageError(
            "--export nnunet: a dataset of PNG slices, expected NIfTI volumes",
            "nnU-Net reads 2-D images as single cases: convert the dataset to NIfTI",
        )
    lacking = next((item.case for _, item in samples if not all(item.channels)), None)
    if lacking is not None:
        raise UsageError(
            f"--export nnunet: {lacking} lacks a channel, expected all: nnU-Net takes no missing ones",
            "export --input completed, or a modality that all cases have",
        )

    def place(item: tuple[str, Sample]) -> int:
        part, sample = item
        images = "imagesTs" if part == "test" else "imagesTr"
        linked = 0
        for number, (path,) in enumerate(sample.channels):
            target = folder / images / f"{sample.case}_{number:04d}{ending}"
            linked += _place(path, target, ending)
        if part != "test":
            target = folder / "labelsTr" / f"{sample.case}{ending}"
            linked += _place_labels(sample, target, convention, ending)
        return linked

    linked = files = 0
    for (part, sample), future in read_ahead(place, samples, depth=workers):
        linked += future.result()
        files += len(sample.channels) + (part != "test")
        on_case(sample.case)
    trained = {
        part: [item.case for item in shown.splits.get(part, ())] for part in ("train", "val")
    }
    count = sum(len(own) for own in trained.values())
    if trained["val"]:
        write_json(folder / "splits_final.json", [trained])
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {str(number): name for number, name in enumerate(shown.channels)},
            "labels": {
                "background": 0,
                **{TITLES[name]: list(classes) for name, classes in REGIONS.items()},
            },
            "regions_class_order": list(ORDER),
            "numTraining": count,
            "file_ending": ending,
            "description": f"attcl {__version__}: {shown.name}, {shown.explained}",
        },
    )
    return Exported(count, len(shown.splits.get("test", ())), linked, files - linked)


def verify(folder: Path, *, workers: int = 2) -> bool:
    """Has nnU-Net check the dataset.

    Returns:
        False where nnU-Net is not installed, so that nothing was checked.

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
            ) from error
    return True


def remove(folder: Path) -> None:
    """Removes what an earlier `export` put into a folder: links, never what they lead to."""
    for name in ("imagesTr", "imagesTs", "labelsTr"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("dataset.json", "splits_final.json"):
        (folder / name).unlink(missing_ok=True)


def _place(path: Path, target: Path, ending: str) -> bool:
    """Links a file, or writes it with another ending or where there are no links; whether it was linked."""
    found = ending_of(PurePosixPath(path.as_posix()))
    if found != ending:
        raw = path.read_bytes()
        packed = gzip.compress(raw, 1, mtime=0) if ending == ".nii.gz" else gzip.decompress(raw)
        write_whole(target, packed)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(path.resolve())
    except OSError:  # a file system without links
        copy_whole(path, target)
        return False
    return True


def _place_labels(sample: Sample, target: Path, convention: Convention, ending: str) -> bool:
    images = volumes.read_grid(sample.channels[0])
    grid = volumes.read_grid(sample.segmentation)
    wanted = CONVENTIONS["2023"]
    same = grid.dtype.kind in "iu" and np.array_equal(grid.affine, images.affine)
    if convention == wanted and same:
        return _place(sample.segmentation[0], target, ending)
    labels = to_labels(to_classes(volumes.load_labels(sample.segmentation), convention), wanted)
    like = replace(images, dtype=np.dtype(np.uint8), scaled=False)
    volumes.save((target,), labels, like, description=f"attcl {__version__} labels for nnU-Net")
    return False
