"""A case is read as the network sees it, the store holds the slices with brain, and a batch hangs on (seed, step)."""

from __future__ import annotations

from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest
import torch
from segmenters import BRATS_2021, MODALITIES, SIZE, first_case, plan_of

from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.labels import CONVENTIONS
from attcl_cli.data.slices import is_store
from attcl_cli.errors import AttclError
from attcl_cli.segmentation import slices
from attcl_cli.segmentation.inputs import Sample, Size

# --- reading ---


def test_completed_and_real_show_all_channels_and_a_perfect_completion_is_the_truth(study):
    completed, real = (first_case(study, name) for name in ("completed", "real"))
    assert completed.images.shape == (26, 4, 40, 40)
    np.testing.assert_array_equal(completed.images, real.images)


def test_a_missing_channel_is_zero_after_normalisation(study):
    case = first_case(study, "incomplete")
    hidden = study.splits.splits["train"][0].hidden
    for number, name in enumerate(MODALITIES):
        channel = case.images[:, number]
        if name in hidden:
            assert not channel.any()
        else:
            assert (channel.min(), channel.max()) == (-1, 1)
            assert (channel[~case.brain] == -1).all()


def test_a_modality_alone_is_one_channel_of_the_dataset(study):
    case = first_case(study, "flair")
    item = study.splits.names("train")[0]
    image = volumes.load([study.root / "data" / item / f"{item}_flair.nii.gz"]).data
    brain = image != 0
    expected = intensities.normalise(image, brain, intensities.intensity_scale(image, brain))
    np.testing.assert_array_equal(case.images[:, 0], expected)
    assert case.images.shape[1] == 1


def test_slices_are_padded_and_averaged_down(study):
    sample = plan_of(study, "flair").inputs["flair"].splits["train"][0]
    whole = slices.load(sample, Size(image=48, canvas=48), BRATS_2021)
    small = slices.load(sample, Size(image=24, canvas=48), BRATS_2021)
    blocks = whole.images.reshape(26, 1, 24, 2, 24, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(small.images, blocks, atol=1e-6)
    assert small.truth.shape == (26, 40, 40)  # the truth keeps the case's resolution


def test_both_releases_of_a_case_are_read_identically(phantoms, tmp_path):
    # The shared cohort is written with a 4 in every layout; here its labels become those of 2023.
    old = open_dataset(phantoms("brats2023"))
    case = old.cases[0]
    source = old.paths(case, "seg")[0]
    image = nib.load(source)
    labels = np.asarray(image.dataobj)
    new = tmp_path / "seg.nii.gz"
    nib.save(
        nib.Nifti1Image(np.where(labels == 4, 3, labels).astype(np.float32), image.affine), new
    )
    flair = old.paths(case, "flair")
    one, other = (
        slices.load(Sample(case.id, case.id, (flair,), (path,)), SIZE, CONVENTIONS[name])
        for path, name in ((source, "2021"), (new, "2023"))
    )
    assert one.truth.max() == 3
    np.testing.assert_array_equal(one.truth, other.truth)


def test_a_label_map_of_another_shape_is_refused(study, tmp_path):
    sample = plan_of(study, "flair").inputs["flair"].splits["train"][0]
    image = nib.load(sample.segmentation[0])
    path = tmp_path / "short.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)
    with pytest.raises(AttclError) as error:
        slices.load(Sample("a", "a", sample.channels, (path,)), SIZE, BRATS_2021)
    assert error.value.code == "grids-differ"


# --- the store ---


def test_the_store_holds_the_slices_that_show_brain(study, packed):
    case = first_case(study, "incomplete")
    with_brain = case.brain.any(axis=(1, 2))
    rows = packed.entries[0].rows
    assert rows == slice(0, with_brain.sum()) and rows.stop < 26
    np.testing.assert_allclose(packed.images[rows] / 32767, case.images[with_brain], atol=1e-4)
    np.testing.assert_array_equal(packed.classes[rows], case.truth[with_brain])
    np.testing.assert_array_equal(packed.tumour, packed.classes.any(axis=(1, 2)))
    assert packed.cases == study.splits.names("train")


def test_a_store_is_whole_or_none(study, packed, tmp_path):
    assert is_store(tmp_path / "slices")
    again = slices.open_store(tmp_path / "slices")
    np.testing.assert_array_equal(again.images, packed.images)
    assert again.entries == packed.entries
    samples = plan_of(study, "flair").inputs["flair"].splits["train"]
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(b"no image")
    broken = Sample("b", "b", ((path,),), samples[0].segmentation)
    with pytest.raises(AttclError):
        slices.build([broken], tmp_path / "slices", size=SIZE, convention=BRATS_2021)
    with pytest.raises(AttclError):
        slices.build([samples[0], broken], tmp_path / "new", size=SIZE, convention=BRATS_2021)
    assert not is_store(tmp_path / "new")


def test_a_full_disk_is_found_before_anything_is_written(study, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(10, 10, 0))
    samples = plan_of(study, "flair").inputs["flair"].splits["train"]
    with pytest.raises(AttclError) as error:
        slices.build(samples, tmp_path / "new", size=SIZE, convention=BRATS_2021)
    assert error.value.code == "disk-full" and not (tmp_path / "new").exists()
    assert "new: 0 bytes free, expected about" in error.value.message


# --- batches ---


def sampler(packed, **changes) -> slices.SliceSampler:
    options = {"batch_size": 8, "seed": 0, "tumour_share": 0.5, "augment": True}
    return slices.SliceSampler(packed, **{**options, **changes})


def test_a_batch_is_a_function_of_seed_and_step(packed):
    first, again, other, seeded = (
        sampler(packed, seed=seed).batch(step) for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert torch.equal(first.images, again.images) and torch.equal(first.gain, again.gain)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, seeded.images)


def test_a_share_of_the_batch_shows_tumour(packed):
    whole = sampler(packed, tumour_share=1.0).batch(0)
    assert whole.classes.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_each_process_gets_its_share_of_the_tumour(packed, processes):
    batch = sampler(packed, tumour_share=0.5).batch(0)
    shown = batch.classes.flatten(1).any(dim=1).reshape(processes, -1)
    chosen = torch.arange(8).remainder(2).eq(0).reshape(processes, -1)
    assert shown[chosen].all()
    assert chosen.any(dim=1).all() or processes == 8


def test_augmentation_leaves_background_and_missing_channels_as_they_are(packed):
    batch = sampler(packed).batch(0)
    plain, classes = sampler(packed, augment=False).batch(0).varied()
    varied, mirrored = batch.varied()
    back = torch.where(batch.mirrored[:, None, None, None], varied.flip(-1), varied)
    assert torch.equal(
        torch.where(batch.mirrored[:, None, None, None], mirrored.flip(-1), mirrored), classes
    )
    background = plain == -1
    assert (back[background] == -1).all()
    missing = ~plain.flatten(2).any(dim=2)
    assert missing.any() and not back[missing].any()
    present = ~background & ~missing[:, :, None, None]
    assert 0 < (back - plain)[present].abs().max() <= 0.2 + 1e-6
