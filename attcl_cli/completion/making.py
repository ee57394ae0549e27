"""Makes the volumes of a plan: reading, networks and writing side by side, each volume with its side-car.

Leaves to `plan` what is made from what. A file that exists is never written again, so a run that was killed is finished
by running it again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import torch

from attcl_cli import __version__
from attcl_cli.completion.checks import leads_out
from attcl_cli.completion.inference import Network, Prepared, prepare
from attcl_cli.completion.jobs import Completed, CompletionPlan, Job, uncertainty_file
from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import Dataset, read_side_car
from attcl_cli.data.intensities import Array
from attcl_cli.errors import AttclError
from attcl_cli.files import is_within, write_json
from attcl_cli.methods.base import Method
from attcl_cli.prefetch import read_ahead

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
) -> Iterator[Completed]:
    """Make the planned volumes.

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
    pending: list[tuple[Job, float, Future[tuple[str, ...]]]] = []

    def load(job: Job) -> Prepared:
        return _prepare(plan, job, methods[job.weights.sha256])

    def finish_all() -> Iterator[Completed]:
        while pending:
            yield _finished(*pending.pop(0), keep_going=keep_going)

    with ThreadPoolExecutor(max_workers=WRITERS) as writers:
        for job, future in read_ahead(load, plan.jobs, depth=workers):
            try:
                prepared = future.result()
                clock = time.monotonic()
                network = Network(methods[job.weights.sha256], device, batch_size)
                images = _translate(plan, network, job, prepared)
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
            writing = writers.submit(_write, plan, job, prepared, images)
            writing.add_done_callback(lambda _future: slots.release())
            pending.append((job, seconds, writing))
            while pending and pending[0][2].done():
                yield _finished(*pending.pop(0), keep_going=keep_going)
        yield from finish_all()


def link_originals(dataset: Dataset, output: Path) -> int:
    """Link every file of the dataset into the output folder, which then is a whole dataset; return how many.

    Raises:
        AttclError: a link would lead out of the output folder, or the file system has no links.
    """
    count = 0
    for case in dataset.cases:
        for files in (*case.files.values(), case.segmentation):
            for file in files:
                link = output / file
                if not is_within(link.parent, output):
                    raise leads_out(link, output)
                if link.exists() or link.is_symlink():
                    continue
                try:
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to((dataset.root / file).resolve())
                except OSError as error:
                    raise AttclError(
                        f"{link}: not linked ({error.strerror}), "
                        "expected a file system with symbolic links",
                        "run without --link-originals",
                        code="no-links",
                    ) from error
                count += 1
    return count


def _prepare(plan: CompletionPlan, job: Job, method: Method) -> Prepared:
    images = volumes.load_case(
        {modality: plan.dataset.paths(job.case, modality) for modality in job.case.files}
    )
    sources = {name: images.volumes[name] for name in job.sources}
    inside = intensities.brain_of([source.data for source in sources.values()])
    inside[~_slices_to_write(plan, job, len(inside))] = False
    return prepare(sources, inside, images.brain, images.scales, method)


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


@dataclass(frozen=True)
class _Images:
    """One target of a case: (N, H, W) float32, the slices of `Prepared.indices`."""

    mean: Array  # in [-1, 1]
    deviation: Array | None  # of the samples, in the same unit


def _translate(
    plan: CompletionPlan, network: Network, job: Job, prepared: Prepared
) -> dict[str, _Images]:
    _, height, width = prepared.grid.axial_shape
    shape = (len(prepared.indices), height, width)
    images = {
        target: _Images(
            np.empty(shape, dtype=np.float32),
            np.empty(shape, dtype=np.float32) if plan.manner.uncertainty else None,
        )
        for target in job.outputs
    }
    samples: Sequence[int | None] = range(plan.manner.samples) or [None]
    for rows, styles in network.styles(prepared, tuple(job.outputs), samples):
        for target, image in images.items():
            mean = styles[target].mean(dim=0).cpu().numpy()
            image.mean[rows] = intensities.crop(mean, (height, width))
            if image.deviation is not None:
                deviation = styles[target].std(dim=0).cpu().numpy()
                image.deviation[rows] = intensities.crop(deviation, (height, width))
    return images


def _write(
    plan: CompletionPlan, job: Job, prepared: Prepared, images: Mapping[str, _Images]
) -> tuple[str, ...]:
    written: list[str] = []
    for target, files in job.outputs.items():
        data = prepared.spread(
            intensities.denormalise(images[target].mean, job.weights.info.scales[target])
        )
        whole = plan.places.files(job.case, target)
        if len(whole) > 1:  # a file per slice: only those that are asked for and not yet there
            data = data[[whole.index(file) for file in files]]
        # The side-car first: an image without one never exists. Nor does one beside the side-car of another.
        side_car = plan.places.side_car(job.case, target)
        document = _side_car(plan, job, target)
        if side_car.exists() and read_side_car(side_car) != document:
            for file in whole:
                with contextlib.suppress(OSError):
                    (plan.output / file).unlink()
        write_json(side_car, document)
        deviation = images[target].deviation
        if deviation is not None:  # before the volume, whose existence says that all is done
            file = uncertainty_file(files[0])
            _write_deviation(plan, job, prepared, target, deviation, file)
            written.append(str(file))
        volumes.save(
            [plan.output / file for file in files],
            data,
            prepared.grid,
            description=f"attcl {__version__} synthetic {target} from {', '.join(job.sources)}",
        )
        written += [str(file) for file in files]
    return tuple(written)


def _write_deviation(
    plan: CompletionPlan,
    job: Job,
    prepared: Prepared,
    target: str,
    deviation: Array,
    file: PurePosixPath,
) -> None:
    """Write the samples' standard deviation in the target's intensity unit, float32."""
    scale = job.weights.info.scales[target]
    data = prepared.spread(deviation * np.float32((scale.high - scale.low) / 2))
    description = f"attcl {__version__} std of {plan.manner.samples} synthetic {target}, no image"
    like = replace(prepared.grid, dtype=np.dtype(np.float32))
    volumes.save([plan.output / file], data, like, description=description)


def _side_car(plan: CompletionPlan, job: Job, target: str) -> dict[str, Any]:
    """Return what the JSON file beside a volume says."""
    weights = job.weights
    sources = [
        {"modality": name, "files": [str(file) for file in job.case.files[name][:1]]}
        for name in job.sources
    ]
    return {
        "synthetic": True,
        "target": target,
        **({"source": sources[0]} if len(sources) == 1 else {"sources": sources}),
        **plan.manner.document(),
        "method": weights.info.settings.method,
        "weights": {"name": weights.name, "sha256": weights.sha256},
        "seed": weights.info.settings.seed,
        "attcl_version": __version__,
        "note": "Synthesised by attcl; research use only, not for diagnosis.",
    }


def _failed(job: Job, error: AttclError, *, keep_going: bool) -> Completed:
    if not keep_going:
        raise error
    return Completed(job, (), 0.0, error)


def _finished(
    job: Job, seconds: float, writing: Future[tuple[str, ...]], *, keep_going: bool
) -> Completed:
    try:
        return Completed(job, writing.result(), seconds)
    except AttclError as error:
        return _failed(job, error, keep_going=keep_going)
