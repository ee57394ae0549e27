"""Real patients: two releases are read without complaint, and completed without a change to any original."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from attcl_cli.cli.app import main
from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.intensities import Scale, in_own_window
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.preconditions import examine
from attcl_cli.data.splits import read_splits
from attcl_cli.methods import METHODS
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import WeightsInfo, save_weights
from attcl_cli.scoring import formulas

pytestmark = pytest.mark.cohort

MODALITIES = ("flair", "t1", "t1ce", "t2")
SHAPE = (240, 240, 155)


@pytest.fixture
def attcl(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`attcl("complete", ...)` runs the command line in this process, which must end well; returns its stdout."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        return out

    return run


@pytest.fixture(scope="module")
def untrained(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny network at its random start, for slices of 240x240."""
    settings = tiny_settings.model_copy(update={"image_size": 32, "canvas": 256})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = METHODS["attcl-gan"](settings, MODALITIES)
        method.remember_references({name: torch.randn(1, 1, 32, 32) for name in MODALITIES})
    info = WeightsInfo(
        settings=settings,
        modalities=MODALITIES,
        scales=dict.fromkeys(MODALITIES, Scale(20.0, 1800.0)),
        references={},
        trained_on=(),
        steps=0,
    )
    path = tmp_path_factory.mktemp("untrained") / "untrained.safetensors"
    save_weights(path, method, info)
    return path


def assert_originals_are_as_released(cohort: Path, folder: str) -> None:
    lines = [line.split(maxsplit=1) for line in (cohort / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines if name.startswith(f"{folder}/")}
    assert {
        path.relative_to(cohort).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (cohort / folder).rglob("*")
        if path.is_file()
    } == sums


def assert_completed(data: Path, out: Path, source: Path, cases: int, shown: int) -> None:
    """The output holds the hidden files of `shown` cases, in the geometry of the real ones."""
    document = json.loads((data / "splits.json").read_text())
    items = [item for items in document["splits"].values() for item in items]
    assert len(items) == cases
    real = open_dataset(source)
    hidden = {
        str(file)
        for case in real.cases
        for item in items
        if item["case"] == case.id
        for modality in item["hidden"]
        for file in case.files[modality]
    }
    made = {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}
    assert made <= hidden
    assert len({Path(name).parent for name in made}) == shown
    for folder in {Path(name).parent for name in made}:
        assert {name for name in hidden if Path(name).parent == folder} <= made
    for name in made:
        truth, synthetic = nib.load(source / name), nib.load(out / name)
        assert synthetic.shape == truth.shape == SHAPE
        assert np.array_equal(synthetic.affine, truth.affine)
        for field in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
            assert np.array_equal(synthetic.header[field], truth.header[field]), (name, field)
        assert synthetic.get_data_dtype() == truth.get_data_dtype()
        assert np.asanyarray(synthetic.dataobj).std() > 0


@pytest.mark.parametrize(
    ("folder", "layout", "cases", "segmentations"),
    [("brats", "brats", 20, 20), ("brasyn", "brats2023", 2, 1)],
)
def test_every_case_is_found_and_sound(folder, layout, cases, segmentations, cohort):
    dataset = open_dataset(cohort / folder)
    assert dataset.layout.name == layout
    assert dataset.counts() == dict.fromkeys(MODALITIES, cases)
    assert len(dataset.cases) == len({case.patient for case in dataset.cases}) == cases
    assert sum(bool(case.segmentation) for case in dataset.cases) == segmentations


def copied(cohort: Path, root: Path, **changes: Callable[[np.ndarray], np.ndarray]) -> Path:
    """One patient, with some of the volumes changed; nothing of it is compressed, which would take minutes."""
    case = sorted((cohort / "brats").iterdir())[3]
    for name in MODALITIES:
        image = nib.load(case / f"{case.name}_{name}.nii.gz")
        data = np.asanyarray(image.dataobj)
        data = changes[name](data) if name in changes else data
        header = image.header.copy()
        header.set_data_dtype(data.dtype)
        path = root / case.name / f"{case.name}_{name}.nii"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, image.affine, header), path)
    return root


@pytest.mark.parametrize(("folder", "notes"), [("brats", 0), ("brasyn", 0), ("openms", 1)])
def test_prepared_patients_pass_the_voxel_checks(folder, notes, cohort):
    findings = examine(open_dataset(cohort / folder))
    assert [problem.message for problem in findings.problems] == []
    assert len(findings.notes) == notes
    assert all(note.startswith("8 volumes have values below") for note in findings.notes)


def test_a_raw_scan_has_a_skull(cohort):
    findings = examine(open_dataset(cohort / "raw"))
    assert {problem.code for problem in findings.problems} == {"grids-differ", "skull-present"}
    skulls = [item for items in findings.wrong.values() for item in items]
    assert [problem.code for problem in skulls] == ["skull-present"] * 3


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift_mm", [5, 10])
def test_a_shifted_volume_of_a_patient_is_noticed(shift_mm, axis, cohort, tmp_path):
    root = copied(cohort, tmp_path, t2=lambda data: np.roll(data, shift_mm, axis))
    (problem,) = examine(open_dataset(root)).problems
    assert problem.code == "volumes-not-registered"
    assert "_t2.nii: shifted by about" in problem.message


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_volume_of_a_patient_is_named_as_mirrored(axis, cohort, tmp_path):
    root = copied(cohort, tmp_path, t2=lambda data: np.flip(data, axis))
    (problem,) = examine(open_dataset(root)).problems
    named = ("side to side", "front to back", "foot to head")[axis]
    assert problem.code == "volume-mirrored"
    assert f"_t2.nii: mirrored ({named}; " in problem.message


@pytest.mark.parametrize("count", [10, 20])
def test_exchanged_slabs_of_a_patient_are_slices_in_another_order(count, cohort, tmp_path):
    def exchanged(data: np.ndarray) -> np.ndarray:
        order = np.arange(data.shape[2])
        order[70 : 70 + 2 * count] = np.roll(order[70 : 70 + 2 * count], count)
        return data[:, :, order]

    root = copied(cohort, tmp_path, t1=exchanged)
    (problem,) = examine(open_dataset(root)).problems
    assert problem.code == "slices-out-of-order"
    assert "_t1.nii: slices in another order (foot to head, at least " in problem.message


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_a_head_of_a_patient_is_refused(axis, cohort, tmp_path):
    def half(data: np.ndarray) -> np.ndarray:
        result = data.copy()
        np.moveaxis(result, axis, 0)[: data.shape[axis] // 2] = 0
        return result

    root = copied(cohort, tmp_path, t1ce=half)
    (problem,) = examine(open_dataset(root)).problems
    assert problem.code == "masks-disagree"
    assert "_t1ce.nii: masks overlap by 0." in problem.message


def test_t1_and_t2_of_a_patient_under_exchanged_names_are_a_note(cohort, tmp_path):
    root = copied(cohort, tmp_path)
    (one,), (other,) = (list(root.glob(f"*/*_{name}.nii")) for name in ("t1", "t2"))
    aside = one.rename(tmp_path / "aside")
    other.rename(one)
    aside.rename(other)
    findings = examine(open_dataset(root))
    assert findings.problems == []
    (note,) = findings.notes
    assert note.startswith(f"1 case with t1 and t2 as if their names were exchanged, such as {one}")


def test_backgrounds_of_patients_are_fixed_on_reading(cohort, tmp_path):
    def z_scored(data: np.ndarray) -> np.ndarray:
        return ((data - data.mean()) / data.std()).astype(np.float32)

    def ringing(data: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, 1e-5, data.shape)
        return (data / data.max() + noise).astype(np.float32)

    root = copied(cohort, tmp_path, t1=lambda data: data + np.int16(10), t1ce=z_scored, t2=ringing)
    dataset = open_dataset(root)
    assert examine(dataset).problems == []
    (case,) = dataset.cases
    images = volumes.load_case({name: dataset.paths(case, name) for name in case.files})
    expected = images.volumes["flair"].data != 0
    for name in ("t1", "t1ce", "t2"):
        assert np.mean((images.volumes[name].data != 0) == expected) > 0.9999


def test_a_real_case_is_normalised_inside_its_brain(cohort):
    dataset = open_dataset(cohort / "brats")
    case = dataset.cases[0]
    images = volumes.load_case({name: dataset.paths(case, name) for name in case.files})
    stored = nib.load(dataset.paths(case, "t1ce")[0])
    data = images.volumes["t1ce"].data
    assert np.array_equal(data, np.asanyarray(stored.dataobj).transpose(2, 1, 0))  # stored L, P, S
    normalised = images.normalised("t1ce")
    assert normalised.dtype == np.float32
    assert normalised.shape == SHAPE[::-1]
    assert (normalised.min(), normalised.max()) == (-1, 1)
    assert (normalised[~images.brain] == -1).all()
    assert 0.1 < images.brain.mean() < 0.3  # of a head that fills the field of view
    scale = images.scales["t1ce"]
    clipped = np.clip(data, scale.low, scale.high)
    back = intensities.denormalise(normalised, scale)
    assert np.abs(back - clipped)[images.brain].max() < 1e-3 * (scale.high - scale.low)


@pytest.mark.slow
def test_brats_cases_are_completed_in_their_geometry(cohort, untrained, attcl, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    attcl("prepare-splits", cohort / "brats", "-o", data)
    told = attcl(
        "complete", "--ori", data, "--cpl", out, "-w", untrained, "-d", "cpu", "--num-parts", 7
    )
    assert told.startswith(f"{out}: 6 volumes written")
    assert_completed(data, out, cohort / "brats", cases=20, shown=3)
    assert_originals_are_as_released(cohort, "brats")


@pytest.mark.slow
def test_brasyn_cases_are_completed_in_their_geometry(cohort, untrained, attcl, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    attcl("prepare-splits", cohort / "brasyn", "-o", data, "--ratio", "ratio2", "--sizes", "2/0/0")
    attcl("complete", "--ori", data, "--cpl", out, "-w", untrained, "-d", "cpu")
    assert {path.name.rsplit("-", 1)[1] for path in out.rglob("*.nii.gz")} == {
        "t1c.nii.gz",
        "t2w.nii.gz",
    }
    assert_completed(data, out, cohort / "brasyn", cases=2, shown=2)
    assert_originals_are_as_released(cohort, "brasyn")


def test_the_challenges_similarity_of_zeros_and_of_a_copy_is_what_method_md_says(cohort):
    dataset = open_dataset(cohort / "brasyn")
    case = next(case for case in dataset.cases if case.id == "BraTS-GLI-00000-000")
    truth, copy = (volumes.load(dataset.paths(case, name)).data for name in ("t1ce", "t1"))
    tumour = label_maps.load_labels(dataset.paths(case, SEGMENTATION)) > 0
    assert formulas.ssim_brasyn(np.zeros_like(truth), truth, tumour) == pytest.approx(
        (0.99, 0.80), abs=0.005
    )
    assert formulas.ssim_brasyn(copy, truth, tumour) == pytest.approx((0.996, 0.90), abs=0.002)
    assert formulas.ssim_brasyn(truth, truth, tumour) == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("sources", "target", "margin"),
    [(("flair",), "t2", 0.3), (("flair", "t1ce", "t2"), "t1", 0.1)],
)
def test_a_test_patient_without_a_run_is_completed_by_the_bundled_weights(
    sources, target, margin, cohort, attcl, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # no runs here
    monkeypatch.delenv("ATTCL_WEIGHTS", raising=False)
    folder = cohort / "brats" / "Brats18_TCIA01_201_1"  # of the test patients of protocol.toml
    (tmp_path / "data" / folder.name).mkdir(parents=True)
    for name in sources:
        file = f"{folder.name}_{name}.nii.gz"
        (tmp_path / "data" / folder.name / file).symlink_to(folder / file)
    attcl("complete", "--ori", "data", "--target", target, "--slices", "70:76", "-q", "-d", "cpu")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["weights_chosen"] == "bundled"
    made = Path("out") / folder.name / f"{folder.name}_{target}.nii.gz"

    def slab(path: Path) -> np.ndarray:
        return np.asanyarray(nib.load(path).dataobj)[:, :, 70:76].astype(np.float32)

    truth = slab(folder / made.name)
    brain = truth != 0
    in_window = {
        name: in_own_window(image, brain)
        for name, image in {
            "truth": truth,
            "made": slab(made),
            **{source: slab(folder / f"{folder.name}_{source}.nii.gz") for source in sources},
        }.items()
    }
    similar = {
        name: formulas.ssim(image, in_window["truth"], data_range=1, mask=brain)
        for name, image in in_window.items()
    }
    copies = [similar[source] for source in sources]
    assert similar["made"] > max(copies) + margin


def test_real_cases_are_hidden_completed_and_scored_without_a_gap(
    cohort, untrained, attcl, tmp_path
):
    data, out, scores = (tmp_path / name for name in ("data", "out", "scores"))
    source = tmp_path / "three"
    source.mkdir()
    for folder in sorted((cohort / "brats").iterdir())[:3]:
        (source / folder.name).symlink_to(folder)
    attcl("prepare-splits", source, "--ratio", "ratio1", "--sizes", "3/0/0", "-o", data)
    hidden = {
        (item.case, name) for item in read_splits(data).splits["train"] for name in item.hidden
    }
    attcl("complete", "--ori", data, "--cpl", out, "-w", untrained, "-q")
    attcl("score", "--ori", data, "--cpl", out, "-o", scores, "--split", "train", "-q")
    with (scores / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    synthetic = [row for row in rows if row["prediction"] == "synthetic"]
    assert {(row["case"], row["modality"]) for row in synthetic} == hidden
    for metric, regions in {"ssim": 3, "psnr": 3, "nmse": 3, "ssim-brasyn": 2}.items():
        values = [float(row["value"]) for row in synthetic if row["metric"] == metric]
        assert len(values) == regions * len(hidden)
        assert np.isfinite(values).all()
