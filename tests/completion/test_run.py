"""Completion's promises: Algorithm 1's files, the case's geometry, resume, and no need for a whole cohort in memory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import fresh_python, states
from PIL import Image

from attcl_cli import __version__
from attcl_cli.completion import inference
from attcl_cli.completion import plan as planning
from attcl_cli.completion import run as complete
from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.errors import AttclError, ProblemsError, UsageError
from attcl_cli.files import sha256
from attcl_cli.methods import weights as checkpoint
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import Weights, WeightsInfo

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).resolve().parents[2]
# Of the four shared phantoms: t2 is there three times, the others twice, so modal_list is t2, flair, t1, t1ce.
LACKING = (("flair", "t2"), ("t1", "t1ce"), (), ("flair", "t1", "t1ce"))
SOURCES = ("t1", "t2", None, "t2")
SCALE = Scale(100.0, 5100.0)


# --- what the tests share ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def weights(trained_run: Path) -> Weights:
    return checkpoint.find_weights(str(trained_run))


@pytest.fixture(scope="session")
def method(weights: Weights) -> Method:
    return checkpoint.load_method(weights, CPU)


class Echo:
    """A method that returns its source, and notes what it was asked for."""

    accepts = "one"

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.slices: list[bytes] = []

    def synthesise(self, sources, targets, *, sample=None):
        ((source, x),) = sources.items()
        self.asked.append((source, tuple(targets)))
        self.slices += [image.numpy().tobytes() for image in x if (image > -1).any()]
        return dict.fromkeys(targets, x)


def echo_weights(settings: Settings, scale: Scale = SCALE) -> Weights:
    """Weights of a method that sees every voxel as it is: slices of 64x64, not averaged down."""
    info = WeightsInfo(
        settings=settings.model_copy(update={"image_size": 64, "canvas": 64}),
        modalities=("flair", "t1", "t1ce", "t2"),
        scales=dict.fromkeys(("flair", "t1", "t1ce", "t2"), scale),
        references={},
        trained_on=(),
        steps=0,
    )
    return Weights(name="echo", path=Path("echo.safetensors"), sha256="0" * 64, info=info)


def completed(
    root: Path | Dataset, output: Path, weights: Weights, method: Method, **options: object
) -> list[complete.Completed]:
    """Plans and runs; options of `run` are told from those of `plan` by name."""
    dataset = root if isinstance(root, Dataset) else open_dataset(root)
    of_run = {key: options.pop(key) for key in ("batch_size", "workers") if key in options}
    plan = planning.plan(dataset, output, weights, **options)
    keep_going = bool(options.get("keep_going"))
    return list(complete.run(plan, method, device=CPU, keep_going=keep_going, **of_run))


def content(root: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file, hidden ones too."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def images(root: Path) -> dict[str, bytes]:
    """`content` of the volumes or slices alone."""
    return {name: data for name, data in content(root).items() if name.endswith((".gz", ".png"))}


def phantom_file(case: int, modality: str) -> str:
    return f"Phantom_{case:05d}/Phantom_{case:05d}_{modality}.nii.gz"


def expected_files(lacking: Iterable[Iterable[str]] = LACKING) -> set[str]:
    """The volumes and labels that completing the shared cohort must give."""
    volumes = {phantom_file(case, name) for case, names in enumerate(lacking) for name in names}
    return volumes | {name.replace(".nii.gz", ".json") for name in volumes}


# --- the oracle -------------------------------------------------------------------------------------------------------


def algorithm_1(
    dataset: Dataset, path_cpl: Path, weights: Weights, method: Method, scratch: Path
) -> None:
    """The paper's Algorithm 1 to the letter: every slice is translated into every modality, and most are thrown away.

    The numbers are the printed lines. Lines 1 and 4 happened in training: E's codes of the reference images are saved.
    """
    counts = {
        name: sum(name in case.files for case in dataset.cases) for name in dataset.modalities
    }
    modal_list = sorted(counts, key=lambda name: (-counts[name], name))
    is_png = dataset.layout.name == "slices"
    settings = weights.info.settings
    sizes = {key: getattr(settings, key) for key in ("image_size", "canvas", "downs")}
    loaded = {
        case.id: volumes.load_case({name: dataset.paths(case, name) for name in case.files})
        for case in dataset.cases
    }
    for modal_src in (
        modal_list
    ):  # "we prioritize translations from the modality with the largest number of images"
        for case in dataset.cases:
            if modal_src not in case.files:
                continue
            source = loaded[case.id].volumes[modal_src].data
            normalised = loaded[case.id].normalised(modal_src)
            for number in range(len(source)):  # 2, 3
                x_src = torch.from_numpy(inference.fit(normalised[number : number + 1], **sizes))
                for target in modal_list:  # 5, 6
                    x_fake = inference.translate(
                        method, {modal_src: x_src[:, None]}, [target], **sizes
                    )  # 7
                    suf = f"{case.id}_{number:03d}"  # 8
                    name = dataset.place(case, target)[number if is_png else 0]
                    if (dataset.root / name).exists():  # 9, 10
                        continue  # 11
                    corr_path_cpl = scratch / target / f"{suf}.npz"  # 13
                    if corr_path_cpl.exists():  # 14
                        continue  # 15
                    pixels = intensities.crop(x_fake[target][0, 0].numpy(), source[number].shape)
                    stored = intensities.denormalise(pixels, weights.info.scales[target])
                    stored[source[number] == 0] = 0
                    corr_path_cpl.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(corr_path_cpl, stored=stored, modal_src=modal_src)  # 17
    for folder in scratch.iterdir():  # slices -> the files of the layout
        target = folder.name
        for case in dataset.cases:
            slices = [np.load(path) for path in sorted(folder.glob(f"{case.id}_*.npz"))]
            if slices:
                volumes.save(
                    [path_cpl / name for name in dataset.place(case, target)],
                    np.stack([item["stored"] for item in slices]),
                    next(iter(loaded[case.id].volumes.values())).grid,
                    description=f"attcl {__version__} synthetic {target} from {slices[0]['modal_src']}",
                )


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_the_planned_run_writes_the_very_files_of_algorithm_1(layout, weights, method, tmp_path):
    lacking = [("flair", "t2"), ("t1", "t1ce"), ("flair", "t1", "t1ce")]
    write_cohort(
        tmp_path / "in", cases=3, layout=layout, voxel_mm=8, missing=lacking, seed=1, workers=1
    )
    dataset = open_dataset(tmp_path / "in")
    algorithm_1(dataset, tmp_path / "paper", weights, method, tmp_path / "scratch")
    completed(dataset, tmp_path / "ours", weights, method)
    paper = images(tmp_path / "paper")
    assert len(paper) == (7 if layout == "brats" else 7 * 20)
    assert images(tmp_path / "ours") == paper


# --- results depend on nothing but the case and the weights -----------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 9},
        {"batch_size": 1000},
        {"workers": 0},
        {"workers": 5},
    ],
    ids=str,
)
def test_batch_size_and_workers_change_no_byte(options, gappy, weights, method, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", weights, method)
    completed(root, tmp_path / "other", weights, method, **options)
    assert content(tmp_path / "other") == content(tmp_path / "plain")


def test_batch_size_and_workers_change_no_byte_of_png_slices(gappy, weights, method, tmp_path):
    root = gappy("slices")
    completed(root, tmp_path / "plain", weights, method, slices=(7, 19))
    completed(root, tmp_path / "other", weights, method, slices=(7, 19), batch_size=1, workers=0)
    assert len(images(tmp_path / "plain")) == 7 * 12
    assert content(tmp_path / "other") == content(tmp_path / "plain")


def test_parts_together_write_what_one_run_writes(gappy, weights, method, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", weights, method)
    made = [
        {item.case for item in completed(root, tmp_path / "parts", weights, method, part=(k, 3))}
        for k in (3, 1, 2)
    ]
    assert sorted(map(len, made)) == [0, 1, 2]
    assert set.union(*made) == {"Phantom_00000", "Phantom_00001", "Phantom_00003"}
    assert content(tmp_path / "parts") == content(tmp_path / "plain")


def test_the_order_of_the_cases_changes_no_byte(gappy, weights, method, tmp_path):
    dataset = open_dataset(gappy())
    completed(dataset, tmp_path / "plain", weights, method)
    plan = planning.plan(dataset, tmp_path / "reversed", weights)
    backwards = dataclasses.replace(plan, jobs=plan.jobs[::-1])
    made = [item.case for item in complete.run(backwards, method, device=CPU)]
    assert made == ["Phantom_00003", "Phantom_00001", "Phantom_00000"]
    assert content(tmp_path / "reversed") == content(tmp_path / "plain")


def test_a_case_alone_gives_what_it_gives_among_others(gappy, weights, method, tmp_path):
    dataset = open_dataset(gappy())
    completed(dataset, tmp_path / "all", weights, method)
    plan = planning.plan(dataset, tmp_path / "one", weights)
    list(complete.run(dataclasses.replace(plan, jobs=plan.jobs[1:2]), method, device=CPU))
    both = content(tmp_path / "one")
    assert len(both) == 4
    assert both.items() <= content(tmp_path / "all").items()


def test_two_plans_made_at_once_end_with_the_bytes_of_one(gappy, weights, method, tmp_path):
    dataset = open_dataset(gappy())
    completed(dataset, tmp_path / "plain", weights, method)
    plans = [planning.plan(dataset, tmp_path / "both", weights) for _ in range(2)]
    for steps in zip(*(complete.run(plan, method, device=CPU) for plan in plans), strict=True):
        assert len({item.case for item in steps}) == 1
    assert content(tmp_path / "both") == content(tmp_path / "plain")


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_source_is_the_most_frequent_modality_that_the_case_has(gappy, weights, tmp_path):
    plan = planning.plan(open_dataset(gappy()), tmp_path / "out", weights)
    assert plan.modal_list == ("t2", "flair", "t1", "t1ce")
    assert {job.case.id: job.source for job in plan.jobs} == {
        f"Phantom_{case:05d}": source for case, source in enumerate(SOURCES) if source
    }


def test_the_plan_holds_what_is_missing_and_nothing_else(gappy, weights, tmp_path):
    plan = planning.plan(open_dataset(gappy()), tmp_path / "out", weights)
    files = {str(file) for job in plan.jobs for files in job.outputs.values() for file in files}
    assert files == {name for name in expected_files() if name.endswith(".gz")}
    assert (plan.volumes, plan.done) == (7, 0)
    assert not (tmp_path / "out").exists()


def test_a_whole_dataset_leaves_nothing_to_plan(phantom_root, weights, tmp_path):
    plan = planning.plan(open_dataset(phantom_root), tmp_path / "out", weights)
    assert (plan.jobs, plan.volumes, plan.done) == ((), 0, 0)


def test_target_limits_the_plan_to_these_modalities(gappy, weights, tmp_path):
    plan = planning.plan(open_dataset(gappy()), tmp_path / "out", weights, targets=["t1", "t2"])
    assert [(job.case.id[-1], list(job.outputs)) for job in plan.jobs] == [
        ("0", ["t2"]),
        ("1", ["t1"]),
        ("3", ["t1"]),
    ]


def test_parts_share_the_cases_without_overlap(gappy, weights, tmp_path):
    dataset = open_dataset(gappy())
    parts = [
        [job.case.id for job in planning.plan(dataset, tmp_path, weights, part=(k, 2)).jobs]
        for k in (1, 2)
    ]
    assert parts == [["Phantom_00000"], ["Phantom_00001", "Phantom_00003"]]


def test_volumes_that_lie_in_the_output_count_as_done(gappy, weights, method, tmp_path):
    root = gappy()
    completed(root, tmp_path / "out", weights, method, targets=["t1"])
    plan = planning.plan(open_dataset(root), tmp_path / "out", weights)
    assert (plan.volumes, plan.done) == (5, 2)


def test_the_network_sees_each_filled_slice_of_a_source_once(gappy, tiny_settings, tmp_path):
    root = gappy()
    echo = Echo()
    completed(root, tmp_path / "out", echo_weights(tiny_settings), echo)
    filled = {}
    for case, source in enumerate(SOURCES):
        if source:
            data = nib.load(root / phantom_file(case, source)).get_fdata()
            filled[case] = int((data != 0).any(axis=(0, 1)).sum())
    assert len(echo.slices) == sum(filled.values())
    calls = [
        (SOURCES[case], LACKING[case])
        for case in filled
        for _ in range(-(-filled[case] // inference.slices_a_call(16, torch.device("cpu"))))
    ]
    assert echo.asked == calls


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_the_network_sees_only_the_slices_that_are_asked_for(
    layout, gappy, tiny_settings, tmp_path
):
    echo = Echo()
    root = gappy(layout, [("t2",), (), (), ()])
    completed(root, tmp_path / "out", echo_weights(tiny_settings), echo, slices=(10, 13))
    assert len(echo.slices) == 3


def test_of_png_slices_only_those_that_are_gone_are_made_again(gappy, tiny_settings, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    completed(root, tmp_path / "out", echo_weights(tiny_settings), Echo())
    before = states(tmp_path / "out")
    gone = "t2/Phantom00000_012.png"
    (tmp_path / "out" / gone).unlink()
    echo = Echo()
    completed(root, tmp_path / "out", echo_weights(tiny_settings), echo)
    after = states(tmp_path / "out")
    assert len(echo.slices) == 1
    assert after[gone][1] == before[gone][1]
    assert {name for name in after if after[name] != before[name]} - {"t2"} <= {
        gone,
        "t2/Phantom00000.json",
    }


# --- slices -----------------------------------------------------------------------------------------------------------


def test_slices_that_are_not_asked_for_stay_zero_in_a_volume(gappy, weights, method, tmp_path):
    root = gappy("brats", [("t2",), (), (), ()])
    completed(root, tmp_path / "all", weights, method)
    completed(root, tmp_path / "some", weights, method, slices=(10, 13))
    whole, some = (
        nib.load(tmp_path / folder / phantom_file(0, "t2")).get_fdata()
        for folder in ("all", "some")
    )
    assert (some[:, :, 10:13] == whole[:, :, 10:13]).all()
    assert some[:, :, 10:13].any()
    some[:, :, 10:13] = 0
    assert not some.any()


def test_slices_that_are_not_asked_for_are_not_written_as_png(gappy, weights, method, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    completed(root, tmp_path / "all", weights, method)
    completed(root, tmp_path / "some", weights, method, slices=(10, 13))
    some, whole = images(tmp_path / "some"), images(tmp_path / "all")
    assert list(some) == [f"t2/Phantom00000_{number:03d}.png" for number in (10, 11, 12)]
    assert some.items() <= whole.items()


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_slices_beyond_the_volume_are_refused(layout, gappy, weights, tmp_path):
    with pytest.raises(UsageError, match=r"--slices: 26:30.*Phantom.*26 slices"):
        root = gappy(layout, [("t2",), (), (), ()])
        planning.plan(open_dataset(root), tmp_path / "out", weights, slices=(26, 30))


# --- geometry and intensities -----------------------------------------------------------------------------------------


OBLIQUE = np.array(
    [[0.9, -0.3, 0.1, -40], [0.3, 0.9, 0.2, -50], [-0.1, -0.2, 2.4, 7], [0, 0, 0, 1]]
)
GEOMETRIES = {
    "as BraTS": {},
    "RAS, anisotropic": {"affine": np.diag([0.8, 0.9, 3.0, 1])},
    "sagittal": {"affine": np.array([[0, 0, 2.5, 0], [-1, 0, 0, 9], [0, -1, 0, 9], [0, 0, 0, 1]])},
    "oblique, sform only": {"affine": OBLIQUE, "codes": (0, 2)},
    "both codes, unknown units": {"affine": OBLIQUE, "codes": (3, 4), "units": ("unknown", "unknown")},
    "qform only, floats": {"codes": (1, 0), "dtype": np.float32},
    "unsigned bytes": {"dtype": np.uint8},
    "big-endian": {"dtype": np.dtype(">i2")},
    "NIfTI-2": {"image": nib.Nifti2Image},
    "not compressed": {"ending": ".nii"},
}  # fmt: skip


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_output_has_the_geometry_of_its_case(name, write_nifti, tiny_settings, tmp_path):
    options = dict(GEOMETRIES[name])
    ending = options.pop("ending", ".nii.gz")
    dtype = np.dtype(options.get("dtype", np.int16))
    values = np.random.default_rng(3).integers(0, 200, (9, 11, 7))
    original = write_nifti(tmp_path / f"in/A/A_flair{ending}", values.astype(dtype), **options)
    # another case shows the layout's other modalities
    for modality in ("flair", "t1", "t1ce", "t2"):
        write_nifti(tmp_path / f"in/B/B_{modality}.nii.gz", values.astype(np.int16))
    scale = Scale(10.0, 200.0)
    completed(tmp_path / "in", tmp_path / "out", echo_weights(tiny_settings, scale), Echo())
    wanted, got = nib.load(original), nib.load(tmp_path / f"out/A/A_t2{ending}")
    assert got.shape == wanted.shape
    assert type(got) is type(wanted)
    assert np.array_equal(got.affine, wanted.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(got.header[field], wanted.header[field]), field
    assert got.get_data_dtype() == dtype.newbyteorder("=") or got.get_data_dtype() == dtype
    assert ((np.asanyarray(got.dataobj) == 0) == (values == 0)).all()
    assert got.header["descrip"].item().decode() == f"attcl {__version__} synthetic t2 from flair"


def test_a_case_stored_in_another_orientation_is_completed_to_the_same_image(
    write_nifti, weights, method, tmp_path
):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (20, 24, 10)).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([-2.0, -2, 3, 1]))
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "R")))
    for number, stored in enumerate((image, turned)):
        root = tmp_path / f"in{number}"
        write_nifti(root / "A/A_flair.nii.gz", np.asanyarray(stored.dataobj), affine=stored.affine)
        completed(root, tmp_path / f"out{number}", weights, method, targets=["t1"])
    straight, sideways = (
        nib.as_closest_canonical(nib.load(tmp_path / f"out{number}/A/A_t1.nii.gz"))
        for number in (0, 1)
    )
    assert straight.get_fdata().any()
    assert (straight.get_fdata() == sideways.get_fdata()).all()
    assert np.allclose(straight.affine, sideways.affine)


def test_intensities_are_brought_to_the_scale_of_the_target(gappy, tiny_settings, tmp_path):
    root = gappy("brats", [("t2",), (), (), ()])
    completed(root, tmp_path / "out", echo_weights(tiny_settings, SCALE), Echo())
    source = nib.load(root / phantom_file(0, "flair")).get_fdata()
    brain = np.any(
        [nib.load(root / phantom_file(0, m)).get_fdata() for m in ("flair", "t1", "t1ce")], axis=0
    )
    low, high = np.percentile(source[brain], [0.5, 99.5])
    unit = (np.clip(source, low, high) - low) / (high - low)
    expected = SCALE.low + unit * (SCALE.high - SCALE.low)
    expected[source == 0] = 0
    got = nib.load(tmp_path / "out" / phantom_file(0, "t2"))
    assert got.get_data_dtype() == np.int16
    assert np.abs(got.get_fdata() - expected).max() < 0.51  # rounding to integers, and float32


def test_voxels_that_are_zero_in_the_source_stay_zero_and_the_others_stay_in_scale(
    gappy, weights, method, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "out", weights, method)
    for case, source in enumerate(SOURCES):
        for target in LACKING[case]:
            inside = nib.load(root / phantom_file(case, source)).get_fdata() != 0
            made = nib.load(tmp_path / "out" / phantom_file(case, target)).get_fdata()
            scale = weights.info.scales[target]
            assert not made[~inside].any()
            assert made[inside].std() > 0
            assert round(scale.low) <= made[inside].min()
            assert made[inside].max() <= round(scale.high)


def test_intensities_beyond_the_range_of_the_type_are_stored_in_a_wider_one(
    write_nifti, tiny_settings, tmp_path
):
    values = np.random.default_rng(3).integers(0, 200, (9, 11, 7)).astype(np.uint8)
    write_nifti(tmp_path / "in/A/A_flair.nii.gz", values)
    for high, dtype in ((5000.0, np.int16), (90000.0, np.float32)):
        out = tmp_path / f"out{high}"
        weights = echo_weights(tiny_settings, Scale(0.0, high))
        completed(tmp_path / "in", out, weights, Echo(), targets=["t1"])
        made = nib.load(out / "A/A_t1.nii.gz")
        assert made.get_data_dtype() == dtype
        assert made.get_fdata().max() == high


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_side_car_says_that_the_volume_is_synthetic_and_where_it_comes_from(
    gappy, weights, method, tmp_path
):
    completed(gappy(), tmp_path / "out", weights, method)
    label = json.loads((tmp_path / "out/Phantom_00001/Phantom_00001_t1ce.json").read_text())
    assert label.pop("note").startswith("Synthesised by attcl")
    assert label == {
        "synthetic": True,
        "target": "t1ce",
        "source": {"modality": "t2", "files": [phantom_file(1, "t2")]},
        "slices": "all",
        "samples": 0,
        "uncertainty": False,
        "method": "attcl-gan",
        "weights": {"name": weights.name, "sha256": sha256(weights.path)},
        "seed": weights.info.settings.seed,
        "attcl_version": __version__,
    }


def test_png_slices_carry_the_label_as_text_and_one_side_car_a_volume(
    gappy, weights, method, tmp_path
):
    completed(gappy("slices"), tmp_path / "out", weights, method, slices=(10, 12))
    with Image.open(tmp_path / "out/t1ce/Phantom00001_011.png") as image:
        assert image.text["Description"] == f"attcl {__version__} synthetic t1ce from t2"
        assert (image.mode, image.size) == ("I;16", (40, 40))
    labels = sorted(name for name in content(tmp_path / "out") if name.endswith(".json"))
    assert labels == sorted(
        f"{name}/Phantom{case:05d}.json" for case, names in enumerate(LACKING) for name in names
    )
    label = json.loads((tmp_path / "out/t1ce/Phantom00001.json").read_text())
    assert (label["target"], label["slices"]) == ("t1ce", [10, 12])


# --- running again ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(gappy, trained_run, attcl, tmp_path) -> Mapping[str, Path]:
    """A dataset that was completed by the command line."""
    root = gappy()
    code, _, err = attcl("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", trained_run)
    assert code == 0, err
    return {"ori": root, "cpl": tmp_path / "out"}


def again(attcl, finished, trained_run, *options: object) -> tuple[int, str, str]:
    return attcl(
        "complete", "--ori", finished["ori"], "--cpl", finished["cpl"], "-w", trained_run, *options
    )


def test_a_finished_output_holds_the_volumes_their_labels_and_run_json(finished):
    assert set(content(finished["cpl"])) == expected_files() | {"run.json"}


def test_a_dataset_without_holes_is_told_apart_from_a_finished_output(
    phantom_root, attcl, trained_run, tmp_path
):
    code, out, _ = attcl(
        "complete", "--ori", phantom_root, "--cpl", tmp_path / "out", "-w", trained_run
    )
    assert (code, out) == (0, f"{phantom_root}: no volume asked for is missing, nothing to do\n")


def test_running_again_touches_nothing_and_says_so(finished, attcl, trained_run):
    before = states(finished["cpl"])
    code, out, _ = again(attcl, finished, trained_run)
    assert (code, "nothing to do, 7 volumes are there already" in out) == (0, True)
    assert states(finished["cpl"]) == before


def test_running_again_finds_nothing_to_do_with_png_slices(gappy, weights, method, tmp_path):
    root = gappy("slices")
    completed(root, tmp_path / "out", weights, method, slices=(10, 12))
    plan = planning.plan(open_dataset(root), tmp_path / "out", weights, slices=(10, 12))
    assert (plan.jobs, plan.done) == ((), 7)


def test_a_deleted_output_is_made_again_and_nothing_else(finished, attcl, trained_run):
    before = states(finished["cpl"])
    gone = phantom_file(3, "t1")
    (finished["cpl"] / gone).unlink()
    code, out, _ = again(attcl, finished, trained_run)
    assert (code, "1 volumes written, 6 were there already" in out) == (0, True)
    after = states(finished["cpl"])
    assert {name: data for name, (_, data) in after.items() if name != "run.json"} == {
        name: data for name, (_, data) in before.items() if name != "run.json"
    }
    touched = {name for name in after if after[name][0] != before[name][0]}
    assert touched == {gone, gone.replace(".nii.gz", ".json"), "Phantom_00003", "run.json"}


def test_originals_keep_their_bytes_and_times(gappy, weights, method, tmp_path):
    root = gappy()
    before = states(root)
    completed(root, tmp_path / "out", weights, method)
    assert states(root) == before


@pytest.fixture
def other_weights(store, tiny_settings, tmp_path) -> Path:
    """The run of another seed."""
    from attcl_cli.training.trainer import train

    settings = tiny_settings.model_copy(update={"seed": 1, "steps": 1})
    run_dir = tmp_path / "other-run"
    run_dir.mkdir()
    train(settings, store, run_dir, device=CPU)
    return run_dir


def test_results_of_other_weights_are_not_taken_for_done(finished, attcl, other_weights):
    before = states(finished["cpl"])
    code, _, err = again(attcl, finished, other_weights)
    lines = err.splitlines()
    assert code == 1
    assert lines[0].startswith(
        f"error: {finished['cpl']}/Phantom_00000/Phantom_00000_flair.nii.gz: made by weights"
    )
    assert lines[1].startswith("hint: choose another --cpl")
    assert states(finished["cpl"]) == before


@pytest.mark.parametrize("layout", ["brats", "slices"])
@pytest.mark.parametrize("slices", [(8, 12), (14, 16)], ids=["overlapping", "apart"])
def test_results_of_other_slices_are_not_taken_for_done(
    layout, slices, gappy, weights, method, tmp_path
):
    root = gappy(layout, [("t2",), (), (), ()])
    completed(root, tmp_path / "out", weights, method, slices=(10, 13))
    before = states(tmp_path / "out")
    with pytest.raises(AttclError, match=r"_t2|t2/.*made with --slices \[10, 13\]"):
        planning.plan(open_dataset(root), tmp_path / "out", weights, slices=slices)
    assert states(tmp_path / "out") == before


def test_overwrite_makes_all_again_with_other_weights(finished, attcl, other_weights, tmp_path):
    code, out, _ = again(attcl, finished, other_weights, "--overwrite")
    assert (code, "7 volumes written, 0 were there already" in out) == (0, True)
    fresh = {"ori": finished["ori"], "cpl": tmp_path / "fresh"}
    assert again(attcl, fresh, other_weights)[0] == 0
    redone, anew = (content(folder["cpl"]) for folder in (finished, fresh))
    redone.pop("run.json"), anew.pop("run.json")
    assert redone == anew


def test_overwrite_with_other_slices_leaves_no_older_slice_under_the_new_label(
    gappy, weights, method, tmp_path
):
    root = gappy("slices", [("t2",), (), (), ()])
    completed(root, tmp_path / "out", weights, method, slices=(10, 13))
    completed(root, tmp_path / "out", weights, method, slices=(12, 14), overwrite=True)
    assert [name[-7:-4] for name in images(tmp_path / "out")] == ["012", "013"]


def test_an_image_never_stands_under_the_label_of_other_weights(
    finished, weights, method, other_weights, monkeypatch
):
    """Not even when a run with --overwrite stops between the label and the image."""
    other = checkpoint.find_weights(str(other_weights))

    def full(*_args: object, **_options: object) -> None:
        raise AttclError("disk full")

    monkeypatch.setattr(volumes, "save", full)
    with pytest.raises(AttclError, match="disk full"):
        completed(finished["ori"], finished["cpl"], other, method, overwrite=True)
    for label in finished["cpl"].rglob("*_*.json"):
        made_by_other = json.loads(label.read_text())["weights"]["sha256"] == other.sha256
        assert label.with_suffix(".nii.gz").exists() != made_by_other


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_attcl_did_not_make_is_never_replaced(
    overwrite, gappy, weights, method, phantom_root, tmp_path
):
    root = gappy()
    stranger = tmp_path / "out" / phantom_file(0, "t2")
    stranger.parent.mkdir(parents=True)
    shutil.copyfile(phantom_root / phantom_file(0, "t2"), stranger)
    before = states(tmp_path / "out")
    with pytest.raises(AttclError, match=r"Phantom_00000_t2.nii.gz: has no label") as found:
        completed(root, tmp_path / "out", weights, method, overwrite=overwrite)
    assert "--cpl" in found.value.hint
    assert "--overwrite" not in found.value.hint
    assert states(tmp_path / "out") == before


def test_a_broken_result_is_refused_and_overwrite_mends_it(finished, weights, method):
    broken = finished["cpl"] / phantom_file(0, "t2")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    with pytest.raises(AttclError, match=r"Phantom_00000_t2.nii.gz") as found:
        planning.plan(open_dataset(finished["ori"]), finished["cpl"], weights)
    assert "--overwrite" in found.value.hint
    completed(finished["ori"], finished["cpl"], weights, method, overwrite=True)
    assert broken.read_bytes() == whole


# --- kills and interruptions ------------------------------------------------------------------------------------------

# Forks a process for each moment, which completes into a folder of its own and is killed at its n-th fsync: of the two
# that a file takes, the first lies between writing and renaming it, the second after that.
_KILLED = """
import os, signal, sys
from attcl_cli.cli import complete  # once, not in every process
from attcl_cli.cli.app import main
ori, weights, cpl, *moments = sys.argv[1:]
for moment in map(int, moments):
    child = os.fork()
    if not child:
        real, seen = os.fsync, 0
        def fsync(handle):
            global seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)
        os.fsync = fsync
        main(["complete", "--ori", ori, "--cpl", f"{cpl}-{moment}", "-w", weights, "-d", "cpu", "-q"])
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
_TWO_AT_ONCE = """
import os, sys
from attcl_cli.cli import complete
from attcl_cli.cli.app import main
ori, weights, cpl = sys.argv[1:]
children = []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        main(["complete", "--ori", ori, "--cpl", cpl, "-w", weights, "-d", "cpu", "-q"])
for child in children:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def outputs(folder: Path) -> dict[str, bytes]:
    """`content` but run.json, which holds times."""
    return {name: data for name, data in content(folder).items() if name != "run.json"}


@needs_fork
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([1, 2, 3, 5, 8, 13, 18], id="some"),
        pytest.param(list(range(1, 33)), id="all", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_is_finished_by_running_it_again(
    moments, gappy, attcl, trained_run, weights, method, tmp_path
):
    root = gappy()
    before = states(root)
    completed(root, tmp_path / "undisturbed", weights, method)
    undisturbed = outputs(tmp_path / "undisturbed")
    told = fresh_python("-c", _KILLED, root, trained_run, tmp_path / "killed", *moments)
    assert told.splitlines() == [f"{moment} {-9}" for moment in moments]
    temporary = 0
    for moment in moments:
        out = tmp_path / f"killed-{moment}"
        left = outputs(out)
        whole = {name: data for name, data in left.items() if not name.endswith(".attcl-tmp")}
        temporary += len(left) - len(whole)
        assert whole.items() <= undisturbed.items()
        for name in images(out):  # an image without its label never exists
            assert name.replace(".nii.gz", ".json") in whole
        code, *_ = attcl("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu")
        assert code == 0
        assert outputs(out) == undisturbed
        assert json.loads((out / "run.json").read_text())["status"] == "done"
    assert temporary > 0  # else the kills came too late to mean anything
    assert states(root) == before


@needs_fork
def test_two_runs_at_once_on_one_output_do_no_harm(gappy, trained_run, weights, method, tmp_path):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights, method)
    told = fresh_python("-c", _TWO_AT_ONCE, root, trained_run, tmp_path / "both")
    assert told.splitlines()[-2:] == ["0", "0"]
    assert outputs(tmp_path / "both") == outputs(tmp_path / "undisturbed")
    assert json.loads((tmp_path / "both/run.json").read_text())["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_command_killed_from_outside_is_finished_by_running_it_again(
    count, gappy, attcl, trained_run, weights, method, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights, method)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "attcl_cli", "complete", "--ori", root, "--cpl", out]
    process = subprocess.Popen(
        [*map(str, command), "-w", str(trained_run), "-d", "cpu"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(out.rglob("*.nii.gz"))) < count:
        time.sleep(0.001)
    process.kill()
    process.wait()
    code, *_ = attcl("complete", "--ori", root, "--cpl", out, "-w", trained_run, "-d", "cpu")
    assert code == 0
    assert outputs(out) == outputs(tmp_path / "undisturbed")


def test_control_c_keeps_what_is_finished_and_says_how_to_go_on(
    gappy, attcl, trained_run, weights, method, monkeypatch, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "undisturbed", weights, method)
    undisturbed = outputs(tmp_path / "undisturbed")
    real = complete._translate

    def interrupted(plan, method, job, *rest):
        if job.case.id == "Phantom_00003":
            raise KeyboardInterrupt
        return real(plan, method, job, *rest)

    arguments = ("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", trained_run)
    with monkeypatch.context() as patch:
        patch.setattr(complete, "_translate", interrupted)
        code, _, err = attcl(*arguments)
    assert code == 130
    assert "error: interrupted" in err
    assert "hint: run the same command again" in err
    assert set(outputs(tmp_path / "out")) == {n for n in undisturbed if "Phantom_00003" not in n}
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert (run["status"], run["exit_code"]) == ("stopped", 130)
    assert attcl(*arguments)[0] == 0
    assert outputs(tmp_path / "out") == undisturbed


# --- cases that fail --------------------------------------------------------------------------------------------------


@pytest.fixture
def one_bad(gappy) -> Path:
    """Case 1 cannot be read to its end."""
    root = gappy()
    bad = root / phantom_file(1, "t2")
    bad.write_bytes(bad.read_bytes()[:-300])
    return root


def test_by_default_one_bad_case_keeps_all_from_starting(one_bad, attcl, trained_run, tmp_path):
    code, out, err = attcl(
        "complete", "--ori", one_bad, "--cpl", tmp_path / "out", "-w", trained_run
    )
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {one_bad / phantom_file(1, 't2')}: ")
    assert not (tmp_path / "out").exists()


def test_the_record_of_a_second_run_tells_of_the_volumes_that_were_there(
    gappy, attcl, trained_run, tmp_path
):
    out = tmp_path / "out"
    arguments = ("complete", "--ori", gappy(), "--cpl", out, "-w", trained_run)
    assert attcl(*arguments)[0] == 0

    def told() -> dict[str, tuple[str, list[str]]]:
        cases = json.loads((out / "run.json").read_text())["cases"]
        assert len({case["id"] for case in cases}) == len(cases)
        return {case["id"]: (case["status"], sorted(case["outputs"])) for case in cases}

    first = told()
    (out / phantom_file(3, "t1ce")).unlink()
    assert attcl(*arguments)[0] == 0
    second = told()
    assert {name: outputs for name, (_, outputs) in second.items()} == {
        name: outputs for name, (_, outputs) in first.items()
    }
    assert {name: status for name, (status, _) in second.items()} == {
        "Phantom_00000": "present",
        "Phantom_00001": "present",
        "Phantom_00003": "done",
    }


def test_keep_going_does_the_sound_cases_and_exits_with_3(one_bad, attcl, trained_run, tmp_path):
    out = tmp_path / "out"
    arguments = ("complete", "--ori", one_bad, "--cpl", out, "-w", trained_run, "--keep-going")
    code, _, err = attcl(*arguments)
    assert code == 3
    assert f"error: {one_bad / phantom_file(1, 't2')}: " in err
    assert set(outputs(out)) == {name for name in expected_files() if "Phantom_00001" not in name}
    run = json.loads((out / "run.json").read_text())
    cases = {record["id"]: record for record in run["cases"]}
    assert {name: record["status"] for name, record in cases.items()} == {
        "Phantom_00000": "done",
        "Phantom_00001": "failed",
        "Phantom_00003": "done",
    }
    assert phantom_file(1, "t2") in cases["Phantom_00001"]["error"]
    assert (run["status"], run["exit_code"]) == ("incomplete", 3)


@pytest.mark.parametrize("stage", ["_prepare", "_translate", "_write"])
def test_a_case_that_fails_on_the_way_stops_the_run_or_is_passed_over(
    stage, gappy, weights, method, monkeypatch, tmp_path
):
    root = gappy()
    real = getattr(complete, stage)

    def failing(*arguments):
        job = next(item for item in arguments if isinstance(item, planning.Job))
        if job.case.id == "Phantom_00001":
            raise AttclError("Phantom_00001: lost, expected it")
        return real(*arguments)

    monkeypatch.setattr(complete, stage, failing)
    with pytest.raises(AttclError, match="Phantom_00001: lost"):
        completed(root, tmp_path / "stopped", weights, method)
    assert phantom_file(0, "t2") in content(tmp_path / "stopped")  # what was finished stays
    made = completed(root, tmp_path / "going", weights, method, keep_going=True)
    assert sorted((item.case[-1], len(item.outputs), str(item.error or "")) for item in made) == [
        ("0", 2, ""),
        ("1", 0, "Phantom_00001: lost, expected it"),
        ("3", 3, ""),
    ]


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_keep_going_fails_a_case_with_two_files_for_one_modality(layout, gappy, weights, tmp_path):
    """Which of the two is meant, nobody can know: neither may be used in silence."""
    root = gappy(layout)
    file = root / (phantom_file(1, "flair") if layout == "brats" else "flair/Phantom00001_003.png")
    twin = file.with_name(file.name.replace("flair", "FLAIR").replace("_003", "_3"))
    shutil.copyfile(file, twin)
    plan = planning.plan(open_dataset(root), tmp_path / "out", weights, keep_going=True)
    assert [job.case.id[-1] for job in plan.jobs] == ["0", "3"]
    (error,) = plan.failed.values()
    assert "a second file for flair" in error.message


def test_keep_going_counts_a_case_without_any_modality_as_failed(gappy, weights, tmp_path):
    root = gappy("brats", [("t2",), (), (), ("flair", "t1", "t1ce", "t2")])
    plan = planning.plan(open_dataset(root), tmp_path / "out", weights, keep_going=True)
    assert [job.case.id for job in plan.jobs] == ["Phantom_00000"]
    (error,) = plan.failed.values()
    assert "Phantom_00003: a case with no modality" in error.message


def test_all_problems_of_all_cases_are_told_together(gappy, weights, tmp_path):
    root = gappy()
    for case, modality in ((0, "t1"), (1, "t2"), (3, "t2")):
        (root / phantom_file(case, modality)).write_bytes(b"")
    with pytest.raises(ProblemsError) as found:
        planning.plan(open_dataset(root), tmp_path / "out", weights)
    assert [problem.message.split(":")[0] for problem in found.value.problems] == [
        str(root / phantom_file(case, modality))
        for case, modality in ((0, "t1"), (1, "t2"), (3, "t2"))
    ]


# --- links ------------------------------------------------------------------------------------------------------------


def test_link_originals_makes_the_output_a_complete_dataset(gappy, attcl, trained_run, tmp_path):
    root = gappy()
    arguments = ("complete", "--ori", root, "--cpl", tmp_path / "out", "-w", trained_run)
    assert attcl(*arguments, "--link-originals")[0] == 0
    whole = open_dataset(tmp_path / "out")
    assert [whole.missing(case) for case in whole.cases] == [()] * 4
    assert [bool(case.segmentation) for case in whole.cases] == [True] * 4
    linked = [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert {path.resolve() for path in linked} == set(root.rglob("*.nii.gz"))
    before = states(tmp_path / "out")
    assert attcl(*arguments, "--link-originals")[0] == 0
    assert states(tmp_path / "out") == before


def test_links_are_never_put_among_the_originals(gappy, weights, tmp_path):
    root = gappy("brats", [(), (), ("t2",), ()])
    before = states(root)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/Phantom_00000").symlink_to(root / "Phantom_00001")
    with pytest.raises(AttclError, match="leads out of"):
        complete.link_originals(open_dataset(root), tmp_path / "out")
    assert states(root) == before


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["_prepare", "_write", None])
def test_memory_holds_a_handful_of_cases_however_many_there_are(
    slow, write_nifti, tiny_settings, monkeypatch, tmp_path
):
    values = np.random.default_rng(3).integers(0, 200, (9, 11, 7)).astype(np.int16)
    for case in range(24):
        write_nifti(tmp_path / f"in/A{case:02d}/A{case:02d}_flair.nii.gz", values)
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = []

    class Noted(inference.Prepared):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(inference, "Prepared", Noted)
    if slow:
        real = getattr(complete, slow)
        monkeypatch.setattr(
            complete, slow, lambda *arguments: (time.sleep(0.01), real(*arguments))[1]
        )
    workers = 2
    made = completed(
        tmp_path / "in", tmp_path / "out", echo_weights(tiny_settings), Echo(), workers=workers
    )
    assert len(made) == len(most) == 24
    # read ahead, in the network, in the writers and waiting for one
    assert max(most) <= workers + 1 + complete._WRITERS + 2
