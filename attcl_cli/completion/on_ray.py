"""Makes the volumes of a plan on a Ray cluster: workers that keep their models, each with a few cases at a time.

What is made, and every byte of it, is `making`'s; how jobs reach workers, and what if these die, is `cluster`'s.
Dataset, output folder and weights must lie at the same paths on every machine.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from attcl_cli import cluster
from attcl_cli.completion.jobs import Completed, CompletionPlan, Job
from attcl_cli.completion.warm import GROUP, WarmModels, shared_by_jobs
from attcl_cli.temporaries import sweep


def make_on_ray(
    plan: CompletionPlan,
    on: cluster.Cluster,
    *,
    batch_size: int = 64,
    workers: int = 2,
    keep_going: bool = False,
) -> Generator[Completed, None, None]:
    """Make the planned volumes on a Ray cluster; the same contract as `making.make_volumes`.

    The driver holds a few groups of jobs per worker, however many cases there are. A worker that dies is started again
    and its group made again, three times, then each of its cases; one that still cannot be made is a failed case.

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
        AttclError: a case failed, or a machine lacks the folder of the driver. What was finished stays.
    """
    outcomes = cluster.work_on_ray(
        _Worker,
        plan.jobs,
        _lost,
        at_once=GROUP,
        shared=shared_by_jobs(plan),
        arguments=(str(Path.cwd()), on.device, batch_size, workers),
        on=on,
    )
    try:
        with closing(outcomes):
            for outcome in outcomes:
                for item in outcome:
                    if item.error is not None and not keep_going:
                        raise item.error
                    yield item
    finally:
        if plan.output.is_dir():
            sweep(plan.output)  # what a worker that died was writing


def _lost(group: Sequence[Job], reason: str) -> list[Completed]:
    """Return what becomes of jobs whose workers died again and again: their cases failed."""
    return [Completed(job, (), 0.0, cluster.worker_died(job.case.id, reason)) for job in group]


class _Worker:
    """A process of the cluster with its models, which are loaded when the first job needs them."""

    def __init__(
        self, plan: CompletionPlan, cwd: str, device: str, batch_size: int, workers: int
    ) -> None:
        """Take what all jobs share; an error here would be that of a worker which died."""
        self._cwd = cwd
        self._models = WarmModels(plan, device, batch_size=batch_size, workers=workers)

    def work(self, group: tuple[Job, ...]) -> list[Completed]:
        """Make the volumes of a few jobs; those that fail are tried again.

        Raises:
            AttclError: this machine lacks the driver's folder, to which paths of the plan are relative; or what is no
                matter of a single case.
        """
        cluster.enter(self._cwd)
        outcome = list(self._models.made(group))
        for _ in range(cluster.TRIES - 1):
            failed = [place for place, item in enumerate(outcome) if item.error is not None]
            if not failed:
                break
            again = self._models.made([group[place] for place in failed])
            for place, item in zip(failed, again, strict=True):
                outcome[place] = item
        return outcome
