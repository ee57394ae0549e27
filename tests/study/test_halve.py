"""A dataset at half its resolution: the same patients, places and labels, and nothing that a check refuses."""

from __future__ import annotations

import json
import shutil
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


def test_other_names_are_halved_and_what_is_wrong_is_an_error_without_a_traceback(
    phantom_root, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "all"
    shutil.copytree(phantom_root, root)
    for path in root.rglob("*_t1.nii.gz"):
        path.rename(path.with_name(path.name.replace("_t1.", "_first.")))
    tokens = '[modalities]\nflair = ["flair"]\nt1 = ["first"]\nt1ce = ["t1ce"]\nt2 = ["t2"]\n'
    (tmp_path / "names.toml").write_text(tokens)
    words = [
        "halve.py",
        str(root),
        str(tmp_path / "half"),
        "--modalities",
        str(tmp_path / "names.toml"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert dataset_info(tmp_path / "half")["modalities"] == ["flair", "t1", "t1ce", "t2"]
    for wrong in (tmp_path / "none", root):
        next(root.rglob("*_t2.nii.gz")).write_bytes(b"no image")
        monkeypatch.setattr(sys, "argv", ["halve.py", str(wrong), str(tmp_path / "other")])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "other").exists()


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


def test_trailing_axes_of_length_1_are_dropped():
    data = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    flat = halved(nib.Nifti1Image(data, np.eye(4)), labels=False)
    small = halved(nib.Nifti1Image(data[..., None, None], np.eye(4)), labels=False)
    assert small.shape == (1, 1, 1)
    assert small.get_fdata() == flat.get_fdata()
    assert small.header.get_zooms() == flat.header.get_zooms()


def test_a_file_that_is_no_volume_is_an_error_that_names_it(
    phantom_root, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "all"
    shutil.copytree(phantom_root, root)
    file = root / "Phantom_00000" / "Phantom_00000_t1.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), file)
    monkeypatch.setattr(sys, "argv", ["halve.py", str(root), str(tmp_path / "half")])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(
        f"error: {file}: 4-D (4x4x4x2), expected one 3-D volume"
    )
    assert not (tmp_path / "half").exists()


def test_a_dataset_of_nnunet_keeps_the_file_that_names_its_channels(
    phantom_root, tmp_path, monkeypatch
):
    root = tmp_path / "Dataset501"
    (root / "imagesTr").mkdir(parents=True)
    channels = {str(number): name for number, name in enumerate(("FLAIR", "T1", "T1ce", "T2"))}
    described = {"channel_names": channels, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**described, "numTraining": 2}))
    for case in ("Phantom_00000", "Phantom_00001"):
        for number, name in channels.items():
            source = phantom_root / case / f"{case}_{name.lower()}.nii.gz"
            shutil.copy(source, root / "imagesTr" / f"{case}_{int(number):04d}.nii.gz")
    monkeypatch.setattr(sys, "argv", ["halve.py", str(root), str(tmp_path / "half")])
    main()
    before, after = (dataset_info(folder) for folder in (root, tmp_path / "half"))
    assert after["problems"] == before["problems"] == []
    assert after["modalities"] == before["modalities"] == ["flair", "t1", "t1ce", "t2"]
