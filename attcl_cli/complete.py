"""Algorithm 1, planned: which volumes are missing, from which source each is made, and making them.

`plan` looks at names and headers and decides everything; `run` computes. Neither writes outside the output folder, and
a file that exists there is never written again, so a run that was killed is finished by running it again.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from attcl_cli import __version__, volume
from attcl_cli.checkpoint import Weights
from attcl_cli.config import Settings
from attcl_cli.dataset import Case, Dataset, Layout, check_case, ending_of
from attcl_cli.errors import AttclError, UsageError, raise_all
from attcl_cli.files import free_bytes, is_within, read_json, refuse_inside, write_json
from attcl_cli.methods import METHODS, Method
from attcl_cli.overlap import read_ahead
from attcl_cli.volume import Array, Grid, Scale, Volume

_WRITERS = 2
_COMPRESSED_SHARE = 0.25  # of a volume's int16 bytes; generous, real ones take about a seventh


@dataclass(frozen=True)
class Job:
    """All volumes that one case lacks.

    Attributes:
        case: the case.
        sources: the modalities they are made from: one, or all that the case has and the weights know.
        outputs: target -> files to write, relative to the output folder.
        weights: what makes them: the plan's, or its fallback.
    """

    case: Case
    sources: tuple[str, ...]
    outputs: Mapping[str, tuple[PurePosixPath, ...]]
    weights: Weights

    @property
    def source(self) -> str:
        """The source, or the first of them."""
        return self.sources[0]


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before anything is computed.

    Attributes:
        dataset: where the sources lie.
        output: where the volumes go.
        weights: what makes them.
        modal_list: modalities by falling number of volumes; a method of one source takes the first that a case has.
        jobs: what is left to do.
        done: volumes that were missing and lie complete in the output folder.
        slices: (first, stop) of the slices that are synthesised, or None for all.
        samples: looks drawn a volume, whose mean is written; 0: the reference's look.
        uncertainty: whether the standard deviation of the samples is written, too.
        failed: case id -> problem, of cases that `keep_going` leaves out.
        naming: the flat naming of a challenge; None: files are named as the dataset's others are.
        fallback: what makes the volumes of cases that `weights` cannot serve.
    """

    dataset: Dataset
    output: Path
    weights: Weights
    modal_list: tuple[str, ...]
    jobs: tuple[Job, ...]
    done: int
    slices: tuple[int, int] | None
    failed: Mapping[str, AttclError]
    samples: int = 0
    uncertainty: bool = False
    naming: Layout | None = None
    fallback: Weights | None = None

    @property
    def places(self) -> Places:
        """Where files go."""
        return Places(self.dataset, self.output, self.naming)

    @property
    def made_how(self) -> dict[str, Any]:
        """What a label must say alike for a volume of an earlier run to count as done."""
        return _how(self.slices, self.samples, uncertainty=self.uncertainty)

    @property
    def volumes(self) -> int:
        """How many volumes are left to make."""
        return sum(len(job.outputs) for job in self.jobs)


@dataclass(frozen=True)
class Places:
    """Where the files of an output folder go.

    A challenge's folder holds its volumes and nothing else, so that what is said of them lies in a folder beside it.
    """

    dataset: Dataset
    output: Path
    naming: Layout | None = None

    @property
    def records(self) -> Path:
        """The folder of labels and `run.json`: the output folder, or the one beside it."""
        if self.naming is None:
            return self.output
        return self.output.parent / f"{self.output.absolute().name}-labels"

    def files(self, case: Case, target: str) -> tuple[PurePosixPath, ...]:
        """The volume, or its PNG slices, relative to the output folder."""
        if self.naming is None:
            return self.dataset.place(case, target)
        token = self.naming.tokens[target]
        return (PurePosixPath(self.naming.template.format(case=case.id, token=token)),)

    def label(self, case: Case, target: str) -> Path:
        """The JSON label of a volume."""
        if self.naming is None:
            return self.output / self.dataset.place_label(case, target)
        file = self.files(case, target)[0]
        return self.records / (file.name.removesuffix(ending_of(file)) + ".json")


@dataclass(frozen=True)
class Completed:
    """What became of one case.

    Attributes:
        case: its id.
        outputs: the images written, relative to the output folder.
        seconds: time in the network.
        error: why it failed, if it did.
    """

    case: str
    outputs: tuple[str, ...]
    seconds: float
    error: AttclError | None = None


def plan(  # noqa: PLR0913 - what a user may ask of a run
    dataset: Dataset,
    output: Path,
    weights: Weights,
    *,
    fallback: Weights | None = None,
    naming: Layout | None = None,
    targets: Sequence[str] = (),
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    part: tuple[int, int] = (1, 1),
    originals: Sequence[Path] = (),
    keep_going: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Decides what is missing and from what it is made (Algorithm 1, Section 3.6), and checks all that can be checked.

    Algorithm 1 walks through every slice and modality and writes a translation where neither the original nor the
    completed folder has a file; the first one written wins. So the source of a missing volume is the first modality of
    `modal_list` that the case has, and nothing else needs to be generated. A method that accepts many sources is given
    all that the case has.

    Args:
        dataset: the incomplete dataset.
        output: the completed folder; may hold results of earlier runs.
        weights: verified weights.
        fallback: weights for the cases of which the others cannot make all that is wanted.
        naming: names files in this way, flat, and their labels in a folder beside.
        targets: only these modalities; empty: all.
        slices: synthesise only these slices (first, stop); the others stay 0, or are not written as PNG.
        samples: draw so many looks of each volume from the mapping network, and write their mean; 0: the reference's.
        uncertainty: also write their standard deviation, beside the volume.
        part: (k, n): every n-th case, starting with the k-th; parts never overlap.
        originals: further folders that must not be written into (where links of the dataset lead).
        keep_going: leave out cases with problems instead of refusing to start.
        overwrite: make volumes again that exist in the output folder.

    Raises:
        AttclError: everything that is wrong, together.
    """
    places = Places(dataset, output, naming)
    _refuse_output(places, (dataset.root, *originals))
    _refuse_samples(dataset, samples, uncertainty=uncertainty)
    usable = [weights] if fallback is None else [weights, fallback]
    _refuse_looks(usable, samples)
    _refuse_naming(dataset, naming, uncertainty=uncertainty)
    how = _how(slices, samples, uncertainty=uncertainty)
    modal_list = dataset.by_frequency()
    problems: list[AttclError] = []
    existing: list[AttclError] = []
    jobs: list[Job] = []
    done = 0
    for case in dataset.cases[part[0] - 1 :: part[1]]:
        wanted = [name for name in dataset.missing(case) if not targets or name in targets]
        served = fallback is None or _can_make(weights, case, wanted, modal_list)
        job = Job(case, (), {}, weights if served or fallback is None else fallback)
        outputs: dict[str, tuple[PurePosixPath, ...]] = {}
        for target in wanted:
            problems += _escapes(output, places.files(case, target)[0])
            missing = _missing_files(places, case, target, slices, overwrite=overwrite)
            existing += _existing_problems(places, job, target, how, overwrite=overwrite)
            if missing is None:
                done += 1
            else:
                outputs[target] = missing
        if outputs:
            sources = _sources_of(job.weights, case, modal_list)
            jobs.append(replace(job, sources=sources, outputs=outputs))
    problems += _fold(existing)
    for used in usable:
        problems += _lacking(used, [job for job in jobs if job.weights is used], fallback)
    sound: list[Job] = []
    failed: dict[str, AttclError] = {}
    checked = {job.case.id for job in jobs}
    unplanned = {name: own for name, own in dataset.wrong.items() if name not in checked}
    if part[0] == 1 and keep_going:
        failed |= {name: own[0] for name, own in unplanned.items()}
    elif part[0] == 1:
        problems += [problem for own in unplanned.values() for problem in own]
    for job in jobs:
        found = check_case(dataset, job.case, values=True) or _beyond(dataset, job.case, slices)
        if found and keep_going:
            failed[job.case.id] = found[0]
            continue
        problems += found
        sound.append(job)
    if not problems:
        problems += _no_room(dataset, output, sound)
    raise_all(problems)
    return Plan(
        dataset=dataset,
        output=output,
        weights=weights,
        modal_list=modal_list,
        jobs=tuple(sound),
        done=done,
        slices=slices,
        failed=failed,
        samples=samples,
        uncertainty=uncertainty,
        naming=naming,
        fallback=fallback,
    )


def _missing_files(
    places: Places, case: Case, target: str, slices: tuple[int, int] | None, *, overwrite: bool
) -> tuple[PurePosixPath, ...] | None:
    """The files of a volume that are to be written; None where all are there (Algorithm 1's path check).

    Files appear whole, so one that exists is complete.
    """
    whole = places.files(case, target)
    files = whole[slices[0] : slices[1]] if slices and _is_png(places.dataset) else whole
    if overwrite:
        return files
    missing = tuple(file for file in files if not (places.output / file).exists())
    return missing if missing or not files else None


def source_of(case: Case, modal_list: Sequence[str]) -> str:
    """What a case's missing volumes are made from: the first modality of the list that it has."""
    return next(name for name in modal_list if name in case.files)


def _sources_of(weights: Weights, case: Case, modal_list: Sequence[str]) -> tuple[str, ...]:
    """Algorithm 1's source, or all that the case has and the weights know, in the dataset's order."""
    if METHODS[weights.info.settings.method].accepts == "many":
        known = tuple(name for name in sorted(case.files) if name in weights.info.modalities)
        if known:
            return known
    return (source_of(case, modal_list),)


def _can_make(
    weights: Weights, case: Case, targets: Sequence[str], modal_list: Sequence[str]
) -> bool:
    """Whether the weights make all these targets from what the case has."""
    info = weights.info
    needs = METHODS[info.settings.method].needs(info.settings, info.modalities)
    known = all(name in info.modalities for name in _sources_of(weights, case, modal_list))
    return known and all(
        target in needs and set(needs[target]) <= set(case.files) for target in targets
    )


def run(
    plan: Plan,
    method: Method,
    *,
    device: torch.device,
    fallback: Method | None = None,
    batch_size: int = 64,
    workers: int = 2,
    keep_going: bool = False,
) -> Iterator[Completed]:
    """Makes the planned volumes; yields each case when its files are on the disk.

    While the network works on one case the next ones are read and the last ones written; memory holds a handful of
    cases, however many there are.

    Args:
        plan: what is to be done.
        method: with the plan's weights, on `device`.
        device: where the networks run.
        fallback: with the weights of the plan's fallback, where it has jobs for it.
        batch_size: slices moved to the device at once; changes memory, never results.
        workers: cases read ahead; 0 reads within the loop.
        keep_going: yield a failed case and go on; else its error is raised.

    Raises:
        AttclError: a file cannot be read or written. What was finished stays.
    """
    slots = BoundedSemaphore(
        _WRITERS + 1
    )  # a slow disk holds the loop up instead of filling the memory
    pending: list[tuple[Job, float, Future[tuple[str, ...]]]] = []

    def load(job: Job) -> _Prepared:
        return _prepare(plan, job)

    with ThreadPoolExecutor(max_workers=_WRITERS) as writers:
        for job, future in read_ahead(load, plan.jobs, depth=workers):
            try:
                prepared = future.result()
                clock = time.monotonic()
                chosen = method if job.weights is plan.weights or fallback is None else fallback
                made = _translate(plan, chosen, job, prepared, device, batch_size)
                seconds = time.monotonic() - clock
            except AttclError as error:
                yield _failed(job, error, keep_going=keep_going)
                continue
            except torch.cuda.OutOfMemoryError as error:
                raise AttclError(
                    f"{device}: out of memory on {job.case.id}, wanted room for {batch_size} slices",
                    "run with --batch-size 8, free the device, or use --device cpu",
                ) from error
            slots.acquire()
            writing = writers.submit(_write, plan, job, prepared, made)
            writing.add_done_callback(lambda _future: slots.release())
            pending.append((job, seconds, writing))
            while pending and pending[0][2].done():
                yield _finished(*pending.pop(0), keep_going=keep_going)
        while pending:
            yield _finished(*pending.pop(0), keep_going=keep_going)


def translate(
    method: Method,
    slices: Mapping[str, torch.Tensor],
    targets: Sequence[str],
    *,
    image_size: int,
    canvas: int,
    downs: int,
    sample: int | None = None,
) -> dict[str, torch.Tensor]:
    """Translates up to `slices_a_call` slices, and brings them back to their own size.

    Args:
        method: with weights.
        slices: source -> (B, 1, h, w) float32 in [-1, 1], padded and averaged down (`fit`), on the method's device.
        targets: the modalities wanted.
        image_size, canvas, downs: of the weights' settings.
        sample: draw the look of each target with this number instead of taking the reference's.

    Returns:
        target -> (B, 1, h * factor, w * factor), clipped to [-1, 1]; factor = canvas / image_size.
    """
    count, *shape = next(iter(slices.values())).shape
    filled = {}
    for source, x in slices.items():
        lacking = slices_a_call(image_size, x.device) - count
        whole = torch.cat([x, x.new_full((lacking, *shape), -1.0)]) if lacking > 0 else x
        filled[source] = whole.contiguous(memory_format=torch.channels_last)
    factor = canvas // image_size
    fakes = method.synthesise(filled, targets, sample=sample)
    if factor > 1:
        fakes = {
            target: F.interpolate(fake, scale_factor=factor, mode="bicubic", align_corners=False)
            for target, fake in fakes.items()
        }
    return {target: fake[:count].clamp(-1, 1) for target, fake in fakes.items()}


def slices_a_call(image_size: int, device: torch.device) -> int:
    """How many slices go through the network in every call, the last call filled up.

    Convolution kernels round differently for different batch shapes; a shape that depends on nothing but the weights
    and the kind of device is what makes results independent of batch size, parts and order, to the bit. A CPU is
    fastest where the features of a call fit its cache (256 pixels: 8 at once take 1.4 times as long as 2).
    """
    return 16 if device.type != "cpu" else max(2, min(8, 512 // image_size))


def fit(slices: Array, *, image_size: int, canvas: int, downs: int) -> Array:
    """Pads slices (N, H, W) to the canvas, or to the next size that the generator can halve, and averages down."""
    step = canvas // image_size * 2**downs
    height, width = (max(canvas, -(-side // step) * step) for side in slices.shape[-2:])
    return volume.shrink(volume.pad(slices, (height, width)), canvas // image_size)


def link_originals(dataset: Dataset, output: Path) -> int:
    """Links every file of the dataset into the output folder, which then is a whole dataset; says how many."""
    made = 0
    for case in dataset.cases:
        for files in (*case.files.values(), case.segmentation):
            for file in files:
                link = output / file
                if not is_within(link.parent, output):
                    raise _escape(link, output)
                if not link.exists() and not link.is_symlink():
                    try:
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.symlink_to((dataset.root / file).resolve())
                    except OSError as error:
                        raise AttclError(
                            f"{link}: not linked ({error.strerror}), "
                            "wanted a file system with symbolic links",
                            "run without --link-originals",
                        ) from error
                    made += 1
    return made


@dataclass(frozen=True)
class _Prepared:
    """A case, read and ready for the network: only what is needed from here on is kept."""

    small: Mapping[str, Array]  # source -> (N, h, w) float32 in [-1, 1]: the slices that show any
    indices: Array  # (N,) where they belong
    inside: Array  # (D, H, W) bool: where any source is not 0
    grid: Grid

    def spread(self, slices: Array) -> Array:
        """(N, H, W), the slices of `indices` -> (D, H, W) float32, 0 where all sources are 0."""
        data = np.zeros(self.inside.shape, dtype=np.float32)
        data[self.indices] = slices
        data[~self.inside] = 0
        return data


def _prepare(plan: Plan, job: Job) -> _Prepared:
    images = volume.load_case(
        {modality: plan.dataset.paths(job.case, modality) for modality in job.case.files}
    )
    sources = {name: images.volumes[name] for name in job.sources}
    inside = volume.brain_of([source.data for source in sources.values()])
    inside[~_wanted(plan, job, len(inside))] = False
    return _prepared(sources, inside, images.brain, images.scales, job.weights.info.settings)


def _prepared(
    sources: Mapping[str, Volume],
    inside: Array,
    brain: Array,
    scales: Mapping[str, Scale],
    settings: Settings,
) -> _Prepared:
    indices = np.flatnonzero(inside.any(axis=(1, 2)))
    sizes = {"image_size": settings.image_size, "canvas": settings.canvas, "downs": settings.downs}
    small = {
        name: fit(volume.normalise(source.data[indices], brain[indices], scales[name]), **sizes)
        for name, source in sources.items()
    }
    return _Prepared(small, indices, inside, next(iter(sources.values())).grid)


def _wanted(plan: Plan, job: Job, depth: int) -> Array:
    """(D,) bool: the slices that are to be written."""
    wanted = np.zeros(depth, dtype=bool)
    if not _is_png(plan.dataset):
        wanted[slice(*plan.slices) if plan.slices else slice(None)] = True
        return wanted
    for target, files in job.outputs.items():
        missing = set(files)
        wanted |= [file in missing for file in plan.places.files(job.case, target)]
    return wanted


@dataclass(frozen=True)
class _Made:
    """One target of a case: (N, H, W) float32, the slices of `_Prepared.indices`."""

    mean: Array  # in [-1, 1]
    deviation: Array | None  # of the samples, in the same unit


@dataclass(frozen=True)
class _Network:
    """What translates, and how much of it at once."""

    method: Method
    settings: Settings
    device: torch.device
    batch_size: int

    def looks(
        self,
        prepared: _Prepared,
        targets: Sequence[str],
        samples: Sequence[int | None],
    ) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Rows of `_Prepared.indices` after each other, and target -> (samples, B, H, W) in [-1, 1] of them."""
        s = self.settings
        call = slices_a_call(s.image_size, self.device)
        at_once = max(self.batch_size // call, 1) * call
        for start in range(0, len(prepared.indices), at_once):
            block = {
                name: torch.from_numpy(small[start : start + at_once])[:, None].to(
                    self.device, non_blocking=True
                )
                for name, small in prepared.small.items()
            }
            count = min(at_once, len(prepared.indices) - start)
            for offset in range(0, count, call):
                chunk = {name: whole[offset : offset + call] for name, whole in block.items()}
                drawn = [
                    translate(
                        self.method,
                        chunk,
                        targets,
                        image_size=s.image_size,
                        canvas=s.canvas,
                        downs=s.downs,
                        sample=sample,
                    )
                    for sample in samples
                ]
                rows = slice(start + offset, start + min(offset + call, count))
                yield (
                    rows,
                    {name: torch.stack([fakes[name][:, 0] for fakes in drawn]) for name in targets},
                )


def _translate(
    plan: Plan, method: Method, job: Job, prepared: _Prepared, device: torch.device, batch_size: int
) -> dict[str, _Made]:
    _, height, width = prepared.grid.axial_shape
    shape = (len(prepared.indices), height, width)
    made = {
        target: _Made(
            np.empty(shape, dtype=np.float32),
            np.empty(shape, dtype=np.float32) if plan.uncertainty else None,
        )
        for target in job.outputs
    }
    network = _Network(method, job.weights.info.settings, device, batch_size)
    samples: Sequence[int | None] = range(plan.samples) or [None]
    for rows, looks in network.looks(prepared, tuple(job.outputs), samples):
        for target, own in made.items():
            own.mean[rows] = volume.crop(looks[target].mean(dim=0).cpu().numpy(), (height, width))
            if own.deviation is not None:
                deviation = looks[target].std(dim=0).cpu().numpy()
                own.deviation[rows] = volume.crop(deviation, (height, width))
    return made


@dataclass(frozen=True)
class InMemory:
    """Completion of volumes that are in memory, nothing written: for scores of what is not on disk."""

    method: Method
    weights: Weights
    device: torch.device
    batch_size: int = 64

    def volumes(
        self, source: Volume, brain: Array, name: str, targets: Sequence[str]
    ) -> dict[str, Array]:
        """A source volume in each target modality.

        Args:
            source: the source.
            brain: (D, H, W) bool, non-zero in any modality of the case.
            name: the source's modality.
            targets: the modalities wanted.

        Returns:
            target -> (D, H, W) float32, intensities as `run` would write them before rounding.
        """
        prepared = self._prepare(source, source.data != 0, brain, name)
        scales = self.weights.info.scales
        made = self._images(prepared, targets, [None])[0]
        return {
            target: prepared.spread(volume.denormalise(made[target], scales[target]))
            for target in targets
        }

    def samples(
        self, source: Volume, brain: Array, name: str, target: str, indices: Array, *, count: int
    ) -> list[Array]:
        """`count` looks of some slices, each (N, H, W) float32 in [0, 1], drawn from the mapping network."""
        inside = np.zeros_like(brain)
        inside[indices] = source.data[indices] != 0
        prepared = self._prepare(source, inside, brain, name)
        drawn = self._images(prepared, [target], range(count))
        return [
            np.where(inside, (prepared.spread(made[target]) + 1) / 2, 0)[indices] for made in drawn
        ]

    def _prepare(self, source: Volume, inside: Array, brain: Array, name: str) -> _Prepared:
        scale = volume.intensity_scale(source.data, brain)
        assert scale is not None  # a source without contrast is refused when it is read
        settings = self.weights.info.settings
        return _prepared({name: source}, inside, brain, {name: scale}, settings)

    def _images(
        self, prepared: _Prepared, targets: Sequence[str], samples: Sequence[int | None]
    ) -> list[dict[str, Array]]:
        """For each sample target -> (N, H, W) in [-1, 1], the slices of `prepared.indices`."""
        size = prepared.grid.axial_shape[1:]
        parts: list[dict[str, list[Array]]] = [{target: [] for target in targets} for _ in samples]
        network = _Network(self.method, self.weights.info.settings, self.device, self.batch_size)
        for _, looks in network.looks(prepared, targets, samples):
            for target in targets:
                for own, look in zip(parts, looks[target].cpu().numpy(), strict=True):
                    own[target].append(volume.crop(look, size))
        return [{target: np.concatenate(own[target]) for target in targets} for own in parts]


def _write(plan: Plan, job: Job, prepared: _Prepared, made: Mapping[str, _Made]) -> tuple[str, ...]:
    written: list[str] = []
    for target, files in job.outputs.items():
        data = prepared.spread(
            volume.denormalise(made[target].mean, job.weights.info.scales[target])
        )
        paths = [plan.output / file for file in files]
        if _is_png(plan.dataset):  # only the slices that are wanted and not yet there
            own = [file.name for file in plan.places.files(job.case, target)]
            data = data[[own.index(file.name) for file in files]]
        # The label first: an image without its label never exists. Nor does one under the label of another.
        label_file = plan.places.label(job.case, target)
        label = _label(plan, job, target)
        if label_file.exists() and _read_label(label_file) != label:
            for file in plan.places.files(job.case, target):
                with contextlib.suppress(OSError):
                    (plan.output / file).unlink()
        write_json(label_file, label)
        deviation = made[target].deviation
        if deviation is not None:  # before the volume, whose existence says that all is done
            file = uncertainty_file(files[0])
            _write_deviation(plan, job, prepared, target, deviation, file)
            written.append(str(file))
        volume.save(
            paths,
            data,
            prepared.grid,
            description=f"attcl {__version__} synthetic {target} from {', '.join(job.sources)}",
        )
        written += [str(file) for file in files]
    return tuple(written)


def _write_deviation(
    plan: Plan, job: Job, prepared: _Prepared, target: str, deviation: Array, file: PurePosixPath
) -> None:
    """The samples' standard deviation in the target's intensity unit, float32."""
    scale = job.weights.info.scales[target]
    data = prepared.spread(deviation * np.float32((scale.high - scale.low) / 2))
    description = f"attcl {__version__} std of {plan.samples} synthetic {target}, no image"
    like = replace(prepared.grid, dtype=np.dtype(np.float32))
    volume.save([plan.output / file], data, like, description=description)


def uncertainty_file(file: PurePosixPath) -> PurePosixPath:
    """Where the standard deviation beside a volume goes: under a name that no layout takes for an image."""
    ending = ending_of(file)
    return file.with_name(file.name.removesuffix(ending) + "_uncertainty" + ending)


def _label(plan: Plan, job: Job, target: str) -> dict[str, Any]:
    weights = job.weights
    sources = [
        {"modality": name, "files": [str(file) for file in job.case.files[name][:1]]}
        for name in job.sources
    ]
    return {
        "synthetic": True,
        "target": target,
        **({"source": sources[0]} if len(sources) == 1 else {"sources": sources}),
        **plan.made_how,
        "method": weights.info.settings.method,
        "weights": {"name": weights.name, "sha256": weights.sha256},
        "seed": weights.info.settings.seed,
        "attcl_version": __version__,
        "note": "Synthesised by attcl; research use only, not for diagnosis.",
    }


def _refuse_output(places: Places, originals: Sequence[Path]) -> None:
    for folder in (places.output, places.records):
        refuse_inside(folder, originals, flag="--cpl")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--cpl: {folder} is a file, wanted a folder", "choose another --cpl")


def _lacking(weights: Weights, jobs: Sequence[Job], fallback: Weights | None) -> list[AttclError]:
    """What the weights would have to know to do their jobs: a problem for each modality, and each target."""
    info = weights.info
    many = METHODS[info.settings.method].accepts == "many"
    needed = Counter(name for job in jobs for name in (*job.sources, *job.outputs))
    known = ", ".join(info.modalities)
    problems = [
        AttclError(
            f"{weights.path}: knows {known}, wanted {name} too ({count} cases need it)",
            "train on data that has it, or choose other modalities with --target",
        )
        for name, count in sorted(needed.items())
        if name not in info.modalities
    ]
    if not many:
        return problems
    needs = METHODS[info.settings.method].needs(info.settings, info.modalities)
    hint = (
        "name other weights for these cases: --fallback WEIGHTS, or restrict with --target"
        if fallback is None
        else "choose another --fallback, or restrict with --target"
    )
    unmade: dict[str, list[str]] = {}
    for job in jobs:
        for target in job.outputs:
            if target not in info.modalities:
                continue
            absent = sorted(set(needs.get(target, ())) - set(job.case.files))
            if target not in needs:
                unmade.setdefault(f"makes {', '.join(needs)}, not {target}", []).append(job.case.id)
            elif absent:
                told = f"makes {target} from {', '.join(needs[target])}, but cases lack {', '.join(absent)}"
                unmade.setdefault(told, []).append(job.case.id)
    return problems + [
        AttclError(
            f"{weights.path}: {told}, wanted a model for {len(cases)} cases (the first: {cases[0]})",
            hint,
        )
        for told, cases in sorted(unmade.items())
    ]


def _beyond(dataset: Dataset, case: Case, slices: tuple[int, int] | None) -> list[AttclError]:
    if slices is None:
        return []
    paths = dataset.paths(case, next(iter(case.files)))
    depth = len(paths) if _is_png(dataset) else volume.read_grid(paths).axial_shape[0]
    if slices[0] < depth:
        return []
    return [
        UsageError(
            f"--slices: {slices[0]}:{slices[1]}, but {case.id} has {depth} slices, wanted some of these",
            "slices are counted from 0, at the feet",
        )
    ]


def _existing_problems(
    places: Places, job: Job, target: str, how: Mapping[str, Any], *, overwrite: bool
) -> list[AttclError]:
    """A result of an earlier run counts as done only if it is whole and was made in the same way.

    What attcl did not make is never replaced, not even with --overwrite: it may be an original.
    """
    files = (places.output / file for file in places.files(job.case, target))
    present = [file for file in files if file.exists()]
    if not present:
        return []
    weights, label = job.weights, places.label(job.case, target)
    if not label.is_file():
        return [
            AttclError(
                f"{present[0]}: has no label {label.name}, wanted a file made by attcl",
                "choose another --cpl, or move that file away",
            )
        ]
    if overwrite:
        return []
    try:
        volume.read_grid(present)
    except AttclError as error:
        hint = "it is no file that attcl left behind; remove it, or make it again with --overwrite"
        return [AttclError(error.message, hint)]
    told = _made_otherwise(_read_label(label), weights, how)
    again = "choose another --cpl, or make it again with --overwrite"
    return [AttclError(f"{present[0]}: {told}", again)] if told else []


def _made_otherwise(document: Mapping[str, Any], weights: Weights, how: Mapping[str, Any]) -> str:
    """How the volume of this label was made, if not as this run would make it; else ""."""
    made_by = str(document.get("weights", {}).get("sha256"))
    if made_by != weights.sha256:
        named = document.get("weights", {}).get("name")
        return f"made by weights {made_by[:12]} ({named}), wanted {weights.sha256[:12]} ({weights.name})"
    for name, wanted in how.items():
        if document.get(name) != wanted:
            return f"made with --{name} {document.get(name)}, wanted {wanted}"
    return ""


def _fold(problems: Sequence[AttclError]) -> list[AttclError]:
    """One problem for all files of which the same is to be said: a whole folder may be of other weights."""
    alike: dict[str, list[AttclError]] = {}
    for problem in problems:
        said = problem.message.split(": ", 1)[-1]
        alike.setdefault(said if said.startswith("made ") else problem.message, []).append(problem)
    folded = []
    for group in alike.values():
        more = f"{group[0].message}; and {len(group) - 1} more like it"
        folded.append(AttclError(more, group[0].hint) if len(group) > 1 else group[0])
    return folded


def _escapes(output: Path, file: PurePosixPath) -> list[AttclError]:
    path = output / file
    return (
        [_escape(path, output)] if path.is_symlink() or not is_within(path.parent, output) else []
    )


def _escape(path: Path, output: Path) -> AttclError:
    return AttclError(
        f"{path}: leads out of {output} through a link, wanted a place inside",
        "remove the link, or choose another --cpl",
    )


def _read_label(path: Path) -> dict[str, Any]:
    """A damaged label is nobody's."""
    try:
        document = read_json(path)
    except AttclError:
        return {}
    return document if isinstance(document, dict) else {}


def _no_room(dataset: Dataset, output: Path, jobs: Sequence[Job]) -> list[AttclError]:
    needed = 0.0
    for job in jobs:
        shape = volume.read_grid(dataset.paths(job.case, job.source)).shape
        share = 1 if dataset.extension_of(job.case) == ".nii" else _COMPRESSED_SHARE
        needed += float(np.prod(shape, dtype=np.int64)) * 2 * share * len(job.outputs)
    free = free_bytes(output)
    if free >= needed:
        return []
    return [
        AttclError(
            f"{output}: {free / 1e9:.2f} GB free, wanted about {needed / 1e9:.2f} GB",
            "free some space or choose another --cpl",
        )
    ]


def _failed(job: Job, error: AttclError, *, keep_going: bool) -> Completed:
    if not keep_going:
        raise error
    return Completed(job.case.id, (), 0.0, error)


def _finished(
    job: Job, seconds: float, writing: Future[tuple[str, ...]], *, keep_going: bool
) -> Completed:
    try:
        return Completed(job.case.id, writing.result(), seconds)
    except AttclError as error:
        return _failed(job, error, keep_going=keep_going)


def _refuse_samples(dataset: Dataset, samples: int, *, uncertainty: bool) -> None:
    if uncertainty and samples < 2:  # noqa: PLR2004
        raise UsageError(
            f"--uncertainty: of {samples} samples, wanted 2 or more", "add --samples 10"
        )
    if uncertainty and _is_png(dataset):
        raise UsageError("--uncertainty: of PNG slices, wanted NIfTI volumes", "leave it out")


def _refuse_looks(used: Sequence[Weights], samples: int) -> None:
    for weights in used:
        method = weights.info.settings.method
        if samples and not METHODS[method].styled:
            raise UsageError(
                f"--samples: {samples} with weights of {method}, which has one look a volume, wanted 0",
                "leave it out, or choose weights of attcl-gan with -w",
            )


def _refuse_naming(dataset: Dataset, naming: Layout | None, *, uncertainty: bool) -> None:
    """A challenge takes NIfTI volumes of its own cases and modalities, and nothing else."""
    if naming is None:
        return
    flag = f"--layout {naming.name}"
    if _is_png(dataset):
        raise UsageError(f"{flag}: of PNG slices, wanted NIfTI volumes", "leave it out")
    if uncertainty:
        raise UsageError(
            f"{flag}: with --uncertainty, wanted volumes alone", "leave one of them out"
        )
    pattern = re.compile(naming.fields["case"])
    strange = [case.id for case in dataset.cases if not pattern.fullmatch(case.id)]
    if strange:
        raise UsageError(
            f"{flag}: case {strange[0]!r} ({len(strange)} of {len(dataset.cases)}), "
            "wanted cohort-ID-timepoint such as BraTS-GLI-00001-000",
            "name the cases as the challenge does, or leave --layout out",
        )
    unknown = [name for name in dataset.modalities if name not in naming.tokens]
    if unknown:
        raise UsageError(
            f"{flag}: modality {unknown[0]}, wanted {', '.join(naming.tokens)}", "leave it out"
        )


def _how(slices: tuple[int, int] | None, samples: int, *, uncertainty: bool) -> dict[str, Any]:
    said = list(slices) if slices else "all"
    return {"slices": said, "samples": samples, "uncertainty": uncertainty}


def _is_png(dataset: Dataset) -> bool:
    return "{slice}" in dataset.layout.template
