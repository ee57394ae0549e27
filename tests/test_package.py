"""The wheel holds what an installed attcl needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
