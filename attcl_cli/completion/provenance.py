"""Which patients the weights of a completion were trained on, by their names, as its records say.

What follows for scores is left to those who compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attcl_cli.errors import counted, some
from attcl_cli.methods import bundled
from attcl_cli.methods.weights import BUNDLED, Weights
from attcl_cli.run_record import read_record

PatientOf = Callable[[str], str]
"""The patient of a case, by its id (`Dataset.patient_of`)."""


@dataclass(frozen=True)
class Provenance:
    """The origin of the synthesised volumes.

    Attributes:
        weights: name and SHA-256, from the records in the folder.
        known: whether the records say which cases the weights were trained on.
        seen: ids of the cases asked about whose patient was among these.
    """

    weights: tuple[Mapping[str, str], ...]
    known: bool
    seen: tuple[str, ...]


def read_provenance(
    completed: Path, made_by: Mapping[str, Collection[str]], patient_of: PatientOf
) -> Provenance:
    """Read what `attcl complete` noted beside its volumes, and compare it with cases.

    Args:
        completed: the folder of the completed volumes.
        made_by: case id -> SHA-256 of the weights that made its volumes; empty: any weights of the folder.
        patient_of: the patient of a case.
    """
    weights: list[Mapping[str, str]] = []
    learned: dict[str, set[str]] = {}
    recorded: set[str] = set()
    known = True
    for path in sorted(completed.glob("run*.json")):
        record = read_record(completed, path.name)
        if record.get("command") != "complete":
            continue
        weights += [it for it in named(record) if it not in weights]
        known = known and isinstance(record.get("trained_on"), list)
        recorded |= trained_on(record).keys()
        for sha256, cases in _cases_of_patients(record).items():
            learned.setdefault(sha256, set()).update(cases)
    seen = {
        case
        for sha256, cases in learned.items()
        for case in training_cases(made_by, cases, patient_of)
        if not made_by[case] or sha256 in made_by[case]
    }
    makers = {sha256 for each in made_by.values() for sha256 in each}
    known = known and bool(weights) and makers <= recorded
    return Provenance(tuple(weights), known, tuple(case for case in made_by if case in seen))


def training_cases(
    cases: Iterable[str], trained_on: Collection[str], patient_of: PatientOf
) -> list[str]:
    """Return those cases of which the patient, by its name, is among those that weights were trained on."""
    patients = {patient_of(case) for case in trained_on}
    return [case for case in cases if case in trained_on or patient_of(case) in patients]


def describe_training_patients(
    seen: Collection[str], cases: Collection[str], patient_of: PatientOf
) -> str:
    """Return how many of the patients are training patients of the weights, in words; "" if none is.

    Args:
        seen: ids of the cases whose patients are.
        cases: ids of all cases.
        patient_of: the patient of a case.
    """
    if not seen:
        return ""
    count, every = (len({patient_of(case) for case in each}) for each in (seen, cases))
    are = "is a training patient" if count == 1 else "are training patients"
    return f"{count} of {counted(every, 'patient')} {are} of the weights"


def learned_cases(
    models: Sequence[Weights], made: Iterable[tuple[str, str]], patient_of: PatientOf
) -> dict[str, list[str]]:
    """Return name of published weights -> cases they make whose patients they learned from.

    A run of one's own completes its training cases, and is not asked.

    Args:
        models: the weights.
        made: (case id, SHA-256 of weights) of each volume.
        patient_of: the patient of a case.
    """
    pairs = list(made)
    learned: dict[str, list[str]] = {}
    for weights in models:
        ids = {case for case, sha256 in pairs if sha256 == weights.sha256}
        cases = training_cases(sorted(ids), weights.info.trained_on, patient_of)
        if cases and bundled.kind_of(weights.path) == "patients":
            learned[weights.name] = cases
    return learned


def notes_of_learned(learned: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a note per published weights that complete their own training patients."""
    return [
        f"{some(cases)}: by {'its name' if len(cases) == 1 else 'their names'} among the patients that "
        f"{name} was trained on; such volumes look better than those of new patients"
        for name, cases in learned.items()
    ]


def named(record: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """Return name and SHA-256 of all weights of a record, its first ones first."""
    return [it for it in (record.get("weights"), *record.get("further_weights", ())) if it]


def trained_on(record: Mapping[str, Any]) -> Mapping[str, Collection[str]]:
    """Return SHA-256 of weights -> their training cases, of those of which a record says them."""
    by_weights: Mapping[str, Collection[str]] | None = record.get("trained_on_by_weights")
    if by_weights or record.get("trained_on") is None:
        return by_weights or {}
    return {(record.get("weights") or {}).get("sha256", ""): record["trained_on"]}


def _cases_of_patients(record: Mapping[str, Any]) -> Mapping[str, Collection[str]]:
    """Return the same without the weights of phantoms, of which all cohorts have the same names."""
    simulated = {it.get("sha256", "") for it in named(record) if it.get("name") == BUNDLED}
    return {sha256: it for sha256, it in trained_on(record).items() if sha256 not in simulated}
