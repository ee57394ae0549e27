"""`attcl complete` as a function: finds weights, plans, synthesises what is missing, keeps the record.

Knows no terminal: talk goes to `progress`, the outcome is returned.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attcl_cli import cluster, devices
from attcl_cli.completion import linking, provenance
from attcl_cli.completion.checks import require_possible
from attcl_cli.completion.expected import canonical_targets, expect
from attcl_cli.completion.jobs import (
    DEFAULT_DATA,
    Completed,
    CompletionPlan,
    Doubt,
    Manner,
    Places,
)
from attcl_cli.completion.plan import notes_of_unproven, plan_completion
from attcl_cli.completion.recording import finish_earlier, known_doubts, make_all, new_record
from attcl_cli.confined import confined
from attcl_cli.data import derivative, originals
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Source
from attcl_cli.data.layouts import SUBMISSIONS, Layout
from attcl_cli.errors import AttclError, UsageError, raise_all
from attcl_cli.methods.weights import load_method, require_same_file
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report.viewers import SLICES, require_viewer
from attcl_cli.run_ends import reported
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import RunRecord
from attcl_cli.temporaries import sweep

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CompletionResult:
    """What became of a completion.

    Attributes:
        plan: what there was to do.
        device: where the networks ran; several with commas.
        record: the `run.json` of this run.
        written: volumes made.
        linked: originals linked.
        failed: case id -> why it failed.
        doubts: case id -> target -> how far the volume is to be distrusted, of all volumes that lie in the folder.
        page: the page that shows the volumes; None if there is none to show, or nothing was written.
    """

    plan: CompletionPlan = field(repr=False)  # a notebook shows the counts
    device: str
    record: Path
    written: int = 0
    linked: int = 0
    failed: tuple[tuple[str, AttclError], ...] = ()
    doubts: Mapping[str, Mapping[str, Doubt]] = field(default_factory=dict, repr=False)
    page: Path | None = None

    @property
    def far(self) -> tuple[str, ...]:
        """Return the ids of the cases that are unlike the training cases."""
        return tuple(
            case for case, doubts in self.doubts.items() if any(it.far for it in doubts.values())
        )

    @property
    def output(self) -> Path:
        """Return the folder that the volumes are in."""
        return self.plan.output

    @property
    def done_before(self) -> int:
        """Return how many volumes an earlier run had made."""
        return self.plan.done


def complete(
    ori: Path | str = DEFAULT_DATA,
    cpl: Path | str = "out",
    *,
    images: Mapping[str, Path | str] | Sequence[tuple[str, Path | str]] = (),
    weights: Path | str | Sequence[Path | str] = (),
    targets: Sequence[str] = (),
    layout: str = "auto",
    modalities: Path | str | None = None,
    batch_size: int = 64,
    bids_filter: Sequence[str] = (),
    background: BackgroundOption = "auto",
    bids_desc: str | None = None,
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    mirror: bool | None = None,
    planes: str = "axial",
    average: bool = False,
    intensities: str = "auto",
    even: bool | None = None,
    guide: bool | None = None,
    link_originals: bool = False,
    num_parts: int = 1,
    part_id: int = 1,
    keep_going: bool = False,
    force: bool = False,
    device: str = "auto",
    num_workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    viewer: str = SLICES,
    ray: str | None = None,
    gpu_share: float | None = None,
    progress: Progress = SILENT,
) -> CompletionResult:
    """Synthesise every missing volume of a dataset (Algorithm 1); finished files are never made again.

    Args:
        ori: the incomplete dataset; it is only read.
        cpl: folder for the synthesised volumes, and only these.
        images: modality -> NIfTI file, of one patient, in place of `ori`; volumes are called as their modalities.
        weights: runs' folders, weights files or bundled names, the first that can make a target does; none: the newest
            finished run of these modalities, otherwise bundled weights of patients, if the data fits them.
        targets: only these modalities; none: all.
        layout: how the dataset is named (`open_dataset`), or a challenge's naming of what is written.
        modalities: a TOML file with other modality names.
        batch_size: slices on the device at once; never changes results.
        bids_filter: of several files of a modality in BIDS, which is meant (`open_dataset`).
        background: what is background in the volumes (`volumes.load`).
        bids_desc: the value of `desc-` in new names of BIDS; None: that of the output folder, otherwise none.
        slices: (first, stop) of the slices that are synthesised; None: all.
        samples: write the mean of so many style samples; 0: the reference style.
        uncertainty: also write the samples' standard deviation.
        mirror: write the mean of each slice's translation and that of its mirror image; None: if the weights were
            trained so (settings `mirror` and `crop`).
        planes: `axial`, or `three`: write the mean of axial, coronal and sagittal passes.
        average: write the mean of all weights that can make a target, instead of what the first makes.
        intensities: `network`, `stretched` (the darkest and the brightest twentieth, to the ends of the target's
            training volumes), `matched` (to the quantiles of these) or `auto`.
        even: even out steps between neighbouring slices, which are made one by one; None: in whole volumes, if the
            weights were trained on squares.
        guide: sharpen a volume by modalities that its network was not given, since no training case had them together
            with the others; None: in whole volumes, if the weights were trained on squares.
        link_originals: also link the originals, so that `cpl` is a whole dataset.
        num_parts: share the cases among this many runs.
        part_id: which share this run does, from 1: every `num_parts`-th case, starting with this one.
        keep_going: do the sound cases; the others are in the result's `failed`.
        force: use weights that know phantoms alone also on others, and take volumes that a check of their voxels
            refuses.
        device: auto, cpu, cuda, cuda:N or mps; or several GPUs, `cuda:0,cuda:1`: a process for each divides the cases.
        num_workers: cases read ahead, per device.
        overwrite: make volumes again that exist.
        dry_run: plan and check everything, and write nothing.
        viewer: `slices`, or `niivue`: the page also has NiiVue, with a few volumes in whole; it is written again even
            if nothing is left to make.
        ray: make the volumes on this Ray cluster: `local` (started for this run), `auto`, or its address.
        gpu_share: of a GPU, for each worker of the cluster; None: a whole one.
        progress: hears how it goes.

    Raises:
        UsageError: options that do not fit together.
        AttclError: everything that is wrong, together; or, without `keep_going`, what failed on the way.
        InterruptedRun: Ctrl-C or another signal; finished files are kept.
    """
    _require_part(part_id, num_parts)
    require_viewer(viewer)
    source = Source(
        Path(ori),
        layout,
        Path(modalities) if modalities is not None else None,
        tuple(bids_filter),
        background,
        tuple((name, Path(file)) for name, file in _items(images)),
    )
    progress = RunLog(progress)
    if source.images:
        _require_images_alone(source, link_originals=link_originals)
    naming = _submission(layout, link_originals=link_originals)
    if naming is not None:  # says how to write; what is read shows its layout itself
        source = replace(source, layout="auto")
    dataset = source.open()
    if naming is None:
        dataset = replace(
            dataset,
            desc=derivative.choose_desc(dataset, Path(cpl), bids_desc),
            completed=Path(cpl),
        )
    manner = Manner(
        slices=slices,
        samples=samples,
        uncertainty=uncertainty,
        mirror=mirror,
        planes=planes,
        average=average,
        intensities=intensities,
        even=even,
        guide=guide,
    )
    kept = originals.folders_of(dataset)
    require_possible(Places(dataset, Path(cpl), naming), manner, kept)
    wanted = canonical_targets(targets, dataset)
    dataset, models, chosen = expect(
        dataset,
        [weights] if isinstance(weights, Path | str) else list(weights),
        wanted,
        progress,
        force=force,
    )
    for note in dataset.notes:
        progress.say(f"note: {note}")
    raise_all(linking.in_the_way(dataset, Path(cpl)) if link_originals else [])
    place, several, on = _places(device, ray)
    on_cluster = cluster.asked_for(ray, device, gpu_share)
    plan = plan_completion(
        dataset,
        Path(cpl),
        models,
        naming=naming,
        targets=wanted,
        manner=manner,
        part=(part_id, num_parts),
        originals=kept,
        keep_going=keep_going,
        overwrite=overwrite,
        force=force,
        progress=progress,
    )
    for note in (
        *plan.notes,
        *notes_of_unproven(plan),
        *provenance.notes_of_learned(plan.learned),
    ):
        progress.say(f"note: {note}")
    record_file = plan.places.records / _record_name(part_id, num_parts)
    if dry_run:
        return CompletionResult(plan, on, record_file, failed=tuple(plan.failed.items()))
    _require_cluster(on_cluster, plan)
    record = new_record(plan, record_file, on, source, naming, targets)
    record.config |= {
        "part": [part_id, num_parts],
        "keep_going": keep_going,
        "overwrite": overwrite,
        **({"background": background} if background != "auto" else {}),
        **({"ray": ray} if ray is not None else {}),
    }
    record.extra["weights_chosen"] = chosen
    if not overwrite:  # what an earlier run made stays
        record.resume()
    busy = bool(plan.jobs or plan.failed)
    with (
        record.recorded(progress) if busy else reported(),
        confined(plan.output, plan.places.records),
    ):
        if plan.output.is_dir():
            sweep(plan.output)
        if naming is None:
            done = [case for case in dataset.cases if case.id in plan.present]
            made = dataset.cases if link_originals else [*done, *(job.case for job in plan.jobs)]
            derivative.write_description(dataset, plan.output, made)
        linked = linking.link_originals(dataset, plan.output) if link_originals else 0
        doubts = known_doubts(plan)
        written = 0
        failed: dict[str, AttclError] = {}
        if busy:
            with _made(
                plan,
                place,
                several=several,
                on_cluster=on_cluster,
                batch_size=batch_size,
                workers=num_workers,
                keep_going=keep_going,
            ) as items:
                written, failed = make_all(plan, record, items, doubts, progress)
        else:
            finish_earlier(plan, record, doubts)
        page = _write_page(plan, record, failed, anew=busy or viewer != SLICES, viewer=viewer)
    return CompletionResult(
        plan, on, record_file, written, linked, tuple(failed.items()), doubts, page
    )


@contextmanager
def _made(
    plan: CompletionPlan,
    place: torch.device,
    *,
    several: Sequence[str],
    on_cluster: cluster.Cluster | None,
    batch_size: int,
    workers: int,
    keep_going: bool,
) -> Iterator[Iterator[Completed]]:
    """Make the volumes here, in a process per device, or on a cluster."""
    made: Generator[Completed, None, None]
    if on_cluster is not None:
        from attcl_cli.completion.on_ray import make_on_ray

        made = make_on_ray(
            plan, on_cluster, batch_size=batch_size, workers=workers, keep_going=keep_going
        )
    elif several:
        from attcl_cli.completion.on_devices import make_on_devices

        made = make_on_devices(
            plan, several, batch_size=batch_size, workers=workers, keep_going=keep_going
        )
    else:
        from attcl_cli.completion.making import make_volumes  # loads torch: all is checked

        for model in plan.used:
            require_same_file(model)  # a training may have saved others since
        methods = {model.sha256: load_method(model, place) for model in plan.used}
        made = make_volumes(
            plan,
            methods,
            device=place,
            batch_size=batch_size,
            workers=workers,
            keep_going=keep_going,
        )
    with closing(made):  # nobody writes any more when the record of the run ends
        yield made


def _places(device: str, ray: str | None) -> tuple[torch.device, tuple[str, ...], str]:
    """Return the device of this process, those of other processes that make the volumes, and how the record names them.

    Raises:
        UsageError: there is no such device on this machine, or a cluster is to make the volumes besides.
    """
    several = devices.several(device)
    if several and ray is not None:
        raise UsageError(
            f"--ray: given with --device {device}, expected one of them",
            "leave one of them out; -d cuda takes all GPUs of a cluster",
            code="options-exclude-each-other",
        )
    if several:
        return devices.select("cpu"), several, ",".join(several)
    if ray is not None:
        return devices.select("cpu"), (), f"ray ({device})"
    place = devices.select(device)
    return place, (), str(place)


def _require_cluster(on: cluster.Cluster | None, plan: CompletionPlan) -> None:
    """Raise an error, before anything is written, unless somebody answers where volumes are to be made."""
    if on is not None and plan.jobs:
        cluster.require(on.address)


def _require_part(part_id: int, num_parts: int) -> None:
    if not 1 <= part_id <= num_parts:
        raise UsageError(
            f"--part-id: {part_id}, expected 1 to --num-parts ({num_parts})",
            "parts are counted from 1: --num-parts 4 --part-id 1",
            code="part-out-of-range",
        )


def _record_name(part_id: int, num_parts: int) -> str:
    return "run.json" if num_parts == 1 else f"run-{part_id}of{num_parts}.json"


def _items(
    images: Mapping[str, Path | str] | Sequence[tuple[str, Path | str]],
) -> Iterable[tuple[str, Path | str]]:
    return images.items() if isinstance(images, Mapping) else images


def _require_images_alone(source: Source, *, link_originals: bool) -> None:
    """Refuse what needs the names of a dataset, if images are named one by one."""
    given = {
        f"--ori {source.folder}": source.folder != Path(DEFAULT_DATA),
        f"--layout {source.layout}": source.layout != "auto",
        "--bids-filter": bool(source.bids_filter),
        "--link-originals": link_originals,
    }
    for option, taken in given.items():
        if taken:
            raise UsageError(
                f"--image: given with {option}, expected images alone",
                "leave one of them out; --image names the files of one patient, --ori a folder",
                code="options-exclude-each-other",
            )


def _submission(layout: str, *, link_originals: bool) -> Layout | None:
    """Return a challenge's naming of what is written; None if `layout` names no challenge."""
    naming = SUBMISSIONS.get(layout)
    if naming is not None and link_originals:
        raise UsageError(
            f"--link-originals: with --layout {naming.name}, expected synthesised files alone",
            "leave one of them out",
            code="options-exclude-each-other",
        )
    return naming


def _write_page(
    plan: CompletionPlan,
    record: RunRecord,
    failed: Mapping[str, AttclError],
    *,
    anew: bool,
    viewer: str,
) -> Path | None:
    """Write the page, or keep that of an earlier run if nothing was made since; None if there is nothing to show."""
    from attcl_cli.completion.report import page_file, write_report

    path = page_file(record.path)
    if not (plan.jobs or plan.present or failed):
        return None
    if path.is_file() and not anew:
        return path
    record.results = [path]
    return write_report(plan, record.path, failed, viewer=viewer)
