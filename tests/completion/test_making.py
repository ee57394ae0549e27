"""Making volumes: Algorithm 1's files, independence of batches and order, geometry, intensities, side-cars, memory."""

from __future__ import annotations

import json
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from completers import (
    CPU,
    FOUR,
    LACKING,
    SCALE,
    SOURCES,
    Failing,
    completed,
    content,
    echoed,
    images,
    make,
    own_scale,
    phantom_file,
    plan_of,
)
from helpers import states
from PIL import Image

from attcl_cli import __version__
from attcl_cli.completion import inference, linking, making, preparation
from attcl_cli.completion.run import complete
from attcl_cli.completion.styles import Styles
from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.intensities import Scale
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.errors import AttclError
from attcl_cli.files import sha256
from attcl_cli.methods.base import Method
from attcl_cli.methods.weights import Weights

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
    # "we prioritize translations from the modality with the largest number of images"
    modal_list = sorted(counts, key=lambda name: (-counts[name], name))
    is_png = dataset.layout.name == "slices"
    styles = Styles(dataset)
    loaded = {
        case.id: volumes.load_case({name: dataset.paths(case, name) for name in case.files})
        for case in dataset.cases
    }
    for modal_src in modal_list:
        for case in dataset.cases:
            if modal_src not in case.files:
                continue
            source = loaded[case.id].volumes[modal_src].data
            normalised = loaded[case.id].normalised(modal_src)
            for number in range(len(source)):  # 2, 3
                x_src = torch.from_numpy(
                    preparation.fit(
                        normalised[number : number + 1], method.settings, stride=method.stride
                    )
                )
                for target in modal_list:  # 5, 6
                    x_fake = inference.translate(method, {modal_src: x_src[:, None]}, [target])  # 7
                    suf = f"{case.id}_{number:03d}"  # 8
                    name = dataset.place(case, target)[number if is_png else 0]
                    if (dataset.root / name).exists():  # 9, 10
                        continue  # 11
                    corr_path_cpl = scratch / target / f"{suf}.npz"  # 13
                    if corr_path_cpl.exists():  # 14
                        continue  # 15
                    pixels = intensities.crop(x_fake[target][0, 0].numpy(), source[number].shape)
                    scale = styles.of(target, weights.info.scales[target]).scale
                    stored = intensities.denormalise(pixels, scale)
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
    completed(dataset, tmp_path / "ours", weights)
    paper = images(tmp_path / "paper")
    assert len(paper) == (7 if layout == "brats" else 7 * 20)
    assert images(tmp_path / "ours") == paper


# --- results depend on nothing but the case and the weights -----------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 9}, {"batch_size": 1000}, {"workers": 0}, {"workers": 5}],
    ids=str,
)
def test_batch_size_and_workers_change_no_byte(options, gappy, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", weights)
    completed(root, tmp_path / "other", weights, **options)
    assert content(tmp_path / "other") == content(tmp_path / "plain")


def test_batch_size_and_workers_change_no_byte_of_png_slices(gappy, weights, tmp_path):
    root = gappy("slices")
    completed(root, tmp_path / "plain", weights, slices=(7, 19))
    completed(root, tmp_path / "other", weights, slices=(7, 19), batch_size=1, workers=0)
    assert len(images(tmp_path / "plain")) == 7 * 12
    assert content(tmp_path / "other") == content(tmp_path / "plain")


def test_parts_together_write_what_one_run_writes(gappy, weights, tmp_path):
    root = gappy()
    completed(root, tmp_path / "plain", weights)
    cases = [
        {item.case for item in completed(root, tmp_path / "parts", weights, part=(k, 3))}
        for k in (3, 1, 2)
    ]
    assert sorted(map(len, cases)) == [0, 1, 2]
    assert set.union(*cases) == {"Phantom_00000", "Phantom_00001", "Phantom_00003"}
    assert content(tmp_path / "parts") == content(tmp_path / "plain")


def test_the_order_of_the_cases_changes_no_byte(gappy, weights, tmp_path):
    dataset = open_dataset(gappy())
    completed(dataset, tmp_path / "plain", weights)
    plan = plan_of(dataset, tmp_path / "reversed", weights)
    cases = [item.case for item in make(replace(plan, jobs=plan.jobs[::-1]))]
    assert cases == ["Phantom_00003", "Phantom_00001", "Phantom_00000"]
    assert content(tmp_path / "reversed") == content(tmp_path / "plain")


def test_a_case_alone_gives_what_it_gives_among_others(gappy, weights, tmp_path):
    dataset = open_dataset(gappy())
    completed(dataset, tmp_path / "all", weights)
    plan = plan_of(dataset, tmp_path / "one", weights)
    make(replace(plan, jobs=plan.jobs[1:2]))
    both = content(tmp_path / "one")
    assert len(both) == 4
    assert both.items() <= content(tmp_path / "all").items()


def test_two_plans_made_at_once_end_with_the_bytes_of_one(gappy, weights, method, tmp_path):
    dataset = open_dataset(gappy())
    completed(dataset, tmp_path / "plain", weights)
    plans = [plan_of(dataset, tmp_path / "both", weights) for _ in range(2)]
    methods = {weights.sha256: method}
    both = (making.make_volumes(plan, methods, device=CPU) for plan in plans)
    for steps in zip(*both, strict=True):
        assert len({item.case for item in steps}) == 1
    assert content(tmp_path / "both") == content(tmp_path / "plain")


def test_a_volume_that_a_run_with_other_weights_made_meanwhile_is_kept(
    gappy, weights, other_weights, tmp_path
):
    root = gappy(lacking=[("t2",), (), (), ()])
    late = plan_of(root, tmp_path / "out", other_weights)
    completed(root, tmp_path / "out", weights)
    before = states(tmp_path / "out")
    with pytest.raises(AttclError) as caught:
        make(late)
    assert caught.value.code == "made-meanwhile"
    assert states(tmp_path / "out") == before


def test_no_volume_lies_beside_the_side_car_of_a_run_with_other_weights(
    gappy, weights, other_weights, tmp_path, monkeypatch
):
    root = gappy(lacking=[("t2",), (), (), ()])
    first, second = (plan_of(root, tmp_path / "out", it) for it in (weights, other_weights))
    save = volumes.save

    def save_late(*arguments: object, **options: object) -> None:
        """Save when the second run has done all that it does."""
        monkeypatch.setattr(volumes, "save", save)
        make(second)
        save(*arguments, **options)

    monkeypatch.setattr(volumes, "save", save_late)
    with pytest.raises(AttclError) as caught:
        make(first)
    assert caught.value.code == "made-meanwhile"
    assert images(tmp_path / "out") == {}
    completed(root, tmp_path / "out", other_weights)  # as its side-car says
    completed(root, tmp_path / "alone", other_weights)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_originals_keep_their_bytes_and_times(gappy, weights, tmp_path):
    root = gappy()
    before = states(root)
    completed(root, tmp_path / "out", weights)
    assert states(root) == before


# --- what the network sees --------------------------------------------------------------------------------------------


def test_the_network_sees_each_filled_slice_of_a_source_once(gappy, tiny_settings, tmp_path):
    root = gappy()
    echo = echoed(root, tmp_path / "out", tiny_settings)
    filled = {}
    for case, source in enumerate(SOURCES):
        if source:
            data = nib.load(root / phantom_file(case, source)).get_fdata()
            filled[case] = int((data != 0).any(axis=(0, 1)).sum())
    assert len(echo.slices) == sum(filled.values())
    calls = [
        (SOURCES[case], LACKING[case])
        for case in filled
        for _ in range(-(-filled[case] // inference.slices_per_call(64, CPU)))
    ]
    assert echo.asked == calls


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_the_network_sees_only_the_slices_that_are_asked_for(
    layout, gappy, tiny_settings, tmp_path
):
    root = gappy(layout, [("t2",), (), (), ()])
    echo = echoed(root, tmp_path / "out", tiny_settings, slices=(10, 13))
    assert len(echo.slices) == 3


def test_of_png_slices_only_those_that_are_gone_are_made_again(gappy, tiny_settings, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    echoed(root, tmp_path / "out", tiny_settings)
    before = states(tmp_path / "out")
    gone = "t2/Phantom00000_012.png"
    (tmp_path / "out" / gone).unlink()
    echo = echoed(root, tmp_path / "out", tiny_settings)
    after = states(tmp_path / "out")
    assert len(echo.slices) == 1
    assert after[gone][1] == before[gone][1]
    assert {name for name in after if after[name] != before[name]} - {"t2"} <= {
        gone,
        "t2/Phantom00000.json",
    }


# --- slices -----------------------------------------------------------------------------------------------------------


def test_slices_that_are_not_asked_for_stay_zero_in_a_volume(gappy, weights, tmp_path):
    root = gappy("brats", [("t2",), (), (), ()])
    completed(root, tmp_path / "all", weights)
    completed(root, tmp_path / "some", weights, slices=(10, 13))
    whole, some = (
        nib.load(tmp_path / folder / phantom_file(0, "t2")).get_fdata()
        for folder in ("all", "some")
    )
    assert (some[:, :, 10:13] == whole[:, :, 10:13]).all()
    assert some[:, :, 10:13].any()
    some[:, :, 10:13] = 0
    assert not some.any()


def test_slices_that_are_not_asked_for_are_not_written_as_png(gappy, weights, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    completed(root, tmp_path / "all", weights)
    completed(root, tmp_path / "some", weights, slices=(10, 13))
    some, whole = images(tmp_path / "some"), images(tmp_path / "all")
    assert list(some) == [f"t2/Phantom00000_{number:03d}.png" for number in (10, 11, 12)]
    assert some.items() <= whole.items()


def test_a_second_run_over_some_png_slices_finds_nothing_lost(gappy, weights, tmp_path):
    root = gappy("slices", [("t2",), ("t2",), (), ()])
    arguments = {"ori": root, "cpl": tmp_path / "out", "weights": weights.path.parent}
    options = {"slices": (10, 13), "device": "cpu"}
    complete(**arguments, **options)
    second = tmp_path / "out/t2/Phantom00001_011.png"
    second.unlink()
    result = complete(**arguments, **options)
    assert (result.written, second.is_file()) == (1, True)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["status"] == "done"
    (present,) = [case for case in record["cases"] if case["status"] == "present"]
    assert present["outputs"] == [f"t2/Phantom00000_{slice:03d}.png" for slice in (10, 11, 12)]


def test_png_slices_that_would_be_of_two_kinds_are_refused_and_stay(gappy, general, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    late = list((root / "t1").glob("Phantom00000_*.png"))
    (tmp_path / "late").mkdir()
    for file in late:
        shutil.move(file, tmp_path / "late")
    arguments = {"ori": root, "cpl": tmp_path / "out", "weights": general.path.parent}
    complete(**arguments, targets=["t2"], device="cpu")
    (tmp_path / "out/t2/Phantom00000_012.png").unlink()
    before = states(tmp_path / "out")
    for file in late:
        shutil.move(tmp_path / "late" / file.name, file)
    with pytest.raises(
        AttclError, match="made from flair, t1ce, expected flair, t1, t1ce"
    ) as caught:
        complete(**arguments, targets=["t2"], device="cpu")
    assert caught.value.code == "made-in-another-way"
    assert states(tmp_path / "out") == before
    complete(**arguments, targets=["t2"], device="cpu", overwrite=True)
    assert len(list((tmp_path / "out/t2").glob("*.png"))) > 12


def test_overwriting_some_png_slices_minds_no_slice_that_it_replaces(gappy, weights, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    arguments = {"ori": root, "cpl": tmp_path / "out", "weights": weights.path.parent}
    complete(**arguments, slices=(10, 13), device="cpu")
    side_car = tmp_path / "out/t2/Phantom00000.json"
    document = json.loads(side_car.read_text())
    document["stored"]["range"] = [0, 7]  # as if the dataset's volumes were others now
    side_car.write_text(json.dumps(document))
    assert complete(**arguments, slices=(10, 13), device="cpu", overwrite=True).written == 1


def test_slices_without_any_source_are_zero_and_cost_nothing(write_nifti, tiny_settings, tmp_path):
    values = np.random.default_rng(3).integers(1, 200, (9, 11, 7)).astype(np.int16)
    values[:, :, :3] = 0
    write_nifti(tmp_path / "in/A/A_flair.nii.gz", values)
    echo = echoed(tmp_path / "in", tmp_path / "out", tiny_settings, targets=["t1"], slices=(0, 2))
    assert echo.asked == []
    assert not nib.load(tmp_path / "out/A/A_t1.nii.gz").get_fdata().any()


def test_overwrite_with_other_slices_leaves_no_older_slice_beside_the_new_side_car(
    gappy, weights, tmp_path
):
    root = gappy("slices", [("t2",), (), (), ()])
    completed(root, tmp_path / "out", weights, slices=(10, 13))
    completed(root, tmp_path / "out", weights, slices=(12, 14), overwrite=True)
    assert [name[-7:-4] for name in images(tmp_path / "out")] == ["012", "013"]


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
    dtype = options.get("dtype", np.int16)
    values = np.random.default_rng(3).integers(0, 200, (9, 11, 7))
    original = write_nifti(tmp_path / f"in/A/A_flair{ending}", values.astype(dtype), **options)
    # another case shows the layout's other modalities
    for modality in FOUR:
        write_nifti(tmp_path / f"in/B/B_{modality}.nii.gz", values.astype(np.int16))
    echoed(tmp_path / "in", tmp_path / "out", tiny_settings, Scale(10.0, 200.0))
    expected, image = nib.load(original), nib.load(tmp_path / f"out/A/A_t2{ending}")
    assert image.shape == expected.shape
    assert type(image) is type(expected)
    assert np.array_equal(image.affine, expected.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(image.header[field], expected.header[field]), field
    assert image.get_data_dtype().newbyteorder("=") == np.int16  # as the other case's t2
    assert ((np.asanyarray(image.dataobj) == 0) == (values == 0)).all()
    description = image.header["descrip"].item().decode()
    assert description == f"attcl {__version__} synthetic t2 from flair"


def test_a_case_stored_in_another_orientation_is_completed_to_the_same_image(
    write_nifti, weights, tmp_path
):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (20, 24, 10)).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([-2.0, -2, 3, 1]))
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "I", "R")))
    for number, stored in enumerate((image, turned)):
        root = tmp_path / f"in{number}"
        write_nifti(root / "A/A_flair.nii.gz", np.asanyarray(stored.dataobj), affine=stored.affine)
        completed(root, tmp_path / f"out{number}", weights, targets=["t1"])
    straight, sideways = (
        nib.as_closest_canonical(nib.load(tmp_path / f"out{number}/A/A_t1.nii.gz"))
        for number in (0, 1)
    )
    assert straight.get_fdata().any()
    assert (straight.get_fdata() == sideways.get_fdata()).all()
    assert np.allclose(straight.affine, sideways.affine)


def test_intensities_are_brought_to_the_scale_of_the_target(gappy, tiny_settings, tmp_path):
    root = gappy("brats", [("t2",), (), (), ()])
    echoed(root, tmp_path / "out", tiny_settings, SCALE)
    source = nib.load(root / phantom_file(0, "flair")).get_fdata()
    brain = np.any(
        [nib.load(root / phantom_file(0, m)).get_fdata() for m in ("flair", "t1", "t1ce")], axis=0
    )
    low, high = np.percentile(source[brain], [0.5, 99.5])
    unit = (np.clip(source, low, high) - low) / (high - low)
    scale = own_scale(root, "t2")
    expected = scale.low + unit * (scale.high - scale.low)
    expected[source == 0] = 0
    image = nib.load(tmp_path / "out" / phantom_file(0, "t2"))
    assert image.get_data_dtype() == np.int16
    assert np.abs(image.get_fdata() - expected).max() < 0.51  # rounding to integers, and float32


def test_voxels_that_are_zero_in_the_source_stay_zero_and_the_others_stay_in_scale(
    gappy, weights, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "out", weights)
    for case, source in enumerate(SOURCES):
        for target in LACKING[case]:
            inside = nib.load(root / phantom_file(case, source)).get_fdata() != 0
            data = nib.load(tmp_path / "out" / phantom_file(case, target)).get_fdata()
            scale = own_scale(root, target)
            assert not data[~inside].any()
            assert data[inside].std() > 0
            assert round(scale.low) <= data[inside].min()
            assert data[inside].max() <= round(scale.high)


def test_a_modality_that_nobody_has_gets_the_scale_of_the_weights_in_a_type_that_holds_it(
    write_nifti, tiny_settings, tmp_path
):
    values = np.random.default_rng(3).integers(0, 200, (9, 11, 7)).astype(np.uint8)
    write_nifti(tmp_path / "in/A/A_flair.nii.gz", values)
    for high, dtype in (
        (250.0, np.uint8),
        (5000.0, np.int16),
        (90000.0, np.float32),
        (1.0, np.float32),
    ):
        out = tmp_path / f"out{high}"
        echoed(tmp_path / "in", out, tiny_settings, Scale(0.0, high), targets=["t1"])
        image = nib.load(out / "A/A_t1.nii.gz")
        assert image.get_data_dtype() == dtype
        assert image.get_fdata().max() == high


# --- side-cars --------------------------------------------------------------------------------------------------------


def test_a_side_car_says_that_the_volume_is_synthetic_and_where_it_comes_from(
    gappy, weights, tmp_path
):
    root = gappy()
    completed(root, tmp_path / "out", weights)
    scale = own_scale(root, "t1ce")
    side_car = json.loads((tmp_path / "out/Phantom_00001/Phantom_00001_t1ce.json").read_text())
    assert side_car.pop("note").startswith("Synthesised by attcl")
    assert side_car == {
        "synthetic": True,
        "target": "t1ce",
        "source": {"modality": "t2", "files": [phantom_file(1, "t2")]},
        "slices": "all",
        "samples": 0,
        "uncertainty": False,
        "mirror": False,
        "planes": "axial",
        "intensities": "network",
        "even": False,
        "sharpened_by": [],
        "background": "auto",
        "stored": {
            "number_type": "int16",
            "range": [pytest.approx(end) for end in (scale.low, scale.high)],
            "background": 0.0,
            "like": "the dataset",
        },
        "method": "attcl-gan",
        "method_title": "AttCL-GAN",
        "weights": {"name": weights.name, "sha256": sha256(weights.path)},
        "seed": weights.info.settings.seed,
        "attcl_version": __version__,
    }


def test_png_slices_carry_the_description_as_text_and_share_a_side_car(gappy, weights, tmp_path):
    completed(gappy("slices"), tmp_path / "out", weights, slices=(10, 12))
    with Image.open(tmp_path / "out/t1ce/Phantom00001_011.png") as image:
        assert image.text["Description"] == f"attcl {__version__} synthetic t1ce from t2"
        assert (image.mode, image.size) == ("I;16", (40, 40))
    side_cars = sorted(name for name in content(tmp_path / "out") if name.endswith(".json"))
    assert side_cars == sorted(
        f"{name}/Phantom{case:05d}.json" for case, names in enumerate(LACKING) for name in names
    )
    side_car = json.loads((tmp_path / "out/t1ce/Phantom00001.json").read_text())
    assert (side_car["target"], side_car["slices"]) == ("t1ce", [10, 12])


def test_an_image_never_stands_beside_the_side_car_of_other_weights(
    finished, other_weights, monkeypatch
):
    """Not even if a run with --overwrite stops between the side-car and the image."""

    def full(*_args: object, **_options: object) -> None:
        raise AttclError("disk full", code="full")

    monkeypatch.setattr(volumes, "save", full)
    with pytest.raises(AttclError, match="disk full"):
        completed(finished["ori"], finished["cpl"], other_weights, overwrite=True)
    makers = set()
    for path in finished["cpl"].rglob("*_*.json"):
        maker = json.loads(path.read_text())["weights"]["sha256"]
        assert path.with_suffix(".nii.gz").exists() == (maker != other_weights.sha256)
        makers.add(maker)
    assert len(makers) == 2


# --- cases that fail --------------------------------------------------------------------------------------------------

LOST = AttclError("Phantom_00001: lost, expected it", code="lost")


def lose_the_second_case(stage: str, method: Method, monkeypatch) -> Method:
    """Let reading, the network or writing fail on case 1; return the method to use."""
    if stage == "network":
        return Failing(method, "t1ce", LOST)  # made for case 1 alone, of the first two
    name = {"reading": "load_case", "writing": "save"}[stage]
    real = getattr(volumes, name)

    def failing(files, *arguments: object, **options: object):
        paths = next(iter(files.values())) if isinstance(files, dict) else files
        if "Phantom_00001" in str(paths[0]):
            raise LOST
        return real(files, *arguments, **options)

    monkeypatch.setattr(volumes, name, failing)
    return method


@pytest.mark.parametrize("stage", ["reading", "network", "writing"])
def test_a_case_that_fails_on_the_way_stops_the_run_or_is_passed_over(
    stage, gappy, weights, method, monkeypatch, tmp_path
):
    root = gappy(lacking=[("flair", "t2"), ("t1", "t1ce"), (), ("flair", "t1")])
    methods = {weights.sha256: lose_the_second_case(stage, method, monkeypatch)}
    with pytest.raises(AttclError, match="Phantom_00001: lost"):
        completed(root, tmp_path / "stopped", weights, methods=methods)
    assert phantom_file(0, "t2") in content(tmp_path / "stopped")  # what was finished stays
    items = completed(root, tmp_path / "going", weights, methods=methods, keep_going=True)
    assert [(item.case[-1], len(item.outputs), item.error) for item in items] == [
        ("0", 2, None),
        ("1", 0, LOST),
        ("3", 2, None),
    ]


def test_a_device_that_runs_out_of_memory_is_named_with_the_case(gappy, weights, method, tmp_path):
    full = torch.cuda.OutOfMemoryError("CUDA out of memory")
    methods = {weights.sha256: Failing(method, "t1ce", full)}
    with pytest.raises(AttclError, match="cpu: out of memory on Phantom_00001") as caught:
        completed(gappy(), tmp_path / "out", weights, methods=methods)
    assert caught.value.code == "out-of-memory"
    assert "--batch-size" in caught.value.hint


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_are_never_put_among_the_originals(gappy, tmp_path):
    root = gappy("brats", [(), (), ("t2",), ()])
    before = states(root)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/Phantom_00000").symlink_to(root / "Phantom_00001")
    with pytest.raises(AttclError) as caught:
        linking.link_originals(open_dataset(root), tmp_path / "out")
    assert caught.value.code == "leads-out-of-output"
    assert states(root) == before


def test_a_file_system_without_links_is_named(phantom_root, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(AttclError, match="Operation not supported") as caught:
        linking.link_originals(open_dataset(phantom_root), tmp_path / "out")
    assert caught.value.code == "no-links"


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["load_case", "save", None])
def test_memory_holds_a_handful_of_cases_however_many_there_are(
    slow, write_nifti, tiny_settings, monkeypatch, tmp_path
):
    values = np.random.default_rng(3).integers(0, 200, (9, 11, 7)).astype(np.int16)
    for case in range(24):
        write_nifti(tmp_path / f"in/A{case:02d}/A{case:02d}_flair.nii.gz", values)
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = []

    class Noted(preparation.Prepared):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(preparation, "Prepared", Noted)
    if slow:
        real = getattr(volumes, slow)

        def slowed(*arguments: object, **options: object) -> object:
            time.sleep(0.01)
            return real(*arguments, **options)

        monkeypatch.setattr(volumes, slow, slowed)
    workers = 2
    echoed(tmp_path / "in", tmp_path / "out", tiny_settings, workers=workers, targets=["t1"])
    assert len(images(tmp_path / "out")) == len(most) == 24
    # read ahead, in the network, in the writers and waiting for one
    assert max(most) <= workers + 1 + making.WRITERS + 2


def test_slices_of_an_earlier_version_stay_when_a_run_goes_on(gappy, weights, tmp_path):
    root = gappy("slices", [("t2",), (), (), ()])
    completed(root, tmp_path / "out", weights, slices=(10, 14))
    before = images(tmp_path / "out")
    missing = sorted(before)[1]
    (tmp_path / "out" / missing).unlink()
    side_car = next((tmp_path / "out").rglob("*.json"))
    document = json.loads(side_car.read_text())
    del document["method_title"]
    side_car.write_text(json.dumps({**document, "attcl_version": "0.0.1", "note": "earlier"}))
    completed(root, tmp_path / "out", weights, slices=(10, 14))
    assert images(tmp_path / "out") == before
