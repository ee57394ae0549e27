"""Reading ahead: the order, the errors and the memory of a plain loop."""

from __future__ import annotations

import threading
import time

import pytest

from attcl_cli.prefetch import read_ahead


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 20])
def test_order_and_results_are_those_of_a_loop(depth):
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    results = [
        (item, future.result()) for item, future in read_ahead(slow_first, range(7), depth=depth)
    ]
    assert results == [(item, item * item) for item in range(7)]


@pytest.mark.parametrize("depth", [0, 2])
def test_nothing_to_read_gives_nothing(depth):
    assert list(read_ahead(str, [], depth=depth)) == []


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_error_comes_with_its_own_item_and_the_others_follow(depth):
    def load(item: int) -> int:
        if item == 1:
            raise ValueError("item 1 is bad")
        return item

    outcomes = []
    for item, future in read_ahead(load, range(4), depth=depth):
        try:
            outcomes.append(future.result())
        except ValueError as error:
            outcomes.append(f"{item}: {error}")
    assert outcomes == [0, "1: item 1 is bad", 2, 3]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_than_depth_items_are_loaded_ahead(depth):
    started: list[int] = []
    ahead = []
    for item, future in read_ahead(started.append, range(20), depth=depth):
        future.result()
        time.sleep(0.002)
        ahead.append(len(started) - 1 - item)
    assert max(ahead) <= depth


def test_the_next_item_is_loaded_while_this_one_is_used():
    loaded = [threading.Event() for _ in range(3)]

    def load(item: int) -> None:
        loaded[item].set()

    items = read_ahead(load, range(3), depth=1)
    next(items)
    assert loaded[1].wait(timeout=10)
    items.close()


def test_depth_0_loads_in_the_callers_thread():
    threads = [
        future.result() for _, future in read_ahead(lambda _: threading.get_ident(), [1], depth=0)
    ]
    assert threads == [threading.get_ident()]


def test_a_caller_that_leaves_early_starts_no_more_loads():
    started: list[int] = []
    before = {*threading.enumerate()}
    for item, _ in read_ahead(started.append, range(100), depth=2):
        if item == 3:
            break
    assert len(started) <= 3 + 1 + 2
    assert {*threading.enumerate()} <= before
