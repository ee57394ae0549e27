"""What the terminal shows, and on which stream."""

from __future__ import annotations

import json

import pytest

from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.errors import AttclError, ProblemsError
from attcl_cli.report.rounding import number

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows the last number of the list."""
    times = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: times[-1])
    return times


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(10.0, "20 s"), (30.0, "1 min 00 s"), (1800.0, "1 h 00 min"), (2000.0, "1 h 07 min")],
)
def test_a_case_done_is_a_line_with_the_time_that_is_left(
    seconds: float, left: str, clock: list[float], capsys: Captured
) -> None:
    with Terminal().bar(3, "complete") as bar:
        clock.append(seconds)
        bar("P1")
    line = f"complete 1/3 P1 ({seconds:.1f} s each, {left} left)\n"
    assert capsys.readouterr() == ("", line)


def test_a_resumed_run_counts_only_its_own_steps(clock: list[float], capsys: Captured) -> None:
    with Terminal().bar(1_000, "train") as bar:
        clock.append(2.0)
        bar(to=901)
    assert "(2.0 s each, 3 min 18 s left)" in capsys.readouterr().err


def test_steps_are_a_line_every_few_seconds_and_one_at_the_end(
    clock: list[float], capsys: Captured
) -> None:
    with Terminal().bar(4, "train", every_seconds=10) as bar:
        for seconds in (4.0, 8.0, 12.0, 13.0):
            clock.append(seconds)
            bar()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["train 3/4", "train 4/4"]


def test_quiet_shows_errors_alone(capsys: Captured) -> None:
    listener = Terminal(quiet=True, verbose=True)
    with listener.bar(2, "train") as bar:
        bar("P1")
    listener.say("note")
    listener.detail("detail")
    listener.result("result")
    listener.table([{"a": 1}])
    assert capsys.readouterr() == ("", "")
    listener.fail(AttclError("a: found, expected", "do this", code="a"))
    assert capsys.readouterr() == ("", "error: a: found, expected\nhint: do this\n")


@pytest.mark.parametrize("lines", [0, 1])
def test_details_are_shown_if_they_are_asked_for(lines: int, capsys: Captured) -> None:
    Terminal(verbose=lines == 1).detail("1.2 s in the network")
    assert capsys.readouterr() == ("", "1.2 s in the network\n" * lines)


def test_results_go_to_stdout_and_messages_to_stderr(capsys: Captured) -> None:
    listener = Terminal()
    listener.say("note")
    listener.result("result")
    assert capsys.readouterr() == ("result\n", "note\n")
    terminal.document({"name": "Müller", "n": None})
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"name": "Müller", "n": None}, "")
    assert "Müller" in out


def test_of_many_problems_a_screenful_is_shown(capsys: Captured) -> None:
    problems = [AttclError(f"{number}: bad", code="bad") for number in range(60)]
    terminal.show_error(ProblemsError(problems))
    lines = capsys.readouterr().err.splitlines()
    assert lines[49:] == [
        "error: 49: bad",
        "error: 10 more problems, 60 in all",
        "hint: `attcl info DIR --json` lists them all",
    ]


def test_a_table_is_at_most_80_columns_wide_and_keeps_markup_as_text(capsys: Captured) -> None:
    terminal.table([{"case": "[red]P1[/red]", "note": "x " * 100}], title="T")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "T"
    assert max(map(len, lines)) <= 80
    assert "[red]P1[/red]" in "".join(lines)


def test_a_table_has_the_columns_of_all_rows_and_the_decimals_of_pages(capsys: Captured) -> None:
    terminal.table([{"case": "A", "value": 0.5}, {"case": "B", "value": 12.0}])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["case", "value"], ["A", "0.500"], ["B", "12.0"]]
    terminal.table([])
    assert capsys.readouterr().out == ""
    terminal.table([{"case": "A"}, {"case": "B", "note": "x"}])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["case", "note"], ["A"], ["B", "x"]]


SCORES = {
    **{"SSIM brain": 0.54, "SSIM (BraSyn) healthy": 0.1, "SSIM (BraSyn) tumour": 0.2},
    **{"PSNR brain dB": 122.125, "PSNR tumour dB": 18.0, "NMSE brain": 0.3, "GMS brain": 0.25},
}
NAMES = [
    (group, what)
    for group in ("flair+t1->t1ce", "flair+t2->t1ce")
    for what in ("synthetic", "matched-copy")
]


@pytest.mark.parametrize("most", range(1, len(SCORES) + 1))
def test_no_name_and_no_number_of_a_wide_table_is_cut(most: int, capsys: Captured) -> None:
    scores = dict(list(SCORES.items())[:most])
    terminal.table([{"target": group, "what": what, "n": 8} | scores for group, what in NAMES])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith("flair")]
    for group, what in NAMES:
        of_name = [row[2:] for row in rows if row[:2] == [group, what]]
        numbers = [each for row in of_name for each in row]  # of one table, or of several
        assert numbers == ["8", *map(number, scores.values())]
    assert len(rows) == len(NAMES) * (1 if most <= 6 else 2)


def test_words_that_are_wider_than_the_terminal_are_folded(capsys: Captured) -> None:
    name = "".join(chr(ord("a") + place % 26) for place in range(170))
    terminal.table([{"case": name, "n": 12345}])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, (heading, *lines))) <= 80
    assert "".join(line.removesuffix(" 12345").strip() for line in lines) == name


def test_the_name_that_one_copies_is_not_broken(capsys: Captured) -> None:
    words = "flair, t1, t1ce, t2 and many others that make a table too wide"
    terminal.table(
        [
            {
                "name": "runs/20261130-140504-attcl-gan",
                "modalities": words,
                "more": words,
                "pixels": 256,
            }
        ]
    )
    out = capsys.readouterr().out
    assert "runs/20261130-140504-attcl-gan " in out
    assert sorted(out.split()) == sorted(
        f"name modalities more pixels runs/20261130-140504-attcl-gan {words} {words} 256".split()
    )
