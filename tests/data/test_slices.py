"""Training slices are the normalised volumes, to the precision of int16; label maps beside them."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import pytest

from attcl_cli import files
from attcl_cli.data import slices
from attcl_cli.data.dataset import Source, open_dataset
from attcl_cli.data.slices import SliceStore, build, open_store
from attcl_cli.errors import AttclError, ProblemsError

FOUR = ("flair", "t1", "t1ce", "t2")


def reference(root, case: str, modality: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Slices 5..20 of a 40x40x26 phantom at 16 pixels, and the percentiles, by hand with nibabel and numpy."""
    read = {
        name: np.asarray(nib.load(root / case / f"{case}_{name}.nii.gz").dataobj, dtype=np.float64)
        for name in FOUR
    }
    brain = np.any([image != 0 for image in read.values()], axis=0)
    low, high = np.percentile(read[modality][brain], [0.5, 99.5])
    unit = (np.clip(read[modality], low, high) - low) / (high - low)
    whole = np.full((64, 64, 26), -1.0)
    whole[12:52, 12:52] = np.where(brain, 2 * unit - 1, -1)
    small = whole.reshape(16, 4, 16, 4, 26).mean(axis=(1, 3))
    return small.transpose(2, 1, 0)[5:21], (low, high)


# --- the store --------------------------------------------------------------------------------------------------------


def test_rows_are_the_normalised_middle_slices_to_int16_precision(store, phantom_root):
    for entry in store.entries:
        expected, _ = reference(phantom_root, entry.case, entry.modality)
        rows = store.read(np.arange(entry.start, entry.start + entry.count))
        assert rows.shape == (16, 1, 16, 16)
        assert np.abs(rows[:, 0].numpy() - expected).max() <= 0.5 / 32767 + 1e-6


def test_background_is_exactly_minus_one(store, phantom_root):
    expected, _ = reference(phantom_root, "Phantom_00000", "t1")
    entry = next(
        item for item in store.entries if (item.case, item.modality) == ("Phantom_00000", "t1")
    )
    rows = store.read(np.arange(entry.start, entry.start + entry.count))[:, 0].numpy()
    assert (expected == -1).any()
    assert (rows[expected == -1] == -1).all()


def test_entries_follow_one_another_case_by_case(store):
    assert [(entry.case, entry.modality) for entry in store.entries] == [
        (f"Phantom_{case:05d}", modality) for case in range(3) for modality in FOUR
    ]
    assert [entry.start for entry in store.entries] == list(range(0, 192, 16))
    assert {(entry.count, entry.first) for entry in store.entries} == {(16, 5)}
    assert store.trained_on == ("Phantom_00000", "Phantom_00001", "Phantom_00002")
    assert store.modalities == FOUR


def test_the_scale_of_a_modality_is_the_median_of_its_volumes(store, phantom_root):
    for modality in FOUR:
        pairs = [reference(phantom_root, f"Phantom_{case:05d}", modality)[1] for case in range(3)]
        assert store.scales[modality].low == pytest.approx(median(low for low, _ in pairs))
        assert store.scales[modality].high == pytest.approx(median(high for _, high in pairs))


def test_filled_says_which_slices_show_brain(store):
    assert store.filled.tolist() == (store.data > -32767).any(axis=(1, 2)).tolist()


def test_building_needs_no_more_memory_for_more_cases(tmp_path, write_case):
    names = [f"C{number:02d}/C{number:02d}_t1.nii.gz" for number in range(24)]
    write_case(tmp_path / "data", names, shape=(8, 8, 16))
    dataset = open_dataset(tmp_path / "data")
    peaks, sizes = [], []
    for count in (4, 24):
        tracemalloc.start()
        store = build(
            dataset,
            dataset.cases[:count],
            tmp_path / str(count),
            image_size=128,
            canvas=128,
            workers=0,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(store.data.size)  # a mask of all pixels has a byte per pixel
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4


def test_a_store_that_is_built_again_counts_only_when_it_is_finished(phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    sizes = {"image_size": 16, "canvas": 64, "workers": 0}
    build(dataset, dataset.cases[:2], tmp_path, **sizes)

    def die(_case: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(dataset, dataset.cases[:2], tmp_path, **sizes, on_case=die)
    assert not slices.is_store(tmp_path)


def test_tumour_says_which_label_slices_show_any(phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    store = build(dataset, dataset.cases[:2], tmp_path, image_size=16, canvas=64, labels=True)
    assert store.labels is not None
    assert store.tumour.tolist() == (store.labels > 0).any(axis=(1, 2)).tolist()
    assert {True, False} == set(store.tumour.tolist())


def test_all_axial_slices_are_stored_if_asked_for(phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    sizes = {"image_size": 16, "canvas": 64, "labels": True}
    middle, whole = (
        build(dataset, dataset.cases[:1], tmp_path / span, span=span, **sizes)
        for span in ("middle", "all")
    )
    assert {(entry.first, entry.count) for entry in middle.entries} == {(5, 16)}
    assert {(entry.first, entry.count) for entry in whole.entries} == {(0, 26)}
    assert whole.segmentations[0].count == 26
    assert np.array_equal(whole.data[5:21], middle.data[:16])
    assert whole.tumour.sum() >= middle.tumour.sum()


def test_the_slices_stay_on_the_disk(store):
    assert isinstance(store.data, np.memmap)
    assert store.data.dtype == np.int16


def test_a_store_opens_again_as_it_was(store):
    again = open_store(Path(store.data.filename).parent)
    assert [asdict(entry) for entry in again.entries] == [asdict(entry) for entry in store.entries]
    assert again.scales == store.scales
    assert np.array_equal(again.data, store.data)
    assert np.array_equal(again.filled, store.filled)
    assert (again.modalities, again.trained_on) == (store.modalities, store.trained_on)


def test_a_store_of_shifted_volumes_is_that_of_the_volumes_themselves(phantom_root, tmp_path):
    shutil.copytree(phantom_root, tmp_path / "shifted")
    for path in (tmp_path / "shifted").rglob("*.nii.gz"):
        if "_seg" not in path.name:
            image = nib.load(path)
            data = np.asanyarray(image.dataobj) + np.int16(10)
            nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    stores = []
    for root, background in ((phantom_root, "auto"), (tmp_path / "shifted", 10.0)):
        dataset = Source(root, background=background).open()
        folder = tmp_path / f"store-{background}"
        stores.append(build(dataset, dataset.cases[:1], folder, image_size=16, canvas=64))
        assert open_store(folder).background == background
    clean, shifted = stores
    assert np.array_equal(clean.data, shifted.data)
    assert clean.scales == shifted.scales


@pytest.mark.parametrize("workers", [0, 3])
def test_reading_ahead_changes_no_bit(workers, store, phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    reported: list[str] = []
    again = build(
        dataset,
        dataset.cases[:3],
        tmp_path,
        image_size=16,
        canvas=64,
        on_case=reported.append,
        workers=workers,
    )
    assert np.array_equal(again.data, store.data)
    assert reported == list(store.trained_on)


def test_modalities_that_no_training_case_has_are_left_out(incomplete_root, tmp_path):
    dataset = open_dataset(incomplete_root)
    store = build(dataset, dataset.cases[1:2], tmp_path, image_size=16, canvas=64, workers=0)
    assert store.modalities == ("flair", "t2")
    assert set(store.scales) == {"flair", "t2"}


def test_a_canvas_too_small_is_reported_for_every_volume_with_one_that_fits(phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    with pytest.raises(ProblemsError) as caught:
        build(dataset, dataset.cases[:2], tmp_path / "s", image_size=16, canvas=32)
    assert len(caught.value.problems) == 8
    first = caught.value.problems[0]
    assert first.message.endswith("axial slices of 40x40 voxels, expected at most 32x32")
    assert first.hint == "train with --set canvas=48"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("image_size", "canvas", "said"),
    [
        (16, 64, "4x4 voxels; --set canvas=48 makes it that of 3x3"),
        (40, 120, "3x3 voxels; --set canvas=40 makes it one voxel"),
        (16, 48, None),  # the smallest that holds them
        (64, 64, None),  # nothing is averaged
        (20, 40, None),
    ],
)
def test_a_canvas_that_costs_detail_is_noted_with_one_that_does_not(
    image_size, canvas, said, phantom_root
):
    dataset = open_dataset(phantom_root)
    notes = slices.notes_of_canvas(dataset, dataset.cases, image_size=image_size, canvas=canvas)
    if said is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith(
            f"slices have at most 40x40 voxels, and are padded to {canvas}x{canvas}:"
        )
        assert note.endswith(said)


def test_one_case_that_needs_the_canvas_is_enough(phantom_root, tmp_path, write_case):
    dataset = open_dataset(phantom_root)
    size = {"image_size": 16, "canvas": 64}
    assert slices.notes_of_canvas(dataset, [], **size) == []
    large = tmp_path / "large"
    write_case(large, ["P1/P1_t1.nii.gz", "P1/P1_t2.nii.gz"], shape=(60, 20, 8))
    wide = open_dataset(large)
    assert slices.notes_of_canvas(wide, wide.cases, **size) == []


def test_all_volumes_that_cannot_be_used_are_reported(incomplete_root, tmp_path, write_nifti):
    shutil.rmtree(incomplete_root / "Phantom_00003")
    for case in ("Phantom_00000", "Phantom_00002"):
        path = incomplete_root / case / f"{case}_t1.nii.gz"
        image = nib.load(path)
        write_nifti(path, np.full(image.shape, 7, np.int16), affine=image.affine)
    dataset = open_dataset(incomplete_root)
    with pytest.raises(ProblemsError) as caught:
        build(dataset, dataset.cases, tmp_path / "s", image_size=16, canvas=64)
    messages = [problem.message for problem in caught.value.problems]
    assert [message.split("/")[-1] for message in messages] == [
        f"Phantom_{case:05d}_t1.nii.gz: every voxel is 7, expected an image" for case in (0, 2)
    ]


def test_a_disk_without_room_is_reported_before_anything_is_read(
    phantom_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "free_bytes", lambda _folder: 10)
    dataset = open_dataset(phantom_root)
    with pytest.raises(AttclError, match=r"10 bytes free, expected about 32\.8 kB for training"):
        build(dataset, dataset.cases[:1], tmp_path / "s", image_size=16, canvas=64)
    assert not (tmp_path / "s").exists()


# --- label maps -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    dataset = open_dataset(phantom_root)
    folder = tmp_path_factory.mktemp("labelled")
    return build(
        dataset, dataset.cases[:2], folder, image_size=64, canvas=64, labels=True, workers=0
    )


def test_classes_are_the_label_map_s_with_4_as_the_third(labelled, phantom_root):
    for entry in labelled.segmentations:
        path = phantom_root / entry.case / f"{entry.case}_seg.nii.gz"
        stored = np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0)[5:21]
        expected = np.zeros((16, 64, 64))
        expected[:, 12:52, 12:52] = np.where(stored == 4, 3, stored)
        rows = labelled.labels[entry.start : entry.start + entry.count]
        assert np.array_equal(rows, expected)
        assert labelled.tumour[entry.start : entry.start + entry.count].tolist() == (
            expected.any(axis=(1, 2)).tolist()
        )
    assert labelled.tumour.any()


def test_label_maps_change_nothing_of_the_slices(labelled, phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    plain = build(dataset, dataset.cases[:2], tmp_path, image_size=64, canvas=64, workers=0)
    assert np.array_equal(plain.data, labelled.data)
    assert plain.entries == labelled.entries
    assert plain.labels is None
    assert plain.segmentations == ()


def test_slices_whose_label_maps_stayed_behind_open_without_them(labelled, tmp_path):
    folder = Path(labelled.data.filename).parent
    shutil.copytree(folder, tmp_path / "packed")
    (tmp_path / "packed/labels.npy").unlink()
    again = open_store(tmp_path / "packed")
    assert again.labels is None
    assert again.segmentations == ()
    assert np.array_equal(again.data, labelled.data)


def test_a_label_that_brats_does_not_know_is_reported(incomplete_root, write_nifti, tmp_path):
    path = incomplete_root / "Phantom_00000/Phantom_00000_seg.nii.gz"
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).astype(np.int16)
    values[0, 0, 0] = 9
    write_nifti(path, values, affine=image.affine)
    other = incomplete_root / "Phantom_00002/Phantom_00002_seg.nii.gz"
    write_nifti(other, values[:-1], affine=image.affine)
    dataset = open_dataset(incomplete_root)
    with pytest.raises(ProblemsError) as caught:
        build(dataset, dataset.cases, tmp_path / "s", image_size=16, canvas=64, labels=True)
    messages = [problem.message for problem in caught.value.problems]
    assert "Phantom_00000_seg.nii.gz: label 9, expected the labels of BraTS" in messages[0]
    assert "Phantom_00002_seg.nii.gz: shape" in messages[1]
