"""What `examine` says of phantoms that are prepared as they should be, and of phantoms with one fault each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attcl_cli.data import preconditions, voxels
from attcl_cli.data.dataset import Source, open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.preconditions import examine
from attcl_cli.data.volumes import load
from attcl_cli.progress import Bar, Silent

Change = Callable[[np.ndarray], np.ndarray]
MODALITIES = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cohort(phantom_root: Path, tmp_path: Path) -> Path:
    """A copy of the shared cohort that a test may change."""
    root = tmp_path / "cohort"
    shutil.copytree(phantom_root, root)
    return root


def place(root: Path, case: int, modality: str) -> Path:
    return root / f"Phantom_{case:05d}" / f"Phantom_{case:05d}_{modality}.nii.gz"


def change(root: Path, case: int, modality: str, how: Change) -> Path:
    """Write a volume anew, and return its path."""
    path = place(root, case, modality)
    image = nib.load(path)
    data = how(np.asanyarray(image.dataobj))
    header = image.header.copy()
    header.set_data_dtype(data.dtype)
    nib.save(nib.Nifti1Image(data, image.affine, header), path)
    return path


def with_noise(data: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(1, 40, data.shape)
    return np.where(data > 0, data, noise).astype(np.int16)


def with_head(data: np.ndarray) -> np.ndarray:
    """Fill the field of view up to a margin of two voxels: about twice the volume of a brain."""
    head = np.zeros(data.shape, bool)
    head[3:-3, 2:-2, 1:-1] = True
    return np.where((data == 0) & head, 300, data).astype(np.int16)


def only_problem(root: Path) -> tuple[str, str]:
    (problem,) = examine(open_dataset(root)).problems
    return problem.code, problem.message


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_prepared_phantoms_pass_without_a_word(layout, phantoms):
    findings = examine(open_dataset(phantoms(layout)))
    assert findings.problems == []
    assert findings.notes == ()


@pytest.mark.parametrize("voxel_mm", [4.0, 8.0])
def test_phantoms_of_other_voxels_pass_without_a_word(voxel_mm, tmp_path):
    write_cohort(tmp_path / "x", cases=1, voxel_mm=voxel_mm, workers=1)
    findings = examine(open_dataset(tmp_path / "x"))
    assert (findings.problems, findings.notes) == ([], ())


def test_a_small_field_has_no_room_for_a_head(write_case, tmp_path):
    write_case(tmp_path, ["A/A_t1.nii.gz", "A/A_t2.nii.gz"])
    assert examine(open_dataset(tmp_path)).problems == []


def z_scored(data: np.ndarray) -> np.ndarray:
    return ((data - data.mean()) / data.std()).astype(np.float32)


def ringing(data: np.ndarray) -> np.ndarray:
    return (data + np.random.default_rng(0).normal(0, 1e-5, data.shape)).astype(np.float32)


def with_undershoot(data: np.ndarray) -> np.ndarray:
    result = data.astype(np.float32)
    result[data.shape[0] // 2, data.shape[1] // 2, 5:8] = -12
    return result


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda data: data + np.int16(10), "a background other than 0"),
        (z_scored, "a background other than 0"),
        (ringing, "a background that is not exact"),
        (with_undershoot, "values below the background"),
    ],
)
def test_what_is_fixed_on_reading_is_a_note_with_a_count_and_an_example(how, said, cohort):
    for modality in MODALITIES:
        for case in range(4):
            change(cohort, case, modality, how)
    findings = examine(open_dataset(cohort))
    assert findings.problems == []
    (note,) = findings.notes
    assert note.startswith(f"16 volumes have {said}")
    assert str(place(cohort, 0, "flair")) in note


def test_noise_around_the_brain_is_refused(cohort):
    path = change(cohort, 1, "t1", with_noise)
    code, message = only_problem(cohort)
    assert code == "background-noisy"
    assert message.startswith(f"{path}: ")
    assert "expected one background value" in message


def test_a_head_is_refused_with_its_volume(cohort):
    path = change(cohort, 2, "t2", with_head)
    code, message = only_problem(cohort)
    assert code == "skull-present"
    assert message.startswith(f"{path}: ")
    assert "ml are not background" in message


def test_an_image_up_to_the_border_is_refused(cohort):
    def filled(data: np.ndarray) -> np.ndarray:
        values = np.random.default_rng(0).integers(100, 1000, data.shape)
        return np.where(data > 0, data, values).astype(np.int16)

    change(cohort, 0, "t1", filled)
    assert only_problem(cohort)[0] == "background-missing"


def test_a_shift_is_refused_and_the_shifted_volume_named(cohort):
    path = change(cohort, 0, "flair", lambda data: np.roll(data, 2, 1))
    code, message = only_problem(cohort)
    assert code == "volumes-not-registered"
    assert message.startswith(f"{path}: shifted by about 12 mm (front to back)")


def test_the_volume_of_another_patient_is_refused(cohort):
    shutil.copy(place(cohort, 3, "t2"), place(cohort, 0, "t2"))
    dataset = open_dataset(cohort)
    (problem,) = examine(dataset, dataset.cases[:1]).problems
    assert problem.message.startswith(str(place(cohort, 0, "t2")))


def test_a_copy_of_another_modality_is_refused(cohort):
    shutil.copy(place(cohort, 0, "t1"), place(cohort, 0, "t2"))
    code, message = only_problem(cohort)
    assert code == "images-identical"
    assert f"{place(cohort, 0, 't2')}: the same image as t1" in message


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (lambda labels, affine: (labels[1:], affine), "grids-differ"),
        (lambda labels, affine: (labels, affine + 5 * np.eye(4, k=3)), "grids-differ"),
        (lambda labels, affine: (labels + np.float32(0.5), affine), "labels-not-whole"),
    ],
    ids=["shape", "affine", "halves"],
)
def test_a_label_map_that_cannot_be_used_is_named_with_the_dataset(how, code, cohort):
    path = place(cohort, 0, "seg")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(*how(np.asanyarray(image.dataobj), image.affine)), path)
    found, message = only_problem(cohort)
    assert (found, str(path) in message) == (code, True)
    dataset = open_dataset(cohort)
    assert not examine(dataset, dataset.cases).problems  # completion does not need it


def test_one_volume_in_other_units_is_refused(cohort):
    path = change(cohort, 3, "t1ce", lambda data: (data / data.max()).astype(np.float32))
    code, message = only_problem(cohort)
    assert code == "units-differ"
    assert message.startswith(f"{path}: intensities from ")


def test_a_label_map_in_place_of_an_image_is_refused(cohort):
    change(cohort, 0, "t1", lambda data: (data > 0).astype(np.int16))
    assert only_problem(cohort)[0] == "volume-of-one-value"


def test_several_faults_are_reported_together_and_by_case(cohort):
    change(cohort, 0, "t1", with_noise)
    change(cohort, 2, "t2", with_head)
    findings = examine(open_dataset(cohort))
    assert {case: [it.code for it in items] for case, items in findings.wrong.items()} == {
        "Phantom_00000": ["background-noisy"],
        "Phantom_00002": ["skull-present"],
    }
    assert all(problem.hint.endswith("--force") for problem in findings.problems)


def test_force_makes_a_note_of_a_fault_but_not_of_an_unreadable_file(cohort):
    path = change(cohort, 0, "t1", with_noise)
    broken = place(cohort, 1, "t2")
    broken.write_bytes(broken.read_bytes()[:300])
    findings = examine(open_dataset(cohort), force=True)
    (problem,) = findings.problems
    assert str(broken) in problem.message
    (note,) = findings.notes
    assert note.startswith(f"taken all the same: {path}: ")


def test_background_keep_asks_nothing_of_the_background(cohort):
    change(cohort, 0, "t1", with_noise)
    assert examine(Source(cohort, background="keep").open()).problems == []


def test_unchanged_volumes_are_not_read_again(cohort, monkeypatch):
    before = examine(open_dataset(cohort))

    def refuse(*arguments: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(voxels, "measure", refuse)
    assert examine(open_dataset(cohort)) == before


def test_a_changed_volume_is_read_again(cohort):
    examine(open_dataset(cohort))
    change(cohort, 0, "t1", with_noise)
    assert only_problem(cohort)[0] == "background-noisy"


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"background": 1}', "\0"])
def test_a_damaged_cache_is_made_again(damage, cohort, fresh_cache):
    before = examine(open_dataset(cohort))
    files = list(fresh_cache.rglob("*.json"))
    assert len(files) == 4 * 4 + 4 * 3
    for file in files:
        file.write_text(damage)
    assert examine(open_dataset(cohort)) == before


def test_a_cache_that_cannot_be_written_costs_time_only(cohort, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ATTCL_CACHE", str(tmp_path / "file"))
    assert examine(open_dataset(cohort)).problems == []
    assert (tmp_path / "file").read_text() == "no folder"


def test_every_bound_lies_between_prepared_and_faulty_figures():
    """The figures of patients, docs/guides/data.md: what prepared volumes have, the bound, what faulty ones have."""
    assert 1614 < preconditions.MOST_BRAIN_ML < 2579
    assert 0.60 < preconditions.LEAST_RIM < 0.91
    assert 2.2 < preconditions.MOST_SHIFT_MM < 3.3
    assert 1.04 < preconditions.LEAST_GAIN < 1.17
    assert 0.95 < preconditions.SAME_MASK < 0.99
    assert 35 < preconditions.MOST_FACTOR < 169


def repaint(root: Path, how: Change) -> None:
    """Write every PNG slice of a dataset anew, except those of label maps."""
    for path in root.rglob("*.png"):
        if "seg" not in path.parts[-2]:
            with Image.open(path) as image:
                pixels = np.asarray(image)
            Image.fromarray(how(pixels).astype(pixels.dtype)).save(path)


def test_grey_around_png_slices_is_a_note_and_read_as_0(phantoms, tmp_path):
    root = tmp_path / "slices"
    shutil.copytree(phantoms("slices"), root)
    repaint(root, lambda pixels: pixels + 20)
    dataset = open_dataset(root)
    findings = examine(dataset)
    assert findings.problems == []
    assert findings.notes[0].startswith("16 volumes have a background other than 0")
    paths, clean = (
        data.paths(data.cases[0], "t1") for data in (dataset, open_dataset(phantoms("slices")))
    )
    assert load(paths).background == 20
    assert np.array_equal(load(paths).data, load(clean).data)


def test_noise_around_png_slices_is_refused(phantoms, tmp_path):
    root = tmp_path / "slices"
    shutil.copytree(phantoms("slices"), root)
    noise = np.random.default_rng(0)
    repaint(root, lambda pixels: np.where(pixels > 0, pixels, noise.integers(1, 9, pixels.shape)))
    codes = {problem.code for problem in examine(open_dataset(root)).problems}
    assert codes == {"background-noisy"}


class Listener(Silent):
    """Counts what a bar is told."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    @contextmanager
    def bar(self, total: int, title: str, *, every_seconds: float = 0) -> Iterator[Bar]:
        assert (total, title) == (51, "check")

        def count(item: str = "", *, to: int | None = None) -> None:
            self.counted.append(item)

        yield count


@pytest.mark.parametrize(("cases", "counted"), [(50, 0), (51, 51)])
def test_many_cases_are_counted_aloud(cases, counted, write_case, tmp_path):
    write_case(tmp_path, [f"A{case}/A{case}_t1.nii.gz" for case in range(cases)])
    listener = Listener()
    examine(open_dataset(tmp_path), progress=listener)
    assert len(set(listener.counted)) == counted
