"""What the terminal shows."""

from __future__ import annotations

import pytest

from attcl_cli.cli import terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows the last number of the list."""
    times = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: times[-1])
    return times


def test_a_case_done_is_a_line_with_the_time_that_is_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.Terminal().bar(3, "complete") as shown:
        clock.append(30.0)
        shown("P1")
    assert capsys.readouterr().err == "complete 1/3 P1 (1 min 00 s left)\n"


def test_a_resumed_run_counts_only_its_own_steps(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.Terminal().bar(1_000, "train") as shown:
        clock.append(2.0)
        shown(to=901)
    assert "(3 min 18 s left)" in capsys.readouterr().err


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Terminal(quiet=True).bar(2, "train") as shown:
        shown("P1")
    assert capsys.readouterr() == ("", "")


def test_a_table_is_at_most_80_columns_wide_and_keeps_markup_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.table([{"case": "[red]P1[/red]", "note": "x " * 100}])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "[red]P1[/red]" in shown
