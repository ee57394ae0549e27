"""The page of `attcl complete`: what lies in the output folder, beside what it was made from.

Nobody knows the real volumes, so nothing is scored: the volumes to look at first are those with the most doubt. How
pages and pictures look is left to `attcl_cli.report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from attcl_cli import __version__
from attcl_cli.completion import provenance
from attcl_cli.completion.doubt import doubt_in
from attcl_cli.completion.jobs import (
    DEFAULT_DATA,
    OLD_MANNER,
    CompletionPlan,
    Doubt,
    Manner,
    Places,
)
from attcl_cli.data import intensities, label_maps, volumes
from attcl_cli.data.dataset import Case, Dataset, Source, guides_in, read_side_car, sources_in
from attcl_cli.data.synthetic import slices_made, span_in_words
from attcl_cli.data.unchanged import require_unchanged
from attcl_cli.errors import AttclError, counted, quoted, some
from attcl_cli.methods import bundled
from attcl_cli.methods.citations import references
from attcl_cli.methods.settings import title_of, variant_of
from attcl_cli.methods.weights import Weights
from attcl_cli.report import pictures
from attcl_cli.report.chosen import Chosen, choose, count_roles
from attcl_cli.report.page import Page, write_page
from attcl_cli.report.sections import (
    CaseTable,
    Cell,
    Patterns,
    Text,
    Viewer,
    patterns_of,
    viewers,
)
from attcl_cli.report.viewers import SLICES

_SHOWN = 8  # rows of a picture
_PICTURED = 12  # volumes with pictures: memory and the page do not grow with the dataset
_WORST, _BEST = "most doubt", "least doubt"
_SHA_SHOWN = 12  # digits
_INTENSITIES_IN_WORDS = {
    "network": "Made volumes carry the intensity range of their modality.",
    "stretched": "The darkest and the brightest twentieth of the brain's voxels were stretched to the ends of the "
    "training volumes.",
    "matched": "Intensities were matched to the quantiles of the training volumes.",
}


@dataclass(frozen=True)
class MadeVolume:
    """A volume in the output folder, as its side-car describes it."""

    case: Case
    target: str
    sources: tuple[str, ...]
    guides: tuple[str, ...]
    weights: str
    sha256: str
    intensities: str  # `Manner.intensities`, but for `auto`
    slices: tuple[int, int] | None  # first, stop; None: all
    doubt: Doubt

    @property
    def made_from(self) -> str:
        """Return what it was made from: `flair+t1`, or `flair, sharpened by t1`."""
        sources = "+".join(self.sources)
        return f"{sources}, sharpened by {'+'.join(self.guides)}" if self.guides else sources

    @property
    def scores(self) -> dict[str, float]:
        """Return the figures of doubt by name."""
        figures = {"disagreement": self.doubt.disagreement, "distance": self.doubt.distance}
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Return what sorts volumes, those with least doubt first."""
        return (
            bool(self.doubt.far),
            self.doubt.distance or 0.0,
            self.doubt.disagreement or 0.0,
        )


def page_file(record: Path) -> Path:
    """Return where the page of a run goes: beside its record, `run-1of4.json` -> `report-1of4.html`."""
    return record.with_name(record.stem.replace("run", "report", 1) + ".html")


def write_report(
    plan: CompletionPlan,
    record: Path,
    failed: Mapping[str, AttclError],
    *,
    viewer: str = SLICES,
) -> Path:
    """Write the page of a completion: of all volumes that lie in its folder, whichever run made them.

    At most 12 volumes are read again, with their sources, for pictures: of more volumes those with the most and the
    least doubt, and a random sample. What cannot be read, or has changed since it was checked, has no picture, and the
    page says so.

    Args:
        plan: what there was to do.
        record: the `run.json` of the run.
        failed: case id -> why it failed.
        viewer: one of `viewers.VIEWERS`.

    Returns:
        The file.

    Raises:
        AttclError: the page cannot be written.
    """
    made = volumes_made(plan)
    doubted = sorted(made, key=lambda it: it.rank, reverse=True)
    panels, unread = _panels(plan, _chosen(doubted))
    learned = provenance.learned_cases(  # of all that lies there: the page of a killed run is that of a whole one
        plan.models, [(it.case.id, it.sha256) for it in made], plan.dataset.patient_of
    )
    hint = "The real volumes are not known, so there is no difference to see."
    if len(panels) < len(made):
        hint += f" Pictures of {len(panels)} of {counted(len(made), 'volume')}"
        roles = count_roles(panel.role for panel in panels)
        hint += f" ({roles})." if roles else "."
    if panels and any(volume.slices for volume in made):
        hint += " Of a volume that was made in some slices only, these are shown."
    known = any(volume.scores for volume in made)
    order = f"{_WORST} first" if known and len(panels) > 1 else ""
    slices = Viewer(panels, order=order, hint=hint)
    page = Page(
        "Completed volumes",
        verdict=_verdict(doubted, failed, _caveat(plan, made, learned)),
        facts=_facts(plan, made, failed),
        sections=[
            *viewers(slices, viewer),
            _patterns(plan, made),
            CaseTable(_rows(doubted, failed)),
            Text("How the volumes were made", [_methods_paragraph(plan, made)]),
            Text("How to cite", _citations(plan.models)),
            Text("Settings", folded={"How volumes were made": _lines(plan.manner.document())}),
        ],
        notes=[
            *plan.dataset.notes,
            *plan.notes,
            *provenance.notes_of_learned(learned),
            *unread,
            _ABOUT_DOUBT,
        ],
        files=[record.name],
    )
    path = page_file(record)
    write_page(path, page)
    return path


def show(
    ori: Path | str = DEFAULT_DATA, cpl: Path | str = "out", *, case: str = "", target: str = ""
) -> Image.Image:
    """Draw completed volumes beside their sources; eight at most.

    The slice is the one with most of the label map; without one, that with most brain.

    Args:
        ori: the incomplete dataset, or the folder of one patient.
        cpl: the folder of the completed volumes.
        case: only this case; "": all.
        target: only this modality; "": all.

    Returns:
        A picture, which a notebook shows by itself.

    Raises:
        AttclError: there is no such volume, or one cannot be read.
    """
    dataset = Source(Path(ori)).open()
    places = Places(dataset.including([target] if target else dataset.absent), Path(cpl))
    every = [(it, name) for it in places.dataset.cases for name in places.dataset.missing(it)]
    made = [
        volume
        for volume in (_made_volume(places, *each) for each in every)
        if volume is not None and case in {"", volume.case.id} and target in {"", volume.target}
    ]
    if not made:
        asked = " of ".join(word for word in (target, case) if word)
        raise AttclError(
            f"{cpl}: no completed volume{f' {asked}' if asked else ''}, expected one beside its side-car",
            f"attcl complete --ori {quoted(ori)} --cpl {quoted(cpl)} makes what is missing",
            code="nothing-to-show",
        )
    reader = _Reader(places.dataset)
    shown = [_panel(places, reader, volume) for volume in made[:_SHOWN]]
    return pictures.montage(shown, title="Completed volumes", max_rows=_SHOWN)


def volumes_made(plan: CompletionPlan) -> list[MadeVolume]:
    """Return the volumes that lie in the output folder with a side-car of attcl, in the order of the dataset."""
    wanted = {case: set(targets) for case, targets in plan.present.items()}
    for job in plan.jobs:
        wanted.setdefault(job.case.id, set()).update(job.outputs)
    every = [
        (case, target)
        for case in plan.dataset.cases
        for target in plan.dataset.modalities
        if target in wanted.get(case.id, ())
    ]
    volumes_there = (_made_volume(plan.places, *each) for each in every)
    return [volume for volume in volumes_there if volume is not None]


def _made_volume(places: Places, case: Case, target: str) -> MadeVolume | None:
    """Return what the side-car of a volume says; None if there is none: it was not made, or its case failed."""
    side_car = read_side_car(places.side_car(case, target))
    if not side_car:
        return None
    weights = side_car.get("weights") or {}
    return MadeVolume(
        case=case,
        target=target,
        sources=tuple(str(it["modality"]) for it in sources_in(side_car) if it),
        guides=tuple(str(it["modality"]) for it in guides_in(side_car)),
        weights=str(weights.get("name", "")),
        sha256=str(weights.get("sha256", "")),
        intensities=str(side_car.get("intensities", OLD_MANNER["intensities"])),
        slices=slices_made(side_car),
        doubt=doubt_in(side_car) or Doubt(),
    )


_ABOUT_DOUBT = (
    "Disagreement is the mean absolute difference in the brain of two passes over a volume, as a share of the "
    "modality's window. Distance says how far the sources are from the training cases, in robust standard deviations. "
    "They notice scanners and diseases that the weights have not seen. They do not say how wrong a volume is: nobody "
    "knows the real one."
)


# --- Pictures -------------------------------------------------------------------------------------


def _chosen(doubted: Sequence[MadeVolume]) -> list[Chosen[MadeVolume]]:
    """Return which volumes have pictures; doubt is compared by distance, or by disagreement if no distance is known.

    Args:
        doubted: by falling doubt.
    """
    by_distance = any(volume.doubt.distance is not None for volume in doubted)
    figure = "distance" if by_distance else "disagreement"
    return choose(
        [volume for volume in doubted if figure in volume.scores],
        [volume for volume in doubted if figure not in volume.scores],
        most=_PICTURED,
        worst=_WORST,
        best=_BEST,
    )


class _Reader:
    """Reads what pictures show; files that the volumes of a case share are read once if these follow each other."""

    def __init__(self, dataset: Dataset) -> None:
        load = partial(volumes.load, background=dataset.background)
        self.volume = lru_cache(maxsize=len(dataset.modalities))(load)  # those of one case
        self.labels = lru_cache(maxsize=1)(label_maps.load_labels)


def _panels(
    plan: CompletionPlan, chosen: Sequence[Chosen[MadeVolume]]
) -> tuple[list[pictures.Panel], list[str]]:
    """Return the panels in this order, and a sentence per volume that cannot be read, or whose sources changed."""
    reader = _Reader(plan.dataset)
    seen = {job.case.id: job.seen for job in plan.jobs}
    panels: dict[int, pictures.Panel] = {}
    unread: dict[int, str] = {}
    for place in sorted(range(len(chosen)), key=lambda it: chosen[it].item.case.id):
        volume, role = chosen[place]
        try:
            with require_unchanged(seen.get(volume.case.id, {})):
                panel = _panel(plan.places, reader, volume, role=role)
            panels[place] = panel
        except AttclError as error:
            unread[place] = f"No picture of {volume.target} of {volume.case.id}: {error.message}."
    return [panels[place] for place in sorted(panels)], [unread[place] for place in sorted(unread)]


def _panel(
    places: Places, reader: _Reader, volume: MadeVolume, *, role: str = ""
) -> pictures.Panel:
    """Return a volume beside its sources, each in its own window."""
    dataset, case = places.dataset, volume.case
    names = [name for name in (*volume.sources, *volume.guides) if name in case.files]
    files = {name: tuple(dataset.paths(case, name)) for name in names}
    read = {name: reader.volume(paths) for name, paths in files.items()}
    made = tuple(places.output / file for file in places.files(case, volume.target))
    synthetic = reader.volume(made)
    for name, each in read.items():
        if each.data.shape != synthetic.data.shape:
            raise AttclError(
                f"{files[name][0]}: {each.data.shape} slices, rows and columns, "
                f"expected {synthetic.data.shape} as {made[0]} has",
                "put back the file that the volume was made from, or make the volume again with --overwrite",
                code="shape-differs",
            )
    brain = intensities.brain_of([each.data for each in read.values()] or [synthetic.data])
    tumour = _tumour(places, reader, case, next(iter(files.values()), ()))
    return pictures.Panel(
        case=case.id,
        source_modality=volume.made_from,
        target_modality=volume.target,
        tiles=pictures.compared(
            volume.target,
            {
                name: intensities.in_own_window(each.data, each.data != 0)
                for name, each in read.items()
            },
            intensities.in_own_window(synthetic.data, synthetic.data != 0),
            None,
            brain,
        ),
        brain=pictures.within(brain, volume.slices),
        outlines={} if tumour is None else {"tumour": tumour},
        spacing_mm=synthetic.grid.axial_spacing_mm,
        scores=volume.scores,
        affine=synthetic.grid.axial_affine,
        role=role,
    )


def _tumour(places: Places, reader: _Reader, case: Case, beside: tuple[Path, ...]) -> Any:
    """Return where the label map of a case is not 0; None if there is none, or none that can be read."""
    if not case.segmentation or not beside:
        return None
    try:
        files = tuple(places.dataset.root / file for file in case.segmentation)
        return reader.labels(files, beside=beside) > 0
    except AttclError:  # it is no part of the completion; `attcl info` says what is wrong with it
        return None


# --- Words ----------------------------------------------------------------------------------------


def _verdict(made: Sequence[MadeVolume], failed: Mapping[str, AttclError], caveat: str = "") -> str:
    """Return in a few sentences what is there, and what to look at first: of volumes by falling doubt."""
    cases = {volume.case.id for volume in made}
    weights = dict.fromkeys(volume.weights for volume in made)
    words = "No volume was made."
    if made:
        words = f"{counted(len(made), 'volume')} of {counted(len(cases), 'case')}, made by {some(weights)}."
    far = {volume.case.id for volume in made if volume.doubt.far}
    if far:
        words += f" {counted(len(far), 'case')} unlike the training data ({some(sorted(far))}): check these first."
    elif made and all(volume.doubt.far is False for volume in made):
        words += " No case is unlike the training data"
        words += (
            f"; farthest from it: {made[0].target} of {made[0].case.id}" * (len(made) > 1) + "."
        )
    spans = [span_in_words(it.slices) for it in made if it.slices]
    if spans:
        were = "was" if len(spans) == 1 else "were"
        words += f" {counted(len(spans), 'volume')} {were} made in slices {some(dict.fromkeys(spans))} only."
    words += f" {caveat}." if caveat else ""
    if failed:
        words += f" {counted(len(failed), 'case')} failed."
    return words


def _caveat(
    plan: CompletionPlan, made: Sequence[MadeVolume], learned: Mapping[str, Sequence[str]]
) -> str:
    """Return how many of the patients published weights were trained on, in words; "" if none."""
    return provenance.describe_training_patients(
        {case for cases in learned.values() for case in cases},
        {volume.case.id for volume in made},
        plan.dataset.patient_of,
    )


def _facts(
    plan: CompletionPlan, made: Sequence[MadeVolume], failed: Mapping[str, AttclError]
) -> dict[str, str]:
    facts = {
        "volumes": str(len(made)),
        "cases": f"{len({volume.case.id for volume in made})} of {len(plan.dataset.cases)}",
    }
    if failed:
        facts["failed"] = some(failed)
    hashes = dict.fromkeys((volume.weights, volume.sha256) for volume in made)
    for name, sha256 in hashes:
        facts["weights" if len(hashes) == 1 else f"weights {name}"] = (
            f"{name}, SHA-256 {sha256[:_SHA_SHOWN]}"
        )
    methods = dict.fromkeys(title_of(model.info.settings) for model in plan.models)
    return facts | ({"method": ", ".join(methods)} if methods else {}) | {"attcl": __version__}


def _patterns(plan: CompletionPlan, made: Sequence[MadeVolume]) -> Patterns:
    """Return which modalities the cases have together, and what was made of each."""
    targets = Counter(volume.target for volume in made)
    words = ", ".join(f"{counted(targets[name], 'volume')} of {name}" for name in targets)
    return patterns_of(
        (case.files for case in plan.dataset.cases),
        plan.dataset.modalities,
        heading="Missing modalities, before completion",
        hint=f"Made: {words}." if words else "",
    )


def _rows(made: Sequence[MadeVolume], failed: Mapping[str, AttclError]) -> list[dict[str, Cell]]:
    several = len({volume.weights for volume in made}) > 1
    rows: list[dict[str, Cell]] = [
        {"case": case, "source": "", "modality": "", "status": f"failed: {error.message}"}
        for case, error in failed.items()
    ]
    for volume in made:
        row: dict[str, Cell] = {
            "case": volume.case.id,
            "source": volume.made_from,
            "modality": volume.target,
            "status": "unlike the training data" if volume.doubt.far else "made",
            **volume.scores,
        }
        rows.append(row | ({"weights": volume.weights} if several else {}))
    return rows


def _methods_paragraph(plan: CompletionPlan, made: Sequence[MadeVolume]) -> str:
    """Return what a paper may say of these volumes."""
    if not made:
        return "No volume was made."
    targets = Counter(volume.target for volume in made)
    words = [
        f"Missing volumes ({', '.join(f'{count} {name}' for name, count in targets.items())}) of "
        f"{counted(len({volume.case.id for volume in made}), 'case')} were synthesised with attcl {__version__}."
    ]
    hashes = {volume.sha256 for volume in made}
    used = [model for model in plan.models if model.sha256 in hashes or plan.manner.average]
    for model in used:
        info = model.info
        words.append(
            f"The weights {model.name} (SHA-256 {model.sha256[:_SHA_SHOWN]}) were trained by "
            f"{title_of(info.settings)} on {counted(len(info.trained_on), 'case')} for "
            f"{counted(info.steps, 'step')}."
        )
    words.append(_sources_sentence(plan, made))
    words += _manner_sentences(plan.manner, used, made)
    return " ".join(words)


def _sources_sentence(plan: CompletionPlan, made: Sequence[MadeVolume]) -> str:
    """Return what the volumes were made from; a rule is claimed only if all of them follow it."""
    frequent = {
        case.id: next((name for name in plan.modal_list if name in case.files), None)
        for case in plan.dataset.cases
    }
    if all(volume.sources == (frequent[volume.case.id],) for volume in made):
        return "Each volume was made from one source modality, the most frequent one that the case has."
    return "Each volume was made from the modalities that the table names as its source."


def _manner_sentences(
    manner: Manner, models: Sequence[Weights], made: Sequence[MadeVolume]
) -> list[str]:
    """Return how the volumes were made, as asked for and as the weights have it."""
    infos = [model.info for model in models]
    span = f" {manner.slices[0]} to {manner.slices[1] - 1}" if manner.slices else ""
    words = [f"Axial slices{span} were translated."]
    if manner.planes == "three":
        words = ["Axial, coronal and sagittal slices were translated and their mean was written."]
        words += [f"Only axial slices{span} were written."] if span else []
    if manner.samples:
        words.append(f"The mean of {counted(manner.samples, 'style sample')} was written.")
    if any(manner.mirrors(info) for info in infos):
        words.append("Passes over slices and their mirror images were averaged.")
    if manner.average and len(models) > 1:
        words.append("All weights that can make a volume were averaged.")
    words.append("Sources were scaled by their 0.5 and 99.5 percentiles inside the brain.")
    carried = {volume.intensities for volume in made}
    words += [text for name, text in _INTENSITIES_IN_WORDS.items() if name in carried]
    if any(manner.evens(info) for info in infos):
        words.append("Steps between neighbouring slices were evened out.")
    if any(volume.guides for volume in made):
        words.append(
            "Volumes were sharpened by those modalities of their case that the network was not given, since no "
            "training case had them together with the others (guided filter, He, Sun and Tang 2010)."
        )
    return words


def _citations(models: Sequence[Weights]) -> list[str]:
    """Return what to cite: the methods, what the weights' training data asks for, and attcl."""
    cited: dict[str, None] = {}
    for model in models:
        settings = model.info.settings
        cited |= dict.fromkeys(references(settings.method, variant_of(settings)))
        card = bundled.read_card(model.path)
        if card is not None:
            cited |= dict.fromkeys(card.citations)
            cited |= dict.fromkeys([f"Training data of {model.name}: {card.terms}"])
    return [*cited, f"attcl {__version__} (CITATION.cff)."]


def _lines(document: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {value}" for name, value in document.items())
