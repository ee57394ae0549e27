"""The errors a user can cause: what was found, what was expected, and the next step; how names are shown in a text.

Imports nothing of ours. How an error is shown is left to `cli`: one `error:` line, a `hint:`, an exit code. Any other
exception is a bug.
"""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
_MAX_NAMED = 8  # things that an error lists
_UNITS = ("kB", "MB", "GB", "TB")
_LARGEST = 999.95  # that one decimal does not round to 1,000
_PERMISSION = (
    "expected permission for it",
    "change its permissions and those of its folders (chmod u+rwX), or ask its owner",
)
# errno -> what is expected, and the next step.
_REFUSALS = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: (
        "expected a shorter name",
        "shorten the names of its folders or its own: most systems allow 255 bytes per name, 4,096 per path",
    ),
    errno.ELOOP: (
        "expected links that end at a file or folder",
        "correct the link, which leads to itself",
    ),
    errno.EROFS: (
        "expected a file system that can be written to",
        "mount this file system for writing, or choose a folder on another one",
    ),
}
# Control characters, line and paragraph separators, bidirectional overrides and isolates, lone surrogates.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # PEP 383: a byte of a file's name that is no UTF-8


class AttclError(Exception):
    """Something that the user can fix."""

    exit_code = EXIT_FAILED

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        code: str = "",
        instead: tuple[str, str] | None = None,
    ) -> None:
        """Make an error.

        Args:
            message: `<file or flag>: <found>, <expected>`; complete when read alone.
            hint: the next step, an imperative; empty if the message already says it.
            code: what went wrong, in kebab-case (`volume-cut-off`); stable across versions, unlike the wording, so
                that tests and scripts can tell errors apart. Every error of ours has one.
            instead: what would work: a flag or a value that was given, and the value to give instead; the command line
                shows the whole command.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.instead = instead


class UsageError(AttclError):
    """The command line or a config file asks for something that does not exist."""

    exit_code = EXIT_USAGE


class ProblemsError(AttclError):
    """Several things are wrong at once; all of them are reported together."""

    def __init__(self, problems: Sequence[AttclError]) -> None:
        """Make one error of several; message, hint and code are those of the first.

        Args:
            problems: the single errors, in the order in which they were found; at least one.
        """
        first = problems[0]
        super().__init__(first.message, first.hint, code=first.code)
        self.problems = tuple(problems)
        codes = {problem.exit_code for problem in problems}
        self.exit_code = codes.pop() if len(codes) == 1 else EXIT_FAILED

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the problems: a pickle otherwise hands `__init__` the message alone."""
        return type(self), (self.problems,), self.__dict__


class IncompleteError(AttclError):
    """The run finished, but some cases failed or are missing."""

    exit_code = EXIT_INCOMPLETE


class InterruptedRun(AttclError):  # noqa: N818 - no error: the user wanted it
    """The user stopped the run; the message says what is kept, the hint how to resume."""

    exit_code = EXIT_INTERRUPTED


def single_problems(error: AttclError) -> Sequence[AttclError]:
    """Return the single problems of an error, at least one."""
    return error.problems if isinstance(error, ProblemsError) else (error,)


def all_of(problems: Sequence[AttclError]) -> AttclError | None:
    """Return no error for no problem, the problem itself for one, `ProblemsError` for more."""
    if len(problems) > 1:
        return ProblemsError(problems)
    return problems[0] if problems else None


def raise_all(problems: Sequence[AttclError]) -> None:
    """Raise the error that `all_of` makes of the problems, if there are any."""
    error = all_of(problems)
    if error is not None:
        raise error


@contextmanager
def as_note(notes: list[str], *, when: bool) -> Iterator[None]:
    """Note the wrong usage that ends the block, instead of raising it: a dry run shows its plan all the same.

    Args:
        notes: the error and its hint are added to it.
        when: whether this is a dry run; otherwise the error is raised.
    """
    try:
        yield
    except UsageError as error:
        if not when:
            raise
        notes.append(f"{error.message}; {error.hint}" if error.hint else error.message)


def refusal(error: OSError, expected: str, hint: str) -> tuple[str, str]:
    """Return what is expected and the next step after the system refused a file or folder.

    Args:
        error: permissions, read-only file systems, names that are too long and links in a circle are known.
        expected: of all other errors.
        hint: of all other errors.
    """
    return _REFUSALS.get(error.errno or 0, (expected, hint))


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception of a library says, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def fold(problems: Sequence[AttclError], key: Callable[[AttclError], str]) -> list[AttclError]:
    """Return one problem for all with the same `key`: a whole folder may have it."""
    groups: dict[str, list[AttclError]] = {}
    for problem in problems:
        groups.setdefault(key(problem), []).append(problem)
    folded = []
    for first, *others in groups.values():
        message = f"{first.message}; and {len(others)} more like it"
        folded.append(AttclError(message, first.hint, code=first.code) if others else first)
    return folded


def some(things: Iterable[object], *, most: int = _MAX_NAMED) -> str:
    """Return the first of some things by name, and how many more there are."""
    names = [str(thing) for thing in things]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def visible(text: str) -> str:
    r"""Return a text on one line, in which nothing can move the cursor, colour or reorder what is around it.

    Names come from others. Control characters, line separators and bidirectional overrides become escapes (`\n`,
    `\x1b`, `\u202e`), and so does a byte of a file's name that is no UTF-8 (`\xff`). The result can be encoded.
    """
    return UNSEEN.sub(lambda match: _escaped(match[0]), text)


def quoted(name: object) -> str:
    """Return a path or name as a shell takes it, for a command that a hint shows."""
    text = str(name)
    if not UNSEEN.search(text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{visible(escaped)}'"  # as bash, zsh and POSIX 2024 read it


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with what it counts: `1 case`, `1,200 cases`.

    Args:
        number: how many.
        noun: what one of them is called.
        plural: what several are called; "": the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size_in_words(size: float) -> str:
    """Return a number of bytes as people read it: `1 byte`, `12.3 kB`, `4.0 GB`; a kB has 1,000 bytes."""
    if size < 1000:  # noqa: PLR2004 - bytes of a kB
        return counted(round(size), "byte")
    power = 1
    while size >= _LARGEST * 1000**power and power < len(_UNITS):
        power += 1
    return f"{size / 1000**power:,.1f} {_UNITS[power - 1]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the known word that is nearest to `word`, or all of them if none is near."""
    spellings = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.5)
    if match:
        return f"did you mean {spellings[match[0]]!r}?"
    return f"known: {', '.join(spellings.values())}"


def _escaped(character: str) -> str:
    code = ord(character)
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()
