"""The page in a browser: it runs from a file alone, and its table, slider and keys do what they say."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attcl_cli.report import pictures, sections
from attcl_cli.report.page import Page, write_page

HOSTILE = "<img src=x onerror=alert(1)>"
SIZES = [(1366, 768), (390, 844)]
# SSIM of the cases in the order given: b first, as the worst; two are equal, two have no value.
SSIM = {"b": 0.5, "a": 0.75, "c": None, "d": 0.75, "e": -0.125, "f": math.nan, HOSTILE: 10.0}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium: one of the machine's, or the one that Playwright installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium: none on the PATH, none of Playwright's own")
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page with everything on it: hostile names, long ones, missing values, many rows."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    cases = [
        {"case": name, "source": "flair", "modality": "t1", "SSIM brain": value, "n": 3}
        for name, value in SSIM.items()
    ]
    filling = [
        {
            "case": f"Patient_{number}",
            "source": "t1",
            "modality": "t2",
            "SSIM brain": 20 + number / 7,
        }
        for number in range(60)
    ]
    groups = {"t1": [0.5, 0.75, math.nan, 0.7], HOSTILE: [0.1, 0.2]}
    regions = {f"a region with a long name, {number}": [1.0, 2.0, number] for number in range(12)}
    page = Page(
        "Scores of " + "a_long_name_" * 12,
        verdict="Better than a copy of the source in 3 of 5 volumes.",
        facts={"case": HOSTILE, "path": "x" * 200},
        sections=[
            sections.Viewer(
                [volume("b"), volume("a", target="t2"), volume("a"), volume("d"), volume(HOSTILE)],
                order="worst first",
                hint="The 5 worst of 67 volumes have pictures.",
            ),
            sections.Table("Scores", [{"modality": "t1", "SSIM": 0.5, "HD95 (mm)": 3.5, "n": 100}]),
            sections.BoxPlots(
                [
                    sections.Distribution("SSIM", "1", groups, {"t1": [0.3, 0.4]}),
                    sections.Distribution("HD95 of the regions", "mm", regions),
                    sections.Distribution("PSNR", "dB", {"t1": [20.0, 22.0]}),
                ]
            ),
            sections.CaseTable([*cases, *filling]),
        ],
        notes=["y" * 300],
        files=["scores.csv"],
    )
    write_page(path, page)
    return path


def volume(case: str, *, target: str = "t1") -> pictures.Panel:
    """Return a head of (12, 40, 32) whose slices differ: a bright square wanders through them."""
    shape = (12, 40, 32)
    brain = np.zeros(shape, bool)
    brain[1:11, 4:36, 4:28] = True
    brain[6, 3] = True
    source = np.where(brain, np.float32(0.3), 0)
    for index in range(shape[0]):
        source[index, 5 + 2 * index : 10 + 2 * index, 8 : 10 + index] = 0.9
    synthetic = np.clip(source + 0.1, 0, 1).astype(np.float32)
    return pictures.Panel(
        case,
        "flair",
        target,
        pictures.compared(target, {"flair": source}, synthetic, np.flip(source, 2).copy(), brain),
        brain,
        scores={"SSIM brain": 0.5},
        baseline={"SSIM brain": 0.4},
    )


@pytest.fixture
def opened(browser: Any, written: Path) -> Iterator[Callable[..., Any]]:
    """Return `opened(width, height)`, which opens the page; nothing may go wrong or be fetched until the end."""
    complaints, requests, tabs = [], [], []

    def at(width: int = 1366, height: int = 768) -> Any:
        tab = browser.new_page(viewport={"width": width, "height": height})
        tab.set_default_timeout(20_000)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        # what a page carries itself, as data, is no request
        tab.on("request", lambda made: made.url.startswith("data:") or requests.append(made.url))
        tab.goto(written.as_uri())
        tabs.append(tab)
        return tab

    yield at
    for tab in tabs:
        tab.close()
    assert complaints == []
    assert requests == [written.as_uri()] * len(tabs)


def shown(tab: Any) -> tuple[str, str, str]:
    """Return the case and target that the viewer shows, and its place in the order."""
    case = tab.locator("#case").evaluate("each => each.value")
    return (
        case,
        tab.locator("#tiles .synthetic figcaption span").inner_text(),
        tab.locator("#position").inner_text(),
    )


def names(tab: Any, *, filling: bool = False) -> list[str]:
    """Return the cases in the order of the table: those of `SSIM`, or the others."""
    cells = tab.locator("#cases tbody td:first-child").all_inner_texts()
    return [cell for cell in cells if cell.startswith("Patient") == filling]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_is_wider_than_the_screen(opened, width, height):
    tab = opened(width, height)
    widths = "[document.scrollingElement.scrollWidth, innerWidth]"
    page, screen = tab.evaluate(widths)
    assert page <= screen
    tab.locator("#next").click()
    page, screen = tab.evaluate(widths)
    assert page <= screen


def test_the_slider_changes_the_pictures(opened):
    tab = opened()
    tile = tab.locator(".sprite").first
    before = tile.screenshot()
    assert tab.locator("#place").inner_text() == "slice 7 of 12"
    tab.locator("#slice").fill("0")
    assert tab.locator("#place").inner_text() == "slice 2 of 12"
    assert tile.screenshot() != before
    tab.locator("#slice").fill("5")
    assert tile.screenshot() == before


def test_the_arrow_keys_change_the_slice(opened):
    tab = opened()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#place").inner_text() == "slice 8 of 12"
    for _ in range(3):
        tab.keyboard.press("ArrowLeft")
    assert tab.locator("#place").inner_text() == "slice 5 of 12"
    tab.locator("#slice").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#place").inner_text() == "slice 6 of 12"


def test_the_page_keys_step_through_the_volumes_in_the_order_given(opened):
    tab = opened()
    assert shown(tab) == ("b", "t1", "1 of 5, worst first")
    tab.locator(".tiles").click()
    seen = []
    for _ in range(5):
        tab.keyboard.press("PageDown")
        seen.append(shown(tab)[:2])
    assert seen == [("a", "t2"), ("a", "t1"), ("d", "t1"), (HOSTILE, "t1"), (HOSTILE, "t1")]
    tab.keyboard.press("PageUp")
    assert shown(tab) == ("d", "t1", "4 of 5, worst first")
    assert tab.locator("#real").inner_text() == "t1, real"


def test_outside_the_viewer_the_page_keys_scroll(opened):
    tab = opened()
    tab.keyboard.press("PageDown")
    for _ in range(200):  # it glides; wait_for_function would need the eval that the page forbids
        if tab.evaluate("scrollY"):
            break
        tab.wait_for_timeout(50)
    assert tab.evaluate("scrollY") > 0
    assert shown(tab) == ("b", "t1", "1 of 5, worst first")


def test_the_buttons_and_the_list_of_cases_change_the_volume(opened):
    tab = opened()
    assert tab.locator("#case option").all_inner_texts() == ["b", "a", "d", HOSTILE]
    tab.locator("#case").select_option("a")
    assert shown(tab)[:2] == ("a", "t1")  # the same target as before
    tab.locator("#targets button").first.click()
    assert shown(tab) == ("a", "t2", "2 of 5, worst first")
    tab.locator("#previous").click()
    assert shown(tab)[:2] == ("b", "t1")
    tab.keyboard.press("Enter")  # the button of no use any more keeps the focus, and the page keys
    assert shown(tab)[:2] == ("b", "t1")
    tab.keyboard.press("PageDown")
    assert shown(tab)[:2] == ("a", "t2")


def test_two_targets_of_a_case_are_shown_at_the_same_height(opened):
    tab = opened()
    tab.locator("#case").select_option("a")
    tab.locator("#slice").fill("2")
    tab.locator("#targets button").first.click()
    assert tab.locator("#place").inner_text() == "slice 4 of 12"


def test_the_table_sorts_numbers_both_ways_and_keeps_what_has_no_value_last(opened):
    tab = opened()
    assert names(tab) == list(SSIM)
    heading = tab.locator("#cases th", has_text="SSIM brain")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names(tab) == ["e", "b", "a", "d", HOSTILE, "c", "f"]
    tab.keyboard.press("Enter")  # the button still has the focus
    assert heading.get_attribute("aria-sort") == "descending"
    assert names(tab) == [HOSTILE, "a", "d", "b", "e", "c", "f"]
    assert tab.locator("#cases td:first-child").all_inner_texts()[-2:] == ["c", "f"]


def test_the_table_sorts_names_as_people_count(opened):
    tab = opened()
    heading = tab.locator("#cases th").first
    heading.locator("button").click()
    assert names(tab, filling=True) == [f"Patient_{number}" for number in range(60)]
    tab.locator("#cases th button", has_text="modality").click()
    assert heading.get_attribute("aria-sort") is None
    # equal rows keep their order
    assert names(tab, filling=True) == [f"Patient_{number}" for number in range(60)]


def test_a_row_shows_its_volume_and_moves_to_the_viewer(opened):
    tab = opened()
    tab.locator("#cases tbody tr", has_text=HOSTILE).locator("td").nth(3).click()
    assert shown(tab) == (HOSTILE, "t1", "5 of 5, worst first")
    assert tab.evaluate("document.querySelector('#viewer').getBoundingClientRect().top") < 100
    tab.keyboard.press("PageUp")
    assert shown(tab)[0] == "d"
    marked = tab.locator("#cases tr[aria-current=true] td:first-child")
    assert marked.all_inner_texts() == ["d"]


def test_a_row_is_reached_and_chosen_by_keyboard(opened):
    tab = opened()
    tab.locator("#cases tbody tr").nth(1).locator("a").focus()
    tab.keyboard.press("Enter")
    assert shown(tab)[:2] == ("a", "t1")
    assert tab.evaluate("document.activeElement.id") == "viewer"


def test_a_row_without_pictures_changes_nothing(opened):
    tab = opened()
    tab.locator("#cases tbody td", has_text="Patient_0").click()
    assert shown(tab)[0] == "b"


def test_the_heading_and_the_first_column_stay_while_the_table_scrolls(opened):
    tab = opened(390, 844)
    corner = "document.querySelector('#cases th').getBoundingClientRect().toJSON()"
    before = tab.evaluate(corner)
    tab.locator("#cases .tall").evaluate("box => box.scrollTo(80, 300)")
    assert tab.locator("#cases .tall").evaluate("box => [box.scrollLeft, box.scrollTop]") == [
        80,
        300,
    ]
    assert tab.evaluate(corner) == before


def test_a_hostile_name_is_text_wherever_it_stands(opened):
    tab = opened()
    tab.locator("#case").select_option(HOSTILE)
    assert tab.locator("img").count() == 0
    for place in ("#case option", "#cases td", ".facts dd", "svg desc"):
        texts = tab.locator(place).all_text_contents()
        assert any(HOSTILE in text for text in texts), place


def test_the_difference_has_its_legend(opened):
    tab = opened()
    assert tab.locator(".tiles figure").last.inner_text().split() == ["difference", "0", "0.5"]
