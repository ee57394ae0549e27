"""NiiVue in a browser: it starts from a file alone, shows each volume where it belongs, and keys move all of them.

Without a Chromium, or one with WebGL 2, these tests are skipped.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from helpers import until
from PIL import Image

from attcl_cli.report import pictures, sections
from attcl_cli.report.page import Page, write_page

NO_WEBGL = """
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind === "webgl2" ? null : get.call(this, kind, ...more);
};
"""


NO_FRAMES = """
const held = [], frame = requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => held.push(draw);
window.release = () => { window.requestAnimationFrame = frame; held.forEach(frame); };
"""


def head(case: str) -> pictures.Panel:
    """Return a ball whose right side (of the patient) is bright, with a tumour in the dark part."""
    shape = (24, 40, 32)
    z, y, x = np.indices(shape)
    brain = ((z - 12) / 11) ** 2 + ((y - 20) / 18) ** 2 + ((x - 16) / 14) ** 2 < 1
    source = np.where(brain, np.where(x < 16, 0.9, 0.2), 0).astype(np.float32)
    tumour = (abs(z - 12) < 4) & (abs(y - 20) < 4) & (abs(x - 22) < 4)
    return pictures.Panel(
        case,
        "flair",
        "t1",
        pictures.compared("t1", {"flair": source}, source, None, brain),
        brain,
        outlines={"tumour": tumour},
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("niivue") / "report.html"
    slices = sections.Viewer([head("a"), head("<b>b</b>")], order="worst first")
    write_page(path, Page("Scores", sections=sections.viewers(slices, "niivue")))
    return path.as_uri()


@pytest.fixture(scope="module")
def tab(browser_with_webgl, address):
    """Return a tab in which NiiVue has drawn; nothing may have been fetched or complained about at the end."""
    opened = browser_with_webgl.new_page(viewport={"width": 1366, "height": 600})
    opened.set_default_timeout(60_000)
    complaints, requests = [], []
    opened.on("console", lambda each: each.type == "error" and complaints.append(each.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda made: requests.append(made.url))
    opened.goto(address)
    if not opened.evaluate("Boolean(document.createElement('canvas').getContext('webgl2'))"):
        pytest.skip("this Chromium has no WebGL 2")
    assert opened.locator("#niivue-volumes").get_attribute("aria-busy") is None  # not yet started
    opened.locator("#niivue-message").scroll_into_view_if_needed()
    opened.locator("#niivue-keys").wait_for()
    yield opened
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == {address}
    opened.close()


def pixels(tab, place: int) -> np.ndarray:
    """Return a volume as it is on the screen: (H, W, 3)."""
    tab.wait_for_timeout(300)
    shot = tab.locator("#niivue-volumes canvas").nth(place).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def blue(image: np.ndarray) -> float:
    """Return the share of pixels with the colour of the region; the crosshair is orange."""
    return float((image[..., 2] - image[..., 0] > 40).mean())


def plane(tab, name: str) -> None:
    tab.locator("#niivue-planes button", has_text=name).click()


def test_every_volume_is_drawn_and_what_is_synthetic_is_marked(tab):
    captions = tab.locator("#niivue-volumes figcaption").all_inner_texts()
    assert captions == ["flair, source", "t1\nSYNTHETIC"]
    for place in range(2):
        assert (pixels(tab, place).sum(axis=2) > 300).mean() > 0.05  # the bright half


def test_a_volume_that_is_not_yet_drawn_says_so_instead_of_being_black(browser_with_webgl, address):
    opened = browser_with_webgl.new_page(viewport={"width": 1366, "height": 1600})
    opened.set_default_timeout(60_000)
    opened.add_init_script(NO_FRAMES)
    opened.goto(address)
    figures = opened.locator("#niivue-volumes figure.waiting")
    figures.nth(1).wait_for()
    assert opened.locator("#niivue-volumes figcaption").all_inner_texts() == [
        "flair, source", "t1\nSYNTHETIC",
    ]  # fmt: skip
    for place in range(2):
        written = pixels(opened, place).max(axis=2) < 150
        top, bottom = np.split(written[:-12], [len(written) // 5])  # but for round corners
        assert 0.0005 < top.mean() < 0.02 and not bottom.any()  # a word at the top
    opened.evaluate("release()")
    opened.locator("#niivue-keys").wait_for()
    assert figures.count() == 0
    assert (pixels(opened, 1).sum(axis=2) > 300).mean() > 0.05
    opened.close()


def test_the_right_of_the_patient_is_on_the_left_as_in_the_slices(tab):
    plane(tab, "axial")
    grey = pixels(tab, 0).min(axis=2)
    middle = grey.shape[1] // 2
    assert (grey[:, :middle] > 200).mean() > 10 * (grey[:, middle:] > 200).mean() + 0.05


def test_a_region_is_coloured_and_can_be_switched_off(tab):
    plane(tab, "axial")
    with_it = blue(pixels(tab, 1))
    tab.locator("#niivue-regions label", has_text="tumour").click()
    without = blue(pixels(tab, 1))
    tab.locator("#niivue-regions label", has_text="tumour").click()
    assert with_it > 0.01
    assert without == 0


def test_keys_move_the_crosshair_of_all_volumes_and_nothing_else(tab):
    plane(tab, "three planes")
    other, slider = pixels(tab, 1), tab.locator("#slice").input_value()
    before = tab.locator("#niivue-place").inner_text()
    tab.locator("#niivue-volumes canvas").first.focus()
    for _ in range(4):
        tab.keyboard.press("ArrowLeft")
    after = tab.locator("#niivue-place").inner_text()
    assert before.split(", ")[1:] == after.split(", ")[1:]
    assert before.split(", ")[0] != after.split(", ")[0]
    assert (abs(pixels(tab, 1) - other) > 60).any()
    assert tab.locator("#slice").input_value() == slider


def test_another_volume_is_shown_and_its_name_is_text(tab):
    choices = tab.locator("#niivue-panels button")
    assert choices.all_inner_texts() == ["a, flair \u2192 t1", "<b>b</b>, flair \u2192 t1"]
    choices.last.click()
    tab.locator("#niivue-volumes[aria-busy=false]").wait_for()
    assert choices.last.get_attribute("aria-pressed") == "true"
    assert (pixels(tab, 0).sum(axis=2) > 300).mean() > 0.05


def test_the_page_is_scrolled_over_a_volume_that_was_not_chosen(tab):
    tab.locator("#niivue-panels button").first.focus()
    tab.locator("#niivue-volumes canvas").first.hover()  # which may scroll to it
    before = tab.evaluate("scrollY")
    tab.mouse.wheel(0, -200)
    assert until(tab, lambda: tab.evaluate("scrollY") < before)


def test_nothing_is_wider_than_a_phone(tab):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_timeout(500)
    page, screen = tab.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    boxes = [each.bounding_box() for each in tab.locator("#niivue :is(button, canvas)").all()]
    tab.set_viewport_size({"width": 1366, "height": 600})
    assert page <= screen
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= screen for box in boxes)


def test_without_webgl_2_a_sentence_says_so(browser_with_webgl, address):
    opened = browser_with_webgl.new_page()
    opened.add_init_script(NO_WEBGL)
    opened.goto(address)
    opened.locator("#niivue-message").scroll_into_view_if_needed()
    opened.locator("#niivue-message", has_text="needs WebGL 2").wait_for()
    assert opened.locator("#niivue-volumes canvas").count() == 0
    assert opened.locator("#niivue-controls").is_hidden()
    opened.close()
