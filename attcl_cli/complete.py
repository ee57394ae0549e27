"""Algorithm 1, planned: which volumes are missing, from which source each is made, and making them.

`plan` looks at names and headers and decides everything; `run` computes. Neither writes outside the output folder, and
a file that exists there is never written again, so a run that was killed is finished by running it again.
"""

from __future__ import annotations

import contextlib
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
from attcl_cli.dataset import Case, Dataset, check_case, ending_of
from attcl_cli.errors import AttclError, UsageError, raise_all
from attcl_cli.files import free_bytes, is_within, read_json, refuse_inside, write_json
from attcl_cli.methods import Method
from attcl_cli.overlap import read_ahead
from attcl_cli.volume import Array, Grid, Scale, Volume

_WRITERS = 2
_COMPRESSED_SHARE = 0.25  # of a volume's int16 bytes; generous, real ones take about a seventh


@dataclass(frozen=True)
class Job:
    """All volumes that one case lacks and that are made from one source.

    Attributes:
        case: the case.
        source: the modality they are made from.
        outputs: target -> files to write, relative to the output folder.
    """

    case: Case
    source: str
    outputs: Mapping[str, tuple[PurePosixPath, ...]]


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before anything is computed.

    Attributes:
        dataset: where the sources lie.
        output: where the volumes go.
        weights: what makes them.
        modal_list: modalities by falling number of volumes; a case's source is the first that it has.
        jobs: what is left to do.
        done: volumes that were missing and lie complete in the output folder.
        slices: (first, stop) of the slices that are synthesised, or None for all.
        samples: looks drawn a volume, whose mean is written; 0: the reference's look.
        uncertainty: whether the standard deviation of the samples is written, too.
        failed: case id -> problem, of cases that `keep_going` leaves out.
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

    @property
    def made_how(self) -> dict[str, Any]:
        """What a label must say alike for a volume of an earlier run to count as done."""
        return _how(self.slices, self.samples, uncertainty=self.uncertainty)

    @property
    def volumes(self) -> int:
        """How many volumes are left to make."""
        return sum(len(job.outputs) for job in self.jobs)


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


def plan(
    dataset: Dataset,
    output: Path,
    weights: Weights,
    *,
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
    `modal_list` that the case has, and nothing else needs to be generated.

    Args:
        dataset: the incomplete dataset.
        output: the completed folder; may hold results of earlier runs.
        weights: verified weights.
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
    _refuse_output(output, (dataset.root, *originals))
    _refuse_samples(dataset, samples, uncertainty=uncertainty)
    how = _how(slices, samples, uncertainty=uncertainty)
    modal_list = dataset.by_frequency()
    problems: list[AttclError] = []
    existing: list[AttclError] = []
    jobs: list[Job] = []
    done = 0
    for case in dataset.cases[part[0] - 1 :: part[1]]:
        wanted = [name for name in dataset.missing(case) if not targets or name in targets]
        outputs: dict[str, tuple[PurePosixPath, ...]] = {}
        for target in wanted:
            whole = dataset.place(case, target)
            files = whole[slices[0] : slices[1]] if slices and _is_png(dataset) else whole
            problems += _escapes(output, whole[0])
            # Algorithm 1's path check; files appear whole, so one that exists is complete.
            there = {file: output / file for file in whole if (output / file).exists()}
            missing = files if overwrite else tuple(file for file in files if file not in there)
            if there:
                label = output / dataset.place_label(case, target)
                existing += _existing_problems(
                    list(there.values()), label, weights, how, overwrite=overwrite
                )
            if missing or not files:
                outputs[target] = missing
            else:
                done += 1
        if outputs:
            source = source_of(case, modal_list)
            jobs.append(Job(case, source, outputs))
    problems += _fold(existing)
    problems += _lacking(weights, jobs)
    sound: list[Job] = []
    failed: dict[str, AttclError] = {}
    checked = {job.case.id for job in jobs}
    for name, own in dataset.wrong.items() if part[0] == 1 else ():
        if name not in checked and keep_going:
            failed[name] = own[0]
        elif name not in checked:
            problems += own
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
    )


def source_of(case: Case, modal_list: Sequence[str]) -> str:
    """What a case's missing volumes are made from: the first modality of the list that it has."""
    return next(name for name in modal_list if name in case.files)


def run(
    plan: Plan,
    method: Method,
    *,
    device: torch.device,
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
        device: where the network runs.
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
                made = _translate(plan, method, job, prepared, device, batch_size)
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
    slices: torch.Tensor,
    source: str,
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
        slices: (B, 1, h, w) float32 in [-1, 1], padded and averaged down (`fit`), on the method's device.
        source: their modality.
        targets: the modalities wanted.
        image_size, canvas, downs: of the weights' settings.
        sample: draw the look of each target with this number instead of taking the reference's.

    Returns:
        target -> (B, 1, h * factor, w * factor), clipped to [-1, 1]; factor = canvas / image_size.
    """
    count = slices.shape[0]
    lacking = slices_a_call(image_size, slices.device) - count
    filled = slices
    if lacking > 0:
        filled = torch.cat([slices, slices.new_full((lacking, *slices.shape[1:]), -1.0)])
    filled = filled.contiguous(memory_format=torch.channels_last)
    factor = canvas // image_size
    fakes = method.synthesise({source: filled}, targets, sample=sample)
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

    small: Array  # (N, h, w) float32 in [-1, 1]: the slices that show any of the source
    indices: Array  # (N,) where they belong
    inside: Array  # (D, H, W) bool: where the source is not 0
    grid: Grid

    def spread(self, slices: Array) -> Array:
        """(N, H, W), the slices of `indices` -> (D, H, W) float32, 0 where the source is 0."""
        data = np.zeros(self.inside.shape, dtype=np.float32)
        data[self.indices] = slices
        data[~self.inside] = 0
        return data


def _prepare(plan: Plan, job: Job) -> _Prepared:
    images = volume.load_case(
        {modality: plan.dataset.paths(job.case, modality) for modality in job.case.files}
    )
    source = images.volumes[job.source]
    inside = source.data != 0
    inside[~_wanted(plan, job, len(inside))] = False
    settings = plan.weights.info.settings
    return _prepared(source, inside, images.brain, images.scales[job.source], settings)


def _prepared(
    source: Volume, inside: Array, brain: Array, scale: Scale, settings: Settings
) -> _Prepared:
    indices = np.flatnonzero(inside.any(axis=(1, 2)))
    chosen = volume.normalise(source.data[indices], brain[indices], scale)
    return _Prepared(
        fit(chosen, image_size=settings.image_size, canvas=settings.canvas, downs=settings.downs),
        indices,
        inside,
        source.grid,
    )


def _wanted(plan: Plan, job: Job, depth: int) -> Array:
    """(D,) bool: the slices that are to be written."""
    wanted = np.zeros(depth, dtype=bool)
    if not _is_png(plan.dataset):
        wanted[slice(*plan.slices) if plan.slices else slice(None)] = True
        return wanted
    for target, files in job.outputs.items():
        missing = set(files)
        wanted |= [file in missing for file in plan.dataset.place(job.case, target)]
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
        source: str,
        targets: Sequence[str],
        samples: Sequence[int | None],
    ) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Rows of `_Prepared.indices` after each other, and target -> (samples, B, H, W) in [-1, 1] of them."""
        s = self.settings
        call = slices_a_call(s.image_size, self.device)
        at_once = max(self.batch_size // call, 1) * call
        for start in range(0, len(prepared.indices), at_once):
            block = torch.from_numpy(prepared.small[start : start + at_once])[:, None].to(
                self.device, non_blocking=True
            )
            for offset in range(0, block.shape[0], call):
                chunk = block[offset : offset + call]
                drawn = [
                    translate(
                        self.method,
                        chunk,
                        source,
                        targets,
                        image_size=s.image_size,
                        canvas=s.canvas,
                        downs=s.downs,
                        sample=sample,
                    )
                    for sample in samples
                ]
                rows = slice(start + offset, start + offset + chunk.shape[0])
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
    network = _Network(method, plan.weights.info.settings, device, batch_size)
    samples: Sequence[int | None] = range(plan.samples) or [None]
    for rows, looks in network.looks(prepared, job.source, tuple(job.outputs), samples):
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
        prepared = self._prepare(source, source.data != 0, brain)
        scales = self.weights.info.scales
        made = self._images(prepared, name, targets, [None])[0]
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
        prepared = self._prepare(source, inside, brain)
        drawn = self._images(prepared, name, [target], range(count))
        return [
            np.where(inside, (prepared.spread(made[target]) + 1) / 2, 0)[indices] for made in drawn
        ]

    def _prepare(self, source: Volume, inside: Array, brain: Array) -> _Prepared:
        scale = volume.intensity_scale(source.data, brain)
        assert scale is not None  # a source without contrast is refused when it is read
        return _prepared(source, inside, brain, scale, self.weights.info.settings)

    def _images(
        self, prepared: _Prepared, name: str, targets: Sequence[str], samples: Sequence[int | None]
    ) -> list[dict[str, Array]]:
        """For each sample target -> (N, H, W) in [-1, 1], the slices of `prepared.indices`."""
        size = prepared.grid.axial_shape[1:]
        parts: list[dict[str, list[Array]]] = [{target: [] for target in targets} for _ in samples]
        network = _Network(self.method, self.weights.info.settings, self.device, self.batch_size)
        for _, looks in network.looks(prepared, name, targets, samples):
            for target in targets:
                for own, look in zip(parts, looks[target].cpu().numpy(), strict=True):
                    own[target].append(volume.crop(look, size))
        return [{target: np.concatenate(own[target]) for target in targets} for own in parts]


def _write(plan: Plan, job: Job, prepared: _Prepared, made: Mapping[str, _Made]) -> tuple[str, ...]:
    written: list[str] = []
    for target, files in job.outputs.items():
        data = prepared.spread(
            volume.denormalise(made[target].mean, plan.weights.info.scales[target])
        )
        paths = [plan.output / file for file in files]
        if _is_png(plan.dataset):  # only the slices that are wanted and not yet there
            own = [file.name for file in plan.dataset.place(job.case, target)]
            data = data[[own.index(file.name) for file in files]]
        # The label first: an image without its label never exists. Nor does one under the label of another.
        label_file = plan.output / plan.dataset.place_label(job.case, target)
        label = _label(plan, job, target)
        if label_file.exists() and _read_label(label_file) != label:
            for file in plan.dataset.place(job.case, target):
                with contextlib.suppress(OSError):
                    (plan.output / file).unlink()
        write_json(label_file, label)
        deviation = made[target].deviation
        if deviation is not None:  # before the volume, whose existence says that all is done
            file = uncertainty_file(files[0])
            _write_deviation(plan, prepared, target, deviation, file)
            written.append(str(file))
        volume.save(
            paths,
            data,
            prepared.grid,
            description=f"attcl {__version__} synthetic {target} from {job.source}",
        )
        written += [str(file) for file in files]
    return tuple(written)


def _write_deviation(
    plan: Plan, prepared: _Prepared, target: str, deviation: Array, file: PurePosixPath
) -> None:
    """The samples' standard deviation in the target's intensity unit, float32."""
    scale = plan.weights.info.scales[target]
    data = prepared.spread(deviation * np.float32((scale.high - scale.low) / 2))
    description = f"attcl {__version__} std of {plan.samples} synthetic {target}, no image"
    like = replace(prepared.grid, dtype=np.dtype(np.float32))
    volume.save([plan.output / file], data, like, description=description)


def uncertainty_file(file: PurePosixPath) -> PurePosixPath:
    """Where the standard deviation beside a volume goes: under a name that no layout takes for an image."""
    ending = ending_of(file)
    return file.with_name(file.name.removesuffix(ending) + "_uncertainty" + ending)


def _label(plan: Plan, job: Job, target: str) -> dict[str, Any]:
    return {
        "synthetic": True,
        "target": target,
        "source": {
            "modality": job.source,
            "files": [str(file) for file in job.case.files[job.source][:1]],
        },
        **plan.made_how,
        "method": plan.weights.info.settings.method,
        "weights": {"name": plan.weights.name, "sha256": plan.weights.sha256},
        "seed": plan.weights.info.settings.seed,
        "attcl_version": __version__,
        "note": "Synthesised by attcl; research use only, not for diagnosis.",
    }


def _refuse_output(output: Path, originals: Sequence[Path]) -> None:
    refuse_inside(output, originals, flag="--cpl")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--cpl: {output} is a file, wanted a folder", "choose another --cpl")


def _lacking(weights: Weights, jobs: Sequence[Job]) -> list[AttclError]:
    """One problem for each modality that jobs need and the weights do not know."""
    needed = Counter(name for job in jobs for name in (job.source, *job.outputs))
    known = ", ".join(weights.info.modalities)
    return [
        AttclError(
            f"{weights.path}: knows {known}, wanted {name} too ({count} cases need it)",
            "train on data that has it, or choose other modalities with --target",
        )
        for name, count in sorted(needed.items())
        if name not in weights.info.modalities
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
    present: Sequence[Path],
    label: Path,
    weights: Weights,
    how: Mapping[str, Any],
    *,
    overwrite: bool,
) -> list[AttclError]:
    """A result of an earlier run counts as done only if it is whole and was made in the same way.

    What attcl did not make is never replaced, not even with --overwrite: it may be an original.
    """
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
    again = "choose another --cpl, or make it again with --overwrite"
    document = _read_label(label)
    made_by = str(document.get("weights", {}).get("sha256"))
    named = document.get("weights", {}).get("name")
    if made_by != weights.sha256:
        wanted = f"{weights.sha256[:12]} ({weights.name})"
        return [
            AttclError(
                f"{present[0]}: made by weights {made_by[:12]} ({named}), wanted {wanted}", again
            )
        ]
    for name, wanted_value in how.items():
        if document.get(name) != wanted_value:
            found = f"--{name} {document.get(name)}"
            return [AttclError(f"{present[0]}: made with {found}, wanted {wanted_value}", again)]
    return []


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


def _how(slices: tuple[int, int] | None, samples: int, *, uncertainty: bool) -> dict[str, Any]:
    said = list(slices) if slices else "all"
    return {"slices": said, "samples": samples, "uncertainty": uncertainty}


def _is_png(dataset: Dataset) -> bool:
    return "{slice}" in dataset.layout.template
