"""Predicted classes against true ones, case by case: of a segmenter, or of label maps that lie in a folder.

Metrics are left to `metrics`, figures over cases to `summary`. Loads torch only if a segmenter predicts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attcl_cli import __version__
from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.data.intensities import Array
from attcl_cli.data.labels import (
    REGIONS,
    Convention,
    convention_of,
    mask_of,
    to_classes,
    to_labels,
)
from attcl_cli.errors import AttclError, raise_all
from attcl_cli.files import sha256
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Input, Sample
from attcl_cli.segmentation.metrics import METRICS, scores
from attcl_cli.segmentation.summary import BY_SLICE, Row

if TYPE_CHECKING:
    from attcl_cli.segmentation.network import Segmenter
    from attcl_cli.segmentation.slices import Loaded

PREDICTIONS = "predictions"  # the folder of label maps in a run's folder
_NIFTI_AXES = np.diag([-1.0, -1.0, 1.0, 1.0])  # of predictions for PNG slices, which have none


def score_case(
    prediction: Array,
    truth: Array,
    spacing_mm: Sequence[float],
    *,
    case: str,
    input_: str,
    per_slice: bool = False,
) -> list[Row]:
    """Return all scores of one case.

    Args:
        prediction: (D, H, W) uint8 classes.
        truth: the same.
        spacing_mm: along these axes.
        case: its id.
        input_: what the segmenter saw.
        per_slice: also score as the paper does, each slice by itself.
    """
    rows = []
    for region in REGIONS:
        predicted, real = mask_of(prediction, region), mask_of(truth, region)
        values = scores(predicted, real, spacing_mm)
        if per_slice:
            chosen = intensities.training_slices(len(truth))
            slices = [scores(predicted[row], real[row], spacing_mm[1:]) for row in chosen]
            for name in METRICS:
                values[name + BY_SLICE] = _mean([item[name] for item in slices])
            # Most slices have neither mask: their 0 mm would drown the others, and hide those with one mask alone.
            distances = [
                item["hd95"]
                for row, item in zip(chosen, slices, strict=True)
                if predicted[row].any() and real[row].any()
            ]
            values["hd95" + BY_SLICE] = _mean(distances)
        rows += [Row(case, region, name, value, input_) for name, value in values.items()]
    return rows


def describe(item: Input, weights: Path, name: str) -> dict[str, Any]:
    """Return what `run.json` and `summary.json` say about the segmenter of an input; `name` is its weights'."""
    from attcl_cli.segmentation.network import read_info

    return {
        "sees": item.explained,
        "weights": name,
        "sha256": sha256(weights),
        "steps": read_info(weights).steps,
    }


def prediction_files(item: Input, folder: Path) -> dict[str, Path]:
    """Return the label map that `predict_and_score` writes for each test case."""
    return {
        sample.case: folder / PREDICTIONS / f"{sample.case}.nii.gz"
        for sample in item.splits["test"]
    }


def predict_and_score(
    segmenter: Segmenter,
    item: Input,
    folder: Path,
    *,
    convention: Convention,
    per_slice: bool = False,
    workers: int = 2,
) -> Iterator[tuple[str, list[Row]]]:
    """Predict and score the test split case by case; yield the case's id and its rows.

    Args:
        segmenter: a trained network.
        item: what it is shown.
        folder: its `predictions/` gets a label map per case, in the case's geometry and its dataset's label values.
        convention: of the dataset's label maps.
        per_slice: as in `score_case`.
        workers: cases read ahead.

    Raises:
        AttclError: a file cannot be read or written.
    """
    from attcl_cli.segmentation.network import predict, size_of
    from attcl_cli.segmentation.slices import load

    size = size_of(segmenter.info.settings)
    segmenter.network.eval()

    def predicted() -> Iterator[tuple[Loaded, Array]]:
        for _, future in read_ahead(
            lambda sample: load(sample, size, convention), item.splits["test"], depth=workers
        ):
            loaded = future.result()
            yield loaded, predict(segmenter, loaded)

    files = prediction_files(item, folder)

    def finish(prediction: tuple[Loaded, Array]) -> list[Row]:
        loaded, classes = prediction
        case, grid = loaded.sample.case, loaded.grid
        if grid.header is None:
            depth, height, width = classes.shape
            grid = volumes.new_grid((width, height, depth), _NIFTI_AXES)
        volumes.save(
            (files[case],),
            to_labels(classes, convention),
            replace(grid, dtype=np.dtype(np.uint8), scaled=False),
            description=f"attcl {__version__} segmentation",
        )
        spacing = loaded.grid.axial_spacing_mm
        return score_case(
            classes, loaded.truth, spacing, case=case, input_=item.name, per_slice=per_slice
        )

    # Scored and written while the network predicts the next case.
    for (loaded, _), future in read_ahead(finish, predicted(), depth=min(workers, 1)):
        yield loaded.sample.case, future.result()


def find_predictions(folder: Path, samples: Sequence[Sample]) -> tuple[dict[str, Path], list[str]]:
    """Return the prediction of each case, `<case>.nii.gz` or `.nii`, and the cases that have none."""
    files: dict[str, Path] = {}
    for sample in samples:
        for ending in (".nii.gz", ".nii"):
            path = folder / f"{sample.case}{ending}"
            if path.is_file():
                files.setdefault(sample.case, path)
    return files, [sample.case for sample in samples if sample.case not in files]


def score_predictions(
    files: Mapping[str, Path],
    samples: Sequence[Sample],
    convention: Convention,
    *,
    name: str,
    per_slice: bool = False,
    workers: int = 2,
) -> Iterator[list[Row]]:
    """Score label maps that lie in a folder, whatever made them.

    They may have the values of any release, one for all of them; nnU-Net's, trained on what `nnunet` exports, have
    those of 2023.

    Args:
        files: case -> its prediction.
        samples: the cases, each with its true label map.
        convention: of the true label maps.
        name: what the rows call the predictions.
        per_slice: as in `score_case`.
        workers: cases read ahead.

    Raises:
        AttclError: a file is unreadable, on another grid, or holds other labels; all are reported before the first
            score.
    """
    of_predictions = _check_predictions(files, samples, default=convention.name)

    def score(sample: Sample) -> list[Row]:
        truth = to_classes(label_maps.load_labels(sample.segmentation), convention)
        predicted = to_classes(label_maps.load_labels((files[sample.case],)), of_predictions)
        spacing = volumes.read_grid(sample.segmentation).axial_spacing_mm
        return score_case(
            predicted, truth, spacing, case=sample.case, input_=name, per_slice=per_slice
        )

    for _, future in read_ahead(score, samples, depth=workers):
        yield future.result()


def _check_predictions(
    files: Mapping[str, Path], samples: Sequence[Sample], *, default: str
) -> Convention:
    """Return the convention of all predictions together, and raise everything that is wrong with them."""
    problems: list[AttclError] = []
    values: set[int] = set()
    for sample in samples:
        path = files[sample.case]
        try:
            values |= _values_of(path, sample.segmentation)
        except AttclError as error:
            problems.append(error)
    raise_all(problems)
    try:
        return convention_of(values, default=default)
    except AttclError as error:
        folder = next(iter(files.values())).parent
        raise AttclError(
            f"{folder}: {error.message}", error.hint, code="label-values-mixed"
        ) from error


def _values_of(path: Path, truth: Sequence[Path]) -> set[int]:
    """Return the label values in a prediction.

    Raises:
        AttclError: it is unreadable, not on the grid of its truth, or of values that no release has.
    """
    problem = label_maps.off_grid((path,), truth)
    if problem is not None and problem.code == "grids-differ":
        raise AttclError(
            problem.message, "predict on the case's own grid", code="prediction-off-grid"
        )
    if problem is not None:
        raise problem
    values = {int(value) for value in np.unique(label_maps.load_labels((path,)))}
    try:
        convention_of(values)
    except AttclError as error:
        raise AttclError(
            f"{path}: {error.message}", error.hint, code="label-values-unknown"
        ) from error
    return values


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the defined values; NaN if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as expected
        return float(np.nanmean(values))
