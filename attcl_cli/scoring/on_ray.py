"""Scores the cases of a comparison on a Ray cluster: workers that keep their networks, each with a few cases at a time.

What is measured is `rows`'s; how cases reach workers, and what if these die, is `cluster`'s. Volumes and weights must
lie at the same paths on every machine. Only the driver writes: features of slices come back to it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attcl_cli import cluster
from attcl_cli.errors import AttclError
from attcl_cli.methods.weights import require_same_file
from attcl_cli.scoring.pairs import CasePairs
from attcl_cli.scoring.rows import Row, rows_of

if TYPE_CHECKING:
    from attcl_cli.scoring.feature_store import Embedded, FeatureStore
    from attcl_cli.scoring.recipe import Recipe
    from attcl_cli.scoring.rows import Measures

_GROUP = 2  # cases that a worker has at once; their features come back together
_VARIABLES = (
    "ATTCL_WEIGHTS",
    "ATTCL_OFFLINE",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
)  # of feature networks


@dataclass(frozen=True, eq=False)
class _Scored:
    """What a worker found of a case."""

    rows: list[Row]
    features: list[Embedded]


_Outcome = list[_Scored | AttclError]  # of a group; it ends with the first case that failed


def score_on_ray(
    cases: Sequence[CasePairs],
    recipe: Recipe,
    store: FeatureStore | None,
    on: cluster.Cluster,
    *,
    num_workers: int = 2,
) -> Generator[list[Row], None, None]:
    """Yield the rows of each case, measured on a Ray cluster; the same contract as `rows.score_cases`.

    The driver holds a few groups of cases per worker, however many there are. A worker that dies is started again and
    its group scored again, three times.

    Args:
        cases: of a comparison.
        recipe: what is measured; travels once.
        store: of the driver, for the features of slices; None if no metric sees sets.
        on: where the workers are.
        num_workers: cases that a worker reads ahead.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
        AttclError: a case failed three times.
    """
    outcomes = cluster.work_on_ray(
        _Worker,
        cases,
        _lost,
        at_once=_GROUP,
        shared=recipe,
        arguments=(
            str(Path.cwd()),
            {name: os.environ[name] for name in _VARIABLES if name in os.environ},
            on.device,
            num_workers,
        ),
        on=on,
    )
    with closing(outcomes):
        for outcome in outcomes:
            for item in outcome:
                if isinstance(item, AttclError):
                    raise item
                for features in item.features:
                    assert store is not None  # of the same recipe
                    store.keep(features)
                yield item.rows


def _lost(group: Sequence[CasePairs], reason: str) -> _Outcome:
    return [cluster.worker_died(group[0].case, reason)]


class _Worker:
    """A process of the cluster with its networks, which are loaded with its first case."""

    def __init__(
        self, recipe: Recipe, cwd: str, variables: Mapping[str, str], device: str, num_workers: int
    ) -> None:
        """Take what all cases share; an error here would be that of a worker which died."""
        self._recipe, self._cwd, self._variables = recipe, cwd, variables
        self._device, self._num_workers = device, num_workers
        self._measures: Measures | None = None

    def work(self, group: tuple[CasePairs, ...]) -> _Outcome:
        """Score a few cases; one that fails is tried again, and is the last if it fails three times."""
        outcome: _Outcome = []
        failures = 0
        while len(outcome) < len(group):
            try:
                for scored in self._scored(group[len(outcome) :]):
                    outcome.append(scored)
                    failures = 0
            except AttclError as error:
                failures += 1
                if failures == cluster.TRIES:
                    return [*outcome, error]
        return outcome

    def _scored(self, cases: tuple[CasePairs, ...]) -> Generator[_Scored, None, None]:
        measures = self._measures = self._measures or self._loaded()
        features = measures.collector()
        for rows in rows_of(cases, measures, features, num_workers=self._num_workers):
            yield _Scored(rows, features.take() if features else [])

    def _loaded(self) -> Measures:
        """Enter the driver's folder, and load the networks.

        Raises:
            AttclError: this machine lacks the folder or a file, or has other weights.
        """
        from attcl_cli import devices  # noqa: PLC0415 - the driver has its own

        cluster.enter(self._cwd)
        os.environ.update(self._variables)
        if self._recipe.weights is not None:
            require_same_file(self._recipe.weights)
        return self._recipe.load(devices.select(self._device))
