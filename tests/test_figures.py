"""The figures of the networks show what the modules return, and those of the documentation are up to date."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pytest
from helpers import REPOSITORY, small_settings

from attcl_cli.methods import METHODS

sys.path.append(str(REPOSITORY / "benchmarks"))

import figures
from figures import Block, Network
from shapes import PUBLISHED_METHODS, example_store

SVG = "{http://www.w3.org/2000/svg}"
TWO = (
    Network("generator", 6, 1_234_567, (Block("Conv", 8, 32), Block("Res<1>", 16, 16), Block("Res<1>", 16, 16))),
    Network("mapping", 1, 10_000, (Block("Linear", 5, 0),)),
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> ElementTree.Element:
    """The figure of `TWO`."""
    return ElementTree.fromstring(figures.drawing("A method", TWO))


def texts(svg: ElementTree.Element) -> dict[str, tuple[int, int]]:
    """Return every text with where it stands."""
    return {item.text: (int(item.get("x")), int(item.get("y"))) for item in svg.iter(f"{SVG}text")}


def test_a_pair_of_generators_is_drawn_once_with_its_blocks_in_the_order_of_their_calls():
    settings = METHODS["cyclegan"].settled(small_settings("cyclegan"), example_store(16))
    generator, discriminator = figures.networks_of(settings)
    assert (generator.name, generator.count) == ("generator", 6)
    assert generator.blocks == (
        Block("Conv2d", 4, 16), Block("Conv2d", 8, 8), Block("Conv2d", 16, 4), Block("ResnetBlock", 16, 4),
        Block("ConvTranspose2d", 8, 8), Block("ConvTranspose2d", 4, 16), Block("Conv2d", 1, 16),
    )  # fmt: skip
    assert (discriminator.name, discriminator.count) == ("discriminator", 6)
    assert discriminator.blocks[-1].channels == 1


def test_blocks_of_one_resolution_stand_in_one_row_and_repeated_ones_in_one_box(drawn):
    place = texts(drawn)
    assert place["8"][1] == place["32"][1]
    assert place["16 x2"][1] == place["16"][1] > place["8"][1]
    assert place["16 x2"][0] > place["8"][0]
    assert place["5"][1] == place["vector"][1]


def test_a_lane_says_how_many_networks_there_are_and_how_large(drawn):
    place = texts(drawn)
    assert "6 x generator, 1.23 million parameters each" in place
    assert "mapping, 0.01 million parameters" in place


def test_every_kind_of_block_has_one_colour_and_the_legend_names_it(drawn):
    colours: dict[str, set[str]] = {}
    for box in drawn.iter(f"{SVG}rect"):
        title = box.find(f"{SVG}title")
        if title is not None:
            colours.setdefault(title.text.split(":")[0], set()).add(box.get("fill"))
    assert set(colours) == {"Conv", "Res<1>", "Linear"}
    assert all(len(of_kind) == 1 for of_kind in colours.values())
    assert set(colours) <= set(texts(drawn))


def test_nothing_is_drawn_outside_the_figure(drawn):
    width, height = int(drawn.get("width")), int(drawn.get("height"))
    for box in drawn.iter(f"{SVG}rect"):
        right = int(box.get("x", "0")) + int(box.get("width"))
        below = int(box.get("y", "0")) + int(box.get("height"))
        assert right <= width
        assert below <= height


def test_every_method_has_a_figure_that_its_page_shows():
    for name in PUBLISHED_METHODS:
        (page,) = (
            path
            for path in (REPOSITORY / "docs" / "methods").glob("*.md")
            if re.fullmatch(rf"\d+-{name.partition(':')[0]}", path.stem)
        )
        assert (figures.FOLDER / figures.file_name(name)).is_file()
        assert f"](figures/{figures.file_name(name)})" in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_METHODS)
def test_the_figure_of_the_documentation_is_that_of_the_networks(name):
    path = figures.FOLDER / figures.file_name(name)
    assert path.read_text(encoding="utf-8") == figures.figure(name)
