"""What a study runs: its YAML file, the cells that it comes to, and the command of each stage of a cell.

A cell is one dataset, ratio, share of the training cases and seed; most stages of it also have a method. Knows neither
Snakemake nor results: the Snakefile asks this module for names and commands, `results` for folders.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from attcl_cli.documents import validated
from attcl_cli.errors import AttclError
from attcl_cli.files import write_whole
from attcl_cli.methods import METHODS, RE_SPECIFIED
from attcl_cli.scoring.metrics import METRICS

STAGES = ("splits", "train", "complete", "score", "directions", "segment", "reference")
"""The kinds of job, in the order of the data; `reference` trains the segmenters that need no completion."""

LOGGED = """( {params.command} ) > /dev/null 2> {log:q} || {{
    code=$?; [ ! -f {log:q} ] || tail -n 3 {log:q} >&2
    echo "exit status $code" >> {log:q} || true; exit $code; }}"""
"""The shell of a job as Snakemake formats it: messages go to the log, and so does how a job ended that failed.

Its last words are shown, too: a quiet Snakemake says only that there was a failure.
"""

REAL, INCOMPLETE = "real", "incomplete"
_RESUMED = ("train", "segment", "reference")  # stages whose broken-off jobs go on by --resume
_ATTCL = f"{shlex.quote(sys.executable)} -m attcl_cli"
_HERE = Path(__file__).resolve().parent


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Share = Annotated[str, Field(pattern=r"^(1|[01]?\.\d+|[1-9]\d*/[1-9]\d*)$")]
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
        wanted = sum(map(int, self.sizes.split("/"))) if self.sizes else 0
        if self.simulate is not None and wanted > self.simulate:
            raise ValueError(f"sizes {self.sizes} of {self.simulate} simulated patients")
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
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    needs: Mapping[Literal[STAGES], Needs] = {}  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _require_known(self) -> StudyFile:
        if self.reference not in self.methods:
            raise ValueError(
                f"reference {self.reference!r} is none of the methods: write reference: {next(iter(self.methods))}"
            )
        reserved = {"data", self.without, INCOMPLETE, REAL} & set(self.methods)
        if reserved:
            raise ValueError(f"a method cannot be called {', '.join(sorted(reserved))}")
        for what, names in (
            ("ratios", [ratio_name(ratio) for ratio in self.ratios]),
            ("subsets", self.subsets),
            ("seeds", [str(seed) for seed in self.seeds]),
            ("titles of methods", [title_of(self, name) for name in self.methods]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: {', '.join(names)}, expected each name once")
        return self


def title_of(study: StudyFile, name: str) -> str:
    """Return what tables and figures call a method of a study; of our own specifications that they are such."""
    model = study.methods[name]
    title = model.title or name
    ours = bool({model.method, model.variant} & RE_SPECIFIED) and "re-specified" not in title
    return f"{title} (re-specified)" if ours else title


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

    @property
    def page(self) -> Path:
        """Return the report."""
        return self.root / "study.html"

    def has_old_page(self) -> bool:
        """Return whether there is a page, and it is that of another study or of a call that did not end."""
        if not self.page.is_file():
            return False
        if not self._is_kept():
            return True
        return self.record.stat().st_mtime_ns > self.page.stat().st_mtime_ns

    @property
    def text(self) -> str:
        """Return what the YAML file says, with what the command line changed."""
        return yaml.safe_dump(self.file.model_dump(mode="json"), sort_keys=False)

    def keep(self) -> None:
        """Write that text to `record`; one that says the same only becomes newer: it may be the user's own file."""
        if self._is_kept():
            os.utime(self.record)
        else:
            write_whole(self.record, self.text.encode())

    def _is_kept(self) -> bool:
        """Return whether `record` says this very study, in whatever words."""
        try:
            document = yaml.safe_load(self.record.read_text("utf-8"))
            return read_study(document or {}).file == self.file
        except (OSError, ValueError, TypeError, yaml.YAMLError, AttclError):
            return False

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
        made = self.file.datasets[dataset].simulate is not None
        return self.root / "jobs" / f"{dataset}.done" if made else None

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

    def simulation(self, dataset: str) -> str:
        """Return the command that simulates the patients of a dataset; "" if it is a folder."""
        done = self.simulated(dataset)
        if done is None:
            return ""
        script, *words = self._simulated(dataset)
        start = shlex.join([sys.executable, str(_HERE / script), *words])
        return _noting(done, self._noted([script, *words]), start)

    def _simulated(self, dataset: str) -> list[str]:
        source = self.file.datasets[dataset]
        numbers = ["--cases", str(source.simulate), "--voxel-mm", f"{source.voxel_mm:g}"]
        return ["simulate.py", str(self.origin(dataset)), *numbers]

    def command(self, cell: str, stage: str, of: str = "") -> str:
        """Return the command of a job, for a POSIX shell. A job that was broken off goes on where it was.

        It first notes what it will do, so that a study that is changed later is not taken for the one that was run.
        """
        start = _attcl(self.arguments(cell, stage, of))
        folder = self.folder(cell, stage, of)
        if stage in {"score", "directions"}:
            bare = [name for name in self.file.metrics if not METRICS[name].network]
            if 0 < len(bare) < len(self.file.metrics):
                alone = _attcl(self._scored(cell, stage, of, bare))
                start = _without_networks(start, alone, folder / "scores.csv")
        start = _noting(self.done(cell, stage, of), self.made_by(cell, stage, of), start)
        if stage not in _RESUMED:
            return start
        data = ["--data", str(self.folder(cell, "splits"))] if stage == "train" else []
        verb = "train" if stage == "train" else "segment"
        resume = _attcl([verb, "--resume", str(folder), *data, "-d", self.file.device])
        begun = shlex.quote(str(folder / "run.json"))
        return f"if [ -e {begun} ]; then {resume}; else {start}; fi"

    def arguments(self, cell: str, stage: str, of: str = "") -> list[str]:
        """Return what attcl is given to start a job."""
        place = self._cells[cell]
        data, folder = self.folder(cell, "splits"), self.folder(cell, stage, of)
        run, out = self.folder(cell, "train", of), self.folder(cell, "complete", of)
        file = self.file
        places, seed = ["-o", str(folder)], ["--seed", str(place.seed)]
        device = ["-d", file.device]
        if stage == "splits":
            source = file.datasets[place.dataset]
            sizes = [] if source.sizes is None else ["--sizes", source.sizes]
            scenario = ["--ratio", place.ratio, "--subset", place.subset]
            origin = str(self.origin(place.dataset))
            return ["prepare-splits", origin, *places, *scenario, *seed, *sizes, *source.options]
        if stage == "train":
            model = file.methods[of]
            variant = [] if model.variant is None else ["--variant", model.variant]
            layers = [*model.layers]
            layered = ["--set", f"contrastive_layers={layers}"] if layers else []
            start = ["train", "--data", str(data), *places, "--method", model.method, *variant]
            return [*start, *file.train.arguments, *layered, *model.options, *seed, *device]
        if stage == "complete":
            return ["complete", "-i", str(data), *places, "-w", str(run), *device]
        if stage in {"score", "directions"}:
            return self._scored(cell, stage, of, file.metrics)
        assert file.segment is not None, "`jobs` yields no such stage"
        seen = ["--input", of] if stage == "reference" else ["--cpl", str(out)]
        start = ["segment", "-i", str(data), *places, *seen, *file.segment.arguments]
        return [*start, *seed, *device]

    def _scored(self, cell: str, stage: str, of: str, metrics: Sequence[str]) -> list[str]:
        """Return what attcl is given to measure these metrics."""
        data, folder = self.folder(cell, "splits"), self.folder(cell, stage, of)
        run, out = self.folder(cell, "train", of), self.folder(cell, "complete", of)
        start = ["score", "-i", str(data), "-o", str(folder), "--split", "test"]
        what = ["--directions", "-w", str(run)] if stage == "directions" else ["--cpl", str(out)]
        alone = "--baselines" if of == self.scorer_of_baselines(stage) else "--no-baselines"
        network = ["--fid-network", self.file.fid_network] if {"fid", "kid"} & {*metrics} else []
        offline = ["--offline"] if self.file.offline else []
        wanted = [f"--{name}" for name in metrics]
        return [*start, *what, alone, *wanted, *network, *offline, "-d", self.file.device]

    def made_by(self, cell: str, stage: str, of: str = "") -> str:
        """Return the command that a job's results come from, as the job notes it.

        Paths are those below the study's folder, which may be moved; without what may differ from call to call and
        changes no study: the device, and whether a network may be downloaded.
        """
        return self._noted(["attcl", *self.arguments(cell, stage, of)])

    def notes(self) -> Iterator[tuple[Path, str, Path]]:
        """Yield each file in which a job noted its command, what the study's own job notes, and the job's folder.

        Of all jobs and simulated patients that are done, and of trainings that were begun.
        """
        for dataset in self.file.datasets:
            done = self.simulated(dataset)
            if done is not None and done.is_file():
                yield _note(done), self._noted(self._simulated(dataset)), self.origin(dataset)
        for job in self.jobs():
            begun = job[1] in _RESUMED and (self.folder(*job) / "run.json").is_file()
            if begun or self.done(*job).is_file():
                yield _note(self.done(*job)), self.made_by(*job), self.folder(*job)

    def _noted(self, words: Sequence[str]) -> str:
        """Return words of a command without what changes no study."""
        kept, left = [], iter(words)
        for word in left:
            if word in {"-d", "--device"}:
                next(left, None)
            # Whether copies are scored by networks, too, changes nothing else; earlier studies did not ask for it.
            elif word not in {"--offline", "--baselines"} and not word.startswith("--device="):
                path = Path(word)
                kept.append(
                    str(path.relative_to(self.root)) if path.is_relative_to(self.root) else word
                )
        return shlex.join(kept)


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


def _attcl(arguments: Sequence[str]) -> str:
    return f"{_ATTCL} {shlex.join(arguments)}"


def _note(done: Path) -> Path:
    """Return the file in which a job notes its command."""
    return done.with_suffix(".command")


def _noting(done: Path, note: str, start: str) -> str:
    """Return a command that first notes what it will do."""
    place = shlex.quote(str(_note(done)))
    return f"printf '%s\\n' {shlex.quote(note)} > {place} && {{ {start}; }}"


def _without_networks(whole: str, bare: str, scores: Path) -> str:
    """Return a command that fails as `whole` does, but leaves what needs no network if a network could not be had.

    Nothing is scored a second time if the job was killed, or if an earlier call has left scores.
    """
    there = f"[ $code -gt 128 ] || [ -e {shlex.quote(str(scores))} ]"
    return f"{{ {whole}; }} || {{ code=$?; {there} || {bare}; exit $code; }}"
