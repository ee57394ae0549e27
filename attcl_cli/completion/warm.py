"""Makes jobs a few at a time, in a process that keeps its models: what workers on devices and on a cluster share.

How jobs reach the process, and what becomes of them if it dies, is left to `on_devices` and `on_ray`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from attcl_cli import devices
from attcl_cli.completion import making
from attcl_cli.completion.jobs import Completed, CompletionPlan, Job
from attcl_cli.confined import confined
from attcl_cli.methods.base import Method
from attcl_cli.methods.weights import load_method, require_same_file

GROUP = 4
"""Jobs that a process has at once: one is read while another is computed and a third is written."""


def shared_by_jobs(plan: CompletionPlan) -> CompletionPlan:
    """Return the part of a plan that travels to a process once: nothing of it is of single cases but the dataset."""
    return replace(plan, jobs=(), present={}, failed={})


class WarmModels:
    """The models of a process, each of which is loaded when the first job needs it."""

    def __init__(self, plan: CompletionPlan, device: str, *, batch_size: int, workers: int) -> None:
        """Load nothing yet.

        Args:
            plan: what all jobs share.
            device: its name.
            batch_size: slices on the device at once; never changes results.
            workers: cases that are read ahead.
        """
        self._plan, self._device = plan, device
        self._batch_size, self._workers = batch_size, workers
        self._methods: dict[str, Method] = {}
        records = plan.places.records
        # A run's record lies there before its workers begin.
        self._lasting = records if records.exists() else None

    def made(self, jobs: Sequence[Job]) -> Iterator[Completed]:
        """Make a few jobs; one that fails is yielded with its error.

        Raises:
            AttclError: what is no matter of a single case: the device is absent, or other weights lie at the path.
        """
        device = devices.select(self._device)
        plan = replace(self._plan, jobs=tuple(jobs))
        for model in plan.used:
            if model.sha256 not in self._methods:
                require_same_file(model)
                self._methods[model.sha256] = load_method(model, device)
        with confined(plan.output, plan.places.records, lasting=self._lasting):
            yield from making.make_volumes(
                plan,
                self._methods,
                device=device,
                batch_size=self._batch_size,
                workers=self._workers,
                keep_going=True,
            )
