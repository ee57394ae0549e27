"""A dataset at half its resolution: the same patients, places and labels, and nothing that a check refuses."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
from halve import halved, main

from attcl_cli.data.info import dataset_info


def test_a_smaller_dataset_has_the_same_patients_in_the_same_place(
    phantom_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["halve.py", str(phantom_root), str(tmp_path / "half")])
    main()
    before, after = (dataset_info(folder) for folder in (phantom_root, tmp_path / "half"))
    for key in ("cases", "modalities", "volumes", "segmentations", "layout", "problems"):
        assert after[key] == before[key]
    name = "Phantom_00000/Phantom_00000_t1.nii.gz"
    large, small = nib.load(phantom_root / name), nib.load(tmp_path / "half" / name)
    assert small.shape == tuple(length // 2 for length in large.shape)
    assert small.header.get_zooms() == tuple(2 * width for width in large.header.get_zooms())
    assert small.get_data_dtype() == large.get_data_dtype()
    ours = small.affine @ [0, 0, 0, 1]
    assert ours == pytest.approx(large.affine @ [0.5, 0.5, 0.5, 1])
    with pytest.raises(SystemExit):  # a folder that exists
        main()


@pytest.mark.parametrize(
    ("labels", "block", "value"),
    [
        (False, [0, 0, 0, 0, 2, 4, 6, 8], 5),  # of four voxels with tissue
        (False, [0, 0, 0, 0, 0, 9, 9, 9], 0),  # mostly background
        (True, [0, 0, 0, 4, 4, 4, 4, 1], 4),
    ],
)
def test_a_block_is_the_mean_of_its_tissue_or_its_most_frequent_label(labels, block, value):
    data = np.array(block, np.int16).reshape(2, 2, 2)
    image = nib.Nifti1Image(data, np.eye(4))
    assert halved(image, labels=labels).get_fdata().tolist() == [[[value]]]
