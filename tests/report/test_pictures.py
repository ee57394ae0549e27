"""The montage, the grid and the sheets of slices: what they show and what they hide."""

import io

import numpy as np
import pytest
from helpers import REPOSITORY, panel
from PIL import Image

from attcl_cli.report import pictures

AMBER = (255, 186, 92)


def test_the_montage_has_a_row_a_panel(tmp_path):
    heights = []
    for count in (1, 2, 3):
        path = tmp_path / f"{count}.png"
        pictures.write_montage(path, [panel()] * count, title="Montage")
        with Image.open(path) as image:
            assert image.format == "PNG"
            heights.append(image.height)
    assert heights[2] - heights[1] == heights[1] - heights[0] > 200


def test_the_picture_of_the_readme_is_a_whole_montage_of_as_many_rows_as_its_caption_says(tmp_path):
    pictures.write_montage(tmp_path / "4.png", [panel()] * 12, title="Montage", max_rows=4)
    with Image.open(tmp_path / "4.png") as four, Image.open(REPOSITORY / "docs/demo.png") as shown:
        assert shown.size == four.size
    for page in ("README.md", "docs/index.md"):
        assert "Shown are the four worst of twelve volumes" in (REPOSITORY / page).read_text()


def test_the_montage_stops_at_the_most_rows(tmp_path):
    pictures.write_montage(tmp_path / "2.png", [panel()] * 2, title="Montage")
    pictures.write_montage(tmp_path / "5.png", [panel()] * 5, title="Montage", max_rows=2)
    with Image.open(tmp_path / "2.png") as two, Image.open(tmp_path / "5.png") as five:
        assert two.size == five.size


def test_the_montage_shows_the_grey_of_each_volume_in_its_column(tmp_path):
    pictures.write_montage(tmp_path / "m.png", [panel()], title="Montage")
    pixels = np.asarray(Image.open(tmp_path / "m.png"))
    row = pixels[112 + 110]  # the middle of the first row of pictures
    centres = [28 + 190 + column * 230 + 110 for column in range(4)]
    assert [tuple(row[x].tolist()) for x in centres[:3]] == [(51,) * 3, (102,) * 3, (230,) * 3]
    # |0.4 - 0.9| is the brightest colour of the scale
    assert tuple(row[centres[3]].tolist()) == (252, 255, 164)


def test_the_montage_marks_only_the_synthetic_column(tmp_path):
    pictures.write_montage(tmp_path / "m.png", [panel()], title="Montage")
    pixels = np.asarray(Image.open(tmp_path / "m.png"))[112 : 112 + 220]
    marked = [
        bool((pixels[:, 218 + c * 230 : 218 + c * 230 + 220] == AMBER).all(axis=2).any())
        for c in range(4)
    ]
    assert marked == [False, True, False, False]


def test_a_montage_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one or more"):
        pictures.write_montage(tmp_path / "m.png", [], title="Montage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["$\\frac{", "two\nlines", "\u8133", "x" * 300, ""])
def test_any_name_can_be_drawn(tmp_path, name):
    one = panel(case=name, target_modality=name, scores={name: 1.0}, baseline={})
    pictures.write_montage(tmp_path / "m.png", [one], title=name)
    with Image.open(tmp_path / "m.png") as image:
        assert image.width == 1406


def test_the_same_panels_give_the_same_bytes(tmp_path):
    pictures.write_montage(tmp_path / "a.png", [panel()], title="Montage")
    pictures.write_montage(tmp_path / "b.png", [panel()], title="Montage")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_montage_replaces_an_older_one_and_leaves_nothing_else_behind(tmp_path):
    (tmp_path / "m.png").write_text("old")
    pictures.write_montage(tmp_path / "m.png", [panel()], title="Montage")
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_volumes_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="expected one"):
        panel(tiles=[pictures.Tile("t1", np.zeros((6, 20, 15), np.float32))])
    with pytest.raises(ValueError, match="expected one"):
        panel(outlines={"tumour": np.zeros((5, 20, 16), bool)})
    with pytest.raises(ValueError, match="no tile"):
        panel(tiles=[])


def test_a_grid_has_a_cell_an_image(tmp_path):
    dark, bright = np.full((8, 8), -1.0), np.full((8, 8), 1.0)
    pictures.write_grid(
        tmp_path / "g.png", ["source", "made"], [("t1", [dark, bright]), ("t2", [bright, dark])]
    )
    pixels = np.asarray(Image.open(tmp_path / "g.png"))
    assert pixels.shape == (320, 320, 3)
    assert [pixels[y, x, 0] for y, x in ((80, 80), (80, 240), (240, 80), (240, 240))] == [
        0,
        255,
        255,
        0,
    ]


def test_a_sheet_of_few_pixels_has_fewer_slices_and_then_smaller_ones():
    shape = (60, 100, 80)
    volume = np.zeros(shape, np.float32)
    one = panel(source=volume, synthetic=volume, truth=volume, brain=np.ones(shape, bool))
    found = [pictures.sprites(one, pixels=pixels) for pixels in (10**7, 240_000, 60_000, 1)]
    assert [sprites.size for sprites in found] == [(80, 100), (80, 100), (63, 79), (58, 72)]
    assert [len(sprites.slices) for sprites in found] == [30, 30, 12, 12]


def test_a_sheet_is_a_webp_file_of_its_grid():
    sprites = pictures.sprites(panel(), pixels=10**6)
    for sheet in sprites.sheets:
        with Image.open(io.BytesIO(sheet)) as image:
            assert image.format == "WEBP"
            assert image.size == tuple(
                across * side for across, side in zip(sprites.grid, sprites.size, strict=True)
            )


def test_an_outline_is_reduced_without_grey_and_costs_little():
    shape = (30, 320, 240)
    ones = np.ones(shape, np.float32)
    region = np.zeros(shape, bool)
    region[10:20, 100:201, 50:131] = True
    one = panel(
        source=ones,
        synthetic=ones,
        truth=ones,
        brain=np.ones(shape, bool),
        outlines={"tumour": region, "nothing": np.zeros(shape, bool)},
    )
    sprites = pictures.sprites(one, pixels=10**7)
    assert sprites.size == (120, 160)
    for name, share in (("tumour", region.mean()), ("nothing", 0)):
        with Image.open(io.BytesIO(sprites.outlines[name])) as image:
            levels = np.asarray(image.convert("L"))
        assert set(np.unique(levels)) <= {0, 255}
        assert (levels == 255).sum() == pytest.approx(share * 30 * 120 * 160, rel=0.05)
        assert len(sprites.outlines[name]) < 1000


def test_a_sheet_says_how_far_its_slices_rows_and_columns_are_apart():
    shape = (60, 320, 240)
    ones = np.ones(shape, np.float32)
    brain = np.ones(shape, bool)
    settings = {"source": ones, "synthetic": ones, "truth": ones, "brain": brain}
    one = panel(**settings, spacing_mm=(2.0, 0.5, 0.75))
    sprites = pictures.sprites(one, pixels=10**6)
    assert (sprites.size, len(sprites.slices)) == ((120, 160), 30)
    assert sprites.spacing_mm == (4.0, 1.0, 1.5)
    assert sprites.box == ((0, 320), (0, 240))
    assert sprites.starts == (0, 80, 60)


def test_a_montage_row_without_a_real_volume_has_two_black_pictures(tmp_path):
    brain = np.ones((6, 20, 16), bool)
    grey = np.full(brain.shape, 0.4, np.float32)
    tiles = pictures.compared("t1", {"flair": grey, "t2": grey / 2}, grey, None, brain)
    whole = pictures.compared("t1", {"flair": grey}, grey, grey, brain)
    panels = [panel(tiles=each, brain=brain) for each in (tiles, whole)]
    pictures.write_montage(tmp_path / "m.png", panels, title="Montage")
    row = np.asarray(Image.open(tmp_path / "m.png"))[112 + 110]
    centres = [28 + 190 + column * 230 + 110 for column in range(5)]
    assert [row[x, 0] for x in centres] == [102, 51, 102, 0, 0]


def test_a_montage_has_a_column_per_source_and_none_for_what_no_row_has():
    def width(**changes) -> int:
        return pictures.montage([panel(**changes)], title="Montage").width

    one = panel().tiles  # source, synthetic, real, difference
    step = (width() - width(tiles=one[:2])) // 2
    assert width() - width(tiles=one[:3]) == step > 200
    assert width(tiles=[one[0], *one]) - width() == step


def outlined_in(*slices: tuple[int, int]) -> dict[str, np.ndarray]:
    """An outline of so many columns of row 8 in each of these slices of `panel()`: (slice, columns)."""
    region = np.zeros((6, 20, 16), bool)
    for index, columns in slices:
        region[index, 8, 6 : 6 + columns] = True
    return {"tumour": region}


@pytest.mark.parametrize(
    ("outlines", "expected"),
    [
        ({}, 3),  # most brain
        (outlined_in(), 3),
        (outlined_in((1, 2), (2, 1)), 1),
        (outlined_in((1, 2)) | {"predicted": outlined_in((4, 3))["tumour"]}, 4),
        (outlined_in((0, 9), (2, 1)), 2),  # slice 0 has no brain, and no viewer shows it
    ],
)
def test_the_first_slice_is_that_with_most_of_what_is_outlined(outlines, expected):
    one = panel(outlines=outlines)
    sprites = pictures.sprites(one, pixels=10**6)
    assert pictures.first_slice(one) == expected
    assert sprites.slices[sprites.starts[0]] == expected


def test_a_volume_without_brain_begins_in_the_middle():
    assert pictures.first_slice(panel(brain=np.zeros((6, 20, 16), bool))) == 3


def test_a_montage_shows_the_slice_with_the_tumour():
    brain = np.ones((6, 20, 16), bool)
    source = np.zeros(brain.shape, np.float32)
    source[1] = 1
    one = panel(source=source, brain=brain, outlines=outlined_in((1, 4)))
    image = pictures.montage([one], title="Montage")
    assert image.getpixel((28 + 190 + 110, 112 + 110)) == (255, 255, 255)


def test_each_picture_of_a_montage_names_its_modality():
    def corners(name: str) -> list[bytes]:
        brain = np.ones((6, 20, 16), bool)
        black = np.zeros(brain.shape, np.float32)
        tiles = pictures.compared(name, {name: black}, black, black, brain)
        image = np.asarray(pictures.montage([panel(tiles=tiles, brain=brain)], title="Montage"))
        lefts = [28 + 190 + column * 230 for column in range(4)]
        return [image[112 : 112 + 26, left : left + 220].tobytes() for left in lefts]

    source, synthetic, real, difference = zip(corners("t1"), corners("flair"), strict=True)
    for first, second in (source, synthetic, real):
        assert first != second
    assert difference[0] == difference[1]  # its column says what it is


def test_of_a_volume_made_in_some_slices_no_other_is_shown() -> None:
    brain = np.ones((6, 20, 16), bool)
    inside = pictures.within(brain, (2, 4))
    assert inside.any(axis=(1, 2)).tolist() == [False, False, True, True, False, False]
    assert pictures.within(brain, None) is brain
    brain[2:4] = False
    assert pictures.within(brain, (2, 4)) is brain  # nothing to see there
