"""`stats.jsonl`: a line of numbers per log step; written, cut where a resumed run goes on, and read for its page.

Loads no torch. What the numbers mean is left to those who log them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from attcl_cli.confined import require_inside
from attcl_cli.files import parse_json, write_whole

STATS_FILE = "stats.jsonl"
_LONGEST_LINE = 2**20  # bytes of a line that is read at once


def log_stats(path: Path, record: Mapping[str, float]) -> None:
    """Append a line to `stats.jsonl`."""
    require_inside(path, in_place=True)
    with path.open("a", encoding="utf-8") as stats:
        stats.write(json.dumps({name: round(value, 6) for name, value in record.items()}) + "\n")


def trim_stats(path: Path, first: int) -> None:
    """Drop the lines after step `first`: a run that resumes there writes them again."""
    if not path.exists():
        return
    kept = [
        line.rstrip(b"\n") + b"\n"
        for line in stats_lines(path)
        if (record := numbers_in(line)) and record["step"] <= first
    ]
    write_whole(path, b"".join(kept))


def stats_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a `stats.jsonl`, none longer than 1 MiB; of a missing file none."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        while line := stream.readline(_LONGEST_LINE):
            yield line


def numbers_in(line: bytes) -> dict[str, float]:
    """Return the numbers in a line by name; {} if it has no step, as one that a kill has cut."""
    try:
        record = parse_json(line.decode(), allow_nan=True)
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    numbers = {name: value for name, value in record.items() if type(value) in {int, float}}
    return numbers if "step" in numbers else {}
