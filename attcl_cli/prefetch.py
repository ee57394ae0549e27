"""Work that overlaps: the next item is loaded while this one is computed.

What is loaded is left to the caller; order and errors are those of a plain loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def read_ahead(
    load: Callable[[Item], Loaded],
    items: Iterable[Item],
    *,
    depth: int = 2,
    begin: Callable[[], object] | None = None,
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Yield (item, future of `load(item)`) in order.

    Args:
        load: reads one item; runs in other threads.
        items: what to load.
        depth: items that are loaded ahead, and kept in memory; 0 loads each in the caller's own thread.
        begin: called once in each of the other threads.
    """
    if depth == 0:
        for item in items:
            yield item, _done(load, item)
        return
    with ThreadPoolExecutor(max_workers=depth, initializer=begin) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > depth:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _done(load: Callable[[Item], Loaded], item: Item) -> Future[Loaded]:
    future: Future[Loaded] = Future()
    try:
        future.set_result(load(item))
    except Exception as error:  # noqa: BLE001 - reaches the caller through the future, as a pool's do
        future.set_exception(error)
    return future
