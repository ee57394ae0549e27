"""Shell completion: the shell asks the program for the words that fit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("line", "word"), [("attcl pre", "prepare-splits"), ("attcl complete --samp", "--samples")]
)
def test_a_word_is_completed(line, word):
    words = line.split()
    done = subprocess.run(
        [sys.executable, "-c", "from attcl_cli.cli.app import main; main()"],
        env={
            **os.environ,
            "_ATTCL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert word in done.stdout.split()


def test_help_offers_to_install_it(attcl):
    code, out, _ = attcl("--help")
    assert code == 0
    assert "--install-completion" in out
