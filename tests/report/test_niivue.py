"""What a page embeds for NiiVue: the program as npm has it, and volumes that lie where the images lie."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from helpers import panel

import attcl_cli
from attcl_cli.data.volumes import Grid, load, new_grid, save
from attcl_cli.errors import UsageError
from attcl_cli.report import niivue, pictures, sections
from attcl_cli.report.page import Page, write_page
from attcl_cli.report.viewers import require_viewer

# Column to the left, 1 mm; row back, 2 mm; slice up, 3 mm.
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, -5], [0, 0, 0, 1]])


def shown(case="a", target="t1", *, source=0.4, shape=(6, 20, 16)):
    """Return a panel whose brain is rows 5..14 and columns 4..11 of slices 1..4, with one bright voxel."""
    brain = np.zeros(shape, bool)
    brain[1:5, 5:15, 4:12] = True
    volume = np.where(brain, np.float32(source), 0)
    volume[2, 7, 9] = 1
    made = np.where(brain, np.float32(0.6), 0)
    tumour = np.zeros(shape, bool)
    tumour[3, 8:11, 6] = True
    return pictures.Panel(
        case,
        "flair",
        target,
        pictures.compared(target, {"flair": volume}, made, made / 2, brain),
        brain,
        outlines={"tumour": tumour},
        spacing_mm=(3.0, 2.0, 1.0),
        affine=AFFINE,
    )


def opened(file):
    """Return an embedded volume as nibabel reads it."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(file)))


def volumes_of(document, place=0):
    """Return caption or region -> image, of one panel."""
    entry = document["panels"][place]
    files = {each["caption"]: each["file"] for each in entry["volumes"]}
    files |= {each["name"]: each["file"] for each in entry["regions"]}
    return {name: opened(document["files"][file]) for name, file in files.items()}


# --- The program ----------------------------------------------------------------------------------


def test_the_program_is_the_file_of_npm():
    text = gzip.decompress(base64.b64decode(niivue.program()))
    assert len(text) == 2284381
    assert hashlib.sha256(text).hexdigest() == niivue.SHA256
    assert niivue.SHA256 in niivue._file("README.md").decode()


def test_the_licences_are_shipped_in_full():
    text = niivue.licence()
    assert "Copyright (c) 2021, Niivue" in text
    assert "Redistributions in binary form must reproduce the above copyright notice" in text
    assert "EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE." in text
    for contained in ("gl-matrix", "fflate", "nifti-reader-js", "zarrita", "Zstandard", "Roboto"):
        assert contained in text


# --- The files ------------------------------------------------------------------------------------


def test_a_file_is_what_nibabel_reads():
    volume = np.zeros((2, 3, 4), np.uint8)
    volume[1, 2, 3] = 255
    image = nib.Nifti1Image.from_bytes(niivue.nifti(volume, AFFINE))
    assert image.shape == (4, 3, 2)
    assert image.get_data_dtype() == np.uint8
    assert np.asarray(image.dataobj)[3, 2, 1] == 255
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_allclose(image.affine @ [3, 2, 1, 1], [7, 16, -2, 1])
    assert image.header.get_zooms() == (1, 2, 3)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.header["cal_min"], image.header["cal_max"]) == (0, 255)


def test_volumes_are_cropped_to_the_brain_and_stay_where_they_were():
    image = volumes_of(niivue.document([shown()]))["flair, source"]
    # columns 4..11 and rows 5..14 with a margin of 3, slices 1..4
    assert image.shape == (14, 16, 4)
    (bright,) = np.argwhere(np.asarray(image.dataobj) == 254)
    np.testing.assert_allclose(image.affine @ [*bright, 1], AFFINE @ [9, 7, 2, 1])


def test_grey_values_are_those_of_the_slices():
    images = volumes_of(niivue.document([shown()]))
    assert set(images) == {"flair, source", "t1", "t1, real", "tumour"}  # and no difference
    assert set(np.unique(images["flair, source"].dataobj)) == {0, 102, 254}  # 0.4 and 1 of 255
    assert set(np.unique(images["t1"].dataobj)) == {0, 152}  # 0.6 of 255, even


def test_a_region_is_ones_and_zeros():
    image = volumes_of(niivue.document([shown()]))["tumour"]
    assert np.asarray(image.dataobj).sum() == 3
    assert image.get_fdata().max() == 1


def test_the_crosshair_starts_in_the_tumour():
    start = niivue.document([shown()])["panels"][0]["start"]
    column, row, index, _ = np.linalg.inv(AFFINE) @ [*start, 1]
    assert shown().outlines["tumour"][round(index), round(row), round(column)]


def test_without_a_region_the_crosshair_starts_in_the_brain():
    start = niivue.document([replace(shown(), outlines={})])["panels"][0]["start"]
    column, row, index, _ = np.linalg.inv(AFFINE) @ [*start, 1]
    assert shown().brain[round(index), round(row), round(column)]


def test_two_targets_share_their_source():
    document = niivue.document([shown(target="t1"), shown(target="t2")])
    assert len(document["panels"]) == 2
    assert len(document["files"]) == 4  # one source, one made, one real, one tumour
    sources = [entry["volumes"][0]["file"] for entry in document["panels"]]
    assert sources == [0, 0]


def test_the_size_does_not_grow_with_the_number_of_panels():
    three = [shown(source=0.1 * number) for number in range(1, 4)]
    many = three + [shown(source=0.01 * number) for number in range(1, 30)]
    assert niivue.document(many) == niivue.document(three)


def test_of_large_files_only_the_first_panel_is_kept(monkeypatch):
    monkeypatch.setattr(niivue, "_MOST_BYTES", 10)
    document = niivue.document([shown("a", source=0.1), shown("b", source=0.2)])
    assert [entry["case"] for entry in document["panels"]] == ["a"]
    assert len(document["files"]) == 4


def test_if_the_first_panel_is_too_large_it_is_thinned(monkeypatch):
    monkeypatch.setattr(niivue, "_MOST_VOXELS", 14 * 16 * 4)
    whole = niivue.document([shown()])
    monkeypatch.setattr(niivue, "_MOST_BYTES", sum(map(len, whole["files"])) * 3 // 4 - 1)
    document = niivue.document([shown()])
    assert not whole["panels"][0]["thinned"]
    assert document["panels"][0]["thinned"]
    assert volumes_of(document)["flair, source"].shape == (7, 16, 4)


def test_a_large_volume_is_thinned_on_its_finest_axis_and_stays_in_place(monkeypatch):
    monkeypatch.setattr(niivue, "_MOST_VOXELS", 14 * 16 * 4 // 2)
    document = niivue.document([shown()])
    assert document["panels"][0]["thinned"]
    image = volumes_of(document)["flair, source"]
    assert image.shape == (7, 16, 4)
    assert image.header.get_zooms() == (2, 2, 3)
    np.testing.assert_allclose(image.affine @ [3, 0, 0, 1], AFFINE @ [7, 2, 1, 1])


def test_a_panel_without_an_affine_lies_around_the_origin():
    image = volumes_of(niivue.document([panel(case="a")]))["flair, source"]
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_a_voxel_has_one_place_however_its_file_is_turned(tmp_path, signs):
    affine = np.diag([*(2.0 * np.array(signs)), 1])
    affine[:3, 3] = 5, 6, 7
    grid = new_grid((4, 5, 6), affine)
    data = np.zeros(grid.axial_shape, np.float32)
    data[2, 1, 3] = 9
    save([tmp_path / "a.nii.gz"], data, grid, description="")
    stored = nib.load(tmp_path / "a.nii.gz")
    (bright,) = np.argwhere(np.asarray(stored.dataobj) == 9)
    volume = load([tmp_path / "a.nii.gz"])
    (place,) = np.argwhere(volume.data == 9)
    np.testing.assert_allclose(
        volume.grid.axial_affine @ [*place[::-1], 1], stored.affine @ [*bright, 1]
    )
    assert nib.aff2axcodes(volume.grid.axial_affine) == ("L", "P", "S")


def test_png_slices_lie_as_pictures_are_shown():
    affine = Grid((4, 5, 6), np.eye(4), np.dtype(np.uint8)).axial_affine
    assert nib.aff2axcodes(affine) == ("L", "P", "S")


# --- The page -------------------------------------------------------------------------------------


def written(tmp_path, viewer="niivue", panels=None):
    slices = sections.Viewer(panels or [shown()], order="worst first")
    write_page(tmp_path / "report.html", Page("Scores", sections=sections.viewers(slices, viewer)))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_carries_the_program_its_licence_and_the_volumes(tmp_path):
    text = written(tmp_path)
    assert niivue.program() in text
    assert "Copyright (c) 2021, Niivue" in text
    (data,) = re.findall(r'id="niivue-data">(.*?)</script>', text)
    assert json.loads(data) == niivue.document([shown()])


def test_the_policy_allows_the_program_and_no_network(tmp_path):
    text = written(tmp_path)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    digest = base64.b64encode(bytes.fromhex(niivue.SHA256)).decode()
    assert f"sha256-{digest}" in policy.replace("&#43;", "+")
    assert policy.startswith("default-src &#39;none&#39;; img-src data:;")
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    outside = re.findall(r"""(?:src|href)=["']?(?!data:)(\w+:)""", text)
    assert outside == []


def test_by_default_a_page_has_no_niivue(tmp_path):
    text = written(tmp_path, viewer="slices")
    assert "niivue" not in text.lower()
    assert len(text) < 100_000


def test_a_page_without_panels_has_no_niivue(tmp_path):
    write_page(tmp_path / "a.html", Page("a", sections=[sections.WholeVolumes(())]))
    assert "niivue" not in (tmp_path / "a.html").read_text().lower()


def test_two_sections_of_whole_volumes_are_refused(tmp_path):
    both = [sections.WholeVolumes([shown()])] * 2
    with pytest.raises(ValueError, match="2 of whole volumes"):
        write_page(tmp_path / "a.html", Page("a", sections=both))


def test_the_page_says_how_many_volumes_there_are_in_whole(tmp_path):
    four = [shown(str(number)) for number in range(4)]
    assert "The first 3 of the 4 above, worst first, as whole volumes" in written(
        tmp_path, panels=four
    )
    assert "What is shown above, as whole volumes" in written(tmp_path)


def test_a_hostile_name_ends_no_element(tmp_path):
    text = written(tmp_path, panels=[shown("</script><img src=x>")])
    assert "</script><img" not in text


def test_an_unknown_viewer_is_wrong_usage():
    require_viewer("slices")
    require_viewer("niivue")
    with pytest.raises(UsageError) as caught:
        require_viewer("papaya")
    assert caught.value.code == "unknown-viewer"
    assert "expected slices or niivue" in caught.value.message


@pytest.mark.parametrize("name", ["score", "complete", "segment", "evaluate"])
def test_an_unknown_viewer_is_refused_before_anything_is_read(attcl, elsewhere, name):
    code, _, err = attcl(name, "--viewer", "papaya")
    assert code == 2
    assert "'--viewer'" in err or "--viewer:" in err
    with pytest.raises(UsageError) as caught:
        getattr(attcl_cli, name)(viewer="papaya")
    assert caught.value.code == "unknown-viewer"
