"""What tests of the command line share: an empty current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from attcl_cli.methods.settings import Settings, dump


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_settings: Settings) -> Path:
    """An empty current folder, but for the settings of a method that trains in milliseconds."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "tiny.toml").write_text(dump(tiny_settings))
    monkeypatch.chdir(folder)
    return folder
