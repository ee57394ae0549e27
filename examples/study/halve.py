"""Halve the resolution of a dataset, so that a study of many methods fits into an evening.

python halve.py BraTS2021 BraTS2021-half
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from attcl_cli.cli.terminal import show_error
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.image_files import times
from attcl_cli.data.vocabulary import VOCABULARY_FILE
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import ordinary_mode
from attcl_cli.temporaries import temporary_folder

_AXES = 3
_FEWEST = 4  # of the 8 voxels of a block: with fewer, it is background


def main() -> None:
    """Write the smaller dataset, whole or not at all: volumes and label maps, under their names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path, help="a dataset of NIfTI files")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--layout", default="auto", help="as in attcl info --help")
    parser.add_argument("--modalities", type=Path, help="a TOML file with other modality names")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} exists, expected a new folder")
    try:
        _halve(options)
    except AttclError as error:
        show_error(error)
        sys.exit(error.exit_code)


def _halve(options: argparse.Namespace) -> None:
    dataset = open_dataset(options.dataset, layout=options.layout, modalities=options.modalities)
    raise_all(dataset.problems)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(options.output) as building:
        for case in dataset.cases:
            for files, labels in ((sum(case.files.values(), ()), False), (case.segmentation, True)):
                for file in files:
                    target = building / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    nib.save(_read_and_halve(dataset.root / file, labels=labels), target)
        for file in dataset.naming_files:  # without them, nobody knows what the names mean
            (building / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.root / file, building / file)
        if dataset.vocabulary_file is not None:
            shutil.copyfile(dataset.vocabulary_file, building / VOCABULARY_FILE)
        building.chmod(ordinary_mode(0o777))
        building.rename(options.output)


def _read_and_halve(file: Path, *, labels: bool) -> Any:
    try:
        image = nib.load(file)
        shape = _shape_of(image)
        if len(shape) != _AXES:
            raise AttclError(
                f"{file}: {len(shape)}-D ({times(shape)}), expected one 3-D volume",
                "save one volume per file, or leave its case out",
                code="volume-not-3d",
            )
        return halved(image, labels=labels)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        raise AttclError(
            f"{file}: not readable as NIfTI ({error}), expected a whole file",
            "restore it, or leave its case out",
            code="not-nifti",
        ) from error


def halved(image: Any, *, labels: bool) -> Any:
    """Return a volume in which each block of 2x2x2 voxels is one; a last odd plane is left out.

    Args:
        image: a NIfTI image of three axes; further ones of length 1 are dropped.
        labels: take the most frequent label of a block instead of the mean of its voxels that are not 0.
    """
    data = np.asanyarray(image.dataobj).reshape(_shape_of(image))
    i, j, k = (length // 2 for length in data.shape)
    blocks = data[: 2 * i, : 2 * j, : 2 * k].reshape(i, 2, j, 2, k, 2)
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(i, j, k, 8)
    small = _most_frequent(blocks) if labels else _mean_of_tissue(blocks)
    if data.dtype.kind in "iu":
        small = np.rint(small)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3].sum(axis=1) / 2  # the centre of a block
    affine[:3, :3] *= 2
    header = image.header.copy()
    made = nib.Nifti1Image(small.astype(data.dtype), affine, header)
    for code in ("qform", "sform"):
        getattr(made, f"set_{code}")(affine, int(image.header[f"{code}_code"]))
    return made


def _shape_of(image: Any) -> tuple[int, ...]:
    """Return the shape of an image, without axes of length 1 behind the third."""
    shape = tuple(image.shape)
    while len(shape) > _AXES and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _mean_of_tissue(blocks: NDArray[Any]) -> NDArray[Any]:
    count = (blocks != 0).sum(axis=-1)
    mean = blocks.sum(axis=-1, dtype=np.float64) / np.maximum(count, 1)
    return np.where(count >= _FEWEST, mean, 0)


def _most_frequent(blocks: NDArray[Any]) -> NDArray[Any]:
    labels = np.unique(blocks)
    counts = np.stack([(blocks == label).sum(axis=-1) for label in labels])
    return labels[counts.argmax(axis=0)]


if __name__ == "__main__":
    main()
