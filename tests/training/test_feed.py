"""Batches drawn by processes beside a GPU are those that threads draw, and nothing of them is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time

import pytest
import torch
from slice_stores import MIXED, store_of_cases

from attcl_cli.data.sampling import DomainSampler
from attcl_cli.training import feed as feeding
from attcl_cli.training.feed import drawing_processes, feed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(feeding, "drawing_processes", lambda _device, _processes: 2)


@pytest.fixture
def processes_end():
    """`processes_end()` waits up to half a minute for the processes that drew in this test."""
    before = set(multiprocessing.active_children())

    def end() -> bool:
        for _ in range(300):
            gc.collect()  # an error's traceback holds what it went through
            if set(multiprocessing.active_children()) <= before:
                return True
            time.sleep(0.1)
        return False

    return end


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_thread_that_draws_keeps_to_one_core_and_the_step_keeps_its_own(ahead):
    # With a team of its own per thread, OpenMP has more threads than cores and lets all of them sleep between two
    # operations: a step took 1.3 to 1.7 times as long.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fed = [
            (drawn, torch.get_num_threads())
            for _, drawn in feed(
                lambda _: torch.get_num_threads(), range(4), device=CPU, ahead=ahead
            )
        ]
        assert fed == [(1 if ahead else 2, 2)] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("two_processes")
def test_processes_draw_what_the_caller_would_in_the_same_order(processes_end):
    sampler = DomainSampler(
        store_of_cases(MIXED), batch_size=4, seed=0, many=True, augment=0.5, warp=0.5
    )
    steps = range(3, 12)
    fed = list(feed(sampler.batch, steps, device=CPU))
    assert [step for step, _ in fed] == list(steps)
    for step, batch in fed:
        own = sampler.batch(step)
        for name in ("x_all", "x_taught", "given", "x_src", "y_ref", "x_ref"):
            assert torch.equal(getattr(batch, name), getattr(own, name))
    assert processes_end()


@pytest.mark.usefixtures("two_processes")
def test_other_processes_draw_and_none_of_them_minds_what_ends_the_run():
    def draw(_step: int) -> tuple[int, list[object]]:
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        return os.getpid(), [signal.getsignal(number) for number in ends]

    drawn = list(feed(draw, range(8), device=CPU))
    assert os.getpid() not in {process for _, (process, _) in drawn}
    assert all(handlers == [signal.SIG_IGN] * 3 for _, (_, handlers) in drawn)


@pytest.mark.usefixtures("two_processes")
def test_a_signal_to_all_processes_lets_the_step_end(processes_end):
    fed = feed(lambda step: (step, os.getpid()), range(40), device=CPU)
    workers = set()
    for step, (_, worker) in fed:
        if step == 3:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGTERM)
        workers.add(worker)
    assert (step, len(workers)) == (39, 2)
    assert processes_end()


@pytest.mark.usefixtures("two_processes")
def test_an_error_of_a_draw_reaches_the_caller():
    def draw(step: int) -> int:
        if step == 2:
            raise ValueError("step 2 is bad")
        return step

    seen = []
    with pytest.raises(ValueError, match="step 2 is bad"):
        for step, _ in feed(draw, range(6), device=CPU):
            seen.append(step)
    assert seen == [0, 1]


@pytest.mark.usefixtures("two_processes")
def test_a_loop_that_stops_early_leaves_no_process(processes_end):
    fed = feed(lambda step: step, range(1000), device=CPU)
    assert next(fed) == (0, 0)
    fed.close()
    assert processes_end()


def test_threads_draw_for_a_cpu():
    fed = list(feed(lambda step: (step, os.getpid()), range(4), device=CPU))
    assert fed == [(step, (step, os.getpid())) for step in range(4)]
    assert drawing_processes(CPU) == 0


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(16, 1, 12), (8, 1, 7), (8, 2, 3), (2, 1, 1), (1, 1, 0)]
)
def test_a_gpu_has_the_cores_that_its_own_process_leaves(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    monkeypatch.setattr(feeding.sys, "platform", "linux")
    assert drawing_processes(GPU, processes) == expected


def test_nothing_is_forked_where_that_is_not_safe(monkeypatch):
    monkeypatch.setattr(feeding.sys, "platform", "win32")
    assert drawing_processes(GPU) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_in_pinned_memory():
    sampler = DomainSampler(store_of_cases(MIXED), batch_size=4, seed=0, many=True)
    for _, batch in feed(sampler.batch, range(2), device=GPU):
        assert batch.x_all.is_pinned()
        assert batch.to(GPU).x_all.is_cuda
