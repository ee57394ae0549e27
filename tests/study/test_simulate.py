"""Simulated patients of a study: written whole, and never taken for others."""

from __future__ import annotations

import sys

import pytest
from helpers import fingerprint
from simulate import main


@pytest.fixture
def simulate(tmp_path, monkeypatch, capsys):
    """`simulate(cases, voxel_mm)` simulates them in phantoms/, and returns the exit code and what is said."""

    def call(cases: int, voxel_mm: float) -> tuple[int, str]:
        numbers = ["--cases", str(cases), "--voxel-mm", str(voxel_mm)]
        monkeypatch.setattr(sys, "argv", ["simulate.py", str(tmp_path / "phantoms"), *numbers])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err

    return call


def test_an_earlier_call_is_taken_for_the_same_patients_alone(simulate, tmp_path):
    assert simulate(2, 8) == (0, "")
    before = fingerprint(tmp_path)
    assert simulate(2, 8) == (0, "")
    for other, found in (((3, 8), "2 cases of 8 mm"), ((2, 6), "2 cases of 8 mm")):
        code, said = simulate(*other)
        assert code == 1
        assert f"error: {tmp_path / 'phantoms'}: {found}, expected {other[0]} phantoms of" in said
    assert fingerprint(tmp_path) == before


def test_what_is_no_simulated_dataset_is_not_taken_for_one(simulate, tmp_path):
    (tmp_path / "phantoms").mkdir()
    (tmp_path / "phantoms" / "notes.txt").write_text("mine")
    code, said = simulate(2, 8)
    assert code == 1 and said.startswith(f"error: {tmp_path / 'phantoms'}")
    assert [path.name for path in (tmp_path / "phantoms").iterdir()] == ["notes.txt"]
