"""The montage and the page: what they show, what they hide, and that no name can break them."""

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attcl_cli import report

HOSTILE = "<img src=x onerror=alert(1)></script>$title"
AMBER = (255, 186, 92)


def panel(**changes) -> report.Panel:
    """A (6, 20, 16) head whose brain is rows 4..15 and columns 5..12 of slices 1..4."""
    shape = (6, 20, 16)
    brain = np.zeros(shape, bool)
    brain[1:5, 4:16, 5:13] = True
    brain[3, 3, 5:13] = True  # slice 3 has most brain
    settings = {
        "case": "Patient_1",
        "source_modality": "flair",
        "target_modality": "t1",
        "source": np.where(brain, np.float32(0.2), 0),
        "synthetic": np.where(brain, np.float32(0.4), 0),
        "truth": np.where(brain, np.float32(0.9), 0),
        "brain": brain,
        "scores": {"SSIM brain": 0.8125, "PSNR brain (dB)": 22.34},
        "baseline": {"SSIM brain": 0.25, "PSNR brain (dB)": 25.0},
    }
    return report.Panel(**(settings | changes))


def page(folder: Path, panels=None, **changes) -> str:
    settings = {"title": "A report", "facts": {}, "summary": [], "notes": []}
    path = folder / "report.html"
    report.write_html(path, [panel()] if panels is None else panels, **(settings | changes))
    return path.read_text(encoding="utf-8")


def data_of(text: str) -> dict:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def sheet_of(data: dict, index: int, column: int) -> Image.Image:
    uri = data["images"][data["panels"][index]["sheets"][column]]
    kind, _, code = uri.partition(";base64,")
    assert kind == "data:image/webp"
    return Image.open(io.BytesIO(base64.b64decode(code)))


def tile_of(data: dict, column: int, place: int) -> np.ndarray:
    """One slice out of a sprite sheet of the first panel."""
    entry = data["panels"][0]
    (width, height), (across, _) = entry["size"], entry["grid"]
    row, col = divmod(place, across)
    box = (col * width, row * height, (col + 1) * width, (row + 1) * height)
    return np.asarray(sheet_of(data, 0, column).convert("RGB").crop(box)).astype(int)


class Tags(HTMLParser):
    """Collects the elements of a page, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_montage_has_a_row_a_panel(tmp_path):
    heights = []
    for count in (1, 2, 3):
        path = tmp_path / f"{count}.png"
        report.write_montage(path, [panel()] * count, title="Montage")
        with Image.open(path) as image:
            assert image.format == "PNG"
            heights.append(image.height)
    assert heights[2] - heights[1] == heights[1] - heights[0] > 200


def test_the_montage_stops_at_the_most_rows(tmp_path):
    report.write_montage(tmp_path / "2.png", [panel()] * 2, title="Montage")
    report.write_montage(tmp_path / "5.png", [panel()] * 5, title="Montage", max_rows=2)
    with Image.open(tmp_path / "2.png") as two, Image.open(tmp_path / "5.png") as five:
        assert two.size == five.size


def test_the_montage_shows_the_grey_of_each_volume_in_its_column(tmp_path):
    report.write_montage(tmp_path / "m.png", [panel()], title="Montage")
    pixels = np.asarray(Image.open(tmp_path / "m.png"))
    row = pixels[112 + 110]  # the middle of the first row of pictures
    centres = [28 + 190 + column * 230 + 110 for column in range(4)]
    assert [tuple(row[x].tolist()) for x in centres[:3]] == [(51,) * 3, (102,) * 3, (230,) * 3]
    # |0.4 - 0.9| is the brightest colour of the scale
    assert tuple(row[centres[3]].tolist()) == (252, 255, 164)


def test_the_montage_marks_only_the_synthetic_column(tmp_path):
    report.write_montage(tmp_path / "m.png", [panel()], title="Montage")
    pictures = np.asarray(Image.open(tmp_path / "m.png"))[112 : 112 + 220]
    marked = [
        bool((pictures[:, 218 + c * 230 : 218 + c * 230 + 220] == AMBER).all(axis=2).any())
        for c in range(4)
    ]
    assert marked == [False, True, False, False]


def test_a_montage_without_truth_leaves_its_two_places_black_but_for_a_dash(tmp_path):
    report.write_montage(tmp_path / "m.png", [panel(truth=None)], title="Montage")
    pixels = np.asarray(Image.open(tmp_path / "m.png"))[112 : 112 + 220]
    for left in (218 + 2 * 230, 218 + 3 * 230):
        lit = (pixels[:, left : left + 220] > 0).any(axis=2)
        rows, columns = np.nonzero(lit)
        assert lit.any()
        assert np.ptp(rows) < 10
        assert np.ptp(columns) < 30


def test_a_montage_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wanted one or more"):
        report.write_montage(tmp_path / "m.png", [], title="Montage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["$\\frac{", "two\nlines", "\u8133", "x" * 300, ""])
def test_any_name_can_be_drawn(tmp_path, name):
    one = panel(case=name, target_modality=name, scores={name: 1.0}, baseline={})
    report.write_montage(tmp_path / "m.png", [one], title=name)
    with Image.open(tmp_path / "m.png") as image:
        assert image.width == 1406


def test_the_page_needs_nothing_beside_itself(tmp_path):
    tags = Tags(page(tmp_path, files=["scores/scores.csv"])).tags
    for tag, attributes in tags:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        assert "src" not in attributes
        assert not attributes.get("href", "").startswith(("http:", "https:", "//"))


def test_the_page_allows_its_own_script_only(tmp_path):
    text = page(tmp_path)
    policies = [a["content"] for t, a in Tags(text).tags if "Content-Security-Policy" in str(a)]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policies[0]
    assert f"script-src 'sha256-{digest}'" in policies[0]


def test_names_from_the_data_stay_text(tmp_path):
    hostile = panel(
        case=HOSTILE,
        source_modality=HOSTILE,
        target_modality=HOSTILE,
        scores={HOSTILE: 0.5},
        baseline={HOSTILE: 0.4},
    )
    text = page(
        tmp_path,
        [hostile],
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        summary=[{HOSTILE: HOSTILE, "n": 3}],
        notes=[HOSTILE],
        files=[HOSTILE, "javascript:alert(1)", '" onclick="alert(1)'],
    )
    tags = Tags(text).tags
    assert not [tag for tag, _ in tags if tag == "img"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert len([tag for tag, _ in tags if tag == "script"]) == 2
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links[1] == "javascript%3Aalert%281%29"
    entry = data_of(text)["panels"][0]
    assert [entry["case"], entry["source"], entry["target"]] == [HOSTILE] * 3
    assert text.count("A report") == 0  # "$title" in the data was not filled in again


def test_undecodable_file_names_do_not_break_the_page(tmp_path):
    name = b"case_\xff".decode("utf-8", "surrogateescape")
    assert data_of(page(tmp_path, [panel(case=name)], facts={"case": name}))["panels"][0]


def test_the_viewer_opens_at_the_largest_slice_cropped_to_the_brain(tmp_path):
    entry = data_of(page(tmp_path))["panels"][0]
    assert entry["slices"] == [1, 2, 3, 4]
    assert entry["slices"][entry["start"]] == 3
    assert entry["depth"] == 6
    # rows 3..15 and columns 5..12, with a margin of 3 that the image's border cuts
    assert entry["size"] == [8 + 6, 13 + 6]


def test_the_viewer_holds_the_slices_in_order(tmp_path):
    ramp = np.linspace(0, 1, 6, dtype=np.float32)[:, None, None]
    full = np.ones((6, 20, 16), bool)
    one = panel(source=np.broadcast_to(ramp, full.shape), brain=full)
    data = data_of(page(tmp_path, [one]))
    greys = [tile_of(data, 0, place).mean() for place in range(6)]
    np.testing.assert_allclose(greys, ramp.ravel() * 255, atol=4)


def test_the_difference_is_shown_inside_the_brain_only(tmp_path):
    half = np.zeros((6, 20, 16), bool)
    half[:, :, :8] = True
    ones = np.ones(half.shape, np.float32)
    one = panel(source=ones, synthetic=ones * 0.1, truth=ones, brain=half)
    data = data_of(page(tmp_path, [one]))
    tile = tile_of(data, 3, 0)
    np.testing.assert_allclose(tile[:, :6].mean(axis=(0, 1)), (252, 255, 164), atol=12)
    assert tile[:, 10:].max() < 40


def test_large_volumes_are_reduced_and_thinned_but_for_the_largest_slice(tmp_path):
    shape = (155, 240, 200)
    volume = np.zeros(shape, np.float32)
    brain = np.ones(shape, bool)
    brain[:, 100, 100] = False
    brain[80, 100, 100] = True
    one = panel(source=volume, synthetic=volume, truth=volume, brain=brain, scores={})
    entry = data_of(page(tmp_path, [one]))["panels"][0]
    assert entry["size"] == [133, 160]
    assert entry["slices"] == list(range(2, 155, 3))
    assert entry["slices"][entry["start"]] == 80


def test_a_page_of_many_panels_has_fewer_slices_each(tmp_path):
    shape = (155, 160, 160)
    volume = np.zeros(shape, np.float32)
    one = panel(source=volume, synthetic=volume, truth=None, brain=np.ones(shape, bool))
    data = data_of(page(tmp_path, [one] * 20))
    pixels = sum(4 * math.prod(entry["size"]) * len(entry["slices"]) for entry in data["panels"])
    assert 20_000_000 < pixels <= 36_000_000


def test_a_source_of_two_targets_is_kept_once(tmp_path):
    data = data_of(page(tmp_path, [panel(), panel(target_modality="t2")]))
    assert data["panels"][0]["sheets"] == data["panels"][1]["sheets"]
    assert len(data["images"]) == 4


def test_a_missing_truth_has_no_picture_and_its_scores_are_dashes(tmp_path):
    one = panel(truth=None, scores={"SSIM brain": math.nan}, baseline={"SSIM brain": math.nan})
    entry = data_of(page(tmp_path, [one]))["panels"][0]
    assert entry["sheets"] == [0, 1, None, None]
    score = {"name": "SSIM brain", "value": "\u2013", "copy": "\u2013", "better": ""}
    assert entry["scores"] == [score]


def test_a_brainless_volume_is_shown_whole_at_its_middle(tmp_path):
    one = panel(brain=np.zeros((6, 20, 16), bool))
    entry = data_of(page(tmp_path, [one]))["panels"][0]
    assert entry["size"] == [16, 20]
    assert entry["slices"][entry["start"]] == 3


def test_a_nan_voxel_is_black(tmp_path):
    broken = np.full((6, 20, 16), np.nan, np.float32)
    data = data_of(page(tmp_path, [panel(synthetic=broken)]))
    assert tile_of(data, 1, 0).max() <= 2


def test_the_better_score_of_a_panel_is_named(tmp_path):
    one = panel(
        scores={"SSIM": 0.8, "PSNR": 20.0, "NMSE": 0.1, "Dice": 0.5, "n": 3},
        baseline={"SSIM": 0.2, "PSNR": 21.0, "NMSE": 0.3, "Dice": 0.5},
    )
    entry = data_of(page(tmp_path, [one], lower_is_better={"NMSE"}))["panels"][0]
    better = {score["name"]: score["better"] for score in entry["scores"]}
    assert better == {"SSIM": "synthetic", "PSNR": "copy", "NMSE": "synthetic", "Dice": "", "n": ""}


def test_the_table_pairs_a_column_with_its_baseline_and_emphasises_the_better(tmp_path):
    rows = [
        {
            "modality": "t1",
            "n": 12,
            "SSIM brain": np.float32(0.8125),
            "SSIM brain (copy)": 0.25,
            "FID (copy)": 30.0,
            "FID": 41.23,
        },
        {"modality": "t2", "n": 0, "SSIM brain": math.nan, "SSIM brain (copy)": 0.5},
    ]
    text = page(tmp_path, summary=rows, lower_is_better=["FID"])
    body = re.search(r"<tbody>(.*)</tbody>", text)[1]
    assert body == (
        "<tr><td>t1</td><td>12</td>"
        '<td class="better">0.812</td><td>0.250</td><td>41.2</td><td class="better">30.0</td></tr>'
        "<tr><td>t2</td><td>0</td><td>\u2013</td><td>0.500</td><td>\u2013</td><td>\u2013</td></tr>"
    )
    head = re.search(r"<thead>(.*)</thead>", text)[1]
    assert re.findall(r'<th colspan="2" scope="colgroup">([^<]*)', head) == ["SSIM brain", "FID"]


def test_a_page_without_panels_has_no_viewer(tmp_path):
    text = page(tmp_path, [], summary=[{"modality": "t1"}])
    assert 'id="viewer"' not in text
    assert "<td>t1</td>" in text


def test_the_disclaimer_is_there_once_whatever_the_notes(tmp_path):
    for notes in ([], [report.DISCLAIMER], ["Something else."]):
        assert page(tmp_path, notes=notes).count("not a medical device") == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.81249, "0.812"),
        (-0.157, "-0.157"),
        (9.303, "9.3"),
        (22.34, "22.3"),
        (12, "12"),
        (np.int64(3), "3"),
        (math.inf, "\u221e"),
        (-math.inf, "-\u221e"),
        (math.nan, "\u2013"),
        (None, "\u2013"),
    ],
)
def test_numbers_are_shown_for_people(tmp_path, value, shown):
    assert f"<td>{shown}</td>" in page(tmp_path, summary=[{"value": value}])


def test_the_same_panels_give_the_same_bytes(tmp_path):
    report.write_montage(tmp_path / "a.png", [panel()], title="Montage")
    report.write_montage(tmp_path / "b.png", [panel()], title="Montage")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert page(tmp_path) == page(tmp_path)


def test_pictures_replace_older_ones_and_leave_nothing_else_behind(tmp_path):
    for name in ("m.png", "report.html"):
        (tmp_path / name).write_text("old")
    report.write_montage(tmp_path / "m.png", [panel()], title="Montage")
    page(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.png", "report.html"]
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_volumes_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="wanted one"):
        panel(synthetic=np.zeros((6, 20, 15), np.float32))
    with pytest.raises(ValueError, match="wanted one"):
        panel(truth=np.zeros((5, 20, 16), np.float32))
