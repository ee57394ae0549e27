"""The records of a completion: what is made of which case by which weights, where it goes, and what became of it.

Decides nothing: the rule is in `plan`, the refusals are in `checks`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from attcl_cli import __version__
from attcl_cli.completion.styles import Style
from attcl_cli.data import volumes
from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.layouts import Layout, ending_of
from attcl_cli.data.unchanged import State
from attcl_cli.errors import AttclError
from attcl_cli.methods.sources import made_between
from attcl_cli.methods.weights import Weights, WeightsInfo

DEFAULT_DATA = "data"
"""The dataset of a completion that names none: what `attcl prepare-splits` writes."""

PLANES = ("axial", "three")
INTENSITIES = ("auto", "network", "stretched", "matched")
"""The values of `Manner.planes` and `Manner.intensities`."""


@dataclass(frozen=True)
class Maker:
    """Weights, and the modalities of a case that they make a volume from.

    Attributes:
        weights: the weights.
        sources: what their network is given.
        withheld: what it could be given, but no training case had together with those and the target
            (`methods.sources`).
    """

    weights: Weights
    sources: tuple[str, ...]
    withheld: tuple[str, ...] = ()

    def between(self, target: str) -> tuple[str, ...]:
        """Return the modalities that the weights make on the way to the target, and that are not written."""
        return made_between(self.weights.info.rule, target, self.sources)


@dataclass(frozen=True)
class Job:
    """Volumes that one case lacks and that the same weights make from the same sources.

    Attributes:
        case: the case.
        makers: what makes them: one model, or several whose results are averaged; the first one's scales, quantiles and
            training cases count.
        outputs: target -> files to write, relative to the output folder.
        styles: target -> how it is stored.
        seen: the files of the case as they were before they were checked.
        unproven: target -> those of its outputs that lie there without a side-car, but say of themselves that this job
            makes them; they are compared with what it makes, and never written.
        existing: target -> those of its files that lay there when the job was planned.
    """

    case: Case
    makers: tuple[Maker, ...]
    outputs: Mapping[str, tuple[PurePosixPath, ...]]
    styles: Mapping[str, Style] = field(default_factory=dict)
    seen: Mapping[Path, State] = field(default_factory=dict)
    unproven: Mapping[str, tuple[PurePosixPath, ...]] = field(default_factory=dict)
    existing: Mapping[str, tuple[PurePosixPath, ...]] = field(default_factory=dict)

    @property
    def weights(self) -> Weights:
        """Return the weights of the first maker."""
        return self.makers[0].weights

    @property
    def sources(self) -> tuple[str, ...]:
        """Return all modalities that the volumes are made from."""
        return _sources(self.makers)

    def between(self, target: str) -> tuple[str, ...]:
        """Return what is made on the way to the target by the only maker; several say it one by one."""
        return _between(self.makers, target)


@dataclass(frozen=True)
class Manner:
    """How volumes are made; the side-car of a volume must agree for it to count as done.

    Attributes:
        slices: (first, stop) of the slices that are synthesised, or None for all.
        samples: style samples per volume, whose mean is written; 0: the reference style.
        uncertainty: whether the standard deviation of the samples is written, too.
        mirror: whether the mean of a pass and of a mirrored pass is written; None: if the weights were trained so.
        planes: the slices that the networks see: `axial`, or `three` (coronal and sagittal, too) and their mean.
        average: whether all models that can make a volume make it, and their mean is written.
        intensities: `network`: as the network gives them; `stretched`: with the darkest and the brightest twentieth
            stretched to the ends of the target's training volumes; `matched`: with all quantiles of these; `auto`: if
            the weights know these and were trained on squares, stretched, or matched in volumes that are sharpened.
        even: whether steps between neighbouring slices are evened out; None: in whole volumes if the weights were
            trained on squares.
        guide: whether a volume is sharpened by the modalities that were withheld from its network; None: if it is made
            in whole, by weights that were trained on squares.
    """

    slices: tuple[int, int] | None = None
    samples: int = 0
    uncertainty: bool = False
    mirror: bool | None = None
    planes: str = "axial"
    average: bool = False
    intensities: str = "auto"
    even: bool | None = None
    guide: bool | None = None

    def mirrors(self, info: WeightsInfo) -> bool:
        """Return whether a volume of these weights is the mean of a pass and a mirrored one."""
        if self.mirror is not None:
            return self.mirror
        return info.settings.mirror > 0 and info.settings.crop > 0

    def intensities_for(self, info: WeightsInfo, target: str, *, sharpened: bool = False) -> str:
        """Return which of `network`, `stretched` and `matched` a volume of these weights has."""
        if self.intensities != "auto":
            return self.intensities
        if target not in info.quantiles or info.settings.crop == 0:
            return "network"
        return "matched" if sharpened else "stretched"  # docs/experiments/patients.md compares

    def evens(self, info: WeightsInfo) -> bool:
        """Return whether steps between the slices of a volume of these weights are evened out."""
        if self.even is not None:
            return self.even
        return self.slices is None and info.settings.crop > 0

    def guides_of(self, makers: Sequence[Maker]) -> tuple[str, ...]:
        """Return the modalities that sharpen a volume: those that were withheld from all networks that make it."""
        if not self.guides(makers[0].weights.info):
            return ()
        first, *others = makers
        return tuple(name for name in first.withheld if all(name in it.withheld for it in others))

    def guides(self, info: WeightsInfo) -> bool:
        """Return whether a volume of these weights is sharpened, if anything was withheld from them."""
        if self.guide is not None:
            return self.guide
        return self.slices is None and info.settings.crop > 0

    def sources_in_words(self, makers: Sequence[Maker], target: str) -> str:
        """Return what a volume is made from: `t1`; `t1 through flair`; `flair, sharpened by t1`."""
        words = " through ".join([", ".join(_sources(makers)), *_between(makers, target)])
        guides = self.guides_of(makers)
        return ", sharpened by ".join([words, ", ".join(guides)] if guides else [words])

    def description(self, makers: Sequence[Maker], target: str) -> str:
        """Return what a volume says of itself, in its header."""
        words = self.sources_in_words(makers, target)
        return f"attcl {__version__} synthetic {target} from {words}"

    def document(self) -> dict[str, Any]:
        """Return what was asked for, as `run.json` says it."""
        return {
            **self._of_samples(),
            "mirror": "auto" if self.mirror is None else self.mirror,
            "planes": self.planes,
            "average": self.average,
            "intensities": self.intensities,
            "even": "auto" if self.even is None else self.even,
            "guide": "auto" if self.guide is None else self.guide,
        }

    def document_of(self, makers: Sequence[Maker], target: str) -> dict[str, Any]:
        """Return how a volume is made, as its side-car says it."""
        info = makers[0].weights.info
        sharpened_by = self.guides_of(makers)
        averaged = [
            {
                "name": it.weights.name,
                "sha256": it.weights.sha256,
                "sources": list(it.sources),
                **({"through": list(between)} if (between := it.between(target)) else {}),
            }
            for it in makers
        ]
        return {
            **self._of_samples(),
            "mirror": self.mirrors(info),
            "planes": self.planes,
            "intensities": self.intensities_for(info, target, sharpened=bool(sharpened_by)),
            "even": self.evens(info),
            "sharpened_by": list(sharpened_by),
            **({"averaged": averaged} if len(averaged) > 1 else {}),
        }

    def _of_samples(self) -> dict[str, Any]:
        return {
            "slices": list(self.slices) if self.slices else "all",
            "samples": self.samples,
            "uncertainty": self.uncertainty,
        }


def _sources(makers: Sequence[Maker]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for maker in makers for name in maker.sources))


def _between(makers: Sequence[Maker], target: str) -> tuple[str, ...]:
    return makers[0].between(target) if len(makers) == 1 else ()


OLD_MANNER: Mapping[str, Any] = {
    "mirror": False,
    "planes": "axial",
    "intensities": "network",
    "even": False,
    "sharpened_by": [],
}
"""How volumes were made whose side-car, of an earlier version, does not say so."""


@dataclass(frozen=True)
class Doubt:
    """How far a volume is to be distrusted; None: nothing is known.

    Attributes:
        disagreement: mean absolute difference in the brain of two passes over the volume, as a share of the window that
            -1 and 1 stand for.
        distance: of the case's sources from the training volumes, in their robust standard deviations (RMS).
        far: whether the distance is beyond that of every training case from the others.
    """

    disagreement: float | None = None
    distance: float | None = None
    far: bool | None = None

    def document(self) -> dict[str, Any]:
        """Return it as side-cars and `run.json` say it; {} if nothing is known."""
        if self.disagreement is None and self.distance is None:
            return {}
        return asdict(self)


@dataclass(frozen=True)
class Places:
    """Where the files of an output folder go.

    A challenge's folder holds its volumes and nothing else, so that their side-cars lie in a folder beside it.

    Attributes:
        dataset: its names are used.
        output: the output folder.
        naming: the flat naming of a challenge; None: files are named as the dataset's others are.
    """

    dataset: Dataset
    output: Path
    naming: Layout | None = None

    @property
    def records(self) -> Path:
        """Return the folder of side-cars and `run.json`: the output folder, or the one beside it."""
        if self.naming is None:
            return self.output
        whole = self.output
        if whole.name in {"", ".."}:  # the parent of "." is no other folder; a link stays a link
            whole = Path(os.path.abspath(whole))  # noqa: PTH100
        return whole.parent / f"{whole.name}-labels"

    def files(self, case: Case, target: str) -> tuple[PurePosixPath, ...]:
        """Return the volume, or its PNG slices, relative to the output folder."""
        if self.naming is None:
            return self.dataset.place(case, target)
        return (self.naming.place(case=case.id, token=self.naming.tokens[target]),)

    def existing(self, case: Case, target: str) -> tuple[PurePosixPath, ...]:
        """Return those of the files of a volume that are there."""
        return tuple(file for file in self.files(case, target) if (self.output / file).exists())

    def lacks_uncertainty(self, case: Case, target: str, manner: Manner) -> bool:
        """Return whether the standard deviation that belongs beside a volume is missing."""
        file = uncertainty_file(self.files(case, target)[0])
        return manner.uncertainty and not (self.output / file).exists()

    def side_car(self, case: Case, target: str) -> Path:
        """Return the JSON file beside a volume."""
        if self.naming is None:
            return self.output / self.dataset.place_side_car(case, target)
        return self.records / self.naming.place_side_car(self.files(case, target)[0], case.id)


@dataclass(frozen=True)
class CompletionPlan:
    """What a completion will do, decided before anything is computed.

    Attributes:
        places: where sources lie and files go.
        models: the weights, in the order of preference; none only if nothing is missing.
        modal_list: modalities by falling number of volumes (Section 3.6): the order in which sources are preferred.
        jobs: what is left to do.
        present: case id -> target -> files of the volumes that it lacked and that lie complete in the output folder.
        manner: how volumes are made.
        failed: case id -> problem, of cases that `keep_going` leaves out.
        notes: what is fixed on reading the sources (`preconditions.examine`), and weights trained otherwise.
        learned: names of published weights -> ids of the cases, of those left to do, whose patients they learned from.
    """

    places: Places
    models: tuple[Weights, ...]
    modal_list: tuple[str, ...]
    jobs: tuple[Job, ...]
    present: Mapping[str, Mapping[str, tuple[PurePosixPath, ...]]]
    manner: Manner
    failed: Mapping[str, AttclError]
    notes: tuple[str, ...] = ()
    learned: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def dataset(self) -> Dataset:
        """Return the dataset that holds the sources."""
        return self.places.dataset

    @property
    def output(self) -> Path:
        """Return the folder that the volumes go into."""
        return self.places.output

    @property
    def done(self) -> int:
        """Return how many volumes were missing and are there."""
        return sum(len(files) for files in self.present.values())

    @property
    def volumes(self) -> int:
        """Return how many volumes are left to make."""
        return sum(len(job.outputs) for job in self.jobs)

    @property
    def used(self) -> tuple[Weights, ...]:
        """Return the models that any job needs."""
        needed = {maker.weights.sha256 for job in self.jobs for maker in job.makers}
        return tuple(model for model in self.models if model.sha256 in needed)


@dataclass(frozen=True)
class Completed:
    """What became of one job.

    Attributes:
        job: the job.
        outputs: the images written, relative to the output folder.
        seconds: time in the network.
        error: why it failed, if it did.
        doubts: target -> how far the volume is to be distrusted.
    """

    job: Job
    outputs: tuple[str, ...]
    seconds: float
    error: AttclError | None = None
    doubts: Mapping[str, Doubt] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """Return the id of its case."""
        return self.job.case.id


def not_made_by_attcl(file: Path, side_car: Path, further: str = "") -> AttclError:
    """Return the error of a file that may be anybody's, since no side-car lies beside it; `further`: what is more."""
    return AttclError(
        f"{file}: has no side-car {side_car.name}{further}, expected a file made by attcl",
        "choose another --cpl, or move that file away",
        code="not-made-by-attcl",
    )


# As `Manner.description` begins, and what `making` writes into a deviation.
_MADE_BY_ATTCL = re.compile(r"attcl \S+ (std of \d+ )?synthetic ")


def says_made_by_attcl(path: Path) -> bool | None:
    """Return whether a volume, slice or deviation says in its header that attcl made it; None if it is unreadable."""
    said = volumes.read_description([path])
    return None if said is None else _MADE_BY_ATTCL.match(said) is not None


def uncertainty_file(file: PurePosixPath) -> PurePosixPath:
    """Return where the standard deviation beside a volume goes: under a name that no layout takes for an image."""
    ending = ending_of(file)
    return file.with_name(file.name.removesuffix(ending) + "_uncertainty" + ending)
