"""What a study runs: its YAML file, the cells that it comes to, and the command of each stage of a cell.

A cell is one dataset, ratio, share of the training cases and seed; most stages of it also have a method. Knows neither
Snakemake nor results: the Snakefile asks this module for names and commands, `results` for folders.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from attcl_cli.data.splits import RATIOS
from attcl_cli.documents import validated
from attcl_cli.errors import AttclError
from attcl_cli.files import write_whole
from attcl_cli.methods import METHODS
from attcl_cli.scoring.metrics import METRICS

STAGES = ("splits", "train", "complete", "score", "directions", "segment", "reference")
"""The kinds of job, in the order of the data; `reference` trains the segmenters that need no completion."""

LOGGED = """( {params.command} ) > /dev/null 2> {log} || {{
    code=$?; [ ! -f {log} ] || tail -n 3 {log} >&2
    echo "exit status $code" >> {log} || true; exit $code; }}"""
"""The shell of a job as Snakemake formats it: messages go to the log, and so does how a job ended that failed.

Its last words are shown, too: a quiet Snakemake says only that there was a failure.
"""

REAL, INCOMPLETE = "real", "incomplete"
_ATTCL = f"{shlex.quote(sys.executable)} -m attcl_cli"
_HERE = Path(__file__).resolve().parent


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Share = Annotated[str, Field(pattern=r"^(1|[01]?\.\d+|\d+/\d+)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")]
"""A name that is also a folder's; no slash, and nothing that a shell would read."""


class Source(_Strict):
    """A dataset: a folder, or simulated patients.

    Attributes:
        path: the folder of a complete dataset.
        simulate: so many simulated patients instead; for trying a study.
        voxel_mm: their voxel edge.
        sizes: numbers of train/val/test cases; None: the shares of the paper.
        options: further options of `attcl prepare-splits`, such as `--layout bids`.
    """

    path: str | None = None
    simulate: Annotated[int, Field(ge=3)] | None = None
    voxel_mm: Annotated[float, Field(gt=0)] = 4.0
    sizes: Annotated[str, Field(pattern=r"^\d+/\d+/\d+$")] | None = None
    options: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _require_one(self) -> Source:
        if (self.path is None) == (self.simulate is None):
            raise ValueError("expected either path or simulate")
        return self


class Model(_Strict):
    """A row of the tables: a method or a variant of it, and the options of its training.

    Attributes:
        method: a key of the registry (`attcl train --method`).
        variant: of the method; None: as it comes.
        title: what tables call it; None: its name.
        options: further options of `attcl train`.
        directions: translate the real volumes in every direction, too (Table 2).
        layers: the encoder layers of the contrastive loss, for Figure 4.
        published: the method of `published.csv` that it is to be compared with; None: its name, if that is there.
    """

    method: str
    variant: str | None = None
    title: str | None = None
    options: tuple[str, ...] = ()
    directions: bool = True
    layers: tuple[int, ...] = ()
    published: str | None = None

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"one of {', '.join(METHODS)}")
        return name


class Training(_Strict):
    """Common options of training, of all methods or of all segmenters."""

    preset: str = "tiny"
    steps: Annotated[int, Field(ge=1)] | None = None
    options: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Return them as a command takes them."""
        steps = [] if self.steps is None else ["--steps", str(self.steps)]
        return ["--preset", self.preset, *steps, *self.options]


class Needs(_Strict):
    """What a job of a stage needs of a machine.

    Attributes:
        mem_mb: memory, MB.
        runtime: minutes; a job that takes longer is stopped by the cluster, and resumed by the next call.
        threads: CPU cores.
        gpu: GPUs.
    """

    mem_mb: Annotated[int, Field(ge=1)] = 8_000
    runtime: Annotated[int, Field(ge=1)] = 60
    threads: Annotated[int, Field(ge=1)] = 2
    gpu: Annotated[int, Field(ge=0)] = 0


class StudyFile(_Strict):
    """The YAML file of a study.

    Attributes:
        title: the question, as the report's heading.
        output: the folder of everything.
        datasets: name -> dataset.
        ratios: scenarios of missing modalities: ratio1 to ratio3, or TOML files.
        subsets: shares of the training cases: "1", "1/8" (BraTS_s).
        seeds: of splits and training.
        methods: name -> row of the tables.
        reference: the method that the others are compared with, case by case.
        train: common options of `attcl train`.
        segment: common options of `attcl segment`; None: no downstream segmentation.
        without: the modality of the segmenter "w/o DA", which every case has.
        metrics: options of `attcl score` without dashes, such as ssim and fid.
        fid_network: of FID and KID; effnet-lite0 needs no download, and is called fd-effnet.
        offline: never download a feature network.
        device: for all networks.
        needs: stage -> what its jobs need.
    """

    title: str
    output: str
    datasets: Mapping[Name, Source] = Field(min_length=1)
    ratios: tuple[str, ...] = Field(("ratio1",), min_length=1)
    subsets: tuple[Share, ...] = Field(("1",), min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    methods: Mapping[Name, Model] = Field(min_length=1)
    reference: Name = "attcl-gan"
    train: Training = Training()
    segment: Training | None = Training()
    without: Name = "flair"
    metrics: tuple[Literal["ssim", "psnr", "nmse", "gms", "lpips", "fid", "kid"], ...] = (
        "ssim",
        "psnr",
    )
    fid_network: Literal["inception", "effnet-lite0"] = "inception"
    offline: bool = False
    device: str = "auto"
    needs: Mapping[Literal[STAGES], Needs] = {}  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _require_known(self) -> StudyFile:
        if self.reference not in self.methods:
            raise ValueError(f"reference {self.reference!r} is none of the methods")
        reserved = {"data", self.without, INCOMPLETE, REAL} & set(self.methods)
        if reserved:
            raise ValueError(f"a method cannot be called {', '.join(sorted(reserved))}")
        for what, names in (
            ("ratios", [ratio_name(ratio) for ratio in self.ratios]),
            ("subsets", self.subsets),
            ("titles of methods", [row.title or name for name, row in self.methods.items()]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: {', '.join(names)}, expected each name once")
        return self


@dataclass(frozen=True)
class Cell:
    """One dataset, scenario, share of the training cases and seed."""

    dataset: str
    ratio: str
    subset: str
    seed: int

    @property
    def name(self) -> str:
        """Return the folder below that of the study."""
        share = share_name(self.subset).replace("/", "-of-")
        return f"{self.dataset}/{ratio_name(self.ratio)}/{share}/seed{self.seed}"


class Study:
    """A study as it is run: cells, folders and commands."""

    def __init__(self, file: StudyFile) -> None:
        """Take what the YAML file says."""
        self.file = file
        self.root = Path(file.output)
        self.cells = [
            Cell(dataset, ratio, subset, seed)
            for dataset in file.datasets
            for ratio in file.ratios
            for subset in file.subsets
            for seed in file.seeds
        ]
        self._cells = {cell.name: cell for cell in self.cells}

    @property
    def record(self) -> Path:
        """Return the file that holds the study as it is run."""
        return self.root / "study.yaml"

    def keep(self) -> None:
        """Write that file: what the YAML file says, with what the command line changed."""
        text = yaml.safe_dump(self.file.model_dump(mode="json"), sort_keys=False)
        write_whole(self.record, text.encode())

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the names of the rows."""
        return tuple(self.file.methods)

    @property
    def references(self) -> tuple[str, ...]:
        """Return the inputs of segmenters that need no completion: w/o DA, missing channels as 0, and real."""
        return (self.file.without, INCOMPLETE, REAL) if self.file.segment is not None else ()

    def cell(self, name: str) -> Cell:
        """Return the cell of a folder's name."""
        return self._cells[name]

    def folder(self, cell: str, stage: str, of: str = "") -> Path:
        """Return where the results of a stage are.

        Args:
            cell: its name.
            stage: one of `STAGES`.
            of: the method; of `reference` the input.
        """
        base = self.root / cell
        if stage == "splits":
            return base / "data"
        names = {"train": "run", "complete": "out", "score": "scores"}
        return base / of / names.get(stage, "segment" if stage == "reference" else stage)

    def done(self, cell: str, stage: str, of: str = "") -> Path:
        """Return the file that says that a job is done: empty, written by Snakemake after it."""
        return self.root / "jobs" / cell / (f"{stage}-{of}.done" if of else f"{stage}.done")

    def scorer_of_baselines(self, stage: str) -> str:
        """Return the method whose scores of a stage have the baselines, which are the same for all methods."""
        methods, reference = self.file.methods, self.file.reference
        if stage != "directions" or methods[reference].directions:
            return reference
        return next(name for name, model in methods.items() if model.directions)

    def simulated(self, dataset: str) -> Path | None:
        """Return the file that says that the patients of a dataset are simulated; None if they are real."""
        return self.root / "jobs" / f"{dataset}.done" if self.simulation(dataset) else None

    def log(self, done: Path) -> Path:
        """Return where the messages of a job are."""
        return done.with_suffix(".log")

    def jobs(self) -> Iterator[tuple[str, str, str]]:
        """Yield (cell, stage, method or input) of every job of the study."""
        for cell in self._cells:
            yield cell, "splits", ""
            for name in self.references:
                yield cell, "reference", name
            for name, model in self.file.methods.items():
                yield cell, "train", name
                yield cell, "complete", name
                yield cell, "score", name
                if model.directions:
                    yield cell, "directions", name
                if self.file.segment is not None:
                    yield cell, "segment", name

    def needed(self, stage: str, of: str = "") -> list[tuple[str, str]]:
        """Return the (stage, method) that must be done before a job of the same cell."""
        before = {
            "splits": [],
            "reference": [("splits", "")],
            "train": [("splits", "")],
            "complete": [("train", of)],
            "score": [("complete", of)],
            "directions": [("train", of)],
            "segment": [("complete", of)],
        }
        return before[stage]

    def needs(self, stage: str) -> Needs:
        """Return what a job of a stage needs of a machine."""
        return self.file.needs.get(stage, Needs())

    def origin(self, dataset: str) -> Path:
        """Return the folder of a complete dataset."""
        source = self.file.datasets[dataset]
        return self.root / dataset / "phantoms" if source.path is None else Path(source.path)

    def require_data(self) -> None:
        """Raise an error if a dataset's folder or a ratio is not there: before the first job, not at night."""
        for name, source in self.file.datasets.items():
            if source.path is not None and not self.origin(name).is_dir():
                raise AttclError(
                    f"datasets: {name}: {source.path}, no such folder, expected a complete dataset",
                    "write its path into the study's YAML file; it is relative to where snakemake is called",
                    code="no-dataset",
                )

        for ratio in self.file.ratios:
            if ratio not in RATIOS and not Path(ratio).is_file():
                raise AttclError(
                    f"ratios: {ratio}, no such file, expected {', '.join(RATIOS)}, or a TOML file",
                    "docs/guides/prepare-splits.md shows such a file; paths are relative to where snakemake is called",
                    code="no-ratio",
                )

    def simulation(self, dataset: str) -> str:
        """Return the command that simulates the patients of a dataset; "" if it is a folder."""
        source = self.file.datasets[dataset]
        if source.simulate is None:
            return ""
        script = _HERE / "simulate.py"
        return _shell(
            [sys.executable, str(script), str(self.origin(dataset))],
            ["--cases", str(source.simulate), "--voxel-mm", f"{source.voxel_mm:g}"],
        )

    def command(self, cell: str, stage: str, of: str = "") -> str:
        """Return the command of a job, for a POSIX shell. A job that was broken off goes on where it was."""
        place = self._cells[cell]
        data, folder = self.folder(cell, "splits"), self.folder(cell, stage, of)
        file = self.file
        if stage == "splits":
            source = file.datasets[place.dataset]
            sizes = [] if source.sizes is None else ["--sizes", source.sizes]
            return _attcl(
                ["prepare-splits", str(self.origin(place.dataset)), "-o", str(folder)],
                ["--ratio", place.ratio, "--subset", place.subset, "--seed", str(place.seed)],
                [*sizes, *source.options],
            )
        device = ["-d", file.device]
        if stage == "train":
            model = file.methods[of]
            layers = ",".join(map(str, model.layers))
            start = _attcl(
                ["train", "--data", str(data), "-o", str(folder), "--method", model.method],
                [] if model.variant is None else ["--variant", model.variant],
                file.train.arguments,
                ["--set", f"contrastive_layers={layers}"] if layers else [],
                [*model.options, "--seed", str(place.seed), *device],
            )
            return _resumed(
                folder / "run.json",
                ["train", "--resume", str(folder), "--data", str(data), *device],
                start,
            )
        run, out = self.folder(cell, "train", of), self.folder(cell, "complete", of)
        if stage == "complete":
            return _attcl(["complete", "-i", str(data), "-o", str(out), "-w", str(run), *device])
        if stage in {"score", "directions"}:
            places = ["score", "-i", str(data), "-o", str(folder), "--split", "test", *device]
            places += (
                ["--directions", "-w", str(run)] if stage == "directions" else ["--cpl", str(out)]
            )
            if of != self.scorer_of_baselines(stage):
                places.append("--no-baselines")
            command = _attcl(
                places,
                [f"--{name}" for name in file.metrics],
                ["--fid-network", file.fid_network] if {"fid", "kid"} & {*file.metrics} else [],
                ["--offline"] if file.offline else [],
            )
            bare = [f"--{name}" for name in file.metrics if not METRICS[name].network]
            if not 0 < len(bare) < len(file.metrics):
                return command
            return _without_networks(command, _attcl(places, bare), folder / "scores.csv")
        assert file.segment is not None, "`jobs` yields no such stage"
        seen = ["--input", of] if stage == "reference" else ["--cpl", str(out)]
        start = _attcl(
            ["segment", "-i", str(data), "-o", str(folder), *seen, *file.segment.arguments],
            ["--seed", str(place.seed), *device],
        )
        return _resumed(folder / "run.json", ["segment", "--resume", str(folder), *device], start)


def share_name(subset: str) -> str:
    """Return the name of a share of the training cases: `all`, `1/8`."""
    return "all" if subset == "1" else subset


def ratio_name(ratio: str) -> str:
    """Return the name of a scenario: `ratio1`, or that of its file."""
    return Path(ratio).stem


def read_study(config: Mapping[str, Any], *, name: str = "the study's YAML file") -> Study:
    """Return the study that a file says.

    Raises:
        AttclError: a key is unknown, missing, or has a value of another kind.
    """
    file = validated(
        StudyFile,
        dict(config),
        name=name,
        expected="a study",
        hint="examples/study/phantom.yaml shows what it may hold, docs/guides/study.md explains it",
        code="invalid-study",
    )
    return Study(file)


def _attcl(*arguments: Sequence[str]) -> str:
    return f"{_ATTCL} {_shell(*arguments)}"


def _shell(*arguments: Sequence[str]) -> str:
    return shlex.join([each for group in arguments for each in group])


def _without_networks(whole: str, bare: str, scores: Path) -> str:
    """Return a command that fails as `whole` does, but leaves what needs no network if a network could not be had.

    Nothing is scored a second time if the job was killed, or if an earlier call has left scores.
    """
    there = f"[ $code -gt 128 ] || [ -e {shlex.quote(str(scores))} ]"
    return f"{{ {whole}; }} || {{ code=$?; {there} || {bare}; exit $code; }}"


def _resumed(begun: Path, resume: Sequence[str], start: str) -> str:
    """Return the command that resumes a run if it was begun, and starts it otherwise."""
    return f"if [ -e {shlex.quote(str(begun))} ]; then {_attcl(resume)}; else {start}; fi"
