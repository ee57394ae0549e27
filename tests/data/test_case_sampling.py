"""Batches of whole cases: which slices, which sources, which labels; and validation with many sources."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.sampling import CaseBatches, CaseSampler, Sampler, SliceBatches, sampler_of
from attcl_cli.data.slices import Entry, SliceStore, build, open_store
from attcl_cli.errors import AttclError, ProblemsError
from attcl_cli.training import validation as validate

FOUR = ("flair", "t1", "t1ce", "t2")
ANY = CaseBatches(dict.fromkeys(FOUR, ()))


def made_store(
    cases: dict[str, tuple[str, ...]],
    *,
    segmented: dict[str, list[int]] | None = None,
    depth: int = 5,
) -> SliceStore:
    """Cases with volumes of `depth` slices; pixels of row r are r / 32767, `segmented` says where tumour is."""
    entries = []
    for case, names in cases.items():
        for name in names:
            entries.append(Entry(case, name, len(entries) * depth, depth, 2))
    maps, labels = [], np.zeros((len(segmented or {}) * depth, 2, 2), dtype=np.uint8)
    for index, (case, slices) in enumerate((segmented or {}).items()):
        maps.append(Entry(case, "seg", index * depth, depth, 2))
        for number in slices:
            labels[index * depth + number, 0, 0] = 3
    count = len(entries) * depth
    return SliceStore(
        data=np.broadcast_to(np.arange(count, dtype=np.int16)[:, None, None], (count, 2, 2)),
        entries=tuple(entries),
        filled=np.ones(count, dtype=bool),
        modalities=FOUR,
        scales={},
        trained_on=tuple(cases),
        labels=labels if maps else None,
        segmentations=tuple(maps),
        tumour=labels.any(axis=(1, 2)),
    )


MIXED = {"A": FOUR, "B": ("flair", "t1"), "C": ("t2",), "D": ("flair", "t1", "t2")}


def drawn(sampler: CaseSampler, steps: int = 200) -> list[tuple[str, str, frozenset[str], int]]:
    """(case, target, sources, offset) of many draws."""
    names = list(dict.fromkeys(entry.case for entry in sampler.store.entries))
    found = []
    for step in range(steps):
        rows = sampler.rows(step)
        for case, target, sources, offset in zip(
            rows["case"], rows["target"], rows["sources"], rows["offset"], strict=True
        ):
            own = frozenset(np.array(FOUR)[sources])
            found.append((names[case], FOUR[target], own, int(offset)))
    return found


def test_a_target_is_there_and_all_others_of_the_case_are_its_sources():
    for case, target, sources, _ in drawn(
        CaseSampler(made_store(MIXED), ANY, batch_size=4, seed=0)
    ):
        assert target in MIXED[case]
        assert sources == set(MIXED[case]) - {target}
        assert sources


def test_a_case_with_one_modality_teaches_nothing():
    found = drawn(CaseSampler(made_store(MIXED), ANY, batch_size=4, seed=0))
    assert {case for case, *_ in found} == {"A", "B", "D"}


def test_targets_are_drawn_alike_however_many_cases_have_them():
    found = drawn(CaseSampler(made_store(MIXED), ANY, batch_size=10, seed=0))
    counts = Counter(target for _, target, *_ in found)
    assert all(abs(counts[name] / len(found) - 0.25) < 0.04 for name in FOUR)  # sd .01


def test_sources_that_are_left_out_leave_any_set_but_the_empty_one():
    wanted = CaseBatches(dict.fromkeys(FOUR, ()), leave_out=1.0)
    found = drawn(CaseSampler(made_store({"A": FOUR}), wanted, batch_size=10, seed=0))
    sets = {target: {own for _, name, own, _ in found if name == target} for target in FOUR}
    for target, seen in sets.items():
        assert len(seen) == 7  # of three others
        assert frozenset() not in seen
        assert all(target not in own for own in seen)


def test_half_of_the_cases_keep_all_their_sources_if_half_lose_some():
    wanted = CaseBatches(dict.fromkeys(FOUR, ()), leave_out=0.5)
    found = drawn(CaseSampler(made_store({"A": FOUR}), wanted, batch_size=10, seed=0))
    share = np.mean([len(own) == 3 for _, _, own, _ in found])
    assert abs(share - (0.5 + 0.5 / 3)) < 0.05  # a third of those that may lose some lose none


def test_a_dedicated_model_learns_from_cases_that_have_all_it_needs():
    wanted = CaseBatches({"t1ce": ("flair", "t1", "t2")})
    cases = {"A": FOUR, "B": ("flair", "t1", "t1ce"), "C": FOUR}
    found = drawn(CaseSampler(made_store(cases), wanted, batch_size=4, seed=0))
    assert {(case, target, own) for case, target, own, _ in found} == {
        (case, "t1ce", frozenset({"flair", "t1", "t2"})) for case in "AC"
    }


def test_nothing_to_learn_from_is_an_error():
    wanted = CaseBatches({"t1ce": ("flair", "t1", "t2")})
    with pytest.raises(AttclError, match="none has t1ce beside what it is made from"):
        CaseSampler(made_store({"B": ("flair", "t1", "t1ce")}), wanted, batch_size=1, seed=0)


def test_slices_with_tumour_are_preferred_where_that_is_known():
    wanted = CaseBatches({"t1": ()}, tumour_slices=1.0)
    cases = {"A": ("t1", "t2"), "B": ("t1", "t2")}
    store = made_store(cases, segmented={"A": [1, 3]})
    found = drawn(CaseSampler(store, wanted, batch_size=4, seed=0))
    assert {offset for case, _, _, offset in found if case == "A"} == {1, 3}
    assert {offset for case, _, _, offset in found if case == "B"} == {0, 1, 2, 3, 4}


def test_without_the_preference_all_slices_are_drawn():
    store = made_store({"A": ("t1", "t2")}, segmented={"A": [1]})
    found = drawn(CaseSampler(store, CaseBatches({"t1": ()}), batch_size=4, seed=0))
    assert {offset for *_, offset in found} == {0, 1, 2, 3, 4}


def test_a_batch_holds_the_very_slices_and_background_for_what_is_lacking():
    store = made_store(MIXED, segmented={"A": [0, 1, 2, 3, 4]})
    sampler = CaseSampler(store, ANY, batch_size=8, seed=0)
    start = {(entry.case, entry.modality): entry.start for entry in store.entries}
    rows, batch = sampler.rows(3), sampler.batch(3)
    assert batch.images.shape == (8, 4, 2, 2)
    for index, (case, offset) in enumerate(zip(rows["case"], rows["offset"], strict=True)):
        name = "ABCD"[case]
        for slot, modality in enumerate(FOUR):
            row = start.get((name, modality))
            wanted = -1 if row is None else (row + offset) / 32767
            assert batch.images[index, slot, 0, 0] == pytest.approx(wanted)
        assert batch.has_labels[index] == (name == "A")
        assert batch.labels[index].tolist() == (
            [[3, 0], [0, 0]] if name == "A" else [[0, 0], [0, 0]]
        )
    assert batch.image(batch.target).shape == (8, 1, 2, 2)


def test_a_batch_is_a_function_of_seed_and_step():
    wanted = CaseBatches(dict.fromkeys(FOUR, ()), leave_out=0.5, tumour_slices=0.5)
    one, two = (CaseSampler(made_store(MIXED), wanted, batch_size=4, seed=3) for _ in range(2))
    one.batch(0)
    first, again, other = one.batch(7), two.batch(7), one.batch(8)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.sources, again.sources)
    assert not torch.equal(first.images, other.images)


def test_mirrored_cases_take_their_labels_along():
    made = made_store({"A": FOUR}, segmented={"A": [0, 1, 2, 3, 4]})
    noise = np.random.default_rng(0).integers(0, 99, made.data.shape, dtype=np.int16)
    store = replace(made, data=noise)
    before = CaseSampler(store, ANY, batch_size=4, seed=0).batch(0)
    after = CaseSampler(store, ANY, batch_size=4, seed=0, mirror=1).batch(0)
    assert torch.equal(after.images, before.images.flip(-1))
    assert torch.equal(after.labels, before.labels.flip(-1))
    assert before.labels[:, 0, 0].eq(3).all()
    assert after.labels[:, 0, -1].eq(3).all()


def test_a_part_of_a_batch_knows_the_share_of_labels_in_the_whole():
    store = made_store({"A": FOUR, "B": FOUR}, segmented={"A": [0]})
    batch = CaseSampler(store, ANY, batch_size=8, seed=0).batch(0)
    part = batch.part(slice(2, 4))
    assert len(part) == 2
    assert part.label_share == pytest.approx(batch.has_labels.float().mean().item())
    assert part.part(slice(0, 1)).label_share == part.label_share


def test_a_method_s_wish_chooses_the_sampler():
    store = made_store(MIXED)
    slices = sampler_of(store, SliceBatches(0.25), batch_size=2, seed=0)
    assert isinstance(slices, Sampler)
    assert slices.pair_targets == 0.25
    assert isinstance(sampler_of(store, ANY, batch_size=2, seed=0), CaseSampler)


# --- label maps in the store ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    dataset = open_dataset(phantom_root)
    folder = tmp_path_factory.mktemp("labelled")
    return build(
        dataset, dataset.cases[:2], folder, image_size=64, canvas=64, labels=True, workers=0
    )


def test_classes_are_the_label_map_s_with_4_as_the_third(labelled, phantom_root):
    import nibabel as nib

    for entry in labelled.segmentations:
        path = phantom_root / entry.case / f"{entry.case}_seg.nii.gz"
        stored = np.asanyarray(nib.load(path).dataobj).transpose(2, 1, 0)[5:21]
        wanted = np.zeros((16, 64, 64))
        wanted[:, 12:52, 12:52] = np.where(stored == 4, 3, stored)
        rows = labelled.labels[entry.start : entry.start + entry.count]
        assert np.array_equal(rows, wanted)
        assert labelled.tumour[entry.start : entry.start + entry.count].tolist() == (
            wanted.any(axis=(1, 2)).tolist()
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
    import shutil

    folder = Path(labelled.data.filename).parent
    shutil.copytree(folder, tmp_path / "packed")
    (tmp_path / "packed/labels.npy").unlink()
    again = open_store(tmp_path / "packed")
    assert again.labels is None
    wanted = CaseBatches(dict.fromkeys(FOUR, ()), tumour_slices=1.0)
    batch = CaseSampler(again, wanted, batch_size=2, seed=0).batch(0)
    assert not batch.has_labels.any()


def test_a_label_that_brats_does_not_know_is_told(incomplete_root, write_nifti, tmp_path):
    import nibabel as nib

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
    told = [problem.message for problem in caught.value.problems]
    assert "Phantom_00000_seg.nii.gz: label 9, expected the labels of BraTS" in told[0]
    assert "Phantom_00002_seg.nii.gz: shape" in told[1]


# --- validation -------------------------------------------------------------------------------------------------------


class Oracle:
    """Answers with the true slice, which it finds by its sources; notes what it was given."""

    def __init__(self, store: SliceStore, noise: float = 0.0) -> None:
        self.noise, self.asked = noise, []
        self.store = store
        starts = {(entry.case, entry.modality): entry for entry in store.entries}
        slices = store.read(np.arange(len(store.data)))
        self.answers = {}
        for (case, _), entry in starts.items():
            for target in store.modalities:
                for index in range(entry.count):
                    key = slices[entry.start + index].numpy().tobytes()
                    self.answers[target, key] = slices[starts[case, target].start + index]

    def synthesise(self, sources, targets, *, sample=None):
        (target,) = targets
        self.asked.append((tuple(sources), target))
        keys = [item.numpy().tobytes() for item in next(iter(sources.values()))]
        true = torch.stack([self.answers[target, key] for key in keys])
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
        return {target: true + self.noise * noise}


def test_validation_hands_in_all_other_modalities(store):
    score = validate.on_cases(store, torch.device("cpu"), needs=dict.fromkeys(FOUR, ()))
    oracle = Oracle(store)
    assert score(oracle) == pytest.approx(1.0)
    assert set(oracle.asked) == {
        (tuple(name for name in FOUR if name != target), target) for target in FOUR
    }
    assert score(Oracle(store, 0.5)) < score(Oracle(store, 0.1)) < 1


def test_validation_of_a_dedicated_model_asks_for_its_target_alone(store):
    needs = {"t1ce": ("flair", "t1", "t2")}
    oracle = Oracle(store)
    validate.on_cases(store, torch.device("cpu"), needs=needs)(oracle)
    assert {target for _, target in oracle.asked} == {"t1ce"}


def test_without_a_case_that_allows_it_there_is_nothing_to_validate_on():
    store = made_store({"A": ("t1",)})
    assert validate.on_cases(store, torch.device("cpu"), needs=dict.fromkeys(FOUR, ())) is None
