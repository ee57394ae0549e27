"""Which weights there are, what their cards say, and which of them a dataset takes if none is named.

Leaves to `weights` how a file is found by its name, verified and loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.phantom_cohort import is_phantom
from attcl_cli.documents import Document, Finite, Items, is_name, validated
from attcl_cli.errors import AttclError, UsageError, counted, quoted, some
from attcl_cli.files import read_json
from attcl_cli.methods.sources import SourceRule, takes_one
from attcl_cli.methods.weights import (
    BUNDLED,
    WEIGHTS_FILE,
    Weights,
    find_weights,
    named_weights,
    note_of_folder,
)
from attcl_cli.run_record import read_record

Kind = Literal["patients", "phantom", "run", "other"]
"""What weights were made for: bundled ones of patients, any of phantoms, a run's, another file."""

RUNS = Path("runs")
"""The folder of runs, in the current folder."""

MOST_MB = 15
"""The size of the largest bundled file, in megabytes (10^6 bytes)."""

_VOXEL_TOLERANCE = 0.2  # of the voxel size that the weights were trained at
# Share of the voxels on the six faces of a volume that are 0: 0.98 and more of 24 skull-stripped patients, 0.76 to 0.83
# of the volumes of one as the scanner left them.
_EMPTY_FACES = 0.9
_LOOKED_AT = 3  # cases whose background is looked at: a volume takes a tenth of a second


class CardScore(Document):
    """One row of the table of scores on a card."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="The patients that were scored.")
    sources: str = Field(description="What the volumes were made from, such as `flair, t2`.")
    target: str = Field(description="The modality that was made.")
    metric: str = Field(description="A metric of `attcl score`, and where: `ssim, brain`.")
    n: int = Field(gt=0, description="Volumes.")
    value: Finite = Field(description="The mean over the volumes.")
    beside: dict[str, Finite] = Field(
        default_factory=dict, description="The same of baselines and other methods, by name."
    )


class Card(Document):
    """What the card of bundled weights says beside what the file says of itself (`weights.save_weights`)."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["patients", "phantom"] = Field(description="What the weights are for.")
    title: str = Field(description="One line.")
    data: str = Field(description="What they were trained on.")
    terms: str = Field(description="Licence of the data, with its attribution.")
    citations: Items[str] = Field(description="Publications that the data's terms ask for.")
    split: str = Field(description="Which cases were trained on, which were held out.")
    hours: Finite = Field(gt=0, description="Time of training.")
    device: str = Field(description="What they were trained on.")
    voxel_mm: Finite = Field(gt=0, description="Edge of the isotropic voxels.")
    skull_stripped: bool = Field(description="Whether the background was 0.")
    scored: str = Field("", description="How: options of completion, what the baselines are.")
    scores: Items[CardScore] = Field(description="Scores on patients that were held out.")
    limits: Items[str] = Field(description="What the weights are not good for.")


@dataclass(frozen=True)
class Listed:
    """Weights that were found, sound or not.

    Attributes:
        name: that `-w` takes; of a run, its folder.
        path: the file.
        origin: `bundled`, `ATTCL_WEIGHTS` or `runs`.
        kind: what they were made for.
        weights: verified; None if the file is damaged.
        card: what the card adds; None if it adds nothing.
        status: how the run ended, in the words of its `run.json`; "" if these are no run's, or it does not say.
        problem: why the file cannot be used; None if it can.
    """

    name: str
    path: Path
    origin: str
    kind: Kind
    weights: Weights | None
    card: Card | None
    status: str = ""
    problem: AttclError | None = None

    @property
    def finished(self) -> bool:
        """Return whether nothing says that more training was meant."""
        return self.status in {"", "done"}


@dataclass(frozen=True)
class Choice:
    """Weights that nobody named.

    Attributes:
        weights: those that are taken.
        origin: `newest run` or `bundled`.
        training: how they were trained, in a few words.
        notes: what was passed over, and why; damaged files among it.
    """

    weights: Weights
    origin: Literal["newest run", "bundled"]
    training: str
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return what the first line of a command calls them."""
        name = self.weights.name if self.origin == "bundled" else self.weights.path
        return f"{name} ({self.training})"


def read_card(path: Path) -> Card | None:
    """Return what the card of a weights file adds; None if there is no card, or it adds nothing.

    Raises:
        AttclError: the card is no JSON, or what it adds is incomplete.
    """
    file = path.with_suffix(".json")
    document: Any = read_json(file, default={})
    if not isinstance(document, dict) or "kind" not in document:
        return None
    fields = {name: document[name] for name in Card.model_fields if name in document}
    return validated(
        Card,
        fields,
        name=file,
        expected="the card of bundled weights",
        hint="copy the card again from its source",
        code="card-incomplete",
    )


def kind_of(path: Path) -> Kind:
    """Return what a weights file was made for, as its card or its run says."""
    if path.name == WEIGHTS_FILE:
        return "phantom" if _record_of(path.parent).get("simulated") is True else "run"
    if path.stem == BUNDLED:  # also without its card
        return "phantom"
    card = read_card(path)
    return card.kind if card is not None else "other"


def list_weights(*, runs: Path = RUNS) -> list[Listed]:
    """Return all weights that are found: named ones, then the runs below a folder, the newest first."""
    named = [_listed(name, path, _origin(path)) for name, path in named_weights().items()]
    return named + [_listed(str(path.parent), path, "runs") for path in _runs(runs)]


def look_up(name: str, *, flag: str = "weights") -> Listed:
    """Return weights by name, file or run's folder, as `list_weights` does.

    Raises:
        UsageError: there is nothing of that name.
    """
    try:
        path = find_weights(name, flag=flag).path
    except UsageError:
        raise
    except AttclError:  # damaged: `problem` says how
        path = named_weights().get(name) or Path(name)
        path = path / WEIGHTS_FILE if (path / WEIGHTS_FILE).is_file() else path
    run = path.name == WEIGHTS_FILE
    return _listed(name, path, "runs" if run else _origin(path))


def option_of(name: str, sha256: str, *, runs: Path = RUNS) -> str:
    """Return what `-w` takes for weights that a side-car names; "" if they are not found (any more)."""
    if not is_name(name):
        return ""
    places = {name: named_weights().get(name), str(runs / name): runs / name / WEIGHTS_FILE}
    for option, path in places.items():
        if path is None or not path.is_file():
            continue
        with suppress(AttclError):
            card = read_json(path.with_suffix(".json"), default={})
            if isinstance(card, dict) and card.get("sha256") == sha256:
                return option
    return ""


def newest_finished_run(*, runs: Path = RUNS) -> Path | None:
    """Return the weights file of the run that wrote one last, of those that are finished; None if there is none."""
    return next((path for path in _runs(runs) if _status(path.parent) in {"", "done"}), None)


def choose_weights(
    dataset: Dataset, targets: Collection[str] = (), *, runs: Path = RUNS, flag: str = "--weights"
) -> Choice:
    """Return the weights that a dataset takes if none are named.

    The newest finished run that knows the dataset's modalities and makes what is missing; otherwise bundled weights of
    patients that fit its preparation, those of many sources first. Weights of phantoms are taken for phantoms alone,
    and bundled ones of them never.

    Args:
        dataset: the dataset to complete.
        targets: modalities to make that no case may have.
        runs: the folder of runs.
        flag: the option that names weights.

    Raises:
        UsageError: nothing fits.
        AttclError: the newest run that would be taken is damaged, or weights that come with attcl are.
    """
    expected = dataset.including(targets)
    missing = {name for case in expected.cases for name in expected.missing(case)}
    wanted = missing & set(targets) if targets else missing
    if dataset.alone and not targets:
        wanted |= set(dataset.absent)  # a single case cannot show what others have
    notes: list[str] = []
    for path in _runs(runs):
        reason = _against_run(path, expected, wanted)
        if not reason:
            weights = find_weights(str(path))
            others = _also_fitting(dataset, expected, wanted)
            return Choice(weights, "newest run", _training_of(weights), (*notes, *others))
        notes.append(f"{path.parent} {reason}")
    notes += [note] if (note := note_of_folder()) else []
    fitting, against = _fitting(dataset, expected, wanted)
    notes += against
    if not fitting:
        why = f": {'; '.join(notes)}" if notes else ""
        unseen = sorted(wanted.difference(*(case.files for case in dataset.cases)))
        step = (
            f"no case has {', '.join(unseen)}, so that training on this dataset does not help: train on one that has it"
            if unseen
            else f"train on this dataset: attcl train --data {quoted(dataset.root)}"
        )
        raise UsageError(
            f"{flag}: no weights given, and none of those found fit {dataset.root}{why}, expected weights for it",
            f"{step}; or name weights with -w (attcl weights list shows them)",
            code="no-weights",
        )
    training = f"bundled, trained on {counted(len(fitting[0].info.trained_on), 'patient')}"
    return Choice(fitting[0], "bundled", training, tuple(notes))


def _fitting(
    dataset: Dataset, expected: Dataset, wanted: set[str]
) -> tuple[list[Weights], list[str]]:
    """Return the named weights of patients that fit a dataset, those of many sources first; and what the others lack.

    Args:
        dataset: the dataset to complete.
        expected: the same with the modalities that are asked for and no case has.
        wanted: modalities to make.

    Raises:
        AttclError: weights that come with attcl are damaged.
    """
    fitting: list[Weights] = []
    against: list[str] = []
    lacking = [case for case in dataset.cases if wanted.intersection(expected.missing(case))]
    preparation = _Preparation(dataset, lacking or dataset.cases)
    for name, path in named_weights().items():
        try:
            card = read_card(path)
            if card is None or card.kind != "patients":
                continue
            weights = find_weights(name)
        except AttclError as error:
            if _origin(path) == "bundled":
                raise  # others in their place would be a worse answer than none
            against.append(f"{name} is damaged: {error.message}")
            continue
        reason = _against_modalities(weights, expected, wanted)
        reason = reason or _against_preparation(preparation, card)
        if reason:
            against.append(f"{name} {reason}")
        else:
            fitting.append(weights)
    fitting.sort(key=lambda it: (takes_one(it.info.rule, it.info.modalities), it.name))
    return fitting, against


def _also_fitting(dataset: Dataset, expected: Dataset, wanted: set[str]) -> list[str]:
    """Return that named weights would fit, too, so that nobody takes a first trial's for want of better ones."""
    with suppress(AttclError):  # not what is asked for
        fitting, _ = _fitting(dataset, expected, wanted)
        return [f"{it.name}, which fits, too: -w {it.name}" for it in fitting[:1]]
    return []


def _training_of(weights: Weights) -> str:
    """Return how a run's weights were trained, in a few words, and how good they are on its validation cases."""
    info = weights.info
    training = f"{counted(info.steps, 'step')} on {counted(len(info.trained_on), 'case')}"
    judged = _record_of(weights.path.parent).get("validation")
    if not isinstance(judged, dict):
        return training
    if not judged:
        return f"{training}, not validated"
    ssim, copy = judged.get("ssim"), judged.get("copy_ssim")
    if not isinstance(ssim, float) or not isinstance(copy, float):
        return training
    return f"{training}, validation SSIM {ssim:.3f}, of a copy {copy:.3f}"


def refuse_patients(models: Sequence[Weights], dataset: Dataset, *, force: bool) -> str:
    """Check that weights of phantoms are used on phantoms alone.

    Args:
        models: the weights that were named.
        dataset: what they are to complete.
        force: allow it, with a warning.

    Returns:
        The warning; "" if there is nothing to warn of.

    Raises:
        AttclError: weights of phantoms for a dataset of others, without `force`.
    """
    simulated = [model.name for model in models if kind_of(model.path) == "phantom"]
    others = strangers(dataset) if simulated else []
    if not others:
        return ""
    found = f"weights {', '.join(simulated)} know simulated phantoms only"
    if force:
        return f"warning: {found}; they are of no use on patients"
    raise AttclError(
        f"{dataset.root}: {found}, and {some(others, most=3)} of {counted(len(dataset.cases), 'case')} are none, "
        "expected phantoms that attcl made",
        f"leave out -w, or train on this dataset: attcl train --data {quoted(dataset.root)}; "
        "to see the workflow only: --force",
        code="phantom-weights-on-patients",
    )


def strangers(dataset: Dataset) -> list[str]:
    """Return the ids of the cases that are no phantoms, as their volumes say."""
    return [case.id for case in dataset.cases if not is_phantom(dataset, case)]


def describe_sources(rule: SourceRule, modalities: Sequence[str]) -> str:
    """Return in words what a model makes volumes from: `one`, `any`, or each target with its sources."""
    if takes_one(rule, modalities):
        return "one"
    pairs = [(target, name) for target in rule.targets for name in modalities if name != target]
    if set(rule.targets) == set(modalities) and all(
        rule.sources_for(target, [name]) == (name,) for target, name in pairs
    ):
        return "any"
    return "; ".join(f"{target} from {rule.describe(target)}" for target in rule.targets)


def _listed(name: str, path: Path, origin: str) -> Listed:
    kind: Kind = "run" if path.name == WEIGHTS_FILE else "other"
    status = _status(path.parent) if path.name == WEIGHTS_FILE else ""
    card, weights = None, None
    try:
        kind = kind_of(path)
        card = read_card(path)
        weights = find_weights(str(path))
    except AttclError as error:
        return Listed(name, path, origin, kind, weights, card, status, error)
    return Listed(name, path, origin, kind, weights, card, status)


def _origin(path: Path) -> str:
    """Return where a named file lies: among the project's own, or in the folder of the environment."""
    package = Path(__file__).resolve().parents[1]
    own = {package.parent / "weights", package / "weights"}
    return "bundled" if path.resolve().parent in own else "ATTCL_WEIGHTS"


def _runs(runs: Path) -> list[Path]:
    """Return the weights files of the runs below a folder, the newest first."""
    files = [path for path in runs.glob(f"*/{WEIGHTS_FILE}") if path.is_file()]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, str(path)), reverse=True)


def _record_of(run_dir: Path) -> Mapping[str, Any]:
    """Return the record of a run; {} if there is none that can be read."""
    try:
        return read_record(run_dir)
    except AttclError:
        return {}


def _status(run_dir: Path) -> str:
    """Return how a run ended; "" if it has no record, as weights that were copied into a folder."""
    return str(_record_of(run_dir).get("status", ""))


def _against_run(path: Path, dataset: Dataset, wanted: set[str]) -> str:
    """Return what speaks against taking a run unasked to make the `wanted` modalities; "" if nothing does."""
    status = _status(path.parent)
    if status not in {"", "done"}:
        return f"is not finished ({status})"
    reason = _against_modalities(find_weights(str(path)), dataset, wanted)
    if reason:
        return reason
    if kind_of(path) == "phantom" and strangers(dataset):
        return "knows simulated phantoms only"
    return ""


def _against_modalities(weights: Weights, dataset: Dataset, wanted: set[str]) -> str:
    """Return which of a dataset's modalities weights do not know, or which that are wanted they do not make; or ""."""
    known = set(dataset.modalities)
    unknown = sorted(known - set(weights.info.modalities))
    if unknown:
        return f"knows no {', '.join(unknown)}"
    unmade = wanted - set(weights.info.rule.targets)
    # Of modalities that the dataset does not know, some are enough.
    if unmade & known or (unmade and unmade == wanted):
        return f"makes no {', '.join(sorted(unmade))}"
    return ""


class _Preparation:
    """How the volumes of some cases are prepared; looked at once for all weights, and only if one asks.

    What cannot be read is left out: it is reported when all volumes are checked.
    """

    def __init__(self, dataset: Dataset, cases: Sequence[Case]) -> None:
        self._dataset = dataset
        self._cases = cases

    @cached_property
    def grids(self) -> dict[str, volumes.Grid]:
        """Case -> the grid of its volumes, as the header of one of them says; of PNG slices, one case alone."""
        found: dict[str, volumes.Grid] = {}
        for case in self._cases:
            for name in case.files:
                with suppress(AttclError):
                    found[case.id] = volumes.read_grid(self._dataset.paths(case, name))
                    break
            if case.id in found and found[case.id].header is None:
                break  # slices state no voxel size, and have no header that is read at once
        return found

    @cached_property
    def empty_faces(self) -> dict[str, float]:
        """Case -> the share of the voxels on the six faces of a volume that are 0, of a few cases.

        These are the first, the one in the middle and the last, or others for those that cannot be read.
        """
        found: dict[str, float] = {}
        ends = [self._cases[place] for place in (0, len(self._cases) // 2, -1)]
        for case in {it.id: it for it in (*ends, *self._cases)}.values():
            if len(found) == _LOOKED_AT:
                break
            for name in case.files:
                with suppress(AttclError):
                    paths = self._dataset.paths(case, name)
                    data = volumes.load(paths, background=self._dataset.background).data
                    faces = [data[[0, -1]], data[:, [0, -1]], data[:, :, [0, -1]]]
                    voxels = np.concatenate([face.ravel() for face in faces])
                    found[case.id] = float(np.mean(voxels == 0))
                    break
        return found


def _against_preparation(preparation: _Preparation, card: Card) -> str:
    """Return how cases are prepared otherwise than the training data; "" if they are not."""
    if not preparation.grids:
        return "fits volumes only, and none is readable"
    others: dict[str, list[str]] = {}
    for case, grid in preparation.grids.items():
        if grid.header is None:
            return f"needs voxels of {card.voxel_mm:g} mm, and PNG slices do not state theirs"
        off = (abs(edge - card.voxel_mm) for edge in grid.spacing_mm)
        if any(gap > _VOXEL_TOLERANCE * card.voxel_mm for gap in off):
            edges = " x ".join(f"{edge:.2g}" for edge in grid.spacing_mm)
            others.setdefault(edges, []).append(case)
    if others:
        found = [f"{edges} mm in {some(cases, most=3)}" for edges, cases in others.items()]
        return f"needs voxels of about {card.voxel_mm:g} mm, found {some(found, most=3)}"
    if not card.skull_stripped:
        return ""
    if not preparation.empty_faces:
        return "fits volumes only, and none is readable"
    heads = [case for case, empty in preparation.empty_faces.items() if empty < _EMPTY_FACES]
    unlike = f", unlike those of {', '.join(heads)}"
    return f"needs skull-stripped volumes with a background of 0{unlike}" if heads else ""
