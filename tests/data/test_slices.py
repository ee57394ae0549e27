"""Training slices are the normalised volumes, to the precision of int16; batches are a function of (seed, step)."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import pytest
import torch

from attcl_cli.data import slices
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.sampling import Batch, Sampler
from attcl_cli.data.slices import Entry, SliceStore, build, open_store
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
        wanted, _ = reference(phantom_root, entry.case, entry.modality)
        rows = store.read(np.arange(entry.start, entry.start + entry.count))
        assert rows.shape == (16, 1, 16, 16)
        assert np.abs(rows[:, 0].numpy() - wanted).max() <= 0.5 / 32767 + 1e-6


def test_background_is_exactly_minus_one(store, phantom_root):
    wanted, _ = reference(phantom_root, "Phantom_00000", "t1")
    entry = next(
        item for item in store.entries if (item.case, item.modality) == ("Phantom_00000", "t1")
    )
    rows = store.read(np.arange(entry.start, entry.start + entry.count))[:, 0].numpy()
    assert (wanted == -1).any()
    assert (rows[wanted == -1] == -1).all()


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
        made = build(
            dataset,
            dataset.cases[:count],
            tmp_path / str(count),
            image_size=128,
            canvas=128,
            workers=0,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(made.data.size)  # a mask of all pixels has a byte per pixel
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
    made = build(dataset, dataset.cases[:2], tmp_path, image_size=16, canvas=64, labels=True)
    assert made.labels is not None
    assert made.tumour.tolist() == (made.labels > 0).any(axis=(1, 2)).tolist()
    assert {True, False} == set(made.tumour.tolist())


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


@pytest.mark.parametrize("workers", [0, 3])
def test_reading_ahead_changes_no_bit(workers, store, phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    seen: list[str] = []
    again = build(
        dataset,
        dataset.cases[:3],
        tmp_path,
        image_size=16,
        canvas=64,
        on_case=seen.append,
        workers=workers,
    )
    assert np.array_equal(again.data, store.data)
    assert seen == list(store.trained_on)


def test_modalities_that_no_training_case_has_are_left_out(incomplete_root, tmp_path):
    dataset = open_dataset(incomplete_root)
    made = build(dataset, dataset.cases[1:2], tmp_path, image_size=16, canvas=64, workers=0)
    assert made.modalities == ("flair", "t2")
    assert set(made.scales) == {"flair", "t2"}


def test_a_canvas_too_small_is_told_of_every_volume_with_one_that_fits(phantom_root, tmp_path):
    dataset = open_dataset(phantom_root)
    with pytest.raises(ProblemsError) as caught:
        build(dataset, dataset.cases[:2], tmp_path / "s", image_size=16, canvas=32)
    assert len(caught.value.problems) == 8
    first = caught.value.problems[0]
    assert first.message.endswith("axial slices of 40x40 voxels, expected at most 32x32")
    assert first.hint == "train with --set canvas=48"
    assert not (tmp_path / "s").exists()


def test_all_volumes_that_cannot_be_used_are_told(incomplete_root, tmp_path, write_nifti):
    shutil.rmtree(incomplete_root / "Phantom_00003")
    for case in ("Phantom_00000", "Phantom_00002"):
        path = incomplete_root / case / f"{case}_t1.nii.gz"
        image = nib.load(path)
        write_nifti(path, np.full(image.shape, 7, np.int16), affine=image.affine)
    dataset = open_dataset(incomplete_root)
    with pytest.raises(ProblemsError) as caught:
        build(dataset, dataset.cases, tmp_path / "s", image_size=16, canvas=64)
    found = [problem.message for problem in caught.value.problems]
    assert [message.split("/")[-1] for message in found] == [
        f"Phantom_{case:05d}_t1.nii.gz: every voxel is 7, expected an image" for case in (0, 2)
    ]


def test_a_disk_without_room_is_told_before_anything_is_read(phantom_root, tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "free_bytes", lambda _folder: 10)
    dataset = open_dataset(phantom_root)
    with pytest.raises(AttclError, match=r"0\.0 GB free, expected 0\.0 GB for training slices"):
        build(dataset, dataset.cases[:1], tmp_path / "s", image_size=16, canvas=64)
    assert not (tmp_path / "s").exists()


# --- the sampler ------------------------------------------------------------------------------------------------------


def made_store(volumes: list[tuple[str, str, int, int]], *, empty: list[int] = ()) -> SliceStore:
    """A store from (case, modality, count, first); every pixel of row r is r / 32767."""
    entries, start = [], 0
    for case, modality, count, first in volumes:
        entries.append(Entry(case, modality, start, count, first))
        start += count
    data = np.broadcast_to(np.arange(start, dtype=np.int16)[:, None, None], (start, 2, 2))
    return SliceStore(
        data=data,
        entries=tuple(entries),
        filled=~np.isin(np.arange(start), empty),
        modalities=tuple(sorted({modality for _, modality, _, _ in volumes})),
        scales={},
        trained_on=(),
    )


PARTLY_PAIRED = [("A", "t1", 5, 3), ("A", "t2", 5, 3), ("B", "t1", 4, 2), ("C", "t2", 6, 1)]


def same(first: Batch, second: Batch) -> bool:
    fields = ("x_src", "y_src", "x_ref", "x_ref2", "y_ref", "x_pair", "has_pair")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in fields)


def test_a_batch_is_a_function_of_seed_and_step(store):
    one, two = (Sampler(store, batch_size=4, seed=3) for _ in range(2))
    one.batch(0)
    one.batch(1)
    assert same(one.batch(7), two.batch(7))
    assert not same(one.batch(7), one.batch(8))
    assert not same(one.batch(7), Sampler(store, batch_size=4, seed=4).batch(7))


def test_a_batch_has_its_shapes_and_range(store):
    batch = Sampler(store, batch_size=3, seed=0).batch(0)
    for image in (batch.x_src, batch.x_ref, batch.x_ref2, batch.x_pair):
        assert image.shape == (3, 1, 16, 16)
        assert image.dtype == torch.float32
        assert image.min() >= -1
        assert image.max() <= 1
    assert batch.y_src.dtype == batch.y_ref.dtype == torch.int64


def row_owner(store: SliceStore) -> list[tuple[str, str, int]]:
    """Row -> case, modality, axial slice."""
    return [
        (entry.case, entry.modality, entry.first + offset)
        for entry in store.entries
        for offset in range(entry.count)
    ]


def test_domains_are_those_of_the_rows():
    store = made_store(PARTLY_PAIRED)
    owner, sampler = row_owner(store), Sampler(store, batch_size=8, seed=0)
    for step in range(30):
        rows = sampler.rows(step)
        for images, domains in (("x_src", "y_src"), ("x_ref", "y_ref"), ("x_ref2", "y_ref")):
            found = [owner[row][1] for row in rows[images]]
            assert found == [store.modalities[domain] for domain in rows[domains]]


def test_a_pair_is_the_same_slice_of_the_same_case_in_the_target_modality():
    store = made_store(PARTLY_PAIRED)
    owner, sampler = row_owner(store), Sampler(store, batch_size=8, seed=0)
    there = set(owner)
    seen = {True: 0, False: 0}
    for step in range(30):
        rows = sampler.rows(step)
        for source, target, pair in zip(rows["x_src"], rows["y_ref"], rows["x_pair"], strict=True):
            case, _, slice_ = owner[source]
            wanted = (case, store.modalities[target], slice_)
            assert (pair >= 0) == (wanted in there)
            if pair >= 0:
                assert owner[pair] == wanted
            seen[bool(pair >= 0)] += 1
    assert min(seen.values()) > 20


def test_pairs_that_are_not_there_are_background():
    store = made_store(PARTLY_PAIRED)
    sampler = Sampler(store, batch_size=8, seed=0)
    step = next(n for n in range(50) if {True, False} == set(sampler.rows(n)["x_pair"] >= 0))
    rows, batch = sampler.rows(step), sampler.batch(step)
    assert batch.has_pair.tolist() == (rows["x_pair"] >= 0).tolist()
    wanted = [row / 32767 if row >= 0 else -1 for row in rows["x_pair"]]
    assert batch.x_pair[:, 0, 1, 1].tolist() == pytest.approx(wanted)


def test_modalities_are_drawn_alike_however_many_volumes_they_have():
    store = made_store([("A", "t1", 90, 0), ("B", "t2", 10, 0)])
    sampler = Sampler(store, batch_size=10, seed=0)
    drawn = [sampler.rows(step) for step in range(200)]
    for name in ("y_src", "y_ref"):
        share = np.mean([rows[name] for rows in drawn])
        assert abs(share - 0.5) < 0.05  # 2000 draws: standard deviation 0.011


def test_slices_without_brain_are_never_drawn():
    empty = [0, 1, 2, 5, 10, 14]
    store = made_store(PARTLY_PAIRED, empty=empty)
    sampler = Sampler(store, batch_size=10, seed=0)
    drawn = {
        int(row)
        for step in range(50)
        for name in ("x_src", "x_ref", "x_ref2")
        for row in sampler.rows(step)[name]
    }
    assert drawn == set(range(20)) - set(empty)


def test_a_mirrored_source_takes_its_pair_along_and_references_are_mirrored_by_themselves():
    made = made_store(PARTLY_PAIRED)
    store = replace(
        made, data=np.random.default_rng(0).integers(0, 99, made.data.shape, dtype=np.int16)
    )
    plain = Sampler(store, batch_size=8, seed=0)
    mirrored = Sampler(store, batch_size=8, seed=0, mirror=0.5)
    seen = set()
    for step in range(20):
        rows, before, after = mirrored.rows(step), plain.batch(step), mirrored.batch(step)
        for name, chosen in zip(
            ("x_src", "x_ref", "x_ref2", "x_pair"),
            (*rows["mirrored"], rows["mirrored"][0]),
            strict=True,
        ):
            for index in range(8):
                wanted = getattr(before, name)[index]
                wanted = wanted.flip(-1) if chosen[index] else wanted
                assert torch.equal(getattr(after, name)[index], wanted)
        seen |= {tuple(column) for column in rows["mirrored"].T.tolist()}
    assert len(seen) == 8  # every combination of the three
