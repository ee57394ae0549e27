"""What `examine` says of phantoms that are prepared as they should be, and of phantoms with one fault each."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from attcl_cli.data import judgements, nifti_files
from attcl_cli.data.dataset import Source, open_dataset
from attcl_cli.data.layouts import SEGMENTATION
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.preconditions import examine
from attcl_cli.data.volumes import load
from attcl_cli.progress import Bar, Silent

Change = Callable[[np.ndarray], np.ndarray]
MODALITIES = ("flair", "t1", "t1ce", "t2")
SIDES = ("side to side", "front to back", "foot to head")  # the axes of the phantoms' files


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


@pytest.mark.parametrize(
    "modality", ["flair", "t2"]
)  # the one that all are compared with, and another
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_a_head_is_refused_with_how_much_is_missing(axis, upper, modality, cohort):
    lost: list[float] = []

    def half(data: np.ndarray) -> np.ndarray:
        """Empty half of the field of view, which is not half of the brain."""
        result = data.copy()
        middle = data.shape[axis] // 2
        np.moveaxis(result, axis, 0)[slice(middle, None) if upper else slice(middle)] = 0
        lost.append(1 - np.count_nonzero(result) / np.count_nonzero(data))
        return result

    path = change(cohort, 1, modality, half)
    code, message = only_problem(cohort)
    assert code == "masks-disagree"
    assert message.startswith(f"{path}: masks overlap by 0.")
    (figure,) = re.findall(
        r"(\d+) % of that brain is background here, 0 % of this one there", message
    )
    assert int(figure) == pytest.approx(100 * lost[0], abs=2)
    assert f"apart ({SIDES[axis]}); expected an overlap of at least 0.9" in message


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_of_a_head_that_is_cut_off_is_refused(axis, upper, cohort):
    """Its masks may still overlap by 0.9: a head is narrow at its ends."""

    def cut(data: np.ndarray) -> np.ndarray:
        result = np.moveaxis(data.copy(), axis, 0)
        filled = np.flatnonzero(result.any(axis=(1, 2)))
        first, length = filled[0], -(-len(filled) // 4)
        result[slice(filled[-1] + 1 - length, None) if upper else slice(first + length)] = 0
        return np.moveaxis(result, 0, axis)

    path = change(cohort, 2, "t1ce", cut)
    code, message = only_problem(cohort)
    assert (code, message.startswith(f"{path}: masks overlap by 0.")) == ("masks-disagree", True)
    (share,) = re.findall(r"they end (\d+) % of their length apart", message)
    assert 20 < int(share) < 32
    assert f"({SIDES[axis]})" in message


def test_a_mask_with_another_rim_passes(cohort):
    """Another program for brain extraction leaves a voxel less at one side of each surface."""

    def shaved(data: np.ndarray) -> np.ndarray:
        inner = (data > 0) & (np.roll(data, 1, 0) > 0) & (np.roll(data, 1, 1) > 0)
        return np.where(inner, data, 0).astype(data.dtype)

    before = np.count_nonzero(nib.load(place(cohort, 0, "flair")).dataobj)
    path = change(cohort, 0, "flair", shaved)
    assert 0.8 < np.count_nonzero(nib.load(path).dataobj) / before < 0.96
    assert examine(open_dataset(cohort)).problems == []


def test_of_two_volumes_the_one_that_lacks_a_part_is_named(cohort):
    for case in range(4):
        for modality in ("t1", "t1ce"):
            place(cohort, case, modality).unlink()

    def without_top(data: np.ndarray) -> np.ndarray:
        return np.where(np.arange(data.shape[2]) < data.shape[2] // 2, data, 0).astype(data.dtype)

    path = change(cohort, 0, "flair", without_top)
    (problem,) = examine(open_dataset(cohort)).problems
    assert problem.code == "masks-disagree"
    assert problem.message.startswith(f"{path}: ")
    assert "is a part of it empty? mask all volumes" in problem.hint


@pytest.mark.parametrize("modality", ["flair", "t1ce", "t2"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1)])
def test_a_mirrored_volume_is_said_to_be_mirrored(axes, modality, cohort):
    path = change(cohort, 0, modality, lambda data: np.flip(data, axes).copy())
    code, message = only_problem(cohort)
    assert code == "volume-mirrored"
    named = " and ".join(SIDES[axis] for axis in sorted(axes, reverse=True))
    assert message.startswith(f"{path}: mirrored ({named}; mutual information 0.")
    mirrored, stored = re.findall(r"0\.\d{3}", message)
    assert float(mirrored) > 3 * float(stored)


def test_a_mirrored_volume_that_is_off_by_some_voxels_is_mirrored(cohort):
    change(cohort, 0, "t2", lambda data: np.roll(np.flip(data, 0), 1, (0, 1)))
    assert only_problem(cohort)[0] == "volume-mirrored"


def slabs_exchanged(data: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Exchange two neighbouring slabs of `count` slices above the middle."""
    start = data.shape[axis] // 2
    order = np.arange(data.shape[axis])
    order[start : start + 2 * count] = np.roll(order[start : start + 2 * count], count)
    return np.take(data, order, axis)


@pytest.mark.parametrize("modality", ["flair", "t1ce", "t2"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_in_another_order_are_named_with_their_axis(axis, modality, cohort):
    path = change(cohort, 0, modality, lambda data: slabs_exchanged(data, axis, 3))
    code, message = only_problem(cohort)
    assert code == "slices-out-of-order"
    assert message.startswith(f"{path}: slices in another order ({SIDES[axis]}, at least 3 slices")


def test_shuffled_slices_are_in_another_order(cohort):
    def shuffled(data: np.ndarray) -> np.ndarray:
        order = np.arange(data.shape[2])
        order[8:-8] = np.random.default_rng(0).permutation(order[8:-8])
        return data[:, :, order]

    change(cohort, 0, "t1", shuffled)
    assert only_problem(cohort)[0] == "slices-out-of-order"


def with_labels(root: Path, case: int, values: dict[int, int]) -> Path:
    """Rename the labels of a case."""

    def rename(labels: np.ndarray) -> np.ndarray:
        result = labels.copy()
        for old, new in values.items():
            result[labels == old] = new
        return result

    return change(root, case, "seg", rename)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({1: 255, 2: 255, 3: 255, 4: 255}, "label 255"),
        ({2: 7}, "label 7"),
        ({1: 5, 2: 9}, "labels 5, 9"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_label_that_no_release_has_is_counted(dtype, values, named, cohort):
    change(cohort, 0, "seg", lambda labels: labels.astype(dtype))
    path = with_labels(cohort, 0, values)
    labels = np.asanyarray(nib.load(path).dataobj)
    count = np.count_nonzero(np.isin(labels, list(values.values())))
    code, message = only_problem(cohort)
    assert code == "label-values-unknown"
    assert message.startswith(f"{path}: {named} in {count} voxels, expected the labels of BraTS: 0")
    hint = examine(open_dataset(cohort)).problems[0].hint
    assert ("save it as 0 and 1" in hint) == (255 in values.values())
    findings = examine(open_dataset(cohort), force=True)
    assert (findings.problems, len(findings.notes)) == ([], 1)


@pytest.mark.parametrize("values", [{2: 1, 3: 1, 4: 1}, {4: 3}, {1: 0, 2: 0, 3: 0, 4: 0}, {}])
def test_labels_of_a_release_or_of_one_lesion_pass(values, cohort):
    with_labels(cohort, 0, values)
    assert examine(open_dataset(cohort)).problems == []


def test_a_negative_label_is_refused_by_info_too(cohort):
    path = change(cohort, 0, "seg", lambda labels: -labels.astype(np.int16))
    code, message = only_problem(cohort)
    assert (code, f"{path}: label -" in message) == ("label-out-of-range", True)


def exchange(root: Path, case: int, one: str, other: str) -> None:
    """Exchange the names of two volumes."""
    first, second = place(root, case, one), place(root, case, other)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


@pytest.mark.parametrize(
    ("one", "other"),
    [("t1", "t2"), ("t1ce", "t2"), ("flair", "t2"), ("flair", "t1"), ("flair", "t1ce")],
)
def test_exchanged_names_are_a_note_with_both_files_and_figures(one, other, cohort):
    exchange(cohort, 1, one, other)
    findings = examine(open_dataset(cohort))
    assert findings.problems == []
    (note,) = findings.notes
    paths = f"{place(cohort, 1, one)} and {place(cohort, 1, other).name} ("
    assert note.startswith(
        f"1 case with {one} and {other} as if their names were exchanged, such as {paths}"
    )
    assert re.search(
        r": -?\d\.\d\d and -?\d\.\d\d, a difference of -\d\.\d\d; patients have ", note
    )


def test_names_that_a_whole_dataset_exchanges_are_one_note(cohort):
    for case in range(4):
        exchange(cohort, case, "t1", "t2")
    (note,) = examine(open_dataset(cohort)).notes
    assert note.startswith("4 cases with t1 and t2 as if their names were exchanged")


def test_t1_and_t2_alone_are_known_by_their_fluid(cohort):
    for case in range(4):
        for modality in ("flair", "t1ce"):
            place(cohort, case, modality).unlink()
    assert examine(open_dataset(cohort)).notes == ()
    exchange(cohort, 2, "t1", "t2")
    (note,) = examine(open_dataset(cohort)).notes
    assert note.startswith("1 case with t1 and t2 as if") and "skew of t2 and t1" in note


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


@pytest.mark.parametrize("cases", [2, 3])
def test_the_one_in_other_units_of_two_or_three_volumes_is_named(cases, cohort):
    for number in range(cases, 4):
        shutil.rmtree(place(cohort, number, "t1").parent)
    path = change(cohort, 0, "t1ce", lambda data: data.astype(np.int32) * 1000)
    code, message = only_problem(cohort)
    assert (code, message.startswith(f"{path}: intensities from ")) == ("units-differ", True)


def in_voxels_of(factor: float, cohort: Path, case: int) -> None:
    """Write the volumes of a case with an affine that is so many times too large, on a grid of twice the voxels."""
    for modality in (*MODALITIES, SEGMENTATION):
        path = place(cohort, case, modality)
        image = nib.load(path)
        data = np.asanyarray(image.dataobj).repeat(2, 0).repeat(2, 1).repeat(2, 2)
        affine = np.diag([factor / 2] * 3 + [1]) @ image.affine
        nib.save(nib.Nifti1Image(data, affine), path)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1, None),
        (0.001, "expected a head (50 mm at least)"),
        (0.1, "expected a head (50 mm at least)"),
        (2.5, "ml that are not background, expected a head (8000 ml at most)"),
        (10, "expected a head (1000 mm at most)"),
        (1000, "expected a head (1000 mm at most)"),
    ],
    ids=["mm", "m", "cm", "x2.5", "1/10 mm", "um"],
)
def test_voxels_of_an_implausible_size_are_named_once_per_volume(factor, expected, cohort):
    in_voxels_of(factor, cohort, 0)
    problems = examine(open_dataset(cohort)).problems
    assert [problem.code for problem in problems] == ["voxel-size-implausible"] * 4 * bool(expected)
    assert all("voxels of " in it.message and str(expected) in it.message for it in problems)


def noise(data: np.ndarray) -> np.ndarray:
    values = np.random.default_rng(0).normal(500, 100, data.shape)
    return np.where(data > 0, values, 0).astype(np.float32)


def wrapped(data: np.ndarray) -> np.ndarray:
    return (data.astype(np.int32) & 255).astype(np.uint8)


def without_slices(axis: int, first: int, last: int) -> Change:
    def how(data: np.ndarray) -> np.ndarray:
        result = data.copy()
        result[tuple(slice(first, last) if it == axis else slice(None) for it in range(3))] = 0
        return result

    return how


@pytest.mark.parametrize(
    ("how", "code", "found"),
    [
        (noise, "volume-of-noise", "a correlation of "),
        (
            without_slices(2, 9, 10),
            "slices-empty",
            "1 slice within the brain is empty (foot to head)",
        ),
        (
            without_slices(1, 20, 22),
            "slices-empty",
            "2 slices within the brain are empty (front to back)",
        ),
    ],
    ids=["noise", "slice", "slices"],
)
def test_a_volume_that_shows_no_whole_image_is_refused(how, code, found, cohort):
    path = change(cohort, 2, "t1", how)
    for _ in range(2):  # measured, then from the cache
        assert only_problem(cohort)[0] == code
        assert only_problem(cohort)[1].startswith(f"{path}: ")
        assert found in only_problem(cohort)[1]


def test_values_that_wrapped_around_are_refused_in_fine_voxels(tmp_path):
    write_cohort(tmp_path / "x", cases=1, voxel_mm=1.5, workers=1)
    assert examine(open_dataset(tmp_path / "x")).problems == []
    path = change(tmp_path / "x", 0, "t1", wrapped)
    code, message = only_problem(tmp_path / "x")
    assert code == "values-wrapped"
    assert message.startswith(f"{path}: ")
    assert "of neighbouring voxels differ by more than half of its range" in message


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turned_volume_is_named_with_its_axis(axis, tmp_path):
    write_cohort(tmp_path / "x", cases=1, voxel_mm=3.0, workers=1)
    plane = tuple(it for it in range(3) if it != axis)

    def turn(data: np.ndarray) -> np.ndarray:
        return ndimage.rotate(data, 9, axes=plane, reshape=False, order=0)

    path = change(tmp_path / "x", 0, "t2", turn)
    code, message = only_problem(tmp_path / "x")
    assert code == "volumes-not-registered"
    movement = ("as a head is nodded", "as a head is tilted to the shoulder", "as a head is shaken")
    assert message.startswith(f"{path}: turned by about 8 degrees ({movement[axis]}) against flair")


def test_a_hole_within_the_brain_of_one_volume_is_named_with_its_share(cohort):
    def cut(data: np.ndarray) -> np.ndarray:
        result = data.copy()
        middle = [side // 2 for side in data.shape]
        result[tuple(slice(it - 5, it + 5) for it in middle)] = 0
        return result

    path = change(cohort, 1, "t1ce", cut)
    code, message = only_problem(cohort)
    assert code == "brain-incomplete"
    assert message.startswith(f"{path}: ")
    assert "of the inner brain of flair" in message


@pytest.mark.parametrize(
    "how",
    [
        lambda data: (data * 1.3).astype(np.int16),
        lambda data: np.where(data > 0, data * 2.5 + 7, 0).astype(np.float32),
        lambda data: np.where(data > 0, data.max() + 10 - data, 0).astype(np.int16),
    ],
    ids=["scaled", "scaled with an offset", "inverted within the brain"],
)
def test_another_modality_in_other_intensities_is_named(how, cohort):
    shutil.copy(place(cohort, 2, "t1"), place(cohort, 2, "t2"))
    path = change(cohort, 2, "t2", how)
    code, message = only_problem(cohort)
    assert code == "images-identical"
    assert message.startswith(f"{path}: t1 (Phantom_00002_t1.nii.gz) in other intensities")


def test_the_ringing_of_an_interpolation_is_no_skull(cohort):
    """As a spline leaves it far around the brain: more voxels than a brain has, and nearly 0."""
    wave = np.random.default_rng(0)

    def ring(data: np.ndarray) -> np.ndarray:
        traces = wave.choice([-1, 1], data.shape) * 2e-4 * data.max()
        traces[[0, -1]] = traces[:, [0, -1]] = traces[:, :, [0, -1]] = 0
        traces[0, 0, 0] = 1e-5 * data.max()
        return np.where(data > 0, data, traces).astype(np.float32)

    for modality in MODALITIES:
        change(cohort, 0, modality, ring)
    assert examine(open_dataset(cohort)).problems == []


def test_of_two_patients_in_different_units_one_is_named_as_a_whole(cohort):
    for number in (2, 3):
        shutil.rmtree(place(cohort, number, "t1").parent)
    for modality in MODALITIES:
        change(cohort, 0, modality, lambda data: (data / data.max()).astype(np.float32))
    problems = examine(open_dataset(cohort)).problems
    assert {problem.code for problem in problems} == {"units-differ"}
    assert len(problems) == 4
    assert len({problem.message.split("_")[1][:5] for problem in problems}) == 1


@pytest.mark.parametrize("factor", [1, 2, 0.001], ids=["as they are", "doubled", "as floats"])
def test_a_patient_under_two_names_is_named_once(factor, cohort):
    second = cohort / "Phantom_00009"
    shutil.copytree(cohort / "Phantom_00001", second)
    for path in list(second.iterdir()):
        path.rename(second / path.name.replace("00001", "00009"))
    for modality in MODALITIES if factor != 1 else ():
        change(cohort, 9, modality, lambda data: (data * factor).astype(np.float32))
    problems = examine(open_dataset(cohort)).problems
    (problem,) = [it for it in problems if it.code != "units-differ"]
    code, message = problem.code, problem.message
    assert code == "images-repeated"
    assert message.startswith(
        f"{place(cohort, 9, 'flair')}: the same image as {place(cohort, 1, 'flair')}"
    )
    assert "so are 3 more of Phantom_00009" in message


@pytest.mark.parametrize(
    "how", [lambda data: -data, lambda data: data.max() - data], ids=["negated", "black on white"]
)
def test_an_inverted_image_is_refused(how, cohort):
    path = change(cohort, 0, "t1", how)
    code, message = only_problem(cohort)
    assert code == "image-inverted"
    assert message.startswith(f"{path}: nearly all of its image is darker than the background")


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_a_label_map_off_the_brain_is_named_with_its_share(layout, phantoms, tmp_path):
    root = tmp_path / layout
    shutil.copytree(phantoms(layout), root)
    dataset = open_dataset(root)
    paths = dataset.paths(dataset.cases[0], SEGMENTATION)
    if layout == "slices":
        for path in paths:
            labels = np.zeros_like(np.asarray(Image.open(path)))
            labels[:4] = 1
            Image.fromarray(labels).save(path)
    else:
        labels = np.zeros(nib.load(paths[0]).shape, np.uint8)
        labels[:4] = 1
        nib.save(nib.Nifti1Image(labels, nib.load(paths[0]).affine), paths[0])
    for _ in range(2):  # measured, then from the cache
        (problem,) = examine(open_dataset(root)).problems
        assert problem.code == "labels-off-brain"
        assert problem.message.startswith(f"{paths[0]}: ")
        assert "labelled voxels lie off the brain, expected 10 % at most" in problem.message
        assert "replace it, or move it away" in problem.hint
    assert examine(open_dataset(root), force=True).problems == []


@pytest.mark.parametrize(("voxels_off", "codes"), [(0, []), (99, []), (100, ["labels-off-brain"])])
def test_empty_and_tiny_label_maps_are_no_error(voxels_off, codes, cohort):
    def tiny(labels: np.ndarray) -> np.ndarray:
        result = np.zeros_like(labels)
        result[0].flat[:voxels_off] = 1
        return result

    change(cohort, 0, "seg", tiny)
    assert [it.code for it in examine(open_dataset(cohort)).problems] == codes


@pytest.mark.parametrize("off", [0.08, 0.12])
def test_a_tenth_of_the_labels_may_lie_off_the_brain(off, cohort):
    brain = np.asanyarray(nib.load(place(cohort, 0, "t1")).dataobj) > 0

    def partly(labels: np.ndarray) -> np.ndarray:
        result = np.zeros_like(labels)
        inside = np.flatnonzero(brain)[:1000]
        result.flat[inside] = 1
        result[-1].flat[: round(1000 * off / (1 - off))] = 1
        return result

    change(cohort, 0, "seg", partly)
    assert bool(examine(open_dataset(cohort)).problems) == (off > 0.1)


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

    monkeypatch.setattr(nifti_files, "read_stored", refuse)
    assert examine(open_dataset(cohort)) == before


def test_nothing_of_a_case_is_read_twice(cohort, monkeypatch):
    """Header and voxels of a volume are read once, and neither of an unchanged one but its header later."""
    read: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., object]:
        original = getattr(nifti_files, name)

        def count(path: Path, *arguments: object) -> object:
            if "seg" not in path.name:  # whose header is read before its voxels
                read[name] += 1
            return original(path, *arguments)

        return count

    for name in ("read_ends", "read_stored"):
        monkeypatch.setattr(nifti_files, name, counting(name))
    examine(open_dataset(cohort))
    assert read["read_stored"] == 4 * 4
    assert read["read_ends"] == 4 * 4 + 4  # of the image beside each label map
    read.clear()
    examine(open_dataset(cohort))
    assert read == {"read_ends": 4 * 4 + 4}


def test_a_tree_of_links_shares_the_records_of_its_source(cohort, tmp_path, monkeypatch):
    """Also if the cases lack the modality that comes first."""
    before = examine(open_dataset(cohort))
    for path in cohort.rglob("*.nii.gz"):
        link = tmp_path / "data" / path.relative_to(cohort)
        link.parent.mkdir(parents=True, exist_ok=True)
        if "flair" not in path.name or "00000" in path.name:
            link.symlink_to(path)
    read: list[Path] = []
    original = nifti_files.read_stored
    monkeypatch.setattr(
        nifti_files,
        "read_stored",
        lambda path, header: read.append(path) or original(path, header),
    )
    assert examine(open_dataset(tmp_path / "data")).problems == before.problems == []
    # Pairs with another first modality are new, and so is the brain on which labels should lie: each file is read once.
    assert len(read) == len(set(read)) == 3 * (3 + 1)
    read.clear()
    examine(open_dataset(tmp_path / "data"))
    examine(open_dataset(cohort))
    assert read == []


def test_a_changed_volume_is_read_again(cohort):
    examine(open_dataset(cohort))
    change(cohort, 0, "t1", with_noise)
    assert only_problem(cohort)[0] == "background-noisy"


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"background": 1}', "\0"])
def test_a_damaged_cache_is_made_again(damage, cohort, fresh_cache):
    before = examine(open_dataset(cohort))
    files = list(fresh_cache.rglob("*.json"))
    assert len(files) == 4
    for file in files:  # volumes, pairs, ranks, label map
        assert len(json.loads(file.read_bytes())) == 4 + 3 + 1 + 1
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
    assert 1614 < judgements.MOST_BRAIN_ML < 2579
    assert 0.60 < judgements.LEAST_RIM < 0.91
    assert 2.2 < judgements.MOST_SHIFT_MM < 3.3
    assert 1.04 < judgements.LEAST_GAIN < 1.17
    assert 0.95 < judgements.SAME_MASK < 0.99
    assert 0.84 < judgements.LEAST_OVERLAP < 0.99
    assert 0.00 < judgements.MOST_APART < 0.20
    assert 0.90 < judgements.LEAST_MIRRORED_GAIN < 1.17
    assert 0.946 < judgements.LEAST_MIRRORED_OVERLAP < 0.96
    assert 35 < judgements.MOST_FACTOR < 169
    assert 0 < judgements.LEAST_OUT_OF_ORDER <= 2
    assert 0.004 < judgements.MOST_HOLE < 0.095
    assert 0.885 < judgements.MOST_ALIKE < 0.998
    assert 1614 < judgements.MOST_TISSUE_ML < 2211
    assert 0.01 < judgements.LEAST_SMOOTHNESS < 0.78
    assert 0.007 < judgements.MOST_JUMPS < 0.025
    assert 15.5 < judgements.LEAST_FIELD_MM < 180
    assert 250 < judgements.MOST_FIELD_MM < 2400
    assert 2579 < judgements.MOST_HEAD_ML < 10038


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


@pytest.fixture
def sliced(phantoms: Callable[[str], Path], tmp_path: Path) -> Path:
    """The shared cohort as PNG slices that a test may change."""
    root = tmp_path / "slices"
    shutil.copytree(phantoms("slices"), root)
    return root


def change_slices(root: Path, modality: str, how: Change) -> str:
    """Write the slices of the first case's volume anew, as one array (D, H, W); return the name of the first."""
    dataset = open_dataset(root)
    paths = dataset.paths(dataset.cases[0], modality)
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(np.asarray(image))
    for path, slice_ in zip(paths, how(np.stack(pixels)), strict=True):
        Image.fromarray(slice_).save(path)
    return str(paths[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirrored_volume_of_slices_is_said_to_be_mirrored(axis, sliced):
    first = change_slices(sliced, "t2", lambda pixels: np.flip(pixels, axis).copy())
    code, message = only_problem(sliced)
    assert code == "volume-mirrored"
    assert message.startswith(f"{first}: mirrored ({SIDES[::-1][axis]}; ")


def test_slices_of_half_a_head_are_refused(sliced):
    def half(pixels: np.ndarray) -> np.ndarray:
        return np.where(np.arange(pixels.shape[2]) < pixels.shape[2] // 2, pixels, 0).astype(
            pixels.dtype
        )

    first = change_slices(sliced, "t1", half)
    code, message = only_problem(sliced)
    assert (code, message.startswith(f"{first}: masks overlap by 0.6")) == ("masks-disagree", True)


def test_slices_of_a_mask_of_0_and_255_are_refused(sliced):
    first = change_slices(
        sliced, SEGMENTATION, lambda labels: (255 * (labels > 0)).astype(np.uint8)
    )
    code, message = only_problem(sliced)
    assert (code, message.startswith(f"{first}: label 255 in ")) == ("label-values-unknown", True)


def test_slices_under_exchanged_names_are_a_note(sliced):
    dataset = open_dataset(sliced)
    for one, other in zip(
        *(dataset.paths(dataset.cases[0], name) for name in ("t1", "t2")), strict=True
    ):
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
    (note,) = examine(open_dataset(sliced)).notes
    assert note.startswith("1 case with t1 and t2 as if their names were exchanged")


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

        def count(item: str = "", **_: object) -> None:
            self.counted.append(item)

        yield count


@pytest.mark.parametrize(("cases", "counted"), [(50, 0), (51, 51)])
def test_many_cases_are_counted_aloud(cases, counted, write_case, tmp_path):
    write_case(tmp_path, [f"A{case}/A{case}_t1.nii.gz" for case in range(cases)])
    listener = Listener()
    examine(open_dataset(tmp_path), progress=listener)
    assert len(set(listener.counted)) == counted
