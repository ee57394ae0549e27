"""Makes the volumes of a plan: reading, networks and writing side by side, each volume with its side-car.

Leaves to `plan` what is made from what. A file that exists is never written again, so a run that was killed is finished
by running it again. One whose side-car was removed keeps its place if it holds the very bytes that are made.
"""

from __future__ import annotations

import contextlib
import filecmp
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import torch

from attcl_cli import __version__
from attcl_cli.completion.doubt import distance, vector_of
from attcl_cli.completion.guided import Guidance
from attcl_cli.completion.inference import (
    Made,
    Network,
    Pass,
    intensities_of,
    make,
    passes_of,
)
from attcl_cli.completion.jobs import (
    OLD_MANNER,
    Completed,
    CompletionPlan,
    Doubt,
    Job,
    not_made_by_attcl,
    says_made_by_attcl,
    uncertainty_file,
)
from attcl_cli.confined import require_inside
from attcl_cli.data import derivative, intensities, volumes
from attcl_cli.data.dataset import Case, Dataset, read_side_car
from attcl_cli.data.intensities import Array
from attcl_cli.data.layouts import ending_of
from attcl_cli.data.unchanged import require_unchanged
from attcl_cli.data.volumes import Grid
from attcl_cli.data.written import require_finite, require_image
from attcl_cli.errors import AttclError
from attcl_cli.files import sha256, write_json
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import title_of
from attcl_cli.prefetch import read_ahead
from attcl_cli.report.rounding import rounded
from attcl_cli.temporaries import temporary_folder

WRITERS = 2
"""Threads that write; each holds a case in memory."""


def make_volumes(
    plan: CompletionPlan,
    methods: Mapping[str, Method],
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 2,
    keep_going: bool = False,
) -> Generator[Completed, None, None]:
    """Make the planned volumes; close the generator to end before all are made.

    While the network works on one case the next ones are read and the last ones written; memory holds a handful of
    cases, however many there are.

    Args:
        plan: what is to be done.
        methods: SHA-256 of the weights -> the method with them, on `device`; all that the plan uses.
        device: where the networks run.
        batch_size: slices moved to the device at once; changes memory, never results.
        workers: cases read ahead; 0 reads within the loop.
        keep_going: yield a failed case and continue; otherwise its error is raised.

    Yields:
        Each job when its files are on the disk, in the plan's order.

    Raises:
        AttclError: a file cannot be read or written. What was finished stays.
    """
    slots = BoundedSemaphore(WRITERS + 1)  # a slow disk holds the loop up, and memory does not grow
    pending: list[tuple[Job, float, Mapping[str, Doubt], Future[tuple[str, ...]]]] = []
    networks = {key: Network(method, device, batch_size) for key, method in methods.items()}

    def load(job: Job) -> _Loaded:
        return _load(plan, job, methods)

    def finish_all() -> Iterator[Completed]:
        while pending:
            yield _finished(*pending.pop(0), keep_going=keep_going)

    with ThreadPoolExecutor(max_workers=WRITERS) as writers:
        for job, future in read_ahead(load, plan.jobs, depth=workers):
            try:
                loaded = future.result()
                clock = time.monotonic()
                made = _translate(plan, networks, job, loaded)
                seconds = time.monotonic() - clock
            except AttclError as error:
                yield from finish_all()  # what was made before is reported before
                yield _failed(job, error, keep_going=keep_going)
                continue
            except torch.cuda.OutOfMemoryError as error:
                raise AttclError(
                    f"{device}: out of memory on {job.case.id}, expected room for {batch_size} slices",
                    "run with --batch-size 8, free the device, or use --device cpu",
                    code="out-of-memory",
                ) from error
            slots.acquire()
            doubts = {target: loaded.doubt(made[target]) for target in job.outputs}
            writing = writers.submit(_write, plan, job, loaded.frame, loaded.guidance, made, doubts)
            writing.add_done_callback(lambda _future: slots.release())
            pending.append((job, seconds, doubts, writing))
            while pending and pending[0][-1].done():
                yield _finished(*pending.pop(0), keep_going=keep_going)
        yield from finish_all()


@dataclass(frozen=True)
class _Frame:
    """Where the voxels of a case's new volumes lie.

    Attributes:
        inside: (D, H, W) bool, the voxels that go through the networks.
        written: (D,) bool, the slices that are written; the others are only looked at.
        grid: of the case.
    """

    inside: Array
    written: Array
    grid: Grid

    def volume(self, values: Array) -> Array:
        """Return values of the voxels `inside` as a whole volume, 0 in what is not written."""
        data = intensities.volume_of(values, self.inside)
        data[~self.written] = 0
        return data


@dataclass(frozen=True)
class _Loaded:
    """A case, read and ready for the networks."""

    frame: _Frame
    passes: Sequence[Pass]
    guidance: Guidance | None
    distance: float | None
    far: bool | None

    def doubt(self, made: Made) -> Doubt:
        """Return how far a volume of the case is to be distrusted."""
        return Doubt(_rounded(made.disagreement), _rounded(self.distance), self.far)


def _load(plan: CompletionPlan, job: Job, methods: Mapping[str, Method]) -> _Loaded:
    images = _read(plan, job)
    sources = {name: images.volumes[name].data for name in job.sources}
    shown = intensities.brain_of(list(sources.values()))
    written = _slices_to_write(plan, job, len(shown))
    seen, info, manner = written.copy(), job.weights.info, plan.manner
    if any(manner.intensities_for(info, target) != "network" for target in job.outputs):
        span = intensities.training_slices(len(shown))
        seen[span.start : span.stop] = True  # whose quantiles are measured
    inside = shown & seen[:, None, None]
    passes = [
        item
        for maker in job.makers
        for item in passes_of(
            maker.weights.sha256,
            methods[maker.weights.sha256],
            {name: sources[name] for name in maker.sources},
            shown,
            inside,
            images.brain,
            images.scales,
            mirror=manner.mirrors(info),
            planes=manner.planes,
            share=1 / len(job.makers),
        )
    ]
    vectors = {
        name: vector
        for name in job.makers[0].sources
        if name in info.training_statistics
        and (vector := vector_of(sources[name], images.brain, images.scales[name], info.settings))
    }
    away = distance(vectors, info.training_statistics)
    return _Loaded(
        _Frame(inside, written, images.volumes[job.sources[0]].grid),
        passes,
        _guidance(images, job.sources, manner.guides_of(job.makers)),
        away.value if away else None,
        away.far if away else None,
    )


def _guidance(
    images: volumes.CaseImages, sources: Sequence[str], withheld: Sequence[str]
) -> Guidance | None:
    """Return what the volumes of a case are sharpened by; None if nothing was withheld from the networks."""
    if not withheld:
        return None
    scaled = {
        name: intensities.normalise(images.volumes[name].data, images.brain, images.scales[name])
        for name in (*sources, *withheld)
    }
    return Guidance([scaled[name] for name in sources], [scaled[name] for name in withheld])


def _read(plan: CompletionPlan, job: Job) -> volumes.CaseImages:
    """Return the volumes of a case, as they were when they were checked.

    Raises:
        AttclError: a file has changed since, or cannot be read.
    """
    with require_unchanged(job.seen):
        return volumes.load_case(
            {modality: plan.dataset.paths(job.case, modality) for modality in job.case.files},
            background=plan.dataset.background,
        )


def _slices_to_write(plan: CompletionPlan, job: Job, depth: int) -> Array:
    """Return which slices are to be written, (D,) bool."""
    chosen = np.zeros(depth, dtype=bool)
    for target, files in job.outputs.items():
        whole = plan.places.files(job.case, target)
        chosen |= plan.dataset.layout.slices_of_files(whole, files, depth)
    if plan.manner.slices:
        outside = np.ones(depth, dtype=bool)
        outside[slice(*plan.manner.slices)] = False
        chosen[outside] = False
    return chosen


def _translate(
    plan: CompletionPlan, networks: Mapping[str, Network], job: Job, loaded: _Loaded
) -> dict[str, Made]:
    samples: Sequence[int | None] = range(plan.manner.samples) or [None]
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        volumes_made = make(
            loaded.passes,
            networks,
            tuple(job.outputs),
            samples,
            deviation=plan.manner.uncertainty,
        )
    for target, made in volumes_made.items():
        file = plan.output / job.outputs[target][0]
        # Here, since bringing intensities back clips: infinity would become the brightest voxel.
        require_finite(made.mean, file, made_by=_makers(job))
    return volumes_made


def _write(
    plan: CompletionPlan,
    job: Job,
    frame: _Frame,
    guidance: Guidance | None,
    made: Mapping[str, Made],
    doubts: Mapping[str, Doubt],
) -> tuple[str, ...]:
    outputs: list[str] = []
    info = job.weights.info
    for target, files in job.outputs.items():
        style = job.styles[target]
        values = intensities_of(
            made[target].mean,
            frame.inside,
            info,
            target,
            even=plan.manner.evens(info),
            asked=plan.manner.intensities_for(info, target, sharpened=guidance is not None),
            guidance=guidance,
            scale=style.scale,
        )
        first = plan.output / files[0]
        ends = (style.scale.low, style.scale.high)
        require_image(values, first, ends, made_by=_makers(job))
        data = frame.volume(values) + np.float32(style.background)
        whole = plan.places.files(job.case, target)
        save = partial(
            volumes.save,
            like=replace(frame.grid, dtype=style.dtype, scaled=False),
            description=plan.manner.description(job.makers, target),
            made_by=_makers(job),
        )
        proven = _proven(plan, job, target, data, save)
        # The side-car first: an image without one never exists. Nor does one beside the side-car of another.
        side_car = plan.places.side_car(job.case, target)
        document = _side_car(plan, job, target, doubts[target])
        deviation_file = uncertainty_file(whole[0])
        of_before = [deviation_file] if says_made_by_attcl(plan.output / deviation_file) else []
        if side_car.exists():
            before = read_side_car(side_car)
            if _making(before) != _making(document):
                new = [it for it in whole if it not in job.existing.get(target, ())]
                if any((plan.output / it).exists() for it in new):
                    raise _made_meanwhile(plan.output / whole[0])
                _remove(plan, (*whole, *of_before))
            elif "doubt" in before and len(files) < len(whole):
                document["doubt"] = before["doubt"]  # of more of the slices than are made now
        else:
            _remove(plan, of_before)
        write_json(side_car, document)
        deviation = made[target].deviation
        if deviation is not None:  # before the volume, whose existence says that all is done
            file = uncertainty_file(files[0])
            _write_deviation(plan, job, frame, target, deviation, file)
            outputs.append(str(file))
        left = [file for file in files if file not in proven]
        if left:
            save([plan.output / file for file in left], _of_files(data, whole, left))
            after = read_side_car(side_car)
            if after and _making(after) != _making(document):  # of a run that began meanwhile
                _remove(plan, (*left, uncertainty_file(whole[0])))
                raise _made_meanwhile(plan.output / whole[0])
        outputs += [str(file) for file in files]
    return tuple(outputs)


def _remove(plan: CompletionPlan, files: Iterable[PurePosixPath]) -> None:
    """Remove files of the output folder, so that none lies beside the side-car of another run."""
    for file in files:
        require_inside(plan.output / file)
        with contextlib.suppress(OSError):
            (plan.output / file).unlink()


def _made_meanwhile(file: Path) -> AttclError:
    """Return the error of a volume that another run with other settings makes at the same time."""
    return AttclError(
        f"{file}: another run makes it with other settings, expected the same settings in all runs into one folder",
        "wait until the other run has ended, and choose another --cpl for this one",
        code="made-meanwhile",
    )


def _of_files(data: Array, whole: Sequence[PurePosixPath], files: Sequence[PurePosixPath]) -> Array:
    """Return the part of a volume that is in some of its files: all of it, or one slice per file."""
    return data if len(whole) == 1 else data[[whole.index(file) for file in files]]


def _proven(
    plan: CompletionPlan, job: Job, target: str, data: Array, save: Callable[..., None]
) -> list[PurePosixPath]:
    """Return the files of a volume that lie there without a side-car, and hold the very bytes that are made now.

    Raises:
        AttclError: one holds others. It is not touched: somebody may have put it there.
    """
    side_car = plan.places.side_car(job.case, target)
    files = [it for it in job.unproven.get(target, ()) if (plan.output / it).exists()]
    if not files or side_car.exists():
        return []
    with temporary_folder(plan.output / files[0]) as folder:
        again = [folder / f"{number}{ending_of(file)}" for number, file in enumerate(files)]
        save(again, _of_files(data, plan.places.files(job.case, target), files))
        for file, copy in zip(files, again, strict=True):
            if not filecmp.cmp(plan.output / file, copy, shallow=False):
                other = " and other bytes than this run makes"
                raise not_made_by_attcl(plan.output / file, side_car, other)
    return files


def _makers(job: Job) -> str:
    """Return the weights of a job, as errors name them."""
    return ", ".join(f"weights {maker.weights.path}" for maker in job.makers)


def _making(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a side-car says of how a volume was made, of earlier versions, too."""
    others = {"doubt", "stored", "attcl_version", "method_title", "note", *derivative.FIELDS}
    return {key: value for key, value in {**OLD_MANNER, **document}.items() if key not in others}


def _write_deviation(
    plan: CompletionPlan,
    job: Job,
    frame: _Frame,
    target: str,
    deviation: Array,
    file: PurePosixPath,
) -> None:
    """Write the samples' standard deviation in the target's intensity unit, float32."""
    scale = job.styles[target].scale
    data = frame.volume(deviation * np.float32((scale.high - scale.low) / 2))
    description = f"attcl {__version__} std of {plan.manner.samples} synthetic {target}, no image"
    like = replace(frame.grid, dtype=np.dtype(np.float32))
    volumes.save([plan.output / file], data, like, description=description, made_by=_makers(job))


def _side_car(plan: CompletionPlan, job: Job, target: str, doubt: Doubt) -> dict[str, Any]:
    """Return what the JSON file beside a volume says."""
    weights = job.weights
    dataset = plan.dataset
    sources = [_made_from(dataset, job.case, name) for name in job.sources]
    guides = plan.manner.guides_of(job.makers)
    between = job.between(target)
    said = doubt.document()
    fields: dict[str, Any] = {}
    if plan.places.naming is None:
        file = plan.places.files(job.case, target)[0]
        description = (
            f"Synthetic {target} image made from {plan.manner.sources_in_words(job.makers, target)} by attcl "
            f"({title_of(weights.info.settings)}, {weights.name}); no acquisition"
        )
        files = [job.case.files[name][0] for name in (*job.sources, *guides)]
        fields = derivative.image_fields(dataset, files, file, description)
    return {
        **fields,
        "synthetic": True,
        "target": target,
        **({"source": sources[0]} if len(sources) == 1 else {"sources": sources}),
        **({"through": list(between)} if between else {}),
        **plan.manner.document_of(job.makers, target),
        "sharpened_by": [_made_from(dataset, job.case, name) for name in guides],
        "background": dataset.background,
        "stored": job.styles[target].document(),
        **({"doubt": said} if said else {}),
        "method": weights.info.settings.method,
        "method_title": title_of(weights.info.settings),
        "weights": {"name": weights.name, "sha256": weights.sha256},
        "seed": weights.info.settings.seed,
        "attcl_version": __version__,
        "note": "Synthesised by attcl; research use only, not for diagnosis.",
    }


def _made_from(dataset: Dataset, case: Case, name: str) -> dict[str, Any]:
    """Return a modality that a volume was made from, as side-cars name it; by content if names tell no patient."""
    named = dataset.layout.names_cases
    return {
        "modality": name,
        "files": [str(file) for file in case.files[name][:1]],
        **({} if named else {"sha256": sha256(dataset.paths(case, name)[0])}),
    }


def _rounded(value: float | None) -> float | None:
    """Return a figure of doubt with the digits that its side-car has, which are those of the page."""
    return None if value is None else rounded(value)


def _failed(job: Job, error: AttclError, *, keep_going: bool) -> Completed:
    if not keep_going:
        raise error
    return Completed(job, (), 0.0, error)


def _finished(
    job: Job,
    seconds: float,
    doubts: Mapping[str, Doubt],
    writing: Future[tuple[str, ...]],
    *,
    keep_going: bool,
) -> Completed:
    try:
        return Completed(job, writing.result(), seconds, doubts=doubts)
    except AttclError as error:
        return _failed(job, error, keep_going=keep_going)
