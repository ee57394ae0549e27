"""The levels of zlib and of isal on one volume, side by side: seconds, size, seconds to unpack, same bytes or not.

`files.py` calls this.
"""

from __future__ import annotations

import contextlib
import gzip
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from attcl_cli.data import nifti_files

igzip: ModuleType | None = None
with contextlib.suppress(ImportError):  # no wheel for every platform
    from isal import igzip

FIRST = "zlib 1"  # what attcl writes
ZLIB_LEVELS, ISAL_LEVELS = (1, 6, 9), (0, 1, 2, 3)


def compare(volume: Path, rounds: int) -> None:
    """Print a line per level; in each round, every level has its turn."""
    raw = unpacked(volume)
    packing: dict[str, list[float]] = {}
    unpacking: dict[str, list[float]] = {}
    files: dict[str, set[bytes]] = {}
    for _ in range(rounds):
        for name, pack in packers().items():
            took, packed = _timed(partial(pack, raw))
            packing.setdefault(name, []).append(took)
            files.setdefault(name, set()).add(packed)
            took, again = _timed(partial(nifti_files.gzip_codec.decompress, packed))
            unpacking.setdefault(name, []).append(took)
            if again != raw:
                raise SystemExit(f"{name}: other bytes when it is unpacked")
    print(
        f"\nlevels: {len(raw) / 1e6:.1f} MB; median seconds to pack, size, median seconds to unpack ({decoder()}), and "
        f"times those of {FIRST}"
    )
    whole = max(map(len, files[FIRST]))
    for name, found in files.items():
        size = max(map(len, found))
        print(
            f"{name:<10}{statistics.median(packing[name]):>8.3f} s{_ratio(packing, name):>8.2f}"
            f"{size / 1e6:>10.2f} MB{size / whole:>7.2f}"
            f"{statistics.median(unpacking[name]):>9.3f} s{_ratio(unpacking, name):>7.2f}"
            f"    {'same bytes' if len(found) == 1 else f'{len(found)} versions'}"
        )


def packers() -> dict[str, Callable[[bytes], bytes]]:
    """Return what compresses, by library and level."""
    found: dict[str, Callable[[bytes], bytes]] = {
        f"zlib {level}": partial(gzip.compress, compresslevel=level, mtime=0)
        for level in ZLIB_LEVELS
    }
    if igzip is not None:
        found |= {
            f"isal {level}": partial(igzip.compress, compresslevel=level, mtime=0)
            for level in ISAL_LEVELS
        }
    return found


def unpacked(volume: Path) -> bytes:
    """Return the bytes of a volume, decompressed."""
    data = volume.read_bytes()
    return gzip.decompress(data) if nifti_files.is_packed(volume) else data


def decoder() -> str:
    """Return the library that decompresses for attcl."""
    return "isal" if nifti_files.gzip_codec is igzip else "zlib"


def _timed(work: Callable[[], bytes]) -> tuple[float, bytes]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    return statistics.median(
        theirs / first for theirs, first in zip(seconds[name], seconds[FIRST], strict=True)
    )
