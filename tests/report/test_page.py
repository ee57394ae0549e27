"""The page: what it shows, what it hides, and that no name can break it."""

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import panel
from PIL import Image

from attcl_cli.report import pictures
from attcl_cli.report import sections as report
from attcl_cli.report.page import Page, write_page

HOSTILE = "<img src=x onerror=alert(1)></script>$title"
CASES = [
    {"case": "Patient_1", "source": "flair", "modality": "t1", "SSIM": 0.8},
    {"case": "Patient_2", "source": "flair", "modality": "t1", "SSIM": None},
]
PNG = b"\x89PNG\r\n\x1a\n"
CURVE = report.Curve("SSIM", "", {"this run": [(0, 0.1), (10, 0.4)]}, level={"copy": 0.3})
EVERYTHING = [
    report.Curves("Training", [CURVE], hint="Every 10 steps."),
    report.Patterns(["t1", "t2"], {("t1", "t2"): 3, ("t2",): 1}, hint="One case has no t1."),
    report.Images("Samples", {"Step 10": PNG}, hint="Four slices."),
    report.Text("Methods", ["One paragraph."], {"Settings": "a = 1\n  b = 2"}),
]
SCORES = report.Distribution("SSIM brain", "", {"t1": [0.8, 0.9], "t2": [0.7]}, {"t1": [0.6]})


def page(folder: Path, panels=None, *, more=(), **changes) -> str:
    """Write a page with the sections of a score's report, and `more`; return its text."""
    viewer = report.Viewer(
        [panel()] if panels is None else panels,
        order=changes.pop("order", ""),
        hint=changes.pop("pictured", ""),
        lower_is_better=changes.pop("lower_is_better", ()),
    )
    sections = [
        viewer,
        report.Table("Scores", changes.pop("summary", [])),
        report.BoxPlots(changes.pop("distributions", [])),
        report.CaseTable(changes.pop("cases", [])),
        *more,
    ]
    path = folder / "report.html"
    write_page(path, Page(**({"title": "A report", "sections": sections} | changes)))
    return path.read_text(encoding="utf-8")


def data_of(text: str) -> dict:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def sheet_of(data: dict, index: int, column: int) -> Image.Image:
    uri = data["images"][data["panels"][index]["tiles"][column]["sheet"]]
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


def test_the_page_needs_nothing_beside_itself(tmp_path):
    text = page(tmp_path, files=["scores/scores.csv"], more=EVERYTHING)
    tags = Tags(text).tags
    fetching = {"src", "srcset", "data", "poster", "background", "action", "xlink:href"}
    for tag, attributes in tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "video", "audio", "source"}
        for name in fetching & set(attributes):
            assert (tag, name) == ("img", "src")
            assert attributes[name].startswith("data:image/png;base64,")
        assert not attributes.get("href", "").startswith(("http:", "https:", "//"))
        assert "url(" not in attributes.get("style", "")
    assert [tag for tag, _ in tags].count("img") == 1
    assert not re.search(r"url\(|@import", re.search(r"<style>(.*?)</style>", text, re.S)[1])


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
        outlines={HOSTILE: np.ones((6, 20, 16), bool)},
    )
    text = page(
        tmp_path,
        [hostile],
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        summary=[{HOSTILE: HOSTILE, "n": 3}],
        notes=[HOSTILE],
        files=[HOSTILE, "javascript:alert(1)", '" onclick="alert(1)'],
        cases=[{"case": HOSTILE, "source": HOSTILE, "modality": HOSTILE, HOSTILE: 0.5}],
        distributions=[
            report.Distribution(HOSTILE, HOSTILE, {HOSTILE: [0.5]}, {HOSTILE: [0.4]}),
            report.Distribution(HOSTILE, HOSTILE, {}),
        ],
        order=HOSTILE,
        pictured=HOSTILE,
        verdict=HOSTILE,
        more=[
            report.Curves(
                HOSTILE, [report.Curve(HOSTILE, HOSTILE, {HOSTILE: [(0, 1)]})], hint=HOSTILE
            ),
            report.Patterns([HOSTILE], {(HOSTILE,): 1}, heading=HOSTILE, hint=HOSTILE),
            report.Images(HOSTILE, {HOSTILE: PNG}, hint=HOSTILE),
            report.Text(HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}),
        ],
    )
    tags = Tags(text).tags
    assert [a["src"][:22] for tag, a in tags if tag == "img"] == ["data:image/png;base64,"]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert len([tag for tag, _ in tags if tag == "script"]) == 2
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links[0] == "#viewer"
    assert links[2] == "javascript%3Aalert%281%29"
    entry = data_of(text)["panels"][0]
    assert [entry["case"], entry["source"], entry["target"]] == [HOSTILE] * 3
    assert text.count("A report") == 0  # "$title" in the data was not filled in again


def test_undecodable_file_names_do_not_break_the_page(tmp_path):
    name = b"case_\xff".decode("utf-8", "surrogateescape")
    assert data_of(page(tmp_path, [panel(case=name)], facts={"case": name}))["panels"][0]


def test_the_viewer_opens_at_the_largest_slice_cropped_to_the_brain(tmp_path):
    entry = data_of(page(tmp_path))["panels"][0]
    assert entry["slices"] == [1, 2, 3, 4]
    assert entry["slices"][entry["starts"][0]] == 3
    assert entry["shape"] == [6, 20, 16]
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
    assert entry["slices"][entry["starts"][0]] == 80


def test_a_page_of_many_panels_has_fewer_slices_each(tmp_path):
    shape = (155, 160, 160)
    volume = np.zeros(shape, np.float32)
    one = panel(source=volume, synthetic=volume, truth=volume, brain=np.ones(shape, bool))
    data = data_of(page(tmp_path, [one] * 20))
    pixels = sum(4 * math.prod(entry["size"]) * len(entry["slices"]) for entry in data["panels"])
    assert 20_000_000 < pixels <= 36_000_000


def test_a_source_of_two_targets_is_kept_once(tmp_path):
    data = data_of(page(tmp_path, [panel(), panel(target_modality="t2")]))
    one, other = ([tile["sheet"] for tile in entry["tiles"]] for entry in data["panels"])
    assert one == other
    assert len(data["images"]) == 4


def test_a_score_without_value_is_a_dash(tmp_path):
    one = panel(scores={"SSIM brain": math.nan}, baseline={"SSIM brain": math.nan})
    entry = data_of(page(tmp_path, [one]))["panels"][0]
    score = {"name": "SSIM brain", "value": "\u2013", "copy": "\u2013", "better": ""}
    assert entry["scores"] == [score]


def test_a_brainless_volume_is_shown_whole_at_its_middle(tmp_path):
    one = panel(brain=np.zeros((6, 20, 16), bool))
    entry = data_of(page(tmp_path, [one]))["panels"][0]
    assert entry["size"] == [16, 20]
    assert entry["slices"][entry["starts"][0]] == 3


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


def test_the_summary_has_one_heading_row_and_a_cell_per_column(tmp_path):
    rows = [
        {"modality": "t1", "n": 12, "SSIM brain": np.float32(0.8125)},
        {"modality": "t2", "FID": 41.23, "SSIM brain": "0.500 \u00b1 0.012"},
    ]
    text = page(tmp_path, summary=rows)
    assert re.search(r"<thead>(.*)</thead>", text)[1] == (
        '<tr><th scope="col">modality</th><th scope="col">n</th>'
        '<th scope="col">SSIM brain</th><th scope="col">FID</th></tr>'
    )
    assert re.search(r"<tbody>(.*)</tbody>", text)[1] == (
        "<tr><td>t1</td><td>12</td><td>0.812</td><td>\u2013</td></tr>"
        "<tr><td>t2</td><td>\u2013</td><td>0.500 \u00b1 0.012</td><td>41.2</td></tr>"
    )


def test_a_page_without_panels_has_no_viewer(tmp_path):
    text = page(tmp_path, [], summary=[{"modality": "t1"}])
    assert 'id="viewer"' not in text
    assert "<td>t1</td>" in text


def test_the_disclaimer_is_there_once_with_or_without_notes(tmp_path):
    for notes in ([], ["Something else."]):
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


def test_the_same_panels_give_the_same_page(tmp_path):
    settings = {"cases": CASES, "distributions": [SCORES]}
    assert page(tmp_path, **settings) == page(tmp_path, **settings)


def test_a_page_replaces_an_older_one_and_leaves_nothing_else_behind(tmp_path):
    (tmp_path / "report.html").write_text("old")
    assert page(tmp_path).startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_sections_stand_in_the_order_given(tmp_path):
    text = page(tmp_path, more=EVERYTHING)
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", text)
    assert headings == ["Slices", "Training", "Missing modalities", "Samples", "Methods"]


def test_the_verdict_is_under_the_title_and_left_out_if_there_is_none(tmp_path):
    text = page(tmp_path, verdict="Better than a copy in 8 of 12 volumes.")
    assert (
        '</h1>\n<p class="verdict">Better than a copy in 8 of 12 volumes.</p>\n<dl class="facts">'
    ) in text
    assert 'class="verdict"' not in page(tmp_path)


def test_a_page_is_read_again_only_while_the_run_goes_on(tmp_path):
    def refreshes(text: str) -> list[str]:
        return [a["content"] for _, a in Tags(text).tags if a.get("http-equiv") == "refresh"]

    text = page(tmp_path, refresh_seconds=30)
    assert refreshes(text) == ["30"]
    assert "this page is read again every 30 seconds" in text
    assert refreshes(page(tmp_path)) == []
    assert "read again" not in page(tmp_path)


def test_a_curve_has_its_lines_its_level_and_its_last_value_in_words(tmp_path):
    text = page(tmp_path, more=[report.Curves("Training", [CURVE], hint="Every 10 steps.")])
    section = re.search(r"<section><h2>Training.*?</section>", text, re.S)[0]
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", section, re.S)[0])
    assert svg.find("desc").text == "this run: 0.400 at 10"
    assert [line.find("title").text for line in svg.findall("g[@class='level']")] == ["copy"]
    (line,) = svg.findall("g[@class='line line-0']")
    (x, y), (end, top) = re.findall(r"[ML]([\d.]+) ([\d.]+)", line.find("path").get("d"))
    assert float(x) < float(end)
    assert float(y) > float(top)  # the values rise
    assert "copy 0.300" in section
    assert '<p class="hint">Every 10 steps.</p>' in section


def test_a_pattern_says_in_words_what_is_missing_and_in_how_many_cases(tmp_path):
    text = page(tmp_path, more=[EVERYTHING[1]])
    body = re.search(r"<tbody>\n(.*?)\n</tbody>", text, re.S)[1]
    rows = [
        re.findall(r">(present|missing|\d+)<", row)
        for row in body.split("\n</tr>")[0].split("</tr>\n")
    ]
    assert rows == [["present", "present", "3"], ["missing", "present", "1"]]
    assert re.findall(r"--share: ([\d.]+)", body) == ["1.000", "0.333"]
    assert "One case has no t1." in text


def test_a_pattern_of_no_case_has_no_bar(tmp_path):
    text = page(tmp_path, more=[report.Patterns(["t1"], {("t1",): 0})])
    assert re.findall(r"--share: ([\d.]+)", text) == ["0.000"]


def test_a_picture_is_shown_byte_by_byte_with_its_caption(tmp_path):
    text = page(tmp_path, more=[EVERYTHING[2]])
    (image,) = [attributes for tag, attributes in Tags(text).tags if tag == "img"]
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == PNG
    assert image["alt"] == "Step 10"
    assert "<figcaption>Step 10</figcaption>" in text


def test_folded_text_keeps_its_lines(tmp_path):
    text = page(tmp_path, more=[EVERYTHING[3]])
    assert "<p>One paragraph.</p>" in text
    assert "<details><summary>Settings</summary><pre>a = 1\n  b = 2\n</pre></details>" in text


@pytest.mark.parametrize("section", [
    report.Curves("Training", []),
    report.Patterns(["t1"], {}),
    report.Images("Samples", {}),
], ids=lambda each: each.heading)  # fmt: skip
def test_a_section_of_nothing_is_left_out(tmp_path, section):
    assert "<h2>" not in page(tmp_path, more=[section])


# --- The panels of the viewer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "known", "kinds"),
    [
        (["flair"], False, ["source", "synthetic"]),
        (["flair", "t2", "t1ce"], True, ["source"] * 3 + ["synthetic", "real", "difference"]),
    ],
)
def test_a_panel_has_a_tile_per_volume(tmp_path, sources, known, kinds):
    brain = np.ones((6, 20, 16), bool)
    volume = np.full(brain.shape, 0.5, np.float32)
    tiles = pictures.compared(
        "t1", dict.fromkeys(sources, volume), volume, volume if known else None, brain
    )
    data = data_of(page(tmp_path, [panel(tiles=tiles, brain=brain)]))
    assert [tile["kind"] for tile in data["panels"][0]["tiles"]] == kinds
    # all grey pictures are equal, and kept once
    assert len(data["images"]) == 1 + known


def test_the_viewer_knows_where_its_pixels_lie_in_the_head(tmp_path):
    entry = data_of(page(tmp_path, [panel(spacing_mm=(3.0, 0.5, 0.25))]))["panels"][0]
    assert entry["box"] == [[0, 19], [2, 16]]  # rows 3..15, columns 5..12, a margin of 3
    assert entry["spacing"] == [3.0, 0.5, 0.25]
    assert entry["starts"] == [2, 9, 7]  # most brain, and the middle


def test_an_outline_is_in_the_page_to_the_voxel(tmp_path):
    full = np.ones((6, 20, 16), bool)
    region = np.zeros(full.shape, bool)
    region[2, 5:9, 3:6] = True
    region[3, 6, 4] = True
    data = data_of(page(tmp_path, [panel(brain=full, outlines={"tumour": region})]))
    entry = data["panels"][0]
    (outline,) = entry["outlines"]
    assert (outline["name"], outline["colour"]) == ("tumour", 0)
    code = data["images"][outline["sheet"]].removeprefix("data:image/webp;base64,")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"))
    across, down = entry["grid"]
    slices = sheet.reshape(down, 20, across, 16).swapaxes(1, 2).reshape(-1, 20, 16)[:6]
    np.testing.assert_array_equal(slices, region * 255)
    assert entry["starts"][1:] == [6, 4]  # the row and column with most of it


def test_an_outline_has_one_colour_in_all_panels(tmp_path):
    region = np.ones((6, 20, 16), bool)
    names = [["tumour"], ["core", "tumour"], ["core", HOSTILE]]
    panels = [panel(outlines=dict.fromkeys(each, region)) for each in names]
    found = data_of(page(tmp_path, panels))["panels"]
    colours = [[(it["name"], it["colour"]) for it in entry["outlines"]] for entry in found]
    assert colours == [
        [("tumour", 0)],
        [("core", 1), ("tumour", 0)],
        [("core", 1), (HOSTILE, 2)],
    ]


# --- The table of cases ---------------------------------------------------------------------------


def rows_of(text: str) -> list[str]:
    body = re.search(r'<section id="cases">.*?<tbody>(.*?)</tbody>', text, re.S)[1]
    return body.removesuffix("</tr>").split("</tr>")


def test_a_row_of_the_table_leads_to_its_panel(tmp_path):
    panels = [panel(case="B"), panel(), panel(target_modality="t2"), panel(source_modality="t2")]
    keys = [
        {"case": "Patient_1", "source": "flair", "modality": "t1"},
        {"case": "Patient_1", "source": "t2", "modality": "t1"},
        {"case": "Patient_1", "source": "flair", "modality": "t2"},
        {"case": "Patient_1", "source": "t1ce", "modality": "t1"},
        {"case": "C", "source": "flair", "modality": "t1"},
        {"volume": 3},
    ]
    rows = rows_of(page(tmp_path, panels, cases=keys))
    found = [re.search(r'<tr data-panel="(\d+)"', row) for row in rows]
    assert [match and int(match[1]) for match in found] == [1, 3, 2, None, None, None]
    assert ['<a href="#viewer">' in row for row in rows] == [True, True, True, False, False, False]


def test_the_cases_are_sorted_by_the_whole_value_and_shown_rounded(tmp_path):
    values = [0.81249, np.float32(0.5), 3, math.inf, -math.inf, math.nan, None, "none"]
    rows = rows_of(page(tmp_path, cases=[{"case": "A", "SSIM": value} for value in values]))
    cells = [re.search(r"<td[^>]*>([^<]*)$", row.removesuffix("</td>")) for row in rows]
    keys = [re.search(r'data-value="([^"]*)"', row) for row in rows]
    assert [cell[1] for cell in cells] == [
        "0.812",
        "0.500",
        "3",
        "\u221e",
        "-\u221e",
        "\u2013",
        "\u2013",
        "none",
    ]
    assert [key and key[1] for key in keys] == [
        "0.81249",
        "0.5",
        "3.0",
        "Infinity",
        "-Infinity",
        "",
        "",
        None,
    ]


def test_the_columns_of_the_cases_are_all_keys_in_order(tmp_path):
    text = page(tmp_path, cases=[{"case": "A", "x": 1.0}, {"case": "B", "y": 2.0}])
    heads = re.search(r'<section id="cases">.*?<thead>(.*?)</thead>', text, re.S)[1]
    assert re.findall(r"<th[^>]*>([^<]*)", heads) == ["case", "x", "y"]


def test_of_many_rows_the_first_thousand_are_shown_and_all_of_them_are_there(tmp_path):
    for count, later in ((1_000, 0), (1_001, 1)):
        text = page(tmp_path, cases=[{"case": f"P{number}", "x": 0.5} for number in range(count)])
        rows = rows_of(text)
        assert len(rows) == count
        assert [row.count("later") for row in rows] == [0] * 1_000 + [1] * later
        assert ("Show all 1,001 rows" in text) == bool(later)


def test_a_page_of_1250_cases_in_12_directions_leaves_room_for_its_pictures(tmp_path):
    """Pictures take about 6 MB, whatever the number of volumes: a page stays under 20 MB."""
    scores = {
        f"{metric} {region}": 1 / 3 for metric in ("SSIM", "PSNR", "NMSE") for region in "abc"
    }
    cases = [
        {"case": f"BraTS2021_{number:05d}", "source": source, "modality": target, **scores}
        for number in range(1_250)
        for source in ("flair", "t1", "t1ce", "t2")
        for target in ("flair", "t1", "t1ce", "t2")
        if source != target
    ]
    values = {target: [1 / 3] * 3_750 for target in ("flair", "t1", "t1ce", "t2")}
    plots = [report.Distribution(name, "", values, values) for name in scores]
    page(tmp_path, cases=cases, distributions=plots)
    assert (tmp_path / "report.html").stat().st_size < 14_000_000


def test_a_page_without_cases_or_distributions_has_no_such_section(tmp_path):
    text = page(tmp_path)
    assert 'id="cases"' not in text
    assert 'id="distributions"' not in text


# --- The box plots --------------------------------------------------------------------------------


class Plot:
    """The first box plot of a page, as numbers: what its marks stand for on its own axis."""

    def __init__(self, folder: Path, distribution: report.Distribution) -> None:
        text = page(folder, [], distributions=[distribution])
        self.figure = re.search(r"<figure.*?</figure>", text, re.S)[0]
        self.svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", self.figure, re.S)[0])
        self.labels = [label.text for label in self.svg.findall("text[@class='tick']")]
        heights = [float(rule.get("d").split()[1].split("H")[0]) for rule in self.rules()]
        ticks = [float(label) for label in self.labels]
        self.slope = (ticks[-1] - ticks[0]) / (heights[-1] - heights[0])
        self.origin = ticks[0] - self.slope * heights[0]

    def rules(self):
        return self.svg.findall("path[@class='rule']")

    def value(self, height: float) -> float:
        return self.origin + self.slope * float(height)

    def groups(self, kind: str):
        return self.svg.findall(f"g[@class='{kind}']")

    def box(self, group) -> tuple[float, float, float, float, float]:
        """Whisker, quartile, median, quartile, whisker."""
        rect, path = group.find("rect"), group.find("path").get("d")
        top, height = float(rect.get("y")), float(rect.get("height"))
        median = re.match(r"M\S+ ([\d.]+)H", path)[1]
        low, high = re.findall(r"V([\d.]+)", path)
        heights = (low, top + height, median, top, high)
        return tuple(self.value(each) for each in heights)

    def dots(self, group) -> list[float]:
        return [self.value(dot.get("cy")) for dot in group.findall("circle")]


def test_a_box_holds_the_quartiles_and_its_whiskers_end_within_one_and_a_half_boxes(tmp_path):
    values = [*range(1, 10), 30.0]  # quartiles 3.25, 5.5, 7.75: whiskers reach from -3.5 to 14.5
    plot = Plot(tmp_path, report.Distribution("HD95", "mm", {"t1": values}))
    (group,) = plot.groups("made")
    np.testing.assert_allclose(plot.box(group), (1, 3.25, 5.5, 7.75, 9), atol=0.02)
    np.testing.assert_allclose(plot.dots(group), values, atol=0.02)


def test_of_many_values_only_those_beyond_the_whiskers_are_dots(tmp_path):
    values = [*np.linspace(0, 1, 40), 4.0, -3.0]
    plot = Plot(tmp_path, report.Distribution("x", "", {"t1": values}, {"t1": [0.5, 0.5, 9.0]}))
    np.testing.assert_allclose(plot.dots(plot.groups("made")[0]), [4, -3], atol=0.05)
    np.testing.assert_allclose(plot.dots(plot.groups("copy")[0]), [9] * 0, atol=0.05)


def test_the_copies_stand_beside_the_synthetic_volumes(tmp_path):
    plot = Plot(tmp_path, SCORES)
    made, copies = plot.groups("made"), plot.groups("copy")
    assert (len(made), len(copies)) == (2, 1)
    left, right = (float(each[0].find("rect").get("x")) for each in (made, copies))
    assert left + float(made[0].find("rect").get("width")) < right


def test_what_has_no_value_is_left_out_and_counted(tmp_path):
    broken = [0.5, math.nan, math.inf, 0.7]
    plot = Plot(tmp_path, report.Distribution("x", "", {"t1": broken, "t2": [math.nan]}))
    assert "3 without value" in plot.figure
    assert [count.text for count in plot.svg.findall("text[@class='n']")] == ["n 2", "n 0"]
    assert len(plot.groups("made")) == 1


def test_a_distribution_of_nothing_says_so(tmp_path):
    for groups in ({}, {"t1": []}, {"t1": [math.nan, math.inf]}):
        text = page(tmp_path, distributions=[report.Distribution("x", "", groups)])
        assert "<p>no values</p>" in text
        assert "<svg" not in text


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.52, 0.98], ["0.6", "0.7", "0.8", "0.9"]),
        ([17, 34.2], ["20", "25", "30"]),
        ([-1, 1], ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([5.0], ["4.8", "4.9", "5.0", "5.1", "5.2"]),
        ([0.0, 0.0], ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
        ([0.00001, 0.00003], ["1e-05", "1.5e-05", "2e-05", "2.5e-05", "3e-05"]),
        ([0, 6e6], ["0", "2e+06", "4e+06", "6e+06"]),
    ],
)
def test_an_axis_has_round_ticks(tmp_path, values, labels):
    assert Plot(tmp_path, report.Distribution("x", "", {"t1": values})).labels == labels


def test_a_plot_tells_its_medians_and_shortens_its_labels(tmp_path):
    name = "<b>a region of a very long name</b>"
    plot = Plot(tmp_path, report.Distribution("SSIM & more", "1", {name: [1.0, 2.0], "b": [3.0]}))
    assert plot.svg.find("title").text == "SSIM & more"
    assert plot.svg.find("desc").text == f"{name}: median 1.500 of 2; b: median 3.0 of 1"
    label = plot.svg.find("text[@class='group']/title")
    assert label.text == name
    assert label.tail.endswith("\u2026")
    assert len(label.tail) < len(name)


def test_a_plot_of_many_groups_takes_the_whole_width(tmp_path):
    few, many = ({str(name): [1.0] for name in range(count)} for count in (5, 9))
    assert 'class="plain"' in Plot(tmp_path, report.Distribution("x", "", few)).figure
    assert 'class="wide"' in Plot(tmp_path, report.Distribution("x", "", many)).figure


def test_a_curve_of_one_step_is_said_in_words(tmp_path):
    curve = report.Curve("Loss", "", {"D": [(73, 0.25)], "E": [(73, 1.5)]}, level={"copy": 0.3})
    text = page(tmp_path, [], more=[report.Curves("Losses", [curve], "")])
    assert "<p>D: 0.250 at 73; E: 1.500 at 73 (step); copy: 0.300</p>" in text
    assert "<svg" not in text
