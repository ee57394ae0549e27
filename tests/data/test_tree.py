"""The data tree: it holds what remains, appears whole or not at all, and never touches an original."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from attcl_cli.data.dataset import Dataset, open_dataset
from attcl_cli.data.derivative import metadata_of
from attcl_cli.data.phantom_cohort import COHORT_LAYOUTS
from attcl_cli.data.splits import Splits, make_splits, read_splits, to_json
from attcl_cli.data.tree import write_tree
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import sha256
from attcl_cli.temporaries import TEMPORARY_SUFFIX, temporary_folder, temporary_prefix

FOUR = ("flair", "t1", "t1ce", "t2")


@pytest.fixture
def made(phantom_root: Path) -> tuple[Dataset, Splits]:
    dataset = open_dataset(phantom_root)
    return dataset, make_splits(dataset, ratio="ratio1", sizes=(3, 0, 1))


@pytest.fixture
def copied(phantom_root: Path, tmp_path: Path) -> tuple[Dataset, Splits]:
    """The same of a copy of the dataset, which may be changed."""
    shutil.copytree(phantom_root, tmp_path / "originals")
    dataset = open_dataset(tmp_path / "originals")
    return dataset, make_splits(dataset, ratio="ratio1", sizes=(3, 0, 1))


def kept_names(splits: Splits) -> set[str]:
    return {
        f"{item.case}/{item.case}_{name}.nii.gz"
        for items in splits.splits.values()
        for item in items
        for name in (*item.present, "seg")
    }


def images(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz")}


@pytest.mark.parametrize("link", ["symlink", "hardlink", "copy"])
def test_the_tree_holds_what_remains_and_the_originals_stay(link, made, tmp_path):
    dataset, splits = made
    before = {path: sha256(path) for path in dataset.root.rglob("*.nii.gz")}
    assert write_tree(dataset, splits, tmp_path / "data", link=link)
    assert images(tmp_path / "data") == kept_names(splits)
    for name in kept_names(splits):
        file, original = tmp_path / "data" / name, dataset.root / name
        assert sha256(file) == before[original]
        assert file.is_symlink() == (link == "symlink")
        assert file.samefile(original) == (link != "copy")
    assert {path: sha256(path) for path in dataset.root.rglob("*.nii.gz")} == before


@pytest.mark.parametrize("layout", COHORT_LAYOUTS)
def test_the_tree_of_every_layout_reads_back_as_the_splits_say(layout, phantoms, tmp_path):
    dataset = open_dataset(phantoms(layout))
    splits = make_splits(dataset, ratio="ratio1", sizes=(3, 0, 1))
    write_tree(dataset, splits, tmp_path / "data")
    tree = open_dataset(tmp_path / "data")
    present = {item.case: set(item.present) for split in splits.splits.values() for item in split}
    assert tree.layout.name == layout
    assert {case.id: set(case.files) for case in tree.cases} == present
    assert tree.problems == ()


@pytest.mark.parametrize("link", ["symlink", "copy"])
def test_the_metadata_of_bids_goes_along_but_not_that_of_hidden_images(link, gappy, tmp_path):
    root = gappy("bids", [[]] * 4)
    (root / "T1w.json").write_text('{"SkullStripped": false, "RepetitionTime": 2}')
    for image in root.rglob("*.nii.gz"):
        name = image.name.removesuffix(".nii.gz")
        image.with_name(f"{name}.json").write_text(json.dumps({"SeriesDescription": name}))
    dataset = open_dataset(root)
    splits = make_splits(dataset, ratio="ratio1", sizes=(3, 0, 1))
    assert write_tree(dataset, splits, tmp_path / "data", link=link)
    tree = open_dataset(tmp_path / "data")
    kept = [file for file in tree.every_file() if (root / file).is_file()]
    assert len(kept) == len(kept_names(splits))
    for file in kept:
        assert metadata_of(tree.root, file) == metadata_of(root, file) != {}
    assert any(metadata_of(tree.root, file).get("RepetitionTime") == 2 for file in kept)
    side_cars = {path.name for path in tree.root.rglob("sub-*.json")}
    assert side_cars == {file.name.replace(".nii.gz", ".json") for file in kept}
    assert not write_tree(dataset, splits, tmp_path / "data", link=link)


def test_splits_json_has_its_schema_and_comes_back(made, tmp_path):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "data")
    document = json.loads((tmp_path / "data" / "splits.json").read_text())
    assert list(document) == [
        "schema_version", "source", "layout", "ratio", "seed", "modalities", "splits",
    ]  # fmt: skip
    assert document["schema_version"] == 1
    assert document["source"] == str(dataset.root.resolve())
    assert (document["layout"], document["ratio"], document["seed"]) == ("brats", "ratio1", 0)
    assert document["modalities"] == list(FOUR)
    assert list(document["splits"]) == ["train", "val", "test"]
    assert list(document["splits"]["train"][0]) == ["case", "present", "hidden"]
    assert document == to_json(splits)
    assert read_splits(tmp_path / "data") == splits


def test_the_same_splits_are_not_written_a_second_time(made, tmp_path):
    dataset, splits = made
    assert write_tree(dataset, splits, tmp_path / "data")
    times = {path: path.lstat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert not write_tree(dataset, splits, tmp_path / "data")
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == times


@pytest.mark.parametrize("first", ["symlink", "hardlink", "copy"])
def test_another_link_needs_overwrite(first, made, tmp_path):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "data", link=first)
    assert not write_tree(dataset, splits, tmp_path / "data", link=first, overwrite=True)
    second = {"symlink": "copy", "hardlink": "symlink", "copy": "hardlink"}[first]
    with pytest.raises(UsageError) as caught:
        write_tree(dataset, splits, tmp_path / "data", link=second)
    assert caught.value.code == "other-link"
    assert caught.value.message.endswith(f"is a {first}, expected the same")
    assert write_tree(dataset, splits, tmp_path / "data", link=second, overwrite=True)
    file = tmp_path / "data" / min(kept_names(splits))
    assert file.is_symlink() == (second == "symlink")
    assert file.samefile(dataset.root / min(kept_names(splits))) == (second != "copy")


@pytest.mark.parametrize("left", ["nothing", "a link to nothing"])
def test_a_tree_that_lost_a_file_needs_overwrite(left, made, tmp_path):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "data")
    name = min(kept_names(splits))
    file = tmp_path / "data" / name
    file.unlink()
    if left != "nothing":
        file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError) as caught:
        write_tree(dataset, splits, tmp_path / "data")
    assert caught.value.code == "tree-incomplete"
    assert f"has lost 1 file of its splits (the first: {name})" in caught.value.message
    assert write_tree(dataset, splits, tmp_path / "data", overwrite=True)
    assert file.samefile(dataset.root / name)


def test_other_splits_need_overwrite(made, tmp_path):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "data")
    other = make_splits(dataset, ratio="ratio3", sizes=(4, 0, 0))
    with pytest.raises(UsageError, match="exists already, expected a new folder"):
        write_tree(dataset, other, tmp_path / "data")
    assert read_splits(tmp_path / "data") == splits
    assert write_tree(dataset, other, tmp_path / "data", overwrite=True)
    assert read_splits(tmp_path / "data") == other
    assert images(tmp_path / "data") == kept_names(other)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_refused_even_with_overwrite(overwrite, made, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError) as caught:
        write_tree(*made, tmp_path / "data", overwrite=overwrite)
    assert caught.value.code == ("output-not-ours" if overwrite else "output-not-empty")
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_of_the_output_is_refused(overwrite, made, tmp_path):
    (tmp_path / "data").write_text("years of work")
    with pytest.raises(UsageError) as caught:
        write_tree(*made, tmp_path / "data", overwrite=overwrite)
    assert caught.value.code == "output-not-a-folder"
    assert (tmp_path / "data").read_text() == "years of work"


def test_overwriting_a_link_replaces_the_link_and_not_what_it_leads_to(made, tmp_path):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "real")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    other = make_splits(dataset, ratio="ratio3", sizes=(4, 0, 0))
    write_tree(dataset, other, tmp_path / "data", overwrite=True)
    assert read_splits(tmp_path / "real") == splits
    assert read_splits(tmp_path / "data") == other


@pytest.mark.parametrize("place", ["inner/data", ".", "..", "link/data"])
def test_an_output_inside_or_around_the_dataset_is_refused(place, made, tmp_path):
    dataset, splits = made
    (tmp_path / "link").symlink_to(dataset.root)
    output = tmp_path / place if place.startswith("link") else dataset.root / place
    with pytest.raises(UsageError, match="contain one another"):
        write_tree(dataset, splits, output)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EXDEV])
def test_a_tree_that_cannot_be_finished_leaves_nothing(code, made, tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(AttclError, match=r"data: not written") as caught:
        write_tree(*made, tmp_path / "data", link="hardlink")
    assert os.strerror(code) in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_overwriting_keeps_the_tree_that_was_there(made, tmp_path, monkeypatch):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "data")
    other = make_splits(dataset, ratio="ratio3", sizes=(4, 0, 0))

    def refuse(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(AttclError):
        write_tree(dataset, other, tmp_path / "data", link="hardlink", overwrite=True)
    assert read_splits(tmp_path / "data") == splits
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_output_below_a_file_is_an_error(made, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"data cannot be made \(.*file is a file\)") as caught:
        write_tree(*made, tmp_path / "file" / "data")
    assert caught.value.code == "output-not-a-folder"


def test_an_output_that_cannot_be_made_is_an_error(made, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AttclError, match=r"not writable \(Permission denied\)") as caught:
        write_tree(*made, tmp_path / "new" / "data")
    assert caught.value.code == "file-not-written"


def test_the_vocabulary_goes_along(tmp_path):
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "modalities.toml").write_text('[modalities]\nx = ["X"]\ny = ["Y"]\n')
    for case in "ABC":
        (tmp_path / "ds" / case).mkdir()
        for token in "XY":
            (tmp_path / "ds" / case / f"{case}_{token}.nii.gz").touch()
    (tmp_path / "r.toml").write_text('hidden = [["x"], []]')
    dataset = open_dataset(tmp_path / "ds")
    splits = make_splits(dataset, ratio=str(tmp_path / "r.toml"), sizes=(3, 0, 0))
    write_tree(dataset, splits, tmp_path / "data")
    tree = open_dataset(tmp_path / "data")
    assert tree.modalities == ("x", "y")
    assert tree.counts() == {"x": 1, "y": 3}


def test_the_half_tree_of_a_run_that_was_killed_is_swept(phantom_root, tmp_path):
    left = tmp_path / f"{temporary_prefix(tmp_path / 'data')}x{TEMPORARY_SUFFIX}"
    left.mkdir()
    dataset = open_dataset(phantom_root)
    with temporary_folder(tmp_path / "data") as alive:
        assert not left.exists()
        left.mkdir()
        write_tree(dataset, make_splits(dataset, ratio="ratio3"), tmp_path / "data")
        assert not left.exists()
        assert alive.exists()


def test_what_a_user_added_to_a_tree_is_not_removed(made, tmp_path):
    dataset, splits = made
    data = tmp_path / "data"
    write_tree(dataset, splits, data)
    (data / "notes.txt").write_text("years of work")
    other = make_splits(dataset, ratio="ratio3", sizes=(4, 0, 0))
    with pytest.raises(UsageError, match="holds 1 file that the dataset does not have") as caught:
        write_tree(dataset, other, data, overwrite=True)
    assert (caught.value.code, "notes.txt" in caught.value.message) == ("output-not-ours", True)
    assert read_splits(data) == splits
    (data / "notes.txt").unlink()
    assert write_tree(dataset, other, data, overwrite=True)


@pytest.mark.parametrize("link", ["hardlink", "copy"])
def test_the_last_copies_of_originals_are_not_removed(link, copied, tmp_path):
    dataset, splits = copied
    originals = dataset.root
    write_tree(dataset, splits, tmp_path / "data", link=link)
    name = min(kept_names(splits))
    (originals / name).unlink()
    remaining = open_dataset(originals)
    other = make_splits(remaining, ratio="ratio3", sizes=(4, 0, 0))
    with pytest.raises(UsageError, match="holds 1 file that the dataset does not have") as caught:
        write_tree(remaining, other, tmp_path / "data", overwrite=True)
    assert name in caught.value.message
    assert (tmp_path / "data" / name).is_file()


def test_a_folder_with_somebody_elses_splits_json_is_not_removed(made, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/splits.json").write_text('{"folds": 5}')
    with pytest.raises(UsageError) as caught:
        write_tree(*made, tmp_path / "data", overwrite=True)
    assert caught.value.code == "output-not-ours"
    assert (tmp_path / "data/splits.json").read_text() == '{"folds": 5}'


def test_what_came_while_the_tree_was_built_stays(made, tmp_path):
    def arrives(_folder: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/thesis.txt").write_text("years of work")

    with pytest.raises(UsageError, match="exists already"):
        write_tree(*made, tmp_path / "data", finish=arrives)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("link", ["hardlink", "copy"])
@pytest.mark.parametrize("change", ["corrected", "moved"])
def test_a_tree_is_replaced_after_its_dataset_was_corrected_or_moved(
    change, link, copied, tmp_path
):
    dataset, splits = copied
    originals = dataset.root
    data = tmp_path / "data"
    write_tree(dataset, splits, data, link=link)
    (data / ".DS_Store").touch()
    if change == "moved":
        originals = originals.rename(tmp_path / "moved")
    else:
        file = originals / min(kept_names(splits))
        corrected = file.with_suffix(".new")
        corrected.write_bytes(file.read_bytes() + b"more")
        corrected.replace(file)
    now = open_dataset(originals)
    other = make_splits(now, ratio="ratio3", sizes=(4, 0, 0))
    assert write_tree(now, other, data, link=link, overwrite=True)
    assert read_splits(data) == other


@pytest.mark.parametrize("how", ["in place", "with its old times"])
def test_a_copy_that_was_changed_by_hand_is_not_removed(how, copied, tmp_path):
    dataset, splits = copied
    data = tmp_path / "data"
    write_tree(dataset, splits, data, link="copy")
    later = (data / "splits.json").stat().st_mtime + 60
    os.utime(data / "splits.json", (later, later))  # the originals are older
    file = data / min(kept_names(splits))
    if how == "in place":
        file.write_bytes(b"mine")
        later = (data / "splits.json").stat().st_mtime + 60
        os.utime(file, (later, later))
    else:  # as `cp -p` and `rsync -a` put it there
        file.write_bytes(b"mine")
        os.utime(file, (1, 1))
    other = make_splits(dataset, ratio="ratio3", sizes=(4, 0, 0))
    with pytest.raises(UsageError, match="or that were changed since"):
        write_tree(dataset, other, data, link="copy", overwrite=True)
    assert read_splits(data) == splits


def test_a_tree_of_another_version_is_replaced(made, tmp_path):
    dataset, splits = made
    write_tree(dataset, splits, tmp_path / "data")
    file = tmp_path / "data/splits.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 999}))
    assert write_tree(dataset, splits, tmp_path / "data", overwrite=True)
    assert read_splits(tmp_path / "data") == splits
