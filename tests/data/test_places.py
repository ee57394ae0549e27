"""Where files really lie: trees of links that keep the names of their source, and links that do not."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from attcl_cli.data.places import led_to, root_of


def test_a_tree_that_keeps_names_leads_to_its_source_as_a_whole(tmp_path):
    names = [PurePosixPath("A/A_t1.nii"), PurePosixPath("B/B_t1.nii")]
    for name in names:
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        (tmp_path / "source" / name).touch()
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "source" / name)
    assert led_to(tmp_path / "data", names, [tmp_path / "data"]) == [tmp_path / "source"]
    assert led_to(tmp_path / "data", names, [tmp_path]) == []
    assert led_to(tmp_path / "source", names, [tmp_path / "source"]) == []


def test_a_linked_folder_leads_to_where_it_lies(tmp_path):
    (tmp_path / "source" / "A").mkdir(parents=True)
    (tmp_path / "source" / "A" / "A_t1.nii").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "A").symlink_to(tmp_path / "source" / "A")
    found = led_to(tmp_path / "data", [PurePosixPath("A/A_t1.nii")], [tmp_path / "data"])
    assert found == [tmp_path / "source"]


def test_a_link_to_another_name_leads_to_the_folder_of_its_file(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "7.nii").touch()
    (tmp_path / "data" / "A").mkdir(parents=True)
    name = PurePosixPath("A/A_t1.nii")
    (tmp_path / "data" / name).symlink_to(tmp_path / "scans" / "7.nii")
    assert led_to(tmp_path / "data", [name], [tmp_path / "data"]) == [tmp_path / "scans"]


def test_the_root_is_above_the_names_of_a_file():
    assert root_of(Path("/x/A/A_t1.nii"), PurePosixPath("A/A_t1.nii")) == Path("/x")
    assert root_of(Path("/x/A_t1.nii"), PurePosixPath("A_t1.nii")) == Path("/x")
    assert root_of(Path("/x/A/A_t1.nii"), PurePosixPath("B/A_t1.nii")) == Path("/x/A")
