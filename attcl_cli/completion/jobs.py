"""The records of a completion: what is made of which case by which weights, where it goes, and what became of it.

Decides nothing: the rule is in `plan`, the refusals are in `checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from attcl_cli.data.dataset import Case, Dataset
from attcl_cli.data.layouts import Layout, ending_of
from attcl_cli.errors import AttclError
from attcl_cli.methods.weights import Weights


@dataclass(frozen=True)
class Job:
    """Volumes that one case lacks and that the same weights make from the same sources.

    Attributes:
        case: the case.
        sources: the modalities that they are made from.
        outputs: target -> files to write, relative to the output folder.
        weights: what makes them.
    """

    case: Case
    sources: tuple[str, ...]
    outputs: Mapping[str, tuple[PurePosixPath, ...]]
    weights: Weights


@dataclass(frozen=True)
class Manner:
    """How volumes are made; the side-car of a volume must agree for it to count as done.

    Attributes:
        slices: (first, stop) of the slices that are synthesised, or None for all.
        samples: style samples per volume, whose mean is written; 0: the reference style.
        uncertainty: whether the standard deviation of the samples is written, too.
    """

    slices: tuple[int, int] | None = None
    samples: int = 0
    uncertainty: bool = False

    def document(self) -> dict[str, Any]:
        """Return it as side-cars and `run.json` say it."""
        return {
            "slices": list(self.slices) if self.slices else "all",
            "samples": self.samples,
            "uncertainty": self.uncertainty,
        }


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
        return self.output.parent / f"{self.output.absolute().name}-labels"

    def files(self, case: Case, target: str) -> tuple[PurePosixPath, ...]:
        """Return the volume, or its PNG slices, relative to the output folder."""
        if self.naming is None:
            return self.dataset.place(case, target)
        return (self.naming.place(case=case.id, token=self.naming.tokens[target]),)

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
        models: the weights, in the order of preference; at least one.
        modal_list: modalities by falling number of volumes (Section 3.6): the order in which sources are preferred.
        jobs: what is left to do.
        present: case id -> target -> files of the volumes that it lacked and that lie complete in the output folder.
        manner: how volumes are made.
        failed: case id -> problem, of cases that `keep_going` leaves out.
    """

    places: Places
    models: tuple[Weights, ...]
    modal_list: tuple[str, ...]
    jobs: tuple[Job, ...]
    present: Mapping[str, Mapping[str, tuple[PurePosixPath, ...]]]
    manner: Manner
    failed: Mapping[str, AttclError]

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
        needed = {job.weights.sha256 for job in self.jobs}
        return tuple(model for model in self.models if model.sha256 in needed)


@dataclass(frozen=True)
class Completed:
    """What became of one job.

    Attributes:
        job: the job.
        outputs: the images written, relative to the output folder.
        seconds: time in the network.
        error: why it failed, if it did.
    """

    job: Job
    outputs: tuple[str, ...]
    seconds: float
    error: AttclError | None = None

    @property
    def case(self) -> str:
        """Return the id of its case."""
        return self.job.case.id


def uncertainty_file(file: PurePosixPath) -> PurePosixPath:
    """Return where the standard deviation beside a volume goes: under a name that no layout takes for an image."""
    ending = ending_of(file)
    return file.with_name(file.name.removesuffix(ending) + "_uncertainty" + ending)
