"""The wheel holds what an installed attcl needs, and its metadata have no link that leads nowhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPOSITORY = "https://example.org/group/attcl"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """What hatchling runs to complete the metadata."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets(text: str) -> list[str]:
    """Return where the links and pictures of a page lead."""
    return re.findall(r"\]\(([^)]+)\)", text)


def test_the_repository_is_the_one_that_the_citation_names(hook):
    named = f'title: "attcl"\nrepository-code: "{REPOSITORY}/"\nversion: 1\n'
    assert hook.repository_of(named) == REPOSITORY
    assert hook.repository_of(named.replace('"', "")) == REPOSITORY
    assert hook.repository_of('title: "attcl"\n') == ""


def test_with_a_repository_every_link_of_the_readme_is_absolute(hook):
    page = hook.for_index(README, REPOSITORY)
    assert f"]({REPOSITORY}/raw/HEAD/docs/demo.png)" in page
    assert len(targets(page)) == len(targets(README))
    assert all(target.startswith("https://") for target in targets(page))
    files = [target.removeprefix(f"{REPOSITORY}/blob/HEAD/") for target in targets(page)]
    assert all((ROOT / file).exists() for file in files if not file.startswith("https://"))


def test_without_a_repository_no_link_leads_nowhere(hook):
    page = hook.for_index(README, "")
    assert not [target for target in targets(page) if not target.startswith("https://")]
    assert "demo.png" not in page and "Shown are the four worst" not in page
    assert "Getting started: twenty minutes" in page


def test_a_package_index_lists_the_addresses_that_there_are(hook):
    addresses = hook.urls(REPOSITORY)
    assert addresses["Repository"] == REPOSITORY
    assert addresses["Changelog"] == f"{REPOSITORY}/blob/HEAD/CHANGELOG.md"
    assert list(hook.urls("")) == ["Paper of PLAVE"]
    assert hook.urls("")["Paper of PLAVE"] in (ROOT / "CITATION.cff").read_text()


def test_the_package_has_the_marker_of_its_types() -> None:
    assert resources.files("attcl_cli").joinpath("py.typed").is_file()


@pytest.mark.slow
def test_the_bundled_weights_are_found_from_an_installed_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "attcl_cli" / "py.typed").is_file()
    (metadata,) = site.glob("attcl-*.dist-info/METADATA")
    described = message_from_bytes(metadata.read_bytes())
    assert described["Description-Content-Type"] == "text/markdown"
    assert "Complete multi-modal MRI datasets" in described.get_payload()
    assert all(target.startswith("https://") for target in targets(described.get_payload()))
    assert described.get_all("Project-URL")
    shipped = {path.name for path in (site / "attcl_cli" / "weights").iterdir()}
    pairs = [path for path in (ROOT / "weights").iterdir() if path.suffix != ".md"]
    assert {path.suffix for path in pairs} == {".safetensors", ".json"}
    assert shipped >= {path.name for path in pairs}
    code = "from attcl_cli.methods import weights; print(weights.find_weights('phantom-tiny').path)"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.strip() == str(site / "attcl_cli" / "weights" / "phantom-tiny.safetensors")
