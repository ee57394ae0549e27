"""What training loops share: a stop that waits for the step in progress, statistics that a resumed run goes on with.

Knows no network and no setting.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from attcl_cli.files import write_whole

STATS_FILE = "stats.jsonl"


@contextmanager
def stop_requested(
    on_request: Callable[[], None] = lambda: None,
) -> Iterator[threading.Event]:
    """Set by Ctrl-C or a polite kill, so that the step in progress ends and is saved; a second one stops at once.

    `on_request` is called by the first one, from the signal's handler.
    """
    stopped = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        with suppress(RuntimeError):  # a line that was being written cannot be broken into
            on_request()

    previous = {}
    with suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def log_stats(path: Path, record: Mapping[str, float]) -> None:
    """Adds a line to `stats.jsonl`."""
    with path.open("a", encoding="utf-8") as stats:
        stats.write(json.dumps({name: round(value, 6) for name, value in record.items()}) + "\n")


def trim_stats(path: Path, first: int) -> None:
    """Drops the lines beyond the checkpoint that a resumed run starts from: it will write them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # a kill may have cut the last line
            if json.loads(line)["step"] <= first:
                kept.append(line + "\n")
    write_whole(path, "".join(kept).encode())
