"""How progress is put into words: what is done, and the time that is left."""

from __future__ import annotations

import io
import sys

import pytest

from attcl_cli import progress
from attcl_cli.cli.terminal import TerminalBar
from attcl_cli.progress import Lines, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (45.2, "45 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (599, "9 min 59 s"),
        (730, "12 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_times_are_said_as_people_do(seconds, words):
    assert duration(seconds) == words


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]` is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_the_pace_so_far(clock):
    lines = Lines(4, "complete")
    clock[0] += 3
    assert lines.count("A") == "complete 1/4 A (3.0 s each, 9 s left)"


def test_steps_of_an_earlier_run_took_none_of_this_ones_time(clock):
    lines = Lines(100, "train", every_seconds=10)
    clock[0] += 20
    assert lines.count(to=51) == "train 51/100 (16 min left)"


def test_who_knows_the_time_left_better_says_it(clock):
    lines = Lines(100, "train", every_seconds=10)
    clock[0] += 20
    assert lines.count(to=50, left=3600) == "train 50/100 (1 h 00 min left)"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_shows_the_time_left_that_it_is_told(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = TerminalBar(total=100, title="train", every_seconds=0, quiet=False)
    bar(to=1, left=5400)
    bar("last", to=100, left=0)
    bar.close()
    last = screen.getvalue().split("\r")[-1]
    assert "100/100" in last and "0 s left  last" in last
    assert "it/s" not in last and "<" not in last
