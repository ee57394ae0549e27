"""Checks of a completion before the first costly second: places, models, results of earlier runs, room on the disk.

Each function returns the problems it finds, or raises for wrong usage; `plan` decides what is done about them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from attcl_cli.completion.jobs import (
    INTENSITIES,
    OLD_MANNER,
    PLANES,
    Job,
    Maker,
    Manner,
    Places,
    not_made_by_attcl,
    says_made_by_attcl,
    uncertainty_file,
)
from attcl_cli.confined import leads_out
from attcl_cli.data import derivative, volumes
from attcl_cli.data.dataset import Case, Dataset, guides_in, read_side_car, sources_in
from attcl_cli.data.layouts import SUBMISSIONS, Layout
from attcl_cli.data.originals import refuse_among_originals
from attcl_cli.data.synthetic import sources_gone, span_in_words
from attcl_cli.errors import AttclError, UsageError, counted, nearest, quoted, some
from attcl_cli.files import is_within, lack_of_room, require_folder, sha256
from attcl_cli.methods.bundled import option_of
from attcl_cli.methods.weights import Weights
from attcl_cli.run_record import read_record, require_no_other

_COMPRESSED_SHARE = 0.25  # of a volume's bytes; generous, real ones take about a seventh
_FEWEST_SAMPLES = 2  # that have a standard deviation
_MOST_ANISOTROPY = (
    1.2  # longest over shortest edge of voxels whose coronal slices look like axial ones
)


def require_sound_request(
    places: Places,
    models: Sequence[Weights],
    manner: Manner,
    originals: Sequence[Path],
    *,
    targets: Sequence[str] = (),
) -> None:
    """Check what was asked for, before any case is looked at.

    Args:
        places: of the dataset and the output.
        models: the weights.
        manner: how volumes are to be made.
        originals: folders that must not be written into.
        targets: the modalities that were asked for; empty: all.

    Raises:
        UsageError: a place that must not be written into, or options that do not fit the layout or the method.
    """
    require_possible(places, manner, originals)
    _require_styles(models, manner)
    if manner.intensities in ("stretched", "matched"):
        _require_quantiles(models, targets, manner.intensities)


def require_possible(places: Places, manner: Manner, originals: Sequence[Path]) -> None:
    """Check what was asked for as far as no weights are needed; arguments and errors as `require_sound_request`."""
    for folder in (places.output, places.records):
        refuse_among_originals(folder, originals, flag="--cpl")
        require_folder(folder, flag="--cpl")
    require_no_other(places.records / "run.json", "complete", flag="--cpl")
    _refuse_mixture(places)
    _require_samples(places.dataset, manner)
    _require_span(manner)
    _require_choice("--planes", manner.planes, PLANES)
    _require_choice("--intensities", manner.intensities, INTENSITIES)
    if manner.planes != "axial":
        places.dataset.layout.require_volumes(f"--planes {manner.planes}")
    if manner.even:
        places.dataset.layout.require_volumes("--even")
    if manner.guide:
        places.dataset.layout.require_volumes("--guide")
    if places.naming is not None:
        _require_naming(places.dataset, places.naming, manner)


def _require_span(manner: Manner) -> None:
    """Refuse slices that are none: `attcl complete` reads them from text, a program gives numbers."""
    first, stop = manner.slices or (0, 1)
    if not 0 <= first < stop:
        raise UsageError(
            f"--slices: {first}:{stop}, expected FIRST:STOP such as 31:125",
            "for example --slices 31:125",
            code="malformed-slices",
        )


def cannot_make(models: Sequence[Weights], unmade: Mapping[str, Sequence[str]]) -> list[AttclError]:
    """Return a problem for each target that no model can make from what some cases have.

    Args:
        models: the weights.
        unmade: case id -> targets.
    """
    cases: dict[str, list[str]] = {}
    for case, targets in unmade.items():
        for target in targets:
            cases.setdefault(target, []).append(case)
    problems = []
    for target, names in sorted(cases.items()):
        able = [model for model in models if target in model.info.rule.targets]
        if able:
            reasons = "; ".join(
                f"{model.path} makes {target} from {model.info.rule.describe(target)}"
                for model in able
            )
            reason = f"{reasons}, which these cases lack"
        else:
            reason = "; ".join(
                f"{model.path} makes {', '.join(model.info.rule.targets)}, not {target}"
                for model in models
            )
        problems.append(
            AttclError(
                f"{reason}, expected a model for {target} of {counted(len(names), 'case')}: {some(names)}",
                "name further weights, which serve these: -w FIRST -w SECOND; choose other modalities with --target; "
                "or complete only the other cases: --keep-going",
                code="no-model-for-target",
            )
        )
    return problems


def synthetic_sources(dataset: Dataset, jobs: Sequence[Job], manner: Manner) -> list[AttclError]:
    """Return a problem if a source was synthesised: a volume made from it would be called the patient's own."""
    names = dict.fromkeys(
        f"{name} of {job.case.id}"
        for job in jobs
        for name in dataset.synthetic(job.case, (*job.sources, *manner.guides_of(job.makers)))
    )
    if not names:
        return []
    return [
        AttclError(
            f"{dataset.root}: {some(names)}: synthetic, as the side-car says, expected real sources",
            "complete the originals: --ori ORIGINALS",
            code="synthetic-source",
        )
    ]


def slices_beyond(dataset: Dataset, case: Case, manner: Manner) -> list[AttclError]:
    """Return a problem if a case has none of the slices that were asked for."""
    if manner.slices is None:
        return []
    first, stop = manner.slices
    depth = depth_of(dataset, case)
    if first < depth:
        return []
    return [
        UsageError(
            f"--slices: {first}:{stop}, but {case.id} has {counted(depth, 'slice')}, expected some of these",
            "slices are counted from 0, at the feet",
            code="slices-beyond-volume",
        )
    ]


def depth_of(dataset: Dataset, case: Case) -> int:
    """Return how many axial slices the volumes of a case have."""
    return volumes.read_grid(dataset.paths(case, next(iter(case.files)))).axial_shape[0]


def not_isotropic(dataset: Dataset, case: Case, manner: Manner) -> list[AttclError]:
    """Return a problem if slices of all planes are asked for, and those of two planes differ in resolution."""
    if manner.planes == "axial":
        return []
    paths = dataset.paths(case, next(iter(case.files)))
    spacing_mm = volumes.read_grid(paths).axial_spacing_mm
    if max(spacing_mm) <= _MOST_ANISOTROPY * min(spacing_mm):
        return []
    z, y, x = spacing_mm
    return [
        AttclError(
            f"{paths[0]}: voxels of {x:.3g}x{y:.3g}x{z:.3g} mm, "
            "expected edges that are equal within 20 % for --planes three",
            "use --planes axial, or resample the case",
            code="voxels-not-isotropic",
        )
    ]


def unproven(
    places: Places,
    case: Case,
    target: str,
    files: tuple[PurePosixPath, ...],
    makers: Sequence[Maker],
    manner: Manner,
) -> tuple[PurePosixPath, ...]:
    """Return the existing files of a volume without a side-car, if each says that it is what this run would write.

    Such are left if a folder is removed while a run writes into it. Whether it is true is known when the volume is
    made: then they are compared with it, and never written. () if there is a side-car, or anything else lies there.
    """
    if not files or not makers or places.side_car(case, target).exists():
        return ()
    whole = places.files(case, target)
    description = manner.description(makers, target)
    made = places.dataset.layout.files_of_slices(whole, manner.slices)
    known = (
        file in made and volumes.is_described(places.output / file, description) for file in files
    )
    return files if all(known) else ()


def unlike_existing(
    places: Places,
    case: Case,
    target: str,
    existing: Sequence[PurePosixPath],
    makers: Sequence[Maker],
    manner: Manner,
    *,
    overwrite: bool,
) -> list[AttclError]:
    """Return a problem if a result of an earlier run is not whole, or was made in another way.

    What attcl did not make is never replaced, not even with --overwrite: it may be an original.
    """
    side_car = places.side_car(case, target)
    try:
        document = read_side_car(side_car)
    except AttclError as error:
        return [error]
    if not existing:
        return _strange_beside(places, case, target, document)
    present = [places.output / file for file in existing]
    if document.get("synthetic") is not True:
        said = " that says how it was made" if side_car.exists() else ""
        return [not_made_by_attcl(present[0], side_car, said)]
    if overwrite or places.lacks_uncertainty(case, target, manner):  # it will be written again
        strange = [it for path in present for it in _of_another_program(path)]
        strange += _strange_beside(places, case, target, document)
        if overwrite or strange:
            return strange[:1]
    return _made_before(places, case, target, present, document, makers, manner)


def _strange_beside(
    places: Places, case: Case, target: str, document: Mapping[str, Any]
) -> list[AttclError]:
    """Return a problem if what would be written beside a volume lies there already, and attcl did not write it.

    Args:
        places: of the output.
        case: the case.
        target: the modality.
        document: its side-car; {} if there is none.
    """
    side_car = places.side_car(case, target)
    deviation = places.output / uncertainty_file(places.files(case, target)[0])
    ours = document.get("synthetic") is True or document.get("Description") == derivative.OF_LINK
    strange = [side_car] if side_car.exists() and not ours else []
    said = says_made_by_attcl(deviation) if deviation.exists() else True
    own = document.get("uncertainty") is True if said is None else said  # None: it is damaged
    strange += [] if own else [deviation]
    return [
        AttclError(
            f"{path}: not written by attcl, expected no other file in the place of attcl's own",
            "choose another --cpl, or move that file away",
            code="not-made-by-attcl",
        )
        for path in strange[:1]
    ]


def _of_another_program(path: Path) -> list[AttclError]:
    """Return a problem if the header of a volume or slice does not say that attcl made it; a damaged one may go."""
    if says_made_by_attcl(path) is not False:
        return []
    return [
        AttclError(
            f"{path}: its header does not say that attcl made it, expected a synthetic volume, as its side-car says",
            "choose another --cpl, or move that file away",
            code="not-made-by-attcl",
        )
    ]


def _made_before(
    places: Places,
    case: Case,
    target: str,
    present: Sequence[Path],
    document: Mapping[str, Any],
    makers: Sequence[Maker],
    manner: Manner,
) -> list[AttclError]:
    """Return a problem if a volume is not whole, or was made in another way than this run would make it."""
    try:
        grid = volumes.read_grid(present)
    except AttclError as error:
        hint = "attcl writes whole files, so it was changed since; make it again with --overwrite"
        return [AttclError(error.message, hint, code=error.code)]
    difference = _made_otherwise(document, makers, manner, target)
    before, own = document.get("background", "auto"), places.dataset.background
    if not difference and before != own:
        difference = _with_another_option("background", before, own)
    if not difference:
        difference = _from_other_sources(document, places.dataset, case)
    if not difference:
        return _on_another_grid(present[0], grid, places.dataset, case)
    return [
        AttclError(
            f"{present[0]}: {difference}",
            f"{_the_same_weights(document, makers, manner)}choose another --cpl, or make it again with --overwrite",
            code="made-in-another-way",
        )
    ]


def _the_same_weights(document: Mapping[str, Any], makers: Sequence[Maker], manner: Manner) -> str:
    """Return how to go on with the weights of a volume, as the first words of a hint; "" if that is not the reason."""
    before = document.get("weights") or {}
    name, sha256 = str(before.get("name")), str(before.get("sha256"))
    averaged = bool(document.get("averaged")) or manner.average
    if averaged or sha256 == makers[0].weights.sha256:
        return ""
    option = option_of(name, sha256)
    if not option:
        return ""
    given = makers[0].sources  # () if none of the weights that were named can make it
    how = "go on with the same weights:" if given else "name the weights that made it, too:"
    return f"{how} -w {quoted(option)}; or "


def _on_another_grid(
    path: Path, grid: volumes.Grid, dataset: Dataset, case: Case
) -> list[AttclError]:
    """Return a problem if a volume does not lie on the grid of its case: of another dataset with the same case ids.

    Of PNG slices only the size is compared; some of them may be missing.
    """
    try:
        expected = volumes.read_grid(dataset.paths(case, next(iter(case.files)))[:1])
    except AttclError:  # of a source; nothing is made from it if all is done
        return []
    if dataset.layout.sliced:
        grid = replace(grid, shape=(*grid.shape[:2], 1))
    difference = grid.differs_from(expected)
    if not difference:
        return []
    return [
        AttclError(
            f"{path}: made on another grid than its case has ({difference}), expected one grid",
            "if it was made from another dataset with the same names, choose another --cpl; "
            "otherwise make it again with --overwrite",
            code="grids-differ",
        )
    ]


def _from_other_sources(document: Mapping[str, Any], dataset: Dataset, case: Case) -> str:
    """Return how the sources of a volume differ from a case's files; "" if the case has them.

    A modality that was hidden since must not show through a volume that was made from it. One that was added since is
    no reason to make the volume again. If names do not tell whose a volume is, its sources are compared by content: two
    patients completed into one folder would have one volume.
    """
    named = dataset.layout.names_cases
    # A side-car without sources says nothing; that is too little if names do not tell the patient.
    sources = [it for it in (*sources_in(document), *guides_in(document)) if it or not named]
    names = [str(it.get("modality", "unknown sources")) for it in sources]
    gone = sources_gone(names, case)
    if gone and not named:
        return f"{gone}; it may be of another patient"
    if gone or named:
        return gone
    for name, source in zip(names, sources, strict=True):
        path = dataset.paths(case, name)[0]
        if sha256(path) != source.get("sha256"):
            return f"made from another {name}, expected {path}"
    return ""


def other_sources(
    places: Places, case: Case, target: str, makers: Sequence[Maker]
) -> list[AttclError]:
    """Return a problem if the slices of a volume that are there were made from other sources than the rest would be."""
    document = read_side_car(places.side_car(case, target))
    before = {str(it["modality"]) for it in sources_in(document) if "modality" in it}
    now = {name for maker in makers for name in maker.sources}
    if not before or not now or before == now:
        return []
    return [
        AttclError(
            f"{places.output / places.files(case, target)[0].parent}: some slices of {target} of {case.id} were made "
            f"from {', '.join(sorted(before))}, expected {', '.join(sorted(now))} as the others",
            "make all its slices again with --overwrite",
            code="made-in-another-way",
        )
    ]


def other_style(places: Places, job: Job) -> list[AttclError]:
    """Return a problem for each volume of which some slices are there that are stored in another way.

    That happens if the dataset's volumes of the modality changed since.
    """
    problems = []
    for target, style in job.styles.items():
        whole = places.files(job.case, target)
        if len(job.outputs[target]) == len(whole):
            continue
        kept = [file for file in whole if file not in job.outputs[target]]
        present = [path for path in (places.output / file for file in kept) if path.exists()]
        if not present:
            continue
        side_car = read_side_car(places.side_car(job.case, target))
        before = side_car.get("stored", style.document())
        dtype = volumes.read_grid(present[:1]).dtype
        if dtype != style.dtype or before != style.document():
            low, high = style.range
            problems.append(
                AttclError(
                    f"{present[0].parent}: slices of {job.case.id} are {dtype} in another range, "
                    f"expected {style.dtype} from {low:.4g} to {high:.4g} as the {target} of the dataset",
                    "make all its slices again with --overwrite",
                    code="made-in-another-way",
                )
            )
    return problems


def same_making(problem: AttclError) -> str:
    """Return what volumes have in common that were made in another way; otherwise the problem alone."""
    reason = problem.message.split(": ", 1)[-1]
    return reason if reason.startswith("made ") else problem.message


def escapes(output: Path, file: PurePosixPath) -> list[AttclError]:
    """Return a problem if a file would be written outside the output folder, through a link."""
    path = output / file
    if path.is_symlink() or not is_within(path.parent, output):
        return [leads_out(path, output)]
    return []


def too_little_room(places: Places, jobs: Sequence[Job], manner: Manner) -> list[AttclError]:
    """Return a problem if the disk has no room for the volumes, and for their standard deviations."""
    dataset, output = places.dataset, places.output
    needed = 0.0
    for job in jobs:
        shape = volumes.read_grid(dataset.paths(job.case, job.sources[0])).shape
        share = 1 if dataset.extension_of(job.case) == ".nii" else _COMPRESSED_SHARE
        stored = sum(style.dtype.itemsize for style in job.styles.values())
        if manner.uncertainty:
            stored += len(job.outputs) * np.dtype(np.float32).itemsize
        needed += float(np.prod(shape, dtype=np.int64)) * stored * share
    return lack_of_room(output, needed, "the volumes", flag="--cpl")


def _made_otherwise(
    document: Mapping[str, Any], makers: Sequence[Maker], manner: Manner, target: str
) -> str:
    """Return how the volume of this side-car was made, if not as this run would make it; otherwise ""."""
    said = document.get("target", target)
    if said != target:
        return f"a synthetic {said}, as its side-car says, expected a synthetic {target}"
    maker, weights = document.get("weights", {}), makers[0].weights
    sha256 = str(maker.get("sha256"))
    if sha256 != weights.sha256:
        return (
            f"made by weights {sha256[:12]} ({maker.get('name')}), "
            f"expected {weights.sha256[:12]} ({weights.name})"
        )
    expected = manner.document_of(makers, target)
    averaged, others = (it.get("averaged", []) for it in (document, expected))
    if [it.get("sha256") for it in averaged] != [it["sha256"] for it in others]:
        return (
            f"made by {_names(averaged, weights)}, expected {_names(others, weights)} (--average)"
        )
    guides = [str(it.get("modality")) for it in guides_in(document)]
    wanted = [str(name) for name in expected["sharpened_by"]]
    if guides != wanted:
        before, after = (", ".join(names) or "nothing" for names in (guides, wanted))
        return f"made sharpened by {before}, expected by {after} (--guide, --no-guide)"
    for name, value in expected.items():
        before = document.get(name, OLD_MANNER.get(name))
        if name not in {"averaged", "sharpened_by"} and before != value:
            return _with_another_option(name, before, value)
    return ""


def _names(averaged: Sequence[Mapping[str, Any]], weights: Weights) -> str:
    names = [str(it.get("name")) for it in averaged]
    return f"the mean of {', '.join(names)}" if names else f"{weights.name} alone"


def _with_another_option(name: str, before: object, value: object) -> str:
    if name == "slices":
        before, value = (
            span_in_words((it[0], it[1])) if isinstance(it, list) else it for it in (before, value)
        )
    if name in {"mirror", "even"}:
        before, value = (f"--{name}" if it else f"--no-{name}" for it in (before, value))
        return f"made with {before}, expected {value}"
    return f"made with --{name} {before}, expected {value}"


def _require_choice(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(
            f"{flag}: {value!r}, expected {' or '.join(known)}",
            nearest(value, known),
            code="unknown-choice",
        )


def _require_samples(dataset: Dataset, manner: Manner) -> None:
    if manner.uncertainty and manner.samples < _FEWEST_SAMPLES:
        raise UsageError(
            f"--uncertainty: of {counted(manner.samples, 'sample')}, expected 2 or more",
            "add --samples 10",
            code="too-few-samples",
        )
    if manner.uncertainty:
        dataset.layout.require_volumes("--uncertainty")


def _require_styles(models: Sequence[Weights], manner: Manner) -> None:
    """Refuse samples of weights that draw none."""
    for weights in models:
        if manner.samples and not weights.info.method.styled:
            raise UsageError(
                f"--samples: {manner.samples} with weights of {weights.info.settings.method}, "
                "which has one style per volume, expected 0",
                "leave it out, or choose weights of attcl-gan with -w",
                code="method-without-styles",
            )


def _require_quantiles(models: Sequence[Weights], targets: Sequence[str], asked: str) -> None:
    """Refuse to bend intensities to quantiles that some weights do not have."""
    for weights in models:
        made = [name for name in weights.info.rule.targets if not targets or name in targets]
        lacking = [name for name in made if name not in weights.info.quantiles]
        if lacking:
            raise UsageError(
                f"--intensities: {asked}, but {weights.path} has no quantiles of {', '.join(lacking)}, "
                "expected those of every target",
                "use --intensities auto, which bends those that have them",
                code="weights-without-quantiles",
            )


def _require_naming(dataset: Dataset, naming: Layout, manner: Manner) -> None:
    """Refuse what a challenge does not take: it takes NIfTI volumes of its own cases and modalities alone."""
    flag = f"--layout {naming.name}"
    dataset.layout.require_volumes(flag)
    if manner.uncertainty:
        raise UsageError(
            f"{flag}: with --uncertainty, expected volumes alone",
            "leave one of them out",
            code="options-exclude-each-other",
        )
    pattern = re.compile(naming.fields["case"])
    strange = [case.id for case in dataset.cases if not pattern.fullmatch(case.id)]
    if strange:
        raise UsageError(
            f"{flag}: case {strange[0]!r} ({len(strange)} of {len(dataset.cases)}), "
            "expected cohort-ID-timepoint such as BraTS-GLI-00001-000",
            "name the cases as the challenge does, or leave --layout out",
            code="case-name-not-of-challenge",
        )
    unknown = [name for name in dataset.modalities if name not in naming.tokens]
    if unknown:
        raise UsageError(
            f"{flag}: modality {unknown[0]}, expected {', '.join(naming.tokens)}",
            "leave it out",
            code="modality-not-of-challenge",
        )


def _refuse_mixture(places: Places) -> None:
    """Refuse a folder of the other kind: a challenge's folder holds its volumes and nothing else."""
    output, naming = places.output, places.naming
    if naming is None:
        records = Places(places.dataset, output, next(iter(SUBMISSIONS.values()))).records
        layouts = [
            read_record(records, path.name).get("config", {}).get("layout")
            for path in sorted(records.glob("run*.json"))  # of parts, too
        ]
        layout = next((it for it in layouts if isinstance(it, str) and it in SUBMISSIONS), None)
        if layout is not None and output.is_dir():
            raise UsageError(
                f"--cpl: {output} holds what --layout {layout} wrote, expected another folder for the dataset's names",
                "choose another --cpl",
                code="output-of-another-layout",
            )
        return
    pattern = naming.pattern()
    if output.is_dir():
        strange = sorted(
            path.name
            for path in output.iterdir()
            if not pattern.fullmatch(path.name) and not path.name.startswith(".")  # half written
        )
        if strange:
            raise UsageError(
                f"--cpl: {output} holds {strange[0]}, expected a folder for {naming.name} alone",
                "choose another --cpl",
                code="output-of-another-layout",
            )
