"""Cases -> patients: what the names of public datasets say, what a user says, what looks like visits of one patient.

Knows ids of cases only. Which patient goes into which split is left to `splits`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attcl_cli.data.layouts import Layout
from attcl_cli.errors import AttclError, UsageError, counted, some


@dataclass(frozen=True)
class PublicNames:
    """How a public dataset names its cases.

    Attributes:
        title: what people call it.
        case: a regular expression for the whole id of a case; its first group is the patient.
        example: the id of a case.
        source: where the naming is described.
    """

    title: str
    case: str
    example: str
    source: str


PUBLIC_NAMES = (
    PublicNames(
        "UPENN-GBM",
        r"(UPENN-GBM-\d{5})_\d{2}",
        "UPENN-GBM-00001_11",
        "TCIA, 10.7937/TCIA.709X-DN49: _11 is the first examination, _21 a follow-up",
    ),
    PublicNames(
        "UCSF-PDGM",
        r"(UCSF-PDGM-\d{3,4})(?:_FU\d+d)?",
        "UCSF-PDGM-0429_FU003d",
        "TCIA, 10.7937/tcia.bdgf-8v37: _FU003d is a follow-up",
    ),
    PublicNames(
        "BraTS 2017 to 2019",
        r"(Bra[tT][sS]1[789]_[A-Za-z0-9]+_[A-Za-z0-9]+)_\d+",
        "Brats18_TCIA02_370_1",
        "BraTS 2018, name_mapping.csv: a number follows the patient's name",
    ),
    PublicNames(
        "BraTS 2020",
        r"(BraTS20_(?:Training|Validation|Testing)_\d{3})",
        "BraTS20_Training_001",
        "BraTS 2020, name_mapping.csv",
    ),
    PublicNames(
        "BraTS 2021", r"(BraTS2021_\d{5})", "BraTS2021_00000", "BraTS 2021, arXiv:2107.02314"
    ),
    PublicNames(
        "BraTS 2023 to 2025",
        r"(BraTS-(?:GLI|MEN|MET|PED|SSA)-\d{5})-\d{3}",
        "BraTS-GLI-00000-000",
        "BraTS 2023, synapse.org/brats2023: cohort, patient, time point",
    ),
    PublicNames(
        "BraTS-MEN-RT 2024",
        r"(BraTS-MEN-RT-\d{4})-\d",
        "BraTS-MEN-RT-0000-1",
        "BraTS 2024 meningioma radiotherapy, arXiv:2405.18383",
    ),
    PublicNames(
        "TCGA",
        r"(TCGA-[0-9A-Z]{2}-[0-9A-Z]{4})(?:[-_.].*)?",
        "TCGA-02-0006_1996.08.23",
        "GDC, TCGA barcode: project, site and participant name the patient",
    ),
    PublicNames(
        "IXI",
        r"(IXI\d+)-[A-Za-z]+-\d+",
        "IXI002-Guys-0828",
        "brain-development.org/ixi-dataset: subject, hospital, scan",
    ),
)


@dataclass(frozen=True)
class Patients:
    """Whose the cases of a dataset are.

    Attributes:
        of: case id -> patient.
        recognised: titles of the public datasets that the ids come from.
        notes: what was guessed.
    """

    of: Mapping[str, str]
    recognised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def patient_by_name(case: str, layout: Layout) -> str:
    """Return the patient of a case that perhaps is not here, by its id: of a public dataset, or as the layout says."""
    found = _public(case)
    return found[0] if found else layout.patient_of(case)


def _public(case: str) -> tuple[str, str] | None:
    """Return the patient of a case of a public dataset, and that dataset's title; None: it is of none that we know."""
    for names in PUBLIC_NAMES:
        if match := re.fullmatch(names.case, case, re.IGNORECASE):
            return match[1], names.title
    return None


def find_patients(
    cases: Iterable[str],
    layout: Layout,
    pattern: str | None = None,
    folders: Mapping[str, str] | None = None,
) -> Patients:
    """Return the patient of each case: what the user says, otherwise a public dataset, the layout, or a guess.

    Args:
        cases: ids of all cases of a dataset.
        layout: its naming.
        pattern: the regular expression of the user; its first group, found in a case's id, names the patient.
        folders: case id -> the folder above its own; "": none.

    Raises:
        UsageError: a case's id does not fit `pattern`.
    """
    ids = sorted(cases)
    if pattern is not None:
        return Patients(_said(ids, pattern))
    patients: dict[str, str] = {}
    titles: dict[str, None] = {}
    for case in ids:
        if found := _public(case):
            patients[case], title = found
            titles[title] = None
        elif re.match(layout.patient, case) and layout.patient != Layout.patient:
            patients[case] = layout.patient_of(case)
    unknown = [case for case in ids if case not in patients]
    above = {
        case: folder
        for case in unknown
        if (folder := (folders or {}).get(case)) and _VISIT_ALONE.fullmatch(case)
    }
    members = Counter(above.values())
    above = {case: it for case, it in above.items() if members[it] <= _MOST_VISITS}  # no train/
    guesses = _visits([case for case in unknown if case not in above])
    whole = {case: patients.get(case) or above.get(case) or guesses.get(case, case) for case in ids}
    return Patients(whole, tuple(titles), (*_notes(guesses), *_notes_on_folders(above)))


def leaks(
    file: Path, splits: Mapping[str, Sequence[str]], patients: Mapping[str, str]
) -> list[AttclError]:
    """Return a problem per patient that is in several splits.

    Args:
        file: what says so, for the error.
        splits: split -> ids of its cases.
        patients: case id -> patient; a case without one is its own.
    """
    places: dict[str, dict[str, str]] = defaultdict(
        dict
    )  # patient -> split -> its first case there
    for split, cases in splits.items():
        for case in cases:
            places[patients.get(case, case)].setdefault(split, case)
    return [
        AttclError(
            f"{file}: {' and '.join(f'{case} in {split}' for split, case in cases.items())} "
            f"look like one patient ({patient}), expected each patient in one split",
            "run attcl prepare-splits again; if they are different patients, "
            "say in modalities.toml what names one: patient = '^(...)'",
            code="patient-in-two-splits",
        )
        for patient, cases in sorted(places.items())
        if len(cases) > 1
    ]


def _said(cases: Sequence[str], pattern: str) -> dict[str, str]:
    matches = {case: re.search(pattern, case) for case in cases}
    strange = [case for case, match in matches.items() if match is None or not match[1]]
    if strange:
        raise UsageError(
            f"modalities.toml: patient = {pattern!r} does not fit {len(strange)} of {counted(len(cases), 'case')} "
            f"({some(strange, most=3)}), expected it to name the patient of each",
            "join further patterns with |, the name within the first parentheses",
            code="patient-pattern-misses",
        )
    return {case: match[1] for case, match in matches.items() if match is not None}


# --- visits of one patient ------------------------------------------------------------------------------------------

_NUMBERED_VISIT = re.compile(r"(?P<patient>.*?(?P<number>\d+))[-_.](?P<visit>\d+)")
_NAMED_VISIT = re.compile(
    r"(?P<patient>.+?)[-_.]"
    r"(?P<visit>(?:v|t|tp|fu|visit|time|timepoint|followup|follow-up|ses|session|scan|exam|study|week|month|day|year)"
    r"[-_]?\d+|baseline|bl|followup|follow-up|pre|post|pre-?op|post-?op)",
    re.IGNORECASE,
)
_YEAR = re.compile(r"(?:19|20)\d{2}")
_VISIT_ALONE = re.compile(  # without a patient's name: pat1/2019-05-21/, pat1/ses-1/
    r"(?:19|20)\d{2}[-_.]?\d{2}[-_.]?\d{2}(?:[-_.T]?\d{4,6})?|"
    + _NAMED_VISIT.pattern.split("(?P<visit>")[1][:-1],
    re.IGNORECASE,
)
_MOST_VISITS = 9  # of one patient, if few patients show what is a visit


def _visits(cases: Sequence[str]) -> dict[str, str]:
    """Return case id -> patient of cases that look like visits of one patient.

    Their ids differ in a visit's name (`P001_baseline`) or last number. A last number may as well number the patients
    of a site (`site01_003`): it is a visit if there are more patients than different last numbers, or if it is shorter
    than the number before it.
    """
    guesses: dict[str, str] = {}
    for expression in (_NAMED_VISIT, _NUMBERED_VISIT):
        matches = {case: expression.fullmatch(case) for case in cases if case not in guesses}
        found = {case: match for case, match in matches.items() if match is not None}
        groups: dict[str, list[str]] = defaultdict(list)
        for case, match in found.items():
            groups[match["patient"]].append(case)
        visits = {match["visit"].lower() for match in found.values()}
        for patient, members in groups.items():
            if len(members) > 1 and (
                len(groups) > len(visits)
                or (len(visits) <= _MOST_VISITS and all(_is_visit(found[it]) for it in members))
            ):
                guesses |= dict.fromkeys(members, patient)
    return guesses


def _is_visit(match: re.Match[str]) -> bool:
    """Return whether a single id alone says that its last part is a visit, not a patient."""
    number = match.groupdict().get("number")
    if number is None:
        return match["patient"][-1].isdigit()
    return len(match["visit"]) < len(number) and not _YEAR.fullmatch(number)


def _notes_on_folders(above: Mapping[str, str]) -> tuple[str, ...]:
    if not above:
        return ()
    first = min(above)
    return (
        f"{counted(len(above), 'case')} named as visits: the folder above is taken for the patient "
        f"({first} of {above[first]}), and the cases of a patient stay in one split; "
        "if this is wrong, say what names a patient in modalities.toml: patient = '^(.*)$'",
    )


def _notes(guesses: Mapping[str, str]) -> tuple[str, ...]:
    if not guesses:
        return ()
    patients = sorted(set(guesses.values()))
    members = [case for case in sorted(guesses) if guesses[case] == patients[0]]
    return (
        f"{len(guesses)} cases look like visits of {counted(len(patients), 'patient')} by their names, "
        f"such as {some(members, most=2)}: the cases of a patient stay in one split; "
        "if this is wrong, say what names a patient in modalities.toml: patient = '^(.*)$'",
    )
