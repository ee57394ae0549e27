"""The wheel holds what an installed attcl needs, and its metadata have no link that leads nowhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType

import pytest
from helpers import SMALL_NETWORKS, SMALL_RUN
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

import attcl_cli
from attcl_cli.training.request import require_tensorboard

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
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


def test_the_citation_agrees_with_the_package(hook):
    """An address that is yet a comment is none."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    lines = citation.splitlines()
    assert f"version: {attcl_cli.__version__}" in lines
    assert f"license: {PROJECT['project']['license']}" in lines
    assert sum("repository-code:" in line for line in lines) == 1
    assert hook.repository_of('# repository-code: "https://..."\n') == ""
    assert ("Repository" in hook.urls(hook.repository_of(citation))) == any(
        line.startswith("repository-code:") for line in lines
    )


def test_with_a_repository_every_link_of_the_readme_is_absolute(hook):
    page = hook.for_index(README, REPOSITORY)
    assert f"]({REPOSITORY}/raw/HEAD/docs/demo.png)" in page
    assert len(targets(page)) == len(targets(README))
    assert all(target.startswith("https://") for target in targets(page))
    files = [target.removeprefix(f"{REPOSITORY}/blob/HEAD/") for target in targets(page)]
    own = [file.partition("#")[0] for file in files if not file.startswith("https://")]
    assert own and all((ROOT / file).exists() for file in own)


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


def test_the_classifiers_are_those_of_the_index_and_name_the_oldest_python() -> None:
    named = PROJECT["project"]["classifiers"]
    assert set(named) <= classifiers
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    pythons = [line.rsplit(" ", 1)[1] for line in named if "Python :: 3." in line]
    assert min(pythons, key=lambda it: int(it.removeprefix("3."))) == oldest


# --- Extras -------------------------------------------------------------------------------------------------------


def test_the_extra_all_holds_every_extra_but_those_of_developers() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == "attcl"
    assert everything.extras == set(EXTRAS) - {"all", "dev", "docs"}


def test_without_tensorboard_a_hint_names_an_extra_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(attcl_cli.AttclError) as caught:
        require_tensorboard()
    (extra,) = re.findall(r'pip install "attcl\[(\w+)\]"', caught.value.hint)
    assert [Requirement(line).name for line in EXTRAS[extra]] == ["tensorboard"]


def test_the_extra_tensorboard_is_enough_for_statistics_of_a_training(
    phantom_root: Path, tmp_path: Path
) -> None:
    attcl_cli.train(
        phantom_root,
        output=tmp_path / "run",
        preset="tiny",
        overrides={**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], "steps": 1},
        tensorboard=True,
    )
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_the_constraints_pin_every_package_that_an_installation_brings() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(Requirement(line).name)
        for line in lines
        if line and not line.startswith("#")
    }
    wanted = [Requirement(line) for lines in EXTRAS.values() for line in lines]
    wanted += [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    wanted += [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    known: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name == "attcl" or (name, extra) in known:
                continue
            known.add((name, extra))
            below = map(Requirement, metadata.requires(name) or ())
            wanted += [
                it for it in below if it.marker is None or it.marker.evaluate({"extra": extra})
            ]
    assert {name for name, _ in known} - pins == set()


# --- What is published --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sdist and a wheel, built as they are published: the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-W", "error", "-m", "build", "--no-isolation", "-o", str(folder)]
    ended = subprocess.run([*build, str(ROOT)], check=True, capture_output=True, text=True)
    assert "warn" not in (ended.stdout + ended.stderr).lower()
    return folder


@pytest.mark.slow
def test_the_sdist_holds_what_its_tests_and_documents_need(dist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone: git does not know what belongs to the project")
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert set(tracked) - held == {".ci/run", ".pre-commit-config.yaml"}


@pytest.mark.slow
def test_the_metadata_of_the_wheel_are_valid(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (file,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        described = Metadata.from_email(archive.read(file), validate=True)
    assert set(described.provides_extra or ()) == set(EXTRAS)
    assert described.license_expression == "Apache-2.0"


@pytest.mark.slow
def test_the_bundled_weights_are_found_from_an_installed_wheel(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
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
