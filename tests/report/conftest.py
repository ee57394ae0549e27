"""A Chromium for the tests that open pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(arguments: Sequence[str] = ()) -> Iterator[Any]:
    """Start a headless Chromium: one of the machine's, or the one that Playwright installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium: none on the PATH, none of Playwright's own")
        started = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", *arguments]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def browser_with_webgl() -> Iterator[Any]:
    """Start one that draws WebGL 2 without a graphics card, for NiiVue; 2-D pictures then vary by a grey value."""
    with chromium(["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]) as started:
        yield started
