"""Makes the volumes of a plan: reading, networks and writing side by side, each volume with its label.

What is to be made from what is `planning`'s business. A file that exists is never written again, so a run that was
killed is finished by running it again.
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
from attcl_cli.completion.inference import Network, Prepared, prepare
from attcl_cli.completion.plan import Job, Plan, escape, uncertainty_file
from attcl_cli.data import intensities, volumes
from attcl_cli.data.dataset import Dataset, read_label
from attcl_cli.data.intensities import Array
from attcl_cli.errors import AttclError
from attcl_cli.files import is_within, write_json
from attcl_cli.methods.base import Method
from attcl_cli.prefetch import read_ahead

_WRITERS = 2


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

    def load(job: Job) -> Prepared:
        return _prepare(plan, job)

    with ThreadPoolExecutor(max_workers=_WRITERS) as writers:
        for job, future in read_ahead(load, plan.jobs, depth=workers):
            try:
                prepared = future.result()
                clock = time.monotonic()
                first = job.weights.sha256 == plan.weights.sha256
                chosen = method if first or fallback is None else fallback
                made = _translate(plan, chosen, job, prepared, device, batch_size)
                seconds = time.monotonic() - clock
            except AttclError as error:
                yield _failed(job, error, keep_going=keep_going)
                continue
            except torch.cuda.OutOfMemoryError as error:
                raise AttclError(
                    f"{device}: out of memory on {job.case.id}, expected room for {batch_size} slices",
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


def link_originals(dataset: Dataset, output: Path) -> int:
    """Links every file of the dataset into the output folder, which then is a whole dataset; says how many."""
    made = 0
    for case in dataset.cases:
        for files in (*case.files.values(), case.segmentation):
            for file in files:
                link = output / file
                if not is_within(link.parent, output):
                    raise escape(link, output)
                if not link.exists() and not link.is_symlink():
                    try:
                        link.parent.mkdir(parents=True, exist_ok=True)
                        link.symlink_to((dataset.root / file).resolve())
                    except OSError as error:
                        raise AttclError(
                            f"{link}: not linked ({error.strerror}), "
                            "expected a file system with symbolic links",
                            "run without --link-originals",
                        ) from error
                    made += 1
    return made


def _prepare(plan: Plan, job: Job) -> Prepared:
    images = volumes.load_case(
        {modality: plan.dataset.paths(job.case, modality) for modality in job.case.files}
    )
    sources = {name: images.volumes[name] for name in job.sources}
    inside = intensities.brain_of([source.data for source in sources.values()])
    inside[~_wanted(plan, job, len(inside))] = False
    return prepare(sources, inside, images.brain, images.scales, job.weights.info.settings)


def _wanted(plan: Plan, job: Job, depth: int) -> Array:
    """(D,) bool: the slices that are to be written."""
    wanted = np.zeros(depth, dtype=bool)
    if not plan.dataset.layout.sliced:
        wanted[slice(*plan.slices) if plan.slices else slice(None)] = True
        return wanted
    for target, files in job.outputs.items():
        missing = set(files)
        wanted |= [file in missing for file in plan.places.files(job.case, target)]
    return wanted


@dataclass(frozen=True)
class _Made:
    """One target of a case: (N, H, W) float32, the slices of `Prepared.indices`."""

    mean: Array  # in [-1, 1]
    deviation: Array | None  # of the samples, in the same unit


def _translate(
    plan: Plan, method: Method, job: Job, prepared: Prepared, device: torch.device, batch_size: int
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
    network = Network(method, job.weights.info.settings, device, batch_size)
    samples: Sequence[int | None] = range(plan.samples) or [None]
    for rows, looks in network.looks(prepared, tuple(job.outputs), samples):
        for target, own in made.items():
            own.mean[rows] = intensities.crop(
                looks[target].mean(dim=0).cpu().numpy(), (height, width)
            )
            if own.deviation is not None:
                deviation = looks[target].std(dim=0).cpu().numpy()
                own.deviation[rows] = intensities.crop(deviation, (height, width))
    return made


def _write(plan: Plan, job: Job, prepared: Prepared, made: Mapping[str, _Made]) -> tuple[str, ...]:
    written: list[str] = []
    for target, files in job.outputs.items():
        data = prepared.spread(
            intensities.denormalise(made[target].mean, job.weights.info.scales[target])
        )
        paths = [plan.output / file for file in files]
        if plan.dataset.layout.sliced:  # only the slices that are expected and not yet there
            own = [file.name for file in plan.places.files(job.case, target)]
            data = data[[own.index(file.name) for file in files]]
        # The label first: an image without its label never exists. Nor does one under the label of another.
        label_file = plan.places.label(job.case, target)
        label = _label(plan, job, target)
        if label_file.exists() and read_label(label_file) != label:
            for file in plan.places.files(job.case, target):
                with contextlib.suppress(OSError):
                    (plan.output / file).unlink()
        write_json(label_file, label)
        deviation = made[target].deviation
        if deviation is not None:  # before the volume, whose existence says that all is done
            file = uncertainty_file(files[0])
            _write_deviation(plan, job, prepared, target, deviation, file)
            written.append(str(file))
        volumes.save(
            paths,
            data,
            prepared.grid,
            description=f"attcl {__version__} synthetic {target} from {', '.join(job.sources)}",
        )
        written += [str(file) for file in files]
    return tuple(written)


def _write_deviation(
    plan: Plan, job: Job, prepared: Prepared, target: str, deviation: Array, file: PurePosixPath
) -> None:
    """The samples' standard deviation in the target's intensity unit, float32."""
    scale = job.weights.info.scales[target]
    data = prepared.spread(deviation * np.float32((scale.high - scale.low) / 2))
    description = f"attcl {__version__} std of {plan.samples} synthetic {target}, no image"
    like = replace(prepared.grid, dtype=np.dtype(np.float32))
    volumes.save([plan.output / file], data, like, description=description)


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
