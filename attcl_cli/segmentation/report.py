"""The scores of a run: figures, differences and warnings that belong to them, and the files that keep them.

How they are shown on the terminal is left to `cli`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attcl_cli.completion.provenance import PatientOf, Provenance, training_cases
from attcl_cli.errors import counted, some
from attcl_cli.files import write_csv
from attcl_cli.segmentation.inputs import COMPLETED, INCOMPLETE, REAL
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.segmentation.summary import (
    Difference,
    Figure,
    Row,
    differences,
    summarise,
    write_summary,
)

SCORES_FILE, SUMMARY_FILE = "segment.csv", "summary.json"
_IDS_NAMED = 3  # in a warning
FEW_CASES = 10  # below this, an interval says little


@dataclass(frozen=True)
class Scores:
    """The scores of a run, with the warnings and notes that belong to them.

    Attributes:
        rows: a case, region and metric each.
        inputs: their inputs, in the order of the tables.
        missing: ids of the cases that were left out.
        warnings: what makes the figures doubtful.
        notes: other remarks, made before the run.
        trained: the training of the segmenters in words; empty if unknown.
        seed: of the bootstrap.
    """

    rows: tuple[Row, ...]
    inputs: tuple[str, ...]
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    trained: str = ""
    seed: int = 0

    @property
    def cases(self) -> int:
        """Return how many cases were scored."""
        return len({row.case for row in self.rows})

    @property
    def figures(self) -> list[Figure]:
        """Return the figures of each input, region and metric."""
        return summarise(self.rows)

    @cached_property  # thousands of draws each
    def differences(self) -> list[Difference]:
        """Return what completion brings, and what remains to the upper bound."""
        single = next(
            (name for name in self.inputs if name not in {COMPLETED, INCOMPLETE, REAL}), ""
        )
        pairs = [(COMPLETED, single), (COMPLETED, INCOMPLETE), (REAL, single), (REAL, COMPLETED)]
        scored = [pair for pair in pairs if set(pair) <= set(self.inputs)]
        return differences(self.rows, scored, seed=self.seed)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Return what the number of cases means for the figures."""
        if len(self.inputs) < 2 or self.cases >= FEW_CASES:  # noqa: PLR2004 - one has no intervals
            return ()
        return (f"few test cases ({self.cases}): the intervals say little",)


def leaks(provenance: Provenance, inputs: Sequence[str]) -> list[str]:
    """Return warnings about the weights that made the completed volumes."""
    if COMPLETED not in inputs:
        return []
    if not provenance.known:
        return [
            "what the completion weights were trained on is not recorded beside the completed volumes, "
            "so whether they have seen test patients is unknown"
        ]
    if not provenance.seen:
        return []
    return [
        f"the completion weights were trained on {len(provenance.seen)} of the test patients "
        f"({some(provenance.seen, most=_IDS_NAMED)}): the figures of completed are too good"
    ]


def seen(tested_on: Sequence[str], trained_on: Sequence[str], patient_of: PatientOf) -> list[str]:
    """Return warnings about a segmenter that was trained, or chosen, on test cases or other visits of a patient."""
    both = training_cases(tested_on, set(trained_on), patient_of)
    if not both:
        return []
    return [
        f"the segmenter was trained on {len(both)} of the test cases ({some(both, most=_IDS_NAMED)}): "
        "its figures are too good"
    ]


def describe_training(
    settings: SegmentSettings, cases: int, segmenters: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return how long segmenters were trained, on how many cases, and which step's weights were kept.

    `segmenters` is input -> what `evaluation.describe` says.
    """
    several = len(segmenters) > 1
    kept = ", ".join(
        f"{name} {facts['steps']}" if several else str(facts["steps"])
        for name, facts in segmenters.items()
    )
    return (
        f"{'each trained' if several else 'trained'} for {counted(settings.steps, 'step')} of "
        f"{counted(settings.batch_size, 'slice')} "
        f"at {settings.image_size} pixels on {counted(cases, 'case')}; weights of step: {kept}"
    )


def files(output: Path) -> list[Path]:
    """Return what a finished run has in its folder, besides weights and predictions."""
    from attcl_cli.report.page import REPORT_FILE  # loads matplotlib

    return [output / name for name in (SCORES_FILE, SUMMARY_FILE, REPORT_FILE)]


def write(output: Path, scores: Scores, *, facts: Mapping[str, Any]) -> None:
    """Write `segment.csv` and `summary.json`; `facts` are put into the latter."""
    write_csv(output / SCORES_FILE, Row, scores.rows)
    write_summary(
        output / SUMMARY_FILE,
        scores.figures,
        scores.differences,
        {
            **facts,
            "split": "test",
            "cases": scores.cases,
            "trained": scores.trained,
            "missing": list(scores.missing),
            "warnings": list(scores.warnings),
            "notes": [*scores.notes, *scores.cautions],
        },
    )
