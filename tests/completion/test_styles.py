"""Number type, range and background of made volumes: those of their modality in the dataset, never of the source."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from completers import echo_weights, echoed, plan_of
from PIL import Image

from attcl_cli.completion.styles import LEAST_STEPS, Style, Styles
from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.errors import AttclError

SHAPE = (14, 12, 9)
AFFINE = np.diag([-4.0, -4, 4, 1])  # voxels so large that figures of a volume are of all of them
SOURCE = Scale(0.0, 1000.0)  # of weights that say something else than the dataset


def tissue(seed: int = 0) -> np.ndarray:
    """A block of tissue, 1 to 2, in a background of 0."""
    values = np.zeros(SHAPE)
    values[2:-2, 2:-2, 2:-2] = np.random.default_rng(seed).uniform(1, 2, (10, 8, 5))
    return values


def spread(low: float, high: float, seed: int = 0) -> np.ndarray:
    """Tissue from `low` to `high`; the background is 0."""
    values = tissue(seed)
    return np.where(values > 0, low + (values - 1) * (high - low), 0)


@pytest.fixture
def write_dataset(write_nifti: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write flair of cases A, B, ... as int16, and the given t2 of all but A; a t2 is an array, or (array, slope)."""

    def write(others: Sequence[object], *, source: str = "i2") -> Path:
        root = tmp_path / "in"
        for number in range(len(others) + 1):
            name = chr(ord("A") + number)
            flair = np.rint(spread(100, 250, number)).astype(source)
            write_nifti(root / name / f"{name}_flair.nii.gz", flair, affine=AFFINE)
        for number, other in enumerate(others):
            name = chr(ord("B") + number)
            path = root / name / f"{name}_t2.nii.gz"
            if isinstance(other, tuple):
                values, slope = other
                stored = np.rint(values / slope).astype(np.int16)
                nifti = nib.load(root / name / f"{name}_flair.nii.gz")
                image = nib.Nifti1Image(stored, nifti.affine)
                image.set_qform(nifti.affine, 1)
                image.set_sform(nifti.affine, 1)
                image.header.set_slope_inter(slope, 0)
                nib.save(image, path)
            else:
                write_nifti(path, other, affine=AFFINE)
        return root

    return write


def own_range(values: np.ndarray, background: float = 0) -> tuple[float, float]:
    low, high = np.percentile(values[values != background], [0.5, 99.5])
    return float(low), float(high)


KINDS = {
    "floats in 0..1": (spread(0.05, 0.9).astype("f4"), "float32"),
    "doubles": (spread(0.05, 0.9), "float32"),
    "z-scores of the brain": (spread(-2.5, 3.5).astype("f4"), "float32"),
    "large floats": (spread(1e5, 9e6).astype("f4"), "float32"),
    "unsigned bytes": (np.rint(spread(10, 250)).astype("u1"), "uint8"),
    "unsigned 16 bit beyond int16": (np.rint(spread(300, 60000)).astype("u2"), "uint16"),
    "integers of 32 bit": (np.rint(spread(300, 90000)).astype("i4"), "int32"),
    "integers in few steps": (np.rint(spread(1, 20)).astype("i2"), "float32"),
    "scaled integers": ((spread(0.05, 0.9), 1e-4), "float32"),
    "integers over a slope of 2": ((spread(100, 900), 2.0), "float32"),
    "big-endian": (np.rint(spread(10, 2000)).astype(">i2"), "int16"),
}


@pytest.mark.parametrize("source", ["i2", "u1", "f4"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_is_stored_as_the_others_of_its_modality(
    kind, source, write_dataset, tiny_settings, tmp_path
):
    other, dtype = KINDS[kind]
    root = write_dataset([other, other, other], source=source)
    echoed(root, tmp_path / "out", tiny_settings, SOURCE)
    image = nib.load(tmp_path / "out/A/A_t2.nii.gz")
    assert image.get_data_dtype().newbyteorder("=") == dtype
    if isinstance(other, tuple):
        values, slope = other
        values = np.rint(values / slope) * slope
    else:
        values = other.astype(np.float64)
    low, high = own_range(values)
    made = image.get_fdata()
    inside = tissue() != 0
    step = 0 if dtype == "float32" else 0.5
    assert made[inside].min() == pytest.approx(low, rel=1e-3, abs=step + 1e-4 * (high - low))
    assert made[inside].max() == pytest.approx(high, rel=1e-3, abs=step + 1e-4 * (high - low))
    assert not made[~inside].any()
    assert (
        len(np.unique(made[inside])) > 50
    )  # of 400: the contrast of the source is not rounded away
    stored = json.loads((tmp_path / "out/A/A_t2.json").read_text())["stored"]
    assert (stored["number_type"], stored["like"]) == (dtype, "the dataset")
    assert stored["range"] == pytest.approx([low, high], rel=1e-3, abs=1e-4 * (high - low))


@pytest.mark.parametrize("background", [-1000, 100])
def test_a_volume_has_the_background_of_the_others(
    background, write_dataset, tiny_settings, tmp_path
):
    other = (np.rint(spread(20, 800)) + background).astype("i2")
    root = write_dataset([other, other])
    echoed(root, tmp_path / "out", tiny_settings, SOURCE)
    made = nib.load(tmp_path / "out/A/A_t2.nii.gz").get_fdata()
    inside = tissue() != 0
    assert set(np.unique(made[~inside])) == {background}
    low, high = own_range(other, background)
    assert (made[inside].min(), made[inside].max()) == pytest.approx((low, high), abs=1)


def test_the_most_frequent_type_is_taken_with_the_range_of_its_volumes(write_dataset):
    floats, integers = spread(0.1, 0.9).astype("f4"), np.rint(spread(100, 900)).astype("i2")
    dataset = open_dataset(write_dataset([floats, integers, floats]))
    style = Styles(dataset).of("t2", SOURCE)
    assert (style.dtype, style.range) == (np.float32, pytest.approx(own_range(floats)))
    dataset = open_dataset(write_dataset([integers, integers, floats]))
    style = Styles(dataset).of("t2", SOURCE)
    assert (style.dtype, style.range) == (np.int16, pytest.approx(own_range(integers)))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_equally_frequent_types_the_wider_one_is_taken(order, write_dataset):
    both = spread(0.1, 0.9).astype("f4"), np.rint(spread(100, 900)).astype("i2")
    dataset = open_dataset(write_dataset([both[it] for it in order]))
    assert Styles(dataset).of("t2", SOURCE).dtype == np.float32


def test_the_range_is_the_median_of_the_volumes(write_dataset):
    others = [np.rint(spread(low, high)).astype("i2") for low, high in
              ((100, 500), (120, 9000), (300, 700))]  # fmt: skip
    style = Styles(open_dataset(write_dataset(others))).of("t2", SOURCE)
    lows, highs = zip(*(own_range(other) for other in others), strict=True)
    assert style.range == pytest.approx((np.median(lows), np.median(highs)))


def test_every_part_of_a_completion_decides_alike(write_dataset, tiny_settings, tmp_path):
    other = spread(0.1, 0.9).astype("f4")
    root = write_dataset([other, other])
    (root / "C/C_t2.nii.gz").unlink()
    weights = echo_weights(tiny_settings, SOURCE)
    parts = [plan_of(root, tmp_path / "out", weights, part=(part, 3)) for part in (1, 2, 3)]
    styles = [job.styles["t2"] for plan in parts for job in plan.jobs]
    assert len(styles) == 2
    assert styles[0] == styles[1]
    assert styles[0].dtype == np.float32


def test_a_volume_that_cannot_be_read_does_not_count(write_dataset):
    other = spread(0.1, 0.9).astype("f4")
    root = write_dataset([other, np.rint(spread(100, 900)).astype("i2"), other])
    for name in ("B", "D"):
        (root / f"{name}/{name}_t2.nii.gz").write_bytes(b"broken")
    styles = Styles(open_dataset(root))
    assert styles.of("t2", SOURCE).dtype == np.int16
    assert styles.unread("t2") == ["B", "D"]
    assert styles.unread("flair") == []


@pytest.mark.parametrize(
    ("number_type", "low", "high", "agrees"),
    [
        ("int16", 100, 1100, True),
        ("int16", 100.9, 1099.1, True),  # a thousandth of the range is not seen
        ("int16", 98, 1100, False),
        ("int16", 100, 1102, False),
        ("float32", 100, 1100, False),
    ],
)
def test_a_style_agrees_with_what_a_side_car_says(number_type, low, high, agrees):
    style = Style(np.dtype(np.int16), Scale(50.0, 1050.0), background=50.0, own=True)
    assert style.agrees({"number_type": number_type, "range": [low, high]}) == agrees


# --- nobody has the modality ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "trained", "dtype"),
    [
        ("i2", Scale(100, 2000), "int16"),
        ("i2", Scale(0.0, 1.0), "float32"),
        ("i2", Scale(-2.5, 3.5), "float32"),
        ("i2", Scale(0.0, 40000.0), "float32"),
        ("i2", Scale(0.0, LEAST_STEPS), "int16"),
        ("i2", Scale(0.0, LEAST_STEPS - 1), "float32"),
        ("u1", Scale(0.0, 255.0), "uint8"),
        ("u1", Scale(0.0, 2000.0), "int16"),
        ("u1", Scale(-20.0, 200.0), "int16"),
        ("u2", Scale(0.0, 60000.0), "uint16"),
        ("f4", Scale(100, 2000), "float32"),
    ],
)
def test_without_a_volume_of_the_modality_the_range_of_the_weights_chooses_a_type(
    source, trained, dtype, write_dataset
):
    dataset = open_dataset(write_dataset([], source=source))
    style = Styles(dataset).of("t2", trained)
    assert (style.dtype, style.scale, style.own) == (np.dtype(dtype), trained, False)
    assert style.document()["like"] == "the training data"


# --- PNG slices -------------------------------------------------------------------------------------------------------


def write_slices(root: Path, modality: str, case: str, values: np.ndarray) -> None:
    (root / modality).mkdir(parents=True, exist_ok=True)
    for number, slice_ in enumerate(values.transpose(2, 1, 0)):
        Image.fromarray(slice_).save(root / modality / f"{case}_{number:03d}.png")


@pytest.mark.parametrize(("source", "target"), [("u1", "u2"), ("u2", "u1"), ("u1", "u1")])
def test_png_slices_have_the_depth_of_their_modality(source, target, tiny_settings, tmp_path):
    own = np.rint(spread(20, 250 if target == "u1" else 40000)).astype(target)
    for case in ("P1", "P2"):
        write_slices(tmp_path / "in", "flair", case, np.rint(spread(10, 240)).astype(source))
    write_slices(tmp_path / "in", "t2", "P2", own)
    echoed(tmp_path / "in", tmp_path / "out", tiny_settings, SOURCE)
    files = sorted((tmp_path / "out/t2").glob("P1_*.png"))
    assert len(files) == SHAPE[2]
    grid = volumes.read_grid(files)
    assert grid.dtype == np.dtype(target)
    made = np.stack([np.asarray(Image.open(file)) for file in files])
    assert (made[made != 0].min(), made.max()) == pytest.approx(own_range(own), abs=1)


@pytest.mark.parametrize(
    ("trained", "dtype"),
    [(Scale(10.0, 200.0), "uint8"), (Scale(10.0, 2000.0), "uint16"), (Scale(0, 65535), "uint16")],
)
def test_png_slices_of_a_modality_that_nobody_has_hold_the_range_of_the_weights(
    trained, dtype, tmp_path
):
    write_slices(tmp_path / "in", "flair", "P1", np.rint(spread(10, 240)).astype("u1"))
    write_slices(tmp_path / "in", "t1", "P2", np.rint(spread(10, 240)).astype("u1"))
    assert Styles(open_dataset(tmp_path / "in")).of("t2", trained).dtype == np.dtype(dtype)


@pytest.mark.parametrize("trained", [Scale(0.0, 1.0), Scale(-3.0, 300.0), Scale(0.0, 70000.0)])
def test_a_range_that_png_slices_do_not_hold_is_refused(trained, tiny_settings, tmp_path):
    write_slices(tmp_path / "in", "flair", "P1", np.rint(spread(10, 240)).astype("u1"))
    write_slices(tmp_path / "in", "t1", "P2", np.rint(spread(10, 240)).astype("u1"))
    weights = echo_weights(tiny_settings, trained)
    with pytest.raises(AttclError, match="no volume of t2") as caught:
        plan_of(tmp_path / "in", tmp_path / "out", weights, targets=["t2"])
    assert caught.value.code == "range-not-storable"


def test_slices_of_one_volume_are_never_stored_in_two_ways(tiny_settings, tmp_path):
    for case in ("P1", "P2"):
        write_slices(tmp_path / "in", "flair", case, np.rint(spread(10, 240)).astype("u1"))
    write_slices(tmp_path / "in", "t2", "P2", np.rint(spread(20, 40000)).astype("u2"))
    echoed(tmp_path / "in", tmp_path / "out", tiny_settings, SOURCE)
    (tmp_path / "out/t2/P1_004.png").unlink()
    weights = echo_weights(tiny_settings, SOURCE)
    plan = plan_of(tmp_path / "in", tmp_path / "out", weights)
    assert [file.name for file in plan.jobs[0].outputs["t2"]] == ["P1_004.png"]
    write_slices(tmp_path / "in", "t2", "P2", np.rint(spread(20, 250)).astype("u1"))
    with pytest.raises(AttclError, match="slices of P1 are uint16") as caught:
        plan_of(tmp_path / "in", tmp_path / "out", weights)
    assert caught.value.code == "made-in-another-way"
    again = plan_of(tmp_path / "in", tmp_path / "out", weights, overwrite=True)
    assert again.jobs[0].styles["t2"].dtype == np.uint8
