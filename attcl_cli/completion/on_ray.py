"""Makes the volumes of a plan on a Ray cluster: workers that keep their models, each with a few cases at a time.

What is made, and every byte of it, is `making`'s; how jobs reach workers, and what if these die, is `cluster`'s.
Dataset, output folder and weights must lie at the same paths on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from attcl_cli import cluster
from attcl_cli.completion.jobs import Completed, CompletionPlan, Job
from attcl_cli.confined import confined

_GROUP = 4  # jobs that a worker has at once: one is read while another is computed and a third is written


def make_on_ray(
    plan: CompletionPlan,
    on: cluster.Cluster,
    *,
    batch_size: int = 64,
    workers: int = 2,
    keep_going: bool = False,
) -> Iterator[Completed]:
    """Make the planned volumes on a Ray cluster; the same contract as `making.make_volumes`.

    The driver holds a few groups of jobs per worker, however many cases there are. A worker that dies is started again
    and its group made again, three times; then its cases are failed cases.

    Args:
        plan: what is to be done.
        on: where the workers are.
        batch_size: slices on the device at once; never changes results.
        workers: cases that a worker reads ahead.
        keep_going: yield a failed case and continue; otherwise its error is raised.

    Yields:
        Each job when its files are on the disk, in the plan's order.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
        AttclError: a case failed. What was finished stays.
    """
    groups = [plan.jobs[at : at + _GROUP] for at in range(0, len(plan.jobs), _GROUP)]
    outcomes = cluster.work_on_ray(
        _Worker,
        groups,
        _lost,
        shared=replace(plan, jobs=()),
        arguments=(str(Path.cwd()), on.device, batch_size, workers),
        on=on,
    )
    with closing(outcomes):
        for outcome in outcomes:
            for item in outcome:
                if item.error is not None and not keep_going:
                    raise item.error
                yield item


def _lost(group: Sequence[Job], reason: str) -> list[Completed]:
    """Return what becomes of jobs whose workers died again and again: all of their cases failed."""
    return [Completed(job, (), 0.0, cluster.worker_died(job.case.id, reason)) for job in group]


class _Worker:
    """A process of the cluster with its models, which are loaded when the first job needs them."""

    def __init__(
        self, plan: CompletionPlan, cwd: str, device: str, batch_size: int, workers: int
    ) -> None:
        """Take what all jobs share; paths of the plan are relative to the driver's folder."""
        cluster.enter(cwd)
        from attcl_cli import devices  # noqa: PLC0415 - the driver needs no torch

        self._plan = plan
        self._device = devices.select(device)
        self._batch_size, self._workers = batch_size, workers
        self._methods: dict[str, Any] = {}

    def work(self, group: tuple[Job, ...]) -> list[Completed]:
        """Make the volumes of a few jobs; those that fail are tried again."""
        outcome = list(self._made(group))
        for _ in range(cluster.TRIES - 1):
            failed = [place for place, item in enumerate(outcome) if item.error is not None]
            again = self._made(tuple(group[place] for place in failed))
            for place, item in zip(failed, again, strict=True):
                outcome[place] = item
        return outcome

    def _made(self, jobs: tuple[Job, ...]) -> Iterator[Completed]:
        from attcl_cli.completion.making import make_volumes  # noqa: PLC0415 - as above
        from attcl_cli.methods.weights import load_method  # noqa: PLC0415 - as above

        plan = replace(self._plan, jobs=jobs)
        for model in plan.used:
            if model.sha256 not in self._methods:
                self._methods[model.sha256] = load_method(model, self._device)
        with confined(plan.output, plan.places.records):
            yield from make_volumes(
                plan,
                self._methods,
                device=self._device,
                batch_size=self._batch_size,
                workers=self._workers,
                keep_going=True,
            )
