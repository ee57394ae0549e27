"""What continuous integration runs: a Chromium is installed where it can be, and its lack ends nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
APT = "timeout 300 bash -c apt-get update -q && apt-get install -y -q chromium"
PLAYWRIGHT = "timeout 300 .venv/bin/playwright install chromium"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="no clone: the sdist has no .ci")


def calls(folder: Path, **programs: int) -> tuple[int, list[str]]:
    """Run the script where only these programs are found, name -> exit code; return its own, and what it called."""
    (folder / ".ci").mkdir()
    (folder / "bin").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    for name in ("bash", "dirname"):
        found = shutil.which(name)
        assert found is not None
        (folder / "bin" / name).symlink_to(found)
    called = folder / "called"
    called.touch()
    for name, code in programs.items():
        program = folder / "bin" / name
        program.write_text(f'#!{folder}/bin/bash\necho "{name} $*" >> "{called}"\nexit {code}\n')
        program.chmod(0o755)
    environment = {"PATH": str(folder / "bin")}
    ended = subprocess.run(
        [folder / ".ci" / "run"], env=environment, check=False, stderr=subprocess.DEVNULL
    )
    return ended.returncode, called.read_text().splitlines()


def test_a_chromium_is_installed_if_there_is_none(tmp_path):
    assert calls(tmp_path, make=0, timeout=0) == (0, [APT, "make check"])


def test_where_it_cannot_be_installed_the_checks_run_all_the_same(tmp_path):
    assert calls(tmp_path, make=0, timeout=1) == (
        0,
        [APT, "make .venv/ready", PLAYWRIGHT, "make check"],
    )


def test_one_that_is_there_is_taken(tmp_path):
    assert calls(tmp_path, make=0, chromium=1) == (0, ["make check"])


def test_checks_that_fail_fail_the_script(tmp_path):
    assert calls(tmp_path, make=2, chromium=0) == (2, ["make check"])
